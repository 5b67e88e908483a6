package main

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

// TestOutcome: how an execution ended, as an exit code and in words. The causes are
// those that Lambda and the state machine really make.
func TestOutcome(t *testing.T) {
	const orphans = `{"errorMessage":"{\"rotation\":\"q\",\"kind\":\"OrphansFound\",\"cause\":\"OrphansFound: rows: 2 rows are not under the new KEK. First: [\\\"a: it is under KEK b\\\"] (next: enable the old KMS key)\",\"next\":\"fix the cause, then: aws stepfunctions redrive-execution\"}","errorType":"Halted"}`
	const timeout = `{"errorMessage":"{\"rotation\":\"q\",\"kind\":\"States.Timeout\",\"cause\":\"\",\"next\":\"fix the cause\"}","errorType":"Halted"}`
	const colons = `{"errorMessage":"{\"rotation\":\"\",\"kind\":\"Internal\",\"cause\":\"Internal: r1 failed: x: y\",\"next\":\"\"}","errorType":"Halted"}` // cut at colons, its kind was "r1 failed"
	for _, c := range []struct {
		status      types.ExecutionStatus
		err, cause  string
		states      string
		phase       kek.Phase
		exit        int
		kind        journal.Kind
		says, after string
	}{
		{types.ExecutionStatusSucceeded, "", "", "Completed", kek.Completed, console.ExitDone, "", "rotation q is completed", "verify-kms-rotation --new-kek-id new"},
		{
			types.ExecutionStatusFailed, "WindowClosed", `{"errorMessage":"WindowClosed: window: it is 12:00","errorType":"WindowClosed"}`, "Preflight Refused", "",
			console.ExitFailed, journal.WindowClosed, "nothing was changed\nWindowClosed: window: it is 12:00", "kms-preflight",
		},
		{
			types.ExecutionStatusFailed, "CanaryFailed", `{"errorMessage":"CanaryFailed: k: came back changed"}`, "PreSwitchFailure RolledBack", kek.RolledBack,
			console.ExitRolledBack, journal.CanaryFailed, "the pointer never moved from KEK old\nCanaryFailed: k: came back changed", `fix the cause, then: matter ops kms-rotate --label "Q2 2026" --watch`,
		},
		{
			types.ExecutionStatusFailed, "Halted", orphans, "Verify Halted", kek.KEKRetired,
			console.ExitOrphans, journal.OrphansFound, "has halted (failed)\nOrphansFound: rows: 2 rows are not under the new KEK", "matter ops resume --rotation q",
		},
		{
			types.ExecutionStatusFailed, "Halted", timeout, "Rewrap Halted", kek.Drained,
			console.ExitFailed, "States.Timeout", "rotation q is drained and has halted (failed)\nStates.Timeout", "matter ops resume --rotation q",
		},
		{types.ExecutionStatusFailed, "Halted", colons, "Rewrap Halted", kek.Drained, console.ExitFailed, journal.Internal, "Internal: r1 failed: x: y", "resume"},
		{types.ExecutionStatusFailed, "Halted", "no message at all", "Halted", kek.Drained, console.ExitFailed, journal.Halted, "no message at all", "resume"},
		{types.ExecutionStatusAborted, "", "", "Rewrap", kek.Drained, console.ExitFailed, "", "rotation q is drained and has halted (aborted)", "resume --rotation q"},
		{types.ExecutionStatusTimedOut, "States.Timeout", "", "", "", console.ExitFailed, "States.Timeout", "is not started and has halted (timed_out)", "matter ops kms-rotate --watch"},
	} {
		out := outcome{
			Execution: executions.Execution{RotationID: "q", Status: c.status, Error: c.err, Cause: c.cause},
			States:    strings.Fields(c.states), Label: "Q2 2026", Phase: c.phase, OldKEK: "old", NewKEK: "new",
		}
		says := out.judgeOutcome()
		if out.ExitCode != c.exit || out.Failure != string(c.kind) || !strings.Contains(says, c.says) || !strings.Contains(out.Next, c.after) {
			t.Errorf("%s %s: exit %d, failure %q, next %q, says\n%s", c.status, c.err, out.ExitCode, out.Failure, out.Next, says)
		}
		if strings.Contains(says, "errorMessage") || strings.HasSuffix(says, ": ") {
			t.Errorf("%s %s: nobody can read\n%s", c.status, c.err, says)
		}
	}
}

// TestSameCorpus: the runbook's path and the URL name the same corpus; a neighbour
// is refused.
func TestSameCorpus(t *testing.T) {
	kinds := source.NewRegistry(dynamosource.Kind(nil, ""), s3source.Kind(nil))
	frozen := corporaOf(kinds.Open, kek.Rotation{Sources: []kek.Source{
		dynamosource.Config{Table: "orders", KEKID: "key", WrappedDEK: "dek"}.Source(),
		s3source.Config{Bucket: "forensics", Prefix: "known-cipher-corpus/"}.Source(),
	}})
	for given, ok := range map[string]bool{
		"": true, "s3://forensics/known-cipher-corpus/": true, "s3://forensics/known-cipher-corpus": true, "/forensics/known-cipher-corpus": true,
		"/forensics/known-cipher-corpus/": true, "/known-cipher-corpus": true, "known-cipher-corpus": true,
		"s3://known-cipher-corpus": false, "/forensics": false, "/forensics/known-cipher": false, "/": false,
		"/other/known-cipher-corpus": false, "s3://other/known-cipher-corpus/": false, "/forensics/known-cipher-corpus/sub": false,
	} {
		if err := sameCorpus(given, frozen); (err == nil) != ok {
			t.Errorf("%q: %v", given, err)
		}
	}
	if err := sameCorpus("/a", nil); err == nil || !strings.Contains(err.Error(), "no corpus is among the rotation's sources") {
		t.Errorf("without a corpus: %v", err)
	}
	if err := sameCorpus("", nil); err != nil {
		t.Errorf("without either: %v", err)
	}
}

// TestWorstExitCode: the worst expectation is the exit code, whatever the order.
func TestWorstExitCode(t *testing.T) {
	verdicts := []rotation.Verdict{rotation.Fulfilled, rotation.Unproven, rotation.Violated, rotation.Orphaned}
	codes := []int{console.ExitDone, console.ExitUnproven, console.ExitFailed, console.ExitOrphans}
	for i, a := range verdicts {
		for j, b := range verdicts {
			all := []expectation{newExpectation(a, "", ""), newExpectation(b, "", "")}
			if got, want := worstExitCode(all), codes[max(i, j)]; got != want {
				t.Errorf("verdicts %d and %d: exit code %d, want %d", a, b, got, want)
			}
		}
	}
	if got := worstExitCode(nil); got != console.ExitDone {
		t.Errorf("without an expectation: %d", got)
	}
}
