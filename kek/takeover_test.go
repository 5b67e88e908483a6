package kek

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const eid = "emergency-1"

// takeOver begins an emergency over what holds the lock.
func takeOver(tab *table, id string, again bool) (Change, error) {
	return tab.view(id).TakeOver(Rotation{ID: id, Mode: Emergency, Reason: "stolen"}, again, now)
}

// finish takes a rotation from its start to completed.
func finish(t *testing.T, tab *table, id string, key ID) {
	t.Helper()
	for tab.rotations[id].Phase != Completed {
		v := tab.view(id)
		for _, old := range v.Draining() {
			tab.fences[old] = "sealed"
		}
		c, err := map[Phase]func() (Change, error){
			Started:    func() (Change, error) { return v.Mint(KEK{ID: key, FenceShards: 2}, now) },
			Tested:     func() (Change, error) { return v.Switch(now) },
			Switched:   func() (Change, error) { return v.Seal(now) },
			Drained:    func() (Change, error) { return v.Rewrap(rev(v), now) },
			Rewrapped:  func() (Change, error) { return v.Retire(rev(v), now, now) },
			KEKRetired: func() (Change, error) { return v.Complete(rev(v), now) },
			Minted: func() (Change, error) {
				if v.Rotation.Rehearsed == "" {
					return v.Rehearse(now)
				}
				return v.Test(nil, now)
			},
		}[v.Rotation.Phase]()
		must(t, tab, c, err)
	}
}

// TestTakeOver begins an emergency at every stand of a normal rotation, and brings it to
// its end. An emergency always starts (design 9.2).
func TestTakeOver(t *testing.T) {
	for _, tc := range []struct {
		at       string
		ends     Phase
		olds     []ID
		leftover []ID
	}{
		{started, RolledBack, []ID{old, past1, past2}, nil},
		{counted, RolledBack, []ID{old, past1, past2}, nil},
		{minted, RolledBack, []ID{old, past1, past2}, []ID{fresh}},
		{rehearsed, RolledBack, []ID{old, past1, past2}, []ID{fresh}},
		{string(Tested), RolledBack, []ID{old, past1, past2}, []ID{fresh}},
		{string(Switched), Superseded, []ID{fresh, past1, old, past2}, nil},
		{string(Drained), Superseded, []ID{fresh, past1, old, past2}, nil},
		{string(Rewrapped), Superseded, []ID{fresh, past1, old, past2}, nil},
		{string(KEKRetired), Superseded, []ID{fresh}, []ID{old, past1, past2}},
	} {
		tab := standing(t, Normal, tc.at)
		was := tab.rotations[rid]
		c, err := takeOver(tab, eid, false)
		must(t, tab, c, err)
		r, ended := tab.rotations[eid], tab.rotations[rid]
		if diff := cmp.Diff(tc.olds, r.Olds); diff != "" || r.Phase != Started || r.Mode != Emergency || tab.lock != eid {
			t.Errorf("at %q: %+v, lock %s\n%s", tc.at, r, tab.lock, diff)
		}
		if diff := cmp.Diff(tc.leftover, r.Leftover); diff != "" || !cmp.Equal(r.TookOver, []string{rid}) {
			t.Errorf("at %q took over %v, leftover:\n%s", tc.at, r.TookOver, diff)
		}
		if ended.Phase != tc.ends || ended.EndedBy != eid || ended.Err == "" || ended.Rev != was.Rev+1 || ended.Mode != Normal {
			t.Errorf("at %q the other is %+v", tc.at, ended)
		}
		if k, minted := tab.keks[fresh]; minted && was.Phase.PreSwitch() && (k.State != Retired || k.Reason == "") {
			t.Errorf("at %q its new KEK is %+v", tc.at, k)
		}
		if _, err := takeOver(tab, eid, false); !errors.Is(err, ErrDone) {
			t.Errorf("at %q, again: %v", tc.at, err)
		}
		for _, s := range steps[1:13] { // nothing of the other one's goes on
			c, err := s.next(tab.view(rid), Normal)
			if s.name == "PreSwitchFailure" && tc.ends == RolledBack {
				if !errors.Is(err, ErrDone) {
					t.Errorf("at %q, PreSwitchFailure of the other: %v", tc.at, err)
				}
				continue
			}
			var illegal *IllegalTransition // what is over cannot be resumed
			if s.name == "Resume" && !errors.As(err, &illegal) || s.name != "Resume" && (!errors.Is(err, ErrSuperseded) || !strings.Contains(err.Error(), "by "+eid)) || c.Rotation != nil {
				t.Errorf("at %q, %s of the other: %v", tc.at, s.name, err)
			}
		}
		finish(t, tab, eid, "kek-emergency")
		for id, k := range tab.keks {
			if want := map[bool]State{true: Active, false: Retired}[id == "kek-emergency"]; k.State != want {
				t.Errorf("at %q: %s is %s in the end", tc.at, id, k.State)
			}
		}
	}
}

// TestTakeOverEmergency: a second emergency ends the first only if it is asked to, so that
// a double click does not.
func TestTakeOverEmergency(t *testing.T) {
	for _, at := range []string{rehearsed, string(Switched), string(KEKRetired)} {
		tab := standing(t, Emergency, at)
		if _, err := takeOver(tab, eid, false); !errors.Is(err, ErrEmergencyRuns) {
			t.Errorf("at %s: %v", at, err)
		}
		c, err := takeOver(tab, eid, true)
		must(t, tab, c, err)
		if r := tab.rotations[rid]; r.Phase != Superseded {
			t.Errorf("at %s the other is %s", at, r.Phase)
		}
		c, err = takeOver(tab, "emergency-2", true)
		must(t, tab, c, err)
		r := tab.rotations["emergency-2"]
		if !cmp.Equal(r.TookOver, []string{eid, rid}) {
			t.Errorf("at %s it took over %v", at, r.TookOver)
		}
		if at == string(KEKRetired) && !cmp.Equal(r.Leftover, []ID{old, past1, past2}) {
			t.Errorf("leftover %v", r.Leftover)
		}
		finish(t, tab, "emergency-2", "kek-emergency")
	}
}

