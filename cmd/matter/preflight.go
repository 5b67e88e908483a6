package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func newPreflight() *cobra.Command {
	var f mintFlags
	cmd := &cobra.Command{
		Use:   "kms-preflight",
		Short: "Check everything a rotation relies on, and start nothing",
		Long: `Runs every check of the state machine's first step and reports all of them, so
that they can be fixed in one go. All that it writes is a canary record, which it
anchors in the transparency log if everything else is in order. Exit code 0: a rotation may
start now. 1: it would be refused, or a sampled row would stop it later: rows of each
source and KEK are unwrapped, and with --emergency their payloads must open.`,
		Example: `  matter ops kms-preflight
  matter ops kms-preflight --window any -o json`,
	}
	f.register(cmd)
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.preflight(ctx, f) })
}

// register adds the flags that say which rotation is meant.
func (f *mintFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.label, "label", "", "the operator's name for the rotation; default: the quarter's, in an emergency the time's")
	cmd.Flags().BoolVar(&f.emergency, "emergency", false, "the old KEK may be compromised: no window, never roll back to it")
	cmd.Flags().BoolVar(&f.again, "again", false, "with --emergency: end the emergency that runs, too; any other rotation is ended without it")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit chain; required in an emergency")
	cmd.Flags().StringVar(&f.window, "window", "", "HH:MM-HH:MM or any, instead of the deployment's off-peak window")
}

// checks runs preflight's checks. A refusal is its own answer; err says that it
// could not look.
func (o *operator) checks(ctx context.Context, f mintFlags) (plan rotation.Plan, refusal, err error) {
	if f.label == "" {
		f.label = o.Config.QuarterLabel(o.Steps.Now())
	}
	plan, err = o.Steps.Preflight(ctx, rotation.PreflightInput{
		ExecutionName: notInID.ReplaceAllString(f.label, "-"), Input: f.input(), CheckOnly: true,
	})
	if err != nil && len(plan.Checks) == 0 {
		return plan, nil, err
	}
	mode := kek.Normal
	if f.emergency {
		mode = kek.Emergency
	}
	rows, rerr := o.Steps.CheckRows(ctx, mode)
	if rerr != nil && err == nil { // else preflight has named it
		return plan, nil, rerr
	}
	plan.Checks = append(plan.Checks, rows...)
	for _, c := range rows {
		if !c.OK && err == nil {
			err = &rotation.Error{Kind: rotation.RehearsalFailed, Field: c.Name, Msg: c.Detail, Next: f.afterRows()}
		}
	}
	return plan, err, nil
}

// afterRows is what to do about a row that would not be moved.
func (f mintFlags) afterRows() string {
	if f.emergency {
		return "correct it beforehand; if the KEK is compromised now, start all the same, for the pointer leaves it at once and what cannot be moved blocks the retirement: " + f.rotate()
	}
	return "matter ops census shows every item that cannot be accounted for"
}

// rotate is the command that starts the rotation which the flags mean.
func (f mintFlags) rotate() string {
	command := "matter ops kms-rotate"
	if f.label != "" {
		command += fmt.Sprintf(" --label %q", f.label)
	}
	if f.emergency {
		command += fmt.Sprintf(" --emergency --reason %q", f.reason)
		if f.again {
			command += " --again"
		}
	}
	if f.window != "" {
		command += " --window " + f.window
	}
	return command + " --watch"
}

func (o *operator) preflight(ctx context.Context, f mintFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	plan, refusal, err := o.checks(ctx, f)
	if err != nil {
		return err
	}
	command := ""
	if refusal == nil || f.emergency && lambdastep.Kind(refusal) == rotation.RehearsalFailed { // an emergency starts all the same
		command = f.rotate()
	}
	lines := append(o.checkLines(plan.Checks), next(command))
	if err := o.Result(map[string]any{"ready": refusal == nil, "checks": plan.Checks, "next": command}, lines...); err != nil {
		return err
	}
	return o.startError(ctx, refusal, "matter ops kms-rotate --window any")
}

func (o *operator) checkLines(checks []rotation.Check) []string {
	var lines []string
	for _, c := range checks {
		mark := console.Paint(o.Out, console.Green, "ok")
		if !c.OK {
			mark = console.Paint(o.Out, console.Red, "NO")
		}
		lines = append(lines, fmt.Sprintf("%s  %-20s  %s", mark, c.Name, c.Detail))
	}
	return lines
}
