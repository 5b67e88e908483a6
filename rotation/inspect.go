package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Verdict is the conclusion from what an inspection has found. A higher one is worse.
type Verdict int

// The verdicts.
const (
	Fulfilled Verdict = iota
	Unproven          // nothing contradicts the expectation, but no public log proves it
	Violated
	Orphaned // rows do not open, or would not after their KEK is retired
)

// Inspection states what a completed rotation has left: facts that were read again from the
// sources, from KMS and from the audit bucket, each with its verdict. [Steps.Verify] concludes
// from the same facts, but only for the KEKs and the sources that the rotation has frozen;
// an inspection may be made years later, so it reads every registered source and accepts rows
// under the KEK of a later rotation.
type Inspection struct {
	Rows    RowInspection
	OldKEKs []OldKEK
	Chain   ChainInspection
	Anchor  *AnchorInspection // nil: the chain has no record of the completion to look for
	Missing string            // the sources that lost many rows while the rotation ran; "" for none
}

// InspectRotation inspects a completed rotation. It writes nothing but audit records that
// are not in the bucket yet, and an anchor: by hand there is no schedule that makes one. seen
// is told how many items were read.
func (s *Steps) InspectRotation(ctx context.Context, r kek.Rotation, seen func(int64)) (Inspection, error) {
	var out Inspection
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return out, err
	}
	if out.Missing, err = s.RowsMissing(ctx, r); err != nil {
		return out, err
	}
	if out.Rows, err = s.inspectRows(ctx, v, r, seen); err != nil {
		return out, err
	}
	if out.OldKEKs, err = s.inspectOldKEKs(ctx, v, r); err != nil {
		return out, err
	}
	out.Chain, out.Anchor, err = s.inspectChain(ctx, r.ID)
	if out.Missing == "" { // its checkpoints may be archived
		out.Missing = out.Chain.Completion.Body[bodyMissing]
	}
	return out, err
}

// RowInspection is what every item of every registered source is.
type RowInspection struct {
	Pointer     kek.ID // the KEK of the pointer; "": there is no pointer, and nothing was read
	Later       bool   // a later rotation has moved the pointer
	Sources     int
	Tally       Tally
	Elsewhere   int64 // rows under another KEK than the rotation's new one; 0 if Later
	Orphaned    int64 // rows under a KEK that the registry does not know, that is retired, or that KMS has disabled, and keyed ones without a record
	Unaccounted int64 // items that are unaccounted for another reason
	Proof       RowProof
}

// Verdict concludes from the rows.
func (r RowInspection) Verdict() Verdict {
	switch {
	case r.Orphaned > 0 || r.Proof.Wrong > 0:
		return Orphaned
	case r.Pointer == "" || r.Elsewhere > 0 || r.Unaccounted > 0:
		return Violated
	}
	return Fulfilled
}

// RowProof says which data keys were unwrapped under the KEKs that the rows name.
type RowProof struct {
	Deep      bool  // every distinct data key, else the first few
	Unwrapped int64 // distinct data keys
	Wrong     int64 // rows that are not under the KEK that they name
	First     string
}

// inspectRows classifies every item of the registered sources, as a census does, and unwraps
// the data keys of the rows that it finds under the KEKs that they name.
func (s *Steps) inspectRows(ctx context.Context, v kek.View, r kek.Rotation, seen func(int64)) (RowInspection, error) {
	if v.Pointer == nil {
		return RowInspection{}, nil
	}
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return RowInspection{}, err
	}
	t := s.rosterForCensus(v)
	count := s.countRow(t)
	out := RowInspection{Pointer: v.Pointer.KEKID, Later: v.Pointer.KEKID != r.NewKEK, Sources: len(v.Sources), Proof: RowProof{Deep: s.Config.Deep}}
	looked := kek.Rotation{ID: "inspected " + s.Journal.Now().Format(time.RFC3339Nano), NewKEK: v.Pointer.KEKID} // nothing that was proved before counts
	looked.Settings.Deep = s.Config.Deep
	proof := s.newProver(looked, "")
	counted, err := countSources(ctx, sources, func(ctx context.Context, row source.Row) (outcome, error) {
		if row.DEKID != "" { // its data key is a row of the key table
			return count(ctx, row)
		}
		if err := out.Proof.addRow(ctx, proof, t, row); err != nil {
			return kept, err
		}
		return count(ctx, row)
	}, seen)
	if err != nil {
		return out, err
	}
	out.Tally = counted.Tally
	out.Orphaned = out.Tally.countOrphans()
	out.Unaccounted = out.Tally.Quarantined - out.Orphaned
	for _, id := range slices.Sorted(maps.Keys(out.Tally.ByKEK)) {
		k, err := s.describeKEK(ctx, kek.ID(id))
		if err != nil {
			return out, err
		}
		if !k.Enabled {
			out.Orphaned += out.Tally.ByKEK[id]
		}
		if !out.Later && kek.ID(id) != r.NewKEK {
			out.Elsewhere += out.Tally.ByKEK[id]
		}
	}
	return out, nil
}

// addRow unwraps the data key of a row, unless that was done for another row. A row under a
// disabled KEK proves nothing; it is counted as orphaned by its KEK.
func (p *RowProof) addRow(ctx context.Context, proof *prover, t roster, row source.Row) error {
	if _, known := t.keks[row.KEK]; !known || row.Defect != "" {
		return nil
	}
	did, err := proof.proveKey(ctx, row)
	switch {
	case did:
		p.Unwrapped++
	case errors.Is(err, journal.ErrUnwrap):
		if p.Wrong == 0 {
			p.First = row.ID
		}
		p.Wrong++
	case errors.Is(err, journal.ErrKeyDisabled), errors.Is(err, journal.ErrNoKey):
	case err != nil:
		return fmt.Errorf("unwrap the data key of row %s: %w", row.ID, err)
	}
	return nil
}

