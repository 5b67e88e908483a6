package asltest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Names of exits, the last four with what they are of: an error's name, or a number.
const (
	exitNext      = "Next"
	exitDefault   = "Default"
	exitSucceeds  = "succeeds"
	exitFails     = "fails"
	exitChoice    = "Choice "
	exitCatch     = "Catch "
	exitRetry     = "Retry "
	exitExhausted = "exhausted "
)

// Failure is an error as Step Functions sees it: by name.
type Failure struct{ Name, Cause string }

func (f *Failure) Error() string { return f.Name + ": " + f.Cause }

// Machine runs a definition.
type Machine struct {
	Definition *Definition
	// Invoke calls a function, named as in ${<name>FunctionArn}, with a payload.
	Invoke func(state, function string, payload []byte) ([]byte, *Failure)
	// Await is called for a task that waits for its token, once its function has been
	// told the token. Nil: nobody ever answers.
	Await func(state, token string) *Failure
	// Wait is called for Wait states.
	Wait func(seconds int)
	// Exit is told how each state ends and why it is repeated: Next, Default, Choice and the
	// number of the rule, Catch and the name that caught, Retry and the name of the error,
	// exhausted and the number of the retrier, succeeds, fails. Nil: nobody is told.
	Exit func(state, exit string)
	// MaxSteps ends an execution that does not end by itself; 0 is 10,000.
	MaxSteps int
}

// Execution is one execution, whose fields may be read between Run and Redrive.
type Execution struct {
	Name     string
	Status   string // SUCCEEDED or FAILED
	Failure  *Failure
	Final    string   // the state in which it ended
	Trail    []string // the states entered, in order
	Output   any
	redrives int
	input    any
	machine  *Machine
	resume   any // the input of Final
	steps    int

	definition *Definition        // the machine's, or the processor of a Map
	parent     *Execution         // of a child execution
	runs       map[string]*mapRun // by Map: the run that failed, which a redrive continues
}

// mapRun is a map run: a child execution for each item, nil before it is started.
type mapRun struct {
	items    []any
	children []*Execution
}

// errStop is what ends an execution in a state.
type errStop struct {
	*Failure
	in string
}

// Start runs an execution to its end.
func (m *Machine) Start(name string, input any) *Execution {
	e := m.newExecution(name, m.Definition, normal(input))
	e.run(m.Definition.StartAt, e.input)
	return e
}

func (m *Machine) newExecution(name string, d *Definition, input any) *Execution {
	return &Execution{Name: name, machine: m, definition: d, input: input, runs: map[string]*mapRun{}}
}

// Redrive goes on with a failed execution in the state in which it failed, with
// that state's input, and one more redrive counted.
func (e *Execution) Redrive() {
	if e.Status != "FAILED" {
		panic("only a failed execution can be redriven")
	}
	e.redrives++
	e.steps = 0
	e.run(e.Final, e.resume)
}

func (e *Execution) run(at string, data any) {
	e.Status, e.Failure = "SUCCEEDED", nil
	out, err := e.walk(at, data)
	var stop *errStop
	if errors.As(err, &stop) {
		e.Status, e.Failure = "FAILED", stop.Failure
		return
	}
	e.Output = out
}

// walk goes from state to state.
func (e *Execution) walk(at string, data any) (any, error) {
	limit := e.machine.MaxSteps
	if limit == 0 {
		limit = 10_000
	}
	for {
		if e.steps++; e.steps > limit {
			return nil, &errStop{&Failure{"States.Runtime", "too many steps, last in " + at}, at}
		}
		s := e.definition.States[at]
		e.Final, e.resume = at, data
		for in := e; in != nil; in = in.parent {
			in.Trail = append(in.Trail, at)
		}
		out, fail := e.state(at, s, data)
		switch {
		case fail != nil:
			k, ok := s.catcher(fail)
			if !ok {
				e.exit(at, exitFails)
				return nil, &errStop{fail, at}
			}
			e.exit(at, exitCatch+k.matches(fail))
			delete(e.runs, at) // only a Map that was not left is continued by a redrive
			data = place(data, k.ResultPath, map[string]any{"Error": fail.Name, "Cause": fail.Cause})
			at = k.Next
		case s.Type == "Succeed":
			e.exit(at, exitSucceeds)
			return out, nil
		default:
			next, exit := s.next(data)
			e.exit(at, exit)
			data, at = out, next
		}
	}
}

func (e *Execution) exit(state, exit string) {
	if e.machine.Exit != nil {
		e.machine.Exit(state, exit)
	}
}

// catcher finds who catches f. Nothing catches States.Runtime, the error of a path
// that is not there.
func (s *State) catcher(f *Failure) (Catcher, bool) {
	if f.Name == "States.Runtime" {
		return Catcher{}, false
	}
	for _, k := range s.Catch {
		if k.matches(f) != "" {
			return k, true
		}
	}
	return Catcher{}, false
}

