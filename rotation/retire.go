package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// Retire retires a KEK: by default the old one after the rewrap; with another
// action the new one of a rotation that failed before the switch. In each case
// the registry is written first and KMS DisableKey follows what the registry
// says, never an argument.
func (s *Steps) Retire(ctx context.Context, in RetireInput) (_ RetireOutput, err error) {
	defer func() { err = s.ended(ctx, in.RotationID, err) }()
	switch in.Action {
	case "", ActionRetire:
		return s.retireOld(ctx, in.RotationID)
	case ActionPreSwitchFailure:
		return s.preSwitchFailure(ctx, in)
	case ActionRemint:
		return s.remint(ctx, in)
	case ActionAbandon:
		return s.abandon(ctx, in)
	default:
		return RetireOutput{}, invalid("action", fmt.Sprintf("%q is unknown", in.Action), "use retire, pre_switch_failure, remint or abandon")
	}
}

// retireOld scans every row once more, retires the old KEKs and disables their KMS
// keys (spec: Retire, DisableRetired, RetireAfterSwitch). The second scan rewraps what it
// finds, such as a row restored from a backup, and starts over until it finds
// nothing. A key that others still use is not disabled under them.
func (s *Steps) retireOld(ctx context.Context, id string) (RetireOutput, error) {
	v, r, err := s.rotation(ctx, id)
	if err != nil {
		return RetireOutput{}, err
	}
	if !r.Phase.Reached(kek.Rewrapped) { // rows_rewrapped may come before transition reads: this call has not confirmed it
		return RetireOutput{}, early(r, kek.KEKRetired)
	}
	var confirmed SweepOutput
	body := map[string]string{}
	if r.Phase == kek.Rewrapped {
		if body, err = s.checkOldKeys(ctx, r); err != nil {
			return RetireOutput{}, err
		}
		confirmed, err = s.confirm(ctx, v, r)
		if err != nil || !confirmed.Done {
			return RetireOutput{Phase: string(r.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, err
		}
		put(body, "confirmed_rows", fmt.Sprint(confirmed.Tally.Scanned), "unwrapped", confirmed.proof())
	}
	v, err = s.transitionAll(ctx, "retire", id, func(v kek.View) (kek.Change, error) {
		c, err := v.Retire(r.Rev, s.Now(), s.Now().Add(r.Settings.DeleteHold))
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
		if err := s.reap(ctx, id); err != nil {
			return RetireOutput{}, err
		}
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, nil
}

// proof says how many data keys were unwrapped to show that rows are under the KEK
// that they name.
func (o SweepOutput) proof() string {
	if o.Deep {
		return fmt.Sprintf("every distinct data key that was not rewrapped by this rotation: %d", o.Tally.Unwrapped)
	}
	return fmt.Sprintf("a sample of %d data keys", o.Tally.Unwrapped)
}

// confirm is the second full consistent scan.
func (s *Steps) confirm(ctx context.Context, v kek.View, r kek.Rotation) (SweepOutput, error) {
	out, err := s.runAll(ctx, r, pass{name: passConfirm, payload: r.Mode == kek.Emergency, visit: s.mover(rosterOf(v, r))})
	if err != nil {
		return out, err
	}
	if err := poison(out, r.ID); err != nil || !out.Done {
		return out, err
	}
	return out, s.checkSeen(ctx, r, out)
}

// disableRetired disables a KMS key that the registry, just read, calls retired
// and that the pointer does not name. A key that KMS does not know is gone, unless it is
// so young that KMS may not know it yet.
func (s *Steps) disableRetired(ctx context.Context, v kek.View, id kek.ID) error {
	if v.Pointer == nil || v.Pointer.KEKID == id || v.KEKs[id].State != kek.Retired {
		return refusal(fmt.Errorf("KEK %s is %q in the registry: its KMS key stays enabled", id, v.KEKs[id].State))
	}
	if err := s.checkSetBack(ctx); err != nil {
		return err
	}
	made := v.KEKs[id].CreatedAt
	if err := s.Keys.Disable(ctx, id); err != nil && (!errors.Is(err, ErrNoKey) || s.isYoung(made)) {
		return s.young(made, unavailable("KMS DisableKey", err))
	}
	return nil
}

// preSwitchFailure rolls a normal rotation back: the new KEK is retired at once,
// the pointer untouched (spec: PreSwitchFailure).
func (s *Steps) preSwitchFailure(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		return v.PreSwitchFailure(in.failure(), s.Now())
	}, nil)
	if err != nil {
		return RetireOutput{}, err
	}
	if id := v.Rotation.NewKEK; id != "" {
		if err := s.disableRetired(ctx, v, id); err != nil {
			return RetireOutput{}, err
		}
	}
	if err := s.reap(ctx, in.RotationID); err != nil {
		return RetireOutput{}, err
	}
	drill, err := s.drilled(ctx, v)
	if err != nil {
		return RetireOutput{}, err
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: v.Rotation.Attempt, Drill: drill}, nil
}

// remint retires the KEK that failed an emergency's test and lets the rotation
// mint another, a bounded number of times. The failed attempt's key is found by
// its alias, so that a repeated call still disables it.
func (s *Steps) remint(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		return v.Remint(in.FailedAttempt, s.maxMints(v), in.failure(), s.Now())
	}, nil)
	if err != nil {
		return RetireOutput{}, err
	}
	r := v.Rotation
	failed, err := s.Keys.Claim(ctx, in.RotationID, in.FailedAttempt, "")
	if err != nil {
		return RetireOutput{}, unavailable("KMS alias", err)
	}
	over := in.FailedAttempt < r.Attempt && v.Pointer != nil
	if over && failed != "" && failed != r.NewKEK && !slices.Contains(r.Olds, failed) && failed != v.Pointer.KEKID {
		if err := s.checkSetBack(ctx); err != nil {
			return RetireOutput{}, err
		}
		if err := s.Keys.Disable(ctx, failed); err != nil {
			return RetireOutput{}, s.young(r.UpdatedAt, unavailable("KMS DisableKey", err))
		}
	}
	return RetireOutput{Done: true, Phase: string(r.Phase), Attempt: r.Attempt}, nil
}

