package limits_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/limits"
)

// scene is a walk of many workers beside live traffic. Both take from one capacity: the quota
// of KMS or, with partitions, the write units of a table. Live traffic runs for some minutes
// before the walk begins.
type scene struct {
	name       string
	capacity   float64
	partitions int
	workers    int
	live       func(since time.Duration) float64 // since the walk began
	ceiling    float64
	blind      bool // CloudWatch does not answer
	ignore     bool // the planted bug: the walk does not spend its budget
	lasts      time.Duration
	measure    time.Duration // what comes before is not measured
}

const (
	before       = 3 * time.Minute
	delay        = 90 * time.Second // of CloudWatch
	rowsInFlight = 64               // of a worker, as internal/app has it
	segmentLasts = 10 * time.Minute // of large tables
	segments     = 2000             // as many as a rotation may have
)

// newSegments gives workers one segment after the other, in the order of the state machine's map.
func newSegments() func() int {
	order, next := rotation.SpreadSegments(segments), 0
	var mu sync.Mutex
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return order[(next-1)%segments]
	}
}

// steady is live traffic of one rate.
func steady(rate float64) func(time.Duration) float64 {
	return func(time.Duration) float64 { return rate }
}

// capacity is what a scene is about.
type capacity struct {
	request func(hash float64) error
	usage   *limits.Usage
	take    func() int // the next segment
}

func (s scene) build(dice *limits.Dice) capacity {
	usage := &limits.Usage{Delay: delay}
	latency := limits.Latency{Typical: 5 * time.Millisecond, Jitter: 0.3, Tail: 0.005}
	if s.partitions == 0 {
		k := &limits.KMS{Quota: s.capacity, Latency: latency, Dice: dice, Usage: usage}
		return capacity{func(float64) error { return k.Request() }, usage, newSegments()}
	}
	table := limits.NewOnDemand(s.partitions, s.capacity, 3*s.capacity)
	table.Latency, table.Dice, table.Usage = latency, dice, usage
	return capacity{func(hash float64) error { return table.Write(hash, 700) }, usage, newSegments()}
}

// result is what a scene came to.
type result struct {
	scene
	began       time.Time
	alone, with *limits.Traffic
	walked      []int // requests that were granted to the walk, by second
	refused     []int
	visited     []map[int]bool // partitions that it was at
}

// play plays the scene without the walk and with it.
func (s scene) play(t *testing.T) *result {
	t.Helper()
	seconds := int(s.lasts.Seconds()) + 30
	r := &result{scene: s, walked: make([]int, seconds), refused: make([]int, seconds), visited: make([]map[int]bool, seconds)}
	r.alone = s.run(t, r, 0)
	r.with = s.run(t, r, s.workers)
	return r
}

func (s scene) run(t *testing.T, r *result, workers int) (live *limits.Traffic) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		dice := limits.NewDice(7)
		c := s.build(dice)
		r.began = time.Now().Add(before)
		live = &limits.Traffic{Call: func() error { return c.request(dice.Float64()) }, Dice: dice, Rate: func(since time.Duration) float64 { return s.live(since - before) }}
		ctx, cancel := context.WithDeadline(t.Context(), r.began.Add(s.lasts))
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { live.Run(ctx) })
		time.Sleep(before)
		var counting sync.Mutex
		for range workers {
			all.Go(func() {
				time.Sleep(time.Duration(dice.Float64() * float64(3*time.Second))) // functions do not start together
				s.walk(ctx, c, dice, func(hash float64, err error) {
					counting.Lock()
					defer counting.Unlock()
					r.count(int(time.Since(r.began).Seconds()), hash, err)
				})
			})
		}
		all.Wait()
	})
	return live
}

// walk is one worker that has nothing to do but to make requests. Each part of a minute it is
// at another segment.
func (s scene) walk(ctx context.Context, c capacity, dice *limits.Dice, done func(float64, error)) {
	p := budget.Params{Ceiling: s.ceiling, Workers: s.workers, Parts: s.partitions > 0, Now: time.Now}
	if !s.blind {
		p.Usage = func(context.Context) (budget.Sample, error) {
			time.Sleep(50 * time.Millisecond)
			at, rate, _ := c.usage.Latest()
			return budget.Sample{Minute: at, Used: rate, Capacity: s.capacity}, nil
		}
	}
	b := budget.New(p)
	var rows sync.WaitGroup
	defer rows.Wait()
	var segment, row int
	var from, until time.Time
	var moving sync.Mutex
	where := func() float64 {
		moving.Lock()
		defer moving.Unlock()
		if now := time.Now(); !now.Before(until) {
			segment = c.take()
			from, until = now, now.Add(time.Duration((0.5+dice.Float64())*float64(segmentLasts)))
		}
		at := (float64(segment) + time.Since(from).Seconds()/until.Sub(from).Seconds()) / float64(segments)
		row++
		return s.place(segment, row, at)
	}
	for range rowsInFlight {
		rows.Go(func() {
			for ctx.Err() == nil {
				if !s.ignore && b.Spend(ctx) != nil {
					return
				}
				hash := where()
				err := c.request(hash)
				if done(hash, err); errors.Is(err, limits.ErrThrottled) {
					b.Refuse()
				}
			}
		})
	}
}

