package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// ground is a source of numbered rows and its checkpoint, for walks in virtual time.
type ground struct {
	source.Driver
	Checkpoints
	t     *testing.T
	pages []int // rows of each page
	scan  time.Duration
	row   func(n int) time.Duration

	spread bool        // the last scan was to be spread
	fails  map[int]int // how often a row fails before it is done
	steal  int         // saves after which another worker saves once; 0 never

	mu       sync.Mutex
	done     map[int]bool
	visits   int
	inFlight int
	most     int
	stored   Checkpoint
	saves    int
	lastSave time.Time
	longest  time.Duration // between two saves
}

func (g *ground) Name() string { return "orders" }

func (g *ground) Segments(int) int { return 1 }

func (g *ground) rowsBefore(page int) (n int) {
	for _, rows := range g.pages[:page] {
		n += rows
	}
	return n
}

func (g *ground) Scan(_ context.Context, req source.ScanRequest) (source.Page, error) {
	time.Sleep(g.scan)
	g.spread = req.Spread
	page, _ := strconv.Atoi(req.Cursor)
	p := source.Page{}
	for n := range g.pages[page] {
		p.Rows = append(p.Rows, source.Row{ID: fmt.Sprint(g.rowsBefore(page) + n)})
	}
	if page+1 < len(g.pages) {
		p.Next = fmt.Sprint(page + 1)
	}
	return p, nil
}

func (g *ground) visit(ctx context.Context, row source.Row) (outcome, error) {
	n, _ := strconv.Atoi(row.ID)
	g.mu.Lock()
	g.visits++
	g.inFlight++
	g.most = max(g.most, g.inFlight)
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.inFlight--
		g.mu.Unlock()
	}()
	select {
	case <-time.After(g.row(n)):
	case <-ctx.Done():
		return kept, ctx.Err()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fails[n] > 0 {
		g.fails[n]--
		return kept, fmt.Errorf("row %d: %w", n, errShelf)
	}
	g.done[n] = true
	return kept, nil
}

func (g *ground) LoadCheckpoint(context.Context, string, string, string, int) (Checkpoint, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stored, nil
}

func (g *ground) SaveCheckpoint(_ context.Context, c Checkpoint) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.saves++
	if g.steal > 0 && g.saves%g.steal == 0 { // another worker was faster, by the same rows or none
		g.stored.Rev++
	}
	if c.Rev != g.stored.Rev {
		return kek.ErrConflict
	}
	page := len(g.pages)
	if !c.Done {
		page, _ = strconv.Atoi(c.Cursor)
	}
	for n := range g.rowsBefore(page) {
		if !g.done[n] {
			g.t.Errorf("the checkpoint at page %d leaves out row %d", page, n)
		}
	}
	if want := int64(g.rowsBefore(page)); c.Tally.Scanned != want {
		g.t.Errorf("the checkpoint at page %d counts %d rows, not %d", page, c.Tally.Scanned, want)
	}
	now := time.Now()
	g.longest = max(g.longest, now.Sub(g.lastSave))
	g.lastSave = now
	g.stored = c
	g.stored.Rev++
	return nil
}

func (g *ground) steps(p Pace) *Steps {
	g.done, g.lastSave = map[int]bool{}, time.Now()
	return &Steps{Pace: p, Checkpoints: g, Journal: &journal.Journal{Now: time.Now}}
}

func (g *ground) sweep(until time.Time) sweep {
	return sweep{rotation: kek.Rotation{ID: "r", Segments: 1}, source: frozenSource{Driver: g}, pass: PassRewrap, until: until, visit: g.visit}
}

// TestRewrapSpreads: the pass that writes every row reads from all over the source, the others do not.
func TestRewrapSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, name := range []string{PassCensus, PassRewrap, passConfirm, passVerify} {
			g := &ground{t: t, pages: []int{0}}
			w := g.sweep(time.Now().Add(time.Minute))
			w.pass = name
			if _, err := g.steps(Pace{}).runSegment(t.Context(), w); err != nil || g.spread != (name == PassRewrap) {
				t.Errorf("%s: spread %v, %v", name, g.spread, err)
			}
		}
	})
}

