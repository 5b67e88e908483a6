package audittest

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
)

// Run plays one case: view is how the verifier sees the forged bucket.
func Run(t *testing.T, c Case, view func(t *testing.T, b audit.Bucket) audit.Bucket) {
	t.Helper()
	w := New(t)
	c.Tamper(w)
	b := view(t, w.Bucket)
	p := w.Policy
	if c.Memory != nil {
		r, err := audit.Verify(t.Context(), b, p)
		if err != nil {
			t.Fatal(err)
		}
		if r.Result != c.Before {
			t.Errorf("without memory the verdict is %s, want %s: %v", r.Result, c.Before, r.Findings)
		}
		c.Memory(w, &p)
	}
	r, err := audit.Verify(t.Context(), b, p)
	if err != nil {
		t.Fatal(err)
	}
	if r.Result != c.Result() {
		t.Errorf("verdict %s, want %s: %v", r.Result, c.Result(), r.Findings)
	}
	MustFind(t, r, c.Kind, c.Object)
}

// MustFind fails the test unless the report has a finding of a kind about an
// object.
func MustFind(t *testing.T, r audit.Report, k audit.Kind, object string) {
	t.Helper()
	if !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Kind == k && f.Object == object }) {
		t.Errorf("no finding %s about %s in %v", k, object, r.Findings)
	}
}

// Known is how a verifier remembers an anchor.
func Known(tb testing.TB, a audit.Anchor) audit.Known {
	tb.Helper()
	d, err := a.Signed.Statement.Digest()
	if err != nil {
		tb.Fatal(err)
	}
	return audit.Known{N: a.Signed.Statement.N, Digest: d}
}
