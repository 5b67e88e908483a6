package spec

import "github.com/matter-ops/kms-rotation/test/tlc"

// withLag adds the module lag: KMS that is eventually consistent.
func withLag(all map[string]model) map[string]model {
	m := all["rotation"]
	m.base = with(m.base, set("MaxWrite", "1", "Shard", "{s1}"))
	m.spec = "LSpec"
	m.replace = map[string]string{"Serves": "LagServes", "Refuses": "LagRefuses", "KnownToAll": "LagKnownToAll"}
	all["lag"] = m
	return all
}

// withSetBack adds the module setback: the control table is set back to an earlier moment.
func withSetBack(all map[string]model) map[string]model {
	m := all["rotation"]
	m.base = with(m.base, set("MaxWrite", "1", "Shard", "{s1}", "KeptBy", `"all"`, "Moments", `"any"`, "Unpublished", "FALSE"))
	m.spec = "BSpec"
	m.invariants = []string{"RepairedNoKeyOrphans", "RepairedPointerUsable", "RepairedSealedIsShut", "EveryRowOpens"}
	m.properties = nil // of steps of one table, which this is not
	all["setback"] = m
	return all
}

// lags are the variants in which each host of KMS learns of a change at its own time.
var lags = []variant{
	{name: "ok_lag", module: "lag", set: set("Reader", "{q1}"), want: tlc.Holds, says: "a new key and a disabled one known late, host by host: the pointer names no key that a host does not know"},
	{name: "ok_lag_takeover", module: "lag", set: set("Takeover", `"normal"`, "MaxRot", "2", "Modes", both, "MaxWrite", "0"), want: tlc.Holds, says: "an emergency that ends a rotation whose key is young"},
	{name: "cx_lag_unsettled", module: "lag", off: []string{"settle"}, want: "PointerUsable", says: "a switch to a key that some host does not know yet"},
	{name: "cx_lag_unsettled_takeover", module: "lag", set: set("Takeover", `"normal"`, "MaxRot", "2", "Modes", both, "MaxWrite", "0"), off: []string{"settle"}, instead: []string{"SupersededOff"}, want: "SupersededOff", says: "an emergency that does not wait takes \"no such key\" of a young key for dead, and ends while it is enabled"},
	{name: "reach_lag_dead", module: "lag", set: set("MaxWrite", "0"), also: []string{"DeadEverywhere"}, want: "DeadEverywhere", says: "a rotation may end while a host still serves the old key: verify asks one"},
}

// setBacks are the variants in which the whole control table is set back.
var setBacks = []variant{
	{name: "reach_set_back", module: "setback", set: set("MaxRot", "2", "MaxWrite", "0"), also: []string{"NeverRecovered"}, want: "NeverRecovered", says: "a rotation can finish after the control table was set back"},
	{name: "ok_set_back", module: "setback", heavy: true, set: set("MaxRot", "2", "MaxWrite", "0"), want: tlc.Holds, says: "the table is set back to any moment and repaired before anybody uses it"},
	{name: "ok_set_back_writer", module: "setback", want: tlc.Holds, says: "beside a writer that has slept since before"},
	{name: "ok_set_back_unpublished", module: "setback", set: set("MaxWrite", "0", "Unpublished", "TRUE"), want: tlc.Holds, says: "the record of the last change is not in the bucket yet"},
	{name: "ok_set_back_read", module: "setback", set: set("KeptBy", `"steps"`, "MaxWrite", "0", "Writer", "{}", "Reader", "{q1}", "Deletes", "TRUE"), want: tlc.Holds, says: "readers and deletes use it before it is repaired: they depend on nothing in it"},
	{name: "ok_outbox_restored_one", module: "outbox", set: set("MaxEvent", "1", "Restores", "TRUE", "MaxForeign", "1"), instead: []string{"GenerationsInOrder"}, steps: []string{"WrittenOnce"}, want: tlc.Holds, says: "the same of the outbox, with one change: small enough to count its actions"},
	{name: "ok_set_back_steps", module: "setback", set: set("KeptBy", `"writers"`), instead: []string{"EveryRowOpens"}, want: tlc.Holds, says: "steps use it: none gives a KEK up while the bucket has a record that the table does not know"},
	{name: "cx_set_back_used", module: "setback", set: set("KeptBy", `"writers"`), off: []string{"look-behind"}, instead: []string{"EveryRowOpens"}, want: "EveryRowOpens", says: "steps that do not look into the bucket: a rollback of what was switched disables the KEK of new rows"},
	{name: "cx_set_back_unseen", module: "setback", set: set("KeptBy", `"writers"`, "Unpublished", "TRUE"), instead: []string{"EveryRowOpens"}, want: "EveryRowOpens", says: "the record of the switch is not in the bucket yet: out of reach"},
	{name: "cx_set_back_written", module: "setback", set: set("KeptBy", `"steps"`), instead: []string{"EveryRowOpens"}, want: "EveryRowOpens", says: "writers that use it: the fence of a KEK that was retired is open again"},
	{name: "mut_set_back_shut", module: "setback", set: set("MaxWrite", "0", "Row", "{}"), edits: change(`IF k = told.ptr.kek THEN Shard ELSE {}]`, `{}]`), instead: []string{"RepairedPointerUsable"}, want: "RepairedPointerUsable", says: "a repair that opens no fence"},
	{name: "mut_set_back_fences", module: "setback", set: set("MaxWrite", "0", "Row", "{}"), edits: change(`fence |-> [k \in KEK |-> IF k = told.ptr.kek THEN Shard ELSE {}]`, `fence |-> t.fence`), instead: []string{"RepairedSealedIsShut"}, want: "RepairedSealedIsShut", says: "a repair that leaves the fences as they were"},
	{name: "cx_set_back_marks", module: "setback", set: set("Side", "{r1}", "Moments", `"first"`), want: "RepairedNoKeyOrphans", says: "a mark that was left since then is forgotten, for no record tells of it: out of reach"},
}
