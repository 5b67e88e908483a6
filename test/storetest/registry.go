package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// TestRegistry runs the suite of [journal.Registry] and what hangs on it.
func TestRegistry(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("Empty", func(t *testing.T) { testEmpty(t, newFixture(newStore(t))) })
	for name, steps := range walks() {
		t.Run("Walk/"+name, func(t *testing.T) { testWalk(t, newFixture(newStore(t)), steps) })
	}
	t.Run("LoadAll", func(t *testing.T) { testLoadAll(t, newFixture(newStore(t))) })
	for name, steps := range takenOver() {
		t.Run("TakeOver/"+name, func(t *testing.T) { testTakeOver(t, newFixture(newStore(t)), steps) })
	}
	t.Run("Shut", func(t *testing.T) { testShut(t, newFixture(newStore(t))) })
	t.Run("Lock", func(t *testing.T) { testLock(t, newFixture(newStore(t))) })
	t.Run("Fences", func(t *testing.T) { testFences(t, newFixture(newStore(t))) })
	t.Run("RecordsOnly", func(t *testing.T) { testRecordsOnly(t, newFixture(newStore(t))) })
	t.Run("OldFence", func(t *testing.T) { testOldFence(t, newFixture(newStore(t))) })
	t.Run("RaceSwitch", func(t *testing.T) { testRaceSwitch(t, newFixture(newStore(t))) })
	t.Run("RaceStart", func(t *testing.T) { testRaceStart(t, newFixture(newStore(t))) })
	t.Run("RaceAddSource", func(t *testing.T) { testRaceAddSource(t, newFixture(newStore(t))) })
	t.Run("RaceStartAddSource", func(t *testing.T) { testRaceStartAddSource(t, newFixture(newStore(t))) })
	t.Run("RaceRecord", func(t *testing.T) { testRaceRecord(t, newFixture(newStore(t))) })
	t.Run("RaceSwitchAndRecord", func(t *testing.T) { testRaceSwitchAndRecord(t, newFixture(newStore(t))) })
	t.Run("Listings", func(t *testing.T) { testListings(t, newFixture(newStore(t))) })
}

func testEmpty(t *testing.T, f *fixture) {
	for _, id := range []string{"", "no-such-rotation"} {
		v, err := f.Store.Load(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "view of an empty table", v, kek.View{})
		if v, err = f.Store.LoadAll(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		same(t, "whole view of an empty table", v, kek.View{})
	}
	same(t, "head", len(f.chain(t)), 0)
	if _, err := f.Data.Pointer(t.Context()); !errors.Is(err, kek.ErrNoPointer) {
		t.Errorf("Pointer: %v, want ErrNoPointer", err)
	}
	state, err := f.Data.KEKState(t.Context(), "kek-unknown")
	if err != nil || state != "" {
		t.Errorf("state of an unknown KEK: %q, %v", state, err)
	}
}

// testWalk makes every step of a walk; before each it tries the step with each
// condition wrong, after each it tries it again.
func testWalk(t *testing.T, f *fixture, steps []step) {
	f.fenceElsewhere(t)
	for n, s := range steps {
		if s.prepare != nil {
			s.prepare(t, f)
		}
		before := f.dump(t)
		c, err := s.next(before.All, f.now())
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		for _, m := range mutants(c) {
			f.refused(t, s.name+" with "+m.name, m.change, before)
		}
		if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		after := f.dump(t)
		f.written(t, s.name, c, before, after)
		f.refused(t, s.name+" again", c, after)
		if _, err := s.next(after.All, f.now()); !errors.Is(err, kek.ErrDone) {
			t.Fatalf("%s from what is now stored: %v, want ErrDone", s.name, err)
		}
		same(t, "records", len(f.chain(t)), n+2)
	}
}

// fenceElsewhere makes a KEK kek-fenced whose fences are open, by way of a rotation
// that was long ago; it costs one audit record.
func (f *fixture) fenceElsewhere(t *testing.T) {
	t.Helper()
	c := kek.Change{Lock: kek.LockIgnore, Opens: "kek-fenced", OpensRecords: "kek-fenced", Shards: shards + 1, Event: "long_ago"}
	if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
		t.Fatal(err)
	}
}

// refused checks that a change is a conflict that leaves everything as it was.
func (f *fixture) refused(t *testing.T, what string, c kek.Change, before dump) {
	t.Helper()
	if err := f.Store.Apply(t.Context(), c, f.event(c)); !errors.Is(err, kek.ErrConflict) {
		t.Fatalf("%s: %v, want ErrConflict", what, err)
	}
	same(t, what+" changed something", f.dump(t), before)
}

