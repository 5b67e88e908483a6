package dynamodb_test

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

// TestSource runs the suite for each kind of primary key.
func TestSource(t *testing.T) {
	keys := map[string][]ddbtest.Key{
		"S":        {{Name: "id", Type: types.ScalarAttributeTypeS}},
		"S and N":  {{Name: "id", Type: types.ScalarAttributeTypeS}, {Name: "number", Type: types.ScalarAttributeTypeN}},
		"B and S":  {{Name: "blob", Type: types.ScalarAttributeTypeB}, {Name: "id", Type: types.ScalarAttributeTypeS}},
		"reserved": {{Name: "id", Type: types.ScalarAttributeTypeS}, {Name: "size", Type: types.ScalarAttributeTypeN}},
	}
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, client dynamo) {
				sourcetest.TestSource(t, func(t *testing.T) sourcetest.Harness { return newSource(t, client, key) })
			})
		})
	}
}

// watched is a DynamoDB whose every read must be consistent, and whose scans have an
// empty page before every page but the first, as those of DynamoDB may.
type watched struct {
	dynamo
	t     *testing.T
	empty map[string]bool // of the last keys that an empty page was given for
}

func watch(t *testing.T, client dynamo) *watched {
	t.Helper()
	return &watched{dynamo: client, t: t, empty: map[string]bool{}}
}

func (w *watched) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) {
		w.t.Error("an item is read without ConsistentRead")
	}
	return w.dynamo.GetItem(ctx, in, o...)
}

func (w *watched) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if !aws.ToBool(in.ConsistentRead) {
		w.t.Error("a page is read without ConsistentRead")
	}
	if len(in.ExclusiveStartKey) > 0 {
		key := strconv.Itoa(int(aws.ToInt32(in.Segment))) + attributes(in.ExclusiveStartKey)
		if w.empty[key] = !w.empty[key]; w.empty[key] {
			return &dynamodb.ScanOutput{LastEvaluatedKey: in.ExclusiveStartKey}, nil
		}
	}
	return w.dynamo.Scan(ctx, in, o...)
}

// attributes writes scalar attributes in one text.
func attributes(i item) string {
	var out strings.Builder
	for _, name := range []string{"blob", "id", "number", "size"} {
		switch v := i[name].(type) {
		case *s:
			out.WriteString(v.Value)
		case *n:
			out.WriteString(v.Value)
		case *b:
			out.Write(v.Value)
		}
		out.WriteByte(0)
	}
	return out.String()
}

// sourceConfig names attributes that are reserved words or have odd characters, so
// that no expression can do without placeholders.
func sourceConfig(table string) dynamosource.Config {
	return dynamosource.Config{
		Name: "orders", Table: table, KEKID: "key", WrappedDEK: "wrapped.dek", Ciphertext: "data", Version: "version",
		Context: map[string]string{"table": "orders", "id": "$name"}, Bind: map[string]string{"owner": "$user"}, Format: "matter",
		Other: &rowschema.OtherItems{Attribute: "type", Values: []string{"lock", "session"}},
	}
}

func open(t *testing.T, client dynamosource.API, cfg dynamosource.Config) *dynamosource.Table {
	t.Helper()
	driver, err := dynamosource.New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return driver
}

func newSource(t *testing.T, client dynamo, keys []ddbtest.Key) sourcetest.Harness {
	t.Helper()
	table := ddbtest.Table(t, client, keys...)
	key := func(id string) item {
		k := item{}
		for _, a := range keys {
			switch a.Type {
			case types.ScalarAttributeTypeS:
				k[a.Name] = &s{Value: id}
			case types.ScalarAttributeTypeN:
				k[a.Name] = &n{Value: "17.5"}
			case types.ScalarAttributeTypeB:
				k[a.Name] = &b{Value: []byte(id)}
			}
		}
		return k
	}
	defects := map[source.Defect]source.Defect{}
	for d := range broken {
		defects[d] = d
	}
	return sourcetest.Harness{
		Driver: open(t, watch(t, client), sourceConfig(table)), Defects: defects, Declares: true,
		Bind: func(id string) map[string]string { return map[string]string{"owner": "user of " + id} },
		Put: func(t *testing.T, id string, e sourcetest.Envelope) {
			t.Helper()
			put(t, client, table, envelopeItem(key(id), id, e))
		},
		Delete: func(t *testing.T, id string) {
			t.Helper()
			_, err := client.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &table, Key: key(id)})
			if err != nil {
				t.Fatal(err)
			}
		},
		Get: func(t *testing.T, id string) (sourcetest.Envelope, bool) {
			t.Helper()
			i := get(t, client, table, key(id))
			if i == nil {
				return sourcetest.Envelope{}, false
			}
			e := sourcetest.Envelope{
				WrappedDEK: i["wrapped.dek"].(*b).Value, Ciphertext: i["data"].(*b).Value,
				Epoch: number(t, i["kek_epoch"]), Version: number(t, i["version"]),
			}
			e.KEK, e.KeyARN, _ = kek.ParseKeyRef(i["key"].(*s).Value)
			return e, true
		},
	}
}

