package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// copies are applications that write as package envelope does, in small: a lease, a
// second look at the pointer, a fenced insert or a conditional update, and all of it
// again if that is refused.
type copies struct {
	*actors
	writers [2]writer
	seen    *memstore.Record // what the reader holds
}

type writer struct {
	task
	sealed bool
	read   int64 // version that the update replaces
	record memstore.Record
	lease  rotation.Lease
}

func (c *copies) clone(of *actors) apps {
	own := *c
	own.actors = of
	return &own
}

func (c *copies) start() {}

func (c *copies) paged() {}

func (c *copies) join(id string) {
	r := c.run
	r.must(c.store().Mark(ctx, kek.Mark{Table: lateTable, Holder: "newcomer", SeenAt: r.now}))
	p, err := c.store().Pointer(ctx)
	r.must(err)
	rec, err := c.seal(id, id, p.KEKID, p.Epoch)
	if err != nil {
		r.violated("PointerUsable", "an application cannot seal under the pointer's KEK %s: %v", p.KEKID, err)
		return
	}
	r.must(r.late.(*memstore.Table).Insert(ctx, id, rec, c.made%shards)) //nolint:forcetypeassert // copies live nowhere else
}

func (c *copies) busy(n int) bool { return c.writers[n].sealed }

// store and table are memstore's: copies live nowhere else.
func (c *copies) store() *memstore.Store { return c.run.world.Store() }

func (c *copies) table() *memstore.Table {
	return c.run.table.(*memstore.Table) //nolint:forcetypeassert // copies live nowhere else
}

func (c *copies) begin(n int, what task) {
	w := &c.writers[n]
	*w = writer{task: what}
	if w.sealed = c.prepare(w); w.sealed {
		c.run.tell("writer %d holds a sealed row %s under %s, epoch %d", n, w.id, w.record.KEK, w.record.Epoch)
	}
}

// prepare takes a lease on the pointer's KEK and seals under it; false if the row
// to update is gone.
func (c *copies) prepare(w *writer) bool {
	r := c.run
	if !w.insert {
		rec, ok, err := c.table().Get(ctx, w.id)
		if err != nil || !ok {
			return false
		}
		w.read = rec.Version
	}
	p, err := c.store().Pointer(ctx)
	r.must(err)
	c.made++
	w.lease = rotation.Lease{KEK: p.KEKID, Holder: fmt.Sprint("app-", c.made), Refs: 1, Expires: r.now.Add(time.Minute)}
	r.must(c.store().PutLease(ctx, w.lease))
	if w.record, err = c.seal(w.id, w.plain, p.KEKID, p.Epoch); err != nil {
		r.violated("PointerUsable", "an application cannot seal under the pointer's KEK %s: %v", p.KEKID, err)
		return false
	}
	return true
}

func (c *copies) finish(n int) {
	w := &c.writers[n]
	if !w.sealed {
		return
	}
	w.sealed = false
	r := c.run
	for range 4 {
		var err error
		if w.insert {
			err = c.table().Insert(ctx, w.id, w.record, c.made%shards)
		} else {
			err = c.table().Update(ctx, w.id, w.read, w.record)
		}
		r.must(c.store().DropLease(ctx, w.lease))
		if err == nil {
			c.want[w.id] = w.plain
			r.tell("writer %d writes row %s under %s", n, w.id, w.record.KEK)
			return
		}
		r.tell("writer %d is refused: %v", n, err)
		if !errors.Is(err, memstore.ErrFenced) && !errors.Is(err, memstore.ErrChanged) {
			r.violated("WritersServed", "write %s: %v", w.id, err)
			return
		}
		if !c.prepare(w) {
			return
		}
	}
	r.violated("WritersServed", "row %s is refused again and again", w.id)
}

func (c *copies) look() {
	if rec, ok, err := c.table().Get(ctx, aRow); err == nil && ok {
		c.seen = &rec
	}
}

// open lets the reader open the row it has read, however long ago.
func (c *copies) open() {
	if c.seen == nil {
		return
	}
	r, rec := c.run, *c.seen
	c.seen = nil
	for range 2 {
		dek, err := r.kms.Decrypt(ctx, rec.KEK, rec.WrappedDEK, rec.Context)
		if err == nil {
			_, err = r.steps.Keys.Cipher.Open(dek, rec.Ciphertext, rec.Context)
			if err != nil {
				r.violated("ReadersServed", "row %s: %v", aRow, err)
			}
			return
		}
		if !errors.Is(err, journal.ErrKeyDisabled) {
			r.violated("ReadersServed", "row %s: %v", aRow, err)
			return
		}
		var ok bool
		if rec, ok, err = c.table().Get(ctx, aRow); err != nil || !ok {
			return // it was deleted meanwhile
		}
	}
	r.violated("ReadersServed", "row %s does not open, read again or not", aRow)
}
