package rotation_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// TestForgottenTableIsRefused: a table that its own writers have marked and that is not a
// source stops a rotation by name, before the start and before the mint; with nothing
// changed.
func TestForgottenTableIsRefused(t *testing.T) {
	s := newSite(t)
	s.mark("carts")
	s.mark("orders") // a source
	before := s.snapshot()
	for _, only := range []bool{true, false} {
		in := preflightInput(spring, rotation.ExecutionInput{})
		in.CheckOnly = only
		_, err := s.Preflight(t.Context(), in)
		wantKind(t, err, journal.SourceForgotten)
		if e := typed(err); !strings.Contains(e.Msg, "carts") || strings.Contains(e.Msg, "orders") || e.Next.Do != journal.RegisterTable {
			t.Errorf("the refusal: %v", e)
		}
	}
	if diff := s.diff(before); diff != "" {
		t.Errorf("the world changed (-was +is):\n%s", diff)
	}

	s = newSite(t) // it appears between the start and the census
	d := newDriver(s)
	d.before = func(c call) {
		if c.state == "Census" {
			s.mark("carts")
		}
	}
	e := d.machine.Start(spring, rotation.ExecutionInput{})
	if e.Final != "RolledBack" || e.Failure.Name != string(journal.SourceForgotten) || !strings.Contains(e.Failure.Cause, "carts") || len(s.keys()) != 1 {
		t.Errorf("ended in %s with %d keys: %v", e.Final, len(s.keys()), e.Failure)
	}
	s.must(s.ForgetMark(t.Context(), "carts", "its writers are gone"))
	if got := s.body("mark_removed"); got["table"] != "carts" || got["reason"] != "its writers are gone" {
		t.Errorf("the record says %v", got)
	}
	d.before = nil
	d.complete(summer, rotation.ExecutionInput{})
	s.settled()
}

// TestForgottenTableBlocksRetirement: a mark that appears after the census, or that an
// emergency started over, keeps the old KEK from being retired. Once the table is a
// source its rows are moved, and the rotation continues.
func TestForgottenTableBlocksRetirement(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, w := watched(t)
			carts := d.newTable("carts", d.first, "c1", "c2")
			if name == "emergency" {
				d.mark("carts")
			}
			d.before = func(c call) {
				if c.state == "Mint" {
					d.mark("carts")
				}
			}
			e := d.machine.Start(spring, in)
			if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "SourceForgotten") || !strings.Contains(e.Failure.Cause, "carts") {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			if d.phase(spring, kek.Rewrapped); d.state(d.first) != kek.Sealed || !d.enabled(d.first) {
				t.Errorf("the old KEK is %s", d.state(d.first))
			}
			d.add(carts)
			e.Redrive()
			if e.Status != "SUCCEEDED" {
				t.Fatalf("added and redriven: %s: %v", e.Final, e.Failure)
			}
			w.check("at the end")
			d.settled()
		})
	}
}

// TestSourceJoins: a source that is added after the switch is swept, and its rows are
// moved before the retirement, wherever the rotation is.
func TestSourceJoins(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		for _, state := range []string{"Drain", "RewrapSegment", "RewrapComplete", "Retire"} {
			t.Run(name+" at "+state, func(t *testing.T) {
				d, w := watched(t)
				carts := d.newTable("carts", d.first, "c1", "c2", "c3")
				joined := false
				d.before = func(c call) {
					if c.state == state && !joined {
						joined = true
						d.add(carts)
					}
				}
				d.complete(spring, in)
				w.check("at the end")
				d.settled()
				if r := d.record(spring); len(r.Sources) != 4 {
					t.Errorf("sources %v", r.Sources)
				}
			})
		}
	}
}

