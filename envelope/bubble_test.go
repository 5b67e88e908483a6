package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// fakeControl is a control table in memory, so that tests of time run in a bubble.
type fakeControl struct {
	mu       sync.Mutex
	at       kek.Pointer
	modes    map[string]kek.Mode
	leases   map[kek.ID]controltable.Lease
	marks    map[string][]time.Time
	unknown  map[kek.ID]bool // KEKs that are not in the registry
	down     bool
	pointers int // reads
	renewals int
	onRead   func()       // before the pointer is read
	onPut    func()       // before a lease is put
	onDrop   func(kek.ID) // before a lease is given back
}

// newFakeControl points at kek-1.
func newFakeControl() *fakeControl {
	f := &fakeControl{modes: map[string]kek.Mode{}, leases: map[kek.ID]controltable.Lease{}, marks: map[string][]time.Time{}}
	f.move(1, "")
	return f
}

var errDown = errors.New("down")

func (f *fakeControl) ReadPointer(ctx context.Context) (kek.Pointer, error) {
	f.mu.Lock()
	before := f.onRead
	f.mu.Unlock()
	if before != nil {
		before()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pointers++
	if f.down {
		return kek.Pointer{}, errDown
	}
	return f.at, ctx.Err()
}

func (f *fakeControl) ReadKEK(_ context.Context, id kek.ID) (kek.KEK, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return kek.KEK{}, errDown
	}
	if f.unknown[id] {
		return kek.KEK{ID: id}, nil
	}
	return kek.KEK{ID: id, State: kek.Active, FenceShards: 1}, nil
}

func (f *fakeControl) ReadMode(_ context.Context, rotation string) (kek.Mode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.modes[rotation], nil
}

func (f *fakeControl) PutLease(_ context.Context, l controltable.Lease) error {
	if f.onPut != nil {
		f.onPut()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases[l.KEK] = l
	return nil
}

func (f *fakeControl) RenewLease(_ context.Context, l controltable.Lease) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return false, errDown
	}
	f.renewals++
	if _, ok := f.leases[l.KEK]; !ok {
		return false, nil
	}
	f.leases[l.KEK] = l
	return true, nil
}

func (f *fakeControl) DropLease(_ context.Context, l controltable.Lease) error {
	f.mu.Lock()
	before := f.onDrop
	f.mu.Unlock()
	if before != nil {
		before(l.KEK)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.leases, l.KEK)
	return nil
}

func (f *fakeControl) PutMark(_ context.Context, m kek.Mark) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	f.marks[m.Table] = append(f.marks[m.Table], m.SeenAt)
	return nil
}

// move switches the pointer to the KEK of that epoch.
func (f *fakeControl) move(epoch int64, mode kek.Mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rotation := fmt.Sprintf("r%d", epoch)
	f.modes[rotation] = mode
	f.at = kek.Pointer{KEKID: kekOf(epoch), Epoch: epoch, RotationID: rotation}
}

// reads is how often the pointer was read, once everybody rests.
func (f *fakeControl) reads() int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pointers
}

func kekOf(epoch int64) kek.ID { return kek.ID(fmt.Sprintf("kek-%d", epoch)) }

func (f *fakeControl) lease(id kek.ID) (controltable.Lease, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.leases[id]
	return l, ok
}

// constantKMS gives every caller the same key: these tests are not about keys.
type constantKMS struct {
	made, unwrapped int
	given           [][]byte
}

func (k *constantKMS) give() []byte {
	dek := bytes.Repeat([]byte{7}, 32)
	k.given = append(k.given, dek)
	return dek
}

// seal makes a payload under that key, without a context.
func (k *constantKMS) seal(tb testing.TB) []byte {
	tb.Helper()
	payload, err := aead.Cipher{}.Seal(bytes.Repeat([]byte{7}, 32), []byte("x"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return payload
}

func (k *constantKMS) GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	k.made++
	return &kms.GenerateDataKeyOutput{Plaintext: k.give(), CiphertextBlob: []byte("wrapped")}, nil
}

func (k *constantKMS) Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.unwrapped++
	return &kms.DecryptOutput{Plaintext: k.give()}, nil
}

// bubbled is a test in fake time.
type bubbled struct {
	*testing.T
	c     *Client
	table *fakeControl
	keys  *constantKMS
}

// bubble runs f with a client of a fake control table, in fake time.
func bubble(t *testing.T, f func(*bubbled)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		table := newFakeControl()
		keys := &constantKMS{}
		cfg, err := Config{ControlTable: "x", DynamoDB: noDynamoDB{}, KMS: keys}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		c, err := newClient(t.Context(), cfg, table)
		if err != nil {
			t.Fatal(err)
		}
		f(&bubbled{t, c, table, keys})
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if len(table.leases) > 0 {
			t.Errorf("leases after Close: %v", table.leases)
		}
	})
}

type noDynamoDB struct{ DynamoDB }

func begin(tb testing.TB, c *Client) *Ref {
	tb.Helper()
	r, err := c.Begin(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return r
}
