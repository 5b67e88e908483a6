package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// newSourceCommand returns the group matter ops source.
func newSourceCommand() *cobra.Command {
	cmd := console.CompleteGroup(&cobra.Command{
		Use: "source", Short: "Register, check, list and remove the sources whose rows are rotated",
		Long: `The sources are part of the control table: every rotation freezes those that are
registered when it starts, and every step of it, in Lambda or by hand, reads the
frozen ones. A source is a DynamoDB table or the corpus of known ciphers.`,
		Example: `  matter ops source list
  matter ops source add --file orders.json --confirm`,
	})
	cmd.AddCommand(newSourceList(), newSourceAdd(), newSourceCheck(), newSourceRemove())
	return cmd
}

// sourceEntry is a registered source as a program reads it.
type sourceEntry struct {
	Name       string          `json:"name"`
	Kind       string          `json:"kind"`
	Place      string          `json:"place"`
	Generation int             `json:"generation"`
	AddedAt    time.Time       `json:"added_at"`
	AddedBy    string          `json:"added_by"`
	Definition json.RawMessage `json:"definition"`
}

// markEntry is a table that applications write envelopes into and that is not a source.
type markEntry struct {
	Table  string    `json:"table"`
	Holder string    `json:"holder"`
	SeenAt time.Time `json:"seen_at"`
}

// describeMarks is marks for a program; an empty list, not null, where there is none.
func describeMarks(marks []kek.Mark) []markEntry {
	out := []markEntry{}
	for _, m := range marks {
		out = append(out, markEntry(m))
	}
	return out
}

// newSourceList returns the command matter ops source list.
func newSourceList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the registered sources, and the tables with envelopes that are not a source",
		Long: `Reads only. With -o json it shows the definitions too. A table that an application
writes envelopes into leaves a mark in the control table: one that is marked and is
no source was forgotten, and no normal rotation starts before it is registered or its
mark is removed.`,
		Example: "  matter ops source list\n  matter ops source list -o json | jq '.sources[].definition'",
	}
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.listSources(ctx) })
}

// listSources prints the registry, and the marked tables that are not in it: the next normal
// rotation is refused because of them.
func (o *operator) listSources(ctx context.Context) error {
	v, err := o.stack.Table.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	entries := []sourceEntry{}
	var lines []string
	for _, s := range v.Sources {
		entries = append(entries, sourceEntry{s.Name, s.Kind, s.Place, s.Generation, s.AddedAt, s.AddedBy, json.RawMessage(s.Definition)})
		lines = append(lines, fmt.Sprintf("%-16s  %-8s  %s, added %s by %s", s.Name, s.Kind, s.Place, formatTime(s.AddedAt), s.AddedBy))
	}
	command := "nothing; matter ops census reads their items"
	if len(entries) == 0 {
		lines = append(lines, "no source is registered")
		command = "matter ops source add --file DEFINITION.json --confirm"
	}
	forgotten := kek.Forgotten(v.Marks, v.Sources)
	for _, m := range forgotten {
		lines = append(lines, o.describeForgotten(m))
		command = forgottenCommand(m.Table)
	}
	return o.console.PrintResult(map[string]any{"sources": entries, "forgotten": describeMarks(forgotten), "next": command}, append(lines, nextLine(command))...)
}

// forgottenCommand is what to do about a table that is written into and no source.
func forgottenCommand(table string) string {
	return fmt.Sprintf(`matter ops source add --file DEFINITION.json --confirm; or, if nobody writes into it any more, `+
		`matter ops source remove --table %s --reason "why" --confirm`, table)
}

// sourceFlags are the flags of the commands that read a file of definitions or change the
// registry.
type sourceFlags struct {
	file, name, table, reason string
	confirm, force            bool
}

