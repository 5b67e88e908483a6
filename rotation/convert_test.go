package rotation_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/membucket"
)

// mixedRows is a table of embedded and keyed rows, registered as the source rows. What a
// conversion calls passes before, if that is set.
type mixedRows struct {
	*keyTable
	name   string
	cfg    rowschema.Schema
	plain  map[string]string
	before func(op string, call func() error) error
	dek    keyrecord.Record // that rows are inserted under
}

// watchedCalls are the calls to DynamoDB of the drivers of the rows and of the key table.
type watchedCalls struct{ *mixedRows }

func (w watchedCalls) pass(op string, call func() error) error {
	if w.before == nil {
		return call()
	}
	return w.before(op, call)
}

func (w watchedCalls) Scan(ctx context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (out *dynamodb.ScanOutput, err error) {
	err = w.pass("Scan", func() (err error) { out, err = w.keyTable.Scan(ctx, in); return err })
	return out, err
}

func (w watchedCalls) GetItem(ctx context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (out *dynamodb.GetItemOutput, err error) {
	err = w.pass("GetItem", func() (err error) { out, err = w.keyTable.GetItem(ctx, in); return err })
	return out, err
}

func (w watchedCalls) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (out *dynamodb.UpdateItemOutput, err error) {
	err = w.pass("UpdateItem", func() (err error) { out, err = w.keyTable.UpdateItem(ctx, in); return err })
	return out, err
}

func (w watchedCalls) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (out *dynamodb.TransactWriteItemsOutput, err error) {
	err = w.pass("TransactWriteItems", func() (err error) { out, err = w.keyTable.TransactWriteItems(ctx, in); return err })
	return out, err
}

// watchedBucket are the calls to S3 of the driver of the key table.
type watchedBucket struct {
	*membucket.Bucket
	m *mixedRows
}

func (w watchedBucket) PutObject(ctx context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (out *s3.PutObjectOutput, err error) {
	body := must(io.ReadAll(in.Body))
	err = watchedCalls{w.m}.pass("PutObject", func() (err error) {
		in.Body = bytes.NewReader(body)
		out, err = w.Bucket.PutObject(ctx, in)
		return err
	})
	return out, err
}

// newMixedRows adds the table to a site; its definition says that keyed rows are written.
func newMixedRows(s *site) *mixedRows {
	s.t.Helper()
	var drawn atomic.Int64
	s.Keys.Random = func(b []byte) { clear(b); binary.BigEndian.PutUint64(b, uint64(drawn.Add(1))) }
	k := newKeyTable(s)
	m := &mixedRows{keyTable: k, name: ddbtest.Table(s.t, k.DB, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS}), plain: map[string]string{}}
	m.cfg = rowschema.Schema{
		Name: "rows", Table: m.name, Envelope: rowschema.EnvelopeKeyed, KEKID: "kek_id", WrappedDEK: "wrapped", Ciphertext: "data",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{"id": "$id"}, Version: "version",
	}.WithDefaults()
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		switch {
		case def.Name == "rows":
			t, err := dynamosource.Open(watchedCalls{m}, def)
			return t.FencedBy(m.control), err
		case def.Kind == deks.KindName:
			return deks.Open(watchedCalls{m}, watchedBucket{m.bucket, m}, deks.Places{ControlTable: m.control, Bucket: "audit"}, def)
		}
		return open(def)
	}
	m.register()
	m.dek = k.create("first")
	return m
}

func (m *mixedRows) register() {
	m.s.t.Helper()
	must(m.s.AddSource(as("person"), m.cfg.Source()))
}

// direct says by its definition that embedded rows are written.
func (m *mixedRows) direct(embedded bool) {
	m.s.t.Helper()
	if m.cfg.Envelope = rowschema.EnvelopeKeyed; embedded {
		m.cfg.Envelope = rowschema.EnvelopeEmbedded
	}
	m.register()
}

// embed writes a row with a data key of its own, under the pointer's KEK.
func (m *mixedRows) embed(ids ...string) {
	m.s.t.Helper()
	p := m.s.pointer()
	context := map[string]string{"table": "orders"}
	dek, wrapped, err := m.s.kms.GenerateDataKey(as("application"), p.KEKID, context)
	m.s.must(err)
	for _, id := range ids {
		i := attr.Item{
			"id": attr.Str(id), "kek_id": attr.Str(string(p.KEKID)), "wrapped": attr.Blob(wrapped), "kek_epoch": attr.Num(p.Epoch), "version": attr.Num(1), "note": attr.Str("theirs"),
		}
		i["data"] = attr.Blob(must(m.s.Keys.Cipher.Seal(dek, []byte("secret of "+id), must(m.cfg.BoundOf(i)))))
		m.write(i)
		m.plain[id] = "secret of " + id
	}
}

// key writes a keyed row, under the data key that writers have.
func (m *mixedRows) key(ids ...string) {
	m.s.t.Helper()
	for _, id := range ids {
		i := attr.Item{"id": attr.Str(id), "dek_id": attr.Str(m.dek.DEKID), "kek_epoch": attr.Num(m.dek.BornEpoch), "version": attr.Num(1), "note": attr.Str("theirs")}
		i["data"] = attr.Blob(must(m.s.Keys.Cipher.Seal(m.deks[m.dek.DEKID], []byte("secret of "+id), must(m.cfg.KeyedBoundOf(i, []string{"id"}, m.dek.DEKID)))))
		m.write(i)
		m.plain[id] = "secret of " + id
	}
}

func (m *mixedRows) write(i attr.Item) {
	m.s.t.Helper()
	must(m.PutItem(m.s.t.Context(), &dynamodb.PutItemInput{TableName: &m.name, Item: i}))
}

func (m *mixedRows) stored(id string) attr.Item {
	m.s.t.Helper()
	return must(m.GetItem(m.s.t.Context(), &dynamodb.GetItemInput{TableName: &m.name, Key: attr.Item{"id": attr.Str(id)}, ConsistentRead: aws.Bool(true)})).Item
}

// remove deletes a row.
func (m *mixedRows) remove(id string) {
	m.s.t.Helper()
	must(m.DeleteItem(m.s.t.Context(), &dynamodb.DeleteItemInput{TableName: &m.name, Key: attr.Item{"id": attr.Str(id)}}))
	delete(m.plain, id)
}

// unwrap returns the data key of a row and what its payload is bound to.
func (m *mixedRows) unwrap(i attr.Item) ([]byte, map[string]string, error) {
	if dekID := attr.Text(i["dek_id"]); dekID != "" {
		found := must(m.GetItem(m.s.t.Context(), &dynamodb.GetItemInput{TableName: &m.table, Key: keyrecord.Key(dekID), ConsistentRead: aws.Bool(true)})).Item
		r, err := keyrecord.Decode(found)
		if err != nil {
			return nil, nil, err
		}
		if born := (&attr.Reader{Item: i}).Num("kek_epoch"); born != r.BornEpoch || i["kek_id"] != nil || i["wrapped"] != nil {
			return nil, nil, fmt.Errorf("a keyed row of epoch %d under a data key of epoch %d: %v", born, r.BornEpoch, i)
		}
		dek, err := m.s.kms.Decrypt(as("application"), r.KEKID, r.WrappedDEK, keyrecord.EncryptionContext(r))
		return dek, must(m.cfg.KeyedBoundOf(i, []string{"id"}, dekID)), err
	}
	dek, err := m.s.kms.Decrypt(as("application"), kek.ID(attr.Text(i["kek_id"])), attr.Bytes(i["wrapped"]), map[string]string{"table": "orders"})
	return dek, must(m.cfg.BoundOf(i)), err
}

// update writes another payload into a row, under the row's data key, as a client does that
// has it at hand.
func (m *mixedRows) update(id, plain string) {
	m.s.t.Helper()
	i := m.stored(id)
	dek, bound, err := m.unwrap(i)
	m.s.must(err)
	i["data"] = attr.Blob(must(m.s.Keys.Cipher.Seal(dek, []byte(plain), bound)))
	m.write(i)
	m.plain[id] = plain
}

// check opens every row and counts those of each kind. No other row is there.
func (m *mixedRows) check() (keyed, embedded int) {
	m.s.t.Helper()
	n := 0
	m.Each(m.name, func(attr.Item) { n++ })
	if n != len(m.plain) {
		m.s.t.Errorf("%d rows are there, %d were written", n, len(m.plain))
	}
	for id, want := range m.plain {
		i := m.stored(id)
		if i == nil {
			m.s.t.Errorf("row %s is gone", id)
			continue
		}
		dek, bound, err := m.unwrap(i)
		var plain []byte
		if err == nil {
			plain, err = m.s.Keys.Cipher.Open(dek, attr.Bytes(i["data"]), bound)
		}
		if err != nil || string(plain) != want || attr.Text(i["note"]) != "theirs" {
			m.s.t.Errorf("row %s opens to %q, %v; want %q", id, plain, err, want)
		}
		if i["dek_id"] != nil {
			keyed++
		} else {
			embedded++
		}
	}
	return keyed, embedded
}

// wantKinds fails the test unless all rows open and so many are of each kind.
func (m *mixedRows) wantKinds(keyed, embedded int) {
	m.s.t.Helper()
	if k, e := m.check(); k != keyed || e != embedded {
		m.s.t.Errorf("%d keyed and %d embedded rows, want %d and %d", k, e, keyed, embedded)
	}
}

func (m *mixedRows) convert(in rotation.ConvertInput) (rotation.Conversion, error) {
	in.Source = "rows"
	return m.s.Convert(as("person"), m.s.store, in)
}

// TestConvert: a dry run says what it takes and writes nothing. Then each embedded row comes
// under one data key of the key table, with one write, and nothing else of it changes. A second
// run finds nothing to do; and back, each row carries its data key again.
func TestConvert(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("a", "b", "c")
	m.embed("d")
	m.key("k", "l")
	m.write(attr.Item{"id": attr.Str("other")})
	m.plain["other"] = ""
	bad := attr.Item{"id": attr.Str("bad"), "kek_id": attr.Str("kek-0001"), "kek_epoch": attr.Num(1), "data": attr.Blob([]byte("x"))}
	m.write(bad)
	records, entries := len(m.bucket.Keys("deks/")), len(must(s.store.AuditEntries(t.Context(), 1)))
	before := m.stored("a")
	seen := int64(0)
	dry := must(m.convert(rotation.ConvertInput{Seen: func(n int64) { seen = n }}))
	want := rotation.Conversion{
		Source: "rows", To: "keyed", Keyed: 2, Embedded: 4, Other: 1, Tried: 4, Left: map[string]int64{"no_wrapped_dek": 1}, First: dry.First,
		Work: rotation.ConversionWork{Rows: 4, Unwraps: 2, DataKeys: 1, WriteUnits: 8},
	}
	if d := cmp.Diff(want, dry); d != "" || seen != 8 || len(dry.First) != 1 {
		t.Errorf("dry, %d seen (-want +got):\n%s", seen, d)
	}
	if d := cmp.Diff(before, m.stored("a"), cmp.AllowUnexported(types.AttributeValueMemberB{}, types.AttributeValueMemberN{}, types.AttributeValueMemberS{})); d != "" ||
		len(m.bucket.Keys("deks/")) != records || len(must(s.store.AuditEntries(t.Context(), 1))) != entries {
		t.Errorf("a dry run has written:\n%s", d)
	}

	wet := must(m.convert(rotation.ConvertInput{Write: true}))
	want.Tried = 0
	want.Converted = 4
	want.DataKeys = 1
	if d := cmp.Diff(want, wet); d != "" || len(m.bucket.Keys("deks/")) != records+1 {
		t.Errorf("for real (-want +got):\n%s", d)
	}
	delete(m.plain, "other")
	m.remove("other")
	m.remove("bad")
	m.wantKinds(6, 0)
	if a, d := attr.Text(m.stored("a")["dek_id"]), attr.Text(m.stored("d")["dek_id"]); a != d || a == m.dek.DEKID {
		t.Errorf("rows of one context are under %s and %s", a, d)
	}
	if got := (&attr.Reader{Item: m.stored("a")}).Num("version"); got != 2 {
		t.Errorf("version %d", got)
	}
	if b := s.body(rotation.EventConverted); b["source"] != "rows" || b["to"] != "keyed" || b["state"] != "done" || b["rows"] != "4" || b["data_keys"] != "1" || !strings.Contains(b["left"], "no_wrapped_dek 1") {
		t.Errorf("the record says %v", b)
	}
	entries = len(must(s.store.AuditEntries(t.Context(), 1)))
	if again := must(m.convert(rotation.ConvertInput{Write: true})); again.Keyed != 6 || again.Converted+again.Embedded+again.DataKeys != 0 {
		t.Errorf("again: %+v", again)
	}
	if n := len(must(s.store.AuditEntries(t.Context(), 1))); n != entries {
		t.Errorf("nothing was converted, and %d records were made", n-entries)
	}

	m.direct(true)
	dry = must(m.convert(rotation.ConvertInput{Embedded: true}))
	if d := cmp.Diff(rotation.ConversionWork{Rows: 6, Unwraps: 2, DataKeys: 1, WriteUnits: 24}, dry.Work); d != "" || dry.Tried != 6 {
		t.Errorf("back, dry: %+v\n%s", dry, d)
	}
	back := must(m.convert(rotation.ConvertInput{Embedded: true, Write: true}))
	if back.Converted != 6 || back.To != "embedded" || back.DataKeys != 1 {
		t.Errorf("back: %+v", back)
	}
	m.wantKinds(0, 6)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	m.wantKinds(0, 6)
}

// TestAdoptKeyed: if the definition says that keyed rows are written, a row that names no KEK
// becomes a keyed one at once; a dry run only says which KEK it is under. Rows that name one are
// left to a conversion, and what writers write meanwhile is not lost.
func TestAdoptKeyed(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("sound", "bare", "raced", "by ARN", "damaged", "stranger")
	m.key("keyed")
	change := func(id string, f func(i attr.Item)) {
		i := m.stored(id)
		f(i)
		m.write(i)
	}
	arn := must(s.kms.Describe(t.Context(), s.first)).ARN
	for _, id := range []string{"bare", "raced", "damaged", "stranger"} {
		change(id, func(i attr.Item) { delete(i, "kek_id") })
	}
	change("by ARN", func(i attr.Item) { i["kek_id"] = attr.Str(arn) })
	change("damaged", func(i attr.Item) { i["data"] = attr.Blob([]byte("not a payload")) })
	change("stranger", func(i attr.Item) { i["wrapped"] = attr.Blob([]byte("not a data key")) })
	dry := must(s.Adopt(as("person"), s.store, rotation.AdoptInput{Source: "rows"}))
	if dry.Written != 0 || !dry.Keyed || dry.Sound != 2 || dry.Found["no_kek_id under "+string(s.first)] != 3 || dry.Found["kek_id_arn under "+string(s.first)] != 1 {
		t.Errorf("%+v", dry)
	}
	m.before = func(op string, call func() error) error {
		if op == "UpdateItem" {
			m.before = nil
			change("raced", func(i attr.Item) { i["kek_id"] = attr.Str(string(s.first)) })
			m.update("raced", "by its writer")
			change("raced", func(i attr.Item) { delete(i, "kek_id") })
		}
		return call()
	}
	wet := must(s.Adopt(as("person"), s.store, rotation.AdoptInput{Source: "rows", Write: true}))
	if wet.Written != 3 || !wet.Keyed || len(wet.Left) != 2 || wet.Changed != 0 {
		t.Errorf("%+v", wet)
	}
	if b := s.body(rotation.EventAdopted); b["state"] != "done" || b["rows"] != "3" {
		t.Errorf("the record says %v", b)
	}
	m.remove("damaged")
	m.remove("stranger")
	m.wantKinds(4, 1)
	must(m.convert(rotation.ConvertInput{Write: true}))
	m.wantKinds(5, 0)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	m.wantKinds(5, 0)
}

// TestConvertBounds: a data key seals so many payloads as one of a writer does, and rows of
// another context are under another.
func TestConvertBounds(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.cfg.Context = map[string]string{"table": "orders", "id": "$id"}
	m.cfg.Bind = nil
	m.register()
	for _, id := range []string{"a", "b", "c"} {
		context := map[string]string{"table": "orders", "id": id}
		p := s.pointer()
		dek, wrapped, err := s.kms.GenerateDataKey(as("application"), p.KEKID, context)
		s.must(err)
		i := attr.Item{"id": attr.Str(id), "kek_id": attr.Str(string(p.KEKID)), "wrapped": attr.Blob(wrapped), "kek_epoch": attr.Num(p.Epoch)}
		i["data"] = attr.Blob(must(s.Keys.Cipher.Seal(dek, []byte(id), context)))
		m.write(i)
	}
	if out := must(m.convert(rotation.ConvertInput{Write: true})); out.DataKeys != 3 || out.Converted != 3 || out.Work.DataKeys != 3 {
		t.Errorf("%+v", out)
	}
	for _, id := range []string{"a", "b", "c"} {
		if r := m.record(attr.Text(m.stored(id)["dek_id"])); r.Context["id"] != id {
			t.Errorf("row %s is under a data key of %v", id, r.Context)
		}
	}
}

// TestConvertRefuses: what must be so before a conversion begins.
func TestConvertRefuses(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("a")
	refused := func(what string, in rotation.ConvertInput, kind journal.Kind, says string) {
		t.Helper()
		in.Write = true
		_, err := m.convert(in)
		if e := typed(err); e.Kind != kind || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s with %q", what, err, kind, says)
		}
	}
	refused("to embedded rows", rotation.ConvertInput{Embedded: true}, journal.SourceMisconfigured, "says that keyed rows are written")
	m.direct(true)
	refused("writers write embedded rows", rotation.ConvertInput{}, journal.SourceMisconfigured, "says that embedded rows are written")
	m.cfg.DEKID = ""
	m.register()
	refused("no keyed rows", rotation.ConvertInput{}, journal.SourceMisconfigured, "has no keyed rows")
	m.cfg.Envelope, m.cfg.DEKID, m.cfg.KEKID, m.cfg.WrappedDEK = rowschema.EnvelopeKeyed, "dek_id", "", ""
	m.register()
	refused("keyed rows alone", rotation.ConvertInput{}, journal.SourceMisconfigured, "has keyed rows alone")
	for _, name := range []string{"corpus", "nowhere"} {
		_, err := s.Convert(as("person"), s.store, rotation.ConvertInput{Source: name})
		wantKind(t, err, journal.InvalidInput)
	}
	m.cfg.KEKID, m.cfg.WrappedDEK = "kek_id", "wrapped"
	m.register()
	s.must(s.RemoveSource(as("person"), "keys", "for a test"))
	refused("no key table", rotation.ConvertInput{}, journal.SourceMisconfigured, "key table")
	m.wantKinds(0, 1)
}

