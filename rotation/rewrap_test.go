package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// until is a context whose deadline is the test clock's.
type until struct {
	context.Context
	end time.Time
}

func (u until) Deadline() (time.Time, bool) { return u.end, true }

// counter counts calls by method.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func count(s *site, and func(op string, args []any)) *counter {
	c := &counter{n: map[string]int{}}
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		c.mu.Lock()
		c.n[op]++
		c.mu.Unlock()
		if and != nil {
			and(op, args)
		}
		return true, nil
	})
	return c
}

// TestRewrapRacesWriters changes rows between the read and the write of rewrap: an
// update wins whatever KEK it is under, and a deleted row does not come back.
func TestRewrapRacesWriters(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			s, _ := at(t, in, kek.Drained)
			fresh := s.pointer()
			update := func(id string, under kek.ID, epoch int64) func() error {
				plain := "updated " + id
				r := s.seal(s.orders, id, under, epoch, plain)
				s.expect(s.orders, id, plain)
				return func() error { return s.orders.Update(t.Context(), id, 1, r) }
			}
			races := map[string]func() error{
				"o0": update("o0", s.first, 1), // a writer that still holds the old KEK
				"o2": update("o2", fresh.KEKID, fresh.Epoch),
				"o1": func() error { s.remove(s.orders, "o1"); return nil },
			}
			var mu sync.Mutex
			lost := map[string]int{}
			s.world.SetHook(func(op string, args ...any) (bool, error) {
				if op != "Table.Replace" {
					return true, nil
				}
				id := args[1].(source.Row).ID
				mu.Lock()
				race := races[id]
				delete(races, id)
				lost[id]++
				mu.Unlock()
				if race != nil {
					if err := race(); err != nil {
						t.Errorf("%s: %v", id, err)
					}
				}
				return true, nil
			})
			s.advance(spring, in, kek.Rewrapped)
			if lost["o0"] != 2 || lost["o1"] != 1 || lost["o2"] != 1 || len(races) > 0 {
				t.Errorf("replacements tried: %v", lost)
			}
			s.world.SetHook(nil)
			s.advance(spring, in, kek.Completed)
			s.settled()
		})
	}
}

// TestRewrapGivesUpOnRestlessRow checks that a row which changes at every try does
// not hold a call forever, and does not count as moved.
func TestRewrapGivesUpOnRestlessRow(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Drained)
	version := int64(1)
	count(s, func(op string, args []any) {
		if op == "Table.Replace" && args[1].(source.Row).ID == "o0" {
			s.must(s.orders.Update(t.Context(), "o0", version, s.seal(s.orders, "o0", s.first, 1, "restless")))
			version++
		}
	})
	err := s.rewrapAll(spring)
	wantKind(t, err, journal.Transient)
	s.phase(spring, kek.Drained)
}

