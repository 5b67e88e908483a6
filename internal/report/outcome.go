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
)

// outcome says what happened and what is safe, from what was read.
func (c *collection) outcome() {
	r := c.report
	o := Outcome{State: c.state(), Safe: r.safe(), Error: r.Rotation.Error}
	last, _ := r.latest()
	switch o.State {
	case Completed:
		o.Title = "Completed"
		o.Error = ""
	case RolledBack:
		o.Title = "Rolled back before the switch"
		o.Next = "mend what failed, then start a new rotation"
	case Superseded:
		o.Title = "Ended by emergency " + c.view.Rotation.EndedBy
		o.Next = "matter ops report --rotation " + c.view.Rotation.EndedBy
	case Halted:
		o.Title = "Halted " + r.where()
		kind, text := rotation.ReadFailure(last.Error, last.Cause)
		o.Error = strings.Trim(string(kind)+": "+text, ": ")
		o.Next = "mend the cause, then: matter ops resume --rotation " + r.Rotation.ID
	case Running:
		o.Title = "Running " + r.where()
		o.Next = "matter ops kms-status"
	case Open:
		o.Title = "Not finished " + r.where()
		o.Next = "matter ops kms-status; then the next step by hand, or: matter ops resume --rotation " + r.Rotation.ID
	}
	r.Outcome = o
}

// where is how far a rotation has come that is not over.
func (r Report) where() string {
	if r.Rotation.Phase.PreSwitch() {
		return "before the switch"
	}
	return "after the switch"
}

func (c *collection) state() State {
	switch c.report.Rotation.Phase {
	case kek.Completed:
		return Completed
	case kek.RolledBack:
		return RolledBack
	case kek.Superseded:
		return Superseded
	default:
	}
	switch last, ok := c.report.latest(); {
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

// safe says under which KEKs rows open, by registry and KMS, and what the last scan
// of a completed rotation has read.
func (r Report) safe() string {
	var b strings.Builder
	if t, ok := r.total(passVerify); ok && r.Rotation.Phase == kek.Completed {
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

// checks lists what was looked at: by preflight, by the steps, and for this report.
func (c *collection) checks() {
	r := c.report
	c.preflightChecks()
	c.recorded(kek.EventRowsCounted, "census of every item before the mint", bySource)
	c.recorded(kek.EventRowsRehearsed, "rehearsal with real rows before the switch", bySource)
	c.recorded(kek.EventDualUnwrapPassed, "dual unwrap", func(b map[string]string) string {
		return fmt.Sprintf("%s known-plaintext roundtrips under the new KEK, %s known ciphers opened under both KEKs", b["canaries"], b["corpus_entries"])
	})
	c.recorded(kek.EventOldKEKSealed, "write fence of the old KEK", func(map[string]string) string {
		return "every shard sealed in the transaction that recorded it"
	})
	c.recorded(kek.EventRowsRewrapped, "every segment rewrapped", bySource)
	c.recorded(kek.EventOldKEKRetired, "second full scan", func(b map[string]string) string {
		return b["confirmed_rows"] + " rows read, none names an old KEK" + unwrapped(b)
	})
	c.recorded(kek.EventOldKEKRetired, "other users of the KEKs that are disabled", usesOf)
	c.recorded(kek.EventRotationCompleted, "verification", func(b map[string]string) string {
		return b["verified_rows"] + " rows read, each names the new KEK" + unwrapped(b) + "; the old KMS keys refused to unwrap"
	})
	c.rowsOfPasses()
	for _, row := range r.quarantined() {
		c.check("row", false, row, "checkpoint in the control table")
	}
	c.liveChecks()
}

// rowsOfPasses adds what the completion's record says of the rows that each pass scanned.
// Many rows that are missing are for the reader to explain: an application may have deleted
// them on purpose, which no record can tell.
func (c *collection) rowsOfPasses() {
	rec, ok := c.report.record(kek.EventRotationCompleted)
	text := bySource(rec.Body)
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
	c.check("rows of each source, pass by pass", missing == "", text, fmt.Sprintf("audit record %d", rec.Seq))
}

// bySource is what a record says of each source.
func bySource(body map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(body)) {
		if source, ok := strings.CutPrefix(name, "source."); ok {
			parts = append(parts, source+": "+body[name])
		}
	}
	return strings.Join(parts, "; ")
}

// unwrapped says which data keys a scan has unwrapped under the new KEK: that a row
// names a KEK does not prove that it is under it.
func unwrapped(body map[string]string) string {
	if body["unwrapped"] == "" { // a record of an earlier release
		return ""
	}
	return "; unwrapped under it: " + body["unwrapped"]
}

// usesOf is who else uses the old KEKs, as a record says it.
func usesOf(body map[string]string) string {
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

func (c *collection) check(name string, ok bool, detail, source string) {
	c.report.Checks = append(c.report.Checks, Check{Name: name, OK: ok, Detail: detail, Source: source})
}

// recorded adds a check whose passing an audit record states.
func (c *collection) recorded(event, name string, detail func(map[string]string) string) {
	if rec, ok := c.report.record(event); ok {
		c.check(name, true, detail(rec.Body), fmt.Sprintf("audit record %d", rec.Seq))
	}
}

// preflightChecks takes preflight's checks from the execution that ran it.
func (c *collection) preflightChecks() {
	for _, e := range c.report.Executions {
		for _, v := range e.Visits {
			var p rotation.Plan
			if v.State != "Preflight" || json.Unmarshal(v.answer, &p) != nil {
				continue
			}
			for _, k := range p.Checks {
				c.check("preflight: "+k.Name, k.OK, k.Detail, "execution history")
			}
		}
	}
}

// liveChecks are those made for this report.
func (c *collection) liveChecks() {
	const now = "made for this report"
	r := c.report
	for _, k := range r.KEKs {
		switch dead := k.State == kek.Retired; {
		case k.KMSState == unknown:
		case dead:
			c.check(k.Role+" KEK is retired, its KMS key unusable", !k.Enabled, "KMS: "+k.KMSState, now)
		default:
			c.check(k.Role+" KEK is "+string(k.State)+", its KMS key usable", k.Enabled, "KMS: "+k.KMSState, now)
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
		c.check("pointer", p.KEKID == want || later, detail, now)
	}
	same := 0
	for _, rec := range r.Audit.Records {
		if rec.Bucket == bucketSame {
			same++
		}
	}
	c.check("audit records in the locked bucket", same == len(r.Audit.Records),
		fmt.Sprintf("%d of %d are there, byte for byte", same, len(r.Audit.Records)), now)
	c.check("audit chain", r.Audit.Verification.Result == audit.Green, r.Audit.Verification.Summary, now)
}
