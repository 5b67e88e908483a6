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

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
)

// TableAPI is the part of the DynamoDB client that a [Table] uses.
type TableAPI interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
}

// MaxBatch is how many rows [Table.InsertAll] accepts. A transaction has at most 100
// items (DynamoDB API reference, TransactWriteItems), and one is the fence check of
// embedded rows.
const MaxBatch = 99

// Table is a table whose rows are envelopes. It is safe for concurrent use.
//
// A table of keyed rows and one of embedded rows have the same methods. Keyed rows are
// written by plain conditional writes, embedded ones are inserted in a transaction with a
// check of the fence.
//
// Delete rows with the DynamoDB client itself: a delete needs no fence. Only a Table, a
// rotation, matter ops adopt and matter ops restore-rows may write the attributes that
// make a row an envelope, and the attributes to which the row is bound.
type Table struct {
	c   *Client
	cfg TableConfig
}

// Row is a decrypted row.
type Row struct {
	Item      Item   // all attributes except the envelope's
	Plaintext []byte // of its payload
	Version   int64  // number of writes, those of rotations included; 0 if the table has no version; ignored by writes
}

// Table returns the table that cfg describes. If cfg.Keys is empty, it reads the table's
// key schema from DynamoDB. It writes a mark of the table into the control table, which
// the client renews until it is closed: while a marked table is not a registered source,
// every rotation is refused, so no rotation can forget the table.
func (c *Client) Table(ctx context.Context, cfg TableConfig) (*Table, error) {
	cfg = cfg.withDefaults()
	if err := cfg.checkConfig(); err != nil {
		return nil, fmt.Errorf("envelope: table %q: %w", cfg.Table, err)
	}
	if cfg.rowSchema().HoldsKeyed() && c.cfg.Keys == nil {
		return nil, fmt.Errorf("envelope: table %q: it has keyed rows: Config.Keys is required", cfg.Table)
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
		if slices.Contains(cfg.envelopeAttributes(), k) {
			return nil, fmt.Errorf("envelope: table %q: attribute %q is part of the key and of the envelope", cfg.Table, k)
		}
	}
	if err := c.putMark(ctx, cfg.Table[strings.LastIndexByte(cfg.Table, '/')+1:]); err != nil {
		return nil, fmt.Errorf("envelope: table %q: leave its mark: %w", cfg.Table, err)
	}
	return &Table{c: c, cfg: cfg}, nil
}

// Get reads a row consistently and opens it. The error is [ErrNotFound] if the row does not
// exist, and one of [Client.Open] if it cannot be opened.
func (t *Table) Get(ctx context.Context, key Item) (Row, error) {
	row, _, err := t.getRow(ctx, key)
	return row, err
}

// Open opens an item that the caller has read with all its attributes, by a query or a
// scan. If its KEK is gone, the row is read again, so the returned row may be newer.
func (t *Table) Open(ctx context.Context, i Item) (Row, error) {
	s, err := t.decodeRow(i)
	if err != nil {
		return Row{}, err
	}
	row, _, err := t.openRow(ctx, s)
	return row, err
}

// getRow reads and opens a row, and also returns it as it is stored.
func (t *Table) getRow(ctx context.Context, key Item) (Row, storedRow, error) {
	s, err := t.readRow(ctx, key)
	if err != nil {
		return Row{}, s, err
	}
	return t.openRow(ctx, s)
}

// readRow reads a row consistently. The error is [ErrNotFound] if it does not exist.
func (t *Table) readRow(ctx context.Context, key Item) (storedRow, error) {
	key = t.keyAttributes(key)
	if err := checkKey(key); err != nil {
		return storedRow{}, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	out, err := t.c.cfg.DynamoDB.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: &t.cfg.Table, Key: key, ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return storedRow{}, fmt.Errorf("dynamodb GetItem %s: %w", t.cfg.Table, err)
	}
	if out.Item == nil {
		return storedRow{}, fmt.Errorf("table %s: %w", t.cfg.Table, ErrNotFound)
	}
	return t.decodeRow(out.Item)
}

