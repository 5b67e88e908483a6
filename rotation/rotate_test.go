package rotation_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// watched returns a driver under the watch of the invariants.
func watched(t *testing.T) (*driver, *watch) {
	t.Helper()
	s := newSite(t)
	w := newWatch(s)
	s.world.SetHook(w.hook)
	return newDriver(s), w
}

// settled fails the test unless every row is under the pointer's KEK, or a historic one
// that no rotation has left yet, the lock is free, every other key is disabled, and the
// bucket holds the whole chain.
func (s *site) settled() {
	s.t.Helper()
	s.world.SetHook(nil)
	newWatch(s)
	v, err := s.store.Load(s.t.Context(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	if v.Lock != "" {
		s.t.Errorf("the lock is still held by %s", v.Lock)
	}
	for p, r := range s.rows() {
		if s.state(r.KEK) == kek.Sealed {
			continue // of a rotation that switched there is no such KEK left
		}
		if r.KEK != v.Pointer.KEKID || r.Epoch != v.Pointer.Epoch {
			s.t.Errorf("row %s is under %s at epoch %d, the pointer at %s, %d", p.id, r.KEK, r.Epoch, v.Pointer.KEKID, v.Pointer.Epoch)
		}
	}
	for _, id := range s.keys() {
		if on := s.enabled(id); on != (id == v.Pointer.KEKID || s.state(id) == kek.Sealed) {
			s.t.Errorf("KMS key %s: enabled %t, and the pointer names %s", id, on, v.Pointer.KEKID)
		}
	}
	if err := s.VerifyChain(s.t.Context()); err != nil {
		s.t.Error(err)
	}
}

// events lists the audit chain's record types, in order, as the bucket has them.
func (s *site) events() []string {
	s.t.Helper()
	entries, err := s.store.AuditEntries(s.t.Context(), 1)
	if err != nil {
		s.t.Fatal(err)
	}
	at, _, err := s.store.Head(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		b, err := s.vault.Get(s.t.Context(), at.RecordKey(e.Record.Seq))
		if err != nil {
			s.t.Fatal(err)
		}
		stored, err := audit.Parse(b)
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, stored.Record.Type)
	}
	return out
}

func wantEvents(t *testing.T, s *site, want ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{"kek_genesis"}, want...), s.events()); diff != "" {
		t.Errorf("audit chain (-want +got):\n%s", diff)
	}
}

func TestNormalRotation(t *testing.T) {
	d, w := watched(t)
	before := d.rows()
	d.complete(spring, rotation.ExecutionInput{})
	w.check("at the end")
	d.settled()
	r := d.record(spring)
	if r.OldKEK != d.first || r.NewKEK == d.first || r.Attempt != 1 || r.Epoch != 2 || r.Label != "Q2-2026-rotation" {
		t.Errorf("record %+v", r)
	}
	if d.state(d.first) != kek.Retired || d.state(r.NewKEK) != kek.Active {
		t.Errorf("old %s, new %s", d.state(d.first), d.state(r.NewKEK))
	}
	for p, was := range before { // the DEK is rewrapped, the payload not touched
		if now := d.rows()[p]; string(now.Ciphertext) != string(was.Ciphertext) || string(now.WrappedDEK) == string(was.WrappedDEK) {
			t.Errorf("row %s: the payload changed or the wrapped DEK did not", p.id)
		}
	}
	wantEvents(t, d.site, "rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "dual_unwrap_passed", "pointer_switched", "old_kek_sealed",
		"rows_rewrapped", "old_kek_retired", "kms_rotation_completed")
	if diff := cmp.Diff([]string{"KEK rotation started", "KEK rotation completed"}, d.mail); diff != "" {
		t.Errorf("mail (-want +got):\n%s", diff)
	}
	d.complete(summer, rotation.ExecutionInput{Label: "Q3"}) // and once more
	d.settled()
	if got := d.record(summer).OldKEK; got != r.NewKEK {
		t.Errorf("the next rotation's old KEK is %s, want %s", got, r.NewKEK)
	}
}

// TestNotBeforeDelete checks that a retired KEK says when it may be deleted.
func TestNotBeforeDelete(t *testing.T) {
	d, _ := watched(t)
	d.complete(spring, rotation.ExecutionInput{})
	keks, err := d.store.KEKs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(keks, func(k kek.KEK) bool { return k.ID == d.first })
	if k := keks[i]; !k.NotBeforeDelete.Equal(k.RetiredAt.Add(d.Config.DeleteHold)) || k.RetiredAt.IsZero() {
		t.Errorf("retired at %s, not to be deleted before %s", k.RetiredAt, k.NotBeforeDelete)
	}
}

func TestEmergencyRotation(t *testing.T) {
	d, _ := watched(t)
	before := d.rows()
	deks := map[string]bool{}
	for _, r := range before {
		dek, err := d.kms.Decrypt(t.Context(), d.first, r.WrappedDEK, r.Context)
		if err != nil {
			t.Fatal(err)
		}
		deks[string(dek)] = true
	}
	d.complete(spring, emergency)
	d.settled()
	for p, r := range d.rows() { // who has the old KEK may have the old DEKs
		dek, err := d.kms.Decrypt(t.Context(), r.KEK, r.WrappedDEK, r.Context)
		if err != nil {
			t.Fatal(err)
		}
		if deks[string(dek)] || string(r.Ciphertext) == string(before[p].Ciphertext) {
			t.Errorf("row %s is still encrypted under its old DEK", p.id)
		}
	}
}

