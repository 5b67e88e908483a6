//go:build goexperiment.runtimesecret

package envelope

import "runtime/secret"

// secretly runs f so that what it leaves in registers and on the stack is erased,
// and what it allocates is as soon as it is garbage.
func secretly(f func()) { secret.Do(f) }
