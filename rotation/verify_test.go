package rotation_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// unverified fails the test unless verify refuses with the kind, closes nothing
// and keeps the lock.
func (s *site) unverified(t *testing.T, want journal.Kind) (field string) {
	t.Helper()
	_, err := s.Verify(t.Context(), verifyInput(spring))
	wantKind(t, err, want)
	s.phase(spring, kek.KEKRetired)
	if lock := s.snapshot().Lock; lock != spring {
		t.Errorf("the lock is %q", lock)
	}
	return typed(err).Field
}

// retired is a site whose old KEK is retired, unwatched: its tests break things.
func retired(t *testing.T) *site {
	t.Helper()
	s, _ := at(t, rotation.ExecutionInput{}, kek.KEKRetired)
	s.world.SetHook(nil)
	return s
}

func TestVerifyFindsOrphan(t *testing.T) {
	s := newSite(t)
	old := s.rows()[place{s.people, "p1"}]
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	now := s.rows()[place{s.people, "p1"}]
	s.people.Plant("p1", old) // restored from a backup
	for range 2 {
		s.unverified(t, journal.OrphansFound)
	}
	s.people.Plant("p1", now)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestVerifyUnwrapsASample checks that it is not enough for the rows to name the
// new KEK.
func TestVerifyUnwrapsASample(t *testing.T) {
	s := newSite(t)
	old := s.rows()
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	for p, r := range old {
		if p.table == s.people {
			r.KEK = s.pointer().KEKID
			s.people.Plant(p.id, r)
		}
	}
	s.unverified(t, journal.OrphansFound)
}

func TestVerifyFindsEnabledKey(t *testing.T) {
	s := retired(t)
	s.kms.Enable(s.first)
	if field := s.unverified(t, journal.Transient); field != string(s.first) {
		t.Errorf("field %q", field)
	}
	s.must(s.kms.Disable(t.Context(), s.first))
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// hasty is a KMS that says disabled of a key before it refuses to unwrap with it.
type hasty struct{ keyring.Admin }

func (h hasty) Describe(ctx context.Context, id kek.ID) (keyring.Key, error) {
	k, err := h.Admin.Describe(ctx, id)
	k.Enabled = false
	return k, err
}

// TestVerifyTriesTheKey checks that the word of KMS is not enough: a DEK kept from
// before must not unwrap any more.
func TestVerifyTriesTheKey(t *testing.T) {
	s := retired(t)
	s.kms.Enable(s.first)
	s.Keys.Admin = hasty{s.kms}
	s.unverified(t, journal.Transient)
}

func TestVerifyFindsMovedPointer(t *testing.T) {
	s := retired(t)
	s.Journal.Registry = altered{s.store, func(v *kek.View) { v.Pointer.KEKID = "kek-9999" }}
	s.unverified(t, journal.Unverified)
	s.Journal.Registry = altered{s.store, func(v *kek.View) { v.Pointer = nil }}
	s.unverified(t, journal.Unverified)
}

// TestVerifyFindsTampering changes and removes each record of the bucket in turn.
func TestVerifyFindsTampering(t *testing.T) {
	n := len(retired(t).snapshot().Chain)
	for seq := int64(1); seq <= int64(n); seq++ {
		for name, change := range map[string]func(b []byte) []byte{
			"missing":       func([]byte) []byte { return nil },
			"empty":         func([]byte) []byte { return []byte{} },
			"one bit":       func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"not canonical": func(b []byte) []byte { return append(b, '\n') },
		} {
			s := retired(t)
			b, err := s.vault.Get(t.Context(), audit.ObjectKey(chain, seq))
			if err != nil {
				t.Fatal(err)
			}
			s.vault.Tamper(audit.ObjectKey(chain, seq), change(b))
			if field := s.unverified(t, journal.AuditTampered); field == "" {
				t.Errorf("record %d %s: no object is named", seq, name)
			}
		}
	}
	s := retired(t) // a record of the same place in another chain
	b, err := s.vault.Get(t.Context(), audit.ObjectKey(chain, 2))
	if err != nil {
		t.Fatal(err)
	}
	s.vault.Tamper(audit.ObjectKey(chain, 3), b)
	s.unverified(t, journal.AuditTampered)
}

// TestOutboxBeforeSuccess checks that a step which succeeds has its record in the
// bucket, and that with the bucket away none succeeds.
func TestOutboxBeforeSuccess(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, _ := watched(t)
			d.after = func(c call, _ []byte, err error) {
				if err != nil {
					t.Errorf("%s: %v", c.state, err)
				}
				now := d.snapshot()
				if len(now.Unpublished) > 0 || len(now.Bucket) != len(now.Chain) {
					t.Errorf("after %s %d records are not in the bucket", c.state, len(now.Chain)-len(now.Bucket))
				}
			}
			d.complete(spring, in)
		})
	}
}

