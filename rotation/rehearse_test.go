package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// swapping is a KMS that rewraps to another data key.
type swapping struct{ keyring.Wrapper }

func (k swapping) ReEncrypt(ctx context.Context, _, to kek.ID, _ []byte, encctx map[string]string) ([]byte, error) {
	_, wrapped, err := k.GenerateDataKey(ctx, to, encctx)
	return wrapped, err
}

// rehearsals are what a rehearsal must find, and the source that it names.
var rehearsals = map[string]struct {
	setup  func(s *site)
	source string
	says   string
}{
	"a wrong context": {func(s *site) {
		r := s.rows()[place{s.people, "p1"}]
		r.Context = map[string]string{"table": "people", "id": "other"}
		s.people.Plant("p1", r)
	}, "people", "a row cannot be rewrapped"},
	"garbage": {func(s *site) {
		r := s.rows()[place{s.people, "p1"}]
		r.WrappedDEK = []byte("garbage, but long enough to be one")
		s.people.Plant("p1", r)
	}, "people", "a row cannot be rewrapped"},
	"writes are denied":   {func(s *site) { s.fail("Table.Rehearse", "people", journal.ErrDenied) }, "people", "rewrap may not write its rows"},
	"writes are rejected": {func(s *site) { s.fail("Table.Rehearse", "people", journal.ErrRejected) }, "people", "rewrap may not write its rows"},
	"reads are denied":    {func(s *site) { s.fail("Table.Scan", "people", journal.ErrDenied) }, "people", "rewrap may not read its rows"},
	"another data key":    {func(s *site) { s.Keys.Wrapper = swapping{s.kms} }, "corpus", "it unwraps to another data key after the rewrap"},
	"a historic KEK is disabled": {func(s *site) {
		for id, k := range s.view(looking).KEKs {
			if k.Label == "before" {
				s.must(s.kms.Disable(s.t.Context(), id))
			}
		}
	}, "orders", "KeyUnusable"},
}

// fail makes a call on a table fail from now on, while the rehearsal runs.
func (s *site) fail(op, table string, err error) {
	s.world.SetHook(func(got string, args ...any) (bool, error) {
		if got == op && args[0] == table {
			return false, err
		}
		return true, nil
	})
}

// TestRehearsalFails: a row that cannot be rewrapped, or a table that rewrap may not
// read or write, is found before the switch, by name. A normal rotation is rolled back
// with its pointer where it was and its key retired.
func TestRehearsalFails(t *testing.T) {
	for name, tc := range rehearsals {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.past("before")
			d := newDriver(s)
			before := s.pointer()
			d.before = func(c call) {
				if c.state == "Rehearse" {
					tc.setup(s)
				} else {
					s.world.SetHook(nil)
				}
			}
			e := d.machine.Start(spring, rotation.ExecutionInput{})
			if e.Final != "RolledBack" || e.Failure.Name != string(journal.RehearsalFailed) ||
				!strings.Contains(e.Failure.Cause, "sources["+tc.source+"]") || !strings.Contains(e.Failure.Cause, tc.says) {
				t.Fatalf("ended in %s: %v", e.Final, e.Failure)
			}
			r := s.record(spring)
			if s.pointer() != before || r.Rehearsed != "" || s.state(r.NewKEK) != kek.Retired || s.enabled(r.NewKEK) {
				t.Errorf("pointer %+v, the new KEK is %s, record %+v", s.pointer(), s.state(r.NewKEK), r)
			}
		})
	}
}

// TestEmergencyNotesAFailedRehearsal: an emergency records what it found and switches.
func TestEmergencyNotesAFailedRehearsal(t *testing.T) {
	for name, tc := range rehearsals {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.past("before")
			s.advance(spring, emergency, kek.Minted)
			tc.setup(s)
			s.must(s.rehearse(spring))
			s.world.SetHook(nil)
			note := s.body("rows_rehearsed")["source."+tc.source]
			if !strings.Contains(note, "overridden: RehearsalFailed") || !strings.Contains(note, tc.says) {
				t.Errorf("the record says %q", note)
			}
			s.Keys.Wrapper = s.kms
			s.advance(spring, emergency, kek.Switched)
		})
	}
}

