package localaws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/smithy-go"
	smithymiddleware "github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// recording compares answers of the local AWS with what AWS answered to the same request.
type recording struct {
	t    *testing.T
	seen map[string]bool // operations of which an answer was compared
}

// is compares one answer. where is "file test/step" in testdata/recorded. Of a success the
// status and the named fields are compared: a placeholder stands for any value, an ARN for
// any ARN. Of a failure the code and the status.
func (r recording) is(operation, where string, out any, err error, fields ...string) {
	r.t.Helper()
	r.seen[operation] = true
	want := r.recorded(where)
	if text, ok := want.(string); ok {
		r.hasCode(where, err, regexp.MustCompile(`\((\w+)\)`).FindStringSubmatch(text)[1], 0)
		return
	}
	answer := want.(map[string]any) //nolint:forcetypeassert // a test's data
	if text, ok := answer["exception_typename"].(string); ok {
		r.hasCode(where, err, text, 0)
		return
	}
	status := int(at(answer, "ResponseMetadata.HTTPStatusCode").(float64)) //nolint:forcetypeassert // as above
	if code, ok := at(answer, "Error.Code").(string); ok {
		r.hasCode(where, err, code, status)
		return
	}
	if err != nil {
		r.t.Errorf("%s: %v", where, err)
		return
	}
	meta := reflect.ValueOf(out).Elem().FieldByName("ResultMetadata").Interface().(smithymiddleware.Metadata) //nolint:forcetypeassert // every output has it
	if raw, ok := middleware.GetRawResponse(meta).(*smithyhttp.Response); !ok || raw.StatusCode != status {
		r.t.Errorf("%s: status is not %d", where, status)
	}
	for _, f := range fields {
		want, got := at(answer, f), field(out, f)
		switch text, isText := want.(string); {
		case want == nil:
			r.t.Errorf("%s: the recording has no %s", where, f)
		case isText && strings.HasPrefix(text, "arn:"):
			if !strings.HasPrefix(fmt.Sprint(got), "arn:") {
				r.t.Errorf("%s: %s is %v, want an ARN", where, f, got)
			}
		case isText && (strings.Contains(text, "<") || placeholders[text]):
			if got == nil || reflect.ValueOf(got).IsZero() {
				r.t.Errorf("%s: %s is missing", where, f)
			}
		case fmt.Sprint(got) != fmt.Sprint(want):
			r.t.Errorf("%s: %s is %v, AWS answered %v", where, f, got, want)
		}
	}
}

var placeholders = map[string]bool{"datetime": true, "plaintext": true, "ciphertext-blob": true, "public-key": true}

func (r recording) hasCode(where string, err error, code string, status int) {
	r.t.Helper()
	var api smithy.APIError
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &resp) || api.ErrorCode() != code || status != 0 && resp.HTTPStatusCode() != status {
		r.t.Errorf("%s: %v, AWS answered %s (%d)", where, err, code, status)
	}
}

func (r recording) recorded(where string) any {
	r.t.Helper()
	file, rest, _ := strings.Cut(where, " ")
	test, step, _ := strings.Cut(rest, "/")
	b, err := os.ReadFile(filepath.Join("testdata", "recorded", file+".json"))
	if err != nil {
		r.t.Fatal(err)
	}
	var all map[string]struct {
		Content map[string]any `json:"recorded-content"`
	}
	if err := json.Unmarshal(b, &all); err != nil {
		r.t.Fatal(err)
	}
	for name, entry := range all {
		if strings.HasSuffix(name, "::"+test) {
			if got, ok := entry.Content[step]; ok {
				return got
			}
		}
	}
	r.t.Fatalf("no recording %s", where)
	return nil
}

