// Package flow is the state machine of a rotation as one table. Each state is one entry of
// [Rotation]: what it does, the function that it calls and with what, how often it tries
// again, and the state that follows a success and a failure.
//
//	Preflight → Census → Mint → Rehearse → DualUnwrap → Settle → (approval) → Switch
//	    → Drain → Rewrap (a map over segments) → RewrapComplete → Retire → Verify → Completed
//
// Census, rewrap, the second scan of Retire, and Verify are passes over the rows. Each has a
// task that concludes from the pass, and a map that works on the segments which that task found
// not done, each in a child execution of its own. The task works for a minute itself, which is
// all that a small deployment needs:
//
//	Census → CensusDone? ─ done → Mint
//	   ↑          └ left → CensusRows (a map over segments) ┐
//	   └────────────────────────────────────────────────────┘
//
// A failure before Switch rolls back, or in an emergency mints another KEK. From Switch on
// a rotation only goes forward: a failure that repeating does not heal halts it, and a redrive
// continues in the state that failed.
//
// statemachine.asl.json is generated from the table (go generate ./flow). The simulator, the
// operator's tool and the report read the table itself. To add a state, add an entry here.
package flow

import (
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

//go:generate go run ./generate ../statemachine.asl.json

// Type is the type of a state, as the Amazon States Language names it.
type Type string

// The types that a rotation has.
const (
	Task    Type = "Task"
	Choice  Type = "Choice"
	Wait    Type = "Wait"
	Pass    Type = "Pass"
	Map     Type = "Map"
	Succeed Type = "Succeed"
	Fail    Type = "Fail"
)

// State is one state. Fields that a type does not have are empty.
type State struct {
	Name    string
	Type    Type
	Comment string
	Next    string // "" for a choice, and where the execution ends

	// What the state does for its rotation. The operator's tool and the report show it.
	From  kek.Phase // phase of the rotation in which the state works; "" if it does not change the phase
	Event string    // type of the audit record that it ends with
	Title string    // name of this step in the report's timeline

	Command string // the command of matter ops with which a person does the step by hand

	// Task: calls a function.
	Function   string        // as template.yaml names it: the folder is the same in lower case
	Payload    []Field       // what the function gets
	AwaitToken bool          // the task ends when its token comes back (.waitForTaskToken)
	Timeout    time.Duration // of the task; longer than the function's own, so that the function's error is seen
	TimeoutAt  string        // path of the seconds, instead of Timeout
	Retry      Retry

	// Task and Map.
	Select []Field       // what is kept of the answer; nil: all of it
	Result string        // path where it is put; Drop: nowhere; "": the answer replaces the input
	Output string        // path of what the next state gets; "": everything
	Catch  []CatchClause // in order: the first that matches decides

	// Choice.
	Choices []ChoiceRule
	Default string // the next state if no rule holds

	SecondsAt  string        // Wait: path of the seconds
	Pause      time.Duration // Wait: instead of SecondsAt
	Parameters []Field       // Pass: what the next state gets

	// Map in distributed mode: for each item, the states of Each run as an execution with a
	// history of its own, beginning with the first. The map fails if one of them fails, with an
	// error of Step Functions that does not say why (see [walkMap]).
	Items         string  // path of the items
	ItemSelector  []Field // what the first state gets for an item
	ConcurrencyAt string  // path of how many items are worked on at once
	Each          []State

	ErrorAt, CauseAt string // Fail: paths of the error that the execution ends with
}

// Drop is a Result that keeps the input as it is.
const Drop = "drop"

// Path is a value that a state takes from its input ($.…) or from the execution's context
// object ($$.…), as a JSONPath.
type Path string

// Field is a named value: a string, a bool or a [Path].
type Field struct {
	Name  string
	Value any
}

// Retry is how often a state tries again after a failure that repeating can heal. The pause
// is one second at first, doubles up to Most, and is drawn at random from 0 to that.
type Retry struct {
	Attempts     int
	Most         time.Duration
	NotOnTimeout bool // a timeout is an outcome
}

// The three retry classes.
var (
	Brief   = Retry{Attempts: 5, Most: 30 * time.Second} // for a task that is over at once
	Polled  = Retry{Attempts: 8, Most: time.Minute}      // for a task that is called until its work is done
	Patient = Retry{Attempts: 20, Most: time.Minute}     // outlasts the minutes until a new key's tag is known everywhere
)

// CatchClause is the state that follows a failure.
type CatchClause struct {
	Comment string
	Errors  []journal.Kind
	Result  string // path where the error is put; Drop: nowhere; "": it replaces the input
	Next    string
}

// ChoiceRule goes to Next if what is at a path equals a bool or a string.
type ChoiceRule struct {
	At   string
	Is   any
	Next string
}

// FindState returns the state with a name, also if it is inside a Map.
func FindState(name string) (State, bool) { return findState(Rotation, name) }

func findState(states []State, name string) (State, bool) {
	for _, s := range states {
		if s.Name == name {
			return s, true
		}
		if inner, ok := findState(s.Each, name); ok {
			return inner, true
		}
	}
	return State{}, false
}

// Functions lists the functions that the states call, in the order of their last calls, so that
// Notify comes last. The functions of template.yaml are in this order.
func Functions() []string {
	var names []string
	var walk func(states []State)
	walk = func(states []State) {
		for _, s := range states {
			if s.Function != "" {
				names = append(slices.DeleteFunc(names, func(n string) bool { return n == s.Function }), s.Function)
			}
			walk(s.Each)
		}
	}
	walk(Rotation)
	return names
}

// Folder returns the folder under functions/ of the function that a state calls; "" if it calls
// none.
func (s State) Folder() string { return strings.ToLower(s.Function) }

// CatchOf returns the first clause that catches a failure of a kind; false if none does, so
// that the execution fails in this state.
func (s State) CatchOf(kind journal.Kind) (CatchClause, bool) {
	for _, c := range s.Catch {
		if slices.Contains(c.Errors, kind) || slices.Contains(c.Errors, allErrors) {
			return c, true
		}
	}
	return CatchClause{}, false
}

// StateAt returns the state in which a rotation continues; false if it is over.
func StateAt(r kek.Rotation) (State, bool) {
	for _, s := range Rotation {
		switch {
		case s.From == "" || s.From != r.Phase:
		case s.Event == kek.EventRowsCounted && (r.Counted || r.Mode == kek.Emergency):
		case s.Event == kek.EventRowsRehearsed && r.Rehearsed == r.NewKEK:
		default:
			return s, true
		}
	}
	return State{}, false
}

// CommandAt returns the command of matter ops that does the next step by hand, at a phase;
// "" if there is none.
func CommandAt(p kek.Phase) string {
	for _, s := range Rotation {
		if s.Command != "" && s.From == p {
			return s.Command
		}
	}
	return ""
}
