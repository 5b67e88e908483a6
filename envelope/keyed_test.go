package envelope_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/membucket"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// copies is the audit bucket, as far as copies of records go.
type copies struct {
	mu      sync.Mutex
	objects map[string][]byte
	fail    error  // of every PUT, if not nil
	onPut   func() // after a PUT took effect
}

func (c *copies) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return nil, c.fail
	}
	if err := c.put(in, body); err != nil {
		return nil, err
	}
	if c.onPut != nil {
		c.onPut()
	}
	return &s3.PutObjectOutput{}, nil
}

// put keeps an object; the caller holds mu.
func (c *copies) put(in *s3.PutObjectInput, body []byte) error {
	if _, ok := c.objects[*in.Key]; ok && aws.ToString(in.IfNoneMatch) == "*" {
		return &smithy.GenericAPIError{Code: "PreconditionFailed"}
	}
	c.objects[*in.Key] = body
	return nil
}

// readable is the bucket as a rotation has it, whose writes never fail.
type readable struct{ *copies }

func (r readable) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &s3.PutObjectOutput{}, r.put(in, body)
}

func (r readable) copy() *membucket.Bucket {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := membucket.New()
	for key, body := range r.objects {
		b.Plant(key, body)
	}
	return b
}

func (r readable) GetObject(ctx context.Context, in *s3.GetObjectInput, _ ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	return r.copy().GetObject(ctx, in)
}

func (r readable) ListObjectsV2(ctx context.Context, in *s3.ListObjectsV2Input, _ ...func(*s3.Options)) (*s3.ListObjectsV2Output, error) {
	return r.copy().ListObjectsV2(ctx, in)
}

// keyedSite is a deployment with a key table, whose own table has keyed rows.
type keyedSite struct {
	*site
	keyTable string
	bucket   *copies
}

func keyedDefinition(c *dynamosource.Config) {
	c.Envelope, c.DEKID, c.KEKID, c.WrappedDEK, c.Context = "keyed", "dek.id", "", "", map[string]string{"table": "orders"}
}

// mixedDefinition is a keyed table in which embedded rows are left.
func mixedDefinition(c *dynamosource.Config) {
	c.KEKID, c.WrappedDEK = "key", "wrapped.dek"
}

func newKeyedSite(tb testing.TB, dynamo dynamoDB, change ...func(*dynamosource.Config)) *keyedSite {
	tb.Helper()
	w := &keyedSite{site: newSiteBeforeGenesis(tb, dynamo, append([]func(*dynamosource.Config){keyedDefinition}, change...)...), bucket: &copies{objects: map[string][]byte{}}}
	w.keyTable = ddbtest.Table(tb, dynamo, ddbtest.Key{Name: "pk", Type: ddbtypes.ScalarAttributeTypeS})
	w.steps.Keys.Random = func(b []byte) { _, _ = rand.Read(b) } // an emergency draws ids
	tables := w.steps.OpenSource
	w.steps.OpenSource = func(def kek.Source) (source.Driver, error) {
		if def.Kind == deks.KindName {
			return deks.Open(dynamo, readable{w.bucket}, deks.Places{ControlTable: w.control, Bucket: "audit"}, def)
		}
		return tables(def)
	}
	w.genesis(tb, deks.Config{Table: w.keyTable}.Source())
	w.fence(w.pointer().KEKID, controltable.Open)
	return w
}

// fence puts every shard of the fence for records of a KEK.
func (w *keyedSite) fence(id kek.ID, state string) {
	w.t.Helper()
	for shard := range shards {
		_, err := w.dynamo.PutItem(w.t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: controltable.EncodeFence(keyrecord.PKFence, id, shard, state)})
		w.must("fence", err)
	}
}

func (w *keyedSite) client(change ...func(*envelope.Config)) *envelope.Client {
	w.t.Helper()
	keys := func(c *envelope.Config) {
		c.Keys = &envelope.KeyTable{Table: w.keyTable, Bucket: "audit", S3: w.bucket}
	}
	return w.site.client(append([]func(*envelope.Config){keys}, change...)...)
}

// records reads the whole key table.
func (w *keyedSite) records() map[string]keyrecord.Record {
	w.t.Helper()
	out, err := w.dynamo.Scan(w.t.Context(), &dynamodb.ScanInput{TableName: &w.keyTable, ConsistentRead: aws.Bool(true), Segment: aws.Int32(0), TotalSegments: aws.Int32(1), Limit: aws.Int32(1000)})
	w.must("scan", err)
	all := map[string]keyrecord.Record{}
	for _, i := range out.Items {
		r, err := keyrecord.Decode(i)
		w.must("decode", err)
		all[r.DEKID] = r
	}
	return all
}

func (w *keyedSite) putRecord(r keyrecord.Record) {
	w.t.Helper()
	_, err := w.dynamo.PutItem(w.t.Context(), &dynamodb.PutItemInput{TableName: &w.keyTable, Item: keyrecord.Encode(r)})
	w.must("put a record", err)
}

func (w *keyedSite) dropRecord(id string) {
	w.t.Helper()
	_, err := w.dynamo.DeleteItem(w.t.Context(), &dynamodb.DeleteItemInput{TableName: &w.keyTable, Key: keyrecord.Key(id)})
	w.must("delete a record", err)
}

// rewrapRecords brings every record under a KEK, as a rotation does after it has sealed the
// fence for records of the others.
func (w *keyedSite) rewrapRecords(p kek.Pointer) {
	w.t.Helper()
	for _, old := range w.records() {
		if old.KEKID == p.KEKID {
			continue
		}
		with := old
		with.KEKID, with.KEKEpoch = p.KEKID, p.Epoch
		var err error
		with.WrappedDEK, err = w.keys.ReEncrypt(w.t.Context(), old.KEKID, p.KEKID, old.WrappedDEK, keyrecord.EncryptionContext(old))
		w.must("rewrap", err)
		w.must("copy", keyrecord.PutCopy(w.t.Context(), w.bucket, "audit", with))
		_, err = w.dynamo.UpdateItem(w.t.Context(), keyrecord.RewrapUpdate(w.keyTable, old, with))
		w.must("rewrap", err)
	}
}

// begin takes a rotation up to the switch, and opens the new KEK's fence for records.
func (w *keyedSite) begin(id string, mode kek.Mode) {
	w.t.Helper()
	w.site.begin(id, mode)
	w.fence(w.pointer().KEKID, controltable.Open)
}

// rotate is a whole rotation. Every lease must have ended by itself or run out.
func (w *keyedSite) rotate(id string, mode kek.Mode) {
	w.t.Helper()
	old := w.pointer().KEKID
	w.begin(id, mode)
	w.revoke(old)
	w.drain(id)
	w.fence(old, controltable.Sealed)
	w.rewrapRecords(w.pointer())
	w.finish(id)
}

