package templatetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// tool returns a program of the Python environment that make makes; in CI it must
// be there.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, ".venv", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("no %s: run make first", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "SAM_CLI_TELEMETRY=0", "AWS_DEFAULT_REGION=eu-central-1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

func TestCfnLint(t *testing.T) {
	run(t, "cfn-lint", "template.yaml")
}

func TestSAMValidate(t *testing.T) {
	run(t, "sam", "validate", "--lint", "--template", "template.yaml", "--region", "eu-central-1")
}
