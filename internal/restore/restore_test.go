package restore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// site is a table on the DynamoDB in memory and two KEKs: the old one is retired, the
// pointer is on the current one in epoch 5.
type site struct {
	*Restorer
	t            *testing.T
	db           *memddb.DB
	kms          *memstore.KMS
	old, current kek.ID
	mu           sync.Mutex // rows are restored side by side
	reads        int        // of the pointer
	onLoad       func()
	emergency    []kek.Rotation
}

func newSite(t *testing.T, format string) *site {
	t.Helper()
	s := &site{t: t, db: memddb.New(), kms: memstore.New("chain", time.Now).KMS()}
	for _, table := range [][]string{{"control", "pk", "sk"}, {"orders", "id"}} {
		in := &dynamodb.CreateTableInput{TableName: &table[0]}
		for n, k := range table[1:] {
			in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{AttributeName: &k, AttributeType: types.ScalarAttributeTypeS})
			in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: &k, KeyType: []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[n]})
		}
		_, err := s.db.CreateTable(t.Context(), in)
		must(t, err)
	}
	for n, id := range []*kek.ID{&s.old, &s.current} {
		k, err := s.kms.Create(t.Context(), "r", n+1, "", keyring.Key{})
		must(t, err)
		*id = k.ID
	}
	s.put("control", envelope.Item{"pk": text("FENCE#" + string(s.current)), "sk": text("00"), "state": text("open")})
	c := dynamosource.Config{
		Table: "orders", KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "body", Epoch: "epoch", Version: "version",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{"id": "$id"}, Format: format,
	}
	if format == envelope.FormatKMS {
		c.WrappedDEK, c.Bind = "", nil
	}
	table, err := dynamosource.New(s.db, c)
	must(t, err)
	s.Restorer = &Restorer{
		DynamoDB: s.db, ControlTable: "control", Table: table, Registry: s, Keys: s.kms, KMS: s.kms, Cipher: aead.Cipher{}, Now: time.Now,
		Random: func(b []byte) { _, _ = rand.Read(b) },
	}
	return s
}

// Load implements [Registry].
func (s *site) Load(context.Context, string) (kek.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.onLoad != nil {
		s.onLoad()
	}
	return kek.View{
		Pointer: &kek.Pointer{KEKID: s.current, Epoch: 5}, KEKs: map[kek.ID]kek.KEK{s.current: {ID: s.current, State: kek.Active, FenceShards: 1}},
	}, nil
}

// KEKs implements [Registry].
func (s *site) KEKs(context.Context) ([]kek.KEK, error) {
	return []kek.KEK{{ID: s.old, State: kek.Retired}, {ID: s.current, State: kek.Active, FenceShards: 1}}, nil
}

// Rotations implements [Registry].
func (s *site) Rotations(context.Context) ([]kek.Rotation, error) { return s.emergency, nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func blob(b []byte) types.AttributeValue { return &types.AttributeValueMemberB{Value: b} }
func num(n int) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.Itoa(n)}
}

func (s *site) put(table string, i envelope.Item) {
	s.t.Helper()
	_, err := s.db.PutItem(s.t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: i})
	must(s.t, err)
}

func (s *site) get(id string) envelope.Item {
	s.t.Helper()
	out, err := s.db.GetItem(s.t.Context(), &dynamodb.GetItemInput{TableName: aws.String("orders"), Key: envelope.Item{"id": text(id)}, ConsistentRead: aws.Bool(true)})
	must(s.t, err)
	return out.Item
}

var encctx = map[string]string{"table": "orders"}

func bound(id string) map[string]string { return map[string]string{"table": "orders", "id": id} }

// sealed is a row of epoch 2 under a KEK, with a plaintext of its own.
func (s *site) sealed(id string, under kek.ID) envelope.Item {
	s.t.Helper()
	dek, wrapped, err := s.kms.GenerateDataKey(s.t.Context(), under, encctx)
	must(s.t, err)
	body, err := s.Cipher.Seal(dek, []byte("plain "+id), bound(id))
	must(s.t, err)
	return envelope.Item{
		"id": text(id), "kek_id": text(string(under)), "dek": blob(wrapped), "body": blob(body), "epoch": num(2), "version": num(8), "note": text("old"),
	}
}

