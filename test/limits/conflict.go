package limits

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/test/memddb"
)

// Conflicting is a DynamoDB that takes time for its writes and makes them conflict as
// documented (developer guide, "Transaction conflict handling in DynamoDB"). An item of a
// TransactWriteItems, also one that it only checks, is held from the arrival of the request
// until its answer leaves:
//
//   - a TransactWriteItems with such an item is cancelled, with the reason
//     TransactionConflict for each of them;
//   - a PutItem, UpdateItem or DeleteItem of it meets a TransactionConflictException.
//
// Single writes hold nothing, and a read of one item never conflicts. How long DynamoDB holds
// an item is not documented: Transaction states it. Each request spends Network before it
// arrives and after its answer left.
type Conflicting struct {
	*memddb.DB

	Network     Latency // one way
	Single      Latency // a write of one item
	Transaction Latency
	Dice        *Dice

	mu    sync.Mutex
	held  map[string]int
	count map[string]Requests
}

// Requests counts the requests for one table by what they met, transactions at the table of
// their first item.
type Requests struct {
	Sent      int
	Conflicts int
	Units     float64 // write units, also of cancelled transactions; items of up to 1 KB
}

// Requests returns the counts of a table.
func (c *Conflicting) Requests(table string) Requests {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[table]
}

// add counts one request.
func (c *Conflicting) add(table string, r Requests) {
	if c.count == nil {
		c.count = map[string]Requests{}
	}
	was := c.count[table]
	c.count[table] = Requests{was.Sent + r.Sent, was.Conflicts + r.Conflicts, was.Units + r.Units}
}

// itemName names an item by its key attributes.
func itemName(table string, key memddb.Item) string {
	var out strings.Builder
	out.WriteString(table)
	for _, name := range slices.Sorted(maps.Keys(key)) {
		fmt.Fprintf(&out, " %s=%v", name, key[name])
		if s, ok := key[name].(*types.AttributeValueMemberS); ok {
			fmt.Fprintf(&out, " %q", s.Value)
		}
	}
	return out.String()
}

// KeyOf returns the key of an item that is put: of the control table pk and sk, else id or
// pk.
func KeyOf(i memddb.Item) memddb.Item {
	key := memddb.Item{}
	for _, name := range []string{"pk", "sk", "id"} {
		if i[name] != nil {
			key[name] = i[name]
		}
	}
	return key
}

// TransactWriteItems implements the SDK's.
func (c *Conflicting) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, o ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	var items []string
	first := ""
	for _, w := range in.TransactItems {
		table, key := "", memddb.Item(nil)
		switch {
		case w.Put != nil:
			table, key = *w.Put.TableName, KeyOf(w.Put.Item)
		case w.Update != nil:
			table, key = *w.Update.TableName, w.Update.Key
		case w.Delete != nil:
			table, key = *w.Delete.TableName, w.Delete.Key
		case w.ConditionCheck != nil:
			table, key = *w.ConditionCheck.TableName, w.ConditionCheck.Key
		}
		if first == "" {
			first = table
		}
		items = append(items, itemName(table, key))
	}
	c.Network.sleep(c.Dice)
	defer c.Network.sleep(c.Dice)
	err := c.enter(first, items)
	c.Transaction.sleep(c.Dice)
	if err != nil {
		return nil, err
	}
	defer c.leave(items)
	return c.DB.TransactWriteItems(ctx, in, o...)
}

// enter holds the items of a transaction, or cancels it.
func (c *Conflicting) enter(table string, items []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cancelled := &types.TransactionCanceledException{Message: aws.String("Transaction cancelled, please refer cancellation reasons for specific reasons")}
	conflicts := 0
	for _, i := range items {
		r := types.CancellationReason{Code: aws.String("None")}
		if c.held[i] > 0 {
			conflicts++
			r = types.CancellationReason{Code: aws.String("TransactionConflict"), Message: aws.String("Transaction is ongoing for the item")}
		}
		cancelled.CancellationReasons = append(cancelled.CancellationReasons, r)
	}
	c.add(table, Requests{1, min(conflicts, 1), 2 * float64(len(items))})
	if conflicts > 0 {
		return cancelled
	}
	if c.held == nil {
		c.held = map[string]int{}
	}
	for _, i := range items {
		c.held[i]++
	}
	return nil
}

func (c *Conflicting) leave(items []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range items {
		if c.held[i]--; c.held[i] == 0 {
			delete(c.held, i)
		}
	}
}

// single makes a write of one item.
func single[Out any](c *Conflicting, table string, key memddb.Item, write func() (*Out, error)) (*Out, error) {
	c.Network.sleep(c.Dice)
	defer c.Network.sleep(c.Dice)
	c.mu.Lock()
	conflict := c.held[itemName(table, key)] > 0
	r := Requests{Sent: 1, Units: 1}
	if conflict {
		r.Conflicts = 1
	}
	c.add(table, r)
	c.mu.Unlock()
	c.Single.sleep(c.Dice)
	if conflict {
		return nil, &types.TransactionConflictException{Message: aws.String("Transaction is ongoing for the item")}
	}
	return write()
}

// PutItem implements the SDK's.
func (c *Conflicting) PutItem(ctx context.Context, in *dynamodb.PutItemInput, o ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return single(c, *in.TableName, KeyOf(in.Item), func() (*dynamodb.PutItemOutput, error) { return c.DB.PutItem(ctx, in, o...) })
}

// UpdateItem implements the SDK's.
func (c *Conflicting) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, o ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return single(c, *in.TableName, in.Key, func() (*dynamodb.UpdateItemOutput, error) { return c.DB.UpdateItem(ctx, in, o...) })
}

// DeleteItem implements the SDK's.
func (c *Conflicting) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, o ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	return single(c, *in.TableName, in.Key, func() (*dynamodb.DeleteItemOutput, error) { return c.DB.DeleteItem(ctx, in, o...) })
}

// GetItem implements the SDK's. It never conflicts.
func (c *Conflicting) GetItem(ctx context.Context, in *dynamodb.GetItemInput, o ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	c.Network.sleep(c.Dice)
	c.Network.sleep(c.Dice)
	return c.DB.GetItem(ctx, in, o...)
}

// DefaultConflicting returns a DynamoDB whose single writes take 4 ms and whose transactions
// take 9 ms, of which the items are held 7.
func DefaultConflicting(d *Dice) *Conflicting {
	return &Conflicting{
		DB: memddb.New(), Dice: d, Network: Latency{Typical: time.Millisecond, Jitter: .3},
		Single: Latency{Typical: 2 * time.Millisecond, Jitter: .3}, Transaction: Latency{Typical: 7 * time.Millisecond, Jitter: .3},
	}
}