// TestConvertBackBehindRecordsOnly: under a KEK that takes keyed rows alone no row becomes
// embedded; after the next switch it does.
func TestConvertBackBehindRecordsOnly(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		d, err := open(def)
		if def.Name == "orders" || def.Name == "people" || def.Name == "corpus" {
			return keyedOnly{d, def.Name != "corpus"}, err
		}
		return d, err
	}
	for p := range s.rows() {
		if p.table != s.corpus {
			s.remove(p.table, p.id)
		}
	}
	s.must(s.orders.Delete(as("application"), "settings"))
	m.key("a", "b")
	m.cfg.KEKID, m.cfg.WrappedDEK = "", ""
	m.register()
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	if !s.view("").KEKs[s.pointer().KEKID].RecordsOnly {
		t.Fatal("the fence of rows is open")
	}
	m.cfg.KEKID, m.cfg.WrappedDEK = "kek_id", "wrapped"
	m.direct(true)
	_, err := m.convert(rotation.ConvertInput{Embedded: true, Write: true})
	if wantKind(t, err, journal.Refused); !strings.Contains(err.Error(), "takes keyed rows alone") {
		t.Error(err)
	}
	s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
	must(m.convert(rotation.ConvertInput{Embedded: true, Write: true}))
	m.wantKinds(0, 2)
	s.advance("autumn", rotation.ExecutionInput{}, kek.Completed)
	m.wantKinds(0, 2)
}

