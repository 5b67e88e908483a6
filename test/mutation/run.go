package mutation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

// Fate is what became of a mutant.
type Fate int

// The fates.
const (
	NotRun     Fate = iota // the budget was spent
	NotReached             // no test runs its place with another value than the source's
	Survived               // every test that reaches it passes
	Killed                 // a test fails
	TimedOut               // a test takes much longer: killed too
)

// test is a top-level test of a package.
type test struct {
	name    string
	took    time.Duration // without a mutant, the start of the binary included
	reached map[int]bool  // mutants, by number
}

// trial runs the mutants of one build.
type trial struct {
	*build
	tests []test        // the fastest first
	slow  []string      // tests that are left out
	start time.Duration // of the binary, without a test
	grace time.Duration
}

// A mutant is killed if its tests take longer than slower times what they take
// without it, and the grace.
const (
	slower   = 3
	grace    = 2 * time.Second
	stopping = 2 * time.Second // for a binary that is late to stop by itself
	passes   = 3
)

// baseline runs every test by itself on the program as it is. Tests that take longer
// than slowest are left out; 0 is no bound.
func baseline(ctx context.Context, b *build, s *servers, slowest time.Duration) (*trial, error) {
	t := &trial{build: b, grace: grace}
	began := time.Now()
	if out, v, err := t.run(ctx, s, execution{pattern: "^$"}); err != nil {
		return nil, err
	} else if v != passed {
		return nil, fmt.Errorf("the test binary of %s fails without a test:\n%s", b.pkg.path, out)
	}
	t.start = time.Since(began)
	names, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		reach := filepath.Join(filepath.Dir(b.binary), fmt.Sprintf("reach-%d", i))
		began := time.Now()
		out, v, err := t.run(ctx, s, execution{pattern: "^" + name + "$", reach: reach, timeout: slowest})
		if err != nil {
			return nil, err
		}
		if v == late && slowest > 0 {
			t.slow = append(t.slow, name)
			continue
		}
		if v != passed {
			return nil, fmt.Errorf("%s of %s fails without a mutant:\n%s", name, b.pkg.path, out)
		}
		reached, err := readReach(reach)
		if err != nil {
			return nil, err
		}
		t.tests = append(t.tests, test{name: name, took: time.Since(began), reached: reached})
	}
	slices.SortStableFunc(t.tests, func(a, b test) int { return int(a.took - b.took) })
	return t, nil
}

// pass runs the tests without a mutant: what has become of the servers meanwhile
// must not be what killed mutants. A test that fails once, on a busy machine, may pass
// the next time; with a server that a mutant has spoilt it does not.
func (t *trial) pass(ctx context.Context, s *servers) error {
	var out string
	for range passes {
		var v verdict
		var err error
		if out, v, err = t.run(ctx, s, execution{pattern: pattern(t.tests)}); err != nil || v == passed {
			return err
		}
	}
	return fmt.Errorf("the tests of %s fail without a mutant:\n%s", t.pkg.path, out)
}

// list returns the names of the tests, fuzz targets and examples.
func (t *trial) list(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, t.binary, "-test.list", "^(Test|Fuzz|Example)") //nolint:gosec // it was built here
	cmd.Dir = t.build.tests
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w\n%s", t.pkg.path, err, out)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool {
		return !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") && !strings.HasPrefix(name, "Example")
	}), nil
}

func readReach(path string) (map[int]bool, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	reached := map[int]bool{}
	for _, f := range strings.Fields(string(text)) {
		id, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		reached[id] = true
	}
	return reached, nil
}

// execution is one run of a test binary.
type execution struct {
	pattern string
	active  int           // the mutant, or 0
	reach   string        // a file for what is reached, or ""
	timeout time.Duration // or 0
}

type verdict int

const (
	passed verdict = iota
	failed
	late
)

const (
	outputKept  = 4 << 10 // bytes
	maxBaseline = 10 * time.Minute
)

