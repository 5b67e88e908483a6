package report

import (
	"cmp"
	"encoding/json"
	"time"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// titleOf names the time that leads to a transition; "" if it is not a transition.
func titleOf(event string) string {
	for _, s := range flow.Rotation {
		if event != "" && s.Event == event {
			return s.Title
		}
	}
	return ""
}

// instants name the records that end no phase.
var instants = map[string]string{
	kek.EventRotationResumed: "A person resumes it", kek.EventReadingRestarted: "Rows are read again after a pause",
	kek.EventSourceAdded: "A source joins", kek.EventSourceRemoved: "A source is removed from the registry", kek.EventMarkRemoved: "A writer's mark is removed",
}

// underWay names what a rotation works on.
func underWay(r kek.Rotation) string {
	s, _ := flow.At(r)
	return s.Title
}

// timeline lays the rotation's records out in time: each transition ends the span
// that the one before began. A record of any other type is an instant.
func (c *collection) timeline() {
	r := c.report
	last := r.Rotation.StartedAt
	for _, e := range r.Executions {
		if e.StartedAt.Before(last) {
			last = e.StartedAt
		}
	}
	for _, rec := range r.Audit.Records {
		s := Span{Title: titleOf(rec.Type), Event: rec.Type, Step: rec.Step, Actor: rec.Actor, Seq: rec.Seq, From: last, To: rec.Time}
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
	if title := underWay(*c.view.Rotation); title != "" {
		end := r.GeneratedAt
		if stopped := r.ended(); stopped.After(last) { // halted: nothing has worked on it since
			end = stopped
		}
		r.Timeline = append(r.Timeline, Span{Title: title, From: last, To: end, Millis: max(0, end.Sub(last).Milliseconds()), Open: true})
	}
}

// cryptoperiod says how long the old KEK was used.
func (c *collection) cryptoperiod() {
	r := c.report
	k, ok := r.old()
	if !ok {
		return
	}
	p := Cryptoperiod{KEK: k.ID, Genesis: c.genesis(k.ID), CreatedAt: k.CreatedAt, WrapFrom: k.SwitchedAt, UnwrapTo: k.RetiredAt}
	p.WrapTo = r.Rotation.SwitchedAt
	if rec, ok := r.record(kek.EventOldKEKSealed); ok {
		p.SealedAt = rec.Time
	}
	p.WrapMillis = span(p.WrapFrom, p.SealedAt, r.GeneratedAt)
	p.TotalMillis = span(p.WrapFrom, p.UnwrapTo, r.GeneratedAt)
	r.Cryptoperiod = p
}

// genesis reports whether a KEK was registered rather than minted.
func (c *collection) genesis(id kek.ID) bool {
	for _, k := range c.keks {
		if k.ID == id {
			return k.RotationID == ""
		}
	}
	return false
}

func span(from, to, now time.Time) int64 {
	if to.IsZero() {
		to = now
	}
	return max(0, to.Sub(from).Milliseconds())
}

// series takes the drain curve and the throughput from what the functions answered
// the executions.
func (c *collection) series() {
	r := c.report
	tallies := map[rotation.Segment]rotation.Tally{}
	for _, e := range r.Executions {
		for _, v := range e.Visits {
			switch v.State {
			case "Drain":
				c.drainPoll(v)
			case "RewrapSegment":
				c.progress(v, tallies)
			}
		}
	}
	if len(r.Executions) > 0 && len(r.Drain) == 0 && !r.Rotation.SwitchedAt.IsZero() {
		c.note("The execution history shows no look at the leases: there is no drain curve.")
	}
}

// drainPoll adds one look at the leases. Looks after the seal are repetitions.
func (c *collection) drainPoll(v Visit) {
	var out rotation.DrainOutput
	polls := c.report.Drain
	if json.Unmarshal(v.answer, &out) != nil || len(polls) > 0 && polls[len(polls)-1].Sealed {
		return
	}
	c.report.Drain = append(polls, DrainPoll{At: v.answered, Leases: out.Leases, Refs: out.Refs, Sealed: out.Done})
}

// progress adds one answer of rewrap: its segment's tally so far. A segment that is
// done answers a repeated call without one.
func (c *collection) progress(v Visit, tallies map[rotation.Segment]rotation.Tally) {
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
