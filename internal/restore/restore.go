// Package restore inserts rows from a backup while KEKs are being rotated.
//
// A backup names the KEKs of its time. If it were written back unchanged, it would break
// NoKeyOrphans: its rows would name KEKs that are retired, or that a rotation is leaving.
//
// Invariants: every row is rewrapped under the pointer's KEK and inserted in a transaction
// that checks the KEK's fence, as an application inserts (spec: Commit, InsertOK). A
// concurrent rotation either rewraps the row too, or has sealed the fence: then the insert
// is refused and the row is rewrapped under the new KEK.
//
// A keyed row is inserted as it is, since a rotation rewraps the record of its data key; a record
// that is lost is put back before (spec: PutBackWrite).
//
// A row that exists in the table is not changed, so a restore can be repeated and never
// undoes a newer write. The exception is an orphan, which exists if the backup was written
// back without this package: its KEK is retired or not in the registry. It is rewrapped in
// place, with the same fence check, on condition that it has not changed since it was read.
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
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// DynamoDB is the part of the DynamoDB client that a restore uses. The table's driver uses
// more.
type DynamoDB interface {
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// Registry is the part of the control table that a restore reads.
type Registry interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	KEKs(ctx context.Context) ([]kek.KEK, error)
	Rotations(ctx context.Context) ([]kek.Rotation, error)
}

// Keys describes KEKs in KMS.
type Keys interface {
	Describe(ctx context.Context, id kek.ID) (keyring.Key, error)
}

// Table is the driver of a source whose rows can be restored: items of DynamoDB, behind the
// fence of the control table. It makes the writes and leaves sending them to the restore,
// which puts each into one transaction with the fence of the KEK that the row is then under.
type Table interface {
	source.Driver
	// ReadBackup reads an item of a backup. One that is not a sound envelope has a Defect. The
	// error is [source.ErrNoKey] for an item that lacks a part of the table's primary key.
	ReadBackup(ctx context.Context, i map[string]types.AttributeValue) (source.Backup, error)
	// ReadStored reads the item that the table has in the place of a backup's, with its
	// payload; false if there is none.
	ReadStored(ctx context.Context, b source.Backup) (source.Row, bool, error)
	// InsertOf makes the write that brings an item back with another wrapping, if the table
	// has no item of its key.
	InsertOf(b source.Backup, with source.Rewrapped) (*types.Put, error)
	// UpdateOf makes the write that Replace makes.
	UpdateOf(old source.Row, with source.Rewrapped) (*types.Update, error)
}

// Restorer restores rows of one table.
type Restorer struct {
	DynamoDB     DynamoDB
	ControlTable string
	Table        Table
	Registry     Registry
	Keys         Keys
	KMS          keyring.Wrapper
	Cipher       keyring.Cipher
	Records      source.Keeper // the key table; nil if none is registered
	Random       func([]byte)  // fills in random bytes, for the ids of data keys
	Now          func() time.Time

	keys        keyRecords
	registered  map[kek.ID]kek.KEK
	emergencies []kek.Rotation // that have switched
}

const (
	maxConcurrent = 8 // rows that are restored at the same time
	maxTries      = 10
	firstWait     = 10 * time.Millisecond
	maxWait       = time.Second
	maxDefects    = 5
)

// Plan is what a restore of a backup would do.
type Plan struct {
	Digest  string           `json:"file_sha256"`
	Rows    int64            `json:"rows"`
	Present int64            `json:"present"` // rows that exist under a KEK in use, with any content
	Absent  int64            `json:"absent"`
	Orphans int64            `json:"orphans"`        // rows that exist under a KEK that is not in use: they are repaired
	Keyed   int64            `json:"keyed"`          // of the absent rows, those that name a data key of the key table
	Lost    int64            `json:"lost_data_keys"` // keyed rows, absent or orphans, whose data key has no record under a KEK in use
	ByKEK   map[kek.ID]int64 `json:"by_kek"`         // absent embedded rows and embedded orphans
	Anew    int64            `json:"encrypted_anew"` // of the rows to write, those whose data key may be exposed
	Opaque  int64            `json:"keep_data_key"`  // of ByKEK: such rows whose payload cannot be encrypted again
	Defects int64            `json:"defects"`        // items that cannot be restored
	First   []string         `json:"first_defects"`
	Locked  []Locked         `json:"locked"`  // KEKs that must be enabled first
	Retired []kek.ID         `json:"retired"` // retired KEKs that are enabled, to be disabled again
}

