package rotation_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/membucket"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// keyTable is a site's key table, registered as the source keys.
type keyTable struct {
	*memddb.DB
	s              *site
	table, control string
	bucket         *membucket.Bucket
	deks           map[string][]byte // what each record unwraps to

	mu      sync.Mutex
	checked map[string]bool // items that transactions have checked: partition and sort key
}

// TransactWriteItems implements [deks.API]. The site's control table is in memory, so what it
// says of the fences is copied into one that a transaction can check.
func (k *keyTable) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	for _, id := range k.s.keys() {
		for pk, fence := range map[string]map[int]string{keyrecord.PKFence: k.s.store.KeyFences(id), controltable.PKFence: k.s.store.Fences(id)} {
			for n, state := range fence {
				if _, err := k.PutItem(ctx, &dynamodb.PutItemInput{TableName: &k.control, Item: controltable.EncodeFence(pk, id, n, state)}); err != nil {
					return nil, err
				}
			}
		}
	}
	k.mu.Lock()
	for _, i := range in.TransactItems {
		if c := i.ConditionCheck; c != nil {
			k.checked[attr.Text(c.Key["pk"])+"/"+attr.Text(c.Key["sk"])] = true
		}
	}
	k.mu.Unlock()
	return k.DB.TransactWriteItems(ctx, in, o...)
}

// UpdateItem implements [deks.API]. A record never changes before its copy is in the bucket.
func (k *keyTable) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	out, err := k.DB.UpdateItem(ctx, in, o...)
	if err == nil && *in.TableName == k.table {
		r := k.record(strings.TrimPrefix(attr.Text(in.Key["pk"]), keyrecord.PKRecord))
		if !bytes.Contains([]byte(strings.Join(k.bucket.Keys("deks/"), " ")), []byte(keyrecord.CopyKey(r))) {
			k.s.t.Errorf("record %s was rewrapped before its copy was written", r.DEKID)
		}
	}
	return out, err
}

// newKeyTable adds a key table with records to a site.
func newKeyTable(s *site, records ...string) *keyTable {
	s.t.Helper()
	k := &keyTable{DB: memddb.New(), s: s, bucket: membucket.New(), deks: map[string][]byte{}, checked: map[string]bool{}}
	k.table = ddbtest.Table(s.t, k.DB, ddbtest.Key{Name: "pk", Type: types.ScalarAttributeTypeS})
	k.control = ddbtest.ControlTable(s.t, k.DB)
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		if def.Kind == deks.KindName {
			return deks.Open(k, k.bucket, deks.Places{ControlTable: k.control, Bucket: "audit"}, def)
		}
		return open(def)
	}
	def := deks.Config{Table: k.table}.Source()
	def.Name = "keys"
	must(s.AddSource(as("person"), def))
	for _, name := range records {
		k.create(name)
	}
	return k
}

// create makes a data key as a writer does: its copy, then its record.
func (k *keyTable) create(name string) keyrecord.Record {
	k.s.t.Helper()
	r := k.copied(name)
	if _, err := k.TransactWriteItems(k.s.t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: keyrecord.CreateItems(k.table, k.control, r, 1)}); err != nil {
		k.s.t.Fatal(err)
	}
	return r
}

// copied makes a data key and writes its copy alone.
func (k *keyTable) copied(name string) keyrecord.Record {
	k.s.t.Helper()
	r := k.made(name)
	k.s.must(keyrecord.PutCopy(k.s.t.Context(), k.bucket, "audit", r))
	return r
}

// made makes a data key of which nothing is stored yet.
func (k *keyTable) made(name string) keyrecord.Record {
	k.s.t.Helper()
	p := k.s.pointer()
	r := keyrecord.Record{
		DEKID: keyrecord.NewID([16]byte([]byte(fmt.Sprintf("%16s", name)))), KEKID: p.KEKID, KEKEpoch: p.Epoch, BornEpoch: p.Epoch,
		Context: map[string]string{"table": "orders"}, CreatedAt: k.s.clock.now().Truncate(time.Second),
	}
	dek, wrapped, err := k.s.kms.GenerateDataKey(as("application"), p.KEKID, keyrecord.EncryptionContext(r))
	if err != nil {
		k.s.t.Fatal(err)
	}
	r.WrappedDEK, k.deks[r.DEKID] = wrapped, bytes.Clone(dek)
	return r
}

