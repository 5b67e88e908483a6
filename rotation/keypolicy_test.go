package rotation_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// mintedAs changes the key policy of each KEK as soon as it is minted, up to a number of
// them.
func mintedAs(s *site, upTo int, sid string) {
	n := 0
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.PolicyDifferences" && n < upTo {
			n++
			s.kms.SetPolicy(args[0].(kek.ID), sid)
		}
		return true, nil
	})
}

// TestForeignKeyPolicy: a new KEK with a key policy that is not mint's is refused before the
// switch. A normal rotation rolls back, an emergency mints another one.
func TestForeignKeyPolicy(t *testing.T) {
	s := newSite(t)
	mintedAs(s, 1, "Destroy")
	was := s.pointer()
	e := newDriver(s).machine.Start(spring, rotation.ExecutionInput{})
	if e.Status != "FAILED" || e.Final != "RolledBack" || e.Failure.Name != string(journal.KeyUnusable) || !strings.Contains(e.Failure.Cause, "it has Destroy") {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	if r := s.record(spring); s.pointer() != was || s.state(r.NewKEK) != kek.Retired || s.enabled(r.NewKEK) {
		t.Errorf("pointer %+v, new KEK %s", s.pointer(), s.state(r.NewKEK))
	}
	s.world.SetHook(nil)
	s.settled()

	s = newSite(t)
	mintedAs(s, 1, "Destroy")
	newDriver(s).complete(spring, rotation.ExecutionInput{Mode: "emergency", Reason: "leaked"})
	if r := s.record(spring); r.Attempt != 2 {
		t.Errorf("an emergency has ended at attempt %d", r.Attempt)
	}
	s.world.SetHook(nil)
	s.settled()
}

// TestEmergencyOnAForeignKeyPolicy: who changes the policy of each new key, or denies that
// it is read, keeps no emergency on the KEK that it leaves. The audit log says so.
func TestEmergencyOnAForeignKeyPolicy(t *testing.T) {
	urgent := rotation.ExecutionInput{Mode: "emergency", Reason: "leaked"}
	s := newSite(t)
	mintedAs(s, limit, "Destroy")
	newDriver(s).complete(spring, urgent)
	if r, noted := s.record(spring), s.body("dual_unwrap_passed")["key_policy"]; r.Attempt != limit || !strings.Contains(noted, "it has Destroy") {
		t.Errorf("an emergency has ended at attempt %d, and noted %q", r.Attempt, noted)
	}
	s.world.SetHook(nil)
	s.settled()

	for err, attempt := range map[error]int{
		journal.ErrDenied: 1, journal.ErrRejected: 1,
		errors.New("statement 1 is not an object"): limit, // a policy that is not understood
	} {
		s := newSite(t)
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.PolicyDifferences" {
				return false, err
			}
			return true, nil
		})
		newDriver(s).complete(spring, urgent)
		if r, noted := s.record(spring), s.body("dual_unwrap_passed")["key_policy"]; r.Attempt != attempt || !strings.HasPrefix(noted, "not read: ") {
			t.Errorf("%v: an emergency has ended at attempt %d, and noted %q", err, r.Attempt, noted)
		}
		s.world.SetHook(nil)
		s.settled()
	}
}

// TestKeyPolicyUnknown: where KMS does not answer nothing is concluded.
func TestKeyPolicyUnknown(t *testing.T) {
	for kind, err := range map[journal.Kind]error{
		journal.Transient: fmt.Errorf("get: %w", journal.ErrDenied), journal.Rejected: fmt.Errorf("get: %w", journal.ErrRejected),
	} {
		s := newSite(t)
		s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.PolicyDifferences" {
				return false, err
			}
			return true, nil
		})
		_, got := s.DualUnwrap(t.Context(), rotation.StepInput{RotationID: spring})
		wantKind(t, got, kind) // a denial of so young a key is repeated
		s.phase(spring, kek.Minted)
	}
}

// TestForeignKeyPolicyOfALastAttempt: only an emergency continues with a policy that is not
// mint's. A normal rotation has one attempt, and refuses it.
func TestForeignKeyPolicyOfALastAttempt(t *testing.T) {
	for _, foreign := range []bool{true, false} {
		s := newSite(t)
		s.Config.MaxMints = 1
		s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
		s.must(s.rehearse(spring))
		if foreign {
			mintedAs(s, 1, "Destroy")
		} else {
			s.world.SetHook(away("KMS.PolicyDifferences"))
		}
		_, err := s.DualUnwrap(t.Context(), input(spring))
		if want := map[bool]journal.Kind{true: journal.KeyUnusable, false: journal.Transient}[foreign]; typed(err).Kind != want {
			t.Errorf("foreign %t: %v", foreign, err)
		}
		s.phase(spring, kek.Minted)
	}
}
