package mutation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
)

// Equivalent names mutants of one function that no test can kill, and says why.
type Equivalent struct {
	File     string   `json:"file"`
	Function string   `json:"function"`
	Changes  []string `json:"changes"`
	Reason   string   `json:"reason"`
}

// ReadEquivalents reads a list of equivalents. Each must have a reason.
func ReadEquivalents(file string) (list []Equivalent, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for i, e := range list {
		if e.File == "" || len(e.Changes) == 0 || e.Reason == "" {
			return nil, fmt.Errorf("%s: entry %d lacks its file, changes or reason", file, i+1)
		}
	}
	return list, nil
}

// matchEquivalents finds the mutants of the package in dir that are listed. An entry
// that is no mutant of it is an error: the code has changed, and the reason with it.
func matchEquivalents(dir string, mutants []*Mutant, list []Equivalent) (map[*Mutant]bool, error) {
	type key struct{ file, function, change string }
	known := map[key]*Mutant{}
	for _, m := range mutants {
		known[key{m.File, m.Function, m.Change}] = m
	}
	matched := map[*Mutant]bool{}
	var faults []error
	for _, e := range list {
		if path.Dir(e.File) != dir {
			continue
		}
		for _, c := range e.Changes {
			m := known[key{e.File, e.Function, c}]
			switch {
			case m == nil:
				faults = append(faults, fmt.Errorf("equivalents: %s %s has no mutant %q: remove the entry, or correct it", e.File, e.Function, c))
			case matched[m]:
				faults = append(faults, fmt.Errorf("equivalents: %s is listed twice", m))
			default:
				matched[m] = true
			}
		}
	}
	return matched, errors.Join(faults...)
}
