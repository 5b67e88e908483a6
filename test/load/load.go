// Package load is live traffic: writers, updaters, deleters and readers that work
// on a table's rows through package envelope while its KEK is rotated under them.
//
// Every payload says which write made it, so that every read is judged: it must
// show what the last acknowledged write before it left, or one that was under way
// while it ran. A lost update, a write that was taken back, a deleted row that is
// there again and a payload that is another row's are all wrong reads.
package load

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
)

// Prefix begins the partition key of every row that the load writes, in a table
// that it shares with others' rows.
const Prefix = "matter-load/"

// Rows is one table under load.
type Rows interface {
	Insert(ctx context.Context, item envelope.Item, plaintext []byte) error
	Update(ctx context.Context, key envelope.Item, change func(*envelope.Row) error) error
	Get(ctx context.Context, key envelope.Item) (envelope.Row, error)
	// GetLate reads a row and calls held before it opens it, so that what it opens
	// may be out of date. It says under which KEK it found the row.
	GetLate(ctx context.Context, key envelope.Item, held func()) (envelope.Row, kek.ID, error)
	Delete(ctx context.Context, key envelope.Item) error
}

// Target is a table under load and the keys of its rows.
type Target struct {
	Rows
	Name string                    // for messages
	Item func(n int) envelope.Item // a new row: its key and what its encryption context needs
}

// Config is what a run does. Run, Rows, Now and one worker are required.
type Config struct {
	Run                                  string // in the keys of its rows; unique
	Writers, Updaters, Deleters, Readers int
	Rows                                 int           // at most, in all tables together
	MinSize, MaxSize                     int           // of a payload
	Rate                                 float64       // operations per second of all workers together; 0: as fast as they can
	Held                                 time.Duration // how long at most a reader sits on a row before it opens it, now and then
	Timeout                              time.Duration // of one operation; default 30 s
	Now                                  func() time.Time
	Stats                                func() envelope.Stats // of the client; nil: none
}

const (
	defaultTimeout = 30 * time.Second
	lateEvery      = 8 // reads, of which one is late
	finalReaders   = 8
)

// ErrConfig reports a run that cannot be.
var ErrConfig = errors.New("load")

func (c Config) check() error {
	var faults []error
	if c.Run == "" || c.Now == nil {
		faults = append(faults, errors.New("Run and Now are required"))
	}
	if c.Rows < 1 {
		faults = append(faults, fmt.Errorf("%d rows: at least one is needed", c.Rows))
	}
	if min(c.Writers, c.Updaters, c.Deleters, c.Readers) < 0 || c.Writers+c.Updaters+c.Deleters+c.Readers == 0 {
		faults = append(faults, errors.New("at least one worker is needed, and none can be negative"))
	}
	if c.Writers == 0 {
		faults = append(faults, errors.New("without a writer there is nothing to update, delete or read"))
	}
	if c.MinSize < 0 || c.MaxSize < c.MinSize {
		faults = append(faults, fmt.Errorf("payloads of %d to %d bytes", c.MinSize, c.MaxSize))
	}
	if c.Rate < 0 {
		faults = append(faults, fmt.Errorf("%g operations per second", c.Rate))
	}
	return errors.Join(faults...)
}

// Generator is one run.
type Generator struct {
	cfg   Config
	cells []*cell
	// Who takes a cell out of a pool owns it until it is back in one: its row has one
	// writer at a time, and what it must hold is known.
	absent, present chan *cell
	limit           *rate.Limiter
	ops             [kinds]tally

	mu       sync.Mutex
	began    time.Time
	ended    time.Time
	wrong    int64
	problems []string // the first few
	final    final
	lap      lap
}

// New prepares a run over tables.
func New(cfg Config, tables ...Target) (*Generator, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("%w: no table", ErrConfig)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	limit := rate.Limit(cfg.Rate)
	if cfg.Rate == 0 {
		limit = rate.Inf
	}
	g := &Generator{
		cfg: cfg, limit: rate.NewLimiter(limit, 1),
		absent: make(chan *cell, cfg.Rows), present: make(chan *cell, cfg.Rows),
	}
	for n := range cfg.Rows {
		t := tables[n%len(tables)]
		c := &cell{
			rows: t.Rows, item: t.Item(n), name: fmt.Sprintf("row %d of table %s", n, t.Name),
			payload: payload{row: digest(fmt.Sprintf("%s/%d", cfg.Run, n)), low: cfg.MinSize, high: cfg.MaxSize},
		}
		g.cells = append(g.cells, c)
		g.absent <- c
	}
	return g, nil
}