// item is the item of a record; nil if there is none.
func (k *keyTable) item(id string) attr.Item {
	k.s.t.Helper()
	return must(k.GetItem(k.s.t.Context(), &dynamodb.GetItemInput{TableName: &k.table, Key: keyrecord.Key(id), ConsistentRead: aws.Bool(true)})).Item
}

func (k *keyTable) record(id string) keyrecord.Record {
	k.s.t.Helper()
	return must(keyrecord.Decode(k.item(id)))
}

// lose deletes a record by mistake.
func (k *keyTable) lose(id string) {
	k.s.t.Helper()
	must(k.DeleteItem(k.s.t.Context(), &dynamodb.DeleteItemInput{TableName: &k.table, Key: keyrecord.Key(id)}))
}

// restore puts a record as it was, past all conditions.
func (k *keyTable) restore(r keyrecord.Record) {
	k.s.t.Helper()
	must(k.PutItem(k.s.t.Context(), &dynamodb.PutItemInput{TableName: &k.table, Item: keyrecord.Encode(r)}))
}

// sound checks that every data key has a record under a KEK, which unwraps to what it was.
func (k *keyTable) sound(under kek.ID) {
	k.s.t.Helper()
	for id, want := range k.deks {
		i := k.item(id)
		if i == nil {
			k.s.t.Errorf("record %s is gone", id)
			continue
		}
		r := must(keyrecord.Decode(i))
		dek, err := k.s.kms.Decrypt(as("application"), r.KEKID, r.WrappedDEK, keyrecord.EncryptionContext(r))
		if r.KEKID != under || err != nil || !bytes.Equal(dek, want) {
			k.s.t.Errorf("record %s is under %s at epoch %d, want %s: %v", id, r.KEKID, r.KEKEpoch, under, err)
		}
	}
}

// TestRecordsRewrapped: a rotation rewraps the records of the key table, an emergency too,
// each after its copy; birth epochs stay.
func TestRecordsRewrapped(t *testing.T) {
	for mode, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t)
			k := newKeyTable(s, "a", "b", "c")
			s.advance(spring, in, kek.Completed)
			r := s.record(spring)
			k.sound(r.NewKEK)
			for id := range k.deks {
				if got := k.record(id); got.BornEpoch != 1 || got.KEKEpoch != r.Epoch {
					t.Errorf("%+v", got)
				}
			}
			if n := len(k.bucket.Keys("deks/")); n != 6 {
				t.Errorf("%d copies of 3 records in 2 versions: %q", n, k.bucket.Keys("deks/"))
			}
			s.settled()
			late := k.create("late")
			s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
			if k.sound(s.record(summer).NewKEK); k.record(late.DEKID).BornEpoch != 2 {
				t.Errorf("%+v", k.record(late.DEKID))
			}
		})
	}
}

// TestLostRecords: a record that a mistake removes is put back from its copy before its KEK
// is retired, at whatever moment it went.
func TestLostRecords(t *testing.T) {
	for _, phase := range []kek.Phase{"", kek.Tested, kek.Switched, kek.Drained, kek.Rewrapped} {
		t.Run(string(phase), func(t *testing.T) {
			s := newSite(t)
			k := newKeyTable(s, "a", "b")
			gone := k.create("gone")
			if phase != "" {
				s.advance(spring, rotation.ExecutionInput{}, phase)
			}
			k.lose(gone.DEKID)
			s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
			k.sound(s.record(spring).NewKEK)
		})
	}
}

// TestStaleRecords: a record that is restored as it was under a retired KEK halts the
// retirement of the next one: its last usable copy would go.
func TestStaleRecords(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s, "a")
	stale := k.create("stale")
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	s.advance(summer, rotation.ExecutionInput{}, kek.Rewrapped)
	k.restore(stale)
	err := s.retire(summer)
	wantKind(t, err, journal.RowsQuarantined)
	if !strings.Contains(err.Error(), "unknown_kek") || !s.enabled(s.record(spring).NewKEK) {
		t.Errorf("%v", err)
	}
}

