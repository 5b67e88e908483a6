package sim

import (
	"iter"
	"os"
	"testing"
	"time"
)

// TestObjects puts an object into the audit bucket at every call of a rotation, in each
// place: nobody has to do anything about it.
func TestObjects(t *testing.T) {
	n := 0
	for _, emergency := range []bool{false, true} {
		for at := range Calls(emergency) {
			for _, where := range Object.variants() {
				s := Schedule{emergency, []Fault{{at, Object, where}}}
				r := fork(s)
				r.play()
				n++
				if r.failed != nil || r.main.state != completed || r.main.halts > 0 {
					t.Fatalf("%s ends in %s after %d halts: %v", s, r.main.state, r.main.halts, r.failed)
				}
			}
		}
	}
	t.Logf("%d schedules", n)
}

// restores are all schedules in which the control table is restored at one of the calls, to
// each moment before it.
func restores(calls func(emergency bool) int) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		for _, emergency := range []bool{false, true} {
			for at := range calls(emergency) {
				for back := 1; back <= 40; back++ {
					if !yield(Schedule{emergency, []Fault{{at, SetBack, back}}}) {
						return
					}
				}
			}
		}
	}
}

// TestRestores restores the control table at calls of a rotation, normal or an emergency,
// to earlier moments of it: a normal rotation is refused, doctor names what happened and
// repairs it, an emergency runs to its end, every row opens, and verification tells of it.
func TestRestores(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds")
	}
	w := adapters(t)
	n := 16
	if os.Getenv("MATTER_SIM_BUDGET") != "" {
		n = 1
	}
	holdIn(t, w, seconds(t, "MATTER_SIM_BUDGET", 0), every(n, restores(w.calls)))
}

// TestRestoresDisturbed: the same beside writers that sleep over the restore, and while steps
// and repairs die, repeat and are paused.
func TestRestoresDisturbed(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds")
	}
	from := uint64(time.Now().Unix() / 86400 * 1e8)
	for _, w := range []world{adapters(t), requests(t)} {
		holdIn(t, w, seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/6, seeds(from, func(seed uint64) Schedule { return restorer(seed, w.calls) }))
	}
}
