// Package budget bounds how much a process takes of a capacity that it shares with live
// traffic: requests to KMS, and write units of a table.
//
// AWS refuses every caller when a capacity is used up, live traffic as well as the walk, and
// documents no sign of it before the first refusal: KMS refuses "all subsequent requests in
// that second" (KMS developer guide, "Throttling AWS KMS requests"). So a budget looks at
// CloudWatch once a minute, which knows the capacity and everybody's use of it, and stays
// below. Three rules:
//
//   - Each minute: three quarters of what is free are shared out equally among the workers, the
//     rest in proportion to what each has spent. If more is used than the target, that is less than
//     nothing. A worker compares with what it has spent itself in the minute that the
//     metric is about, so the metric may be minutes late.
//   - A refusal: at once 30 % less, after half a minute 10 % less, until a sample of a later
//     minute says more. The partitions of a table have limits that no metric shows, and a walk
//     moves from one to the next: so its bound rises by 10 % after 20 quiet seconds, then by
//     20, 40, … .
//   - A budget that has never seen the use stays at its start.
//
// The workers of a rotation do not talk to each other. Their sum stays below the target
// because the shares that they take of what is free add up to at most all of it.
package budget

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Sample is how much of a capacity everybody used in one minute, in units a second.
type Sample struct {
	Minute   time.Time // its beginning
	Used     float64
	Capacity float64
}

// Usage reads the latest sample; a zero one if there is none.
type Usage func(context.Context) (Sample, error)

// StartRate is what all workers together spend in units a second before one has seen the use: a
// tenth of the lowest default quota of KMS (developer guide, "Request quotas"), and what one
// partition of a table takes (DynamoDB developer guide, "Burst and adaptive capacity").
const StartRate = 1000

// Params describe a budget.
type Params struct {
	Ceiling float64 // units a second of all workers together; each may take at least one
	Workers int     // how many processes work at once
	Usage   Usage   // nil: never known
	Parts   bool    // the capacity has parts with limits of their own, which the usage does not show
	Now     func() time.Time
}

const (
	leastRate    = 4.0  // units a second of a process: 2,000 rows in less than the ten minutes after which a pass begins again
	giveBack     = 0.01 // so that workers that have more come closer to the others
	equally      = 0.75 // of what is free; the rest is for walks of which few workers are left
	lessAtOnce   = 0.7
	boundAfter   = 0.9
	recoverAfter = 30 * time.Second // after a refusal
	firstRise    = 0.1
	riseEvery    = 20 * time.Second
	pollEvery    = time.Minute
	pollFailed   = 5 * time.Minute
	pollTimeout  = 3 * time.Second
	keptMinutes  = 15
	leastMargin  = 0.025 // of a capacity
	spread       = 4     // standard deviations of live requests, if they come independently
	partSpread   = 1.5   // the same in one partition, which lends the next second what it has not used
	partCapacity = 1000  // write units a second of one partition
)

// margin is what stays free of a capacity: as many live requests as may come in one second
// beyond the average (the root of the average, if they come independently; the walk's come
// evenly), and at least 2.5 %. What a partition of a table has not used it lends for a while
// (DynamoDB developer guide, "Burst and adaptive capacity"), so of each partition less is
// enough. The walk writes to all partitions alike ([source.ScanRequest].Spread), and live
// traffic is taken to do so too.
func (b *Budget) margin(s Sample, own float64) float64 {
	live := max(0, s.Used-own*float64(b.p.Workers)) // as if the others spent as much as this process
	varies := spread * math.Sqrt(live)
	if b.p.Parts {
		parts := max(1, s.Capacity/partCapacity)
		varies = partSpread * parts * math.Sqrt(live/parts)
	}
	return max(leastMargin*s.Capacity, varies)
}

// Budget is the share of one process. It is safe for concurrent use.
type Budget struct {
	p       Params
	limiter *rate.Limiter
	turn    chan struct{} // held by the one caller that waits for the limiter
	poll    time.Time     // when the use is asked for next; whose turn it is may touch it

	mu      sync.Mutex
	began   time.Time         // first spending
	wanted  float64           // units a second of this process by the samples
	rate    float64           // the same, within bound and ceiling
	bound   float64           // the highest rate after a refusal; +Inf without one
	rise    float64           // of the bound after the next quiet time
	next    time.Time         // when the bound changes
	refused time.Time         // the last refusal that counted
	spent   map[int64]float64 // by minute since 1970
	second  [2]spending       // this second and the last one in which something was spent
	sampled time.Time         // minute of the last sample that was used
}

type spending struct {
	at    int64
	units float64
}

// New returns a budget that begins at the start rate.
func New(p Params) *Budget {
	b := &Budget{p: p, spent: map[int64]float64{}, bound: math.Inf(1)}
	b.limiter = rate.NewLimiter(0, 0)
	b.turn = make(chan struct{}, 1)
	b.wanted = StartRate / float64(p.Workers)
	b.applyRate()
	return b
}

