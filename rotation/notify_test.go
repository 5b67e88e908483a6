package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// inbox keeps whole messages.
type inbox struct {
	subject, message string
	err              error
}

func (b *inbox) TellPeople(_ context.Context, n journal.Notice) error {
	b.subject, b.message = notify.ComposeMessage(n)
	return b.err
}

func notifier(b *inbox) *rotation.Steps {
	return &rotation.Steps{Journal: &journal.Journal{Notifier: b}}
}

func halted(redrives int, in *journal.Execution) journal.Notice {
	return journal.Notice{
		Event: journal.NotifyHalted, RotationID: spring, Error: "DrainTimeout", Cause: "a lease",
		Execution: journal.Execution{ID: "arn:x", RedriveCount: redrives}, HaltedIn: in,
	}
}

func TestNotify(t *testing.T) {
	for event, want := range map[string]string{
		journal.NotifyCompleted: "completed", journal.NotifyRolledBack: "The pointer never moved", journal.NotifyRefused: "no key was minted",
	} {
		var b inbox
		out, err := notifier(&b).Notify(t.Context(), journal.Notice{Event: event, RotationID: spring, Error: "E", Cause: "why"})
		if err != nil || !out.Sent || !strings.Contains(b.message, want) || !strings.Contains(b.message, spring) || !strings.Contains(b.message, "Next: ") {
			t.Errorf("%s: %+v, %v, %q", event, out, err, b.message)
		}
		if len(b.subject) > 100 {
			t.Errorf("%s: the subject has %d characters", event, len(b.subject))
		}
	}
	_, err := notifier(&inbox{}).Notify(t.Context(), journal.Notice{Event: "done"})
	wantKind(t, err, journal.InvalidInput)
	_, err = notifier(&inbox{err: errors.New("no answer")}).Notify(t.Context(), journal.Notice{Event: journal.NotifyCompleted})
	wantKind(t, err, journal.Transient)
	if out, err := (&rotation.Steps{Journal: &journal.Journal{}}).Notify(t.Context(), journal.Notice{Event: journal.NotifyCompleted}); err != nil || out.Sent {
		t.Errorf("without a topic: %+v, %v", out, err)
	}
}

// TestNotifyHalt checks that a halt fails until the execution is redriven, and
// fails again when it halts again.
func TestNotifyHalt(t *testing.T) {
	for _, tc := range []struct {
		now    int
		halted *journal.Execution
		fails  bool
	}{
		{0, nil, true},
		{0, &journal.Execution{}, true},
		{1, &journal.Execution{}, false},
		{1, &journal.Execution{RedriveCount: 1}, true},
		{2, &journal.Execution{RedriveCount: 1}, false},
	} {
		var b inbox
		_, err := notifier(&b).Notify(t.Context(), halted(tc.now, tc.halted))
		if !tc.fails {
			if err != nil || b.message != "" {
				t.Errorf("redriven %d: %v, mail %q", tc.now, err, b.message)
			}
			continue
		}
		wantKind(t, err, journal.Halted)
		if !strings.Contains(b.message, "redrive-execution --execution-arn arn:x") || !strings.Contains(b.message, "DrainTimeout") {
			t.Errorf("mail %q", b.message)
		}
	}
}

// TestNotifyOrphansDoesNotCalm is the regression test of a page that said no row
// was orphaned when verify had just found orphans.
func TestNotifyOrphansDoesNotCalm(t *testing.T) {
	for kind, calm := range map[journal.Kind]bool{journal.OrphansFound: false, journal.DrainTimeout: true, journal.RowsQuarantined: true} {
		var b inbox
		in := halted(0, nil)
		in.Error = string(kind)
		_, err := notifier(&b).Notify(t.Context(), in)
		wantKind(t, err, journal.Halted)
		if got := strings.Contains(b.message, "disables a KEK only after a scan that found no row under it"); got != calm {
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
	in.Error, in.Cause = string(journal.KeyInUse), function("KeyInUse: kek-1: a grant: of another team (next: retire it)")
	_, err := notifier(&inbox{}).Notify(t.Context(), in)
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Halt == nil || typed.Halt.Rotation != spring || typed.Next != (journal.Next{Do: journal.ResumeRotation, Rotation: spring, Execution: "arn:x"}) {
		t.Fatalf("%v: %+v", err, typed)
	}
	if want := "Halted: " + spring + ": KeyInUse: kek-1: a grant: of another team (next: retire it)"; err.Error() != want {
		t.Errorf("%v", err)
	}
	said := function(string(must(json.Marshal(typed.Halt))))
	for _, tc := range []struct {
		name, cause string
		kind        journal.Kind
		text        string
	}{
		{"Halted", said, journal.KeyInUse, "kek-1: a grant: of another team (next: retire it)"},
		{"WindowClosed", function("WindowClosed: window: it is 12:00"), journal.WindowClosed, "window: it is 12:00"},
		{"Halted", function("Halted: q: Internal: r1 failed: x (next: y)"), journal.Halted, "q: Internal: r1 failed: x (next: y)"},
		{"Halted", `{"kind":""}`, journal.Halted, `{"kind":""}`},
		{"States.Timeout", "", "States.Timeout", ""},
		{"ApprovalRejected", "no\x1b[2J\nyes", journal.ApprovalRejected, audit.Visible("no\x1b[2J; yes")},
		{"Halted", function(`{"kind":"a\u001b","cause":"a\u001b: \u001b[2Jgreen"}`), journal.Kind(audit.Visible("a\x1b")), audit.Visible("\x1b[2Jgreen")},
	} {
		if kind, text := journal.ReadFailure(tc.name, tc.cause); kind != tc.kind || text != tc.text {
			t.Errorf("%s %s: %s, %q", tc.name, tc.cause, kind, text)
		}
	}
}
