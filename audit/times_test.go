package audit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// minute is the time of a record of [audittest.New], by its number.
func minute(n int) time.Time {
	return time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Minute)
}

// chainOf is a bucket with records that have the given times, stored when they were made
// or, if stored is not nil, then.
func chainOf(t *testing.T, times []time.Time, stored func(n int) time.Time) *audittest.Bucket {
	t.Helper()
	b, head := &audittest.Bucket{}, audit.Genesis(audittest.Chain)
	for n, at := range times {
		e, err := audit.Next(audittest.Chain, head, at, audit.Event{ID: fmt.Sprint(n)})
		if err != nil {
			t.Fatal(err)
		}
		b.Clock = at
		if stored != nil {
			b.Clock = stored(n)
		}
		lock := audit.Lock{Mode: audit.Compliance, Until: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
		b.Put(record(int64(n)+1), e.Bytes, lock)
		head = e.Head()
	}
	return b
}

// found are the kinds and the numbers of the records in the findings of time.
func found(r audit.Report) (out []string) {
	for _, f := range r.Findings {
		if f.Kind != audit.NotAnchored && f.Kind != audit.TailTooOld {
			out = append(out, fmt.Sprintf("%s %c%c", f.Kind, f.Object[len(f.Object)-7], f.Object[len(f.Object)-6]))
		}
	}
	return out
}

// TestRecordTimes: clocks may disagree by five minutes, whatever they are held against,
// and one jump is one finding.
func TestRecordTimes(t *testing.T) {
	const ms = time.Millisecond
	unknown := func(int) time.Time { return time.Time{} }
	storedAt := func(at time.Time) func(int) time.Time { return func(int) time.Time { return at } }
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		times  []time.Time
		stored func(int) time.Time
		want   []string
	}{
		"forward":                      {times: []time.Time{minute(1), minute(2), minute(3)}},
		"the same":                     {times: []time.Time{minute(1), minute(1)}},
		"five minutes back":            {times: []time.Time{minute(6), minute(1)}},
		"more":                         {times: []time.Time{minute(6), minute(1).Add(-ms)}, want: []string{"time_backward 02"}},
		"back step by step":            {times: []time.Time{minute(9), minute(5), minute(1)}, want: []string{"time_backward 03"}},
		"back, and then on":            {times: []time.Time{minute(60), minute(1), minute(2), minute(3)}, want: []string{"time_backward 02"}},
		"ahead, and then back":         {times: []time.Time{minute(1), minute(70), minute(2), minute(3)}, want: []string{"time_backward 03"}},
		"back twice":                   {times: []time.Time{minute(60), minute(30), minute(1)}, want: []string{"time_backward 02", "time_backward 03"}},
		"five minutes after now":       {times: []time.Time{minute(105)}, stored: unknown},
		"more after now":               {times: []time.Time{minute(105).Add(ms)}, stored: unknown, want: []string{"future_time 01"}},
		"after now, and then not":      {times: []time.Time{minute(1), minute(999), minute(2)}, stored: unknown, want: []string{"future_time 02"}},
		"five minutes after stored":    {times: []time.Time{minute(15)}, stored: storedAt(minute(10))},
		"more after stored":            {times: []time.Time{minute(15).Add(ms)}, stored: storedAt(minute(10)), want: []string{"future_time 01"}},
		"stored a week after":          {times: []time.Time{minute(10).Add(-7 * day)}, stored: storedAt(minute(10))},
		"stored more after":            {times: []time.Time{minute(10).Add(-7*day - ms)}, stored: storedAt(minute(10)), want: []string{"backdated 01"}},
		"dated back, and then not":     {times: []time.Time{minute(1).Add(-8 * day), minute(2)}, stored: storedAt(minute(2)), want: []string{"backdated 01"}},
		"dated back, in the middle":    {times: []time.Time{minute(10), minute(1).Add(-8 * day), minute(11)}, stored: storedAt(minute(11)), want: []string{"backdated 02"}},
		"dated back, and no one knows": {times: []time.Time{minute(1).Add(-8 * day)}, stored: unknown},
	} {
		p := audittest.New(t).Policy
		p.Now = minute(100)
		p.MaxTail, p.Retention = 100*365*day, 0
		if got := found(verify(t, chainOf(t, c.times, c.stored), p)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestTimesNamed: a finding names the times on both sides of a jump.
func TestTimesNamed(t *testing.T) {
	p := audittest.New(t).Policy
	p.Retention = 0
	late := func(n int) time.Time { return minute(7 - n) }
	for want, b := range map[string]*audittest.Bucket{
		"record 2 is dated 2026-04-01T02:01:00.000Z, number 1 before it 2026-04-01T02:07:00.000Z":                                                                     chainOf(t, []time.Time{minute(7), minute(1)}, nil),
		"record 1 is dated 2099-01-01T00:00:00.000Z, the verifier's clock shows 2026-04-01T02:11:00.000Z":                                                             chainOf(t, []time.Time{time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}, nil),
		"record 2 is dated 2026-04-01T02:13:00.000Z, number 1 before it 2026-04-01T02:07:00.000Z, S3 stored it at 2026-04-01T02:06:00.000Z":                           chainOf(t, []time.Time{minute(7), minute(13)}, late),
		"record 2 is dated 1990-01-01T00:00:00.000Z, number 1 before it 2026-04-01T02:07:00.000Z, S3 stored it at 2026-04-01T02:06:00.000Z, more than 168h0m0s later": chainOf(t, []time.Time{minute(7), time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)}, late),
	} {
		r := verify(t, b, p)
		if !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Detail == want }) {
			t.Errorf("%v, want %s", r.Findings, want)
		}
	}
}

