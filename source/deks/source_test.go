package deks_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/membucket"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

// dynamo is what the driver and its tests use of a DynamoDB.
type dynamo interface {
	deks.API
	ddbtest.Tables
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// place is a key table with its bucket and its control table, in which the fences of kek-0,
// kek-1 and kek-2 are open.
type place struct {
	t      *testing.T
	client dynamo
	table  string
	bucket *membucket.Bucket
	driver *deks.Table
}

func newPlace(t *testing.T, client dynamo) *place {
	t.Helper()
	p := &place{t: t, client: client, table: ddbtest.Table(t, client, ddbtest.Key{Name: "pk", Type: types.ScalarAttributeTypeS}), bucket: membucket.New()}
	p.bucket.Page = 2
	control := ddbtest.ControlTable(t, client)
	for _, id := range []string{"kek-0", "kek-1", "kek-2"} {
		fence := attr.Item{"pk": attr.Str("DEKFENCE#" + id), "sk": attr.Str("00"), "state": attr.Str(controltable.Open)}
		if _, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &control, Item: fence}); err != nil {
			t.Fatal(err)
		}
	}
	def := deks.Config{Table: p.table}.Source()
	def.Name = "keys"
	var err error
	if p.driver, err = deks.Open(client, p.bucket, deks.Places{ControlTable: control, Bucket: "audit"}, def); err != nil {
		t.Fatal(err)
	}
	return p
}

func idOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return keyrecord.NewID([16]byte(sum[:]))
}

func recordOf(id string, e sourcetest.Envelope) keyrecord.Record {
	return keyrecord.Record{
		DEKID: idOf(id), WrappedDEK: e.WrappedDEK, KEKID: e.KEK, KEKEpoch: max(e.Epoch, 1), BornEpoch: 1,
		Context: map[string]string{"table": "orders", "id": id}, CreatedAt: time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC),
	}
}

// put stores a record past all conditions, without its copy.
func (p *place) put(t *testing.T, id string, e sourcetest.Envelope) {
	t.Helper()
	i := keyrecord.Encode(recordOf(id, e))
	if e.Defect != "" {
		delete(i, "born_epoch")
	}
	if _, err := p.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &p.table, Item: i}); err != nil {
		t.Fatal(err)
	}
}

func (p *place) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := p.client.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &p.table, Key: keyrecord.Key(idOf(id))}); err != nil {
		t.Fatal(err)
	}
}

func (p *place) get(t *testing.T, id string) (sourcetest.Envelope, bool) {
	t.Helper()
	out, err := p.client.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &p.table, Key: keyrecord.Key(idOf(id)), ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	if out.Item == nil {
		return sourcetest.Envelope{}, false
	}
	r, err := keyrecord.Decode(out.Item)
	if err != nil {
		t.Fatal(err)
	}
	if r.BornEpoch != 1 || r.CreatedAt.Year() != 2026 || r.Context["id"] != id {
		t.Errorf("a rewrap changed %+v", r)
	}
	return sourcetest.Envelope{KEK: r.KEKID, Epoch: r.KEKEpoch, WrappedDEK: r.WrappedDEK}, true
}

func (p *place) only(t *testing.T) source.Row {
	t.Helper()
	page, err := p.driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil || len(page.Rows) != 1 {
		t.Fatal(page, err)
	}
	return page.Rows[0]
}

func everywhere(t *testing.T, f func(t *testing.T, client dynamo)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { f(t, ddbtest.NewTwin(t)) })
	t.Run("local", func(t *testing.T) { f(t, ddbtest.Client(t)) })
}

func TestSource(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		sourcetest.TestSource(t, func(t *testing.T) sourcetest.Harness {
			p := newPlace(t, client)
			return sourcetest.Harness{
				Driver: p.driver, Put: p.put, Delete: p.remove, Get: p.get, Records: true,
				Context: func(id string) map[string]string {
					return map[string]string{"matter:dek_id": idOf(id), "matter:born_epoch": "1"}
				},
				Defects: map[source.Defect]source.Defect{source.Damaged: source.Damaged},
			}
		})
	})
}