// decodeRow decodes an item and what it is bound to.
func (t *Table) decodeRow(i Item) (storedRow, error) {
	s, err := t.cfg.decodeRow(i)
	if err == nil {
		s.encctx, s.bind, err = t.cfg.boundValues(i)
	}
	if err == nil && s.dekID != "" {
		var bound map[string]string
		if bound, err = t.cfg.rowSchema().KeyedBoundOf(i, t.cfg.Keys, s.dekID); err == nil {
			s.associated = aead.AssociatedData(bound)
		}
	}
	if err != nil {
		return s, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	return s, nil
}

// openRow opens a row as it was read, or reads it again if it was rewrapped since.
func (t *Table) openRow(ctx context.Context, s storedRow) (Row, storedRow, error) {
	if t.c.closed.Load() {
		return Row{}, s, ErrClosed
	}
	plain, err := t.c.openRecord(ctx, s.record, func(ctx context.Context) (record, bool, error) {
		newer, err := t.readRow(ctx, s.item)
		if errors.Is(err, ErrNotFound) {
			return record{}, false, nil
		}
		s = newer
		return newer.record, true, err
	})
	if err != nil {
		return Row{}, s, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	return Row{Item: t.cfg.withoutEnvelope(s.item), Plaintext: plain, Version: s.version}, s, nil
}

// keyAttributes returns the attributes of an item that are its primary key.
func (t *Table) keyAttributes(i Item) Item {
	k := make(Item, len(t.cfg.Keys))
	for _, name := range t.cfg.Keys {
		if v, ok := i[name]; ok {
			k[name] = v
		}
	}
	return k
}

// Insert writes a new row: item with plaintext sealed into it. The error is [ErrExists] if
// a row has its key, [ErrInvalidItem] if a read would not return the item unchanged, and
// [ErrFenced] or [ErrContended] if every try was refused.
func (t *Table) Insert(ctx context.Context, item Item, plaintext []byte) error {
	return t.InsertAll(ctx, []Row{{Item: item, Plaintext: plaintext}})
}

// InsertAll writes up to [MaxBatch] new rows, all or none, in one transaction; of embedded
// rows with one fence check. Its errors are those of [Table.Insert], for any of the rows.
func (t *Table) InsertAll(ctx context.Context, rows []Row) error {
	if len(rows) == 0 || len(rows) > MaxBatch {
		return fmt.Errorf("envelope: insert of %d rows: 1 to %d fit in a transaction", len(rows), MaxBatch)
	}
	return t.c.retryWrite(ctx, func(h *heldLease, at time.Duration) (refusal, error) {
		items, err := t.sealRows(ctx, h, at, rows)
		switch {
		case err != nil:
			return refusal{}, err
		case t.isKeyed() && len(items) == 1:
			return t.insertKeyed(ctx, items[0])
		}
		return t.insertRows(ctx, h, items)
	})
}

// isKeyed reports whether keyed rows are written into the table.
func (t *Table) isKeyed() bool { return t.cfg.Envelope == EnvelopeKeyed }

// sealRows returns the items of new rows.
func (t *Table) sealRows(ctx context.Context, h *heldLease, at time.Duration, rows []Row) ([]Item, error) {
	items := make([]Item, len(rows))
	for n, row := range rows {
		sealed, err := t.sealRow(ctx, h, at, row, nil)
		if err != nil {
			return nil, fmt.Errorf("row %d of %d: %w", n+1, len(rows), err)
		}
		items[n] = maps.Clone(row.Item)
		maps.Copy(items[n], sealed)
		if t.cfg.Version != "" {
			items[n][t.cfg.Version] = attr.Num(1)
		}
	}
	return items, nil
}

// sealRow returns the envelope's attributes of a row, without the version. old is the row as
// it is stored, nil if it is new.
func (t *Table) sealRow(ctx context.Context, h *heldLease, at time.Duration, row Row, old *storedRow) (Item, error) {
	if t.isKeyed() {
		return t.sealKeyed(ctx, h, at, row, old)
	}
	err := t.cfg.checkWrite(row.Item)
	var encctx, bind map[string]string
	if err == nil {
		encctx, bind, err = t.cfg.sealBound(row.Item)
	}
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", t.cfg.Table, err)
	}
	s, err := t.c.sealPayload(ctx, h, at, nil, row.Plaintext, encctx, bind)
	if err != nil {
		return nil, err
	}
	return t.cfg.encodeEnvelope(s), nil
}

// putOf returns the write of a new row.
func (t *Table) putOf(i Item) *types.Put {
	return &types.Put{
		TableName: &t.cfg.Table, Item: i, ConditionExpression: aws.String("attribute_not_exists(#key)"),
		ExpressionAttributeNames:            map[string]string{"#key": t.cfg.Keys[0]},
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
}

// insertRows writes sealed items in one transaction; embedded ones with a check of their KEK's
// fence (spec: Commit, InsertOK).
func (t *Table) insertRows(ctx context.Context, h *heldLease, items []Item) (refusal, error) {
	var writes []types.TransactWriteItem
	for _, i := range items {
		writes = append(writes, types.TransactWriteItem{Put: t.putOf(i)})
	}
	if t.isKeyed() {
		_, err := t.c.cfg.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: writes})
		return t.classifyResult(err, items, len(items))
	}
	return t.writeFenced(ctx, h, writes, items)
}

