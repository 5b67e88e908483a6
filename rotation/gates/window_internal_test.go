package gates

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func zoneOf(t *testing.T, name string) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestWallClock: the clocks are put forward at 02:00 on 28 March 2027 in Berlin and on 3
// October 2027 in Sydney, and back at 03:00 on 31 October 2027 and on 4 April 2027; Lord
// Howe's by half an hour; Apia skipped 30 December 2011.
func TestWallClock(t *testing.T) {
	for _, tc := range []struct{ zone, date, clock, want string }{
		{"UTC", "2027-03-28", "02:30", "2027-03-28T02:30:00Z"},
		{"Europe/Berlin", "2027-03-27", "02:30", "2027-03-27T02:30:00+01:00"},
		{"Europe/Berlin", "2027-03-28", "01:59", "2027-03-28T01:59:00+01:00"},
		{"Europe/Berlin", "2027-03-28", "02:00", "2027-03-28T03:00:00+02:00"},
		{"Europe/Berlin", "2027-03-28", "02:30", "2027-03-28T03:00:00+02:00"},
		{"Europe/Berlin", "2027-03-28", "02:59", "2027-03-28T03:00:00+02:00"},
		{"Europe/Berlin", "2027-03-28", "03:00", "2027-03-28T03:00:00+02:00"},
		{"Europe/Berlin", "2027-03-29", "02:30", "2027-03-29T02:30:00+02:00"},
		{"Europe/Berlin", "2027-10-31", "01:59", "2027-10-31T01:59:00+02:00"},
		{"Europe/Berlin", "2027-10-31", "02:00", "2027-10-31T02:00:00+02:00"},
		{"Europe/Berlin", "2027-10-31", "02:59", "2027-10-31T02:59:00+02:00"},
		{"Europe/Berlin", "2027-10-31", "03:00", "2027-10-31T03:00:00+01:00"},
		{"Europe/Berlin", "2027-11-01", "02:30", "2027-11-01T02:30:00+01:00"},
		{"America/New_York", "2027-03-14", "02:30", "2027-03-14T03:00:00-04:00"},
		{"America/New_York", "2027-11-07", "01:30", "2027-11-07T01:30:00-04:00"},
		{"Australia/Lord_Howe", "2027-10-03", "02:15", "2027-10-03T02:30:00+11:00"},
		{"Australia/Lord_Howe", "2027-04-04", "01:45", "2027-04-04T01:45:00+11:00"},
		{"Pacific/Apia", "2011-12-29", "12:00", "2011-12-29T12:00:00-10:00"},
		{"Pacific/Apia", "2011-12-30", "12:00", "2011-12-31T00:00:00+14:00"},
		{"Pacific/Apia", "2011-12-31", "12:00", "2011-12-31T12:00:00+14:00"},
	} {
		at, err := parseClock(tc.clock)
		if err != nil {
			t.Fatal(err)
		}
		date, err := time.Parse(time.DateOnly, tc.date)
		if err != nil {
			t.Fatal(err)
		}
		if got := wallClock(date, at, zoneOf(t, tc.zone)).Format(time.RFC3339Nano); got != tc.want {
			t.Errorf("%s %s %s: %s, want %s", tc.zone, tc.date, tc.clock, got, tc.want)
		}
	}
}

