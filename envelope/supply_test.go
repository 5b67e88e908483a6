package envelope

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// keyMaker makes data keys of an epoch, each after a while.
type keyMaker struct {
	start time.Time
	epoch int64
	takes time.Duration
	err   error
	mu    sync.Mutex
	made  int
}

func (m *keyMaker) make(_ context.Context, _ map[string]string, least int64) (*dataKey, error) {
	k := &dataKey{born: time.Since(m.start), bornEpoch: max(m.epoch, least)}
	err := m.err
	time.Sleep(m.takes)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made++
	k.id = fmt.Sprintf("dek-%d", m.made)
	return k, nil
}

// supplied is a supply of data keys in fake time.
type supplied struct {
	*testing.T
	*keySupply
	m *keyMaker
}

func supply(t *testing.T, bounds KeyTable, f func(s supplied)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bounds.Table, bounds.Bucket, bounds.S3 = "keys", "audit", noS3{}
		bounds, err := bounds.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		m := &keyMaker{start: time.Now(), epoch: 1, takes: 100 * time.Millisecond}
		f(supplied{t, newKeySupply(bounds, Cache{}.withDefaults(), new(atomic.Int64), m.make), m})
		synctest.Wait()
	})
}

type noS3 struct{ S3 }

// takeFor takes a data key for one record of a tenant, in an epoch of the pointer.
func (s supplied) takeFor(tenant string, size int, epoch, least int64) (id string, waited bool) {
	s.Helper()
	hits := s.hits.Load()
	k, err := s.take(s.Context(), keyWish{
		encctx: map[string]string{"tenant": tenant}, size: size, now: time.Since(s.m.start), epoch: epoch, least: least,
	})
	if err != nil {
		s.Fatal(err)
	}
	return k.id, s.hits.Load() == hits
}

// TestNobodyWaits: whichever bound a data key nears, the next one is made before it ends, so
// that no writer but the first waits.
func TestNobodyWaits(t *testing.T) {
	for name, c := range map[string]struct {
		bounds KeyTable
		writes int
		size   int
		deks   string // of the last write
	}{
		"uses":  {KeyTable{MaxUses: 8}, 40, 1, "dek-5"},
		"bytes": {KeyTable{MaxBytes: 800}, 40, 100, "dek-5"},
		"age":   {KeyTable{MaxAge: 8 * time.Second}, 40, 1, "dek-7"},
	} {
		t.Run(name, func(t *testing.T) {
			supply(t, c.bounds, func(s supplied) {
				last, used := "", map[string]int{}
				for n := range c.writes {
					id, waited := s.takeFor("a", c.size, 1, 0)
					if waited != (n == 0) {
						t.Errorf("write %d: waited %t", n, waited)
					}
					if used[id]++; used[id] > 8 {
						t.Errorf("write %d: %s is used %d times", n, id, used[id])
					}
					last = id
					time.Sleep(time.Second)
				}
				if last != c.deks {
					t.Errorf("the last write is under %s", last)
				}
			})
		})
	}
}

// TestIdleSupply: a process that writes nothing makes no data key, and holds none that is too
// old.
func TestIdleSupply(t *testing.T) {
	supply(t, KeyTable{MaxAge: time.Minute}, func(s supplied) {
		s.takeFor("a", 1, 1, 0)
		for range 100 {
			time.Sleep(10 * time.Second)
			s.dropExpired(time.Since(s.m.start))
		}
		if s.m.made != 1 || s.lineOf(map[string]string{"tenant": "a"}).current != nil {
			t.Errorf("%d data keys made", s.m.made)
		}
		if id, waited := s.takeFor("a", 1, 1, 0); id != "dek-2" || !waited {
			t.Errorf("%s, waited %t", id, waited)
		}
	})
}