// revoke removes the leases on a KEK, as if their time had run out.
func (w *keyedSite) revoke(id kek.ID) {
	w.t.Helper()
	for _, l := range w.leases(id) {
		_, err := w.dynamo.DeleteItem(w.t.Context(), &dynamodb.DeleteItemInput{
			TableName: &w.control, Key: controltable.Key(controltable.LeasePK(id), l.Holder),
		})
		w.must("revoke", err)
	}
}

// stored returns what a keyed row names, and its epoch.
func (w *keyedSite) stored(id string) (dekID, epoch string) {
	w.t.Helper()
	i := w.item(id)
	name, ok := i["dek.id"].(*s)
	born, ok2 := i["kek_epoch"].(*n)
	if !ok || !ok2 || i["key"] != nil || i["wrapped.dek"] != nil {
		w.t.Fatalf("row %s is not a keyed one: %v", id, i)
	}
	return name.Value, born.Value
}

// dynamos are the DynamoDB in memory, and it and dynoxide together.
var dynamos = map[string]func(t *testing.T) dynamoDB{
	"memory": func(*testing.T) dynamoDB { return memddb.New() },
	"twin": func(t *testing.T) dynamoDB {
		t.Helper()
		return ddbtest.NewTwin(t)
	},
}

// TestKeyedLife: rows of a keyed table are inserted, read, updated and put as those of any
// other; they share one data key, which has a record and a copy of it.
func TestKeyedLife(t *testing.T) {
	for name, connect := range dynamos {
		t.Run(name, func(t *testing.T) {
			dynamo := connect(t)
			w := newKeyedSite(t, dynamo)
			table := w.open(w.client(slow))
			w.must("insert", table.Insert(t.Context(), row("a"), []byte("one")))
			w.must("insert all", table.InsertAll(t.Context(), []envelope.Row{{Item: row("b"), Plaintext: []byte("two")}, {Item: row("c"), Plaintext: nil}}))
			w.must("put", table.Put(t.Context(), row("d"), []byte("four")))
			w.must("put again", table.Put(t.Context(), row("d"), []byte("five")))
			w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
				r.Plaintext = append(r.Plaintext, " and more"...)
				r.Item["note"] = &s{Value: "new"}
				delete(r.Item, "size")
				return nil
			}))
			for _, again := range []func() error{
				func() error { return table.Insert(t.Context(), row("a"), []byte("x")) },
				func() error {
					return table.InsertAll(t.Context(), []envelope.Row{{Item: row("new"), Plaintext: nil}, {Item: row("b"), Plaintext: nil}})
				},
			} {
				if err := again(); !errors.Is(err, envelope.ErrExists) {
					t.Errorf("insert of a row that exists: %v", err)
				}
			}
			if err := table.Update(t.Context(), rowKey("new"), func(*envelope.Row) error { return nil }); !errors.Is(err, envelope.ErrNotFound) {
				t.Errorf("update of a row that does not exist: %v", err)
			}
			other := w.open(w.client(slow)) // a process without the data key
			for id, want := range map[string]struct {
				plain   string
				version int64
			}{"a": {"one and more", 2}, "b": {"two", 1}, "c": {"", 1}, "d": {"five", 2}} {
				for range 2 {
					got, err := other.Get(t.Context(), rowKey(id))
					if err != nil || string(got.Plaintext) != want.plain || got.Version != want.version || got.Item["dek.id"] != nil || got.Item["data"] != nil {
						t.Errorf("%s: %+v, %v", id, got, err)
					}
				}
			}
			if got, err := table.Get(t.Context(), rowKey("a")); err != nil || got.Item["size"] != nil || got.Item["note"] == nil {
				t.Errorf("%+v, %v", got, err)
			}
			records := w.records()
			if n, m := w.keys.count("GenerateDataKey"), w.keys.count("Decrypt"); n != 1 || m != 2 || len(records) != 1 {
				t.Errorf("%d data keys made, %d unwrapped, %d records", n, m, len(records))
			}
			for id, r := range records {
				p := w.pointer()
				if r.KEKID != p.KEKID || r.KEKEpoch != p.Epoch || r.BornEpoch != p.Epoch || !cmp.Equal(r.Context, map[string]string{"table": "orders"}) || time.Since(r.CreatedAt) > time.Minute {
					t.Errorf("record %+v", r)
				}
				if dek, epoch := w.stored("a"); dek != id || epoch != fmt.Sprint(p.Epoch) {
					t.Errorf("the row names %s of epoch %s", dek, epoch)
				}
				copied, err := keyrecord.DecodeCopy(keyrecord.CopyKey(r), w.bucket.objects[keyrecord.CopyKey(r)])
				if d := cmp.Diff(r, copied); d != "" || err != nil || len(w.bucket.objects) != 1 {
					t.Errorf("copy: %v (-record +copy):\n%s", err, d)
				}
			}
		})
	}
}

// TestKeyedWrites: what is refused of embedded rows is refused of keyed ones, and concurrent
// updates are all made.
func TestKeyedWrites(t *testing.T) {
	for name, connect := range dynamos {
		t.Run(name, func(t *testing.T) {
			dynamo := connect(t)
			w := newKeyedSite(t, dynamo)
			table := w.open(w.client(slow))
			bad := row("a")
			bad["dek.id"] = &s{Value: "x"}
			for name, i := range map[string]item{
				"an attribute of ours": bad, "no key": {"tenant": &s{Value: "acme"}}, "not UTF-8": {"id": &s{Value: "a"}, "x": &s{Value: "\xff"}},
			} {
				if err := table.Insert(t.Context(), i, nil); !errors.Is(err, envelope.ErrInvalidItem) {
					t.Errorf("%s: %v", name, err)
				}
			}
			w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
			err := table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Item["id"] = &s{Value: "b"}; return nil })
			if !errors.Is(err, envelope.ErrKeyChanged) {
				t.Errorf("%v", err)
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					err := table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil })
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x++++++++" || got.Version != 9 {
				t.Errorf("%q, %v", got.Plaintext, err)
			}
		})
	}
}

