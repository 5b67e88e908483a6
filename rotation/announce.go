package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Announcement is a maintenance window that customers were told of. It holds for the
// rotations of one label.
type Announcement struct {
	Label string    // of the rotations that it announces
	Rev   int64     // grows with every save; a save conditions on it
	From  time.Time // the window
	To    time.Time
	At    time.Time // when everybody had been told
	Actor string
	Told  []string // names of the announcers
}

// Announcements keeps what was announced.
type Announcements interface {
	// LoadAnnouncement returns one without a revision if there is none.
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

// Announcer tells customers, where they look, of a window and how it goes on.
type Announcer interface {
	Name() string
	// Tell brings a window to a stage; telling the same again is harmless.
	Tell(ctx context.Context, a Announcement, stage Stage) error
}

// EventAnnounced is the type of the record of an announcement.
const EventAnnounced = "window_announced"

// announceSlack is by how much an announcement may miss the days that are demanded:
// the schedule may come late by an hour, the function by another, and the clocks may
// be put forward in between.
const announceSlack = 3 * time.Hour

// Text is what customers read at a stage.
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

// AnnounceInput says which window to announce: by default the one that is open, or
// opens next, when the days demanded are over, for the quarter's rotation.
type AnnounceInput struct {
	Label string
	From  time.Time // a moment in the window; zero for the default
}

// Announce tells customers of a window, then records that they were told. What was
// announced already, and is not over, is not announced again, unless for another
// window. A call that dies between telling and recording tells twice.
func (s *Steps) Announce(ctx context.Context, in AnnounceInput) (Announcement, error) {
	want, err := s.window(in)
	if err != nil {
		return Announcement{}, err
	}
	for range maxTries {
		there, err := s.Announcements.LoadAnnouncement(ctx, want.Label)
		if err != nil {
			return Announcement{}, unavailable("announcement", err)
		}
		moved := !in.From.IsZero() && !there.From.Equal(want.From)
		if s.Now().Before(there.To) && !moved { // without a revision it ended long ago
			return there, s.publish(ctx)
		}
		a := want
		a.Rev = there.Rev
		a.At = s.Now()
		a.Actor = s.Actor
		for _, n := range s.Announcers {
			if err := n.Tell(ctx, a, StageScheduled); err != nil {
				return Announcement{}, unavailable("announcer "+n.Name(), err)
			}
			a.Told = append(a.Told, n.Name())
		}
		err = s.Announcements.SaveAnnouncement(ctx, a, a.event())
		if errors.Is(err, kek.ErrConflict) {
			continue
		}
		if err != nil {
			return Announcement{}, unavailable("control table", err)
		}
		a.Rev++
		if err := s.publish(ctx); err != nil {
			return a, err
		}
		return a, s.tell(ctx, NotifyInput{Event: NotifyAnnounced, RotationID: a.Label, Detail: a.span()})
	}
	return Announcement{}, unavailable("announcement", kek.ErrConflict)
}

// window is the announcement that is asked for, of nobody yet.
func (s *Steps) window(in AnnounceInput) (Announcement, error) {
	soonest := s.Now().In(s.Window.zone()).AddDate(0, 0, s.AnnounceDays)
	at := in.From
	switch {
	case at.IsZero():
		at = soonest
	case at.Before(soonest.Add(-announceSlack)):
		return Announcement{}, invalid("from", fmt.Sprintf("%s is less than %d days ahead", at.Format(time.RFC3339), s.AnnounceDays),
			"announce a later window; the soonest is "+soonest.Format(time.RFC3339))
	}
	a := Announcement{Label: in.Label}
	if a.Label == "" {
		a.Label = s.QuarterLabel(at)
	}
	if err := kek.CheckLabel(a.Label); err != nil {
		return a, invalid("label", err.Error(), "choose another label or leave it out")
	}
	a.From, a.To = s.Window.around(at)
	return a, nil
}

func (a Announcement) span() string {
	return a.From.Format("2006-01-02 15:04") + " to " + a.To.Format("2006-01-02 15:04 MST")
}

// event is the record of an announcement that is about to be saved.
func (a Announcement) event() audit.Event {
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

// checkAnnouncement refuses a rotation of whose window customers were not told in
// time.
func (s *Steps) checkAnnouncement(ctx context.Context, label string) error {
	a, err := s.Announcements.LoadAnnouncement(ctx, label)
	if err != nil {
		return unavailable("announcement", err)
	}
	now := s.Now()
	next := fmt.Sprintf("matter ops announce --label %q, then rotate in that window", label)
	switch {
	case a.Rev == 0:
		return &Error{Kind: AnnouncementMissing, Field: "label", Msg: fmt.Sprintf("no window was announced for %q", label), Next: next}
	case now.Before(a.At.AddDate(0, 0, s.AnnounceDays).Add(-announceSlack)):
		return &Error{
			Kind: AnnouncementYoung, Field: "label", Msg: fmt.Sprintf("customers were told at %s, less than %d days ago", a.At.UTC().Format(time.RFC3339), s.AnnounceDays),
			Next: "rotate in the window announced, " + s.in(a).span(),
		}
	case now.Before(a.From):
		return &Error{
			Kind: AnnouncementYoung, Field: "label", Msg: "the window announced has not begun",
			Next: "rotate in it, " + s.in(a).span(),
		}
	case !now.Before(a.To):
		return &Error{Kind: AnnouncementMissing, Field: "label", Msg: "the window announced, " + s.in(a).span() + ", is over", Next: next}
	}
	return nil
}

// in is a with its times in the deployment's zone.
func (s *Steps) in(a Announcement) Announcement {
	a.From, a.To = a.From.In(s.Window.zone()), a.To.In(s.Window.zone())
	return a
}

func (w Window) zone() *time.Location {
	if w.Zone == nil {
		return time.UTC
	}
	return w.Zone
}

// around returns the span of the window that is open at t, or opens next after it. A
// window that is always open is a day from t.
func (w Window) around(t time.Time) (from, to time.Time) {
	t = t.In(w.zone())
	if w.From == w.To {
		return t, t.AddDate(0, 0, 1)
	}
	at := func(days int, d time.Duration) time.Time { return wallClock(t.AddDate(0, 0, days), d, w.zone()) }
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
