package kek

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	rid   = "Q2-2026-rotation"
	old   = ID("kek-old")
	fresh = ID("kek-new")
	limit = 3
)

var now = time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)

// steps are the transitions of a rotation, in the order of its way to completed.
var steps = []struct {
	name string
	next func(v View, mode Mode) (Change, error)
}{
	{"Start", func(v View, m Mode) (Change, error) {
		return v.Start(Rotation{ID: rid, Mode: m, Reason: "r", Segments: 4}, now)
	}},
	{"Mint", func(v View, _ Mode) (Change, error) { return v.Mint(KEK{ID: fresh, ARN: "arn", FenceShards: 2}, now) }},
	{"Test", func(v View, _ Mode) (Change, error) { return v.Test([]byte("probe"), now) }},
	{"Switch", func(v View, _ Mode) (Change, error) { return v.Switch(now) }},
	{"Seal", func(v View, _ Mode) (Change, error) { return v.Seal(now) }},
	{"Rewrap", func(v View, _ Mode) (Change, error) { return v.Rewrap(now) }},
	{"Retire", func(v View, _ Mode) (Change, error) { return v.Retire(now, now.Add(time.Hour)) }},
	{"Complete", func(v View, _ Mode) (Change, error) { return v.Complete(now) }},
	{"PreSwitchFailure", func(v View, _ Mode) (Change, error) { return v.PreSwitchFailure("why", now) }},
	{"Remint", func(v View, _ Mode) (Change, error) { return v.Remint(1, limit, "why", now) }},
}

func step(name string) func(View, Mode) (Change, error) {
	for _, s := range steps {
		if s.name == name {
			return s.next
		}
	}
	panic(name)
}

