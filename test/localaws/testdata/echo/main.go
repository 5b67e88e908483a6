// Command echo is the function that the tests of the local AWS deploy. It does what
// its input says and answers with what it saw.
package main

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

type input struct {
	SleepMS int    `json:"sleep_ms"`
	Exit    bool   `json:"exit"`
	Panic   bool   `json:"panic"`
	Error   string `json:"error"`
	Put     string `json:"put"`         // puts an item of this pk, counting up n
	Aliases bool   `json:"aliases"`     // lists KMS aliases
	Key     string `json:"key"`         // describes a KMS key
	Get     string `json:"get"`         // gets an object, bucket/key
	Environ bool   `json:"environment"` // answers with the environment
}

type output struct {
	PID         int      `json:"pid"`
	Calls       int      `json:"calls"` // of this process
	DeadlineMS  int64    `json:"deadline_ms"`
	ARN         string   `json:"arn"`
	Lock        string   `json:"lock"` // of the object
	Environment []string `json:"environment,omitempty"`
}

var calls int

func handle(ctx context.Context, in input) (output, error) {
	calls++
	time.Sleep(time.Duration(in.SleepMS) * time.Millisecond)
	switch {
	case in.Exit:
		os.Exit(3)
	case in.Panic:
		panic("told to")
	case in.Error != "":
		return output{}, messages.InvokeResponse_Error{Type: in.Error, Message: "told to"}
	}
	out := output{PID: os.Getpid(), Calls: calls}
	if err := call(ctx, in, &out); err != nil {
		return output{}, messages.InvokeResponse_Error{Type: "CallFailed", Message: err.Error()}
	}
	if deadline, ok := ctx.Deadline(); ok {
		out.DeadlineMS = time.Until(deadline).Milliseconds()
	}
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		out.ARN = lc.InvokedFunctionArn
	}
	if in.Environ {
		out.Environment = os.Environ()
	}
	return out, nil
}

func call(ctx context.Context, in input, out *output) error {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRetryMaxAttempts(1))
	if err != nil {
		return err
	}
	if in.Put != "" {
		_, err := dynamodb.NewFromConfig(cfg).UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName:                 aws.String(os.Getenv("MATTER_CONTROL_TABLE")),
			Key:                       map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: in.Put}},
			UpdateExpression:          aws.String("ADD n :one"),
			ExpressionAttributeValues: map[string]types.AttributeValue{":one": &types.AttributeValueMemberN{Value: "1"}},
		})
		if err != nil {
			return err
		}
	}
	if in.Aliases {
		if _, err := kms.NewFromConfig(cfg).ListAliases(ctx, &kms.ListAliasesInput{}); err != nil {
			return err
		}
	}
	if in.Key != "" {
		if _, err := kms.NewFromConfig(cfg).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &in.Key}); err != nil {
			return err
		}
	}
	if bucket, key, ok := strings.Cut(in.Get, "/"); ok {
		got, err := s3.NewFromConfig(cfg).GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			return err
		}
		out.Lock = string(got.ObjectLockMode)
		return got.Body.Close()
	}
	return nil
}

func main() { lambda.Start(handle) }