// matches is the name in ErrorEquals by which k catches f; "" if it does not.
func (k Catcher) matches(f *Failure) string {
	for _, name := range []string{f.Name, "States.ALL"} {
		if slices.Contains(k.ErrorEquals, name) {
			return name
		}
	}
	return ""
}

// next is the state that comes after s without a failure, and the exit that leads there.
func (s *State) next(data any) (next, exit string) {
	for i, r := range s.Choices {
		v, ok := get(data, r.Variable)
		str, isString := v.(string)
		b, isBool := v.(bool)
		if ok && (r.StringEquals != nil && isString && str == *r.StringEquals || r.BooleanEquals != nil && isBool && b == *r.BooleanEquals) {
			return r.Next, fmt.Sprint(exitChoice, i)
		}
	}
	if s.Type == "Choice" {
		return s.Default, exitDefault
	}
	return s.Next, exitNext
}

// state runs one state and returns its output data.
func (e *Execution) state(name string, s *State, data any) (any, *Failure) {
	ctx := e.context(nil)
	switch s.Type {
	case "Fail":
		return nil, &Failure{str(data, s.ErrorPath), str(data, s.CausePath)}
	case "Wait":
		seconds, fail := s.Seconds, (*Failure)(nil)
		if s.SecondsPath != "" {
			seconds, fail = count(data, s.SecondsPath)
		}
		if fail == nil {
			e.machine.Wait(seconds)
		}
		return data, fail
	case "Pass":
		if s.Parameters == nil {
			return data, nil
		}
		result, err := fill(s.Parameters, data, ctx)
		if err != nil {
			return nil, err
		}
		return out(s, place(data, s.ResultPath, result))
	case "Map":
		result, err := e.runMap(name, s, data)
		if err != nil {
			return nil, err
		}
		return out(s, place(data, s.ResultPath, result))
	case "Task":
		result, err := e.task(name, s, data, ctx)
		if err != nil {
			return nil, err
		}
		return out(s, place(data, s.ResultPath, result))
	default: // Choice, Succeed
		return out(s, data)
	}
}

func (e *Execution) context(item any) map[string]any {
	x := map[string]any{
		"Id": "arn:aws:states:eu-central-1:000000000000:execution:rotation:" + e.Name, "Name": e.Name,
		"RoleArn": "arn:aws:iam::000000000000:role/states", "StartTime": "2026-04-01T02:00:00Z", "Input": e.input,
	}
	if e.redrives > 0 {
		x["RedriveCount"], x["RedriveTime"] = float64(e.redrives), "2026-04-01T03:00:00Z"
	} else {
		x["RedriveCount"] = float64(0)
	}
	return map[string]any{"Execution": x, "Task": map[string]any{"Token": fmt.Sprintf("token %d of %s", e.steps, e.Name)}, "Map": map[string]any{"Item": map[string]any{"Value": item}}}
}

// task invokes the function, again as Retry says.
func (e *Execution) task(name string, s *State, data any, ctx map[string]any) (any, *Failure) {
	filled, fail := fill(s.Parameters, data, ctx)
	if fail == nil && s.TimeoutSecondsPath != "" {
		var n int
		if n, fail = count(data, s.TimeoutSecondsPath); n == 0 && fail == nil {
			fail = &Failure{"States.Runtime", s.TimeoutSecondsPath + " leaves no time"}
		}
	}
	if fail != nil {
		return nil, fail
	}
	payload, err := json.Marshal(filled["Payload"])
	if err != nil {
		return nil, &Failure{"States.Runtime", err.Error()}
	}
	left := make([]int, len(s.Retry))
	for i, r := range s.Retry {
		left[i] = r.MaxAttempts
	}
	for {
		b, fail := e.machine.Invoke(name, s.Function(), payload)
		if fail == nil && s.waits() {
			fail = e.await(name, ctx)
		}
		if fail == nil {
			return selected(s, b, ctx)
		}
		i := slices.IndexFunc(s.Retry, func(r Retrier) bool { return slices.Contains(r.ErrorEquals, fail.Name) })
		if i < 0 {
			return nil, fail
		}
		if left[i] == 0 {
			e.exit(name, fmt.Sprint(exitExhausted, i))
			return nil, fail
		}
		e.exit(name, exitRetry+fail.Name)
		left[i]--
	}
}

func (e *Execution) await(name string, ctx map[string]any) *Failure {
	token, _ := get(ctx, "$.Task.Token")
	if e.machine.Await == nil {
		return &Failure{"States.Timeout", "nobody answered"}
	}
	return e.machine.Await(name, fmt.Sprint(token))
}

func selected(s *State, b []byte, ctx map[string]any) (any, *Failure) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, &Failure{"States.Runtime", err.Error()}
	}
	result := map[string]any{"Payload": v}
	if s.ResultSelector == nil {
		return result, nil
	}
	return fill(s.ResultSelector, result, ctx)
}

