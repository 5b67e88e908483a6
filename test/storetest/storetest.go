// Package storetest is the conformance suite of the stores that rotations keep
// their state in. Every adapter runs it, so that what fault schedules show of the
// in-memory store is true of the real one.
//
// What the suites hold an adapter to: a change is written whole or not at all,
// with its audit record (AuditLinear, AuditOnceInOrder); every condition of a
// change is honoured; of racing writers exactly one wins; a fence that is sealed
// stays sealed; a scan sees every row once; a row that is gone stays gone.
package storetest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// racers is how many goroutines race in the concurrency tests.
const racers = 8

// Ledger is what an adapter's control table offers beyond [journal.Registry] and
// [journal.Outbox].
type Ledger interface {
	Record(ctx context.Context, ev audit.Event) error
	AuditEntries(ctx context.Context, fromSeq int64) ([]audit.Entry, error)
	KEKs(ctx context.Context) ([]kek.KEK, error)
	Rotations(ctx context.Context) ([]kek.Rotation, error)
}

// ControlTable is the whole control table of an adapter.
type ControlTable interface {
	journal.Registry
	journal.Outbox
	rotation.Drainage
	rotation.Checkpoints
	rotation.Archive
	Ledger
}

// DataPlane is the control table as processes of the data plane use it.
type DataPlane interface {
	PutLease(ctx context.Context, l rotation.Lease) error
	RenewLease(ctx context.Context, l rotation.Lease) (bool, error)
	DropLease(ctx context.Context, l rotation.Lease) error
	Pointer(ctx context.Context) (kek.Pointer, error)
	KEKState(ctx context.Context, id kek.ID) (kek.State, error)
}

// RegistryHarness is a fresh, empty control table.
type RegistryHarness struct {
	Store ControlTable
	Data  DataPlane
	Chain string // the name of its audit chain
	// Fences returns the states of the shards of a KEK's fence, "open" or "sealed": of its
	// fence of records, or of that of rows.
	Fences func(t *testing.T, id kek.ID, records bool) map[int]string
	// Mark leaves a writer's mark, as the data plane does.
	Mark func(t *testing.T, m kek.Mark)
}

// Clock returns a clock that starts at a fixed moment and gains a second with
// every reading. It is safe for concurrent use.
func Clock() func() time.Time {
	var mu sync.Mutex
	at := time.Date(2026, 4, 1, 2, 0, 0, 123e6, time.UTC)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		at = at.Add(time.Second)
		return at
	}
}

// fixture drives one control table through a rotation.
type fixture struct {
	RegistryHarness
	now func() time.Time
	id  string // the rotation
}

func newFixture(h RegistryHarness) *fixture {
	return &fixture{RegistryHarness: h, now: Clock(), id: "Q2-2026-rotation"}
}

const shards = 4 // fence shards per KEK

// fence is what all shards of a KEK look like.
func fence(state string) map[int]string {
	return map[int]string{0: state, 1: state, 2: state, 3: state}
}

// dump is everything that can be read of a control table.
type dump struct {
	View      kek.View // of Load
	All       kek.View // of LoadAll
	KEKs      []kek.KEK
	Rotations []kek.Rotation
	Entries   []audit.Entry
	Pending   []audit.Entry
	Head      audit.Head
	Fences    map[kek.ID]map[int]string // of rows
	KeyFences map[kek.ID]map[int]string // of records
}

func (f *fixture) dump(t *testing.T) dump {
	t.Helper()
	ctx := t.Context()
	var d dump
	var err error
	if d.View, err = f.Store.Load(ctx, f.id); err != nil {
		t.Fatal(err)
	}
	if d.All, err = f.Store.LoadAll(ctx, f.id); err != nil {
		t.Fatal(err)
	}
	if d.KEKs, err = f.Store.KEKs(ctx); err != nil {
		t.Fatal(err)
	}
	if d.Rotations, err = f.Store.Rotations(ctx); err != nil {
		t.Fatal(err)
	}
	if d.Entries, err = f.Store.AuditEntries(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if d.Pending, _, err = f.Store.Unpublished(ctx); err != nil {
		t.Fatal(err)
	}
	if _, d.Head, err = f.Store.Head(ctx); err != nil {
		t.Fatal(err)
	}
	d.Fences, d.KeyFences = map[kek.ID]map[int]string{}, map[kek.ID]map[int]string{}
	for _, k := range d.KEKs {
		d.Fences[k.ID], d.KeyFences[k.ID] = f.Fences(t, k.ID, false), f.Fences(t, k.ID, true)
	}
	return d
}

// chain checks that the outbox is one chain without gaps that ends at the head.
func (f *fixture) chain(t *testing.T) []audit.Entry {
	t.Helper()
	entries, err := f.Store.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	head := audit.Genesis(f.Chain)
	for _, e := range entries {
		if head, err = e.Follow(f.Chain, head); err != nil {
			t.Fatal(err)
		}
		again, err := audit.Parse(e.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "stored record", again, e)
	}
	name, got, err := f.Store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "chain name", name.Chain, f.Chain)
	same(t, "chain head", got, head)
	return entries
}

// event is the audit event of a change.
func (f *fixture) event(c kek.Change) audit.Event {
	return audit.Event{
		ID: f.id + "/" + c.Event, Type: c.Event, Rotation: f.id, Step: "test", Actor: "storetest",
		Body: map[string]string{"label": "<Q2> & co"},
	}
}

// wholeBytes compares byte slices at once; element by element takes seconds.
var wholeBytes = cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) > 0 }, cmp.Comparer(bytes.Equal))

// same fails the test unless got equals want.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), wholeBytes); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// race runs f in as many goroutines as there are racers, started together, and
// returns their errors.
func race(f func(n int) error) []error {
	errs := make([]error, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for n := range racers {
		wg.Go(func() {
			<-start
			errs[n] = f(n)
		})
	}
	close(start)
	wg.Wait()
	return errs
}
