package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// mintFlags say which rotation is meant. The commands that start, check or plan one share
// them.
type mintFlags struct {
	label, reason, window string
	emergency, again      bool
}

// newMintCommand returns the command matter ops kms-mint-kek, step 1.
func newMintCommand() *cobra.Command {
	var f mintFlags
	cmd := &cobra.Command{
		Use:   "kms-mint-kek --label LABEL",
		Short: "Step 1: start a rotation by hand and mint its KEK",
		Long: `Runs preflight, takes the lock, reads every item of every source (the census), mints
a KEK in KMS and registers it as pending: nothing is wrapped under it yet. The
rotation's id is derived from the label. The command may be repeated: there is one KEK
per attempt, whatever is repeated.

If the census finds an item that the rotation could not place, no KEK is minted, the
rotation is rolled back and the lock is free. An emergency takes no census: it moves
what it can, and what it cannot place blocks the retirement. It ends the rotation that
runs, if one does, and moves every row from that one's KEKs too.`,
		Example: `  matter ops kms-mint-kek --label "Q2-2026-rotation"
  matter ops kms-mint-kek --label "incident 4711" --emergency --reason "key material in a log"`,
	}
	f.addFlags(cmd)
	cmd.Flag("label").Usage = "the operator's name for the rotation, e.g. Q2-2026-rotation"
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.mintKEK(ctx, f) }, "label")
}

// checkFlags refuses flags that contradict each other.
func (f mintFlags) checkFlags() error {
	switch {
	case f.emergency && f.reason == "":
		return console.UsageError{Err: errors.New(`an emergency needs --reason "what happened", for the audit chain`)}
	case f.emergency && f.window != "":
		return console.UsageError{Err: errors.New("an emergency waits for no window: leave --window out")}
	case f.again && !f.emergency:
		return console.UsageError{Err: errors.New("--again ends another emergency: add --emergency and --reason")}
	}
	return nil
}

// mintKEK starts a rotation by hand, or continues one of that label that has not switched,
// through preflight, census and mint. Each of them may be repeated.
func (o *operator) mintKEK(ctx context.Context, f mintFlags) error {
	if err := f.checkFlags(); err != nil {
		return err
	}
	id, under, err := o.nameRotation(ctx, f.label)
	if err != nil {
		return err
	}
	before := kek.Phase("")
	if under != nil {
		if err := o.checkContinue(ctx, *under, f); err != nil {
			return err
		}
		before = under.Phase
	} else if err := o.startByHand(ctx, id, f); err != nil {
		return err
	}
	counted, err := o.countRows(ctx, id, fmt.Sprintf("matter ops kms-mint-kek --label %q", f.label))
	if err != nil {
		return err
	}
	out, err := o.stack.Steps.Mint(ctx, rotation.StepInput{RotationID: id})
	if err != nil {
		r, rerr := o.reloadRotation(ctx, id)
		if rerr != nil {
			return err
		}
		return o.adviseByHand(ctx, err, r)
	}
	r, err := o.reloadRotation(ctx, id)
	if err != nil {
		return err
	}
	return o.reportStep(ctx, id, before, out, counted,
		fmt.Sprintf("new KEK %s, pending: nothing is wrapped under it yet", r.NewKEK),
		fmt.Sprintf("old KEK %s, which the pointer names", r.OldKEK))
}

// countRows takes the census of a rotation that has no KEK yet, and rolls it back if an
// item cannot be accounted for: nothing is minted then, and what has to be corrected,
// such as a source's definition, cannot be while a rotation holds it.
func (o *operator) countRows(ctx context.Context, id, again string) (string, error) {
	r, err := o.reloadRotation(ctx, id)
	if err != nil {
		return "", err
	}
	if r.Phase != kek.Started || r.Counted || r.Mode == kek.Emergency {
		return "", nil
	}
	var out rotation.SweepOutput
	err = o.showPass(ctx, r, rotation.PassCensus, func(ctx context.Context) error {
		for !out.Done {
			var err error
			if out, err = o.stack.Steps.Verify(ctx, rotation.VerifyInput{RotationID: id, Census: true}); err != nil {
				return err
			}
			if out.Paused {
				return o.pausedError(ctx, r)
			}
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return "", o.endDetached(&console.StatusLine{Out: o.console.Err}, again)
	case err == nil:
		t := out.Tally
		return fmt.Sprintf("census: every item of %d sources was read, %d envelopes and %d other items", len(r.Sources), t.Scanned, t.Other+t.Declared), nil
	}
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.RowsUnaccounted && typed.Kind != journal.SourceMisconfigured && typed.Kind != journal.SourceForgotten {
		return "", o.adviseByHand(ctx, err, r)
	}
	if _, gaveUp := o.stack.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: id, Action: rotation.ActionPreSwitchFailure, Error: string(typed.Kind), Cause: typed.Msg,
	}); gaveUp != nil {
		return "", errors.Join(err, gaveUp)
	}
	e := *typed
	e.Msg += fmt.Sprintf("; no KEK was minted, rotation %s is rolled back", id)
	e.Next = journal.Next{Say: advice.Command(e.Next) + "; then: " + again}
	return "", &e
}

