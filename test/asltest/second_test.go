package asltest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// answer is what a function does when it is called: its output, an error, or nothing until
// the task times out. The interpreter that is not ours reads it as JSON.
type answer struct {
	OK    any    `json:"ok,omitempty"`
	Error string `json:"error,omitempty"`
	Cause string `json:"cause,omitempty"`
	Hang  bool   `json:"hang,omitempty"`

	token bool // the error comes with the token, not from the function
}

// path is one way through the state machine: what the functions answer, call by call. Keys
// are states, in the Map with the item. When they run out the base answers.
type path struct {
	Input     any                 `json:"input"`
	Execution map[string]any      `json:"execution"`
	Answers   map[string][]answer `json:"answers"`
	Base      map[string]answer   `json:"base"`
	Redrives  int                 `json:"redrives"`

	name string
	from int // the call after which it may be changed further
}

// seen is what an interpreter did on a path.
type seen struct {
	Status string           `json:"status"`
	Error  string           `json:"error"`
	Cause  string           `json:"cause"`
	Output any              `json:"output"`
	Calls  []invocation     `json:"calls"`
	Trail  []string         `json:"trail"`
	Items  map[int][]string `json:"items"`

	exits []exitTaken
	after []exitTaken // for each call, the exit that led to its state
}

type invocation struct {
	Key      string `json:"key"`
	Function string `json:"function"`
	Payload  any    `json:"payload"`
}

type exitTaken struct{ state, exit string }

var segments = []rotation.Segment{{Source: "orders", Segment: 0}, {Source: "people", Segment: 3}}

// plan is preflight's answer. The numbers that the state machine takes from it are those of
// a real one; nobody answers a request for approval in a second.
func plan(mode string, approval bool) answer {
	return answer{OK: rotation.Plan{
		RotationID: "2026-q2", Mode: mode, Label: "2026-Q2", OldKEK: "old", Olds: []string{"old"}, Rewrap: rotation.Walk{Left: segments},
		Checks: []rotation.Check{{Name: "lock", OK: true}}, Current: rotation.Attempt{Attempt: 1},
		Approval: approval, ApprovalSeconds: 1, Concurrency: 1,
	}}
}

// bases are what the functions answer when nothing goes wrong.
var bases = map[string]answer{
	"normal": plan("normal", false), "with approval": plan("normal", true), "emergency": plan("emergency", false),
}

var answers = map[string]answer{
	"NotifyStarted":    {OK: rotation.NotifyOutput{Sent: true}},
	"Abandon":          {OK: rotation.RetireOutput{Done: true}},
	"NotifyRefused":    {OK: rotation.NotifyOutput{Sent: true}},
	"Census":           {OK: sweep(true)},
	"Mint":             {OK: rotation.MintOutput{NewKEK: "new", Attempt: 1}},
	"Rehearse":         {OK: sweep(true)},
	"DualUnwrap":       {OK: rotation.DualUnwrapOutput{Canaries: 5, Corpus: 7}},
	"AwaitApproval":    {OK: gates.ApprovalOutput{Plan: "digest"}},
	"Remint":           {OK: rotation.RetireOutput{Done: true, Phase: "started", Attempt: 2}},
	"PreSwitchFailure": {OK: rotation.RetireOutput{Done: true, Phase: "rolledback"}},
	"NotifyDrilled":    {OK: rotation.NotifyOutput{}},
	"NotifyRolledBack": {OK: rotation.NotifyOutput{Untold: []string{"webhook"}}},
	"Switch":           {OK: rotation.SwitchOutput{KEK: "new", Epoch: 2}},
	"Drain":            {OK: rotation.DrainOutput{Done: true, Waited: 3}},
	"CensusSegment":    {OK: sweep(true)},
	"RewrapSegment":    {OK: sweep(true)},
	"RewrapComplete":   {OK: sweep(true)},
	"ConfirmSegment":   {OK: rotation.RetireOutput{Done: true, Phase: "rewrapped"}},
	"VerifySegment":    {OK: sweep(true)},
	"Retire":           {OK: rotation.RetireOutput{Done: true, Phase: "retired"}},
	"NotifyVerifying":  {OK: rotation.NotifyOutput{Sent: true}},
	"Anchor":           {OK: anchor.Output{Anchor: 1, Records: 9}},
	"Verify":           {OK: sweep(true)},
	"AnchorCompletion": {OK: anchor.Output{Anchor: 2, Records: 11}},
	"NotifyCompleted":  {OK: rotation.NotifyOutput{Sent: true}},
}

