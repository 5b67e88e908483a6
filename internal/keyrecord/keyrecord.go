// Package keyrecord defines the key table: one item for each data key (DEK) of keyed rows,
// which name their DEK instead of carrying it. The applications' client (package envelope)
// creates records and reads them; a rotation rewraps them; nobody deletes one.
//
// The key table's only key is pk. An item has these attributes and no others:
//
//	pk           S  "DEK#" and the DEK's id
//	format       N  1
//	wrapped_dek  B  a KMS ciphertext blob
//	kek_id       S  the KMS key id that wrapped it last
//	kek_epoch    N  the pointer's epoch at that time
//	born_epoch   N  the pointer's epoch when the DEK was made; it never changes
//	context      M  of S: the encryption context of the table's rows, may be empty
//	created_at   S  RFC 3339 in UTC, whole seconds
//
// Each version of a record is first written once to the audit bucket, which is locked, as
//
//	deks/<dek_id>/<kek_epoch, 12 digits>-<kek_id>-<16 hex digits of SHA-256 of wrapped_dek>.json
//
// The control table has a fence for records beside the one for rows, with the same items:
//
//	pk               sk     attributes
//	DEKFENCE#<kek>   00 …   state S: "open" or "sealed"
//
// Invariants (spec/keyed.tla):
//
//   - A record is created only in a transaction that checks a shard of this fence, and
//     only after its copy is in the bucket. A row names a DEK only after its record exists.
//   - A rewrap changes wrapped_dek, kek_id and kek_epoch of the record that was read, and
//     never creates one.
//   - KMS binds the id and the birth epoch to the DEK, so a record that was altered, or
//     that was copied to another id, does not unwrap.
package keyrecord

