package rotation

import (
	"context"
	"errors"
	"fmt"
)

// HealthDay counts the canaries of one day, UTC.
type HealthDay struct {
	Day        string // 2006-01-02
	Green, Red int64
}

// HealthLog is the history of the canary under the pointer's KEK.
type HealthLog interface {
	// CountHealth adds one canary to its day and returns the day's counts. After a
	// lost answer one may be counted twice.
	CountHealth(ctx context.Context, day string, green bool) (HealthDay, error)
	// ListHealth returns the counts of those of the days of which there are any.
	ListHealth(ctx context.Context, days []string) ([]HealthDay, error)
}

// Meter counts for the alarms.
type Meter interface{ Count(name string, n int64) }

// The metrics of the canary, which alarms of template.yaml watch: one goes off when it
// fails, the other when it is silent.
const (
	MetricCanaryGreen = "kms_canary_green"
	MetricCanaryRed   = "kms_canary_red"
)

// leastCanaries is how many of a day's 24 must have been there for the day to count:
// a deployment may cost an hour, a day without the function is not green.
const leastCanaries = 20

const dayFormat = "2006-01-02"

// Health seals and opens one canary under the KEK that wraps every new row, counts
// it, and tells people of the first failure of a day. A failed canary is an answer,
// not an error: what would be repeated is repeated within the hour.
func (s *Steps) Health(ctx context.Context, _ HealthInput) (HealthOutput, error) {
	v, err := s.load(ctx, "")
	if err != nil {
		return HealthOutput{}, err
	}
	if v.Pointer == nil {
		return HealthOutput{}, &Error{
			Kind: PointerInvalid, Field: "POINTER", Msg: "there is none yet", Next: "matter ops kms-genesis --kek-id KEY --confirm",
		}
	}
	id := v.Pointer.KEKID
	failed := s.canary(ctx, id, map[string]string{"matter:purpose": "health"}, false)
	out := HealthOutput{KEK: string(id), OK: failed == nil, Detail: "the canary opened", Day: s.Now().UTC().Format(dayFormat)}
	if failed != nil {
		out.Detail = failed.Error()
	}
	s.meter(MetricCanaryGreen, out.OK)
	s.meter(MetricCanaryRed, !out.OK)
	day, err := s.HealthLog.CountHealth(ctx, out.Day, out.OK)
	if err != nil {
		return out, unavailable("health log", err)
	}
	out.Green, out.Red = day.Green, day.Red
	if !out.OK && day.Red == 1 {
		return out, s.tell(ctx, NotifyInput{Event: NotifyHealthRed, Error: string(HealthRed), Cause: out.Detail, Detail: "KEK " + out.KEK})
	}
	return out, nil
}

func (s *Steps) meter(name string, yes bool) {
	if s.Meter == nil {
		return
	}
	n := int64(0)
	if yes {
		n = 1
	}
	s.Meter.Count(name, n)
}

// checkHealth refuses unless each of the whole days that are demanded was green, and
// today has been so far. Ahead of a rotation the days that count are to come, and only a
// canary that has failed is worth a look.
func (s *Steps) checkHealth(ctx context.Context, ahead bool) error {
	today := s.Now().UTC()
	days := make([]string, s.HealthDays+1)
	for i := range days {
		days[i] = today.AddDate(0, 0, -i).Format(dayFormat)
	}
	list, err := s.HealthLog.ListHealth(ctx, days)
	if err != nil {
		return unavailable("health log", err)
	}
	known := map[string]HealthDay{}
	for _, d := range list {
		known[d.Day] = d
	}
	var faults []error
	for i, name := range days {
		switch d := known[name]; {
		case d.Red > 0:
			faults = append(faults, fmt.Errorf("%s: %d of %d canaries failed", name, d.Red, d.Red+d.Green))
		case i > 0 && d.Green < leastCanaries && !ahead:
			faults = append(faults, fmt.Errorf("%s: %d canaries, want %d", name, d.Green, leastCanaries))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &Error{
		Kind: HealthRed, Field: "HEALTH", Msg: fmt.Sprintf("the canary under the pointer's KEK was not green for %d days", s.HealthDays), Err: errors.Join(faults...),
		Next: fmt.Sprintf("read the log of function health, mend it, and rotate once it is green for %d days", s.HealthDays),
	}
}
