// Package proc starts processes that do not outlive their starter: on Linux the
// kernel kills them when it dies, however it dies.
package proc

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
)

// Process is a started process.
type Process struct {
	cmd  *exec.Cmd
	kill sync.Once
	done chan struct{}
	err  error // of Wait, set before done is closed
}

// Start starts cmd, which must not have been started.
//
// The kernel's death signal is sent when the starting thread ends, not the
// process, and the Go runtime may end a thread. So one locked thread starts the
// process and stays until it has exited.
func Start(cmd *exec.Cmd) (*Process, error) {
	dieWithParent(cmd)
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err waits for the exit and returns what [exec.Cmd.Wait] did: nil for status 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Kill kills the process and waits until it has exited; it may be called again.
func (p *Process) Kill() {
	p.kill.Do(func() {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return // it can only have exited: it is our own child
		}
	})
	<-p.done
}
