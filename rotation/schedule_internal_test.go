package rotation

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// ledger is a registry of rotations that have followed each other, by their ids.
type ledger struct {
	journal.Registry
	views  map[string]kek.View
	broken string // the record that cannot be read
}

func (l ledger) Load(_ context.Context, id string) (kek.View, error) {
	if id != "" && id == l.broken {
		return kek.View{}, errShelf
	}
	return l.views[id], nil
}

// newLedger is one of n rotations after genesis at midnight, the newest being "r0", each of
// which completed an hour after the one before.
func newLedger(n int) ledger {
	l := ledger{views: map[string]kek.View{}}
	after := func(i int) (id string, switched time.Time) { // how the KEK came into use that rotation i left
		if i == n {
			return "", midnight
		}
		return fmt.Sprint("r", i), midnight.Add(time.Duration(n-i) * time.Hour)
	}
	p := &kek.Pointer{KEKID: "k0"}
	p.RotationID, p.SwitchedAt = after(0)
	l.views[""] = kek.View{Pointer: p}
	for i := range n {
		id, at := after(i)
		old := kek.KEK{ID: kek.ID(fmt.Sprint("k", i+1))}
		old.RotationID, old.SwitchedAt = after(i + 1)
		l.views[id] = kek.View{
			Pointer: p, KEKs: map[kek.ID]kek.KEK{old.ID: old},
			Rotation: &kek.Rotation{ID: id, Mode: kek.Normal, Phase: kek.Completed, Label: "label " + id, OldKEK: old.ID, UpdatedAt: at},
		}
	}
	return l
}

// TestHistory: it goes back from KEK to KEK to genesis, but not further than to the first
// rotation that ended before a moment, nor over more than 32.
func TestHistory(t *testing.T) {
	for _, tc := range []struct {
		n      int // rotations
		since  int // hours after genesis
		broken string
		lost   string
		want   int // rotations of the history
		begins bool
		fails  bool
	}{
		{n: 0, begins: true},
		{n: 1, want: 1, begins: true},
		{n: 3, want: 3, begins: true},
		{n: 3, since: 2, want: 3}, // of which the last ended before
		{n: 3, since: 3, want: 2},
		{n: 31, want: 31, begins: true},
		{n: 32, want: 32},
		{n: 33, want: 32},
		{n: 3, broken: "r1", want: 1, fails: true},
		{n: 3, lost: "r2", want: 2},
	} {
		l := newLedger(tc.n)
		l.broken = tc.broken
		now := l.views[""]
		delete(l.views, tc.lost)
		s := Steps{Journal: &journal.Journal{Registry: l}}
		all, genesis, err := readHistory(t.Context(), s.Journal, now, midnight.Add(time.Duration(tc.since)*time.Hour))
		if len(all) != tc.want || tc.begins != !genesis.IsZero() || tc.begins && !genesis.Equal(midnight) || tc.fails != (err != nil) {
			t.Errorf("%+v: %d rotations, genesis %s, %v", tc, len(all), genesis, err)
		}
		if tc.fails {
			isError(t, tc.broken, err, journal.Transient, "control table")
		}
		for i, r := range all {
			if r.ID != fmt.Sprint("r", i) {
				t.Errorf("%+v: rotation %d is %s", tc, i, r.ID)
			}
		}
	}
}

// TestCheckQuarter: the schedule rotates once a quarter, and not at all while it is not
// known whether it has.
func TestCheckQuarter(t *testing.T) {
	l := newLedger(3)
	s := Steps{Journal: &journal.Journal{Registry: l, Now: func() time.Time { return midnight }}}
	asked := func(label string) kek.Rotation {
		return kek.Rotation{Requester: ScheduleRequester, Mode: kek.Normal, Label: label}
	}
	err := s.checkQuarter(t.Context(), l.views[""], asked("label r1"))
	want := &journal.Error{
		Kind: journal.QuarterRotated, Field: "label", Msg: "label r1 has completed, and the schedule rotates once a quarter",
		Next: journal.Next{Do: journal.RotateByHand},
	}
	if d := cmp.Diff(want, typedOf(err)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	byPerson, inEmergency, drilled := asked("label r1"), asked("label r1"), asked("label r1")
	byPerson.Requester, inEmergency.Mode, drilled.Drill = "ann", kek.Emergency, gates.DrillFailure
	for name, tc := range map[string]struct {
		v kek.View
		r kek.Rotation
	}{
		"another label": {l.views[""], asked("label r3")}, "a person": {l.views[""], byPerson}, "an emergency": {l.views[""], inEmergency},
		"a drill": {l.views[""], drilled}, "no genesis": {kek.View{}, asked("label r1")},
	} {
		if err := s.checkQuarter(t.Context(), tc.v, tc.r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.broken = "r2"
	s.Journal.Registry = l
	isError(t, "unread", s.checkQuarter(t.Context(), l.views[""], asked("label r3")), journal.Transient, "control table")
	if _, err := (&Scheduler{Journal: s.Journal, Gates: &s.Gates}).LookAhead(t.Context(), 2); err == nil {
		t.Error("a tick continues without the history")
	}
}

// TestRotated: a quarter has its rotation when one of its label has completed, however
// early, or any since it was due.
func TestRotated(t *testing.T) {
	q := gates.Quarter{Label: "Q2", Rotation: at(10)}
	for _, tc := range []struct {
		r    kek.Rotation
		want bool
	}{
		{kek.Rotation{Mode: kek.Normal, Phase: kek.Completed, Label: "Q2", UpdatedAt: at(9)}, true},
		{kek.Rotation{Mode: kek.Normal, Phase: kek.Completed, Label: "other", UpdatedAt: at(9)}, false},
		{kek.Rotation{Mode: kek.Normal, Phase: kek.Completed, Label: "other", UpdatedAt: at(10)}, true},
		{kek.Rotation{Mode: kek.Emergency, Phase: kek.Completed, Label: "Q2", UpdatedAt: at(9)}, false},
		{kek.Rotation{Mode: kek.Emergency, Phase: kek.Completed, Label: "other", UpdatedAt: at(11)}, true},
		{kek.Rotation{Mode: kek.Normal, Phase: kek.RolledBack, Label: "Q2", UpdatedAt: at(11)}, false},
	} {
		if got := (&tick{done: []kek.Rotation{{}, tc.r}}).isRotated(q); got != tc.want {
			t.Errorf("%+v: %t", tc.r, got)
		}
	}
}

// TestUnprepared: what a person was told of by day is told apart from what failed.
func TestUnprepared(t *testing.T) {
	for kind, want := range map[journal.Kind]bool{journal.AnnouncementMissing: true, journal.AnnouncementYoung: true, journal.DrillStale: true, journal.Transient: false, journal.HealthRed: false} {
		if got := isUnprepared(&journal.Error{Kind: kind}); got != want {
			t.Errorf("%s: %t", kind, got)
		}
	}
	if isUnprepared(nil) || isUnprepared(errShelf) {
		t.Error("what has no kind")
	}
}
