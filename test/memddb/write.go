package memddb

import (
	"context"
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

// write is one conditional change of one item, alone or in a transaction.
type write struct {
	table  *table
	key    primary
	item   Item // of a put, or for an update the key of what it may create
	kind   writeKind
	cond   *parsed
	update *parsed
	params params
	old    bool // a failed condition returns the item
}

type writeKind int

const (
	put writeKind = iota
	updated
	deleted
	checkOnly
)

// request is what the four kinds of writes have in common.
type request struct {
	table        *string
	key, item    Item
	cond, update *string
	names        map[string]string
	values       Item
	failure      types.ReturnValuesOnConditionCheckFailure
}

// prepare checks a request as far as that does not depend on what is stored.
func (d *DB) prepare(kind writeKind, r request) (write, error) {
	w := write{kind: kind, old: r.failure == types.ReturnValuesOnConditionCheckFailureAllOld}
	var err error
	if w.table, err = d.table(r.table); err != nil {
		return w, err
	}
	if w.cond, err = parse("condition", r.cond); err != nil {
		return w, err
	}
	if w.update, err = parse("update", r.update); err != nil {
		return w, err
	}
	if w.params, err = newParams(r.names, r.values, w.cond, w.update); err != nil {
		return w, err
	}
	if kind == put {
		if w.item, err = checkedItem(r.item); err != nil {
			return w, err
		}
		if attr.ItemSize(w.item) > attr.MaxItemSize {
			return w, invalid("Item size has exceeded the maximum allowed size")
		}
		w.key, err = w.table.primary(w.item)
		return w, err
	}
	if w.key, err = w.table.only(r.key); err != nil {
		return w, err
	}
	if w.item, err = checkedItem(r.key); err == nil && w.update.update != nil {
		err = w.update.update.paths(w.table, w.params)
	}
	return w, err
}

// after is what is stored if the write is made: nil if nothing is.
func (w write) after(was Item) (Item, error) {
	switch w.kind {
	case put:
		return w.item, nil
	case deleted:
		return nil, nil
	case updated:
		if was == nil {
			was = w.item
		}
		if w.update.update == nil {
			return was, nil
		}
		is, err := w.update.update.apply(was, w.params)
		if err == nil && attr.ItemSize(is) > attr.MaxItemSize {
			return nil, errTooLarge
		}
		return is, err
	default:
		return was, nil
	}
}

// errTooLarge is the error of an update that makes an item too large. A transaction is
// cancelled for it.
var errTooLarge = invalid("Item size to update has exceeded the maximum allowed size")

// do makes a write that stands alone.
func (d *DB) do(kind writeKind, r request) (was, is Item, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, err := d.prepare(kind, r)
	if err != nil {
		return nil, nil, err
	}
	if d.isHeld(w.table, w.item) {
		return nil, nil, &types.TransactionConflictException{Message: aws.String(ongoing)}
	}
	was = w.table.get(w.key)
	if !w.cond.holds(was, w.params) {
		failed := &types.ConditionalCheckFailedException{Message: aws.String("The conditional request failed")}
		if w.old {
			failed.Item = cloneItem(was)
		}
		return nil, nil, failed
	}
	if is, err = w.after(was); err != nil {
		return nil, nil, err
	}
	if u := w.update.update; u != nil && attr.ItemSize(is)-attr.ItemSize(w.table.keyOf(is))+attr.UpdateCost(len(u.set)+len(u.add), len(u.remove)) > attr.MaxItemSize {
		return nil, nil, errTooLarge
	}
	w.table.set(w.key, is)
	return was, is, nil
}

// returned is the item that ReturnValues asks for.
func returned(op string, want types.ReturnValue, was, is Item) Item {
	switch want {
	case "", types.ReturnValueNone:
		return nil
	case types.ReturnValueAllOld:
		return cloneItem(was)
	case types.ReturnValueAllNew:
		return cloneItem(is)
	default:
		unknown("%s with ReturnValues %s", op, want)
		return nil
	}
}

// PutItem writes an item, whole.
func (d *DB) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...options) (*dynamodb.PutItemOutput, error) {
	known("PutItem", map[string]bool{"Expected": in.Expected != nil, "ALL_NEW": in.ReturnValues == types.ReturnValueAllNew})
	was, is, err := d.do(put, request{
		table: in.TableName, item: in.Item, cond: in.ConditionExpression, names: in.ExpressionAttributeNames,
		values: in.ExpressionAttributeValues, failure: in.ReturnValuesOnConditionCheckFailure,
	})
	if err != nil {
		return nil, err
	}
	return &dynamodb.PutItemOutput{Attributes: returned("PutItem", in.ReturnValues, was, is)}, nil
}

// UpdateItem changes an item, and makes it if it is not there.
func (d *DB) UpdateItem(_ context.Context, in *dynamodb.UpdateItemInput, _ ...options) (*dynamodb.UpdateItemOutput, error) {
	known("UpdateItem", map[string]bool{"Expected": in.Expected != nil, "AttributeUpdates": in.AttributeUpdates != nil})
	was, is, err := d.do(updated, request{
		table: in.TableName, key: in.Key, cond: in.ConditionExpression, update: in.UpdateExpression, names: in.ExpressionAttributeNames,
		values: in.ExpressionAttributeValues, failure: in.ReturnValuesOnConditionCheckFailure,
	})
	if err != nil {
		return nil, err
	}
	return &dynamodb.UpdateItemOutput{Attributes: returned("UpdateItem", in.ReturnValues, was, is)}, nil
}

