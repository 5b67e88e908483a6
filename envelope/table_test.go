package envelope_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

var ignoreSDK = cmpopts.IgnoreUnexported(s{}, n{}, b{})

// TestInMemory runs tests of tables on the DynamoDB in memory, which the simulator
// trusts to be one.
func TestInMemory(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"InsertGetUpdate": TestInsertGetUpdate, "Put": TestPut, "InsertAll": TestInsertAll, "FencedInsert": TestFencedInsert,
		"ZombieUpdate": TestZombieUpdate, "LaterEpoch": TestLaterEpoch, "OldRows": TestOldRows, "Lost": TestLost,
		"ReplacedBetween": TestReplacedBetween, "OwnVersion": TestOwnVersion, "VersionCounts": TestVersionCounts, "Bind": TestBind,
		"BindUpdate": TestBindUpdate, "KeyChanged": TestKeyChanged, "InvalidText": TestInvalidText, "UnknownKEK": TestUnknownKEK,
		"KEKByARN": TestKEKByARN, "Mark": TestMark, "MarkStopsRotation": TestMarkStopsRotation,
	} {
		t.Run(name, test)
	}
}

func TestInsertGetUpdate(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	ctx := t.Context()
	if _, err := table.Get(ctx, rowKey("a")); !errors.Is(err, envelope.ErrNotFound) {
		t.Errorf("before the insert: %v", err)
	}
	w.must("insert", table.Insert(ctx, row("a"), []byte("one")))
	want := envelope.Row{Item: row("a"), Plaintext: []byte("one"), Version: 1}
	got, err := table.Get(ctx, rowKey("a"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, ignoreSDK); d != "" {
		t.Errorf("inserted (-want +got):\n%s", d)
	}
	if err := table.Insert(ctx, row("a"), []byte("again")); !errors.Is(err, envelope.ErrExists) {
		t.Errorf("a second insert: %v", err)
	}
	w.must("update", table.Update(ctx, rowKey("a"), func(r *envelope.Row) error {
		r.Plaintext = append(r.Plaintext, " two"...)
		r.Item["size"].(*n).Value = "2" // in place
		r.Item["added"] = &s{Value: "x"}
		delete(r.Item, "absent")
		return nil
	}))
	w.must("update", table.Update(ctx, rowKey("a"), func(r *envelope.Row) error {
		delete(r.Item, "added")
		r.Item["tenant"] = &s{Value: "other"} // part of the encryption context
		return nil
	}))
	want = envelope.Row{Item: row("a"), Plaintext: []byte("one two"), Version: 3}
	want.Item["size"], want.Item["tenant"] = &n{Value: "2"}, &s{Value: "other"}
	if got, err = table.Get(ctx, rowKey("a")); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, ignoreSDK); d != "" {
		t.Errorf("updated (-want +got):\n%s", d)
	}
	if err := table.Update(ctx, rowKey("b"), func(*envelope.Row) error { return nil }); !errors.Is(err, envelope.ErrNotFound) {
		t.Errorf("update of no row: %v", err)
	}
	if w.item("b") != nil {
		t.Error("an update made a row")
	}
	stop := errors.New("stop")
	if err := table.Update(ctx, rowKey("a"), func(*envelope.Row) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a change that fails: %v", err)
	}
}

