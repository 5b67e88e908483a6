package report

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The passes, as checkpoints name them.
const (
	passConfirm = "confirm"
	passVerify  = "verify"
)

var passes = []string{rotation.PassCensus, rotation.PassRewrap, passConfirm, passVerify}

// collectRows adds the rows by KEK, from the checkpoints of every pass over the sources
// that the rotation has frozen, in the control table or in the audit chain.
func (c *collection) collectRows(ctx context.Context) error {
	for _, def := range c.view.Rotation.Sources {
		s := SourceRows{Source: def.Name, Before: []KeyCount{}, After: []KeyCount{}, Passes: []Pass{}}
		segments := c.view.Rotation.Segments
		if src, err := c.Open(def); err == nil { // of a kind that this release does not know the rotation's own
			segments = src.Segments(segments)
		}
		for _, pass := range passes {
			cps, err := c.Table.ListCheckpoints(ctx, c.view.Rotation.ID, rotation.ProgressName(def), pass)
			if err != nil {
				return fmt.Errorf("report: read the checkpoints of %s: %w", def.Name, err)
			}
			for i := range cps {
				cps[i].Proof = c.proveCheckpoint(ctx, cps[i])
			}
			if len(cps) == 0 {
				cps = c.findArchived(rotation.ProgressName(def), pass)
			}
			c.nameUnproven(def.Name, cps)
			if len(cps) > 0 {
				s.Passes = append(s.Passes, sumPass(pass, segments, cps))
			}
		}
		if len(s.Passes) > 0 {
			c.countByKEK(&s)
			c.report.Rows = append(c.report.Rows, s)
		} else if r := c.view.Rotation; r.RecordsOnly && r.Mode == kek.Normal && r.Phase.Reached(kek.Rewrapped) {
			c.addNote("Source %s was not read: no row in it can carry a data key under a KEK that the rotation left. The records of its data keys are rows of the key table.", def.Name)
		}
	}
	return nil
}

// proveCheckpoint says what the MAC of a checkpoint proves. A reader who may not ask KMS for the
// key of the MACs gets a report in which no checkpoint is proven, and that says so.
func (c *collection) proveCheckpoint(ctx context.Context, cp rotation.Checkpoint) rotation.Proof {
	if c.Prove == nil {
		return rotation.Unchecked
	}
	proof, err := c.Prove(ctx, cp)
	if err != nil {
		if !c.unasked {
			c.addNote("The MACs of the checkpoints could not be compared, so no count of rows in this report is proven: %v", err)
		}
		c.unasked = true
		return rotation.Unchecked
	}
	return proof
}

// nameUnproven remembers the checkpoints of a pass that are not proven.
func (c *collection) nameUnproven(source string, cps []rotation.Checkpoint) {
	for _, cp := range cps {
		if cp.Proof != rotation.Proven {
			c.unproven = append(c.unproven, fmt.Sprintf("%s, %s, segment %d: %s", source, cp.Pass, cp.Segment, cp.Proof.Describe()))
		}
	}
}

// findArchived returns the checkpoints of a pass over a source that the audit chain keeps.
func (c *collection) findArchived(source, pass string) []rotation.Checkpoint {
	var out []rotation.Checkpoint
	for _, cp := range c.archived {
		if cp.Source == source && cp.Pass == pass {
			out = append(out, cp)
		}
	}
	return out
}

// collectArchived reads the checkpoints that the audit chain keeps, which later rotations have
// removed from the control table. A program that can write the control table can write its outbox
// too, so a record counts only if the locked bucket has it.
func (c *collection) collectArchived(ctx context.Context) {
	var records []audit.Record
	for _, e := range c.entries {
		if len(rotation.ArchivedCheckpoints([]audit.Record{e.Record}, c.view.Rotation.ID)) == 0 {
			continue
		}
		if state := c.compareWithBucket(ctx, c.line, e); state != bucketSame {
			c.addNote("Audit record %d, which has archived checkpoints of this rotation, is left out: in the locked bucket it is %s.", e.Record.Seq, state)
			continue
		}
		records = append(records, e.Record)
	}
	c.archived = rotation.ArchivedCheckpoints(records, c.view.Rotation.ID)
	if len(c.archived) > 0 {
		c.addNote("The checkpoints of this rotation are archived: their counts are from the audit chain, which does not keep the ids of quarantined rows.")
	}
}

