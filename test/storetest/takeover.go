package storetest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

func takeOver(id string) step {
	return step{name: "take over", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.TakeOver(kek.Rotation{
			ID: id, Mode: kek.Emergency, Reason: "stolen", Segments: 3, Settings: kek.Settings{FenceShards: shards, MaxMints: 5},
		}, true, now)
	}}
}

// takenOver are the ways that a rotation has come when an emergency takes over.
func takenOver() map[string][]step {
	normal := append(toTested("other"), switched(), sealed(), rewrap(), retired())
	urgent := []step{start("other", kek.Emergency), mint("kek-1"), rehearsed(), tested(), switched()}
	return map[string][]step{
		"started": normal[:1], "minted": normal[:3], "tested": normal[:5], "switched": normal[:6], "drained": normal[:7], "retired": normal,
		"emergency minted": urgent[:2], "emergency switched": urgent,
	}
}

// testTakeOver lets an emergency take over with each condition wrong and then as it
// should, and finishes it: it seals every KEK that was draining.
func testTakeOver(t *testing.T, f *fixture, before []step) {
	f.id = "other"
	f.takeAll(t, append([]step{genesis(), registerKEK("kek-past")}, before...)...)
	f.id = "emergency"
	was := f.dump(t)
	c, err := takeOver(f.id).next(was.All, f.now())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range append(mutants(c), takeOverMutants(c)...) {
		f.refused(t, "take over with "+m.name, m.change, was)
	}
	if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
		t.Fatal(err)
	}
	after := f.dump(t)
	f.written(t, "take over", c, was, after)
	f.refused(t, "take over again", c, after)
	i := slices.IndexFunc(after.Rotations, func(r kek.Rotation) bool { return r.ID == "other" })
	ended := c.Ends.After
	for i := range ended.Sources { // the registry has these, the record does not
		ended.Sources[i].AddedAt, ended.Sources[i].AddedBy = time.Time{}, ""
	}
	same(t, "the record of the other", after.Rotations[i], ended)
	f.takeAll(t, mint("kek-9"), rehearsed(), tested(), switched())
	draining := f.dump(t).View.Draining()
	for _, id := range draining {
		v := f.dump(t)
		c, err := v.View.Seal(f.now())
		if err != nil || c.Sealed != id {
			t.Fatalf("seal of %s: %v, %v", id, c.Sealed, err)
		}
		f.refused(t, "seal of a fence that is open", c, v)
		for i := range shards {
			if err := f.Store.SealFence(t.Context(), id, i); err != nil {
				t.Fatal(err)
			}
		}
		f.take(t, step{name: "seal", next: kek.View.Seal})
	}
	if phase := f.dump(t).View.Rotation.Phase; phase != kek.Drained {
		t.Fatalf("with %v sealed it is %s", draining, phase)
	}
	f.takeAll(t, rewrap(), retired(), completed())
	for _, k := range f.dump(t).KEKs {
		if want := map[bool]kek.State{true: kek.Active, false: kek.Retired}[k.ID == "kek-9"]; k.State != want {
			t.Errorf("%s is %s, want %s", k.ID, k.State, want)
		}
	}
	if _, err := f.dump(t).View.Seal(f.now()); !errors.Is(err, kek.ErrDone) {
		t.Errorf("sealed again: %v", err)
	}
}

func takeOverMutants(c kek.Change) []mutant {
	phase, rev := *c.Ends.Before, *c.Ends.Before
	phase.Phase = "elsewhere"
	rev.Rev++
	ends := func(before kek.Rotation) kek.Change {
		return with(c, func(c *kek.Change) { c.Ends = &kek.RotationMove{Before: &before, After: c.Ends.After} })
	}
	return []mutant{
		{"another phase of the other", ends(phase)},
		{"another revision of the other", ends(rev)},
		{"no record of the other", with(c, func(c *kek.Change) { c.Ends = nil })},
		{"another holder of the lock", with(c, func(c *kek.Change) { c.From, c.Ends = "third", nil })},
		{"a free lock", with(c, func(c *kek.Change) { c.Lock = kek.LockTake })},
	}
}
