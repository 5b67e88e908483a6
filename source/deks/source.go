// Package deks is the driver of the key table: its rows are the records of the data keys
// (DEKs) that keyed rows name (package keyrecord). A rotation rewraps them and writes no
// keyed row.
//
// Invariants (spec/keyed.tla): a copy of each version of a record is in the audit bucket
// before the record is (spec: PutCopy, RecRead). A record is rewrapped only if it still has
// the wrapping that was read, and none is deleted (spec: RecWrite). A record that a mistake has
// removed is put back from a copy, behind the fence of records, never over another record
// (spec: PutBackRead, PutBackWrite).
//
// Retries and timeouts are those of the clients passed in.
package deks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// KindName is the kind of a key table in definitions.
const KindName = "deks"

// API is what [Table] uses of the DynamoDB client.
type API interface {
	DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error)
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// Config is the definition of a key table.
type Config struct {
	Table string `json:"table"` // its name
}

// Source returns the definition as the registry stores it, under the table's name.
func (c Config) Source() kek.Source {
	b, err := json.Marshal(c)
	if err != nil {
		panic("deks: a string does not encode: " + err.Error())
	}
	return kek.Source{Name: c.Table, Kind: KindName, Definition: string(b), Place: c.Table}
}

// Validate returns the fault of c.
func (c Config) Validate() error {
	if c.Table == "" || strings.ContainsAny(c.Table, ":/") {
		return errors.New("table: the name of the key table is required, not its ARN")
	}
	return nil
}

// Places are the other places that a key table belongs to: those of the deployment.
type Places struct {
	ControlTable string // has the fence of records
	Bucket       string // holds the copies: the audit bucket
}

// Table is a key table. It is safe for concurrent use.
type Table struct {
	client API
	bucket BucketAPI
	name   string
	table  string
	places Places
}

var (
	_ source.Driver = (*Table)(nil)
	_ source.Sizer  = (*Table)(nil)
	_ source.Keeper = (*Table)(nil)
)

// Kind returns the kind of source for the key tables that the clients can reach.
func Kind(client API, bucket BucketAPI, places Places) source.Kind {
	return source.Kind{
		Name: KindName, Parse: parseDefinition,
		Open: func(def kek.Source) (source.Driver, error) { return Open(client, bucket, places, def) },
	}
}

// parseDefinition reads a definition as a person writes it.
func parseDefinition(text []byte) (kek.Source, error) {
	var d struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
		Config
	}
	if err := strictjson.Unmarshal(text, &d); err != nil {
		return kek.Source{}, err
	}
	def := d.Source()
	if d.Name != "" {
		def.Name = d.Name
	}
	if err := d.Validate(); err != nil {
		return def, err
	}
	return def, kek.CheckSourceName(def.Name)
}

