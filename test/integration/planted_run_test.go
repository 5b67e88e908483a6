package integration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/plant"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

var update = flag.Bool("update", false, "rewrite the table of bugs planted in real processes in docs/testing.md")

// reject runs a rotation with the bug in one of its functions. The model must not
// explain what that does.
func (p planted) reject(t *testing.T, root string) trace.Verdict {
	t.Helper()
	start := time.Now()
	w := alone(t, localaws.Options{Programs: map[string]string{p.function: p.build(t, root)}})
	end := w.record(t)
	ledger := w.readRows(t)
	if p.during != nil {
		p.during(t, w)
	}
	input := "{}"
	if p.input != "" {
		input = p.input
	}
	w.settle(t, w.start(t, "planted", input))
	events := end()
	if p.rows != "" {
		got := w.brokenRows(t, ledger, "planted")
		if !slices.ContainsFunc(got, func(text string) bool { return strings.HasPrefix(text, p.rows+": ") }) {
			t.Errorf("%s: the check of the rows says %q, want %s", p.Name, got, p.rows)
		}
	}
	v := tracetest.Check(t, events)[0]
	got := strings.TrimSpace(v.Event.Effect + " " + v.Event.Event)
	if v.Accepted || got != p.at {
		t.Errorf("%s: %s\n%+v\nwant it rejected at %s; the run is in %s", p.Name, v, v.Event, p.at, tracetest.Keep(t, events))
	}
	if took := time.Since(start); took > rejectWithin {
		t.Logf("it took %s", took)
	}
	t.Logf("%s, %.0f s, %d events", v, time.Since(start).Seconds(), len(events))
	return v
}

// TestPlantedBugs plants each bug in a function that ships, runs a rotation with it
// on the local AWS, and requires that the model rejects what was recorded, at the
// event that is wrong. With MATTER_MUTANTS=1 all of them, else one a day.
func TestPlantedBugs(t *testing.T) {
	all := os.Getenv("MATTER_MUTANTS") == "1"
	if testing.Short() {
		t.Skip("it builds")
	}
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| planted bug | in | of function | rejected at |\n|---|---|---|---|\n")
	day := int(time.Now().Unix() / 86400)
	for i, p := range plantedBugs {
		if _, err := p.Files(root); err != nil {
			t.Error(err)
		}
		if !all && i != day%len(plantedBugs) {
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			v := p.reject(t, root)
			at := strings.TrimPrefix(strings.TrimSpace(v.Event.Effect+" "+v.Event.Event), "Store.Apply ")
			fmt.Fprintf(&table, "| %s | `%s` | %s | `%s` |\n", p.Name, p.File, p.function, at)
		})
	}
	doc := plant.Table{
		Path: filepath.Join(root, "docs", "testing.md"), Begin: "<!-- planted in real processes: make mutants -->", End: "<!-- end of planted in real processes -->",
	}
	var names []string
	for _, p := range plantedBugs {
		names = append(names, p.Name)
	}
	rows := ""
	if *update && all && !t.Failed() {
		rows = table.String()
	}
	if err := doc.Keep(names, rows); err != nil {
		t.Error(err)
	}
}
