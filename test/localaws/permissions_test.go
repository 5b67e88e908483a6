package localaws_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestRoleIsEnforced holds the function to testdata/template.yaml, and tells which
// permission is missing.
func TestRoleIsEnforced(t *testing.T) {
	s := stack(t)
	works(t, s, `{"put":"allowed-role"}`)
	for payload, says := range map[string]string{
		`{"put":"other"}`:   "teststack-echo is not authorized to perform: dynamodb:UpdateItem on resource: arn:aws:dynamodb:eu-central-1:123456789012:table/" + s.Outputs["TableName"],
		`{"aliases":true}`:  "kms:ListAliases on resource: * because no identity-based policy allows",
		`{"key":"alias/x"}`: "with an explicit deny in an identity-based policy: ",
	} {
		if f := fails(t, s, payload); !strings.Contains(f.Message, "AccessDeniedException") || !strings.Contains(f.Message, says) {
			t.Errorf("%s: %s, want %s", payload, f.Message, says)
		}
	}
	diff(t, "effect", n(t, s, "other"), "0")
}

// TestObjectReads: what an answer says of an object takes permissions of its own.
func TestObjectReads(t *testing.T) {
	s := stack(t)
	objects, bucket := s3.NewFromConfig(s.AWSConfig()), s.Outputs["BucketName"]
	for _, key := range []string{"shown/x", "hidden/x"} {
		if _, err := objects.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")}); err != nil {
			t.Fatal(err)
		}
	}
	diff(t, "lock with GetObjectRetention", works(t, s, `{"get":"`+bucket+`/shown/x"}`).Lock, "COMPLIANCE")
	diff(t, "lock without", works(t, s, `{"get":"`+bucket+`/hidden/x"}`).Lock, "")
	if f := fails(t, s, `{"get":"`+bucket+`/absent"}`); !strings.Contains(f.Message, "StatusCode: 403") || !strings.Contains(f.Message, "AccessDenied") {
		t.Errorf("absent without ListBucket: %s", f.Message)
	}
	_, err := objects.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("absent")})
	diff(t, "absent for the operator", code(err), "NoSuchKey")
}

// TestBucketPolicyDenies holds the operator to it too.
func TestBucketPolicyDenies(t *testing.T) {
	s := stack(t)
	objects := s3.NewFromConfig(s.AWSConfig())
	put := func(change func(*s3.PutObjectInput)) string {
		in := &s3.PutObjectInput{Bucket: aws.String(s.Outputs["BucketName"]), Key: aws.String("once/x"), Body: strings.NewReader("x")}
		change(in)
		_, err := objects.PutObject(t.Context(), in)
		if err != nil && !strings.Contains(err.Error(), "BucketPolicy/") {
			t.Errorf("the statement is not named: %v", err)
		}
		return code(err)
	}
	once := func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") }
	lock := func(d time.Duration) func(*s3.PutObjectInput) {
		return func(in *s3.PutObjectInput) {
			once(in)
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, aws.Time(time.Now().Add(d))
		}
	}
	diff(t, "without If-None-Match", put(func(*s3.PutObjectInput) {}), "AccessDenied")
	diff(t, "locked for two days", put(lock(49*time.Hour)), "AccessDenied")
	diff(t, "locked for three days", put(lock(73*time.Hour)), "")
}

// keyPolicy is a policy that lets the account's IAM policies grant some actions.
func keyPolicy(actions ...string) *string {
	return aws.String(`{"Version":"2012-10-17","Statement":[{"Sid":"some","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},` +
		`"Action":["kms:` + strings.Join(actions, `","kms:`) + `"],"Resource":"*"}]}`)
}

// TestKeyPolicyHolds: what a key's policy leaves out the operator may not do either,
// until the policy is changed.
func TestKeyPolicyHolds(t *testing.T) {
	s := stack(t)
	keys := kms.NewFromConfig(s.AWSConfig())
	made, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: keyPolicy("DescribeKey", "PutKeyPolicy")})
	if err != nil {
		t.Fatal(err)
	}
	id := made.KeyMetadata.KeyId
	if _, err := keys.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: id}); err != nil {
		t.Error(err)
	}
	destroy := func() error {
		_, err := keys.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: id})
		return err
	}
	if err := destroy(); code(err) != "AccessDeniedException" || !strings.Contains(err.Error(), "no resource-based policy allows the kms:ScheduleKeyDeletion action") {
		t.Errorf("to destroy it: %v", err)
	}
	_, err = keys.PutKeyPolicy(t.Context(), &kms.PutKeyPolicyInput{KeyId: id, PolicyName: aws.String("default"), Policy: keyPolicy("PutKeyPolicy", "ScheduleKeyDeletion")})
	if err != nil {
		t.Fatal(err)
	}
	if err := destroy(); err != nil {
		t.Errorf("under the new policy: %v", err)
	}
}

// TestLockoutSafetyCheck: a key whose policy the caller could not change is made only if
// the check is bypassed.
func TestLockoutSafetyCheck(t *testing.T) {
	keys := kms.NewFromConfig(stack(t).AWSConfig())
	for _, bypass := range []bool{false, true} {
		_, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: keyPolicy("DescribeKey"), BypassPolicyLockoutSafetyCheck: bypass})
		diff(t, "code", code(err), map[bool]string{false: "MalformedPolicyDocumentException"}[bypass])
	}
}
