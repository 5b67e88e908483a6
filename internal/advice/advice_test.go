package advice_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// listActions reads the actions from their source, so that none is left out here.
func listActions(t *testing.T) (out []journal.Action) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../rotation/journal/next.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && len(spec.Values) == 1 && fmt.Sprint(spec.Type) == "Action" {
			s, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, journal.Action(s))
		}
		return true
	})
	if len(out) < 50 {
		t.Fatalf("only %d actions were found", len(out))
	}
	return out
}

// TestEveryActionHasACommand: each action has words at the edges, no two have one name,
// and every fact that the words ask for is a fact of Next.
func TestEveryActionHasACommand(t *testing.T) {
	seen := map[journal.Action]bool{}
	facts := journal.Next{Rotation: "R1", Plan: "P1", Label: "L1", KEK: "K1", Name: "N1", Execution: "E1"}
	for _, do := range listActions(t) {
		next := facts
		next.Do = do
		text := advice.Command(next)
		if text == "" || seen[do] {
			t.Errorf("%q: %q, seen before: %t", do, text, seen[do])
		}
		for _, fact := range []string{"{rotation}", "{plan}", "{label}", "{kek}", "{name}", "{execution}", `{"label"}`, `{"rotation"}`} {
			if strings.Contains(text, fact) {
				t.Errorf("%q: %q", do, text)
			}
		}
		seen[do] = true
	}
}

// TestExplain: what to do about an error stands behind its text, that of its cause first.
func TestExplain(t *testing.T) {
	cause := &journal.Error{Kind: journal.Transient, Msg: "a", Next: journal.Next{Say: "wait\nlong"}}
	outer := &journal.Error{Kind: journal.Refused, Msg: "b", Err: fmt.Errorf("c: %w", cause), Next: journal.Next{Do: journal.AnnounceWindow, Label: `q"`}}
	for want, err := range map[string]error{
		"Transient: a (next: wait; long)": cause,
		`Refused: b: c: Transient: a (next: wait; long) (next: matter ops announce --label "q\"", then rotate in that window)`: outer,
		"x\nTransient: a (next: wait; long)": errors.Join(errors.New("x"), cause),
		"x":                                  errors.New("x"),
	} {
		if got := advice.Explain(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
