package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore/awsapi"
)

// processes are the applications of the second place, with the real client. The
// service (writer 1, and the reader) lives as long as the run: while a write of it
// sleeps, its background work continues to renew its leases, and drain waits for it. A job
// (writer 0) is a new process for each write, and sleeps as a whole, like a virtual
// machine that is moved: its lease runs out.
type processes struct {
	*actors
	db      *memddb.DB
	service *process
	writers [2]*errand
	jobs    int
	seen    memddb.Item // what the reader holds
}

// process is a client and the wire that it is on.
type process struct {
	client *envelope.Client
	table  *envelope.Table
	old    *envelope.Table // writes embedded rows where table writes keyed ones
	wire   *wire
}

// errand is a write under way.
type errand struct {
	task
	*process
	under kek.ID // the KEK that the process holds a lease on
	saw   string // what an update has read and replaces
	done  chan error
}

// wire is DynamoDB under a process. It holds back a write of a row, or of a data key's
// record, until it is let go, and with whole everything that the process calls meanwhile.
type wire struct {
	*memddb.DB
	keys   *keyRecords // nil: rows are embedded
	used   map[string]map[string]bool
	mu     sync.Mutex
	at     request // what is held back
	whole  bool
	asleep []chan struct{} // calls that are held back, the write first
}

// request is what a call of a process is about.
type request int

const (
	other request = iota
	ofRow
	ofRecord
)

// arm makes writes of rows, or of records, fall asleep from now on.
func (w *wire) arm(at request, whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = at
	w.whole = whole
}

// wake lets everything go on that sleeps, one after the other so that it replays.
func (w *wire) wake() {
	w.mu.Lock()
	asleep := w.asleep
	w.at, w.asleep = other, nil
	w.mu.Unlock()
	for _, call := range asleep {
		close(call)
		synctest.Wait()
	}
}

// pass is before every call. Whoever has slept past a deadline finds that out; but a record
// was on its way, and arrives. The record of the next data key, which a process makes beside a
// write of a row, is held back by nothing, so that it does not matter which of the two comes first.
func (w *wire) pass(ctx context.Context, of request) error {
	w.mu.Lock()
	sleeps := of != other && of == w.at || w.whole && w.asleep != nil && of != ofRecord
	call := make(chan struct{})
	if sleeps {
		w.asleep = append(w.asleep, call)
	}
	w.mu.Unlock()
	if sleeps {
		<-call
	}
	if of == ofRecord {
		return nil
	}
	return ctx.Err()
}

func onWire[In, Out any](ctx context.Context, w *wire, of request, in *In, call func(context.Context, *In, ...func(*dynamodb.Options)) (*Out, error)) (*Out, error) {
	if err := w.pass(ctx, of); err != nil {
		return nil, err
	}
	if w.keys == nil {
		return call(ctx, in)
	}
	var out *Out
	var err error
	w.keys.r.atomically(func() { out, err = call(ctx, in) })
	return out, err
}

func (w *wire) GetItem(ctx context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return onWire(ctx, w, other, in, w.DB.GetItem)
}

func (w *wire) PutItem(ctx context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return onWire(ctx, w, w.aboutRow(*in.TableName, in.Item), in, w.DB.PutItem)
}

func (w *wire) DeleteItem(ctx context.Context, in *dynamodb.DeleteItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	return onWire(ctx, w, other, in, w.DB.DeleteItem)
}

func (w *wire) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return onWire(ctx, w, w.aboutRow(*in.TableName, assigned(in)), in, w.DB.UpdateItem)
}

func (w *wire) TransactWriteItems(ctx context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	of := ofRow
	if w.keys != nil && in.TransactItems[0].Put != nil && *in.TransactItems[0].Put.TableName == deksTable {
		of = ofRecord
	}
	return onWire(ctx, w, of, in, w.DB.TransactWriteItems)
}

// aboutRow is what a write of one item is about. values are among its attributes: those of a
// keyed row are held to the bounds of its data key.
func (w *wire) aboutRow(table string, values memddb.Item) request {
	if table != rowTable {
		return other
	}
	if w.keys != nil {
		w.keys.sealed(w, values)
	}
	return ofRow
}

// launch starts a process. Its randomness follows from its name, so that runs replay.
func (p *processes) launch(name string) (*process, error) {
	var mu sync.Mutex
	draw := rand.New(rand.NewPCG(uint64(len(name)), uint64(p.jobs)))
	out := &process{wire: &wire{DB: p.db, used: map[string]map[string]bool{}}}
	out.wire.keys, _ = p.run.keyed.(*keyRecords)
	var err error
	cfg := envelope.Config{
		ControlTable: controlTable, DynamoDB: out.wire, KMS: awsapi.KMS{Keys: p.run.kms}, Holder: name,
		PointerAge: 20 * time.Second, LeaseTTL: time.Minute,
		Random: func(n int64) int64 {
			mu.Lock()
			defer mu.Unlock()
			return draw.Int64N(n)
		},
	}
	table := clientConfig(tableConfig(rowTable))
	if out.wire.keys != nil {
		cfg.Keys = out.wire.keys.config()
		table = clientConfig(keyedConfig())
	}
	if out.client, err = envelope.New(ctx, cfg); err != nil {
		return nil, err
	}
	out.table, err = out.client.Table(ctx, table)
	p.run.must(err)
	if out.old = out.table; out.wire.keys != nil {
		table.Envelope = envelope.EnvelopeEmbedded
		out.old, err = out.client.Table(ctx, table)
		p.run.must(err)
	}
	synctest.Wait() // for the background work's first read
	return out, nil
}

