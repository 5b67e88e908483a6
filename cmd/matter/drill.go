package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newDrillCommand returns the group matter ops drill.
func newDrillCommand() *cobra.Command {
	cmd := console.CompleteGroup(&cobra.Command{
		Use: "drill", Short: "Try the way back before it is needed",
		Example: "  matter ops drill run kms_rotation_failure\n  matter ops drill status",
	})
	cmd.AddCommand(newDrillRunCommand(), newDrillStatus())
	return cmd
}

// newDrillRunCommand returns the command matter ops drill run. The drill is an argument, not
// a flag, as the runbook has it.
func newDrillRunCommand() *cobra.Command {
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "run kms_rotation_failure",
		Short: "Run a rotation whose canary is made to fail, and see it roll back",
		Long: `Starts an execution of the state machine that mints a KEK, corrupts its canary, and
must roll back by itself: the drill passes if the pointer has not moved and the new
KEK is retired and its KMS key disabled. A drill never switches, needs no window and
no announcement, and holds the lock while it runs, about a minute.

The schedule runs it 14 days before each rotation.

Exit code: 0 passed, 1 failed.`,
		Example: "  matter ops drill run kms_rotation_failure",
	}
	cmd.Flags().DurationVar(&every, "poll", 2*time.Second, "pause between two looks")
	name := ""
	cmd = newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.runDrill(ctx, name, every) })
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) != 1:
			return console.UsageError{Err: fmt.Errorf("name one drill: %s; see %s --help", gates.DrillFailure, cmd.CommandPath())}
		case args[0] != gates.DrillFailure:
			return console.UsageError{Err: fmt.Errorf("unknown drill %q: use %s", args[0], gates.DrillFailure)}
		}
		name = args[0]
		return nil
	}
	cmd.ValidArgs = []string{gates.DrillFailure}
	return cmd
}

// runDrill starts a drill and follows its execution. It passes only if the record of the
// drill is that of this execution: an older drill that passed proves nothing about it.
func (o *operator) runDrill(ctx context.Context, name string, every time.Duration) error {
	if every <= 0 {
		return console.UsageError{Err: errors.New("--poll must be a duration such as 2s")}
	}
	m, err := o.stack.Machine(kek.Normal)
	if err != nil {
		return err
	}
	before, err := o.stack.Table.Load(ctx, "")
	if err != nil {
		return err
	}
	e, err := o.startDrill(ctx, m, name)
	if err != nil {
		return err
	}
	if !o.console.JSON {
		fmt.Fprintf(o.console.Out, "execution %s started; Ctrl-C ends the watching, not the drill\n", e.Name)
	}
	for {
		if e, err = m.Describe(ctx, e.ARN); err != nil {
			return err
		}
		if e.Status != types.ExecutionStatusRunning {
			break
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			fmt.Fprintf(o.console.Err, "stopped watching; the drill continues: matter ops drill status\n")
			return console.Exit(console.ExitRunning)
		}
	}
	d, err := o.stack.Table.LoadDrill(ctx, name)
	if err != nil {
		return err
	}
	if e.Status != types.ExecutionStatusSucceeded || d.Rotation != e.RotationID {
		kind, text := journal.ReadFailure(e.Error, e.Cause)
		return &journal.Error{
			Kind: journal.Refused, Field: name, Msg: fmt.Sprintf("the drill has not passed (%s): %s: %s", e.Status, kind, text), Next: journal.Next{Say: "matter ops kms-status"},
		}
	}
	res := drillResult(d, o.stack.Steps.Journal.Now(), o.stack.Config.DrillFreshDays)
	return o.console.PrintResult(res,
		fmt.Sprintf("drill %s passed: rotation %s was rolled back for %s", name, d.Rotation, journal.CanaryFailed),
		fmt.Sprintf("pointer: KEK %s, before and after (%t)", d.Pointer, before.Pointer != nil && before.Pointer.KEKID == d.Pointer),
		fmt.Sprintf("KEK %s, minted for the drill: retired, its KMS key disabled", d.Retired), nextLine(res.Next))
}

