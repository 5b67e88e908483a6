package gates_test

import (
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/rotation/gates"
)

func TestParseWindow(t *testing.T) {
	for _, s := range []string{
		"25:00-26:00", "01:00", "01:00-", "-05:00", "01:00-05:60", "1:00-5:00", "01:00 05:00", "01:00-05:00 ", " 01:00-05:0",
		"24:00-01:00", "03:00-03:00", "always", "ANY", "01-00-05:00", "01:00–05:00", "+1:00-05:00",
	} {
		if w, err := gates.ParseWindow(s, time.UTC); err == nil {
			t.Errorf("%q: accepted as %s", s, w)
		}
	}
	for _, zone := range []*time.Location{nil, time.UTC} {
		w, err := gates.ParseWindow("01:20-15:30", zone)
		if want := (gates.Window{From: 80 * time.Minute, To: 930 * time.Minute, Zone: time.UTC}); err != nil || w != want {
			t.Errorf("%+v, %v, want %+v", w, err, want)
		}
	}
	w, err := gates.ParseWindow("01:20-15:30", time.UTC)
	for at, open := range map[time.Duration]bool{79: false, 80: true, 929: true, 930: false} {
		if err != nil || w.Open(time.Time{}.Add(at*time.Minute)) != open {
			t.Errorf("at %d minutes: open %t", at, !open)
		}
	}
	for _, s := range []string{"", "any"} {
		w, err := gates.ParseWindow(s, nil)
		if err != nil || !w.Open(time.Time{}) || w.String() != "any time" {
			t.Errorf("%q: %s, %v", s, w, err)
		}
	}
}

// TestWindowOpen looks at the edges, over midnight, in another zone and on the days
// on which the clocks change.
func TestWindowOpen(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: ", err)
	}
	for _, tc := range []struct {
		window string
		zone   *time.Location
		at     string // RFC 3339
		open   bool
	}{
		{"01:00-05:00", time.UTC, "2026-04-01T00:59:59Z", false},
		{"01:00-05:00", time.UTC, "2026-04-01T01:00:00Z", true},
		{"01:00-05:00", time.UTC, "2026-04-01T04:59:59Z", true},
		{"01:00-05:00", time.UTC, "2026-04-01T05:00:00Z", false},
		{"22:00-04:00", time.UTC, "2026-04-01T21:59:00Z", false},
		{"22:00-04:00", time.UTC, "2026-04-01T22:00:00Z", true},
		{"22:00-04:00", time.UTC, "2026-04-02T00:00:00Z", true},
		{"22:00-04:00", time.UTC, "2026-04-02T03:59:59Z", true},
		{"22:00-04:00", time.UTC, "2026-04-02T04:00:00Z", false},
		{"00:00-00:01", time.UTC, "2026-04-02T00:00:30Z", true},
		{"01:00-05:00", berlin, "2026-01-15T00:30:00Z", true},  // 01:30 CET
		{"01:00-05:00", berlin, "2026-07-15T00:30:00Z", true},  // 02:30 CEST
		{"01:00-05:00", berlin, "2026-07-15T03:30:00Z", false}, // 05:30 CEST
		{"02:00-03:00", berlin, "2026-03-29T00:59:00Z", false}, // 01:59, and then it is 03:00
		{"02:00-03:00", berlin, "2026-03-29T01:00:00Z", false},
		{"02:00-03:00", berlin, "2026-10-25T00:30:00Z", true}, // 02:30 twice
		{"02:00-03:00", berlin, "2026-10-25T01:30:00Z", true},
	} {
		w, err := gates.ParseWindow(tc.window, tc.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		if w.Open(at) != tc.open {
			t.Errorf("%s at %s: open %t", w, tc.at, !tc.open)
		}
	}
}
