//go:build !linux

package proc

import "os/exec"

// dieWithParent does nothing: elsewhere a killed starter leaves its processes.
func dieWithParent(*exec.Cmd) {}