// newSourceAdd returns the command matter ops source add.
func newSourceAdd() *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use:   "add --file DEFINITION.json --confirm",
		Short: "Register a source, or give one another definition",
		Long: `Checks the place that each definition names and registers it, with a record in the
audit chain. The file holds one definition or a list of them:

  {"table": "orders", "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek",
   "ciphertext_attribute": "ciphertext", "context": {"table": "orders"}, "bind": {"id": "$id"}}

"table" is a name or an ARN. "context" is the encryption context that KMS binds,
"bind" names more values that are bound to the payload alone. "epoch_attribute" is
kek_epoch if it is left out; no version is kept without "version_attribute".
"format": "tink" or "kms" reads rows that others wrote; "payloads": "opaque" says that
payloads are in another format; "other" says by an attribute's value which items are
no envelopes. A corpus has "kind": "corpus", "bucket" and "prefix" instead of a table.

The roles of the functions must be allowed to use the table: add it to the stack's
parameter SourceTableArns. While a rotation runs a source cannot be added before the
switch; after it the source joins that rotation. Registering the same definition
again changes nothing.`,
		Example: "  matter ops source add --file orders.json --confirm",
	}
	cmd.Flags().StringVar(&f.file, "file", "", "the definition, or a list of them")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.addSources(ctx, f) }, "file")
}

// readDefinitions reads a file of definitions.
func readDefinitions(file string) ([]kek.Source, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, console.UsageError{Err: fmt.Errorf("--file: %w", err)}
	}
	if err != nil {
		return nil, fmt.Errorf("read the definitions: %w", err)
	}
	defs, err := app.ParseDefinitions(text)
	if err != nil {
		return nil, console.UsageError{Err: fmt.Errorf("--file %s: %w", file, err)}
	}
	return defs, nil
}

// addSources registers the definitions of a file in their order. It stops at the first that
// is refused; those before it stay registered, which is said.
func (o *operator) addSources(ctx context.Context, f sourceFlags) error {
	defs, err := readDefinitions(f.file)
	if err != nil {
		return err
	}
	command := "matter ops source add --file " + f.file
	if !f.confirm {
		var what []string
		for _, def := range defs {
			what = append(what, o.describeSource(def))
		}
		return o.refuseUnconfirmed("check and register "+strings.Join(what, "; "), command)
	}
	type added struct {
		Source string   `json:"source"`
		Notes  []string `json:"notes"`
	}
	var done []added
	var lines []string
	for _, def := range defs {
		notes, err := o.stack.Steps.AddSource(ctx, def)
		if err != nil {
			return o.partlyRegistered(len(done), fmt.Errorf("source %s: %w", def.Name, err))
		}
		done = append(done, added{def.Name, append([]string{}, notes...)})
		lines = append(lines, fmt.Sprintf("source %s is registered: %s", def.Name, o.describeSource(def)))
		for _, n := range notes {
			lines = append(lines, "  note: "+n)
		}
	}
	const after = "matter ops census"
	return o.console.PrintResult(map[string]any{"added": done, "next": after}, append(lines, nextLine(after))...)
}

// partlyRegistered says how many of several sources were registered before one failed.
func (o *operator) partlyRegistered(done int, err error) error {
	if done > 0 {
		fmt.Fprintf(o.console.Err, "%d sources before it are registered; repeating the command changes nothing of them\n", done)
	}
	return err
}

// describeSource is a definition in a sentence, with its driver's own word for the place.
func (o *operator) describeSource(def kek.Source) string {
	noun := def.Kind
	if src, err := o.stack.Steps.OpenSource(def); err == nil {
		noun = src.Traits().Noun
	}
	return fmt.Sprintf("%s %s as source %s", noun, def.Place, def.Name)
}

// newSourceCheck returns the command matter ops source check.
func newSourceCheck() *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use:   "check --file DEFINITION.json",
		Short: "Check definitions against the places that they name; register nothing",
		Long: `Runs the checks of source add, classifies the first items of each place and prints what
add would register. It writes nothing. Exit code: 0 if every definition could be
registered, 1 if a place does not fit its definition, 2 if a definition cannot be read.`,
		Example: "  matter ops source check --file orders.json",
	}
	cmd.Flags().StringVar(&f.file, "file", "", "the definition, or a list of them")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.checkSources(ctx, f.file) }, "file")
}

