package ddb_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// between calls f once, after the nth request of a store, reads and all.
type between struct {
	dynamo
	n int
	f func()
}

func (b *between) after() {
	if b.n--; b.n == 0 {
		b.f()
	}
}

func (b *between) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	defer b.after()
	return b.dynamo.GetItem(ctx, in, o...)
}

func (b *between) Query(ctx context.Context, in *dynamodb.QueryInput, o ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	defer b.after()
	return b.dynamo.Query(ctx, in, o...)
}

func (b *between) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	defer b.after()
	return b.dynamo.Scan(ctx, in, o...)
}

func (b *between) TransactGetItems(ctx context.Context, in *dynamodb.TransactGetItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	defer b.after()
	return b.dynamo.TransactGetItems(ctx, in, o...)
}

// TestStartBesideTheRegistry is the regression test of a view whose KEKs were read
// before the lock: a rotation that retired one and freed the lock in between left the
// next one an old KEK that can never be retired, and halted it after its switch.
// Whatever happens between any two reads, a start that goes through has frozen what is
// registered, and leaves KEKs that resolve.
func TestStartBesideTheRegistry(t *testing.T) {
	now := storetest.Clock()
	for name, happens := range map[string]func(t *testing.T, s *ddb.Store){
		"a rotation ends": func(t *testing.T, s *ddb.Store) {
			t.Helper()
			change(t, s, func(v kek.View) (kek.Change, error) { return v.Retire(v.Rotation.Rev, now(), now()) })
			change(t, s, func(v kek.View) (kek.Change, error) { return v.Complete(v.Rotation.Rev, now()) })
		},
		"a source is added": func(t *testing.T, s *ddb.Store) {
			t.Helper()
			change(t, s, func(v kek.View) (kek.Change, error) {
				return v.PutSource(kek.Source{Name: "late", Kind: rowschema.Kind, Place: "late"}, now())
			})
		},
		"a KEK is registered": func(t *testing.T, s *ddb.Store) {
			t.Helper()
			change(t, s, func(v kek.View) (kek.Change, error) {
				return v.RegisterKEK(kek.KEK{ID: "kek-late", FenceShards: 1}, now())
			})
		},
	} {
		started := 0
		for n := range 9 {
			client := ddbtest.NewTwin(t)
			table := ddbtest.ControlTable(t, client)
			s := ddb.New(client, table, "test", now)
			rotateTo(t, s, name == "a rotation ends", now)
			watched := &between{dynamo: client, n: n, f: func() { happens(t, s) }}
			if n == 0 { // before the first
				happens(t, s)
			}
			v, err := ddb.New(watched, table, "test", now).LoadAll(t.Context(), "next")
			if err != nil {
				t.Fatal(err)
			}
			if watched.n > 0 {
				happens(t, s) // between the last read and the write
			}
			c, err := v.Start(kek.Rotation{ID: "next", Mode: kek.Normal}, now())
			if err == nil {
				err = s.Apply(t.Context(), c, audit.Event{ID: "start", Type: "t"})
			}
			if errors.Is(err, kek.ErrConflict) || errors.Is(err, kek.ErrLocked) {
				continue
			}
			if err != nil {
				t.Fatalf("%s after read %d: %v", name, n, err)
			}
			started++
			is, err := s.LoadAll(t.Context(), "next")
			if err != nil {
				t.Fatal(err)
			}
			if kek.Digest(is.Rotation.Sources) != kek.Digest(is.Sources) {
				t.Errorf("%s after read %d: frozen %v, registered %v", name, n, is.Rotation.Sources, is.Sources)
			}
			left := map[kek.ID]bool{}
			for _, id := range is.Rotation.Olds {
				left[id] = true
			}
			for id, k := range is.KEKs {
				if k.State.Resolves() != left[id] {
					t.Errorf("%s after read %d: KEK %s is %s, and the rotation leaves it: %t", name, n, id, k.State, left[id])
				}
			}
		}
		if started == 0 {
			t.Errorf("%s: nothing started, so nothing was shown", name)
		}
	}
}

// change makes one change of the rotation that holds the lock, or of the registry.
func change(t *testing.T, s *ddb.Store, next func(kek.View) (kek.Change, error)) {
	t.Helper()
	v, err := s.LoadAll(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := next(v)
	if err == nil {
		err = s.Apply(t.Context(), c, audit.Event{ID: c.Event, Type: "t"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// rotateTo makes a control table after genesis, in which a rotation, if asked for,
// stands before the retirement.
func rotateTo(t *testing.T, s *ddb.Store, rotation bool, now func() time.Time) {
	t.Helper()
	change(t, s, func(v kek.View) (kek.Change, error) {
		return v.Genesis(kek.KEK{ID: "kek-0", FenceShards: 1}, []kek.Source{{Name: "orders", Kind: rowschema.Kind, Place: "orders"}}, now())
	})
	if !rotation {
		return
	}
	change(t, s, func(v kek.View) (kek.Change, error) {
		return v.Start(kek.Rotation{ID: "first", Mode: kek.Normal}, now())
	})
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Count(now()) })
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Mint(kek.KEK{ID: "kek-1", FenceShards: 1}, now()) })
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Rehearse(now()) })
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Test(nil, now()) })
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Switch(now()) })
	if err := s.SealFence(t.Context(), "kek-0", 0); err != nil {
		t.Fatal(err)
	}
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Seal(now()) })
	change(t, s, func(v kek.View) (kek.Change, error) { return v.Rewrap(v.Rotation.Rev, now()) })
}