// spoil makes the corpus' first entry one that does not open.
func (s *site) spoil() {
	r := s.rows()[place{s.corpus, "known-1.json"}]
	r.Ciphertext = append([]byte{}, r.Ciphertext...)
	r.Ciphertext[len(r.Ciphertext)-1] ^= 1
	r.Defect = "" // it looks sound
	s.corpus.Plant("known-1.json", r)
}

func (s *site) mend() {
	p := s.pointer()
	plain := "secret of known-1.json"
	s.corpus.Plant("known-1.json", s.seal(s.corpus, "known-1.json", p.KEKID, p.Epoch, plain))
}

// TestPreSwitchFailure checks the rollback of a normal rotation whose dual unwrap
// fails: the pointer is untouched and the new key dead.
func TestPreSwitchFailure(t *testing.T) {
	s := newSite(t)
	s.spoil()
	d := newDriver(s)
	was := s.pointer()
	e := d.machine.Start(spring, rotation.ExecutionInput{})
	if e.Status != "FAILED" || e.Final != "RolledBack" || e.Failure.Name != string(journal.CorpusCorrupted) {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	r := s.record(spring)
	if r.Phase != kek.RolledBack || r.Err == "" || s.pointer() != was {
		t.Errorf("record %+v, pointer %+v, was %+v", r, s.pointer(), was)
	}
	if s.state(r.NewKEK) != kek.Retired || s.enabled(r.NewKEK) || !s.enabled(s.first) {
		t.Errorf("new KEK: %s, enabled %t; the old one enabled: %t", s.state(r.NewKEK), s.enabled(r.NewKEK), s.enabled(s.first))
	}
	if want := []string{"KEK rotation started", "KEK rotation rolled back before the switch"}; !cmp.Equal(want, s.mail) {
		t.Errorf("mail %q, want %q", s.mail, want)
	}
	s.mend()
	s.settled()
	wantEvents(t, s, "rotation_started", "rows_counted", "kek_minted", "rows_rehearsed", "rolled_back")
	d.complete(summer, rotation.ExecutionInput{})
}

// TestEmergencyMintsAgain checks that an emergency whose first KEK fails continues
// with another and never back.
func TestEmergencyMintsAgain(t *testing.T) {
	d, w := watched(t)
	failed := kek.ID("")
	d.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.GenerateDataKey" && d.at == "DualUnwrap" && failed == "" {
			failed = args[0].(kek.ID)
			return false, &journal.Error{Kind: journal.CanaryFailed, Msg: "planted"}
		}
		return w.hook(op, args...)
	})
	e := d.complete(spring, emergency)
	d.settled()
	r := d.record(spring)
	if r.Attempt != 2 || r.NewKEK == failed || d.state(failed) != kek.Retired || d.enabled(failed) {
		t.Errorf("attempt %d, new %s; the failed %s is %s, enabled %t", r.Attempt, r.NewKEK, failed, d.state(failed), d.enabled(failed))
	}
	if slices.Contains(e.Trail, "PreSwitchFailure") {
		t.Error("an emergency rolled back")
	}
	wantEvents(t, d.site, "rotation_started", "kek_minted", "rows_rehearsed", "reminted", "kek_minted", "rows_rehearsed", "dual_unwrap_passed", "pointer_switched",
		"old_kek_sealed", "rows_rewrapped", "old_kek_retired", "kms_rotation_completed")
}

// TestEmergencyRunsOutOfMints checks that it halts after the bounded number of
// attempts with every failed key but the last dead, and continues when redriven.
func TestEmergencyRunsOutOfMints(t *testing.T) {
	d, w := watched(t)
	broken := true
	d.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.GenerateDataKey" && d.at == "DualUnwrap" && broken {
			return false, &journal.Error{Kind: journal.CanaryFailed, Msg: "planted"}
		}
		return w.hook(op, args...)
	})
	e := d.machine.Start(spring, emergency)
	if e.Final != "HaltedBeforeSwitch" || e.Failure.Name != string(journal.Halted) {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	r := d.record(spring)
	if r.Attempt != limit || r.Phase != kek.Minted || d.pointer().KEKID != d.first {
		t.Errorf("record %+v", r)
	}
	e.Redrive() // still broken: it halts again, and mints no more
	if e.Final != "HaltedBeforeSwitch" || len(d.keys()) != limit+1 {
		t.Errorf("redriven: %s, %d keys", e.Final, len(d.keys()))
	}
	broken = false
	e.Redrive()
	if e.Status != "SUCCEEDED" {
		t.Fatalf("mended and redriven: %s: %v", e.Final, e.Failure)
	}
	d.settled()
}

// TestRepeatedSteps runs every step of a rotation twice: the second call finds the
// effect made and says the same.
func TestRepeatedSteps(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, _ := watched(t)
			d.after = func(c call, out []byte, err error) {
				if err != nil || c.function == "Notify" {
					return
				}
				before := d.snapshot()
				again, err := d.run(c)
				if err != nil {
					t.Errorf("%s repeated: %v", c.state, err)
				} else if first, second := stable(t, out), stable(t, again); !cmp.Equal(first, second) {
					t.Errorf("%s repeated (-first +second):\n%s", c.state, cmp.Diff(first, second))
				}
				if diff := d.diff(before); diff != "" {
					t.Errorf("%s repeated changed the world (-was +is):\n%s", c.state, diff)
				}
			}
			d.complete(spring, in)
			d.settled()
		})
	}
}
