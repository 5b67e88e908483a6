package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// TestPointerAge: an idle client never holds a pointer older than it may be, and
// Begin itself reads nothing.
func TestPointerAge(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		for range 500 {
			time.Sleep(time.Second)
			before := table.reads()
			if age := c.pointerAge(c.elapsedTime()); age > defaultPointerAge {
				t.Fatalf("the pointer is %v old", age)
			}
			begin(t, c).End()
			if table.reads() != before {
				t.Fatal("Begin read the pointer")
			}
		}
		if n := table.reads(); n > 110 {
			t.Errorf("%d reads in 500 s", n)
		}
	})
}

// TestLeaseRenewal: the lease is always alive, and says what is in flight within
// one interval.
func TestLeaseRenewal(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		for range 300 {
			time.Sleep(time.Second)
			if l, ok := table.lease("kek-1"); !ok || time.Until(l.Expires) < defaultLeaseTTL/3 {
				t.Fatalf("lease %+v, %v, runs out in %v", l, ok, time.Until(l.Expires))
			}
		}
		if table.renewals > 20 {
			t.Errorf("%d renewals in 300 s of an idle client", table.renewals)
		}
		refs := []*Ref{begin(t, c), begin(t, c)}
		time.Sleep(defaultPointerAge)
		if l, _ := table.lease("kek-1"); l.Refs != 2 || c.Stats().InFlight != 2 {
			t.Errorf("the lease says %d in flight, the client %d; 2 are", l.Refs, c.Stats().InFlight)
		}
		for _, r := range refs {
			r.End()
			r.End()
		}
		time.Sleep(defaultPointerAge)
		if l, _ := table.lease("kek-1"); l.Refs != 0 || c.Stats().InFlight != 0 {
			t.Errorf("the lease says %d in flight, the client %d; none is", l.Refs, c.Stats().InFlight)
		}
	})
}

// TestSwitch: the client moves to the new KEK within ten seconds, keeps the old
// lease while a reference lives, and gives it back at once when it ends.
func TestSwitch(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		old := begin(t, c)
		table.move(2, kek.Normal)
		time.Sleep(defaultPointerAge)
		r := begin(t, c)
		if r.KEK() != "kek-2" || r.Epoch() != 2 || old.KEK() != "kek-1" {
			t.Errorf("a new reference is to %s, the old one to %s", r.KEK(), old.KEK())
		}
		time.Sleep(time.Hour)
		if l, ok := table.lease("kek-1"); !ok || l.Refs != 1 || time.Until(l.Expires) <= 0 {
			t.Errorf("lease on the old KEK while a reference lives: %+v, %v", l, ok)
		}
		r.End()
		old.End()
		synctest.Wait()
		if l, ok := table.lease("kek-1"); ok {
			t.Errorf("the old lease stays: %+v", l)
		}
		if _, ok := table.lease("kek-2"); !ok {
			t.Error("no lease on the new KEK")
		}
	})
}

// TestSwitchWhileIdle: with nothing in flight the old lease is gone as soon as the
// client sees the switch.
func TestSwitchWhileIdle(t *testing.T) {
	bubble(t, func(t *bubbled) {
		table := t.table
		table.move(2, kek.Normal)
		time.Sleep(defaultPointerAge)
		if l, ok := table.lease("kek-1"); ok {
			t.Errorf("the old lease stays: %+v", l)
		}
	})
}

// TestRecheck: the pointer moves while the first lease is put (spec: RecheckPtr).
func TestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newFakeControl()
		puts := 0
		table.onPut = func() {
			if puts++; puts < 3 {
				table.move(int64(puts+1), kek.Normal)
			}
		}
		cfg, _ := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: &constantKMS{}}.withDefaults()
		c, err := newClient(t.Context(), cfg, table)
		if err != nil {
			t.Fatal(err)
		}
		if r := begin(t, c); r.KEK() != "kek-3" {
			t.Errorf("the client is at %s", r.KEK())
		} else {
			r.End()
		}
		time.Sleep(defaultPointerAge)
		synctest.Wait()
		if len(table.leases) != 1 {
			t.Errorf("leases: %v", table.leases)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestRevoked: a rotation takes the lease of a process that slept. When it wakes
// it has a new lease on the KEK that is current by then.
func TestRevoked(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		r := begin(t, c)
		table.mu.Lock()
		clear(table.leases)
		table.mu.Unlock()
		time.Sleep(defaultLeaseTTL)
		if l, ok := table.lease("kek-1"); !ok || l.Refs != 1 {
			t.Errorf("no new lease on the same KEK: %+v, %v", l, ok)
		}
		table.mu.Lock()
		clear(table.leases)
		table.mu.Unlock()
		table.move(2, kek.Emergency)
		time.Sleep(defaultLeaseTTL)
		if l, ok := table.lease("kek-2"); !ok {
			t.Errorf("no lease on the new KEK: %+v, %v", l, ok)
		}
		r.End()
		synctest.Wait()
		if n := c.Stats().RevokedLeases; n != 2 {
			t.Errorf("%d revoked leases", n)
		}
	})
}

