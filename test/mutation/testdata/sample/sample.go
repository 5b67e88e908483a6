// Package sample has one place for each kind of mutant, and tests that leave some of
// them alive; see TestSample of package mutation.
package sample

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"
)

// Limit is changed where it is used, not here.
const Limit = 3

// Kind is an enumeration.
type Kind string

// The kinds.
const (
	Small Kind = "small"
	Large Kind = "large"
)

const condition = "a = :a AND b = :b"

var start = []string{"one", "two"}

// Input is like an input of the SDK.
type Input struct {
	Name       string
	Consistent bool
	Condition  *string
	Wait       time.Duration
}

// ErrTooMany is text for a person: no mutant.
var ErrTooMany = errors.New("too many")

// Count counts what it is told, up to the limit.
func Count(words []string) (n int, err error) {
	for _, w := range words {
		if w == "" || w == "-" {
			continue
		}
		n++
	}
	if n > Limit {
		slog.Info("too many", "n", n)
		return n, fmt.Errorf("%w: %d of %d", ErrTooMany, n, Limit+1)
	}
	return n, nil
}

// Number parses and doubles a number.
func Number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, err
	}
	return n * 2, nil
}

// Forward returns both results of another function.
func Forward(s string) (int, error) { return Number(s) }

// Size says the kind of a number.
func Size(n int) Kind {
	switch k := sizes[n >= 10]; k {
	case Small:
		return "S"
	case Large:
		return "L"
	default:
		return "?"
	}
}

var sizes = map[bool]Kind{false: Small, true: Large}

// Query makes an input.
func Query(name string, wait time.Duration) *Input {
	text := condition
	in := &Input{Name: name, Consistent: true, Condition: &text, Wait: 2*wait + time.Second}
	if wait == 0 {
		in.Wait = min(time.Minute, in.Wait)
	}
	return in
}

// Words are the words to begin with.
func Words() []string { return append([]string{"zero"}, start...) }

// Describe describes a value.
func Describe(v any) (text string) {
	text = "?"
	switch v := v.(type) {
	case string:
		text = "string " + v
	case int:
		text = "int"
	}
	return text
}

// Counter is safe for concurrent use.
type Counter struct {
	mu sync.Mutex
	n  int
}

// Add adds, and never below zero.
func (c *Counter) Add(d int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n+d < 0 {
		return c.n
	}
	c.n += d
	return c.n
}

// Wait returns when the counter is at least n.
func (c *Counter) Wait(n int) {
	for c.Add(0) < n {
		c.Add(1)
	}
}

// Touch writes a file; what it does with the file's own errors nobody tests.
func Touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Close())
}

// Unused is called by no test.
func Unused(a, b bool) bool { return a && !b }
