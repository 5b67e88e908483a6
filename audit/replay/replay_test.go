package replay

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
)

// record is a record of type typ of a rotation, whose body is the pairs.
func record(typ, rotation string, pairs ...string) audit.Record {
	body := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		body[pairs[i]] = pairs[i+1]
	}
	return audit.Record{Type: typ, Rotation: rotation, Body: body}
}

// step is a record of a rotation as the steps append it: with the rotation's state after it.
func step(typ, rotation, mode, phase, old, made string, pairs ...string) audit.Record {
	pairs = append(pairs, "mode", mode, "phase", phase, "old_kek_id", old, "requested_by", "alice")
	if made != "" {
		pairs = append(pairs, "new_kek_id", made)
	}
	return record(typ, rotation, pairs...)
}

// history is the chain of a deployment: a rotation, one that is rolled back, and an emergency that
// takes over from a third after its switch.
func history() []audit.Record {
	return []audit.Record{
		record("anchor_canary", ""),
		record("kek_genesis", "", "pointer", "k1", "epoch", "1", "kek.k1", "active", "source.orders", "{}"),
		record("kek_registered", "", "kek_id", "k0", "kek.k0", "sealed"),
		record("source_added", "", "source", "people"),

		step("rotation_started", "a", "normal", "started", "k1", ""),
		step("rows_counted", "a", "normal", "started", "k1", "", "source.orders", "2 envelopes", "source.people", "4 envelopes"),
		step("kek_minted", "a", "normal", "minted", "k1", "k2", "kek.k2", "pending"),
		step("rows_rehearsed", "a", "normal", "minted", "k1", "k2"),
		step("dual_unwrap_passed", "a", "normal", "tested", "k1", "k2"),
		record("approval_wanted", "a", "plan", "p"),
		record("approval_given", "a", "plan", "p", "approver", "bob"),
		step("pointer_switched", "a", "normal", "switched", "k1", "k2", "pointer", "k2", "epoch", "2", "kek.k1", "draining", "kek.k2", "active"),
		record("source_added", "", "source", "late"),
		step("old_kek_sealed", "a", "normal", "drained", "k1", "k2", "kek.k1", "sealed"),
		step("rows_rewrapped", "a", "normal", "rewrapped", "k1", "k2", "source.orders", "x", "source.people", "x", "source.late", "x"),
		record("rotation_paused", "a"),
		record("rotation_continued", "a"),
		step("old_kek_retired", "a", "normal", "retired", "k1", "k2", "kek.k0", "retired", "kek.k1", "retired"),
		step("kms_rotation_completed", "a", "normal", "completed", "k1", "k2", "source.orders", "x", "source.people", "x", "source.late", "x"),
		record("anchor_heartbeat", ""),

		step("rotation_started", "b", "normal", "started", "k2", ""),
		step("rows_counted", "b", "normal", "started", "k2", "", "source.orders", "x", "source.people", "x", "source.late", "x"),
		step("kek_minted", "b", "normal", "minted", "k2", "k3", "kek.k3", "pending"),
		step("rolled_back", "b", "normal", "rolledback", "k2", "k3", "kek.k3", "retired"),

		record("source_removed", "", "source", "late"),
		step("rotation_started", "c", "normal", "started", "k2", ""),
		step("rows_counted", "c", "normal", "started", "k2", "", "source.orders", "x", "source.people", "x"),
		step("kek_minted", "c", "normal", "minted", "k2", "k4", "kek.k4", "pending"),
		step("rows_rehearsed", "c", "normal", "minted", "k2", "k4"),
		step("dual_unwrap_passed", "c", "normal", "tested", "k2", "k4"),
		step("pointer_switched", "c", "normal", "switched", "k2", "k4", "pointer", "k4", "epoch", "3", "kek.k2", "draining", "kek.k4", "active"),
		step("emergency_took_over", "d", "emergency", "started", "k4", "", "ended", "c", "ended_at", "switched", "ended_as", "superseded"),
		step("kek_minted", "d", "emergency", "minted", "k4", "k5", "kek.k5", "pending"),
		step("reminted", "d", "emergency", "started", "k4", "", "kek.k5", "retired"),
		step("kek_minted", "d", "emergency", "minted", "k4", "k6", "kek.k6", "pending"),
		step("rows_rehearsed", "d", "emergency", "minted", "k4", "k6"),
		step("dual_unwrap_passed", "d", "emergency", "tested", "k4", "k6"),
		step("pointer_switched", "d", "emergency", "switched", "k4", "k6", "pointer", "k6", "epoch", "4", "kek.k4", "draining", "kek.k6", "active"),
		step("old_kek_sealed", "d", "emergency", "switched", "k4", "k6", "kek.k2", "sealed"),
		step("old_kek_sealed", "d", "emergency", "drained", "k4", "k6", "kek.k4", "sealed"),
		step("rows_rewrapped", "d", "emergency", "rewrapped", "k4", "k6", "source.orders", "x", "source.people", "x"),
		step("old_kek_retired", "d", "emergency", "retired", "k4", "k6", "kek.k2", "retired", "kek.k4", "retired"),
		step("kms_rotation_completed", "d", "emergency", "completed", "k4", "k6", "source.orders", "x", "source.people", "x"),
		record("lease_revoked", "", "kek_id", "k4"),
	}
}

