package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/restore"
	"github.com/matter-ops/kms-rotation/kek"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/sample"
)

// TestRestoreRows restores rows from one backup three times: under the same KEK,
// after a rotation that retired it, and after an emergency rotation.
func TestRestoreRows(t *testing.T) {
	r := &restorer{world: deployed(t), file: filepath.Join(t.TempDir(), "rows.ndjson")}
	for k, v := range r.Env() {
		t.Setenv(k, v)
	}
	r.dynamo, r.kms = dynamodb.NewFromConfig(r.AWSConfig()), kms.NewFromConfig(r.AWSConfig())
	r.table = r.Set.Sources()[1].Table
	r.admit(t, "breakglass", r.ConfigWithMFA, breakGlassPolicies...)
	r.admit(t, "operator", r.ConfigWith, operatorPolicies...)
	r.become(t, "breakglass")
	r.backUp(t)
	r.usage(t)
	first := r.pointer(t)

	// The KEK of the backup is the current one.
	r.lose(t, 0, 3)
	r.must(t, console.ExitUsage, "would insert 3 of 80 rows", "--file", r.file)
	r.whole(t, 3)
	r.must(t, console.ExitDone, "3 rows restored", "--file", r.file, "--confirm")
	r.whole(t, 0)
	r.must(t, console.ExitDone, "0 rows restored", "--file", r.file, "--confirm")

	// It is retired.
	r.become(t, "operator")
	r.cli(t, console.ExitDone, "ops", "kms-rotate", "--watch", "--poll", "200ms")
	if out := r.cli(t, console.ExitFailed, "ops", "kms-rotate"); !strings.Contains(out, "of this quarter, ") {
		t.Errorf("a quarter is rotated again, and nobody has asked for that: %s", out)
	}
	r.become(t, "breakglass")
	r.lose(t, 10, 15)
	out := r.must(t, console.ExitFailed, "aws kms enable-key --key-id "+string(first)+"; matter ops restore-rows", "--file", r.file, "--confirm")
	if !strings.HasSuffix(strings.TrimSpace(out), "aws kms disable-key --key-id "+string(first)+")") {
		t.Errorf("it does not say to disable the key again: %s", out)
	}
	r.whole(t, 5)
	r.enable(t, first)
	r.fenced(t, first, 10)
	r.must(t, console.ExitDone, "next: aws kms disable-key --key-id "+string(first), "--file", r.file, "--confirm")
	r.disable(t, first)
	r.whole(t, 0)

	// Its data keys may be exposed.
	r.cli(t, console.ExitDone, "ops", "kms-rotate", "--emergency", "--reason", "key material in a log", "--watch", "--poll", "200ms")
	r.lose(t, 20, 24)
	r.enable(t, first)
	exposed := r.dek(t, r.items[20])
	r.must(t, console.ExitDone, "4 rows restored under KEK "+string(r.pointer(t))+" and 0 orphans repaired in place, 4 of them encrypted under fresh data keys", "--file", r.file, "--confirm")
	r.disable(t, first)
	r.whole(t, 0)
	if fresh := r.dek(t, r.stored(t, r.items[20])); bytes.Equal(exposed, fresh) {
		t.Error("a row is restored under a data key that may be exposed")
	}
	r.untouched(t, first)
	r.repaired(t, first)
	r.recorded(t)
	r.keyed(t)
}