// TestConvertLosesToWriters: of what a writer does between the read of a row and its write,
// nothing is lost: the row is read again, and converted as it is then.
func TestConvertLosesToWriters(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(m *mixedRows)
		retried   int64
		others    int64 // converted or deleted by others
	}{
		"payload":         {func(m *mixedRows) { m.update("a", "by its writer") }, 1, 0},
		"deleted":         {func(m *mixedRows) { m.remove("a") }, 0, 1},
		"converted":       {func(m *mixedRows) { m.key("a") }, 0, 1},
		"another KEK":     {func(m *mixedRows) { m.s.advance(spring, rotation.ExecutionInput{}, kek.Completed) }, 1, 0},
		"an emergency":    {func(m *mixedRows) { m.s.advance(spring, emergency, kek.Completed) }, 1, 0},
		"inserted again":  {func(m *mixedRows) { m.remove("a"); m.embed("a"); m.update("a", "another row") }, 1, 0},
		"of another DEK":  {func(m *mixedRows) { m.embed("a") }, 1, 0},
		"up to the drain": {func(m *mixedRows) { m.s.advance(spring, emergency, kek.Drained); m.update("a", "late") }, 1, 0},
	} {
		for _, embedded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, embedded %t", name, embedded), func(t *testing.T) {
				s := newSite(t)
				m := newMixedRows(s)
				meanwhile, retried, others := c.meanwhile, c.retried, c.others
				if m.embed("a"); embedded {
					m.direct(true)
					m.key("a")
					switch name {
					case "converted":
						meanwhile = func(m *mixedRows) { m.embed("a") }
					case "another KEK": // a rotation writes no keyed row, but the fence is shut
						retried = 1
					case "inserted again":
						meanwhile = func(m *mixedRows) { m.remove("a"); m.key("a"); m.update("a", "another row") }
					case "of another DEK":
						meanwhile = func(m *mixedRows) { m.dek = m.create("second"); m.key("a") }
					}
				}
				once := false
				m.before = func(op string, call func() error) error {
					if write := op == "UpdateItem" || op == "TransactWriteItems"; write && !once {
						once = true
						m.before = nil
						meanwhile(m)
					}
					return call()
				}
				out := must(m.convert(rotation.ConvertInput{Embedded: embedded, Write: true}))
				if out.Retried != retried || out.Meanwhile != others || out.Converted != 1-others || out.Changed != 0 || len(out.Left) > 0 {
					t.Errorf("%+v", out)
				}
				m.check()
				if i := m.stored("a"); i != nil {
					if in := (attr.Reader{Item: i}); in.Num("kek_epoch") != s.pointer().Epoch && name != "converted" {
						t.Errorf("it is of epoch %d", in.Num("kek_epoch"))
					}
				}
				if v := s.view(""); v.Lock != "" {
					s.advance(spring, emergency, kek.Completed)
				}
				s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
				m.check()
			})
		}
	}
}