// TestSourceJoinsDuringTheConfirmation: one that is added while the second scan runs was
// not looked at, so the retirement is not written, and the repeated call looks at it.
func TestSourceJoinsDuringTheConfirmation(t *testing.T) {
	for _, op := range []string{"Table.Scan", "KMS.Use", "Store.LoadAll", "Store.Apply"} {
		s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
		carts := s.newTable("carts", s.first, "c1")
		var joined atomic.Bool
		s.world.SetHook(func(got string, args ...any) (bool, error) {
			if !w.looks(got, args) && got == op && joined.CompareAndSwap(false, true) {
				s.add(carts)
			}
			return w.hook(got, args...)
		})
		err := s.retire(spring)
		wantKind(t, err, journal.Transient)
		if !strings.Contains(err.Error(), "changed since") {
			t.Errorf("%s: %v", op, err)
		}
		if s.phase(spring, kek.Rewrapped); !s.enabled(s.first) {
			t.Errorf("%s: the old KEK is disabled", op)
		}
		s.must(s.retire(spring))
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// TestSourceRedefined: what was seen of a source under an earlier definition does not
// count. The second scan is done; then the source is registered with another
// definition, under which a row shows that the scan had not seen.
func TestSourceRedefined(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Store.Apply" {
			return false, errors.New("no answer")
		}
		return w.hook(op, args...)
	})
	wantKind(t, s.retire(spring), journal.Transient) // it has looked at every row
	s.world.SetHook(w.hook)
	for n, definition := range []string{`{"a":1}`, `{"a":2}`} {
		def := s.orders.Source()
		def.Definition = definition
		must(s.AddSource(t.Context(), def))
		if got := s.record(spring).Sources[1]; got.Name != "orders" || got.Generation != n+1 || got.Definition != definition {
			t.Fatalf("the rotation has %+v", got)
		}
		s.plant(s.orders, fmt.Sprint("seen now ", n), s.first)
	}
	s.must(s.retire(spring))
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestRegistryIsFrozenBeforeTheSwitch: no source comes, changes or goes, and no KEK is
// registered, between the census and the switch.
func TestRegistryIsFrozenBeforeTheSwitch(t *testing.T) {
	for _, phase := range []kek.Phase{kek.Started, kek.Minted, kek.Tested} {
		s, _ := at(t, rotation.ExecutionInput{}, phase)
		carts := s.newTable("carts", s.first)
		other := s.people.Source()
		other.Definition = `{"a":1}`
		k := must(s.kms.Create(t.Context(), "", 0, "before", keyring.Key{}))
		s.mark("gone")
		before := s.snapshot()
		for name, run := range map[string]func() error{
			"add":      func() error { _, err := s.AddSource(t.Context(), carts.Source()); return err },
			"redefine": func() error { _, err := s.AddSource(t.Context(), other); return err },
			"remove":   func() error { return s.RemoveSource(t.Context(), "corpus", "forced") },
			"forget":   func() error { return s.ForgetMark(t.Context(), "gone", "gone") },
			"register": func() error { return s.RegisterKEK(t.Context(), k.ID, "before") },
		} {
			if err := run(); typed(err).Kind != journal.RotationInProgress {
				t.Errorf("%s at %s: %v", name, phase, err)
			}
		}
		if diff := s.diff(before); diff != "" {
			t.Errorf("at %s (-was +is):\n%s", phase, diff)
		}
	}
}

// TestAddSource: what cannot be opened or read is not registered; the same once more
// changes nothing; the record says what was registered, and by whom.
func TestAddSource(t *testing.T) {
	s := newSite(t)
	carts := s.newTable("carts", s.first, "c1")
	carts.SetNotes("it has a stream")
	before := s.snapshot()
	nowhere := carts.Source()
	nowhere.Name = "nowhere"
	for field, def := range map[string]kek.Source{"name": {Name: "a#b"}, "sources[nowhere]": nowhere} {
		_, err := s.AddSource(t.Context(), def)
		if e := typed(err); e.Field != field || e.Next.IsZero() {
			t.Errorf("%s: %v", field, err)
		}
	}
	carts.FailCheck(&journal.Error{Kind: journal.SourceMisconfigured, Field: "kek_id", Msg: "no such attribute"})
	_, err := s.AddSource(t.Context(), carts.Source())
	wantKind(t, err, journal.SourceMisconfigured)
	carts.FailCheck(journal.ErrDenied)
	_, err = s.AddSource(t.Context(), carts.Source())
	wantKind(t, err, journal.AccessDenied)
	if diff := s.diff(before); diff != "" {
		t.Errorf("the world changed (-was +is):\n%s", diff)
	}
	carts.FailCheck(nil)
	if notes := must(s.AddSource(t.Context(), carts.Source())); !cmp.Equal(notes, []string{"it has a stream"}) {
		t.Errorf("notes %q", notes)
	}
	want := carts.Source()
	want.AddedAt, want.AddedBy = s.clock.now(), "test"
	if got := s.view(looking).Sources[0]; got != want {
		t.Errorf("registered %+v, want %+v", got, want)
	}
	if got := s.body("source_added"); got["source"] != "carts" || got["definition"] != "{}" || got["place"] != "carts" || got["kind"] != memstore.KindTable {
		t.Errorf("the record says %v", got)
	}
	before = s.snapshot()
	must(s.AddSource(t.Context(), carts.Source()))
	if diff := s.diff(before); diff != "" {
		t.Errorf("a second time (-was +is):\n%s", diff)
	}
}