// TestLockCountsFromStored: a record under an old date does not get by with a lock that
// has ended: the retention counts from when S3 stored it.
func TestLockCountsFromStored(t *testing.T) {
	old := time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	b := chainOf(t, []time.Time{old}, func(int) time.Time { return minute(1) })
	p := audittest.New(t).Policy
	p.Retention = 365 * 24 * time.Hour
	b.Relock(record(1), audit.Lock{Mode: audit.Compliance, Until: old.Add(p.Retention)})
	r := verify(t, b, p)
	audittest.MustFind(t, r, audit.Backdated, record(1))
	audittest.MustFind(t, r, audit.ShortRetention, record(1))
	for short, found := range map[time.Duration]bool{0: false, 5 * time.Minute: false, 5*time.Minute + time.Millisecond: true} {
		b.Relock(record(1), audit.Lock{Mode: audit.Compliance, Until: minute(1).Add(p.Retention - short)})
		r := verify(t, b, p)
		if got := strings.Contains(fmt.Sprint(r.Findings), string(audit.ShortRetention)); got != found {
			t.Errorf("%s too short: %v", short, r.Findings)
		}
	}
}

// TestTailOfOddDates: no date of one record makes the tail young.
func TestTailOfOddDates(t *testing.T) {
	years := 5 * 365 * 24 * time.Hour
	far := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	unknown := func(int) time.Time { return time.Time{} }
	for name, c := range map[string]struct {
		times  []time.Time
		stored func(int) time.Time
		want   time.Time // of the oldest
	}{
		"2099, then others":                  {[]time.Time{far, minute(2), minute(3)}, unknown, minute(2)},
		"2099 between others":                {[]time.Time{minute(2), far, minute(3)}, unknown, minute(2)},
		"2099, by S3 not":                    {[]time.Time{far}, func(int) time.Time { return minute(4) }, minute(4)},
		"2099 at the end":                    {[]time.Time{minute(2), far}, unknown, minute(2)},
		"a date that the clock has passed":   {[]time.Time{minute(2).Add(years), minute(3)}, unknown, minute(3)},
		"an honest date":                     {[]time.Time{minute(2)}, func(int) time.Time { return minute(4) }, minute(2)},
		"honest dates":                       {[]time.Time{minute(2), minute(3)}, unknown, minute(2)},
		"dated back, by S3 not":              {[]time.Time{minute(2).Add(-years)}, func(int) time.Time { return minute(4) }, minute(4)},
		"back after a time that has not yet": {[]time.Time{minute(9), minute(1)}, unknown, minute(1)},
		"back, by S3 not":                    {[]time.Time{minute(9), minute(1)}, func(int) time.Time { return minute(9) }, minute(9)},
	} {
		p := audittest.New(t).Policy
		p.Now, p.Retention = minute(0).Add(years), 0
		r := verify(t, chainOf(t, c.times, c.stored), p)
		if want := p.Now.Sub(c.want); r.TailAge != want {
			t.Errorf("%s: the tail is %s old, want %s: %v", name, r.TailAge, want, r.Findings)
		}
	}
	// A jump at the first record that waits, which the next anchor does not cover.
	w := audittest.New(t)
	head := w.Entries[8].Head()
	for n := range 40 {
		at := minute(10 + n)
		if n == 0 {
			at = far
		}
		e, err := audit.Next(audittest.Chain, head, at, audit.Event{ID: fmt.Sprint(n)})
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Clock = time.Time{}
		if seq := e.Record.Seq; seq == 10 {
			w.Bucket.Replace(record(seq), e.Bytes)
		} else {
			w.Bucket.Put(record(seq), e.Bytes, audittest.Lock(at))
		}
		head = e.Head()
	}
	w.Bucket.Redate(record(10), time.Time{})
	w.Policy.Now = minute(0).Add(years)
	r := verify(t, w.Bucket, w.Policy)
	audittest.MustFind(t, r, audit.FutureTime, record(10))
	audittest.MustFind(t, r, audit.TailTooOld, record(10))
	if want := years - 9*time.Minute; r.TailAge != want { // it follows record 9
		t.Errorf("the tail is %s old, want %s", r.TailAge, want)
	}
}

