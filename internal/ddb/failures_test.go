package ddb_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// failing answers one of its requests with an error, by number from 1, and notes the
// operation of each.
type failing struct {
	*memddb.DB
	nth   int // 0: none
	cause error
	ops   []string
	stale []string // reads that need not be consistent
}

func (f *failing) consistent(op string, is *bool) {
	if is == nil || !*is {
		f.stale = append(f.stale, op)
	}
}

func (f *failing) asked(op string) error {
	f.ops = append(f.ops, op)
	if len(f.ops) == f.nth {
		return f.cause
	}
	return nil
}

func (f *failing) begin(nth int, cause error) { f.nth, f.cause, f.ops = nth, cause, nil }

func (f *failing) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if err := f.asked("GetItem"); err != nil {
		return nil, err
	}
	f.consistent("GetItem", in.ConsistentRead)
	return f.DB.GetItem(ctx, in, o...)
}

func (f *failing) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if err := f.asked("PutItem"); err != nil {
		return nil, err
	}
	return f.DB.PutItem(ctx, in, o...)
}

func (f *failing) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	if err := f.asked("UpdateItem"); err != nil {
		return nil, err
	}
	return f.DB.UpdateItem(ctx, in, o...)
}

func (f *failing) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	if err := f.asked("DeleteItem"); err != nil {
		return nil, err
	}
	return f.DB.DeleteItem(ctx, in, o...)
}

func (f *failing) Query(ctx context.Context, in *dynamodb.QueryInput, o ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	if err := f.asked("Query"); err != nil {
		return nil, err
	}
	f.consistent("Query", in.ConsistentRead)
	return f.DB.Query(ctx, in, o...)
}

func (f *failing) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if err := f.asked("Scan"); err != nil {
		return nil, err
	}
	f.consistent("Scan", in.ConsistentRead)
	return f.DB.Scan(ctx, in, o...)
}

func (f *failing) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if err := f.asked("DescribeTable"); err != nil {
		return nil, err
	}
	return f.DB.DescribeTable(ctx, in, o...)
}

func (f *failing) TransactGetItems(ctx context.Context, in *dynamodb.TransactGetItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	if err := f.asked("TransactGetItems"); err != nil {
		return nil, err
	}
	return f.DB.TransactGetItems(ctx, in, o...)
}

func (f *failing) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := f.asked("TransactWriteItems"); err != nil {
		return nil, err
	}
	return f.DB.TransactWriteItems(ctx, in, o...)
}

// failed is a control table with one KEK and a table with one row, on a DynamoDB that
// fails.
type failed struct {
	*failing
	store  *ddb.Store
	leases *ddbtest.DataPlane
	source *ddb.TableSource
	row    rotation.Row
	lease  rotation.Lease
	item   item
}

func newFailed(t *testing.T) *failed {
	t.Helper()
	f := &failed{failing: &failing{DB: memddb.New()}}
	control := ddbtest.ControlTable(t, f)
	table := ddbtest.Table(t, f, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
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
	f.item = item{
		"id": &s{Value: "a"}, "key": &s{Value: "kek-0"}, "dek": &b{Value: []byte("dek")}, "data": &b{Value: []byte("data")}, "kek_epoch": &n{Value: "1"},
	}
	put(t, f, table, f.item)
	cfg := ddb.SourceConfig{Name: "orders", Table: table, KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Context: map[string]string{"id": "$id"}}
	f.row = only(t, open(t, f, cfg), rotation.ScanRequest{Total: 1, Payload: true})
	f.source = open(t, f, cfg) // which has not described the table yet
	return f
}

// TestFailures: whichever request of a call fails, the call fails, names the operation
// and keeps the cause, and what it returns beside is nothing. And every read is
// consistent.
func TestFailures(t *testing.T) {
	ev := audit.Event{ID: "e", Type: "e"}
	with := rotation.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}
	results := func(err error, v ...any) ([]any, error) { return v, err }
	for name, call := range map[string]func(ctx context.Context, f *failed) ([]any, error){
		"LoadAnchor": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadAnchor(ctx)
			return results(err, v)
		},
		"SaveAnchor": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveAnchor(ctx, rotation.AnchorState{}))
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
			return results(f.store.SaveAnnouncement(ctx, rotation.Announcement{Label: "l"}, ev))
		},
		"LoadDrill": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadDrill(ctx, "d")
			return results(err, v)
		},
		"SaveDrill": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveDrill(ctx, rotation.Drill{Name: "d"}, ev))
		},
		"LoadApproval": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.store.LoadApproval(ctx, "r")
			return results(err, v)
		},
		"SaveApproval": func(ctx context.Context, f *failed) ([]any, error) {
			return results(f.store.SaveApproval(ctx, rotation.Approval{Rotation: "r"}, ev))
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
		"ReadBackup": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.source.ReadBackup(ctx, f.item)
			return results(err, v.Row.ID)
		},
		"ReadStored": func(ctx context.Context, f *failed) ([]any, error) {
			v, ok, err := f.source.ReadStored(ctx, ddb.Backed{Row: f.row})
			return results(err, v.ID, ok)
		},
		"Check": func(ctx context.Context, f *failed) ([]any, error) {
			_, err := f.source.Check(ctx) // notes of the table it may have
			return results(err)
		},
		"Scan": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.source.Scan(ctx, rotation.ScanRequest{Total: 1})
			return results(err, v)
		},
		"Replace": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.source.Replace(ctx, f.row, with)
			return results(err, v)
		},
		"Rehearse": func(ctx context.Context, f *failed) ([]any, error) { return results(f.source.Rehearse(ctx, f.row)) },
		"Label": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.source.Label(ctx, f.row, "kek-1")
			return results(err, v)
		},
		"Reread": func(ctx context.Context, f *failed) ([]any, error) {
			v, ok, err := f.source.Reread(ctx, f.row, true)
			return results(err, v.ID, ok)
		},
		"EncryptedBy": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.source.EncryptedBy(ctx)
			return results(err, v)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFailed(t)
			f.begin(0, nil)
			if _, err := call(t.Context(), f); err != nil {
				t.Fatalf("without a failure: %v", err)
			}
			ops := f.ops
			if len(ops) == 0 || len(f.stale) > 0 {
				t.Fatalf("requests %v, of which not consistent %v", ops, f.stale)
			}
			for i, op := range ops {
				f := newFailed(t)
				f.begin(i+1, errWire)
				got, err := call(t.Context(), f)
				if !errors.Is(err, errWire) || errors.Is(err, rotation.ErrNoControlTable) || !strings.Contains(err.Error(), "dynamodb "+op) {
					t.Errorf("%s, request %d, fails: %v", op, i+1, err)
				}
				for _, v := range got {
					if v := reflect.ValueOf(v); v.IsValid() && !v.IsZero() {
						t.Errorf("%s, request %d, fails: it returns %+v", op, i+1, v)
					}
				}
			}
		})
	}
}