func TestRewrapRefuses(t *testing.T) {
	for _, phase := range []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched} {
		s, _ := at(t, rotation.ExecutionInput{}, phase)
		before := s.snapshot()
		for _, in := range []rotation.RewrapInput{{RotationID: spring, Source: "orders"}, {RotationID: spring, Complete: true}} {
			_, err := s.Rewrap(t.Context(), in)
			wantKind(t, err, journal.Refused)
		}
		if diff := s.diff(before); diff != "" {
			t.Errorf("at %s (-was +is):\n%s", phase, diff)
		}
	}
	s, _ := at(t, rotation.ExecutionInput{}, kek.Drained)
	for field, in := range map[string]rotation.RewrapInput{
		"source": {RotationID: spring, Source: "order"}, "segment": {RotationID: spring, Source: "orders", Segment: 2},
	} {
		_, err := s.Rewrap(t.Context(), in)
		wantKind(t, err, journal.InvalidInput)
		if e := typed(err); e.Field != field {
			t.Errorf("%+v: field %q", in, e.Field)
		}
	}
	_, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: -1})
	wantKind(t, err, journal.InvalidInput)
	if _, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Source: "orders", Segment: 1}); err != nil {
		t.Fatal(err)
	}
	complete := rotation.RewrapInput{RotationID: spring, Complete: true} // it does what is left, if there is time
	out, err := s.Rewrap(until{t.Context(), s.clock.now()}, complete)
	if err != nil || out.Done || len(out.Left) != 5 {
		t.Errorf("without time: %+v, %v", out, err)
	}
	s.phase(spring, kek.Drained)
	out, err = s.Rewrap(t.Context(), complete)
	if err != nil || !out.Done || out.Tally.Rewrapped != 10 {
		t.Errorf("%+v, %v", out, err)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// many fills the orders with n more rows.
func many(s *site, n int) {
	for i := range n {
		s.insert(s.orders, fmt.Sprintf("row-%04d", i))
	}
}

// TestRewrapStopsBeforeDeadline checks that a call saves its checkpoint and returns
// before its time is up, and that the next one continues from there.
func TestRewrapStopsBeforeDeadline(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	many(s, 300)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	calls := count(s, func(op string, _ []any) {
		if op == "Table.Scan" {
			s.clock.pass(30 * time.Second)
		}
	})
	in := rotation.RewrapInput{RotationID: spring, Source: "orders"}
	call := func() rotation.SweepOutput {
		out, err := s.Rewrap(until{t.Context(), s.clock.now().Add(100 * time.Second)}, in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := call(); out.Done || out.Tally.Rewrapped != 200 || calls.n["Table.Scan"] != 3 { // the third page came too late
		t.Errorf("first call: %+v after %d pages", out, calls.n["Table.Scan"])
	}
	if out := call(); !out.Done || out.Tally.Rewrapped != 304 || out.Tally.Scanned != 304 || out.Tally.Other != 1 || calls.n["Table.Scan"] != 5 {
		t.Errorf("second call: %+v after %d pages", out, calls.n["Table.Scan"])
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestDedupe checks that rows which share a wrapped DEK and its context cost one
// KMS request, and that another context is another DEK.
func TestDedupe(t *testing.T) {
	s, _ := at(t, rotation.ExecutionInput{}, kek.Drained)
	s.Config.Segments = 1
	shared := s.seal(s.people, "shared", s.first, 1, "shared")
	shared.Version = 1
	for i := range 20 {
		id := fmt.Sprintf("share-%d", i)
		s.people.Plant(id, shared)
		s.expect(s.people, id, "shared")
	}
	stolen := shared // the wrapped DEK of one row in another: KMS must be asked, and refuses
	stolen.Context = map[string]string{"table": "people", "id": "stolen"}
	s.people.Plant("stolen", stolen)
	calls := count(s, nil)
	for i := range 2 {
		out, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Source: "people", Segment: i})
		if err != nil {
			t.Fatal(err)
		}
		if out.Tally.Quarantined > 1 {
			t.Errorf("tally %+v", out.Tally)
		}
	}
	if got := calls.n["KMS.ReEncrypt"]; got < 4+1+1 || got > 4+2+1 { // once per segment and call
		t.Errorf("%d requests to KMS for 4 rows, 20 that share a DEK, and a stolen one", got)
	}
	_, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Complete: true})
	if err == nil {
		t.Error("completed over a row that does not unwrap")
	}
}

// TestPoisonRows checks that rows which cannot be moved are named, block the
// retirement and lose no key, and that the rotation continues once they are mended.
func TestPoisonRows(t *testing.T) {
	poison := map[string]func(s *site, r *memstore.Record){
		"defect":      func(_ *site, r *memstore.Record) { r.Defect = "it has no context" },
		"garbage":     func(_ *site, r *memstore.Record) { r.WrappedDEK = []byte("garbage") },
		"unknown KEK": func(_ *site, r *memstore.Record) { r.KEK = "kek-9999" },
		"context":     func(_ *site, r *memstore.Record) { r.Context = map[string]string{"id": "other"} },
		"payload":     func(_ *site, r *memstore.Record) { r.Ciphertext[3] ^= 1 },
		"no payload":  func(_ *site, r *memstore.Record) { r.Ciphertext = nil },
	}
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		for name, spoil := range poison {
			if mode == "normal" && strings.Contains(name, "payload") {
				continue // a rewrap does not look at it
			}
			t.Run(mode+" "+name, func(t *testing.T) {
				s := newSite(t)
				d := newDriver(s)
				sound := s.seal(s.orders, "o2", s.first, 1, "secret of o2")
				bad := s.rows()[place{s.orders, "o2"}]
				bad.Ciphertext = append([]byte{}, bad.Ciphertext...)
				spoil(s, &bad)
				if mode == "emergency" {
					s.orders.Plant("o2", bad)
				}
				d.before = func(c call) { // a normal rotation that met it before its switch would be rolled back
					if c.state == "Drain" {
						s.orders.Plant("o2", bad)
					}
				}
				e := d.machine.Start(spring, in)
				d.before = nil
				if e.Final != "Halted" || !strings.Contains(e.Failure.Cause, "RowsQuarantined") || !strings.Contains(e.Failure.Cause, "1 of orders (") || strings.Contains(e.Failure.Cause, "o2") {
					t.Fatalf("ended in %s: %v", e.Final, e.Failure)
				}
				s.phase(spring, kek.Drained)
				if s.state(s.first) != kek.Sealed || !s.enabled(s.first) {
					t.Errorf("the old KEK is %s, enabled %t", s.state(s.first), s.enabled(s.first))
				}
				e.Redrive()
				if e.Final != "Halted" {
					t.Errorf("redriven over a poison row it ended in %s", e.Final)
				}
				s.orders.Plant("o2", sound)
				e.Redrive()
				if e.Status != "SUCCEEDED" {
					t.Fatalf("mended and redriven: %s: %v", e.Final, e.Failure)
				}
				if body := s.body("rows_rewrapped"); body["source.orders"] != "scanned 4, rewrapped 4" || body["source.people"] != "scanned 4, rewrapped 4" {
					t.Errorf("rows that moved before the halt are not counted, or twice: %v", body)
				}
				s.settled()
			})
		}
	}
}