func TestBucketAway(t *testing.T) {
	phases := []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched, kek.Drained, kek.Rewrapped, kek.KEKRetired, kek.Completed}
	for i, phase := range phases {
		s := newSite(t)
		if i > 0 {
			s.advance(spring, rotation.ExecutionInput{}, phases[i-1])
		}
		s.world.SetHook(func(op string, _ ...any) (bool, error) { return op != "Vault.Put", nil })
		run := []func() error{
			func() error {
				_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
				return err
			},
			func() error { return errors.Join(s.census(spring), s.mint(spring)) },
			func() error { return errors.Join(s.rehearse(spring), s.test(spring)) },
			func() error { _, err := s.Switch(t.Context(), input(spring)); return err },
			func() error { _, err := s.Drain(t.Context(), input(spring)); return err },
			func() error { return s.rewrapAll(spring) },
			func() error { _, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring}); return err },
			func() error { _, err := s.Verify(t.Context(), verifyInput(spring)); return err },
		}[i]
		for range 2 { // the effect is made at the first try; without its record it does not count
			wantKind(t, run(), journal.Transient)
		}
		s.phase(spring, phase)
		if phase == kek.KEKRetired && !s.enabled(s.first) {
			t.Error("the old KMS key was disabled before the record of its retirement was safe")
		}
		s.world.SetHook(nil)
		if err := run(); err != nil {
			t.Errorf("%s, the bucket back: %v", phase, err)
		}
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// TestOldKEKUnwraps: what a person sees of an old KEK is what the step looked at, also
// where an emergency could wrap no data key under it, and of the KEKs of a rotation that
// an emergency ended.
func TestOldKEKUnwraps(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	r := s.record(spring)
	for name, tc := range map[string]struct {
		r              kek.Rotation
		id             kek.ID
		unwraps, tried bool
	}{
		"retired":          {r, r.OldKEK, false, true},
		"a key that is on": {kek.Rotation{ID: r.ID, Probes: map[kek.ID][]byte{r.NewKEK: probeUnder(t, s, r, r.NewKEK)}}, r.NewKEK, true, true},
		"none was wrapped": {kek.Rotation{ID: r.ID, Mode: kek.Emergency}, r.OldKEK, false, false},
	} {
		if unwraps, tried, err := s.OldKEKUnwraps(t.Context(), tc.r, tc.id); err != nil || unwraps != tc.unwraps || tried != tc.tried {
			t.Errorf("%s: %t, tried %t, %v", name, unwraps, tried, err)
		}
	}
	r.Probes = map[kek.ID][]byte{r.NewKEK: []byte("not a data key")}
	_, _, err := s.OldKEKUnwraps(t.Context(), r, r.NewKEK)
	wantKind(t, err, journal.Transient)
}

func probeUnder(t *testing.T, s *site, r kek.Rotation, id kek.ID) []byte {
	t.Helper()
	_, wrapped, err := s.Keys.Wrapper.GenerateDataKey(t.Context(), id, map[string]string{"matter:purpose": "canary", "matter:rotation": r.ID})
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

// TestVerifyConcludesNothingEarly: a call whose time runs out says that it is not done, and
// nothing of what it has not looked at.
func TestVerifyConcludesNothingEarly(t *testing.T) {
	s := retired(t)
	s.kms.Enable(s.first)
	out, err := s.Verify(until{t.Context(), s.clock.now()}, verifyInput(spring))
	if out.Done || err != nil {
		t.Errorf("done %t, %v", out.Done, err)
	}
	s.unverified(t, journal.Transient)
}

// TestVerifyReapsOfTakenOver: keys of a rotation that an emergency has ended are disabled
// when that is completed.
func TestVerifyReapsOfTakenOver(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.advance(summer, emergency, kek.KEKRetired)
	var strays []kek.ID
	for _, id := range []string{spring, summer} {
		strays = append(strays, must(s.kms.Create(t.Context(), id, 7, "stray", keyring.Key{})).ID)
	}
	s.advance(summer, emergency, kek.Completed)
	for _, id := range strays {
		if s.enabled(id) {
			t.Errorf("the stray %s is enabled", id)
		}
	}
	s.settled()
}

// TestSwitchOnce: a switch that is repeated says what it has done, whatever has become of
// the new KEK, of the window or of the approval since.
func TestSwitchOnce(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
	want := must(s.Switch(t.Context(), input(spring)))
	s.Keys.Admin, s.Gates.Rules.ApprovalRequired = unusable{s.kms, ""}, true
	s.clock.pass(4 * time.Hour) // 06:00
	if got, err := s.Switch(t.Context(), input(spring)); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}