// replayRecords replays records as a chain, numbered from 1.
func replayRecords(all []audit.Record) Report {
	var run Run
	for i, r := range all {
		r.Seq = int64(i + 1)
		run.Take(audit.Entry{Record: r})
	}
	return run.Report()
}

func TestHistory(t *testing.T) {
	r := replayRecords(history())
	if !r.Conforms() || r.Completed != 2 || r.Records != int64(len(history())) {
		t.Errorf("%s: %v", r, r.Findings)
	}
}

// find returns the place of the n-th record of a type and rotation.
func find(t *testing.T, all []audit.Record, typ, rotation string, n int) int {
	t.Helper()
	for i, r := range all {
		if r.Type == typ && r.Rotation == rotation {
			if n--; n < 0 {
				return i
			}
		}
	}
	t.Fatalf("no %s of %s", typ, rotation)
	return 0
}

// TestMissingStep leaves out each record on which a later one rests. What rests on it is named.
func TestMissingStep(t *testing.T) {
	for _, c := range []struct {
		typ, rotation string
		n             int
		found         string // the type of the first record that is not a step
		action        string
	}{
		{"kek_genesis", "", 0, "kek_registered", "Register"},
		{"rotation_started", "a", 0, "rows_counted", "Count"},
		{"rows_counted", "a", 0, "kek_minted", "Mint"},
		{"kek_minted", "a", 0, "rows_rehearsed", "Rehearse"},
		{"rows_rehearsed", "a", 0, "dual_unwrap_passed", "DualUnwrap"},
		{"dual_unwrap_passed", "a", 0, "pointer_switched", "Switch"},
		{"approval_given", "a", 0, "pointer_switched", "Switch"},
		{"pointer_switched", "a", 0, "source_added", "AddSource"},
		{"old_kek_sealed", "a", 0, "rows_rewrapped", "Rewrapped"},
		{"rows_rewrapped", "a", 0, "old_kek_retired", "Retire"},
		{"old_kek_retired", "a", 0, "kms_rotation_completed", "Complete"},
		{"kms_rotation_completed", "a", 0, "rotation_started", "Start"},
		{"rolled_back", "b", 0, "source_removed", "RemoveSource"},
		{"reminted", "d", 0, "kek_minted", "Mint"},
		{"old_kek_sealed", "d", 0, "old_kek_sealed", "Seal"},
		{"old_kek_sealed", "d", 1, "rows_rewrapped", "Rewrapped"},
	} {
		all := history()
		i := find(t, all, c.typ, c.rotation, c.n)
		r := replayRecords(slices.Delete(all, i, i+1))
		if len(r.Findings) == 0 || r.Findings[0].Type != c.found || r.Findings[0].Action != c.action {
			t.Errorf("without %s of %s: %v", c.typ, c.rotation, r.Findings)
		}
	}
}

