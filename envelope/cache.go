package envelope

import (
	"bytes"
	"container/list"
	"context"
	"crypto/cipher"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// Cache bounds how long and how much a data key is used before KMS is called again. A
// field that is zero has its default.
type Cache struct {
	Off      bool          // call KMS for every record
	MaxAge   time.Duration // of a data key; default 5 minutes
	MaxUses  int64         // records sealed under one; default 65,536
	MaxBytes int64         // bytes sealed under one; default 4 GiB
	MaxKeys  int           // data keys held for sealing, and as many for opening; default 1,000
}

// maxUses is the bound of AES-GCM with random nonces (NIST SP 800-38D, section 8.3).
const maxUses = 1 << 32

func (c Cache) withDefaults() Cache {
	if c.MaxAge <= 0 {
		c.MaxAge = 5 * time.Minute
	}
	if c.MaxUses <= 0 {
		c.MaxUses = 1 << 16
	}
	c.MaxUses = min(c.MaxUses, maxUses)
	if c.MaxBytes <= 0 {
		c.MaxBytes = 4 << 30
	}
	if c.MaxKeys <= 0 {
		c.MaxKeys = 1000
	}
	return c
}

// dataKey is a DEK ready for use. Its bytes were cleared: only the expanded key is left,
// in aead or, for a row that Tink wrote, in tink.
type dataKey struct {
	aead       *aead.Key
	tink       cipher.AEAD
	wrapped    []byte
	associated []byte        // of the encryption context that it belongs to
	born       time.Duration // when KMS was asked for it, on the client's clock
	id         string        // of a DEK of the key table; "" of one that rows carry
	bornEpoch  int64         // of a DEK of the key table

	// What the fast path compares instead of making the key's name.
	encctx []pair // that it belongs to
	kekRef kek.ID // of a key for reading that rows carry: the KEK as the record names it
}

type pair struct{ key, value string }

// pairsOf lists the entries of an encryption context.
func pairsOf(encctx map[string]string) []pair {
	out := make([]pair, 0, len(encctx))
	for k, v := range encctx {
		out = append(out, pair{k, v})
	}
	return out
}

// isOf reports whether k belongs to an encryption context.
func (k *dataKey) isOf(encctx map[string]string) bool {
	if len(encctx) != len(k.encctx) {
		return false
	}
	for i := range k.encctx {
		if v, ok := encctx[k.encctx[i].key]; !ok || v != k.encctx[i].value {
			return false
		}
	}
	return true
}

// associatedWith returns the associated data of a record that k seals or opens: the
// encoding of its encryption context and of bind, if there is any.
func (k *dataKey) associatedWith(encctx, bind map[string]string) []byte {
	if len(bind) == 0 {
		return k.associated
	}
	return aead.AppendAssociatedData(nil, encctx, bind)
}

// cache holds data keys, the least recently used last, and the running calls to KMS that
// make them. It is safe for concurrent use.
type cache struct {
	limits Cache
	recent atomic.Pointer[cacheEntry] // the key that was used last; nil if it was removed

	mu     sync.Mutex
	keys   map[string]*list.Element
	order  list.List
	calls  map[string]*keyCall // the last one for each name, until it has ended
	closed bool
}

// cacheEntry is a data key in the cache, with its name and its usage.
type cacheEntry struct {
	name        string
	key         *dataKey
	uses, bytes atomic.Int64
}

// usage is how many records and bytes a data key has sealed.
type usage struct{ uses, bytes int64 }

// addRecord charges one record of size bytes.
func (c *usage) addRecord(size int) {
	c.uses++
	c.bytes += int64(size)
}

// keyCall is a call to KMS for a data key, which several goroutines may wait for. Their
// records are charged to the key before it exists, so that its bounds hold for them too.
type keyCall struct {
	used usage
	done chan struct{} // closed when there is a key or an error
	key  *dataKey
	err  error
}

func newCache(limits Cache) *cache {
	return &cache{limits: limits, keys: map[string]*list.Element{}, calls: map[string]*keyCall{}}
}

// hasRoom reports whether a key with this usage may seal one more record.
func (c *cache) hasRoom(used usage, size int) bool {
	return used.uses < c.limits.MaxUses && used.bytes+int64(size) <= c.limits.MaxBytes
}

// takeKey returns the key with this name and charges one record of size bytes to it. It
// returns nil if there is no such key, or if it is too old or used up.
func (c *cache) takeKey(name []byte, size int, now time.Duration) *dataKey {
	if c.limits.Off {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.useKey(c.keys[string(name)], size, now)
}

// useKey is takeKey for the key in e, which may be nil; the caller holds mu.
func (c *cache) useKey(e *list.Element, size int, now time.Duration) *dataKey {
	if e == nil {
		return nil
	}
	k := e.Value.(*cacheEntry) //nolint:forcetypeassert // the list holds nothing else
	if !c.chargeRecord(k, size, now) {
		c.removeKey(e)
		return nil
	}
	c.order.MoveToFront(e)
	c.recent.Store(k)
	return k.key
}

// chargeRecord charges one record of size bytes to a key. It reports whether the key may
// seal or open it; if not, nobody uses the key again.
func (c *cache) chargeRecord(k *cacheEntry, size int, now time.Duration) bool {
	return now-k.key.born < c.limits.MaxAge && k.uses.Add(1) <= c.limits.MaxUses && k.bytes.Add(int64(size)) <= c.limits.MaxBytes
}

// takeForSealing is takeKey for the key of an encryption context, if it is the key that was
// used last: it makes no name, and takes no lock. A key that is removed meanwhile may be used
// once more, as after a takeKey just before.
func (c *cache) takeForSealing(encctx map[string]string, size int, now time.Duration) *dataKey {
	k := c.recent.Load()
	if k == nil || !k.key.isOf(encctx) || !c.chargeRecord(k, size, now) {
		return nil
	}
	return k.key
}

// takeForOpening is takeKey for the key of a record, if it is the key that was used last.
func (c *cache) takeForOpening(s *Sealed, encctx map[string]string, now time.Duration) *dataKey {
	k := c.recent.Load()
	if k == nil || !k.key.opens(s, encctx) || !c.chargeRecord(k, 0, now) {
		return nil
	}
	return k.key
}

// opens reports whether k, a key for reading, is that of a record which names its KEK as the
// one that k was made for did: whether both have the same name in the cache.
func (k *dataKey) opens(s *Sealed, encctx map[string]string) bool {
	return k.kekRef == s.KEKID && k.aead != nil && bytes.Equal(k.wrapped, s.WrappedDEK) && k.isOf(encctx)
}

// obtainKey returns a key for a record of size bytes after takeKey found none. ask makes
// one. Concurrent callers with the same name share the key as far as its bounds allow. A
// caller that gives up does not cancel the call for the others.
func (c *cache) obtainKey(ctx context.Context, name string, size int, now time.Duration, ask func(context.Context) (*dataKey, error)) (*dataKey, error) {
	if c.limits.Off {
		return ask(ctx)
	}
	c.mu.Lock()
	k := c.useKey(c.keys[name], size, now) // a call may have ended since the caller looked
	var f *keyCall
	if k == nil {
		f = c.joinCall(ctx, name, size, ask)
	}
	c.mu.Unlock()
	if k != nil {
		return k, nil
	}
	select {
	case <-f.done:
		return f.key, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// errNoAnswer is the error of a call whose goroutine ended before it returned.
var errNoAnswer = errors.New("the call for a data key ended without an answer")

// joinCall charges one record to the running call for this name, or starts a call; the
// caller holds mu.
func (c *cache) joinCall(ctx context.Context, name string, size int, ask func(context.Context) (*dataKey, error)) *keyCall {
	f, ok := c.calls[name]
	if !ok || !c.hasRoom(f.used, size) {
		f = &keyCall{done: make(chan struct{})}
		c.calls[name] = f
		go c.runCall(context.WithoutCancel(ctx), name, f, ask)
	}
	f.used.addRecord(size)
	return f
}

// runCall makes a call. The key is kept unless another call has replaced this one or the
// cache was dropped meanwhile: a key from before an emergency must not enter the cache.
func (c *cache) runCall(ctx context.Context, name string, f *keyCall, ask func(context.Context) (*dataKey, error)) {
	ctx, cancel := context.WithTimeout(ctx, kmsTimeout)
	defer cancel()
	defer close(f.done) // whatever becomes of ask: others wait
	f.err = errNoAnswer
	f.key, f.err = ask(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[name] != f {
		return
	}
	delete(c.calls, name)
	if f.err == nil {
		c.putKey(name, f.key, f.used)
	}
}

// putKey adds a key with its usage so far; the caller holds mu.
func (c *cache) putKey(name string, key *dataKey, used usage) {
	if c.closed {
		return
	}
	if e, ok := c.keys[name]; ok {
		c.removeKey(e)
	}
	k := &cacheEntry{name: name, key: key}
	k.uses.Store(used.uses)
	k.bytes.Store(used.bytes)
	c.keys[name] = c.order.PushFront(k)
	if len(c.keys) <= c.limits.MaxKeys {
		return
	}
	if last := c.order.Back(); last.Value == c.recent.Load() && len(c.keys) > 2 { // in use, but not moved by the fast path
		c.order.MoveToFront(last)
	}
	c.removeKey(c.order.Back())
}

// dropExpired drops the keys that are too old, so that an idle process holds none.
func (c *cache) dropExpired(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if k := e.Value.(*cacheEntry); now-k.key.born >= c.limits.MaxAge { //nolint:forcetypeassert // as above
			c.removeKey(e)
		}
		e = next
	}
}

// dropAll removes every key, also those of running calls. With shut, the cache accepts no
// key afterwards.
func (c *cache) dropAll(shut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = c.closed || shut
	clear(c.keys)
	clear(c.calls)
	c.order.Init()
	c.recent.Store(nil)
}

func (c *cache) removeKey(e *list.Element) {
	k := e.Value.(*cacheEntry) //nolint:forcetypeassert // as above
	delete(c.keys, k.name)
	c.order.Remove(e)
	c.recent.CompareAndSwap(k, nil)
}
