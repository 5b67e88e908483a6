package budget

import (
	"context"
	"maps"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func same(got, want float64) bool { return math.Abs(got-want) < 1e-6*max(1, math.Abs(want)) }

// TestMargin: what stays free is a share of the capacity or grows with the root of what others
// use, of a table in each of its partitions.
func TestMargin(t *testing.T) {
	for _, c := range []struct {
		parts          bool
		capacity, used float64
		own, workers   float64
		want           float64
	}{
		{false, 10_000, 3000, 0, 1, 250},
		{false, 10_000, 8100, 100, 10, 4 * math.Sqrt(7100)},
		{false, 10_000, 8100, 0, 10, 4 * math.Sqrt(8100)},
		{false, 1000, 500, 100, 10, 25}, // nobody else uses any
		{true, 10_000, 3000, 0, 1, 1.5 * 10 * math.Sqrt(300)},
		{true, 10_000, 4000, 100, 10, 1.5 * 10 * math.Sqrt(300)},
		{true, 500, 400, 0, 1, 1.5 * 20},
		{true, 4000, 100, 0, 1, 100},
	} {
		b := New(Params{Ceiling: 1e5, Workers: int(c.workers), Parts: c.parts, Now: time.Now})
		if got := b.margin(Sample{Used: c.used, Capacity: c.capacity}, c.own); !same(got, c.want) {
			t.Errorf("%+v: %g", c, got)
		}
	}
}

// TestBurst: a tenth of a second's units may come at once, and always one.
func TestBurst(t *testing.T) {
	for workers, want := range map[int]int{1: 100, 10: 10, 40: 2, 60: 1, 400: 1} {
		b := New(Params{Ceiling: 1e5, Workers: workers, Now: time.Now})
		if got := b.limiter.Burst(); got != want || b.Rate() != max(leastRate, StartRate/float64(workers)) || b.Rate() == 0 {
			t.Errorf("%d workers: %d at once, %g a second", workers, got, b.Rate())
		}
	}
}

// TestCountSeconds: the last two seconds in which something was spent are known.
func TestCountSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Params{Ceiling: 1e5, Workers: 1, Now: time.Now})
		for _, c := range []struct{ units, now, before float64 }{{5, 5, 0}, {3, 3, 5}, {7, 7, 3}} {
			b.count(c.units - 1)
			b.count(1)
			if b.second[0].units != c.now || b.second[1].units != c.before {
				t.Errorf("%+v: %+v", c, b.second)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestRefuseOnceASecond: a refusal counts again when a second is over, and not before.
func TestRefuseOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Params{Ceiling: 1e5, Workers: 1, Now: time.Now})
		b.count(1000)
		want := 0.7 * 1000
		for range 3 {
			b.Refuse()
			time.Sleep(time.Second - time.Nanosecond)
			b.Refuse()
			if !same(b.Rate(), want) {
				t.Errorf("%g a second, want %g", b.Rate(), want)
			}
			time.Sleep(time.Nanosecond)
			want *= 0.7
		}
	})
}

// TestPolls: the use is asked for once a minute, however much is spent.
func TestPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		b := New(Params{Ceiling: 1e5, Workers: 1, Now: time.Now, Usage: func(context.Context) (Sample, error) { asked++; return Sample{}, nil }})
		for range 600 {
			if err := b.Spend(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / 2)
		}
		if asked < 5 || asked > 6 {
			t.Errorf("asked %d times in five minutes", asked)
		}
	})
}

// TestAdjust: which samples count after the first spending, and what a process takes of what is free.
func TestAdjust(t *testing.T) {
	minute := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	const own, stays = 100, 777
	free := func(used, margin, grow float64) float64 {
		left := 1000 - used - margin
		return own*.99 + left/2*.75 + left*own/used*grow
	}
	for name, c := range map[string]struct {
		parts          bool
		began, refused time.Duration // since the sample's minute began
		used           float64
		want           float64
	}{
		"began in it":          {began: 59 * time.Second, used: 500, want: free(500, 4*math.Sqrt(300), .25)},
		"began after it":       {began: time.Minute, used: 500, want: stays},
		"refused before it":    {began: -time.Hour, refused: -time.Second, used: 500, want: free(500, 4*math.Sqrt(300), .25)},
		"refused in it":        {began: -time.Hour, refused: time.Second, used: 500, want: stays},
		"refused in it, parts": {parts: true, began: -time.Hour, refused: time.Second, used: 500, want: free(500, 1.5*math.Sqrt(300), 1)},
		"too much":             {began: -time.Hour, used: 1200, want: free(1200, 4*math.Sqrt(1000), .25)},
		"too much, parts":      {parts: true, began: -time.Hour, used: 1200, want: free(1200, 1.5*math.Sqrt(1000), .25)},
	} {
		b := New(Params{Ceiling: 1e5, Workers: 2, Parts: c.parts, Now: func() time.Time { return minute }})
		b.wanted = stays
		b.began, b.refused = minute.Add(c.began), minute.Add(c.refused)
		b.spent[minute.Unix()/60] = 60 * own
		s := Sample{Minute: minute, Used: c.used, Capacity: 1000}
		b.bound, b.next = 5000, minute
		b.spent[minute.Unix()/60-100] = 1
		if b.adjust(s); !same(b.wanted, c.want) {
			t.Errorf("%s: %g, want %g", name, b.wanted, c.want)
		}
		used := c.want != stays
		if bound, old := math.IsInf(b.bound, 1) && b.next.IsZero(), len(b.spent) > 1; bound != (used && !c.parts) || old == used {
			t.Errorf("%s: bound %g until %s, spent %v", name, b.bound, b.next, b.spent)
		}
		if b.adjust(Sample{Minute: minute.Add(-time.Minute), Used: 1, Capacity: 1000}); used && !same(b.wanted, c.want) {
			t.Errorf("%s: an older sample makes %g", name, b.wanted)
		}
	}
}