// Deleted is the [Locked.KMS] of a key that no longer exists in KMS.
const Deleted = "Deleted"

// Locked is a KEK that rows need and that is disabled or deleted in KMS.
type Locked struct {
	KEK   kek.ID    `json:"kek_id"`
	State kek.State `json:"state"` // in the registry
	KMS   string    `json:"kms_state"`
	Rows  int64     `json:"rows"`
}

// Prepare reads the registry and the emergencies. Call it once, before [Restorer.Plan] and
// [Restorer.Apply].
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

// errUnrestorable reports an item that cannot be restored, and why.
var errUnrestorable = errors.New("it cannot be restored")

// found is an item of the backup and the table's row with its key.
type found struct {
	backed source.Backup
	there  bool       // the table has a row with this key
	orphan bool       // that row is under a KEK that is not in use
	lost   bool       // the row is keyed, and the record of its data key must be put back first
	row    source.Row // to rewrap: the backup's row, or the orphan
}

// findRow decodes an item of the backup and reads the table's row with its key. The error
// is errUnrestorable if the item cannot be restored.
func (r *Restorer) findRow(ctx context.Context, i envelope.Item) (found, error) {
	b, err := r.Table.ReadBackup(ctx, i)
	if errors.Is(err, source.ErrNoKey) {
		return found{}, fmt.Errorf("%w: %w", errUnrestorable, err)
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
		f.lost, err = r.checkRow(ctx, b.Row)
		return f, err
	}
	f.there = true
	if now.Defect != "" {
		return f, fmt.Errorf("%w: the row that is in the table is not a sound envelope: %s", errUnrestorable, now.Defect)
	}
	k, known := r.registered[now.KEK]
	if known && sameKey(now, k) && k.State.Resolves() {
		return f, nil
	}
	if f.lost, err = r.checkRow(ctx, now); err != nil {
		return f, fmt.Errorf("the row that is in the table: %w", err)
	}
	f.orphan, f.row = now.DEKID == "" || f.lost, now
	return f, nil
}

// checkRow refuses a row that cannot be rewrapped. lost is that of [Restorer.checkKeyed].
func (r *Restorer) checkRow(ctx context.Context, row source.Row) (lost bool, err error) {
	if row.DEKID != "" {
		return r.checkKeyed(ctx, row)
	}
	if row.Defect != "" {
		return false, fmt.Errorf("%w: %s", errUnrestorable, row.Defect)
	}
	if k, ok := r.registered[row.KEK]; !ok || !sameKey(row, k) {
		return false, fmt.Errorf("%w: KEK %s is not in the registry", errUnrestorable, cmp.Or(row.KeyARN, string(row.KEK)))
	}
	return false, nil
}

// sameKey reports whether a row that names its KEK by ARN names the registered key.
func sameKey(row source.Row, k kek.KEK) bool { return row.KeyARN == "" || row.KeyARN == k.ARN }

