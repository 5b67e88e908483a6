package spec

import (
	_ "embed"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/tlc"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
)

//go:embed induction.tla
var inductionModule string

// inTLA are the clauses of induction.py that have another name in induction.tla,
// because rotation.tla has a name of its own there. Nothing is about the encoding, and
// Leases is about steps: NoRenewedLeaseLost, a property of every variant.
var inTLA = map[string]string{"Backups": "Backup", "Keys": "Keys_", "Off": "Off_", "Leases": "", "Nothing": ""}

// TestInductionInvariantHolds checks with TLC that the invariant of the proof holds in
// every state of rotation.tla within small bounds: what is proved is about this model.
func TestInductionInvariantHolds(t *testing.T) {
	_, err := tlc.Jar()
	tlctest.Must(t, err)
	clauses := inductionClauses(t)
	small := set("MaxWrite", "1", "Shard", "{s1}")
	for name, constants := range map[string]map[string]string{
		"two rotations":   with(small, set("MaxRot", "2", "Writer", "{}", "Modes", both)),
		"a writer":        small,
		"deletes":         with(small, set("Restore", `"halted"`, "Deletes", "TRUE")),
		"historic, lies":  with(small, historic, set("Lies", "TRUE")),
		"second table":    tables,
		"unlabelled rows": with(foreign, historic, set("MaxWrite", "1")),
		"takeover":        with(takeover, set("MaxWrite", "0")),
		"keys":            with(silent, set("Dup", "1", "Shard", "{s1}")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running <- struct{}{}
			defer func() { <-running }()
			r, err := tlc.Check(t.Context(), tlc.Run{
				Module: "induction", Files: map[string]string{"rotation": Rotation, "induction": inductionModule},
				Config: inductionConfig(constants, clauses),
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Verdict != tlc.Holds {
				t.Errorf("%s is violated: %s", r.Verdict, strings.Join(r.Actions, " > "))
			}
			if r.Distinct < 100 {
				t.Errorf("only %d states", r.Distinct)
			}
			t.Logf("%d states, %.1f s", r.Distinct, r.Elapsed.Seconds())
		})
	}
}

// TestInductionInvariantCanFail sees TLC find the clause that a missing mechanism
// breaks: the clauses of induction.tla are no tautologies there.
func TestInductionInvariantCanFail(t *testing.T) {
	_, err := tlc.Jar()
	tlctest.Must(t, err)
	running <- struct{}{}
	defer func() { <-running }()
	text := strings.Replace(Rotation, "row[r].ep <= e ELSE", "TRUE ELSE", 1)
	if text == Rotation {
		t.Fatal("rotation.tla has no condition of an update on the epoch")
	}
	r, err := tlc.Check(t.Context(), tlc.Run{
		Module: "induction", Files: map[string]string{"rotation": text, "induction": inductionModule},
		Config: inductionConfig(set("Shard", "{s1}"), []string{"Clean"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != "Clean" {
		t.Errorf("verdict %s, want Clean", r.Verdict)
	}
}

// inductionClauses returns the clauses of induction.py as induction.tla names them.
func inductionClauses(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("induction.py")
	if err != nil {
		t.Fatal(err)
	}
	defs := tlaDefinitions(inductionModule)
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^@clause\ndef (\w+)\(`).FindAllStringSubmatch(string(b), -1) {
		name := m[1]
		if other, ok := inTLA[name]; ok {
			name = other
		}
		if name == "" {
			continue
		}
		if _, ok := defs[name]; !ok {
			t.Errorf("induction.tla has no clause %s", name)
		}
		out = append(out, name)
	}
	if len(out) < 20 {
		t.Fatalf("only %d clauses found in induction.py", len(out))
	}
	return out
}

// inductionConfig is the configuration of a variant of rotation with these invariants.
func inductionConfig(constants map[string]string, invariants []string) string {
	return variant{set: constants, instead: invariants, steps: []string{"EpochMonotone"}}.config()
}
