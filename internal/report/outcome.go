package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// setOutcome adds what happened, what is safe, and the next command.
func (c *collection) setOutcome() {
	r := c.report
	o := Outcome{State: c.rotationState(), Safe: r.describeSafety(), Error: r.Rotation.Error}
	last, _ := r.lastExecution()
	switch o.State {
	case Completed:
		o.Title = "Completed"
		o.Error = ""
	case RolledBack:
		o.Title = "Rolled back before the switch"
		o.Next = "fix what failed, then start a new rotation"
	case Superseded:
		o.Title = "Ended by emergency " + c.view.Rotation.EndedBy
		o.Next = "matter ops report --rotation " + c.view.Rotation.EndedBy
	case Halted:
		o.Title = "Halted " + r.describePosition()
		o.Error = last.describeFailure()
		o.Next = "fix the cause, then: matter ops resume --rotation " + r.Rotation.ID
	case Running:
		o.Title = "Running " + r.describePosition()
		o.Next = "matter ops kms-status"
	case Open:
		o.Title = "Not finished " + r.describePosition()
		o.Next = "matter ops kms-status; then the next step by hand, or: matter ops resume --rotation " + r.Rotation.ID
	}
	r.Outcome = o
}

// describeFailure says what an execution failed with, as text: Step Functions has the answer of
// a function as JSON in JSON.
func (e Execution) describeFailure() string {
	kind, text := journal.ReadFailure(e.Error, e.Cause)
	return strings.Trim(string(kind)+": "+text, ": ")
}

// describePosition says whether a rotation that has not ended is before or after the
// switch: before it, a rollback changes nothing for the rows.
func (r Report) describePosition() string {
	if r.Rotation.Phase.PreSwitch() {
		return "before the switch"
	}
	return "after the switch"
}

// rotationState returns the state by the phase, and for a rotation that has not ended by
// its last execution.
func (c *collection) rotationState() State {
	switch c.report.Rotation.Phase {
	case kek.Completed:
		return Completed
	case kek.RolledBack:
		return RolledBack
	case kek.Superseded:
		return Superseded
	default:
	}
	switch last, ok := c.report.lastExecution(); {
	case !ok:
		return Open
	case last.Status == "RUNNING":
		return Running
	case last.Status == "SUCCEEDED", last.Status == "PENDING_REDRIVE":
		return Open
	default:
		return Halted
	}
}

// describeSafety says under which KEKs rows open, by the registry and KMS, and what the
// last scan of a completed rotation has read.
func (r Report) describeSafety() string {
	var b strings.Builder
	if t, ok := r.sumFinished(passVerify); ok && r.Rotation.Phase == kek.Completed {
		fmt.Fprintf(&b, "%d rows in %d sources were read at the end, each names the new KEK. ", t.Scanned, len(r.Rows))
	}
	opens := 0
	for _, k := range r.KEKs {
		if k.Role == roleFailed {
			continue
		}
		verb := "No row may name"
		if k.State.Resolves() && k.Enabled {
			verb = "Rows open under"
			opens++
		}
		fmt.Fprintf(&b, "%s the %s KEK: %s in the registry, %s in KMS. ", verb, k.Role, k.State, k.KMSState)
	}
	if opens == 0 {
		b.WriteString("No KEK of this rotation opens rows now.")
	}
	return strings.TrimSpace(b.String())
}

// collectChecks adds the checks of preflight, of the steps, and of this report.
func (c *collection) collectChecks() {
	r := c.report
	c.addPreflightChecks()
	c.addRecordedCheck(kek.EventRowsCounted, "census of every item before the mint", joinSources)
	c.addRecordedCheck(kek.EventRowsRehearsed, "rehearsal with real rows before the switch", joinSources)
	c.addRecordedCheck(kek.EventDualUnwrapPassed, "dual unwrap", func(b map[string]string) string {
		return fmt.Sprintf("%s known-plaintext roundtrips under the new KEK, %s known ciphers opened under both KEKs", b["canaries"], b["corpus_entries"])
	})
	c.addRecordedCheck(kek.EventOldKEKSealed, "write fence of the old KEK", func(map[string]string) string {
		return "every shard sealed in the transaction that recorded it"
	})
	c.addRecordedCheck(kek.EventRowsRewrapped, "every segment rewrapped", joinSources)
	c.addRecordedCheck(kek.EventOldKEKRetired, "second full scan", func(b map[string]string) string {
		return b["confirmed_rows"] + " rows read, none names an old KEK" + describeUnwrapped(b)
	})
	c.addRecordedCheck(kek.EventOldKEKRetired, "other users of the KEKs that are disabled", joinUses)
	c.addRecordedCheck(kek.EventRotationCompleted, "verification", func(b map[string]string) string {
		return b["verified_rows"] + " rows read, each names the new KEK" + describeUnwrapped(b) + "; the old KMS keys refused to unwrap"
	})
	c.addRowChecks()
	c.addProofCheck()
	for _, row := range r.listQuarantined() {
		c.addCheck("row", false, row, "checkpoint in the control table")
	}
	c.addLiveChecks()
}

