// Package replay checks that the records of an audit chain are a behaviour of spec/evidence.tla:
// what a rotation may do, in the order in which it may do it. It needs the chain alone. A chain
// that links, is locked and is anchored shows that nothing was changed since; this package asks
// whether what it says is what the protocol allows.
package replay

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
)

// maxFindings bounds the findings of a report; further ones are only counted.
const maxFindings = 200

// Finding is a record that is not a step of the specification.
type Finding struct {
	Seq      int64  `json:"seq"`
	Type     string `json:"type"`
	Rotation string `json:"rotation,omitempty"`
	Action   string `json:"action,omitempty"` // of spec/evidence.tla, which the record claims to be; "" if it names none
	Reason   string `json:"reason"`
}

// String returns the finding in one line.
func (f Finding) String() string {
	s := fmt.Sprintf("record %d, %s", f.Seq, audit.Visible(f.Type))
	if f.Rotation != "" {
		s += " of rotation " + audit.Visible(f.Rotation)
	}
	if f.Action != "" {
		s += ", is not the step " + f.Action
	}
	return s + ": " + audit.Visible(f.Reason)
}

// Report is what a replay of a chain found.
type Report struct {
	Records   int64     `json:"records"`   // looked at
	Steps     int64     `json:"steps"`     // of them: steps of the specification
	Completed int       `json:"completed"` // rotations that the chain shows from their start to their completion
	Findings  []Finding `json:"findings"`
	More      int       `json:"more_findings,omitempty"` // beyond those listed
	Taken     []string  `json:"taken_as_stated,omitempty"`
	Unchecked string    `json:"unchecked,omitempty"` // from where on nothing was checked, and why
}

// Conforms reports whether every record of the chain was looked at and none is a finding.
func (r Report) Conforms() bool { return len(r.Findings) == 0 && r.Unchecked == "" }

// String returns the report as one line.
func (r Report) String() string {
	s := fmt.Sprintf("model: %d records, %d steps of spec/evidence.tla, %d rotations completed, ", r.Records, r.Steps, r.Completed)
	switch {
	case len(r.Findings) > 0:
		return s + fmt.Sprintf("NOT OF THE MODEL: %d findings", len(r.Findings)+r.More)
	case r.Unchecked != "":
		return s + "unproven"
	default:
		return s + "no record is against it"
	}
}

// Print writes the report for a person: the findings, what was taken as stated or not checked,
// and the verdict as the last line.
func (r Report) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Findings {
		fmt.Fprintln(b, f)
	}
	if r.More > 0 {
		fmt.Fprintf(b, "and %d more\n", r.More)
	}
	for _, t := range r.Taken {
		fmt.Fprintln(b, "taken as stated:", t)
	}
	if r.Unchecked != "" {
		fmt.Fprintln(b, "not checked by the model:", r.Unchecked)
	}
	fmt.Fprintln(b, r)
	return b.Flush()
}

// Run replays one chain. The zero value has seen no record. A copy continues by itself.
type Run struct {
	state  state
	next   int64 // the number of the next record; 0 before the first
	report Report
}

// Take looks at the next record of the chain.
func (r *Run) Take(e audit.Entry) {
	rec := e.Record
	if r.report.Unchecked != "" {
		return
	}
	if r.next == 0 && rec.Seq != 1 || r.next > 0 && rec.Seq != r.next {
		r.report.Unchecked = fmt.Sprintf("from record %d on: the records before it cannot be read, so what it follows is not known", rec.Seq)
		return
	}
	r.next = rec.Seq + 1
	r.report.Records++
	a, ok := actions[rec.Type]
	if !ok {
		r.find(rec, "", "no action of the specification has a record of this type")
		return
	}
	c := readClaims(rec)
	after := r.state.clone()
	err := a.take(&after, rec, c)
	if err == nil && a.name != repair {
		err = checkClaims(r.state, after, rec, c)
	}
	if err != nil {
		r.find(rec, a.name, err.Error())
		after = r.state.clone()
		after.force(rec, c) // so that what follows is judged by what the chain says
	}
	r.state = after
	if err == nil {
		r.count(a, rec)
	}
}

// count counts a record that is a step.
func (r *Run) count(a action, rec audit.Record) {
	switch a.name {
	case "":
		return
	case repair:
		r.report.Taken = append(r.report.Taken, fmt.Sprintf("record %d: the control table was repaired, and %s was taken to be as the record says", rec.Seq, audit.Visible(rec.Body["item"])))
	case "Complete":
		r.report.Completed++
	}
	r.report.Steps++
}

// Report returns what was found so far.
func (r *Run) Report() Report {
	out := r.report
	if r.next == 0 && out.Unchecked == "" {
		out.Unchecked = "anything: there is no record"
	}
	if out.Findings == nil {
		out.Findings = []Finding{}
	}
	return out
}

func (r *Run) find(rec audit.Record, action, reason string) {
	if len(r.report.Findings) >= maxFindings {
		r.report.More++
		return
	}
	r.report.Findings = append(r.report.Findings, Finding{rec.Seq, rec.Type, rec.Rotation, action, reason})
}

// claims is what a record says of the state after it.
type claims struct {
	pointer, epoch string
	keks           map[string]string // states, by KEK
}

// readClaims reads the claims of a record's body.
func readClaims(rec audit.Record) claims {
	c := claims{pointer: rec.Body["pointer"], epoch: rec.Body["epoch"], keks: map[string]string{}}
	for k, v := range rec.Body {
		if id, ok := strings.CutPrefix(k, "kek."); ok {
			c.keks[id] = v
		}
	}
	return c
}

// checkClaims holds what a record says to what its step makes of the state before.
func checkClaims(before, after state, rec audit.Record, c claims) error {
	if after.pointer != before.pointer || after.epoch != before.epoch {
		if c.pointer != after.pointer || c.epoch != fmt.Sprint(after.epoch) {
			return fmt.Errorf("the pointer is KEK %s in epoch %d now, and the record says %q and %q", after.pointer, after.epoch, c.pointer, c.epoch)
		}
	} else if c.pointer != "" && c.pointer != after.pointer {
		return fmt.Errorf("the pointer stays on KEK %s, and the record says %q", after.pointer, c.pointer)
	}
	for _, id := range sortedKeys(before.keks, after.keks, c.keks) {
		said, stated := c.keks[id]
		if moved := before.keks[id] != after.keks[id]; moved && !stated || stated && said != after.keks[id] {
			return fmt.Errorf("KEK %s is %s after this step, and the record says %s", id, cmp.Or(after.keks[id], "unknown"), cmp.Or(said, "nothing of it"))
		}
	}
	return checkRotation(after, rec)
}

// checkRotation holds what a record says of its rotation to the rotation's state.
func checkRotation(after state, rec audit.Record) error {
	n, ok := after.rotations[rec.Rotation]
	if !ok || rec.Body["phase"] == "" {
		return nil
	}
	for _, f := range []struct{ field, want string }{
		{"phase", n.phase}, {"mode", n.mode}, {"old_kek_id", n.old}, {"new_kek_id", n.made},
	} {
		if got := rec.Body[f.field]; got != f.want {
			return fmt.Errorf("%s is %q by the records before, and the record says %q", f.field, f.want, got)
		}
	}
	return nil
}

func sortedKeys(all ...map[string]string) []string {
	seen := map[string]bool{}
	for _, m := range all {
		for k := range m {
			seen[k] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
