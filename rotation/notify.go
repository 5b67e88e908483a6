package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Notifier tells people.
type Notifier interface {
	// Notify sends one message; subject is at most 100 ASCII characters.
	Notify(ctx context.Context, subject, message string) error
}

// Notify tells people what happened, what is safe and what to do next, and brings an
// announced window to its stage. A halt is told and then returned as the error
// [Halted], so that the execution fails in this very task and a redrive re-enters it;
// then it returns success and the rotation goes on. A status page that cannot be
// reached holds nothing up.
func (s *Steps) Notify(ctx context.Context, in NotifyInput) (NotifyOutput, error) {
	if in.Event == NotifyHalted && in.HaltedIn != nil && in.Execution.RedriveCount > in.HaltedIn.RedriveCount {
		return NotifyOutput{}, nil
	}
	if in.Event != NotifyVerifying {
		if err := s.tell(ctx, in); err != nil {
			return NotifyOutput{}, err
		}
	}
	out := NotifyOutput{Sent: s.Notifier != nil && in.Event != NotifyVerifying}
	if stage := stages[in.Event]; stage != "" && in.Label != "" && in.Drill == "" {
		out.Untold = s.moveWindow(ctx, in.Label, stage)
	}
	if in.Event == NotifyHalted {
		h := &Halt{Rotation: in.RotationID, Kind: Kind(in.Error), Cause: functionMessage(in.Cause), Next: in.next()}
		return out, &Error{Kind: Halted, Field: h.Rotation, Msg: strings.TrimSuffix(in.Error+": "+strings.TrimPrefix(h.Cause, in.Error+": "), ": "), Next: h.Next, Halt: h}
	}
	return out, nil
}

// functionMessage is the error of a function in words. Lambda gives it to a state machine as
// JSON (Lambda developer guide, "Function errors in Step Functions"); another cause is
// returned as it is.
func functionMessage(cause string) string {
	var function struct {
		Message string `json:"errorMessage"`
	}
	if json.Unmarshal([]byte(cause), &function) == nil && function.Message != "" {
		return function.Message
	}
	return cause
}

// ReadFailure reads what an execution failed with, by the error name and cause that Step
// Functions has of it: the kind of the step's error, and its text. For a halt they are
// those of the error that it halted on. Anyone who may fail a task has written the cause:
// both are in one line, without what a terminal would act on.
func ReadFailure(name, cause string) (kind Kind, text string) {
	kind, text = Kind(name), functionMessage(cause)
	var h Halt
	if kind == Halted && json.Unmarshal([]byte(text), &h) == nil && h.Kind != "" {
		kind, text = h.Kind, h.Cause
	}
	kind = Kind(audit.Visible(string(kind)))
	text = audit.Visible(strings.ReplaceAll(text, "\n", "; "))
	return kind, strings.TrimPrefix(text, string(kind)+": ")
}

// windowLasts is how long after its end a window's announcement still stands for a
// rotation: as long as the state machine may run.
const windowLasts = MachineLasts

// tellAtMost is how long customers' pages may keep a step that only notifies.
const tellAtMost = 15 * time.Second

// moveWindow brings the window that was announced for a label, if one was, to a stage.
// It returns whom it could not reach, and why.
func (s *Steps) moveWindow(ctx context.Context, label string, stage Stage) (untold []string) {
	if len(s.Announcers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellAtMost)
	defer cancel()
	a, err := s.Announcements.LoadAnnouncement(ctx, label)
	if err != nil {
		return []string{"announcement: " + err.Error()}
	}
	if s.Now().After(a.To.Add(windowLasts)) { // also if there is none
		return nil
	}
	for _, n := range s.Announcers {
		if err := n.Tell(ctx, a, stage); err != nil {
			untold = append(untold, n.Name()+": "+err.Error())
		}
	}
	return untold
}

// tell sends the message of an event.
func (s *Steps) tell(ctx context.Context, in NotifyInput) error {
	subject, body, err := in.message()
	if err != nil || s.Notifier == nil {
		return err
	}
	if err := s.Notifier.Notify(ctx, subject, body); err != nil {
		return unavailable("notification", err)
	}
	return nil
}

// stages are where an event brings an announced window. A rotation that was rolled
// back is over for customers as well.
var stages = map[string]Stage{
	NotifyStarted: StageInProgress, NotifyVerifying: StageVerifying, NotifyCompleted: StageCompleted, NotifyRolledBack: StageCompleted,
}

