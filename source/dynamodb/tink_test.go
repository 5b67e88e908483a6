package dynamodb_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// TestTinkRows rewraps in place what Tink's KMSEnvelopeAEAD wrote: under the new
// KEK Tink opens it, payload untouched.
func TestTinkRows(t *testing.T) { everywhere(t, testTinkRows) }

func testTinkRows(t *testing.T, client dynamo) {
	t.Helper()
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	cfg := sourceConfig(table)
	cfg.Format, cfg.Context = "tink", map[string]string{"id": "$name"}
	driver := open(t, watch(t, client), cfg)
	before, after := tinkKEK(t, 1), tinkKEK(t, 2)
	whole, err := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), before).Encrypt([]byte("by Tink"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	key := item{"id": &s{Value: "a"}}
	put(t, client, table, item{"id": key["id"], "name": &s{Value: "a"}, "key": &s{Value: "old"}, "data": &b{Value: whole}})
	bad := item{"id": &s{Value: "bad"}, "name": &s{Value: "a"}, "key": &s{Value: "old"}, "data": &b{Value: whole[:3]}}
	put(t, client, table, bad)
	var typed *source.Error
	if _, err := driver.Check(t.Context()); !errors.As(err, &typed) || typed.Problem != source.Unaccounted || len(typed.Rows) != 1 || typed.Rows[0] != "id=bad" {
		t.Errorf("check: %v", err)
	}
	for _, payload := range []bool{false, true} { // a normal rotation, an emergency
		page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload})
		if err != nil || len(page.Rows) != 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		if (page.Rows[0].Defect == "") == (page.Rows[1].Defect == "") {
			t.Errorf("one of two is broken: %q, %q", page.Rows[0].Defect, page.Rows[1].Defect)
		}
		for _, r := range page.Rows {
			if (r.Defect != "") != (r.Kind == source.Damaged) || !r.Whole {
				t.Errorf("%+v", r)
			}
			if r.Ciphertext != nil || len(r.Context) > 0 {
				t.Errorf("an emergency may not re-encrypt it, and no context is bound to it: %+v", r)
			}
		}
	}
	row, ok, err := driver.Reread(t.Context(), sound(t, driver), false)
	if err != nil || !ok {
		t.Fatalf("reread: %v, %v", ok, err)
	}
	dek, err := before.Decrypt(row.WrappedDEK, nil)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := after.Encrypt(dek, nil)
	if err != nil {
		t.Fatal(err)
	}
	with := source.Rewrapped{KEK: "new", Epoch: 2, WrappedDEK: wrapped}
	if done, err := driver.Replace(t.Context(), row, with); !done || err != nil {
		t.Fatalf("replace: %v, %v", done, err)
	}
	got := get(t, client, table, key)
	if got["key"].(*s).Value != "new" || number(t, got["kek_epoch"]) != 2 || number(t, got["version"]) != 1 || got["wrapped.dek"] != nil {
		t.Errorf("%v", got)
	}
	plain, err := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), after).Decrypt(got["data"].(*b).Value, []byte("aad"))
	if err != nil || string(plain) != "by Tink" {
		t.Errorf("Tink opens %q, %v", plain, err)
	}
	if done, err := driver.Replace(t.Context(), row, with); done || err != nil {
		t.Errorf("a row that was replaced is replaced again: %v, %v", done, err)
	}
}

// sound is the unbroken one of the two rows.
func sound(t *testing.T, driver *dynamosource.Table) source.Row {
	t.Helper()
	page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range page.Rows {
		if r.Defect == "" {
			return r
		}
	}
	t.Fatal("no row is sound")
	return source.Row{}
}

func tinkKEK(t *testing.T, fill byte) *subtle.AESGCM {
	t.Helper()
	a, err := subtle.NewAESGCM(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return a
}
