package notify

import (
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Severity says how soon somebody must act.
type Severity string

// The severities of messages.
const (
	Critical Severity = "critical" // now
	Warning  Severity = "warning"  // in working hours
	Info     Severity = "info"     // never
)

// runbook is where the sections are that messages link to.
const runbook = "https://github.com/matter-ops/kms-rotation/blob/main/docs/runbook.md#"

// messages has, of each event, what happened, how soon somebody must act, the section of the
// runbook, and what is safe. What happened is also the detail-type of an event on an event bus,
// which rules and the permissions of template.yaml name: another text is another [SchemaVersion].
var messages = map[string]struct {
	what          string
	severity      Severity
	section, safe string
}{
	journal.NotifyStarted:    {"KEK rotation started", Info, "look", "Reads and writes continue. Until the switch a failure rolls back by itself; after it the rotation only goes forward, and a failure stops it until a person continues it."},
	journal.NotifyCompleted:  {"KEK rotation completed", Info, "validate", "The last scan found every row under the new KEK; the old KMS key is disabled, not deleted."},
	journal.NotifyRolledBack: {"KEK rotation rolled back before the switch", Warning, "rolled-back", "The pointer never moved. The old KEK wraps as before; the new one is retired. No customer is affected."},
	journal.NotifyRefused:    {"KEK rotation refused by preflight", Warning, "pre-flight-t-7-days", "Nothing was changed; no key was minted."},
	journal.NotifyHalted:     {"KEK rotation halted", Critical, "halted-after-the-switch", "A rotation deletes no row and no KMS key, and disables a KEK only after a scan that found no row under it. What the error names is what it found to be wrong."},
	journal.NotifyDrilled:    {"KEK rotation drill passed", Info, "pre-flight-t-7-days", "The pointer never moved; the key that was minted for the drill is retired and disabled."},
	journal.NotifyApproval:   {"KEK rotation waits for a second person", Warning, "a-second-person", "The pointer has not moved. Without an answer the rotation rolls back by itself."},
	journal.NotifyAnnounced:  {"KEK rotation announced", Info, "pre-flight-t-7-days", "Nothing was started; the rotation starts in the window, and refuses to outside of it."},
	journal.NotifyGeneration: {"Audit chain continues past a foreign object", Warning, "the-audit-chain-has-a-new-generation", "No record is lost, and nothing waits: the chain continues in a new generation, and verification names the object."},
	journal.NotifyHealthRed:  {"KMS canary failed", Critical, "pre-flight-t-7-days", "No key was changed. Rows may not open or be written while KMS does not answer; nothing is lost."},
}

// rateSeverity says how soon somebody must act.
func rateSeverity(in journal.Notice) Severity {
	if in.Missing != "" {
		return Warning
	}
	return messages[in.Event].severity
}

// findSection is the section of the runbook for an event.
func findSection(in journal.Notice) string {
	if in.Missing != "" {
		return "a-rotation-is-completed-but-rows-are-missing"
	}
	return messages[in.Event].section
}

// describeSafety is what a person need not fear.
func describeSafety(in journal.Notice) string {
	switch {
	case in.Error == string(journal.OrphansFound):
		return "The rows named above do not open: their KEK is not usable. Nothing is lost: no KMS key was deleted. All other rows read and write."
	case in.Missing != "":
		return "The last scan found every row that is there under the new KEK; the old KMS key is disabled, not deleted, so a backup still opens once it is enabled. " +
			"Whether the rows were deleted on purpose nobody knows but the owner of the table."
	case in.Event == journal.NotifyStarted && in.Mode == string(kek.Emergency):
		return "Reads and writes continue. It does not roll back to a KEK that may be compromised: if the new one fails it mints another."
	default:
		return messages[in.Event].safe
	}
}

// ComposeMessage is what operators read of an event: what happened, what is safe, and what
// to do next.
func ComposeMessage(in journal.Notice) (subject, body string) {
	var b strings.Builder
	kind, cause := journal.ReadFailure(in.Error, in.Cause)
	what := messages[in.Event].what
	if in.Missing != "" {
		what += ", but rows are missing"
	}
	fmt.Fprintf(&b, "%s.\n\n", what)
	for _, line := range []struct{ name, text string }{
		{"Rotation", in.RotationID}, {"Execution", in.Execution.ID}, {"Drill", in.Drill}, {"Detail", in.Detail}, {"Missing", in.Missing}, {"Plan", in.Plan}, {"Error", string(kind)}, {"", cause},
	} {
		switch {
		case line.text == "":
		case line.name == "":
			fmt.Fprintf(&b, "           %s\n", audit.Visible(line.text))
		default:
			fmt.Fprintf(&b, "%-10s %s\n", line.name+":", audit.Visible(line.text))
		}
	}
	fmt.Fprintf(&b, "\nWhat is safe: %s\nNext: %s\n", describeSafety(in), advice.Command(in.NextStep()))
	return what, b.String()
}
