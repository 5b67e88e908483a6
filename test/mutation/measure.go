package mutation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/test/plant"
)

// Options say what is measured.
type Options struct {
	Root        string // of the module
	Packages    []string
	Equivalents []Equivalent
	Budget      time.Duration // for all packages, builds included
	Slowest     time.Duration // tests that take longer are left out; 0: none
	Workers     int           // test processes at a time
	Seed        uint64        // of the order in which mutants are tried
	Only        func(Mutant) bool
	Log         func(format string, args ...any)
}

// Result is what became of a package's mutants.
type Result struct {
	Package    string
	Mutants    int // that compile
	Rejected   int // that do not, and are left out
	Equivalent int
	Killed     int // TimedOut included
	TimedOut   int
	Survivors  []Survivor
	NotReached int // of the survivors
	NotRun     int
}

// Survivor is a mutant that no test notices.
type Survivor struct {
	Mutant
	Reached bool // by a test
}

const notReached = "   (no test reaches it)"

// String is the survivor in one line.
func (s Survivor) String() string {
	if s.Reached {
		return s.Mutant.String()
	}
	return s.Mutant.String() + notReached
}

// Run is how many mutants were tried.
func (r Result) Run() int { return r.Killed + len(r.Survivors) }

// Score is the share of the tried mutants that were killed, in percent.
func (r Result) Score() float64 {
	if r.Run() == 0 {
		return 100
	}
	return 100 * float64(r.Killed) / float64(r.Run())
}

// Measure tries the mutants of each package until the budget is spent: each has an
// equal share of what is left when its turn comes. An error of one package, such as an
// equivalent that a test kills, loses no result.
func Measure(ctx context.Context, o Options) (results []Result, err error) {
	workers := make([]*servers, o.Workers)
	for i := range workers {
		workers[i] = &servers{}
		defer workers[i].stop()
	}
	end := time.Now().Add(o.Budget)
	for i, dir := range o.Packages {
		share := time.Until(end) / time.Duration(len(o.Packages)-i)
		r, failed := measurePackage(ctx, o, dir, workers, time.Now().Add(share))
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", dir, failed))
		}
		if r.Package != "" {
			results = append(results, r)
		}
	}
	return results, err
}

