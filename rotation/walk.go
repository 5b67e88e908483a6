package rotation

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// Pace says how much of a pass one process does at once. The zero value works on one page
// after the other and saves a checkpoint after each.
type Pace struct {
	RowsInFlight int           // rows worked on at once in the process; 0 is 16
	PagesAhead   int           // pages of a segment that are read while rows of earlier pages are worked on
	SaveEvery    time.Duration // time between two checkpoints of a segment; a crash repeats at most that much work
}

const defaultRowsInFlight = 16

// slots bounds the rows that one process works on at once, over all segments.
type slots chan struct{}

func (p Pace) newSlots() slots {
	if p.RowsInFlight > 0 {
		return make(slots, p.RowsInFlight)
	}
	return make(slots, defaultRowsInFlight)
}

// walkedPage is a page of a segment on its way through walkPages.
type walkedPage struct {
	page    source.Page
	read    time.Time // before it was read
	first   bool      // the first page of a walk is finished even if time is up, so that every call makes progress
	results []outcome
	reasons []error // of quarantined rows

	rows   sync.WaitGroup // rows that are worked on
	failed error          // the first failure of a row; read after rows.Wait
	once   sync.Once
}

func newWalkedPage(page source.Page, read time.Time) *walkedPage {
	return &walkedPage{page: page, read: read, results: make([]outcome, len(page.Rows)), reasons: make([]error, len(page.Rows))}
}

func (p *walkedPage) failOnce(err error) { p.once.Do(func() { p.failed = err }) }

// runSegment continues from the segment's checkpoint until the segment is done or time is up.
// It reads pages ahead while rows are worked on. A checkpoint covers only the pages up to
// which every row is done, so that no row is left out because a later one was faster. Two
// duplicates do each other no harm: rows are replaced conditionally, and the duplicate whose
// checkpoint loses the race continues from the other's.
func (s *Steps) runSegment(ctx context.Context, w sweep) (Checkpoint, error) {
	if err := ctx.Err(); errors.Is(err, context.Canceled) { // another segment has failed
		return Checkpoint{}, err
	}
	cp, err := s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.progressName(), w.pass, w.segment)
	if err != nil {
		return cp, journal.WrapUnavailable("checkpoint", err)
	}
	if cp.Proof == FalseMAC && w.pass != PassRewrap {
		return cp, errForged(cp)
	}
	if cp.Done && cp.Tally.Quarantined > 0 && !w.concludes { // called again: a person may have corrected the rows
		cp.Cursor = ""
		cp.Done = false
	}
	if !cp.Done && cp.Cursor == "" {
		cp.Tally = cp.Tally.restartTally(w.pass)
	}
	if w.slots == nil {
		w.slots = s.Pace.newSlots()
	}
	for !cp.Done {
		if over, err := s.mustStop(ctx, w); err != nil || over {
			return cp, err
		}
		if cp, err = s.walkPages(ctx, w, cp); err != nil {
			return cp, err
		}
	}
	return cp, nil
}

// walkPages works on pages from a checkpoint on. It returns the stored checkpoint after the
// last page, when time is up, or as soon as the stored checkpoint is not the one that it
// saved: another worker is ahead, or the pass was reset.
//
// Three stages run at once: readPages reads pages, visitPages starts work on their rows, and
// saveDone waits for the rows of each page, in order, and saves checkpoints.
func (s *Steps) walkPages(ctx context.Context, w sweep, cp Checkpoint) (Checkpoint, error) {
	began := s.Journal.Now()
	g, gctx := errgroup.WithContext(ctx)
	gctx, stop := context.WithCancel(gctx)
	defer stop()
	ahead := make(chan *walkedPage, s.Pace.PagesAhead) // read, rows not begun
	pages := make(chan *walkedPage, s.Pace.PagesAhead) // rows begun
	turn := make(chan struct{})                        // with no page ahead, the next is read when this one is saved
	g.Go(func() error {
		defer close(ahead)
		return s.readPages(gctx, w, cp.Cursor, ahead, turn)
	})
	g.Go(func() error {
		defer close(pages)
		return s.visitPages(gctx, g, w, ahead, pages)
	})
	stored, err := s.saveDone(ctx, w, cp, began, pages, turn)
	stop()
	for range pages { // lets the reader end
	}
	// A row that fails cancels the rows of other pages, also of earlier ones; the group knows
	// which failed first. A cancellation by this walk itself is not a failure.
	if failed := g.Wait(); failed != nil && !errors.Is(failed, context.Canceled) {
		return stored, failed
	}
	if ctx.Err() != nil {
		return stored, ctx.Err()
	}
	return stored, err
}

