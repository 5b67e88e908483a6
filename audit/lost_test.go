package audit_test

import (
	"slices"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
)

// TestGaps: a missing record is explained by a later record that names it, with the hash
// that the one after it commits to. Anything else is a gap.
func TestGaps(t *testing.T) {
	says := func(seq int64, of, hash string) audit.Record {
		return audit.Record{Seq: seq, Type: audit.EventRecordLost, Body: map[string]string{"seq": of, "hash": hash}}
	}
	after := func(seq int64, prev string) audit.Record { return audit.Record{Seq: seq, Prev: prev} }
	for name, c := range map[string]struct {
		missing []int64
		met     []audit.Record
		lost    []audit.Lost
		others  []int64
	}{
		"named":        {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "2", "h2")}, []audit.Lost{{Seq: 2, Hash: "h2", By: 4}}, nil},
		"not named":    {[]int64{2}, []audit.Record{after(3, "h2")}, nil, []int64{2}},
		"another hash": {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "2", "h9")}, nil, []int64{2}},
		"two, the first's hash is unknown": {
			[]int64{2, 3},
			[]audit.Record{after(4, "h3"), says(5, "2", ""), says(6, "3", "h3")},
			[]audit.Lost{{Seq: 2, By: 5}, {Seq: 3, Hash: "h3", By: 6}}, nil,
		},
		"named beforehand":      {[]int64{5}, []audit.Record{says(4, "5", "h5"), after(6, "h5")}, nil, []int64{5}},
		"of another type":       {[]int64{2}, []audit.Record{after(3, "h2"), {Seq: 4, Type: "other", Body: map[string]string{"seq": "2", "hash": "h2"}}}, nil, []int64{2}},
		"with no number at all": {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "two", "h2")}, nil, []int64{2}},
	} {
		var g audit.Gaps
		missing := c.missing
		for _, r := range c.met {
			for len(missing) > 0 && missing[0] < r.Seq {
				g.Miss(missing[0])
				missing = missing[1:]
			}
			g.Meet(r)
		}
		if lost, others := g.Explain(); !slices.Equal(lost, c.lost) || !slices.Equal(others, c.others) {
			t.Errorf("%s: %+v, %v", name, lost, others)
		}
	}
}