// TestRemoveSourceBesideAWriter: a process that begins to write into a table while it is
// being removed is not forgotten: neither its mark nor its row.
func TestRemoveSourceBesideAWriter(t *testing.T) {
	for op, want := range map[string]journal.Kind{"Table.Scan": journal.Refused, "Store.Apply": journal.Transient} { // before its items are read, and after
		s := newSite(t)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		carts := s.newTable("carts", "")
		s.add(carts)
		begun := false
		s.world.SetHook(func(now string, _ ...any) (bool, error) {
			if now == op && !begun {
				begun = true
				s.mark("carts")
				s.insert(carts, "first")
			}
			return true, nil
		})
		err := s.RemoveSource(t.Context(), "carts", "")
		if wantKind(t, err, want); !begun {
			t.Errorf("%s is not called", op)
		}
		s.world.SetHook(nil)
		wantKind(t, s.RemoveSource(t.Context(), "carts", ""), journal.Refused)
		s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// TestRemoveSourceBesideAnother: a source that somebody registers while another person
// removes it is not removed unseen, with or without force.
func TestRemoveSourceBesideAnother(t *testing.T) {
	for _, tc := range []struct{ name, force string }{{"carts", ""}, {"carts", "moved away"}, {"zines", ""}, {"zines", "moved away"}} { // the first of the sources and the last
		s := newSite(t)
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		table := s.newTable(tc.name, s.pointer().KEKID, "c1")
		loads := 0
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "Store.LoadAll" {
				if loads++; loads == 2 { // the first is the look
					s.add(table)
				}
			}
			return true, nil
		})
		wantKind(t, s.RemoveSource(t.Context(), tc.name, tc.force), journal.Transient)
		s.world.SetHook(nil)
		s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
		s.settled()
	}
}

// TestRemoveSourceRegisteredAgain: a source that is removed and registered again while
// another person removes it is another one, though its definition is the same.
func TestRemoveSourceRegisteredAgain(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	table := s.newTable("carts", s.pointer().KEKID, "c1")
	s.add(table)
	loads := 0
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Store.LoadAll" {
			if loads++; loads == 2 { // the first is the look
				s.clock.pass(time.Minute)
				s.must(s.RemoveSource(t.Context(), "carts", "moved away"))
				s.add(table)
			}
		}
		return true, nil
	})
	wantKind(t, s.RemoveSource(t.Context(), "carts", "moved away"), journal.Transient)
	s.world.SetHook(nil)
	if !slices.ContainsFunc(s.view("").Sources, func(src kek.Source) bool { return src.Name == "carts" }) {
		t.Error("the source that was registered again is gone")
	}
}

// TestRemoveSource: a source is not removed while it holds a row under a KEK that is not
// retired, or an item that cannot be accounted for, or while it cannot be read, unless
// somebody forces it and says why, which the chain keeps.
func TestRemoveSource(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	retired := s.seal(s.orders, "x", s.pointer().KEKID, 2, "x")
	retired.KEK = s.first
	for name, tc := range map[string]struct {
		item memstore.Record
		left bool // it may go
	}{
		"a row under the pointer's KEK": {s.seal(s.orders, "x", s.pointer().KEKID, 2, "x"), false},
		"an item without a KEK id":      {memstore.Record{Kind: source.NoKEK}, false},
		"a row under an unknown KEK":    {memstore.Record{KEK: "kek-9999", WrappedDEK: []byte{1}}, false},
		"a row under a retired KEK":     {retired, true},
		"something else":                {memstore.Record{Other: true}, true},
		"something declared":            {memstore.Record{Declared: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			carts := s.newTable("carts", "")
			for i := range 250 { // on its last page
				carts.Plant(fmt.Sprintf("a-%03d", i), memstore.Record{Other: true})
			}
			carts.SetEmptyPages(true)
			carts.Plant("x", tc.item)
			s.add(carts)
			s.mark("carts")
			before := s.snapshot()
			err := s.RemoveSource(t.Context(), "carts", "")
			if tc.left {
				if s.must(err); len(s.view(looking).Marks) > 0 {
					t.Error("the mark is left")
				}
				return
			}
			wantKind(t, err, journal.Refused)
			if e := typed(err); !strings.Contains(e.Msg, "x under KEK") || e.Next.Do != journal.MoveSourceRows {
				t.Errorf("the refusal: %v", e)
			}
			if diff := s.diff(before); diff != "" {
				t.Errorf("-was +is:\n%s", diff)
			}
			s.world.SetHook(func(op string, _ ...any) (bool, error) {
				if op == "Table.Scan" {
					return false, journal.ErrDenied
				}
				return true, nil
			})
			if err := s.RemoveSource(t.Context(), "carts", ""); typed(err).Kind != journal.Refused || !strings.Contains(err.Error(), "cannot be read") {
				t.Errorf("unreadable: %v", err)
			}
			s.world.SetHook(nil)
			s.must(s.RemoveSource(t.Context(), "carts", "a trial"))
			if got := s.body("source_removed"); got["source"] != "carts" || got["forced"] != "a trial" {
				t.Errorf("the record says %v", got)
			}
			if v := s.view(looking); len(v.Sources) != 3 || len(v.Marks) > 0 {
				t.Errorf("left: %v, %v", v.Sources, v.Marks)
			}
		})
	}
}

