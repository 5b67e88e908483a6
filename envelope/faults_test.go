package envelope_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
)

// wire breaks writes of rows: they are lost on the way, or their answers are.
type wire struct {
	dynamoDB
	fault atomic.Pointer[fault]
}

type fault struct {
	apply  bool
	answer error
}

var errLost = errors.New("connection lost")

func (w *wire) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	return broken(w.fault.Swap(nil), func() (*dynamodb.TransactWriteItemsOutput, error) {
		return w.dynamoDB.TransactWriteItems(ctx, in, o...)
	})
}

func (w *wire) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return broken(w.fault.Swap(nil), func() (*dynamodb.UpdateItemOutput, error) { return w.dynamoDB.UpdateItem(ctx, in, o...) })
}

// broken calls as f decides. Without an answer of its own a fault sends the call
// twice, as the SDK does when the first answer is lost.
func broken[T any](f *fault, call func() (*T, error)) (*T, error) {
	if f == nil {
		return call()
	}
	if f.apply {
		if _, err := call(); err != nil {
			return nil, err
		}
	}
	if f.answer != nil {
		return nil, f.answer
	}
	return call()
}

func (w *site) broken() (*wire, *envelope.Table) {
	w.t.Helper()
	broken := &wire{dynamoDB: w.dynamo}
	return broken, w.open(w.client(slow, func(c *envelope.Config) { c.DynamoDB = broken }))
}

// TestRepeated: the answer to a write is lost and the SDK sends it again. The
// second fails its condition; the caller sees one success, done once.
func TestRepeated(t *testing.T) {
	w := newSite(t)
	wire, table := w.broken()
	wire.fault.Store(&fault{apply: true})
	w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
	wire.fault.Store(&fault{apply: true})
	w.must("update", table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
		r.Plaintext = append(r.Plaintext, 'y')
		return nil
	}))
	got, err := table.Get(t.Context(), rowKey("a"))
	if err != nil || string(got.Plaintext) != "xy" || got.Version != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestLost: an error that leaves open whether the write was made is the caller's
// to see, and is not repeated.
func TestLost(t *testing.T) {
	for _, apply := range []bool{false, true} {
		w := newSite(t)
		wire, table := w.broken()
		wire.fault.Store(&fault{apply: apply, answer: errLost})
		if err := table.Insert(t.Context(), row("a"), []byte("x")); !errors.Is(err, errLost) {
			t.Errorf("insert: %v", err)
		}
		if made := w.item("a") != nil; made != apply {
			t.Errorf("applied %v, but made %v", apply, made)
		}
		w.must("put", table.Put(t.Context(), row("a"), []byte("y")))
		wire.fault.Store(&fault{apply: apply, answer: errLost})
		err := table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error {
			r.Plaintext = []byte("z")
			return nil
		})
		if !errors.Is(err, errLost) {
			t.Errorf("update: %v", err)
		}
		want := map[bool]string{false: "y", true: "z"}[apply]
		if got, err := table.Get(t.Context(), rowKey("a")); err != nil || string(got.Plaintext) != want {
			t.Errorf("%q, %v, want %q", got.Plaintext, err, want)
		}
	}
}

// TestContention: a conflict with another transaction is tried again, unseen.
func TestContention(t *testing.T) {
	w := newSite(t)
	wire, table := w.broken()
	for _, err := range []error{&ddbtypes.TransactionConflictException{}, &ddbtypes.TransactionInProgressException{}} {
		wire.fault.Store(&fault{answer: err})
		w.must("put", table.Put(t.Context(), row("a"), []byte("x")))
	}
	wire.fault.Store(&fault{answer: &ddbtypes.TransactionConflictException{}})
	w.must("update", table.Update(t.Context(), rowKey("a"), func(*envelope.Row) error { return nil }))
}