// TestKeyedRotation: a rotation writes no keyed row, and each opens after it. A writer that
// stood still during the rotation writes under the data key that it has: its rows open too.
func TestKeyedRotation(t *testing.T) {
	for name, connect := range dynamos {
		t.Run(name, func(t *testing.T) {
			dynamo := connect(t)
			w := newKeyedSite(t, dynamo)
			late := w.open(w.client(slow))
			w.must("insert", late.Insert(t.Context(), row("a"), []byte("before")))
			before := w.item("a")
			w.rotate("r1", kek.Normal)
			if d := cmp.Diff(before, w.item("a"), ignoreSDK); d != "" {
				t.Errorf("the rotation wrote a row (-before +after):\n%s", d)
			}
			w.must("late insert", late.Insert(t.Context(), row("b"), []byte("late")))
			w.must("late update", late.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = []byte("late too"); return nil }))
			fresh := w.open(w.client(slow))
			for id, want := range map[string]string{"a": "late too", "b": "late"} {
				if got, err := fresh.Get(t.Context(), rowKey(id)); err != nil || string(got.Plaintext) != want {
					t.Errorf("%s: %q, %v", id, got.Plaintext, err)
				}
			}
			if n := w.keys.count("GenerateDataKey"); n != 1 {
				t.Errorf("%d data keys", n)
			}
			// A new data key belongs to the new epoch. The late writer's old one is refused for a row
			// that is under it, and the writer makes a new one (rule 7).
			w.must("update", fresh.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = []byte("new"); return nil }))
			if _, epoch := w.stored("a"); epoch != "2" {
				t.Errorf("epoch %s", epoch)
			}
			w.must("late update", late.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, "er"...); return nil }))
			if _, epoch := w.stored("a"); epoch != "2" {
				t.Errorf("after the late update: epoch %s", epoch)
			}
			if got, err := fresh.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "newer" {
				t.Errorf("%q, %v", got.Plaintext, err)
			}
		})
	}
}

// TestLateKeyedUpdate: a row that has come under a data key of a later epoch since it was read
// does not go back under one of an earlier epoch.
func TestLateKeyedUpdate(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	late := w.open(w.client(slow))
	w.must("insert", late.Insert(t.Context(), row("a"), []byte("before")))
	calls := 0
	w.must("late update", late.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		if calls++; calls == 1 {
			w.rotate("r1", kek.Emergency)
			// As the emergency's walk does: the same plaintext under a data key of the new epoch.
			w.must("re-encrypt", w.open(w.client(slow)).Update(t.Context(), rowKey("a"), func(*envelope.Row) error { return nil }))
		}
		r.Plaintext = append(r.Plaintext, " and after"...)
		return nil
	}))
	if _, epoch := w.stored("a"); epoch != "2" || calls != 2 {
		t.Errorf("epoch %s after %d calls", epoch, calls)
	}
	if got, err := late.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "before and after" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
}

// TestEmergencyDropsKeys: a writer that sees the pointer of an emergency uses no data key of
// an earlier epoch; after a normal rotation it uses the one that it has until the next is made.
func TestEmergencyDropsKeys(t *testing.T) {
	for mode, drops := range map[kek.Mode]bool{kek.Normal: false, kek.Emergency: true} {
		w := newKeyedSite(t, memddb.New())
		c := w.client(quick)
		table := w.open(c)
		w.must("insert", table.Insert(t.Context(), row("a"), nil))
		first, _ := w.stored("a")
		w.bucket.mu.Lock()
		w.bucket.fail = errLost // no data key can be made
		w.bucket.mu.Unlock()
		w.begin("r1", mode)
		eventually(t, "the pointer is read", func() bool { r, err := c.Begin(t.Context()); defer r.End(); return err == nil && r.Epoch() == 2 })
		err := table.Insert(t.Context(), row("b"), nil)
		if drops != errors.Is(err, errLost) || !drops && err != nil {
			t.Errorf("%s: %v", mode, err)
		}
		w.bucket.mu.Lock()
		w.bucket.fail = nil
		w.bucket.mu.Unlock()
		eventually(t, "a data key of the new epoch", func() bool {
			id := fmt.Sprintf("later-%d", time.Now().UnixNano())
			w.must("insert", table.Insert(t.Context(), row(id), nil))
			dek, epoch := w.stored(id)
			return dek != first && epoch == "2"
		})
	}
}

// TestCreationOrder: the copy is in the bucket before the record exists, and the record before
// a row names it. Whatever fails, what comes after it is not there.
func TestCreationOrder(t *testing.T) {
	f := &failingDB{DB: memddb.New()}
	w := newKeyedSite(t, f)
	table := w.open(w.client(slow))
	w.bucket.onPut = func() {
		if n := len(w.records()); n != 0 {
			t.Errorf("%d records before the copy", n)
		}
	}
	w.bucket.fail = errLost
	if err := table.Insert(t.Context(), row("a"), nil); !errors.Is(err, errLost) || len(w.records()) != 0 || w.item("a") != nil {
		t.Errorf("%v, %d records, row %v", err, len(w.records()), w.item("a"))
	}
	w.bucket.fail = nil
	f.begin(1) // the transaction
	if err := table.Insert(t.Context(), row("a"), nil); !errors.Is(err, errLost) {
		t.Errorf("%v after %q", err, f.ops)
	}
	f.begin(0)
	if len(w.bucket.objects) != 1 || len(w.records()) != 0 || w.item("a") != nil {
		t.Errorf("%d copies, %d records, row %v", len(w.bucket.objects), len(w.records()), w.item("a"))
	}
	f.begin(2) // the row
	if err := table.Insert(t.Context(), row("a"), nil); !errors.Is(err, errLost) || !slices.Equal(f.ops, []string{"TransactWriteItems", "PutItem"}) {
		t.Errorf("%v after %q", err, f.ops)
	}
	f.begin(0)
	w.bucket.onPut = nil
	w.must("insert", table.Insert(t.Context(), row("a"), nil))
	if ops := []string{"PutItem"}; !slices.Equal(f.ops, ops) {
		t.Errorf("an insert with a data key at hand sends %q", f.ops)
	}
	if len(w.records()) != 1 {
		t.Errorf("%d records", len(w.records()))
	}
	c := w.client(slow)
	reader := w.open(c)
	dek, _ := w.stored("a")
	for round, ops := range [][]string{{"GetItem", "GetItem DEK#" + dek}, {"GetItem"}} { // the data key is cached
		f.begin(0)
		_, err := reader.Get(t.Context(), rowKey("a"))
		w.must("read", err)
		if !slices.Equal(f.ops, ops) || len(f.stale) > 0 {
			t.Errorf("read %d: %q, not consistent: %q", round, f.ops, f.stale)
		}
	}
	if s := c.Stats(); s.CacheMisses != 1 || s.CacheHits != 1 {
		t.Errorf("after two reads: %+v", s)
	}
	fresh := w.open(w.client(slow))
	f.begin(2)
	if _, err := fresh.Get(t.Context(), rowKey("a")); !errors.Is(err, errLost) || !strings.Contains(err.Error(), "dynamodb GetItem "+w.keyTable) {
		t.Errorf("the record is not read: %v", err)
	}
	f.begin(0)
}

