package gates

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// DrillFailure is the drill in which the canary fails: the rotation must roll back, with the
// pointer where it was and the new key disabled.
const DrillFailure = "kms_rotation_failure"

// EventDrillPassed is the type of the record of a drill that passed.
const EventDrillPassed = "drill_passed"

// Drill is the last time that a drill passed, with its evidence.
type Drill struct {
	Name     string
	Rev      int64 // grows with every save; a save conditions on it
	PassedAt time.Time
	Rotation string // the rotation that was made to fail
	Pointer  kek.ID // which the pointer named before and after
	Retired  kek.ID // the new KEK: retired in the registry, its KMS key disabled
	Error    string // what the rotation was rolled back for
	Actor    string
}

// NextRevision implements [journal.Revisioned].
func (d Drill) NextRevision() Drill {
	d.Rev++
	return d
}

// Drills stores when each drill last passed.
type Drills interface {
	// LoadDrill returns a drill with revision 0 if it never passed.
	LoadDrill(ctx context.Context, name string) (Drill, error)
	// SaveDrill stores d with Rev+1 if the stored revision is d.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SaveDrill(ctx context.Context, d Drill, ev audit.Event) error
}

// Freshness says whether a passed drill still counts.
type Freshness string

// How fresh a drill is.
const (
	Fresh Freshness = "fresh"
	Stale Freshness = "stale"
	Never Freshness = "never"
)

// Freshness returns how fresh d is at a moment, if a drill counts for so many days; 0 means
// that it always counts.
func (d Drill) Freshness(now time.Time, days int) Freshness {
	switch {
	case d.Rev == 0:
		return Never
	case days > 0 && now.After(d.PassedAt.AddDate(0, 0, days)):
		return Stale
	default:
		return Fresh
	}
}

// CheckDrill refuses a rotation if the drill of its rollback has not passed lately.
func (g *Gates) CheckDrill(ctx context.Context) error {
	d, err := g.Drills.LoadDrill(ctx, DrillFailure)
	if err != nil {
		return journal.WrapUnavailable("drill", err)
	}
	msg := "it never passed"
	switch d.Freshness(g.Journal.Now(), g.Rules.DrillFreshDays) {
	case Fresh:
		return nil
	case Stale:
		msg = fmt.Sprintf("it passed last at %s, more than %d days ago", d.PassedAt.UTC().Format(time.RFC3339), g.Rules.DrillFreshDays)
	case Never:
	}
	return &journal.Error{Kind: journal.DrillStale, Field: DrillFailure, Msg: msg, Next: journal.Next{Do: journal.RunDrill, Name: DrillFailure}}
}

// RecordPassedDrill records that the drill of a rotation passed, unless that is recorded
// already. prove returns the evidence, or an error if the drill has not passed; kmsState is
// the state of the retired key in KMS.
func (g *Gates) RecordPassedDrill(ctx context.Context, name, rotationID string, prove func() (d Drill, kmsState string, err error)) error {
	docs := journal.Documents[Drill]{Kind: "drill", Load: g.Drills.LoadDrill, Save: g.Drills.SaveDrill}
	_, err := journal.ReviseDocument(ctx, g.Journal, docs, name, func(was Drill) (Drill, audit.Event, error) {
		if was.Rotation == rotationID {
			return was, audit.Event{}, kek.ErrDone
		}
		d, kmsState, err := prove()
		d.Name = name
		d.Rotation = rotationID
		d.Actor = g.Journal.Actor
		d.Rev = was.Rev
		d.PassedAt = g.Journal.Now()
		return d, d.toEvent(kmsState), err
	})
	return err
}

func (d Drill) toEvent(kmsState string) audit.Event {
	ev := audit.Event{
		ID: d.Rotation + "/" + EventDrillPassed, Type: EventDrillPassed, Rotation: d.Rotation, Step: "retire", Actor: d.Actor,
		Body: map[string]string{"drill": d.Name, "pointer": string(d.Pointer), "kek." + string(d.Retired): string(kek.Retired)},
	}
	journal.AddPairs(ev.Body, "kms_state", kmsState, "error", d.Error)
	return ev
}
