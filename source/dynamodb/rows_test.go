package dynamodb

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
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
		if v, ok := c.v.toAttribute(c.kind); ok != c.ok || ok && typeOf(v) != string(c.kind) {
			t.Errorf("%s: %v, %t", name, v, ok)
		}
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
		page, err := s.Scan(t.Context(), source.ScanRequest{Segment: 2, Total: 5, Limit: limit})
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
		if _, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Whole: whole}); err != nil {
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
	s.cfg.Other = &rowschema.OtherItems{Attribute: "kind", Values: []string{"x"}}
	keys, err := s.primaryKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expr, names := s.projectRow(keys)
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
		note := len("stays") + attr.MaxItemSize - 128 - attr.UpdateCost(5, 0) - attr.ItemSize(after) // the longest that fits
		i["note"] = attr.Str(strings.Repeat("x", note))
		if f := (rowReader{s.cfg}).checkRoom(i, true); f != nil {
			t.Errorf("version %d, %d bytes: %+v", version, note, f)
		}
		i["note"] = attr.Str(strings.Repeat("x", note+1))
		if f := (rowReader{s.cfg}).checkRoom(i, true); f == nil || f.kind != source.NoRoom || f.field != "table" || !strings.Contains(f.text, "can have 409601 after a rewrap") {
			t.Errorf("version %d, a byte more: %+v", version, f)
		}
		if f := (rowReader{s.cfg}).checkRoom(i, false); f != nil {
			t.Errorf("version %d, an item that was not read whole: %+v", version, f)
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
		var typed *source.Error
		if !errors.As(err, &typed) || typed.Problem != source.Misconfigured || typed.Field != field || !strings.Contains(typed.Msg, `"`+missing+`"`) {
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
		if ok, err := s.Label(t.Context(), source.Row{ID: "a", Handle: h}, "k"); ok || !errors.Is(err, errDefect) || !strings.Contains(err.Error(), "label a") {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
	}
}

// TestDefinitions: a field that is not known spoils a definition that is whole without
// it.
func TestDefinitions(t *testing.T) {
	good := Config{Table: "orders", KEKID: "key", WrappedDEK: "dek"}
	def := good.Source()
	if _, err := Open(nil, def); err != nil {
		t.Fatal(err)
	}
	def.Definition = strings.Replace(def.Definition, "{", `{"tabel":"x",`, 1)
	if _, err := Open(nil, def); err == nil {
		t.Error("an unknown field is passed over")
	}
	named := good
	named.Name = "sales"
	if s, err := Open(nil, named.Source()); err != nil || s.Name() != "sales" {
		t.Errorf("under the name that it says itself: %v", err)
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
	if page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1}); err != nil || page.Other != 1 || page.Declared != 0 || len(page.Rows) != 0 {
		t.Errorf("nothing is declared: %+v, %v", page, err)
	}
	s.cfg.Other = &rowschema.OtherItems{Attribute: "kind", Values: []string{"session"}}
	for name, c := range map[string]struct {
		more item
		row  bool
	}{
		"nothing": {item{}, false}, "a payload": {item{"data": attr.Blob([]byte("x"))}, false}, "a KEK": {item{"key": attr.Str("k")}, true}, "a data key": {item{"dek": attr.Blob([]byte("x"))}, true},
	} {
		api.item = item{"id": attr.Str("a"), "sk": attr.Num(1), "kind": attr.Str("session")}
		maps.Copy(api.item, c.more)
		page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || page.Other != 0 || page.Declared+len(page.Rows) != 1 || (len(page.Rows) == 1) != c.row || c.row && page.Rows[0].Defect == "" {
			t.Errorf("declared, with %s: %+v, %v", name, page, err)
		}
	}
	tink, api, _ := backupSource(t, rowschema.FormatTink)
	for size, kind := range map[int]source.Defect{0: source.NoCiphertext, 1: source.Damaged, 3: source.Damaged} {
		api.item["data"] = attr.Blob(make([]byte, size))
		page, err := tink.Scan(t.Context(), source.ScanRequest{Total: 1})
		if err != nil || len(page.Rows) != 1 || page.Rows[0].Kind != kind {
			t.Errorf("%d bytes of Tink's: %+v, %v, want %s", size, page, err, kind)
		}
		h := handle{tink: true, held: make([]byte, size), key: item{}}
		if ok, err := tink.Replace(t.Context(), source.Row{ID: "a", Handle: h}, source.Rewrapped{KEK: "k", WrappedDEK: []byte("w")}); err == nil || ok || !strings.Contains(err.Error(), "replace a") {
			t.Errorf("%d bytes of Tink's: %t, %v", size, ok, err)
		}
	}
	delete(api.item, "data")
	api.item["dek"] = attr.Blob([]byte("x"))
	var typed *source.Error
	if _, err := tink.Check(t.Context()); !errors.As(err, &typed) || typed.Field != "ciphertext_attribute" || typed.Problem != source.Misconfigured {
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
	if page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1}); err == nil || len(api.scans) > 0 || page.Rows != nil {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestIntegers: what is not a whole number of 64 bits counts as 0.
func TestIntegers(t *testing.T) {
	for name, v := range map[string]types.AttributeValue{"nil": nil, "text": attr.Str("7"), "fraction": &types.AttributeValueMemberN{Value: "7.5"}, "too large": &types.AttributeValueMemberN{Value: "9223372036854775808"}} {
		if parseInteger(v) != 0 || isInteger(v) != (v == nil) {
			t.Errorf("%s: %d, %t", name, parseInteger(v), isInteger(v))
		}
	}
}
