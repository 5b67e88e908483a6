package app

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/scheduler/types"
)

// Schedule is when the next rotation starts by itself.
type Schedule struct {
	Name       string    `json:"name"`
	Enabled    bool      `json:"enabled"`
	Expression string    `json:"expression"`
	Zone       string    `json:"time_zone"`
	Next       time.Time `json:"next"` // zero if the expression is none that the template makes
}

// NextSchedule looks at the stack's schedule of rotations; nil if it has none.
func (d *Deployment) NextSchedule(ctx context.Context, now time.Time) (*Schedule, error) {
	out, err := scheduler.NewFromConfig(d.AWS).GetSchedule(ctx, &scheduler.GetScheduleInput{
		GroupName: &d.Config.Stack, Name: aws.String(d.Config.Stack + "-rotation"),
	})
	var none *types.ResourceNotFoundException
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the schedule: %w", err)
	}
	s := &Schedule{
		Name: aws.ToString(out.Name), Enabled: out.State == types.ScheduleStateEnabled,
		Expression: aws.ToString(out.ScheduleExpression), Zone: aws.ToString(out.ScheduleExpressionTimezone),
	}
	if zone, err := time.LoadLocation(s.Zone); err == nil {
		s.Next, _ = nextFirst(s.Expression, now.In(zone))
	}
	return s, nil
}

// firstWeekday is the form of expression that the template makes: an hour of the
// first given weekday of some months.
var firstWeekday = regexp.MustCompile(`^cron\((\d{1,2}) (\d{1,2}) \? ([A-Z]{3}(?:,[A-Z]{3})*) ([1-7])#1 \*\)$`)

// nextFirst returns when such an expression fires next after now, in now's zone;
// false if it has another form.
func nextFirst(expression string, now time.Time) (time.Time, bool) {
	m := firstWeekday.FindStringSubmatch(expression)
	if m == nil {
		return time.Time{}, false
	}
	minute, _ := strconv.Atoi(m[1])
	hour, _ := strconv.Atoi(m[2])
	weekday, _ := strconv.Atoi(m[4])
	for i := range 13 {
		month := time.Date(now.Year(), now.Month()+time.Month(i), 1, 0, 0, 0, 0, time.UTC)
		if !strings.Contains(m[3], strings.ToUpper(month.Month().String()[:3])) {
			continue
		}
		day := 1 + (weekday-1-int(month.Weekday())+7)%7
		at := time.Date(month.Year(), month.Month(), day, hour, minute, 0, 0, now.Location())
		if at.After(now) {
			return at, true
		}
	}
	return time.Time{}, false
}
