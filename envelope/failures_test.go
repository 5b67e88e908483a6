package envelope_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// failingDB answers one of its requests with an error, by number from 1, and notes the
// operation of each and what it is of.
type failingDB struct {
	*memddb.DB
	nth   int // 0: none
	ops   []string
	stale []string // reads that need not be consistent
}

func (f *failingDB) asked(op string, i item) error {
	f.ops = append(f.ops, op)
	if v, ok := i["pk"].(*s); ok {
		f.ops[len(f.ops)-1] += " " + v.Value
	}
	if len(f.ops) == f.nth {
		return errLost
	}
	return nil
}

func (f *failingDB) begin(nth int) { f.nth, f.ops, f.stale = nth, nil, nil }

func (f *failingDB) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if !aws.ToBool(in.ConsistentRead) {
		f.stale = append(f.stale, *in.TableName)
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
	if in.Key["pk"] == nil { // else the keeper renews a lease, at a moment of its own
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

// TestControlDecoding: items of the control table that cannot be read are told, and
// not guessed.
func TestControlDecoding(t *testing.T) {
	null := &ddbtypes.AttributeValueMemberNULL{Value: true}
	for name, c := range map[string]struct {
		item item
		want string
	}{
		"no pointer":      {nil, "read the pointer"},
		"no KEK":          {item{"epoch": &n{Value: "1"}}, "read the pointer"},
		"a null KEK":      {item{"kek_id": null, "epoch": &n{Value: "1"}}, "read the pointer"},
		"no epoch":        {item{"kek_id": &s{Value: "k"}}, "read the pointer"},
		"epoch 0":         {item{"kek_id": &s{Value: "k"}, "epoch": &n{Value: "0"}}, "read the pointer"},
		"a null epoch":    {item{"kek_id": &s{Value: "k"}, "epoch": null}, "is not a number"},
		"a large epoch":   {item{"kek_id": &s{Value: "k"}, "epoch": &n{Value: "99999999999999999999"}}, "out of range"},
		"a broken epoch":  {item{"kek_id": &s{Value: "k"}, "epoch": &n{Value: "1.5"}}, "1.5"},
		"all of it":       {item{"kek_id": &s{Value: "k"}, "key_arn": &s{Value: "arn"}, "epoch": &n{Value: "1"}, "rotation_id": &s{Value: "r"}}, ""},
		"only what it is": {item{"kek_id": &s{Value: "k"}, "epoch": &n{Value: "1"}}, ""},
	} {
		f := &failingDB{DB: memddb.New()}
		w := newSiteOn(t, f)
		control := envelope.NewControl(f, w.control)
		key := item{"pk": &s{Value: "POINTER"}, "sk": &s{Value: "-"}}
		_, err := f.DB.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &w.control, Key: key})
		w.must("delete", err)
		if c.item != nil {
			c.item["pk"], c.item["sk"] = key["pk"], key["sk"]
			_, err := f.DB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: c.item})
			w.must("put", err)
		}
		p, err := control.Pointer(t.Context())
		if c.want == "" {
			if err != nil || p.KEKID != "k" || p.Epoch != 1 || (p.KeyARN == "arn") != (p.RotationID == "r") || (p.KeyARN == "arn") != (name == "all of it") {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
			continue
		}
		if !errors.Is(err, kek.ErrNoPointer) || !strings.Contains(err.Error(), c.want) || p != (kek.Pointer{}) {
			t.Errorf("%s: %+v, %v, want %q", name, p, err, c.want)
		}
	}
}

// TestShardsDecoding: a number of fence shards that is none is no KEK of one shard.
func TestShardsDecoding(t *testing.T) {
	f := &failingDB{DB: memddb.New()}
	w := newSiteOn(t, f)
	for _, v := range []ddbtypes.AttributeValue{&s{Value: "3"}, &n{Value: "1.5"}} {
		_, err := f.DB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: item{
			"pk": &s{Value: "KEK#k"}, "sk": &s{Value: "-"}, "state": &s{Value: "active"}, "fence_shards": v,
		}})
		w.must("put", err)
		if k, err := envelope.NewControl(f, w.control).KEK(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), "KEK#k: fence_shards") || k != (kek.KEK{}) {
			t.Errorf("%+v, %v", k, err)
		}
	}
}

// TestControlRequests: the mode of a rotation that cannot be read is an error, and a lease
// of a host without a name has no host.
func TestControlRequests(t *testing.T) {
	f := &failingDB{DB: memddb.New()}
	w := newSiteOn(t, f)
	control := envelope.NewControl(f, w.control)
	for host, want := range map[string]bool{"": false, "h": true} {
		w.must("put", control.PutLease(t.Context(), "k", "holder"+host, host, 1, 2, time.Unix(0, 0)))
		out, err := f.DB.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &w.control, Key: item{"pk": &s{Value: "LEASE#k"}, "sk": &s{Value: "holder" + host}}})
		w.must("get", err)
		if (out.Item["host"] != nil) != want || out.Item["refs"].(*n).Value != "2" {
			t.Errorf("host %q: %v", host, out.Item)
		}
	}
	f.begin(1)
	if mode, err := control.Mode(t.Context(), "r"); !errors.Is(err, errLost) || mode != "" {
		t.Errorf("%q, %v", mode, err)
	}
}
