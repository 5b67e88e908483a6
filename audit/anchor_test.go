package audit_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

func hexSum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// TestAnchorFormat pins the bytes that the anchor key signs, what the log holds, and
// what is stored: verifiers elsewhere depend on every one of them.
func TestAnchorFormat(t *testing.T) {
	first := audit.AnchorGenesis("prod")
	if want := hexSum("matter-ops/kms-rotation audit anchors v1\x00prod"); first != want {
		t.Errorf("genesis %s, want %s", first, want)
	}
	s := audit.NewStatement("prod", 1, first, audit.Head{Seq: 9, Hash: "ab<cd"}, at)
	text := "matter-ops/kms-rotation audit anchor v1\x00" +
		`{"chain":"prod","head":"ab<cd","n":1,"prev":"` + first + `","seq":9,"time":"2026-04-01T00:00:00.123Z","v":2}`
	msg, err := s.Message()
	if err != nil || string(msg) != text {
		t.Errorf("message %q, %v\nwant %q", msg, err, text)
	}
	if d, err := s.Digest(); err != nil || d != hexSum(text) {
		t.Errorf("digest %s, %v, want %s", d, err, hexSum(text))
	}
	a := audit.Anchor{V: 2, Signed: audit.Signed{Key: []byte("k"), Signature: []byte("s"), Statement: s}, Proof: audit.Proof{Body: []byte("b"), Checkpoint: "c\n", Index: 3}}
	for consistency, hashes := range map[string][][]byte{"": nil, `"consistency":[],`: {}, `"consistency":["aA=="],`: {[]byte("h")}} {
		a.Proof.Consistency = hashes
		want := `{"proof":{"body":"Yg==","checkpoint":"c\n",` + consistency + `"hashes":[],"index":3},"signed":{"key":"aw==","signature":"cw==","statement":` +
			strings.SplitN(text, "\x00", 2)[1] + `},"v":2}`
		if b, err := a.Encode(); err != nil || string(b) != want {
			t.Errorf("anchor %s, %v\nwant %s", b, err, want)
		}
	}
	if got := audit.AnchorKey("prod", 42); got != "v1/prod/anchors/000000000042.json" {
		t.Errorf("object key %s", got)
	}
}

// TestMessageLimit: KMS signs 4096 bytes and no more.
func TestMessageLimit(t *testing.T) {
	s := audit.NewStatement("", 1, "", audit.Head{}, at)
	empty, err := s.Message()
	if err != nil {
		t.Fatal(err)
	}
	s.Chain = strings.Repeat("c", 4096-len(empty))
	if msg, err := s.Message(); err != nil || len(msg) != 4096 {
		t.Errorf("%d bytes, %v", len(msg), err)
	}
	s.Chain += "c"
	if msg, err := s.Message(); err == nil || msg != nil {
		t.Errorf("%d bytes are signed", len(msg))
	}
	if err := (audit.Signed{Key: rekortest.NewKey(t).DER, Statement: s}).Verify(); err == nil || !strings.Contains(err.Error(), "more than the 4096") {
		t.Errorf("verify: %v", err)
	}
}

func pkix(t *testing.T, public any, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func rsaKey(t *testing.T) []byte {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	return pkix(t, k.Public(), err)
}

// TestSignedVerify: the key must be one on P-256 and have signed this statement.
func TestSignedVerify(t *testing.T) {
	good := audittest.New(t).Anchors[0].Signed
	if err := good.Verify(); err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := good.Statement.Message()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(msg)
	sig, err := ecdsa.SignASN1(rand.Reader, other, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(s *audit.Signed)
		want   string
	}{
		"no key":              {func(s *audit.Signed) { s.Key = nil }, "anchor key: asn1"},
		"an RSA key":          {func(s *audit.Signed) { s.Key = rsaKey(t) }, "it is not ECDSA on P-256"},
		"a key on P-384":      {func(s *audit.Signed) { s.Key, s.Signature = pkix(t, other.Public(), nil), sig }, "it is not ECDSA on P-256"},
		"another key":         {func(s *audit.Signed) { s.Key = rekortest.NewKey(t).DER }, "the signature is not the key's"},
		"another statement":   {func(s *audit.Signed) { s.Statement.Seq++ }, "the signature is not the key's"},
		"a broken signature":  {func(s *audit.Signed) { s.Signature = s.Signature[:10] }, "the signature is not the key's"},
		"no signature at all": {func(s *audit.Signed) { s.Signature = nil }, "the signature is not the key's"},
	} {
		bad := good
		c.change(&bad)
		if err := bad.Verify(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestParseAnchorRefuses holds ParseAnchor to one encoding per anchor.
func TestParseAnchorRefuses(t *testing.T) {
	a := audittest.New(t).Anchors[0]
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	if got, err := audit.ParseAnchor(b); err != nil || !cmp.Equal(got, a) {
		t.Fatalf("%+v, %v", got, err)
	}
	a.Proof.Hashes = nil
	alone, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(old, with string) string {
		t.Helper()
		if n := strings.Count(good, old); n != 1 {
			t.Fatalf("%s is there %d times", old, n)
		}
		return strings.Replace(good, old, with, 1)
	}
	old := a
	old.V, old.Signed.Statement.V, old.Proof.Consistency = 1, 1, nil
	first, err := old.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := audit.ParseAnchor(first); err != nil || got.V != 1 || got.Proof.Consistency != nil {
		t.Fatalf("version 1: %+v, %v", got, err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"a space":              {replaced(`{"proof":`, `{ "proof":`), "not in canonical form"},
		"a line":               {good + "\n", "not in canonical form"},
		"a field more":         {replaced(`{"proof":`, `{"a":1,"proof":`), "unknown field"},
		"a field less":         {replaced(`},"v":2}`, `}}`), "not in canonical form"},
		"null for a path":      {strings.Replace(string(alone), `"hashes":[]`, `"hashes":null`, 1), "not in canonical form"},
		"another value":        {good + "{}", "more than one JSON value"},
		"a bracket":            {good + "}", "more than one JSON value"},
		"half":                 {good[:len(good)/2], "unexpected EOF"},
		"a later version":      {replaced(`},"v":2}`, `},"v":3}`), "has version 3, this program knows 1 to 2"},
		"no version":           {replaced(`},"v":2}`, `},"v":0}`), "has version 0, this program knows 1 to 2"},
		"a later statement":    {replaced(`"v":2}},"v":2}`, `"v":3}},"v":2}`), "has version 2, its statement 3"},
		"an earlier statement": {replaced(`"v":2}},"v":2}`, `"v":1}},"v":2}`), "has version 2, its statement 1"},
		"proof in version 1":   {replaced(`"v":2}},"v":2}`, `"v":1}},"v":1}`), "has version 1 and a consistency proof"},
		"null for a proof":     {replaced(`"consistency":[]`, `"consistency":null`), "not in canonical form"},
		"nothing":              {"", "EOF"},
		"a number for a chain": {replaced(`"chain":"matter"`, `"chain":1`), "cannot unmarshal"},
	} {
		got, err := audit.ParseAnchor([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !cmp.Equal(got, audit.Anchor{}) {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, c.want)
		}
	}
	if _, err := audit.ParseAnchor([]byte(good + "\n")); !errors.Is(err, audit.ErrNotCanonical) {
		t.Errorf("%v is not ErrNotCanonical", err)
	}
}
