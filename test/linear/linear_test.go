// Package linear checks that the pointer and the lock are linearizable: histories
// of concurrent switchers, readers and rotations that start, taken from the real
// stores, are judged by porcupine against a sequential model.
package linear

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

// store is what the histories are made on.
type store interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	Apply(ctx context.Context, c kek.Change, ev audit.Event) error
}

// register is the sequential model.
type register struct {
	pointer kek.ID
	epoch   int64
	lock    string
}

type action int

const (
	readPointer action = iota
	readLock
	move // the pointer, if it is what was read
	take // the lock, if it is free and the pointer what was read
	free // the lock, if it is ours
)

func (a action) String() string {
	return [...]string{"read the pointer", "read the lock", "move the pointer", "take the lock", "free the lock"}[a]
}

type input struct {
	action
	from, to register // what was read; what is written
	id       string
}

type outcome int

const (
	done    outcome = iota
	refused         // by a condition
	unknown         // the answer was lost
)

type output struct {
	outcome
	saw register
}

// step is what one operation does to the register, and whether it can have had
// that outcome. An operation whose answer was lost took effect or did not; it is
// given the time until the end of the history to do so.
func step(state, in, out any) (bool, any) {
	s, i, o := state.(register), in.(input), out.(output)
	fits, next := true, s
	switch same := s.pointer == i.from.pointer && s.epoch == i.from.epoch; i.action {
	case readPointer:
		return o.saw.pointer == s.pointer && o.saw.epoch == s.epoch, s
	case readLock:
		return o.saw.lock == s.lock, s
	case move:
		fits, next.pointer, next.epoch = same, i.to.pointer, i.to.epoch
	case take:
		fits, next.lock = s.lock == "" && same, i.id
	case free:
		fits, next.lock = s.lock == i.id, ""
	}
	switch {
	case o.outcome == done:
		return fits, next
	case o.outcome == refused:
		return !fits, s
	case fits:
		return true, next
	}
	return true, s
}

func model(first register) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: step,
		DescribeOperation: func(in, out any) string {
			i, o := in.(input), out.(output)
			return fmt.Sprintf("%s %s %v → %v: %v", i.id, i.action, i.from, i.to, o)
		},
	}
}

// recorder takes down one history. Its clock counts calls and returns.
type recorder struct {
	mu    sync.Mutex
	clock atomic.Int64
	ops   []porcupine.Operation
}

func (r *recorder) add(client int, in input, call int64, out output) {
	at := r.clock.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: at})
}

// history is complete once nothing runs: what has no answer ends last.
func (r *recorder) history() []porcupine.Operation {
	for i := range r.ops {
		if r.ops[i].Output.(output).outcome == unknown {
			r.ops[i].Return = r.clock.Add(1) + 1<<40
		}
	}
	return r.ops
}

const (
	clients = 4
	rounds  = 5
)

var now = time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC)

// client switches, starts rotations, gives them up and reads.
type client struct {
	t    *testing.T
	s    store
	r    *recorder
	n    int
	rand *rand.Rand
	held string
}

func (c *client) read(id string) (kek.View, bool) {
	call := c.r.clock.Add(1)
	v, err := c.s.Load(c.t.Context(), id)
	if err != nil {
		return v, false
	}
	saw := register{v.Pointer.KEKID, v.Pointer.Epoch, v.Lock}
	c.r.add(c.n, input{action: readPointer}, call, output{saw: saw})
	c.r.add(c.n+clients, input{action: readLock}, call, output{saw: saw}) // items may be of different moments
	return v, true
}

func (c *client) apply(in input, change kek.Change) outcome {
	call := c.r.clock.Add(1)
	err := c.s.Apply(c.t.Context(), change, audit.Event{ID: fmt.Sprintf("%d-%d", c.n, call), Type: change.Event, Step: "linear", Actor: "test"})
	o := done
	switch {
	case errors.Is(err, kek.ErrConflict):
		o = refused
	case err != nil:
		o = unknown
	}
	c.r.add(c.n, in, call, output{outcome: o})
	return o
}