// TestConvertRestless: a row that changes at each try is left for another run.
func TestConvertRestless(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("a", "b")
	n := 0
	m.before = func(op string, call func() error) error {
		if op == "UpdateItem" && n < journal.MaxTries {
			n++
			m.update("a", fmt.Sprintf("write %d", n))
		}
		return call()
	}
	s.Pace.RowsInFlight = 1
	out := must(m.convert(rotation.ConvertInput{Write: true}))
	m.before = nil
	if out.Converted < 1 || out.Converted+out.Changed != 2 || out.Retried < 11 {
		t.Errorf("%+v", out)
	}
	m.check()
	must(m.convert(rotation.ConvertInput{Write: true}))
	m.wantKinds(2, 0)
}

// TestConvertBesideRotations: rows that are converted before, in each phase of and after a
// rotation open, and none stays under a data key that an emergency has exposed.
func TestConvertBesideRotations(t *testing.T) {
	phases := []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched, kek.Drained, kek.Rewrapped, kek.KEKRetired, kek.Completed}
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		for _, embedded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, embedded %t", mode, embedded), func(t *testing.T) {
				s := newSite(t)
				m := newMixedRows(s)
				var all []string
				for i := range phases {
					all = append(all, fmt.Sprintf("r%d", i), fmt.Sprintf("s%d", i))
				}
				if m.embed(all...); embedded {
					m.direct(true)
					m.key(all...)
				}
				// Each run is stopped after two rows.
				run := func() {
					writes := 0
					m.before = func(op string, call func() error) error {
						if op != map[bool]string{false: "UpdateItem", true: "TransactWriteItems"}[embedded] {
							return call()
						}
						if writes++; writes > 2 {
							return errors.New("stopped")
						}
						return call()
					}
					s.Pace.RowsInFlight = 1
					if out, err := m.convert(rotation.ConvertInput{Embedded: embedded, Write: true}); out.Converted != 2 {
						t.Errorf("%+v, %v", out, err)
					}
					m.before = nil
					m.check()
				}
				for _, phase := range phases {
					run()
					s.advance(spring, in, phase)
					m.check()
				}
				must(m.convert(rotation.ConvertInput{Embedded: embedded, Write: true}))
				if m.wantKinds(map[bool]int{false: len(all)}[embedded], map[bool]int{true: len(all)}[embedded]); mode == "emergency" {
					for _, id := range all {
						if in := (attr.Reader{Item: m.stored(id)}); in.Num("kek_epoch") < s.record(spring).Epoch {
							t.Errorf("row %s is of epoch %d", id, in.Num("kek_epoch"))
						}
					}
				}
				s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
				m.check()
			})
		}
	}
}