// errChildFailed is how a map run ends in which a child execution failed (developer guide,
// "Setting failure thresholds for Distributed Map states"). Which error the child ended with,
// the parent does not learn.
var errChildFailed = &Failure{"States.ExceedToleratedFailureThreshold", "The specified tolerated failure threshold was exceeded"}

// runMap runs a Map's items one after another, so that runs replay, each as an execution of
// its own. The first that fails ends the map run. A redrive of an execution that failed in the
// Map continues that run: executions that succeeded are left alone, those that failed are
// redriven, and those that were not started are started (developer guide, "Redriving Map Runs").
func (e *Execution) runMap(name string, s *State, data any) (any, *Failure) {
	if s.MaxConcurrencyPath != "" {
		if _, fail := count(data, s.MaxConcurrencyPath); fail != nil {
			return nil, fail
		}
	}
	run, ok := e.runs[name]
	if !ok {
		v, _ := get(data, s.ItemsPath)
		items, ok := v.([]any)
		if !ok {
			return nil, &Failure{"States.Runtime", s.ItemsPath + " is no array"}
		}
		run = &mapRun{items: items, children: make([]*Execution, len(items))}
		e.runs[name] = run
	}
	results := []any{}
	for i, item := range run.items {
		if fail := e.runChild(name, s, data, run, i, item); fail != nil {
			return nil, fail
		}
		results = append(results, run.children[i].Output)
	}
	delete(e.runs, name)
	return results, nil
}

// runChild starts or redrives the execution of one item, unless it has succeeded.
func (e *Execution) runChild(name string, s *State, data any, run *mapRun, i int, item any) *Failure {
	c := run.children[i]
	switch {
	case c == nil:
		in, fail := fill(s.ItemSelector, data, e.context(item))
		if fail != nil {
			return fail
		}
		c = e.machine.newExecution(fmt.Sprintf("%s/%s:%d", e.Name, name, i), s.ItemProcessor, any(in))
		c.parent = e
		run.children[i] = c
		c.run(s.ItemProcessor.StartAt, c.input)
	case c.Status == "FAILED":
		c.Redrive()
	}
	if c.Status == "FAILED" {
		return errChildFailed
	}
	return nil
}

// count follows a path to a number that is not negative, as SecondsPath,
// TimeoutSecondsPath and MaxConcurrencyPath ask for.
func count(data any, path string) (int, *Failure) {
	v, _ := get(data, path)
	n, ok := v.(float64)
	if !ok || n < 0 || n != math.Trunc(n) {
		return 0, &Failure{"States.Runtime", fmt.Sprintf("%s is %v, which is no count", path, v)}
	}
	return int(n), nil
}

func out(s *State, data any) (any, *Failure) {
	path := text(s.OutputPath)
	if path == "" || path == "$" {
		return data, nil
	}
	v, ok := get(data, path)
	if !ok {
		return nil, &Failure{"States.Runtime", "no " + path}
	}
	return v, nil
}

// fill evaluates a payload template.
func fill(t map[string]any, data any, ctx map[string]any) (map[string]any, *Failure) {
	result := map[string]any{}
	for key, v := range t {
		plain, isPath := strings.CutSuffix(key, ".$")
		switch v := v.(type) {
		case string:
			if !isPath {
				result[key] = v
				continue
			}
			from, path := data, v
			if strings.HasPrefix(v, "$$") {
				from, path = any(ctx), v[1:]
			}
			got, ok := get(from, path)
			if !ok {
				return nil, &Failure{"States.Runtime", fmt.Sprintf("%s is not there", v)}
			}
			result[plain] = got
		case map[string]any:
			inner, err := fill(v, data, ctx)
			if err != nil {
				return nil, err
			}
			result[key] = inner
		default:
			result[key] = v
		}
	}
	return result, nil
}

// get follows a reference path: $ or $.a.b.
func get(data any, path string) (any, bool) {
	rest, ok := strings.CutPrefix(path, "$")
	if !ok {
		return nil, false
	}
	for name := range strings.SplitSeq(strings.TrimPrefix(rest, "."), ".") {
		if name == "" {
			continue
		}
		m, isMap := data.(map[string]any)
		if !isMap {
			return nil, false
		}
		if data, ok = m[name]; !ok {
			return nil, false
		}
	}
	return data, true
}

func str(data any, path string) string {
	v, _ := get(data, path)
	s, _ := v.(string)
	return s
}

// place puts a result into data as a ResultPath says. data itself is not changed.
func place(data any, path json.RawMessage, result any) any {
	p := text(path)
	switch {
	case string(path) == "null":
		return data
	case p == "" || p == "$":
		return result
	}
	m, ok := data.(map[string]any)
	out := map[string]any{}
	if ok {
		maps.Copy(out, m)
	}
	out[strings.TrimPrefix(p, "$.")] = result // one level: all that the definition uses
	return out
}

// normal is v as JSON has it.
func normal(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}
