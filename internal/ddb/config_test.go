package ddb_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
)

func TestSourceConfig(t *testing.T) {
	const good = `{"table":"orders","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek","ciphertext_attribute":"data",` +
		`"context":{"table":"orders","id":"$pk","price":"$$5"},"bind":{"owner":"$user"},"format":"matter","version_attribute":"version",` +
		`"other":{"attribute":"type","values":["session"]}}`
	kms := func(c *ddb.SourceConfig) { c.Format, c.WrappedDEK, c.Bind = "kms", "", nil }
	for _, c := range []struct {
		name   string
		change func(*ddb.SourceConfig)
		faults []string // fields that the error names, in order; none: valid
	}{
		{"good", func(*ddb.SourceConfig) {}, nil},
		{"an ARN", func(c *ddb.SourceConfig) { c.Table = "arn:aws:dynamodb:eu-central-1:123456789012:table/orders" }, nil},
		{"no payload, no format", func(c *ddb.SourceConfig) { c.Ciphertext, c.Format = "", "" }, nil},
		{"no version", func(c *ddb.SourceConfig) { c.Version = "" }, nil},
		{"opaque payloads", func(c *ddb.SourceConfig) { c.Payloads = "opaque" }, nil},
		{"KMS", kms, nil},
		{"Tink", func(c *ddb.SourceConfig) { c.Format = "tink" }, nil},
		{"empty", func(c *ddb.SourceConfig) { *c = ddb.SourceConfig{} }, []string{"table", "kek_id_attribute", "wrapped_dek_attribute"}},
		{"KMS with a data key", func(c *ddb.SourceConfig) { kms(c); c.WrappedDEK = "dek" }, []string{"wrapped_dek_attribute"}},
		{"KMS without data", func(c *ddb.SourceConfig) { kms(c); c.Ciphertext = "" }, []string{"ciphertext_attribute"}},
		{"KMS with more bound", func(c *ddb.SourceConfig) { kms(c); c.Bind = map[string]string{"x": "y"} }, []string{"bind"}},
		{"Tink without data", func(c *ddb.SourceConfig) { c.Format, c.Ciphertext = "tink", "" }, []string{"ciphertext_attribute"}},
		{"payloads", func(c *ddb.SourceConfig) { c.Payloads = "plain" }, []string{"payloads"}},
		{"no attribute of others", func(c *ddb.SourceConfig) { c.Other.Attribute = "" }, []string{"other"}},
		{"no values of others", func(c *ddb.SourceConfig) { c.Other.Values = nil }, []string{"other"}},
		{"others of an envelope", func(c *ddb.SourceConfig) { c.Other.Attribute = "kek_epoch" }, []string{"other"}},
		{"bound twice", func(c *ddb.SourceConfig) { c.Bind = map[string]string{"id": "$pk"} }, []string{"bind"}},
		{"bind key", func(c *ddb.SourceConfig) { c.Bind = map[string]string{"": "x"} }, []string{"bind"}},
		{"bind value", func(c *ddb.SourceConfig) { c.Bind = map[string]string{"x": ""} }, []string{"bind"}},
		{"bind what rewrap writes", func(c *ddb.SourceConfig) { c.Bind = map[string]string{"x": "$version"} }, []string{"bind"}},
		{"table", func(c *ddb.SourceConfig) { c.Table = "a b" }, []string{"table", "name"}},
		{"name", func(c *ddb.SourceConfig) { c.Name = "a#b" }, []string{"name"}},
		{"same twice", func(c *ddb.SourceConfig) { c.WrappedDEK = c.KEKID }, []string{"wrapped_dek_attribute"}},
		{"default twice", func(c *ddb.SourceConfig) { c.KEKID = "version" }, []string{"version_attribute"}},
		{"long", func(c *ddb.SourceConfig) { c.KEKID = strings.Repeat("x", 65536) }, []string{"kek_id_attribute"}},
		{"format", func(c *ddb.SourceConfig) { c.Format = "jwe" }, []string{"format"}},
		{"context key", func(c *ddb.SourceConfig) { c.Context = map[string]string{"": "x"} }, []string{"context"}},
		{"reserved key", func(c *ddb.SourceConfig) { c.Context = map[string]string{"aws:x": "x"} }, []string{"context"}},
		{"a canary's key", func(c *ddb.SourceConfig) { c.Context = map[string]string{"matter:purpose": "x"} }, []string{"context"}},
		{"context value", func(c *ddb.SourceConfig) { c.Context = map[string]string{"x": ""} }, []string{"context"}},
		{"no attribute", func(c *ddb.SourceConfig) { c.Context = map[string]string{"x": "$"} }, []string{"context"}},
		{"what rewrap writes", func(c *ddb.SourceConfig) { c.Context = map[string]string{"x": "$kek_epoch", "y": "$dek"} }, []string{"context", "context"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cfg ddb.SourceConfig
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
			source, err := ddb.NewTableSource(nil, cfg)
			switch {
			case (err == nil) != (c.faults == nil):
				t.Errorf("NewTableSource: %v", err)
			case err == nil && source.Name() != "orders":
				t.Errorf("name %q", source.Name())
			}
		})
	}
}

