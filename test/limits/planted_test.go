package limits_test

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/matter-ops/kms-rotation/test/plant"
)

// planted are bugs of the budgets, and the test that finds each.
var planted = []struct {
	plant.Bug
	test string
}{
	{plant.Bug{Name: "budget ignored", File: "internal/budget/budget.go", With: []string{
		"if err := b.limiter.Wait(ctx); err != nil {", "if err := ctx.Err(); err != nil {",
	}}, "TestBudgetWithoutSample"},
	{plant.Bug{Name: "a refusal changes nothing", File: "internal/budget/budget.go", With: []string{
		"\tb.bound = lessAtOnce * was\n\tb.rise = 0\n\tb.next = now.Add(recoverAfter)\n", "\t_ = was\n",
	}}, "TestBudgetFallsAndRises"},
}

// TestPlantedBugs: with MATTER_MUTANTS each bug is built into the test that finds it, which
// must fail; without it, each still fits the sources.
func TestPlantedBugs(t *testing.T) {
	root := os.Getenv("MATTER_ROOT")
	if root == "" {
		root = "../.."
	}
	for _, bug := range planted {
		t.Run(bug.Name, func(t *testing.T) {
			if os.Getenv("MATTER_MUTANTS") == "" {
				if _, err := bug.Files(root); err != nil {
					t.Error(err)
				}
				return
			}
			list, err := bug.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", list, "-run", "^"+bug.test+"$", "./test/limits")
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if !bytes.Contains(out, []byte("--- FAIL: "+bug.test)) {
				t.Errorf("%s does not find it: %v\n%s", bug.test, err, out)
			}
		})
	}
}
