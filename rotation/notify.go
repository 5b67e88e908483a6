package rotation

import (
	"context"
	"fmt"
	"strings"
)

// Notifier tells people.
type Notifier interface {
	// Notify sends one message; subject is at most 100 ASCII characters.
	Notify(ctx context.Context, subject, message string) error
}

// Notify tells people what happened, what is safe and what to do next. A halt is
// told and then returned as the error [Halted], so that the execution fails in
// this very task and a redrive re-enters it; then it returns success and the
// rotation goes on.
func (s *Steps) Notify(ctx context.Context, in NotifyInput) (NotifyOutput, error) {
	if in.Event == NotifyHalted && in.HaltedIn != nil && in.Execution.RedriveCount > in.HaltedIn.RedriveCount {
		return NotifyOutput{}, nil
	}
	subject, body, err := in.message()
	if err != nil {
		return NotifyOutput{}, err
	}
	var out NotifyOutput
	if s.Notifier != nil {
		if err := s.Notifier.Notify(ctx, subject, body); err != nil {
			return out, unavailable("notification", err)
		}
		out.Sent = true
	}
	if in.Event == NotifyHalted {
		return out, &Error{Kind: Halted, Field: in.RotationID, Msg: in.Error + ": " + in.Cause, Next: in.next()}
	}
	return out, nil
}

var messages = map[string]struct{ what, safe string }{
	NotifyCompleted:  {"KEK rotation completed", "Every row is under the new KEK; the old KMS key is disabled, not deleted."},
	NotifyRolledBack: {"KEK rotation rolled back before the switch", "The pointer never moved. The old KEK wraps as before; the new one is retired. No customer is affected."},
	NotifyRefused:    {"KEK rotation refused by preflight", "Nothing was changed; no key was minted."},
	NotifyHalted:     {"KEK rotation halted", "No row is orphaned: every KEK that a row names is still enabled. Reads and writes go on."},
}

func (in NotifyInput) message() (subject, body string, err error) {
	m, ok := messages[in.Event]
	if !ok {
		return "", "", invalid("event", fmt.Sprintf("%q is unknown", in.Event), "use completed, rolledback, refused or halted")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\nRotation:  %s\nExecution: %s\n", m.what, in.RotationID, in.Execution.ID)
	if in.Error != "" {
		fmt.Fprintf(&b, "Error:     %s\n           %s\n", in.Error, in.Cause)
	}
	safe := m.safe
	if in.Error == string(OrphansFound) {
		safe = "The rows named above do not open: their KEK is not usable. Nothing is lost: no KMS key was deleted. All other rows read and write."
	}
	fmt.Fprintf(&b, "\nWhat is safe: %s\nNext: %s\n", safe, in.next())
	return m.what, b.String(), nil
}

func (in NotifyInput) next() string {
	switch in.Event {
	case NotifyHalted:
		return fmt.Sprintf(`mend the cause, then: aws stepfunctions redrive-execution --execution-arn %s; `+
			`or start an execution with {"resume": %q}`, in.Execution.ID, in.RotationID)
	case NotifyRolledBack, NotifyRefused:
		return "mend the cause, then start the rotation again"
	default:
		return "nothing; matter ops kms-status shows the pointer and the KEKs"
	}
}