func (c *client) round(i int) {
	id := c.held
	if id == "" {
		id = fmt.Sprintf("r-%d-%d", c.n, i)
	}
	v, ok := c.read(id)
	if !ok || c.rand.IntN(4) == 0 {
		return
	}
	from := register{pointer: v.Pointer.KEKID, epoch: v.Pointer.Epoch}
	switch {
	case c.held != "":
		change, err := v.PreSwitchFailure("test", now)
		if errors.Is(err, kek.ErrDone) || errors.Is(err, kek.ErrNoRotation) { // an answer was lost, or a request
			c.held = ""
			return
		}
		if err != nil {
			c.t.Error(err)
			return
		}
		change.Keeps = nil // the model frees the lock wherever the pointer is
		if c.apply(input{action: free, id: id}, change) == done {
			c.held = ""
		}
	case c.rand.IntN(2) == 0:
		to := register{pointer: kek.ID(fmt.Sprintf("kek-%d-%d", c.n, i)), epoch: from.epoch + 1}
		c.apply(input{action: move, from: from, to: to}, kek.Change{
			Lock: kek.LockIgnore, Event: "pointer_switched",
			Pointer: &kek.PointerMove{Before: v.Pointer, After: kek.Pointer{KEKID: to.pointer, Epoch: to.epoch, SwitchedAt: now}},
		})
	default:
		change, err := kek.View{Pointer: v.Pointer, KEKs: active(v), Registry: 1}.Start(kek.Rotation{ID: id, Mode: kek.Normal, Label: "linear"}, now)
		if err != nil {
			c.t.Error(err)
			return
		}
		if c.apply(input{action: take, from: from, id: id}, change) != refused {
			c.held = id
		}
	}
}

// active is a registry in which the pointer's KEK is active: the moves here write
// the pointer alone.
func active(v kek.View) map[kek.ID]kek.KEK {
	return map[kek.ID]kek.KEK{v.Pointer.KEKID: {ID: v.Pointer.KEKID, State: kek.Active}}
}

// begin makes the first pointer of an empty store.
func begin(t *testing.T, s store) {
	t.Helper()
	g, err := kek.View{}.Genesis(kek.KEK{ID: "kek-0", FenceShards: 1}, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), g, audit.Event{ID: "genesis", Type: g.Event, Step: "genesis", Actor: "test"}); err != nil {
		t.Fatal(err)
	}
}

// run makes one history on a store that has begun, and judges it.
func run(t *testing.T, s store, seed uint64) (porcupine.CheckResult, int) {
	t.Helper()
	r := &recorder{}
	var wg sync.WaitGroup
	for n := range clients {
		c := &client{t: t, s: s, r: r, n: n, rand: rand.New(rand.NewPCG(seed, uint64(n)))}
		wg.Go(func() {
			for i := range rounds {
				c.round(i)
			}
		})
	}
	wg.Wait()
	h := r.history()
	result := porcupine.CheckOperationsTimeout(model(register{pointer: "kek-0", epoch: 1}), h, 30*time.Second)
	return result, len(h)
}

// contended yields between calls and loses answers, so that few clients overlap in
// many ways.
func contended(seed uint64) memstore.Hook {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 1))
	return func(op string, _ ...any) (bool, error) {
		mu.Lock()
		yields, fate := r.IntN(6), r.IntN(40)
		mu.Unlock()
		for range yields {
			runtime.Gosched()
		}
		switch {
		case op != "Store.Apply":
		case fate == 0:
			return true, errors.New("answer lost")
		case fate == 1:
			return false, errors.New("request lost")
		}
		return true, nil
	}
}

func TestMemory(t *testing.T) {
	const histories = 1000
	ops := 0
	for seed := range uint64(histories) {
		result, n := run(t, memory(t, seed), seed)
		if ops += n; result != porcupine.Ok {
			t.Fatalf("history %d is not linearizable: %s", seed, result)
		}
	}
	t.Logf("%d histories, %d operations", histories, ops)
}

// memory is a store in memory that is contended.
func memory(t *testing.T, seed uint64) store {
	t.Helper()
	w := memstore.New("test", func() time.Time { return now })
	begin(t, w.Store())
	w.SetHook(contended(seed))
	return w.Store()
}