import (
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// The parts of keys.
const (
	PKRecord = "DEK#"      // how the partition key of a record begins
	PKFence  = "DEKFENCE#" // how the partition key of a fence begins, in the control table
	AttrPK   = "pk"        // the only key attribute of the key table
)

// Format is the version of a record, and of its copy in the bucket.
const Format = 1

// Reserved is how the keys begin that this project adds to an encryption context. No
// definition of a keyed table may use such a key.
const Reserved = "matter:"

// The keys that are added to the encryption context of a DEK.
const (
	ContextDEKID     = Reserved + "dek_id"
	ContextBornEpoch = Reserved + "born_epoch"
)

// maxWrapped is the longest ciphertext blob of KMS in bytes (KMS API reference, Decrypt,
// CiphertextBlob).
const maxWrapped = 6144

// timeFormat is how created_at is stored.
const timeFormat = "2006-01-02T15:04:05Z"

// Record is one data key as it is stored.
type Record struct {
	DEKID      string
	WrappedDEK []byte
	KEKID      kek.ID
	KEKEpoch   int64             // of the last wrap
	BornEpoch  int64             // of the first
	Context    map[string]string // the table's encryption context; nil is the same as empty
	CreatedAt  time.Time         // UTC, whole seconds
}

const idBytes = 16

var keyID = regexp.MustCompile(`^[A-Za-z0-9-]{1,128}$`)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID returns the id of 16 random bytes, which the caller draws from a cryptographic
// source: an id that comes twice would be refused by the record's condition.
func NewID(random [idBytes]byte) string { return idEncoding.EncodeToString(random[:]) }

// CheckID returns an error unless id is the encoding of 16 bytes.
func CheckID(id string) error {
	b, err := idEncoding.DecodeString(id)
	if err != nil || len(b) != idBytes || idEncoding.EncodeToString(b) != id {
		return fmt.Errorf("%.64q is not the id of a data key: 26 of the characters a to z and 2 to 7", id)
	}
	return nil
}

// Key returns the primary key of a record.
func Key(dekID string) attr.Item { return attr.Item{AttrPK: attr.Str(PKRecord + dekID)} }

// EncryptionContext returns what KMS binds to the DEK of r.
func EncryptionContext(r Record) map[string]string {
	out := make(map[string]string, len(r.Context)+2)
	maps.Copy(out, r.Context)
	out[ContextDEKID] = r.DEKID
	out[ContextBornEpoch] = strconv.FormatInt(r.BornEpoch, 10)
	return out
}

// Check returns the first fault of a record, by the name of the attribute.
func Check(r Record) error {
	if err := CheckID(r.DEKID); err != nil {
		return fmt.Errorf("attribute pk: %w", err)
	}
	if n := len(r.WrappedDEK); n == 0 || n > maxWrapped {
		return fmt.Errorf("attribute wrapped_dek has %d bytes; KMS makes 1 to %d", n, maxWrapped)
	}
	if !keyID.MatchString(string(r.KEKID)) {
		return fmt.Errorf("attribute kek_id: %.100q is not a KMS key id", r.KEKID)
	}
	if r.BornEpoch < 1 {
		return fmt.Errorf("attribute born_epoch: %d is not an epoch", r.BornEpoch)
	}
	if r.KEKEpoch < r.BornEpoch || r.KEKEpoch > maxEpoch {
		return fmt.Errorf("attribute kek_epoch: %d is not an epoch from born_epoch, %d, to %d", r.KEKEpoch, r.BornEpoch, int64(maxEpoch))
	}
	for _, k := range slices.Sorted(maps.Keys(r.Context)) {
		if err := CheckContext(k, r.Context[k]); err != nil {
			return fmt.Errorf("attribute context: %w", err)
		}
	}
	if t := r.CreatedAt; t.IsZero() || !t.Equal(t.UTC().Truncate(time.Second)) || t.UTC().Year() > 9999 {
		return errors.New("attribute created_at is not a time in whole seconds")
	}
	return nil
}

// maxEpoch keeps the names of copies in order: they have twelve digits.
const maxEpoch = 999_999_999_999

// CheckContext refuses an entry of a table's encryption context that KMS would refuse, or
// whose key is reserved.
func CheckContext(k, v string) error {
	switch {
	case k == "" || v == "":
		return fmt.Errorf("key %q or its value is empty", k)
	case strings.HasPrefix(k, "aws:"), strings.HasPrefix(k, Reserved):
		return fmt.Errorf("key %q: the prefix is reserved", k)
	case !utf8.ValidString(k) || !utf8.ValidString(v):
		return fmt.Errorf("key %q or its value is not UTF-8", k)
	}
	return nil
}

// Encode returns the item of a record. [Check] says whether r can be stored.
func Encode(r Record) attr.Item {
	context := make(attr.Item, len(r.Context))
	for k, v := range r.Context {
		context[k] = attr.Str(v)
	}
	i := Key(r.DEKID)
	i["format"] = attr.Num(Format)
	i["wrapped_dek"] = attr.Blob(r.WrappedDEK)
	i["kek_id"] = attr.Str(string(r.KEKID))
	i["kek_epoch"] = attr.Num(r.KEKEpoch)
	i["born_epoch"] = attr.Num(r.BornEpoch)
	i["context"] = &types.AttributeValueMemberM{Value: context}
	i["created_at"] = attr.Str(r.CreatedAt.UTC().Format(timeFormat))
	return i
}

// Decode decodes the item of a record strictly: an attribute that is missing, unknown, or of
// another type or form is an error that names it.
func Decode(i attr.Item) (Record, error) {
	r, err := decode(i)
	if err != nil {
		return Record{}, fmt.Errorf("record of a data key: %w", err)
	}
	return r, nil
}

// attributes are those of a record.
var attributes = []string{AttrPK, "format", "wrapped_dek", "kek_id", "kek_epoch", "born_epoch", "context", "created_at"}

func decode(i attr.Item) (Record, error) {
	in := attr.Reader{Item: i}
	format := in.Num("format")
	if in.Err != nil {
		return Record{}, in.Err
	}
	if format != Format { // before all else: another format has other attributes
		return Record{}, fmt.Errorf("attribute format is %d; this release reads %d", format, Format)
	}
	for _, name := range attributes {
		if i[name] == nil {
			return Record{}, fmt.Errorf("attribute %s is missing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i)) {
		if !slices.Contains(attributes, name) {
			return Record{}, fmt.Errorf("attribute %q is unknown", name)
		}
	}
	pk := in.Str(AttrPK)
	id, ok := strings.CutPrefix(pk, PKRecord)
	if !ok && in.Err == nil {
		return Record{}, fmt.Errorf("attribute pk: %.64q does not begin with %s", pk, PKRecord)
	}
	r := Record{
		DEKID: id, WrappedDEK: in.Bytes("wrapped_dek"), KEKID: kek.ID(in.Str("kek_id")), KEKEpoch: in.Num("kek_epoch"), BornEpoch: in.Num("born_epoch"),
		Context: map[string]string{},
	}
	context := attr.Reader{Item: in.Map("context")}
	for k := range context.Item {
		r.Context[k] = context.Str(k)
	}
	created := in.Str("created_at")
	if in.Err != nil {
		return Record{}, in.Err
	}
	if context.Err != nil {
		return Record{}, fmt.Errorf("attribute context: %w", context.Err)
	}
	var err error
	if r.CreatedAt, err = parseTime(created); err != nil {
		return Record{}, fmt.Errorf("attribute created_at: %w", err)
	}
	return r, Check(r)
}

// parseTime reads a time in the only form in which it is written.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(timeFormat, s)
	if err == nil && t.Format(timeFormat) != s {
		err = fmt.Errorf("%.40q is not written like %s", s, timeFormat)
	}
	return t, err
}

// FencePK returns the partition key of the fence for records of a KEK.
func FencePK(id kek.ID) string { return PKFence + string(id) }

// FenceOpen returns the condition that one shard of the fence for records of a KEK is
// open. It must be in the transaction that creates or puts back a record: a check before
// it would not see a seal in between.
func FenceOpen(controlTable string, id kek.ID, shard int) *types.ConditionCheck {
	check := controltable.FenceOpen(controlTable, id, shard)
	check.Key = controltable.Key(FencePK(id), controltable.FenceSK(shard))
	return check
}

// CreateItems returns the transaction that creates a record: the record on condition that
// there is none of its id, and the check of a shard of the fence. The record's copy must be
// in the bucket before.
func CreateItems(keyTable, controlTable string, r Record, shard int) []types.TransactWriteItem {
	return []types.TransactWriteItem{
		{Put: &types.Put{
			TableName: &keyTable, Item: Encode(r), ConditionExpression: aws.String("attribute_not_exists(#pk)"),
			ExpressionAttributeNames:            map[string]string{"#pk": AttrPK},
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}},
		{ConditionCheck: FenceOpen(controlTable, r.KEKID, shard)},
	}
}

// ReplaceItems returns the transaction that replaces the wrapping of a record while a
// writer could still create records under its new KEK: the update of [RewrapUpdate], and
// the check of a shard of that KEK's fence. It is for a record whose KEK is retired.
func ReplaceItems(keyTable, controlTable string, old, with Record, shard int) []types.TransactWriteItem {
	u := RewrapUpdate(keyTable, old, with)
	return []types.TransactWriteItem{
		{Update: &types.Update{
			TableName: u.TableName, Key: u.Key, UpdateExpression: u.UpdateExpression, ConditionExpression: u.ConditionExpression,
			ExpressionAttributeNames: u.ExpressionAttributeNames, ExpressionAttributeValues: u.ExpressionAttributeValues,
		}},
		{ConditionCheck: FenceOpen(controlTable, with.KEKID, shard)},
	}
}

// RewrapUpdate returns the update that gives the record old the wrapping of with: its
// wrapped DEK, KEK and epoch, and nothing else of with. The condition is that the record
// has the wrapping of old; it cannot hold for a record that does not exist.
func RewrapUpdate(keyTable string, old, with Record) *dynamodb.UpdateItemInput {
	update, cond := "SET #wrapped_dek = :dek, #kek_id = :kek, #kek_epoch = :epoch", "#wrapped_dek = :olddek AND #kek_id = :oldkek"
	names, values := controltable.Expression(update, attr.Item{
		"dek": attr.Blob(with.WrappedDEK), "kek": attr.Str(string(with.KEKID)), "epoch": attr.Num(with.KEKEpoch),
		"olddek": attr.Blob(old.WrappedDEK), "oldkek": attr.Str(string(old.KEKID)),
	})
	return &dynamodb.UpdateItemInput{
		TableName: &keyTable, Key: Key(old.DEKID), UpdateExpression: &update, ConditionExpression: &cond,
		ExpressionAttributeNames: names, ExpressionAttributeValues: values,
	}
}
