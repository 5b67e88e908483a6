// Package flow is the state machine of a rotation as one table. Each state is one entry of
// [Rotation]: what it does, the function that it calls and with what, how often it tries
// again, and the state that follows a success and a failure.
//
// statemachine.asl.json is generated from it (go generate ./flow). The simulator, the
// operator's tool and the report read the table. To add a state, add an entry here.
package flow

import (
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
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
	Next    string // "" of a choice, and where the execution ends

	// What a step does for its rotation, for those who tell people of it.
	From  kek.Phase // phase of the rotation in which the state works; "" if it moves no rotation on
	Event string    // audit record that it ends with
	Title string    // of that record's time in a report

	Command string // of matter ops, for the person who does the step by hand

	// Task: calls a function.
	Function   string // as template.yaml names it: the folder is the same in lower case
	Payload    []Field
	AwaitToken bool // the task ends when its token comes back
	Timeout    time.Duration
	TimeoutAt  string // path of the seconds, instead of Timeout
	Retry      Retry

	// Task and Map.
	Select []Field // what is kept of the answer; nil: all of it
	Result string  // path where it is put; Drop: nowhere; "": the answer replaces the input
	Output string  // path of what the next state gets; "": everything
	Catch  []CatchClause

	// Choice.
	Choices []ChoiceRule
	Default string

	SecondsAt  string  // Wait
	Parameters []Field // Pass

	// Map: the first of Each runs for each item.
	Items         string
	ItemSelector  []Field
	ConcurrencyAt string
	Each          []State

	ErrorAt, CauseAt string // Fail: paths
}

// Drop is a Result that keeps the input as it is.
const Drop = "drop"

// Path is a value that a state takes from its input, or with $$ from the execution.
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

// The ways to try again.
var (
	Brief   = Retry{Attempts: 5, Most: 30 * time.Second}
	Polled  = Retry{Attempts: 8, Most: time.Minute}
	Patient = Retry{Attempts: 20, Most: time.Minute} // outlasts the minutes until a new key's tag is known everywhere
)

// CatchClause is the state that follows a failure.
type CatchClause struct {
	Comment string
	Errors  []rotation.Kind
	Result  string // path where the error is put; Drop: nowhere; "": it replaces the input
	Next    string
}

// ChoiceRule goes to Next if what is at a path equals a bool or a string.
type ChoiceRule struct {
	At   string
	Is   any
	Next string
}

// Find returns the state of a name, also one of a Map's.
func Find(name string) (State, bool) { return find(Rotation, name) }

func find(states []State, name string) (State, bool) {
	for _, s := range states {
		if s.Name == name {
			return s, true
		}
		if inner, ok := find(s.Each, name); ok {
			return inner, true
		}
	}
	return State{}, false
}

// Folder is the folder under functions/ of the function that a state calls; "" if it calls
// none.
func (s State) Folder() string { return strings.ToLower(s.Function) }

// CatchOf returns the clause that takes a failure of a kind.
func (s State) CatchOf(kind rotation.Kind) (CatchClause, bool) {
	for _, c := range s.Catch {
		if slices.Contains(c.Errors, kind) || slices.Contains(c.Errors, allErrors) {
			return c, true
		}
	}
	return CatchClause{}, false
}

// At returns the state in which a rotation continues; false if it is over.
func At(r kek.Rotation) (State, bool) {
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
