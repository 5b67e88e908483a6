package envelope_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// keyed makes a table with a key of its own and opens it as cfg says, which gets the
// table's name.
func (w *site) keyed(cfg envelope.TableConfig, keys ...ddbtest.Key) *envelope.Table {
	w.t.Helper()
	cfg.Table = ddbtest.Table(w.t, w.dynamo, keys...)
	w.table = cfg.Table
	table, err := w.client(slow).Table(w.t.Context(), cfg)
	w.must("table", err)
	return table
}

// boundToKey is a table whose rows share an encryption context and are bound to their
// whole key.
func boundToKey(keys ...ddbtest.Key) envelope.TableConfig {
	cfg := envelope.TableConfig{
		KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{},
	}
	for _, k := range keys {
		if k.Type != ddbtypes.ScalarAttributeTypeB { // which cannot be bound
			cfg.Bind[k.Name] = "$" + k.Name
		}
	}
	return cfg
}

// all reads the whole table as it is stored.
func (w *site) all() []item {
	w.t.Helper()
	out, err := w.dynamo.Scan(w.t.Context(), &dynamodb.ScanInput{TableName: &w.table, ConsistentRead: aws.Bool(true)})
	w.must("Scan", err)
	return out.Items
}

// unchanged runs write, which must fail with want and leave the table as it is.
func (w *site) unchanged(what string, want error, names string, write func() error) {
	w.t.Helper()
	before := w.all()
	err := write()
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), names) {
		w.t.Errorf("%s: %v, want %v that names %s", what, err, want, names)
	}
	if d := cmp.Diff(before, w.all(), ignoreAll); d != "" {
		w.t.Errorf("%s changed the table (-before +after):\n%s", what, d)
	}
}

var ignoreAll = cmpopts.IgnoreUnexported(
	s{}, n{}, b{}, ddbtypes.AttributeValueMemberBOOL{}, ddbtypes.AttributeValueMemberNULL{}, ddbtypes.AttributeValueMemberL{},
	ddbtypes.AttributeValueMemberM{}, ddbtypes.AttributeValueMemberSS{}, ddbtypes.AttributeValueMemberNS{}, ddbtypes.AttributeValueMemberBS{},
)

// TestKeyChanged: a change of an attribute of the key would seal the row under
// another row's key and write it over the old one. It is refused and nothing is
// written.
func TestKeyChanged(t *testing.T) {
	w := newSite(t)
	for _, test := range []struct {
		kind    ddbtypes.ScalarAttributeType
		is      ddbtypes.AttributeValue
		same    ddbtypes.AttributeValue
		another []ddbtypes.AttributeValue
	}{
		{"S", &s{Value: "a"}, &s{Value: "a"}, []ddbtypes.AttributeValue{&s{Value: "b"}, &b{Value: []byte("a")}, nil}},
		{"B", &b{Value: []byte{0, 255}}, &b{Value: []byte{0, 255}}, []ddbtypes.AttributeValue{&b{Value: []byte{0}}, &s{Value: "a"}, nil}},
		{"N", &n{Value: "100"}, &n{Value: "1.0e2"}, []ddbtypes.AttributeValue{&n{Value: "1"}, &n{Value: "-100"}, &n{Value: "1e3"}, &n{Value: "x"}, &s{Value: "100"}, nil}},
	} {
		t.Run(string(test.kind), func(t *testing.T) {
			keys := []ddbtest.Key{{Name: "id", Type: "S"}, {Name: "at", Type: test.kind}}
			table := w.keyed(boundToKey(keys...), keys...)
			key := item{"id": &s{Value: "row"}, "at": test.is}
			w.must("insert", table.Insert(t.Context(), key, []byte("x")))
			for _, v := range test.another {
				w.unchanged(fmt.Sprintf("%T", v), envelope.ErrKeyChanged, `"at"`, func() error {
					return table.Update(t.Context(), key, func(r *envelope.Row) error {
						if r.Item["at"] = v; v == nil {
							delete(r.Item, "at")
						}
						return nil
					})
				})
			}
			w.unchanged("no attributes", envelope.ErrKeyChanged, `"id"`, func() error {
				return table.Update(t.Context(), key, func(r *envelope.Row) error {
					r.Item = nil
					return nil
				})
			})
			w.must("update", table.Update(t.Context(), key, func(r *envelope.Row) error {
				r.Item["at"] = test.same
				r.Plaintext = []byte("y")
				return nil
			}))
			if got, err := table.Get(t.Context(), key); err != nil || string(got.Plaintext) != "y" {
				t.Errorf("%q, %v", got.Plaintext, err)
			}
		})
	}
}

