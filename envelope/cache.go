package envelope

import (
	"container/list"
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
	associated []byte // of the encryption context that it belongs to
}

// cache holds data keys, least recently used last. It is safe for concurrent use.
type cache struct {
	limits Cache

	mu    sync.Mutex
	keys  map[string]*list.Element
	order list.List
	shut  bool
}

type cached struct {
	name        string
	key         *dataKey
	born        time.Duration // on the client's clock
	uses, bytes int64
}

func newCache(limits Cache) *cache {
	return &cache{limits: limits, keys: map[string]*list.Element{}}
}

// take returns the key of that name and charges it with one record of size bytes,
// or nil if there is none that may still be used.
func (c *cache) take(name []byte, size int, now time.Duration) *dataKey {
	if c.limits.Off {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.keys[string(name)]
	if !ok {
		return nil
	}
	k := e.Value.(*cached) //nolint:forcetypeassert // the list holds nothing else
	if now-k.born >= c.limits.MaxAge || k.uses >= c.limits.MaxUses || k.bytes+int64(size) > c.limits.MaxBytes {
		c.remove(e)
		return nil
	}
	k.uses++
	k.bytes += int64(size)
	c.order.MoveToFront(e)
	return k.key
}

// put keeps a key that was made at born and is used for one record of size bytes
// already.
func (c *cache) put(name string, key *dataKey, size int, born time.Duration) {
	if c.limits.Off {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return
	}
	if e, ok := c.keys[name]; ok {
		c.remove(e)
	}
	c.keys[name] = c.order.PushFront(&cached{name: name, key: key, born: born, uses: 1, bytes: int64(size)})
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
		if k := e.Value.(*cached); now-k.born >= c.limits.MaxAge { //nolint:forcetypeassert // as above
			c.remove(e)
		}
		e = next
	}
}

// drop forgets every key; with shut it takes none any more.
func (c *cache) drop(shut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = c.shut || shut
	clear(c.keys)
	c.order.Init()
}

func (c *cache) remove(e *list.Element) {
	delete(c.keys, e.Value.(*cached).name) //nolint:forcetypeassert // as above
	c.order.Remove(e)
}
