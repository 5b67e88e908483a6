package sim

import (
	"iter"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a place to run schedules in: memstore, or the real adapters, with faults at
// their calls or at their requests to DynamoDB.
type world struct {
	name    string
	players func() player
	tell    func(Schedule) (string, *Violation)
	calls   func(emergency bool) int // of an undisturbed run
}

func memory() world { return world{"memory", memoryPlayer, Tell, Calls} }

// adapters is the second world, whose runs are bubbles of t. Its calls are those of
// memory, but for a few, so it takes the same schedules.
func adapters(t *testing.T) world {
	t.Helper()
	return bubbles(t, "adapters", amidAdapters)
}

// requests is the second world with faults at each request.
func requests(t *testing.T) world {
	t.Helper()
	return bubbles(t, "requests", amidRequests)
}

func bubbles(t *testing.T, name string, run func(t *testing.T, s Schedule, tell bool) ended) world {
	t.Helper()
	var calls [2]func() int
	for i := range calls {
		calls[i] = sync.OnceValue(func() int { return run(t, Schedule{Emergency: i == 1}, false).calls })
	}
	play := func(s Schedule, _ []Schedule) *Violation { return run(t, s, false).v }
	return world{
		name: name, players: func() player { return play },
		tell: func(s Schedule) (string, *Violation) {
			e := run(t, s, true)
			return e.story, e.v
		},
		calls: func(emergency bool) int {
			if emergency {
				return calls[1]()
			}
			return calls[0]()
		},
	}
}

// keyed is the second world with keyed rows and faults at each request.
func keyed(t *testing.T) world {
	t.Helper()
	return bubbles(t, "keyed", amidKeyed)
}

// random is the schedule of a seed.
func (w world) random(seed uint64) Schedule {
	switch w.name {
	case "requests":
		return random(seed, w.calls)
	case "keyed":
		return keyedRandom(seed, w.calls)
	default:
		return Random(seed)
	}
}

// seeds are random schedules, holders of leases that drain meets, adoptions, and restores
// of the control table.
func (w world) seeds(from uint64) iter.Seq[Schedule] {
	if w.name == "keyed" {
		return seeds(from, w.random)
	}
	of := func(draw func(uint64, func(bool) int) Schedule) iter.Seq[Schedule] {
		return seeds(from, func(seed uint64) Schedule { return draw(seed, w.calls) })
	}
	return turns(seeds(from, w.random), of(holder), of(adopter), of(restorer))
}

// chosen is the world that MATTER_SIM_WORLD names.
func chosen(t *testing.T) world {
	t.Helper()
	switch name := os.Getenv("MATTER_SIM_WORLD"); name {
	case "", "memory":
		return memory()
	case "adapters":
		return adapters(t)
	case "requests":
		return requests(t)
	case "keyed":
		return keyed(t)
	default:
		t.Fatalf("no world %q: memory, adapters, requests or keyed", name)
		return world{}
	}
}

// shrink takes out of a schedule what its violation does not need.
func (w world) shrink(s Schedule) Schedule {
	play := w.players()
	return shrinkIn(s, func(s Schedule) *Violation { return play(s, nil) })
}

// every is one out of n schedules, other ones every day.
func every(n int, schedules iter.Seq[Schedule]) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		i := int(time.Now().Unix() / 86400 % int64(n))
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

// TestOneFaultAmidAdapters tries one fault in twelve at calls of the real adapters and
// the real client, other ones every day, all with MATTER_SIM_BUDGET; under the race
// detector, some.
func TestOneFaultAmidAdapters(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	w := adapters(t)
	holdIn(t, w, 0, every(oneIn(12+(raced-1)*16/5), undisturbed(w.calls)))
}

// TestRandomAmid tries seeds, other ones every day, and holders of leases
// that drain meets.
func TestRandomAmid(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds; the race detector has seen single faults")
	}
	from := uint64(time.Now().Unix() / 86400 * 1e8)
	for _, w := range []world{adapters(t), requests(t)} {
		holdIn(t, w, seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/6, w.seeds(from))
	}
}

// oneIn is n, or 1 if there is time for all.
func oneIn(n int) int {
	if os.Getenv("MATTER_SIM_BUDGET") != "" {
		return 1
	}
	return n
}

// TestOneFaultAmidRequests tries one fault in eight at requests, other ones every day, all
// with MATTER_SIM_BUDGET.
func TestOneFaultAmidRequests(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds; the race detector has seen other single faults")
	}
	w := requests(t)
	t.Logf("%d requests and calls, %d in an emergency", w.calls(false), w.calls(true))
	holdIn(t, w, 0, every(oneIn(8), undisturbed(w.calls)))
}

// TestOneFaultKeyed tries one fault in a hundred at requests of the world with keyed rows,
// other ones every day, all with MATTER_SIM_BUDGET.
func TestOneFaultKeyed(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	w := keyed(t)
	t.Logf("%d requests and calls, %d in an emergency", w.calls(false), w.calls(true))
	holdIn(t, w, 0, every(oneIn(100*raced), keyedSingles(w.calls)))
}

// TestRandomKeyed tries seeds there, other ones every day.
func TestRandomKeyed(t *testing.T) {
	if testing.Short() || raced > 1 {
		t.Skip("it takes seconds; the race detector has seen single faults")
	}
	w := keyed(t)
	from := uint64(time.Now().Unix() / 86400 * 1e8)
	holdIn(t, w, seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/6, w.seeds(from))
}

// TestAdaptersReplay: the same schedule is the same story among goroutines and timers
// too.
func TestAdaptersReplay(t *testing.T) {
	for _, w := range []world{adapters(t), requests(t)} {
		n := 0
		for s := range w.seeds(1) {
			one, _ := w.tell(s)
			two, _ := w.tell(s)
			if diff := cmp.Diff(one, two); diff != "" {
				t.Fatalf("%s: %s (-first +again):\n%s", w.name, s, diff)
			}
			if n++; n > 200/raced {
				break
			}
		}
	}
}

// TestKeyedReplay: the same schedule is the same story with keyed rows too, and the schedules
// get to what only that world has.
func TestKeyedReplay(t *testing.T) {
	if raced > 1 {
		t.Skip("where schedules get to is not for the race detector")
	}
	w := keyed(t)
	must := []string{
		"is deleted", "put records back", "convert rows", "is under a data key of epoch", "times: insert", "context deadline exceeded", "writes row row-1", "operator: ",
	}
	reached := map[string]int{}
	n := 0
	for s := range w.seeds(1) {
		one, v := w.tell(s)
		if v != nil {
			t.Fatal(one)
		}
		if two, _ := w.tell(s); one != two {
			t.Fatalf("%s (-first +again):\n%s", s, cmp.Diff(one, two))
		}
		for _, m := range must {
			if strings.Contains(one, m) {
				reached[m]++
			}
		}
		if n++; n == 60 {
			break
		}
	}
	for _, m := range must {
		if reached[m] == 0 {
			t.Errorf("%q is in none of %d stories", m, n)
		}
	}
	t.Log(reached)
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
	const stories = 2000
	n := 0
	for s := range w.seeds(1) {
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
