// Package ddb keeps the state of rotations in DynamoDB: one control table (pk and
// sk, both strings) and the tables whose rows are rewrapped.
//
// Invariants (spec/rotation.tla): every read that a decision is made from is
// strongly consistent; every step's effect is one TransactWriteItems that
// conditions on what was read and appends its audit record, so that AuditLinear
// and AuditOnceInOrder hold with the effect or not at all; a row is replaced only
// if it still is what was read, and never created, so that NoKeyOrphans cannot
// break by bringing back what somebody deleted.
//
// What makes a repeated write harmless is its condition, not the SDK's client
// token. The SDK fills ClientRequestToken once per call, so its own retries of a
// transaction whose answer was lost succeed without writing twice; but a token
// lives ten minutes and only within one call, while a condition holds across
// processes and days. A single-item write that the SDK repeats after a lost answer
// fails its own condition: callers read again and find their effect made.
//
// Retries and timeouts are those of the client passed in.
package ddb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// API is what [Store] uses of the DynamoDB client.
type API interface {
	LeaseAPI
	Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// LeaseAPI is what [Leases] uses of the DynamoDB client.
type LeaseAPI interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

var (
	_ rotation.Registry    = (*Store)(nil)
	_ rotation.Outbox      = (*Store)(nil)
	_ rotation.Drainage    = (*Store)(nil)
	_ rotation.Checkpoints = (*Store)(nil)
)

// Store is the control table. It is safe for concurrent use.
type Store struct {
	client API
	table  string
	chain  string
	now    func() time.Time
}

// New returns the control table of that name. chain names the audit chain whose
// outbox the table holds; now stamps audit records.
func New(client API, table, chain string, now func() time.Time) *Store {
	return &Store{client: client, table: table, chain: chain, now: now}
}

// Load implements [rotation.Registry]. An empty rotation id reads no rotation.
func (s *Store) Load(ctx context.Context, rotationID string) (kek.View, error) {
	v := kek.View{KEKs: map[kek.ID]kek.KEK{}}
	p, ok, err := readPointer(ctx, s.client, s.table)
	if err != nil {
		return v, err
	}
	if ok {
		v.Pointer = &p
	}
	lock, err := getItem(ctx, s.client, s.table, pkLock, noSK)
	if err != nil {
		return v, err
	}
	r := reader{item: lock}
	if v.Lock = r.str("rotation_id"); r.err != nil {
		return v, fmt.Errorf("read %s: %w", pkLock, r.err)
	}
	if rotationID != "" {
		if v.Rotation, err = s.rotation(ctx, rotationID); err != nil {
			return v, err
		}
	}
	return v, s.loadKEKs(ctx, &v)
}

func (s *Store) rotation(ctx context.Context, id string) (*kek.Rotation, error) {
	item, err := getItem(ctx, s.client, s.table, rotationPK(id), noSK)
	if err != nil || item == nil {
		return nil, err
	}
	r, err := decodeRotation(item)
	return &r, err
}

// loadKEKs reads the registry entries that the pointer and the rotation name.
func (s *Store) loadKEKs(ctx context.Context, v *kek.View) error {
	var ids []kek.ID
	if v.Pointer != nil {
		ids = append(ids, v.Pointer.KEKID)
	}
	if v.Rotation != nil {
		ids = append(ids, v.Rotation.OldKEK, v.Rotation.NewKEK)
	}
	for _, id := range ids {
		if _, seen := v.KEKs[id]; seen || id == "" {
			continue
		}
		item, err := getItem(ctx, s.client, s.table, kekPK(id), noSK)
		if err != nil {
			return err
		}
		if item == nil {
			continue
		}
		k, err := decodeKEK(item)
		if err != nil {
			return err
		}
		v.KEKs[id] = k
	}
	return nil
}

// KEKs returns every registry entry, oldest first. It is a filtered scan: the
// control table holds some dozens of items per rotation and people ask this
// seldom, which is not worth an index that every transaction would have to write.
func (s *Store) KEKs(ctx context.Context) ([]kek.KEK, error) {
	items, err := s.scanPrefix(ctx, pkKEK)
	if err != nil {
		return nil, err
	}
	return decodeAll(items, decodeKEK, func(a, b kek.KEK) int {
		return later(a.CreatedAt, b.CreatedAt, string(a.ID), string(b.ID))
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
		return later(a.StartedAt, b.StartedAt, a.ID, b.ID)
	})
}

func (s *Store) scanPrefix(ctx context.Context, prefix string) ([]item, error) {
	names, values := expression("begins_with(#pk, :prefix)", values{"prefix": str(prefix)})
	in := &dynamodb.ScanInput{
		TableName: &s.table, ConsistentRead: aws.Bool(true), FilterExpression: aws.String("begins_with(#pk, :prefix)"),
		ExpressionAttributeNames: names, ExpressionAttributeValues: values,
	}
	var items []item
	for {
		out, err := s.client.Scan(ctx, in)
		if err != nil {
			return nil, wrap("Scan "+prefix, err)
		}
		for _, i := range out.Items {
			items = append(items, i)
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return items, nil
		}
	}
}

// query reads consistently every item of a pk whose sk is not before from, in
// order of sk; "" reads all.
func (s *Store) query(ctx context.Context, pk, from string) ([]item, error) {
	expr, vals := "#pk = :pk", values{"pk": str(pk)}
	if from != "" {
		expr, vals["from"] = expr+" AND #sk >= :from", str(from)
	}
	names, params := expression(expr, vals)
	in := &dynamodb.QueryInput{
		TableName: &s.table, ConsistentRead: aws.Bool(true), KeyConditionExpression: &expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params,
	}
	var items []item
	for {
		out, err := s.client.Query(ctx, in)
		if err != nil {
			return nil, wrap("Query "+pk, err)
		}
		for _, i := range out.Items {
			items = append(items, i)
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			return items, nil
		}
	}
}

// getItem reads one item consistently; nil if it is absent.
func getItem(ctx context.Context, client LeaseAPI, table, pk, sk string) (item, error) {
	out, err := client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &table, Key: key(pk, sk), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, wrap("GetItem "+pk, err)
	}
	return out.Item, nil
}

func readPointer(ctx context.Context, client LeaseAPI, table string) (kek.Pointer, bool, error) {
	item, err := getItem(ctx, client, table, pkPointer, noSK)
	if err != nil || item == nil {
		return kek.Pointer{}, false, err
	}
	p, err := decodePointer(item)
	return p, err == nil, err
}

// wrap names the operation that failed. A table that is not there becomes
// [rotation.ErrNoControlTable]; everything else stays what it is, for others to
// classify.
func wrap(op string, err error) error {
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("dynamodb %s: %w: %w", op, rotation.ErrNoControlTable, err)
	}
	return fmt.Errorf("dynamodb %s: %w", op, err)
}

// failedCondition reports whether err says that a single write's condition failed.
func failedCondition(err error) bool {
	var failed *types.ConditionalCheckFailedException
	return errors.As(err, &failed)
}

// Head implements [rotation.Outbox].
func (s *Store) Head(ctx context.Context) (string, audit.Head, error) {
	h, err := s.head(ctx)
	return s.chain, h.Head, err
}
