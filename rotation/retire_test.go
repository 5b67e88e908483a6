package rotation_test

import (
	"errors"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

func (s *site) abandon(t *testing.T) rotation.RetireOutput {
	t.Helper()
	out, err := s.Retire(t.Context(), rotation.RetireInput{
		RotationID: spring, ExecutionARN: preflightInput(spring, rotation.ExecutionInput{}).ExecutionARN,
		Action: rotation.ActionAbandon, Error: "Internal",
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAbandon(t *testing.T) {
	s := newSite(t)
	if out := s.abandon(t); !out.Done || out.Phase != "" {
		t.Errorf("of nothing: %+v", out)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Started)
	for range 2 {
		if out := s.abandon(t); !out.Done || out.Phase != string(kek.RolledBack) {
			t.Errorf("of a start: %+v", out)
		}
	}
	s.settled()
	wantEvents(t, s, "rotation_started", "rolled_back")
}

// TestAbandonOfAnotherExecution is the regression test of a preflight that failed
// under a name which another execution had taken, and rolled that one back.
func TestAbandonOfAnotherExecution(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Started)
	before := s.snapshot()
	for _, arn := range []string{"arn:aws:states:execution:another", ""} {
		out, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring, ExecutionARN: arn, Action: rotation.ActionAbandon})
		if err != nil || !out.Done || out.Phase != string(kek.Started) {
			t.Errorf("of %q: %+v, %v", arn, out, err)
		}
	}
	if diff := s.diff(before); diff != "" {
		t.Errorf("-was +is:\n%s", diff)
	}
}

// TestRetireForgetsIdleScan is the regression test of a rotation that halted after
// its second scan and, redriven a day later, retired the old KEK on what that scan
// had seen: a row restored meanwhile would have been orphaned.
func TestRetireForgetsIdleScan(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.Apply" {
			return false, errors.New("no answer")
		}
		return w.hook(op, args...)
	})
	_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
	wantKind(t, err, journal.Transient)
	s.world.SetHook(w.hook)
	s.plant(s.orders, "restored", s.first)
	s.clock.pass(24 * time.Hour)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestAbandonLeavesAlone checks that abandon touches neither a rotation that has
// gone on nor an emergency.
func TestAbandonLeavesAlone(t *testing.T) {
	for _, tc := range []struct {
		in    rotation.ExecutionInput
		phase kek.Phase
	}{
		{emergency, kek.Started},
		{rotation.ExecutionInput{}, kek.Minted},
		{rotation.ExecutionInput{}, kek.Tested},
		{rotation.ExecutionInput{}, kek.Switched},
		{rotation.ExecutionInput{}, kek.Completed},
	} {
		s, _ := at(t, tc.in, tc.phase)
		before := s.snapshot()
		if out := s.abandon(t); !out.Done || out.Phase != string(tc.phase) {
			t.Errorf("at %s: %+v", tc.phase, out)
		}
		if diff := s.diff(before); diff != "" {
			t.Errorf("at %s (-was +is):\n%s", tc.phase, diff)
		}
	}
}

// TestAbandonLosesToMint is the regression test of an abandon that looked at a
// rotation just started, was overtaken by its mint, and rolled it back.
func TestAbandonLosesToMint(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Started)
	s.must(s.census(spring))
	overtaken := false
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.Apply" && !overtaken {
			overtaken = true
			if _, err := s.Mint(t.Context(), input(spring)); err != nil {
				t.Error(err)
			}
		}
		return w.hook(op, args...)
	})
	if out := s.abandon(t); !overtaken || out.Phase != string(kek.Minted) {
		t.Errorf("overtaken %t: %+v", overtaken, out)
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}