// TestForgedRewrapCount: of a checkpoint that is not proven nothing stays when its segment is read
// again, the number of moved rows neither.
func TestForgedRewrapCount(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
	sound := s.rows()[place{s.orders, "o2"}]
	bad := sound
	bad.Defect = "it has no context"
	s.orders.Plant("o2", bad)
	wantKind(t, s.rewrapAll(spring), journal.RowsQuarantined)
	forged := 0
	for _, src := range s.record(spring).Sources {
		for _, c := range must(s.store.ListCheckpoints(t.Context(), spring, rotation.ProgressName(src), rotation.PassRewrap)) {
			if c.Tally.Quarantined > 0 {
				forged++
				c.Tally.Rewrapped = 1000
				s.must(s.store.SaveCheckpoint(t.Context(), c))
			}
		}
	}
	s.orders.Plant("o2", sound)
	s.must(s.rewrapAll(spring))
	if got := s.body("rows_rewrapped")["source.orders"]; forged != 1 || got != "scanned 4, rewrapped 3" { // the row beside it had moved
		t.Errorf("%d forged: %s", forged, got)
	}
}

// TestNextOfQuarantine: a row under a KEK that an earlier rotation retired can be brought back, so
// the refusal does not say to delete it. A row that is garbage cannot.
func TestNextOfQuarantine(t *testing.T) {
	for want, stale := range map[journal.Action]bool{journal.RestoreOrphans: true, journal.CorrectRows: false} {
		s := newSite(t)
		row := s.seal(s.orders, "o2", s.first, 1, "secret of o2")
		s.advance("earlier", rotation.ExecutionInput{}, kek.Completed)
		s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
		if !stale {
			row = s.rows()[place{s.orders, "o2"}]
			row.WrappedDEK = []byte("garbage")
		}
		s.orders.Plant("o2", row)
		err := s.rewrapAll(spring)
		wantKind(t, err, journal.RowsQuarantined)
		if next := typed(err).Next; next.Do != want || next.Rotation != spring {
			t.Errorf("under a retired KEK %v: %+v, want %s", stale, next, want)
		}
	}
}

