package asltest

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// Retryable are the error names that a Retry may hold: those of failures whose
// outcome is unknown or whose cause passes. Every step may be repeated.
var Retryable = []string{
	"Transient", "Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException",
	"Lambda.ClientExecutionTimeoutException", "Lambda.TooManyRequestsException", "Lambda.Unknown",
	"Runtime.ExitError", "Sandbox.Timedout", "States.Timeout",
}

// HaltTasks fail on purpose: they have no Catch, so that the execution ends in
// them and a redrive enters them again.
var HaltTasks = []string{"HaltedBeforeSwitch", "Halted"}

// haltRecords lead to them.
var haltRecords = []string{"HaltedBeforeSwitchRecord", "HaltedRecord"}

// point of no return, and what must never come after it.
const pointOfNoReturn = "Switch"

var beforeSwitch = []string{
	"Preflight", "Abandon", "NotifyStarted", "Census", "CensusDone?", "CensusRows", "Mint", "Rehearse", "DualUnwrap", "Settle", "Approval?", "AwaitApproval", "ApprovalExpired",
	"RollBackOrRemint", "Remint", "PreSwitchFailure", "DrillPassed?", "NotifyDrilled", "DrillPassed", "NotifyRolledBack", "RolledBack", "HaltedBeforeSwitchRecord", "HaltedBeforeSwitch",
}

// order lists which states must have come before others, whichever way is taken.
var order = [][2]string{{"Census", "Mint"}, {"Rehearse", "DualUnwrap"}, {"DualUnwrap", pointOfNoReturn}}

// tests are the states whose failure ends a normal rotation before the switch.
var tests = []string{"Census", "Mint", "Rehearse", "DualUnwrap"}

// Check returns everything that is wrong with a definition. kinds are the error
// names that the functions return, contracts what they take and return.
func Check(d *Definition, kinds []string, contracts map[string]Contract) []error {
	c := &checker{kinds: kinds, contracts: contracts}
	c.shape(d, false)
	c.reachable(d)
	for name, s := range d.All() {
		if s.Comment == "" {
			c.add(name, "has no Comment")
		}
		c.retries(name, s)
		c.catches(name, s)
	}
	c.direction(d)
	c.precedence(d)
	c.emergency(d)
	c.superseded(d)
	c.fields(d)
	c.flow(d)
	return c.errs
}

type checker struct {
	kinds     []string
	contracts map[string]Contract
	errs      []error
}

func (c *checker) add(state, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %s", state, fmt.Sprintf(format, args...)))
}

// shape checks targets and what each type needs. caught says that a Map around
// the definition catches every error of it.
func (c *checker) shape(d *Definition, caught bool) {
	if d.States[d.StartAt] == nil {
		c.add("StartAt", "names no state: %q", d.StartAt)
	}
	for name, s := range d.All() {
		if d.States[name] != s { // of a Map: checked with it
			continue
		}
		for _, next := range s.targets() {
			if d.States[next] == nil {
				c.add(name, "goes to %q, which does not exist", next)
			}
		}
		final := s.Type == "Succeed" || s.Type == "Fail"
		if leads := s.Next != "" || s.Type == "Choice" && s.Default != ""; leads == final || s.End {
			c.add(name, "a %s with Next %q, Default %q, End %t", s.Type, s.Next, s.Default, s.End)
		}
		switch s.Type {
		case "Task":
			c.task(name, s, caught)
		case "Map":
			if !c.distributed(name, s) {
				continue
			}
			c.shape(s.ItemProcessor, catchesAll(s))
		case "Choice", "Pass", "Wait", "Succeed", "Fail":
		default:
			c.add(name, "has type %q", s.Type)
		}
	}
}

// maxLabel is how many characters a Map's label may have (developer guide, "Using Map state in
// Distributed mode"). A label holds none that an ARN could not.
const maxLabel = 40

var label = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// distributed checks a Map. A failed child execution must lead to the task that concludes,
// which says why: the map's own error does not.
func (c *checker) distributed(name string, s *State) bool {
	if s.ItemProcessor == nil || s.ItemProcessor.ProcessorConfig["Mode"] != "DISTRIBUTED" || s.ItemProcessor.ProcessorConfig["ExecutionType"] != "STANDARD" {
		c.add(name, "has no distributed processor of standard executions")
		return false
	}
	if len(s.Label) > maxLabel || !label.MatchString(s.Label) {
		c.add(name, "has the label %q", s.Label)
	}
	if s.ToleratedFailurePercentage != 0 || string(s.ResultPath) != "null" {
		c.add(name, "tolerates failures, or keeps its result")
	}
	if len(s.Catch) == 0 || !slices.Equal(s.Catch[0].ErrorEquals, []string{errChildFailed.Name}) || s.Catch[0].Next != s.Next {
		c.add(name, "hides why a child execution failed")
	}
	return true
}