// TestTakeOverWithoutRecord: a lock whose rotation's record is lost stops no emergency.
func TestTakeOverWithoutRecord(t *testing.T) {
	tab := genesis(t)
	tab.lock = "lost"
	c, err := takeOver(tab, eid, false)
	if c.Lock != LockTakeOver || c.From != "lost" || c.Ends != nil {
		t.Errorf("%+v", c)
	}
	tab.rotations["lost"] = Rotation{ID: "lost", Phase: Started} // it comes back meanwhile
	if err := tab.apply(c); !errors.Is(err, ErrConflict) {
		t.Errorf("over a record that it did not see: %v", err)
	}
	delete(tab.rotations, "lost")
	must(t, tab, c, err)
	finish(t, tab, eid, "kek-emergency")
}

// TestTakeOverOfItself: an emergency that finds its own lock without its record starts, and
// ends nothing.
func TestTakeOverOfItself(t *testing.T) {
	tab := genesis(t)
	tab.lock = eid
	c, err := takeOver(tab, eid, false)
	must(t, tab, c, err)
	if c.Lock != LockTake || c.From != "" || c.Ends != nil || c.Event != "rotation_started" || c.Rotation.After.TookOver != nil {
		t.Errorf("%+v", c)
	}
}

// TestTakeOverOfWhatEnded: a rotation that is over and still has the lock stays what it
// is, and one whose record is not the lock's is not touched.
func TestTakeOverOfWhatEnded(t *testing.T) {
	for _, p := range []Phase{Completed, RolledBack, Superseded} {
		tab := standing(t, Normal, string(Switched))
		r := tab.rotations[rid]
		r.Phase, r.Leftover, r.TookOver = p, []ID{"kek-left"}, []string{"first"}
		tab.rotations[rid] = r
		c, err := takeOver(tab, eid, false)
		must(t, tab, c, err)
		after := c.Rotation.After
		if c.Ends.After.Phase != p || c.KEKs != nil || !cmp.Equal(after.Leftover, []ID{"kek-left"}) || !cmp.Equal(after.TookOver, []string{rid, "first"}) {
			t.Errorf("%s: %+v", p, c)
		}
	}
	tab := standing(t, Normal, string(Switched))
	v := tab.view(eid)
	v.Holder.ID = "another"
	c, err := v.TakeOver(Rotation{ID: eid, Mode: Emergency}, false, now)
	if err != nil || c.Ends != nil || c.From != rid || !cmp.Equal(c.Rotation.After.TookOver, []string{rid}) || c.Event != "emergency_took_over" {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestTakeOverRefused: what refuses a start refuses a takeover, and what cannot end the
// other one does too; nothing is changed.
func TestTakeOverRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(v *View)
		want string
	}{
		"no pointer":                  {func(v *View) { v.Pointer = nil }, ErrNoPointer.Error()},
		"the other's new KEK is lost": {func(v *View) { delete(v.KEKs, fresh) }, string(fresh)},
		"another emergency":           {func(v *View) { v.Holder.Mode = Emergency }, ErrEmergencyRuns.Error() + ": " + rid},
	} {
		v := standing(t, Normal, string(Tested)).view(eid)
		tc.edit(&v)
		c, err := v.TakeOver(Rotation{ID: eid, Mode: Emergency}, false, now)
		if err == nil || !strings.Contains(err.Error(), tc.want) || cmp.Diff(Change{}, c) != "" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	v := standing(t, Normal, string(Tested)).view(eid)
	v.Rotation = &Rotation{ID: eid} // it has started already
	if c, err := v.TakeOver(Rotation{ID: eid, Mode: Emergency}, false, now); !errors.Is(err, ErrDone) || cmp.Diff(Change{}, c) != "" {
		t.Errorf("again: %+v, %v", c, err)
	}
}

// TestTakeOverConditions: it is written on condition of what it read.
func TestTakeOverConditions(t *testing.T) {
	for name, spoil := range map[string]func(*table){
		"the other went on":     func(tab *table) { take(t, tab, Normal, "Switch") },
		"the other was resumed": func(tab *table) { take(t, tab, Normal, "Resume") },
		"the lock is another's": func(tab *table) { tab.lock = "third" },
		"the lock is free":      func(tab *table) { tab.lock = "" },
		"a source was added":    func(tab *table) { tab.registry++ },
		"the pointer moved":     func(tab *table) { tab.pointer.Epoch++ },
	} {
		tab := standing(t, Normal, string(Tested))
		c, err := takeOver(tab, eid, false)
		if err != nil {
			t.Fatal(err)
		}
		spoil(tab)
		if err := tab.apply(c); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	tab := standing(t, Normal, string(Tested))
	if _, err := tab.view(eid).TakeOver(Rotation{ID: eid, Mode: Normal}, true, now); !errors.Is(err, ErrLocked) {
		t.Errorf("a normal rotation takes over: %v", err)
	}
	tab = genesis(t)
	c, err := takeOver(tab, eid, false)
	if must(t, tab, c, err); c.Lock != LockTake || c.Event != "rotation_started" {
		t.Errorf("with a free lock: %+v", c)
	}
}
