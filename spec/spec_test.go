package spec

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/tlc"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
)

var (
	only   = flag.String("variant", "", "check the variants of this prefix alone, and show their counterexamples")
	update = flag.Bool("update", false, "write the table of verdicts into README.md")
)

// walkSeed is the seed of the random walks: a run can be repeated.
const walkSeed = 20261130

// running admits two checks at once: the machines of CI have two cores.
var running = make(chan struct{}, 2)

// TestVariants checks every model against the verdict that it must have. The good
// ones hold; with a mechanism taken away the named property is violated, which
// shows that the mechanism is needed and that the property can fail.
//
// A verdict that is recorded of the very same text is taken from verdicts.txt, but for a seventh
// of the variants each day (recorded_test.go).
//
//	MATTER_SPEC=all go test ./spec -run TestVariants -v  the table, with times
//	go test ./spec -run TestVariants -update          the table of README.md, and verdicts.txt
//	go test ./spec -run TestVariants -variant cx_ -v  the counterexamples
//	MATTER_SPEC_BUDGET=30m go test ./spec -timeout 0  larger bounds too
func TestVariants(t *testing.T) {
	_, err := tlc.Jar()
	tlctest.Must(t, err)
	all := &verdicts{recordings: newRecordings(t)}
	t.Run("quick", func(t *testing.T) {
		for _, v := range variants {
			if !v.deep && strings.HasPrefix(v.name, *only) {
				t.Run(v.name, func(t *testing.T) {
					t.Parallel()
					r := v.run(t)
					found, ok := all.recordings.find(v, r)
					if !ok {
						running <- struct{}{}
						defer func() { <-running }()
						found = check(t, v, r, t.Context())
					}
					all.add(v, r, found, ok)
				})
			}
		}
	})
	deep(t, all)
	t.Log("\n" + all.String())
	if *only == "" {
		all.compare(t)
	}
}

// compare compares the quick variants with the tables of README.md.
func (s *verdicts) compare(t *testing.T) {
	t.Helper()
	table(t, "verdicts", s.markdown())
	table(t, "actions taken", s.taken(t))
	s.keep(t)
}

// keep writes verdicts.txt, or requires that it has each verdict for the text of today.
func (s *verdicts) keep(t *testing.T) {
	t.Helper()
	have, err := os.ReadFile(verdictsFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	want := writeRecordings(s.recorded)
	switch {
	case *update:
		if err := os.WriteFile(verdictsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	case string(have) != want:
		t.Errorf("%s (-want +got), fix it with -update:\n%s", verdictsFile, cmp.Diff(want, string(have)))
	}
}

// table holds a table of README.md to what it must be, or writes it there.
func table(t *testing.T, name, want string) {
	t.Helper()
	begin, end := "<!-- "+name+": go test ./spec -run TestVariants -update -->\n", "<!-- end of "+name+" -->\n"
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no place for the table of %s", name)
	}
	switch {
	case *update:
		if err := os.WriteFile("README.md", []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case have != want:
		t.Errorf("README.md (-want +got), fix it with -update:\n%s", cmp.Diff(want, have))
	}
}

// markdown is the table without what differs from run to run: times, and how many
// states were seen before a violation was.
func (s *verdicts) markdown() string {
	var b strings.Builder
	b.WriteString("| variant | what it shows | verdict | distinct states |\n|---|---|---|---|\n")
	for _, v := range variants {
		r, ok := s.rows[v.name]
		if !ok || v.deep {
			continue
		}
		verdict, states := "holds", fmt.Sprint(r.Distinct)
		switch r.Verdict {
		case tlc.Holds:
		case tlc.Temporal:
			verdict, states = "liveness violated", ""
		default:
			verdict, states = fmt.Sprintf("%s violated in %d steps", r.Verdict, len(r.Actions)-1), ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", v.name, v.says, verdict, states)
	}
	return b.String()
}

// deep checks the large models, each for its share of the budget. A model that is
// not exhausted by then has no counterexample as deep as it was searched.
func deep(t *testing.T, all *verdicts) {
	t.Helper()
	budget, err := time.ParseDuration(firstOf(os.Getenv("MATTER_SPEC_BUDGET"), "0s"))
	if err != nil {
		t.Fatalf("MATTER_SPEC_BUDGET: %v", err)
	}
	left := 0
	for _, v := range variants {
		if v.deep && strings.HasPrefix(v.name, *only) {
			left += max(v.share, 1)
		}
	}
	end := time.Now().Add(budget)
	for _, v := range variants {
		if !v.deep || budget == 0 || !strings.HasPrefix(v.name, *only) {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Until(end)*time.Duration(max(v.share, 1))/time.Duration(left))
			defer cancel()
			r := v.run(t)
			all.add(v, r, check(t, v, r, ctx), false)
		})
		left -= max(v.share, 1)
	}
}

// run is what TLC is given to check a variant.
func (v variant) run(t *testing.T) tlc.Run {
	t.Helper()
	workers := 1
	if v.deep {
		workers = 2
	}
	files, err := v.changed()
	if err != nil {
		t.Fatal(err)
	}
	return tlc.Run{
		Module: v.moduleName(), Files: files,
		Config: v.config(), Workers: workers, Long: v.heavy || v.deep,
		Walk: v.walks, Seed: walkSeed, Count: slices.Contains(counted, v.name),
	}
}

func check(t *testing.T, v variant, run tlc.Run, ctx context.Context) tlc.Result { //nolint:revive // t comes first in a test
	t.Helper()
	r, err := tlc.Check(ctx, run)
	if err != nil {
		t.Fatal(err)
	}
	// A walk that must come to something has not when its time is over.
	unfinished := v.deep && r.Verdict == tlc.Unfinished && (v.walks == 0 || v.want == tlc.Holds)
	if r.Verdict != v.want && !unfinished {
		t.Errorf("verdict %s, want %s: %s\n%s", r.Verdict, v.want, strings.Join(r.Actions, " > "), v.config())
	}
	if *only != "" {
		t.Log(strings.Join(r.Actions, " > "))
	}
	return r
}

// verdicts are the results so far.
type verdicts struct {
	recordings *recordings
	mu         sync.Mutex
	rows       map[string]tlc.Result
	recorded   map[string]recording // of all variants but the deep ones
	again      int                  // how many of them were not checked now
}

// add adds the result of a variant; again says that it is the recorded one.
func (s *verdicts) add(v variant, run tlc.Run, r tlc.Result, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows == nil {
		s.rows, s.recorded = map[string]tlc.Result{}, map[string]recording{}
	}
	s.rows[v.name] = r
	if again {
		s.again++
	}
	if !v.deep {
		s.recorded[v.name] = record(digestOf(run, s.recordings.version), r)
	}
}

func (s *verdicts) String() string {
	var b strings.Builder
	var sum int64
	for _, v := range variants {
		if r, ok := s.rows[v.name]; ok {
			seen := r.Distinct
			if v.walks > 0 {
				seen = r.Generated
			}
			fmt.Fprintf(&b, "%-32s %-22s %9d states %4d deep %6.1f s\n", v.name, r.Verdict, seen, r.Depth, r.Elapsed.Seconds())
			sum += r.Distinct
		}
	}
	fmt.Fprintf(&b, "%d variants, %d distinct states; %d checked now, %d recorded of the same text\n", len(s.rows), sum, len(s.rows)-s.again, s.again)
	return b.String()
}
