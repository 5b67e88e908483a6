package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// machine is statemachine.asl.json in Go, without JSON: TestMachineIsTheShippedOne
// holds it to the definition.
type machine struct {
	r         *run
	id        string
	execution string
	in        rotation.ExecutionInput
	state     string
	tries     int
	attempt   int
	halts     int
	mode      string
	failure   journal.Kind
	rewrap    []rotation.Segment // that the map Rewrap begins with
	segments  []rotation.Segment // of the map that runs
	segment   int                // of them, that is worked on
	trail     []string
}

// The states in which an execution has ended.
const (
	refused    = "Refused"
	rolledBack = "RolledBack"
	completed  = "Completed"
	halted     = "Halted"
	superseded = "Superseded"
)

const maxHalts = 4

func newMachine(r *run, id string, in rotation.ExecutionInput) *machine {
	return &machine{r: r, id: id, execution: id, in: in, state: "Preflight"}
}

func (m *machine) over() bool {
	switch m.state {
	case refused, rolledBack, completed, halted, superseded:
		return true
	}
	return false
}

// shipped is the state as the state machine has it.
func shipped(name string) flow.State {
	s, ok := flow.FindState(name)
	if !ok {
		panic("the state machine has no state " + name)
	}
	return s
}

// deadlined is a context with a deadline in virtual time. It is never cancelled.
type deadlined struct {
	context.Context
	at time.Time
}

func (d deadlined) Deadline() (time.Time, bool) { return d.at, true }

// answer is what the state machine looks at.
type answer struct {
	done    bool
	paused  bool // by people
	left    []rotation.Segment
	attempt int
	mode    string
	id      string
}

// step makes one invocation and goes to the next state.
func (m *machine) step() {
	state := m.state
	m.trail = append(m.trail, state)
	input := *m // a duplicate has the same
	a, err, orphan := m.r.invoke(m, state, func(ctx context.Context) (answer, error) { return input.call(ctx, state) })
	if orphan || m.r.failed != nil {
		return
	}
	if err != nil {
		m.result(err)
		return
	}
	m.tries = 0
	m.advance(a)
}

// function is the function behind a state, by the name of its folder; a person makes the
// other calls.
func function(name string) string {
	name, _, _ = strings.Cut(name, " (duplicate)")
	if s, ok := flow.FindState(name); ok {
		return s.Folder()
	}
	return "person"
}

// invoke runs a step in a process of its own.
func (r *run) invoke(owner *machine, name string, f func(context.Context) (answer, error)) (a answer, err error, orphan bool) {
	inv := &invocation{name: name, owner: owner, from: r.call}
	if name == "Drain" && r.drain == 0 {
		r.drain = r.call
	}
	inv.again = func() { _, _, _ = r.invoke(nil, name+" (duplicate)", f) }
	outer := r.inv
	r.inv = inv
	before := r.inner
	r.tell("%s", name)
	a, err = f(deadlined{memstore.WithCaller(r.context, function(name)), r.now.Add(r.skew).Add(lambda)})
	r.inv = outer
	if inv.err != nil {
		err = inv.err
	}
	if err != nil {
		r.tell("%s fails: %v", name, err)
	} else if r.failed == nil {
		r.check.look()
		r.check.stored(inv, before == r.inner && owner != nil && owner.concludes(a.done))
	}
	return a, err, inv.orphan
}

// call calls the function behind a state.
func (m *machine) call(ctx context.Context, state string) (answer, error) {
	s, in := m.r.steps, rotation.StepInput{RotationID: m.id}
	switch state {
	case "Preflight":
		p, err := s.Preflight(ctx, rotation.PreflightInput{ExecutionARN: "arn:" + m.execution, ExecutionName: m.execution, Input: m.in})
		return answer{attempt: p.Current.Attempt, mode: p.Mode, id: p.RotationID, left: p.Rewrap.Left}, err
	case "Abandon":
		return m.retire(ctx, rotation.RetireInput{RotationID: m.execution, Action: rotation.ActionAbandon, ExecutionARN: "arn:" + m.execution, Error: string(m.failure)})
	case "Mint":
		_, err := s.Mint(ctx, in)
		return answer{}, err
	case "Census":
		return swept(s.Verify(ctx, rotation.VerifyInput{RotationID: m.id, Census: true}))
	case "Rehearse":
		_, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: m.id, Rehearse: true})
		return answer{}, err
	case "DualUnwrap":
		_, err := s.DualUnwrap(ctx, in)
		return answer{}, err
	case "PreSwitchFailure":
		return m.retire(ctx, rotation.RetireInput{RotationID: m.id, Action: rotation.ActionPreSwitchFailure, Error: string(m.failure)})
	case "Remint":
		return m.retire(ctx, rotation.RetireInput{RotationID: m.id, Action: rotation.ActionRemint, FailedAttempt: m.attempt, Error: string(m.failure)})
	case "Switch":
		_, err := s.Switch(ctx, in)
		return answer{}, err
	case "Drain":
		d, err := s.Drain(ctx, in)
		return answer{done: d.Done}, err
	case "RewrapSegment":
		return swept(s.Rewrap(ctx, rotation.RewrapInput{RotationID: m.id, Source: m.at().Source, Segment: m.at().Segment}))
	case "CensusSegment":
		return swept(s.Verify(ctx, rotation.VerifyInput{RotationID: m.id, Census: true, Source: m.at().Source, Segment: m.at().Segment}))
	case "ConfirmSegment":
		return m.retire(ctx, rotation.RetireInput{RotationID: m.id, Source: m.at().Source, Segment: m.at().Segment})
	case "VerifySegment":
		return swept(s.Verify(ctx, rotation.VerifyInput{RotationID: m.id, Source: m.at().Source, Segment: m.at().Segment}))
	case "RewrapComplete":
		return swept(s.Rewrap(ctx, rotation.RewrapInput{RotationID: m.id, Complete: true}))
	case "Retire":
		return m.retire(ctx, rotation.RetireInput{RotationID: m.id})
	case "Verify":
		return swept(s.Verify(ctx, rotation.VerifyInput{RotationID: m.id}))
	}
	return answer{}, errors.New("no state " + state)
}

