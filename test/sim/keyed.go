package sim

import (
	"iter"
	"math/rand/v2"
	"slices"
)

// Schedules of the world with keyed rows. What goes wrong with embedded rows alone, the other
// worlds try.

// keyedKinds are the kinds of faults there.
var keyedKinds = []Kind{
	CrashBefore, CrashAfter, NotApplied, Lost, Throttle, Deny, Timeout, Slow, Duplicate, Pause, Rival, TakeOver,
	Begin, Finish, Delete, Restore, Look, Open, LagDisable, Store, Lose, PutBack, Convert,
}

// keyedSingles are the undisturbed schedule and all of one fault, in both modes.
func keyedSingles(calls func(emergency bool) int) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for _, emergency := range []bool{false, true} {
			if !yield(Schedule{Emergency: emergency}) {
				return
			}
			for at := range calls(emergency) {
				for _, k := range keyedKinds {
					for _, arg := range k.variants() {
						if !yield(Schedule{emergency, []Fault{{at, k, arg}}}) {
							return
						}
					}
				}
			}
		}
	}
}

// keyedRandom is the schedule of a seed: writers that sleep over what the rotation does, and
// write later, beside steps that are interrupted and records that get lost.
func keyedRandom(seed uint64, undisturbed func(emergency bool) int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x6b6579656420726f)) //nolint:gosec // a schedule must replay
	s := Schedule{Emergency: r.IntN(2) == 0}
	calls := undisturbed(s.Emergency)
	for who := range 2 {
		if r.IntN(3) == 0 {
			continue
		}
		early := r.IntN(calls)
		kind := []Kind{Begin, Store}[r.IntN(2)]
		s.Faults = append(s.Faults, Fault{early, kind, 2*who + r.IntN(2)})
		if r.IntN(2) == 0 {
			s.Faults = append(s.Faults, Fault{early + r.IntN(calls), Finish, who})
		}
	}
	at := r.IntN(calls)
	if r.IntN(2) == 0 {
		s.add(r, at, []Kind{Lose, Convert, PutBack}[r.IntN(3)])
	}
	for range r.IntN(4) {
		at += r.IntN(20)
		s.add(r, at, keyedKinds[r.IntN(len(keyedKinds))])
	}
	if r.IntN(3) == 0 { // another rotation after it, or beside it
		s.Faults = append(s.Faults, Fault{r.IntN(calls), Pause, slices.Max(Pause.variants())})
	}
	return s.sorted()
}
