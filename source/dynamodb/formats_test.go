package dynamodb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	tinkaead "github.com/tink-crypto/tink-go/v2/aead"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

// only is the one row of a table.
func only(t *testing.T, driver source.Driver, req source.ScanRequest) source.Row {
	t.Helper()
	req.Total = 1
	page, err := driver.Scan(t.Context(), req)
	if err != nil || len(page.Rows) != 1 || page.Other+page.Declared != 0 {
		t.Fatalf("%+v, %v", page, err)
	}
	return page.Rows[0]
}

// sameItem fails the test unless the item with a key is want.
func sameItem(t *testing.T, what string, client dynamo, table string, want item) {
	t.Helper()
	got := get(t, client, table, item{"id": want["id"]})
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(s{}, n{}, b{})); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func idTable(t *testing.T, client dynamo) string {
	t.Helper()
	return ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
}

// TestFormatKMS: a row whose payload is KMS's own ciphertext is labeled if it names no
// KEK, and rewrapped whole, in an emergency too.
func TestFormatKMS(t *testing.T) { everywhere(t, testFormatKMS) }

func testFormatKMS(t *testing.T, client dynamo) {
	t.Helper()
	table := idTable(t, client)
	cfg := sourceConfig(table)
	cfg.Format, cfg.WrappedDEK, cfg.Bind, cfg.Version = "kms", "", nil, ""
	driver := open(t, watch(t, client), cfg)
	i := item{"id": &s{Value: "a"}, "name": &s{Value: "a"}, "data": &b{Value: []byte("by KMS")}, "version": &s{Value: "the application's"}}
	put(t, client, table, i)
	var typed *source.Error
	if _, err := driver.Check(t.Context()); !errors.As(err, &typed) || typed.Problem != source.Unaccounted || typed.Field != "kek_id_attribute" {
		t.Errorf("check: %v", err)
	}
	row := only(t, driver, source.ScanRequest{Payload: true})
	if row.Kind != source.NoKEK || string(row.WrappedDEK) != "by KMS" || row.Context["id"] != "a" || !row.Whole || row.Ciphertext != nil {
		t.Errorf("%+v", row)
	}
	if ok, err := driver.Label(t.Context(), row, "old"); err != nil || !ok {
		t.Fatalf("label: %v, %v", ok, err)
	}
	i["key"] = &s{Value: "old"}
	sameItem(t, "labeled", client, table, i)

	with := source.Rewrapped{KEK: "new", Epoch: 2, WrappedDEK: []byte("by KMS again")}
	for _, payload := range []bool{false, true} {
		put(t, client, table, i)
		row := only(t, driver, source.ScanRequest{Payload: payload})
		if row.Defect != "" {
			t.Fatal(row.Defect)
		}
		if err := driver.Rehearse(t.Context(), row); err != nil {
			t.Error(err)
		}
		withPayload := with
		withPayload.Ciphertext = []byte("x")
		if ok, err := driver.Replace(t.Context(), row, withPayload); err == nil || ok {
			t.Errorf("its payload was replaced: %v, %v", ok, err)
		}
		written := maps.Clone(i)
		written["data"] = &b{Value: []byte("written meanwhile")}
		put(t, client, table, written)
		if ok, err := driver.Replace(t.Context(), row, with); err != nil || ok {
			t.Errorf("a row that was written meanwhile: %v, %v", ok, err)
		}
		put(t, client, table, i)
		if ok, err := driver.Replace(t.Context(), row, with); err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
		moved := maps.Clone(i)
		moved["key"], moved["data"], moved["kek_epoch"] = &s{Value: "new"}, &b{Value: with.WrappedDEK}, &n{Value: "2"}
		sameItem(t, "rewrapped", client, table, moved)
	}
	for kind, change := range map[source.Defect]func(item){
		source.NoCiphertext: func(i item) { delete(i, "data") },
		source.WrongType:    func(i item) { i["data"] = &s{Value: "x"} },
		source.NoContext:    func(i item) { delete(i, "name") },
		source.EpochAlone:   func(i item) { remove(i, "key", "data"); i["kek_epoch"] = &n{Value: "1"} },
	} {
		odd := maps.Clone(i)
		change(odd)
		put(t, client, table, odd)
		if row := only(t, driver, source.ScanRequest{}); row.Kind != kind {
			t.Errorf("%s is reported as %q: %s", kind, row.Kind, row.Defect)
		}
	}
}

