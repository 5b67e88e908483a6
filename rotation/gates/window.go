package gates

import (
	"fmt"
	"time"
)

// Window is a daily span of local time. A window without times is always open.
type Window struct {
	From, To time.Duration // since midnight; equal: always open
	Zone     *time.Location
}

// ParseWindow reads "HH:MM-HH:MM" or "any" (also "") in the given zone. A window
// may span midnight, e.g. 22:00-04:00.
func ParseWindow(s string, zone *time.Location) (Window, error) {
	if zone == nil {
		zone = time.UTC
	}
	if s == "" || s == "any" {
		return Window{Zone: zone}, nil
	}
	if len(s) != len("HH:MM-HH:MM") || s[5] != '-' {
		return Window{}, fmt.Errorf("%q is not HH:MM-HH:MM", s)
	}
	from, err := parseClock(s[:5])
	if err != nil {
		return Window{}, err
	}
	to, err := parseClock(s[6:])
	if err != nil {
		return Window{}, err
	}
	if from == to {
		return Window{}, fmt.Errorf("%q is empty; use any for the whole day", s)
	}
	return Window{From: from, To: to, Zone: zone}, nil
}

func parseClock(s string) (time.Duration, error) {
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time of day like 22:30", s)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// Open reports whether t is in the window.
func (w Window) Open(t time.Time) bool {
	if w.Zone != nil {
		t = t.In(w.Zone)
	}
	at := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
	if w.From < w.To {
		return at >= w.From && at < w.To
	}
	return at >= w.From || at < w.To // over midnight, or always
}

// Text returns the window as [ParseWindow] reads it; "" if it is always open.
func (w Window) Text() string {
	if w.From == w.To {
		return ""
	}
	return hoursMinutes(w.From) + "-" + hoursMinutes(w.To)
}

func hoursMinutes(d time.Duration) string {
	return fmt.Sprintf("%02d:%02d", int(d.Hours()), int(d.Minutes())%60)
}

func (w Window) String() string {
	if w.From == w.To {
		return "any time"
	}
	return fmt.Sprintf("%s %s", w.Text(), w.Zone)
}