// keyed restores a keyed row whose data key's record is lost as well: the record is put back
// from its copy before. The row comes back as it was.
func (r *restorer) keyed(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if err := r.AddKeyed(ctx); err != nil {
		t.Fatal(err)
	}
	site, err := r.Site(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := site.Table(sample.Notes)
	if err != nil {
		t.Fatal(err)
	}
	client, keyTable, err := site.Client(ctx, dynamodb.NewFromConfig(site.AWS))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // its lease runs out by itself
	table, err := client.Table(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	key := map[string]types.AttributeValue{"note": &types.AttributeValueMemberS{Value: load.Prefix + "restored"}}
	if err := table.Insert(ctx, key, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	out, err := r.dynamo.GetItem(ctx, &dynamodb.GetItemInput{TableName: &cfg.Table, Key: key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, r.file, []map[string]types.AttributeValue{out.Item})
	id, _ := out.Item["dek_id"].(*types.AttributeValueMemberS)
	record := map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: "DEK#" + id.Value}}
	for name, lost := range map[string]map[string]types.AttributeValue{cfg.Table: key, keyTable: record} {
		if _, err := r.dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &name, Key: lost}); err != nil {
			t.Fatal(err)
		}
	}
	restored := func(code int, says string, args ...string) {
		t.Helper()
		if out := r.cli(t, code, append([]string{"ops", "restore-rows", "--source", sample.Notes, "--file", r.file}, args...)...); !strings.Contains(out, says) {
			t.Errorf("restore-rows does not say %q:\n%s", says, out)
		}
	}
	restored(console.ExitUsage, "put back records of data keys, which 1 rows lack, and insert 1 of 1 rows")
	restored(console.ExitDone, "1 records of data keys put back from their copies", "--confirm")
	restored(console.ExitDone, "0 rows restored", "--confirm")
	row, err := table.Get(ctx, key)
	if err != nil || string(row.Plaintext) != "kept" {
		t.Errorf("the row holds %q, %v", row.Plaintext, err)
	}
}

type restorer struct {
	*world
	dynamo *dynamodb.Client
	kms    *kms.Client
	table  string
	file   string
	items  []map[string]types.AttributeValue
}

func (r *restorer) pointer(t *testing.T) kek.ID {
	t.Helper()
	v, err := r.Deployment.Table.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return v.Pointer.KEKID
}

// become has commands run with the policies of a person.
func (r *restorer) become(t *testing.T, who string) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", r.more["KEY_"+who])
	t.Setenv("AWS_SECRET_ACCESS_KEY", r.more["SECRET_"+who])
}

// cli runs a command and returns all that it said.
func (r *restorer) cli(t *testing.T, code int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if got := runCommand(t.Context(), args, &out, &out); got != code {
		t.Fatalf("matter %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out.String())
	}
	return out.String()
}

// must runs restore-rows, which must say says.
func (r *restorer) must(t *testing.T, code int, says string, args ...string) string {
	t.Helper()
	out := r.cli(t, code, append([]string{"ops", "restore-rows", "--source", "symbols"}, args...)...)
	if !strings.Contains(out, says) {
		t.Errorf("restore-rows %s does not say %q:\n%s", strings.Join(args, " "), says, out)
	}
	return out
}

// backUp writes the table as a backup, every second line as an export has it.
func (r *restorer) backUp(t *testing.T) {
	t.Helper()
	out, err := r.dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: &r.table})
	if err != nil {
		t.Fatal(err)
	}
	r.items = out.Items
	r.write(t, r.file, r.items)
}

func (r *restorer) write(t *testing.T, path string, items []map[string]types.AttributeValue) {
	t.Helper()
	text, err := ndjson(items)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func keyOf(i map[string]types.AttributeValue) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{"block": i["block"], "number": i["number"]}
}

// lose deletes rows of the backup.
func (r *restorer) lose(t *testing.T, from, to int) {
	t.Helper()
	for _, i := range r.items[from:to] {
		if _, err := r.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &r.table, Key: keyOf(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *restorer) stored(t *testing.T, i map[string]types.AttributeValue) map[string]types.AttributeValue {
	t.Helper()
	out, err := r.dynamo.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &r.table, Key: keyOf(i), ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Item
}

// whole checks every row, all of them under the pointer's KEK, but for so many
// that are lost.
func (r *restorer) whole(t *testing.T, lost int) {
	t.Helper()
	report, err := r.Set.Check(t.Context(), r.Rows)
	if err != nil {
		t.Fatal(err)
	}
	want := map[kek.ID]int{r.pointer(t): r.Seeded - lost}
	if report.Opened != r.Seeded-lost || len(report.Wrong) != lost || !maps.Equal(report.ByKEK, want) {
		t.Fatalf("%d of %d rows open, by KEK %v, want %v; wrong %q", report.Opened, r.Seeded, report.ByKEK, want, report.Wrong)
	}
}

func (r *restorer) enable(t *testing.T, id kek.ID) {
	t.Helper()
	if _, err := r.kms.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: aws.String(string(id))}); err != nil {
		t.Fatal(err)
	}
}

