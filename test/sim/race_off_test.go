//go:build !race

package sim

// raced is one out of how many schedules runs where all would.
const raced = 1
