package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestArchive runs the suite of [rotation.Archive].
func TestArchive(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("Remove", func(t *testing.T) { testRemoveSpent(t, newFixture(newStore(t))) })
	t.Run("Refuse", func(t *testing.T) { testRefuseSpent(t, newFixture(newStore(t))) })
	t.Run("Race", func(t *testing.T) { testRaceSpent(t, newFixture(newStore(t))) })
}

// spend runs a rotation from kek-0 to kek-1, with checkpoints, until it may retire kek-0.
func (f *fixture) spend(t *testing.T) {
	t.Helper()
	f.takeAll(t, genesis())
	f.takeAll(t, toTested(f.id)...)
	f.takeAll(t, switched(), sealed(), rewrap())
	for _, pass := range []string{"census", "rewrap"} {
		for i := range 2 {
			c := rotation.Checkpoint{
				RotationID: f.id, Source: "orders", Pass: pass, Segment: i, Cursor: "cursor", Done: true,
				Tally: rotation.Tally{Scanned: int64(10 + i), ByKEK: map[string]int64{"kek-0": 3}}, SavedAt: f.now(),
			}
			if err := f.Store.SaveCheckpoint(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (f *fixture) spent(t *testing.T) []rotation.SpentItem {
	t.Helper()
	items, err := f.Store.ListSpent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func keysOf(items []rotation.SpentItem) []string {
	out := []string{}
	for _, i := range items {
		out = append(out, i.Key)
	}
	return out
}

// removable are the checkpoints and the fence of kek-0.
func removable(items []rotation.SpentItem) []rotation.SpentItem {
	return slices.DeleteFunc(items, func(i rotation.SpentItem) bool { return i.Checkpoint == nil && i.KEK != "kek-0" })
}

var removed = audit.Event{ID: "archived/1", Type: "control_items_archived", Step: "verify", Body: map[string]string{"what": "was there"}}

func testRemoveSpent(t *testing.T, f *fixture) {
	f.spend(t)
	want := []string{}
	for _, pass := range []string{"census", "rewrap"} {
		want = append(want, "CHECKPOINT#"+f.id+"#orders#"+pass+"/000", "CHECKPOINT#"+f.id+"#orders#"+pass+"/001")
	}
	for _, pk := range []string{"DEKFENCE#", "FENCE#"} {
		for _, id := range []string{"kek-0", "kek-1"} {
			for i := range shards {
				want = append(want, fmt.Sprintf("%s%s/%02d", pk, id, i))
			}
		}
	}
	all := f.spent(t)
	same(t, "what there is", keysOf(all), want)
	for _, i := range all {
		switch {
		case i.Checkpoint != nil:
			loaded, err := f.Store.LoadCheckpoint(t.Context(), f.id, "orders", i.Checkpoint.Pass, i.Checkpoint.Segment)
			if err != nil {
				t.Fatal(err)
			}
			same(t, i.Key, *i.Checkpoint, loaded)
		case i.Open != (i.KEK == "kek-1"):
			t.Errorf("%s: open %v", i.Key, i.Open)
		}
	}
	f.takeAll(t, retired(), completed())
	before := f.dump(t)
	if err := f.Store.RemoveSpent(t.Context(), removable(f.spent(t)), removed); err != nil {
		t.Fatal(err)
	}
	after := f.dump(t)
	same(t, "records", len(after.Entries), len(before.Entries)+1)
	same(t, "record", after.Entries[len(after.Entries)-1].Record.Body, removed.Body)
	same(t, "fence", after.Fences["kek-0"], map[int]string{})
	same(t, "fence of records", after.KeyFences["kek-0"], map[int]string{})
	same(t, "other fences", after.Fences["kek-1"], before.Fences["kek-1"])
	same(t, "other fences of records", after.KeyFences["kek-1"], before.KeyFences["kek-1"])
	same(t, "registry", after.KEKs, before.KEKs)
	same(t, "rotations", after.Rotations, before.Rotations)
	same(t, "what is left", len(f.spent(t)), 2*shards)
	cps, err := f.Store.ListCheckpoints(t.Context(), f.id, "orders", "census")
	if err != nil || len(cps) > 0 {
		t.Errorf("checkpoints are left: %v, %v", cps, err)
	}
}

// testRefuseSpent: a removal is refused as a whole if one of its items is not what was read.
func testRefuseSpent(t *testing.T, f *fixture) {
	f.spend(t)
	refused := func(what string, items []rotation.SpentItem) {
		t.Helper()
		before, there := f.dump(t), keysOf(f.spent(t))
		if err := f.Store.RemoveSpent(t.Context(), items, removed); !errors.Is(err, kek.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", what, err)
		}
		same(t, what+" changed something", f.dump(t), before)
		same(t, what+" removed something", keysOf(f.spent(t)), there)
	}
	refused("the fence of a KEK that is not retired", removable(f.spent(t)))
	f.takeAll(t, retired(), completed(), registerKEK("kek-past"))
	good := removable(f.spent(t))
	of := func(id kek.ID) []rotation.SpentItem {
		return slices.DeleteFunc(f.spent(t), func(i rotation.SpentItem) bool { return i.KEK != id })
	}
	refused("an open fence", append(slices.Clone(good), of("kek-1")...))
	refused("a sealed fence of a KEK that is not retired", append(slices.Clone(good), of("kek-past")...))
	stale := slices.Clone(good)
	older := *stale[0].Checkpoint
	older.Rev--
	stale[0].Checkpoint = &older
	refused("a checkpoint of another revision", stale)
	if err := f.Store.RemoveSpent(t.Context(), good, removed); err != nil {
		t.Fatal(err)
	}
	refused("what is gone", good)
	refused("a checkpoint that is gone", good[:1])
	refused("a shard that is gone", good[len(good)-1:])

	// A worker that wakes up saves nothing over what it has read. One that has read nothing
	// makes an item again, which is listed again.
	c := *good[0].Checkpoint
	if err := f.Store.SaveCheckpoint(t.Context(), c); !errors.Is(err, kek.ErrConflict) {
		t.Errorf("a stale save: %v, want ErrConflict", err)
	}
	c.Rev = 0
	if err := f.Store.SaveCheckpoint(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	same(t, "saved again", f.spent(t)[0].Key, good[0].Key)
}

func testRaceSpent(t *testing.T, f *fixture) {
	f.spend(t)
	f.takeAll(t, retired(), completed())
	before := len(f.dump(t).Entries)
	items := removable(f.spent(t))
	errs := race(func(int) error { return f.Store.RemoveSpent(t.Context(), items, removed) })
	same(t, "winners", winners(t, errs), 1)
	same(t, "records", len(f.dump(t).Entries), before+1)
}
