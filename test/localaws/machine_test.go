package localaws_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/fault"
)

// execute runs the state machine to its end.
func execute(t *testing.T, s *localaws.Stack, input string) *sfn.DescribeExecutionOutput {
	t.Helper()
	return executeOf(t, s, s.StateMachineARN(), input)
}

func executeOf(t *testing.T, s *localaws.Stack, machine, input string) *sfn.DescribeExecutionOutput {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := sfn.NewFromConfig(s.AWSConfig())
	started, err := client.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: &machine, Input: aws.String(input)})
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := client.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: started.ExecutionArn})
		if err != nil {
			t.Fatal(err)
		}
		if e.Status != types.ExecutionStatusRunning {
			return e
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestMachineRunsFunctions has the state machine tell what the host answers: an
// answer, an error it catches, and a killed process that it retries.
func TestMachineRunsFunctions(t *testing.T) {
	s := stack(t)
	e := execute(t, s, `{}`)
	if e.Status != types.ExecutionStatusSucceeded || decode[answer](t, []byte(aws.ToString(e.Output))).PID == 0 {
		t.Errorf("plain: %s %s", e.Status, aws.ToString(e.Output))
	}
	e = execute(t, s, `{"error":"Refused"}`)
	if e.Status != types.ExecutionStatusSucceeded || aws.ToString(e.Output) != `{"caught": true}` {
		t.Errorf("caught: %s %s", e.Status, aws.ToString(e.Output))
	}
	e = execute(t, s, `{"error":"Unknown"}`)
	if e.Status != types.ExecutionStatusFailed || aws.ToString(e.Error) != "Unknown" {
		t.Errorf("failed: %s %s", e.Status, aws.ToString(e.Error))
	}
	s.ResetCalls()
	inject(t, s, fault.Fault{Service: "lambda", Operation: "Invoke", Function: "echo", Mode: fault.KillFunction})
	e = execute(t, s, `{}`)
	if n := count(s, "lambda", "Invoke", "echo"); e.Status != types.ExecutionStatusSucceeded || n != 2 {
		t.Errorf("killed once: %s after %d invocations", e.Status, n)
	}
}

const mapped = `{"StartAt": "Each", "States": {
  "Each": {"Type": "Map", "Label": "Each", "ItemsPath": "$.items", "MaxConcurrencyPath": "$.at_once",
    "ItemSelector": {"of.$": "$.of", "n.$": "$$.Map.Item.Value.n"},
    "ItemProcessor": {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, "StartAt": "Odd?", "States": {
      "Odd?": {"Type": "Choice", "Choices": [{"Variable": "$.n", "NumericEquals": 9, "Next": "Odd"}], "Default": "Even"},
      "Odd": {"Type": "Fail", "Error": "Odd", "Cause": "nine"},
      "Even": {"Type": "Succeed", "OutputPath": "$.n"}}},
    "ResultPath": "$.out", "Next": "End"},
  "End": {"Type": "Succeed", "OutputPath": "$.out"}}}`

// TestDistributedMap: each item of a distributed Map is an execution with an input and a
// history of its own, of which the parent has none, and one that fails fails the map run
// without telling why, as AWS documents it.
func TestDistributedMap(t *testing.T) {
	s := stack(t)
	client := sfn.NewFromConfig(s.AWSConfig())
	m, err := client.CreateStateMachine(t.Context(), &sfn.CreateStateMachineInput{
		Name: aws.String("mapped"), Definition: aws.String(mapped), RoleArn: aws.String("arn:aws:iam::123456789012:role/any"),
	})
	if err != nil {
		t.Fatal(err)
	}
	run := func(input string) (*sfn.DescribeExecutionOutput, string, map[types.ExecutionStatus]int) {
		e := executeOf(t, s, aws.ToString(m.StateMachineArn), input)
		h, err := client.GetExecutionHistory(t.Context(), &sfn.GetExecutionHistoryInput{ExecutionArn: e.ExecutionArn})
		if err != nil {
			t.Fatal(err)
		}
		arn, ends := "", map[types.ExecutionStatus]int{}
		for _, event := range h.Events {
			if d := event.MapRunStartedEventDetails; d != nil {
				arn = aws.ToString(d.MapRunArn)
			}
			if event.Type == types.HistoryEventTypeChoiceStateEntered {
				t.Error("the parent's history has what an item does")
			}
		}
		children, err := client.ListExecutions(t.Context(), &sfn.ListExecutionsInput{MapRunArn: &arn})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range children.Executions {
			d, err := client.DescribeExecution(t.Context(), &sfn.DescribeExecutionInput{ExecutionArn: c.ExecutionArn})
			if err != nil {
				t.Fatal(err)
			}
			if d.Status == types.ExecutionStatusFailed && (aws.ToString(d.Error) != "Odd" || aws.ToString(d.Input) != `{"of": "x", "n": 9}`) {
				t.Errorf("child of %s failed with %s", aws.ToString(d.Input), aws.ToString(d.Error))
			}
			ends[d.Status]++
		}
		return e, arn, ends
	}
	e, arn, ends := run(`{"of":"x","at_once":2,"items":[{"n":1},{"n":2},{"n":3}]}`)
	if e.Status != types.ExecutionStatusSucceeded || aws.ToString(e.Output) != "[1, 2, 3]" || ends[types.ExecutionStatusSucceeded] != 3 || !strings.Contains(arn, ":mapRun:mapped/Each:") {
		t.Errorf("%s %s, map run %s of %v", e.Status, aws.ToString(e.Output), arn, ends)
	}
	e, _, ends = run(`{"of":"x","at_once":1,"items":[{"n":1},{"n":9},{"n":3}]}`)
	if e.Status != types.ExecutionStatusFailed || aws.ToString(e.Error) != "States.ExceedToleratedFailureThreshold" ||
		ends[types.ExecutionStatusFailed] != 1 || ends[types.ExecutionStatusSucceeded] != 1 {
		t.Errorf("%s %s, children %v", e.Status, aws.ToString(e.Error), ends)
	}
}