// at is the value at a path in decoded JSON, nil if there is none.
func at(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// field is the value at a path in an output of the SDK, nil if there is none.
func field(out any, path string) any {
	v := reflect.ValueOf(out)
	for name := range strings.SplitSeq(path, ".") {
		for v.Kind() == reflect.Pointer {
			if v = v.Elem(); !v.IsValid() {
				return nil
			}
		}
		if v = v.FieldByName(strings.ToUpper(name[:1]) + name[1:]); !v.IsValid() {
			return nil
		}
	}
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	return v.Interface()
}

// TestRecorded makes requests that were made of AWS, and compares what the project relies
// on in the answers. Every operation that the project calls is in operations.txt, as
// recorded or with what holds it to AWS instead: a new one must be looked at.
func TestRecorded(t *testing.T) {
	s := stack(t)
	r := recording{t, map[string]bool{}}
	cfg := s.AWSConfig()
	cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	recordedKMS(t.Context(), r, kms.NewFromConfig(cfg))
	recordedDynamoDB(t.Context(), r, dynamodb.NewFromConfig(cfg))
	recordedS3(t.Context(), r, s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }))
	recordedSFN(t.Context(), r, sfn.NewFromConfig(cfg), s.StateMachineARN())
	b, err := os.ReadFile(filepath.Join("testdata", "recorded", "operations.txt"))
	if err != nil {
		t.Fatal(err)
	}
	classified := map[string]string{}
	for line := range strings.Lines(string(b)) {
		operation, how, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || how == "" || classified[operation] != "" {
			t.Errorf("operations.txt: %q", line)
		}
		classified[operation] = how
	}
	for _, operation := range usedOperations(t) {
		how := classified[operation]
		if delete(classified, operation); how == "" || (how == "recorded") != r.seen[operation] {
			t.Errorf("%s is called by the project: %q in operations.txt, an answer compared %v", operation, how, r.seen[operation])
		}
	}
	if len(classified) > 0 {
		t.Errorf("operations.txt has what the project does not call: %v", classified)
	}
}

var input = regexp.MustCompile(`\b(\w+)\.([A-Z]\w+)Input\{`)

