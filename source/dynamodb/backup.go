package dynamodb

import (
	"context"
	"fmt"
	"maps"
	"math"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/source"
)

// The methods of this file bring rows back from a backup. They return the writes and leave it
// to the caller to send them. The caller puts each write into one transaction with a check of
// the write fence of the row's KEK, because a row may come under a KEK only while its fence
// is open.

// ReadBackup decodes an item of a backup of the table. If it is not a sound envelope, the row
// has a Defect. [source.ErrNoKey] reports an item without the table's primary key.
func (t *Table) ReadBackup(ctx context.Context, i map[string]types.AttributeValue) (source.Backup, error) {
	keys, err := t.primaryKey(ctx)
	if err != nil {
		return source.Backup{}, err
	}
	for _, k := range keys {
		if i[k.name] == nil {
			return source.Backup{}, fmt.Errorf("%w: the key attribute %q is missing", source.ErrNoKey, k.name)
		}
	}
	row := t.rowOf(i, keys, true)
	if row.Defect == "" && parseInteger(i[t.cfg.Version]) == math.MaxInt64 {
		row.Kind, row.Defect = source.ForeignNumber, fmt.Sprintf("attribute %s cannot be counted up", t.cfg.Version)
	}
	return source.Backup{Row: row, Item: i}, nil
}

// rowOf decodes an item. An item without any of the envelope's attributes becomes a row with a
// Defect.
func (t *Table) rowOf(i item, keys []keyAttribute, whole bool) source.Row {
	row, _, ok := readRow(t.cfg, i, keys, true, whole)
	if !ok {
		row = source.Row{ID: rowID(i, keys), Handle: handle{key: keyOf(i, keys)}, Defect: "it has none of the envelope's attributes"}
	}
	return row
}

// ReadStored reads the item that the table has under the key of a backup's item, with its
// payload; false if there is none.
func (t *Table) ReadStored(ctx context.Context, b source.Backup) (source.Row, bool, error) {
	h, err := t.handleOf("read", b.Row)
	if err != nil {
		return source.Row{}, false, err
	}
	keys, err := t.primaryKey(ctx)
	if err != nil {
		return source.Row{}, false, err
	}
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return source.Row{}, false, remote.WrapError("dynamodb GetItem "+t.cfg.Table, err)
	}
	if out.Item == nil {
		return source.Row{}, false, nil
	}
	return t.rowOf(out.Item, keys, true), true, nil
}

// InsertOf returns the write that brings an item back with another wrapping, on condition that
// the table has no item under its key. A keyed row keeps its payload if with has none.
func (t *Table) InsertOf(b source.Backup, with source.Rewrapped) (*types.Put, error) {
	h, err := t.handleOf("insert", b.Row)
	if err != nil {
		return nil, err
	}
	stored, ok := b.Item.(item)
	if !ok {
		return nil, fmt.Errorf("insert %s: it is not an item of a backup", b.Row.ID)
	}
	i := maps.Clone(stored)
	if b.Row.DEKID == "" {
		held, err := heldAfter(h, with)
		if err != nil {
			return nil, fmt.Errorf("insert %s: %w", b.Row.ID, err)
		}
		i[t.cfg.KEKID] = attr.Str(string(with.KEK))
		i[h.holder] = attr.Blob(held)
	} else {
		i[t.cfg.DEKID] = attr.Str(with.DEKID)
	}
	i[t.cfg.Epoch] = attr.Num(with.Epoch)
	if with.Ciphertext != nil {
		i[t.cfg.Ciphertext] = attr.Blob(with.Ciphertext)
	}
	if t.cfg.Version != "" {
		i[t.cfg.Version] = attr.Num(parseInteger(i[t.cfg.Version]) + 1)
	}
	keys, err := t.primaryKey(context.Background()) // known since the item was read
	if err != nil {
		return nil, err
	}
	return &types.Put{
		TableName: &t.cfg.Table, Item: i, ConditionExpression: aws.String("attribute_not_exists(#pk)"),
		ExpressionAttributeNames: map[string]string{"#pk": keys[0].name},
	}, nil
}

// UpdateOf returns the write that Replace would send.
func (t *Table) UpdateOf(old source.Row, with source.Rewrapped) (*types.Update, error) {
	c, err := t.replaceRow("update", old, with)
	if err != nil {
		return nil, err
	}
	return &types.Update{
		TableName: &t.cfg.Table, Key: c.key, UpdateExpression: &c.update, ConditionExpression: &c.cond,
		ExpressionAttributeNames: c.names, ExpressionAttributeValues: c.values,
	}, nil
}

// heldAfter returns the value of the attribute that holds the wrapped bytes after a rewrap. In
// a row that Tink wrote, the payload follows the wrapped bytes in the same attribute.
func heldAfter(h handle, with source.Rewrapped) ([]byte, error) {
	if !h.tink {
		return with.WrappedDEK, nil
	}
	_, payload, err := aead.ParseTink(h.held)
	if err != nil {
		return nil, err
	}
	return aead.JoinTink(with.WrappedDEK, payload)
}
