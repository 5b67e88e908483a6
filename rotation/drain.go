package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
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
	out.Pause = Pause(out.Waited, s.DrainPoll)
	var err error
	var holder string
	for _, l := range leases {
		gone := false
		if r.Mode == kek.Emergency || s.ranOut(r, l) {
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
			Msg: fmt.Sprintf("%d leases outlive max-wait %s, the last %s", out.Leases, r.Settings.DrainMaxWait, holder),
			Next: "stop or restart that process; its lease then runs out, and the redriven execution goes on. If it is gone for good: " +
				"matter ops lease revoke",
		}
	}
	return out, nil
}

// Pause is how long to wait before the leases are looked at again, in seconds, after waited
// seconds. It grows with them, up to longest: a switch that every writer follows at once is
// not held up, and one that a writer holds up does not fill the execution's history.
func Pause(waited int64, longest time.Duration) int64 {
	return max(1, min(waited/10, int64(longest/time.Second)))
}

// ranOut reports whether a lease has ended. Its end is by the holder's clock: one that is
// further away than a lease can last is not believed once the switch, of which every live
// holder learns within seconds, is as long ago.
func (s *Steps) ranOut(r kek.Rotation, l Lease) bool {
	now := s.Now()
	return now.After(l.Expires) || l.Expires.Sub(now) > kek.MaxLease && now.Sub(r.SwitchedAt) > kek.MaxLease
}

func (s *Steps) sinceSwitch(r kek.Rotation) int64 {
	return int64(s.Now().Sub(r.SwitchedAt) / time.Second)
}

// RevokeLease takes back the lease of a holder that is gone, at a person's word (spec:
// Revoke). A holder that lives after all is refused its next write under that KEK and goes
// on under the pointer's. It refuses the pointer's own KEK: a lease on that holds up nothing.
func (s *Steps) RevokeLease(ctx context.Context, to Recorder, id kek.ID, holder, reason string) (Lease, error) {
	v, err := s.load(ctx, "")
	if err != nil {
		return Lease{}, err
	}
	switch {
	case v.Pointer != nil && v.Pointer.KEKID == id:
		return Lease{}, &Error{
			Kind: Refused, Field: "kek-id", Msg: "the pointer names this KEK: a lease on it holds up nothing", Next: "matter ops lease list",
		}
	case reason == "" || audit.Visible(reason) != reason:
		return Lease{}, invalid("reason", "a person who takes a lease back says why, in one line of UTF-8", `add --reason "why"`)
	}
	for range maxTries {
		held, err := s.Drainage.Leases(ctx, id)
		if err != nil {
			return Lease{}, unavailable("leases", err)
		}
		i := slices.IndexFunc(held, func(l Lease) bool { return l.Holder == holder })
		if i < 0 {
			return Lease{}, &Error{Kind: Refused, Field: "holder", Msg: fmt.Sprintf("it has no lease on KEK %s", id), Next: "matter ops lease list"}
		}
		l := held[i]
		gone, err := s.Drainage.Revoke(ctx, l)
		if err != nil {
			return l, unavailable("leases", err)
		}
		if gone {
			return l, s.Record(ctx, to, audit.Event{
				ID: "lease_revoked/" + string(id) + "/" + holder, Type: "lease_revoked", Step: "lease revoke",
				Body: map[string]string{
					"kek_id": string(id), "holder": holder, "host": l.Host, "pid": fmt.Sprint(l.PID), "refs": fmt.Sprint(l.Refs),
					"expires_at": l.Expires.UTC().Format(time.RFC3339), "reason": reason,
				},
			})
		}
	}
	return Lease{}, &Error{Kind: Refused, Field: "holder", Msg: "it renews its lease again and again: it is alive", Next: "stop that process"}
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
