package envelope

import (
	"container/list"
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamotypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
)

// S3 is the part of the S3 client that is used for the copies of records.
type S3 interface {
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// KeyTable configures the key table, which has a record of each data key of keyed rows.
// Table, Bucket and S3 are required.
//
// The bounds say how long and how much one process seals under a data key before it makes
// another. Records are never deleted, and a rotation costs one call to KMS for each, so
// these bounds are wider than those of [Cache]. A field that is zero has its default.
type KeyTable struct {
	Table  string // name of the key table, output KeyTableName of the stack
	Bucket string // audit bucket, output AuditBucketName of the stack
	S3     S3

	MaxAge   time.Duration // of a data key; default 24 hours
	MaxUses  int64         // records sealed under one; default 1,048,576
	MaxBytes int64         // bytes sealed under one; default 64 GiB
}

func (k KeyTable) withDefaults() (KeyTable, error) {
	var faults []error
	if k.Table == "" {
		faults = append(faults, errors.New("Keys.Table is required"))
	}
	if k.Bucket == "" {
		faults = append(faults, errors.New("Keys.Bucket is required"))
	}
	if k.S3 == nil {
		faults = append(faults, errors.New("Keys.S3 is required"))
	}
	if k.MaxAge <= 0 {
		k.MaxAge = 24 * time.Hour
	}
	if k.MaxUses <= 0 {
		k.MaxUses = 1 << 20
	}
	k.MaxUses = min(k.MaxUses, maxUses)
	if k.MaxBytes <= 0 {
		k.MaxBytes = 64 << 30
	}
	return k, errors.Join(faults...)
}

// keySupply holds the data keys under which this process seals keyed rows, by encryption
// context. While one is in use the next is made in the background, so that no writer waits
// for it. It is safe for concurrent use; a nil supply holds nothing.
type keySupply struct {
	bounds  KeyTable
	off     bool // every record has a data key of its own
	maxKeys int  // contexts held
	hits    *atomic.Int64
	make    func(ctx context.Context, encctx map[string]string, least int64) (*dataKey, error)

	mu     sync.Mutex
	lines  map[string]*list.Element // of *supplyLine
	order  list.List                // the least recently used last
	floor  int64                    // data keys of earlier epochs may be exposed
	closed bool
}

// supplyLine has the data keys of one encryption context.
type supplyLine struct {
	name    string
	encctx  map[string]string
	current *suppliedKey
	next    *suppliedKey
	call    *keyCall      // that makes a data key; nil if none runs
	retryAt time.Duration // after a failed call in the background, none before this time
}

// suppliedKey is a data key with its usage.
type suppliedKey struct {
	*dataKey
	used usage
}

// newKeySupply returns a supply of data keys that create makes. It counts those that it had at
// hand.
func newKeySupply(bounds KeyTable, cache Cache, hits *atomic.Int64, create func(context.Context, map[string]string, int64) (*dataKey, error)) *keySupply {
	return &keySupply{bounds: bounds, off: cache.Off, maxKeys: cache.MaxKeys, hits: hits, make: create, lines: map[string]*list.Element{}}
}

// keyWish says which data key a writer needs.
type keyWish struct {
	encctx map[string]string
	size   int           // of the record
	now    time.Duration // on the client's clock
	epoch  int64         // of the pointer: a data key of an earlier one is replaced in the background
	least  int64         // a data key of an earlier epoch would be refused
}

// usable reports whether k may seal one more record.
func (s *keySupply) usable(k *suppliedKey, w keyWish) bool {
	return k != nil && w.now-k.born < s.bounds.MaxAge && k.bornEpoch >= max(w.least, s.floor) &&
		k.used.uses < s.bounds.MaxUses && (k.used.uses == 0 || k.used.bytes+int64(w.size) <= s.bounds.MaxBytes)
}

// nearsEnd reports whether k has used up three quarters of one of its bounds, or is of an
// earlier epoch than the pointer: the next data key is made then.
func (s *keySupply) nearsEnd(k *suppliedKey, w keyWish) bool {
	return k.bornEpoch < w.epoch || w.now-k.born >= s.bounds.MaxAge*3/4 || k.used.uses >= s.bounds.MaxUses*3/4 || k.used.bytes >= s.bounds.MaxBytes/4*3
}

// take returns a data key for one record, and charges the record to it. It waits only if
// the supply has no key that may be used.
func (s *keySupply) take(ctx context.Context, w keyWish) (*dataKey, error) {
	if s.off {
		return s.make(ctx, w.encctx, w.least)
	}
	for waits := 0; ; waits++ {
		k, call, err := s.takeOrCall(ctx, w)
		if err != nil {
			return nil, err
		}
		if k != nil {
			if waits == 0 {
				s.hits.Add(1)
			}
			return k, nil
		}
		select {
		case <-call.done:
			if call.err != nil {
				return nil, call.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// takeOrCall returns a data key, or the call that makes one.
func (s *keySupply) takeOrCall(ctx context.Context, w keyWish) (*dataKey, *keyCall, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	l := s.lineOf(w.encctx)
	if !s.usable(l.current, w) || s.usable(l.next, w) && l.next.bornEpoch > l.current.bornEpoch {
		l.current, l.next = l.next, nil
	}
	if !s.usable(l.current, w) {
		if l.call == nil {
			s.startCall(ctx, l, w)
		}
		return nil, l.call, nil
	}
	l.current.used.addRecord(w.size)
	if s.nearsEnd(l.current, w) && !s.usable(l.next, w) && l.call == nil && w.now >= l.retryAt {
		s.startCall(ctx, l, w)
	}
	return l.current.dataKey, nil, nil
}

// lineOf returns the line of an encryption context; the caller holds mu.
func (s *keySupply) lineOf(encctx map[string]string) *supplyLine {
	name := string(aead.AssociatedData(encctx))
	if e, ok := s.lines[name]; ok {
		s.order.MoveToFront(e)
		return e.Value.(*supplyLine) //nolint:forcetypeassert // the list holds nothing else
	}
	l := &supplyLine{name: name, encctx: maps.Clone(encctx)}
	s.lines[name] = s.order.PushFront(l)
	for e := s.order.Back(); len(s.lines) > s.maxKeys && e != nil; {
		before := e.Prev()
		if old := e.Value.(*supplyLine); old.call == nil && old != l { //nolint:forcetypeassert // as above
			delete(s.lines, old.name)
			s.order.Remove(e)
		}
		e = before
	}
	return l
}

// startCall begins to make a data key for a line; the caller holds mu. The call does not end
// with the context of the writer that began it, because others wait for it too.
func (s *keySupply) startCall(ctx context.Context, l *supplyLine, w keyWish) {
	call := &keyCall{done: make(chan struct{})}
	l.call = call
	go func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
		defer cancel()
		call.key, call.err = s.make(limited, l.encctx, w.least)
		s.endCall(l, w)
	}()
}

// endCall puts a new data key in its place, unless an emergency has overtaken it.
func (s *keySupply) endCall(l *supplyLine, w keyWish) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := l.call
	l.call = nil
	defer close(call.done)
	switch {
	case call.err != nil:
		l.retryAt = w.now + retryPointer
	case !s.closed && call.key.bornEpoch >= s.floor:
		l.next = &suppliedKey{dataKey: call.key}
	}
}

// dropEarlier drops the data keys of epochs before floor, also those that are being made.
func (s *keySupply) dropEarlier(floor int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = max(s.floor, floor)
	s.dropKeys(func(k *suppliedKey) bool { return k.bornEpoch < s.floor })
}

// dropExpired drops the data keys that are too old, so that an idle process holds none.
func (s *keySupply) dropExpired(now time.Duration) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropKeys(func(k *suppliedKey) bool { return now-k.born >= s.bounds.MaxAge })
}

// close drops every data key and accepts none afterwards.
func (s *keySupply) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.dropKeys(func(*suppliedKey) bool { return true })
}

// dropKeys drops the data keys for which drop is true; the caller holds mu.
func (s *keySupply) dropKeys(drop func(*suppliedKey) bool) {
	for e := s.order.Front(); e != nil; e = e.Next() {
		l := e.Value.(*supplyLine) //nolint:forcetypeassert // as above
		for _, k := range []**suppliedKey{&l.current, &l.next} {
			if *k != nil && drop(*k) {
				*k = nil
			}
		}
	}
}

// createTimeout bounds the making of a data key: a call to KMS, a PUT and a transaction.
const createTimeout = 30 * time.Second

// errEarlier reports that a data key of the current epoch would be refused.
var errEarlier = errors.New("the row is of a later epoch than the pointer")

// createKey makes a data key for keyed rows with this encryption context. Its epoch is that
// of the pointer, and at least least.
func (c *Client) createKey(ctx context.Context, encctx map[string]string, least int64) (*dataKey, error) {
	var k *dataKey
	err := c.retryWrite(ctx, func(h *heldLease, _ time.Duration) (refusal, error) {
		if h.pointer.Epoch < least {
			return refusal{fenced: true}, errEarlier
		}
		c.count.misses.Add(1)
		var v refusal
		var err error
		k, v, err = c.createKeyUnder(ctx, h, encctx)
		return v, err
	})
	if err != nil {
		return nil, fmt.Errorf("make a data key: %w", err)
	}
	return k, nil
}

// createKeyUnder makes a data key under the KEK of h (spec/keyed.tla: rule 1). The copy comes
// first: of a record that a mistake removes after its KEK was retired, nothing would be left.
// Rows may name the data key when its record is stored; a record that no row names, because
// this process stopped in between, does no harm.
func (c *Client) createKeyUnder(ctx context.Context, h *heldLease, encctx map[string]string) (*dataKey, refusal, error) {
	var random [16]byte
	_, _ = cryptorand.Read(random[:]) // it never fails (package documentation)
	p := h.pointer
	r := keyrecord.Record{
		DEKID: keyrecord.NewID(random), KEKID: p.KEKID, KEKEpoch: p.Epoch, BornEpoch: p.Epoch, Context: encctx,
		CreatedAt: c.cfg.wallClock().UTC().Truncate(time.Second),
	}
	k := &dataKey{id: r.DEKID, bornEpoch: p.Epoch, born: c.elapsedTime()}
	out, err := c.cfg.KMS.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
		KeyId: keyName(p.KEKID, p.KeyARN), KeySpec: types.DataKeySpecAes256, EncryptionContext: keyrecord.EncryptionContext(r),
	})
	if err != nil {
		if err = kmsError("GenerateDataKey", p.KEKID, err); errors.Is(err, ErrKeyUnusable) {
			err = fmt.Errorf("%w: %w", errSealKey, err)
		}
		return nil, refusal{}, err
	}
	r.WrappedDEK = out.CiphertextBlob
	runSecretly(func() { k.aead, err = aead.New(out.Plaintext) })
	clear(out.Plaintext)
	if err != nil {
		return nil, refusal{}, fmt.Errorf("kms GenerateDataKey, KEK %s: %w", p.KEKID, err)
	}
	if err := keyrecord.Check(r); err != nil {
		return nil, refusal{}, fmt.Errorf("%w: the record of its data key: %w", ErrInvalidItem, err)
	}
	if err := keyrecord.PutCopy(ctx, c.cfg.Keys.S3, c.cfg.Keys.Bucket, r); err != nil {
		return nil, refusal{}, err
	}
	v, err := c.storeRecord(ctx, h, r)
	return k, v, err
}

