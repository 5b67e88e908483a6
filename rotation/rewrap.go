package rotation

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
)

// Rewrap works on one segment of one source until it is done or time is nearly
// up (spec: RewrapRead, RewrapWrite), or, with Complete, records that every
// segment is done (spec: Rewrapped). It runs only after the seal: no row can
// come to be under the old KEK behind its back. With Rehearse it shows before the
// switch, under the very role that rewraps later, that it can.
func (s *Steps) Rewrap(ctx context.Context, in RewrapInput) (_ SweepOutput, err error) {
	defer func() { err = s.ended(ctx, in.RotationID, err) }()
	if in.Rehearse {
		return s.rehearse(ctx, in.RotationID)
	}
	v, r, err := s.rotation(ctx, in.RotationID)
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
		return SweepOutput{}, refusal(&kek.IllegalTransition{
			What: "rotation " + r.ID, From: string(r.Phase), To: string(kek.Rewrapped),
		})
	}
	src, err := s.source(r, in.Source)
	if err != nil {
		return SweepOutput{}, err
	}
	if n := src.Segments(r.Segments); in.Segment < 0 || in.Segment >= n {
		return SweepOutput{}, invalid("segment", fmt.Sprintf("%d is not in 0..%d", in.Segment, n-1), "use the segments of preflight's plan")
	}
	cp, err := s.run(ctx, sweep{
		rotation: r, source: src, pass: PassRewrap, segment: in.Segment,
		payload: r.Mode == kek.Emergency, until: s.deadline(ctx), visit: s.mover(rosterOf(v, r))(src),
	})
	return SweepOutput{Done: cp.Done, Tally: cp.Tally}, err
}

// source opens a source that the rotation has frozen.
func (s *Steps) source(r kek.Rotation, name string) (frozen, error) {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return frozen{}, err
	}
	for _, src := range sources {
		if src.Name() == name {
			return src, nil
		}
	}
	return frozen{}, invalid("source", fmt.Sprintf("%q is no source of rotation %s", name, r.ID), "use a source of preflight's plan: matter ops source list")
}

// completeRewrap makes the transition once every segment's checkpoint says done and
// nothing is quarantined. It works on what is not: a source that joined after the plan
// was made has segments that the state machine's map does not.
func (s *Steps) completeRewrap(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	body := map[string]string{}
	out := SweepOutput{Done: true, Deep: r.Settings.Deep}
	if r.Phase == kek.Drained {
		sources, err := s.openSources(r.Sources)
		if err != nil {
			return SweepOutput{}, err
		}
		out, err = s.runSegments(ctx, r, sources, pass{name: PassRewrap, payload: r.Mode == kek.Emergency, visit: s.mover(rosterOf(v, r))})
		if err == nil && !out.Done {
			err = &Error{Kind: Transient, Field: "rows", Msg: "there are segments that are not done", Next: "they are worked on again"}
		}
		if err == nil {
			err = poison(out, r.ID)
		}
		if err != nil {
			return out, err
		}
		for name, t := range out.Sources {
			body["source."+name] = fmt.Sprintf("scanned %d, rewrapped %d", t.Scanned, t.Rewrapped)
		}
	}
	_, err := s.transition(ctx, "rewrap", r.ID, func(v kek.View) (kek.Change, error) { return v.Rewrap(r.Rev, s.Now()) }, body)
	return out, err
}

func poison(out SweepOutput, id string) error {
	if out.Tally.Quarantined == 0 {
		return nil
	}
	return &Error{
		Kind: RowsQuarantined, Field: "rows", Rows: out.Tally.Poison,
		Msg:  fmt.Sprintf("%d rows cannot be rewrapped: %s; the old KEK stays usable", out.Tally.Quarantined, out.quarantine()),
		Next: fmt.Sprintf("matter ops report --rotation %s names them; correct or delete these rows, then resume: matter ops resume --rotation %[1]s", id),
	}
}

