package s3_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

const (
	good = `{"v":1,"kek_id":"k","kek_epoch":1,"version":2,"wrapped_dek":"ZGVr","ciphertext":"Y3Q=",` +
		`"context":{"id":"a"},"plaintext_sha256":"` + sum + `"}`
	sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func TestDecode(t *testing.T) {
	want := s3source.Entry{
		V: 1, KEK: "k", Epoch: 1, Version: 2, WrappedDEK: []byte("dek"), Ciphertext: []byte("ct"),
		Context: map[string]string{"id": "a"}, PlaintextSHA256: sum,
	}
	for _, in := range []string{good, good + "\n", " " + strings.ReplaceAll(good, ",", " ,\n")} {
		got, err := s3source.Decode([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("entry (-want +got):\n%s", d)
		}
	}
}

// replaced makes one change to the good entry, which must have what is replaced.
func replaced(t *testing.T, old, with string) string {
	t.Helper()
	if strings.Count(good, old) != 1 {
		t.Fatalf("%q is not there once", old)
	}
	return strings.Replace(good, old, with, 1)
}

// TestDecodeRefuses names the field that is wrong.
func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ old, with, mention string }{
		{`"v":1`, `"v":2`, `"v" is 2`},
		{`"v":1,`, ``, `"v" is missing`},
		{`"v":1`, `"V":1`, `"v" is missing`},
		{`"v":1`, `"v":1,"V":1`, `"V" is unknown`},
		{`"v":1`, `"v":1,"note":"x"`, `"note" is unknown`},
		{`"v":1`, `"v":1,"v":1`, `"v" is there twice`},
		{`"v":1`, `"v":"1"`, `"v" has the wrong type`},
		{`"v":1`, `"v":1.5`, `"v" has the wrong type`},
		{`"k"`, `""`, "kek_id"},
		{`"k"`, `null`, "kek_id"},
		{`"k"`, `7`, "kek_id"},
		{`"kek_epoch":1`, `"kek_epoch":-1`, "kek_epoch"},
		{`"kek_epoch":1`, `"kek_epoch":9223372036854775808`, "kek_epoch"},
		{`"version":2`, `"version":-1`, `"version"`},
		{`"ZGVr"`, `""`, "wrapped_dek"},
		{`"ZGVr"`, `null`, "wrapped_dek"},
		{`"ZGVr"`, `"Z"`, "does not decode"},
		{`"ZGVr"`, `"ZGVr?"`, "does not decode"},
		{`"Y3Q="`, `"Y3Q"`, "does not decode"},
		{`"Y3Q="`, `""`, "ciphertext"},
		{`{"id":"a"}`, `null`, "context"},
		{`{"id":"a"}`, `[]`, "context"},
		{`{"id":"a"}`, `{"id":1}`, "context"},
		{sum, strings.ToUpper(sum), "plaintext_sha256"},
		{sum, sum[:62], "plaintext_sha256"},
		{sum, sum + "0", "plaintext_sha256"},
		{sum, sum + "00", "plaintext_sha256"},
		{sum, sum + "x", "plaintext_sha256"},
		{sum, "", "plaintext_sha256"},
		{good, good + good, "follows"},
		{good, good + "x", "follows"},
		{good, good[:len(good)-1], "does not end"},
		{good, good[:20], "not a JSON object"},
		{good, "{1:2}", "not a JSON object"},
		{good, `{"v":x}`, `"v" is not a JSON value`},
		{good, `{"v":1 "w":2}`, "not a JSON object"},
		{good, "[" + good + "]", "not a JSON object"},
		{good, "", "not a JSON object"},
		{good, "null", "not a JSON object"},
	} {
		in := replaced(t, c.old, c.with)
		if _, err := s3source.Decode([]byte(in)); err == nil || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%s: %v, want an error with %q", in, err, c.mention)
		}
	}
}

// FuzzDecode: whatever is stored, decoding ends, what is accepted is stored again as
// the same entry, and no error quotes a value.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(good, `"context":{"id":"a"}`, `"context":{}`, 1)))
	f.Add([]byte(strings.Replace(good, `"v":1`, `"v":1,"v":1`, 1)))
	f.Add([]byte(strings.Replace(good, `"k"`, `"\ud800<&"`, 1)))
	f.Add([]byte(`{"v":1,"V":1}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := s3source.Decode(b)
		if err != nil {
			return
		}
		stored, err := e.Encode()
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		again, err := s3source.Decode(stored)
		if err != nil {
			t.Fatalf("what was encoded does not decode: %v", err)
		}
		if d := cmp.Diff(e, again, cmp.Comparer(bytes.Equal)); d != "" {
			t.Fatalf("entry (-first +again):\n%s", d)
		}
	})
}
