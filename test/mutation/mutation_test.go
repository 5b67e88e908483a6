package mutation

import (
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/plant"
)

var update = flag.Bool("update", false, "write the results into the table of docs/testing.md")

const (
	list      = "equivalents.json"
	wantScore = 95 // percent
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMutation measures this repository's packages: make mutation.
func TestMutation(t *testing.T) {
	if os.Getenv("MATTER_MUTATION") != "1" {
		t.Skip("it takes long: make mutation")
	}
	o := options(t)
	files, again := os.Getenv("MATTER_MUTATION_FILES"), os.Getenv("MATTER_MUTATION_AGAIN") == "1"
	switch {
	case again:
		o.Only = lastSurvivors(t, o.Root, o.Packages)
	case files != "":
		o.Only = inFiles(strings.Split(files, ","))
	}
	t.Logf("budget %s, seed %d", o.Budget, o.Seed)
	results, err := Measure(t.Context(), o)
	if err != nil {
		t.Error(err)
	}
	for _, r := range results {
		if err := writeSurvivors(o.Root, r); err != nil {
			t.Error(err)
		}
		for _, s := range r.Survivors {
			t.Log(s)
		}
		switch {
		case r.Run() == 0:
			t.Errorf("%s: no mutant was run, MATTER_MUTATION_BUDGET=%s is too little", r.Package, o.Budget)
		case again && len(r.Survivors) > 0 || r.Score() < wantScore:
			t.Errorf("%s: %d survivors, score %.1f %%, want %d %%: they are listed in %s",
				r.Package, len(r.Survivors), r.Score(), wantScore, survivorsFile(o.Root, r.Package))
		}
	}
	if *update && !again && files == "" {
		table := plant.Table{
			Path: filepath.Join(o.Root, "docs", "testing.md"), Begin: "<!-- mutation: make mutation -->", End: "<!-- end of mutation -->",
		}
		if err := updateTable(table, Packages(), results); err != nil {
			t.Error(err)
		}
	}
}

// options are those of the environment.
func options(t *testing.T) Options {
	t.Helper()
	equivalents, err := ReadEquivalents(list)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Root: root(t), Packages: Packages(), Equivalents: equivalents, Budget: 10 * time.Minute,
		Workers: runtime.GOMAXPROCS(0), Seed: uint64(time.Now().Unix() / 86400), Log: t.Logf,
	}
	if v := os.Getenv("MATTER_MUTATION_PACKAGES"); v != "" {
		o.Packages = strings.Split(v, ",")
	}
	for name, d := range map[string]*time.Duration{"MATTER_MUTATION_BUDGET": &o.Budget, "MATTER_MUTATION_SLOWEST": &o.Slowest} {
		if v := os.Getenv(name); v != "" {
			if *d, err = time.ParseDuration(v); err != nil {
				t.Fatal(err)
			}
		}
	}
	if v := os.Getenv("MATTER_MUTATION_WORKERS"); v != "" {
		if o.Workers, err = strconv.Atoi(v); err != nil || o.Workers < 1 {
			t.Fatalf("MATTER_MUTATION_WORKERS=%s: want 1 or more", v)
		}
	}
	if v := os.Getenv("MATTER_MUTATION_SEED"); v != "" {
		if o.Seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// inFiles selects the mutants of the files whose names contain one of some texts.
func inFiles(parts []string) func(Mutant) bool {
	return func(m Mutant) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(path.Base(m.File), part) })
	}
}

// lastSurvivors selects what survived the last time.
func lastSurvivors(t *testing.T, root string, packages []string) func(Mutant) bool {
	t.Helper()
	survived := map[string]bool{}
	for _, p := range packages {
		text, err := os.ReadFile(survivorsFile(root, p))
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.SplitSeq(string(text), "\n") {
			survived[withoutLine(strings.TrimSuffix(l, notReached))] = true
		}
	}
	return func(m Mutant) bool { return survived[withoutLine(m.String())] }
}

// withoutLine is a listed mutant without its line, which may have moved.
func withoutLine(listed string) string {
	file, rest, _ := strings.Cut(listed, ":")
	_, rest, _ = strings.Cut(rest, " ")
	return file + " " + rest
}