// TestKeyedCounts: the client counts the data keys that needed KMS, and those that did not.
func TestKeyedCounts(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	c := w.client(slow)
	table := w.open(c)
	for n, id := range []string{"a", "b", "c"} {
		w.must("insert", table.Insert(t.Context(), row(id), nil))
		if s := c.Stats(); s.CacheMisses != 1 || s.CacheHits != int64(n) || s.RefusedWrites != 0 {
			t.Errorf("after %d inserts: %+v", n+1, s)
		}
	}
}

// TestKeyedAge: a data key is used for as long as its age allows, counted from when it was made.
func TestKeyedAge(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	var mu sync.Mutex
	now := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	advance := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
	table := w.open(w.client(slow, func(c *envelope.Config) {
		c.Keys.MaxAge = time.Hour
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		}
	}))
	under := func(id string) string {
		w.must("insert", table.Insert(t.Context(), row(id), nil))
		dek, _ := w.stored(id)
		return dek
	}
	advance(10 * time.Hour)
	first := under("a")
	if r := w.records()[first]; !r.CreatedAt.Equal(time.Date(2026, 4, 1, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("created at %s", r.CreatedAt)
	}
	advance(30 * time.Minute)
	if under("b") != first {
		t.Error("another data key after half an hour")
	}
	advance(30 * time.Minute)
	if under("c") == first {
		t.Error("the same data key after an hour")
	}
	for n, calls := range []int{1, 1, 2} { // for reading it is kept for five minutes
		if _, err := table.Get(t.Context(), rowKey("a")); err != nil || w.keys.count("Decrypt") != calls {
			t.Errorf("read %d: %v after %d calls", n, err, w.keys.count("Decrypt"))
		}
		advance(150 * time.Second)
	}
}

// TestRegistryUnreadable: a row whose record names a KEK that the registry cannot be asked about
// is not opened.
func TestRegistryUnreadable(t *testing.T) {
	f := &failingDB{DB: memddb.New()}
	w := newKeyedSite(t, f)
	reader := w.open(w.client(slow)) // it knows the first KEK
	w.rotate("r1", kek.Normal)
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("a"), []byte("x")))
	f.begin(3)
	_, err := reader.Get(t.Context(), rowKey("a"))
	if !errors.Is(err, errLost) || !strings.Contains(err.Error(), "KEK#kek-0002") {
		t.Errorf("%v after %q", err, f.ops)
	}
	f.begin(0)
	if got, err := reader.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
}

// TestLateCreation: a writer that stood still while its KEK was retired makes its first data
// key under the current one.
func TestLateCreation(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	late := w.open(w.client(slow))
	w.rotate("r1", kek.Normal)
	w.must("insert", late.Insert(t.Context(), row("a"), []byte("x")))
	if _, epoch := w.stored("a"); epoch != "2" || len(w.records()) != 1 {
		t.Errorf("epoch %s, %d records", epoch, len(w.records()))
	}
}

// TestRowAheadOfPointer: a row that says it is of a later epoch than the pointer is left alone:
// there is no data key that may take its place.
func TestRowAheadOfPointer(t *testing.T) {
	w := newKeyedSite(t, memddb.New(), mixedDefinition)
	table := w.open(w.client(slow))
	def := w.def
	def.Envelope = "embedded"
	embedded, err := w.client(slow).Table(t.Context(), tableConfig(def))
	w.must("table", err)
	w.must("insert", embedded.Insert(t.Context(), row("a"), []byte("x")))
	i := w.item("a")
	i["kek_epoch"] = &n{Value: "2"}
	w.put(i)
	err = table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = []byte("y"); return nil })
	if !errors.Is(err, envelope.ErrFenced) || len(w.records()) > 0 || !cmp.Equal(w.item("a"), i, ignoreSDK) {
		t.Errorf("%v, %d records, row %v", err, len(w.records()), w.item("a"))
	}
}

// TestEmptyContextValue: a row whose encryption context KMS would refuse is not written.
func TestEmptyContextValue(t *testing.T) {
	w := newKeyedSite(t, memddb.New(), func(c *dynamosource.Config) { c.Context = map[string]string{"tenant": "$tenant"} })
	i := row("a")
	i["tenant"] = &s{Value: ""}
	err := w.open(w.client(slow)).Insert(t.Context(), i, nil)
	if !errors.Is(err, envelope.ErrInvalidItem) || len(w.records()) > 0 || len(w.bucket.objects) > 0 || w.item("a") != nil {
		t.Errorf("%v, %d records, %d copies", err, len(w.records()), len(w.bucket.objects))
	}
}

// TestSealedFence: no record is created under a KEK whose fence for records is sealed. The
// writer follows the pointer; if that has not moved, it gives up.
func TestSealedFence(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	old := w.pointer().KEKID
	late, stuck := w.open(w.client(slow)), w.open(w.client(slow))
	w.fence(old, controltable.Sealed)
	if err := stuck.Insert(t.Context(), row("a"), nil); !errors.Is(err, envelope.ErrFenced) || len(w.records()) > 0 || w.item("a") != nil {
		t.Errorf("%v, records %v", err, w.records())
	}
	w.begin("r1", kek.Normal)
	w.must("insert", late.Insert(t.Context(), row("a"), nil))
	for _, r := range w.records() {
		if r.KEKID == old || r.BornEpoch != 2 {
			t.Errorf("record %+v", r)
		}
	}
}

// TestBusyRecordFence: a creation that only another transaction's check of its shard is in
// the way of asks another shard at once.
func TestBusyRecordFence(t *testing.T) {
	db := memddb.New()
	w := newKeyedSite(t, db)
	var asked []string
	db.Hold(func(_ string, key memddb.Item) bool {
		pk, _ := key["pk"].(*s)
		if pk == nil || !strings.HasPrefix(pk.Value, "DEKFENCE#") {
			return false
		}
		asked = append(asked, key["sk"].(*s).Value)
		return len(asked) < shards
	})
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("a"), nil))
	if len(asked) != shards || asked[0] == asked[1] || asked[1] == asked[2] || w.keys.count("GenerateDataKey") != 1 {
		t.Errorf("shards %q, %d data keys", asked, w.keys.count("GenerateDataKey"))
	}
}

