package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
)

// row is an item of the backup as the envelope it is.
type row struct {
	item       envelope.Item
	kek        kek.ID
	epoch      int64 // 0 if unknown
	version    int64
	wrapped    []byte
	ciphertext []byte // the payload; nil if the source has none
	context    map[string]string
	tink       bool // Tink wrote it: the wrapped DEK is in the ciphertext attribute
}

// errNoRow reports an item that cannot be restored, and why.
var errNoRow = errors.New("it cannot be restored")

// decode reads an item of the source's table.
func (r *Restorer) decode(i envelope.Item) (row, error) {
	c := r.Source
	out := row{item: i}
	for _, k := range r.keys {
		if i[k] == nil {
			return out, fmt.Errorf("%w: the key attribute %q is missing", errNoRow, k)
		}
	}
	var err error
	id, ok := i[c.KEKID].(*types.AttributeValueMemberS)
	if !ok || id.Value == "" {
		return out, fmt.Errorf("%w: attribute %q names no KEK", errNoRow, c.KEKID)
	}
	out.kek = kek.ID(id.Value)
	if _, ok := r.registered[out.kek]; !ok {
		return out, fmt.Errorf("%w: KEK %s is not in the registry", errNoRow, out.kek)
	}
	if out.epoch, err = number(i[c.Epoch]); err == nil {
		out.version, err = number(i[c.Version])
	}
	if err != nil {
		return out, fmt.Errorf("%w: attributes %q and %q: %w", errNoRow, c.Epoch, c.Version, err)
	}
	if b, ok := i[c.Ciphertext].(*types.AttributeValueMemberB); ok && c.Ciphertext != "" {
		out.ciphertext = b.Value
	}
	if c.Format == envelope.FormatTink && i[c.WrappedDEK] == nil {
		out.tink = true
		if out.wrapped, out.ciphertext, err = aead.ParseTink(out.ciphertext); err != nil {
			return out, fmt.Errorf("%w: %w", errNoRow, err)
		}
		return out, nil
	}
	wrapped, ok := i[c.WrappedDEK].(*types.AttributeValueMemberB)
	if !ok || len(wrapped.Value) == 0 {
		return out, fmt.Errorf("%w: attribute %q holds no wrapped data key", errNoRow, c.WrappedDEK)
	}
	out.wrapped = wrapped.Value
	if out.context, err = ddb.ContextOf(c, i); err != nil {
		return out, fmt.Errorf("%w: %w", errNoRow, err)
	}
	return out, nil
}

// number reads a whole number that can be counted up; 0 if there is none.
func number(v types.AttributeValue) (int64, error) {
	if v == nil {
		return 0, nil
	}
	n, ok := v.(*types.AttributeValueMemberN)
	if !ok {
		return 0, errors.New("not a number")
	}
	i, err := strconv.ParseInt(n.Value, 10, 64)
	if err != nil || i < 0 || i == math.MaxInt64 {
		return 0, errors.New("no whole number from 0")
	}
	return i, nil
}

// exposed reports whether the row's data key may be known to others: an emergency
// has left the KEK that it is wrapped under, or a later one that the same data key
// was wrapped under.
func (r *Restorer) exposed(row row) bool {
	for _, e := range r.emergencies {
		if row.kek == e.OldKEK || row.epoch < e.Epoch {
			return true
		}
	}
	return false
}

// rewrapped is the item as it goes into the table: under the pointer's KEK, of the
// pointer's epoch, its version one up.
func (r *Restorer) rewrapped(ctx context.Context, row row, p kek.Pointer) (envelope.Item, error) {
	item := maps.Clone(row.item)
	item[r.Source.KEKID] = &types.AttributeValueMemberS{Value: string(p.KEKID)}
	item[r.Source.Epoch] = &types.AttributeValueMemberN{Value: strconv.FormatInt(p.Epoch, 10)}
	item[r.Source.Version] = &types.AttributeValueMemberN{Value: strconv.FormatInt(row.version+1, 10)}
	if r.exposed(row) {
		return item, r.anew(ctx, row, p, item)
	}
	wrapped, err := r.KMS.ReEncrypt(ctx, row.kek, p.KEKID, row.wrapped, row.context)
	if err != nil {
		return nil, err
	}
	if !row.tink {
		item[r.Source.WrappedDEK] = &types.AttributeValueMemberB{Value: wrapped}
		return item, nil
	}
	whole, err := aead.JoinTink(wrapped, row.ciphertext)
	item[r.Source.Ciphertext] = &types.AttributeValueMemberB{Value: whole}
	return item, err
}

// anew encrypts the payload under a fresh data key.
func (r *Restorer) anew(ctx context.Context, row row, p kek.Pointer, item envelope.Item) error {
	if row.tink || len(row.ciphertext) == 0 {
		return fmt.Errorf("%w: its data key may be exposed since an emergency, and it has no payload that can be encrypted under a fresh one", errNoRow)
	}
	old, err := r.KMS.Decrypt(ctx, row.kek, row.wrapped, row.context)
	if err != nil {
		return err
	}
	defer clear(old)
	plain, err := r.Cipher.Open(old, row.ciphertext, row.context)
	if err != nil {
		return fmt.Errorf("%w: its payload does not open under its data key", errNoRow)
	}
	defer clear(plain)
	fresh, wrapped, err := r.KMS.GenerateDataKey(ctx, p.KEKID, row.context)
	if err != nil {
		return err
	}
	defer clear(fresh)
	sealed, err := r.Cipher.Seal(fresh, plain, row.context)
	item[r.Source.WrappedDEK] = &types.AttributeValueMemberB{Value: wrapped}
	item[r.Source.Ciphertext] = &types.AttributeValueMemberB{Value: sealed}
	return err
}

// fence is the condition that inserts under a KEK are let through, as package
// envelope has it (spec: InsertFence).
func (r *Restorer) fence(id kek.ID, shard int) types.TransactWriteItem {
	return types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &r.ControlTable,
		Key: envelope.Item{
			"pk": &types.AttributeValueMemberS{Value: "FENCE#" + string(id)},
			"sk": &types.AttributeValueMemberS{Value: fmt.Sprintf("%02d", shard)},
		},
		ConditionExpression:       aws.String("#state = :open"),
		ExpressionAttributeNames:  map[string]string{"#state": "state"},
		ExpressionAttributeValues: envelope.Item{":open": &types.AttributeValueMemberS{Value: "open"}},
	}}
}
