package rotation_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// ordered is a [rotation.Starter] and a meter that write down what they are asked for.
type ordered struct {
	t     *testing.T
	lines []string
	err   error
}

func (o *ordered) StartExecution(_ context.Context, machine, name string, in rotation.ExecutionInput) error {
	o.lines = append(o.lines, fmt.Sprintf("start %s %s %s", machine, name, set(o.t, in)))
	return o.err
}

func (o *ordered) CallPreflight(_ context.Context, function string, in rotation.PreflightInput) error {
	o.lines = append(o.lines, fmt.Sprintf("call %s %s", function, set(o.t, in)))
	return o.err
}

func (o *ordered) Count(name string, n int64) {
	o.lines = append(o.lines, fmt.Sprintf("%s=%d", name, n))
}

// ticked is what a tick of the schedule says and does on a copy of a deployment.
func (s *site) ticked(t *testing.T, in rotation.ScheduleInput, change func(*site)) string {
	t.Helper()
	f := s.fork(t)
	o := &ordered{t: t}
	f.Scheduler.Starter, f.Journal.Meter = o, o
	if change != nil {
		change(f)
	}
	out, err := f.Scheduler.StartDue(t.Context(), in)
	if err != nil {
		o.lines = append(o.lines, "error: "+advice.Explain(err))
	}
	return strings.Join(append(o.lines, set(t, out)), "\n    ")
}

// told stores that a window was announced.
func (s *site) told(label string, from, to, at time.Time) {
	s.t.Helper()
	a, err := s.store.LoadAnnouncement(s.t.Context(), label)
	s.must(err)
	a.Label, a.From, a.To, a.At = label, from, to, at
	s.must(s.store.SaveAnnouncement(s.t.Context(), a, audit.Event{ID: fmt.Sprint("a", at, from), Type: gates.EventAnnounced}))
}

// passed stores that the drill has passed.
func (s *site) passed(at time.Time) {
	s.t.Helper()
	s.forged = true
	d, err := s.store.LoadDrill(s.t.Context(), gates.DrillFailure)
	s.must(err)
	d.Name, d.PassedAt = gates.DrillFailure, at
	s.must(s.store.SaveDrill(s.t.Context(), d, audit.Event{ID: fmt.Sprint("d", at), Type: gates.EventDrillPassed}))
}

// TestTicks holds the schedule to what it starts, what waits and what is overdue: at each
// moment at which that changes and one second before it.
func TestTicks(t *testing.T) {
	const second = time.Second
	base := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	q := must(base.Scheduler.LookAhead(t.Context(), hour2)).Next
	in := base.input()
	var text strings.Builder
	states := []struct {
		name string
		set  func(s *site)
	}{
		{"nothing is done", nil},
		{"announced", func(s *site) { s.told(q.Label, q.Rotation.Add(-time.Hour), q.Closes, q.Announce) }},
		{"drilled", func(s *site) { s.passed(q.Drill) }},
		{"prepared", func(s *site) {
			s.told(q.Label, q.Rotation.Add(-time.Hour), q.Closes, q.Announce)
			s.passed(q.Drill)
		}},
	}
	for _, m := range []struct {
		name string
		at   time.Time
	}{
		{"the drill is due", q.Drill},
		{"the drill is overdue", q.Drill.Add(day + second)},
		{"the announcement is due", q.Announce},
		{"the announcement is overdue", q.Announce.Add(2*time.Hour + second)},
		{"the last notice", q.Rotation.Add(-7*day + 3*time.Hour)},
		{"the second drill", q.Rotation.AddDate(0, 0, -7)},
		{"the last drill", q.Rotation.Add(-day)},
		{"the rotation is due", q.Rotation},
		{"the rotation closes", q.Closes},
		{"the rotation is overdue", q.Closes.Add(day + second)},
	} {
		for _, s := range states {
			for _, at := range []time.Time{m.at.Add(-second), m.at} {
				fmt.Fprintf(&text, "%s, %s: %s\n    %s\n", m.name, s.name, at.Format(time.DateTime), base.ticked(t, in, func(f *site) {
					if f.clock.at = at; s.set != nil {
						s.set(f)
					}
				}))
			}
		}
	}
	wantGolden(t, "ticks.golden", text.String())
}

