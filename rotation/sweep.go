package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/kek"
)

// The passes over the rows. Each has its own checkpoints.
const (
	PassCensus  = "census"  // classifies every item before anything depends on it
	PassRewrap  = "rewrap"  // moves rows to the new KEK
	passConfirm = "confirm" // a second full scan that must find none to move
	passVerify  = "verify"  // a last, read-only scan
)

const (
	rowsInFlight     = 16 // rows of one page worked on at once
	segmentsInFlight = 4  // segments of all sources that a pass works on at once, if a table has so many
	maxPoison        = 10 // quarantined row ids kept in a checkpoint
	reserve          = time.Minute
)

// MaxInFlight is how many requests one process may have in flight to one service.
const MaxInFlight = rowsInFlight * segmentsInFlight

// outcome is what became of one row.
type outcome int

const (
	kept        outcome = iota // nothing to do
	proved                     // nothing to do, and its data key was unwrapped under the new KEK
	moved                      // rewrapped
	quarantined                // cannot be; the reason is in the error
)

// visit works on one row. An outcome of quarantined comes with the reason as its
// error; any other error stops the pass.
type visit func(ctx context.Context, row Row) (outcome, error)

// visitor makes the visit of one worker to one segment.
type visitor func(src frozen) visit

// sweep is one pass over one segment.
type sweep struct {
	rotation kek.Rotation
	source   frozen
	pass     string
	segment  int
	payload  bool // scan ciphertexts too
	whole    bool // scan whole items
	until    time.Time
	pulse    *pulse // of the pass; nil if no conclusion is drawn from it
	visit    visit
}

// run goes on from the segment's checkpoint until the segment is done or time is
// up, and saves a checkpoint after every page. Two duplicates of it do each
// other no harm: rows are replaced conditionally, and the one whose checkpoint
// lost the race goes on from the other's.
func (s *Steps) run(ctx context.Context, w sweep) (Checkpoint, error) {
	cp, err := s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.progress(), w.pass, w.segment)
	if err != nil {
		return cp, unavailable("checkpoint", err)
	}
	if cp.Done && cp.Tally.Quarantined > 0 { // called again: somebody may have corrected the rows
		cp.Cursor = ""
		cp.Done = false
		cp.Tally = Tally{}
	}
	for !cp.Done && s.Now().Before(w.until) {
		read := s.Now()
		if err := w.pulse.beat(read); err != nil {
			return cp, err
		}
		page, err := w.source.Scan(ctx, ScanRequest{
			Segment: w.segment, Total: w.source.Segments(w.rotation.Segments), Cursor: cp.Cursor, Payload: w.payload, Whole: w.whole,
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
			next.Cursor = ""
			next.Done = false
			next.Tally = Tally{}
		}
		next.SavedAt = read
		if err := w.pulse.beat(s.Now()); err != nil {
			return cp, err
		}
		if cp, err = s.save(ctx, w, next); err != nil {
			return cp, err
		}
	}
	return cp, nil
}

// checkAge refuses a conclusion from rows that were last read too long ago. A process
// may sleep between any two lines, as that of a laptop does.
func (s *Steps) checkAge(read time.Time) error { return checkPause(read, s.Now()) }

func checkPause(last, now time.Time) error {
	if pause := now.Sub(last); pause >= passIdle {
		return refusal(fmt.Errorf("%w: %s ago", kek.ErrChanged, pause.Round(time.Second)))
	}
	return nil
}

// pulse finds a pause of the whole process within a pass. After one, no segment saves
// a checkpoint: what is saved is as old as the pause, and the next call begins the pass
// from the start.
type pulse struct {
	mu   sync.Mutex
	last time.Time
	err  error
}

func (p *pulse) beat(now time.Time) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = checkPause(p.last, now)
	}
	if now.After(p.last) {
		p.last = now
	}
	return p.err
}

