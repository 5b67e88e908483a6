package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestAnchorStore runs the suite of [anchor.Store]. The store that newStore
// returns is empty.
func TestAnchorStore(t *testing.T, newStore func(t *testing.T) anchor.Store) {
	t.Run("Save", func(t *testing.T) { testSaveAnchor(t, newStore(t)) })
	t.Run("Race", func(t *testing.T) { testRaceAnchor(t, newStore(t)) })
}

func loadAnchor(t *testing.T, s anchor.Store) anchor.State {
	t.Helper()
	st, err := s.LoadAnchor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func anchorIntent(n int64) *audit.Signed {
	head := audit.Head{Seq: 7, Hash: "<hash> & more"}
	return &audit.Signed{
		Statement: audit.NewStatement("c", n, audit.AnchorGenesis("c"), head, Clock()()),
		Key:       []byte{0, 1, 255}, Signature: []byte{254, 0},
	}
}

func testSaveAnchor(t *testing.T, s anchor.Store) {
	same(t, "state of an empty store", loadAnchor(t, s), anchor.State{})
	intent := anchor.State{Intent: anchorIntent(1)}
	if err := s.SaveAnchor(t.Context(), intent); err != nil {
		t.Fatal(err)
	}
	intent.Rev = 1
	same(t, "state with an intent", loadAnchor(t, s), intent)
	done := anchor.State{Rev: 1, Last: anchor.Anchored{
		N: 1, Digest: "d", Head: audit.Head{Seq: 7, Hash: "h"}, Log: "log", Index: 1 << 40, At: Clock()(),
	}}
	if err := s.SaveAnchor(t.Context(), done); err != nil {
		t.Fatal(err)
	}
	for _, rev := range []int64{0, 1, 3} {
		stale := intent
		stale.Rev = rev
		if err := s.SaveAnchor(t.Context(), stale); !errors.Is(err, kek.ErrConflict) {
			t.Errorf("save at revision %d: %v, want ErrConflict", rev, err)
		}
	}
	done.Rev = 2
	same(t, "state with an anchor", loadAnchor(t, s), done)
}

func testRaceAnchor(t *testing.T, s anchor.Store) {
	for rev := range int64(3) {
		won := 0
		for _, err := range race(func(n int) error {
			return s.SaveAnchor(t.Context(), anchor.State{Rev: rev, Intent: anchorIntent(int64(n + 1))})
		}) {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, kek.ErrConflict):
				t.Error(err)
			}
		}
		same(t, "winners", won, 1)
		same(t, "revision", loadAnchor(t, s).Rev, rev+1)
	}
}

// TestAnchorVault runs the suite of [anchor.ObjectStore]. The vault that newVault
// returns is empty.
func TestAnchorVault(t *testing.T, newVault func(t *testing.T) anchor.ObjectStore) {
	v := newVault(t)
	if _, err := v.GetAnchor(t.Context(), audit.AnchorKey("c", 1)); !errors.Is(err, journal.ErrNoRecord) {
		t.Fatalf("get from an empty vault: %v, want ErrNoRecord", err)
	}
	for _, b := range []string{"first", "first", "second"} {
		there, err := v.PutAnchor(t.Context(), audit.AnchorKey("c", 1), []byte(b))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "what is there after the put of "+b, string(there), "first")
	}
	got, err := v.GetAnchor(t.Context(), audit.AnchorKey("c", 1))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "stored bytes", string(got), "first")
	for _, chain := range []string{"c", "d"} {
		if _, err := v.GetAnchor(t.Context(), audit.AnchorKey(chain, 2)); !errors.Is(err, journal.ErrNoRecord) {
			t.Fatalf("get of what was never put: %v, want ErrNoRecord", err)
		}
	}
	testRaceAnchors(t.Context(), t, v)
}

func testRaceAnchors(ctx context.Context, t *testing.T, v anchor.ObjectStore) {
	t.Helper()
	answers := make([]string, racers)
	for _, err := range race(func(n int) error {
		b, err := v.PutAnchor(ctx, audit.AnchorKey("race", 1), fmt.Appendf(nil, "racer %d", n))
		answers[n] = string(b)
		return err
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	stored, err := v.GetAnchor(ctx, audit.AnchorKey("race", 1))
	if err != nil {
		t.Fatal(err)
	}
	for n, a := range answers {
		if a != string(stored) {
			t.Errorf("racer %d was told %q, stored is %q", n, a, stored)
		}
	}
}