// storeRecord creates a record in one transaction with a check of its KEK's fence.
func (c *Client) storeRecord(ctx context.Context, h *heldLease, r keyrecord.Record) (refusal, error) {
	err := c.transactFenced(ctx, h, 1, func(shard int) []dynamotypes.TransactWriteItem {
		return keyrecord.CreateItems(c.cfg.Keys.Table, c.cfg.ControlTable, r, shard)
	})
	what := func(err error) error { return fmt.Errorf("dynamodb TransactWriteItems %s: %w", c.cfg.Keys.Table, err) }
	var cancelled *dynamotypes.TransactionCanceledException
	_ = errors.As(err, &cancelled)
	reasons := controltable.Reasons(err) // none if it is nil
	switch {
	case err == nil:
		return refusal{}, nil
	case controltable.Busy(err):
		return refusal{retry: true}, what(err)
	case len(reasons) != 2:
		return refusal{}, what(err)
	case reasons[0] == controltable.Condition:
		if stored, _ := keyrecord.Decode(cancelled.CancellationReasons[0].Item); string(stored.WrappedDEK) == string(r.WrappedDEK) {
			return refusal{}, nil // it was stored, and its answer was lost
		}
		return refusal{retry: true}, what(err) // somebody else's, of the same id
	case reasons[1] == controltable.Condition:
		return refusal{fenced: true}, what(err)
	case reasons[0].Busy(), reasons[1].Busy():
		return refusal{retry: true}, what(err)
	}
	return refusal{}, what(err)
}

