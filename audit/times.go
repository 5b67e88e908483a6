package audit

import (
	"cmp"
	"fmt"
	"time"
)

// Who states the time of what: a record and an anchor are dated by who writes them; S3
// dates each version of an object itself (Last-Modified), and nobody can change that
// date. Verification holds these against one another and against its own clock.

// clockSkew is how far two of these clocks may disagree. Functions and S3 have Amazon's
// time, milliseconds apart. An operator's program refuses to run when its machine is
// more than two minutes from AWS (internal/app), so two machines are four minutes apart
// at most.
const clockSkew = 5 * time.Minute

// maxLate is how long after its own time a record may come into the bucket. The outbox
// is published at once and, after a fault, every hour; a week is an outage that no
// bucket has had, and not so long that a forged date would gain by it.
const maxLate = 7 * 24 * time.Hour

// moment is the time of a numbered record or anchor.
type moment struct {
	n  int64
	at time.Time
}

// DefaultMaxTail is how long a record may wait for its anchor before verification says
// unproven: the schedule runs every hour, up to a quarter of an hour late, and may fail
// once.
const DefaultMaxTail = 3 * time.Hour

// checkTime holds the time of a record or an anchor against the verifier's clock,
// against S3's (stored; zero: unknown), and against the latest one before, which it
// moves on. It reports whether the time can be believed. A time that jumps ahead and
// cannot be disproved shows at the next one, which then runs backward.
func (v *verifier) checkTime(key, what string, now moment, stored time.Time, last *moment) bool {
	switch {
	case now.at.After(v.Now.Add(clockSkew)):
		v.find(FutureTime, key, "%s %d is dated %s%s, the verifier's clock shows %s", what, now.n, stamp(now.at), last.before(), stamp(v.Now))
		return false
	case !stored.IsZero() && now.at.After(stored.Add(clockSkew)):
		v.find(FutureTime, key, "%s %d is dated %s%s, S3 stored it at %s", what, now.n, stamp(now.at), last.before(), stamp(stored))
		return false
	case now.at.Before(last.at.Add(-clockSkew)):
		v.find(TimeBackward, key, "%s %d is dated %s%s", what, now.n, stamp(now.at), last.before())
		*last = now // the next one is held against this one: one jump is one finding
		return false
	}
	if now.at.After(last.at) {
		*last = now
	}
	return true
}

// before says what came before, for a finding.
func (m moment) before() string {
	if m.n == 0 {
		return ""
	}
	return fmt.Sprintf(", number %d before it %s", m.n, stamp(m.at))
}

// checkRecordTime checks the time of record seq and returns when it was made, as far as
// that can be believed: the age of the tail and the anchors are held against it. Zero:
// nobody knows.
func (v *verifier) checkRecordTime(key string, seq int64, at, stored time.Time) time.Time {
	if at.Before(stored.Add(-maxLate)) {
		v.find(Backdated, key, "record %d is dated %s%s, S3 stored it at %s, more than %s later",
			seq, stamp(at), v.recordTime.before(), stamp(stored), maxLate)
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

// checkAnchorTime checks the time of an anchor, also against the record that it covers.
func (v *verifier) checkAnchorTime(key string, s Statement, at, stored time.Time) {
	l, _ := v.record(s.Seq) // zero: it cannot be read
	if at.Before(l.at.Add(-clockSkew)) {
		v.find(TimeBackward, key, "anchor %d is dated %s, record %d that it covers %s", s.N, stamp(at), s.Seq, stamp(l.at))
		return
	}
	v.checkTime(key, "anchor", moment{s.N, at}, stored, &v.anchorTime)
}

// oldestWaiting is when the oldest record was made that no anchor covers: at the latest
// when any record after it was, so that one odd date does not make the tail young. Zero:
// no record waits.
func (v *verifier) oldestWaiting() time.Time {
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

// succeeds reports whether v took over from old, which ends: it began no earlier, and
// goes on then.
func (v validity) succeeds(old validity) bool {
	return (v.to.IsZero() || v.to.After(old.to)) && !v.from.Before(old.from)
}

// used are the validities of the keys or logs of earlier anchors, each with the first
// anchor that has it.
type used map[validity]int64

// successor is the first anchor with a successor of old; 0: none.
func (u used) successor(old validity) (first int64) {
	for v, n := range u {
		if v.succeeds(old) {
			first = min(n, cmp.Or(first, n))
		}
	}
	return first
}

func (u used) add(n int64, v validity) {
	if u[v] == 0 {
		u[v] = n
	}
}

// checkEnd finds an anchor that was made with a key or in a log (what) after its end and
// dated back before it: S3 stored the anchor later, or an earlier anchor was made with
// the successor.
func (v *verifier) checkEnd(key, what string, is validity, stored time.Time) {
	kind, earlier := SupersededKey, v.keysUsed
	if what == "log" {
		kind, earlier = SupersededLog, v.logsUsed
	}
	n := earlier.successor(is)
	switch {
	case is.to.IsZero():
	case !stored.Before(is.to.Add(clockSkew)):
		v.find(Backdated, key, "S3 stored it at %s, its %s was valid until %s", stamp(stored), what, stamp(is.to))
	case n > 0:
		v.find(kind, key, "its %s is valid until %s, anchor %d before it has the successor", what, stamp(is.to), n)
	}
}