func TestPut(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	first := row("a")
	first["old"] = &s{Value: "gone after the second put"}
	w.must("put", table.Put(t.Context(), first, []byte("one")))
	w.must("put", table.Put(t.Context(), row("a"), []byte("two")))
	got, err := table.Get(t.Context(), rowKey("a"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(envelope.Row{Item: row("a"), Plaintext: []byte("two"), Version: 2}, got, ignoreSDK); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestConcurrentUpdates counts in a payload: no increment may be lost.
func TestConcurrentUpdates(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	w.must("insert", table.Insert(t.Context(), row("a"), []byte{0}))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				for {
					err := table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
						r.Plaintext[0]++
						return nil
					})
					if err == nil {
						break
					}
					if !errors.Is(err, envelope.ErrContended) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got, err := table.Get(t.Context(), rowKey("a"))
	if err != nil || got.Plaintext[0] != 20 || got.Version != 21 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestInsertAll(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	var rows []envelope.Row
	for i := range envelope.MaxBatch {
		rows = append(rows, envelope.Row{Item: row(name(i)), Plaintext: []byte(name(i))})
	}
	w.must("insert", table.InsertAll(t.Context(), rows))
	for i := range rows {
		if got, err := table.Get(t.Context(), rowKey(name(i))); err != nil || string(got.Plaintext) != name(i) {
			t.Fatalf("%s: %q, %v", name(i), got.Plaintext, err)
		}
	}
	if n := w.keys.count("GenerateDataKey"); n != 1 {
		t.Errorf("%d data keys for one encryption context", n)
	}
	some := []envelope.Row{{Item: row("new")}, {Item: row(name(7))}}
	if err := table.InsertAll(t.Context(), some); !errors.Is(err, envelope.ErrExists) || w.item("new") != nil {
		t.Errorf("one of two exists: %v", err)
	}
	for _, n := range []int{0, envelope.MaxBatch + 1} {
		if err := table.InsertAll(t.Context(), make([]envelope.Row, n)); err == nil {
			t.Errorf("%d rows are taken", n)
		}
	}
}

// TestFencedInsert: the fence is shut while the writer still believes in the old
// KEK. The caller sees a success, under the new one.
func TestFencedInsert(t *testing.T) {
	for _, mode := range []kek.Mode{kek.Normal, kek.Emergency} {
		t.Run(string(mode), func(t *testing.T) {
			w := newSite(t)
			c := w.client(slow)
			table := w.open(c)
			w.must("insert", table.Insert(t.Context(), row("before"), []byte("b")))
			w.begin("r1", mode)
			w.revoke("kek-0001") // as if the lease had run out long ago
			w.drain("r1")
			w.must("insert", table.Insert(t.Context(), row("after"), []byte("a")))
			if id := under(t, w.item("after")); id != "kek-0002" {
				t.Errorf("the row is under %s", id)
			}
			if n := c.Stats().RefusedWrites; n != 1 {
				t.Errorf("%d refused writes", n)
			}
			w.finish("r1")
			for _, id := range []string{"before", "after"} {
				if got, err := table.Get(t.Context(), rowKey(id)); err != nil || got.Plaintext[0] != id[0] {
					t.Errorf("%s: %q, %v", id, got.Plaintext, err)
				}
			}
		})
	}
}

// TestZombieUpdate: a writer wakes after its row was rewrapped and the old KEK
// retired.
func TestZombieUpdate(t *testing.T) {
	for _, mode := range []kek.Mode{kek.Normal, kek.Emergency} {
		t.Run(string(mode), func(t *testing.T) {
			w := newSite(t)
			c := w.client(slow)
			table := w.open(c)
			w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
			tries := 0
			w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
				if tries++; tries == 1 { // it sleeps between its read and its write
					w.begin("r1", mode)
					w.revoke("kek-0001")
					w.drain("r1")
					w.finish("r1")
				}
				r.Plaintext = append(r.Plaintext, 'y')
				return nil
			}))
			got, err := table.Get(t.Context(), rowKey("a"))
			if err != nil || string(got.Plaintext) != "xy" || tries != 2 {
				t.Errorf("%q after %d tries, %v", got.Plaintext, tries, err)
			}
			if id := under(t, w.item("a")); id != "kek-0002" {
				t.Errorf("the row is under %s", id)
			}
		})
	}
}

// TestZombieUpdateWithoutEpoch: a writer sleeps through a rotation over a row without an
// epoch, which another program writes again without one. Nothing of the row says that
// the writer's KEK is gone: its update must go past the fence (spec: cx_update_no_epoch).
func TestZombieUpdateWithoutEpoch(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client(slow))
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	strip := func() {
		i := w.item("a")
		delete(i, "kek_epoch")
		w.put(i)
	}
	strip()
	tries := 0
	w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		if tries++; tries == 1 {
			w.begin("r1", kek.Normal)
			w.revoke("kek-0001")
			w.drain("r1")
			w.finish("r1")
			strip()
		}
		r.Plaintext = append(r.Plaintext, 'y')
		return nil
	}))
	got, err := table.Get(t.Context(), rowKey("a"))
	if err != nil || string(got.Plaintext) != "xy" || tries != 2 {
		t.Errorf("%q after %d tries, %v", got.Plaintext, tries, err)
	}
	if id := under(t, w.item("a")); id != "kek-0002" {
		t.Errorf("the row is under %s", id)
	}
}

// TestZombieInsertAfterRetire: the KEK that the writer holds is disabled when it
// wakes, and no data key can be made under it any more.
func TestZombieInsertAfterRetire(t *testing.T) {
	w := newSite(t)
	c := w.client(slow, func(c *envelope.Config) { c.Cache.Off = true })
	table := w.open(c)
	w.begin("r1", kek.Normal)
	w.revoke("kek-0001")
	w.drain("r1")
	w.finish("r1")
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	if id := under(t, w.item("a")); id != "kek-0002" {
		t.Errorf("the row is under %s", id)
	}
}

