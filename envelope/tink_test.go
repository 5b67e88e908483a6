package envelope_test

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	tinkaead "github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/test/memstore/awsapi"
)

// tinkKeys is KMS with one more key, under which Tink wraps: like Tink's AWS KMS
// client without an encryption context.
type tinkKeys struct {
	*keys
	kek *subtle.AESGCM
}

func (k *tinkKeys) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	if awsapi.KeyID(in.KeyId) != "kek-0001" || len(in.EncryptionContext) > 0 {
		return k.keys.Decrypt(ctx, in, o...)
	}
	dek, err := k.kek.Decrypt(in.CiphertextBlob, nil)
	if err != nil {
		return nil, &kmstypes.InvalidCiphertextException{}
	}
	return &kms.DecryptOutput{Plaintext: dek}, nil
}

func newTinkKeys(t *testing.T, k *keys) *tinkKeys {
	t.Helper()
	var a *subtle.AESGCM
	var err error
	fips140.WithoutEnforcement(func() { a, err = subtle.NewAESGCM(bytes.Repeat([]byte{3}, 32)) }) // stands for KMS
	if err != nil {
		t.Fatal(err)
	}
	return &tinkKeys{keys: k, kek: a}
}

// TestTinkRows opens rows that Tink's KMSEnvelopeAEAD wrote, for every AES-GCM
// template, and turns one into a row of ours by an update.
func TestTinkRows(t *testing.T) {
	w := newSite(t)
	keys := newTinkKeys(t, w.keys)
	cfg := tableConfig(sourceConfig(w.table))
	cfg.Format = envelope.FormatTink
	cfg.TinkAssociated = func(i item) []byte { return []byte("id=" + i["id"].(*s).Value) }
	table, err := w.client(func(c *envelope.Config) { c.KMS = keys }).Table(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range map[string]*tinkpb.KeyTemplate{
		"128": tinkaead.AES128GCMKeyTemplate(), "256": tinkaead.AES256GCMKeyTemplate(), "256raw": tinkaead.AES256GCMNoPrefixKeyTemplate(),
	} {
		theirs := tinkaead.NewKMSEnvelopeAEAD2(template, keys.kek)
		var payload []byte
		fips140.WithoutEnforcement(func() { payload, err = theirs.Encrypt([]byte("by Tink"), []byte("id="+name)) })
		if err != nil {
			t.Fatal(err)
		}
		i := row(name)
		i["key"], i["data"] = &s{Value: "kek-0001"}, &b{Value: payload}
		w.put(i)
		for range 2 { // from KMS, then from the cache
			if got, err := table.Get(t.Context(), rowKey(name)); err != nil || string(got.Plaintext) != "by Tink" {
				t.Errorf("%s: %q, %v", name, got.Plaintext, err)
			}
		}
		wrapped, rest, err := aead.ParseTink(payload)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := aead.JoinTink(wrapped, rest); err != nil || !bytes.Equal(again, payload) {
			t.Errorf("%s: parsed and joined it differs, %v", name, err)
		}
		i["id"] = &s{Value: "moved"}
		w.put(i)
		if _, err := table.Get(t.Context(), rowKey("moved")); !errors.Is(err, envelope.ErrAltered) {
			t.Errorf("%s under another associated data: %v", name, err)
		}
	}
	w.must("update", table.Update(t.Context(), rowKey("256"), func(r *envelope.Row) error {
		r.Plaintext = append(r.Plaintext, ", by us"...)
		return nil
	}))
	if got, err := table.Get(t.Context(), rowKey("256")); err != nil || string(got.Plaintext) != "by Tink, by us" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
	if _, ok := w.item("256")["wrapped.dek"]; !ok {
		t.Error("the updated row has no wrapped DEK of its own")
	}
}

func TestTinkOtherKeys(t *testing.T) {
	for name, template := range map[string]*tinkpb.KeyTemplate{
		"AES-CTR-HMAC": tinkaead.AES256CTRHMACSHA256KeyTemplate(), "ChaCha20": tinkaead.ChaCha20Poly1305KeyTemplate(),
	} {
		var dek []byte
		a := tinkaead.NewKMSEnvelopeAEAD2(template, spy{&dek})
		if _, err := a.Encrypt(nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := envelope.ExpandTink(dek); err == nil {
			t.Errorf("%s is taken for AES-GCM", name)
		}
	}
}

// spy is a KEK that keeps the DEK it is to wrap.
type spy struct{ dek *[]byte }

func (s spy) Encrypt(dek, _ []byte) ([]byte, error) {
	*s.dek = bytes.Clone(dek)
	return []byte("wrapped"), nil
}

func (spy) Decrypt([]byte, []byte) ([]byte, error) { return nil, errors.New("not here") }

func FuzzExpandTink(f *testing.F) {
	f.Add(append([]byte{0x1a, 32}, make([]byte, 32)...))
	f.Fuzz(func(_ *testing.T, in []byte) { _ = envelope.ExpandTink(in) })
}

// FuzzDecode: no item of any shape makes decoding panic, and what decodes has all
// that opening needs.
func FuzzDecode(f *testing.F) {
	f.Add("kek", []byte("w"), []byte("c"), "1", byte(0))
	f.Add("kek", []byte(nil), []byte{0, 0, 0, 1, 'w', 'p'}, "1", byte(3))
	f.Fuzz(func(t *testing.T, id string, wrapped, payload []byte, number string, shape byte) {
		cfg := tableConfig(sourceConfig("t"))
		i := item{"key": &s{Value: id}, "wrapped.dek": &b{Value: wrapped}, "data": &b{Value: payload}, "version": &n{Value: number}}
		if shape&1 != 0 {
			cfg.Format = envelope.FormatTink
		}
		if shape&2 != 0 {
			delete(i, "wrapped.dek")
		}
		if shape&4 != 0 {
			i["data"] = &s{Value: string(payload)}
		}
		got, err := cfg.Decode(i)
		if err == nil && (got.KEKID == "" || len(got.WrappedDEK) == 0 || len(got.Ciphertext) == 0) {
			t.Errorf("decoded %+v", got)
		}
		if err != nil && !errors.Is(err, envelope.ErrNoEnvelope) {
			t.Error(err)
		}
	})
}
