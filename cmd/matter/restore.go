package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/restore"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// restoreFlags are the flags of restore-rows.
type restoreFlags struct {
	source, file string
	confirm      bool
}

// newRestoreCommand returns the command matter ops restore-rows.
func newRestoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore-rows --source NAME --file ROWS.ndjson --confirm",
		Short: "Bring back rows from a backup, rewrapped under the current KEK, and repair orphans in place",
		Long: `Inserts the rows of a backup that are not in the table. A backup names the KEKs of
its day, which may be retired by now; so every row is rewrapped under the pointer's
KEK and inserted behind its write fence. What is in the table under a KEK in use is
never overwritten, so the command can be repeated; a rotation may run meanwhile.

A row of the file that is in the table already, but is an orphan there because its KEK
is retired, is repaired in place: it is rewrapped under the pointer's KEK as it is in
the table, on condition that it still is what was read. The command says how many were.
A row that is there and cannot be repaired is named, and the exit code is 1.

The file has one item in DynamoDB JSON on each line, bare or as an export to S3 has
it ({"Item": …}), unpacked or .gz. From a table restored with point-in-time recovery:
  aws dynamodb scan --table-name RESTORED --output json | jq -c '.Items[]' > rows.ndjson

Rows under a retired KEK need it enabled for the time of the restore; the command
says which, and to disable it again. Rows whose data key may be exposed since an
emergency rotation are encrypted under fresh data keys; where their payload is not of
this project's format only the data key is rewrapped, and that is said.

A keyed row is inserted as the backup has it: a rotation rewraps the record of its data
key. If the record of one is lost, or under a KEK that is not in use, the lost records of
the key table are first put back from their copies in the audit bucket, as matter ops
doctor --repair does. A row whose data key has no copy that unwraps is named. Two records in
the audit chain, rows_restore_started and rows_restored, say who restored how many rows of
which file.

Exit code: 0 every row is there under a KEK in use, 1 refused or rows that cannot be
restored, 2 usage.`,
		Example: "  matter ops restore-rows --source orders --file rows.ndjson --confirm",
	}
	cmd.Flags().StringVar(&f.source, "source", "", "the table, by the name that it is registered under (matter ops source list)")
	cmd.Flags().StringVar(&f.file, "file", "", "the backup")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.restoreRows(ctx, f) }, "source", "file")
}

// restoreCommand is the command without --confirm.
func (f restoreFlags) restoreCommand() string {
	return fmt.Sprintf("matter ops restore-rows --source %s --file %s", f.source, f.file)
}

// restored is the outcome of restore-rows.
type restored struct {
	Source string         `json:"source"`
	KEK    kek.ID         `json:"kek_id"` // the pointer's
	Plan   restore.Plan   `json:"plan"`
	Result restore.Result `json:"result"`
	Keys   int64          `json:"data_keys_put_back"` // records of data keys
	Next   string         `json:"next"`
}

// restoreRows plans a restore, refuses it while KMS does not let a KEK be used that rows are
// under, and makes it if it is confirmed. The plan reads only.
func (o *operator) restoreRows(ctx context.Context, f restoreFlags) error {
	r, err := o.newRestorer(ctx, f.source)
	if err != nil {
		return err
	}
	if err := r.Prepare(ctx); err != nil {
		return err
	}
	v, err := o.stack.Table.Load(ctx, "")
	if err != nil {
		return err
	}
	if v.Pointer == nil {
		return refusedError("POINTER", "there is no pointer", "matter ops kms-status")
	}
	out := restored{Source: f.source, KEK: v.Pointer.KEKID}
	if out.Plan, err = r.Plan(ctx, restore.File{Path: f.file}); err != nil {
		if errors.Is(err, restore.ErrFormat) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return console.UsageError{Err: fmt.Errorf("--file: %w", err)}
		}
		return err
	}
	if err := checkKEKsUsable(out.Plan, f); err != nil {
		return err
	}
	if !f.confirm {
		what := fmt.Sprintf("insert %d of %d rows into source %s under KEK %s, and repair %d orphans in place; %d are there and stay as they are, %d cannot be restored %s",
			out.Plan.Absent, out.Plan.Rows, f.source, out.KEK, out.Plan.Orphans, out.Plan.Present, out.Plan.Defects, strings.Join(out.Plan.First, "; "))
		if out.Plan.Lost > 0 {
			what = fmt.Sprintf("put back records of data keys, which %d rows lack, and %s", out.Plan.Lost, what)
		}
		return o.refuseUnconfirmed(what, f.restoreCommand())
	}
	out.Result = restore.Result{Present: out.Plan.Present, Defects: out.Plan.Defects, First: out.Plan.First, ByKEK: map[kek.ID]int64{}}
	if out.Plan.Lost > 0 {
		if out.Keys, err = o.putBackKeys(ctx); err != nil {
			return err
		}
	}
	if out.Plan.Absent+out.Plan.Orphans > 0 {
		if out.Result, err = o.applyRestore(ctx, r, f, out.Plan); err != nil {
			return err
		}
	}
	return o.checkAllRestored(out)
}

