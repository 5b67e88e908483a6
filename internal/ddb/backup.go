package ddb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The methods of this file bring rows back from a backup. They make the writes and leave
// sending them to the caller, who puts each into one transaction with the write fence of
// the KEK that it is under: a row may come to be under a KEK only while that is open.

// ErrNoKey reports an item that lacks a part of the table's primary key.
var ErrNoKey = errors.New("it is no item of the table")

// Backed is an item of a backup and the row that it is.
type Backed struct {
	Row  rotation.Row
	item item
}

// ReadBackup reads an item of a backup of the table. One that is no sound envelope has a
// Defect. The error says that it has no key.
func (t *TableSource) ReadBackup(ctx context.Context, i map[string]types.AttributeValue) (Backed, error) {
	keys, err := t.schema(ctx)
	if err != nil {
		return Backed{}, err
	}
	for _, k := range keys {
		if i[k.name] == nil {
			return Backed{}, fmt.Errorf("%w: the key attribute %q is missing", ErrNoKey, k.name)
		}
	}
	row := t.rowOf(i, keys, true)
	if row.Defect == "" && integer(i[t.cfg.Version]) == math.MaxInt64 {
		row.Kind, row.Defect = rotation.ForeignNumber, fmt.Sprintf("attribute %s cannot be counted up", t.cfg.Version)
	}
	return Backed{Row: row, item: i}, nil
}

// rowOf reads an item; one without any of the envelope's attributes is a row with a Defect.
func (t *TableSource) rowOf(i item, keys []keyAttribute, whole bool) rotation.Row {
	row, _, ok := readRow(t.cfg, i, keys, true, whole)
	if !ok {
		row = rotation.Row{ID: rowID(i, keys), Handle: handle{key: keyOf(i, keys)}, Defect: "it has none of the envelope's attributes"}
	}
	return row
}

// ReadStored reads the item that the table has in the place of a backup's, with its
// payload; false if there is none.
func (t *TableSource) ReadStored(ctx context.Context, b Backed) (rotation.Row, bool, error) {
	h, err := t.handleOf("read", b.Row)
	if err != nil {
		return rotation.Row{}, false, err
	}
	keys, err := t.schema(ctx)
	if err != nil {
		return rotation.Row{}, false, err
	}
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return rotation.Row{}, false, awserr.Wrap("dynamodb GetItem "+t.cfg.Table, err)
	}
	if out.Item == nil {
		return rotation.Row{}, false, nil
	}
	return t.rowOf(out.Item, keys, true), true, nil
}

// InsertOf makes the write that brings an item back with another wrapping, if the table has
// no item of its key.
func (t *TableSource) InsertOf(b Backed, with rotation.Rewrapped) (*types.Put, error) {
	h, err := t.handleOf("insert", b.Row)
	if err != nil {
		return nil, err
	}
	held, err := heldAfter(h, with)
	if err != nil {
		return nil, fmt.Errorf("insert %s: %w", b.Row.ID, err)
	}
	i := maps.Clone(b.item)
	i[t.cfg.KEKID] = attr.Str(string(with.KEK))
	i[t.cfg.Epoch] = attr.Num(with.Epoch)
	i[h.holder] = attr.Blob(held)
	if with.Ciphertext != nil {
		i[t.cfg.Ciphertext] = attr.Blob(with.Ciphertext)
	}
	if t.cfg.Version != "" {
		i[t.cfg.Version] = attr.Num(integer(i[t.cfg.Version]) + 1)
	}
	keys, err := t.schema(context.Background()) // known since the item was read
	if err != nil {
		return nil, err
	}
	return &types.Put{
		TableName: &t.cfg.Table, Item: i, ConditionExpression: aws.String("attribute_not_exists(#pk)"),
		ExpressionAttributeNames: map[string]string{"#pk": keys[0].name},
	}, nil
}

// UpdateOf makes the write that Replace makes.
func (t *TableSource) UpdateOf(old rotation.Row, with rotation.Rewrapped) (*types.Update, error) {
	c, err := t.replaceRow("update", old, with)
	if err != nil {
		return nil, err
	}
	return &types.Update{
		TableName: &t.cfg.Table, Key: c.key, UpdateExpression: &c.update, ConditionExpression: &c.cond,
		ExpressionAttributeNames: c.names, ExpressionAttributeValues: c.values,
	}, nil
}

// heldAfter is what holds the wrapped bytes after a rewrap: of a row that Tink wrote its
// payload behind them.
func heldAfter(h handle, with rotation.Rewrapped) ([]byte, error) {
	if !h.tink {
		return with.WrappedDEK, nil
	}
	_, payload, err := aead.ParseTink(h.held)
	if err != nil {
		return nil, err
	}
	return aead.JoinTink(with.WrappedDEK, payload)
}
