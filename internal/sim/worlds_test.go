package sim

import (
	"iter"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a place with schedules of its own: the first runs in memstore, the second
// in the real adapters.
type world struct {
	name    string
	players func() player
	tell    func(Schedule) (string, *Violation)
	calls   func(emergency bool) int // of an undisturbed run
}

func memory() world { return world{"memory", memoryPlayer, Tell, Calls} }

// adapters is the second world. Its runs are bubbles of t.
func adapters(t *testing.T) world {
	t.Helper()
	play := func(s Schedule, _ []Schedule) *Violation { return amidAdapters(t, s, false).v }
	return world{
		name: "adapters", players: func() player { return play },
		tell: func(s Schedule) (string, *Violation) {
			e := amidAdapters(t, s, true)
			return e.story, e.v
		},
		calls: func(emergency bool) int { return amidAdapters(t, Schedule{Emergency: emergency}, false).calls },
	}
}

// chosen is the world that MATTER_SIM_WORLD names.
func chosen(t *testing.T) world {
	t.Helper()
	switch name := os.Getenv("MATTER_SIM_WORLD"); name {
	case "", "memory":
		return memory()
	case "adapters":
		return adapters(t)
	default:
		t.Fatalf("no world %q: memory or adapters", name)
		return world{}
	}
}

// shrink takes out of a schedule what its violation does not need.
func (w world) shrink(s Schedule) Schedule {
	play := w.players()
	return shrinkIn(s, func(s Schedule) *Violation { return play(s, nil) })
}

// every is one out of n schedules.
func every(n int, schedules iter.Seq[Schedule]) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		i := 0
		for s := range schedules {
			if i++; i%n == 0 && !yield(s) {
				return
			}
		}
	}
}

// turns takes a schedule of each in turn, until one has no more.
func turns(all ...iter.Seq[Schedule]) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		var next []func() (Schedule, bool)
		for _, schedules := range all {
			n, stop := iter.Pull(schedules)
			defer stop()
			next = append(next, n)
		}
		for {
			for _, n := range next {
				if s, ok := n(); !ok || !yield(s) {
					return
				}
			}
		}
	}
}

// TestOneFaultAmidAdapters tries every fault at every call of the real adapters and
// the real client; under the race detector, some.
func TestOneFaultAmidAdapters(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	w := adapters(t)
	holdIn(t, w, 0, every(1+4*(raced-1), undisturbed(w.calls)))
}

// TestRandomAmidAdapters tries seeds, other ones every day, and holders of leases
// that drain meets.
func TestRandomAmidAdapters(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds; the race detector has seen single faults")
	}
	from := uint64(time.Now().Unix() / 86400 * 1e8)
	holdIn(t, adapters(t), seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/3, turns(Seeds(from), Holders(from)))
}

// TestAdaptersReplay: the same schedule is the same story among goroutines and timers
// too.
func TestAdaptersReplay(t *testing.T) {
	w := adapters(t)
	n := 0
	for s := range turns(Seeds(1), Holders(1)) {
		one, _ := w.tell(s)
		two, _ := w.tell(s)
		if diff := cmp.Diff(one, two); diff != "" {
			t.Fatalf("%s (-first +again):\n%s", s, diff)
		}
		if n++; n > 400/raced {
			break
		}
	}
}

// TestAdaptersReach: the schedules get to what only this world has.
func TestAdaptersReach(t *testing.T) {
	if raced > 1 {
		t.Skip("where schedules get to is not for the race detector")
	}
	w := adapters(t)
	must := []string{
		"times: insert", "times: update", "writes row new-", "finds no row row-1", "DrainTimeout", "renewed in between", "holds a lease",
	}
	reached := map[string]int{}
	const stories = 1000
	n := 0
	for s := range turns(Seeds(1), Holders(1)) {
		story, v := w.tell(s)
		if v != nil {
			t.Fatal(story)
		}
		for _, m := range must {
			if strings.Contains(story, m) {
				reached[m]++
			}
		}
		if n++; n == stories {
			break
		}
	}
	for _, m := range must {
		if reached[m] < 2 {
			t.Errorf("%q is in %d of %d stories", m, reached[m], stories)
		}
	}
	t.Log(reached)
}
