package localaws_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/localaws/fault"
)

func inject(t *testing.T, s *localaws.Stack, f fault.Fault) fault.Fault {
	t.Helper()
	f, err := s.AddFault(f)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fired returns how often the one fault in force has fired.
func fired(t *testing.T, s *localaws.Stack) int {
	t.Helper()
	faults := s.Faults()
	if len(faults) != 1 {
		t.Fatalf("faults: %+v", faults)
	}
	return faults[0].Fired
}

// code returns the code of a service's error, "" for none.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return ""
}

// n reads the counter that testdata/echo counts up, or 0.
func n(t *testing.T, s *localaws.Stack, pk string) string {
	t.Helper()
	out, err := dynamodb.NewFromConfig(s.AWSConfig()).GetItem(t.Context(), &dynamodb.GetItemInput{
		TableName: aws.String(s.Outputs["TableName"]), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: pk}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := out.Item["n"].(*types.AttributeValueMemberN); ok {
		return v.Value
	}
	return "0"
}

// TestThrottle holds each protocol to its own words, and the SDK to understanding
// them: it would retry, and is told not to.
func TestThrottle(t *testing.T) {
	s := stack(t)
	cfg := s.AWSConfig()
	cfg.RetryMaxAttempts = 1
	ctx := t.Context()
	calls := map[string]struct {
		call func() error
		want string
	}{
		"dynamodb": {func() error {
			_, err := dynamodb.NewFromConfig(cfg).ListTables(ctx, &dynamodb.ListTablesInput{})
			return err
		}, "ProvisionedThroughputExceededException"},
		"kms": {func() error { _, err := kms.NewFromConfig(cfg).ListAliases(ctx, &kms.ListAliasesInput{}); return err }, "ThrottlingException"},
		"s3":  {func() error { _, err := s3.NewFromConfig(cfg).ListBuckets(ctx, &s3.ListBucketsInput{}); return err }, "SlowDown"},
		"sns": {func() error { _, err := sns.NewFromConfig(cfg).ListTopics(ctx, &sns.ListTopicsInput{}); return err }, "Throttling"},
	}
	for service, c := range calls {
		t.Run(service, func(t *testing.T) {
			s.ClearFaults()
			inject(t, s, fault.Fault{Service: service, Mode: fault.Throttle, Nth: 2})
			if err := c.call(); err != nil {
				t.Errorf("first: %v", err)
			}
			if err := c.call(); code(err) != c.want {
				t.Errorf("second: %v, want %s", err, c.want)
			}
			if err := c.call(); err != nil {
				t.Errorf("third: %v", err)
			}
			if got := fired(t, s); got != 1 {
				t.Errorf("fired %d times", got)
			}
		})
	}
}

func TestErrorFault(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Service: "s3", Operation: "ListBuckets", Mode: fault.Error})
	_, err := s3.NewFromConfig(s.AWSConfig()).ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if code(err) != fault.DefaultCode {
		t.Errorf("S3: %v", err)
	}
	inject(t, s, fault.Fault{Service: "kms", Mode: fault.Error, ErrorCode: "KMSInvalidStateException", Status: 400})
	_, err = kms.NewFromConfig(s.AWSConfig()).ListAliases(t.Context(), &kms.ListAliasesInput{})
	if code(err) != "KMSInvalidStateException" {
		t.Errorf("KMS: %v", err)
	}
}

// TestErrorAfterEffect, and the tests after it, look on which side of the effect a
// fault was.
func TestErrorAfterEffect(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Service: "dynamodb", Operation: "UpdateItem", Mode: fault.Error, When: fault.After, ErrorCode: "InternalServerError", Status: 500})
	if f := fails(t, s, `{"put":"allowed-after"}`); f.Type != "CallFailed" || !strings.Contains(f.Message, "InternalServerError") {
		t.Errorf("%+v", f)
	}
	diff(t, "effect", n(t, s, "allowed-after"), "1")
}

func TestDropResponse(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Service: "dynamodb", Operation: "UpdateItem", Function: "echo", Mode: fault.DropResponse})
	if f := fails(t, s, `{"put":"allowed-dropped"}`); f.Type != "CallFailed" || !strings.Contains(f.Message, "EOF") {
		t.Errorf("%+v", f)
	}
	diff(t, "effect", n(t, s, "allowed-dropped"), "1")
}

func TestDelay(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Service: "dynamodb", Operation: "UpdateItem", Mode: fault.Delay, DelayMS: 300})
	start := time.Now()
	works(t, s, `{"put":"allowed-delayed"}`)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("took %s", took)
	}
}

