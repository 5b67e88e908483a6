package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	lambdatypes "github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/localaws/fault"
)

// redeploy gives the function preflight, and the scripts' shell, another setting.
func (w *world) redeploy(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: redeploy variable value")
	}
	ctx, client, name := context.Background(), lambda.NewFromConfig(w.AWSConfig()), aws.String(w.Name+"-preflight")
	f, err := client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: name})
	ts.Check(err)
	env := maps.Clone(f.Environment.Variables)
	env[args[0]] = args[1]
	_, err = client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
		FunctionName: name, Environment: &lambdatypes.Environment{Variables: env},
	})
	ts.Check(err)
	ts.Setenv(args[0], args[1])
}

// denied has AWS deny an operation; negated, it is allowed again.
func (w *world) denied(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		w.ClearFaults()
		return
	}
	if len(args) != 2 {
		ts.Fatalf("usage: [!] denied service operation")
	}
	_, err := w.AddFault(fault.Fault{
		Service: args[0], Operation: args[1], Nth: 1, Times: 1000, Mode: fault.Error, ErrorCode: "AccessDeniedException", Status: 403,
	})
	ts.Check(err)
}

// key makes a KMS key and sets $KEY to its id.
func (w *world) key(ts *testscript.TestScript, _ bool, _ []string) {
	id, err := w.createKey(context.Background(), "")
	ts.Check(err)
	ts.Setenv("KEY", string(id))
}

func (w *world) createKey(ctx context.Context, alias string) (kek.ID, error) {
	client := kms.NewFromConfig(w.AWSConfig())
	out, err := client.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: kmstypes.KeySpecSymmetricDefault, KeyUsage: kmstypes.KeyUsageTypeEncryptDecrypt})
	if err != nil {
		return "", err
	}
	if alias != "" {
		_, err = client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: out.KeyMetadata.KeyId})
	}
	return kek.ID(aws.ToString(out.KeyMetadata.KeyId)), err
}

// tagged requires that a KMS key carries the stack's tag, or negated that it does not.
func (w *world) tagged(ts *testscript.TestScript, neg bool, args []string) {
	out, err := kms.NewFromConfig(w.AWSConfig()).ListResourceTags(context.Background(), &kms.ListResourceTagsInput{KeyId: &args[0]})
	ts.Check(err)
	has := slices.ContainsFunc(out.Tags, func(t kmstypes.Tag) bool {
		return aws.ToString(t.TagKey) == "matter:stack" && aws.ToString(t.TagValue) == w.Name
	})
	if has == neg {
		ts.Fatalf("key %s carries the stack's tag: %t", args[0], has)
	}
}

// mark leaves the mark of a table in the control table, as a writer does.
func (w *world) mark(ts *testscript.TestScript, _ bool, args []string) {
	_, err := dynamodb.NewFromConfig(w.ApplicationConfig()).PutItem(context.Background(), &dynamodb.PutItemInput{
		TableName: aws.String(w.Env()["MATTER_CONTROL_TABLE"]), Item: map[string]types.AttributeValue{
			"pk": &types.AttributeValueMemberS{Value: "MARK"}, "sk": &types.AttributeValueMemberS{Value: args[0]},
			"holder": &types.AttributeValueMemberS{Value: "test"}, "seen_at": &types.AttributeValueMemberS{Value: "2026-01-02T03:04:05.000Z"},
		},
	})
	ts.Check(err)
}

// lettersTable is a table of rows that boto3 writes without this project (examples/adopt).
const lettersTable = "letters"

// letters makes the table of rows that were written without this project: three under
// the KEK given, one under a key that no registry knows, which becomes $HISTORIC.
func (w *world) letters(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(w.writeLetters(context.Background(), kek.ID(args[0])))
	ts.Setenv("HISTORIC", string(w.historic))
}