// TestConvertUnderOldKey: a conversion that had a data key before an emergency uses none of
// before it for a row that it reads after the emergency.
func TestConvertUnderOldKey(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	var all []string
	for i := range 600 { // more than a page
		all = append(all, fmt.Sprintf("r%03d", i))
	}
	m.embed(all...)
	var once sync.Once
	scans := 0
	m.before = func(op string, call func() error) error {
		if op == "Scan" {
			if scans++; scans == 2 {
				once.Do(func() { m.before = nil; s.advance(spring, emergency, kek.Completed) })
			}
		}
		return call()
	}
	if out := must(m.convert(rotation.ConvertInput{Write: true})); out.Converted != 600 || out.DataKeys != 2 {
		t.Errorf("%+v", out)
	}
	m.wantKinds(600, 0)
	for _, id := range all {
		if r := m.record(attr.Text(m.stored(id)["dek_id"])); r.BornEpoch != s.record(spring).Epoch {
			t.Fatalf("row %s is under a data key of epoch %d", id, r.BornEpoch)
		}
	}
}

// TestConvertLeaves: rows that cannot be converted are named with the reason, and the others
// are converted.
func TestConvertLeaves(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("good", "damaged", "stranger", "later", "short")
	change := func(id string, f func(i attr.Item)) {
		i := m.stored(id)
		f(i)
		m.write(i)
	}
	change("damaged", func(i attr.Item) { i["data"] = attr.Blob([]byte("not a payload")) })
	change("stranger", func(i attr.Item) { i["kek_id"] = attr.Str("kek-0099") })
	change("later", func(i attr.Item) { i["kek_epoch"] = attr.Num(9) })
	_, wrapped, err := s.kms.GenerateDataKey(as("application"), s.first, map[string]string{"table": "other"})
	s.must(err)
	change("short", func(i attr.Item) { i["wrapped"] = attr.Blob(wrapped) })
	out := must(m.convert(rotation.ConvertInput{Write: true}))
	if out.Converted != 1 || len(out.Left) != 4 || len(out.First) != 4 {
		t.Errorf("%+v", out)
	}
	if all := strings.Join(out.First, "\n"); !strings.Contains(all, "does not open under its data key") || !strings.Contains(all, "registry does not know") ||
		!strings.Contains(all, "later epoch") || strings.Contains(all, "secret") {
		t.Error(all)
	}
}