func (c *checker) task(name string, s *State, caught bool) {
	if s.TimeoutSeconds <= 0 && s.TimeoutSecondsPath == "" {
		c.add(name, "has no TimeoutSeconds")
	}
	if s.Resource != "arn:aws:states:::lambda:invoke" && !s.waits() || s.Function() == "" {
		c.add(name, "invokes no function: resource %q, function %v", s.Resource, s.Parameters["FunctionName"])
	}
	if len(s.Retry) == 0 {
		c.add(name, "has no Retry")
	}
	if slices.Contains(HaltTasks, name) {
		if len(s.Catch) > 0 {
			c.add(name, "has a Catch, so a halt would not fail the execution")
		}
		return
	}
	if !caught && !catchesAll(s) {
		c.add(name, "does not catch States.ALL")
	}
}

// waits reports whether a Task ends by its token. Its timeout is then the time to
// answer, and an answer that did not come is not asked for again.
func (s *State) waits() bool { return s.Resource == "arn:aws:states:::lambda:invoke.waitForTaskToken" }

func catchesAll(s *State) bool {
	return len(s.Catch) > 0 && slices.Equal(s.Catch[len(s.Catch)-1].ErrorEquals, []string{"States.ALL"})
}

func (c *checker) reachable(d *Definition) {
	seen := d.From(d.StartAt)
	for name := range d.All() {
		if !seen[name] && name != d.StartAt {
			c.add(name, "is not reachable")
		}
	}
}

func (c *checker) retries(name string, s *State) {
	transient := false
	for _, r := range s.Retry {
		for _, e := range r.ErrorEquals {
			transient = transient || e == "Transient"
			if !slices.Contains(Retryable, e) || s.waits() && e == "States.Timeout" {
				c.add(name, "retries %q, which no repetition mends", e)
			}
		}
		if r.JitterStrategy != "FULL" || r.BackoffRate <= 1 || r.IntervalSeconds < 1 || r.MaxAttempts < 1 || r.MaxDelaySeconds < 1 {
			c.add(name, "retries without jitter, back-off and bounds")
		}
	}
	if len(s.Retry) > 0 && !transient {
		c.add(name, "does not retry Transient")
	}
}

func (c *checker) catches(name string, s *State) {
	for i, k := range s.Catch {
		for _, e := range k.ErrorEquals {
			switch {
			case e == "States.ALL" && (len(k.ErrorEquals) > 1 || i < len(s.Catch)-1):
				c.add(name, "States.ALL is not alone and last")
			case e == errChildFailed.Name && s.Type == "Map":
			case e != "States.ALL" && !slices.Contains(Retryable, e) && !slices.Contains(c.kinds, e):
				c.add(name, "catches %q, which nothing returns", e)
			}
		}
	}
}

// direction checks that from the switch on there is no way back (design rule 8).
func (c *checker) direction(d *Definition) {
	after := d.From(pointOfNoReturn)
	for _, name := range beforeSwitch {
		if d.States[name] == nil {
			c.add(name, "is missing")
		}
		if after[name] {
			c.add(pointOfNoReturn, "a path leads back to %s", name)
		}
	}
}

// precedence checks that no way goes past a state which must have come before, and
// that a failed test does not go on.
func (c *checker) precedence(d *Definition) {
	for _, pair := range order {
		without := &Definition{StartAt: d.StartAt, States: maps.Clone(d.States)}
		delete(without.States, pair[0])
		if without.From(d.StartAt)[pair[1]] {
			c.add(pair[1], "a path leads past %s", pair[0])
		}
	}
	for _, name := range tests {
		s := d.States[name]
		if s == nil {
			continue // named by direction
		}
		for _, k := range s.Catch {
			if k.Next != "RollBackOrRemint" {
				c.add(name, "its failure goes to %s", k.Next)
			}
		}
	}
}

// emergency checks that only the default of a choice on the mode leads to
// PreSwitchFailure, and only its emergency rule to Remint.
func (c *checker) emergency(d *Definition) {
	for name, s := range d.All() {
		for _, target := range []string{"PreSwitchFailure", "Remint"} {
			if slices.Contains(s.targets(), target) && !s.choosesByMode() {
				c.add(name, "goes to %s without a choice on the mode", target)
			}
		}
	}
}

// superseded checks that what would halt ends in silence when an emergency has taken over:
// nobody must be paged for a rotation that needs nobody any more.
func (c *checker) superseded(d *Definition) {
	for name, s := range d.All() {
		if s.Type == "Map" {
			continue // what fails in a child execution, the task that concludes catches
		}
		halts := func(k Catcher) bool { return slices.Contains(haltRecords, k.Next) }
		if i := slices.IndexFunc(s.Catch, halts); i >= 0 && (i == 0 || s.Catch[0].Next != "Superseded" ||
			!slices.Equal(s.Catch[0].ErrorEquals, []string{"Superseded"})) {
			c.add(name, "halts when an emergency has taken over")
		}
	}
}

func (s *State) choosesByMode() bool {
	if s.Type != "Choice" || s.Default != "PreSwitchFailure" || len(s.Choices) != 1 {
		return false
	}
	r := s.Choices[0]
	return r.Variable == "$.mode" && r.StringEquals != nil && *r.StringEquals == "emergency" && r.Next == "Remint"
}