// open opens a row under the KEK that it names.
func (s *site) open(i envelope.Item) string {
	s.t.Helper()
	id := i["id"].(*types.AttributeValueMemberS).Value
	dek, err := s.kms.Decrypt(s.t.Context(), kek.ID(i["kek_id"].(*types.AttributeValueMemberS).Value), i["dek"].(*types.AttributeValueMemberB).Value, encctx)
	must(s.t, err)
	plain, err := s.Cipher.Open(dek, i["body"].(*types.AttributeValueMemberB).Value, bound(id))
	must(s.t, err)
	return string(plain)
}

// backup writes items to a file.
func (s *site) backup(items ...envelope.Item) File {
	s.t.Helper()
	var b bytes.Buffer
	for _, item := range items {
		line := map[string]any{}
		for k, v := range item {
			switch v := v.(type) {
			case *types.AttributeValueMemberS:
				line[k] = map[string]string{"S": v.Value}
			case *types.AttributeValueMemberN:
				line[k] = map[string]string{"N": v.Value}
			case *types.AttributeValueMemberB:
				line[k] = map[string]string{"B": base64.StdEncoding.EncodeToString(v.Value)}
			}
		}
		must(s.t, json.NewEncoder(&b).Encode(line))
	}
	path := filepath.Join(s.t.TempDir(), "rows.ndjson")
	must(s.t, os.WriteFile(path, b.Bytes(), 0o600))
	return File{path}
}

func (s *site) apply(f File) Result {
	s.t.Helper()
	must(s.t, s.Prepare(s.t.Context()))
	out, err := s.Apply(s.t.Context(), f)
	must(s.t, err)
	return out
}

func str(i envelope.Item, name string) string { return i[name].(*types.AttributeValueMemberS).Value }

// TestIssue12Item8RestoreRepairsOrphanInPlace: a row that is in the table under a KEK
// that is retired, because the backup was written back as it is, is not "there already":
// it is rewrapped where it is, and what others wrote since stays.
func TestIssue12Item8RestoreRepairsOrphanInPlace(t *testing.T) {
	s := newSite(t, "")
	orphan, lost, newer := s.sealed("orphan", s.old), s.sealed("lost", s.old), s.sealed("newer", s.old)
	f := s.backup(orphan, lost, newer)
	written := s.sealed("orphan", s.old)
	written["dek"], written["body"], written["note"] = orphan["dek"], orphan["body"], text("written since")
	s.put("orders", written)
	s.put("orders", s.sealed("newer", s.current))

	must(t, s.Prepare(t.Context()))
	p, err := s.Plan(t.Context(), f)
	must(t, err)
	if p.Orphans != 1 || p.Absent != 1 || p.Present != 1 || p.ByKEK[s.old] != 2 || len(p.Retired) != 1 {
		t.Errorf("plan %+v", p)
	}
	want := Result{Restored: 1, Repaired: 1, Present: 1, ByKEK: map[kek.ID]int64{s.old: 2}, First: []string{}}
	if diff := cmp.Diff(want, s.apply(f)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	for _, id := range []string{"orphan", "lost", "newer"} {
		if i := s.get(id); str(i, "kek_id") != string(s.current) || s.open(i) != "plain "+id {
			t.Errorf("row %s: %v", id, i)
		}
	}
	if i := s.get("orphan"); str(i, "note") != "written since" || i["version"].(*types.AttributeValueMemberN).Value != "9" || i["epoch"].(*types.AttributeValueMemberN).Value != "5" {
		t.Errorf("the repaired row is %v", i)
	}
	if again := s.apply(f); again.Present != 3 || again.Repaired != 0 {
		t.Errorf("again: %+v", again)
	}
}

// TestOrphanThatCannotBeRepaired: it is named, and never counted as there.
func TestOrphanThatCannotBeRepaired(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*site, envelope.Item)
		says  string
	}{
		"a KEK that nobody knows": {func(_ *site, i envelope.Item) { i["kek_id"] = text("nobodys") }, "KEK nobodys is not in the registry"},
		"no data key":             {func(_ *site, i envelope.Item) { delete(i, "dek") }, "the row that is in the table is not a sound envelope"},
		"no envelope at all": {func(_ *site, i envelope.Item) {
			for _, a := range []string{"kek_id", "dek", "body", "epoch"} {
				delete(i, a)
			}
		}, "none of the envelope's attributes"},
		"garbage": {func(_ *site, i envelope.Item) { i["dek"] = blob([]byte("nothing that KMS wrapped")) }, "KMS refused to unwrap"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "")
			good := s.sealed("r", s.old)
			f := s.backup(good)
			there := s.sealed("r", s.old)
			c.spoil(s, there)
			s.put("orders", there)
			out := s.apply(f)
			if out.Defects != 1 || out.Present != 0 || len(out.First) != 1 || !strings.Contains(out.First[0], c.says) {
				t.Errorf("%+v", out)
			}
			if diff := cmp.Diff(len(there), len(s.get("r"))); diff != "" {
				t.Errorf("the row was changed: %s", diff)
			}
		})
	}
}

