package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// planner is a deployment whose schedule ticks. It implements [rotation.Starter] as Step
// Functions and Lambda do: a name is used once.
type planner struct {
	*site
	driver *driver
	begin  time.Time         // genesis
	ended  map[string]string // how each execution ended, by its name
	begun  map[string]time.Time
	looks  []error // answers of preflight days ahead
	lose   func() error
	last   map[string]int64 // metrics of the last tick
	count  map[string]int64 // sums of them
}

const hour2 = 2 // the template's

// newPlanner is a deployment with the template's defaults whose genesis is at a moment.
func newPlanner(t *testing.T, window, zone string, genesis string) *planner {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.ParseInLocation("2006-01-02 15:04", genesis, loc)
	if err != nil {
		t.Fatal(err)
	}
	s := newSiteAt(t, at.UTC())
	strict(s)
	s.Gates.Rules.Window = must(gates.ParseWindow(window, loc))
	p := &planner{
		site: s, driver: newDriver(s), begin: at, ended: map[string]string{}, begun: map[string]time.Time{}, last: map[string]int64{}, count: map[string]int64{},
	}
	s.Scheduler.Starter, s.Journal.Meter = p, p
	return p
}

func (p *planner) Count(name string, n int64) { p.last[name] = n; p.count[name] += n }

func (p *planner) StartExecution(_ context.Context, machine, name string, in rotation.ExecutionInput) error {
	if machine != "machine" {
		p.t.Errorf("started %q", machine)
	}
	if p.ended[name] == "" {
		p.begun[name] = p.clock.now()
		p.ended[name] = "RUNNING"
		e := p.driver.machine.Start(name, in)
		p.ended[name] = e.Status
		if e.Failure != nil {
			p.ended[name] += " " + e.Failure.Name
		}
	}
	if p.lose != nil {
		return p.lose()
	}
	return nil
}

func (p *planner) CallPreflight(_ context.Context, function string, in rotation.PreflightInput) error {
	if function != "preflight" {
		p.t.Errorf("called %q", function)
	}
	_, err := decoded("schedule", must(json.Marshal(in)), p.Preflight)
	p.looks = append(p.looks, err)
	if p.lose != nil {
		return p.lose()
	}
	return nil
}

func (p *planner) input() rotation.ScheduleInput {
	return rotation.ScheduleInput{StateMachine: "machine", Preflight: "preflight", Hour: hour2, State: rotation.ScheduleEnabled}
}

func (p *planner) tick() rotation.ScheduleOutput {
	p.t.Helper()
	out, err := p.Scheduler.StartDue(p.t.Context(), p.input())
	if err != nil && p.lose == nil {
		p.t.Fatalf("%s: %v", p.clock.now(), err)
	}
	return out
}

// until ticks and tries the canary until a moment.
func (p *planner) until(end time.Time, step time.Duration) {
	p.t.Helper()
	canary := p.clock.now()
	for p.clock.now().Before(end) {
		for ; !canary.After(p.clock.now()); canary = canary.Add(time.Hour) {
			p.green(1)
		}
		p.tick()
		p.clock.pass(step)
	}
}

// green must be everything: each execution, each look, and no alarm.
func (p *planner) allGreen(names ...string) {
	p.t.Helper()
	if got := slices.Sorted(maps.Keys(p.ended)); !slices.Equal(got, names) {
		p.t.Errorf("genesis %s: started %v, want %v", p.begin, got, names)
	}
	for name, status := range p.ended {
		if status != "SUCCEEDED" {
			p.t.Errorf("genesis %s: %s ended %s", p.begin, name, status)
		}
	}
	for _, err := range p.looks {
		if err != nil {
			p.t.Errorf("genesis %s: preflight ahead: %v", p.begin, err)
		}
	}
	if p.count[rotation.MetricRotationOverdue]+p.count[rotation.MetricPreparationOverdue] > 0 {
		p.t.Errorf("genesis %s: alarms: %v", p.begin, p.count)
	}
}

