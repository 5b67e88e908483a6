package memddb

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

// GetItem reads an item. Every read is consistent.
func (d *DB) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...options) (*dynamodb.GetItemOutput, error) {
	known("GetItem", map[string]bool{"AttributesToGet": in.AttributesToGet != nil})
	d.mu.Lock()
	defer d.mu.Unlock()
	item, err := d.read(in.TableName, in.Key, in.ProjectionExpression, in.ExpressionAttributeNames)
	return &dynamodb.GetItemOutput{Item: item}, err
}

func (d *DB) read(name *string, key Item, projection *string, names map[string]string) (Item, error) {
	t, err := d.table(name)
	if err != nil {
		return nil, err
	}
	k, err := t.only(key)
	if err != nil {
		return nil, err
	}
	e, err := parse("projection", projection)
	if err != nil {
		return nil, err
	}
	p, err := newParams(names, nil, e)
	if err != nil {
		return nil, err
	}
	return e.project(t.get(k), p), nil
}

// TransactGetItems reads items as of one moment.
func (d *DB) TransactGetItems(_ context.Context, in *dynamodb.TransactGetItemsInput, _ ...options) (*dynamodb.TransactGetItemsOutput, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(in.TransactItems); n == 0 || n > maxTransaction {
		return nil, invalid("Member must have length between 1 and %d: %d", maxTransaction, n)
	}
	type place struct {
		table *table
		key   primary
	}
	var seen []place
	var reasons []types.CancellationReason
	out := &dynamodb.TransactGetItemsOutput{}
	for _, i := range in.TransactItems {
		item, err := d.read(i.Get.TableName, i.Get.Key, i.Get.ProjectionExpression, i.Get.ExpressionAttributeNames)
		if err != nil {
			return nil, err
		}
		t := d.tables[*i.Get.TableName]
		k, err := t.only(i.Get.Key)
		if err != nil {
			return nil, err
		}
		for _, s := range seen {
			if s.table == t && s.key.compare(k) == 0 {
				return nil, invalid("Transaction request cannot include multiple operations on one item")
			}
		}
		seen = append(seen, place{t, k})
		reasons = append(reasons, types.CancellationReason{Code: aws.String("None")})
		if d.isHeld(t, i.Get.Key) {
			reasons[len(reasons)-1] = conflict()
		}
		out.Responses = append(out.Responses, types.ItemResponse{Item: item})
	}
	if err := cancelled(reasons); err != nil {
		return nil, err
	}
	return out, nil
}

// pages is a query or a scan: which rows it evaluates, and what it returns of them.
type pages struct {
	table  *table
	from   Item
	limit  *int32
	match  func(primary) bool // rows that it evaluates at all
	filter *parsed
	proj   *parsed
	params params
}

const maxPage = 1 << 20 // bytes

// page evaluates up to limit rows after the start key, or as many as are no more than a
// megabyte (DynamoDB developer guide, "Paginating table query results": a result set fits
// within the limit). A page that ends at limit rows has a last key, also if nothing comes
// after it.
func (p pages) page() (items []Item, evaluated int32, last Item, err error) {
	start := 0
	if p.from != nil {
		k, err := p.table.only(p.from)
		if err != nil || !p.match(k) {
			return nil, 0, nil, invalid("The provided starting key is invalid, or not within the segment or the key condition")
		}
		n, there := p.table.find(k)
		if start = n; there {
			start++
		}
	}
	if p.limit != nil && *p.limit < 1 {
		return nil, 0, nil, invalid("Limit must be greater than or equal to 1")
	}
	size := 0
	for _, r := range p.table.rows[start:] {
		if !p.match(r.key) {
			continue
		}
		if size += attr.ItemSize(r.item); size > maxPage {
			return items, evaluated, last, nil
		}
		last = p.table.keyOf(r.item)
		evaluated++
		if p.filter.holds(r.item, p.params) {
			items = append(items, p.proj.project(r.item, p.params))
		}
		if p.limit != nil && evaluated == *p.limit {
			return items, evaluated, last, nil
		}
	}
	return items, evaluated, nil, nil
}

