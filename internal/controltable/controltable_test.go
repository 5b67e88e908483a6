package controltable

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
)

var ignoreSDK = cmpopts.IgnoreUnexported(
	types.AttributeValueMemberS{}, types.AttributeValueMemberN{}, types.ConditionCheck{},
	dynamodb.GetItemInput{}, dynamodb.PutItemInput{}, dynamodb.UpdateItemInput{}, dynamodb.DeleteItemInput{},
)

var noon = time.Date(2026, 4, 1, 12, 0, 0, 123e6, time.UTC)

// TestStoredItems: what the items look like in the table, and that they come back as they
// were.
func TestStoredItems(t *testing.T) {
	str := attr.Str
	check := func(name string, got, want attr.Item, back, value any, err error) {
		t.Helper()
		if d := cmp.Diff(want, got, ignoreSDK); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if d := cmp.Diff(value, back); d != "" || err != nil {
			t.Errorf("%s does not come back as it was: %v (-want +got):\n%s", name, err, d)
		}
	}
	p := kek.Pointer{KEKID: "k", KeyARN: "arn", Epoch: 3, RotationID: "r", SwitchedAt: noon}
	back, err := DecodePointer(EncodePointer(p))
	check("pointer", EncodePointer(p), attr.Item{
		"pk": str("POINTER"), "sk": str("-"), "kek_id": str("k"), "key_arn": str("arn"), "epoch": attr.Num(3),
		"rotation_id": str("r"), "switched_at": str("2026-04-01T12:00:00.123Z"),
	}, back, p, err)

	k := kek.KEK{ID: "k", ARN: "arn", State: kek.Active, Label: "l", RotationID: "r", FenceShards: 4, CreatedAt: noon, SwitchedAt: noon, RetiredAt: noon, Reason: "why", NotBeforeDelete: noon}
	kback, err := DecodeKEK(EncodeKEK(k))
	at := str("2026-04-01T12:00:00.123Z")
	check("KEK", EncodeKEK(k), attr.Item{
		"pk": str("KEK#k"), "sk": str("-"), "state": str("active"), "key_arn": str("arn"), "label": str("l"), "rotation_id": str("r"),
		"fence_shards": attr.Num(4), "created_at": at, "switched_at": at, "retired_at": at, "reason": str("why"), "not_before_delete": at,
	}, kback, k, err)

	l := Lease{KEK: "k", Holder: "h", Host: "web", PID: 7, Refs: 2, Expires: time.UnixMilli(1_700_000_000_123).UTC()}
	lback, err := DecodeLease(EncodeLease(l))
	check("lease", EncodeLease(l), attr.Item{
		"pk": str("LEASE#k"), "sk": str("h"), "host": str("web"), "pid": attr.Num(7), "refs": attr.Num(2), "expires_at": attr.Num(1_700_000_000_123),
	}, lback, l, err)
	if i := EncodeLease(Lease{KEK: "k", Holder: "h"}); i["host"] != nil {
		t.Errorf("a host without a name: %v", i)
	}

	m := kek.Mark{Table: "orders", Holder: "h", SeenAt: noon}
	mback, err := DecodeMark(EncodeMark(m))
	check("mark", EncodeMark(m), attr.Item{"pk": str("MARK"), "sk": str("orders"), "holder": str("h"), "seen_at": at}, mback, m, err)

	want := attr.Item{"pk": str("FENCE#k"), "sk": str("07"), "state": str("sealed")}
	if d := cmp.Diff(want, EncodeFence(PKFence, "k", 7, Sealed), ignoreSDK); d != "" {
		t.Errorf("fence (-want +got):\n%s", d)
	}
	if a, b := RotationPK("r"), FenceSK(123); a != "ROTATION#r" || b != "123" {
		t.Errorf("%s, %s", a, b)
	}
}

// TestDamagedItems: an attribute of another type is an error that names it.
func TestDamagedItems(t *testing.T) {
	for attribute, decode := range map[string]func(attr.Item) error{
		"kek_id": func(i attr.Item) error { _, err := DecodePointer(i); return err },
		"state":  func(i attr.Item) error { _, err := DecodeKEK(i); return err },
		"refs":   func(i attr.Item) error { _, err := DecodeLease(i); return err },
		"holder": func(i attr.Item) error { _, err := DecodeMark(i); return err },
	} {
		if err := decode(attr.Item{attribute: attr.Bool(true)}); err == nil || !strings.Contains(err.Error(), "attribute "+attribute) {
			t.Errorf("%s: %v", attribute, err)
		}
	}
}

