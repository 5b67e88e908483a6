package asltest

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const small = `{
  "StartAt": "A",
  "States": {
    "A": {"Type": "Task", "Parameters": {"FunctionName": "${MintFunctionArn}", "Payload": {"id.$": "$$.Execution.Name", "n.$": "$.n"}},
      "Retry": [{"ErrorEquals": ["Transient"], "MaxAttempts": 2}], "ResultSelector": {"ok.$": "$.Payload.ok"}, "ResultPath": "$.a",
      "Catch": [{"ErrorEquals": ["Odd"], "ResultPath": "$.failure", "Next": "Halt"}], "Next": "Ok?"},
    "Ok?": {"Type": "Choice", "Choices": [{"Variable": "$.a.ok", "BooleanEquals": true, "Next": "Each"}], "Default": "Pause"},
    "Pause": {"Type": "Wait", "SecondsPath": "$.pause", "Next": "A"},
    "Halt": {"Type": "Task", "Parameters": {"FunctionName": "${NotifyFunctionArn}",
      "Payload": {"redrives.$": "$$.Execution.RedriveCount", "cause.$": "$.failure.Cause"}}, "ResultPath": null, "Next": "A"},
    "Each": {"Type": "Map", "ItemsPath": "$.items", "ItemSelector": {"v.$": "$$.Map.Item.Value", "n.$": "$.n"},
      "ItemProcessor": {"StartAt": "I", "States": {
        "I": {"Type": "Task", "Parameters": {"FunctionName": "${RewrapFunctionArn}", "Payload": {"v.$": "$.v"}}, "Next": "J"},
        "J": {"Type": "Succeed", "OutputPath": "$.Payload"}}},
      "ResultPath": "$.each", "Next": "End"},
    "End": {"Type": "Succeed", "OutputPath": "$.each"}
  }
}`

// TestRun holds the interpreter to what Step Functions does with retries, catches,
// waits, maps, paths and redrives.
func TestRun(t *testing.T) {
	d, err := Parse([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	answers := []any{
		&Failure{"Transient", "1"}, &Failure{"Transient", "2"}, &Failure{"Transient", "3"}, // one more than is retried
	}
	var waited int
	m := &Machine{
		Definition: d,
		Wait:       func(s int) { waited += s },
		Invoke: func(state, function string, payload []byte) ([]byte, *Failure) {
			calls = append(calls, fmt.Sprintf("%s %s %s", state, function, payload))
			if function == "Rewrap" {
				return payload, nil
			}
			a := answers[0]
			answers = answers[1:]
			if f, ok := a.(*Failure); ok {
				return nil, f
			}
			b, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			return b, nil
		},
	}
	e := m.Start("x", map[string]any{"n": 1, "pause": 7, "items": []string{"p", "q"}})
	if e.Status != "FAILED" || e.Final != "A" || e.Failure.Name != "Transient" {
		t.Fatalf("after retries: %s in %s: %v", e.Status, e.Final, e.Failure)
	}
	answers = []any{&Failure{"Odd", "strange"}, &Failure{"Halted", ""}}
	e.Redrive()
	if e.Status != "FAILED" || e.Final != "Halt" || e.Failure.Name != "Halted" {
		t.Fatalf("after a halt: %s in %s: %v", e.Status, e.Final, e.Failure)
	}
	answers = []any{struct{}{}, map[string]any{"ok": false}, map[string]any{"ok": true}}
	e.Redrive()
	if e.Status != "SUCCEEDED" || waited != 7 {
		t.Fatalf("at the end: %s in %s: %v, waited %d", e.Status, e.Final, e.Failure, waited)
	}
	if diff := cmp.Diff([]any{map[string]any{"v": "p"}, map[string]any{"v": "q"}}, e.Output); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	a := `A Mint {"id":"x","n":1}`
	want := []string{
		a, a, a, // retried twice
		a, `Halt Notify {"cause":"strange","redrives":1}`, `Halt Notify {"cause":"strange","redrives":2}`,
		a, a, `I Rewrap {"v":"p"}`, `I Rewrap {"v":"q"}`,
	}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// TestMapRunRedriven: an execution that failed in a Map continues its map run when it is
// redriven, as Step Functions documents it. Each item is worked on to its end once, whatever
// was redriven how often, and the parent learns nothing of what failed in a child.
func TestMapRunRedriven(t *testing.T) {
	d, err := Parse([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	failing := map[string]int{"q": 2, "r": 1} // how often each item fails
	var calls []string
	m := &Machine{Definition: d, Wait: func(int) {}}
	m.Invoke = func(_, function string, payload []byte) ([]byte, *Failure) {
		if function != "Rewrap" {
			return []byte(`{"ok":true}`), nil
		}
		var in struct{ V string }
		if err := json.Unmarshal(payload, &in); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, in.V)
		if failing[in.V]--; failing[in.V] >= 0 {
			return nil, &Failure{"Odd", "strange"}
		}
		return payload, nil
	}
	e := m.Start("x", map[string]any{"n": 1, "items": []string{"p", "q", "r", "s"}})
	redrives := 0
	for ; e.Status == "FAILED" && redrives < 9; redrives++ {
		if e.Final != "Each" || e.Failure.Name != "States.ExceedToleratedFailureThreshold" {
			t.Fatalf("failed in %s: %v", e.Final, e.Failure)
		}
		e.Redrive()
	}
	if diff := cmp.Diff([]string{"p", "q", "q", "q", "r", "r", "s"}, calls); diff != "" || redrives != 3 {
		t.Errorf("%d redrives, calls (-want +got):\n%s", redrives, diff)
	}
	item := func(v string) any { return map[string]any{"v": v} }
	if diff := cmp.Diff([]any{item("p"), item("q"), item("r"), item("s")}, e.Output); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
}

// TestRunFailsOnMissingPaths checks that a path that is not there fails the
// execution past every Catch, and that a machine that goes in circles ends.
func TestRunFailsOnMissingPaths(t *testing.T) {
	d, err := Parse([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{
		Definition: d, Wait: func(int) {}, MaxSteps: 50,
		Invoke: func(string, string, []byte) ([]byte, *Failure) { return []byte(`{"ok":false}`), nil },
	}
	if e := m.Start("x", map[string]any{}); e.Failure == nil || e.Failure.Name != "States.Runtime" {
		t.Errorf("without $.n: %v", e.Failure)
	}
	if e := m.Start("x", map[string]any{"n": 1, "pause": 0}); e.Failure == nil || e.Failure.Name != "States.Runtime" {
		t.Errorf("a circle: %v", e.Failure)
	}
}
