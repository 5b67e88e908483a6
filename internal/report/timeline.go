package report

import (
	"cmp"
	"encoding/json"
	"time"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// findTitle returns the title of the span that ends with a transition; "" if the event is
// not a transition.
func findTitle(event string) string {
	for _, s := range flow.Rotation {
		if event != "" && s.Event == event {
			return s.Title
		}
	}
	return ""
}

// instants are the titles of records that do not end a phase.
var instants = map[string]string{
	kek.EventRotationResumed: "A person resumes it", kek.EventReadingRestarted: "Rows are read again after a pause",
	kek.EventSourceAdded: "A source joins", kek.EventSourceRemoved: "A source is removed from the registry", kek.EventMarkRemoved: "A writer's mark is removed",
}

// currentTitle returns the title of the state that a rotation is in.
func currentTitle(r kek.Rotation) string {
	s, _ := flow.StateAt(r)
	return s.Title
}

// makeTimeline makes spans of the rotation's records: each transition ends the span that
// the transition before began. A record of any other type is an instant.
func (c *collection) makeTimeline() {
	r := c.report
	last := r.Rotation.StartedAt
	for _, e := range r.Executions {
		if e.StartedAt.Before(last) {
			last = e.StartedAt
		}
	}
	for _, rec := range r.Audit.Records {
		s := Span{Title: findTitle(rec.Type), Event: rec.Type, Step: rec.Step, Actor: rec.Actor, Seq: rec.Seq, From: last, To: rec.Time}
		if s.Title == "" {
			s.Title = cmp.Or(instants[rec.Type], rec.Type)
			s.Instant = true
			s.From = rec.Time
		} else {
			last = rec.Time
		}
		s.Millis = max(0, s.To.Sub(s.From).Milliseconds())
		r.Timeline = append(r.Timeline, s)
	}
	if title := currentTitle(*c.view.Rotation); title != "" {
		end := r.GeneratedAt
		if stopped := r.endTime(); stopped.After(last) { // halted: nothing has worked on it since
			end = stopped
		}
		r.Timeline = append(r.Timeline, Span{Title: title, From: last, To: end, Millis: max(0, end.Sub(last).Milliseconds()), Open: true})
	}
}

// setCryptoperiod adds how long the old KEK was used.
func (c *collection) setCryptoperiod() {
	r := c.report
	k, ok := r.oldKEK()
	if !ok {
		return
	}
	p := Cryptoperiod{KEK: k.ID, Genesis: c.isGenesis(k.ID), CreatedAt: k.CreatedAt, WrapFrom: k.SwitchedAt, UnwrapTo: k.RetiredAt}
	p.WrapTo = r.Rotation.SwitchedAt
	if rec, ok := r.lastRecord(kek.EventOldKEKSealed); ok {
		p.SealedAt = rec.Time
	}
	p.WrapMillis = spanMillis(p.WrapFrom, p.SealedAt, r.GeneratedAt)
	p.TotalMillis = spanMillis(p.WrapFrom, p.UnwrapTo, r.GeneratedAt)
	r.Cryptoperiod = p
}

// isGenesis reports whether a KEK was registered rather than minted.
func (c *collection) isGenesis(id kek.ID) bool {
	for _, k := range c.keks {
		if k.ID == id {
			return k.RotationID == ""
		}
	}
	return false
}

// spanMillis returns the length of a span in milliseconds; a zero end means until now.
func spanMillis(from, to, now time.Time) int64 {
	if to.IsZero() {
		to = now
	}
	return max(0, to.Sub(from).Milliseconds())
}

// collectSeries takes the drain curve and the throughput from the functions' answers in
// the executions.
func (c *collection) collectSeries() {
	r := c.report
	tallies := map[rotation.Segment]rotation.Tally{}
	for _, e := range r.Executions {
		for _, v := range e.Visits {
			switch v.State {
			case "Drain":
				c.addDrainPoll(v)
			case "RewrapSegment":
				c.addProgress(v, tallies)
			}
		}
	}
	if len(r.Executions) > 0 && len(r.Drain) == 0 && !r.Rotation.SwitchedAt.IsZero() {
		c.addNote("The execution history shows no look at the leases: there is no drain curve.")
	}
}

// addDrainPoll adds one read of the leases. Reads after the seal are repetitions.
func (c *collection) addDrainPoll(v Visit) {
	var out rotation.DrainOutput
	polls := c.report.Drain
	if json.Unmarshal(v.answer, &out) != nil || len(polls) > 0 && polls[len(polls)-1].Sealed {
		return
	}
	c.report.Drain = append(polls, DrainPoll{At: v.answered, Leases: out.Leases, Refs: out.Refs, Sealed: out.Done})
}

// addProgress adds one answer of rewrap, which has its segment's tally so far. A segment
// that is done answers a repeated call without a tally.
func (c *collection) addProgress(v Visit, tallies map[rotation.Segment]rotation.Tally) {
	var at rotation.Segment
	var out rotation.SweepOutput
	if json.Unmarshal(v.input, &at) != nil || json.Unmarshal(v.answer, &out) != nil || out.Tally.Scanned < tallies[at].Scanned {
		return
	}
	tallies[at] = out.Tally
	sum := Progress{At: v.answered}
	for _, t := range tallies {
		sum.Scanned, sum.Rewrapped = sum.Scanned+t.Scanned, sum.Rewrapped+t.Rewrapped
	}
	c.report.Rewrap = append(c.report.Rewrap, sum)
}