// DeleteItem removes an item; one that is not there is no error.
func (d *DB) DeleteItem(_ context.Context, in *dynamodb.DeleteItemInput, _ ...options) (*dynamodb.DeleteItemOutput, error) {
	known("DeleteItem", map[string]bool{"Expected": in.Expected != nil, "ALL_NEW": in.ReturnValues == types.ReturnValueAllNew})
	was, is, err := d.do(deleted, request{
		table: in.TableName, key: in.Key, cond: in.ConditionExpression, names: in.ExpressionAttributeNames,
		values: in.ExpressionAttributeValues, failure: in.ReturnValuesOnConditionCheckFailure,
	})
	if err != nil {
		return nil, err
	}
	return &dynamodb.DeleteItemOutput{Attributes: returned("DeleteItem", in.ReturnValues, was, is)}, nil
}

const maxTransaction = 100

// TransactWriteItems makes all of the writes or none.
func (d *DB) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...options) (*dynamodb.TransactWriteItemsOutput, error) {
	known("TransactWriteItems", map[string]bool{"ClientRequestToken": in.ClientRequestToken != nil})
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(in.TransactItems); n == 0 || n > maxTransaction {
		return nil, invalid("Member must have length between 1 and %d: %d", maxTransaction, n)
	}
	writes := make([]write, len(in.TransactItems))
	for n, i := range in.TransactItems {
		var err error
		if writes[n], err = d.transacted(i); err != nil {
			return nil, err
		}
		for _, w := range writes[:n] {
			if w.table == writes[n].table && w.key.compare(writes[n].key) == 0 {
				return nil, invalid("Transaction request cannot include multiple operations on one item")
			}
		}
	}
	return &dynamodb.TransactWriteItemsOutput{}, d.commit(writes)
}

// transacted is one item of a transaction.
func (d *DB) transacted(i types.TransactWriteItem) (write, error) {
	switch {
	case i.Put != nil && i.Update == nil && i.Delete == nil && i.ConditionCheck == nil:
		return d.prepare(put, request{
			i.Put.TableName, nil, i.Put.Item, i.Put.ConditionExpression, nil,
			i.Put.ExpressionAttributeNames, i.Put.ExpressionAttributeValues, i.Put.ReturnValuesOnConditionCheckFailure,
		})
	case i.Update != nil && i.Put == nil && i.Delete == nil && i.ConditionCheck == nil:
		return d.prepare(updated, request{
			i.Update.TableName, i.Update.Key, nil, i.Update.ConditionExpression, i.Update.UpdateExpression,
			i.Update.ExpressionAttributeNames, i.Update.ExpressionAttributeValues, i.Update.ReturnValuesOnConditionCheckFailure,
		})
	case i.Delete != nil && i.Put == nil && i.Update == nil && i.ConditionCheck == nil:
		return d.prepare(deleted, request{
			i.Delete.TableName, i.Delete.Key, nil, i.Delete.ConditionExpression, nil,
			i.Delete.ExpressionAttributeNames, i.Delete.ExpressionAttributeValues, i.Delete.ReturnValuesOnConditionCheckFailure,
		})
	case i.ConditionCheck != nil && i.Put == nil && i.Update == nil && i.Delete == nil:
		return d.prepare(checkOnly, request{
			i.ConditionCheck.TableName, i.ConditionCheck.Key, nil, i.ConditionCheck.ConditionExpression, nil,
			i.ConditionCheck.ExpressionAttributeNames, i.ConditionCheck.ExpressionAttributeValues,
			i.ConditionCheck.ReturnValuesOnConditionCheckFailure,
		})
	}
	return write{}, invalid("TransactItems can only contain one of Check, Put, Update or Delete")
}

// commit makes the writes if none has a reason against it.
func (d *DB) commit(writes []write) (err error) {
	after, reasons := make([]Item, len(writes)), make([]types.CancellationReason, len(writes))
	for n, w := range writes {
		was := w.table.get(w.key)
		reasons[n].Code = aws.String("None")
		if d.isHeld(w.table, w.item) {
			reasons[n] = conflict()
		} else if !w.cond.holds(was, w.params) {
			reasons[n].Code, reasons[n].Message = aws.String("ConditionalCheckFailed"), aws.String("The conditional request failed")
			if w.old {
				reasons[n].Item = cloneItem(was)
			}
		} else if after[n], err = w.after(was); errors.Is(err, errTooLarge) {
			reasons[n].Code, reasons[n].Message = aws.String("ValidationError"), aws.String("Item size to update has exceeded the maximum allowed size")
		} else if err != nil {
			return err
		}
	}
	if err := cancelled(reasons); err != nil {
		return err
	}
	for n, w := range writes {
		if w.kind != checkOnly {
			w.table.set(w.key, after[n])
		}
	}
	return nil
}
