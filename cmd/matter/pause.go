package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// newPauseCommand returns the command matter ops pause.
func newPauseCommand() *cobra.Command {
	var id, reason string
	cmd := &cobra.Command{
		Use:   "pause --reason WHY",
		Short: "Stop the walks over the rows of a rotation, for example for a sale",
		Long: `Census, rewrap, confirmation and verification save their checkpoints within seconds
and wait, until matter ops continue. Applications notice nothing: both KEKs stay usable.
The steps between the walks are not stopped, an emergency neither: it is a rotation of
its own, and may be paused itself. Who paused, since when and why is in matter ops
kms-status and in the audit chain.

The execution waits as long as its time limit allows. After ten minutes a census, a
confirmation or a verification begins from the start: what it saw may have changed.`,
		Example: `  matter ops pause --reason "the sale begins"`,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit chain")
	rotationFlag(cmd, &id)
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.pauseRotation(ctx, id, reason) }, "reason")
}

// newContinueCommand returns the command matter ops continue.
func newContinueCommand() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "continue",
		Short: "End the pause of a rotation",
		Long: `The opposite of pause: an execution continues within a minute, and a rotation by hand
with the step that stopped.`,
		Example: "  matter ops continue",
	}
	rotationFlag(cmd, &id)
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.continueRotation(ctx, id) })
}

func rotationFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "rotation", "", "the rotation's id; default: the one that holds the lock")
}

// pauseRotation pauses a rotation.
func (o *operator) pauseRotation(ctx context.Context, id, reason string) error {
	id, err := o.rotationOrLock(ctx, id)
	if err != nil {
		return err
	}
	p, err := o.stack.Steps.Gates.PauseRotation(ctx, id, reason)
	if err != nil {
		return err
	}
	return o.printPause(p, p.Describe(), "matter ops continue --rotation "+id)
}

// continueRotation ends the pause of a rotation.
func (o *operator) continueRotation(ctx context.Context, id string) error {
	id, err := o.rotationOrLock(ctx, id)
	if err != nil {
		return err
	}
	p, err := o.stack.Steps.Gates.ContinueRotation(ctx, id)
	if err != nil {
		return err
	}
	r, err := o.reloadRotation(ctx, id)
	if err != nil {
		return err
	}
	return o.printPause(p, "not paused", o.continueCommand(ctx, r))
}

func (o *operator) printPause(p gates.Pause, says, next string) error {
	return o.console.PrintResult(map[string]any{
		"rotation_id": p.Rotation, "paused": p.State == gates.Paused, "by": p.By, "at": p.At, "reason": p.Reason, "next": next,
	}, "rotation "+p.Rotation+" is "+says, nextLine(next))
}

// rotationOrLock returns the rotation that a person has named, or the one that holds the lock.
func (o *operator) rotationOrLock(ctx context.Context, id string) (string, error) {
	if id != "" {
		return id, nil
	}
	v, err := o.stack.Table.LoadAll(ctx, "")
	if err != nil {
		return "", err
	}
	if v.Lock == "" {
		return "", refusedError("--rotation", "no rotation runs", "matter ops kms-status")
	}
	return v.Lock, nil
}

// pausedError says that a step by hand stopped because people have paused the rotation.
func (o *operator) pausedError(ctx context.Context, r kek.Rotation) error {
	p, err := o.stack.Table.LoadPause(ctx, r.ID)
	if err != nil {
		return err
	}
	return &journal.Error{Kind: journal.Refused, Field: r.ID, Msg: "it is " + p.Describe(), Next: journal.Next{Do: journal.ContinueRotation, Rotation: r.ID}}
}
