package envelope

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	aesgcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	"google.golang.org/protobuf/proto"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// hookedControl is a fakeControl whose operations fail where they are told to, and are
// counted.
type hookedControl struct {
	*fakeControl
	fail   map[string]error
	calls  map[string]int
	shards int
}

func (h *hookedControl) called(op string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[op]++
	return h.fail[op]
}

func (h *hookedControl) set(op string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[op] = err
}

func (h *hookedControl) count(op string) int {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[op]
}

func (h *hookedControl) ReadPointer(ctx context.Context) (kek.Pointer, error) {
	if err := h.called("pointer"); err != nil {
		return kek.Pointer{}, err
	}
	return h.fakeControl.ReadPointer(ctx)
}

func (h *hookedControl) ReadKEK(ctx context.Context, id kek.ID) (kek.KEK, error) {
	if err := h.called("kek"); err != nil {
		return kek.KEK{}, err
	}
	k, err := h.fakeControl.ReadKEK(ctx, id)
	k.FenceShards = h.shards
	return k, err
}

func (h *hookedControl) ReadMode(ctx context.Context, rotation string) (kek.Mode, error) {
	if err := h.called("mode"); err != nil {
		return kek.Normal, err
	}
	return h.fakeControl.ReadMode(ctx, rotation)
}

func (h *hookedControl) PutLease(ctx context.Context, l controltable.Lease) error {
	if err := h.called("putLease"); err != nil {
		return err
	}
	return h.fakeControl.PutLease(ctx, l)
}

func (h *hookedControl) RenewLease(ctx context.Context, l controltable.Lease) (bool, error) {
	if err := h.called("renewLease"); err != nil {
		return false, err
	}
	return h.fakeControl.RenewLease(ctx, l)
}

func (h *hookedControl) DropLease(ctx context.Context, l controltable.Lease) error {
	if err := h.called("dropLease"); err != nil {
		return err
	}
	return h.fakeControl.DropLease(ctx, l)
}

func (h *hookedControl) PutMark(ctx context.Context, m kek.Mark) error {
	if err := h.called("putMark"); err != nil {
		return err
	}
	return h.fakeControl.PutMark(ctx, m)
}

// hooked is a test in fake time on a hookedControl.
type hooked struct {
	*testing.T
	c     *Client
	table *hookedControl
	keys  *constantKMS
}

var errHook = errors.New("hooked")

func newHooked(t *testing.T, change func(*Config), f func(*hooked)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		table := &hookedControl{fakeControl: newFakeControl(), fail: map[string]error{}, calls: map[string]int{}, shards: 1}
		keys := &constantKMS{}
		cfg := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: keys}
		if change != nil {
			change(&cfg)
		}
		cfg, err := cfg.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		c, err := newClient(t.Context(), cfg, table)
		if err != nil {
			t.Fatal(err)
		}
		f(&hooked{t, c, table, keys})
		table.mu.Lock()
		clear(table.fail)
		table.mu.Unlock()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// still stops the background work: nothing happens but what the test does.
func (h *hooked) still() {
	h.c.cancel()
	<-h.c.done
}

// TestConfigDefaults: what is left out has its documented value, what is given stays,
// and every fault is named.
func TestConfigDefaults(t *testing.T) {
	whole := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: &constantKMS{}}
	for _, given := range []Config{
		{}, {PointerAge: -1, LeaseTTL: -1, Cache: Cache{MaxAge: -1, MaxUses: -1, MaxBytes: -1, MaxKeys: -1}},
	} {
		given.ControlTable, given.DynamoDB, given.KMS = whole.ControlTable, whole.DynamoDB, whole.KMS
		c, err := given.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		want := Cache{MaxAge: 5 * time.Minute, MaxUses: 65536, MaxBytes: 4 << 30, MaxKeys: 1000}
		if c.PointerAge != 10*time.Second || c.LeaseTTL != time.Minute || c.Cache != want || c.Random == nil {
			t.Errorf("%+v", c)
		}
	}
	given := whole
	given.PointerAge, given.LeaseTTL, given.Random = time.Second, 2*time.Second, func(int64) int64 { return 42 }
	given.Cache = Cache{Off: true, MaxAge: 1, MaxUses: 1, MaxBytes: 1, MaxKeys: 1}
	c, err := given.withDefaults()
	if err != nil || c.PointerAge != time.Second || c.LeaseTTL != 2*time.Second || c.Random(1) != 42 || c.Cache != given.Cache {
		t.Errorf("%+v, %v", c, err)
	}
	for uses, want := range map[int64]int64{1<<32 - 1: 1<<32 - 1, 1 << 32: 1 << 32, 1<<32 + 1: 1 << 32} {
		if got := (Cache{MaxUses: uses}).withDefaults().MaxUses; got != want {
			t.Errorf("%d uses become %d, want %d", uses, got, want)
		}
	}
	for want, change := range map[string]func(*Config){
		"ControlTable is required":                   func(c *Config) { c.ControlTable = "" },
		"DynamoDB is required":                       func(c *Config) { c.DynamoDB = nil },
		"KMS is required":                            func(c *Config) { c.KMS = nil },
		"LeaseTTL must be at least twice PointerAge": func(c *Config) { c.PointerAge, c.LeaseTTL = time.Second, 2*time.Second-1 },
	} {
		bad := whole
		change(&bad)
		if _, err := bad.withDefaults(); err == nil || err.Error() != want && !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %s alone", err, want)
		}
		if _, err := New(t.Context(), bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want %s", err, want)
		}
	}
}

// TestHolder: a process has the name that it is given, or one of its own that no other
// client has.
func TestHolder(t *testing.T) {
	if l := newIdentity("me"); l.Holder != "me" || l.PID == 0 {
		t.Errorf("%+v", l)
	}
	own, other := newIdentity(""), newIdentity("")
	form := regexp.MustCompile(fmt.Sprintf(`^%s-%d-[A-Z2-7]{8}$`, regexp.QuoteMeta(own.Host), own.PID))
	if !form.MatchString(own.Holder) || own.Holder == other.Holder {
		t.Errorf("%q, %q", own.Holder, other.Holder)
	}
}

// TestCloseTwice: a second Close has nothing left to do; what is not given back is
// told.
func TestCloseTwice(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.table.set("dropLease", errHook)
		t.c.leases[0].refs.Add(1) // somebody has not ended his reference
		if err := t.c.Close(); !errors.Is(err, errHook) {
			t.Errorf("%v", err)
		}
		if n := t.c.Stats().InFlight; n != 0 {
			t.Errorf("%d in flight under leases that are gone", n)
		}
		if err := t.c.Close(); err != nil || t.table.count("dropLease") != 1 {
			t.Errorf("%v after %d tries", err, t.table.count("dropLease"))
		}
		if err := t.c.refreshPointer(t.Context(), nil); !errors.Is(err, ErrClosed) {
			t.Errorf("the pointer is read after Close: %v", err)
		}
		if t.c.opening.putKey("a", &dataKey{}, usage{}); len(t.c.opening.keys) > 0 || len(t.c.current.Load().sealing.keys) > 0 {
			t.Error("keys are kept after Close")
		}
	})
}