// TestSupplyAtASwitch: after a normal rotation writers use the data key that they have until
// the next is made; after an emergency they wait for a new one, and what was being made before
// it is dropped.
func TestSupplyAtASwitch(t *testing.T) {
	supply(t, KeyTable{MaxUses: 4}, func(s supplied) {
		s.takeFor("a", 1, 1, 0)
		s.m.epoch = 2
		if id, waited := s.takeFor("a", 1, 2, 0); id != "dek-1" || waited {
			t.Errorf("after a normal rotation: %s, waited %t", id, waited)
		}
		time.Sleep(time.Second)
		if id, waited := s.takeFor("a", 1, 2, 0); id != "dek-2" || waited {
			t.Errorf("a second later: %s, waited %t", id, waited)
		}
		s.takeFor("a", 1, 2, 0)
		s.takeFor("a", 1, 2, 0) // the third use: the next data key is on its way
		synctest.Wait()
		s.m.epoch = 3
		s.dropEarlier(3)
		if id, waited := s.takeFor("a", 1, 3, 0); id != "dek-4" || !waited {
			t.Errorf("after an emergency: %s, waited %t", id, waited)
		}
		time.Sleep(time.Second)
		s.takeFor("a", 1, 3, 0)
		s.takeFor("a", 1, 3, 0)
		time.Sleep(time.Second) // dek-5 is at hand
		synctest.Wait()
		s.m.epoch = 4
		s.dropEarlier(4)
		s.dropEarlier(2) // of a pointer that was read before
		if id, waited := s.takeFor("a", 1, 4, 0); id != "dek-6" || !waited {
			t.Errorf("after the next: %s, waited %t", id, waited)
		}
	})
}

// TestRefusedEpoch: a writer who needs a data key of a later epoch gets one, and who does not
// gets the same.
func TestRefusedEpoch(t *testing.T) {
	supply(t, KeyTable{}, func(s supplied) {
		s.takeFor("a", 1, 1, 0)
		if id, waited := s.takeFor("a", 1, 1, 5); id != "dek-2" || !waited {
			t.Errorf("%s, waited %t", id, waited)
		}
		if id, waited := s.takeFor("a", 1, 1, 0); id != "dek-2" || waited {
			t.Errorf("%s, waited %t", id, waited)
		}
	})
}

