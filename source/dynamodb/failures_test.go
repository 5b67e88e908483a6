package dynamodb_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/sourcetest"
)

// failed is a table with one row, on a DynamoDB that fails.
type failed struct {
	*ddbtest.Failing
	driver *dynamosource.Table
	row    source.Row
	item   item
}

func newFailed(t *testing.T) *failed {
	t.Helper()
	f := &failed{Failing: &ddbtest.Failing{DB: memddb.New()}}
	table := ddbtest.Table(t, f, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	f.item = item{
		"id": &s{Value: "a"}, "key": &s{Value: "kek-0"}, "dek": &b{Value: []byte("dek")}, "data": &b{Value: []byte("data")}, "kek_epoch": &n{Value: "1"},
	}
	put(t, f, table, f.item)
	cfg := dynamosource.Config{Name: "orders", Table: table, KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Context: map[string]string{"id": "$id"}}
	f.row = only(t, open(t, f, cfg), source.ScanRequest{Total: 1, Payload: true})
	f.driver = open(t, f, cfg) // which has not described the table yet
	return f
}

// TestFailures: whichever request of a call fails, the call fails, names the operation
// and keeps the cause, and what it returns beside is nothing. And every read is
// consistent.
func TestFailures(t *testing.T) {
	with := source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}
	results := func(err error, v ...any) ([]any, error) { return v, err }
	for name, call := range map[string]func(ctx context.Context, f *failed) ([]any, error){
		"ReadBackup": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.ReadBackup(ctx, f.item)
			return results(err, v.Row.ID)
		},
		"ReadStored": func(ctx context.Context, f *failed) ([]any, error) {
			v, ok, err := f.driver.ReadStored(ctx, source.Backup{Row: f.row})
			return results(err, v.ID, ok)
		},
		"Check": func(ctx context.Context, f *failed) ([]any, error) {
			_, err := f.driver.Check(ctx) // notes of the table it may have
			return results(err)
		},
		"Scan": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.Scan(ctx, source.ScanRequest{Total: 1})
			return results(err, v)
		},
		"Replace": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.Replace(ctx, f.row, with)
			return results(err, v)
		},
		"Rehearse": func(ctx context.Context, f *failed) ([]any, error) { return results(f.driver.Rehearse(ctx, f.row)) },
		"Label": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.Label(ctx, f.row, "kek-1")
			return results(err, v)
		},
		"Reread": func(ctx context.Context, f *failed) ([]any, error) {
			v, ok, err := f.driver.Reread(ctx, f.row, true)
			return results(err, v.ID, ok)
		},
		"EncryptedBy": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.EncryptedBy(ctx)
			return results(err, v)
		},
		"Size": func(ctx context.Context, f *failed) ([]any, error) {
			v, err := f.driver.Size(ctx)
			return results(err, v)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ddbtest.FailEach(t, func(t *testing.T) (*ddbtest.Failing, func(context.Context) ([]any, error)) {
				f := newFailed(t)
				return f.Failing, func(ctx context.Context) ([]any, error) { return call(ctx, f) }
			})
		})
	}
}

// TestReplaceOnABrokenWire: the SDK repeats a conditional write whose answer was lost; it
// fails its own condition, which the caller must survive.
func TestReplaceOnABrokenWire(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: "S"})
	put(t, client, table, envelopeItem(item{"id": &s{Value: "a"}}, "a", sourcetest.Envelope{KEK: "kek-0", WrappedDEK: []byte("old"), Ciphertext: []byte("c")}))
	bad := ddbtest.Client(t, func(o *dynamodb.Options) {
		o.HTTPClient = &http.Client{Transport: &ddbtest.Wire{Op: "UpdateItem", Sent: true}}
	})
	driver, err := dynamosource.New(bad, sourceConfig(table))
	if err != nil {
		t.Fatal(err)
	}
	page, err := driver.Scan(t.Context(), source.ScanRequest{Total: 1})
	if err != nil {
		t.Fatal(err)
	}
	with := source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new")}
	if ok, err := driver.Replace(t.Context(), page.Rows[0], with); err != nil || ok {
		t.Fatalf("%v, %v, want false", ok, err)
	}
	if row, ok, err := driver.Reread(t.Context(), page.Rows[0], false); err != nil || !ok || row.KEK != "kek-1" {
		t.Fatalf("%v, %v, %v: the row must have been rewrapped", row, ok, err)
	}
}
