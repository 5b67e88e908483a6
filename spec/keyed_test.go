package spec

import (
	"slices"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// withKeyed adds the module keyed: rows that name a data key, and the table of the data keys.
func withKeyed(all map[string]model) map[string]model {
	all["keyed"] = model{
		base: map[string]string{
			"Row": "{r1}", "Writer": "{w1}", "Walker": "{}", "Reader": "{}", "MaxRot": "1", "MaxDek": "2", "MaxWrite": "2",
			"Modes": `{"normal"}`, "Formats": `{"key"}`, "Convert": "FALSE", "Back": "FALSE", "Takeover": "FALSE", "Sweep": "FALSE",
			"Deletes": "FALSE", "CloseEmb": "FALSE", "Upgraded": "FALSE", "Mishaps": "{}",
		},
		invariants: []string{
			"NoKeyOrphans", "NoDekLost", "RetireAfterSwitch", "PointerUsable", "BornBound", "NoLostUpdate", "ReadersServed", "NoWrongRow",
			"ExposedOnlyLate",
		},
		properties: []string{"ExposedSetClosed", "NoReexposure", "NoRowComesBack", "KekForward"},
		liveness:   []string{"Terminates"},
		symmetry:   "Sym",
	}
	return all
}

var (
	keyedFormats  = map[string]string{"Formats": `{"key", "emb"}`}
	keyedQuiet    = map[string]string{"Writer": "{}", "MaxWrite": "0"}
	keyedWalker   = map[string]string{"Walker": "{x1}"}
	keyedTakeover = with(keyedWalker, set("MaxRot", "2", "Modes", both, "Takeover", "TRUE"))
	keyedLose     = map[string]string{"Mishaps": `{"lose"}`, "MaxWrite": "1"}
	keyedMove     = map[string]string{"Mishaps": `{"move"}`, "Row": "{r1, r2}", "Reader": "{q1}", "MaxRot": "0"}

	// keyedLost are the promises while a record is lost: a row that names it is an orphan until
	// it is put back.
	keyedLost = []string{"RecOK", "NoDekLost", "RetireAfterSwitch", "PointerUsable", "BornBound", "NoLostUpdate", "NoWrongRow", "ExposedOnlyLate"}
)

// keyeds are the variants of rows that name a data key.
var keyeds = slices.Concat(keyedHolds, keyedFails, keyedEnds, keyedDeep)

// keyedHolds are the code as it is.
var keyedHolds = []variant{
	{name: "reach_keyed", module: "keyed", also: []string{"NeverCompleted"}, want: "NeverCompleted", says: "a rotation of keyed rows can finish"},
	{name: "reach_keyed_rowless", module: "keyed", set: with(keyedFormats, keyedQuiet, keyedWalker, set("CloseEmb", "TRUE", "MaxRot", "2")), also: []string{"NeverRowless"}, want: "NeverRowless", says: "one that reads no row can finish"},
	{name: "reach_keyed_taken_over", module: "keyed", set: with(keyedTakeover, keyedQuiet), also: []string{"NeverTaken"}, want: "NeverTaken", says: "an emergency that took over a rotation of keyed rows can finish"},

	{name: "ok_keyed", module: "keyed", want: tlc.Holds, says: "one writer that pauses anywhere, one rotation"},
	{name: "ok_keyed_two_writers", module: "keyed", set: set("Writer", "{w1, w2}", "MaxDek", "1", "Deletes", "TRUE"), want: tlc.Holds, says: "two writers, deletes"},
	{name: "ok_keyed_two_rows", module: "keyed", set: set("Row", "{r1, r2}", "Deletes", "TRUE", "MaxWrite", "1"), want: tlc.Holds, says: "two rows"},
	{name: "ok_keyed_two_rotations", module: "keyed", set: set("MaxRot", "2", "MaxWrite", "1", "Modes", both), want: tlc.Holds, says: "writers and rewraps that wake a rotation later, both modes"},
	{name: "deep_keyed_readers", module: "keyed", deep: true, set: set("MaxRot", "2", "Reader", "{q1}", "MaxWrite", "1"), want: tlc.Holds, says: "readers with old records in hand"},
	{name: "ok_keyed_mixed", module: "keyed", set: with(keyedFormats, set("Deletes", "TRUE", "MaxWrite", "1")), want: tlc.Holds, says: "embedded rows beside keyed ones, inserts, updates, deletes"},
	{name: "ok_keyed_upgraded", module: "keyed", set: with(keyedFormats, set("Upgraded", "TRUE", "MaxWrite", "1", "MaxRot", "2", "MaxDek", "1")), want: tlc.Holds, says: "a KEK from before the key table: its fence of records is opened while it is active, or never"},
	{name: "ok_keyed_convert", module: "keyed", set: with(keyedFormats, keyedWalker, set("Convert", "TRUE", "MaxWrite", "1")), want: tlc.Holds, says: "embedded to keyed under concurrent writes"},
	{name: "deep_keyed_back", module: "keyed", deep: true, set: with(keyedWalker, set("Back", "TRUE", "MaxDek", "3", "MaxWrite", "1")), want: tlc.Holds, says: "keyed to embedded, behind the embedded fence"},
	{name: "ok_keyed_rowless", module: "keyed", set: with(keyedFormats, keyedWalker, set("CloseEmb", "TRUE", "MaxRot", "2", "MaxWrite", "1")), want: tlc.Holds, says: "a KEK whose embedded fence never opened: its rotation reads no row"},
	{name: "ok_keyed_emergency", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "MaxWrite", "1", "Sweep", "TRUE")), want: tlc.Holds, says: "an emergency re-encrypts payloads beside a late writer, then a sweep"},
	{name: "deep_keyed_emergency", module: "keyed", deep: true, set: with(keyedWalker, set("Modes", emergency, "MaxDek", "3", "MaxWrite", "1", "Deletes", "TRUE", "Sweep", "TRUE")), want: tlc.Holds, says: "and beside one that makes DEKs, and deletes"},
	{name: "deep_keyed_emergency_mixed", module: "keyed", deep: true, set: with(keyedFormats, keyedWalker, set("Modes", emergency, "MaxDek", "3", "MaxWrite", "1")), want: tlc.Holds, says: "and beside embedded rows"},
	{name: "ok_keyed_two_emergencies", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "MaxRot", "2", "MaxDek", "3", "MaxWrite", "0", "Sweep", "TRUE")), want: tlc.Holds, says: "walkers that wake in the next emergency"},
	{name: "deep_keyed_takeover", module: "keyed", deep: true, set: with(keyedTakeover, set("MaxWrite", "1", "Deletes", "TRUE")), want: tlc.Holds, says: "an emergency takes over after the switch"},
	{name: "ok_keyed_takeover_lose", module: "keyed", set: with(keyedTakeover, keyedQuiet, set("Mishaps", `{"lose"}`)), instead: keyedLost, want: tlc.Holds, says: "and a record is lost on the way"},
	{name: "ok_keyed_lose", module: "keyed", set: set("Mishaps", `{"lose"}`, "MaxWrite", "0", "MaxDek", "1"), instead: keyedLost, want: tlc.Holds, says: "a record deleted by mistake at any time: put back from the bucket"},
	{name: "deep_keyed_lose", module: "keyed", deep: true, set: keyedLose, instead: keyedLost, want: tlc.Holds, says: "and beside a writer that creates records"},
	{name: "deep_keyed_lose_two", module: "keyed", deep: true, set: with(keyedLose, keyedWalker, set("MaxRot", "2", "MaxWrite", "0", "Modes", both)), instead: keyedLost, want: tlc.Holds, says: "and over two rotations of both modes"},
	{name: "ok_keyed_stale", module: "keyed", set: set("Mishaps", `{"stale"}`, "MaxRot", "2", "MaxDek", "1", "MaxWrite", "1"), instead: without1(keyedLost, "RecOK"), want: tlc.Holds, says: "a record restored from any older state at any time"},
	{name: "ok_keyed_stale_early", module: "keyed", set: set("Mishaps", `{"stale-early"}`, "MaxWrite", "1"), want: tlc.Holds, says: "raw restores of records that end before the second pass orphan nothing at all"},
	{name: "ok_keyed_old_rows", module: "keyed", set: with(keyedQuiet, set("Mishaps", `{"old-rows"}`, "Deletes", "TRUE", "MaxDek", "1")), want: tlc.Holds, says: "keyed rows restored raw at any time"},
	{name: "deep_keyed_old_rows", module: "keyed", deep: true, set: with(keyedWalker, set("Mishaps", `{"old-rows"}`, "Modes", both, "MaxWrite", "1", "Deletes", "TRUE", "Sweep", "TRUE")), want: tlc.Holds, says: "and beside writers, an emergency and a sweep"},
	{name: "deep_keyed_putback_older", module: "keyed", deep: true, set: keyedLose, edits: change(`Newest(copies) == {Max(copies)}`, `Newest(copies) == copies`), instead: []string{"RecOK"}, want: tlc.Holds, says: "behind the fence any copy will do for a put-back"},
	{
		name: "ok_keyed_as_coded", module: "keyed", set: set("Mishaps", `{"lose"}`, "MaxWrite", "1"), instead: keyedLost, want: tlc.Holds,
		edits: []edit{
			{`  /\ rec[d] # NoRec \/ Olds(n) \cap bkt[d] = {} \/ n + 1 \in bkt[d]`, `  /\ rot[n].ph = "sealed" \/ rec[d] # NoRec \/ Olds(n) \cap bkt[d] = {} \/ n + 1 \in bkt[d]`},
			{`LET to == IF k \notin fence THEN ptr ELSE k IN`, `LET to == ptr IN`},
		},
		says: "only the second pass lists the bucket, and a record is always put back under the pointer's KEK",
	},
	{name: "ok_keyed_move", module: "keyed", set: with(keyedMove, set("MaxWrite", "1")), want: tlc.Holds, says: "a payload copied to another row is refused"},
}

