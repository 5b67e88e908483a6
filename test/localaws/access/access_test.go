package access_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/scheduler"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/localaws/access"
	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// fixed resolves to one table's key and to keys by their ids.
type fixed struct{}

func (fixed) HashKey(context.Context, string) (string, error) { return "pk", nil }

func (fixed) Key(_ context.Context, id string) (access.Key, error) {
	return access.Key{ARN: "arn:aws:kms:r:1:key/" + strings.TrimPrefix(id, "alias/"), Tags: map[string]string{"matter:stack": "s"}, Aliases: []string{"alias/a"}}, nil
}

// recorded has an SDK client make a call and returns the accesses it takes, with the
// context keys of all calls left out.
func recorded(t *testing.T, call func(aws.Config) error) []iam.Access {
	t.Helper()
	now := time.Now()
	var out []iam.Access
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wire.Parse(r)
		if err != nil {
			t.Error(err)
		}
		out, err = access.Reader{Resolver: fixed{}, Region: "r", Account: "1", Now: func() time.Time { return now }}.Of(r, c)
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusTeapot)
	}))
	defer server.Close()
	_ = call(aws.Config{ // the answer is an error; the request is what is looked at
		Region: "r", BaseEndpoint: aws.String(server.URL), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("id", "secret", ""),
	})
	for _, a := range out {
		for _, k := range []string{"aws:securetransport", "aws:requestedregion", "aws:principalaccount"} {
			if len(a.Context[k]) != 1 {
				t.Errorf("%s: %s = %v", a.Action, k, a.Context[k])
			}
			delete(a.Context, k)
		}
	}
	slices.SortStableFunc(out, func(a, b iam.Access) int { return strings.Compare(a.Action+" "+a.Resource, b.Action+" "+b.Resource) })
	return out
}

func s(v string) ddbtypes.AttributeValue { return &ddbtypes.AttributeValueMemberS{Value: v} }

