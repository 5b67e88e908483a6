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
	_, err = s.transition(ctx, "census", r.ID, func(v kek.View) (kek.Change, error) {
		c, err := v.Count(s.Now())
		if err == nil {
			err = s.checkAge(out.read)
		}
		return c, err
	}, out.counts())
	return out, err
}

// runCensus is the pass, without a conclusion.
func (s *Steps) runCensus(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	t := rosterOf(v, r)
	return s.runAll(ctx, r, pass{name: PassCensus, whole: true, visit: func(frozen) visit { return t.look }})
}

// look is the visit of a census.
func (t roster) look(_ context.Context, row Row) (outcome, error) {
	if err := t.judge(row); err != nil {
		return quarantined, err
	}
	return kept, nil
}

// checkCensus refuses unaccounted items, and a source of which no item is an envelope:
// a wrong attribute name makes one.
func checkCensus(sources []kek.Source, out SweepOutput) error {
	if n := out.Tally.Quarantined; n > 0 {
		return &Error{
			Kind: RowsUnaccounted, Field: "rows",
			Msg: fmt.Sprintf("%d items cannot be accounted for (%s): %s; the pointer was left alone",
				n, counted(out.Tally.ByKind), out.quarantine()),
			Rows: out.Tally.Poison,
			Next: "matter ops census shows them; matter ops adopt brings rows in that were written without this project",
		}
	}
	for _, src := range sources {
		if t := out.Sources[src.Name]; noEnvelope(src, t) {
			return unlikely(src, t)
		}
	}
	return nil
}

// noEnvelope reports a table whose items are all something else and not said to be.
func noEnvelope(src kek.Source, t Tally) bool {
	return src.Kind == kek.KindDynamoDB && t.Scanned == 0 && t.Other > 0 && t.Declared == 0
}

func unlikely(src kek.Source, t Tally) error {
	return &Error{
		Kind: SourceMisconfigured, Field: "sources[" + src.Name + "]",
		Msg: fmt.Sprintf("none of its %d items has any of the envelope's attributes", t.Other),
		Next: `correct the attributes' names with matter ops source add --confirm; if the table holds no envelopes yet, ` +
			`say what its items are with "other" in the definition`,
	}
}

// checkSeen refuses to conclude from a source of which no pass has ever seen an
// envelope: no census has looked at it in an emergency, or where it joined after the
// switch.
func (s *Steps) checkSeen(ctx context.Context, r kek.Rotation, out SweepOutput) error {
	for _, src := range r.Sources {
		t := out.Sources[src.Name]
		if !noEnvelope(src, t) {
			continue
		}
		seen := int64(0)
		for _, name := range []string{PassCensus, PassRewrap} {
			cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, ProgressName(src), name)
			if err != nil {
				return unavailable("checkpoints", err)
			}
			for _, cp := range cps {
				seen += cp.Tally.Scanned
			}
		}
		if seen == 0 {
			return unlikely(src, t)
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

// Census is what every item of every registered source is, now.
type Census struct {
	Sources   map[string]Tally `json:"sources"` // by name
	Forgotten []kek.Mark       `json:"forgotten"`
	Problem   string           `json:"problem"` // why a rotation would be refused; "" if it would not
}

// TakeCensus reads every item of every registered source, or of the one named, and
// classifies it as a rotation that starts now would. It writes nothing. seen is told
// how many items were read; it may be nil.
func (s *Steps) TakeCensus(ctx context.Context, only string, seen func(int64)) (Census, error) {
	out := Census{Sources: map[string]Tally{}}
	v, err := s.loadAll(ctx, "")
	if err != nil {
		return out, err
	}
	defs := v.Sources
	if only != "" {
		src, err := s.registered(v, only)
		if err != nil {
			return out, err
		}
		defs = []kek.Source{src.def}
	}
	sources, err := s.openSources(defs)
	if err != nil {
		return out, err
	}
	t := registryRoster(v)
	whole := SweepOutput{Sources: out.Sources}
	for _, src := range sources {
		tally, err := countItems(ctx, src, t, func(n int64) {
			if seen != nil {
				seen(whole.Tally.items() + n)
			}
		})
		if err != nil {
			return out, err
		}
		out.Sources[src.Name()] = tally
		whole.Tally.add(tally)
	}
	if err := checkCensus(defs, whole); err != nil {
		out.Problem = err.Error()
	}
	if out.Forgotten = kek.Forgotten(v.Marks, v.Sources); len(out.Forgotten) > 0 {
		out.Problem = strings.TrimSpace(out.Problem + " " + refusal(fmt.Errorf("%w: %s", kek.ErrForgotten, out.Forgotten[0].Table)).Error())
	}
	return out, nil
}

func (t Tally) items() int64 { return t.Scanned + t.Other + t.Declared }

// registryRoster is the roster of a rotation that would start now, or of the one that
// runs.
func registryRoster(v kek.View) roster {
	if v.Lock != "" && v.Rotation != nil {
		return rosterOf(v, *v.Rotation)
	}
	r := kek.Rotation{}
	for id, k := range v.KEKs {
		if k.State.Resolves() {
			r.Olds = append(r.Olds, id)
		}
	}
	slices.Sort(r.Olds)
	return rosterOf(v, r)
}

// countItems classifies every item of a source.
func countItems(ctx context.Context, src frozen, t roster, seen func(int64)) (Tally, error) {
	look := sweep{pass: PassCensus, visit: t.look}
	var tally Tally
	cursor := ""
	for {
		page, err := src.Scan(ctx, ScanRequest{Total: 1, Cursor: cursor, Whole: true})
		if err != nil {
			return tally, unavailable("source "+src.Name(), err)
		}
		if tally, err = look.page(ctx, page, tally); err != nil {
			return tally, err
		}
		seen(tally.items())
		if cursor = page.Next; cursor == "" {
			return tally, nil
		}
	}
}