// FuzzItems: no item brings a decoder down, and what decodes keeps its meaning when it is
// written again.
func FuzzItems(f *testing.F) {
	f.Add("k", "a", int64(3), "2026-04-01T12:00:00.123Z", byte(0))
	f.Add("", "arn", int64(-1), "yesterday", byte(3))
	f.Fuzz(func(t *testing.T, id, text string, n int64, at string, wrong byte) {
		i := attr.Item{"pk": attr.Str(PKKEK + id), "sk": attr.Str(id)}
		for b, name := range []string{"kek_id", "key_arn", "rotation_id", "state", "label", "reason", "host", "holder"} {
			if i[name] = attr.Str(text); int(wrong) == b+1 {
				i[name] = attr.Num(n)
			}
		}
		for _, name := range []string{"epoch", "fence_shards", "refs", "pid", "expires_at"} {
			i[name] = attr.Num(n)
		}
		for _, name := range []string{"switched_at", "created_at", "retired_at", "not_before_delete", "seen_at"} {
			i[name] = attr.Str(at)
		}
		roundTrip(t, i, DecodePointer, EncodePointer)
		roundTrip(t, i, DecodeKEK, EncodeKEK)
		roundTrip(t, i, DecodeMark, EncodeMark)
		i["pk"] = attr.Str(PKLease + id)
		roundTrip(t, i, DecodeLease, EncodeLease)
	})
}

func roundTrip[T any](t *testing.T, i attr.Item, decode func(attr.Item) (T, error), encode func(T) attr.Item) {
	t.Helper()
	v, err := decode(i)
	if err != nil {
		return
	}
	again, err := decode(encode(v))
	if d := cmp.Diff(v, again); err != nil || d != "" {
		t.Fatalf("%+v does not decode again: %v\n%s", v, err, d)
	}
}

func TestFenceOpen(t *testing.T) {
	want := &types.ConditionCheck{
		TableName: aws.String("control"), Key: attr.Item{"pk": attr.Str("FENCE#k"), "sk": attr.Str("03")},
		ConditionExpression:      aws.String("#state = :open"),
		ExpressionAttributeNames: map[string]string{"#state": "state"}, ExpressionAttributeValues: attr.Item{":open": attr.Str("open")},
	}
	if d := cmp.Diff(want, FenceOpen("control", "k", 3), ignoreSDK); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestExpression(t *testing.T) {
	names, vals := Expression("#a = :a AND #b > :b", attr.Item{"a": attr.Num(1), "b": attr.Num(2)})
	if !cmp.Equal(names, map[string]string{"#a": "a", "#b": "b"}) || !cmp.Equal(vals, attr.Item{":a": attr.Num(1), ":b": attr.Num(2)}, ignoreSDK) {
		t.Errorf("%v, %v", names, vals)
	}
	if _, vals := Expression("attribute_exists(#b)", nil); vals != nil { // DynamoDB refuses an empty map
		t.Errorf("%v", vals)
	}
}

// TestReasons: what each code of a cancellation means.
func TestReasons(t *testing.T) {
	e := &types.TransactionCanceledException{}
	var want []Reason
	for _, c := range []struct {
		code *string
		want Reason
		busy bool
	}{
		{nil, Innocent, false},
		{aws.String(""), Innocent, false},
		{aws.String("None"), Innocent, false},
		{aws.String("ConditionalCheckFailed"), Condition, false},
		{aws.String("TransactionConflict"), Conflict, true},
		{aws.String("ThrottlingError"), Throttled, true},
		{aws.String("ProvisionedThroughputExceeded"), Throttled, true},
		{aws.String("ItemCollectionSizeLimitExceeded"), Refused, false},
		{aws.String("ValidationError"), Refused, false},
	} {
		r := types.CancellationReason{Code: c.code}
		if got := ReasonOf(r); got != c.want || got.Busy() != c.busy {
			t.Errorf("%s: %d, busy %t", aws.ToString(c.code), got, got.Busy())
		}
		e.CancellationReasons, want = append(e.CancellationReasons, r), append(want, c.want)
	}
	if got := Reasons(fmt.Errorf("wrapped: %w", e)); !cmp.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := Reasons(&types.TransactionCanceledException{}); got == nil || len(got) > 0 {
		t.Errorf("a cancellation without reasons: %v", got)
	}
	for err, busy := range map[error]bool{
		&types.TransactionConflictException{}: true, &types.TransactionInProgressException{}: true, &types.TransactionCanceledException{}: false, errLost: false,
	} {
		if Busy(fmt.Errorf("wrapped: %w", err)) != busy {
			t.Errorf("%T: busy %t", err, !busy)
		}
	}
	if Reasons(errLost) != nil || Reasons(nil) != nil || Busy(nil) {
		t.Error("an error that is not a cancellation has reasons")
	}
}

var errLost = errors.New("no answer")

// fixed answers reads with one item and everything with one error, and keeps what it was
// asked.
type fixed struct {
	item  attr.Item
	err   error
	asked any
}

func (f *fixed) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	f.asked = in
	if f.err != nil {
		return nil, f.err
	}
	return &dynamodb.GetItemOutput{Item: f.item}, nil
}