func TestDynamoDB(t *testing.T) {
	const table = "arn:aws:dynamodb:r:1:table/T"
	leads := func(v ...string) map[string][]string { return map[string][]string{"dynamodb:leadingkeys": v} }
	key := map[string]ddbtypes.AttributeValue{"pk": s("LOCK"), "sk": s("-")}
	for name, c := range map[string]struct {
		call func(*dynamodb.Client) error
		want []iam.Access
	}{
		"GetItem": {func(c *dynamodb.Client) error {
			_, err := c.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: aws.String("T"), Key: key})
			return err
		}, []iam.Access{{Action: "dynamodb:GetItem", Resource: table, Context: leads("LOCK")}}},
		"PutItem": {func(c *dynamodb.Client) error {
			_, err := c.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String("T"), Item: key})
			return err
		}, []iam.Access{{Action: "dynamodb:PutItem", Resource: table, Context: leads("LOCK")}}},
		"Query": {func(c *dynamodb.Client) error {
			_, err := c.Query(t.Context(), &dynamodb.QueryInput{
				TableName: aws.String("T"), KeyConditionExpression: aws.String("(#a = :a) AND begins_with(sk, :b)"),
				ExpressionAttributeNames:  map[string]string{"#a": "pk"},
				ExpressionAttributeValues: map[string]ddbtypes.AttributeValue{":a": s("AUDIT"), ":b": s("0")},
			})
			return err
		}, []iam.Access{{Action: "dynamodb:Query", Resource: table, Context: leads("AUDIT")}}},
		"Scan": {func(c *dynamodb.Client) error {
			_, err := c.Scan(t.Context(), &dynamodb.ScanInput{TableName: aws.String("T")})
			return err
		}, []iam.Access{{Action: "dynamodb:Scan", Resource: table, Context: map[string][]string{}}}},
		"TransactWriteItems": {func(c *dynamodb.Client) error {
			_, err := c.TransactWriteItems(t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: []ddbtypes.TransactWriteItem{
				{Put: &ddbtypes.Put{TableName: aws.String("T"), Item: map[string]ddbtypes.AttributeValue{"pk": s("A")}}},
				{Update: &ddbtypes.Update{TableName: aws.String("T"), Key: map[string]ddbtypes.AttributeValue{"pk": s("B")}, UpdateExpression: aws.String("SET x = :x")}},
				{Delete: &ddbtypes.Delete{TableName: aws.String("T"), Key: map[string]ddbtypes.AttributeValue{"pk": s("C")}}},
				{ConditionCheck: &ddbtypes.ConditionCheck{TableName: aws.String("T"), Key: key, ConditionExpression: aws.String("x = :x")}},
			}})
			return err
		}, []iam.Access{
			{Action: "dynamodb:ConditionCheckItem", Resource: table, Context: leads("LOCK")},
			{Action: "dynamodb:DeleteItem", Resource: table, Context: leads("C")},
			{Action: "dynamodb:PutItem", Resource: table, Context: leads("A")},
			{Action: "dynamodb:UpdateItem", Resource: table, Context: map[string][]string{"dynamodb:leadingkeys": {"B"}, "dynamodb:attributes": {"pk"}}},
		}},
		"both readings of a transaction": {func(c *dynamodb.Client) error {
			put := func(pk string) ddbtypes.TransactWriteItem {
				return ddbtypes.TransactWriteItem{Put: &ddbtypes.Put{TableName: aws.String("T"), Item: map[string]ddbtypes.AttributeValue{"pk": s(pk)}}}
			}
			_, err := c.TransactWriteItems(t.Context(), &dynamodb.TransactWriteItemsInput{TransactItems: []ddbtypes.TransactWriteItem{put("A"), put("B")}})
			return err
		}, []iam.Access{
			{Action: "dynamodb:PutItem", Resource: table, Context: leads("A")},
			{Action: "dynamodb:PutItem", Resource: table, Context: leads("B")},
			{Action: "dynamodb:PutItem", Resource: table, Context: leads("A", "B")},
		}},
		"TransactGetItems": {func(c *dynamodb.Client) error {
			_, err := c.TransactGetItems(t.Context(), &dynamodb.TransactGetItemsInput{TransactItems: []ddbtypes.TransactGetItem{
				{Get: &ddbtypes.Get{TableName: aws.String("T"), Key: key}},
			}})
			return err
		}, []iam.Access{{Action: "dynamodb:GetItem", Resource: table, Context: leads("LOCK")}}},
		"BatchWriteItem": {func(c *dynamodb.Client) error {
			_, err := c.BatchWriteItem(t.Context(), &dynamodb.BatchWriteItemInput{RequestItems: map[string][]ddbtypes.WriteRequest{"T": {
				{PutRequest: &ddbtypes.PutRequest{Item: map[string]ddbtypes.AttributeValue{"pk": s("A")}}},
				{DeleteRequest: &ddbtypes.DeleteRequest{Key: key}},
			}}})
			return err
		}, []iam.Access{{Action: "dynamodb:BatchWriteItem", Resource: table, Context: leads("A", "LOCK")}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := recorded(t, func(cfg aws.Config) error { return c.call(dynamodb.NewFromConfig(cfg)) })
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestKMS(t *testing.T) {
	tagged := func(more map[string][]string) map[string][]string {
		out := map[string][]string{"aws:resourcetag/matter:stack": {"s"}, "kms:resourcealiases": {"alias/a"}}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	encctx := map[string][]string{"kms:encryptioncontext:row": {"7"}, "kms:encryptioncontextkeys": {"row"}}
	request := map[string][]string{"aws:requesttag/matter:stack": {"s"}, "aws:tagkeys": {"matter:stack"}}
	for name, c := range map[string]struct {
		call func(*kms.Client) error
		want []iam.Access
	}{
		"Decrypt": {func(c *kms.Client) error {
			_, err := c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: aws.String("a"), CiphertextBlob: []byte("x"), EncryptionContext: map[string]string{"row": "7"}})
			return err
		}, []iam.Access{{Action: "kms:Decrypt", Resource: "arn:aws:kms:r:1:key/a", Context: tagged(encctx)}}},
		"Decrypt without key": {func(c *kms.Client) error {
			_, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: []byte("12345678-1234-1234-1234-123456789012…")})
			return err
		}, []iam.Access{{Action: "kms:Decrypt", Resource: "arn:aws:kms:r:1:key/12345678-1234-1234-1234-123456789012", Context: tagged(nil)}}},
		"ReEncrypt": {func(c *kms.Client) error {
			_, err := c.ReEncrypt(t.Context(), &kms.ReEncryptInput{
				SourceKeyId: aws.String("a"), DestinationKeyId: aws.String("b"), CiphertextBlob: []byte("x"),
				SourceEncryptionContext: map[string]string{"row": "7"},
			})
			return err
		}, []iam.Access{
			{Action: "kms:ReEncryptFrom", Resource: "arn:aws:kms:r:1:key/a", Context: tagged(encctx)},
			{Action: "kms:ReEncryptTo", Resource: "arn:aws:kms:r:1:key/b", Context: tagged(nil)},
		}},
		"CreateKey": {func(c *kms.Client) error {
			_, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{Tags: []kmstypes.Tag{{TagKey: aws.String("matter:stack"), TagValue: aws.String("s")}}})
			return err
		}, []iam.Access{
			{Action: "kms:CreateKey", Resource: "*", Context: map[string][]string{
				"aws:requesttag/matter:stack": {"s"}, "aws:tagkeys": {"matter:stack"}, "kms:keyspec": {"SYMMETRIC_DEFAULT"}, "kms:keyusage": {"ENCRYPT_DECRYPT"},
			}},
			{Action: "kms:TagResource", Resource: "arn:aws:kms:r:1:key/new", Context: request},
		}},
		"CreateKey of several Regions": {func(c *kms.Client) error {
			_, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{MultiRegion: aws.Bool(true)})
			return err
		}, []iam.Access{
			{
				Action:   "iam:CreateServiceLinkedRole",
				Resource: "arn:aws:iam::1:role/aws-service-role/mrk.kms.amazonaws.com/AWSServiceRoleForKeyManagementServiceMultiRegionKeys",
				Context:  map[string][]string{"iam:awsservicename": {"mrk.kms.amazonaws.com"}},
			},
			{Action: "kms:CreateKey", Resource: "*", Context: map[string][]string{
				"kms:keyspec": {"SYMMETRIC_DEFAULT"}, "kms:keyusage": {"ENCRYPT_DECRYPT"},
			}},
		}},
		"ListAliases of a key": {func(c *kms.Client) error {
			_, err := c.ListAliases(t.Context(), &kms.ListAliasesInput{KeyId: aws.String("a")})
			return err
		}, []iam.Access{{Action: "kms:ListAliases", Resource: "*", Context: map[string][]string{}}}},
		"GetKeyLastUsage": {func(c *kms.Client) error {
			_, err := c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: aws.String("a")})
			return err
		}, []iam.Access{{Action: "kms:GetKeyLastUsage", Resource: "arn:aws:kms:r:1:key/a", Context: tagged(nil)}}},
		"CreateAlias": {func(c *kms.Client) error {
			_, err := c.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/x"), TargetKeyId: aws.String("a")})
			return err
		}, []iam.Access{
			{Action: "kms:CreateAlias", Resource: "arn:aws:kms:r:1:alias/x", Context: map[string][]string{}},
			{Action: "kms:CreateAlias", Resource: "arn:aws:kms:r:1:key/a", Context: tagged(nil)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := recorded(t, func(cfg aws.Config) error { return c.call(kms.NewFromConfig(cfg)) })
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestS3(t *testing.T) {
	bucket, key := aws.String("b"), aws.String("v1/x")
	const object = "arn:aws:s3:::b/v1/x"
	for name, c := range map[string]struct {
		call func(*s3.Client) error
		want []string // action resource
	}{
		"GetObject": {func(c *s3.Client) error {
			_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: key})
			return err
		}, []string{"s3:GetObject " + object}},
		"GetObject of a version": {func(c *s3.Client) error {
			_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: key, VersionId: aws.String("v")})
			return err
		}, []string{"s3:GetObjectVersion " + object}},
		"DeleteObject": {func(c *s3.Client) error {
			_, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: aws.String("v"), BypassGovernanceRetention: aws.Bool(true)})
			return err
		}, []string{"s3:BypassGovernanceRetention " + object, "s3:DeleteObjectVersion " + object}},
		"ListObjectVersions": {func(c *s3.Client) error {
			_, err := c.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: bucket})
			return err
		}, []string{"s3:ListBucketVersions arn:aws:s3:::b"}},
		"GetObjectLockConfiguration": {func(c *s3.Client) error {
			_, err := c.GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: bucket})
			return err
		}, []string{"s3:GetBucketObjectLockConfiguration arn:aws:s3:::b"}},
		"CopyObject": {func(c *s3.Client) error {
			_, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: bucket, Key: key, CopySource: aws.String("c/y")})
			return err
		}, []string{"s3:GetObject arn:aws:s3:::c/y", "s3:PutObject " + object}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, a := range recorded(t, func(cfg aws.Config) error { return c.call(s3.NewFromConfig(cfg)) }) {
				got = append(got, a.Action+" "+a.Resource)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("keys of a locked PutObject", func(t *testing.T) {
		until := time.Now().Add(366*24*time.Hour + time.Hour).UTC().Truncate(time.Second)
		got := recorded(t, func(cfg aws.Config) error {
			_, err := s3.NewFromConfig(cfg).PutObject(t.Context(), &s3.PutObjectInput{
				Bucket: bucket, Key: key, Body: strings.NewReader("x"), IfNoneMatch: aws.String("*"),
				ObjectLockMode: s3types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: &until,
			})
			return err
		})
		keys := map[string][]string{
			"s3:if-none-match": {"*"}, "s3:object-lock-mode": {"COMPLIANCE"},
			"s3:object-lock-remaining-retention-days": {"366"}, "s3:object-lock-retain-until-date": {until.Format(time.RFC3339)},
		}
		if d := cmp.Diff([]iam.Access{
			{Action: "s3:PutObject", Resource: object, Context: keys}, {Action: "s3:PutObjectRetention", Resource: object, Context: keys},
		}, got); d != "" {
			t.Error(d)
		}
	})
}

