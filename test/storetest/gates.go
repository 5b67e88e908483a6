package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// GateStore is what preflight and the switch ask for beyond the state of a rotation.
type GateStore interface {
	gates.Announcements
	gates.Drills
	gates.Approvals
	gates.HealthLog
	gates.Pauses
	journal.Outbox
}

// TestGates runs the suite of [GateStore]. The store that newStore returns is empty.
func TestGates(t *testing.T, newStore func(t *testing.T) GateStore) {
	at := time.Date(2026, 4, 5, 1, 0, 0, 0, time.UTC)
	t.Run("Announcement", func(t *testing.T) {
		s := newStore(t)
		testRevised(t, s, revised[gates.Announcement]{
			load: func(ctx context.Context) (gates.Announcement, error) {
				return s.LoadAnnouncement(ctx, "Q2-2026 rotation")
			},
			save: s.SaveAnnouncement, rev: func(a *gates.Announcement) *int64 { return &a.Rev },
			none: gates.Announcement{Label: "Q2-2026 rotation"},
			full: gates.Announcement{
				Label: "Q2-2026 rotation", From: at, To: at.Add(time.Hour), At: at.AddDate(0, 0, -7), Actor: "alice", Told: []string{"sns", "webhook"},
			},
		})
	})
	t.Run("Drill", func(t *testing.T) {
		s := newStore(t)
		testRevised(t, s, revised[gates.Drill]{
			load: func(ctx context.Context) (gates.Drill, error) { return s.LoadDrill(ctx, "fire") },
			save: s.SaveDrill, rev: func(d *gates.Drill) *int64 { return &d.Rev },
			none: gates.Drill{Name: "fire"},
			full: gates.Drill{Name: "fire", PassedAt: at, Rotation: "r1", Pointer: "kek-0", Retired: "kek-1", Error: "CanaryFailed: …", Actor: "bob"},
		})
	})
	t.Run("Approval", func(t *testing.T) {
		s := newStore(t)
		testRevised(t, s, revised[gates.Approval]{
			load: func(ctx context.Context) (gates.Approval, error) { return s.LoadApproval(ctx, "r1") },
			save: s.SaveApproval, rev: func(a *gates.Approval) *int64 { return &a.Rev },
			none: gates.Approval{Rotation: "r1"},
			full: gates.Approval{
				Rotation: "r1", Plan: "cafe", State: gates.ApprovalGiven, Token: "t", Requester: "alice",
				Asked: at, Expires: at.Add(time.Hour), By: "bob", At: at.Add(time.Minute), Reason: "looks right",
			},
		})
	})
	t.Run("Pause", func(t *testing.T) {
		s := newStore(t)
		testRevised(t, s, revised[gates.Pause]{
			load: func(ctx context.Context) (gates.Pause, error) { return s.LoadPause(ctx, "r1") },
			save: s.SavePause, rev: func(p *gates.Pause) *int64 { return &p.Rev },
			none: gates.Pause{Rotation: "r1"},
			full: gates.Pause{Rotation: "r1", State: gates.Paused, By: "bob", At: at, Reason: "a sale begins"},
		})
	})
	t.Run("Health", func(t *testing.T) { testHealth(t, newStore(t)) })
}

// revised is one kind of item whose saves condition on a revision.
type revised[T any] struct {
	load       func(context.Context) (T, error)
	save       func(context.Context, T, audit.Event) error
	rev        func(*T) *int64
	none, full T
}

func (r revised[T]) at(v T, rev int64) T {
	*r.rev(&v) = rev
	return v
}

// testRevised checks what is stored, that a stale save writes neither item nor
// record, that an empty value replaces a full one, and that of racers one wins.
func testRevised[T any](t *testing.T, s GateStore, r revised[T]) {
	records := int64(0)
	holds := func(what string, want T) {
		t.Helper()
		got, err := r.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same(t, what, got, want)
		_, head, err := s.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		same(t, "records after "+what, head.Seq, records)
	}
	event := func(n int) audit.Event { return audit.Event{ID: fmt.Sprintf("gate/%d/%d", records, n), Type: "gate"} }
	holds("nothing", r.none)
	for rev, v := range []T{r.full, r.none, r.full} {
		for _, stale := range []int64{int64(rev) - 1, int64(rev) + 1} {
			if err := r.save(t.Context(), r.at(r.none, stale), event(0)); !errors.Is(err, kek.ErrConflict) {
				t.Fatalf("save at revision %d of %d: %v, want ErrConflict", stale, rev, err)
			}
		}
		if err := r.save(t.Context(), r.at(v, int64(rev)), event(0)); err != nil {
			t.Fatal(err)
		}
		records++
		holds(fmt.Sprintf("revision %d", rev+1), r.at(v, int64(rev)+1))
	}
	errs := race(func(n int) error { return r.save(t.Context(), r.at(r.full, 3), event(n)) })
	same(t, "winners", winners(t, errs), 1)
	records++
	holds("the race", r.at(r.full, 4))
}

func testHealth(t *testing.T, s GateStore) {
	days := []string{"2026-04-02", "2026-04-01", "2026-03-31", "2026-04-02"}
	list := func() []gates.HealthDay {
		t.Helper()
		out, err := s.ListHealth(t.Context(), days)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	same(t, "history of nothing", list(), []gates.HealthDay(nil))
	for _, err := range race(func(n int) error {
		_, err := s.CountHealth(t.Context(), "2026-04-01", n%4 != 0)
		return err
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	got, err := s.CountHealth(t.Context(), "2026-04-02", false)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "a day's first", got, gates.HealthDay{Day: "2026-04-02", Red: 1})
	if _, err := s.CountHealth(t.Context(), "2026-04-03", true); err != nil {
		t.Fatal(err)
	}
	same(t, "history", list(), []gates.HealthDay{
		{Day: "2026-04-01", Green: racers - racers/4, Red: racers / 4}, {Day: "2026-04-02", Red: 1},
	})
}