// TestRemovedSourceIsStillMoved: a rotation that runs moves the rows of a source that is
// removed under it.
func TestRemovedSourceIsStillMoved(t *testing.T) {
	for _, state := range []string{"Drain", "RewrapComplete", "Retire", "Verify"} {
		d, w := watched(t)
		done := false
		d.before = func(c call) {
			if c.state == state && !done {
				done = true
				d.must(d.RemoveSource(t.Context(), "people", "a mistake"))
			}
		}
		d.complete(spring, rotation.ExecutionInput{})
		w.check("at the end")
		d.settled()
	}
}

// TestRegisterKEK: a historic KEK is registered with its fence shut, beside no rotation;
// what is not a usable key is not.
func TestRegisterKEK(t *testing.T) {
	s := newSite(t)
	k := must(s.kms.Create(t.Context(), "", 0, "before", keyring.Key{}))
	dead := must(s.kms.Create(t.Context(), "", 0, "dead", keyring.Key{}))
	s.must(s.kms.Disable(t.Context(), dead.ID))
	before := s.snapshot()
	for _, tc := range []struct {
		id    kek.ID
		label string
		kind  journal.Kind
	}{
		{"kek-9999", "before", journal.KeyUnusable}, {dead.ID, "before", journal.KeyUnusable}, {k.ID, "a\nb", journal.InvalidInput},
	} {
		wantKind(t, s.RegisterKEK(t.Context(), tc.id, tc.label), tc.kind)
	}
	if diff := s.diff(before); diff != "" {
		t.Errorf("-was +is:\n%s", diff)
	}
	for range 2 { // once more is not a change
		s.must(s.RegisterKEK(t.Context(), k.ID, "before"))
		s.must(s.RegisterKEK(t.Context(), s.first, "genesis"))
	}
	if got := s.view(looking); got.Registry != 2 || got.KEKs[k.ID].State != kek.Sealed || got.KEKs[k.ID].ARN != k.ARN || got.KEKs[k.ID].Label != "before" {
		t.Errorf("%+v", got.KEKs[k.ID])
	}
	s.fences(k.ID, "sealed")
	for shard := range shards {
		if err := s.orders.Insert(t.Context(), "late", s.seal(s.orders, "late", k.ID, 1, "late"), shard); !errors.Is(err, memstore.ErrFenced) {
			t.Errorf("a row was inserted under it: %v", err)
		}
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.kms.Enable(k.ID)
	wantKind(t, s.RegisterKEK(t.Context(), k.ID, "again"), journal.Refused) // it was retired
}

// TestSeveralOldKEKs rotates from the pointer's KEK and two historic ones at once: every
// row is moved, all three are retired and disabled, and each is shown to be dead.
func TestSeveralOldKEKs(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, w := watched(t)
			olds := []kek.ID{d.first, d.past("before 2024"), d.past("before 2025")}
			for i, id := range olds[1:] {
				d.plant(d.people, fmt.Sprint("old ", i), id)
				d.plant(d.corpus, fmt.Sprintf("old-%d.json", i), id)
			}
			d.complete(spring, in)
			w.check("at the end")
			d.settled()
			r := d.record(spring)
			if !cmp.Equal(r.Olds, olds) || len(r.Probes) != 3 {
				t.Errorf("olds %v, %d probes", r.Olds, len(r.Probes))
			}
			for _, id := range olds {
				if d.state(id) != kek.Retired || d.enabled(id) {
					t.Errorf("%s is %s, enabled %t", id, d.state(id), d.enabled(id))
				}
				k := d.view(looking).KEKs[id]
				if !k.NotBeforeDelete.Equal(k.RetiredAt.Add(d.Config.DeleteHold)) || d.body("old_kek_retired")["kek."+string(id)] != string(kek.Retired) {
					t.Errorf("entry %+v", k)
				}
			}
			d.complete(summer, rotation.ExecutionInput{}) // they are left
			if got := d.record(summer).Olds; !cmp.Equal(got, []kek.ID{r.NewKEK}) {
				t.Errorf("the next rotation leaves %v", got)
			}
		})
	}
}

