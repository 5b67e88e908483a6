package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// newSwitchCommand returns the command matter ops kms-switch-pointer, step 3.
func newSwitchCommand() *cobra.Command {
	var id string
	var confirm bool
	cmd := &cobra.Command{
		Use:   "kms-switch-pointer --kek-id NEW --confirm",
		Short: "Step 3: move the pointer to the new KEK; there is no way back",
		Long: `Moves the pointer of truth to the new KEK in one transaction. From then on every
new write is wrapped under it, and reads unwrap either. PreSwitchFailure is no
longer possible: the rotation only goes forward.`,
		Example: "  matter ops kms-switch-pointer --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --confirm",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the new KEK")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.switchPointer(ctx, kek.ID(id), confirm) }, "kek-id")
}

// switchPointer moves the pointer, if it is confirmed: no command moves it back.
func (o *operator) switchPointer(ctx context.Context, id kek.ID, confirm bool) error {
	r, err := o.rotationOfNew(ctx, flagKEK, id)
	if err != nil {
		return err
	}
	if err := o.checkPhase(ctx, flagKEK, r, kek.Tested); err != nil {
		return err
	}
	if !confirm {
		return o.refuseUnconfirmed(fmt.Sprintf("move the pointer from KEK %s to KEK %s; there is no way back", r.OldKEK, r.NewKEK),
			"matter ops kms-switch-pointer --kek-id "+string(id))
	}
	out, err := o.stack.Steps.Switch(ctx, rotation.StepInput{RotationID: r.ID})
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	return o.reportStep(ctx, r.ID, phaseFoundLater(r.Phase, kek.Tested), out, fmt.Sprintf("pointer: KEK %s, epoch %d", out.KEK, out.Epoch))
}
