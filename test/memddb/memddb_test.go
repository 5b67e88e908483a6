package memddb_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

type (
	item = memddb.Item
	s    = types.AttributeValueMemberS
	n    = types.AttributeValueMemberN
	b    = types.AttributeValueMemberB
)

// generator makes requests out of the expressions that the project uses, over few
// items and attributes so that they meet, and now and then a wrong one.
type generator struct {
	*rand.Rand
	table  string
	names  map[string]string
	values item
	keys   bool // paths may be of the key
}

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) key() item {
	return item{"pk": &s{Value: g.one("p", "q")}, "sk": &s{Value: g.one("a", "ab", "b")}}
}

func (g *generator) scalar() types.AttributeValue {
	switch g.IntN(4) {
	case 0:
		return &s{Value: g.one("", "x", "xy", "y")}
	case 1:
		return &b{Value: []byte(g.one("x", "xy", "y"))}
	default:
		return g.number()
	}
}

func (g *generator) number() types.AttributeValue {
	return &n{Value: g.one("0", "1", "2", "-1", "10", "-20", "123456789012345678901")}
}

func (g *generator) value() types.AttributeValue {
	switch g.IntN(8) {
	case 0:
		return &types.AttributeValueMemberBOOL{Value: g.IntN(2) == 0}
	case 1:
		return &types.AttributeValueMemberL{Value: []types.AttributeValue{g.scalar(), g.number()}}
	default:
		return g.scalar()
	}
}

// path names an attribute, by a placeholder or as it stands.
func (g *generator) path() string {
	a := g.one("a1", "a2", "a3", "a4")
	if g.keys && g.IntN(40) == 0 {
		a = g.one("pk", "sk")
	}
	return g.named(a)
}

func (g *generator) named(a string) string {
	if g.IntN(3) == 0 {
		return a
	}
	g.names["#"+a] = a
	return "#" + a
}

func (g *generator) literal(v types.AttributeValue) string {
	name := fmt.Sprintf(":v%d", len(g.values))
	g.values[name] = v
	return name
}

func (g *generator) condition(depth int) string {
	g.keys = true
	defer func() { g.keys = false }()
	if depth > 0 && g.IntN(2) == 0 {
		left, right := g.condition(depth-1), g.condition(depth-1)
		switch g.IntN(4) {
		case 0:
			return left + " OR " + right
		case 1:
			return left + " and (" + right + ")"
		case 2:
			return "NOT " + left + " AND " + right
		default:
			return left + " AND " + right
		}
	}
	switch g.IntN(5) {
	case 0:
		return "attribute_exists(" + g.path() + ")"
	case 1:
		return "attribute_not_exists(" + g.path() + ")"
	case 2:
		return "begins_with(" + g.path() + ", " + g.literal(&s{Value: g.one("x", "p", "a")}) + ")"
	case 3:
		return g.path() + g.one(" = ", "<>") + g.literal(g.scalar())
	default:
		return g.path() + g.one(" < ", "<=", ">", " >= ") + g.literal(g.scalar())
	}
}

func (g *generator) term() string {
	switch g.IntN(4) {
	case 0:
		return "if_not_exists(" + g.path() + ", " + g.literal(g.number()) + ")"
	case 1:
		return g.path()
	default:
		return g.literal(g.number())
	}
}

// update changes each attribute once: dynoxide takes an update that changes one twice.
func (g *generator) update() string {
	var clauses, sets []string
	attributes := g.Perm(4)
	path := func() (text string) {
		text, attributes = g.named(fmt.Sprintf("a%d", attributes[0]+1)), attributes[1:]
		return text
	}
	for range 1 + g.IntN(2) {
		set := path() + " = "
		if g.IntN(2) == 0 {
			set += g.literal(g.value())
		} else if set += g.term(); g.IntN(2) == 0 {
			set += g.one(" + ", "-") + g.term()
		}
		sets = append(sets, set)
	}
	clauses = append(clauses, "SET "+strings.Join(sets, ", "))
	if g.IntN(3) == 0 {
		clauses = append(clauses, "REMOVE "+path())
	}
	if g.IntN(4) == 0 {
		clauses = append(clauses, "ADD "+path()+" "+g.literal(g.number()))
	}
	return strings.Join(clauses, " ")
}

