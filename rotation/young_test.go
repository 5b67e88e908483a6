package rotation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// tagDelay is how long a key is young.
const tagDelay = 10 * time.Minute

func switchTo(s *site) error {
	_, err := s.Switch(s.t.Context(), rotation.StepInput{RotationID: spring})
	return err
}

func rollBack(s *site) error {
	_, err := s.Retire(s.t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "test"})
	return err
}

// TestYoungKey: a host of KMS that does not know a new key, or its tag, may answer any
// call after others have succeeded. Each step that needs the key is repeated while the key
// is young, and afterwards says what is wrong: no clean rollback becomes a page, no row is
// quarantined for it, and no key stays enabled because KMS did not know it yet.
func TestYoungKey(t *testing.T) {
	for _, c := range []struct {
		name string
		to   kek.Phase
		op   string
		err  error
		step func(*site) error
		late journal.Kind // once the key is not young any more
	}{
		{"switch", kek.Tested, "KMS.Describe", journal.ErrDenied, switchTo, journal.AccessDenied},
		{"switch", kek.Tested, "KMS.Describe", journal.ErrNoKey, switchTo, journal.Transient},
		{"roll back", kek.Tested, "KMS.Disable", journal.ErrDenied, rollBack, journal.AccessDenied},
		{"roll back", kek.Tested, "KMS.Disable", journal.ErrNoKey, rollBack, ""},
		{"rewrap", kek.Drained, "KMS.ReEncrypt", journal.ErrDenied, func(s *site) error { return s.rewrapAll(spring) }, journal.AccessDenied},
	} {
		t.Run(c.name+" "+c.err.Error(), func(t *testing.T) {
			s := newSite(t)
			s.Config.Segments = 1
			s.advance(spring, rotation.ExecutionInput{}, c.to)
			denied := true
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == c.op && denied {
					return false, c.err
				}
				return true, nil
			})
			wantKind(t, c.step(s), journal.Transient)
			denied = false
			for _, cp := range s.snapshot().Checkpoints {
				if cp.Tally.Quarantined > 0 {
					t.Errorf("quarantined %v", cp.Tally.Poison)
				}
			}
			denied = true
			s.clock.pass(tagDelay)
			if err := c.step(s); c.late == "" {
				s.must(err)
			} else {
				wantKind(t, err, c.late)
			}
			denied = false
			s.must(c.step(s))
			if c.name == "roll back" && strings.Contains(c.err.Error(), "denied") && s.enabled(s.record(spring).NewKEK) {
				t.Error("the new KEK is still enabled")
			}
		})
	}
}
