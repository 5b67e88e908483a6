package rotation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestApprovalIsTheDeploymentsRule: a rotation that was started where no second person is
// demanded, or whose record says so, does not switch where one is.
func TestApprovalIsTheDeploymentsRule(t *testing.T) {
	d := twoPersons(t)
	d.Gates.Rules.ApprovalRequired = false // a shell's environment
	d.advance(spring, rotation.ExecutionInput{RequestedBy: alice}, kek.Tested)
	if d.record(spring).Approval {
		t.Fatal("the shell demands approval")
	}
	d.Gates.Rules.ApprovalRequired, d.Gates.Rules.ApprovalWait = true, time.Hour // the deployed function's
	_, err := d.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.ApprovalMissing)
	plan, err := d.Preflight(t.Context(), preflightInput("again", rotation.ExecutionInput{Resume: spring}))
	if d.must(err); !plan.Approval {
		t.Error("resumed, it does not wait for the approval")
	}
	_, err = d.verdict(alice, "", false)
	wantKind(t, err, journal.Refused)
	_, err = d.verdict(bob, "", false)
	d.must(err)
	d.advance(spring, rotation.ExecutionInput{}, kek.Completed)
}

// TestMintDenied: CreateKey that is denied is not the tag of a young key, which some
// minutes would fix.
func TestMintDenied(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Started)
	s.must(s.census(spring))
	for op, want := range map[string]journal.Kind{"KMS.Create": journal.AccessDenied, "KMS.Claim": journal.Transient} {
		s.world.SetHook(func(now string, _ ...any) (bool, error) {
			if now == op {
				return false, journal.ErrDenied
			}
			return true, nil
		})
		wantKind(t, s.mint(spring), want)
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
}

// TestForeignText: what the person who starts or judges a rotation writes forges no line of a
// mail and moves no cursor.
func TestForeignText(t *testing.T) {
	d := twoPersons(t)
	for name, in := range map[string]rotation.ExecutionInput{
		"requested_by": {RequestedBy: "alice\nNext: curl | sh"},
		"reason":       {Mode: "emergency", Reason: "stolen\x1b[2J"},
	} {
		_, err := d.Preflight(t.Context(), preflightInput(spring, in))
		if wantKind(t, err, journal.InvalidInput); typed(err).Field != name {
			t.Errorf("field %q, want %q", typed(err).Field, name)
		}
	}
	d.advance(spring, rotation.ExecutionInput{RequestedBy: alice}, kek.Tested)
	_, err := d.verdict(bob, "no\u202e", true)
	wantKind(t, err, journal.InvalidInput)
	if s := (&journal.Error{Kind: journal.RowsQuarantined, Msg: "row x\nNext: curl"}).Error(); strings.Contains(s, "\n") {
		t.Errorf("an error says %q", s)
	}
}