// startDrill starts an execution under a name of its own.
func (o *operator) startDrill(ctx context.Context, m *executions.Machine, name string) (executions.Execution, error) {
	in := rotation.ExecutionInput{Drill: name, RequestedBy: o.stack.Steps.Journal.Actor}
	id := "drill-" + o.stack.Steps.Journal.Now().UTC().Format("2006-01-02-150405")
	for i := 2; i < 10; i++ {
		e, err := m.Start(ctx, id, in)
		if !errors.Is(err, executions.ErrTaken) {
			return e, err
		}
		id = executions.AppendSuffix(id, fmt.Sprintf("-%d", i))
	}
	return executions.Execution{}, fmt.Errorf("start the drill: %w", executions.ErrTaken)
}

// drillStatus is what drill status shows.
type drillStatus struct {
	Name      string          `json:"drill"`
	Freshness gates.Freshness `json:"freshness"`
	PassedAt  *time.Time      `json:"passed_at"`
	FreshDays int             `json:"fresh_days"` // 0: the deployment demands none
	Rotation  string          `json:"rotation_id"`
	Pointer   string          `json:"pointer_kek_id"`
	Retired   string          `json:"retired_kek_id"`
	Next      string          `json:"next"`
}

// drillResult is a drill as both commands print it.
func drillResult(d gates.Drill, now time.Time, days int) drillStatus {
	s := drillStatus{
		Name: d.Name, Freshness: d.Freshness(now, days), FreshDays: days, Rotation: d.Rotation, Pointer: string(d.Pointer), Retired: string(d.Retired),
		Next: "matter ops drill run " + d.Name,
	}
	if d.Rev > 0 {
		at := d.PassedAt.UTC()
		s.PassedAt = &at
	}
	if s.Freshness == gates.Fresh {
		s.Next = "nothing; matter ops kms-preflight shows every check"
	}
	return s
}

// newDrillStatus returns the command matter ops drill status.
func newDrillStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether the drill is fresh, stale or was never passed",
		Long: `Reads only. Exit code: 0 fresh, 1 stale or never. A drill is fresh for the days of the
stack's parameter DrillFreshDays; where that is 0, forever.`,
		Example: "  matter ops drill status",
	}
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.drillStatus(ctx) })
}

// drillStatus prints whether the drill counts for a normal rotation, which gates decides. It
// exits with 1 unless it is fresh.
func (o *operator) drillStatus(ctx context.Context) error {
	d, err := o.stack.Table.LoadDrill(ctx, gates.DrillFailure)
	if err != nil {
		return err
	}
	s := drillResult(d, o.stack.Steps.Journal.Now(), o.stack.Config.DrillFreshDays)
	line := fmt.Sprintf("%s  %s", console.PaintText(o.console.Out, console.Red, string(s.Freshness)), s.Name)
	if s.Freshness == gates.Fresh {
		line = fmt.Sprintf("%s  %s", console.PaintText(o.console.Out, console.Green, string(s.Freshness)), s.Name)
	}
	evidence := ""
	if s.PassedAt != nil {
		line += "  passed " + formatTime(*s.PassedAt)
		if s.FreshDays > 0 {
			line += fmt.Sprintf(", counts until %s", s.PassedAt.AddDate(0, 0, s.FreshDays).Format("2006-01-02"))
		}
		evidence = fmt.Sprintf("evidence: rotation %s rolled back, pointer stayed on KEK %s, KEK %s retired and disabled", s.Rotation, s.Pointer, s.Retired)
	}
	if err := o.console.PrintResult(s, line, evidence, nextLine(s.Next)); err != nil {
		return err
	}
	if s.Freshness != gates.Fresh {
		return console.Exit(console.ExitFailed)
	}
	return nil
}
