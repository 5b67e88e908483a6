package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

type mintFlags struct {
	label, reason, window string
	emergency, again      bool
}

func newMint() *cobra.Command {
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
	f.register(cmd)
	cmd.Flag("label").Usage = "the operator's name for the rotation, e.g. Q2-2026-rotation"
	return newStep(cmd, func(ctx context.Context, o *operator) error { return o.mint(ctx, f) }, "label")
}

func (f mintFlags) check() error {
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

func (o *operator) mint(ctx context.Context, f mintFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	id, under, err := o.name(ctx, f.label)
	if err != nil {
		return err
	}
	before := kek.Phase("")
	if under != nil {
		if err := o.mayMint(ctx, *under, f); err != nil {
			return err
		}
		before = under.Phase
	} else if err := o.start(ctx, id, f); err != nil {
		return err
	}
	counted, err := o.countRows(ctx, id, fmt.Sprintf("matter ops kms-mint-kek --label %q", f.label))
	if err != nil {
		return err
	}
	out, err := o.Steps.Mint(ctx, rotation.StepInput{RotationID: id})
	if err != nil {
		r, rerr := o.reload(ctx, id)
		if rerr != nil {
			return err
		}
		return o.advise(err, r)
	}
	r, err := o.reload(ctx, id)
	if err != nil {
		return err
	}
	return o.done(ctx, id, before, out, counted,
		fmt.Sprintf("new KEK %s, pending: nothing is wrapped under it yet", r.NewKEK),
		fmt.Sprintf("old KEK %s, which the pointer names", r.OldKEK))
}

// countRows takes the census of a rotation that has no KEK yet, and rolls it back if an
// item cannot be accounted for: nothing is minted then, and what has to be corrected,
// such as a source's definition, cannot be while a rotation holds it.
func (o *operator) countRows(ctx context.Context, id, again string) (string, error) {
	r, err := o.reload(ctx, id)
	if err != nil {
		return "", err
	}
	if r.Phase != kek.Started || r.Counted || r.Mode == kek.Emergency {
		return "", nil
	}
	var out rotation.SweepOutput
	err = o.pass(ctx, r, rotation.PassCensus, func(ctx context.Context) error {
		for !out.Done {
			var err error
			if out, err = o.Steps.Verify(ctx, rotation.VerifyInput{RotationID: id, Census: true}); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return "", o.detached(&console.StatusLine{Out: o.Err}, again)
	case err == nil:
		t := out.Tally
		return fmt.Sprintf("census: every item of %d sources was read, %d envelopes and %d other items", len(r.Sources), t.Scanned, t.Other+t.Declared), nil
	}
	var typed *rotation.Error
	if !errors.As(err, &typed) || typed.Kind != rotation.RowsUnaccounted && typed.Kind != rotation.SourceMisconfigured && typed.Kind != rotation.SourceForgotten {
		return "", o.advise(err, r)
	}
	if _, gaveUp := o.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: id, Action: rotation.ActionPreSwitchFailure, Error: string(typed.Kind), Cause: typed.Msg,
	}); gaveUp != nil {
		return "", errors.Join(err, gaveUp)
	}
	e := *typed
	e.Msg += fmt.Sprintf("; no KEK was minted, rotation %s is rolled back", id)
	e.Next += "; then: " + again
	return "", &e
}

// mayMint refuses to continue a rotation that is not the one asked for.
func (o *operator) mayMint(ctx context.Context, r kek.Rotation, f mintFlags) error {
	if err := o.idle(ctx, r); err != nil {
		return err
	}
	switch {
	case f.emergency && r.Mode != kek.Emergency:
		return refused("--label", fmt.Sprintf("rotation %s is under way and no emergency; it is %s", r.ID, r.Phase),
			`choose another --label: the emergency then ends this rotation and moves every row`)
	case !r.Phase.PreSwitch():
		return refused("--label", fmt.Sprintf("rotation %s has switched already: it is %s", r.ID, r.Phase), o.nextCommand(r))
	}
	return nil
}

// start runs preflight, which takes the lock and writes the record.
func (o *operator) start(ctx context.Context, id string, f mintFlags) error {
	_, err := o.Steps.Preflight(ctx, rotation.PreflightInput{ExecutionName: id, Input: f.input()})
	return o.startError(ctx, err, fmt.Sprintf("matter ops kms-mint-kek --label %q --window any", f.label))
}

func (f mintFlags) input() rotation.ExecutionInput {
	in := rotation.ExecutionInput{Label: f.label, Reason: f.reason, Window: f.window, Again: f.again}
	if f.emergency {
		in.Mode = string(kek.Emergency)
	}
	return in
}

func (f mintFlags) mode() kek.Mode {
	if f.emergency {
		return kek.Emergency
	}
	return kek.Normal
}

// startError gives a refusal of preflight the command that comes next for a
// person. anytime is the command that does not wait for the window.
func (o *operator) startError(ctx context.Context, err error, anytime string) error {
	var typed *rotation.Error
	if !errors.As(err, &typed) {
		return err
	}
	e := *typed
	switch e.Kind {
	case rotation.WindowClosed:
		e.Next = "wait for the window, or if you accept peak load: " + anytime
	case rotation.RotationInProgress:
		v, lerr := o.Table.Load(ctx, "")
		if lerr != nil || v.Lock == "" {
			return err
		}
		r, lerr := o.reload(ctx, v.Lock)
		if lerr != nil {
			return err
		}
		e.Next = o.goOn(ctx, r) + "; if a key is compromised, do not wait: " + emergencyCommand(r)
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

// goOn is the command for a rotation that holds the lock, no matter who runs it.
func (o *operator) goOn(ctx context.Context, r kek.Rotation) string {
	if e, ok, err := o.running(ctx, r.ID); err == nil && ok {
		return "matter ops kms-rotate --watch --execution " + e.Name
	}
	if r.Execution != "" {
		return "matter ops resume --rotation " + r.ID
	}
	return o.nextCommand(r)
}
