package sim

import (
	"iter"
	"sync"
	"sync/atomic"
)

// Campaign runs schedules on several workers until stop says so, none is left or
// one of them breaks a promise. It returns how many ran, and the one that broke
// something.
func Campaign(workers int, stop func() bool, schedules iter.Seq[Schedule]) (ran int64, bad *Schedule) {
	var n atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan []Schedule, workers)
	for range workers {
		wg.Go(func() {
			for batch := range work {
				for _, s := range batch {
					_, v := Run(s)
					n.Add(1)
					if v != nil {
						mu.Lock()
						if bad == nil {
							bad = &s
						}
						mu.Unlock()
					}
				}
			}
		})
	}
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return bad != nil
	}
	var batch []Schedule
	for s := range schedules {
		if batch = append(batch, s); len(batch) < 64 {
			continue
		}
		if stop() || failed() {
			batch = nil
			break
		}
		work <- batch
		batch = nil
	}
	work <- batch
	close(work)
	wg.Wait()
	return n.Load(), bad
}

// Undisturbed and every schedule of one fault, in both modes.
func Undisturbed() iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for _, emergency := range []bool{false, true} {
			if !yield(Schedule{Emergency: emergency}) {
				return
			}
			for _, f := range Singles(emergency) {
				if !yield(Schedule{emergency, []Fault{f}}) {
					return
				}
			}
		}
	}
}

// Pairs are all schedules of two faults out of [Cores], in both modes, in an order
// in which any beginning is a sample of the whole.
func Pairs() iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		const step = 1_000_003 // prime, and greater than the number of faults
		for _, emergency := range []bool{false, true} {
			all := Cores(emergency)
			n := len(all) * len(all)
			for i := range n {
				at := i * step % n
				a, b := all[at/len(all)], all[at%len(all)]
				if at/len(all) > at%len(all) {
					continue
				}
				if !yield(Schedule{emergency, []Fault{a, b}}.sorted()) {
					return
				}
			}
		}
	}
}

// Seeds are the random schedules from a seed on.
func Seeds(from uint64) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for seed := from; yield(Random(seed)); seed++ {
		}
	}
}