// TestCopyFirst: whatever fails, a record that is in the table has its copy in the bucket
// under the same bytes.
func TestCopyFirst(t *testing.T) {
	client := ddbtest.NewTwin(t)
	p := newPlace(t, client)
	p.put(t, "a", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("old")})
	row, with := p.only(t), source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}
	p.bucket.Fail(errors.New("no answer"))
	if ok, err := p.driver.Replace(t.Context(), row, with); ok || err == nil {
		t.Errorf("without a copy: %v, %v, want an error", ok, err)
	}
	if e, _ := p.get(t, "a"); e.KEK != "kek-0" {
		t.Errorf("rewrapped without a copy: %+v", e)
	}
	p.bucket.Fail(nil)
	if ok, err := p.driver.Replace(t.Context(), row, with); !ok || err != nil {
		t.Fatal(ok, err)
	}
	e, _ := p.get(t, "a")
	if got, want := p.bucket.Keys("deks/"), []string{keyrecord.CopyKey(recordOf("a", e))}; !slices.Equal(got, want) {
		t.Errorf("copies %q, want %q", got, want)
	}
	if err := p.driver.Rehearse(t.Context(), row); err != nil || len(p.bucket.Keys("deks/")) != 2 {
		t.Errorf("a rehearsal writes the copy of what was read: %q, %v", p.bucket.Keys("deks/"), err)
	}
	p.bucket.Fail(&smithy.GenericAPIError{Code: "AccessDenied"})
	if err := p.driver.Rehearse(t.Context(), row); !errors.Is(err, source.ErrDenied) {
		t.Errorf("a rehearsal that may not write copies: %v, want a denial", err)
	}
}

// TestForeignObjects: what is under the prefix and is not a copy is counted and stops
// nothing; other bytes under a copy's key are not believed.
func TestForeignObjects(t *testing.T) {
	p := newPlace(t, ddbtest.NewTwin(t))
	gone := recordOf("gone", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})
	p.bucket.Plant(keyrecord.CopyKey(gone), keyrecord.EncodeCopy(gone))
	other := recordOf("other", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})
	p.bucket.Plant(keyrecord.CopyKey(other), keyrecord.EncodeCopy(gone))
	p.bucket.Plant("deks/", nil)
	p.bucket.Plant("deks/readme.txt", []byte("hello"))
	var rows []source.Row
	others := 0
	req := source.ScanRequest{Total: 1, Missing: true}
	for first := true; first || req.Cursor != ""; first = false {
		page, err := p.driver.Scan(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		rows, others, req.Cursor = append(rows, page.Rows...), others+page.Other, page.Next
	}
	if len(rows) != 1 || rows[0].ID != idOf("gone") || !rows[0].Missing || others != 3 {
		t.Errorf("%d other objects, rows %+v", others, rows)
	}
	for _, cursor := range []string{"copy:v1/elsewhere", "item:"} {
		if _, err := p.driver.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: cursor}); err == nil {
			t.Errorf("cursor %q was accepted", cursor)
		}
	}
	if _, err := p.driver.Scan(t.Context(), source.ScanRequest{Segment: 1, Total: 2, Cursor: "copy:"}); err == nil {
		t.Error("the second segment reads copies")
	}
}

// TestDefinition: a definition is read strictly, and stored in one form.
func TestDefinition(t *testing.T) {
	kind := deks.Kind(nil, nil, deks.Places{})
	def, err := kind.Parse([]byte(`{"kind":"deks","name":"keys","table":"stack-keys"}`))
	if want := (kek.Source{Name: "keys", Kind: "deks", Definition: `{"table":"stack-keys"}`, Place: "stack-keys"}); def != want || err != nil {
		t.Errorf("%+v, %v", def, err)
	}
	if def, err := kind.Parse([]byte(`{"table":"stack-keys"}`)); def.Name != "stack-keys" || err != nil {
		t.Errorf("%+v, %v", def, err)
	}
	for _, bad := range []string{`{}`, `{"table":""}`, `{"table":"arn:aws:dynamodb:eu-central-1:000000000000:table/keys"}`, `{"table":"keys","tabel":"x"}`, `{"table":"keys","name":"a b"}`, `{"table":"a/b","name":"keys"}`, `[]`} {
		if def, err := kind.Parse([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, def)
		}
	}
	for _, bad := range []string{`{"table":"keys","bucket":"b"}`, `{"table":""}`, `{"table":"a/b"}`, ``} {
		if _, err := kind.Open(kek.Source{Name: "keys", Definition: bad}); err == nil {
			t.Errorf("%q was opened", bad)
		}
	}
}