// TestFailedPrefetch: a data key that could not be made in the background is tried again after
// a second, and only who has none sees the error.
func TestFailedPrefetch(t *testing.T) {
	supply(t, KeyTable{MaxUses: 100}, func(s supplied) {
		for range 74 {
			s.takeFor("a", 1, 1, 0)
		}
		calls := 0
		broken := errors.New("broken")
		s.make = func(context.Context, map[string]string, int64) (*dataKey, error) { calls++; return nil, broken }
		for range 21 {
			if id, waited := s.takeFor("a", 1, 1, 0); id != "dek-1" || waited {
				t.Errorf("%s, waited %t", id, waited)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if calls != 3 {
			t.Errorf("%d calls in 2 s", calls)
		}
		_, err := s.take(s.Context(), keyWish{encctx: map[string]string{"tenant": "a"}, size: 64 << 30, now: time.Since(s.m.start), epoch: 1})
		if !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	})
}

// TestSupplyOfManyTenants: each context has a data key of its own, as many are held as the
// cache allows, and those in use stay.
func TestSupplyOfManyTenants(t *testing.T) {
	supply(t, KeyTable{}, func(s supplied) {
		if s.maxKeys != 1000 {
			t.Errorf("%d contexts", s.maxKeys)
		}
		s.maxKeys = 3
		first := map[string]string{}
		for _, tenant := range []string{"a", "b", "c", "a", "d", "a"} {
			id, _ := s.takeFor(tenant, 1, 1, 0)
			if was := first[tenant]; was != "" && was != id {
				t.Errorf("%s: %s, then %s", tenant, was, id)
			}
			first[tenant] = id
		}
		if len(s.lines) != 3 || s.order.Len() != 3 || s.m.made != 4 {
			t.Errorf("%d lines, %d data keys", len(s.lines), s.m.made)
		}
		if id, waited := s.takeFor("b", 1, 1, 0); id != "dek-5" || !waited {
			t.Errorf("the least recently used: %s, waited %t", id, waited)
		}
	})
}

// TestClosedSupply: a supply that is closed gives no data key, also none that was being made.
func TestClosedSupply(t *testing.T) {
	supply(t, KeyTable{}, func(s supplied) {
		done := make(chan error)
		go func() {
			_, err := s.take(s.Context(), keyWish{})
			done <- err
		}()
		synctest.Wait()
		s.close()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		if _, err := s.take(s.Context(), keyWish{}); !errors.Is(err, ErrClosed) || s.m.made != 1 {
			t.Errorf("%v, %d made", err, s.m.made)
		}
	})
}

// TestWriterGivesUp: a writer whose context ends does not wait, and the data key is made for
// the others all the same.
func TestWriterGivesUp(t *testing.T) {
	supply(t, KeyTable{}, func(s supplied) {
		ctx, cancel := context.WithTimeout(s.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.take(ctx, keyWish{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		k, err := s.take(s.Context(), keyWish{})
		if err != nil || k.id != "dek-1" || s.hits.Load() != 0 {
			t.Errorf("%+v, %v, %d hits", k, err, s.hits.Load())
		}
	})
}

// TestSupplyBounds: until when a data key is used, and from when on the next one is made, to
// the record, the byte, the nanosecond and the epoch.
func TestSupplyBounds(t *testing.T) {
	supply(t, KeyTable{MaxUses: 8, MaxBytes: 800, MaxAge: 8 * time.Second}, func(s supplied) {
		s.floor = 3
		for name, c := range map[string]struct {
			change        func(k *suppliedKey, w *keyWish)
			usable, nears bool
		}{
			"fresh":             {func(*suppliedKey, *keyWish) {}, true, false},
			"before the record": {func(k *suppliedKey, _ *keyWish) { k.used.uses = 5 }, true, false},
			"near its records":  {func(k *suppliedKey, _ *keyWish) { k.used.uses = 6 }, true, true},
			"the last record":   {func(k *suppliedKey, _ *keyWish) { k.used.uses = 7 }, true, true},
			"one too many":      {func(k *suppliedKey, _ *keyWish) { k.used.uses = 8 }, false, true},
			"before the byte":   {func(k *suppliedKey, _ *keyWish) { k.used = usage{1, 599} }, true, false},
			"near its bytes":    {func(k *suppliedKey, _ *keyWish) { k.used = usage{1, 600} }, true, true},
			"the last bytes":    {func(k *suppliedKey, w *keyWish) { k.used, w.size = usage{1, 600}, 200 }, true, true},
			"a byte too many":   {func(k *suppliedKey, w *keyWish) { k.used, w.size = usage{1, 600}, 201 }, false, true},
			"one large record":  {func(_ *suppliedKey, w *keyWish) { w.size = 1000 }, true, false},
			"not near its age":  {func(_ *suppliedKey, w *keyWish) { w.now += 6*time.Second - 1 }, true, false},
			"near its age":      {func(_ *suppliedKey, w *keyWish) { w.now += 6 * time.Second }, true, true},
			"before its age":    {func(_ *suppliedKey, w *keyWish) { w.now += 8*time.Second - 1 }, true, true},
			"of its age":        {func(_ *suppliedKey, w *keyWish) { w.now += 8 * time.Second }, false, true},
			"pointer moved":     {func(_ *suppliedKey, w *keyWish) { w.epoch = 6 }, true, true},
			"as needed":         {func(_ *suppliedKey, w *keyWish) { w.least = 5 }, true, false},
			"too early":         {func(_ *suppliedKey, w *keyWish) { w.least = 6 }, false, false},
			"of the emergency":  {func(k *suppliedKey, w *keyWish) { k.bornEpoch, w.epoch = 3, 3 }, true, false},
			"exposed":           {func(k *suppliedKey, w *keyWish) { k.bornEpoch, w.epoch = 2, 2 }, false, false},
		} {
			k := &suppliedKey{dataKey: &dataKey{born: time.Minute, bornEpoch: 5}}
			w := keyWish{now: time.Minute, epoch: 5, size: 1}
			c.change(k, &w)
			if usable, nears := s.usable(k, w), s.nearsEnd(k, w); usable != c.usable || nears != c.nears {
				t.Errorf("%s: usable %t, nears its end %t", name, usable, nears)
			}
		}
		if s.usable(nil, keyWish{}) {
			t.Error("no key is usable")
		}
	})
}

// TestKeyTableDefaults: the bounds that are not given, and those that are kept.
func TestKeyTableDefaults(t *testing.T) {
	base := KeyTable{Table: "keys", Bucket: "audit", S3: noS3{}}
	got, err := base.withDefaults()
	want := base
	want.MaxAge, want.MaxUses, want.MaxBytes = 24*time.Hour, 1_048_576, 68_719_476_736
	if got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	for _, k := range []KeyTable{
		{Table: "keys", Bucket: "audit", S3: noS3{}, MaxAge: 1, MaxUses: 1, MaxBytes: 1},
		{Table: "keys", Bucket: "audit", S3: noS3{}, MaxAge: 1, MaxUses: 4_294_967_296, MaxBytes: 1},
	} {
		if got, err := k.withDefaults(); got != k || err != nil {
			t.Errorf("%+v, %v", got, err)
		}
		k.MaxUses = 4_294_967_297
		if got, _ := k.withDefaults(); got.MaxUses != 4_294_967_296 {
			t.Errorf("%d uses", got.MaxUses)
		}
	}
}

// TestOnePrefetch: while the next data key is made nobody begins to make another.
func TestOnePrefetch(t *testing.T) {
	supply(t, KeyTable{MaxUses: 100}, func(s supplied) {
		for range 99 {
			s.takeFor("a", 1, 1, 0)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s.m.made != 2 {
			t.Errorf("%d data keys made", s.m.made)
		}
		s.takeFor("a", 1, 1, 0)
		time.Sleep(time.Second)
		synctest.Wait()
		if s.m.made != 2 {
			t.Errorf("%d data keys made while the next was at hand", s.m.made)
		}
	})
}

// TestLinesInUse: a line whose data key is being made is not evicted, however many there are;
// afterwards all but the latest are.
func TestLinesInUse(t *testing.T) {
	supply(t, KeyTable{}, func(s supplied) {
		s.maxKeys = 1
		done := make(chan string)
		for _, tenant := range []string{"a", "b", "c"} {
			go func() {
				k, err := s.take(s.Context(), keyWish{encctx: map[string]string{"tenant": tenant}, size: 1, epoch: 1})
				if err != nil {
					t.Error(err)
				}
				done <- k.id
			}()
			synctest.Wait()
		}
		if len(s.lines) != 3 {
			t.Errorf("%d lines while data keys are made", len(s.lines))
		}
		for range 3 {
			<-done
		}
		synctest.Wait()
		if s.m.made != 3 {
			t.Errorf("%d data keys for three contexts", s.m.made)
		}
		s.takeFor("d", 1, 1, 0)
		if len(s.lines) != 1 || s.order.Len() != 1 || s.m.made != 4 {
			t.Errorf("%d lines, %d data keys", len(s.lines), s.m.made)
		}
	})
}

// heldKeys counts the data keys that a supply holds.
func (s supplied) heldKeys() (n int) {
	for e := s.order.Front(); e != nil; e = e.Next() {
		for _, k := range []*suppliedKey{e.Value.(*supplyLine).current, e.Value.(*supplyLine).next} {
			if k != nil {
				n++
			}
		}
	}
	return n
}

// TestDroppedKeys: what is dropped is no longer in memory, of every context, in use or at
// hand; what is younger, or of the epoch of the emergency, stays.
func TestDroppedKeys(t *testing.T) {
	for name, c := range map[string]struct {
		drop func(s supplied)
		held int
	}{
		"emergency":          {func(s supplied) { s.dropEarlier(2) }, 0},
		"of that epoch":      {func(s supplied) { s.dropEarlier(1) }, 4},
		"closed":             {func(s supplied) { s.close() }, 0},
		"not expired":        {func(s supplied) { s.dropExpired(time.Hour + time.Minute - 1) }, 4},
		"expired":            {func(s supplied) { s.dropExpired(time.Hour + time.Minute + time.Second) }, 0},
		"one of its age":     {func(s supplied) { s.dropExpired(time.Hour + time.Minute) }, 2},
		"two emergencies":    {func(s supplied) { s.dropEarlier(3); s.dropEarlier(2) }, 0},
		"nothing is dropped": {func(supplied) {}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			supply(t, KeyTable{MaxUses: 4, MaxAge: time.Minute}, func(s supplied) {
				time.Sleep(time.Hour)
				for _, tenant := range []string{"a", "b"} { // both from the same moment
					go func() {
						_, _ = s.take(s.Context(), keyWish{encctx: map[string]string{"tenant": tenant}, size: 1, now: time.Hour, epoch: 1})
					}()
				}
				time.Sleep(time.Second)
				for _, tenant := range []string{"a", "b", "a", "b"} {
					s.takeFor(tenant, 1, 1, 0)
				}
				time.Sleep(500 * time.Millisecond)
				synctest.Wait()
				if n := s.heldKeys(); n != 4 {
					t.Fatalf("%d data keys", n)
				}
				c.drop(s)
				if n := s.heldKeys(); n != c.held {
					t.Errorf("%d data keys are left", n)
				}
			})
		})
	}
}

// TestOvertakenCall: a data key that was being made when an emergency came, or the supply was
// closed, is not kept.
func TestOvertakenCall(t *testing.T) {
	for name, overtake := range map[string]func(s supplied){
		"emergency": func(s supplied) { s.dropEarlier(2); s.dropEarlier(1) }, "closed": func(s supplied) { s.close() },
	} {
		supply(t, KeyTable{MaxUses: 4}, func(s supplied) {
			for range 3 {
				s.takeFor("a", 1, 1, 0)
			}
			synctest.Wait() // the next one is on its way
			overtake(s)
			time.Sleep(time.Second)
			synctest.Wait()
			if n := s.heldKeys(); n != 0 || s.m.made != 2 {
				t.Errorf("%s: %d data keys are held, %d were made", name, n, s.m.made)
			}
		})
	}
}
