package memddb_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

func key(pk, sk string) item { return item{"pk": &s{Value: pk}, "sk": &s{Value: sk}} }

// with is a key and one attribute more.
func with(k item, name string, v types.AttributeValue) item {
	k[name] = v
	return k
}

// TestRefusals: requests that are wrong in themselves, and what is refused by AWS
// whatever is stored, are refused here too.
func TestRefusals(t *testing.T) {
	db := memddb.New()
	table, ctx := ddbtest.ControlTable(t, db), t.Context()
	if _, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: with(key("p", "a"), "n", &n{Value: "1"})}); err != nil {
		t.Fatal(err)
	}
	update := func(key item, expr string, names map[string]string, values item) error {
		_, err := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &table, Key: key, UpdateExpression: &expr, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		})
		return err
	}
	transact := func(writes ...types.TransactWriteItem) error {
		_, err := db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: writes})
		return err
	}
	scan := func(segment, total int32, from item) error {
		_, err := db.Scan(ctx, &dynamodb.ScanInput{TableName: &table, Segment: &segment, TotalSegments: &total, ExclusiveStartKey: from})
		return err
	}
	put := types.TransactWriteItem{Put: &types.Put{TableName: &table, Item: key("q", "a")}}
	check := types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &table, Key: key("q", "a"), ConditionExpression: aws.String("attribute_not_exists(pk)"),
	}}
	one := item{":v": &n{Value: "1"}}
	_, exists := db.CreateTable(ctx, &dynamodb.CreateTableInput{TableName: &table})
	_, missing := db.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String("no-such-table"), Key: key("p", "a")})
	_, short := db.GetItem(ctx, &dynamodb.GetItemInput{TableName: &table, Key: item{"pk": &s{Value: "p"}}})
	_, empty := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: key("p", "")})
	for name, c := range map[string]struct {
		code string
		err  error
	}{
		"table exists":        {"ResourceInUseException", exists},
		"no table":            {"ResourceNotFoundException", missing},
		"half a key":          {"ValidationException", short},
		"an empty key":        {"ValidationException", empty},
		"a key of N":          {"ValidationException", update(item{"pk": &n{Value: "1"}, "sk": &s{Value: "a"}}, "SET n = :v", nil, one)},
		"key attribute":       {"ValidationException", update(key("p", "a"), "SET sk = :v", nil, one)},
		"twice":               {"ValidationException", update(key("p", "a"), "SET n = :v, #n = :v", map[string]string{"#n": "n"}, one)},
		"set and removed":     {"ValidationException", update(key("p", "a"), "SET n = :v REMOVE #n", map[string]string{"#n": "n"}, one)},
		"undefined name":      {"ValidationException", update(key("p", "a"), "SET #n = :v", nil, one)},
		"undefined value":     {"ValidationException", update(key("p", "a"), "SET n = :v, m = :w", nil, one)},
		"unused name":         {"ValidationException", update(key("p", "a"), "SET n = :v", map[string]string{"#n": "n"}, one)},
		"unused value":        {"ValidationException", update(key("p", "a"), "REMOVE n", nil, one)},
		"empty names":         {"ValidationException", update(key("p", "a"), "SET n = :v", map[string]string{}, one)},
		"syntax":              {"ValidationException", update(key("p", "a"), "SET n :v", nil, one)},
		"no such attribute":   {"ValidationException", update(key("p", "a"), "SET n = m + :v", nil, one)},
		"no number":           {"ValidationException", update(key("p", "a"), "SET n = :v", nil, item{":v": &n{Value: "x"}})},
		"two of one item":     {"ValidationException", transact(put, put)},
		"check and write":     {"ValidationException", transact(check, put)},
		"empty transaction":   {"ValidationException", transact()},
		"large transaction":   {"ValidationException", transact(make([]types.TransactWriteItem, 101)...)},
		"segment":             {"ValidationException", scan(2, 2, nil)},
		"start key elsewhere": {"ValidationException", func() error { return first(scan(0, 2, key("p", "a")), scan(1, 2, key("p", "a"))) }()},
	} {
		if remote.ErrorCode(c.err) != c.code {
			t.Errorf("%s: %v, want %s", name, c.err, c.code)
		}
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestUnknown: what it does not know it does not guess.
func TestUnknown(t *testing.T) {
	db := memddb.New()
	table, ctx := ddbtest.ControlTable(t, db), t.Context()
	one := item{":v": &n{Value: "1"}}
	update := func(expr, cond string) func() {
		return func() {
			_, err := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
				TableName: &table, Key: key("p", "a"), UpdateExpression: &expr, ConditionExpression: &cond, ExpressionAttributeValues: one,
			})
			t.Error(err)
		}
	}
	for name, call := range map[string]func(){
		"path":     update("SET a.b = :v", "n = :v"),
		"function": update("SET a = list_append(a, :v)", "n = :v"),
		"delete":   update("DELETE a :v", "n = :v"),
		"between":  update("SET a = :v", "n BETWEEN :v AND :v"),
		"size":     update("SET a = :v", "size(n) > :v"),
		"token": func() {
			_, err := db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{ClientRequestToken: aws.String("x")})
			t.Error(err)
		},
		"index": func() {
			_, err := db.Scan(ctx, &dynamodb.ScanInput{TableName: &table, IndexName: aws.String("x")})
			t.Error(err)
		},
		"a set": func() {
			_, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: with(key("p", "a"), "x", &types.AttributeValueMemberSS{})})
			t.Error(err)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}

