package console

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is what a program prints about itself: the version that the Go command recorded when
// it built the program, which is a tag or names the commit, and what it was built with and for.
func Version() string {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	return fmt.Sprintf("%s, %s, %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
