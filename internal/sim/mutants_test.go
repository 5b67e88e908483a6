package sim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the table of planted bugs in docs/testing.md")

// mutant is a bug planted in the sources: texts that are replaced, each of which
// must be there exactly once.
type mutant struct {
	name string
	file string
	with []string // old, new, old, new, …; a word that ends in .go changes the file
}

var mutants = []mutant{
	{"skip the seal", "rotation/drain.go", []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards * 0 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "_ = m",
	}},
	{"seal all fence shards but one", "rotation/drain.go", []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards - 1 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards-1",
	}},
	{"unconditional pointer write", "internal/memstore/store.go", []string{
		"if err := s.conditions(c); err != nil {", "if c.Pointer != nil {\n\t\t\tp := c.Pointer.After\n\t\t\ts.pointer = &p\n\t\t}\n\t\tif err := s.conditions(c); err != nil {",
		"case c.Pointer != nil && !s.pointsAt(c.Pointer.Before):", "case c.Pointer != nil && c.Pointer.Before == nil && false:",
	}},
	{"rewrap upserts", "internal/memstore/table.go", []string{
		"if r == nil || r.KEK != old.KEK ||", "if r == nil {\n\t\t\tt.plant(h.id, Record{KEK: with.KEK, Epoch: with.Epoch, Version: 1, WrappedDEK: with.WrappedDEK, Context: old.Context})\n\t\t\treturn true, nil\n\t\t}\n\t\tif r.KEK != old.KEK ||",
	}},
	{"rewrap overwrites a row that has changed", "internal/memstore/table.go", []string{
		"if r == nil || r.KEK != old.KEK || !bytes.Equal(r.WrappedDEK, old.WrappedDEK) ||", "if r == nil ||",
	}},
	{"rewrap leaves the row's epoch and version", "internal/memstore/table.go", []string{
		"r.KEK, r.Epoch, r.WrappedDEK = with.KEK, with.Epoch, bytes.Clone(with.WrappedDEK)", "r.KEK, r.WrappedDEK = with.KEK, bytes.Clone(with.WrappedDEK)",
		"r.Version++", "",
	}},
	{"disable before the registry", "rotation/retire.go", []string{
		"v, err := s.transition(ctx, \"retire\", id, func", "if err := s.Keys.Disable(ctx, r.OldKEK); err != nil {\n\t\treturn RetireOutput{}, unavailable(\"KMS DisableKey\", err)\n\t}\n\tv, err := s.transition(ctx, \"retire\", id, func",
	}},
	{"retire without the second scan", "rotation/retire.go", []string{
		"confirmed, err = s.confirm(ctx, r)", "confirmed.Done = true",
	}},
	{"retire before its turn", "rotation/retire.go", []string{
		"if !r.Phase.Reached(kek.Rewrapped) {", "if false {",
		"kek/view.go", "",
		"r, err := v.step(Rewrapped, KEKRetired)", "from := Rewrapped\n\tif v.Rotation != nil && v.Rotation.Phase == Drained {\n\t\tfrom = Drained\n\t}\n\tr, err := v.step(from, KEKRetired)",
	}},
	{"drain trusts the clock", "rotation/drain.go", []string{
		"if gone, err = s.Drainage.Revoke(ctx, l); err != nil {", "if gone = true; err != nil {",
	}},
	{"mint without the arbiter", "rotation/mint.go", []string{
		"if owner, err = s.Keys.Claim(ctx, r.ID, r.Attempt, made.ID); err != nil {", "if owner = made.ID; err != nil {",
	}},
	{"sweep of keys during a mint", "rotation/mint.go", []string{
		"if r.NewKEK == \"\" && !r.Phase.Final() {", "if false {",
	}},
	{"losers of a mint stay enabled", "rotation/mint.go", []string{
		"if slices.Contains(keep, k) {", "if slices.Contains(keep, k) || true {",
	}},
	{"audit record outside the transaction", "internal/memstore/store.go", []string{
		"func (s *Store) Apply(_ context.Context, c kek.Change, ev audit.Event) error {\n\treturn s.w.answer(", "func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {\n\terr := s.w.answer(",
		"if err := s.append(ev); err != nil { // the one thing that can still fail\n\t\t\treturn s.head.Seq, fmt.Errorf(\"apply %s: %w\", c.Event, err)\n\t\t}", "",
		"return s.head.Seq, nil\n\t}, c, ev)\n}", "return s.head.Seq, nil\n\t}, c, ev)\n\tif err != nil {\n\t\treturn err\n\t}\n\treturn s.Record(ctx, ev)\n}",
	}},
	{"a step returns before its record is in the bucket", "rotation/steps.go", []string{
		"return v, s.publish(ctx)\n\t\t}\n\t\tif err != nil {", "return v, nil\n\t\t}\n\t\tif err != nil {",
	}},
	{"records are marked published before they are put", "rotation/steps.go", []string{
		"for _, e := range entries {\n", "if len(entries) > 0 {\n\t\t_ = s.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq)\n\t}\n\tfor _, e := range entries {\n",
	}},
	{"PreSwitchFailure after the switch", "kek/view.go", []string{
		"case !r.Phase.PreSwitch():", "case r.Phase.Final():",
		"moves, err := v.retireNew(r, \"pre-switch failure\", now)", "moves, err := []KEKMove(nil), error(nil)\n\tif r.Phase.PreSwitch() {\n\t\tmoves, err = v.retireNew(r, \"pre-switch failure\", now)\n\t}",
	}},
	{"an emergency rolls back", "kek/view.go", []string{
		"if r.Mode == Emergency {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency", "if false {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency",
	}},
	{"the fence is skipped on insert", "internal/memstore/table.go", []string{
		"sealed || !opened {", "(sealed || !opened) && false {",
	}},
	{"an update ignores the row's epoch", "internal/memstore/table.go", []string{
		"was.Version != read || was.Epoch > r.Epoch {", "was.Version != read {",
		"r.Version++", "",
	}},
	{"a start ignores the lock", "kek/view.go", []string{
		"if v.Lock != \"\" && v.Lock != r.ID {", "if false {",
		"internal/memstore/store.go", "",
		"if s.lock != id && (c.Lock != kek.LockTake || s.lock != \"\") {", "if id == \"\" {",
	}},
	{"an emergency only rewraps", "rotation/rewrap.go", []string{
		"if r.Mode != kek.Emergency {\n\t\tvar err error", "if true {\n\t\tvar err error",
	}},
	{"drain before the switch", "rotation/drain.go", []string{
		"if r.Phase == kek.Switched {", "if !r.Phase.Reached(kek.Drained) {",
		"case v.Rotation == nil || v.Rotation.Phase != kek.Switched || v.Pointer == nil || v.Pointer.KEKID == r.OldKEK:", "case v.Rotation == nil:",
	}},
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
	cmd.Env = append(os.Environ(), "MATTER_SIM_PROBE=1")
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
	if os.Getenv("MATTER_SIM_PROBE") == "" {
		t.Skip("it is for mutated builds")
	}
	say := func(s Schedule, ran int64) {
		s = Shrink(s)
		if _, v := Run(s); v != nil {
			fmt.Printf("REJECTED|%s|%s|%d\n", v.Promise, s, ran) // for TestPlantedBugs to read
		}
	}
	for i, e := range []bool{false, true} { // nothing else works if these do not
		if _, v := Run(Schedule{Emergency: e}); v != nil {
			say(Schedule{Emergency: e}, int64(i)+1)
			return
		}
	}
	start := time.Now()
	stop := func() bool { return time.Since(start) > rejectWithin-5*time.Second }
	var ran int64
	for _, seq := range []func(func(Schedule) bool){Undisturbed(), Seeds(1)} {
		n, bad := Campaign(runtime.GOMAXPROCS(0), stop, seq)
		if ran += n; bad != nil {
			say(*bad, ran)
			return
		}
	}
	t.Errorf("%d schedules found nothing", ran)
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
