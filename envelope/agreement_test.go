package envelope_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The data plane must not depend on the control plane, so each has its own code
// for the items that both touch. These tests hold the two together.

func TestLeaseAgreement(t *testing.T) {
	w := newSite(t)
	ctx := t.Context()
	ours, theirs := envelope.NewControl(w.dynamo, w.control), ddb.NewLeases(w.dynamo, w.control)
	raw := func(holder string) item {
		t.Helper()
		out, err := w.dynamo.GetItem(ctx, &dynamodb.GetItemInput{
			TableName: &w.control, ConsistentRead: aws.Bool(true),
			Key: item{"pk": &s{Value: "LEASE#k"}, "sk": &s{Value: holder}},
		})
		w.must("GetItem", err)
		return out.Item
	}
	same := func(what string) {
		t.Helper()
		a, b := raw("a"), raw("b")
		delete(a, "sk")
		delete(b, "sk")
		if d := cmp.Diff(b, a, ignoreSDK); d != "" || len(a) == 0 {
			t.Errorf("%s: theirs and ours differ (-theirs +ours):\n%s", what, d)
		}
	}
	expires := time.UnixMilli(1_700_000_000_123).UTC()
	lease := rotation.Lease{KEK: "k", Holder: "b", Host: "h", PID: 7, Refs: 3, Expires: expires}
	w.must("put", ours.PutLease(ctx, "k", "a", "h", 7, 3, expires))
	w.must("put", theirs.PutLease(ctx, lease))
	same("put")
	lease.Refs, lease.Expires = 9, expires.Add(time.Second)
	for _, renew := range []func() (bool, error){
		func() (bool, error) { return ours.RenewLease(ctx, "k", "a", 9, lease.Expires) },
		func() (bool, error) { return theirs.RenewLease(ctx, lease) },
	} {
		if ok, err := renew(); !ok || err != nil {
			t.Fatalf("renew: %v, %v", ok, err)
		}
	}
	same("renew")
	read := w.leases("k")
	lease.Holder = "a"
	if len(read) != 2 || !cmp.Equal(read[0], lease) {
		t.Errorf("the rotation reads %+v", read)
	}
	w.must("drop", ours.DropLease(ctx, "k", "a"))
	if ok, err := ours.RenewLease(ctx, "k", "a", 0, expires); ok || err != nil || raw("a") != nil {
		t.Errorf("a lease that was dropped is renewed: %v, %v", ok, err)
	}
	revoked, err := w.steps.Drainage.Revoke(ctx, w.leases("k")[0])
	if err != nil || !revoked {
		t.Fatalf("revoke: %v, %v", revoked, err)
	}
	if ok, err := ours.RenewLease(ctx, "k", "b", 0, expires); ok || err != nil {
		t.Errorf("a lease that was revoked is renewed: %v, %v", ok, err)
	}
}

func TestRegistryAgreement(t *testing.T) {
	w := newSite(t)
	ctx := t.Context()
	w.begin("r1", kek.Emergency)
	ours := envelope.NewControl(w.dynamo, w.control)
	p, err := ours.Pointer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := w.pointer()
	want.SwitchedAt = time.Time{} // of no interest here
	if d := cmp.Diff(want, p); d != "" || p.RotationID != "r1" {
		t.Errorf("pointer (-theirs +ours):\n%s", d)
	}
	v, err := w.steps.Registry.Load(ctx, "r1")
	if err != nil {
		t.Fatal(err)
	}
	for id, k := range v.KEKs {
		got, err := ours.KEK(ctx, id)
		want := kek.KEK{ID: k.ID, ARN: k.ARN, State: k.State, FenceShards: k.FenceShards}
		if err != nil || got != want || got.FenceShards != shards {
			t.Errorf("KEK %s: %+v, %v, want %+v", id, got, err, want)
		}
	}
	if len(v.KEKs) != 2 {
		t.Errorf("%d KEKs", len(v.KEKs))
	}
	if k, err := ours.KEK(ctx, "unknown"); err != nil || k.State.Resolves() {
		t.Errorf("an unknown KEK: %+v, %v", k, err)
	}
	if m, err := ours.Mode(ctx, "r1"); err != nil || m != kek.Emergency {
		t.Errorf("mode %q, %v", m, err)
	}
}

// TestSourceAgreement: an entry of MATTER_SOURCES decodes strictly into both, and
// both fill in the same.
func TestSourceAgreement(t *testing.T) {
	want := ddb.SourceConfig{
		Name: "a", Table: "b", KEKID: "c", WrappedDEK: "d", Ciphertext: "e", Epoch: "f", Version: "g",
		Context: map[string]string{"h": "$i"}, Format: "matter",
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var got envelope.TableConfig
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(tableConfig(want), got); d != "" {
		t.Error(d)
	}
	back, err := json.Marshal(got)
	if err != nil || !bytes.Equal(back, text) {
		t.Errorf("%s, %v\nwant %s", back, err, text)
	}
}

// TestDefinition: every definition of a source decodes, also of tables that the client
// does not write.
func TestDefinition(t *testing.T) {
	d := json.NewDecoder(strings.NewReader(`{"name": "a", "table": "b", "kek_id_attribute": "c", "wrapped_dek_attribute": "",
		"ciphertext_attribute": "e", "epoch_attribute": "f", "version_attribute": "g", "context": {"h": "$i"}, "bind": {"j": "k"},
		"format": "kms", "payloads": "opaque", "other": {"attribute": "l", "values": ["m", "n"]}}`))
	d.DisallowUnknownFields()
	var got envelope.TableConfig
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := envelope.TableConfig{
		Name: "a", Table: "b", KEKID: "c", Ciphertext: "e", Epoch: "f", Version: "g", Context: map[string]string{"h": "$i"},
		Bind: map[string]string{"j": "k"}, Format: envelope.FormatKMS, Payloads: envelope.PayloadsOpaque,
		Other: &envelope.Other{Attribute: "l", Values: []string{"m", "n"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// FuzzContextAgreement: both make the same encryption context of a row, or both
// refuse it.
func FuzzContextAgreement(f *testing.F) {
	f.Add("k", "$attr", "attr", "value", byte(0))
	f.Add("k", "$$attr", "attr", "value", byte(0))
	f.Add("k", "$attr", "other", "value", byte(1))
	f.Add("", "", "", "", byte(2))
	f.Fuzz(func(t *testing.T, key, value, attr, content string, kind byte) {
		i := item{}
		switch kind % 3 {
		case 0:
			i[attr] = &s{Value: content}
		case 1:
			i[attr] = &n{Value: content}
		case 2:
			i[attr] = &b{Value: []byte(content)}
		}
		encctx := map[string]string{key: value, "fixed": "$$1"}
		want, werr := ddb.ContextOf(ddb.SourceConfig{Context: encctx}, i)
		got, _, gerr := envelope.TableConfig{Context: encctx}.Bound(i)
		if (werr == nil) != (gerr == nil) || !cmp.Equal(want, got) {
			t.Errorf("the rotation makes %q, %v; the data plane %q, %v", want, werr, got, gerr)
		}
	})
}
