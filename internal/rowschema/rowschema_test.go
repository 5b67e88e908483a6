package rowschema

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

func TestValidate(t *testing.T) {
	const good = `{"table":"orders","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek","ciphertext_attribute":"data",` +
		`"context":{"table":"orders","id":"$pk","price":"$$5"},"bind":{"owner":"$user"},"format":"matter","version_attribute":"version",` +
		`"other":{"attribute":"type","values":["session"]}}`
	keyed := func(c *Schema) { c.Envelope, c.KEKID, c.WrappedDEK = "keyed", "", "" }
	kms := func(c *Schema) { c.Format, c.WrappedDEK, c.Bind = "kms", "", nil }
	for _, c := range []struct {
		name   string
		change func(*Schema)
		faults []string // fields that the error names, in order; none: valid
	}{
		{"good", func(*Schema) {}, nil},
		{"an ARN", func(c *Schema) { c.Table = "arn:aws:dynamodb:eu-central-1:123456789012:table/orders" }, nil},
		{"no payload, no format", func(c *Schema) { c.Ciphertext, c.Format = "", "" }, nil},
		{"no version", func(c *Schema) { c.Version = "" }, nil},
		{"opaque payloads", func(c *Schema) { c.Payloads = "opaque" }, nil},
		{"KMS", kms, nil},
		{"Tink", func(c *Schema) { c.Format = "tink" }, nil},
		{"embedded", func(c *Schema) { c.Envelope = "embedded" }, nil},
		{"keyed", keyed, nil},
		{"keyed, other names", func(c *Schema) { keyed(c); c.DEKID, c.Epoch = "key", "born" }, nil},
		{"keyed, embedded rows left", func(c *Schema) { c.Envelope = "keyed" }, nil},
		{"keyed, Tink's rows left", func(c *Schema) { c.Envelope, c.Format = "keyed", "tink" }, nil},
		{"embedded, keyed rows left", func(c *Schema) { c.DEKID = "key" }, nil},
		{"another envelope", func(c *Schema) { c.Envelope = "Keyed" }, []string{"envelope"}},
		{"keyed, half embedded", func(c *Schema) { keyed(c); c.WrappedDEK = "dek" }, []string{"wrapped_dek_attribute"}},
		{"keyed, other half", func(c *Schema) { keyed(c); c.KEKID = "kek_id" }, []string{"wrapped_dek_attribute"}},
		{"keyed without payload", func(c *Schema) { keyed(c); c.Ciphertext = "" }, []string{"ciphertext_attribute"}},
		{"keyed Tink without payload", func(c *Schema) { c.Envelope, c.Format, c.Ciphertext = "keyed", "tink", "" }, []string{"ciphertext_attribute"}},
		{"embedded, keyed rows left, without payload", func(c *Schema) { c.DEKID, c.Ciphertext = "key", "" }, []string{"ciphertext_attribute"}},
		{"keyed, opaque", func(c *Schema) { keyed(c); c.Payloads = "opaque" }, []string{"payloads"}},
		{"keyed KMS", func(c *Schema) { kms(c); c.Envelope = "keyed" }, []string{"format"}},
		{"keyed rows in a table of KMS", func(c *Schema) { kms(c); c.DEKID = "key" }, []string{"format"}},
		{"keyed, only Tink's", func(c *Schema) { keyed(c); c.Format = "tink" }, []string{"format"}},
		{"keyed, id twice", func(c *Schema) { keyed(c); c.DEKID = "data" }, []string{"dek_id_attribute"}},
		{"keyed, default id twice", func(c *Schema) { keyed(c); c.Ciphertext = "dek_id" }, []string{"dek_id_attribute"}},
		{"keyed, id bound", func(c *Schema) { keyed(c); c.Bind = map[string]string{"x": "$dek_id"} }, []string{"bind"}},
		{"keyed, id declares others", func(c *Schema) { keyed(c); c.Other.Attribute = "dek_id" }, []string{"other"}},
		{"keyed, key of a record", func(c *Schema) { keyed(c); c.Bind = map[string]string{"matter:key:id": "$pk"} }, []string{"bind"}},
		{"empty", func(c *Schema) { *c = Schema{} }, []string{"table", "kek_id_attribute", "wrapped_dek_attribute"}},
		{"KMS with a data key", func(c *Schema) { kms(c); c.WrappedDEK = "dek" }, []string{"wrapped_dek_attribute"}},
		{"KMS without data", func(c *Schema) { kms(c); c.Ciphertext = "" }, []string{"ciphertext_attribute"}},
		{"KMS with more bound", func(c *Schema) { kms(c); c.Bind = map[string]string{"x": "y"} }, []string{"bind"}},
		{"Tink without data", func(c *Schema) { c.Format, c.Ciphertext = "tink", "" }, []string{"ciphertext_attribute"}},
		{"payloads", func(c *Schema) { c.Payloads = "plain" }, []string{"payloads"}},
		{"no attribute of others", func(c *Schema) { c.Other.Attribute = "" }, []string{"other"}},
		{"no values of others", func(c *Schema) { c.Other.Values = nil }, []string{"other"}},
		{"others of an envelope", func(c *Schema) { c.Other.Attribute = "kek_epoch" }, []string{"other"}},
		{"bound twice", func(c *Schema) { c.Bind = map[string]string{"id": "$pk"} }, []string{"bind"}},
		{"bind key", func(c *Schema) { c.Bind = map[string]string{"": "x"} }, []string{"bind"}},
		{"bind value", func(c *Schema) { c.Bind = map[string]string{"x": ""} }, []string{"bind"}},
		{"bind what rewrap writes", func(c *Schema) { c.Bind = map[string]string{"x": "$version"} }, []string{"bind"}},
		{"table", func(c *Schema) { c.Table = "a b" }, []string{"table", "name"}},
		{"name", func(c *Schema) { c.Name = "a#b" }, []string{"name"}},
		{"same twice", func(c *Schema) { c.WrappedDEK = c.KEKID }, []string{"wrapped_dek_attribute"}},
		{"default twice", func(c *Schema) { c.KEKID = "version" }, []string{"version_attribute"}},
		{"long", func(c *Schema) { c.KEKID = strings.Repeat("x", 65536) }, []string{"kek_id_attribute"}},
		{"format", func(c *Schema) { c.Format = "jwe" }, []string{"format"}},
		{"context key", func(c *Schema) { c.Context = map[string]string{"": "x"} }, []string{"context"}},
		{"reserved key", func(c *Schema) { c.Context = map[string]string{"aws:x": "x"} }, []string{"context"}},
		{"a canary's key", func(c *Schema) { c.Context = map[string]string{"matter:purpose": "x"} }, []string{"context"}},
		{"context value", func(c *Schema) { c.Context = map[string]string{"x": ""} }, []string{"context"}},
		{"no attribute", func(c *Schema) { c.Context = map[string]string{"x": "$"} }, []string{"context"}},
		{"what rewrap writes", func(c *Schema) { c.Context = map[string]string{"x": "$kek_epoch", "y": "$dek"} }, []string{"context", "context"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cfg Schema
			if err := json.Unmarshal([]byte(good), &cfg); err != nil {
				t.Fatal(err)
			}
			c.change(&cfg)
			err := cfg.Validate()
			var fields []string
			if err != nil {
				for line := range strings.SplitSeq(err.Error(), "\n") {
					field, _, _ := strings.Cut(line, ":")
					fields = append(fields, field)
				}
			}
			if d := cmp.Diff(c.faults, fields); d != "" {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
			if got := cfg.SourceName(); c.faults == nil && got != "orders" {
				t.Errorf("name %q", got)
			}
		})
	}
}

// TestParse: a definition has one form, whatever the order that its fields were
// given in, and each of its fields must be known.
func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		`{"table":"orders","kek_id_attribute":"kek_id"}`: `{"kek_id_attribute":"kek_id","table":"orders"}`,
		`{"version_attribute":"v", "other": {"values":["b","a"],"attribute":"t"}, "bind":{"b":"$b","a":"<a>"},
		  "name":"sales","table":"arn:aws:dynamodb:eu-central-1:123456789012:table/orders","context":{},"payloads":"","format":"kms"}`: `{"bind":{"a":"\u003ca\u003e","b":"$b"},"format":"kms","name":"sales","other":{"attribute":"t","values":["b","a"]},` +
			`"table":"arn:aws:dynamodb:eu-central-1:123456789012:table/orders","version_attribute":"v"}`,
	} {
		c, err := Parse([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		def := c.Source()
		if def.Definition != want || def.Kind != Kind || def.Place != "orders" || def.Name != c.SourceName() {
			t.Errorf("%s: %+v", in, def)
		}
		again, err := Parse([]byte(def.Definition))
		if d := cmp.Diff(def, again.Source()); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", def.Definition, err, d)
		}
	}
	for _, in := range []string{
		``, `null{}`, `[]`, `{"table":"a"} {}`, `{"tabel":"a"}`, `{"Table":"a"}`, `{"table":"a","table":"b"}`, `{"table":1}`, `{"other":{"attribute":"a","value":["b"]}}`,
	} {
		if c, err := Parse([]byte(in)); err == nil {
			t.Errorf("%s: %+v", in, c)
		}
	}
}