// writeFenced sends writes of items with a check of one shard of their KEK's fence.
func (t *Table) writeFenced(ctx context.Context, h *heldLease, writes []types.TransactWriteItem, items []Item) (refusal, error) {
	err := t.c.transactFenced(ctx, h, len(items), func(shard int) []types.TransactWriteItem {
		return append(writes[:len(writes):len(writes)], t.fenceCheck(h, shard))
	})
	return t.classifyResult(err, items, len(items)+1)
}

// fenceCheck returns the check of a shard of the fence for embedded rows.
func (t *Table) fenceCheck(h *heldLease, shard int) types.TransactWriteItem {
	return types.TransactWriteItem{ConditionCheck: controltable.FenceOpen(t.c.cfg.ControlTable, h.pointer.KEKID, shard)}
}

// transactFenced sends the transaction that build makes for one shard of a fence: so many
// writes and, last, the check of the shard. Two transactions that check the same shard at
// the same time conflict, although neither writes it (DynamoDB developer guide, "Transaction
// conflict handling in DynamoDB"). If that was the only cause, another shard is tried
// without a wait.
func (c *Client) transactFenced(ctx context.Context, h *heldLease, writes int, build func(shard int) []types.TransactWriteItem) error {
	shard := int(c.cfg.Random(int64(h.shards)))
	for tries := 1; ; tries++ {
		_, err := c.cfg.DynamoDB.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: build(shard)})
		if tries >= h.shards || !onlyFenceBusy(err, writes) {
			return err
		}
		shard = (shard + 1 + int(c.cfg.Random(int64(h.shards-1)))) % h.shards
	}
}

// onlyFenceBusy reports whether a transaction of so many rows and, last, a fence check was
// cancelled only because another transaction has the fence's shard.
func onlyFenceBusy(err error, rows int) bool {
	reasons := controltable.Reasons(err)
	if len(reasons) != rows+1 || reasons[rows] != controltable.Conflict {
		return false
	}
	return !slices.ContainsFunc(reasons[:rows], func(r controltable.Reason) bool { return r != controltable.Innocent })
}

// classifyResult classifies the result of a transaction of so many writes: rows and perhaps,
// last, a fence check.
func (t *Table) classifyResult(err error, items []Item, writes int) (refusal, error) {
	var cancelled *types.TransactionCanceledException
	switch {
	case err == nil:
		return refusal{}, nil
	case errors.As(err, &cancelled) && len(cancelled.CancellationReasons) == writes:
		return t.classifyCancellation(items, cancelled)
	case controltable.Busy(err):
		return refusal{retry: true}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, err)
	default:
		return refusal{}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, err)
	}
}

