package ddb

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/itemsize"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestCursorValues: a key attribute of a cursor is of the table's type, and of no other.
func TestCursorValues(t *testing.T) {
	for name, c := range map[string]struct {
		v    cursorValue
		kind types.ScalarAttributeType
		ok   bool
	}{
		"S":               {cursorValue{S: "a"}, "S", true},
		"N":               {cursorValue{N: "-1.5E+3"}, "N", true},
		"B":               {cursorValue{B: []byte{0}}, "B", true},
		"no S":            {cursorValue{}, "S", false},
		"no N":            {cursorValue{}, "N", false},
		"no B":            {cursorValue{}, "B", false},
		"N that is none":  {cursorValue{N: "1e"}, "N", false},
		"S and N":         {cursorValue{S: "a", N: "1"}, "S", false},
		"S and B":         {cursorValue{S: "a", B: []byte{1}}, "S", false},
		"N and S":         {cursorValue{N: "1", S: "a"}, "N", false},
		"N and B":         {cursorValue{N: "1", B: []byte{1}}, "N", false},
		"B and S":         {cursorValue{B: []byte{1}, S: "a"}, "B", false},
		"B and N":         {cursorValue{B: []byte{1}, N: "1"}, "B", false},
		"an unknown type": {cursorValue{S: "a"}, "X", false},
	} {
		if v, ok := c.v.attribute(c.kind); ok != c.ok || ok && typeOf(v) != string(c.kind) {
			t.Errorf("%s: %v, %t", name, v, ok)
		}
	}
}

// TestContended: a snapshot is taken again when others were in the way, and for no other
// reason; not for ever, and not past the end of its context.
func TestContended(t *testing.T) {
	for name, c := range map[string]struct {
		codes []string
		want  bool
	}{
		"none":              {nil, true},
		"without reasons":   {[]string{"", "None"}, true},
		"conflict":          {[]string{"None", "TransactionConflict"}, true},
		"throttled":         {[]string{"ThrottlingError"}, true},
		"too much":          {[]string{"ProvisionedThroughputExceeded"}, true},
		"condition":         {[]string{"ConditionalCheckFailed"}, false},
		"invalid":           {[]string{"TransactionConflict", "ValidationError"}, false},
		"invalid, conflict": {[]string{"ValidationError", "TransactionConflict"}, false},
	} {
		e := &types.TransactionCanceledException{}
		for _, code := range c.codes {
			e.CancellationReasons = append(e.CancellationReasons, types.CancellationReason{Code: aws.String(code)})
		}
		if contended(e) != c.want {
			t.Errorf("%s: contended %t", name, !c.want)
		}
		synctest.Test(t, func(t *testing.T) {
			api := &refusing{err: e}
			_, err := New(api, "t", "c", time.Now).Load(t.Context(), "")
			tries := 1
			if c.want {
				tries = 10
			}
			if !errors.Is(err, e) || api.gets != tries || strings.Contains(err.Error(), "gave up after 10 tries") != c.want {
				t.Errorf("%s: %v after %d tries, want %d", name, err, api.gets, tries)
			}
			if !c.want {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Millisecond)
			defer cancel()
			if _, err := New(api, "t", "c", time.Now).Load(ctx, ""); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, e) {
				t.Errorf("%s: %v, want the deadline and what went before", name, err)
			}
		})
	}
}

// refusing answers every transaction with one error.
type refusing struct {
	API
	err    error
	gets   int
	writes []*dynamodb.TransactWriteItemsInput
}

func (r *refusing) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{}, nil
}

func (r *refusing) TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	r.gets++
	return nil, r.err
}

func (r *refusing) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	r.writes = append(r.writes, in)
	return nil, r.err
}

