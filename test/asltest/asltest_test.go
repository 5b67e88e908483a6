package asltest

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/flow"
)

const source = "../../statemachine.asl.json"

func load(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	return Substitute(b)
}

// kinds reads the names of every journal.Kind from the source, so that a new one
// cannot be forgotten.
func kinds(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../rotation/journal/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || v.Type == nil || len(v.Values) != 1 {
			return true
		}
		lit, isLit := v.Values[0].(*ast.BasicLit)
		if id, isID := v.Type.(*ast.Ident); isLit && isID && id.Name == "Kind" {
			name, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, name)
		}
		return true
	})
	for _, want := range []string{"InvalidInput", "DrainTimeout", "AccessDenied", "Transient", "Internal"} {
		if !slices.Contains(out, want) {
			t.Fatalf("kinds read from errors.go %q lack %s", out, want)
		}
	}
	return out
}

func contracts(t *testing.T) map[string]Contract {
	t.Helper()
	out, err := ReadContracts("../..")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDefinition(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range Check(d, kinds(t), contracts(t)) {
		t.Error(err)
	}
	if d.TimeoutSeconds <= 0 || d.Comment == "" {
		t.Error("the state machine has no timeout or no comment")
	}
}

// TestRefusalsChangedNothing checks that preflight's refusals skip Abandon, which
// works on a rotation of the execution's name, and that only refusals do.
func TestRefusalsChangedNothing(t *testing.T) {
	d, err := Parse(load(t))
	if err != nil {
		t.Fatal(err)
	}
	all := kinds(t)
	refusals := all[:slices.Index(all, "WindowClosed")+1] // as errors.go declares them
	want := []Catcher{{ErrorEquals: refusals, Next: "NotifyRefused"}, {ErrorEquals: []string{"States.ALL"}, Next: "Abandon"}}
	got := slices.Clone(d.States["Preflight"].Catch)
	for i := range got {
		got[i].Comment, got[i].ResultPath = "", nil
		slices.Sort(got[i].ErrorEquals)
		slices.Sort(want[i].ErrorEquals)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Preflight's Catch (-want +got):\n%s", diff)
	}
}

func TestPlaceholders(t *testing.T) {
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"Entrance", "Partition"}
	for _, name := range flow.Functions() {
		want = append(want, name+"FunctionArn")
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, Placeholders(b)); diff != "" {
		t.Errorf("placeholders (-want +got):\n%s", diff)
	}
}

// TestDefinitionIsJSON: every editor, linter and Workflow Studio opens the file as it is.
func TestDefinitionIsJSON(t *testing.T) {
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Error("statemachine.asl.json is no JSON before its placeholders are substituted")
	}
}

// TestPartition: the ARN of a service integration carries the partition, which is another
// one in GovCloud and China.
func TestPartition(t *testing.T) {
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("arn:aws")); n > 0 {
		t.Errorf("%d ARNs of one partition", n)
	}
}

