package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

type item = map[string]ddbtypes.AttributeValue

func text(s string) ddbtypes.AttributeValue    { return &ddbtypes.AttributeValueMemberS{Value: s} }
func blob(b []byte) ddbtypes.AttributeValue    { return &ddbtypes.AttributeValueMemberB{Value: b} }
func numeric(n string) ddbtypes.AttributeValue { return &ddbtypes.AttributeValueMemberN{Value: n} }

// shell is where an operator works: the environment of the stack, and what the
// operator has set over it.
type shell struct {
	*world
	over map[string]string
}

func (w *world) shell(over map[string]string) shell { return shell{w, over} }

// said is what a command has printed, both streams.
type said struct {
	exit     int
	out, err string
}

func (s said) String() string { return s.out + s.err }

// matter runs the CLI that was built.
func (s shell) matter(t *testing.T, args ...string) said {
	t.Helper()
	root, err := backend.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "bin", "matter"), append([]string{"ops"}, args...)...)
	env := s.Env()
	maps.Copy(env, s.over)
	cmd.Env = os.Environ()
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out, diagnosis bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnosis
	err = cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("bin/matter, which make build makes: %v", err)
	}
	return said{cmd.ProcessState.ExitCode(), out.String(), diagnosis.String()}
}

// must runs a command that ends with the exit code, and returns what it printed.
func (s shell) must(t *testing.T, exit int, args ...string) string {
	t.Helper()
	got := s.matter(t, args...)
	if got.exit != exit {
		t.Fatalf("matter ops %s: exit code %d, want %d\n%s", strings.Join(args, " "), got.exit, exit, got)
	}
	return got.String()
}

// decode runs a command that succeeds and reads its result into v.
func (s shell) decode(t *testing.T, v any, exit int, args ...string) {
	t.Helper()
	got := s.matter(t, append(args, "-o", "json")...)
	if got.exit != exit {
		t.Fatalf("matter ops %s: exit code %d, want %d\n%s", strings.Join(args, " "), got.exit, exit, got)
	}
	if err := json.Unmarshal([]byte(got.out), v); err != nil {
		t.Fatalf("matter ops %s: %v\n%s", strings.Join(args, " "), err, got)
	}
}

// mentions requires that a text has each of the phrases.
func mentions(t *testing.T, what, text string, phrases ...string) {
	t.Helper()
	for _, p := range phrases {
		if !strings.Contains(text, p) {
			t.Errorf("%s does not mention %q:\n%s", what, p, text)
		}
	}
}

// newTable makes a table with the key id of type S.
func (w *world) newTable(t *testing.T, name string) {
	t.Helper()
	_, err := w.Set.Dynamo.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &name, BillingMode: ddbtypes.BillingModePayPerRequest,
		AttributeDefinitions: []ddbtypes.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: ddbtypes.ScalarAttributeTypeS}},
		KeySchema:            []ddbtypes.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: ddbtypes.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// newKey makes a KMS key that nobody has registered.
func (w *world) newKey(t *testing.T) kek.ID {
	t.Helper()
	out, err := kms.NewFromConfig(w.AWSConfig()).CreateKey(t.Context(), &kms.CreateKeyInput{
		KeySpec: kmstypes.KeySpecSymmetricDefault, KeyUsage: kmstypes.KeyUsageTypeEncryptDecrypt,
	})
	if err != nil {
		t.Fatal(err)
	}
	return kek.ID(aws.ToString(out.KeyMetadata.KeyId))
}

// put writes an item as somebody does who does not know of rotations.
func (w *world) put(t *testing.T, table string, i item) {
	t.Helper()
	if _, err := w.Set.Dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: i}); err != nil {
		t.Fatal(err)
	}
}

// get reads an item; nil if there is none.
func (w *world) get(t *testing.T, table, id string) item {
	t.Helper()
	out, err := w.Set.Dynamo.GetItem(t.Context(), &dynamodb.GetItemInput{TableName: &table, Key: item{"id": text(id)}, ConsistentRead: aws.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Item
}

func (w *world) remove(t *testing.T, table, id string) {
	t.Helper()
	if _, err := w.Set.Dynamo.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &table, Key: item{"id": text(id)}}); err != nil {
		t.Fatal(err)
	}
}

// update changes one item by an update expression.
func (w *world) update(t *testing.T, table, id, expression string, values item) {
	t.Helper()
	_, err := w.Set.Dynamo.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
		TableName: &table, Key: item{"id": text(id)}, UpdateExpression: &expression, ExpressionAttributeValues: values,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// definitionFile writes the definition of a source to a file, as an operator does.
func definitionFile(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "definition.json")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// application runs act with an envelope client, as a process of an application does
// that starts and stops.
func (w *world) application(t *testing.T, act func(c *envelope.Client)) {
	t.Helper()
	c := w.client(t)
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	act(c)
}

// client is an envelope client, whose leases are short so that drain need not wait.
func (w *world) client(t *testing.T) *envelope.Client {
	t.Helper()
	c, err := envelope.New(t.Context(), envelope.Config{
		ControlTable: w.Env()["MATTER_CONTROL_TABLE"], DynamoDB: dynamodb.NewFromConfig(w.ApplicationConfig()), KMS: kms.NewFromConfig(w.ApplicationConfig()),
		PointerAge: 3 * time.Second, LeaseTTL: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sealRow makes the attributes of an envelope under any KMS key, as an application of
// some day before has written them.
func (w *world) sealRow(t *testing.T, id kek.ID, plain string, encctx, bound map[string]string) (wrapped, sealed []byte) {
	t.Helper()
	dek, wrapped, err := w.Set.KMS.GenerateDataKey(t.Context(), id, encctx)
	if err != nil {
		t.Fatal(err)
	}
	if sealed, err = (aead.Cipher{}).Seal(dek, []byte(plain), bound); err != nil {
		t.Fatal(err)
	}
	return wrapped, sealed
}

// kmsEncrypt is a KMS ciphertext of the data itself.
func (w *world) kmsEncrypt(t *testing.T, id kek.ID, plain string, encctx map[string]string) []byte {
	t.Helper()
	out, err := kms.NewFromConfig(w.AWSConfig()).Encrypt(t.Context(), &kms.EncryptInput{
		KeyId: aws.String(string(id)), Plaintext: []byte(plain), EncryptionContext: encctx,
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.CiphertextBlob
}