// TestTransactionRefused: a transaction that is in another's way is sent again, another
// refusal is not, and neither is a conflict.
func TestTransactionRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := errors.New("other")
		for name, c := range map[string]struct {
			err   error
			tries int
		}{
			"busy": {&types.TransactionConflictException{}, 10}, "other": {other, 1}, "made": {nil, 1},
		} {
			api := &refusing{err: c.err}
			err := New(api, "t", "c", time.Now).Record(t.Context(), audit.Event{ID: "e", Type: "e"})
			if !errors.Is(err, c.err) || len(api.writes) != c.tries || err != nil && !strings.Contains(err.Error(), "dynamodb TransactWriteItems") {
				t.Errorf("%s: %v after %d tries", name, err, len(api.writes))
			}
		}
	})
	more := &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
		{}, {Code: aws.String("ConditionalCheckFailed")},
	}}
	if again, err := cancellation([]action{{what: "A"}}, more); again || !errors.Is(err, kek.ErrConflict) || !strings.Contains(err.Error(), "item") {
		t.Errorf("more reasons than items: %t, %v", again, err)
	}
	for _, code := range []string{"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"} {
		e := &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{{Code: aws.String(code)}}}
		if again, err := cancellation([]action{{what: "A"}}, e); !again || errors.Is(err, kek.ErrConflict) {
			t.Errorf("%s: %t, %v", code, again, err)
		}
	}
}

// TestLocks: what each operation on the lock asks and writes.
func TestLocks(t *testing.T) {
	s := New(nil, "t", "c", time.Now)
	r := &kek.RotationMove{After: kek.Rotation{ID: "r"}}
	show := func(actions []action) string {
		if len(actions) == 0 {
			return ""
		}
		a := actions[0]
		switch w := a.write; {
		case w.Put != nil:
			return a.what + " put " + *w.Put.ConditionExpression + " " + attr.Text(w.Put.Item["rotation_id"]) + attr.Text(w.Put.Item["pk"])
		case w.Delete != nil:
			return a.what + " delete " + *w.Delete.ConditionExpression + " " + attr.Text(w.Delete.ExpressionAttributeValues[":rotation_id"]) + attr.Text(w.Delete.Key["pk"])
		default:
			return a.what + " check " + *w.ConditionCheck.ConditionExpression + " " + attr.Text(w.ConditionCheck.ExpressionAttributeValues[":rotation_id"]) + attr.Text(w.ConditionCheck.Key["pk"])
		}
	}
	for op, c := range map[kek.LockOp]struct {
		want string
		bare bool // needs no rotation
	}{
		kek.LockIgnore:  {"", true},
		kek.LockFree:    {"LOCK check attribute_not_exists(#pk) LOCK", true},
		kek.LockHold:    {"LOCK check #rotation_id = :rotation_id rLOCK", false},
		kek.LockTake:    {"LOCK put attribute_not_exists(#pk) OR #rotation_id = :rotation_id rLOCK", false},
		kek.LockRelease: {"LOCK delete #rotation_id = :rotation_id rLOCK", false},
	} {
		got, err := s.lock(kek.Change{Lock: op, Rotation: r})
		if err != nil || show(got) != c.want || len(got) > 1 {
			t.Errorf("%v: %q, %v, want %q", op, show(got), err, c.want)
		}
		got, err = s.lock(kek.Change{Lock: op})
		if (err == nil) != c.bare || !c.bare && (got != nil || !strings.Contains(err.Error(), "names no rotation")) {
			t.Errorf("%v without a rotation: %q, %v", op, show(got), err)
		}
		if _, err := s.changes(kek.Change{Lock: op}); (err == nil) != c.bare {
			t.Errorf("%v without a rotation: %v", op, err)
		}
		if c.bare {
			continue
		}
		if err := s.Apply(t.Context(), kek.Change{Lock: op, Event: "x"}, audit.Event{}); err == nil || !strings.Contains(err.Error(), "apply x") {
			t.Errorf("%v without a rotation: %v", op, err)
		}
	}
	if got, err := s.lock(kek.Change{Lock: 99, Rotation: r}); err == nil || got != nil || !strings.Contains(err.Error(), "unknown lock operation 99") {
		t.Errorf("%q, %v", show(got), err)
	}
}

