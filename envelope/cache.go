package envelope

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// Cache bounds how long and how much a data key is used before KMS is asked
// again. The zero value takes the defaults.
type Cache struct {
	Off      bool          // ask KMS for every record
	MaxAge   time.Duration // of a data key; default 5 minutes
	MaxUses  int64         // records sealed under one; default 65,536
	MaxBytes int64         // bytes sealed under one; default 4 GiB
	MaxKeys  int           // data keys held for sealing, and as many for opening; default 1,000
}

// maxUses is the bound of AES-GCM with random nonces (NIST SP 800-38D, 8.3).
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

// dataKey is a DEK ready for use. Its bytes are gone: only the expanded key is
// left, in aead or, for a row that Tink wrote, in tink.
type dataKey struct {
	aead       *aead.Key
	tink       tink.AEAD
	wrapped    []byte
	associated []byte        // of the encryption context that it belongs to
	born       time.Duration // when KMS was asked for it, on the client's clock
}

// associatedWith is the associated data of a record that k seals or opens: that of
// its encryption context, and of bind too if there is any.
func (k *dataKey) associatedWith(encctx, bind map[string]string) []byte {
	if len(bind) == 0 {
		return k.associated
	}
	return aead.AppendAssociatedData(nil, encctx, bind)
}

// cache holds data keys, least recently used last, and the calls that make them.
// It is safe for concurrent use.
type cache struct {
	limits Cache

	mu    sync.Mutex
	keys  map[string]*list.Element
	order list.List
	calls map[string]*call // the last one for each name, until it has ended
	shut  bool
}

type cached struct {
	name string
	key  *dataKey
	used charge
}

// charge is what a data key has been used for.
type charge struct{ uses, bytes int64 }

func (c *charge) add(size int) {
	c.uses++
	c.bytes += int64(size)
}

// call is a call to KMS for a data key. Who waits for it has been charged to the
// key before there is one, so that its bounds hold for those who wait, too.
type call struct {
	used charge
	done chan struct{} // closed when there is a key or an error
	key  *dataKey
	err  error
}

func newCache(limits Cache) *cache {
	return &cache{limits: limits, keys: map[string]*list.Element{}, calls: map[string]*call{}}
}

// room reports whether a key that was used so much may take one more record.
func (c *cache) room(used charge, size int) bool {
	return used.uses < c.limits.MaxUses && used.bytes+int64(size) <= c.limits.MaxBytes
}

// take returns the key of that name and charges it with one record of size bytes,
// or nil if there is none that may still be used.
func (c *cache) take(name []byte, size int, now time.Duration) *dataKey {
	if c.limits.Off {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use(c.keys[string(name)], size, now)
}

// use is take of the key in e, which may be nil; the caller holds mu.
func (c *cache) use(e *list.Element, size int, now time.Duration) *dataKey {
	if e == nil {
		return nil
	}
	k := e.Value.(*cached) //nolint:forcetypeassert // the list holds nothing else
	if now-k.key.born >= c.limits.MaxAge || !c.room(k.used, size) {
		c.remove(e)
		return nil
	}
	k.used.add(size)
	c.order.MoveToFront(e)
	return k.key
}

// obtain returns a key for a record of size bytes that [cache.take] had none for at
// now, from ask. Those who want one of that name at once share it as far as its bounds
// allow. A waiter that gives up does not take the call away from the others.
func (c *cache) obtain(ctx context.Context, name string, size int, now time.Duration, ask func(context.Context) (*dataKey, error)) (*dataKey, error) {
	if c.limits.Off {
		return ask(ctx)
	}
	c.mu.Lock()
	k := c.use(c.keys[name], size, now) // a call may have ended since the caller looked
	var f *call
	if k == nil {
		f = c.join(ctx, name, size, ask)
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

// join charges one record to the call for that name that is under way, or begins
// one; the caller holds mu.
func (c *cache) join(ctx context.Context, name string, size int, ask func(context.Context) (*dataKey, error)) *call {
	f, ok := c.calls[name]
	if !ok || !c.room(f.used, size) {
		f = &call{done: make(chan struct{})}
		c.calls[name] = f
		go c.run(context.WithoutCancel(ctx), name, f, ask)
	}
	f.used.add(size)
	return f
}

// run makes a call. Its key is kept unless it has no room left or the cache was
// dropped meanwhile: then the call is no longer the one of its name.
func (c *cache) run(ctx context.Context, name string, f *call, ask func(context.Context) (*dataKey, error)) {
	ctx, cancel := context.WithTimeout(ctx, kmsTimeout)
	defer cancel()
	f.key, f.err = ask(ctx)
	defer close(f.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[name] != f {
		return
	}
	delete(c.calls, name)
	if f.err == nil {
		c.put(name, f.key, f.used)
	}
}

// put keeps a key that has been used so much already; the caller holds mu.
func (c *cache) put(name string, key *dataKey, used charge) {
	if c.shut {
		return
	}
	if e, ok := c.keys[name]; ok {
		c.remove(e)
	}
	c.keys[name] = c.order.PushFront(&cached{name: name, key: key, used: used})
	if len(c.keys) > c.limits.MaxKeys {
		c.remove(c.order.Back())
	}
}

// sweep drops the keys that are too old, so that an idle process holds none.
func (c *cache) sweep(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		if k := e.Value.(*cached); now-k.key.born >= c.limits.MaxAge { //nolint:forcetypeassert // as above
			c.remove(e)
		}
		e = next
	}
}

// drop forgets every key, those that are on their way too; with shut it takes none
// any more.
func (c *cache) drop(shut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = c.shut || shut
	clear(c.keys)
	clear(c.calls)
	c.order.Init()
}

func (c *cache) remove(e *list.Element) {
	delete(c.keys, e.Value.(*cached).name) //nolint:forcetypeassert // as above
	c.order.Remove(e)
}
