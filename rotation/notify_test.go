package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
)

// inbox keeps whole messages.
type inbox struct {
	subject, message string
	err              error
}

func (b *inbox) Notify(_ context.Context, subject, message string) error {
	b.subject, b.message = subject, message
	return b.err
}

func notifier(b *inbox) *rotation.Steps { return &rotation.Steps{Deps: rotation.Deps{Notifier: b}} }

func halted(redrives int, in *rotation.Execution) rotation.NotifyInput {
	return rotation.NotifyInput{
		Event: rotation.NotifyHalted, RotationID: spring, Error: "DrainTimeout", Cause: "a lease",
		Execution: rotation.Execution{ID: "arn:x", RedriveCount: redrives}, HaltedIn: in,
	}
}

func TestNotify(t *testing.T) {
	for event, want := range map[string]string{
		rotation.NotifyCompleted: "completed", rotation.NotifyRolledBack: "The pointer never moved", rotation.NotifyRefused: "no key was minted",
	} {
		var b inbox
		out, err := notifier(&b).Notify(t.Context(), rotation.NotifyInput{Event: event, RotationID: spring, Error: "E", Cause: "why"})
		if err != nil || !out.Sent || !strings.Contains(b.message, want) || !strings.Contains(b.message, spring) || !strings.Contains(b.message, "Next: ") {
			t.Errorf("%s: %+v, %v, %q", event, out, err, b.message)
		}
		if len(b.subject) > 100 {
			t.Errorf("%s: the subject has %d characters", event, len(b.subject))
		}
	}
	_, err := notifier(&inbox{}).Notify(t.Context(), rotation.NotifyInput{Event: "done"})
	wantKind(t, err, rotation.InvalidInput)
	_, err = notifier(&inbox{err: errors.New("no answer")}).Notify(t.Context(), rotation.NotifyInput{Event: rotation.NotifyCompleted})
	wantKind(t, err, rotation.Transient)
	if out, err := new(rotation.Steps).Notify(t.Context(), rotation.NotifyInput{Event: rotation.NotifyCompleted}); err != nil || out.Sent {
		t.Errorf("without a topic: %+v, %v", out, err)
	}
}

// TestNotifyHalt checks that a halt fails until the execution is redriven, and
// fails anew when it halts anew.
func TestNotifyHalt(t *testing.T) {
	for _, tc := range []struct {
		now    int
		halted *rotation.Execution
		fails  bool
	}{
		{0, nil, true},
		{0, &rotation.Execution{}, true},
		{1, &rotation.Execution{}, false},
		{1, &rotation.Execution{RedriveCount: 1}, true},
		{2, &rotation.Execution{RedriveCount: 1}, false},
	} {
		var b inbox
		_, err := notifier(&b).Notify(t.Context(), halted(tc.now, tc.halted))
		if !tc.fails {
			if err != nil || b.message != "" {
				t.Errorf("redriven %d: %v, mail %q", tc.now, err, b.message)
			}
			continue
		}
		wantKind(t, err, rotation.Halted)
		if !strings.Contains(b.message, "redrive-execution --execution-arn arn:x") || !strings.Contains(b.message, "DrainTimeout") {
			t.Errorf("mail %q", b.message)
		}
	}
}

// TestNotifyOrphansDoesNotCalm is the regression test of a page that said no row
// was orphaned when verify had just found orphans.
func TestNotifyOrphansDoesNotCalm(t *testing.T) {
	for kind, calm := range map[rotation.Kind]bool{rotation.OrphansFound: false, rotation.DrainTimeout: true, rotation.RowsQuarantined: true} {
		var b inbox
		in := halted(0, nil)
		in.Error = string(kind)
		_, err := notifier(&b).Notify(t.Context(), in)
		wantKind(t, err, rotation.Halted)
		if got := strings.Contains(b.message, "No row is orphaned"); got != calm {
			t.Errorf("%s: %q", kind, b.message)
		}
	}
}

// TestReadFailure: what Step Functions has of a failed execution is read back as it was
// told, a halt from its JSON. An execution of an older version, and a cause that no
// function wrote, are shown as they are.
func TestReadFailure(t *testing.T) {
	function := func(message string) string {
		return string(must(json.Marshal(map[string]string{"errorType": "any", "errorMessage": message})))
	}
	in := halted(0, nil)
	in.Error, in.Cause = string(rotation.KeyInUse), function("KeyInUse: kek-1: a grant: of another team (next: retire it)")
	_, err := notifier(&inbox{}).Notify(t.Context(), in)
	var typed *rotation.Error
	if !errors.As(err, &typed) || typed.Halt == nil || typed.Halt.Rotation != spring || typed.Halt.Next != typed.Next || typed.Next == "" {
		t.Fatalf("%v: %+v", err, typed)
	}
	if want := "Halted: " + spring + ": KeyInUse: kek-1: a grant: of another team (next: retire it) (next: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v", err)
	}
	said := function(string(must(json.Marshal(typed.Halt))))
	for _, tc := range []struct {
		name, cause string
		kind        rotation.Kind
		text        string
	}{
		{"Halted", said, rotation.KeyInUse, "kek-1: a grant: of another team (next: retire it)"},
		{"WindowClosed", function("WindowClosed: window: it is 12:00"), rotation.WindowClosed, "window: it is 12:00"},
		{"Halted", function("Halted: q: Internal: r1 failed: x (next: y)"), rotation.Halted, "q: Internal: r1 failed: x (next: y)"},
		{"Halted", `{"kind":""}`, rotation.Halted, `{"kind":""}`},
		{"States.Timeout", "", "States.Timeout", ""},
		{"ApprovalRejected", "no\x1b[2J\nyes", rotation.ApprovalRejected, audit.Visible("no\x1b[2J; yes")},
		{"Halted", function(`{"kind":"a\u001b","cause":"a\u001b: \u001b[2Jgreen"}`), rotation.Kind(audit.Visible("a\x1b")), audit.Visible("\x1b[2Jgreen")},
	} {
		if kind, text := rotation.ReadFailure(tc.name, tc.cause); kind != tc.kind || text != tc.text {
			t.Errorf("%s %s: %s, %q", tc.name, tc.cause, kind, text)
		}
	}
}