// begin forgets the placeholders of the last request.
func (g *generator) begin() { g.names, g.values = map[string]string{}, item{} }

// end returns the placeholders, sometimes one too many. One too few is for
// [TestUndefined]: dynoxide does not always notice.
func (g *generator) end() (map[string]string, item) {
	switch g.IntN(15) {
	case 0:
		g.names["#unused"] = "a1"
	case 1:
		g.values[":unused"] = &n{Value: "1"}
	}
	names, values := g.names, g.values
	if len(names) == 0 {
		names = nil
	}
	if len(values) == 0 {
		values = nil
	}
	return names, values
}

func (g *generator) maybe(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func (g *generator) cond() *string {
	if g.IntN(4) == 0 {
		return nil
	}
	return g.maybe(g.condition(2))
}

func (g *generator) item() item {
	i := g.key()
	for range g.IntN(5) {
		i[g.one("a1", "a2", "a3", "a4")] = g.value()
	}
	if g.IntN(40) == 0 {
		delete(i, "sk")
	}
	return i
}

func (g *generator) old() types.ReturnValuesOnConditionCheckFailure {
	return []types.ReturnValuesOnConditionCheckFailure{"", types.ReturnValuesOnConditionCheckFailureAllOld}[g.IntN(2)]
}

func (g *generator) write() types.TransactWriteItem {
	g.begin()
	switch g.IntN(4) {
	case 0:
		i, c := g.item(), g.cond()
		names, values := g.end()
		return types.TransactWriteItem{Put: &types.Put{
			TableName: &g.table, Item: i, ConditionExpression: c, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
			ReturnValuesOnConditionCheckFailure: g.old(),
		}}
	case 1:
		u, c := g.update(), g.cond()
		names, values := g.end()
		return types.TransactWriteItem{Update: &types.Update{
			TableName: &g.table, Key: g.key(), UpdateExpression: &u, ConditionExpression: c, ExpressionAttributeNames: names,
			ExpressionAttributeValues: values, ReturnValuesOnConditionCheckFailure: g.old(),
		}}
	case 2:
		c := g.cond()
		names, values := g.end()
		return types.TransactWriteItem{Delete: &types.Delete{
			TableName: &g.table, Key: g.key(), ConditionExpression: c, ExpressionAttributeNames: names,
			ExpressionAttributeValues: values, ReturnValuesOnConditionCheckFailure: g.old(),
		}}
	default:
		c := g.condition(2)
		names, values := g.end()
		return types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{
			TableName: &g.table, Key: g.key(), ConditionExpression: &c, ExpressionAttributeNames: names,
			ExpressionAttributeValues: values, ReturnValuesOnConditionCheckFailure: g.old(),
		}}
	}
}

// sameItem reports whether two writes are of one item.
func sameItem(a, b types.TransactWriteItem) bool {
	key := func(w types.TransactWriteItem) string {
		var k item
		switch {
		case w.Put != nil:
			k = w.Put.Item
		case w.Update != nil:
			k = w.Update.Key
		case w.Delete != nil:
			k = w.Delete.Key
		default:
			k = w.ConditionCheck.Key
		}
		pk, _ := k["pk"].(*s)
		sk, _ := k["sk"].(*s)
		if pk == nil || sk == nil {
			return ""
		}
		return pk.Value + "/" + sk.Value
	}
	return key(a) == key(b)
}

// play makes one call. What it answers is compared by the twin.
func (g *generator) play(t *testing.T, db *ddbtest.Twin) error {
	t.Helper()
	ctx := t.Context()
	var err error
	switch w := g.write(); g.IntN(8) {
	case 0, 1:
		writes := []types.TransactWriteItem{w}
		for range 1 + g.IntN(3) {
			if w := g.write(); !slices.ContainsFunc(writes, func(o types.TransactWriteItem) bool { return sameItem(w, o) }) {
				writes = append(writes, w)
			}
		}
		_, err = db.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: writes})
	case 2:
		_, err = db.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: []types.TransactGetItem{
			{Get: &types.Get{TableName: &g.table, Key: g.key()}}, {Get: &types.Get{TableName: &g.table, Key: g.key()}},
		}})
	case 3:
		err = g.read(t, db)
	default:
		err = g.alone(t, db, w)
	}
	return err
}

