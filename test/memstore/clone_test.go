package memstore_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// content is what a world and its table hold, through what anybody can call.
type content struct {
	Pointer     kek.Pointer
	Lock        string
	Registry    int64
	Sources     []kek.Source
	Marks       []kek.Mark
	Rotations   []kek.Rotation
	KEKs        []kek.KEK
	Fences      map[int]string
	Leases      []rotation.Lease
	Checkpoints []rotation.Checkpoint
	Unpublished []audit.Entry
	Head        audit.Head
	Anchor      anchor.State
	Gates       any
	Versions    map[string]string
	Unlocked    bool
	Keys        []keyring.Key
	Claimed     []kek.ID
	Rows        map[string]memstore.Record
	Checked     bool
	Notes       []string
	EncryptedBy string
}

func contentOf(t *testing.T, w *memstore.World, table *memstore.Table) (c content) {
	t.Helper()
	ctx, s := t.Context(), w.Store()
	var errs [11]error
	var v kek.View
	v, errs[0] = s.LoadAll(ctx, "r1")
	c.Lock, c.Registry, c.Sources, c.Marks = v.Lock, v.Registry, v.Sources, v.Marks
	c.Pointer, errs[1] = s.Pointer(ctx)
	c.Rotations, errs[2] = s.Rotations(ctx)
	c.KEKs, errs[3] = s.KEKs(ctx)
	c.Fences = s.Fences("kek-0001")
	c.Leases, errs[4] = s.Leases(ctx, "kek-0001")
	c.Checkpoints, errs[5] = s.ListCheckpoints(ctx, "r1", "rows", "rewrap")
	c.Unpublished, _, errs[6] = s.Unpublished(ctx)
	_, c.Head, errs[7] = s.Head(ctx)
	c.Anchor, errs[8] = s.LoadAnchor(ctx)
	c.Gates = s.Gates()
	var versions []audit.ObjectVersion
	versions, errs[9] = w.Vault().Versions(ctx)
	c.Versions = map[string]string{}
	for _, o := range versions {
		read, err := w.Vault().Read(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		c.Versions[o.Key] = string(read.Bytes)
	}
	c.Unlocked = w.Vault().Check(ctx) != nil
	var ids []kek.ID
	ids, errs[10] = w.KMS().Tagged(ctx, "r1")
	for _, id := range ids {
		k, err := w.KMS().Describe(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		c.Keys = append(c.Keys, k)
	}
	for attempt := range 7 {
		owner, err := w.KMS().Claim(ctx, "r1", attempt, "")
		if err != nil {
			t.Fatal(err)
		}
		c.Claimed = append(c.Claimed, owner)
	}
	c.Rows = map[string]memstore.Record{}
	for _, id := range []string{"a", "b", "c"} {
		rec, ok, err := table.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			c.Rows[id] = rec
		}
	}
	notes, err := table.Check(ctx)
	c.Checked, c.Notes = err != nil, notes
	if c.EncryptedBy, err = table.EncryptedBy(ctx); err != nil {
		t.Fatal(err)
	}
	for i, err := range errs {
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	return c
}

// change changes everything there is, differently for every n.
func change(t *testing.T, w *memstore.World, table *memstore.Table, n int64) {
	t.Helper()
	ctx, s := t.Context(), w.Store()
	at := storetest.Clock()().Add(time.Duration(n) * time.Hour)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := w.KMS().Create(ctx, "r1", 1, "q", keyring.Key{})
	must(err)
	_, err = w.KMS().Claim(ctx, "r1", int(n), key.ID)
	must(err)
	must(w.KMS().Disable(ctx, "kek-0001"))
	_, _, err = w.KMS().GenerateDataKey(ctx, key.ID, map[string]string{"id": "x"})
	must(err)
	now, err := s.LoadAll(ctx, "r1")
	must(err)
	must(s.Mark(ctx, kek.Mark{Table: at.String(), SeenAt: at}))
	must(s.Apply(ctx, next(now, key.ID, n, at), audit.Event{ID: at.String(), Type: "t"}))
	must(s.SealFence(ctx, "kek-0001", int(n)))
	must(s.PutLease(ctx, rotation.Lease{KEK: "kek-0001", Holder: "h", Refs: n, Expires: at}))
	cp, err := s.LoadCheckpoint(ctx, "r1", "rows", "rewrap", 0)
	must(err)
	cp.Tally.Scanned, cp.Tally.Poison = n, append(cp.Tally.Poison, at.String())
	must(s.SaveCheckpoint(ctx, cp))
	anchor, err := s.LoadAnchor(ctx)
	must(err)
	anchor.Last.N = n
	must(s.SaveAnchor(ctx, anchor))
	changeGates(t, s, at)
	out, line, err := s.Unpublished(ctx)
	must(err)
	must(w.Vault().Put(ctx, line.RecordKey(out[0].Record.Seq), out[0]))
	must(s.MarkPublished(ctx, out[0].Record.Seq))
	_, err = w.Vault().PutAnchor(ctx, audit.AnchorKey("chain", n), []byte(at.String()))
	must(err)
	changeRows(t, table, key.ID, n)
}

// next moves the pointer to a new KEK, beside a rotation that goes on.
func next(v kek.View, id kek.ID, n int64, at time.Time) kek.Change {
	r := kek.Rotation{ID: "r1", Phase: kek.Phase("p"), Olds: []kek.ID{id}, Sources: []kek.Source{{Name: string(id)}}, Probes: map[kek.ID][]byte{"k": {byte(n)}}, Rev: n, StartedAt: at, UpdatedAt: at}
	lock := kek.LockTake
	if n%2 == 0 {
		lock = kek.LockRelease
	}
	return kek.Change{
		Event: "e", Rotation: &kek.RotationMove{Before: v.Rotation, After: r}, Lock: lock,
		Pointer: &kek.PointerMove{Before: v.Pointer, After: kek.Pointer{KEKID: id, Epoch: n}},
		KEKs:    []kek.KEKMove{{After: kek.KEK{ID: id, State: kek.Active, FenceShards: 2}}}, Opens: id, Shards: 2,
		Registry: &kek.RegistryMove{Before: v.Registry, Put: []kek.Source{{Name: string(id), Generation: int(n), AddedAt: at}}},
	}
}

func changeGates(t *testing.T, s *memstore.Store, at time.Time) {
	t.Helper()
	ctx := context.Background()
	a, err := s.LoadAnnouncement(ctx, "q")
	if err != nil {
		t.Fatal(err)
	}
	a.Told = append(a.Told, at.String())
	d, _ := s.LoadDrill(ctx, "d")
	d.PassedAt = at
	p, _ := s.LoadApproval(ctx, "r1")
	p.At = at
	pause, _ := s.LoadPause(ctx, "r1")
	pause.At = at
	ev := audit.Event{ID: at.String(), Type: "gate"}
	for _, err := range []error{s.SaveAnnouncement(ctx, a, ev), s.SaveDrill(ctx, d, ev), s.SaveApproval(ctx, p, ev), s.SavePause(ctx, pause, ev)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CountHealth(ctx, "today", true); err != nil {
		t.Fatal(err)
	}
}

func changeRows(t *testing.T, table *memstore.Table, id kek.ID, n int64) {
	t.Helper()
	ctx := t.Context()
	rec := memstore.Record{KEK: id, Epoch: n, WrappedDEK: []byte{byte(n)}, Ciphertext: []byte{byte(n)}, Context: map[string]string{"n": string(id)}}
	for _, row := range []string{"a", "b", "c"} {
		table.Plant(row, rec)
	}
	page, err := table.Scan(ctx, source.ScanRequest{Total: 1, Payload: true})
	if err != nil {
		t.Fatal(err)
	}
	with := source.Rewrapped{KEK: id, Epoch: n, WrappedDEK: []byte{9, byte(n)}, Ciphertext: []byte{9, byte(n)}}
	if done, err := table.Replace(ctx, page.Rows[0], with); err != nil || !done {
		t.Fatal(done, err)
	}
	if err := table.Delete(ctx, "b"); err != nil {
		t.Fatal(err)
	}
}

// TestClone: a clone holds what the world holds, and neither sees what happens to
// the other, whichever goes on.
func TestClone(t *testing.T) {
	w := memstore.New("chain", storetest.Clock())
	table := w.NewTable("rows")
	genesis, err := w.KMS().Create(t.Context(), "", 0, "", keyring.Key{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(3) {
		change(t, w, table, n+1)
	}
	was := contentOf(t, w, table)
	c := w.Clone(storetest.Clock())
	rows := table.CloneTo(c)
	if diff := cmp.Diff(was, contentOf(t, c, rows)); diff != "" {
		t.Fatalf("the clone differs (-world +clone):\n%s", diff)
	}
	change(t, c, rows, 4)
	c.Vault().Unlock()
	c.KMS().Enable(genesis.ID)
	rows.FailCheck(journal.ErrDenied)
	rows.SetNotes("a note")
	rows.SetEncryptedBy("arn:of:a:key")
	if diff := cmp.Diff(was, contentOf(t, w, table)); diff != "" {
		t.Fatalf("the world changed with its clone (-before +after):\n%s", diff)
	}
	cloned := contentOf(t, c, rows)
	if diff := unchanged(was, cloned); len(diff) > 0 {
		t.Errorf("the test changes no %v", diff)
	}
	change(t, w, table, 5)
	change(t, w, table, 6)
	if diff := cmp.Diff(cloned, contentOf(t, c, rows)); diff != "" {
		t.Fatalf("the clone changed with its world (-before +after):\n%s", diff)
	}
}

// unchanged are the fields in which two contents do not differ.
func unchanged(a, b content) (same []string) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if cmp.Equal(x.Field(i).Interface(), y.Field(i).Interface()) {
			same = append(same, x.Type().Field(i).Name)
		}
	}
	return same
}

// TestRecordsAreOwned: what a caller does to a record that it read or wrote does not
// change the stored one.
func TestRecordsAreOwned(t *testing.T) {
	s := memstore.New("chain", storetest.Clock()).Store()
	r := kek.Rotation{
		ID: "r1", Phase: kek.Started, Olds: []kek.ID{"kek-0"}, Sources: []kek.Source{{Name: "orders"}}, Probes: map[kek.ID][]byte{"kek-0": []byte("probe")},
	}
	c := kek.Change{Event: "e", Rotation: &kek.RotationMove{After: r}, Lock: kek.LockTake}
	if err := s.Apply(t.Context(), c, audit.Event{ID: "a", Type: "t"}); err != nil {
		t.Fatal(err)
	}
	spoil := func(r kek.Rotation) {
		r.Olds[0], r.Sources[0].Name, r.Probes["kek-0"][0] = "x", "x", 'x'
		r.Probes["x"] = nil
	}
	spoil(r)
	for range 2 {
		v, err := s.Load(t.Context(), "r1")
		if err != nil {
			t.Fatal(err)
		}
		if got := *v.Rotation; len(got.Probes) != 1 || string(got.Probes["kek-0"]) != "probe" || got.Olds[0] != "kek-0" || got.Sources[0].Name != "orders" {
			t.Fatalf("the stored record changed: %+v", got)
		}
		spoil(*v.Rotation)
	}
}
