package report

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The passes, as checkpoints name them.
const (
	passConfirm = "confirm"
	passVerify  = "verify"
)

var passes = []string{rotation.PassCensus, rotation.PassRewrap, passConfirm, passVerify}

// rows fills in the rows by KEK, from the checkpoints of every pass over the sources
// that the rotation has frozen.
func (c *collection) rows(ctx context.Context) error {
	for _, def := range c.view.Rotation.Sources {
		s := SourceRows{Source: def.Name, Before: []KeyCount{}, After: []KeyCount{}, Passes: []Pass{}}
		segments := c.view.Rotation.Segments
		if def.Kind == kek.KindCorpus {
			segments = 1
		}
		for _, pass := range passes {
			cps, err := c.Table.ListCheckpoints(ctx, c.view.Rotation.ID, rotation.ProgressName(def), pass)
			if err != nil {
				return fmt.Errorf("report: read the checkpoints of %s: %w", def.Name, err)
			}
			if len(cps) > 0 {
				s.Passes = append(s.Passes, sum(pass, segments, cps))
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
	p := Pass{Pass: pass, Segments: max(segments, len(cps)), byKEK: map[kek.ID]int64{}}
	for _, cp := range cps {
		if cp.Done {
			p.Done++
		}
		p.add(Pass{
			Scanned: cp.Tally.Scanned, Rewrapped: cp.Tally.Rewrapped, Other: cp.Tally.Other, Declared: cp.Tally.Declared,
			Skipped: cp.Tally.Other + cp.Tally.Declared, Quarantined: cp.Tally.Quarantined, Unwrapped: cp.Tally.Unwrapped, Poison: cp.Tally.Poison,
		})
		for id, n := range cp.Tally.ByKEK {
			p.byKEK[kek.ID(id)] += n
		}
	}
	return p
}

// add adds the counts of o to p.
func (p *Pass) add(o Pass) {
	p.Scanned += o.Scanned
	p.Rewrapped += o.Rewrapped
	p.Other += o.Other
	p.Declared += o.Declared
	p.Skipped += o.Skipped
	p.Quarantined += o.Quarantined
	p.Unwrapped += o.Unwrapped
	p.Poison = append(p.Poison, o.Poison...)
}

// finished reports whether a pass has seen every row.
func (p Pass) finished() bool { return p.Done == p.Segments }

// count turns passes into rows by KEK: before from the census, or from the rewrap if
// there was none, after from the last scan that has seen every row. What a pass
// quarantines is under none of the KEKs, or is no readable envelope.
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
		switch {
		case p.Pass == rotation.PassCensus:
			s.Before, s.BeforeBy = append(keyed(p.byKEK[r.OldKEK], p.byKEK[r.NewKEK], p.Quarantined), c.historic(p)...), p.Pass
			continue // it is no look at what the rotation left
		case p.Pass == rotation.PassRewrap && s.BeforeBy == "":
			s.Before, s.BeforeBy = keyed(p.Rewrapped, p.Scanned-p.Rewrapped-p.Quarantined, p.Quarantined), p.Pass
		}
		s.After, s.By = keyed(0, p.Scanned-p.Quarantined, p.Quarantined), p.Pass
	}
}

// historic counts the rows under the KEKs that the rotation left beside the old one.
func (c *collection) historic(p Pass) []KeyCount {
	var out []KeyCount
	for _, id := range c.view.Rotation.Olds {
		if n := p.byKEK[id]; n > 0 && id != c.report.Rotation.OldKEK {
			out = append(out, KeyCount{KEK: id, Role: roleHistoric, Rows: n})
		}
	}
	return out
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
		t.add(p)
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
