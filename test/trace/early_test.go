package trace_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// TestStepsCalledEarly calls each step one phase too early, and lets the step
// before it run to its end between the two reads of the early one: what the early
// call did not look at it must not conclude.
func TestStepsCalledEarly(t *testing.T) {
	cases := []struct {
		name  string
		reach func(*site) // to where the early call comes in
		early func(*site) error
		meant func(*site) error // the step whose turn it is
	}{
		{
			"switch", func(s *site) { s.start(id, "normal"); s.rehearsed(id) },
			func(s *site) error { _, err := s.Switch(s.as("switch"), s.in()); return err },
			func(s *site) error { _, err := s.DualUnwrap(s.as("dualunwrap"), s.in()); return err },
		},
		{
			"drain", func(s *site) { s.lease("live", s.pointer()); s.toTested("normal") },
			func(s *site) error { _, err := s.Drain(s.as("drain"), s.in()); return err },
			func(s *site) error { _, err := s.Switch(s.as("switch"), s.in()); return err },
		},
		{
			"retire", func(s *site) { s.toTested("normal"); s.switched(); s.drained() },
			func(s *site) error {
				_, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id})
				return err
			},
			func(s *site) error { s.rewrapped(); return nil },
		},
		{
			"verify", func(s *site) { s.toTested("normal"); s.switched(); s.drained(); s.rewrapped() },
			func(s *site) error {
				_, err := s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id})
				return err
			},
			func(s *site) error { s.retired(); return nil },
		},
	}
	var runs [][]trace.Event
	for _, c := range cases {
		s := newSite(t)
		c.reach(s)
		loads, inside := 0, false
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "Store.Load" && !inside {
				if loads++; loads == 2 {
					inside = true
					s.must(c.meant(s))
					inside = false
				}
			}
			return true, nil
		})
		_ = c.early(s) // it may be refused, or wait for its turn
		runs = append(runs, s.recorder.Events())
	}
	for i, v := range check(t, runs...) {
		if !v.Accepted {
			t.Errorf("%s: %s", cases[i].name, v)
		}
	}
}
