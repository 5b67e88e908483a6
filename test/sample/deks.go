package sample

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// rowsPerDEK is how many rows of one encryption context share a DEK: as a client's
// bound would have it, but small, so that a table of a constant context has several.
const rowsPerDEK = 64

// deks makes DEKs per encryption context, while a set is seeded.
type deks struct {
	kms keyring.Wrapper
	kek kek.ID

	mu   sync.Mutex
	made map[string]*dek
}

type dek struct {
	rows    int
	once    sync.Once
	plain   []byte
	wrapped []byte
	err     error
}

// seal seals plain under a DEK of its encryption context and binds it to bound.
func (d *deks) seal(ctx context.Context, plain []byte, encctx, bound map[string]string) (wrapped, sealed []byte, err error) {
	var name string
	for _, k := range slices.Sorted(maps.Keys(encctx)) {
		name += fmt.Sprintf("%q=%q,", k, encctx[k])
	}
	d.mu.Lock()
	k := d.made[name]
	if k == nil || k.rows == rowsPerDEK {
		k = &dek{}
		d.made[name] = k
	}
	k.rows++
	d.mu.Unlock()
	k.once.Do(func() { k.plain, k.wrapped, k.err = d.kms.GenerateDataKey(ctx, d.kek, encctx) })
	if k.err != nil {
		return nil, nil, k.err
	}
	sealed, err = aead.Cipher{}.Seal(k.plain, plain, bound)
	return k.wrapped, sealed, err
}
