package proc_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// TestMain plays the starter that is killed: it starts a sleeper, prints its pid
// and waits.
func TestMain(m *testing.M) {
	if os.Getenv("PROC_TEST_STARTER") != "" {
		p, err := proc.Start(exec.Command("sleep", "600"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(p.Pid())
		p.Err() //nolint:errcheck // until it is killed
	}
	os.Exit(m.Run())
}

func TestDiesWithStarter(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a death signal")
	}
	starter := exec.CommandContext(t.Context(), os.Args[0])
	starter.Env = append(os.Environ(), "PROC_TEST_STARTER=1")
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	sleeper, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if !alive(sleeper) {
		t.Fatalf("process %d does not run", sleeper)
	}
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait()
	waitUntil(t, func() bool { return !alive(sleeper) })
}

func TestSurvivesItsThread(t *testing.T) {
	started := make(chan *proc.Process)
	go func() { // ends with its thread
		runtime.LockOSThread()
		p, err := proc.Start(exec.Command("sleep", "600"))
		if err != nil {
			t.Error(err)
		}
		started <- p
	}()
	p := <-started
	select {
	case <-p.Done():
		t.Fatalf("killed by the end of a thread: %v", p.Err())
	case <-time.After(200 * time.Millisecond):
	}
	p.Kill()
	p.Kill()
	if p.Err() == nil || alive(p.Pid()) {
		t.Errorf("after Kill: err %v, alive %t", p.Err(), alive(p.Pid()))
	}
}

func TestStartFails(t *testing.T) {
	if _, err := proc.Start(exec.Command("/no/such/program")); err == nil {
		t.Error("no error")
	}
}

// alive reports whether the process exists and is not merely unreaped.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it does not happen")
}