// others are the answers without an error that lead elsewhere.
var others = map[string]answer{
	"Census":           {OK: sweep(false)},
	"PreSwitchFailure": {OK: rotation.RetireOutput{Done: true, Phase: "rolledback", Drill: "passed"}},
	"Drain":            {OK: rotation.DrainOutput{Leases: 1, Refs: 2}}, // a pause of 0 s, which both read
	"CensusSegment":    {OK: sweep(false)},
	"RewrapSegment":    {OK: sweep(false)},
	"ConfirmSegment":   {OK: rotation.RetireOutput{Phase: "rewrapped"}},
	"VerifySegment":    {OK: sweep(false)},
	"RewrapComplete":   {OK: sweep(false)},
	"Retire":           {OK: rotation.RetireOutput{Left: segments, Phase: "rewrapped"}},
	"Verify":           {OK: sweep(false)},
}

// paused is what a segment of a paused walk answers.
func paused() rotation.SweepOutput { return rotation.SweepOutput{Paused: true} }

func sweep(done bool) rotation.SweepOutput {
	return rotation.SweepOutput{Done: done, Left: segments, Tally: rotation.Tally{Scanned: 12, Rewrapped: 5, Other: 1}}
}

// halted is what notify does when it is told of a halt: it fails the execution, and lets
// one that has been redriven since go on.
func halted(payload any) answer {
	count := func(at string) any { v, _ := get(payload, "$."+at+".RedriveCount"); return v }
	if count("execution").(float64) > count("halted_in").(float64) {
		return answer{OK: rotation.NotifyOutput{}}
	}
	return answer{Error: "Halted", Cause: str(payload, "$.error")}
}

// run runs p in our interpreter.
func (p *path) run(t *testing.T, d *Definition, inner []string) *seen {
	t.Helper()
	s := &seen{Items: map[int][]string{}}
	left := maps.Clone(p.Answers)
	var pending *Failure
	var last exitTaken
	m := &Machine{Definition: d, MaxSteps: 500, Wait: func(int) {}}
	m.Exit = func(state, exit string) {
		s.exits = append(s.exits, exitTaken{state, exit})
		if !strings.HasPrefix(exit, exitRetry) {
			last = exitTaken{state, exit}
		}
	}
	m.Invoke = func(state, function string, payload []byte) ([]byte, *Failure) {
		var in any
		if err := json.Unmarshal(payload, &in); err != nil {
			t.Fatal(err)
		}
		key := state
		if slices.Contains(inner, state) {
			segment, _ := get(in, "$.segment")
			key = fmt.Sprintf("%s %s/%v", state, str(in, "$.source"), segment)
		}
		s.Calls = append(s.Calls, invocation{key, "${" + function + "FunctionArn}", in})
		s.after = append(s.after, last)
		a, ok := p.Base[state]
		if !ok {
			a, ok = answers[state]
		}
		switch {
		case len(left[key]) > 0:
			a, left[key] = left[key][0], left[key][1:]
		case str(in, "$.event") == "halted":
			a = halted(in)
		case !ok:
			t.Fatalf("%s: no answer for %s: add it to answers", p.name, state)
		}
		switch {
		case a.Hang:
			pending = &Failure{"States.Timeout", "States.Timeout"}
		case a.token:
			pending = &Failure{a.Error, a.Cause}
		case a.Error != "":
			return nil, &Failure{a.Error, a.Cause}
		}
		b, err := json.Marshal(a.OK)
		if err != nil {
			t.Fatal(err)
		}
		return b, nil
	}
	m.Await = func(string, string) (f *Failure) { f, pending = pending, nil; return f }
	e := m.Start(p.Execution["Name"].(string), p.Input)
	for range p.Redrives {
		if e.Failure == nil || e.Failure.Name != "Halted" {
			break
		}
		e.Redrive()
	}
	s.Status = e.Status
	if e.Failure != nil {
		s.Error, s.Cause = e.Failure.Name, e.Failure.Cause
	} else {
		s.Output = e.Output
	}
	at := -1
	before := ""
	for _, name := range e.Trail {
		switch {
		case !slices.Contains(inner, name):
			s.Trail = append(s.Trail, name)
			at = -1
		default:
			if strings.HasSuffix(name, "Segment") && (at < 0 || itemDone(before)) {
				at++
			}
			s.Items[at] = append(s.Items[at], name)
		}
		before = name
	}
	return s
}

