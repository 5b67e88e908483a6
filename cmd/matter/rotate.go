package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// rotateFlags are the flags of kms-rotate.
type rotateFlags struct {
	mintFlags
	watch     bool
	execution string
	every     time.Duration
}

// newRotateCommand returns the command matter ops kms-rotate. The state machine does the
// work under roles of its own, so the shell's settings do not matter.
func newRotateCommand() *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{
		Use:   "kms-rotate",
		Short: "Start the state machine: the whole rotation, unattended",
		Long: `Starts an execution of the state machine, as the schedule does every quarter; with
--emergency, of the emergencies' state machine, which takes a permission of its own. With
--watch it shows the progress of the rotation: the step, the in-flight references that
drain, rows per second and the time left. Ctrl-C ends the watching, not the
rotation; --watch --execution NAME attaches again.

In an emergency the old KEK may be compromised. The rotation then waits for no
window, never rolls back to the old KEK, revokes its writers at once, and encrypts
every payload again under fresh data keys. If another rotation runs, has halted or waits
for its approval, the emergency ends it and leaves its new KEK too.

Exit code with --watch: 0 completed, 1 refused or halted, 3 rolled back before the
switch, 4 halted on orphaned rows, 6 still running.`,
		Example: `  matter ops kms-rotate --watch
  matter ops kms-rotate --emergency --reason "key material in a log" --watch
  matter ops kms-rotate --watch --execution Q2-2026-rotation`,
	}
	f.addFlags(cmd)
	cmd.Flags().BoolVar(&f.watch, "watch", false, "follow the execution until it ends")
	cmd.Flags().StringVar(&f.execution, "execution", "", "with --watch: attach to this execution, start none")
	cmd.Flags().DurationVar(&f.every, "poll", 2*time.Second, "with --watch: pause between two looks")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.startRotation(ctx, f) })
}

// startRotation starts an execution, or attaches to one.
func (o *operator) startRotation(ctx context.Context, f rotateFlags) error {
	switch {
	case f.execution != "" && !f.watch:
		return console.UsageError{Err: errors.New("--execution attaches to an execution: add --watch")}
	case f.every <= 0:
		return console.UsageError{Err: errors.New("--poll must be a duration such as 2s")}
	}
	if err := f.checkFlags(); err != nil {
		return err
	}
	if f.execution != "" {
		return o.attachExecution(ctx, f)
	}
	m, err := o.stack.Machine(f.rotationMode())
	if err != nil {
		return err
	}
	e, err := o.startExecution(ctx, m, f.mintFlags)
	if err != nil {
		return err
	}
	return o.reportStarted(ctx, e, f.watch, f.every, "started")
}

// reportStarted says which execution runs, or follows it.
func (o *operator) reportStarted(ctx context.Context, e executions.Execution, follow bool, every time.Duration, how string) error {
	again := "matter ops kms-rotate --watch --execution " + e.Name
	if follow {
		if !o.console.JSON {
			fmt.Fprintf(o.console.Out, "execution %s %s; Ctrl-C ends the watching, not the rotation\n", e.Name, how)
		}
		return o.followExecution(ctx, e, every)
	}
	return o.console.PrintResult(struct {
		executions.Execution
		Next string `json:"next"`
	}{e, again}, fmt.Sprintf("execution %s %s: rotation %s", e.Name, how, e.RotationID), nextLine(again))
}

// attachExecution follows an execution, by its ARN or by the name that it has at either state
// machine; of two of one name the one that runs.
func (o *operator) attachExecution(ctx context.Context, f rotateFlags) error {
	machines, err := o.stack.Machines()
	if err != nil {
		return err
	}
	var found *executions.Execution
	for _, m := range machines {
		arn := f.execution
		if !strings.HasPrefix(arn, "arn:") {
			arn = m.ExecutionARN(arn)
		}
		e, err := m.Describe(ctx, arn)
		if err != nil && !errors.Is(err, executions.ErrNoExecution) {
			return err
		}
		if err == nil && (found == nil || e.Status == types.ExecutionStatusRunning) {
			found = &e
		}
	}
	if found == nil {
		return refusedError("--execution", fmt.Sprintf("there is no execution %s", f.execution), "matter ops kms-status lists the executions that run")
	}
	return o.followExecution(ctx, *found, f.every)
}

