package keyrecord

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

var ignoreSDK = cmpopts.IgnoreUnexported(types.AttributeValueMemberS{}, types.AttributeValueMemberN{}, types.AttributeValueMemberB{}, types.AttributeValueMemberM{})

var testID = NewID([16]byte{0: 0xff, 15: 1})

func record() Record {
	return Record{
		DEKID: testID, WrappedDEK: []byte("wrapped"), KEKID: "kek-0002", KEKEpoch: 5, BornEpoch: 3,
		Context: map[string]string{"table": "orders", "a <b>": "ä\u2028"}, CreatedAt: time.Date(2026, 4, 1, 2, 3, 4, 0, time.UTC),
	}
}

// TestStoredRecord: what a record looks like in the table, and that it comes back as it was.
func TestStoredRecord(t *testing.T) {
	want := attr.Item{
		"pk": attr.Str("DEK#74aaaaaaaaaaaaaaaaaaaaaaae"), "format": attr.Num(1), "wrapped_dek": attr.Blob([]byte("wrapped")),
		"kek_id": attr.Str("kek-0002"), "kek_epoch": attr.Num(5), "born_epoch": attr.Num(3), "created_at": attr.Str("2026-04-01T02:03:04Z"),
		"context": &types.AttributeValueMemberM{Value: attr.Item{"table": attr.Str("orders"), "a <b>": attr.Str("ä\u2028")}},
	}
	if d := cmp.Diff(want, Encode(record()), ignoreSDK); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	bare := record()
	bare.Context, bare.KEKEpoch = map[string]string{}, 3
	for _, r := range []Record{record(), bare} {
		got, err := Decode(Encode(r))
		if d := cmp.Diff(r, got); d != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
	context := map[string]string{"table": "orders", "a <b>": "ä\u2028", "matter:dek_id": testID, "matter:born_epoch": "3"}
	if d := cmp.Diff(context, EncryptionContext(record())); d != "" {
		t.Errorf("encryption context (-want +got):\n%s", d)
	}
}

// TestDamagedRecords: whatever is wrong with a record, the error names the attribute.
func TestDamagedRecords(t *testing.T) {
	for name, c := range map[string]struct {
		attribute string
		value     types.AttributeValue
		says      string
	}{
		"another format":    {"format", attr.Num(2), "attribute format is 2; this release reads 1"},
		"format as text":    {"format", attr.Str("1"), "not a number"},
		"no format":         {"format", nil, "attribute format is 0"},
		"unknown":           {"ttl", attr.Num(1), `attribute "ttl" is unknown`},
		"pk of another":     {"pk", attr.Str("KEY#" + testID), "does not begin with DEK#"},
		"id too short":      {"pk", attr.Str("DEK#" + testID[1:]), "attribute pk"},
		"id in capitals":    {"pk", attr.Str("DEK#" + strings.ToUpper(testID)), "attribute pk"},
		"id with more bits": {"pk", attr.Str("DEK#" + testID[:25] + "f"), "attribute pk"},
		"pk as bytes":       {"pk", attr.Blob([]byte("DEK#" + testID)), "attribute pk is "},
		"empty DEK":         {"wrapped_dek", attr.Blob(nil), "attribute wrapped_dek"},
		"DEK too long":      {"wrapped_dek", attr.Blob(make([]byte, 6145)), "attribute wrapped_dek"},
		"DEK as text":       {"wrapped_dek", attr.Str("wrapped"), "attribute wrapped_dek"},
		"KEK as alias":      {"kek_id", attr.Str("alias/kek"), "attribute kek_id"},
		"KEK as ARN":        {"kek_id", attr.Str("arn:aws:kms:eu-central-1:000000000000:key/kek-0002"), "attribute kek_id"},
		"no KEK":            {"kek_id", attr.Str(""), "attribute kek_id"},
		"born at 0":         {"born_epoch", attr.Num(0), "attribute born_epoch"},
		"born half":         {"born_epoch", &types.AttributeValueMemberN{Value: "2.5"}, "attribute born_epoch"},
		"born after":        {"born_epoch", attr.Num(6), "attribute kek_epoch"},
		"epoch too large":   {"kek_epoch", attr.Num(1_000_000_000_000), "attribute kek_epoch"},
		"context as list":   {"context", attr.Strs([]string{"table"}), "attribute context"},
		"context of number": {"context", &types.AttributeValueMemberM{Value: attr.Item{"a": attr.Num(1)}}, "attribute context: attribute a is "},
		"context reserved":  {"context", &types.AttributeValueMemberM{Value: attr.Item{"matter:dek_id": attr.Str("x")}}, "attribute context"},
		"context of AWS":    {"context", &types.AttributeValueMemberM{Value: attr.Item{"aws:x": attr.Str("x")}}, "attribute context"},
		"context empty":     {"context", &types.AttributeValueMemberM{Value: attr.Item{"a": attr.Str("")}}, "attribute context"},
		"context no key":    {"context", &types.AttributeValueMemberM{Value: attr.Item{"": attr.Str("x")}}, "attribute context"},
		"context key odd":   {"context", &types.AttributeValueMemberM{Value: attr.Item{"\xff": attr.Str("x")}}, "attribute context"},
		"context not text":  {"context", &types.AttributeValueMemberM{Value: attr.Item{"a": attr.Str("\xff")}}, "attribute context"},
		"with milliseconds": {"created_at", attr.Str("2026-04-01T02:03:04.000Z"), "attribute created_at"},
		"with a zone":       {"created_at", attr.Str("2026-04-01T02:03:04+00:00"), "attribute created_at"},
		"not a time":        {"created_at", attr.Str("2026-02-30T02:03:04Z"), "attribute created_at: parsing time"},
		"the zero time":     {"created_at", attr.Str("0001-01-01T00:00:00Z"), "attribute created_at"},
	} {
		i := Encode(record())
		if i[c.attribute] = c.value; c.value == nil {
			delete(i, c.attribute)
		}
		if r, err := Decode(i); err == nil || !strings.Contains(err.Error(), c.says) || !cmp.Equal(r, Record{}) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, r, err, c.says)
		}
	}
	for _, name := range attributes {
		i := Encode(record())
		delete(i, name)
		if _, err := Decode(i); err == nil || !strings.Contains(err.Error(), "attribute "+name) {
			t.Errorf("without %s: %v", name, err)
		}
		i[name] = &types.AttributeValueMemberNULL{Value: true}
		if _, err := Decode(i); err == nil || !strings.Contains(err.Error(), "attribute "+name) {
			t.Errorf("with null %s: %v", name, err)
		}
	}
}

