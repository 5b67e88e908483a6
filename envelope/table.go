package envelope

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
)

// TableAPI is what a [Table] uses of the DynamoDB client.
type TableAPI interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
}

// MaxBatch is how many rows [Table.InsertAll] takes: a transaction has 100 items,
// and one is the fence check that the rows share.
const MaxBatch = 99

// Table is a table whose rows are envelopes. It is safe for concurrent use.
//
// Rows are deleted with the DynamoDB client itself: a delete needs no fence. Only a
// Table, a rotation, matter ops adopt and matter ops restore-rows may write the
// attributes that make a row an envelope, and the attributes that the row is bound to.
type Table struct {
	c   *Client
	cfg TableConfig
}

// Row is a row in the clear.
type Row struct {
	Item      Item   // every attribute but those that make it an envelope
	Plaintext []byte // of its payload
	Version   int64  // counts its writes, a rotation's among them; 0 if the table keeps none; only read
}

// Table returns the table that cfg describes. Without cfg.Keys it asks DynamoDB for
// the table's key. It leaves a mark of the table in the control table, which the client
// renews until it is closed: while a marked table is not a registered source, every
// rotation is refused, so that none can forget the table.
func (c *Client) Table(ctx context.Context, cfg TableConfig) (*Table, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("envelope: table %q: %w", cfg.Table, err)
	}
	if len(cfg.Keys) == 0 {
		out, err := c.cfg.DynamoDB.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &cfg.Table})
		if err != nil {
			return nil, fmt.Errorf("dynamodb DescribeTable %s: %w", cfg.Table, err)
		}
		for _, k := range out.Table.KeySchema {
			cfg.Keys = append(cfg.Keys, aws.ToString(k.AttributeName))
		}
	}
	for _, k := range cfg.Keys {
		if slices.Contains(cfg.own(), k) {
			return nil, fmt.Errorf("envelope: table %q: attribute %q is part of the key and of the envelope", cfg.Table, k)
		}
	}
	if err := c.mark(ctx, cfg.Table[strings.LastIndexByte(cfg.Table, '/')+1:]); err != nil {
		return nil, fmt.Errorf("envelope: table %q: leave its mark: %w", cfg.Table, err)
	}
	return &Table{c: c, cfg: cfg}, nil
}

// Get reads a row consistently and opens it; [ErrNotFound] if there is none.
func (t *Table) Get(ctx context.Context, key Item) (Row, error) {
	row, _, err := t.get(ctx, key)
	return row, err
}

// Open opens an item that the caller has read, by a query or a scan, whole. If its
// KEK is gone by now the row is read again, so what is returned may be newer.
func (t *Table) Open(ctx context.Context, i Item) (Row, error) {
	s, err := t.load(i)
	if err != nil {
		return Row{}, err
	}
	row, _, err := t.open(ctx, s)
	return row, err
}

func (t *Table) get(ctx context.Context, key Item) (Row, stored, error) {
	s, err := t.read(ctx, key)
	if err != nil {
		return Row{}, s, err
	}
	return t.open(ctx, s)
}

func (t *Table) read(ctx context.Context, key Item) (stored, error) {
	key = t.key(key)
	if err := checkKey(key); err != nil {
		return stored{}, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	out, err := t.c.cfg.DynamoDB.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.cfg.Table, Key: key, ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return stored{}, fmt.Errorf("dynamodb GetItem %s: %w", t.cfg.Table, err)
	}
	if out.Item == nil {
		return stored{}, fmt.Errorf("table %s: %w", t.cfg.Table, ErrNotFound)
	}
	return t.load(out.Item)
}