// usedOperations lists the operations whose input the project's code makes, as "service
// Operation": not its tests, nor what serves or drives the local AWS.
func usedOperations(t *testing.T) []string {
	t.Helper()
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	services := []string{"cloudformation", "cloudwatch", "dynamodb", "eventbridge", "kms", "lambda", "resourcegroupstaggingapi", "s3", "scheduler", "sfn", "sns", "ssm", "sts"}
	skipped := []string{"bench", "build", "test/ddbtest", "test/load", "test/localaws", "test/memddb", "test/memstore", "test/mutation", "test/sample", "test/wiretrace", "tools"}
	var out []string
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() && (slices.Contains(skipped, rel) || strings.HasPrefix(e.Name(), ".") && rel != "."):
			return filepath.SkipDir
		case e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range input.FindAllStringSubmatch(string(b), -1) {
			if slices.Contains(services, m[1]) {
				out = append(out, m[1]+" "+m[2])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func recordedKMS(ctx context.Context, r recording, c *kms.Client) {
	r.t.Helper()
	newKey := func(in *kms.CreateKeyInput) *string {
		out, err := c.CreateKey(ctx, in)
		if err != nil {
			r.t.Fatal(err)
		}
		return out.KeyMetadata.KeyId
	}
	symmetric := &kms.CreateKeyInput{Description: aws.String("test key 123"), KeyUsage: kmstypes.KeyUsageTypeEncryptDecrypt}
	created, err := c.CreateKey(ctx, symmetric)
	if err != nil {
		r.t.Fatal(err)
	}
	r.seen["kms CreateKey"] = true // its answer is the recorded description
	key := created.KeyMetadata.KeyId
	described := r.recorded("kms test_create_key/describe-key")
	for _, f := range []string{"Arn", "Description", "Enabled", "KeyId", "KeyManager", "KeySpec", "KeyState", "KeyUsage", "Origin"} {
		want := fmt.Sprint(at(described, f))
		if got := fmt.Sprint(field(created.KeyMetadata, f)); got != want && !strings.Contains(want, "<") {
			r.t.Errorf("CreateKey: %s is %s, AWS answered %s", f, got, want)
		}
	}
	unknown := aws.String("134f2428-cec1-4b25-a1ae-9048164dba47")
	_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: unknown})
	r.is("kms DescribeKey", "kms test_get_key_does_not_exist/describe-nonexistent-key-with-id", nil, err)
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("fakealias"), TargetKeyId: key})
	r.is("kms CreateAlias", "kms test_create_alias/create_alias", nil, err)
	generated, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: kmstypes.DataKeySpecAes256})
	r.is("kms GenerateDataKey", "kms test_generate_data_key/generate-data-key-result", generated, err, "CiphertextBlob", "KeyId", "Plaintext")
	encctx := map[string]string{"context-key": "context-value"}
	encrypted, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x"), EncryptionContext: encctx})
	r.is("kms Encrypt", "kms test_encrypt_decrypt_encryption_context/encrypt_response", encrypted, err, "CiphertextBlob", "KeyId")
	decrypted, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: key, CiphertextBlob: encrypted.CiphertextBlob, EncryptionContext: encctx})
	r.is("kms Decrypt", "kms test_encrypt_decrypt_encryption_context/decrypt_response_with_encryption_context", decrypted, err, "KeyId", "Plaintext")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key, CiphertextBlob: encrypted.CiphertextBlob})
	r.is("kms Decrypt", "kms test_encrypt_decrypt_encryption_context/decrypt_response_without_encryption_context", nil, err)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key, CiphertextBlob: []byte("invalid"), EncryptionContext: encctx})
	r.is("kms Decrypt", "kms test_encrypt_decrypt_encryption_context/decrypt_response_with_invalid_ciphertext", nil, err)
	other := newKey(symmetric)
	again, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: encrypted.CiphertextBlob, SourceKeyId: key, DestinationKeyId: other, SourceEncryptionContext: encctx})
	r.is("kms ReEncrypt", "kms test_re_encrypt[SYMMETRIC_DEFAULT-SYMMETRIC_DEFAULT]/test_re_encrypt", again, err, "CiphertextBlob", "KeyId", "SourceKeyId")
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: encrypted.CiphertextBlob, SourceKeyId: other, DestinationKeyId: key, SourceEncryptionContext: encctx})
	r.is("kms ReEncrypt", "kms test_re_encrypt_incorrect_source_key/incorrect-source-key", nil, err)
	if _, err = c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: other}); err != nil {
		r.t.Error(err)
	}
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: other, CiphertextBlob: again.CiphertextBlob})
	r.is("kms DisableKey", "kms test_rotate_key_on_demand_raises_error_given_key_is_disabled/error-response", nil, err)
	signing := newKey(&kms.CreateKeyInput{KeySpec: kmstypes.KeySpecEccNistP256, KeyUsage: kmstypes.KeyUsageTypeSignVerify})
	signed, err := c.Sign(ctx, &kms.SignInput{KeyId: signing, Message: []byte("x"), MessageType: kmstypes.MessageTypeRaw, SigningAlgorithm: kmstypes.SigningAlgorithmSpecEcdsaSha256})
	r.is("kms Sign", "kms test_sign_verify[ECC_NIST_P256-ECDSA_SHA_256]/signature", signed, err, "KeyId", "Signature", "SigningAlgorithm")
	if _, err := c.TagResource(ctx, &kms.TagResourceInput{KeyId: key, Tags: []kmstypes.Tag{
		{TagKey: aws.String("tag1"), TagValue: aws.String("value1")}, {TagKey: aws.String("tag2"), TagValue: aws.String("value2")},
	}}); err != nil {
		r.t.Fatal(err)
	}
	tags, err := c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key})
	if err != nil {
		r.t.Fatal(err)
	}
	r.seen["kms TagResource"] = true
	var got []any
	for _, tag := range tags.Tags {
		got = append(got, map[string]any{"TagKey": *tag.TagKey, "TagValue": *tag.TagValue})
	}
	if d := cmp.Diff(r.recorded("kms test_tag_existing_key_and_untag/list-resource-tags"), any(got)); d != "" {
		r.t.Errorf("TagResource (-AWS +local):\n%s", d)
	}
}

