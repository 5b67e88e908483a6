package kek_test

import (
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// TestRebuiltState: no KEK is retired that was not, none that KMS has enabled stays retired,
// and one of which nothing is known resolves.
func TestRebuiltState(t *testing.T) {
	for _, c := range []struct {
		said             kek.State
		pointed, enabled bool
		want             kek.State
	}{
		{kek.Retired, true, true, kek.Active},
		{kek.Pending, true, true, kek.Active},
		{kek.Active, false, true, kek.Draining},
		{kek.Draining, false, true, kek.Draining},
		{kek.Sealed, false, false, kek.Sealed},
		{kek.Retired, false, true, kek.Sealed},
		{kek.Retired, false, false, kek.Retired},
		{kek.Pending, false, true, kek.Pending},
		{"", false, true, kek.Sealed},
		{"", false, false, kek.Sealed},
	} {
		if got := kek.RebuiltState(c.said, c.pointed, c.enabled); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestRebuildPointer: the epoch never goes back.
func TestRebuildPointer(t *testing.T) {
	p := kek.Pointer{KEKID: "k", Epoch: 3}
	for epoch, want := range map[int64]int64{0: 3, 3: 3, 7: 7} {
		if got := p.Rebuild(kek.Pointer{KEKID: "other", Epoch: epoch}); got.Epoch != want || got.KEKID != "k" {
			t.Errorf("found epoch %d: %+v", epoch, got)
		}
	}
	if got := p.Rebuild(kek.Pointer{}); got != p {
		t.Errorf("%+v", got)
	}
}

// TestLose ends a rotation at any phase, and leaves one alone that is over.
func TestLose(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	for _, p := range []kek.Phase{kek.Started, kek.Tested, kek.Switched, kek.KEKRetired, kek.Completed, kek.RolledBack} {
		want := p
		if !p.Final() {
			want = kek.Superseded
		}
		if got := (kek.Rotation{ID: "r", Phase: p, Rev: 4}).Lose("why", at); got.Phase != want || got.Rev != 5 || got.Err != "why" || got.UpdatedAt != at {
			t.Errorf("%s: %+v", p, got)
		}
	}
}

// TestChecks: an item that decodes and lacks what it is for is damaged.
func TestChecks(t *testing.T) {
	r := kek.Rotation{Mode: kek.Normal, Phase: kek.Minted, OldKEK: "o", NewKEK: "n", Attempt: 1, Rev: 1}
	k := kek.KEK{ID: "k", ARN: "arn", State: kek.Retired, FenceShards: 1}
	p := kek.Pointer{KEKID: "k", Epoch: 1}
	for what, err := range map[string]error{"rotation": r.Check(), "KEK": k.Check(), "pointer": p.Check()} {
		if err != nil {
			t.Errorf("a sound %s: %v", what, err)
		}
	}
	with := func(change func(*kek.Rotation)) error { v := r; change(&v); return v.Check() }
	kekWith := func(change func(*kek.KEK)) error { v := k; change(&v); return v.Check() }
	for what, err := range map[string]error{
		"an emergency":         with(func(r *kek.Rotation) { r.Mode = kek.Emergency }),
		"started":              with(func(r *kek.Rotation) { r.Phase, r.NewKEK = kek.Started, "" }),
		"retired":              with(func(r *kek.Rotation) { r.Phase = kek.KEKRetired }),
		"completed":            with(func(r *kek.Rotation) { r.Phase = kek.Completed }),
		"rolled back unminted": with(func(r *kek.Rotation) { r.Phase, r.NewKEK = kek.RolledBack, "" }),
		"superseded unminted":  with(func(r *kek.Rotation) { r.Phase, r.NewKEK = kek.Superseded, "" }),
		"a pending KEK":        kekWith(func(k *kek.KEK) { k.State = kek.Pending }),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"no mode":          with(func(r *kek.Rotation) { r.Mode = "" }),
		"another phase":    with(func(r *kek.Rotation) { r.Phase = "odd" }),
		"no revision":      with(func(r *kek.Rotation) { r.Rev = 0 }),
		"no old KEK":       with(func(r *kek.Rotation) { r.OldKEK = "" }),
		"no attempt":       with(func(r *kek.Rotation) { r.Attempt = 0 }),
		"no new KEK":       with(func(r *kek.Rotation) { r.NewKEK = "" }),
		"a KEK's id":       kekWith(func(k *kek.KEK) { k.ID = "" }),
		"a KEK's state":    kekWith(func(k *kek.KEK) { k.State = "odd" }),
		"a KEK's ARN":      kekWith(func(k *kek.KEK) { k.ARN = "" }),
		"a KEK's fence":    kekWith(func(k *kek.KEK) { k.FenceShards = 0 }),
		"a pointer's KEK":  kek.Pointer{Epoch: 1}.Check(),
		"a pointer's time": kek.Pointer{KEKID: "k"}.Check(),
	} {
		if err == nil {
			t.Errorf("%s: it is sound", what)
		}
	}
}
