package kek

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	rid   = "Q2-2026-rotation"
	old   = ID("kek-old")
	fresh = ID("kek-new")
	past1 = ID("kek-a-past") // historic KEKs
	past2 = ID("kek-z-past")
	limit = 3
)

var now = time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)

// rev is the revision of the rotation that a view has.
func rev(v View) int64 {
	if v.Rotation == nil {
		return 0
	}
	return v.Rotation.Rev
}

// steps are the transitions: those of a rotation in the order of its way to completed,
// those that give up, and those of the registry.
var steps = []struct {
	name string
	next func(v View, mode Mode) (Change, error)
}{
	{"Start", func(v View, m Mode) (Change, error) {
		return v.Start(Rotation{ID: rid, Mode: m, Reason: "r", Segments: 4, Settings: Settings{MaxMints: limit}}, now)
	}},
	{"Count", func(v View, _ Mode) (Change, error) { return v.Count(now) }},
	{"Mint", func(v View, _ Mode) (Change, error) { return v.Mint(KEK{ID: fresh, ARN: "arn", FenceShards: 2}, now) }},
	{"Rehearse", func(v View, _ Mode) (Change, error) { return v.Rehearse(now) }},
	{"Test", func(v View, _ Mode) (Change, error) { return v.Test(map[ID][]byte{old: []byte("probe")}, now) }},
	{"Switch", func(v View, _ Mode) (Change, error) { return v.Switch(now) }},
	{"Seal", func(v View, _ Mode) (Change, error) { return v.Seal(now) }},
	{"Rewrap", func(v View, _ Mode) (Change, error) { return v.Rewrap(rev(v), now) }},
	{"Retire", func(v View, _ Mode) (Change, error) { return v.Retire(rev(v), now, now.Add(time.Hour)) }},
	{"Complete", func(v View, _ Mode) (Change, error) { return v.Complete(rev(v), now) }},
	{"PreSwitchFailure", func(v View, _ Mode) (Change, error) { return v.PreSwitchFailure("why", now) }},
	{"Remint", func(v View, _ Mode) (Change, error) { return v.Remint(1, limit, "why", now) }},
	{"Resume", func(v View, _ Mode) (Change, error) { return v.Resume(now) }},
	{"Restart", func(v View, _ Mode) (Change, error) { return v.Restart(rev(v), now) }},

	{"PutSource", func(v View, _ Mode) (Change, error) { return v.PutSource(src("later", "{}"), now) }},
	{"PutSource again", func(v View, _ Mode) (Change, error) { return v.PutSource(src("orders", "{}"), now) }},
	{"PutSource otherwise", func(v View, _ Mode) (Change, error) { return v.PutSource(src("orders", `{"a":1}`), now) }},
	{"RemoveSource", func(v View, _ Mode) (Change, error) { return v.RemoveSource("orders", now) }},
	{"RemoveSource again", func(v View, _ Mode) (Change, error) { return v.RemoveSource("later", now) }},
	{"ForgetMark", func(v View, _ Mode) (Change, error) {
		v.Marks = append(v.Marks, Mark{Table: "stray"})
		return v.ForgetMark("stray", now)
	}},
	{"ForgetMark of a source", func(v View, _ Mode) (Change, error) { return v.ForgetMark("table-orders", now) }},
	{"RegisterKEK", func(v View, _ Mode) (Change, error) {
		return v.RegisterKEK(KEK{ID: "kek-later", ARN: "arn:later", Label: "before us", FenceShards: 2}, now)
	}},
	{"RegisterKEK again", func(v View, _ Mode) (Change, error) { return v.RegisterKEK(KEK{ID: past1}, now) }},
}

func step(name string) func(View, Mode) (Change, error) {
	for _, s := range steps {
		if s.name == name {
			return s.next
		}
	}
	panic(name)
}

