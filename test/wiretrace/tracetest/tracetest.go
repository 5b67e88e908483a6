// Package tracetest holds tests on the local AWS to the model: it records what every
// process does to a stack and has TLC explain it.
package tracetest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	s3source "github.com/matter-ops/kms-rotation/source/s3"
	"github.com/matter-ops/kms-rotation/test/sample"
	"github.com/matter-ops/kms-rotation/test/tlc/tlctest"
	"github.com/matter-ops/kms-rotation/test/trace"
	"github.com/matter-ops/kms-rotation/test/wiretrace"
)

// config is what is recorded of a stack.
func config(t *testing.T, l *sample.Local) wiretrace.Config {
	t.Helper()
	c := l.Deployment.Config
	cfg := wiretrace.Config{Stack: c.Stack, ControlTable: c.ControlTable, AuditBucket: c.AuditBucket, Corpus: s3source.Name}
	var err error
	if cfg.CorpusBucket, cfg.CorpusPrefix, err = s3source.ParseURL(l.Set.Corpus()); err != nil {
		t.Fatal(err)
	}
	tables, others := l.Behind()
	client := dynamodb.NewFromConfig(tables)
	cfg.Behind = wiretrace.Behind{DynamoDB: client, KMS: kms.NewFromConfig(others), S3: s3.NewFromConfig(others)}
	for _, src := range l.Set.Sources() {
		out, err := client.DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: &src.Table})
		if err != nil {
			t.Fatal(err)
		}
		table := wiretrace.Table{
			Source: src.SourceName(), Table: aws.ToString(out.Table.TableName),
			KEKID: src.KEKID, WrappedDEK: src.WrappedDEK, Ciphertext: src.Ciphertext, Epoch: src.Epoch, Context: src.Context, Bind: src.Bind,
		}
		if src.Payloads != "" || src.Format != "" && src.Format != "matter" {
			t.Fatalf("source %s: only payloads of this project's format are recorded", src.Name)
		}
		for _, k := range out.Table.KeySchema {
			table.Keys = append(table.Keys, aws.ToString(k.AttributeName))
		}
		cfg.Tables = append(cfg.Tables, table)
	}
	return cfg
}

// Record begins to record what every process does to a stack. The function that it
// returns ends that, and returns the run.
func Record(t *testing.T, l *sample.Local) (end func() []trace.Event) {
	t.Helper()
	r := wiretrace.New(config(t, l))
	begin := func() error { return r.Begin(t.Context()) }
	if err := l.Tap(begin, r.See); err != nil {
		t.Fatal(err)
	}
	return func() []trace.Event {
		t.Helper()
		l.Untap()
		events, err := r.Events()
		if err != nil {
			t.Errorf("the trace is no account of the run: %v", err)
		}
		return events
	}
}

// Check has the model look at runs, in one run of TLC. The test is skipped where TLC
// is not installed, unless MATTER_REQUIRE_LOCAL=1.
func Check(t *testing.T, runs ...[]trace.Event) []trace.Verdict {
	t.Helper()
	verdicts, err := trace.Check(context.WithoutCancel(t.Context()), runs...)
	tlctest.Must(t, err)
	return verdicts
}

// Accepted requires that the model explains runs. One that it does not is kept.
func Accepted(t *testing.T, runs ...[]trace.Event) {
	t.Helper()
	events := 0
	for i, v := range Check(t, runs...) {
		if events += len(runs[i]); !v.Accepted {
			t.Errorf("%s\n%+v\nthe run is in %s", v, v.Event, Keep(t, runs[i]))
		}
	}
	t.Logf("%d traces of %d events", len(runs), events)
}

// Keep writes a run to a file that outlives the test, in MATTER_ARTIFACTS or else the
// temporary directory, and returns its name.
func Keep(t *testing.T, events []trace.Event) string {
	t.Helper()
	f, err := os.CreateTemp(os.Getenv("MATTER_ARTIFACTS"), strings.ReplaceAll(t.Name(), "/", "-")+"-*.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(trace.Write(f, events), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
