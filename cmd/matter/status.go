package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newStatusCommand returns the command matter ops kms-status. It reads only, so it may run
// from any shell.
func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kms-status",
		Short: "Show the pointer, the KEKs, their leases, the rotations, the schedule and the audit chain",
		Long: `Reads only, and works whether or not a rotation runs. An item of the control table that
is lost or damaged is named, and the rest is shown. The last line is the command that
comes next.`,
		Example: `  matter ops kms-status
  matter ops kms-status -o json | jq -r .pointer.kek_id`,
	}
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.showStatus(ctx) })
}

// status is what the deployment's table says, and what runs beside it.
type status struct {
	operate.Status
	Executions []executions.Execution `json:"executions"` // that run now
	Schedule   *operate.Schedule      `json:"schedule"`   // null if there is none, or if it is among the unknown
	Told       string                 `json:"told"`       // who is told of outcomes and alarms
	Anchor     *anchorStatus          `json:"anchor"`     // null if the deployment has no transparency log
	Plan       *waitingPlan           `json:"plan"`       // what a second person is asked to agree to; null if nobody is
	Paused     string                 `json:"paused"`     // by whom, since when and why; "" if it is not
	Halt       *halted                `json:"halted"`     // what the rotation that holds the lock has stopped on; null if it has not
	Unknown    []string               `json:"unknown,omitempty"`
	Next       string                 `json:"next"`
}

// halted is how the last execution of a rotation ended, which is not over.
type halted struct {
	Execution string       `json:"execution_name"`
	Kind      journal.Kind `json:"kind"`
	Cause     string       `json:"cause"`
}

// findHalt looks at the last execution of the rotation that holds the lock; nil if it has not
// failed, or if the rotation is done by hand.
func (o *operator) findHalt(ctx context.Context, lock string, running []executions.Execution) (*halted, error) {
	if lock == "" || slices.ContainsFunc(running, func(e executions.Execution) bool { return e.RotationID == lock }) {
		return nil, nil
	}
	r, err := o.reloadRotation(ctx, lock)
	if err != nil {
		return nil, err
	}
	m, err := o.stack.Machine(r.Mode)
	if err != nil {
		return nil, err
	}
	e, err := m.FindLast(ctx, r.ID, r.Execution)
	if errors.Is(err, executions.ErrNoExecution) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch e.Status {
	case types.ExecutionStatusFailed, types.ExecutionStatusTimedOut, types.ExecutionStatusAborted:
	default: // the list of what runs is not always up to date
		return nil, nil
	}
	kind, cause := journal.ReadFailure(e.Error, e.Cause)
	if kind == "" {
		kind = journal.Kind(e.Status) // stopped by a person, or timed out
	}
	return &halted{Execution: e.Name, Kind: kind, Cause: cause}, nil
}

// waitingPlan is what a second person agrees to with its hash; the hash covers more, see
// [gates.Gates.HashPlan].
type waitingPlan struct {
	Hash      string   `json:"hash"`
	Label     string   `json:"label"`
	OldKEK    kek.ID   `json:"old_kek_id"`
	NewKEK    kek.ID   `json:"new_kek_id"`
	Sources   []string `json:"sources"`
	Requester string   `json:"requested_by"`
}

// findPlan returns the plan that waits for a second person; nil if none does. With items of the
// table lost it does not look.
func (o *operator) findPlan(ctx context.Context, s operate.Status) (*waitingPlan, error) {
	if s.Lock == "" || len(s.Faults) > 0 {
		return nil, nil
	}
	r, err := o.reloadRotation(ctx, s.Lock)
	if err != nil {
		return nil, err
	}
	hash, err := o.stack.Steps.Gates.FindWaitingPlan(ctx, r)
	if err != nil || hash == "" {
		return nil, err
	}
	return &waitingPlan{Hash: hash, Label: r.Label, OldKEK: r.OldKEK, NewKEK: r.NewKEK, Sources: sourceNames(r.Sources), Requester: r.Requester}, nil
}

// anchorStatus is how far a public log covers the audit chain.
type anchorStatus struct {
	Records int64     `json:"records"` // 0 before the first anchor
	Log     string    `json:"log"`
	Index   int64     `json:"log_index"`
	At      time.Time `json:"at"`
}