// TestOddTicks: locks, other settings, other windows, late deployments and failures.
func TestOddTicks(t *testing.T) {
	base := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	q := must(base.Scheduler.LookAhead(t.Context(), hour2)).Next
	var text strings.Builder
	tell := func(name string, s *site, at time.Time, set func(*site)) {
		fmt.Fprintf(&text, "%s, %s\n    %s\n", name, at.Format(time.DateTime), s.ticked(t, base.input(), func(f *site) {
			if f.clock.at = at; set != nil {
				set(f)
			}
		}))
	}
	prepared := func(s *site) {
		s.told(q.Label, q.Rotation.Add(-time.Hour), q.Closes, q.Announce)
		s.passed(q.Drill)
	}
	on := func(s *site, hook string) {
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == hook {
				return false, errAway
			}
			return true, nil
		})
	}
	for _, hook := range []string{"Store.Load", "Store.LoadAnnouncement", "Store.LoadDrill"} {
		tell(hook+" fails before the rotation", base.site, q.Rotation.Add(-time.Hour), func(s *site) { prepared(s); on(s, hook) })
		tell(hook+" fails at the rotation", base.site, q.Rotation, func(s *site) { prepared(s); on(s, hook) })
	}
	away := func(s *site) { prepared(s); s.Scheduler.Starter.(*ordered).err = errAway }
	tell("the rotation cannot be started", base.site, q.Rotation, away)
	tell("the drill cannot be started", base.site, q.Drill, func(s *site) { s.Scheduler.Starter.(*ordered).err = errAway })
	tell("nothing can be started", base.site, q.Announce, func(s *site) { s.Scheduler.Starter.(*ordered).err = errAway })
	tell("nothing is demanded, before", base.site, q.Announce, func(s *site) {
		s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays, s.Gates.Rules.HealthDays = 0, 0, 0
	})
	tell("nothing is demanded, late", base.site, q.Rotation.Add(-day), func(s *site) {
		s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays, s.Gates.Rules.HealthDays = 0, 0, 0
	})
	tell("nothing is demanded, due", base.site, q.Rotation, func(s *site) {
		s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays, s.Gates.Rules.HealthDays = 0, 0, 0
	})
	tell("no notice is demanded, due", base.site, q.Rotation, func(s *site) { s.Gates.Rules.AnnounceDays = 0; s.passed(q.Drill) })
	tell("no drill is demanded, due", base.site, q.Rotation, func(s *site) { prepared(s); s.Gates.Rules.DrillFreshDays = 0 })
	tell("the drill is due after the announcement is overdue", base.site, q.Closes.AddDate(0, 0, -2).Add(time.Hour+time.Second), func(s *site) { s.Gates.Rules.DrillFreshDays = 2 })
	tell("the drill will be too old", base.site, q.Rotation.Add(-2*day), func(s *site) { s.passed(q.Closes.AddDate(0, 0, -90).Add(-time.Second)) })
	tell("the drill will be just fresh", base.site, q.Rotation.Add(-2*day), func(s *site) { s.passed(q.Closes.AddDate(0, 0, -90)) })
	for _, days := range []int{-2, 0, 5} {
		from := q.Rotation.AddDate(0, 0, days).Truncate(day).Add(time.Hour)
		for _, at := range []time.Time{q.Announce.Add(day), q.Rotation, q.Closes, from.Add(-time.Second), from, from.Add(2 * time.Hour), from.Add(4 * time.Hour)} {
			tell(fmt.Sprintf("a window %d days later", days), base.site, at, func(s *site) {
				s.told(q.Label, from, from.Add(4*time.Hour), q.Announce)
				s.passed(q.Drill)
			})
		}
	}
	locked := func(phase kek.Phase, id string, in rotation.ExecutionInput) *site {
		s := base.fork(t)
		s.clock.at = q.Rotation
		s.Gates.Rules.AnnounceDays, s.Gates.Rules.DrillFreshDays, s.Gates.Rules.HealthDays = 0, 0, 0
		s.advance(id, in, phase)
		strict(s)
		return s
	}
	own := locked(kek.Minted, "schedule-"+q.Label, rotation.ExecutionInput{Label: q.Label})
	other := locked(kek.Minted, "by-hand", rotation.ExecutionInput{Label: "other"})
	tell("its own rotation runs", own, q.Rotation.Add(time.Minute), prepared)
	tell("its own rotation runs, and is closed", own, q.Closes.Add(time.Minute), prepared)
	for _, after := range []time.Duration{day + 3*time.Hour + time.Minute, 8 * day, 8*day + time.Second} {
		tell("its own rotation runs long", own, q.Rotation.Add(after), prepared)
		tell("another rotation runs long", other, q.Rotation.Add(after), prepared)
	}
	tell("another rotation runs", other, q.Rotation.Add(time.Minute), prepared)
	tell("another rotation runs, and a drill is due", other, q.Rotation.Add(-3*day), nil)
	drilling := locked(kek.Minted, "drilling", drill)
	tell("a drill runs long", drilling, q.Closes.Add(day+time.Second), prepared)
	earlier := base.fork(t)
	earlier.clock.at = q.Rotation.Add(-time.Second)
	earlier.Gates.Rules.AnnounceDays, earlier.Gates.Rules.DrillFreshDays, earlier.Gates.Rules.HealthDays, earlier.Gates.Rules.Window = 0, 0, 0, gates.Window{Zone: time.UTC}
	earlier.advance("before", rotation.ExecutionInput{Label: "before"}, kek.Minted)
	strict(earlier)
	tell("one that began before runs long", earlier, q.Closes.Add(day+time.Second), func(s *site) { s.Gates.Rules.Window = base.Gates.Rules.Window })
	lost := other.fork(t)
	lost.store.LoseRotation("by-hand")
	tell("the record of the one that runs is lost", lost, q.Closes.Add(day+time.Second), prepared)
	for _, in := range []rotation.ExecutionInput{{Label: q.Label}, {Mode: "emergency", Reason: "r"}, {Label: "other"}} {
		done := locked(kek.Completed, "done", in)
		tell("completed by "+set(t, in), done, q.Rotation.Add(time.Hour), nil)
		tell("completed long ago by "+set(t, in), done, q.Closes.Add(2*day), nil)
	}
	year := newPlanner(t, "01:00-05:00", "UTC", "2026-01-02 00:00")
	year.Gates.Rules.AnnounceDays, year.Gates.Rules.DrillFreshDays, year.Gates.Rules.HealthDays = 0, 0, 0
	for n, at := range []time.Time{q.Rotation.AddDate(-1, 0, 0), q.Rotation.AddDate(0, -6, 0), q.Rotation.AddDate(0, -3, 0)} {
		year.clock.at = at.Truncate(day).Add(2 * time.Hour)
		year.advance(fmt.Sprint("rotation-", n), rotation.ExecutionInput{Label: fmt.Sprint("rotation-", n)}, kek.Completed)
	}
	strict(year.site)
	tell("after three rotations", year.site, q.Rotation.Add(-time.Hour), prepared)
	tell("after three rotations, the last of which just now", year.site, q.Rotation.AddDate(0, -3, 0).Add(3*time.Hour), nil)
	tell("the last record is lost", year.site, q.Rotation.Add(-time.Hour), func(s *site) { prepared(s); s.store.LoseRotation("rotation-2") })
	for _, days := range []int{1, 5, 8, 9, 10, 11, 15} {
		late := newPlanner(t, "01:00-05:00", "UTC", q.Rotation.AddDate(0, 0, -days).Format("2006-01-02 15:04"))
		for _, hours := range []int{0, 24, 47, 48, 49} {
			tell(fmt.Sprintf("%d hours after genesis, %d days before", hours, days), late.site, late.begin.Add(time.Duration(hours)*time.Hour), nil)
		}
	}
	out, err := base.fork(t).Scheduler.LookAhead(t.Context(), 24)
	fmt.Fprintf(&text, "the outlook of hour 24: %s, %v\n", set(t, out), err)
	empty := base.fork(t)
	none := memstore.New("none", empty.clock.now).Store()
	tell("no genesis", empty, q.Rotation, func(s *site) { s.Journal.Registry = none })
	for _, in := range []rotation.ScheduleInput{
		{State: rotation.ScheduleEnabled, Hour: -1},
		{State: rotation.ScheduleEnabled, Hour: 24},
		{State: rotation.ScheduleEnabled},
		{State: rotation.ScheduleEnabled, Hour: 23},
		{State: "DISABLED", Hour: 24},
	} {
		fmt.Fprintf(&text, "%+v\n    %s\n", in, base.ticked(t, in, nil))
	}
	for _, window := range []string{"01:00-01:29", "01:00-01:30", "23:45-00:15", "23:46-00:15"} {
		tell("the window "+window, base.site, q.Announce, func(s *site) { s.Gates.Rules.Window = must(gates.ParseWindow(window, time.UTC)) })
	}
	wantGolden(t, "odd-ticks.golden", text.String())
}

