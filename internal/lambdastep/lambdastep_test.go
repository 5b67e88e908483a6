package lambdastep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

func echo(_ context.Context, in rotation.StepInput) (rotation.MintOutput, error) {
	return rotation.MintOutput{NewKEK: in.RotationID}, nil
}

func invoke(t *testing.T, step Step[rotation.StepInput, rotation.MintOutput], setup error, payload string) (*rotation.MintOutput, messages.InvokeResponse_Error, string) {
	t.Helper()
	var log bytes.Buffer
	out, err := NewHandler(step, setup, slog.New(slog.NewTextHandler(&log, nil)))(t.Context(), json.RawMessage(payload))
	var named messages.InvokeResponse_Error
	if err != nil && !errors.As(err, &named) {
		t.Fatalf("error %T is not an InvokeResponse_Error: it would be named after its Go type", err)
	}
	return out, named, log.String()
}

func TestHandlerDecodesStrictly(t *testing.T) {
	out, e, _ := invoke(t, echo, nil, `{"rotation_id":"r1"}`)
	if e.Type != "" || out.NewKEK != "r1" {
		t.Fatalf("got %+v, %+v", out, e)
	}
	for _, payload := range []string{`{"rotation_id":"r1","kek":"x"}`, `{"rotation_id":1}`, `[]`, `{"rotation_id":"r"} {}`} {
		if _, e, _ := invoke(t, echo, nil, payload); e.Type != "InvalidInput" || !strings.Contains(e.Message, "next:") {
			t.Errorf("payload %s: got %+v, want InvalidInput with a next step", payload, e)
		}
	}
}

