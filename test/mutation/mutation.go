// Package mutation measures the tests of this repository's packages: it makes small
// changes of a package's source, as a programmer makes them by mistake, and counts
// those that the package's own tests notice. test/plant plants a few bugs that
// were chosen by hand and asks the large tests to find them; here every line is
// changed and the small tests must.
//
// All mutants of a package are compiled into one test binary. Each changed place is
// a call of a helper that returns what the source says, unless the environment
// names the mutant of this place:
//
//	if len(payload) < Overhead {                                    // the source
//	if mutationBool(1, 2, mutationLess(3, len(payload), Overhead)) { // as compiled
//
// So a mutant costs one run of the tests, not a build. The helper also records which
// places a test reaches, and a mutant is tried only on the tests that reach it, the
// fastest first. The sources are not touched (go test -overlay).
//
// A mutant is killed when a test fails, panics, or takes much longer than without
// it. It survives when every test that reaches it passes; a mutant that no test
// reaches counts against the score as a survivor does. A mutant that no test can
// kill, because the program does the same, is listed with the reason in
// equivalents.json and left out of the score.
package mutation

import (
	"fmt"
	"path"
)

// Packages are those whose tests are measured, by their directories under the root:
// the packages without servers first, which leave the rest of their time to others.
func Packages() []string {
	return []string{
		"kek", "audit", "envelope/aead", "internal/rekor", "internal/auditbucket", "internal/awskms",
		"source", "source/s3", "internal/attr", "internal/controltable", "internal/rowschema", "internal/keyrecord", "internal/budget",
		"envelope", "internal/ddb", "source/dynamodb", "source/deks",
		"rotation/journal", "rotation/keyring", "rotation/gates", "rotation/anchor", "rotation/doctor", "rotation",
	}
}

// TestsOf are the directories whose tests try the mutants of a package: its own, and for a
// room of package rotation the steps that use it.
func TestsOf(dir string) []string {
	if parent := path.Dir(dir); parent == "rotation" {
		return []string{dir, parent}
	}
	return []string{dir}
}

// Mutant is one small change of a source file.
type Mutant struct {
	ID       int    // of the package's mutants, from 1
	File     string // under the root of the module, with slashes
	Line     int
	Function string // the enclosing function, or Type.Method; "" in a package variable
	Change   string // "old → new" in one line; unique in the function

	site int // mutants of one place share it, and the build has all of them or none
}

// String is the mutant as survivors are listed.
func (m Mutant) String() string {
	return fmt.Sprintf("%s:%d %s: %s", m.File, m.Line, m.place(), m.Change)
}

func (m Mutant) place() string {
	if m.Function == "" {
		return "package " + path.Base(path.Dir(m.File))
	}
	return m.Function
}
