package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation"
)

// newAdoptCommand returns the command matter ops adopt. It writes into rows, so it is
// refused in a shell with settings of another deployment, also as a dry run: both must see
// the same sources.
func newAdoptCommand() *cobra.Command {
	var source string
	var confirm bool
	cmd := &cobra.Command{
		Use:   "adopt --source NAME",
		Short: "Bring in rows that were written without this project: give each the id of its KEK",
		Long: `Reads every item of a registered source. Where an item carries a data key or a whole
payload that KMS has wrapped, but names no KEK or names it by ARN or alias, KMS is asked
which key unwraps it with the context of the source's definition. Without --confirm
that is all: it says what it found, by class, and which KEKs must be registered first.
With --confirm each such row is given the id of its KEK and nothing else, on condition
that it still is what was read: it may run beside live traffic, stop anywhere and be
repeated. If the source's definition says that keyed rows are written, the row becomes
a keyed one instead, as by matter ops convert.

Exit code: 0 if every item is sound, other, or can be adopted (with --confirm: was
adopted), 1 if some are left.`,
		Example: `  matter ops adopt --source letters
  matter ops adopt --source letters --confirm`,
	}
	cmd.Flags().StringVar(&source, "source", "", "a registered table")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.adoptRows(ctx, source, confirm) }, "source")
}

// adoptRows prints what [rotation.Steps.Adopt] found or wrote. It exits with 1 while rows
// are left or have changed meanwhile, since a rotation would be refused because of them.
func (o *operator) adoptRows(ctx context.Context, source string, confirm bool) error {
	line := console.NewStatusLine(o.console.Err)
	a, err := o.stack.Steps.Adopt(ctx, o.stack.Table, rotation.AdoptInput{
		Source: source, Write: confirm, Seen: func(n int64) { line.ShowItems(source, n) },
	})
	line.End()
	if err != nil {
		return err
	}
	command := commandAfterAdopt(a, confirm)
	if err := o.console.PrintResult(struct {
		rotation.Adoption
		Confirmed bool   `json:"confirmed"`
		Next      string `json:"next"`
	}{a, confirm, command}, append(adoptionLines(a, confirm), nextLine(command))...); err != nil {
		return err
	}
	if len(a.Left) > 0 || a.Changed > 0 {
		return console.Exit(console.ExitFailed)
	}
	return nil
}

// commandAfterAdopt is the command that comes next.
func commandAfterAdopt(a rotation.Adoption, confirmed bool) string {
	again := "matter ops adopt --source " + a.Source
	switch {
	case len(a.Unknown) > 0:
		return fmt.Sprintf("matter ops kms-register-kek --kek-id %s --confirm; then again: %s", a.Unknown[0], again)
	case !confirmed && len(a.Found) > 0:
		return again + " --confirm"
	case a.Changed > 0:
		return again + " --confirm"
	}
	return "matter ops census --source " + a.Source
}

// adoptionLines is an adoption as text, by class: what is sound, what can be or was adopted,
// what is left and why.
func adoptionLines(a rotation.Adoption, confirmed bool) []string {
	lines := []string{
		fmt.Sprintf("%10d  sound: they need nothing", a.Sound),
		fmt.Sprintf("%10d  other items: no envelopes", a.Other),
	}
	done := "can be adopted: "
	if confirmed {
		done = "adopted: "
	}
	for _, class := range slices.Sorted(maps.Keys(a.Found)) {
		lines = append(lines, fmt.Sprintf("%10d  %s%s", a.Found[class], done, class))
	}
	for _, reason := range slices.Sorted(maps.Keys(a.Left)) {
		lines = append(lines, fmt.Sprintf("%10d  left: %s", a.Left[reason], reason))
	}
	for _, row := range a.First {
		lines = append(lines, "              "+row)
	}
	if a.Changed > 0 {
		lines = append(lines, fmt.Sprintf("%10d  changed by others meanwhile", a.Changed))
	}
	for _, id := range a.Unknown {
		lines = append(lines, fmt.Sprintf("KEK %s is not registered: matter ops kms-register-kek --kek-id %s --confirm", id, id))
	}
	if !confirmed {
		return append(lines, "nothing was written: this was a dry run")
	}
	if a.Keyed {
		return append(lines, fmt.Sprintf("%d rows are keyed ones now; those that Tink wrote were given the id of their KEK", a.Written))
	}
	return append(lines, fmt.Sprintf("%d rows were given the id of their KEK", a.Written))
}