// run runs the test binary. err is not that a test fails.
func (t *trial) run(ctx context.Context, s *servers, e execution) (out string, v verdict, err error) {
	env, err := s.environment(ctx, t.pkg.moto)
	if err != nil {
		return "", 0, err
	}
	if e.timeout == 0 {
		e.timeout = maxBaseline
	}
	limited, cancel := context.WithTimeout(ctx, e.timeout+stopping)
	defer cancel()
	args := []string{"-test.run", e.pattern, "-test.failfast", "-test.timeout", e.timeout.String()}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), t.binary, args...) //nolint:gosec // it was built here
	cmd.Dir = t.build.tests
	cmd.Env = append(os.Environ(), env...)
	cmd.Env = append(cmd.Env, "MATTER_MUTATION=", "MATTER_MUTATION_ACTIVE="+strconv.Itoa(e.active), "MATTER_MUTATION_REACH="+e.reach)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &b, &b, stopping
	process, err := proc.Start(cmd) // it, and servers that it started, die with this process
	if err != nil {
		return "", 0, fmt.Errorf("run the tests of %s: %w", t.pkg.path, err)
	}
	select {
	case <-process.Done():
	case <-limited.Done():
		process.Kill()
	}
	out = string(b.Bytes()[max(0, b.Len()-outputKept):])
	var exit *exec.ExitError
	switch err := process.Err(); {
	case ctx.Err() != nil:
		return out, 0, ctx.Err()
	case limited.Err() != nil || bytes.Contains(b.Bytes(), []byte("panic: test timed out after")):
		return out, late, nil
	case err == nil:
		return out, passed, nil
	case errors.As(err, &exit):
		return out, failed, nil
	default:
		return out, 0, fmt.Errorf("run the tests of %s: %w", t.pkg.path, err)
	}
}

// try runs the tests that reach a mutant, until one fails.
func (t *trial) try(ctx context.Context, s *servers, m *Mutant) (Fate, error) {
	var reaching []test
	for _, x := range t.tests {
		if x.reached[m.ID] {
			reaching = append(reaching, x)
		}
	}
	if len(reaching) == 0 {
		return NotReached, nil
	}
	for _, group := range t.grouped(reaching) {
		var took time.Duration
		for _, x := range group {
			took += x.took
		}
		e := execution{pattern: pattern(group), active: m.ID, timeout: slower*took + t.grace}
		v, err := t.outcome(ctx, s, e)
		switch {
		case err != nil:
			return NotRun, err
		case v == late:
			return TimedOut, nil
		case v == failed:
			return Killed, nil
		}
	}
	return Survived, nil
}

// pattern matches some tests, and no other.
func pattern(tests []test) string {
	var names []string
	for _, x := range tests {
		names = append(names, x.name)
	}
	return "^(" + strings.Join(names, "|") + ")$"
}

// outcome runs tests with a mutant. When they are late, it may be because others use
// the machine: if without the mutant they have become slower too, they have as much
// more time.
func (t *trial) outcome(ctx context.Context, s *servers, e execution) (verdict, error) {
	_, v, err := t.run(ctx, s, e)
	if err != nil || v != late {
		return v, err
	}
	began := time.Now()
	out, v, err := t.run(ctx, s, execution{pattern: e.pattern})
	if err == nil && v != passed {
		err = fmt.Errorf("%s of %s fails without a mutant:\n%s", e.pattern, t.pkg.path, out)
	}
	now := slower*time.Since(began) + t.grace
	if err != nil || now <= e.timeout {
		return late, err
	}
	e.timeout = now
	_, v, err = t.run(ctx, s, e)
	return v, err
}

// grouped makes groups of tests, the fastest first, for one process each: a group
// takes at least as long as all before it, so that the starts cost little.
func (t *trial) grouped(tests []test) (groups [][]test) {
	all := t.start
	for len(tests) > 0 {
		n, sum := 0, time.Duration(0)
		for n < len(tests) && (n == 0 || sum < all) {
			sum += max(tests[n].took-t.start, 0)
			n++
		}
		groups = append(groups, tests[:n])
		tests, all = tests[n:], all+sum
	}
	return groups
}

// tryAll tries mutants in a random order until the deadline, with some workers.
func (t *trial) tryAll(ctx context.Context, mutants []*Mutant, workers []*servers, seed uint64, deadline time.Time) (map[*Mutant]Fate, error) {
	order := slices.Clone(mutants)
	shuffle := rand.New(rand.NewPCG(seed, 0)).Shuffle //nolint:gosec // a sample is no secret, and is to be made again
	shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	fates := map[*Mutant]Fate{}
	var faults error
	var mu sync.Mutex
	next := func() *Mutant {
		mu.Lock()
		defer mu.Unlock()
		if len(order) == 0 || faults != nil || !time.Now().Before(deadline) {
			return nil
		}
		m := order[0]
		order = order[1:]
		return m
	}
	var wg sync.WaitGroup
	for _, s := range workers {
		wg.Go(func() {
			for m := next(); m != nil; m = next() {
				fate, err := t.try(ctx, s, m)
				mu.Lock()
				fates[m] = fate
				faults = errors.Join(faults, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return fates, faults
}
