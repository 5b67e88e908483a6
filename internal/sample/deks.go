package sample

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// deks makes one DEK per encryption context, while a set is seeded.
type deks struct {
	kms rotation.Wrapper
	kek kek.ID

	mu   sync.Mutex
	made map[string]*dek
}

type dek struct {
	once    sync.Once
	plain   []byte
	wrapped []byte
	err     error
}

// seal seals plain under the DEK of its encryption context.
func (d *deks) seal(ctx context.Context, plain []byte, encctx map[string]string) (wrapped, sealed []byte, err error) {
	var name string
	for _, k := range slices.Sorted(maps.Keys(encctx)) {
		name += fmt.Sprintf("%q=%q,", k, encctx[k])
	}
	d.mu.Lock()
	k := d.made[name]
	if k == nil {
		k = &dek{}
		d.made[name] = k
	}
	d.mu.Unlock()
	k.once.Do(func() { k.plain, k.wrapped, k.err = d.kms.GenerateDataKey(ctx, d.kek, encctx) })
	if k.err != nil {
		return nil, nil, k.err
	}
	sealed, err = aead.Cipher{}.Seal(k.plain, plain, encctx)
	return k.wrapped, sealed, err
}
