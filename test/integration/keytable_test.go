package integration

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/source/deks"
)

// TestKeyTable: the shipped functions, with their roles, rewrap records that an application
// has created with the policy that the stack gives it, and put back one that was deleted. Each
// version has its copy in the audit bucket. The application may delete no record.
func TestKeyTable(t *testing.T) {
	ctx := t.Context()
	w := up(t, nil)
	table, bucket := w.Outputs["KeyTableName"], w.Outputs["AuditBucketName"]
	def := deks.Config{Table: table}.Source()
	def.Name = "keys"
	if _, err := w.Deployment.Steps.AddSource(ctx, def); err != nil {
		t.Fatal(err)
	}
	cfg, err := w.ConfigWith(ctx, w.Outputs["DataPlanePolicyArn"])
	if err != nil {
		t.Fatal(err)
	}
	tables, objects, keys := dynamodb.NewFromConfig(cfg), s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }), kms.NewFromConfig(cfg)
	plain := map[string][]byte{}
	create := func(name byte) string {
		t.Helper()
		p := w.view(t, "").Pointer
		r := keyrecord.Record{
			DEKID: keyrecord.NewID([16]byte{name}), KEKID: p.KEKID, KEKEpoch: p.Epoch, BornEpoch: p.Epoch,
			Context: map[string]string{"table": "orders"}, CreatedAt: time.Now().UTC().Truncate(time.Second),
		}
		made, err := keys.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String(string(p.KEKID)), EncryptionContext: keyrecord.EncryptionContext(r), KeySpec: "AES_256"})
		if err != nil {
			t.Fatal(err)
		}
		r.WrappedDEK = made.CiphertextBlob
		if err := keyrecord.PutCopy(ctx, objects, bucket, r); err != nil {
			t.Fatal(err)
		}
		items := keyrecord.CreateItems(table, w.Env()["MATTER_CONTROL_TABLE"], r, 0)
		if _, err := tables.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items}); err != nil {
			t.Fatal(err)
		}
		plain[r.DEKID] = made.Plaintext
		return r.DEKID
	}
	sound := func(rotation string) {
		t.Helper()
		for id, want := range plain {
			out, err := tables.GetItem(ctx, &dynamodb.GetItemInput{TableName: &table, Key: keyrecord.Key(id), ConsistentRead: aws.Bool(true)})
			if err != nil {
				t.Fatal(err)
			}
			r, err := keyrecord.Decode(out.Item)
			if err != nil {
				t.Fatal(err)
			}
			dek, err := keys.Decrypt(ctx, &kms.DecryptInput{KeyId: aws.String(string(r.KEKID)), CiphertextBlob: r.WrappedDEK, EncryptionContext: keyrecord.EncryptionContext(r)})
			if v := w.view(t, rotation); err != nil || r.KEKID != v.Pointer.KEKID || r.KEKEpoch != v.Pointer.Epoch || !bytes.Equal(dek.Plaintext, want) {
				t.Errorf("%s: record %+v, %v", rotation, r, err)
			}
		}
	}
	gone := create(1)
	create(2)
	if o := w.rotate(t, "keys", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	sound("keys")
	if _, err := tables.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &table, Key: keyrecord.Key(gone)}); err == nil {
		t.Error("an application may delete a record")
	}
	if _, err := w.Set.Dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &table, Key: keyrecord.Key(gone)}); err != nil {
		t.Fatal(err)
	}
	create(3)
	if o := w.rotate(t, "lost", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	sound("lost")
	w.mustHold(t)
	var copies []string
	list := s3.NewListObjectsV2Paginator(w.Set.S3, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String(keyrecord.CopyPrefix)})
	for list.HasMorePages() {
		page, err := list.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			n, err := keyrecord.ParseCopyKey(aws.ToString(o.Key))
			if err != nil {
				t.Error(err)
			}
			copies = append(copies, n.DEKID)
		}
	}
	if got := slices.Compact(slices.Clone(copies)); !slices.Equal(got, slices.Sorted(maps.Keys(plain))) || len(copies) != 8 {
		t.Errorf("%d copies of %q", len(copies), got)
	}
}
