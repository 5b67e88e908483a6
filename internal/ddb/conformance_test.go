package ddb_test

import (
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/ddb/ddbtest"
	"github.com/matter-ops/kms-rotation/internal/storetest"
	"github.com/matter-ops/kms-rotation/kek"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

type (
	item = map[string]types.AttributeValue
	s    = types.AttributeValueMemberS
	n    = types.AttributeValueMemberN
	b    = types.AttributeValueMemberB
)

// dynamo is what the adapters and their suites use of a DynamoDB.
type dynamo interface {
	ddb.API
	ddb.TableAPI
	ddbtest.Tables
}

// everywhere runs a test on DynamoDB Local, and on the DynamoDB in memory that the
// simulator uses, held to it call by call.
func everywhere(t *testing.T, f func(t *testing.T, client dynamo)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { f(t, ddbtest.NewTwin(t)) })
	t.Run("local", func(t *testing.T) { f(t, ddbtest.Client(t)) })
}

func onStore(t *testing.T, suite func(*testing.T, func(*testing.T) storetest.RegistryHarness)) {
	t.Helper()
	everywhere(t, func(t *testing.T, client dynamo) {
		suite(t, func(t *testing.T) storetest.RegistryHarness { return newStore(t, client) })
	})
}

func newStore(t *testing.T, client dynamo) storetest.RegistryHarness {
	t.Helper()
	table := ddbtest.ControlTable(t, client)
	return storetest.RegistryHarness{
		Store: ddb.New(client, table, "test", storetest.Clock()), Data: ddb.NewLeases(client, table), Chain: "test",
		Fences: func(t *testing.T, id kek.ID) map[int]string {
			t.Helper()
			return fences(t, client, table, id)
		},
	}
}

func fences(t *testing.T, client dynamo, table string, id kek.ID) map[int]string {
	t.Helper()
	out, err := client.Query(t.Context(), &dynamodb.QueryInput{
		TableName: &table, ConsistentRead: aws.Bool(true), KeyConditionExpression: aws.String("pk = :pk"),
		ExpressionAttributeValues: item{":pk": &s{Value: "FENCE#" + string(id)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	states := map[int]string{}
	for _, i := range out.Items {
		shard, err := strconv.Atoi(i["sk"].(*s).Value)
		if err != nil {
			t.Fatal(err)
		}
		states[shard] = i["state"].(*s).Value
	}
	return states
}

func TestRegistry(t *testing.T)    { onStore(t, storetest.TestRegistry) }
func TestOutbox(t *testing.T)      { onStore(t, storetest.TestOutbox) }
func TestCheckpoints(t *testing.T) { onStore(t, storetest.TestCheckpoints) }
func TestDrainage(t *testing.T)    { onStore(t, storetest.TestDrainage) }

// TestSource runs the suite for each kind of primary key.
func TestSource(t *testing.T) {
	keys := map[string][]ddbtest.Key{
		"S":        {{Name: "id", Type: types.ScalarAttributeTypeS}},
		"S and N":  {{Name: "id", Type: types.ScalarAttributeTypeS}, {Name: "number", Type: types.ScalarAttributeTypeN}},
		"B and S":  {{Name: "blob", Type: types.ScalarAttributeTypeB}, {Name: "id", Type: types.ScalarAttributeTypeS}},
		"reserved": {{Name: "id", Type: types.ScalarAttributeTypeS}, {Name: "size", Type: types.ScalarAttributeTypeN}},
	}
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, client dynamo) {
				storetest.TestSource(t, func(t *testing.T) storetest.SourceHarness { return newSource(t, client, key) })
			})
		})
	}
}

// sourceConfig names attributes that are reserved words or have odd characters, so
// that no expression can do without placeholders.
func sourceConfig(table string) ddb.SourceConfig {
	return ddb.SourceConfig{
		Name: "orders", Table: table, KEKID: "key", WrappedDEK: "wrapped.dek", Ciphertext: "data",
		Context: map[string]string{"table": "orders", "id": "$name"}, Format: "matter",
	}
}

func newSource(t *testing.T, client dynamo, keys []ddbtest.Key) storetest.SourceHarness {
	t.Helper()
	table := ddbtest.Table(t, client, keys...)
	source, err := ddb.NewTableSource(client, sourceConfig(table))
	if err != nil {
		t.Fatal(err)
	}
	key := func(id string) item {
		k := item{}
		for _, a := range keys {
			switch a.Type {
			case types.ScalarAttributeTypeS:
				k[a.Name] = &s{Value: id}
			case types.ScalarAttributeTypeN:
				k[a.Name] = &n{Value: "17.5"}
			case types.ScalarAttributeTypeB:
				k[a.Name] = &b{Value: []byte(id)}
			}
		}
		return k
	}
	return storetest.SourceHarness{
		Source: source,
		Put: func(t *testing.T, id string, e storetest.Envelope) {
			t.Helper()
			put(t, client, table, envelopeItem(key(id), id, e))
		},
		Delete: func(t *testing.T, id string) {
			t.Helper()
			_, err := client.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &table, Key: key(id)})
			if err != nil {
				t.Fatal(err)
			}
		},
		Get: func(t *testing.T, id string) (storetest.Envelope, bool) {
			t.Helper()
			i := get(t, client, table, key(id))
			if i == nil {
				return storetest.Envelope{}, false
			}
			return storetest.Envelope{
				KEK: kek.ID(i["key"].(*s).Value), WrappedDEK: i["wrapped.dek"].(*b).Value, Ciphertext: i["data"].(*b).Value,
				Epoch: number(t, i["kek_epoch"]), Version: number(t, i["version"]),
			}, true
		},
	}
}

func envelopeItem(i item, id string, e storetest.Envelope) item {
	i["note"] = &s{Value: "not our business"}
	if e.Kind == storetest.Stranger {
		return i
	}
	i["wrapped.dek"], i["data"] = &b{Value: e.WrappedDEK}, &b{Value: e.Ciphertext}
	if e.Kind != storetest.NoKEK {
		i["key"] = &s{Value: string(e.KEK)}
	}
	if e.Kind != storetest.NoContext {
		i["name"] = &s{Value: id}
	}
	if e.Epoch > 0 {
		i["kek_epoch"] = &n{Value: strconv.FormatInt(e.Epoch, 10)}
	}
	if e.Version > 0 {
		i["version"] = &n{Value: strconv.FormatInt(e.Version, 10)}
	}
	return i
}

func put(t *testing.T, client dynamo, table string, i item) {
	t.Helper()
	if _, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: i}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, client dynamo, table string, key item) item {
	t.Helper()
	out, err := client.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &table, Key: key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Item
}

func number(t *testing.T, v types.AttributeValue) int64 {
	t.Helper()
	if v == nil {
		return 0
	}
	i, err := strconv.ParseInt(v.(*n).Value, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return i
}
