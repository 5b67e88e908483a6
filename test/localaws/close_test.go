package localaws_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws"
)

// children returns the command lines of this process's children, by pid.
func children(t *testing.T) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		var pid, parent int
		var state string
		after := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
		if _, err := fmt.Sscan(string(stat), &pid); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(after, &state, &parent); err != nil {
			t.Fatal(err)
		}
		if parent == os.Getpid() {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			out[pid] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return out
}

// TestBreaksAndCloses has a server die under a stack of its own, and looks for what
// the stack leaves behind.
func TestBreaksAndCloses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks at /proc")
	}
	stack(t) // builds what the second one deploys too
	before := children(t)
	o := options(shared.root)
	o.Dir, o.NoIAM = t.TempDir(), true
	var starting int
	o.Prepare = func(_ context.Context, s *localaws.Stack) error {
		starting, _ = control(t, s, http.MethodGet, "/_local/health", "")
		return nil
	}
	s, err := localaws.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ready, _ := control(t, s, http.MethodGet, "/_local/health", "")
	if starting != http.StatusServiceUnavailable || ready != http.StatusOK {
		t.Errorf("health: %d while it starts, then %d", starting, ready)
	}
	works(t, s, `{"put":"other"}`) // which the role does not allow
	select {
	case err := <-s.Failed():
		t.Fatalf("failed too early: %v", err)
	default:
	}
	kinds := map[string]bool{}
	for pid, line := range children(t) {
		if _, old := before[pid]; old {
			continue
		}
		switch {
		case strings.Contains(line, "dynoxide"):
			kinds["dynoxide"] = true
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		case strings.Contains(line, "moto"):
			kinds["moto"] = true
		case strings.Contains(line, "bootstrap"):
			kinds["function"] = true
		}
	}
	diff(t, "processes", kinds, map[string]bool{"dynoxide": true, "moto": true, "function": true})
	select {
	case err := <-s.Failed():
		if !strings.Contains(err.Error(), "dynoxide") {
			t.Errorf("failed: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody noticed that dynoxide has died")
	}
	s.Close()
	s.Close()
	for pid, line := range children(t) {
		if _, old := before[pid]; !old {
			t.Errorf("left behind: %d %s", pid, line)
		}
	}
}

// TestStartFails holds Start to leaving nothing behind and saying why.
func TestStartFails(t *testing.T) {
	stack(t)
	before := children(t)
	o := options(shared.root)
	o.Dir, o.Parameters, o.Prepare = t.TempDir(), map[string]string{"Retention": "3"}, nil
	if _, err := localaws.Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no parameter Retention") {
		t.Errorf("unknown parameter: %v", err)
	}
	for pid, line := range children(t) {
		if _, old := before[pid]; !old {
			t.Errorf("left behind: %d %s", pid, line)
		}
	}
}
