package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/localaws"
)

// oddTables are two tables with items of every kind beside sound rows: one of this
// project's format, one of Tink's.
type oddTables struct {
	*world
	table, tink string
	file        string            // the definitions of both
	first       kek.ID            // retired since
	historic    kek.ID            // a key that was never registered
	backup      item              // a row under the retired KEK
	opens       map[string]string // what rows hold in the end, by id
	others      map[string]item   // that are no envelopes
}

func (o *oddTables) context() map[string]string {
	return map[string]string{"table": "odd", "tenant": "acme"}
}

// row is an envelope under a KMS key, as the table's definition has it.
func (o *oddTables) row(t *testing.T, id string, under kek.ID) item {
	t.Helper()
	bound := o.context()
	bound["id"] = id
	wrapped, sealed := o.sealRow(t, under, "plain "+id, o.context(), bound)
	return item{
		"id": text(id), "tenant": text("acme"), "kek_id": text(string(under)), "wrapped_dek": blob(wrapped), "ciphertext": blob(sealed),
		"kek_epoch": numeric("1"), "version": numeric("1"),
	}
}

// oddity is what is odd about one item.
type oddity struct {
	id, kind string
	opens    bool // to what was written, once it is corrected
	item     func(i item) item
}

func without(i item, names ...string) item {
	for _, n := range names {
		delete(i, n)
	}
	return i
}

func with(i item, name string, v ddbtypes.AttributeValue) item {
	i[name] = v
	return i
}

// oddities lists each kind of item that a rotation cannot place. current is the
// pointer's KEK.
func (o *oddTables) oddities(t *testing.T) []oddity {
	t.Helper()
	return []oddity{
		{"raw", "ciphertext_only", true, func(item) item {
			current := o.view(t, "").Pointer.KEKID
			return item{"id": text("raw"), "ciphertext": blob(o.kmsEncrypt(t, current, "plain raw", o.context()))}
		}},
		{"no-kek", "no_kek_id", true, func(i item) item { return without(i, "kek_id") }},
		{"no-wrapped", "no_wrapped_dek", false, func(i item) item { return without(i, "wrapped_dek") }},
		{"no-ciphertext", "no_ciphertext", false, func(i item) item { return without(i, "ciphertext") }},
		{"epoch", "epoch_only", false, func(i item) item { return without(i, "kek_id", "wrapped_dek", "ciphertext") }},
		{"counter-kek", "no_wrapped_dek", false, func(i item) item { // declared, but it names a KEK
			return with(without(i, "wrapped_dek", "ciphertext"), "kind", text("counter"))
		}},
		{"base64", "wrong_type", true, func(i item) item {
			return with(i, "wrapped_dek", text(base64.StdEncoding.EncodeToString(i["wrapped_dek"].(*ddbtypes.AttributeValueMemberB).Value)))
		}},
		{"alias", "kek_id_form", true, func(i item) item { return with(i, "kek_id", text("alias/application")) }},
		{"unknown", "unknown_kek", true, func(item) item { return o.row(t, "unknown", o.historic) }},
		{"retired", "retired_kek", true, func(item) item { return maps.Clone(o.backup) }},
		{"no-tenant", "no_context", true, func(i item) item { return without(i, "tenant") }},
		{"full", "no_room", true, func(i item) item {
			i["note"] = text("")
			return with(i, "note", text(strings.Repeat("x", attr.MaxItemSize-attr.ItemSize(i)-8)))
		}},
		{"own-version", "version_not_ours", true, func(i item) item { return with(i, "version", text("v7")) }},
	}
}

