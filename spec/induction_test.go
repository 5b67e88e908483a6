package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestInduction proves the promises of rotation.tla without bounds (docs/proof.md), and
// sees a step of the proof break for each mechanism that is taken away.
func TestInduction(t *testing.T) {
	t.Parallel()
	running <- struct{}{}
	defer func() { <-running }()
	cmd := exec.CommandContext(t.Context(), pythonWithZ3(t), "induction.py", "-json")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("induction.py: %v\n%s", err, stderr.String())
	}
	var got struct {
		Proved, Failed, Promises []string
		Without                  map[string]map[string][]string
		Seconds                  float64
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, step := range got.Failed {
		t.Errorf("not proved: %s", step)
	}
	actions, _ := inductionActions(t)
	for name := range actions {
		if !slices.Contains(got.Proved, name) || !slices.Contains(got.Proved, name+" can happen") {
			t.Errorf("the proof has no step for %s", name)
		}
	}
	for _, promised := range []string{"NoKeyOrphans", "RetireAfterSwitch", "PointerUsable", "ExposedDeksGone"} {
		if !slices.Contains(got.Proved, "Inv "+promised) {
			t.Errorf("%s is not proved", promised)
		}
	}
	if len(got.Without) < 40 {
		t.Errorf("only %d mechanisms are taken away", len(got.Without))
	}
	for mechanism, broken := range got.Without {
		if len(broken) == 0 {
			t.Errorf("without %s no step breaks", mechanism)
		}
	}
	t.Logf("%d steps proved, %d mechanisms taken away, %.1f s of CPU time", len(got.Proved), len(got.Without), got.Seconds)
}

// TestInductionIsOfTheModel fails if an action of rotation.tla, a definition that one
// uses, or an action of induction.py has changed since both were last compared. After
// comparing them:
//
//	go test ./spec -run TestInductionIsOfTheModel -update
func TestInductionIsOfTheModel(t *testing.T) {
	defs := tlaDefinitions(Rotation)
	modelled, notHere := inductionActions(t)
	actions := reachable(defs, "Next", changes)
	maps.DeleteFunc(actions, func(name string, _ bool) bool { return !changes(defs[name]) })
	lines := map[string]string{}
	for name := range reachable(defs, "Next", nil) {
		if !actions[name] {
			lines[name] = fmt.Sprintf("%s tla=%s", name, digest(defs[name]))
			continue
		}
		py, ok := modelled[name]
		switch {
		case ok && notHere[name]:
			t.Errorf("%s is in induction.py and in its list NOT_HERE", name)
		case ok:
			lines[name] = fmt.Sprintf("%s tla=%s induction=%s", name, digest(defs[name]), digest(py))
		case notHere[name]:
			lines[name] = fmt.Sprintf("%s tla=%s not in the induction", name, digest(defs[name]))
		default:
			t.Errorf("rotation.tla has an action %s that is neither in induction.py nor in its list NOT_HERE", name)
		}
	}
	if len(actions) < 40 {
		t.Fatalf("only %d actions found in Next: is rotation.tla read rightly?", len(actions))
	}
	for _, name := range slices.Sorted(maps.Keys(modelled)) {
		if !actions[name] {
			t.Errorf("induction.py has an action %s that rotation.tla's Next has not", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(notHere)) {
		if !actions[name] {
			t.Errorf("induction.py's list NOT_HERE has %s, which is no action of rotation.tla's Next", name)
		}
	}
	var b strings.Builder
	b.WriteString("# Written by go test ./spec -run TestInductionIsOfTheModel -update, after comparing what changed.\n")
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.WriteString(lines[name] + "\n")
	}
	const file = "induction.digests"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("these have changed (-compared +now); compare rotation.tla with induction.py, then run this test with -update:\n%s", diff)
	}
}

