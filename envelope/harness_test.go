package envelope_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/memstore/awsapi"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

type (
	item = envelope.Item
	s    = ddbtypes.AttributeValueMemberS
	n    = ddbtypes.AttributeValueMemberN
	b    = ddbtypes.AttributeValueMemberB
)

// keys is KMS as the SDK shows it, on memstore's.
type keys struct {
	*memstore.KMS
	mu    sync.Mutex
	calls map[string]int
}

func (k *keys) called(op string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls[op]++
}

func (k *keys) count(op string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[op]
}

func (k *keys) GenerateDataKey(ctx context.Context, in *kms.GenerateDataKeyInput, o ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	k.called("GenerateDataKey")
	return awsapi.KMS{Keys: k.KMS}.GenerateDataKey(ctx, in, o...)
}

func (k *keys) Decrypt(ctx context.Context, in *kms.DecryptInput, o ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.called("Decrypt")
	return awsapi.KMS{Keys: k.KMS}.Decrypt(ctx, in, o...)
}

// dynamoDB is what a deployment and its tests use of a DynamoDB.
type dynamoDB interface {
	ddb.API
	dynamosource.API
	ddbtest.Tables
}

// site is a deployment: dynoxide, KMS and an audit bucket in memory, and the
// real steps.
type site struct {
	t       testing.TB
	dynamo  dynamoDB
	control string
	table   string
	keys    *keys
	steps   *rotation.Steps
	def     dynamosource.Config // of the table
}

// openTable opens a source whose fence of rows a control table has.
func openTable(client dynamosource.API, control string, def kek.Source) (source.Driver, error) {
	t, err := dynamosource.Open(client, def)
	if err != nil {
		return nil, err
	}
	return t.FencedBy(control), nil
}

const shards = 3

// inMemory is the test whose sites are on the DynamoDB in memory, held to DynamoDB
// Local call by call.
const inMemory = "TestInMemory"

func newSite(tb testing.TB) *site {
	tb.Helper()
	if strings.HasPrefix(tb.Name(), inMemory) {
		return newSiteOn(tb, ddbtest.NewTwin(tb))
	}
	return newSiteOn(tb, ddbtest.Client(tb))
}

func newSiteOn(tb testing.TB, dynamo dynamoDB) *site {
	tb.Helper()
	w := newSiteBeforeGenesis(tb, dynamo)
	w.genesis(tb)
	return w
}

func newSiteBeforeGenesis(tb testing.TB, dynamo dynamoDB, change ...func(*dynamosource.Config)) *site {
	tb.Helper()
	w := &site{t: tb, dynamo: dynamo}
	w.control = ddbtest.ControlTable(tb, w.dynamo)
	w.table = ddbtest.Table(tb, w.dynamo, ddbtest.Key{Name: "id", Type: ddbtypes.ScalarAttributeTypeS})
	w.def = sourceConfig(w.table)
	for _, f := range change {
		f(&w.def)
	}
	world := memstore.New("test", time.Now)
	w.keys = &keys{KMS: world.KMS(), calls: map[string]int{}}
	store := ddb.New(w.dynamo, w.control, "test", time.Now)
	j := &journal.Journal{Registry: store, Outbox: store, AuditBucket: world.Vault(), Now: time.Now, Actor: "test"}
	w.steps = &rotation.Steps{
		Config:  rotation.Config{DrainMaxWait: time.Minute, Segments: 2, FenceShards: shards, MaxMints: 3, CanaryRounds: 1},
		Journal: j, Gates: gates.Gates{Rules: gates.Rules{Window: gates.Window{Zone: time.UTC}}, Journal: j}, Drainage: store, Checkpoints: rotation.SealCheckpoints(store, memstore.CheckpointKeys{}),
		OpenSource: func(def kek.Source) (source.Driver, error) { return openTable(w.dynamo, w.control, def) },
		Keys:       keyring.Keyring{Admin: world.KMS(), Wrapper: world.KMS(), Cipher: aead.Cipher{}, Random: func([]byte) {}},
	}
	return w
}

// genesis registers a first KEK, the table and more sources.
func (w *site) genesis(tb testing.TB, more ...kek.Source) {
	tb.Helper()
	first, err := w.keys.Create(tb.Context(), "genesis", 1, "first", keyring.Key{})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.steps.Genesis(tb.Context(), first.ID, "first", append(more, w.def.Source())); err != nil {
		tb.Fatal(err)
	}
}

// sourceConfig uses names that are reserved words or have odd characters.
func sourceConfig(table string) dynamosource.Config {
	return dynamosource.Config{
		Name: "orders", Table: table, KEKID: "key", WrappedDEK: "wrapped.dek", Ciphertext: "data", Version: "version",
		Context: map[string]string{"table": "orders", "tenant": "$tenant"}, Bind: map[string]string{"id": "$id"}, Format: "matter",
	}
}

// tableConfig is the same definition, read by an application.
func tableConfig(c dynamosource.Config) envelope.TableConfig {
	var out envelope.TableConfig
	if err := json.Unmarshal([]byte(c.Source().Definition), &out); err != nil {
		panic(err)
	}
	return out
}

