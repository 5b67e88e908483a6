package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/scheduler/types"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Schedule is when the next rotation starts by itself.
type Schedule struct {
	Name    string    `json:"name"`
	Enabled bool      `json:"enabled"`
	Hour    int       `json:"hour"` // of the rotation, local
	Zone    string    `json:"time_zone"`
	Next    time.Time `json:"next"`              // zero before genesis
	Label   string    `json:"label,omitempty"`   // of that rotation
	Skipped string    `json:"skipped,omitempty"` // why one before it is not started
	Waits   []string  `json:"waits,omitempty"`   // what is due and not done, and why
}

// FindNextSchedule returns the stack's schedule of rotations and the rotation that is due next.
// It computes it as the schedule function does. It returns nil if the stack has no schedule.
func (d *Deployment) FindNextSchedule(ctx context.Context) (*Schedule, error) {
	out, err := scheduler.NewFromConfig(d.AWS).GetSchedule(ctx, &scheduler.GetScheduleInput{
		GroupName: &d.Config.Stack, Name: aws.String(d.Config.Stack + "-tick"),
	})
	var none *types.ResourceNotFoundException
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the schedule: %w", err)
	}
	var in rotation.ScheduleInput
	if out.Target == nil || json.Unmarshal([]byte(aws.ToString(out.Target.Input)), &in) != nil {
		return nil, fmt.Errorf("schedule %s has no input that can be read", aws.ToString(out.Name))
	}
	look, err := (&rotation.Scheduler{Journal: d.Steps.Journal, Gates: &d.Steps.Gates}).LookAhead(ctx, in.Hour)
	if err != nil {
		return nil, err
	}
	var waits []string
	for _, w := range look.Waits {
		waits = append(waits, advice.Describe(w.Why, w.Next))
	}
	return &Schedule{
		Name: aws.ToString(out.Name), Enabled: out.State == types.ScheduleStateEnabled && in.State == rotation.ScheduleEnabled,
		Hour: in.Hour, Zone: d.Config.Window.Zone.String(),
		Next: look.Next.Rotation, Label: look.Next.Label, Skipped: look.Skipped, Waits: waits,
	}, nil
}

// DescribeReaders says how many subscribers are told of outcomes and alarms. A subscription by
// e-mail counts only after it was confirmed.
func (d *Deployment) DescribeReaders(ctx context.Context) (string, error) {
	if d.Config.Topic == "" {
		return "nobody: the deployment has no topic", nil
	}
	confirmed, pending := 0, 0
	pages := sns.NewListSubscriptionsByTopicPaginator(sns.NewFromConfig(d.AWS), &sns.ListSubscriptionsByTopicInput{TopicArn: &d.Config.Topic})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", fmt.Errorf("list who is told: %w", err)
		}
		for _, s := range page.Subscriptions {
			if strings.HasPrefix(aws.ToString(s.SubscriptionArn), "arn:") {
				confirmed++
			} else { // PendingConfirmation
				pending++
			}
		}
	}
	text := fmt.Sprintf("%d subscribers of the topic", confirmed)
	if confirmed == 0 {
		text = "nobody: set AlarmEmail, or subscribe to the stack's TopicArn"
	}
	if pending > 0 {
		text += fmt.Sprintf("; %d have not confirmed yet", pending)
	}
	return text, nil
}
