package flow_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// TestDefinitionIsGenerated: the committed state machine is the table's.
func TestDefinitionIsGenerated(t *testing.T) {
	want, err := flow.Definition()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../statemachine.asl.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("go generate ./flow writes it (-table +file):\n%s", diff)
	}
}

// TestFunctions: each function that a state calls is there.
func TestFunctions(t *testing.T) {
	called := 0
	for _, s := range flow.Rotation {
		if s.Type != flow.Task {
			continue
		}
		called++
		if _, err := os.Stat(filepath.Join("..", "functions", s.Folder(), "main.go")); err != nil {
			t.Errorf("state %s calls %s: %v", s.Name, s.Function, err)
		}
	}
	if called < 15 {
		t.Errorf("only %d states call functions", called)
	}
}

// TestFind: states are found by name, those of a map too, and a failure by its kind.
func TestFind(t *testing.T) {
	for _, name := range []string{"Preflight", "RewrapSegment", "Halted"} {
		if s, ok := flow.Find(name); !ok || s.Name != name {
			t.Errorf("%s: %+v, %t", name, s, ok)
		}
	}
	if _, ok := flow.Find("Nothing"); ok {
		t.Error("a state that is not there was found")
	}
	preflight, _ := flow.Find("Preflight")
	for kind, next := range map[rotation.Kind]string{rotation.WindowClosed: "NotifyRefused", rotation.Internal: "Abandon"} {
		if c, ok := preflight.CatchOf(kind); !ok || c.Next != next {
			t.Errorf("%s goes to %q, %t", kind, c.Next, ok)
		}
	}
	halt, _ := flow.Find("Halted")
	if c, ok := halt.CatchOf(rotation.Internal); ok {
		t.Errorf("a halt is caught by %+v", c)
	}
	if !slices.Contains(flow.Refusals, rotation.RowsUnaccounted) {
		t.Error("rows that are not accounted for are missing from the refusals")
	}
}

// TestAt: where a rotation continues, and by which command a person takes the step.
func TestAt(t *testing.T) {
	for _, tc := range []struct {
		r       kek.Rotation
		state   string
		command string
	}{
		{kek.Rotation{Phase: kek.Started, Mode: kek.Normal}, "Census", "kms-mint-kek"},
		{kek.Rotation{Phase: kek.Started, Mode: kek.Normal, Counted: true}, "Mint", "kms-mint-kek"},
		{kek.Rotation{Phase: kek.Started, Mode: kek.Emergency}, "Mint", "kms-mint-kek"},
		{kek.Rotation{Phase: kek.Minted, NewKEK: "new"}, "Rehearse", "kms-dual-unwrap"},
		{kek.Rotation{Phase: kek.Minted, NewKEK: "new", Rehearsed: "new"}, "DualUnwrap", "kms-dual-unwrap"},
		{kek.Rotation{Phase: kek.Tested}, "Switch", "kms-switch-pointer"},
		{kek.Rotation{Phase: kek.Switched}, "Drain", "kms-watch-drain"},
		{kek.Rotation{Phase: kek.Drained}, "RewrapComplete", "kms-rewrap"},
		{kek.Rotation{Phase: kek.Rewrapped}, "Retire", "kms-retire-kek"},
		{kek.Rotation{Phase: kek.KEKRetired}, "Verify", "verify-kms-rotation"},
		{kek.Rotation{Phase: kek.Completed}, "", ""},
		{kek.Rotation{Phase: kek.RolledBack}, "", ""},
		{kek.Rotation{}, "", ""},
	} {
		if s, ok := flow.At(tc.r); s.Name != tc.state || ok != (tc.state != "") {
			t.Errorf("%s counted %t rehearsed %q: %q, want %q", tc.r.Phase, tc.r.Counted, tc.r.Rehearsed, s.Name, tc.state)
		}
		if got := flow.CommandAt(tc.r.Phase); got != tc.command {
			t.Errorf("%s: command %q, want %q", tc.r.Phase, got, tc.command)
		}
	}
}