// TestRewrapNamesDisabledKey is the regression test of an emergency rewrap that
// blamed the old KEK when the new one was disabled.
func TestRewrapNamesDisabledKey(t *testing.T) {
	for _, old := range []bool{true, false} {
		s, _ := at(t, emergency, kek.Drained)
		id := s.pointer().KEKID
		if old {
			id = s.first
		}
		s.world.SetHook(nil)
		s.must(s.kms.Disable(t.Context(), id))
		err := s.rewrapAll(spring)
		wantKind(t, err, journal.KeyUnusable)
		if e := typed(err); e.Field != string(id) || !errors.Is(e, journal.ErrKeyDisabled) {
			t.Errorf("%s is disabled, the error blames %q", id, e.Field)
		}
	}
}

// TestConfirmMovesPlantedRow checks that the second scan moves a row that came to
// be under the old KEK after the first, as from a backup.
func TestConfirmMovesPlantedRow(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			s, w := at(t, in, kek.Rewrapped)
			s.plant(s.people, "restored", s.first)
			out, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
			if err != nil || !out.Done {
				t.Fatalf("%+v, %v", out, err)
			}
			w.check("after retire")
			s.advance(spring, in, kek.Completed)
			s.settled()
		})
	}
}

// TestConfirmRestartsUntilClean plants a row behind the second scan's back: since
// the scan had moved another one, it starts over and finds it.
func TestConfirmRestartsUntilClean(t *testing.T) {
	s := newSite(t)
	s.Config.Segments = 1
	many(s, 300)
	s.advance(spring, rotation.ExecutionInput{}, kek.Rewrapped)
	behind := s.seal(s.orders, "a-behind", s.first, 1, "behind")
	s.plant(s.orders, "z-ahead", s.first)
	pages := 0
	calls := count(s, func(op string, args []any) {
		if op == "Table.Scan" && args[0] == "orders" {
			if pages++; pages == 3 {
				s.orders.Plant("a-behind", behind)
				s.expect(s.orders, "a-behind", "behind")
			}
		}
	})
	out, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
	if err != nil || !out.Done {
		t.Fatalf("%+v, %v", out, err)
	}
	if pages != 3*4 || calls.n["Table.Replace"] != 2 { // moved z, then a, then clean
		t.Errorf("%d pages, %d rows moved", pages, calls.n["Table.Replace"])
	}
	s.world.SetHook(nil)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestConfirmPoisonBlocks checks that a row that turns bad after the rewrap keeps
// the old KEK from being retired.
func TestConfirmPoisonBlocks(t *testing.T) {
	s, w := at(t, rotation.ExecutionInput{}, kek.Rewrapped)
	s.plant(s.people, "restored", s.first)
	good := s.rows()[place{s.people, "restored"}]
	bad := good
	bad.Defect = "it has no context"
	s.people.Plant("restored", bad)
	for range 2 {
		_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
		wantKind(t, err, journal.RowsQuarantined)
		if s.state(s.first) != kek.Sealed || !s.enabled(s.first) {
			t.Errorf("the old KEK is %s, enabled %t", s.state(s.first), s.enabled(s.first))
		}
	}
	s.people.Plant("restored", good)
	w.check("mended")
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestRetireRefuses checks that the old KEK is retired in no phase before
// rewrapped, for every caller.
func TestRetireRefuses(t *testing.T) {
	for _, phase := range []kek.Phase{kek.Started, kek.Minted, kek.Tested, kek.Switched, kek.Drained} {
		for _, in := range []rotation.ExecutionInput{{}, emergency} {
			s, _ := at(t, in, phase)
			before := s.snapshot()
			_, err := s.Retire(t.Context(), rotation.RetireInput{RotationID: spring})
			wantKind(t, err, journal.Refused)
			_, err = s.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: "destroy"})
			wantKind(t, err, journal.InvalidInput)
			if diff := s.diff(before); diff != "" {
				t.Errorf("at %s (-was +is):\n%s", phase, diff)
			}
		}
	}
}
