package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func newCensus() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use:   "census",
		Short: "Read every item of every source and say what it is; change nothing",
		Long: `Classifies every item as a rotation that starts now would: it is an envelope under a
KEK that the registry knows, it is declared to be something else (it has none of the
envelope's attributes, or the source's definition says so), or it is unaccounted. A
single unaccounted item, or a table that envelopes are written into and that is no
source, has every normal rotation refused before a key is minted.

Exit code: 0 if a rotation would not be refused, 1 if it would.`,
		Example: "  matter ops census\n  matter ops census --source orders -o json",
	}
	cmd.Flags().StringVar(&source, "source", "", "one source; default: all that are registered")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.census(ctx, source) })
}

func (o *operator) census(ctx context.Context, source string) error {
	line := console.NewStatusLine(o.Err)
	c, err := o.Steps.TakeCensus(ctx, source, func(n int64) {
		if line.Live {
			line.Show(fmt.Sprintf("%d items read", n), "")
		}
	})
	line.End()
	if err != nil {
		return err
	}
	states, err := o.states(ctx)
	if err != nil {
		return err
	}
	command := "matter ops kms-preflight"
	if c.Problem != "" {
		command = ""
	}
	if err := o.Result(struct {
		rotation.Census
		Forgotten []markEntry `json:"forgotten"`
		Next      string      `json:"next"`
	}{c, marksOf(c.Forgotten), command}, append(o.censusLines(c, states), allRead(c), next(command))...); err != nil {
		return err
	}
	if c.Problem == "" {
		return nil
	}
	if !o.JSON {
		fmt.Fprintln(o.Err, "matter:", c.Problem)
	}
	return console.Exit(console.ExitFailed)
}

// states maps the registered KEKs to their states.
func (o *operator) states(ctx context.Context) (map[kek.ID]kek.State, error) {
	all, err := o.Table.KEKs(ctx)
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
		lines = append(lines,
			fmt.Sprintf("  %10d  other: none of the envelope's attributes", t.Other),
			fmt.Sprintf("  %10d  declared other by the definition", t.Declared),
			fmt.Sprintf("  %10d  unaccounted%s", t.Quarantined, kinds(t.ByKind)))
		for _, row := range t.Poison {
			lines = append(lines, "              "+row)
		}
	}
	for _, m := range c.Forgotten {
		lines = append(lines, fmt.Sprintf("%s  table %s is no source: %s wrote envelopes into it, last seen %s", console.Paint(o.Out, console.Red, "FORGOTTEN"), m.Table, m.Holder, stamp(m.SeenAt)))
	}
	return lines
}

// allRead says what a census that has ended has read.
func allRead(c rotation.Census) string {
	return fmt.Sprintf("every item of %d sources was read", len(c.Sources))
}

// sum adds up counts.
func sum(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// kinds lists counts by kind, to end a line; "" if there are none.
func kinds(counts map[string]int64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", kind, counts[kind]))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}