// must applies what a transition has computed.
func must(t *testing.T, tab *table, c Change, err error) Change {
	t.Helper()
	if err == nil {
		err = tab.apply(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// genesis is a table with one active KEK, two sources that are marked, and two historic
// KEKs.
func genesis(t *testing.T) *table {
	t.Helper()
	tab := newTable()
	c, err := tab.view("").Genesis(KEK{ID: old, ARN: "arn:old", FenceShards: 2}, []Source{src("orders", "{}"), src("users", "{}")}, now)
	must(t, tab, c, err)
	for _, id := range []ID{past2, past1} {
		c, err := tab.view("").RegisterKEK(KEK{ID: id, ARN: "arn:" + string(id), FenceShards: 2}, now)
		must(t, tab, c, err)
	}
	for _, name := range []string{"table-orders", "table-users"} {
		tab.marks[name] = Mark{Table: name, Holder: "app"}
	}
	return tab
}

// A stand is a place where a rotation may stand: its phase, and what was done in it.
const (
	none      = ""
	started   = "started"
	counted   = "counted"
	minted    = "minted"
	rehearsed = "rehearsed"
)

// stands are in the order of the way to completed, after so many steps of way.
var stands = []string{
	none, started, counted, minted, rehearsed, string(Tested), string(Switched), string(Drained), string(Rewrapped), string(KEKRetired),
	string(Completed), string(RolledBack),
}

var way = []string{"Start", "Count", "Mint", "Rehearse", "Test", "Switch", "Seal", "Rewrap", "Retire", "Complete"}

// standing is a table whose rotation stands at a stand.
func standing(t *testing.T, mode Mode, stand string) *table {
	t.Helper()
	tab, names := genesis(t), way
	if stand == string(RolledBack) {
		names = []string{"Start", "Count", "Mint", "PreSwitchFailure"}
	}
	for i, name := range names {
		if stands[i] == stand {
			break
		}
		take(t, tab, mode, name)
	}
	return tab
}

// take makes one transition, which must be legal.
func take(t *testing.T, tab *table, mode Mode, name string) Change {
	t.Helper()
	if name == "Seal" {
		tab.fences[old] = "sealed"
	}
	c, err := step(name)(tab.view(rid), mode)
	if err == nil {
		err = tab.apply(c)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// TestEveryTransition tries each transition at each stand, in both modes. In the
// table, by stand: L legal, D done already, X illegal, N no rotation, K locked.
func TestEveryTransition(t *testing.T) {
	want := map[Mode]map[string]string{
		Normal: { //         -SCMHTSDRRCR
			"Start":            "LDDDDDDDDDDD",
			"Count":            "NLDDDDDDDDDX",
			"Mint":             "NXLDDDDDDDDX",
			"Rehearse":         "NXXLDDDDDDDX",
			"Test":             "NXXXLDDDDDDX",
			"Switch":           "NXXXXLDDDDDX",
			"Seal":             "NXXXXXLDDDDX",
			"Rewrap":           "NXXXXXXLDDDX",
			"Retire":           "NXXXXXXXLDDX",
			"Complete":         "NXXXXXXXXLDX",
			"PreSwitchFailure": "NLLLLLXXXXXD",
			"Remint":           "NXXXXXXXXXXX",
			"Resume":           "NLLLLLLLLLXX",
			"Restart":          "NLLLLLLLLLXX",

			"PutSource":              "LKKKKKLLLLLL",
			"PutSource again":        "DDDDDDDDDDDD",
			"PutSource otherwise":    "LKKKKKLLLLLL",
			"RemoveSource":           "LKKKKKLLLLLL",
			"RemoveSource again":     "DDDDDDDDDDDD",
			"ForgetMark":             "LKKKKKLLLLLL",
			"ForgetMark of a source": "DDDDDDDDDDDD",
			"RegisterKEK":            "LKKKKKKKKKLL",
			"RegisterKEK again":      "DDDDDDDDDXXD", // retired, it stays so
		},
		Emergency: { // it never stands at rolledback
			"Start":            "LDDDDDDDDDD",
			"Count":            "NLDDDDDDDDD",
			"Mint":             "NLLDDDDDDDD",
			"Rehearse":         "NXXLDDDDDDD",
			"Test":             "NXXXLDDDDDD",
			"Switch":           "NXXXXLDDDDD",
			"Seal":             "NXXXXXLDDDD",
			"Rewrap":           "NXXXXXXLDDD",
			"Retire":           "NXXXXXXXLDD",
			"Complete":         "NXXXXXXXXLD",
			"PreSwitchFailure": "NXXXXXXXXXX",
			"Remint":           "NLLLLLXXXXX",
			"Resume":           "NLLLLLLLLLX",
			"Restart":          "NLLLLLLLLLX",

			"PutSource":              "LKKKKKLLLLL",
			"PutSource again":        "DDDDDDDDDDD",
			"PutSource otherwise":    "LKKKKKLLLLL",
			"RemoveSource":           "LKKKKKLLLLL",
			"RemoveSource again":     "DDDDDDDDDDD",
			"ForgetMark":             "LKKKKKLLLLL",
			"ForgetMark of a source": "DDDDDDDDDDD",
			"RegisterKEK":            "LKKKKKKKKKL",
			"RegisterKEK again":      "DDDDDDDDDXX",
		},
	}
	for mode, table := range want {
		if len(table) != len(steps) {
			t.Errorf("%s: %d of %d transitions are tried", mode, len(table), len(steps))
		}
		for name, outcomes := range table {
			for i, want := range outcomes {
				tab := standing(t, mode, stands[i])
				tab.fences[old] = "sealed"
				c, err := step(name)(tab.view(rid), mode)
				var illegal *IllegalTransition
				got := 'L'
				switch {
				case errors.Is(err, ErrDone):
					got = 'D'
				case errors.Is(err, ErrNoRotation):
					got = 'N'
				case errors.Is(err, ErrLocked):
					got = 'K'
				case errors.As(err, &illegal):
					got = 'X'
					if illegal.What == "" || illegal.From == "" || illegal.To == "" {
						t.Errorf("%s %s at %q: %+v does not say what cannot be done", mode, name, stands[i], illegal)
					}
					if back := name == "PreSwitchFailure" || name == "Remint"; back && i > 5 && illegal.What != "rotation "+rid {
						t.Errorf("%s %s after the switch: %+v is not the rotation's way", mode, name, illegal)
					}
				case err != nil:
					t.Fatalf("%s %s at %q: %v", mode, name, stands[i], err)
				}
				if got != want {
					t.Errorf("%s %s at %q: %c (%v), want %c", mode, name, stands[i], got, err, want)
				}
				if got == 'L' {
					if err := tab.apply(c); err != nil {
						t.Errorf("%s %s at %q: %v", mode, name, stands[i], err)
					}
				} else if diff := cmp.Diff(Change{}, c); diff != "" {
					t.Errorf("%s %s at %q, refused, returned a change:\n%s", mode, name, stands[i], diff)
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
	three := int64(3) // genesis and two historic KEKs
	type move struct {
		ID       ID
		From, To State
	}
	retired := []move{{old, Sealed, Retired}, {past1, Sealed, Retired}, {past2, Sealed, Retired}}
	for _, tc := range []struct {
		name  string
		mode  Mode
		at    string
		to    Phase
		lock  LockOp
		event string
		moves []move
		keeps *Pointer // condition that the pointer stands still
		ptr   *Pointer // where it goes
		opens ID
		seals ID
		reg   *int64 // condition on the registry's revision
	}{
		{"Start", Normal, none, Started, LockTake, "rotation_started", nil, pointer, nil, "", "", &three},
		{"Start", Emergency, none, Started, LockTake, "rotation_started", nil, pointer, nil, "", "", &three},
		{"Count", Normal, started, Started, LockHold, "rows_counted", nil, nil, nil, "", "", nil},
		{"Mint", Normal, counted, Minted, LockHold, "kek_minted", []move{{fresh, "", Pending}}, nil, nil, "", "", nil},
		{"Mint", Emergency, started, Minted, LockHold, "kek_minted", []move{{fresh, "", Pending}}, nil, nil, "", "", nil},
		{"Rehearse", Normal, minted, Minted, LockHold, "rows_rehearsed", nil, nil, nil, "", "", nil},
		{"Test", Normal, rehearsed, Tested, LockHold, "dual_unwrap_passed", nil, nil, nil, "", "", nil},
		{"Switch", Normal, string(Tested), Switched, LockHold, "pointer_switched", []move{{fresh, Pending, Active}, {old, Active, Draining}}, nil, moved, fresh, "", nil},
		{"Seal", Normal, string(Switched), Drained, LockHold, "old_kek_sealed", []move{{old, Draining, Sealed}}, nil, nil, "", old, nil},
		{"Rewrap", Normal, string(Drained), Rewrapped, LockHold, "rows_rewrapped", nil, nil, nil, "", "", nil},
		{"Retire", Normal, string(Rewrapped), KEKRetired, LockHold, "old_kek_retired", retired, moved, nil, "", "", nil},
		{"Retire", Emergency, string(Rewrapped), KEKRetired, LockHold, "old_kek_retired", retired, moved, nil, "", "", nil},
		{"Complete", Normal, string(KEKRetired), Completed, LockRelease, "kms_rotation_completed", nil, nil, nil, "", "", nil},
		{"PreSwitchFailure", Normal, started, RolledBack, LockRelease, "rolled_back", nil, pointer, nil, "", "", nil},
		{"PreSwitchFailure", Normal, counted, RolledBack, LockRelease, "rolled_back", nil, pointer, nil, "", "", nil},
		{"PreSwitchFailure", Normal, string(Tested), RolledBack, LockRelease, "rolled_back", []move{{fresh, Pending, Retired}}, pointer, nil, "", "", nil},
		{"Remint", Emergency, started, Started, LockHold, "reminted", nil, pointer, nil, "", "", nil},
		{"Remint", Emergency, rehearsed, Started, LockHold, "reminted", []move{{fresh, Pending, Retired}}, pointer, nil, "", "", nil},
		{"Remint", Emergency, string(Tested), Started, LockHold, "reminted", []move{{fresh, Pending, Retired}}, pointer, nil, "", "", nil},
		{"Resume", Normal, string(Tested), Tested, LockHold, "rotation_resumed", nil, nil, nil, "", "", nil},
		{"Resume", Emergency, string(Rewrapped), Rewrapped, LockHold, "rotation_resumed", nil, nil, nil, "", "", nil},
		{"Restart", Normal, started, Started, LockHold, "reading_restarted", nil, nil, nil, "", "", nil},
		{"Restart", Emergency, string(KEKRetired), KEKRetired, LockHold, "reading_restarted", nil, nil, nil, "", "", nil},
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
		if diff := cmp.Diff(tc.reg, c.AtRegistry); diff != "" || c.Registry != nil || c.Shuts != "" {
			t.Errorf("%s at %q conditions on the registry (-want +got):\n%s\nand changes it: %+v", tc.name, tc.at, diff, c.Registry)
		}
		r := c.Rotation.After
		if r.Phase != tc.to || c.Lock != tc.lock || c.Event != tc.event || c.Opens != tc.opens || c.Sealed != tc.seals || !r.UpdatedAt.Equal(now) {
			t.Errorf("%s at %q: %+v", tc.name, tc.at, c)
		}
		if tc.opens+tc.seals != "" && c.Shards != 2 || tc.opens+tc.seals == "" && c.Shards != 0 {
			t.Errorf("%s at %q speaks of %d shards", tc.name, tc.at, c.Shards)
		}
		if diff := cmp.Diff(before.Rotation, c.Rotation.Before); diff != "" {
			t.Errorf("%s at %q is not conditional on what was read:\n%s", tc.name, tc.at, diff)
		}
		if gaveUp := tc.name == "PreSwitchFailure" || tc.name == "Remint"; (r.Err == "why") != gaveUp {
			t.Errorf("%s at %q says why: %q", tc.name, tc.at, r.Err)
		}
		if before.Rotation != nil && r.Rev != before.Rotation.Rev+1 {
			t.Errorf("%s at %q: revision %d after %d", tc.name, tc.at, r.Rev, before.Rotation.Rev)
		}
	}
}

// TestRecord follows one record from its start to the end: each step writes its own
// part and leaves the others.
func TestRecord(t *testing.T) {
	tab := standing(t, Normal, none)
	want := Rotation{
		ID: rid, Mode: Normal, Phase: Started, Reason: "r", OldKEK: old, Olds: []ID{old, past1, past2}, Attempt: 1, Segments: 4,
		Settings: Settings{MaxMints: limit}, Sources: tab.view(rid).Sources, StartedAt: now, UpdatedAt: now,
	}
	for _, s := range []struct {
		name string
		edit func()
	}{
		{"Start", func() {}},
		{"Count", func() { want.Counted = true }},
		{"Mint", func() { want.Phase, want.NewKEK = Minted, fresh }},
		{"Rehearse", func() { want.Rehearsed = fresh }},
		{"Test", func() { want.Phase, want.Probes = Tested, map[ID][]byte{old: []byte("probe")} }},
		{"Switch", func() { want.Phase, want.Epoch, want.SwitchedAt = Switched, 2, now }},
		{"Seal", func() { want.Phase, want.SealedAt = Drained, now }},
		{"Resume", func() { want.ResumedAt = now }},
		{"Rewrap", func() { want.Phase = Rewrapped }},
		{"Retire", func() { want.Phase = KEKRetired }},
		{"Complete", func() { want.Phase = Completed }},
	} {
		got := take(t, tab, Normal, s.name).Rotation.After
		s.edit()
		want.Rev++
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", s.name, diff)
		}
	}
	if k := tab.keks[fresh]; k.RotationID != rid || !k.SwitchedAt.Equal(now) || !k.RetiredAt.IsZero() {
		t.Errorf("the new KEK: %+v", k)
	}
	for _, id := range want.Olds {
		if k := tab.keks[id]; !k.RetiredAt.Equal(now) || k.Reason != "rotated by "+rid || !k.NotBeforeDelete.Equal(now.Add(time.Hour)) {
			t.Errorf("an old KEK: %+v", k)
		}
	}
}

// TestStartForgetsWhatItIsGiven: a caller cannot start a rotation that claims to have
// been counted, rehearsed or switched.
func TestStartForgetsWhatItIsGiven(t *testing.T) {
	c, err := genesis(t).view(rid).Start(Rotation{
		ID: rid, Mode: Normal, Phase: Tested, OldKEK: "x", Olds: []ID{"x"}, NewKEK: "x", Attempt: 9, Rev: 9, Sources: []Source{src("x", "")},
		Counted: true, Rehearsed: "x", TookOver: []string{"x"}, Leftover: []ID{"x"}, EndedBy: "x",
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	r := c.Rotation.After
	if r.Phase != Started || r.OldKEK != old || r.NewKEK != "" || r.Attempt != 1 || r.Rev != 1 || r.Counted || r.Rehearsed != "" || r.TookOver != nil || r.Leftover != nil || r.EndedBy != "" ||
		names(r.Sources) != "orders~0 {}, users~0 {}" || !cmp.Equal(r.Olds, []ID{old, past1, past2}) {
		t.Errorf("%+v", r)
	}
}

// TestOlds: a rotation leaves every KEK that a row may be under, and no other.
func TestOlds(t *testing.T) {
	v := genesis(t).view(rid)
	for id, s := range map[ID]State{"p": Pending, "a": Active, "d": Draining, "s": Sealed, "r": Retired} {
		v.KEKs[id] = KEK{ID: id, State: s}
	}
	c, err := v.Start(Rotation{ID: rid, Mode: Normal}, now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]ID{old, "a", "d", past1, past2, "s"}, c.Rotation.After.Olds); diff != "" {
		t.Error(diff)
	}
}

// TestRemint checks the count of an emergency's attempts.
func TestRemint(t *testing.T) {
	tab := standing(t, Emergency, minted)
	c := take(t, tab, Emergency, "Remint")
	if r := c.Rotation.After; r.Attempt != 2 || r.NewKEK != "" || r.Err != "why" {
		t.Errorf("after the first: %+v", r)
	}
	if k := tab.keks[fresh]; k.Reason != "emergency pre-switch failure" || !k.RetiredAt.Equal(now) {
		t.Errorf("the failed KEK: %+v", k)
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

// TestRemintForgetsTheRehearsal: what was rehearsed under the KEK that failed says
// nothing of the next one.
func TestRemintForgetsTheRehearsal(t *testing.T) {
	tab := standing(t, Emergency, rehearsed)
	take(t, tab, Emergency, "Remint")
	c, err := tab.view(rid).Mint(KEK{ID: "kek-second", FenceShards: 2}, now)
	must(t, tab, c, err)
	var illegal *IllegalTransition
	if _, err := tab.view(rid).Test(nil, now); !errors.As(err, &illegal) || !strings.Contains(err.Error(), "without a rehearsal") {
		t.Errorf("tested without a rehearsal under the second KEK: %v", err)
	}
	take(t, tab, Emergency, "Rehearse")
	take(t, tab, Emergency, "Test")
}

// TestRemintOfFutureAttempt is the regression test of a re-mint that named an
// attempt which had not been made, and retired the KEK of the one under way.
func TestRemintOfFutureAttempt(t *testing.T) {
	var illegal *IllegalTransition
	c, err := standing(t, Emergency, string(Tested)).view(rid).Remint(2, limit, "", now)
	if !errors.As(err, &illegal) || illegal.Error() != `rotation Q2-2026-rotation cannot go from "attempt 1" to "attempt 3"` {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestResume: the moment of the last resume counts, and one that is known already is
// done.
func TestResume(t *testing.T) {
	tab := standing(t, Normal, string(Drained))
	take(t, tab, Normal, "Resume")
	for _, at := range []time.Time{now, now.Add(-time.Second)} {
		if _, err := tab.view(rid).Resume(at); !errors.Is(err, ErrDone) {
			t.Errorf("resumed at %s after %s: %v", at, now, err)
		}
	}
	later := now.Add(time.Millisecond)
	c, err := tab.view(rid).Resume(later)
	must(t, tab, c, err)
	if r := tab.rotations[rid]; !r.ResumedAt.Equal(later) || r.Phase != Drained {
		t.Errorf("%+v", r)
	}
}

// TestRestart: where the revision was raised since the rows were read, nothing is to be
// done: whoever holds a conclusion from them is refused it already.
func TestRestart(t *testing.T) {
	v := standing(t, Normal, string(Rewrapped)).view(rid)
	for _, before := range []int64{v.Rotation.Rev - 1, v.Rotation.Rev + 1} {
		if c, err := v.Restart(before, now); !errors.Is(err, ErrDone) || c.Rotation != nil {
			t.Errorf("from revision %d at %d: %+v, %v", before, v.Rotation.Rev, c, err)
		}
	}
	if c, err := v.Restart(v.Rotation.Rev, now); err != nil || c.Rotation.After.Rev != v.Rotation.Rev+1 || c.Rotation.After.Phase != Rewrapped {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestGuards breaks what a transition relies on beyond the phase.
func TestGuards(t *testing.T) {
	tested, switched, drained, rewrapped, retired := string(Tested), string(Switched), string(Drained), string(Rewrapped), string(KEKRetired)
	for _, tc := range []struct {
		name, step string
		mode       Mode
		at         string
		edit       func(v *View)
		want       error // nil: an IllegalTransition
	}{
		{"start: lock held", "Start", Normal, none, func(v *View) { v.Lock = "other" }, ErrLocked},
		{"start: no pointer", "Start", Normal, none, func(v *View) { v.Pointer = nil }, ErrNoPointer},
		{"start: unknown KEK", "Start", Normal, none, func(v *View) { v.KEKs = nil }, ErrNoPointer},
		{"start: pending KEK", "Start", Normal, none, state(old, Pending), ErrNoPointer},
		{"start: draining KEK", "Start", Emergency, none, state(old, Draining), ErrNoPointer},
		{"start: retired KEK", "Start", Emergency, none, state(old, Retired), ErrNoPointer},
		{"start: a forgotten table", "Start", Normal, none, marks("stray"), ErrForgotten},
		{"mint: the pointer's key", "Mint", Normal, counted, points(fresh), nil},
		{"mint: the pointer's key", "Mint", Emergency, started, points(fresh), nil},
		{"test: rehearsed with another KEK", "Test", Normal, rehearsed, func(v *View) { v.Rotation.Rehearsed = "kek-x" }, nil},
		{"test: rehearsed with another KEK", "Test", Emergency, rehearsed, func(v *View) { v.Rotation.Rehearsed = "kek-x" }, nil},
		{"test: a drill", "Test", Normal, rehearsed, func(v *View) { v.Rotation.Drill = "kms_rotation_failure" }, nil},
		{"switch: pointer elsewhere", "Switch", Normal, tested, points("kek-x"), nil},
		{"switch: pointer at new", "Switch", Normal, tested, points(fresh), nil},
		{"switch: no pointer", "Switch", Normal, tested, func(v *View) { v.Pointer = nil }, nil},
		{"switch: new is active", "Switch", Normal, tested, state(fresh, Active), nil},
		{"switch: new is retired", "Switch", Emergency, tested, state(fresh, Retired), nil},
		{"switch: old is draining", "Switch", Normal, tested, state(old, Draining), nil},
		{"switch: old is sealed", "Switch", Normal, tested, state(old, Sealed), nil},
		{"seal: old is active", "Seal", Normal, switched, state(old, Active), nil},
		{"seal: old is retired", "Seal", Emergency, switched, state(old, Retired), nil},
		{"retire: pointer at old", "Retire", Normal, rewrapped, points(old), nil},
		{"retire: pointer at a historic one", "Retire", Normal, rewrapped, points(past2), nil},
		{"retire: no pointer", "Retire", Emergency, rewrapped, func(v *View) { v.Pointer = nil }, nil},
		{"retire: old is draining", "Retire", Normal, rewrapped, state(old, Draining), nil},
		{"retire: old is active", "Retire", Normal, rewrapped, state(old, Active), nil},
		{"retire: a historic one is active", "Retire", Normal, rewrapped, state(past2, Active), nil},
		{"retire: a forgotten table", "Retire", Normal, rewrapped, marks("stray"), ErrForgotten},
		{"retire: a forgotten table", "Retire", Emergency, rewrapped, marks("stray"), ErrForgotten},
		{"retire: a source that is not the rotation's", "Retire", Normal, rewrapped, func(v *View) {
			v.Sources = append(v.Sources, src("later", "{}"))
			marks("table-later")(v)
		}, ErrForgotten},
		{"rollback: pointer at new", "PreSwitchFailure", Normal, tested, points(fresh), nil},
		{"rollback: no pointer", "PreSwitchFailure", Normal, minted, func(v *View) { v.Pointer = nil }, nil},
		{"rollback: new is active", "PreSwitchFailure", Normal, tested, state(fresh, Active), nil},
		{"remint: pointer at new", "Remint", Emergency, tested, points(fresh), nil},
		{"remint: no pointer", "Remint", Emergency, minted, func(v *View) { v.Pointer = nil }, nil},
		{"remint: new is active", "Remint", Emergency, minted, state(fresh, Active), nil},
		{"put: no pointer", "PutSource", Normal, none, func(v *View) { v.Pointer = nil }, ErrNoPointer},
		{"remove: no pointer", "RemoveSource", Normal, drained, func(v *View) { v.Pointer = nil }, ErrNoPointer},
		{"put: the lock's rotation was not read", "PutSource", Normal, drained, func(v *View) { v.Rotation = nil }, ErrLocked},
		{"put: another rotation was read", "PutSource", Normal, drained, func(v *View) { v.Rotation.ID = "other" }, ErrLocked},
		{"remove: the lock's rotation was not read", "RemoveSource", Normal, retired, func(v *View) { v.Rotation = nil }, ErrLocked},
		{"register: no pointer", "RegisterKEK", Normal, none, func(v *View) { v.Pointer = nil }, ErrNoPointer},
		{"register: lock held", "RegisterKEK", Normal, none, func(v *View) { v.Lock = "other" }, ErrLocked},
		{"register: one that is pending", "RegisterKEK again", Normal, none, state(past1, Pending), nil},
		{"register: one that is retired", "RegisterKEK again", Normal, none, state(past1, Retired), nil},
	} {
		v := standing(t, tc.mode, tc.at).view(rid)
		tc.edit(&v)
		c, err := step(tc.step)(v, tc.mode)
		var illegal *IllegalTransition
		if tc.want == nil && !errors.As(err, &illegal) || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s %s: %v", tc.mode, tc.name, err)
		}
		if illegal != nil && (illegal.What == "" || illegal.To == "" || illegal.From == "" && v.Pointer != nil) {
			t.Errorf("%s: %+v does not say what cannot be done", tc.name, illegal)
		}
		if errors.Is(err, ErrForgotten) && !strings.Contains(err.Error(), v.Marks[len(v.Marks)-1].Table) {
			t.Errorf("%s: %v does not name the table", tc.name, err)
		}
		if err == nil || cmp.Diff(Change{}, c) != "" {
			t.Errorf("%s %s: returned the change %+v", tc.mode, tc.name, c)
		}
	}
	for name, at := range map[string]string{ // an entry is missing
		"Switch": tested, "Seal": switched, "Retire": rewrapped, "PreSwitchFailure": minted, "Remint": minted,
	} {
		mode := map[bool]Mode{true: Emergency, false: Normal}[name == "Remint"]
		v := standing(t, mode, at).view(rid)
		v.KEKs = nil
		if _, err := step(name)(v, mode); err == nil || errors.Is(err, ErrDone) {
			t.Errorf("%s without registry entries: %v", name, err)
		}
	}
}

// TestRetireNeedsEveryOld: no old KEK is retired while another of them cannot be.
func TestRetireNeedsEveryOld(t *testing.T) {
	for _, id := range []ID{old, past1, past2} {
		v := standing(t, Normal, string(Rewrapped)).view(rid)
		delete(v.KEKs, id)
		if c, err := v.Retire(rev(v), now, now); err == nil || !strings.Contains(err.Error(), string(id)) || cmp.Diff(Change{}, c) != "" {
			t.Errorf("without the entry of %s: %+v, %v", id, c, err)
		}
	}
}

// TestEmergencyStarts: an emergency is refused where it would wait for somebody, and is
// not refused for a table that was forgotten.
func TestEmergencyStarts(t *testing.T) {
	v := genesis(t).view(rid)
	var illegal *IllegalTransition
	for what, r := range map[string]Rotation{
		"drill":    {ID: rid, Mode: Emergency, Drill: "kms_rotation_failure"},
		"approval": {ID: rid, Mode: Emergency, Approval: true},
	} {
		if c, err := v.Start(r, now); !errors.As(err, &illegal) || cmp.Diff(Change{}, c) != "" ||
			*illegal != (IllegalTransition{What: "emergency rotation " + rid, From: "a drill or one to be approved", To: string(Started)}) {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
		r.Mode = Normal
		if c, err := v.Start(r, now); err != nil || c.Rotation.After.Drill != r.Drill || c.Rotation.After.Approval != r.Approval {
			t.Errorf("%s of a normal rotation: %+v, %v", what, c, err)
		}
	}
	marks("stray")(&v)
	marks("strayer")(&v)
	if _, err := v.Start(Rotation{ID: rid, Mode: Emergency}, now); err != nil {
		t.Errorf("with a forgotten table: %v", err)
	}
	if _, err := v.Start(Rotation{ID: rid, Mode: Normal}, now); !errors.Is(err, ErrForgotten) || !strings.HasSuffix(err.Error(), ": stray, strayer") {
		t.Errorf("not every forgotten table is named: %v", err)
	}
}

// TestStartUnderItsOwnLock: a lock that is the rotation's already is no other's.
func TestStartUnderItsOwnLock(t *testing.T) {
	tab := genesis(t)
	tab.lock = rid
	take(t, tab, Normal, "Start")
}

// TestLookedAtThen: what was concluded from rows counts only for the record as it was
// when they were looked at.
func TestLookedAtThen(t *testing.T) {
	for name, next := range map[string]func(v View, rev int64) (Change, error){
		string(Drained):    func(v View, rev int64) (Change, error) { return v.Rewrap(rev, now) },
		string(Rewrapped):  func(v View, rev int64) (Change, error) { return v.Retire(rev, now, now) },
		string(KEKRetired): func(v View, rev int64) (Change, error) { return v.Complete(rev, now) },
	} {
		tab := standing(t, Normal, name)
		at := rev(tab.view(rid))
		c, err := tab.view(rid).RemoveSource("users", now) // any change of the record
		must(t, tab, c, err)
		for _, other := range []int64{at, at + 2, 0} {
			if c, err := next(tab.view(rid), other); !errors.Is(err, ErrChanged) || cmp.Diff(Change{}, c) != "" {
				t.Errorf("at %s, looked at revision %d of %d: %+v, %v", name, other, at+1, c, err)
			}
		}
		c, err = next(tab.view(rid), at+1)
		must(t, tab, c, err)
		if _, err := next(tab.view(rid), at); !errors.Is(err, ErrDone) { // a late duplicate
			t.Errorf("at %s, once more: %v", name, err)
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

func marks(table string) func(*View) {
	return func(v *View) { v.Marks = append(v.Marks, Mark{Table: table, Holder: "app"}) }
}

func TestGenesis(t *testing.T) {
	tab := genesis(t)
	if k := tab.keks[old]; k.State != Active || !k.CreatedAt.Equal(now) || !k.SwitchedAt.Equal(now) || tab.pointer.Epoch != 1 || tab.lock != "" || tab.fences[old] != "open" {
		t.Errorf("KEK %+v, pointer %+v", k, tab.pointer)
	}
	if tab.registry != 3 || names(tab.view("").Sources) != "orders~0 {}, users~0 {}" {
		t.Errorf("registry at %d, sources %v", tab.registry, tab.sources)
	}
	if _, err := tab.view("").Genesis(KEK{ID: old}, nil, now); !errors.Is(err, ErrDone) {
		t.Errorf("repeated: %v", err)
	}
	var illegal *IllegalTransition
	if _, err := tab.view("").Genesis(KEK{ID: fresh}, nil, now); !errors.As(err, &illegal) || illegal.Error() != `pointer cannot go from "kek-old" to "kek-new"` {
		t.Errorf("with another key: %v", err)
	}
	made := now.Add(-time.Hour)
	c, err := newTable().view("").Genesis(KEK{ID: old, CreatedAt: made, FenceShards: 2}, nil, now)
	if err != nil || !c.KEKs[0].After.CreatedAt.Equal(made) {
		t.Errorf("a key that was made before: %+v, %v", c.KEKs, err)
	}
	if later, err := newTable().view("").GenesisAfter(KEK{ID: old}, nil, 7, now); err != nil || c.Pointer.After.Epoch != 1 || later.Pointer.After.Epoch != 8 {
		t.Errorf("the first epoch is %d, after 7 it is %+v, %v", c.Pointer.After.Epoch, later.Pointer, err)
	}
	if c.Lock != LockIgnore || c.Event != "kek_genesis" || c.Shards != 2 || c.Registry.Before != 0 || c.Rotation != nil {
		t.Errorf("%+v", c)
	}
}

// TestPointerLost: once there is a KEK or a source, a pointer that is gone is no reason
// for another genesis, which would set the epoch back.
func TestPointerLost(t *testing.T) {
	for what, edit := range map[string]func(*View){
		"a registry": func(v *View) { v.KEKs = nil },
		"a KEK":      func(v *View) { v.Registry = 0 },
		"both":       func(*View) {},
	} {
		tab := newTable()
		c, err := tab.view("").Genesis(KEK{ID: old}, nil, now)
		must(t, tab, c, err)
		v := tab.view("")
		v.Pointer = nil
		edit(&v)
		for _, id := range []ID{old, fresh} {
			if c, err := v.Genesis(KEK{ID: id}, nil, now); !errors.Is(err, ErrPointerLost) || cmp.Diff(Change{}, c) != "" {
				t.Errorf("%s: %+v, %v", what, c, err)
			}
		}
	}
}

// TestViewIsNotChanged checks that a transition leaves what was read as it was.
func TestViewIsNotChanged(t *testing.T) {
	for _, s := range steps {
		for _, stand := range stands {
			for _, mode := range []Mode{Normal, Emergency} {
				if stand == string(RolledBack) && mode == Emergency {
					continue
				}
				tab := standing(t, mode, stand)
				v, want := tab.view(rid), tab.view(rid)
				_, _ = s.next(v, mode)
				if diff := cmp.Diff(want, v); diff != "" {
					t.Errorf("%s at %q changed its view:\n%s", s.name, stand, diff)
				}
			}
		}
	}
}
