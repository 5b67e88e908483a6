//go:build race

package anchor_test

// raced: under the race detector, which is some five times slower, every eighth call of
// a rotation is disturbed, other ones each day. make test disturbs all of them without it.
const raced = 8