func (w *site) client(change ...func(*envelope.Config)) *envelope.Client {
	w.t.Helper()
	cfg := envelope.Config{ControlTable: w.control, DynamoDB: w.dynamo, KMS: w.keys}
	for _, f := range change {
		f(&cfg)
	}
	c, err := envelope.New(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

func (w *site) open(c *envelope.Client) *envelope.Table {
	w.t.Helper()
	table, err := c.Table(w.t.Context(), tableConfig(w.def))
	if err != nil {
		w.t.Fatal(err)
	}
	return table
}

// begin takes a rotation up to the switch, the switch included.
func (w *site) begin(id string, mode kek.Mode) {
	w.t.Helper()
	ctx, in := w.t.Context(), rotation.StepInput{RotationID: id}
	_, err := w.steps.Preflight(ctx, rotation.PreflightInput{
		ExecutionName: id, Input: rotation.ExecutionInput{Mode: string(mode), Reason: "test", Window: "any"},
	})
	w.must("preflight", err)
	for done := false; !done; {
		out, err := w.steps.Verify(ctx, rotation.VerifyInput{RotationID: id, Census: true})
		w.must("census", err)
		done = out.Done
	}
	_, err = w.steps.Mint(ctx, in)
	w.must("mint", err)
	_, err = w.steps.Rewrap(ctx, rotation.RewrapInput{RotationID: id, Rehearse: true})
	w.must("rehearse", err)
	_, err = w.steps.DualUnwrap(ctx, in)
	w.must("dualunwrap", err)
	_, err = w.steps.Switch(ctx, in)
	w.must("switch", err)
}

// drain polls until every lease on the old KEK is gone and its fence is shut.
func (w *site) drain(id string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := w.steps.Drain(w.t.Context(), rotation.StepInput{RotationID: id})
		w.must("drain", err)
		if out.Done {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("drain: still %d leases with %d in flight", out.Leases, out.Refs)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// finish rewraps every row, retires the old KEK and verifies.
func (w *site) finish(id string) {
	w.t.Helper()
	ctx := w.t.Context()
	for segment := range 2 {
		out, err := w.steps.Rewrap(ctx, rotation.RewrapInput{RotationID: id, Source: "orders", Segment: segment})
		w.must("rewrap", err)
		if !out.Done {
			w.t.Fatalf("rewrap: %+v", out)
		}
	}
	_, err := w.steps.Rewrap(ctx, rotation.RewrapInput{RotationID: id, Complete: true})
	w.must("rewrap complete", err)
	for done := false; !done; {
		out, err := w.steps.Retire(ctx, rotation.RetireInput{RotationID: id})
		w.must("retire", err)
		done = out.Done
	}
	for done := false; !done; {
		out, err := w.steps.Verify(ctx, rotation.VerifyInput{RotationID: id})
		w.must("verify", err)
		done = out.Done
	}
}

func (w *site) rotate(id string, mode kek.Mode) {
	w.t.Helper()
	w.begin(id, mode)
	w.drain(id)
	w.finish(id)
}

func (w *site) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

func (w *site) pointer() kek.Pointer {
	w.t.Helper()
	p, err := ddbtest.NewDataPlane(w.dynamo, w.control).Pointer(w.t.Context())
	w.must("pointer", err)
	return p
}

// leases are those on a KEK, as the rotation sees them.
func (w *site) leases(id kek.ID) []rotation.Lease {
	w.t.Helper()
	l, err := w.steps.Drainage.Leases(w.t.Context(), id)
	w.must("leases", err)
	return l
}

// item reads a row as it is stored; nil if it is not.
func (w *site) item(id string) item {
	w.t.Helper()
	out, err := w.dynamo.GetItem(w.t.Context(), &dynamodb.GetItemInput{TableName: &w.table, Key: rowKey(id), ConsistentRead: aws.Bool(true)})
	w.must("GetItem", err)
	return out.Item
}

func (w *site) put(i item) {
	w.t.Helper()
	_, err := w.dynamo.PutItem(w.t.Context(), &dynamodb.PutItemInput{TableName: &w.table, Item: i})
	w.must("PutItem", err)
}

func rowKey(id string) item { return item{"id": &s{Value: id}} }

func row(id string) item {
	return item{"id": &s{Value: id}, "tenant": &s{Value: "acme"}, "size": &n{Value: "1"}}
}

func under(tb testing.TB, i item) kek.ID {
	tb.Helper()
	v, ok := i["key"].(*s)
	if !ok {
		tb.Fatalf("no envelope: %v", i)
	}
	return kek.ID(v.Value)
}

func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("never: " + what)
		}
	}
}

const slowAge = 200 * time.Second

// slow is a client that learns nothing by itself while a test runs.
func slow(c *envelope.Config) { c.PointerAge, c.LeaseTTL = slowAge, 3*slowAge }

// quick is one that follows the pointer in a fraction of a second.
func quick(c *envelope.Config) { c.PointerAge, c.LeaseTTL = 200*time.Millisecond, 2*time.Second }

func name(i int) string { return fmt.Sprintf("row-%d", i) }
