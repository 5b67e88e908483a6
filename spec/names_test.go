package spec

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	cited   = regexp.MustCompile(`\([sS]pec: ([^)]*)\)`)
	comment = regexp.MustCompile(`\n\s*//\s*`)
	name    = regexp.MustCompile(`\b(?:[A-Z]|cx_)\w*`)
	defined = regexp.MustCompile(`(?m)^([A-Z]\w*)(?:\([^)]*\))? *==`)
)

// TestCitedNamesExist: what a comment of the code cites as (spec: X) is defined in one of
// the modules, or is a variant.
func TestCitedNamesExist(t *testing.T) {
	known := map[string]bool{}
	for _, text := range []string{Rotation, Outbox, Doctor, Lag, SetBack, Checkpoint, Archive, Keyed, Evidence, Refines} {
		for _, m := range defined.FindAllStringSubmatch(text, -1) {
			known[m[1]] = true
		}
	}
	for _, v := range variants {
		known[v.name] = true
	}
	citations := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if n := d.Name(); n != ".." && (strings.HasPrefix(n, ".") || n == "build" || n == "testdata") {
				return fs.SkipDir
			}
			return nil
		case filepath.Ext(path) != ".go" || path == filepath.Join("..", "spec", "names_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err //nolint:wrapcheck // has the path
		}
		text := comment.ReplaceAllString(string(b), " ")
		for _, m := range cited.FindAllStringSubmatch(text, -1) {
			names := name.FindAllString(m[1], -1)
			if len(names) == 0 {
				t.Errorf("%s: %s names nothing", path, m[0])
			}
			for _, n := range names {
				citations++
				if !known[n] {
					t.Errorf("%s: %s: no module defines %s", path, m[0], n)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if citations < 40 {
		t.Errorf("only %d citations found: the test looks in the wrong place", citations)
	}
}
