package ddb_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// TestStored: each item of the control table comes back with every field that it was
// saved with, from the revision that follows; with an attribute of another type it is
// an error that names both, and not a value that was guessed.
func TestStored(t *testing.T) {
	at := time.Date(2026, 4, 1, 2, 0, 0, 123e6, time.UTC)
	ev := audit.Event{ID: "e", Type: "e"}
	signed := &audit.Signed{Key: []byte("key"), Signature: []byte("sig"), Statement: audit.NewStatement("test", 3, audit.AnchorGenesis("test"), audit.Genesis("test"), at)}
	for name, c := range map[string]struct {
		pk, sk string
		save   func(ctx context.Context, s *ddb.Store, l *ddbtest.DataPlane) error
		load   func(ctx context.Context, s *ddb.Store) (any, error)
		want   any
	}{
		"announcement": {
			"ANNOUNCEMENT#l", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveAnnouncement(ctx, gates.Announcement{Label: "l", From: at, To: at.Add(time.Hour), At: at.Add(2 * time.Hour), Actor: "a", Told: []string{"x", "y"}}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadAnnouncement(ctx, "l") },
			gates.Announcement{Label: "l", Rev: 1, From: at, To: at.Add(time.Hour), At: at.Add(2 * time.Hour), Actor: "a", Told: []string{"x", "y"}},
		},
		"drill": {
			"DRILL#d", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveDrill(ctx, gates.Drill{Name: "d", PassedAt: at, Rotation: "r", Pointer: "p", Retired: "q", Error: "e", Actor: "a"}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadDrill(ctx, "d") },
			gates.Drill{Name: "d", Rev: 1, PassedAt: at, Rotation: "r", Pointer: "p", Retired: "q", Error: "e", Actor: "a"},
		},
		"approval": {
			"APPROVAL#r", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveApproval(ctx, gates.Approval{
					Rotation: "r", Plan: "p", State: "s", Token: "t", Requester: "q", Asked: at, Expires: at.Add(time.Hour), By: "b", At: at.Add(time.Minute), Reason: "x",
				}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadApproval(ctx, "r") },
			gates.Approval{
				Rotation: "r", Rev: 1, Plan: "p", State: "s", Token: "t", Requester: "q", Asked: at, Expires: at.Add(time.Hour), By: "b", At: at.Add(time.Minute), Reason: "x",
			},
		},
		"pause": {
			"PAUSE#r", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SavePause(ctx, gates.Pause{Rotation: "r", State: "s", By: "b", At: at, Reason: "x"}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadPause(ctx, "r") },
			gates.Pause{Rotation: "r", Rev: 1, State: "s", By: "b", At: at, Reason: "x"},
		},
		"health": {
			"HEALTH#2026-04-01", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				var err error
				for _, green := range []bool{true, false, true} {
					_, e := s.CountHealth(ctx, "2026-04-01", green)
					err = errors.Join(err, e)
				}
				return err
			},
			func(ctx context.Context, s *ddb.Store) (any, error) {
				return s.ListHealth(ctx, []string{"2026-04-02", "2026-04-01", "2026-04-01"})
			},
			[]gates.HealthDay{{Day: "2026-04-01", Green: 2, Red: 1}},
		},
		"anchor": {
			"ANCHOR", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveAnchor(ctx, anchor.State{
					Last:   anchor.Anchored{N: 2, Digest: "d", Head: audit.Head{Seq: 7, Hash: "h"}, Log: "l", Index: 9, At: at},
					Intent: signed, Places: "13=g1-0123456789abcdef",
				})
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadAnchor(ctx) },
			anchor.State{
				Rev: 1, Last: anchor.Anchored{N: 2, Digest: "d", Head: audit.Head{Seq: 7, Hash: "h"}, Log: "l", Index: 9, At: at}, Intent: signed, Places: "13=g1-0123456789abcdef",
			},
		},
		"checkpoint": {
			"CHECKPOINT#r#s#p", "003",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveCheckpoint(ctx, rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 3, Cursor: "c", Done: true})
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.LoadCheckpoint(ctx, "r", "s", "p", 3) },
			rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 3, Rev: 1, Cursor: "c", Done: true},
		},
		"checkpoints": {
			"CHECKPOINT#r#s#p", "003",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.SaveCheckpoint(ctx, rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 3})
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.ListCheckpoints(ctx, "r", "s", "p") },
			[]rotation.Checkpoint{{RotationID: "r", Source: "s", Pass: "p", Segment: 3, Rev: 1}},
		},
		"lease": {
			"LEASE#k", "a",
			func(ctx context.Context, _ *ddb.Store, l *ddbtest.DataPlane) error {
				return l.PutLease(ctx, rotation.Lease{KEK: "k", Holder: "a", Host: "h", PID: 7, Refs: 8, Expires: at})
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.Leases(ctx, "k") },
			[]rotation.Lease{{KEK: "k", Holder: "a", Host: "h", PID: 7, Refs: 8, Expires: at}},
		},
		"audit head": {
			"AUDIT_HEAD", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				if err := s.Record(ctx, ev); err != nil {
					return err
				}
				return s.MarkPublished(ctx, 1)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) {
				chain, h, err := s.Head(ctx)
				return []any{chain, h.Seq}, err
			},
			[]any{audit.Line{Chain: "test"}, int64(1)},
		},
		"registry": {
			"REGISTRY", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.Apply(ctx, kek.Change{Lock: kek.LockIgnore, Registry: &kek.RegistryMove{}}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) {
				v, err := s.LoadAll(ctx, "")
				return v.Registry, err
			},
			int64(1),
		},
		"pointer": {
			"POINTER", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.Apply(ctx, kek.Change{Lock: kek.LockIgnore, Pointer: &kek.PointerMove{After: kek.Pointer{KEKID: "k", KeyARN: "arn", Epoch: 4, RotationID: "r", SwitchedAt: at}}}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) {
				v, err := s.Load(ctx, "")
				if v.Pointer == nil {
					return nil, err
				}
				return *v.Pointer, err
			},
			kek.Pointer{KEKID: "k", KeyARN: "arn", Epoch: 4, RotationID: "r", SwitchedAt: at},
		},
		"KEK": {
			"KEK#k", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.Apply(ctx, kek.Change{Lock: kek.LockIgnore, KEKs: []kek.KEKMove{{After: kek.KEK{ID: "k", State: kek.Active, FenceShards: 3}}}}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.KEKs(ctx) },
			[]kek.KEK{{ID: "k", State: kek.Active, FenceShards: 3}},
		},
		"rotation": {
			"ROTATION#r", "-",
			func(ctx context.Context, s *ddb.Store, _ *ddbtest.DataPlane) error {
				return s.Apply(ctx, kek.Change{Lock: kek.LockIgnore, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r", Phase: kek.Drained, Rev: 4, StartedAt: at}}}, ev)
			},
			func(ctx context.Context, s *ddb.Store) (any, error) { return s.Rotations(ctx) },
			[]kek.Rotation{{ID: "r", Phase: kek.Drained, Rev: 4, StartedAt: at}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := memddb.New()
			table := ddbtest.ControlTable(t, db)
			store := ddb.New(db, table, "test", storetest.Clock())
			if err := c.save(t.Context(), store, ddbtest.NewDataPlane(db, table)); err != nil {
				t.Fatal(err)
			}
			got, err := c.load(t.Context(), store)
			if d := cmp.Diff(c.want, got); d != "" || err != nil {
				t.Fatalf("%v (-want +got):\n%s", err, d)
			}
			stored := get(t, db, table, item{"pk": &s{Value: c.pk}, "sk": &s{Value: c.sk}})
			if stored == nil {
				t.Fatalf("there is no item %s", c.pk)
			}
			for attribute := range stored {
				if attribute == "pk" || attribute == "sk" {
					continue
				}
				damaged := maps.Clone(stored)
				damaged[attribute] = &types.AttributeValueMemberNULL{Value: true}
				put(t, db, table, damaged)
				if got, err := c.load(t.Context(), store); err == nil || !strings.Contains(err.Error(), c.pk) || !strings.Contains(err.Error(), attribute) {
					t.Errorf("attribute %s is null: %+v, %v", attribute, got, err)
				}
			}
		})
	}
}