// TestPutNumberKey: a key that is the same number written otherwise is the same row,
// which Put replaces.
func TestPutNumberKey(t *testing.T) {
	w := newSite(t)
	cfg := boundToKey()
	keys := []ddbtest.Key{{Name: "id", Type: "N"}}
	table := w.keyed(cfg, keys...)
	for round, number := range []string{"100", "1e2", "100.0", "+1.00E2"} {
		i := item{"id": &n{Value: number}, "round": &n{Value: fmt.Sprint(round)}}
		w.must(number, table.Put(t.Context(), i, []byte(number)))
		got, err := table.Get(t.Context(), item{"id": &n{Value: "100"}})
		want := envelope.Row{Item: item{"id": &n{Value: "100"}, "round": i["round"]}, Plaintext: []byte(number)}
		if d := cmp.Diff(want, got, ignoreAll); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", number, err, d)
		}
	}
	if rows := w.all(); len(rows) != 1 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestSameNumber(t *testing.T) {
	for _, same := range [][]string{
		{"0", "-0", "0.00", ".0", "0e9", "+0"},
		{"1", "1.0", "01", "10e-1", "0.1e1", "+1", "1."},
		{"-0.05", "-.05", "-5e-2", "-00.0500"},
		{"1e125", "10e124"},
	} {
		for _, a := range same {
			if !envelope.SameNumber(same[0], a) {
				t.Errorf("%s and %s are one number", same[0], a)
			}
		}
	}
	for _, pair := range [][2]string{{"1", "-1"}, {"1", "10"}, {"0.1", "0.01"}, {"1", "1.01"}, {"", ""}, {".", "."}, {"-", "-"}, {"1e", "1e"}, {"0x1", "0x1"}, {"1_0", "10"}, {" 1", "1"}, {"1e99999", "1e99999"}} {
		if envelope.SameNumber(pair[0], pair[1]) {
			t.Errorf("%q and %q are taken for one number", pair[0], pair[1])
		}
	}
}

// TestInvalidText: the SDK stores U+FFFD for what is not UTF-8. Of an attribute that is
// bound that makes a row that never opens, of a key another row, of any other a value
// that nobody wrote.
func TestInvalidText(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}}
	cfg := boundToKey(keys...)
	cfg.Context["tenant"] = "$tenant"
	table := w.keyed(cfg, keys...)
	valid := item{"id": &s{Value: "a"}, "tenant": &s{Value: "\x00 ü \U0010ffff"}, "note": &s{Value: "x"}}
	w.must("insert", table.Insert(t.Context(), valid, []byte("\xff, which a plaintext may be")))
	list := func(v ...ddbtypes.AttributeValue) ddbtypes.AttributeValue {
		return &ddbtypes.AttributeValueMemberL{Value: v}
	}
	mapped := func(i item) ddbtypes.AttributeValue { return &ddbtypes.AttributeValueMemberM{Value: i} }
	bad := &s{Value: "acme\xff"}
	for name, set := range map[string]item{
		"bound":           {"tenant": bad},
		"not bound":       {"note": bad},
		"cut off":         {"note": &s{Value: "ü"[:1]}},
		"surrogate":       {"note": &s{Value: "\xed\xa0\x80"}},
		"in a set":        {"note": &ddbtypes.AttributeValueMemberSS{Value: []string{"x", bad.Value}}},
		"in a list":       {"note": list(&n{Value: "1"}, list(bad))},
		"in a map":        {"note": mapped(item{"x": &b{Value: []byte("\xff")}, "y": mapped(item{"z": bad})})},
		"a name in a map": {"note": list(mapped(item{bad.Value: &n{Value: "1"}}))},
		"nil":             {"note": nil},
		"nil in a list":   {"note": list(nil)},
		"unknown type":    {"note": &ddbtypes.UnknownUnionMember{Tag: "X"}},
	} {
		i := maps.Clone(valid)
		maps.Copy(i, set)
		names := `"note"`
		if name == "bound" {
			names = `"tenant"`
		}
		w.unchanged("put, "+name, envelope.ErrInvalidItem, names, func() error { return table.Put(t.Context(), i, nil) })
		i["id"] = &s{Value: "b"}
		w.unchanged("insert, "+name, envelope.ErrInvalidItem, "row 2 of 2: table "+w.table+": the item cannot be stored as it is: attribute "+names, func() error {
			return table.InsertAll(t.Context(), []envelope.Row{{Item: item{"id": &s{Value: "c"}, "tenant": valid["tenant"]}}, {Item: i}})
		})
		w.unchanged("update, "+name, envelope.ErrInvalidItem, names, func() error {
			return table.Update(t.Context(), valid, func(r *envelope.Row) error {
				maps.Copy(r.Item, set)
				return nil
			})
		})
	}
	odd := maps.Clone(valid)
	odd["n\xff"] = &s{Value: "x"}
	w.unchanged("name", envelope.ErrInvalidItem, "attribute name", func() error { return table.Put(t.Context(), odd, nil) })

	// A read of such a key would be one of another row.
	replaced := maps.Clone(valid)
	replaced["id"] = &s{Value: "k\ufffd"}
	w.must("insert", table.Insert(t.Context(), replaced, []byte("another's")))
	key := item{"id": &s{Value: "k\xff"}}
	w.unchanged("insert, key", envelope.ErrInvalidItem, `"id"`, func() error {
		return table.Insert(t.Context(), item{"id": key["id"], "tenant": valid["tenant"]}, nil)
	})
	w.unchanged("update, key", envelope.ErrInvalidItem, `"id"`, func() error {
		return table.Update(t.Context(), key, func(r *envelope.Row) error {
			r.Plaintext = []byte("mine")
			return nil
		})
	})
	if _, err := table.Get(t.Context(), key); !errors.Is(err, envelope.ErrInvalidItem) {
		t.Errorf("get of a key that is not UTF-8: %v", err)
	}
}

