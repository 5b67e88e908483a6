package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// inspect inspects a rotation, which must be possible.
func (s *site) inspect(id string) rotation.Inspection {
	s.t.Helper()
	return must(s.InspectRotation(s.t.Context(), s.record(id), nil))
}

// verdicts are those of an inspection: rows, each old KEK, chain, anchor.
func verdicts(i rotation.Inspection) []rotation.Verdict {
	out := []rotation.Verdict{i.Rows.Verdict()}
	for _, old := range i.OldKEKs {
		out = append(out, old.Verdict())
	}
	out = append(out, i.Chain.Verdict())
	if i.Anchor != nil {
		out = append(out, i.Anchor.Verdict())
	}
	return out
}

// wantVerdicts fails the test unless the inspection has these verdicts.
func wantVerdicts(t *testing.T, name string, i rotation.Inspection, want ...rotation.Verdict) {
	t.Helper()
	if got := verdicts(i); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: verdicts %v, want %v, of %+v", name, got, want, i)
	}
}

// TestInspectRotation changes one thing after a rotation that is completed and anchored: the
// inspection counts it and concludes from it.
func TestInspectRotation(t *testing.T) {
	const fulfilled, violated, orphaned = rotation.Fulfilled, rotation.Violated, rotation.Orphaned
	type rows struct{ elsewhere, orphaned, unaccounted, wrong int64 }
	for name, c := range map[string]struct {
		change func(*site)
		rows   rows
		of     rotation.Verdict // the rows
		old    rotation.Verdict
	}{
		"nothing":                         {func(*site) {}, rows{}, fulfilled, fulfilled},
		"a row under the old KEK":         {func(s *site) { restore(s, s.first) }, rows{0, 1, 0, 0}, orphaned, fulfilled},
		"a row under an unknown KEK":      {func(s *site) { restore(s, "kek-9999") }, rows{0, 1, 0, 0}, orphaned, fulfilled},
		"a row that only claims its KEK":  {func(s *site) { restore(s, s.pointer().KEKID) }, rows{0, 0, 0, 1}, orphaned, fulfilled},
		"a row under a historic KEK":      {func(s *site) { s.past("historic") }, rows{1, 0, 0, 0}, violated, fulfilled},
		"one that KMS has disabled":       {func(s *site) { s.must(s.kms.Disable(s.t.Context(), s.past("historic"))) }, rows{1, 1, 0, 0}, orphaned, fulfilled},
		"an old key that is enabled":      {func(s *site) { s.kms.Enable(s.first) }, rows{}, fulfilled, violated},
		"one that KMS calls disabled":     {func(s *site) { s.kms.Enable(s.first); s.Keys.Admin = hasty{s.kms} }, rows{0, 10, 0, 0}, orphaned, violated}, // as it calls every key
		"an old KEK that is not retired":  {alter(func(v *kek.View) { setState(v, kek.Sealed) }), rows{}, fulfilled, violated},
		"an old KEK that is not in it":    {alter(func(v *kek.View) { setState(v, "") }), rows{}, fulfilled, violated},
		"a pointer that is not there":     {alter(func(v *kek.View) { v.Pointer = nil }), rows{}, violated, fulfilled},
		"an item that is unaccounted":     {damage, rows{0, 0, 1, 0}, violated, fulfilled},
		"a KEK that does not unwrap here": {func(s *site) { s.Keys.Wrapper = silent{s.kms, s.first} }, rows{}, fulfilled, violated},
	} {
		s := newSite(t)
		s.anchor(t)
		s.complete(t, spring)
		r := s.record(spring)
		c.change(s)
		found := must(s.InspectRotation(t.Context(), r, nil))
		wantVerdicts(t, name, found, c.of, c.old, fulfilled, fulfilled)
		got := rows{found.Rows.Elsewhere, found.Rows.Orphaned, found.Rows.Unaccounted, found.Rows.Proof.Wrong}
		if got != c.rows {
			t.Errorf("%s: counted %+v, want %+v", name, got, c.rows)
		}
		if c.rows.wrong > 0 && found.Rows.Proof.First != "restored" {
			t.Errorf("%s: the first is %q", name, found.Rows.Proof.First)
		}
	}
}

