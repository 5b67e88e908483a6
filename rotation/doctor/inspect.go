package doctor

import (
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Inspect reports what is lost or damaged as far as the items of the control table show it by
// themselves. It needs neither KMS nor the bucket. [Doctor.ExamineTable] reads those too, and
// says what can be rebuilt.
func Inspect(items []Item) []Finding {
	items = dropMisplaced(items)
	var out []Finding
	find := func(item, format string, args ...any) {
		out = append(out, Finding{Item: item, Fault: fmt.Sprintf(format, args...), Next: journal.Next{Do: journal.RunDoctor}})
	}
	by := map[ItemKey]*Item{}
	open, openRecords := map[kek.ID]int{}, map[kek.ID]int{}
	var active, running []string
	records, registered := false, false
	for n := range items {
		i := &items[n]
		by[i.Key] = i
		fault := faultOf(i)
		if fault != "" && i.Kind != "" {
			find(i.Key.String(), "%s", fault)
		}
		registered = registered || i.Kind == ItemKEK || i.Kind == ItemRegistry
		records = records || i.Kind == ItemRecord
		switch v := i.Value.(type) {
		case kek.KEK:
			if v.State == kek.Active {
				active = append(active, i.ID)
			}
		case kek.Rotation:
			if fault == "" && !v.Phase.Final() {
				running = append(running, i.ID)
			}
		case FenceItem:
			if v.Open && v.Records {
				openRecords[v.KEK]++
			} else if v.Open {
				open[v.KEK]++
			}
		}
	}
	at := func(pk string) *Item { return by[ItemKey{pk, noSortKey}] }
	missing := func(pk string) bool { return at(pk) == nil }
	if registered && missing("POINTER") {
		find("POINTER", "it is missing: the registry has KEKs, but nothing says which one is in use")
	}
	if registered && missing("REGISTRY") {
		find("REGISTRY", "it is missing")
	}
	if records && missing("AUDIT_HEAD") {
		find("AUDIT_HEAD", "it is missing: no record can be appended to the audit chain")
	}
	if p, ok := valueOf[kek.Pointer](at("POINTER")); ok && faultOf(at("POINTER")) == "" {
		k, known := valueOf[kek.KEK](at("KEK#" + string(p.KEKID)))
		switch {
		case !known:
			find("KEK#"+string(p.KEKID), "it is missing, and the pointer names it")
		case k.State != kek.Active:
			find("POINTER", "it names KEK %s, which is %s", p.KEKID, k.State)
		case open[p.KEKID] < k.FenceShards && !k.RecordsOnly:
			find("FENCE#"+string(p.KEKID), "%d of %d shards are open", open[p.KEKID], k.FenceShards)
		case openRecords[p.KEKID] > 0 && openRecords[p.KEKID] < k.FenceShards: // a KEK from before the key table has none
			find("DEKFENCE#"+string(p.KEKID), "%d of %d shards are open", openRecords[p.KEKID], k.FenceShards)
		}
		for _, id := range active {
			if id != string(p.KEKID) {
				find("KEK#"+id, "it is active, and the pointer names another")
			}
		}
	}
	l, locked := valueOf[LockItem](at("LOCK"))
	switch {
	case locked && faultOf(at("LOCK")) != "":
	case locked && !slices.Contains(running, l.RotationID):
		find("LOCK", "rotation %s holds it, which has no record or is over", l.RotationID)
	case !locked && len(running) > 0:
		find("LOCK", "it is missing, and rotation %s is not over", running[0])
	}
	return out
}
