// Package restore brings rows back from a backup while KEKs go on being rotated.
//
// A backup names the KEKs of its day. Written back as it is it would break
// NoKeyOrphans: its rows would name KEKs that are retired, or that a rotation is
// leaving. So every row is rewrapped under the pointer's KEK and inserted behind its
// fence, as an application inserts (spec: Commit, InsertFence): a rotation that goes
// on meanwhile either carries the row along or refuses it, and then it is rewrapped
// again. A row that is there is left as it is, so that a restore can be repeated and
// never undoes a newer write.
package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// DynamoDB is what a restore uses of the DynamoDB client.
type DynamoDB interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// Registry is what a restore reads of the control table.
type Registry interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	KEKs(ctx context.Context) ([]kek.KEK, error)
	Rotations(ctx context.Context) ([]kek.Rotation, error)
}

// Keys is what a restore asks KMS of a KEK.
type Keys interface {
	Describe(ctx context.Context, id kek.ID) (rotation.Key, error)
}

// Restorer restores rows of one table.
type Restorer struct {
	DynamoDB     DynamoDB
	ControlTable string
	Source       ddb.SourceConfig
	Registry     Registry
	Keys         Keys
	KMS          rotation.Wrapper
	Cipher       rotation.Cipher

	keys        []string // of the table's primary key
	registered  map[kek.ID]kek.KEK
	emergencies []kek.Rotation // that have switched
}

const (
	atOnce     = 8 // rows
	maxTries   = 10
	firstWait  = 10 * time.Millisecond
	maxWait    = time.Second
	maxDefects = 5
)

// Plan is what a backup would restore.
type Plan struct {
	Digest  string           `json:"file_sha256"`
	Rows    int64            `json:"rows"`
	Present int64            `json:"present"` // rows that are there, whatever they hold
	Absent  int64            `json:"absent"`
	ByKEK   map[kek.ID]int64 `json:"absent_by_kek"`
	Anew    int64            `json:"encrypted_anew"` // absent rows whose data key may be exposed
	Defects int64            `json:"defects"`        // items that cannot be restored
	First   []string         `json:"first_defects"`
	Locked  []Locked         `json:"locked"`  // KEKs that must be enabled first
	Retired []kek.ID         `json:"retired"` // retired KEKs that are enabled, to be disabled again
}

// Deleted is the state of a key that KMS does not know any more.
const Deleted = "Deleted"

// Locked is a KEK that rows of a backup are under and that KMS does not let be
// used.
type Locked struct {
	KEK   kek.ID    `json:"kek_id"`
	State kek.State `json:"state"` // in the registry
	KMS   string    `json:"kms_state"`
	Rows  int64     `json:"rows"`
}

// Prepare reads what does not change while rows are restored.
func (r *Restorer) Prepare(ctx context.Context) error {
	if r.Source.Epoch == "" {
		r.Source.Epoch = "kek_epoch"
	}
	if r.Source.Version == "" {
		r.Source.Version = "version"
	}
	out, err := r.DynamoDB.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &r.Source.Table})
	if err != nil {
		return fmt.Errorf("dynamodb DescribeTable %s: %w", r.Source.Table, err)
	}
	for _, k := range out.Table.KeySchema {
		r.keys = append(r.keys, aws.ToString(k.AttributeName))
	}
	keks, err := r.Registry.KEKs(ctx)
	if err != nil {
		return err
	}
	r.registered = map[kek.ID]kek.KEK{}
	for _, k := range keks {
		r.registered[k.ID] = k
	}
	rotations, err := r.Registry.Rotations(ctx)
	for _, e := range rotations {
		if e.Mode == kek.Emergency && e.Epoch > 0 {
			r.emergencies = append(r.emergencies, e)
		}
	}
	return err
}

// Plan reads the whole backup and looks which of its rows are there. It changes
// nothing.
func (r *Restorer) Plan(ctx context.Context, f File) (Plan, error) {
	p := Plan{ByKEK: map[kek.ID]int64{}, First: []string{}, Locked: []Locked{}, Retired: []kek.ID{}}
	var mu sync.Mutex
	digest, err := r.each(ctx, f, func(ctx context.Context, line int, item envelope.Item) error {
		row, err := r.decode(item)
		there := false
		if err == nil {
			there, err = r.present(ctx, item)
		}
		mu.Lock()
		defer mu.Unlock()
		p.Rows++
		switch {
		case errors.Is(err, errNoRow):
			p.Defects++
			p.First = first(p.First, line, err)
		case err != nil:
			return fmt.Errorf("line %d: %w", line, err)
		case there:
			p.Present++
		default:
			p.Absent++
			p.ByKEK[row.kek]++
			if r.exposed(row) {
				p.Anew++
			}
		}
		return nil
	})
	p.Digest = digest
	if err != nil {
		return p, err
	}
	return p, r.judgeKeys(ctx, &p)
}

func first(list []string, line int, err error) []string {
	if len(list) < maxDefects {
		list = append(list, fmt.Sprintf("line %d: %v", line, err))
	}
	return list
}

// judgeKeys asks KMS for the KEKs that absent rows are under.
func (r *Restorer) judgeKeys(ctx context.Context, p *Plan) error {
	for _, id := range slices.Sorted(maps.Keys(p.ByKEK)) {
		k, err := r.Keys.Describe(ctx, id)
		switch {
		case errors.Is(err, rotation.ErrNoKey):
			p.Locked = append(p.Locked, Locked{id, r.registered[id].State, Deleted, p.ByKEK[id]})
		case err != nil:
			return err
		case !k.Enabled:
			p.Locked = append(p.Locked, Locked{id, r.registered[id].State, k.State, p.ByKEK[id]})
		case r.registered[id].State == kek.Retired:
			p.Retired = append(p.Retired, id)
		}
	}
	return nil
}

