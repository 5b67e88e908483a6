package localaws_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/localaws"
)

func TestDeployed(t *testing.T) {
	s := stack(t)
	ctx, cfg := t.Context(), s.AWSConfig()

	f := s.Functions()
	if len(f) != 1 || f[0].Short != "echo" || f[0].Name != "teststack-echo" || f[0].Timeout.Seconds() != 1 || f[0].MemoryMB != 128 {
		t.Errorf("functions: %+v", f)
	}
	table, err := dynamodb.NewFromConfig(cfg).DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(s.Outputs["TableName"])})
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(table.Table.KeySchema[0].AttributeName); got != "pk" {
		t.Errorf("key of the table: %q", got)
	}
	bucket := aws.String(s.Outputs["BucketName"])
	lock, err := s3.NewFromConfig(cfg).GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	if r := lock.ObjectLockConfiguration.Rule.DefaultRetention; r.Mode != types.ObjectLockRetentionModeCompliance || aws.ToInt32(r.Days) != 3 {
		t.Errorf("default retention: %+v", r)
	}
	versioning, err := s3.NewFromConfig(cfg).GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bucket})
	if err != nil || versioning.Status != types.BucketVersioningStatusEnabled {
		t.Errorf("versioning: %v, %v", versioning, err)
	}
	schedule, err := scheduler.NewFromConfig(cfg).GetSchedule(ctx, &scheduler.GetScheduleInput{
		Name: aws.String("teststack-quarterly"), GroupName: aws.String("teststack"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(schedule.Target.Arn); got != s.StateMachineARN() || got == "" {
		t.Errorf("the schedule starts %q, the state machine is %q", got, s.StateMachineARN())
	}
	if got := alarm(t, s, "teststack-failed"); !strings.Contains(got, "<Threshold>3.0</Threshold>") || !strings.Contains(got, s.StateMachineARN()) {
		t.Errorf("alarm: %s", got)
	}
}

// alarm reads an alarm over the Query protocol, for want of CBOR in moto.
func alarm(t *testing.T, s *localaws.Stack, name string) string {
	t.Helper()
	form := url.Values{"Action": {"DescribeAlarms"}, "Version": {"2010-08-01"}, "AlarmNames.member.1": {name}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, body := do(t, signed(t, req, "monitoring", time.Now()))
	if status != http.StatusOK {
		t.Fatalf("DescribeAlarms: %d %s", status, body)
	}
	return string(body)
}

// signed signs a request as the operator, at a time.
func signed(t *testing.T, req *http.Request, service string, at time.Time) *http.Request {
	t.Helper()
	err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: localaws.AccessKey, SecretAccessKey: "local"},
		req, "UNSIGNED-PAYLOAD", service, "eu-central-1", at)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func do(t *testing.T, req *http.Request) (status int, body []byte) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// TestEnvIsSourced has a shell read the file.
func TestEnvIsSourced(t *testing.T) {
	s := stack(t)
	path := filepath.Join(t.TempDir(), "env")
	if err := s.WriteEnv(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".env-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	script := `. "$1"; printf '%s|%s|%s|%s' "$MATTER_NOTE" "$AWS_ENDPOINT_URL" "$MATTER_CONTROL_TABLE" "$MATTER_SOURCES ${MATTER_CORPUS-unset} ${OTHER-unset}"`
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "it's quoted|" + s.URL + "|" + s.Outputs["TableName"] + `|[{"table": "it is a list"}] unset unset`; string(out) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

func diff(t *testing.T, what string, got, want any, options ...cmp.Option) {
	t.Helper()
	if d := cmp.Diff(want, got, options...); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
