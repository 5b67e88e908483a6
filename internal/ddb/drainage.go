package ddb

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Leases implements [rotation.Drainage], in order of holder.
func (s *Store) Leases(ctx context.Context, id kek.ID) ([]rotation.Lease, error) {
	items, err := s.query(ctx, leasePK(id), "")
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
	names, vals := expression(cond, values{"expires_at": num(l.Expires.UnixMilli())})
	_, err := s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &s.table, Key: key(leasePK(l.KEK), l.Holder), ConditionExpression: aws.String(cond),
		ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, wrap("DeleteItem "+leasePK(l.KEK), err)
	}
	return true, nil
}

// SealFence implements [rotation.Drainage]. The write is unconditional: sealed is
// final, and a shard that was never opened can then never be.
func (s *Store) SealFence(ctx context.Context, id kek.ID, shard int) error {
	_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: &s.table, Item: set(key(fencePK(id), fenceSK(shard)), "state", fenceSealed),
	})
	if err != nil {
		return wrap("PutItem "+fencePK(id), err)
	}
	return nil
}

// Leases is the control table as a process of the data plane sees it: the pointer,
// the registry, and its own leases. It is safe for concurrent use.
type Leases struct {
	client LeaseAPI
	table  string
}

// NewLeases returns the data plane's view of the control table of that name.
func NewLeases(client LeaseAPI, table string) *Leases {
	return &Leases{client: client, table: table}
}

// PutLease registers a lease, over any that the holder has on the same KEK.
func (s *Leases) PutLease(ctx context.Context, l rotation.Lease) error {
	_, err := s.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &s.table, Item: encodeLease(l)})
	if err != nil {
		return wrap("PutItem "+leasePK(l.KEK), err)
	}
	return nil
}

// RenewLease writes the lease's references and expiry if it still exists. False
// means that it was revoked: the holder must not write under this KEK any more.
func (s *Leases) RenewLease(ctx context.Context, l rotation.Lease) (bool, error) {
	update, cond := "SET #refs = :refs, #expires_at = :expires_at", "attribute_exists(#pk)"
	names, vals := expression(update+cond, values{"refs": num(l.Refs), "expires_at": num(l.Expires.UnixMilli())})
	_, err := s.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &s.table, Key: key(leasePK(l.KEK), l.Holder), UpdateExpression: aws.String(update),
		ConditionExpression: aws.String(cond), ExpressionAttributeNames: names, ExpressionAttributeValues: vals,
	})
	if failedCondition(err) {
		return false, nil
	}
	if err != nil {
		return false, wrap("UpdateItem "+leasePK(l.KEK), err)
	}
	return true, nil
}

// DropLease gives a lease back. It is idempotent.
func (s *Leases) DropLease(ctx context.Context, l rotation.Lease) error {
	_, err := s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &s.table, Key: key(leasePK(l.KEK), l.Holder)})
	if err != nil {
		return wrap("DeleteItem "+leasePK(l.KEK), err)
	}
	return nil
}

// Pointer reads the pointer consistently; [kek.ErrNoPointer] if there is none.
func (s *Leases) Pointer(ctx context.Context) (kek.Pointer, error) {
	p, ok, err := readPointer(ctx, s.client, s.table)
	if err == nil && !ok {
		err = fmt.Errorf("read the pointer: %w", kek.ErrNoPointer)
	}
	return p, err
}

// KEKState reads a KEK's state consistently; "", which does not resolve, if the
// registry does not know it.
func (s *Leases) KEKState(ctx context.Context, id kek.ID) (kek.State, error) {
	i, err := getItem(ctx, s.client, s.table, kekPK(id), noSK)
	if err != nil {
		return "", err
	}
	k, err := decodeKEK(i)
	return k.State, err
}

func encodeLease(l rotation.Lease) item {
	return set(key(leasePK(l.KEK), l.Holder),
		"refs", l.Refs, "expires_at", l.Expires.UnixMilli(), "host", l.Host, "pid", int64(l.PID))
}

func decodeLease(i item) (rotation.Lease, error) {
	r := reader{item: i}
	pk := r.str("pk")
	l := rotation.Lease{
		KEK: kek.ID(strings.TrimPrefix(pk, pkLease)), Holder: r.str("sk"), Host: r.str("host"),
		PID: int(r.num("pid")), Refs: r.num("refs"), Expires: time.UnixMilli(r.num("expires_at")).UTC(),
	}
	return l, r.decoded(pk + "/" + l.Holder)
}
