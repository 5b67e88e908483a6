// Package ddb keeps the state of rotations in DynamoDB, in one table: the control table.
// Its primary key is pk and sk, both strings. Package controltable defines the items that
// applications share; the constants of this package list the others.
//
// Invariants (spec/rotation.tla):
//
//   - Every read that a decision is made from is strongly consistent, and the view of a
//     step is one snapshot.
//   - The effect of a step is one TransactWriteItems. It is conditional on what was read
//     and appends the audit record of the effect, so that AuditLinear and AuditOnceInOrder
//     hold with the effect or not at all.
//
// A repeated write is harmless because of its condition, not because of the SDK's client
// token. The SDK fills ClientRequestToken once per call, so if it repeats a transaction
// whose answer was lost, nothing is written twice. But a token is valid for ten minutes
// (API reference, TransactWriteItems) and only within one call, while a condition holds
// across processes and days. A write of a single item has no token: the SDK's repetition
// fails its own condition, and the caller reads again and finds that its effect is made.
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
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
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
	_ journal.Registry     = (*Store)(nil)
	_ journal.Outbox       = (*Store)(nil)
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

// Load implements [journal.Registry]. An empty rotation id reads no rotation.
//
// What it returns is one snapshot, by TransactGetItems. Reads one by one would not do: a
// duplicate step that read the rotation before another's switch and the new KEK after it
// would see a KEK that is already active, and report an illegal transition where there is
// only a race.
//
// The keys of the KEKs are known only from the pointer and the rotation. So the first
// snapshot has no KEKs, the second has those that the first named, and it is repeated while
// the pointer moves in between.
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
		items, err := s.readSnapshot(ctx, all)
		if err != nil {
			return kek.View{}, err
		}
		v, err := decodeView(items)
		if err != nil {
			return kek.View{}, err
		}
		if named := listNamedKEKs(v); !slices.Equal(named, read) { // the first read, or the pointer moved meanwhile
			read = named
			continue
		}
		return v, nil
	}
	return kek.View{}, fmt.Errorf("load: what the pointer and the rotation name changed %d times", maxTries)
}

// readSnapshot reads up to 100 items, the limit of TransactGetItems, as of one moment.
func (s *Store) readSnapshot(ctx context.Context, keys []item) ([]item, error) {
	in := &dynamodb.TransactGetItemsInput{}
	for _, k := range keys {
		in.TransactItems = append(in.TransactItems, types.TransactGetItem{Get: &types.Get{TableName: &s.table, Key: k}})
	}
	var last error
	for try := range maxTries {
		if err := remote.WaitForTry(ctx, try, firstWait, maxWait); err != nil {
			return nil, errors.Join(err, last)
		}
		out, err := s.client.TransactGetItems(ctx, in)
		if err == nil {
			var items []item
			for _, r := range out.Responses {
				items = append(items, r.Item) // nil if it does not exist; decodeView skips it
			}
			return items, nil
		}
		last = wrapError("TransactGetItems", err)
		var cancelled *types.TransactionCanceledException
		if !errors.As(err, &cancelled) || !isContended(cancelled) {
			return nil, last
		}
	}
	return nil, fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// decodeView sorts items into a view. Items of other kinds are skipped.
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

// listNamedKEKs lists the KEKs that a view's pointer and rotation name, each once.
func listNamedKEKs(v kek.View) []kek.ID {
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

// getItem reads one item consistently. It returns nil if the item does not exist; decoders
// read a nil item as one whose attributes are all absent.
func getItem(ctx context.Context, client API, table, pk, sk string) (item, error) {
	out, err := client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &table, Key: controltable.Key(pk, sk), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return nil, wrapError("GetItem "+pk, err)
	}
	return out.Item, nil
}

// wrapError names the operation that failed. A table that does not exist becomes
// [journal.ErrNoControlTable]; package remote classifies every other error.
func wrapError(op string, err error) error {
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return fmt.Errorf("dynamodb %s: %w: %w", op, journal.ErrNoControlTable, err)
	}
	return remote.WrapError("dynamodb "+op, err)
}

// failedCondition reports whether err means that the condition of a single write failed.
func failedCondition(err error) bool {
	var failed *types.ConditionalCheckFailedException
	return errors.As(err, &failed)
}

// Head implements [journal.Outbox].
func (s *Store) Head(ctx context.Context) (audit.Line, audit.Head, error) {
	h, err := s.loadHead(ctx)
	return h.Line, h.Head, err
}
