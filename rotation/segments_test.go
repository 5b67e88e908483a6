package rotation_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// walked is a pass as the state machine drives it: a task that concludes, and a call for one
// segment.
type walked struct {
	name    string
	from    kek.Phase // phase before the conclusion
	scanned string    // field of the record that says how many rows the pass has seen; "" for none

	conclude func(ctx context.Context, s *site) (done bool, left []rotation.Segment, err error)
	segment  func(ctx context.Context, s *site, at rotation.Segment) (done bool, err error)
}

func swept(o rotation.SweepOutput, err error) (bool, []rotation.Segment, error) {
	return o.Done, o.Left, err
}

func sweptOne(o rotation.SweepOutput, err error) (bool, error) { return o.Done, err }

var walks = []walked{
	{
		"census", kek.Started, "",
		func(ctx context.Context, s *site) (bool, []rotation.Segment, error) {
			return swept(s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Census: true}))
		},
		func(ctx context.Context, s *site, at rotation.Segment) (bool, error) {
			return sweptOne(s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Census: true, Source: at.Source, Segment: at.Segment}))
		},
	},
	{
		"rewrap", kek.Drained, "",
		func(ctx context.Context, s *site) (bool, []rotation.Segment, error) {
			return swept(s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Complete: true}))
		},
		func(ctx context.Context, s *site, at rotation.Segment) (bool, error) {
			return sweptOne(s.Rewrap(ctx, rotation.RewrapInput{RotationID: spring, Source: at.Source, Segment: at.Segment}))
		},
	},
	{
		"confirm", kek.Rewrapped, "confirmed_rows",
		func(ctx context.Context, s *site) (bool, []rotation.Segment, error) {
			o, err := s.Retire(ctx, rotation.RetireInput{RotationID: spring})
			return o.Done, o.Left, err
		},
		func(ctx context.Context, s *site, at rotation.Segment) (bool, error) {
			o, err := s.Retire(ctx, rotation.RetireInput{RotationID: spring, Source: at.Source, Segment: at.Segment})
			return o.Done, err
		},
	},
	{
		"verify", kek.KEKRetired, "verified_rows",
		func(ctx context.Context, s *site) (bool, []rotation.Segment, error) {
			return swept(s.Verify(ctx, verifyInput(spring)))
		},
		func(ctx context.Context, s *site, at rotation.Segment) (bool, error) {
			return sweptOne(s.Verify(ctx, rotation.VerifyInput{RotationID: spring, Source: at.Source, Segment: at.Segment}))
		},
	},
}

// inAFunction is a context with the deadline of a function.
func inAFunction(s *site) context.Context {
	return until{s.t.Context(), s.clock.now().Add(15 * time.Minute)}
}

// forEachWalk runs a test of each pass, from the phase before its conclusion, with 50 rows
// more than one page of each segment holds.
func forEachWalk(t *testing.T, run func(t *testing.T, s *site, w walked)) {
	t.Helper()
	for _, w := range walks {
		t.Run(w.name, func(t *testing.T) {
			s := newSite(t)
			many(s, 500)
			s.advance(spring, rotation.ExecutionInput{}, w.from)
			run(t, s, w)
			s.world.SetHook(nil)
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			s.settled()
			if w.scanned == "" {
				return
			}
			event := map[string]string{"confirmed_rows": kek.EventOldKEKRetired, "verified_rows": kek.EventRotationCompleted}[w.scanned]
			if got := s.body(event)[w.scanned]; got != "510" {
				t.Errorf("%s rows were seen, want 510: a segment was counted twice or not at all", got)
			}
		})
	}
}

// TestMapOfAPass: a conclusion that runs out of its minute names what is left; each of those
// segments is worked on by a call of its own, in any order, some of which end early or are made
// twice; and the conclusion reads none of their pages again.
func TestMapOfAPass(t *testing.T) {
	forEachWalk(t, func(t *testing.T, s *site, w walked) { //nolint:thelper // it is the test
		var mu sync.Mutex
		slow, pages := true, 0
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			if op == "Table.Scan" {
				pages++
			}
			if op == "Store.SaveCheckpoint" && slow {
				s.clock.pass(15 * time.Second)
			}
			return true, nil
		})
		done, left, err := w.conclude(inAFunction(s), s)
		if err != nil || done || len(left) == 0 {
			t.Fatalf("after its minute: done %t, %d segments left, %v", done, len(left), err)
		}
		slices.Reverse(left)
		for i, at := range left {
			calls := 0
			for done := false; !done; calls++ {
				ctx := context.Context(until{t.Context(), s.clock.now().Add(20 * time.Second)}) // time for a page or two
				if i%3 == 0 {
					ctx = t.Context()
				}
				if done, err = w.segment(ctx, s, at); err != nil || calls > 20 {
					t.Fatalf("%v: call %d, %v", at, calls, err)
				}
			}
			if done, err := w.segment(t.Context(), s, at); !done || err != nil {
				t.Errorf("%v, called again: done %t, %v", at, done, err)
			}
		}
		slow, pages = false, 0
		if done, left, err = w.conclude(inAFunction(s), s); !done || len(left) > 0 || err != nil || pages > 0 {
			t.Errorf("at the end: done %t, %d left, %d pages read again, %v", done, len(left), pages, err)
		}
	})
}

