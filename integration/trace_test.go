package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/internal/wiretrace"
	"github.com/matter-ops/kms-rotation/spec/tlc"
	"github.com/matter-ops/kms-rotation/spec/trace"
)

// recorded is what is recorded of a stack.
func (w *world) recorded(t *testing.T) wiretrace.Config {
	t.Helper()
	c := w.Deployment.Config
	cfg := wiretrace.Config{Stack: c.Stack, ControlTable: c.ControlTable, AuditBucket: c.AuditBucket, Corpus: corpus.Name}
	var err error
	if cfg.CorpusBucket, cfg.CorpusPrefix, err = corpus.ParseURL(c.Corpus); err != nil {
		t.Fatal(err)
	}
	client := dynamodb.NewFromConfig(w.AWSConfig())
	for _, src := range c.Sources {
		out, err := client.DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: &src.Table})
		if err != nil {
			t.Fatal(err)
		}
		table := wiretrace.Table{
			Source: src.SourceName(), Table: aws.ToString(out.Table.TableName),
			KEKID: src.KEKID, WrappedDEK: src.WrappedDEK, Ciphertext: src.Ciphertext, Epoch: src.Epoch,
		}
		for _, k := range out.Table.KeySchema {
			table.Keys = append(table.Keys, aws.ToString(k.AttributeName))
		}
		cfg.Tables = append(cfg.Tables, table)
	}
	return cfg
}

// record begins to record what every process does to the stack. The function that
// it returns ends that, and returns the run.
func (w *world) record(t *testing.T) (end func() []trace.Event) {
	t.Helper()
	r := wiretrace.New(w.recorded(t))
	begin := func() error { return r.Begin(t.Context(), w.AWSConfig()) }
	if err := w.Tap(begin, r.See); err != nil {
		t.Fatal(err)
	}
	return func() []trace.Event {
		t.Helper()
		w.Untap()
		events, err := r.Events()
		if err != nil {
			t.Errorf("the trace is no account of the run: %v", err)
		}
		return events
	}
}

// judgeRuns has the model look at runs, in one run of TLC.
func judgeRuns(t *testing.T, runs ...[]trace.Event) []trace.Verdict {
	t.Helper()
	verdicts, err := trace.Check(context.WithoutCancel(t.Context()), runs...)
	if errors.Is(err, tlc.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return verdicts
}

// mustBeOfTheModel requires that the model explains runs. One that it does not is
// kept.
func mustBeOfTheModel(t *testing.T, runs ...[]trace.Event) {
	t.Helper()
	events := 0
	for i, v := range judgeRuns(t, runs...) {
		if events += len(runs[i]); !v.Accepted {
			t.Errorf("%s\n%+v\nthe run is in %s", v, v.Event, keep(t, runs[i]))
		}
	}
	t.Logf("%d traces of %d events", len(runs), events)
}

// keep writes a run to a file that outlives the test.
func keep(t *testing.T, events []trace.Event) string {
	t.Helper()
	dir := os.Getenv("MATTER_ARTIFACTS")
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.CreateTemp(dir, strings.ReplaceAll(t.Name(), string(filepath.Separator), "-")+"-*.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(trace.Write(f, events), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// traced records until the test ends, which fails if the model does not explain
// what happened.
func (w *world) traced(t *testing.T) {
	t.Helper()
	end := w.record(t)
	t.Cleanup(func() {
		events := end()
		if !t.Failed() {
			mustBeOfTheModel(t, events)
		}
	})
}
