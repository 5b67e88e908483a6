package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/sample"
	"github.com/matter-ops/kms-rotation/test/wiretrace/tracetest"
)

const e2eRows = 60

// upLocal starts the local AWS with a few rows. It is skipped where that is not
// installed or the functions are not built, unless MATTER_REQUIRE_LOCAL=1.
func upLocal(t *testing.T) *sample.Local {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts servers")
	}
	required := os.Getenv("MATTER_REQUIRE_LOCAL") == "1"
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "build", "local", "mint", "bootstrap")); err != nil && !required {
		t.Skip("the functions are not built: make build")
	}
	l, err := sample.Up(t.Context(), sample.Options{Rows: e2eRows, Options: localaws.Options{StackName: "report", Dir: t.TempDir()}})
	if errors.Is(err, backend.ErrNotInstalled) && !required {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// collect reports a rotation, and looks at the report as a person does.
func collect(t *testing.T, l *sample.Local, id string) Report {
	t.Helper()
	r, err := Collect(t.Context(), NewReader(l.Deployment), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Checks {
		if !c.OK && c.Name != "audit chain" {
			t.Errorf("%s: check %q: %s", id, c.Name, c.Detail)
		}
	}
	for _, rec := range r.Audit.Records {
		if rec.Bucket != "same" {
			t.Errorf("%s: record %d: %s in the bucket", id, rec.Seq, rec.Bucket)
		}
	}
	if r.Audit.Verification.Result == audit.Tampered || r.Audit.Verification.Error != "" {
		t.Errorf("%s: verification %+v", id, r.Audit.Verification)
	}
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	if chromium(t) != "" {
		file := filepath.Join(t.TempDir(), id+".html")
		must(t, os.WriteFile(file, b.Bytes(), 0o600))
		lookAt(t, openBrowser(t), "local-"+id, file, id)
	}
	return r
}

// TestLocalAWS reports a rotation that the shipped state machine ran to its end, and
// one that was rolled back step by step, from the shipped stack on the local AWS.
func TestLocalAWS(t *testing.T) {
	l := upLocal(t)
	end := tracetest.Record(t, l)
	execute(t, l, "green")
	r := collect(t, l, "green")
	if r.Outcome.State != Completed || len(r.Executions) != 1 || len(r.Timeline) < 8 {
		t.Fatalf("outcome %+v, %d executions, %d spans", r.Outcome, len(r.Executions), len(r.Timeline))
	}
	if len(r.Drain) == 0 || !r.Drain[len(r.Drain)-1].Sealed || len(r.Rewrap) == 0 {
		t.Errorf("drain %+v, rewrap %+v", r.Drain, r.Rewrap)
	}
	var before, after, moved int64
	for _, s := range r.Rows {
		for _, k := range s.Before {
			before += k.Rows
		}
		for _, k := range s.After {
			if k.Role != "new" && k.Rows > 0 {
				t.Errorf("%s: %d rows under the %s KEK", s.Source, k.Rows, k.Role)
			}
			after += k.Rows
		}
	}
	moved = r.Rewrap[len(r.Rewrap)-1].Rewrapped
	if n := int64(l.Seeded); before != n || after != n || moved != n {
		t.Errorf("%d rows before, %d moved, %d after; seeded %d", before, moved, after, n)
	}
	if !slices.ContainsFunc(r.Checks, func(c Check) bool { return strings.HasPrefix(c.Name, "preflight: ") }) {
		t.Errorf("no check of preflight in %+v", r.Checks)
	}
	states := map[string]string{}
	for _, k := range r.KEKs {
		states[k.Role] = k.KMSState
	}
	if states["old"] != "Disabled" || states["new"] != "Enabled" {
		t.Errorf("KMS states %v", states)
	}
	rollBack(t, l, "corrupt")
	r = collect(t, l, "corrupt")
	if r.Outcome.State != RolledBack || !strings.Contains(r.Outcome.Error, "CorpusCorrupted") {
		t.Errorf("outcome %+v", r.Outcome)
	}
	for _, s := range r.Rows { // they were counted, and none was touched
		if len(s.Passes) != 1 || s.Passes[0].Pass != rotation.PassCensus || len(s.After) != 0 {
			t.Errorf("rows %+v", s)
		}
	}
	tracetest.Accepted(t, end())
	// The first report of a rotation whose KEK is not the pointer's any more stays true.
	if again := collect(t, l, "green"); again.Outcome.State != Completed {
		t.Errorf("outcome %+v", again.Outcome)
	}
}

// execute runs one execution to its end.
func execute(t *testing.T, l *sample.Local, name string) {
	t.Helper()
	client := sfn.NewFromConfig(l.AWSConfig())
	started, err := client.StartExecution(t.Context(), &sfn.StartExecutionInput{
		StateMachineArn: aws.String(l.Env()["MATTER_STATE_MACHINE_ARN"]), Name: &name, Input: aws.String("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		d, err := client.DescribeExecution(t.Context(), &sfn.DescribeExecutionInput{ExecutionArn: started.ExecutionArn})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case d.Status == types.ExecutionStatusSucceeded:
			return
		case d.Status != types.ExecutionStatusRunning:
			t.Fatalf("execution %s: %s %s", d.Status, aws.ToString(d.Error), aws.ToString(d.Cause))
		case time.Now().After(end):
			t.Fatal("the execution does not end")
		}
	}
}

// rollBack runs the steps of a rotation that meets a corrupted known cipher.
func rollBack(t *testing.T, l *sample.Local, name string) {
	t.Helper()
	ctx, s := t.Context(), l.Deployment.Steps
	restore, err := l.Set.CorruptCorpus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Preflight(ctx, rotation.PreflightInput{ExecutionName: name}); err != nil {
		t.Fatal(err)
	}
	in := rotation.StepInput{RotationID: name}
	if out, err := s.Verify(ctx, rotation.VerifyInput{RotationID: name, Census: true}); err != nil || !out.Done {
		t.Fatal(out, err)
	}
	if _, err := s.Mint(ctx, in); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: name, Rehearse: true}); err != nil {
		t.Fatal(err)
	}
	_, cause := s.DualUnwrap(ctx, in)
	var typed *journal.Error
	if !errors.As(cause, &typed) || typed.Kind != journal.CorpusCorrupted {
		t.Fatalf("dual unwrap: %v", cause)
	}
	if _, err := s.Retire(ctx, rotation.RetireInput{RotationID: name, Action: rotation.ActionPreSwitchFailure, Error: string(typed.Kind), Cause: typed.Msg}); err != nil {
		t.Fatal(err)
	}
	if err := restore(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestJSONIsStable: the JSON says the same when it is read and written again, and
// has every documented field.
func TestJSONIsStable(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	doc, err := os.ReadFile("../../docs/evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var r Report
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil || !bytes.Equal(b.Bytes(), text) {
			t.Errorf("%s: it is not the same when written again: %v", name, err)
		}
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		for f := range fields {
			if !bytes.Contains(doc, []byte("| `"+f+"` |")) {
				t.Errorf("docs/evidence.md does not document the field %q", f)
			}
		}
	}
}
