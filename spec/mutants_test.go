package spec

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// quiet are rotations without applications; the rows are those of before.
var (
	quiet = map[string]string{"Writer": "{}", "Shard": "{s1}", "MaxWrite": "0"}
	over  = with(quiet, set("MaxRot", "2", "Modes", both, "Takeover", `"normal"`))
)

// change is one edit.
func change(from, to string) []edit { return []edit{{from, to}} }

// mutants are models with a fault that is no missing mechanism of the table above. Each must
// be rejected by the property that it names; those that are named eq_ are as good as
// the model, for the reason that they give.
var mutants = []variant{
	// The rotation's own purpose.
	{name: "mut_switch_untested", set: quiet, edits: change(`At(n, "tested") /\ ptr.kek = o`, `rot[n].ph \in {"minted", "tested"} /\ lock = n /\ ptr.kek = o`), want: "TestedBeforeSwitch", says: "a switch to a KEK that was not tested"},
	{name: "mut_complete_enabled", set: quiet, edits: change("  /\\ \\A k \\in rot[n].left \\cup rot[n].olds : Refuses(k)         \\* Steps.verifyKeyDead\n", ""), want: "OldsDisabled", says: "a completion while an old key is enabled"},
	{name: "mut_complete_unverified", set: with(late, set("Writer", "{}")), edits: change(`At(n, "retired") /\ AllClean(n)`, `At(n, "retired")`), instead: []string{""}, steps: []string{"CompletedIsMoved"}, want: "CompletedIsMoved", says: "a completion without the verifying scan"},
	{name: "mut_complete_locked", set: quiet, edits: change("![n].ph = \"completed\"]\n  /\\ lock' = 0\n", "![n].ph = \"completed\"]\n  /\\ lock' = lock\n"), want: "LockIsRotation", says: "a completion that keeps the lock"},
	{name: "mut_rollback_locked", set: quiet, edits: change("nobody asks any more\n  /\\ lock' = 0\n", "nobody asks any more\n  /\\ lock' = lock\n"), want: "LockIsRotation", says: "a rollback that keeps the lock"},
	{name: "mut_start_unlocked", set: quiet, edits: change("mark \\subseteq src\n  /\\ lock' = n\n", "mark \\subseteq src\n  /\\ lock' = lock\n"), want: "LockIsRotation", says: "a start that takes no lock"},
	{name: "mut_takeover_unlocked", set: over, edits: change(`  /\ lock' = m`, `  /\ lock' = lock`), want: "LockIsRotation", says: "a takeover that leaves the lock"},
	{name: "mut_never_disabled", set: quiet, edits: []edit{{`k \in on /\ kek[k] = "retired"`, `FALSE /\ kek[k] = "retired"`}, {"  /\\ \\A k \\in rot[n].left \\cup rot[n].olds : Refuses(k)         \\* Steps.verifyKeyDead\n", ""}}, want: "OldsDisabled", says: "no key is ever disabled"},
	{name: "mut_rollback_pending", set: quiet, edits: change("rot[n].mode = \"normal\"\n  /\\ kek' = IF k = 0 THEN", "rot[n].mode = \"normal\"\n  /\\ kek' = IF TRUE THEN"), want: "NoPendingOver", says: "a rollback that leaves the new KEK pending"},
	{name: "mut_remint_pending", set: with(quiet, set("Modes", emergency, "MaxMint", "2")), edits: change("att < MaxMint\n  /\\ kek' = IF k = 0 THEN", "att < MaxMint\n  /\\ kek' = IF TRUE THEN"), want: "NoPendingOver", says: "another mint that leaves the failed KEK pending"},
	{name: "mut_takeover_pending", set: over, edits: change(`IF pre /\ k = rot[n].new THEN "retired"`, `IF FALSE THEN "retired"`), want: "NoPendingOver", says: "a takeover that leaves the other's new KEK pending"},
	{name: "mut_retire_one", set: with(quiet, historic, set("Row", "{}")), edits: change(`IF k \in olds THEN "retired"`, `IF k = rot[n].old THEN "retired"`), live: "FairSpec", steps: []string{"Terminates"}, want: tlc.Temporal, says: "a retirement of the pointer's old KEK alone: the rotation never ends"},
	{name: "mut_retire_unseen", set: quiet, edits: change(`At(n, "rewrapped") /\ AllClean(n)`, `At(n, "drained")`), instead: []string{""}, want: "RetiredIsMoved", says: "a retirement before the rewrap has ended"},

	// Pointer and registry.
	{name: "mut_switch_keeps_active", set: quiet, edits: change(`![k] = "active", ![o] = "draining"]`, `![k] = "active"]`), want: "PointerUsable", says: "a switch that leaves the old KEK active"},
	{name: "mut_switch_same_epoch", set: quiet, edits: change("/\\ ptr' = [kek |-> k, ep |-> ptr.ep + 1]\n  /\\ kek'", "/\\ ptr' = [kek |-> k, ep |-> ptr.ep]\n  /\\ kek'"), want: "EpochMonotone", says: "a switch in the same epoch"},
	{name: "mut_switch_one_shard", set: with(quiet, set("Shard", "{s1, s2}")), edits: change("/\\ fence' = [fence EXCEPT ![k] = Shard]\n  /\\ rot'", "/\\ fence' \\in {[fence EXCEPT ![k] = {s}] : s \\in Shard}\n  /\\ rot'"), want: "PointerUsable", says: "a switch that opens one shard"},
	{name: "mut_mint_active", set: quiet, edits: change(`kek' = [kek EXCEPT ![k] = "pending"]`, `kek' = [kek EXCEPT ![k] = "active"]`), instead: []string{""}, want: "KekForward", says: "a mint that registers the KEK as active"},
	{name: "mut_remint_late", set: with(quiet, set("Modes", emergency, "MaxMint", "2")), edits: change(`lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "emergency"`, `lock = n /\ rot[n].mode = "emergency"`), want: "PointerUsable", says: "another mint after the switch"},
	{name: "mut_ended_again", set: quiet, edits: change(`lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"`, `rot[n].ph # "none" /\ rot[n].mode = "normal"`), instead: []string{""}, steps: []string{"EndedIsEnded"}, want: "EndedIsEnded", says: "a rollback of a rotation that is completed"},
	{name: "mut_takeover_mode", set: over, edits: change(`![n].was = rot[n].ph, `, `![n].was = rot[n].ph, ![n].mode = "emergency", `), instead: []string{""}, want: "ModeFixed", says: "a takeover that rewrites the other's mode"},
	{name: "mut_takeover_early_only", set: over, edits: change(`  /\ rot[n].mode = "normal" \/ Takeover = "any"`, `  /\ pre`), instead: []string{"EmergencyStarts"}, want: "EmergencyStarts", says: "an emergency that cannot end a rotation after its switch"},

	// Keys.
	{name: "mut_alias_shared", set: with(keys, silent, set("Modes", emergency)), edits: change(`k \in Made /\ \A j \in owner : tag[j] # tag[k]`, `k \in Made`), want: "NewKekUsable", says: "an alias with several owners"},
	{name: "mut_loser_is_owner", set: with(keys, silent, set("Modes", `{"normal"}`, "MaxMint", "1")), edits: change(`k \in on \cap Made /\ k \notin owner`, `k \in on \cap Made`), want: "NewKekUsable", says: "a claimant that takes itself for another"},
	{name: "mut_remint_dooms_own", set: with(keys, silent, set("Modes", emergency, "Dup", "0")), edits: []edit{{`tag[k].a < rot[n].att` + "\n", `tag[k].a <= rot[n].att` + "\n"}, {"  /\\ k \\notin {rot[n].new, rot[n].old, ptr.kek}\n", ""}}, want: "NewKekUsable", says: "another mint that disables the key of the attempt that runs"},
	{name: "mut_disable_sealed", set: quiet, edits: change(`k \in on /\ kek[k] = "retired"`, `k \in on /\ kek[k] \in {"sealed", "retired"}`), want: "NoKeyOrphans", says: "the key of a KEK that is sealed, not retired, is disabled"},
	{name: "mut_disable_sealed_no_row", set: with(quiet, set("Row", "{}")), edits: change(`k \in on /\ kek[k] = "retired"`, `k \in on /\ kek[k] \in {"sealed", "retired"}`), instead: []string{"RegisteredOn"}, want: "RegisteredOn", says: "also where no row names it"},
	{name: "mut_mint_any", set: with(keys, silent, set("Modes", `{"normal"}`, "MaxMint", "1")), edits: change(`k \in owner /\ tag[k] = [n |-> n, a |-> rot[n].att] /\ kek[k]`, `k \in Made /\ tag[k].n = n /\ kek[k]`), want: "ArbiterNamed", says: "a mint that does not ask who owns the alias"},
	{name: "mut_sweep_keeps", set: with(silent, set("Shard", "{s1}", "Dup", "1")), edits: change(`(IF rot[n].ph = "rolledback" THEN {} ELSE {rot[n].new})`, `{rot[n].new}`), live: "SweepSpec", steps: []string{"StraysOff"}, want: tlc.Temporal, says: "a sweep that keeps the key of a rotation that was rolled back"},
	{name: "live_strays", set: with(silent, set("Shard", "{s1}", "Dup", "1")), live: "SweepSpec", steps: []string{"StraysOff"}, want: tlc.Holds, says: "a sweep that comes after it disables every stray key"},

	// Rows.
	{name: "mut_rewrap_future", set: quiet, edits: change(`ep |-> rot[n].ep, body |-> row[r].body]]`, `ep |-> rot[n].ep + 1, body |-> row[r].body]]`), want: "EpochOfRows", says: "a rewrap that stamps an epoch above the pointer's"},
	{name: "mut_rewrap_by_dek", set: with(quiet, set("MaxRot", "2")), edits: change(`row[r].kid = b.from /\ row[r].real = b.from /\ row[r].dek = b.dek`, `row[r].dek = b.dek`), want: "NoKeyOrphans", says: "a rewrap that conditions on the DEK alone: a worker of the rotation before puts the row back"},
	{name: "mut_rewrap_by_kek", set: set("Shard", "{s1}", "MaxWrite", "1"), edits: change(`row[r].real = b.from /\ row[r].dek = b.dek`, `row[r].real = b.from`), want: "RowIntegrity", says: "a rewrap that conditions on the KEK alone"},
	{name: "mut_rewrap_old_payload", set: with(quiet, set("Modes", emergency)), edits: change(`ct |-> IF Payload(n) THEN d ELSE row[r].ct`, `ct |-> row[r].ct`), want: "RowIntegrity", says: "an emergency that leaves the payload under the DEK of before"},
	{name: "mut_update_early_epoch", set: set("Shard", "{s1}", "MaxWrite", "1"), edits: change(`THEN row[r].ep <= e ELSE`, `THEN row[r].ep <= e + 1 ELSE`), want: "NoKeyOrphans", says: "an update that accepts the next epoch too"},
	{name: "mut_insert_other_fence", set: set("Shard", "{s1}", "MaxWrite", "1"), edits: change(`InsertOK(r, k, s) == row[r] = NoRow /\ s \in fence[k]`, `InsertOK(r, k, s) == row[r] = NoRow /\ s \in fence[ptr.kek]`), want: "NoKeyOrphans", says: "an insert that asks the fence of the pointer's KEK"},
	{name: "mut_restore_other_fence", set: with(quiet, set("Restore", `"fenced"`, "Deletes", "TRUE")), edits: change(`backup.kid = k /\ \E s \in Shard : s \in fence[k]`, `backup.kid = k /\ \E s \in Shard : s \in fence[ptr.kek]`), want: "NoKeyOrphans", says: "a restore that asks it"},
	{name: "mut_adopt_pointer", set: with(foreign, set("Writer", "{}", "MaxWrite", "1", "Modes", emergency)), edits: change(`![r].kid = row[r].real]`, `![r].kid = ptr.kek]`), off: []string{"deep"}, want: "NoKeyOrphans", says: "an adoption that labels with the pointer's KEK, where no pass unwraps"},
	{name: "mut_count_blind", set: idle, edits: change("/\\ At(n, \"started\") /\\ \\A r \\in Frozen(n) : Accounted(r)\n", "/\\ At(n, \"started\")\n"), steps: known, want: "KnownBeforeSwitch", says: "a census that accounts for everything"},
	{name: "mut_rehearse_blind", set: with(silent, set("Unfit", "TRUE")), edits: change(`k \in on \ unfit`, `k \in on`), steps: known, want: "KnownBeforeSwitch", says: "a rehearsal that moves no row"},

	// Leases.
	{name: "mut_drain_one_holder", set: with(leases, set("MaxWrite", "1")), edits: change(`\A w \in Writer, k \in Draining(n) : <<w, k>> \in gone`, `\A k \in Draining(n) : \E w \in Writer : <<w, k>> \in gone`), instead: []string{"NoHolderRefused"}, want: "NoHolderRefused", says: "a drain that waits for one holder"},
	{name: "mut_drain_other_kek", set: with(leases, renewed, set("MaxWrite", "1")), edits: change(`k \in rot[n].olds /\ lease[w][k] = 0`, `k \in rot[n].olds /\ \E j \in KEK : lease[w][j] = 0`), instead: []string{"NoHolderRefused"}, want: "NoHolderRefused", says: "a drain that looks at leases on another KEK"},
	{name: "mut_drain_new_kek", set: with(leases, renewed, set("MaxWrite", "1")), edits: change(`k \in rot[n].olds /\ lease[w][k] # 0`, `lease[w][k] # 0`), want: "DrainRevokesOld", says: "a drain that revokes leases on the new KEK"},
	{name: "mut_drop_in_use", set: with(leases, renewed, set("MaxWrite", "1")), edits: change(`~InUse(w, k) /\ lease[w][k] # 0`, `lease[w][k] # 0`), want: "NoRenewedLeaseLost", says: "a lease given back while it is in use"},
	{name: "mut_renew_upsert", set: with(leases, renewed, set("MaxWrite", "1")), edits: change("Leases\n  /\\ IF Holds(w)", "Leases\n  /\\ IF TRUE"), instead: []string{"NoHolderRefused"}, want: "NoHolderRefused", says: "a renewal that puts a revoked lease back"},

	// Liveness.
	{name: "mut_rewrap_never", set: quiet, edits: change("  /\\ Rewrapping(n) /\\ r \\in", "  /\\ FALSE /\\ r \\in"), live: "FairSpec", steps: []string{"Terminates"}, want: tlc.Temporal, says: "a rewrap that moves nothing"},
	{name: "mut_reread_stale", set: with(quiet, set("Reader", "{q1}")), edits: change(`ELSE [r |-> r, k |-> row[r].kid]]`, `ELSE rd[q]]`), live: "FairSpec", steps: []string{"EveryReadEnds"}, want: tlc.Temporal, says: "a reader that tries the same row again, without reading it"},

	// As good as the model.
	{name: "eq_seal_unlocked", set: quiet, edits: change(`At(n, "switched") /\ Drained(n)`, `rot[n].ph = "switched" /\ Drained(n)`), want: tlc.Holds, says: "a seal that does not ask for the lock: the phase says that the rotation runs"},
	{name: "eq_test_disabled", set: quiet, edits: change(`At(n, "minted") /\ rot[n].new \in on /\`, `At(n, "minted") /\`), want: tlc.Holds, says: "a test that does not ask whether the key is enabled: NewKekUsable says that it is"},
	{name: "eq_first_scan_skipped", set: with(quiet, set("MaxRot", "2")), edits: change(`At(n, "drained") /\ AllClean(n)`, `At(n, "drained")`), want: tlc.Holds, says: "the first scan skipped: the second makes up for it"},

	// The outbox.
	{name: "mut_outbox_any_order", module: "outbox", set: set("MaxEvent", "2"), edits: change("  /\\ \\A o \\in pub[p].todo : r.seq <= o.seq          \\* oldest first\n", ""), want: "NoGaps", says: "puts in any order"},
	{name: "mut_outbox_tampered", module: "outbox", set: set("MaxEvent", "1", "MaxForeign", "1"), edits: []edit{{`[@ EXCEPT !.pc = "halted", !.todo = {r}]`, `[@ EXCEPT !.todo = @ \ {r}]`}}, want: "MarkedIsStored", says: "other bytes under the key taken for success"},
	{name: "mut_outbox_replaced", module: "outbox", set: set("MaxEvent", "1", "MaxForeign", "1"), edits: []edit{{`IF Taken(r) /\ r \notin bucket `, `IF FALSE `}, {`bucket' = bucket \cup {r}` + "\n            /\\", `bucket' = {b \in bucket : b.gen # r.gen \/ b.seq # r.seq} \cup {r}` + "\n            /\\"}}, want: "WrittenOnce", says: "a put that replaces what is under the key"},
	{name: "mut_outbox_mark_back", module: "outbox", set: set("MaxEvent", "2"), edits: change(`\in marked .. Len(outbox)`, `\in 0 .. Len(outbox)`), want: "MarkMonotone", says: "a mark that goes back"},
	{name: "mut_outbox_unrecorded", module: "outbox", set: set("MaxEvent", "1", "MaxForeign", "1"), edits: change(`/\ outbox' = Append(outbox, 0)`, `/\ outbox' = outbox`), want: "EveryEffectRecorded", says: "a generation begun without a record"},
	{name: "mut_outbox_skips_oldest", module: "outbox", set: set("MaxEvent", "2"), edits: change(`i \in marked + 1 .. Len(outbox)}]]`, `i \in marked + 2 .. Len(outbox)}]]`), want: "MarkedIsStored", says: "a publisher that skips the oldest record"},

	// Doctor.
	{name: "mut_doctor_retires_pointer", module: "doctor", set: with(quiet, set("Items", `{"kek"}`)), edits: change(`CASE k = p.kek -> "active"`, `CASE k = p.kek -> "retired"`), instead: []string{"RebuiltRetireAfterSwitch"}, want: "RebuiltRetireAfterSwitch", says: "a repair that calls the pointer's KEK retired"},
	{name: "mut_doctor_disables", module: "doctor", set: with(quiet, set("Items", `{"ptr"}`)), edits: change(`k \in on /\ kek[k] = "retired"`, `k \in on /\ kek[k] \in {"sealed", "retired"}`), instead: []string{"EveryRowOpens"}, want: "EveryRowOpens", says: "the key of a KEK that rows are under is disabled while an item is lost"},
	{name: "mut_doctor_old_epoch", module: "doctor", set: with(quiet, set("Items", `{"ptr"}`)), edits: change(`THEN h.ptr ELSE ptr`, `THEN [h.ptr EXCEPT !.ep = 1] ELSE ptr`), instead: []string{""}, want: "EpochMonotone", says: "a pointer rebuilt with the first epoch"},
}

// TestEveryPropertyCanFail: every property that a model is checked for is the one that
// rejects some variant of that model, or of the module that it extends.
func TestEveryPropertyCanFail(t *testing.T) {
	type property struct{ module, name string }
	rejects := map[property]bool{}
	for _, v := range variants {
		m := models[v.moduleName()]
		if v.want != tlc.Temporal && v.want != tlc.Initial {
			rejects[property{v.moduleName(), v.want}] = true
			continue
		}
		asked := m.liveness
		if v.steps != nil {
			asked = v.steps
		}
		if len(asked) == 1 { // of several TLC does not say which is violated
			rejects[property{v.moduleName(), asked[0]}] = true
		}
	}
	for module, m := range models {
		if m.spec != "" {
			m.liveness = nil // no variant of a module that extends rotation has fairness
		}
		for _, name := range slices.Concat(m.invariants, m.properties, m.liveness) {
			if !rejects[property{module, name}] && (m.replace == nil || !rejects[property{"rotation", name}]) {
				t.Errorf("%s: nothing is rejected by %s", module, name)
			}
		}
	}
}
