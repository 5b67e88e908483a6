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

// source is a source of a table of the same name.
func source(name, definition string) kek.Source {
	return kek.Source{Name: name, Kind: "dynamodb", Definition: definition, Place: "table-" + name, AddedBy: "alice"}
}

func genesis() step {
	return step{name: "genesis", next: func(v kek.View, now time.Time) (kek.Change, error) {
		orders, known := source("orders", `{"name":"orders","context":{"tenant":"$é"}}`), kek.Source{Name: "known", Kind: "corpus", Definition: "{}", Place: "bucket/known/"}
		orders.AddedAt = now
		return v.Genesis(minted("kek-0", now), []kek.Source{known, orders}, now)
	}}
}

func addSource(name, definition string) step {
	return step{name: "add source " + name, next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.PutSource(source(name, definition), now)
	}}
}

func removeSource(name string) step {
	return step{name: "remove source " + name, next: func(v kek.View, now time.Time) (kek.Change, error) { return v.RemoveSource(name, now) }}
}

func forgetMark(table string) step {
	leave := func(t *testing.T, f *fixture) {
		t.Helper()
		f.Mark(t, kek.Mark{Table: table, Holder: "app/é", SeenAt: f.now()})
	}
	return step{name: "forget the mark of " + table, prepare: leave, next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.ForgetMark(table, now)
	}}
}

func registerKEK(id kek.ID) step {
	return step{name: "register " + string(id), next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.RegisterKEK(minted(id, time.Time{}), now)
	}}
}

func start(id string, mode kek.Mode) step {
	return step{name: "start", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Start(kek.Rotation{
			ID: id, Mode: mode, Label: "Q2-2026-rotation", Reason: "because", Segments: 3,
			Execution: "arn:aws:states:eu-central-1:000000000000:execution:m:" + id, Actor: "alice",
			Requester: "arn:aws:sts::000000000000:assumed-role/ops/alice", Approval: mode == kek.Normal,
			Settings: kek.Settings{
				DrainMaxWait: 30 * time.Minute, DeleteHold: 400 * 24 * time.Hour, FenceShards: shards, MaxMints: 5, CanaryRounds: 3, Deep: true,
			},
		}, now)
	}}
}

func drill(id string) step {
	return step{name: "drill", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Start(kek.Rotation{ID: id, Mode: kek.Normal, Label: "drill", Drill: "kms_rotation_failure", Segments: 3}, now)
	}}
}

func counted() step { return step{name: "count", next: kek.View.Count} }

func mint(id kek.ID) step {
	return step{name: "mint " + string(id), next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Mint(minted(id, now), now)
	}}
}

func rehearsed() step { return step{name: "rehearse", next: kek.View.Rehearse} }

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
	return step{name: "test", next: func(v kek.View, now time.Time) (kek.Change, error) {
		probes := map[kek.ID][]byte{}
		for _, id := range v.Rotation.Olds {
			probes[id] = []byte("probe\x00 under " + id)
		}
		return v.Test(probes, now)
	}}
}

func switched() step { return step{name: "switch", next: kek.View.Switch} }

// resumed is at a moment of its own, so that it is done when it is repeated.
func resumed() step {
	at := time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)
	return step{name: "resume", next: func(v kek.View, _ time.Time) (kek.Change, error) { return v.Resume(at) }}
}

func sealFence(t *testing.T, f *fixture) {
	t.Helper()
	for i := range shards {
		if err := f.Store.SealFence(t.Context(), "kek-0", i); err != nil {
			t.Fatal(err)
		}
	}
}

func sealed() step { return step{name: "seal", prepare: sealFence, next: kek.View.Seal} }

func rewrap() step {
	return step{name: "rewrap", next: func(v kek.View, now time.Time) (kek.Change, error) { return v.Rewrap(v.Rotation.Rev, now) }}
}

func retired() step {
	return step{name: "retire", next: func(v kek.View, now time.Time) (kek.Change, error) {
		return v.Retire(v.Rotation.Rev, now, now.AddDate(0, 0, 40))
	}}
}

func completed() step {
	return step{name: "complete", next: func(v kek.View, now time.Time) (kek.Change, error) { return v.Complete(v.Rotation.Rev, now) }}
}

// toTested are the steps of a normal rotation up to its switch.
func toTested(id string) []step {
	return []step{start(id, kek.Normal), counted(), mint("kek-1"), rehearsed(), tested()}
}

// walks are the ways that rotations go; together they make every transition of
// [kek.View].
func walks() map[string][]step {
	id := "Q2-2026-rotation"
	way := func(steps ...any) []step {
		out := []step{genesis()}
		for _, s := range steps {
			switch s := s.(type) {
			case step:
				out = append(out, s)
			case []step:
				out = append(out, s...)
			}
		}
		return out
	}
	end := []step{sealed(), rewrap(), retired(), completed()}
	return map[string][]step{
		"normal": way(toTested(id), switched(), end),
		"emergency": way(start(id, kek.Emergency), remint(1), mint("kek-1"), remint(2), mint("kek-2"), rehearsed(), tested(), remint(3),
			mint("kek-3"), rehearsed(), tested(), switched(), end),
		"rollback when started": way(start(id, kek.Normal), counted(), rollback()),
		"rollback when minted":  way(start(id, kek.Normal), counted(), mint("kek-1"), rollback()),
		"rollback when tested":  way(toTested(id), rollback()),
		"drill":                 way(drill(id), counted(), mint("kek-1"), rollback()),
		"registry": way(registerKEK("kek-b-past"), forgetMark("stray"), addSource("people", "{}"), registerKEK("kek-a-past"),
			toTested(id), switched(), addSource("late", "{}"), addSource("people", `{"a":1}`), sealed(), removeSource("orders"), forgetMark("stray"),
			resumed(), rewrap(), addSource("later", "{}"), retired(), addSource("last", "{}"), completed(), removeSource("late")),
	}
}

// take makes a step and returns the change that it was.
func (f *fixture) take(t *testing.T, s step) kek.Change {
	t.Helper()
	if s.prepare != nil {
		s.prepare(t, f)
	}
	v, err := f.Store.LoadAll(t.Context(), f.id)
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
