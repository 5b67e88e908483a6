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

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/watch"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

type rotateFlags struct {
	mintFlags
	watch     bool
	execution string
	every     time.Duration
}

func newRotate() *cobra.Command {
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
	f.register(cmd)
	cmd.Flags().BoolVar(&f.watch, "watch", false, "follow the execution until it ends")
	cmd.Flags().StringVar(&f.execution, "execution", "", "with --watch: attach to this execution, start none")
	cmd.Flags().DurationVar(&f.every, "poll", 2*time.Second, "with --watch: pause between two looks")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.rotate(ctx, f) })
}

func (o *operator) rotate(ctx context.Context, f rotateFlags) error {
	switch {
	case f.execution != "" && !f.watch:
		return console.UsageError{Err: errors.New("--execution attaches to an execution: add --watch")}
	case f.every <= 0:
		return console.UsageError{Err: errors.New("--poll must be a duration such as 2s")}
	}
	if err := f.check(); err != nil {
		return err
	}
	if f.execution != "" {
		return o.attach(ctx, f)
	}
	m, err := o.Machine(f.mode())
	if err != nil {
		return err
	}
	e, err := o.startExecution(ctx, m, f.mintFlags)
	if err != nil {
		return err
	}
	return o.started(ctx, e, f.watch, f.every, "started")
}

// started says which execution runs, or follows it.
func (o *operator) started(ctx context.Context, e app.Execution, follow bool, every time.Duration, how string) error {
	again := "matter ops kms-rotate --watch --execution " + e.Name
	if follow {
		if !o.JSON {
			fmt.Fprintf(o.Out, "execution %s %s; Ctrl-C ends the watching, not the rotation\n", e.Name, how)
		}
		return o.follow(ctx, e, every)
	}
	return o.Result(struct {
		app.Execution
		Next string `json:"next"`
	}{e, again}, fmt.Sprintf("execution %s %s: rotation %s", e.Name, how, e.RotationID), next(again))
}

// attach follows an execution, by its ARN or by the name that it has at either state
// machine; of two of one name the one that runs.
func (o *operator) attach(ctx context.Context, f rotateFlags) error {
	machines, err := o.Machines()
	if err != nil {
		return err
	}
	var found *app.Execution
	for _, m := range machines {
		arn := f.execution
		if !strings.HasPrefix(arn, "arn:") {
			arn = m.ExecutionARN(arn)
		}
		e, err := m.Describe(ctx, arn)
		if err != nil && !errors.Is(err, app.ErrNoExecution) {
			return err
		}
		if err == nil && (found == nil || e.Status == types.ExecutionStatusRunning) {
			found = &e
		}
	}
	if found == nil {
		return refused("--execution", fmt.Sprintf("there is no execution %s", f.execution), "matter ops kms-status lists the executions that run")
	}
	return o.follow(ctx, *found, f.every)
}

// startExecution starts an execution under a name that is free, unless one is at
// work already or another rotation holds the lock. An emergency ends that one.
func (o *operator) startExecution(ctx context.Context, m *app.Machine, f mintFlags) (app.Execution, error) {
	now := o.Steps.Now()
	if f.label == "" {
		f.label = o.Config.QuarterLabel(now)
		if f.emergency {
			f.label = "emergency-" + now.UTC().Format("2006-01-02-150405")
		}
	}
	v, err := o.Table.Load(ctx, "")
	if err != nil {
		return app.Execution{}, err
	}
	if err := o.mayStart(ctx, v.Lock, f); err != nil {
		return app.Execution{}, err
	}
	id, there, err := o.name(ctx, f.label)
	if err == nil && there != nil && there.Mode != f.mode() { // the rotation that the emergency ends has this name
		id, _, err = o.name(ctx, id+"-emergency")
	}
	if err != nil {
		return app.Execution{}, err
	}
	return o.startNamed(ctx, m, id, f)
}

// mayStart refuses a start beside the rotation that holds the lock. An emergency is refused
// beside another emergency alone, and not if it is to end that too.
func (o *operator) mayStart(ctx context.Context, lock string, f mintFlags) error {
	if lock == "" || f.emergency && f.again {
		return nil
	}
	r, err := o.reload(ctx, lock)
	switch {
	case f.emergency && (err != nil || r.Mode != kek.Emergency): // preflight judges
		return nil
	case err != nil:
		return err
	}
	return &rotation.Error{
		Kind: rotation.RotationInProgress, Field: "LOCK", Msg: fmt.Sprintf("rotation %s is %s", r.ID, r.Phase),
		Next: o.goOn(ctx, r) + "; if a key is compromised, do not wait: " + emergencyCommand(r),
	}
}