// TestCopiesWithoutARecord: creations that failed at the fence, and copies that somebody
// planted, stop no rotation. Those that do not unwrap are counted.
func TestCopiesWithoutARecord(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s, "a")
	crashed := k.copied("crashed")
	forged := k.copied("forged")
	delete(k.deks, forged.DEKID)
	forged.DEKID = keyrecord.NewID([16]byte{7})
	k.bucket.Plant(keyrecord.CopyKey(forged), keyrecord.EncodeCopy(forged))
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	if k.item(crashed.DEKID) == nil || k.item(forged.DEKID) != nil {
		t.Error("the creation that crashed was not put back, or the planted copy was")
	}
	if b := s.body("old_kek_retired"); b["unusable_copies"] != "1" {
		t.Errorf("the record says %v", b)
	}
	k.lose(crashed.DEKID) // now only a copy under a retired KEK and one under the pointer's
	s.advance(summer, rotation.ExecutionInput{}, kek.Completed)
	if k.item(crashed.DEKID) == nil {
		t.Error("a record was not put back from its newest copy")
	}
}

// TestUnknownRecords: an item of the key table that is not a record stops a rotation before
// it mints a key.
func TestUnknownRecords(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s, "a")
	i := keyrecord.Encode(k.copied("odd"))
	delete(i, "born_epoch")
	plant := func() { must(k.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &k.table, Item: i})) }
	plant()
	_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.RowsUnaccounted)
	k.lose(strings.TrimPrefix(attr.Text(i["pk"]), keyrecord.PKRecord))
	must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
	plant()
	_, err = s.Verify(t.Context(), rotation.VerifyInput{RotationID: spring, Census: true})
	if e := typed(err); e.Kind != journal.RowsUnaccounted || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}

// TestPutBackRecords: doctor finds records that are missing, and those under a KEK that is
// retired, and puts them back from their copies, once, behind the fence. It writes nothing
// unless it is told to, and leaves out creations that failed at the fence.
func TestPutBackRecords(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s, "a", "b")
	late := k.made("late") // a writer that sleeps until its KEK is retired, and fails at the fence
	delete(k.deks, late.DEKID)
	stale := k.create("stale")
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	k.bucket.Plant(keyrecord.CopyKey(late), keyrecord.EncodeCopy(late))
	gone := k.create("gone")
	k.lose(gone.DEKID)
	k.restore(stale)
	forged := k.made("forged")
	delete(k.deks, forged.DEKID)
	forged.DEKID = keyrecord.NewID([16]byte{9})
	k.bucket.Plant(keyrecord.CopyKey(forged), keyrecord.EncodeCopy(forged))

	look := func(write bool) rotation.LostRecords {
		t.Helper()
		all := must(s.PutBackRecords(as("person"), s.store, write))
		if len(all) != 1 || all[0].Source != "keys" {
			t.Fatalf("%+v", all)
		}
		return all[0]
	}
	before := len(must(s.store.AuditEntries(t.Context(), 1)))
	l := look(false)
	if l.Missing != 2 || l.Stale != 1 || l.PutBack != 0 || faultsOf(l) != 3 || k.item(gone.DEKID) != nil || k.record(stale.DEKID).KEKID != stale.KEKID {
		t.Errorf("it looks: %+v", l)
	}
	if n := len(must(s.store.AuditEntries(t.Context(), 1))); n != before {
		t.Errorf("a look appended %d records", n-before)
	}
	l = look(true)
	if l.PutBack != 2 || l.Lost != 1 || faultsOf(l) != 1 || !strings.Contains(l.String(), "no copy unwraps of 1 of them, the first "+forged.DEKID) {
		t.Errorf("it repairs: %+v: %s", l, l)
	}
	p := s.pointer()
	if got := k.record(stale.DEKID); got.KEKID != p.KEKID || got.KEKEpoch != p.Epoch || got.BornEpoch != 1 {
		t.Errorf("%+v", got)
	}
	if b := s.body(rotation.EventPutBack); b["state"] != "done" || b["put_back"] != "2" || b["source"] != "keys" {
		t.Errorf("the record says %v", b)
	}
	if i := k.item(late.DEKID); i != nil {
		t.Errorf("a creation that failed at the fence was put back: %v", i)
	}
	k.sound(p.KEKID)
	if l := look(true); l.PutBack != 0 || faultsOf(l) != 1 {
		t.Errorf("again: %+v", l)
	}
}

