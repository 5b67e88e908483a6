package ddb_test

import (
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/storetest"
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
	ddbtest.Tables
}

// everywhere runs a test on dynoxide, and on the DynamoDB in memory that the
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
		Store: ddb.New(client, table, "test", storetest.Clock()), Data: ddbtest.NewDataPlane(client, table), Chain: "test",
		Fences: func(t *testing.T, id kek.ID, records bool) map[int]string {
			t.Helper()
			return fences(t, client, table, id, records)
		},
		Mark: func(t *testing.T, m kek.Mark) { // as package envelope writes it
			t.Helper()
			i := item{"pk": &s{Value: "MARK"}, "sk": &s{Value: m.Table}, "holder": &s{Value: m.Holder}}
			if !m.SeenAt.IsZero() {
				i["seen_at"] = &s{Value: m.SeenAt.Format("2006-01-02T15:04:05.000Z")}
			}
			put(t, client, table, i)
		},
	}
}

func fences(t *testing.T, client dynamo, table string, id kek.ID, records bool) map[int]string {
	t.Helper()
	pk := "FENCE#" + string(id)
	if records {
		pk = "DEK" + pk
	}
	out, err := client.Query(t.Context(), &dynamodb.QueryInput{
		TableName: &table, ConsistentRead: aws.Bool(true), KeyConditionExpression: aws.String("pk = :pk"),
		ExpressionAttributeValues: item{":pk": &s{Value: pk}},
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

// TestRegistryInMemory is the suite without a server, which takes a tenth of the time.
func TestRegistryInMemory(t *testing.T) {
	storetest.TestRegistry(t, func(t *testing.T) storetest.RegistryHarness { return newStore(t, memddb.New()) })
}

func TestRegistry(t *testing.T) { onStore(t, storetest.TestRegistry) }

func TestOutbox(t *testing.T) { onStore(t, storetest.TestOutbox) }

func TestCheckpoints(t *testing.T) { onStore(t, storetest.TestCheckpoints) }

func TestDrainage(t *testing.T) { onStore(t, storetest.TestDrainage) }

func TestArchive(t *testing.T) { onStore(t, storetest.TestArchive) }

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