// TestAdoptTinkRow: a row that Tink wrote names no KEK; the wrapped DEK is inside.
func TestAdoptTinkRow(t *testing.T) { everywhere(t, testAdoptTinkRow) }

func testAdoptTinkRow(t *testing.T, client dynamo) {
	t.Helper()
	table := idTable(t, client)
	cfg := sourceConfig(table)
	cfg.Format = "tink"
	driver := open(t, watch(t, client), cfg)
	before := tinkKEK(t, 1)
	whole, err := tinkaead.NewKMSEnvelopeAEAD2(tinkaead.AES256GCMKeyTemplate(), before).Encrypt([]byte("by Tink"), nil)
	if err != nil {
		t.Fatal(err)
	}
	i := item{"id": &s{Value: "a"}, "data": &b{Value: whole}}
	put(t, client, table, i)
	row := only(t, driver, source.ScanRequest{})
	if _, err := before.Decrypt(row.WrappedDEK, nil); err != nil || row.Kind != source.NoKEK || len(row.Context) > 0 {
		t.Errorf("%+v: %v", row, err)
	}
	if ok, err := driver.Label(t.Context(), row, "old"); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	i["key"] = &s{Value: "old"}
	sameItem(t, "labeled", client, table, i)
	// A row that the application has sealed again meanwhile is not Tink's any more.
	row = only(t, driver, source.ScanRequest{})
	i["wrapped.dek"] = &b{Value: []byte("dek")}
	put(t, client, table, i)
	if ok, err := driver.Label(t.Context(), row, "other"); err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	if ok, err := driver.Replace(t.Context(), row, source.Rewrapped{KEK: "new", WrappedDEK: []byte("new")}); err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	sameItem(t, "left alone", client, table, i)
	for name, c := range map[string]struct {
		kind source.Defect
		item item
	}{
		"no payload":         {source.NoCiphertext, item{"key": &s{Value: "old"}}},
		"an empty payload":   {source.NoCiphertext, item{"key": &s{Value: "old"}, "data": &b{Value: []byte{}}}},
		"a payload of text":  {source.WrongType, item{"key": &s{Value: "old"}, "data": &s{Value: "x"}}},
		"not Tink's payload": {source.Damaged, item{"data": &b{Value: []byte("plain")}}},
		"an epoch alone":     {source.EpochAlone, item{"kek_epoch": &n{Value: "1"}}},
		"a DEK of its own":   {source.NoContext, item{"key": &s{Value: "old"}, "wrapped.dek": &b{Value: []byte("dek")}, "data": &b{Value: whole}}},
	} {
		c.item["id"] = i["id"]
		put(t, client, table, c.item)
		if row := only(t, driver, source.ScanRequest{}); row.Kind != c.kind {
			t.Errorf("%s is reported as %q: %s", name, row.Kind, row.Defect)
		}
	}
}

// TestForeignVersion: an attribute that happens to be named version is the
// application's own if the definition does not name it (cases/28).
func TestForeignVersion(t *testing.T) { everywhere(t, testForeignVersion) }

func testForeignVersion(t *testing.T, client dynamo) {
	t.Helper()
	table := idTable(t, client)
	cfg := sourceConfig(table)
	cfg.Version = ""
	driver := open(t, client, cfg)
	for _, version := range []types.AttributeValue{&n{Value: "2"}, &s{Value: "v2"}} {
		i := envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "old", WrappedDEK: []byte("d"), Ciphertext: []byte("c")})
		i["version"] = version
		put(t, client, table, i)
		if ok, err := driver.Replace(t.Context(), only(t, driver, source.ScanRequest{}), source.Rewrapped{KEK: "new", Epoch: 2, WrappedDEK: []byte("e")}); err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
		i["key"], i["wrapped.dek"], i["kek_epoch"] = &s{Value: "new"}, &b{Value: []byte("e")}, &n{Value: "2"}
		sameItem(t, "rewrapped", client, table, i)
	}
}