// anchored is the world with an anchor 3 of record 9 that has other times.
func anchored(t *testing.T, claimed, stored time.Time) *audittest.World {
	t.Helper()
	w := audittest.New(t)
	w.Bucket.Remove(anchor(3))
	w.Anchors = w.Anchors[:2]
	s := audit.NewStatement(audittest.Chain, 3, audittest.Known(t, w.Anchors[1]).Digest, w.Entries[8].Head(), claimed)
	signed := w.Key.Statement(t, s)
	a := w.Prove(signed, w.Log.Submit(t, signed))
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.Anchors = append(w.Anchors, a)
	w.Bucket.Clock = stored
	w.Bucket.Put(anchor(3), b, audittest.Lock(minute(300)))
	w.Policy.Now = minute(200)
	return w
}

// TestAnchorTimes: an anchor is as old as the record that it covers or younger, as the
// anchor before, and as S3 and the verifier have it. It may wait for its log for long.
func TestAnchorTimes(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		claimed, stored time.Time
		detail          string
	}{
		"five minutes before the record": {minute(4), minute(9), ""},
		"more": {
			minute(4).Add(-ms), minute(9), "anchor 3 is dated 2026-04-01T02:03:59.999Z, record 9 that it covers 2026-04-01T02:09:00.000Z",
		},
		"before the record and the anchor before": {
			minute(0), minute(9), "anchor 3 is dated 2026-04-01T02:00:00.000Z, record 9 that it covers 2026-04-01T02:09:00.000Z",
		},
		"five minutes after stored": {minute(15), minute(10), ""},
		"more after stored": {
			minute(15).Add(ms), minute(10), "anchor 3 is dated 2026-04-01T02:15:00.001Z, number 2 before it 2026-04-01T02:06:00.000Z, S3 stored it at 2026-04-01T02:10:00.000Z",
		},
		"five minutes after now": {minute(205), time.Time{}, ""},
		"more after now": {
			minute(205).Add(ms), time.Time{}, "anchor 3 is dated 2026-04-01T05:25:00.001Z, number 2 before it 2026-04-01T02:06:00.000Z, the verifier's clock shows 2026-04-01T05:20:00.000Z",
		},
		"stored hours after": {minute(9), minute(199), ""},
	} {
		w := anchored(t, c.claimed, c.stored)
		r := verify(t, w.Bucket, w.Policy)
		switch {
		case c.detail == "" && (r.Result != audit.Green || r.Anchors != 3):
			t.Errorf("%s: %s %v", name, r, r.Findings)
		case c.detail != "" && (len(r.Findings) != 1 || r.Findings[0].Detail != c.detail || r.Anchors != 2):
			t.Errorf("%s: %v, want %s", name, r.Findings, c.detail)
		}
	}
}

// TestAnchorsRunBackward: an anchor is held against the latest anchor before it.
func TestAnchorsRunBackward(t *testing.T) {
	for name, c := range map[string]struct {
		fourth time.Time
		detail string
	}{
		"five minutes": {minute(55), ""},
		"more":         {minute(55).Add(-time.Millisecond), "anchor 4 is dated 2026-04-01T02:54:59.999Z, number 3 before it 2026-04-01T03:00:00.000Z"},
	} {
		w := anchored(t, minute(60), time.Time{})
		w.Bucket.Clock = time.Time{}
		s := audit.NewStatement(audittest.Chain, 4, audittest.Known(t, w.Anchors[2]).Digest, w.Entries[9].Head(), c.fourth)
		signed := w.Key.Statement(t, s)
		b, err := w.Prove(signed, w.Log.Submit(t, signed)).Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Put(anchor(4), b, audittest.Lock(minute(300)))
		r := verify(t, w.Bucket, w.Policy)
		if c.detail == "" && r.Result != audit.Green || c.detail != "" && (len(r.Findings) != 1 || r.Findings[0].Detail != c.detail) {
			t.Errorf("%s: %v", name, r.Findings)
		}
	}
}

