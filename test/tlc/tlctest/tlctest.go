// Package tlctest says what a test does where TLC is not installed.
package tlctest

import (
	"errors"
	"os"
	"testing"

	"github.com/matter-ops/kms-rotation/test/tlc"
)

// Must fails the test with err, if there is one. It skips the test if err says that
// TLC is not installed, unless CI=true or MATTER_REQUIRE_LOCAL=1.
func Must(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, tlc.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
}
