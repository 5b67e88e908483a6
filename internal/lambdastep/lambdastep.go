// Package lambdastep is the only edge between AWS Lambda and a step of a rotation.
//
//	payload  one JSON object; unknown fields are refused
//	answer   the step's output as JSON
//	error    {"errorType": a journal.Kind, "errorMessage": text, or JSON for a halt}
//
// Invariants: the state machine's Retry and Catch match errorType, so every error has a
// [journal.Kind]. A step's context ends before Lambda's deadline, because a killed
// function tells the state machine nothing. An invocation logs one line, without secrets.
package lambdastep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// answerReserve is how long before Lambda's deadline the step's context ends, so that the
// step can still answer.
const answerReserve = 500 * time.Millisecond

// Step is one step of a rotation: a method of [rotation.Steps] or of one of its rooms.
type Step[In, Out any] func(context.Context, In) (Out, error)

// Start serves a step and does not return. setup wires the steps once per process. If it
// fails, every invocation answers with that error, its kind and the field to fix; a crash
// at start would tell the caller nothing.
func Start[Room, In, Out any](setup func(context.Context) (Room, error), method func(Room, context.Context, In) (Out, error)) {
	limitMemory(os.Getenv)
	room, err := setup(context.Background())
	step := func(ctx context.Context, in In) (Out, error) { return method(room, ctx, in) }
	lambda.Start(NewHandler(step, err, slog.New(slog.NewJSONHandler(os.Stdout, nil))))
}

// limitMemory has the garbage collector work harder before Lambda ends the process for its
// memory (Lambda Developer Guide, "Defined runtime environment variables"). What a rewrap
// remembers would otherwise be followed by as much garbage. A fifth is left for the rest of
// the sandbox.
func limitMemory(getenv func(string) string) {
	if mib, err := strconv.ParseInt(getenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"), 10, 32); err == nil && mib > 0 {
		debug.SetMemoryLimit(mib << 20 * 4 / 5)
	}
}

// NewHandler returns the function that lambda.Start calls. setup is the error of the
// wiring, if it failed. Errors of the function are [messages.InvokeResponse_Error] with a
// [journal.Kind] as type.
func NewHandler[In, Out any](step Step[In, Out], setup error, log *slog.Logger) func(context.Context, json.RawMessage) (*Out, error) {
	return func(ctx context.Context, payload json.RawMessage) (*Out, error) {
		if deadline, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-answerReserve))
			defer cancel()
		}
		out, err := runStep(ctx, step, setup, payload)
		if o, ok := any(out).(interface{ WithoutRows() Out }); ok {
			out = o.WithoutRows()
		}
		logOutcome(ctx, log, payload, out, err)
		if err != nil {
			return nil, encodeError(err)
		}
		return &out, nil
	}
}

func runStep[In, Out any](ctx context.Context, step Step[In, Out], setup error, payload []byte) (out Out, err error) {
	if setup != nil {
		return out, setup
	}
	in, err := DecodePayload[In](payload)
	if err != nil {
		return out, err
	}
	return step(ctx, in)
}

// DecodePayload decodes exactly one JSON value without unknown fields. An empty payload is
// the zero value. The error is a [journal.Error] of kind InvalidInput.
func DecodePayload[In any](payload []byte) (In, error) {
	var in In
	err := DecodeInto(payload, &in)
	return in, err
}

// DecodeInto is [DecodePayload] for an input whose type is known at run time only: in points to it.
func DecodeInto(payload []byte, in any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	err := d.Decode(in)
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return &journal.Error{
			Kind: journal.InvalidInput, Field: "input", Msg: "cannot be read", Err: err,
			Next: journal.Next{Say: "send only documented fields, see events/ for an example of each"},
		}
	}
	return nil
}

// secretFields are the fields of an input that are not logged. A task token lets everyone
// who may call Step Functions end the task.
var secretFields = []string{"task_token"}

// redactPayload returns a payload as it is logged: its first kilobyte, without secrets.
func redactPayload(payload []byte) string {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(payload, &fields); err != nil {
		return fmt.Sprintf("%d bytes that are not a JSON object", len(payload))
	}
	for name := range fields {
		if slices.ContainsFunc(secretFields, func(s string) bool { return strings.EqualFold(s, name) }) {
			fields[name] = json.RawMessage(`"not logged"`)
		}
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return err.Error()
	}
	return string(b[:min(len(b), 1024)])
}

// logOutcome logs the outcome. Apart from what redactPayload removes, payloads have only
// ids and counts.
func logOutcome(ctx context.Context, log *slog.Logger, payload []byte, out any, err error) {
	attrs := []any{"input", redactPayload(payload)}
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		attrs = append(attrs, "request_id", lc.AwsRequestID)
	}
	if err != nil {
		log.ErrorContext(ctx, "step failed", append(attrs, "error_type", string(ErrorKind(err)), "error", advice.Explain(err))...)
		return
	}
	log.InfoContext(ctx, "step done", append(attrs, "output", fmt.Sprintf("%+v", out))...)
}

// ErrorKind returns the kind of any error. The end of a context is Transient, because
// every step may be run again. An error without a kind is Internal.
func ErrorKind(err error) journal.Kind {
	var typed *journal.Error
	switch {
	case errors.As(err, &typed):
		return typed.Kind
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return journal.Transient
	default:
		return journal.Internal
	}
}

// encodeError returns an error as Lambda answers it. The message of a halt is JSON, which
// matter and the report decode from the execution.
func encodeError(err error) error {
	message := advice.Explain(err)
	var typed *journal.Error
	if errors.As(err, &typed) && typed.Halt != nil {
		h := *typed.Halt
		h.Next = advice.Command(typed.Next)
		if b, err := json.Marshal(h); err == nil {
			message = string(b)
		}
	}
	return messages.InvokeResponse_Error{Type: string(ErrorKind(err)), Message: message}
}