// TestEquivalentsMatch holds the list of equivalents to the sources.
func TestEquivalentsMatch(t *testing.T) {
	equivalents, err := ReadEquivalents(list)
	if err != nil {
		t.Fatal(err)
	}
	packages := Packages()
	for _, e := range equivalents {
		if !slices.Contains(packages, filepath.ToSlash(filepath.Dir(e.File))) {
			t.Errorf("%s is in no package that is measured", e.File)
		}
	}
	for _, dir := range packages {
		p, err := load(t.Context(), root(t), dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := matchEquivalents(dir, p.generate(), equivalents); err != nil {
			t.Error(err)
		}
	}
}

const sample = "test/mutation/testdata/sample"

// TestSample tries every mutant of the sample, and knows the fate of each.
func TestSample(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds")
	}
	b, err := buildMutants(t.Context(), root(t), sample, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	workers := []*servers{{}, {}, {}, {}} // most wait for a timeout
	tr, err := baseline(t.Context(), b, workers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	fates, err := tr.tryAll(t.Context(), b.mutants, workers, 1, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	names := map[Fate]string{NotRun: "not run", NotReached: "not reached", Survived: "survived", Killed: "killed", TimedOut: "timed out"}
	var got strings.Builder
	for _, m := range b.mutants {
		fmt.Fprintf(&got, "%-11s %s\n", names[fates[m]], strings.TrimPrefix(m.String(), sample+"/"))
	}
	const golden = "testdata/sample.txt"
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("the fates of %s (-want +got):\n%s", golden, d)
	}
}

// makeModule makes a module of one package.
func makeModule(t *testing.T, files map[string]string) Options {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.org/p\n\ngo 1.26\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")
	return Options{Root: dir, Packages: []string{"."}, Budget: time.Hour, Workers: 1, Log: t.Logf}
}

// measure measures a module of one package.
func measure(t *testing.T, files map[string]string, change func(*Options)) ([]Result, error) {
	t.Helper()
	o := makeModule(t, files)
	if change != nil {
		change(&o)
	}
	return Measure(t.Context(), o)
}

// program has three mutants: a condition that is always true or false, which its
// test kills, and its boundary, which the test does not reach.
func program() map[string]string {
	return map[string]string{
		"p.go": "package p\n\nfunc Above(n, limit int) bool { return n > limit }\n",
		"p_test.go": "package p\n\nimport \"testing\"\n\n" +
			"func TestAbove(t *testing.T) {\n\tif !Above(2, 1) || Above(1, 2) {\n\t\tt.Error()\n\t}\n}\n",
	}
}

// slowProgram has a slow test that reaches the boundary too.
func slowProgram() map[string]string {
	files := program()
	files["slow_test.go"] = "package p\n\nimport (\n\t\"testing\"\n\t\"time\"\n)\n\n" +
		"func TestSlow(t *testing.T) {\n\ttime.Sleep(3 * time.Second)\n\tif Above(1, 1) {\n\t\tt.Error()\n\t}\n}\n"
	return files
}

func boundary(function string, changes ...string) Equivalent {
	return Equivalent{File: "p.go", Function: function, Changes: changes, Reason: "nobody asks"}
}

func TestMeasure(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds")
	}
	const alive = "n > limit → n >= limit"
	for name, c := range map[string]struct {
		files   func() map[string]string // program, unless given
		change  func(*Options)
		want    Result
		wantErr string
	}{
		"a slow test": {
			files: slowProgram,
			want:  Result{Mutants: 3, Killed: 3},
		},
		"everything": {
			want: Result{Mutants: 3, Killed: 2, NotReached: 1},
		},
		"an equivalent": {
			change: func(o *Options) { o.Equivalents = []Equivalent{boundary("Above", alive)} },
			want:   Result{Mutants: 3, Equivalent: 1, Killed: 2},
		},
		"an equivalent that is no mutant": {
			change:  func(o *Options) { o.Equivalents = []Equivalent{boundary("Below", alive)} },
			wantErr: `p.go Below has no mutant "n > limit`,
		},
		"an equivalent that is listed twice": {
			change:  func(o *Options) { o.Equivalents = []Equivalent{boundary("Above", alive), boundary("Above", alive)} },
			wantErr: "listed twice",
		},
		"an equivalent that a test kills": {
			change:  func(o *Options) { o.Equivalents = []Equivalent{boundary("Above", "n > limit → true")} },
			wantErr: "is killed by a test",
		},
		"no time": {
			change: func(o *Options) { o.Budget = 0 },
			want:   Result{Mutants: 3, NotRun: 3},
		},
		"without the slow test": {
			files:  slowProgram,
			change: func(o *Options) { o.Slowest = time.Second },
			want:   Result{Mutants: 3, Killed: 2, NotReached: 1},
		},
		"one mutant": {
			change: func(o *Options) { o.Only = func(m Mutant) bool { return m.Change == alive } },
			want:   Result{Mutants: 3, NotReached: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := c.files
			if files == nil {
				files = program
			}
			results, err := measure(t, files(), c.change)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("err = %v, want %s", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := results[0]
			survivors := len(got.Survivors)
			got.Package, got.Survivors = "", nil
			if d := cmp.Diff(c.want, got); d != "" || survivors != got.NotReached {
				t.Errorf("%d survivors (-want +got):\n%s", survivors, d)
			}
		})
	}
}

// TestMeasureRefuses programs of which it would measure nothing.
func TestMeasureRefuses(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds")
	}
	for name, c := range map[string]struct{ file, text, want string }{
		"its tests fail":         {"q_test.go", "package p\n\nimport \"testing\"\n\nfunc TestOther(t *testing.T) { t.Error(\"as it is\") }\n", "TestOther of example.org/p fails without a mutant"},
		"its tests do not build": {"q_test.go", "package p\n\nvar x = y\n", "do not build with their mutants"},
		"it does not compile":    {"q.go", "package p\n\nvar x = y\n", "undefined: y"},
	} {
		t.Run(name, func(t *testing.T) {
			files := program()
			files[c.file] = c.text
			if _, err := measure(t, files, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %s", err, c.want)
			}
		})
	}
}

// TestRejected: a mutant that does not compile is left out, and the others are not.
func TestRejected(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds")
	}
	files := program()
	files["q.go"] = "package p\n\nimport \"net/http\"\n\nvar Client = http.Client{Timeout: 5}\n" // a type that the file cannot name
	results, err := measure(t, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r := results[0]; r.Rejected != 1 || r.Mutants != 3 || r.Killed != 2 {
		t.Error(r)
	}
}

// TestSlowMachine: tests that are late because everything has become slow do not kill
// a mutant; those that hang do.
func TestSlowMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds")
	}
	files := program()
	files["slow_test.go"] = "package p\n\nimport (\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n)\n\n" +
		"func TestSlow(t *testing.T) {\n\td, _ := time.ParseDuration(os.Getenv(\"SLOW\"))\n\ttime.Sleep(d)\n" +
		"\tif Above(1, 1) && os.Getenv(\"HANG\") != \"\" {\n\t\tselect {}\n\t}\n}\n"
	o := makeModule(t, files)
	b, err := buildMutants(t.Context(), o.Root, ".", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &servers{}
	tr, err := baseline(t.Context(), b, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr.grace = 100 * time.Millisecond
	i := slices.IndexFunc(b.mutants, func(m *Mutant) bool { return m.Change == "n > limit → n >= limit" })
	for hang, want := range map[string]Fate{"": Survived, "1": TimedOut} {
		t.Setenv("HANG", hang)
		t.Setenv("SLOW", (slower*tr.tests[len(tr.tests)-1].took + time.Second).String()) // later than it may be
		if fate, err := tr.try(t.Context(), s, b.mutants[i]); err != nil || fate != want {
			t.Errorf("hang %q: fate %d, %v, want %d", hang, fate, err, want)
		}
	}
}

func TestScore(t *testing.T) {
	r := Result{Package: "p", Mutants: 24, Killed: 19, Survivors: make([]Survivor, 1), NotReached: 1, NotRun: 4}
	if r.Run() != 20 || r.Score() != 95 {
		t.Error(r.Run(), r.Score())
	}
	if want := "| `p` | 24 | 0 | 20 | 19 | 0 | 1 | 95.0 % |"; r.row() != want {
		t.Errorf("row %s, want %s", r.row(), want)
	}
}

func TestUpdateTable(t *testing.T) {
	table := plant.Table{Path: filepath.Join(t.TempDir(), "doc.md"), Begin: "<!-- b -->", End: "<!-- e -->"}
	const before = "# x\n\n<!-- b -->\n" + tableHead + "| `gone` | 1 |\n| `kept` | 2 |\n| `new` | 3 |\n<!-- e -->\n"
	if err := os.WriteFile(table.Path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Result{Package: "new", Mutants: 1, Killed: 1}
	if err := updateTable(table, []string{"new", "kept", "later"}, []Result{r}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(table.Path)
	if err != nil {
		t.Fatal(err)
	}
	want := "# x\n\n<!-- b -->\n" + tableHead + r.row() + "\n| `kept` | 2 |\n<!-- e -->\n"
	if d := cmp.Diff(want, string(text)); d != "" {
		t.Errorf("the document (-want +got):\n%s", d)
	}
}

// TestReadEquivalents: each entry is complete.
func TestReadEquivalents(t *testing.T) {
	const entry = `{"file":"p/p.go","function":"F","changes":["a → b"],"reason":"r"}`
	for text, ok := range map[string]bool{
		"[]": true, "[" + entry + "]": true,
		strings.Replace("["+entry+"]", `"r"`, `""`, 1):         false,
		strings.Replace("["+entry+"]", `["a → b"]`, `[]`, 1):   false,
		strings.Replace("["+entry+"]", `"reason"`, `"why"`, 1): false,
	} {
		file := filepath.Join(t.TempDir(), "e.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadEquivalents(file); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestInFiles(t *testing.T) {
	only := inFiles([]string{"doctor", "calendar.go"})
	for file, want := range map[string]bool{"p/doctor_exam.go": true, "p/calendar.go": true, "p/sweep.go": false, "doctor/sweep.go": false} {
		if only(Mutant{File: file}) != want {
			t.Errorf("%s: want %t", file, want)
		}
	}
}

func TestLastSurvivors(t *testing.T) {
	dir := t.TempDir()
	m := Mutant{File: "p/q/f.go", Line: 7, Function: "T.F", Change: "a: b → c"}
	if err := writeSurvivors(dir, Result{Package: "p/q", Survivors: []Survivor{{Mutant: m}}}); err != nil {
		t.Fatal(err)
	}
	only := lastSurvivors(t, dir, []string{"p/q"})
	moved, other := m, m
	moved.Line, other.Change = 8, "a: b → d"
	if !only(m) || !only(moved) || only(other) {
		t.Error(only(m), only(moved), only(other))
	}
}
