package audit

import (
	"cmp"
	"fmt"
	"time"
)

// The writer dates a record or an anchor. S3 dates each version of an object itself
// (Last-Modified), and nobody can change that date. Verification compares these dates with
// one another and with its own clock.

// clockSkew is how far two of these clocks may differ. Functions and S3 use Amazon's time,
// milliseconds apart. An operator's program refuses to run if its machine is more than two
// minutes from AWS (internal/app), so two machines differ by four minutes at most.
const clockSkew = 5 * time.Minute

// maxLate is how long after its own time a record may be stored in the bucket. The outbox
// is published at once and, after a fault, every hour. A week is longer than any known
// outage of S3, and too short for a forged date to be of use.
const maxLate = 7 * 24 * time.Hour

// moment is the number and the time of a record or an anchor.
type moment struct {
	n  int64
	at time.Time
}

// DefaultMaxTail is how long a record may wait for its anchor before the result is
// [Unproven]: the schedule runs every hour, up to a quarter of an hour late, and may fail
// once.
const DefaultMaxTail = 3 * time.Hour

// checkTime compares the time of a record or an anchor with the verifier's clock, with the
// time at which S3 stored it (stored; zero: unknown), and with last, the latest time
// before, which it updates. It reports whether the time can be believed. A time that jumps
// ahead and cannot be disproved becomes visible at the next one, which then runs backward.
func (v *verifier) checkTime(key, what string, now moment, stored time.Time, last *moment) bool {
	switch {
	case now.at.After(v.Now.Add(clockSkew)):
		v.addFinding(FutureTime, key, "%s %d is dated %s%s, the verifier's clock shows %s", what, now.n, formatTime(now.at), last.describePrevious(), formatTime(v.Now))
		return false
	case !stored.IsZero() && now.at.After(stored.Add(clockSkew)):
		v.addFinding(FutureTime, key, "%s %d is dated %s%s, S3 stored it at %s", what, now.n, formatTime(now.at), last.describePrevious(), formatTime(stored))
		return false
	case now.at.Before(last.at.Add(-clockSkew)):
		v.addFinding(TimeBackward, key, "%s %d is dated %s%s", what, now.n, formatTime(now.at), last.describePrevious())
		*last = now // the next one is compared with this one: one jump is one finding
		return false
	}
	if now.at.After(last.at) {
		*last = now
	}
	return true
}

// describePrevious describes the one before, for a finding; "" if there is none.
func (m moment) describePrevious() string {
	if m.n == 0 {
		return ""
	}
	return fmt.Sprintf(", number %d before it %s", m.n, formatTime(m.at))
}

// checkRecordTime checks the time of record seq and returns the time at which it was made,
// as far as that can be believed; zero if it is not known. The age of the tail and the
// times of anchors are compared with it.
func (v *verifier) checkRecordTime(key string, seq int64, at, stored time.Time) time.Time {
	if at.Before(stored.Add(-maxLate)) {
		v.addFinding(Backdated, key, "record %d is dated %s%s, S3 stored it at %s, more than %s later",
			seq, formatTime(at), v.recordTime.describePrevious(), formatTime(stored), maxLate)
		return stored
	}
	believed := v.recordTime.at // before a jump ahead
	switch {
	case v.checkTime(key, "record", moment{seq, at}, stored, &v.recordTime):
		return at
	case !stored.IsZero():
		return stored
	case believed.After(at):
		return at
	default:
		return believed
	}
}

// checkAnchorTime checks the time of an anchor, and that it is not before the record that
// the anchor covers.
func (v *verifier) checkAnchorTime(key string, s Statement, at, stored time.Time) {
	l, _ := v.findLink(s.Seq) // zero: it cannot be read
	if at.Before(l.at.Add(-clockSkew)) {
		v.addFinding(TimeBackward, key, "anchor %d is dated %s, record %d that it covers %s", s.N, formatTime(at), s.Seq, formatTime(l.at))
		return
	}
	v.checkTime(key, "anchor", moment{s.N, at}, stored, &v.anchorTime)
}

// findOldestWaiting returns the earliest time of the records that no anchor covers; zero
// if there are none. It takes the minimum, so that one wrong date does not make the tail
// look young.
func (v *verifier) findOldestWaiting() time.Time {
	var oldest time.Time
	for _, l := range v.links {
		if l.seq > v.report.Anchored && (oldest.IsZero() || l.at.Before(oldest)) {
			oldest = l.at
		}
	}
	return oldest
}

// validity is when the key or the log of an anchor is valid.
type validity struct {
	from, to time.Time // to: zero if it still is
}

// succeeds reports whether v replaced old, which has an end: v began no earlier, and is
// still valid at that end.
func (v validity) succeeds(old validity) bool {
	return (v.to.IsZero() || v.to.After(old.to)) && !v.from.Before(old.from)
}

// usedValidity has the validities of the keys, or logs, of earlier anchors, each with the
// number of the first anchor that has it.
type usedValidity map[validity]int64

// findSuccessor returns the first anchor with a successor of old; 0 if there is none.
func (u usedValidity) findSuccessor(old validity) (first int64) {
	for v, n := range u {
		if v.succeeds(old) {
			first = min(n, cmp.Or(first, n))
		}
	}
	return first
}

// noteFirst notes that anchor n has the validity v, unless an earlier one has.
func (u usedValidity) noteFirst(n int64, v validity) {
	if u[v] == 0 {
		u[v] = n
	}
}

// checkValidityEnd finds an anchor that was made after the end of its key or log (what)
// and dated before that end: S3 stored it later, or an earlier anchor was made with the
// successor.
func (v *verifier) checkValidityEnd(key, what string, is validity, stored time.Time) {
	kind, earlier := SupersededKey, v.keysUsed
	if what == "log" {
		kind, earlier = SupersededLog, v.logsUsed
	}
	n := earlier.findSuccessor(is)
	switch {
	case is.to.IsZero():
	case !stored.Before(is.to.Add(clockSkew)):
		v.addFinding(Backdated, key, "S3 stored it at %s, its %s was valid until %s", formatTime(stored), what, formatTime(is.to))
	case n > 0:
		v.addFinding(kind, key, "its %s is valid until %s, anchor %d before it has the successor", what, formatTime(is.to), n)
	}
}
