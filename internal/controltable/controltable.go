// Package controltable defines the items of the control table that more than one
// package reads or writes: a rotation (internal/ddb), the applications' client (package
// envelope) and a restore (internal/restore). Nothing here decides anything about a
// rotation, and nothing brings the control plane into an application.
//
// The table's key is pk and sk, both of type S. An item without a natural sort key has
// the sk "-". A time is of type S, in UTC and in milliseconds
// (2026-04-01T02:00:00.000Z), except for a lease's.
//
//	pk              sk        attributes
//	POINTER         -         kek_id S, key_arn S, epoch N, rotation_id S, switched_at S
//	KEK#<kek>       -         state S, key_arn S, label S, rotation_id S, fence_shards N, reason S,
//	                          created_at S, switched_at S, retired_at S, not_before_delete S,
//	                          records_only BOOL: true, or absent
//	FENCE#<kek>     00 …      state S: "open" or "sealed"; one item per shard, two digits
//	LEASE#<kek>     <holder>  refs N, expires_at N (Unix time in milliseconds), host S, pid N
//	MARK            <table>   holder S, seen_at S
//	ROTATION#<id>   -         mode S, …: the rest is internal/ddb's alone
//	LOCK            -         rotation_id S
//
// A KEK has a second fence, DEKFENCE#<kek>, of the same form: see internal/keyrecord.
//
// A string or a time that is empty is not stored. internal/ddb has more items, which
// nothing but a rotation touches.
//
// Invariants (spec/rotation.tla):
//
//   - A row is inserted under a KEK only in a transaction that checks a shard of the KEK's
//     fence with [FenceOpen]. A sealed shard stays sealed.
//   - A revoked lease is deleted, and a renewal never creates one.
//
// The decoder of traces in test/wiretrace has its own definition of these items, because
// it checks what this package writes.
package controltable

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
)

// The partition keys, or how they begin, and the sort key of an item that has no natural
// one.
const (
	PKPointer  = "POINTER"
	PKLock     = "LOCK"
	PKKEK      = "KEK#"
	PKFence    = "FENCE#"
	PKRotation = "ROTATION#"
	PKLease    = "LEASE#"
	PKMark     = "MARK"

	NoSK = "-"
)

// The states of a fence shard.
const (
	Open   = "open"
	Sealed = "sealed"
)

// AttrMode is the attribute of a rotation's record that says why it runs.
const AttrMode = "mode"

const attrShards = "fence_shards"

// Key returns the primary key of an item.
func Key(pk, sk string) attr.Item { return attr.Item{"pk": attr.Str(pk), "sk": attr.Str(sk)} }

// KEKPK returns the partition key of a KEK's entry in the registry.
func KEKPK(id kek.ID) string { return PKKEK + string(id) }

// FencePK returns the partition key of a KEK's fence.
func FencePK(id kek.ID) string { return PKFence + string(id) }

// FenceSK returns the sort key of a shard of a fence.
func FenceSK(shard int) string { return fmt.Sprintf("%02d", shard) }

// LeasePK returns the partition key of the leases on a KEK.
func LeasePK(id kek.ID) string { return PKLease + string(id) }

// RotationPK returns the partition key of a rotation's record.
func RotationPK(id string) string { return PKRotation + id }

var placeholder = regexp.MustCompile(`#\w+`)

// Expression returns the names and values of an expression in which every attribute is
// written #name, so that it may be a word that DynamoDB reserves. vals has the values by
// name, without the colon.
func Expression(expr string, vals map[string]types.AttributeValue) (map[string]string, attr.Item) {
	names := map[string]string{}
	for _, n := range placeholder.FindAllString(expr, -1) {
		names[n] = n[1:]
	}
	var out attr.Item
	if len(vals) > 0 {
		out = make(attr.Item, len(vals))
		for n, v := range vals {
			out[":"+n] = v
		}
	}
	return names, out
}

// FenceOpen returns the condition that one shard of a KEK's fence is open, so that rows
// may be inserted under the KEK (spec: InsertOK). It must be in the transaction that
// writes the row: a check before it would not see a seal in between.
func FenceOpen(table string, id kek.ID, shard int) *types.ConditionCheck {
	cond := "#state = :open"
	names, vals := Expression(cond, attr.Item{"open": attr.Str(Open)})
	return &types.ConditionCheck{
		TableName: &table, Key: Key(FencePK(id), FenceSK(shard)), ConditionExpression: aws.String(cond),
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	}
}

