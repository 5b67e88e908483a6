package rotation

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Drain looks once whether any process may still write under an old KEK, and seals the
// fences of the old KEKs if none may (spec: DrainSee, SealShard, Seal). It never waits: the
// state machine does.
//
// A lease that has expired is revoked by a conditional delete. Its holder is never assumed
// dead, because it may only be paused. What makes a late write impossible is not time but
// the fence: after the seal no row can be inserted under the old KEK, and rewrap raises the
// epoch that updates are conditional on. So wrong clocks change how long drain takes, but
// not what it guarantees.
func (s *Steps) Drain(ctx context.Context, in StepInput) (DrainOutput, error) {
	return s.DrainWithin(ctx, in, 0)
}

// WithoutLimit is a longest wait for leases that is never over.
const WithoutLimit = time.Duration(math.MaxInt64)

// DrainWithin is Drain with a longest wait for leases, from the switch on, in place of the
// rotation's; 0 is the rotation's.
func (s *Steps) DrainWithin(ctx context.Context, in StepInput, maxWait time.Duration) (_ DrainOutput, err error) {
	defer func() { err = s.Journal.ExplainEnded(ctx, in.RotationID, err) }()
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return DrainOutput{}, err
	}
	if maxWait > 0 {
		r.Settings.DrainMaxWait = maxWait
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
	_, err = s.Journal.Transition(ctx, "drain", r.ID, func(v kek.View) (kek.Change, error) { return v.Seal(s.Journal.Now()) }, nil)
	return DrainOutput{Done: err == nil, Waited: s.sinceSwitch(r)}, err
}

// awaitLeases revokes the expired leases on the KEKs, in an emergency all of them, and
// counts those that remain.
func (s *Steps) awaitLeases(ctx context.Context, r kek.Rotation, keks []kek.ID) (DrainOutput, error) {
	var leases []Lease
	for _, id := range keks {
		held, err := s.Drainage.Leases(ctx, id)
		if err != nil {
			return DrainOutput{}, journal.WrapUnavailable("leases", err)
		}
		leases = append(leases, held...)
	}
	out := DrainOutput{Waited: s.sinceSwitch(r)}
	out.Pause = Pause(out.Waited, s.Config.DrainPoll)
	var err error
	var holder string
	for _, l := range leases {
		gone := false
		if r.Mode == kek.Emergency || s.hasRunOut(r, l) {
			if gone, err = s.Drainage.Revoke(ctx, l); err != nil {
				return out, journal.WrapUnavailable("leases", err)
			}
		}
		if !gone {
			holder = fmt.Sprintf("%s (host %s, pid %d, %d in flight)", l.Holder, l.Host, l.PID, l.Refs)
			out.Leases++
			out.Refs += l.Refs
		}
	}
	if out.Leases > 0 && r.Mode == kek.Normal && out.Waited >= int64(r.Settings.DrainMaxWait/time.Second) {
		return out, &journal.Error{
			Kind: journal.DrainTimeout, Field: "LEASE#" + string(r.OldKEK),
			Msg:  fmt.Sprintf("%d leases outlive max-wait %s, the last %s", out.Leases, r.Settings.DrainMaxWait, holder),
			Next: journal.Next{Do: journal.StopWriter},
		}
	}
	return out, nil
}

// Pause returns how long to wait until the next look at the leases, after waited seconds:
// a tenth of that, from one second up to longest. So a drain that every writer follows at
// once is over at once, and a long one does not fill the history of the execution (Step
// Functions quota: 25,000 events).
func Pause(waited int64, longest time.Duration) int64 {
	return max(1, min(waited/10, int64(longest/time.Second)))
}

// hasRunOut reports whether a lease has expired. The expiry is by the holder's clock, which
// may be wrong. An expiry further away than a lease can last is therefore ignored once the
// switch is that long ago: every live holder learns of the switch within seconds.
func (s *Steps) hasRunOut(r kek.Rotation, l Lease) bool {
	now := s.Journal.Now()
	return now.After(l.Expires) || l.Expires.Sub(now) > kek.MaxLease && now.Sub(r.SwitchedAt) > kek.MaxLease
}

