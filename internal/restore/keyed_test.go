package restore

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/membucket"
)

// newKeyedSite is a site whose table has keyed rows, and embedded ones from before.
func newKeyedSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "")
	name, pk := "keys", "pk"
	_, err := s.db.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &name, AttributeDefinitions: []types.AttributeDefinition{{AttributeName: &pk, AttributeType: types.ScalarAttributeTypeS}},
		KeySchema: []types.KeySchemaElement{{AttributeName: &pk, KeyType: types.KeyTypeHash}},
	})
	must(t, err)
	s.put("control", envelope.Item{"pk": text("DEKFENCE#" + string(s.current)), "sk": text("00"), "state": text("open")})
	table, err := dynamosource.New(s.db, dynamosource.Config{
		Table: "orders", Envelope: "keyed", DEKID: "key", KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "body", Epoch: "epoch", Version: "version",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{"id": "$id"},
	})
	must(t, err)
	records, err := deks.Open(s.db, membucket.New(), deks.Places{ControlTable: "control", Bucket: "audit"}, deks.Config{Table: "keys"}.Source())
	must(t, err)
	s.Table, s.Records = table, records
	return s
}

// makeKey stores the record of a data key of an epoch and returns its id.
func (s *site) makeKey(n byte, under kek.ID, born int64) string {
	s.t.Helper()
	r := keyrecord.Record{
		DEKID: keyrecord.NewID([16]byte{n}), KEKID: under, KEKEpoch: 5, BornEpoch: born, Context: encctx, CreatedAt: time.Unix(1e9, 0).UTC(),
	}
	_, wrapped, err := s.kms.GenerateDataKey(s.t.Context(), under, keyrecord.EncryptionContext(r))
	must(s.t, err)
	r.WrappedDEK = wrapped
	s.put("keys", keyrecord.Encode(r))
	return r.DEKID
}

// record reads the record of a data key.
func (s *site) record(id string) keyrecord.Record {
	s.t.Helper()
	out, err := s.db.GetItem(s.t.Context(), &dynamodb.GetItemInput{TableName: aws.String("keys"), Key: keyrecord.Key(id), ConsistentRead: aws.Bool(true)})
	must(s.t, err)
	r, err := keyrecord.Decode(out.Item)
	must(s.t, err)
	return r
}

func keyedBound(row, key string) map[string]string {
	return map[string]string{"table": "orders", "id": row, "matter:dek_id": key, "matter:key:id": row}
}

// unwrap returns a data key.
func (s *site) unwrap(id string) []byte {
	s.t.Helper()
	r := s.record(id)
	dek, err := s.kms.Decrypt(s.t.Context(), r.KEKID, r.WrappedDEK, keyrecord.EncryptionContext(r))
	must(s.t, err)
	return dek
}

// keyed is a keyed row with a plaintext of its own.
func (s *site) keyed(row, key string) envelope.Item {
	s.t.Helper()
	body, err := s.Cipher.Seal(s.unwrap(key), []byte("plain "+row), keyedBound(row, key))
	must(s.t, err)
	return envelope.Item{
		"id": text(row), "key": text(key), "body": blob(body), "epoch": attr.Num(s.record(key).BornEpoch), "version": num(8), "note": text("old"),
	}
}

// openKeyed opens a keyed row of the table.
func (s *site) openKeyed(row string) string {
	s.t.Helper()
	i := s.get(row)
	key := str(i, "key")
	if epoch, err := attr.Int(i["epoch"]); err != nil || epoch != s.record(key).BornEpoch {
		s.t.Errorf("row %s does not say the epoch of its data key", row)
	}
	plain, err := s.Cipher.Open(s.unwrap(key), i["body"].(*types.AttributeValueMemberB).Value, keyedBound(row, key))
	must(s.t, err)
	return string(plain)
}

