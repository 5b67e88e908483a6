package estimate

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Machine says what an execution of the state machine costs. Package flow counts it over its
// table of states.
type Machine struct {
	Lasts  time.Duration // TimeoutSeconds
	Once   Count         // a rotation with one call of each pass, without any segment
	Drill  Count         // the same of a drill
	Passes map[string]PassCount
}

// Count is a number of state transitions, which are charged, and of events of an execution's
// history, which may have 25,000.
type Count struct {
	Transitions float64
	Events      float64
	Calls       float64 // of functions
}

// PassCount says what a pass adds.
type PassCount struct {
	Enter       Count // once, if segments are left after the first call, which works on all of them alone
	Distributed bool  // each segment is a child execution with a history of its own
	Segment     Count // each segment, in the execution's own history
	Child       Count // each segment with one call, in its child's history
	Again       Count // each further call, where the call is
}

// The limits of Step Functions (developer guide, "Service quotas").
const (
	MaxEvents     = 25000   // of one execution's history
	MaxInputBytes = 262_144 // of a state's input or output, in UTF-8
)

// countMachine counts the transitions and events of the execution.
func (p *Plan) countMachine() {
	p.Transitions, p.Events = p.machine.Once.Transitions, p.machine.Once.Events
	for _, ph := range p.Phases {
		c, ok := p.machine.Passes[ph.Name]
		if !ok || ph.Workers == 0 {
			continue
		}
		rule, _ := p.walk.findPass(ph.Name)
		if !ph.spread { // calls of one function
			p.Transitions += (ph.Calls - 1) * c.Again.Transitions
			p.Events += (ph.Calls - 1) * c.Again.Events
			continue
		}
		again := ph.Calls - ph.segments
		if !rule.Spread { // the calls that conclude before and after
			again -= 2
			p.Transitions += c.Enter.Transitions
			p.Events += c.Enter.Events
		}
		p.Transitions += ph.segments*(c.Segment.Transitions+c.Child.Transitions) + again*c.Again.Transitions
		p.Events += ph.segments * c.Segment.Events
		if c.Distributed {
			p.ChildEvents = max(p.ChildEvents, c.Child.Events+(ph.mostCalls-1)*c.Again.Events)
			continue
		}
		p.Events += ph.segments*c.Child.Events + again*c.Again.Events
	}
}

// Excess is a limit that a rotation would exceed.
type Excess struct {
	Limit  string `json:"limit"`
	Need   string `json:"need"`
	Most   string `json:"most"`
	Change string `json:"change"` // the parameter to change, and how
}

// String returns the excess in one sentence.
func (e Excess) String() string {
	return fmt.Sprintf("%s: it needs %s, and %s is the most; %s", e.Limit, e.Need, e.Most, e.Change)
}

// Bounds are limits that the caller knows. A zero value sets none.
type Bounds struct {
	InputBytes int           // size of the state machine's payload, as preflight makes it
	Until      time.Duration // what is left until the end of the announced window
}

// FindExcesses returns the limits that the rotation would exceed; nil if it can end. Times
// that depend on people and on applications are left out, so that what is refused could not
// end even at best.
func (p Plan) FindExcesses(b Bounds) []Excess {
	var out []Excess
	add := func(limit, need, most, change string) { out = append(out, Excess{limit, need, most, change}) }
	if p.machine.Lasts > 0 && p.Total.Time > p.machine.Lasts {
		add("execution timeout", FormatDays(p.Total.Time), FormatDays(p.machine.Lasts), p.speedUp(p.Total.Time, p.machine.Lasts))
	}
	if b.Until > 0 && p.Total.Time > b.Until {
		add("announced window", FormatDays(p.Total.Time), FormatDays(b.Until), p.speedUp(p.Total.Time, b.Until)+", or announce a longer window")
	}
	if p.Events > MaxEvents {
		add("events of the execution", fmt.Sprintf("%.0f", p.Events), fmt.Sprint(MaxEvents), "lower Segments, or raise KmsRate, so that fewer calls are made")
	}
	if p.ChildEvents > MaxEvents {
		add("events of a child execution", fmt.Sprintf("%.0f", p.ChildEvents), fmt.Sprint(MaxEvents), "raise Segments, so that each has fewer rows")
	}
	if b.InputBytes > MaxInputBytes {
		add("state input", fmt.Sprintf("%d bytes", b.InputBytes), fmt.Sprint(MaxInputBytes), "lower Segments")
	}
	if page, most := p.longestPage(); page > most {
		add("time of one page", FormatDays(page), FormatDays(most), fmt.Sprintf("raise KmsRate, planned at %g, to %.3g or more", p.settings.KMSRate, 1.01*p.settings.KMSRate*page.Seconds()/most.Seconds()))
	}
	return out
}

