package memstore_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// TestCloneKeyUse: what is done to a key or with it in a world, or in its clone, is not
// seen in the other one, whoever comes first.
func TestCloneKeyUse(t *testing.T) {
	ctx := t.Context()
	w := memstore.New("chain", storetest.Clock())
	key, err := w.KMS().Create(ctx, "r1", 1, "q", keyring.Key{Multi: true})
	if err != nil {
		t.Fatal(err)
	}
	use := func(w *memstore.World) keyring.Use {
		t.Helper()
		use, err := w.KMS().Use(ctx, key.ID)
		if err != nil {
			t.Fatal(err)
		}
		return use
	}
	change := func(w *memstore.World, name string) {
		t.Helper()
		kms := w.KMS()
		kms.AddGrant(key.ID, name)
		kms.AddAlias(key.ID, name)
		kms.SetMultiRegion(key.ID, name)
		kms.SetPolicy(key.ID, name)
		if _, _, err := kms.GenerateDataKey(ctx, key.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c"} { // slices get room to spare
		change(w, name)
	}
	clone := w.Clone(storetest.Clock())
	before := use(w)
	if d := cmp.Diff(before, use(clone)); d != "" {
		t.Fatalf("the clone (-world +clone):\n%s", d)
	}
	change(clone, "of the clone")
	if d := cmp.Diff(before, use(w)); d != "" {
		t.Errorf("a change of the clone shows in the world (-want +got):\n%s", d)
	}
	changed := use(clone)
	change(w, "of the world")
	if d := cmp.Diff(changed, use(clone)); d != "" {
		t.Errorf("a change of the world shows in the clone (-want +got):\n%s", d)
	}
}

// TestKeyUseIsAnnounced: questions about keys can fail like any other call, and what
// somebody else does to a key is seen like what the steps do.
func TestKeyUseIsAnnounced(t *testing.T) {
	ctx := t.Context()
	w := memstore.New("chain", storetest.Clock())
	kms := w.KMS()
	key, err := kms.Create(ctx, "r1", 1, "q", keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	_, wrapped, err := kms.GenerateDataKey(ctx, key.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	var hooked, seen []string
	w.SetObserver(func(_, op string, _ any, _ error, args ...any) {
		seen = append(seen, op)
		if op == "KMS.Identify" {
			return
		}
		if args[0] != key.ID {
			t.Errorf("%s of %v, want %s", op, args[0], key.ID)
		}
	})
	lost := errors.New("answer lost")
	w.SetHook(func(op string, _ ...any) (bool, error) {
		hooked = append(hooked, op)
		return true, lost
	})
	if use, err := kms.Use(ctx, key.ID); !errors.Is(err, lost) || !cmp.Equal(use, keyring.Use{}) {
		t.Errorf("Use whose answer is lost: %+v, %v", use, err)
	}
	if id, arn, err := kms.Identify(ctx, wrapped, nil); !errors.Is(err, lost) || id != "" || arn != "" {
		t.Errorf("Identify whose answer is lost: %q, %q, %v", id, arn, err)
	}
	kms.AddGrant(key.ID, "g")
	kms.AddAlias(key.ID, "a")
	kms.SetMultiRegion(key.ID, "r")
	kms.SetPolicy(key.ID, "p")
	if d := cmp.Diff([]string{"KMS.Use", "KMS.Identify"}, hooked); d != "" {
		t.Errorf("hooked (-want +got):\n%s", d)
	}
	want := []string{"KMS.Use", "KMS.Identify", "KMS.AddGrant", "KMS.AddAlias", "KMS.SetMultiRegion", "KMS.SetPolicy"}
	if d := cmp.Diff(want, seen); d != "" {
		t.Errorf("observed (-want +got):\n%s", d)
	}
}
