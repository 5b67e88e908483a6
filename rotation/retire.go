package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Retire retires a KEK: by default the old one after the rewrap; with another action the new
// one of a rotation that failed before the switch. In each case the registry is written
// first, and KMS DisableKey is called for what the registry then says, never for an
// argument: a wrong or stale argument must not disable a key that is in use.
func (s *Steps) Retire(ctx context.Context, in RetireInput) (_ RetireOutput, err error) {
	defer func() { err = s.Journal.ExplainEnded(ctx, in.RotationID, err) }()
	switch in.Action {
	case "", ActionRetire:
		return s.retireOld(ctx, in)
	case ActionPreSwitchFailure:
		return s.preSwitchFailure(ctx, in)
	case ActionRemint:
		return s.retryMint(ctx, in)
	case ActionAbandon:
		return s.abandonStart(ctx, in)
	default:
		return RetireOutput{}, journal.RejectInput("action", fmt.Sprintf("%q is unknown", in.Action), "use retire, pre_switch_failure, remint or abandon")
	}
}

// retireOld scans every row once more, retires the old KEKs and disables their KMS keys
// (spec: Retire, DisableRetired, RetireAfterSwitch). The second scan rewraps what it finds,
// such as a row restored from a backup, and starts over until it finds nothing. A key that
// others still use is not disabled.
func (s *Steps) retireOld(ctx context.Context, in RetireInput) (RetireOutput, error) {
	id := in.RotationID
	v, r, err := s.Journal.LoadRotation(ctx, id)
	if err != nil {
		return RetireOutput{}, err
	}
	if !r.Phase.Reached(kek.Rewrapped) { // the phase may become right before the transition reads it, but this call has not confirmed the rows
		return RetireOutput{}, errTooEarly(r, kek.KEKRetired)
	}
	if in.Source != "" {
		return s.confirmSegment(ctx, v, r, Segment{Source: in.Source, Segment: in.Segment})
	}
	var confirmed SweepOutput
	body := map[string]string{}
	if r.Phase == kek.Rewrapped {
		if body, err = s.checkOldKeys(ctx, r); err != nil {
			return RetireOutput{}, err
		}
		confirmed, err = s.confirmRows(ctx, v, r)
		if err != nil || !confirmed.Done {
			return RetireOutput{Paused: confirmed.Paused, Left: confirmed.Left, Phase: string(r.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, err
		}
		journal.AddPairs(body, "confirmed_rows", fmt.Sprint(confirmed.Tally.Scanned), "unwrapped", confirmed.describeProof())
		if n := confirmed.Tally.Unusable; n > 0 {
			body["unusable_copies"] = fmt.Sprint(n)
		}
	}
	v, err = s.Journal.TransitionAll(ctx, "retire", id, func(v kek.View) (kek.Change, error) {
		c, err := v.Retire(r.Rev, s.Journal.Now(), s.Journal.Now().Add(r.Settings.DeleteHold))
		if err == nil {
			err = s.checkAge(confirmed.read)
		}
		return c, err
	}, body)
	if err != nil {
		return RetireOutput{}, err
	}
	for _, old := range slices.Concat(v.Rotation.Olds, v.Rotation.Leftover) {
		if err := s.disableRetired(ctx, v, old); err != nil {
			return RetireOutput{}, err
		}
	}
	for _, id := range append([]string{r.ID}, r.TookOver...) {
		if err := s.disableOrphanKeys(ctx, id); err != nil {
			return RetireOutput{}, err
		}
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, nil
}

// describeProof says how many data keys were unwrapped to show that rows are under the KEK
// that they name: every one, or a sample.
func (o SweepOutput) describeProof() string {
	if o.Deep {
		return fmt.Sprintf("every distinct data key that was not rewrapped by this rotation: %d", o.Tally.Unwrapped)
	}
	return fmt.Sprintf("a sample of %d data keys", o.Tally.Unwrapped)
}

// confirmRows is the second full consistent scan. It may conclude only if it finds no row to
// move: see addPage, which starts it over.
func (s *Steps) confirmRows(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	out, err := s.runAll(ctx, r, s.confirmPass(v, r))
	if err != nil || !out.Done {
		return out, err
	}
	if err := quarantineError(out, r.ID); err != nil {
		return out, errors.Join(err, s.reopenQuarantined(ctx, r, out.opened, passConfirm))
	}
	return out, s.checkSeen(ctx, r, out)
}

// confirmPass is the second full scan, which moves what it finds. It also compares the copies
// of records with the records: one that is missing is put back while a copy of it unwraps
// (spec: RecInOrder).
func (s *Steps) confirmPass(v kek.View, r kek.Rotation) pass {
	return pass{name: passConfirm, payload: r.Mode == kek.Emergency, keyed: r.Mode == kek.Emergency, missing: true, visit: s.rewrapRow(rosterOf(v, r))}
}

// confirmSegment works on one segment of the second scan and retires nothing.
func (s *Steps) confirmSegment(ctx context.Context, v kek.View, r kek.Rotation, at Segment) (RetireOutput, error) {
	out := SweepOutput{Done: true} // of a rotation that is past it
	if r.Phase == kek.Rewrapped {
		var err error
		if out, err = s.runOne(ctx, r, at, s.confirmPass(v, r)); err != nil {
			return RetireOutput{}, err
		}
	}
	return RetireOutput{Done: out.Done, Paused: out.Paused, Phase: string(r.Phase), Attempt: r.Attempt, Tally: out.Tally}, nil
}

// disableRetired disables a KMS key that is retired in the registry, which was just read,
// and that the pointer does not name. A key that KMS does not know was deleted, unless it
// is so young that this host of KMS may not know it yet.
func (s *Steps) disableRetired(ctx context.Context, v kek.View, id kek.ID) error {
	if v.Pointer == nil || v.Pointer.KEKID == id || v.KEKs[id].State != kek.Retired {
		return journal.ExplainRefusal(fmt.Errorf("KEK %s is %q in the registry: its KMS key stays enabled", id, v.KEKs[id].State))
	}
	if err := s.Journal.CheckSetBack(ctx); err != nil {
		return err
	}
	made := v.KEKs[id].CreatedAt
	if err := s.Keys.Admin.Disable(ctx, id); err != nil && (!errors.Is(err, journal.ErrNoKey) || s.isKeyYoung(made)) {
		return s.retryWhileKeyIsYoung(made, journal.WrapUnavailable("KMS DisableKey", err))
	}
	return nil
}

// preSwitchFailure rolls a normal rotation back: the new KEK is retired at once and the
// pointer stays where it is (spec: PreSwitchFailure).
func (s *Steps) preSwitchFailure(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.Journal.Transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		return v.PreSwitchFailure(in.failureText(), s.Journal.Now())
	}, nil)
	if err != nil {
		return RetireOutput{}, err
	}
	if id := v.Rotation.NewKEK; id != "" {
		if err := s.disableRetired(ctx, v, id); err != nil {
			return RetireOutput{}, err
		}
	}
	if err := s.disableOrphanKeys(ctx, in.RotationID); err != nil {
		return RetireOutput{}, err
	}
	drill, err := s.settleDrill(ctx, v)
	if err != nil {
		return RetireOutput{}, err
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: v.Rotation.Attempt, Drill: drill}, nil
}

// retryMint is the action remint. It retires the KEK that failed an emergency's test and
// lets the rotation mint another, a bounded number of times. The key of the failed attempt
// is found by its alias, so that a repeated call still disables it.
func (s *Steps) retryMint(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.Journal.Transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		return v.Remint(in.FailedAttempt, s.maxMints(v), in.failureText(), s.Journal.Now())
	}, nil)
	if err != nil {
		return RetireOutput{}, err
	}
	r := v.Rotation
	failed, err := s.Keys.Admin.Claim(ctx, in.RotationID, in.FailedAttempt, "")
	if err != nil {
		return RetireOutput{}, journal.WrapUnavailable("KMS alias", err)
	}
	over := in.FailedAttempt < r.Attempt && v.Pointer != nil
	if over && failed != "" && failed != r.NewKEK && !slices.Contains(r.Olds, failed) && failed != v.Pointer.KEKID {
		if err := s.Journal.CheckSetBack(ctx); err != nil {
			return RetireOutput{}, err
		}
		if err := s.Keys.Admin.Disable(ctx, failed); err != nil {
			return RetireOutput{}, s.retryWhileKeyIsYoung(r.UpdatedAt, journal.WrapUnavailable("KMS DisableKey", err))
		}
	}
	return RetireOutput{Done: true, Phase: string(r.Phase), Attempt: r.Attempt}, nil
}

