package dynamodb

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
)

// TestForeignRows: a row that another source has read is refused by name, whatever is to be
// done with it; nothing is sent.
func TestForeignRows(t *testing.T) {
	s, _, _ := backupSource(t, "")
	s.client = nil
	row := source.Row{ID: "x", Handle: "another source's"}
	for what, call := range map[string]func() error{
		"replace":  func() error { _, err := s.Replace(t.Context(), row, source.Rewrapped{}); return err },
		"rehearse": func() error { return s.Rehearse(t.Context(), row) },
		"label":    func() error { _, err := s.Label(t.Context(), row, "k"); return err },
		"reread":   func() error { _, _, err := s.Reread(t.Context(), row, true); return err },
		"update":   func() error { _, err := s.UpdateOf(row, source.Rewrapped{}); return err },
	} {
		if err := call(); err == nil || err.Error() != what+" a row: it is not of source orders" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestRowsThatAreRefused: a row with a defect is not written, nor a payload in place of one
// that was not read.
func TestRowsThatAreRefused(t *testing.T) {
	s, _, _ := backupSource(t, "")
	s.client = nil
	h := handle{key: item{"id": attr.Str("a")}, kek: attr.Str("k"), holder: "dek", held: []byte("x")}
	if _, err := s.Replace(t.Context(), source.Row{ID: "x", Handle: h, Defect: "odd"}, source.Rewrapped{}); !errors.Is(err, errDefect) || !strings.HasSuffix(err.Error(), ": odd") {
		t.Errorf("a defect: %v", err)
	}
	if _, err := s.Replace(t.Context(), source.Row{ID: "x", Handle: h}, source.Rewrapped{Ciphertext: []byte("y")}); !errors.Is(err, errNoPayload) {
		t.Errorf("no payload: %v", err)
	}
	tink, _, i := backupSource(t, rowschema.FormatTink)
	b, err := tink.ReadBackup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	if put, err := tink.InsertOf(b, source.Rewrapped{KEK: "k"}); err == nil || put != nil {
		t.Errorf("a row of Tink's without a data key: %v, %v", put, err)
	}
}

// describing counts how often a table is described.
type describing struct {
	*oneItem
	n int
}

func (d *describing) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	d.n++
	return d.oneItem.DescribeTable(ctx, in, o...)
}

// TestKeyIsAskedForOnce: the table's key is known from the first scan on.
func TestKeyIsAskedForOnce(t *testing.T) {
	s, api, _ := backupSource(t, "")
	d := &describing{oneItem: api}
	s.client = d
	for range 3 {
		if _, err := s.Scan(t.Context(), source.ScanRequest{Total: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if d.n != 1 {
		t.Errorf("it was described %d times", d.n)
	}
}

// TestBareNameIsHere: a table that is named without an account is one of this account, and is
// described once.
func TestBareNameIsHere(t *testing.T) {
	s, api, _ := backupSource(t, "")
	d := &describing{oneItem: api}
	s.client = d
	if _, err := s.Check(t.Context()); err != nil || d.n != 1 {
		t.Errorf("%v, described %d times", err, d.n)
	}
}

// TestKeySchema: the hash key comes first, with its type; a key of another kind is not
// understood.
func TestKeySchema(t *testing.T) {
	element := func(name string, kind types.KeyType) types.KeySchemaElement {
		return types.KeySchemaElement{AttributeName: &name, KeyType: kind}
	}
	definition := func(name string, kind types.ScalarAttributeType) types.AttributeDefinition {
		return types.AttributeDefinition{AttributeName: &name, AttributeType: kind}
	}
	d := &types.TableDescription{
		TableName: aws.String("t"), KeySchema: []types.KeySchemaElement{element("b", "RANGE"), element("a", "HASH")},
		AttributeDefinitions: []types.AttributeDefinition{definition("a", "S"), definition("b", "N"), definition("c", "B")},
	}
	keys, err := keySchema(d)
	if want := []keyAttribute{{"a", "S"}, {"b", "N"}}; err != nil || fmt.Sprint(keys) != fmt.Sprint(want) {
		t.Errorf("%v, %v, want %v", keys, err, want)
	}
	d.KeySchema = append(d.KeySchema, element("c", "OTHER"))
	if keys, err := keySchema(d); err == nil || keys != nil {
		t.Errorf("a third part: %v", keys)
	}
}

// TestKeyAttributesAreNoEnvelope: no attribute of the envelope is a part of the table's key,
// whichever part.
func TestKeyAttributesAreNoEnvelope(t *testing.T) {
	for _, name := range []string{"id", "sk"} {
		s, _, _ := backupSource(t, "")
		s.cfg.KEKID = name
		_, err := s.Check(t.Context())
		var typed *source.Error
		if !errors.As(err, &typed) || typed.Field != "kek_id_attribute" || !strings.Contains(typed.Msg, `"`+name+`" is part of the table's key`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// items is a table of some items.
type items struct {
	*oneItem
	all []item
}

func (i *items) Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	return &dynamodb.ScanOutput{Items: i.all}, nil
}

// TestCheckNamesTheFirst: of items that cannot be accounted for the first is named, with
// the field of the definition that it does not fit.
func TestCheckNamesTheFirst(t *testing.T) {
	s, api, sound := backupSource(t, "")
	with := func(id string, edit func(item)) item {
		i := item{}
		for k, v := range sound {
			i[k] = v
		}
		i["id"] = attr.Str(id)
		edit(i)
		return i
	}
	ok := with("a", func(item) {})
	for field, list := range map[string][]item{
		"kek_id_attribute":      {ok, with("b", func(i item) { delete(i, "key") }), with("c", func(i item) { delete(i, "dek") })},
		"wrapped_dek_attribute": {ok, with("b", func(i item) { delete(i, "dek") }), with("c", func(i item) { delete(i, "key") })},
		"context":               {ok, with("b", func(i item) { delete(i, "note") }), with("c", func(i item) { delete(i, "key") })},
	} {
		s.client = &items{oneItem: api, all: list}
		s.cfg.Context = map[string]string{"id": "$id"}
		if field == "context" {
			s.cfg.Context["note"] = "$note"
		}
		_, err := s.Check(t.Context())
		var typed *source.Error
		if !errors.As(err, &typed) || typed.Problem != source.Unaccounted || typed.Field != field || !strings.HasPrefix(typed.Msg, "an item: ") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestCheckLeavesRoomToTheCensus: a sample has no whole items, so that it does not say that
// one has no room.
func TestCheckLeavesRoomToTheCensus(t *testing.T) {
	s, api, i := backupSource(t, "")
	i["data"] = attr.Blob(make([]byte, 400<<10-200))
	s.client = &items{oneItem: api, all: []item{i}}
	if _, err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Whole: true}); err != nil || page.Rows[0].Kind != source.NoRoom {
		t.Errorf("a census: %+v, %v", page.Rows, err)
	}
}

// TestCursorsOfOtherTypes: a cursor is the key's attributes in their types, and base64 to
// its last letter.
func TestCursorsOfOtherTypes(t *testing.T) {
	good := base64.RawURLEncoding.EncodeToString([]byte(`{"id":{"S":"abc"}}`)) // whole groups of letters: what follows spoils none
	for cursor, ok := range map[string]bool{
		good: true, good + "!": false, good + "\n!": false, base64.RawURLEncoding.EncodeToString([]byte(`{"id":{"N":"1"}}`)): false,
		base64.RawURLEncoding.EncodeToString([]byte(`{"id":{}}`)): false, base64.RawURLEncoding.EncodeToString([]byte(`{"sk":{"S":"a"}}`)): false,
	} {
		if got, err := decodeCursor(cursor, cursorKeys[0]); (err == nil) != ok || !ok && (!errors.Is(err, errCursor) || got != nil) {
			t.Errorf("%s: %v, %v", cursor, got, err)
		}
	}
	s, api, _ := backupSource(t, "")
	if page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "!"}); !errors.Is(err, errCursor) || len(page.Rows) > 0 || len(api.scans) > 0 {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestLastKeys: a page's cursor is its last key; one that is not understood is an error.
func TestLastKeys(t *testing.T) {
	s, api, i := backupSource(t, "")
	for last, ok := range map[string]bool{"id": true, "other": false} {
		page, err := scanLast(s, api, item{last: attr.Str("a"), "sk": attr.Num(7)}, i)
		if (err == nil) != ok || ok && page.Next == "" {
			t.Errorf("%s: %+v, %v", last, page, err)
		}
		if ok {
			if _, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: page.Next}); err != nil {
				t.Error(err)
			}
		}
	}
}

// lasting is a table of which there is more.
type lasting struct {
	*oneItem
	last item
}

func (l *lasting) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if in.ExclusiveStartKey != nil && attr.Text(in.ExclusiveStartKey["id"]) != "a" {
		return nil, errors.New("another key")
	}
	return &dynamodb.ScanOutput{Items: []item{l.item}, LastEvaluatedKey: l.last}, nil
}

func scanLast(s *Table, api *oneItem, last, i item) (source.Page, error) {
	api.item = i
	s.client = &lasting{oneItem: api, last: last}
	return s.Scan(context.Background(), source.ScanRequest{Total: 1})
}

// TestRehearsalSendsTheRewrap: the update of a rehearsal is the one of a rewrap.
func TestRehearsalSendsTheRewrap(t *testing.T) {
	s, api, i := backupSource(t, "")
	b, err := s.ReadBackup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	u := &updating{oneItem: api}
	s.client = u
	if err := s.Rehearse(t.Context(), b.Row); err != nil {
		t.Fatal(err)
	}
	v := u.in.ExpressionAttributeValues
	if attr.Text(v[":kek"]) != "k" || parseInteger(v[":epoch"]) != 1 || string(attr.Bytes(v[":held"])) != "old dek" || string(attr.Bytes(v[":payload"])) != "old data" {
		t.Errorf("%v", v)
	}
}

// updating refuses updates by their condition, and keeps them.
type updating struct {
	*oneItem
	in *dynamodb.UpdateItemInput
}

func (u *updating) UpdateItem(_ context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	u.in = in
	return nil, &types.ConditionalCheckFailedException{}
}
