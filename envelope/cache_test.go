package envelope

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

func TestCacheBounds(t *testing.T) {
	limits := Cache{MaxAge: time.Minute, MaxUses: 3, MaxBytes: 100, MaxKeys: 2}.withDefaults()
	born := time.Hour
	k := &dataKey{born: born}
	taken := func(c *cache, name string, size int, at time.Duration) bool {
		return c.takeKey([]byte(name), size, born+at) == k
	}
	t.Run("age", func(t *testing.T) {
		c := newCache(limits)
		c.putKey("a", k, usage{1, 1})
		if !taken(c, "a", 1, time.Minute-1) || taken(c, "a", 1, time.Minute) {
			t.Error("the age is not its bound")
		}
	})
	t.Run("uses", func(t *testing.T) {
		c := newCache(limits)
		c.putKey("a", k, usage{1, 1}) // the first
		for use := 2; use <= 4; use++ {
			if got := taken(c, "a", 1, 0); got != (use <= 3) {
				t.Errorf("use %d: %v", use, got)
			}
		}
	})
	t.Run("bytes", func(t *testing.T) {
		c := newCache(limits)
		c.putKey("a", k, usage{1, 60})
		if !taken(c, "a", 40, 0) || taken(c, "a", 1, 0) {
			t.Error("it does not seal 100 bytes")
		}
	})
	t.Run("keys", func(t *testing.T) {
		c := newCache(limits)
		c.putKey("a", k, usage{1, 1})
		c.putKey("b", k, usage{1, 1})
		taken(c, "a", 1, 0)
		c.putKey("c", k, usage{1, 1})
		if taken(c, "b", 1, 0) || !taken(c, "a", 1, 0) || !taken(c, "c", 1, 0) {
			t.Error("the least recently used key is not the one that went")
		}
	})
	t.Run("drop", func(t *testing.T) {
		c := newCache(limits)
		c.putKey("a", k, usage{1, 1})
		c.dropAll(false)
		if taken(c, "a", 1, 0) {
			t.Error("it survived")
		}
		c.putKey("a", k, usage{1, 1})
		c.dropAll(true)
		c.putKey("a", k, usage{1, 1})
		if taken(c, "a", 1, 0) {
			t.Error("a shut cache takes keys")
		}
	})
	t.Run("off", func(t *testing.T) {
		c := newCache(Cache{Off: true}.withDefaults())
		c.putKey("a", k, usage{1, 1})
		if taken(c, "a", 1, 0) {
			t.Error("it keeps keys")
		}
	})
	if got := (Cache{MaxUses: 1 << 40}).withDefaults().MaxUses; got != 1<<32 {
		t.Errorf("%d uses of random nonces", got)
	}
}

// slowKMS answers after a second, with another wrapped key each time.
type slowKMS struct {
	constantKMS
	mu sync.Mutex
}

func (k *slowKMS) GenerateDataKey(ctx context.Context, in *kms.GenerateDataKeyInput, o ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	time.Sleep(time.Second)
	k.mu.Lock()
	defer k.mu.Unlock()
	out, err := k.constantKMS.GenerateDataKey(ctx, in, o...)
	out.CiphertextBlob = fmt.Appendf(nil, "wrapped %d", k.made)
	return out, err
}

// TestBoundsOfWaiters: the bounds of a data key hold for those who wait for one call
// to KMS too, and as far as the bounds allow they share it.
func TestBoundsOfWaiters(t *testing.T) {
	const sealers, size = 200, 10
	for _, test := range []struct {
		limits Cache
		calls  int
	}{
		{Cache{MaxUses: 1}, sealers},
		{Cache{MaxUses: 50}, sealers / 50},
		{Cache{MaxUses: 199}, 2},
		{Cache{MaxUses: 200}, 1},
		{Cache{MaxBytes: 100}, sealers * size / 100},
		{Cache{MaxBytes: 5}, sealers}, // one record is more than the bound
		{Cache{Off: true}, sealers},
		{Cache{}, 1},
	} {
		t.Run(fmt.Sprintf("%+v", test.limits), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newFakeControl()
				keys := &slowKMS{}
				cfg, err := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: keys, Cache: test.limits}.withDefaults()
				if err != nil {
					t.Fatal(err)
				}
				c, err := newClient(t.Context(), cfg, table)
				if err != nil {
					t.Fatal(err)
				}
				r := begin(t, c)
				uses := map[string]int64{}
				var mu sync.Mutex
				var wg sync.WaitGroup
				start := time.Now()
				for range sealers {
					wg.Go(func() {
						s, err := r.Seal(t.Context(), make([]byte, size), nil)
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						defer mu.Unlock()
						uses[string(s.WrappedDEK)]++
					})
				}
				wg.Wait()
				if len(uses) != test.calls || keys.made != test.calls {
					t.Errorf("%d data keys, %d calls, want %d", len(uses), keys.made, test.calls)
				}
				for name, n := range uses {
					if n > cfg.Cache.MaxUses || n > 1 && n*size > cfg.Cache.MaxBytes {
						t.Errorf("%q seals %d records", name, n)
					}
				}
				if d := time.Since(start); d != time.Second {
					t.Errorf("it took %v: the calls waited for each other", d)
				}
				r.End()
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestDropWhileCalled: a key that was asked for before an emergency switch is not kept
// after it.
func TestDropWhileCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(Cache{}.withDefaults())
		asked := 0
		obtain := func() {
			_, err := c.obtainKey(t.Context(), "a", 1, 0, func(context.Context) (*dataKey, error) {
				asked++
				time.Sleep(time.Second)
				return &dataKey{}, nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		go obtain()
		synctest.Wait()
		c.dropAll(false)
		time.Sleep(2 * time.Second)
		if c.takeKey([]byte("a"), 1, 0) != nil {
			t.Error("it was kept")
		}
		obtain()
		if c.takeKey([]byte("a"), 1, 0) == nil || asked != 2 {
			t.Errorf("the next one is not kept, asked %d times", asked)
		}
	})
}

// TestWaiterGivesUp: who waits for a call may give up without taking it away from the
// others.
func TestWaiterGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(Cache{}.withDefaults())
		ask := func(ctx context.Context) (*dataKey, error) {
			time.Sleep(time.Second)
			return &dataKey{}, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() {
			_, err := c.obtainKey(ctx, "a", 1, 0, ask)
			gaveUp <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; err == nil {
			t.Error("it waited on")
		}
		if k, err := c.obtainKey(t.Context(), "a", 1, 0, ask); k == nil || err != nil {
			t.Errorf("another waiter: %v, %v", k, err)
		}
		if k := c.takeKey([]byte("a"), 1, 0); k == nil {
			t.Error("it was not kept")
		}
	})
}

// TestAllocations: with a cached data key a record is sealed into the caller's buffer
// without an allocation, and opened with that of its plaintext, to which the race
// detector adds one.
func TestAllocations(t *testing.T) {
	cfg, err := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: &constantKMS{}, Cache: Cache{MaxAge: time.Hour}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(t.Context(), cfg, newFakeControl())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := begin(t, c)
	defer r.End()
	encctx := map[string]string{"table": "orders", "tenant": "acme"}
	buf, plain := make([]byte, 0, 1024), make([]byte, 100)
	var sealed Sealed
	if n := testing.AllocsPerRun(100, func() {
		if sealed, err = r.AppendSeal(t.Context(), buf, plain, encctx); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%g allocations to seal", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := c.Open(t.Context(), sealed, encctx, nil); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("%g allocations to open", n)
	}
}