// complete runs a rotation to its end.
func (s *site) complete(t *testing.T, id string) {
	t.Helper()
	s.advance(id, rotation.ExecutionInput{}, kek.KEKRetired)
	if s.Anchor != nil {
		must(s.Anchor.AnchorChain(t.Context(), anchor.Input{RotationID: id}))
	}
	s.advance(id, rotation.ExecutionInput{}, kek.Completed)
}

// restore plants a row that names a KEK and is under no KEK of this site.
func restore(s *site, under kek.ID) {
	r := s.rows()[place{s.people, "p1"}]
	r.KEK, r.WrappedDEK = under, []byte("wrapped elsewhere")
	s.people.Plant("restored", r)
}

// damage plants an item that no pass can account for.
func damage(s *site) {
	r := s.rows()[place{s.people, "p1"}]
	r.Defect = "it has no wrapped data key"
	s.people.Plant("damaged", r)
}

// setState gives the genesis KEK of a view another state; "" takes it out.
func setState(v *kek.View, to kek.State) {
	for id, k := range v.KEKs {
		if k.RotationID != "" {
			continue
		}
		k.State = to
		if v.KEKs[id] = k; to == "" {
			delete(v.KEKs, id)
		}
	}
}

// silent is a KMS that does not answer for one key.
type silent struct {
	keyring.Wrapper
	id kek.ID
}

func (d silent) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	if id == d.id {
		return nil, errors.New("no answer")
	}
	return d.Wrapper.Decrypt(ctx, id, wrapped, encctx)
}

// TestInspectLaterRotation: rows under the KEK of a later rotation are where they should be.
func TestInspectLaterRotation(t *testing.T) {
	s := newSite(t)
	s.anchor(t)
	s.complete(t, spring)
	s.complete(t, summer)
	found := s.inspect(spring)
	wantVerdicts(t, "after a later rotation", found, rotation.Fulfilled, rotation.Fulfilled, rotation.Fulfilled, rotation.Fulfilled)
	if rows := found.Rows; !rows.Later || rows.Pointer != s.record(summer).NewKEK || rows.Elsewhere != 0 || rows.Sources != 3 || rows.Tally.Scanned != 10 || rows.Tally.Other != 1 {
		t.Errorf("%+v", rows)
	}
	if c := found.Chain; c.Completion.Rotation != spring || c.Completion.Type != kek.EventRotationCompleted || c.Records <= c.Completion.Seq || c.Chain != chain {
		t.Errorf("%+v", c)
	}
}

// TestInspectLeftoverKEKs: an emergency also answers for the KEKs that the rotation which it
// has ended had retired and left enabled, and for those under which it could wrap no data key.
func TestInspectLeftoverKEKs(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	left := s.record(spring).NewKEK
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.GenerateDataKey" && args[0] == s.first {
			return false, journal.ErrDenied
		}
		return true, nil
	})
	s.advance(summer, emergency, kek.Completed)
	s.world.SetHook(nil)
	found := s.inspect(summer)
	if len(found.OldKEKs) != 2 || found.OldKEKs[0].ID != s.first || found.OldKEKs[1].ID != left {
		t.Fatalf("old KEKs %+v", found.OldKEKs)
	}
	for _, old := range found.OldKEKs {
		if old.Tried || old.Registered != kek.Retired || old.Verdict() != rotation.Fulfilled {
			t.Errorf("%+v", old)
		}
	}
	s.kms.Enable(left)
	if found = s.inspect(summer); found.OldKEKs[0].Verdict() != rotation.Fulfilled || found.OldKEKs[1].Verdict() != rotation.Violated {
		t.Errorf("with one enabled: %+v", found.OldKEKs)
	}
}

// TestInspectRecordOfEarlierRelease: a record without a list of old KEKs names one.
func TestInspectRecordOfEarlierRelease(t *testing.T) {
	s := newSite(t)
	s.complete(t, spring)
	r := s.record(spring)
	r.Olds = nil
	if found := must(s.InspectRotation(t.Context(), r, nil)); len(found.OldKEKs) != 1 || found.OldKEKs[0].ID != s.first || found.OldKEKs[0].Verdict() != rotation.Fulfilled {
		t.Errorf("%+v", found.OldKEKs)
	}
}

