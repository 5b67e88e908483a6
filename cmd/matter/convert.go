package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// convertFlags are the flags of matter ops convert.
type convertFlags struct {
	source, to, prices string
	confirm            bool
}

// newConvertCommand returns the command matter ops convert. Like adopt it is refused in a
// shell with settings of another deployment, also as a dry run.
func newConvertCommand() *cobra.Command {
	var f convertFlags
	cmd := &cobra.Command{
		Use:   "convert --source NAME",
		Short: "Move embedded rows under data keys of the key table, or back",
		Long: `Reads every item of a registered table whose definition has both kinds of rows. Without
--confirm it opens the first few rows, writes nothing, and says how many rows of each
kind it found and what their conversion takes: KMS requests, write units, dollars.
With --confirm each embedded row becomes a keyed one: its payload is opened and sealed
again in memory under a data key that rows of one encryption context share, on
condition that the row still is what was read. It may run beside live traffic and
rotations, stop anywhere and be repeated.

First deploy clients whose definition has a dek_id_attribute, so that they read both
kinds; then clients with "envelope": "keyed"; then register that definition with
matter ops source add. --to embedded makes embedded rows of keyed ones again, after the
same steps with "envelope": "embedded".

After an emergency it moves keyed rows under fresh data keys too, if theirs was made
before the switch: a writer that slept may insert such a row later, and verify counts
them as exposed_rows. Run it until it finds none.

It runs with your own permissions: docs/runbook.md lists them.

Exit code: 0 if every row is, or can be, of the wanted kind, 1 if some are left.`,
		Example: `  matter ops convert --source orders
  matter ops convert --source orders --confirm`,
	}
	cmd.Flags().StringVar(&f.source, "source", "", "a registered table")
	cmd.Flags().StringVar(&f.to, "to", "keyed", "the kind of rows that is wanted: keyed or embedded")
	cmd.Flags().StringVar(&f.prices, "prices", "", "JSON file of prices, instead of the built-in list")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.convertRows(ctx, f) }, "source")
}

// convertRows prints what [rotation.Steps.Convert] found or did. It exits with 1 while rows are
// left.
func (o *operator) convertRows(ctx context.Context, f convertFlags) error {
	if f.to != "keyed" && f.to != "embedded" {
		return console.UsageError{Err: errors.New("--to: use keyed or embedded")}
	}
	prices, err := loadPrices(f.prices)
	if err != nil {
		return err
	}
	warnOfOldPrices(o.console.Err, prices, o.stack.Steps.Journal.Now())
	exposedBefore, err := o.findEmergency(ctx)
	if err != nil {
		return err
	}
	line := console.NewStatusLine(o.console.Err)
	c, failed := o.stack.Steps.Convert(ctx, o.stack.Table, rotation.ConvertInput{
		Source: f.source, Embedded: f.to == "embedded", Write: f.confirm, ExposedBefore: exposedBefore, Seen: func(n int64) { line.ShowItems(f.source, n) },
	})
	line.End()
	if failed != nil && c.Converted == 0 {
		return failed
	}
	command := commandAfterConvert(c, f)
	if failed != nil {
		command = "fix the cause, then again: " + convertCommand(f) + " --confirm"
	}
	if err := o.console.PrintResult(struct {
		rotation.Conversion
		Confirmed bool     `json:"confirmed"`
		USD       *float64 `json:"usd"`
		Next      string   `json:"next"`
	}{c, f.confirm, priceConversion(c.Work, prices), command}, append(conversionLines(c, f.confirm, prices), nextLine(command))...); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if len(c.Left) > 0 || c.Changed > 0 {
		return console.Exit(console.ExitFailed)
	}
	return nil
}

// findEmergency returns the epoch of the last switch of an emergency; 0 if there was none.
func (o *operator) findEmergency(ctx context.Context) (int64, error) {
	all, err := o.stack.Table.Rotations(ctx)
	if err != nil {
		return 0, journal.WrapUnavailable("control table", err)
	}
	epoch := int64(0)
	for _, r := range all {
		if r.Mode == kek.Emergency {
			epoch = max(epoch, r.Epoch)
		}
	}
	return epoch, nil
}

// convertCommand is the command of the same conversion, as a dry run.
func convertCommand(f convertFlags) string {
	command := "matter ops convert --source " + f.source
	if f.to != "keyed" {
		command += " --to " + f.to
	}
	return command
}

// commandAfterConvert is the command that comes next.
func commandAfterConvert(c rotation.Conversion, f convertFlags) string {
	if !f.confirm && c.Work.Rows+c.Exposed > 0 || c.Changed > 0 {
		return convertCommand(f) + " --confirm"
	}
	return "matter ops census --source " + f.source
}

// priceConversion is what a conversion costs; nil if a price is not known.
func priceConversion(w rotation.ConversionWork, p estimate.Prices) *float64 {
	if p.KMSPer10000 == nil || p.WritesPerM == nil {
		return nil
	}
	sum := float64(w.Unwraps+w.DataKeys)/1e4**p.KMSPer10000 + w.WriteUnits/1e6**p.WritesPerM
	return &sum
}

// conversionLines is a conversion as text: what is there, what it takes or took, and what is
// left.
func conversionLines(c rotation.Conversion, confirmed bool, prices estimate.Prices) []string {
	lines := []string{
		fmt.Sprintf("%10d  keyed rows", c.Keyed),
		fmt.Sprintf("%10d  embedded rows", c.Embedded),
		fmt.Sprintf("%10d  other items: no envelopes", c.Other),
	}
	if confirmed {
		lines = append(lines, fmt.Sprintf("%10d  are %s now, under %d data keys that were made", c.Converted, c.To, c.DataKeys))
	} else {
		lines = append(lines, workLines(c, prices)...)
	}
	for _, n := range []struct {
		count int64
		text  string
	}{
		{c.Exposed, "of the keyed rows were read under a data key that was made before the last emergency's switch"},
		{c.Meanwhile, "converted or deleted by others meanwhile"},
		{c.Retried, "writes were refused because another writer came first, and tried again"},
		{c.Changed, "changed each time: run it again"},
	} {
		if n.count > 0 {
			lines = append(lines, fmt.Sprintf("%10d  %s", n.count, n.text))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(c.Left)) {
		lines = append(lines, fmt.Sprintf("%10d  left: %s", c.Left[reason], reason))
	}
	for _, row := range c.First {
		lines = append(lines, "              "+row)
	}
	if !confirmed {
		lines = append(lines, "nothing was written: this was a dry run")
	}
	return lines
}

// workLines says what a conversion takes, and what a dry run has not looked at.
func workLines(c rotation.Conversion, prices estimate.Prices) []string {
	w := c.Work
	cost := "at a price that is not known"
	if usd := priceConversion(w, prices); usd != nil {
		cost = fmt.Sprintf("about $%.2f at the prices of %s in %s", *usd, prices.AsOf, prices.Region)
	}
	return []string{
		fmt.Sprintf("%10d  rows would be sealed under data keys of %s rows", w.Rows, c.To),
		fmt.Sprintf("%10d  data keys would be made, about", w.DataKeys),
		fmt.Sprintf("%10d  KMS requests, about: one for each data key that rows are under, one for each that is made", w.Unwraps+w.DataKeys),
		fmt.Sprintf("%10.0f  write units, about, %s", w.WriteUnits, cost),
		fmt.Sprintf("%10d  rows were opened to try it; whether the others open was not looked at", c.Tried),
	}
}
