package templatetest

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

// event reads events/<name>.json.
func event[In any](t *testing.T, name string) In {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	in, err := lambdastep.DecodePayload[In](b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return in
}

// TestEvents: each example is taken as it stands, and no function is without one.
func TestEvents(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "events", "*"))
	if err != nil {
		t.Fatal(err)
	}
	contracts, err := asltest.ReadContracts(root)
	if err != nil {
		t.Fatal(err)
	}
	contracts["execution"] = asltest.Contract{In: reflect.TypeFor[rotation.ExecutionInput]()} // what people and the schedule start the machines with
	seen := map[string]bool{}
	for _, f := range files {
		name, ok := strings.CutSuffix(filepath.Base(f), ".json")
		function, _, _ := strings.Cut(name, "-")
		contract, known := contracts[function]
		if !ok || !known {
			t.Errorf("%s: want <function>.json, <function>-<variant>.json or execution-<mode>.json", f)
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := lambdastep.DecodeInto(b, reflect.New(contract.In).Interface()); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		seen[name] = true
	}
	want := append(folders(t), "execution-scheduled", "execution-normal", "execution-emergency", "execution-resume",
		"execution-blank", "execution-drill", "preflight-check-only", "preflight-announce", "verify-census", "rewrap-rehearse")
	for _, name := range want {
		if !seen[name] {
			t.Errorf("there is no events/%s.json", name)
		}
	}
}

// TestExecutionEvents: each way to start asks for what its name says.
func TestExecutionEvents(t *testing.T) {
	for name, want := range map[string]rotation.ExecutionInput{
		"blank": {}, "scheduled": {RequestedBy: "schedule"}, "drill": {Drill: gates.DrillFailure},
	} {
		if in := event[rotation.ExecutionInput](t, "execution-"+name); in != want {
			t.Errorf("%s: %+v", name, in)
		}
	}
	if in := event[rotation.PreflightInput](t, "preflight-announce"); !in.CheckOnly || !in.Announce {
		t.Errorf("announce: %+v", in)
	}
	normal := event[rotation.ExecutionInput](t, "execution-normal")
	if _, err := gates.ParseWindow(normal.Window, nil); err != nil || normal.Mode != string(kek.Normal) || kek.CheckLabel(normal.Label) != nil {
		t.Errorf("normal: %+v, %v", normal, err)
	}
	if in := event[rotation.ExecutionInput](t, "execution-emergency"); in.Mode != string(kek.Emergency) || in.Reason == "" {
		t.Errorf("emergency: %+v", in)
	}
	if in := event[rotation.ExecutionInput](t, "execution-resume"); in != (rotation.ExecutionInput{Resume: in.Resume}) || kek.CheckRotationID(in.Resume) != nil {
		t.Errorf("resume: %+v", in)
	}
	if in := event[rotation.PreflightInput](t, "preflight-check-only"); !in.CheckOnly || kek.CheckRotationID(in.ExecutionName) != nil {
		t.Errorf("check only: %+v", in)
	}
	if in := event[rotation.VerifyInput](t, "verify-census"); !in.Census {
		t.Errorf("census: %+v", in)
	}
	if in := event[rotation.RewrapInput](t, "rewrap-rehearse"); !in.Rehearse {
		t.Errorf("rehearse: %+v", in)
	}
	redriven := event[journal.Notice](t, "notify-redriven")
	if redriven.HaltedIn == nil || redriven.Execution.RedriveCount <= redriven.HaltedIn.RedriveCount {
		t.Errorf("redriven: %+v", redriven)
	}
	actions := []string{rotation.ActionPreSwitchFailure, rotation.ActionRemint, rotation.ActionAbandon}
	for _, name := range []string{"pre-switch-failure", "remint", "abandon"} {
		if in := event[rotation.RetireInput](t, "retire-"+name); !slices.Contains(actions, in.Action) || in.Action != strings.ReplaceAll(name, "-", "_") {
			t.Errorf("%s: %+v", name, in)
		}
	}
}
