package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// retireFlags are the flags of kms-retire-kek.
type retireFlags struct {
	id, rotation, reason string
	confirm              bool
}

// newRetireCommand returns the command matter ops kms-retire-kek: step 5, or the end of a
// rotation that failed before the switch.
func newRetireCommand() *cobra.Command {
	var f retireFlags
	cmd := &cobra.Command{
		Use:   "kms-retire-kek --kek-id KEK --confirm",
		Short: "Step 5: retire the old KEK; or with --reason the new one of a rotation that failed before the switch",
		Long: `After the rewrap it retires the old KEK and every historic KEK that the rotation left. It
checks who else uses them, scans every row a second time, retires them in the registry,
and disables them in KMS. It deletes no KMS key. A normal rotation stops here if a KEK
has grants or was used after its fence was sealed; the error names them.

Before the switch it gives the rotation up (PreSwitchFailure): with the new KEK and a
--reason it retires that KEK, leaves the pointer alone and frees the lock. An emergency
does not go back to a KEK that may be compromised: it mints the next attempt instead.
A rotation that failed before it had a KEK is named with --rotation.`,
		Example: `  matter ops kms-retire-kek --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --confirm
  matter ops kms-retire-kek --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --reason "pre-switch failure" --confirm`,
	}
	cmd.Flags().StringVar(&f.id, "kek-id", "", "the KEK to retire")
	cmd.Flags().StringVar(&f.rotation, "rotation", "", "instead of --kek-id: a rotation that failed before it minted one")
	cmd.Flags().StringVar(&f.reason, "reason", "", `why a rotation is given up before the switch, e.g. "pre-switch failure"`)
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.retireKEK(ctx, f) })
}

// retireKEK finds out by the KEK's state which of both is meant: a KEK that the pointer
// never named is given up, any other is an old one.
func (o *operator) retireKEK(ctx context.Context, f retireFlags) error {
	switch {
	case f.id == "" && f.rotation == "":
		return console.UsageError{Err: errors.New("--kek-id is required: the KEK to retire; see matter ops kms-retire-kek --help")}
	case f.id != "" && f.rotation != "":
		return console.UsageError{Err: errors.New("use --kek-id or --rotation, not both")}
	case f.rotation != "":
		r, err := o.reloadRotation(ctx, f.rotation)
		if err != nil {
			return err
		}
		return o.rollBack(ctx, r, f)
	}
	k, err := o.registeredKEK(ctx, flagKEK, kek.ID(f.id))
	if err != nil {
		return err
	}
	if k.State == kek.Pending || k.State == kek.Retired && k.SwitchedAt.IsZero() {
		r, err := o.reloadRotation(ctx, k.RotationID)
		if err != nil {
			return err
		}
		return o.rollBack(ctx, r, f)
	}
	return o.retireOld(ctx, k, f)
}

