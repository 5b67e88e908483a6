package rotation_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// fencedCarts registers a table behind a fence of its own, with rows.
func (s *site) fencedCarts() *memstore.Table {
	s.t.Helper()
	carts := s.world.NewFencedTable("carts")
	s.tables = append(s.tables, carts)
	s.add(carts)
	for i := range 3 {
		s.insert(carts, fmt.Sprintf("c%d", i))
	}
	return carts
}

// insertUnder tries to insert a row as an application that sleeps does: under the KEK that
// it once read, by each shard.
func (s *site) insertUnder(table *memstore.Table, id kek.ID) (errs []error) {
	s.t.Helper()
	for n := range shards {
		err := table.Insert(as("application"), fmt.Sprintf("late-%s-%d", id, n), memstore.Record{KEK: id}, n)
		errs = append(errs, err)
	}
	return errs
}

func allFenced(errs []error) bool {
	return !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, memstore.ErrFenced) })
}

// TestOwnFence: a driver's own fence is open under the new KEK before the pointer names it,
// and sealed under the old one before any row is read permanently.
func TestOwnFence(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(name, func(t *testing.T) {
			d, w := watched(t)
			carts := d.fencedCarts()
			var mu sync.Mutex // segments are walked side by side
			var ops []string
			saw := func(op string) {
				mu.Lock()
				defer mu.Unlock()
				ops = append(ops, op)
			}
			d.world.SetHook(func(op string, args ...any) (bool, error) {
				switch op {
				case "Fence.Open", "Fence.Seal":
					saw(fmt.Sprint(op, " ", args[1]))
				case "Store.Apply":
					saw(args[0].(kek.Change).Event)
				case "Table.Scan":
					if args[0] == "carts" && d.record(spring).Phase.Reached(kek.Switched) {
						saw("scan")
					}
				}
				return w.hook(op, args...)
			})
			d.complete(spring, in)
			w.check("at the end")
			d.settled()
			before := func(a, b string) {
				t.Helper()
				if i, j := slices.Index(ops, a), slices.Index(ops, b); i < 0 || j < 0 || i > j {
					t.Errorf("%s is not before %s: %q", a, b, ops)
				}
			}
			next := string(d.pointer().KEKID)
			before("Fence.Open "+next, kek.EventPointerSwitched)
			before(kek.EventPointerSwitched, "Fence.Seal "+string(d.first))
			before("Fence.Seal "+string(d.first), kek.EventOldKEKSealed)
			before("Fence.Seal "+string(d.first), "scan")
			if slices.Contains(ops, "Fence.Seal "+next) {
				t.Errorf("the pointer's KEK was sealed: %q", ops)
			}
			if errs := d.insertUnder(carts, d.first); !allFenced(errs) {
				t.Errorf("an insert under the old KEK: %v", errs)
			}
			d.insert(carts, "afterwards")
		})
	}
}

// TestOwnFenceRepeated: a step that dies at any call of a driver's fence, before it took
// effect or after, leaves what the step makes good when it is run again.
func TestOwnFenceRepeated(t *testing.T) {
	for _, c := range []struct {
		op  string
		nth int
	}{{"Fence.Open", 1}, {"Fence.Seal", 1}, {"Fence.Seal", 2}} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %d applied %t", c.op, c.nth, applied), func(t *testing.T) {
				s := newSite(t)
				carts := s.fencedCarts()
				s.advance(spring, rotation.ExecutionInput{}, kek.Tested)
				calls := 0
				s.hook(func(op string, _ ...any) (bool, error) {
					if op != c.op {
						return true, nil
					}
					if calls++; calls == c.nth {
						return applied, errAway
					}
					return true, nil
				})
				if _, err := s.Switch(t.Context(), input(spring)); c.op == "Fence.Open" {
					wantKind(t, err, journal.Transient)
					s.phase(spring, kek.Tested)
					if s.pointer().KEKID != s.first {
						t.Fatal("the pointer names a KEK whose fence may not be open")
					}
				}
				s.advance(spring, rotation.ExecutionInput{}, kek.Switched)
				if _, err := s.Drain(t.Context(), input(spring)); c.op == "Fence.Seal" {
					wantKind(t, err, journal.Transient)
					s.phase(spring, kek.Switched)
				}
				s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
				if errs := s.insertUnder(carts, s.first); !allFenced(errs) {
					t.Errorf("an insert under the old KEK: %v", errs)
				}
				s.settled()
			})
		}
	}
}

