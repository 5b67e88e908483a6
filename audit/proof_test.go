package audit_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// TestLogEntry pins the entry: a log makes its own of the same parts.
func TestLogEntry(t *testing.T) {
	s := audittest.New(t).Anchors[0].Signed
	hexed, err := s.Statement.Digest()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := hex.DecodeString(hexed)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.LogEntry()
	if want := rekortest.Body(sum, s.Signature, s.Key); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
}

// TestProofBody: an entry that differs from that of the statement is refused, and the
// error says in what.
func TestProofBody(t *testing.T) {
	w := audittest.New(t)
	a := w.Anchors[0]
	if _, err := a.Proof.Verify(a.Signed, w.Policy.Trust); err != nil {
		t.Fatal(err)
	}
	other := w.Key.Statement(t, w.Anchors[1].Signed.Statement)
	again := w.Key.Statement(t, a.Signed.Statement)
	otherKey := a.Signed
	otherKey.Key = rekortest.NewKey(t).DER
	entry := func(s audit.Signed) []byte {
		t.Helper()
		b, err := s.LogEntry()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	replaced := func(old, with string) []byte {
		t.Helper()
		if n := bytes.Count(a.Proof.Body, []byte(old)); n != 1 {
			t.Fatalf("%s is there %d times", old, n)
		}
		return bytes.Replace(a.Proof.Body, []byte(old), []byte(with), 1)
	}
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"no JSON":           {[]byte("entry"), "invalid character"},
		"a field more":      {replaced(`{"apiVersion"`, `{"a":1,"apiVersion"`), "unknown field"},
		"another version":   {replaced(`"0.0.2"`, `"0.0.1"`), "it is hashedrekord 0.0.1, this program knows hashedrekord 0.0.2"},
		"another kind":      {replaced(`"hashedrekord"`, `"dsse"`), "it is dsse 0.0.2"},
		"another algorithm": {replaced(`"SHA2_256"`, `"SHA2_512"`), "its digest is that of another statement"},
		"another statement": {entry(other), "its digest is that of another statement"},
		"another signature": {entry(again), "it has another signature"},
		"another key":       {entry(otherKey), "it has another key"},
		"another key type":  {replaced("PKIX_ECDSA_P256", "PKIX_ECDSA_P384"), "it is not encoded canonically"},
		"a space":           {replaced(`{"apiVersion":`, `{"apiVersion": `), "it is not encoded canonically"},
	} {
		p := a.Proof
		p.Body = c.body
		if _, err := p.Verify(a.Signed, w.Policy.Trust); !errors.Is(err, audit.ErrBody) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestProofRefuses what is not a proof although the entry is right.
func TestProofRefuses(t *testing.T) {
	w := audittest.New(t)
	a := w.Anchors[0]
	negative := a.Proof
	negative.Index = -1
	if c, err := negative.Verify(a.Signed, w.Policy.Trust); !errors.Is(err, audit.ErrInclusion) || !strings.Contains(err.Error(), "index -1") || c.Size == 0 {
		t.Errorf("a negative index: %+v, %v", c, err)
	}
	untimed := a.Signed.Statement
	untimed.Time = "yesterday"
	signed := w.Key.Statement(t, untimed)
	if _, err := w.Log.Submit(t, signed).Verify(signed, w.Policy.Trust); err == nil || !strings.Contains(err.Error(), "statement time") {
		t.Errorf("no time: %v", err)
	}
}

// TestFirstEntry: an anchor may be the first entry of its log, whose number is 0.
func TestFirstEntry(t *testing.T) {
	log, key := rekortest.New(t), rekortest.NewKey(t)
	w := audittest.New(t)
	signed := key.Statement(t, w.Anchors[0].Signed.Statement)
	p := log.Submit(t, signed)
	c, err := p.Verify(signed, audit.Trust{Logs: []audit.Log{log.Trust()}})
	if err != nil || p.Index != 0 || c.Size != 1 || c.Origin != rekortest.Origin || len(c.Root) != 32 {
		t.Errorf("entry %d: %+v, %v", p.Index, c, err)
	}
}