// newOddTables makes the tables and fills them. The first KEK is retired by a rotation
// meanwhile, and a row that was under it is back.
func newOddTables(t *testing.T) *oddTables {
	t.Helper()
	w := upWith(t, localaws.Options{}, "odd", "oddtink")
	o := &oddTables{
		world: w, table: w.Name + "-odd", tink: w.Name + "-oddtink", first: w.view(t, "").Pointer.KEKID, historic: w.newKey(t), opens: map[string]string{},
	}
	o.newTable(t, o.table)
	o.newTable(t, o.tink)
	o.backup = o.row(t, "retired", o.first)
	if got := w.rotate(t, "first", "{}"); got.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(got))
	}
	o.others = map[string]item{
		"other":            {"id": text("other"), "note": text("none of the attributes")},
		"other-version":    {"id": text("other-version"), "version": text("of the application's own")},
		"declared-counter": {"id": text("declared-counter"), "kind": text("counter"), "count": numeric("7")},
		"declared-epoch":   {"id": text("declared-epoch"), "kind": text("counter"), "kek_epoch": numeric("1")},
		"declared-lock":    {"id": text("declared-lock"), "kind": text("lock")},
	}
	for _, i := range o.others {
		o.put(t, o.table, i)
	}
	current := w.view(t, "").Pointer
	for _, odd := range o.oddities(t) {
		o.put(t, o.table, odd.item(o.row(t, odd.id, current.KEKID)))
		if odd.opens {
			o.opens[odd.id] = "plain " + odd.id
		}
	}
	o.put(t, o.tink, item{"id": text("garbage"), "ciphertext": blob([]byte("this is not what Tink writes"))})
	for _, id := range []string{"sound-1", "sound-2"} {
		o.put(t, o.table, o.row(t, id, current.KEKID))
		o.opens[id] = "plain " + id
	}
	o.put(t, o.table, with(o.row(t, "sound-arn", current.KEKID), "kek_id", text(current.KeyARN)))
	o.opens["sound-arn"] = "plain sound-arn"
	o.file = definitionFile(t, fmt.Appendf(nil, `[
		{"name": "odd", "table": %q, "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek", "ciphertext_attribute": "ciphertext",
		 "version_attribute": "version", "context": {"table": "odd", "tenant": "$tenant"}, "bind": {"id": "$id"},
		 "other": {"attribute": "kind", "values": ["counter", "lock"]}},
		{"name": "oddtink", "table": %q, "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek", "ciphertext_attribute": "ciphertext",
		 "format": "tink"}]`, o.table, o.tink))
	return o
}

// config is the first table as its application is configured with it: by the same text.
func (o *oddTables) config(t *testing.T) envelope.TableConfig {
	t.Helper()
	b, err := os.ReadFile(o.file)
	if err != nil {
		t.Fatal(err)
	}
	var both []envelope.TableConfig
	if err := strictjson.Unmarshal(b, &both); err != nil {
		t.Fatal(err)
	}
	return both[0]
}

// items is everything in both tables.
func (o *oddTables) items(t *testing.T) string {
	t.Helper()
	return o.dump(t, o.table) + "\n" + o.dump(t, o.tink)
}

// unchanged runs act, which must change no item, mint no key and leave pointer and lock
// as they are.
func (o *oddTables) unchanged(t *testing.T, what string, act func()) {
	t.Helper()
	items, before, keys := o.items(t), o.view(t, ""), o.allCalls(t, "kms", "CreateKey")
	act()
	if o.items(t) != items {
		t.Errorf("%s: an item was changed", what)
	}
	if after := o.view(t, ""); *after.Pointer != *before.Pointer || after.Lock != "" {
		t.Errorf("%s: pointer %+v (before %+v), lock %q", what, after.Pointer, before.Pointer, after.Lock)
	}
	if n := o.allCalls(t, "kms", "CreateKey") - keys; n != 0 {
		t.Errorf("%s: %d keys were minted", what, n)
	}
}

