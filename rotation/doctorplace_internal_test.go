package rotation

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMisplaced: kinds with one sort key, and ids.
func TestMisplaced(t *testing.T) {
	for _, k := range []ItemKind{ItemPointer, ItemLock, ItemRegistry, ItemHead, ItemAnchor, ItemAnnouncement, ItemDrill, ItemApproval, ItemHealth, ItemKEK, ItemRotation} {
		for sk, want := range map[string]bool{noSortKey: false, "": true, "--": true, "00": true} {
			if got := (Item{Key: ItemKey{string(k), sk}, Kind: k, ID: "x"}).misplaced(); got != want {
				t.Errorf("%s/%s: %t, want %t", k, sk, got, want)
			}
		}
		want := k == ItemKEK || k == ItemRotation
		if got := (Item{Key: ItemKey{string(k), noSortKey}, Kind: k}).misplaced(); got != want {
			t.Errorf("%s without an id: %t, want %t", k, got, want)
		}
	}
	for sk, want := range map[string]bool{"000000000001": false, "000000000000": true, "-00000000001": true, "1": true} {
		if got := (Item{Key: ItemKey{"AUDIT", sk}, Kind: ItemRecord}).misplaced(); got != want {
			t.Errorf("AUDIT/%s: %t, want %t", sk, got, want)
		}
	}
	for _, k := range []ItemKind{ItemFence, ItemSource, ItemMark, ItemLease, ItemCheckpoint, ""} {
		if (Item{Key: ItemKey{string(k), "00"}, Kind: k}).misplaced() {
			t.Errorf("%s has a sort key of its own", k)
		}
	}
}

// TestOfKind: of an item under a key that is none of its kind its key is left, and what a
// repair of that key conditions on.
func TestOfKind(t *testing.T) {
	well, odd := itemOf(ItemLock, "", LockItem{"r"}), itemOf(ItemLock, "", LockItem{"r"})
	well.Raw, odd.Raw, odd.Key.SK = "well", "odd", "copy"
	items := []Item{well, odd}
	if d := cmp.Diff([]Item{well, {Key: odd.Key, Raw: "odd"}}, ofKind(items)); d != "" {
		t.Errorf("items (-want +got):\n%s", d)
	}
	if d := cmp.Diff(odd, items[1]); d != "" {
		t.Errorf("what was given has changed (-want +got):\n%s", d)
	}
}
