package envelope_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// memory is a DynamoDB just large enough for the examples, which have no testing.T
// to start a real one with. It evaluates the expressions that the client writes.
type memory struct {
	mu    sync.Mutex
	items map[string]item // by table and key
}

// deployment returns a control table that points at kek-0001, and KMS.
func deployment() (*memory, *keys) {
	world := memstore.New("example", time.Now)
	if _, err := world.KMS().Create(context.Background(), "genesis", 1, "first", keyring.Key{}); err != nil {
		panic(err)
	}
	m := &memory{items: map[string]item{}}
	for _, i := range []item{
		{"pk": &s{Value: "POINTER"}, "sk": &s{Value: "-"}, "kek_id": &s{Value: "kek-0001"}, "epoch": &n{Value: "1"}},
		{"pk": &s{Value: "KEK#kek-0001"}, "sk": &s{Value: "-"}, "state": &s{Value: "active"}, "fence_shards": &n{Value: "1"}},
		{"pk": &s{Value: "FENCE#kek-0001"}, "sk": &s{Value: "00"}, "state": &s{Value: "open"}},
		{"pk": &s{Value: "DEKFENCE#kek-0001"}, "sk": &s{Value: "00"}, "state": &s{Value: "open"}},
	} {
		m.items[m.id("matter-control", i)] = i
	}
	return m, &keys{KMS: world.KMS(), calls: map[string]int{}}
}

func (m *memory) id(table string, i item) string {
	if pk, ok := i["pk"].(*s); ok {
		sk, _ := i["sk"].(*s) // records of data keys have none
		return table + "/" + pk.Value + "/" + cmp.Or(sk, &s{}).Value
	}
	return table + "/" + i["id"].(*s).Value
}

func (m *memory) DescribeTable(context.Context, *dynamodb.DescribeTableInput, ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	return &dynamodb.DescribeTableOutput{Table: &ddbtypes.TableDescription{
		KeySchema: []ddbtypes.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: ddbtypes.KeyTypeHash}},
	}}, nil
}

func (m *memory) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &dynamodb.GetItemOutput{Item: maps.Clone(m.items[m.id(*in.TableName, in.Key)])}, nil
}

func (m *memory) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.items[m.id(*in.TableName, in.Item)] = in.Item
	return &dynamodb.PutItemOutput{}, nil
}

func (m *memory) DeleteItem(_ context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.items, m.id(*in.TableName, in.Key))
	return &dynamodb.DeleteItemOutput{}, nil
}

func (m *memory) UpdateItem(_ context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := m.id(*in.TableName, in.Key)
	old := m.items[id]
	if !holds(aws.ToString(in.ConditionExpression), old, in.ExpressionAttributeNames, in.ExpressionAttributeValues) {
		return nil, &ddbtypes.ConditionalCheckFailedException{Item: old}
	}
	with := maps.Clone(old)
	if with == nil {
		with = maps.Clone(in.Key)
	}
	sets, removes, _ := strings.Cut(strings.TrimPrefix(*in.UpdateExpression, "SET "), " REMOVE ")
	for _, set := range strings.Split(sets, ", ") {
		name, value, _ := strings.Cut(set, " = ")
		with[plain(name, in.ExpressionAttributeNames)] = in.ExpressionAttributeValues[value]
	}
	for _, name := range strings.Split(removes, ", ") {
		delete(with, plain(name, in.ExpressionAttributeNames))
	}
	m.items[id] = with
	return &dynamodb.UpdateItemOutput{}, nil
}

func (m *memory) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	reasons, failed := make([]ddbtypes.CancellationReason, len(in.TransactItems)), false
	for i, w := range in.TransactItems {
		ok := true
		if p := w.Put; p != nil {
			old := m.items[m.id(*p.TableName, p.Item)]
			ok = holds(*p.ConditionExpression, old, p.ExpressionAttributeNames, p.ExpressionAttributeValues)
			reasons[i].Item = old
		}
		if c := w.ConditionCheck; c != nil {
			ok = holds(*c.ConditionExpression, m.items[m.id(*c.TableName, c.Key)], c.ExpressionAttributeNames, c.ExpressionAttributeValues)
		}
		if reasons[i].Code = aws.String("None"); !ok {
			reasons[i].Code, failed = aws.String("ConditionalCheckFailed"), true
		}
	}
	if failed {
		return nil, &ddbtypes.TransactionCanceledException{CancellationReasons: reasons}
	}
	for _, w := range in.TransactItems {
		if p := w.Put; p != nil {
			m.items[m.id(*p.TableName, p.Item)] = p.Item
		}
	}
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

func plain(name string, names map[string]string) string {
	return cmp.Or(names[name], name)
}

// holds evaluates terms joined by AND, each perhaps two joined by OR in brackets.
func holds(cond string, i item, names map[string]string, values item) bool {
	if cond == "" {
		return true
	}
	return !slices.ContainsFunc(strings.Split(cond, " AND "), func(term string) bool {
		if strings.HasPrefix(term, "(") {
			term = strings.TrimSuffix(strings.TrimPrefix(term, "("), ")")
		}
		return !slices.ContainsFunc(strings.Split(term, " OR "), func(t string) bool { return compare(t, i, names, values) })
	})
}

func compare(term string, i item, names map[string]string, values item) bool {
	if name, ok := strings.CutPrefix(term, "attribute_exists("); ok {
		return i[plain(strings.TrimSuffix(name, ")"), names)] != nil
	}
	if name, ok := strings.CutPrefix(term, "attribute_not_exists("); ok {
		return i[plain(strings.TrimSuffix(name, ")"), names)] == nil
	}
	part := strings.Fields(term)
	switch a := i[plain(part[0], names)].(type) {
	case *s:
		return part[1] == "=" && a.Value == values[part[2]].(*s).Value
	case *b:
		return part[1] == "=" && string(a.Value) == string(values[part[2]].(*b).Value)
	case *n:
		x, y := integer(a.Value), integer(values[part[2]].(*n).Value)
		return x == y || part[1] == "<=" && x < y
	case nil:
		return false
	default:
		panic(fmt.Sprintf("%s of %T", term, a))
	}
}

func integer(s string) int64 {
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return i
}
