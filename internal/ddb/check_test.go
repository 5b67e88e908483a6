package ddb_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/ddb/ddbtest"
	"github.com/matter-ops/kms-rotation/internal/storetest"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestCheck: a wrong configuration is named by its JSON field.
func TestCheck(t *testing.T) { everywhere(t, testCheck) }

func testCheck(t *testing.T, client dynamo) {
	t.Helper()
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	for i := range 3 {
		id := fmt.Sprint(i)
		put(t, client, table, envelopeItem(item{"id": &s{Value: id}}, id, storetest.Envelope{KEK: "k", WrappedDEK: []byte("d"), Ciphertext: []byte("c")}))
		put(t, client, table, item{"id": &s{Value: "other-" + id}, "stray": &s{Value: "x"}})
	}
	for _, c := range []struct {
		field, mention string
		change         func(*ddb.SourceConfig)
	}{
		{"", "", func(*ddb.SourceConfig) {}},
		{"", "", func(c *ddb.SourceConfig) { c.Ciphertext = "" }},
		{"", "", func(c *ddb.SourceConfig) { c.Context = map[string]string{"id": "$id"} }},
		{"table", "no-such-table", func(c *ddb.SourceConfig) { c.Table = "no-such-table" }},
		{"kek_id_attribute", "keyid", func(c *ddb.SourceConfig) { c.KEKID = "keyid" }},
		{"kek_id_attribute", "part of the table's key", func(c *ddb.SourceConfig) { c.KEKID = "id" }},
		{"wrapped_dek_attribute", "wrapped_dek", func(c *ddb.SourceConfig) { c.WrappedDEK = "wrapped_dek" }},
		{"ciphertext_attribute", "payload", func(c *ddb.SourceConfig) { c.Ciphertext = "payload" }},
		{"context", "customer", func(c *ddb.SourceConfig) { c.Context = map[string]string{"who": "$customer"} }},
		{"context", "stray", func(c *ddb.SourceConfig) { c.Context = map[string]string{"who": "$stray"} }},
	} {
		cfg := sourceConfig(table)
		c.change(&cfg)
		source, err := ddb.NewTableSource(client, cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = source.Check(t.Context())
		if c.field == "" {
			if err != nil {
				t.Errorf("%+v: %v", cfg, err)
			}
			continue
		}
		var typed *rotation.Error
		if !errors.As(err, &typed) || typed.Kind != rotation.SourceMisconfigured || typed.Field != "sources[orders]."+c.field ||
			!strings.Contains(typed.Msg, c.mention) || typed.Next == "" {
			t.Errorf("%s: %v", c.field, err)
		}
	}
}

// TestDefectTypes: a row whose attributes have other types is reported, never
// skipped and never a reason to stop.
func TestDefectTypes(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	for id, change := range map[string]item{
		"kek as number":       {"key": &n{Value: "1"}},
		"kek empty":           {"key": &s{Value: ""}},
		"dek as string":       {"wrapped.dek": &s{Value: "d"}},
		"dek empty":           {"wrapped.dek": &b{Value: []byte{}}},
		"dek missing":         {"wrapped.dek": nil},
		"epoch as string":     {"kek_epoch": &s{Value: "1"}},
		"epoch with fraction": {"kek_epoch": &n{Value: "1.5"}},
		"version as string":   {"version": &s{Value: "1"}},
		"payload as string":   {"data": &s{Value: "c"}},
		"context as binary":   {"name": &b{Value: []byte("x")}},
		"context missing":     {"name": nil},
	} {
		i := envelopeItem(item{"id": &s{Value: id}}, id, storetest.Envelope{KEK: "k", Epoch: 1, Version: 1, WrappedDEK: []byte("d"), Ciphertext: []byte("c")})
		for name, v := range change {
			if i[name] = v; v == nil {
				delete(i, name)
			}
		}
		put(t, client, table, i)
	}
	source, err := ddb.NewTableSource(client, sourceConfig(table))
	if err != nil {
		t.Fatal(err)
	}
	page, err := source.Scan(t.Context(), rotation.ScanRequest{Total: 1, Payload: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Rows) != 11 || page.Skipped != 0 {
		t.Errorf("%d rows, %d skipped, want 11 and 0", len(page.Rows), page.Skipped)
	}
	for _, r := range page.Rows {
		if r.Defect == "" || !strings.HasPrefix(r.ID, "id=") {
			t.Errorf("%s has no defect", r.ID)
		}
	}
}