// TestConvertWithoutTheFence: while the fence of records is shut no row is written, and the
// run says why.
func TestConvertWithoutTheFence(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("a")
	for n := range shards {
		s.must(s.store.SealFence(t.Context(), s.first, n))
	}
	_, err := m.convert(rotation.ConvertInput{Write: true})
	if wantKind(t, err, journal.Transient); !errors.Is(err, source.ErrFenced) {
		t.Error(err)
	}
	m.wantKinds(0, 1)
}

// TestConvertBusy: a write that another transaction stands in the way of is tried again.
func TestConvertBusy(t *testing.T) {
	for _, embedded := range []bool{false, true} {
		for _, place := range []string{"row", "fence"} {
			s := newSite(t)
			m := newMixedRows(s)
			if m.embed("a"); embedded {
				m.direct(true)
				m.key("a")
			}
			var held atomic.Int64
			m.before = func(op string, call func() error) error {
				if op == "UpdateItem" || op == "TransactWriteItems" {
					m.Hold(func(table string, _ attr.Item) bool {
						return (table == m.name) == (place == "row") && table != m.table && held.Add(1) <= 3
					})
					defer m.Hold(nil)
				}
				return call()
			}
			out := must(m.convert(rotation.ConvertInput{Embedded: embedded, Write: true}))
			m.before = nil
			want := int64(3)
			if place == "fence" && !embedded { // of a record: its driver tries again
				want = 0
			}
			if out.Converted != 1 || out.Retried != want || held.Load() <= 3 {
				t.Errorf("embedded %t, held %s: %+v", embedded, place, out)
			}
			m.check()
		}
	}
}

