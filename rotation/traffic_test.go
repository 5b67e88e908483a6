package rotation_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// traffic are applications that write while a rotation runs: with a pointer read
// some time ago, a lease that may have run out, and rows sealed but not yet written.
type traffic struct {
	*site
	w       *watch
	mu      sync.Mutex
	seed    uint64
	calls   map[string]int
	writers [3]writer
	done    map[string]int // what happened, so that a test can see that it did
	next    int
}

type writer struct {
	pointer kek.Pointer
	held    func() // a write that it was paused before
}

func (tr *traffic) hook(op string, args ...any) (bool, error) {
	if tr.w.looks(op, args) || tr.own(op, args) {
		return true, nil
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.w.check("before " + op)
	stem := op + subject(op, args)
	tr.calls[stem]++
	h := fnv.New64a()
	fmt.Fprint(h, stem, tr.calls[stem])
	r := rand.New(rand.NewPCG(tr.seed, h.Sum64())) // what happens at a call depends on nothing else
	acts := r.IntN(4)
	if tr.seed%2 == 1 && r.IntN(12) > 0 { // applications that sleep long
		acts = 0
	}
	for range acts {
		tr.act(r)
	}
	return true, nil
}

// own reports whether a call is one that applications make.
func (tr *traffic) own(op string, args []any) bool {
	switch op {
	case "Table.Insert", "Table.Update", "Table.Delete", "Table.Get", "Store.PutLease":
		return true
	case "KMS.GenerateDataKey": // the context of the rows that they make has an id alone
		encctx := args[1].(map[string]string)
		return len(encctx) == 1 && encctx["id"] != ""
	}
	return false
}

// act lets one application do one thing.
func (tr *traffic) act(r *rand.Rand) {
	w := &tr.writers[r.IntN(len(tr.writers))]
	switch n := r.IntN(8); {
	case w.held != nil && n < 4: // it wakes up and writes what it held
		w.held()
		w.held = nil
	case n < 2 || w.pointer.KEKID == "":
		w.pointer = tr.pointer()
		tr.must(tr.store.PutLease(tr.t.Context(), rotation.Lease{
			KEK: w.pointer.KEKID, Holder: fmt.Sprint(w), Refs: 1, Expires: tr.clock.now().Add(time.Second),
		}))
	case n < 5:
		w.held = tr.insertLater(r, w)
	case n < 7:
		w.held = tr.updateLater(r, w)
	default:
		if id, ok := tr.pick(r); ok {
			tr.remove(tr.orders, id)
			tr.done["deleted"]++
		}
	}
}

// sealed makes a row as the writer sees the world; false if its KEK is dead.
func (tr *traffic) sealed(w *writer, id, plain string) (memstore.Record, bool) {
	encctx := map[string]string{"id": id}
	dek, wrapped, err := tr.kms.GenerateDataKey(tr.t.Context(), w.pointer.KEKID, encctx)
	if errors.Is(err, journal.ErrKeyDisabled) {
		tr.done["found its KEK dead"]++
		w.pointer = tr.pointer()
		return memstore.Record{}, false
	}
	tr.must(err)
	ct, err := tr.Keys.Cipher.Seal(dek, []byte(plain), encctx)
	tr.must(err)
	return memstore.Record{KEK: w.pointer.KEKID, Epoch: w.pointer.Epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: encctx}, true
}

func (tr *traffic) insertLater(r *rand.Rand, w *writer) func() {
	tr.next++
	id, shard := fmt.Sprintf("n%d", tr.next), r.IntN(shards)
	row, ok := tr.sealed(w, id, "new "+id)
	if !ok {
		return nil
	}
	return func() {
		switch err := tr.orders.Insert(tr.t.Context(), id, row, shard); {
		case err == nil:
			tr.expect(tr.orders, id, "new "+id)
			tr.done["inserted under "+tr.age(row.KEK)]++
		case errors.Is(err, memstore.ErrFenced):
			tr.done["fenced"]++
			w.pointer = tr.pointer()
		default:
			tr.t.Error(err)
		}
	}
}

func (tr *traffic) updateLater(r *rand.Rand, w *writer) func() {
	id, ok := tr.pick(r)
	if !ok {
		return nil
	}
	was, _, err := tr.orders.Get(tr.t.Context(), id)
	tr.must(err)
	plain := fmt.Sprintf("update %d of %s", was.Version, id)
	row, ok := tr.sealed(w, id, plain)
	if !ok {
		return nil
	}
	return func() {
		switch err := tr.orders.Update(tr.t.Context(), id, was.Version, row); {
		case err == nil:
			tr.expect(tr.orders, id, plain)
			tr.done["updated under "+tr.age(row.KEK)]++
		case errors.Is(err, memstore.ErrChanged):
			tr.done["too late"]++
			w.pointer = tr.pointer()
		default:
			tr.t.Error(err)
		}
	}
}

// age says whether a KEK is the pointer's.
func (tr *traffic) age(id kek.ID) string {
	if id == tr.pointer().KEKID {
		return "the pointer's KEK"
	}
	return "the old KEK"
}

// pick chooses a row.
func (tr *traffic) pick(r *rand.Rand) (string, bool) {
	var ids []string
	tr.orders.Each(func(id string, rec memstore.Record) {
		if !rec.Other && !rec.Declared {
			ids = append(ids, id)
		}
	})
	if len(ids) == 0 {
		return "", false
	}
	return ids[r.IntN(len(ids))], true
}

// TestTraffic rotates twice while applications write at every call, some of them
// paused for long: no row is orphaned, lost or brought back, at any moment.
func TestTraffic(t *testing.T) {
	done := map[string]int{}
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		for seed := range uint64(40) {
			t.Run(fmt.Sprintf("%s seed %d", mode, seed), func(t *testing.T) {
				s := newSite(t)
				s.orders.Plant("settings", memstore.Record{Declared: true}) // it may be the only item that is left
				tr := &traffic{site: s, w: newWatch(s), seed: seed, calls: map[string]int{}, done: done}
				s.world.SetHook(tr.hook)
				d := newDriver(s)
				for _, name := range []string{spring, summer} {
					e := d.finish(name, in)
					if e.Status != "SUCCEEDED" {
						t.Fatalf("%s ended in %s: %v", name, e.Final, e.Failure)
					}
				}
				for i := range tr.writers { // the last sleepers wake up
					if held := tr.writers[i].held; held != nil {
						held()
					}
				}
				tr.w.check("at the end")
			})
		}
	}
	for _, must := range []string{
		"inserted under the pointer's KEK", "inserted under the old KEK", "updated under the pointer's KEK", "updated under the old KEK",
		"fenced", "too late", "found its KEK dead", "deleted",
	} {
		if done[must] < 10 {
			t.Errorf("%q happened %d times: the traffic proves little", must, done[must])
		}
	}
}