// TestPutBackBehindTheFence: a put-back that was decided before a switch is refused after the
// seal, and repeated under the pointer's KEK.
func TestPutBackBehindTheFence(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s, "a")
	gone := k.create("gone")
	k.lose(gone.DEKID)
	first := s.pointer().KEKID
	s.world.SetHook(func(op string, _ ...any) (bool, error) {
		if op == "KMS.ReEncrypt" { // after the pointer was read
			s.world.SetHook(nil)
			s.advance(spring, rotation.ExecutionInput{}, kek.Drained)
		}
		return true, nil
	})
	if _, err := s.PutBackRecords(as("person"), s.store, true); err == nil || !strings.Contains(err.Error(), "fence of records") {
		t.Errorf("put back under a sealed KEK: %v", err)
	}
	if i := k.item(gone.DEKID); i != nil {
		t.Fatalf("it is there: %v", i)
	}
	if l := must(s.PutBackRecords(as("person"), s.store, true)); l[0].PutBack != 1 || k.record(gone.DEKID).KEKID == first {
		t.Errorf("%+v", l)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	k.sound(s.pointer().KEKID)
}

// keyedOnly is a table whose definition allows keyed rows alone, or a corpus, which no fence
// covers.
type keyedOnly struct {
	source.Driver
	keyed bool
}

func (k keyedOnly) Kinds() (keyed, embedded bool) { return k.keyed, false }

func (k keyedOnly) Traits() source.Traits {
	t := k.Driver.Traits()
	if !k.keyed {
		t.Fencing = source.Unfenced("nobody writes it meanwhile")
	}
	return t
}

// newKeyedSite is a site whose tables hold keyed rows alone, of which none is there.
func newKeyedSite(t *testing.T) (*site, *keyTable) {
	t.Helper()
	s := newSite(t)
	k := newKeyTable(s, "a", "b")
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		d, err := open(def)
		switch def.Name {
		case "orders", "people":
			return keyedOnly{d, true}, err
		case "corpus":
			return keyedOnly{d, false}, err
		}
		return d, err
	}
	for p := range s.rows() {
		if p.table != s.corpus {
			s.remove(p.table, p.id)
		}
	}
	s.must(s.orders.Delete(as("application"), "settings"))
	return s, k
}

// scanned counts the scans of tables while f runs.
func (s *site) scanned(f func()) map[string]int {
	var mu sync.Mutex
	n := map[string]int{}
	s.world.SetHook(func(op string, args ...any) (bool, error) {
		if op == "Table.Scan" {
			mu.Lock()
			defer mu.Unlock()
			n[fmt.Sprint(args[0])]++
		}
		return true, nil
	})
	defer s.world.SetHook(nil)
	f()
	return n
}

