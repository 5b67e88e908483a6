package integration

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// writtenTable is a table that an application writes envelopes into.
type writtenTable struct {
	source string
	config envelope.TableConfig // as the application has it
	file   string               // the definition that nobody has registered
	write  func(table *envelope.Table)
}

// tableOf is the table of a definition.
func tableOf(t *testing.T, definition string, write func(*envelope.Table)) writtenTable {
	t.Helper()
	f := writtenTable{file: definitionFile(t, []byte(definition)), write: write}
	if err := strictjson.Unmarshal([]byte(definition), &f.config); err != nil {
		t.Fatal(err)
	}
	f.source = f.config.Name
	return f
}

// symbols is the data set's second table; its application notes in a row that it was
// there.
func (w *world) symbols(t *testing.T) writtenTable {
	t.Helper()
	return tableOf(t, w.Set.Sources()[1].Source().Definition, func(table *envelope.Table) {
		out, err := w.Set.Dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: &w.Set.Sources()[1].Table, Limit: aws.Int32(1)})
		if err != nil {
			t.Fatal(err)
		}
		err = table.Update(t.Context(), out.Items[0], func(row *envelope.Row) error {
			row.Item["seen"] = text(t.Name())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// notes is a table that no configuration knows.
func (w *world) notes(t *testing.T) writtenTable {
	t.Helper()
	name := w.Name + "-notes"
	w.newTable(t, name)
	return tableOf(t, fmt.Sprintf(`{"name": "notes", "table": %q, "kek_id_attribute": "k", "wrapped_dek_attribute": "d", "ciphertext_attribute": "c",
		"context": {"table": "notes"}, "bind": {"id": "$id"}}`, name), func(table *envelope.Table) {
		for n := range 5 {
			if err := table.Put(t.Context(), item{"id": text(fmt.Sprint(n))}, fmt.Appendf(nil, "note %d", n)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// underKEKs counts the rows of a table by the KEK that they name, and opens each as
// its application does.
func (w *world) underKEKs(t *testing.T, f writtenTable) map[string]int {
	t.Helper()
	out := map[string]int{}
	w.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), f.config)
		if err != nil {
			t.Fatal(err)
		}
		items, err := w.Set.Dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: &f.config.Table, ConsistentRead: aws.Bool(true)})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items.Items {
			row, err := table.Open(t.Context(), i)
			if err != nil {
				t.Error(err)
			}
			if f.source == "notes" && string(row.Plaintext) != "note "+i["id"].(*ddbtypes.AttributeValueMemberS).Value {
				t.Errorf("note %v opens to %q", i["id"], row.Plaintext)
			}
			out[i[f.config.KEKID].(*ddbtypes.AttributeValueMemberS).Value]++
		}
	})
	return out
}

// writeInto has an application start, write into a table and stop.
func (w *world) writeInto(t *testing.T, f writtenTable) {
	t.Helper()
	w.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), f.config)
		if err != nil {
			t.Fatal(err)
		}
		f.write(table)
	})
}

// forgotten shows that a table which is written into and is no source stops each
// rotation by its name: a planned one before anything changes, by the state machine
// and by hand; an emergency before the old KEK is retired, which goes on once the table
// is a source.
func (w *world) forgotten(t *testing.T, id string, f writtenTable, by shell) {
	t.Helper()
	w.writeInto(t, f)
	items, keks := w.dump(t, f.config.Table), w.underKEKs(t, f)
	old := w.view(t, "").Pointer.KEKID
	if keks[string(old)] == 0 {
		t.Fatalf("no row of %s is under the pointer's KEK: %v", f.config.Table, keks)
	}

	w.refused(t, id, "{}", string(journal.SourceForgotten), f.config.Table)
	w.refusedByHand(t, by, 1, id+" by hand", string(journal.SourceForgotten), f.config.Table)
	mentions(t, "census", by.must(t, 1, "census"), "FORGOTTEN  table "+f.config.Table+" is not a source", string(journal.SourceForgotten))

	urgent := id + "-urgent"
	o := w.rotate(t, urgent, `{"mode":"emergency","reason":"key material seen in a paste"}`)
	w.haltedBeforeRetirement(t, urgent, o, f)
	if got := w.dump(t, f.config.Table); got != items {
		t.Errorf("rows of %s were changed before it was a source", f.config.Table)
	}
	w.resumed(t, urgent, f, by)
}

