package rotation

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// DescribeWalk describes the walk over the rows for an estimate, by the constants that it
// walks with.
func DescribeWalk(p Pace) estimate.Walk {
	return estimate.Walk{
		RowsInFlight: cap(p.newSlots()), PagesAhead: p.PagesAhead, SaveEvery: p.SaveEvery,
		SegmentsInFlight: segmentsInFlight, MemoryBytes: MemoryBytes, EntryBytes: entryBytes, ProofSample: proofSample, ProofBytes: ownerBytes,
		Reserve: reserve, Idle: passIdle, RehearsalRows: rehearsalRows, RehearsalPage: rehearsalPage,
		Passes: []estimate.Pass{
			{Name: PassCensus, Function: "Verify", AloneFor: concludeTime, NotInEmergency: true},
			{Name: PassRewrap, Function: "Rewrap", Spread: true, Moves: true},
			{Name: passConfirm, Function: "Retire", AloneFor: concludeTime, Proves: true},
			{Name: passVerify, Function: "Verify", AloneFor: concludeTime, Proves: true},
		},
	}
}

// InputBytes returns the size of the plan as the state machine's payload.
func (p Plan) InputBytes() int {
	b, err := json.Marshal(p)
	if err != nil {
		return 0 // it has nothing that cannot be written
	}
	return len(b)
}

// checkLimits refuses a rotation that could not end within a limit, at best: without live
// traffic, with answers of AWS that take no time, and with the rows and data keys that the last
// census has counted. Of sources without a census it knows the segments alone, and assumes that
// each takes one call: an execution that exceeds a limit of Step Functions fails without any
// Catch.
func (s *Steps) checkLimits(ctx context.Context, v kek.View, r kek.Rotation) error {
	if len(s.Machine.Passes) == 0 {
		return nil
	}
	r.Sources = v.Sources
	p, err := s.planRotation(r)
	if err != nil {
		return err
	}
	counted, by, err := s.lastCensus(ctx, v)
	if err != nil {
		return err
	}
	return s.refuseExcess(r, counted, by, p.InputBytes())
}

// refuseExcess refuses a rotation of sources of which so many rows and data keys are counted, by
// the census of a rotation.
func (s *Steps) refuseExcess(r kek.Rotation, counted map[string]Tally, by string, inputBytes int) error {
	if len(s.Machine.Passes) == 0 {
		return nil
	}
	sources := make([]estimate.Source, len(r.Sources))
	for i, def := range r.Sources {
		sources[i] = estimate.Source{Name: def.Name}
		t, ok := counted[def.Name]
		src, err := s.OpenSource(def)
		if !ok || err != nil { // checkSources says what is wrong with its definition
			continue
		}
		traits := src.Traits()
		sources[i] = estimate.Source{
			Name: def.Name, Items: float64(t.countItems()), Rows: float64(t.countRewrapped()), Shares: t.Shares(), KEKs: len(t.ByKEK),
			PageItems: traits.PageItems, PageBytes: float64(traits.PageBytes), Known: traits.KnownPlaintexts,
		}
		if src.Segments(2) == 1 { // a place that cannot be scanned in parts
			sources[i].Segments = 1
		}
		if traits.Billing == source.DynamoDBByUnit {
			sources[i].Billing = estimate.DynamoDBByUnit
		}
	}
	settings := s.AtBest
	settings.Segments = r.Segments
	settings.Concurrency = s.Config.Concurrency
	settings.Emergency = r.Mode == kek.Emergency
	settings.Deep = r.Settings.Deep
	over := estimate.Compute(DescribeWalk(s.Pace), s.Machine, settings, sources).FindExcesses(estimate.Bounds{InputBytes: inputBytes})
	if len(over) == 0 {
		return nil
	}
	because := ""
	if by != "" {
		because = fmt.Sprintf(", with the rows and data keys that the census of rotation %s has counted", by)
	}
	return &journal.Error{
		Kind: journal.Misconfigured, Field: over[0].Limit, Msg: fmt.Sprintf("the rotation could not end: it needs %s%s, and %s is the most", over[0].Need, because, over[0].Most),
		Next: journal.Next{Say: over[0].Change + " (a parameter of the stack), deploy, then start again"},
	}
}

// countRewrapped returns how many of the rows a rotation rewraps that is not an emergency. Keyed
// ones are not: the records of their data keys are.
func (t Tally) countRewrapped() int64 { return t.Scanned - t.Keyed }

// Shares returns how the rows that carry their data keys share them, as a census has counted
// them, if equally many share each.
func (t Tally) Shares() []estimate.Share {
	rows := float64(t.countRewrapped())
	keys := min(t.DataKeys.Count(), rows)
	if keys < 1 {
		return nil
	}
	return []estimate.Share{{Each: rows / keys, DEKs: keys}}
}

// lastCensus returns what the census of the rotation that moved the pointer last has counted, by
// source, and that rotation's id. A source that has another definition since, or joined later,
// is left out. An emergency has taken no census.
func (s *Steps) lastCensus(ctx context.Context, v kek.View) (map[string]Tally, string, error) {
	out := map[string]Tally{}
	if v.Pointer == nil || v.Pointer.RotationID == "" {
		return out, "", nil
	}
	by := v.Pointer.RotationID
	for _, def := range v.Sources {
		cps, err := s.Checkpoints.ListCheckpoints(ctx, by, ProgressName(def), PassCensus)
		if err != nil {
			return nil, "", journal.WrapUnavailable("checkpoints", err)
		}
		var t Tally
		done := len(cps) > 0
		for _, cp := range cps {
			done = done && cp.Done
			t.addTally(cp.Tally)
		}
		if done {
			out[def.Name] = t
		}
	}
	return out, by, nil
}

// LastCensus returns what the census of the rotation that moved the pointer last has counted, by
// source.
func (s *Steps) LastCensus(ctx context.Context) (map[string]Tally, error) {
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return nil, err
	}
	out, _, err := s.lastCensus(ctx, v)
	return out, err
}