// TestWalks: whatever is slow, fails, is stolen or runs out of time, a checkpoint leaves no
// row out and counts each once, and calls that repeat end with every row done.
func TestWalks(t *testing.T) {
	for seed := range uint64(2000) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			g := &ground{t: t, scan: time.Duration(random.IntN(20)) * time.Millisecond, fails: map[int]int{}}
			for range 1 + random.IntN(8) {
				g.pages = append(g.pages, random.IntN(12))
			}
			all := g.rowsBefore(len(g.pages))
			delays := make([]time.Duration, all)
			for n := range delays {
				delays[n] = time.Duration(random.IntN(40)) * time.Millisecond
				if random.IntN(15) == 0 {
					g.fails[n] = 1 + random.IntN(2)
				}
			}
			g.row = func(n int) time.Duration { return delays[n] }
			if random.IntN(3) == 0 {
				g.steal = 2 + random.IntN(3)
			}
			pace := Pace{RowsInFlight: 1 + random.IntN(6), PagesAhead: random.IntN(4), SaveEvery: time.Duration(random.IntN(3)) * 50 * time.Millisecond}
			s := g.steps(pace)
			for calls := 0; ; calls++ {
				if calls > 200 {
					t.Fatalf("seed %d: not done after %d calls: %+v", seed, calls, g.stored)
				}
				cp, err := s.runSegment(t.Context(), g.sweep(time.Now().Add(time.Duration(1+random.IntN(300))*time.Millisecond)))
				if err != nil && !errors.Is(err, errShelf) {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err == nil && cp.Done {
					break
				}
			}
			if len(g.done) != all || g.stored.Tally.Scanned != int64(all) {
				t.Errorf("seed %d: %d of %d rows done, %d counted", seed, len(g.done), all, g.stored.Tally.Scanned)
			}
			if g.most > pace.RowsInFlight {
				t.Errorf("seed %d: %d rows at once, not %d", seed, g.most, pace.RowsInFlight)
			}
		})
	}
}

// TestWalkSaves: a checkpoint comes at least every SaveEvery and a page, and not after every page.
func TestWalkSaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &ground{t: t, scan: 10 * time.Millisecond, row: func(int) time.Duration { return 10 * time.Millisecond }}
		for range 1000 {
			g.pages = append(g.pages, 64)
		}
		s := g.steps(Pace{RowsInFlight: 64, PagesAhead: 2, SaveEvery: time.Second})
		cp, err := s.runSegment(t.Context(), g.sweep(time.Now().Add(time.Hour)))
		if err != nil || !cp.Done {
			t.Fatalf("%+v, %v", cp, err)
		}
		if g.longest > 1100*time.Millisecond || g.saves > 15 {
			t.Errorf("%d saves, the longest time between two %s", g.saves, g.longest)
		}
	})
}

// TestWalkKeepsBusy: a slow row in a hundred, and the reading of pages, do not leave slots
// idle: the walk takes little longer than the rows' time divided by the slots.
func TestWalkKeepsBusy(t *testing.T) {
	for _, slots := range []int{16, 64} {
		synctest.Test(t, func(t *testing.T) {
			g := &ground{t: t, scan: 20 * time.Millisecond}
			var work time.Duration
			g.row = func(n int) time.Duration {
				if n%100 == 99 {
					return 90 * time.Millisecond
				}
				return 9 * time.Millisecond
			}
			for range 60 {
				g.pages = append(g.pages, 500)
			}
			for n := range 60 * 500 {
				work += g.row(n)
			}
			s := g.steps(Pace{RowsInFlight: slots, PagesAhead: 2, SaveEvery: 5 * time.Second})
			began := time.Now()
			if cp, err := s.runSegment(t.Context(), g.sweep(began.Add(time.Hour))); err != nil || !cp.Done {
				t.Fatalf("%+v, %v", cp, err)
			}
			ideal, took := work/time.Duration(slots), time.Since(began)
			t.Logf("%d slots: %s, ideal %s", slots, took, ideal)
			if took > ideal*105/100 {
				t.Errorf("%d slots: %s where the rows alone take %s", slots, took, ideal)
			}
		})
	}
}

// TestWalkEndsInTime: when time is up a call finishes the rows in flight, not the pages that
// it has read, and the next call begins where it stopped.
func TestWalkEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &ground{t: t, row: func(int) time.Duration { return 4 * time.Second }}
		for range 10 {
			g.pages = append(g.pages, 500)
		}
		s := g.steps(Pace{RowsInFlight: 64, PagesAhead: 2, SaveEvery: 5 * time.Second})
		began := time.Now()
		cp, err := s.runSegment(t.Context(), g.sweep(began.Add(time.Minute)))
		if err != nil || cp.Cursor != "1" || cp.Tally.Scanned != 500 {
			t.Errorf("%+v, %v", cp, err)
		}
		if took := time.Since(began); took > time.Minute+8*time.Second {
			t.Errorf("it took %s", took)
		}
		began = time.Now()
		cp, err = s.runSegment(t.Context(), g.sweep(began.Add(time.Second))) // less than a page takes
		if err != nil || cp.Cursor != "2" {
			t.Errorf("then: %+v, %v", cp, err)
		}
	})
}
