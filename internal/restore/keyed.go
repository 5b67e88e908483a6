package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// A keyed row carries no wrapped data key. It is inserted as the backup has it, on condition that
// the table has no row of its key and without a fence, as applications insert keyed rows. Its
// data key must have a record under a KEK in use. If an emergency has switched since the data
// key was made, the payload is encrypted under a fresh data key, which the rows of one exposed
// data key share.

// keyRecords is what a restore has learned of the key table.
type keyRecords struct {
	mu    sync.Mutex
	sound map[string]soundKey  // data keys that have a record; no record is ever deleted
	fresh map[string]*freshKey // by the data key that it replaces
}

// soundKey is a data key whose record is under a KEK in use.
type soundKey struct {
	born    int64
	context map[string]string // of the rows that name it
}

// freshKey replaces an exposed data key.
type freshKey struct {
	mu         sync.Mutex
	id         string // "" until it is made
	epoch      int64
	old, fresh []byte
}

// checkKeyed refuses a keyed row that a reader would refuse because of the record of its data key.
// lost reports that there is no record under a KEK in use: it must be put back first.
func (r *Restorer) checkKeyed(ctx context.Context, row source.Row) (lost bool, err error) {
	if row.Defect != "" {
		return false, fmt.Errorf("%w: %s", errUnrestorable, row.Defect)
	}
	key, ok, err := r.findKey(ctx, row.DEKID)
	switch {
	case err != nil:
		return false, err
	case !ok:
		return true, nil
	case row.Epoch != key.born:
		return false, fmt.Errorf("%w: it says that data key %s was made in epoch %d, and the record of the data key says %d", errUnrestorable, row.DEKID, row.Epoch, key.born)
	case !maps.Equal(row.Context, key.context):
		return false, fmt.Errorf("%w: its encryption context is not that of its data key %s", errUnrestorable, row.DEKID)
	}
	return false, nil
}

// findKey looks a data key up; false if it has no record under a KEK in use.
func (r *Restorer) findKey(ctx context.Context, id string) (soundKey, bool, error) {
	r.keys.mu.Lock()
	key, ok := r.keys.sound[id]
	r.keys.mu.Unlock()
	if ok {
		return key, true, nil
	}
	record, key, err := r.readRecord(ctx, id)
	if err != nil || record.KEK == "" {
		return key, false, err
	}
	if ok, err := r.isInUse(ctx, record.KEK); err != nil || !ok {
		return key, false, err
	}
	r.keys.mu.Lock()
	defer r.keys.mu.Unlock()
	if r.keys.sound == nil {
		r.keys.sound = map[string]soundKey{}
	}
	r.keys.sound[id] = key
	return key, true, nil
}

// readRecord reads the record of a data key, whose KEK is "" if there is none.
func (r *Restorer) readRecord(ctx context.Context, id string) (source.Row, soundKey, error) {
	if r.Records == nil {
		return source.Row{}, soundKey{}, fmt.Errorf("%w: it is a keyed row, and no key table is registered (matter ops source add)", errUnrestorable)
	}
	record, born, ok, err := r.Records.FindKey(ctx, id)
	if err == nil && ok && record.Defect != "" {
		err = fmt.Errorf("%w: the record of its data key %s: %s", errUnrestorable, id, record.Defect)
	}
	if err != nil || !ok {
		return source.Row{}, soundKey{}, err
	}
	context := maps.Clone(record.Context)
	maps.DeleteFunc(context, func(name, _ string) bool { return strings.HasPrefix(name, "matter:") }) // of the record itself
	return record, soundKey{born, context}, nil
}

// isInUse reports whether the registry lets records be under a KEK. A rotation that runs
// meanwhile moves them to one that was not active at [Restorer.Prepare].
func (r *Restorer) isInUse(ctx context.Context, id kek.ID) (bool, error) {
	if r.registered[id].State.Resolves() {
		return true, nil
	}
	keks, err := r.Registry.KEKs(ctx)
	for _, k := range keks {
		if k.ID == id {
			return k.State.Resolves(), err
		}
	}
	return false, err
}

// rekeyRow returns what replaces the envelope of a keyed row: itself, unless its data key may be
// exposed.
func (r *Restorer) rekeyRow(ctx context.Context, row source.Row, p kek.Pointer, shards int) (source.Rewrapped, error) {
	if !r.isKeyExposed(row) {
		return source.Rewrapped{DEKID: row.DEKID, Epoch: row.Epoch}, nil
	}
	key, err := r.replaceKey(ctx, row, p, shards)
	if err != nil {
		return source.Rewrapped{}, err
	}
	plain, err := r.Cipher.Open(key.old, row.Ciphertext, row.Bound)
	if err != nil {
		return source.Rewrapped{}, fmt.Errorf("%w: its payload does not open under its data key", errUnrestorable)
	}
	defer clear(plain)
	sealed, err := r.Cipher.Seal(key.fresh, plain, row.BoundUnder(key.id))
	return source.Rewrapped{DEKID: key.id, Epoch: key.epoch, Ciphertext: sealed}, err
}

// replaceKey unwraps the data key of a row and makes the one that replaces it, once for all rows
// that name it.
func (r *Restorer) replaceKey(ctx context.Context, row source.Row, p kek.Pointer, shards int) (*freshKey, error) {
	r.keys.mu.Lock()
	key := r.keys.fresh[row.DEKID]
	if key == nil {
		key = &freshKey{}
		if r.keys.fresh == nil {
			r.keys.fresh = map[string]*freshKey{}
		}
		r.keys.fresh[row.DEKID] = key
	}
	r.keys.mu.Unlock()
	key.mu.Lock()
	defer key.mu.Unlock()
	if key.id != "" {
		return key, nil
	}
	record, _, err := r.readRecord(ctx, row.DEKID) // again: a rotation may have rewrapped it
	if err != nil {
		return nil, err
	}
	if key.old, err = r.KMS.Decrypt(ctx, record.KEK, record.WrappedDEK, record.Context); err != nil {
		return nil, err
	}
	made := source.DataKey{Context: row.Context, KEK: p.KEKID, Shard: source.SpreadShard(row.DEKID, shards), Epoch: p.Epoch, Made: r.Now()}
	r.Random(made.ID[:])
	fresh := r.Records.NewKey(made)
	var wrapped []byte
	if key.fresh, wrapped, err = r.KMS.GenerateDataKey(ctx, p.KEKID, fresh.Context); err != nil {
		return nil, err
	}
	done, err := r.Records.CreateKey(ctx, fresh, wrapped)
	if err == nil && !done {
		err = errors.New("there is a record of the id that was drawn")
	}
	if errors.Is(err, source.ErrFenced) { // a rotation has moved the pointer
		err = fmt.Errorf("%w: %w", errRetry, err)
	}
	if err != nil {
		return nil, err
	}
	key.id, key.epoch = fresh.ID, p.Epoch
	return key, nil
}

// forgetKeys overwrites the data keys of a restore.
func (r *Restorer) forgetKeys() {
	for _, key := range r.keys.fresh {
		clear(key.old)
		clear(key.fresh)
	}
	r.keys.fresh = nil
}
