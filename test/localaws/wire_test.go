package localaws_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/test/localaws"
)

func invocation(payload string) *lambda.InvokeInput {
	return &lambda.InvokeInput{FunctionName: aws.String("teststack-echo"), Payload: []byte(payload)}
}

func control(t *testing.T, s *localaws.Stack, method, path, body string) (status int, answer []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req)
}

// count returns how often a call was made.
func count(s *localaws.Stack, service, operation, function string) int {
	for _, c := range s.Calls() {
		if c.Service == service && c.Operation == operation && c.Function == function {
			return c.Count
		}
	}
	return 0
}

// TestCalls makes a call per protocol and has the SDK's clients name them.
func TestCalls(t *testing.T) {
	s := stack(t)
	ctx, cfg := t.Context(), s.AWSConfig()
	bucket, key := aws.String(s.Outputs["BucketName"]), aws.String("calls")
	objects := s3.NewFromConfig(cfg)
	put := func(context string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", context, err)
		}
	}
	_, err := objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256})
	put("PutObject", err)
	_, err = objects.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key})
	put("HeadObject", err)
	_, err = objects.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket})
	put("ListObjectsV2", err)
	_, err = objects.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: bucket})
	put("ListObjectVersions", err)
	_, err = objects.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: bucket, Key: key})
	put("GetObjectRetention", err)
	_, err = objects.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: bucket})
	put("GetObjectLockConfiguration", err)
	_, err = sfn.NewFromConfig(cfg).ListExecutions(ctx, &sfn.ListExecutionsInput{StateMachineArn: aws.String(s.StateMachineARN())})
	put("ListExecutions", err)
	_, err = resourcegroupstaggingapi.NewFromConfig(cfg).GetResources(ctx, &resourcegroupstaggingapi.GetResourcesInput{})
	put("GetResources", err)
	_, err = sns.NewFromConfig(cfg).ListTopics(ctx, &sns.ListTopicsInput{})
	put("ListTopics", err)
	works(t, s, `{"put":"allowed-counted"}`)
	works(t, s, `{"put":"allowed-counted"}`)
	want := []localaws.CallCount{
		{"dynamodb", "UpdateItem", "echo", 2},
		{"lambda", "Invoke", "echo", 2},
		{"s3", "GetObjectLockConfiguration", "", 1},
		{"s3", "GetObjectRetention", "", 1},
		{"s3", "HeadObject", "", 1},
		{"s3", "ListObjectVersions", "", 1},
		{"s3", "ListObjectsV2", "", 1},
		{"s3", "PutObject", "", 1},
		{"sns", "ListTopics", "", 1},
		{"states", "ListExecutions", "", 1},
		{"tagging", "GetResources", "", 1},
	}
	_, answer := control(t, s, http.MethodGet, "/_local/calls", "")
	diff(t, "calls", decode[[]localaws.CallCount](t, answer), want)
	if status, _ := control(t, s, http.MethodDelete, "/_local/calls", ""); status != http.StatusNoContent || len(s.Calls()) != 0 {
		t.Errorf("reset: %d, left %v", status, s.Calls())
	}
}

// TestSignatureAge signs at other times than now.
func TestSignatureAge(t *testing.T) {
	s := stack(t)
	send := func(service, target string, at time.Time) (int, string) {
		method, path := http.MethodPost, "/"
		if service == "s3" {
			method, path = http.MethodGet, "/"+s.Outputs["BucketName"]
		}
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if target != "" {
			req.Header.Set("X-Amz-Target", target)
			req.Header.Set("Content-Type", "application/x-amz-json-1.0")
		}
		if !at.IsZero() {
			req = signed(t, req, service, at)
		}
		status, body := do(t, req)
		return status, string(body)
	}
	now := time.Now()
	for _, c := range []struct {
		service, target string
		at              time.Time
		status          int
		says            string
	}{
		{"dynamodb", "DynamoDB_20120810.ListTables", now, 200, "TableNames"},
		{"dynamodb", "DynamoDB_20120810.ListTables", now.Add(-4 * time.Minute), 200, "TableNames"},
		{"dynamodb", "DynamoDB_20120810.ListTables", now.Add(-6 * time.Minute), 400, "InvalidSignatureException"},
		{"dynamodb", "DynamoDB_20120810.ListTables", now.Add(6 * time.Minute), 400, "Signature not yet current"},
		{"kms", "TrentService.ListAliases", now.Add(-6 * time.Minute), 400, "InvalidSignatureException"},
		{"s3", "", now.Add(-14 * time.Minute), 200, "ListBucketResult"},
		{"s3", "", now.Add(-16 * time.Minute), 403, "<Code>RequestTimeTooSkewed</Code>"},
		{"kms", "TrentService.ListAliases", time.Time{}, 403, "MissingAuthenticationToken"},
		{"s3", "", time.Time{}, 403, "<Code>AccessDenied</Code>"},
	} {
		status, body := send(c.service, c.target, c.at)
		if status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s signed %s: %d %s, want %d %s", c.service, time.Since(c.at), status, body, c.status, c.says)
		}
	}
}