// TestNewID: ids are in the form that is checked, and differ where the bytes do.
func TestNewID(t *testing.T) {
	seen := map[string]bool{}
	for i := range 128 {
		var b [16]byte
		b[i/8] = 1 << (i % 8)
		id := NewID(b)
		if err := CheckID(id); err != nil || len(id) != 26 || seen[id] {
			t.Errorf("%x: %q, %v", b, id, err)
		}
		seen[id] = true
	}
	for _, id := range []string{"", testID + "a", testID[:25] + "1", testID[:25] + "=", "\n" + testID[1:], testID[:24] + "\na"} {
		if err := CheckID(id); err == nil {
			t.Errorf("%q is taken", id)
		}
	}
}

// TestCopies: a copy comes back as the record, under its own key alone.
func TestCopies(t *testing.T) {
	r := record()
	const key = "deks/74aaaaaaaaaaaaaaaaaaaaaaae/000000000005-kek-0002-adbf45b08ad6468a.json"
	const body = `{"format":1,"dek_id":"74aaaaaaaaaaaaaaaaaaaaaaae","wrapped_dek":"d3JhcHBlZA==","kek_id":"kek-0002","kek_epoch":5,"born_epoch":3,` +
		`"context":{"a \u003cb\u003e":"ä\u2028","table":"orders"},"created_at":"2026-04-01T02:03:04Z"}`
	if got := CopyKey(r); got != key {
		t.Errorf("key %s, want %s", got, key)
	}
	if got := string(EncodeCopy(r)); got != body {
		t.Errorf("copy %s", got)
	}
	got, err := DecodeCopy(key, []byte(body))
	if d := cmp.Diff(r, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	bare := r
	bare.Context = nil
	if got, err := DecodeCopy(CopyKey(bare), EncodeCopy(bare)); err != nil || got.Context == nil || len(got.Context) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	n, err := ParseCopyKey(key)
	if want := (CopyName{DEKID: testID, KEKID: "kek-0002", KEKEpoch: 5, Sum: "adbf45b08ad6468a"}); n != want || err != nil || !strings.HasPrefix(key, CopiesOf(testID)) {
		t.Errorf("%+v, %v", n, err)
	}
	another := r
	another.WrappedDEK = []byte("wrapped again")
	for name, c := range map[string]struct{ key, body, says string }{
		"key of another version": {CopyKey(another), body, "it is the copy of"},
		"not a copy's key":       {"deks/x.json", body, "not the key of a copy"},
		"epoch 0":                {strings.Replace(key, "000000000005", "000000000000", 1), body, "0 is not an epoch"},
		"id not canonical":       {strings.Replace(key, "aae/", "aaf/", 1), body, "not the id"},
		"another format":         {key, strings.Replace(body, `"format":1`, `"format":2`, 1), "format is 2"},
		"unknown field":          {key, strings.Replace(body, `"format"`, `"more":1,"format"`, 1), `"more"`},
		"field in capitals":      {key, strings.Replace(body, `"kek_id"`, `"KEK_ID"`, 1), "KEK_ID"},
		"twice":                  {key, strings.Replace(body, `"format"`, `"format":1,"format"`, 1), "twice"},
		"not base64":             {key, strings.Replace(body, `d3JhcHBlZA==`, `d3JhcHBlZA=`, 1), "wrapped_dek"},
		"loose base64":           {key, strings.Replace(body, `d3JhcHBlZA==`, `d3JhcHBlZB==`, 1), "wrapped_dek"},
		"no context":             {key, strings.Replace(body, `"context":{"a \u003cb\u003e":"ä\u2028","table":"orders"},`, "", 1), "context is missing"},
		"a reserved key":         {key, strings.Replace(body, `"table":"orders"`, `"matter:x":"orders"`, 1), "reserved"},
		"another time":           {key, strings.Replace(body, `04Z`, `04.5Z`, 1), "created_at: "},
		"id and epoch":           {strings.Replace(strings.Replace(key, "aae/", "aaf/", 1), "000000000005", "000000000000", 1), body, "not the id"},
		"more behind":            {key, body + "{}", "follows"},
		"empty":                  {key, "", "EOF"},
	} {
		if r, err := DecodeCopy(c.key, []byte(c.body)); err == nil || !strings.Contains(err.Error(), c.says) || !cmp.Equal(r, Record{}) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, r, err, c.says)
		}
	}
}