func (r *restorer) disable(t *testing.T, id kek.ID) {
	t.Helper()
	if _, err := r.kms.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: aws.String(string(id))}); err != nil {
		t.Fatal(err)
	}
}

// dek is the data key of a row.
func (r *restorer) dek(t *testing.T, i map[string]types.AttributeValue) []byte {
	t.Helper()
	dek, err := r.Set.KMS.Decrypt(t.Context(), kek.ID(i["key_ref"].(*types.AttributeValueMemberS).Value), i["edek"].(*types.AttributeValueMemberB).Value,
		map[string]string{"table": "symbols"})
	if err != nil {
		t.Fatal(err)
	}
	return dek
}

// stale is a registry that first answers as it was before the switch.
type stale struct {
	restore.Registry
	view  kek.View
	loads int
}

func (s *stale) Load(ctx context.Context, id string) (kek.View, error) {
	if s.loads++; s.loads == 1 {
		return s.view, nil
	}
	return s.Registry.Load(ctx, id)
}

// fenced restores one row by a restore that has read the pointer before a rotation
// sealed the old KEK: the fence refuses it, and it goes under the new one.
func (r *restorer) fenced(t *testing.T, old kek.ID, n int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "one.ndjson")
	r.write(t, path, r.items[n:n+1])
	d := r.Deployment
	registry := &stale{Registry: d.Table, view: kek.View{
		Pointer: &kek.Pointer{KEKID: old, Epoch: 1}, KEKs: map[kek.ID]kek.KEK{old: {ID: old, FenceShards: d.Config.FenceShards}},
	}}
	table, err := dynamosource.New(r.dynamo, r.Set.Sources()[1])
	if err != nil {
		t.Fatal(err)
	}
	one := &restore.Restorer{
		DynamoDB: r.dynamo, ControlTable: d.Config.ControlTable, Table: table,
		Registry: registry, Keys: d.Steps.Keys.Admin, KMS: d.Steps.Keys.Wrapper, Cipher: d.Steps.Keys.Cipher,
	}
	if err := one.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := one.Apply(t.Context(), restore.File{Path: path})
	if err != nil || res.Restored != 1 || registry.loads != 2 {
		t.Errorf("%+v, %v; the pointer was read %d times, want 2", res, err, registry.loads)
	}
	if got := r.stored(t, r.items[n])["key_ref"].(*types.AttributeValueMemberS).Value; got != string(r.pointer(t)) {
		t.Errorf("the row is under KEK %s", got)
	}
}