// longestPage returns how long the pages that a process holds may take, if each row needs KMS,
// and how long they may: a call ends after that, and a pass without a checkpoint begins again.
func (p Plan) longestPage() (page, most time.Duration) {
	if p.settings.KMSRate <= 0 {
		return 0, 1
	}
	for _, rule := range p.walk.Passes {
		f := Functions[rule.Function]
		limit := f.Timeout - min(p.walk.Reserve, f.Timeout/5)
		segments := 1.0
		if !rule.Spread {
			segments, limit = float64(max(1, min(p.walk.SegmentsInFlight, p.settings.Segments))), min(limit, p.walk.Idle)
		}
		for _, src := range p.sources {
			rows := min(src.pageItems(), src.Rows/float64(p.walk.segmentsOf(src, p.settings)))
			calls := 0.0
			switch {
			case rule.Moves:
				calls = min(rows, src.meet(1)) * max(1, p.callsOfKey(src))
			case rule.Proves && p.settings.Deep:
				calls = min(rows, src.meet(1))
			}
			took := seconds(segments * calls / p.settings.processRate())
			if most == 0 || float64(took)*float64(most) > float64(page)*float64(limit) {
				page, most = took, limit
			}
		}
	}
	return page, max(most, 1)
}

// callsOfKey returns the KMS requests that moving one data key takes.
func (p Plan) callsOfKey(src Source) float64 {
	if p.settings.Emergency && !src.Whole {
		return 2
	}
	return 1
}

// speedUp says which parameter makes the longest phase faster, and how much it takes.
func (p Plan) speedUp(need, most time.Duration) string {
	longest := Phase{}
	for _, ph := range p.Phases {
		if ph.Time > longest.Time {
			longest = ph
		}
	}
	factor := need.Seconds() / max(most.Seconds(), 1)
	rule, _ := p.walk.findPass(longest.Name)
	switch {
	case longest.Binds == ByKMSRate:
		return fmt.Sprintf("raise KmsRate, planned at %g, to about %.0f", p.settings.KMSRate, math.Ceil(p.settings.KMSRate*factor))
	case longest.Binds == ByWrites:
		return fmt.Sprintf("raise WriteRate, and the write throughput of the tables, about %.1f times", factor)
	case longest.Binds == ByWaiting:
		return "lower KeySettleSeconds"
	case rule.Spread:
		return fmt.Sprintf("raise RewrapConcurrency from %d to about %.0f, and Segments to no less", p.settings.Concurrency, math.Ceil(float64(p.settings.Concurrency)*factor))
	}
	return fmt.Sprintf("%s takes longest, in one process, by %s: split the sources over several deployments", longest.Name, longest.Binds)
}

// FormatDays writes a time for people: in days and hours from two days on, else in hours and
// minutes, minutes and seconds, or seconds.
func FormatDays(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d/time.Hour%24)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d/time.Minute%60)
	case d >= time.Minute:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d/time.Second%60)
	case d >= 10*time.Second:
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
}
