package spec

import "github.com/matter-ops/kms-rotation/test/tlc"

// withEvidence adds the module refines: rotation.tla, held to what an audit chain can be.
func withEvidence(all map[string]model) map[string]model {
	m := all["rotation"]
	m.base = with(m.base, set("Row", "{}", "Shard", "{s1}", "MaxWrite", "0"))
	m.invariants = nil
	m.liveness = nil
	m.properties = []string{"ChainBegins", "EachRecordIsAStep"}
	all["refines"] = m
	return all
}

// evidences are the variants in which each step is held to evidence.tla.
var evidences = []variant{
	{name: "ok_evidence", module: "refines", set: set("Modes", both, "MaxRot", "2", "Historic", "1"), want: tlc.Holds, says: "two rotations, and a historic KEK"},
	{name: "ok_evidence_takeover", module: "refines", set: set("Modes", both, "MaxRot", "2", "MaxMint", "2", "Takeover", `"any"`), want: tlc.Holds, says: "emergencies that take over, and mint again"},
	{name: "ok_evidence_sources", module: "refines", set: set("Row", "{r1, r2}", "Side", "{r2}", "Deletes", "TRUE"), want: tlc.Holds, says: "sources that join and leave"},
	{name: "cx_evidence_begins", module: "refines", edits: change(`/\ kek = [k \in KEK |-> IF k = 1 THEN "active" ELSE "none"]`, `/\ kek = [k \in KEK |-> IF k = 1 THEN "sealed" ELSE "none"]`), steps: []string{"ChainBegins"}, want: tlc.Initial, says: "a genesis whose KEK is not active shows in the chain"},
	{name: "cx_evidence_untested", module: "refines", edits: change(`/\ At(n, "tested") /\ ptr.kek = o`, `/\ rot[n].ph \in {"minted", "tested"} /\ lock = n /\ ptr.kek = o`), want: "EachRecordIsAStep", says: "so does a switch without the test"},
	{name: "cx_evidence_uncounted", module: "refines", edits: change(`/\ At(n, "started") /\ (rot[n].mode = "normal" => rot[n].cnt)`, `/\ At(n, "started")`), want: "EachRecordIsAStep", says: "and a mint without the census"},
}
