package restore

import (
	"bytes"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/memstore"
	"github.com/matter-ops/kms-rotation/kek"
)

// site is a restorer between two KEKs, the pointer on the second in epoch 5.
func site(t *testing.T, format string) (r *Restorer, old kek.ID, p kek.Pointer) {
	t.Helper()
	kms := memstore.New("chain", time.Now).KMS()
	var ids []kek.ID
	for n := range 2 {
		k, err := kms.Create(t.Context(), "r", n+1, "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, k.ID)
	}
	return &Restorer{
		Source: ddb.SourceConfig{
			Table: "orders", KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "body", Epoch: "epoch", Version: "version",
			Context: map[string]string{"id": "$id"}, Format: format,
		},
		KMS: kms, Cipher: aead.Cipher{}, keys: []string{"id"},
		registered: map[kek.ID]kek.KEK{ids[0]: {}, ids[1]: {}},
	}, ids[0], kek.Pointer{KEKID: ids[1], Epoch: 5}
}

// sealed is a row of epoch 2 under a KEK.
func sealed(t *testing.T, r *Restorer, id kek.ID) envelope.Item {
	t.Helper()
	encctx := map[string]string{"id": "7"}
	dek, wrapped, err := r.KMS.GenerateDataKey(t.Context(), id, encctx)
	if err != nil {
		t.Fatal(err)
	}
	body, err := r.Cipher.Seal(dek, []byte("plain"), encctx)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.Item{
		"id": &types.AttributeValueMemberS{Value: "7"}, "kek_id": &types.AttributeValueMemberS{Value: string(id)},
		"dek": &types.AttributeValueMemberB{Value: wrapped}, "body": &types.AttributeValueMemberB{Value: body},
		"epoch": &types.AttributeValueMemberN{Value: "2"}, "version": &types.AttributeValueMemberN{Value: "8"},
		"other": &types.AttributeValueMemberS{Value: "kept"},
	}
}

func blobOf(i envelope.Item, name string) []byte { return i[name].(*types.AttributeValueMemberB).Value }

// dekOf unwraps a row's data key, which must be under the pointer's KEK.
func dekOf(t *testing.T, r *Restorer, id kek.ID, wrapped []byte, encctx map[string]string) []byte {
	t.Helper()
	dek, err := r.KMS.Decrypt(t.Context(), id, wrapped, encctx)
	if err != nil {
		t.Fatal(err)
	}
	return dek
}

// TestExposed: a row's data key is made anew exactly if an emergency has left its
// KEK, or a KEK of a later epoch that the same data key was wrapped under.
func TestExposed(t *testing.T) {
	encctx := map[string]string{"id": "7"}
	for name, c := range map[string]struct {
		emergency kek.Rotation
		epoch     string // of the row; "" for none
		want      bool
	}{
		"no emergency":               {kek.Rotation{}, "2", false},
		"before the row's epoch":     {kek.Rotation{OldKEK: "x", Epoch: 2}, "2", false},
		"after it, from a later KEK": {kek.Rotation{OldKEK: "x", Epoch: 4}, "2", true},
		"from its KEK":               {kek.Rotation{OldKEK: "kek-0001", Epoch: 1}, "2", true},
		"the epoch is not known":     {kek.Rotation{OldKEK: "x", Epoch: 2}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			r, old, p := site(t, "")
			if c.emergency.Epoch > 0 {
				r.emergencies = []kek.Rotation{c.emergency}
			}
			item := sealed(t, r, old)
			delete(item, "epoch")
			if c.epoch != "" {
				item["epoch"] = &types.AttributeValueMemberN{Value: c.epoch}
			}
			before := maps.Clone(item)
			row, err := r.decode(item)
			if err != nil {
				t.Fatal(err)
			}
			out, err := r.rewrapped(t.Context(), row, p)
			if err != nil {
				t.Fatal(err)
			}
			dek := dekOf(t, r, p.KEKID, blobOf(out, "dek"), encctx)
			fresh := !bytes.Equal(dek, dekOf(t, r, old, blobOf(before, "dek"), encctx))
			if fresh != c.want || fresh == bytes.Equal(blobOf(out, "body"), blobOf(before, "body")) {
				t.Errorf("fresh data key %v, want %v", fresh, c.want)
			}
			if plain, err := r.Cipher.Open(dek, blobOf(out, "body"), encctx); err != nil || string(plain) != "plain" {
				t.Errorf("it opens to %q, %v", plain, err)
			}
			for attr, want := range map[string]string{"epoch": "5", "version": "9"} {
				if got := out[attr].(*types.AttributeValueMemberN).Value; got != want {
					t.Errorf("%s is %s, want %s", attr, got, want)
				}
			}
			if out["kek_id"].(*types.AttributeValueMemberS).Value != string(p.KEKID) || out["other"] != before["other"] {
				t.Errorf("row %v", out)
			}
		})
	}
}

// TestTink: a row in Tink's framing stays one; nobody but the application can
// encrypt it under a fresh data key.
func TestTink(t *testing.T) {
	r, old, p := site(t, envelope.FormatTink)
	dek, wrapped, err := r.KMS.GenerateDataKey(t.Context(), old, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := aead.JoinTink(wrapped, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	row, err := r.decode(envelope.Item{
		"id": &types.AttributeValueMemberS{Value: "7"}, "kek_id": &types.AttributeValueMemberS{Value: string(old)},
		"body": &types.AttributeValueMemberB{Value: whole},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.rewrapped(t.Context(), row, p)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, payload, err := aead.ParseTink(blobOf(out, "body"))
	if err != nil || string(payload) != "payload" || out["dek"] != nil || !bytes.Equal(dek, dekOf(t, r, p.KEKID, wrapped, nil)) {
		t.Errorf("row %v: payload %q, %v", out, payload, err)
	}
	r.emergencies = []kek.Rotation{{OldKEK: old, Epoch: 5}}
	if _, err := r.rewrapped(t.Context(), row, p); !errors.Is(err, errNoRow) {
		t.Errorf("its data key is exposed: %v", err)
	}
}

// TestDecode: what is no row of the source is refused, each for its own reason.
func TestDecode(t *testing.T) {
	for name, spoil := range map[string]func(envelope.Item){
		"no key":        func(i envelope.Item) { delete(i, "id") },
		"no KEK":        func(i envelope.Item) { delete(i, "kek_id") },
		"foreign KEK":   func(i envelope.Item) { i["kek_id"] = &types.AttributeValueMemberS{Value: "nobody's"} },
		"no DEK":        func(i envelope.Item) { delete(i, "dek") },
		"DEK of type S": func(i envelope.Item) { i["dek"] = &types.AttributeValueMemberS{Value: "x"} },
		"version":       func(i envelope.Item) { i["version"] = &types.AttributeValueMemberN{Value: "9223372036854775807"} },
		"epoch":         func(i envelope.Item) { i["epoch"] = &types.AttributeValueMemberN{Value: "1.5"} },
		"context":       func(i envelope.Item) { i["id"] = &types.AttributeValueMemberB{Value: []byte("x")} },
	} {
		r, old, _ := site(t, "")
		item := sealed(t, r, old)
		if _, err := r.decode(item); err != nil {
			t.Fatal(err)
		}
		spoil(item)
		if _, err := r.decode(item); !errors.Is(err, errNoRow) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
