//go:build !goexperiment.runtimesecret

package envelope

// runSecretly runs f. Callers clear the key bytes themselves. The expanded key stays in
// memory until it is garbage collected; build with GOEXPERIMENT=runtimesecret to erase it
// too.
func runSecretly(f func()) { f() }
