package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newPreflight returns the command matter ops kms-preflight.
func newPreflight() *cobra.Command {
	var f mintFlags
	cmd := &cobra.Command{
		Use:   "kms-preflight",
		Short: "Check everything a rotation relies on, and start nothing",
		Long: `Runs every check of the state machine's first step and reports all of them, so
that they can be fixed in one go. All that it writes is a canary record, which it
anchors in the transparency log if everything else is in order. Exit code 0: a rotation may
start now. 1: it would be refused, or a sampled row would stop it later: rows of each
source and KEK are unwrapped, and with --emergency their payloads must open. "??" marks
what this person has no permission to see; for rows that does not count as a refusal.`,
		Example: `  matter ops kms-preflight
  matter ops kms-preflight --window any -o json`,
	}
	f.addFlags(cmd)
	return newAdvisedCommand(cmd, func(ctx context.Context, o *operator) error { return o.runPreflight(ctx, f) })
}

// addFlags adds the flags that say which rotation is meant.
func (f *mintFlags) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.label, "label", "", "the operator's name for the rotation; default: the quarter's, in an emergency the time's")
	cmd.Flags().BoolVar(&f.emergency, "emergency", false, "the old KEK may be compromised: no window, never roll back to it")
	cmd.Flags().BoolVar(&f.again, "again", false, "with --emergency: end the emergency that runs, too; any other rotation is ended without it")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit chain; required in an emergency")
	cmd.Flags().StringVar(&f.window, "window", "", "HH:MM-HH:MM or any, instead of the deployment's off-peak window")
}

// runChecks runs preflight's checks. A refusal is its own answer; err says that it
// could not look.
func (o *operator) runChecks(ctx context.Context, f mintFlags) (plan rotation.Plan, refusal, err error) {
	asked := f.label
	if asked == "" {
		f.label = o.stack.Config.QuarterLabel(o.stack.Steps.Journal.Now())
	}
	plan, err = o.stack.Steps.Preflight(ctx, rotation.PreflightInput{
		ExecutionName: notInID.ReplaceAllString(f.label, "-"), Input: f.executionInput(), CheckOnly: true,
	})
	if err != nil && len(plan.Checks) == 0 {
		return plan, nil, err
	}
	rows, rerr := o.stack.Steps.CheckRows(ctx, f.rotationMode())
	if rerr != nil && err == nil { // else preflight has named it
		return plan, nil, rerr
	}
	explainChecks(rows)
	explainChecks(plan.Checks)
	plan.Checks = append(plan.Checks, rows...)
	for _, c := range rows {
		if !c.OK && err == nil && !isDenied(c) { // the rotation itself rehearses rows before its switch
			err = &journal.Error{Kind: journal.RehearsalFailed, Field: c.Name, Msg: c.Detail, Next: journal.Next{Say: f.afterRows()}}
		}
	}
	if asked != "" && err == nil { // a rotation that holds the lock matters more
		if _, _, err = o.nameRotation(ctx, asked); err != nil {
			plan.Checks = append(plan.Checks, rotation.Check{Name: "label", Detail: advice.Explain(err), Err: err})
		}
	}
	return plan, err, nil
}

// isDenied reports whether a check has seen nothing, because this person lacks a permission.
func isDenied(c rotation.Check) bool { return lambdastep.ErrorKind(c.Err) == journal.AccessDenied }

// namesUnseen are the checks that have seen nothing.
func namesUnseen(checks []rotation.Check) []string {
	names := []string{}
	for _, c := range checks {
		if !c.OK && isDenied(c) {
			names = append(names, c.Name)
		}
	}
	return names
}

// explainChecks adds what to do about the checks that failed.
func explainChecks(checks []rotation.Check) {
	for i := range checks {
		checks[i].Detail = advice.Append(checks[i].Detail, checks[i].Err)
	}
}

// afterRows is what to do about a row that would not be moved.
func (f mintFlags) afterRows() string {
	if f.emergency {
		return "correct it beforehand; if the KEK is compromised now, start all the same, for the pointer leaves it at once and what cannot be moved blocks the retirement: " + f.rotateCommand()
	}
	return "matter ops census shows every item that cannot be accounted for"
}

// rotateCommand is the command that starts the rotation which the flags mean.
func (f mintFlags) rotateCommand() string {
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

// runPreflight prints every check, and then the refusal if there is one. An emergency may
// start although a sampled row cannot be moved, so it still gets the command.
func (o *operator) runPreflight(ctx context.Context, f mintFlags) error {
	if err := f.checkFlags(); err != nil {
		return err
	}
	plan, refusal, err := o.runChecks(ctx, f)
	if err != nil {
		return err
	}
	command := ""
	if refusal == nil || f.emergency && lambdastep.ErrorKind(refusal) == journal.RehearsalFailed { // an emergency starts all the same
		command = f.rotateCommand()
	}
	lines := o.checkLines(plan.Checks)
	unseen := namesUnseen(plan.Checks)
	if len(unseen) > 0 {
		lines = append(lines, "not looked at: "+strings.Join(unseen, ", ")+"; the rotation looks itself before its switch")
	}
	lines = append(lines, nextLine(command))
	if err := o.console.PrintResult(map[string]any{"ready": refusal == nil, "checks": plan.Checks, "not_looked_at": unseen, "next": command}, lines...); err != nil {
		return err
	}
	return o.adviseStart(ctx, refusal, "matter ops kms-rotate --window any")
}

// checkLines is checks as text.
func (o *operator) checkLines(checks []rotation.Check) []string {
	var lines []string
	for _, c := range checks {
		mark := console.PaintText(o.console.Out, console.Green, "ok")
		switch {
		case !c.OK && isDenied(c):
			mark = "??"
		case !c.OK:
			mark = console.PaintText(o.console.Out, console.Red, "NO")
		}
		lines = append(lines, fmt.Sprintf("%s  %-20s  %s", mark, c.Name, c.Detail))
	}
	return lines
}