// TestRestoreKeyed: keyed rows come back as they are, beside embedded ones; one that is in the
// table stays as it is.
func TestRestoreKeyed(t *testing.T) {
	s := newKeyedSite(t)
	key := s.makeKey(1, s.current, 2)
	lost, there, embedded := s.keyed("lost", key), s.keyed("there", key), s.sealed("embedded", s.old)
	newer := s.keyed("there", key)
	newer["note"] = text("newer")
	s.put("orders", newer)
	f := s.backup(lost, there, embedded)
	must(t, s.Prepare(t.Context()))
	p, err := s.Plan(t.Context(), f)
	must(t, err)
	if p.Absent != 2 || p.Keyed != 1 || p.Present != 1 || p.Lost != 0 || p.ByKEK[s.old] != 1 || len(p.ByKEK) != 1 || p.Anew != 0 {
		t.Errorf("plan %+v", p)
	}
	want := Result{Restored: 2, Keyed: 1, Present: 1, ByKEK: map[kek.ID]int64{s.old: 1}, First: []string{}}
	if diff := cmp.Diff(want, s.apply(f)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	got := s.get("lost")
	if s.openKeyed("lost") != "plain lost" || str(got, "key") != key || got["kek_id"] != nil || got["dek"] != nil || str(got, "note") != "old" {
		t.Errorf("row %v", got)
	}
	if str(s.get("there"), "note") != "newer" || s.open(s.get("embedded")) != "plain embedded" {
		t.Error("the other rows are not as they should be")
	}
	if again := s.apply(f); again.Present != 3 || again.Restored != 0 {
		t.Errorf("again: %+v", again)
	}
}

// TestRestoreExposed: rows whose data key was made before an emergency come back under one fresh
// data key, those of a later one as they are.
func TestRestoreExposed(t *testing.T) {
	s := newKeyedSite(t)
	s.emergency = []kek.Rotation{{Mode: kek.Emergency, OldKEK: s.old, Epoch: 4}}
	exposed, later := s.makeKey(1, s.current, 3), s.makeKey(2, s.current, 4)
	a, b, c := s.keyed("a", exposed), s.keyed("b", exposed), s.keyed("c", later)
	if out := s.apply(s.backup(a, b, c)); out.Restored != 3 || out.Keyed != 3 || out.Anew != 2 || out.Defects != 0 {
		t.Fatalf("%+v", out)
	}
	for _, row := range []string{"a", "b", "c"} {
		if s.openKeyed(row) != "plain "+row {
			t.Errorf("row %s: %v", row, s.get(row))
		}
	}
	fresh := str(s.get("a"), "key")
	if fresh == exposed || str(s.get("b"), "key") != fresh || s.record(fresh).BornEpoch != 5 || s.record(fresh).KEKID != s.current {
		t.Errorf("the fresh data key is %+v", s.record(fresh))
	}
	if bytes.Equal(s.unwrap(fresh), s.unwrap(exposed)) || str(s.get("c"), "key") != later {
		t.Error("a row is restored under the wrong data key")
	}
}

// TestRestoreSealed: a fresh data key is not made under a KEK whose fence of records is sealed.
func TestRestoreSealed(t *testing.T) {
	s := newKeyedSite(t)
	s.emergency = []kek.Rotation{{Mode: kek.Emergency, OldKEK: s.old, Epoch: 4}}
	f := s.backup(s.keyed("a", s.makeKey(1, s.current, 3)))
	s.put("control", envelope.Item{"pk": text("DEKFENCE#" + string(s.current)), "sk": text("00"), "state": text("sealed")})
	s.onLoad = func() {
		if s.reads == 2 { // the first put of the record was refused
			s.put("control", envelope.Item{"pk": text("DEKFENCE#" + string(s.current)), "sk": text("00"), "state": text("open")})
		}
	}
	if out := s.apply(f); out.Restored != 1 || s.reads != 2 || s.openKeyed("a") != "plain a" {
		t.Errorf("%+v, the pointer was read %d times", out, s.reads)
	}
}

// TestRestoreLostRecord: a row whose data key has no record under a KEK in use is named and not
// written, in the table as in the backup. Doctor puts such records back.
func TestRestoreLostRecord(t *testing.T) {
	for name, lose := range map[string]func(*site, keyrecord.Record){
		"no record": func(s *site, r keyrecord.Record) {
			_, err := s.db.DeleteItem(s.t.Context(), &dynamodb.DeleteItemInput{TableName: aws.String("keys"), Key: keyrecord.Key(r.DEKID)})
			must(s.t, err)
		},
		"under a retired KEK": func(s *site, r keyrecord.Record) {
			r.KEKID = s.old
			s.put("keys", keyrecord.Encode(r))
		},
	} {
		s := newKeyedSite(t)
		key := s.makeKey(1, s.current, 2)
		absent, there := s.keyed("absent", key), s.keyed("there", key)
		s.put("orders", there)
		record := s.record(key)
		lose(s, record)
		f := s.backup(absent, there)
		must(t, s.Prepare(t.Context()))
		p, err := s.Plan(t.Context(), f)
		if err != nil || p.Lost != 2 || p.Absent != 1 || p.Orphans != 1 || p.Defects != 0 || p.Anew != 0 {
			t.Errorf("%s: plan %+v, %v", name, p, err)
		}
		out := s.apply(f)
		if out.Defects != 2 || out.Restored+out.Present+out.Repaired != 0 || !strings.Contains(out.First[0], "data key "+key+" has no record under a KEK in use") || s.get("absent") != nil {
			t.Errorf("%s: %+v", name, out)
		}
		s.put("keys", keyrecord.Encode(record))
		if out := s.apply(f); out.Restored != 1 || out.Present != 1 || s.openKeyed("absent") != "plain absent" {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

// TestRestoreNewKEK: a rotation that runs meanwhile moves records to a KEK that was minted after
// the restore began.
func TestRestoreNewKEK(t *testing.T) {
	s := newKeyedSite(t)
	f := s.backup(s.keyed("a", s.makeKey(1, s.current, 2)))
	must(t, s.Prepare(t.Context()))
	delete(s.registered, s.current)
	if out, err := s.Apply(t.Context(), f); err != nil || out.Restored != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestRestoreForged: what a reader would refuse is not brought back.
func TestRestoreForged(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*site, string, envelope.Item)
		says  string
	}{
		"the epoch": {func(_ *site, _ string, i envelope.Item) { i["epoch"] = num(4) }, "was made in epoch 4, and the record of the data key says 2"},
		"the context": {func(s *site, key string, _ envelope.Item) {
			r := s.record(key)
			r.Context = map[string]string{"table": "customers"}
			s.put("keys", keyrecord.Encode(r))
		}, "its encryption context is not that of its data key"},
		"the record": {func(s *site, key string, _ envelope.Item) {
			i := keyrecord.Encode(s.record(key))
			delete(i, "born_epoch")
			s.put("keys", i)
		}, "attribute born_epoch is missing"},
		"the id":       {func(_ *site, _ string, i envelope.Item) { i["key"] = text("short") }, "is not the id of a data key"},
		"both kinds":   {func(s *site, _ string, i envelope.Item) { i["kek_id"] = text(string(s.current)) }, "of an embedded row"},
		"no key table": {func(s *site, _ string, _ envelope.Item) { s.Records = nil }, "no key table is registered"},
		"other payload": {func(_ *site, _ string, i envelope.Item) {
			i["body"] = blob([]byte("\x01nothing that was sealed under it"))
		}, "does not open under its data key"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newKeyedSite(t)
			key := s.makeKey(1, s.current, 2)
			item := s.keyed("a", key)
			if name == "other payload" { // seen if the payload is opened
				s.emergency = []kek.Rotation{{Mode: kek.Emergency, OldKEK: s.old, Epoch: 4}}
			}
			c.spoil(s, key, item)
			out := s.apply(s.backup(item))
			if out.Defects != 1 || out.Restored != 0 || !strings.Contains(strings.Join(out.First, ""), c.says) || s.get("a") != nil {
				t.Errorf("%+v", out)
			}
		})
	}
}