// TestFirstQuarter: with the template's defaults a deployment of any day has a green first
// quarter, which it says at genesis. One that comes too late for the next rotation says that
// it is skipped and why, and nothing of it starts.
func TestFirstQuarter(t *testing.T) {
	skips := 0
	for ago := range 91 {
		if ago > 18 && ago%9 != 0 {
			continue
		}
		p := newPlanner(t, "01:00-05:00", "Europe/Berlin", time.Date(2027, 4, 4, 13, 7, 0, 0, time.UTC).AddDate(0, 0, -ago).Format("2006-01-02 15:04"))
		look := must(p.Scheduler.LookAhead(t.Context(), hour2))
		want := "Q2-2027"
		if ago < 10 { // 13:07, and nine days and eleven hours: a notice of seven, the drill and time for people
			want = "Q3-2027"
			if ago > 0 { // on the very day the rotation is over
				skips++
			}
		}
		if late := strings.HasPrefix(look.Skipped, "Q2-2027-rotation is skipped: genesis was at 2027-"); late != (ago > 0 && ago < 10) {
			t.Errorf("%d days: skipped %q", ago, look.Skipped)
		}
		if look.Next.Label != want+"-rotation" {
			t.Fatalf("%d days: the next rotation is %s, want %s", ago, look.Next.Label, want)
		}
		p.until(look.Next.Closes.Add(3*day), time.Hour)
		p.allGreen("schedule-"+want+"-drill-1", "schedule-"+want+"-rotation")
		if at := p.begun["schedule-"+want+"-rotation"]; at.Before(look.Next.Rotation) || at.After(look.Next.Rotation.Add(time.Hour)) {
			t.Errorf("%d days: it began at %s, and was due at %s", ago, at, look.Next.Rotation)
		}
	}
	if skips != 9 {
		t.Errorf("%d deployments were too late", skips)
	}
}

// TestYear: in a year of ticks of which some are lost, repeated, late or die after they have
// started something, each quarter has one drill, one announcement and one rotation.
func TestYear(t *testing.T) {
	for n, zone := range []string{"Europe/Berlin", "Australia/Sydney", "America/Santiago", "Asia/Tokyo"} {
		p := newPlanner(t, "01:00-05:00", zone, "2027-01-09 11:00")
		r := rand.New(rand.NewPCG(18, uint64(n)))
		p.lose = func() error { // the answer
			if r.IntN(2) == 0 {
				return errors.New("lost")
			}
			return nil
		}
		canary := p.clock.now()
		for end := p.begin.AddDate(1, 0, 3); p.clock.now().Before(end); {
			for ; !canary.After(p.clock.now()); canary = canary.Add(time.Hour) {
				p.green(1)
			}
			for range r.IntN(3) {
				p.tick()
			}
			p.clock.pass(15*time.Minute + time.Duration(r.IntN(600))*time.Second)
			if r.IntN(500) == 0 {
				p.clock.pass(90 * time.Minute)
			}
		}
		p.allGreen("schedule-Q1-2028-drill-1", "schedule-Q1-2028-rotation", "schedule-Q2-2027-drill-1", "schedule-Q2-2027-rotation",
			"schedule-Q3-2027-drill-1", "schedule-Q3-2027-rotation", "schedule-Q4-2027-drill-1", "schedule-Q4-2027-rotation")
		announced := 0
		for _, a := range p.store.Gates().Announcements {
			announced++
			if a.Rev != 1 {
				t.Errorf("%s: %s was announced %d times", zone, a.Label, a.Rev)
			}
		}
		if v := p.view(""); v.Pointer.Epoch != 5 || announced != 4 {
			t.Errorf("%s: epoch %d, %d announcements", zone, v.Pointer.Epoch, announced)
		}
	}
}

