package rotation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestSwitchWaitsForTheTag: the pointer names a new KEK only when its tag has had the time
// that KMS documents to affect authorization everywhere: applications wrap under it at once.
// The state machine waits; a step by hand, or a redrive that comes early, is told to.
func TestSwitchWaitsForTheTag(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": {Mode: "emergency", Reason: "a key has leaked"}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Config.KeySettle = 5 * time.Minute
			d := newDriver(s)
			var switched time.Time
			d.before = func(c call) {
				if c.state == "Switch" {
					switched = s.clock.now()
				}
			}
			d.complete(spring, in)
			made := s.view(spring).KEKs[s.record(spring).NewKEK].CreatedAt
			if age := switched.Sub(made); age < s.Config.KeySettle || age > s.Config.KeySettle+time.Minute {
				t.Errorf("switched to a KEK that was %s old", age)
			}
			switches := 0
			for _, c := range d.calls {
				if c.state == "Switch" {
					switches++
				}
			}
			if switches != 1 {
				t.Errorf("Switch was tried %d times: the wait is too short", switches)
			}
		})
	}
	s, _ := at(t, rotation.ExecutionInput{}, kek.Tested)
	s.Config.KeySettle = 5 * time.Minute
	_, err := s.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.Transient)
	if e := typed(err); !strings.Contains(e.Msg, "too young") || !strings.Contains(e.Next.Say, "tried again") || e.Field != string(s.record(spring).NewKEK) {
		t.Errorf("%v", err)
	}
	s.phase(spring, kek.Tested)
	s.clock.pass(5 * time.Minute)
	if _, err := s.Switch(t.Context(), input(spring)); err != nil {
		t.Errorf("after its time: %v", err)
	}
}
