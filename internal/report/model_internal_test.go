package report

import (
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
)

// TestClaimsRestOnTheModel: a chain that verifies, and has a record that is not a step of a
// rotation, shows nothing in full.
func TestClaimsRestOnTheModel(t *testing.T) {
	for _, c := range []struct {
		findings []replay.Finding
		result   audit.Result
		want     Status
	}{
		{nil, audit.Green, Shown},
		{[]replay.Finding{{Seq: 1}}, audit.Green, Partly},
		{[]replay.Finding{{Seq: 1}}, audit.Tampered, NotShown},
	} {
		r := collection{report: &Report{}}
		r.report.Audit.Verification = Verification{Result: c.result, Model: &replay.Report{Findings: c.findings}}
		if got := r.rateClaim(Claim{Status: Shown}); got.Status != c.want {
			t.Errorf("%v, %s: %s, want %s", c.findings, c.result, got.Status, c.want)
		}
	}
}