// Result is what a restore did.
type Result struct {
	Restored int64            `json:"restored"`
	Present  int64            `json:"present"`
	ByKEK    map[kek.ID]int64 `json:"restored_by_kek"` // by the KEK that the backup names
	Anew     int64            `json:"encrypted_anew"`
	Defects  int64            `json:"defects"`
	First    []string         `json:"first_defects"`
}

// Apply inserts every row of the backup that is not there. What it returns with an
// error is what it had done by then.
func (r *Restorer) Apply(ctx context.Context, f File) (Result, error) {
	out := Result{ByKEK: map[kek.ID]int64{}, First: []string{}}
	var mu sync.Mutex
	_, err := r.each(ctx, f, func(ctx context.Context, line int, item envelope.Item) error {
		row, err := r.decode(item)
		inserted := false
		if err == nil {
			inserted, err = r.restore(ctx, row)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, errNoRow), errors.Is(err, rotation.ErrUnwrap):
			out.Defects++
			out.First = first(out.First, line, err)
		case err != nil:
			return fmt.Errorf("line %d: %w", line, err)
		case !inserted:
			out.Present++
		default:
			out.Restored++
			out.ByKEK[row.kek]++
			if r.exposed(row) {
				out.Anew++
			}
		}
		return nil
	})
	return out, err
}

// each works on several rows of the backup at once.
func (r *Restorer) each(ctx context.Context, f File, do func(context.Context, int, envelope.Item) error) (string, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	digest, err := f.Each(func(line int, item envelope.Item) error {
		if err := gctx.Err(); err != nil {
			return err
		}
		g.Go(func() error { return do(gctx, line, item) })
		return nil
	})
	if werr := g.Wait(); werr != nil {
		err = werr // the cause; the reading stopped because of it
	}
	return digest, err
}

func (r *Restorer) key(i envelope.Item) envelope.Item {
	k := envelope.Item{}
	for _, name := range r.keys {
		k[name] = i[name]
	}
	return k
}

// present reports whether there is a row with the item's key.
func (r *Restorer) present(ctx context.Context, i envelope.Item) (bool, error) {
	out, err := r.DynamoDB.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &r.Source.Table, Key: r.key(i), ConsistentRead: aws.Bool(true),
		ProjectionExpression: aws.String("#k"), ExpressionAttributeNames: map[string]string{"#k": r.keys[0]},
	})
	if err != nil {
		return false, fmt.Errorf("dynamodb GetItem %s: %w", r.Source.Table, err)
	}
	return out.Item != nil, nil
}

// restore inserts one row; false if there is one with its key.
func (r *Restorer) restore(ctx context.Context, row row) (bool, error) {
	if there, err := r.present(ctx, row.item); there || err != nil {
		return false, err
	}
	var last error
	var disabled kek.ID // the pointer's KEK when one was found disabled
	for n := range maxTries {
		if err := backoff.Pause(ctx, n, firstWait, maxWait); err != nil {
			return false, errors.Join(err, last)
		}
		v, err := r.Registry.Load(ctx, "")
		if err != nil {
			return false, err
		}
		if v.Pointer == nil {
			return false, kek.ErrNoPointer
		}
		item, err := r.rewrapped(ctx, row, *v.Pointer)
		if errors.Is(err, rotation.ErrKeyDisabled) && disabled != v.Pointer.KEKID { // retired since it was read?
			disabled, last = v.Pointer.KEKID, err
			continue
		}
		if err != nil {
			return false, err
		}
		inserted, again, err := r.insert(ctx, item, *v.Pointer, v.KEKs[v.Pointer.KEKID].FenceShards)
		if !again {
			return inserted, err
		}
		last = err
	}
	return false, fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// insert writes the row behind the fence. again says that nothing was written and
// that it may be with the pointer read again.
func (r *Restorer) insert(ctx context.Context, item envelope.Item, p kek.Pointer, shards int) (inserted, again bool, err error) {
	_, err = r.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
		{Put: &types.Put{
			TableName: &r.Source.Table, Item: item, ConditionExpression: aws.String("attribute_not_exists(#k)"),
			ExpressionAttributeNames: map[string]string{"#k": r.keys[0]},
		}},
		r.fence(p.KEKID, rand.IntN(max(shards, 1))), //nolint:gosec // spreads load
	}})
	if err == nil {
		return true, false, nil
	}
	var cancelled *types.TransactionCanceledException
	var conflict *types.TransactionConflictException
	var busy *types.TransactionInProgressException
	err, cause := fmt.Errorf("dynamodb TransactWriteItems %s: %w", r.Source.Table, err), err
	switch {
	case errors.As(cause, &conflict), errors.As(cause, &busy):
		return false, true, err
	case !errors.As(cause, &cancelled) || len(cancelled.CancellationReasons) != 2:
		return false, false, err
	}
	row, fence := aws.ToString(cancelled.CancellationReasons[0].Code), aws.ToString(cancelled.CancellationReasons[1].Code)
	if row == "ConditionalCheckFailed" {
		return false, false, nil // somebody wrote it meanwhile
	}
	for _, code := range []string{row, fence} {
		switch code {
		case "", "None", "ConditionalCheckFailed", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded":
		default:
			return false, false, err
		}
	}
	return false, true, err
}
