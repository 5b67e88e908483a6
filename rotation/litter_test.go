package rotation

import (
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
)

// TestLitterAlone: objects that are not of the chain, however many, are left out of the
// verdict; a finding of another kind, listed or not, is never left out with them.
func TestLitterAlone(t *testing.T) {
	stray, gap, old := audit.Finding{Kind: audit.StrayObject, Object: "notes\n.txt"}, audit.Finding{Kind: audit.MissingRecord}, audit.Finding{Kind: audit.TailTooOld}
	for name, tc := range map[string]struct {
		r    audit.Report
		want audit.Result
	}{
		"one":                  {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, Strays: 1}, audit.Green},
		"more than are listed": {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, More: 9, Strays: 10}, audit.Green},
		"one hides a gap":      {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray}, More: 9, Strays: 9}, audit.Tampered},
		"beside a gap":         {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, gap}, Strays: 1}, audit.Tampered},
		"beside an old tail":   {audit.Report{Result: audit.Tampered, Findings: []audit.Finding{stray, old}, Strays: 1}, audit.Unproven},
		"none":                 {audit.Report{Result: audit.Unproven, Findings: []audit.Finding{old}}, audit.Unproven},
	} {
		if got := withoutLitter(tc.r).Result; got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if said := litter(tc.r); (said == "") != (tc.r.Strays == 0) || strings.Contains(said, "\n") {
			t.Errorf("%s: %q", name, said)
		}
	}
}

// TestErrorsOfSeveralLines stay readable on one line.
func TestErrorsOfSeveralLines(t *testing.T) {
	e := &Error{Kind: Misconfigured, Msg: "wrong", Err: errors.Join(errors.New("A is missing"), errors.New("B is missing"))}
	if got := e.Error(); got != "Misconfigured: wrong: A is missing; B is missing" {
		t.Errorf("it says %q", got)
	}
}
