package integration

import (
	"fmt"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/plant"
)

// impatient makes a task that concludes a pass leave almost everything to the map: its minute
// is a millisecond, and a page, of which it reads at least one, has one item.
var impatient = plant.Bug{Name: "small pages and no minute", File: "rotation/sweep.go", With: []string{
	"const concludeTime = time.Minute", "const concludeTime = time.Millisecond",
	"source/dynamodb/source.go", "",
	"const pageSize = 500", "const pageSize = 1",
}}

// TestMapsOfEveryPass: what a conclusion does not finish in its minute, the map of each pass
// does, in child executions of which some are killed. Each row is counted once by each pass.
func TestMapsOfEveryPass(t *testing.T) {
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, function := range []string{"verify", "retire"} {
		programs[function] = planted{Bug: impatient, function: function}.build(t, root)
	}
	w := upWith(t, localaws.Options{Programs: programs, Parameters: map[string]string{"Segments": "12"}})
	w.traced(t)
	ledger := w.readRows(t)
	for function, nths := range map[string][]int{"verify": {3, 7, 30}, "retire": {3, 6}, "rewrap": {4, 5}} {
		for _, nth := range nths {
			w.inject(t, map[string]any{"service": "lambda", "operation": "Invoke", "function": function, "mode": "kill-function", "nth": nth, "times": 1})
		}
	}
	arn := w.start(t, "maps", "{}")
	o := w.finish(t, arn)
	if o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	for _, f := range w.faults(t) {
		if f.Fired == 0 {
			t.Errorf("%+v: that call was not made", f)
		}
	}
	children := w.listChildren(t, arn)
	for _, name := range []string{"CensusRows", "Rewrap", "ConfirmRows", "VerifyRows"} {
		if !slices.Contains(o.States, name) || children[name] <= 4 { // as many as a conclusion works on at once
			t.Errorf("%s had %d child executions; the states were %v", name, children[name], o.States)
		}
	}
	want := fmt.Sprint(w.Seeded)
	entries, err := w.Deployment.Table.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]string{}
	for _, e := range entries {
		for _, field := range []string{"confirmed_rows", "verified_rows"} {
			if n, ok := e.Record.Body[field]; ok && e.Record.Rotation == "maps" {
				counted[field] = n
			}
		}
	}
	if counted["confirmed_rows"] != want || counted["verified_rows"] != want {
		t.Errorf("counted %v of %s rows", counted, want)
	}
	if r := w.view(t, "maps").Rotation; r.Phase != kek.Completed {
		t.Errorf("it is %s", r.Phase)
	}
	w.mustHold(t)
	w.rowsHold(t, ledger, "maps")
}

// listChildren counts the child executions of each map of an execution, by the name of its
// state.
func (w *world) listChildren(t *testing.T, arn string) map[string]int {
	t.Helper()
	out := map[string]int{}
	state := ""
	pages := sfn.NewGetExecutionHistoryPaginator(w.sfn, &sfn.GetExecutionHistoryInput{ExecutionArn: &arn, MaxResults: 1000})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if d := e.StateEnteredEventDetails; d != nil {
				state = aws.ToString(d.Name)
			}
			if d := e.MapRunStartedEventDetails; d != nil {
				out[state] += w.countChildren(t, aws.ToString(d.MapRunArn))
			}
		}
	}
	return out
}

func (w *world) countChildren(t *testing.T, mapRun string) (n int) {
	t.Helper()
	pages := sfn.NewListExecutionsPaginator(w.sfn, &sfn.ListExecutionsInput{MapRunArn: &mapRun})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n += len(page.Executions)
	}
	return n
}