// load reads an item as it is stored.
func (t *Table) load(i Item) (stored, error) {
	s, err := t.cfg.decode(i)
	if err == nil {
		s.encctx, s.bind, err = t.cfg.bound(i)
	}
	if err != nil {
		return s, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	return s, nil
}

// open opens a row as it was read, or as it is now if that is out of date.
func (t *Table) open(ctx context.Context, s stored) (Row, stored, error) {
	if t.c.closed.Load() {
		return Row{}, s, ErrClosed
	}
	plain, err := t.c.open(ctx, s.record, func(ctx context.Context) (record, bool, error) {
		newer, err := t.read(ctx, s.item)
		if errors.Is(err, ErrNotFound) {
			return record{}, false, nil
		}
		s = newer
		return newer.record, true, err
	})
	if err != nil {
		return Row{}, s, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	return Row{Item: t.cfg.without(s.item), Plaintext: plain, Version: s.version}, s, nil
}

// key returns the key attributes of an item.
func (t *Table) key(i Item) Item {
	k := make(Item, len(t.cfg.Keys))
	for _, name := range t.cfg.Keys {
		if v, ok := i[name]; ok {
			k[name] = v
		}
	}
	return k
}

// Insert writes a new row: item with plaintext sealed into it. [ErrExists] if
// there is one with its key, [ErrInvalidItem] if it could not be read as it is given.
func (t *Table) Insert(ctx context.Context, item Item, plaintext []byte) error {
	return t.InsertAll(ctx, []Row{{Item: item, Plaintext: plaintext}})
}

// InsertAll writes up to [MaxBatch] new rows or none, in one transaction with one
// fence check. [ErrExists] if there is one already with the key of any of them,
// [ErrInvalidItem] if any of them could not be read as it is given.
func (t *Table) InsertAll(ctx context.Context, rows []Row) error {
	if len(rows) == 0 || len(rows) > MaxBatch {
		return fmt.Errorf("envelope: insert of %d rows: 1 to %d fit in a transaction", len(rows), MaxBatch)
	}
	return t.c.write(ctx, func(h *hold, at time.Duration) (verdict, error) {
		items := make([]Item, len(rows))
		for n, row := range rows {
			sealed, err := t.seal(ctx, h, at, row)
			if err != nil {
				return verdict{}, fmt.Errorf("row %d of %d: %w", n+1, len(rows), err)
			}
			items[n] = maps.Clone(row.Item)
			maps.Copy(items[n], sealed)
			if t.cfg.Version != "" {
				items[n][t.cfg.Version] = attr.Num(1)
			}
		}
		return t.insert(ctx, h, items)
	})
}

// seal makes the attributes that make a row an envelope, the version aside.
func (t *Table) seal(ctx context.Context, h *hold, at time.Duration, row Row) (Item, error) {
	err := t.cfg.checkWrite(row.Item)
	var encctx, bind map[string]string
	if err == nil {
		encctx, bind, err = t.cfg.sealBound(row.Item)
	}
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	s, err := t.c.seal(ctx, h, at, nil, row.Plaintext, encctx, bind)
	if err != nil {
		return nil, err
	}
	return t.cfg.encode(s), nil
}

// insert writes sealed items behind the fence of their KEK (spec: Commit, InsertOK).
func (t *Table) insert(ctx context.Context, h *hold, items []Item) (verdict, error) {
	var writes []types.TransactWriteItem
	for _, i := range items {
		writes = append(writes, types.TransactWriteItem{Put: &types.Put{
			TableName: &t.cfg.Table, Item: i, ConditionExpression: aws.String("attribute_not_exists(#key)"),
			ExpressionAttributeNames:            map[string]string{"#key": t.cfg.Keys[0]},
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}})
	}
	return t.writeFenced(ctx, h, writes, items)
}

// writeFenced sends writes of items with a check of one shard of their KEK's fence. Two
// transactions that check the same shard at the same time conflict, though neither writes
// it (DynamoDB developer guide, "Transaction conflict handling in DynamoDB"). If that
// alone was in the way, another shard is asked at once: waiting is for rows that are
// contended.
func (t *Table) writeFenced(ctx context.Context, h *hold, writes []types.TransactWriteItem, items []Item) (verdict, error) {
	shard := int(t.c.cfg.Random(int64(h.shards)))
	for tries := 1; ; tries++ {
		check := types.TransactWriteItem{ConditionCheck: controltable.FenceOpen(t.c.cfg.ControlTable, h.pointer.KEKID, shard)}
		_, err := t.c.cfg.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: append(writes[:len(writes):len(writes)], check)})
		if tries >= h.shards || !onlyFenceBusy(err, len(items)) {
			return t.transacted(err, items)
		}
		shard = (shard + 1 + int(t.c.cfg.Random(int64(h.shards-1)))) % h.shards
	}
}