// abandonStart is the action abandon. It frees the lock of a preflight that failed after it
// had taken the lock. It changes nothing if there is no record, if another execution wrote
// the record, or if the rotation is past its start. An emergency keeps its lock and is
// resumed.
func (s *Steps) abandonStart(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.Journal.Transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		r := v.Rotation
		if r == nil || r.Execution != in.ExecutionARN || r.Phase != kek.Started || r.Mode != kek.Normal {
			return kek.Change{}, kek.ErrDone
		}
		return v.PreSwitchFailure(in.failureText(), s.Journal.Now())
	}, nil)
	switch {
	case err != nil:
		return RetireOutput{}, err
	case v.Rotation == nil:
		return RetireOutput{Done: true}, nil
	case v.Rotation.Phase == kek.RolledBack:
		return s.preSwitchFailure(ctx, in) // finds the rollback done, and still disables what was minted
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: v.Rotation.Attempt}, nil
}

// failureText returns the error that the state machine caught, cut to the 500 bytes that a
// record keeps.
func (in RetireInput) failureText() string {
	text := in.Error
	if in.Cause != "" {
		text += ": " + in.Cause
	}
	if len(text) > 500 { // a rune cut in two could not be written to the audit chain
		text = text[:500]
	}
	return strings.ToValidUTF8(text, "")
}

// maxMints returns how many mint attempts the rotation may make.
func (s *Steps) maxMints(v kek.View) int {
	if v.Rotation == nil || v.Rotation.Settings.MaxMints == 0 {
		return s.Config.MaxMints
	}
	return v.Rotation.Settings.MaxMints
}