func (s *Steps) save(ctx context.Context, w sweep, next Checkpoint) (Checkpoint, error) {
	err := s.Checkpoints.SaveCheckpoint(ctx, next)
	if err != nil && !errors.Is(err, kek.ErrConflict) {
		return next, unavailable("checkpoint", err)
	}
	cp, err := s.Checkpoints.LoadCheckpoint(ctx, w.rotation.ID, w.source.progress(), w.pass, w.segment)
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
	if err := allDenied(w.source, page.Rows, results, reasons); err != nil {
		return t, err
	}
	t = t.clone() // the checkpoint that it came from must not change
	t.Scanned += int64(len(page.Rows))
	t.Other += int64(page.Other)
	t.Declared += int64(page.Declared)
	for i, r := range results {
		switch r {
		case kept:
		case proved:
			t.Unwrapped++
		case moved:
			t.Rewrapped++
		case quarantined:
			t.Quarantined++
			t.ByKind[kindOf(reasons[i])]++
			if len(t.Poison) < maxPoison {
				t.Poison = append(t.Poison, fmt.Sprintf("%s: %v", page.Rows[i].ID, reasons[i]))
			}
		}
		if w.pass == PassCensus && r != quarantined {
			t.ByKEK[string(page.Rows[i].KEK)]++
		}
	}
	return t, nil
}

// allDenied returns an error if AWS denied every row of a page that there was something
// to do with: a permission is missing, and to quarantine them all would tell nobody.
func allDenied(src frozen, rows []Row, results []outcome, reasons []error) error {
	denied, first := 0, 0
	for i, r := range results {
		if r == quarantined && errors.Is(reasons[i], ErrDenied) {
			denied, first = denied+1, i
		} else if r != kept {
			return nil
		}
	}
	if denied < 2 {
		return nil
	}
	return blame(unavailable(fmt.Sprintf("%d rows of %s", denied, src.Name()), reasons[first]), rows[first].ID)
}

// blame names the row that an error is of.
func blame(err error, row string) error {
	var typed *Error
	if errors.As(err, &typed) && len(typed.Rows) == 0 {
		named := *typed
		named.Rows = []string{row}
		return &named
	}
	return err
}

// kindOf is what a quarantined row is counted by: the kind of its defect, or what became
// of the try to move it. It tells nothing of the row.
func kindOf(reason error) string {
	var u *unaccounted
	if errors.As(reason, &u) {
		return string(u.kind)
	}
	for kind, err := range map[string]error{
		"not_unwrapped": ErrUnwrap, "denied": ErrDenied, "rejected": ErrRejected, "no_payload": errNoPayload, "not_opened": errOpen,
	} {
		if errors.Is(reason, err) {
			return kind
		}
	}
	return "another_kek"
}

// quarantine says how many rows of which source are quarantined, and by what.
func (o SweepOutput) quarantine() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(o.Sources)) {
		if t := o.Sources[name]; t.Quarantined > 0 {
			parts = append(parts, fmt.Sprintf("%d of %s (%s)", t.Quarantined, name, counted(t.ByKind)))
		}
	}
	return strings.Join(parts, ", ")
}

func (t Tally) clone() Tally {
	t.Poison = slices.Clone(t.Poison)
	byKEK, byKind := map[string]int64{}, map[string]int64{}
	maps.Copy(byKEK, t.ByKEK)
	maps.Copy(byKind, t.ByKind)
	t.ByKEK, t.ByKind = byKEK, byKind
	return t
}

// pass is one pass over every row of every source.
type pass struct {
	name    string
	payload bool
	whole   bool
	visit   visitor
}

// runAll runs a pass over every segment of every source, a few at once, and adds
// up their tallies. Done is false when time ran out first. A pass that nobody worked
// on for a while begins from the start: what was true before the pause does not count.
func (s *Steps) runAll(ctx context.Context, r kek.Rotation, p pass) (SweepOutput, error) {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return SweepOutput{}, err
	}
	if restarted, err := s.forgetIdle(ctx, r, sources, p.name); err != nil || restarted {
		return SweepOutput{}, err
	}
	return s.runSegments(ctx, r, sources, p)
}

