package envelope_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// failingDB answers one of its requests with an error, by number from 1, and notes the
// operation of each and what it is of.
type failingDB struct {
	*memddb.DB
	mu    sync.Mutex // a client's background work asks too
	nth   int        // 0: none
	ops   []string
	stale []string // reads that need not be consistent
}

func (f *failingDB) asked(op string, i item) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, op)
	if v, ok := i["pk"].(*s); ok {
		f.ops[len(f.ops)-1] += " " + v.Value
	}
	if len(f.ops) == f.nth {
		return errLost
	}
	return nil
}

func (f *failingDB) begin(nth int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nth, f.ops, f.stale = nth, nil, nil
}

func (f *failingDB) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) {
		f.mu.Lock()
		f.stale = append(f.stale, *in.TableName)
		f.mu.Unlock()
	}
	if err := f.asked("GetItem", in.Key); err != nil {
		return nil, err
	}
	return f.DB.GetItem(ctx, in, o...)
}

func (f *failingDB) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if err := f.asked("PutItem", in.Item); err != nil {
		return nil, err
	}
	return f.DB.PutItem(ctx, in, o...)
}

func (f *failingDB) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	if in.Key["pk"] == nil { // else the background work renews a lease, at a moment of its own
		if err := f.asked("UpdateItem", in.Key); err != nil {
			return nil, err
		}
	}
	return f.DB.UpdateItem(ctx, in, o...)
}

func (f *failingDB) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	if err := f.asked("DeleteItem", in.Key); err != nil {
		return nil, err
	}
	return f.DB.DeleteItem(ctx, in, o...)
}

func (f *failingDB) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if err := f.asked("DescribeTable", nil); err != nil {
		return nil, err
	}
	return f.DB.DescribeTable(ctx, in, o...)
}

func (f *failingDB) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := f.asked("TransactWriteItems", nil); err != nil {
		return nil, err
	}
	return f.DB.TransactWriteItems(ctx, in, o...)
}

// TestFailures: whichever request of a call fails, the call fails, names the operation
// and keeps the cause; every read is consistent.
func TestFailures(t *testing.T) {
	bare := func(c *envelope.Config) { c.Cache.Off = true }
	for name, c := range map[string]struct {
		call func(t *testing.T, w *site, c *envelope.Client, table *envelope.Table) error
		ops  []string
	}{
		"New": {
			func(t *testing.T, w *site, _ *envelope.Client, _ *envelope.Table) error {
				c, err := envelope.New(t.Context(), envelope.Config{ControlTable: w.control, DynamoDB: w.dynamo, KMS: w.keys, PointerAge: slowAge, LeaseTTL: 3 * slowAge})
				if err != nil {
					if c != nil {
						t.Errorf("a client and %v", err)
					}
					return err
				}
				return c.Close()
			},
			[]string{"GetItem POINTER", "GetItem KEK#", "PutItem LEASE#", "GetItem POINTER", "DeleteItem LEASE#"},
		},
		"Table": {
			func(t *testing.T, w *site, c *envelope.Client, _ *envelope.Table) error {
				table, err := c.Table(t.Context(), tableConfig(sourceConfig(w.table)))
				if err != nil && table != nil {
					t.Errorf("a table and %v", err)
				}
				return err
			},
			[]string{"DescribeTable", "PutItem MARK"},
		},
		"Get": {
			func(t *testing.T, _ *site, _ *envelope.Client, table *envelope.Table) error {
				r, err := table.Get(t.Context(), rowKey("a"))
				if err != nil && (r.Item != nil || r.Plaintext != nil || r.Version != 0) {
					t.Errorf("%+v and %v", r, err)
				}
				return err
			},
			[]string{"GetItem"},
		},
		"Insert": {
			func(t *testing.T, _ *site, _ *envelope.Client, table *envelope.Table) error {
				return table.Insert(t.Context(), row("b"), []byte("x"))
			},
			[]string{"TransactWriteItems"},
		},
		"Put over": {
			func(t *testing.T, _ *site, _ *envelope.Client, table *envelope.Table) error {
				return table.Put(t.Context(), row("a"), []byte("x"))
			},
			[]string{"TransactWriteItems", "GetItem", "UpdateItem"},
		},
		"Update": {
			func(t *testing.T, _ *site, _ *envelope.Client, table *envelope.Table) error {
				return table.Update(t.Context(), rowKey("a"), func(r *envelope.Row) error { r.Plaintext = []byte("y"); return nil })
			},
			[]string{"GetItem", "UpdateItem"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			prepare := func() (*site, *failingDB, *envelope.Client, *envelope.Table) {
				f := &failingDB{DB: memddb.New()}
				w := newSiteOn(t, f)
				client := w.client(slow, bare)
				table := w.open(client)
				w.must("insert", table.Insert(t.Context(), row("a"), []byte("x")))
				return w, f, client, table
			}
			w, f, client, table := prepare()
			f.begin(0)
			if err := c.call(t, w, client, table); err != nil {
				t.Fatalf("without a failure: %v", err)
			}
			if len(f.stale) > 0 {
				t.Errorf("reads that are not consistent: %v", f.stale)
			}
			var ops []string
			for _, op := range f.ops {
				if kind, _, ok := strings.Cut(op, "#"); ok {
					op = kind + "#"
				}
				ops = append(ops, op)
			}
			f.begin(0)
			if !slices.Equal(ops, c.ops) {
				t.Fatalf("requests %q, want %q", ops, c.ops)
			}
			for i, op := range ops {
				w, f, client, table := prepare()
				f.begin(i + 1)
				err := c.call(t, w, client, table)
				f.begin(0)
				if !errors.Is(err, errLost) || !strings.Contains(err.Error(), "dynamodb "+op) {
					t.Errorf("request %d, %s, fails: %v", i+1, op, err)
				}
			}
		})
	}
}

// TestKeyNotWhole: a key that lacks an attribute, or has one that would be stored
// otherwise, asks for nothing.
func TestKeyNotWhole(t *testing.T) {
	f := &failingDB{DB: memddb.New()}
	w := newSiteOn(t, f)
	table := w.open(w.client(slow))
	f.begin(0)
	_, err := table.Get(t.Context(), item{"id": &s{Value: "\xff"}})
	if !errors.Is(err, envelope.ErrInvalidItem) || !strings.Contains(err.Error(), "table "+w.table) || len(f.ops) > 0 {
		t.Errorf("%v after %v", err, f.ops)
	}
}
