package plant

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Table is a Markdown table between two comments of a document. Its first column
// are the names of bugs.
type Table struct {
	Path  string // of the document
	Begin string // the line before the table
	End   string // the line after it
}

// write replaces the table.
func (t Table) write(table string) error {
	before, _, after, err := t.parts()
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.Path, []byte(before+t.Begin+"\n"+table+t.End+after), 0o600); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// Keep replaces the table by rows, or without rows requires that it names these bugs,
// in this order.
func (t Table) Keep(names []string, rows string) error {
	if rows != "" {
		return t.write(rows)
	}
	listed, err := t.Names()
	if err != nil {
		return err
	}
	if !slices.Equal(names, listed) {
		return fmt.Errorf("the table in %s is out of date, make mutants: it names %q, planted are %q", t.Path, listed, names)
	}
	return nil
}

// Lines are the lines of the table.
func (t Table) Lines() ([]string, error) {
	_, table, _, err := t.parts()
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(table), "\n"), nil
}

// Names are the bugs in the table.
func (t Table) Names() (names []string, err error) {
	lines, err := t.Lines()
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		name, _, more := strings.Cut(strings.TrimPrefix(l, "| "), " | ")
		if more && strings.HasPrefix(l, "| ") && name != heading {
			names = append(names, name)
		}
	}
	return names, nil
}

const heading = "planted bug"

func (t Table) parts() (before, table, after string, err error) {
	text, err := os.ReadFile(t.Path)
	if err != nil {
		return "", "", "", fmt.Errorf("read the table: %w", err)
	}
	before, rest, ok := strings.Cut(string(text), t.Begin+"\n")
	table, after, ok2 := strings.Cut(rest, t.End)
	if !ok || !ok2 {
		return "", "", "", fmt.Errorf("%s has no table between %q and %q", t.Path, t.Begin, t.End)
	}
	return before, table, after, nil
}
