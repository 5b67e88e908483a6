//go:build !race

package anchor_test

const raced = 1
