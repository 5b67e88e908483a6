package operate_test

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
)

// TestAddRecords: what doctor says of a key table, and what it can repair.
func TestAddRecords(t *testing.T) {
	for name, c := range map[string]struct {
		in             rotation.LostRecords
		repaired, open int // findings
		fault, repair  string
	}{
		"whole":          {rotation.LostRecords{}, 0, 0, "", ""},
		"seen":           {rotation.LostRecords{Missing: 2, Stale: 1}, 0, 1, "2 records of data keys are missing; 1 are under", "put 3 back under the pointer's KEK"},
		"put back":       {rotation.LostRecords{Missing: 2, Stale: 1, PutBack: 3}, 1, 0, "", ""},
		"some lost":      {rotation.LostRecords{Missing: 2, PutBack: 1, Lost: 1, First: []string{"x"}}, 1, 1, "no copy unwraps of 1 of them, the first x", ""},
		"not records":    {rotation.LostRecords{Damaged: 1}, 0, 1, "1 items are not records", ""},
		"seen, and lost": {rotation.LostRecords{Missing: 2, Lost: 1}, 0, 1, "2 records", "put 1 back under the pointer's KEK"},
	} {
		c.in.Source = "keys"
		var d doctor.Diagnosis
		operate.AddRecords(&d, []rotation.LostRecords{c.in})
		if len(d.Repaired) != c.repaired || len(d.Findings) != c.open {
			t.Errorf("%s: %+v", name, d)
			continue
		}
		for _, f := range d.Findings {
			if f.Item != "records of source keys" || !strings.Contains(f.Fault, c.fault) || f.Repair != c.repair || f.Next.IsZero() {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}