// abandon frees the lock of a preflight that failed after it had taken it. If
// there is no record, or it is another execution's, or the rotation has gone on, it
// changes nothing; an emergency keeps its lock and is resumed.
func (s *Steps) abandon(ctx context.Context, in RetireInput) (RetireOutput, error) {
	v, err := s.transition(ctx, "retire", in.RotationID, func(v kek.View) (kek.Change, error) {
		r := v.Rotation
		if r == nil || r.Execution != in.ExecutionARN || r.Phase != kek.Started || r.Mode != kek.Normal {
			return kek.Change{}, kek.ErrDone
		}
		return v.PreSwitchFailure(in.failure(), s.Now())
	}, nil)
	switch {
	case err != nil:
		return RetireOutput{}, err
	case v.Rotation == nil:
		return RetireOutput{Done: true}, nil
	case v.Rotation.Phase == kek.RolledBack:
		return s.preSwitchFailure(ctx, in) // finds it done, and disables what was minted all the same
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: v.Rotation.Attempt}, nil
}

// failure is what the state machine caught, cut to what a record should hold.
func (in RetireInput) failure() string {
	text := in.Error
	if in.Cause != "" {
		text += ": " + in.Cause
	}
	if len(text) > 500 { // a rune cut in two could not be written to the audit chain
		text = text[:500]
	}
	return strings.ToValidUTF8(text, "")
}

// maxMints is how many attempts the rotation that was read may make.
func (s *Steps) maxMints(v kek.View) int {
	if v.Rotation == nil || v.Rotation.Settings.MaxMints == 0 {
		return s.MaxMints
	}
	return v.Rotation.Settings.MaxMints
}