// usage: mistakes are said, and nothing is written.
func (r *restorer) usage(t *testing.T) {
	t.Helper()
	bad := filepath.Join(t.TempDir(), "bad.ndjson")
	if err := os.WriteFile(bad, []byte("{\"block\":{\"S\":\"x\"}}\nno item\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must(t, console.ExitUsage, "line 2", "--file", bad, "--confirm")
	r.must(t, console.ExitUsage, "no such file", "--file", bad+"-missing")
	r.cli(t, console.ExitUsage, "ops", "restore-rows", "--source", "nowhere", "--file", bad)
	odd := []map[string]types.AttributeValue{maps.Clone(r.items[0]), maps.Clone(r.items[1]), maps.Clone(r.items[2])}
	for n, i := range odd {
		i["number"] = &types.AttributeValueMemberN{Value: fmt.Sprint(-1 - n)} // no row has that key
	}
	odd[0]["key_ref"] = &types.AttributeValueMemberS{Value: "00000000-0000-0000-0000-000000000000"}
	delete(odd[1], "edek")
	odd[2]["edek"] = &types.AttributeValueMemberB{Value: []byte("nothing that KMS wrapped")}
	r.write(t, bad, odd)
	out := r.must(t, console.ExitFailed, "0 rows restored", "--file", bad, "--confirm")
	for _, says := range []string{"3 cannot be restored", "is not in the registry", `attribute edek is missing or empty`, "KMS refused to unwrap"} {
		if !strings.Contains(out, says) {
			t.Errorf("restore-rows does not say %q:\n%s", says, out)
		}
	}
	r.whole(t, 0)
}

// untouched: a row that is there stays as it is, though the backup has it too.
func (r *restorer) untouched(t *testing.T, first kek.ID) {
	t.Helper()
	newer := r.items[30]
	_, err := r.dynamo.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
		TableName: &r.table, Key: keyOf(newer), UpdateExpression: aws.String("SET note = :n"),
		ExpressionAttributeValues: map[string]types.AttributeValue{":n": &types.AttributeValueMemberS{Value: "newer"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.lose(t, 40, 41)
	r.enable(t, first)
	r.must(t, console.ExitDone, "1 rows restored", "--file", r.file, "--confirm")
	r.disable(t, first)
	note, ok := r.stored(t, newer)["note"].(*types.AttributeValueMemberS)
	if !ok || note.Value != "newer" {
		t.Error("a row that was there is overwritten")
	}
	r.whole(t, 0)
}

// repaired: a row that was written back as the backup has it is an orphan, which the
// command repairs where it is (issue 12, item 8).
func (r *restorer) repaired(t *testing.T, first kek.ID) {
	t.Helper()
	orphan := maps.Clone(r.items[50])
	orphan["note"] = &types.AttributeValueMemberS{Value: "written back"}
	if _, err := r.dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &r.table, Item: orphan}); err != nil {
		t.Fatal(err)
	}
	r.must(t, console.ExitFailed, "aws kms enable-key --key-id "+string(first), "--file", r.file, "--confirm")
	r.enable(t, first)
	r.must(t, console.ExitUsage, "and repair 1 orphans in place", "--file", r.file)
	r.must(t, console.ExitDone, "0 rows restored under KEK "+string(r.pointer(t))+" and 1 orphans repaired in place", "--file", r.file, "--confirm")
	r.disable(t, first)
	if note, ok := r.stored(t, orphan)["note"].(*types.AttributeValueMemberS); !ok || note.Value != "written back" {
		t.Error("the repaired row lost what was written to it")
	}
	r.whole(t, 0)
}

// recorded: the locked bucket says who restored what.
func (r *restorer) recorded(t *testing.T) {
	t.Helper()
	if err := r.Deployment.Steps.VerifyChain(t.Context()); err != nil {
		t.Error(err)
	}
	chain, head, err := r.Deployment.Table.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var counts []string
	for seq := int64(1); seq <= head.Seq; seq++ {
		b, err := r.Deployment.Steps.Journal.AuditBucket.Get(t.Context(), chain.RecordKey(seq))
		if err != nil {
			t.Fatal(err)
		}
		var rec audit.Record
		if err := json.Unmarshal(b, &rec); err != nil {
			t.Fatal(err)
		}
		if rec.Type != "rows_restored" {
			continue
		}
		if rec.Actor == "" || rec.Body["source"] != "symbols" || len(rec.Body["file_sha256"]) != 64 {
			t.Errorf("record %+v", rec)
		}
		counts = append(counts, rec.Body["restored"]+"+"+rec.Body["repaired"])
	}
	// Of the odd rows one got as far as KMS; where nothing is to be restored there is no record.
	if want := []string{"0+0", "3+0", "4+0", "4+0", "1+0", "0+1"}; !slices.Equal(counts, want) {
		t.Errorf("rows restored by the records: %v, want %v", counts, want)
	}
}
