package templatetest

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// folders lists the functions that are built.
func folders(t *testing.T) []string {
	t.Helper()
	mains, err := filepath.Glob(filepath.Join(root, "functions", "*", "main.go"))
	if err != nil || len(mains) == 0 {
		t.Fatalf("no functions: %v", err)
	}
	var out []string
	for _, m := range mains {
		out = append(out, filepath.Base(filepath.Dir(m)))
	}
	return out
}

// TestFunctions: each folder of functions/ is one function under the name that
// roles, alarms and state machine know it by, and there is no other.
func TestFunctions(t *testing.T) {
	tpl := load(t)
	ids := map[string]string{} // logical id by folder
	for _, id := range tpl.ofType("AWS::Serverless::Function") {
		ids[strings.ToLower(strings.TrimSuffix(id, "Function"))] = id
	}
	if d := cmp.Diff(folders(t), slices.Sorted(maps.Keys(ids))); d != "" {
		t.Fatalf("functions (-folders +template):\n%s", d)
	}
	for folder, id := range ids {
		p := at[object](t, tpl.Resources, id, "Properties")
		group := strings.TrimSuffix(id, "Function") + "LogGroup"
		for name, want := range map[string]string{
			"FunctionName":  "${AWS::StackName}-" + folder,
			"CodeUri":       "build/functions/" + folder,
			"LoggingConfig": `{"LogGroup":{"Ref":"` + group + `"}}`,
		} {
			if got := text(p[name]); got != want {
				t.Errorf("%s: %s is %s, not %s", id, name, got, want)
			}
		}
		g := at[object](t, tpl.Resources, group, "Properties")
		if text(g["LogGroupName"]) != "/aws/lambda/${AWS::StackName}-"+folder || text(g["RetentionInDays"]) != "${LogRetentionDays}" {
			t.Errorf("%s: %v", group, g)
		}
		if p["ReservedConcurrentExecutions"] != nil || p["Policies"] != nil || p["Environment"] != nil {
			t.Errorf("%s sets what Globals and its role are for", id)
		}
	}
	g := at[object](t, tpl.Globals, "Function")
	if g["Runtime"] != "provided.al2023" || g["Handler"] != "bootstrap" || g["Tracing"] != "Active" || g["ReservedConcurrentExecutions"] != nil {
		t.Errorf("globals: %v", g)
	}
}

var placeholder = regexp.MustCompile(`\$\{(\w+)\}`)

func definition(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "statemachine.asl.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSubstitutions(t *testing.T) {
	tpl := load(t)
	used := map[string]bool{}
	for _, m := range placeholder.FindAllStringSubmatch(definition(t), -1) {
		used[m[1]] = true
	}
	for machine, entrance := range map[string]string{
		"StateMachine":          `{"Fn::If":["SharesEmergencyPermission","any","normal"]}`,
		"EmergencyStateMachine": "emergency",
	} {
		subs := at[object](t, tpl.Resources, machine, "Properties", "DefinitionSubstitutions")
		if d := cmp.Diff(slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(subs))); d != "" {
			t.Errorf("substitutions of %s (-definition +template):\n%s", machine, d)
		}
		for name, v := range subs {
			want := "${" + name + "}"
			if fn, ok := strings.CutSuffix(name, "Arn"); ok {
				want = "${" + fn + ".Arn}"
			}
			switch name {
			case "Entrance":
				want = entrance
			case "Partition":
				want = "${AWS::Partition}"
			}
			if text(v) != want {
				t.Errorf("%s of %s is %s, not %s", name, machine, text(v), want)
			}
		}
	}
	if p := at[object](t, tpl.Parameters, "EmergencyPermission"); p["Default"] != "own" {
		t.Errorf("by default who may start normal rotations may start emergencies: %v", p["Default"])
	}
}