// TestConvertDenied: if KMS makes no data key the run ends; it does not leave each row.
func TestConvertDenied(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.embed("a", "b")
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "KMS.GenerateDataKey" {
			return false, journal.ErrDenied
		}
		return true, nil
	})
	out, err := m.convert(rotation.ConvertInput{Write: true})
	s.world.SetHook(nil)
	if wantKind(t, err, journal.AccessDenied); len(out.Left) > 0 {
		t.Errorf("%+v", out)
	}
	if b := s.body(rotation.EventConverted); b["state"] != "done" || b["rows"] != "0" {
		t.Errorf("the record says %v", b)
	}
	m.wantKinds(0, 2)
}

// fate is what becomes of one call of a process.
type fate int

// The fates: the process dies before or after the call takes effect, or before it does, which
// happens long after; or the request is sent twice.
const (
	deadBefore fate = iota
	deadAfter
	deadLate
	sentTwice
)

var errDead = errors.New("the process is dead")

// TestConvertDies: a conversion that dies at any call, whose request arrives late or twice,
// leaves rows that open; a second run, after writers have written, ends the work. What arrives
// after that changes nothing.
func TestConvertDies(t *testing.T) {
	for _, embedded := range []bool{false, true} {
		calls := dyingConversion(t, embedded, -1, deadBefore)
		if calls < 15 {
			t.Fatalf("%d calls", calls)
		}
		for at := range calls {
			for _, what := range []fate{deadBefore, deadAfter, deadLate, sentTwice} {
				dyingConversion(t, embedded, at, what)
			}
		}
	}
}

// dyingConversion runs a conversion to its call at, and returns how many calls were made.
func dyingConversion(t *testing.T, embedded bool, at int, what fate) int {
	t.Helper()
	s := newSite(t)
	m := newMixedRows(s)
	s.Pace.RowsInFlight = 1
	if m.embed("a", "b"); embedded {
		m.direct(true)
		m.key("a", "b", "c")
	} else {
		m.embed("c")
	}
	n, dead := 0, false
	var late []func() error
	next := func() (fate, bool) {
		n++
		return what, n-1 == at
	}
	m.before = func(_ string, call func() error) error {
		if dead {
			return errDead
		}
		f, now := next()
		if !now {
			return call()
		}
		switch dead = f != sentTwice; f {
		case deadBefore:
		case deadAfter:
			_ = call()
		case deadLate:
			late = append(late, call)
		case sentTwice:
			_ = call()
			return call()
		}
		return errDead
	}
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "KMS.Describe" { // of the test's fences
			return true, nil
		}
		if dead {
			return false, errDead
		}
		f, now := next()
		if !now || f == sentTwice {
			return true, nil
		}
		dead = true
		return f == deadAfter, errDead
	})
	out, err := m.convert(rotation.ConvertInput{Embedded: embedded, Write: true})
	if dead != (err != nil) {
		t.Errorf("call %d, fate %d: %+v, %v", at, what, out, err)
	}
	calls := n
	m.before = nil
	s.world.SetHook(nil)
	m.check()
	m.update("a", "written after the death")
	for _, call := range late {
		_ = call()
	}
	m.check()
	again := must(m.convert(rotation.ConvertInput{Embedded: embedded, Write: true}))
	for _, call := range late {
		_ = call()
	}
	want := [2]int{3, 0}
	if embedded {
		want = [2]int{0, 3}
	}
	m.wantKinds(want[0], want[1])
	if t.Failed() {
		t.Fatalf("call %d of %d, fate %d: then %+v", at, calls, what, again)
	}
	return calls
}