func TestPresigned(t *testing.T) {
	s := stack(t)
	objects := s3.NewFromConfig(s.AWSConfig())
	bucket, key := aws.String(s.Outputs["BucketName"]), aws.String("presigned")
	if _, err := objects.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x")}); err != nil {
		t.Fatal(err)
	}
	url, err := s3.NewPresignClient(objects).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: key}, s3.WithPresignExpires(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	get := func() int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		status, _ := do(t, req)
		return status
	}
	if status := get(); status != http.StatusOK {
		t.Errorf("at once: %d", status)
	}
	time.Sleep(2100 * time.Millisecond)
	if status := get(); status != http.StatusForbidden {
		t.Errorf("after it expired: %d", status)
	}
}

// TestOneWinner has eight race for what AWS gives to one.
func TestOneWinner(t *testing.T) {
	s := stack(t)
	ctx, cfg := t.Context(), s.AWSConfig()
	bucket, objects, keys := aws.String(s.Outputs["BucketName"]), s3.NewFromConfig(cfg), kms.NewFromConfig(cfg)
	made, err := keys.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		key := aws.String(fmt.Sprintf("race-%d", round))
		first, err := objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String(*key + "-match"), Body: strings.NewReader("0")})
		if err != nil {
			t.Fatal(err)
		}
		races := map[string]func(i int) error{
			"If-None-Match": func(i int) error {
				_, err := objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader(fmt.Sprint(i)), IfNoneMatch: aws.String("*")})
				return err
			},
			"If-Match": func(i int) error {
				_, err := objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String(*key + "-match"), Body: strings.NewReader(fmt.Sprint(1 + i)), IfMatch: first.ETag})
				return err
			},
			"CreateAlias": func(int) error {
				_, err := keys.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/" + *key), TargetKeyId: made.KeyMetadata.KeyId})
				return err
			},
		}
		for name, try := range races {
			if won := race(try); won != 1 {
				t.Errorf("%s, round %d: %d winners", name, round, won)
			}
		}
	}
}

// race has eight try at once and counts who succeeded.
func race(try func(i int) error) int64 {
	var won atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range 8 {
		wg.Go(func() {
			<-start
			if try(i) == nil {
				won.Add(1)
			}
		})
	}
	close(start)
	wg.Wait()
	return won.Load()
}

// TestObjectLock holds the bucket to COMPLIANCE.
func TestObjectLock(t *testing.T) {
	s := stack(t)
	ctx, objects := t.Context(), s3.NewFromConfig(s.AWSConfig())
	bucket, key := aws.String(s.Outputs["BucketName"]), aws.String("locked")
	until := time.Now().Add(48 * time.Hour).UTC().Truncate(time.Second)
	put, err := objects.PutObject(ctx, &s3.PutObjectInput{
		Bucket: bucket, Key: key, Body: strings.NewReader("first"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: &until,
	})
	if err != nil {
		t.Fatal(err)
	}
	retain := func(mode types.ObjectLockRetentionMode, until time.Time) error {
		_, err := objects.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
			Bucket: bucket, Key: key, BypassGovernanceRetention: aws.Bool(true),
			Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: &until},
		})
		return err
	}
	if err := retain(types.ObjectLockRetentionModeCompliance, until.Add(-time.Hour)); code(err) != "AccessDenied" {
		t.Errorf("shortened: %v", err)
	}
	if err := retain(types.ObjectLockRetentionModeGovernance, until.Add(time.Hour)); code(err) != "AccessDenied" {
		t.Errorf("weakened: %v", err)
	}
	if err := retain(types.ObjectLockRetentionModeCompliance, until.Add(time.Hour)); err != nil {
		t.Errorf("extended: %v", err)
	}
	held, err := objects.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	diff(t, "retention", *held.Retention, types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(until.Add(time.Hour))},
		cmpopts.IgnoreUnexported(types.ObjectLockRetention{}))
	_, err = objects.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: put.VersionId, BypassGovernanceRetention: aws.Bool(true)})
	if code(err) != "AccessDenied" {
		t.Errorf("deleted: %v", err)
	}
	// A delete marker hides the record, and then it may be written again, as on AWS.
	if _, err = objects.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key}); err != nil {
		t.Errorf("marked: %v", err)
	}
	if _, err = objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("again"), IfMatch: put.ETag}); code(err) != "NoSuchKey" {
		t.Errorf("If-Match over the marker: %v", err)
	}
	if _, err = objects.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("second"), IfNoneMatch: aws.String("*")}); err != nil {
		t.Errorf("If-None-Match over the marker: %v", err)
	}
	old, err := objects.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key, VersionId: put.VersionId})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(old.Body)
	if err := errors.Join(err, old.Body.Close()); err != nil || string(body) != "first" {
		t.Errorf("first version: %q, %v", body, err)
	}
}

// TestDynamoDBIsAtomic counts up from eight sides.
func TestDynamoDBIsAtomic(t *testing.T) {
	s := stack(t)
	won := race(func(int) error {
		_, err := client(s).Invoke(t.Context(), invocation(`{"put":"allowed-race"}`))
		return err
	})
	diff(t, "acknowledged", won, int64(8))
	diff(t, "counted", n(t, s, "allowed-race"), "8")
	if _, err := dynamodb.NewFromConfig(s.AWSConfig()).DescribeTable(t.Context(), &dynamodb.DescribeTableInput{TableName: aws.String("moto-only")}); code(err) != "ResourceNotFoundException" {
		t.Errorf("unknown table: %v", err)
	}
}