// TestScheduleStartsNothing: before genesis, and while it is disabled; the tick is measured.
func TestScheduleStartsNothing(t *testing.T) {
	p := newPlanner(t, "01:00-05:00", "UTC", "2027-03-01 00:00")
	in := p.input()
	in.State = "DISABLED"
	for range 60 {
		if out, err := p.Scheduler.StartDue(t.Context(), in); err != nil || cmp.Diff(rotation.ScheduleOutput{}, out) != "" {
			t.Fatalf("%+v, %v", out, err)
		}
		p.clock.pass(day)
	}
	p.allGreen()
	if p.count[rotation.MetricTick] != 60 {
		t.Errorf("metrics: %v", p.count)
	}
	empty := newPlanner(t, "01:00-05:00", "UTC", "2027-03-01 00:00")
	none := memstore.New("none", empty.clock.now).Store()
	empty.Journal.Registry, empty.Gates.Announcements, empty.Gates.Drills = none, none, none
	if out := empty.tick(); cmp.Diff(rotation.ScheduleOutput{}, out) != "" || empty.last[rotation.MetricTick] != 1 {
		t.Errorf("before genesis: %+v, %v", out, empty.last)
	}
	in.State, in.Hour = rotation.ScheduleEnabled, 24
	_, err := p.Scheduler.StartDue(t.Context(), in)
	wantKind(t, err, journal.InvalidInput)
	in.Hour, p.last = hour2, map[string]int64{}
	p.Gates.Rules.Window = must(gates.ParseWindow("23:50-00:10", time.UTC)) // two ticks may miss it
	_, err = p.Scheduler.StartDue(t.Context(), in)
	wantKind(t, err, journal.Misconfigured)
	if len(p.last) > 0 {
		t.Errorf("a tick that failed is measured: %v", p.last)
	}
}

// TestUnpreparedIsToldByDay: an announcement that cannot be made and a drill that fails ring
// the alarm days ahead, the rotation does not start to be refused at night, and is overdue
// the day after. Once a person has rotated nothing rings.
func TestUnpreparedIsToldByDay(t *testing.T) {
	for what, broken := range map[string]func(*planner){
		"announcement": func(p *planner) { p.Gates.Announcers = []gates.Announcer{unreachable{}} },
		"drill": func(p *planner) {
			p.driver.before = func(c call) {
				if c.state == "Census" {
					p.orders.Plant("foreign", memstore.Record{Defect: "it cannot be read"})
				}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
			broken(p)
			q := must(p.Scheduler.LookAhead(t.Context(), hour2)).Next
			p.until(q.Rotation.AddDate(0, 0, -5), time.Hour)
			if p.last[rotation.MetricPreparationOverdue] != 1 || p.last[rotation.MetricRotationOverdue] != 0 {
				t.Errorf("five days ahead: %v", p.last)
			}
			if look := must(p.Scheduler.LookAhead(t.Context(), hour2)); !look.PreparationOverdue || look.Next.Label != q.Label {
				t.Errorf("a person sees %+v", look)
			}
			p.until(q.Closes.Add(time.Hour), time.Hour)
			if p.ended["schedule-"+q.Label] != "" || p.last[rotation.MetricRotationOverdue] != 0 {
				t.Errorf("the rotation: %v, %v", p.ended, p.last)
			}
			if what == "drill" {
				if names := slices.Sorted(maps.Keys(p.ended)); !slices.Equal(names, []string{"schedule-Q2-2027-drill-1", "schedule-Q2-2027-drill-2"}) {
					t.Errorf("started %v", names)
				}
			}
			p.until(q.Closes.Add(25*time.Hour), time.Hour)
			p.tick()
			if p.last[rotation.MetricRotationOverdue] != 1 || p.last[rotation.MetricPreparationOverdue] != 0 {
				t.Errorf("a day later: %v", p.last)
			}
			p.Gates.Announcers, p.driver.before = nil, nil
			_ = p.orders.Delete(t.Context(), "foreign") // of the drill
			p.Gates.Rules.AnnounceDays, p.Gates.Rules.DrillFreshDays = 0, 0
			p.driver.complete("by-hand", rotation.ExecutionInput{Window: "any", Label: "by hand"})
			if p.tick(); p.last[rotation.MetricRotationOverdue] != 0 {
				t.Errorf("a person has rotated: %v", p.last)
			}
		})
	}
}

