package templatetest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// decoders has, by function, what its input decodes to; execution is what people and
// the schedule start the state machine with.
var decoders = map[string]func([]byte) error{
	"preflight":  decodes[rotation.PreflightInput],
	"mint":       decodes[rotation.StepInput],
	"dualunwrap": decodes[rotation.StepInput],
	"switch":     decodes[rotation.StepInput],
	"drain":      decodes[rotation.StepInput],
	"rewrap":     decodes[rotation.RewrapInput],
	"retire":     decodes[rotation.RetireInput],
	"anchor":     decodes[rotation.AnchorInput],
	"verify":     decodes[rotation.VerifyInput],
	"notify":     decodes[rotation.NotifyInput],
	"approve":    decodes[rotation.ApprovalInput],
	"health":     decodes[rotation.HealthInput],
	"schedule":   decodes[rotation.ScheduleInput],
	"execution":  decodes[rotation.ExecutionInput],
}

func decodes[In any](b []byte) error {
	_, err := lambdastep.Decode[In](b)
	return err
}

// event reads events/<name>.json.
func event[In any](t *testing.T, name string) In {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	in, err := lambdastep.Decode[In](b)
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
	seen := map[string]bool{}
	for _, f := range files {
		name, ok := strings.CutSuffix(filepath.Base(f), ".json")
		function, _, _ := strings.Cut(name, "-")
		decode := decoders[function]
		if !ok || decode == nil {
			t.Errorf("%s: want <function>.json, <function>-<variant>.json or execution-<mode>.json", f)
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(b); err != nil {
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
	if got := len(folders(t)) + 1; got != len(decoders) {
		t.Errorf("%d functions and the execution, %d decoders", got-1, len(decoders))
	}
}

// TestExecutionEvents: each way to start asks for what its name says.
func TestExecutionEvents(t *testing.T) {
	for name, want := range map[string]rotation.ExecutionInput{
		"blank": {}, "scheduled": {RequestedBy: "schedule"}, "drill": {Drill: rotation.DrillFailure},
	} {
		if in := event[rotation.ExecutionInput](t, "execution-"+name); in != want {
			t.Errorf("%s: %+v", name, in)
		}
	}
	if in := event[rotation.PreflightInput](t, "preflight-announce"); !in.CheckOnly || !in.Announce {
		t.Errorf("announce: %+v", in)
	}
	normal := event[rotation.ExecutionInput](t, "execution-normal")
	if _, err := rotation.ParseWindow(normal.Window, nil); err != nil || normal.Mode != string(kek.Normal) || kek.CheckLabel(normal.Label) != nil {
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
	redriven := event[rotation.NotifyInput](t, "notify-redriven")
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
