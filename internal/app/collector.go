package app

import (
	"runtime/debug"
	"strconv"
)

// collectSeldom lets the garbage collector of a function run less often: it costs a fifth of
// the processor time of a row otherwise, and a function uses little of its memory
// (docs/performance.md). Near three quarters of the memory, which a walk that remembers many
// data keys may reach, it runs as often as it must. Elsewhere it changes nothing: Lambda sets
// the variable (Lambda developer guide, "Defined runtime environment variables").
func collectSeldom(getenv func(string) string) {
	mb, err := strconv.ParseInt(getenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"), 10, 64)
	if err != nil || mb <= 0 {
		return
	}
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(mb << 20 * 3 / 4)
}