func TestContextOf(t *testing.T) {
	cfg := Schema{Context: map[string]string{"l": "literal", "dollar": "$$x", "dollars": "$$$x", "s": "$a", "n": "$b"}}
	row := attr.Item{"a": attr.Str("A $b"), "b": &types.AttributeValueMemberN{Value: "1.5"}, "c": attr.Blob([]byte("x"))}
	got, err := cfg.ContextOf(row)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"l": "literal", "dollar": "$x", "dollars": "$$x", "s": "A $b", "n": "1.5"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"$c", "$missing"} {
		if got, err := (Schema{Context: map[string]string{"x": bad}}).ContextOf(row); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
	if got, err := (Schema{}).ContextOf(row); err != nil || len(got) != 0 {
		t.Errorf("no context: %v, %v", got, err)
	}
	cfg.Bind = map[string]string{"more": "$a", "literal": "x"}
	want["more"], want["literal"] = "A $b", "x"
	bound, err := cfg.BoundOf(row)
	if d := cmp.Diff(want, bound); err != nil || d != "" {
		t.Errorf("bound: %v\n%s", err, d)
	}
	for _, bad := range []Schema{{Context: map[string]string{"x": "$c"}}, {Bind: map[string]string{"x": "$missing"}}} {
		if got, err := bad.BoundOf(row); err == nil {
			t.Errorf("%+v: %v", bad, got)
		}
	}
}