// readRecord reads the record of a data key consistently; ok is false if there is none.
func (c *Client) readRecord(ctx context.Context, id string) (r keyrecord.Record, ok bool, err error) {
	out, err := c.cfg.DynamoDB.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &c.cfg.Keys.Table, Key: keyrecord.Key(id), ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return r, false, fmt.Errorf("dynamodb GetItem %s: %w", c.cfg.Keys.Table, err)
	}
	if out.Item == nil {
		return r, false, nil
	}
	if r, err = keyrecord.Decode(out.Item); err != nil {
		return r, false, fmt.Errorf("table %s: %w: %w", c.cfg.Keys.Table, ErrBadRecord, err)
	}
	return r, true, nil
}

// sealKeyed returns the attributes that make a row a keyed one, without the version. The data
// key is of the epoch of the row in whose place it comes, or of a later one. A new row's key
// must be written as DynamoDB returns it; that of a stored row is.
func (t *Table) sealKeyed(ctx context.Context, h *heldLease, at time.Duration, row Row, old *storedRow) (Item, error) {
	err := t.cfg.checkWrite(row.Item)
	var least int64
	if old != nil {
		least = old.Epoch
	} else if err == nil {
		err = t.cfg.checkKeyNumbers(row.Item)
	}
	var encctx map[string]string
	if err == nil {
		encctx, _, err = t.cfg.sealBound(row.Item)
	}
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	k, err := t.c.keyed.take(ctx, keyWish{encctx: encctx, size: len(row.Plaintext), now: at, epoch: h.pointer.Epoch, least: least})
	if err != nil {
		return nil, err
	}
	bound, err := t.cfg.rowSchema().KeyedBoundOf(row.Item, t.cfg.Keys, k.id)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w: %w", t.cfg.Table, ErrInvalidItem, err)
	}
	ciphertext, err := k.aead.Seal(nil, row.Plaintext, aead.AssociatedData(bound))
	if err != nil {
		return nil, err
	}
	return t.cfg.encodeKeyed(k, ciphertext), nil
}