// sumPass sums the checkpoints of a pass over one source. A segment without a checkpoint
// has not begun, so it counts as not done; one whose checkpoint is not proven too, as for the
// steps, and what it says is left out.
func sumPass(pass string, segments int, cps []rotation.Checkpoint) Pass {
	p := Pass{Pass: pass, Segments: max(segments, len(cps)), byKEK: map[kek.ID]int64{}}
	for _, cp := range cps {
		if cp.Proof != rotation.Proven {
			p.Unproven++
			continue
		}
		if cp.Done {
			p.Done++
		}
		p.addCounts(Pass{
			Scanned: cp.Tally.Scanned, Keyed: cp.Tally.Keyed, Rewrapped: cp.Tally.Rewrapped, Other: cp.Tally.Other, Declared: cp.Tally.Declared,
			Skipped: cp.Tally.Other + cp.Tally.Declared, Quarantined: cp.Tally.Quarantined, Unwrapped: cp.Tally.Unwrapped, Poison: cp.Tally.Poison,
		})
		for id, n := range cp.Tally.ByKEK {
			p.byKEK[kek.ID(id)] += n
		}
	}
	return p
}

// addCounts adds the counts of o to p.
func (p *Pass) addCounts(o Pass) {
	p.Scanned += o.Scanned
	p.Keyed += o.Keyed
	p.Rewrapped += o.Rewrapped
	p.Other += o.Other
	p.Declared += o.Declared
	p.Skipped += o.Skipped
	p.Quarantined += o.Quarantined
	p.Unwrapped += o.Unwrapped
	p.Poison = append(p.Poison, o.Poison...)
}

// isFinished reports whether a pass has seen every row.
func (p Pass) isFinished() bool { return p.Done == p.Segments }

// countByKEK computes the rows by KEK from the passes: before the rotation from the
// census, or from the rewrap if there was none; after it from the last scan that is done. A
// row that a pass quarantines is under none of the KEKs, or is not a readable envelope. A keyed
// row names no KEK: the record of its data key does, which is a row of the key table.
func (c *collection) countByKEK(s *SourceRows) {
	r := c.report.Rotation
	count := func(p Pass, old, fresh int64) []KeyCount {
		out := []KeyCount{{KEK: r.OldKEK, Role: roleOld, Rows: old}, {KEK: r.NewKEK, Role: roleNew, Rows: fresh}}
		if p.Keyed > 0 {
			out = append(out, KeyCount{Role: roleKeyed, Rows: p.Keyed})
		}
		if p.Quarantined > 0 {
			out = append(out, KeyCount{Role: roleNeither, Rows: p.Quarantined})
		}
		return out
	}
	for _, p := range s.Passes {
		if !p.isFinished() {
			continue
		}
		switch {
		case p.Pass == rotation.PassCensus:
			s.Before, s.BeforeBy = append(count(p, p.byKEK[r.OldKEK], p.byKEK[r.NewKEK]), c.countHistoric(p)...), p.Pass
			continue // a census shows nothing about the rows after the rotation
		case p.Pass == rotation.PassRewrap && s.BeforeBy == "" && (p.Keyed == 0 || r.Mode == kek.Normal): // an emergency's counts keyed rows as rewrapped
			s.Before, s.BeforeBy = count(p, p.Rewrapped, max(0, p.Scanned-p.Rewrapped-p.Keyed-p.Quarantined)), p.Pass
		}
		s.After, s.By = count(p, 0, max(0, p.Scanned-p.Keyed-p.Quarantined)), p.Pass
	}
}

// countHistoric counts the rows under the KEKs that the rotation retired with the old one.
func (c *collection) countHistoric(p Pass) []KeyCount {
	var out []KeyCount
	for _, id := range c.view.Rotation.Olds {
		if n := p.byKEK[id]; n > 0 && id != c.report.Rotation.OldKEK {
			out = append(out, KeyCount{KEK: id, Role: roleHistoric, Rows: n})
		}
	}
	return out
}

// sumFinished sums the counts of a pass over all sources; false if the pass is not finished
// in every source.
func (r Report) sumFinished(pass string) (Pass, bool) {
	t := Pass{Pass: pass}
	for _, s := range r.Rows {
		i := slices.IndexFunc(s.Passes, func(p Pass) bool { return p.Pass == pass })
		if i < 0 || !s.Passes[i].isFinished() {
			return t, false
		}
		p := s.Passes[i]
		t.Segments, t.Done = t.Segments+p.Segments, t.Done+p.Done
		t.addCounts(p)
	}
	return t, len(r.Rows) > 0
}

// listQuarantined returns the rows that a pass could not rewrap or did not accept.
func (r Report) listQuarantined() []string {
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