// startExecution starts an execution under a name that is free, unless one is at
// work already or another rotation holds the lock. An emergency ends that one.
func (o *operator) startExecution(ctx context.Context, m *executions.Machine, f mintFlags) (executions.Execution, error) {
	now := o.stack.Steps.Journal.Now()
	asked := f.label
	if asked == "" {
		f.label = o.stack.Config.QuarterLabel(now)
		if f.emergency {
			f.label = kek.EmergencyLabel(now)
		}
	}
	v, err := o.stack.Table.Load(ctx, "")
	if err != nil {
		return executions.Execution{}, err
	}
	if err := o.checkStart(ctx, v.Lock, f); err != nil {
		return executions.Execution{}, err
	}
	if asked == "" && !f.emergency {
		if err := o.checkQuarter(ctx, f.label); err != nil {
			return executions.Execution{}, err
		}
	}
	id, there, err := o.nameRotation(ctx, f.label)
	if err == nil && there != nil && there.Mode != f.rotationMode() { // the rotation that the emergency ends has this name
		id, _, err = o.nameRotation(ctx, id+"-emergency")
	}
	if err != nil {
		return executions.Execution{}, err
	}
	return o.startNamed(ctx, m, id, f)
}

// checkQuarter refuses a second rotation of a quarter that nobody asked for by a label. The schedule
// gives its rotations other ids than their labels, so nameRotation does not find them.
func (o *operator) checkQuarter(ctx context.Context, label string) error {
	all, err := o.stack.Table.Rotations(ctx)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Label == label && r.Mode == kek.Normal && r.Phase == kek.Completed {
			return refusedError("--label", fmt.Sprintf("rotation %s of this quarter, %q, was completed at %s", r.ID, label, formatTime(r.UpdatedAt)),
				`nothing; for one more in this quarter: matter ops kms-rotate --label "<label>" --watch`)
		}
	}
	return nil
}

// checkStart refuses a start beside the rotation that holds the lock. An emergency is refused
// beside another emergency alone, and not if it is to end that too.
func (o *operator) checkStart(ctx context.Context, lock string, f mintFlags) error {
	if lock == "" || f.emergency && f.again {
		return nil
	}
	r, err := o.reloadRotation(ctx, lock)
	switch {
	case f.emergency && (err != nil || r.Mode != kek.Emergency): // preflight judges
		return nil
	case err != nil:
		return err
	}
	return &journal.Error{
		Kind: journal.RotationInProgress, Field: "LOCK", Msg: fmt.Sprintf("rotation %s is %s", r.ID, r.Phase),
		Next: journal.Next{Say: o.continueCommand(ctx, r) + "; if a key is compromised, do not wait: " + emergencyCommand(r)},
	}
}

// startNamed starts an execution of that name, or of the name with a number: AWS
// keeps the name of one that was refused or rolled back for 90 days.
func (o *operator) startNamed(ctx context.Context, m *executions.Machine, id string, f mintFlags) (executions.Execution, error) {
	name, in := id, f.executionInput()
	in.RequestedBy = o.stack.Steps.Journal.Actor
	for i := 2; i < 100; i++ {
		e, err := m.Start(ctx, name, in)
		if !errors.Is(err, executions.ErrTaken) {
			return e, err
		}
		there, err := m.Describe(ctx, m.ExecutionARN(name))
		if err != nil && !errors.Is(err, executions.ErrNoExecution) {
			return e, err
		}
		if err == nil && there.Status == types.ExecutionStatusRunning {
			return e, stillRunning{&journal.Error{
				Kind: journal.RotationInProgress, Field: "execution", Msg: fmt.Sprintf("execution %s runs already", name),
				Next: journal.Next{Say: "matter ops kms-rotate --watch --execution " + name},
			}}
		}
		name = executions.AppendSuffix(id, fmt.Sprintf("-%d", i))
	}
	return executions.Execution{}, refusedError("--label", fmt.Sprintf("99 executions are named after %q", f.label), "choose another --label")
}

// outcome is how an execution ended.
type outcome struct {
	executions.Execution
	Label    string    `json:"label"` // "" if the rotation has no record
	Phase    kek.Phase `json:"phase"`
	OldKEK   kek.ID    `json:"old_kek_id"`
	NewKEK   kek.ID    `json:"new_kek_id"`
	States   []string  `json:"states"`
	Failure  string    `json:"failure,omitempty"` // kind of the error that stopped it
	Next     string    `json:"next"`
	ExitCode int       `json:"exit_code"`
}

