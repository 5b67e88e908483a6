package spec

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/spec/tlc"
)

var only = flag.String("variant", "", "check the variants of this prefix alone, and show their counterexamples")

// running admits two checks at once: the machines of CI have two cores.
var running = make(chan struct{}, 2)

// TestVariants checks every model against the verdict that it must have. The good
// ones hold; with a mechanism taken away the named property is violated, which
// shows that the mechanism is needed and that the property can fail.
//
//	go test ./spec -run TestVariants -v               the table, with state counts
//	MATTER_SPEC_BUDGET=30m go test ./spec -timeout 0  larger bounds too
func TestVariants(t *testing.T) {
	if _, err := tlc.Jar(); errors.Is(err, tlc.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	table := &verdicts{}
	t.Run("quick", func(t *testing.T) {
		for _, v := range variants {
			if !v.deep && strings.HasPrefix(v.name, *only) {
				t.Run(v.name, func(t *testing.T) {
					t.Parallel()
					running <- struct{}{}
					defer func() { <-running }()
					table.add(v, check(t, v, t.Context()))
				})
			}
		}
	})
	deep(t, table)
	t.Log("\n" + table.String())
}

// deep checks the large models, each for its share of the budget. A model that is
// not exhausted by then has no counterexample as deep as it was searched.
func deep(t *testing.T, table *verdicts) {
	budget, err := time.ParseDuration(firstOf(os.Getenv("MATTER_SPEC_BUDGET"), "0s"))
	if err != nil {
		t.Fatalf("MATTER_SPEC_BUDGET: %v", err)
	}
	left := 0
	for _, v := range variants {
		if v.deep {
			left++
		}
	}
	end := time.Now().Add(budget)
	for _, v := range variants {
		if !v.deep || budget == 0 || !strings.HasPrefix(v.name, *only) {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Until(end)/time.Duration(left))
			defer cancel()
			table.add(v, check(t, v, ctx))
		})
		left--
	}
}

func check(t *testing.T, v variant, ctx context.Context) tlc.Result { //nolint:revive // t comes first in a test
	t.Helper()
	workers := 1
	if v.deep {
		workers = 2
	}
	r, err := tlc.Check(ctx, tlc.Run{
		Module: v.moduleName(), Files: map[string]string{"rotation": Rotation, "outbox": Outbox},
		Config: v.config(), Workers: workers, Long: v.deep,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != v.want && (!v.deep || r.Verdict != tlc.Unfinished) {
		t.Errorf("verdict %s, want %s: %s\n%s", r.Verdict, v.want, strings.Join(r.Actions, " > "), v.config())
	}
	if *only != "" {
		t.Log(strings.Join(r.Actions, " > "))
	}
	return r
}

// verdicts is the table of the README.
type verdicts struct {
	mu   sync.Mutex
	rows map[string]string
	sum  int64
}

func (s *verdicts) add(v variant, r tlc.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows == nil {
		s.rows = map[string]string{}
	}
	s.rows[v.name] = fmt.Sprintf("| %-32s | %-22s | %9d | %5d | %6.1f s | %s |", v.name, r.Verdict, r.Distinct, r.Depth, r.Elapsed.Seconds(), v.says)
	s.sum += r.Distinct
}

func (s *verdicts) String() string {
	var b strings.Builder
	b.WriteString("| variant | verdict | distinct states | depth | time | what it shows |\n|---|---|---|---|---|---|\n")
	for _, v := range variants {
		if row, ok := s.rows[v.name]; ok {
			b.WriteString(row + "\n")
		}
	}
	fmt.Fprintf(&b, "%d variants, %d distinct states\n", len(s.rows), s.sum)
	return b.String()
}