// TestWindowStarts: a rotation may start from when it is due, or from when the window opens
// next, for half a day at most and half an hour at least.
func TestWindowStarts(t *testing.T) {
	for _, tc := range []struct{ zone, window, due, from, to string }{
		{"UTC", "any", "2027-04-04T02:00:00Z", "2027-04-04T02:00:00Z", "2027-04-04T14:00:00Z"},
		{"UTC", "any", "2027-04-04T13:00:00Z", "2027-04-04T13:00:00Z", "2027-04-05T01:00:00Z"}, // over midnight
		{"UTC", "01:00-05:00", "2027-04-04T00:59:59Z", "2027-04-04T01:00:00Z", "2027-04-04T05:00:00Z"},
		{"UTC", "01:00-05:00", "2027-04-04T01:00:00Z", "2027-04-04T01:00:00Z", "2027-04-04T05:00:00Z"},
		{"UTC", "01:00-05:00", "2027-04-04T04:30:00Z", "2027-04-04T04:30:00Z", "2027-04-04T05:00:00Z"},
		{"UTC", "01:00-05:00", "2027-04-04T04:30:01Z", "2027-04-05T01:00:00Z", "2027-04-05T05:00:00Z"},
		{"UTC", "01:00-05:00", "2027-04-04T05:00:00Z", "2027-04-05T01:00:00Z", "2027-04-05T05:00:00Z"},
		{"UTC", "22:00-04:00", "2027-04-04T23:00:00Z", "2027-04-04T23:00:00Z", "2027-04-05T04:00:00Z"},
		{"UTC", "22:00-04:00", "2027-04-04T02:00:00Z", "2027-04-04T02:00:00Z", "2027-04-04T04:00:00Z"},
		{"UTC", "22:00-04:00", "2027-04-04T12:00:00Z", "2027-04-04T22:00:00Z", "2027-04-05T04:00:00Z"},
		{"UTC", "06:00-18:00", "2027-04-04T06:00:00Z", "2027-04-04T06:00:00Z", "2027-04-04T18:00:00Z"},
		{"UTC", "06:00-18:01", "2027-04-04T06:00:00Z", "2027-04-04T06:00:00Z", "2027-04-04T18:00:00Z"},
		{"UTC", "06:00-05:00", "2027-04-04T07:00:00Z", "2027-04-04T07:00:00Z", "2027-04-04T19:00:00Z"},
		{"UTC", "01:00-01:29", "2027-04-04T02:00:00Z", "2027-04-04T02:00:00Z", "2027-04-04T14:00:00Z"}, // is never open so long
		{"UTC", "01:00-01:30", "2027-04-04T02:00:00Z", "2027-04-05T01:00:00Z", "2027-04-05T01:30:00Z"},
		{"Australia/Sydney", "02:00-03:00", "2027-10-03T03:00:00+11:00", "2027-10-04T02:00:00+11:00", "2027-10-04T03:00:00+11:00"},
		{"Australia/Sydney", "02:00-03:00", "2027-04-04T02:30:00+11:00", "2027-04-04T02:30:00+11:00", "2027-04-04T03:00:00+10:00"},
	} {
		w, err := ParseWindow(tc.window, zoneOf(t, tc.zone))
		if err != nil {
			t.Fatal(err)
		}
		from, to := w.startSpan(moment(t, tc.due))
		got := []string{from.In(w.Location()).Format(time.RFC3339), to.In(w.Location()).Format(time.RFC3339)}
		if want := []string{tc.from, tc.to}; !slices.Equal(got, want) {
			t.Errorf("%s %s, due %s: %v, want %v", tc.zone, tc.window, tc.due, got, want)
		}
	}
}

