package ddbtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/memddb"
)

// Twin plays every call on [memddb] and on dynoxide, one call at a time, and
// fails the test where their answers differ. Callers get memddb's.
type Twin struct {
	tb     testing.TB
	mu     sync.Mutex
	memory *memddb.DB
	local  *dynamodb.Client
	calls  int
}

// NewTwin returns a pair without tables.
func NewTwin(tb testing.TB) *Twin {
	tb.Helper()
	return &Twin{tb: tb, memory: memddb.New(), local: Client(tb)}
}

// Calls is how many answers were compared.
func (w *Twin) Calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// both makes one call on both. memory goes first, for the SDK fills in the request.
func both[In, Out any](ctx context.Context, w *Twin, in *In, memory, local func(context.Context, *In, ...func(*dynamodb.Options)) (*Out, error), said func(*Out) any) (*Out, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	got, err := memory(ctx, in)
	want, werr := local(ctx, in)
	if ctx.Err() != nil {
		return got, err
	}
	w.calls++
	a, b := refusal(werr), refusal(err)
	if werr == nil && err == nil {
		a, b = said(want), said(got)
	}
	if werr != nil && b == any("ValidationException") {
		return got, err // AWS looks at a request first, dynoxide sometimes at its condition
	}
	if diff := cmp.Diff(plain(a), plain(b)); diff != "" {
		w.tb.Errorf("%T: dynoxide says %v, memddb %v (-dynoxide +memory):\n%s\n%s", in, werr, err, diff, show(in))
	}
	return got, err
}

// refusal is what callers look at of an error: its code, the reasons, the items.
func refusal(err error) any {
	var api smithy.APIError
	var failed *types.ConditionalCheckFailedException
	var cancelled *types.TransactionCanceledException
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failed):
		return []any{failed.ErrorCode(), failed.Item}
	case errors.As(err, &cancelled):
		out := []any{cancelled.ErrorCode()}
		for _, r := range cancelled.CancellationReasons {
			out = append(out, aws.ToString(r.Code), r.Item)
		}
		return out
	case errors.As(err, &api):
		return api.ErrorCode()
	}
	return err.Error()
}

// plain writes attributes as texts, an absent item like an empty list of them.
func plain(v any) any {
	switch v := v.(type) {
	case []any:
		var out []any
		for _, e := range v {
			out = append(out, plain(e))
		}
		return out
	case []map[string]types.AttributeValue:
		var out []any
		for _, i := range v {
			out = append(out, plain(i))
		}
		return out
	case map[string]types.AttributeValue:
		var out []string
		for name, a := range v {
			out = append(out, name+"="+attribute(a))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	return v
}

func attribute(v types.AttributeValue) string {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return fmt.Sprintf("S%q", v.Value)
	case *types.AttributeValueMemberN:
		return "N" + v.Value
	case *types.AttributeValueMemberB:
		return fmt.Sprintf("B%x", v.Value)
	case *types.AttributeValueMemberBOOL:
		return fmt.Sprint(v.Value)
	case *types.AttributeValueMemberL:
		var out []string
		for _, e := range v.Value {
			out = append(out, attribute(e))
		}
		return fmt.Sprint(out)
	}
	return fmt.Sprintf("%T", v)
}

// show writes a request for a reader.
func show(in any) string {
	switch in := in.(type) {
	case *dynamodb.UpdateItemInput:
		return fmt.Sprintf("%s if %s: %v %v %v", aws.ToString(in.UpdateExpression), aws.ToString(in.ConditionExpression),
			plain(in.Key), in.ExpressionAttributeNames, plain(in.ExpressionAttributeValues))
	case *dynamodb.PutItemInput:
		return fmt.Sprintf("%v if %s: %v %v", plain(in.Item), aws.ToString(in.ConditionExpression),
			in.ExpressionAttributeNames, plain(in.ExpressionAttributeValues))
	case *dynamodb.DeleteItemInput:
		return fmt.Sprintf("%v if %s: %v %v", plain(in.Key), aws.ToString(in.ConditionExpression),
			in.ExpressionAttributeNames, plain(in.ExpressionAttributeValues))
	case *dynamodb.TransactWriteItemsInput:
		var out []string
		for _, i := range in.TransactItems {
			switch {
			case i.Put != nil:
				out = append(out, "put "+show(&dynamodb.PutItemInput{Item: i.Put.Item, ConditionExpression: i.Put.ConditionExpression}))
			case i.Update != nil:
				out = append(out, "update "+show(&dynamodb.UpdateItemInput{
					Key: i.Update.Key, UpdateExpression: i.Update.UpdateExpression, ConditionExpression: i.Update.ConditionExpression,
				}))
			case i.Delete != nil:
				out = append(out, "delete "+show(&dynamodb.DeleteItemInput{Key: i.Delete.Key, ConditionExpression: i.Delete.ConditionExpression}))
			case i.ConditionCheck != nil:
				out = append(out, "check "+show(&dynamodb.DeleteItemInput{Key: i.ConditionCheck.Key, ConditionExpression: i.ConditionCheck.ConditionExpression}))
			}
		}
		return strings.Join(out, "\n")
	case *dynamodb.QueryInput:
		return fmt.Sprintf("%s: %v", aws.ToString(in.KeyConditionExpression), plain(in.ExpressionAttributeValues))
	}
	return fmt.Sprintf("%+v", in)
}

// GetItem is DynamoDB's, as the others are.
func (w *Twin) GetItem(ctx context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return both(ctx, w, in, w.memory.GetItem, w.local.GetItem, func(o *dynamodb.GetItemOutput) any { return []any{o.Item == nil, o.Item} })
}

// PutItem is DynamoDB's.
func (w *Twin) PutItem(ctx context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return both(ctx, w, in, w.memory.PutItem, w.local.PutItem, func(o *dynamodb.PutItemOutput) any { return o.Attributes })
}

// UpdateItem is DynamoDB's.
func (w *Twin) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return both(ctx, w, in, w.memory.UpdateItem, w.local.UpdateItem, func(o *dynamodb.UpdateItemOutput) any { return o.Attributes })
}