// written checks that a change was written whole.
func (f *fixture) written(t *testing.T, what string, c kek.Change, before, after dump) {
	t.Helper()
	want := before.All
	want.KEKs = maps.Clone(want.KEKs)
	if c.Rotation != nil {
		r := c.Rotation.After
		r.Sources = slices.Clone(r.Sources)
		for i := range r.Sources { // the registry has these, the record does not
			r.Sources[i].AddedAt, r.Sources[i].AddedBy = time.Time{}, ""
		}
		want.Rotation = &r
	}
	if c.Pointer != nil {
		want.Pointer = &c.Pointer.After
	}
	for _, m := range c.KEKs {
		want.KEKs[m.After.ID] = m.After
	}
	switch c.Lock {
	case kek.LockTake, kek.LockHold:
		want.Lock = f.id
	case kek.LockTakeOver:
		want.Lock, want.Holder = f.id, nil
	case kek.LockRelease, kek.LockFree:
		want.Lock = ""
	case kek.LockIgnore:
	}
	registered(&want, c)
	same(t, what+", the whole registry", after.All, want)
	want.Registry, want.Sources, want.Marks, want.Holder = 0, nil, nil, nil
	for id := range want.KEKs { // a view has those alone that are named
		named := want.Pointer != nil && want.Pointer.KEKID == id ||
			want.Rotation != nil && (want.Rotation.OldKEK == id || want.Rotation.NewKEK == id || slices.Contains(want.Rotation.Olds, id))
		if !named {
			delete(want.KEKs, id)
		}
	}
	same(t, what, after.View, want)
	same(t, what+": records", len(after.Entries), len(before.Entries)+1)
	last := after.Entries[len(after.Entries)-1].Record
	got := audit.Event{ID: last.ID, Type: last.Type, Rotation: last.Rotation, Step: last.Step, Actor: last.Actor, Body: last.Body}
	same(t, what+": record", got, f.event(c))
	if c.Opens != "" {
		same(t, what+": fence", after.Fences[c.Opens], fence("open"))
	}
	if c.OpensRecords != "" {
		same(t, what+": fence of records", after.KeyFences[c.OpensRecords], fence("open"))
	}
	if c.Shuts != "" {
		same(t, what+": fence", after.Fences[c.Shuts], fence("sealed"))
		same(t, what+": fence of records", after.KeyFences[c.Shuts], fence("sealed"))
	}
	f.dataPlane(t, after.View)
}

// registered makes a change of the registry in a view.
func registered(v *kek.View, c kek.Change) {
	m := c.Registry
	if m == nil {
		return
	}
	v.Registry++
	v.Sources = slices.DeleteFunc(slices.Clone(v.Sources), func(s kek.Source) bool {
		return s.Name == m.Remove || slices.ContainsFunc(m.Put, func(p kek.Source) bool { return p.Name == s.Name })
	})
	v.Sources = append(v.Sources, m.Put...)
	slices.SortFunc(v.Sources, func(a, b kek.Source) int { return cmp.Compare(a.Name, b.Name) })
	v.Marks = slices.DeleteFunc(slices.Clone(v.Marks), func(mark kek.Mark) bool { return mark.Table == m.Forget })
}