// TestForgedAnchorHasNoTime: the date in a statement that nobody signed is not held
// against later anchors.
func TestForgedAnchorHasNoTime(t *testing.T) {
	w := audittest.New(t)
	a := w.Anchors[1]
	a.Signed.Statement.Time = "2026-04-01T02:15:00.000Z"
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.Bucket.Replace(anchor(2), b)
	for _, f := range verify(t, w.Bucket, w.Policy).Findings {
		if f.Kind == audit.TimeBackward || f.Kind == audit.FutureTime {
			t.Error(f)
		}
	}
}

// TestEndOfKeyAndLog: S3's clock shows what was dated back before the end of a key or a
// log, with five minutes for the difference of clocks.
func TestEndOfKeyAndLog(t *testing.T) {
	end := minute(20)
	for name, c := range map[string]struct {
		stored time.Time
		found  bool
	}{
		"just in time":  {end.Add(5*time.Minute - time.Second), false},
		"too late":      {end.Add(5 * time.Minute), true},
		"nobody knows":  {time.Time{}, false},
		"before it all": {minute(19), false},
	} {
		for _, what := range []string{"key", "log"} {
			w := anchored(t, minute(19), c.stored)
			if what == "key" {
				w.Policy.Trust.AnchorKeys[0].To = end
			} else {
				w.Policy.Trust.Logs[0].To = end
			}
			r := verify(t, w.Bucket, w.Policy)
			if !c.found && r.Result != audit.Green {
				t.Errorf("%s, %s: %v", what, name, r.Findings)
			}
			want := fmt.Sprintf("S3 stored it at 2026-04-01T02:25:00.000Z, its %s was valid until 2026-04-01T02:20:00.000Z", what)
			if c.found && (len(r.Findings) != 1 || r.Findings[0].Kind != audit.Backdated || r.Findings[0].Detail != want) {
				t.Errorf("%s, %s: %v, want %s", what, name, r.Findings, want)
			}
		}
	}
}

// TestBeginOfLog: a statement may wait for a log that begins later, and a log holds
// nothing that was stored before it began.
func TestBeginOfLog(t *testing.T) {
	for name, c := range map[string]struct {
		from, stored time.Time
		found        bool
	}{
		"waited for it":          {minute(100), minute(120), false},
		"five minutes before":    {minute(105), minute(100), false},
		"more":                   {minute(105).Add(time.Second), minute(100), true},
		"waited, who knows":      {minute(100), time.Time{}, true},
		"begun at the statement": {minute(24), time.Time{}, false},
	} {
		w := anchored(t, minute(19), c.stored)
		successor := rekortest.Named(t, "successor.test")
		trust := successor.Trust()
		trust.From = c.from
		w.Policy.Trust.Logs = append(w.Policy.Trust.Logs, trust)
		a := w.Prove(w.Anchors[2].Signed, successor.Submit(t, w.Anchors[2].Signed))
		b, err := a.Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.Bucket.Replace(anchor(3), b)
		r := verify(t, w.Bucket, w.Policy)
		if c.found != (r.Result != audit.Green) || c.found && (r.Result != audit.Unproven || r.Findings[0].Kind != audit.LogUnknown) {
			t.Errorf("%s: %s %v", name, r, r.Findings)
		}
	}
}

