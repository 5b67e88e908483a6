package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kms-status",
		Short: "Show the pointer, the KEKs, their leases, the rotations, the schedule and the audit chain",
		Long: `Reads only, and works whether or not a rotation runs. An item of the control table that
is lost or damaged is named, and the rest is shown. The last line is the command that
comes next.`,
		Example: `  matter ops kms-status
  matter ops kms-status -o json | jq -r .pointer.kek_id`,
	}
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.status(ctx) })
}

// status is what the deployment's table says, and what runs beside it.
type status struct {
	app.Status
	Executions []app.Execution `json:"executions"` // that run now
	Schedule   *app.Schedule   `json:"schedule"`   // null if there is none
	Told       string          `json:"told"`       // who is told of outcomes and alarms
	Anchor     *anchorStatus   `json:"anchor"`     // null if the deployment has no transparency log
	Unknown    []string        `json:"unknown,omitempty"`
	Next       string          `json:"next"`
}

// anchorStatus is how far a public log covers the audit chain.
type anchorStatus struct {
	Records int64     `json:"records"` // 0 before the first anchor
	Log     string    `json:"log"`
	Index   int64     `json:"log_index"`
	At      time.Time `json:"at"`
}

func (o *operator) anchor(ctx context.Context) (*anchorStatus, error) {
	if o.Steps.Anchoring == nil {
		return nil, nil
	}
	st, err := o.Steps.Anchoring.Store.LoadAnchor(ctx)
	return &anchorStatus{Records: st.Last.Head.Seq, Log: st.Last.Log, Index: st.Last.Index, At: st.Last.At}, err
}

func describeAnchor(a *anchorStatus) string {
	switch {
	case a == nil:
		return "none: the deployment has no transparency log"
	case a.Records == 0:
		return "none yet"
	default:
		return fmt.Sprintf("records up to %d at index %d of %s, %s", a.Records, a.Index, a.Log, stamp(a.At))
	}
}

func (o *operator) status(ctx context.Context) error {
	table, err := o.Status(ctx)
	if err != nil {
		return err
	}
	s := status{Status: table, Executions: []app.Execution{}}
	running, err := o.Running(ctx)
	s.Executions = append(s.Executions, running...)
	s.unknown("executions", err)
	s.Schedule, err = o.NextSchedule(ctx)
	s.unknown("schedule", err)
	s.Told, err = o.Told(ctx)
	s.unknown("told", err)
	s.Anchor, err = o.anchor(ctx)
	s.unknown("anchor", err)
	if s.Next, err = o.afterStatus(ctx, table); err != nil {
		return err
	}
	if o.JSON {
		return o.Result(s)
	}
	return printStatus(o.Out, s)
}

// unknown notes what could not be read: the rest is worth showing all the same.
func (s *status) unknown(what string, err error) {
	if err != nil {
		s.Unknown = append(s.Unknown, fmt.Sprintf("%s: %v", what, err))
	}
}

func (o *operator) afterStatus(ctx context.Context, s app.Status) (string, error) {
	switch {
	case len(s.Faults) > 0:
		return s.Faults[0].Next, nil
	case s.Pointer == nil:
		return "matter ops kms-genesis --kek-id KEY --confirm", nil
	case s.Lock == "":
		return "nothing; matter ops kms-plan looks ahead", nil
	}
	r, err := o.reload(ctx, s.Lock)
	if err != nil {
		return "", err
	}
	plan, err := o.Steps.Waiting(ctx, r)
	if err != nil {
		return "", err
	}
	if plan != "" {
		return fmt.Sprintf("matter ops approve --rotation %s --plan %s, by a person who did not ask for it", r.ID, plan), nil
	}
	return o.goOn(ctx, r), nil
}

func printStatus(w io.Writer, s status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	switch {
	case s.Pointer == nil && len(s.Faults) > 0:
		fmt.Fprintln(t, "pointer\tLOST")
	case s.Pointer == nil:
		fmt.Fprintln(t, "pointer\tnone: matter ops kms-genesis makes it")
	default:
		fmt.Fprintf(t, "pointer\t%s\tepoch %d\tsince %s\n", s.Pointer.KEK, s.Pointer.Epoch, stamp(s.Pointer.SwitchedAt))
	}
	if s.Lock == "" {
		fmt.Fprintln(t, "lock\tfree")
	} else {
		fmt.Fprintf(t, "lock\theld by rotation %s\n", s.Lock)
	}
	for _, k := range s.KEKs {
		fmt.Fprintf(t, "KEK\t%s\t%s\t%d leases, %d in flight\t%s\n", k.ID, k.State, k.Leases, k.Refs, k.Label)
	}
	for _, r := range s.Rotations {
		fmt.Fprintf(t, "rotation\t%s\t%s\t%s\t%s\n", r.ID, describePhase(r), stamp(r.UpdatedAt), r.Label)
	}
	for _, e := range s.Executions {
		fmt.Fprintf(t, "execution\t%s\trunning\tsince %s\n", e.Name, stamp(e.StartedAt))
	}
	for _, line := range describeSchedule(s.Schedule) {
		fmt.Fprintf(t, "schedule\t%s\n", line)
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
	_, err := fmt.Fprintln(w, next(s.Next))
	return err
}

func describePhase(r app.RotationStatus) string {
	if r.Mode == kek.Emergency {
		return string(r.Phase) + " (emergency)"
	}
	return string(r.Phase)
}

// describeSchedule says when the next rotation starts by itself, and why one before does not.
func describeSchedule(s *app.Schedule) []string {
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