// onlyFenceBusy reports whether a transaction of so many rows and, last, a fence check
// was cancelled because another one holds the fence's shard, and for nothing else.
func onlyFenceBusy(err error, rows int) bool {
	reasons := controltable.Reasons(err)
	if len(reasons) != rows+1 || reasons[rows] != controltable.Conflict {
		return false
	}
	return !slices.ContainsFunc(reasons[:rows], func(r controltable.Reason) bool { return r != controltable.Innocent })
}

// transacted judges the answer to a transaction of rows and, last, a fence check.
func (t *Table) transacted(err error, items []Item) (verdict, error) {
	var cancelled *types.TransactionCanceledException
	switch {
	case err == nil:
		return verdict{}, nil
	case errors.As(err, &cancelled) && len(cancelled.CancellationReasons) == len(items)+1:
		return t.cancelled(items, cancelled)
	case controltable.Busy(err):
		return verdict{again: true}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, err)
	default:
		return verdict{}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, err)
	}
}

// cancelled judges why an insert was cancelled. A row that is there with the very
// ciphertext that was to be written is this insert's own: it had gone through and
// its answer was lost.
func (t *Table) cancelled(items []Item, e *types.TransactionCanceledException) (verdict, error) {
	var v verdict
	for n, r := range e.CancellationReasons {
		switch reason := controltable.ReasonOf(r); {
		case reason == controltable.Innocent:
		case reason == controltable.Condition && n == len(items):
			v.fenced = true
		case reason == controltable.Condition:
			if string(attr.Bytes(r.Item[t.cfg.Ciphertext])) == string(attr.Bytes(items[n][t.cfg.Ciphertext])) {
				return verdict{}, nil
			}
			return verdict{}, fmt.Errorf("table %s: %w", t.cfg.Table, ErrExists)
		case reason.Busy():
			v.again = true
		default:
			return verdict{}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, e)
		}
	}
	return v, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, e)
}

// Update reads a row, lets change alter it, and writes it if its payload still is the
// one that was read; otherwise it begins again, so change may be called several times.
// [ErrNotFound] if there is no row: an update never creates one. What change
// returns as an error ends the update with that error.
//
// change may set, add and remove attributes of Row.Item, and the plaintext. Attributes
// that it leaves alone are not written. [ErrKeyChanged] if it alters or removes one of
// the key, [ErrInvalidItem] if what it makes could not be read as it is; then nothing
// is written.
func (t *Table) Update(ctx context.Context, key Item, change func(*Row) error) error {
	return t.c.write(ctx, func(h *hold, at time.Duration) (verdict, error) {
		row, old, err := t.get(ctx, key)
		if err != nil {
			return verdict{}, err
		}
		before := cloneItem(row.Item)
		if err := change(&row); err != nil {
			return verdict{}, err
		}
		for _, k := range t.cfg.Keys {
			if !sameScalar(before[k], row.Item[k]) {
				return verdict{}, fmt.Errorf("table %s: attribute %q: %w", t.cfg.Table, k, ErrKeyChanged)
			}
			row.Item[k] = before[k] // a number as DynamoDB writes it
		}
		sealed, err := t.seal(ctx, h, at, row)
		if err != nil {
			return verdict{}, err
		}
		set, remove := changes(before, row.Item)
		maps.Copy(set, sealed)
		return t.update(ctx, h, old, set, remove)
	})
}

