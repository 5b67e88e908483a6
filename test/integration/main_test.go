// Package integration runs whole rotations through the parts that ship: the
// template, the state machine and the built Lambda binaries, on the local AWS.
package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/sample"
)

const (
	stackName      = "it"
	rows           = 160 // a rotation of them takes seconds
	executionLimit = 2 * time.Minute
	watchEvery     = 250 * time.Millisecond
)

// world is one stack on one local AWS.
type world struct {
	*sample.Local
	sfn       *sfn.Client
	dir       string // of logs/<function>.log
	emulators map[string]emulator
}

// up starts a stack for one test. It is skipped where the local AWS is not
// installed or the functions are not built, unless MATTER_REQUIRE_LOCAL=1.
func up(t *testing.T, parameters map[string]string) *world {
	t.Helper()
	return upWith(t, localaws.Options{Parameters: parameters})
}

// upWith is up with other options of the local AWS. The functions may use more tables
// than the data set's, each STACK-name. The test runs beside others: it waits more than
// it works.
func upWith(t *testing.T, o localaws.Options, tables ...string) *world {
	t.Helper()
	t.Parallel()
	return alone(t, o, tables...)
}

// alone is upWith of a test that nothing else runs beside.
func alone(t *testing.T, o localaws.Options, tables ...string) *world {
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
	o.StackName, o.Dir = stackName, t.TempDir()
	l, err := sample.Up(t.Context(), sample.Options{Rows: rows, Tables: tables, Options: o})
	if errors.Is(err, backend.ErrNotInstalled) && !required {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &world{Local: l, sfn: sfn.NewFromConfig(l.AWSConfig()), dir: o.Dir, emulators: map[string]emulator{}}
}

// start starts an execution of the state machine of its mode.
func (w *world) start(t *testing.T, name, input string) string {
	t.Helper()
	var in rotation.ExecutionInput
	_ = json.Unmarshal([]byte(input), &in) // what is no input is for preflight to refuse
	if in.Resume != "" {
		if r := w.view(t, in.Resume).Rotation; r != nil {
			in.Mode = string(r.Mode)
		}
	}
	machine := w.Env()["MATTER_STATE_MACHINE_ARN"]
	if in.Mode == string(kek.Emergency) {
		machine = w.Env()["MATTER_EMERGENCY_STATE_MACHINE_ARN"]
	}
	out, err := w.sfn.StartExecution(t.Context(), &sfn.StartExecutionInput{StateMachineArn: &machine, Name: &name, Input: &input})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.ExecutionArn)
}

// finish waits for the end of an execution.
func (w *world) finish(t *testing.T, arn string) console.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), executionLimit)
	defer cancel()
	for {
		d, err := w.sfn.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err != nil {
			t.Fatalf("execution %s: %v", arn, err)
		}
		if d.Status != types.ExecutionStatusRunning {
			states, err := console.ListStates(ctx, w.sfn, arn)
			if err != nil {
				t.Fatal(err)
			}
			return console.Outcome{Status: d.Status, Error: aws.ToString(d.Error), Cause: aws.ToString(d.Cause), States: states}
		}
		select {
		case <-time.After(watchEvery):
		case <-ctx.Done():
			states, _ := console.ListStates(t.Context(), w.sfn, arn)
			t.Fatalf("execution %s still runs after %s: %v", arn, executionLimit, states)
		}
	}
}

// rotate runs an execution to its end.
func (w *world) rotate(t *testing.T, name, input string) console.Outcome {
	t.Helper()
	return w.finish(t, w.start(t, name, input))
}

// view reads the control table for one rotation.
func (w *world) view(t *testing.T, id string) kek.View {
	t.Helper()
	v, err := w.Deployment.Table.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// inject adds a fault.
func (w *world) inject(t *testing.T, fault map[string]any) {
	t.Helper()
	body, err := json.Marshal(fault)
	if err != nil {
		t.Fatal(err)
	}
	w.control(t, http.MethodPost, "/_local/faults", body)
}

// faults lists how often each fault has fired, in the order they were injected.
func (w *world) faults(t *testing.T) []firedFault {
	t.Helper()
	var out []firedFault
	if err := json.Unmarshal(w.control(t, http.MethodGet, "/_local/faults", nil), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

type firedFault struct {
	Service, Operation, Function string
	Nth, Seen, Fired             int
}

func (w *world) control(t *testing.T, method, path string, body []byte) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b.Bytes())
	}
	return b.Bytes()
}