// TestEveryOldKEKIsDead: verify looks at each old KEK by what KMS says, and by a data
// key that must not unwrap.
func TestEveryOldKEKIsDead(t *testing.T) {
	s := newSite(t)
	past := s.past("before 2024")
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	for _, id := range []kek.ID{s.first, past} {
		s.kms.Enable(id)
		if field := s.unverified(t, journal.Transient); field != string(id) {
			t.Errorf("%s is enabled, the error names %q", id, field)
		}
		s.Keys.Admin = hasty{s.kms}
		if field := s.unverified(t, journal.Transient); field != string(id) {
			t.Errorf("%s still unwraps, the error names %q", id, field)
		}
		s.Keys.Admin = s.kms
		s.must(s.kms.Disable(t.Context(), id))
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestPointerLost: with the pointer's item gone, a genesis with any key is refused and
// says what to restore.
func TestPointerLost(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.Journal.Registry = altered{s.store, func(v *kek.View) { v.Pointer = nil }}
	before := s.snapshot()
	other := must(s.kms.Create(t.Context(), "", 0, "other", keyring.Key{}))
	for _, id := range []kek.ID{s.record(spring).NewKEK, other.ID} {
		_, err := s.Genesis(t.Context(), id, "again", nil)
		wantKind(t, err, journal.PointerInvalid)
		if e := typed(err); e.Field != "POINTER" || e.Next.Do != journal.RunDoctor && e.Next.Do != journal.MakePointer {
			t.Errorf("%v", e)
		}
	}
	s.must(s.kms.Disable(t.Context(), other.ID))
	if now := s.snapshot(); now.Pointer != before.Pointer || len(now.Chain) != len(before.Chain) || len(now.KEKs) != len(before.KEKs) {
		t.Error("the control table changed")
	}
}

// TestSettingsAreFrozen: a step that runs in another environment than the start's does
// as the rotation was started.
func TestSettingsAreFrozen(t *testing.T) {
	s := newSite(t)
	s.Config.Deep = true
	s.advance(spring, rotation.ExecutionInput{}, kek.Started)
	was := s.Config
	s.Config = rotation.Config{DrainMaxWait: 10 * time.Hour, DeleteHold: time.Hour, Segments: 7, FenceShards: 5, MaxMints: 9, CanaryRounds: 1}
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.must(s.rehearse(spring))
	out, err := s.DualUnwrap(t.Context(), input(spring))
	if err != nil || out.Canaries != was.CanaryRounds {
		t.Errorf("%d canaries, %v", out.Canaries, err)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
	if got := s.store.Fences(s.pointer().KEKID); len(got) != was.FenceShards {
		t.Errorf("fence %v", got)
	}
	stuck := s.lease("stuck", time.Minute)
	s.clock.pass(was.DrainMaxWait)
	s.renew(stuck, time.Minute)
	_, err = s.Drain(t.Context(), input(spring))
	wantKind(t, err, journal.DrainTimeout)
	s.clock.pass(10 * time.Hour)
	s.Config.Segments = was.Segments // of the test's own steps
	s.advance(spring, rotation.ExecutionInput{}, kek.KEKRetired)
	if k := s.view(looking).KEKs[s.first]; !k.NotBeforeDelete.Equal(k.RetiredAt.Add(was.DeleteHold)) {
		t.Errorf("retired at %s, not to be deleted before %s", k.RetiredAt, k.NotBeforeDelete)
	}
	if got := s.body("old_kek_retired")["unwrapped"]; !strings.HasPrefix(got, "every distinct data key") {
		t.Errorf("unwrapped: %q", got)
	}

	s = newSite(t)
	s.advance(spring, emergency, kek.Minted)
	s.Config.MaxMints = 1
	for n := range limit {
		_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionRemint, FailedAttempt: n + 1})
		if last := n+1 == limit; last {
			wantKind(t, err, journal.MintsExhausted)
		} else {
			s.must(err)
		}
	}
}
