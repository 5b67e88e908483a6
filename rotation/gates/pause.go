package gates

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// PauseState says whether people have paused the walks over the rows of a rotation.
type PauseState string

// The states of a pause. The zero value is that of a rotation that was never paused.
const (
	Paused    PauseState = "paused"
	Continued PauseState = "continued"
)

// The types of the records of a pause and of its end.
const (
	EventPaused    = "rotation_paused"
	EventContinued = "rotation_continued"
)

// Pause is the last pause of one rotation. It stops the census, the rewrap, the confirmation
// and the verification between two rows, and nothing else: no transition depends on it. It
// belongs to its rotation, so an emergency that takes over is not paused.
type Pause struct {
	Rotation string
	Rev      int64 // grows with every save; a save conditions on it
	State    PauseState
	By       string // who paused or continued it
	At       time.Time
	Reason   string // of the pause
}

// NextRevision implements [journal.Revisioned].
func (p Pause) NextRevision() Pause {
	p.Rev++
	return p
}

// Describe says who paused a rotation, since when and why.
func (p Pause) Describe() string {
	return fmt.Sprintf("paused by %s since %s: %s", p.By, p.At.UTC().Format(time.RFC3339), p.Reason)
}

// Pauses stores the pauses.
type Pauses interface {
	// LoadPause returns a pause with revision 0 if the rotation was never paused.
	LoadPause(ctx context.Context, rotationID string) (Pause, error)
	// SavePause stores p with Rev+1 if the stored revision is p.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SavePause(ctx context.Context, p Pause, ev audit.Event) error
}

// PauseRotation records that people pause a rotation. A repeated call changes nothing, also
// not the reason.
func (g *Gates) PauseRotation(ctx context.Context, rotationID, reason string) (Pause, error) {
	switch {
	case reason == "":
		return Pause{}, journal.RejectInput("reason", "a pause needs one", `add --reason "why", for the audit chain`)
	case audit.Visible(reason) != reason:
		return Pause{}, journal.RejectInput("reason", "it has line ends, control characters or other invisible text", "write it in one line of UTF-8")
	}
	_, r, err := g.Journal.LoadRotation(ctx, rotationID)
	if err != nil {
		return Pause{}, err
	}
	if r.Phase.Final() {
		return Pause{}, &journal.Error{Kind: journal.Refused, Field: r.ID, Msg: fmt.Sprintf("it has ended: it is %s", r.Phase), Next: journal.Next{Do: journal.ShowStatus}}
	}
	return g.revisePause(ctx, rotationID, func(was Pause) (Pause, audit.Event, error) {
		if was.State == Paused {
			return was, audit.Event{}, kek.ErrDone
		}
		was.State, was.Reason = Paused, reason
		return was, audit.Event{Type: EventPaused, Body: map[string]string{"reason": reason}}, nil
	})
}

// ContinueRotation ends the pause of a rotation. Without one it changes nothing.
func (g *Gates) ContinueRotation(ctx context.Context, rotationID string) (Pause, error) {
	if _, _, err := g.Journal.LoadRotation(ctx, rotationID); err != nil {
		return Pause{}, err
	}
	return g.revisePause(ctx, rotationID, func(was Pause) (Pause, audit.Event, error) {
		if was.State != Paused {
			return was, audit.Event{}, kek.ErrDone
		}
		ev := audit.Event{Type: EventContinued, Body: map[string]string{"paused_by": was.By, "since": was.At.UTC().Format(time.RFC3339), "reason": was.Reason}}
		was.State = Continued
		return was, ev, nil
	})
}

// revisePause saves what next makes of a rotation's pause, with its record.
func (g *Gates) revisePause(ctx context.Context, rotationID string, next func(Pause) (Pause, audit.Event, error)) (Pause, error) {
	docs := journal.Documents[Pause]{Kind: "pause", Load: g.Pauses.LoadPause, Save: g.Pauses.SavePause}
	return journal.ReviseDocument(ctx, g.Journal, docs, rotationID, func(was Pause) (Pause, audit.Event, error) {
		p, ev, err := next(was)
		if err != nil {
			return p, ev, err
		}
		p.Rotation, p.By = rotationID, g.Journal.Actor
		p.At = g.Journal.Now()
		ev.ID = fmt.Sprintf("%s/%s/%d", rotationID, ev.Type, was.Rev+1)
		ev.Rotation, ev.Step = rotationID, "pause"
		ev.Actor = g.Journal.Actor
		return p, ev, nil
	})
}