// TestCatchUp: a pointer that is too old is read by Begin; while it cannot be, the client
// continues for the life of a lease, asks once a second, and counts what failed.
func TestCatchUp(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		time.Sleep(10 * time.Second)
		begin(t, t.c).End()
		if n := t.table.count("pointer"); n != 2 { // New reads it twice: before and behind its lease
			t.Fatalf("a pointer of just the age was read: %d reads", n)
		}
		time.Sleep(time.Nanosecond)
		begin(t, t.c).End()
		if n := t.table.count("pointer"); n != 3 {
			t.Fatalf("%d reads", n)
		}
		read := time.Now()
		t.table.set("pointer", errHook)
		time.Sleep(11 * time.Second)
		for range 3 {
			begin(t, t.c).End()
		}
		if n, errs := t.table.count("pointer"), t.c.Stats().PointerErrors; n != 4 || errs != 1 {
			t.Errorf("%d reads and %d errors within a second", n, errs)
		}
		time.Sleep(time.Second - 1)
		begin(t, t.c).End()
		if n := t.table.count("pointer"); n != 4 {
			t.Error("it was read again within a second")
		}
		time.Sleep(time.Nanosecond)
		begin(t, t.c).End()
		if n, errs := t.table.count("pointer"), t.c.Stats().PointerErrors; n != 5 || errs != 2 {
			t.Errorf("%d reads and %d errors after a second", n, errs)
		}
		time.Sleep(time.Until(read.Add(time.Minute)))
		begin(t, t.c).End()
		time.Sleep(time.Nanosecond)
		if _, err := t.c.Begin(t.Context()); !errors.Is(err, ErrStalePointer) || !errors.Is(err, errBackoff) && !errors.Is(err, errHook) {
			t.Errorf("after a lease's life: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := t.c.Begin(t.Context()); !errors.Is(err, ErrStalePointer) || !errors.Is(err, errHook) {
			t.Errorf("after a lease's life: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := t.c.Begin(ctx); err == nil || errors.Is(err, ErrStalePointer) {
			t.Errorf("its context has ended: %v", err)
		}
		t.table.set("pointer", nil)
		time.Sleep(time.Second)
		begin(t, t.c).End()
	})
}

// TestSharedRead: those who wait while the pointer is read share what the next read
// finds. What a read finds that has begun before they came, or at that moment, may be of
// before.
func TestSharedRead(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		time.Sleep(11 * time.Second)
		t.table.mu.Lock()
		t.table.onRead = func() { time.Sleep(2 * time.Second) }
		t.table.mu.Unlock()
		before := t.table.count("pointer")
		errs := make(chan error, 10)
		refresh := func() { errs <- t.c.refreshPointer(t.Context(), nil) }
		go refresh()
		synctest.Wait()
		go refresh() // at the moment at which the first read begins
		time.Sleep(time.Second)
		for range 8 {
			go refresh()
		}
		for range 10 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := t.table.count("pointer") - before; n != 2 {
			t.Errorf("%d reads for ten callers, want 2", n)
		}
		t.table.mu.Lock()
		t.table.onRead = nil
		t.table.mu.Unlock()
		before = t.table.count("pointer")
		for range 2 { // at one moment, one behind the other: nothing is known of after
			if err := t.c.refreshPointer(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
		if n := t.table.count("pointer") - before; n != 2 {
			t.Errorf("%d reads for two callers at one moment, want 2", n)
		}
	})
}

// TestRefreshGone: a writer that was refused under a KEK which the client has left
// already reads nothing.
func TestRefreshGone(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		old := t.c.current.Load()
		reads := t.table.count("pointer")
		time.Sleep(time.Millisecond)
		t.table.move(2, kek.Normal)
		if err := t.c.refreshPointer(t.Context(), old); err != nil || t.c.current.Load() == old {
			t.Fatalf("%v, at %s", err, t.c.current.Load().pointer.KEKID)
		}
		after := t.table.count("pointer")
		time.Sleep(time.Millisecond)
		if err := t.c.refreshPointer(t.Context(), old); err != nil || after == reads || t.table.count("pointer") != after {
			t.Errorf("%v after %d reads more", err, t.table.count("pointer")-after)
		}
		if err := t.c.refreshPointer(t.Context(), t.c.current.Load()); err != nil || t.table.count("pointer") != after+1 {
			t.Errorf("of the current KEK: %v after %d reads more", err, t.table.count("pointer")-after)
		}
		ctx, cancel := context.WithCancel(t.Context())
		t.c.reading <- struct{}{}
		cancel()
		if err := t.c.refreshPointer(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("while another reads: %v", err)
		}
		<-t.c.reading
	})
}

// TestPointerKeepsMoving: a pointer that moves at every look ends in an error.
func TestPointerKeepsMoving(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		time.Sleep(time.Second)
		epoch := int64(1)
		t.table.mu.Lock()
		t.table.onRead = func() {
			epoch++
			t.table.move(epoch, kek.Normal)
		}
		t.table.mu.Unlock()
		if err := t.c.refreshPointer(t.Context(), nil); !errors.Is(err, ErrStalePointer) || !strings.Contains(err.Error(), "moved 10 times") || epoch != 11 {
			t.Errorf("%v after %d reads", err, epoch-1)
		}
		t.table.mu.Lock()
		t.table.onRead = nil
		t.table.mu.Unlock()
	})
}

// TestNoLease: the client does not move to a KEK that it has no lease on, or does not
// know, and puts one lease however often it tries.
func TestNoLease(t *testing.T) {
	for _, op := range []string{"kek", "putLease"} {
		newHooked(t, nil, func(t *hooked) {
			t.still()
			t.table.set(op, errHook)
			t.table.move(2, kek.Normal)
			time.Sleep(2 * time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); !errors.Is(err, errHook) || t.c.current.Load().pointer.Epoch != 1 {
				t.Errorf("%s fails: %v, at epoch %d", op, err, t.c.current.Load().pointer.Epoch)
			}
			if len(t.c.leases) != 1 {
				t.Errorf("%s fails: %d holds", op, len(t.c.leases))
			}
			t.table.set(op, nil)
			puts := t.table.count("putLease")
			t.table.mu.Lock()
			t.table.onPut = func() { t.table.fail["pointer"] = errHook } // the lease is put, the look behind it fails
			t.table.mu.Unlock()
			time.Sleep(2 * time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); !errors.Is(err, errHook) || t.c.current.Load().pointer.Epoch != 1 {
				t.Errorf("the pointer fails: %v", err)
			}
			t.table.onPut = nil
			t.table.set("pointer", nil)
			time.Sleep(2 * time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); err != nil || t.c.current.Load().pointer.Epoch != 2 || t.table.count("putLease") != puts+1 {
				t.Errorf("%v, at epoch %d, %d leases put", err, t.c.current.Load().pointer.Epoch, t.table.count("putLease")-puts)
			}
		})
	}
}

