package gates

import (
	"context"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Announcement is a maintenance window that customers were told of. It is valid for the
// rotations of one label.
type Announcement struct {
	Label string    // of the rotations that it announces
	Rev   int64     // grows with every save; a save conditions on it
	From  time.Time // the window
	To    time.Time
	At    time.Time // when every announcer had accepted it
	Actor string
	Told  []string // names of the announcers
}

// NextRevision implements [journal.Revisioned].
func (a Announcement) NextRevision() Announcement {
	a.Rev++
	return a
}

// Announcements stores the announcements.
type Announcements interface {
	// LoadAnnouncement returns an announcement with revision 0 if none is stored.
	LoadAnnouncement(ctx context.Context, label string) (Announcement, error)
	// SaveAnnouncement stores a with Rev+1 if the stored revision is a.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SaveAnnouncement(ctx context.Context, a Announcement, ev audit.Event) error
}

// Stage is how far an announced window has come, in the words of a status page.
type Stage string

// The stages of a window.
const (
	StageScheduled  Stage = "scheduled"
	StageInProgress Stage = "in_progress"
	StageVerifying  Stage = "verifying"
	StageCompleted  Stage = "completed"
)

// Announcer tells customers, on one channel, of a window and of its progress.
type Announcer interface {
	Name() string
	// Tell moves a window to a stage. It is idempotent.
	Tell(ctx context.Context, a Announcement, stage Stage) error
}

// EventAnnounced is the type of the record of an announcement.
const EventAnnounced = "window_announced"

// announceSlack is by how much an announcement may miss the required days: the schedule may
// be late by an hour, the function by another, and a daylight-saving change may take a
// third.
const announceSlack = 3 * time.Hour

// Text returns what customers read at a stage.
func (a Announcement) Text(stage Stage) (title, body string) {
	title = "Scheduled maintenance: rotation of encryption keys"
	switch stage {
	case StageInProgress:
		return title, "The rotation of the encryption keys has begun. No interruption is expected."
	case StageVerifying:
		return title, "All data is protected by the new key. We are verifying it."
	case StageCompleted:
		return title, "The maintenance is over."
	case StageScheduled:
	}
	const layout = "2006-01-02 15:04 MST"
	return title, fmt.Sprintf("We rotate the keys that encrypt your data between %s and %s. No interruption is expected, and there is nothing for you to do.",
		a.From.Format(layout), a.To.Format(layout))
}

// AnnounceInput says which window to announce. The default is the window that is open, or
// opens next, after the required days of notice, for the rotation of that quarter.
type AnnounceInput struct {
	Label string
	From  time.Time // a moment in the window; zero for the default
}

// AnnounceWindow tells customers of a window, then records that they were told. A window that
// was announced already, and is not over, is not announced again unless it has moved. A call
// that dies between telling and recording is repeated and tells twice.
func (g *Gates) AnnounceWindow(ctx context.Context, in AnnounceInput) (Announcement, error) {
	want, err := g.requestWindow(in)
	if err != nil {
		return Announcement{}, err
	}
	announced := false
	docs := journal.Documents[Announcement]{Kind: "announcement", Load: g.Announcements.LoadAnnouncement, Save: g.Announcements.SaveAnnouncement}
	a, err := journal.ReviseDocument(ctx, g.Journal, docs, want.Label, func(there Announcement) (Announcement, audit.Event, error) {
		moved := !in.From.IsZero() && !there.From.Equal(want.From)
		announced = moved || !g.Journal.Now().Before(there.To) // if none is stored, To is the zero time
		if !announced {
			return there, audit.Event{}, kek.ErrDone
		}
		a, err := g.tellCustomers(ctx, want, there.Rev)
		return a, a.toEvent(), err
	})
	if err != nil || !announced {
		return a, err
	}
	return a, g.Journal.TellPeople(ctx, journal.Notice{Event: journal.NotifyAnnounced, RotationID: a.Label, Detail: a.span()})
}

// tellCustomers has every announcer tell of a window, and returns the announcement to save.
func (g *Gates) tellCustomers(ctx context.Context, a Announcement, rev int64) (Announcement, error) {
	a.Rev = rev
	a.At = g.Journal.Now()
	a.Actor = g.Journal.Actor
	for _, n := range g.Announcers {
		if err := n.Tell(ctx, a, StageScheduled); err != nil {
			return Announcement{}, journal.WrapUnavailable("announcer "+n.Name(), err)
		}
		a.Told = append(a.Told, n.Name())
	}
	return a, nil
}

// requestWindow returns the requested announcement. No announcer has been told of it yet.
func (g *Gates) requestWindow(in AnnounceInput) (Announcement, error) {
	soonest := g.Journal.Now().In(g.Rules.Window.Location()).AddDate(0, 0, g.Rules.AnnounceDays)
	at := in.From
	switch {
	case at.IsZero():
		at = soonest
	case at.Before(soonest.Add(-announceSlack)):
		return Announcement{}, journal.RejectInput("from", fmt.Sprintf("%s is less than %d days ahead", at.Format(time.RFC3339), g.Rules.AnnounceDays),
			"announce a later window; the soonest is "+soonest.Format(time.RFC3339))
	}
	a := Announcement{Label: in.Label}
	if a.Label == "" {
		a.Label = g.Rules.QuarterLabel(at)
	}
	if err := kek.CheckLabel(a.Label); err != nil {
		return a, journal.RejectInput("label", err.Error(), "choose another label or leave it out")
	}
	a.From, a.To = g.Rules.Window.spanAround(at)
	return a, nil
}

func (a Announcement) span() string {
	return a.From.Format("2006-01-02 15:04") + " to " + a.To.Format("2006-01-02 15:04 MST")
}

// toEvent returns the audit record of an announcement that is about to be saved.
func (a Announcement) toEvent() audit.Event {
	ev := audit.Event{
		ID: fmt.Sprintf("announcement/%s/%d", a.Label, a.Rev+1), Type: EventAnnounced, Step: "announce", Actor: a.Actor, Body: map[string]string{
			"label": a.Label, "from": a.From.UTC().Format(time.RFC3339), "to": a.To.UTC().Format(time.RFC3339),
		},
	}
	for i, name := range a.Told {
		ev.Body[fmt.Sprintf("told.%d", i+1)] = name
	}
	return ev
}

// CheckAnnouncement refuses a rotation if customers were not told of its window in time.
func (g *Gates) CheckAnnouncement(ctx context.Context, label string) error {
	a, err := g.Announcements.LoadAnnouncement(ctx, label)
	if err != nil {
		return journal.WrapUnavailable("announcement", err)
	}
	now := g.Journal.Now()
	next := journal.Next{Do: journal.AnnounceWindow, Label: label}
	switch {
	case a.Rev == 0:
		return &journal.Error{Kind: journal.AnnouncementMissing, Field: "label", Msg: fmt.Sprintf("no window was announced for %q", label), Next: next}
	case now.Before(a.At.AddDate(0, 0, g.Rules.AnnounceDays).Add(-announceSlack)):
		return &journal.Error{
			Kind: journal.AnnouncementYoung, Field: "label", Msg: fmt.Sprintf("customers were told at %s, less than %d days ago", a.At.UTC().Format(time.RFC3339), g.Rules.AnnounceDays),
			Next: journal.Next{Say: "rotate in the window announced, " + g.convertZone(a).span()},
		}
	case now.Before(a.From):
		return &journal.Error{
			Kind: journal.AnnouncementYoung, Field: "label", Msg: "the announced window has not begun",
			Next: journal.Next{Say: "rotate in it, " + g.convertZone(a).span()},
		}
	case !now.Before(a.To):
		return &journal.Error{Kind: journal.AnnouncementMissing, Field: "label", Msg: "the announced window, " + g.convertZone(a).span() + ", is over", Next: next}
	}
	return nil
}

// convertZone returns a with its times in the deployment's zone.
func (g *Gates) convertZone(a Announcement) Announcement {
	a.From, a.To = a.From.In(g.Rules.Window.Location()), a.To.In(g.Rules.Window.Location())
	return a
}

// Location returns the zone of the window; UTC if it has none.
func (w Window) Location() *time.Location {
	if w.Zone == nil {
		return time.UTC
	}
	return w.Zone
}

// spanAround returns the span of the window that is open at t, or opens next after it. The
// span of a window that is always open is one day from t.
func (w Window) spanAround(t time.Time) (from, to time.Time) {
	t = t.In(w.Location())
	if w.From == w.To {
		return t, t.AddDate(0, 0, 1)
	}
	at := func(days int, d time.Duration) time.Time { return wallClock(t.AddDate(0, 0, days), d, w.Location()) }
	overnight := 0
	if w.To < w.From {
		overnight = 1
	}
	for day := -1; ; day++ {
		if from, to = at(day, w.From), at(day+overnight, w.To); to.After(t) {
			return from, to
		}
	}
}

// WindowLasts is how long after its end an announced window still belongs to a rotation: as
// long as an execution of the state machine may run.
const WindowLasts = 30 * day

// tellAtMost is how long the announcers may delay a step that only notifies.
const tellAtMost = 15 * time.Second

// MoveWindow moves the window that was announced for a label, if there is one, to a stage. It
// returns the announcers that it could not reach, with the reasons.
func (g *Gates) MoveWindow(ctx context.Context, label string, stage Stage) (untold []string) {
	if len(g.Announcers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellAtMost)
	defer cancel()
	a, err := g.Announcements.LoadAnnouncement(ctx, label)
	if err != nil {
		return []string{"announcement: " + err.Error()}
	}
	if g.Journal.Now().After(a.To.Add(WindowLasts)) { // also if none is stored: To is the zero time
		return nil
	}
	for _, n := range g.Announcers {
		if err := n.Tell(ctx, a, stage); err != nil {
			untold = append(untold, n.Name()+": "+err.Error())
		}
	}
	return untold
}