// EncodePointer returns the item of a pointer.
func EncodePointer(p kek.Pointer) attr.Item {
	return attr.Set(Key(PKPointer, NoSK),
		"kek_id", string(p.KEKID), "key_arn", p.KeyARN, "epoch", p.Epoch,
		"rotation_id", p.RotationID, "switched_at", p.SwitchedAt)
}

// DecodePointer decodes the item of a pointer. With an error it returns the fields that
// could be decoded.
func DecodePointer(i attr.Item) (kek.Pointer, error) {
	r := attr.Reader{Item: i}
	p := kek.Pointer{
		KEKID: kek.ID(r.Str("kek_id")), KeyARN: r.Str("key_arn"), Epoch: r.Num("epoch"),
		RotationID: r.Str("rotation_id"), SwitchedAt: r.Time("switched_at"),
	}
	return p, r.Err
}

// EncodeKEK returns the item of a KEK's entry in the registry.
func EncodeKEK(k kek.KEK) attr.Item {
	i := attr.Set(Key(KEKPK(k.ID), NoSK),
		"state", string(k.State), "key_arn", k.ARN, "label", k.Label, "rotation_id", k.RotationID,
		attrShards, int64(k.FenceShards), "created_at", k.CreatedAt, "switched_at", k.SwitchedAt,
		"retired_at", k.RetiredAt, "reason", k.Reason, "not_before_delete", k.NotBeforeDelete)
	if k.RecordsOnly {
		i["records_only"] = attr.Bool(true)
	}
	return i
}

// DecodeKEK decodes a KEK's entry in the registry. With an error it returns the fields
// that could be decoded.
func DecodeKEK(i attr.Item) (kek.KEK, error) {
	r := attr.Reader{Item: i}
	k := kek.KEK{
		ID: kek.ID(strings.TrimPrefix(r.Str("pk"), PKKEK)), ARN: r.Str("key_arn"), State: kek.State(r.Str("state")),
		Label: r.Str("label"), RotationID: r.Str("rotation_id"), FenceShards: int(r.Num(attrShards)), RecordsOnly: r.Bool("records_only"),
		CreatedAt: r.Time("created_at"), SwitchedAt: r.Time("switched_at"), RetiredAt: r.Time("retired_at"),
		Reason: r.Str("reason"), NotBeforeDelete: r.Time("not_before_delete"),
	}
	return k, r.Err
}

// EncodeFence returns the item of a shard of that fence of a KEK whose partition keys begin with
// pk: [PKFence] is the fence of rows, keyrecord.PKFence that of records.
func EncodeFence(pk string, id kek.ID, shard int, state string) attr.Item {
	return attr.Set(Key(pk+string(id), FenceSK(shard)), "state", state)
}

// Lease is a process's promise that it may write under a KEK until it expires.
type Lease struct {
	KEK     kek.ID
	Holder  string // unique per process
	Host    string // "" if it has no name
	PID     int
	Refs    int64 // in-flight references
	Expires time.Time
}

// EncodeLease returns the item of a lease.
func EncodeLease(l Lease) attr.Item {
	return attr.Set(Key(LeasePK(l.KEK), l.Holder),
		"refs", l.Refs, "expires_at", l.Expires.UnixMilli(), "host", l.Host, "pid", int64(l.PID))
}

// DecodeLease decodes the item of a lease.
func DecodeLease(i attr.Item) (Lease, error) {
	r := attr.Reader{Item: i}
	l := Lease{
		KEK: kek.ID(strings.TrimPrefix(r.Str("pk"), PKLease)), Holder: r.Str("sk"), Host: r.Str("host"),
		PID: int(r.Num("pid")), Refs: r.Num("refs"), Expires: time.UnixMilli(r.Num("expires_at")).UTC(),
	}
	return l, r.Err
}

// EncodeMark returns the item of the mark of a process that may write envelopes into a
// table.
func EncodeMark(m kek.Mark) attr.Item {
	return attr.Set(Key(PKMark, m.Table), "holder", m.Holder, "seen_at", m.SeenAt)
}

// DecodeMark decodes a mark. With an error it returns the fields that could be decoded.
func DecodeMark(i attr.Item) (kek.Mark, error) {
	r := attr.Reader{Item: i}
	m := kek.Mark{Table: r.Str("sk"), Holder: r.Str("holder"), SeenAt: r.Time("seen_at")}
	return m, r.Err
}