// TestRepairIsConditional: a row that somebody writes between the look and the write is
// looked at again, and his write stays.
func TestRepairIsConditional(t *testing.T) {
	s := newSite(t, "")
	orphan := s.sealed("r", s.old)
	f := s.backup(orphan)
	s.put("orders", orphan)
	s.onLoad = func() {
		if s.reads == 1 { // after the row was read
			newer := s.sealed("r", s.current)
			newer["note"] = text("newer")
			s.put("orders", newer)
		}
	}
	if out := s.apply(f); out.Present != 1 || out.Repaired != 0 {
		t.Errorf("%+v", out)
	}
	if i := s.get("r"); str(i, "note") != "newer" || s.open(i) != "plain r" {
		t.Errorf("row %v", i)
	}
}

// TestFence: nothing comes to be under a KEK whose fence is sealed, a repair neither.
func TestFence(t *testing.T) { synctest.Test(t, fenced) }

func fenced(t *testing.T) {
	s := newSite(t, "")
	orphan := s.sealed("orphan", s.old)
	s.put("orders", orphan)
	s.put("control", envelope.Item{"pk": text("FENCE#" + string(s.current)), "sk": text("00"), "state": text("sealed")})
	must(t, s.Prepare(t.Context()))
	for _, i := range []envelope.Item{orphan, s.sealed("lost", s.old)} {
		s.reads = 0
		_, err := s.Apply(t.Context(), s.backup(i))
		if !errors.Is(err, errRetry) || s.reads != maxTries {
			t.Errorf("%v, the pointer was read %d times", err, s.reads)
		}
	}
	if str(s.get("orphan"), "kek_id") != string(s.old) || s.get("lost") != nil {
		t.Error("a row was written")
	}
}

// TestExposed: a row's payload is encrypted under a fresh data key exactly if an
// emergency has left its KEK, or a KEK of a later epoch that the same data key was
// wrapped under.
func TestExposed(t *testing.T) {
	for name, c := range map[string]struct {
		emergency kek.Rotation
		epoch     int // of the row; 0 for none
		want      bool
	}{
		"no emergency":               {kek.Rotation{}, 2, false},
		"before the row's epoch":     {kek.Rotation{OldKEK: "x", Epoch: 2}, 2, false},
		"after it, from a later KEK": {kek.Rotation{OldKEK: "x", Epoch: 4}, 2, true},
		"from its KEK":               {kek.Rotation{OldKEK: "kek-0001", Epoch: 1}, 2, true},
		"from its KEK among others":  {kek.Rotation{OldKEK: "x", Olds: []kek.ID{"x", "kek-0001"}, Epoch: 1}, 2, true},
		"the epoch is not known":     {kek.Rotation{OldKEK: "x", Epoch: 2}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "")
			if c.emergency.Epoch > 0 {
				c.emergency.Mode = kek.Emergency
				s.emergency = []kek.Rotation{c.emergency}
			}
			item := s.sealed("r", s.old)
			delete(item, "epoch")
			if c.epoch != 0 {
				item["epoch"] = num(c.epoch)
			}
			out := s.apply(s.backup(item))
			if out.Restored != 1 || (out.Anew == 1) != c.want {
				t.Fatalf("%+v, want encrypted under a fresh data key: %t", out, c.want)
			}
			got := s.get("r")
			if fresh := !bytes.Equal(got["body"].(*types.AttributeValueMemberB).Value, item["body"].(*types.AttributeValueMemberB).Value); fresh != c.want {
				t.Errorf("fresh payload %t, want %t", fresh, c.want)
			}
			if s.open(got) != "plain r" || str(got, "note") != "old" {
				t.Errorf("row %v", got)
			}
		})
	}
}

