package kek

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGaveUpTooLate: a rotation whose pointer has moved is not given up, not even when
// a later rotation has sealed its KEK, which might be retired by then.
func TestGaveUpTooLate(t *testing.T) {
	for _, phase := range []Phase{Switched, Drained, Rewrapped, KEKRetired, Completed} {
		v := standing(t, Normal, string(Completed)).view(rid)
		v.Rotation.Phase = phase
		k := v.KEKs[fresh]
		k.State = Sealed
		v.KEKs[fresh] = k
		v.Pointer = &Pointer{KEKID: "kek-next", Epoch: 3}
		var illegal *IllegalTransition
		if c, err := v.PreSwitchFailure("late", now); !errors.As(err, &illegal) || illegal.What != "rotation "+rid || cmp.Diff(Change{}, c) != "" {
			t.Errorf("%s: %+v, %v", phase, c, err)
		}
	}
}

// TestReasonIsKept: the record says why it was given up.
func TestReasonIsKept(t *testing.T) {
	c, err := standing(t, Normal, string(Tested)).view(rid).PreSwitchFailure("the canary died", now)
	if err != nil || c.Rotation.After.Err != "the canary died" {
		t.Errorf("%+v, %v", c.Rotation, err)
	}
}

// TestFutureAttemptIsNamed: the error says which attempt is meant, and which there is.
func TestFutureAttemptIsNamed(t *testing.T) {
	_, err := standing(t, Emergency, string(Tested)).view(rid).Remint(2, limit, "", now)
	if want := `rotation Q2-2026-rotation cannot go from "attempt 1" to "attempt 3"`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// TestUnknownPhase: what is no phase reaches nothing, itself included.
func TestUnknownPhase(t *testing.T) {
	for _, other := range []Phase{"", "unknown", Started} {
		if Phase("unknown").Reached(other) || Phase("").Reached(other) {
			t.Errorf("what is no phase reaches %q", other)
		}
	}
}

// TestSmallestRegistry: one entry is enough to refuse another genesis.
func TestSmallestRegistry(t *testing.T) {
	for name, v := range map[string]View{"one revision": {Registry: 1}, "one KEK": {KEKs: map[ID]KEK{old: {ID: old}}}} {
		if c, err := v.Genesis(KEK{ID: fresh}, nil, now); !errors.Is(err, ErrPointerLost) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestStartOnItsOwnLock: a start whose record is missing finds its own lock.
func TestStartOnItsOwnLock(t *testing.T) {
	v := genesis(t).view(rid)
	for lock, want := range map[string]error{"": nil, rid: nil, "another": ErrLocked} {
		v.Lock = lock
		if _, err := v.Start(Rotation{ID: rid, Mode: Normal}, now); !errors.Is(err, want) {
			t.Errorf("lock %q: %v, want %v", lock, err, want)
		}
	}
}

// TestForgottenTablesAreNamed: every one, in the refusal of a start; and only the mark
// of such a table can be removed.
func TestForgottenTablesAreNamed(t *testing.T) {
	v := genesis(t).view("")
	v.Marks = []Mark{{Table: "a"}, {Table: "b"}, {Table: "c"}}
	if _, err := v.Start(Rotation{ID: rid, Mode: Normal}, now); !errors.Is(err, ErrForgotten) || !strings.HasSuffix(err.Error(), "a, b, c") {
		t.Errorf("%v, want a, b and c", err)
	}
	for table, want := range map[string]error{"a": nil, "c": nil, "d": ErrDone, "table-orders": ErrDone} {
		c, err := v.ForgetMark(table, now)
		if !errors.Is(err, want) || err == nil && c.Registry.Forget != table {
			t.Errorf("forget %s: %+v, %v, want %v", table, c.Registry, err, want)
		}
	}
}

// TestMintWithoutPointer: a pointer that was lost meanwhile is no reason to panic; the
// switch finds out.
func TestMintWithoutPointer(t *testing.T) {
	v := standing(t, Normal, string(Started)).view(rid)
	v.Rotation.Counted = true
	v.Pointer = nil
	if c, err := v.Mint(KEK{ID: fresh}, now); err != nil || c.Rotation.After.NewKEK != fresh {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestSecondPlace: a place is compared with that of every source.
func TestSecondPlace(t *testing.T) {
	v := genesis(t).view("")
	for _, s := range v.Sources {
		again := src("again", "{}")
		again.Place = s.Place
		if c, err := v.PutSource(again, now); err == nil || !strings.Contains(err.Error(), "is source "+s.Name+" already") {
			t.Errorf("%s: %+v, %v", s.Place, c, err)
		}
	}
	if len(v.Sources) < 2 {
		t.Errorf("only %d sources", len(v.Sources))
	}
}

// TestGenerationsOfTheRotation: a name's generation never goes back, and only the
// rotation that holds the lock has frozen one.
func TestGenerationsOfTheRotation(t *testing.T) {
	for name, c := range map[string]struct {
		registered, frozen int
		holder             string
		want               int
	}{
		"the registry is ahead":           {5, 2, rid, 6},
		"the rotation is ahead":           {2, 5, rid, 6},
		"a rotation that holds no lock":   {2, 5, "", 3},
		"a rotation without another lock": {2, 5, "another", -1},
	} {
		tab := standing(t, Normal, string(Drained))
		v := tab.view(rid)
		v.Lock = c.holder
		v.Sources, v.Rotation.Sources = []Source{src("orders", "{}")}, []Source{src("orders", "{}")}
		v.Sources[0].Generation, v.Rotation.Sources[0].Generation = c.registered, c.frozen
		got, err := v.PutSource(src("orders", "{new}"), now)
		if c.want < 0 {
			if !errors.Is(err, ErrLocked) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if err != nil || got.Registry.Put[0].Generation != c.want {
			t.Errorf("%s: %+v, %v, want generation %d", name, got.Registry, err, c.want)
		}
	}
}