// insertKeyed writes one keyed row: a plain conditional write, which checks nothing that
// other writers check too.
func (t *Table) insertKeyed(ctx context.Context, i Item) (refusal, error) {
	put := t.putOf(i)
	_, err := t.c.cfg.DynamoDB.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: put.TableName, Item: put.Item, ConditionExpression: put.ConditionExpression,
		ExpressionAttributeNames:            put.ExpressionAttributeNames,
		ReturnValuesOnConditionCheckFailure: put.ReturnValuesOnConditionCheckFailure,
	})
	var exists *dynamotypes.ConditionalCheckFailedException
	switch {
	case err == nil:
		return refusal{}, nil
	case errors.As(err, &exists):
		if t.samePayload(exists.Item, i) {
			return refusal{}, nil // it was written, and its answer was lost
		}
		return refusal{}, fmt.Errorf("table %s: %w", t.cfg.Table, ErrExists)
	default:
		return refusal{retry: controltable.Busy(err)}, fmt.Errorf("dynamodb PutItem %s: %w", t.cfg.Table, err)
	}
}

// samePayload reports whether two items have the same payload. Then one write made both: a
// nonce is never used twice.
func (t *Table) samePayload(stored, written Item) bool {
	return string(attr.Bytes(stored[t.cfg.Ciphertext])) == string(attr.Bytes(written[t.cfg.Ciphertext]))
}