func TestKillCaller(t *testing.T) {
	for when, want := range map[fault.When]string{fault.Before: "0", fault.After: "1"} {
		t.Run(string(when), func(t *testing.T) {
			s := stack(t)
			first := works(t, s, `{}`)
			inject(t, s, fault.Fault{Service: "dynamodb", Operation: "UpdateItem", Mode: fault.KillFunction, When: when})
			pk := "allowed-killed-" + string(when)
			f := fails(t, s, `{"put":"`+pk+`"}`)
			if f.Type != "Runtime.ExitError" || !strings.HasSuffix(f.Message, "signal: killed") {
				t.Errorf("%+v", f)
			}
			diff(t, "effect", n(t, s, pk), want)
			if second := works(t, s, `{}`); second.PID == first.PID {
				t.Error("the process lives on")
			}
		})
	}
}

func TestKillCalled(t *testing.T) {
	for when, want := range map[fault.When]string{fault.Before: "0", fault.After: "1"} {
		t.Run(string(when), func(t *testing.T) {
			s := stack(t)
			inject(t, s, fault.Fault{Service: "lambda", Operation: "Invoke", Function: "echo", Mode: fault.KillFunction, When: when})
			pk := "allowed-called-" + string(when)
			if f := fails(t, s, `{"put":"`+pk+`"}`); f.Type != "Runtime.ExitError" {
				t.Errorf("%+v", f)
			}
			diff(t, "effect", n(t, s, pk), want)
			if got := fired(t, s); got != 1 {
				t.Errorf("fired %d times", got)
			}
		})
	}
}

func TestInvokeFaults(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Service: "lambda", Operation: "Invoke", Function: "echo", Mode: fault.Error, ErrorCode: "Transient"})
	if f := fails(t, s, `{}`); f.Type != "Transient" {
		t.Errorf("%+v", f)
	}
	inject(t, s, fault.Fault{Service: "lambda", Mode: fault.Throttle})
	_, err := client(s).Invoke(t.Context(), invocation(`{}`))
	if code(err) != "TooManyRequestsException" {
		t.Errorf("throttled: %v", err)
	}
	s.ClearFaults()
	inject(t, s, fault.Fault{Service: "lambda", Mode: fault.DropResponse})
	if _, err := client(s).Invoke(t.Context(), invocation(`{"put":"allowed-unheard"}`)); err == nil || code(err) != "" {
		t.Errorf("dropped: %v", err)
	}
	diff(t, "effect", n(t, s, "allowed-unheard"), "1")
}

// TestOthersAreNotKilled has the operator call what only a function dies of.
func TestOthersAreNotKilled(t *testing.T) {
	s := stack(t)
	inject(t, s, fault.Fault{Mode: fault.KillFunction})
	if _, err := kms.NewFromConfig(s.AWSConfig()).ListAliases(t.Context(), &kms.ListAliasesInput{}); err != nil {
		t.Error(err)
	}
	if got := fired(t, s); got != 0 {
		t.Errorf("fired %d times", got)
	}
}

func TestFaultsOverHTTP(t *testing.T) {
	s := stack(t)
	for body, field := range map[string]string{
		`{"mode":"explode"}`: "mode",
		`{}`:                 "mode",
		`{"mode":"throttle","operatoin":"GetItem"}`:   "operatoin",
		`{"mode":"throttle","nth":"first"}`:           "nth",
		`{"mode":"throttle","nth":-1}`:                "nth",
		`{"mode":"throttle","times":-1}`:              "times",
		`{"mode":"throttle","when":"after"}`:          "when",
		`{"mode":"error","when":"later"}`:             "when",
		`{"mode":"delay"}`:                            "delay_ms",
		`{"mode":"throttle","delay_ms":5}`:            "delay_ms",
		`{"mode":"throttle","error_code":"Internal"}`: "error_code",
		`{"mode":"error","status":200}`:               "status",
		`{"mode":"throttle","fired":1}`:               "fired",
		`{"mode":"throttle"} {}`:                      "",
		`[]`:                                          "",
	} {
		status, answer := control(t, s, http.MethodPost, "/_local/faults", body)
		got := decode[map[string]string](t, answer)
		if status != http.StatusBadRequest || got["field"] != field || got["error"] == "" {
			t.Errorf("%s: %d %s, want field %q", body, status, answer, field)
		}
	}
	status, answer := control(t, s, http.MethodPost, "/_local/faults", `{"service":"kms","mode":"throttle"}`)
	added := decode[fault.Fault](t, answer)
	if status != http.StatusCreated || added.ID == "" || added.Nth != 1 || added.Times != 1 {
		t.Errorf("added: %d %s", status, answer)
	}
	if _, err := kms.NewFromConfig(s.AWSConfig()).ListAliases(t.Context(), &kms.ListAliasesInput{}); err != nil {
		t.Errorf("the SDK's retry after one throttled call: %v", err)
	}
	_, answer = control(t, s, http.MethodGet, "/_local/faults", "")
	added.Seen, added.Fired = 2, 1
	diff(t, "faults", decode[[]fault.Fault](t, answer), []fault.Fault{added})
	if status, _ := control(t, s, http.MethodDelete, "/_local/faults", ""); status != http.StatusNoContent || len(s.Faults()) != 0 {
		t.Errorf("cleared: %d, left %v", status, s.Faults())
	}
}
