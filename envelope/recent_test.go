package envelope

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// recentKey makes a key for reading or sealing, and returns its name.
func recentKey(encctx map[string]string, wrapped string) (*dataKey, string) {
	k := &dataKey{encctx: pairsOf(encctx), kekRef: "kek-1", wrapped: []byte(wrapped), aead: &aead.Key{}}
	return k, fmt.Sprint(wrapped, encctx)
}

// obtain puts a key into the cache by a call that makes it, and uses it twice, so that it is
// the recent one.
func (c *cache) obtain(t *testing.T, k *dataKey, name string) {
	t.Helper()
	if _, err := c.obtainKey(t.Context(), name, 1, 0, func(context.Context) (*dataKey, error) { return k, nil }); err != nil {
		t.Fatal(err)
	}
	if c.takeKey([]byte(name), 1, 0) != k {
		t.Fatal("it is not kept")
	}
}

// TestRecentKey: the key that was used last is found without its name, for the same context
// and record only, within its bounds, and not after it was removed.
func TestRecentKey(t *testing.T) {
	encctx := map[string]string{"table": "orders", "tenant": "acme"}
	fresh := func(change func(*Cache)) (*cache, *dataKey) {
		limits := Cache{MaxUses: 10, MaxBytes: 100, MaxAge: time.Minute, MaxKeys: 3}
		if change != nil {
			change(&limits)
		}
		c := newCache(limits.withDefaults())
		k, name := recentKey(encctx, "dek")
		c.obtain(t, k, name)
		return c, k
	}
	for name, other := range map[string]map[string]string{
		"fewer": {"table": "orders"}, "none": nil, "more": {"table": "orders", "tenant": "acme", "x": ""},
		"another value": {"table": "orders", "tenant": "globex"}, "another key": {"table": "orders", "tenants": "acme"}, "empty": {"table": "orders", "tenant": ""},
	} {
		c, _ := fresh(nil)
		if c.takeForSealing(other, 1, 0) != nil || c.takeForOpening(&Sealed{KEKID: "kek-1", WrappedDEK: []byte("dek")}, other, 0) != nil {
			t.Errorf("%s: a key of another context", name)
		}
	}
	same := map[string]string{"tenant": "acme", "table": "orders"}
	c, k := fresh(nil)
	if c.takeForSealing(same, 1, time.Minute-1) != k || c.takeForSealing(same, 1, time.Minute) != nil {
		t.Error("the age does not bound it")
	}
	record := Sealed{KEKID: "kek-1", WrappedDEK: []byte("dek")}
	if c.takeForOpening(&record, same, 0) != k || c.takeForOpening(&record, same, time.Minute) != nil {
		t.Error("not found for reading, or found after its age")
	}
	empty, name := recentKey(map[string]string{"a": ""}, "dek")
	c.obtain(t, empty, name)
	if c.takeForSealing(map[string]string{"b": ""}, 1, 0) != nil || c.takeForSealing(map[string]string{"a": ""}, 1, 0) != empty {
		t.Error("an empty value of another key")
	}
	c, _ = fresh(nil)
	for name, other := range map[string]Sealed{
		"another KEK": {KEKID: "kek-2", WrappedDEK: record.WrappedDEK}, "another DEK": {KEKID: "kek-1", WrappedDEK: []byte("DEK")}, "nothing": {},
	} {
		if c.takeForOpening(&other, same, 0) != nil {
			t.Errorf("%s: a key of another record", name)
		}
	}
	c.dropAll(false)
	if c.takeForSealing(same, 1, 0) != nil {
		t.Error("a key that was dropped")
	}
	c, _ = fresh(nil)
	c.dropExpired(time.Hour)
	if c.takeForSealing(same, 1, 0) != nil {
		t.Error("a key that was removed")
	}
	c, _ = fresh(func(l *Cache) { l.MaxBytes = 10 })
	if c.takeForSealing(same, 9, 0) != nil {
		t.Error("more bytes than its bound")
	}
}

// TestRecentKeyBounds: however many use the key at once, no more records are charged to it than
// its bounds allow.
func TestRecentKeyBounds(t *testing.T) {
	encctx := map[string]string{"table": "orders"}
	c := newCache(Cache{MaxUses: 1000, MaxBytes: 1 << 30}.withDefaults())
	k, name := recentKey(encctx, "dek")
	c.obtain(t, k, name) // two uses
	var used atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if c.takeForSealing(encctx, 1, 0) != nil {
					used.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := used.Load(); n != 998 {
		t.Errorf("%d records", n)
	}
	if c.takeKey([]byte(name), 1, 0) != nil {
		t.Error("it is used once more by its name")
	}
}

// TestRecentKeyStays: the key in use is not evicted, although the fast path does not move it
// to the front.
func TestRecentKeyStays(t *testing.T) {
	c := newCache(Cache{MaxKeys: 3}.withDefaults())
	encctx := map[string]string{"tenant": "hot"}
	k, name := recentKey(encctx, "dek")
	c.obtain(t, k, name)
	for n := range 10 {
		other := fmt.Sprint("other ", n)
		if _, err := c.obtainKey(t.Context(), other, 1, 0, func(context.Context) (*dataKey, error) { return &dataKey{}, nil }); err != nil {
			t.Fatal(err)
		}
		if c.takeForSealing(encctx, 1, 0) != k {
			t.Fatalf("after %d others it is gone", n+1)
		}
	}
	if len(c.keys) != 3 || c.order.Len() != 3 {
		t.Errorf("%d keys", len(c.keys))
	}
	for most := 1; most <= 2; most++ { // of few keys the new one is kept too
		c := newCache(Cache{MaxKeys: most}.withDefaults())
		c.obtain(t, k, name)
		for _, other := range []string{"b", "c"} {
			fresh, _ := recentKey(nil, other)
			c.obtain(t, fresh, other)
		}
		if len(c.keys) != most {
			t.Errorf("%d keys of %d", len(c.keys), most)
		}
	}
}

// TestKeptWrappedDEK: a caller who uses the memory of a wrapped DEK again does not get the
// key of what was there before.
func TestKeptWrappedDEK(t *testing.T) {
	bubble(t, func(b *bubbled) {
		wrapped := []byte("wrapped")
		s := Sealed{KEKID: "kek-1", WrappedDEK: wrapped, Ciphertext: b.keys.seal(t)}
		for range 3 {
			if _, err := b.c.Open(b.Context(), s, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		copy(wrapped, "another")
		if _, err := b.c.Open(b.Context(), s, nil, nil); err != nil || b.keys.unwrapped != 2 {
			t.Errorf("%v after %d calls", err, b.keys.unwrapped)
		}
	})
}
