package envelope

import (
	"testing"
	"time"
)

func TestCacheBounds(t *testing.T) {
	limits := Cache{MaxAge: time.Minute, MaxUses: 3, MaxBytes: 100, MaxKeys: 2}.withDefaults()
	born := time.Hour
	k := &dataKey{}
	taken := func(c *cache, name string, size int, at time.Duration) bool {
		return c.take([]byte(name), size, born+at) == k
	}
	t.Run("age", func(t *testing.T) {
		c := newCache(limits)
		c.put("a", k, 1, born)
		if !taken(c, "a", 1, time.Minute-1) || taken(c, "a", 1, time.Minute) {
			t.Error("the age is not its bound")
		}
	})
	t.Run("uses", func(t *testing.T) {
		c := newCache(limits)
		c.put("a", k, 1, born) // the first
		for use := 2; use <= 4; use++ {
			if got := taken(c, "a", 1, 0); got != (use <= 3) {
				t.Errorf("use %d: %v", use, got)
			}
		}
	})
	t.Run("bytes", func(t *testing.T) {
		c := newCache(limits)
		c.put("a", k, 60, born)
		if !taken(c, "a", 40, 0) || taken(c, "a", 1, 0) {
			t.Error("it does not seal 100 bytes")
		}
	})
	t.Run("keys", func(t *testing.T) {
		c := newCache(limits)
		c.put("a", k, 1, born)
		c.put("b", k, 1, born)
		taken(c, "a", 1, 0)
		c.put("c", k, 1, born)
		if taken(c, "b", 1, 0) || !taken(c, "a", 1, 0) || !taken(c, "c", 1, 0) {
			t.Error("the least recently used key is not the one that went")
		}
	})
	t.Run("drop", func(t *testing.T) {
		c := newCache(limits)
		c.put("a", k, 1, born)
		c.drop(false)
		if taken(c, "a", 1, 0) {
			t.Error("it survived")
		}
		c.put("a", k, 1, born)
		c.drop(true)
		c.put("a", k, 1, born)
		if taken(c, "a", 1, 0) {
			t.Error("a shut cache takes keys")
		}
	})
	t.Run("off", func(t *testing.T) {
		c := newCache(Cache{Off: true}.withDefaults())
		c.put("a", k, 1, born)
		if taken(c, "a", 1, 0) {
			t.Error("it keeps keys")
		}
	})
	if got := (Cache{MaxUses: 1 << 40}).withDefaults().MaxUses; got != 1<<32 {
		t.Errorf("%d uses of random nonces", got)
	}
}