// TestOneDayIsDemanded: a deployment that demands one day of notice, or a drill of one day,
// demands it.
func TestOneDayIsDemanded(t *testing.T) {
	p := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	for _, tc := range []struct {
		what            string
		announce, drill int
		at              func(q gates.Quarter) time.Time
		waits           string
	}{
		{"a notice, ahead", 1, 0, func(q gates.Quarter) time.Time { return q.Announce.Add(2*time.Hour + time.Second) }, ""},
		{"a notice", 1, 0, func(q gates.Quarter) time.Time { return q.Rotation }, "AnnouncementMissing"},
		{"a drill", 0, 1, func(q gates.Quarter) time.Time { return q.Rotation }, "DrillStale"},
	} {
		p.Gates.Rules.AnnounceDays, p.Gates.Rules.DrillFreshDays, p.clock.at = tc.announce, tc.drill, p.begin
		p.clock.at = tc.at(must(p.Scheduler.LookAhead(t.Context(), hour2)).Next)
		if out := must(p.Scheduler.LookAhead(t.Context(), hour2)); !out.PreparationOverdue || !strings.Contains(fmt.Sprint(out.Waits), tc.waits) {
			t.Errorf("%s: %+v", tc.what, out)
		}
	}
}

// TestOverdueInTheNextQuarter: a rotation that has not completed is overdue until that of
// the next quarter is due, also in the first days of that quarter.
func TestOverdueInTheNextQuarter(t *testing.T) {
	p := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	for date, want := range map[string]string{
		"2027-06-30 12:00": "Q2-2027-rotation", "2027-07-01 12:00": "Q2-2027-rotation", "2027-07-04 01:59": "Q2-2027-rotation", "2027-07-05 05:01": "Q3-2027-rotation",
	} {
		p.clock.at = must(time.Parse("2006-01-02 15:04", date))
		out := must(p.Scheduler.LookAhead(t.Context(), hour2))
		if told := "the rotation of " + want + " has not completed"; !out.RotationOverdue || !strings.Contains(fmt.Sprint(out.Waits), told) {
			t.Errorf("%s: %+v", date, out)
		}
	}
}