// calls counts the calls of one operation, by any function.
func (w *world) calls(t *testing.T, service, operation string) int {
	t.Helper()
	return w.countCalls(t, service, operation, func(function string) bool { return function != "" })
}

// allCalls counts the calls of one operation, by the operator too.
func (w *world) allCalls(t *testing.T, service, operation string) int {
	t.Helper()
	return w.countCalls(t, service, operation, func(string) bool { return true })
}

func (w *world) countCalls(t *testing.T, service, operation string, by func(function string) bool) int {
	t.Helper()
	var all []struct {
		Service, Operation, Function string
		Count                        int
	}
	if err := json.Unmarshal(w.control(t, http.MethodGet, "/_local/calls", nil), &all); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range all {
		if c.Service == service && c.Operation == operation && by(c.Function) {
			n += c.Count
		}
	}
	return n
}

// mustHold checks the invariants from outside, as an auditor would: by reading
// rows, registry, KMS and bucket.
func (w *world) mustHold(t *testing.T) {
	t.Helper()
	report, err := w.Set.Check(t.Context(), w.Rows)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Wrong) > 0 || report.Opened != w.Seeded {
		t.Errorf("%d of %d rows open to their original bytes; wrong: %q", report.Opened, w.Seeded, report.Wrong[:min(3, len(report.Wrong))])
	}
	states := map[kek.ID]kek.State{}
	keks, err := w.Deployment.Table.KEKs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var active []kek.ID
	for _, k := range keks {
		states[k.ID] = k.State
		if k.State == kek.Active {
			active = append(active, k.ID)
		}
	}
	for id, n := range report.ByKEK {
		k, err := w.Deployment.Steps.Keys.Admin.Describe(t.Context(), id)
		if err != nil || !k.Enabled || !states[id].Resolves() {
			t.Errorf("NoKeyOrphans: %d rows name KEK %s: registry %q, KMS %+v, %v", n, id, states[id], k, err)
		}
	}
	v := w.view(t, "")
	if v.Pointer == nil || !slices.Equal(active, []kek.ID{v.Pointer.KEKID}) {
		t.Errorf("active KEKs %v, pointer %+v", active, v.Pointer)
	}
	w.replayChain(t)
	if err := w.Deployment.Steps.VerifyChain(t.Context()); err != nil {
		t.Errorf("audit chain: %v", err)
	}
}

// readRows reads every row before what a test does, for [world.rowsHold].
func (w *world) readRows(t *testing.T) *sample.Ledger {
	t.Helper()
	l, err := w.Set.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l.Rows() != w.Seeded {
		t.Fatalf("%d rows are there, %d were seeded", l.Rows(), w.Seeded)
	}
	return l
}

// rowsHold opens every row after rotations that are completed, and holds it to the ledger:
// none is lost, changed, or left under another KEK or, by an emergency, under a data key
// that a KEK wrapped which it left.
func (w *world) rowsHold(t *testing.T, l *sample.Ledger, rotations ...string) {
	t.Helper()
	for _, text := range w.brokenRows(t, l, rotations...) {
		t.Error(text)
	}
}

func (w *world) brokenRows(t *testing.T, l *sample.Ledger, rotations ...string) []string {
	t.Helper()
	var records []kek.Rotation
	for _, id := range rotations {
		records = append(records, *w.view(t, id).Rotation)
	}
	wrong, err := l.Check(t.Context(), records...)
	if err != nil {
		t.Fatal(err)
	}
	return wrong
}

func describe(o console.Outcome) string {
	return fmt.Sprintf("%s %s %s\n%s", o.Status, o.Error, o.Cause, strings.Join(o.States, " → "))
}

// replayChain requires that each record of the chain is a step of spec/evidence.tla.
func (w *world) replayChain(t *testing.T) {
	t.Helper()
	entries, err := w.Deployment.Table.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var run replay.Run
	for _, e := range entries {
		run.Take(e)
	}
	r := run.Report()
	if !r.Conforms() {
		t.Errorf("%s: %v, %s", r, r.Findings, r.Unchecked)
	}
}