// broken makes a sound envelope one with a defect.
var broken = map[source.Defect]func(i item){
	source.NoKEK:         func(i item) { delete(i, "key") },
	source.NoWrappedDEK:  func(i item) { delete(i, "wrapped.dek") },
	source.NoCiphertext:  func(i item) { delete(i, "data") },
	source.CipherAlone:   func(i item) { remove(i, "key", "wrapped.dek", "kek_epoch", "version") },
	source.EpochAlone:    func(i item) { remove(i, "key", "wrapped.dek", "data") },
	source.WrongType:     func(i item) { i["wrapped.dek"] = &s{Value: "ZGVr"} },
	source.UnknownForm:   func(i item) { i["key"] = &s{Value: "alias/orders"} },
	source.NoContext:     func(i item) { delete(i, "name") },
	source.ForeignNumber: func(i item) { i["version"] = &s{Value: "v2"} },
	source.NoRoom:        fill,
}

func remove(i item, names ...string) {
	maps.DeleteFunc(i, func(name string, _ types.AttributeValue) bool {
		for _, n := range names {
			if n == name {
				return true
			}
		}
		return false
	})
}

// fill makes an item as large as DynamoDB takes it.
func fill(i item) {
	i["fill"] = &s{}
	i["fill"] = &s{Value: strings.Repeat("x", attr.MaxItemSize-attr.ItemSize(i))}
}

func envelopeItem(i item, id string, e sourcetest.Envelope) item {
	i["note"] = &s{Value: "not our business"}
	switch e.Class {
	case sourcetest.Other:
		return i
	case sourcetest.Declared:
		i["type"] = &s{Value: "session"}
		return i
	case sourcetest.Row:
	}
	i["key"], i["wrapped.dek"], i["data"] = &s{Value: string(e.KEK)}, &b{Value: e.WrappedDEK}, &b{Value: e.Ciphertext}
	i["name"], i["user"] = &s{Value: id}, &s{Value: "user of " + id}
	if e.KeyARN != "" {
		i["key"] = &s{Value: e.KeyARN}
	}
	if e.Epoch > 0 {
		i["kek_epoch"] = &n{Value: strconv.FormatInt(e.Epoch, 10)}
	}
	if e.Version > 0 {
		i["version"] = &n{Value: strconv.FormatInt(e.Version, 10)}
	}
	if e.Defect != "" {
		broken[e.Defect](i)
	}
	return i
}

// TestOpenTable: a registered source has the name that it is registered by.
func TestOpenTable(t *testing.T) {
	c := dynamosource.Config{Table: "orders", KEKID: "kek_id", WrappedDEK: "dek"}
	def := c.Source()
	def.Name = "sales"
	if driver, err := dynamosource.Open(nil, def); err != nil || driver.Name() != "sales" {
		t.Errorf("%v, %v", driver, err)
	}
	c.Name = "others"
	def.Definition = c.Source().Definition
	if _, err := dynamosource.Open(nil, def); err == nil || !strings.Contains(err.Error(), `"others"`) {
		t.Errorf("a definition of another name: %v", err)
	}
	for _, definition := range []string{`{`, `{"table":"orders"}`} {
		def.Definition = definition
		if _, err := dynamosource.Open(nil, def); err == nil {
			t.Errorf("%s was opened", definition)
		}
	}
}
