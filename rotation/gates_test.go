package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

const day = 24 * time.Hour

// strict makes a deployment demand everything that the template does by default.
func strict(s *site) {
	s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays, s.Gates.Rules.HealthDays = 7, 90, 7
}

// ready makes a strict deployment meet what it demands: the window of now was
// announced, the drill has passed, the canary is green.
func ready(s *site) {
	strict(s)
	s.clock.pass(-7 * day)
	s.look()
	s.drill("drill-1")
	for range 7 {
		s.green(24)
		s.clock.pass(day)
	}
}

// look is what the schedule does seven days ahead.
func (s *site) look() rotation.Plan {
	s.t.Helper()
	in := preflightInput("preflight-1", rotation.ExecutionInput{})
	in.CheckOnly, in.Announce = true, true
	plan, err := s.Preflight(s.t.Context(), in)
	if err != nil && len(plan.Checks) == 0 {
		s.t.Fatal(err)
	}
	return plan
}

// green counts canaries of today.
func (s *site) green(n int) {
	s.t.Helper()
	for range n {
		if out, err := s.Health(s.t.Context(), rotation.HealthInput{}); err != nil || !out.OK {
			s.t.Fatalf("%+v, %v", out, err)
		}
	}
}

// drill runs a drill that must pass.
func (s *site) drill(name string) {
	s.t.Helper()
	e := newDriver(s).machine.Start(name, rotation.ExecutionInput{Drill: gates.DrillFailure})
	if e.Status != "SUCCEEDED" || e.Final != "DrillPassed" {
		s.t.Fatalf("the drill ended in %s: %v", e.Final, e.Failure)
	}
}

// announced records that customers were told of a window so long ago.
func (s *site) announced(label string, ago time.Duration, from, to time.Time) {
	s.t.Helper()
	days := s.Gates.Rules.AnnounceDays
	s.Gates.Rules.AnnounceDays = 0
	s.clock.pass(-ago)
	if _, err := s.Gates.AnnounceWindow(s.t.Context(), gates.AnnounceInput{Label: label, From: from}); err != nil {
		s.t.Fatal(err)
	}
	s.clock.pass(ago)
	s.Gates.Rules.AnnounceDays = days
	if a, err := s.store.LoadAnnouncement(s.t.Context(), label); err != nil || !a.From.Equal(from) || !a.To.Equal(to) {
		s.t.Fatalf("announced %s to %s, want %s to %s (%v)", a.From, a.To, from, to, err)
	}
}

