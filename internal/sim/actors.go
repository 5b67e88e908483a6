package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/internal/memstore"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// actors are the applications: two that write and one that reads. They write as
// package envelope does: a lease, a second look at the pointer, a fenced insert or
// a conditional update, and all of it again if that is refused.
type actors struct {
	run     *run
	writers [2]writer
	seen    *memstore.Record // what the reader holds
	seenID  string
	want    map[string]string // what each row opens to
	made    int
}

type writer struct {
	busy   bool
	insert bool
	id     string
	read   int64 // version that the update replaces
	plain  string
	record memstore.Record
	lease  rotation.Lease
}

const aRow = "row-1"

var ctx = context.Background()

func (a *actors) act(f Fault) {
	switch f.Kind {
	case Begin:
		a.begin(f.Arg/2, f.Arg%2 == 0, "")
	case Finish:
		a.finish(f.Arg)
	case Delete:
		a.run.must(a.run.table.Delete(ctx, aRow))
		delete(a.want, aRow)
	case Restore:
		a.restore()
	case Look:
		if rec, ok, err := a.run.table.Get(ctx, aRow); err == nil && ok {
			a.seen, a.seenID = &rec, aRow
		}
	case Open:
		a.open()
	default: // no application's
	}
}

func encctx(id string) map[string]string { return map[string]string{"table": "rows", "id": id} }

// seal makes a record under a KEK; false if that is not usable.
func (a *actors) seal(id, plain string, under kek.ID, epoch int64) (memstore.Record, error) {
	c := encctx(id)
	dek, wrapped, err := a.run.kms.GenerateDataKey(ctx, under, c)
	if err != nil {
		return memstore.Record{}, err
	}
	ct, err := a.run.steps.Cipher.Seal(dek, []byte(plain), c)
	a.run.must(err)
	sum := sha256.Sum256([]byte(plain))
	return memstore.Record{
		KEK: under, Epoch: epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: c, PlainSHA: hex.EncodeToString(sum[:]),
	}, nil
}

// begin lets an application seal a row and fall asleep before it writes it.
func (a *actors) begin(n int, insert bool, id string) {
	w := &a.writers[n]
	if w.busy {
		return
	}
	a.made++
	if id == "" {
		if id = aRow; insert {
			id = fmt.Sprintf("new-%d", a.made)
		}
	}
	*w = writer{busy: true, insert: insert, id: id, plain: fmt.Sprintf("%s by %d", id, a.made)}
	if !a.prepare(w) {
		w.busy = false
		return
	}
	a.run.tell("writer %d holds a sealed row %s under %s, epoch %d", n, id, w.record.KEK, w.record.Epoch)
}

// prepare takes a lease on the pointer's KEK and seals under it; false if the row
// to update is gone.
func (a *actors) prepare(w *writer) bool {
	r := a.run
	if !w.insert {
		rec, ok, err := r.table.Get(ctx, w.id)
		if err != nil || !ok {
			return false
		}
		w.read = rec.Version
	}
	p, err := r.store.Pointer(ctx)
	r.must(err)
	a.made++
	w.lease = rotation.Lease{KEK: p.KEKID, Holder: fmt.Sprint("app-", a.made), Refs: 1, Expires: r.now.Add(time.Minute)}
	r.must(r.store.PutLease(ctx, w.lease))
	if w.record, err = a.seal(w.id, w.plain, p.KEKID, p.Epoch); err != nil {
		r.violated("PointerUsable", "an application cannot seal under the pointer's KEK %s: %v", p.KEKID, err)
		return false
	}
	return true
}

// finish lets an application write what it holds.
func (a *actors) finish(n int) {
	w := &a.writers[n]
	if !w.busy {
		return
	}
	w.busy = false
	r := a.run
	for range 4 {
		var err error
		if w.insert {
			err = r.table.Insert(ctx, w.id, w.record, a.made%shards)
		} else {
			err = r.table.Update(ctx, w.id, w.read, w.record)
		}
		r.must(r.store.DropLease(ctx, w.lease))
		if err == nil {
			a.want[w.id] = w.plain
			r.tell("writer %d writes row %s under %s", n, w.id, w.record.KEK)
			return
		}
		r.tell("writer %d is refused: %v", n, err)
		if !errors.Is(err, memstore.ErrFenced) && !errors.Is(err, memstore.ErrChanged) {
			r.violated("WritersServed", "write %s: %v", w.id, err)
			return
		}
		if !a.prepare(w) {
			return
		}
	}
	r.violated("WritersServed", "row %s is refused again and again", w.id)
}

// restore brings a row of a backup back under the old KEK, past the fence. That is
// allowed until the second scan begins.
func (a *actors) restore() {
	r := a.run
	all, err := r.store.Rotations(ctx)
	r.must(err)
	for _, rot := range all {
		if rot.Phase == kek.Switched || rot.Phase == kek.Drained {
			a.made++
			id := fmt.Sprintf("restored-%d", a.made)
			rec, err := a.seal(id, id, rot.OldKEK, 1)
			if err != nil {
				r.violated("NoKeyOrphans", "the old KEK of %s, at %s, is not usable: %v", rot.ID, rot.Phase, err)
				return
			}
			rec.Version = 1
			r.table.Plant(id, rec)
			a.want[id] = id
			r.tell("a backup brings row %s back under %s", id, rot.OldKEK)
		}
	}
}

// open lets the reader open the row it has read, however long ago.
func (a *actors) open() {
	if a.seen == nil {
		return
	}
	r, rec := a.run, *a.seen
	a.seen = nil
	for range 2 {
		dek, err := r.kms.Decrypt(ctx, rec.KEK, rec.WrappedDEK, rec.Context)
		if err == nil {
			_, err = r.steps.Cipher.Open(dek, rec.Ciphertext, rec.Context)
			if err != nil {
				r.violated("ReadersServed", "row %s: %v", a.seenID, err)
			}
			return
		}
		if !errors.Is(err, rotation.ErrKeyDisabled) {
			r.violated("ReadersServed", "row %s: %v", a.seenID, err)
			return
		}
		var ok bool
		if rec, ok, err = r.table.Get(ctx, a.seenID); err != nil || !ok {
			return // it was deleted meanwhile
		}
	}
	r.violated("ReadersServed", "row %s does not open, read again or not", a.seenID)
}