func (f *fixed) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	f.asked = in
	return nil, f.err
}

func (f *fixed) UpdateItem(_ context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	f.asked = in
	return nil, f.err
}

func (f *fixed) DeleteItem(_ context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	f.asked = in
	return nil, f.err
}

// TestRequests: what a client asks for, and that a request that fails is an error that
// names the operation and the item.
func TestRequests(t *testing.T) {
	l := Lease{KEK: "k", Holder: "me", PID: 1, Refs: 7, Expires: time.UnixMilli(1234)}
	control := aws.String("control")
	read := func(pk string) *dynamodb.GetItemInput {
		return &dynamodb.GetItemInput{TableName: control, Key: Key(pk, "-"), ConsistentRead: aws.Bool(true)}
	}
	for name, c := range map[string]struct {
		call  func(c *Client) (any, error)
		asked any
		fault string
	}{
		"Pointer":  {func(c *Client) (any, error) { return c.ReadPointer(t.Context()) }, read("POINTER"), "dynamodb GetItem POINTER"},
		"KEK":      {func(c *Client) (any, error) { return c.ReadKEK(t.Context(), "k") }, read("KEK#k"), "dynamodb GetItem KEK#k"},
		"Mode":     {func(c *Client) (any, error) { return c.ReadMode(t.Context(), "r") }, read("ROTATION#r"), "dynamodb GetItem ROTATION#r"},
		"PutLease": {func(c *Client) (any, error) { return nil, c.PutLease(t.Context(), l) }, &dynamodb.PutItemInput{TableName: control, Item: EncodeLease(l)}, "dynamodb PutItem LEASE#k"},
		"RenewLease": {func(c *Client) (any, error) { return c.RenewLease(t.Context(), l) }, &dynamodb.UpdateItemInput{
			TableName: control, Key: Key("LEASE#k", "me"), UpdateExpression: aws.String("SET refs = :refs, expires_at = :expires_at"),
			ConditionExpression: aws.String("attribute_exists(pk)"), ExpressionAttributeValues: attr.Item{":refs": attr.Num(7), ":expires_at": attr.Num(1234)},
		}, "dynamodb UpdateItem LEASE#k"},
		"DropLease": {func(c *Client) (any, error) { return nil, c.DropLease(t.Context(), l) }, &dynamodb.DeleteItemInput{TableName: control, Key: Key("LEASE#k", "me")}, "dynamodb DeleteItem LEASE#k"},
		"PutMark": {
			func(c *Client) (any, error) {
				return nil, c.PutMark(t.Context(), kek.Mark{Table: "orders", Holder: "me", SeenAt: noon})
			},
			&dynamodb.PutItemInput{TableName: control, Item: EncodeMark(kek.Mark{Table: "orders", Holder: "me", SeenAt: noon})}, "dynamodb PutItem MARK orders",
		},
	} {
		f := &fixed{err: errLost}
		got, err := c.call(&Client{DynamoDB: f, Table: "control"})
		if d := cmp.Diff(c.asked, f.asked, ignoreSDK); d != "" {
			t.Errorf("%s asks (-want +got):\n%s", name, d)
		}
		if !errors.Is(err, errLost) || !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %v, want %q", name, err, c.fault)
		}
		switch got {
		case nil, kek.Pointer{}, kek.KEK{}, kek.Mode(""), false:
		default:
			t.Errorf("%s returns %+v with an error", name, got)
		}
	}
}