// Plan reads the whole backup and checks which of its rows exist. It changes nothing.
func (r *Restorer) Plan(ctx context.Context, file File) (Plan, error) {
	p := Plan{ByKEK: map[kek.ID]int64{}, First: []string{}, Locked: []Locked{}, Retired: []kek.ID{}}
	var mu sync.Mutex
	digest, err := r.eachRow(ctx, file, func(ctx context.Context, line int, item envelope.Item) error {
		f, err := r.findRow(ctx, item)
		mu.Lock()
		defer mu.Unlock()
		p.Rows++
		switch {
		case errors.Is(err, errUnrestorable):
			p.Defects++
			p.First = appendDefect(p.First, line, err)
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
		switch {
		case f.row.DEKID == "":
			p.ByKEK[f.row.KEK]++
		case !f.there:
			p.Keyed++
		}
		if f.lost {
			p.Lost++
		}
		switch {
		case f.orphan && f.lost: // its record is put back, and the row stays as it is
		case r.isKeyExposed(f.row) && f.row.Whole:
			p.Opaque++
		case r.isKeyExposed(f.row):
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

// appendDefect adds a defect to the first ones that are shown.
func appendDefect(list []string, line int, err error) []string {
	if len(list) < maxDefects {
		list = append(list, fmt.Sprintf("line %d: %v", line, err))
	}
	return list
}

// judgeKeys reads from KMS the state of the KEKs under which the rows to write are.
func (r *Restorer) judgeKeys(ctx context.Context, p *Plan) error {
	for _, id := range slices.Sorted(maps.Keys(p.ByKEK)) {
		k, err := r.Keys.Describe(ctx, id)
		switch {
		case errors.Is(err, journal.ErrNoKey):
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
	Restored int64            `json:"restored"` // rows that did not exist
	Repaired int64            `json:"repaired"` // orphans that were rewrapped in place
	Present  int64            `json:"present"`
	Keyed    int64            `json:"keyed"`           // of the restored rows, those that name a data key of the key table
	ByKEK    map[kek.ID]int64 `json:"restored_by_kek"` // restored and repaired embedded rows, by their KEK before
	Anew     int64            `json:"encrypted_anew"`
	Opaque   int64            `json:"keep_data_key"`
	Defects  int64            `json:"defects"`
	First    []string         `json:"first_defects"`
}

// Apply inserts every row of the backup that does not exist, and repairs orphans in place.
// With an error it returns what was done until then; call it again to continue.
func (r *Restorer) Apply(ctx context.Context, file File) (Result, error) {
	out := Result{ByKEK: map[kek.ID]int64{}, First: []string{}}
	defer r.forgetKeys()
	var mu sync.Mutex
	_, err := r.eachRow(ctx, file, func(ctx context.Context, line int, item envelope.Item) error {
		f, wrote, err := r.restoreRow(ctx, item)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, errUnrestorable), errors.Is(err, journal.ErrUnwrap):
			out.Defects++
			out.First = appendDefect(out.First, line, err)
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
		if f.row.DEKID == "" {
			out.ByKEK[f.row.KEK]++
		} else {
			out.Keyed++
		}
		switch {
		case r.isKeyExposed(f.row) && f.row.Whole:
			out.Opaque++
		case r.isKeyExposed(f.row):
			out.Anew++
		}
		return nil
	})
	return out, err
}

// eachRow calls do for the rows of the backup, several at the same time, and returns the
// digest of the file.
func (r *Restorer) eachRow(ctx context.Context, file File, do func(context.Context, int, envelope.Item) error) (string, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConcurrent)
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

// restoreRow inserts or repairs one row; wrote is false if the row exists under a KEK in
// use. It reads the row and the pointer again until a write finds both unchanged.
func (r *Restorer) restoreRow(ctx context.Context, item envelope.Item) (f found, wrote bool, err error) {
	var last error
	var disabled kek.ID // the pointer's KEK when one was found disabled
	for n := range maxTries {
		if err := remote.WaitForTry(ctx, n, firstWait, maxWait); err != nil {
			return f, false, errors.Join(err, last)
		}
		if f, err = r.findRow(ctx, item); err != nil || f.there && !f.orphan {
			return f, false, err
		}
		if f.lost {
			return f, false, fmt.Errorf("%w: its data key %s has no record under a KEK in use, and no copy of the record unwraps", errUnrestorable, f.row.DEKID)
		}
		v, err := r.Registry.Load(ctx, "")
		if err != nil {
			return f, false, err
		}
		if v.Pointer == nil {
			return f, false, kek.ErrNoPointer
		}
		shards := v.KEKs[v.Pointer.KEKID].FenceShards
		with, err := r.rewrapRow(ctx, f.row, *v.Pointer, shards)
		if errors.Is(err, journal.ErrKeyDisabled) && disabled != v.Pointer.KEKID { // retired since it was read?
			disabled, last = v.Pointer.KEKID, err
			continue
		}
		if errors.Is(err, errRetry) {
			last = err
			continue
		}
		if err != nil {
			return f, false, err
		}
		write, err := r.buildWrite(f, with, *v.Pointer, shards)
		if err != nil {
			return f, false, err
		}
		if wrote, err = r.send(ctx, write); wrote || err != nil && !errors.Is(err, errRetry) {
			return f, wrote, err
		}
		last = err
	}
	return f, false, fmt.Errorf("gave up after %d tries: %w", maxTries, last)
}

// buildWrite returns the write of one row: a conditional put, or the update of an orphan. That of
// an embedded row is in one transaction with a check of the fence of the pointer's KEK.
func (r *Restorer) buildWrite(f found, with source.Rewrapped, p kek.Pointer, shards int) ([]types.TransactWriteItem, error) {
	fence := types.TransactWriteItem{ConditionCheck: controltable.FenceOpen(r.ControlTable, p.KEKID, rand.IntN(max(shards, 1)))} //nolint:gosec // spreads load
	if f.orphan {
		update, err := r.Table.UpdateOf(f.row, with)
		return []types.TransactWriteItem{{Update: update}, fence}, err
	}
	put, err := r.Table.InsertOf(f.backed, with)
	if with.DEKID != "" {
		return []types.TransactWriteItem{{Put: put}}, err
	}
	return []types.TransactWriteItem{{Put: put}, fence}, err
}

// errRetry reports that nothing was written, because the row, the pointer or the fence has
// changed, or the service was busy. After both are read again, a write may succeed.
var errRetry = errors.New("nothing was written")

// send makes a write; false if it was refused.
func (r *Restorer) send(ctx context.Context, write []types.TransactWriteItem) (bool, error) {
	_, err := r.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: write})
	if err == nil {
		return true, nil
	}
	reasons := controltable.Reasons(err)
	again := controltable.Busy(err) || reasons != nil && !slices.Contains(reasons, controltable.Refused)
	err = fmt.Errorf("dynamodb TransactWriteItems: %w", err)
	if again {
		err = fmt.Errorf("%w: %w", errRetry, err)
	}
	return false, err
}

// isKeyExposed reports whether the row's data key may be known to others: an emergency has
// retired the KEK under which it is wrapped, or a later KEK under which the same data key
// was wrapped.
func (r *Restorer) isKeyExposed(row source.Row) bool {
	for _, e := range r.emergencies {
		if row.KEK == e.OldKEK || slices.Contains(e.Olds, row.KEK) || row.Epoch < e.Epoch {
			return true
		}
	}
	return false
}

// rewrapRow wraps the row's data key under the pointer's KEK. If the data key may be
// exposed, it encrypts the payload under a new data key, provided that the payload is in
// this project's format.
func (r *Restorer) rewrapRow(ctx context.Context, row source.Row, p kek.Pointer, shards int) (source.Rewrapped, error) {
	if row.DEKID != "" {
		return r.rekeyRow(ctx, row, p, shards)
	}
	out := source.Rewrapped{KEK: p.KEKID, Epoch: p.Epoch}
	if row.Whole || !r.isKeyExposed(row) {
		var err error
		out.WrappedDEK, err = r.KMS.ReEncrypt(ctx, row.KEK, p.KEKID, row.WrappedDEK, row.Context)
		return out, err
	}
	if len(row.Ciphertext) == 0 {
		return out, fmt.Errorf("%w: its data key may be exposed since an emergency, and it has no payload that can be encrypted under a fresh one", errUnrestorable)
	}
	old, err := r.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if err != nil {
		return out, err
	}
	defer clear(old)
	plain, err := r.Cipher.Open(old, row.Ciphertext, row.Bound)
	if err != nil {
		return out, fmt.Errorf("%w: its payload does not open under its data key", errUnrestorable)
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