// TestKeyedRowsUnread: once all sources hold keyed rows alone, the switch leaves the new KEK's
// fence of rows shut, and the rotation that leaves that KEK reads no row. The one that leaves
// a KEK whose fence of rows was open reads them all.
func TestKeyedRowsUnread(t *testing.T) {
	s, k := newKeyedSite(t)
	n := s.scanned(func() { s.advance(spring, rotation.ExecutionInput{}, kek.Completed) })
	first := s.record(spring)
	if n["orders"] == 0 || n["people"] == 0 || first.RecordsOnly {
		t.Errorf("the rotation off a KEK that rows were under scanned %v", n)
	}
	if v := s.view(""); !v.KEKs[first.NewKEK].RecordsOnly || len(s.store.Fences(first.NewKEK)) > 0 || s.store.KeyFences(first.NewKEK)[0] != "open" {
		t.Errorf("%+v, fences %v, %v", v.KEKs[first.NewKEK], s.store.Fences(first.NewKEK), s.store.KeyFences(first.NewKEK))
	}
	late := k.create("late")
	n = s.scanned(func() { s.advance(summer, rotation.ExecutionInput{}, kek.Completed) })
	second := s.record(summer)
	if n["orders"]+n["people"] > 0 || n["corpus"] == 0 || !second.RecordsOnly {
		t.Errorf("the rotation off a KEK that takes records alone scanned %v", n)
	}
	for _, event := range []string{"rows_counted", "rows_rehearsed", "rows_rewrapped", "kms_rotation_completed"} {
		if b := s.body(event); !strings.Contains(b["source.orders"], "not read") || strings.Contains(b["source.keys"], "not read") {
			t.Errorf("%s says %v", event, b)
		}
	}
	if k.sound(second.NewKEK); k.record(late.DEKID).KEKEpoch != second.Epoch {
		t.Errorf("%+v", k.record(late.DEKID))
	}
	s.settled()

	// An emergency looks at every row.
	n = s.scanned(func() { s.advance(stolen, emergency, kek.Completed) })
	if n["orders"] == 0 || n["people"] == 0 {
		t.Errorf("an emergency scanned %v", n)
	}

	// A source that may hold other rows opens the fence of rows again with the next switch.
	s.add(s.newTable("letters", ""))
	s.advance("autumn", rotation.ExecutionInput{}, kek.Completed)
	last := s.record("autumn")
	if s.view("").KEKs[last.NewKEK].RecordsOnly || s.store.Fences(last.NewKEK)[0] != "open" {
		t.Errorf("the fence of rows is %v", s.store.Fences(last.NewKEK))
	}
	n = s.scanned(func() { s.advance("winter", rotation.ExecutionInput{}, kek.Completed) })
	if n["orders"] == 0 || s.record("winter").RecordsOnly {
		t.Errorf("the rotation off a KEK whose fence of rows was open scanned %v", n)
	}
}

// TestKeyedNeedsTheKeyTable: a source with keyed rows is not registered without a key table,
// and no rotation starts without one.
func TestKeyedNeedsTheKeyTable(t *testing.T) {
	s := newSite(t)
	table := s.newTable("letters", "")
	open := s.OpenSource
	s.OpenSource = func(def kek.Source) (source.Driver, error) {
		d, err := open(def)
		if def.Name == "letters" {
			return keyedOnly{d, true}, err
		}
		return d, err
	}
	_, err := s.AddSource(as("person"), table.Source())
	wantKind(t, err, journal.SourceMisconfigured)
	newKeyTable(s, "a")
	s.add(table)
	s.must(s.RemoveSource(as("person"), "keys", "for a test"))
	_, err = s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.SourceMisconfigured)
}

// TestGenesisOfKeyedRows: a deployment does not begin with keyed rows and no key table, and
// begins after the epoch of every keyed row that an earlier one has left.
func TestGenesisOfKeyedRows(t *testing.T) {
	s := newSite(t)
	k := newKeyTable(s)
	rows := newKeyedRows(k)
	record := k.create("a")
	record.BornEpoch = 9
	rows.insert("r", record)
	alone := []kek.Source{rows.cfg.Source()}
	_, err := s.Genesis(as("person"), "kek-0001", "first", alone)
	wantKind(t, err, journal.SourceMisconfigured)
	if last, err := s.LastEpoch(t.Context(), alone); last != 9 || err != nil {
		t.Errorf("the last epoch is %d, %v", last, err)
	}
}

// keyedRows is a table of keyed rows, registered as the source rows.
type keyedRows struct {
	*keyTable
	name  string
	cfg   rowschema.Schema
	plain map[string]string
}

func newKeyedRows(k *keyTable) *keyedRows {
	k.s.t.Helper()
	rows := &keyedRows{keyTable: k, name: ddbtest.Table(k.s.t, k.DB, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS}), plain: map[string]string{}}
	rows.cfg = rowschema.Schema{
		Name: "rows", Table: rows.name, Envelope: rowschema.EnvelopeKeyed, Ciphertext: "data", Context: map[string]string{"table": "orders"}, Version: "version",
	}.WithDefaults()
	open := k.s.OpenSource
	k.s.OpenSource = func(def kek.Source) (source.Driver, error) {
		if def.Kind == rowschema.Kind && def.Name == "rows" {
			return dynamosource.Open(k, def)
		}
		return open(def)
	}
	must(k.s.AddSource(as("person"), rows.cfg.Source()))
	return rows
}