// DeleteItem is DynamoDB's.
func (w *Twin) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	return both(ctx, w, in, w.memory.DeleteItem, w.local.DeleteItem, func(o *dynamodb.DeleteItemOutput) any { return o.Attributes })
}

// Query is DynamoDB's. ScannedCount is compared on last pages alone: dynoxide counts the
// item too that a page has no room for, and AWS documents that without a filter it is the
// same as Count (API reference, Query).
func (w *Twin) Query(ctx context.Context, in *dynamodb.QueryInput, _ ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	return both(ctx, w, in, w.memory.Query, w.local.Query, func(o *dynamodb.QueryOutput) any {
		if o.LastEvaluatedKey != nil {
			return []any{o.Items, o.LastEvaluatedKey, o.Count}
		}
		return []any{o.Items, o.Count, o.ScannedCount}
	})
}

// Scan is DynamoDB's. Each has an order of its own, so pages are compared if they are
// the whole table, and else only whether they are refused.
func (w *Twin) Scan(ctx context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	whole := in.ExclusiveStartKey == nil && aws.ToInt32(in.TotalSegments) <= 1
	if in.ExclusiveStartKey != nil && aws.ToInt32(in.TotalSegments) > 1 { // it lies in another segment there
		return w.memory.Scan(ctx, in)
	}
	return both(ctx, w, in, w.memory.Scan, w.local.Scan, func(o *dynamodb.ScanOutput) any {
		if !whole {
			return nil
		}
		if o.LastEvaluatedKey != nil {
			return o.ScannedCount
		}
		items, _ := plain(o.Items).([]any)
		slices.SortFunc(items, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		return []any{items, o.Count, o.ScannedCount}
	})
}

// TransactGetItems is DynamoDB's.
func (w *Twin) TransactGetItems(ctx context.Context, in *dynamodb.TransactGetItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	return both(ctx, w, in, w.memory.TransactGetItems, w.local.TransactGetItems, func(o *dynamodb.TransactGetItemsOutput) any {
		var out []any
		for _, r := range o.Responses {
			out = append(out, r.Item == nil, r.Item)
		}
		return out
	})
}

// TransactWriteItems is DynamoDB's.
func (w *Twin) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	return both(ctx, w, in, w.memory.TransactWriteItems, w.local.TransactWriteItems, func(*dynamodb.TransactWriteItemsOutput) any { return nil })
}

// DescribeTable is DynamoDB's.
func (w *Twin) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, _ ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	return both(ctx, w, in, w.memory.DescribeTable, w.local.DescribeTable, func(o *dynamodb.DescribeTableOutput) any {
		out := []any{string(o.Table.TableStatus)}
		for _, k := range o.Table.KeySchema {
			out = append(out, *k.AttributeName, string(k.KeyType))
		}
		return out
	})
}

// CreateTable is DynamoDB's.
func (w *Twin) CreateTable(ctx context.Context, in *dynamodb.CreateTableInput, _ ...func(*dynamodb.Options)) (*dynamodb.CreateTableOutput, error) {
	return both(ctx, w, in, w.memory.CreateTable, w.local.CreateTable, func(*dynamodb.CreateTableOutput) any { return nil })
}

// DeleteTable is DynamoDB's.
func (w *Twin) DeleteTable(ctx context.Context, in *dynamodb.DeleteTableInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteTableOutput, error) {
	return both(ctx, w, in, w.memory.DeleteTable, w.local.DeleteTable, func(*dynamodb.DeleteTableOutput) any { return nil })
}