// applyRate changes what the process may spend to what it wants, within its bound and its
// share of the ceiling.
func (b *Budget) applyRate() {
	ceiling := max(1, b.p.Ceiling/float64(b.p.Workers))
	b.rate = min(ceiling, max(leastRate, min(b.wanted, b.bound)))
	b.limiter.SetLimit(rate.Limit(b.rate))
	b.limiter.SetBurst(max(1, int(b.rate/10)))
}

// Rate returns what the process may spend now, in units a second.
func (b *Budget) Rate() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rate
}

// Spend waits until the process may spend one unit. Each attempt of a request spends it, also
// a repeated one.
func (b *Budget) Spend(ctx context.Context) error {
	// One caller waits at a time: the limiter gives each that waits a moment at the rate of
	// now, so a queue of many would continue at the old rate long after a refusal.
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for the budget: %w", ctx.Err())
	}
	defer func() { <-b.turn }()
	b.pollUsage(ctx)
	if err := b.limiter.Wait(ctx); err != nil {
		return fmt.Errorf("wait for the budget: %w", err)
	}
	b.count(1)
	return nil
}

// Charge spends units that a request has taken beyond its first. Later requests wait for it.
func (b *Budget) Charge(units float64) {
	if units <= 0 {
		return
	}
	b.count(units)
	for left := int(math.Ceil(units)); left > 0; {
		n := min(left, b.limiter.Burst())
		b.limiter.ReserveN(b.p.Now(), n)
		left -= n
	}
}

func (b *Budget) count(units float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.p.Now()
	if b.began.IsZero() {
		b.began = now
	}
	b.spent[now.Unix()/60] += units
	if b.second[0].at != now.Unix() {
		b.second[1] = b.second[0]
		b.second[0] = spending{at: now.Unix()}
	}
	b.second[0].units += units
	if !b.next.IsZero() && now.After(b.next) {
		b.raiseBound(now)
	}
}

// raiseBound raises the bound some time after a refusal.
func (b *Budget) raiseBound(now time.Time) {
	switch {
	case b.rise == 0:
		b.bound *= boundAfter / lessAtOnce
		b.rise = firstRise
	case b.p.Parts:
		b.bound *= 1 + b.rise
		b.rise *= 2
	}
	if b.next = now.Add(riseEvery); b.bound > b.wanted {
		b.bound, b.next = math.Inf(1), time.Time{}
	}
	b.applyRate()
}

// Refuse lowers the rate after a request was throttled, once a second.
func (b *Budget) Refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.p.Now()
	if now.Sub(b.refused) < time.Second {
		return
	}
	b.refused = now
	was := min(b.rate, max(b.second[0].units, b.second[1].units))
	b.bound = lessAtOnce * was
	b.rise = 0
	b.next = now.Add(recoverAfter)
	b.applyRate()
}

// pollUsage reads a sample once a minute, for the first time before anything is spent. Only
// the caller whose turn it is calls it. A sample that cannot be read changes nothing, and is
// asked for again after five minutes, because the others wait for it.
func (b *Budget) pollUsage(ctx context.Context) {
	if b.p.Usage == nil || b.p.Now().Before(b.poll) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	s, err := b.p.Usage(ctx)
	if err != nil {
		b.poll = b.p.Now().Add(pollFailed)
		return
	}
	b.poll = b.p.Now().Add(pollEvery)
	if s.Capacity > 0 {
		b.adjust(s)
	}
}

// adjust applies a sample that is newer than the last one.
func (b *Budget) adjust(s Sample) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.Minute.After(b.sampled) {
		return
	}
	own := b.spent[s.Minute.Unix()/60] / 60
	free := s.Capacity - b.margin(s, own) - s.Used
	equal := free / float64(b.p.Workers)
	if b.began.IsZero() { // others have used what is used
		b.sampled = s.Minute
		b.wanted = (min(b.wanted, equal) + equal) / 2
		b.applyRate()
		return
	}
	if !b.began.Before(s.Minute.Add(time.Minute)) || !b.p.Parts && s.Minute.Before(b.refused) {
		return
	}
	b.sampled = s.Minute
	b.forgetBefore(s.Minute)
	if !b.p.Parts { // the sample is of a minute after the refusal
		b.bound, b.next = math.Inf(1), time.Time{}
	}
	share := own / max(s.Used, own, 1)
	grow := 1 - equally
	if b.p.Parts && free > 0 { // a full partition leaves to others what is free elsewhere
		grow = 1
	}
	b.wanted = own*(1-giveBack) + equal*equally + free*share*grow
	b.applyRate()
}

func (b *Budget) forgetBefore(minute time.Time) {
	for m := range b.spent {
		if m < minute.Unix()/60-keptMinutes {
			delete(b.spent, m)
		}
	}
}