// TestGatesRefuse holds each gate to what every refusal is held to: named, with a
// next step, and nothing changed; and shows that without the one fault it opens.
func TestGatesRefuse(t *testing.T) {
	opens := time.Date(2026, 4, 1, 1, 0, 0, 0, time.UTC) // the window of now
	announce := func(ago time.Duration, days int) func(*site) {
		return func(s *site) {
			s.Gates.Rules.AnnounceDays = 7
			s.announced("Q2-2026-rotation", ago, opens.AddDate(0, 0, days), opens.AddDate(0, 0, days).Add(4*time.Hour))
		}
	}
	red := func(daysAgo int) func(*site) {
		return func(s *site) {
			ready(s)
			s.clock.pass(-time.Duration(daysAgo) * day)
			s.must(s.kms.Disable(s.t.Context(), s.first))
			if out, err := s.Health(s.t.Context(), rotation.HealthInput{}); err != nil || out.OK || out.Red != 1 {
				s.t.Fatalf("%+v, %v", out, err)
			}
			s.kms.Enable(s.first)
			s.clock.pass(time.Duration(daysAgo) * day)
		}
	}
	for _, tc := range []struct {
		name  string
		setup func(*site)
		kind  journal.Kind // "" opens
	}{
		{"ready", ready, ""},
		{"never announced", func(s *site) { s.Gates.Rules.AnnounceDays = 7 }, journal.AnnouncementMissing},
		{"announced for another label", func(s *site) {
			s.Gates.Rules.AnnounceDays = 7
			s.announced("Q3-2026-rotation", 8*day, opens, opens.Add(4*time.Hour))
		}, journal.AnnouncementMissing},
		{"announced for yesterday", announce(9*day, -1), journal.AnnouncementMissing},
		{"announced for tomorrow", announce(8*day, 1), journal.AnnouncementYoung},
		{"announced six days ago", announce(6*day, 0), journal.AnnouncementYoung},
		{"announced seven days ago but for the schedule's delay", announce(7*day-3*time.Hour, 0), ""},
		{"announced later than that", announce(7*day-3*time.Hour-time.Second, 0), journal.AnnouncementYoung},
		{"no drill", func(s *site) { s.Gates.Rules.DrillFreshDays = 90 }, journal.DrillStale},
		{"a fresh drill", func(s *site) {
			s.Gates.Rules.DrillFreshDays = 90
			s.clock.pass(-90 * day)
			s.drill("d")
			s.clock.pass(90 * day)
		}, ""},
		{"a stale drill", func(s *site) {
			s.Gates.Rules.DrillFreshDays = 90
			s.clock.pass(-90*day - time.Second)
			s.drill("d")
			s.clock.pass(90*day + time.Second)
		}, journal.DrillStale},
		{"no canary", func(s *site) { s.Gates.Rules.HealthDays = 7 }, journal.HealthRed},
		{"a day too short", func(s *site) {
			s.Gates.Rules.HealthDays = 2
			s.clock.pass(-2 * day)
			s.green(19)
			s.clock.pass(day)
			s.green(24)
			s.clock.pass(day)
		}, journal.HealthRed},
		{"green on the days demanded", func(s *site) {
			s.Gates.Rules.HealthDays = 2
			s.clock.pass(-2 * day)
			s.green(20)
			s.clock.pass(day)
			s.green(24)
			s.clock.pass(day)
		}, ""},
		{"red today", red(0), journal.HealthRed},
		{"red seven days ago", red(7), journal.HealthRed},
		{"red eight days ago", red(8), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			tc.setup(s)
			before := s.snapshot()
			_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
			if tc.kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantKind(t, err, tc.kind)
			if e := typed(err); e.Field == "" || e.Next.IsZero() {
				t.Errorf("it names no field or no next step: %v", e)
			}
			if e := newDriver(s).machine.Start(spring, rotation.ExecutionInput{}); e.Final != "Refused" || e.Failure.Name != string(tc.kind) {
				t.Errorf("the execution ended in %s: %v", e.Final, e.Failure)
			}
			if diff := s.diff(before); diff != "" {
				t.Errorf("the world changed (-was +is):\n%s", diff)
			}
		})
	}
}

// TestEmergencyOverrides checks that an emergency starts where everything is red, and
// that its record names each gate that it went past.
func TestEmergencyOverrides(t *testing.T) {
	s := newSite(t)
	strict(s)
	s.Gates.Rules.ApprovalRequired = true
	s.clock.pass(8 * time.Hour)
	d := newDriver(s)
	d.complete(spring, emergency)
	entries, err := s.store.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		want := ""
		if e.Record.Type == "rotation_started" {
			want = "off-peak window, announcement, failure drill, KMS canary, second person"
		}
		if got := e.Record.Body["overrides"]; got != want {
			t.Errorf("%s: overrides %q, want %q", e.Record.Type, got, want)
		}
	}
	if strings.Contains(fmt.Sprint(d.calls), "AwaitApproval") {
		t.Error("an emergency waited for a person")
	}
}

// TestGatesNotDemanded checks that a deployment that demands nothing checks nothing,
// and says nothing of it.
func TestGatesNotDemanded(t *testing.T) {
	s := newSite(t)
	s.Gates.Rules.Window = gates.Window{Zone: time.UTC}
	plan, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range plan.Checks {
		switch c.Name {
		case "announcement", "failure drill", "KMS canary", "second person":
			t.Errorf("check %+v", c)
		}
	}
}

// teller is an announcer that keeps what it is told.
type teller struct {
	told []string
	err  error
}

func (*teller) Name() string { return "teller" }

func (p *teller) Tell(_ context.Context, a gates.Announcement, stage gates.Stage) error {
	if p.err != nil {
		return p.err
	}
	line := a.Label + " " + string(stage)
	if stage == gates.StageScheduled {
		line += " " + a.From.Format("2006-01-02 15:04") + " to " + a.To.Format("15:04")
	}
	p.told = append(p.told, line)
	return nil
}

func (p *teller) stages() []string {
	var out []string
	for _, line := range p.told {
		out = append(out, strings.Fields(line)[1])
	}
	return out
}