// TestRenewLease: a lease that is not there was revoked.
func TestRenewLease(t *testing.T) {
	for want, answer := range map[bool]error{true: nil, false: &types.ConditionalCheckFailedException{}} {
		if alive, err := (&Client{DynamoDB: &fixed{err: answer}}).RenewLease(t.Context(), Lease{}); alive != want || err != nil {
			t.Errorf("%t, %v, want %t", alive, err, want)
		}
	}
}

// TestPointer: a pointer that names no KEK or no epoch is none, and says what is wrong.
// Damage elsewhere in it does not stop an application.
func TestPointer(t *testing.T) {
	null := &types.AttributeValueMemberNULL{Value: true}
	k, one := attr.Str("k"), attr.Num(1)
	for name, c := range map[string]struct {
		item attr.Item
		want string
	}{
		"no pointer":        {nil, "read the pointer"},
		"no KEK":            {attr.Item{"epoch": one}, "read the pointer"},
		"a null KEK":        {attr.Item{"kek_id": null, "epoch": one}, "attribute kek_id"},
		"no epoch":          {attr.Item{"kek_id": k}, "read the pointer"},
		"epoch 0":           {attr.Item{"kek_id": k, "epoch": attr.Num(0)}, "read the pointer"},
		"a null epoch":      {attr.Item{"kek_id": k, "epoch": null}, "not a number"},
		"a large epoch":     {attr.Item{"kek_id": k, "epoch": &types.AttributeValueMemberN{Value: "99999999999999999999"}}, "out of range"},
		"a broken epoch":    {attr.Item{"kek_id": k, "epoch": &types.AttributeValueMemberN{Value: "1.5"}}, "1.5"},
		"all of it":         {attr.Item{"kek_id": k, "key_arn": attr.Str("arn"), "epoch": one, "rotation_id": attr.Str("r")}, ""},
		"only what it is":   {attr.Item{"kek_id": k, "epoch": one}, ""},
		"damaged elsewhere": {attr.Item{"kek_id": k, "key_arn": null, "epoch": one, "switched_at": attr.Str("yesterday")}, ""},
	} {
		p, err := (&Client{DynamoDB: &fixed{item: c.item}}).ReadPointer(t.Context())
		if c.want == "" {
			if err != nil || p.KEKID != "k" || p.Epoch != 1 || (p.KeyARN == "arn") != (p.RotationID == "r") || (p.KeyARN == "arn") != (name == "all of it") {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
			continue
		}
		if !errors.Is(err, kek.ErrNoPointer) || !strings.Contains(err.Error(), c.want) || p != (kek.Pointer{}) {
			t.Errorf("%s: %+v, %v, want %q", name, p, err, c.want)
		}
	}
}

// TestKEK: a number of fence shards that cannot be read is not one shard, and a KEK that
// is not registered has no state.
func TestKEK(t *testing.T) {
	read := func(i attr.Item) (kek.KEK, error) {
		return (&Client{DynamoDB: &fixed{item: i}}).ReadKEK(t.Context(), "k")
	}
	for _, v := range []types.AttributeValue{attr.Str("3"), &types.AttributeValueMemberN{Value: "1.5"}} {
		if k, err := read(attr.Item{"state": attr.Str("active"), "fence_shards": v}); err == nil || !strings.Contains(err.Error(), "KEK#k: fence_shards") || k != (kek.KEK{}) {
			t.Errorf("%+v, %v", k, err)
		}
	}
	want := kek.KEK{ID: "k", ARN: "arn", State: kek.Active, FenceShards: 3}
	i := EncodeKEK(want)
	i["created_at"] = attr.Num(1)
	if k, err := read(i); k != want || err != nil {
		t.Errorf("damaged where no application looks: %+v, %v", k, err)
	}
	if k, err := read(nil); k != (kek.KEK{ID: "k"}) || err != nil {
		t.Errorf("not registered: %+v, %v", k, err)
	}
}

func TestMode(t *testing.T) {
	for want, i := range map[kek.Mode]attr.Item{kek.Emergency: {AttrMode: attr.Str("emergency")}, "": nil} {
		if m, err := (&Client{DynamoDB: &fixed{item: i}}).ReadMode(t.Context(), "r"); m != want || err != nil {
			t.Errorf("%q, %v, want %q", m, err, want)
		}
	}
}
