package rotation

import (
	"context"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// The metrics of the canary, which alarms of template.yaml watch: one alarm when a canary
// fails, one when no canary was counted.
const (
	MetricCanaryGreen = "kms_canary_green"
	MetricCanaryRed   = "kms_canary_red"
)

// Health seals and opens one canary under the KEK that wraps every new row, counts the
// result, and tells people of the first failure of a day. A failed canary is a result and
// not an error, so it is not retried: the schedule runs Health again within the hour.
func (s *Steps) Health(ctx context.Context, _ HealthInput) (HealthOutput, error) {
	v, err := s.Journal.Load(ctx, "")
	if err != nil {
		return HealthOutput{}, err
	}
	if v.Pointer == nil {
		return HealthOutput{}, &journal.Error{
			Kind: journal.PointerInvalid, Field: "POINTER", Msg: "there is none yet", Next: journal.Next{Do: journal.RunGenesis},
		}
	}
	id := v.Pointer.KEKID
	failed := s.Keys.CheckCanary(ctx, id, map[string]string{"matter:purpose": "health"}, false)
	out := HealthOutput{KEK: string(id), OK: failed == nil, Detail: "the canary opened"}
	if failed != nil {
		out.Detail = failed.Error()
	}
	s.Journal.Measure(MetricCanaryGreen, out.OK)
	s.Journal.Measure(MetricCanaryRed, !out.OK)
	day, err := s.Gates.CountCanary(ctx, out.OK)
	out.Day = day.Day
	if err != nil {
		return out, err
	}
	out.Green, out.Red = day.Green, day.Red
	if !out.OK && day.Red == 1 {
		return out, s.Journal.TellPeople(ctx, journal.Notice{Event: journal.NotifyHealthRed, Error: string(journal.HealthRed), Cause: out.Detail, Detail: "KEK " + out.KEK})
	}
	return out, nil
}