// TestStaleRecord: a rotation rewraps the record and disables the old KEK after a reader has
// read the record. The reader reads again and opens the row.
func TestStaleRecord(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("a"), []byte("x")))
	rotations := 0
	reader := w.open(w.client(slow, func(c *envelope.Config) {
		c.KMS = beforeDecrypt{w.keys, func() {
			if rotations++; rotations <= 2 {
				w.rotate(fmt.Sprintf("r%d", rotations), kek.Normal)
			}
		}}
	}))
	got, err := reader.Get(t.Context(), rowKey("a"))
	if err != nil || string(got.Plaintext) != "x" || rotations != 3 {
		t.Errorf("%q, %v after %d calls", got.Plaintext, err, rotations)
	}
}

// beforeDecrypt calls a function before each Decrypt.
type beforeDecrypt struct {
	envelope.KMS
	f func()
}

func (k beforeDecrypt) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.f()
	return k.KMS.Decrypt(ctx, in, o...)
}

// TestUnknownDEK: a row whose data key has no record is an orphan, and says so; one that was
// read before it came under another data key is read again.
func TestUnknownDEK(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	table := w.open(w.client(slow))
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	old := w.item("a")
	dek, _ := w.stored("a")
	lost := w.records()[dek]
	w.must("update", w.open(w.client(slow)).Update(t.Context(), rowKey("a"), func(*envelope.Row) error { return nil }))
	w.dropRecord(dek)
	c := w.client(slow)
	reader := w.open(c)
	if got, err := reader.Open(t.Context(), old); err != nil || string(got.Plaintext) != "x" || c.Stats().OrphanedKeys != 0 {
		t.Errorf("%q, %v, %d orphans", got.Plaintext, err, c.Stats().OrphanedKeys)
	}
	w.put(old)
	_, err := reader.Get(t.Context(), rowKey("a"))
	if !errors.Is(err, envelope.ErrUnknownDEK) || !errors.Is(err, envelope.ErrOrphanedKey) || !strings.Contains(err.Error(), dek) || c.Stats().OrphanedKeys != 1 {
		t.Errorf("%v, %d orphans", err, c.Stats().OrphanedKeys)
	}
	w.putRecord(lost) // as the doctor does
	if got, err := reader.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
	w.rotate("r1", kek.Normal)
	w.putRecord(lost) // an older state is restored: its KEK is retired
	c = w.client(slow)
	if _, err := w.open(c).Get(t.Context(), rowKey("a")); !errors.Is(err, envelope.ErrOrphanedKey) || errors.Is(err, envelope.ErrUnknownDEK) || c.Stats().OrphanedKeys != 1 {
		t.Errorf("%v, %d orphans", err, c.Stats().OrphanedKeys)
	}
	w.keys.Enable(lost.KEKID) // a person does
	if got, err := w.open(c).Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x" || c.Stats().OrphanedKeys != 2 {
		t.Errorf("%q, %v, %d orphans", got.Plaintext, err, c.Stats().OrphanedKeys)
	}
}

// TestForgedRecords: a record that somebody altered, copied or made does not open a row, and
// KMS is not asked for a key that the registry does not know.
func TestForgedRecords(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("a"), []byte("x")))
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("b"), []byte("y")))
	a, _ := w.stored("a")
	b, _ := w.stored("b")
	good, other := w.records()[a], w.records()[b]
	theirs, err := w.keys.Create(t.Context(), "attacker", 1, "", keyring.Key{})
	w.must("create", err)
	for name, c := range map[string]struct {
		change func(*keyrecord.Record)
		want   error
		asks   bool
	}{
		"another's wrapping":   {func(r *keyrecord.Record) { r.WrappedDEK = other.WrappedDEK }, envelope.ErrContextMismatch, true},
		"born later":           {func(r *keyrecord.Record) { r.BornEpoch, r.KEKEpoch = 2, 2 }, envelope.ErrContextMismatch, true},
		"of another context":   {func(r *keyrecord.Record) { r.Context = map[string]string{"table": "invoices"} }, envelope.ErrContextMismatch, true},
		"under a foreign KEK":  {func(r *keyrecord.Record) { r.KEKID = theirs.ID }, envelope.ErrUnknownKEK, false},
		"under an unknown KEK": {func(r *keyrecord.Record) { r.KEKID = "kek-9999" }, envelope.ErrUnknownKEK, false},
	} {
		forged := good
		c.change(&forged)
		w.putRecord(forged)
		asked := w.keys.count("Decrypt")
		got, err := w.open(w.client(slow)).Get(t.Context(), rowKey("a"))
		if !errors.Is(err, c.want) || got.Plaintext != nil || (w.keys.count("Decrypt") > asked) != c.asks {
			t.Errorf("%s: %q, %v, want %v; KMS asked %d times", name, got.Plaintext, err, c.want, w.keys.count("Decrypt")-asked)
		}
	}
	damaged := keyrecord.Encode(good)
	delete(damaged, "born_epoch")
	_, err = w.dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &w.keyTable, Item: damaged})
	w.must("put", err)
	if _, err := w.open(w.client(slow)).Get(t.Context(), rowKey("a")); !errors.Is(err, envelope.ErrBadRecord) || !strings.Contains(err.Error(), "born_epoch") {
		t.Errorf("damaged: %v", err)
	}
}

