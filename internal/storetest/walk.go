package storetest

import (
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// step is one transition of a walk.
type step struct {
	name    string
	prepare func(t *testing.T, f *fixture) // before it, e.g. sealing the fence
	next    func(v kek.View, now time.Time) (kek.Change, error)
}

func minted(id kek.ID, now time.Time) kek.KEK {
	return kek.KEK{ID: id, ARN: "arn:aws:kms:eu-central-1:000000000000:key/" + string(id), Label: "Q2-2026-rotation", FenceShards: shards, CreatedAt: now}
}

func genesis() step {
	return step{name: "genesis", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Genesis(minted("kek-0", now), nil, now)
	}}
}

func start(id string, mode kek.Mode) step {
	return step{name: "start", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Start(kek.Rotation{
			ID: id, Mode: mode, Label: "Q2-2026-rotation", Reason: "because", Segments: 3,
			Execution: "arn:aws:states:eu-central-1:000000000000:execution:m:" + id, Actor: "alice",
			Requester: "arn:aws:sts::000000000000:assumed-role/ops/alice", Approval: mode == kek.Normal,
		}, now)
	}}
}

func drill(id string) step {
	return step{name: "drill", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Start(kek.Rotation{ID: id, Mode: kek.Normal, Label: "drill", Drill: "kms_rotation_failure", Segments: 3}, now)
	}}
}

func mint(id kek.ID) step {
	return step{name: "mint " + string(id), next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Mint(minted(id, now), now)
	}}
}

func remint(attempt int) step {
	return step{name: "remint", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Remint(attempt, 5, "canary failed", now)
	}}
}

func rollback() step {
	return step{name: "rollback", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.PreSwitchFailure("canary failed", now)
	}}
}

func tested() step {
	return step{name: "test", next: func(v kek.View, now time.Time) (kek.Change, error) { return v.Test(map[kek.ID][]byte{"kek-0": []byte("probe")}, now) }}
}

func switched() step { return step{name: "switch", next: kek.View.Switch} }

func sealFence(t *testing.T, f *fixture) {
	t.Helper()
	for i := range shards {
		if err := f.Store.SealFence(t.Context(), "kek-0", i); err != nil {
			t.Fatal(err)
		}
	}
}

// afterSwitch is the rest of a rotation.
func afterSwitch() []step {
	return []step{
		{name: "seal", prepare: sealFence, next: kek.View.Seal},
		{name: "rewrap", next: func(v kek.View, now time.Time) (kek.Change, error) { return v.Rewrap(v.Rotation.Rev, now) }},
		{name: "retire", next: func(v kek.View, now time.Time) (kek.Change, error) {
			return v.Retire(v.Rotation.Rev, now, now.AddDate(0, 0, 40))
		}},
		{name: "complete", next: func(v kek.View, now time.Time) (kek.Change, error) { return v.Complete(v.Rotation.Rev, now) }},
	}
}

// walks are the ways that rotations go; together they make every transition of
// [kek.View].
func walks() map[string][]step {
	id := "Q2-2026-rotation"
	whole := append([]step{genesis(), start(id, kek.Normal), mint("kek-1"), tested(), switched()}, afterSwitch()...)
	emergency := append([]step{
		genesis(), start(id, kek.Emergency), remint(1), mint("kek-1"), remint(2), mint("kek-2"), tested(), remint(3),
		mint("kek-3"), tested(), switched(),
	}, afterSwitch()...)
	return map[string][]step{
		"normal":                whole,
		"emergency":             emergency,
		"rollback when started": {genesis(), start(id, kek.Normal), rollback()},
		"rollback when minted":  {genesis(), start(id, kek.Normal), mint("kek-1"), rollback()},
		"rollback when tested":  {genesis(), start(id, kek.Normal), mint("kek-1"), tested(), rollback()},
		"drill":                 {genesis(), drill(id), mint("kek-1"), rollback()},
	}
}

// take makes a step and returns the change that it was.
func (f *fixture) take(t *testing.T, s step) kek.Change {
	t.Helper()
	if s.prepare != nil {
		s.prepare(t, f)
	}
	v, err := f.Store.Load(t.Context(), f.id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.next(v, f.now())
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if err := f.Store.Apply(t.Context(), c, f.event(c)); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	return c
}

func (f *fixture) takeAll(t *testing.T, steps ...step) {
	t.Helper()
	for _, s := range steps {
		f.take(t, s)
	}
}