// itemDone tells whether the item of the Map ends in a state.
func itemDone(state string) bool { return strings.HasSuffix(state, "SegmentDone") }

// innerStates lists the states of all Maps.
func innerStates(d *Definition) []string {
	var inner []string
	for name := range d.All() {
		if d.States[name] == nil {
			inner = append(inner, name)
		}
	}
	return inner
}

// change is what else a call may answer. A variant of another one leads to the same state.
type change struct {
	answers []answer
	variant bool
}

// changes lists what else a call of a state may answer: each error that it retries, once
// and for ever; each error that it catches, and one that fails a child execution; a good answer
// that leads elsewhere; and one that lacks the fields which the state reads.
func changes(name string, s *State, inner bool) []change {
	var out []change
	failing := func(e string, times int, variant bool) {
		if e == "States.ALL" {
			e = "Internal" // which no list has
		}
		a := answer{Error: e, Cause: "why " + e}
		if s.waits() {
			a.token = e == "Internal"
			a.Hang = e == "States.Timeout"
		}
		out = append(out, change{slices.Repeat([]answer{a}, times), variant})
	}
	attempts := func(e string) int {
		for _, r := range s.Retry {
			if slices.Contains(r.ErrorEquals, e) {
				return r.MaxAttempts + 1
			}
		}
		return 1
	}
	for _, r := range s.Retry {
		for _, e := range r.ErrorEquals {
			failing(e, 1, true)
		}
		failing(r.ErrorEquals[0], r.MaxAttempts+1, true)
	}
	for _, k := range s.Catch {
		for i, e := range k.ErrorEquals {
			failing(e, attempts(e), i > 0)
		}
	}
	if a, ok := others[name]; ok {
		out = append(out, change{[]answer{a}, false})
	}
	if inner {
		failing("States.ALL", 1, false)
		out = append(out, change{[]answer{{OK: paused()}}, false})
		return out // the other interpreter does not catch a missing field of an inline item, AWS that of a child execution
	}
	if s.ResultSelector != nil || s.OutputPath != nil {
		out = append(out, change{[]answer{{OK: map[string]any{}}}, true})
	}
	return out
}

// paths derives the paths from the definition: from what happens when nothing goes wrong,
// each call's answer is changed in each way there is, and from what happens then, again. A
// path is kept if it takes an exit that no other took, or two exits one after the other.
func paths(t *testing.T, d *Definition, inner []string) ([]*path, []*seen, map[exitTaken]bool) {
	t.Helper()
	var (
		kept  []*path
		runs  []*seen
		taken = map[exitTaken]bool{}
	)
	for _, base := range slices.Sorted(maps.Keys(bases)) {
		type pair struct{ a, b exitTaken }
		pairs, tried := map[pair]bool{}, map[string]bool{}
		mine := map[exitTaken]bool{}
		todo := []*path{{
			name: base, Input: map[string]any{"reason": base}, Base: map[string]answer{"Preflight": bases[base]}, Redrives: 2,
			Execution: map[string]any{
				"Id": "arn:aws:states:eu-central-1:000000000000:execution:rotation:2026-q2", "Name": "2026-q2",
				"RoleArn": "arn:aws:iam::000000000000:role/states",
			},
		}}
		for len(todo) > 0 {
			p := todo[0]
			todo = todo[1:]
			s := p.run(t, d, inner)
			isNew, last := false, exitTaken{}
			for _, e := range s.exits {
				isNew = isNew || !mine[e]
				mine[e], taken[e] = true, true
				if strings.HasPrefix(e.exit, exitRetry) {
					continue
				}
				isNew = isNew || !pairs[pair{last, e}]
				pairs[pair{last, e}] = true
				last = e
			}
			if !isNew {
				continue
			}
			kept, runs = append(kept, p), append(runs, s)
			if len(p.Answers) < 4 {
				todo = append(todo, p.further(s, d, tried)...)
			}
		}
	}
	return kept, runs, taken
}

