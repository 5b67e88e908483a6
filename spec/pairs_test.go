package spec

import "github.com/matter-ops/kms-rotation/test/tlc"

// pairs are variants of two features each, small enough to be searched whole: a fault that
// needs both is in none of the variants of one feature, and too deep in those of all.
var pairs = []variant{
	{name: "ok_pair_leases_rotations", heavy: true, set: with(leases, set("Writer", "{w1}", "MaxRot", "2", "MaxWrite", "1")), also: []string{"NoHolderRefused"}, want: tlc.Holds, says: "leases over two rotations: what one drain saw does not count for the next"},
	{name: "ok_pair_leases_emergency", set: with(leases, set("Writer", "{w1}", "Modes", emergency, "MaxWrite", "1")), want: tlc.Holds, says: "leases beside an emergency, which revokes all that are left"},
	{name: "ok_pair_leases_adoption", set: with(leases, foreign, set("Writer", "{w1}", "MaxWrite", "1")), want: tlc.Holds, says: "leases beside rows without a label"},
	{name: "ok_pair_remint_rows", set: set("Modes", emergency, "MaxMint", "2", "Shard", "{s1}", "Deletes", "TRUE", "MaxWrite", "1"), want: tlc.Holds, says: "re-mints beside rows that are written and deleted"},
	{name: "ok_pair_strays_rows", set: set("Dup", "1", "MaxWrite", "0", "Writer", "{}", "Shard", "{s1}"), want: tlc.Holds, says: "stray keys and sweeps beside a row"},
	{name: "ok_pair_restore_rotations", set: set("MaxRot", "2", "Restore", `"early"`, "Deletes", "TRUE", "MaxWrite", "0", "Writer", "{}", "Shard", "{s1}"), want: tlc.Holds, says: "a backup from the first rotation that is written back in the second"},
	{name: "ok_pair_restore_emergency", set: set("Modes", emergency, "Restore", `"early"`, "Deletes", "TRUE", "MaxWrite", "1", "Shard", "{s1}"), want: tlc.Holds, says: "a row under an exposed DEK that is written back"},
	{name: "ok_pair_readers_emergency", set: set("Modes", emergency, "Reader", "{q1}", "Deletes", "TRUE", "MaxWrite", "1", "Shard", "{s1}"), want: tlc.Holds, says: "readers beside an emergency and deletes"},
	{name: "ok_pair_readers_restore", set: set("Reader", "{q1}", "Restore", `"fenced"`, "Deletes", "TRUE", "MaxWrite", "1", "Shard", "{s1}"), want: tlc.Holds, says: "readers beside restores through the fence"},
	{name: "ok_pair_adoption_rotations", set: with(foreign, set("MaxRot", "2", "MaxWrite", "1")), want: tlc.Holds, says: "rows without a label over two rotations"},
	{name: "ok_pair_sources_takeover", set: with(takeover, set("Side", "{r1}", "MaxWrite", "0", "Writer", "{}")), want: tlc.Holds, says: "a marked table beside an emergency that ends a rotation"},
	{name: "ok_pair_readers_takeover", set: with(takeover, set("Reader", "{q1}", "MaxWrite", "0")), want: tlc.Holds, says: "readers beside it"},
	{name: "cx_scan_stale", set: set("Shard", "{s1}", "MaxWrite", "1"), off: []string{"scan-consistent"}, want: "NoKeyOrphans", says: "scans that need not see an insert of before they began"},
}

// liveness are variants of what must happen in the end.
var liveness = []variant{
	{name: "live_two_rotations", set: set("MaxRot", "2", "MaxWrite", "0", "Shard", "{s1}", "Modes", both), live: "AgainSpec", steps: []string{"Terminates", "EachStartsAndEnds"}, want: tlc.Holds, says: "the next rotation can start, and ends too, emergencies among them"},
	{name: "live_two_rotations_takeover", set: set("MaxRot", "2", "MaxWrite", "0", "Shard", "{s1}", "Modes", both, "Takeover", `"normal"`), live: "AgainSpec", steps: []string{"Terminates", "EachStartsAndEnds"}, want: tlc.Holds, says: "so it does if one ended the other"},
	{name: "live_busy_row", set: set("MaxWrite", "3", "Shard", "{s1}"), live: "FairSpec", steps: []string{"Terminates"}, want: tlc.Holds, says: "a writer that keeps updating the row holds the rotation up no longer than its writes last"},
	{name: "live_busy_emergency", set: set("MaxWrite", "2", "Shard", "{s1}", "Modes", emergency), live: "FairSpec", steps: []string{"Terminates"}, want: tlc.Holds, says: "nor an emergency"},
}

// walks are random walks over all features at once: a search would not come to the first
// retirement in any budget.
var walks = []variant{
	{name: "walk_everything_twice", deep: true, walks: walkSteps, share: 4, set: everything, also: []string{"NeverCompletedTwice"}, want: "NeverCompletedTwice", says: "the walks come to the end of a rotation, and of a second one after it"},
	{name: "walk_everything", deep: true, walks: walkSteps, share: 10, set: everything, want: tlc.Holds, says: "all features at once"},
	{name: "walk_everything_takeover", deep: true, walks: walkSteps, share: 10, set: with(everything, set("Takeover", `"any"`, "MaxRot", "3", "MaxMint", "1")), want: tlc.Holds, says: "with takeovers, over three rotations"},
}

// walkSteps is the length of a walk: the first that ends two rotations does so in a hundred
// steps or so.
const walkSteps = 300

var everything = with(two, set("MaxRot", "2", "Modes", both, "MaxMint", "2", "Dup", "1", "Leases", "TRUE", "DekCache", "TRUE",
	"Deletes", "TRUE", "Restore", `"fenced"`, "Reader", "{q1}", "MaxWrite", "3", "Side", "{r2}", "Historic", "1", "Foreign", `"early"`,
	"Lies", "TRUE", "Unfit", "TRUE"))