// TestOwnFenceOfOtherKEKs: a KEK that no pointer named, because its rotation was rolled back
// after the switch had opened the fence, is sealed by the next drain.
func TestOwnFenceOfOtherKEKs(t *testing.T) {
	s := newSite(t)
	carts := s.fencedCarts()
	s.advance(spring, rotation.ExecutionInput{}, kek.Tested)
	s.hook(func(op string, args ...any) (bool, error) {
		if op == "Store.Apply" && args[0].(kek.Change).Event == kek.EventPointerSwitched {
			return false, errAway
		}
		return true, nil
	})
	_, err := s.Switch(t.Context(), input(spring))
	wantKind(t, err, journal.Transient)
	s.hook(nil)
	abandoned := s.record(spring).NewKEK
	_, err = s.Retire(t.Context(), rotation.RetireInput{RotationID: spring, Action: rotation.ActionPreSwitchFailure, Error: "Internal"})
	s.must(err)
	s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
	for _, id := range []kek.ID{abandoned, s.first} {
		if errs := s.insertUnder(carts, id); !allFenced(errs) {
			t.Errorf("an insert under %s: %v", id, errs)
		}
	}
	s.settled()
}

// TestOwnFenceJoins: a source is registered with its fence open under the pointer's KEK
// alone, also when the pointer moves while it is registered.
func TestOwnFenceJoins(t *testing.T) {
	s := newSite(t)
	carts := s.world.NewFencedTable("carts")
	s.tables = append(s.tables, carts)
	rotated := false
	s.hook(func(op string, args ...any) (bool, error) {
		if op == "Store.Apply" && args[0].(kek.Change).Event == kek.EventSourceAdded && !rotated {
			rotated = true
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		}
		return true, nil
	})
	s.add(carts)
	if errs := s.insertUnder(carts, s.first); !rotated || !allFenced(errs) {
		t.Errorf("an insert under the KEK that the pointer has left: %v", errs)
	}
	s.insert(carts, "c0")
	s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
	s.settled()
}

// TestOwnFenceJoinsWhole: a source whose own fence cannot be sealed under the KEKs that the
// pointer has left, or cannot be opened under its own, is not registered.
func TestOwnFenceJoinsWhole(t *testing.T) {
	s := newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	carts := s.world.NewFencedTable("carts")
	s.tables = append(s.tables, carts)
	for _, failing := range []string{"Fence.Seal", "Fence.Open"} {
		s.hook(func(op string, _ ...any) (bool, error) {
			if op == failing {
				return false, errAway
			}
			return true, nil
		})
		_, err := s.AddSource(as("person"), carts.Source())
		s.hook(nil)
		wantKind(t, err, journal.Transient)
		if v := must(s.store.Load(t.Context(), "")); slices.ContainsFunc(v.Sources, func(src kek.Source) bool { return src.Name == "carts" }) {
			t.Fatalf("%s failed, and the source is registered", failing)
		}
	}
	s.add(carts)
	if errs := s.insertUnder(carts, s.first); !allFenced(errs) {
		t.Errorf("an insert under the KEK that the pointer has left: %v", errs)
	}
	s.insert(carts, "c0")
}

// TestOwnFenceGenesis: a source of the genesis takes rows at once.
func TestOwnFenceGenesis(t *testing.T) {
	s := newSite(t)
	w := memstore.New(chain, s.clock.now)
	carts := w.NewFencedTable("carts")
	steps := *s.Steps
	steps.Journal.Registry, steps.Journal.Outbox, steps.Journal.AuditBucket, steps.Keys.Admin, steps.Keys.Wrapper, steps.OpenSource = w.Store(), w.Store(), w.Vault(), w.KMS(), w.KMS(), w.Open
	k := must(w.KMS().Create(as("person"), "", 0, "genesis", keyring.Key{}))
	must(steps.Genesis(as("person"), k.ID, "genesis", []kek.Source{carts.Source()}))
	s.must(carts.Insert(as("application"), "c0", memstore.Record{KEK: k.ID}, shards-1))
	if src := must(w.Open(carts.Source())); source.FenceOf(src) == nil {
		t.Error("the driver does not state its fence")
	}
}