// TestLie changes what one record says. That record is named, and no other.
func TestLie(t *testing.T) {
	for _, c := range []struct {
		what          string
		typ, rotation string
		n             int
		change        func(r *audit.Record)
		says          string
	}{
		{"a switch to another KEK", "pointer_switched", "a", 0, says("pointer", "k9"), `the pointer is KEK k2 in epoch 2 now, and the record says "k9" and "2"`},
		{"an epoch that was used", "pointer_switched", "a", 0, says("epoch", "1"), "in epoch 2 now"},
		{"a KEK that is retired before its time", "old_kek_sealed", "a", 0, says("kek.k1", "retired"), "KEK k1 is sealed after this step, and the record says retired"},
		{"a KEK that a retirement leaves out", "old_kek_retired", "a", 0, says("kek.k0", ""), "KEK k0 is retired after this step, and the record says nothing of it"},
		{"a KEK of others that is retired too", "old_kek_retired", "a", 0, says("kek.k2", "retired"), "KEK k2 is active after this step"},
		{"another old KEK", "rows_rewrapped", "a", 0, says("old_kek_id", "k0"), `old_kek_id is "k1" by the records before`},
		{"another mode", "kms_rotation_completed", "d", 0, says("mode", "normal"), `mode is "emergency" by the records before`},
		{"a phase that was not reached", "old_kek_sealed", "d", 0, says("phase", "drained"), `phase is "switched" by the records before`},
		{"a source that the census left out", "rows_counted", "a", 0, says("source.people", ""), "it says nothing of source people"},
		{"a source that joined and was not moved", "rows_rewrapped", "a", 0, says("source.late", ""), "it says nothing of source late"},
		{"a source that the last scan left out", "kms_rotation_completed", "a", 0, says("source.orders", ""), "it says nothing of source orders"},
		{"a KEK that was used before", "kek_minted", "b", 0, says("new_kek_id", "k1"), `KEK "k1" is not new: it is "retired"`},
		{"who asks and who approves are one", "approval_given", "a", 0, says("approver", "alice"), "alice has approved what alice asked for"},
		{"an emergency that ends another rotation", "emergency_took_over", "d", 0, says("ended", "b"), `the lock is that of rotation c, and the record ends "b"`},
		{"an emergency that tells the other's phase wrongly", "emergency_took_over", "d", 0, says("ended_at", "drained"), "rotation c was switched"},
		{"a rollback of an emergency", "reminted", "d", 0, func(r *audit.Record) { r.Type = "rolled_back" }, "an emergency never goes back"},
		{"a normal rotation that mints again", "rolled_back", "b", 0, func(r *audit.Record) { r.Type = "reminted" }, "a normal rotation is rolled back"},
		{"a mode that there is not", "rotation_started", "a", 0, says("mode", "urgent"), `its mode is "urgent"`},
		{"a lease on the pointer's KEK that is revoked", "lease_revoked", "", 0, says("kek_id", "k6"), "which the pointer names"},
		{"a type that nobody knows", "anchor_heartbeat", "", 0, func(r *audit.Record) { r.Type = "x" }, "no action of the specification"},
	} {
		all := history()
		i := find(t, all, c.typ, c.rotation, c.n)
		c.change(&all[i])
		r := replayRecords(all)
		if len(r.Findings) == 0 || r.Findings[0].Seq != int64(i+1) || !strings.Contains(r.Findings[0].String(), c.says) {
			t.Errorf("%s: want record %d with %q, found %v", c.what, i+1, c.says, r.Findings)
		}
	}
}

func says(field, value string) func(r *audit.Record) {
	return func(r *audit.Record) {
		r.Body = maps.Clone(r.Body)
		if delete(r.Body, field); value != "" {
			r.Body[field] = value
		}
	}
}

