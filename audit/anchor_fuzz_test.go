package audit_test

import (
	"bytes"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

// FuzzParseAnchor: whatever is stored, an anchor that parses has one encoding, and
// nothing that was changed in it still verifies as another.
func FuzzParseAnchor(f *testing.F) {
	w := audittest.New(f)
	for n := range w.Anchors {
		b, err := w.Anchors[n].Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := audit.ParseAnchor(b)
		if err != nil {
			return
		}
		again, err := a.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is encoded as %q, %v", b, again, err)
		}
		_, proven := a.Proof.Verify(a.Signed, w.Policy.Trust)
		if proven != nil || a.Signed.Verify() != nil {
			return
		}
		for _, made := range w.Anchors {
			if a.Signed.Statement == made.Signed.Statement {
				return
			}
		}
		t.Fatalf("a statement that nobody made is proven: %s", b)
	})
}

// FuzzCheckpoint: whatever a log answers, what opens is what the log signed.
func FuzzCheckpoint(f *testing.F) {
	w := audittest.New(f)
	signed := map[string]bool{}
	for _, a := range w.Anchors {
		f.Add(a.Proof.Checkpoint)
		signed[a.Proof.Checkpoint] = true
	}
	f.Add("rekor.test\n1\n\n\n— rekor.test AAAA\n")
	log := w.Log.Trust()
	f.Fuzz(func(t *testing.T, text string) {
		c, err := log.OpenCheckpoint(text)
		if err == nil && !signed[text] && (c.Size < 2 || c.Size > 4) {
			t.Fatalf("%q opens as %+v", text, c)
		}
	})
}
