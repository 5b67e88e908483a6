package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// lax is a KMS that forgets to compare encryption contexts.
type lax struct{ keyring.Wrapper }

func (l lax) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := l.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	if errors.Is(err, journal.ErrUnwrap) {
		return make([]byte, 32), nil
	}
	return dek, err
}

// forgetful is a KMS that unwraps to another DEK than it wrapped.
type forgetful struct{ keyring.Wrapper }

func (f forgetful) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := f.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	if err == nil {
		dek[0] ^= 1
	}
	return dek, err
}

// deaf is a KMS that cannot unwrap what it has just wrapped.
type deaf struct{ keyring.Wrapper }

func (deaf) Decrypt(context.Context, kek.ID, []byte, map[string]string) ([]byte, error) {
	return nil, fmt.Errorf("decrypt: %w", journal.ErrUnwrap)
}

// unfaithful is a cipher that opens to something else.
type unfaithful struct{ keyring.Cipher }

func (u unfaithful) Open(dek, ct []byte, encctx map[string]string) ([]byte, error) {
	plain, err := u.Cipher.Open(dek, ct, encctx)
	return append(plain, 0), err
}

// TestDualUnwrapFails breaks each thing that the test before the switch relies on.
// Nothing is written, and a normal rotation rolls back.
func TestDualUnwrapFails(t *testing.T) {
	entry := func(edit func(s *site, r *memstore.Record)) func(*site) {
		return func(s *site) {
			r := s.rows()[place{s.corpus, "known-2.json"}]
			r.Ciphertext = append([]byte{}, r.Ciphertext...)
			edit(s, &r)
			s.corpus.Plant("known-2.json", r)
		}
	}
	for _, tc := range []struct {
		name  string
		setup func(*site)
		kind  journal.Kind
		field string // "" is the new KEK
	}{
		{"a wrong context is accepted", func(s *site) { s.Keys.Wrapper = lax{s.kms} }, journal.CanaryFailed, ""},
		{"another DEK comes back", func(s *site) { s.Keys.Wrapper = forgetful{s.kms} }, journal.CanaryFailed, ""},
		{"the canary does not unwrap", func(s *site) { s.Keys.Wrapper = deaf{s.kms} }, journal.CanaryFailed, ""},
		{"another plaintext comes back", func(s *site) { s.Keys.Cipher = unfaithful{s.Keys.Cipher} }, journal.CanaryFailed, ""},
		{"the new key is disabled", func(s *site) { s.must(s.kms.Disable(s.t.Context(), s.record(spring).NewKEK)) }, journal.KeyUnusable, ""},
		{"a corpus entry is garbage", entry(func(_ *site, r *memstore.Record) { r.WrappedDEK = []byte("garbage") }), journal.CorpusCorrupted, "known-2.json"},
		{"it has no DEK", entry(func(_ *site, r *memstore.Record) { r.WrappedDEK = nil }), journal.CorpusCorrupted, "known-2.json"},
		{"it was altered", entry(func(_ *site, r *memstore.Record) { r.Ciphertext[9] ^= 1 }), journal.CorpusCorrupted, "known-2.json"},
		{"it is empty", entry(func(_ *site, r *memstore.Record) { r.Ciphertext = nil }), journal.CorpusCorrupted, "known-2.json"},
		{"it is of another context", entry(func(_ *site, r *memstore.Record) { r.Context = nil }), journal.CorpusCorrupted, "known-2.json"},
		{"it opens to something else", entry(func(_ *site, r *memstore.Record) { r.PlainSHA = "00" }), journal.CorpusCorrupted, "known-2.json"},
		{"its hash is missing", entry(func(_ *site, r *memstore.Record) { r.PlainSHA, r.Defect = "", "no plaintext_sha256" }), journal.CorpusCorrupted, "known-2.json"},
		{"it is not an envelope", entry(func(_ *site, r *memstore.Record) { r.Defect = "not JSON" }), journal.CorpusCorrupted, "known-2.json"},
		{"it is under another KEK", entry(func(_ *site, r *memstore.Record) { r.KEK = "kek-9999" }), journal.CorpusCorrupted, "known-2.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
			s.must(s.rehearse(spring))
			tc.setup(s)
			before := s.snapshot()
			_, err := s.DualUnwrap(t.Context(), input(spring))
			if tc.field == "" {
				tc.field = string(s.record(spring).NewKEK)
			}
			wantKind(t, err, tc.kind)
			if e := typed(err); e.Field != tc.field {
				t.Errorf("field %q, want %q: %v", e.Field, tc.field, e)
			}
			if diff := s.diff(before); diff != "" {
				t.Errorf("the world changed (-was +is):\n%s", diff)
			}
			pointer := s.pointer()
			if _, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure}); err != nil {
				t.Fatal(err)
			}
			if s.phase(spring, kek.RolledBack); s.pointer() != pointer || s.enabled(s.record(spring).NewKEK) {
				t.Error("the pointer moved or the new key is enabled")
			}
		})
	}
}