func TestWindowSpan(t *testing.T) {
	for window, want := range map[string]time.Duration{"any": 24 * time.Hour, "01:00-05:00": 4 * time.Hour, "22:00-04:00": 6 * time.Hour, "00:00-23:59": 24*time.Hour - time.Minute, "23:59-00:00": time.Minute} {
		w, err := ParseWindow(window, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.OpenSpan(); got != want {
			t.Errorf("%s: %s, want %s", window, got, want)
		}
	}
}

// TestQuarterDates: what comes before a rotation and when, by what the deployment demands.
func TestQuarterDates(t *testing.T) {
	type dates struct{ announce, drill, lastNotice, lastDrill string }
	for name, tc := range map[string]struct {
		announce, drill int
		window          string
		want            dates
	}{
		"the template's":          {7, 90, "01:00-05:00", dates{"03-27 02:00", "03-21 02:00", "03-28 05:00", "04-03 02:00"}},
		"nothing":                 {0, 0, "01:00-05:00", dates{"03-27 02:00", "03-21 02:00", "04-04 05:00", "04-03 02:00"}},
		"less notice than a week": {3, 90, "01:00-05:00", dates{"03-27 02:00", "03-21 02:00", "04-01 05:00", "04-03 02:00"}},
		"more notice than a week": {10, 90, "01:00-05:00", dates{"03-24 02:00", "03-21 02:00", "03-25 05:00", "04-03 02:00"}},
		"a drill of 15 days":      {7, 15, "01:00-05:00", dates{"03-27 02:00", "03-21 02:00", "03-28 05:00", "04-03 02:00"}},
		"a drill of 14 days":      {7, 14, "01:00-05:00", dates{"03-27 02:00", "03-21 06:00", "03-28 05:00", "04-03 02:00"}},
		"a drill of 2 days":       {7, 2, "01:00-05:00", dates{"03-27 02:00", "04-02 06:00", "03-28 05:00", "04-03 04:00"}},
		"a drill of 1 day":        {7, 1, "01:00-05:00", dates{"03-27 02:00", "04-03 06:00", "03-28 05:00", "04-03 16:00"}},
	} {
		w, err := ParseWindow(tc.window, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		c := Rules{Window: w, AnnounceDays: tc.announce, DrillFreshDays: tc.drill}
		q := c.quarterOf(2027, 4, 2)
		const layout = "01-02 15:04"
		got := dates{q.Announce.Format(layout), q.Drill.Format(layout), c.LastNotice(q).Format(layout), q.LastDrill().Format(layout)}
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// TestQuartersAround: the quarter before, this one and the two after it, also across years.
func TestQuartersAround(t *testing.T) {
	c := Rules{Window: Window{Zone: zoneOf(t, "Asia/Tokyo")}}
	for now, want := range map[string][]string{
		"2027-01-01T00:00:00+09:00": {"2026-10-04", "2027-01-03", "2027-04-04", "2027-07-04"},
		"2027-03-31T23:59:59+09:00": {"2026-10-04", "2027-01-03", "2027-04-04", "2027-07-04"},
		"2027-03-31T15:00:00Z":      {"2027-01-03", "2027-04-04", "2027-07-04", "2027-10-03"}, // April in Tokyo
		"2027-06-30T14:59:59Z":      {"2027-01-03", "2027-04-04", "2027-07-04", "2027-10-03"},
		"2028-12-31T00:00:00Z":      {"2028-07-02", "2028-10-01", "2029-01-07", "2029-04-01"}, // the first is a Sunday
	} {
		var got []string
		for _, q := range c.Quarters(moment(t, now), 2) {
			got = append(got, q.Rotation.Format(time.DateOnly))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", now, got, want)
		}
	}
}

// TestLate: what a deployment lacks the time for, at the last moment of genesis at which it
// has it and one second later.
func TestLate(t *testing.T) {
	const (
		due    = "was due before"
		told   = "AnnounceDays"
		green  = "HealthDays"
		proved = "DrillFreshDays"
	)
	for _, tc := range []struct {
		announce, health, drill int
		genesis                 string // in time
		late                    string // why one second later it is not
	}{
		{0, 0, 0, "2027-04-04T02:00:00Z", due},
		{7, 0, 0, "2027-03-26T01:59:59Z", told}, // two days, three hours of slack on either side, seven days
		{1, 0, 0, "2027-04-01T01:59:59Z", told},
		{0, 7, 0, "2027-03-27T23:59:59Z", green},
		{0, 1, 0, "2027-04-02T23:59:59Z", green},
		{0, 0, 90, "2027-04-01T01:59:59Z", proved},
		{0, 0, 1, "2027-04-01T15:59:59Z", proved}, // the drill must be done half way between it and the rotation
		{7, 7, 90, "2027-03-26T01:59:59Z", told},
	} {
		w, err := ParseWindow("01:00-05:00", time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		c := Rules{Window: w, AnnounceDays: tc.announce, HealthDays: tc.health, DrillFreshDays: tc.drill}
		q := c.quarterOf(2027, 4, 2)
		at := moment(t, tc.genesis)
		if why := c.Late(q, at); why != "" {
			t.Errorf("%+v: %s", tc, why)
		}
		later := at.Add(time.Second)
		if why := c.Late(q, later); !containsAll(why, q.Label, tc.late, later.Format("2006-01-02 15:04 MST")) {
			t.Errorf("%+v, a second later: %q", tc, why)
		}
	}
}

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}