// refusedByHand runs the first step by hand, which must be refused with nothing changed.
func (w *world) refusedByHand(t *testing.T, by shell, exit int, label string, phrases ...string) {
	t.Helper()
	before, minted := w.snapshot(t), w.allCalls(t, "kms", "CreateKey")
	mentions(t, label, by.must(t, exit, "kms-mint-kek", "--label", label), phrases...)
	if after := w.snapshot(t); after != before {
		t.Errorf("%s: the control table changed\nbefore %s\nafter  %s", label, before, after)
	}
	if n := w.allCalls(t, "kms", "CreateKey") - minted; n != 0 {
		t.Errorf("%s: %d keys were minted", label, n)
	}
}

// haltedBeforeRetirement checks a rotation that has moved what it knows and must not
// retire the old KEK, which rows of a table that it does not know are under.
func (w *world) haltedBeforeRetirement(t *testing.T, id string, o console.Outcome, f writtenTable) {
	t.Helper()
	if o.Status != types.ExecutionStatusFailed || o.Error != string(journal.Halted) {
		t.Fatal(describe(o))
	}
	mentions(t, "the halt", o.Cause, string(journal.SourceForgotten), f.config.Table)
	v := w.view(t, id)
	if v.Rotation.Phase != kek.Rewrapped || v.Lock != id {
		t.Errorf("rotation %+v, lock %q", v.Rotation, v.Lock)
	}
	if k, err := w.Deployment.Steps.Keys.Admin.Describe(t.Context(), v.Rotation.OldKEK); err != nil || !k.Enabled || v.KEKs[v.Rotation.OldKEK].State == kek.Retired {
		t.Errorf("the old KEK is %q, its key %+v, %v", v.KEKs[v.Rotation.OldKEK].State, k, err)
	}
	if keks := w.underKEKs(t, f); keks[string(v.Rotation.OldKEK)] == 0 {
		t.Errorf("rows by KEK %v: none is under the old one", keks)
	}
}

// resumed registers the table and goes on with the rotation, which moves its rows too.
func (w *world) resumed(t *testing.T, id string, f writtenTable, by shell) {
	t.Helper()
	mentions(t, "source add", by.must(t, 0, "source", "add", "--file", f.file, "--confirm"), "source "+f.source+" is registered")
	mentions(t, "resume", by.must(t, 0, "resume", "--rotation", id, "--watch", "--poll", "200ms"), "rotation "+id+" is completed")
	v := w.view(t, id)
	if v.Rotation.Phase != kek.Completed || v.Lock != "" {
		t.Errorf("rotation %+v, lock %q", v.Rotation, v.Lock)
	}
	keks := w.underKEKs(t, f)
	if n := keks[string(v.Pointer.KEKID)]; n == 0 || len(keks) != 1 {
		t.Errorf("rows of %s by KEK: %v, want all under %s", f.config.Table, keks, v.Pointer.KEKID)
	}
	if diff := cmp.Diff([]string{string(v.Pointer.KEKID)}, w.enabledKEKs(t)); diff != "" {
		t.Errorf("enabled KMS keys (-want +got):\n%s", diff)
	}
	w.mustHold(t)
}