// TestEmergencyUnknown: where it cannot be told whether a switch was an emergency, keys
// are dropped; they are not at a look at the pointer that has not moved.
func TestEmergencyUnknown(t *testing.T) {
	for _, fails := range []bool{false, true} {
		newHooked(t, nil, func(t *hooked) {
			t.still()
			r := begin(t, t.c)
			s, err := r.Seal(t.Context(), []byte("x"), nil)
			if err != nil {
				t.Fatal(err)
			}
			open := func() {
				t.Helper()
				if _, err := t.c.Open(t.Context(), s, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			open()
			time.Sleep(time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); err != nil || t.table.count("mode") != 0 {
				t.Fatalf("%v, mode read %d times", err, t.table.count("mode"))
			}
			open()
			if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil || t.keys.made != 1 || t.keys.unwrapped != 1 {
				t.Fatalf("%v, %d keys made, %d unwrapped: a look at the pointer drops keys", err, t.keys.made, t.keys.unwrapped)
			}
			r.End()
			if fails {
				t.table.set("mode", errHook)
			}
			t.table.move(2, kek.Normal)
			time.Sleep(time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			open()
			if (t.keys.unwrapped == 2) != fails {
				t.Errorf("mode fails %t: %d unwrapped", fails, t.keys.unwrapped)
			}
			if len(t.c.leases[0].sealing.keys) > 0 {
				t.Error("keys that seal under the old KEK are kept")
			}
			t.c.renewAll(t.Context())
		})
	}
}

// TestShards: a fence has the shards that the registry says, one where it says none.
func TestShards(t *testing.T) {
	for says, want := range map[int]int{0: 1, 1: 1, 2: 2, 16: 16} {
		newHooked(t, nil, func(t *hooked) {
			t.still()
			t.table.shards = says
			t.table.move(2, kek.Normal)
			time.Sleep(time.Second)
			if err := t.c.refreshPointer(t.Context(), nil); err != nil || t.c.current.Load().shards != want {
				t.Errorf("%d shards: %d, %v", says, t.c.current.Load().shards, err)
			}
			t.c.renewAll(t.Context())
		})
	}
}

// TestRenewal: a lease is written again when it says another number of references, or
// is a third of its life old; what fails is counted and tried again.
func TestRenewal(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		renewals := func() int { return t.table.count("renewLease") }
		tend := func(want int, when string) {
			t.Helper()
			before := renewals()
			t.c.renewAll(t.Context())
			if n := renewals() - before; n != want {
				t.Errorf("%s: %d renewals, want %d", when, n, want)
			}
		}
		tend(0, "at once")
		time.Sleep(20*time.Second - 1)
		tend(0, "just before a third")
		time.Sleep(time.Nanosecond)
		tend(1, "after a third")
		l, _ := t.table.lease("kek-1")
		if left := time.Until(l.Expires); left != time.Minute {
			t.Errorf("it runs out in %s", left)
		}
		tend(0, "just renewed")
		r := begin(t, t.c)
		tend(1, "another reference")
		if l, _ := t.table.lease("kek-1"); l.Refs != 1 || l.Holder != t.c.identity.Holder || l.PID != t.c.identity.PID || l.Host != t.c.identity.Host {
			t.Errorf("%+v", l)
		}
		tend(0, "the same references")
		r.End()
		t.table.set("renewLease", errHook)
		tend(1, "it fails")
		if n := t.c.Stats().PointerErrors; n != 1 {
			t.Errorf("%d errors are counted", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		t.c.renewAll(ctx)
		if n := t.c.Stats().PointerErrors; n != 1 {
			t.Errorf("%d errors are counted when the client stops", n)
		}
		t.table.set("renewLease", nil)
		tend(1, "it is tried again")
		if l, _ := t.table.lease("kek-1"); l.Refs != 0 {
			t.Errorf("%+v", l)
		}
	})
}

// TestRevokedLease: one that is revoked while its KEK is current is taken again, and the
// pointer read; if that fails it is tried again at the next look. One on a superseded
// KEK is not, and not asked for any more while something is in flight.
func TestRevokedLease(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		revoke := func() {
			t.table.mu.Lock()
			clear(t.table.leases)
			t.table.mu.Unlock()
		}
		r := begin(t, t.c)
		revoke()
		t.table.set("putLease", errHook)
		time.Sleep(time.Second)
		t.c.renewAll(t.Context())
		if _, ok := t.table.lease("kek-1"); ok || t.c.Stats().PointerErrors != 1 || t.c.Stats().RevokedLeases != 1 {
			t.Errorf("a lease %v, %+v", ok, t.c.Stats())
		}
		t.table.set("putLease", nil)
		reads := t.table.count("pointer")
		t.c.renewAll(t.Context()) // at once
		if l, ok := t.table.lease("kek-1"); !ok || l.Refs != 1 || t.table.count("pointer") != reads+1 {
			t.Errorf("lease %+v, %v, %d reads of the pointer", l, ok, t.table.count("pointer")-reads)
		}
		t.table.move(2, kek.Normal)
		time.Sleep(time.Minute)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		revoke()
		if err := t.table.fakeControl.PutLease(t.Context(), t.c.leaseItem(t.c.current.Load())); err != nil {
			t.Fatal(err)
		}
		revoked, puts := t.c.Stats().RevokedLeases, t.table.count("putLease")
		t.c.renewAll(t.Context())
		if _, ok := t.table.lease("kek-1"); ok || t.c.Stats().RevokedLeases != revoked+1 || t.table.count("putLease") != puts {
			t.Errorf("a superseded lease is back %v, %+v", ok, t.c.Stats())
		}
		time.Sleep(time.Minute)
		renewals := t.table.count("renewLease")
		t.c.renewAll(t.Context())
		if n := t.table.count("renewLease") - renewals; n != 1 { // of the current one
			t.Errorf("%d renewals", n)
		}
		r.End()
		t.c.renewAll(t.Context())
		if len(t.c.leases) != 1 {
			t.Errorf("%d holds when nothing is in flight", len(t.c.leases))
		}
	})
}

// TestGivenBack: the lease on a superseded KEK is given back when nothing is in flight
// and every mark is left, and kept until both hold.
func TestGivenBack(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		if err := t.c.putMark(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		r := begin(t, t.c)
		t.table.move(2, kek.Normal)
		time.Sleep(time.Second)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		held := func(want bool, when string) {
			t.Helper()
			t.c.renewAll(t.Context())
			if _, ok := t.table.lease("kek-1"); ok != want || len(t.c.leases) == 2 != want {
				t.Errorf("%s: lease %t, %d holds", when, ok, len(t.c.leases))
			}
		}
		t.table.set("putMark", errHook)
		held(true, "in flight, mark not left")
		if n := t.c.Stats().PointerErrors; n != 1 {
			t.Errorf("%d errors are counted", n)
		}
		r.End()
		held(true, "mark not left")
		t.table.set("putMark", nil)
		t.table.set("dropLease", errHook)
		failures := t.c.Stats().PointerErrors
		held(true, "it cannot be given back")
		if n := t.c.Stats().PointerErrors - failures; n != 1 {
			t.Errorf("%d errors are counted of a lease that cannot be given back", n)
		}
		t.table.set("dropLease", nil)
		held(false, "all done")
		t.table.move(3, kek.Normal)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		t.c.renewAll(t.Context()) // leaves the mark and gives the lease back
		if _, ok := t.table.lease("kek-2"); ok {
			t.Error("a lease is kept although every mark was left")
		}
		marks := t.table.count("putMark")
		t.c.renewAll(t.Context())
		time.Sleep(time.Hour - time.Second - 1)
		t.c.renewAll(t.Context())
		if n := t.table.count("putMark") - marks; n != 0 {
			t.Errorf("the mark was left %d times within an hour", n)
		}
		time.Sleep(2 * time.Second)
		t.c.renewAll(t.Context())
		if n := t.table.count("putMark") - marks; n != 1 {
			t.Errorf("the mark was left %d times after an hour", n)
		}
		time.Sleep(2 * time.Hour)
		t.table.set("putMark", errHook)
		failures = t.c.Stats().PointerErrors
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		t.c.renewMarks(ctx)
		if n := t.c.Stats().PointerErrors - failures; n != 0 {
			t.Errorf("%d errors are counted when the client stops", n)
		}
	})
}

