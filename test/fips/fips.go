// Package fips runs tests of a package once more in FIPS 140-3 mode.
//
// A program started with GODEBUG=fips140=only checks its cryptographic module at the start and
// fails at the first use of an algorithm, a key length or a nonce that FIPS 140-3 does not
// approve (crypto/fips140).
package fips

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Strict is the setting of a process in which only what is approved works.
const Strict = "GODEBUG=fips140=only"

// RunTests runs tests of the package that calls it in a process of their own that is in strict mode.
// Each must pass: one that is skipped, or is no longer there, proves nothing. No test may be in a
// synctest bubble, whose clock gives the module's source of entropy no time to measure.
func RunTests(t *testing.T, names ...string) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.count=1", "-test.run", "^("+strings.Join(names, "|")+")$") //nolint:gosec // this program
	cmd.Env = append(os.Environ(), Strict)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", Strict, err, out)
	}
	for _, name := range names {
		if !strings.Contains(string(out), "--- PASS: "+name+" (") {
			t.Errorf("%s has not passed with %s\n%s", name, Strict, out)
		}
	}
}
