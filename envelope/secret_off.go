//go:build !goexperiment.runtimesecret

package envelope

// secretly runs f. Callers clear the key bytes themselves; the expanded key stays
// in memory until it is collected. Build with GOEXPERIMENT=runtimesecret to erase
// it too.
func secretly(f func()) { f() }
