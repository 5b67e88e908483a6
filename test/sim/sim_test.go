package sim

import (
	"crypto/rand"
	"iter"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/test/asltest"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(-1) // many small worlds
	debug.SetMemoryLimit(128 << 20)
	rand.Reader = drawn
	os.Exit(m.Run())
}

// seconds is a time budget from the environment.
func seconds(t *testing.T, name string, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(n) * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hold runs schedules in memory for a while. The first that breaks a promise is shrunk
// and told as a story.
func hold(t *testing.T, budget time.Duration, schedules iter.Seq[Schedule]) int64 {
	t.Helper()
	return holdIn(t, memory(), budget, schedules)
}

func holdIn(t *testing.T, w world, budget time.Duration, schedules iter.Seq[Schedule]) int64 {
	t.Helper()
	start, used := time.Now(), cpu()
	n, bad := campaign(runtime.GOMAXPROCS(0), func() bool { return budget > 0 && time.Since(start) > budget }, schedules, w.players)
	wall, busy := time.Since(start), cpu()-used
	t.Logf("%d schedules in %.1f s: %.0f/s; %.0f a second of CPU", n, wall.Seconds(), float64(n)/wall.Seconds(), float64(n)/busy.Seconds())
	if bad != nil {
		story, v := w.tell(w.shrink(*bad))
		t.Fatalf("%v\nfound by: make sim WORLD=%s SCHEDULE='%s'\n%s", v, w.name, bad, story)
	}
	return n
}

// TestOneFault tries every fault at every call; under the race detector, some.
func TestOneFault(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	hold(t, 0, func(yield func(Schedule) bool) {
		i := 0
		for s := range Undisturbed() {
			if i++; i%raced == 0 && !yield(s) {
				return
			}
		}
	})
}

// TestTwoFaults tries pairs of faults, a sample of them in the time it has; all
// with MATTER_SIM_BUDGET.
func TestTwoFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	hold(t, seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/2, Pairs())
}

// TestRandomSchedules tries seeds, other ones every day.
func TestRandomSchedules(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	from := uint64(time.Now().Unix() / 86400 * 1e8)
	t.Logf("seeds from %d", from)
	hold(t, seconds(t, "MATTER_SIM_SECONDS", 20*time.Second)/2, Seeds(from))
}

// TestDeep tries every pair and then seeds, for MATTER_SIM_BUDGET, in memory or with
// WORLD=adapters or requests; with WORLD=keyed, seeds.
func TestDeep(t *testing.T) {
	if os.Getenv("MATTER_SIM_BUDGET") == "" {
		t.Skip("MATTER_SIM_BUDGET is not set: make sim-deep")
	}
	budget, start := seconds(t, "MATTER_SIM_BUDGET", 0), time.Now()
	w := chosen(t)
	if w.name != "keyed" { // its requests are other calls than those that pairs are of
		holdIn(t, w, budget, Pairs())
	}
	if left := budget - time.Since(start); left > 0 {
		holdIn(t, w, left, w.seeds(uint64(start.UnixNano())))
	}
}