// revoke takes every lease on a KEK away.
func (w *site) revoke(id kek.ID) {
	w.t.Helper()
	for _, l := range w.leases(id) {
		if ok, err := w.steps.Drainage.Revoke(w.t.Context(), l); err != nil || !ok {
			w.t.Fatalf("revoke: %v, %v", ok, err)
		}
	}
}

// TestThroughRotations writes, updates, deletes and reads all through a normal and
// an emergency rotation, and checks every read against what was written.
func TestThroughRotations(t *testing.T) { throughRotations(t, newSite(t)) }

// patient repeats single writes of items that a transaction holds, as the SDK does with
// the functions' configuration (app.AWSConfig).
type patient struct{ *memddb.DB }

func (p patient) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return patiently(ctx, in, p.DB.PutItem, o)
}

func (p patient) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return patiently(ctx, in, p.DB.UpdateItem, o)
}

func (p patient) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	return patiently(ctx, in, p.DB.DeleteItem, o)
}

func patiently[In, Out any](ctx context.Context, in In, call func(context.Context, In, ...func(*dynamodb.Options)) (Out, error), o []func(*dynamodb.Options)) (Out, error) {
	for {
		out, err := call(ctx, in, o...)
		var conflict *types.TransactionConflictException
		if !errors.As(err, &conflict) {
			return out, err
		}
	}
}

// TestThroughConflicts is TestThroughRotations where one in thirty items that a write or
// a transaction asks for is held by another transaction: no write is lost, no step fails.
func TestThroughConflicts(t *testing.T) {
	db, held := memddb.New(), 0
	w := newSiteOn(t, patient{db})
	random := rand.New(rand.NewPCG(1, 2))
	db.Hold(func(string, item) bool {
		if random.IntN(30) > 0 {
			return false
		}
		held++
		return true
	})
	throughRotations(t, w)
	if held < 100 {
		t.Errorf("%d items were held", held)
	}
}

func throughRotations(t *testing.T, w *site) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var clients []*envelope.Client
	for worker := range 3 {
		c := w.client(quick)
		clients = append(clients, c)
		table := w.open(c)
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := exercise(t.Context(), w, table, fmt.Sprintf("%d-%d", worker, i)); err != nil {
					t.Errorf("worker %d, row %d: %v", worker, i, err)
					return
				}
			}
		})
	}
	w.rotate("r1", kek.Normal)
	w.rotate("r2", kek.Emergency)
	cancel()
	wg.Wait()
	for _, c := range clients {
		if s := c.Stats(); s.OrphanedKeys != 0 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// exercise takes one row through its life. Every other row is kept.
func exercise(ctx context.Context, w *site, table *envelope.Table, id string) error {
	if err := table.Insert(ctx, row(id), []byte("1"+id)); err != nil {
		return err
	}
	for round := byte('2'); round < '5'; round++ {
		if err := table.Update(ctx, rowKey(id), func(r *envelope.Row) error {
			r.Plaintext[0] = round
			return nil
		}); err != nil {
			return err
		}
		got, err := table.Get(ctx, rowKey(id))
		if err != nil {
			return err
		}
		if want := string(round) + id; string(got.Plaintext) != want {
			return fmt.Errorf("read %q, wrote %q", got.Plaintext, want)
		}
	}
	if id[len(id)-1]%2 == 0 {
		return nil
	}
	_, err := w.dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &w.table, Key: rowKey(id)})
	return err
}

// TestLaterEpoch: a row that says it was wrapped in a later epoch than the writer
// knows is left alone, even if its version is the one read.
func TestLaterEpoch(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	i := w.item("a")
	i["kek_epoch"] = &n{Value: "2"}
	err := table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		w.put(i)
		r.Plaintext = []byte("y")
		return nil
	})
	if !errors.Is(err, envelope.ErrFenced) {
		t.Errorf("%v", err)
	}
	if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
}

// TestOldRows: rows from before this project have neither an epoch nor a version.
func TestOldRows(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	i := w.item("a")
	delete(i, "kek_epoch")
	delete(i, "version")
	w.put(i)
	w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		r.Plaintext = append(r.Plaintext, 'y')
		return nil
	}))
	got, err := table.Get(t.Context(), rowKey("a"))
	if err != nil || string(got.Plaintext) != "xy" || got.Version != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if w.item("a")["kek_epoch"] == nil {
		t.Error("the update gave it no epoch")
	}
}

