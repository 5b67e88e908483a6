package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/kek"
)

func newGenesis() *cobra.Command {
	var id, label string
	var confirm bool
	cmd := &cobra.Command{
		Use:   "kms-genesis --kek-id KEY --confirm",
		Short: "Register the first KEK and point at it, once per deployment",
		Long: `Registers the KMS key that the rows are wrapped under already as the first KEK,
tags it with the stack (the roles of the functions are conditioned on that tag)
and makes the pointer. Only a rotation moves the pointer from then on.`,
		Example: "  matter ops kms-genesis --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --confirm",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the id of the KMS key that the rows are wrapped under")
	cmd.Flags().StringVar(&label, "label", "genesis", "the operator's name for it")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.genesis(ctx, kek.ID(id), label, confirm) }, "kek-id")
}

func (o *operator) genesis(ctx context.Context, id kek.ID, label string, confirm bool) error {
	if !confirm {
		return o.would(fmt.Sprintf("tag KMS key %s with matter:stack=%s, register it as active and point at it", id, o.Config.Stack),
			"matter ops kms-genesis --kek-id "+string(id))
	}
	v, err := o.Table.Load(ctx, "")
	if err != nil {
		return err
	}
	if v.Pointer != nil && v.Pointer.KEKID != id { // before the key is tagged
		return refused("--kek-id", fmt.Sprintf("the pointer names KEK %s already; only a rotation moves it", v.Pointer.KEKID), "matter ops kms-status")
	}
	if err := o.Adopt(ctx, id); err != nil {
		return err
	}
	p, err := o.Steps.Genesis(ctx, id, label)
	if err != nil {
		return err
	}
	return o.result(map[string]any{"kek_id": p.KEKID, "epoch": p.Epoch, "next": "matter ops kms-preflight"},
		fmt.Sprintf("pointer: KEK %s, epoch %d", p.KEKID, p.Epoch), next("matter ops kms-preflight"))
}
