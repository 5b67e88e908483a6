package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// TestRegistry runs the suite of [rotation.Registry] and what hangs on it.
func TestRegistry(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("Empty", func(t *testing.T) { testEmpty(t, newFixture(newStore(t))) })
	for name, steps := range walks() {
		t.Run("Walk/"+name, func(t *testing.T) { testWalk(t, newFixture(newStore(t)), steps) })
	}
	t.Run("Lock", func(t *testing.T) { testLock(t, newFixture(newStore(t))) })
	t.Run("Fences", func(t *testing.T) { testFences(t, newFixture(newStore(t))) })
	t.Run("RaceSwitch", func(t *testing.T) { testRaceSwitch(t, newFixture(newStore(t))) })
	t.Run("RaceStart", func(t *testing.T) { testRaceStart(t, newFixture(newStore(t))) })
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
		c, err := s.next(before.View, f.now())
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
		if _, err := s.next(after.View, f.now()); !errors.Is(err, kek.ErrDone) {
			t.Fatalf("%s from what is now stored: %v, want ErrDone", s.name, err)
		}
		same(t, "records", len(f.chain(t)), n+2)
	}
}

// fenceElsewhere makes a KEK kek-fenced whose fence is open, by way of a rotation
// that was long ago; it costs one audit record.
func (f *fixture) fenceElsewhere(t *testing.T) {
	t.Helper()
	c := kek.Change{Lock: kek.LockIgnore, Opens: "kek-fenced", Shards: shards + 1, Event: "long_ago"}
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
	want := before.View
	want.KEKs = map[kek.ID]kek.KEK{}
	for _, k := range before.KEKs {
		want.KEKs[k.ID] = k
	}
	if c.Rotation != nil {
		want.Rotation = &c.Rotation.After
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
	case kek.LockRelease:
		want.Lock = ""
	case kek.LockIgnore:
	}
	for id := range want.KEKs { // a view has those alone that are named
		named := want.Pointer != nil && want.Pointer.KEKID == id ||
			want.Rotation != nil && (want.Rotation.OldKEK == id || want.Rotation.NewKEK == id)
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
	f.dataPlane(t, after.View)
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

// testLock checks the lock alone, with every other condition true.
func testLock(t *testing.T, f *fixture) {
	f.takeAll(t, genesis(), start(f.id, kek.Normal))
	mine := f.dump(t)

	// Another rotation that read a free lock comes too late.
	stale := mine.View
	stale.Rotation, stale.Lock = nil, ""
	other, err := start("other", kek.Normal).next(stale, f.now())
	if err != nil {
		t.Fatal(err)
	}
	f.refused(t, "start while another holds the lock", other, mine)

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
	f.takeAll(t, genesis(), start(f.id, kek.Normal), mint("kek-1"), tested())
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
	c.Opens = ""
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
	same(t, "fence", f.dump(t).Fences["kek-0"], fence("sealed"))
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
	if d := cmp.Diff(rotations[0].Probes, []byte("probe\x00"), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}
