package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// Rewrap works on one segment of one source until the segment is done or time is nearly up
// (spec: RewrapRead, RewrapWrite). With Complete it records that every segment is done
// (spec: Rewrapped). It runs only after the seal, so no row can be inserted under the old
// KEK behind it. With Rehearse it shows before the switch that its role can rewrap.
func (s *Steps) Rewrap(ctx context.Context, in RewrapInput) (_ SweepOutput, err error) {
	defer func() { err = s.Journal.ExplainEnded(ctx, in.RotationID, err) }()
	if in.Rehearse {
		return s.rehearseRotation(ctx, in.RotationID)
	}
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return SweepOutput{}, err
	}
	if in.Complete {
		return s.completeRewrap(ctx, v, r)
	}
	if r.Phase.Reached(kek.Rewrapped) {
		return SweepOutput{Done: true}, nil
	}
	if r.Phase != kek.Drained {
		return SweepOutput{}, journal.ExplainRefusal(&kek.IllegalTransition{
			What: "rotation " + r.ID, From: string(r.Phase), To: string(kek.Rewrapped),
		})
	}
	return s.runOne(ctx, r, Segment{Source: in.Source, Segment: in.Segment}, s.rewrapPass(v, r))
}

// rewrapPass is the pass that moves rows to the new KEK.
func (s *Steps) rewrapPass(v kek.View, r kek.Rotation) pass {
	return pass{name: PassRewrap, payload: r.Mode == kek.Emergency, keyed: r.Mode == kek.Emergency, visit: s.rewrapRow(rosterOf(v, r))}
}

// completeRewrap makes the transition once every segment's checkpoint is done and no row is
// quarantined. It also works on segments that are not done, and returns those that are left:
// a source that joined after the plan was made has segments that the plan does not list.
func (s *Steps) completeRewrap(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	body := map[string]string{}
	out := SweepOutput{Done: true, Deep: r.Settings.Deep}
	if r.Phase == kek.Drained {
		sources, unread, err := s.openRead(r)
		if err != nil {
			return SweepOutput{}, err
		}
		for _, name := range unread {
			body["source."+name] = notRead
		}
		out, err = s.runSegments(ctx, r, sources, s.rewrapPass(v, r))
		if err != nil || !out.Done {
			return out, err
		}
		if err := quarantineError(out, r.ID); err != nil {
			return out, errors.Join(err, s.reopenQuarantined(ctx, r, sources, PassRewrap))
		}
		for name, t := range out.Sources {
			body["source."+name] = fmt.Sprintf("scanned %d, rewrapped %d", t.Scanned, t.Rewrapped)
		}
	}
	_, err := s.Journal.Transition(ctx, "rewrap", r.ID, func(v kek.View) (kek.Change, error) { return v.Rewrap(r.Rev, s.Journal.Now()) }, body)
	return out, err
}

// quarantineError refuses to conclude from a pass that has quarantined rows. An orphan opens
// again once the KMS key of its KEK is enabled, so nobody should delete it. The rewrap reads only
// the KEKs of its rotation, so a KEK that was retired before counts as unknown here.
func quarantineError(out SweepOutput, id string) error {
	if out.Tally.Quarantined == 0 {
		return nil
	}
	next := journal.CorrectRows
	if out.Tally.countOrphans() > 0 {
		next = journal.RestoreOrphans
	}
	return &journal.Error{
		Kind: journal.RowsQuarantined, Field: "rows", Rows: out.Tally.Poison,
		Msg:  fmt.Sprintf("%d rows cannot be rewrapped: %s; the old KEK stays usable", out.Tally.Quarantined, out.describeQuarantine()),
		Next: journal.Next{Do: next, Rotation: id},
	}
}

// errNoPayload is the reason why an emergency cannot re-encrypt a row.
var errNoPayload = errors.New("it has no payload to encrypt under a fresh data key")

// rewrapRow returns the visit that moves a row from an old KEK to the new one. A row that
// cannot be unwrapped or written is quarantined with the reason, and the pass continues with
// the other rows. A row that was deleted meanwhile must not come back, so the driver only
// replaces what exists.
func (s *Steps) rewrapRow(t roster) visitor {
	r := t.rotation
	return func(src frozenSource) visit {
		memory, proof := s.sharedMemory(), s.newProver(r, src.Name())
		return func(ctx context.Context, row source.Row) (outcome, error) {
			if row.DEKID != "" && row.Defect == "" {
				return s.rekeyRow(ctx, t, src, row, memory)
			}
			if row.Missing {
				return s.putBackRecord(ctx, t, src, row, memory)
			}
			for range journal.MaxTries {
				if err := t.checkRow(row); err != nil {
					return quarantined, err
				}
				if row.KEK == r.NewKEK {
					did, err := proof.keepProved(ctx, row)
					return s.quarantineUnlessYoung(t, did, err)
				}
				with, err := s.rewrapDEK(ctx, r, row, memory)
				if errors.Is(err, journal.ErrDenied) {
					return s.quarantineUnlessYoung(t, quarantined, err)
				}
				if isRowError(err) {
					return quarantined, err
				}
				if err != nil {
					return kept, s.Keys.ExplainError(row.KEK, err)
				}
				done, err := src.Replace(ctx, row, with)
				if isRowError(err) {
					return quarantined, err
				}
				if err != nil {
					return kept, journal.WrapUnavailable("source "+src.Name(), err)
				}
				if done {
					return moved, nil
				}
				again, ok, err := src.Reread(ctx, row, r.Mode == kek.Emergency)
				if err != nil {
					return kept, journal.WrapUnavailable("source "+src.Name(), err)
				}
				if !ok {
					return kept, nil // deleted meanwhile: it must not come back
				}
				row = again
			}
			return kept, nameRow(journal.WrapUnavailable("row of "+src.Name(), fmt.Errorf("it changed %d times while it was rewrapped", journal.MaxTries)), row.ID)
		}
	}
}