// classifyCancellation classifies why an insert was cancelled. If a row exists with the
// same ciphertext, this insert wrote it and its answer was lost: a nonce is never used
// twice.
func (t *Table) classifyCancellation(items []Item, e *types.TransactionCanceledException) (refusal, error) {
	var v refusal
	for n, r := range e.CancellationReasons {
		switch reason := controltable.ReasonOf(r); {
		case reason == controltable.Innocent:
		case reason == controltable.Condition && n == len(items):
			v.fenced = true
		case reason == controltable.Condition:
			if t.samePayload(r.Item, items[n]) {
				return refusal{}, nil
			}
			return refusal{}, fmt.Errorf("table %s: %w", t.cfg.Table, ErrExists)
		case reason.Busy():
			v.retry = true
		default:
			return refusal{}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, e)
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
	return t.c.retryWrite(ctx, func(h *heldLease, at time.Duration) (refusal, error) {
		old, set, remove, err := t.changeRow(ctx, h, at, key, change)
		if err != nil {
			return refusal{}, err
		}
		return t.updateRow(ctx, h, old, set, remove)
	})
}

// changeRow reads a row, changes and seals it. It returns the row as it was read, and the
// attributes to set and to remove.
func (t *Table) changeRow(ctx context.Context, h *heldLease, at time.Duration, key Item, change func(*Row) error) (old storedRow, set Item, remove []string, err error) {
	row, old, err := t.getRow(ctx, key)
	if err != nil {
		return old, nil, nil, err
	}
	before := cloneItem(row.Item)
	if err := change(&row); err != nil {
		return old, nil, nil, err
	}
	for _, k := range t.cfg.Keys {
		if !sameScalar(before[k], row.Item[k]) {
			return old, nil, nil, fmt.Errorf("table %s: attribute %q: %w", t.cfg.Table, k, ErrKeyChanged)
		}
		row.Item[k] = before[k] // a number as DynamoDB writes it
	}
	sealed, err := t.sealRow(ctx, h, at, row, &old)
	if err != nil {
		return old, nil, nil, err
	}
	set, remove = diffItems(before, row.Item)
	maps.Copy(set, sealed)
	return old, set, append(remove, t.otherKind(old)...), nil
}

// otherKind returns the attributes of a row that the kind of rows which the table writes does
// not have: with its next write the row becomes one of that kind.
func (t *Table) otherKind(old storedRow) []string {
	var out []string
	for _, a := range []struct {
		name  string
		keyed bool
	}{{t.cfg.KEKID, false}, {t.cfg.WrappedDEK, false}, {t.cfg.DEKID, true}} {
		if a.keyed != t.isKeyed() && old.item[a.name] != nil {
			out = append(out, a.name)
		}
	}
	return out
}

// updateRow writes a row if its ciphertext is the one that was read and it is not of a later
// epoch than the new envelope (spec: Commit, UpdateOK). It needs one write and no control
// table: if a rotation passed while this process was suspended, the rewrap has raised the
// epoch. A row without an epoch was written without this package, or was adopted. It does
// not show whether it was rewrapped, so the update that leaves it embedded checks the fence,
// as an insert does; so does one that makes a keyed row embedded, because no rewrap has
// touched that row. A keyed row has nothing that a KEK wraps, so no update to one checks a
// fence.
func (t *Table) updateRow(ctx context.Context, h *heldLease, old storedRow, set Item, remove []string) (refusal, error) {
	u := t.updateOf(old, set, remove)
	if t.needsFence(old) {
		return t.updateRowFenced(ctx, h, u, set)
	}
	_, err := t.c.cfg.DynamoDB.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: u.TableName, Key: u.Key, UpdateExpression: u.UpdateExpression, ConditionExpression: u.ConditionExpression,
		ExpressionAttributeNames: u.ExpressionAttributeNames, ExpressionAttributeValues: u.ExpressionAttributeValues,
		ReturnValuesOnConditionCheckFailure: u.ReturnValuesOnConditionCheckFailure,
	})
	var failed *types.ConditionalCheckFailedException
	var conflict *types.TransactionConflictException
	switch {
	case err == nil:
		return refusal{}, nil
	case errors.As(err, &conflict):
		return refusal{retry: true}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
	case !errors.As(err, &failed):
		return refusal{}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
	case t.samePayload(failed.Item, set):
		return refusal{}, nil // it was written, and its answer was lost
	}
	theirs, _ := attr.Int(failed.Item[t.cfg.Epoch]) // 0 if it cannot be read
	mine, _ := attr.Int(set[t.cfg.Epoch])           // it is what this client seals with
	return refusal{retry: true, fenced: theirs > mine}, fmt.Errorf("dynamodb UpdateItem %s: %w", t.cfg.Table, err)
}

// needsFence reports whether an update of a row checks the fence for embedded rows.
func (t *Table) needsFence(old storedRow) bool {
	return !t.isKeyed() && (old.Epoch <= 0 || old.dekID != "")
}

