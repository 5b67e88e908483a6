package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Drain looks once whether any process may still write under an old KEK, and
// seals those when none may (spec: DrainSee, SealShard, Seal). It never waits: the
// state machine does.
//
// A lease that has run out is revoked by a conditional delete, never assumed
// dead: its holder may be paused. What makes a late write impossible is not time
// but the fence: after the seal no row can be inserted under the old KEK, and
// rewrap raises the epoch that updates are conditional on. Clock skew endangers
// how long drain takes, not what it promises.
func (s *Steps) Drain(ctx context.Context, in StepInput) (_ DrainOutput, err error) {
	defer func() { err = s.ended(ctx, in.RotationID, err) }()
	v, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return DrainOutput{}, err
	}
	if r.Phase == kek.Switched {
		out, err := s.awaitLeases(ctx, r, v.Draining())
		if err != nil || out.Leases > 0 {
			return out, err
		}
		if err := s.sealFences(ctx, r); err != nil {
			return DrainOutput{}, err
		}
	}
	_, err = s.transition(ctx, "drain", r.ID, func(v kek.View) (kek.Change, error) { return v.Seal(s.Now()) }, nil)
	return DrainOutput{Done: err == nil, Waited: s.sinceSwitch(r)}, err
}

// awaitLeases revokes the leases on the KEKs that have run out (in an emergency all of
// them) and counts the others.
func (s *Steps) awaitLeases(ctx context.Context, r kek.Rotation, keks []kek.ID) (DrainOutput, error) {
	var leases []Lease
	for _, id := range keks {
		held, err := s.Drainage.Leases(ctx, id)
		if err != nil {
			return DrainOutput{}, unavailable("leases", err)
		}
		leases = append(leases, held...)
	}
	out := DrainOutput{Waited: s.sinceSwitch(r)}
	var err error
	var holder string
	for _, l := range leases {
		gone := false
		if r.Mode == kek.Emergency || s.Now().After(l.Expires) {
			if gone, err = s.Drainage.Revoke(ctx, l); err != nil {
				return out, unavailable("leases", err)
			}
		}
		if !gone {
			holder = fmt.Sprintf("%s (host %s, pid %d, %d in flight)", l.Holder, l.Host, l.PID, l.Refs)
			out.Leases++
			out.Refs += l.Refs
		}
	}
	if out.Leases > 0 && r.Mode == kek.Normal && out.Waited >= int64(r.Settings.DrainMaxWait/time.Second) {
		return out, &Error{
			Kind: DrainTimeout, Field: "LEASE#" + string(r.OldKEK),
			Msg:  fmt.Sprintf("%d leases outlive max-wait %s, the last %s", out.Leases, r.Settings.DrainMaxWait, holder),
			Next: "stop or restart that process; its lease then runs out, and the redriven execution goes on",
		}
	}
	return out, nil
}

func (s *Steps) sinceSwitch(r kek.Rotation) int64 {
	if r.SwitchedAt.IsZero() {
		return 0
	}
	return int64(s.Now().Sub(r.SwitchedAt) / time.Second)
}

// sealFences shuts the shards of each draining KEK one by one, each for good: a call that
// dies leaves some sealed, and inserts that meet those move to the new KEK early. The
// transactions that follow condition on all of them.
func (s *Steps) sealFences(ctx context.Context, r kek.Rotation) error {
	v, err := s.load(ctx, r.ID)
	if err != nil {
		return err
	}
	switch {
	case v.Rotation != nil && v.Rotation.Phase.Reached(kek.Drained): // a duplicate has sealed it meanwhile
		return nil
	case v.Rotation == nil || v.Rotation.Phase != kek.Switched || v.Pointer == nil || v.Pointer.KEKID == r.OldKEK:
		return refusal(errors.New("the fence may be sealed only after the switch"))
	}
	for _, id := range v.Draining() {
		for i := range v.KEKs[id].FenceShards {
			if err := s.Drainage.SealFence(ctx, id, i); err != nil {
				return unavailable("fence", err)
			}
		}
	}
	return nil
}