// lossy breaks the wire at transactions: before they are sent, or when they are
// answered.
type lossy struct {
	mu     sync.Mutex
	rand   *rand.Rand
	broken int
}

var errWire = errors.New("connection reset by test")

// RoundTrip implements [http.RoundTripper].
func (l *lossy) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".TransactWriteItems") {
		return http.DefaultTransport.RoundTrip(r)
	}
	l.mu.Lock()
	fate := l.rand.IntN(16)
	if fate < 2 {
		l.broken++
	}
	l.mu.Unlock()
	if fate == 0 {
		return nil, errWire
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if fate != 1 || err != nil {
		return resp, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return nil, errors.Join(errWire, err, resp.Body.Close())
}

// TestDynamoDB takes histories from dynoxide behind a wire that breaks:
// MATTER_HISTORIES of them, 60 unless told.
func TestDynamoDB(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts dynoxide")
	}
	histories := uint64(60)
	if text := os.Getenv("MATTER_HISTORIES"); text != "" {
		var err error
		if histories, err = strconv.ParseUint(text, 10, 32); err != nil {
			t.Fatalf("MATTER_HISTORIES=%q: it is a number of histories", text)
		}
	}
	tables := ddbtest.Client(t)
	wire := &lossy{rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))}
	dynamo := ddbtest.Client(t, func(o *dynamodb.Options) {
		o.HTTPClient, o.Retryer = &http.Client{Transport: wire}, aws.NopRetryer{}
	})
	ops := 0
	for seed := range histories {
		table, clock := ddbtest.ControlTable(t, tables), func() time.Time { return now }
		begin(t, ddb.New(tables, table, "test", clock))
		result, n := run(t, ddb.New(dynamo, table, "test", clock), seed)
		if ops += n; result != porcupine.Ok {
			t.Fatalf("history %d is not linearizable: %s", seed, result)
		}
	}
	t.Logf("%d histories, %d operations, %d requests or answers lost", histories, ops, wire.broken)
	if wire.broken == 0 {
		t.Error("the wire never broke")
	}
}

// TestBrokenStoresAreRejected: the check can fail.
func TestBrokenStoresAreRejected(t *testing.T) {
	for name, broken := range map[string]func(store) store{
		"stale reads":             func(s store) store { return &stale{store: s} },
		"unconditional writes":    func(s store) store { return &blind{s} },
		"refusals acknowledged":   func(s store) store { return &polite{s} },
		"a lock taken by anybody": func(s store) store { return &open{s} },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(200) {
				if result, _ := run(t, broken(memory(t, seed)), seed); result == porcupine.Illegal {
					t.Logf("history %d", seed)
					return
				}
			}
			t.Error("200 histories look linearizable")
		})
	}
}

// stale answers every second read with what the one before saw.
type stale struct {
	store
	mu   sync.Mutex
	n    int
	last kek.View
}

func (s *stale) Load(ctx context.Context, id string) (kek.View, error) {
	v, err := s.store.Load(ctx, id)
	if err != nil {
		return v, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n++; s.n%2 == 0 {
		v.Pointer, v.Lock = s.last.Pointer, s.last.Lock
	}
	s.last = v
	return v, nil
}

// blind moves the pointer from wherever it is.
type blind struct{ store }

func (b *blind) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	for c.Pointer != nil && c.Event == "pointer_switched" {
		v, err := b.Load(ctx, "")
		if err != nil {
			return err
		}
		c.Pointer.Before = v.Pointer
		if err = b.store.Apply(ctx, c, ev); !errors.Is(err, kek.ErrConflict) {
			return err
		}
	}
	return b.store.Apply(ctx, c, ev)
}

// polite says yes to everybody.
type polite struct{ store }

func (p *polite) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	if err := p.store.Apply(ctx, c, ev); err != nil && !errors.Is(err, kek.ErrConflict) {
		return err
	}
	return nil
}

// open looks at no lock.
type open struct{ store }

func (o *open) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	if c.Lock == kek.LockTake {
		c.Rotation, c.Lock = nil, kek.LockIgnore
	}
	return o.store.Apply(ctx, c, ev)
}