// readPages reads pages from a cursor on. Without pages ahead it waits until the page before
// is saved.
func (s *Steps) readPages(ctx context.Context, w sweep, cursor string, ahead chan<- *walkedPage, turn <-chan struct{}) error {
	for first := true; ; first = false {
		if over, err := s.mustStop(ctx, w); err != nil || over {
			return err
		}
		read := s.Journal.Now()
		if err := w.pulse.recordBeat(read); err != nil {
			return err
		}
		page, err := w.source.Scan(ctx, source.ScanRequest{
			Segment: w.segment, Total: w.source.Segments(w.rotation.Segments), Cursor: cursor, Payload: w.payload, Whole: w.whole, Missing: w.missing,
			Spread: w.pass == PassRewrap,
		})
		if err != nil {
			return journal.WrapUnavailable("source "+w.source.Name(), err)
		}
		if w.keyed {
			page.Rows, page.Keyed = append(page.Rows, page.Keyed...), nil
		}
		p := newWalkedPage(page, read)
		p.first = first
		if err := sendPage(ctx, ahead, p); err != nil {
			return err
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
		if s.Pace.PagesAhead > 0 {
			continue
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendPage sends a page to the next stage, or returns when the walk is over.
func sendPage(ctx context.Context, to chan<- *walkedPage, p *walkedPage) error {
	select {
	case to <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// visitPages starts work on the rows of pages, in the order of the pages. A page is passed on
// before its rows start, so that saveDone waits for them even if the walk ends meanwhile.
func (s *Steps) visitPages(ctx context.Context, g *errgroup.Group, w sweep, ahead <-chan *walkedPage, pages chan<- *walkedPage) error {
	c := &crew{group: g, jobs: make(chan func() error), most: cap(w.slots)}
	defer close(c.jobs)
	for p := range ahead {
		p.rows.Add(len(p.page.Rows))
		if err := sendPage(ctx, pages, p); err != nil {
			return err
		}
		s.visitRows(ctx, c, w, p)
	}
	return nil
}

// crew is the goroutines that work on the rows of one walk. They live as long as the walk: the
// stack of a goroutine grows to what a request of the AWS SDK needs, which for a new one for
// each row took 8 % of the processor (BenchmarkRow).
type crew struct {
	group *errgroup.Group
	jobs  chan func() error
	hired int
	most  int // as many as the walk may have rows in flight
}

// begin hands a job to a goroutine that is idle, or to a new one. It waits only if all are busy,
// of which one is about to be idle then: the caller has a slot.
func (c *crew) begin(ctx context.Context, job func() error) error {
	select {
	case c.jobs <- job:
		return nil
	default:
	}
	if c.hired < c.most {
		c.hired++
		c.group.Go(func() error {
			for more := true; more; job, more = <-c.jobs {
				if err := job(); err != nil {
					return err
				}
			}
			return nil
		})
		return nil
	}
	select {
	case c.jobs <- job:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errTimeUp stops a page whose rows have not all started when time is up or people have
// paused the walk. The call has not failed: the next one begins with this page.
var errTimeUp = errors.New("time is up")

// mayStartRow returns why the next row of a page must not be started, or nil.
func (s *Steps) mayStartRow(ctx context.Context, w sweep, p *walkedPage) error {
	now := s.Journal.Now()
	paused, err := w.pause.isPaused(ctx, now)
	if err == nil && (paused || !p.first && !now.Before(w.until)) {
		return errTimeUp
	}
	return err
}

// visitRows starts work on the rows of a page as slots become free, until time is up. After
// that only the rows in flight are finished, even if KMS limits the rate of requests.
func (s *Steps) visitRows(ctx context.Context, c *crew, w sweep, p *walkedPage) {
	for i, row := range p.page.Rows {
		var stopped error
		select {
		case w.slots <- struct{}{}:
			if stopped = s.mayStartRow(ctx, w, p); stopped != nil {
				<-w.slots
			}
		case <-ctx.Done():
			stopped = ctx.Err()
		}
		job := func() error {
			defer p.rows.Done()
			defer func() { <-w.slots }()
			p.results[i], p.reasons[i] = w.visit(ctx, row)
			if p.reasons[i] != nil && p.results[i] != quarantined {
				p.failOnce(p.reasons[i])
				return p.reasons[i]
			}
			return nil
		}
		if stopped == nil {
			if stopped = c.begin(ctx, job); stopped != nil {
				<-w.slots
			}
		}
		if stopped != nil {
			p.failOnce(stopped)
			p.rows.Add(i - len(p.page.Rows)) // the rest is not begun
			return
		}
	}
}

// saveDone waits for the rows of each page, in order, and saves checkpoints. If a later page
// fails, the pages before it are saved too.
func (s *Steps) saveDone(ctx context.Context, w sweep, cp Checkpoint, saved time.Time, pages <-chan *walkedPage, turn chan<- struct{}) (Checkpoint, error) {
	next := cp
	unsaved := false
	var err error
	for p := range pages {
		p.rows.Wait()
		if err = p.failed; errors.Is(err, errTimeUp) {
			err = nil
			break
		} else if err != nil {
			break
		}
		if next, err = w.addPage(p, next); err != nil {
			break
		}
		unsaved = true
		if next.Cursor == "" || s.Journal.Now().Sub(saved) >= s.Pace.SaveEvery {
			var again bool
			if next, again, err = s.saveCheckpoint(ctx, w, next); err != nil || again || next.Done {
				return next, err
			}
			saved, unsaved = s.Journal.Now(), false
		}
		if s.Pace.PagesAhead == 0 && next.Cursor != "" {
			select {
			case turn <- struct{}{}:
			case <-ctx.Done():
				return next, ctx.Err()
			}
		}
	}
	if unsaved {
		stored, _, failed := s.saveCheckpoint(ctx, w, next)
		if next = stored; err == nil {
			err = failed
		}
	}
	return next, err
}

// addPage adds a page whose rows are done to a checkpoint. The confirmation must end with a
// scan that moved nothing, so if this scan of the segment moved a row it starts over.
func (w sweep) addPage(p *walkedPage, cp Checkpoint) (Checkpoint, error) {
	var err error
	if cp.Tally, err = w.countPage(p, cp.Tally); err != nil {
		return cp, err
	}
	cp.Cursor, cp.Done = p.page.Next, p.page.Next == ""
	cp.SavedAt = p.read
	if w.pass == passConfirm && cp.Done && cp.Tally.Rewrapped > 0 {
		cp.Cursor = ""
		cp.Done = false
		cp.Tally = Tally{}
	}
	return cp, nil
}

// saveCheckpoint stores a checkpoint and returns the one that is stored afterwards. again
// means that the walk must start again from it, because another worker saved it or because
// the pass begins from the start.
func (s *Steps) saveCheckpoint(ctx context.Context, w sweep, next Checkpoint) (stored Checkpoint, again bool, err error) {
	if err := w.pulse.recordBeat(s.Journal.Now()); err != nil {
		return next, false, err
	}
	err = s.Checkpoints.SaveCheckpoint(ctx, next)
	if err != nil && !errors.Is(err, kek.ErrConflict) {
		return next, false, journal.WrapUnavailable("checkpoint", err)
	}
	lost := err != nil
	stored, err = s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.progressName(), w.pass, w.segment)
	if err != nil {
		return next, false, journal.WrapUnavailable("checkpoint", err)
	}
	if stored.Proof == FalseMAC && w.pass != PassRewrap {
		return next, false, errForged(stored)
	}
	return stored, lost || next.Cursor == "" || stored.Cursor != next.Cursor || stored.Rev != next.Rev+1, nil
}