// sampleItems is how many items of a place source check classifies.
const sampleItems = 200

// checkedSource is what source check saw of one definition.
type checkedSource struct {
	Source     string           `json:"source"`
	Kind       string           `json:"kind"`
	Place      string           `json:"place"`
	Definition json.RawMessage  `json:"definition"` // as it would be registered
	Notes      []string         `json:"notes"`
	Envelopes  int64            `json:"envelopes"` // among the first items
	Other      int64            `json:"other"`
	Declared   int64            `json:"declared"`
	Defects    map[string]int64 `json:"unaccounted_by_kind"`
	Problem    string           `json:"problem"` // "" if it could be registered
}

// checkSources checks every definition of a file, also after one that does not fit, so that
// all can be corrected at once. The first refusal is the command's error.
func (o *operator) checkSources(ctx context.Context, file string) error {
	defs, err := readDefinitions(file)
	if err != nil {
		return err
	}
	out, lines := []checkedSource{}, []string(nil)
	var first error
	for _, def := range defs {
		c, err := o.checkSource(ctx, def)
		if err != nil && first == nil {
			first = err
		}
		out = append(out, c)
		lines = append(lines, c.checkLines()...)
	}
	command := "matter ops source add --file " + file + " --confirm"
	if first != nil {
		command = ""
	}
	if err := o.console.PrintResult(map[string]any{"sources": out, "next": command}, append(lines, nextLine(command))...); err != nil {
		return err
	}
	return first
}

// checkSource is the driver's check of a place, and a classification of its first items.
func (o *operator) checkSource(ctx context.Context, def kek.Source) (checkedSource, error) {
	c := checkedSource{Source: def.Name, Kind: def.Kind, Place: def.Place, Definition: json.RawMessage(def.Definition), Notes: []string{}, Defects: map[string]int64{}}
	src, err := o.stack.Steps.OpenSource(def)
	var notes []string
	if err == nil {
		notes, err = rotation.CheckSource(ctx, src)
		c.Notes = append(c.Notes, notes...)
	}
	if lambdastep.ErrorKind(err) == journal.RowsUnaccounted { // it can be registered all the same, and then adopted
		c.Notes, err = append(c.Notes, advice.Explain(err)), nil
	}
	var page source.Page
	if err == nil {
		page, err = src.Scan(ctx, source.ScanRequest{Total: 1, Limit: sampleItems, Whole: true})
	}
	if err != nil {
		c.Problem = advice.Explain(err)
		return c, err
	}
	c.Other, c.Declared = int64(page.Other), int64(page.Declared)
	for _, row := range page.Rows {
		if row.Defect != "" {
			c.Defects[string(row.Kind)]++
		} else {
			c.Envelopes++
		}
	}
	return c, nil
}

// checkLines is a checked definition as text.
func (c checkedSource) checkLines() []string {
	lines := []string{fmt.Sprintf("%s %s as source %s", c.Kind, c.Place, c.Source)}
	if c.Problem != "" {
		return append(lines, "  NO: "+c.Problem)
	}
	lines = append(lines, fmt.Sprintf("  of its first items %d are envelopes, %d other, %d declared other, %d unaccounted%s",
		c.Envelopes, c.Other, c.Declared, sumCounts(c.Defects), listKinds(c.Defects)))
	for _, n := range c.Notes {
		lines = append(lines, "  note: "+n)
	}
	return append(lines, "  definition: "+string(c.Definition))
}