// TestRegistryReads: the pointer says enough of its own KEK; of another the registry is
// asked as often as the pointer is read; retired ones are kept too, unknown and pending
// ones are not.
func TestRegistryReads(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		ask := func(id kek.ID, again bool, reads int, when string) {
			t.Helper()
			before := t.table.count("kek")
			k, err := t.c.lookUpKEK(t.Context(), id, again)
			if err != nil || k.ID != id || k.State != kek.Active || t.table.count("kek")-before != reads {
				t.Errorf("%s: %+v, %v, %d reads", when, k, err, t.table.count("kek")-before)
			}
		}
		time.Sleep(time.Hour) // what the registry said is long ago
		ask("kek-1", false, 0, "the pointer's")
		ask("kek-1", true, 1, "the pointer's again")
		ask("kek-7", false, 1, "another")
		time.Sleep(10*time.Second - 1)
		ask("kek-7", false, 0, "another, known")
		ask("kek-7", true, 1, "another, again")
		time.Sleep(10 * time.Second)
		ask("kek-7", false, 1, "another, long known")
		t.table.set("kek", errHook)
		ask("kek-7", true, 1, "another, registry away")
		if k, err := t.c.lookUpKEK(t.Context(), "kek-8", false); !errors.Is(err, errHook) || k.State != "" {
			t.Errorf("%+v, %v", k, err)
		}
	})
	c := &Client{known: map[kek.ID]knownKEK{}}
	for state, kept := range map[kek.State]bool{kek.Active: true, kek.Retired: true, kek.Pending: false, "": false} {
		c.rememberKEK(kek.KEK{ID: kek.ID(state), State: state}, 1)
		if e, ok := c.known[kek.ID(state)]; ok != kept || kept && (e.at != 1 || e.kek.State != state) {
			t.Errorf("state %q: kept %t", state, ok)
		}
	}
}

// refusingKMS fails.
type refusingKMS struct {
	constantKMS
	err error
	dek []byte // nil: a good one
}

func (k *refusingKMS) GenerateDataKey(ctx context.Context, in *kms.GenerateDataKeyInput, o ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	out, _ := k.constantKMS.GenerateDataKey(ctx, in, o...)
	if k.dek != nil {
		out.Plaintext = k.dek
	}
	if k.err != nil {
		return nil, k.err
	}
	return out, nil
}

func (k *refusingKMS) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	out, _ := k.constantKMS.Decrypt(ctx, in, o...)
	if k.dek != nil {
		out.Plaintext = k.dek
	}
	if k.err != nil {
		return nil, k.err
	}
	return out, nil
}

// TestKMSErrors: what KMS refuses means what the docs say, names the operation and the
// KEK, and seals and opens nothing.
func TestKMSErrors(t *testing.T) {
	other := errors.New("other")
	for name, c := range map[string]struct {
		err  error
		want error
		kept bool // the cause is
	}{
		"disabled":  {&types.DisabledException{}, ErrKeyUnusable, true},
		"state":     {&types.KMSInvalidStateException{}, ErrKeyUnusable, true},
		"not found": {&types.NotFoundException{}, ErrKeyUnusable, true},
		"invalid":   {&types.InvalidCiphertextException{}, ErrContextMismatch, false},
		"incorrect": {&types.IncorrectKeyException{}, ErrContextMismatch, false},
		"other":     {other, other, true},
	} {
		err := kmsError("Decrypt", "k", c.err)
		if !errors.Is(err, c.want) || errors.Is(err, c.err) != c.kept || !strings.Contains(err.Error(), "kms Decrypt, KEK k") {
			t.Errorf("%s: %v", name, err)
		}
		for _, v := range []error{ErrKeyUnusable, ErrContextMismatch} {
			if errors.Is(err, v) != (v == c.want) { //nolint:errorlint // both are the verdicts themselves
				t.Errorf("%s: %v", name, err)
			}
		}
		keys := &refusingKMS{err: c.err}
		newHooked(t, func(cfg *Config) { cfg.KMS = keys }, func(t *hooked) {
			r := begin(t, t.c)
			defer r.End()
			s, err := r.Seal(t.Context(), []byte("x"), nil)
			if !errors.Is(err, c.want) || errors.Is(err, errSealKey) != (c.want == ErrKeyUnusable) || s.Ciphertext != nil || !strings.Contains(err.Error(), "GenerateDataKey") { //nolint:errorlint // itself
				t.Errorf("seal, %s: %+v, %v", name, s, err)
			}
			plain, err := t.c.Open(t.Context(), Sealed{KEKID: "kek-1", WrappedDEK: []byte("w"), Ciphertext: t.keys.seal(t)}, nil, nil)
			if !errors.Is(err, c.want) || plain != nil || !strings.Contains(err.Error(), "Decrypt") {
				t.Errorf("open, %s: %q, %v", name, plain, err)
			}
			if n := t.c.Stats().OrphanedKeys; n != 0 {
				t.Errorf("%s: %d orphans", name, n)
			}
		})
	}
	newHooked(t, func(cfg *Config) { cfg.KMS = &refusingKMS{dek: []byte("short")} }, func(t *hooked) {
		r := begin(t, t.c)
		defer r.End()
		if s, err := r.Seal(t.Context(), []byte("x"), nil); err == nil || s.Ciphertext != nil || !strings.Contains(err.Error(), "kms GenerateDataKey, KEK kek-1") {
			t.Errorf("seal under a short key: %+v, %v", s, err)
		}
		if plain, err := t.c.Open(t.Context(), Sealed{KEKID: "kek-1", WrappedDEK: []byte("w"), Ciphertext: t.keys.seal(t)}, nil, nil); err == nil || plain != nil ||
			!strings.Contains(err.Error(), "kms Decrypt, KEK kek-1") {
			t.Errorf("open under a short key: %q, %v", plain, err)
		}
		if _, err := r.Seal(t.Context(), nil, map[string]string{"\xff": "v"}); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
			t.Errorf("a context that is not UTF-8: %v", err)
		}
	})
}

// TestCounts: hits, misses and what is in flight.
func TestCounts(t *testing.T) {
	newHooked(t, func(c *Config) { c.Cache.MaxBytes = 10 }, func(t *hooked) {
		r := begin(t, t.c)
		s, err := r.Seal(t.Context(), []byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		for range 20 { // what is opened does not count against the bytes that may be sealed
			if _, err := t.c.Open(t.Context(), s, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		want := Stats{InFlight: 1, CacheHits: 1 + 19, CacheMisses: 1 + 1}
		if d := cmp.Diff(want, t.c.Stats()); d != "" {
			t.Errorf("counts (-want +got):\n%s", d)
		}
		r.End()
		r.End()
		if n := t.c.Stats().InFlight; n != 0 {
			t.Errorf("%d in flight", n)
		}
	})
}

// TestReferenceAges: a data key is too old as of the moment at which the reference was
// taken that seals with it.
func TestReferenceAges(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		for n, wait := range []time.Duration{0, 5*time.Minute - 1, 1, time.Minute} {
			time.Sleep(wait)
			r := begin(t, t.c)
			time.Sleep(time.Second) // does not count
			if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
			r.End()
			if want := []int{1, 1, 2, 2}[n]; t.keys.made != want {
				t.Errorf("reference %d: %d keys made, want %d", n, t.keys.made, want)
			}
		}
	})
}

// TestClock: the client's clock is the application's, if it has one.
func TestClock(t *testing.T) {
	now := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	c := &Client{cfg: Config{Now: func() time.Time { return now }}, started: now}
	now = now.Add(time.Hour)
	if c.elapsedTime() != time.Hour || !c.cfg.wallClock().Equal(now) {
		t.Errorf("%s, %s", c.elapsedTime(), c.cfg.wallClock())
	}
	if got := (Config{}).wallClock(); time.Since(got) > time.Minute {
		t.Errorf("%s", got)
	}
}

// TestSuspectUnknown: a record whose KEK does not resolve, and of which the registry says
// nothing when it is asked again, is not an orphan.
func TestSuspectUnknown(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.table.unknown = map[kek.ID]bool{"gone": true}
		s := Sealed{KEKID: "gone", WrappedDEK: []byte("w")}
		plain, err := t.c.Open(t.Context(), s, nil, func(context.Context) (Sealed, bool, error) {
			t.table.set("kek", errHook)
			return s, true, nil
		})
		if !errors.Is(err, errHook) || errors.Is(err, ErrOrphanedKey) || plain != nil || t.c.Stats().OrphanedKeys != 0 {
			t.Errorf("%q, %v, %+v", plain, err, t.c.Stats())
		}
	})
}

