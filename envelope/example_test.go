package envelope_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/test/membucket"
)

// A process makes one client, from dynamodb.NewFromConfig, kms.NewFromConfig and
// s3.NewFromConfig, and a table for each source that it uses, from the definition that the
// table is registered with. The rows are keyed, as in any new table: they name data keys of the
// key table, and a rotation does not write them. The encryption context is the same for all
// rows, so that they share data keys; the row's key is bound to its payload in any case.
func Example() {
	ctx := context.Background()
	dynamo, kms := deployment() // in memory, for this example
	client, err := envelope.New(ctx, envelope.Config{
		ControlTable: "matter-control", DynamoDB: dynamo, KMS: kms,
		Keys: &envelope.KeyTable{Table: "matter-keys", Bucket: "matter-audit", S3: membucket.New()},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	orders, err := client.Table(ctx, envelope.TableConfig{
		Table: "orders", Envelope: "keyed", Ciphertext: "ciphertext", Context: map[string]string{"table": "orders"},
	})
	if err != nil {
		log.Fatal(err)
	}
	key := envelope.Item{"id": &ddbtypes.AttributeValueMemberS{Value: "o-1"}}
	item := envelope.Item{"id": key["id"], "tenant": &ddbtypes.AttributeValueMemberS{Value: "acme"}}
	if err := orders.Insert(ctx, item, []byte("two apples")); err != nil {
		log.Fatal(err)
	}
	if err := orders.Update(ctx, key, func(row *envelope.Row) error {
		row.Plaintext = append(row.Plaintext, ", one pear"...)
		return nil
	}); err != nil {
		log.Fatal(err)
	}
	row, err := orders.Get(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", row.Plaintext)
	// Output: two apples, one pear
}

// An embedded row carries its wrapped data key, and every rotation writes it. The row's key must
// be bound to the payload by the definition, so that a payload does not open in another row.
func Example_embedded() {
	ctx := context.Background()
	dynamo, kms := deployment()
	client, err := envelope.New(ctx, envelope.Config{ControlTable: "matter-control", DynamoDB: dynamo, KMS: kms})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	orders, err := client.Table(ctx, envelope.TableConfig{
		Table: "orders", KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
		Context: map[string]string{"table": "orders"}, Bind: map[string]string{"id": "$id"},
	})
	if err != nil {
		log.Fatal(err)
	}
	item := envelope.Item{"id": &ddbtypes.AttributeValueMemberS{Value: "o-1"}}
	if err := orders.Insert(ctx, item, []byte("two apples")); err != nil {
		log.Fatal(err)
	}
	row, err := orders.Get(ctx, item)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", row.Plaintext)
	// Output: two apples
}

// A record that does not go into a table is sealed with a reference, which lasts
// until the record is written.
func ExampleClient_Begin() {
	ctx := context.Background()
	dynamo, kms := deployment()
	client, err := envelope.New(ctx, envelope.Config{ControlTable: "matter-control", DynamoDB: dynamo, KMS: kms})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	ref, err := client.Begin(ctx)
	if err != nil {
		log.Fatal(err)
	}
	encctx := map[string]string{"purpose": "example"}
	sealed, err := ref.Seal(ctx, []byte("secret"), encctx)
	if err != nil {
		log.Fatal(err)
	}
	// Write sealed here.
	ref.End()

	plain, err := client.Open(ctx, sealed, encctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, sealed under %s in epoch %d\n", plain, sealed.KEKID, sealed.Epoch)
	// Output: secret, sealed under kek-0001 in epoch 1
}

// A large object is encrypted under a key of its own, which a row keeps.
func ExampleNewEncryptingWriter() {
	key, encctx := envelope.NewStreamKey(), map[string]string{"object": "report.pdf"}

	var object bytes.Buffer // goes to S3
	w, err := envelope.NewEncryptingWriter(&object, key, encctx)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(w, "a large report"); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	// Then: table.Insert(ctx, item naming the object, key)

	r, err := envelope.NewDecryptingReader(&object, key, encctx)
	if err != nil {
		log.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", plain)
	// Output: a large report
}

// In Lambda, write the counts to standard output when an invocation ends.
func ExampleEMF() {
	at := func() time.Time { return time.UnixMilli(1_700_000_000_000) }
	metrics := envelope.NewEMF(os.Stdout, "prod", at)
	if err := metrics.Flush(envelope.Stats{CacheHits: 3}); err != nil { // client.Stats()
		log.Fatal(err)
	}
	// Output: {"_aws":{"CloudWatchMetrics":[{"Dimensions":[["stack"]],"Metrics":[{"Name":"dek_cache_hits","Unit":"Count"},{"Name":"dek_cache_misses","Unit":"Count"},{"Name":"in_flight_references","Unit":"Count"},{"Name":"orphaned_key_reference","Unit":"Count"},{"Name":"pointer_errors","Unit":"Count"},{"Name":"refused_writes","Unit":"Count"},{"Name":"revoked_leases","Unit":"Count"}],"Namespace":"Matter"}],"Timestamp":1700000000000},"dek_cache_hits":3,"dek_cache_misses":0,"in_flight_references":0,"orphaned_key_reference":0,"pointer_errors":0,"refused_writes":0,"revoked_leases":0,"stack":"prod"}
}
