package notify_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestMissingIsTold: who reads that a rotation completed reads which rows are missing, and
// what to do about it, but is not sent after rows that are there.
func TestMissingIsTold(t *testing.T) {
	in := journal.Notice{Event: journal.NotifyCompleted, RotationID: "id", Missing: "orders: the number of rows fell from 9 to 2"}
	subject, body := notify.ComposeMessage(in)
	want := `KEK rotation completed, but rows are missing.

Rotation:  id
Missing:   orders: the number of rows fell from 9 to 2

What is safe: The last scan found every row that is there under the new KEK; the old KMS key is disabled, not deleted, so a backup still opens once it is enabled. ` +
		`Whether the rows were deleted on purpose nobody knows but the owner of the table.
Next: ask the owner of the table who deleted them; matter ops report --rotation id has the rows of each pass; ` +
		`if nobody did, matter ops restore-rows brings them back from a backup
`
	if d := cmp.Diff("KEK rotation completed, but rows are missing\n"+want, subject+"\n"+body); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	in.Missing = ""
	if got := in.NextStep(); got.Do != journal.ShowPointer {
		t.Errorf("nothing is missing, and next is %q", got)
	}
}

// TestEveryEventHasAMessage: each event that people are told of has a subject that SNS
// takes, says what is safe, and has a next step.
func TestEveryEventHasAMessage(t *testing.T) {
	for _, event := range []string{
		journal.NotifyStarted, journal.NotifyCompleted, journal.NotifyRolledBack, journal.NotifyRefused, journal.NotifyHalted, journal.NotifyDrilled,
		journal.NotifyApproval, journal.NotifyAnnounced, journal.NotifyHealthRed, journal.NotifyGeneration,
	} {
		subject, body := notify.ComposeMessage(journal.Notice{Event: event})
		if subject == "" || len(subject) > 100 || strings.Contains(body, "safe: \n") || strings.Contains(body, "Next: \n") {
			t.Errorf("%s: %q, %q", event, subject, body)
		}
	}
}
