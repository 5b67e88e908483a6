package flow

import (
	"bytes"
	"strings"

	"github.com/matter-ops/kms-rotation/rotation/estimate"
)

// passStates names the states that make each pass over the rows: a map over the segments, or a
// task that is called until the pass is done. The first that the table has counts.
var passStates = map[string][]string{
	estimate.Census: {"CensusRows", "Census"}, estimate.Rewrap: {"Rewrap"}, estimate.Confirm: {"ConfirmRows", "Retire"}, estimate.Verify: {"VerifyRows", "Verify"},
}

// DescribeMachine counts what an execution costs, over the table. Every state that is entered
// is a transition; a distributed map is charged one more for each child (Step Functions
// developer guide, "Transitions").
func DescribeMachine() estimate.Machine {
	m := estimate.Machine{Lasts: Lasts, Passes: map[string]estimate.PassCount{}}
	m.Once = countPath(Rotation, "")
	m.Drill = countPath(Rotation, "DualUnwrap")
	definition, err := Definition()
	distributed := err == nil && bytes.Contains(definition, []byte(`"DISTRIBUTED"`))
	for pass, names := range passStates {
		m.Passes[pass] = countPass(names, distributed)
	}
	return m
}

// countPass counts what a pass adds to a path with one call.
func countPass(names []string, distributed bool) estimate.PassCount {
	var c estimate.PassCount
	for _, name := range names {
		s, ok := FindState(name)
		switch {
		case !ok:
			continue
		case s.Type != Map:
			c.Again = countAgain(Rotation, s)
		case distributed: // a transition for each child, and its own history
			c.Distributed = true
			c.Segment = estimate.Count{Transitions: 1}
			c.Child = countPath(s.Each, "")
			c.Enter = countEntry(s)
			c.Child.Events += 2 // ExecutionStarted, ExecutionSucceeded
			c.Again = countAgain(s.Each, s.Each[0])
		default:
			c.Segment, c.Child = estimate.Count{Events: 2}, countPath(s.Each, "") // MapIterationStarted, MapIterationSucceeded
			c.Again = countAgain(s.Each, s.Each[0])
		}
		return c
	}
	return c
}

// historyEvents is how many events a state adds to the history of its execution, and an
// execution by itself (Step Functions API reference, HistoryEvent).
var historyEvents = map[Type]float64{
	Task:    5, // TaskStateEntered, TaskScheduled, TaskStarted, TaskSucceeded or TaskFailed, TaskStateExited
	Choice:  2, // entered, exited
	Wait:    2,
	Pass:    2,
	Succeed: 2,
	Map:     6, // MapStateEntered, MapStateStarted, MapStateSucceeded, MapStateExited; distributed also MapRunStarted, MapRunSucceeded
	Fail:    1,
}

// countPath counts the states from the first one to the end: every call that may have to be
// repeated is done at once, nobody is asked for an approval, and only the state named fails.
func countPath(states []State, fails string) estimate.Count {
	var c estimate.Count
	if states[0].Name == Rotation[0].Name {
		c.Events = 2 // ExecutionStarted, ExecutionSucceeded
	}
	for s := states[0]; ; {
		c.Transitions++
		c.Events += historyEvents[s.Type]
		if s.Type == Task {
			c.Calls++
		}
		next := s.Next
		switch {
		case s.Name == fails:
			next = s.Catch[len(s.Catch)-1].Next
		case s.Type == Choice:
			next = s.Default
			if at := s.Choices[0].At; strings.HasSuffix(at, ".done") || strings.HasSuffix(at, ".drill") {
				next = s.Choices[0].Next
			}
		}
		var ok bool
		if s, ok = findState(states, next); !ok {
			return c
		}
	}
}

// countEntry counts a map that is entered because segments are left: the map, and the call that
// concludes once more. It is zero for a map on the path itself.
func countEntry(walk State) estimate.Count {
	var c estimate.Count
	for s, ok := walk, true; ok; s, ok = findState(Rotation, s.Next) {
		c.Transitions++
		c.Events += historyEvents[s.Type]
		if s.Type == Task {
			c.Calls++
		}
		if s.Type == Choice {
			if s.Default == walk.Name && walk.Name != passStates[estimate.Rewrap][0] {
				return c
			}
			break
		}
	}
	return estimate.Count{}
}

// countAgain counts one more call of a task: the task, and the choice that comes after it.
func countAgain(states []State, task State) estimate.Count {
	c := estimate.Count{Transitions: 1, Events: historyEvents[task.Type]}
	for s, ok := findState(states, task.Next); ok && s.Type == Choice; s, ok = findState(states, s.Default) {
		c.Transitions++
		c.Events += historyEvents[s.Type]
	}
	return c
}
