package app

import (
	"runtime/debug"
	"testing"
)

// TestCollectSeldom: in a function the collector has three quarters of the memory; elsewhere
// it is as Go sets it.
func TestCollectSeldom(t *testing.T) {
	limit, percent := debug.SetMemoryLimit(-1), debug.SetGCPercent(100)
	defer func() { debug.SetMemoryLimit(limit); debug.SetGCPercent(percent) }()
	for memory, want := range map[string]int64{"": limit, "x": limit, "0": limit, "1024": 768 << 20} {
		debug.SetMemoryLimit(limit)
		collectSeldom(func(string) string { return memory })
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("%q: %d bytes, want %d", memory, got, want)
		}
	}
	if got := debug.SetGCPercent(100); got != 400 {
		t.Errorf("the collector runs at %d %%", got)
	}
}
