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
	items, err := s.queryItems(ctx, controltable.LeasePK(id), "")
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

// Revoke implements [rotation.Drainage]. The delete is conditional on the expiry that was
// read, so a holder that renewed meanwhile keeps its lease. For the same reason the table
// must never have a time to live (TTL): DynamoDB would delete a lease that is expired when
// its background process scans it, and could not see a renewal in between.
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
		return false, wrapError("DeleteItem "+controltable.LeasePK(l.KEK), err)
	}
	return true, nil
}

// SealFence implements [rotation.Drainage]. The writes are unconditional, because sealed is
// the final state of every shard: one that was never opened exists afterwards, and so can
// never be opened (see fenceActions). Such are the shards for records of a KEK from before
// the key table.
func (s *Store) SealFence(ctx context.Context, id kek.ID, shard int) error {
	for _, pk := range fences {
		_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: &s.table, Item: controltable.EncodeFence(pk, id, shard, controltable.Sealed),
		})
		if err != nil {
			return wrapError("PutItem "+pk+string(id), err)
		}
	}
	return nil
}

func decodeLease(i item) (rotation.Lease, error) {
	l, err := controltable.DecodeLease(i)
	return rotation.Lease(l), damagedIf(err, controltable.LeasePK(l.KEK)+"/"+l.Holder)
}