// TestAnnounceFails checks that an announcement that did not get through is none, and
// that a status page that is down holds no rotation up.
func TestAnnounceFails(t *testing.T) {
	s := newSite(t)
	page := &teller{err: errors.New("status page is down")}
	s.Gates.Announcers = []gates.Announcer{page}
	s.Gates.Rules.AnnounceDays = 7
	before := s.snapshot()
	_, err := s.Gates.AnnounceWindow(t.Context(), gates.AnnounceInput{})
	wantKind(t, err, journal.Transient)
	if diff := s.diff(before); diff != "" {
		t.Errorf("the world changed (-was +is):\n%s", diff)
	}
	_, err = s.Gates.AnnounceWindow(t.Context(), gates.AnnounceInput{From: s.clock.now().AddDate(0, 0, 6)})
	wantKind(t, err, journal.InvalidInput)
	page.err = nil
	s.announced("Q2", 0, s.clock.now().Add(-time.Hour), s.clock.now().Add(3*time.Hour))
	page.err = errors.New("status page is down")
	out, err := s.Notify(t.Context(), journal.Notice{Event: journal.NotifyCompleted, Label: "Q2"})
	if err != nil || !out.Sent || len(out.Untold) != 1 || !strings.Contains(out.Untold[0], "status page is down") {
		t.Errorf("%+v, %v", out, err)
	}
	page.err = nil
	s.Gates.Rules.AnnounceDays = 0
	newDriver(s).complete(spring, rotation.ExecutionInput{}) // of another label: it was announced to nobody
	if diff := cmp.Diff([]string{"Q2 scheduled 2026-04-01 01:00 to 05:00"}, page.told); diff != "" {
		t.Errorf("customers (-want +got):\n%s", diff)
	}
}

