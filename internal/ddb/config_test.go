package ddb_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/ddb"
)

func TestSourceConfig(t *testing.T) {
	const good = `{"table":"orders","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek","ciphertext_attribute":"data",` +
		`"context":{"table":"orders","id":"$pk","price":"$$5"},"format":"matter"}`
	for _, c := range []struct {
		name   string
		change func(*ddb.SourceConfig)
		faults []string // fields that the error names, in order; none: valid
	}{
		{"good", func(*ddb.SourceConfig) {}, nil},
		{"an ARN", func(c *ddb.SourceConfig) { c.Table = "arn:aws:dynamodb:eu-central-1:123456789012:table/orders" }, nil},
		{"no payload, no format", func(c *ddb.SourceConfig) { c.Ciphertext, c.Format = "", "" }, nil},
		{"empty", func(c *ddb.SourceConfig) { *c = ddb.SourceConfig{} }, []string{"table", "kek_id_attribute", "wrapped_dek_attribute"}},
		{"table", func(c *ddb.SourceConfig) { c.Table = "a b" }, []string{"table", "name"}},
		{"name", func(c *ddb.SourceConfig) { c.Name = "a#b" }, []string{"name"}},
		{"same twice", func(c *ddb.SourceConfig) { c.WrappedDEK = c.KEKID }, []string{"wrapped_dek_attribute"}},
		{"default twice", func(c *ddb.SourceConfig) { c.KEKID = "version" }, []string{"version_attribute"}},
		{"long", func(c *ddb.SourceConfig) { c.KEKID = strings.Repeat("x", 65536) }, []string{"kek_id_attribute"}},
		{"format", func(c *ddb.SourceConfig) { c.Format = "jwe" }, []string{"format"}},
		{"context key", func(c *ddb.SourceConfig) { c.Context = map[string]string{"": "x"} }, []string{"context"}},
		{"reserved key", func(c *ddb.SourceConfig) { c.Context = map[string]string{"aws:x": "x"} }, []string{"context"}},
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
}
