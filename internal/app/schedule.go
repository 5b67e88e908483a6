package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/executions"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Scheduler wires the schedule function, which reads the control table and starts rotations,
// drills and announcements that are due.
func Scheduler(ctx context.Context) (*rotation.Scheduler, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	s := WireScheduler(c, cfg, journal.LambdaActor+os.Getenv("AWS_LAMBDA_FUNCTION_NAME"))
	s.Journal.Meter = &meter{w: os.Stdout, stack: c.Stack, now: time.Now}
	return s, nil
}

// WireScheduler builds the scheduler on real adapters. It has no KMS client and no sources:
// the schedule cannot touch a key or a row.
func WireScheduler(c Config, cfg aws.Config, actor string) *rotation.Scheduler {
	store := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	j := &journal.Journal{Registry: store, Now: time.Now, Actor: actor}
	return &rotation.Scheduler{
		Journal: j, Gates: &gates.Gates{Rules: c.Rules, Journal: j, Announcements: store, Drills: store},
		Starter: &starter{sfn.NewFromConfig(cfg), lambda.NewFromConfig(cfg)},
	}
}

// starter implements [rotation.Starter].
type starter struct {
	machines  *sfn.Client
	functions *lambda.Client
}

// StartExecution implements [rotation.Starter].
func (s *starter) StartExecution(ctx context.Context, stateMachine, name string, in rotation.ExecutionInput) error {
	_, err := (&executions.Machine{API: s.machines, ARN: stateMachine}).Start(ctx, name, in)
	if errors.Is(err, executions.ErrTaken) {
		return nil
	}
	return err
}

// CallPreflight implements [rotation.Starter]. Lambda queues the event and retries it if the
// function fails (Lambda developer guide, "Asynchronous invocation").
func (s *starter) CallPreflight(ctx context.Context, function string, in rotation.PreflightInput) error {
	payload, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, err = s.functions.Invoke(ctx, &lambda.InvokeInput{FunctionName: &function, InvocationType: lambdatypes.InvocationTypeEvent, Payload: payload})
	if err != nil {
		return fmt.Errorf("invoke %s: %w", function, err)
	}
	return nil
}
