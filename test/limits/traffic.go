package limits

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Traffic is what an application does all the time: calls that come at random moments
// (Poisson), so many a second, each repeated as an AWS SDK repeats it.
type Traffic struct {
	Rate func(since time.Duration) float64 // calls a second, by the time since the start
	Call func() error
	Dice *Dice

	mu     sync.Mutex
	calls  []call
	failed int
}

type call struct {
	began     time.Time
	took      time.Duration
	throttled bool // at least once
}

// The standard retry mode of the AWS SDKs: three attempts, before which it waits a random
// time of up to 2^n seconds, at most 20 (AWS SDKs and tools reference guide, "Retry
// behavior").
const (
	attempts   = 3
	maxBackoff = 20 * time.Second
)

// Run makes calls until ctx is done, and waits for those in flight.
func (t *Traffic) Run(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	start := time.Now()
	for {
		wait := time.Second / 10
		rate := t.Rate(time.Since(start))
		if rate > 0 {
			wait = time.Duration(t.Dice.exponential() / rate * float64(time.Second))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		if rate > 0 {
			calls.Go(t.callOnce)
		}
	}
}

func (t *Traffic) callOnce() {
	c := call{began: time.Now()}
	err := ErrThrottled
	for n := 0; n < attempts && err != nil; n++ {
		if n > 0 {
			c.throttled = true
			time.Sleep(min(maxBackoff, time.Duration(t.Dice.Float64()*float64(time.Second<<(n-1)))))
		}
		err = t.Call()
	}
	c.took = time.Since(c.began)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calls = append(t.calls, c); err != nil {
		t.failed++
	}
}

// Summary is what an application notices.
type Summary struct {
	Calls     int
	P50, P99  time.Duration
	Throttled float64 // share of the calls that were throttled at least once
	Failed    int     // calls that were throttled at every attempt
}

// Summarize returns what the calls noticed that began from a moment to another.
func (t *Traffic) Summarize(from, to time.Time) Summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	var took []time.Duration
	s := Summary{Failed: t.failed}
	for _, c := range t.calls {
		if c.began.Before(from) || !c.began.Before(to) {
			continue
		}
		took = append(took, c.took)
		if c.throttled {
			s.Throttled++
		}
	}
	if s.Calls = len(took); s.Calls == 0 {
		return s
	}
	slices.Sort(took)
	s.P50, s.P99 = took[len(took)/2], took[len(took)*99/100]
	s.Throttled /= float64(len(took))
	return s
}