// errNoPayload is the reason an emergency cannot re-encrypt a row.
var errNoPayload = errors.New("it has no payload to encrypt under a fresh data key")

// mover returns the visit that moves a row from an old KEK to the new one. A row that
// no write or unwrapping can move is quarantined under its name, whatever AWS says of
// it, and the others go on.
func (s *Steps) mover(t roster) visitor {
	r := t.rotation
	return func(src frozen) visit {
		wrapped, proof := newDedupe(), s.newProver(r)
		return func(ctx context.Context, row Row) (outcome, error) {
			for range maxTries {
				if err := t.judge(row); err != nil {
					return quarantined, err
				}
				if row.KEK == r.NewKEK {
					did, err := proof.keep(ctx, row)
					return s.perhapsYoung(t, did, err)
				}
				with, err := s.rewrapped(ctx, r, row, wrapped)
				if errors.Is(err, ErrDenied) {
					return s.perhapsYoung(t, quarantined, err)
				}
				if hopeless(err) {
					return quarantined, err
				}
				if err != nil {
					return kept, s.keyError(row.KEK, err)
				}
				done, err := src.Replace(ctx, row, with)
				if hopeless(err) {
					return quarantined, err
				}
				if err != nil {
					return kept, unavailable("source "+src.Name(), err)
				}
				if done {
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
			return kept, blame(unavailable("row of "+src.Name(), fmt.Errorf("it changed %d times while it was rewrapped", maxTries)), row.ID)
		}
	}
}

// perhapsYoung is the outcome of a row of which KMS has said what is given. A denial is of
// this row, which is quarantined, unless the new KEK is young: then it says nothing yet, and
// the pass is repeated.
func (s *Steps) perhapsYoung(t roster, did outcome, err error) (outcome, error) {
	if made := t.keks[t.rotation.NewKEK].CreatedAt; errors.Is(err, ErrDenied) && s.isYoung(made) {
		return kept, s.young(made, unavailable("KMS", err))
	}
	return did, err
}

// keep is the outcome of a row that names the new KEK.
func (p *prover) keep(ctx context.Context, row Row) (outcome, error) {
	did, err := p.prove(ctx, row)
	switch {
	case hopeless(err):
		return quarantined, err
	case err != nil:
		return kept, err
	case did:
		return proved, nil
	}
	return kept, nil
}

// hopeless reports an error that is of this one row. A denial may be: a key policy can
// depend on the encryption context. One of every row is not, see [sweep.page].
func hopeless(err error) bool {
	return errors.Is(err, ErrUnwrap) || errors.Is(err, ErrDenied) || errors.Is(err, ErrRejected) || errors.Is(err, errNoPayload) || errors.Is(err, errOpen)
}

// rewrapped computes a row's new wrapping. A normal rotation rewraps the DEK
// inside KMS, so that no DEK is seen here. An emergency makes a fresh DEK and
// re-encrypts the payload: who holds a compromised KEK may hold the old DEKs. Where no
// payload of ours stands behind the wrapped bytes it can only rewrap them too.
func (s *Steps) rewrapped(ctx context.Context, r kek.Rotation, row Row, cache *dedupe) (Rewrapped, error) {
	out := Rewrapped{KEK: r.NewKEK, Epoch: r.Epoch}
	if r.Mode != kek.Emergency || row.Whole {
		var err error
		out.WrappedDEK, err = cache.do(row, func() ([]byte, error) {
			return s.KMS.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
		})
		return out, err
	}
	if len(row.Ciphertext) == 0 {
		return out, errNoPayload
	}
	old, err := s.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if err != nil {
		return out, err
	}
	defer clear(old)
	plain, err := s.Cipher.Open(old, row.Ciphertext, row.Bound)
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
	out.Ciphertext, err = s.Cipher.Seal(fresh, plain, row.Bound)
	return out, err
}

// errOpen is the reason an emergency cannot re-encrypt a row. It carries nothing
// of the payload.
var errOpen = errors.New("its payload does not open under its data key")
