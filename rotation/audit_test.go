package rotation_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestCauseCutInsideRune is the regression test of a rollback whose cause was cut
// in the middle of a rune: its record had no canonical encoding, and the audit
// chain never verified again.
func TestCauseCutInsideRune(t *testing.T) {
	for cut := range 4 {
		s, _ := at(t, rotation.ExecutionInput{}, kek.Minted)
		in := rotation.RetireInput{
			RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: strings.Repeat("x", cut), Cause: strings.Repeat("𝛀ü—", 100),
		}
		if _, err := s.Retire(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if got := s.record(spring).Err; !utf8.ValidString(got) || len(got) > 500 || len(got) < 490 {
			t.Errorf("recorded %d bytes: %q", len(got), got)
		}
		s.settled()
	}
}

// TestBytesThatAreNoText checks that nothing an operator or a host name brings in
// can spoil the audit chain.
func TestBytesThatAreNoText(t *testing.T) {
	s := newSite(t)
	s.Journal.Actor = "cli/m\xfcller"
	_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{Mode: "emergency", Reason: "schl\xfcssel"}))
	wantKind(t, err, journal.InvalidInput)
	if e := typed(err); e.Field != "reason" {
		t.Errorf("field %q", e.Field)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}