// Open returns the driver of a definition of kind [KindName].
func Open(client API, bucket BucketAPI, places Places, def kek.Source) (*Table, error) {
	var c Config
	if err := strictjson.Unmarshal([]byte(def.Definition), &c); err != nil {
		return nil, fmt.Errorf("the definition of a key table: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Table{client: client, bucket: bucket, name: def.Name, table: c.Table, places: places}, nil
}

// Name implements [source.Driver].
func (t *Table) Name() string { return t.name }

// pageSize is how many items a page has if the caller does not say, and pageBytes what one
// Scan reads at most (DynamoDB API reference, Scan).
const (
	pageSize  = 500
	pageBytes = 1 << 20
)

// Traits implements [source.Driver]. The creation of a record is a transaction with a shard
// of the control table's fence of records.
func (t *Table) Traits() source.Traits {
	return source.Traits{
		Noun: "key table", Fencing: source.ControlTable(), Billing: source.DynamoDBByUnit, PageItems: pageSize, PageBytes: pageBytes, DataKeys: true,
	}
}

// Segments implements [source.Driver].
func (t *Table) Segments(n int) int { return max(n, 1) }

// A cursor names the item or the copy that was read last.
const (
	afterItem = "item:"
	afterCopy = "copy:"
)

var errCursor = errors.New("the cursor is not one of a key table")

// Scan implements [source.Driver]. Every item is a row: one that is not a record has a
// Defect. If what is missing is asked for, the copies are read after the items of the first
// segment: of a record that is deleted while they are read, the pass after this one finds
// the copy.
func (t *Table) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	if after, ok := strings.CutPrefix(req.Cursor, afterCopy); ok && req.Segment == 0 {
		return t.scanCopies(ctx, after, req.Limit)
	}
	limit := req.Limit
	if limit <= 0 {
		limit = pageSize
	}
	in := &dynamodb.ScanInput{
		TableName: &t.table, ConsistentRead: aws.Bool(true), Limit: aws.Int32(int32(limit)),
		Segment: aws.Int32(int32(req.Segment)), TotalSegments: aws.Int32(int32(req.Total)), //nolint:gosec // at most rotation.MaxSegments
	}
	if req.Cursor != "" {
		after, ok := strings.CutPrefix(req.Cursor, afterItem)
		if !ok || after == "" {
			return source.Page{}, fmt.Errorf("scan %s: %w", t.name, errCursor)
		}
		in.ExclusiveStartKey = attr.Item{keyrecord.AttrPK: attr.Str(after)}
	}
	out, err := t.client.Scan(ctx, in)
	if err != nil {
		return source.Page{}, remote.WrapError("dynamodb Scan "+t.table, err)
	}
	page := source.Page{Rows: make([]source.Row, 0, len(out.Items))}
	for _, i := range out.Items {
		page.Rows = append(page.Rows, rowOf(i))
	}
	switch last := attr.Text(out.LastEvaluatedKey[keyrecord.AttrPK]); {
	case len(out.LastEvaluatedKey) > 0:
		page.Next = afterItem + last
	case req.Missing && req.Segment == 0:
		page.Next = afterCopy
	}
	return page, nil
}

// handle is a record as it was read.
type handle struct {
	record keyrecord.Record
	sound  bool
	shard  int // of the fence, which its creation checks
}

// rowOf returns the row of an item. An item that is not a record becomes a row with a
// defect: it must not be left out, because rows may name it.
func rowOf(i attr.Item) source.Row {
	r, err := keyrecord.Decode(i)
	if err != nil {
		id := strings.TrimPrefix(attr.Text(i[keyrecord.AttrPK]), keyrecord.PKRecord)
		return source.Row{ID: fmt.Sprintf("%.64q", id), Handle: handle{record: keyrecord.Record{DEKID: id}}, Kind: source.Damaged, Defect: err.Error()}
	}
	return rowOfRecord(r)
}

// rowOfRecord returns the row of a record. It is whole: an emergency rewraps it too, and
// gives the rows that name it other data keys.
func rowOfRecord(r keyrecord.Record) source.Row {
	context := keyrecord.EncryptionContext(r)
	return source.Row{
		ID: r.DEKID, Handle: handle{record: r, sound: true}, KEK: r.KEKID, Epoch: r.KEKEpoch, WrappedDEK: r.WrappedDEK, Context: context, Bound: context, Whole: true,
	}
}

var (
	errPayload = errors.New("a record has no payload")
	errDefect  = errors.New("it is not a sound record")
)

// handleOf returns the handle of a sound row of a key table.
func (t *Table) handleOf(what string, row source.Row) (handle, error) {
	h, ok := row.Handle.(handle)
	switch {
	case !ok:
		return h, fmt.Errorf("%s a record: it is not of source %s", what, t.name)
	case !h.sound || row.Defect != "":
		return h, fmt.Errorf("%s %s: %w: %s", what, row.ID, errDefect, row.Defect)
	}
	return h, nil
}

// rewrap returns the record with another wrapping.
func rewrap(r keyrecord.Record, with source.Rewrapped) (keyrecord.Record, error) {
	r.WrappedDEK = slices.Clone(with.WrappedDEK)
	r.KEKID = with.KEK
	r.KEKEpoch = with.Epoch
	if with.Ciphertext != nil || with.DEKID != "" {
		return r, errPayload
	}
	return r, keyrecord.Check(r)
}

// Replace implements [source.Driver]. The copy of the new version is in the bucket before the
// record changes: if the record were lost in between, the copy under its old KEK is of no
// use once that is retired.
func (t *Table) Replace(ctx context.Context, old source.Row, with source.Rewrapped) (bool, error) {
	h, err := t.handleOf("replace", old)
	if err != nil {
		return false, err
	}
	after, err := rewrap(h.record, with)
	if err != nil {
		return false, fmt.Errorf("replace %s: %w", old.ID, err)
	}
	if old.Missing {
		return t.PutBack(ctx, old, old, with)
	}
	if err := t.putCopy(ctx, after); err != nil {
		return false, err
	}
	return t.update(ctx, keyrecord.RewrapUpdate(t.table, h.record, after))
}

// update sends a conditional update; false if its condition failed.
func (t *Table) update(ctx context.Context, in *dynamodb.UpdateItemInput) (bool, error) {
	_, err := t.client.UpdateItem(ctx, in)
	if failed := (*types.ConditionalCheckFailedException)(nil); errors.As(err, &failed) {
		return false, nil
	}
	if err != nil {
		return false, remote.WrapError("dynamodb UpdateItem "+t.table, err)
	}
	return true, nil
}

// How often and how long apart a transaction is tried that another one is in the way of.
const (
	maxTries  = 20
	firstWait = 5 * time.Millisecond
	maxWait   = time.Second
)

// PutBack implements [source.Keeper], in the transaction that creates a record, or in one that
// replaces it. Both check a shard of the fence: the first one, because put-backs are rare, or
// of a new record the one that its maker chose.
func (t *Table) PutBack(ctx context.Context, old, copied source.Row, with source.Rewrapped) (bool, error) {
	h, err := t.handleOf("put back", old)
	if err != nil {
		return false, err
	}
	from, err := t.handleOf("put back", copied)
	if err != nil {
		return false, err
	}
	r, err := rewrap(from.record, with)
	if err == nil && r.DEKID != h.record.DEKID {
		err = fmt.Errorf("it is a copy of %s", r.DEKID)
	}
	if err == nil && !old.Missing && r.BornEpoch != h.record.BornEpoch {
		err = fmt.Errorf("its copy is of a data key of epoch %d, the record of one of epoch %d", r.BornEpoch, h.record.BornEpoch)
	}
	if err != nil {
		return false, fmt.Errorf("put back %s: %w", old.ID, err)
	}
	if err := t.putCopy(ctx, r); err != nil {
		return false, err
	}
	items := keyrecord.CreateItems(t.table, t.places.ControlTable, r, h.shard)
	if !old.Missing {
		items = keyrecord.ReplaceItems(t.table, t.places.ControlTable, h.record, r, h.shard)
	}
	return t.transact(ctx, r, items)
}

// transact sends a transaction of a record and a shard of the fence; false if the record's
// condition failed. DynamoDB cancels it while another transaction has the same shard, which
// says nothing about the record.
func (t *Table) transact(ctx context.Context, r keyrecord.Record, items []types.TransactWriteItem) (bool, error) {
	var last error
	for n := range maxTries {
		if err := remote.WaitForTry(ctx, n, firstWait, maxWait); err != nil {
			return false, errors.Join(err, last)
		}
		_, err := t.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items})
		reasons := controltable.Reasons(err)
		switch {
		case err == nil:
			return true, nil
		case len(reasons) == len(items) && reasons[0] == controltable.Condition:
			return false, nil
		case len(reasons) == len(items) && reasons[1] == controltable.Condition:
			return false, fmt.Errorf("put %s back: fence of records of KEK %s: %w", r.DEKID, r.KEKID, source.ErrFenced)
		case !controltable.Busy(err) && !slices.ContainsFunc(reasons, controltable.Reason.Busy):
			return false, remote.WrapError("dynamodb TransactWriteItems "+t.table, err)
		}
		last = fmt.Errorf("dynamodb TransactWriteItems %s: %w: %w", t.table, source.ErrBusy, err)
	}
	return false, last
}

