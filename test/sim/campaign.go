package sim

import (
	"iter"
	"sync"
	"sync/atomic"
)

// player runs schedules one after the other. next are those that it is given after s.
type player func(s Schedule, next []Schedule) *Violation

// memoryPlayer runs schedules in memstore, each from where the last ones have led.
func memoryPlayer() player {
	var t trunk
	return func(s Schedule, next []Schedule) *Violation {
		r := t.start(s, next)
		r.play()
		return r.failed
	}
}

// campaign runs schedules on several workers until stop says so, none is left or
// one of them breaks a promise. It returns how many ran, and the one that broke
// something.
func campaign(workers int, stop func() bool, schedules iter.Seq[Schedule], players func() player) (ran int64, bad *Schedule) {
	var n atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan []Schedule, workers)
	for range workers {
		wg.Go(func() {
			play := players()
			for batch := range work {
				for i, s := range batch {
					v := play(s, batch[i+1:])
					if n.Add(1); v != nil {
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
func Undisturbed() iter.Seq[Schedule] { return undisturbed(Calls) }

// undisturbed is [Undisturbed] where the undisturbed rotation makes so many calls.
func undisturbed(calls func(emergency bool) int) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for _, emergency := range []bool{false, true} {
			if !yield(Schedule{Emergency: emergency}) {
				return
			}
			for _, f := range singles(calls(emergency)) {
				if !yield(Schedule{emergency, []Fault{f}}) {
					return
				}
			}
		}
	}
}

// Pairs are all schedules of two faults out of [Cores], in both modes, in an order
// in which any beginning is a sample of the whole: some second faults with one
// first, then some with another.
func Pairs() iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		const step = 1_000_003 // prime, and greater than the number of faults
		const some = 64
		for _, emergency := range []bool{false, true} {
			all := Cores(emergency)
			apart := (len(all) + some - 1) / some
			n := len(all) * apart
			for i := range n {
				at := i * step % n
				for b := at % apart; b < len(all); b += apart {
					if a := at / apart; a <= b && !yield(Schedule{emergency, []Fault{all[a], all[b]}}) {
						return
					}
				}
			}
		}
	}
}

// Seeds are the random schedules from a seed on.
func Seeds(from uint64) iter.Seq[Schedule] { return seeds(from, Random) }

// seeds are the schedules that draw makes of the seeds from one on.
func seeds(from uint64, draw func(seed uint64) Schedule) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for seed := from; yield(draw(seed)); seed++ {
		}
	}
}
