package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/scheduler/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Scheduler wires the schedule function, which reads the control table and starts what is
// due.
func Scheduler(ctx context.Context) (*rotation.Steps, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	s := WireScheduler(c, cfg, rotation.LambdaActor+os.Getenv("AWS_LAMBDA_FUNCTION_NAME"))
	s.Meter = &meter{w: os.Stdout, stack: c.Stack, now: time.Now}
	return s, nil
}

// WireScheduler builds what [rotation.Steps.Schedule] needs on real adapters.
func WireScheduler(c Config, cfg aws.Config, actor string) *rotation.Steps {
	store := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	return &rotation.Steps{Config: c.Config, Deps: rotation.Deps{
		Registry: store, Announcements: store, Drills: store, Starter: &starter{sfn.NewFromConfig(cfg), lambda.NewFromConfig(cfg)},
		Now: time.Now, Actor: actor,
	}}
}

// starter implements [rotation.Starter].
type starter struct {
	machines  *sfn.Client
	functions *lambda.Client
}

func (s *starter) StartExecution(ctx context.Context, stateMachine, name string, in rotation.ExecutionInput) error {
	_, err := (&Machine{API: s.machines, ARN: stateMachine}).Start(ctx, name, in)
	if errors.Is(err, ErrTaken) {
		return nil
	}
	return err
}

func (s *starter) CallPreflight(ctx context.Context, function string, in rotation.PreflightInput) error {
	payload, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, err = s.functions.Invoke(ctx, &lambda.InvokeInput{FunctionName: &function, InvocationType: lambdatypes.InvocationTypeEvent, Payload: payload})
	if err != nil {
		return fmt.Errorf("invoke %s: %w", function, err)
	}
	return nil
}

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

// NextSchedule looks at the stack's schedule of rotations, by the function that starts
// them; nil if it has none.
func (d *Deployment) NextSchedule(ctx context.Context) (*Schedule, error) {
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
	look, err := d.Steps.Outlook(ctx, in.Hour)
	if err != nil {
		return nil, err
	}
	return &Schedule{
		Name: aws.ToString(out.Name), Enabled: out.State == types.ScheduleStateEnabled && in.State == rotation.ScheduleEnabled,
		Hour: in.Hour, Zone: d.Config.Window.Zone.String(),
		Next: look.Next.Rotation, Label: look.Next.Label, Skipped: look.Skipped, Waits: look.Waits,
	}, nil
}

// Told says who is told of outcomes and alarms.
func (d *Deployment) Told(ctx context.Context) (string, error) {
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
