package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/source"
)

// newCensusCommand returns the command matter ops census. It reads only, so it may run from
// any shell.
func newCensusCommand() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use:   "census",
		Short: "Read every item of every source and say what it is; change nothing",
		Long: `Classifies every item as a rotation that starts now would: it is an envelope under a
KEK that the registry knows, it is declared to be something else (it has none of the
envelope's attributes, or the source's definition says so), or it is unaccounted. A
single unaccounted item, or a table that envelopes are written into and that is not a
source, has every normal rotation refused before a key is minted.

Exit code: 0 if a rotation would not be refused, 1 if it would.`,
		Example: "  matter ops census\n  matter ops census --source orders -o json",
	}
	cmd.Flags().StringVar(&source, "source", "", "one source; default: all that are registered")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.takeCensus(ctx, source) })
}

// takeCensus prints a census. It exits with 1 if a rotation that starts now would be
// refused, which the census itself decides.
func (o *operator) takeCensus(ctx context.Context, source string) error {
	line := console.NewStatusLine(o.console.Err)
	c, err := o.stack.Steps.TakeCensus(ctx, source, func(n int64) { line.ShowItems("", n) })
	line.End()
	if err != nil {
		return err
	}
	c.Problem = advice.Append(c.Problem, c.Refusal)
	states, err := o.kekStates(ctx)
	if err != nil {
		return err
	}
	command := "matter ops kms-preflight"
	if c.Problem != "" {
		command = ""
	}
	if err := o.console.PrintResult(struct {
		rotation.Census
		Forgotten []markEntry `json:"forgotten"`
		Next      string      `json:"next"`
	}{c, describeMarks(c.Forgotten), command}, append(o.censusLines(c, states), itemsReadLine(c), nextLine(command))...); err != nil {
		return err
	}
	if c.Problem == "" {
		return nil
	}
	if !o.console.JSON {
		fmt.Fprintln(o.console.Err, "matter:", c.Problem)
	}
	return console.Exit(console.ExitFailed)
}

// kekStates maps the registered KEKs to their states.
func (o *operator) kekStates(ctx context.Context) (map[kek.ID]kek.State, error) {
	all, err := o.stack.Table.KEKs(ctx)
	states := map[kek.ID]kek.State{}
	for _, k := range all {
		states[k.ID] = k.State
	}
	return states, err
}

// censusLines is a census as a table for each source.
func (o *operator) censusLines(c rotation.Census, states map[kek.ID]kek.State) []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		t := c.Sources[name]
		lines = append(lines, fmt.Sprintf("%s: %d items", name, t.Scanned+t.Other+t.Declared))
		for _, id := range slices.Sorted(maps.Keys(t.ByKEK)) {
			lines = append(lines, fmt.Sprintf("  %10d  envelopes under KEK %s, which is %s", t.ByKEK[id], id, states[kek.ID(id)]))
		}
		if t.Keyed > 0 {
			lines = append(lines, fmt.Sprintf("  %10d  keyed rows, which name data keys of the key table", t.Keyed-t.ByKind[string(source.NoRecord)]))
		}
		lines = append(lines,
			fmt.Sprintf("  %10d  other: none of the envelope's attributes", t.Other),
			fmt.Sprintf("  %10d  declared other by the definition", t.Declared),
			fmt.Sprintf("  %10d  unaccounted%s", t.Quarantined, listKinds(t.ByKind)))
		for _, row := range t.Poison {
			lines = append(lines, "              "+row)
		}
	}
	for _, m := range c.Forgotten {
		lines = append(lines, o.describeForgotten(m))
	}
	return lines
}

// describeForgotten names a table that envelopes are written into and that is not a source: a
// rotation would leave its rows behind.
func (o *operator) describeForgotten(m kek.Mark) string {
	return fmt.Sprintf("%s  table %s is not a source: %s wrote envelopes into it, last seen %s",
		console.PaintText(o.console.Out, console.Red, "FORGOTTEN"), m.Table, m.Holder, formatTime(m.SeenAt))
}

// itemsReadLine says what a census that has ended has read.
func itemsReadLine(c rotation.Census) string {
	return fmt.Sprintf("every item of %d sources was read", len(c.Sources))
}

// sumCounts adds up counts.
func sumCounts(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// listKinds lists counts by kind, to end a line; "" if there are none.
func listKinds(counts map[string]int64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", kind, counts[kind]))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}