// TestOpenGivesUp: a record that is another one at every look is contended, in the end.
func TestOpenGivesUp(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.table.unknown = map[kek.ID]bool{}
		reads := 0
		name := func() Sealed {
			id := kek.ID(fmt.Sprintf("other-%d", reads))
			t.table.unknown[id] = true
			return Sealed{KEKID: id, WrappedDEK: []byte("w")}
		}
		_, err := t.c.Open(t.Context(), name(), nil, func(context.Context) (Sealed, bool, error) {
			reads++
			return name(), true, nil
		})
		if !errors.Is(err, ErrContended) || reads != 10 || !strings.Contains(err.Error(), "rewrapped 10 times") {
			t.Errorf("%v after %d reads", err, reads)
		}
	})
}

// TestSameRecord: a record that was read again is the same one if its KEK, as it names
// it, and its wrapped key are.
func TestSameRecord(t *testing.T) {
	r := record{Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, arn: "arn"}
	for name, c := range map[string]struct {
		change func(*record)
		want   bool
	}{
		"itself":         {func(*record) {}, true},
		"its payload":    {func(r *record) { r.Ciphertext = []byte("x") }, true},
		"its epoch":      {func(r *record) { r.Epoch = 9 }, true},
		"its KEK":        {func(r *record) { r.KEKID = "l" }, false},
		"its KEK's ARN":  {func(r *record) { r.arn = "" }, false},
		"its data key":   {func(r *record) { r.WrappedDEK = []byte("v") }, false},
		"its KEK's name": {func(r *record) { r.KEKID, r.arn = "l", "x" }, false},
	} {
		o := r
		c.change(&o)
		if r.sameWrapping(o) != c.want {
			t.Errorf("%s: same %t", name, !c.want)
		}
	}
	if !r.namesKEK(kek.KEK{ARN: "arn"}) || r.namesKEK(kek.KEK{ARN: "other"}) || !(record{}).namesKEK(kek.KEK{ARN: "any"}) {
		t.Error("names")
	}
}

// TestKeyNames: data keys that were unwrapped in another way have other names in the
// cache, however the parts of the names meet.
func TestKeyNames(t *testing.T) {
	seen := map[string]string{}
	ends := map[string]string{"c": string([]byte{aead.Version})} // as the associated data of no context does
	bound := aead.AssociatedData(ends)
	for name, r := range map[string]record{
		"plain":           {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}},
		"Tink's":          {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, tink: &tinkFormat{}},
		"by ARN":          {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, arn: "a"},
		"by another ARN":  {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, arn: "b"},
		"another KEK":     {Sealed: Sealed{KEKID: "l", WrappedDEK: []byte("w")}},
		"a longer KEK":    {Sealed: Sealed{KEKID: "kw", WrappedDEK: []byte("")}},
		"a longer key":    {Sealed: Sealed{KEKID: "", WrappedDEK: []byte("kw")}},
		"ARN in the key":  {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("aw")}},
		"another key":     {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("v")}},
		"a context":       {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, encctx: map[string]string{"c": "1"}},
		"another context": {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, encctx: map[string]string{"c": "2"}},
		"context at end":  {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("w")}, encctx: ends},
		"it in the key":   {Sealed: Sealed{KEKID: "k", WrappedDEK: append([]byte("w"), bound[:len(bound)-1]...)}},
		"an id and a key": {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("\x00\x01v")}},
		"it as an id":     {Sealed: Sealed{KEKID: "k\x00\x03", WrappedDEK: []byte("v")}},
		"by a short ARN":  {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte(strings.Repeat("w", 96))}, arn: "a"},
		"it as a length":  {Sealed: Sealed{KEKID: "k", WrappedDEK: []byte("\x60" + strings.Repeat("w", 96))}}, // 'a' is 97
	} {
		got := string(r.appendCacheName(nil))
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the name of %s", name, other)
		}
		seen[got] = name
		if string(r.appendCacheName([]byte("x"))) != "x"+got {
			t.Errorf("%s: it does not append", name)
		}
	}
}

// consistent says what is wrong with a cache's books.
func (c *cache) consistent() string {
	if c.order.Len() != len(c.keys) {
		return fmt.Sprintf("%d keys, %d in order", len(c.keys), c.order.Len())
	}
	for e := c.order.Front(); e != nil; e = e.Next() {
		if k := e.Value.(*cacheEntry); c.keys[k.name] != e {
			return k.name + " is not where its name says"
		}
	}
	return ""
}

// TestCacheForgets: a key that may be used no more is not held any longer, and the
// cache's books agree.
func TestCacheForgets(t *testing.T) {
	key := func(born time.Duration) *dataKey { return &dataKey{born: born} }
	held := func(c *cache, want ...string) {
		t.Helper()
		if what := c.consistent(); what != "" {
			t.Error(what)
		}
		for _, name := range want {
			if c.keys[name] == nil {
				t.Errorf("%s is gone", name)
			}
		}
		if len(c.keys) != len(want) {
			t.Errorf("%d keys are held, want %q", len(c.keys), want)
		}
	}
	limits := Cache{MaxAge: time.Minute, MaxUses: 2, MaxBytes: 100, MaxKeys: 3}
	c := newCache(limits)
	for i, name := range []string{"a", "b", "c", "d"} {
		c.putKey(name, key(time.Duration(i)*time.Second), usage{})
	}
	held(c, "b", "c", "d")
	other := key(4 * time.Second)
	c.putKey("b", other, usage{1, 99})
	held(c, "b", "c", "d")
	if c.takeKey([]byte("b"), 2, 5*time.Second) != nil {
		t.Error("it seals more bytes than it may")
	}
	held(c, "c", "d")
	c.putKey("b", other, usage{1, 99})
	if c.takeKey([]byte("b"), 1, 5*time.Second) != other || c.takeKey([]byte("b"), 0, 5*time.Second) != nil {
		t.Error("it is not used twice")
	}
	held(c, "c", "d")
	c.putKey("young", key(time.Hour), usage{})
	c.dropExpired(time.Minute + 2*time.Second - 1)
	held(c, "c", "d", "young")
	c.dropExpired(time.Minute + 3*time.Second)
	held(c, "young")
	c.putKey("old", key(0), usage{})
	c.dropExpired(time.Hour)
	held(c, "young")
	c.calls["x"] = &keyCall{}
	c.dropAll(false)
	held(c)
	if len(c.calls) > 0 {
		t.Error("a call is still that of its name")
	}
	c.putKey("a", key(0), usage{})
	held(c, "a")
	c.dropAll(true)
	c.dropAll(false)
	c.putKey("a", key(0), usage{})
	held(c)
}

// TestCacheAsks: a call that fails is not kept; it has ten seconds; who looks a moment
// after it has ended has its key.
func TestCacheAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(Cache{MaxBytes: 10}.withDefaults())
		asked := 0
		ask := func(err error) func(context.Context) (*dataKey, error) {
			return func(ctx context.Context) (*dataKey, error) {
				asked++
				if end, ok := ctx.Deadline(); !ok || time.Until(end) != 10*time.Second {
					t.Errorf("it has until %v, %v", end, ok)
				}
				return &dataKey{}, err
			}
		}
		if _, err := c.obtainKey(t.Context(), "a", 1, 0, ask(errHook)); !errors.Is(err, errHook) || len(c.keys)+len(c.calls) > 0 {
			t.Errorf("%v, %d keys", err, len(c.keys))
		}
		for range 2 {
			if k, err := c.obtainKey(t.Context(), "a", 5, 0, ask(nil)); err != nil || k == nil || asked != 2 {
				t.Errorf("%v, %v, asked %d times", k, err, asked)
			}
		}
		if k, err := c.obtainKey(t.Context(), "a", 1, 0, ask(nil)); err != nil || k == nil || asked != 3 {
			t.Errorf("%v, %v, asked %d times: it sealed more bytes than it may", k, err, asked)
		}
		if k, err := c.obtainKey(t.Context(), "a", 1, 5*time.Minute, ask(nil)); err != nil || k == nil || asked != 4 {
			t.Errorf("%v, %v, asked %d times: the key is too old", k, err, asked)
		}
	})
}