// genesis is a table with one active KEK.
func genesis(t *testing.T) *table {
	t.Helper()
	tab := newTable()
	c, err := tab.view("").Genesis(KEK{ID: old, ARN: "arn:old", FenceShards: 2}, now)
	if err == nil {
		err = tab.apply(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// phases are where a rotation may stand, after so many steps.
var phases = []Phase{"", Started, Minted, Tested, Switched, Drained, Rewrapped, KEKRetired, Completed, RolledBack}

// standing is a table whose rotation stands at a phase.
func standing(t *testing.T, mode Mode, phase Phase) *table {
	t.Helper()
	tab := genesis(t)
	names := []string{"Start", "Mint", "Test", "Switch", "Seal", "Rewrap", "Retire", "Complete"}
	if phase == RolledBack {
		names = []string{"Start", "Mint", "PreSwitchFailure"}
	}
	for _, name := range names {
		if r := tab.view(rid).Rotation; phase == "" || r != nil && r.Phase == phase {
			break
		}
		take(t, tab, mode, name)
	}
	return tab
}

// take makes one transition, which must be legal.
func take(t *testing.T, tab *table, mode Mode, name string) Change {
	t.Helper()
	tab.sealed[old] = true
	c, err := step(name)(tab.view(rid), mode)
	if err == nil {
		err = tab.apply(c)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// TestEveryTransition tries each transition at each phase, in both modes. In the
// table, by phase: L legal, D done already, X illegal, N no rotation.
func TestEveryTransition(t *testing.T) {
	want := map[Mode]map[string]string{
		Normal: { //         -SMTSDRRCR
			"Start":            "LDDDDDDDDD",
			"Mint":             "NLDDDDDDDX",
			"Test":             "NXLDDDDDDX",
			"Switch":           "NXXLDDDDDX",
			"Seal":             "NXXXLDDDDX",
			"Rewrap":           "NXXXXLDDDX",
			"Retire":           "NXXXXXLDDX",
			"Complete":         "NXXXXXXLDX",
			"PreSwitchFailure": "NLLLXXXXXD",
			"Remint":           "NXXXXXXXXX",
		},
		Emergency: { // it never stands at rolledback
			"Start":            "LDDDDDDDD",
			"Mint":             "NLDDDDDDD",
			"Test":             "NXLDDDDDD",
			"Switch":           "NXXLDDDDD",
			"Seal":             "NXXXLDDDD",
			"Rewrap":           "NXXXXLDDD",
			"Retire":           "NXXXXXLDD",
			"Complete":         "NXXXXXXLD",
			"PreSwitchFailure": "NXXXXXXXX",
			"Remint":           "NLLLXXXXX",
		},
	}
	for mode, table := range want {
		for name, outcomes := range table {
			for i, want := range outcomes {
				tab := standing(t, mode, phases[i])
				tab.sealed[old] = true
				c, err := step(name)(tab.view(rid), mode)
				var illegal *IllegalTransition
				got := 'L'
				switch {
				case errors.Is(err, ErrDone):
					got = 'D'
				case errors.Is(err, ErrNoRotation):
					got = 'N'
				case errors.As(err, &illegal):
					got = 'X'
				case err != nil:
					t.Fatal(err)
				}
				if got != want {
					t.Errorf("%s %s at %q: %c (%v), want %c", mode, name, phases[i], got, err, want)
				}
				if got == 'L' {
					if err := tab.apply(c); err != nil {
						t.Errorf("%s %s at %q: %v", mode, name, phases[i], err)
					}
				} else if diff := cmp.Diff(Change{}, c); diff != "" {
					t.Errorf("%s %s at %q, refused, returned a change:\n%s", mode, name, phases[i], diff)
				}
			}
		}
	}
}

// TestChanges checks what each legal transition writes and what it is conditional
// on: the conditions are the rotation's safety, so they are spelled out.
func TestChanges(t *testing.T) {
	pointer := &Pointer{KEKID: old, KeyARN: "arn:old", Epoch: 1, SwitchedAt: now}
	moved := &Pointer{KEKID: fresh, KeyARN: "arn", Epoch: 2, RotationID: rid, SwitchedAt: now}
	type move struct {
		ID       ID
		From, To State
	}
	for _, tc := range []struct {
		name  string
		mode  Mode
		at    Phase
		to    Phase
		lock  LockOp
		event string
		moves []move
		keeps *Pointer // condition that the pointer stands still
		ptr   *Pointer // where it goes
		opens ID
		seals ID
	}{
		{"Start", Normal, "", Started, LockTake, "rotation_started", nil, pointer, nil, "", ""},
		{"Mint", Normal, Started, Minted, LockHold, "kek_minted", []move{{fresh, "", Pending}}, nil, nil, "", ""},
		{"Test", Normal, Minted, Tested, LockHold, "dual_unwrap_passed", nil, nil, nil, "", ""},
		{"Switch", Normal, Tested, Switched, LockHold, "pointer_switched", []move{{fresh, Pending, Active}, {old, Active, Draining}}, nil, moved, fresh, ""},
		{"Seal", Normal, Switched, Drained, LockHold, "old_kek_sealed", []move{{old, Draining, Sealed}}, nil, nil, "", old},
		{"Rewrap", Normal, Drained, Rewrapped, LockHold, "rows_rewrapped", nil, nil, nil, "", ""},
		{"Retire", Normal, Rewrapped, KEKRetired, LockHold, "old_kek_retired", []move{{old, Sealed, Retired}}, moved, nil, "", ""},
		{"Complete", Normal, KEKRetired, Completed, LockRelease, "kms_rotation_completed", nil, nil, nil, "", ""},
		{"PreSwitchFailure", Normal, Started, RolledBack, LockRelease, "rolled_back", nil, pointer, nil, "", ""},
		{"PreSwitchFailure", Normal, Tested, RolledBack, LockRelease, "rolled_back", []move{{fresh, Pending, Retired}}, pointer, nil, "", ""},
		{"Remint", Emergency, Started, Started, LockHold, "reminted", nil, pointer, nil, "", ""},
		{"Remint", Emergency, Tested, Started, LockHold, "reminted", []move{{fresh, Pending, Retired}}, pointer, nil, "", ""},
	} {
		tab := standing(t, tc.mode, tc.at)
		before := tab.view(rid)
		c := take(t, tab, tc.mode, tc.name)
		var moves []move
		for _, m := range c.KEKs {
			var from State
			if m.Before != nil {
				from = m.Before.State
			}
			moves = append(moves, move{m.After.ID, from, m.After.State})
		}
		if diff := cmp.Diff(tc.moves, moves); diff != "" {
			t.Errorf("%s at %q moves (-want +got):\n%s", tc.name, tc.at, diff)
		}
		if diff := cmp.Diff(tc.keeps, c.Keeps); diff != "" {
			t.Errorf("%s at %q keeps (-want +got):\n%s", tc.name, tc.at, diff)
		}
		if (c.Pointer == nil) != (tc.ptr == nil) || c.Pointer != nil && (c.Pointer.After != *tc.ptr || *c.Pointer.Before != *pointer) {
			t.Errorf("%s at %q moves the pointer %+v", tc.name, tc.at, c.Pointer)
		}
		r := c.Rotation.After
		if r.Phase != tc.to || c.Lock != tc.lock || c.Event != tc.event || c.Opens != tc.opens || c.Sealed != tc.seals || !r.UpdatedAt.Equal(now) {
			t.Errorf("%s at %q: %+v", tc.name, tc.at, c)
		}
		if tc.opens+tc.seals != "" && c.Shards != 2 {
			t.Errorf("%s at %q speaks of %d shards", tc.name, tc.at, c.Shards)
		}
		if diff := cmp.Diff(before.Rotation, c.Rotation.Before); diff != "" {
			t.Errorf("%s at %q is not conditional on what was read:\n%s", tc.name, tc.at, diff)
		}
		if before.Rotation != nil && r.Rev != before.Rotation.Rev+1 {
			t.Errorf("%s at %q: revision %d after %d", tc.name, tc.at, r.Rev, before.Rotation.Rev)
		}
	}
}

// TestRemint checks the count of an emergency's attempts.
func TestRemint(t *testing.T) {
	tab := standing(t, Emergency, Minted)
	c := take(t, tab, Emergency, "Remint")
	if r := c.Rotation.After; r.Attempt != 2 || r.NewKEK != "" || r.Err != "why" {
		t.Errorf("after the first: %+v", r)
	}
	if _, err := tab.view(rid).Remint(1, limit, "", now); !errors.Is(err, ErrDone) {
		t.Errorf("the first attempt failed once more: %v", err)
	}
	if _, err := tab.view(rid).Remint(0, limit, "", now); !errors.Is(err, ErrDone) {
		t.Errorf("no attempt: %v", err)
	}
	c, err := tab.view(rid).Remint(2, limit, "", now)
	if err != nil || tab.apply(c) != nil {
		t.Fatal(err)
	}
	if _, err := tab.view(rid).Remint(3, limit, "", now); !errors.Is(err, ErrMintsExhausted) {
		t.Errorf("attempt %d of %d failed: %v", 3, limit, err)
	}
	if r := tab.view(rid).Rotation; r.Attempt != limit {
		t.Errorf("attempt %d", r.Attempt)
	}
}

// TestRemintOfFutureAttempt is the regression test of a re-mint that named an
// attempt which had not been made, and retired the KEK of the one under way.
func TestRemintOfFutureAttempt(t *testing.T) {
	var illegal *IllegalTransition
	if c, err := standing(t, Emergency, Tested).view(rid).Remint(2, limit, "", now); !errors.As(err, &illegal) {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestGuards breaks what a transition relies on beyond the phase.
func TestGuards(t *testing.T) {
	for _, tc := range []struct {
		name, step string
		mode       Mode
		at         Phase
		edit       func(v *View)
		want       error // nil: an IllegalTransition
	}{
		{"start: lock held", "Start", Normal, "", func(v *View) { v.Lock = "other" }, ErrLocked},
		{"start: no pointer", "Start", Normal, "", func(v *View) { v.Pointer = nil }, ErrNoPointer},
		{"start: unknown KEK", "Start", Normal, "", func(v *View) { v.KEKs = nil }, ErrNoPointer},
		{"start: pending KEK", "Start", Normal, "", state(old, Pending), ErrNoPointer},
		{"start: draining KEK", "Start", Emergency, "", state(old, Draining), ErrNoPointer},
		{"start: retired KEK", "Start", Emergency, "", state(old, Retired), ErrNoPointer},
		{"mint: the pointer's key", "Mint", Normal, Started, points(fresh), nil},
		{"switch: pointer elsewhere", "Switch", Normal, Tested, points("kek-x"), nil},
		{"switch: pointer at new", "Switch", Normal, Tested, points(fresh), nil},
		{"switch: no pointer", "Switch", Normal, Tested, func(v *View) { v.Pointer = nil }, nil},
		{"switch: new is active", "Switch", Normal, Tested, state(fresh, Active), nil},
		{"switch: new is retired", "Switch", Emergency, Tested, state(fresh, Retired), nil},
		{"switch: old is draining", "Switch", Normal, Tested, state(old, Draining), nil},
		{"switch: old is sealed", "Switch", Normal, Tested, state(old, Sealed), nil},
		{"seal: old is active", "Seal", Normal, Switched, state(old, Active), nil},
		{"seal: old is retired", "Seal", Emergency, Switched, state(old, Retired), nil},
		{"retire: pointer at old", "Retire", Normal, Rewrapped, points(old), nil},
		{"retire: no pointer", "Retire", Emergency, Rewrapped, func(v *View) { v.Pointer = nil }, nil},
		{"retire: old is draining", "Retire", Normal, Rewrapped, state(old, Draining), nil},
		{"retire: old is active", "Retire", Normal, Rewrapped, state(old, Active), nil},
		{"rollback: pointer at new", "PreSwitchFailure", Normal, Tested, points(fresh), nil},
		{"rollback: no pointer", "PreSwitchFailure", Normal, Minted, func(v *View) { v.Pointer = nil }, nil},
		{"rollback: new is active", "PreSwitchFailure", Normal, Tested, state(fresh, Active), nil},
		{"remint: pointer at new", "Remint", Emergency, Tested, points(fresh), nil},
		{"remint: new is active", "Remint", Emergency, Minted, state(fresh, Active), nil},
	} {
		v := standing(t, tc.mode, tc.at).view(rid)
		tc.edit(&v)
		c, err := step(tc.step)(v, tc.mode)
		var illegal *IllegalTransition
		if tc.want == nil && !errors.As(err, &illegal) || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil || cmp.Diff(Change{}, c) != "" {
			t.Errorf("%s: returned the change %+v", tc.name, c)
		}
	}
	for _, name := range []string{"Switch", "Seal", "Retire", "PreSwitchFailure", "Remint"} { // an entry is missing
		mode := map[bool]Mode{true: Emergency, false: Normal}[name == "Remint"]
		at := map[string]Phase{"Switch": Tested, "Seal": Switched, "Retire": Rewrapped, "PreSwitchFailure": Minted, "Remint": Minted}[name]
		v := standing(t, mode, at).view(rid)
		v.KEKs = nil
		if _, err := step(name)(v, mode); err == nil || errors.Is(err, ErrDone) {
			t.Errorf("%s without registry entries: %v", name, err)
		}
	}
}

func state(id ID, s State) func(*View) {
	return func(v *View) {
		k := v.KEKs[id]
		k.ID, k.State = id, s
		v.KEKs[id] = k
	}
}

func points(id ID) func(*View) {
	return func(v *View) { v.Pointer = &Pointer{KEKID: id, Epoch: 5} }
}

func TestGenesis(t *testing.T) {
	tab := genesis(t)
	if k := tab.keks[old]; k.State != Active || !k.CreatedAt.Equal(now) || tab.pointer.Epoch != 1 || tab.lock != "" || !tab.opened[old] {
		t.Errorf("KEK %+v, pointer %+v", k, tab.pointer)
	}
	if _, err := tab.view("").Genesis(KEK{ID: old}, now); !errors.Is(err, ErrDone) {
		t.Errorf("repeated: %v", err)
	}
	var illegal *IllegalTransition
	if _, err := tab.view("").Genesis(KEK{ID: fresh}, now); !errors.As(err, &illegal) || illegal.Error() == "" {
		t.Errorf("with another key: %v", err)
	}
}

// TestViewIsNotChanged checks that a transition leaves what was read as it was.
func TestViewIsNotChanged(t *testing.T) {
	for _, s := range steps {
		for _, phase := range phases {
			for _, mode := range []Mode{Normal, Emergency} {
				if phase == RolledBack && mode == Emergency {
					continue
				}
				tab := standing(t, mode, phase)
				v, want := tab.view(rid), tab.view(rid)
				_, _ = s.next(v, mode)
				if diff := cmp.Diff(want, v); diff != "" {
					t.Errorf("%s at %q changed its view:\n%s", s.name, phase, diff)
				}
			}
		}
	}
}
