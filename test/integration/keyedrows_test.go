package integration

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/sample"
)

const (
	rowsOfKeyedKey = 50 // keyed rows of a data key, and embedded ones beside them
	corpusCalls    = 64 // of the rewrap to KMS ReEncrypt at most, for the corpus and the rehearsal
	rowsOpened     = 500
)

// TestManyKeyedRows rotates as many keyed rows as MATTER_KEYED_ROWS says through the shipped
// stack, 50 of each data key: a normal rotation that reads the rows, since the first KEK took
// embedded ones, a normal one that reads no row, and an emergency. Then as many embedded rows
// under as many data keys. It prints how long each took, and what the local AWS counted:
//
//	MATTER_KEYED_ROWS=1000000 go test ./test/integration -run TestManyKeyedRows -v -timeout 4h
func TestManyKeyedRows(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("MATTER_KEYED_ROWS"))
	if err != nil || n < rowsOfKeyedKey {
		t.Skipf("MATTER_KEYED_ROWS says how many, at least %d", rowsOfKeyedKey)
	}
	w := alone(t, localaws.Options{Parameters: map[string]string{"Segments": "8", "KmsRate": "100000"}}, "many")
	w.leaveCorpus(t)
	if err := w.AddKeyed(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := manyRows{world: w, rows: n, keys: (n + rowsOfKeyedKey - 1) / rowsOfKeyedKey}
	m.fillKeyed(t)
	m.measure(t, "keyed-first", "{}")
	m.unwritten(t)
	keyed := m.measure(t, "keyed", "{}")
	m.unwritten(t)
	m.measure(t, "keyed-emergency", `{"mode":"emergency","reason":"key material seen in a paste"}`)
	m.openSome(t)
	m.rewritten(t)
	for _, name := range []string{sample.Notes, sample.Keys} {
		if err := w.Deployment.Steps.RemoveSource(t.Context(), name, "only embedded rows are measured from here on"); err != nil {
			t.Fatal(err)
		}
	}
	m.addEmbedded(t)
	embedded := m.measure(t, "embedded", "{}")
	t.Logf("a normal rotation of keyed rows took 1/%.1f of the time of embedded ones", embedded.Seconds()/keyed.Seconds())
}

// manyRows is a stack with as many rows under as many data keys.
type manyRows struct {
	*world
	rows, keys int
}

// leaveCorpus removes the tables of the data set, so that what is counted is of the rows that
// the test adds and of the few known ciphers.
func (w *world) leaveCorpus(t *testing.T) {
	t.Helper()
	for _, cfg := range w.Set.Sources() {
		if err := w.Deployment.Steps.RemoveSource(t.Context(), cfg.Name, "they are not measured"); err != nil {
			t.Fatal(err)
		}
	}
}