// TestAttributes: what is empty is not stored, and what is read of a damaged item is the
// first fault.
func TestAttributes(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.FixedZone("", 3600))
	i := attr.Set(item{}, "empty", "", "text", "t", "never", time.Time{}, "at", at, "zero", int64(0), "none", []byte(nil), "bytes", []byte("b"))
	want := map[string]string{"text": "S t", "at": "S 2026-04-01T01:00:00.000Z", "zero": "N 0", "bytes": `B "b"`}
	if d := cmp.Diff(want, texts(i)); d != "" {
		t.Errorf("item (-want +got):\n%s", d)
	}
	r := attr.Reader{Item: item{"a": attr.Num(1), "b": attr.Num(2), "c": attr.Str("x"), "d": &types.AttributeValueMemberN{Value: "x"}}}
	_, _, _ = r.Str("a"), r.Str("b"), r.Num("c")
	if _ = r.Num("d"); r.Err == nil || !strings.HasPrefix(r.Err.Error(), "attribute a ") {
		t.Errorf("%v, want the first fault", r.Err)
	}
	r = attr.Reader{Item: item{"d": &types.AttributeValueMemberN{Value: "x"}, "t": attr.Str("yesterday"), "j": attr.Str("{")}}
	var into any
	_ = r.Num("d")
	_ = r.Time("t")
	r.JSON("j", &into)
	if r.Err == nil || !strings.HasPrefix(r.Err.Error(), "attribute d:") {
		t.Errorf("%v, want the first fault", r.Err)
	}
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	if later(early, late, "b", "a") >= 0 || later(late, early, "a", "b") <= 0 || later(early, early, "a", "b") >= 0 || later(early, early, "b", "a") <= 0 || later(early, early, "a", "a") != 0 {
		t.Error("later")
	}
	for name, v := range map[string]types.AttributeValue{"nil": nil, "text": attr.Str("7"), "fraction": &types.AttributeValueMemberN{Value: "7.5"}, "too large": &types.AttributeValueMemberN{Value: "9223372036854775808"}} {
		if integer(v) != 0 || isInteger(v) != (v == nil) {
			t.Errorf("%s: %d, %t", name, integer(v), isInteger(v))
		}
	}
	minimal := map[string][]string{
		"rotation":   {"pk", "sk", "attempt", "epoch", "segments", "rev"},
		"checkpoint": {"pk", "sk", "rev", "scanned", "rewrapped", "other", "declared", "unwrapped", "quarantined", "done"},
	}
	for name, i := range map[string]item{"rotation": encodeRotation(kek.Rotation{ID: "r"}), "checkpoint": encodeCheckpoint(rotation.Checkpoint{})} {
		for _, a := range minimal[name] {
			if i[a] == nil {
				t.Errorf("%s lacks %s", name, a)
			}
		}
		if len(i) != len(minimal[name]) {
			t.Errorf("an empty %s has %v", name, texts(i))
		}
	}
}

// TestNamed: the KEKs that a view names, each once, in order.
func TestNamed(t *testing.T) {
	for _, c := range []struct {
		v    kek.View
		want []kek.ID
	}{
		{kek.View{}, nil},
		{kek.View{Pointer: &kek.Pointer{KEKID: "p"}}, []kek.ID{"p"}},
		{kek.View{Rotation: &kek.Rotation{OldKEK: "o", NewKEK: "n", Olds: []kek.ID{"o", "x"}}}, []kek.ID{"o", "n", "x"}},
		{kek.View{Pointer: &kek.Pointer{KEKID: "n"}, Rotation: &kek.Rotation{OldKEK: "o", NewKEK: "n"}}, []kek.ID{"n", "o"}},
		{kek.View{Pointer: &kek.Pointer{}, Rotation: &kek.Rotation{OldKEK: "o"}}, []kek.ID{"o"}},
	} {
		if d := cmp.Diff(c.want, named(c.v)); d != "" {
			t.Errorf("%+v (-want +got):\n%s", c.v, d)
		}
	}
	damaged := &types.AttributeValueMemberNULL{Value: true}
	for pk, attribute := range map[string]string{pkPointer: "epoch", pkLock: "rotation_id", pkRotation + "r": "rev", pkKEK + "k": "state"} {
		if _, err := decodeView([]item{{"pk": attr.Str(pk), attribute: damaged}}); err == nil || !strings.Contains(err.Error(), attribute) {
			t.Errorf("%s with a damaged %s: %v", pk, attribute, err)
		}
	}
	if v, err := decodeView([]item{{"pk": attr.Str("MARK"), "state": damaged}}); err != nil || len(v.KEKs) > 0 {
		t.Errorf("another item: %+v, %v", v, err)
	}
}