func (g *generator) read(t *testing.T, db *ddbtest.Twin) error {
	t.Helper()
	g.begin()
	var err error
	switch g.IntN(3) {
	case 0:
		projection := "#a1, a2"
		g.names["#a1"] = "a1"
		names, _ := g.end()
		_, err = db.GetItem(t.Context(), &dynamodb.GetItemInput{
			TableName: &g.table, Key: g.key(), ProjectionExpression: &projection, ExpressionAttributeNames: names,
		})
	case 1:
		g.names["#pk"] = "pk"
		cond := "#pk = " + g.literal(&s{Value: g.one("p", "q")})
		if g.IntN(2) == 0 {
			cond += " AND sk " + g.one(">=", "<", "=", ">", "<=") + " " + g.literal(&s{Value: g.one("a", "ab", "b")})
		}
		names, values := g.end()
		_, err = db.Query(t.Context(), &dynamodb.QueryInput{
			TableName: &g.table, KeyConditionExpression: &cond, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		})
	default:
		filter := g.condition(1)
		names, values := g.end()
		_, err = db.Scan(t.Context(), &dynamodb.ScanInput{
			TableName: &g.table, FilterExpression: &filter, ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		})
	}
	return err
}

// alone makes a write of a transaction by itself.
func (g *generator) alone(t *testing.T, db *ddbtest.Twin, w types.TransactWriteItem) error {
	t.Helper()
	var err error
	ret := []types.ReturnValue{"", types.ReturnValueAllOld, types.ReturnValueAllNew}
	switch {
	case w.Put != nil:
		_, err = db.PutItem(t.Context(), &dynamodb.PutItemInput{
			TableName: w.Put.TableName, Item: w.Put.Item, ConditionExpression: w.Put.ConditionExpression,
			ExpressionAttributeNames: w.Put.ExpressionAttributeNames, ExpressionAttributeValues: w.Put.ExpressionAttributeValues,
			ReturnValuesOnConditionCheckFailure: w.Put.ReturnValuesOnConditionCheckFailure, ReturnValues: ret[g.IntN(2)],
		})
	case w.Update != nil:
		_, err = db.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
			TableName: w.Update.TableName, Key: w.Update.Key, ConditionExpression: w.Update.ConditionExpression,
			UpdateExpression: w.Update.UpdateExpression, ExpressionAttributeNames: w.Update.ExpressionAttributeNames,
			ExpressionAttributeValues: w.Update.ExpressionAttributeValues, ReturnValues: ret[2*g.IntN(2)], // dynoxide answers ALL_OLD of a new item with its key
			ReturnValuesOnConditionCheckFailure: w.Update.ReturnValuesOnConditionCheckFailure,
		})
	case w.Delete != nil:
		_, err = db.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{
			TableName: w.Delete.TableName, Key: w.Delete.Key, ConditionExpression: w.Delete.ConditionExpression,
			ExpressionAttributeNames: w.Delete.ExpressionAttributeNames, ExpressionAttributeValues: w.Delete.ExpressionAttributeValues,
			ReturnValuesOnConditionCheckFailure: w.Delete.ReturnValuesOnConditionCheckFailure, ReturnValues: ret[g.IntN(2)],
		})
	}
	return err
}

// TestIsDynamoDB plays generated requests on this package and on dynoxide: they
// answer the same, and refuse the same. Both outcomes must be frequent.
func TestIsDynamoDB(t *testing.T) {
	db := ddbtest.NewTwin(t)
	g := &generator{Rand: rand.New(rand.NewPCG(1, 2)), table: ddbtest.ControlTable(t, db)}
	outcomes := map[string]int{}
	for range 3000 {
		code := "done"
		var api smithy.APIError
		if err := g.play(t, db); errors.As(err, &api) {
			code = api.ErrorCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if outcomes[code]++; t.Failed() {
			return
		}
	}
	t.Logf("%d answers compared: %v", db.Calls(), outcomes)
	for code, least := range map[string]int{
		"done": 1000, "ConditionalCheckFailedException": 200, "TransactionCanceledException": 200, "ValidationException": 200,
	} {
		if outcomes[code] < least {
			t.Errorf("%s: %d times", code, outcomes[code])
		}
	}
}