// TestControlTableDown: writers continue for as long as a lease lives, then stop, and
// recover by themselves.
func TestControlTableDown(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		table.mu.Lock()
		table.down = true
		table.mu.Unlock()
		time.Sleep(40 * time.Second)
		begin(t, c).End()
		reads := table.reads()
		for range 1000 { // no storm of reads
			begin(t, c).End()
		}
		if n := table.reads() - reads; n > 1 {
			t.Errorf("%d reads by 1000 Begins at one moment", n)
		}
		time.Sleep(40 * time.Second)
		if _, err := c.Begin(t.Context()); !errors.Is(err, ErrStalePointer) {
			t.Errorf("after a lease's life: %v", err)
		}
		if c.Stats().PointerErrors == 0 {
			t.Error("no error was counted")
		}
		table.mu.Lock()
		table.down = false
		table.mu.Unlock()
		time.Sleep(defaultPointerAge)
		begin(t, c).End()
	})
}

// TestRegistryDown: while the control table cannot be read, rows under KEKs that the
// process has known are read, and under no others: anybody may have named those.
func TestRegistryDown(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table, keys := t.c, t.table, t.keys
		table.move(2, kek.Normal)
		time.Sleep(defaultPointerAge)
		seen := Sealed{KEKID: "kek-7", WrappedDEK: []byte("w"), Ciphertext: keys.seal(t)}
		if _, err := c.Open(t.Context(), seen, nil, nil); err != nil {
			t.Fatal(err)
		}
		c.opening.dropAll(false)
		table.mu.Lock()
		table.down = true
		table.mu.Unlock()
		time.Sleep(30 * time.Second)
		asked := keys.unwrapped
		for id, known := range map[kek.ID]bool{"kek-2": true, "kek-1": true, "kek-7": true, "kek-9": false} {
			_, err := c.Open(t.Context(), Sealed{KEKID: id, WrappedDEK: []byte("w"), Ciphertext: seen.Ciphertext}, nil, nil)
			if known && err != nil || !known && !errors.Is(err, errDown) {
				t.Errorf("%s: %v", id, err)
			}
		}
		if n := keys.unwrapped - asked; n != 3 {
			t.Errorf("KMS was asked %d times", n)
		}
	})
}

// TestPlantedIDs: rows that name KEKs which do not exist cost no memory, and do not
// push out what the client knows.
func TestPlantedIDs(t *testing.T) {
	bubble(t, func(t *bubbled) {
		t.table.unknown = map[kek.ID]bool{}
		for n := range 100 {
			id := kek.ID(fmt.Sprintf("planted-%d", n))
			t.table.unknown[id] = true
			if _, err := t.c.Open(t.Context(), Sealed{KEKID: id}, nil, nil); !errors.Is(err, ErrUnknownKEK) {
				t.Errorf("%v", err)
			}
		}
		if _, ok := t.c.known["kek-1"]; !ok || len(t.c.known) != 1 {
			t.Errorf("%d KEKs are known", len(t.c.known))
		}
	})
}

// TestMarksRenewed: a mark is left again within an hour, should an operator have
// removed it, and when the pointer moves before the old lease is given back.
func TestMarksRenewed(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		if err := c.putMark(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		left := func() int {
			table.mu.Lock()
			defer table.mu.Unlock()
			return len(table.marks["orders"])
		}
		time.Sleep(50 * time.Minute)
		if n := left(); n != 1 {
			t.Errorf("left %d times in 50 minutes", n)
		}
		time.Sleep(11 * time.Minute)
		if n := left(); n != 2 {
			t.Errorf("left %d times in 61 minutes", n)
		}
		table.mu.Lock()
		table.onDrop = func(id kek.ID) {
			if n := left(); id == "kek-1" && n != 3 {
				t.Errorf("the lease on %s is given back when the mark was left %d times", id, n)
			}
		}
		table.mu.Unlock()
		table.move(2, kek.Normal)
		time.Sleep(defaultPointerAge)
		if _, ok := table.lease("kek-1"); ok || left() != 3 {
			t.Errorf("after a switch it was left %d times, old lease %v", left(), ok)
		}
		table.mu.Lock()
		table.down = true
		table.mu.Unlock()
		time.Sleep(2 * time.Hour)
		table.mu.Lock()
		table.down = false
		table.mu.Unlock()
		time.Sleep(defaultPointerAge)
		if n := left(); n != 4 {
			t.Errorf("left %d times after a time in which it could not be", n)
		}
	})
}