// further lists the paths that differ from p in one more call, later than those that differ
// already, unless the same was tried when the state was reached in the same way.
func (p *path) further(s *seen, d *Definition, tried map[string]bool) []*path {
	var out []*path
	nth := map[string]int{}
	states := maps.Collect(d.All())
	for i, call := range s.Calls {
		n := nth[call.Key]
		nth[call.Key]++
		if i < p.from || n < len(p.Answers[call.Key]) {
			continue
		}
		name, item, _ := strings.Cut(call.Key, " ")
		if item != "" {
			// When an item fails, whether others that were to come still begin is open: only
			// the last one does.
			if last := segments[len(segments)-1]; item != fmt.Sprintf("%s/%d", last.Source, last.Segment) {
				continue
			}
		}
		before := p.Answers[call.Key]
		for range n - len(before) {
			a, ok := p.Base[name]
			if !ok {
				a, ok = answers[name]
			}
			if !ok { // a halt: its answer depends on what it is told
				before = nil
				break
			}
			before = append(slices.Clip(before), a)
		}
		if len(before) < n {
			continue
		}
		for _, c := range changes(name, states[name], item != "") {
			what := fmt.Sprintf("%s: %d × %s", call.Key, len(c.answers), c.answers[0])
			once := what
			if !c.variant {
				once = fmt.Sprint(s.after[i], what)
			}
			if tried[once] {
				continue
			}
			tried[once] = true
			next := *p
			next.Answers = maps.Clone(p.Answers)
			if next.Answers == nil {
				next.Answers = map[string][]answer{}
			}
			next.Answers[call.Key] = slices.Concat(before, c.answers)
			next.from = i + 1
			next.name = p.name + ", " + what
			out = append(out, &next)
		}
	}
	return out
}

func (a answer) String() string {
	switch {
	case a.Hang:
		return "no answer"
	case a.Error != "":
		return a.Error
	}
	b, err := json.Marshal(a.OK)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestSecondInterpreter runs every path of the state machine in an interpreter that is not
// ours, aws-local-stepfunctions, and compares: the states in order, what each function is
// sent, and how the execution ends. asl-validator has nothing against the definition.
func TestSecondInterpreter(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	inner := innerStates(d)
	all, ours, taken := paths(t, d, inner)
	for name, s := range d.All() {
		for _, exit := range exits(s) {
			if !taken[exitTaken{name, exit}] {
				t.Errorf("no path takes %s of %s", exit, name)
			}
		}
	}
	theirs, complaints := second(t, load(t), inner, all)
	for _, c := range complaints {
		t.Errorf("asl-validator: %s", c)
	}
	ends := map[string]int{}
	for i, p := range all {
		if diff := compare(ours[i], theirs[i]); diff != "" {
			t.Errorf("%s (-ours +theirs):\n%s", p.name, diff)
		}
		ends[ours[i].Status+" in "+ours[i].Trail[len(ours[i].Trail)-1]]++
	}
	t.Logf("%d paths through %d exits: %v", len(all), len(taken), ends)
}

// TestSecondInterpreterNotices shows that the comparison can fail: for each kind of fault
// in the definition that the other interpreter is given, one path differs, or the validator
// says so.
func TestSecondInterpreterNotices(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	inner := innerStates(d)
	all, ours, _ := paths(t, d, inner)
	for name, tc := range map[string]struct {
		at string
		to any
		on string // the path that differs; "" if the validator says so
	}{
		"another state":       {"States.NotifyStarted.Next", "Mint", "normal"},
		"another payload":     {"States.Census.Parameters.Payload.census", false, "normal"},
		"another error":       {"States.RolledBack.ErrorPath", "$.failure.Cause", "normal, Mint: 1 × Internal"},
		"one retry less":      {"States.Switch.Retry.0.MaxAttempts", 19, "normal, Switch: 21 × Transient"},
		"an error elsewhere":  {"States.Drain.Catch.1.ResultPath", "$.fault", "normal, Drain: 1 × Internal"},
		"a state that is not": {"States.Verify.Next", "Done", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var doc any
			if err := json.Unmarshal(load(t), &doc); err != nil {
				t.Fatal(err)
			}
			mutate(t, doc, strings.Split(tc.at, "."), tc.to)
			text, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			if tc.on == "" {
				if _, complaints := second(t, text, inner, nil); len(complaints) == 0 {
					t.Error("asl-validator says nothing")
				}
				return
			}
			i := slices.IndexFunc(all, func(p *path) bool { return p.name == tc.on })
			if i < 0 {
				t.Fatalf("no path %q", tc.on)
			}
			if theirs, _ := second(t, text, inner, all[i:i+1]); compare(ours[i], theirs[0]) == "" {
				t.Error("both do the same")
			}
		})
	}
}