// TestReplacedBetween: the row is deleted and inserted again between an update's read
// and its write. The new row is another one, and what the update read of the old one
// must not get into it, whatever the version says.
func TestReplacedBetween(t *testing.T) {
	for _, version := range []string{"", "version"} {
		t.Run("version attribute "+version, func(t *testing.T) {
			w := newSite(t)
			keys := []ddbtest.Key{{Name: "id", Type: "S"}}
			cfg := boundToKey(keys...)
			cfg.Version = version
			table := w.keyed(cfg, keys...)
			w.must("insert", table.Insert(t.Context(), rowKey("a"), []byte("old")))
			tries := 0
			w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
				if tries++; tries == 1 {
					_, err := w.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &w.table, Key: rowKey("a")})
					w.must("delete", err)
					w.must("insert", table.Insert(t.Context(), rowKey("a"), []byte("new")))
				}
				r.Plaintext = append(r.Plaintext, '!')
				return nil
			}))
			if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "new!" || tries != 2 {
				t.Errorf("%q after %d tries, %v", got.Plaintext, tries, err)
			}
			err := table.Update(t.Context(), rowKey("a"), func(*envelope.Row) error {
				_, err := w.dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &w.table, Key: rowKey("a")})
				return err
			})
			if !errors.Is(err, envelope.ErrNotFound) || len(w.all()) != 0 {
				t.Errorf("a row that is deleted between: %v, then %v", err, w.all())
			}
		})
	}
}

// TestOwnVersion: without a version attribute none is written or read, and one of the
// application's that happens to be called version stays as it is.
func TestOwnVersion(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}}
	table := w.keyed(boundToKey(keys...), keys...)
	for _, v := range []types.AttributeValue{nil, &n{Value: "7"}, &s{Value: "1.2-beta"}, &types.AttributeValueMemberBOOL{Value: true}} {
		want := rowKey(fmt.Sprintf("%T", v))
		if v != nil {
			want["version"] = v
		}
		w.must("insert", table.Insert(t.Context(), want, []byte("x")))
		w.must("update", table.Update(t.Context(), want, func(r *envelope.Row) error {
			r.Plaintext = []byte("y")
			return nil
		}))
		got, err := table.Get(t.Context(), want)
		if d := cmp.Diff(envelope.Row{Item: want, Plaintext: []byte("y")}, got, ignoreAll); d != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
		w.must("put", table.Put(t.Context(), want, []byte("z")))
		if got, err = table.Get(t.Context(), want); err != nil || got.Version != 0 || !cmp.Equal(want, got.Item, ignoreAll) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// TestVersionCounts: a configured version counts every write, one that comes between
// an update's read and its write too.
func TestVersionCounts(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	tries := 0
	w.must("update", table.Update(t.Context(), rowKey("a"), func(*envelope.Row) error {
		if tries++; tries == 1 { // as a rewrap does, which leaves the payload
			i := w.item("a")
			i["version"] = &n{Value: "2"}
			w.put(i)
		}
		return nil
	}))
	if got, err := table.Get(t.Context(), rowKey("a")); err != nil || got.Version != 3 || tries != 1 {
		t.Errorf("version %d after %d tries, %v", got.Version, tries, err)
	}
}

// TestBind: rows share an encryption context and so a data key, and yet a payload does
// not open in another row.
func TestBind(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}, {Name: "at", Type: "N"}}
	cfg := boundToKey(keys...)
	cfg.Bind["fixed"], cfg.Bind["dollar"] = "literal", "$$tenant"
	table := w.keyed(cfg, keys...)
	var rows []envelope.Row
	for i := range 20 {
		key := item{"id": &s{Value: name(i % 4)}, "at": &n{Value: fmt.Sprint(i)}}
		rows = append(rows, envelope.Row{Item: key, Plaintext: []byte(name(i))})
	}
	w.must("insert", table.InsertAll(t.Context(), rows[:10]))
	for _, r := range rows[10:] {
		w.must("insert", table.Insert(t.Context(), r.Item, r.Plaintext))
	}
	w.must("update", table.Update(t.Context(), rows[3].Item, func(r *envelope.Row) error {
		r.Item["note"] = &s{Value: "x"}
		return nil
	}))
	reader := w.client(slow)
	fresh, err := reader.Table(t.Context(), table.Config())
	w.must("table", err)
	for i, r := range rows {
		if got, err := fresh.Get(t.Context(), r.Item); err != nil || string(got.Plaintext) != name(i) {
			t.Errorf("%s: %q, %v", name(i), got.Plaintext, err)
		}
	}
	if g, d := w.keys.count("GenerateDataKey"), w.keys.count("Decrypt"); g != 1 || d != 2 { // each client unwraps it once
		t.Errorf("%d data keys made and %d unwrapped", g, d)
	}
	items := w.all()
	for _, i := range items {
		want := map[string]string{
			"table": "orders", "id": i["id"].(*s).Value, "at": i["at"].(*n).Value, "fixed": "literal", "dollar": "$tenant",
		}
		dek, err := w.keys.KMS.Decrypt(t.Context(), "kek-0001", i["wrapped_dek"].(*b).Value, map[string]string{"table": "orders"})
		w.must("decrypt", err)
		if _, err := (aead.Cipher{}).Open(dek, i["ciphertext"].(*b).Value, want); err != nil {
			t.Errorf("%v: its payload is not bound to %v: %v", i["id"], want, err)
		}
	}
	moved := maps.Clone(items[0])
	moved["at"] = &n{Value: "99"}
	w.put(moved)
	if _, err := fresh.Get(t.Context(), moved); !errors.Is(err, envelope.ErrAltered) {
		t.Errorf("a payload opens in another row: %v", err)
	}
}

