package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// runCensus classifies every item of every source before a key is minted (spec: Count). An
// item is an envelope under a KEK that the rotation leaves, is declared to be something
// else, or is unaccounted. A single unaccounted item ends a normal rotation here, with
// nothing changed. An emergency does not wait for a census: it moves what it can, and what
// it cannot account for blocks the retirement of the old KEK.
func (s *Steps) runCensus(ctx context.Context, in VerifyInput) (SweepOutput, error) {
	v, err := s.Journal.LoadAll(ctx, in.RotationID)
	if err != nil {
		return SweepOutput{}, err
	}
	if v.Rotation == nil {
		return SweepOutput{}, journal.ExplainRefusal(kek.ErrNoRotation)
	}
	r := *v.Rotation
	if r.Counted || r.Phase != kek.Started || r.Mode == kek.Emergency {
		return SweepOutput{Done: true}, s.Journal.Publish(ctx)
	}
	if in.Source != "" {
		return s.runOne(ctx, r, Segment{Source: in.Source, Segment: in.Segment}, s.censusPass(v, r))
	}
	if forgotten := kek.Forgotten(v.Marks, r.Sources); len(forgotten) > 0 {
		return SweepOutput{}, journal.ExplainRefusal(fmt.Errorf("%w: %s", kek.ErrForgotten, forgotten[0].Table))
	}
	out, err := s.runAll(ctx, r, s.censusPass(v, r))
	if err != nil || !out.Done {
		return out, err
	}
	if err := checkCensus(out); err != nil {
		return out, errors.Join(err, s.reopenQuarantined(ctx, r, out.opened, PassCensus))
	}
	if err := s.refuseExcess(r, out.Sources, r.ID, 0); err != nil {
		return out, err
	}
	body := out.censusCounts()
	if err := s.recordUnread(r, body); err != nil {
		return out, err
	}
	_, err = s.Journal.Transition(ctx, "census", r.ID, func(v kek.View) (kek.Change, error) {
		c, err := v.Count(s.Journal.Now())
		if err == nil {
			err = s.checkAge(out.read)
		}
		return c, err
	}, body)
	out.Tally.DataKeys = nil // which nobody can read
	return out, err
}

// censusPass is the pass that classifies every item. It draws no conclusion.
func (s *Steps) censusPass(v kek.View, r kek.Rotation) pass {
	return pass{name: PassCensus, whole: true, keyed: true, visit: func(frozenSource) visit { return s.countRow(rosterOf(v, r)) }}
}

// countRow returns the visit of a census: it classifies a row and writes nothing. Of keyed rows
// it looks up the records of their data keys: of all of them, or of the first [proofSample]
// that it meets.
func (s *Steps) countRow(t roster) visit {
	looked := keySample{steps: s, rotation: t.rotation, seen: map[string]bool{}}
	return func(ctx context.Context, row source.Row) (outcome, error) {
		if err := t.checkRow(row); err != nil {
			return quarantined, err
		}
		if row.DEKID == "" {
			return kept, nil
		}
		err := looked.check(ctx, row)
		if isKeyError(err) {
			return quarantined, err
		}
		return kept, err
	}
}

// maxLookups bounds the memory of a keySample, at about 100 bytes each. A full one is emptied and
// looks some data keys up again.
const maxLookups = 1 << 20

// keySample looks up data keys, each once.
type keySample struct {
	steps    *Steps
	rotation kek.Rotation

	mu   sync.Mutex
	seen map[string]bool
}

// check returns an error if the data key of a keyed row is looked up and has no sound record.
func (k *keySample) check(ctx context.Context, row source.Row) error {
	k.mu.Lock()
	done := k.seen[row.DEKID] || !k.rotation.Settings.Deep && len(k.seen) >= proofSample
	if !done && len(k.seen) >= maxLookups {
		clear(k.seen)
	}
	k.mu.Unlock()
	if done {
		return nil
	}
	keeper, err := k.steps.openKeeper(k.rotation)
	if err == nil {
		_, _, err = k.steps.bornKey(ctx, keeper, row)
	}
	if err == nil { // of one without a record each row is named
		k.mu.Lock()
		k.seen[row.DEKID] = true
		k.mu.Unlock()
	}
	return err
}

