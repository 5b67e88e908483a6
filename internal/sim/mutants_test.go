package sim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the table of planted bugs in docs/testing.md")

// betweenRequests are the bugs that show only between two requests of one call.
var betweenRequests = map[string]bool{
	"revoke looks, then deletes": true, "rewrap looks, then writes": true,
}

// world is where the bug can be found: the memory world runs none of the adapters.
func (m mutant) world() string {
	if betweenRequests[m.name] {
		return "requests"
	}
	if strings.HasPrefix(m.file, "internal/ddb/") || strings.HasPrefix(m.file, "envelope/") {
		return "adapters"
	}
	return "memory"
}

// files applies a mutant's replacements to the sources.
func (m mutant) files(root string) (map[string]string, error) {
	out := map[string]string{}
	file := m.file
	for i := 0; i < len(m.with); i += 2 {
		old, with := m.with[i], m.with[i+1]
		if strings.HasSuffix(old, ".go") && with == "" {
			file = old
			continue
		}
		text, ok := out[file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return nil, err
			}
			text = string(b)
		}
		if n := strings.Count(text, old); n != 1 {
			return nil, fmt.Errorf("%s: %q is in %s %d times, not once: mend the mutant", m.name, old, file, n)
		}
		out[file] = strings.Replace(text, old, with, 1)
	}
	return out, nil
}

// build compiles this package's tests with the bug in them.
func (m mutant) build(ctx context.Context, root, dir string) (string, error) {
	files, err := m.files(root)
	if err != nil {
		return "", err
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for file, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
		overlay["Replace"][filepath.Join(root, file)] = path
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	list, bin := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sim.test")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", list, "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s does not build: %w\n%s", m.name, err, out)
	}
	return bin, nil
}

const rejectWithin = time.Minute

// verdict is what found a bug.
type verdict struct {
	promise, schedule string
	ran               int64
	took              time.Duration
}

func (m mutant) reject(t *testing.T, root string) (v verdict) {
	t.Helper()
	bin, err := m.build(t.Context(), root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), rejectWithin)
	defer cancel()
	start := time.Now()
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^TestProbe$", "-test.v")
	cmd.Env = append(os.Environ(), "MATTER_SIM_PROBE="+m.world())
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
		t.Errorf("%q is not found within %s: %v\n%s", m.name, rejectWithin, err, out[max(0, len(out)-2000):])
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
	if w.name == "memory" {
		schedules = []iter.Seq[Schedule]{Undisturbed(), Seeds(1)}
	} else { // all single faults would take half of the time
		schedules = []iter.Seq[Schedule]{turns(scattered(undisturbed(w.calls)), w.seeds(1)), w.seeds(1e6)}
	}
	start := time.Now()
	stop := func() bool { return time.Since(start) > rejectWithin-5*time.Second }
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
// MATTER_MUTANTS=1 all of them, else two a day, for each takes a build.
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
	for i, m := range mutants {
		if _, err := m.files(root); err != nil {
			t.Error(err)
		}
		if !all && (i+day)%(len(mutants)/2) != 0 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			v := m.reject(t, root)
			t.Logf("%s by %s after %d schedules, %.1f s", v.promise, v.schedule, v.ran, v.took.Seconds())
			fmt.Fprintf(&table, "| %s | `%s` | %s | `%s` | %d schedules |\n", m.name, m.file, v.promise, v.schedule, v.ran)
		})
	}
	if all && !t.Failed() && *update {
		write(t, filepath.Join(root, "docs", "testing.md"), table.String())
	}
	if names := listed(t, filepath.Join(root, "docs", "testing.md")); !*update {
		var want []string
		for _, m := range mutants {
			want = append(want, m.name)
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("the table of planted bugs in docs/testing.md is out of date: make mutants (-bugs +table):\n%s", diff)
		}
	}
}

const (
	tableBegin = "<!-- planted bugs: make mutants -->\n"
	tableEnd   = "<!-- end of planted bugs -->"
)

// parts are a document before, in and after the table.
func parts(t *testing.T, path string) (before, table, after string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	return before, table, after
}

func write(t *testing.T, path, table string) {
	t.Helper()
	before, _, after := parts(t, path)
	if err := os.WriteFile(path, []byte(before+tableBegin+table+tableEnd+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

// listed are the names of the bugs in the table.
func listed(t *testing.T, path string) (names []string) {
	t.Helper()
	_, table, _ := parts(t, path)
	for l := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		if f := strings.Split(l, " | "); strings.HasPrefix(l, "| ") && len(f) > 1 && !strings.HasPrefix(l, "| planted bug") {
			names = append(names, strings.TrimPrefix(f[0], "| "))
		}
	}
	return names
}
