package gates_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/matter-ops/kms-rotation/rotation/gates"
)

const day = 24 * time.Hour

// zones lists the time zones that Go knows.
func zones(t *testing.T) []*time.Location {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var out []*time.Location
	err = fs.WalkDir(z, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		zone, err := time.LoadLocation(path)
		out = append(out, zone)
		return err
	})
	if err != nil || len(out) < 400 {
		t.Fatalf("%d zones: %v", len(out), err)
	}
	return out
}

// defaults are the template's.
func defaults(t *testing.T, window string, zone *time.Location) gates.Rules {
	t.Helper()
	w, err := gates.ParseWindow(window, zone)
	if err != nil {
		t.Fatal(err)
	}
	return gates.Rules{Window: w, AnnounceDays: 7, DrillFreshDays: 90, HealthDays: 7}
}

// TestCalendar: in every zone, at every hour, until 2100 a rotation is due once a quarter,
// at an instant at which the window is open and stays so for two ticks; its announcement
// is made before the days of notice as the gate counts them, its drill counts until the
// rotation may not start any more, and all that holds of what the others announce.
func TestCalendar(t *testing.T) {
	seen := map[string]bool{} // zones of the same clocks are as one
	for n, zone := range zones(t) {
		var clocks strings.Builder
		at := time.Date(2026, 10, 1, 0, 0, 0, 0, zone)
		for _, offset := at.Zone(); !at.IsZero() && at.Year() < 2040; _, offset = at.Zone() {
			fmt.Fprintln(&clocks, at.Unix(), offset)
			_, at = at.ZoneBounds()
		}
		changes := strings.Count(clocks.String(), "\n") > 1
		if changes && seen[clocks.String()] {
			continue
		}
		seen[clocks.String()] = true
		for hour := range 24 {
			if !changes && hour != n%24 { // every hour is there each day
				continue
			}
			for _, window := range []string{"01:00-05:00", "any"} {
				checkCalendar(t, defaults(t, window, zone), hour)
			}
		}
	}
	if len(seen) < 30 {
		t.Errorf("only %d kinds of zones", len(seen))
	}
}

func checkCalendar(t *testing.T, c gates.Rules, hour int) {
	t.Helper()
	zone := c.Window.Zone
	seen := map[string]bool{}
	for year := 2027; year <= 2100; year++ {
		for _, q := range c.Quarters(time.Date(year, 5, 15, 12, 0, 0, 0, zone), hour) {
			if seen[q.Label] {
				t.Errorf("%s twice", q.Label)
			}
			seen[q.Label] = true
			checkScheduled(t, c, hour, q)
		}
	}
	if len(seen) != 4*74 {
		t.Errorf("%s, hour %d: %d quarters", zone, hour, len(seen))
	}
}

func checkScheduled(t *testing.T, c gates.Rules, hour int, q gates.Quarter) {
	t.Helper()
	zone := c.Window.Zone
	local := q.Rotation.In(zone)
	fail := func(what string) { t.Errorf("%s, hour %d, %s: %s: %+v", zone, hour, c.Window, what, q) }
	switch {
	case c.QuarterLabel(q.Rotation) != q.Label || c.QuarterLabel(q.Closes) != q.Label:
		fail("the label of another quarter")
	case local.Day() > 8 || !slices.Contains([]time.Month{1, 4, 7, 10}, local.Month()):
		fail("not in the first week")
	case !c.Window.Open(q.Rotation) || !c.Window.Open(q.Rotation.Add(15*time.Minute)):
		fail("the window is shut")
	case q.Closes.Sub(q.Rotation) < 30*time.Minute || q.Closes.Sub(q.Rotation) > 12*time.Hour:
		fail("no time to start in")
	case q.Rotation.Sub(q.Announce) < 7*day+12*time.Hour || q.Rotation.Sub(q.Announce) > 10*day:
		fail("the announcement")
	case q.Rotation.Sub(q.Drill) < 13*day || (gates.Drill{Rev: 1, PassedAt: q.Drill}).Freshness(q.Closes, 90) != gates.Fresh:
		fail("the drill")
	}
	sunday := time.Date(local.Year(), local.Month(), 1, 12, 0, 0, 0, time.UTC)
	sunday = sunday.AddDate(0, 0, (7-int(sunday.Weekday()))%7)
	wanted := time.Date(sunday.Year(), sunday.Month(), sunday.Day(), hour, 0, 0, 0, zone)
	if open := c.Window.Open(wanted) && c.Window.Open(wanted.Add(29*time.Minute)); wanted.Hour() == hour && open && !sameClock(q.Rotation, wanted) {
		fail("not at the hour")
	}
	if wanted.Hour() != hour && c.Window.Text() == "" { // the first instant after the gap
		_, before := q.Rotation.Add(-time.Nanosecond).In(zone).Zone()
		if _, after := local.Zone(); after <= before || q.Rotation.Sub(wanted).Abs() > 3*time.Hour {
			fail("not the end of the gap")
		}
	}
}

// sameClock reports that clocks show the same, at a or at the second time that it is so.
func sameClock(a, b time.Time) bool {
	const layout = "2006-01-02 15:04:05"
	return a.Format(layout) == b.In(a.Location()).Format(layout)
}

// TestSkippedHours: what EventBridge Scheduler would not have started.
func TestSkippedHours(t *testing.T) {
	for _, tc := range []struct{ zone, now, window, rotation, announce, drill string }{
		{"Europe/Berlin", "2027-03-01", "01:00-05:00", "2027-04-04T02:00:00+02:00", "2027-03-27T02:00:00+01:00", "2027-03-21T02:00:00+01:00"},
		{"Australia/Sydney", "2027-09-01", "01:00-05:00", "2027-10-03T03:00:00+11:00", "2027-09-25T02:00:00+10:00", "2027-09-19T02:00:00+10:00"},
		{"Australia/Sydney", "2027-09-01", "02:00-03:00", "2027-10-04T02:00:00+11:00", "2027-09-25T02:00:00+10:00", "2027-09-19T02:00:00+10:00"}, // is not there on Sunday
		{"Australia/Sydney", "2028-03-01", "any", "2028-04-02T02:00:00+11:00", "2028-03-25T02:00:00+11:00", "2028-03-19T02:00:00+11:00"},         // 02:00 is there twice
		{"Asia/Tokyo", "2029-03-01", "22:00-06:00", "2029-04-01T02:00:00+09:00", "2029-03-24T02:00:00+09:00", "2029-03-18T02:00:00+09:00"},       // 31 March in UTC
		{"UTC", "2027-03-01", "12:00-13:00", "2027-04-04T12:00:00Z", "2027-03-27T02:00:00Z", "2027-03-21T02:00:00Z"},                             // the window opens later
	} {
		zone, err := time.LoadLocation(tc.zone)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.ParseInLocation(time.DateOnly, tc.now, zone)
		if err != nil {
			t.Fatal(err)
		}
		q := defaults(t, tc.window, zone).Quarters(now, 2)[2]
		got := []string{q.Rotation.Format(time.RFC3339), q.Announce.Format(time.RFC3339), q.Drill.Format(time.RFC3339)}
		if want := []string{tc.rotation, tc.announce, tc.drill}; !slices.Equal(got, want) {
			t.Errorf("%s, %s: %s, want %s", tc.zone, tc.window, strings.Join(got, " "), strings.Join(want, " "))
		}
	}
}