// TestExpandTink: a data key of Tink's is an AES-GCM key, with nothing that is not
// understood.
func TestExpandTink(t *testing.T) {
	marshal := func(k *aesgcm.AesGcmKey, more ...byte) []byte {
		b, err := proto.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return append(b, more...)
	}
	key := make([]byte, 32)
	for name, c := range map[string]struct {
		dek []byte
		ok  bool
	}{
		"AES-256":          {marshal(&aesgcm.AesGcmKey{KeyValue: key}), true},
		"AES-128":          {marshal(&aesgcm.AesGcmKey{KeyValue: key[:16]}), true},
		"a later version":  {marshal(&aesgcm.AesGcmKey{Version: 1, KeyValue: key}), false},
		"an unknown field": {marshal(&aesgcm.AesGcmKey{KeyValue: key}, 0x22, 1, 'x'), false},
		"another length":   {marshal(&aesgcm.AesGcmKey{KeyValue: key[:31]}), false},
		"no key":           {nil, false},
		"no message":       {[]byte{0xff}, false},
		"half a message":   {marshal(&aesgcm.AesGcmKey{KeyValue: key}, 0x22), false},
	} {
		a, err := expandTink(c.dek)
		if c.ok != (err == nil) || c.ok != (a != nil) || !c.ok && !errors.Is(err, errTinkDEK) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	r := record{tink: &tinkFormat{}}
	if _, err := r.expandKey([]byte{0xff}); !errors.Is(err, errTinkDEK) {
		t.Errorf("expand: %v", err)
	}
}

// TestBeginBesideASwitch: a reference that is taken while the client moves to another KEK is
// not on one whose lease was given back because there was none, and leaves none on a KEK
// that it is not on: that lease could never be given back.
func TestBeginBesideASwitch(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		current := t.c.current.Load()
		holds := make([]heldLease, 100_000)
		idle := make([]atomic.Bool, len(holds)) // found without a reference when it was left
		for n := range holds {
			holds[n].pointer.Epoch = int64(n)
		}
		t.c.current.Store(&holds[0])
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8)) // more than there are: each may stop between any two steps
		var moved, late atomic.Bool
		var all sync.WaitGroup
		all.Go(func() {
			for n := range holds[1:] {
				t.c.current.Store(&holds[n+1])
				idle[n].Store(holds[n].refs.Load() == 0)
				for spin := 0; spin < 1000 && !moved.Load(); spin++ { // a microsecond: so long that threads are stopped meanwhile
				}
			}
			moved.Store(true)
		})
		for range 3 {
			all.Go(func() {
				for !moved.Load() {
					if r, err := t.c.Begin(t.Context()); err == nil {
						if idle[r.Epoch()].Load() {
							late.Store(true)
						}
						r.End()
					}
				}
			})
		}
		all.Wait()
		t.c.current.Store(current)
		if late.Load() {
			t.Error("a reference is on a KEK whose lease may be gone")
		}
		for n := range holds {
			if refs := holds[n].refs.Load(); refs != 0 {
				t.Fatalf("%d references are left on KEK %d", refs, n)
			}
		}
	})
}

// TestKeeperWaits: the pointer is read after half its age, and up to a quarter more, so
// that processes do not move in step.
func TestKeeperWaits(t *testing.T) {
	for name, c := range map[string]struct {
		random func(n int64) int64
		wait   time.Duration
	}{
		"least":   {func(int64) int64 { return 0 }, 5 * time.Second},
		"between": {func(n int64) int64 { return n / 2 }, 6250 * time.Millisecond},
		"most":    {func(n int64) int64 { return n - 1 }, 7500 * time.Millisecond},
	} {
		newHooked(t, func(cfg *Config) { cfg.Random = c.random }, func(t *hooked) {
			before := t.table.count("pointer")
			for round := range 3 {
				time.Sleep(c.wait - 1)
				early := t.table.count("pointer") - before
				time.Sleep(time.Nanosecond)
				if n := t.table.count("pointer") - before; early != round || n != round+1 {
					t.Errorf("%s, round %d: %d reads before its time, %d then", name, round, early, n)
				}
			}
		})
	}
}

// TestOldKeysAreNotKept: what a request in flight still seals under a KEK that the client
// has left is under a data key of its own, which nobody keeps.
func TestOldKeysAreNotKept(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		r := begin(t, t.c)
		t.table.move(2, kek.Normal)
		time.Sleep(time.Second)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for n := range 2 {
			if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil || t.keys.made != n+1 || len(r.h.sealing.keys) != 0 {
				t.Errorf("%v, %d data keys made, %d kept", err, t.keys.made, len(r.h.sealing.keys))
			}
		}
		r.End()
		t.c.renewAll(t.Context())
	})
}

// TestEveryMark: each table's mark is left again, and one that cannot be keeps none of the
// others.
func TestEveryMark(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		tables := []string{"orders", "people", "sessions"}
		for _, table := range tables {
			if err := t.c.putMark(t.Context(), table); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(markAge - 1)
		if !t.c.renewMarks(t.Context()) || t.table.count("putMark") != len(tables) {
			t.Error("a mark is left again before its time")
		}
		time.Sleep(time.Nanosecond)
		if !t.c.renewMarks(t.Context()) {
			t.Error("a mark is missing")
		}
		for _, table := range tables {
			if n := len(t.table.marks[table]); n != 2 {
				t.Errorf("the mark of %s was left %d times", table, n)
			}
		}
		time.Sleep(2 * time.Hour)
		t.table.set("putMark", errHook)
		before := t.table.count("putMark")
		if t.c.renewMarks(t.Context()) || t.table.count("putMark")-before != len(tables) {
			t.Errorf("%d marks were tried", t.table.count("putMark")-before)
		}
	})
}

// TestEveryFaultOfABound: each value that cannot be bound is named.
func TestEveryFaultOfABound(t *testing.T) {
	err := checkBoundValues("bind", map[string]string{"a": "", "b": "x\xff", "c": "$dek", "d": "$", "e": "$tenant", "f": "x", "aws:g": "x", "": "x"}, map[string]string{"dek": "dek"})
	for _, want := range []string{
		`bind: "a": "": KMS takes`, `bind: "b": "x\xff" is not UTF-8`, `bind: key "c": attribute "dek" cannot`, `bind: key "d": attribute "" cannot`,
		`bind: "aws:g": "x": KMS takes`, `bind: "": "x": KMS takes`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if n := strings.Count(err.Error(), "bind: "); n != 6 {
		t.Errorf("%d faults: %v", n, err)
	}
}

// TestKeeperCounts: each look at the pointer that fails is one error.
func TestKeeperCounts(t *testing.T) {
	newHooked(t, func(c *Config) { c.Random = func(int64) int64 { return 0 } }, func(t *hooked) {
		t.table.set("pointer", errHook)
		reads := t.table.count("pointer")
		for n := range int64(4) {
			if got := t.c.Stats().PointerErrors; got != n || t.table.count("pointer") != reads+int(n) {
				t.Errorf("%d errors after %d reads", got, n)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
		}
	})
}

// TestRegistryUnread: that a record's KEK is unknown because the registry cannot be read is
// no reason to read the record again; that it cannot be read again is told with the reason.
func TestRegistryUnread(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		reads := 0
		reread := func(context.Context) (Sealed, bool, error) { reads++; return Sealed{}, false, errHook }
		gone := Sealed{KEKID: "gone", WrappedDEK: []byte("w")}
		t.table.set("kek", errHook)
		if _, err := t.c.Open(t.Context(), gone, nil, reread); !errors.Is(err, errHook) || reads != 0 {
			t.Errorf("%v after %d reads", err, reads)
		}
		t.table.set("kek", nil)
		t.table.unknown = map[kek.ID]bool{"gone": true}
		if _, err := t.c.Open(t.Context(), gone, nil, reread); !errors.Is(err, errHook) || !errors.Is(err, errSuspect) || reads != 1 {
			t.Errorf("%v after %d reads", err, reads)
		}
	})
}