// TestCheck: mistakes that a person makes with the table.
func TestCheck(t *testing.T) {
	client := ddbtest.NewTwin(t)
	p := newPlace(t, client)
	problem := func(what string, d *deks.Table, want source.Problem, says string) {
		t.Helper()
		_, err := d.Check(t.Context())
		var found *source.Error
		if !errors.As(err, &found) || found.Problem != want || !strings.Contains(found.Error(), says) || found.Next == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	open := func(table string) *deks.Table {
		d, err := deks.Open(client, p.bucket, deks.Places{}, deks.Config{Table: table}.Source())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	problem("no table", open("elsewhere"), source.Misconfigured, "there is no table")
	problem("a control table", open(ddbtest.ControlTable(t, client)), source.Misconfigured, "not a key table")
	problem("another key", open(ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})), source.Misconfigured, "not a key table")
	problem("another type", open(ddbtest.Table(t, client, ddbtest.Key{Name: "pk", Type: types.ScalarAttributeTypeB})), source.Misconfigured, "not a key table")
	for i := range 3 {
		p.put(t, string(rune('a'+i)), sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek")})
	}
	if notes, err := p.driver.Check(t.Context()); err != nil || len(notes) > 0 {
		t.Errorf("%q, %v", notes, err)
	}
	p.put(t, "odd", sourcetest.Envelope{KEK: "kek-0", Epoch: 1, WrappedDEK: []byte("dek"), Defect: source.Damaged})
	problem("an item that is not a record", p.driver, source.Unaccounted, "born_epoch")
}

// crowded is a DynamoDB that cancels transactions because others are in the way, as it does while
// they have the same shard of a fence.
type crowded struct {
	dynamo
	left int
}

func (c *crowded) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if c.left--; c.left >= 0 {
		return nil, &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusBadRequest}},
			Err: &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
				{Code: aws.String("None")}, {Code: aws.String("TransactionConflict")},
			}},
		}
	}
	return c.dynamo.TransactWriteItems(ctx, in, o...)
}

// TestCreateAmidOthers: a record is created though other transactions have the shard of the fence
// for a while, and no failure of that kind says that AWS rejects the record.
func TestCreateAmidOthers(t *testing.T) {
	client := &crowded{dynamo: ddbtest.NewTwin(t)}
	p := newPlace(t, client)
	client.left = 3
	record := p.driver.NewKey(source.DataKey{ID: [16]byte{1}, KEK: "kek-0", Epoch: 3, Made: time.Now()})
	if ok, err := p.driver.CreateKey(t.Context(), record, []byte("dek")); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
	client.left = 1000
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	record = p.driver.NewKey(source.DataKey{ID: [16]byte{2}, KEK: "kek-0", Epoch: 3, Made: time.Now()})
	ok, err := p.driver.CreateKey(ctx, record, []byte("dek"))
	if ok || err == nil || errors.Is(err, source.ErrRejected) || errors.Is(err, source.ErrFenced) {
		t.Errorf("%t, %v", ok, err)
	}
}

// TestCreateKey: a data key is created behind the shard that its maker chose. A fence that is
// shut, and a conflict, are told apart.
func TestCreateKey(t *testing.T) {
	db := memddb.New()
	table, control := ddbtest.Table(t, db, ddbtest.Key{Name: "pk", Type: types.ScalarAttributeTypeS}), ddbtest.ControlTable(t, db)
	keys, err := deks.Open(db, membucket.New(), deks.Places{ControlTable: control, Bucket: "audit"}, deks.Config{Table: table}.Source())
	if err != nil {
		t.Fatal(err)
	}
	put := func(shard int, state string) {
		t.Helper()
		if _, err := db.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &control, Item: controltable.EncodeFence(keyrecord.PKFence, "kek-1", shard, state)}); err != nil {
			t.Fatal(err)
		}
	}
	put(0, controltable.Sealed)
	put(3, controltable.Open)
	ctx := t.Context()
	create := func(ctx context.Context, id byte, shard int) (bool, error) {
		made := keys.NewKey(source.DataKey{ID: [16]byte{id}, KEK: "kek-1", Epoch: 2, Shard: shard, Made: time.Now()})
		return keys.CreateKey(ctx, made, []byte("wrapped"))
	}
	if done, err := create(ctx, 1, 0); done || !errors.Is(err, source.ErrFenced) {
		t.Errorf("behind a sealed shard: %t, %v", done, err)
	}
	if done, err := create(ctx, 1, 3); !done || err != nil {
		t.Errorf("behind an open shard: %t, %v", done, err)
	}
	if done, err := create(ctx, 1, 3); done || err != nil {
		t.Errorf("again: %t, %v", done, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	db.Hold(func(string, attr.Item) bool { return true })
	if done, err := create(ctx, 2, 3); done || !errors.Is(err, source.ErrBusy) || errors.Is(err, source.ErrFenced) {
		t.Errorf("beside another transaction: %t, %v", done, err)
	}
}