// TestCheckBounds: the epochs that a copy's key can name are those that a record may have.
func TestCheckBounds(t *testing.T) {
	r := record()
	r.KEKEpoch, r.BornEpoch = maxEpoch, maxEpoch
	if err := Check(r); err != nil {
		t.Error(err)
	}
	if _, err := ParseCopyKey(CopyKey(r)); err != nil {
		t.Error(err)
	}
	r.KEKEpoch, r.BornEpoch = 1, 1
	r.WrappedDEK = make([]byte, maxWrapped)
	r.CreatedAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	if err := Check(r); err != nil {
		t.Error(err)
	}
	if _, err := ParseCopyKey(CopyKey(r)); err != nil {
		t.Error(err)
	}
	r.CreatedAt = r.CreatedAt.Add(time.Second)
	if err := Check(r); err == nil {
		t.Error("a year of five digits is taken")
	}
	r.CreatedAt = record().CreatedAt.Add(time.Millisecond)
	if err := Check(r); err == nil {
		t.Error("a time with milliseconds is taken")
	}
	r.CreatedAt = time.Time{}
	if err := Check(r); err == nil {
		t.Error("no time is taken")
	}
}

func FuzzDecodeCopy(f *testing.F) {
	f.Add(CopyKey(record()), EncodeCopy(record()))
	f.Add("deks/x", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, body []byte) {
		r, err := DecodeCopy(key, body)
		if err != nil {
			return
		}
		again, err := DecodeCopy(CopyKey(r), EncodeCopy(r))
		if err != nil || !cmp.Equal(r, again) || CopyKey(r) != key {
			t.Errorf("%+v comes back as %+v, %v", r, again, err)
		}
		stored, err := Decode(Encode(r))
		if err != nil || !cmp.Equal(r, stored) {
			t.Errorf("%+v is stored as %+v, %v", r, stored, err)
		}
	})
}