// TestConvertProperty: whatever writers, people and rotations do between any two calls of
// conversions, each row opens to what was written last.
func TestConvertProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSite(t)
		m := newMixedRows(s)
		s.Pace.RowsInFlight = 1
		ids := []string{"a", "b", "c", "d", "e"}
		m.embed(ids[:2]...)
		m.key(ids[2:4]...)
		phases := []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched, kek.Drained, kek.Rewrapped, kek.KEKRetired, kek.Completed}
		rotations, phase, in := 0, len(phases), rotation.ExecutionInput{}
		advance := func() {
			if phase == len(phases) {
				if rotations == 3 {
					return
				}
				rotations++
				phase = 0
				if in = (rotation.ExecutionInput{}); rapid.Bool().Draw(rt, "emergency") {
					in = emergency
				}
			}
			s.advance(fmt.Sprintf("rotation-%d", rotations), in, phases[phase])
			phase++
		}
		writes := 0
		event := func() {
			id := rapid.SampledFrom(ids).Draw(rt, "id")
			exists := m.stored(id) != nil
			switch what := rapid.SampledFrom([]string{"nothing", "nothing", "update", "delete", "embed", "key", "new key", "rotate"}).Draw(rt, "event"); {
			case what == "update" && exists:
				writes++
				m.update(id, fmt.Sprintf("write %d", writes))
			case what == "delete" && exists:
				m.remove(id)
			case what == "embed" && !exists && s.store.Fences(s.pointer().KEKID)[0] == "open":
				m.embed(id)
			case what == "key" && !exists:
				m.key(id)
			case what == "new key":
				m.dek = m.create(fmt.Sprintf("dek %d", len(m.deks)))
			case what == "rotate":
				advance()
			}
			m.check()
		}
		for range rapid.IntRange(1, 4).Draw(rt, "runs") {
			embedded := rapid.Bool().Draw(rt, "embedded")
			if m.cfg.Keyed() == embedded {
				for phase != len(phases) { // a source is registered beside no rotation
					advance()
				}
				m.direct(embedded)
			}
			m.before = func(_ string, call func() error) error {
				hold := m.before
				m.before = nil
				event()
				m.before = hold
				return call()
			}
			out, err := m.convert(rotation.ConvertInput{Embedded: embedded, Write: true})
			m.before = nil
			if err != nil || len(out.Left) > 0 {
				rt.Fatalf("%+v, %v", out, err)
			}
			m.check()
		}
		for phase != len(phases) {
			advance()
		}
		must(m.convert(rotation.ConvertInput{Embedded: !m.cfg.Keyed(), Write: true}))
		want := [2]int{len(m.plain), 0}
		if !m.cfg.Keyed() {
			slices.Reverse(want[:])
		}
		m.wantKinds(want[0], want[1])
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// TestSweepOfExposedRows: a row that a writer inserts after an emergency, under the data key that
// it had before, goes under a fresh one; so does one that claims a later epoch than its data key
// has. Rows under later data keys are left, and a second run finds none. It needs no embedded
// rows in the definition.
func TestSweepOfExposedRows(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.key("early")
	first := m.dek
	second := m.create("second") // else what is known of late's data key would answer for forged
	s.advance(spring, emergency, kek.Completed)
	epoch := s.pointer().Epoch
	fresh := m.stored("early")["dek_id"]
	m.key("late")
	m.dek = second
	m.key("forged")
	m.dek = first
	forged := m.stored("forged")
	forged["kek_epoch"] = attr.Num(epoch)
	m.write(forged)
	m.cfg.KEKID, m.cfg.WrappedDEK = "", ""
	m.register()

	if _, err := m.convert(rotation.ConvertInput{Write: true}); err == nil {
		t.Error("without an emergency a table of keyed rows alone is converted")
	}
	sweep := rotation.ConvertInput{Write: true, ExposedBefore: epoch}
	look := must(m.convert(rotation.ConvertInput{ExposedBefore: epoch}))
	if look.Exposed != 2 || look.Converted != 0 || look.Keyed != 3 || look.Work.Rows != 1 || attr.Text(m.stored("late")["dek_id"]) != m.dek.DEKID {
		t.Errorf("a look: %+v", look)
	}
	out := must(m.convert(sweep))
	if out.Exposed != 2 || out.Converted != 2 || out.DataKeys != 1 || len(out.Left) > 0 {
		t.Errorf("%+v", out)
	}
	m.wantKinds(3, 0)
	for _, id := range []string{"late", "forged"} {
		if got := attr.Text(m.stored(id)["dek_id"]); got == first.DEKID || got == second.DEKID {
			t.Errorf("row %s is under the exposed data key", id)
		}
	}
	if got := m.stored("early")["dek_id"]; attr.Text(got) != attr.Text(fresh) {
		t.Error("a row under a later data key was written")
	}
	if again := must(m.convert(sweep)); again.Exposed != 0 || again.Converted != 0 || again.Work.Rows != 0 {
		t.Errorf("again: %+v", again)
	}
}

// TestSweepMeetsWriters: a writer that puts the row under a later data key between read and write
// wins, and its row is left.
func TestSweepMeetsWriters(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	m.key("late")
	old := m.dek
	s.advance(spring, emergency, kek.Completed)
	epoch := s.pointer().Epoch
	m.dek = old
	m.key("late") // as it was before
	met := false
	m.before = func(op string, call func() error) error {
		if op == "UpdateItem" && !met {
			met = true
			m.before = nil
			must(m.convert(rotation.ConvertInput{Write: true, ExposedBefore: epoch}))
		}
		return call()
	}
	out := must(m.convert(rotation.ConvertInput{Write: true, ExposedBefore: epoch}))
	if !met || out.Converted != 0 || out.Meanwhile != 1 || out.Retried != 1 {
		t.Errorf("%+v", out)
	}
	m.wantKinds(1, 0)
}
