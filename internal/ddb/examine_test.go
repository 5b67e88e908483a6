package ddb_test

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

var noon = time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)

// rebuilt are the items that a repair writes, one of each kind, by their keys.
func rebuilt() map[doctor.ItemKey]any {
	at := func(pk string) doctor.ItemKey { return doctor.ItemKey{PK: pk, SK: "-"} }
	return map[doctor.ItemKey]any{
		at("POINTER"):    kek.Pointer{KEKID: "k", KeyARN: "arn", Epoch: 3, RotationID: "r", SwitchedAt: noon},
		at("LOCK"):       doctor.LockItem{RotationID: "r"},
		at("KEK#k"):      kek.KEK{ID: "k", ARN: "arn", State: kek.Active, Label: "l", FenceShards: 2, CreatedAt: noon},
		at("ROTATION#r"): kek.Rotation{ID: "r", Mode: kek.Normal, Phase: kek.Started, OldKEK: "k", Olds: []kek.ID{"k"}, Attempt: 1, Rev: 1, StartedAt: noon},
		at("REGISTRY"):   doctor.RegistryItem{Rev: 7},
		at("ANCHOR"):     anchor.State{Rev: 4, Last: anchor.Anchored{N: 2, Digest: "d", Head: audit.Head{Seq: 1, Hash: "h"}, Log: "log", Index: 5, At: noon}},

		{PK: "FENCE#k", SK: "01"}:    doctor.FenceItem{KEK: "k", Shard: 1, Open: true},
		{PK: "SOURCE", SK: "orders"}: kek.Source{Name: "orders", Kind: rowschema.Kind, Definition: "{}", Place: "orders", Generation: 1, AddedAt: noon, AddedBy: "alice"},
	}
}

// TestExamine: every item that a repair writes is read as what was written, one that cannot
// be decoded stops nothing, and what is none of ours is named.
func TestExamine(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		table := ddbtest.ControlTable(t, client)
		store := ddb.New(client, table, "test", storetest.Clock())
		want := rebuilt()
		for key, v := range want {
			if err := store.Repair(t.Context(), []doctor.ItemChange{{Key: key, Put: v}}, audit.Event{ID: key.String(), Type: "control_repaired"}); err != nil {
				t.Fatalf("%s: %v", key, err)
			}
		}
		anchorKey := doctor.ItemKey{PK: "ANCHOR", SK: "-"}
		a := want[anchorKey].(anchor.State)
		a.Rev++ // as SaveAnchor does
		want[anchorKey] = a
		lease := rotation.Lease{KEK: "k", Holder: "worker", Host: "h", PID: 1, Expires: noon}
		if err := errors.Join(
			ddbtest.NewDataPlane(client, table).PutLease(t.Context(), lease),
			store.SaveCheckpoint(t.Context(), rotation.Checkpoint{RotationID: "r", Source: "orders", Pass: "census", Segment: 3}),
		); err != nil {
			t.Fatal(err)
		}
		want[doctor.ItemKey{PK: "LEASE#k", SK: "worker"}] = lease
		want[doctor.ItemKey{PK: "CHECKPOINT#r#orders#census", SK: "003"}] = rotation.Checkpoint{RotationID: "r", Source: "orders", Pass: "census", Segment: 3, Rev: 1}
		put(t, client, table, item{"pk": &s{Value: "OTHER"}, "sk": &s{Value: "x"}})

		for _, i := range examine(t, store) {
			v, known := want[i.Key]
			switch {
			case known:
				if d := cmp.Diff(v, i.Value); d != "" || i.Err != nil || i.Kind == "" {
					t.Errorf("%s is read as another (-want +got): %v\n%s", i.Key, i.Err, d)
				}
				delete(want, i.Key)
			case i.Key.PK == "OTHER":
				if i.Kind != "" || i.Value != nil {
					t.Errorf("it is taken for a %s: %+v", i.Kind, i.Value)
				}
			case i.Kind != doctor.ItemRecord && i.Kind != doctor.ItemHead:
				t.Errorf("it reads %s", i.Key)
			case i.Err != nil:
				t.Errorf("%s: %v", i.Key, i.Err)
			}
		}
		for key := range want {
			t.Errorf("%s was not read", key)
		}

		for _, i := range examine(t, store) { // every attribute has another type
			bad := item{}
			for name, v := range i.Raw.(item) {
				if bad[name] = v; name != "pk" && name != "sk" {
					bad[name] = &types.AttributeValueMemberNULL{Value: true}
				}
			}
			put(t, client, table, bad)
		}
		for _, i := range examine(t, store) {
			if i.Kind != "" && i.Err == nil {
				t.Errorf("%s decodes: %+v", i.Key, i.Value)
			}
			var typed *journal.Error
			if i.Err != nil && i.Kind != doctor.ItemRecord && (!errors.As(i.Err, &typed) || typed.Kind != journal.ControlTableDamaged || typed.Next.Do != journal.RunDoctor) {
				t.Errorf("%s: %v", i.Key, i.Err)
			}
		}
	})
}