// updateOf returns the conditional write of a row.
func (t *Table) updateOf(old storedRow, set Item, remove []string) *types.Update {
	e := expression{names: map[string]string{}, values: Item{}}
	payload, epoch := e.addName(t.cfg.Ciphertext), e.addName(t.cfg.Epoch)
	cond := fmt.Sprintf("%s = %s AND ", payload, e.addValue(old.item[t.cfg.Ciphertext]))
	switch {
	case old.Epoch > 0:
		cond += fmt.Sprintf("%s <= %s", epoch, e.addValue(set[t.cfg.Epoch]))
	case old.item[t.cfg.Epoch] != nil: // 0, which means as little as no epoch
		cond += fmt.Sprintf("%s = %s", epoch, e.addValue(old.item[t.cfg.Epoch]))
	default:
		cond += fmt.Sprintf("attribute_not_exists(%s)", epoch)
	}
	if t.cfg.DEKID != "" && !t.isKeyed() && old.dekID == "" { // else it would become both kinds
		cond += fmt.Sprintf(" AND attribute_not_exists(%s)", e.addName(t.cfg.DEKID))
	}
	update := e.buildUpdate(set, remove, t.cfg.Version)
	return &types.Update{
		TableName: &t.cfg.Table, Key: t.keyAttributes(old.item), UpdateExpression: &update, ConditionExpression: &cond,
		ExpressionAttributeNames: e.names, ExpressionAttributeValues: e.values,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
}

// updateRowFenced updates a row in one transaction with a check of the KEK's fence.
func (t *Table) updateRowFenced(ctx context.Context, h *heldLease, u *types.Update, set Item) (refusal, error) {
	v, err := t.writeFenced(ctx, h, []types.TransactWriteItem{{Update: u}}, []Item{set})
	if errors.Is(err, ErrExists) { // it is another row by now: read it again
		return refusal{retry: true}, fmt.Errorf("dynamodb TransactWriteItems %s: %w", t.cfg.Table, ErrContended)
	}
	return v, err
}

// InsertWrites returns the writes that [Table.InsertAll] would send for new rows, for a
// transaction of the caller's own: one for each row and, in a table of embedded rows, the
// check of a fence shard last. The transaction must have all of them. Send it soon, and make
// the writes again if it is refused: a rotation may have moved the pointer since.
func (t *Table) InsertWrites(ctx context.Context, rows []Row) ([]types.TransactWriteItem, error) {
	var writes []types.TransactWriteItem
	err := t.makeWrites(ctx, func(h *heldLease, at time.Duration) error {
		items, err := t.sealRows(ctx, h, at, rows)
		for _, i := range items {
			writes = append(writes, types.TransactWriteItem{Put: t.putOf(i)})
		}
		if !t.isKeyed() && len(items) > 0 {
			writes = append(writes, t.fenceCheck(h, int(t.c.cfg.Random(int64(h.shards)))))
		}
		return err
	})
	return writes, err
}

// UpdateWrites is [Table.InsertWrites] for one try of [Table.Update]: it reads the row and
// calls change. The write is refused if the row has changed since.
func (t *Table) UpdateWrites(ctx context.Context, key Item, change func(*Row) error) ([]types.TransactWriteItem, error) {
	var writes []types.TransactWriteItem
	err := t.makeWrites(ctx, func(h *heldLease, at time.Duration) error {
		old, set, remove, err := t.changeRow(ctx, h, at, key, change)
		if err != nil {
			return err
		}
		writes = append(writes, types.TransactWriteItem{Update: t.updateOf(old, set, remove)})
		if t.needsFence(old) {
			writes = append(writes, t.fenceCheck(h, int(t.c.cfg.Random(int64(h.shards)))))
		}
		return nil
	})
	return writes, err
}

// makeWrites calls try with a reference to the current KEK.
func (t *Table) makeWrites(ctx context.Context, try func(*heldLease, time.Duration) error) error {
	h, at, err := t.c.beginRef(ctx)
	if err != nil {
		return err
	}
	defer t.c.releaseRef(h)
	return try(h, at)
}

// Put writes a row, whether it exists or not. It replaces all attributes of an existing
// row. Its errors are those of [Table.Insert], except for [ErrExists].
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