// compare compares what both did.
func compare(ours, theirs *seen) string {
	a, b := *ours, *theirs
	a.exits, a.after = nil, nil
	a.Output, b.Output = comparable(normal(a.Output)), comparable(b.Output)
	a.Calls, b.Calls = byItem(a.Calls), byItem(b.Calls)
	if a.Error == "States.Runtime" { // each words the cause in its own way
		a.Cause, b.Cause = "", ""
	}
	return cmp.Diff(a, b, cmp.AllowUnexported(seen{}))
}

// byItem sorts the calls of the Map's items behind the others, each in its order, and takes
// out what no two interpreters have in common.
func byItem(calls []invocation) []invocation {
	out := slices.Clone(calls)
	slices.SortStableFunc(out, func(a, b invocation) int {
		if i, j := strings.Contains(a.Key, " "), strings.Contains(b.Key, " "); !i || !j {
			return map[bool]int{true: 1}[i] - map[bool]int{true: 1}[j]
		}
		return strings.Compare(a.Key, b.Key)
	})
	for i := range out {
		out[i].Payload = comparable(normal(out[i].Payload))
	}
	return out
}

// comparable takes out of v when an execution began, its token, and the input of one that
// has been redriven, which the other interpreter runs as a new one.
func comparable(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if n, ok := v["RedriveCount"]; ok {
			delete(v, "StartTime")
			if n != 0. {
				delete(v, "Input")
			}
		}
		delete(v, "task_token")
		for key := range v {
			v[key] = comparable(v[key])
		}
	case []any:
		for i := range v {
			v[i] = comparable(v[i])
		}
	}
	return v
}

// exits names every way out of s and every cause to repeat it, as [Machine.Exit] is told
// them.
func exits(s *State) []string {
	var out []string
	switch {
	case s.Type == "Succeed":
		out = append(out, exitSucceeds)
	case s.Type == "Choice":
		out = append(out, exitDefault)
	case s.Next != "":
		out = append(out, exitNext)
	}
	if s.Type == "Fail" || s.Type == "Task" && len(s.Catch) == 0 {
		out = append(out, exitFails)
	}
	for i := range s.Choices {
		out = append(out, fmt.Sprint(exitChoice, i))
	}
	for i, r := range s.Retry {
		out = append(out, fmt.Sprint(exitExhausted, i))
		for _, name := range r.ErrorEquals {
			out = append(out, exitRetry+name)
		}
	}
	for _, k := range s.Catch {
		for _, name := range k.ErrorEquals {
			if s.Type == "Map" && name != errChildFailed.Name {
				continue // no answer of a function makes a map itself fail
			}
			out = append(out, exitCatch+name)
		}
	}
	return out
}

// second runs the paths in the other interpreter, and the validator.
func second(t *testing.T, definition []byte, inner []string, all []*path) ([]*seen, []json.RawMessage) {
	t.Helper()
	dir, err := filepath.Abs("../../build/asl")
	if err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(dir, "node")
	if _, err := os.Stat(node); errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip("no second interpreter: make asl")
	}
	runs := slices.Clone(all)
	if runs == nil {
		runs = []*path{}
	}
	in, err := json.Marshal(map[string]any{"definition": json.RawMessage(definition), "inner": inner, "base": answers, "runs": runs})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "testdata/second.cjs")
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, stderr.Bytes())
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	result := make([]*seen, len(all))
	for i := range result {
		if err := dec.Decode(&result[i]); err != nil {
			t.Fatal(err)
		}
	}
	var complaints []json.RawMessage
	if err := dec.Decode(&complaints); err != nil {
		t.Fatal(err)
	}
	return result, complaints
}
