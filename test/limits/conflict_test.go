package limits_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	dynamodbsdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/limits"
	"github.com/matter-ops/kms-rotation/test/memddb"
)

// keyService answers at once: the question is DynamoDB.
type keyService struct{}

func (keyService) GenerateDataKey(_ context.Context, in *kms.GenerateDataKeyInput, _ ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	wrapped := fmt.Sprint(in.EncryptionContext)
	dek := sha256.Sum256([]byte(wrapped))
	return &kms.GenerateDataKeyOutput{Plaintext: dek[:], CiphertextBlob: []byte(wrapped)}, nil
}

func (keyService) Decrypt(_ context.Context, in *kms.DecryptInput, _ ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	dek := sha256.Sum256(in.CiphertextBlob)
	return &kms.DecryptOutput{Plaintext: dek[:]}, nil
}

type objects struct{}

func (objects) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	_, err := io.Copy(io.Discard, in.Body)
	return &s3.PutObjectOutput{}, err
}

// inserts is what a load of inserts met.
type inserts struct {
	kind    string
	shards  int
	rate    float64
	made    int
	failed  int // after every try that the client makes
	p50     time.Duration
	p99     time.Duration
	rows    limits.Requests
	records limits.Requests
}

// insertLoad inserts rows from so many processes, at random moments, so many a second in all,
// for a while of virtual time.
func insertLoad(t *testing.T, seed uint64, kind string, processes, shards int, rate float64, while time.Duration) (out inserts) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		dice := limits.NewDice(seed)
		db := limits.DefaultConflicting(dice)
		control := ddbtest.ControlTable(t, db.DB)
		keys := ddbtest.Table(t, db.DB, ddbtest.Key{Name: "pk", Type: "S"})
		table := ddbtest.Table(t, db.DB, ddbtest.Key{Name: "id", Type: "S"})
		items := []memddb.Item{
			controltable.EncodePointer(kek.Pointer{KEKID: "kek-1", Epoch: 1}),
			controltable.EncodeKEK(kek.KEK{ID: "kek-1", State: kek.Active, FenceShards: shards}),
		}
		for shard := range shards {
			items = append(items, controltable.EncodeFence(controltable.PKFence, "kek-1", shard, controltable.Open), controltable.EncodeFence(keyrecord.PKFence, "kek-1", shard, controltable.Open))
		}
		for _, i := range items {
			if _, err := db.DB.PutItem(t.Context(), &dynamodbsdk.PutItemInput{TableName: &control, Item: i}); err != nil {
				t.Fatal(err)
			}
		}
		random := func(n int64) int64 { return int64(dice.Float64() * float64(n)) }
		var clients []*envelope.Table
		for range processes {
			c, err := envelope.New(t.Context(), envelope.Config{
				ControlTable: control, DynamoDB: db, KMS: keyService{}, Random: random,
				Keys: &envelope.KeyTable{Table: keys, Bucket: "audit", S3: objects{}},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // the end of the test
			client, err := c.Table(t.Context(), envelope.TableConfig{
				Table: table, Envelope: kind, KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "data", Context: map[string]string{"table": "orders"},
				Bind: map[string]string{"id": "$id"}, Keys: []string{"id"},
			})
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, client)
		}
		out = inserts{kind: kind, shards: shards, rate: rate}
		var mu sync.Mutex
		var took []time.Duration
		plain := bytes.Repeat([]byte("x"), 500)
		n := 0
		traffic := &limits.Traffic{Dice: dice, Rate: func(time.Duration) float64 { return rate }, Call: func() error {
			mu.Lock()
			n++
			id := n
			mu.Unlock()
			began := time.Now()
			row := envelope.Item{"id": &types.AttributeValueMemberS{Value: fmt.Sprintf("row-%d", id)}}
			err := clients[id%len(clients)].Insert(context.Background(), row, plain)
			mu.Lock()
			defer mu.Unlock()
			if took = append(took, time.Since(began)); err == nil {
				return nil
			}
			out.failed++
			if !errors.Is(err, envelope.ErrContended) {
				t.Errorf("an insert: %v", err)
			}
			return nil // the application is told; it does not try again
		}}
		ctx, cancel := context.WithTimeout(t.Context(), while)
		defer cancel()
		traffic.Run(ctx)
		slices.Sort(took)
		out.made = len(took) - out.failed
		out.p50, out.p99 = took[len(took)/2], took[len(took)*99/100]
		out.rows, out.records = db.Requests(table), db.Requests(keys)
	})
	return out
}