// TestKeysOfTheEnvelope: no part of the table's key is an attribute of the envelope.
func TestKeysOfTheEnvelope(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		for keys, want := range map[string]string{"id sk": "", "data sk": "data", "id data": "data", "id version": "version"} {
			cfg := TableConfig{Table: "orders", KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Version: "version", Keys: strings.Fields(keys)}
			if _, err := t.c.Table(t.Context(), cfg); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), `attribute "`+want+`" is part of the key`) {
				t.Errorf("%s: %v", keys, err)
			}
		}
	})
}

// TestWriteOfAClosedClient: it is not tried.
func TestWriteOfAClosedClient(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		if err := t.c.Close(); err != nil {
			t.Fatal(err)
		}
		tries := 0
		err := t.c.retryWrite(t.Context(), func(*heldLease, time.Duration) (refusal, error) { tries++; return refusal{}, nil })
		if !errors.Is(err, ErrClosed) || tries != 0 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}

// TestLeaseWithoutAPointer: a lease that was revoked is taken again; that the pointer cannot
// be read then is counted.
func TestLeaseWithoutAPointer(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		defer begin(t, t.c).End()
		t.table.mu.Lock()
		clear(t.table.leases)
		t.table.mu.Unlock()
		t.table.set("pointer", errHook)
		time.Sleep(time.Second)
		t.c.renewAll(t.Context())
		if _, ok := t.table.lease("kek-1"); !ok || t.c.Stats().PointerErrors != 1 || t.c.Stats().RevokedLeases != 1 {
			t.Errorf("a lease %t, %+v", ok, t.c.Stats())
		}
	})
}

// TestTwoKEKs: what is in flight is counted under every KEK, and a lease that was put a
// moment ago is not written again.
func TestTwoKEKs(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		time.Sleep(time.Hour)
		old := begin(t, t.c)
		t.table.move(2, kek.Normal)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		t.c.renewAll(t.Context())
		if n := t.table.count("renewLease"); n != 1 {
			t.Errorf("%d renewals, want that of the old KEK", n)
		}
		current := begin(t, t.c)
		if n := t.c.Stats().InFlight; n != 2 {
			t.Errorf("%d in flight, want one under each KEK", n)
		}
		old.End()
		current.End()
		t.c.renewAll(t.Context())
	})
}

// TestSlowFailure: a read of the pointer that takes long and fails says as much of the
// table as one that fails at once; one that outlives its timeout twice says nothing.
func TestSlowFailure(t *testing.T) {
	for took, again := range map[time.Duration]bool{time.Second: false, 20*time.Second - 1: false, 20 * time.Second: true} {
		newHooked(t, nil, func(t *hooked) {
			t.still()
			time.Sleep(11 * time.Second)
			t.table.mu.Lock()
			t.table.onRead = func() {
				time.Sleep(took)
				t.table.mu.Lock()
				defer t.table.mu.Unlock()
				t.table.down, t.table.onRead = true, nil
			}
			t.table.mu.Unlock()
			if err := t.c.refreshPointer(t.Context(), nil); !errors.Is(err, errDown) {
				t.Errorf("%s: %v", took, err)
			}
			time.Sleep(time.Millisecond)
			if err := t.c.refreshPointer(t.Context(), nil); errors.Is(err, errBackoff) == again {
				t.Errorf("%s, asked again: %v", took, err)
			}
			t.table.mu.Lock()
			t.table.down = false
			t.table.mu.Unlock()
		})
	}
}

// askedKMS keeps what it is asked.
type askedKMS struct {
	constantKMS
	made   *kms.GenerateDataKeyInput
	opened *kms.DecryptInput
}

func (k *askedKMS) GenerateDataKey(ctx context.Context, in *kms.GenerateDataKeyInput, o ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	k.made = in
	return k.constantKMS.GenerateDataKey(ctx, in, o...)
}

func (k *askedKMS) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.opened = in
	return k.constantKMS.Decrypt(ctx, in, o...)
}

// TestKMSRequests: a data key has 256 bits, and is made and unwrapped under the KEK and the
// context that the caller names. KMS takes no request without a size of the key (API
// reference, GenerateDataKey).
func TestKMSRequests(t *testing.T) {
	k := &askedKMS{}
	newHooked(t, func(c *Config) { c.KMS = k }, func(t *hooked) {
		r := begin(t, t.c)
		defer r.End()
		encctx := map[string]string{"tenant": "a"}
		s, err := r.Seal(t.Context(), []byte("x"), encctx)
		if err != nil {
			t.Fatal(err)
		}
		if k.made.KeySpec != types.DataKeySpecAes256 || k.made.NumberOfBytes != nil || *k.made.KeyId != "kek-1" || !cmp.Equal(k.made.EncryptionContext, encctx) {
			t.Errorf("%+v", k.made)
		}
		if _, err := t.c.Open(t.Context(), s, encctx, nil); err != nil {
			t.Fatal(err)
		}
		if *k.opened.KeyId != "kek-1" || string(k.opened.CiphertextBlob) != "wrapped" || !cmp.Equal(k.opened.EncryptionContext, encctx) {
			t.Errorf("%+v", k.opened)
		}
	})
}

// TestKeyByARN: KMS is told the KEK of the pointer by the ARN that the pointer has.
func TestKeyByARN(t *testing.T) {
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/kek-2"
	k := &askedKMS{}
	newHooked(t, func(c *Config) { c.KMS = k }, func(t *hooked) {
		t.still()
		t.table.move(2, kek.Normal)
		t.table.at.KeyARN = arn
		time.Sleep(time.Second)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		r := begin(t, t.c)
		defer r.End()
		s, err := r.Seal(t.Context(), []byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := t.c.Open(t.Context(), s, nil, nil); err != nil || *k.made.KeyId != arn || *k.opened.KeyId != arn {
			t.Errorf("%v, %s, %s", err, *k.made.KeyId, *k.opened.KeyId)
		}
		r.End()
		t.c.renewAll(t.Context())
	})
}

// TestHeldAlready: a KEK that the client holds has one lease, whatever an earlier try of it
// came to.
func TestHeldAlready(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		puts := t.table.count("putLease")
		current := t.c.current.Load()
		if h, err := t.c.acquireLease(t.Context(), current.pointer); err != nil || h != current || t.table.count("putLease") != puts {
			t.Errorf("%v, another hold %t, %d leases more", err, h != current, t.table.count("putLease")-puts)
		}
	})
}