// TestSegmentsOfTable: a table scans in as many parts as are asked for, at least one.
func TestSegmentsOfTable(t *testing.T) {
	s, api, _ := backupSource(t, "")
	for n, want := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 2, 40: 40} {
		if got := s.Segments(n); got != want {
			t.Errorf("%d: %d", n, got)
		}
	}
	for limit, want := range map[int]int32{-1: 500, 0: 500, 1: 1, 7: 7} {
		api.scans = nil
		page, err := s.Scan(t.Context(), rotation.ScanRequest{Segment: 2, Total: 5, Limit: limit})
		if err != nil || len(page.Rows) != 1 || page.Rows[0].Ciphertext != nil {
			t.Fatalf("%+v, %v", page, err)
		}
		in := api.scans[0]
		if *in.Limit != want || *in.Segment != 2 || *in.TotalSegments != 5 || !*in.ConsistentRead || *in.TableName != "orders" || in.ExclusiveStartKey != nil {
			t.Errorf("limit %d: %+v", limit, in)
		}
	}
	for _, whole := range []bool{true, false} {
		api.scans = nil
		if _, err := s.Scan(t.Context(), rotation.ScanRequest{Total: 1, Whole: whole}); err != nil {
			t.Fatal(err)
		}
		if in := api.scans[0]; (in.ProjectionExpression == nil) != whole || (len(in.ExpressionAttributeNames) == 0) != whole {
			t.Errorf("whole %t: %+v", whole, in)
		}
	}
}

