package bench

import (
	"cmp"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var rounds = flag.Int("rounds", 0, "print the table of docs/performance.md, the best of so many rounds")

// slice is how long one scheme runs in one round. All take turns, so that what
// disturbs the machine disturbs all.
const slice = 20 * time.Millisecond

// TestTable prints what docs/performance.md shows: for each size and scheme the
// time of a record in the best round, and its ratio to raw AES-256-GCM with a
// random nonce.
func TestTable(t *testing.T) {
	if *rounds == 0 {
		t.Skip("run with -rounds 30")
	}
	for _, size := range sizes {
		all := schemes(t)
		plain := make([]byte, size)
		seal, open := make([]time.Duration, len(all)), make([]time.Duration, len(all))
		for range *rounds {
			for i, s := range all {
				buf := make([]byte, 0, size+1024)
				check(t, s, buf, plain)
				best(&seal[i], func() error { _, err := s.seal(buf, plain); return err }, t)
				sealed := slices.Clone(check(t, s, nil, plain))
				best(&open[i], func() error { _, err := s.open(sealed); return err }, t)
			}
		}
		raw := slices.IndexFunc(all, func(s scheme) bool { return s.name == "raw AES-256-GCM, random nonce" })
		for i, s := range all {
			fmt.Printf("| %d KiB | %s | %s | %.2f | %s | %.2f |\n", size>>10, s.name,
				short(seal[i]), ratio(seal[i], seal[raw]), short(open[i]), ratio(open[i], open[raw]))
		}
	}
}

// best runs op for a slice of time and keeps the mean if it is the least so far.
func best(least *time.Duration, op func() error, t *testing.T) {
	t.Helper()
	n, start := 0, time.Now()
	for ; n < 10 || time.Since(start) < slice; n++ {
		for range 10 {
			if err := op(); err != nil {
				t.Fatal(err)
			}
		}
	}
	mean := time.Since(start) / time.Duration(10*n)
	*least = cmp.Or(min(*least, mean), mean)
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

func short(d time.Duration) string {
	if d < 10*time.Microsecond {
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	}
	return fmt.Sprintf("%.1f µs", float64(d.Nanoseconds())/1000)
}
