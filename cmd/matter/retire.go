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

type retireFlags struct {
	id, rotation, reason string
	confirm              bool
}

func newRetire() *cobra.Command {
	var f retireFlags
	cmd := &cobra.Command{
		Use:   "kms-retire-kek --kek-id KEK --confirm",
		Short: "Step 5: retire the old KEK; or with --reason the new one of a rotation that failed before the switch",
		Long: `Of a rotation that has rewrapped every row it retires the old KEK, and with it every
historic KEK that the rotation left: a look who else uses them, a second full scan, then
the registry, then KMS DisableKey. No KMS key is deleted. Grants on a KEK, or a use of
it after its fence was sealed, stop a normal rotation here with their names.

Before the switch it is PreSwitchFailure: given the new KEK and a --reason it
retires that, leaves the pointer alone and frees the lock. An emergency does not go
back to a KEK that may be compromised: there the next attempt is minted instead.
A rotation that failed before it had a KEK is named with --rotation.`,
		Example: `  matter ops kms-retire-kek --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --confirm
  matter ops kms-retire-kek --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --reason "pre-switch failure" --confirm`,
	}
	cmd.Flags().StringVar(&f.id, "kek-id", "", "the KEK to retire")
	cmd.Flags().StringVar(&f.rotation, "rotation", "", "instead of --kek-id: a rotation that failed before it minted one")
	cmd.Flags().StringVar(&f.reason, "reason", "", `why a rotation is given up before the switch, e.g. "pre-switch failure"`)
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStep(cmd, func(ctx context.Context, o *operator) error { return o.retire(ctx, f) })
}

func (o *operator) retire(ctx context.Context, f retireFlags) error {
	switch {
	case f.id == "" && f.rotation == "":
		return console.UsageError{Err: errors.New("--kek-id is required: the KEK to retire; see matter ops kms-retire-kek --help")}
	case f.id != "" && f.rotation != "":
		return console.UsageError{Err: errors.New("use --kek-id or --rotation, not both")}
	case f.rotation != "":
		r, err := o.reload(ctx, f.rotation)
		if err != nil {
			return err
		}
		return o.giveUp(ctx, r, f)
	}
	k, err := o.registered(ctx, kek.ID(f.id))
	if err != nil {
		return err
	}
	if k.State == kek.Pending || k.State == kek.Retired && k.SwitchedAt.IsZero() {
		r, err := o.reload(ctx, k.RotationID)
		if err != nil {
			return err
		}
		return o.giveUp(ctx, r, f)
	}
	return o.retireOld(ctx, k, f)
}

// retireOld retires the old KEK after the rewrap.
func (o *operator) retireOld(ctx context.Context, k kek.KEK, f retireFlags) error {
	r, err := o.rotationOfOld(ctx, k.ID)
	if err != nil {
		return err
	}
	if err := o.ready(ctx, r, kek.Rewrapped); err != nil {
		return err
	}
	if f.reason != "" {
		return refused("--reason", fmt.Sprintf("it gives a rotation up before the switch, and rotation %s has switched: it is %s", r.ID, r.Phase), o.nextCommand(r))
	}
	if !f.confirm {
		return o.would(fmt.Sprintf("scan every row once more, then retire, and disable in KMS: %s; nothing is deleted", describeKEKs(r.Olds)),
			"matter ops kms-retire-kek --kek-id "+string(k.ID))
	}
	var out rotation.RetireOutput
	err = o.pass(ctx, r, "confirm", func(ctx context.Context) error {
		for !out.Done {
			var err error
			if out, err = o.Steps.Retire(ctx, rotation.RetireInput{RotationID: r.ID}); err != nil {
				return err
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return o.detached(&console.StatusLine{Out: o.Err}, fmt.Sprintf("matter ops kms-retire-kek --kek-id %s --confirm", k.ID))
	}
	if err != nil {
		return o.advise(err, r)
	}
	if k, err = o.registered(ctx, k.ID); err != nil {
		return err
	}
	return o.done(ctx, r.ID, later(r.Phase, kek.Rewrapped), out,
		fmt.Sprintf("retired, and disabled in KMS: %s; nobody may delete it before %s", describeKEKs(r.Olds), stamp(k.NotBeforeDelete)))
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

// giveUp is PreSwitchFailure, or in an emergency the next attempt.
func (o *operator) giveUp(ctx context.Context, r kek.Rotation, f retireFlags) error {
	if err := o.idle(ctx, r); err != nil {
		return err
	}
	if !r.Phase.PreSwitch() && r.Phase != kek.RolledBack {
		return refused("phase", fmt.Sprintf("rotation %s has switched: it is %s and only goes forward", r.ID, r.Phase), o.nextCommand(r))
	}
	if f.reason == "" {
		return refused("--reason", fmt.Sprintf("this gives up rotation %s, which is %s, and needs a reason", r.ID, r.Phase),
			giveUpCommand(r, preSwitchFailure)+" --confirm")
	}
	if r.Mode == kek.Emergency {
		return o.remint(ctx, r, f)
	}
	if !f.confirm {
		return o.would(fmt.Sprintf("give up rotation %s: retire its new KEK %s, disable its KMS key, and leave the pointer on %s",
			r.ID, orNone(r.NewKEK), r.OldKEK), giveUpCommand(r, f.reason))
	}
	out, err := o.Steps.Retire(ctx, rotation.RetireInput{RotationID: r.ID, Action: rotation.ActionPreSwitchFailure, Error: f.reason})
	if err != nil {
		return o.advise(err, r)
	}
	return o.done(ctx, r.ID, r.Phase, out,
		fmt.Sprintf("new KEK %s is retired and its KMS key disabled; the pointer never moved from %s", orNone(r.NewKEK), r.OldKEK))
}

func (o *operator) remint(ctx context.Context, r kek.Rotation, f retireFlags) error {
	if f.id != "" && r.NewKEK != kek.ID(f.id) {
		return refused("--kek-id", fmt.Sprintf("KEK %s was given up already; rotation %s is %s at attempt %d", f.id, r.ID, r.Phase, r.Attempt), o.nextCommand(r))
	}
	if !f.confirm {
		return o.would(fmt.Sprintf("retire KEK %s of attempt %d of %d and let emergency %s mint another",
			orNone(r.NewKEK), r.Attempt, o.Config.MaxMints, r.ID), giveUpCommand(r, f.reason))
	}
	out, err := o.Steps.Retire(ctx, rotation.RetireInput{
		RotationID: r.ID, Action: rotation.ActionRemint, FailedAttempt: r.Attempt, Error: f.reason,
	})
	if err != nil {
		return o.advise(err, r)
	}
	now, err := o.reload(ctx, r.ID)
	if err != nil {
		return err
	}
	res := stepResult{RotationID: now.ID, Phase: now.Phase, OldKEK: now.OldKEK, NewKEK: now.NewKEK, Next: o.nextCommand(now), Output: out}
	return o.Result(res, fmt.Sprintf("rotation %s is %s, attempt %d of %d", now.ID, now.Phase, now.Attempt, o.Config.MaxMints),
		fmt.Sprintf("KEK %s is retired and its KMS key disabled; an emergency never rolls back", orNone(r.NewKEK)), next(res.Next))
}

func orNone(id kek.ID) string {
	if id == "" {
		return "(none)"
	}
	return string(id)
}
