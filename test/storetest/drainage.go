package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestDrainage runs the suite of the leases: [rotation.Drainage] and what the data
// plane does to its own leases. The fence is in [TestRegistry].
func TestDrainage(t *testing.T, newStore func(t *testing.T) RegistryHarness) {
	t.Run("Leases", func(t *testing.T) { testLeases(t, newStore(t)) })
	t.Run("Revoke", func(t *testing.T) { testRevoke(t, newStore(t)) })
	t.Run("RaceRenewRevoke", func(t *testing.T) { testRaceRenewRevoke(t, newStore(t)) })
}

func lease(id kek.ID, holder string, expires time.Time) rotation.Lease {
	return rotation.Lease{KEK: id, Holder: holder, Host: "host-" + holder, PID: 42, Refs: 3, Expires: expires}
}

func (h RegistryHarness) leases(t *testing.T, id kek.ID) []rotation.Lease {
	t.Helper()
	out, err := h.Store.Leases(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h RegistryHarness) putLease(t *testing.T, l rotation.Lease) {
	t.Helper()
	if err := h.Data.PutLease(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

func testLeases(t *testing.T, h RegistryHarness) {
	now := Clock()()
	same(t, "leases of nobody", h.leases(t, "kek-1"), []rotation.Lease{})
	b, a, other := lease("kek-1", "b", now), lease("kek-1", "a", now.Add(time.Millisecond)), lease("kek-10", "a", now)
	for _, l := range []rotation.Lease{b, a, other} {
		h.putLease(t, l)
	}
	same(t, "leases in order", h.leases(t, "kek-1"), []rotation.Lease{a, b})
	same(t, "leases of the other KEK", h.leases(t, "kek-10"), []rotation.Lease{other})

	a.Refs, a.Expires = 0, now.Add(time.Minute)
	if ok, err := h.Data.RenewLease(t.Context(), a); err != nil || !ok {
		t.Fatalf("renew: %v, %v", ok, err)
	}
	same(t, "leases renewed", h.leases(t, "kek-1"), []rotation.Lease{a, b})

	for range 2 {
		if err := h.Data.DropLease(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "leases dropped", h.leases(t, "kek-1"), []rotation.Lease{b})
	if ok, err := h.Data.RenewLease(t.Context(), a); err != nil || ok {
		t.Fatalf("renew of a dropped lease: %v, %v, want false", ok, err)
	}
	same(t, "renewing does not bring back", h.leases(t, "kek-1"), []rotation.Lease{b})
}

func testRevoke(t *testing.T, h RegistryHarness) {
	seen := lease("kek-1", "a", Clock()())
	h.putLease(t, seen)
	renewed := seen
	renewed.Expires = seen.Expires.Add(time.Millisecond)
	if ok, err := h.Data.RenewLease(t.Context(), renewed); err != nil || !ok {
		t.Fatalf("renew: %v, %v", ok, err)
	}
	revoke := func(what string, l rotation.Lease, want bool) {
		t.Helper()
		if ok, err := h.Store.Revoke(t.Context(), l); err != nil || ok != want {
			t.Fatalf("revoke %s: %v, %v, want %v", what, ok, err, want)
		}
	}
	revoke("a lease renewed meanwhile", seen, false)
	same(t, "leases", h.leases(t, "kek-1"), []rotation.Lease{renewed})
	revoke("a lease as it is", renewed, true)
	same(t, "leases", h.leases(t, "kek-1"), []rotation.Lease{})
	revoke("a lease that is gone", renewed, false)
	if ok, err := h.Data.RenewLease(t.Context(), renewed); err != nil || ok {
		t.Fatalf("renew of a revoked lease: %v, %v, want false", ok, err)
	}
	same(t, "leases", h.leases(t, "kek-1"), []rotation.Lease{})
}

// testRaceRenewRevoke: of a renewal and a revocation exactly one succeeds.
func testRaceRenewRevoke(t *testing.T, h RegistryHarness) {
	for n := range 20 {
		old := lease("kek-1", fmt.Sprintf("holder-%02d", n), Clock()())
		h.putLease(t, old)
		renewed := old
		renewed.Expires = old.Expires.Add(time.Minute)
		var kept, revoked bool
		var errRenew, errRevoke error
		var wg sync.WaitGroup
		wg.Go(func() { kept, errRenew = h.Data.RenewLease(t.Context(), renewed) })
		wg.Go(func() { revoked, errRevoke = h.Store.Revoke(t.Context(), old) })
		wg.Wait()
		if errRenew != nil || errRevoke != nil || kept == revoked {
			t.Fatalf("renewed %v (%v), revoked %v (%v)", kept, errRenew, revoked, errRevoke)
		}
		if got := len(h.leases(t, "kek-1")); (got == 1) != kept {
			t.Fatalf("renewed %v, %d leases", kept, got)
		}
		if err := h.Data.DropLease(t.Context(), old); err != nil {
			t.Fatal(err)
		}
	}
}