// update writes a row if its ciphertext is the one that was read and it was not wrapped
// in a later epoch than set's (spec: Commit, UpdateOK). One write, no control table:
// whatever this process missed while it slept, a rewrap has raised the epoch. A row
// without an epoch was written without this package, or was adopted: nothing of it says
// that it was rewrapped since, so its update goes past the fence as an insert does.
func (t *Table) update(ctx context.Context, h *hold, old stored, set Item, remove []string) (verdict, error) {
	e := expression{names: map[string]string{}, values: Item{}}
	payload, epoch := e.name(t.cfg.Ciphertext), e.name(t.cfg.Epoch)
	cond := fmt.Sprintf("%s = %s AND ", payload, e.value(old.item[t.cfg.Ciphertext]))
	unfenced := old.Epoch > 0
	switch {
	case unfenced:
		cond += fmt.Sprintf("%s <= %s", epoch, e.value(set[t.cfg.Epoch]))
	case old.item[t.cfg.Epoch] != nil: // 0 says as little as none
		cond += fmt.Sprintf("%s = %s", epoch, e.value(old.item[t.cfg.Epoch]))
	default:
		cond += fmt.Sprintf("attribute_not_exists(%s)", epoch)
	}
	update := e.update(set, remove, t.cfg.Version)
	if !unfenced {
		return t.updateFenced(ctx, h, &types.Update{
			TableName: &t.cfg.Table, Key: t.key(old.item), UpdateExpression: &update, ConditionExpression: &cond,
			ExpressionAttributeNames: e.names, ExpressionAttributeValues: e.values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		}, set)
	}
	_, err := t.c.cfg.DynamoDB.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &t.cfg.Table, Key: t.key(old.item), UpdateExpression: &update, ConditionExpression: &cond,
		ExpressionAttributeNames: e.names, ExpressionAttributeValues: e.values,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	})
	var failed *types.ConditionalCheckFailedException
	var conflict *types.TransactionConflictException
	switch {
	case err == nil:
		return verdict{}, nil
	case errors.As(err, &conflict):
		return verdict{again: true}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
	case !errors.As(err, &failed):
		return verdict{}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
	case string(attr.Bytes(failed.Item[t.cfg.Ciphertext])) == string(attr.Bytes(set[t.cfg.Ciphertext])):
		return verdict{}, nil // it had gone through, and its answer was lost
	}
	theirs, _ := attr.Int(failed.Item[t.cfg.Epoch]) // 0 if it cannot be read
	mine, _ := attr.Int(set[t.cfg.Epoch])           // it is what this client seals with
	return verdict{again: true, fenced: theirs > mine}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
}

// updateFenced is an update in one transaction with a check of the KEK's fence.
func (t *Table) updateFenced(ctx context.Context, h *hold, u *types.Update, set Item) (verdict, error) {
	v, err := t.writeFenced(ctx, h, []types.TransactWriteItem{{Update: u}}, []Item{set})
	if errors.Is(err, ErrExists) { // it is another row by now: read it again
		return verdict{again: true}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, ErrContended)
	}
	return v, err
}

// Put writes a row whether it is there or not. What was there is replaced, all
// attributes of it. [ErrInvalidItem] is [Table.Insert]'s.
func (t *Table) Put(ctx context.Context, item Item, plaintext []byte) error {
	for range maxTries {
		err := t.Insert(ctx, item, plaintext)
		if !errors.Is(err, ErrExists) {
			return err
		}
		err = t.Update(ctx, item, func(row *Row) error {
			row.Item, row.Plaintext = maps.Clone(item), plaintext
			return nil
		})
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("table %s: it came and went %d times: %w", t.cfg.Table, maxTries, ErrContended)
}