// place returns where a row is among all: of a table of many partitions, the driver reads pages
// of eight of 64 parts, 62 rows of each (source/dynamodb, spread.go).
func (s scene) place(segment, row int, at float64) float64 {
	if s.partitions <= 1 {
		return at
	}
	const parts, atOnce, each = 64, 8, 62
	turns := rotation.SpreadSegments(parts / atOnce)
	first := segment * len(turns) / segments
	turn := turns[(first+row/(atOnce*each))%len(turns)]
	return (float64(row%atOnce*len(turns)+turn) + at) / parts
}

func (r *result) count(second int, hash float64, err error) {
	if r.visited[second] == nil {
		r.visited[second] = map[int]bool{}
	}
	r.visited[second][int(hash*float64(r.partitions))] = true
	if err == nil {
		r.walked[second]++
	} else {
		r.refused[second]++
	}
}

// reached is what the walk got of what was free from one moment to another, of a table in the
// partitions that it was at.
func (r *result) reached(from, to time.Duration) float64 {
	got, free := 0.0, 0.0
	for i := int(from.Seconds()); i < int(to.Seconds()); i++ {
		got += float64(r.walked[i])
		free += (r.capacity - r.live(time.Duration(i)*time.Second)) * float64(len(r.visited[i])) / float64(max(1, r.partitions))
	}
	return got / free
}

// live traffic's view from one moment to another: alone, and beside the walk.
func (r *result) summaries(from, to time.Duration) (alone, with limits.Summary) {
	return r.alone.Summarize(r.began.Add(from), r.began.Add(to)), r.with.Summarize(r.began.Add(from), r.began.Add(to))
}

func (r *result) print(t *testing.T, from, to time.Duration) {
	t.Helper()
	alone, with := r.summaries(from, to)
	refused := 0
	for _, n := range r.refused[int(from.Seconds()):int(to.Seconds())] {
		refused += n
	}
	t.Logf("%-24s %3d workers, %s to %s, live %.0f to %.0f of %.0f: walk %.1f %% of what is free, %d refused; live p99 %.2f ms, alone %.2f ms, throttled %.4f %%, failed %d",
		r.name, r.workers, from, to, r.live(from), r.live(to), r.capacity, 100*r.reached(from, to), refused,
		float64(with.P99.Microseconds())/1000, float64(alone.P99.Microseconds())/1000, 100*with.Throttled, with.Failed)
}

// hill rises from low to high between two moments, stays, and falls as fast.
func hill(low, high float64, from, to, back time.Duration) func(time.Duration) float64 {
	return func(since time.Duration) float64 {
		up := float64(since-from) / float64(max(to-from, 1))
		down := float64(since-back) / float64(max(to-from, 1))
		return low + (high-low)*(min(1, max(0, up))-min(1, max(0, down)))
	}
}

// small is a scene that costs little, for tests.
func small(workers int, live func(time.Duration) float64) scene {
	return scene{capacity: 1000, workers: workers, live: live, ceiling: 100_000, lasts: 6 * time.Minute}
}

// TestBudgetLeavesLiveTrafficAlone: beside a walk of many workers live calls are as
// fast as without it, and the walk gets what is free, but for a margin of four roots of the
// capacity.
func TestBudgetLeavesLiveTrafficAlone(t *testing.T) {
	r := small(16, steady(300)).play(t)
	r.print(t, 0, r.lasts)
	alone, with := r.summaries(0, r.lasts)
	if with.P99 > alone.P99*11/10 || with.Throttled > 0.001 || with.Failed > 0 {
		t.Errorf("beside the walk %+v, alone %+v", with, alone)
	}
	if got := r.reached(4*time.Minute, r.lasts); got < 0.78 { // (1,000 − 126 − 300) of 700 are 0.82
		t.Errorf("the walk got %.3f of what is free", got)
	}
}

// table is a scene of a table of so many partitions.
func table(partitions, workers int) scene {
	capacity := float64(limits.PartitionWrites * partitions)
	return scene{
		name: fmt.Sprint("table of ", partitions), capacity: capacity, partitions: partitions, workers: workers,
		live: steady(0.3 * capacity), ceiling: 100_000,
	}
}

// partitionsOf lists tables whose free writes as many workers can make.
func partitionsOf(workers int) []int {
	switch {
	case workers == 1:
		return []int{1, 4}
	case workers <= 4:
		return []int{4}
	}
	return []int{10}
}