// newRestorer wires a restore into a registered table. A source of another kind has no rows
// to insert, so the error lists the tables.
func (o *operator) newRestorer(ctx context.Context, name string) (*restore.Restorer, error) {
	defs, err := o.stack.Table.Sources(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	r := &restore.Restorer{
		DynamoDB: dynamodb.NewFromConfig(o.stack.AWS), ControlTable: o.stack.Config.ControlTable, Registry: o.stack.Table,
		Keys: o.stack.Steps.Keys.Admin, KMS: o.stack.Steps.Keys.Wrapper, Cipher: o.stack.Steps.Keys.Cipher,
		Random: o.stack.Steps.Keys.Random, Now: o.stack.Steps.Journal.Now,
	}
	for _, def := range defs {
		src, err := o.stack.Steps.OpenSource(def)
		if records, ok := src.(source.Keeper); ok {
			r.Records = records
		}
		table, restorable := src.(restore.Table)
		switch {
		case def.Name != name && restorable:
			names = append(names, def.Name)
		case def.Name != name:
		case err != nil:
			return nil, err
		case restorable:
			r.Table = table
		}
	}
	if r.Table != nil {
		return r, nil
	}
	return nil, console.UsageError{Err: fmt.Errorf("--source %q is not a registered table: %s", name, strings.Join(names, ", "))}
}

// checkKEKsUsable refuses to begin while KMS does not let a KEK be used that rows are under,
// with the commands that help.
func checkKEKsUsable(p restore.Plan, f restoreFlags) error {
	if len(p.Locked) == 0 {
		return nil
	}
	var what, before, after []string
	for _, l := range p.Locked {
		what = append(what, fmt.Sprintf("%d rows are under KEK %s, which is %s; its KMS key is %s", l.Rows, l.KEK, l.State, l.KMS))
		switch l.KMS {
		case restore.Deleted:
			return refusedError("KEK "+string(l.KEK), strings.Join(what, "; "), "these rows cannot be opened any more: leave them out of "+f.file)
		case "PendingDeletion":
			before = append(before, "aws kms cancel-key-deletion --key-id "+string(l.KEK))
		}
		before = append(before, "aws kms enable-key --key-id "+string(l.KEK))
		after = append(after, "aws kms disable-key --key-id "+string(l.KEK))
	}
	all := slices.Concat(before, []string{f.restoreCommand() + " --confirm"}, after)
	return refusedError("KEK "+string(p.Locked[0].KEK), strings.Join(what, "; "), strings.Join(all, "; "))
}

// putBackKeys puts the lost records of data keys back, and returns how many.
func (o *operator) putBackKeys(ctx context.Context) (n int64, err error) {
	lost, err := o.stack.Steps.PutBackRecords(ctx, o.stack.Table, true)
	for _, l := range lost {
		n += l.PutBack
	}
	return n, err
}

// applyRestore restores, between two records of the audit chain. The first is
// written before anything else is.
func (o *operator) applyRestore(ctx context.Context, r *restore.Restorer, f restoreFlags, p restore.Plan) (restore.Result, error) {
	id := fmt.Sprintf("restore/%s/%s", f.source, o.stack.Steps.Journal.Now().UTC().Format("20060102T150405.000Z"))
	event := func(kind string, more map[string]string) audit.Event {
		body := map[string]string{
			"source": f.source, "file_sha256": p.Digest, "rows": fmt.Sprint(p.Rows), "absent": fmt.Sprint(p.Absent), "orphans": fmt.Sprint(p.Orphans),
		}
		for k, v := range more {
			body[k] = v
		}
		return audit.Event{ID: id + "/" + kind, Type: kind, Step: "restore-rows", Body: body}
	}
	if err := o.stack.Steps.Journal.RecordEvent(ctx, o.stack.Table, event("rows_restore_started", nil)); err != nil {
		return restore.Result{}, err
	}
	res, err := r.Apply(ctx, restore.File{Path: f.file})
	body := map[string]string{
		"restored": fmt.Sprint(res.Restored), "repaired": fmt.Sprint(res.Repaired), "present": fmt.Sprint(res.Present), "defects": fmt.Sprint(res.Defects),
		"encrypted_anew": fmt.Sprint(res.Anew), "keep_data_key": fmt.Sprint(res.Opaque), "keyed": fmt.Sprint(res.Keyed),
	}
	for k, n := range res.ByKEK {
		body["restored.from."+string(k)] = fmt.Sprint(n)
	}
	if err != nil {
		body["error"] = err.Error()
		if errors.Is(err, journal.ErrKeyDisabled) {
			err = &journal.Error{Kind: journal.Refused, Field: "KEK", Msg: "a KEK was disabled meanwhile", Err: err, Next: journal.Next{Say: f.restoreCommand() + " --confirm"}}
		}
	}
	// What was done is recorded even if the operator has given up.
	return res, errors.Join(err, o.stack.Steps.Journal.RecordEvent(context.WithoutCancel(ctx), o.stack.Table, event("rows_restored", body)))
}

// checkAllRestored prints what was restored, with the commands that disable again the keys
// that were enabled for it. It exits with 1 if a row could not be restored.
func (o *operator) checkAllRestored(out restored) error {
	var again []string
	for _, id := range out.Plan.Retired {
		again = append(again, "aws kms disable-key --key-id "+string(id))
	}
	out.Next = strings.Join(again, "; ")
	lines := []string{fmt.Sprintf("%d rows restored under KEK %s and %d orphans repaired in place, %d of them encrypted under fresh data keys; %d were there already; %d cannot be restored",
		out.Result.Restored, out.KEK, out.Result.Repaired, out.Result.Anew, out.Result.Present, out.Result.Defects)}
	if out.Keys > 0 {
		lines = append(lines, fmt.Sprintf("%d records of data keys put back from their copies", out.Keys))
	}
	if out.Result.Opaque > 0 {
		lines = append(lines, fmt.Sprintf("%d of them keep a data key that may be exposed since an emergency: their payloads are not of this project's format", out.Result.Opaque))
	}
	for _, d := range out.Result.First {
		lines = append(lines, "  "+d)
	}
	if err := o.console.PrintResult(out, append(lines, nextLine(out.Next))...); err != nil {
		return err
	}
	if out.Result.Defects > 0 {
		return console.Exit(console.ExitFailed)
	}
	return nil
}