// TestMutations plants one fault each and expects the checker to name it: what
// cannot fail proves nothing.
func TestMutations(t *testing.T) {
	for _, tc := range []struct {
		name, at string // the path of what is changed, dots between
		to       any    // nil deletes
		want     string
	}{
		{"back from the switch", "States.Switch.Catch.1.Next", "PreSwitchFailure", "Switch: a path leads back to PreSwitchFailure"},
		{"back to the approval", "States.Halted.Next", "Approval?", "Switch: a path leads back to Approval?"},
		{"an answer that is asked for for ever", "States.AwaitApproval.Retry.0.ErrorEquals.0", "States.Timeout", `AwaitApproval: retries "States.Timeout"`},
		{"a rejection in an emergency", "States.AwaitApproval.Catch.2.Next", "PreSwitchFailure", "AwaitApproval: goes to PreSwitchFailure without a choice"},
		{"back from drain by next", "States.DrainWait.Next", "Mint", "Switch: a path leads back to Mint"},
		{"back from a choice", "States.RetireDone?.Default", "Remint", "Switch: a path leads back to Remint"},
		{"back from the map", "States.Rewrap.Catch.1.Next", "RollBackOrRemint", "Switch: a path leads back to RollBackOrRemint"},
		{"back from the halt", "States.Halted.Next", "DualUnwrap", "Switch: a path leads back to DualUnwrap"},
		{"a mint without a census", "States.NotifyStarted.Next", "Mint", "Mint: a path leads past Census"},
		{"a test without a rehearsal", "States.Mint.Next", "DualUnwrap", "DualUnwrap: a path leads past Rehearse"},
		{"a switch without a test", "States.Rehearse.Next", "Approval?", "Switch: a path leads past DualUnwrap"},
		{"unaccounted rows are minted for", "States.Census.Catch.0.Next", "Mint", "Census: its failure goes to Mint"},
		{"a failed rehearsal goes on", "States.Rehearse.Catch.0.Next", "DualUnwrap", "Rehearse: its failure goes to DualUnwrap"},
		{"back to the census", "States.Halted.Next", "Census", "Switch: a path leads back to Census"},
		{"emergency rolls back", "States.Mint.Catch.0.Next", "PreSwitchFailure", "Mint: goes to PreSwitchFailure without a choice"},
		{"the choice is inverted", "States.RollBackOrRemint.Choices.0.StringEquals", "normal", "without a choice on the mode"},
		{"the choice sees another field", "States.RollBackOrRemint.Choices.0.Variable", "$.label", "without a choice on the mode"},
		{"a superseded rotation that halts", "States.Drain.Catch.0.Next", "HaltedRecord", "Drain: halts when an emergency has taken over"},
		{"a superseded emergency that halts", "States.Remint.Catch.0.ErrorEquals.0", "MintsExhausted", "Remint: halts when an emergency has taken over"},
		{"no target", "States.Verify.Next", "Done", `goes to "Done", which does not exist`},
		{"no start", "StartAt", "Begin", "names no state"},
		{"unreachable", "States.Verify.Next", "NotifyCompleted", "VerifyDone?: is not reachable"},
		{"no next", "States.Mint.Next", nil, "Mint: a Task with Next"},
		{"a final state goes on", "States.Completed.Next", "Mint", "Completed: a Succeed with Next"},
		{"no timeout", "States.Drain.TimeoutSeconds", nil, "Drain: has no TimeoutSeconds"},
		{"no catch", "States.Drain.Catch", nil, "Drain: does not catch States.ALL"},
		{"catch of one name", "States.Drain.Catch.1.ErrorEquals", []any{"DrainTimeout"}, "Drain: does not catch States.ALL"},
		{"the map does not catch", "States.Rewrap.Catch", nil, "RewrapSegment: does not catch States.ALL"},
		{"a halt that is caught", "States.Halted.Catch", []any{map[string]any{"ErrorEquals": []any{"States.ALL"}, "Next": "Completed"}}, "Halted: has a Catch"},
		{"a refusal is retried", "States.Preflight.Retry.0.ErrorEquals.0", "InvalidInput", `Preflight: retries "InvalidInput"`},
		{"everything is retried", "States.Switch.Retry.0.ErrorEquals", []any{"States.TaskFailed"}, `Switch: retries "States.TaskFailed"`},
		{"no jitter", "States.Switch.Retry.0.JitterStrategy", nil, "Switch: retries without jitter"},
		{"transient is not retried", "States.Switch.Retry.0.ErrorEquals", []any{"States.Timeout"}, "Switch: does not retry Transient"},
		{"a misspelt error", "States.Preflight.Catch.0.ErrorEquals.0", "InvalidInputError", `catches "InvalidInputError", which nothing returns`},
		{"all is not last", "States.Preflight.Catch.0.ErrorEquals.0", "States.ALL", "States.ALL is not alone and last"},
		{"no comment in the map", "States.Rewrap.ItemProcessor.States.RewrapSegmentDone.Comment", nil, "RewrapSegmentDone: has no Comment"},
		{"no comment", "States.Anchor.Comment", nil, "Anchor: has no Comment"},
		{"a census of nothing", "States.Census.Parameters.Payload.census", "yes", `Census: sends "census"`},
		{"unknown payload field", "States.Mint.Parameters.Payload.kek_id", "k", `Mint: sends "kek_id"`},
		{"payload field missing", "States.Mint.Parameters.Payload", map[string]any{}, `Mint: does not send "rotation_id"`},
		{"payload of another type", "States.RewrapComplete.Parameters.Payload.complete", "yes", `RewrapComplete: sends "complete"`},
		{"unknown result field", "States.Switch.ResultSelector.epoch~", "$.Payload.epochs", "which is not always in rotation.SwitchOutput"},
		{"an optional result field", "States.RewrapComplete.ResultSelector.scanned~", "$.Payload.tally.quarantine", "which is not always in"},
		{"unknown function", "States.Mint.Parameters.FunctionName", "${MintingFunctionArn}", `invokes an unknown function "Minting"`},
		{"a path that is not set", "States.Remint.Parameters.Payload.failed_attempt~", "$.mint.attempt", "Remint: reads $.mint.attempt"},
		{"a failure that is dropped", "States.Drain.Catch.1.ResultPath", "$.error", "Halted: reads $.failure.Error"},
		{"an inline map", "States.Rewrap.ItemProcessor.ProcessorConfig.Mode", "INLINE", "Rewrap: has no distributed processor"},
		{"a label with a space", "States.Rewrap.Label", "all segments", `Rewrap: has the label "all segments"`},
		{"a map that tolerates", "States.CensusRows.ToleratedFailurePercentage", 10.0, "CensusRows: tolerates failures"},
		{"a map that keeps its result", "States.CensusRows.ResultPath", "$.rows", "CensusRows: tolerates failures, or keeps its result"},
		{"a map that does not say why", "States.VerifyRows.Catch.0.Next", "HaltedRecord", "VerifyRows: hides why a child execution failed"},
		{"an item without a source", "States.Rewrap.ItemSelector.source~", nil, "RewrapSegment: reads $.source"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var doc any
			if err := json.Unmarshal(load(t), &doc); err != nil {
				t.Fatal(err)
			}
			mutate(t, doc, strings.Split(tc.at, "."), tc.to)
			b, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			d, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, err := range Check(d, kinds(t), contracts(t)) {
				all = append(all, err.Error())
			}
			if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, tc.want) }) {
				t.Errorf("no error holds %q:\n%s", tc.want, strings.Join(all, "\n"))
			}
		})
	}
}

// mutate sets what a path leads to. In a name ~ stands for the suffix ".$".
func mutate(t *testing.T, doc any, path []string, to any) {
	t.Helper()
	name := path[0]
	if n, ok := strings.CutSuffix(name, "~"); ok {
		name = n + ".$"
	}
	switch v := doc.(type) {
	case map[string]any:
		switch {
		case len(path) > 1:
			mutate(t, v[name], path[1:], to)
		case to == nil:
			if _, ok := v[name]; !ok {
				t.Fatalf("nothing to delete at %q", name)
			}
			delete(v, name)
		default:
			v[name] = to
		}
	case []any:
		i, err := strconv.Atoi(name)
		if err != nil || i >= len(v) {
			t.Fatalf("no element %q", name)
		}
		if len(path) > 1 {
			mutate(t, v[i], path[1:], to)
		} else {
			v[i] = to
		}
	default:
		t.Fatalf("nothing at %q", name)
	}
}

func TestParseIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown field": `{"StartAt":"A","States":{"A":{"Type":"Succeed","Assign":{}}}}`,
		"two values":    `{"StartAt":"A","States":{}} {}`,
		"no JSON":       `{"StartAt":`,
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
