package storetest

import (
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestVault runs the suite of [journal.AuditBucket]. The vault that newVault returns is
// empty and in order.
func TestVault(t *testing.T, newVault func(t *testing.T) journal.AuditBucket) {
	v := newVault(t)
	if err := v.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Get(t.Context(), audit.ObjectKey("c", 1)); !errors.Is(err, journal.ErrNoRecord) {
		t.Fatalf("get from an empty vault: %v, want ErrNoRecord", err)
	}
	now := Clock()
	first, err := audit.Next("c", audit.Genesis("c"), now(), audit.Event{ID: "a", Type: "a"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := audit.Next("c", audit.Genesis("c"), now(), audit.Event{ID: "b", Type: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.Put(t.Context(), audit.ObjectKey("c", 1), first); err != nil {
			t.Fatal(err)
		}
	}
	var taken *audit.Taken
	want := audit.TakenBy(audit.ObjectKey("c", 1), "", first.Bytes)
	if err := v.Put(t.Context(), audit.ObjectKey("c", 1), other); !errors.As(err, &taken) || taken.Key != want.Key || taken.SHA256 != want.SHA256 || taken.Version == "" {
		t.Fatalf("put of other bytes: %v, want %v", err, want)
	}
	got, err := v.Get(t.Context(), audit.ObjectKey("c", 1))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "stored bytes", string(got), string(first.Bytes))
	for _, chain := range []string{"c", "d"} {
		if _, err := v.Get(t.Context(), audit.ObjectKey(chain, 2)); !errors.Is(err, journal.ErrNoRecord) {
			t.Fatalf("get of what was never put: %v, want ErrNoRecord", err)
		}
	}

	errs := race(func(n int) error {
		e, err := audit.Next("race", audit.Genesis("race"), now(), audit.Event{ID: string(rune('a' + n))})
		if err != nil {
			return err
		}
		return v.Put(t.Context(), audit.ObjectKey("race", 1), e)
	})
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.As(err, new(*audit.Taken)):
			t.Error(err)
		}
	}
	same(t, "winners", won, 1)
}
