package rotation_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// pausable is a site whose rotations people may pause.
func pausable(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.Gates.Pauses = s.store
	return s
}

// walk is a step that pausedWalks over rows, from the phase before it.
type walk struct {
	name string
	at   kek.Phase
	run  func(s *site) (done, paused bool, err error)
	end  func(s *site) error
}

var pausedWalks = []walk{
	{"census", kek.Started, func(s *site) (bool, bool, error) {
		out, err := s.Verify(s.t.Context(), rotation.VerifyInput{RotationID: spring, Census: true})
		return out.Done, out.Paused, err
	}, func(s *site) error { return s.census(spring) }},
	{"rewrap", kek.Drained, func(s *site) (bool, bool, error) {
		out, err := s.Rewrap(s.t.Context(), rotation.RewrapInput{RotationID: spring, Source: "orders"})
		return out.Done, out.Paused, err
	}, func(s *site) error { return s.rewrapAll(spring) }},
	{"confirm", kek.Rewrapped, func(s *site) (bool, bool, error) {
		out, err := s.Retire(s.t.Context(), rotation.RetireInput{RotationID: spring})
		return out.Done, out.Paused, err
	}, func(s *site) error { return s.retire(spring) }},
	{"verify", kek.KEKRetired, func(s *site) (bool, bool, error) {
		out, err := s.Verify(s.t.Context(), verifyInput(spring))
		return out.Done, out.Paused, err
	}, func(s *site) error { return s.verify(spring) }},
}

// TestPause: each walk stops at once, reads no row, saves nothing new and says that it is
// paused; the rotation completes after it was continued, also days later.
func TestPause(t *testing.T) {
	for _, w := range pausedWalks {
		for _, long := range []time.Duration{0, time.Minute, 50 * time.Hour} {
			t.Run(fmt.Sprint(w.name, " ", long), func(t *testing.T) {
				s := pausable(t)
				s.advance(spring, rotation.ExecutionInput{}, w.at)
				if _, err := s.Gates.PauseRotation(s.t.Context(), spring, "a sale"); err != nil {
					t.Fatal(err)
				}
				was := s.rows()
				for range 3 {
					if done, paused, err := w.run(s); done || !paused || err != nil {
						t.Fatalf("done %v, paused %v, %v", done, paused, err)
					}
					s.clock.pass(long / 3)
				}
				s.phase(spring, w.at)
				if !equalRows(was, s.rows()) {
					t.Error("rows were changed in a pause")
				}
				if _, err := s.Gates.ContinueRotation(s.t.Context(), spring); err != nil {
					t.Fatal(err)
				}
				if err := w.end(s); err != nil {
					t.Fatal(err)
				}
				s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
				if got := s.events(); !slices.Contains(got, gates.EventPaused) || !slices.Contains(got, gates.EventContinued) {
					t.Errorf("records %q", got)
				}
			})
		}
	}
}

func equalRows[K comparable, V any](a, b map[K]V) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// TestPauseInAWalk: a walk that runs notices a pause within seconds, between two rows, and
// saves what it has done.
func TestPauseInAWalk(t *testing.T) {
	s := pausable(t)
	s.Pace = rotation.Pace{RowsInFlight: 1}
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	moved := 0
	s.hook(func(op string, _ ...any) (bool, error) {
		if op == "Table.Replace" {
			if moved++; moved == 2 {
				if _, err := s.Gates.PauseRotation(as("person"), spring, "a sale"); err != nil {
					t.Error(err)
				}
				s.clock.pass(6 * time.Second)
			}
		}
		return true, nil
	})
	_ = s.rewrapAll(spring)
	if moved > 3 {
		t.Errorf("%d rows were moved after the pause", moved-2)
	}
	s.hook(nil)
	if _, err := s.Gates.ContinueRotation(s.t.Context(), spring); err != nil {
		t.Fatal(err)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
}

// TestPauseIsOfItsRotation: an emergency takes over a paused rotation and completes.
func TestPauseIsOfItsRotation(t *testing.T) {
	s := pausable(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	if _, err := s.Gates.PauseRotation(s.t.Context(), spring, "a sale"); err != nil {
		t.Fatal(err)
	}
	s.advance(stolen, rotation.ExecutionInput{Mode: "emergency", Reason: "a leak"}, kek.Completed)
}

// TestPauseIsIdempotent: a repeated pause changes nothing, the reason neither; continue
// without a pause does nothing; each change has one record.
func TestPauseIsIdempotent(t *testing.T) {
	s := pausable(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	ctx := s.t.Context()
	if p, err := s.Gates.ContinueRotation(ctx, spring); err != nil || p.Rev != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	first, err := s.Gates.PauseRotation(ctx, spring, "a sale")
	if err != nil || first.State != gates.Paused || first.Reason != "a sale" || first.By != "test" || !first.At.Equal(s.clock.now()) {
		t.Fatalf("%+v, %v", first, err)
	}
	s.clock.pass(time.Hour)
	if p, err := s.Gates.PauseRotation(ctx, spring, "another"); err != nil || p != first {
		t.Errorf("again %+v, %v", p, err)
	}
	for range 2 {
		if p, err := s.Gates.ContinueRotation(ctx, spring); err != nil || p.State != gates.Continued {
			t.Errorf("%+v, %v", p, err)
		}
	}
	n := 0
	for _, e := range s.events() {
		if e == gates.EventPaused || e == gates.EventContinued {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d records", n)
	}
	for _, c := range []struct {
		rotation, reason string
		want             journal.Kind
	}{{spring, "", journal.InvalidInput}, {spring, "a\nb", journal.InvalidInput}, {"nobody", "why", journal.Refused}} {
		_, err := s.Gates.PauseRotation(ctx, c.rotation, c.reason)
		var typed *journal.Error
		if !errors.As(err, &typed) || typed.Kind != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	if _, err := s.Gates.PauseRotation(ctx, spring, "too late"); err == nil {
		t.Error("a rotation that has ended was paused")
	}
}
