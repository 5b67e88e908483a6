package notify

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"

	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

const exampleExecution = "arn:aws:states:eu-central-1:123456789012:execution:matter-rotation:Q2-2026-rotation"

var exampleTime = time.Date(2026, 4, 5, 2, 31, 7, 0, time.UTC)

// fakeBus answers with one result after the other, the last one forever, and keeps what was sent.
type fakeBus struct {
	answers []*eventbridge.PutEventsOutput
	sent    []types.PutEventsRequestEntry
}

// PutEvents implements [EventBridge].
func (f *fakeBus) PutEvents(_ context.Context, in *eventbridge.PutEventsInput, _ ...func(*eventbridge.Options)) (*eventbridge.PutEventsOutput, error) {
	f.sent = append(f.sent, in.Entries...)
	a := f.answers[0]
	if len(f.answers) > 1 {
		f.answers = f.answers[1:]
	}
	return a, nil
}

func (f *fakeBus) detail(t *testing.T, i int) (d EventDetail) {
	t.Helper()
	if err := json.Unmarshal([]byte(*f.sent[i].Detail), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func failedEntry(code string) *eventbridge.PutEventsOutput {
	return &eventbridge.PutEventsOutput{FailedEntryCount: 1, Entries: []types.PutEventsResultEntry{{ErrorCode: &code, ErrorMessage: aws.String("no")}}}
}

var accepted = &eventbridge.PutEventsOutput{Entries: []types.PutEventsResultEntry{{EventId: aws.String("1")}}}

// TestFailedEntry: an answer of status 200 that says that the entry failed is an error, of the
// kind that the API reference says; what passes is tried again with the same event.
func TestFailedEntry(t *testing.T) {
	for code, c := range map[string]struct {
		want  error // nil: any other
		tries int
	}{
		"AccessDeniedException": {journal.ErrDenied, 1}, "NotAuthorizedForSourceException": {journal.ErrDenied, 1}, "NotAuthorizedForDetailTypeException": {journal.ErrDenied, 1},
		"InvalidAccountIdException": {journal.ErrRejected, 1}, "InvalidArgument": {journal.ErrRejected, 1}, "MalformedDetail": {journal.ErrRejected, 1}, "RedactionFailure": {journal.ErrRejected, 1},
		"InternalFailure": {nil, maxTries}, "ThrottlingException": {nil, maxTries}, "SomethingNew": {nil, maxTries},
	} {
		f := &fakeBus{answers: []*eventbridge.PutEventsOutput{failedEntry(code)}}
		err := NewEventBus(f, "default", "matter", time.Now).TellPeople(t.Context(), journal.Notice{Event: journal.NotifyHalted})
		if err == nil || c.want != nil && !errors.Is(err, c.want) || c.want == nil && (errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrRejected)) ||
			!strings.Contains(err.Error(), code) || len(f.sent) != c.tries {
			t.Errorf("%s: %v after %d tries", code, err, len(f.sent))
		}
	}
	f := &fakeBus{answers: []*eventbridge.PutEventsOutput{{FailedEntryCount: 1}, failedEntry("ThrottlingException"), accepted}}
	if err := NewEventBus(f, "default", "matter", time.Now).TellPeople(t.Context(), journal.Notice{Event: journal.NotifyHalted}); err != nil || len(f.sent) != 3 || *f.sent[0].Detail != *f.sent[2].Detail {
		t.Errorf("%v, %d", err, len(f.sent))
	}
}

// TestRepeatedEventHasOneID: a notice that is sent again has the id of the first, however much
// later; another halt of the same execution, another stack and a canary of a later hour have not.
func TestRepeatedEventHasOneID(t *testing.T) {
	halt := journal.Notice{Event: journal.NotifyHalted, RotationID: "r", Error: "DrainTimeout", Execution: journal.Execution{ID: exampleExecution}}
	again := halt
	again.Execution.RedriveCount = 1
	red := journal.Notice{Event: journal.NotifyHealthRed, Cause: "denied"}
	first, canary := identifyEvent("s", halt, exampleTime), identifyEvent("s", red, exampleTime)
	for name, c := range map[string]struct {
		got, first string
		same       bool
	}{
		"the next day":    {identifyEvent("s", halt, exampleTime.Add(24*time.Hour)), first, true},
		"halted again":    {identifyEvent("s", again, exampleTime), first, false},
		"another stack":   {identifyEvent("t", halt, exampleTime), first, false},
		"within the hour": {identifyEvent("s", red, exampleTime.Add(20*time.Minute)), canary, true},
		"in a later hour": {identifyEvent("s", red, exampleTime.Add(time.Hour)), canary, false},
		"another canary":  {identifyEvent("s", journal.Notice{Event: red.Event, Cause: "slow"}, exampleTime), canary, false},
		"halt and canary": {first, canary, false},
	} {
		if (c.got == c.first) != c.same {
			t.Errorf("%s: %s and %s", name, c.first, c.got)
		}
	}
}

// TestEventSize: no notice is too long for PutEvents, whose limit is the bytes of source,
// detail-type and detail together, nor refused for what is in it.
func TestEventSize(t *testing.T) {
	long := strings.Repeat("\x00<é\"", 100<<10)
	f := &fakeBus{answers: []*eventbridge.PutEventsOutput{accepted}}
	n := journal.Notice{
		Event: journal.NotifyHalted, RotationID: long, Error: long, Cause: long, Execution: journal.Execution{ID: "arn:aws:states:r:1:execution:m:" + long, Name: long},
		Mode: long, Drill: long, Plan: long, Detail: long, Missing: long, Label: long,
	}
	if err := NewEventBus(f, "default", "matter", time.Now).TellPeople(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	e := f.sent[0]
	if size := len(*e.Source) + len(*e.DetailType) + len(*e.Detail); size >= 256<<10 {
		t.Errorf("%d bytes", size)
	}
	if d := f.detail(t, 0); len(d.Cause) != maxText || d.Links.Execution != "" {
		t.Errorf("%+v", d)
	}
}

// TestEventCause: the cause is the error's text in one line, not the JSON that Step Functions keeps.
func TestEventCause(t *testing.T) {
	f := &fakeBus{answers: []*eventbridge.PutEventsOutput{accepted}}
	halt := journal.Notice{Event: journal.NotifyHalted, RotationID: "r", Error: "DrainTimeout", Cause: `{"errorMessage":"DrainTimeout: 2 leases\nleft","errorType":"DrainTimeout"}`}
	if err := NewEventBus(f, "ops", "matter", time.Now).TellPeople(t.Context(), halt); err != nil {
		t.Fatal(err)
	}
	if d := f.detail(t, 0); d.Error != "DrainTimeout" || d.Cause != "2 leases; left" || *f.sent[0].EventBusName != "ops" {
		t.Errorf("%+v", d)
	}
}

// TestExecutionLink: the console of the execution's partition; no link to one that is not known.
func TestExecutionLink(t *testing.T) {
	for arn, want := range map[string]string{
		exampleExecution: "https://console.aws.amazon.com/states/home?region=eu-central-1#/v2/executions/details/" + exampleExecution,
		"arn:aws-us-gov:states:us-gov-west-1:1:execution:m:e": "https://console.amazonaws-us-gov.com/states/home?region=us-gov-west-1#/v2/executions/details/arn:aws-us-gov:states:us-gov-west-1:1:execution:m:e",
		"arn:aws-iso:states:us-iso-east-1:1:execution:m:e":    "",
		"arn:aws:lambda:r:1:execution:m:e":                    "",
		"":                                                    "",
	} {
		if got := linkExecution(arn); got != want {
			t.Errorf("%s: %s", arn, got)
		}
	}
}

// TestMissingBus: AWS's refusals of the whole request are named.
func TestMissingBus(t *testing.T) {
	err := NewEventBus(eventbridge.NewFromConfig(mototest.Config(t)), "no-such-bus", "matter", time.Now).TellPeople(t.Context(), journal.Notice{Event: journal.NotifyHalted})
	if err == nil || !strings.Contains(err.Error(), "no-such-bus") {
		t.Errorf("no bus: %v", err)
	}
	denied := mototest.Config(t, func(r *http.Request, _ func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	})
	if err := NewEventBus(eventbridge.NewFromConfig(denied), "default", "matter", time.Now).TellPeople(t.Context(), journal.Notice{Event: journal.NotifyHalted}); err == nil {
		t.Error("a refusal is ignored")
	}
}

// told is a notifier of a test.
type told func(context.Context) error

// TellPeople implements [journal.Notifier].
func (f told) TellPeople(ctx context.Context, _ journal.Notice) error { return f(ctx) }

// TestSeveralAreAllTold: a notifier that fails, and one that hangs until the deadline, keep no
// other from sending; all errors are returned.
func TestSeveralAreAllTold(t *testing.T) {
	away, hung, sent := errors.New("away"), errors.New("hung"), make(chan bool, 1)
	ctx, cancel := context.WithCancel(t.Context())
	err := Several{
		told(func(context.Context) error { return away }),
		told(func(ctx context.Context) error { <-ctx.Done(); return hung }),
		told(func(context.Context) error { sent <- true; cancel(); return nil }),
	}.TellPeople(ctx, journal.Notice{Event: journal.NotifyHalted})
	if !errors.Is(err, away) || !errors.Is(err, hung) || len(sent) != 1 {
		t.Errorf("%v, sent %d", err, len(sent))
	}
	if err := (Several{told(func(context.Context) error { return nil })}).TellPeople(t.Context(), journal.Notice{}); err != nil {
		t.Error(err)
	}
}