// unreachable is an announcer that cannot be reached.
type unreachable struct{}

func (unreachable) Name() string { return "deaf" }

func (unreachable) Tell(context.Context, gates.Announcement, gates.Stage) error {
	return errors.New("no route")
}

// TestLongRotationIsNotOverdue: one that runs, or halted, after it was due has its own
// alarms; a lock that is older holds the rotation back, and is told.
func TestLongRotationIsNotOverdue(t *testing.T) {
	p := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	q := must(p.Scheduler.LookAhead(t.Context(), hour2)).Next
	p.until(q.Rotation, time.Hour)
	p.advance("long", rotation.ExecutionInput{Label: q.Label}, kek.Switched)
	for days, want := range map[time.Duration]int64{2: 0, 7: 0, 9: 1} {
		p.clock.at = q.Rotation.Add(days * day)
		if p.tick(); p.last[rotation.MetricRotationOverdue] != want {
			t.Errorf("after %d days: %v", days, p.last)
		}
	}
	old := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	old.until(q.Rotation.Add(-time.Hour), time.Hour)
	old.Gates.Rules.AnnounceDays, old.Gates.Rules.DrillFreshDays = 0, 0
	old.advance("before", rotation.ExecutionInput{Label: "before", Window: "any", RequestedBy: "person"}, kek.Started)
	old.Gates.Rules.AnnounceDays, old.Gates.Rules.DrillFreshDays = 7, 90
	old.clock.at = q.Rotation
	if out := old.tick(); old.ended["schedule-"+q.Label] != "" || !strings.Contains(fmt.Sprint(out.Waits), "before") {
		t.Errorf("%+v", out)
	}
}

// TestMovedWindow: when a person announces a later window, the rotation starts in that.
func TestMovedWindow(t *testing.T) {
	p := newPlanner(t, "01:00-05:00", "UTC", "2027-02-01 00:00")
	q := must(p.Scheduler.LookAhead(t.Context(), hour2)).Next
	p.until(q.Rotation.AddDate(0, 0, -3), time.Hour)
	must(p.Gates.AnnounceWindow(t.Context(), gates.AnnounceInput{Label: q.Label, From: q.Rotation.AddDate(0, 0, 6)}))
	p.until(q.Rotation.AddDate(0, 0, 8), time.Hour)
	p.allGreen("schedule-Q2-2027-drill-1", "schedule-Q2-2027-rotation")
	if at := p.begun["schedule-"+q.Label]; at.Day() != q.Rotation.AddDate(0, 0, 6).Day() {
		t.Errorf("it began at %s", at)
	}
}

// TestOneQuarterOneRotation: EventBridge Scheduler and people who start what the schedule
// starts deliver at least once: a late duplicate is refused and changes nothing. A person
// may rotate again, also under the quarter's label, and a drill runs.
func TestOneQuarterOneRotation(t *testing.T) {
	s := newSite(t)
	d := newDriver(s)
	asked := rotation.ExecutionInput{RequestedBy: rotation.ScheduleRequester}
	d.complete("first", asked)
	before := s.view("").Pointer
	e := d.machine.Start("late", asked)
	if e.Status != "FAILED" || e.Failure.Name != string(journal.QuarterRotated) || e.Final != "Refused" {
		t.Fatalf("the duplicate ended %s in %s: %v", e.Status, e.Final, e.Failure)
	}
	if v := s.view("late"); *v.Pointer != *before || v.Rotation != nil || v.Lock != "" {
		t.Errorf("it left %+v", v)
	}
	if e := d.machine.Start("drill", rotation.ExecutionInput{Drill: gates.DrillFailure, RequestedBy: rotation.ScheduleRequester}); e.Status != "SUCCEEDED" {
		t.Errorf("a drill: %v", e.Failure)
	}
	emergency := d.machine.Start("emergency", rotation.ExecutionInput{Mode: string(kek.Emergency), Reason: "leaked", Label: spring})
	if emergency.Status != "SUCCEEDED" {
		t.Fatal(emergency.Failure)
	}
	if e := d.machine.Start("later", asked); e.Failure == nil || e.Failure.Name != string(journal.QuarterRotated) {
		t.Errorf("after an emergency: %v", e.Failure)
	}
	d.complete("again", rotation.ExecutionInput{RequestedBy: "arn:aws:iam::123456789012:user/ann"})
	s.clock.pass(91 * day)
	d.complete("next", asked)
}