// TestInductionNoticesChanges shows what the digests see: any change of an action or of
// what it uses, but no comment and no white space.
func TestInductionNoticesChanges(t *testing.T) {
	base := tlaDefinitions(Rotation)
	for name, c := range map[string]struct {
		from, to string
		changed  []string
	}{
		"an action":   {"kek[k] = \"none\"\n  /\\ kek' = [kek EXCEPT ![k] = \"pending\"]", "kek' = [kek EXCEPT ![k] = \"pending\"]", []string{"Mint"}},
		"a helper":    {"Registered     == {k \\in KEK : kek[k] \\in {\"active\", \"draining\", \"sealed\"}}", "Registered == {}", []string{"Registered"}},
		"a comment":   {"\\* View.Remint:", "\\* View.Something:", nil},
		"white space": {"/\\ rot[n].att < MaxMint", "/\\  rot[n].att  <  MaxMint", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Count(Rotation, c.from) != 1 {
				t.Fatalf("rotation.tla has %q %d times", c.from, strings.Count(Rotation, c.from))
			}
			after := tlaDefinitions(strings.Replace(Rotation, c.from, c.to, 1))
			var changed []string
			for name := range reachable(base, "Next", nil) {
				if digest(base[name]) != digest(after[name]) {
					changed = append(changed, name)
				}
			}
			if !slices.Equal(changed, c.changed) {
				t.Errorf("changed: %v, want %v", changed, c.changed)
			}
		})
	}
}

// pythonWithZ3 returns the project's Python.
func pythonWithZ3(t *testing.T) string {
	t.Helper()
	python, err := filepath.Abs("../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import z3").CombinedOutput(); err != nil {
		if os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
			t.Skip("the project's Python is not set up: make venv")
		}
		t.Fatal(errors.Join(fmt.Errorf("the project's Python has no z3: make venv: %w", err), errors.New(string(out))))
	}
	return python
}

var (
	tlaComment = regexp.MustCompile(`(?m)\\\*.*$`)
	tlaWord    = regexp.MustCompile(`[A-Za-z_]\w*`)
	tlaText    = regexp.MustCompile(`"[^"]*"`)
	tlaHead    = regexp.MustCompile(`^([A-Za-z]\w*)(\([^)]*\))?\s*==`)
	pyHead     = regexp.MustCompile(`(?m)^@action\ndef (\w+)\(`)
	pyReason   = regexp.MustCompile(`(?m)^    "(\w+)": "[^"]+",$`)
)

// tlaDefinitions returns the text of each definition of a module, by name, without
// comments and white space. A definition begins in the first column.
func tlaDefinitions(module string) map[string]string {
	module = tlaComment.ReplaceAllString(withoutBlockComments(module), "")
	defs := map[string]string{}
	name := ""
	for line := range strings.Lines(module) {
		if m := tlaHead.FindStringSubmatch(line); m != nil {
			name = m[1]
		} else if line[0] != ' ' && strings.TrimSpace(line) != "" {
			name = ""
		}
		if name != "" {
			defs[name] += strings.Join(strings.Fields(line), " ") + " "
		}
	}
	for name, text := range defs {
		defs[name] = strings.Join(strings.Fields(text), " ")
	}
	return defs
}

// withoutBlockComments removes comments of the form (* *), which may be nested.
func withoutBlockComments(s string) string {
	var b strings.Builder
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], "(*"):
			depth++
			i++
		case depth > 0 && strings.HasPrefix(s[i:], "*)"):
			depth--
			i++
		case depth == 0:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// changes says whether a definition is one of a step: it has a primed variable.
func changes(text string) bool {
	return strings.Contains(text, "'") || strings.Contains(text, "UNCHANGED")
}

// reachable returns the definitions that one uses, and those that they use, but not
// those that a definition uses for which leaf is true.
func reachable(defs map[string]string, from string, leaf func(text string) bool) map[string]bool {
	seen := map[string]bool{}
	todo := []string{from}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		text, ok := defs[name]
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		if leaf == nil || !leaf(text) {
			todo = append(todo, tlaWord.FindAllString(tlaText.ReplaceAllString(text, ""), -1)...)
		}
	}
	return seen
}

// inductionActions returns the text of each action of induction.py, and the actions of
// rotation.tla that it says are not in it.
func inductionActions(t *testing.T) (map[string]string, map[string]bool) {
	t.Helper()
	b, err := os.ReadFile("induction.py")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	actions := map[string]string{}
	for _, at := range pyHead.FindAllStringSubmatchIndex(text, -1) {
		body := text[at[0]:]
		if end := strings.Index(body, "\n\n\n"); end >= 0 {
			body = body[:end]
		}
		actions[text[at[2]:at[3]]] = strings.Join(strings.Fields(body), " ")
	}
	_, list, _ := strings.Cut(text, "\nNOT_HERE = {\n")
	list, _, ok := strings.Cut(list, "\n}\n")
	if !ok {
		t.Fatal("induction.py has no list NOT_HERE")
	}
	notHere := map[string]bool{}
	for _, m := range pyReason.FindAllStringSubmatch(list+"\n", -1) {
		notHere[m[1]] = true
	}
	return actions, notHere
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
