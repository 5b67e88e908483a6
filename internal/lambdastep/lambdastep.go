// Package lambdastep is the one edge between AWS Lambda and a step: it decodes
// the payload strictly, logs one line per invocation, leaves time to answer before
// Lambda's deadline, and maps every error to the stable name that the state
// machine's Retry and Catch match on.
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
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/matter-ops/kms-rotation/rotation"
)

// answerReserve is kept back from Lambda's deadline so that a step whose context
// ends can still answer: a killed function tells the state machine nothing.
const answerReserve = 500 * time.Millisecond

// Step is one step of a rotation: a method of [rotation.Steps].
type Step[In, Out any] func(context.Context, In) (Out, error)

// Start serves a step for ever. setup wires the steps once per process; if it
// fails, every invocation answers with that failure, typed and with the field to
// mend, where a crash at start would tell the caller nothing.
func Start[In, Out any](setup func(context.Context) (*rotation.Steps, error), method func(*rotation.Steps, context.Context, In) (Out, error)) {
	steps, err := setup(context.Background())
	step := func(ctx context.Context, in In) (Out, error) { return method(steps, ctx, in) }
	lambda.Start(Handler(step, err, slog.New(slog.NewJSONHandler(os.Stdout, nil))))
}

// Handler returns the function that lambda.Start calls. Its errors are
// [messages.InvokeResponse_Error] with a [rotation.Kind] as type.
func Handler[In, Out any](step Step[In, Out], setup error, log *slog.Logger) func(context.Context, json.RawMessage) (*Out, error) {
	return func(ctx context.Context, payload json.RawMessage) (*Out, error) {
		if deadline, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-answerReserve))
			defer cancel()
		}
		out, err := run(ctx, step, setup, payload)
		if o, ok := any(out).(interface{ WithoutRows() Out }); ok {
			out = o.WithoutRows()
		}
		report(ctx, log, payload, out, err)
		if err != nil {
			return nil, named(err)
		}
		return &out, nil
	}
}

func run[In, Out any](ctx context.Context, step Step[In, Out], setup error, payload []byte) (out Out, err error) {
	if setup != nil {
		return out, setup
	}
	in, err := Decode[In](payload)
	if err != nil {
		return out, err
	}
	return step(ctx, in)
}

// Decode reads exactly one JSON value without unknown fields.
func Decode[In any](payload []byte) (In, error) {
	var in In
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	err := d.Decode(&in)
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return in, &rotation.Error{
			Kind: rotation.InvalidInput, Field: "input", Msg: "cannot be read", Err: err,
			Next: "send only documented fields, see events/ for an example of each",
		}
	}
	return in, nil
}

// secretFields are the fields of an input that are not logged: with a task's token
// whoever may call Step Functions ends the task.
var secretFields = []string{"task_token"}

// visible is a payload as it is logged: its first kilobyte, without secrets.
func visible(payload []byte) string {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(payload, &fields); err != nil {
		return fmt.Sprintf("%d bytes that are no JSON object", len(payload))
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

// report logs the outcome. Payloads carry ids and counts, and what visible leaves out.
func report(ctx context.Context, log *slog.Logger, payload []byte, out any, err error) {
	attrs := []any{"input", visible(payload)}
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		attrs = append(attrs, "request_id", lc.AwsRequestID)
	}
	if err != nil {
		log.ErrorContext(ctx, "step failed", append(attrs, "error_type", string(Kind(err)), "error", err.Error())...)
		return
	}
	log.InfoContext(ctx, "step done", append(attrs, "output", fmt.Sprintf("%+v", out))...)
}

// Kind is the stable name of any error. A context that ended is Transient: the
// step is safe to run again.
func Kind(err error) rotation.Kind {
	var typed *rotation.Error
	switch {
	case errors.As(err, &typed):
		return typed.Kind
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return rotation.Transient
	default:
		return rotation.Internal
	}
}

// named is an error as Lambda answers it. The message of a halt is JSON, for the programs
// that look at the execution.
func named(err error) error {
	message := err.Error()
	var typed *rotation.Error
	if errors.As(err, &typed) && typed.Halt != nil {
		if b, err := json.Marshal(typed.Halt); err == nil {
			message = string(b)
		}
	}
	return messages.InvokeResponse_Error{Type: string(Kind(err)), Message: message}
}