// TestBindUpdate: an attribute that is bound may change by an update, which seals with
// the new value.
func TestBindUpdate(t *testing.T) {
	w := newSite(t)
	keys := []ddbtest.Key{{Name: "id", Type: "S"}}
	cfg := boundToKey(keys...)
	cfg.Bind["size"] = "$size"
	table := w.keyed(cfg, keys...)
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		r.Item["size"] = &n{Value: "2.5"}
		return nil
	}))
	if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
	for name, v := range map[string]types.AttributeValue{
		"gone": nil, "another type": &b{Value: []byte("2")}, "normalised": &n{Value: "2.50"},
	} {
		w.unchanged(name, envelope.ErrInvalidItem, `"size"`, func() error {
			return table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
				if r.Item["size"] = v; v == nil {
					delete(r.Item, "size")
				}
				return nil
			})
		})
	}
}

// TestLargePayload: an update sends the old payload, as its condition, and the new one.
func TestLargePayload(t *testing.T) {
	w := newSite(t)
	table := w.open(w.client())
	large := make([]byte, 390<<10)
	w.must("insert", table.Insert(t.Context(), row("a"), large))
	w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		r.Plaintext[0] = 1
		return nil
	}))
	if got, err := table.Get(t.Context(), rowKey("a")); err != nil || len(got.Plaintext) != len(large) || got.Plaintext[0] != 1 {
		t.Errorf("%d bytes, %v", len(got.Plaintext), err)
	}
}

// TestMark: before an application can write envelopes into a table, the control table
// says so, under the table's name.
func TestMark(t *testing.T) {
	w := newSite(t)
	now := time.Date(2026, 5, 6, 7, 8, 9, 120_000_000, time.FixedZone("CEST", 7200))
	refuse := &refusing{dynamoDB: w.dynamo}
	c := w.client(slow, func(c *envelope.Config) {
		c.Now, c.Holder, c.DynamoDB = func() time.Time { return now }, "me", refuse
	})
	cfg := tableConfig(sourceConfig(w.table))
	cfg.Table, cfg.Keys = "arn:aws:dynamodb:eu-central-1:000000000000:table/orders", []string{"id"}
	refuse.err = errLost
	if _, err := c.Table(t.Context(), cfg); !errors.Is(err, errLost) {
		t.Errorf("a table whose mark cannot be left: %v", err)
	}
	refuse.err = nil
	for range 2 {
		_, err := c.Table(t.Context(), cfg)
		w.must("table", err)
	}
	out, err := w.dynamo.Query(t.Context(), &dynamodb.QueryInput{
		TableName: &w.control, KeyConditionExpression: aws.String("pk = :pk"), ExpressionAttributeValues: item{":pk": &s{Value: "MARK"}},
	})
	w.must("Query", err)
	want := []item{{"pk": &s{Value: "MARK"}, "sk": &s{Value: "orders"}, "holder": &s{Value: "me"}, "seen_at": &s{Value: "2026-05-06T05:08:09.120Z"}}}
	if d := cmp.Diff(want, out.Items, ignoreAll); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// refusing answers with err to what is put.
type refusing struct {
	dynamoDB
	err error
}

func (r *refusing) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.dynamoDB.PutItem(ctx, in, o...)
}
