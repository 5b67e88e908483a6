// Package restore brings rows back from a backup while KEKs go on being rotated.
//
// A backup names the KEKs of its day. Written back as it is it would break
// NoKeyOrphans: its rows would name KEKs that are retired, or that a rotation is
// leaving. So every row is rewrapped under the pointer's KEK and inserted behind its
// fence, as an application inserts (spec: Commit, InsertOK): a rotation that goes
// on meanwhile either carries the row along or refuses it, and then it is rewrapped
// again.
//
// A row that is in the table is left as it is, so that a restore can be repeated and
// never undoes a newer write; unless it is an orphan there, because the backup was
// written back without this package: its KEK is retired, or the registry does not know
// it. Then it is rewrapped in place, behind the same fence, on condition that it still
// is what was read.
package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// DynamoDB is what a restore uses of the DynamoDB client beside what the table's driver
// uses of it.
type DynamoDB interface {
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
	Table        *ddb.TableSource
	Registry     Registry
	Keys         Keys
	KMS          rotation.Wrapper
	Cipher       rotation.Cipher

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
	Present int64            `json:"present"` // rows that are there under a KEK in use, whatever they hold
	Absent  int64            `json:"absent"`
	Orphans int64            `json:"orphans"`        // rows that are there under a KEK that is not in use: they are repaired
	ByKEK   map[kek.ID]int64 `json:"by_kek"`         // absent rows and orphans
	Anew    int64            `json:"encrypted_anew"` // of them, rows whose data key may be exposed
	Opaque  int64            `json:"keep_data_key"`  // of them, rows whose data key may be exposed and whose payload cannot be encrypted again
	Defects int64            `json:"defects"`        // items that cannot be restored
	First   []string         `json:"first_defects"`
	Locked  []Locked         `json:"locked"`  // KEKs that must be enabled first
	Retired []kek.ID         `json:"retired"` // retired KEKs that are enabled, to be disabled again
}

// Deleted is the state of a key that KMS does not know any more.
const Deleted = "Deleted"

// Locked is a KEK that rows are under and that KMS does not let be used.
type Locked struct {
	KEK   kek.ID    `json:"kek_id"`
	State kek.State `json:"state"` // in the registry
	KMS   string    `json:"kms_state"`
	Rows  int64     `json:"rows"`
}