// TestNothingIsShared: neither what is given nor what is returned is what is stored.
func TestNothingIsShared(t *testing.T) {
	db := memddb.New()
	table, ctx := ddbtest.ControlTable(t, db), t.Context()
	given := with(key("p", "a"), "x", &b{Value: []byte("x")})
	if _, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: given}); err != nil {
		t.Fatal(err)
	}
	given["x"].(*b).Value[0] = 'y'
	get := func() item {
		out, err := db.GetItem(ctx, &dynamodb.GetItemInput{TableName: &table, Key: key("p", "a")})
		if err != nil {
			t.Fatal(err)
		}
		return out.Item
	}
	got := get()
	got["x"].(*b).Value[0] = 'z'
	delete(got, "sk")
	want := with(key("p", "a"), "x", &b{Value: []byte("x")})
	if d := cmp.Diff(want, get(), cmpopts.IgnoreUnexported(s{}, b{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestSegments: the segments of a scan, page by page, are the table.
func TestSegments(t *testing.T) {
	db := memddb.New()
	table, ctx := ddbtest.ControlTable(t, db), t.Context()
	const items, total = 50, 4
	for i := range items {
		if _, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: key(fmt.Sprint(i), "a")}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	for segment := range int32(total) {
		in := &dynamodb.ScanInput{TableName: &table, Segment: &segment, TotalSegments: aws.Int32(total), Limit: aws.Int32(3)}
		for {
			out, err := db.Scan(ctx, in)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range out.Items {
				seen[i["pk"].(*s).Value]++
			}
			if in.ExclusiveStartKey = out.LastEvaluatedKey; in.ExclusiveStartKey == nil {
				break
			}
		}
	}
	for pk, n := range seen {
		if n != 1 {
			t.Errorf("%s was read %d times", pk, n)
		}
	}
	if len(seen) != items {
		t.Errorf("%d of %d items", len(seen), items)
	}
}

// TestUndefined: what an expression uses must be defined, in a branch that decides
// nothing too. dynoxide notices only what it evaluates.
func TestUndefined(t *testing.T) {
	db, client, ctx := memddb.New(), ddbtest.Client(t), t.Context()
	table := ddbtest.ControlTable(t, db)
	other := ddbtest.ControlTable(t, client)
	for _, c := range []struct {
		cond     string
		dynoxide bool // refuses it too
	}{
		{"n = :v AND #n = :v", true},
		{"n = :w", true},
		{"attribute_not_exists(pk) OR n = :w", false},
		{"attribute_not_exists(pk) OR attribute_exists(#n)", false},
	} {
		put := func(table string) *dynamodb.PutItemInput {
			return &dynamodb.PutItemInput{TableName: &table, Item: key("p", c.cond), ConditionExpression: &c.cond}
		}
		if _, err := db.PutItem(ctx, put(table)); remote.ErrorCode(err) != "ValidationException" {
			t.Errorf("%s: memddb: %v", c.cond, err)
		}
		if _, err := client.PutItem(ctx, put(other)); (remote.ErrorCode(err) == "ValidationException") != c.dynoxide {
			t.Errorf("%s: dynoxide: %v", c.cond, err)
		}
	}
}

// TestPageEdge: a page is at most 1 MB, so an item that does not fit in the rest of it is
// on the next one (DynamoDB developer guide, "Paginating table query results").
func TestPageEdge(t *testing.T) {
	db, ctx := ddbtest.NewTwin(t), t.Context()
	table := ddbtest.ControlTable(t, db)
	const quarter = 1 << 20 / 4
	for pk, last := range map[string]int{"less": quarter - 1, "full": quarter, "more": quarter + 1} {
		for i, size := range []int{quarter, quarter, quarter, last} {
			row := key(pk, string(rune('a'+i)))
			row["v"] = &s{Value: strings.Repeat("x", size-attr.ItemSize(row)-len("v"))}
			if _, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: row}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for pk, want := range map[string][]int32{"less": {4}, "full": {4}, "more": {3, 1}} {
		in := &dynamodb.QueryInput{
			TableName: &table, KeyConditionExpression: aws.String("pk = :pk"), ExpressionAttributeValues: item{":pk": &s{Value: pk}},
		}
		var got []int32
		for {
			out, err := db.Query(ctx, in)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, out.Count)
			if in.ExclusiveStartKey = out.LastEvaluatedKey; in.ExclusiveStartKey == nil {
				break
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: items of each page (-want +got):\n%s", pk, d)
		}
	}
}

// TestUpdateSize: an UpdateItem counts more bytes than the item that it leaves has, to
// the byte as dynoxide measured on AWS; see [attr.UpdateCost].
func TestUpdateSize(t *testing.T) {
	db, ctx := ddbtest.NewTwin(t), t.Context()
	table := ddbtest.ControlTable(t, db)
	for update, cost := range map[string]int{
		"SET n = :n": 22, "SET n = :n, m = :n": 41, "ADD n :n": 22, "SET n = :n REMOVE x": 24, "ADD n :n REMOVE x, y": 26,
	} {
		row := with(key("p", "a"), "n", &n{Value: "1"})
		if strings.Contains(update, "m = ") {
			row["m"] = &n{Value: "1"}
		}
		room := attr.MaxItemSize - cost + attr.ItemSize(key("p", "a")) - attr.ItemSize(row) - len("v")
		for _, more := range []int{0, 1} {
			stored := with(key("p", "a"), "v", &s{Value: strings.Repeat("x", room+more)})
			if _, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: stored}); err != nil {
				t.Fatal(err)
			}
			_, err := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
				TableName: &table, Key: key("p", "a"), UpdateExpression: &update, ExpressionAttributeValues: item{":n": &n{Value: "1"}},
			})
			if (err != nil) != (more == 1) {
				t.Errorf("%s, %d bytes more: %v", update, more, err)
			}
		}
	}
}

