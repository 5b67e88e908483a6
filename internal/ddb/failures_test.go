package ddb_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// failed is a control table with one KEK, on a DynamoDB that fails.
type failed struct {
	*ddbtest.Failing
	store  *ddb.Store
	leases *ddbtest.DataPlane
	lease  rotation.Lease
}

func newFailed(t *testing.T) *failed {
	t.Helper()
	f := &failed{Failing: &ddbtest.Failing{DB: memddb.New()}}
	control := ddbtest.ControlTable(t, f)
	f.store, f.leases = ddb.New(f, control, "test", storetest.Clock()), ddbtest.NewDataPlane(f, control)
	if err := f.store.Apply(t.Context(), first(t, f.store), audit.Event{ID: "genesis"}); err != nil {
		t.Fatal(err)
	}
	for id, op := range map[string]kek.LockOp{"r": kek.LockTake, "past": kek.LockIgnore} {
		if err := f.store.Apply(t.Context(), kek.Change{Lock: op, Rotation: &kek.RotationMove{After: kek.Rotation{ID: id}}}, audit.Event{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	f.lease = rotation.Lease{KEK: "kek-0", Holder: "a", Expires: time.UnixMilli(1)}
	if err := f.leases.PutLease(t.Context(), f.lease); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFailures: whichever request of a call fails, the call fails, names the operation
// and keeps the cause, and what it returns beside is nothing. And every read is
// consistent.
func TestFailures(t *testing.T) {
	ev := audit.Event{ID: "e", Type: "e"}
	results := func(err error, v ...any) ([]any, error) { return v, err }
	for name, call := range map[string]func(ctx context.Context, f *failed) ([]any, error){
		"LoadAnchor": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadAnchor(ctx)
			return results(err, v)
		},
		"SaveAnchor": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveAnchor(ctx, anchor.State{}))
		},
		"Record": func(ctx context.Context, f *failed) ([]any, error) { return results(f.store.Record(ctx, ev)) },
		"LoadCheckpoint": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadCheckpoint(ctx, "r", "orders", "rewrap", 0)
			return results(err, v)
		},
		"SaveCheckpoint": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveCheckpoint(ctx, rotation.Checkpoint{RotationID: "r", Source: "orders", Pass: "rewrap"}))
		},
		"ListCheckpoints": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.ListCheckpoints(ctx, "r", "orders", "rewrap")
			return results(err, v)
		},
		"Leases": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Leases(ctx, "kek-0")
			return results(err, v)
		},
		"Revoke": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Revoke(ctx, f.lease)
			return results(err, v)
		},
		"SealFence": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SealFence(ctx, "kek-0", 1))
		},
		"PutLease": func(ctx context.Context, f *failed) ([]any, error) { return results(f.leases.PutLease(ctx, f.lease)) },
		"RenewLease": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.leases.RenewLease(ctx, f.lease)
			return results(err, v)
		},
		"DropLease": func(ctx context.Context, f *failed) ([]any, error) { return results(f.leases.DropLease(ctx, f.lease)) },
		"Pointer": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.leases.Pointer(ctx)
			return results(err, v)
		},
		"KEKState": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.leases.KEKState(ctx, "kek-0")
			return results(err, v)
		},
		"LoadAnnouncement": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadAnnouncement(ctx, "l")
			return results(err, v)
		},
		"SaveAnnouncement": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveAnnouncement(ctx, gates.Announcement{Label: "l"}, ev))
		},
		"LoadDrill": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadDrill(ctx, "d")
			return results(err, v)
		},
		"SaveDrill": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveDrill(ctx, gates.Drill{Name: "d"}, ev))
		},
		"LoadApproval": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadApproval(ctx, "r")
			return results(err, v)
		},
		"SaveApproval": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveApproval(ctx, gates.Approval{Rotation: "r"}, ev))
		},
		"CountHealth": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.CountHealth(ctx, "2026-04-01", true)
			return results(err, v)
		},
		"ListHealth": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.ListHealth(ctx, []string{"2026-04-01", "2026-04-02"})
			return results(err, v)
		},
		"KEKs": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.KEKs(ctx)
			return results(err, v)
		},
		"Rotations": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Rotations(ctx)
			return results(err, v)
		},
		"Unpublished": func(ctx context.Context, f *failed) ([]any, error) {
			v, at, err := f.store.Unpublished(ctx)
			return results(err, v, at)
		},
		"AuditEntries": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.AuditEntries(ctx, 1)
			return results(err, v)
		},
		"MarkPublished": func(ctx context.Context, f *failed) ([]any, error) { return results(f.store.MarkPublished(ctx, 1)) },
		"Load": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Load(ctx, "")
			return results(err, v)
		},
		"LoadAll": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadAll(ctx, "")
			return results(err, v)
		},
		"LoadAll beside a rotation": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadAll(ctx, "past")
			if err == nil && (v.Rotation == nil || v.Rotation.ID != "past" || v.Lock != "r" || v.Holder == nil || v.Holder.ID != "r" || len(v.KEKs) != 1) {
				return nil, fmt.Errorf("the view is %+v", v)
			}
			return results(err, v)
		},
		"Sources": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Sources(ctx)
			return results(err, v)
		},
		"Marks": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Marks(ctx)
			return results(err, v)
		},
		"Examine": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.Examine(ctx)
			return results(err, v)
		},
		"Head": func(ctx context.Context, f *failed) ([]any, error) {
			_, v, err := f.store.Head(ctx)
			return results(err, v)
		},
		"Apply": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.Apply(ctx, kek.Change{Event: "x", Lock: kek.LockIgnore, Registry: &kek.RegistryMove{Before: 1}}, ev))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ddbtest.FailEach(t, func(t *testing.T) (*ddbtest.Failing, func(context.Context) ([]any, error)) {
				f := newFailed(t)
				return f.Failing, func(ctx context.Context) ([]any, error) { return call(ctx, f) }
			})
		})
	}
}
