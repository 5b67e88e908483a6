package anchor_test

import (
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestForeignAnchor: an object in the place of an anchor does not keep the chain from being
// anchored, and verification names it. A process that dies at any call of it leaves
// nothing behind that the next one does not mend.
func TestForeignAnchor(t *testing.T) {
	calls := 0
	for kill := 0; kill <= calls; kill++ {
		for _, lost := range []bool{false, true} {
			a := newAnchorage(t)
			foreign := []byte("{}")
			a.world.Vault().Tamper(audit.AnchorKey("matter", 1), foreign)
			if err := errors.Join(a.record(t.Context(), "one"), a.record(t.Context(), "two")); err != nil {
				t.Fatal(err)
			}
			a.calls, a.kill, a.lost = 0, kill, lost
			meter := counts{}
			a.Journal.Meter = meter
			_, err := a.AnchorChain(t.Context(), anchor.Input{})
			if kill == 0 {
				calls = a.calls
			}
			a.dead, a.kill = false, 0
			if kill > 0 || err == nil {
				_, err = a.AnchorChain(t.Context(), anchor.Input{})
			}
			if err != nil {
				t.Fatalf("killed at call %d: %v", kill, err)
			}
			if len(meter[journal.MetricGeneration]) == 0 {
				t.Errorf("killed at call %d: nobody was paged", kill)
			}
			if _, err := a.AnchorChain(t.Context(), anchor.Input{Canary: true}); err != nil {
				t.Fatal(err)
			}
			r, err := a.VerifyAudit(t.Context(), anchor.AuditOptions{})
			if err != nil || r.Result != audit.Green || r.Anchored != r.Records || len(r.Generations) != 1 {
				t.Fatalf("killed at call %d: %v, %v %+v", kill, err, r, r)
			}
			if g := r.Generations[0]; g.Of != audit.OfAnchors || g.From != 1 || g.Object != audit.AnchorKey("matter", 1) || g.SHA256 != audit.TakenBy("", "", foreign).SHA256 {
				t.Errorf("%+v", g)
			}
			if _, err := a.CheckAnchoring(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// counts are what was metered, by name.
type counts map[string][]int64

func (c counts) Count(name string, n int64) { c[name] = append(c[name], n) }