// TestMapOfAnIdlePass: nobody has worked on the pass for ten minutes, for example because the
// map was stopped and redriven. The first call for a segment begins the pass again, also the
// segments that were done, and a conclusion of before is refused. Rewrap concludes nothing from
// what it has seen, so it continues.
func TestMapOfAnIdlePass(t *testing.T) {
	forEachWalk(t, func(t *testing.T, s *site, w walked) { //nolint:thelper // it is the test
		sources := s.record(spring).Sources
		last := rotation.Segment{Source: sources[len(sources)-1].Name, Segment: 1}
		first := rotation.Segment{Source: sources[0].Name}
		for _, at := range []rotation.Segment{first, last} {
			if done, err := w.segment(t.Context(), s, at); !done || err != nil {
				t.Fatalf("%v: done %t, %v", at, done, err)
			}
		}
		s.clock.pass(10 * time.Minute)
		again := w.name != "rewrap"
		if done, err := w.segment(t.Context(), s, last); err != nil || done == again {
			t.Errorf("after the pause: done %t, %v", done, err)
		}
		if restarted := s.events()[len(s.events())-1] == "reading_restarted"; restarted != again {
			t.Errorf("the chain ends with %q", s.events()[len(s.events())-1])
		}
		cps := must(s.Checkpoints.ListCheckpoints(t.Context(), spring, first.Source, w.name))
		if i := slices.IndexFunc(cps, func(cp rotation.Checkpoint) bool { return cp.Done }); (i < 0) != again && !strings.Contains(first.Source, "~") {
			t.Errorf("checkpoints after the pause: %+v", cps)
		}
	})
}

// allSegments lists every segment of the sources that the rotation has frozen.
func (s *site) allSegments() []rotation.Segment {
	s.t.Helper()
	r := s.record(spring)
	var out []rotation.Segment
	for _, def := range r.Sources {
		for i := range must(s.world.Open(def)).Segments(r.Segments) {
			out = append(out, rotation.Segment{Source: def.Name, Segment: i})
		}
	}
	return out
}

// TestTwoRedrives: the execution halts twice after every segment was done, and is redriven ten
// minutes later. Each time every segment is read again: a row that somebody has set back to the
// old KEK meanwhile is found, in whichever segment it is.
func TestTwoRedrives(t *testing.T) {
	for _, w := range walks[2:] { // confirm and verify
		t.Run(w.name, func(t *testing.T) {
			s := newSite(t)
			s.Config.Segments = 4
			old := s.rows()
			s.advance(spring, rotation.ExecutionInput{}, w.from)
			walkAll := func() {
				t.Helper()
				for _, at := range s.allSegments() {
					for calls, done := 0, false; !done; calls++ {
						var err error
						if done, err = w.segment(t.Context(), s, at); err != nil || calls > 3 {
							t.Fatalf("%v: call %d, %v", at, calls, err)
						}
					}
				}
			}
			walkAll()
			s.clock.pass(10 * time.Minute)
			walkAll()
			s.clock.pass(10 * time.Minute)
			for at, r := range old {
				if at.table != s.corpus {
					at.table.Plant(at.id, r)
				}
			}
			walkAll()
			done, _, err := w.conclude(t.Context(), s)
			if w.name == "verify" {
				wantKind(t, err, journal.OrphansFound)
				if err == nil || !strings.HasPrefix(typed(err).Msg, "8 rows are not under the new KEK") {
					t.Errorf("%v; want 8 rows", err)
				}
				return
			}
			if err != nil || !done {
				t.Errorf("done %t, %v", done, err)
			}
			for at, r := range s.rows() {
				if !r.Other && r.KEK != s.record(spring).NewKEK {
					t.Errorf("row %s of %s is under %s", at.id, at.table.Name(), r.KEK)
				}
			}
		})
	}
}

// TestConclusionFindsTheError: the call of one segment has failed, which the state machine does
// not tell. The conclusion gives every segment that is left a turn, so it fails with the error
// at once, however much work the segments before have.
func TestConclusionFindsTheError(t *testing.T) {
	forEachWalk(t, func(t *testing.T, s *site, w walked) { //nolint:thelper // it is the test
		broken := errors.New("this segment is broken")
		var mu sync.Mutex
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			if op == "Table.Scan" && args[0] == "people" {
				return false, broken
			}
			if op == "Store.SaveCheckpoint" {
				s.clock.pass(5 * time.Second)
			}
			return true, nil
		})
		_, _, err := w.conclude(inAFunction(s), s)
		if wantKind(t, err, journal.Transient); !strings.Contains(err.Error(), broken.Error()) {
			t.Errorf("the conclusion says %v", err)
		}
	})
}