// TestOddItems: a table with items of every kind that a rotation cannot place is
// counted by kind, and every rotation is refused before a key is minted, with nothing
// changed. Corrected one by one, they are rotated with the sound rows.
func TestOddItems(t *testing.T) {
	o := newOddTables(t)
	sh := o.shell(nil)
	mentions(t, "source add", sh.must(t, 0, "source", "add", "--file", o.file, "--confirm"), "source odd is registered", "note: RowsUnaccounted", "source oddtink is registered")
	current := o.view(t, "").Pointer.KEKID

	o.unchanged(t, "census", func() {
		byKind := map[string]int{}
		for _, odd := range o.oddities(t) {
			byKind[odd.kind]++
		}
		var counts []string
		for _, kind := range slices.Sorted(maps.Keys(byKind)) {
			counts = append(counts, fmt.Sprintf("%s %d", kind, byKind[kind]))
		}
		got := sh.must(t, 1, "census")
		t.Log(got)
		mentions(t, "census", got,
			fmt.Sprintf("odd: %d items\n  %10d  envelopes under KEK %s, which is active\n", len(o.others)+len(o.oddities(t))+3, 3, current),
			fmt.Sprintf("%10d  other: none of the envelope's attributes\n  %10d  declared other by the definition\n  %10d  unaccounted: %s\n", 2, 3, len(o.oddities(t)), strings.Join(counts, ", ")),
			fmt.Sprintf("%10d  unaccounted: damaged 1\n              id=garbage: attribute ciphertext is not what Tink writes", 1),
			"matter: RowsUnaccounted: rows: 14 items cannot be accounted for")
		if n := strings.Count(got, "\n              id="); n != 10+1 { // the first ten of a table
			t.Errorf("%d items are named by their key:\n%s", n, got)
		}
	})
	o.unchanged(t, "refused", func() {
		o.refused(t, "odd", "{}", string(journal.RowsUnaccounted), "sources[odd]")
		mentions(t, "by hand", sh.must(t, 1, "kms-mint-kek", "--label", "odd by hand"), "RowsUnaccounted: sources[odd]")
	})
	o.unchanged(t, "adopt, a dry run", func() {
		mentions(t, "adopt", sh.must(t, 1, "adopt", "--source", "odd"),
			"can be adopted: no_kek_id under "+string(current), "can be adopted: kek_id_form under "+string(current), "nothing was written",
			fmt.Sprintf("left: it is under KEK %q, which is retired", o.first),
			fmt.Sprintf("left: it is under KEK %q, which the registry does not know", o.historic),
			fmt.Sprintf("next: matter ops kms-register-kek --kek-id %s --confirm", o.historic))
	})
	mentions(t, "adopt", sh.must(t, 1, "adopt", "--source", "odd", "--confirm"), "3 rows were given the id of their KEK") // with the one that has an ARN

	o.correctWhatIsSeen(t)
	o.unchanged(t, "rolled back", func() { // what only the census sees
		const left = "(no_room 1, retired_kek 1, unknown_kek 1)"
		o.rolledBack(t, "census", string(journal.RowsUnaccounted), left, 0)
		mentions(t, "by hand", sh.must(t, 1, "kms-mint-kek", "--label", "census by hand"), left, "no KEK was minted, rotation census-by-hand is rolled back")
	})
	o.correctTheRest(t, sh)
	mentions(t, "census", sh.must(t, 0, "census"), fmt.Sprintf("%10d  unaccounted\n", 0), "next: matter ops kms-preflight")

	if got := o.rotate(t, "green", "{}"); got.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(got))
	}
	o.rotated(t)
}

// correctWhatIsSeen corrects what the sample of a preflight finds: damaged rows are
// deleted, others are written as they should be.
func (o *oddTables) correctWhatIsSeen(t *testing.T) {
	t.Helper()
	for _, id := range []string{"no-wrapped", "no-ciphertext"} {
		o.remove(t, o.table, id)
	}
	o.remove(t, o.tink, "garbage")
	o.update(t, o.table, "epoch", "REMOVE kek_epoch", nil)
	o.update(t, o.table, "counter-kek", "REMOVE kek_id", nil)
	o.update(t, o.table, "no-tenant", "SET tenant = :v", item{":v": text("acme")})
	o.update(t, o.table, "own-version", "SET version = :v", item{":v": numeric("7")})
	dek, err := base64.StdEncoding.DecodeString(o.get(t, o.table, "base64")["wrapped_dek"].(*ddbtypes.AttributeValueMemberS).Value)
	if err != nil {
		t.Fatal(err)
	}
	o.update(t, o.table, "base64", "SET wrapped_dek = :v", item{":v": blob(dek)})

	raw, err := kms.NewFromConfig(o.AWSConfig()).Decrypt(t.Context(), &kms.DecryptInput{
		CiphertextBlob: o.get(t, o.table, "raw")["ciphertext"].(*ddbtypes.AttributeValueMemberB).Value, EncryptionContext: o.context(),
	})
	if err != nil {
		t.Fatal(err)
	}
	o.remove(t, o.table, "raw")
	o.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), o.config(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Insert(t.Context(), item{"id": text("raw"), "tenant": text("acme")}, raw.Plaintext); err != nil {
			t.Fatal(err)
		}
	})
}