// FindKey implements [source.Keeper].
func (t *Table) FindKey(ctx context.Context, dekID string) (source.Row, int64, bool, error) {
	i, err := t.get(ctx, dekID)
	if err != nil || i == nil {
		return source.Row{}, 0, false, err
	}
	row := rowOf(i)
	return row, row.Handle.(handle).record.BornEpoch, true, nil //nolint:forcetypeassert // its own
}

// NewKey implements [source.Keeper].
func (t *Table) NewKey(k source.DataKey) source.Row {
	r := keyrecord.Record{
		DEKID: keyrecord.NewID(k.ID), KEKID: k.KEK, KEKEpoch: k.Epoch, BornEpoch: k.Epoch, Context: k.Context, CreatedAt: k.Made.UTC().Truncate(time.Second),
	}
	row := rowOfRecord(r)
	row.Handle = handle{record: r, sound: true, shard: k.Shard}
	return row
}

// CreateKey implements [source.Keeper]: the copy first, then the record.
func (t *Table) CreateKey(ctx context.Context, record source.Row, wrapped []byte) (bool, error) {
	record.Missing = true
	return t.PutBack(ctx, record, record, source.Rewrapped{KEK: record.KEK, Epoch: record.Epoch, WrappedDEK: wrapped})
}

// Rehearse implements [source.Driver]. It writes the copy of the record as it was read, which
// is there already, and sends the record's update on a condition that cannot hold: see
// [source/dynamodb.Table.Rehearse].
func (t *Table) Rehearse(ctx context.Context, old source.Row) error {
	h, err := t.handleOf("rehearse", old)
	if err != nil {
		return err
	}
	if err := t.putCopy(ctx, h.record); err != nil {
		return err
	}
	in := keyrecord.RewrapUpdate(t.table, h.record, h.record)
	in.ConditionExpression = aws.String(*in.ConditionExpression + " AND attribute_not_exists(#pk)")
	in.ExpressionAttributeNames["#pk"] = keyrecord.AttrPK
	done, err := t.update(ctx, in)
	if done {
		return fmt.Errorf("rehearse %s: a write whose condition cannot hold was made", old.ID)
	}
	return err
}