// runSegments is runAll with what is there of the pass.
func (s *Steps) runSegments(ctx context.Context, r kek.Rotation, sources []frozen, p pass) (SweepOutput, error) {
	var sweeps []sweep
	until := s.deadline(ctx)
	beats := &pulse{last: s.Now()}
	for _, src := range sources {
		for i := range src.Segments(r.Segments) {
			sweeps = append(sweeps, sweep{
				rotation: r, source: src, pass: p.name, segment: i, payload: p.payload, whole: p.whole, until: until, pulse: beats, visit: p.visit(src),
			})
		}
	}
	done := make([]Checkpoint, len(sweeps))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, min(segmentsInFlight, r.Segments))) // who asks for one segment has one thing read at a time
	for i, w := range sweeps {
		g.Go(func() (err error) {
			done[i], err = s.run(gctx, w)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return SweepOutput{}, err
	}
	out := SweepOutput{Done: true, Deep: r.Settings.Deep, Sources: map[string]Tally{}}
	for i, cp := range done {
		out.Done = out.Done && cp.Done
		if cp.SavedAt.After(out.read) {
			out.read = cp.SavedAt
		}
		out.Tally.add(cp.Tally)
		name := sweeps[i].source.Name()
		t := out.Sources[name]
		t.add(cp.Tally)
		out.Sources[name] = t
	}
	return out, nil
}

// passIdle is how long nobody may have worked on a pass for it to count as under way.
// It saves a checkpoint every few seconds.
const passIdle = 10 * time.Minute

// forgetIdle resets the checkpoints of a pass if nobody has worked on it for a while, and
// says so: a rotation that halted and is redriven days later must not conclude from what
// was true before. Nor may a call that slept over its last write: the rotation's
// revision, which that write is conditional on, is raised first (spec: Retire, Complete,
// of rows that were seen clean). What reads the rows again does so at the new revision,
// in another call. A reset checkpoint has no time, so that a call which dies among them
// leaves the pass as idle as it was.
func (s *Steps) forgetIdle(ctx context.Context, r kek.Rotation, sources []frozen, name string) (restarted bool, err error) {
	made, last, err := s.progress(ctx, r.ID, sources, name)
	if err != nil || !s.idle(made, last) {
		return false, err
	}
	return true, s.restart(ctx, r, name, made)
}

func (s *Steps) idle(made []Checkpoint, last time.Time) bool {
	return len(made) > 0 && s.Now().Sub(last) >= passIdle
}

// restart resets a pass that conclusions may have been drawn from already.
func (s *Steps) restart(ctx context.Context, r kek.Rotation, name string, made []Checkpoint) error {
	_, err := s.transition(ctx, name, r.ID, func(v kek.View) (kek.Change, error) { return v.Restart(r.Rev, s.Now()) }, map[string]string{"pass": name})
	if err != nil {
		return err
	}
	return s.reset(ctx, made)
}

// restartPasses resets every pass that a conclusion is drawn from: whoever resumes a
// rotation that halted begins them from the start, however short the pause was.
func (s *Steps) restartPasses(ctx context.Context, r kek.Rotation) error {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return err
	}
	for _, name := range []string{PassCensus, passConfirm, passVerify} {
		made, _, err := s.progress(ctx, r.ID, sources, name)
		if err == nil {
			err = s.reset(ctx, made)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// progress lists the checkpoints of a pass that were not reset, and when the last one was
// saved.
func (s *Steps) progress(ctx context.Context, id string, sources []frozen, name string) (made []Checkpoint, last time.Time, err error) {
	for _, src := range sources {
		cps, err := s.Checkpoints.ListCheckpoints(ctx, id, src.progress(), name)
		if err != nil {
			return nil, last, unavailable("checkpoints", err)
		}
		for _, cp := range cps {
			if cp.SavedAt.IsZero() {
				continue
			}
			made = append(made, cp)
			if cp.SavedAt.After(last) {
				last = cp.SavedAt
			}
		}
	}
	return made, last, nil
}

// reset resets the checkpoints that nobody has saved since they were read.
func (s *Steps) reset(ctx context.Context, made []Checkpoint) error {
	for _, cp := range made {
		reset := Checkpoint{RotationID: cp.RotationID, Source: cp.Source, Pass: cp.Pass, Segment: cp.Segment, Rev: cp.Rev}
		if err := s.Checkpoints.SaveCheckpoint(ctx, reset); err != nil && !errors.Is(err, kek.ErrConflict) {
			return unavailable("checkpoints", err)
		}
	}
	return nil
}

// add adds o to t.
func (t *Tally) add(o Tally) {
	*t = t.clone()
	t.Scanned += o.Scanned
	t.Rewrapped += o.Rewrapped
	t.Other += o.Other
	t.Declared += o.Declared
	t.Quarantined += o.Quarantined
	t.Unwrapped += o.Unwrapped
	t.Poison = append(t.Poison, o.Poison[:min(len(o.Poison), maxPoison-min(len(t.Poison), maxPoison))]...)
	for k, n := range o.ByKEK {
		t.ByKEK[k] += n
	}
	for k, n := range o.ByKind {
		t.ByKind[k] += n
	}
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