// TestRehearsalOfTheNewKEK: what is wrong with the new KEK is not a row's fault: an
// emergency does not continue with it.
func TestRehearsalOfTheNewKEK(t *testing.T) {
	s := newSite(t)
	s.advance(spring, emergency, kek.Minted)
	s.must(s.kms.Disable(t.Context(), s.record(spring).NewKEK))
	wantKind(t, s.rehearse(spring), journal.KeyUnusable)
	if r := s.record(spring); r.Rehearsed != "" || r.Phase != kek.Minted {
		t.Errorf("%+v", r)
	}
}

// TestRehearsalTries: the record names what was tried, of every source, KEK and shape;
// nothing but the record changes.
func TestRehearsalTries(t *testing.T) {
	s := newSite(t)
	past := s.past("before")
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	before := s.snapshot()
	calls := count(s, nil)
	s.must(s.rehearse(spring))
	s.world.SetHook(nil)
	if got, want := s.body("rows_rehearsed")["source.orders"], fmt.Sprintf("5 rows tried (%s 4, %s 1), 5 of 5 payloads open", s.first, past); got != want {
		t.Errorf("the record says %q, want %q", got, want)
	}
	if calls.n["Table.Rehearse"] != 3 || calls.n["KMS.ReEncrypt"] != 5+4+2 || calls.n["KMS.Decrypt"] != 2*(5+4+2) || calls.n["Table.Replace"] != 0 {
		t.Errorf("calls: %v", calls.n)
	}
	if now := s.snapshot(); !cmp.Equal(now.Rows, before.Rows, wholeBytes) {
		t.Error("rows changed")
	}
	before = s.snapshot()
	s.must(s.rehearse(spring)) // once more: it is done
	if diff := s.diff(before); diff != "" {
		t.Errorf("repeated (-was +is):\n%s", diff)
	}
	for _, phase := range []kek.Phase{kek.Started} {
		s, _ := at(t, rotation.ExecutionInput{}, phase)
		wantKind(t, s.rehearse(spring), journal.Refused)
	}
}