// Scan reads a page of a table, or of a segment of it.
func (d *DB) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...options) (*dynamodb.ScanOutput, error) {
	known("Scan", map[string]bool{
		"IndexName": in.IndexName != nil, "AttributesToGet": in.AttributesToGet != nil, "ScanFilter": in.ScanFilter != nil,
		"Select": in.Select != "", "half a segment": (in.Segment == nil) != (in.TotalSegments == nil),
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := d.table(in.TableName)
	if err != nil {
		return nil, err
	}
	p := pages{table: t, from: in.ExclusiveStartKey, limit: in.Limit, match: func(primary) bool { return true }}
	if total := aws.ToInt32(in.TotalSegments); in.TotalSegments != nil {
		if *in.Segment < 0 || *in.Segment >= total {
			return nil, invalid("The Segment parameter is zero-based and must be less than parameter TotalSegments: %d of %d", *in.Segment, total)
		}
		p.match = func(k primary) bool { return k.segment(total) == *in.Segment }
	}
	if p.filter, err = parse("condition", in.FilterExpression); err != nil {
		return nil, err
	}
	if p.proj, err = parse("projection", in.ProjectionExpression); err != nil {
		return nil, err
	}
	if p.params, err = newParams(in.ExpressionAttributeNames, in.ExpressionAttributeValues, p.filter, p.proj); err != nil {
		return nil, err
	}
	items, evaluated, last, err := p.page()
	if err != nil {
		return nil, err
	}
	return &dynamodb.ScanOutput{Items: items, Count: int32(len(items)), ScannedCount: evaluated, LastEvaluatedKey: last}, nil //nolint:gosec // small
}

// Query reads a page of the items with one partition key, in order of the sort key.
func (d *DB) Query(_ context.Context, in *dynamodb.QueryInput, _ ...options) (*dynamodb.QueryOutput, error) {
	known("Query", map[string]bool{
		"IndexName": in.IndexName != nil, "AttributesToGet": in.AttributesToGet != nil, "QueryFilter": in.QueryFilter != nil,
		"KeyConditions": in.KeyConditions != nil, "Select": in.Select != "", "ScanIndexForward": in.ScanIndexForward != nil,
		"FilterExpression": in.FilterExpression != nil, "ProjectionExpression": in.ProjectionExpression != nil,
		"no condition": in.KeyConditionExpression == nil,
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	t, err := d.table(in.TableName)
	if err != nil {
		return nil, err
	}
	key, err := parse("condition", in.KeyConditionExpression)
	if err != nil {
		return nil, err
	}
	p := pages{table: t, from: in.ExclusiveStartKey, limit: in.Limit, filter: &parsed{}, proj: &parsed{}}
	if p.params, err = newParams(in.ExpressionAttributeNames, in.ExpressionAttributeValues, key); err != nil {
		return nil, err
	}
	if p.match, err = t.matching(key.cond, p.params); err != nil {
		return nil, err
	}
	items, evaluated, last, err := p.page()
	if err != nil {
		return nil, err
	}
	return &dynamodb.QueryOutput{Items: items, Count: int32(len(items)), ScannedCount: evaluated, LastEvaluatedKey: last}, nil //nolint:gosec // small
}

// matching reads a key condition: hash = :value, and perhaps AND range <op> :value.
func (t *table) matching(c condition, p params) (func(primary) bool, error) {
	var rest condition
	if b, ok := c.(both); ok {
		c, rest = b.a, b.b
	}
	is, ok := c.(comparison)
	if !ok || is.op != "=" || is.a.attribute(p) != t.keys[0].name {
		unknown("a key condition that does not begin with <partition key> = :value")
	}
	hash, err := keyScalar(is.b.in(nil, p), t.keys[0].kind)
	if err != nil {
		return nil, err
	}
	if rest == nil {
		return func(k primary) bool { return k.hash.compare(hash) == 0 }, nil
	}
	at, ok := rest.(comparison)
	if !ok || len(t.keys) < 2 || at.a.attribute(p) != t.keys[1].name || at.op == "<>" {
		unknown("a key condition that does not end in <sort key> <comparator> :value")
	}
	rng, err := keyScalar(at.b.in(nil, p), t.keys[1].kind)
	if err != nil {
		return nil, err
	}
	return func(k primary) bool { return k.hash.compare(hash) == 0 && within(k.rng.compare(rng), at.op) }, nil
}

// within reports whether a comparison that gave n satisfies an operator.
func within(n int, op string) bool {
	switch op {
	case "=":
		return n == 0
	case "<":
		return n < 0
	case "<=":
		return n <= 0
	case ">":
		return n > 0
	default: // ">="
		return n >= 0
	}
}
