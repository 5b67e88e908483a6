package trace_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// twice is two complete rotations, the second of them while a worker of the first sleeps
// between its read and its write of a row, and a call of the first's drain comes late.
func twice(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	var asleep atomic.Bool
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "Table.Replace" && asleep.CompareAndSwap(false, true) {
			s.must(s.run(id, "normal"))
			s.must(s.insert("between", s.pointer(), 0))
			s.must(s.run("Q3-2026-rotation", "normal"))
		}
		return true, nil
	})
	s.toTested("normal")
	s.switched()
	s.drained()
	var halt *journal.Error // of another row, if its worker comes when the old key is off
	if _, err := s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Source: "orders", Segment: 0}); err != nil && !errors.As(err, &halt) {
		t.Fatal(err)
	}
	_, err := s.Drain(s.as("drain"), s.in())
	s.must(err)
	if !asleep.Load() {
		t.Fatal("no worker slept")
	}
	return s.recorder.Events()
}

// outraced is a rotation that two processes mint a key for at once: one of them finds
// that the alias has an owner, and disables the key that it has made.
func outraced(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	inside := false
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "KMS.Create" && !inside && args[0] == id {
			inside = true
			_, err := s.Mint(s.as("mint"), s.in())
			s.must(err)
		}
		return true, nil
	})
	s.must(s.run(id, "normal"))
	return s.recorder.Events()
}

// failedAtOnce is an emergency whose first attempt is given up before it has a key, and
// one of whose keys was made by a call that nobody heard of again.
func failedAtOnce(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	s.start(id, "emergency")
	_, err := s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id, Action: rotation.ActionRemint, FailedAttempt: 1, Error: "States.Timeout"})
	s.must(err)
	_, err = s.Keys.Admin.Create(s.as("mint"), id, 1, "answer lost", keyring.Key{})
	s.must(err)
	s.must(s.run(id, "emergency"))
	s.must(s.Journal.RecordEvent(s.as(trace.Person), s.world.Store(), audit.Event{ID: "a note", Type: "rows_restored", Step: "restore"}))
	return s.recorder.Events()
}

// takenOver is a rotation that an emergency ends after its switch, and another that one
// ends before it.
func takenOver(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	s.toTested("normal")
	s.switched()
	s.must(s.run("emergency-1", "emergency"))
	s.start("again", "normal")
	s.rehearsed("again")
	s.must(s.run("emergency-2", "emergency"))
	return s.recorder.Events()
}

// adopted is a deployment in which others write rows: without a label, with a wrong one,
// and under a KEK that is only registered later. They are adopted; the wrong label halts
// the rotation.
func adopted(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	old, err := s.Keys.Admin.Create(s.as(trace.Person), "", 0, "historic", keyring.Key{})
	s.must(err)
	p := s.pointer()
	bare := s.seal("bare", p)
	bare.Kind = source.NoKEK
	s.orders.Plant("bare", bare)
	p.KEKID, p.Epoch = old.ID, 0
	s.orders.Plant("historic", s.seal("historic", p))
	s.must(s.RegisterKEK(s.as(trace.Person), old.ID, "historic"))
	if out, err := s.Adopt(s.as(trace.Person), s.world.Store(), rotation.AdoptInput{Source: "orders", Write: true}); err != nil || out.Written != 1 {
		t.Fatalf("adopt %+v, %v", out, err)
	}
	s.Config.Deep = true
	s.toTested("normal")
	s.switched()
	wrong, _, err := s.orders.Get(s.as(trace.Application), "o2")
	s.must(err)
	wrong.KEK = s.pointer().KEKID
	s.orders.Plant("o2", wrong)
	s.drained()
	var halt *journal.Error
	if err := s.run(id, "normal"); !errors.As(err, &halt) || halt.Kind != journal.RowsQuarantined {
		t.Fatalf("a rotation with a wrong label ends with %v", err)
	}
	return s.recorder.Events()
}

// enabled is a rotation after which an application deletes a row, a person enables the
// old key, and a writer that slept inserts too late.
func enabled(t *testing.T) []trace.Event {
	t.Helper()
	s := newSite(t)
	first := s.pointer()
	s.must(s.run(id, "normal"))
	s.must(s.orders.Delete(s.as(trace.Application), "o1"))
	s.world.KMS().Enable(first.KEKID)
	if err := s.insert("late", first, 0); !errors.Is(err, memstore.ErrFenced) {
		t.Fatalf("an insert under the old KEK: %v", err)
	}
	return s.recorder.Events()
}

// recorded are the runs by name.
var recorded = []struct {
	name string
	run  func(*testing.T) []trace.Event
}{
	{"green", green},
	{"rolled back", rolledBack},
	{"emergency", urgent},
	{"lost answers", crashed},
	{"two rotations", twice},
	{"two keys minted at once", outraced},
	{"emergency without a first key", failedAtOnce},
	{"taken over", takenOver},
	{"rows of others", adopted},
	{"key enabled again", enabled},
}