// TestRehearsalFindsTheRows: rows that come after thousands of other items are tried
// too, over pages that are empty.
func TestRehearsalFindsTheRows(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	sparse := s.newTable("sparse", s.first, "z-row")
	for i := range 500 {
		sparse.Plant(fmt.Sprintf("a-%04d", i), memstore.Record{Other: true})
	}
	sparse.SetEmptyPages(true)
	s.add(sparse)
	s.advance(spring, rotation.ExecutionInput{}, kek.Tested)
	if got := s.body("rows_rehearsed")["source.sparse"]; !strings.HasPrefix(got, "1 rows tried") {
		t.Errorf("the record says %q", got)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestRehearsalIsBounded: where there is no row it does not read a whole table.
func TestRehearsalIsBounded(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	other := s.newTable("other", s.first, "a-row")
	s.add(other)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.remove(other, "a-row")
	for i := range 3000 {
		other.Plant(fmt.Sprintf("b-%04d", i), memstore.Record{Other: true})
	}
	pages := 0
	count(s, func(op string, args []any) {
		if op == "Table.Scan" && args[0] == "other" {
			pages++
		}
	})
	s.must(s.rehearse(spring))
	if pages != 40 {
		t.Errorf("%d pages read", pages)
	}
	s.world.SetHook(nil)
	if got := s.body("rows_rehearsed")["source.other"]; got != "0 rows tried ()" {
		t.Errorf("the record says %q", got)
	}
}

// TestRehearsalOfPayloads: payloads that do not open are a note in a normal rotation,
// which leaves them alone. An emergency cannot re-encrypt them: it says so before the
// switch, and they block its retirement until they are said to be opaque. Then their
// data keys alone are rewrapped.
func TestRehearsalOfPayloads(t *testing.T) {
	ours := func(s *site, was []byte) { // for the last look: its data key still opens what was ours
		r := s.rows()[place{s.people, "p1"}]
		r.Ciphertext, r.Whole = was, false
		s.people.Plant("p1", r)
	}
	s := newSite(t)
	was := s.rows()[place{s.people, "p1"}].Ciphertext
	foreignPayload(s)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	if got := s.body("rows_rehearsed")["source.people"]; !strings.Contains(got, "3 of 4 payloads open") || !strings.Contains(got, `"payloads": "opaque"`) || strings.Contains(got, "overridden") {
		t.Errorf("the record says %q", got)
	}
	ours(s, was)
	s.settled()

	s = newSite(t)
	was = s.rows()[place{s.people, "p1"}].Ciphertext
	foreignPayload(s)
	d := newDriver(s)
	e := d.machine.Start(spring, emergency)
	if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "1 of people (not_opened 1)") {
		t.Fatalf("ended in %s: %v", e.Final, e.Failure)
	}
	if got := s.body("rows_rehearsed")["source.people"]; !strings.Contains(got, "overridden: RehearsalFailed") || !strings.Contains(got, "cannot re-encrypt 1 of 4") {
		t.Errorf("the record says %q", got)
	}
	opaque := s.rows()[place{s.people, "p1"}]
	opaque.Whole = true
	s.people.Plant("p1", opaque)
	def := s.people.Source()
	def.Definition = `{"payloads":"opaque"}`
	must(s.AddSource(t.Context(), def))
	e.Redrive()
	if e.Status != "SUCCEEDED" {
		t.Fatalf("declared opaque and redriven: %s: %v", e.Final, e.Failure)
	}
	now := s.rows()[place{s.people, "p1"}]
	if string(now.Ciphertext) != string(opaque.Ciphertext) || string(now.WrappedDEK) == string(opaque.WrappedDEK) || now.KEK != s.pointer().KEKID {
		t.Errorf("the row is %+v", now)
	}
	ours(s, was)
	s.settled()
}

// TestWholeRows: rows that KMS itself has sealed, without a data key, are rewrapped
// whole, in an emergency too, and open to the same.
func TestWholeRows(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, w := watched(t)
			raw := d.newTable("raw", "")
			for i := range 3 {
				id := fmt.Sprint("r", i)
				encctx := map[string]string{"table": "raw"}
				dek, wrapped, err := d.kms.GenerateDataKey(t.Context(), d.first, encctx)
				d.must(err)
				d.expect(raw, id, string(dek))
				raw.Plant(id, memstore.Record{KEK: d.first, WrappedDEK: wrapped, Context: encctx, Whole: true})
			}
			d.add(raw)
			d.complete(spring, in)
			w.check("at the end")
			d.settled()
			if got := d.body("rows_rehearsed")["source.raw"]; got != fmt.Sprintf("3 rows tried (%s 3)", d.first) {
				t.Errorf("the record says %q", got)
			}
		})
	}
}

// TestBoundRows: what is bound to a payload beside the encryption context is kept when
// an emergency encrypts it again.
func TestBoundRows(t *testing.T) {
	d, w := watched(t)
	encctx, bind := map[string]string{"tenant": "t1"}, map[string]string{"id": "b1"}
	dek, wrapped, err := d.kms.GenerateDataKey(t.Context(), d.first, encctx)
	d.must(err)
	rec := memstore.Record{KEK: d.first, WrappedDEK: wrapped, Context: encctx, Bind: bind}
	rec.Ciphertext, err = d.Keys.Cipher.Seal(dek, []byte("bound"), bound(rec))
	d.must(err)
	d.orders.Plant("b1", rec)
	d.expect(d.orders, "b1", "bound")
	d.complete(spring, emergency)
	w.check("at the end")
	d.settled()
	if got := d.body("rows_rehearsed")["source.orders"]; !strings.Contains(got, "5 of 5 payloads open") {
		t.Errorf("the record says %q", got)
	}
}