// keyedFails are the same with one mechanism taken away, or with another fault.
var keyedFails = []variant{
	{name: "cx_keyed_create_unfenced", module: "keyed", off: []string{"create-fence"}, want: "NoKeyOrphans", says: "a record created without the fence check"},
	{name: "cx_keyed_seal_unchecked", module: "keyed", off: []string{"seal-records"}, want: "NoKeyOrphans", says: "a pass that begins with the fence of records open"},
	{name: "cx_keyed_record_late", module: "keyed", off: []string{"record-first"}, want: "NoKeyOrphans", says: "a DEK used before its record is stored"},
	{name: "cx_keyed_rewrap_blind", module: "keyed", set: set("MaxRot", "2", "MaxDek", "1", "MaxWrite", "0"), off: []string{"record-condition"}, want: "NoKeyOrphans", says: "an unconditional rewrap of a record, a rotation later"},
	{name: "cx_keyed_collect", module: "keyed", off: []string{"never-delete"}, want: "NoKeyOrphans", says: "deleting a record that a census finds unnamed"},
	{name: "cx_keyed_no_confirm", module: "keyed", set: set("Mishaps", `{"stale-early"}`, "MaxWrite", "1"), off: []string{"second-pass"}, want: "NoKeyOrphans", says: "no second pass, and a raw restore behind the first"},
	{name: "cx_keyed_pass_off_old", module: "keyed", set: set("Mishaps", `{"stale"}`, "MaxRot", "2", "MaxDek", "1", "MaxWrite", "0"), off: []string{"strict-records"}, instead: []string{"NoDekLost"}, want: "NoDekLost", says: "a pass that asks for \"not under the old KEK\" instead of \"under the new one\""},
	{name: "cx_keyed_no_inventory", module: "keyed", set: with(keyedQuiet, set("Mishaps", `{"lose"}`, "MaxDek", "1")), off: []string{"inventory"}, instead: []string{"NoDekLost"}, want: "NoDekLost", says: "retiring without comparing the bucket's ids with the records"},
	{name: "cx_keyed_copy_later", module: "keyed", set: keyedLose, off: []string{"copy-first"}, instead: []string{"NoDekLost"}, want: "NoDekLost", says: "the bucket's copy after the record instead of before"},
	{name: "cx_keyed_stale_raw", module: "keyed", set: set("Mishaps", `{"stale"}`, "MaxWrite", "1"), want: "NoKeyOrphans", says: "a raw restore of a record at any time: an orphan until it is repaired"},
	{name: "cx_keyed_putback_raw", module: "keyed", set: keyedLose, off: []string{"putback-fence"}, instead: []string{"RecOK"}, want: "RecOK", says: "a record put back without the fence check"},
	{name: "cx_keyed_upgraded_late", module: "keyed", set: with(keyedFormats, set("Upgraded", "TRUE", "MaxWrite", "1", "MaxDek", "1")), edits: change(`/\ fence = {} /\ kst[1] = "active" /\ fence' = {1}`, `/\ fence' = fence \cup {1}`), want: "NoKeyOrphans", says: "a missing fence of records opened whatever the KEK's state is"},
	{name: "cx_keyed_retire_early", module: "keyed", off: []string{"retire-records-last"}, instead: []string{"RetireAfterSwitch"}, steps: []string{"ExposedSetClosed"}, want: "RetireAfterSwitch", says: "retire without looking at the phase"},
	{name: "cx_keyed_seal_early", module: "keyed", off: []string{"seal-records-after-switch"}, want: "PointerUsable", says: "sealing before the switch"},
	{name: "cx_keyed_unbound", module: "keyed", set: keyedMove, off: []string{"bind"}, want: "NoWrongRow", says: "the row's key not bound"},
	{name: "cx_keyed_reader", module: "keyed", set: set("Reader", "{q1}", "MaxWrite", "1"), off: []string{"reread-record"}, want: "ReadersServed", says: "no second read of the record"},
	{name: "cx_keyed_scan_skipped", module: "keyed", set: with(keyedFormats, set("MaxWrite", "1")), off: []string{"scan-rows"}, want: "NoKeyOrphans", says: "no row read because the table is declared keyed"},
	{name: "cx_keyed_emb_over_keyed", module: "keyed", set: with(keyedFormats, keyedWalker, set("Convert", "TRUE", "MaxWrite", "1")), off: []string{"emb-on-emb"}, want: "NoKeyOrphans", says: "an embedded update that does not ask for an embedded row"},
	{name: "cx_keyed_back_unfenced", module: "keyed", set: with(keyedWalker, keyedQuiet, set("Back", "TRUE")), off: []string{"back-fence"}, want: "NoKeyOrphans", says: "keyed to embedded by a plain conditional write"},
	{name: "cx_keyed_no_walk", module: "keyed", set: set("Modes", emergency, "MaxWrite", "1"), off: []string{"walk"}, want: "ExposedOnlyLate", says: "an emergency that rewraps records only"},
	{name: "cx_keyed_exposed_gone", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "Deletes", "TRUE", "MaxWrite", "1")), also: []string{"ExposedGone"}, want: "ExposedGone", says: "\"no exposed row after an emergency\" cannot be promised of keyed rows"},
	{name: "cx_keyed_row_epoch", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "MaxWrite", "1")), off: []string{"row-epoch"}, want: "NoReexposure", says: "updates of keyed rows without an epoch"},
	{name: "deep_cx_keyed_walk_epoch", module: "keyed", deep: true, set: with(keyedWalker, set("Modes", emergency, "Formats", `{"emb"}`, "Convert", "TRUE", "MaxWrite", "1", "MaxDek", "4")), off: []string{"walk-epoch"}, want: "NoReexposure", says: "a converter with an old DEK"},
	{name: "cx_keyed_forget_born", module: "keyed", set: set("Modes", emergency, "MaxWrite", "1"), off: []string{"keep-born"}, instead: []string{"NoKeyOrphans", "ExposedOnlyLate"}, want: "ExposedOnlyLate", says: "a rewrap that overwrites the record's birth epoch"},
	{name: "cx_keyed_forget_born_record", module: "keyed", set: keyedQuiet, off: []string{"keep-born"}, instead: []string{"BornBound"}, want: "BornBound", says: "and what it forgets"},
	{name: "cx_keyed_walk_version", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "Deletes", "TRUE", "MaxWrite", "1")), off: []string{"walk-ciphertext"}, want: "NoLostUpdate", says: "a walk conditional on dek_id and version: delete and insert begin at 1 again"},
	{name: "cx_keyed_version_restart", module: "keyed", set: set("Writer", "{w1, w2}", "Deletes", "TRUE", "MaxRot", "0", "MaxWrite", "3", "MaxDek", "1"), off: []string{"update-ciphertext"}, want: "NoLostUpdate", says: "an application's update, likewise"},
	{name: "mut_keyed_create_late", module: "keyed", set: set("Modes", emergency, "MaxWrite", "1"), off: []string{"create-fence"}, instead: []string{""}, want: "ExposedSetClosed", says: "a record of an exposed DEK created after the seal"},
	{name: "mut_keyed_walk_upsert", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "MaxWrite", "0", "Writer", "{}", "Deletes", "TRUE")), edits: change(`IF x.f = me.was.f /\ x.d = me.was.d /\ x.b = me.was.b /\ x.ep <= me.k`, `IF x = NoRow`), instead: []string{""}, want: "NoRowComesBack", says: "a walk that puts a deleted row back"},
	{name: "mut_keyed_seal_active", module: "keyed", set: keyedQuiet, edits: change(`IF k <= n /\ kst[k] = "draining" THEN "sealed"`, `IF k <= n + 1 /\ kst[k] # "none" THEN "sealed"`), instead: []string{""}, want: "KekForward", says: "a seal of the KEK that was switched to"},
}

