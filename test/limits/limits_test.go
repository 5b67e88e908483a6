package limits_test

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/test/limits"
)

// count makes n requests at once every interval for so long, and returns how many were granted.
func count(long, interval time.Duration, n int, request func() error) (granted int) {
	for began := time.Now(); time.Since(began) < long; time.Sleep(interval) {
		for range n {
			if request() == nil {
				granted++
			}
		}
	}
	return granted
}

// TestKMSExamples: the two examples of AWS's page ("Request quotas", "Shared quotas for
// cryptographic operations"): with a quota of 10,000, 7,000 and 2,000 requests in a second
// are not throttled; 9,500 and 1,000 are.
func TestKMSExamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ first, second, throttled int }{{7000, 2000, 0}, {9500, 1000, 500}} {
			k := &limits.KMS{Quota: limits.QuotaMostRegions, Dice: limits.NewDice(1)}
			throttled := 0
			for range c.first + c.second {
				if k.Request() != nil {
					throttled++
				}
			}
			if throttled != c.throttled {
				t.Errorf("%d and %d: %d throttled", c.first, c.second, throttled)
			}
			time.Sleep(time.Second)
			if k.Request() != nil {
				t.Error("throttled in the next second")
			}
		}
	})
}

// TestTableLimits: a partition takes 1,000 write units and 3,000 read units a second; a new
// on-demand table 4,000 and 12,000 over all; one that is warmed 40,000 and no more.
func TestTableLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds = 10
		per := func(granted int) float64 { return float64(granted) / seconds }
		check := func(what string, got, want float64) {
			t.Helper()
			if got < want || got > want*1.12 { // a bucket begins full: one second more in ten
				t.Errorf("%s: %.0f a second, want %.0f", what, got, want)
			}
		}
		spread := func(_ *limits.Table, n int, request func(hash float64) error) func() error {
			i := 0
			return func() error { i++; return request((float64(i%n) + 0.5) / float64(n)) }
		}
		run := func(n int, request func() error) float64 {
			return per(count(seconds*time.Second, 10*time.Millisecond, n, request))
		}
		dice := limits.NewDice(1)
		fresh := func() *limits.Table {
			table := limits.NewOnDemand(4, limits.WarmWrites, limits.WarmReads)
			table.Dice = dice
			return table
		}
		table := fresh()
		check("writes of a partition", run(60, func() error { return table.Write(0.1, 1000) }), limits.PartitionWrites)
		table = fresh()
		check("writes of 10 KB", 10*run(60, func() error { return table.Write(0.1, 10_000) }), limits.PartitionWrites)
		table = fresh()
		check("reads of a partition", run(60, func() error { return table.Read(0.1, 4096) }), limits.PartitionReads)
		table = fresh()
		check("writes of a new table", run(200, spread(table, 4, func(h float64) error { return table.Write(h, 1000) })), limits.WarmWrites)
		table = fresh()
		check("reads of a new table", run(200, spread(table, 4, func(h float64) error { return table.Read(h, 4096) })), limits.WarmReads)
		table = limits.NewOnDemand(64, 64_000, 192_000)
		table.Dice = dice
		check("writes of a warm table", run(1000, spread(table, 64, func(h float64) error { return table.Write(h, 1000) })), limits.TableUnits)
	})
}

// TestBurst: a provisioned table lends the unused capacity of at most 300 seconds.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := limits.NewProvisioned(1, 100, 100)
		table.Dice = limits.NewDice(1)
		write := func() error { return table.Write(0.1, 1000) }
		if got := count(30*time.Second, 100*time.Millisecond, 100, write); got < 29_000 || got > 33_000 {
			t.Errorf("30 seconds after a rest: %d writes", got) // 1,000 a second, the partition's limit
		}
		count(30*time.Second, 100*time.Millisecond, 100, write)
		if got := count(10*time.Second, 100*time.Millisecond, 100, write); got > 1010 {
			t.Errorf("after that: %d writes in 10 seconds", got)
		}
		time.Sleep(time.Hour)
		if got := count(100*time.Second, 100*time.Millisecond, 100, write); got < 39_900 || got > 40_200 {
			t.Errorf("100 seconds after an hour: %d writes, not those of 400 seconds", got)
		}
	})
}

// TestUnits: the examples of AWS's page ("Read and write capacity units").
func TestUnits(t *testing.T) {
	for bytes, want := range map[int]float64{1: 1, 1024: 1, 1025: 2, 3 * 1024: 3, 400 * 1024: 400} {
		if got := limits.WriteUnits(bytes); got != want {
			t.Errorf("a write of %d bytes: %g units", bytes, got)
		}
	}
	for bytes, want := range map[int]float64{1: 1, 4096: 1, 8 * 1024: 2, 8*1024 + 1: 3} {
		if got := limits.ReadUnits(bytes); got != want {
			t.Errorf("a read of %d bytes: %g units", bytes, got)
		}
	}
}

// TestLambdaShare: 1,769 MB are one virtual processor, and work waits for its turn.
func TestLambdaShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for memory, want := range map[float64]time.Duration{1769: 10 * time.Second, 1024: 17276 * time.Millisecond, 3538: 5 * time.Second} {
			c := &limits.CPU{MemoryMB: memory}
			began := time.Now()
			for range 10_000 {
				c.Work(time.Millisecond)
			}
			if took := time.Since(began).Round(time.Millisecond); took < want-50*time.Millisecond || took > want+50*time.Millisecond {
				t.Errorf("%g MB: ten seconds of work took %s", memory, took)
			}
		}
	})
}

// TestUsage: a minute's sum is of that minute alone, and can be read after the delay.
func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &limits.Usage{Delay: 90 * time.Second}
		k := &limits.KMS{Quota: 50, Dice: limits.NewDice(1), Usage: u}
		first := time.Now().Truncate(time.Minute).Add(time.Minute)
		time.Sleep(time.Until(first))
		count(time.Minute, time.Second, 60, k.Request) // 10 of 60 are refused
		if _, _, ok := u.Latest(); ok {
			t.Error("a minute can be read at once")
		}
		time.Sleep(90 * time.Second)
		if at, rate, ok := u.Latest(); !ok || !at.Equal(first) || rate != 50 {
			t.Errorf("%s: %g a second, %v", at, rate, ok)
		}
	})
}

// TestTraffic: live traffic has the rate and the latencies that it is given; a call that is
// throttled is repeated, and counted.
func TestTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dice := limits.NewDice(1)
		k := &limits.KMS{Quota: 1000, Latency: limits.Latency{Typical: 5 * time.Millisecond, Jitter: 0.3, Tail: 0.005}, Dice: dice}
		live := &limits.Traffic{Rate: func(time.Duration) float64 { return 500 }, Call: k.Request, Dice: dice}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		live.Run(ctx)
		s := live.Summarize(began, time.Now())
		if rate := float64(s.Calls) / 100; math.Abs(rate-500) > 15 || s.Throttled != 0 || s.P50 > 6*time.Millisecond || s.P99 > 10*time.Millisecond {
			t.Errorf("%+v", s)
		}
		k.Quota = 400
		began = time.Now()
		again, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		live.Run(again)
		if s = live.Summarize(began, time.Now()); s.Throttled < 0.1 || s.P99 < 500*time.Millisecond {
			t.Errorf("over the quota: %+v", s)
		}
	})
}
