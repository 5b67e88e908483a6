// Package version says which build a program is.
package version

import (
	"crypto/fips140"
	"fmt"
	"runtime"
	"runtime/debug"
)

// Describe returns what a program prints about itself: the version that the Go command recorded when
// it built the program, which is a tag or names the commit, what it was built with and for, and
// the cryptographic module if the program is in FIPS 140-3 mode.
func Describe() string {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	text := fmt.Sprintf("%s, %s, %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if fips140.Enabled() {
		text += ", FIPS 140-3 module " + fips140.Version()
	}
	return text
}