var messages = map[string]struct{ what, safe string }{
	NotifyStarted:    {"KEK rotation started", "Until the switch nothing depends on the new KEK, and a failure rolls back by itself."},
	NotifyCompleted:  {"KEK rotation completed", "Every row is under the new KEK; the old KMS key is disabled, not deleted."},
	NotifyRolledBack: {"KEK rotation rolled back before the switch", "The pointer never moved. The old KEK wraps as before; the new one is retired. No customer is affected."},
	NotifyRefused:    {"KEK rotation refused by preflight", "Nothing was changed; no key was minted."},
	NotifyHalted:     {"KEK rotation halted", "No row is orphaned: every KEK that a row names is still enabled. Reads and writes go on."},
	NotifyDrilled:    {"KEK rotation drill passed", "The pointer never moved; the key that was minted for the drill is retired and disabled."},
	NotifyApproval:   {"KEK rotation waits for a second person", "The pointer has not moved. Without an answer the rotation rolls back by itself."},
	NotifyAnnounced:  {"KEK rotation announced", "Nothing was started; the rotation starts in the window, and refuses to outside of it."},
	NotifyGeneration: {"Audit chain goes on past a foreign object", "No record is lost, and nothing waits: the chain goes on in a new generation, and verification names the object."},
	NotifyHealthRed:  {"KMS canary failed", "No key was changed. Rows may not open or be written while KMS does not answer; nothing is lost."},
}

// safe is what a person need not fear.
func (in NotifyInput) safe() string {
	switch {
	case in.Error == string(OrphansFound):
		return "The rows named above do not open: their KEK is not usable. Nothing is lost: no KMS key was deleted. All other rows read and write."
	case in.Missing != "":
		return "Every row that is there is under the new KEK; the old KMS key is disabled, not deleted, so a backup still opens once it is enabled. " +
			"Whether the rows were deleted on purpose nobody knows but the owner of the table."
	case in.Event == NotifyStarted && in.Mode == string(kek.Emergency):
		return "Reads and writes go on. It does not roll back to a KEK that may be compromised: if the new one fails it mints another."
	default:
		return messages[in.Event].safe
	}
}

func (in NotifyInput) message() (subject, body string, err error) {
	m, ok := messages[in.Event]
	if !ok {
		return "", "", invalid("event", fmt.Sprintf("%q is unknown", in.Event), "use one of events/notify*.json")
	}
	if in.Missing != "" && in.Event != NotifyCompleted {
		return "", "", invalid("rows_missing", "it is of a completed rotation", "leave it out")
	}
	var b strings.Builder
	what := m.what
	if in.Missing != "" {
		what += ", but rows are missing"
	}
	fmt.Fprintf(&b, "%s.\n\n", what)
	for _, line := range []struct{ name, text string }{
		{"Rotation", in.RotationID}, {"Execution", in.Execution.ID}, {"Drill", in.Drill}, {"Detail", in.Detail}, {"Missing", in.Missing}, {"Plan", in.Plan}, {"Error", in.Error}, {"", in.Cause},
	} {
		switch {
		case line.text == "":
		case line.name == "":
			fmt.Fprintf(&b, "           %s\n", audit.Visible(line.text))
		default:
			fmt.Fprintf(&b, "%-10s %s\n", line.name+":", audit.Visible(line.text))
		}
	}
	fmt.Fprintf(&b, "\nWhat is safe: %s\nNext: %s\n", in.safe(), in.next())
	return what, b.String(), nil
}

// next is the exact command, or what to mend before it.
func (in NotifyInput) next() string {
	switch in.Event {
	case NotifyCompleted:
		if in.Missing != "" {
			return fmt.Sprintf("ask the owner of the table who deleted them; matter ops report --rotation %s has the rows of each pass; "+
				"if nobody did, matter ops restore-rows brings them back from a backup", in.RotationID)
		}
		return nextStatus
	case NotifyStarted:
		return "nothing; matter ops kms-rotate --watch --execution " + in.Execution.Name + " follows it"
	case NotifyHalted:
		return fmt.Sprintf(`mend the cause, then: matter ops resume --rotation %s; without the tool: aws stepfunctions redrive-execution --execution-arn %s; `+
			`or start an execution with {"resume": %q}`, in.RotationID, in.Execution.ID, in.RotationID)
	case NotifyRolledBack:
		return "mend the cause, then: matter ops kms-rotate --watch"
	case NotifyRefused:
		return "matter ops kms-preflight names every check; mend the cause, then: matter ops kms-rotate --watch"
	case NotifyApproval:
		return fmt.Sprintf("whoever did not ask for it: matter ops approve --rotation %s --plan %s; or matter ops reject --rotation %s --plan %s --reason WHY",
			in.RotationID, in.Plan, in.RotationID, in.Plan)
	case NotifyDrilled:
		return "nothing; matter ops drill status says until when it counts"
	case NotifyAnnounced:
		return "matter ops kms-preflight, and mend what it names before the window"
	case NotifyGeneration:
		return "matter ops audit verify names the object; find out who put it there, or who set the control table back"
	case NotifyHealthRed:
		return "read the error; if KMS is at fault see the AWS Health Dashboard, else: matter ops kms-status, then aws kms describe-key"
	default:
		return nextStatus
	}
}

const nextStatus = "nothing; matter ops kms-status shows the pointer and the KEKs"