// TestFirstSample: before anything is spent, a process goes half of the way to its share, but never
// above; a sample counts once, and one without a capacity does not.
func TestFirstSample(t *testing.T) {
	for _, c := range []struct{ used, capacity, want float64 }{
		{300, 500, 500 - 300 - 4*math.Sqrt(300)},
		{3600, 10_000, (1000 + 10_000 - 3600 - 250) / 2},
		{100, 0, 1000},
	} {
		s := Sample{Minute: time.Now(), Used: c.used, Capacity: c.capacity}
		b := New(Params{Ceiling: 1e5, Workers: 1, Now: time.Now, Usage: func(context.Context) (Sample, error) { return s, nil }})
		for range 2 {
			b.poll = time.Time{}
			if b.pollUsage(t.Context()); !same(b.wanted, c.want) {
				t.Errorf("%+v: %g", c, b.wanted)
			}
		}
	}
}

// TestRaiseBound: the bound of a table rises by 10 %, then by twice as much each time, and is gone
// when it is above what is wanted.
func TestRaiseBound(t *testing.T) {
	b := New(Params{Ceiling: 1e5, Workers: 1, Parts: true, Now: time.Now})
	now := time.Now()
	b.bound, b.rise = 100, firstRise
	b.wanted = 10_000
	for _, want := range []float64{110, 132, 184.8} {
		if b.raiseBound(now); !same(b.bound, want) || !b.next.Equal(now.Add(riseEvery)) {
			t.Errorf("%g, want %g; again at %s", b.bound, want, b.next)
		}
	}
	b.bound, b.rise, b.wanted = 100, 1, 200
	if b.raiseBound(now); b.bound != 200 || b.next.IsZero() {
		t.Errorf("%g, next %s: it is not above what is wanted", b.bound, b.next)
	}
	if b.raiseBound(now); !math.IsInf(b.bound, 1) || !b.next.IsZero() {
		t.Errorf("%g, next %s: it is above what is wanted", b.bound, b.next)
	}
}

// TestFirstUnits: nothing is free at the start; what is charged is spent and waited for, and a
// charge of nothing is not a spending.
func TestFirstUnits(t *testing.T) {
	for _, c := range []struct {
		workers       int
		charge, spent float64
		want          time.Duration
	}{
		{250, 0, 0, 250 * time.Millisecond},
		{250, -1, 0, 250 * time.Millisecond},
		{250, 1, 1, 500 * time.Millisecond},
		{250, 0.5, 0.5, 500 * time.Millisecond},
		{1, 1000, 1000, 1001 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := New(Params{Ceiling: 1e5, Workers: c.workers, Now: time.Now})
			start := time.Now()
			b.Charge(c.charge)
			if got := b.spent[start.Unix()/60]; got != c.spent || b.began.IsZero() != (c.spent == 0) {
				t.Errorf("%+v: spent %g, began %s", c, got, b.began)
			}
			if err := b.Spend(t.Context()); err != nil || time.Since(start).Round(time.Millisecond) != c.want {
				t.Errorf("%+v: waited %s, %v", c, time.Since(start), err)
			}
		})
	}
}

// TestForget: what was spent in the last fifteen minutes before a sample is kept.
func TestForget(t *testing.T) {
	b := New(Params{Ceiling: 1e5, Workers: 1, Now: time.Now})
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	now := at.Unix() / 60
	for _, ago := range []int64{-1, 0, 14, 15, 16, 17, 90} {
		b.spent[now-ago] = 1
	}
	b.forgetBefore(at)
	if got, want := slices.Sorted(maps.Keys(b.spent)), []int64{now - 15, now - 14, now, now + 1}; !slices.Equal(got, want) {
		t.Errorf("%d, want %d", got, want)
	}
}
