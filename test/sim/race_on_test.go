//go:build race

package sim

// raced: the race detector makes everything ten times slower. What it is to find,
// unguarded memory of the steps, a part of the schedules shows as well.
const raced = 16
