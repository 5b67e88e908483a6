package localaws

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// conflicts makes writes of one item conflict as DynamoDB documents (developer guide,
// "Transaction conflict handling in DynamoDB"), which dynoxide does not: an item is held
// from the arrival of a request to its answer, by a condition check as by a write.
//
// A PutItem, UpdateItem or DeleteItem of an item that a TransactWriteItems holds meets a
// TransactionConflictException. A TransactWriteItems with such an item, and a
// TransactGetItems with one that any write holds, is cancelled.
type conflicts struct {
	url string // of dynoxide

	mu           sync.Mutex
	keys         map[string][]string // the key attributes of tables
	transactions map[string]int      // writing transactions under way, by item
	writes       map[string]int      // single writes under way, by item
}

const (
	maxDynamoBody = 64 << 20
	conflictCode  = "TransactionConflict"
	conflictText  = "Transaction is ongoing for the item"
)

// serveDynamoDB serves one call of DynamoDB.
func (p *proxy) serveDynamoDB(w http.ResponseWriter, r *http.Request, c wire.Call) {
	switch c.Operation {
	case "PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems", "TransactGetItems":
	case "CreateTable", "DeleteTable":
		defer p.conflicts.forgetKeys()
		fallthrough
	default:
		p.dynamo.ServeHTTP(w, r)
		return
	}
	body, err := wire.Body(r, maxDynamoBody)
	if err != nil {
		panic(http.ErrAbortHandler) // the caller died while it sent
	}
	items := p.conflicts.itemsOf(r.Context(), body)
	held, leave := p.conflicts.enter(c.Operation, items)
	if held == nil {
		defer leave()
		p.dynamo.ServeHTTP(w, r)
		return
	}
	if !strings.HasPrefix(c.Operation, "Transact") {
		c.Write(w, &wire.Error{Status: http.StatusBadRequest, Code: conflictCode + "Exception", Message: conflictText})
		return
	}
	writeCancelled(w, held)
}

// enter holds the items of a request until leave is called; or says which of them others
// hold, and holds none.
func (f *conflicts) enter(operation string, items []string) (held []bool, leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.transactions == nil {
		f.transactions, f.writes = map[string]int{}, map[string]int{}
	}
	held = make([]bool, len(items))
	for n, i := range items {
		held[n] = f.transactions[i] > 0 || operation == "TransactGetItems" && f.writes[i] > 0
	}
	if slices.Contains(held, true) {
		return held, nil
	}
	holds := f.writes
	switch operation {
	case "TransactWriteItems":
		holds = f.transactions
	case "TransactGetItems":
		return nil, func() {}
	}
	for _, i := range items {
		holds[i]++
	}
	return nil, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, i := range items {
			if holds[i]--; holds[i] == 0 {
				delete(holds, i)
			}
		}
	}
}

// dynamoItem is what a request says of one item.
type dynamoItem struct {
	TableName string
	Key, Item map[string]json.RawMessage
}

// itemsOf names the items of a request. One that cannot be named, because the request is
// wrong or its table does not exist, is held by nobody: dynoxide refuses it.
func (f *conflicts) itemsOf(ctx context.Context, body []byte) []string {
	var in struct {
		dynamoItem
		TransactItems []map[string]dynamoItem
	}
	if json.Unmarshal(body, &in) != nil {
		return nil
	}
	if in.TransactItems == nil {
		return []string{f.name(ctx, in.dynamoItem)}
	}
	var out []string
	for _, one := range in.TransactItems {
		for _, i := range one {
			out = append(out, f.name(ctx, i))
		}
	}
	return out
}

// name identifies an item; two that cannot be identified are two.
func (f *conflicts) name(ctx context.Context, i dynamoItem) string {
	given := i.Key
	if given == nil {
		given = i.Item
	}
	keys := f.keysOf(ctx, i.TableName)
	if keys == nil {
		return wire.RequestID()
	}
	name := i.TableName
	for _, k := range keys {
		name += "\x00" + string(given[k])
	}
	return name
}

// keysOf are a table's key attributes, nil if it cannot be described.
func (f *conflicts) keysOf(ctx context.Context, table string) []string {
	f.mu.Lock()
	keys, ok := f.keys[table]
	f.mu.Unlock()
	if ok {
		return keys
	}
	body, _ := json.Marshal(map[string]string{"TableName": table}) // of strings: cannot fail
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url, bytes.NewReader(body))
	if err != nil {
		return nil
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	req.Header.Set("X-Amz-Target", "DynamoDB_20120810.DescribeTable")
	req.Header.Set("X-Amz-Date", "20260101T000000Z")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+AccessKey+"/20260101/x/dynamodb/aws4_request, SignedHeaders=host, Signature=0")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var out struct {
		Table struct {
			KeySchema []struct{ AttributeName string }
		}
	}
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&out) != nil {
		return nil
	}
	for _, k := range out.Table.KeySchema {
		keys = append(keys, k.AttributeName)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys = map[string][]string{}
	}
	f.keys[table] = keys
	return keys
}

func (f *conflicts) forgetKeys() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = nil
}

// writeCancelled answers that a transaction was cancelled for the items that are held.
func writeCancelled(w http.ResponseWriter, held []bool) {
	type reason struct {
		Code    string
		Message string `json:",omitempty"`
	}
	reasons, codes := make([]reason, len(held)), make([]string, len(held))
	for n, h := range held {
		if reasons[n] = (reason{Code: "None"}); h {
			reasons[n] = reason{conflictCode, conflictText}
		}
		codes[n] = reasons[n].Code
	}
	body, _ := json.Marshal(map[string]any{ // of strings: cannot fail
		"__type":              "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
		"Message":             fmt.Sprintf("Transaction cancelled, please refer cancellation reasons for specific reasons [%s]", strings.Join(codes, ", ")),
		"CancellationReasons": reasons,
	})
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amzn-Requestid", wire.RequestID())
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(body) // the caller may be gone
}
