package flow_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/flow"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
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
	called := flow.Functions()
	for _, name := range called {
		if _, err := os.Stat(filepath.Join("..", "functions", strings.ToLower(name), "main.go")); err != nil {
			t.Error(err)
		}
	}
	if len(called) < 11 || called[0] != "Preflight" || called[len(called)-1] != "Notify" {
		t.Errorf("the state machine calls %v", called)
	}
}

// TestFind: states are found by name, those of a map too, and a failure by its kind.
func TestFind(t *testing.T) {
	for _, name := range []string{"Preflight", "RewrapSegment", "Halted"} {
		if s, ok := flow.FindState(name); !ok || s.Name != name {
			t.Errorf("%s: %+v, %t", name, s, ok)
		}
	}
	if _, ok := flow.FindState("Nothing"); ok {
		t.Error("a state that is not there was found")
	}
	preflight, _ := flow.FindState("Preflight")
	for kind, next := range map[journal.Kind]string{journal.WindowClosed: "NotifyRefused", journal.Internal: "Abandon"} {
		if c, ok := preflight.CatchOf(kind); !ok || c.Next != next {
			t.Errorf("%s goes to %q, %t", kind, c.Next, ok)
		}
	}
	halt, _ := flow.FindState("Halted")
	if c, ok := halt.CatchOf(journal.Internal); ok {
		t.Errorf("a halt is caught by %+v", c)
	}
	if !slices.Contains(flow.Refusals, journal.RowsUnaccounted) {
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
		if s, ok := flow.StateAt(tc.r); s.Name != tc.state || ok != (tc.state != "") {
			t.Errorf("%s counted %t rehearsed %q: %q, want %q", tc.r.Phase, tc.r.Counted, tc.r.Rehearsed, s.Name, tc.state)
		}
		if got := flow.CommandAt(tc.r.Phase); got != tc.command {
			t.Errorf("%s: command %q, want %q", tc.r.Phase, got, tc.command)
		}
	}
}