// TestProjection: a scan reads each attribute that it needs once, and no others.
func TestProjection(t *testing.T) {
	s, _, _ := backupSource(t, "")
	s.cfg.Bind = map[string]string{"owner": "$user", "literal": "x", "again": "$id"}
	s.cfg.Other = &OtherItems{Attribute: "kind", Values: []string{"x"}}
	keys, err := s.schema(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expr, names := s.projection(keys)
	got := map[string]bool{}
	for n := range strings.SplitSeq(*expr, ", ") {
		if names[n] == "" || got[names[n]] {
			t.Errorf("%s is %q", n, names[n])
		}
		got[names[n]] = true
	}
	want := map[string]bool{"id": true, "sk": true, "key": true, "dek": true, "data": true, "kek_epoch": true, "version": true, "user": true, "kind": true}
	if d := cmp.Diff(want, got); d != "" || len(names) != len(want) {
		t.Errorf("attributes (-want +got):\n%s", d)
	}
}

// TestRereadLarge: what is read of an item is not all of it, so its size is not judged.
func TestRereadLarge(t *testing.T) {
	s, api, i := backupSource(t, "")
	b, err := s.ReadBackup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	api.item = maps.Clone(i)
	api.item["data"] = attr.Blob(bytes.Repeat([]byte("x"), 400<<10))
	for _, payload := range []bool{false, true} {
		row, ok, err := s.Reread(t.Context(), b.Row, payload)
		if err != nil || !ok || row.Defect != "" || (row.Ciphertext != nil) != payload {
			t.Errorf("%q, %t, %v", row.Defect, ok, err)
		}
	}
	if in := api.get; !aws.ToBool(in.ConsistentRead) || aws.ToString(in.ProjectionExpression) == "" || *in.TableName != "orders" {
		t.Errorf("%+v", in)
	}
}

// TestRoomBoundary: an item has room if a rewrap, whatever KEK id, epoch, version and
// wrapped bytes it writes, fits.
func TestRoomBoundary(t *testing.T) {
	for _, version := range []int64{-1, 199, 9999998} { // -1: the table has none; the next of the others have other sizes
		s, _, i := backupSource(t, "")
		delete(i, "version")
		after := maps.Clone(i)
		after["key"], after["kek_epoch"] = attr.Str(strings.Repeat("x", 36)), attr.Num(math.MaxInt64)
		if version < 0 {
			s.cfg.Version = ""
		} else {
			i["version"], after["version"] = attr.Num(version), attr.Num(version+1)
		}
		note := len("stays") + itemsize.Max - 128 - itemsize.UpdateCost(5, 0) - itemsize.Of(after) // the longest that fits
		i["note"] = attr.Str(strings.Repeat("x", note))
		if f := (rowReader{s.cfg}).checkRoom(i, true); f != nil {
			t.Errorf("version %d, %d bytes: %+v", version, note, f)
		}
		i["note"] = attr.Str(strings.Repeat("x", note+1))
		if f := (rowReader{s.cfg}).checkRoom(i, true); f == nil || f.kind != rotation.NoRoom || f.field != "table" || !strings.Contains(f.text, "can have 409601 after a rewrap") {
			t.Errorf("version %d, a byte more: %+v", version, f)
		}
		if f := (rowReader{s.cfg}).checkRoom(i, false); f != nil {
			t.Errorf("version %d, an item that was not read whole: %+v", version, f)
		}
	}
}

// TestAnchorIntent: an intent that cannot be read is told, and names its item.
func TestAnchorIntent(t *testing.T) {
	i := attr.Set(controltable.Key(pkAnchor, noSK), "rev", int64(1), "intent", "{")
	if st, err := decodeAnchor(i); err == nil || !strings.Contains(err.Error(), "ANCHOR: it is damaged: intent") || st.Intent != nil {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestDamagedRecords: a record of the outbox that is not what was appended is an
// incident that says which and why.
func TestDamagedRecords(t *testing.T) {
	e, err := audit.Next("c", audit.Genesis("c"), time.Unix(0, 0), audit.Event{ID: "e", Type: "e"})
	if err != nil {
		t.Fatal(err)
	}
	good := attr.Set(controltable.Key(pkAudit, auditSK(1)), "record", e.Bytes, "hash", e.Hash)
	if got, err := decodeEntry(good); err != nil || got.Hash != e.Hash {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		attribute string
		v         types.AttributeValue
		why       string
	}{
		"another hash":  {"hash", attr.Str("x"), "not the record that was appended"},
		"another place": {"sk", attr.Str(auditSK(2)), "not the record that was appended"},
		"no record":     {"record", nil, ""},
		"a text":        {"record", attr.Str("x"), "attribute record is"},
		"a number":      {"hash", attr.Num(1), "attribute hash is"},
		"no JSON":       {"record", attr.Blob([]byte("{")), ""},
	} {
		i := maps.Clone(good)
		if i[c.attribute] = c.v; c.v == nil {
			delete(i, c.attribute)
		}
		got, err := decodeEntry(i)
		var typed *rotation.Error
		if !errors.As(err, &typed) || typed.Kind != rotation.AuditTampered || !strings.HasPrefix(typed.Field, "AUDIT/0000") || typed.Err == nil || typed.Next == "" ||
			typed.Msg != "the outbox holds a damaged record" || !strings.Contains(typed.Err.Error(), c.why) || got.Hash != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// endless is a table whose every page has another behind it, and may fail.
type endless struct {
	oneItem
	page    int // items
	failsAt int // which scan; 0: none
}

func (e *endless) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	out, err := e.oneItem.Scan(ctx, in, o...)
	if len(e.scans) == e.failsAt {
		return nil, errEndless
	}
	out.Items = slices.Repeat(out.Items, e.page)
	out.LastEvaluatedKey = controltable.Key("a", "b")
	return out, err
}

var errEndless = errors.New("no answer")

// TestSampleSize: Check looks at a thousand items and no more, page by page.
func TestSampleSize(t *testing.T) {
	for page, scans := range map[int]int{1000: 1, 999: 2, 500: 2, 400: 3} {
		s, api, _ := backupSource(t, "")
		e := &endless{oneItem: *api, page: page}
		s.client = e
		if _, err := s.Check(t.Context()); err != nil || len(e.scans) != scans {
			t.Errorf("pages of %d: %v after %d scans, want %d", page, err, len(e.scans), scans)
		}
		for n, in := range e.scans {
			if *in.Limit != 1000 || *in.TotalSegments != 1 || *in.Segment != 0 || (in.ExclusiveStartKey != nil) != (n > 0) {
				t.Errorf("scan %d: %+v", n, in)
			}
		}
	}
	s, api, _ := backupSource(t, "")
	s.client = &endless{oneItem: *api, page: 10, failsAt: 2}
	if _, err := s.Check(t.Context()); !errors.Is(err, errEndless) {
		t.Errorf("the second page fails: %v", err)
	}
}

// TestSampleBound: each attribute that rows are bound to is looked for, whichever it is.
func TestSampleBound(t *testing.T) {
	for _, missing := range []string{"a", "b", "c", "z"} {
		s, api, i := backupSource(t, "")
		s.cfg.Context = map[string]string{"a": "$a", "b": "$b", "lit": "x"}
		s.cfg.Bind = map[string]string{"c": "$c", "z": "$z"}
		for _, name := range []string{"a", "b", "c", "z"} {
			if name != missing {
				i[name] = attr.Str("x")
			}
		}
		api.item = i
		field := "context"
		if missing > "b" {
			field = "bind"
		}
		_, err := s.Check(t.Context())
		var typed *rotation.Error
		if !errors.As(err, &typed) || typed.Kind != rotation.SourceMisconfigured || typed.Field != "sources[orders]."+field || !strings.Contains(typed.Msg, `"`+missing+`"`) {
			t.Errorf("no row has %s: %v", missing, err)
		}
	}
}

// TestLabels: a row that names its KEK in another type, or has no wrapped bytes, is not
// labelled.
func TestLabels(t *testing.T) {
	s, _, _ := backupSource(t, "")
	for name, h := range map[string]handle{
		"a KEK of another type": {kek: attr.Num(1), held: []byte("x")}, "no wrapped bytes": {kek: attr.Str("k")}, "neither": {},
	} {
		if ok, err := s.Label(t.Context(), rotation.Row{ID: "a", Handle: h}, "k"); ok || !errors.Is(err, errDefect) || !strings.Contains(err.Error(), "label a") {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
	}
}

// TestDefinitions: a field that is not known spoils a definition that is whole without
// it.
func TestDefinitions(t *testing.T) {
	good := SourceConfig{Table: "orders", KEKID: "key", WrappedDEK: "dek"}
	def := good.Source()
	if _, err := OpenTable(nil, def); err != nil {
		t.Fatal(err)
	}
	def.Definition = strings.Replace(def.Definition, "{", `{"tabel":"x",`, 1)
	if _, err := OpenTable(nil, def); err == nil {
		t.Error("an unknown field is passed over")
	}
	named := good
	named.Name = "sales"
	if s, err := OpenTable(nil, named.Source()); err != nil || s.Name() != "sales" {
		t.Errorf("under the name that it says itself: %v", err)
	}
}

// fixed answers every read of an item with one, and counts queries.
type fixed struct {
	API
	item    item
	items   []item
	queries int
}

func (f *fixed) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{Item: f.item}, nil
}

func (f *fixed) Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	f.queries++
	return &dynamodb.QueryOutput{Items: f.items}, nil
}

// TestOutboxHead: a chain of another name is an error of the configuration; where all is
// published nothing is asked for.
func TestOutboxHead(t *testing.T) {
	api := &fixed{item: item{"chain": attr.Str("theirs"), "seq": attr.Num(3), "hash": attr.Str("h"), "published_seq": attr.Num(3)}}
	_, _, err := New(api, "t", "ours", time.Now).Head(t.Context())
	var typed *rotation.Error
	if !errors.As(err, &typed) || typed.Kind != rotation.Misconfigured || typed.Field != "AUDIT_HEAD.chain" || !strings.Contains(typed.Msg, `"theirs"`) || typed.Next == "" {
		t.Errorf("%v", err)
	}
	s := New(api, "t", "theirs", time.Now)
	for published, queries := range map[int64]int{2: 1, 3: 0, 4: 0} {
		api.queries, api.item["published_seq"] = 0, attr.Num(published)
		if entries, _, err := s.Unpublished(t.Context()); err != nil || len(entries) > 0 || api.queries != queries {
			t.Errorf("%d of 3 are published: %v, %v after %d queries", published, entries, err, api.queries)
		}
	}
	api.item = nil
	if chain, h, err := s.Head(t.Context()); err != nil || chain.Chain != "theirs" || h != audit.Genesis("theirs") {
		t.Errorf("nothing recorded: %v, %+v, %v", chain, h, err)
	}
}

// TestAbsent: what is not there is what was never saved.
func TestAbsent(t *testing.T) {
	s := New(&fixed{}, "t", "c", time.Now)
	for name, load := range map[string]func() (got, want any, err error){
		"announcement": func() (any, any, error) {
			v, err := s.LoadAnnouncement(t.Context(), "l")
			return v, rotation.Announcement{Label: "l"}, err
		},
		"drill": func() (any, any, error) {
			v, err := s.LoadDrill(t.Context(), "d")
			return v, rotation.Drill{Name: "d"}, err
		},
		"approval": func() (any, any, error) {
			v, err := s.LoadApproval(t.Context(), "r")
			return v, rotation.Approval{Rotation: "r"}, err
		},
		"anchor":   func() (any, any, error) { v, err := s.LoadAnchor(t.Context()); return v, rotation.AnchorState{}, err },
		"registry": func() (any, any, error) { v, err := s.registryRev(t.Context()); return v, int64(0), err },
		"health": func() (any, any, error) {
			v, err := s.ListHealth(t.Context(), []string{"d"})
			return v, []rotation.HealthDay(nil), err
		},
		"checkpoint": func() (any, any, error) {
			v, err := s.LoadCheckpoint(t.Context(), "r", "s", "p", 3)
			return v, rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 3}, err
		},
	} {
		got, want, err := load()
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
	}
	listed, err := New(&fixed{items: []item{{"sk": attr.Str("007")}}}, "t", "c", time.Now).ListCheckpoints(t.Context(), "r", "s", "p")
	if err != nil || len(listed) != 1 || listed[0].Segment != 7 || listed[0].Pass != "p" {
		t.Errorf("%+v, %v", listed, err)
	}
	for _, sk := range []string{"x", "p#007", ""} {
		got, err := New(&fixed{items: []item{{"sk": attr.Str(sk)}}}, "t", "c", time.Now).ListCheckpoints(t.Context(), "r", "s", "p")
		if err == nil || got != nil || !strings.Contains(err.Error(), "checkpoint "+sk) {
			t.Errorf("a checkpoint of no segment: %+v, %v", got, err)
		}
	}
}

// TestActionsNamed: every write of a change says what it is of.
func TestActionsNamed(t *testing.T) {
	rev := int64(3)
	for _, c := range []kek.Change{
		{
			Lock: kek.LockTake, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r"}}, Pointer: &kek.PointerMove{After: kek.Pointer{KEKID: "k"}},
			KEKs:     []kek.KEKMove{{After: kek.KEK{ID: "k"}}},
			Registry: &kek.RegistryMove{Put: []kek.Source{{Name: "s"}}, Remove: "t", Forget: "m"}, Shards: 2, Opens: "k", Shuts: "o", Sealed: "p",
		},
		{Lock: kek.LockRelease, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r"}}, Keeps: &kek.Pointer{KEKID: "k"}, AtRegistry: &rev},
	} {
		actions, err := New(nil, "t", "c", time.Now).changes(c)
		if err != nil {
			t.Fatal(err)
		}
		for n, a := range actions {
			if a.what == "" {
				t.Errorf("write %d, %+v, has no name", n, a.write)
			}
		}
	}
}

// TestCursorsRefused: a cursor with anything beside the key is none.
func TestCursorsRefused(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"id":{"S":"a"}}`: true, `{"id":{"S":"a","X":1}}`: false, `{"id":{"S":"a"}}{}`: false, `{"id":{"S":"a"}} x`: false,
		`{"id":{"S":"a"},"n":{"N":"1"}}`: false, `{"id":{"S":1}}`: false, `{"id":{"S":"a","N":1}}`: false, `{}`: false, ``: false,
	} {
		got, err := decodeCursor(base64.RawURLEncoding.EncodeToString([]byte(text)), cursorKeys[0])
		if text == "" {
			continue // the beginning
		}
		if (err == nil) != ok || !ok && (!errors.Is(err, errCursor) || got != nil) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

// TestRowsOfTable: what is a row, what is another item and what is declared, where only
// one attribute tells.
func TestRowsOfTable(t *testing.T) {
	s, api, _ := backupSource(t, "")
	api.item = item{"id": attr.Str("a"), "sk": attr.Num(1), "kind": attr.Str("session")}
	if page, err := s.Scan(t.Context(), rotation.ScanRequest{Total: 1}); err != nil || page.Other != 1 || page.Declared != 0 || len(page.Rows) != 0 {
		t.Errorf("nothing is declared: %+v, %v", page, err)
	}
	s.cfg.Other = &OtherItems{Attribute: "kind", Values: []string{"session"}}
	for name, c := range map[string]struct {
		more item
		row  bool
	}{
		"nothing": {item{}, false}, "a payload": {item{"data": attr.Blob([]byte("x"))}, false}, "a KEK": {item{"key": attr.Str("k")}, true}, "a data key": {item{"dek": attr.Blob([]byte("x"))}, true},
	} {
		api.item = item{"id": attr.Str("a"), "sk": attr.Num(1), "kind": attr.Str("session")}
		maps.Copy(api.item, c.more)
		page, err := s.Scan(t.Context(), rotation.ScanRequest{Total: 1})
		if err != nil || page.Other != 0 || page.Declared+len(page.Rows) != 1 || (len(page.Rows) == 1) != c.row || c.row && page.Rows[0].Defect == "" {
			t.Errorf("declared, with %s: %+v, %v", name, page, err)
		}
	}
	tink, api, _ := backupSource(t, rowschema.FormatTink)
	for size, kind := range map[int]rotation.Defect{0: rotation.NoCiphertext, 1: rotation.Damaged, 3: rotation.Damaged} {
		api.item["data"] = attr.Blob(make([]byte, size))
		page, err := tink.Scan(t.Context(), rotation.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 1 || page.Rows[0].Kind != kind {
			t.Errorf("%d bytes of Tink's: %+v, %v, want %s", size, page, err, kind)
		}
		h := handle{tink: true, held: make([]byte, size), key: item{}}
		if ok, err := tink.Replace(t.Context(), rotation.Row{ID: "a", Handle: h}, rotation.Rewrapped{KEK: "k", WrappedDEK: []byte("w")}); err == nil || ok || !strings.Contains(err.Error(), "replace a") {
			t.Errorf("%d bytes of Tink's: %t, %v", size, ok, err)
		}
	}
	delete(api.item, "data")
	api.item["dek"] = attr.Blob([]byte("x"))
	var typed *rotation.Error
	if _, err := tink.Check(t.Context()); !errors.As(err, &typed) || typed.Field != "sources[orders].ciphertext_attribute" || typed.Kind != rotation.SourceMisconfigured {
		t.Errorf("a table of Tink's in which no row has a payload: %v", err)
	}
}

// keyless is a table whose key is not understood.
type keyless struct{ oneItem }

func (keyless) DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	return &dynamodb.DescribeTableOutput{Table: &types.TableDescription{}}, nil
}

// TestKeyless: a table whose key is not understood is not scanned.
func TestKeyless(t *testing.T) {
	s, _, _ := backupSource(t, "")
	api := &keyless{}
	s.client = api
	if page, err := s.Scan(t.Context(), rotation.ScanRequest{Total: 1}); err == nil || len(api.scans) > 0 || page.Rows != nil {
		t.Errorf("%+v, %v", page, err)
	}
}

// moving is a control table whose pointer names another KEK at every look.
type moving struct {
	API
	looks int
}

func (m *moving) TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	m.looks++
	return &dynamodb.TransactGetItemsOutput{Responses: []types.ItemResponse{{}, {Item: controltable.EncodePointer(kek.Pointer{KEKID: kek.ID(fmt.Sprint(m.looks)), Epoch: 1})}}}, nil
}

// TestLoadMoving: a pointer that moves at every look ends in an error, and no view.
func TestLoadMoving(t *testing.T) {
	m := &moving{}
	v, err := New(m, "t", "c", time.Now).Load(t.Context(), "")
	if err == nil || !strings.Contains(err.Error(), "changed 10 times") || m.looks != 10 || v.Pointer != nil {
		t.Errorf("%+v, %v after %d looks", v, err, m.looks)
	}
}

// counting answers an update with attributes.
type counting struct {
	API
	item item
	put  *dynamodb.TransactWriteItemsInput
}

func (c *counting) UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return &dynamodb.UpdateItemOutput{Attributes: c.item}, nil
}

func (c *counting) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{}, nil
}

func (c *counting) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	c.put = in
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

// TestGateItems: a day's counts that cannot be read are told; nobody told is stored as
// nothing.
func TestGateItems(t *testing.T) {
	c := &counting{item: item{"green": attr.Str("x")}}
	s := New(c, "t", "c", time.Now)
	if d, err := s.CountHealth(t.Context(), "2026-04-01", true); err == nil || !strings.Contains(err.Error(), "HEALTH#2026-04-01") {
		t.Errorf("%+v, %v", d, err)
	}
	for _, told := range [][]string{nil, {"a"}} {
		if err := s.SaveAnnouncement(t.Context(), rotation.Announcement{Label: "l", Told: told}, audit.Event{ID: "e"}); err != nil {
			t.Fatal(err)
		}
		if i := c.put.TransactItems[0].Put.Item; (i["told"] != nil) != (told != nil) {
			t.Errorf("told %v: %v", told, i)
		}
	}
	r := encodeRotation(kek.Rotation{ID: "r", Probes: map[kek.ID][]byte{"k": []byte("p")}})
	r["rev"] = attr.Str("x")
	r["probes"] = &types.AttributeValueMemberM{Value: item{"k": attr.Num(1)}}
	if _, err := decodeRotation(r); err == nil || !strings.Contains(err.Error(), "attribute rev") {
		t.Errorf("%v, want the first fault", err)
	}
}