// TestOpaquePayloads: an emergency is told that it can only rewrap the DEK.
func TestOpaquePayloads(t *testing.T) {
	client := ddbtest.Client(t)
	for _, ciphertext := range []string{"data", ""} {
		table := idTable(t, client)
		cfg := sourceConfig(table)
		cfg.Payloads, cfg.Ciphertext = "opaque", ciphertext
		put(t, client, table, envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "old", WrappedDEK: []byte("d"), Ciphertext: []byte("theirs")}))
		row := only(t, open(t, client, cfg), source.ScanRequest{Payload: true})
		if !row.Whole || row.Ciphertext != nil || row.Defect != "" || string(row.WrappedDEK) != "d" {
			t.Errorf("%+v", row)
		}
	}
}

// recorded keeps the updates that a source sends, and may refuse them.
type recorded struct {
	dynamo
	updates []*dynamodb.UpdateItemInput
	refuse  error
}

func (r *recorded) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	r.updates = append(r.updates, in)
	if r.refuse != nil {
		return nil, r.refuse
	}
	return r.dynamo.UpdateItem(ctx, in, o...)
}

// written lists the attributes that an update sets, by the definition's names.
func written(in *dynamodb.UpdateItemInput) map[string]bool {
	out := map[string]bool{}
	for placeholder, name := range in.ExpressionAttributeNames {
		if strings.Contains(*in.UpdateExpression, placeholder+" =") {
			out[name] = true
		}
	}
	return out
}

// TestRehearse: a rehearsal sends the very update that a rewrap sends, so that a policy
// which lists attributes decides the same, and what AWS denies is told.
func TestRehearse(t *testing.T) { everywhere(t, testRehearse) }

func testRehearse(t *testing.T, client dynamo) {
	t.Helper()
	for _, version := range []string{"", "version"} {
		for _, payload := range []bool{false, true} {
			table := idTable(t, client)
			cfg := sourceConfig(table)
			cfg.Version = version
			api := &recorded{dynamo: client}
			driver := open(t, api, cfg)
			i := envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "old", WrappedDEK: []byte("d"), Ciphertext: []byte("c")})
			put(t, client, table, i)
			row := only(t, driver, source.ScanRequest{Payload: payload})
			if err := driver.Rehearse(t.Context(), row); err != nil {
				t.Fatal(err)
			}
			sameItem(t, "rehearsed", client, table, i)
			with := source.Rewrapped{KEK: "new", Epoch: 2, WrappedDEK: []byte("e")}
			if payload {
				with.Ciphertext = []byte("f")
			}
			if ok, err := driver.Replace(t.Context(), row, with); err != nil || !ok {
				t.Fatalf("%v, %v", ok, err)
			}
			if d := cmp.Diff(written(api.updates[1]), written(api.updates[0])); d != "" {
				t.Errorf("version %q, payload %v: a rewrap writes other attributes than the rehearsal (-rewrap +rehearsal):\n%s", version, payload, d)
			}
		}
	}
	table := idTable(t, client)
	put(t, client, table, envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "old", WrappedDEK: []byte("d"), Ciphertext: []byte("c")}))
	driver := open(t, &recorded{dynamo: client, refuse: &smithy.GenericAPIError{Code: "AccessDeniedException"}}, sourceConfig(table))
	row := only(t, driver, source.ScanRequest{})
	if err := driver.Rehearse(t.Context(), row); !errors.Is(err, source.ErrDenied) {
		t.Errorf("rehearsal: %v, want ErrDenied", err)
	}
	if ok, err := driver.Replace(t.Context(), row, source.Rewrapped{KEK: "new", WrappedDEK: []byte("e")}); !errors.Is(err, source.ErrDenied) || ok {
		t.Errorf("replace: %v, %v, want ErrDenied", ok, err)
	}
}