// TestMovedRows: a keyed payload opens in its own row alone, under its own data key, epoch
// and context.
func TestMovedRows(t *testing.T) {
	everyBind := func(c *dynamosource.Config) {
		c.Context, c.Bind = map[string]string{"tenant": "$tenant"}, map[string]string{"size": "$size"}
	}
	w := newKeyedSite(t, memddb.New(), everyBind)
	writer := w.open(w.client(slow))
	other := row("b")
	other["tenant"] = &s{Value: "globex"}
	w.must("insert", writer.Insert(t.Context(), row("a"), []byte("x")))
	w.must("insert", writer.Insert(t.Context(), other, []byte("y")))
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("c"), []byte("z")))
	if n := len(w.records()); n != 3 {
		t.Fatalf("%d records", n)
	}
	good := w.item("a")
	for name, c := range map[string]struct {
		change func(item)
		want   error
	}{
		"as it was":                      {func(item) {}, nil},
		"payload of another row":         {func(i item) { i["data"] = w.item("b")["data"] }, envelope.ErrAltered},
		"payload and key of another":     {func(i item) { i["data"], i["dek.id"] = w.item("c")["data"], w.item("c")["dek.id"] }, envelope.ErrAltered},
		"another data key":               {func(i item) { i["dek.id"] = w.item("c")["dek.id"] }, envelope.ErrAltered},
		"another tenant's data key":      {func(i item) { i["dek.id"] = w.item("b")["dek.id"] }, envelope.ErrBadRecord},
		"all of another, tenant kept":    {func(i item) { i["data"], i["dek.id"] = w.item("b")["data"], w.item("b")["dek.id"] }, envelope.ErrBadRecord},
		"another tenant":                 {func(i item) { i["tenant"] = &s{Value: "globex"} }, envelope.ErrBadRecord},
		"another bound value":            {func(i item) { i["size"] = &n{Value: "2"} }, envelope.ErrAltered},
		"another epoch":                  {func(i item) { i["kek_epoch"] = &n{Value: "2"} }, envelope.ErrBadRecord},
		"no epoch":                       {func(i item) { delete(i, "kek_epoch") }, envelope.ErrNoEnvelope},
		"id of another form":             {func(i item) { i["dek.id"] = &s{Value: "dek-1"} }, envelope.ErrNoEnvelope},
		"id of another type":             {func(i item) { i["dek.id"] = &n{Value: "1"} }, envelope.ErrNoEnvelope},
		"no id":                          {func(i item) { delete(i, "dek.id") }, envelope.ErrNoEnvelope},
		"no payload":                     {func(i item) { delete(i, "data") }, envelope.ErrNoEnvelope},
		"a version that is not a number": {func(i item) { i["version"] = &s{Value: "1"} }, envelope.ErrNoEnvelope},
	} {
		i := maps.Clone(good)
		c.change(i)
		w.put(i)
		for _, c2 := range []*envelope.Table{writer, w.open(w.client(slow))} {
			got, err := c2.Get(t.Context(), rowKey("a"))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || err == nil && string(got.Plaintext) != "x" {
				t.Errorf("%s: %q, %v, want %v", name, got.Plaintext, err, c.want)
			}
		}
	}
}

// TestKeyedKeys: keys of every type are bound, numbers in the form in which DynamoDB returns
// them.
func TestKeyedKeys(t *testing.T) {
	w := newKeyedSite(t, ddbtest.NewTwin(t))
	cfg := tableConfig(w.def)
	cfg.Table = ddbtest.Table(t, w.dynamo, ddbtest.Key{Name: "b", Type: "B"}, ddbtest.Key{Name: "n", Type: "N"})
	cfg.Bind = nil
	table, err := w.client(slow).Table(t.Context(), cfg)
	w.must("table", err)
	key := item{"b": &b{Value: []byte{0, 0xff}}, "n": &n{Value: "-0.5"}}
	w.must("insert", table.Insert(t.Context(), key, []byte("x")))
	w.must("update", table.Update(t.Context(), item{"b": key["b"], "n": &n{Value: "-0.50"}}, func(r *envelope.Row) error { r.Plaintext = []byte("y"); return nil }))
	if got, err := table.Get(t.Context(), key); err != nil || string(got.Plaintext) != "y" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
	if err := table.Insert(t.Context(), item{"b": key["b"]}, nil); !errors.Is(err, envelope.ErrInvalidItem) {
		t.Errorf("half a key: %v", err)
	}
	for _, text := range []string{"1.0", "1e3", "+1"} {
		if err := table.Insert(t.Context(), item{"b": key["b"], "n": &n{Value: text}}, nil); !errors.Is(err, envelope.ErrInvalidItem) {
			t.Errorf("key %s: %v", text, err)
		}
	}
}

// TestMixedTable: a table in which rows of both kinds are. Both are read; a write makes a row
// one of the kind that the definition says.
func TestMixedTable(t *testing.T) {
	for name, connect := range dynamos {
		t.Run(name, func(t *testing.T) {
			dynamo := connect(t)
			w := newKeyedSite(t, dynamo, mixedDefinition)
			c := w.client(slow)
			keyed := w.open(c)
			def := w.def
			def.Envelope = "embedded"
			embedded, err := c.Table(t.Context(), tableConfig(def))
			w.must("table", err)
			w.must("insert", embedded.Insert(t.Context(), row("e"), []byte("embedded")))
			w.must("insert", keyed.Insert(t.Context(), row("k"), []byte("keyed")))
			if under(t, w.item("e")) != w.pointer().KEKID || w.item("e")["dek.id"] != nil {
				t.Errorf("%v", w.item("e"))
			}
			w.stored("k")
			for _, table := range []*envelope.Table{keyed, embedded} {
				for id, want := range map[string]string{"e": "embedded", "k": "keyed"} {
					if got, err := table.Get(t.Context(), rowKey(id)); err != nil || string(got.Plaintext) != want || got.Item["key"] != nil || got.Item["dek.id"] != nil {
						t.Errorf("%s: %+v, %v", id, got, err)
					}
				}
			}
			more := func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil }
			w.must("update", keyed.Update(t.Context(), rowKey("e"), more))
			w.stored("e")
			w.must("update", embedded.Update(t.Context(), rowKey("k"), more))
			if under(t, w.item("k")) != w.pointer().KEKID || w.item("k")["dek.id"] != nil {
				t.Errorf("%v", w.item("k"))
			}
			for id, want := range map[string]string{"e": "embedded+", "k": "keyed+"} {
				if got, err := keyed.Get(t.Context(), rowKey(id)); err != nil || string(got.Plaintext) != want || got.Version != 2 {
					t.Errorf("%s: %+v, %v", id, got, err)
				}
			}
			// A row that never had an epoch, as adopted ones: what makes it keyed needs no fence.
			i := w.item("k")
			delete(i, "kek_epoch")
			w.put(i)
			w.must("update", keyed.Update(t.Context(), rowKey("k"), more))
			w.stored("k")
		})
	}
}

// TestBackUnderSealedFence: an update that makes a keyed row embedded is fenced like an
// insert: a writer that was late brings no row under a KEK that is gone (rule 8).
func TestBackUnderSealedFence(t *testing.T) {
	w := newKeyedSite(t, memddb.New(), mixedDefinition)
	def := w.def
	def.Envelope = "embedded"
	w.must("insert", w.open(w.client(slow)).Insert(t.Context(), row("a"), []byte("x")))
	late, err := w.client(slow).Table(t.Context(), tableConfig(def))
	w.must("table", err)
	w.must("insert", late.Insert(t.Context(), row("b"), nil)) // it has a data key at hand
	w.rotate("r1", kek.Normal)
	w.must("update", late.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = []byte("y"); return nil }))
	if got := under(t, w.item("a")); got != w.pointer().KEKID {
		t.Errorf("the row is under %s", got)
	}
}