// TestExtraRecord puts a record where it may not be.
func TestExtraRecord(t *testing.T) {
	genesis := record("kek_genesis", "", "pointer", "k1", "epoch", "1", "kek.k1", "active", "source.orders", "{}")
	for _, c := range []struct {
		what, typ, rotation string
		extra               audit.Record
		says                string
	}{
		{"a second genesis after a rotation", "kms_rotation_completed", "a", genesis, "a second genesis would bring an old KEK"},
		{"a second rotation while one runs", "dual_unwrap_passed", "a", step("rotation_started", "z", "normal", "started", "k1", ""), "the lock is that of rotation a"},
		{"a rotation that begins again", "kms_rotation_completed", "a", step("rotation_started", "a", "normal", "started", "k2", ""), "has begun before"},
		{"a rollback after the switch", "pointer_switched", "a", step("rolled_back", "a", "normal", "rolledback", "k1", "k2", "kek.k2", "retired"), "the rotation is switched, not started or minted or tested"},
		{"a step of a rotation that an emergency has ended", "emergency_took_over", "d", step("old_kek_sealed", "c", "normal", "drained", "k2", "k4", "kek.k2", "sealed"), "does not hold the lock, which is that of rotation d"},
		{"a KEK that is registered while a rotation runs", "rows_counted", "a", record("kek_registered", "", "kek_id", "k7", "kek.k7", "sealed"), "rotation a runs"},
		{"a source that joins between census and switch", "dual_unwrap_passed", "a", record("source_added", "", "source", "late"), "between its census and its switch"},
		{"a source that leaves there", "dual_unwrap_passed", "a", record("source_removed", "", "source", "people"), "between its census and its switch"},
		{"a completion that comes twice", "kms_rotation_completed", "a", step("kms_rotation_completed", "a", "normal", "completed", "k1", "k2"), "does not hold the lock, which is free"},
		{"a pause of a rotation that is over", "kms_rotation_completed", "a", record("rotation_paused", "a"), "does not hold the lock"},
		{"a drill whose KEK lives", "rolled_back", "b", record("drill_passed", "b", "pointer", "k2", "kek.k2", "retired"), "KEK k2 is active"},
		{"a repair that sets the epoch back", "kms_rotation_completed", "a", record("control_repaired", "", "item", "POINTER", "pointer", "k2", "epoch", "1", "kek.k2", "active"), "sets the epoch from 2"},
		{"a repair that brings a rotation forward", "rotation_started", "a", record("control_repaired", "", "item", "ROTATION#a", "rotation.a", "tested"), "a repair can only end one"},
		{"a repair that makes another KEK active", "kms_rotation_completed", "a", record("control_repaired", "", "item", "KEK#k1", "kek.k1", "active"), "which the pointer does not name"},
		{"a repair that retires the pointer's KEK", "kms_rotation_completed", "a", record("control_repaired", "", "item", "KEK#k2", "kek.k2", "retired"), "which the pointer names"},
	} {
		all := history()
		i := find(t, all, c.typ, c.rotation, 0) + 1
		r := replayRecords(slices.Insert(all, i, c.extra))
		if len(r.Findings) == 0 || r.Findings[0].Seq != int64(i+1) || !strings.Contains(r.Findings[0].String(), c.says) {
			t.Errorf("%s: want record %d with %q, found %v", c.what, i+1, c.says, r.Findings)
		}
	}
}

// TestRepair: what doctor rebuilt is taken as it is, and the report says so.
func TestRepair(t *testing.T) {
	all := history()
	i := find(t, all, "pointer_switched", "c", 0) + 1
	all = append(all[:i:i], record("control_repaired", "", "item", "ROTATION#c", "rotation.c", "superseded", "pointer", "k4", "epoch", "9", "kek.k4", "active"),
		step("rotation_started", "e", "normal", "started", "k4", ""))
	r := replayRecords(all)
	if !r.Conforms() || len(r.Taken) != 1 || !strings.Contains(r.Taken[0], "ROTATION#c") {
		t.Errorf("%v, taken %q", r.Findings, r.Taken)
	}
}

// TestRepairBeforeRetirement: a KEK that doctor found draining again is not retired without a seal.
func TestRepairBeforeRetirement(t *testing.T) {
	all := history()
	i := find(t, all, "rows_rewrapped", "a", 0) + 1
	r := replayRecords(slices.Insert(all, i, record("control_repaired", "", "item", "KEK#k1", "kek.k1", "draining")))
	if len(r.Findings) == 0 || r.Findings[0].Type != "old_kek_retired" || !strings.Contains(r.Findings[0].Reason, "KEK k1 is draining") {
		t.Errorf("%v", r.Findings)
	}
}

// TestGap: nothing is said of what follows a record that cannot be read.
func TestGap(t *testing.T) {
	for _, at := range []int{1, 5} {
		var run Run
		for i, r := range history() {
			if r.Seq = int64(i + 1); r.Seq != int64(at) {
				run.Take(audit.Entry{Record: r})
			}
		}
		r := run.Report()
		if r.Conforms() || r.Records != int64(at-1) || !strings.Contains(r.Unchecked, "cannot be read") || !strings.HasSuffix(r.String(), "unproven") {
			t.Errorf("%s: %+v", r, r)
		}
	}
}

// TestNoRecord: of a chain without records nothing is said to be of the model.
func TestNoRecord(t *testing.T) {
	if r := replayRecords(nil); r.Conforms() || r.Unchecked == "" {
		t.Errorf("%s: %+v", r, r)
	}
}

// TestReportIsBounded: findings beyond the limit are counted.
func TestReportIsBounded(t *testing.T) {
	all := slices.Repeat([]audit.Record{record("x", "")}, maxFindings+3)
	var b strings.Builder
	r := replayRecords(all)
	if err := r.Print(&b); err != nil || r.More != 3 || !strings.Contains(b.String(), "and 3 more\nmodel: 203 records, 0 steps") {
		t.Errorf("%d more\n%s", r.More, b.String())
	}
}