// TestRehearseBroken: a DynamoDB that makes a write whose condition cannot hold shows
// nothing of the permission to write.
func TestRehearseBroken(t *testing.T) {
	client := ddbtest.Client(t)
	table := idTable(t, client)
	put(t, client, table, envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "old", WrappedDEK: []byte("d"), Ciphertext: []byte("c")}))
	driver := open(t, unconditional{client}, sourceConfig(table))
	if err := driver.Rehearse(t.Context(), only(t, driver, source.ScanRequest{})); err == nil {
		t.Error("no error")
	}
}

type unconditional struct{ dynamo }

func (u unconditional) UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return &dynamodb.UpdateItemOutput{}, nil
}

// TestRoom: an item that is reported as having room takes the largest rewrap, and one
// that DynamoDB would refuse is reported.
func TestRoom(t *testing.T) { everywhere(t, testRoom) }

func testRoom(t *testing.T, client dynamo) {
	t.Helper()
	for name, c := range map[string]struct {
		stored sourcetest.Envelope
		change func(*dynamosource.Config)
	}{
		"all attributes":  {sourcetest.Envelope{KEK: "0123456789", Epoch: 9, Version: 9}, func(*dynamosource.Config) {}},
		"an ARN":          {sourcetest.Envelope{KEK: "k", KeyARN: "arn:aws:kms:eu-central-1:000000000000:key/k"}, func(*dynamosource.Config) {}},
		"no version":      {sourcetest.Envelope{KEK: "k"}, func(c *dynamosource.Config) { c.Version = "" }},
		"a long epoch":    {sourcetest.Envelope{KEK: "k"}, func(c *dynamosource.Config) { c.Epoch = strings.Repeat("e", 300) }},
		"KMS's own":       {sourcetest.Envelope{KEK: "k"}, func(c *dynamosource.Config) { c.Format, c.WrappedDEK, c.Bind = "kms", "", nil }},
		"opaque payloads": {sourcetest.Envelope{KEK: "k"}, func(c *dynamosource.Config) { c.Payloads = "opaque" }},
	} {
		table := idTable(t, client)
		cfg := sourceConfig(table)
		c.change(&cfg)
		driver := open(t, client, cfg)
		c.stored.WrappedDEK, c.stored.Ciphertext = bytes.Repeat([]byte("d"), 184), []byte("c")
		i := envelopeItem(item{"id": &s{Value: "a"}}, "a", c.stored)
		if cfg.WrappedDEK == "" {
			delete(i, "wrapped.dek")
		}
		i["fill"] = &s{}
		sized := func(size int) source.Row {
			own := maps.Clone(i)
			own["fill"] = &s{Value: strings.Repeat("x", size-attr.ItemSize(own))}
			put(t, client, table, own)
			return only(t, driver, source.ScanRequest{Whole: true})
		}
		low, high := attr.MaxItemSize-1000, attr.MaxItemSize // the largest size that has room
		if row := sized(low); row.Defect != "" {
			t.Fatalf("%s: %s", name, row.Defect)
		}
		if row := sized(high); row.Kind != source.NoRoom || !strings.Contains(row.Defect, fmt.Sprint(attr.MaxItemSize)) {
			t.Fatalf("%s: %+v", name, row)
		}
		for high-low > 1 {
			if m := (low + high) / 2; sized(m).Kind == source.NoRoom {
				high = m
			} else {
				low = m
			}
		}
		largest := source.Rewrapped{KEK: kek.ID(strings.Repeat("k", 36)), Epoch: 1<<63 - 1, WrappedDEK: bytes.Repeat([]byte("d"), 184+128)}
		if cfg.WrappedDEK == "" {
			largest.WrappedDEK = bytes.Repeat([]byte("d"), 1+128)
		}
		if ok, err := driver.Replace(t.Context(), sized(low), largest); err != nil || !ok {
			t.Errorf("%s: the largest row that has room: %v, %v", name, ok, err)
		}
		longer := largest
		longer.WrappedDEK = append(bytes.Clone(largest.WrappedDEK), bytes.Repeat([]byte("d"), 64)...)
		if ok, err := driver.Replace(t.Context(), sized(low), longer); !errors.Is(err, source.ErrRejected) || ok {
			t.Errorf("%s: 64 bytes more: %v, %v, want ErrRejected: too many rows are reported", name, ok, err)
		}
	}
}