// insert writes a row under a data key, as a writer does, at whatever time.
func (r *keyedRows) insert(id string, under keyrecord.Record) {
	r.s.t.Helper()
	i := attr.Item{"id": attr.Str(id), "dek_id": attr.Str(under.DEKID), "kek_epoch": attr.Num(under.BornEpoch), "version": attr.Num(1)}
	bound := must(r.cfg.KeyedBoundOf(i, []string{"id"}, under.DEKID))
	i["data"] = attr.Blob(must(r.s.Keys.Cipher.Seal(r.deks[under.DEKID], []byte("secret of "+id), bound)))
	must(r.PutItem(r.s.t.Context(), &dynamodb.PutItemInput{TableName: &r.name, Item: i}))
	r.plain[id] = "secret of " + id
}

// row reads a row, opens it under its data key's record, and returns the record.
func (r *keyedRows) row(id string) keyrecord.Record {
	r.s.t.Helper()
	i := must(r.GetItem(r.s.t.Context(), &dynamodb.GetItemInput{TableName: &r.name, Key: attr.Item{"id": attr.Str(id)}, ConsistentRead: aws.Bool(true)})).Item
	dekID := attr.Text(i["dek_id"])
	record := r.record(dekID)
	dek := must(r.s.kms.Decrypt(as("application"), record.KEKID, record.WrappedDEK, keyrecord.EncryptionContext(record)))
	plain, err := r.s.Keys.Cipher.Open(dek, attr.Bytes(i["data"]), must(r.cfg.KeyedBoundOf(i, []string{"id"}, dekID)))
	if err != nil || string(plain) != r.plain[id] {
		r.s.t.Errorf("row %s opens to %q, %v", id, plain, err)
	}
	if in := (attr.Reader{Item: i}); in.Num("kek_epoch") != record.BornEpoch {
		r.s.t.Errorf("row %s has epoch %d, its data key %d", id, in.Num("kek_epoch"), record.BornEpoch)
	}
	return record
}

// TestEmergencyRekeys: an emergency gives every keyed row a data key that was made after its
// switch, a shared one for rows that shared one; a late insert under an exposed one opens, and
// is counted; the next emergency moves it. A normal rotation writes no row.
func TestEmergencyRekeys(t *testing.T) {
	s := newSite(t)
	var drawn atomic.Int64
	s.Keys.Random = func(b []byte) { clear(b); binary.BigEndian.PutUint64(b, uint64(drawn.Add(1))) }
	s.Memory = rotation.NewMemory(1 << 20)
	k := newKeyTable(s)
	rows := newKeyedRows(k)
	a, b := k.create("a"), k.create("b")
	for i := range 6 {
		under := a
		if i >= 4 {
			under = b
		}
		rows.insert(fmt.Sprintf("r%d", i), under)
	}
	s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
	for i := range 6 {
		if got := rows.row(fmt.Sprintf("r%d", i)); got.DEKID != a.DEKID && got.DEKID != b.DEKID {
			t.Errorf("a normal rotation moved row %d to %s", i, got.DEKID)
		}
	}
	s.advance(stolen, emergency, kek.KEKRetired)
	r := s.record(stolen)
	fresh := map[string]int{}
	for i := range 6 {
		got := rows.row(fmt.Sprintf("r%d", i))
		if fresh[got.DEKID]++; got.BornEpoch != r.Epoch || got.KEKID != r.NewKEK {
			t.Errorf("row %d is under a data key of epoch %d", i, got.BornEpoch)
		}
	}
	if len(fresh) != 2 {
		t.Errorf("rows under 2 data keys are under %v", fresh)
	}
	rows.insert("late", a) // its writer slept since before the switch
	s.advance(stolen, emergency, kek.Completed)
	if got := rows.row("late"); got.DEKID != a.DEKID || got.KEKID != r.NewKEK {
		t.Errorf("the late row is under %+v", got)
	}
	if b := s.body("kms_rotation_completed"); !strings.HasPrefix(b["exposed_rows"], "1 of 7 keyed rows") {
		t.Errorf("the record says %v", b)
	}
	s.advance("emergency-2", emergency, kek.Completed)
	if got := rows.row("late"); got.BornEpoch != s.record("emergency-2").Epoch {
		t.Errorf("the next emergency left the late row under %+v", got)
	}
}

