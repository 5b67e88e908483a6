package spec

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestNamedVariants: a variant that a document or a comment names is there. A name that ends
// in _ or * is the beginning of one.
func TestNamedVariants(t *testing.T) {
	named := regexp.MustCompile(`\b(?:cx|ok|live|reach|deep|walk)_[a-z0-9_]+\*?`)
	files, names := 0, 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir() || !slices.Contains([]string{".md", ".tla"}, filepath.Ext(path)):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, name := range named.FindAllString(string(b), -1) {
			names++
			beginning, cut := strings.CutSuffix(name, "*")
			cut = cut || strings.HasSuffix(name, "_")
			known := func(v variant) bool { return v.name == name || cut && strings.HasPrefix(v.name, beginning) }
			if !slices.ContainsFunc(variants, known) {
				t.Errorf("%s names %s, which is no variant", path, name)
			}
		}
		return nil
	})
	if err != nil || files < 10 || names < 100 {
		t.Errorf("%d files name %d variants: %v", files, names, err)
	}
}

// TestAssumptions: each assumption says whether it is so, what breaks if it is not, as a
// variant shows it, and who checks it: code, a test, or that it is left to people.
func TestAssumptions(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n## Assumptions\n")
	section, _, ok2 := strings.Cut(rest, "\n## ")
	if !ok || !ok2 {
		t.Fatal("README.md has no section Assumptions")
	}
	rows := 0
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| assumption ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		if !strings.Contains(cells[2], "`") {
			t.Errorf("no variant shows what breaks: %s", line)
		}
		if !strings.Contains(cells[3], "Test") && !strings.Contains(strings.ToLower(cells[3]), "nobody") {
			t.Errorf("neither a test nor nobody checks it: %s", line)
		}
	}
	if rows < 12 {
		t.Errorf("only %d assumptions", rows)
	}
}