// TestSuccessors: who began no earlier and is valid for longer is the successor. Others
// may take turns: anchors 1, 2 and 4 are of the old one, anchor 3 of the new one.
func TestSuccessors(t *testing.T) {
	for name, c := range map[string]struct {
		old, from, to time.Time // the end of the old one; the new one
		found         bool
	}{
		"neither ends":             {time.Time{}, minute(1), time.Time{}, false},
		"both end at once":         {minute(500), minute(1), minute(500), false},
		"the new one does not end": {minute(500), minute(1), time.Time{}, true},
		"the new one ends later":   {minute(500), minute(1), minute(501), true},
		"both begin at once":       {minute(500), minute(0), time.Time{}, true},
		"the new one is given up":  {time.Time{}, minute(1), minute(500), false},
		"the new one ends first":   {minute(501), minute(1), minute(500), false},
		"the new one is the older": {minute(500), minute(-1), time.Time{}, false},
	} {
		for _, what := range []string{"key", "log"} {
			w := audittest.New(t)
			w.Bucket.Remove(anchor(3))
			w.Anchors = w.Anchors[:2]
			w.Policy.Now = minute(200)
			log, key := w.Log, w.Key
			var kind audit.Kind
			other := rekortest.NewKey(t)
			successor := rekortest.Named(t, "successor.test")
			if what == "key" {
				kind = audit.SupersededKey
				w.Policy.Trust.AnchorKeys[0].From, w.Policy.Trust.AnchorKeys[0].To = minute(0), c.old
				w.Policy.Trust.AnchorKeys = append(w.Policy.Trust.AnchorKeys, audit.PinnedKey{Key: other.DER, From: c.from, To: c.to})
				w.Key = other
			} else {
				kind = audit.SupersededLog
				w.Policy.Trust.Logs[0].From, w.Policy.Trust.Logs[0].To = minute(0), c.old
				trust := successor.Trust()
				trust.From, trust.To = c.from, c.to
				w.Policy.Trust.Logs = append(w.Policy.Trust.Logs, trust)
				w.Log = successor
			}
			put(w, w.Entries[8].Head(), nil)
			w.Log, w.Key = log, key
			put(w, w.Entries[9].Head(), nil)
			r := verify(t, w.Bucket, w.Policy)
			if !c.found && r.Result != audit.Green {
				t.Errorf("%s, %s: %v", what, name, r.Findings)
			}
			if c.found && (len(r.Findings) != 1 || r.Findings[0].Kind != kind || r.Findings[0].Object != anchor(4) || !strings.Contains(r.Findings[0].Detail, "anchor 3 before it")) {
				t.Errorf("%s, %s: %v", what, name, r.Findings)
			}
		}
	}
}

// TestSuccessorSignsFirst: the first anchor of a chain can be under the successor.
func TestSuccessorSignsFirst(t *testing.T) {
	w := audittest.New(t)
	w.Bucket.Remove(anchor(1), anchor(2), anchor(3))
	w.Anchors = nil
	old, successor := w.Key, rekortest.NewKey(t)
	w.Policy.Trust.AnchorKeys[0].To = minute(500)
	w.Policy.Trust.AnchorKeys = append(w.Policy.Trust.AnchorKeys, audit.PinnedKey{Key: successor.DER, From: minute(0)})
	w.Key = successor
	put(w, w.Entries[7].Head(), nil)
	w.Key = old
	put(w, w.Entries[8].Head(), nil)
	r := verify(t, w.Bucket, w.Policy)
	if len(r.Findings) != 1 || r.Findings[0].Kind != audit.SupersededKey || r.Findings[0].Object != anchor(2) {
		t.Errorf("%v", r.Findings)
	}
}

// TestFirstSuccessor: of all anchors with a successor the first is named, however many
// there are.
func TestFirstSuccessor(t *testing.T) {
	w := audittest.New(t)
	w.Policy.Now = minute(200)
	w.Bucket.Remove(anchor(2), anchor(3))
	w.Anchors = w.Anchors[:1]
	old := w.Key
	w.Policy.Trust.AnchorKeys[0].To = minute(500)
	for n := range 4 { // anchors 2 to 5, the second of each of two successors
		if n%2 == 0 {
			w.Key = rekortest.NewKey(t)
			w.Policy.Trust.AnchorKeys = append(w.Policy.Trust.AnchorKeys, audit.PinnedKey{Key: w.Key.DER, From: minute(n), To: minute(600 + n)})
		}
		put(w, w.Entries[7].Head(), nil)
	}
	w.Key = old
	put(w, w.Entries[9].Head(), nil)
	want := []audit.Finding{{
		Kind: audit.SupersededKey, Object: anchor(6), Detail: "its key is valid until 2026-04-01T10:20:00.000Z, anchor 2 before it has the successor",
	}}
	for range 20 { // the order must not be that of a map
		if d := cmp.Diff(want, verify(t, w.Bucket, w.Policy).Findings); d != "" {
			t.Fatal(d)
		}
	}
}