func recordedDynamoDB(ctx context.Context, r recording, c *dynamodb.Client) {
	r.t.Helper()
	type item = map[string]ddbtypes.AttributeValue
	text := func(v string) ddbtypes.AttributeValue { return &ddbtypes.AttributeValueMemberS{Value: v} }
	table := aws.String("recorded-answers")
	create := &dynamodb.CreateTableInput{
		TableName: table, BillingMode: ddbtypes.BillingModePayPerRequest,
		AttributeDefinitions: []ddbtypes.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: ddbtypes.ScalarAttributeTypeS}},
		KeySchema:            []ddbtypes.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: ddbtypes.KeyTypeHash}},
	}
	if _, err := c.CreateTable(ctx, create); err != nil {
		r.t.Fatal(err)
	}
	defer func() { _, _ = c.DeleteTable(ctx, &dynamodb.DeleteTableInput{TableName: table}) }() // the stack ends anyway
	_, err := c.CreateTable(ctx, create)
	r.is("dynamodb CreateTable", "dynamodb test_create_duplicate_table/Error", nil, err)
	described, err := c.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: table})
	r.is("dynamodb DescribeTable", "dynamodb test_table_crud/describe-table", described, err, "Table.TableStatus", "Table.DeletionProtectionEnabled", "Table.ItemCount", "Table.TableArn")
	_, err = c.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: aws.String("non-existent")})
	r.is("dynamodb DescribeTable", "dynamodb test_table_crud/delete-non-existent-table", nil, err)
	put, err := c.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: item{"id": text("id1"), "data": text("foobar")}, ReturnValues: ddbtypes.ReturnValueAllOld})
	r.is("dynamodb PutItem", "dynamodb test_return_values_in_put_item/PutFirstItem", put, err)
	if put != nil && put.Attributes != nil {
		r.t.Errorf("PutItem of a new item answers %v", put.Attributes)
	}
	_, err = c.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: item{"id": text("456"), "product": text("sporting goods"), "price": &ddbtypes.AttributeValueMemberN{Value: "650"}}})
	if err != nil {
		r.t.Error(err)
	}
	const whole = ddbtypes.ReturnValuesOnConditionCheckFailureAllOld
	_, err = c.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: table, Key: item{"id": text("456")}, UpdateExpression: aws.String("SET price = :p"), ConditionExpression: aws.String("price > :p"),
		ExpressionAttributeValues: item{":p": &ddbtypes.AttributeValueMemberN{Value: "700"}}, ReturnValuesOnConditionCheckFailure: whole,
	})
	r.is("dynamodb UpdateItem", "dynamodb test_return_values_on_conditions_check_failure/items", nil, err)
	_, err = c.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: table, Key: item{"id": text("456")}, ConditionExpression: aws.String("attribute_not_exists(id)"), ReturnValuesOnConditionCheckFailure: whole,
	})
	r.is("dynamodb DeleteItem", "dynamodb test_return_values_on_conditions_check_failure/items", nil, err)
	var failed *ddbtypes.ConditionalCheckFailedException
	if !errors.As(err, &failed) || len(failed.Item) != 3 {
		r.t.Errorf("DeleteItem: a failed condition answers %v", err)
	}
	written, err := c.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []ddbtypes.TransactWriteItem{
		{Put: &ddbtypes.Put{TableName: table, Item: item{"id": text("John"), "data": &ddbtypes.AttributeValueMemberB{Value: []byte("foobar")}}}},
	}})
	r.is("dynamodb TransactWriteItems", "dynamodb test_transaction_write_items/Response", written, err)
	got, err := c.GetItem(ctx, &dynamodb.GetItemInput{TableName: table, Key: item{"id": text("John")}})
	if b, ok := got.Item["data"].(*ddbtypes.AttributeValueMemberB); err != nil || !ok || fmt.Sprintf("b'%s'", b.Value) != at(r.recorded("dynamodb test_transaction_write_binary_data/GetItem"), "binaryData.B") {
		r.t.Errorf("GetItem: %v, %v", got.Item, err)
	}
	r.seen["dynamodb GetItem"] = true
	_, err = c.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []ddbtypes.TransactWriteItem{
		{ConditionCheck: &ddbtypes.ConditionCheck{TableName: table, Key: item{"id": text("nobody")}, ConditionExpression: aws.String("attribute_exists(id)")}},
		{Put: &ddbtypes.Put{TableName: table, Item: item{"id": text("new")}}},
	}})
	r.is("dynamodb TransactWriteItems", "dynamodb test_transaction_write_canceled/Error", nil, err)
	var cancelled *ddbtypes.TransactionCanceledException
	if errors.As(err, &cancelled) {
		_, want, _ := strings.Cut(r.recorded("dynamodb test_transaction_write_canceled/Error").(string), "operation: ") //nolint:forcetypeassert // a test's data
		if cancelled.ErrorMessage() != want || *cancelled.CancellationReasons[0].Code != "ConditionalCheckFailed" || *cancelled.CancellationReasons[1].Code != "None" {
			r.t.Errorf("a cancelled transaction answers %v", cancelled)
		}
	}
	read, err := c.TransactGetItems(ctx, &dynamodb.TransactGetItemsInput{TransactItems: []ddbtypes.TransactGetItem{
		{Get: &ddbtypes.Get{TableName: table, Key: item{"id": text("John")}, ProjectionExpression: aws.String("id")}},
	}})
	r.is("dynamodb TransactGetItems", "dynamodb test_transact_get_items/TransactGetItems", read, err)
	scanned, err := c.Scan(ctx, &dynamodb.ScanInput{TableName: table, FilterExpression: aws.String("id = :a OR id = :b"), ExpressionAttributeValues: item{":a": text("John"), ":b": text("id1")}})
	if err != nil || scanned.Count != 2 || scanned.ScannedCount != 3 {
		r.t.Errorf("Scan: %+v, %v", scanned, err)
	}
}