func digest(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum64()
}

// Run works until ctx ends, finishes what is under way, and reads every row once
// more. Nothing it met is an error of Run: [Generator.Report] says it.
func (g *Generator) Run(ctx context.Context) {
	g.mu.Lock()
	g.began = g.cfg.Now()
	g.lap.at = g.began
	g.mu.Unlock()
	var wg sync.WaitGroup
	for kind, workers := range [kinds]int{g.cfg.Writers, g.cfg.Updaters, g.cfg.Deleters, g.cfg.Readers} {
		for range workers {
			wg.Go(func() {
				for g.limit.Wait(ctx) == nil && g.turn(ctx, kind) {
				}
			})
		}
	}
	wg.Wait()
	g.mu.Lock()
	g.ended = g.cfg.Now()
	g.mu.Unlock()
	g.readAll(context.WithoutCancel(ctx))
}

// turn does one operation; false says that ctx has ended.
func (g *Generator) turn(ctx context.Context, kind int) bool {
	var c *cell
	pool := g.present
	switch kind {
	case insert:
		pool = g.absent
	case read:
		c = g.cells[rand.IntN(len(g.cells))] //nolint:gosec // any row
	}
	if kind != read {
		select {
		case c = <-pool:
		case <-ctx.Done():
			return false
		}
	}
	opctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.Timeout)
	defer cancel()
	start := g.cfg.Now()
	held, err := g.do(opctx, kind, c)
	g.ops[kind].add(g.cfg.Now().Sub(start)-held, err)
	if err != nil {
		g.note(err, fmt.Sprintf("%s of %s", kindNames[kind], c.name))
		return true // a cell whose write failed is in no pool: its row is either of two states
	}
	switch kind {
	case insert, update:
		g.present <- c
	case remove:
		g.absent <- c
	}
	return true
}

// do does one operation and says for how long it held still on purpose.
func (g *Generator) do(ctx context.Context, kind int, c *cell) (held time.Duration, err error) {
	switch {
	case kind == insert:
		err = c.insert(ctx)
	case kind == update:
		err = c.update(ctx)
	case kind == remove:
		err = c.remove(ctx)
	case g.cfg.Held > 0 && rand.IntN(lateEvery) == 0: //nolint:gosec // now and then
		_, err = c.readLate(ctx, func() {
			start := g.cfg.Now()
			pause(ctx, rand.N(g.cfg.Held)) //nolint:gosec // any time
			held = g.cfg.Now().Sub(start)
		})
	default:
		err = c.read(ctx)
	}
	return held, err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// note keeps the first few failures. A wrong read is none of the table's errors.
func (g *Generator) note(err error, what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(err, errWrong) {
		g.wrong++
	}
	if len(g.problems) < maxProblems {
		g.problems = append(g.problems, what+": "+err.Error())
	}
}

// readAll reads every row once more, and counts the rows by KEK.
func (g *Generator) readAll(ctx context.Context) {
	f := final{rows: map[kek.ID]int{}}
	var wg sync.WaitGroup
	cells := make(chan *cell)
	for range finalReaders {
		wg.Go(func() {
			for c := range cells {
				opctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
				id, err := c.readLate(opctx, func() {})
				cancel()
				if err != nil {
					g.note(err, "last read of "+c.name)
				}
				f.add(id, err)
			}
		})
	}
	for _, c := range g.cells {
		cells <- c
	}
	close(cells)
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.final = final{done: true, rows: f.rows, errors: f.errors}
}

// Remove deletes the rows of the run.
func (g *Generator) Remove(ctx context.Context) error {
	for _, c := range g.cells {
		if err := c.rows.Delete(ctx, c.item); err != nil {
			return fmt.Errorf("remove %s: %w", c.name, err)
		}
	}
	return nil
}