// TestEmbeddedOverKeyed: the update of a row that was embedded when it was read does not make
// it both kinds, even if its payload is the same (rule 8).
func TestEmbeddedOverKeyed(t *testing.T) {
	w := newKeyedSite(t, memddb.New(), mixedDefinition)
	def := w.def
	def.Envelope = "embedded"
	table, err := w.client(slow).Table(t.Context(), tableConfig(def))
	w.must("table", err)
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	before := w.item("a")
	calls := 0
	err = table.Update(t.Context(), rowKey("a"), func(*envelope.Row) error {
		if calls++; calls == 1 {
			i := w.item("a")
			i["dek.id"] = &s{Value: keyrecord.NewID([16]byte{1})}
			w.put(i)
			return nil
		}
		return errLost
	})
	if !errors.Is(err, envelope.ErrNoEnvelope) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if i := w.item("a"); !cmp.Equal(i["data"], before["data"], ignoreSDK) || i["dek.id"] == nil {
		t.Errorf("it was written: %v", i)
	}
}

// TestWritesForTransactions: rows of both kinds are written in a transaction of the
// caller's.
func TestWritesForTransactions(t *testing.T) {
	for envelopes, checks := range map[string]int{"keyed": 0, "embedded": 1} {
		w := newKeyedSite(t, ddbtest.NewTwin(t), mixedDefinition)
		def := w.def
		def.Envelope = envelopes
		table, err := w.client(slow).Table(t.Context(), tableConfig(def))
		w.must("table", err)
		send := func(writes []ddbtypes.TransactWriteItem, err error) error {
			w.must("writes", err)
			_, err = w.dynamo.TransactWriteItems(t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: writes})
			return err
		}
		inserts, err := table.InsertWrites(t.Context(), []envelope.Row{{Item: row("a"), Plaintext: []byte("x")}, {Item: row("b"), Plaintext: []byte("y")}})
		if len(inserts) != 2+checks {
			t.Errorf("%s: %d writes", envelopes, len(inserts))
		}
		w.must("insert", send(inserts, err))
		if err := send(inserts, nil); err == nil {
			t.Errorf("%s: the rows were inserted twice", envelopes)
		}
		updates, err := table.UpdateWrites(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil })
		if len(updates) != 1 {
			t.Errorf("%s: %d writes", envelopes, len(updates))
		}
		stale, serr := table.UpdateWrites(t.Context(), rowKey("a"), func(*envelope.Row) error { return nil })
		w.must("update", send(updates, err))
		if err := send(stale, serr); err == nil {
			t.Errorf("%s: a row was updated that had changed", envelopes)
		}
		if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != "x+" {
			t.Errorf("%s: %q, %v", envelopes, got.Plaintext, err)
		}
	}
}

// TestBounds: a data key seals as many records and bytes as its bounds allow, also for
// writers that wait for it at once, and no more.
func TestKeyBounds(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	for name, c := range map[string]struct {
		bound func(*envelope.KeyTable)
		size  int
		most  int
	}{
		"uses":  {func(k *envelope.KeyTable) { k.MaxUses = 3 }, 1, 3},
		"bytes": {func(k *envelope.KeyTable) { k.MaxBytes = 100 }, 40, 2},
		"large": {func(k *envelope.KeyTable) { k.MaxBytes = 10 }, 40, 1},
	} {
		table := w.open(w.client(slow, func(cfg *envelope.Config) { c.bound(cfg.Keys) }))
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := table.Insert(t.Context(), row(fmt.Sprintf("%s-%d", name, i)), make([]byte, c.size)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		used := map[string]int{}
		for i := range 20 {
			dek, _ := w.stored(fmt.Sprintf("%s-%d", name, i))
			used[dek]++
		}
		for dek, n := range used {
			if n > c.most {
				t.Errorf("%s: data key %s sealed %d records", name, dek, n)
			}
		}
		if len(used) > 20/c.most+2 {
			t.Errorf("%s: %d data keys", name, len(used))
		}
	}
}

// TestCacheOffKeyed: without a cache each record has a data key of its own.
func TestCacheOffKeyed(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	table := w.open(w.client(slow, func(c *envelope.Config) { c.Cache.Off = true }))
	for _, id := range []string{"a", "b"} {
		w.must("insert", table.Insert(t.Context(), row(id), []byte(id)))
		if got, err := table.Get(t.Context(), rowKey(id)); err != nil || string(got.Plaintext) != id {
			t.Errorf("%q, %v", got.Plaintext, err)
		}
	}
	if n := len(w.records()); n != 2 {
		t.Errorf("%d records", n)
	}
}

// TestKeyTableRequired: a table with keyed rows needs a key table, all of it.
func TestKeyTableRequired(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	_, err := w.site.client(slow).Table(t.Context(), tableConfig(w.def))
	if err == nil || !strings.Contains(err.Error(), "Config.Keys is required") {
		t.Error(err)
	}
	_, err = envelope.New(t.Context(), envelope.Config{ControlTable: w.control, DynamoDB: w.dynamo, KMS: w.keys, Keys: &envelope.KeyTable{}})
	for _, field := range []string{"Keys.Table", "Keys.Bucket", "Keys.S3"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%v does not name %s", err, field)
		}
	}
}

// TestKeyedDefinitionFaults: what the client refuses of a definition of keyed rows is what a
// rotation refuses too.
func TestKeyedDefinitionFaults(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	c := w.client(slow)
	for field, change := range map[string]func(*dynamosource.Config){
		"envelope":              func(d *dynamosource.Config) { d.Envelope = "Keyed" },
		"payloads":              func(d *dynamosource.Config) { d.Payloads = "opaque" },
		"format":                func(d *dynamosource.Config) { d.Format = "tink" },
		"wrapped_dek_attribute": func(d *dynamosource.Config) { d.WrappedDEK = "dek" },
		"ciphertext_attribute":  func(d *dynamosource.Config) { d.Ciphertext = "" },
		"dek_id_attribute":      func(d *dynamosource.Config) { d.DEKID = d.Ciphertext },
		"context":               func(d *dynamosource.Config) { d.Context = map[string]string{"matter:dek_id": "x"} },
		"bind":                  func(d *dynamosource.Config) { d.Bind = map[string]string{"matter:key:id": "$id"} },
	} {
		def := w.def
		change(&def)
		if err := def.Validate(); err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: the rotation says %v", field, err)
		}
		if _, err := c.Table(t.Context(), tableConfig(def)); err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s: the client says %v", field, err)
		}
	}
}