// TestEmergencyIsNoQuarter: an emergency under the quarter's label is not the quarter's rotation.
// One without a label, as the console starts it, gets a label of its own.
func TestEmergencyIsNoQuarter(t *testing.T) {
	s := newSite(t)
	d := newDriver(s)
	for label, want := range map[string]string{s.Gates.Rules.QuarterLabel(s.clock.now()): spring, "": "emergency-2026-04-01-"} {
		id := "emergency-" + fmt.Sprint(len(label))
		if e := d.machine.Start(id, rotation.ExecutionInput{Mode: string(kek.Emergency), Reason: "leaked", Label: label}); e.Status != "SUCCEEDED" {
			t.Fatal(e.Failure)
		}
		if got := s.record(id).Label; !strings.HasPrefix(got, want) {
			t.Errorf("label %q: %q, want %q", label, got, want)
		}
	}
	d.complete("first", rotation.ExecutionInput{RequestedBy: rotation.ScheduleRequester})
}

// TestDuplicateThatSleeps: a duplicate that has passed its checks before the first one began
// starts nothing after it has completed.
func TestDuplicateThatSleeps(t *testing.T) {
	s := newSite(t)
	asked := rotation.ExecutionInput{RequestedBy: rotation.ScheduleRequester}
	slept := false
	s.Journal.AuditBucket = sleepyVault{s.vault, func() {
		if !slept { // the checks of the control table are over
			slept = true
			newDriver(s).complete("first", asked)
		}
	}}
	_, err := s.Preflight(t.Context(), preflightInput("sleepy", asked))
	wantKind(t, err, journal.QuarterRotated)
}

type sleepyVault struct {
	journal.AuditBucket
	sleep func()
}

func (v sleepyVault) Check(ctx context.Context) error { v.sleep(); return v.AuditBucket.Check(ctx) }

// TestQuarterLabel: the label is that of the quarter in the deployment's zone, whatever
// zone the function's clock is in.
func TestQuarterLabel(t *testing.T) {
	for _, tc := range []struct{ zone, local, want string }{
		{"Asia/Tokyo", "2029-04-01 02:00", "Q2-2029-rotation"},
		{"Pacific/Auckland", "2028-10-01 03:00", "Q4-2028-rotation"},
		{"America/New_York", "2028-12-31 22:00", "Q4-2028-rotation"},
		{"UTC", "2029-04-01 02:00", "Q2-2029-rotation"},
	} {
		zone, err := time.LoadLocation(tc.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.ParseInLocation("2006-01-02 15:04", tc.local, zone)
		if err != nil {
			t.Fatal(err)
		}
		s := newSite(t)
		s.Gates.Rules.Window = gates.Window{Zone: zone}
		s.Journal.Now = func() time.Time { return at.UTC() }
		in := preflightInput("label", rotation.ExecutionInput{})
		in.CheckOnly = true
		if p, err := s.Preflight(t.Context(), in); err != nil || p.Label != tc.want {
			t.Errorf("%s: label %q, want %q (%v)", tc.zone, p.Label, tc.want, err)
		}
		if a, err := s.Gates.AnnounceWindow(t.Context(), gates.AnnounceInput{From: at.UTC()}); err != nil || a.Label != tc.want {
			t.Errorf("%s: announced %q, want %q (%v)", tc.zone, a.Label, tc.want, err)
		}
	}
}
