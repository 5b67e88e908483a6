// Package memddb is DynamoDB in memory, as far as this project uses it: a value
// with the methods of the SDK's client, for schedules that run the real adapters in
// virtual time.
//
// Invariants: one mutex makes every call, a transaction too, atomic; items are kept
// in the order of their keys, so that everything replays; nothing that is stored is
// shared with a caller. What DynamoDB refuses is refused with the same error, and
// what this package does not know (an index, a document path, BETWEEN) panics: an
// answer that is merely plausible would be worse than none. It passes the suites
// that dynoxide passes, and a test plays the project's expressions on both.
//
// It knows no reserved words, and of the limits of size only that of an item. It never
// throttles, and cancels a transaction for another one that is under way only where
// [DB.Hold] says that there is one.
package memddb

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Item is an item of a table.
type Item = map[string]types.AttributeValue

// options are those of one call, which make no difference here.
type options = func(*dynamodb.Options)

// DB holds tables. It is safe for concurrent use.
type DB struct {
	mu     sync.Mutex
	tables map[string]*table
	held   func(table string, key Item) bool
}

// New returns a DynamoDB without tables.
func New() *DB { return &DB{tables: map[string]*table{}} }

// Hold has held say, of each item of a write or of a transaction, whether a transaction of
// somebody else holds it just now. What DynamoDB does then is documented (developer guide,
// "Transaction conflict handling in DynamoDB"): a single write meets a
// TransactionConflictException, a transaction is cancelled. held must not call back.
func (d *DB) Hold(held func(table string, key Item) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = held
}

// isHeld reports whether somebody else's transaction holds an item.
func (d *DB) isHeld(t *table, i Item) bool {
	return d.held != nil && d.held(*t.schema.TableName, t.keyOf(i))
}

// conflict is the reason for which a transaction is cancelled then.
func conflict() types.CancellationReason {
	return types.CancellationReason{Code: aws.String("TransactionConflict"), Message: aws.String(ongoing)}
}

const ongoing = "Transaction is ongoing for the item"

// cancelled is the answer to a transaction with a reason against it, or nil.
func cancelled(reasons []types.CancellationReason) error {
	var codes []string
	for _, r := range reasons {
		codes = append(codes, *r.Code)
	}
	if !slices.ContainsFunc(codes, func(c string) bool { return c != "None" }) {
		return nil
	}
	return &types.TransactionCanceledException{
		Message:             aws.String("Transaction cancelled, please refer cancellation reasons for specific reasons [" + strings.Join(codes, ", ") + "]"),
		CancellationReasons: reasons,
	}
}

// table holds items in the order of their keys. An item that is stored is never
// changed, only replaced.
type table struct {
	schema types.TableDescription
	keys   []keyPart
	rows   []row
}

// keyPart is one attribute of the primary key.
type keyPart struct {
	name string
	kind types.ScalarAttributeType
}

type row struct {
	key  primary
	item Item
}

// primary is a primary key; without a sort key both have the zero rng.
type primary struct{ hash, rng scalar }

func (p primary) compare(o primary) int {
	if n := p.hash.compare(o.hash); n != 0 {
		return n
	}
	return p.rng.compare(o.rng)
}

// segment is which of total parts of the table the key falls into.
func (p primary) segment(total int32) int32 {
	h := fnv.New32a()
	fmt.Fprint(h, p.hash.text, p.hash.num)
	return int32(h.Sum32() % uint32(total)) //nolint:gosec // total is small
}

// find is where the item with a key is, or would be.
func (t *table) find(key primary) (int, bool) {
	return slices.BinarySearchFunc(t.rows, key, func(r row, k primary) int { return r.key.compare(k) })
}

// get is the item with a key, or nil.
func (t *table) get(key primary) Item {
	if n, ok := t.find(key); ok {
		return t.rows[n].item
	}
	return nil
}

// set stores an item, or with nil deletes what is there.
func (t *table) set(key primary, item Item) {
	n, ok := t.find(key)
	switch {
	case ok && item == nil:
		t.rows = slices.Delete(t.rows, n, n+1)
	case ok:
		t.rows[n].item = item
	case item != nil:
		t.rows = slices.Insert(t.rows, n, row{key, item})
	}
}

// primary reads the key attributes of an item.
func (t *table) primary(i Item) (primary, error) {
	var out primary
	for n, k := range t.keys {
		v, ok := i[k.name]
		if !ok {
			return out, invalid("One of the required keys was not given a value: %s", k.name)
		}
		s, err := keyScalar(v, k.kind)
		if err != nil {
			return out, err
		}
		if n == 0 {
			out.hash = s
		} else {
			out.rng = s
		}
	}
	return out, nil
}

