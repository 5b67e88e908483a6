package rotation

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
)

// Rewrap works on one segment of one source until it is done or time is nearly
// up (spec: RewrapRead, RewrapWrite), or, with Complete, records that every
// segment is done (spec: RewrapDone). It runs only after the seal: no row can
// come to be under the old KEK behind its back.
func (s *Steps) Rewrap(ctx context.Context, in RewrapInput) (SweepOutput, error) {
	_, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return SweepOutput{}, err
	}
	if in.Complete {
		return s.completeRewrap(ctx, r)
	}
	if r.Phase.Reached(kek.Rewrapped) {
		return SweepOutput{Done: true}, nil
	}
	if r.Phase != kek.Drained {
		return SweepOutput{}, refusal(&kek.IllegalTransition{
			What: "rotation " + r.ID, From: string(r.Phase), To: string(kek.Rewrapped),
		})
	}
	src, err := s.source(in.Source)
	if err != nil {
		return SweepOutput{}, err
	}
	if n := src.Segments(r.Segments); in.Segment < 0 || in.Segment >= n {
		return SweepOutput{}, invalid("segment", fmt.Sprintf("%d is not in 0..%d", in.Segment, n-1), "use the segments of preflight's plan")
	}
	cp, err := s.run(ctx, sweep{
		rotation: r, source: src, pass: PassRewrap, segment: in.Segment,
		payload: r.Mode == kek.Emergency, until: s.deadline(ctx), visit: s.mover(r, src),
	})
	return SweepOutput{Done: cp.Done, Tally: cp.Tally}, err
}

func (s *Steps) source(name string) (Source, error) {
	for _, src := range s.Sources {
		if src.Name() == name {
			return src, nil
		}
	}
	return nil, invalid("source", fmt.Sprintf("%q is not configured", name), "use a name from MATTER_SOURCES")
}

// completeRewrap makes the transition once every segment's checkpoint says done
// and nothing is quarantined.
func (s *Steps) completeRewrap(ctx context.Context, r kek.Rotation) (SweepOutput, error) {
	body := map[string]string{}
	out := SweepOutput{Done: true}
	for _, src := range s.Sources {
		t, err := s.tally(ctx, r, src, PassRewrap)
		if err != nil {
			return SweepOutput{}, err
		}
		body["source."+src.Name()] = fmt.Sprintf("scanned %d, rewrapped %d", t.Scanned, t.Rewrapped)
		out.Tally.add(t)
	}
	if err := poison(out.Tally); err != nil {
		return out, err
	}
	_, err := s.transition(ctx, "rewrap", r.ID, func(v kek.View) (kek.Change, error) { return v.Rewrap(s.Now()) }, body)
	return out, err
}

// tally adds up a source's checkpoints of one pass, all of which must be done.
func (s *Steps) tally(ctx context.Context, r kek.Rotation, src Source, pass string) (Tally, error) {
	cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, src.Name(), pass)
	if err != nil {
		return Tally{}, unavailable("checkpoints", err)
	}
	done := map[int]bool{}
	var t Tally
	for _, cp := range cps {
		done[cp.Segment] = cp.Done
		t.add(cp.Tally)
	}
	for i := range src.Segments(r.Segments) {
		if !done[i] {
			return t, refusal(fmt.Errorf("segment %d of source %s is not done", i, src.Name()))
		}
	}
	return t, nil
}

func poison(t Tally) error {
	if t.Quarantined == 0 {
		return nil
	}
	return &Error{
		Kind: RowsQuarantined, Field: "rows",
		Msg:  fmt.Sprintf("%d rows cannot be rewrapped; the old KEK stays usable. First: %q", t.Quarantined, t.Poison),
		Next: "mend or delete these rows, then redrive the execution",
	}
}

// errNoPayload is the reason an emergency cannot re-encrypt a row.
var errNoPayload = errors.New("it has no payload to encrypt under a fresh data key")

// mover returns the visit that moves a row from the old KEK to the new one.
func (s *Steps) mover(r kek.Rotation, src Source) visit {
	wrapped := newDedupe()
	return func(ctx context.Context, row Row) (outcome, error) {
		for range maxTries {
			switch {
			case row.Defect != "":
				return quarantined, errors.New(row.Defect)
			case row.KEK == r.NewKEK:
				return kept, nil
			case row.KEK != r.OldKEK:
				return quarantined, fmt.Errorf("it is under KEK %q, neither the old nor the new one", row.KEK)
			}
			with, err := s.rewrapped(ctx, r, row, wrapped)
			if errors.Is(err, ErrUnwrap) || errors.Is(err, errNoPayload) || errors.Is(err, errOpen) {
				return quarantined, err
			}
			if err != nil {
				return kept, s.keyError(r.OldKEK, err)
			}
			if done, err := src.Replace(ctx, row, with); err != nil {
				return kept, unavailable("source "+src.Name(), err)
			} else if done {
				return moved, nil
			}
			again, ok, err := src.Reread(ctx, row, r.Mode == kek.Emergency)
			if err != nil {
				return kept, unavailable("source "+src.Name(), err)
			}
			if !ok {
				return kept, nil // deleted meanwhile: it must not come back
			}
			row = again
		}
		return kept, unavailable("row "+row.ID, fmt.Errorf("it changed %d times while it was rewrapped", maxTries))
	}
}

// rewrapped computes a row's new wrapping. A normal rotation rewraps the DEK
// inside KMS, so that no DEK is seen here. An emergency makes a fresh DEK and
// re-encrypts the payload: who holds a compromised KEK may hold the old DEKs.
func (s *Steps) rewrapped(ctx context.Context, r kek.Rotation, row Row, cache *dedupe) (Rewrapped, error) {
	out := Rewrapped{KEK: r.NewKEK, Epoch: r.Epoch}
	if r.Mode != kek.Emergency {
		var err error
		out.WrappedDEK, err = cache.do(row, func() ([]byte, error) {
			return s.KMS.ReEncrypt(ctx, r.OldKEK, r.NewKEK, row.WrappedDEK, row.Context)
		})
		return out, err
	}
	if len(row.Ciphertext) == 0 {
		return out, errNoPayload
	}
	old, err := s.KMS.Decrypt(ctx, r.OldKEK, row.WrappedDEK, row.Context)
	if err != nil {
		return out, err
	}
	defer clear(old)
	plain, err := s.Cipher.Open(old, row.Ciphertext, row.Context)
	if err != nil {
		return out, errOpen
	}
	defer clear(plain)
	fresh, wrapped, err := s.KMS.GenerateDataKey(ctx, r.NewKEK, row.Context)
	if err != nil {
		return out, s.keyError(r.NewKEK, err)
	}
	defer clear(fresh)
	out.WrappedDEK = wrapped
	out.Ciphertext, err = s.Cipher.Seal(fresh, plain, row.Context)
	return out, err
}

// errOpen is the reason an emergency cannot re-encrypt a row. It carries nothing
// of the payload.
var errOpen = errors.New("its payload does not open under its data key")
