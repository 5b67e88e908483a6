package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Retire retires a KEK: by default the old one after the rewrap; with another
// action the new one of a rotation that failed before the switch. In each case
// the registry is written first and KMS DisableKey follows what the registry
// says, never an argument.
func (s *Steps) Retire(ctx context.Context, in RetireInput) (RetireOutput, error) {
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

// retireOld scans every row once more, retires the old KEK and disables its KMS
// key (spec: Retire, Disable; RetireAfterSwitch). The second scan rewraps what it
// finds, such as a row restored from a backup, and starts over until it finds
// nothing.
func (s *Steps) retireOld(ctx context.Context, id string) (RetireOutput, error) {
	_, r, err := s.rotation(ctx, id)
	if err != nil {
		return RetireOutput{}, err
	}
	if !r.Phase.Reached(kek.Rewrapped) { // rows_rewrapped may come before transition reads: this call has not confirmed it
		return RetireOutput{}, early(r, kek.KEKRetired)
	}
	var confirmed SweepOutput
	if r.Phase == kek.Rewrapped {
		confirmed, err = s.confirm(ctx, r)
		if err != nil || !confirmed.Done {
			return RetireOutput{Phase: string(r.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, err
		}
	}
	v, err := s.transition(ctx, "retire", id, func(v kek.View) (kek.Change, error) {
		return v.Retire(s.Now(), s.Now().Add(s.DeleteHold))
	}, map[string]string{"confirmed_rows": fmt.Sprint(confirmed.Tally.Scanned)})
	if err != nil {
		return RetireOutput{}, err
	}
	if err := s.disableRetired(ctx, v, r.OldKEK); err != nil {
		return RetireOutput{}, err
	}
	return RetireOutput{Done: true, Phase: string(v.Rotation.Phase), Attempt: r.Attempt, Tally: confirmed.Tally}, nil
}

// confirmIdle is how long nobody may have worked on the second scan for it to count
// as under way. It saves a checkpoint every few seconds.
const confirmIdle = 10 * time.Minute

// confirm is the second full consistent scan.
func (s *Steps) confirm(ctx context.Context, r kek.Rotation) (SweepOutput, error) {
	if err := s.forgetIdle(ctx, r); err != nil {
		return SweepOutput{}, err
	}
	movers := map[string]visit{}
	for _, src := range s.Sources {
		movers[src.Name()] = s.mover(r, src)
	}
	out, err := s.runAll(ctx, r, passConfirm, r.Mode == kek.Emergency, movers)
	if err != nil {
		return out, err
	}
	return out, poison(out.Tally)
}

// forgetIdle resets the second scan's checkpoints if nobody has worked on it for a
// while: a rotation that halted and is redriven days later must not retire on what
// was true before. A reset checkpoint has no time, so that a call which dies among
// them leaves the scan as idle as it was.
func (s *Steps) forgetIdle(ctx context.Context, r kek.Rotation) error {
	var made []Checkpoint
	var last time.Time
	for _, src := range s.Sources {
		cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, src.Name(), passConfirm)
		if err != nil {
			return unavailable("checkpoints", err)
		}
		for _, cp := range cps {
			if cp.SavedAt.IsZero() {
				continue
			}
			made = append(made, cp)
			if cp.SavedAt.After(last) {
				last = cp.SavedAt
			}
		}
	}
	if len(made) == 0 || s.Now().Sub(last) < confirmIdle {
		return nil
	}
	for _, cp := range made {
		reset := Checkpoint{RotationID: cp.RotationID, Source: cp.Source, Pass: cp.Pass, Segment: cp.Segment, Rev: cp.Rev}
		if err := s.Checkpoints.SaveCheckpoint(ctx, reset); err != nil && !errors.Is(err, kek.ErrConflict) {
			return unavailable("checkpoints", err)
		}
	}
	return nil
}

// disableRetired disables a KMS key that the registry, just read, calls retired
// and that the pointer does not name.
func (s *Steps) disableRetired(ctx context.Context, v kek.View, id kek.ID) error {
	if v.Pointer == nil || v.Pointer.KEKID == id || v.KEKs[id].State != kek.Retired {
		return refusal(fmt.Errorf("KEK %s is %q in the registry: its KMS key stays enabled", id, v.KEKs[id].State))
	}
	if err := s.Keys.Disable(ctx, id); err != nil {
		return unavailable("KMS DisableKey", err)
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
		return v.Remint(in.FailedAttempt, s.MaxMints, in.failure(), s.Now())
	}, nil)
	if err != nil {
		return RetireOutput{}, err
	}
	failed, err := s.Keys.Claim(ctx, in.RotationID, in.FailedAttempt, "")
	if err != nil {
		return RetireOutput{}, unavailable("KMS alias", err)
	}
	r := v.Rotation
	over := in.FailedAttempt < r.Attempt && v.Pointer != nil
	if over && failed != "" && failed != r.NewKEK && failed != r.OldKEK && failed != v.Pointer.KEKID {
		if err := s.Keys.Disable(ctx, failed); err != nil {
			return RetireOutput{}, unavailable("KMS DisableKey", err)
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
		if r == nil || r.Execution != in.ExecutionARN || r.Phase != kek.Started || r.NewKEK != "" || r.Mode != kek.Normal {
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