// dataPlane checks that the data plane reads what the control plane does.
func (f *fixture) dataPlane(t *testing.T, v kek.View) {
	t.Helper()
	p, err := f.Data.Pointer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the data plane's pointer", &p, v.Pointer)
	for id, k := range v.KEKs {
		state, err := f.Data.KEKState(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the data plane's state of "+string(id), state, k.State)
	}
}

// testLoadAll checks which rotation is read, and that marks are read and left.
func testLoadAll(t *testing.T, f *fixture) {
	all := func(id string) kek.View {
		t.Helper()
		v, err := f.Store.LoadAll(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	f.takeAll(t, genesis(), registerKEK("kek-past"))
	late := kek.Mark{Table: "table-orders", Holder: "b", SeenAt: f.now()}
	f.Mark(t, kek.Mark{Table: "table-orders", Holder: "a", SeenAt: f.now()})
	f.Mark(t, kek.Mark{Table: "table-a", Holder: "a"})
	f.Mark(t, late) // over the first
	v := all("")
	same(t, "marks", v.Marks, []kek.Mark{{Table: "table-a", Holder: "a"}, late})
	same(t, "revision after two changes", v.Registry, int64(2))
	if v.Rotation != nil || v.Lock != "" || len(v.KEKs) != 2 {
		t.Errorf("before a rotation: %+v", v)
	}
	f.takeAll(t, removeSource("orders"), forgetMark("table-a"), start(f.id, kek.Normal))
	v = all("") // the rotation that holds the lock
	if v.Rotation == nil || v.Rotation.ID != f.id || v.Lock != f.id || len(v.KEKs) != 2 {
		t.Errorf("during a rotation: %+v", v)
	}
	same(t, "marks of what was removed", v.Marks, []kek.Mark(nil))
	same(t, "with its id", all(f.id), v)
	v.Holder, v.Rotation = v.Rotation, nil
	same(t, "with another id", all("other"), v)
	f.take(t, rollback())
	if v = all(""); v.Rotation != nil || v.Lock != "" {
		t.Errorf("after a rotation: %+v", v)
	}
	if v = all(f.id); v.Rotation == nil || v.Rotation.Phase != kek.RolledBack {
		t.Errorf("one that is over: %+v", v)
	}
}

// testShut: the fence of a KEK that was registered sealed is final: it can be neither
// opened nor shut again, nor can one that is open be shut by a registration.
func testShut(t *testing.T, f *fixture) {
	f.takeAll(t, genesis(), registerKEK("kek-past"))
	if err := f.Store.SealFence(t.Context(), "kek-past", 1); err != nil {
		t.Fatalf("sealing what is sealed: %v", err)
	}
	before := f.dump(t)
	same(t, "fence", before.Fences["kek-past"], fence("sealed"))
	for name, c := range map[string]kek.Change{
		"opened":                {Lock: kek.LockFree, Opens: "kek-past", Shards: shards, Event: "forged"},
		"opened for records":    {Lock: kek.LockFree, OpensRecords: "kek-past", Shards: shards, Event: "forged"},
		"registered again":      {Lock: kek.LockFree, Shuts: "kek-past", Shards: shards, Event: "forged"},
		"the pointer's, sealed": {Lock: kek.LockFree, Shuts: "kek-0", Shards: shards, Event: "forged"},
	} {
		f.refused(t, name, c, before)
	}
}

// testLock checks the lock alone, with every other condition true.
func testLock(t *testing.T, f *fixture) {
	f.takeAll(t, genesis(), start(f.id, kek.Normal))
	mine := f.dump(t)

	// Another rotation that read a free lock comes too late.
	stale := mine.All
	stale.Rotation, stale.Lock = nil, ""
	other, err := start("other", kek.Normal).next(stale, f.now())
	if err != nil {
		t.Fatal(err)
	}
	f.refused(t, "start while another holds the lock", other, mine)

	// Nor does anything come between that needs the lock to be free.
	f.refused(t, "a change beside a rotation that it did not see", kek.Change{Lock: kek.LockFree, Event: "forged"}, mine)

	// A rotation that has given the lock back holds nothing.
	f.take(t, rollback())
	free := f.dump(t)
	for name, op := range map[string]kek.LockOp{"hold": kek.LockHold, "release": kek.LockRelease} {
		after := *free.View.Rotation
		after.Rev++
		c := kek.Change{Rotation: &kek.RotationMove{Before: free.View.Rotation, After: after}, Lock: op, Event: "forged"}
		f.refused(t, name+" a lock that is free", c, free)
	}

	// And less when another has taken it.
	f.id = "other"
	f.take(t, start("other", kek.Normal))
	taken := f.dump(t)
	for name, op := range map[string]kek.LockOp{"hold": kek.LockHold, "release": kek.LockRelease, "take": kek.LockTake} {
		after := *free.View.Rotation
		after.Rev++
		c := kek.Change{Rotation: &kek.RotationMove{Before: free.View.Rotation, After: after}, Lock: op, Event: "forged"}
		f.refused(t, name+" a lock that another has", c, taken)
	}

	// The lock may be taken again by whom it belongs to.
	after := *taken.View.Rotation
	after.Rev++
	c := kek.Change{Rotation: &kek.RotationMove{Before: taken.View.Rotation, After: after}, Lock: kek.LockTake, Event: "again"}
	if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
		t.Fatal(err)
	}
}

// testFences checks that a sealed shard is final.
func testFences(t *testing.T, f *fixture) {
	f.takeAll(t, append([]step{genesis()}, toTested(f.id)...)...)
	if err := f.Store.SealFence(t.Context(), "kek-1", 2); err != nil {
		t.Fatal(err)
	}
	before := f.dump(t)
	c, err := before.View.Switch(f.now())
	if err != nil {
		t.Fatal(err)
	}
	f.refused(t, "opening a fence with one shard sealed", c, before)
	same(t, "fence", before.Fences["kek-1"], map[int]string{2: "sealed"})
	same(t, "fence of records", before.KeyFences["kek-1"], map[int]string{2: "sealed"})
	c.Opens = ""
	f.refused(t, "opening a fence of records with one shard sealed", c, before)
	c.OpensRecords = ""
	if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
		t.Fatal(err)
	}

	// The seal wants every shard sealed, one missing is enough to refuse.
	for i := range shards {
		before := f.dump(t)
		c, err := before.View.Seal(f.now())
		if err != nil {
			t.Fatal(err)
		}
		f.refused(t, fmt.Sprintf("seal with %d shards sealed", i), c, before)
		for range 2 {
			if err := f.Store.SealFence(t.Context(), "kek-0", i); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.take(t, step{name: "seal", next: kek.View.Seal})
	after := f.dump(t)
	same(t, "fence", after.Fences["kek-0"], fence("sealed"))
	same(t, "fence of records", after.KeyFences["kek-0"], fence("sealed"))
}

// testOldFence: a KEK from before the key table has no fence of records, and is left all the
// same: the seal makes one that is shut.
func testOldFence(t *testing.T, f *fixture) {
	first := genesis().next
	f.take(t, step{name: "genesis", next: func(v kek.View, now time.Time) (kek.Change, error) {
		c, err := first(v, now)
		c.OpensRecords = ""
		return c, err
	}})
	same(t, "fence of records", f.dump(t).KeyFences["kek-0"], map[int]string{})
	f.takeAll(t, append(toTested(f.id), switched(), sealed())...)
	same(t, "fence of records", f.dump(t).KeyFences, map[kek.ID]map[int]string{"kek-0": fence("sealed"), "kek-1": fence("open")})
}

// testRecordsOnly: a switch that opens the fence of records alone says so in the registry, and
// the record of the rotation that leaves that KEK keeps it.
func testRecordsOnly(t *testing.T, f *fixture) {
	f.takeAll(t, append([]step{genesis()}, toTested(f.id)...)...)
	f.take(t, step{name: "switch", next: func(v kek.View, now time.Time) (kek.Change, error) {
		c, err := v.Switch(now)
		return c.TakeNoRows(), err
	}})
	d := f.dump(t)
	same(t, "fences of rows", d.Fences, map[kek.ID]map[int]string{"kek-0": fence("open"), "kek-1": {}})
	same(t, "fences of records", d.KeyFences, map[kek.ID]map[int]string{"kek-0": fence("open"), "kek-1": fence("open")})
	if !d.All.KEKs["kek-1"].RecordsOnly || d.All.KEKs["kek-0"].RecordsOnly || d.All.Rotation.RecordsOnly {
		t.Errorf("%+v, %+v", d.All.KEKs, d.All.Rotation)
	}
	f.takeAll(t, sealed(), rewrap(), retired(), completed())
	f.id = "next"
	f.take(t, start("next", kek.Normal))
	if d := f.dump(t); !d.All.Rotation.RecordsOnly {
		t.Errorf("%+v", d.All.Rotation)
	}
}

// testListings checks order and content of what people are shown.
func testListings(t *testing.T, f *fixture) {
	f.takeAll(t, append(walks()["emergency"], step{name: "next", next: func(v kek.View, now time.Time) (kek.Change, error) {
		v.Rotation = nil
		return start("AAA-later", kek.Normal).next(v, now)
	}})...)
	keks, err := f.Store.KEKs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[kek.ID]kek.State{}
	for _, k := range keks {
		got[k.ID] = k.State
	}
	same(t, "KEKs", got, map[kek.ID]kek.State{"kek-0": kek.Retired, "kek-1": kek.Retired, "kek-2": kek.Retired, "kek-3": kek.Active})
	if keks[0].ID != "kek-0" || keks[3].ID != "kek-3" {
		t.Errorf("KEKs are not oldest first: %v", keks)
	}
	rotations, err := f.Store.Rotations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(rotations) != 2 || rotations[0].ID != f.id || rotations[1].ID != "AAA-later" {
		t.Errorf("rotations are not oldest first: %v", rotations)
	}
	same(t, "probes", rotations[0].Probes, map[kek.ID][]byte{"kek-0": []byte("probe\x00 under kek-0")})
}