// at is the segment that the map works on.
func (m *machine) at() rotation.Segment { return m.segments[m.segment] }

func swept(o rotation.SweepOutput, err error) (answer, error) {
	return answer{done: o.Done, paused: o.Paused, left: o.Left}, err
}

// mapAround returns the map whose child executions begin with a state.
func mapAround(state string) (flow.State, bool) {
	for _, s := range flow.Rotation {
		if s.Type == flow.Map && s.Each[0].Name == state {
			return s, true
		}
	}
	return flow.State{}, false
}

// enterMap goes to the map over segments that are left, whose child executions begin with a
// state.
func (m *machine) enterMap(state string, left []rotation.Segment) {
	m.state = state
	m.segments = left
	m.segment = 0
	m.leaveMap()
}

// leaveMap continues at the task that concludes if the map has no more segments.
func (m *machine) leaveMap() {
	if around, ok := mapAround(m.state); ok && m.segment == len(m.segments) {
		m.state = around.Next
	}
}

func (m *machine) retire(ctx context.Context, in rotation.RetireInput) (answer, error) {
	o, err := m.r.steps.Retire(ctx, in)
	return answer{done: o.Done, paused: o.Paused, left: o.Left, attempt: o.Attempt}, err
}

// concludes reports whether a state's success means that its effect is made. What is
// polled says so itself by done, and work on a segment writes no record.
func (m *machine) concludes(done bool) bool {
	switch m.state {
	case "Census", "Drain", "RewrapComplete", "Retire", "Verify":
		return done
	}
	_, segment := mapAround(m.state)
	return !segment
}

// advance is Next, and the Choice states.
func (m *machine) advance(a answer) {
	switch m.state {
	case "Preflight":
		m.attempt, m.mode, m.id, m.rewrap, m.state = a.attempt, a.mode, a.id, a.left, "Census"
	case "Abandon":
		m.state = refused
	case "Census":
		if m.state = "Mint"; !a.done {
			m.enterMap("CensusSegment", a.left)
		}
	case "Mint":
		m.state = "Rehearse"
	case "Rehearse":
		m.state = "DualUnwrap"
	case "DualUnwrap":
		m.state = "Switch"
	case "PreSwitchFailure":
		m.state = rolledBack
	case "Remint":
		m.attempt, m.state = a.attempt, "Mint"
	case "Switch":
		m.state = "Drain"
	case "Drain":
		if a.done {
			m.enterMap("RewrapSegment", m.rewrap)
			return
		}
		m.r.pass(30 * time.Second)
	case "RewrapSegment", "CensusSegment", "ConfirmSegment", "VerifySegment":
		if a.done {
			m.segment++
		} else if a.paused {
			m.r.pass(shipped(m.state + "Wait").Pause)
		}
		m.leaveMap()
	case "RewrapComplete":
		m.rewrap = a.left
		if m.state = "Retire"; !a.done {
			m.enterMap("RewrapSegment", m.rewrap)
		}
	case "Retire":
		if m.state = "Verify"; !a.done {
			m.enterMap("ConfirmSegment", a.left)
		}
	case "Verify":
		if m.state = completed; !a.done {
			m.enterMap("VerifySegment", a.left)
		}
	}
}

// result is a failure of the state: Retry, else Catch.
func (m *machine) result(err error) {
	if m.over() { // ended while the call was under way
		return
	}
	kind := lambdastep.ErrorKind(err)
	again := kind == journal.Transient || errors.Is(err, errCrashed)
	state := shipped(m.state)
	if again && m.tries < state.Retry.Attempts {
		m.r.pass(min(time.Second<<min(m.tries, 10), state.Retry.Most))
		m.tries++
		return
	}
	if around, ok := mapAround(m.state); ok { // a child execution fails its map, which does not say why
		m.tries, m.state = 0, around.Next
		return
	}
	m.tries, m.failure = 0, kind
	clause, ok := state.CatchOf(kind)
	if !ok {
		panic(fmt.Sprintf("state %s does not catch %s", state.Name, kind))
	}
	if clause.Next == superseded {
		m.state = superseded
		return
	}
	m.r.blocked = m.r.blocked || unaccounted(kind)
	switch clause.Next {
	case "NotifyRefused":
		m.state = refused
	case "RollBackOrRemint":
		if m.state = "PreSwitchFailure"; m.mode == "emergency" {
			m.state = "Remint"
		}
	case "HaltedBeforeSwitchRecord":
		m.halt("Mint") // by way of the census, which an emergency does not wait for
	case "HaltedRecord":
		m.halt(shipped("Halted").Next)
	default:
		m.state = clause.Next
	}
}

// halt pages; the operator redrives an hour later, a bounded number of times.
func (m *machine) halt(next string) {
	m.r.tell("%s halts at %s: %s", m.id, m.state, m.failure)
	if m.halts++; m.halts > maxHalts {
		m.state = halted
		return
	}
	if m.r.lost { // nobody redrives it before the control table is rebuilt
		m.state = halted
		return
	}
	m.state = next // as soon as anybody redrives it
	m.r.alone(m.r.apps.paged)
	m.r.accountForRows()
	m.r.pass(time.Hour)
	m.r.outage = 0
}