// TestParseSource: a definition has one form, whatever the order that its fields were
// given in, and each of its fields must be known.
func TestParseSource(t *testing.T) {
	for in, want := range map[string]string{
		`{"table":"orders","kek_id_attribute":"kek_id"}`: `{"kek_id_attribute":"kek_id","table":"orders"}`,
		`{"version_attribute":"v", "other": {"values":["b","a"],"attribute":"t"}, "bind":{"b":"$b","a":"<a>"},
		  "name":"sales","table":"arn:aws:dynamodb:eu-central-1:123456789012:table/orders","context":{},"payloads":"","format":"kms"}`: `{"bind":{"a":"\u003ca\u003e","b":"$b"},"format":"kms","name":"sales","other":{"attribute":"t","values":["b","a"]},` +
			`"table":"arn:aws:dynamodb:eu-central-1:123456789012:table/orders","version_attribute":"v"}`,
	} {
		c, err := ddb.ParseSource([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		def := c.Source()
		if def.Definition != want || def.Kind != kek.KindDynamoDB || def.Place != "orders" || def.Name != c.SourceName() {
			t.Errorf("%s: %+v", in, def)
		}
		again, err := ddb.ParseSource([]byte(def.Definition))
		if d := cmp.Diff(def, again.Source()); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", def.Definition, err, d)
		}
	}
	for _, in := range []string{
		``, `null{}`, `[]`, `{"table":"a"} {}`, `{"tabel":"a"}`, `{"Table":"a"}`, `{"table":"a","table":"b"}`, `{"table":1}`, `{"other":{"attribute":"a","value":["b"]}}`,
	} {
		if c, err := ddb.ParseSource([]byte(in)); err == nil {
			t.Errorf("%s: %+v", in, c)
		}
	}
}

// TestOpenTable: a registered source has the name that it is registered by.
func TestOpenTable(t *testing.T) {
	c := ddb.SourceConfig{Table: "orders", KEKID: "kek_id", WrappedDEK: "dek"}
	def := c.Source()
	def.Name = "sales"
	if source, err := ddb.OpenTable(nil, def); err != nil || source.Name() != "sales" {
		t.Errorf("%v, %v", source, err)
	}
	c.Name = "others"
	def.Definition = c.Source().Definition
	if _, err := ddb.OpenTable(nil, def); err == nil || !strings.Contains(err.Error(), `"others"`) {
		t.Errorf("a definition of another name: %v", err)
	}
	for _, definition := range []string{`{`, `{"table":"orders"}`} {
		def.Definition = definition
		if _, err := ddb.OpenTable(nil, def); err == nil {
			t.Errorf("%s was opened", definition)
		}
	}
}

func TestContextOf(t *testing.T) {
	cfg := ddb.SourceConfig{Context: map[string]string{"l": "literal", "dollar": "$$x", "dollars": "$$$x", "s": "$a", "n": "$b"}}
	row := item{"a": &s{Value: "A $b"}, "b": &n{Value: "1.5"}, "c": &b{Value: []byte("x")}}
	got, err := ddb.ContextOf(cfg, row)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"l": "literal", "dollar": "$x", "dollars": "$$x", "s": "A $b", "n": "1.5"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"$c", "$missing"} {
		if got, err := ddb.ContextOf(ddb.SourceConfig{Context: map[string]string{"x": bad}}, row); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
	if got, err := ddb.ContextOf(ddb.SourceConfig{}, row); err != nil || len(got) != 0 {
		t.Errorf("no context: %v, %v", got, err)
	}
	cfg.Bind = map[string]string{"more": "$a", "literal": "x"}
	want["more"], want["literal"] = "A $b", "x"
	bound, err := ddb.BoundOf(cfg, row)
	if d := cmp.Diff(want, bound); err != nil || d != "" {
		t.Errorf("bound: %v\n%s", err, d)
	}
	for _, bad := range []ddb.SourceConfig{{Context: map[string]string{"x": "$c"}}, {Bind: map[string]string{"x": "$missing"}}} {
		if got, err := ddb.BoundOf(bad, row); err == nil {
			t.Errorf("%+v: %v", bad, got)
		}
	}
}