// TestInserts: 4,000 inserts a second from 50 processes against a DynamoDB that conflicts as
// documented. Keyed inserts meet no conflict; embedded ones check the shards of one fence and
// meet one another there. With -v it prints the table of docs/performance.md.
func TestInserts(t *testing.T) {
	const processes, shards, most = 50, 8, 20 // 8 is the template's default, 20 the most
	while, between := time.Second, []float64(nil)
	if testing.Verbose() {
		while, between = 4*time.Second, []float64{100, 200, 500, 1000}
		fmt.Println("| rows | fence shards | inserts a second | conflicts | failed | write units an insert | median | 99 % |\n|---|---:|---:|---:|---:|---:|---:|---:|")
	}
	measure := func(kind string, shards int, rate float64) inserts {
		r := insertLoad(t, 1, kind, processes, shards, rate, while)
		if testing.Verbose() {
			fmt.Printf("| %s | %d | %.0f | %.1f %% | %.1f %% | %.1f | %s | %s |\n", kind, shards, rate, 100*float64(r.rows.Conflicts)/float64(r.rows.Sent),
				100*float64(r.failed)/float64(r.made+r.failed), r.rows.Units/float64(r.made), r.p50.Round(100*time.Microsecond), r.p99.Round(time.Millisecond))
		}
		return r
	}
	keyed := measure(envelope.EnvelopeKeyed, shards, 4000)
	if keyed.rows.Conflicts != 0 || keyed.failed != 0 || keyed.rows.Units != float64(keyed.made) || float64(keyed.made) < 3800*while.Seconds() {
		t.Errorf("keyed: %+v", keyed)
	}
	if r := keyed.records; r.Sent < processes || r.Sent-r.Conflicts != processes {
		t.Errorf("%d processes made data keys in %d transactions, %d of them cancelled", processes, r.Sent, r.Conflicts)
	}
	if few := measure(envelope.EnvelopeEmbedded, shards, 50); few.failed != 0 || few.rows.Conflicts == 0 {
		t.Errorf("embedded: %+v", few)
	}
	for _, rate := range between {
		measure(envelope.EnvelopeEmbedded, shards, rate)
		measure(envelope.EnvelopeEmbedded, most, rate)
	}
	if many := measure(envelope.EnvelopeEmbedded, shards, 4000); many.failed == 0 || many.rows.Conflicts < many.rows.Sent/2 || many.p50 < 2*keyed.p50 {
		t.Errorf("embedded: %+v", many)
	}
}

// TestConflicting: the simulator conflicts as DynamoDB documents, and no longer than a
// transaction takes.
func TestConflicting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := limits.DefaultConflicting(limits.NewDice(1))
		table := ddbtest.Table(t, db.DB, ddbtest.Key{Name: "id", Type: "S"})
		item := func(id string) memddb.Item { return memddb.Item{"id": &types.AttributeValueMemberS{Value: id}} }
		put := func(id string) types.TransactWriteItem {
			return types.TransactWriteItem{Put: &types.Put{TableName: &table, Item: item(id)}}
		}
		check := func(id string) types.TransactWriteItem {
			return types.TransactWriteItem{ConditionCheck: &types.ConditionCheck{TableName: &table, Key: item(id), ConditionExpression: aws.String("attribute_not_exists(id)")}}
		}
		transact := func(items ...types.TransactWriteItem) []controltable.Reason {
			_, err := db.TransactWriteItems(t.Context(), &dynamodbsdk.TransactWriteItemsInput{TransactItems: items})
			if got := controltable.Reasons(err); got != nil || err == nil {
				return got
			}
			t.Error("a transaction failed as a whole")
			return nil
		}
		// A transaction is under way that puts a and checks s.
		during := func(f func()) {
			var wg sync.WaitGroup
			wg.Go(func() {
				if got := transact(put("a"), check("s")); got != nil {
					t.Errorf("the first transaction: %v", got)
				}
			})
			time.Sleep(time.Millisecond)
			f()
			wg.Wait()
		}
		single := func(id string) error {
			_, err := db.PutItem(t.Context(), &dynamodbsdk.PutItemInput{TableName: &table, Item: item(id)})
			return err
		}
		innocent, conflict := controltable.Innocent, controltable.Conflict
		during(func() {
			if got := transact(put("b"), check("s")); !slices.Equal(got, []controltable.Reason{innocent, conflict}) {
				t.Errorf("two that check one item: %v", got)
			}
		})
		during(func() {
			if got := transact(put("c"), check("t")); got != nil {
				t.Errorf("two that share no item: %v", got)
			}
		})
		during(func() {
			if err := single("s"); !controltable.Busy(err) {
				t.Errorf("a write of an item that is checked: %v", err)
			}
			if err := single("d"); err != nil {
				t.Errorf("a write of another item: %v", err)
			}
		})
		during(func() {
			if _, err := db.GetItem(t.Context(), &dynamodbsdk.GetItemInput{TableName: &table, Key: item("a")}); err != nil {
				t.Errorf("a read: %v", err)
			}
		})
		if got := transact(put("a"), check("s")); got != nil {
			t.Errorf("one after the other: %v", got)
		}
	})
}
