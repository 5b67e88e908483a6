package ddbtest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// Failing is a DynamoDB in memory that answers one of its requests with an error, by number from 1, and notes the
// operation of each.
type Failing struct {
	*memddb.DB
	nth   int // 0: none
	cause error
	ops   []string
	stale []string // reads that need not be consistent
}

func (f *Failing) consistent(op string, is *bool) {
	if is == nil || !*is {
		f.stale = append(f.stale, op)
	}
}

func (f *Failing) asked(op string) error {
	f.ops = append(f.ops, op)
	if len(f.ops) == f.nth {
		return f.cause
	}
	return nil
}

func (f *Failing) begin(nth int, cause error) { f.nth, f.cause, f.ops = nth, cause, nil }

// GetItem forwards to the DynamoDB.
func (f *Failing) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if err := f.asked("GetItem"); err != nil {
		return nil, err
	}
	f.consistent("GetItem", in.ConsistentRead)
	return f.DB.GetItem(ctx, in, o...)
}

// PutItem forwards to the DynamoDB.
func (f *Failing) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if err := f.asked("PutItem"); err != nil {
		return nil, err
	}
	return f.DB.PutItem(ctx, in, o...)
}

// UpdateItem forwards to the DynamoDB.
func (f *Failing) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	if err := f.asked("UpdateItem"); err != nil {
		return nil, err
	}
	return f.DB.UpdateItem(ctx, in, o...)
}

// DeleteItem forwards to the DynamoDB.
func (f *Failing) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	if err := f.asked("DeleteItem"); err != nil {
		return nil, err
	}
	return f.DB.DeleteItem(ctx, in, o...)
}

// Query forwards to the DynamoDB.
func (f *Failing) Query(ctx context.Context, in *dynamodb.QueryInput, o ...func(*dynamodb.Options)) (*dynamodb.QueryOutput, error) {
	if err := f.asked("Query"); err != nil {
		return nil, err
	}
	f.consistent("Query", in.ConsistentRead)
	return f.DB.Query(ctx, in, o...)
}

// Scan forwards to the DynamoDB.
func (f *Failing) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	if err := f.asked("Scan"); err != nil {
		return nil, err
	}
	f.consistent("Scan", in.ConsistentRead)
	return f.DB.Scan(ctx, in, o...)
}

// DescribeTable forwards to the DynamoDB.
func (f *Failing) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if err := f.asked("DescribeTable"); err != nil {
		return nil, err
	}
	return f.DB.DescribeTable(ctx, in, o...)
}

// TransactGetItems forwards to the DynamoDB.
func (f *Failing) TransactGetItems(ctx context.Context, in *dynamodb.TransactGetItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactGetItemsOutput, error) {
	if err := f.asked("TransactGetItems"); err != nil {
		return nil, err
	}
	return f.DB.TransactGetItems(ctx, in, o...)
}

// TransactWriteItems forwards to the DynamoDB.
func (f *Failing) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := f.asked("TransactWriteItems"); err != nil {
		return nil, err
	}
	return f.DB.TransactWriteItems(ctx, in, o...)
}

// Wire breaks the next request of one operation, before it is sent or after it
// was answered.
type Wire struct {
	Op     string // e.g. TransactWriteItems
	Sent   bool   // the request gets through, its answer does not
	broken atomic.Int64
}

// ErrWire is what a broken wire answers.
var ErrWire = errors.New("connection reset by test")

// RoundTrip implements [http.RoundTripper].
func (w *Wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+w.Op) || w.broken.Add(1) > 1 {
		return http.DefaultTransport.RoundTrip(r)
	}
	if !w.Sent {
		return nil, ErrWire
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return nil, errors.Join(ErrWire, err, resp.Body.Close())
}

// FailEach checks that whichever request of a call fails, the call fails, names the
// operation and keeps the cause, and returns nothing beside; and that every read is
// consistent. begin makes the call again, on a DynamoDB of its own.
func FailEach(t *testing.T, begin func(t *testing.T) (*Failing, func(context.Context) ([]any, error))) {
	t.Helper()
	f, call := begin(t)
	f.begin(0, nil)
	if _, err := call(t.Context()); err != nil {
		t.Fatalf("without a failure: %v", err)
	}
	ops := f.ops
	if len(ops) == 0 || len(f.stale) > 0 {
		t.Fatalf("requests %v, of which not consistent %v", ops, f.stale)
	}
	for i, op := range ops {
		f, call := begin(t)
		f.begin(i+1, ErrWire)
		got, err := call(t.Context())
		if !errors.Is(err, ErrWire) || errors.Is(err, journal.ErrNoControlTable) || !strings.Contains(err.Error(), "dynamodb "+op) {
			t.Errorf("%s, request %d, fails: %v", op, i+1, err)
		}
		for _, v := range got {
			if v := reflect.ValueOf(v); v.IsValid() && !v.IsZero() {
				t.Errorf("%s, request %d, fails: it returns %+v", op, i+1, v)
			}
		}
	}
}
