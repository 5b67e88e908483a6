package ddb

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// KEKs returns every registry entry, oldest first. It is a filtered scan. The control table
// holds some dozens of items per rotation, and only people and three steps of a rotation
// ask for all KEKs, so an index, which every transaction would have to write, is not worth
// its cost. A global secondary index could not be read consistently either.
func (s *Store) KEKs(ctx context.Context) ([]kek.KEK, error) {
	items, err := s.scanPrefix(ctx, pkKEK)
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeKEK, func(a, b kek.KEK) int {
		return compareByTime(a.CreatedAt, b.CreatedAt, string(a.ID), string(b.ID))
	})
}

// Rotations returns the record of every rotation, oldest first. It scans, as
// [Store.KEKs] does.
func (s *Store) Rotations(ctx context.Context) ([]kek.Rotation, error) {
	items, err := s.scanPrefix(ctx, pkRotation)
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeRotation, func(a, b kek.Rotation) int {
		return compareByTime(a.StartedAt, b.StartedAt, a.ID, b.ID)
	})
}

// scanPrefix reads the items of a kind whose sort key is always "-". It leaves out an item
// with another sort key or without an id, because no other method here reads one either.
func (s *Store) scanPrefix(ctx context.Context, prefix string) ([]item, error) {
	names, values := controltable.Expression("begins_with(#pk, :prefix)", values{"prefix": attr.Str(prefix)})
	in := &dynamodb.ScanInput{
		TableName: &s.table, ConsistentRead: aws.Bool(true), FilterExpression: aws.String("begins_with(#pk, :prefix)"),
		ExpressionAttributeNames: names, ExpressionAttributeValues: values,
	}
	var items []item
	for {
		out, err := s.client.Scan(ctx, in)
		if err != nil {
			return nil, wrapError("Scan "+prefix, err)
		}
		for _, i := range out.Items {
			if r := (attr.Reader{Item: i}); r.Str("pk") != prefix && r.Str("sk") == noSK {
				items = append(items, i)
			}
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return items, nil
		}
	}
}

// queryItems reads consistently every item of a partition key, in the order of the sort
// keys: all of them, or those from the sort key from on.
func (s *Store) queryItems(ctx context.Context, pk, from string) ([]item, error) {
	expr, vals := "#pk = :pk", values{"pk": attr.Str(pk)}
	if from != "" {
		expr, vals["from"] = expr+" AND #sk >= :from", attr.Str(from)
	}
	names, params := controltable.Expression(expr, vals)
	in := &dynamodb.QueryInput{
		TableName: &s.table, ConsistentRead: aws.Bool(true), KeyConditionExpression: &expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params,
	}
	var items []item
	for {
		out, err := s.client.Query(ctx, in)
		if err != nil {
			return nil, wrapError("Query "+pk, err)
		}
		items = append(items, out.Items...)
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return items, nil
		}
	}
}