// putBackRecord puts the record of a data key back, rewrapped to the new KEK, from a copy
// under an old one (spec: PutBackRead, PutBackWrite). A copy under the new KEK may be that of
// a record which is being created. One under a retired KEK belongs to no row: the creation
// failed at the fence, or an earlier rotation would have put it back. A copy that does not
// unwrap must not stop the rotation: nobody could remove it from the locked bucket.
func (s *Steps) putBackRecord(ctx context.Context, t roster, src frozenSource, row source.Row, memory *Memory) (outcome, error) {
	if !slices.Contains(t.rotation.Olds, row.KEK) {
		return kept, nil
	}
	with, err := s.rewrapDEK(ctx, t.rotation, row, memory)
	switch {
	case errors.Is(err, journal.ErrUnwrap):
		return unusable, nil
	case errors.Is(err, journal.ErrDenied):
		return s.quarantineUnlessYoung(t, quarantined, err)
	case err != nil:
		return kept, s.Keys.ExplainError(row.KEK, err)
	}
	done, err := src.Replace(ctx, row, with)
	if err != nil {
		return kept, journal.WrapUnavailable("source "+src.Name(), err)
	}
	if done {
		return moved, nil
	}
	return kept, nil // another copy of it was put back
}

// quarantineUnlessYoung corrects the outcome of a row after a denial by KMS. Usually the
// denial concerns this row, which stays quarantined. While the new KEK is young the denial
// may come from a tag that is not known everywhere yet, so the pass is retried.
func (s *Steps) quarantineUnlessYoung(t roster, did outcome, err error) (outcome, error) {
	if made := t.keks[t.rotation.NewKEK].CreatedAt; errors.Is(err, journal.ErrDenied) && s.isKeyYoung(made) {
		return kept, s.retryWhileKeyIsYoung(made, journal.WrapUnavailable("KMS", err))
	}
	return did, err
}

// keepProved returns the outcome of a row that names the new KEK.
func (p *prover) keepProved(ctx context.Context, row source.Row) (outcome, error) {
	did, err := p.proveKey(ctx, row)
	switch {
	case isRowError(err):
		return quarantined, err
	case err != nil:
		return kept, err
	case did:
		return proved, nil
	}
	return kept, nil
}

// isRowError reports an error that concerns this row only. A denial may: a key policy can
// depend on the encryption context. A denial of every row does not, see allDenied.
func isRowError(err error) bool {
	return errors.Is(err, journal.ErrUnwrap) || errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrRejected) || errors.Is(err, errNoPayload) || errors.Is(err, errOpen)
}

// rewrapDEK computes a row's new wrapping. A normal rotation rewraps the DEK inside KMS
// (ReEncrypt), so this process never sees a DEK. An emergency makes a fresh DEK and
// re-encrypts the payload: anyone who holds a compromised KEK may hold the old DEKs. If the
// row has no payload in this project's format, an emergency can only rewrap the DEK too.
//
// Both ask KMS once for all rows of a data key. So rows that shared an old DEK share a
// fresh one, in each process. The fresh DEK seals as many payloads as the old one did, and
// a few twice, if a row changes meanwhile.
func (s *Steps) rewrapDEK(ctx context.Context, r kek.Rotation, row source.Row, memory *Memory) (source.Rewrapped, error) {
	out := source.Rewrapped{KEK: r.NewKEK, Epoch: r.Epoch}
	if r.Mode != kek.Emergency || row.Whole {
		var err error
		out.WrappedDEK, err = memory.recallResult(ctx, r.NewKEK, resultKey("rewrapped", row), func() ([]byte, error) {
			return s.Keys.Wrapper.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
		})
		return out, err
	}
	if len(row.Ciphertext) == 0 {
		return out, errNoPayload
	}
	keys, err := memory.recallResult(ctx, r.NewKEK, resultKey("exchanged", row), func() ([]byte, error) { return s.exchangeDEK(ctx, r, row) })
	if err != nil {
		return out, err
	}
	defer clear(keys)
	plain, err := s.Keys.Cipher.Open(keys[:dekBytes], row.Ciphertext, row.Bound)
	if err != nil {
		return out, errOpen
	}
	defer clear(plain)
	out.WrappedDEK = slices.Clone(keys[2*dekBytes:])
	out.Ciphertext, err = s.Keys.Cipher.Seal(keys[dekBytes:2*dekBytes], plain, row.Bound)
	return out, err
}

// dekBytes is the length of a data key in bytes (AES-256).
const dekBytes = 32

// exchangeDEK unwraps a row's data key and makes the one that replaces it; see [Memory] for
// the bytes that it returns. It does not depend on the row's payload, because other rows
// with the same data key use the result, and this row's payload may be damaged.
func (s *Steps) exchangeDEK(ctx context.Context, r kek.Rotation, row source.Row) ([]byte, error) {
	old, err := s.unwrapDEK(ctx, row)
	if err != nil {
		return nil, err
	}
	defer clear(old)
	fresh, wrapped, err := s.Keys.Wrapper.GenerateDataKey(ctx, r.NewKEK, row.Context)
	if err != nil {
		return nil, s.Keys.ExplainError(r.NewKEK, err)
	}
	defer clear(fresh)
	return slices.Concat(old, fresh, wrapped), nil
}

// errOpen is the reason why an emergency cannot re-encrypt a row. It quotes nothing of the
// payload.
var errOpen = errors.New("its payload does not open under its data key")
