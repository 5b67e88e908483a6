package plant_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/plant"
)

// program is a module of one package whose program says what two files make of it.
func program(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":     "module example.org/p\n\ngo 1.26\n",
		"main.go":    "package main\n\nfunc main() { print(a(), b()) }\n",
		"sub/doc.go": "package sub\n",
		"a.go":       "package main\n\nfunc a() string { return \"good \" }\n",
		"b.go":       "package main\n\nfunc b() string { return \"and fine\" }\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestOverlay: the build has the bug, in every file of it, and the sources do not.
func TestOverlay(t *testing.T) {
	root := program(t)
	bug := plant.Bug{Name: "b", File: "a.go", With: []string{"good", "bad", "b.go", "", "and", "but", "fine", "well"}}
	list, err := bug.Overlay(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{"bad but well": {"run", "-overlay", list, "."}, "good and fine": {"run", "."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "GOFLAGS=", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("go %v says %q, %v; want %q", args, out, err, want)
		}
	}
}

// TestBugsThatDoNotFit are noticed.
func TestBugsThatDoNotFit(t *testing.T) {
	root := program(t)
	for want, bug := range map[string]plant.Bug{
		`"evil" is in a.go 0 times`: {Name: "gone", File: "a.go", With: []string{"evil", "x"}},
		`"a" is in a.go`:            {Name: "twice", File: "a.go", With: []string{"a", "x"}},
		"no such file":              {Name: "file", File: "c.go", With: []string{"good", "x"}},
	} {
		if _, err := bug.Overlay(root, t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", bug.Name, err, want)
		}
	}
}

func TestTable(t *testing.T) {
	table := plant.Table{Path: filepath.Join(t.TempDir(), "doc.md"), Begin: "<!-- bugs -->", End: "<!-- end -->"}
	const before, after = "# Bugs\n\n<!-- bugs -->\n", "<!-- end -->\n\n| no bug | x |\n"
	if err := os.WriteFile(table.Path, []byte(before+after), 0o600); err != nil {
		t.Fatal(err)
	}
	const rows = "| planted bug | in |\n|---|---|\n| one | `a.go` |\n| two | `b.go` |\n"
	if err := table.Keep(nil, rows); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(table.Path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before+rows+after, string(text)); d != "" {
		t.Errorf("the document (-want +got):\n%s", d)
	}
	names, err := table.Names()
	if d := cmp.Diff([]string{"one", "two"}, names); d != "" || err != nil {
		t.Errorf("names, %v (-want +got):\n%s", err, d)
	}
	if err := table.Keep([]string{"one", "two"}, ""); err != nil {
		t.Error(err)
	}
	if err := table.Keep([]string{"two", "one"}, ""); err == nil {
		t.Error("a table of other bugs passes")
	}
	table.Begin = "<!-- none -->"
	if _, err := table.Names(); err == nil {
		t.Error("a document without the table has one")
	}
}
