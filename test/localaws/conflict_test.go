package localaws

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// slowDynamo is a DynamoDB whose tables have the key pk. Each other call hands out the
// function that ends it.
type slowDynamo chan func()

func (s slowDynamo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if r.Header.Get("X-Amz-Target") == "DynamoDB_20120810.DescribeTable" {
		_, _ = w.Write([]byte(`{"Table":{"KeySchema":[{"AttributeName":"pk","KeyType":"HASH"}]}}`))
		return
	}
	ended := make(chan struct{})
	s <- func() { close(ended) }
	<-ended
	_, _ = w.Write([]byte(`{}`))
}

// TestTransactionConflicts: what is refused while another request for the item is under
// way (DynamoDB developer guide, "Transaction conflict handling in DynamoDB"), and that it
// is not once that is answered.
func TestTransactionConflicts(t *testing.T) {
	slow := make(slowDynamo)
	behind := httptest.NewServer(slow)
	defer behind.Close()
	p := &proxy{conflicts: conflicts{url: behind.URL}}
	var err error
	if p.dynamo, err = reverse(behind.URL); err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wire.Parse(r)
		if err != nil {
			t.Error(err)
		}
		p.serveDynamoDB(w, r, c)
	}))
	defer front.Close()
	client := dynamodb.New(dynamodb.Options{
		BaseEndpoint: aws.String(front.URL), Region: "eu-central-1", Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, "x", ""),
	})
	table := aws.String("orders")
	key := func(pk string) map[string]types.AttributeValue {
		return map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: pk}}
	}
	transact := func(ctx context.Context, writes ...types.TransactWriteItem) error {
		_, err := client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: writes})
		return err
	}
	check := func(pk string) types.TransactWriteItem {
		return types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{TableName: table, Key: key(pk), ConditionExpression: aws.String("attribute_exists(pk)")}}
	}
	calls := map[string]func(context.Context) error{
		"put": func(ctx context.Context) error {
			_, err := client.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: key("a")})
			return err
		},
		"update": func(ctx context.Context) error {
			_, err := client.UpdateItem(ctx, &dynamodb.UpdateItemInput{TableName: table, Key: key("a")})
			return err
		},
		"delete": func(ctx context.Context) error {
			_, err := client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: table, Key: key("a")})
			return err
		},
		"get": func(ctx context.Context) error {
			_, err := client.GetItem(ctx, &dynamodb.GetItemInput{TableName: table, Key: key("a")})
			return err
		},
		"transact": func(ctx context.Context) error { return transact(ctx, check("b"), check("a")) },
		"meets":    func(ctx context.Context) error { return transact(ctx, check("e"), check("a")) },
		"others":   func(ctx context.Context) error { return transact(ctx, check("c"), check("d")) },
		"read": func(ctx context.Context) error {
			_, err := client.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: []types.TransactGetItem{{Get: &types.Get{TableName: table, Key: key("a")}}}})
			return err
		},
	}
	const single, cancelled = "TransactionConflictException", "TransactionCanceledException"
	for first, refused := range map[string]map[string]string{
		"transact": {"put": single, "update": single, "delete": single, "transact": cancelled, "meets": cancelled, "read": cancelled},
		"put":      {"read": cancelled},
		"read":     {},
		"get":      {},
	} {
		done := make(chan error, 1)
		go func() { done <- calls[first](t.Context()) }()
		end := <-slow
		for second, call := range calls {
			answered := make(chan error, 1)
			go func() { answered <- call(t.Context()) }()
			var err error
			select {
			case end := <-slow: // it is not refused
				end()
				err = <-answered
			case err = <-answered:
			}
			var api smithy.APIError
			code := ""
			if errors.As(err, &api) {
				code = api.ErrorCode()
			}
			if code != refused[second] {
				t.Errorf("%s during %s: %v, want %q", second, first, err, refused[second])
			}
			var e *types.TransactionCanceledException
			if errors.As(err, &e) && second == "meets" {
				got := []string{aws.ToString(e.CancellationReasons[0].Code), aws.ToString(e.CancellationReasons[1].Code)}
				if d := cmp.Diff([]string{"None", conflictCode}, got); d != "" {
					t.Errorf("%s during %s: reasons (-want +got):\n%s", second, first, d)
				}
			}
		}
		end()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", first, err)
		}
	}
	if len(p.conflicts.transactions)+len(p.conflicts.writes) != 0 {
		t.Errorf("still held: %v, %v", p.conflicts.transactions, p.conflicts.writes)
	}
}
