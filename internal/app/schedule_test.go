package app

import (
	"testing"
	"time"
)

func TestNextFirst(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const quarterly = "cron(0 2 ? JAN,APR,JUL,OCT 1#1 *)"
	for _, c := range []struct{ expression, now, want string }{
		{quarterly, "2026-11-24T12:00:00Z", "2027-01-03T02:00:00+01:00"},
		{quarterly, "2026-04-05T00:59:00Z", "2026-07-05T02:00:00+02:00"}, // 02:00 in Berlin was an hour ago
		{quarterly, "2026-04-04T23:59:00Z", "2026-04-05T02:00:00+02:00"},
		{quarterly, "2026-04-05T00:00:00Z", "2026-07-05T02:00:00+02:00"}, // the very moment: the next one
		{"cron(30 23 ? JAN,APR,JUL,OCT 7#1 *)", "2026-10-03T00:00:00Z", "2026-10-03T23:30:00+02:00"},
		{"cron(0 2 ? DEC,MAR,JUN,SEP 1L *)", "2026-10-03T00:00:00Z", ""},
		{"rate(90 days)", "2026-10-03T00:00:00Z", ""},
		{"cron(0 2 ? JAN 8#1 *)", "2026-10-03T00:00:00Z", ""},
	} {
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := nextFirst(c.expression, now.In(berlin))
		if text := got.Format(time.RFC3339); ok && text != c.want || ok != (c.want != "") {
			t.Errorf("%s at %s: %s, %t; want %q", c.expression, c.now, text, ok, c.want)
		}
	}
}
