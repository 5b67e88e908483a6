package trace_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/spec"
)

var update = flag.Bool("update", false, "write the table of actions in spec/README.md")

// untraced are the actions of rotation.tla that no event of a run stands for, and why.
var untraced = map[string]string{
	"Load":         "a read; a later write says which pointer was loaded",
	"RecheckPtr":   "a read",
	"Wrap":         "a row's write says which DEK it made, and KMS says under which KEK",
	"Crash":        "what a process that died would have done is not there",
	"PutMark":      "marks are not replayed: all rows are in one table",
	"AddSource":    "noted, not replayed: all rows are in one table",
	"RemoveSource": "noted, not replayed: all rows are in one table",
	"ReadRow":      "a read",
	"Decrypt":      "a read; KMS says what it unwrapped, not for which row",
	"TakeBackup":   "a read",
	"Halt":         "time, which runs do not have",
	"Resume":       "noted; what a pass had seen is read again",
}

// shows are the actions that a name in a verdict stands for, if it is not the action's
// own.
var shows = map[string][]string{
	"Commit of an insert": {"Commit"}, "Commit of an update": {"Commit"}, "Commit refused": {"Commit"},
	"Remint at started":            {"Remint"},
	"RewrapWrite":                  {"RewrapRead", "RewrapWrite"},
	"RewrapWrite with a fresh DEK": {"RewrapRead", "RewrapWrite"},
	"Revoke":                       {"DrainJudge", "Revoke"},
	"Lose":                         {"Lose", "DisableDoomed"},
	"DoomFailed":                   {"DoomFailed", "DisableDoomed"},
	"ReapDecide":                   {"ReapBegin", "ReapDecide", "DisableDoomed"},
}

// needed are the names that stand for an action in a case of its own.
var needed = []string{
	"Init", "Commit of an insert", "Commit of an update", "Commit refused", "Remint", "Remint at started", "RewrapWrite", "RewrapWrite with a fresh DEK",
	"Lose", "DoomFailed", "ReapDecide", "a record of its own", "a key enabled", "again",
}

// coverage is, by name in a verdict, the runs that show it.
type coverage map[string][]string

func (c coverage) add(run string, actions map[string]int) {
	for name := range actions {
		c[name] = append(c[name], run)
	}
}

var identifier = regexp.MustCompile(`[A-Z]\w+`)

// actions are the actions of rotation.tla that Next is made of, without those of a
// mechanism that is taken away.
func actions(t *testing.T) []string {
	t.Helper()
	_, next, ok := strings.Cut(spec.Rotation, "\nWriting ==")
	if !ok {
		t.Fatal("rotation.tla has no Writing")
	}
	next, _, _ = strings.Cut("\nWriting =="+next, "\nNext ==")
	found := map[string]bool{}
	for _, name := range identifier.FindAllString(next, -1) {
		body := regexp.MustCompile(`(?ms)^` + name + `(?:\([^)]*\))?\s*==(.*?)\n\n`).FindStringSubmatch(spec.Rotation)
		if body != nil && strings.Contains(body[1], "'") && strings.Contains(body[1], "UNCHANGED") && !strings.Contains(body[1], "~On(") {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// check holds what the runs show to what there is, and to the table in spec/README.md.
func (c coverage) check(t *testing.T) {
	t.Helper()
	by := map[string][]string{}
	for name, runs := range c {
		all, renamed := shows[name]
		if !renamed {
			all = []string{name}
		}
		for _, action := range all {
			by[action] = append(by[action], runs...)
		}
	}
	all := actions(t)
	if len(all) < 40 {
		t.Fatalf("rotation.tla has %d actions: %q", len(all), all)
	}
	var b strings.Builder
	b.WriteString("| action | recorded runs that exercise it |\n|---|---|\n")
	for _, action := range all {
		runs := slices.Compact(slices.Sorted(slices.Values(by[action])))
		why, none := untraced[action]
		switch {
		case len(runs) == 0 && !none:
			t.Errorf("no recorded run exercises %s", action)
		case len(runs) > 0 && none:
			t.Errorf("%s is said to leave no trace, and %q show it", action, runs)
		}
		more := ""
		if len(runs) > 3 {
			more = fmt.Sprintf(" and %d more", len(runs)-3)
		}
		cell := strings.Join(runs[:min(3, len(runs))], ", ") + more
		if none {
			cell = "leaves no trace: " + why
		}
		fmt.Fprintf(&b, "| %s | %s |\n", action, cell)
	}
	for action := range untraced {
		if !slices.Contains(all, action) {
			t.Errorf("rotation.tla has no action %s", action)
		}
	}
	for _, name := range needed {
		if len(c[name]) == 0 {
			t.Errorf("no recorded run shows %s", name)
		}
	}
	table(t, b.String())
}

const (
	tableBegin = "<!-- actions: go test ./test/trace -run TestRuns -update -->\n"
	tableEnd   = "<!-- end of actions -->"
)

// table holds spec/README.md to a table, or writes it there.
func table(t *testing.T, want string) {
	t.Helper()
	const file = "../../spec/README.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), tableBegin)
	got, tail, ends := strings.Cut(rest, tableEnd)
	if !ok || !ends {
		t.Fatal("spec/README.md has no table of actions")
	}
	if got == want {
		return
	}
	if !*update {
		t.Errorf("the table of actions in spec/README.md is not this one; go test ./test/trace -run TestRuns -update:\n%s", want)
		return
	}
	if err := os.WriteFile(file, []byte(head+tableBegin+want+tableEnd+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
