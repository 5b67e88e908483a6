package rotation_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

const grant = "to lambda.amazonaws.com: Decrypt, GenerateDataKey"

// TestGrants: a grant on an old KEK halts a normal rotation before the KEK is retired,
// with the grant's name; an emergency records it and continues.
func TestGrants(t *testing.T) {
	for _, historic := range []bool{false, true} {
		d, w := watched(t)
		id := d.first
		if historic {
			id = d.past("before")
		}
		d.kms.AddGrant(id, grant)
		d.kms.AddAlias(id, "alias/app")
		e := d.machine.Start(spring, rotation.ExecutionInput{})
		if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "KeyInUse: "+string(id)) || !strings.Contains(e.Failure.Cause, grant) {
			t.Fatalf("ended in %s: %v", e.Final, e.Failure)
		}
		if d.phase(spring, kek.Rewrapped); d.state(id) != kek.Sealed || !d.enabled(id) {
			t.Errorf("the old KEK is %s", d.state(id))
		}
		w.check("halted")
	}
	d, _ := watched(t)
	d.kms.AddGrant(d.first, grant)
	d.kms.AddAlias(d.first, "alias/app")
	d.complete(spring, emergency)
	d.settled()
	if got := d.body("old_kek_retired")["use."+string(d.first)]; !strings.Contains(got, "1 grants, 1 aliases of others: "+grant) {
		t.Errorf("the record says %q", got)
	}
}

// TestPreflightNamesOtherUsers: what the new KEK will not have of the old one's is said
// before the start; a denied look is a note, for it is not a reason to stay.
func TestPreflightNamesOtherUsers(t *testing.T) {
	look := func(s *site) rotation.Check {
		t.Helper()
		in := preflightInput(spring, rotation.ExecutionInput{})
		in.CheckOnly = true
		for _, c := range must(s.Preflight(t.Context(), in)).Checks {
			if c.Name == "KEK's other users" {
				return c
			}
		}
		t.Fatal("no such check")
		return rotation.Check{}
	}
	s := newSite(t)
	if c := look(s); !c.OK || c.Detail != "it has none" {
		t.Errorf("nobody: %+v", c)
	}
	s.kms.AddGrant(s.first, grant)
	s.kms.AddAlias(s.first, "alias/app")
	s.kms.SetMultiRegion(s.first, "us-east-1", "eu-west-1")
	s.kms.SetPolicy(s.first, "AllowPartner")
	c := look(s)
	for _, want := range []string{
		"multi-Region key", "without replicas (eu-west-1, us-east-1)", "will not have: AllowPartner", "1 grants that the new KEK will not have", grant,
		"aliases that stay with the old KEK: alias/app",
	} {
		if !c.OK || !strings.Contains(c.Detail, want) {
			t.Errorf("%+v lacks %q", c, want)
		}
	}
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "KMS.Use" {
			return false, fmt.Errorf("list grants: %w", journal.ErrDenied)
		}
		return true, nil
	})
	if c := look(s); !c.OK || !strings.Contains(c.Detail, "could not be read") {
		t.Errorf("denied: %+v", c)
	}
}

// TestNewKEKIsOfTheSameKind: of a multi-Region KEK the new one is one too.
func TestNewKEKIsOfTheSameKind(t *testing.T) {
	for _, multi := range []bool{true, false} {
		s := newSite(t)
		if multi {
			s.kms.SetMultiRegion(s.first)
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
		if k := must(s.kms.Describe(t.Context(), s.record(spring).NewKEK)); k.Multi != multi {
			t.Errorf("multi-Region %t: the new one is %t", multi, k.Multi)
		}
	}
}

// TestEncryptedBy: a KEK that encrypts a source at rest is disabled in no mode. It is
// named before the start, which an emergency overrides, and halts the retirement.
func TestEncryptedBy(t *testing.T) {
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		for _, historic := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s historic %t", mode, historic), func(t *testing.T) {
				d, w := watched(t)
				id := d.first
				if historic {
					id = d.past("before")
				}
				arn := must(d.kms.Describe(t.Context(), id)).ARN
				d.people.SetEncryptedBy(arn)
				look := preflightInput(spring, in)
				look.CheckOnly = true
				plan, err := d.Preflight(t.Context(), look)
				check := rotation.Check{}
				for _, c := range plan.Checks {
					if c.Name == "encryption at rest" {
						check = c
					}
				}
				if !strings.Contains(check.Detail, "sources[people]") || !strings.Contains(check.Detail, string(id)) || check.OK != (mode == "emergency") {
					t.Errorf("the check: %+v", check)
				}
				if mode == "normal" {
					wantKind(t, err, journal.KeyInUse)
					d.people.SetEncryptedBy("arn:aws:kms:eu-central-1:000000000000:key/kek-9999") // another's, until after the start
				}
				d.before = func(c call) {
					if c.state == "Drain" {
						d.people.SetEncryptedBy(arn)
					}
				}
				e := d.machine.Start(spring, in)
				if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "KeyInUse: sources[people]") {
					t.Fatalf("ended in %s: %v", e.Final, e.Failure)
				}
				if d.phase(spring, kek.Rewrapped); d.state(id) != kek.Sealed || !d.enabled(id) {
					t.Errorf("the old KEK is %s", d.state(id))
				}
				w.check("halted")
				d.people.SetEncryptedBy("")
				d.before = nil
				e.Redrive()
				if e.Status != "SUCCEEDED" {
					t.Fatalf("redriven: %s: %v", e.Final, e.Failure)
				}
				d.settled()
			})
		}
	}
}

