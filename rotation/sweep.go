package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/kek"
)

// The passes over the rows. Each has its own checkpoints.
const (
	PassRewrap  = "rewrap"  // moves rows to the new KEK
	passConfirm = "confirm" // a second full scan that must find none to move
	passVerify  = "verify"  // a last, read-only scan
)

const (
	rowsInFlight     = 16 // rows of one page worked on at once
	segmentsInFlight = 4  // segments that confirm and verify work on at once
	maxPoison        = 10 // quarantined row ids kept in a checkpoint
	reserve          = time.Minute
)

// outcome is what became of one row.
type outcome int

const (
	kept        outcome = iota // nothing to do
	moved                      // rewrapped
	quarantined                // cannot be; the reason is in the error
)

// visit works on one row. An outcome of quarantined comes with the reason as its
// error; any other error stops the pass.
type visit func(ctx context.Context, row Row) (outcome, error)

// sweep is one pass over one segment.
type sweep struct {
	rotation kek.Rotation
	source   Source
	pass     string
	segment  int
	payload  bool // scan ciphertexts too
	until    time.Time
	visit    visit
}

// run goes on from the segment's checkpoint until the segment is done or time is
// up, and saves a checkpoint after every page. Two duplicates of it do each
// other no harm: rows are replaced conditionally, and the one whose checkpoint
// lost the race goes on from the other's.
func (s *Steps) run(ctx context.Context, w sweep) (Checkpoint, error) {
	cp, err := s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.Name(), w.pass, w.segment)
	if err != nil {
		return cp, unavailable("checkpoint", err)
	}
	if cp.Done && cp.Tally.Quarantined > 0 { // called again: somebody may have mended the rows
		cp.Cursor, cp.Done, cp.Tally = "", false, Tally{}
	}
	for !cp.Done && s.Now().Before(w.until) {
		page, err := w.source.Scan(ctx, ScanRequest{
			Segment: w.segment, Total: w.source.Segments(w.rotation.Segments), Cursor: cp.Cursor, Payload: w.payload,
		})
		if err != nil {
			return cp, unavailable("source "+w.source.Name(), err)
		}
		next := cp
		if next.Tally, err = w.page(ctx, page, cp.Tally); err != nil {
			return cp, err
		}
		next.Cursor, next.Done = page.Next, page.Next == ""
		if w.pass == passConfirm && next.Done && next.Tally.Rewrapped > 0 { // not clean: look at all of it again
			next.Cursor, next.Done, next.Tally = "", false, Tally{}
		}
		if cp, err = s.save(ctx, w, next); err != nil {
			return cp, err
		}
	}
	return cp, nil
}

func (s *Steps) save(ctx context.Context, w sweep, next Checkpoint) (Checkpoint, error) {
	next.SavedAt = s.Now()
	err := s.Checkpoints.SaveCheckpoint(ctx, next)
	if err != nil && !errors.Is(err, kek.ErrConflict) {
		return next, unavailable("checkpoint", err)
	}
	cp, err := s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.Name(), w.pass, w.segment)
	if err != nil {
		return next, unavailable("checkpoint", err)
	}
	return cp, nil
}

// page visits the rows of one page at once and adds them to the tally.
func (w sweep) page(ctx context.Context, page Page, t Tally) (Tally, error) {
	results := make([]outcome, len(page.Rows))
	reasons := make([]error, len(page.Rows))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(rowsInFlight)
	for i, row := range page.Rows {
		g.Go(func() error {
			results[i], reasons[i] = w.visit(gctx, row)
			if results[i] != quarantined {
				return reasons[i]
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return t, err
	}
	t.Scanned += int64(len(page.Rows))
	t.Skipped += int64(page.Skipped)
	for i, r := range results {
		switch r {
		case kept:
		case moved:
			t.Rewrapped++
		case quarantined:
			t.Quarantined++
			if len(t.Poison) < maxPoison {
				t.Poison = append(t.Poison, fmt.Sprintf("%s: %v", page.Rows[i].ID, reasons[i]))
			}
		}
	}
	return t, nil
}

// runAll runs a pass over every segment of every source, a few at once, and adds
// up their tallies. visits has one visit per source name. Done is false when time ran out first.
func (s *Steps) runAll(ctx context.Context, r kek.Rotation, pass string, payload bool, visits map[string]visit) (SweepOutput, error) {
	var sweeps []sweep
	until := s.deadline(ctx)
	for _, src := range s.Sources {
		for i := range src.Segments(r.Segments) {
			sweeps = append(sweeps, sweep{
				rotation: r, source: src, pass: pass, segment: i, payload: payload, until: until, visit: visits[src.Name()],
			})
		}
	}
	done := make([]Checkpoint, len(sweeps))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(segmentsInFlight)
	for i, w := range sweeps {
		g.Go(func() (err error) {
			done[i], err = s.run(gctx, w)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return SweepOutput{}, err
	}
	out := SweepOutput{Done: true}
	for _, cp := range done {
		out.Done = out.Done && cp.Done
		out.Tally.add(cp.Tally)
	}
	return out, nil
}

// add adds o to t.
func (t *Tally) add(o Tally) {
	t.Scanned += o.Scanned
	t.Rewrapped += o.Rewrapped
	t.Skipped += o.Skipped
	t.Quarantined += o.Quarantined
	t.Poison = append(t.Poison, o.Poison[:min(len(o.Poison), maxPoison-min(len(t.Poison), maxPoison))]...)
}

// deadline is when a pass should stop to save its checkpoint and return: a minute
// before the context ends, or a fifth of the time if that is less.
func (s *Steps) deadline(ctx context.Context) time.Time {
	end, ok := ctx.Deadline()
	if !ok {
		return s.Now().Add(24 * time.Hour)
	}
	// The context's deadline is real time; it is only ever compared with Now.
	left := end.Sub(s.Now())
	return end.Add(-min(reserve, left/5))
}