// measure rotates, prints what that took, and checks how often the rewrap of keyed rows called
// KMS. The two later passes call it once more for each data key that they prove.
func (m manyRows) measure(t *testing.T, name, input string) time.Duration {
	t.Helper()
	keyed := strings.HasPrefix(name, "keyed")
	m.control(t, "DELETE", "/_local/calls", nil)
	arn := m.start(t, name, input)
	began := time.Now()
	for ; ; time.Sleep(watchEvery) {
		d, err := m.sfn.DescribeExecution(t.Context(), &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err != nil {
			t.Fatal(err)
		}
		if d.Status == types.ExecutionStatusSucceeded {
			break
		}
		if d.Status != types.ExecutionStatusRunning {
			t.Fatalf("%s: %s %s %s", name, d.Status, aws.ToString(d.Error), aws.ToString(d.Cause))
		}
	}
	took := time.Since(began)
	calls := map[string]int{}
	for _, c := range [][2]string{{"kms", "ReEncrypt"}, {"kms", "Decrypt"}, {"kms", "GenerateDataKey"}, {"dynamodb", "Scan"}, {"dynamodb", "UpdateItem"}, {"s3", "PutObject"}} {
		for _, function := range []string{"rewrap", "retire", "verify"} {
			calls[c[1]+" by "+function] = m.countCalls(t, c[0], c[1], func(f string) bool { return f == function })
		}
	}
	maps.DeleteFunc(calls, func(_ string, n int) bool { return n == 0 })
	t.Logf("%s: %d rows under %d data keys in %.1f s (%s); calls %v", name, m.rows, m.keys, took.Seconds(), m.describePasses(t, name), calls)
	if n, most := calls["ReEncrypt by rewrap"], m.keys+m.keys/20+corpusCalls; keyed && n > most {
		t.Errorf("%s: the rewrap called ReEncrypt %d times, at most %d", name, n, most)
	}
	return took
}

// describePasses says when each step of a rotation was recorded, since its start.
func (m manyRows) describePasses(t *testing.T, rotation string) string {
	t.Helper()
	entries, err := m.Deployment.Table.AuditEntries(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var began time.Time
	var said []string
	for _, e := range entries {
		if e.Record.Rotation != rotation {
			continue
		}
		at, err := time.Parse(time.RFC3339, e.Record.Time)
		if err != nil {
			t.Fatal(err)
		}
		if began.IsZero() {
			began = at
		}
		said = append(said, fmt.Sprintf("%s %.1f s", e.Record.Type, at.Sub(began).Seconds()))
	}
	return strings.Join(said, ", ")
}

// inParallel calls do for each data key, with what is between its first row and its last.
func (m manyRows) inParallel(t *testing.T, do func(key, from, to int) error) {
	t.Helper()
	var all sync.WaitGroup
	var next atomic.Int64
	var failed atomic.Pointer[error]
	for range 4 {
		all.Go(func() {
			for failed.Load() == nil {
				key := int(next.Add(1)) - 1
				if key >= m.keys {
					return
				}
				if err := do(key, key*rowsOfKeyedKey, min((key+1)*rowsOfKeyedKey, m.rows)); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

// manyNote is the key of a keyed row.
func manyNote(n int) item { return item{"note": text(fmt.Sprintf("%smany/%07d", load.Prefix, n))} }

// notesSchema is the table of keyed rows.
func (m manyRows) notesSchema(t *testing.T) dynamosource.Config {
	t.Helper()
	s := m.site(t)
	for _, def := range s.Sources {
		if def.Name != sample.Notes {
			continue
		}
		c, err := rowschema.Parse([]byte(def.Definition))
		if err != nil {
			t.Fatal(err)
		}
		return c.WithDefaults()
	}
	t.Fatal("there is no table of keyed rows")
	return dynamosource.Config{}
}

// fillKeyed writes keyed rows, each payload sealed under a data key whose record and copy are
// written before.
func (m manyRows) fillKeyed(t *testing.T) {
	t.Helper()
	p, cfg := m.view(t, "").Pointer, m.notesSchema(t)
	tables, others := m.Behind()
	dynamo, objects := dynamodb.NewFromConfig(tables), s3.NewFromConfig(others, func(o *s3.Options) { o.UsePathStyle = true })
	keyTable, bucket := m.Outputs["KeyTableName"], m.Outputs["AuditBucketName"]
	began := time.Now()
	m.inParallel(t, func(key, from, to int) error {
		r := keyrecord.Record{
			DEKID: keyrecord.NewID([16]byte{byte(key), byte(key >> 8), byte(key >> 16), byte(key >> 24)}), KEKID: p.KEKID, KEKEpoch: p.Epoch, BornEpoch: p.Epoch,
			Context: map[string]string{"table": sample.Notes}, CreatedAt: time.Now().UTC().Truncate(time.Second),
		}
		dek, wrapped, err := m.Set.KMS.GenerateDataKey(t.Context(), p.KEKID, keyrecord.EncryptionContext(r))
		if err != nil {
			return err
		}
		r.WrappedDEK = wrapped
		if err := keyrecord.PutCopy(t.Context(), objects, bucket, r); err != nil {
			return err
		}
		if _, err := dynamo.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &keyTable, Item: keyrecord.Encode(r)}); err != nil {
			return err
		}
		var rows []item
		for n := from; n < to; n++ {
			row := manyNote(n)
			bound, err := cfg.KeyedBoundOf(row, []string{"note"}, r.DEKID)
			if err != nil {
				return err
			}
			sealed, err := aead.Cipher{}.Seal(dek, []byte(fmt.Sprintf("payload of row %d", n)), bound)
			if err != nil {
				return err
			}
			row[cfg.DEKID], row[cfg.Ciphertext] = text(r.DEKID), &ddbtypes.AttributeValueMemberB{Value: sealed}
			row[cfg.Epoch], row[cfg.Version] = digits(p.Epoch), digits(1)
			rows = append(rows, row)
		}
		return putBatches(t, dynamo, cfg.Table, rows)
	})
	t.Logf("%d keyed rows written in %.0f s", m.rows, time.Since(began).Seconds())
}

// addEmbedded writes as many embedded rows under as many data keys, and registers their table.
func (m manyRows) addEmbedded(t *testing.T) {
	t.Helper()
	cfg := dynamosource.Config{
		Name: "many", Table: m.Name + "-many", KEKID: "kek_id", WrappedDEK: "wrapped_dek", Ciphertext: "ciphertext",
		Epoch: "kek_epoch", Version: "version", Context: map[string]string{"table": "many"},
	}
	m.newTable(t, cfg.Table)
	p := m.view(t, "").Pointer
	tables, _ := m.Behind()
	dynamo := dynamodb.NewFromConfig(tables)
	m.inParallel(t, func(_, from, to int) error {
		dek, wrapped, err := m.Set.KMS.GenerateDataKey(t.Context(), p.KEKID, cfg.Context)
		if err != nil {
			return err
		}
		clear(dek)
		var rows []item
		for n := from; n < to; n++ {
			rows = append(rows, item{
				"id": text(fmt.Sprintf("row-%07d", n)), cfg.KEKID: text(string(p.KEKID)), cfg.WrappedDEK: &ddbtypes.AttributeValueMemberB{Value: wrapped},
				cfg.Ciphertext: &ddbtypes.AttributeValueMemberB{Value: make([]byte, 64)}, // no payload is opened
				cfg.Epoch:      digits(p.Epoch), cfg.Version: digits(1),
			})
		}
		return putBatches(t, dynamo, cfg.Table, rows)
	})
	m.define(t, cfg)
}

// putBatches writes rows past all conditions.
func putBatches(t *testing.T, dynamo *dynamodb.Client, table string, rows []item) error {
	t.Helper()
	for len(rows) > 0 {
		var puts []ddbtypes.WriteRequest
		for _, row := range rows[:min(25, len(rows))] {
			puts = append(puts, ddbtypes.WriteRequest{PutRequest: &ddbtypes.PutRequest{Item: row}})
		}
		out, err := dynamo.BatchWriteItem(t.Context(), &dynamodb.BatchWriteItemInput{RequestItems: map[string][]ddbtypes.WriteRequest{table: puts}})
		if err != nil || len(out.UnprocessedItems) > 0 {
			return fmt.Errorf("%d unprocessed: %w", len(out.UnprocessedItems), err)
		}
		rows = rows[len(puts):]
	}
	return nil
}

// countVersions counts the rows of the table of keyed rows by their version, which a write
// counts up, and how many name a data key of the last epoch.
func (m manyRows) countVersions(t *testing.T) (byVersion map[string]int, last int) {
	t.Helper()
	cfg := m.notesSchema(t)
	epoch := strconv.FormatInt(m.view(t, "").Pointer.Epoch, 10)
	byVersion = map[string]int{}
	pages := dynamodb.NewScanPaginator(m.Set.Dynamo, &dynamodb.ScanInput{
		TableName: &cfg.Table, ConsistentRead: aws.Bool(true), ProjectionExpression: aws.String("version, kek_epoch"),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Items {
			byVersion[numberIn(i["version"])]++
			if numberIn(i["kek_epoch"]) == epoch {
				last++
			}
		}
	}
	return byVersion, last
}

func numberIn(v ddbtypes.AttributeValue) string {
	n, _ := v.(*ddbtypes.AttributeValueMemberN)
	if n == nil {
		return ""
	}
	return n.Value
}

// unwritten checks that no keyed row was written since it was inserted.
func (m manyRows) unwritten(t *testing.T) {
	t.Helper()
	if by, _ := m.countVersions(t); by["1"] != m.rows || len(by) != 1 {
		t.Errorf("keyed rows by version: %v, want %d of version 1", by, m.rows)
	}
}

// rewritten checks that an emergency has given each row another data key, by one write.
func (m manyRows) rewritten(t *testing.T) {
	t.Helper()
	if by, last := m.countVersions(t); by["2"] != m.rows || last != m.rows {
		t.Errorf("keyed rows by version: %v, %d under data keys of the last epoch, want %d", by, last, m.rows)
	}
}

// openSome opens rows through an application's client.
func (m manyRows) openSome(t *testing.T) {
	t.Helper()
	client, table := m.openNotes(t, m.site(t))
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	for n := 0; n < m.rows; n += max(1, m.rows/rowsOpened) {
		row, err := table.Get(t.Context(), manyNote(n))
		if want := fmt.Sprintf("payload of row %d", n); err != nil || string(row.Plaintext) != want {
			t.Fatalf("row %d holds %q, %v", n, row.Plaintext, err)
		}
	}
}