// keyedEnds are variants of what must happen in the end.
var keyedEnds = []variant{
	{name: "live_keyed", module: "keyed", set: set("MaxWrite", "1"), live: "FairSpec", want: tlc.Holds, says: "a rotation of keyed rows ends"},
	{name: "deep_keyed_live_emergency", module: "keyed", deep: true, set: with(keyedWalker, set("Modes", emergency, "Sweep", "TRUE", "Deletes", "TRUE", "MaxWrite", "1")), live: "FairSpec", steps: []string{"Terminates", "ExposedEnds"}, want: tlc.Holds, says: "an emergency ends, and with a sweep all exposed rows end"},
	{name: "mut_keyed_rewrap_never", module: "keyed", set: with(keyedQuiet, set("MaxDek", "1")), edits: change(`Reached(n, "sealed") /\ rec[d].kek \in`, `FALSE /\ rec[d].kek \in`), live: "FairSpec", want: tlc.Temporal, says: "a rewrap that moves no record"},
	{name: "live_keyed_no_sweep", module: "keyed", set: with(keyedWalker, set("Modes", emergency, "Deletes", "TRUE", "MaxWrite", "1")), live: "FairSpec", steps: []string{"ExposedEnds"}, want: tlc.Temporal, says: "without a sweep they may stay"},
	{name: "deep_keyed_live_takeover", module: "keyed", deep: true, set: with(keyedTakeover, keyedQuiet, set("MaxDek", "3")), live: "FairSpec", want: tlc.Holds, says: "an emergency that took over ends"},
	{name: "deep_keyed_live_walker_keeps", module: "keyed", deep: true, set: with(keyedTakeover, keyedQuiet, set("MaxDek", "3")), live: "SlackSpec", want: tlc.Temporal, says: "it may not if a walker keeps its DEK from one emergency to the next"},
	{name: "mut_keyed_no_doctor", module: "keyed", set: with(keyedQuiet, set("Mishaps", `{"lose"}`, "MaxDek", "1", "MaxRot", "0")), edits: change(`Bad(d) /\ p[2] \in fence`, `FALSE`), live: "FairSpec", steps: []string{"OrphansEnd"}, want: tlc.Temporal, says: "a lost record that is not put back"},
	{name: "live_keyed_lose", module: "keyed", set: with(keyedQuiet, set("Mishaps", `{"lose"}`, "MaxDek", "1")), live: "FairSpec", steps: []string{"OrphansEnd", "Terminates"}, want: tlc.Holds, says: "with the doctor it comes back, and the rotation ends"},
	{name: "deep_keyed_live_lose", module: "keyed", deep: true, set: keyedLose, live: "FairSpec", steps: []string{"OrphansEnd", "Terminates"}, want: tlc.Holds, says: "the same beside a writer"},
	{name: "deep_keyed_live_stale", module: "keyed", deep: true, set: set("Mishaps", `{"stale"}`, "MaxWrite", "1"), live: "FairSpec", steps: []string{"OrphansEnd", "Terminates"}, want: tlc.Holds, says: "and a stale one is replaced"},
	{name: "live_keyed_convert", module: "keyed", set: with(keyedWalker, keyedQuiet, set("Convert", "TRUE", "MaxRot", "0")), live: "FairSpec", steps: []string{"Converted"}, want: tlc.Holds, says: "a conversion ends"},
	{name: "mut_keyed_convert_never", module: "keyed", set: with(keyedWalker, keyedQuiet, set("Convert", "TRUE", "MaxRot", "0")), edits: change(`IF x.f = me.was.f /\ x.d = me.was.d /\ x.b = me.was.b /\ x.ep <= me.k`, `IF FALSE`), live: "FairSpec", steps: []string{"Converted"}, want: tlc.Temporal, says: "a converter that writes nothing"},
	{name: "deep_keyed_live_convert", module: "keyed", deep: true, set: with(keyedWalker, keyedQuiet, set("Convert", "TRUE", "MaxDek", "3")), live: "FairSpec", steps: []string{"Converted", "Terminates"}, want: tlc.Holds, says: "and beside a rotation"},
}

// keyedDeep are variants for a budget of time.
var keyedDeep = []variant{
	{name: "deep_keyed_mixed", module: "keyed", deep: true, set: with(keyedFormats, keyedWalker, set("Convert", "TRUE", "MaxDek", "3", "Deletes", "TRUE", "Modes", both)), want: tlc.Holds, says: "both modes, both formats, conversion, deletes"},
	{name: "deep_keyed_two_rotations", module: "keyed", deep: true, set: with(keyedWalker, set("MaxRot", "2", "Modes", both, "Writer", "{w1, w2}", "MaxWrite", "1", "Deletes", "TRUE", "Sweep", "TRUE")), want: tlc.Holds, says: "two rotations of both modes, two writers, sweep"},
	{name: "deep_keyed_mishaps", module: "keyed", deep: true, set: with(keyedWalker, set("Mishaps", `{"lose", "stale", "old-rows"}`, "MaxRot", "2", "Modes", both, "MaxWrite", "1", "Sweep", "TRUE")), instead: without1(keyedLost, "RecOK"), want: tlc.Holds, says: "all mishaps over two rotations"},
}

// without1 is a list without one of its words.
func without1(list []string, word string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == word })
}
