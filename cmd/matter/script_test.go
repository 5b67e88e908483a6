package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/sample"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

// TestMain lets the scripts call the command by its name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"matter": main})
}

var update = flag.Bool("update", false, "write the outputs that scripts compare with")

// TestUsage runs the scripts that need no deployment.
func TestUsage(t *testing.T) {
	scripts(t, "usage", &world{})
}

// TestExamples: every command of ours shows how it is used.
func TestExamples(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || !strings.HasPrefix(cmd.Example, "  matter ") {
			t.Errorf("%s: short %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "completion" { // cobra's own
				walk(sub)
			}
		}
	}
	walk(newRootCommand())
}

// TestOperator runs the scripts in order of their names on one stack of the local
// AWS.
func TestOperator(t *testing.T) {
	t.Parallel() // it waits more than it works
	scripts(t, "ops", deployed(t))
}

// world is what scripts run against.
type world struct {
	*sample.Local
	leases *ddbtest.DataPlane
	undo   func(context.Context) error // of what broke the corpus
	more   map[string]string           // environment of the scripts
	dir    string                      // where the runbook's commands run

	historic kek.ID // a key of the days before, under which rows are
	backup   []map[string]types.AttributeValue

	repaired bool // the control table is damaged and rebuilt, which the model does not have
	control  []map[string]types.AttributeValue
}

const sampleRows = 160 // a rotation of them takes seconds

// deployed starts a stack. The test is skipped where the local AWS is not installed or
// the functions are not built, unless MATTER_REQUIRE_LOCAL=1.
func deployed(t *testing.T) *world {
	t.Helper()
	return deployedWith(t, "ops", nil)
}

// deployedWith is deployed with parameters of the template.
func deployedWith(t *testing.T, stack string, parameters map[string]string) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts servers")
	}
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	required := os.Getenv("MATTER_REQUIRE_LOCAL") == "1" || os.Getenv("CI") == "true"
	if _, err := os.Stat(filepath.Join(root, "build", "local", "mint", "bootstrap")); err != nil && !required {
		t.Skip("the functions are not built: make build")
	}
	l, err := sample.Up(t.Context(), sample.Options{Rows: sampleRows, Tables: []string{lettersTable}, Options: localaws.Options{
		StackName: stack, Dir: t.TempDir(), Parameters: parameters,
	}})
	if errors.Is(err, backend.ErrNotInstalled) && !required {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return &world{Local: l, leases: ddbtest.NewDataPlane(dynamodb.NewFromConfig(l.ApplicationConfig()), l.Env()["MATTER_CONTROL_TABLE"])}
}

// scripts runs a folder of scripts one after the other.
func scripts(t *testing.T, folder string, w *world) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "script", folder, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", folder, err)
	}
	var runs [][]trace.Event
	for _, f := range files {
		if t.Failed() {
			return // the scripts of a stack build on one another
		}
		end := func() []trace.Event { return nil }
		if w.Local != nil && !w.repaired {
			end = tracetest.Record(t, w.Local)
		}
		t.Run(folder, func(t *testing.T) { // Run below starts a parallel test, and returns when it has ended
			testscript.Run(t, testscript.Params{
				Files: []string{f}, UpdateScripts: *update, RequireExplicitExec: true, RequireUniqueNames: true,
				Setup: func(e *testscript.Env) error {
					if w.Local != nil {
						for k, v := range w.Env() {
							e.Setenv(k, v)
						}
						for k, v := range w.more {
							e.Setenv(k, v)
						}
					}
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits, "shown": shown, "json": jsonField, "ids": w.ids, "lease": w.lease,
					"corrupt-corpus": w.corruptCorpus, "restore-corpus": w.restoreCorpus, "row": w.row, "await": w.await, "closed-window": closedWindow, "dead-log": w.deadLog,
					"plan": w.plan, "key": w.key, "tagged": w.tagged, "letters": w.letters, "mark": w.mark,
					"redeploy": w.redeploy, "denied": w.denied, "lose": w.lose, "damage": w.damage, "keep-control": w.keepControl, "restore-control": w.restoreControl,
				},
			})
		})
		if run := end(); run != nil {
			runs = append(runs, run)
		}
	}
	if !t.Failed() && len(runs) > 0 {
		ofTheModel(t, runs)
	}
}

// ofTheModel requires that the model explains what scripts did, but for the row that
// some of them plant, which is an orphan.
func ofTheModel(t *testing.T, runs [][]trace.Event) {
	t.Helper()
	events := 0
	for i, v := range tracetest.Check(t, runs...) {
		events += len(runs[i])
		planted := slices.ContainsFunc(runs[i], func(e trace.Event) bool { return e.Row == plantedRow })
		if planted && v.Violated == "NoKeyOrphans" && v.Event.Row == plantedRow {
			continue
		}
		if planted || !v.Accepted {
			t.Errorf("%s\n%+v\nthe run is in %s", v, v.Event, tracetest.Keep(t, runs[i]))
		}
	}
	t.Logf("%d traces of %d events", len(runs), events)
}