// paged answers with one item a page.
type paged struct{ *memddb.DB }

func (p paged) Query(ctx context.Context, in *dynamodb.QueryInput, o ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	one := *in
	one.Limit = aws.Int32(1)
	return p.DB.Query(ctx, &one, o...)
}

func (p paged) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	one := *in
	one.Limit = aws.Int32(1)
	return p.DB.Scan(ctx, &one, o...)
}

// TestLists: what is listed is read to the end, page by page, in its order, and nothing
// of the neighbours.
func TestLists(t *testing.T) {
	db := memddb.New()
	table := ddbtest.ControlTable(t, db)
	store, leases := ddb.New(paged{db}, table, "test", storetest.Clock()), ddbtest.NewDataPlane(db, table)
	at := time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ages := []int{3, 1, 2, 1}
	for i, age := range ages {
		name := string(rune('d' - i)) // d, c, b, a
		must(store.Apply(t.Context(), kek.Change{
			Lock: kek.LockIgnore, Registry: &kek.RegistryMove{Before: int64(i), Put: []kek.Source{{Name: name, Kind: "x"}}},
			KEKs:     []kek.KEKMove{{After: kek.KEK{ID: kek.ID(name), State: kek.Active, CreatedAt: at.Add(time.Duration(age) * time.Hour)}}},
			Rotation: &kek.RotationMove{After: kek.Rotation{ID: name, StartedAt: at.Add(time.Duration(age) * time.Hour)}},
		}, audit.Event{ID: name}))
		must(leases.PutLease(t.Context(), rotation.Lease{KEK: "a", Holder: name}))
		put(t, db, table, item{"pk": &s{Value: "MARK"}, "sk": &s{Value: name}})
		must(store.SaveCheckpoint(t.Context(), rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "p", Segment: 10 - i}))
	}
	must(store.SaveCheckpoint(t.Context(), rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "o", Segment: 1}))
	must(store.SaveCheckpoint(t.Context(), rotation.Checkpoint{RotationID: "r", Source: "s", Pass: "q", Segment: 1}))
	names := func(v any, err error) string {
		t.Helper()
		must(err)
		var out []string
		switch v := v.(type) {
		case []kek.KEK:
			for _, k := range v {
				out = append(out, string(k.ID))
			}
		case []kek.Rotation:
			for _, r := range v {
				out = append(out, r.ID)
			}
		case []kek.Source:
			for _, x := range v {
				out = append(out, x.Name)
			}
		case []kek.Mark:
			for _, m := range v {
				out = append(out, m.Table)
			}
		case []rotation.Lease:
			for _, l := range v {
				out = append(out, l.Holder)
			}
		case []audit.Entry:
			for _, e := range v {
				out = append(out, fmt.Sprint(e.Record.Seq))
			}
		case []rotation.Checkpoint:
			for _, c := range v {
				out = append(out, fmt.Sprintf("%s%d", c.Pass, c.Segment))
			}
		}
		return strings.Join(out, " ")
	}
	anyOf := func(v any, err error) (any, error) { return v, err }
	keks, err := store.KEKs(t.Context())
	got := []string{names(anyOf(keks, err))}
	rotations, err := store.Rotations(t.Context())
	got = append(got, names(anyOf(rotations, err)))
	sources, err := store.Sources(t.Context())
	got = append(got, names(anyOf(sources, err)))
	marks, err := store.Marks(t.Context())
	got = append(got, names(anyOf(marks, err)))
	held, err := store.Leases(t.Context(), "a")
	got = append(got, names(anyOf(held, err)))
	for _, from := range []int64{-1, 0, 1, 3, 5} {
		entries, err := store.AuditEntries(t.Context(), from)
		got = append(got, names(anyOf(entries, err)))
	}
	checkpoints, err := store.ListCheckpoints(t.Context(), "r", "s", "p")
	got = append(got, names(anyOf(checkpoints, err)))
	want := []string{"a c b d", "a c b d", "a b c d", "a b c d", "a b c d", "1 2 3 4", "1 2 3 4", "1 2 3 4", "3 4", "", "p7 p8 p9 p10"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lists (-want +got):\n%s", d)
	}
	read := map[doctor.ItemKind]int{}
	items, err := store.Examine(t.Context())
	for _, i := range items {
		read[i.Kind]++
	}
	kinds := map[doctor.ItemKind]int{
		doctor.ItemKEK: 4, doctor.ItemRotation: 4, doctor.ItemSource: 4, doctor.ItemMark: 4, doctor.ItemLease: 4, doctor.ItemCheckpoint: 6,
		doctor.ItemRecord: 4, doctor.ItemHead: 1, doctor.ItemRegistry: 1,
	}
	if d := cmp.Diff(kinds, read); d != "" || err != nil {
		t.Errorf("items, %v (-want +got):\n%s", err, d)
	}
	must(store.MarkPublished(t.Context(), 2))
	entries, _, err := store.Unpublished(t.Context())
	if names(anyOf(entries, err)) != "3 4" {
		t.Errorf("unpublished: %v, %v", entries, err)
	}
	must(store.MarkPublished(t.Context(), 4))
	must(store.MarkPublished(t.Context(), 3)) // marked already
	if entries, _, err := store.Unpublished(t.Context()); err != nil || len(entries) > 0 {
		t.Errorf("unpublished: %v, %v", entries, err)
	}
	if err := store.MarkPublished(t.Context(), 5); err == nil || !strings.Contains(err.Error(), "the chain ends at 4") {
		t.Errorf("past the head: %v", err)
	}
}