// newSourceRemove returns the command matter ops source remove.
func newSourceRemove() *cobra.Command {
	var f sourceFlags
	cmd := &cobra.Command{
		Use:   "remove --name SOURCE --confirm",
		Short: "Remove a source from the registry, or the mark of a table that is not a source",
		Long: `Removes a source, with its table's mark, and records it in the audit chain. It is
refused while any item of it is an envelope under a KEK that is not retired, or cannot be
accounted for: the next rotation would leave such rows under a disabled KEK. --force
continues all the same, for a --reason that the chain keeps. No row is touched.

With --table it removes the mark that an application left of a table that is not a
source; the --reason says why nobody writes into it any more.`,
		Example: `  matter ops source remove --name orders --confirm
  matter ops source remove --table orders-old --reason "the service was shut down" --confirm`,
	}
	cmd.Flags().StringVar(&f.name, "name", "", "the source")
	cmd.Flags().StringVar(&f.table, "table", "", "instead of --name: a marked table that is not a source")
	cmd.Flags().BoolVar(&f.force, "force", false, "remove it although rows are in it")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the audit chain; required with --force and --table")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.removeSource(ctx, f) })
}

// checkRemove refuses flags that contradict each other. What leaves rows behind needs a
// reason.
func (f sourceFlags) checkRemove() error {
	switch {
	case f.name == "" && f.table == "":
		return console.UsageError{Err: errors.New("--name is required: the source to remove; see matter ops source remove --help")}
	case f.name != "" && f.table != "":
		return console.UsageError{Err: errors.New("use --name or --table, not both")}
	case f.table != "" && f.force:
		return console.UsageError{Err: errors.New("--force is for a source: leave it out with --table")}
	case (f.table != "" || f.force) && f.reason == "":
		return console.UsageError{Err: errors.New(`--reason "why" is required, for the audit chain`)}
	case f.name != "" && !f.force && f.reason != "":
		return console.UsageError{Err: errors.New("--reason goes with --force, or with --table")}
	}
	return nil
}

// removeSource removes a source or a mark. Whether rows forbid it is decided by
// [rotation.Steps.RemoveSource].
func (o *operator) removeSource(ctx context.Context, f sourceFlags) error {
	if err := f.checkRemove(); err != nil {
		return err
	}
	v, err := o.stack.Table.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	const list = "matter ops source list"
	if f.table != "" {
		if !o.isForgotten(v, f.table) {
			return refusedError("--table", fmt.Sprintf("%q is not a marked table, or it is a source", f.table), list)
		}
		if !f.confirm {
			return o.refuseUnconfirmed(fmt.Sprintf("remove the mark of table %s, which is not a source", f.table),
				fmt.Sprintf("matter ops source remove --table %s --reason %q", f.table, f.reason))
		}
		if err := o.stack.Steps.ForgetMark(ctx, f.table, f.reason); err != nil {
			return err
		}
		return o.console.PrintResult(map[string]string{"removed_mark": f.table, "next": list}, fmt.Sprintf("the mark of table %s is removed", f.table), nextLine(list))
	}
	registered := false
	for _, s := range v.Sources {
		registered = registered || s.Name == f.name
	}
	if !registered {
		return refusedError("--name", fmt.Sprintf("%q is not registered", f.name), list)
	}
	command := "matter ops source remove --name " + f.name
	if f.force {
		command += fmt.Sprintf(" --force --reason %q", f.reason)
	}
	if !f.confirm {
		does := fmt.Sprintf("read every item of source %s and remove it from the registry if none is in use", f.name)
		if f.force {
			does = fmt.Sprintf("remove source %s from the registry whatever is in it; the next rotation would not move its rows", f.name)
		}
		return o.refuseUnconfirmed(does, command)
	}
	if err := o.stack.Steps.RemoveSource(ctx, f.name, f.reason); err != nil {
		return err
	}
	return o.console.PrintResult(map[string]string{"removed": f.name, "next": list}, fmt.Sprintf("source %s is removed; no row was touched", f.name), nextLine(list))
}

// isForgotten reports whether a table is marked and is not a source.
func (o *operator) isForgotten(v kek.View, table string) bool {
	for _, m := range kek.Forgotten(v.Marks, v.Sources) {
		if m.Table == table {
			return true
		}
	}
	return false
}
