package localaws_test

import (
	"context"
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
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := sfn.NewFromConfig(s.AWSConfig())
	started, err := client.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: aws.String(s.StateMachineARN()), Input: aws.String(input)})
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
