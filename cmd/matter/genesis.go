package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/app"
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
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == "" {
				return usageError{fmt.Errorf("--kek-id is required: the id of the KMS key that the rows are wrapped under")}
			}
			d, err := app.Deployed(cmd.Context())
			if err != nil {
				return err
			}
			if !confirm {
				fmt.Fprintf(cmd.OutOrStdout(), "would tag KMS key %s with matter:stack=%s, register it as active and point at it\n", id, d.Config.Stack)
				return usageError{fmt.Errorf("nothing was done: repeat with --confirm")}
			}
			if err := d.Adopt(cmd.Context(), kek.ID(id)); err != nil {
				return err
			}
			p, err := d.Steps.Genesis(cmd.Context(), kek.ID(id), label)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "pointer: KEK %s, epoch %d\n", p.KEKID, p.Epoch)
			return nil
		},
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "KMS key id")
	cmd.Flags().StringVar(&label, "label", "genesis", "the operator's name for it")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return cmd
}
