// Package plant plants bugs in the project's sources for the tests which show that
// they would be found: it builds with go's -overlay, so no file is touched, and
// keeps the tables of documents that say what found which.
package plant

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Bug is texts of the sources that are replaced.
type Bug struct {
	Name string
	File string   // under the root; where the first texts are
	With []string // old, new, old, new, …; the name of a .go file and "" change the file
}

// Files are the sources with the bug in them, by their names under the root. Each
// old text must be there exactly once, so that a bug that no longer fits is noticed.
func (b Bug) Files(root string) (map[string]string, error) {
	out, file := map[string]string{}, b.File
	for i := 0; i < len(b.With); i += 2 {
		old, with := b.With[i], b.With[i+1]
		if strings.HasSuffix(old, ".go") && with == "" {
			file = old
			continue
		}
		if _, ok := out[file]; !ok {
			text, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return nil, fmt.Errorf("plant %q: %w", b.Name, err)
			}
			out[file] = string(text)
		}
		if n := strings.Count(out[file], old); n != 1 {
			return nil, fmt.Errorf("plant %q: %q is in %s %d times, not once: correct the bug", b.Name, old, file, n)
		}
		out[file] = strings.Replace(out[file], old, with, 1)
	}
	return out, nil
}

// Overlay writes into dir what go's -overlay takes, and returns the path of its list.
func (b Bug) Overlay(root, dir string) (string, error) {
	files, err := b.Files(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("plant %q: %w", b.Name, err)
		}
		replace[filepath.Join(root, file)] = path
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("plant %q: %w", b.Name, err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, text, 0o600); err != nil {
		return "", fmt.Errorf("plant %q: %w", b.Name, err)
	}
	return list, nil
}