func TestOthers(t *testing.T) {
	for want, call := range map[string]func(aws.Config) error{
		"sns:Publish arn:aws:sns:r:1:t": func(cfg aws.Config) error {
			_, err := sns.NewFromConfig(cfg).Publish(t.Context(), &sns.PublishInput{TopicArn: aws.String("arn:aws:sns:r:1:t"), Message: aws.String("m")})
			return err
		},
		"events:PutEvents arn:aws:events:r:1:event-bus/b": func(cfg aws.Config) error {
			_, err := eventbridge.NewFromConfig(cfg).PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{{EventBusName: aws.String("b")}}})
			return err
		},
		"secretsmanager:GetSecretValue arn:aws:secretsmanager:r:1:secret:s": func(cfg aws.Config) error {
			_, err := secretsmanager.NewFromConfig(cfg).GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String("s")})
			return err
		},
		"lambda:GetFunctionConfiguration arn:aws:lambda:r:1:function:f": func(cfg aws.Config) error {
			_, err := lambda.NewFromConfig(cfg).GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")})
			return err
		},
		"lambda:ListFunctions *": func(cfg aws.Config) error {
			_, err := lambda.NewFromConfig(cfg).ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
			return err
		},
		"cloudformation:DescribeStacks arn:aws:cloudformation:r:1:stack/s/id": func(cfg aws.Config) error {
			_, err := cloudformation.NewFromConfig(cfg).DescribeStacks(t.Context(), &cloudformation.DescribeStacksInput{StackName: aws.String("s")})
			return err
		},
		"scheduler:GetSchedule arn:aws:scheduler:r:1:schedule/g/s": func(cfg aws.Config) error {
			_, err := scheduler.NewFromConfig(cfg).GetSchedule(t.Context(), &scheduler.GetScheduleInput{Name: aws.String("s"), GroupName: aws.String("g")})
			return err
		},
		"scheduler:GetSchedule arn:aws:scheduler:r:1:schedule/default/s": func(cfg aws.Config) error {
			_, err := scheduler.NewFromConfig(cfg).GetSchedule(t.Context(), &scheduler.GetScheduleInput{Name: aws.String("s")})
			return err
		},
		"tag:GetResources *": func(cfg aws.Config) error {
			_, err := resourcegroupstaggingapi.NewFromConfig(cfg).GetResources(t.Context(), &resourcegroupstaggingapi.GetResourcesInput{})
			return err
		},
		"lambda:InvokeFunction arn:aws:lambda:r:1:function:f": func(cfg aws.Config) error {
			_, err := lambda.NewFromConfig(cfg).Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f")})
			return err
		},
	} {
		got := recorded(t, call)
		if len(got) != 1 || got[0].Action+" "+got[0].Resource != want {
			t.Errorf("%+v, want %s", got, want)
		}
	}
}

// TestEventEntries: each entry of PutEvents is a use of its own bus, with its own condition keys.
func TestEventEntries(t *testing.T) {
	entry := func(bus *string, source, kind string) ebtypes.PutEventsRequestEntry {
		return ebtypes.PutEventsRequestEntry{EventBusName: bus, Source: &source, DetailType: &kind, Detail: aws.String("{}")}
	}
	got := recorded(t, func(cfg aws.Config) error {
		_, err := eventbridge.NewFromConfig(cfg).PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{
			entry(nil, "s", "halted"), entry(aws.String("arn:aws:events:r:2:event-bus/b"), "t", "started"),
		}})
		return err
	})
	want := []iam.Access{
		{Action: "events:PutEvents", Resource: "arn:aws:events:r:1:event-bus/default", Context: map[string][]string{"events:source": {"s"}, "events:detail-type": {"halted"}}},
		{Action: "events:PutEvents", Resource: "arn:aws:events:r:2:event-bus/b", Context: map[string][]string{"events:source": {"t"}, "events:detail-type": {"started"}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