func recordedS3(ctx context.Context, r recording, c *s3.Client) {
	r.t.Helper()
	bucket, key, nobody := aws.String("recorded-answers"), aws.String("test-precondition"), aws.String("recorded-answers-nobody")
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket: bucket, ObjectLockEnabledForBucket: aws.Bool(true),
		CreateBucketConfiguration: &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraintEuCentral1},
	}); err != nil {
		r.t.Fatal(err)
	}
	versioning, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bucket})
	r.is("s3 GetBucketVersioning", "s3 test_bucket_versioning_crud/get-versioning-after-enabled", versioning, err, "Status")
	_, err = c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: nobody})
	r.is("s3 GetBucketVersioning", "s3 test_bucket_versioning_crud/get-versioning-no-bucket", nil, err)
	lock, err := c.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: bucket})
	r.is("s3 GetObjectLockConfiguration", "s3 test_get_put_object_lock_configuration/get-lock-config-start", lock, err, "ObjectLockConfiguration.ObjectLockEnabled")
	_, err = c.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: nobody})
	r.is("s3 GetObjectLockConfiguration", "s3 test_get_object_lock_configuration_exc/get-lock-config-bucket-not-exists", nil, err)
	put := func(key *string, none bool) (*s3.PutObjectOutput, error) {
		in := &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader(""), ChecksumAlgorithm: types.ChecksumAlgorithmSha256}
		if none {
			in.IfNoneMatch = aws.String("*")
		}
		return c.PutObject(ctx, in)
	}
	const versioned = "s3 test_put_object_if_none_match_versioned_bucket/"
	out, err := put(key, false)
	r.is("s3 PutObject", versioned+"put-obj", out, err, "ETag", "VersionId")
	_, err = put(key, true)
	r.is("s3 PutObject", versioned+"put-obj-if-none-match", nil, err)
	deleted, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key})
	r.is("s3 DeleteObject", versioned+"del-obj", deleted, err, "DeleteMarker", "VersionId")
	out, err = put(key, true)
	r.is("s3 PutObject", versioned+"put-obj-after-del", out, err, "ETag", "VersionId")
	versions, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: bucket})
	r.is("s3 ListObjectVersions", versioned+"list-object-versions", versions, err, "IsTruncated", "MaxKeys")
	if err == nil && (len(versions.Versions) != 2 || len(versions.DeleteMarkers) != 1 || *versions.DeleteMarkers[0].IsLatest) {
		r.t.Errorf("ListObjectVersions: %d versions, %d delete markers", len(versions.Versions), len(versions.DeleteMarkers))
	}
	const locked = "s3 test_s3_object_retention_compliance_mode/"
	until := time.Now().Add(24 * time.Hour)
	retain := func(mode types.ObjectLockRetentionMode, until time.Time, id *string) (*s3.PutObjectRetentionOutput, error) {
		return c.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
			Bucket: bucket, Key: key, VersionId: id, Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: &until},
		})
	}
	kept, err := retain(types.ObjectLockRetentionModeCompliance, until, out.VersionId)
	r.is("s3 PutObjectRetention", locked+"add-compliance-retention", kept, err)
	_, err = retain(types.ObjectLockRetentionModeCompliance, until.Add(-time.Hour), out.VersionId)
	r.is("s3 PutObjectRetention", locked+"update-retention-shortened", nil, err)
	_, err = retain(types.ObjectLockRetentionModeGovernance, until, out.VersionId)
	r.is("s3 PutObjectRetention", locked+"update-retention-less-restrictive", nil, err)
	_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: out.VersionId})
	r.is("s3 DeleteObject", locked+"delete-locked-1", nil, err)
	for step, in := range map[string]*s3.PutObjectInput{
		"put-obj-locked-error-no-retain-date": {ObjectLockMode: types.ObjectLockModeCompliance},
		"put-obj-locked-error-no-mode":        {ObjectLockRetainUntilDate: &until},
		"put-obj-locked-bad-value":            {ObjectLockMode: "BAD-VALUE", ObjectLockRetainUntilDate: &until},
	} {
		in.Bucket, in.Key, in.Body = bucket, key, strings.NewReader("")
		_, err = c.PutObject(ctx, in)
		r.is("s3 PutObject", "s3 test_s3_object_lock_mode_validation/"+step, nil, err)
	}
}

