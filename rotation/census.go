package rotation

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// census looks at every item of every source before a key is minted (spec: Count).
// Each item is an envelope under a KEK that the rotation leaves, is declared to be
// something else, or is unaccounted: one of the last kind ends a normal rotation here,
// with nothing changed. An emergency does not wait for it: it moves what it can, and
// what it cannot account for blocks the retirement.
func (s *Steps) census(ctx context.Context, id string) (SweepOutput, error) {
	v, err := s.loadAll(ctx, id)
	if err != nil {
		return SweepOutput{}, err
	}
	if v.Rotation == nil {
		return SweepOutput{}, refusal(kek.ErrNoRotation)
	}
	r := *v.Rotation
	if r.Counted || r.Phase != kek.Started || r.Mode == kek.Emergency {
		return SweepOutput{Done: true}, s.publish(ctx)
	}
	if forgotten := kek.Forgotten(v.Marks, r.Sources); len(forgotten) > 0 {
		return SweepOutput{}, refusal(fmt.Errorf("%w: %s", kek.ErrForgotten, forgotten[0].Table))
	}
	out, err := s.runCensus(ctx, v, r)
	if err != nil || !out.Done {
		return out, err
	}
	if err := checkCensus(r.Sources, out); err != nil {
		return out, err
	}
	_, err = s.transition(ctx, "census", r.ID, func(v kek.View) (kek.Change, error) { return v.Count(s.Now()) }, out.counts())
	return out, err
}

// runCensus is the pass, without a conclusion.
func (s *Steps) runCensus(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	t := rosterOf(v, r)
	return s.runAll(ctx, r, pass{name: PassCensus, whole: true, visit: func(frozen) visit {
		return func(_ context.Context, row Row) (outcome, error) {
			if err := t.judge(row); err != nil {
				return quarantined, err
			}
			return kept, nil
		}
	}})
}

// checkCensus refuses unaccounted items, and a source of which no item is an envelope:
// a wrong attribute name makes one.
func checkCensus(sources []kek.Source, out SweepOutput) error {
	if n := out.Tally.Quarantined; n > 0 {
		return &Error{
			Kind: RowsUnaccounted, Field: "rows",
			Msg: fmt.Sprintf("%d items cannot be accounted for (%s); the pointer was left alone. First: %q",
				n, counted(out.Tally.ByKind), out.Tally.Poison),
			Next: "matter ops census shows them; matter ops adopt brings rows in that were written without this project",
		}
	}
	for _, src := range sources {
		if t := out.Sources[src.Name]; src.Kind == kek.KindDynamoDB && t.Scanned == 0 && t.Other > 0 && t.Declared == 0 {
			return &Error{
				Kind: SourceMisconfigured, Field: "sources[" + src.Name + "]",
				Msg: fmt.Sprintf("none of its %d items has any of the envelope's attributes", t.Other),
				Next: `correct the attributes' names with matter ops source add --confirm; if the table holds no envelopes yet, ` +
					`say what its items are with "other" in the definition`,
			}
		}
	}
	return nil
}

// counts is what the record says of a census.
func (o SweepOutput) counts() map[string]string {
	body := map[string]string{}
	for name, t := range o.Sources {
		body["source."+name] = fmt.Sprintf("%d envelopes (%s), %d other items", t.Scanned, counted(t.ByKEK), t.Other+t.Declared)
	}
	return body
}

// counted writes counts in one line, by name.
func counted(counts map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