// TestWhole: a row whose wrapped bytes have no payload of this project behind them is
// rewrapped, and it is said if its data key may be exposed.
func TestWhole(t *testing.T) {
	for _, format := range []string{envelope.FormatTink, envelope.FormatKMS} {
		for _, exposed := range []bool{false, true} {
			s := newSite(t, format)
			if exposed {
				s.emergency = []kek.Rotation{{Mode: kek.Emergency, OldKEK: s.old, Epoch: 5}}
			}
			ctx := encctx
			if format == envelope.FormatTink {
				ctx = nil
			}
			dek, body, err := s.kms.GenerateDataKey(t.Context(), s.old, ctx)
			must(t, err)
			if format == envelope.FormatTink {
				body, err = aead.JoinTink(body, []byte("payload"))
				must(t, err)
			}
			out := s.apply(s.backup(envelope.Item{"id": text("r"), "kek_id": text(string(s.old)), "body": blob(body)}))
			if out.Restored != 1 || (out.Opaque == 1) != exposed || out.Anew != 0 {
				t.Errorf("%s: %+v", format, out)
			}
			got := s.get("r")
			wrapped := got["body"].(*types.AttributeValueMemberB).Value
			if format == envelope.FormatTink {
				var payload []byte
				wrapped, payload, err = aead.ParseTink(wrapped)
				if must(t, err); string(payload) != "payload" {
					t.Errorf("payload %q", payload)
				}
			}
			again, err := s.kms.Decrypt(t.Context(), s.current, wrapped, ctx)
			if err != nil || !bytes.Equal(again, dek) || got["dek"] != nil {
				t.Errorf("%s: %v, row %v", format, err, got)
			}
		}
	}
}

// TestNoRow: what is not a row of the source is refused, each for its own reason, and the
// others are restored.
func TestNoRow(t *testing.T) {
	for name, spoil := range map[string]func(envelope.Item){
		"no KEK":        func(i envelope.Item) { delete(i, "kek_id") },
		"foreign KEK":   func(i envelope.Item) { i["kek_id"] = text("nobodys") },
		"foreign ARN":   func(i envelope.Item) { i["kek_id"] = text("arn:aws:kms:eu-central-1:210987654321:key/kek-0001") },
		"no DEK":        func(i envelope.Item) { delete(i, "dek") },
		"DEK of type S": func(i envelope.Item) { i["dek"] = text("x") },
		"version":       func(i envelope.Item) { i["version"] = &types.AttributeValueMemberN{Value: "9223372036854775807"} },
		"epoch":         func(i envelope.Item) { i["epoch"] = &types.AttributeValueMemberN{Value: "1.5"} },
		"no key":        func(i envelope.Item) { delete(i, "id") },
	} {
		s := newSite(t, "")
		item := s.sealed("r", s.old)
		spoil(item)
		out := s.apply(s.backup(item, s.sealed("good", s.old)))
		if out.Defects != 1 || out.Restored != 1 || s.get("r") != nil {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

// TestLocked: the KEKs that must be enabled first are named, those of orphans too.
func TestLocked(t *testing.T) {
	s := newSite(t, "")
	orphan, lost := s.sealed("orphan", s.old), s.sealed("lost", s.old)
	s.put("orders", orphan)
	must(t, s.kms.Disable(t.Context(), s.old))
	must(t, s.Prepare(t.Context()))
	p, err := s.Plan(t.Context(), s.backup(orphan, lost))
	must(t, err)
	if len(p.Locked) != 1 || p.Locked[0].KEK != s.old || p.Locked[0].Rows != 2 {
		t.Errorf("%+v", p.Locked)
	}
	if _, err := s.Apply(t.Context(), s.backup(orphan)); !errors.Is(err, journal.ErrKeyDisabled) {
		t.Errorf("a disabled KEK: %v", err)
	}
}