// TestExecutionOfAWS: what Step Functions says of an execution is AWS's to extend, as it did
// in 2023 with RedriveCount and RedriveTime; a field more must not silence every page. What
// the state machine of this project writes stays strict.
func TestExecutionOfAWS(t *testing.T) {
	const execution = `{"Id":"arn:x","Name":"n","RoleArn":"r","StartTime":"s","RedriveCount":2,"Input":{"a":1},"NewIn2027":{"b":[1]}}`
	in, err := DecodePayload[journal.Notice]([]byte(`{"event":"halted","execution":` + execution + `,"halted_in":` + execution + `}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := (journal.Execution{ID: "arn:x", Name: "n", RedriveCount: 2}); in.Execution != want || *in.HaltedIn != want {
		t.Errorf("got %+v and %+v", in.Execution, in.HaltedIn)
	}
	if _, err := DecodePayload[journal.Notice]([]byte(`{"event":"halted","execution":` + execution + `,"halted":1}`)); err == nil {
		t.Error("a field that the state machine does not send was accepted")
	}
}

func TestHandlerNamesErrors(t *testing.T) {
	deep := fmt.Errorf("outer: %w", &journal.Error{Kind: journal.DrainTimeout, Msg: "m"})
	for _, tc := range []struct {
		err  error
		want journal.Kind
	}{
		{deep, journal.DrainTimeout},
		{fmt.Errorf("call: %w", context.DeadlineExceeded), journal.Transient},
		{errors.New("odd"), journal.Internal},
	} {
		fail := func(context.Context, rotation.StepInput) (rotation.MintOutput, error) {
			return rotation.MintOutput{}, tc.err
		}
		_, e, log := invoke(t, fail, nil, `{"rotation_id":"r1"}`)
		if e.Type != string(tc.want) {
			t.Errorf("%v: type %q, want %q", tc.err, e.Type, tc.want)
		}
		if !strings.Contains(log, "error_type="+string(tc.want)) {
			t.Errorf("log %q lacks the error type", log)
		}
	}
	halt := &journal.Halt{Rotation: "q", Kind: journal.DrainTimeout, Cause: "DrainTimeout: a \"lease\"", Next: "wait"}
	unsaid := *halt // as a step hands it over
	unsaid.Next = ""
	halts := func(context.Context, rotation.StepInput) (rotation.MintOutput, error) {
		return rotation.MintOutput{}, &journal.Error{Kind: journal.Halted, Msg: "m", Halt: &unsaid, Next: journal.Next{Say: "wait"}}
	}
	_, e, _ := invoke(t, halts, nil, `{"rotation_id":"q"}`)
	var got journal.Halt
	if err := json.Unmarshal([]byte(e.Message), &got); err != nil || got != *halt || e.Type != "Halted" {
		t.Errorf("a halt: %+v, %v", e, err)
	}
	setup := &journal.Error{Kind: journal.Misconfigured, Field: "MATTER_WINDOW", Msg: "m"}
	if _, e, _ := invoke(t, nil, setup, `{}`); e.Type != "Misconfigured" || !strings.Contains(e.Message, "MATTER_WINDOW") {
		t.Errorf("setup failure: got %+v", e)
	}
}

func TestHandlerLeavesTimeToAnswer(t *testing.T) {
	end := time.Now().Add(10 * time.Second)
	ctx, cancel := context.WithDeadline(t.Context(), end)
	defer cancel()
	var got time.Time
	see := func(ctx context.Context, _ rotation.StepInput) (rotation.MintOutput, error) {
		got, _ = ctx.Deadline()
		return rotation.MintOutput{}, nil
	}
	if _, err := NewHandler(see, nil, slog.New(slog.DiscardHandler))(ctx, json.RawMessage(`{"rotation_id":"r"}`)); err != nil {
		t.Fatal(err)
	}
	if want := end.Add(-answerReserve); !got.Equal(want) {
		t.Errorf("the step's deadline is %v, want %v", got, want)
	}
}

// TestTokenIsNotLogged: the token of the task that waits for a second person is in no log,
// however its field is written, and nothing of an input that cannot be read.
func TestTokenIsNotLogged(t *testing.T) {
	for _, payload := range []string{
		`{"rotation_id":"q2","task_token":"AQC8secret"}`, `{"rotation_id":"q2","Task_Token":"AQC8secret"}`,
		`{"rotation_id":"q2","task_token":"AQC8secret"`, `["AQC8secret"]`,
	} {
		var log bytes.Buffer
		ask := func(context.Context, gates.ApprovalInput) (gates.ApprovalOutput, error) {
			return gates.ApprovalOutput{Plan: "plan"}, nil
		}
		_, err := NewHandler(ask, nil, slog.New(slog.NewTextHandler(&log, nil)))(t.Context(), json.RawMessage(payload))
		if strings.Contains(log.String(), "secret") {
			t.Errorf("%s: %s", payload, log.String())
		}
		if err == nil && !strings.Contains(log.String(), "q2") {
			t.Errorf("%s: the log has nothing of the input: %s", payload, log.String())
		}
	}
}

// TestRowsStayInside: the keys of rows get neither into the log nor into the answer, which
// the execution's history keeps.
func TestRowsStayInside(t *testing.T) {
	rows := []string{"customer=jane@example.com: denied"}
	tally := rotation.Tally{Scanned: 7, Quarantined: 1, Poison: rows}
	fails := func(context.Context, rotation.RewrapInput) (rotation.SweepOutput, error) {
		return rotation.SweepOutput{}, &journal.Error{Kind: journal.RowsQuarantined, Msg: "1 of orders", Rows: rows}
	}
	rewraps := func(context.Context, rotation.RewrapInput) (rotation.SweepOutput, error) {
		return rotation.SweepOutput{Done: true, Tally: tally, Sources: map[string]rotation.Tally{"orders": tally}}, nil
	}
	retires := func(context.Context, rotation.RewrapInput) (rotation.RetireOutput, error) {
		return rotation.RetireOutput{Done: true, Tally: tally}, nil
	}
	for name, said := range map[string]string{"fails": saidBy(t, fails), "rewraps": saidBy(t, rewraps), "retires": saidBy(t, retires)} {
		if strings.Contains(said, "jane") || name != "fails" && !strings.Contains(said, `"quarantined":1`) || name == "fails" && !strings.Contains(said, "1 of orders") {
			t.Errorf("%s: %s", name, said)
		}
	}
}

// saidBy is the answer and the log of a step, as one text.
func saidBy[Out any](t *testing.T, step Step[rotation.RewrapInput, Out]) string {
	t.Helper()
	var log bytes.Buffer
	out, err := NewHandler(step, nil, slog.New(slog.NewTextHandler(&log, nil)))(t.Context(), json.RawMessage(`{"rotation_id":"q2"}`))
	b, e := json.Marshal(out)
	if e != nil {
		t.Fatal(e)
	}
	return fmt.Sprint(string(b), err, log.String())
}
