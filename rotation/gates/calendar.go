package gates

import (
	"fmt"
	"sort"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// The calendar of the scheduled rotations. The functions compute it themselves, because
// EventBridge Scheduler does not run a cron expression at a local time that a daylight-saving
// change skips (EventBridge Scheduler user guide, "Daylight saving time").
const (
	noticeDays      = 7                // days of notice of a rotation, unless the deployment requires more
	noticeMargin    = 1                // days in which a failed announcement is repeated
	drillDays       = 14               // days before the rotation at which the drill is due
	SecondDrillDays = 7                // days before the rotation from which a failed drill is repeated once
	drillEnds       = 24 * time.Hour   // before the rotation; no drill starts later
	longestStart    = 12 * time.Hour   // span in which a rotation may start, if the window is longer
	LeastStart      = 30 * time.Minute // two ticks of the schedule
)

// Quarter is the scheduled rotation of one quarter and what comes before it.
type Quarter struct {
	Label    string    `json:"label"`
	Rotation time.Time `json:"rotation"` // when it is due
	Closes   time.Time `json:"closes"`   // until when it may start
	Announce time.Time `json:"announce"` // when customers are told, and preflight looks ahead
	Drill    time.Time `json:"drill"`    // when the failure drill is due, unless the last one is fresh until Closes
}

// QuarterLabel returns the label of the rotation of the quarter in which t lies, in the
// deployment's zone.
func (c Rules) QuarterLabel(t time.Time) string { return kek.QuarterLabel(t.In(c.Window.Location())) }

// Quarters lists the scheduled rotations around a time: those of the quarter before, of this
// quarter and of the next two. The first of them is over. hour is the local hour at which
// they are due on the first Sunday of the quarter.
func (c Rules) Quarters(now time.Time, hour int) []Quarter {
	local := now.In(c.Window.Location())
	first := int(local.Month()-1)/3*3 + 1 - 3
	var out []Quarter
	for i := range 4 {
		out = append(out, c.quarterOf(local.Year(), time.Month(first+3*i), hour))
	}
	return out
}

// quarterOf computes the rotation of the quarter that begins in a month, which may lie
// outside of January to December. A rotation is due at the hour on the first Sunday or, if
// the window is closed then or closes within [LeastStart], when the window opens next.
func (c Rules) quarterOf(year int, month time.Month, hour int) Quarter {
	begin := time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	sunday := begin.AddDate(0, 0, (7-int(begin.Weekday()))%7)
	at := func(daysBefore int) time.Time {
		return wallClock(sunday.AddDate(0, 0, -daysBefore), time.Duration(hour)*time.Hour, c.Window.Location())
	}
	q := Quarter{Label: kek.QuarterLabel(begin), Announce: at(max(noticeDays, c.AnnounceDays) + noticeMargin), Drill: at(drillDays)}
	q.Rotation, q.Closes = c.Window.startSpan(at(0))
	if fresh := q.Closes.Add(-time.Duration(c.DrillFreshDays)*day + time.Hour); c.DrillFreshDays > 0 && q.Drill.Before(fresh) {
		q.Drill = fresh // a drill that passed earlier would not count any more
	}
	return q
}

// LastDrill returns until when a drill may start, so that it is over when the rotation is
// due.
func (q Quarter) LastDrill() time.Time {
	return q.Rotation.Add(-min(drillEnds, q.Rotation.Sub(q.Drill)/2))
}

// LastNotice returns until when an announcement is in time.
func (c Rules) LastNotice(q Quarter) time.Time {
	return q.Rotation.Add(-time.Duration(c.AnnounceDays)*day + announceSlack)
}

// Late says why a deployment that had its genesis at a moment cannot prepare the rotation of
// a quarter in time; "" if it can.
func (c Rules) Late(q Quarter, genesis time.Time) string {
	firstDay := genesis.UTC().Truncate(day).Add(day) // the first day that can have all of its canaries
	wanted := q.Rotation.UTC().Truncate(day).AddDate(0, 0, -c.HealthDays)
	var why string
	switch prepared := genesis.Add(SettledAfter + SettledAfter); {
	case q.Rotation.Before(genesis):
		why = "it was due before"
	case c.AnnounceDays > 0 && !prepared.Add(announceSlack).Before(c.LastNotice(q)):
		why = fmt.Sprintf("customers must be told %d days ahead (AnnounceDays)", c.AnnounceDays)
	case c.HealthDays > 0 && firstDay.After(wanted):
		why = fmt.Sprintf("the canary must be green for %d whole days (HealthDays)", c.HealthDays)
	case c.DrillFreshDays > 0 && !prepared.Before(q.LastDrill()):
		why = "the drill must pass before (DrillFreshDays)"
	default:
		return ""
	}
	return fmt.Sprintf("%s is skipped: genesis was at %s, and %s", q.Label, genesis.In(q.Rotation.Location()).Format("2006-01-02 15:04 MST"), why)
}

// SettledAfter is how long after genesis nothing is prepared, while people register sources and
// adopt rows. Then the drill is due, and as long after it the announcement with preflight's
// look, which looks at the drill too.
const SettledAfter = day

const day = 24 * time.Hour

// wallClock returns the instant at which the clocks of a zone show a time of a day. If the
// time occurs twice it returns the first; if it is skipped, the instant after the gap.
// [time.Date] does not specify which it returns. It assumes at most one change of the clocks
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

// startSpan returns when a rotation that is due at a time may start: from that time, or from
// when the window opens next, until the window closes.
func (w Window) startSpan(at time.Time) (from, to time.Time) {
	if w.From == w.To {
		return at, at.Add(longestStart)
	}
	for from = at; ; from = w.opensAfter(from) {
		if w.Open(from) {
			if to = w.shutsAfter(from); to.Sub(from) >= LeastStart {
				return from, to
			}
		}
		if from.Sub(at) > 7*day { // the window is never open long enough
			return at, at.Add(longestStart)
		}
	}
}

// OpenSpan returns how long the window is open each day.
func (w Window) OpenSpan() time.Duration {
	if w.From == w.To {
		return day
	}
	return (w.To - w.From + day) % day
}

// opensAfter returns when the window opens next after t.
func (w Window) opensAfter(t time.Time) time.Time { return w.nextTime(t, w.From) }

// shutsAfter returns when the window closes next after t, at most [longestStart] later.
func (w Window) shutsAfter(t time.Time) time.Time {
	to := w.nextTime(t, w.To)
	if last := t.Add(longestStart); last.Before(to) {
		return last
	}
	return to
}

// nextTime returns when the clocks next show a time of the day after t.
func (w Window) nextTime(t time.Time, at time.Duration) time.Time {
	local := t.In(w.Location())
	for days := 0; ; days++ {
		if u := wallClock(local.AddDate(0, 0, days), at, w.Location()); u.After(t) {
			return u
		}
	}
}