// TestInspectChain: a chain without a log proves less, one that was changed proves nothing,
// and one without the record of the completion contradicts the rotation.
func TestInspectChain(t *testing.T) {
	const fulfilled, unproven, violated = rotation.Fulfilled, rotation.Unproven, rotation.Violated
	s := newSite(t)
	s.complete(t, spring)
	found := s.inspect(spring)
	wantVerdicts(t, "no log", found, fulfilled, fulfilled, fulfilled, unproven)
	if !found.Anchor.NoLog {
		t.Errorf("%+v", found.Anchor)
	}
	r := s.record(spring)
	r.ID = "another"
	found = must(s.InspectRotation(t.Context(), r, nil))
	if found.Chain.Verdict() != violated || found.Chain.Tampered != nil || found.Anchor != nil || found.Chain.Records == 0 {
		t.Errorf("without the record: %+v, %+v", found.Chain, found.Anchor)
	}
	for _, anchored := range []bool{false, true} {
		s = newSite(t)
		if anchored {
			s.anchor(t)
		}
		s.complete(t, spring)
		s.vault.Tamper(audit.ObjectKey(chain, 2), []byte("changed"))
		found = s.inspect(spring)
		wantVerdicts(t, "changed", found, fulfilled, fulfilled, violated)
		wantKind(t, found.Chain.Tampered, journal.AuditTampered)
	}

	s = newSite(t)
	s.anchor(t)
	s.complete(t, spring)
	s.Anchor.Log = &moody{TransparencyLog: s.Anchor.Log, fail: func(audit.Log) error { return errDown }}
	found = s.inspect(spring)
	wantVerdicts(t, "a log that is down", found, fulfilled, fulfilled, fulfilled, unproven)
	if a := found.Anchor; a.NoLog || a.Failure == nil || a.Report.Anchored >= a.Completion || a.Completion != found.Chain.Completion.Seq {
		t.Errorf("%+v", a)
	}
}

// TestInspectDataKeys: every distinct data key is unwrapped once, or the first of them; a row
// under a disabled KEK, with a defect or under an unknown KEK proves nothing.
func TestInspectDataKeys(t *testing.T) {
	for _, deep := range []bool{false, true} {
		s := newSite(t)
		s.complete(t, spring)
		s.Config.Deep = deep
		p := s.pointer()
		const more = 30
		for i := range more {
			r := s.seal(s.orders, fmt.Sprint("more", i), p.KEKID, p.Epoch, "more")
			r.Version = 1
			s.orders.Plant(fmt.Sprint("more", i), r)
			s.orders.Plant(fmt.Sprint("twin", i), r) // two rows share a data key
		}
		restore(s, s.first)
		damage(s)
		calls := 0
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.ReEncrypt" {
				calls++
			}
			return true, nil
		})
		var items []int64
		found := must(s.InspectRotation(t.Context(), s.record(spring), func(n int64) { items = append(items, n) }))
		want := int64(20)
		if deep {
			want = 10 + more
		}
		if proof := found.Rows.Proof; proof.Unwrapped != want || proof.Deep != deep || proof.Wrong != 0 || deep && calls != int(want)+1 {
			t.Errorf("deep %t: %+v, %d calls", deep, proof, calls)
		}
		if len(items) == 0 || items[len(items)-1] != 10+2*more+2+1 {
			t.Errorf("items read: %v", items)
		}
	}
}

// TestInspectFailures: what cannot be looked at gives no fact.
func TestInspectFailures(t *testing.T) {
	s := newSite(t)
	s.anchor(t)
	s.complete(t, spring)
	r := s.record(spring)
	var ops sync.Map // objects of the bucket are read at once
	s.world.SetHook(func(op string, _ ...any) (bool, error) { ops.Store(op, true); return true, nil })
	s.must(errOf(s.InspectRotation(t.Context(), r, nil)))
	for _, op := range []string{"Store.LoadAll", "Store.ListCheckpoints", "Table.Scan", "KMS.Describe", "KMS.ReEncrypt", "Store.Head", "Vault.Get"} {
		if _, called := ops.Load(op); !called {
			t.Errorf("%s is not called", op)
		}
		s.world.SetHook(func(did string, _ ...any) (bool, error) { return did != op, nil })
		if err := errOf(s.InspectRotation(t.Context(), r, nil)); err == nil {
			t.Errorf("%s fails, the inspection does not", op)
		}
	}
	s.world.SetHook(nil)
	s.OpenSource = nil
	s.Journal.Registry = altered{s.store, func(v *kek.View) { v.Sources = nil }}
	wantKind(t, errOf(s.InspectRotation(t.Context(), r, nil)), journal.SourceMisconfigured)
}

func errOf[T any](_ T, err error) error { return err }
