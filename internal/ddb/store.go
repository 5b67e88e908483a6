// Package ddb keeps the state of rotations in DynamoDB: one control table (pk and
// sk, both strings) and the tables whose rows are rewrapped.
//
// Invariants (spec/rotation.tla): every read that a decision is made from is
// strongly consistent, and the view of a step is one snapshot; every step's effect is one TransactWriteItems that
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
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// API is what [Store] uses of the DynamoDB client.
type API interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
	Query(context.Context, *dynamodb.QueryInput, ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	TransactGetItems(context.Context, *dynamodb.TransactGetItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
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
//
// What it returns is one snapshot. Item by item would not do: a duplicate that
// read the rotation before another's switch and the new KEK after it would see a
// KEK that is active already, and take for an illegal transition what is a race.
func (s *Store) Load(ctx context.Context, rotationID string) (kek.View, error) {
	keys := []item{controltable.Key(pkPointer, noSK), controltable.Key(pkLock, noSK)}
	if rotationID != "" {
		keys = append(keys, controltable.Key(controltable.RotationPK(rotationID), noSK))
	}
	var read []kek.ID
	for range maxTries {
		all := keys[:len(keys):len(keys)]
		for _, id := range read {
			all = append(all, controltable.Key(controltable.KEKPK(id), noSK))
		}
		items, err := s.snapshot(ctx, all)
		if err != nil {
			return kek.View{}, err
		}
		v, err := decodeView(items)
		if err != nil {
			return kek.View{}, err
		}
		if named := named(v); !slices.Equal(named, read) { // the first time, or the pointer moved meanwhile
			read = named
			continue
		}
		return v, nil
	}
	return kek.View{}, fmt.Errorf("load: what the pointer and the rotation name changed %d times", maxTries)
}

// snapshot reads up to 100 items as of one moment.
func (s *Store) snapshot(ctx context.Context, keys []item) ([]item, error) {
	in := &dynamodb.TransactGetItemsInput{}
	for _, k := range keys {
		in.TransactItems = append(in.TransactItems, types.TransactGetItem{Get: &types.Get{TableName: &s.table, Key: k}})
	}
	var last error
	for try := range maxTries {
		if err := backoff.Pause(ctx, try, firstWait, maxWait); err != nil {
			return nil, errors.Join(err, last)
		}
		out, err := s.client.TransactGetItems(ctx, in)
		if err == nil {
			var items []item
			for _, r := range out.Responses {
				items = append(items, r.Item) // nil where there is none, which is no item of a view
			}
			return items, nil
		}
		last = wrap("TransactGetItems", err)
		var cancelled *types.TransactionCanceledException
		if !errors.As(err, &cancelled) || !contended(cancelled) {
			return nil, last
		}
	}
	return nil, fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// decodeView sorts items into a view.
func decodeView(items []item) (kek.View, error) {
	v := kek.View{KEKs: map[kek.ID]kek.KEK{}}
	for _, i := range items {
		r := attr.Reader{Item: i}
		switch pk := r.Str("pk"); {
		case pk == pkPointer:
			p, err := decodePointer(i)
			if err != nil {
				return v, err
			}
			v.Pointer = &p
		case pk == pkLock:
			v.Lock = r.Str("rotation_id")
			if err := damagedIf(r.Err, pk); err != nil {
				return v, err
			}
		case strings.HasPrefix(pk, pkRotation):
			rot, err := decodeRotation(i)
			if err != nil {
				return v, err
			}
			v.Rotation = &rot
		case strings.HasPrefix(pk, pkKEK):
			k, err := decodeKEK(i)
			if err != nil {
				return v, err
			}
			v.KEKs[k.ID] = k
		}
	}
	return v, nil
}

// named lists the KEKs that a view's pointer and rotation name, each once.
func named(v kek.View) []kek.ID {
	var ids []kek.ID
	add := func(id kek.ID) {
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if v.Pointer != nil {
		add(v.Pointer.KEKID)
	}
	if v.Rotation != nil {
		add(v.Rotation.OldKEK)
		add(v.Rotation.NewKEK)
		for _, id := range v.Rotation.Olds {
			add(id)
		}
	}
	return ids
}

// getItem reads one item consistently; nil if it is absent, of which every attribute is
// its zero value.
func getItem(ctx context.Context, client API, table, pk, sk string) (item, error) {
	out, err := client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &table, Key: controltable.Key(pk, sk), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, wrap("GetItem "+pk, err)
	}
	return out.Item, nil
}

// wrap names the operation that failed. A table that is not there becomes
// [rotation.ErrNoControlTable]; everything else stays what it is, for others to
// classify.
func wrap(op string, err error) error {
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("dynamodb %s: %w: %w", op, rotation.ErrNoControlTable, err)
	}
	return awserr.Wrap("dynamodb "+op, err)
}

// failedCondition reports whether err says that a single write's condition failed.
func failedCondition(err error) bool {
	var failed *types.ConditionalCheckFailedException
	return errors.As(err, &failed)
}

// Head implements [rotation.Outbox].
func (s *Store) Head(ctx context.Context) (audit.Line, audit.Head, error) {
	h, err := s.head(ctx)
	return h.Line, h.Head, err
}