func clientConfig(c dynamosource.Config) envelope.TableConfig {
	return envelope.TableConfig{
		Table: c.Table, Envelope: c.Envelope, DEKID: c.DEKID, KEKID: c.KEKID, WrappedDEK: c.WrappedDEK, Ciphertext: c.Ciphertext, Context: c.Context,
	}
}

// join is a process that lives for one row.
func (p *processes) join(id string) {
	r := p.run
	p.jobs++
	q, err := p.launch(fmt.Sprint("newcomer-", p.jobs))
	if err != nil {
		r.violated("PointerUsable", "an application cannot begin: %v", err)
		return
	}
	table, err := q.client.Table(ctx, clientConfig(tableConfig(lateTable)))
	r.must(err)
	if err := table.Insert(ctx, rowKey(id), []byte(id)); err != nil {
		r.violated("WritersServed", "write %s: %v", id, err)
	}
	r.check.dirty = true
	p.close(q)
}

func (p *processes) start() {
	var err error
	p.service, err = p.launch("service")
	p.run.must(err)
}

func (p *processes) clone(*actors) apps { panic("a run among goroutines is not cloned") }

func (p *processes) busy(n int) bool { return p.writers[n] != nil }

// begin starts a write in a goroutine, which falls asleep at the write itself.
func (p *processes) begin(n int, what task) {
	r := p.run
	e := &errand{task: what, process: p.service, done: make(chan error, 1)}
	if n == 0 {
		p.jobs++
		var err error
		if e.process, err = p.launch(fmt.Sprint("job-", p.jobs)); err != nil {
			r.violated("PointerUsable", "an application cannot begin: %v", err)
			return
		}
	}
	ref, err := e.client.Begin(ctx)
	if err != nil && r.lost { // the pointer may be that of long ago
		p.close(e.process)
		return
	}
	r.must(err)
	e.under = ref.KEK()
	ref.End()
	p.writers[n] = e
	at := ofRow
	if e.unstored {
		at = ofRecord
	}
	e.wire.arm(at, n == 0)
	go func() { e.done <- e.write() }()
	synctest.Wait()
	if len(e.done) > 0 { // it never came to the write
		p.finish(n)
		return
	}
	r.check.dirty = true // it may have stored a data key
	r.tell("writer %d holds a lease on %s and a sealed row %s", n, e.under, e.id)
}

func (e *errand) write() error {
	if e.embedded() {
		return e.old.Insert(ctx, rowKey(e.id), []byte(e.plain))
	}
	if e.insert {
		return e.table.Insert(ctx, rowKey(e.id), []byte(e.plain))
	}
	return e.table.Update(ctx, rowKey(e.id), func(row *envelope.Row) error {
		e.saw, row.Plaintext = string(row.Plaintext), []byte(e.plain)
		return nil
	})
}

// patience is how long a write that nothing holds back may take.
const patience = 5 * time.Minute

func (p *processes) finish(n int) {
	e, r := p.writers[n], p.run
	if e == nil {
		return
	}
	p.writers[n] = nil
	was := e.client.Stats().RefusedWrites
	e.wire.wake()
	var err error
	select {
	case err = <-e.done:
	case <-time.After(patience):
		err = errors.New("it hangs")
	}
	synctest.Wait()
	r.now = time.Now().UTC()
	if refused := e.client.Stats().RefusedWrites - was; refused > 0 {
		r.tell("writer %d is refused %d times: %s", n, refused, what(e.insert))
	}
	switch {
	case err == nil:
		if !e.insert && e.saw != p.want[e.id] {
			r.violated("NoLostWrite", "an update of row %s has read %q and overwrites %q", e.id, e.saw, p.want[e.id])
		}
		p.want[e.id] = e.plain
		if r.keyed != nil && e.insert {
			e.wire.keys.inserted(e.id)
		}
		r.check.dirty = true
		r.tell("writer %d writes row %s", n, e.id)
	case errors.Is(err, envelope.ErrNotFound) && !e.insert:
		r.tell("writer %d finds no row %s", n, e.id)
	case r.keyed != nil && e.wire.keys.excuse(e, err):
		r.tell("writer %d fails: %v", n, err)
	case r.lost:
		r.tell("writer %d fails: %v", n, err)
	default:
		r.violated("WritersServed", "write %s: %v", e.id, err)
	}
	if n == 0 {
		p.close(e.process)
	}
}

func what(insert bool) string {
	if insert {
		return "insert"
	}
	return "update"
}

// close ends a process in an orderly way.
func (p *processes) close(q *process) {
	if err := q.client.Close(); err != nil {
		p.run.violated("WritersServed", "close: %v", err)
	}
	if n := q.client.Stats().OrphanedKeys; n > 0 && !p.run.restored && !q.wire.keys.everLost() { // a restored registry knows no KEK of later
		p.run.violated("NoKeyOrphans", "a reader met %d orphaned keys", n)
	}
}

func (p *processes) look() {
	out, err := p.db.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(rowTable), Key: rowKey(aRow)})
	p.run.must(err)
	p.seen = out.Item
}

// open lets the service open the row that was read, however long ago.
func (p *processes) open() {
	if p.seen == nil {
		return
	}
	_, err := p.service.table.Open(ctx, p.seen)
	if p.seen = nil; err != nil && !errors.Is(err, envelope.ErrNotFound) && !p.run.lost && !p.service.wire.keys.isLost(err) {
		p.run.violated("ReadersServed", "row %s: %v", aRow, err)
	}
}

// paged: who is called because drain has waited too long wakes the service.
func (p *processes) paged() { p.finish(1) }

// stop ends every process, whatever has happened.
func (p *processes) stop() {
	for n := range p.writers {
		p.finish(n)
	}
	if p.service != nil {
		p.close(p.service)
	}
}
