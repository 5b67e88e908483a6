package localaws_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// shared is the stack that the tests share: starting one takes seconds. Tests that
// inject faults or count calls do not run in parallel, and start from none.
var shared struct {
	once  sync.Once
	stack *localaws.Stack
	root  string
	err   error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.stack != nil {
		shared.stack.Close()
	}
	_ = os.RemoveAll(shared.root)
	os.Exit(code)
}

// stack returns the shared stack without faults and counts.
func stack(t *testing.T) *localaws.Stack {
	t.Helper()
	shared.once.Do(func() {
		if shared.root, shared.err = makeRoot(); shared.err == nil {
			shared.stack, shared.err = localaws.Start(context.Background(), options(shared.root))
		}
	})
	if errors.Is(shared.err, backend.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.stack.ClearFaults()
	shared.stack.ResetCalls()
	return shared.stack
}

func options(root string) localaws.Options {
	return localaws.Options{
		Root: root, StackName: "teststack", Dir: filepath.Join(root, ".local"),
		Template: filepath.Join(root, "template.yaml"),
		Prepare: func(_ context.Context, s *localaws.Stack) error {
			s.SetParameters(map[string]string{"RetentionDays": "3"})
			return nil
		},
	}
}

// makeRoot makes a directory that looks like a module with one built function.
func makeRoot() (string, error) {
	module, err := backend.Root()
	if err != nil {
		return "", err
	}
	root, err := os.MkdirTemp("", "localaws-")
	if err != nil {
		return "", err
	}
	if err := os.Symlink(filepath.Join(module, ".venv"), filepath.Join(root, ".venv")); err != nil {
		return root, err
	}
	for _, name := range []string{"template.yaml", "machine.asl.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			return root, err
		}
		if err := os.WriteFile(filepath.Join(root, name), b, 0o600); err != nil {
			return root, err
		}
	}
	build := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", filepath.Join(root, "build", "local", "echo", "bootstrap"), "./testdata/echo")
	if out, err := build.CombinedOutput(); err != nil {
		return root, fmt.Errorf("build testdata/echo: %w\n%s", err, out)
	}
	return root, nil
}
