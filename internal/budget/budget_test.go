package budget_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/internal/budget"
)

// spent is how many units a budget lets through in so long, from a hundred callers.
func spent(t *testing.T, b *budget.Budget, long time.Duration) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	got := make(chan int)
	for range 100 {
		go func() {
			n := 0
			for ; b.Spend(ctx) == nil; n++ {
			}
			got <- n
		}()
	}
	for range 100 {
		n += <-got
	}
	return n
}

func near(got int, want float64) bool { return math.Abs(float64(got)-want) <= 0.03*want+2 }

// TestShare: without a sample a process has its share of the start or of the ceiling, and
// never less than one a second.
func TestShare(t *testing.T) {
	for _, c := range []struct {
		ceiling float64
		workers int
		want    float64
	}{{1e5, 1, 1000}, {1e5, 40, 25}, {200, 4, 50}, {7, 40, 1}, {1e5, 1000, 4}} {
		synctest.Test(t, func(t *testing.T) {
			b := budget.New(budget.Params{Ceiling: c.ceiling, Workers: c.workers, Now: time.Now})
			if got := spent(t, b, 100*time.Second); !near(got, 100*c.want+c.want/10) {
				t.Errorf("%+v: %d in 100 seconds", c, got)
			}
		})
	}
}

// TestCharge: what a request has taken beyond its first unit is waited for.
func TestCharge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(budget.Params{Ceiling: 100, Workers: 1, Now: time.Now})
		began := time.Now()
		for range 100 {
			if err := b.Spend(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.Charge(9)
		}
		if took := time.Since(began); took < 9500*time.Millisecond || took > 10*time.Second {
			t.Errorf("1,000 units took %s", took)
		}
	})
}

// TestRefusal: a refusal counts at once, also for callers that wait already; without a sample
// the rate stays below what was refused, and parts are tried again.
func TestRefusal(t *testing.T) {
	for _, parts := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := budget.New(budget.Params{Ceiling: 1000, Workers: 1, Parts: parts, Now: time.Now})
			go func() {
				time.Sleep(10 * time.Second)
				b.Refuse()
				b.Refuse() // in the same second
			}()
			spent(t, b, 10500*time.Millisecond)
			if got := spent(t, b, 20*time.Second); !near(got, 20*700) {
				t.Errorf("parts %v: %d a second after a refusal", parts, got/20)
			}
			time.Sleep(10 * time.Second)
			spent(t, b, time.Second)
			if got := spent(t, b, 10*time.Second); !near(got, 10*900) {
				t.Errorf("parts %v: %d a second half a minute later", parts, got/10)
			}
			spent(t, b, time.Minute)
			want := 900.
			if parts {
				want = 1000
			}
			if got := spent(t, b, 10*time.Second); !near(got, 10*want) {
				t.Errorf("parts %v: %d a second in the end", parts, got/10)
			}
		})
	}
}

// TestSamples: before anything is spent a process takes half of the way to its share of what
// is free; then the minutes of its own spending count, and others do not.
func TestSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		minute := time.Now()
		sample := budget.Sample{Minute: minute.Add(-3 * time.Minute), Used: 3600, Capacity: 10_000}
		b := budget.New(budget.Params{Ceiling: 1e5, Workers: 4, Now: time.Now, Usage: func(context.Context) (budget.Sample, error) { return sample, nil }})
		if got := spent(t, b, 59*time.Second); !near(got, 59*(250+1537.5)/2) { // 9,750 − 3,600 are free: 1,537 for each
			t.Errorf("first %d a second", got/59)
		}
		sample = budget.Sample{Minute: minute, Used: 7100, Capacity: 10_000}
		spent(t, b, 2*time.Second)
		sample = budget.Sample{Minute: minute.Add(-time.Minute), Used: 20_000, Capacity: 10_000}            // an older one changes nothing
		if got := spent(t, b, 62*time.Second); !near(got, 62*(893.75*.99+.75*662.5+.25*2650*893.75/7100)) { // 250 are the margin
			t.Errorf("then %d a second", got/62)
		}
		sample.Minute = minute.Add(time.Minute)
		spent(t, b, time.Minute)
		if got := spent(t, b, 10*time.Second); !near(got, 40) {
			t.Errorf("beyond the capacity %d a second", got/10)
		}
	})
}

// TestNoSample: an error changes nothing and is not asked for again at once.
func TestNoSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		b := budget.New(budget.Params{Ceiling: 1e5, Workers: 10, Now: time.Now, Usage: func(context.Context) (budget.Sample, error) {
			asked++
			return budget.Sample{}, errors.New("denied")
		}})
		if got := spent(t, b, 4*time.Minute); !near(got, 240*100) || asked != 1 {
			t.Errorf("%d a second, asked %d times", got/240, asked)
		}
	})
}