// TestTimeouts: Lambda ends a function before the state machine stops waiting for
// it, or an answer that says what happened would be lost.
func TestTimeouts(t *testing.T) {
	tpl := load(t)
	var asl any
	if err := json.Unmarshal([]byte(definition(t)), &asl); err != nil {
		t.Fatal(err)
	}
	called := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case object:
			if r, _ := v["Resource"].(string); strings.HasPrefix(r, "arn:${Partition}:states:::lambda:invoke") {
				id := placeholder.FindStringSubmatch(at[string](t, v, "Parameters", "FunctionName"))[1]
				id = strings.TrimSuffix(id, "Arn")
				called[id] = true
				lambda := at[int](t, tpl.Resources, id, "Properties", "Timeout")
				task, _ := v["TimeoutSeconds"].(float64)
				if float64(lambda) >= task && !strings.HasSuffix(r, ".waitForTaskToken") { // its timeout is the person's
					t.Errorf("%s may run for %d s, the state machine waits %v s: %v", id, lambda, task, v["Comment"])
				}
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(asl)
	for _, id := range tpl.ofType("AWS::Scheduler::Schedule") {
		arn := at[string](t, tpl.Resources, id, "Properties", "Target", "Arn", "Fn::GetAtt")
		called[strings.TrimSuffix(arn, ".Arn")] = true
	}
	if d := cmp.Diff(tpl.ofType("AWS::Serverless::Function"), slices.Sorted(maps.Keys(called))); d != "" {
		t.Errorf("functions (-template +called):\n%s", d)
	}
}

// TestStateMachines: two standard ones of one definition, whose executions last and can be
// redriven, with their history in one log.
func TestStateMachines(t *testing.T) {
	tpl := load(t)
	for id, name := range map[string]string{"StateMachine": "rotation", "EmergencyStateMachine": "emergency"} {
		want := object{
			"Name": object{"Fn::Sub": "${AWS::StackName}-" + name}, "Type": "STANDARD", "DefinitionUri": "statemachine.asl.json",
			"Role": object{"Fn::GetAtt": "StateMachineRole.Arn"}, "Tracing": object{"Enabled": true},
			"Logging": object{"Level": "ALL", "IncludeExecutionData": true, "Destinations": []any{
				object{"CloudWatchLogsLogGroup": object{"LogGroupArn": object{"Fn::GetAtt": "StateMachineLogGroup.Arn"}}},
			}},
		}
		got := maps.Clone(at[object](t, tpl.Resources, id, "Properties"))
		delete(got, "DefinitionSubstitutions")
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", id, d)
		}
	}
}

// TestParameters: every parameter is described, constrained and used.
func TestParameters(t *testing.T) {
	tpl := load(t)
	source := strings.Join(tpl.lines, "\n")
	_, body, _ := strings.Cut(source, "\nConditions:\n")
	for name := range tpl.Parameters {
		p := at[object](t, tpl.Parameters, name)
		if p["Description"] == nil || p["Default"] == nil {
			t.Errorf("%s needs a description and a default", name)
		}
		if !regexp.MustCompile(`(!Ref |\$\{)` + name + `\b`).MatchString(body) {
			t.Errorf("%s is used nowhere", name)
		}
		kind, free := p["Type"], p["AllowedValues"] == nil && p["AllowedPattern"] == nil
		if kind == "String" && free || kind == "Number" && p["AllowedValues"] == nil && (p["MinValue"] == nil || p["MaxValue"] == nil) {
			t.Errorf("%s is not constrained", name)
		}
		if pattern, ok := p["AllowedPattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(text(p["Default"])) {
			t.Errorf("%s: the default %v is not allowed", name, p["Default"])
		}
		if n, err := strconv.Atoi(text(p["Default"])); kind == "Number" && p["MinValue"] != nil &&
			(err != nil || n < at[int](t, p, "MinValue") || n > at[int](t, p, "MaxValue")) {
			t.Errorf("%s: the default %v is out of bounds", name, p["Default"])
		}
	}
}