// addRowChecks adds the rows that each pass scanned, from the record of the completion. If
// many rows are missing, the reader must explain that: an application may have deleted
// them, which no record shows.
func (c *collection) addRowChecks() {
	rec, ok := c.report.lastRecord(kek.EventRotationCompleted)
	text := joinSources(rec.Body)
	if !ok || text == "" { // a record of an earlier release
		return
	}
	missing := rec.Body["rows_missing"]
	switch fewer := rec.Body["rows_fewer"]; {
	case missing != "":
		text += ". Rows are missing, and it is not known who deleted them: " + missing
	case fewer != "":
		text += ". Fewer rows, as after deletions by an application: " + fewer
	}
	c.addCheck("rows of each source, pass by pass", missing == "", text, fmt.Sprintf("audit record %d", rec.Seq))
}

// addProofCheck adds whether this stack has saved the checkpoints from which rows are counted.
func (c *collection) addProofCheck() {
	if len(c.report.Rows) == 0 {
		return
	}
	text := "each has a true MAC"
	if n := len(c.unproven); n > 0 {
		text = fmt.Sprintf("%d are not proven, and nothing of them is counted: %s", n, audit.Visible(strings.Join(c.unproven[:min(n, 10)], "; ")))
		if n > 10 {
			text += "; and others"
		}
	}
	c.addCheck("checkpoints of the passes", len(c.unproven) == 0, text, "MACs, compared for this report or before they were archived")
}

// joinSources returns what a record states about each source, as one line.
func joinSources(body map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(body)) {
		if source, ok := strings.CutPrefix(name, "source."); ok {
			parts = append(parts, source+": "+body[name])
		}
	}
	return strings.Join(parts, "; ")
}

// describeUnwrapped says how many data keys a scan has unwrapped under the new KEK. A row
// that names a KEK need not be under it; only an unwrap proves that.
func describeUnwrapped(body map[string]string) string {
	if body["unwrapped"] == "" { // a record of an earlier release
		return ""
	}
	return "; unwrapped under it: " + body["unwrapped"]
}

// joinUses returns who else uses the old KEKs, as a record states it.
func joinUses(body map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(body)) {
		if id, ok := strings.CutPrefix(name, "use."); ok {
			parts = append(parts, id+": "+body[name])
		}
	}
	if len(parts) == 0 {
		return "not recorded"
	}
	return strings.Join(parts, "; ")
}

// addCheck adds a check with its source, so that a reader can repeat it.
func (c *collection) addCheck(name string, ok bool, detail, source string) {
	c.report.Checks = append(c.report.Checks, Check{Name: name, OK: ok, Detail: detail, Source: source})
}

// addRecordedCheck adds a check that passed according to an audit record.
func (c *collection) addRecordedCheck(event, name string, detail func(map[string]string) string) {
	if rec, ok := c.report.lastRecord(event); ok {
		c.addCheck(name, true, detail(rec.Body), fmt.Sprintf("audit record %d", rec.Seq))
	}
}

// addPreflightChecks takes preflight's checks from the execution that ran it.
func (c *collection) addPreflightChecks() {
	for _, e := range c.report.Executions {
		for _, v := range e.Visits {
			var p rotation.Plan
			if v.State != "Preflight" || json.Unmarshal(v.answer, &p) != nil {
				continue
			}
			for _, k := range p.Checks {
				c.addCheck("preflight: "+k.Name, k.OK, k.Detail, "execution history")
			}
		}
	}
}

// addLiveChecks adds the checks that are made for this report.
func (c *collection) addLiveChecks() {
	const now = "made for this report"
	r := c.report
	for _, k := range r.KEKs {
		switch dead := k.State == kek.Retired; {
		case k.KMSState == unknown:
		case dead:
			c.addCheck(k.Role+" KEK is retired, its KMS key unusable", !k.Enabled, "KMS: "+k.KMSState, now)
		default:
			c.addCheck(k.Role+" KEK is "+string(k.State)+", its KMS key usable", k.Enabled, "KMS: "+k.KMSState, now)
		}
	}
	if p := c.view.Pointer; p != nil {
		want := r.Rotation.OldKEK
		if r.Rotation.Phase.Reached(kek.Switched) {
			want = r.Rotation.NewKEK
		}
		later := p.KEKID != want && p.Epoch > r.Rotation.Epoch && r.Rotation.Phase.Final()
		detail := fmt.Sprintf("it names %s, epoch %d", p.KEKID, p.Epoch)
		if later {
			detail += ", by the later rotation " + p.RotationID
		}
		c.addCheck("pointer", p.KEKID == want || later, detail, now)
	}
	same := 0
	for _, rec := range r.Audit.Records {
		if rec.Bucket == bucketSame {
			same++
		}
	}
	c.addCheck("audit records in the locked bucket", same == len(r.Audit.Records),
		fmt.Sprintf("%d of %d are there, byte for byte", same, len(r.Audit.Records)), now)
	c.addCheck("audit chain", r.Audit.Verification.Result == audit.Green, r.Audit.Verification.Summary, now)
	if m := r.Audit.Verification.Model; m != nil {
		c.addCheck("order of the steps", m.Conforms(), m.String(), now)
	}
}
