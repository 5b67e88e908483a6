package report

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation"
)

// The passes, as checkpoints name them.
const (
	passConfirm = "confirm"
	passVerify  = "verify"
)

var passes = []string{rotation.PassRewrap, passConfirm, passVerify}

// rows fills in the rows by KEK, from the checkpoints of every pass.
func (c *collection) rows(ctx context.Context) error {
	segments := map[string]int{}
	for _, s := range c.Sources {
		segments[s.Name()] = s.Segments(c.view.Rotation.Segments)
	}
	for _, name := range slices.Sorted(maps.Keys(segments)) {
		s := SourceRows{Source: name, Before: []KeyCount{}, After: []KeyCount{}, Passes: []Pass{}}
		for _, pass := range passes {
			cps, err := c.Table.ListCheckpoints(ctx, c.view.Rotation.ID, name, pass)
			if err != nil {
				return fmt.Errorf("report: read the checkpoints of %s: %w", name, err)
			}
			if len(cps) > 0 {
				s.Passes = append(s.Passes, sum(pass, segments[name], cps))
			}
		}
		if len(s.Passes) > 0 {
			c.count(&s)
			c.report.Rows = append(c.report.Rows, s)
		}
	}
	return nil
}

func sum(pass string, segments int, cps []rotation.Checkpoint) Pass {
	p := Pass{Pass: pass, Segments: max(segments, len(cps))}
	for _, cp := range cps {
		if cp.Done {
			p.Done++
		}
		p.Scanned += cp.Tally.Scanned
		p.Rewrapped += cp.Tally.Rewrapped
		p.Skipped += cp.Tally.Skipped
		p.Quarantined += cp.Tally.Quarantined
		p.Poison = append(p.Poison, cp.Tally.Poison...)
	}
	return p
}

// finished reports whether a pass has seen every row.
func (p Pass) finished() bool { return p.Done == p.Segments }

// count turns passes into rows by KEK: before from the rewrap, after from the last
// scan that has seen every row. What a pass quarantines is under neither KEK, or is
// no readable envelope.
func (c *collection) count(s *SourceRows) {
	r := c.report.Rotation
	keyed := func(old, fresh, neither int64) []KeyCount {
		out := []KeyCount{{KEK: r.OldKEK, Role: roleOld, Rows: old}, {KEK: r.NewKEK, Role: roleNew, Rows: fresh}}
		if neither > 0 {
			out = append(out, KeyCount{Role: roleNeither, Rows: neither})
		}
		return out
	}
	for _, p := range s.Passes {
		if !p.finished() {
			continue
		}
		if p.Pass == rotation.PassRewrap {
			s.Before = keyed(p.Rewrapped, p.Scanned-p.Rewrapped-p.Quarantined, p.Quarantined)
		}
		s.After, s.By = keyed(0, p.Scanned-p.Quarantined, p.Quarantined), p.Pass
	}
}

// total sums what a finished pass saw over all sources; false if the pass is not
// finished everywhere.
func (r Report) total(pass string) (Pass, bool) {
	t := Pass{Pass: pass}
	for _, s := range r.Rows {
		i := slices.IndexFunc(s.Passes, func(p Pass) bool { return p.Pass == pass })
		if i < 0 || !s.Passes[i].finished() {
			return t, false
		}
		p := s.Passes[i]
		t.Segments, t.Done = t.Segments+p.Segments, t.Done+p.Done
		t.Scanned, t.Rewrapped = t.Scanned+p.Scanned, t.Rewrapped+p.Rewrapped
		t.Skipped, t.Quarantined = t.Skipped+p.Skipped, t.Quarantined+p.Quarantined
		t.Poison = append(t.Poison, p.Poison...)
	}
	return t, len(r.Rows) > 0
}

// quarantined lists the rows that a pass could not move or did not accept.
func (r Report) quarantined() []string {
	var out []string
	for _, s := range r.Rows {
		for _, p := range s.Passes {
			for _, row := range p.Poison {
				out = append(out, fmt.Sprintf("%s, %s: %s", s.Source, p.Pass, strings.TrimSpace(row)))
			}
		}
	}
	return out
}