// TestHold: what somebody else's transaction holds a single write is refused, and a
// transaction cancelled, item by item; nothing is written.
func TestHold(t *testing.T) {
	db, ctx := memddb.New(), t.Context()
	table := ddbtest.ControlTable(t, db)
	db.Hold(func(name string, k item) bool { return name == table && len(k) == 2 && k["sk"].(*s).Value == "held" })
	put := func(sk string) types.TransactWriteItem {
		return types.TransactWriteItem{Put: &types.Put{TableName: &table, Item: with(key("p", sk), "n", &n{Value: "1"})}}
	}
	check := types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
		TableName: &table, Key: key("p", "held"), ConditionExpression: aws.String("attribute_not_exists(pk)"),
	}}
	_, single := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: key("p", "held")})
	_, updated := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{TableName: &table, Key: key("p", "held")})
	_, deleted := db.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &table, Key: key("p", "held")})
	_, checked := db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{put("free"), check}})
	_, read := db.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: []types.TransactGetItem{
		{Get: &types.Get{TableName: &table, Key: key("p", "free")}}, {Get: &types.Get{TableName: &table, Key: key("p", "held")}},
	}})
	for name, err := range map[string]error{"put": single, "update": updated, "delete": deleted} {
		if remote.ErrorCode(err) != "TransactionConflictException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{"write": checked, "read": read} {
		var e *types.TransactionCanceledException
		if !errors.As(err, &e) || *e.CancellationReasons[0].Code != "None" || *e.CancellationReasons[1].Code != "TransactionConflict" {
			t.Errorf("%s: %v", name, err)
		}
	}
	out, err := db.Scan(ctx, &dynamodb.ScanInput{TableName: &table})
	if err != nil || out.Count != 0 {
		t.Errorf("%d items, %v", out.Count, err)
	}
}