// checkCensus refuses unaccounted items, and a source in which no item is an envelope: the
// usual cause is a wrong attribute name in its definition. In a key table there are records
// alone.
func checkCensus(out SweepOutput) error {
	if n := out.Tally.Quarantined; n > 0 {
		return &journal.Error{
			Kind: journal.RowsUnaccounted, Field: "rows",
			Msg: fmt.Sprintf("%d items cannot be accounted for (%s): %s; the pointer was left alone",
				n, formatCounts(out.Tally.ByKind), out.describeQuarantine()),
			Rows: out.Tally.Poison,
			Next: journal.Next{Do: journal.ShowUnaccounted},
		}
	}
	for _, src := range out.opened {
		if t := out.Sources[src.Name()]; noEnvelope(src, t) {
			return errNoEnvelopes(src, t)
		}
	}
	return nil
}

// noEnvelope reports a source none of whose items is an envelope, although its definition
// does not declare them to be something else. A corpus is exempt, because preflight already
// asks it for at least one known cipher.
func noEnvelope(src frozenSource, t Tally) bool {
	return !src.Traits().KnownPlaintexts && !src.Traits().DataKeys && t.Scanned == 0 && t.Other > 0 && t.Declared == 0
}

// errNoEnvelopes refuses a source in which a rotation would find nothing to move.
func errNoEnvelopes(src frozenSource, t Tally) error {
	return &journal.Error{
		Kind: journal.SourceMisconfigured, Field: "sources[" + src.Name() + "]",
		Msg:  fmt.Sprintf("none of its %d items has any of the envelope's attributes", t.Other),
		Next: journal.Next{Do: journal.CorrectNames},
	}
}

// checkSeen refuses to conclude from a source in which no pass of the rotation has seen an
// envelope. A census would have refused it, but an emergency takes none, and a source that
// joined after the switch came too late for it.
func (s *Steps) checkSeen(ctx context.Context, r kek.Rotation, out SweepOutput) error {
	for _, src := range out.opened {
		t := out.Sources[src.Name()]
		if !noEnvelope(src, t) {
			continue
		}
		seen := int64(0)
		for _, name := range []string{PassCensus, PassRewrap} {
			cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, src.progressName(), name)
			if err != nil {
				return journal.WrapUnavailable("checkpoints", err)
			}
			for _, cp := range cps {
				seen += cp.Tally.Scanned
			}
		}
		if seen == 0 {
			return errNoEnvelopes(src, t)
		}
	}
	return nil
}

// censusCounts returns what the audit record says of a census: counts for each source.
func (o SweepOutput) censusCounts() map[string]string {
	body := map[string]string{}
	for name, t := range o.Sources {
		body["source."+name] = fmt.Sprintf("%d envelopes (%s) under about %.0f data keys, %d other items", t.Scanned, formatCounts(t.ByKEK), t.DataKeys.Count(), t.Other+t.Declared)
		if t.Keyed > 0 {
			which := "a sample"
			if o.Deep {
				which = "each"
			}
			body["source."+name] += fmt.Sprintf(", %d of the envelopes keyed and not among these data keys, %s of theirs looked up", t.Keyed, which)
		}
	}
	return body
}