// sinceSwitch returns the seconds since the switch.
func (s *Steps) sinceSwitch(r kek.Rotation) int64 {
	return int64(s.Journal.Now().Sub(r.SwitchedAt) / time.Second)
}

// RevokeLease revokes the lease of a holder that no longer exists, because a person says so
// (spec: Revoke). If the holder is alive after all, its next write under that KEK is
// refused and it continues under the pointer's KEK. A lease on the pointer's own KEK is not
// revoked, because no rotation waits for it.
func (s *Steps) RevokeLease(ctx context.Context, to journal.Recorder, id kek.ID, holder, reason string) (Lease, error) {
	v, err := s.Journal.Load(ctx, "")
	if err != nil {
		return Lease{}, err
	}
	switch {
	case v.Pointer != nil && v.Pointer.KEKID == id:
		return Lease{}, &journal.Error{
			Kind: journal.Refused, Field: "kek-id", Msg: "the pointer names this KEK: a lease on it holds up nothing", Next: journal.Next{Do: journal.ListLeases},
		}
	case reason == "" || audit.Visible(reason) != reason:
		return Lease{}, journal.RejectInput("reason", "a person who revokes a lease says why, in one line of UTF-8", `add --reason "why"`)
	}
	for range journal.MaxTries {
		held, err := s.Drainage.Leases(ctx, id)
		if err != nil {
			return Lease{}, journal.WrapUnavailable("leases", err)
		}
		i := slices.IndexFunc(held, func(l Lease) bool { return l.Holder == holder })
		if i < 0 {
			return Lease{}, &journal.Error{Kind: journal.Refused, Field: "holder", Msg: fmt.Sprintf("it has no lease on KEK %s", id), Next: journal.Next{Do: journal.ListLeases}}
		}
		l := held[i]
		gone, err := s.Drainage.Revoke(ctx, l)
		if err != nil {
			return l, journal.WrapUnavailable("leases", err)
		}
		if gone {
			return l, s.Journal.RecordEvent(ctx, to, audit.Event{
				ID: "lease_revoked/" + string(id) + "/" + holder, Type: "lease_revoked", Step: "lease revoke",
				Body: map[string]string{
					"kek_id": string(id), "holder": holder, "host": l.Host, "pid": fmt.Sprint(l.PID), "refs": fmt.Sprint(l.Refs),
					"expires_at": l.Expires.UTC().Format(time.RFC3339), "reason": reason,
				},
			})
		}
	}
	return Lease{}, &journal.Error{Kind: journal.Refused, Field: "holder", Msg: "it keeps renewing its lease: it is alive", Next: journal.Next{Say: "stop that process"}}
}

// sealFences permanently seals the shards of each draining KEK one by one, and then the
// drivers' own fences. A call that dies leaves some shards sealed, which is harmless:
// inserts that meet those move to the new KEK early. The transaction that ends the drain is
// conditional on every shard in the control table.
func (s *Steps) sealFences(ctx context.Context, r kek.Rotation) error {
	v, err := s.Journal.Load(ctx, r.ID)
	if err != nil {
		return err
	}
	switch {
	case v.Rotation != nil && v.Rotation.Phase.Reached(kek.Drained): // a duplicate has sealed it meanwhile
		return nil
	case v.Rotation == nil || v.Rotation.Phase != kek.Switched || v.Pointer == nil || v.Pointer.KEKID == r.OldKEK:
		return journal.ExplainRefusal(errors.New("the fence may be sealed only after the switch"))
	}
	for _, id := range v.Draining() {
		for i := range v.KEKs[id].FenceShards {
			if err := s.Drainage.SealFence(ctx, id, i); err != nil {
				return journal.WrapUnavailable("fence", err)
			}
		}
	}
	sources, err := s.openSources(r.Sources)
	if err != nil || len(ownFences(sources)) == 0 {
		return err
	}
	if v, err = s.Journal.LoadAll(ctx, r.ID); err != nil {
		return err
	}
	return sealOwnFences(ctx, sources, v)
}