// startNamed starts an execution of that name, or of the name with a number: AWS
// keeps the name of one that was refused or rolled back for 90 days.
func (o *operator) startNamed(ctx context.Context, m *app.Machine, id string, f mintFlags) (app.Execution, error) {
	name, in := id, f.input()
	in.RequestedBy = o.Steps.Actor
	for i := 2; i < 100; i++ {
		e, err := m.Start(ctx, name, in)
		if !errors.Is(err, app.ErrTaken) {
			return e, err
		}
		there, err := m.Describe(ctx, m.ExecutionARN(name))
		if err != nil && !errors.Is(err, app.ErrNoExecution) {
			return e, err
		}
		if err == nil && there.Status == types.ExecutionStatusRunning {
			return e, stillRunning{&rotation.Error{
				Kind: rotation.RotationInProgress, Field: "execution", Msg: fmt.Sprintf("execution %s runs already", name),
				Next: "matter ops kms-rotate --watch --execution " + name,
			}}
		}
		name = app.Suffixed(id, fmt.Sprintf("-%d", i))
	}
	return app.Execution{}, refused("--label", fmt.Sprintf("99 executions are named after %q", f.label), "choose another --label")
}

// outcome is how an execution ended.
type outcome struct {
	app.Execution
	Phase    kek.Phase `json:"phase"`
	OldKEK   kek.ID    `json:"old_kek_id"`
	NewKEK   kek.ID    `json:"new_kek_id"`
	States   []string  `json:"states"`
	Failure  string    `json:"failure,omitempty"` // kind of the error that stopped it
	Next     string    `json:"next"`
	ExitCode int       `json:"exit_code"`
}

// follow shows an execution until it ends.
func (o *operator) follow(ctx context.Context, e app.Execution, every time.Duration) error {
	total, err := o.RowsAbout(ctx)
	if err != nil {
		return err
	}
	w := watch.Watcher{SFN: sfn.NewFromConfig(o.AWS), Table: o.Table, Every: every, Rotation: e.RotationID}
	view := &console.LiveView{Out: o.Progress(), Live: console.IsTerminal(o.Progress()), Rows: total, Quiet: console.QuietFor}
	end, err := w.Run(ctx, e.ARN, view.Show)
	view.End()
	if ctx.Err() != nil {
		fmt.Fprintf(o.Err, "stopped watching; the rotation continues. Attach again: matter ops kms-rotate --watch --execution %s\n", e.Name)
		return console.Exit(console.ExitRunning)
	}
	if err != nil {
		return err
	}
	return o.ended(ctx, e, end)
}

func (o *operator) ended(ctx context.Context, e app.Execution, end watch.Outcome) error {
	e.Status = end.Status
	e.Error = end.Error
	e.Cause = end.Cause
	out := outcome{Execution: e, States: end.States}
	v, err := o.Table.Load(ctx, e.RotationID)
	if err != nil {
		return err
	}
	if r := v.Rotation; r != nil {
		out.Phase = r.Phase
		out.OldKEK = r.OldKEK
		out.NewKEK = r.NewKEK
	}
	message := out.judge()
	if err := o.Result(out, message, next(out.Next)); err != nil {
		return err
	}
	if out.ExitCode != console.ExitDone {
		return console.Exit(out.ExitCode)
	}
	return nil
}

// judge fills in exit code and next command, and says how it ended.
func (out *outcome) judge() string {
	kind, text := rotation.ReadFailure(out.Error, out.Cause)
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
		out.Next = "fix the cause, then: matter ops kms-rotate"
		return fmt.Sprintf("rotation %s is rolled back before the switch: the pointer never moved from KEK %s\n%s: %s", out.RotationID, out.OldKEK, kind, text)
	case slices.Contains(out.States, "Refused"):
		out.ExitCode = console.ExitFailed
		out.Next = "matter ops kms-preflight shows every check"
		return fmt.Sprintf("preflight refused rotation %s; nothing was changed\n%s: %s", out.RotationID, kind, text)
	}
	out.ExitCode = console.ExitFailed
	if kind == rotation.OrphansFound {
		out.ExitCode = console.ExitOrphans
	}
	out.Next = "fix the cause, then: matter ops resume --rotation " + out.RotationID
	if out.Phase == "" {
		out.Next = "matter ops kms-rotate"
	}
	message := fmt.Sprintf("rotation %s is %s and has halted (%s)", out.RotationID, cmp.Or(out.Phase, "not started"), strings.ToLower(string(out.Status)))
	if kind != "" {
		message += "\n" + strings.TrimSuffix(string(kind)+": "+text, ": ")
	}
	return message
}
