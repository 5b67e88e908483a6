package load

import (
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
)

// The kinds of operations.
const (
	insert = iota
	update
	remove
	read
	kinds
)

var kindNames = [kinds]string{"insert", "update", "delete", "read"}

const maxProblems = 5

// Operations is what operations of one kind came to. A wrong read is counted
// where it was seen, as an error too.
type Operations struct {
	Kind   string        `json:"kind"`
	Count  int64         `json:"count"`
	Errors int64         `json:"errors"`
	P50    time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
}

// Report is what a run has seen so far.
type Report struct {
	Run        string         `json:"run"`
	Elapsed    time.Duration  `json:"elapsed_ns"`
	Operations []Operations   `json:"operations"`
	Count      int64          `json:"count"` // of all kinds
	PerSecond  float64        `json:"per_second"`
	WrongReads int64          `json:"wrong_reads"`
	Errors     int64          `json:"errors"` // wrong reads not among them
	Problems   []string       `json:"problems"`
	Done       bool           `json:"done"` // every row was read once more
	Rows       map[kek.ID]int `json:"rows"` // at the end, by the KEK they name
	Client     envelope.Stats `json:"client"`
}

// Clean reports whether the run is over, has done every kind of operation that it
// was asked for, and saw nothing wrong.
func (r Report) Clean() bool {
	for _, o := range r.Operations {
		if o.Count == 0 {
			return false
		}
	}
	return r.Done && r.Count > 0 && r.WrongReads == 0 && r.Errors == 0 && r.Client.OrphanedKeys == 0
}

// Report returns what was seen so far.
func (g *Generator) Report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := Report{Run: g.cfg.Run, WrongReads: g.wrong, Problems: append([]string{}, g.problems...), Done: g.final.done, Rows: g.final.rows}
	end := g.ended
	if end.IsZero() {
		end = g.cfg.Now()
	}
	if !g.began.IsZero() {
		r.Elapsed = end.Sub(g.began)
	}
	failures := g.final.errors
	for kind, workers := range [kinds]int{g.cfg.Writers, g.cfg.Updaters, g.cfg.Deleters, g.cfg.Readers} {
		if workers == 0 {
			continue
		}
		t := &g.ops[kind]
		h := t.times.copy()
		o := Operations{
			Kind: kindNames[kind], Count: h.count(), Errors: t.errors.Load(),
			Max: time.Duration(t.longest.Load()),
		}
		o.P50, o.P99 = min(h.quantile(50), o.Max), min(h.quantile(99), o.Max) // a bucket may end later
		failures += o.Errors - t.wrong.Load()
		r.Count += o.Count
		r.Operations = append(r.Operations, o)
	}
	r.Errors = failures
	if r.Elapsed > 0 {
		r.PerSecond = float64(r.Count) / r.Elapsed.Seconds()
	}
	if g.cfg.Stats != nil {
		r.Client = g.cfg.Stats()
	}
	return r
}

// Lap is what happened since the lap before.
type Lap struct {
	PerSecond     float64
	P99           time.Duration
	Wrong, Errors int64 // since the start
}

type lap struct {
	at    time.Time
	times histogram
}

// Lap returns what happened since the last call of it, or since the start.
func (g *Generator) Lap() Lap {
	var times histogram
	var out Lap
	for kind := range g.ops {
		t := &g.ops[kind]
		h := t.times.copy()
		for n := range h {
			times[n] += h[n]
		}
		out.Wrong += t.wrong.Load()
		out.Errors += t.errors.Load() - t.wrong.Load()
	}
	now := g.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	var since histogram
	for n := range times {
		since[n] = times[n] - g.lap.times[n]
	}
	if d := now.Sub(g.lap.at); d > 0 && !g.lap.at.IsZero() {
		out.PerSecond = float64(since.count()) / d.Seconds()
	}
	out.P99 = since.quantile(99)
	g.lap = lap{at: now, times: times}
	return out
}

// final is the last read of every row.
type final struct {
	mu     sync.Mutex
	done   bool
	rows   map[kek.ID]int
	errors int64
}

func (f *final) add(id kek.ID, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && !errors.Is(err, errWrong) {
		f.errors++
	}
	if id != "" {
		f.rows[id]++
	}
}

// tally counts the operations of one kind.
type tally struct {
	errors, wrong, longest atomic.Int64
	times                  counts
}

func (t *tally) add(d time.Duration, err error) {
	t.times[bucket(d)].Add(1)
	for old := t.longest.Load(); int64(d) > old && !t.longest.CompareAndSwap(old, int64(d)); old = t.longest.Load() {
	}
	if err != nil {
		t.errors.Add(1)
	}
	if errors.Is(err, errWrong) {
		t.wrong.Add(1)
	}
}

// A histogram has buckets of a microsecond up to 64, from there 32 for every
// doubling: a quantile is at most a 32nd too high.
const (
	fine    = 64
	perHalf = 32
	buckets = fine + 26*perHalf // up to an hour
)

type (
	counts    [buckets]atomic.Int64
	histogram [buckets]int64
)

func bucket(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < fine {
		return int(us)
	}
	shift := bits.Len64(us) - 6
	return min(fine+(shift-1)*perHalf+int(us>>shift)-perHalf, buckets-1) //nolint:gosec // less than 64
}

// upper is the end of a bucket.
func upper(n int) time.Duration {
	if n < fine {
		return time.Duration(n+1) * time.Microsecond
	}
	shift := (n-fine)/perHalf + 1
	return time.Duration((perHalf+(n-fine)%perHalf+1)<<shift) * time.Microsecond
}

func (c *counts) copy() (h histogram) {
	for n := range c {
		h[n] = c[n].Load()
	}
	return h
}

func (h *histogram) count() (n int64) {
	for _, c := range h {
		n += c
	}
	return n
}

// quantile is how long at most percent of a hundred took; 0 if there is none.
func (h *histogram) quantile(percent int64) time.Duration {
	total := h.count()
	rank := (total*percent + 99) / 100
	for n, c := range h {
		if rank -= c; rank <= 0 && total > 0 {
			return upper(n)
		}
	}
	return 0
}