// correctTheRest registers the KEK of one row, repairs an orphan in place and makes a
// full item smaller.
func (o *oddTables) correctTheRest(t *testing.T, sh shell) {
	t.Helper()
	sh.must(t, 0, "kms-register-kek", "--kek-id", string(o.historic), "--label", "historic", "--confirm")
	o.update(t, o.table, "full", "SET note = :v", item{":v": text("short")})

	file := filepath.Join(t.TempDir(), "rows.ndjson")
	if err := os.WriteFile(file, dynamoJSON(t, o.backup), 0o600); err != nil {
		t.Fatal(err)
	}
	client, id := kms.NewFromConfig(o.AWSConfig()), aws.String(string(o.first))
	if _, err := client.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	mentions(t, "restore-rows", sh.must(t, 0, "restore-rows", "--source", "odd", "--file", file, "--confirm"),
		"1 orphans repaired in place", "aws kms disable-key --key-id "+string(o.first))
	if _, err := client.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: id}); err != nil {
		t.Fatal(err)
	}
}

// dynamoJSON is an item in DynamoDB JSON, on a line.
func dynamoJSON(t *testing.T, i item) []byte {
	t.Helper()
	line := map[string]any{}
	for name, v := range i {
		switch v := v.(type) {
		case *ddbtypes.AttributeValueMemberS:
			line[name] = map[string]string{"S": v.Value}
		case *ddbtypes.AttributeValueMemberN:
			line[name] = map[string]string{"N": v.Value}
		case *ddbtypes.AttributeValueMemberB:
			line[name] = map[string]string{"B": base64.StdEncoding.EncodeToString(v.Value)}
		default:
			t.Fatalf("attribute %s is %T", name, v)
		}
	}
	b, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// rotated checks that every row opens under the pointer's KEK alone, and that no item
// is lost or was touched that is no envelope.
func (o *oddTables) rotated(t *testing.T) {
	t.Helper()
	current := string(o.view(t, "").Pointer.KEKID)
	o.application(t, func(c *envelope.Client) {
		table, err := c.Table(t.Context(), o.config(t))
		if err != nil {
			t.Fatal(err)
		}
		for id, plain := range o.opens {
			row, err := table.Get(t.Context(), item{"id": text(id)})
			if err != nil || string(row.Plaintext) != plain {
				t.Errorf("row %s: %q, %v; want %q", id, row.Plaintext, err, plain)
			}
			if got := o.get(t, o.table, id)["kek_id"].(*ddbtypes.AttributeValueMemberS).Value; got != current {
				t.Errorf("row %s names KEK %s, want %s", id, got, current)
			}
		}
	})
	for id, want := range o.others {
		if got := o.get(t, o.table, id); string(dynamoJSON(t, got)) != string(dynamoJSON(t, want)) {
			t.Errorf("item %s is %s, was %s", id, dynamoJSON(t, got), dynamoJSON(t, want))
		}
	}
	want := len(o.opens) + len(o.others) + 2 // that are no envelopes any more
	if got := strings.Count(o.dump(t, o.table), "\n") + 1; got != want {
		t.Errorf("the table has %d items, want %d", got, want)
	}
	if got := o.enabledKEKs(t); !slices.Equal(got, []string{current}) {
		t.Errorf("enabled KMS keys %v, want the pointer's alone", got)
	}
	o.mustHold(t)
}