// TestAnnounceAnotherWindow checks that a window may be moved, and that a window that
// is over is announced again.
func TestAnnounceAnotherWindow(t *testing.T) {
	s := newSite(t)
	page := &teller{}
	s.Gates.Announcers = []gates.Announcer{page}
	s.Gates.Rules.AnnounceDays = 7
	for _, tc := range []struct{ pass, from time.Duration }{{0, 0}, {0, 0}, {0, 9 * day}, {0, 9 * day}, {30 * day, 0}} {
		s.clock.pass(tc.pass)
		in := gates.AnnounceInput{Label: "Q2"}
		if tc.from > 0 {
			in.From = s.clock.now().Add(tc.from)
		}
		if _, err := s.Gates.AnnounceWindow(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"Q2 scheduled 2026-04-08 01:00 to 05:00", "Q2 scheduled 2026-04-10 01:00 to 05:00", "Q2 scheduled 2026-05-08 01:00 to 05:00"}
	if diff := cmp.Diff(want, page.told); diff != "" {
		t.Errorf("customers (-want +got):\n%s", diff)
	}
	wantEvents(t, s, "window_announced", "window_announced", "window_announced")
	s.settled()
}

// TestWindowAround checks the span that is announced, over midnight and over the
// change of clocks.
func TestWindowAround(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ window, at, from, to string }{
		{"01:00-05:00", "2026-04-05 02:00", "2026-04-05 01:00", "2026-04-05 05:00"},
		{"01:00-05:00", "2026-04-05 05:00", "2026-04-06 01:00", "2026-04-06 05:00"},
		{"01:00-05:00", "2026-04-05 00:30", "2026-04-05 01:00", "2026-04-05 05:00"},
		{"22:00-04:00", "2026-04-05 02:00", "2026-04-04 22:00", "2026-04-05 04:00"},
		{"22:00-04:00", "2026-04-05 23:00", "2026-04-05 22:00", "2026-04-06 04:00"},
		{"22:00-04:00", "2026-04-05 12:00", "2026-04-05 22:00", "2026-04-06 04:00"},
		{"01:00-05:00", "2026-03-29 04:30", "2026-03-29 01:00", "2026-03-29 05:00"}, // an hour shorter
		{"any", "2026-04-05 02:00", "2026-04-05 02:00", "2026-04-06 02:00"},
	} {
		s := newSite(t)
		w, err := gates.ParseWindow(tc.window, berlin)
		if err != nil {
			t.Fatal(err)
		}
		s.Gates.Rules.Window = w
		at, err := time.ParseInLocation("2006-01-02 15:04", tc.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		s.clock.pass(at.Sub(s.clock.now()))
		a, err := s.Gates.AnnounceWindow(t.Context(), gates.AnnounceInput{From: at})
		if err != nil {
			t.Fatal(err)
		}
		if got := a.From.Format("2006-01-02 15:04") + " " + a.To.Format("2006-01-02 15:04"); got != tc.from+" "+tc.to {
			t.Errorf("%s at %s: %s, want %s %s", tc.window, tc.at, got, tc.from, tc.to)
		}
	}
}

// TestAheadAndAtTime walks through the calendar of a rotation: seven days ahead the
// schedule announces the window and names what is red; the rotation starts when that is
// mended, and not a day early.
func TestAheadAndAtTime(t *testing.T) {
	s := newSite(t) // Wednesday 2026-04-01 02:00, outside of what is announced below
	strict(s)
	page := &teller{}
	s.Gates.Announcers = []gates.Announcer{page}
	s.clock.pass(-3*day + time.Minute) // Sunday 2026-03-29 02:01, in the quarter before
	plan := s.look()
	checks := map[string]bool{}
	for _, c := range plan.Checks {
		checks[c.Name] = c.OK
	}
	want := map[string]bool{
		"pointer and lock": true, "pointer's KMS key": true, "off-peak window": true, "announcement": true, "failure drill": false,
		"KMS canary": true, "audit bucket": true, "audit head": true, "source orders": true, "source people": true, "source corpus": true, "known-cipher corpus": true,
		"sources": true, "KEK's other users": true, "encryption at rest": true,
	}
	if diff := cmp.Diff(want, checks); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
	before := s.snapshot()
	s.look() // again: nobody is told twice
	if diff := s.diff(before); diff != "" {
		t.Errorf("a second look changed the world (-was +is):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"Q2-2026-rotation scheduled 2026-04-05 01:00 to 05:00"}, page.told); diff != "" {
		t.Errorf("customers (-want +got):\n%s", diff)
	}
	s.drill("drill-1")
	for range 7 {
		s.green(24)
		s.clock.pass(day)
		_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
		if early := s.clock.now().Day() != 5; early {
			wantKind(t, err, map[bool]journal.Kind{true: journal.AnnouncementMissing, false: journal.AnnouncementYoung}[s.clock.now().Month() == time.March])
		} else if err != nil {
			t.Fatal(err)
		}
	}
	e := newDriver(s).machine.Start("resumed", rotation.ExecutionInput{Resume: spring})
	if e.Status != "SUCCEEDED" {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	s.phase(spring, kek.Completed)
	if diff := cmp.Diff([]string{"scheduled", "in_progress", "verifying", "completed"}, page.stages()); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
}

// TestGatesOfOneDay: a deployment that demands one day of notice demands it.
func TestGatesOfOneDay(t *testing.T) {
	s := newSite(t)
	s.Gates.Rules.AnnounceDays = 1
	_, err := s.start(spring, rotation.ExecutionInput{})
	wantKind(t, err, journal.AnnouncementMissing)
}

// TestLookAheadAnnounces: a look at a later window announces it also where no notice is
// demanded, and is judged by that window; a start is judged by the time at which it starts.
func TestLookAheadAnnounces(t *testing.T) {
	s := newSite(t)
	s.clock.pass(5 * time.Hour) // 07:00
	from := s.clock.now().Add(-6*time.Hour).AddDate(0, 0, 10)
	in := preflightInput(spring, rotation.ExecutionInput{Label: "Q2"})
	in.AnnounceFrom = &from
	_, err := s.Preflight(t.Context(), in)
	wantKind(t, err, journal.WindowClosed)
	in.CheckOnly, in.Announce = true, true
	plan := must(s.Preflight(t.Context(), in))
	if i := slices.IndexFunc(plan.Checks, func(c rotation.Check) bool { return c.Name == "announcement" }); i < 0 || plan.Checks[i].Detail != "made" {
		t.Errorf("checks %+v", plan.Checks)
	}
	if a := must(s.store.LoadAnnouncement(t.Context(), "Q2")); !a.From.Equal(from) {
		t.Errorf("announced %+v", a)
	}
}

// TestAnnouncedInTheDeploymentsZone: people read a window in their deployment's zone, in
// whatever zone it was stored.
func TestAnnouncedInTheDeploymentsZone(t *testing.T) {
	s := newSite(t)
	s.Gates.Rules.AnnounceDays, s.Gates.Rules.Window.Zone = 7, time.FixedZone("X", 60*60)
	s.told("Q2-2026-rotation", s.clock.now(), s.clock.now().Add(2*time.Hour), s.clock.now())
	_, err := s.start(spring, rotation.ExecutionInput{})
	wantKind(t, err, journal.AnnouncementYoung)
	if want := "rotate in the window announced, 2026-04-01 03:00 to 2026-04-01 05:00 X"; typed(err).Next.Say != want {
		t.Errorf("%q, want %q", typed(err).Next.Say, want)
	}
}