// TestEmergencyRekeysRefuses: a keyed row whose data key has no record, and one whose payload
// does not open, hold the retirement up, and nothing else.
func TestEmergencyRekeysRefuses(t *testing.T) {
	s := newSite(t)
	var drawn atomic.Int64
	s.Keys.Random = func(b []byte) { clear(b); binary.BigEndian.PutUint64(b, uint64(drawn.Add(1))) }
	k := newKeyTable(s)
	rows := newKeyedRows(k)
	a, gone := k.create("a"), k.create("gone")
	rows.insert("good", a)
	rows.insert("of gone", gone)
	s.advance(spring, emergency, kek.Drained)
	k.lose(gone.DEKID)
	_, err := s.Rewrap(t.Context(), rotation.RewrapInput{RotationID: spring, Complete: true})
	wantKind(t, err, journal.RowsQuarantined)
	if e := typed(err); !strings.Contains(strings.Join(e.Rows, " "), "has no record") {
		t.Errorf("%v: %q", err, e.Rows)
	}
	if got := rows.row("good"); got.BornEpoch != s.record(spring).Epoch {
		t.Errorf("%+v", got)
	}
	if l := must(s.PutBackRecords(as("person"), s.store, true)); l[0].PutBack != 1 {
		t.Errorf("%+v", l)
	}
	s.advance(spring, emergency, kek.Completed)
	if got := rows.row("of gone"); got.BornEpoch != s.record(spring).Epoch {
		t.Errorf("%+v", got)
	}
}

// TestCensusLooksUpDataKeys: a keyed row whose data key has no record stops a rotation before
// it mints a key, and doctor's repair lets it start.
func TestCensusLooksUpDataKeys(t *testing.T) {
	for _, deep := range []bool{false, true} {
		s := newSite(t)
		s.Config.Deep = deep
		k := newKeyTable(s)
		rows := newKeyedRows(k)
		gone := k.create("gone")
		rows.insert("r", gone)
		rows.insert("s", k.create("a"))
		k.lose(gone.DEKID)
		census, err := s.TakeCensus(t.Context(), "", nil)
		s.must(err)
		if got := census.Sources["rows"]; got.Quarantined != 1 || got.ByKind["no_record"] != 1 || got.Keyed != 2 || census.Problem == "" {
			t.Errorf("%+v, %q", got, census.Problem)
		}
		must(s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{})))
		_, err = s.Verify(t.Context(), rotation.VerifyInput{RotationID: spring, Census: true})
		wantKind(t, err, journal.RowsUnaccounted)
		must(s.PutBackRecords(as("person"), s.store, true))
		s.advance(spring, rotation.ExecutionInput{}, kek.Completed)
		k.lose(gone.DEKID)
		if found := must(s.InspectRotation(t.Context(), s.record(spring), func(int64) {})); found.Rows.Orphaned != 1 || found.Rows.Verdict() != rotation.Orphaned {
			t.Errorf("a row without a record is not orphaned: %+v", found.Rows)
		}
		must(s.PutBackRecords(as("person"), s.store, true))
		which := map[bool]string{false: "a sample of their", true: "each of their"}[deep]
		if b := s.body("rows_counted"); !strings.Contains(b["source.rows"], "2 of the envelopes keyed and not among these data keys, "+which) {
			t.Errorf("%v", b)
		}
		rows.row("r")
	}
}

// faultsOf is how many records are wrong and not put back.
func faultsOf(l rotation.LostRecords) int64 { return l.Missing + l.Stale + l.Damaged - l.PutBack }

// TestEmergencyChecksAllShards: the creations of an emergency's data keys check all shards of the
// fence, because transactions that check the same one at the same time conflict.
func TestEmergencyChecksAllShards(t *testing.T) {
	s := newSite(t)
	m := newMixedRows(s)
	for i := range 12 {
		m.dek = m.create(fmt.Sprint("key ", i))
		m.key(fmt.Sprint("row ", i))
	}
	s.advance(spring, emergency, kek.Drained)
	fence := keyrecord.FencePK(s.pointer().KEKID)
	s.advance(spring, emergency, kek.Rewrapped)
	m.wantKinds(12, 0)
	for n := range shards {
		if !m.checked[fmt.Sprintf("%s/%02d", fence, n)] {
			t.Errorf("shard %d was not checked: %v", n, m.checked)
		}
	}
}