// TestReplay tells one schedule: make sim SEED=…, or SCHEDULE='…', in memory or with
// WORLD=adapters, requests or keyed.
func TestReplay(t *testing.T) {
	w := chosen(t)
	var s Schedule
	switch seed, text := os.Getenv("MATTER_SIM_SEED"), os.Getenv("MATTER_SIM_SCHEDULE"); {
	case text != "":
		var err error
		if s, err = Parse(text); err != nil {
			t.Fatal(err)
		}
	case seed != "":
		n, err := strconv.ParseUint(seed, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s = w.random(n)
	default:
		t.Skip("no seed")
	}
	story, v := w.tell(s)
	t.Log("\n" + story)
	if v != nil {
		story, v = w.tell(w.shrink(s))
		t.Fatalf("%v, shrunk:\n%s", v, story)
	}
}

// TestSchedulesReplay: the same seed is the same story, and a schedule survives
// being written down.
func TestSchedulesReplay(t *testing.T) {
	for seed := range uint64(200) {
		s := Random(seed)
		again, err := Parse(s.String())
		if err != nil {
			t.Fatal(err)
		}
		one, _ := Tell(s)
		two, _ := Tell(again)
		if diff := cmp.Diff(one, two); diff != "" {
			t.Fatalf("seed %d (-first +again):\n%s", seed, diff)
		}
	}
}

// TestRandomSchedulesReach: the seeds get everywhere that matters, often.
func TestRandomSchedulesReach(t *testing.T) {
	must := []string{
		"is refused: insert", "is refused: update", "writes row new-", "writes row row-1", "a backup brings", "halts at", "PreSwitchFailure",
		"Remint", "Abandon", "RotationInProgress", "(duplicate)", "r2", "the process died", "no usable answer", "a permission is missing",
		"is not known here yet", "still enabled", "deadline exceeded", "rate exceeded", "operator calls",
		"which it does not name", "operator: adopt rows (dry run)", "operator: source add late", "another rotation starts",
		"RowsUnaccounted", "RehearsalFailed", "RowsQuarantined", "SourceForgotten", "OrphansFound",
	}
	for k, name := range kindNames {
		if Kind(k) != Operator && Kind(k) < anywhere {
			must = append(must, ": "+name)
		}
	}
	const seeds = 3000 / (raced + 3) * 4
	reached := map[string]int{}
	for seed := range uint64(seeds) {
		story, v := Tell(Random(seed))
		if v != nil {
			t.Fatal(story)
		}
		for _, m := range must {
			if strings.Contains(story, m) {
				reached[m]++
			}
		}
	}
	for _, m := range must {
		if reached[m] < seeds/400+1 {
			t.Errorf("%q is in %d of %d stories", m, reached[m], seeds)
		}
	}
	t.Log(reached)
}

// TestMachineIsTheShippedOne runs schedules through statemachine.asl.json too: it
// calls the same functions in the same order and ends in the same way.
func TestMachineIsTheShippedOne(t *testing.T) {
	text, err := os.ReadFile("../../statemachine.asl.json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := asltest.Parse(asltest.Substitute(text))
	if err != nil {
		t.Fatal(err)
	}
	n, day := 0, int(time.Now().Unix()/86400)
	for _, emergency := range []bool{false, true} {
		for i, f := range Singles(emergency) {
			if (i+day)%(2*raced) != 0 && os.Getenv("MATTER_SIM_BUDGET") == "" { // the others tomorrow
				continue
			}
			switch f.Kind {
			case CrashBefore, CrashAfter, NotApplied, Lost, Throttle, Deny, Conflict, Outage:
				n++
				compare(t, d, Schedule{emergency, []Fault{f}})
			default: // what runs inside of a call needs the machine of this package
			}
		}
	}
	t.Logf("%d schedules", n)
}

func compare(t *testing.T, d *asltest.Definition, s Schedule) {
	t.Helper()
	ours := newRun(s)
	for !ours.main.over() && ours.main.halts == 0 && ours.failed == nil {
		ours.main.step()
	}
	theirs := newRun(s)
	m := theirs.main
	var trail []string
	machine := &asltest.Machine{
		Definition: d, MaxSteps: 500, Wait: func(n int) { theirs.pass(time.Duration(n) * time.Second) },
		Invoke: func(state, function string, payload []byte) ([]byte, *asltest.Failure) {
			switch function {
			case "Notify":
				return []byte(`{}`), notified(state)
			case "Anchor": // it is not simulated, and nothing waits for it
				return nil, &asltest.Failure{Name: "Away"}
			}
			trail = append(trail, state)
			return theirs.json(m, state, function, payload)
		},
	}
	e := machine.Start(mainID, m.in)
	if diff := cmp.Diff(trail, ours.main.trail); diff != "" {
		t.Fatalf("%s: invocations (-shipped +simulated):\n%s", s, diff)
	}
	end := ours.main.state
	if ours.main.halts > 0 {
		end = halted
		if ours.main.state == "Mint" {
			end = "HaltedBeforeSwitch"
		}
	}
	if e.Final != end {
		t.Fatalf("%s: ended in %s, the simulated machine in %s", s, e.Final, end)
	}
}

// notified is what the notify function answers: a halt fails the execution.
func notified(state string) *asltest.Failure {
	if strings.HasPrefix(state, "Halted") {
		return &asltest.Failure{Name: "Halted"}
	}
	return nil
}

func failure(err error) *asltest.Failure {
	if err == errCrashed { //nolint:errorlint // it is passed on as it is
		return &asltest.Failure{Name: "Runtime.ExitError"}
	}
	return &asltest.Failure{Name: string(lambdastep.ErrorKind(err)), Cause: err.Error()}
}
