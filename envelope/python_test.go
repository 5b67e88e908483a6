package envelope_test

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// keyedPython reads the client's rows and writes rows of its own, with the functions that
// docs/format.md shows.
const keyedPython = `
import sys, boto3
from botocore.exceptions import ClientError
dynamo_url, moto_url, name, keys, control, kek = sys.argv[1:]
dynamodb = boto3.client("dynamodb", endpoint_url=dynamo_url)
kms, s3 = boto3.client("kms", endpoint_url=moto_url), boto3.client("s3", endpoint_url=moto_url)
table = {"name": name, "keys": ["id", "line"], "dek_id": "dek_id", "ciphertext": "data", "epoch": "kek_epoch",
         "context": {"tenant": "$tenant", "price": "$$5"}, "bind": {"size": "$size"}}
def key(id): return {"id": {"S": id}, "line": {"N": "-1.5"}}
def get(id): return dynamodb.get_item(TableName=name, Key=key(id), ConsistentRead=True)["Item"]
def opened(item): return open_keyed(dynamodb, kms, {kek}, keys, table, item)
def refused(f, code):
    try:
        f()
    except ClientError as e:
        return e.response["Error"]["Code"] == code
    return False

assert opened(get("go-1")) == b"of Go 1" and opened(get("go-2")) == b"of Go 2"
moved = {**get("go-1"), "id": {"S": "go-2"}}
try:
    opened(moved)
    raise SystemExit("a payload opens in another row")
except AssertionError:
    raise
except Exception as e:
    assert type(e).__name__ == "InvalidTag", e

item = {**key("python-1"), "tenant": {"S": "acme"}, "size": {"N": "7"}}
context = resolve(table["context"], item)
pointer = {"kek_id": kek, "epoch": 3}
record, dek = make_dek(dynamodb, kms, s3, "audit", keys, control, pointer, 3, context)
sealed = seal_keyed(table, record, dek, item, b"of Python")
insert_keyed(dynamodb, table, sealed)
assert refused(lambda: insert_keyed(dynamodb, table, sealed), "ConditionalCheckFailedException")

read = get("go-1")
changed = seal_keyed(table, record, dek, read, opened(read) + b", changed")
update_keyed(dynamodb, table, read, changed)
assert refused(lambda: update_keyed(dynamodb, table, read, changed), "ConditionalCheckFailedException")
for shard in ("00", "01", "02"):
    dynamodb.put_item(TableName=control, Item={"pk": {"S": "DEKFENCE#" + kek}, "sk": {"S": shard}, "state": {"S": "sealed"}})
assert refused(lambda: make_dek(dynamodb, kms, s3, "audit", keys, control, pointer, 3, context), "TransactionCanceledException")
print(record["dek_id"])
`

// TestPythonReadsAndWrites: a program that was written from docs/format.md alone reads the
// client's keyed rows, and the client reads and updates its, over HTTP.
func TestPythonReadsAndWrites(t *testing.T) {
	python, code := shownPython(t)
	moto, err := backend.Moto(t.Context(), backend.MotoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(moto.Stop)
	theirs := aws.Config{BaseEndpoint: &moto.URL, Region: ddbtest.Region, Credentials: credentials.NewStaticCredentialsProvider("local", "local", "")}
	keys, objects := kms.NewFromConfig(theirs), s3.NewFromConfig(theirs, func(o *s3.Options) { o.UsePathStyle = true })
	dynamo := ddbtest.Client(t)
	w := &keyedSite{site: &site{t: t, dynamo: dynamo}}
	made, err := keys.CreateKey(t.Context(), &kms.CreateKeyInput{})
	w.must("create key", err)
	id, bucket := kek.ID(*made.KeyMetadata.KeyId), "audit"
	_, err = objects.CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &bucket, CreateBucketConfiguration: &s3types.CreateBucketConfiguration{LocationConstraint: ddbtest.Region},
	})
	w.must("create bucket", err)
	w.control, w.keyTable = ddbtest.ControlTable(t, dynamo), ddbtest.Table(t, dynamo, ddbtest.Key{Name: "pk", Type: "S"})
	w.table = ddbtest.Table(t, dynamo, ddbtest.Key{Name: "id", Type: "S"}, ddbtest.Key{Name: "line", Type: "N"})
	for _, i := range []item{
		controltable.EncodePointer(kek.Pointer{KEKID: id, KeyARN: *made.KeyMetadata.Arn, Epoch: 3}),
		controltable.EncodeKEK(kek.KEK{ID: id, ARN: *made.KeyMetadata.Arn, State: kek.Active, FenceShards: shards}),
	} {
		_, err := dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &w.control, Item: i})
		w.must("put", err)
	}
	w.fence(id, controltable.Open)
	c, err := envelope.New(t.Context(), envelope.Config{
		ControlTable: w.control, DynamoDB: dynamo, KMS: keys, Keys: &envelope.KeyTable{Table: w.keyTable, Bucket: bucket, S3: objects},
	})
	w.must("client", err)
	defer c.Close() //nolint:errcheck // the end of the test
	table, err := c.Table(t.Context(), envelope.TableConfig{
		Table: w.table, Envelope: envelope.EnvelopeKeyed, Ciphertext: "data",
		Context: map[string]string{"tenant": "$tenant", "price": "$$5"}, Bind: map[string]string{"size": "$size"},
	})
	w.must("table", err)
	key := func(id string) item { return item{"id": &s{Value: id}, "line": &n{Value: "-1.5"}} }
	for i := range 2 {
		row := key(fmt.Sprintf("go-%d", i+1))
		row["tenant"], row["size"] = &s{Value: "acme"}, &n{Value: "7"}
		w.must("insert", table.Insert(t.Context(), row, fmt.Appendf(nil, "of Go %d", i+1)))
	}

	cmd := exec.CommandContext(t.Context(), python, "-c", code+keyedPython, ddbtest.Endpoint(t), moto.URL, w.table, w.keyTable, w.control, string(id))
	cmd.Env = []string{"AWS_ACCESS_KEY_ID=local", "AWS_SECRET_ACCESS_KEY=local", "AWS_DEFAULT_REGION=" + ddbtest.Region, "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	dekID := strings.TrimSpace(string(out))
	if err != nil || keyrecord.CheckID(dekID) != nil {
		t.Fatalf("%v: %s", err, out)
	}

	for id, want := range map[string]string{"go-1": "of Go 1, changed", "go-2": "of Go 2", "python-1": "of Python"} {
		if got, err := table.Get(t.Context(), key(id)); err != nil || string(got.Plaintext) != want {
			t.Errorf("%s: %q, %v", id, got.Plaintext, err)
		}
	}
	w.must("update", table.Update(t.Context(), key("python-1"), func(r *envelope.Row) error { r.Plaintext = []byte("of Go now"); return nil }))
	if got, err := table.Get(t.Context(), key("python-1")); err != nil || string(got.Plaintext) != "of Go now" {
		t.Errorf("%q, %v", got.Plaintext, err)
	}
	r, ok := w.records()[dekID]
	if !ok || r.KEKID != id || r.BornEpoch != 3 {
		t.Fatalf("%+v", r)
	}
	object, err := objects.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String(keyrecord.CopyKey(r))})
	w.must("get the copy", err)
	body, err := io.ReadAll(object.Body)
	w.must("read the copy", err)
	if _, err := keyrecord.DecodeCopy(keyrecord.CopyKey(r), body); err != nil {
		t.Error(err)
	}
}