func examine(t *testing.T, store *ddb.Store) []doctor.Item {
	t.Helper()
	items, err := store.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return items
}

// TestRepair writes only over what was read, attribute by attribute, with its record or
// not at all.
func TestRepair(t *testing.T) {
	everywhere(t, func(t *testing.T, client dynamo) {
		table := ddbtest.ControlTable(t, client)
		store := ddb.New(client, table, "test", storetest.Clock())
		lock := doctor.ItemKey{PK: "LOCK", SK: "-"}
		free := doctor.ItemKey{PK: "POINTER", SK: "-"}
		repair := func(want error, changes ...doctor.ItemChange) {
			t.Helper()
			_, before, _ := store.Head(t.Context())
			err := store.Repair(t.Context(), changes, audit.Event{ID: "repair", Type: "control_repaired"})
			_, after, _ := store.Head(t.Context())
			if !errors.Is(err, want) || want == nil && err != nil || (after.Seq > before.Seq) != (want == nil) {
				t.Errorf("%v, want %v; the chain went from %d to %d", err, want, before.Seq, after.Seq)
			}
		}
		put(t, client, table, item{"pk": &s{Value: "LOCK"}, "sk": &s{Value: "-"}, "rotation_id": &n{Value: "7"}, "odd name#": &b{Value: []byte("x")}})
		read := examine(t, store)[0]
		repair(kek.ErrConflict, doctor.ItemChange{Key: lock, Put: doctor.LockItem{RotationID: "r"}})                                           // there is one
		repair(kek.ErrConflict, doctor.ItemChange{Key: lock, Was: &read}, doctor.ItemChange{Key: free, Was: &read, Keep: true})                // there is none
		repair(nil, doctor.ItemChange{Key: lock, Was: &read, Put: doctor.LockItem{RotationID: "r"}}, doctor.ItemChange{Key: free, Keep: true}) // both hold
		repair(kek.ErrConflict, doctor.ItemChange{Key: lock, Was: &read, Put: doctor.LockItem{RotationID: "other"}})                           // it is another now
		if got := get(t, client, table, item{"pk": &s{Value: "LOCK"}, "sk": &s{Value: "-"}}); len(got) != 3 || got["rotation_id"].(*s).Value != "r" {
			t.Errorf("the lock is %v", got)
		}
		for _, i := range examine(t, store) {
			if i.Key == lock {
				repair(nil, doctor.ItemChange{Key: lock, Was: &i})
			}
		}
		if got := get(t, client, table, item{"pk": &s{Value: "LOCK"}, "sk": &s{Value: "-"}}); len(got) != 0 {
			t.Errorf("the lock is still %v", got)
		}

		// The head is rebuilt with the record of it after it.
		_, head, err := store.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := doctor.ItemKey{PK: "AUDIT_HEAD", SK: "-"}
		put(t, client, table, item{"pk": &s{Value: "AUDIT_HEAD"}, "sk": &s{Value: "-"}, "seq": &s{Value: "x"}})
		for _, i := range examine(t, store) {
			if i.Key == at {
				err = store.Repair(t.Context(), []doctor.ItemChange{{Key: at, Was: &i, Put: doctor.HeadItem{Head: head, Published: 1}}}, audit.Event{ID: "head", Type: "control_repaired"})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		entries, err := store.AuditEntries(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		follow := audit.Genesis("test")
		for _, e := range entries {
			if follow, err = e.Follow("test", follow); err != nil {
				t.Error(err)
			}
		}
		pending, _, err := store.Unpublished(t.Context())
		if _, now, _ := store.Head(t.Context()); now != follow || now.Seq != head.Seq+1 || err != nil || len(pending) != int(now.Seq)-1 {
			t.Errorf("the head is %+v, the records end at %+v, %d are pending: %v", now, follow, len(pending), err)
		}
	})
}