// TestListsOfMisplacedItems: a KEK or a rotation is only what is under its own key.
func TestListsOfMisplacedItems(t *testing.T) {
	db := memddb.New()
	table := ddbtest.ControlTable(t, db)
	store := ddb.New(db, table, "test", storetest.Clock())
	if err := store.Apply(t.Context(), kek.Change{
		Lock: kek.LockIgnore, KEKs: []kek.KEKMove{{After: kek.KEK{ID: "a", State: kek.Active}}}, Rotation: &kek.RotationMove{After: kek.Rotation{ID: "r"}},
	}, audit.Event{ID: "x"}); err != nil {
		t.Fatal(err)
	}
	for _, k := range [][2]string{{"KEK#a", "copy"}, {"KEK#b", "copy"}, {"KEK#", "-"}, {"ROTATION#r", "copy"}, {"ROTATION#s", "copy"}, {"ROTATION#", "-"}} {
		put(t, db, table, item{"pk": &s{Value: k[0]}, "sk": &s{Value: k[1]}, "state": &s{Value: "retired"}, "phase": &s{Value: "started"}})
	}
	if keks, err := store.KEKs(t.Context()); err != nil || len(keks) != 1 || keks[0].ID != "a" || keks[0].State != kek.Active {
		t.Errorf("%+v, %v", keks, err)
	}
	if all, err := store.Rotations(t.Context()); err != nil || len(all) != 1 || all[0].ID != "r" {
		t.Errorf("%+v, %v", all, err)
	}
}
