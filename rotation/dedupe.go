package rotation

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// dedupe remembers what a wrapped DEK was rewrapped to, so that rows that share
// a DEK cost one KMS request. It is bounded: a full one is emptied.
type dedupe struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]*rewrapping
}

type rewrapping struct {
	once sync.Once
	blob []byte
	err  error
}

const maxDedupe = 4096

func newDedupe() *dedupe { return &dedupe{seen: map[[sha256.Size]byte]*rewrapping{}} }

// do returns the result for the row's wrapped DEK and encryption context, from f
// the first time. A failure is not remembered.
func (d *dedupe) do(row Row, f func() ([]byte, error)) ([]byte, error) {
	key := dedupeKey(row)
	d.mu.Lock()
	if len(d.seen) >= maxDedupe {
		clear(d.seen)
	}
	r, ok := d.seen[key]
	if !ok {
		r = &rewrapping{}
		d.seen[key] = r
	}
	d.mu.Unlock()
	r.once.Do(func() { r.blob, r.err = f() })
	if r.err != nil {
		d.mu.Lock()
		if d.seen[key] == r {
			delete(d.seen, key)
		}
		d.mu.Unlock()
	}
	return r.blob, r.err
}

func dedupeKey(row Row) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%d:%s", len(row.KEK), row.KEK, len(row.WrappedDEK), row.WrappedDEK)
	for _, k := range slices.Sorted(maps.Keys(row.Context)) {
		fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(row.Context[k]), row.Context[k])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
