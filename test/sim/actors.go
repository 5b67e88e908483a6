package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// actors are the applications and what they have been told is written.
type actors struct {
	run       *run
	apps      apps
	want      map[string]string // what each row opens to
	made      int
	overslept map[string]int64 // rows that were inserted under a data key of before the pointer's epoch, and that epoch
}

const aRow = "row-1"

var ctx = memstore.WithCaller(context.Background(), "application")

func (a *actors) act(f Fault) {
	switch f.Kind {
	case Begin, Store:
		a.begin(f.Arg/2, task{insert: f.Arg%2 == 0, unstored: f.Kind == Store})
	case Finish:
		a.apps.finish(f.Arg)
	case Delete:
		a.run.must(a.run.table.Delete(ctx, aRow))
		delete(a.want, aRow)
		delete(a.overslept, aRow)
	case Restore:
		a.restore()
	case Foreign:
		a.foreign(f.Arg)
	case NewTable:
		a.newTable(f.Arg == 1)
	case Object:
		a.run.putObject(f.Arg)
	case Look:
		a.apps.look()
	case Open:
		a.apps.open()
	default: // no application's
	}
}

// begin lets application n begin to write a row; without an id one of its own, or
// the row that everybody updates.
func (a *actors) begin(n int, what task) {
	if a.apps.busy(n) {
		return
	}
	a.made++
	if what.id == "" {
		if what.id = aRow; what.insert {
			what.id = fmt.Sprintf("new-%d", a.made)
		}
	}
	what.plain = fmt.Sprintf("%s by %d", what.id, a.made)
	a.apps.begin(n, what)
}

// task is what an application is about to write.
type task struct {
	insert    bool
	id, plain string
	unstored  bool // it falls asleep before the record of its data key is stored, not before it writes the row
}

// encctx is the encryption context of an embedded row. Rows of the late table have ids of
// their own. Rows that share data keys share their context.
func (r *run) encctx(id string) map[string]string {
	switch {
	case strings.HasPrefix(id, lateTable):
		return map[string]string{"table": lateTable, "id": id}
	case r.keyed != nil:
		return map[string]string{"table": "rows"}
	}
	return map[string]string{"table": "rows", "id": id}
}

// seal makes a record under a KEK; false if that is not usable.
func (a *actors) seal(id, plain string, under kek.ID, epoch int64) (memstore.Record, error) {
	c := a.run.encctx(id)
	dek, wrapped, err := a.run.kms.GenerateDataKey(ctx, under, c)
	if err != nil {
		return memstore.Record{}, err
	}
	ct, err := a.run.steps.Keys.Cipher.Seal(dek, []byte(plain), c)
	a.run.must(err)
	sum := sha256.Sum256([]byte(plain))
	return memstore.Record{
		KEK: under, Epoch: epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: c, PlainSHA: hex.EncodeToString(sum[:]),
	}, nil
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