// plantedRow is the row that the command row plants.
const plantedRow = "U+restored"

// exits runs a command that must end with the given exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command ...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var code *exec.ExitError
	switch {
	case errors.As(err, &code):
		got = code.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// changing is what differs from run to run, and what stands for it.
var changing = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "KEK"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`), "TIME"},
	{regexp.MustCompile(`rotation \w{3} \d{4}-\d\d-\d\d 02:00`), "rotation DAY 02:00"},
	{regexp.MustCompile(`record \d+ of \d+ of`), "record N of N of"},
	{regexp.MustCompile(`\b\d+ records`), "N records"},
	{regexp.MustCompile(`drill-\d{4}-\d\d-\d\d-\d{6}(-\d)?`), "DRILL"},
	{regexp.MustCompile(`counts until \d{4}-\d\d-\d\d`), "counts until DAY"},
	{regexp.MustCompile(`epoch \d+`), "epoch N"},
	{regexp.MustCompile(`"epoch": \d+`), `"epoch": N`},
	{regexp.MustCompile(`"waited_seconds": \d+`), `"waited_seconds": N`},
	{regexp.MustCompile(`anchor \d+ at log index \d+ of [\w.:-]+`), "anchor N at log index N of LOG"},
	{regexp.MustCompile(`records up to \d+ (are )?at (log )?index \d+ of [\w.:-]+`), "records up to N ${1}at ${2}index N of LOG"},
	{regexp.MustCompile(`(?m)^ +\d+\.\d s  `), "T s  "},
	{regexp.MustCompile(`(rows/s  ETA|  \d+ rows/s).*`), ""},
	{regexp.MustCompile(`(?m) +$`), ""},
}

// shown writes what a stream has shown to the file shown, apart from what changes
// from run to run, for cmp. The KEKs of the last rotation are $OLD and $NEW.
func shown(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: shown stdout|stderr")
	}
	got := ts.ReadFile(args[0])
	for _, name := range []string{"OLD", "NEW"} {
		if id := ts.Getenv(name); id != "" {
			got = strings.ReplaceAll(got, id, "$"+name)
		}
	}
	for _, c := range changing {
		got = c.what.ReplaceAllString(got, c.with)
	}
	ts.Check(os.WriteFile(ts.MkAbs("shown"), []byte(got), 0o600))
}

// jsonField compares one field of the JSON on a stream, by a dotted path.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: json stdout|stderr path value")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	for _, part := range strings.Split(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[part]
		case []any:
			i, err := strconv.Atoi(part)
			ts.Check(err)
			v = at[i]
		default:
			ts.Fatalf("%s: there is no %s in %v", args[1], part, v)
		}
	}
	if got := fmt.Sprint(v); (got == args[2]) == neg {
		ts.Fatalf("%s is %q, want %q (not: %t)", args[1], got, args[2], neg)
	}
}

// ids sets $OLD, $NEW and $ROTATION of the last rotation.
func (w *world) ids(ts *testscript.TestScript, _ bool, _ []string) {
	all, err := w.Deployment.Table.Rotations(context.Background())
	ts.Check(err)
	if len(all) == 0 {
		v, err := w.Deployment.Table.Load(context.Background(), "")
		ts.Check(err)
		ts.Setenv("OLD", string(v.Pointer.KEKID))
		return
	}
	r := all[len(all)-1]
	ts.Setenv("OLD", string(r.OldKEK))
	ts.Setenv("NEW", string(r.NewKEK))
	ts.Setenv("ROTATION", r.ID)
}

// lease puts a process's lease on a KEK, or drops it.
func (w *world) lease(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] lease kek references")
	}
	refs, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	l := rotation.Lease{
		KEK: kek.ID(args[0]), Holder: "worker-1", Host: "app-7", PID: 4711, Refs: refs, Expires: time.Now().Add(time.Hour),
	}
	if neg {
		ts.Check(w.leases.DropLease(context.Background(), l))
		return
	}
	ts.Check(w.leases.PutLease(context.Background(), l))
}

func (w *world) corruptCorpus(ts *testscript.TestScript, _ bool, _ []string) {
	var err error
	w.undo, err = w.Set.CorruptCorpus(context.Background())
	ts.Check(err)
}

func (w *world) restoreCorpus(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(w.undo(context.Background()))
}

// row writes a row that names a KEK, as a restore from a backup would; negated, it
// deletes the row again.
func (w *world) row(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case neg:
		ts.Check(w.deleteRow(context.Background()))
	case len(args) == 1:
		ts.Check(w.putRow(context.Background(), args[0]))
	default:
		ts.Fatalf("usage: row kek, or ! row")
	}
}

func (w *world) restored() (table *string, key map[string]types.AttributeValue) {
	return &w.Set.Sources()[0].Table, map[string]types.AttributeValue{"codepoint": &types.AttributeValueMemberS{Value: plantedRow}}
}

func (w *world) putRow(ctx context.Context, id string) error {
	src := w.Set.Sources()[0]
	table, item := w.restored()
	item[src.KEKID] = &types.AttributeValueMemberS{Value: id}
	item[src.WrappedDEK] = &types.AttributeValueMemberB{Value: []byte("wrapped elsewhere")}
	item[src.Ciphertext] = &types.AttributeValueMemberB{Value: []byte("sealed elsewhere")}
	item[src.Epoch] = &types.AttributeValueMemberN{Value: "1"}
	item[src.Version] = &types.AttributeValueMemberN{Value: "1"}
	_, err := w.Set.Dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: item})
	return err
}

func (w *world) deleteRow(ctx context.Context) error {
	table, key := w.restored()
	_, err := w.Set.Dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: table, Key: key})
	return err
}

// await waits until the last rotation is at a phase.
func (w *world) await(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: await rotation phase")
	}
	for end := time.Now().Add(time.Minute); ; {
		v, err := w.Deployment.Table.Load(context.Background(), args[0])
		ts.Check(err)
		if v.Rotation != nil && string(v.Rotation.Phase) == args[1] {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("rotation %s is not %s: %+v", args[0], args[1], v.Rotation)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// closedWindow sets $CLOSED to a window that does not open within the hour.
func closedWindow(ts *testscript.TestScript, _ bool, _ []string) {
	now := time.Now().UTC()
	ts.Setenv("CLOSED", now.Add(2*time.Hour).Format("15:04")+"-"+now.Add(3*time.Hour).Format("15:04"))
}

// deadLog redeploys the stack with a transparency log that nobody serves; negated, with
// the stack's own again.
func (w *world) deadLog(ts *testscript.TestScript, neg bool, _ []string) {
	trust := w.Env()["MATTER_TRUST"]
	if !neg {
		var list struct {
			Logs []map[string]any `json:"logs"`
			Keys json.RawMessage  `json:"anchor_keys,omitempty"`
		}
		ts.Check(json.Unmarshal([]byte(trust), &list))
		list.Logs[0]["url"] = "http://127.0.0.1:9"
		b, err := json.Marshal(list)
		ts.Check(err)
		trust = string(b)
	}
	w.redeploy(ts, false, []string{"MATTER_TRUST", trust})
}

// holds checks from outside that every row opens to its original bytes.
func (w *world) holds(t *testing.T) {
	t.Helper()
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Wrong) > 0 || report.Opened != w.Seeded {
		t.Errorf("%d of %d rows open to their original bytes; wrong: %q", report.Opened, w.Seeded, report.Wrong[:min(3, len(report.Wrong))])
	}
	var keks []string
	for id := range report.ByKEK {
		keks = append(keks, string(id))
	}
	v, err := w.Deployment.Table.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(keks, []string{string(v.Pointer.KEKID)}) {
		t.Errorf("the rows are under %v, the pointer on %s", keks, v.Pointer.KEKID)
	}
}

// TestDocumentedCommands: every command that a document shows is one, with flags that it has.
// The runbook's and the scripts' are also run.
func TestDocumentedCommands(t *testing.T) {
	shown := regexp.MustCompile("(?:^|[\\s`(\"'])(?:bin/)?matter (ops\\b[^`\n|#;)]*)")
	flagName := regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
	var files []string
	for _, pattern := range []string{"../../README.md", "../../SECURITY.md", "../../docs/*.md", "../../docs/adr/*.md", "../../examples/*/*.md", "../../examples/*/*.yml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	seen := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ")
		for _, m := range shown.FindAllStringSubmatch(text, -1) {
			words := strings.Fields(m[1])
			cmd, rest, err := newRootCommand().Find(words)
			if err != nil || cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && regexp.MustCompile(`^[a-z][a-z-]+$`).MatchString(rest[0]) && strings.Contains(rest[0], "-") {
				t.Errorf("%s: matter %s: no such command: %v", file, m[1], err)
				continue
			}
			seen++
			for _, f := range flagName.FindAllStringSubmatch(m[1], -1) {
				if cmd.Flags().Lookup(f[1]) == nil && f[1] != "help" {
					t.Errorf("%s: matter %s: %s has no flag --%s", file, m[1], cmd.CommandPath(), f[1])
				}
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d commands were found", seen)
	}
}
