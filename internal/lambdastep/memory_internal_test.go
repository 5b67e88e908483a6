package lambdastep

import (
	"runtime/debug"
	"testing"
)

// TestLimitMemory: the collector's limit is four fifths of what the function has; outside
// Lambda there is none.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	for size, want := range map[string]int64{"1024": 1024 << 20 * 4 / 5, "": before, "0": before, "many": before} {
		debug.SetMemoryLimit(before)
		limitMemory(func(name string) string {
			if name != "AWS_LAMBDA_FUNCTION_MEMORY_SIZE" {
				t.Errorf("asks for %s", name)
			}
			return size
		})
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("%q: %d, want %d", size, got, want)
		}
	}
}
