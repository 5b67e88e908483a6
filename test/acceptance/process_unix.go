//go:build unix

package acceptance

import (
	"os/exec"
	"syscall"
)

// stop holds a process still, as a long pause would.
func stop(cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGSTOP) }

// resume lets it go on.
func resume(cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGCONT) }
