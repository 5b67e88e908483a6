package rotation

import (
	"fmt"
	"sort"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// The calendar of the scheduled rotations. The functions compute it themselves, because a
// cron expression of EventBridge Scheduler is not invoked at all at a local time that a
// daylight-saving change skips (EventBridge Scheduler user guide, "Daylight saving time").
const (
	noticeDays   = 7                // days of notice of a rotation, where the deployment demands no more
	noticeMargin = 1                // days in which an announcement that fails is repeated
	drillDays    = 14               // days before the rotation at which the drill is due
	secondDrill  = 7                // days before the rotation from which a failed drill is repeated once
	drillEnds    = 24 * time.Hour   // before the rotation; no drill starts later
	longestStart = 12 * time.Hour   // span in which a rotation may start, of a longer window
	leastStart   = 30 * time.Minute // two ticks of the schedule
)

// Quarter is the scheduled rotation of one quarter and what comes before it.
type Quarter struct {
	Label    string    `json:"label"`
	Rotation time.Time `json:"rotation"` // when it is due
	Closes   time.Time `json:"closes"`   // when it may not start any more
	Announce time.Time `json:"announce"` // when customers are told, and preflight looks ahead
	Drill    time.Time `json:"drill"`    // when the failure drill is due, unless it counts until Closes
}

// QuarterLabel is the label of the rotation of the quarter that it is at t in the
// deployment's zone.
func (c Config) QuarterLabel(t time.Time) string { return kek.QuarterLabel(t.In(c.Window.zone())) }

// Quarters lists the scheduled rotations around a time, the first one being over: those of
// the quarter before, of this quarter and of the two after it. hour is the local hour at
// which they are due on the first Sunday of the quarter.
func (c Config) Quarters(now time.Time, hour int) []Quarter {
	local := now.In(c.Window.zone())
	first := int(local.Month()-1)/3*3 + 1 - 3
	var out []Quarter
	for i := range 4 {
		out = append(out, c.quarter(local.Year(), time.Month(first+3*i), hour))
	}
	return out
}

// quarter computes the rotation of the quarter that begins in a month, which may lie
// outside of January to December. A rotation is due at the hour on the first Sunday or, if
// the window is shut then or shuts within [leastStart], when the window opens next.
func (c Config) quarter(year int, month time.Month, hour int) Quarter {
	begin := time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	sunday := begin.AddDate(0, 0, (7-int(begin.Weekday()))%7)
	at := func(daysBefore int) time.Time {
		return wallClock(sunday.AddDate(0, 0, -daysBefore), time.Duration(hour)*time.Hour, c.Window.zone())
	}
	q := Quarter{Label: kek.QuarterLabel(begin), Announce: at(max(noticeDays, c.AnnounceDays) + noticeMargin), Drill: at(drillDays)}
	q.Rotation, q.Closes = c.Window.starts(at(0))
	if fresh := q.Closes.Add(-time.Duration(c.DrillFreshDays)*day + time.Hour); c.DrillFreshDays > 0 && q.Drill.Before(fresh) {
		q.Drill = fresh // a drill that passed earlier would not count any more
	}
	return q
}

// lastDrill is from when on no drill starts, so that none is at work when the rotation is
// due.
func (q Quarter) lastDrill() time.Time {
	return q.Rotation.Add(-min(drillEnds, q.Rotation.Sub(q.Drill)/2))
}

// lastNotice is from when on an announcement is too late.
func (c Config) lastNotice(q Quarter) time.Time {
	return q.Rotation.Add(-time.Duration(c.AnnounceDays)*day + announceSlack)
}

// Late says why the rotation of a quarter cannot be prepared in time by a deployment that
// had its genesis at a moment; "" if it can.
func (c Config) Late(q Quarter, genesis time.Time) string {
	firstDay := genesis.UTC().Truncate(day).Add(day) // of which there may be a whole day of canaries
	wanted := q.Rotation.UTC().Truncate(day).AddDate(0, 0, -c.HealthDays)
	var why string
	switch prepared := genesis.Add(settled + settled); {
	case q.Rotation.Before(genesis):
		why = "it was due before"
	case c.AnnounceDays > 0 && !prepared.Add(announceSlack).Before(c.lastNotice(q)):
		why = fmt.Sprintf("customers must be told %d days ahead (AnnounceDays)", c.AnnounceDays)
	case c.HealthDays > 0 && firstDay.After(wanted):
		why = fmt.Sprintf("the canary must be green for %d whole days (HealthDays)", c.HealthDays)
	case c.DrillFreshDays > 0 && !prepared.Before(q.lastDrill()):
		why = "the drill must pass before (DrillFreshDays)"
	default:
		return ""
	}
	return fmt.Sprintf("%s is skipped: genesis was at %s, and %s", q.Label, genesis.In(q.Rotation.Location()).Format("2006-01-02 15:04 MST"), why)
}

// settled is how long after genesis nothing is prepared, while people register sources and
// adopt rows. Then the drill is due, and as long after it the announcement with preflight's
// look, which looks at the drill too.
const settled = day

const day = 24 * time.Hour

// wallClock returns the instant at which the clocks of a zone show a time of a day: of a
// time that is there twice the first, for a time that is skipped the instant after the gap.
// [time.Date] does not say which it returns. It takes it that clocks are changed once
// within two days.
func wallClock(date time.Time, at time.Duration, zone *time.Location) time.Time {
	y, m, d := date.Date()
	wanted := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Add(at).Unix()
	offset := func(unix int64) int64 {
		_, seconds := time.Unix(unix, 0).In(zone).Zone()
		return int64(seconds)
	}
	const aDay = 26 * 60 * 60 // more than any offset
	before, after := offset(wanted-aDay), offset(wanted+aDay)
	switch {
	case offset(wanted-before) == before:
		return time.Unix(wanted-before, 0).In(zone)
	case offset(wanted-after) == after:
		return time.Unix(wanted-after, 0).In(zone)
	}
	first := wanted - after // in the old offset; wanted-before is in the new one
	seconds := sort.Search(int(after-before), func(i int) bool { return offset(first+int64(i)) != before })
	return time.Unix(first+int64(seconds), 0).In(zone)
}

// starts returns when a rotation that is due at a time may start: from that time, or from
// when the window opens next, until the window shuts.
func (w Window) starts(at time.Time) (from, to time.Time) {
	if w.From == w.To {
		return at, at.Add(longestStart)
	}
	for from = at; ; from = w.opens(from) {
		if w.Open(from) {
			if to = w.shuts(from); to.Sub(from) >= leastStart {
				return from, to
			}
		}
		if from.Sub(at) > 7*day { // a window that is never open so long
			return at, at.Add(longestStart)
		}
	}
}

// span is how long the window is open each day.
func (w Window) span() time.Duration {
	if w.From == w.To {
		return day
	}
	return (w.To - w.From + day) % day
}

// opens is when the window opens next after t.
func (w Window) opens(t time.Time) time.Time { return w.next(t, w.From) }

// shuts is when the window shuts next after t, at most [longestStart] later.
func (w Window) shuts(t time.Time) time.Time {
	to := w.next(t, w.To)
	if last := t.Add(longestStart); last.Before(to) {
		return last
	}
	return to
}

// next is when the clocks show a time of the day next after t.
func (w Window) next(t time.Time, at time.Duration) time.Time {
	local := t.In(w.zone())
	for days := 0; ; days++ {
		if u := wallClock(local.AddDate(0, 0, days), at, w.zone()); u.After(t) {
			return u
		}
	}
}