// OldKEK is what a KEK that a rotation has left is now.
type OldKEK struct {
	ID         kek.ID
	Registered kek.State // "": it is not in the registry
	Key        keyring.Key
	Unwraps    bool  // a data key that was wrapped under it before the switch still unwraps
	Tried      bool  // false: an emergency could wrap no data key under it, so none was tried
	Failure    error // why KMS gave neither answer
}

// Verdict concludes from the KEK: it must be dead in the registry, by what KMS says of it, and
// by what KMS does with it.
func (o OldKEK) Verdict() Verdict {
	if o.Registered == kek.Retired && !o.Key.Enabled && !o.Unwraps && o.Failure == nil {
		return Fulfilled
	}
	return Violated
}

// inspectOldKEKs looks at every KEK that the rotation has left.
func (s *Steps) inspectOldKEKs(ctx context.Context, v kek.View, r kek.Rotation) ([]OldKEK, error) {
	left := listLeftKEKs(r)
	if len(r.Olds) == 0 { // a rotation of an earlier release
		left = []kek.ID{r.OldKEK}
	}
	var out []OldKEK
	for _, id := range left {
		k, err := s.describeKEK(ctx, id)
		if err != nil {
			return nil, err
		}
		old := OldKEK{ID: id, Registered: v.KEKs[id].State, Key: k}
		old.Unwraps, old.Tried, old.Failure = s.OldKEKUnwraps(ctx, r, id)
		out = append(out, old)
	}
	return out, nil
}

// ChainInspection is what the audit bucket holds of the rotation's end.
type ChainInspection struct {
	Chain      string
	Records    int64        // of the chain, by the control table
	Tampered   error        // what contradicts the chain; nil for nothing
	Completion audit.Record // kms_rotation_completed; the zero record if the chain has none of this rotation
}

// Verdict concludes from the chain.
func (c ChainInspection) Verdict() Verdict {
	if c.Tampered != nil || c.Completion.Seq == 0 {
		return Violated
	}
	return Fulfilled
}

// AnchorInspection is how far a public log proves the chain.
type AnchorInspection struct {
	NoLog      bool // the deployment has no transparency log
	Report     audit.Report
	Failure    error // why the chain could not be anchored just now; nil if it could
	Completion int64 // the record that an anchor must cover
}

// Verdict concludes from the anchor. A chain that was tampered with is judged before it.
func (a AnchorInspection) Verdict() Verdict {
	if a.NoLog || a.Report.Anchored < a.Completion || a.Report.Result == audit.Unproven {
		return Unproven
	}
	return Fulfilled
}

// inspectChain anchors the chain, verifies it in the bucket, and finds the record of the
// rotation's completion and the anchor that covers it.
func (s *Steps) inspectChain(ctx context.Context, id string) (ChainInspection, *AnchorInspection, error) {
	var out ChainInspection
	_, failure := s.Anchor.AnchorChain(ctx, anchor.Input{RotationID: id})
	report, err := s.verifyChain(ctx)
	var typed *journal.Error
	switch {
	case err == nil:
	case errors.As(err, &typed) && typed.Kind == journal.AuditTampered:
		return ChainInspection{Tampered: err}, nil, nil
	case errors.As(err, &typed) && typed.Kind == journal.Unverified: // the anchor's verdict says it
	default:
		return out, nil, err
	}
	line, head, err := s.Journal.Outbox.Head(ctx)
	if err != nil {
		return out, nil, journal.WrapUnavailable("audit head", err)
	}
	out.Chain = line.Chain
	out.Records = head.Seq
	if out.Completion, err = s.findCompletion(ctx, line, head.Seq, id); err != nil || out.Completion.Seq == 0 {
		return out, nil, err
	}
	return out, &AnchorInspection{NoLog: s.Anchor == nil, Report: report, Failure: failure, Completion: out.Completion.Seq}, nil
}

// findCompletion finds the record of a rotation's completion in the bucket, the newest record
// first. Records that are lost are skipped: the verification of the chain has judged them.
func (s *Steps) findCompletion(ctx context.Context, line audit.Line, last int64, id string) (audit.Record, error) {
	for seq := last; seq > 0; seq-- {
		b, err := s.Journal.AuditBucket.Get(ctx, line.RecordKey(seq))
		if errors.Is(err, journal.ErrNoRecord) {
			continue
		}
		if err != nil {
			return audit.Record{}, journal.WrapUnavailable(fmt.Sprintf("audit record %d", seq), err)
		}
		e, err := audit.Parse(b)
		if err != nil {
			return audit.Record{}, fmt.Errorf("audit record %d: %w", seq, err)
		}
		if e.Record.Rotation == id && e.Record.Type == kek.EventRotationCompleted {
			return e.Record, nil
		}
	}
	return audit.Record{}, nil
}

// countOrphans counts the quarantined rows whose KEK or record no row may name.
func (t Tally) countOrphans() int64 {
	return t.ByKind[string(source.UnknownKEK)] + t.ByKind[string(source.RetiredKEK)] + t.ByKind[string(source.NoRecord)]
}
