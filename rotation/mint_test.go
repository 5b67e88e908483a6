package rotation_test

import (
	"fmt"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// TestStaleMintSparesNextAttempt lets the mint of an attempt that is over wake up
// between the making and the registration of the next attempt's key: its clean-up
// must not take that key for a stray.
func TestStaleMintSparesNextAttempt(t *testing.T) {
	s, _ := at(t, emergency, kek.Started)
	asleep, wake, done := make(chan struct{}), make(chan struct{}), make(chan error)
	var stale kek.ID
	slept := false
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		switch {
		case op == "KMS.Describe" && stale == "" && args[0] != s.first:
			stale = args[0].(kek.ID)
		case op == "Store.Load" && stale != "" && !slept: // it has found its key good and goes to sleep
			slept = true
			close(asleep)
			<-wake
		case op == "KMS.Claim" && args[1] == 2 && args[2] != kek.ID(""):
			close(wake)
			if err := <-done; typed(err).Kind != journal.Refused {
				t.Errorf("the stale mint: %v", err)
			}
		}
		return true, nil
	})
	go func() {
		_, err := s.Mint(t.Context(), input(spring))
		done <- err
	}()
	<-asleep
	remint := rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: 1}
	if _, err := s.Retire(t.Context(), remint); err != nil {
		t.Fatal(err)
	}
	out, err := s.Mint(t.Context(), input(spring))
	if err != nil || out.Attempt != 2 || out.NewKEK == string(stale) {
		t.Fatalf("%+v, %v", out, err)
	}
	if s.enabled(stale) || !s.enabled(kek.ID(out.NewKEK)) {
		t.Errorf("the stale key is enabled: %t, the new one: %t", s.enabled(stale), s.enabled(kek.ID(out.NewKEK)))
	}
	s.world.SetHook(nil)
	s.advance(spring, emergency, kek.Completed)
	s.settled()
}

// TestStrayWithAlias: mint and verify may disable no key with an alias, for the KEK in use
// has one. A stray that has one holds neither up, and retire disables it.
func TestStrayWithAlias(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Started)
	stray := must(s.kms.Create(t.Context(), spring, 7, "stray", keyring.Key{}))
	denied := true
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.Disable" && args[0] == stray.ID && denied {
			return false, fmt.Errorf("disable key: %w", journal.ErrDenied)
		}
		return w.hook(op, args...)
	})
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	if !s.enabled(stray.ID) {
		t.Error("the stray is disabled though that was denied")
	}
	s.clock.pass(tagDelay)
	wantKind(t, s.retire(spring), journal.AccessDenied) // a permission of retire's that is missing is not a stray's
	denied = false
	s.must(s.retire(spring))
	if s.enabled(stray.ID) {
		t.Error("retire left the stray enabled")
	}
	denied = true
	s.kms.Enable(stray.ID)
	s.must(s.verify(spring))
	s.phase(spring, kek.Completed)
}
