package integration

import (
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/sample"
)

const urgent = `{"mode":"emergency","reason":"key material seen in a paste"}`

// reaches waits until a rotation stands at a phase.
func (w *world) reaches(t *testing.T, id string, phase kek.Phase) {
	t.Helper()
	for range 600 {
		if r := w.view(t, id).Rotation; r != nil && r.Phase == phase {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s does not come to %s: %+v", id, phase, w.view(t, id).Rotation)
}

// takesOver runs an emergency beside a rotation that is under way, to its end.
func (w *world) takesOver(t *testing.T, ledger *sample.Ledger, id, other string, ends kek.Phase) {
	t.Helper()
	if o := w.rotate(t, id, urgent); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	r, ended := w.view(t, id).Rotation, w.view(t, other).Rotation
	if r.Phase != kek.Completed || ended.Phase != ends || ended.EndedBy != id || !slices.Equal(r.TookOver, []string{other}) {
		t.Errorf("the emergency %+v\nthe other %+v", r, ended)
	}
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(r.NewKEK)}) {
		t.Errorf("enabled KMS keys %v, want the emergency's %s alone", got, r.NewKEK)
	}
	w.mustHold(t)
	w.rowsHold(t, ledger, other, id)
}

// TestTakeOverFromApproval: an emergency does not wait for the second person of a planned
// rotation, which then ends by itself and pages nobody (cases/06).
func TestTakeOverFromApproval(t *testing.T) {
	w := up(t, map[string]string{"ApprovalRequired": "true", "ApprovalSeconds": "20"})
	w.traced(t)
	ledger := w.readRows(t)
	planned := w.start(t, "planned", `{"requested_by":"schedule"}`)
	w.reaches(t, "planned", kek.Tested)
	w.takesOver(t, ledger, "urgent", "planned", kek.RolledBack)
	if o := w.finish(t, planned); slices.Contains(o.States, "Halted") || slices.Contains(o.States, "HaltedBeforeSwitch") || !slices.Contains(o.States, "RolledBack") {
		t.Error(describe(o))
	}
}

// TestTakeOverFromHalt: a planned rotation has halted after its switch, at each function
// from there on. The emergency leaves both its KEKs; the other, resumed by somebody who
// has not heard of it, ends as superseded.
func TestTakeOverFromHalt(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	ledger := w.readRows(t)
	for _, at := range []struct {
		service, operation, function, code string
		phase                              kek.Phase
	}{
		{"dynamodb", "PutItem", "drain", "AccessDeniedException", kek.Switched},
		{"dynamodb", "Scan", "retire", "AccessDeniedException", kek.Rewrapped},
		// A denial would be tried again for minutes: the old KEK is as young as the rotation before.
		{"kms", "DisableKey", "retire", "ValidationException", kek.KEKRetired},
	} {
		w.inject(t, map[string]any{
			"service": at.service, "operation": at.operation, "function": at.function, "mode": "error", "error_code": at.code, "times": 1000,
		})
		planned := "planned-" + string(at.phase)
		if o := w.rotate(t, planned, `{}`); !slices.Contains(o.States, "Halted") {
			t.Fatal(describe(o))
		}
		w.ClearFaults()
		if r := w.view(t, planned).Rotation; r.Phase != at.phase {
			t.Fatalf("%s has halted at %s", planned, r.Phase)
		}
		w.takesOver(t, ledger, "urgent-"+string(at.phase), planned, kek.Superseded)
		if o := w.rotate(t, "resume-"+string(at.phase), `{"resume":"`+planned+`"}`); o.Status != types.ExecutionStatusFailed || slices.Contains(o.States, "Halted") {
			t.Error(describe(o))
		}
	}
}