// TestWrappingAfterTheSeal: somebody who wraps new data under an old KEK after its fence
// was sealed is not a writer of ours. A normal rotation halts with the operation and its
// event; a person who has looked resumes it. Unwrapping, wrapping before the seal, and
// what the clocks may be apart by tell nothing.
func TestWrappingAfterTheSeal(t *testing.T) {
	wrap := func(s *site) {
		_, _, err := s.kms.GenerateDataKey(t.Context(), s.first, map[string]string{"by": "somebody"})
		s.must(err)
	}
	for name, tc := range map[string]struct {
		in    rotation.ExecutionInput
		after func(s *site)
		halts bool
	}{
		"wrapped":              {rotation.ExecutionInput{}, func(s *site) { s.clock.pass(time.Minute + time.Second); wrap(s) }, true},
		"wrapped in emergency": {emergency, func(s *site) { s.clock.pass(time.Hour); wrap(s) }, false},
		"clocks apart":         {rotation.ExecutionInput{}, func(s *site) { s.clock.pass(time.Minute); wrap(s) }, false},
		"unwrapped": {rotation.ExecutionInput{}, func(s *site) {
			s.clock.pass(time.Hour)
			_, err := s.kms.ReEncrypt(t.Context(), s.first, s.first, s.record(spring).Probes[s.first], map[string]string{"matter:purpose": "canary", "matter:rotation": spring})
			s.must(err)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := at(t, tc.in, kek.Rewrapped)
			s.world.SetHook(nil)
			tc.after(s)
			err := s.retire(spring)
			if !tc.halts {
				if s.must(err); !strings.Contains(s.body("old_kek_retired")["use."+string(s.first)], "last use ") {
					t.Errorf("the record says %v", s.body("old_kek_retired"))
				}
				return
			}
			wantKind(t, err, journal.KeyInUse)
			if !strings.Contains(err.Error(), "GenerateDataKey at 2026-04-01T02:01:01Z, after its fence was sealed (CloudTrail event event-") {
				t.Error(err)
			}
			s.phase(spring, kek.Rewrapped)
			wantKind(t, s.retire(spring), journal.KeyInUse) // a redrive is not a look
			s.resume()
			s.must(s.retire(spring))
			s.advance(spring, tc.in, kek.Completed)
			s.settled()
		})
	}
}

// TestUseDenied: where it cannot be read who else uses an old KEK, a normal rotation
// halts and an emergency records it.
func TestUseDenied(t *testing.T) {
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		s, w := at(t, in, kek.Rewrapped)
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "KMS.Use" {
				return false, fmt.Errorf("list grants: %w", journal.ErrDenied)
			}
			return w.hook(op, args...)
		})
		if err := s.retire(spring); mode == "normal" {
			wantKind(t, err, journal.AccessDenied)
			s.phase(spring, kek.Rewrapped)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if got := s.body("old_kek_retired")["use."+string(s.first)]; !strings.HasPrefix(got, "overridden: it could not be read") {
			t.Errorf("the record says %q", got)
		}
	}
}

// TestDeniedDisable: a KMS key whose disabling AWS denies is not done with: retire fails
// each time, verify finds the key enabled, and once it may be disabled the rotation goes
// on.
func TestDeniedDisable(t *testing.T) {
	for _, which := range []int{0, 1} { // the pointer's, a historic one
		d, w := watched(t)
		olds := []kek.ID{d.first, d.past("before")}
		d.clock.pass(tagDelay)
		denied := true
		d.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "KMS.Disable" && args[0] == olds[which] && denied {
				return false, fmt.Errorf("disable key: %w", journal.ErrDenied)
			}
			return w.hook(op, args...)
		})
		e := d.machine.Start(spring, rotation.ExecutionInput{})
		if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "AccessDenied: KMS DisableKey") {
			t.Fatalf("ended in %s: %v", e.Final, e.Failure)
		}
		if d.phase(spring, kek.KEKRetired); d.state(olds[which]) != kek.Retired || !d.enabled(olds[which]) {
			t.Errorf("the old KEK is %s, enabled %t", d.state(olds[which]), d.enabled(olds[which]))
		}
		wantKind(t, d.retire(spring), journal.AccessDenied)
		wantKind(t, d.verify(spring), journal.Transient)
		denied = false
		e.Redrive()
		if e.Status != "SUCCEEDED" {
			t.Fatalf("redriven: %s: %v", e.Final, e.Failure)
		}
		d.settled()
	}
}
