package envelope_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// TestMarkStopsRotation: the mark of a table that is not a source stops the next rotation,
// by the table's name.
func TestMarkStopsRotation(t *testing.T) {
	w := newSite(t)
	at := time.Date(2026, 5, 6, 7, 8, 9, 123_000_000, time.UTC)
	c := w.client(slow, func(c *envelope.Config) { c.Holder, c.Now = "me", func() time.Time { return at } })
	registered := tableConfig(sourceConfig(w.table))
	forgotten := registered
	forgotten.Table = ddbtest.Table(t, w.dynamo, ddbtest.Key{Name: "id", Type: "S"})
	for _, cfg := range []envelope.TableConfig{registered, forgotten} {
		_, err := c.Table(t.Context(), cfg)
		w.must("table", err)
	}
	v, err := w.steps.Journal.Registry.LoadAll(t.Context(), "")
	w.must("load", err)
	want := []kek.Mark{{Table: registered.Table, Holder: "me", SeenAt: at}, {Table: forgotten.Table, Holder: "me", SeenAt: at}}
	byTable := cmpopts.SortSlices(func(a, b kek.Mark) bool { return a.Table < b.Table })
	if d := cmp.Diff(want, v.Marks, byTable); d != "" {
		t.Errorf("(-want +read):\n%s", d)
	}
	_, err = w.steps.Preflight(t.Context(), rotation.PreflightInput{
		ExecutionName: "r1", Input: rotation.ExecutionInput{Mode: string(kek.Normal), Window: "any"},
	})
	if err == nil || !strings.Contains(err.Error(), forgotten.Table) || strings.Contains(err.Error(), registered.Table) {
		t.Errorf("preflight: %v, want one that names %s alone", err, forgotten.Table)
	}
}

// TestTableConfigIsADefinition: a definition of a source decodes strictly into a
// TableConfig, which says the same in every field.
func TestTableConfigIsADefinition(t *testing.T) {
	want := dynamosource.Config{
		Name: "a", Table: "b", KEKID: "c", WrappedDEK: "d", Ciphertext: "e", Epoch: "f", Version: "g", Envelope: "n", DEKID: "o",
		Context: map[string]string{"h": "$i"}, Bind: map[string]string{"j": "$k"}, Format: "matter", Payloads: "opaque",
		Other: &rowschema.OtherItems{Attribute: "l", Values: []string{"m"}},
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var got envelope.TableConfig
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	back, err := json.Marshal(got)
	if err != nil || !bytes.Equal(back, text) {
		t.Errorf("%s, %v\nwant %s", back, err, text)
	}
	if d := cmp.Diff(want, got.Schema()); d != "" {
		t.Errorf("(-definition +schema):\n%s", d)
	}
}

// TestDefinition: every definition of a source decodes, also of tables that the client
// does not write.
func TestDefinition(t *testing.T) {
	d := json.NewDecoder(strings.NewReader(`{"name": "a", "table": "b", "kek_id_attribute": "c", "wrapped_dek_attribute": "",
		"ciphertext_attribute": "e", "epoch_attribute": "f", "version_attribute": "g", "context": {"h": "$i"}, "bind": {"j": "k"},
		"format": "kms", "payloads": "opaque", "other": {"attribute": "l", "values": ["m", "n"]}}`))
	d.DisallowUnknownFields()
	var got envelope.TableConfig
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := envelope.TableConfig{
		Name: "a", Table: "b", KEKID: "c", Ciphertext: "e", Epoch: "f", Version: "g", Context: map[string]string{"h": "$i"},
		Bind: map[string]string{"j": "k"}, Format: envelope.FormatKMS, Payloads: envelope.PayloadsOpaque,
		Other: &envelope.OtherItems{Attribute: "l", Values: []string{"m", "n"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