// followExecution shows an execution until it ends.
func (o *operator) followExecution(ctx context.Context, e executions.Execution, every time.Duration) error {
	total, err := o.stack.EstimateRows(ctx)
	if err != nil { // the rotation can be followed without it
		total = 0
		fmt.Fprintf(o.console.Err, "warning: how many rows there are is not known: %s\n", advice.Explain(explainAWS(err)))
	}
	w := console.Watcher{SFN: sfn.NewFromConfig(o.stack.AWS), Table: o.stack.Table, Every: every, Rotation: e.RotationID, Prove: o.stack.Steps.ProveCheckpoint}
	view := &console.LiveView{Out: o.console.ProgressWriter(), Live: console.IsTerminal(o.console.ProgressWriter()), Rows: total, Quiet: console.QuietFor}
	end, err := w.Follow(ctx, e.ARN, view.Show)
	view.End()
	if ctx.Err() != nil {
		fmt.Fprintf(o.console.Err, "stopped watching; the rotation continues. Attach again: matter ops kms-rotate --watch --execution %s\n", e.Name)
		return console.Exit(console.ExitRunning)
	}
	if err != nil {
		return err
	}
	return o.reportEnd(ctx, e, end)
}

// reportEnd prints how an execution ended, with the rotation's record as it is now.
func (o *operator) reportEnd(ctx context.Context, e executions.Execution, end console.Outcome) error {
	e.Status = end.Status
	e.Error = end.Error
	e.Cause = end.Cause
	out := outcome{Execution: e, States: end.States}
	v, err := o.stack.Table.Load(ctx, e.RotationID)
	if err != nil {
		return err
	}
	if r := v.Rotation; r != nil {
		out.Label = r.Label
		out.Phase = r.Phase
		out.OldKEK = r.OldKEK
		out.NewKEK = r.NewKEK
	}
	message := out.judgeOutcome()
	if err := o.console.PrintResult(out, message, nextLine(out.Next)); err != nil {
		return err
	}
	if out.ExitCode != console.ExitDone {
		return console.Exit(out.ExitCode)
	}
	return nil
}

// judgeOutcome fills in exit code and next command, and says how it ended.
func (out *outcome) judgeOutcome() string {
	kind, text := journal.ReadFailure(out.Error, out.Cause)
	out.Failure = string(kind)
	switch {
	case out.Status == types.ExecutionStatusSucceeded:
		out.Next = "matter ops verify-kms-rotation --new-kek-id " + string(out.NewKEK)
		return fmt.Sprintf("rotation %s is completed: the pointer is on KEK %s, KEK %s is retired", out.RotationID, out.NewKEK, out.OldKEK)
	case out.Phase == kek.Superseded || slices.Contains(out.States, "Superseded"):
		out.ExitCode = console.ExitFailed
		out.Next = "matter ops kms-status shows the emergency"
		return fmt.Sprintf("an emergency has ended rotation %s and moves its rows\n%s: %s", out.RotationID, kind, text)
	case slices.Contains(out.States, "RolledBack"):
		out.ExitCode = console.ExitRolledBack
		out.Next = "fix the cause, then: " + mintFlags{label: out.Label}.rotateCommand()
		return fmt.Sprintf("rotation %s is rolled back before the switch: the pointer never moved from KEK %s\n%s: %s", out.RotationID, out.OldKEK, kind, text)
	case slices.Contains(out.States, "Refused"):
		out.ExitCode = console.ExitFailed
		out.Next = "matter ops kms-preflight shows every check"
		return fmt.Sprintf("preflight refused rotation %s; nothing was changed\n%s: %s", out.RotationID, kind, text)
	}
	out.ExitCode = console.ExitFailed
	if kind == journal.OrphansFound {
		out.ExitCode = console.ExitOrphans
	}
	out.Next = "fix the cause, then: matter ops resume --rotation " + out.RotationID
	if out.Phase == "" {
		out.Next = mintFlags{}.rotateCommand()
	}
	message := fmt.Sprintf("rotation %s is %s and has halted (%s)", out.RotationID, cmp.Or(out.Phase, "not started"), strings.ToLower(string(out.Status)))
	if kind != "" {
		message += "\n" + strings.TrimSuffix(string(kind)+": "+text, ": ")
	}
	return message
}
