package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// TestCases runs the scripts of testdata/cases, faults that people met in public, on one
// local AWS: each has a deployment of its own on it, but for three that use the stack
// itself. A script says its source's kind of fault and what is right, and exits 0
// if the project does right.
func TestCases(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := deployedWith(t, "cases", nil)
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	matter, err := exec.LookPath("matter") // this program, by TestMain
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob(filepath.Join(root, "testdata", "cases", "[0-9]*.py"))
	if err != nil || len(scripts) < 16 {
		t.Fatalf("%d scripts: %v", len(scripts), err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			w.ClearFaults()
			cmd := exec.CommandContext(t.Context(), filepath.Join(root, ".venv", "bin", "python"), script)
			cmd.Env = append(os.Environ(), "MATTER_BIN="+matter, "PYTHONDONTWRITEBYTECODE=1")
			for name, value := range w.Env() {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			cmd.WaitDelay = time.Second
			out, err := cmd.CombinedOutput()
			var failed *exec.ExitError
			if err != nil && !errors.As(err, &failed) {
				t.Fatal(err)
			}
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}
