package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/source"
)

// oneItem is a table of one item.
type oneItem struct {
	API
	item  item
	get   *dynamodb.GetItemInput
	scans []*dynamodb.ScanInput
}

func (o *oneItem) DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	return &dynamodb.DescribeTableOutput{Table: &types.TableDescription{
		TableStatus:          types.TableStatusActive,
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("sk"), KeyType: "RANGE"}, {AttributeName: aws.String("id"), KeyType: "HASH"}},
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: "S"}, {AttributeName: aws.String("sk"), AttributeType: "N"}},
	}}, nil
}

func (o *oneItem) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	o.get = in
	return &dynamodb.GetItemOutput{Item: o.item}, nil
}

func (o *oneItem) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	c := *in
	o.scans = append(o.scans, &c)
	return &dynamodb.ScanOutput{Items: []item{o.item}}, nil
}

// backupSource is a source of a format, and a sound item of it.
func backupSource(t *testing.T, format string) (*Table, *oneItem, item) {
	t.Helper()
	cfg := Config{Table: "orders", KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Version: "version", Format: format, Context: map[string]string{"id": "$id"}}
	i := item{
		"id": attr.Str("a"), "sk": attr.Num(7), "key": attr.Str("k"), "dek": attr.Blob([]byte("old dek")), "data": attr.Blob([]byte("old data")),
		"kek_epoch": attr.Num(1), "version": attr.Num(3), "note": attr.Str("stays"),
	}
	switch format {
	case rowschema.FormatKMS:
		cfg.WrappedDEK = ""
		delete(i, "dek")
	case rowschema.FormatTink:
		held, err := aead.JoinTink([]byte("old dek"), []byte("payload"))
		if err != nil {
			t.Fatal(err)
		}
		delete(i, "dek")
		i["data"] = attr.Blob(held)
	}
	api := &oneItem{item: i}
	s, err := New(api, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, api, i
}

// TestReadBackup: an item of a backup is read as the row that it is, with its payload;
// one that is not an envelope, or cannot be written again, says why.
func TestReadBackup(t *testing.T) {
	for name, c := range map[string]struct {
		change item // nil values are removed
		err    error
		kind   source.Defect
		defect string
	}{
		"sound":                   {nil, nil, "", ""},
		"without a version":       {item{"version": nil}, nil, "", ""},
		"no partition key":        {item{"id": nil}, source.ErrNoKey, "", ""},
		"no sort key":             {item{"sk": nil}, source.ErrNoKey, "", ""},
		"no envelope":             {item{"key": nil, "dek": nil, "data": nil, "kek_epoch": nil}, nil, "", "it has none of the envelope's attributes"},
		"no data key":             {item{"dek": nil}, nil, source.NoWrappedDEK, "attribute dek is missing or empty"},
		"the last version":        {item{"version": attr.Num(math.MaxInt64)}, nil, source.ForeignNumber, "attribute version cannot be counted up"},
		"the last version but 1":  {item{"version": attr.Num(math.MaxInt64 - 1)}, nil, "", ""},
		"no data key, no version": {item{"dek": nil, "version": attr.Num(math.MaxInt64)}, nil, source.NoWrappedDEK, "attribute dek is missing or empty"},
		"too large":               {item{"note": attr.Str(strings.Repeat("x", 400<<10))}, nil, source.NoRoom, "it has"},
	} {
		s, _, i := backupSource(t, "")
		for n, v := range c.change {
			if i[n] = v; v == nil {
				delete(i, n)
			}
		}
		got, err := s.ReadBackup(t.Context(), i)
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			if got.Row.ID != "" || !strings.Contains(err.Error(), "is missing") {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		r := got.Row
		if r.ID != "id=a,sk=7" || r.Kind != c.kind || !strings.HasPrefix(r.Defect, c.defect) || (r.Defect == "") != (c.defect == "") {
			t.Errorf("%s: %+v", name, r)
		}
		h, err := s.handleOf("test", r)
		if err != nil || !cmp.Equal(attr.Text(h.key["id"]), "a") || parseInteger(h.key["sk"]) != 7 || len(h.key) != 2 {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
		if c.defect == "" && (r.KEK != "k" || string(r.WrappedDEK) != "old dek" || string(r.Ciphertext) != "old data" || r.Epoch != 1) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	bare, _, i := backupSource(t, "")
	bare.cfg.Version = ""
	i["version"] = attr.Num(math.MaxInt64) // the application's own
	if got, err := bare.ReadBackup(t.Context(), i); err != nil || got.Row.Defect != "" {
		t.Errorf("a table without versions: %+v, %v", got, err)
	}
}

// TestReadStored: what the table has in the place of a backup's item, read consistently
// and whole.
func TestReadStored(t *testing.T) {
	s, api, i := backupSource(t, "")
	b, err := s.ReadBackup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	row, ok, err := s.ReadStored(t.Context(), b)
	if err != nil || !ok || row.Defect != "" || string(row.Ciphertext) != "old data" {
		t.Errorf("%+v, %t, %v", row, ok, err)
	}
	if in := api.get; *in.TableName != "orders" || !aws.ToBool(in.ConsistentRead) || in.ProjectionExpression != nil || attr.Text(in.Key["id"]) != "a" || parseInteger(in.Key["sk"]) != 7 {
		t.Errorf("%+v", in)
	}
	api.item = item{"id": attr.Str("a"), "sk": attr.Num(7), "other": attr.Str("x")}
	if row, ok, err := s.ReadStored(t.Context(), b); err != nil || !ok || row.Defect != "it has none of the envelope's attributes" || row.ID != "id=a,sk=7" {
		t.Errorf("%+v, %t, %v", row, ok, err)
	}
	i["data"] = attr.Blob(make([]byte, 400<<10-200))
	api.item = i
	if row, ok, err := s.ReadStored(t.Context(), b); err != nil || !ok || row.Kind != source.NoRoom {
		t.Errorf("it is read whole, so that it is known to have no room: %+v, %t, %v", row, ok, err)
	}
	api.item = nil
	if row, ok, err := s.ReadStored(t.Context(), b); err != nil || ok || row.ID != "" {
		t.Errorf("%+v, %t, %v", row, ok, err)
	}
	if _, ok, err := s.ReadStored(t.Context(), source.Backup{Row: source.Row{ID: "x"}}); err == nil || ok {
		t.Errorf("a row of another source: %t, %v", ok, err)
	}
}

// TestBackupWrites: what brings a row back is the item with another wrapping and the
// next version, where there is none of its key; what moves a stored row is what Replace
// writes.
func TestBackupWrites(t *testing.T) {
	joined, err := aead.JoinTink([]byte("new dek"), []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	for format, want := range map[string]item{
		"":                   {"dek": attr.Blob([]byte("new dek")), "data": attr.Blob([]byte("new data"))},
		rowschema.FormatKMS:  {"data": attr.Blob([]byte("new dek"))},
		rowschema.FormatTink: {"data": attr.Blob(joined)},
	} {
		for _, payload := range []bool{false, true} {
			s, _, i := backupSource(t, format)
			before := maps.Clone(i)
			b, err := s.ReadBackup(t.Context(), i)
			if err != nil || b.Row.Defect != "" {
				t.Fatalf("%s: %+v, %v", format, b, err)
			}
			with := source.Rewrapped{KEK: "k2", Epoch: 9, WrappedDEK: []byte("new dek")}
			whole := maps.Clone(before)
			maps.Copy(whole, want)
			switch {
			case format != "":
				if payload {
					continue
				}
			case payload:
				with.Ciphertext = []byte("new data")
			default:
				whole["data"] = attr.Blob([]byte("old data"))
			}
			whole["key"], whole["kek_epoch"], whole["version"] = attr.Str("k2"), attr.Num(9), attr.Num(4)
			p, err := s.InsertOf(b, with)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(texts(whole), texts(p.Item)); d != "" || *p.TableName != "orders" || *p.ConditionExpression != "attribute_not_exists(#pk)" || p.ExpressionAttributeNames["#pk"] != "id" {
				t.Errorf("%q, payload %t: %+v (-want +got):\n%s", format, payload, p, d)
			}
			if d := cmp.Diff(texts(before), texts(i)); d != "" {
				t.Errorf("%q: the backup's item changed:\n%s", format, d)
			}
			u, err := s.UpdateOf(b.Row, with)
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.replaceRow("test", b.Row, with)
			if err != nil || *u.TableName != "orders" || *u.UpdateExpression != c.update || *u.ConditionExpression != c.cond ||
				!maps.Equal(u.ExpressionAttributeNames, c.names) || !cmp.Equal(texts(u.ExpressionAttributeValues), texts(c.values)) || !cmp.Equal(texts(u.Key), texts(item{"id": attr.Str("a"), "sk": attr.Num(7)})) {
				t.Errorf("%q: %+v, %v", format, u, err)
			}
		}
	}
	s, _, i := backupSource(t, "")
	s.cfg.Version = ""
	delete(i, "version")
	b, err := s.ReadBackup(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.InsertOf(b, source.Rewrapped{KEK: "k2"}); err != nil || p.Item["version"] != nil || p.Item[""] != nil {
		t.Errorf("a table without versions: %+v, %v", p, err)
	}
	if p, err := s.InsertOf(source.Backup{Row: source.Row{ID: "x"}}, source.Rewrapped{}); err == nil || p != nil {
		t.Errorf("a row of another source: %+v, %v", p, err)
	}
	if u, err := s.UpdateOf(source.Row{ID: "x"}, source.Rewrapped{}); err == nil || u != nil {
		t.Errorf("a row of another source: %+v, %v", u, err)
	}
	b.Row.Handle = handle{tink: true, held: []byte("not Tink's")}
	if p, err := s.InsertOf(b, source.Rewrapped{}); err == nil || p != nil || !strings.Contains(err.Error(), b.Row.ID) {
		t.Errorf("a payload that is not Tink's: %+v, %v", p, err)
	}
}

// texts is an item for a comparison.
func texts(i item) map[string]string {
	out := map[string]string{}
	for name, v := range i {
		switch v := v.(type) {
		case *types.AttributeValueMemberB:
			out[name] = fmt.Sprintf("B %q", v.Value)
		case *types.AttributeValueMemberN:
			out[name] = "N " + v.Value
		default:
			out[name] = typeOf(v) + " " + attr.Text(v)
		}
	}
	return out
}