// tables are a key table and a control table in memory, with an open shard of the fence for
// records of both KEKs.
type tables struct {
	*memddb.DB
	t             *testing.T
	keys, control string
}

func newTables(t *testing.T) tables {
	t.Helper()
	w := tables{DB: memddb.New(), t: t}
	w.keys = ddbtest.Table(t, w.DB, ddbtest.Key{Name: AttrPK, Type: types.ScalarAttributeTypeS})
	w.control = ddbtest.ControlTable(t, w.DB)
	w.fence("kek-0002", controltable.Open)
	return w
}

func (w tables) fence(id string, state string) {
	w.t.Helper()
	fence := controltable.EncodeFence(PKFence, "kek-0002", 1, state)
	if pk := attr.Text(fence["pk"]); pk != "DEKFENCE#"+id || attr.Text(fence["sk"]) != "01" {
		w.t.Fatalf("fence %v", fence)
	}
	if _, err := w.PutItem(w.t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: fence}); err != nil {
		w.t.Fatal(err)
	}
}

func (w tables) send(items []types.TransactWriteItem) error {
	_, err := w.TransactWriteItems(w.t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: items})
	return err
}

func (w tables) read() attr.Item {
	w.t.Helper()
	out, err := w.GetItem(w.t.Context(), &dynamodb.GetItemInput{TableName: &w.keys, Key: Key(testID), ConsistentRead: aws.Bool(true)})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.Item
}

// TestCreate: a record is created once, and only while the fence for records is open; the
// fence for rows does not count.
func TestCreate(t *testing.T) {
	w := newTables(t)
	w.fence("kek-0002", controltable.Sealed)
	rows := controltable.EncodeFence(controltable.PKFence, "kek-0002", 1, controltable.Open)
	if _, err := w.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: rows}); err != nil {
		t.Fatal(err)
	}
	create := func(r Record, shard int) []controltable.Reason {
		return controltable.Reasons(w.send(CreateItems(w.keys, w.control, r, shard)))
	}
	sealed := []controltable.Reason{controltable.Innocent, controltable.Condition}
	if got := create(record(), 1); !cmp.Equal(got, sealed) || w.read() != nil {
		t.Errorf("under a sealed fence: %v, %v", got, w.read())
	}
	w.fence("kek-0002", controltable.Open)
	if got := create(record(), 2); !cmp.Equal(got, sealed) || w.read() != nil {
		t.Errorf("under a shard that is not there: %v, %v", got, w.read())
	}
	if got := create(record(), 1); got != nil {
		t.Errorf("%v", got)
	}
	another := record()
	another.WrappedDEK = []byte("another")
	if got := create(another, 1); !cmp.Equal(got, []controltable.Reason{controltable.Condition, controltable.Innocent}) {
		t.Errorf("over a record: %v", got)
	}
	if d := cmp.Diff(Encode(record()), w.read(), ignoreSDK); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var cancelled *types.TransactionCanceledException // a caller whose answer was lost finds its own record in it
	if err := w.send(CreateItems(w.keys, w.control, record(), 1)); !errors.As(err, &cancelled) {
		t.Fatal(err)
	}
	if d := cmp.Diff(Encode(record()), cancelled.CancellationReasons[0].Item, ignoreSDK); d != "" {
		t.Errorf("what is stored (-want +got):\n%s", d)
	}
}

