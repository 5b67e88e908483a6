package spec

import "github.com/matter-ops/kms-rotation/test/tlc"

// withArchive adds the module archive: the fence of a retired KEK is removed.
func withArchive(all map[string]model) map[string]model {
	m := all["rotation"]
	m.base = with(m.base, set("MaxWrite", "1", "Shard", "{s1}"))
	m.spec = "ASpec"
	m.replace = map[string]string{"InsertOK": "ArchivedInsertOK"}
	m.invariants = []string{"NoKeyOrphans", "PointerUsable", "SealedIsShut", "ArchivedIsShut", "PointerOpen"}
	m.properties = nil
	all["archive"] = m
	return all
}

// archives are the variants in which what a rotation has left is removed.
var archives = []variant{
	{name: "reach_archived", module: "archive", set: set("MaxRot", "2", "MaxWrite", "0"), also: []string{"NeverArchived"}, want: "NeverArchived", says: "a rotation can finish after the fence of the one before was removed"},
	{name: "ok_archive", module: "archive", set: set("Shard", "{s1, s2}"), want: tlc.Holds, says: "the sealed fence of a retired KEK is removed beside a writer that has slept since before, and a drain that wakes up"},
	{name: "ok_archive_two", module: "archive", heavy: true, set: set("MaxRot", "2"), want: tlc.Holds, says: "over two rotations"},
	{name: "cx_archive_missing_passes", module: "archive", off: []string{"missing-refuses"}, instead: []string{"NoKeyOrphans"}, want: "NoKeyOrphans", says: "a fence check that a missing shard passes: a writer that slept inserts under a KEK that is disabled"},
	{name: "cx_archive_not_retired", module: "archive", set: set("MaxWrite", "0"), off: []string{"archive-retired", "archive-left"}, instead: []string{"ArchivedIsShut"}, want: "ArchivedIsShut", says: "the sealed fence of a KEK that is not retired yet is removed"},
	{name: "cx_archive_open", module: "archive", set: set("MaxWrite", "0"), off: []string{"archive-retired", "archive-sealed", "archive-left"}, instead: []string{"PointerOpen"}, want: "PointerOpen", says: "the fence of the pointer's KEK is removed: no insert passes"},
	{name: "mut_archive_put_back_open", module: "archive", edits: change(`IF kek[k] = "active" THEN @ \cup {s} ELSE @ \ {s}]`, `@ \cup {s}]`), instead: []string{"NoKeyOrphans"}, want: "NoKeyOrphans", says: "a doctor that takes a removed shard for a lost one and opens it"},
	{name: "mut_archive_seal_switched", module: "archive", set: set("MaxWrite", "0"), edits: change(`~There(k, s) /\ k \in rot[n].olds /\ Once(n, "switched")`, `k = rot[n].new /\ Once(n, "switched")`), instead: []string{"PointerUsable"}, want: "PointerUsable", says: "a drain that seals the fence of the KEK that it has switched to"},
	{name: "mut_archive_sealed_opens", module: "archive", set: set("MaxWrite", "0"), edits: change("  /\\ ~There(k, s)\n  /\\ none' = none \\ {<<k, s>>}\n  /\\ fence' = [fence EXCEPT ![k] = IF kek[k] = \"active\" THEN @ \\cup {s} ELSE @ \\ {s}]", "  /\\ none' = none\n  /\\ fence' = [fence EXCEPT ![k] = IF kek[k] \\in {\"active\", \"sealed\"} THEN @ \\cup {s} ELSE @ \\ {s}]"), instead: []string{"SealedIsShut"}, want: "SealedIsShut", says: "a doctor that opens the fence of a sealed KEK"},
}