// TestInFlightIsRenewed: while something is in flight under a KEK that the client has left,
// its lease is renewed, also while a mark cannot be left.
func TestInFlightIsRenewed(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		if err := t.c.putMark(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		r := begin(t, t.c)
		t.table.move(2, kek.Normal)
		time.Sleep(time.Second)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		t.table.set("putMark", errHook)
		time.Sleep(20 * time.Second)
		t.c.renewAll(t.Context())
		if l, ok := t.table.lease("kek-1"); !ok || l.Refs != 1 || time.Until(l.Expires) != time.Minute {
			t.Errorf("%t, %+v", ok, l)
		}
		if l, ok := t.table.lease("kek-2"); !ok || l.Refs != 0 || time.Until(l.Expires) != time.Minute {
			t.Errorf("the current KEK's: %t, %+v", ok, l)
		}
		r.End()
	})
}

// TestEveryText: each key and value of a context is UTF-8.
func TestEveryText(t *testing.T) {
	for _, bad := range []string{"", "key", "value"} {
		encctx := map[string]string{}
		for n := range 20 {
			encctx[fmt.Sprint(n)] = "x"
		}
		switch bad {
		case "key":
			encctx["\xff"] = "x"
		case "value":
			encctx["x"] = "\xff"
		}
		for range 5 { // in any order
			if err := checkContextText(encctx); (err == nil) != (bad == "") {
				t.Errorf("%s: %v", bad, err)
			}
		}
	}
}

// slowOpening answers after a second.
type slowOpening struct{ constantKMS }

func (k *slowOpening) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	time.Sleep(time.Second)
	return k.constantKMS.Decrypt(ctx, in, o...)
}

// TestOpeningIsNoUse: those who open under one data key at once share one call, however few
// bytes may be sealed under a key: what is opened is not counted.
func TestOpeningIsNoUse(t *testing.T) {
	k := &slowOpening{}
	newHooked(t, func(c *Config) { c.KMS, c.Cache.MaxBytes = k, 1 }, func(t *hooked) {
		s := Sealed{KEKID: "kek-1", WrappedDEK: []byte("w"), Ciphertext: k.seal(t)}
		errs := make(chan error)
		for range 5 {
			go func() {
				_, err := t.c.Open(t.Context(), s, nil, nil)
				errs <- err
			}()
		}
		for range 5 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if k.unwrapped != 1 {
			t.Errorf("%d calls of Decrypt", k.unwrapped)
		}
	})
}

// TestNoKeysAfterClose: a client that is closed keeps no data key any more, not even one
// that a reference seals with which should have ended.
func TestNoKeysAfterClose(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		r := begin(t, t.c)
		if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil || len(r.h.sealing.keys) != 1 {
			t.Fatal(err)
		}
		if err := t.c.Close(); err != nil || len(r.h.sealing.keys) != 0 {
			t.Fatalf("%v, %d keys", err, len(r.h.sealing.keys))
		}
		if _, err := r.Seal(t.Context(), []byte("x"), nil); err != nil || len(r.h.sealing.keys) != 0 || t.keys.made != 2 {
			t.Errorf("%v, %d keys are kept, %d made", err, len(r.h.sealing.keys), t.keys.made)
		}
	})
}

// TestEveryKey: each attribute of a key is one that DynamoDB stores as it is.
func TestEveryKey(t *testing.T) {
	for _, bad := range []bool{false, true} {
		k := Item{}
		for n := range 20 {
			k[fmt.Sprint(n)] = attr.Str("x")
		}
		if bad {
			k["bad"] = attr.Str("\xff")
		}
		for range 5 { // in any order
			if err := checkKey(k); (err != nil) != bad || bad && !errors.Is(err, ErrInvalidItem) {
				t.Errorf("bad %t: %v", bad, err)
			}
		}
	}
}

// TestLongestLease: a lease lives for as long as a rotation waits for it, and no longer.
func TestLongestLease(t *testing.T) {
	for ttl, ok := range map[time.Duration]bool{kek.MaxLease: true, kek.MaxLease + 1: false} {
		c, err := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: &constantKMS{}, LeaseTTL: ttl}.withDefaults()
		if (err == nil) != ok || c.LeaseTTL != ttl || !ok && !strings.Contains(err.Error(), "LeaseTTL must be at most "+kek.MaxLease.String()) {
			t.Errorf("%s: %v", ttl, err)
		}
	}
}

// TestUnusableIsNoOrphan: that KMS refuses a KEK which resolves makes no orphan of a record.
func TestUnusableIsNoOrphan(t *testing.T) {
	newHooked(t, func(c *Config) { c.KMS = &refusingKMS{err: &types.DisabledException{}} }, func(t *hooked) {
		_, err := t.c.Open(t.Context(), Sealed{KEKID: "kek-1", WrappedDEK: []byte("w")}, nil, nil)
		if !errors.Is(err, ErrKeyUnusable) || errors.Is(err, ErrOrphanedKey) || t.c.Stats().OrphanedKeys != 0 {
			t.Errorf("%v, %+v", err, t.c.Stats())
		}
	})
}

// badMark cannot leave the mark of one table.
type badMark struct{ *hookedControl }

func (b badMark) PutMark(ctx context.Context, m kek.Mark) error {
	if m.Table == "people" {
		return errHook
	}
	return b.hookedControl.PutMark(ctx, m)
}

// TestOneMarkMissing: one mark that cannot be left is enough, whichever comes last.
func TestOneMarkMissing(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		for _, table := range []string{"orders", "people", "sessions"} {
			if err := t.c.putMark(t.Context(), table); err != nil {
				t.Fatal(err)
			}
		}
		t.c.control = badMark{t.table}
		for range 20 { // in any order
			time.Sleep(markAge)
			if t.c.renewMarks(t.Context()) {
				t.Fatal("every mark is said to be left")
			}
		}
		t.c.control = t.table
	})
}

// TestObtainLooksAgain: a key that came after the caller has looked is not made again.
func TestObtainLooksAgain(t *testing.T) {
	c := newCache(Cache{}.withDefaults())
	key := &dataKey{}
	c.putKey("a", key, usage{})
	got, err := c.obtainKey(t.Context(), "a", 0, 0, func(context.Context) (*dataKey, error) {
		t.Error("it is made again")
		return nil, errHook
	})
	if err != nil || got != key || len(c.calls) != 0 {
		t.Errorf("%v, %v, %d calls", got, err, len(c.calls))
	}
}

// TestClosedWhileReading: that the background read ends with the client is not an error.
func TestClosedWhileReading(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.table.mu.Lock()
		t.table.onRead = func() { time.Sleep(time.Second) }
		t.table.mu.Unlock()
		reads := t.table.count("pointer")
		for t.table.count("pointer") == reads {
			time.Sleep(time.Millisecond)
		}
		if err := t.c.Close(); err != nil || t.c.Stats().PointerErrors != 0 {
			t.Errorf("%v, %+v", err, t.c.Stats())
		}
	})
}

// TestLastReferenceWakes: the background work is woken when the last reference to a KEK of before is
// gone, not sooner, and not for the current one.
func TestLastReferenceWakes(t *testing.T) {
	newHooked(t, nil, func(t *hooked) {
		t.still()
		select {
		case <-t.c.wake: // for the first KEK
		default:
		}
		begin(t, t.c).End()
		if len(t.c.wake) != 0 {
			t.Error("woken for the current KEK")
		}
		first, second := begin(t, t.c), begin(t, t.c)
		t.table.move(2, kek.Normal)
		time.Sleep(time.Second)
		if err := t.c.refreshPointer(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		<-t.c.wake // for the switch itself
		first.End()
		if len(t.c.wake) != 0 {
			t.Error("woken while something is in flight")
		}
		second.End()
		if len(t.c.wake) != 1 {
			t.Error("not woken")
		}
		t.c.renewAll(t.Context())
	})
}
