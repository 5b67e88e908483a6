//go:build goexperiment.runtimesecret

package envelope

import "runtime/secret"

// runSecretly runs f and then erases the registers and the stack that it used. Memory that
// it allocates is erased as soon as it is garbage.
func runSecretly(f func()) { secret.Do(f) }