// FuzzParse: a definition that is taken is one that a source can be made of, and says
// the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"table":"orders","kek_id_attribute":"kek","wrapped_dek_attribute":"dek","ciphertext_attribute":"data","context":{"tenant":"acme"},"bind":{"id":"$id"}}`))
	f.Add([]byte(`{"table":"t","kek_id_attribute":"k","wrapped_dek_attribute":"w","format":"tink","other":{"attribute":"kind","values":["note"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Parse(b); err != nil {
			return
		}
		if _, err := Parse(append([]byte(" "), b...)); err != nil {
			t.Fatalf("with a space before it: %v", err)
		}
	})
}

// TestOtherWithoutAttribute: a rule without an attribute is one fault, not one more for
// each attribute that the definition leaves out.
func TestOtherWithoutAttribute(t *testing.T) {
	c := Schema{Table: "t", Other: &OtherItems{Values: []string{"x"}}}
	var faults []string
	c.checkOther(func(field, format string, args ...any) {
		faults = append(faults, field+" "+fmt.Sprintf(format, args...))
	})
	if len(faults) != 1 || !strings.HasPrefix(faults[0], "other names an attribute") {
		t.Errorf("%q", faults)
	}
}

// TestValidateNames: every key that is bound twice is named, and a name has up to 65,535
// bytes.
func TestValidateNames(t *testing.T) {
	good := Schema{Table: "orders", KEKID: "key", WrappedDEK: "dek"}
	if err := (Schema{KEKID: "key", WrappedDEK: "dek"}).Validate(); err == nil || err.Error() != "table: is required" {
		t.Errorf("%v", err)
	}
	for length, ok := range map[int]bool{65535: true, 65536: false} {
		c := good
		c.KEKID = strings.Repeat("x", length)
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
	c := good
	c.Context, c.Bind = map[string]string{"a": "1", "b": "2", "c": "3"}, map[string]string{"a": "1", "b": "2", "c": "3"}
	err := c.Validate()
	for k := range c.Bind {
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("key %q is in the context already", k)) {
			t.Errorf("%v does not name %q", err, k)
		}
	}
}

// TestFirstFault: of several values that cannot be made the first by its key is named.
func TestFirstFault(t *testing.T) {
	c := Schema{Context: map[string]string{"a": "x", "b": "$missing", "c": "$missing", "d": "$missing"}}
	for range 20 {
		if _, err := c.ContextOf(nil); err == nil || err.Error() != `encryption context "b": the row has no attribute "missing"` {
			t.Fatal(err)
		}
	}
}

// TestIsTink: Tink's rows are those of a table of its format without a data key.
func TestIsTink(t *testing.T) {
	own, tinks := attr.Item{"dek": attr.Blob([]byte("x"))}, attr.Item{}
	for format, want := range map[string]bool{FormatTink: true, FormatMatter: false, FormatKMS: false, "": false} {
		c := Schema{Format: format, WrappedDEK: "dek"}
		if c.IsTink(own) || c.IsTink(tinks) != want {
			t.Errorf("%q: %t, %t", format, c.IsTink(own), c.IsTink(tinks))
		}
	}
}

// TestDeclares: an item is declared by a text of the rule's attribute, and by nothing if
// there is no rule.
func TestDeclares(t *testing.T) {
	o := &OtherItems{Attribute: "kind", Values: []string{"a", "1"}}
	for name, c := range map[string]struct {
		rule *OtherItems
		item attr.Item
		want bool
	}{
		"declared": {o, attr.Item{"kind": attr.Str("1")}, true}, "another value": {o, attr.Item{"kind": attr.Str("b")}, false},
		"a number": {o, attr.Item{"kind": attr.Num(1)}, false}, "none": {o, attr.Item{}, false}, "no rule": {nil, attr.Item{"kind": attr.Str("a")}, false},
	} {
		if c.rule.Declares(c.item) != c.want {
			t.Errorf("%s: %t", name, !c.want)
		}
	}
}

// TestAttributes: the attributes of an envelope in their order, the epoch by default.
func TestAttributes(t *testing.T) {
	c := Schema{KEKID: "k", WrappedDEK: "w", Ciphertext: "c", Version: "v"}
	for epoch, want := range map[string]string{"": "kek_epoch", "e": "e"} {
		for envelope, id := range map[string]string{"": "", EnvelopeEmbedded: "", EnvelopeKeyed: "dek_id"} {
			c.Epoch, c.Envelope = epoch, envelope
			all := []Attribute{
				{"kek_id_attribute", "k"},
				{"wrapped_dek_attribute", "w"},
				{"ciphertext_attribute", "c"},
				{"epoch_attribute", want},
				{"version_attribute", "v"},
				{"dek_id_attribute", id},
			}
			if d := cmp.Diff(all, c.WithDefaults().Attributes()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		}
	}
}

// TestHolds: which kinds of rows a definition allows.
func TestHolds(t *testing.T) {
	for text, want := range map[string][3]bool{ // keyed, holds keyed, holds embedded
		`{"kek_id_attribute":"k"}`:                                              {false, false, true},
		`{"envelope":"embedded","kek_id_attribute":"k"}`:                        {false, false, true},
		`{"envelope":"embedded","kek_id_attribute":"k","dek_id_attribute":"d"}`: {false, true, true},
		`{"envelope":"keyed"}`:                                                  {true, true, false},
		`{"envelope":"keyed","kek_id_attribute":"k","dek_id_attribute":"d"}`:    {true, true, true},
	} {
		c, err := Parse([]byte(text))
		if got := [3]bool{c.Keyed(), c.HoldsKeyed(), c.HoldsEmbedded()}; err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

// TestKeyedBoundOf: a keyed payload is bound to its row's key, whatever its type, and to the
// id of its data key.
func TestKeyedBoundOf(t *testing.T) {
	c := Schema{Context: map[string]string{"table": "orders"}, Bind: map[string]string{"owner": "$user"}}
	row := attr.Item{"user": attr.Str("ann"), "s": attr.Str("ä"), "n": &types.AttributeValueMemberN{Value: "-1.5"}, "b": attr.Blob([]byte{0xff, 0}), "flag": attr.Bool(true)}
	got, err := c.KeyedBoundOf(row, []string{"s", "n", "b"}, "id")
	want := map[string]string{"table": "orders", "owner": "ann", "matter:key:s": "ä", "matter:key:n": "-1.5", "matter:key:b": "/wA=", "matter:dek_id": "id"}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"flag", "missing"} {
		if got, err := c.KeyedBoundOf(row, []string{bad}, "id"); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
	delete(row, "user")
	if got, err := c.KeyedBoundOf(row, nil, "id"); err == nil {
		t.Errorf("without a bound attribute: %v", got)
	}
}