// TestCheckRows looks at a sample of real rows before a rotation and writes nothing.
func TestCheckRows(t *testing.T) {
	for name, tc := range map[string]struct {
		setup  func(s *site)
		mode   kek.Mode
		ok     bool
		detail string
	}{
		"sound":             {func(*site) {}, kek.Normal, true, "a sample of 4 rows unwraps, 4 of 4 payloads open"},
		"sound, emergency":  {func(*site) {}, kek.Emergency, true, "a sample of 4 rows unwraps, 4 of 4 payloads open"},
		"wrong context":     {rehearsals["a wrong context"].setup, kek.Normal, false, "a row cannot be rewrapped"},
		"reads are denied":  {rehearsals["reads are denied"].setup, kek.Normal, false, "AccessDenied"},
		"unaccounted":       {func(s *site) { s.people.Plant("p1", memstore.Record{KEK: "kek-9999", WrappedDEK: []byte{1}}) }, kek.Normal, false, "item p1: it is under KEK"},
		"foreign":           {foreignPayload, kek.Normal, true, "3 of 4 payloads open: an emergency cannot"},
		"foreign, and that": {foreignPayload, kek.Emergency, false, "3 of 4 payloads open: an emergency cannot"},
	} {
		s := newSite(t)
		tc.setup(s)
		before := s.snapshot().Rows
		checks := must(s.CheckRows(t.Context(), tc.mode))
		s.world.SetHook(nil)
		var people rotation.Check
		for _, c := range checks {
			if c.Name == "rows of people" {
				people = c
			} else if !c.OK {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if people.OK != tc.ok || !strings.Contains(people.Detail, tc.detail) || len(checks) != 3 {
			t.Errorf("%s: %+v of %d", name, people, len(checks))
		}
		if !cmp.Equal(before, s.snapshot().Rows, wholeBytes) {
			t.Errorf("%s: rows changed", name)
		}
	}
}

// TestCheckRowsOpensTheCorpus: before a rotation every known cipher is opened, so that one which
// would roll the rotation back is found days ahead.
func TestCheckRowsOpensTheCorpus(t *testing.T) {
	alter := func(change func(r *memstore.Record)) func(s *site) {
		return func(s *site) {
			r := s.rows()[place{s.corpus, "known-1.json"}]
			change(&r)
			s.corpus.Plant("known-1.json", r)
		}
	}
	deny := func(s *site) {
		s.world.SetHook(func(op string, _ ...any) (bool, error) {
			if op == "KMS.Decrypt" {
				return false, journal.ErrDenied
			}
			return true, nil
		})
	}
	for name, tc := range map[string]struct {
		setup  func(s *site)
		ok     bool
		detail string
	}{
		"sound":       {func(*site) {}, true, "each of 2 known ciphers opens"},
		"a payload":   {(*site).spoil, false, "its ciphertext does not open"},
		"a plaintext": {alter(func(r *memstore.Record) { r.PlainSHA = strings.Repeat("0", 64) }), false, "it opens to another plaintext"},
		"a KEK":       {alter(func(r *memstore.Record) { r.KEK = "kek-9999" }), false, "it is under KEK"},
		"denied":      {deny, false, "AccessDenied"},
	} {
		s := newSite(t)
		tc.setup(s)
		for _, c := range must(s.CheckRows(t.Context(), kek.Normal)) {
			if c.Name == "rows of corpus" && (c.OK != tc.ok || !strings.Contains(c.Detail, tc.detail)) {
				t.Errorf("%s: %+v", name, c)
			}
		}
	}
}

func foreignPayload(s *site) {
	r := s.rows()[place{s.people, "p1"}]
	r.Ciphertext = []byte("sealed by somebody else")
	s.people.Plant("p1", r)
}

// oneSided is a KMS that unwraps nothing of the corpus under one KEK, or unwraps it to
// another data key.
type oneSided struct {
	keyring.Wrapper
	under kek.ID
	other bool
}

func (k oneSided) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := k.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	if err == nil && id == k.under && encctx["table"] == "corpus" {
		if !k.other {
			return nil, fmt.Errorf("decrypt: %w", journal.ErrUnwrap)
		}
		dek[0] ^= 1
	}
	return dek, err
}

// TestDualUnwrapOpensUnderBoth: each known cipher is opened under the KEK that it is
// under and, rewrapped, under the new one; an opening under one of them is not enough.
func TestDualUnwrapOpensUnderBoth(t *testing.T) {
	for _, under := range []string{"old", "historic", "new"} {
		for _, other := range []bool{false, true} {
			s := newSite(t)
			past := s.past("before")
			s.plant(s.corpus, "known-0.json", past)
			s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
			s.must(s.rehearse(spring))
			id := map[string]kek.ID{"old": s.first, "historic": past, "new": s.record(spring).NewKEK}[under]
			s.Keys.Wrapper = oneSided{s.kms, id, other}
			wantKind(t, s.test(spring), journal.CorpusCorrupted)
			s.phase(spring, kek.Minted)
			s.Keys.Wrapper = s.kms
			var mu sync.Mutex
			calls := map[kek.ID]int{}
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op == "KMS.Decrypt" && args[2].(map[string]string)["table"] == "corpus" {
					mu.Lock()
					defer mu.Unlock()
					calls[args[0].(kek.ID)]++
				}
				return true, nil
			})
			s.must(s.test(spring))
			if s.world.SetHook(nil); calls[s.first] != 2 || calls[past] != 1 || calls[s.record(spring).NewKEK] != 3 {
				t.Errorf("opened %v", calls)
			}
		}
	}
}