// readAnchor reads how far the chain was anchored, by the control table alone: audit verify
// reads the bucket.
func (o *operator) readAnchor(ctx context.Context) (*anchorStatus, error) {
	if o.stack.Steps.Anchor == nil {
		return nil, nil
	}
	st, err := o.stack.Steps.Anchor.Store.LoadAnchor(ctx)
	return &anchorStatus{Records: st.Last.Head.Seq, Log: st.Last.Log, Index: st.Last.Index, At: st.Last.At}, err
}

// describeAnchor is the anchor in a phrase.
func describeAnchor(a *anchorStatus) string {
	switch {
	case a == nil:
		return "none: the deployment has no transparency log"
	case a.Records == 0:
		return "none yet"
	default:
		return fmt.Sprintf("records up to %d at index %d of %s, %s", a.Records, a.Index, a.Log, formatTime(a.At))
	}
}

// showStatus prints the control table and what runs beside it. What cannot be read is named
// as unknown and does not fail the command: status is for the moment when something is
// broken.
func (o *operator) showStatus(ctx context.Context) error {
	table, err := o.stack.ReadStatus(ctx)
	if err != nil {
		return err
	}
	s := status{Status: table, Executions: []executions.Execution{}}
	running, err := o.stack.ListRunning(ctx)
	s.Executions = append(s.Executions, running...)
	s.noteUnread("executions", err)
	if err == nil {
		s.Halt, err = o.findHalt(ctx, table.Lock, running)
		s.noteUnread("last execution", err)
	}
	s.Schedule, err = o.stack.FindNextSchedule(ctx)
	s.noteUnread("schedule", err)
	s.Told, err = o.stack.DescribeReaders(ctx)
	s.noteUnread("told", err)
	s.Anchor, err = o.readAnchor(ctx)
	s.noteUnread("anchor", err)
	s.Paused, err = o.describePause(ctx, table.Lock)
	s.noteUnread("pause", err)
	if s.Plan, err = o.findPlan(ctx, table); err != nil {
		return err
	}
	if s.Next, err = o.afterStatus(ctx, s); err != nil {
		return err
	}
	if s.Halt != nil && strings.HasPrefix(s.Next, "matter ops resume ") {
		s.Next = "fix the cause, then: " + s.Next
	}
	if s.Paused != "" {
		s.Next = "matter ops continue --rotation " + table.Lock
	}
	if o.console.JSON {
		return o.console.PrintResult(s)
	}
	return printStatus(o.console.Out, s)
}

// describePause says by whom the rotation that holds the lock is paused; "" if it is not.
func (o *operator) describePause(ctx context.Context, lock string) (string, error) {
	if lock == "" {
		return "", nil
	}
	p, err := o.stack.Table.LoadPause(ctx, lock)
	if err != nil || p.State != gates.Paused {
		return "", err
	}
	return p.Describe(), nil
}

// noteUnread notes what could not be read: the rest is worth showing all the same.
func (s *status) noteUnread(what string, err error) {
	if err != nil {
		s.Unknown = append(s.Unknown, what+": "+advice.Explain(err))
	}
}

// isUnread reports whether noteUnread has noted it.
func (s *status) isUnread(what string) bool {
	return slices.ContainsFunc(s.Unknown, func(u string) bool { return strings.HasPrefix(u, what+": ") })
}

// afterStatus is the command that comes next: the repair of a fault before all else, then
// what the rotation that holds the lock waits for.
func (o *operator) afterStatus(ctx context.Context, s status) (string, error) {
	switch {
	case len(s.Faults) > 0:
		return s.Faults[0].Advice, nil
	case s.Pointer == nil:
		return "matter ops kms-genesis --kek-id KEY --confirm", nil
	case s.Lock == "":
		return "nothing; matter ops kms-plan looks ahead", nil
	case s.Plan != nil:
		return approveCommand(s.Lock, s.Plan.Hash), nil
	}
	r, err := o.reloadRotation(ctx, s.Lock)
	if err != nil {
		return "", err
	}
	return o.continueCommand(ctx, r), nil
}