// TestDualUnwrapCounts checks that every canary round and every corpus entry counts,
// over pages.
func TestDualUnwrapCounts(t *testing.T) {
	s := newSite(t)
	for i := range 150 {
		s.insert(s.corpus, fmt.Sprintf("more-%03d.json", i))
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.must(s.rehearse(spring))
	out, err := s.DualUnwrap(t.Context(), input(spring))
	if err != nil || out.Canaries != s.Config.CanaryRounds || out.Corpus != 152 {
		t.Errorf("%+v, %v", out, err)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	for id := range s.rows() { // what is not a known cipher does not count, and nothing but that proves nothing
		if id.table == s.corpus {
			r := s.rows()[id]
			r.PlainSHA = ""
			s.corpus.Plant(id.id, r)
		}
	}
	s.advance("later", rotation.ExecutionInput{}, kek.Minted)
	s.must(s.rehearse("later"))
	_, err = s.DualUnwrap(t.Context(), input("later"))
	wantKind(t, err, journal.CorpusCorrupted)
	s2 := newSite(t) // a deployment without a corpus
	s2.must(s2.RemoveSource(t.Context(), "corpus", "there is none"))
	s2.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s2.must(s2.rehearse(spring))
	if out, err := s2.DualUnwrap(t.Context(), input(spring)); err != nil || out.Corpus != 0 {
		t.Errorf("without a corpus: %+v, %v", out, err)
	}
}

// TestMintNeverSwitchesToDeadKey checks that a key which somebody disables between
// two steps stops the rotation where it is.
func TestMintNeverSwitchesToDeadKey(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Tested)
	fresh, pointer := s.record(spring).NewKEK, s.pointer()
	s.must(s.kms.Disable(t.Context(), fresh))
	_, err := s.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.KeyUnusable)
	if e := typed(err); e.Field != string(fresh) || s.pointer() != pointer {
		t.Errorf("field %q, pointer %+v", e.Field, s.pointer())
	}
	s.phase(spring, kek.Tested)
	s.kms.Enable(fresh)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestMintFindsDeadKey checks that a key that died between its making and its
// registration is not registered.
func TestMintFindsDeadKey(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Started)
	s.must(s.census(spring))
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.Describe" && args[0] != s.first {
			s.world.SetHook(nil)
			s.must(s.kms.Disable(t.Context(), args[0].(kek.ID)))
		}
		return true, nil
	})
	_, err := s.Mint(t.Context(), input(spring))
	wantKind(t, err, journal.KeyUnusable)
	s.phase(spring, kek.Started)
}

func TestStepsOfNothing(t *testing.T) {
	s := newSite(t)
	before := s.snapshot()
	for name, run := range map[string]func() error{
		"mint":       func() error { _, err := s.Mint(t.Context(), input("x")); return err },
		"dualunwrap": func() error { _, err := s.DualUnwrap(t.Context(), input("x")); return err },
		"switch":     func() error { _, err := s.Switch(t.Context(), input("x")); return err },
		"drain":      func() error { _, err := s.Drain(t.Context(), input("x")); return err },
		"rewrap":     func() error { _, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: "x"}); return err },
		"retire":     func() error { _, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: "x"}); return err },
		"verify":     func() error { _, err := s.Verify(t.Context(), verifyInput("x")); return err },
		"census":     func() error { return s.census("x") },
		"rehearse":   func() error { return s.rehearse("x") },
		"rollback": func() error {
			_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: "x", Action: rotation.ActionPreSwitchFailure})
			return err
		},
		"remint": func() error {
			_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: "x", Action: rotation.ActionRemint})
			return err
		},
	} {
		err := run()
		wantKind(t, err, journal.Refused)
		if e := typed(err); e.Next.IsZero() {
			t.Errorf("%s names no next step", name)
		}
	}
	if diff := s.diff(before); diff != "" {
		t.Errorf("the world changed (-was +is):\n%s", diff)
	}
}

func TestGenesisRefuses(t *testing.T) {
	s := newSite(t)
	before := s.snapshot()
	if p, err := s.Genesis(t.Context(), s.first, "genesis", nil); err != nil || p != s.pointer() {
		t.Errorf("repeated: %+v, %v", p, err)
	}
	_, err := s.Genesis(t.Context(), s.first, "a\nb", nil)
	wantKind(t, err, journal.InvalidInput)
	if diff := s.diff(before); diff != "" {
		t.Errorf("the world changed (-was +is):\n%s", diff)
	}
	k, err := s.kms.Create(t.Context(), "", 0, "second", keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Genesis(t.Context(), k.ID, "second", nil)
	wantKind(t, err, journal.Refused)
	s.must(s.kms.Disable(t.Context(), k.ID))
	_, err = s.Genesis(t.Context(), k.ID, "second", nil)
	wantKind(t, err, journal.KeyUnusable)
	if s.pointer().KEKID != s.first {
		t.Error("genesis moved the pointer")
	}
}