// checkContinue refuses to continue a rotation that is not the one asked for.
func (o *operator) checkContinue(ctx context.Context, r kek.Rotation, f mintFlags) error {
	if err := o.checkNoExecution(ctx, r); err != nil {
		return err
	}
	switch {
	case f.emergency && r.Mode != kek.Emergency:
		return refusedError("--label", fmt.Sprintf("rotation %s is under way and no emergency; it is %s", r.ID, r.Phase),
			`choose another --label: the emergency then ends this rotation and moves every row`)
	case !r.Phase.PreSwitch():
		return refusedError("--label", fmt.Sprintf("rotation %s has switched already: it is %s", r.ID, r.Phase), o.nextCommand(ctx, r))
	}
	return nil
}

// startByHand runs preflight, which takes the lock and writes the record.
func (o *operator) startByHand(ctx context.Context, id string, f mintFlags) error {
	_, err := o.stack.Steps.Preflight(ctx, rotation.PreflightInput{ExecutionName: id, Input: f.executionInput()})
	return o.adviseStart(ctx, err, fmt.Sprintf("matter ops kms-mint-kek --label %q --window any", f.label))
}

// executionInput is the input that the state machine would get for the flags.
func (f mintFlags) executionInput() rotation.ExecutionInput {
	in := rotation.ExecutionInput{Label: f.label, Reason: f.reason, Window: f.window, Again: f.again}
	if f.emergency {
		in.Mode = string(kek.Emergency)
	}
	return in
}

// rotationMode is the mode that the flags mean.
func (f mintFlags) rotationMode() kek.Mode {
	if f.emergency {
		return kek.Emergency
	}
	return kek.Normal
}

// adviseStart gives a refusal of preflight the command that comes next for a
// person. anytime is the command that does not wait for the window.
func (o *operator) adviseStart(ctx context.Context, err error, anytime string) error {
	var typed *journal.Error
	if !errors.As(err, &typed) {
		return err
	}
	e := *typed
	switch e.Kind {
	case journal.WindowClosed:
		e.Next = journal.Next{Say: "wait for the window, or if you accept peak load: " + anytime}
	case journal.RotationInProgress:
		v, lerr := o.stack.Table.Load(ctx, "")
		if lerr != nil || v.Lock == "" {
			return err
		}
		r, lerr := o.reloadRotation(ctx, v.Lock)
		if lerr != nil {
			return err
		}
		e.Next = journal.Next{Say: o.continueCommand(ctx, r) + "; if a key is compromised, do not wait: " + emergencyCommand(r)}
	default: // it speaks for itself
	}
	return &e
}

// emergencyCommand starts an emergency that ends r.
func emergencyCommand(r kek.Rotation) string {
	if r.Mode == kek.Emergency {
		return `matter ops kms-rotate --emergency --again --reason "what happened" --watch`
	}
	return `matter ops kms-rotate --emergency --reason "what happened" --watch`
}

// continueCommand is the command for a rotation that holds the lock, no matter who runs it.
func (o *operator) continueCommand(ctx context.Context, r kek.Rotation) string {
	if e, ok, err := o.findExecution(ctx, r.ID); err == nil && ok {
		return "matter ops kms-rotate --watch --execution " + e.Name
	}
	if r.Execution != "" {
		return "matter ops resume --rotation " + r.ID
	}
	return o.nextCommand(ctx, r)
}