func (w *world) writeLetters(ctx context.Context, current kek.ID) (err error) {
	table := aws.String(w.Name + "-" + lettersTable)
	_, err = w.Set.Dynamo.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: table, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		return err
	}
	if w.historic, err = w.createKey(ctx, "alias/"+w.Name+"-historic"); err != nil {
		return err
	}
	for n := range 4 {
		under, id := current, fmt.Sprintf("letter-%d", n)
		if n == 3 {
			under = w.historic
		}
		out, err := kms.NewFromConfig(w.AWSConfig()).Encrypt(ctx, &kms.EncryptInput{
			KeyId: aws.String(string(under)), Plaintext: []byte("plain " + id), EncryptionContext: map[string]string{"table": lettersTable, "id": id},
		})
		if err != nil {
			return err
		}
		_, err = w.Set.Dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: map[string]types.AttributeValue{
			"id": &types.AttributeValueMemberS{Value: id}, "body": &types.AttributeValueMemberB{Value: out.CiphertextBlob},
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// openLetters reads every letter as who wrote them would: by KMS alone.
func (w *world) openLetters(ctx context.Context) error {
	out, err := w.Set.Dynamo.Scan(ctx, &dynamodb.ScanInput{TableName: aws.String(w.Name + "-" + lettersTable), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return err
	}
	for _, item := range out.Items {
		id := item["id"].(*types.AttributeValueMemberS).Value
		plain, err := kms.NewFromConfig(w.AWSConfig()).Decrypt(ctx, &kms.DecryptInput{
			CiphertextBlob: item["body"].(*types.AttributeValueMemberB).Value, EncryptionContext: map[string]string{"table": lettersTable, "id": id},
		})
		if err != nil || string(plain.Plaintext) != "plain "+id {
			return fmt.Errorf("letter %s: %w", id, errors.Join(err, errors.New("it does not open to what was written")))
		}
	}
	if len(out.Items) != 4 {
		return fmt.Errorf("%d letters", len(out.Items))
	}
	return nil
}

// writeDefinition writes the lettersTable' definition, as the runbook has it, to a file.
func (w *world) writeDefinition() error {
	text := fmt.Sprintf(`{"name": %q, "table": %q, "format": "kms", "kek_id_attribute": "kek_id", "ciphertext_attribute": "body",
 "context": {"table": %q, "id": "$id"}}`, lettersTable, w.Name+"-"+lettersTable, lettersTable)
	return os.WriteFile(filepath.Join(w.dir, "letters.json"), []byte(text), 0o600)
}

// backUpRows keeps two rows of the table of characters as a backup does, in rows.ndjson.
func (w *world) backUpRows(ctx context.Context) error {
	out, err := w.Set.Dynamo.Scan(ctx, &dynamodb.ScanInput{TableName: &w.Set.Sources()[0].Table, Limit: aws.Int32(2), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return err
	}
	w.backup = out.Items
	text, err := ndjson(w.backup)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.dir, "rows.ndjson"), text, 0o600)
}

// orphanRows loses one row of the backup and writes the other back as it was: an orphan.
func (w *world) orphanRows(ctx context.Context) error {
	table := &w.Set.Sources()[0].Table
	_, err := w.Set.Dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: table, Key: map[string]types.AttributeValue{"codepoint": w.backup[0]["codepoint"]},
	})
	if err != nil {
		return err
	}
	_, err = w.Set.Dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: table, Item: w.backup[1]})
	return err
}

// allowRetired enables or disables the KEK of the backup in KMS.
func (w *world) allowRetired(ctx context.Context, on bool) (err error) {
	client, id := kms.NewFromConfig(w.AWSConfig()), w.backup[0][w.Set.Sources()[0].KEKID].(*types.AttributeValueMemberS).Value
	if on {
		_, err = client.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &id})
	} else {
		_, err = client.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &id})
	}
	return err
}

// ndjson writes items in DynamoDB JSON, every second one as an export to S3 has it.
func ndjson(items []map[string]types.AttributeValue) ([]byte, error) {
	var b bytes.Buffer
	for n, item := range items {
		line := map[string]any{}
		for k, v := range item {
			switch v := v.(type) {
			case *types.AttributeValueMemberS:
				line[k] = map[string]string{"S": v.Value}
			case *types.AttributeValueMemberN:
				line[k] = map[string]string{"N": v.Value}
			case *types.AttributeValueMemberB:
				line[k] = map[string]string{"B": base64.StdEncoding.EncodeToString(v.Value)}
			default:
				return nil, fmt.Errorf("attribute %s is %T", k, v)
			}
		}
		var out any = line
		if n%2 == 0 {
			out = map[string]any{"Item": line}
		}
		if err := json.NewEncoder(&b).Encode(out); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
