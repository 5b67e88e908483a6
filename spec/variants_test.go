package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// variant is a model with its bounds, features and mechanisms, and the verdict
// that TLC must reach.
type variant struct {
	name    string
	module  string            // "" is rotation
	set     map[string]string // constants that differ from the module's base
	off     []string          // mechanisms taken away, by their names in without
	edits   []edit            // other changes of the model
	want    string            // tlc.Holds, or the property that must be violated
	live    string            // "": safety alone; else the specification with fairness
	also    []string          // invariants beyond the module's
	instead []string          // invariants instead of the module's, "" for none
	steps   []string          // properties of steps instead of the module's
	heavy   bool              // takes more than a few seconds
	deep    bool              // only with MATTER_SPEC_BUDGET
	share   int               // how many shares of the budget it gets; 0 is one
	walks   int               // > 0: random walks of so many steps instead of a search
	says    string            // what it shows
}

// model is what all variants of one module share.
type model struct {
	base       map[string]string
	invariants []string
	properties []string // safety properties of single steps
	liveness   []string
	symmetry   string
	spec       string            // its specification; "" for Spec
	replace    map[string]string // definitions that the module replaces by its own
}

var models = withEvidence(withKeyed(withArchive(withSetBack(withLag(withDoctor(map[string]model{
	"rotation": {
		base: map[string]string{
			"Row": "{r1}", "Writer": "{w1}", "Reader": "{}", "Shard": "{s1, s2}", "Modes": `{"normal"}`,
			"MaxRot": "1", "MaxMint": "1", "Dup": "0", "MaxWrite": "2", "MaxRenew": "1",
			"Leases": "FALSE", "Recheck": "TRUE", "DekCache": "FALSE", "Deletes": "FALSE", "Restore": `"off"`,
			"Side": "{}", "Historic": "0", "Foreign": `"off"`, "Lies": "FALSE", "Unfit": "FALSE", "Unmarked": "FALSE",
			"Takeover": `"off"`,
		},
		invariants: []string{
			"NoKeyOrphans", "RetireAfterSwitch", "PointerUsable", "NewKekUsable", "AtMostOneRotation", "NoRollbackAfterSwitch",
			"EmergencyForward", "RowIntegrity", "ExposedDeksGone", "SealedIsShut",
			"OldsDisabled", "SupersededOff", "LockIsRotation", "NoPendingOver", "ArbiterNamed", "EpochOfRows",
		},
		properties: []string{
			"EpochMonotone", "KekForward", "NoLostWrite", "NoRenewedLeaseLost", "DrainRevokesOld", "NoRowComesBack", "ReadersServed",
			"TestedBeforeSwitch", "RetiredIsMoved", "CompletedIsMoved", "OneKekLeft", "EndedIsEnded", "ModeFixed",
		},
		liveness: []string{"Terminates", "EveryReadEnds"},
		symmetry: "Sym",
	},
	"outbox": {
		base:       map[string]string{"MaxEvent": "3", "Publisher": "{p1, p2}", "MaxForeign": "0", "Restores": "FALSE"},
		invariants: []string{"AuditLinear", "AuditOnceInOrder", "EveryEffectRecorded", "MarkedIsStored", "DoneIsStored", "GenerationsInOrder", "NoGaps"},
		properties: []string{"WrittenOnce", "MarkMonotone"},
		liveness:   []string{"AllStored"},
		symmetry:   "Sym",
	},
	"checkpoint": {
		base:       map[string]string{"Segment": "{a, b}", "MaxRot": "2", "MaxForged": "1", "Restarts": "FALSE"},
		invariants: []string{"SeenWhole"},
		symmetry:   "Sym",
	},
}))))))

// withDoctor adds the module doctor, which is rotation with items of the control table that
// are lost and rebuilt.
func withDoctor(all map[string]model) map[string]model {
	m := all["rotation"]
	m.base = with(m.base, set("MaxWrite", "1", "Shard", "{s1}"))
	m.spec = "DSpec"
	m.invariants = []string{"RebuiltNoKeyOrphans", "RebuiltRetireAfterSwitch", "RebuiltPointerUsable", "RebuiltSealedIsShut", "EveryRowOpens"}
	m.properties = []string{"EpochMonotone"}
	all["doctor"] = m
	return all
}

