package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/source"
)

var errNoControlTable = errors.New("the control table, which has the fence of rows, is not known")

// Embed implements [source.Converter] (spec/keyed.tla: WalkWrite with Back). The update and the
// check of the fence are one transaction: without the check the row could come under a KEK
// after the last scan for rows under it.
func (t *Table) Embed(ctx context.Context, old source.Row, with source.Rewrapped, shard int) (bool, error) {
	c, err := t.embedRow(old, with)
	if err != nil {
		return false, fmt.Errorf("embed a row: %w", err)
	}
	items := []types.TransactWriteItem{
		{Update: &types.Update{
			TableName: &t.cfg.Table, Key: c.key, UpdateExpression: &c.update, ConditionExpression: &c.cond,
			ExpressionAttributeNames: c.names, ExpressionAttributeValues: c.values,
		}},
		{ConditionCheck: controltable.FenceOpen(t.control, with.KEK, shard)},
	}
	_, err = t.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items})
	reasons := controltable.Reasons(err)
	switch {
	case err == nil:
		return true, nil
	case len(reasons) == len(items) && reasons[0] == controltable.Condition:
		return false, nil
	case len(reasons) == len(items) && reasons[1] == controltable.Condition:
		return false, fmt.Errorf("embed a row: fence of rows of KEK %s: %w", with.KEK, source.ErrFenced)
	case slices.ContainsFunc(reasons, controltable.Reason.Busy), controltable.Busy(err):
		return false, fmt.Errorf("dynamodb TransactWriteItems %s: %w: %w", t.cfg.Table, source.ErrBusy, err)
	}
	return false, remote.WrapError("dynamodb TransactWriteItems "+t.cfg.Table, err)
}

// embedRow returns the change that makes a keyed row an embedded one.
func (t *Table) embedRow(old source.Row, with source.Rewrapped) (change, error) {
	h, err := t.handleOf("embed", old)
	switch {
	case err != nil:
		return change{}, err
	case old.Defect != "" || h.dek == nil:
		return change{}, fmt.Errorf("%w: %s", errDefect, old.Defect)
	case t.control == "":
		return change{}, errNoControlTable
	case old.Ciphertext == nil, len(with.Ciphertext) == 0, with.DEKID != "", t.cfg.WrappedDEK == "":
		return change{}, errNoPayload
	}
	c := change{
		key:    h.key,
		update: "SET #kek = :kek, #held = :held, #payload = :payload, #epoch = :epoch",
		cond:   "#payload = :oldpayload AND #dekid = :olddekid AND #epoch <= :epoch AND attribute_not_exists(#kek) AND attribute_not_exists(#held)",
		names: map[string]string{
			"#kek": t.cfg.KEKID, "#held": t.cfg.WrappedDEK, "#payload": t.cfg.Ciphertext, "#epoch": t.cfg.Epoch, "#dekid": t.cfg.DEKID,
		},
		values: item{
			":kek": attr.Str(string(with.KEK)), ":held": attr.Blob(with.WrappedDEK), ":payload": attr.Blob(with.Ciphertext), ":epoch": attr.Num(with.Epoch),
			":oldpayload": attr.Blob(old.Ciphertext), ":olddekid": h.dek,
		},
	}
	t.countWrite(&c)
	c.update += " REMOVE #dekid"
	return c, nil
}
