package sim

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/plant"
)

var update = flag.Bool("update", false, "rewrite the table of planted bugs in docs/testing.md")

// betweenRequests are the bugs that show only between two requests of one call.
var betweenRequests = map[string]bool{
	"revoke looks, then deletes": true, "rewrap looks, then writes": true,
}

// worldOf is where a bug can be found: the memory world runs none of the adapters, and one world
// alone has keyed rows.
func worldOf(b plant.Bug) string {
	if betweenRequests[b.Name] {
		return "requests"
	}
	if slices.ContainsFunc(keyedBugs, func(k plant.Bug) bool { return k.Name == b.Name }) {
		return "keyed"
	}
	if strings.HasPrefix(b.Name, "doctor") || strings.Contains(b.Name, "set back") || strings.HasPrefix(b.File, "internal/ddb/") || strings.HasPrefix(b.File, "source/") || strings.HasPrefix(b.File, "envelope/") {
		return "adapters"
	}
	return "memory"
}

// build compiles this package's tests with a bug in the sources.
func build(ctx context.Context, b plant.Bug, root, dir string) (string, error) {
	list, err := b.Overlay(root, dir)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "sim.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", list, "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s does not build: %w\n%s", b.Name, err, out)
	}
	return bin, nil
}

// A bug is found within rejectWithin of processor time: a minute of two processors, which
// takes longer beside other tests. rejectWait is for a process that hangs.
const (
	rejectWithin = 2 * time.Minute
	rejectWait   = 15 * time.Minute
)

// processorTime is what this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// verdict is what found a bug.
type verdict struct {
	promise, schedule string
	ran               int64
	took              time.Duration
}

func reject(t *testing.T, b plant.Bug, root string) (v verdict) {
	t.Helper()
	bin, err := build(t.Context(), b, root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), rejectWait)
	defer cancel()
	start := time.Now()
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^TestProbe$", "-test.v")
	cmd.Env = append(os.Environ(), "MATTER_SIM_PROBE="+worldOf(b))
	out, err := cmd.CombinedOutput()
	v.took = time.Since(start)
	for l := range strings.SplitSeq(string(out), "\n") {
		if rest, ok := strings.CutPrefix(l, "REJECTED|"); ok {
			f := strings.Split(rest, "|")
			v.promise, v.schedule = f[0], f[1]
			if _, err := fmt.Sscan(f[2], &v.ran); err != nil {
				t.Fatal(err)
			}
		}
	}
	if v.promise == "" {
		t.Errorf("%q is not found within %s of processor time: %v\n%s", b.Name, rejectWithin, err, out[max(0, len(out)-2000):])
	}
	return v
}

// TestProbe is run in a mutated build: it says which schedule rejects it.
func TestProbe(t *testing.T) {
	var w world
	var schedules []iter.Seq[Schedule]
	switch os.Getenv("MATTER_SIM_PROBE") {
	case "":
		t.Skip("it is for mutated builds")
	case "adapters":
		w = adapters(t)
	case "requests":
		w = requests(t)
	case "keyed":
		w = keyed(t)
	default:
		w = memory()
	}
	play := w.players()
	say := func(s Schedule, ran int64) {
		s = w.shrink(s)
		if v := play(s, nil); v != nil {
			fmt.Printf("REJECTED|%s|%s|%d\n", v.Promise, s, ran) // for TestPlantedBugs to read
		}
	}
	for i, e := range []bool{false, true} { // nothing else works if these do not
		if play(Schedule{Emergency: e}, nil) != nil {
			say(Schedule{Emergency: e}, int64(i)+1)
			return
		}
	}
	switch w.name {
	case "memory":
		schedules = []iter.Seq[Schedule]{Undisturbed(), Seeds(1)}
	case "keyed":
		schedules = []iter.Seq[Schedule]{turns(scattered(keyedSingles(w.calls)), w.seeds(1)), w.seeds(1e6)}
	default: // all single faults would take half of the time
		schedules = []iter.Seq[Schedule]{turns(scattered(undisturbed(w.calls)), scattered(restores(w.calls)), w.seeds(1)), w.seeds(1e6)}
	}
	stop := func() bool { return processorTime(t) > rejectWithin }
	var ran int64
	for _, seq := range schedules {
		n, bad := campaign(runtime.GOMAXPROCS(0), stop, seq, w.players)
		if ran += n; bad != nil {
			say(*bad, ran)
			return
		}
	}
	t.Errorf("%d schedules found nothing", ran)
}

// scattered is the same schedules in an order in which any beginning is a sample.
func scattered(schedules iter.Seq[Schedule]) iter.Seq[Schedule] {
	return func(yield func(Schedule) bool) {
		const step = 1_000_003 // prime, and greater than the number of schedules
		all := slices.Collect(schedules)
		for i := range all {
			if !yield(all[i*step%len(all)]) {
				return
			}
		}
	}
}

// TestPlantedBugs plants each bug and requires that a schedule finds it. With
// MATTER_MUTANTS=1 all of them, else one a day, for each takes a build.
func TestPlantedBugs(t *testing.T) {
	all := os.Getenv("MATTER_MUTANTS") == "1"
	if testing.Short() || os.Getenv("MATTER_SIM_PROBE") != "" {
		t.Skip("it builds")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| planted bug | in | promise broken | by this schedule, shrunk | after |\n|---|---|---|---|---|\n")
	day := int(time.Now().Unix() / 86400)
	for i, b := range mutants {
		if _, err := b.Files(root); err != nil {
			t.Error(err)
		}
		if !all && (i+day)%len(mutants) != 0 {
			continue
		}
		t.Run(b.Name, func(t *testing.T) {
			v := reject(t, b, root)
			t.Logf("%s by %s after %d schedules, %.1f s", v.promise, v.schedule, v.ran, v.took.Seconds())
			fmt.Fprintf(&table, "| %s | `%s` | %s | `%s` | %d schedules |\n", b.Name, b.File, v.promise, v.schedule, v.ran)
		})
	}
	doc := plant.Table{
		Path: filepath.Join(root, "docs", "testing.md"), Begin: "<!-- planted bugs: make mutants -->", End: "<!-- end of planted bugs -->",
	}
	var names []string
	for _, b := range mutants {
		names = append(names, b.Name)
	}
	rows := ""
	if *update && all && !t.Failed() {
		rows = table.String()
	}
	if err := doc.Keep(names, rows); err != nil {
		t.Error(err)
	}
}