// TestInvalidTextSealed: the same of contexts that the caller makes.
func TestInvalidTextSealed(t *testing.T) {
	w := newSite(t)
	for _, off := range []bool{false, true} {
		ref, err := w.client(func(c *envelope.Config) { c.Cache.Off = off }).Begin(t.Context())
		w.must("begin", err)
		for _, encctx := range []map[string]string{{"a\xff": "b"}, {"a": "b\xff"}} {
			if _, err := ref.Seal(t.Context(), nil, encctx); err == nil || !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("%q: %v", encctx, err)
			}
			if _, err := envelope.NewEncryptingWriter(nil, envelope.NewStreamKey(), encctx); err == nil || !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("stream, %q: %v", encctx, err)
			}
		}
		ref.End()
	}
	if n := w.keys.count("GenerateDataKey"); n != 0 {
		t.Errorf("KMS was asked %d times", n)
	}
}

// TestOwnAttributes: what makes a row an envelope is not the caller's to set. Silently
// written over, an attribute that happens to have such a name would be lost.
func TestOwnAttributes(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}}
	cfg := boundToKey(keys...)
	cfg.Version = "version"
	table := w.keyed(cfg, keys...)
	key := item{"id": &s{Value: "a"}}
	w.must("insert", table.Insert(t.Context(), key, []byte("x")))
	for _, name := range []string{"kek_id", "wrapped_dek", "ciphertext", "kek_epoch", "version"} {
		set := item{name: &s{Value: "mine"}}
		i := maps.Clone(key)
		maps.Copy(i, set)
		w.unchanged("put", envelope.ErrInvalidItem, fmt.Sprintf("%q", name), func() error { return table.Put(t.Context(), i, nil) })
		w.unchanged("update", envelope.ErrInvalidItem, fmt.Sprintf("%q", name), func() error {
			return table.Update(t.Context(), key, func(r *envelope.Row) error {
				maps.Copy(r.Item, set)
				return nil
			})
		})
	}
}

// TestDeclaredOther: an envelope in an item that the definition declares as other is
// unaccounted, and blocks every rotation.
func TestDeclaredOther(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}}
	cfg := boundToKey(keys...)
	cfg.Other = &envelope.OtherItems{Attribute: "kind", Values: []string{"meta", "7"}}
	table := w.keyed(cfg, keys...)
	w.must("insert", table.Insert(t.Context(), item{"id": &s{Value: "a"}, "kind": &s{Value: "order"}}, []byte("x")))
	for _, kind := range cfg.Other.Values {
		w.unchanged("insert", envelope.ErrInvalidItem, `"kind"`, func() error {
			return table.Insert(t.Context(), item{"id": &s{Value: "b"}, "kind": &s{Value: kind}}, nil)
		})
		w.unchanged("update", envelope.ErrInvalidItem, `"kind"`, func() error {
			return table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
				r.Item["kind"] = &s{Value: kind}
				return nil
			})
		})
	}
}