// TestBudgetOfPartitions: workers that read from all over a table use all its partitions alike, so
// the walk gets what is free, but for the margin, and next to no live call is throttled.
func TestBudgetOfPartitions(t *testing.T) {
	s := table(4, 6)
	s.lasts = 6 * time.Minute
	r := s.play(t)
	r.print(t, 4*time.Minute, r.lasts)
	alone, with := r.summaries(0, r.lasts)
	if with.P99 > alone.P99*11/10 || with.Throttled > 0.0005 || with.Failed > 0 {
		t.Errorf("beside the walk %+v, alone %+v", with, alone)
	}
	if got := r.reached(4*time.Minute, r.lasts); got < 0.93 {
		t.Errorf("the walk got %.3f of what is free", got)
	}
}

// TestBudgetFallsAndRises: when live traffic more than doubles at once, a few of its calls
// are throttled, for seconds; then the walk has what is left, and later again what it had.
func TestBudgetFallsAndRises(t *testing.T) {
	s := small(4, hill(300, 700, 2*time.Minute, 2*time.Minute+time.Second, 7*time.Minute))
	s.lasts = 12 * time.Minute
	r := s.play(t)
	r.print(t, 0, s.lasts)
	r.print(t, 2*time.Minute, 3*time.Minute)
	alone, with := r.summaries(0, s.lasts)
	if with.P99 > alone.P99*11/10 || with.Throttled > 0.005 || with.Failed > with.Calls/10_000 {
		t.Errorf("beside the walk %+v, alone %+v", with, alone)
	}
	for _, c := range []struct{ from, to time.Duration }{{6 * time.Minute, 7 * time.Minute}, {11 * time.Minute, 12 * time.Minute}} {
		r.print(t, c.from, c.to)
		_, with := r.summaries(c.from, c.to)
		if got := r.reached(c.from, c.to); got < 0.5 || with.Throttled > 0.001 { // (1,000 − 126 − 700) of 300 are 0.58
			t.Errorf("%s to %s: the walk got %.3f of what is free, live traffic %+v", c.from, c.to, got, with)
		}
	}
}

// TestBudgetWithoutSample: when CloudWatch does not answer, a walk stays at its start.
func TestBudgetWithoutSample(t *testing.T) {
	s := small(4, steady(300))
	s.capacity = 2000
	s.blind, s.lasts = true, time.Minute
	r := s.play(t)
	if got := r.reached(10*time.Second, s.lasts) * 1700; got < 980 || got > 1020 {
		t.Errorf("%.0f requests a second, not %d", got, budget.StartRate)
	}
}

// TestBudgetIgnored: the scene notices a walk that does not spend its budget.
func TestBudgetIgnored(t *testing.T) {
	s := small(4, steady(300))
	s.ignore, s.lasts = true, 20*time.Second
	r := s.play(t)
	if _, with := r.summaries(0, s.lasts); with.Throttled < 0.3 {
		t.Errorf("live traffic did not notice: %+v", with)
	}
}

// TestLimitsFigures prints the tables of docs/performance.md. It takes minutes.
func TestLimitsFigures(t *testing.T) {
	which, only, _ := strings.Cut(os.Getenv("MATTER_LIMITS"), ":")
	if which == "" {
		t.Skip("set MATTER_LIMITS to kms, table or change; kms:4 is with four workers alone")
	}
	workers := []int{1, 4, 16, 40, 400}
	if n, err := strconv.Atoi(only); err == nil {
		workers = []int{n}
	}
	switch which {
	case "kms":
		for _, n := range workers {
			s := scene{name: "KMS", capacity: limits.QuotaMostRegions, workers: n, live: steady(3000), ceiling: 100_000, lasts: 10 * time.Minute, measure: 6 * time.Minute}
			s.play(t).print(t, s.measure, s.lasts)
		}
	case "table":
		for _, n := range workers {
			for _, parts := range partitionsOf(n) {
				s := table(parts, n)
				s.lasts, s.measure = 18*time.Minute, 6*time.Minute
				s.play(t).print(t, s.measure, s.lasts)
			}
		}
	case "change":
		for _, ramp := range []time.Duration{time.Second, 10 * time.Minute} {
			up, back := 8*time.Minute, 16*time.Minute+ramp
			s := scene{name: fmt.Sprint("KMS, ramp of ", ramp), capacity: limits.QuotaMostRegions, workers: 16, live: hill(3000, 7000, up, up+ramp, back), ceiling: 100_000, lasts: back + ramp + 8*time.Minute}
			r := s.play(t)
			for _, at := range []time.Duration{5 * time.Minute, up, up + ramp/2, up + ramp, up + ramp + time.Minute, up + ramp + 4*time.Minute, back, back + ramp, back + ramp + 4*time.Minute} {
				r.print(t, at, min(s.lasts, at+max(time.Minute, ramp/2)))
			}
		}
	}
}