// Reread implements [source.Driver].
func (t *Table) Reread(ctx context.Context, old source.Row, _ bool) (source.Row, bool, error) {
	h, ok := old.Handle.(handle)
	if !ok {
		return source.Row{}, false, fmt.Errorf("reread a record: it is not of source %s", t.name)
	}
	i, err := t.get(ctx, h.record.DEKID)
	if err != nil || i == nil {
		return source.Row{}, false, err
	}
	return rowOf(i), true, nil
}

// get reads the item of a record consistently; nil if there is none.
func (t *Table) get(ctx context.Context, dekID string) (attr.Item, error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.table, Key: keyrecord.Key(dekID), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, remote.WrapError("dynamodb GetItem "+t.table, err)
	}
	return out.Item, nil
}

// EncryptedBy implements [source.Driver] by DescribeTable.
func (t *Table) EncryptedBy(ctx context.Context) (string, error) {
	d, err := t.describe(ctx)
	if err != nil || d.SSEDescription == nil {
		return "", err
	}
	return aws.ToString(d.SSEDescription.KMSMasterKeyArn), nil
}

// Size implements [source.Sizer] by DescribeTable, whose counts DynamoDB updates about every
// six hours (API reference, TableDescription).
func (t *Table) Size(ctx context.Context) (source.Size, error) {
	d, err := t.describe(ctx)
	if err != nil {
		return source.Size{}, err
	}
	return source.Size{Items: aws.ToInt64(d.ItemCount), Bytes: aws.ToInt64(d.TableSizeBytes)}, nil
}

func (t *Table) describe(ctx context.Context) (*types.TableDescription, error) {
	out, err := t.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &t.table})
	if err != nil {
		return nil, remote.WrapError("dynamodb DescribeTable "+t.table, err)
	}
	return out.Table, nil
}