// retireOld retires the old KEK after the rewrap.
func (o *operator) retireOld(ctx context.Context, k kek.KEK, f retireFlags) error {
	r, err := o.rotationOfOld(ctx, flagKEK, k.ID)
	if err != nil {
		return err
	}
	if err := o.checkPhase(ctx, flagKEK, r, kek.Rewrapped); err != nil {
		return err
	}
	if f.reason != "" {
		return refusedError("--reason", fmt.Sprintf("it gives a rotation up before the switch, and rotation %s has switched: it is %s", r.ID, r.Phase), o.nextCommand(ctx, r))
	}
	if !f.confirm {
		return o.refuseUnconfirmed(fmt.Sprintf("scan every row once more, then retire, and disable in KMS: %s; nothing is deleted", describeKEKs(r.Olds)),
			"matter ops kms-retire-kek --kek-id "+string(k.ID))
	}
	var out rotation.RetireOutput
	err = o.showPass(ctx, r, "confirm", func(ctx context.Context) error {
		for !out.Done {
			var err error
			if out, err = o.stack.Steps.Retire(ctx, rotation.RetireInput{RotationID: r.ID}); err != nil {
				return err
			}
			if out.Paused {
				return o.pausedError(ctx, r)
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return o.endDetached(&console.StatusLine{Out: o.console.Err}, fmt.Sprintf("matter ops kms-retire-kek --kek-id %s --confirm", k.ID))
	}
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	if k, err = o.registeredKEK(ctx, flagKEK, k.ID); err != nil {
		return err
	}
	return o.reportStep(ctx, r.ID, phaseFoundLater(r.Phase, kek.Rewrapped), out,
		fmt.Sprintf("retired, and disabled in KMS: %s; nobody may delete it before %s", describeKEKs(r.Olds), formatTime(k.NotBeforeDelete)))
}

// describeKEKs names KEKs.
func describeKEKs(ids []kek.ID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	if len(names) == 1 {
		return "KEK " + names[0]
	}
	return "KEKs " + strings.Join(names, ", ")
}

// rollBack is PreSwitchFailure, or in an emergency the next attempt.
func (o *operator) rollBack(ctx context.Context, r kek.Rotation, f retireFlags) error {
	if err := o.checkNoExecution(ctx, r); err != nil {
		return err
	}
	if !r.Phase.PreSwitch() && r.Phase != kek.RolledBack {
		return refusedError("phase", fmt.Sprintf("rotation %s has switched: it is %s and only goes forward", r.ID, r.Phase), o.nextCommand(ctx, r))
	}
	if f.reason == "" {
		return refusedError("--reason", fmt.Sprintf("this gives up rotation %s, which is %s, and needs a reason", r.ID, r.Phase),
			giveUpCommand(r, preSwitchFailure)+" --confirm")
	}
	if r.Mode == kek.Emergency {
		return o.retryMint(ctx, r, f)
	}
	if !f.confirm {
		return o.refuseUnconfirmed(fmt.Sprintf("give up rotation %s: retire its new KEK %s, disable its KMS key, and leave the pointer on %s",
			r.ID, idOrNone(r.NewKEK), r.OldKEK), giveUpCommand(r, f.reason))
	}
	out, err := o.stack.Steps.Retire(ctx, rotation.RetireInput{RotationID: r.ID, Action: rotation.ActionPreSwitchFailure, Error: f.reason})
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	return o.reportStep(ctx, r.ID, r.Phase, out,
		fmt.Sprintf("new KEK %s is retired and its KMS key disabled; the pointer never moved from %s", idOrNone(r.NewKEK), r.OldKEK))
}

// retryMint gives up the KEK of an emergency's attempt and lets it mint the next. An
// emergency never rolls back: the pointer would stay on a KEK that may be compromised.
func (o *operator) retryMint(ctx context.Context, r kek.Rotation, f retireFlags) error {
	if f.id != "" && r.NewKEK != kek.ID(f.id) {
		return refusedError("--kek-id", fmt.Sprintf("KEK %s was given up already; rotation %s is %s at attempt %d", f.id, r.ID, r.Phase, r.Attempt), o.nextCommand(ctx, r))
	}
	if !f.confirm {
		return o.refuseUnconfirmed(fmt.Sprintf("retire KEK %s of attempt %d of %d and let emergency %s mint another",
			idOrNone(r.NewKEK), r.Attempt, o.stack.Config.MaxMints, r.ID), giveUpCommand(r, f.reason))
	}
	out, err := o.stack.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: r.ID, Action: rotation.ActionRemint, FailedAttempt: r.Attempt, Error: f.reason,
	})
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	now, err := o.reloadRotation(ctx, r.ID)
	if err != nil {
		return err
	}
	res := stepResult{RotationID: now.ID, Phase: now.Phase, OldKEK: now.OldKEK, NewKEK: now.NewKEK, Next: o.nextCommand(ctx, now), Output: out}
	return o.console.PrintResult(res, fmt.Sprintf("rotation %s is %s, attempt %d of %d", now.ID, now.Phase, now.Attempt, o.stack.Config.MaxMints),
		fmt.Sprintf("KEK %s is retired and its KMS key disabled; an emergency never rolls back", idOrNone(r.NewKEK)), nextLine(res.Next))
}

// idOrNone is a KEK's id for a sentence.
func idOrNone(id kek.ID) string {
	if id == "" {
		return "(none)"
	}
	return string(id)
}