// TestFrozen: a Lambda is frozen between invocations, so that only Begin can notice
// that the pointer is old. The background work is not run at all here.
func TestFrozen(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c, table := t.c, t.table
		c.cancel()
		<-c.done
		table.move(2, kek.Normal)
		begin(t, c).End()
		if c.current.Load().pointer.Epoch != 1 {
			t.Fatal("a fresh pointer was read again")
		}
		time.Sleep(15 * time.Minute)
		if r := begin(t, c); r.KEK() != "kek-2" {
			t.Errorf("after the thaw it writes under %s", r.KEK())
		} else {
			r.End()
		}
		delete(table.leases, "kek-1") // the background work would have
	})
}

// TestFrozenOverARead: the background work was about to read the pointer when the process was
// frozen. After the thaw that read has timed out, and the first writer then is served.
func TestFrozenOverARead(t *testing.T) {
	bubble(t, func(t *bubbled) {
		thaw := make(chan struct{})
		t.table.mu.Lock()
		t.table.onRead = func() { <-thaw }
		t.table.mu.Unlock()
		time.Sleep(time.Hour)
		close(thaw)
		synctest.Wait()
		if t.c.Stats().PointerErrors == 0 {
			t.Fatal("the background read has not failed")
		}
		begin(t, t.c).End()
	})
}

// TestEmergencyDropsKeys: data keys of before are forgotten at an emergency switch,
// also those that only open; at a normal switch those that open stay.
func TestEmergencyDropsKeys(t *testing.T) {
	for mode, calls := range map[kek.Mode]int{kek.Normal: 1, kek.Emergency: 2, "": 2} {
		t.Run("mode "+string(mode), func(t *testing.T) {
			bubble(t, func(t *bubbled) {
				c, table, keys := t.c, t.table, t.keys
				r := begin(t, c)
				sealed, err := r.Seal(t.Context(), []byte("x"), nil)
				if err != nil {
					t.Fatal(err)
				}
				r.End()
				open := func() {
					t.Helper()
					if _, err := c.Open(t.Context(), sealed, nil, nil); err != nil {
						t.Fatal(err)
					}
				}
				open()
				open()
				table.move(2, mode)
				time.Sleep(defaultPointerAge)
				open()
				open() // kept again
				if keys.unwrapped != calls {
					t.Errorf("%d calls of Decrypt, want %d", keys.unwrapped, calls)
				}
				r = begin(t, c)
				defer r.End()
				if s, err := r.Seal(t.Context(), nil, nil); err != nil || s.Epoch != 2 || keys.made != 2 {
					t.Errorf("sealed in epoch %d with data key %d, %v", s.Epoch, keys.made, err)
				}
			})
		})
	}
}

// TestIdleKeysGo: what an idle client holds ages out without being asked for.
func TestIdleKeysGo(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c := t.c
		r := begin(t, c)
		defer r.End()
		s, err := r.Seal(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Open(t.Context(), s, nil, nil); err != nil {
			t.Fatal(err)
		}
		held := func(c *cache) int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.keys)
		}
		if held(c.opening) != 1 || held(r.h.sealing) != 1 {
			t.Fatal("nothing is cached")
		}
		time.Sleep(c.cfg.Cache.MaxAge + defaultPointerAge)
		if held(c.opening) != 0 || held(r.h.sealing) != 0 {
			t.Error("keys outlive their age")
		}
	})
}

func TestClosed(t *testing.T) {
	bubble(t, func(t *bubbled) {
		c := t.c
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Begin(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Begin: %v", err)
		}
		if _, err := c.Open(t.Context(), Sealed{}, nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Open: %v", err)
		}
	})
}

// TestKeysCleared: the bytes of a DEK are overwritten once it is expanded.
func TestKeysCleared(t *testing.T) {
	bubble(t, func(t *bubbled) {
		r := begin(t, t.c)
		defer r.End()
		s, err := r.Seal(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := t.c.Open(t.Context(), s, nil, nil); err != nil {
			t.Fatal(err)
		}
		if len(t.keys.given) != 2 {
			t.Fatalf("%d keys were given out", len(t.keys.given))
		}
		for i, k := range t.keys.given {
			if !bytes.Equal(k, make([]byte, 32)) {
				t.Errorf("key %d: %x", i, k)
			}
		}
	})
}
