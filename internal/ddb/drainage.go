package ddb

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Leases implements [rotation.Drainage], in order of holder.
func (s *Store) Leases(ctx context.Context, id kek.ID) ([]rotation.Lease, error) {
	items, err := s.query(ctx, controltable.LeasePK(id), "")
	if err != nil {
		return nil, err
	}
	out := make([]rotation.Lease, 0, len(items))
	for _, i := range items {
		l, err := decodeLease(i)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// Revoke implements [rotation.Drainage]. DynamoDB's time to live must never be
// set on this table: only a conditional delete tells a dead holder from one that
// renewed in time.
func (s *Store) Revoke(ctx context.Context, l rotation.Lease) (bool, error) {
	cond := "#expires_at = :expires_at"
	names, vals := controltable.Expression(cond, values{"expires_at": attr.Num(l.Expires.UnixMilli())})
	_, err := s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &s.table, Key: controltable.Key(controltable.LeasePK(l.KEK), l.Holder), ConditionExpression: aws.String(cond),
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, wrap("DeleteItem "+controltable.LeasePK(l.KEK), err)
	}
	return true, nil
}

// SealFence implements [rotation.Drainage]. The write is unconditional: sealed is
// final, and a shard that was never opened can then never be.
func (s *Store) SealFence(ctx context.Context, id kek.ID, shard int) error {
	_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &s.table, Item: controltable.EncodeFence(id, shard, controltable.Sealed),
	})
	if err != nil {
		return wrap("PutItem "+controltable.FencePK(id), err)
	}
	return nil
}

func decodeLease(i item) (rotation.Lease, error) {
	l, err := controltable.DecodeLease(i)
	return rotation.Lease(l), damagedIf(err, controltable.LeasePK(l.KEK)+"/"+l.Holder)
}
