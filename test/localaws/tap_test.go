package localaws_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/test/localaws/fault"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// TestTap counts up from many goroutines: what a tap is shown is in the order of the
// effects, whatever their callers got to see, and without what had none.
func TestTap(t *testing.T) {
	s := stack(t)
	cfg := s.ApplicationConfig()
	cfg.RetryMaxAttempts = 1
	client := dynamodb.NewFromConfig(cfg)
	key := map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: "tapped"}}
	var shown []wire.Exchange
	refused := errors.New("not ready")
	if err := s.Tap(func() error { return refused }, nil); !errors.Is(err, refused) {
		t.Errorf("a tap whose beginning failed: %v", err)
	}
	if err := s.Tap(func() error { return nil }, func(e wire.Exchange) { shown = append(shown, e) }); err != nil {
		t.Fatal(err)
	}
	inject(t, s, fault.Fault{Operation: "UpdateItem", Nth: 3, Times: 5, Mode: fault.DropResponse})
	inject(t, s, fault.Fault{Operation: "UpdateItem", Nth: 20, Times: 5, Mode: fault.Error})
	var wg sync.WaitGroup
	var answered atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 8 {
				_, err := client.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
					TableName: aws.String(s.Outputs["TableName"]), Key: key, UpdateExpression: aws.String("ADD n :one"),
					ExpressionAttributeValues: map[string]types.AttributeValue{":one": &types.AttributeValueMemberN{Value: "1"}},
					ReturnValues:              types.ReturnValueUpdatedNew,
				})
				if err == nil {
					answered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	count, err := strconv.Atoi(n(t, s, "tapped"))
	if err != nil {
		t.Fatal(err)
	}
	s.Untap()
	if _, err := client.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: aws.String(s.Outputs["TableName"]), Key: key}); err != nil {
		t.Fatal(err)
	}
	if len(shown) != count || int64(count) <= answered.Load() {
		t.Errorf("%d calls were shown, %d took effect, %d were answered", len(shown), count, answered.Load())
	}
	for i, e := range shown {
		var answer struct {
			Attributes struct{ N struct{ N string } }
		}
		if err := json.Unmarshal(e.Answer, &answer); err != nil {
			t.Fatal(err)
		}
		if e.Operation != "UpdateItem" || e.Caller != wire.Application || e.Status != 200 || answer.Attributes.N.N != strconv.Itoa(i+1) {
			t.Fatalf("call %d: %s, status %d, answer %s", i, e.Operation, e.Status, e.Answer)
		}
	}
}

// TestMatters: every operation matters but those that are listed with the reason.
func TestMatters(t *testing.T) {
	for _, c := range []wire.Call{
		{Service: "dynamodb", Operation: "TransactWriteItems"},
		{Service: "dynamodb", Operation: "ExecuteStatement"},
		{Service: "dynamodb", Operation: "Query"}, // a decision may rest on it
		{Service: "dynamodb", Operation: "Scan"},  // a pass is made of such
		{Service: "dynamodb", Operation: "GetUnheardOf"},
		{Service: "kms", Operation: "CreateKey"},
		{Service: "kms", Operation: "ScheduleKeyDeletion"},
		{Service: "kms", Operation: "GenerateDataKey"},
		{Service: "kms", Operation: "GenerateDataKeyWithoutPlaintext"},
		{Service: "kms", Operation: "ReEncrypt"},
		{Service: "kms", Operation: "Decrypt"},
		{Service: "s3", Operation: "PutObject"},
		{Service: "s3", Operation: "GetObject"},
		{Service: "s3", Operation: "ListObjectsV2"},
		{Service: "s3", Operation: "DeleteObjects"},
		{Service: "s3"},
	} {
		if !c.Matters() {
			t.Errorf("%s %s does not matter", c.Service, c.Operation)
		}
	}
	for _, op := range []string{"GetItem", "TransactGetItems", "BatchGetItem", "DescribeTable", "ListTables"} {
		if (wire.Call{Service: "dynamodb", Operation: op}).Matters() {
			t.Errorf("%s matters", op)
		}
	}
	if slices.ContainsFunc([]string{"sns", "states", "lambda"}, func(s string) bool { return (wire.Call{Service: s, Operation: "Put"}).Matters() }) {
		t.Error("a call of another service matters")
	}
}