// only is [table.primary] of an item that may have no other attributes.
func (t *table) only(key Item) (primary, error) {
	if len(key) != len(t.keys) {
		return primary{}, invalid("The provided key element does not match the schema")
	}
	return t.primary(key)
}

func (t *table) keyOf(i Item) Item {
	out := make(Item, len(t.keys))
	for _, k := range t.keys {
		out[k.name] = clone(i[k.name])
	}
	return out
}

// table is the table of that name.
func (d *DB) table(name *string) (*table, error) {
	if t := d.tables[aws.ToString(name)]; t != nil {
		return t, nil
	}
	return nil, &types.ResourceNotFoundException{Message: aws.String("Cannot do operations on a non-existent table")}
}

// invalid is the error of a request that is wrong in itself, with the status that AWS
// gives it: the adapters tell by it that a repetition is futile.
func invalid(format string, args ...any) error {
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusBadRequest}},
		Err:      &smithy.GenericAPIError{Code: "ValidationException", Message: fmt.Sprintf(format, args...), Fault: smithy.FaultClient},
	}
}

// unknown panics for what this package does not do as DynamoDB would.
func unknown(format string, args ...any) {
	panic("memddb: not known here: " + fmt.Sprintf(format, args...))
}

// known panics if one of the named fields is set.
func known(op string, fields map[string]bool) {
	for name, set := range fields {
		if set {
			unknown("%s with %s", op, name)
		}
	}
}

// CreateTable makes an empty table, at once.
func (d *DB) CreateTable(_ context.Context, in *dynamodb.CreateTableInput, _ ...options) (*dynamodb.CreateTableOutput, error) {
	known("CreateTable", map[string]bool{"an index": len(in.GlobalSecondaryIndexes)+len(in.LocalSecondaryIndexes) > 0})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tables[*in.TableName] != nil {
		return nil, &types.ResourceInUseException{Message: aws.String("Cannot create preexisting table")}
	}
	t := &table{schema: types.TableDescription{
		TableName: aws.String(*in.TableName), TableStatus: types.TableStatusActive,
		KeySchema: slices.Clone(in.KeySchema), AttributeDefinitions: slices.Clone(in.AttributeDefinitions),
	}}
	kinds := map[string]types.ScalarAttributeType{}
	for _, a := range in.AttributeDefinitions {
		kinds[*a.AttributeName] = a.AttributeType
	}
	for _, k := range in.KeySchema {
		t.keys = append(t.keys, keyPart{*k.AttributeName, kinds[*k.AttributeName]})
	}
	if len(t.keys) == 0 || len(t.keys) > 2 || in.KeySchema[0].KeyType != types.KeyTypeHash || len(kinds) != len(t.keys) {
		return nil, invalid("Invalid KeySchema")
	}
	d.tables[*in.TableName] = t
	return &dynamodb.CreateTableOutput{TableDescription: t.describe()}, nil
}

// DeleteTable removes a table, at once.
func (d *DB) DeleteTable(_ context.Context, in *dynamodb.DeleteTableInput, _ ...options) (*dynamodb.DeleteTableOutput, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := d.table(in.TableName)
	if err != nil {
		return nil, err
	}
	delete(d.tables, *in.TableName)
	return &dynamodb.DeleteTableOutput{TableDescription: t.describe()}, nil
}

// DescribeTable says what a table's key is, and that it is active.
func (d *DB) DescribeTable(_ context.Context, in *dynamodb.DescribeTableInput, _ ...options) (*dynamodb.DescribeTableOutput, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := d.table(in.TableName)
	if err != nil {
		return nil, err
	}
	return &dynamodb.DescribeTableOutput{Table: t.describe()}, nil
}

func (t *table) describe() *types.TableDescription {
	out := t.schema
	out.KeySchema, out.AttributeDefinitions = slices.Clone(out.KeySchema), slices.Clone(out.AttributeDefinitions)
	return &out
}

// Each calls f for every item of a table, in the order of keys: what an invariant is
// checked on. f must not keep or change the item, nor call back.
func (d *DB) Each(name string, f func(Item)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tables[name]
	if t == nil {
		unknown("table %s", name)
		return
	}
	for _, r := range t.rows {
		f(r.item)
	}
}
