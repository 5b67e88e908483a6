package templatetest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// cron is the part of EventBridge Scheduler's language that the template speaks:
// one minute, one hour, some months, the nth (3#2) or the last (6L) weekday of
// them, 1 being Sunday.
type cron struct {
	hour, minute int
	months       []time.Month
	weekday      time.Weekday
	nth          int // 0: the last
}

var weekdayField = regexp.MustCompile(`^([1-7])(?:#([1-5])|(L))$`)

func parseCron(s string) (cron, error) {
	f := strings.Fields(strings.TrimSuffix(strings.TrimPrefix(s, "cron("), ")"))
	if len(f) != 6 || f[2] != "?" || f[5] != "*" {
		return cron{}, fmt.Errorf("%q: want cron(minute hour ? months weekday *)", s)
	}
	var c cron
	var err error
	if c.minute, err = strconv.Atoi(f[0]); err != nil {
		return c, err
	}
	if c.hour, err = strconv.Atoi(f[1]); err != nil {
		return c, err
	}
	for _, m := range strings.Split(f[3], ",") {
		t, err := time.Parse("Jan", m[:1]+strings.ToLower(m[1:]))
		if err != nil {
			return c, err
		}
		c.months = append(c.months, t.Month())
	}
	m := weekdayField.FindStringSubmatch(f[4])
	if m == nil {
		return c, fmt.Errorf("%q: weekday %q", s, f[4])
	}
	c.weekday = time.Weekday(m[1][0] - '1')
	if m[2] != "" {
		c.nth = int(m[2][0] - '0')
	}
	return c, nil
}

// next returns the first n moments after a time, in its zone.
func (c cron) next(after time.Time, n int) []time.Time {
	var out []time.Time
	for day := after; len(out) < n; day = day.AddDate(0, 0, 1) {
		at := time.Date(day.Year(), day.Month(), day.Day(), c.hour, c.minute, 0, 0, day.Location())
		week, last := (day.Day()-1)/7+1, day.AddDate(0, 0, 7).Month() != day.Month()
		if at.After(after) && slices.Contains(c.months, day.Month()) && day.Weekday() == c.weekday &&
			(week == c.nth || c.nth == 0 && last) {
			out = append(out, at)
		}
	}
	return out
}

func TestCron(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for expr, want := range map[string][]string{
		"cron(0 2 ? JAN,APR,JUL,OCT 1#1 *)": {"2026-01-04 02:00", "2026-04-05 02:00", "2026-07-05 02:00", "2026-10-04 02:00", "2027-01-03 02:00"},
		"cron(15 10 ? MAY 6L *)":            {"2026-05-29 10:15", "2027-05-28 10:15", "2028-05-26 10:15", "2029-05-25 10:15", "2030-05-31 10:15"},
	} {
		c, err := parseCron(expr)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, at := range c.next(from, len(want)) {
			got = append(got, at.Format("2006-01-02 15:04"))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", expr, d)
		}
	}
}

// moments returns when a schedule next runs, n times.
func (tpl *template) moments(t *testing.T, id string, params map[string]string, after time.Time, n int) []time.Time {
	t.Helper()
	p := at[object](t, tpl.Resources, id, "Properties")
	if got := tpl.resolve(t, p["ScheduleExpressionTimezone"], params); got != after.Location().String() {
		t.Fatalf("%s is in zone %s", id, got)
	}
	c, err := parseCron(tpl.resolve(t, p["ScheduleExpression"], params))
	if err != nil {
		t.Fatalf("%s: %v", id, err)
	}
	return c.next(after, n)
}

// TestPreflightIsSevenDaysAhead: whatever the calendar, the zone and the hour,
// preflight looks exactly seven days before each of the next eight rotations, and of
// many more.
func TestPreflightIsSevenDaysAhead(t *testing.T) {
	tpl := load(t)
	const quarters = 40
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Pacific/Auckland"} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(time.Now().Year(), 2, 1, 0, 0, 0, 0, loc) // in February both are before the same quarter
		for _, hour := range []string{"0", "2", "23"} {
			params := map[string]string{"ScheduleHour": hour, "TimeZone": zone}
			rotations, aheads := tpl.moments(t, "RotationSchedule", params, now, quarters), tpl.moments(t, "PreflightSchedule", params, now, quarters)
			for i, at := range rotations {
				if !aheads[i].Equal(at.AddDate(0, 0, -7)) {
					t.Errorf("rotation at %s, preflight at %s", at, aheads[i])
				}
			}
		}
	}
}

// TestScheduledInputs: what the schedules send is what preflight and the state
// machine take.
func TestScheduledInputs(t *testing.T) {
	tpl := load(t)
	target := func(id string) object { return at[object](t, tpl.Resources, id, "Properties", "Target") }
	start, err := lambdastep.Decode[rotation.ExecutionInput]([]byte(text(target("RotationSchedule")["Input"])))
	if err != nil || start != event[rotation.ExecutionInput](t, "execution-scheduled") {
		t.Errorf("rotation: %+v, %v", start, err)
	}
	input := strings.ReplaceAll(text(target("PreflightSchedule")["Input"]), "<aws.scheduler.execution-id>", "d32c5kddcf5bb8c3")
	ahead, err := lambdastep.Decode[rotation.PreflightInput]([]byte(input))
	if err != nil || !ahead.CheckOnly || !ahead.Announce || ahead.Input != start { // who asks, where a second person is needed
		t.Errorf("preflight: %+v, %v", ahead, err)
	}
	if err := kek.CheckRotationID(ahead.ExecutionName); err != nil {
		t.Error(err)
	}
	beat, err := lambdastep.Decode[rotation.AnchorInput]([]byte(text(target("AnchorSchedule")["Input"])))
	if err != nil || beat != (rotation.AnchorInput{Heartbeat: true}) {
		t.Errorf("anchor: %+v, %v", beat, err)
	}
	for id, want := range map[string]string{
		"RotationSchedule": "${StateMachine}", "PreflightSchedule": "${PreflightFunction.Arn}", "AnchorSchedule": "${AnchorFunction.Arn}",
		"HealthSchedule": "${HealthFunction.Arn}",
	} {
		p := at[object](t, tpl.Resources, id, "Properties")
		if got := text(target(id)["Arn"]); got != want {
			t.Errorf("%s starts %s", id, got)
		}
		state := "${ScheduleState}"
		if id == "AnchorSchedule" || id == "HealthSchedule" {
			state = text(nil) // always
		}
		if text(p["State"]) != state || text(p["GroupName"]) != "${ScheduleGroup}" {
			t.Errorf("%s: %v, %v", id, p["State"], p["GroupName"])
		}
		if text(at[any](t, target(id), "DeadLetterConfig", "Arn")) != "${ScheduleFailures.Arn}" || target(id)["RetryPolicy"] == nil {
			t.Errorf("%s: a failed start is lost", id)
		}
	}
}