// TestForgottenTable: a table that was removed from the registry, one that was left out
// when the registry was seeded, and one that is in no configuration at all are refused
// by their names, because their application has left a mark.
func TestForgottenTable(t *testing.T) {
	w := upSources(t, 1)
	sh, sources := w.shell(nil), w.Set.Sources()

	// Seeded from the variables of a shell that did not know the second table; and
	// whatever the shell of the day says, the registry decides.
	other, err := json.Marshal([]json.RawMessage{json.RawMessage(sources[0].Source().Definition), json.RawMessage(sources[1].Source().Definition)})
	if err != nil {
		t.Fatal(err)
	}
	w.refusedByHand(t, w.shell(map[string]string{"MATTER_SEGMENTS": "7"}), 2, "stale", string(journal.Misconfigured), "MATTER_SEGMENTS", "matter ops env")
	w.forgotten(t, "seeded", w.symbols(t), w.shell(map[string]string{"MATTER_SOURCES": string(other)}))

	// Removed although rows are in it.
	mentions(t, "source remove", sh.must(t, 1, "source", "remove", "--name", "symbols", "--confirm"), "sources[symbols]: it holds rows")
	sh.must(t, 0, "source", "remove", "--name", "symbols", "--force", "--reason", "nobody uses it", "--confirm")
	w.forgotten(t, "removed", w.symbols(t), sh)

	// In no configuration.
	notes := w.notes(t)
	w.forgotten(t, "nowhere", notes, sh)

	// Removed with its mark while its application runs: that leaves the mark again
	// before it gives the old KEK back.
	w.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), notes.config)
		if err != nil {
			t.Fatal(err)
		}
		notes.write(table)
		sh.must(t, 0, "source", "remove", "--name", "notes", "--force", "--reason", "nobody uses it", "--confirm")
		w.haltedBeforeRetirement(t, "running", w.rotate(t, "running", "{}"), notes)
		w.resumed(t, "running", notes, sh)
		notes.write(table)
	})
}

// upSources is up with the first n of the data set's tables registered by genesis.
func upSources(t *testing.T, n int) *world {
	t.Helper()
	var definitions []json.RawMessage
	for _, src := range (&sample.Set{Stack: stackName}).Sources()[:n] {
		definitions = append(definitions, json.RawMessage(src.Source().Definition))
	}
	b, err := json.Marshal(definitions)
	if err != nil {
		t.Fatal(err)
	}
	return upWith(t, localaws.Options{Parameters: map[string]string{"Sources": string(b)}}, "notes")
}

// TestSecondRotationMissesNothing: of two tables one is missing from the variables of
// the shell that does the second rotation by hand. The registry knows both, and both
// are rotated.
func TestSecondRotationMissesNothing(t *testing.T) {
	w := up(t, nil)
	if o := w.rotate(t, "first", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	half := "[" + w.Set.Sources()[0].Source().Definition + "]"
	sh := w.shell(map[string]string{"MATTER_SOURCES": half, "MATTER_CORPUS": ""})
	w.byHand(t, sh, "second")

	v := w.view(t, "second")
	if v.Rotation == nil || v.Rotation.Phase != kek.Completed || v.Lock != "" {
		t.Fatalf("rotation %+v, lock %q", v.Rotation, v.Lock)
	}
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[kek.ID]int{v.Pointer.KEKID: w.Seeded}, report.ByKEK); diff != "" {
		t.Errorf("rows by KEK (-want +got):\n%s", diff)
	}
	w.mustHold(t)
}

// byHand does a rotation by hand, step by step.
func (w *world) byHand(t *testing.T, sh shell, label string) {
	t.Helper()
	var minted struct {
		Old string `json:"old_kek_id"`
		New string `json:"new_kek_id"`
	}
	sh.decode(t, &minted, 0, "kms-mint-kek", "--label", label)
	for _, args := range [][]string{
		{"kms-dual-unwrap", "--kek-id", minted.New},
		{"kms-switch-pointer", "--kek-id", minted.New, "--confirm"},
		{"kms-watch-drain", "--old-kek-id", minted.Old, "--max-wait", "1m"},
		{"kms-rewrap", "--kek-id", minted.New},
		{"kms-retire-kek", "--kek-id", minted.Old, "--confirm"},
		{"verify-kms-rotation", "--new-kek-id", minted.New},
	} {
		sh.must(t, 0, args...)
	}
}