func measurePackage(ctx context.Context, o Options, dir string, workers []*servers, deadline time.Time) (Result, error) {
	tmp, err := os.MkdirTemp("", "mutation-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // it is in the temporary directory
	b, err := buildMutants(ctx, o.Root, dir, tmp)
	if err != nil {
		return Result{}, err
	}
	equivalent, err := matchEquivalents(dir, b.mutants, o.Equivalents)
	if err != nil {
		return Result{}, err
	}
	mutants := slices.Clone(b.mutants)
	if o.Only != nil {
		mutants = slices.DeleteFunc(mutants, func(m *Mutant) bool { return !o.Only(*m) })
	}
	fates, trials, err := tryWithTests(ctx, o, dir, b, mutants, workers, deadline)
	if err != nil {
		return Result{}, err
	}
	r := Result{Package: dir, Mutants: len(b.mutants), Rejected: len(b.rejected)}
	err = r.count(mutants, fates, equivalent)
	o.Log("%s", r)
	for _, t := range trials {
		for _, s := range workers {
			if err := t.pass(ctx, s); err != nil {
				for _, m := range r.Survivors {
					o.Log("%s", m)
				}
				return Result{}, fmt.Errorf("after the mutants, which it may have killed: %w", err)
			}
		}
	}
	return r, err
}

// tryWithTests tries the mutants of the package in dir with the tests of one directory after
// another; those that one has killed are not tried again.
func tryWithTests(ctx context.Context, o Options, dir string, b *build, mutants []*Mutant, workers []*servers, deadline time.Time,
) (fates map[*Mutant]Fate, trials []*trial, err error) {
	fates = map[*Mutant]Fate{}
	for i, tests := range TestsOf(dir) {
		if i > 0 {
			if b, err = b.withTests(ctx, o.Root, tests); err != nil {
				return nil, nil, err
			}
		}
		t, err := baseline(ctx, b, workers[0], o.Slowest)
		if err != nil {
			return nil, nil, err
		}
		trials = append(trials, t)
		if len(t.slow) > 0 {
			o.Log("%s: without %d tests of %s that take longer than %s: %s", dir, len(t.slow), tests, o.Slowest, strings.Join(t.slow, ", "))
		}
		open := slices.DeleteFunc(slices.Clone(mutants), func(m *Mutant) bool { return fates[m] >= Killed })
		tried, err := t.tryAll(ctx, open, workers, o.Seed, deadline)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range open {
			switch {
			case i == 0, tried[m] == NotRun, tried[m] >= Killed:
				fates[m] = tried[m]
			case fates[m] != NotRun: // else there is no verdict: not every test had its turn
				fates[m] = max(fates[m], tried[m])
			}
		}
	}
	return fates, trials, nil
}

// count sorts the mutants by their fates. An equivalent that is killed is none.
func (r *Result) count(mutants []*Mutant, fates map[*Mutant]Fate, equivalent map[*Mutant]bool) error {
	var faults []error
	for _, m := range mutants {
		fate := fates[m]
		if equivalent[m] {
			r.Equivalent++
			if fate == Killed {
				faults = append(faults, fmt.Errorf("equivalents: %s is killed by a test: remove the entry", m))
			}
			continue
		}
		switch fate {
		case NotRun:
			r.NotRun++
		case NotReached:
			r.NotReached++
			r.Survivors = append(r.Survivors, Survivor{Mutant: *m})
		case Survived:
			r.Survivors = append(r.Survivors, Survivor{Mutant: *m, Reached: true})
		case TimedOut:
			r.TimedOut++
			r.Killed++
		case Killed:
			r.Killed++
		}
	}
	slices.SortStableFunc(r.Survivors, func(a, b Survivor) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return errors.Join(faults...)
}

// String is the result in one line.
func (r Result) String() string {
	return fmt.Sprintf("%s: %d mutants (%d more do not compile), %d equivalent, %d run, %d killed (%d by their time), %d survived, %d not reached: %.1f %%",
		r.Package, r.Mutants, r.Rejected, r.Equivalent, r.Run(), r.Killed, r.TimedOut, len(r.Survivors)-r.NotReached, r.NotReached, r.Score())
}

const tableHead = "| package | mutants | equivalent | run | killed | survived | not reached | score |\n|---|---|---|---|---|---|---|---|\n"

func (r Result) rowHead() string { return fmt.Sprintf("| `%s` |", r.Package) }

func (r Result) row() string {
	return fmt.Sprintf("%s %d | %d | %d | %d | %d | %d | %.1f %% |",
		r.rowHead(), r.Mutants, r.Equivalent, r.Run(), r.Killed, len(r.Survivors)-r.NotReached, r.NotReached, r.Score())
}

// updateTable puts results into a table of packages; packages that were not measured
// keep their rows.
func updateTable(t plant.Table, packages []string, results []Result) error {
	lines, err := t.Lines()
	if err != nil {
		return err
	}
	var table strings.Builder
	table.WriteString(tableHead)
	for _, p := range packages {
		row := ""
		for _, l := range lines {
			if strings.HasPrefix(l, Result{Package: p}.rowHead()) {
				row = l
			}
		}
		for _, r := range results {
			if r.Package == p {
				row = r.row()
			}
		}
		if row != "" {
			table.WriteString(row + "\n")
		}
	}
	return t.Keep(nil, table.String())
}

// survivorsFile is where the survivors of a package are listed, under the root.
func survivorsFile(root, dir string) string {
	return filepath.Join(root, "build", "mutation", strings.ReplaceAll(dir, "/", "_")+".txt")
}

// writeSurvivors lists survivors, one a line.
func writeSurvivors(root string, r Result) error {
	file := survivorsFile(root, r.Package)
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	var b strings.Builder
	for _, m := range r.Survivors {
		fmt.Fprintln(&b, m)
	}
	return os.WriteFile(file, []byte(b.String()), 0o600)
}