var (
	both       = `{"normal", "emergency"}`
	emergency  = `{"emergency"}`
	two        = map[string]string{"Row": "{r1, r2}", "Writer": "{w1, w2}"}
	leases     = map[string]string{"Leases": "TRUE", "Writer": "{w1, w2}", "Shard": "{s1}", "MaxRenew": "0"}
	renewed    = map[string]string{"MaxRenew": "1", "Writer": "{w1}"}
	keys       = map[string]string{"Modes": both, "MaxMint": "2", "Dup": "1", "MaxWrite": "0", "Shard": "{s1}"}
	silent     = map[string]string{"MaxWrite": "0", "Writer": "{}", "Row": "{}"}
	historic   = map[string]string{"Historic": "1", "Shard": "{s1}"}
	tables     = map[string]string{"Side": "{r1}", "MaxWrite": "1", "Shard": "{s1}"}
	foreign    = map[string]string{"Foreign": `"early"`, "Shard": "{s1}"}
	idle       = map[string]string{"Foreign": `"idle"`, "Writer": "{}", "Shard": "{s1}", "Historic": "1"}
	halted     = map[string]string{"Restore": `"halted"`, "Deletes": "TRUE", "Shard": "{s1}", "MaxWrite": "1"}
	relabelled = with(historic, set("Writer", "{}", "MaxWrite", "0", "Lies", "TRUE", "Restore", `"early"`, "Deletes", "TRUE"))
	late       = with(halted, set("Restore", `"late"`))
	takeover   = map[string]string{"MaxRot": "2", "Modes": both, "Takeover": `"normal"`, "MaxWrite": "1", "Shard": "{s1}"}
	known      = []string{"KnownBeforeSwitch"}
	moved      = []string{"RetiredIsMoved", "CompletedIsMoved"}
)

// with merges sets of constants, the later ones first in rank.
func with(sets ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, s := range sets {
		maps.Copy(out, s)
	}
	return out
}