// TestKeyedAnswers: what the answer to a keyed insert says, and that a lost one is found.
func TestKeyedAnswers(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	puts := &puts{dynamoDB: w.dynamo}
	table := w.open(w.client(slow, func(c *envelope.Config) { c.DynamoDB = puts }))
	w.must("insert", table.Insert(t.Context(), row("first"), nil))
	puts.fault = &fault{apply: true}
	w.must("a repeated insert", table.Insert(t.Context(), row("a"), nil))
	puts.fault = &fault{answer: &ddbtypes.TransactionConflictException{}}
	w.must("an insert in the way of a transaction", table.Insert(t.Context(), row("b"), nil))
	puts.fault = &fault{answer: errLost}
	if err := table.Insert(t.Context(), row("c"), nil); !errors.Is(err, errLost) || w.item("c") != nil {
		t.Errorf("%v, %v", err, w.item("c"))
	}
}

// puts breaks PUTs of rows.
type puts struct {
	dynamoDB
	fault *fault
}

func (p *puts) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if in.Item["pk"] != nil { // of the control table
		return p.dynamoDB.PutItem(ctx, in, o...)
	}
	f := p.fault
	p.fault = nil
	return broken(f, func() (*dynamodb.PutItemOutput, error) { return p.dynamoDB.PutItem(ctx, in, o...) })
}

// TestRepeatedCreation: the answer to the transaction that stored a record is lost, and the
// SDK sends it again: the record is the client's own. One of another's is not used.
func TestRepeatedCreation(t *testing.T) {
	w := newKeyedSite(t, memddb.New())
	wire := &transactions{dynamoDB: w.dynamo}
	table := w.open(w.client(slow, func(c *envelope.Config) { c.DynamoDB = wire }))
	wire.fault = &fault{apply: true}
	w.must("insert", table.Insert(t.Context(), row("a"), nil))
	if dek, _ := w.stored("a"); len(w.records()) != 1 || w.records()[dek].DEKID == "" {
		t.Errorf("%d records", len(w.records()))
	}
	theirs := keyrecord.Record{}
	for _, r := range w.records() {
		theirs = r
	}
	theirs.WrappedDEK = bytes.ToUpper(theirs.WrappedDEK)
	e := &ddbtypes.TransactionCanceledException{CancellationReasons: []ddbtypes.CancellationReason{
		{Code: aws.String("ConditionalCheckFailed"), Item: keyrecord.Encode(theirs)}, {Code: aws.String("None")},
	}}
	wire.fault = &fault{answer: e}
	second := w.open(w.client(slow, func(c *envelope.Config) { c.DynamoDB = wire }))
	w.must("insert", second.Insert(t.Context(), row("b"), nil))
	if dek, _ := w.stored("b"); len(w.records()) != 2 || dek == theirs.DEKID || w.keys.count("GenerateDataKey") != 3 {
		t.Errorf("%d records, the row names %s", len(w.records()), dek)
	}
}

// transactions breaks transactions.
type transactions struct {
	dynamoDB
	fault *fault
}

func (d *transactions) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	f := d.fault
	d.fault = nil
	return broken(f, func() (*dynamodb.TransactWriteItemsOutput, error) {
		return d.dynamoDB.TransactWriteItems(ctx, in, o...)
	})
}

// TestKeyedThroughRotations writes, updates, deletes and reads keyed rows all through a normal
// and an emergency rotation, as TestThroughRotations does with embedded ones.
func TestKeyedThroughRotations(t *testing.T) {
	throughKeyedRotations(t, newKeyedSite(t, ddbtest.Client(t)), func(*testing.T, *keyedSite) []*envelope.Table { return nil })
}

// TestConversionThroughRotations does the same in a table that is converted meanwhile: some
// processes write embedded rows still, others keyed ones, and all update each other's.
func TestConversionThroughRotations(t *testing.T) {
	w := newKeyedSite(t, ddbtest.Client(t), mixedDefinition)
	throughKeyedRotations(t, w, func(t *testing.T, w *keyedSite) []*envelope.Table {
		t.Helper()
		def := w.def
		def.Envelope = "embedded"
		old, err := w.client(quick).Table(t.Context(), tableConfig(def))
		w.must("table", err)
		return []*envelope.Table{old}
	})
}

func throughKeyedRotations(t *testing.T, w *keyedSite, more func(*testing.T, *keyedSite) []*envelope.Table) {
	t.Helper()
	tables := more(t, w)
	for range 2 {
		tables = append(tables, w.open(w.client(quick)))
	}
	// Every process updates and reads these rows.
	shared := []string{"shared-0", "shared-1"}
	for n, id := range shared {
		w.must("insert", tables[n].Insert(t.Context(), row(id), nil))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	updates := make([]int, len(shared))
	var mu sync.Mutex
	for worker, table := range tables {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := exercise(t.Context(), w.site, table, fmt.Sprintf("%d-%d", worker, i)); err != nil {
					t.Errorf("worker %d, row %d: %v", worker, i, err)
					return
				}
				n := i % len(shared)
				err := table.Update(t.Context(), rowKey(shared[n]), func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil })
				if errors.Is(err, envelope.ErrContended) {
					continue // nothing was written
				}
				if err != nil {
					t.Errorf("worker %d, shared row: %v", worker, err)
					return
				}
				mu.Lock()
				updates[n]++
				mu.Unlock()
			}
		})
	}
	for n, mode := range []kek.Mode{kek.Normal, kek.Emergency} {
		old := w.pointer().KEKID
		w.begin(fmt.Sprintf("r%d", n+1), mode)
		w.drain(fmt.Sprintf("r%d", n+1))
		w.fence(old, controltable.Sealed)
		w.rewrapRecords(w.pointer())
		w.finish(fmt.Sprintf("r%d", n+1))
	}
	cancel()
	wg.Wait()
	reader := w.client(slow)
	for n, id := range shared {
		got, err := w.open(reader).Get(t.Context(), rowKey(id))
		if err != nil || len(got.Plaintext) != updates[n] {
			t.Errorf("%s: %d updates are there, %d were made: %v", id, len(got.Plaintext), updates[n], err)
		}
	}
	out, err := w.dynamo.Scan(t.Context(), &dynamodb.ScanInput{TableName: &w.table, ConsistentRead: aws.Bool(true)})
	w.must("scan", err)
	kinds := map[bool]int{}
	for _, i := range out.Items {
		id := i["id"].(*s).Value
		kinds[i["dek.id"] != nil]++
		got, err := w.open(reader).Open(t.Context(), i)
		if err != nil || !strings.HasPrefix(id, "shared") && string(got.Plaintext) != "4"+id {
			t.Errorf("%s: %q, %v", id, got.Plaintext, err)
		}
	}
	if s := reader.Stats(); s.OrphanedKeys != 0 || len(out.Items) < 20 {
		t.Errorf("%d orphans among %d rows", s.OrphanedKeys, len(out.Items))
	}
	t.Logf("%d keyed rows and %d embedded ones, %d data keys", kinds[true], kinds[false], len(w.records()))
}