// Prepare reads what does not change while rows are restored.
func (r *Restorer) Prepare(ctx context.Context) error {
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

// errNoRow reports an item that cannot be restored, and why.
var errNoRow = errors.New("it cannot be restored")

// found is an item of the backup beside what the table holds in its place.
type found struct {
	backed ddb.Backed
	there  bool         // the table has a row of its key
	orphan bool         // under a KEK that is not in use
	row    rotation.Row // to rewrap: the backup's, or the orphan
}

// look reads an item of the backup and the table's row of its key.
func (r *Restorer) look(ctx context.Context, i envelope.Item) (found, error) {
	b, err := r.Table.ReadBackup(ctx, i)
	if errors.Is(err, ddb.ErrNoKey) {
		return found{}, fmt.Errorf("%w: %w", errNoRow, err)
	}
	if err != nil {
		return found{}, err
	}
	f := found{backed: b, row: b.Row}
	now, there, err := r.Table.ReadStored(ctx, b)
	if err != nil {
		return f, err
	}
	if !there {
		return f, r.sound(b.Row)
	}
	f.there = true
	if now.Defect != "" {
		return f, fmt.Errorf("%w: the row that is in the table is no sound envelope: %s", errNoRow, now.Defect)
	}
	k, known := r.registered[now.KEK]
	if known && sameKey(now, k) && k.State.Resolves() {
		return f, nil
	}
	if err := r.sound(now); err != nil {
		return f, fmt.Errorf("the row that is in the table: %w", err)
	}
	f.orphan, f.row = true, now
	return f, nil
}

// sound refuses a row that cannot be rewrapped.
func (r *Restorer) sound(row rotation.Row) error {
	if row.Defect != "" {
		return fmt.Errorf("%w: %s", errNoRow, row.Defect)
	}
	if k, ok := r.registered[row.KEK]; !ok || !sameKey(row, k) {
		return fmt.Errorf("%w: KEK %s is not in the registry", errNoRow, cmp.Or(row.KeyARN, string(row.KEK)))
	}
	return nil
}

// sameKey reports whether a row that names its KEK by ARN names the registered key.
func sameKey(row rotation.Row, k kek.KEK) bool { return row.KeyARN == "" || row.KeyARN == k.ARN }

// Plan reads the whole backup and looks which of its rows are there. It changes
// nothing.
func (r *Restorer) Plan(ctx context.Context, file File) (Plan, error) {
	p := Plan{ByKEK: map[kek.ID]int64{}, First: []string{}, Locked: []Locked{}, Retired: []kek.ID{}}
	var mu sync.Mutex
	digest, err := r.each(ctx, file, func(ctx context.Context, line int, item envelope.Item) error {
		f, err := r.look(ctx, item)
		mu.Lock()
		defer mu.Unlock()
		p.Rows++
		switch {
		case errors.Is(err, errNoRow):
			p.Defects++
			p.First = first(p.First, line, err)
			return nil
		case err != nil:
			return fmt.Errorf("line %d: %w", line, err)
		case f.there && !f.orphan:
			p.Present++
			return nil
		case f.orphan:
			p.Orphans++
		default:
			p.Absent++
		}
		p.ByKEK[f.row.KEK]++
		switch {
		case r.exposed(f.row) && f.row.Whole:
			p.Opaque++
		case r.exposed(f.row):
			p.Anew++
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

// judgeKeys asks KMS for the KEKs that the rows to write are under.
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
	Restored int64            `json:"restored"` // rows that were not there
	Repaired int64            `json:"repaired"` // orphans that were rewrapped where they are
	Present  int64            `json:"present"`
	ByKEK    map[kek.ID]int64 `json:"restored_by_kek"` // both, by the KEK that they were under
	Anew     int64            `json:"encrypted_anew"`
	Opaque   int64            `json:"keep_data_key"`
	Defects  int64            `json:"defects"`
	First    []string         `json:"first_defects"`
}

// Apply inserts every row of the backup that is not there, and repairs those that are
// orphans where they are. What it returns with an error is what it had done by then.
func (r *Restorer) Apply(ctx context.Context, file File) (Result, error) {
	out := Result{ByKEK: map[kek.ID]int64{}, First: []string{}}
	var mu sync.Mutex
	_, err := r.each(ctx, file, func(ctx context.Context, line int, item envelope.Item) error {
		f, wrote, err := r.restore(ctx, item)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, errNoRow), errors.Is(err, rotation.ErrUnwrap):
			out.Defects++
			out.First = first(out.First, line, err)
			return nil
		case err != nil:
			return fmt.Errorf("line %d: %w", line, err)
		case !wrote:
			out.Present++
			return nil
		case f.orphan:
			out.Repaired++
		default:
			out.Restored++
		}
		out.ByKEK[f.row.KEK]++
		switch {
		case r.exposed(f.row) && f.row.Whole:
			out.Opaque++
		case r.exposed(f.row):
			out.Anew++
		}
		return nil
	})
	return out, err
}

// each works on several rows of the backup at once.
func (r *Restorer) each(ctx context.Context, file File, do func(context.Context, int, envelope.Item) error) (string, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	digest, err := file.Each(func(line int, item envelope.Item) error {
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

// restore brings one row back, or repairs it; false if it is there under a KEK in use.
// It looks at the row and the pointer again until a write of both meets them unchanged.
func (r *Restorer) restore(ctx context.Context, item envelope.Item) (f found, wrote bool, err error) {
	var last error
	var disabled kek.ID // the pointer's KEK when one was found disabled
	for n := range maxTries {
		if err := backoff.Pause(ctx, n, firstWait, maxWait); err != nil {
			return f, false, errors.Join(err, last)
		}
		if f, err = r.look(ctx, item); err != nil || f.there && !f.orphan {
			return f, false, err
		}
		v, err := r.Registry.Load(ctx, "")
		if err != nil {
			return f, false, err
		}
		if v.Pointer == nil {
			return f, false, kek.ErrNoPointer
		}
		with, err := r.rewrapped(ctx, f.row, *v.Pointer)
		if errors.Is(err, rotation.ErrKeyDisabled) && disabled != v.Pointer.KEKID { // retired since it was read?
			disabled, last = v.Pointer.KEKID, err
			continue
		}
		if err != nil {
			return f, false, err
		}
		write, err := r.write(f, with)
		if err != nil {
			return f, false, err
		}
		if wrote, err = r.commit(ctx, write, *v.Pointer, v.KEKs[v.Pointer.KEKID].FenceShards); wrote || err != nil && !errors.Is(err, errAgain) {
			return f, wrote, err
		}
		last = err
	}
	return f, false, fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// write makes the write of one row.
func (r *Restorer) write(f found, with rotation.Rewrapped) (types.TransactWriteItem, error) {
	if f.orphan {
		update, err := r.Table.UpdateOf(f.row, with)
		return types.TransactWriteItem{Update: update}, err
	}
	put, err := r.Table.InsertOf(f.backed, with)
	return types.TransactWriteItem{Put: put}, err
}

// errAgain reports that nothing was written, because the row, the pointer or the fence
// changed or the service was busy: it may be with both read again.
var errAgain = errors.New("nothing was written")

// commit writes the row behind the fence of the pointer's KEK.
func (r *Restorer) commit(ctx context.Context, write types.TransactWriteItem, p kek.Pointer, shards int) (bool, error) {
	fence := controltable.FenceOpen(r.ControlTable, p.KEKID, rand.IntN(max(shards, 1))) //nolint:gosec // spreads load
	_, err := r.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{
		TransactItems: []types.TransactWriteItem{write, {ConditionCheck: fence}},
	})
	if err == nil {
		return true, nil
	}
	reasons := controltable.Reasons(err)
	again := controltable.Busy(err) || reasons != nil && !slices.Contains(reasons, controltable.Refused)
	err = fmt.Errorf("dynamodb TransactWriteItems: %w", err)
	if again {
		err = fmt.Errorf("%w: %w", errAgain, err)
	}
	return false, err
}

// exposed reports whether the row's data key may be known to others: an emergency
// has left the KEK that it is wrapped under, or a later one that the same data key
// was wrapped under.
func (r *Restorer) exposed(row rotation.Row) bool {
	for _, e := range r.emergencies {
		if row.KEK == e.OldKEK || slices.Contains(e.Olds, row.KEK) || row.Epoch < e.Epoch {
			return true
		}
	}
	return false
}

// rewrapped is the row's wrapping under the pointer's KEK. If its data key may be exposed
// the payload is encrypted under a fresh one, where there is a payload of this project's.
func (r *Restorer) rewrapped(ctx context.Context, row rotation.Row, p kek.Pointer) (rotation.Rewrapped, error) {
	out := rotation.Rewrapped{KEK: p.KEKID, Epoch: p.Epoch}
	if row.Whole || !r.exposed(row) {
		var err error
		out.WrappedDEK, err = r.KMS.ReEncrypt(ctx, row.KEK, p.KEKID, row.WrappedDEK, row.Context)
		return out, err
	}
	if len(row.Ciphertext) == 0 {
		return out, fmt.Errorf("%w: its data key may be exposed since an emergency, and it has no payload that can be encrypted under a fresh one", errNoRow)
	}
	old, err := r.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if err != nil {
		return out, err
	}
	defer clear(old)
	plain, err := r.Cipher.Open(old, row.Ciphertext, row.Bound)
	if err != nil {
		return out, fmt.Errorf("%w: its payload does not open under its data key", errNoRow)
	}
	defer clear(plain)
	fresh, wrapped, err := r.KMS.GenerateDataKey(ctx, p.KEKID, row.Context)
	if err != nil {
		return out, err
	}
	defer clear(fresh)
	out.WrappedDEK = wrapped
	out.Ciphertext, err = r.Cipher.Seal(fresh, plain, row.Bound)
	return out, err
}