func set(pairs ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

var variants = slices.Concat(mechanisms, mutants, pairs, lags, setBacks, checkpoints, archives, keyeds, evidences, liveness, large, walks)

// mechanisms are the code as it is, and the same with one mechanism taken away.
var mechanisms = []variant{
	{name: "reach_completed", set: set("MaxWrite", "1"), also: []string{"NeverCompleted"}, want: "NeverCompleted", says: "the model can finish a rotation"},

	{name: "reach_two_olds", set: with(historic, set("MaxWrite", "0")), also: []string{"NeverLeftHistoric"}, want: "NeverLeftHistoric", says: "a rotation that leaves two KEKs can finish"},
	{name: "reach_source_joined", set: with(tables, set("Modes", both)), also: []string{"NeverJoined"}, want: "NeverJoined", says: "a rotation that a source joined can finish"},

	{name: "reach_taken_over", set: with(takeover, set("MaxWrite", "0")), also: []string{"NeverTaken"}, want: "NeverTaken", says: "an emergency that has superseded a rotation can finish"},

	// The code as it is.
	{name: "ok_plain", want: tlc.Holds, says: "one rotation beside one writer"},
	{name: "ok_two_writers_two_rows", heavy: true, set: with(two, set("Deletes", "TRUE")), want: tlc.Holds, says: "two writers, two rows, deletes; no leases at all: safety does not rest on them"},
	{name: "ok_dek_cache", heavy: true, set: set("DekCache", "TRUE", "Writer", "{w1, w2}", "MaxWrite", "3"), want: tlc.Holds, says: "writers that use a cached DEK for several rows"},
	{name: "ok_emergency_payloads", set: set("Modes", emergency, "DekCache", "TRUE", "Deletes", "TRUE"), want: tlc.Holds, says: "an emergency re-encrypts payloads beside writers with cached DEKs"},
	{name: "ok_leases", heavy: true, set: with(leases, set("MaxWrite", "1")), also: []string{"NoHolderRefused"}, want: tlc.Holds, says: "expiry at any time, revocation by conditional delete; no holder is refused"},
	{name: "ok_leases_renewed", set: with(leases, renewed, set("MaxWrite", "1")), also: []string{"NoHolderRefused"}, want: tlc.Holds, says: "heartbeats, beside what drain has judged"},
	{name: "ok_keys", heavy: true, set: with(keys, silent), want: tlc.Holds, says: "duplicated CreateKey, late mints, sweeps, re-mints of an emergency"},
	{name: "ok_two_rotations", set: set("MaxRot", "2", "MaxWrite", "1", "Modes", both), want: tlc.Holds, says: "stale calls and workers of an older rotation"},
	{name: "deep_two_rotations_late_keys", deep: true, set: with(silent, set("MaxRot", "2", "Dup", "1", "Shard", "{s1}")), want: tlc.Holds, says: "CreateKey of an older rotation that lands in a later one"},
	{name: "ok_readers", set: set("Reader", "{q1}", "MaxRot", "2", "MaxWrite", "1", "Shard", "{s1}"), want: tlc.Holds, says: "readers with stale rows in hand"},
	{name: "ok_restore_fenced", set: set("Restore", `"fenced"`, "Deletes", "TRUE"), want: tlc.Holds, says: "restores through the fence, at any time"},
	{name: "ok_restore_early", set: set("Restore", `"early"`, "Deletes", "TRUE"), want: tlc.Holds, says: "raw restores that end before the second scan begins"},
	{name: "ok_restore_relabelled", set: relabelled, want: tlc.Holds, says: "and of rows whose label somebody overwrote, which count for both KEKs"},
	{name: "ok_rewrap_before_seal", off: []string{"rewrap-after-seal"}, want: tlc.Holds, says: "the second scan alone would make up for a rewrap that began before the seal"},
	{name: "ok_no_confirm", off: []string{"confirm"}, want: tlc.Holds, says: "without raw restores the seal alone would make up for a missing second scan"},
	{name: "ok_two_olds", set: with(historic, set("Row", "{r1, r2}", "Modes", both)), want: tlc.Holds, says: "a historic KEK is registered and left together with the pointer's"},
	{name: "ok_two_olds_two_rotations", set: with(historic, set("MaxRot", "2", "MaxWrite", "1", "Modes", both)), want: tlc.Holds, says: "before the first rotation or before the second"},
	{name: "ok_sources_two_tables", set: with(tables, set("Row", "{r1, r2}")), want: tlc.Holds, says: "rows in both tables"},
	{name: "ok_sources", set: with(tables, set("MaxWrite", "2", "Modes", both)), want: tlc.Holds, says: "a second table that is marked, registered, removed, that joins"},
	{name: "ok_unlabelled", set: with(foreign, historic, set("Modes", both)), want: tlc.Holds, says: "rows without a label, until the second scan begins; adoption at any time"},
	{name: "ok_known_rows", set: with(idle, set("Unfit", "TRUE")), steps: known, want: tlc.Holds, says: "unlabelled rows, rows under a historic KEK and an unfit KEK are known before the switch"},
	{name: "ok_known_tables", set: with(tables, set("Writer", "{}", "Foreign", `"idle"`)), steps: known, want: tlc.Holds, says: "marked tables too"},
	{name: "ok_labels_lie", set: with(historic, set("Lies", "TRUE")), want: tlc.Holds, says: "labels overwritten at any time: the deep pass opens what it vouches for"},
	{name: "ok_restore_halted", set: halted, want: tlc.Holds, says: "raw restores while the execution has halted before the retirement: the second scan begins again"},
	{name: "ok_restore_late", set: late, instead: []string{"RowIntegrity"}, steps: moved, want: tlc.Holds, says: "and after it: they are orphans, but neither retirement nor verify passes them over"},
	{name: "ok_takeover", heavy: true, set: takeover, also: []string{"EmergencyStarts"}, want: tlc.Holds, says: "an emergency ends a rotation at any phase of it; stale workers and steps of that one continue"},
	{name: "ok_takeover_moved_one", set: with(takeover, set("Row", "{r1, r2}", "MaxWrite", "0")), want: tlc.Holds, says: "two rows, of which the other rotation may have moved one"},
	{name: "deep_takeover_two_rows", deep: true, set: with(takeover, set("Row", "{r1, r2}", "Deletes", "TRUE")), want: tlc.Holds, says: "and applications that write and delete them"},
	{name: "ok_takeover_nested", heavy: true, set: with(takeover, set("MaxRot", "3", "MaxWrite", "0", "Takeover", `"any"`)), also: []string{"EmergencyStarts"}, want: tlc.Holds, says: "an emergency ends an emergency"},
	{name: "deep_takeover_keys", deep: true, set: with(keys, silent, set("MaxRot", "2", "MaxMint", "1", "Modes", `{"normal"}`, "Takeover", `"normal"`)), also: []string{"RegisteredOn"}, want: tlc.Holds, says: "late CreateKeys and sweeps of the rotation that was ended"},
	{name: "deep_takeover_leases", deep: true, set: with(takeover, set("Leases", "TRUE", "MaxRenew", "0")), want: tlc.Holds, says: "leases on several old KEKs"},
	{name: "deep_takeover_historic", deep: true, set: with(takeover, historic), want: tlc.Holds, says: "beside a historic KEK"},
	{name: "deep_takeover_halted", deep: true, set: with(takeover, halted), want: tlc.Holds, says: "a rotation that has halted, raw restores meanwhile"},

	// One mechanism taken away.
	{name: "cx_insert_unfenced", off: []string{"insert-fence"}, want: "NoKeyOrphans", says: "inserts that skip the fence"},
	{name: "cx_update_unfenced", off: []string{"update-epoch"}, want: "NoKeyOrphans", says: "updates that ignore the row's epoch"},
	{name: "cx_seal_unchecked", off: []string{"seal-all"}, want: "SealedIsShut", says: "a transition that does not require every shard sealed"},
	{name: "cx_seal_unchecked_orphan", off: []string{"seal-all"}, instead: []string{"NoKeyOrphans"}, want: "NoKeyOrphans", says: "and what comes of it"},
	{name: "cx_seal_early", off: []string{"seal-after-switch"}, want: "PointerUsable", says: "sealing before the switch"},
	{name: "cx_no_drain", set: leases, off: []string{"drain"}, also: []string{"NoHolderRefused"}, want: "NoHolderRefused", says: "sealing without waiting for leases: harmless to data, refuses holders"},
	{name: "cx_no_recheck", set: with(leases, set("Recheck", "FALSE")), also: []string{"NoHolderRefused"}, want: "NoHolderRefused", says: "a lease put after the switch does not count"},
	{name: "cx_revoke_blind", set: with(leases, renewed, set("MaxWrite", "1")), off: []string{"revoke-condition"}, want: "NoRenewedLeaseLost", says: "an unconditional delete of a lease that was renewed"},
	{name: "cx_no_rewrap", off: []string{"rewrap"}, want: "NoKeyOrphans", says: "the runbook as it was written: no rewrap step"},
	{name: "cx_rewrap_blind", off: []string{"rewrap-condition"}, want: "RowIntegrity", says: "a rewrap that overwrites a row that changed"},
	{name: "cx_rewrap_upsert", set: set("Deletes", "TRUE"), off: []string{"rewrap-condition", "rewrap-no-upsert"}, instead: []string{""}, want: "NoRowComesBack", says: "a rewrap that brings a deleted row back"},
	{name: "cx_rewrap_old_epoch", off: []string{"rewrap-epoch"}, want: "NoKeyOrphans", says: "a rewrap that leaves the row's epoch"},
	{name: "cx_rewrap_payload_blind", set: set("Modes", emergency, "DekCache", "TRUE"), off: []string{"rewrap-payload-condition"}, want: "NoLostWrite", says: "an emergency that re-encrypts a payload that changed"},
	{name: "cx_rewrap_keeps_dek", set: set("Modes", emergency), off: []string{"fresh-dek"}, want: "ExposedDeksGone", says: "an emergency that only rewraps"},
	{name: "cx_rewrap_early_no_confirm", off: []string{"rewrap-after-seal", "confirm"}, want: "NoKeyOrphans", says: "a rewrap before the seal and no second scan"},
	{name: "cx_no_confirm_restore", set: set("Restore", `"early"`, "Deletes", "TRUE"), off: []string{"confirm"}, want: "NoKeyOrphans", says: "a raw restore behind the first scan and no second one"},
	{name: "cx_restore_relabelled", set: relabelled, off: []string{"restore-label"}, instead: []string{"NoKeyOrphans"}, want: "NoKeyOrphans", says: "a raw restore that counts for the KEK which wraps the DEK alone"},
	{name: "cx_restore_raw", set: set("Restore", `"raw"`, "Deletes", "TRUE"), want: "NoKeyOrphans", says: "a raw restore at any time: the runbook must forbid it"},
	{name: "cx_retire_early", off: []string{"retire-last"}, instead: []string{"RetireAfterSwitch"}, steps: []string{"EpochMonotone"}, want: "RetireAfterSwitch", says: "retiring without looking at the phase"},
	{name: "cx_disable_early", off: []string{"registry-first"}, want: "NoKeyOrphans", says: "DisableKey by argument, before the registry says retired"},
	{name: "cx_rollback_late", off: []string{"psf-before-switch"}, instead: []string{"NoRollbackAfterSwitch"}, want: "NoRollbackAfterSwitch", says: "PreSwitchFailure after the switch"},
	{name: "cx_rollback_late_pointer", off: []string{"psf-before-switch"}, instead: []string{"PointerUsable"}, want: "PointerUsable", says: "and what comes of it"},
	{name: "cx_rollback_emergency", set: set("Modes", emergency), off: []string{"emergency-forward"}, want: "EmergencyForward", says: "an emergency that rolls back to the compromised KEK"},
	{name: "cx_switch_blind", set: set("MaxRot", "2", "MaxWrite", "0"), off: []string{"switch-condition"}, want: "PointerUsable", says: "a blind pointer write of an older rotation's late Switch"},
	{name: "cx_no_lock", set: set("MaxRot", "2", "MaxWrite", "0"), off: []string{"lock"}, want: "AtMostOneRotation", says: "a start that ignores the lock"},
	{name: "cx_mint_no_arbiter", set: with(keys, silent, set("Modes", emergency)), off: []string{"arbiter"}, instead: []string{"NewKekUsable"}, want: "NewKekUsable", says: "registering any key of the rotation: a sweep of the attempt before disables it"},
	{name: "cx_reap_reads_first", set: with(keys, silent, set("Modes", emergency)), off: []string{"reap-order"}, want: "NewKekUsable", says: "a sweep that reads the record before it lists the keys"},
	{name: "cx_reap_during_mint", set: with(keys, silent), off: []string{"reap-waits"}, want: "NewKekUsable", says: "a sweep while a mint is under way"},
	{name: "cx_pass_off_old", set: historic, off: []string{"strict-pass"}, want: "NoKeyOrphans", says: "passes that ask for \"not under the old KEK\" instead of \"under the new one\""},
	{name: "cx_pointer_only", set: historic, off: []string{"all-olds"}, want: "OneKekLeft", says: "a rotation that leaves the pointer's KEK alone"},
	{name: "cx_disable_one", set: historic, off: []string{"disable-all"}, want: "OldsDisabled", says: "a rotation that completes with one of its old KEKs enabled"},
	{name: "cx_takeover_pointer_only", set: takeover, off: []string{"all-olds"}, want: "ExposedDeksGone", says: "an emergency that leaves the KEK of the other rotation alone"},
	{name: "cx_takeover_seal_one", set: takeover, off: []string{"seal-every-old"}, instead: []string{"NoKeyOrphans"}, steps: []string{"EpochMonotone"}, want: "NoKeyOrphans", says: "an emergency that seals the pointer's KEK alone"},
	{name: "cx_takeover_left", set: with(takeover, set("MaxWrite", "0")), off: []string{"left"}, want: "SupersededOff", says: "an emergency that completes with a key enabled that the other rotation had retired"},
	{name: "deep_cx_takeover_sweep", deep: true, set: with(keys, silent, set("MaxRot", "2", "MaxMint", "1", "Modes", `{"normal"}`, "Takeover", `"normal"`)), off: []string{"keep-superseded"}, instead: []string{"RegisteredOn"}, want: "RegisteredOn", says: "a sweep for an older rotation's strays that disables a KEK the registry names"},
	{name: "cx_takeover_two_drivers", set: with(takeover, set("MaxWrite", "0")), off: []string{"supersede"}, want: "AtMostOneRotation", says: "an emergency that takes the lock and leaves the other's record open"},
	{name: "cx_register_open", set: with(historic, set("Restore", `"fenced"`, "Deletes", "TRUE")), off: []string{"register-shut"}, instead: []string{"NoKeyOrphans"}, want: "NoKeyOrphans", says: "a historic KEK with an open fence"},
	{name: "cx_register_late", set: idle, off: []string{"register-idle"}, steps: known, want: "KnownBeforeSwitch", says: "a historic KEK registered beside a rotation that does not leave it"},
	{name: "cx_start_stale", set: with(tables, foreign), off: []string{"at-registry"}, want: "NoKeyOrphans", says: "a start that freezes the sources of before one was registered"},
	{name: "cx_no_mark", set: tables, off: []string{"mark-first"}, want: "NoKeyOrphans", says: "a writer that leaves no mark of its table"},
	{name: "cx_unmarked_table", set: with(tables, set("Unmarked", "TRUE")), want: "NoKeyOrphans", says: "rows of a table that nobody has marked or registered: out of reach"},
	{name: "cx_start_forgotten", set: with(tables, set("Writer", "{}")), off: []string{"start-marks"}, steps: known, want: "KnownBeforeSwitch", says: "a start while a marked table is not a source"},
	{name: "cx_retire_forgotten", set: tables, off: []string{"retire-marks"}, want: "NoKeyOrphans", says: "a retirement while a marked table is not a source"},
	{name: "cx_join_unseen", set: with(tables, set("Modes", both)), off: []string{"rev"}, want: "NoKeyOrphans", says: "a conclusion from passes of before a source joined"},
	{name: "cx_join_uncounted", set: with(tables, set("Unmarked", "TRUE", "Writer", "{}", "Foreign", `"idle"`)), off: []string{"add-settled"}, instead: []string{""}, steps: known, want: "KnownBeforeSwitch", says: "a source that joins between the census and the switch"},
	{name: "cx_remove_full", set: tables, off: []string{"remove-census"}, want: "NoKeyOrphans", says: "a source removed with rows in it"},
	{name: "cx_remove_in_use", set: tables, off: []string{"remove-stopped"}, want: "NoKeyOrphans", says: "a source removed while a process still writes into it"},
	{name: "cx_unlabelled_skipped", set: foreign, off: []string{"no-skip"}, want: "NoKeyOrphans", says: "passes that take a row without a label for no envelope"},
	{name: "cx_foreign_raw", set: with(foreign, set("Foreign", `"raw"`)), want: "NoKeyOrphans", says: "rows written past the fence after the second scan began: out of reach"},
	{name: "cx_update_no_epoch", set: foreign, off: []string{"update-fence"}, want: "NoKeyOrphans", says: "updates of rows without an epoch that ask for no open fence"},
	{name: "cx_adopt_blind", set: foreign, off: []string{"adopt-condition"}, want: "NoKeyOrphans", says: "an adoption that labels a row that changed"},
	{name: "cx_no_census", set: idle, off: []string{"count"}, steps: known, want: "KnownBeforeSwitch", says: "a mint without a census"},
	{name: "cx_no_rehearsal", set: with(silent, set("Unfit", "TRUE")), off: []string{"rehearse"}, steps: known, want: "KnownBeforeSwitch", says: "a switch to a KEK that no real row was rewrapped to for trial"},
	{name: "cx_rehearsed_other_key", set: with(silent, set("Unfit", "TRUE", "Modes", emergency, "MaxMint", "2")), off: []string{"rehearse-key"}, steps: known, want: "KnownBeforeSwitch", says: "a rehearsal of the attempt before that counts for the next one's KEK"},
	{name: "cx_label_as_proof", set: set("Lies", "TRUE"), off: []string{"deep"}, want: "NoKeyOrphans", says: "passes that believe a label"},
	{name: "cx_scan_resumed", set: halted, off: []string{"fresh-scan"}, want: "NoKeyOrphans", says: "a retirement that counts a scan of before the halt"},
	{name: "cx_verify_resumed", set: late, off: []string{"fresh-scan"}, instead: []string{""}, steps: []string{"CompletedIsMoved"}, want: "CompletedIsMoved", says: "a verify that counts a scan of before the halt"},
	{name: "cx_restore_behind_verify", set: with(late, set("Restore", `"raw"`)), instead: []string{""}, steps: []string{"CompletedIsMoved"}, want: "CompletedIsMoved", says: "a raw restore between the last scan and its conclusion: out of reach"},
	{name: "cx_reader_gives_up", set: set("Reader", "{q1}"), off: []string{"reread"}, want: "ReadersServed", says: "a reader that does not read the row again"},

	// Liveness.
	{name: "live_normal", set: set("MaxWrite", "1", "Reader", "{q1}"), live: "FairSpec", want: tlc.Holds, says: "every rotation ends, every read ends"},
	{name: "live_emergency", set: set("MaxWrite", "1", "Modes", both, "MaxMint", "2"), live: "FairSpec", want: tlc.Holds, says: "an emergency too"},
	{name: "live_leases", set: set("MaxWrite", "1", "Leases", "TRUE", "Shard", "{s1}"), live: "FairSpec", want: tlc.Holds, says: "drain ends if expired leases are revoked"},
	{name: "live_hang", set: set("MaxWrite", "1", "Leases", "TRUE", "Shard", "{s1}"), live: "HangSpec", want: tlc.Temporal, says: "it may not end if leases never expire"},
	{name: "live_unlabelled", set: with(foreign, set("Foreign", `"idle"`, "Modes", both)), live: "FairSpec", want: tlc.Holds, says: "a rotation of unlabelled rows ends when they are adopted"},
	{name: "live_sources", set: with(tables, set("Modes", both)), live: "FairSpec", want: tlc.Holds, says: "one that a marked table stops ends when the table is registered"},
	{name: "live_unregistered", set: with(historic, set("Modes", emergency, "MaxWrite", "0")), live: "FairSpec", want: tlc.Temporal, says: "an emergency does not end while rows are under a KEK that nobody registered before it"},
	{name: "live_takeover", heavy: true, set: with(takeover, set("Row", "{r1}", "MaxWrite", "0")), live: "FairSpec", want: tlc.Holds, says: "an emergency that ends a rotation ends itself"},

	// The audit chain's outbox.
	{name: "ok_outbox", module: "outbox", want: tlc.Holds, says: "publishers that crash, pause and repeat"},
	{name: "ok_outbox_foreign", module: "outbox", set: set("MaxEvent", "2", "MaxForeign", "2"), want: tlc.Holds, says: "others write into the bucket: the chain continues in a new generation"},
	{name: "live_outbox_foreign", module: "outbox", set: set("MaxEvent", "2", "Publisher", "{p1}", "MaxForeign", "2"), live: "FairSpec", want: tlc.Holds, says: "nothing that others write keeps a record out of it"},
	{name: "live_outbox_blocked", module: "outbox", set: set("MaxEvent", "2", "Publisher", "{p1}", "MaxForeign", "1"), off: []string{"generations"}, live: "FairSpec", want: tlc.Temporal, says: "without generations one object stops the chain forever"},
	{name: "cx_outbox_begun_twice", module: "outbox", set: set("MaxEvent", "2", "MaxForeign", "1"), off: []string{"begin-on-condition"}, want: "MarkedIsStored", says: "two publishers that met one object both begin a generation"},
	{name: "deep_outbox_restored", deep: true, module: "outbox", set: set("Restores", "TRUE", "MaxForeign", "1"), instead: []string{"GenerationsInOrder"}, steps: []string{"WrittenOnce"}, want: tlc.Holds, says: "the control table is set back beside publishers that have read more"},
	{name: "cx_outbox_begun_stale", module: "outbox", set: set("Restores", "TRUE", "MaxForeign", "1"), off: []string{"begin-on-head"}, instead: []string{"GenerationsInOrder"}, steps: []string{"WrittenOnce"}, want: "GenerationsInOrder", says: "a generation begun for a record that the control table has forgotten: the next one would begin before it"},
	{name: "live_outbox", module: "outbox", set: set("Publisher", "{p1}"), live: "FairSpec", want: tlc.Holds, says: "every record gets into the bucket"},
	{name: "cx_outbox_after_commit", module: "outbox", off: []string{"in-transaction"}, want: "EveryEffectRecorded", says: "a record written after the effect, not with it"},
	{name: "cx_outbox_overwrite", module: "outbox", off: []string{"write-once", "seq-in-transaction"}, instead: []string{"AuditLinear"}, want: "AuditLinear", says: "plain puts numbered by listing the bucket"},
	{name: "cx_outbox_numbered_late", module: "outbox", off: []string{"seq-in-transaction"}, want: "AuditOnceInOrder", says: "If-None-Match alone, numbered by listing the bucket"},
	{name: "cx_outbox_mark_early", module: "outbox", off: []string{"put-before-mark"}, want: "MarkedIsStored", says: "marking before the put"},
	{name: "cx_outbox_step_early", module: "outbox", off: []string{"publish-before-done"}, want: "DoneIsStored", says: "a step that returns before its record is in the bucket"},

	{name: "reach_rebuilt", module: "doctor", set: set("Items", `{"kek"}`), also: []string{"NeverRebuilt"}, want: "NeverRebuilt", says: "a rotation can finish after an item was rebuilt"},
	{name: "ok_doctor_pointer", module: "doctor", set: set("Items", `{"ptr"}`), want: tlc.Holds, says: "the pointer is lost at any moment and rebuilt at any later one, beside steps and writers"},
	{name: "ok_doctor_registry", module: "doctor", set: set("Items", `{"kek"}`), want: tlc.Holds, says: "the registry entry of any KEK"},
	{name: "ok_doctor_fence", module: "doctor", set: set("Items", `{"fence", "head"}`), want: tlc.Holds, says: "a fence shard; the head of the audit chain"},
	{name: "ok_doctor_lock", module: "doctor", set: set("Items", `{"lock"}`, "MaxRot", "2", "MaxWrite", "0"), want: tlc.Holds, says: "the lock: another rotation may have taken it"},
	{name: "ok_doctor_rotation", module: "doctor", set: set("Items", `{"rot"}`, "MaxRot", "2", "MaxWrite", "0", "Modes", both), want: tlc.Holds, says: "a rotation's record: the next one moves what it has left"},
	{name: "cx_doctor_blind", module: "doctor", set: set("Items", `{"fence"}`), off: []string{"repair-condition"}, want: "RebuiltSealedIsShut", says: "a repair of what somebody else has repaired since: it opens the fence of a KEK that was left"},
	{name: "cx_doctor_blind_state", module: "doctor", set: set("Items", `{"kek"}`), off: []string{"repair-condition"}, instead: []string{"RebuiltPointerUsable"}, want: "RebuiltPointerUsable", says: "or sets the state of a KEK back"},
	{name: "cx_doctor_tags", module: "doctor", set: set("Items", `{"ptr"}`), off: []string{"repair-chain"}, instead: []string{"RebuiltNoKeyOrphans"}, want: "RebuiltNoKeyOrphans", says: "a pointer rebuilt from the tags of KMS keys alone: rows come to be under a KEK that was never switched to"},
}

// large are variants for a budget of time.
var large = []variant{
	{name: "deep_doctor", module: "doctor", deep: true, set: set("Items", `{"ptr", "kek", "fence", "lock", "rot", "head"}`, "MaxRot", "2", "Modes", both), want: tlc.Holds, says: "any item, over two rotations"},
	{name: "deep_two_writers_three_writes", deep: true, set: with(two, set("Deletes", "TRUE", "DekCache", "TRUE", "MaxWrite", "3")), want: tlc.Holds, says: "more writes"},
	{name: "deep_no_recheck", deep: true, set: with(leases, set("MaxWrite", "1", "Recheck", "FALSE")), want: tlc.Holds, says: "no promise rests on the second look at the pointer"},
	{name: "deep_keys", deep: true, set: keys, want: tlc.Holds, says: "stray keys beside a row"},
	{name: "deep_two_rotations", deep: true, set: set("MaxRot", "2", "MaxWrite", "2", "Modes", both, "MaxMint", "2"), want: tlc.Holds, says: "two rotations with re-mints"},
	{name: "deep_two_rotations_two_writers", deep: true, set: with(two, set("MaxRot", "2", "MaxWrite", "2", "Shard", "{s1}")), want: tlc.Holds, says: "two rotations beside two writers"},
	{name: "deep_leases", deep: true, set: leases, want: tlc.Holds, says: "leases beside two writes"},
	{name: "deep_leases_two_rows", deep: true, set: with(leases, set("Row", "{r1, r2}", "MaxWrite", "3", "MaxRenew", "2")), also: []string{"NoHolderRefused"}, want: tlc.Holds, says: "leases, two rows, two renewals"},
	{name: "deep_keys_two_rotations", deep: true, set: with(keys, silent, set("MaxRot", "2")), want: tlc.Holds, says: "stray keys over two rotations with re-mints"},
	{name: "deep_emergency", deep: true, set: with(two, set("Modes", both, "MaxMint", "2", "DekCache", "TRUE", "Deletes", "TRUE")), want: tlc.Holds, says: "emergencies beside two writers"},
	{name: "deep_two_olds", deep: true, set: with(two, set("Historic", "2", "MaxRot", "2", "MaxWrite", "1", "Shard", "{s1}", "Modes", both)), want: tlc.Holds, says: "two historic KEKs beside two writers"},
	{name: "deep_sources", deep: true, set: with(two, set("Side", "{r2}", "MaxRot", "2", "Shard", "{s1}")), want: tlc.Holds, says: "two tables over two rotations beside two writers"},
	{name: "deep_foreign", deep: true, set: with(two, set("Foreign", `"early"`, "Lies", "TRUE", "Historic", "1", "DekCache", "TRUE", "MaxWrite", "3", "Shard", "{s1}")), want: tlc.Holds, says: "unlabelled rows, labels that lie and a historic KEK beside two writers"},
	{name: "deep_takeover", deep: true, set: with(two, takeover, set("MaxRot", "3", "MaxWrite", "2", "Takeover", `"any"`, "DekCache", "TRUE", "Deletes", "TRUE")), want: tlc.Holds, says: "takeovers beside two writers"},
}

// config is the variant as TLC reads it.
func (v variant) config() string {
	m := models[v.moduleName()]
	constants := with(m.base, v.set)
	var b strings.Builder
	fmt.Fprintf(&b, "SPECIFICATION %s\nCONSTANTS\n", firstOf(v.live, firstOf(m.spec, "Spec")))
	for _, k := range slices.Sorted(maps.Keys(m.replace)) {
		fmt.Fprintf(&b, "  %s <- %s\n", k, m.replace[k])
	}
	values := map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(constants)) {
		fmt.Fprintf(&b, "  %s = %s\n", k, constants[k])
		if !strings.Contains(constants[k], `"`) && strings.HasPrefix(constants[k], "{") {
			for _, n := range strings.FieldsFunc(constants[k], func(r rune) bool { return strings.ContainsRune("{}, ", r) }) {
				values[n] = true
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&b, "  %s = %s\n", n, n)
	}
	if v.live != "" {
		properties := m.liveness
		if v.steps != nil {
			properties = v.steps
		}
		fmt.Fprintf(&b, "PROPERTIES %s\n", strings.Join(properties, " "))
		return b.String()
	}
	invariants := append(slices.Clone(m.invariants), v.also...)
	if v.instead != nil {
		invariants = v.instead
	}
	steps := m.properties
	if v.steps != nil {
		steps = v.steps
	}
	if v.walks == 0 { // a walk compares no states
		fmt.Fprintf(&b, "SYMMETRY %s\n", m.symmetry)
	}
	if len(invariants) > 0 {
		fmt.Fprintf(&b, "INVARIANTS %s\n", strings.Join(invariants, " "))
	}
	fmt.Fprintf(&b, "PROPERTIES %s\n", strings.Join(steps, " "))
	return b.String()
}

func (v variant) moduleName() string { return firstOf(v.module, "rotation") }

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