// formatCounts writes counts in one line, sorted by name.
func formatCounts(counts map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// Census says what every item of every registered source is at the moment.
type Census struct {
	Sources   map[string]Tally `json:"sources"`   // by name
	DataKeys  map[string]int64 `json:"data_keys"` // about how many distinct ones each source has
	Forgotten []kek.Mark       `json:"forgotten"`
	Problem   string           `json:"problem"` // why a rotation would be refused; "" if it would not
	Refusal   error            `json:"-"`       // the same, with what to do about it
}

// TakeCensus reads every item of every registered source, or of the one named, and
// classifies it as a rotation that starts now would. It writes nothing. seen is told
// how many items were read; it may be nil.
func (s *Steps) TakeCensus(ctx context.Context, only string, seen func(int64)) (Census, error) {
	out := Census{Sources: map[string]Tally{}, DataKeys: map[string]int64{}}
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return out, err
	}
	defs := v.Sources
	if only != "" {
		src, err := s.openRegistered(v, only)
		if err != nil {
			return out, err
		}
		defs = []kek.Source{src.def}
	}
	sources, err := s.openSources(defs)
	if err != nil {
		return out, err
	}
	whole, err := countSources(ctx, sources, s.countRow(s.rosterForCensus(v)), seen)
	for name, t := range whole.Sources {
		out.DataKeys[name] = int64(t.DataKeys.Count() + 0.5)
		t.DataKeys = nil // which nobody can read
		out.Sources[name] = t
	}
	if err != nil {
		return out, err
	}
	if err := checkCensus(whole); err != nil {
		out.Refusal, out.Problem = err, err.Error()
	}
	if out.Forgotten = kek.Forgotten(v.Marks, v.Sources); len(out.Forgotten) > 0 {
		err := journal.ExplainRefusal(fmt.Errorf("%w: %s", kek.ErrForgotten, out.Forgotten[0].Table))
		out.Refusal, out.Problem = errors.Join(out.Refusal, err), strings.TrimSpace(out.Problem+" "+err.Error())
	}
	return out, nil
}

// rosterForCensus is registryRoster with the registered sources, among which the key table is,
// and the deployment's choice of how much is looked up.
func (s *Steps) rosterForCensus(v kek.View) roster {
	t := registryRoster(v)
	if len(t.rotation.Sources) == 0 {
		t.rotation.Sources, t.rotation.Settings.Deep = v.Sources, s.Config.Deep
	}
	return t
}

func (t Tally) countItems() int64 { return t.Scanned + t.Other + t.Declared }

// registryRoster returns the roster of the rotation that runs, or else of one that would
// start now: it would leave every KEK that is not retired.
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

// countSources classifies every item of sources by a visit. seen is told how many items
// were read; it may be nil.
func countSources(ctx context.Context, sources []frozenSource, visit visit, seen func(int64)) (SweepOutput, error) {
	out := SweepOutput{Sources: map[string]Tally{}, opened: sources}
	for _, src := range sources {
		tally, err := countItems(ctx, src, visit, func(n int64) {
			if seen != nil {
				seen(out.Tally.countItems() + n)
			}
		})
		if err != nil {
			return out, err
		}
		out.Sources[src.Name()] = tally
		out.Tally.addTally(tally)
	}
	return out, nil
}

// countItems classifies every item of a source, without checkpoints.
func countItems(ctx context.Context, src frozenSource, visit visit, seen func(int64)) (Tally, error) {
	look := sweep{pass: PassCensus, visit: visit}
	var tally Tally
	cursor := ""
	for {
		page, err := src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Whole: true})
		if err != nil {
			return tally, journal.WrapUnavailable("source "+src.Name(), err)
		}
		page.Rows, page.Keyed = append(page.Rows, page.Keyed...), nil
		p := newWalkedPage(page, time.Time{})
		for i, row := range page.Rows {
			p.results[i], p.reasons[i] = look.visit(ctx, row)
			if p.reasons[i] != nil && p.results[i] != quarantined {
				return tally, p.reasons[i]
			}
		}
		if tally, err = look.countPage(p, tally); err != nil {
			return tally, err
		}
		seen(tally.countItems())
		if cursor = page.Next; cursor == "" {
			return tally, nil
		}
	}
}
