package localaws_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/matter-ops/kms-rotation/test/localaws"
)

// failure is what a failed function answers.
type failure struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
}

// answer is what testdata/echo answers.
type answer struct {
	PID         int      `json:"pid"`
	Calls       int      `json:"calls"`
	DeadlineMS  int64    `json:"deadline_ms"`
	ARN         string   `json:"arn"`
	Lock        string   `json:"lock"`
	Environment []string `json:"environment"`
}

func invoke(t *testing.T, s *localaws.Stack, payload string) *lambda.InvokeOutput {
	t.Helper()
	out, err := client(s).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("teststack-echo"), Payload: []byte(payload)})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// client is a Lambda client that does not retry.
func client(s *localaws.Stack) *lambda.Client {
	return lambda.NewFromConfig(s.AWSConfig(), func(o *lambda.Options) { o.RetryMaxAttempts = 1 })
}

func works(t *testing.T, s *localaws.Stack, payload string) answer {
	t.Helper()
	out := invoke(t, s, payload)
	if out.FunctionError != nil {
		t.Fatalf("the function failed: %s", out.Payload)
	}
	return decode[answer](t, out.Payload)
}

func fails(t *testing.T, s *localaws.Stack, payload string) failure {
	t.Helper()
	out := invoke(t, s, payload)
	if aws.ToString(out.FunctionError) != "Unhandled" {
		t.Fatalf("FunctionError %q: %s", aws.ToString(out.FunctionError), out.Payload)
	}
	return decode[failure](t, out.Payload)
}

func TestInvokeReusesProcess(t *testing.T) {
	s := stack(t)
	first := works(t, s, `{}`)
	second := works(t, s, `{}`)
	if second.PID != first.PID || second.Calls != first.Calls+1 {
		t.Errorf("%+v, then %+v", first, second)
	}
	if second.DeadlineMS < 500 || second.DeadlineMS > 1000 {
		t.Errorf("%d ms to the deadline, the timeout is 1 s", second.DeadlineMS)
	}
	if want := "arn:aws:lambda:eu-central-1:123456789012:function:teststack-echo"; second.ARN != want {
		t.Errorf("ARN %s, want %s", second.ARN, want)
	}
}

func TestInvokeAtOnce(t *testing.T) {
	s := stack(t)
	var wg sync.WaitGroup
	pids := make([]int, 4)
	for i := range pids {
		wg.Go(func() {
			out, err := client(s).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("teststack-echo"), Payload: []byte(`{"sleep_ms":300}`)})
			if err != nil || out.FunctionError != nil {
				t.Errorf("%v %s", err, out.Payload)
				return
			}
			pids[i] = decode[answer](t, out.Payload).PID
		})
	}
	wg.Wait()
	slices.Sort(pids)
	if len(slices.Compact(slices.Clone(pids))) != len(pids) {
		t.Errorf("concurrent invocations shared processes: %v", pids)
	}
}

// TestEnvironment holds the function's environment to what Lambda gives it.
func TestEnvironment(t *testing.T) {
	t.Setenv("MATTER_SECRET_OF_THE_TEST", "must not leak")
	s := stack(t)
	works(t, s, `{"sleep_ms":1}`)
	env := works(t, s, `{"environment":true}`).Environment
	for _, want := range []string{
		"AWS_ENDPOINT_URL=" + s.URL, "AWS_REGION=eu-central-1", "AWS_LAMBDA_FUNCTION_NAME=teststack-echo",
		"AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128", "_HANDLER=bootstrap",
		"MATTER_CONTROL_TABLE=" + s.Outputs["TableName"], "OTHER=teststack/eu-central-1",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	for _, kv := range env {
		if strings.Contains(kv, "must not leak") {
			t.Errorf("leaked: %s", kv)
		}
	}
}

func TestFunctionFailures(t *testing.T) {
	s := stack(t)
	t.Run("error", func(t *testing.T) {
		diff(t, "answer", fails(t, s, `{"error":"PointerConflict"}`), failure{"PointerConflict", "told to"})
	})
	t.Run("exit", func(t *testing.T) {
		f := fails(t, s, `{"exit":true}`)
		if f.Type != "Runtime.ExitError" || !strings.HasSuffix(f.Message, "Error: Runtime exited with error: exit status 3") {
			t.Errorf("%+v", f)
		}
	})
	t.Run("panic", func(t *testing.T) {
		diff(t, "answer", fails(t, s, `{"panic":true}`), failure{"string", "told to"})
	})
	t.Run("timeout", func(t *testing.T) {
		before := works(t, s, `{}`)
		f := fails(t, s, `{"sleep_ms":5000}`)
		if f.Type != "Sandbox.Timedout" || !strings.HasSuffix(f.Message, "Error: Task timed out after 1.00 seconds") {
			t.Errorf("%+v", f)
		}
		if after := works(t, s, `{}`); after.PID == before.PID {
			t.Error("the process lives on after its timeout")
		}
	})
	t.Run("log", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(shared.root, ".local", "logs", "echo.log"))
		if err != nil || !bytes.Contains(b, []byte("PointerConflict")) {
			t.Errorf("%v in %q", err, b)
		}
	})
}

func TestInvocationTypes(t *testing.T) {
	s := stack(t)
	for kind, want := range map[types.InvocationType]int32{types.InvocationTypeDryRun: 204, types.InvocationTypeEvent: 202} {
		out, err := client(s).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("teststack-echo"), InvocationType: kind})
		if err != nil || out.StatusCode != want {
			t.Errorf("%s: %d, %v, want %d", kind, out.StatusCode, err, want)
		}
	}
	_, err := client(s).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("nobody")})
	if got := code(err); got != "ResourceNotFoundException" {
		t.Errorf("unknown function: %v", err)
	}
	_, err = client(s).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("teststack-echo"), Payload: []byte(`{`)})
	if got := code(err); got != "InvalidRequestContentException" {
		t.Errorf("bad payload: %v", err)
	}
}
