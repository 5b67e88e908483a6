package dynamodb_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

type (
	item = map[string]types.AttributeValue
	s    = types.AttributeValueMemberS
	n    = types.AttributeValueMemberN
	b    = types.AttributeValueMemberB
)

// dynamo is what the driver and its suites use of a DynamoDB.
type dynamo interface {
	dynamosource.API
	ddbtest.Tables
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error)
}

// everywhere runs a test on dynoxide, and on the DynamoDB in memory that the
// simulator uses, held to it call by call.
func everywhere(t *testing.T, f func(t *testing.T, client dynamo)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { f(t, ddbtest.NewTwin(t)) })
	t.Run("local", func(t *testing.T) { f(t, ddbtest.Client(t)) })
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