func recordedSFN(ctx context.Context, r recording, c *sfn.Client, machine string) {
	r.t.Helper()
	const idempotent = "stepfunctions test_start_execution_idempotent/"
	start := &sfn.StartExecutionInput{StateMachineArn: &machine, Name: aws.String("recorded"), Input: aws.String(`{"sleep_ms":900}`)}
	first, err := c.StartExecution(ctx, start)
	r.is("sfn StartExecution", idempotent+"exec_resp", first, err, "executionArn", "startDate")
	second, err := c.StartExecution(ctx, start)
	r.is("sfn StartExecution", idempotent+"exec_resp_idempotent", second, err, "executionArn", "startDate")
	if err == nil && *first.ExecutionArn != *second.ExecutionArn {
		r.t.Errorf("the same start twice: %s, %s", *first.ExecutionArn, *second.ExecutionArn)
	}
	other := *start
	other.Input = aws.String(`{"sleep_ms":1}`)
	_, err = c.StartExecution(ctx, &other)
	r.is("sfn StartExecution", idempotent+"start_exec_already_exists", nil, err)
	nobody := aws.String(machine + "-nobody")
	_, err = c.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: nobody})
	r.is("sfn StartExecution", "stepfunctions test_invalid_start_execution_arn/start_exec_of_deleted", nil, err)
	for step, text := range map[string]string{"start_exec_str_inp": "not some json", "start_exec_not_json_inp": "{'not': 'json'}", "start_res_empty": ""} {
		_, err = c.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: &machine, Input: &text})
		r.is("sfn StartExecution", "stepfunctions test_invalid_start_execution_input/"+step, nil, err)
	}
	_, err = c.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: aws.String(*first.ExecutionArn + "-nobody")})
	r.is("sfn DescribeExecution", "stepfunctions test_describe_execution_no_such_state_machine/exception", nil, err)
	if _, err := c.StopExecution(ctx, &sfn.StopExecutionInput{ExecutionArn: first.ExecutionArn}); err != nil {
		r.t.Error(err)
	}
}