// TestRewrap: a rewrap changes the wrapping of the record that was read and nothing else,
// and creates none.
func TestRewrap(t *testing.T) {
	w := newTables(t)
	old, with := record(), Record{DEKID: "other", WrappedDEK: []byte("rewrapped"), KEKID: "kek-0003", KEKEpoch: 6, BornEpoch: 6}
	rewrap := func(old Record) bool {
		t.Helper()
		_, err := w.UpdateItem(t.Context(), RewrapUpdate(w.keys, old, with))
		if failed := (*types.ConditionalCheckFailedException)(nil); err != nil && !errors.As(err, &failed) {
			t.Fatal(err)
		}
		return err == nil
	}
	if rewrap(old) || w.read() != nil {
		t.Error("a rewrap created a record")
	}
	if err := w.send(CreateItems(w.keys, w.control, old, 1)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Record){
		"other bytes": func(r *Record) { r.WrappedDEK = bytes.ToUpper(r.WrappedDEK) },
		"another KEK": func(r *Record) { r.KEKID = "kek-0001" },
	} {
		stale := old
		change(&stale)
		if rewrap(stale) {
			t.Errorf("%s: rewrapped", name)
		}
	}
	if !rewrap(old) || rewrap(old) {
		t.Error("it is not rewrapped once")
	}
	want := maps.Clone(Encode(old))
	want["wrapped_dek"], want["kek_id"], want["kek_epoch"] = attr.Blob([]byte("rewrapped")), attr.Str("kek-0003"), attr.Num(6)
	if d := cmp.Diff(want, w.read(), ignoreSDK); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestReplace: a record whose KEK is retired is replaced while the fence of the other KEK is
// open, and if it still is what was read.
func TestReplace(t *testing.T) {
	w := newTables(t)
	old, with := record(), record()
	with.WrappedDEK, with.KEKEpoch = []byte("rewrapped"), 7
	if err := w.send(CreateItems(w.keys, w.control, old, 1)); err != nil {
		t.Fatal(err)
	}
	replace := func(shard int) []controltable.Reason {
		return controltable.Reasons(w.send(ReplaceItems(w.keys, w.control, old, with, shard)))
	}
	if got := replace(2); !cmp.Equal(got, []controltable.Reason{controltable.Innocent, controltable.Condition}) {
		t.Errorf("under a fence that is shut: %v", got)
	}
	if got := replace(1); got != nil {
		t.Errorf("%v", got)
	}
	if got := replace(1); !cmp.Equal(got, []controltable.Reason{controltable.Condition, controltable.Innocent}) {
		t.Errorf("again: %v", got)
	}
	if r, err := Decode(w.read()); err != nil || string(r.WrappedDEK) != "rewrapped" || r.KEKEpoch != 7 || r.BornEpoch != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// bucket answers PUTs with errors in turn, then takes them.
type bucket struct {
	answers []error
	puts    []*s3.PutObjectInput
	bodies  []string
}

func (b *bucket) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	body, _ := io.ReadAll(in.Body)
	b.puts, b.bodies = append(b.puts, in), append(b.bodies, string(body))
	if len(b.answers) == 0 {
		return &s3.PutObjectOutput{}, nil
	}
	err := b.answers[0]
	b.answers = b.answers[1:]
	return nil, err
}

// TestPutCopy: a copy is written once; that it is there already is as good, and a PUT that
// met another one is repeated.
func TestPutCopy(t *testing.T) {
	exists, meets := &smithy.GenericAPIError{Code: "PreconditionFailed"}, &smithy.GenericAPIError{Code: "ConditionalRequestConflict"}
	denied, lost := &smithy.GenericAPIError{Code: "AccessDenied"}, errors.New("connection lost")
	for name, c := range map[string]struct {
		answers []error
		puts    int
		want    error
	}{
		"written":         {nil, 1, nil},
		"there already":   {[]error{exists}, 1, nil},
		"met another":     {[]error{meets, meets, exists}, 3, nil},
		"met one forever": {[]error{meets, meets, meets, meets, meets}, 5, meets},
		"denied":          {[]error{denied}, 1, denied},
		"lost":            {[]error{lost}, 1, lost},
		"met one, denied": {[]error{meets, denied}, 2, denied},
	} {
		b := &bucket{answers: c.answers}
		err := PutCopy(t.Context(), b, "audit", record())
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || len(b.puts) != c.puts {
			t.Errorf("%s: %d PUTs, %v", name, len(b.puts), err)
		}
		for i, in := range b.puts {
			sum := sha256.Sum256(EncodeCopy(record()))
			if aws.ToString(in.ContentType) != "application/json" || aws.ToString(in.ChecksumSHA256) != base64.StdEncoding.EncodeToString(sum[:]) {
				t.Errorf("%s: type %q, checksum %q", name, aws.ToString(in.ContentType), aws.ToString(in.ChecksumSHA256))
			}
			if *in.Bucket != "audit" || *in.Key != CopyKey(record()) || *in.IfNoneMatch != "*" || b.bodies[i] != string(EncodeCopy(record())) || in.ChecksumAlgorithm != "SHA256" {
				t.Errorf("%s: %+v", name, in)
			}
		}
	}
}
