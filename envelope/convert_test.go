package envelope_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

// convertedRows is how many rows TestConvertUnderLoad converts: MATTER_CONVERT_ROWS, or few.
func convertedRows(t *testing.T) int {
	t.Helper()
	text := os.Getenv("MATTER_CONVERT_ROWS")
	if text == "" {
		return 300
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 200 {
		t.Fatalf("MATTER_CONVERT_ROWS=%s: want 200 or more", text)
	}
	return n
}

// steady is a client that follows the pointer in seconds: what a busy machine is late with is no
// failure of it.
func steady(c *envelope.Config) { c.PointerAge, c.LeaseTTL = 5*time.Second, 30*time.Second }

// convertLoad is live traffic on the rows of a table. A payload is the row's id and a + for each
// update.
type convertLoad struct {
	*keyedSite
	t       *testing.T
	updates []atomic.Int64 // of each row, acknowledged
	total   atomic.Int64   // rows inserted
	reads   atomic.Int64
	again   atomic.Int64 // updates that were given up because too many others came first
}

func loadName(i int64) string { return fmt.Sprintf("row-%06d", i) }

// insert inserts the next rows.
func (l *convertLoad) insert(table *envelope.Table, n int) error {
	rows := make([]envelope.Row, n)
	last := l.total.Load()
	for i := range rows {
		id := loadName(last + int64(i))
		rows[i] = envelope.Row{Item: row(id), Plaintext: []byte(id)}
	}
	if err := table.InsertAll(l.t.Context(), rows); err != nil {
		return err
	}
	l.total.Store(last + int64(n))
	return nil
}

// update adds a + to a row.
func (l *convertLoad) update(table *envelope.Table, i int64) error {
	err := table.Update(l.t.Context(), rowKey(loadName(i)), func(r *envelope.Row) error { r.Plaintext = append(r.Plaintext, '+'); return nil })
	if errors.Is(err, envelope.ErrContended) { // nothing was written
		l.again.Add(1)
		return nil
	}
	if err == nil {
		l.updates[i].Add(1)
	}
	return err
}

// read reads a row. It must hold at least the updates that were acknowledged before.
func (l *convertLoad) read(table *envelope.Table, i int64) error {
	least := l.updates[i].Load()
	got, err := table.Get(l.t.Context(), rowKey(loadName(i)))
	if err != nil {
		return err
	}
	l.reads.Add(1)
	plus, ok := strings.CutPrefix(string(got.Plaintext), loadName(i))
	if !ok || strings.Trim(plus, "+") != "" || int64(len(plus)) < least {
		return fmt.Errorf("it holds %q after %d updates", got.Plaintext, least)
	}
	return nil
}

// run lets two processes read and update, and one insert, while f runs.
func (l *convertLoad) run(f func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	for worker := range int64(2) {
		table := l.open(l.client(steady))
		wg.Go(func() {
			for i := worker; ctx.Err() == nil; i++ {
				at := i * 7919 % l.total.Load() // in another order than a scan's
				if err := errors.Join(l.update(table, at), l.read(table, at*31%l.total.Load())); err != nil {
					l.t.Errorf("worker %d: row %d: %v", worker, at, err)
					return
				}
			}
		})
	}
	table := l.open(l.client(steady))
	wg.Go(func() {
		for ctx.Err() == nil && int(l.total.Load()) < len(l.updates) {
			if err := l.insert(table, 1); err != nil {
				l.t.Errorf("insert: %v", err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	f()
	cancel()
	wg.Wait()
}

// rotateWhole is a rotation beside the traffic, whose processes give their leases back.
func (l *convertLoad) rotateWhole(id string, mode kek.Mode) {
	l.t.Helper()
	old := l.pointer().KEKID
	l.begin(id, mode)
	l.drain(id)
	l.fence(old, controltable.Sealed)
	l.rewrapRecords(l.pointer())
	l.finish(id)
}

// check opens every row, and counts those of each kind.
func (l *convertLoad) check() (keyed, embedded int64) {
	l.t.Helper()
	reader := l.client(steady)
	table := l.open(reader)
	in := &dynamodb.ScanInput{TableName: &l.table, ConsistentRead: aws.Bool(true)}
	for {
		out, err := l.dynamo.Scan(l.t.Context(), in)
		l.must("scan", err)
		for _, i := range out.Items {
			if i["dek.id"] != nil {
				keyed++
			} else {
				embedded++
			}
			id := i["id"].(*s).Value
			n, _ := strconv.ParseInt(strings.TrimPrefix(id, "row-"), 10, 64)
			got, err := table.Open(l.t.Context(), i)
			if want := id + strings.Repeat("+", int(l.updates[n].Load())); err != nil || string(got.Plaintext) != want {
				l.t.Fatalf("row %s holds %q, %v; want %q", id, got.Plaintext, err, want)
			}
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			break
		}
	}
	if keyed+embedded != l.total.Load() || reader.Stats().OrphanedKeys != 0 {
		l.t.Errorf("%d rows, %d were inserted; %d orphans", keyed+embedded, l.total.Load(), reader.Stats().OrphanedKeys)
	}
	return keyed, embedded
}

func (l *convertLoad) convert(embedded bool) rotation.Conversion {
	l.t.Helper()
	out, err := l.steps.Convert(l.t.Context(), l.steps.Journal.Outbox.(journal.Recorder), rotation.ConvertInput{Source: "orders", Embedded: embedded, Write: true})
	l.must("convert", err)
	if len(out.Left) > 0 {
		l.t.Errorf("left: %+v", out)
	}
	return out
}

// direct changes the definition: which kind of rows is written.
func (l *convertLoad) direct(kind string) {
	l.t.Helper()
	l.def.Envelope = kind
	_, err := l.steps.AddSource(l.t.Context(), l.def.Source())
	l.must("register", err)
}

// TestConvertUnderLoad: rows are converted under reads, updates and inserts of the clients, with
// rotations before, meanwhile and after, and back: no read is wrong, no call fails, no update is
// lost.
func TestConvertUnderLoad(t *testing.T) {
	rows := convertedRows(t)
	l := &convertLoad{t: t, keyedSite: newKeyedSite(t, ddbtest.Client(t), mixedDefinition), updates: make([]atomic.Int64, rows*2)}
	l.steps.Pace.RowsInFlight = 8
	l.direct("embedded")
	old := l.open(l.client(steady))
	for int(l.total.Load()) < rows {
		l.must("insert", l.insert(old, min(envelope.MaxBatch, rows-int(l.total.Load()))))
	}
	l.rotateWhole("before", kek.Normal)
	for _, to := range []string{"keyed", "embedded"} {
		l.direct(to)
		began, reads := time.Now(), l.reads.Load()
		var out rotation.Conversion
		l.run(func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				out = l.convert(to == "embedded")
			}()
			l.rotateWhole("normal-to-"+to, kek.Normal)
			l.rotateWhole("emergency-to-"+to, kek.Emergency)
			<-done
		})
		took := time.Since(began)
		keyed, embedded := l.check()
		if wanted := map[string]int64{"keyed": embedded, "embedded": keyed}[to]; wanted > 0 || out.Changed > 0 {
			last := l.convert(to == "embedded")
			t.Logf("%d rows were of the other kind still, %d are converted", wanted, last.Converted)
			keyed, embedded = l.check()
			if map[string]int64{"keyed": embedded, "embedded": keyed}[to] > 0 {
				t.Errorf("%d keyed and %d embedded rows", keyed, embedded)
			}
		}
		var updates int64
		for i := range l.updates {
			updates += l.updates[i].Load()
		}
		t.Logf("to %s rows: %d converted, %d retried, %d by others meanwhile, %d data keys, in %s with two rotations; %d reads, %d updates in all, %d given up",
			to, out.Converted, out.Retried, out.Meanwhile, out.DataKeys, took.Round(time.Millisecond), l.reads.Load()-reads, updates, l.again.Load())
		l.rotate("after-to-"+to, kek.Normal)
		l.check()
	}
}