// TestItemSize: an item has 400 KB at most. What would be larger is refused as by
// dynoxide, and the adapters see that a repetition is futile.
func TestItemSize(t *testing.T) {
	db, ctx := ddbtest.NewTwin(t), t.Context()
	table := ddbtest.ControlTable(t, db)
	full := with(key("p", "a"), "v", &s{Value: strings.Repeat("x", attr.MaxItemSize-len("pkpskav"))})
	put := func(i item) error {
		_, err := db.PutItem(ctx, &dynamodb.PutItemInput{TableName: &table, Item: i})
		return err
	}
	if err := put(full); err != nil {
		t.Fatal(err)
	}
	update := func(cond string) error {
		_, err := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: &table, Key: key("p", "a"), UpdateExpression: aws.String("SET n = :n"), ConditionExpression: &cond,
			ExpressionAttributeValues: item{":n": &n{Value: "1"}},
		})
		return err
	}
	transact := func(w types.TransactWriteItem) error {
		_, err := db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{w}})
		return err
	}
	larger := maps.Clone(full)
	larger["n"] = &n{Value: "1"}
	for name, c := range map[string]struct {
		err      error
		code     string
		rejected bool
	}{
		"put":              {put(larger), "ValidationException", true},
		"update":           {update("attribute_exists(pk)"), "ValidationException", true},
		"failed condition": {update("attribute_not_exists(pk)"), "ConditionalCheckFailedException", false},
		"put in a transaction": {
			transact(types.TransactWriteItem{Put: &types.Put{TableName: &table, Item: larger}}), "ValidationException", true,
		},
		"update in a transaction": {transact(types.TransactWriteItem{Update: &types.Update{
			TableName: &table, Key: key("p", "a"), UpdateExpression: aws.String("SET n = :n"), ExpressionAttributeValues: item{":n": &n{Value: "1"}},
		}}), "TransactionCanceledException", false},
	} {
		if got := remote.ErrorCode(c.err); got != c.code || errors.Is(remote.WrapError("op", c.err), journal.ErrRejected) != c.rejected {
			t.Errorf("%s: %v, want %s, rejected %t", name, c.err, c.code, c.rejected)
		}
	}
	delete(larger, "v")
	if err := put(larger); err != nil {
		t.Error(err)
	}
}