// printStatus is the status as text.
func printStatus(w io.Writer, s status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	switch {
	case s.Pointer == nil && len(s.Faults) > 0:
		fmt.Fprintln(t, "pointer\tLOST")
	case s.Pointer == nil:
		fmt.Fprintln(t, "pointer\tnone: matter ops kms-genesis makes it")
	default:
		fmt.Fprintf(t, "pointer\t%s\tepoch %d\tsince %s\n", s.Pointer.KEK, s.Pointer.Epoch, formatTime(s.Pointer.SwitchedAt))
	}
	if s.Lock == "" {
		fmt.Fprintln(t, "lock\tfree")
	} else {
		fmt.Fprintf(t, "lock\theld by rotation %s\n", s.Lock)
	}
	if s.Halt != nil {
		fmt.Fprintf(t, "HALTED\t%s\n", strings.TrimSuffix(fmt.Sprintf("%s: %s", s.Halt.Kind, s.Halt.Cause), ": "))
	}
	if p := s.Plan; p != nil {
		fmt.Fprintf(t, "plan\t%q from KEK %s to KEK %s, with %d sources: %s\n", p.Label, p.OldKEK, p.NewKEK, len(p.Sources), strings.Join(p.Sources, ", "))
		fmt.Fprintf(t, "plan\tasked for by %s\n", p.Requester)
	}
	if s.Paused != "" {
		fmt.Fprintf(t, "paused\t%s\n", s.Paused)
	}
	for _, k := range s.KEKs {
		fmt.Fprintf(t, "KEK\t%s\t%s\t%d leases, %d in flight\t%s\n", k.ID, k.State, k.Leases, k.Refs, k.Label)
	}
	for _, r := range s.Rotations {
		fmt.Fprintf(t, "rotation\t%s\t%s\t%s\t%s\n", r.ID, describePhase(r), formatTime(r.UpdatedAt), r.Label)
	}
	if n := len(s.Rotations); n > 0 && s.Rotations[n-1].Phase == kek.RolledBack && s.Rotations[n-1].Error != "" {
		fmt.Fprintf(t, "rolled back\t%s\n", audit.Visible(s.Rotations[n-1].Error))
	}
	for _, l := range s.Holders {
		fmt.Fprintf(t, "lease\t%s\t%s\n", l.KEK, describeHolder(l))
	}
	for _, e := range s.Executions {
		fmt.Fprintf(t, "execution\t%s\trunning\tsince %s\n", e.Name, formatTime(e.StartedAt))
	}
	if !s.isUnread("schedule") {
		for _, line := range describeSchedule(s.Schedule) {
			fmt.Fprintf(t, "schedule\t%s\n", line)
		}
	}
	if s.Told != "" {
		fmt.Fprintf(t, "told\t%s\n", s.Told)
	}
	fmt.Fprintf(t, "audit chain\t%s\t%d records\t%d not in the bucket yet\n", s.Audit.Chain, s.Audit.Records, s.Audit.Unpublished)
	fmt.Fprintf(t, "anchor\t%s\n", describeAnchor(s.Anchor))
	for _, f := range s.Faults {
		fmt.Fprintf(t, "DAMAGED\t%s\t%s\n", f.Item, f.Fault)
	}
	for _, u := range s.Unknown {
		fmt.Fprintf(t, "unknown\t%s\n", u)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, nextLine(s.Next))
	return err
}

// describePhase is a rotation's phase, marked in an emergency.
func describePhase(r operate.RotationStatus) string {
	if r.Mode == kek.Emergency {
		return string(r.Phase) + " (emergency)"
	}
	return string(r.Phase)
}

// describeSchedule says when the next rotation starts by itself, and why one before does not.
func describeSchedule(s *operate.Schedule) []string {
	switch {
	case s == nil:
		return []string{"none: rotations are started by hand"}
	case !s.Enabled:
		return []string{s.Name + " is disabled"}
	case s.Next.IsZero():
		return []string{"begins with genesis"}
	}
	lines := []string{fmt.Sprintf("next rotation %s", s.Next.Format("Mon 2006-01-02 15:04 MST"))}
	if s.Skipped != "" {
		lines = append(lines, s.Skipped)
	}
	return append(lines, s.Waits...)
}