// TestEmergencyWithoutProbes: an old KEK that does not wrap any more, because a person who
// saw it compromised has denied that, does not keep an emergency on it. A normal
// rotation is refused.
func TestEmergencyWithoutProbes(t *testing.T) {
	deny := func(s *site) {
		s.world.SetHook(func(op string, args ...any) (bool, error) {
			if op == "KMS.GenerateDataKey" && args[0] == s.first {
				return false, journal.ErrDenied
			}
			return true, nil
		})
	}
	s := newSite(t)
	past := s.past("before")
	deny(s)
	s.advance(spring, emergency, kek.Completed)
	if r := s.record(spring); len(r.Probes) != 1 || len(r.Probes[past]) == 0 {
		t.Errorf("probes %v", r.Probes)
	}
	s.settled()
	s = newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.must(s.rehearse(spring))
	deny(s)
	if err := s.test(spring); !errors.Is(err, journal.ErrDenied) {
		t.Errorf("a normal rotation: %v", err)
	}
	s.phase(spring, kek.Minted)
}

// TestRehearsalLeavesOpaquePayloadsOut: a payload that is said not to be this project's is
// no payload that opens, so that it makes up for none that does not.
func TestRehearsalLeavesOpaquePayloadsOut(t *testing.T) {
	s := newSite(t)
	foreignPayload(s)
	r := s.rows()[place{s.people, "p0"}]
	r.Whole = true
	s.people.Plant("p0", r)
	for _, c := range must(s.CheckRows(t.Context(), kek.Emergency)) {
		if c.Name == "rows of people" && (c.OK || !strings.Contains(c.Detail, "a sample of 4 rows unwraps, 2 of 3 payloads open: ")) {
			t.Errorf("%+v", c)
		}
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.must(s.rehearse(spring))
	if got := s.body("rows_rehearsed")["source.people"]; !strings.Contains(got, "2 of 3 payloads open") || !strings.Contains(got, "cannot re-encrypt 1 of 3") {
		t.Errorf("the record says %q", got)
	}
}
