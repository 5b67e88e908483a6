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
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// The passes over the rows. Each has its own checkpoints.
const (
	PassCensus  = "census"  // classifies every item before anything depends on it
	PassRewrap  = "rewrap"  // moves rows to the new KEK
	passConfirm = "confirm" // a second full scan that must find none to move
	passVerify  = "verify"  // a last, read-only scan
)

const (
	segmentsInFlight = 4           // segments of all sources that a pass works on at once
	maxPoison        = 10          // quarantined row ids kept in a checkpoint
	reserve          = time.Minute // kept before the end of the context to save a checkpoint and return
)

// outcome is the result of a visit to one row.
type outcome int

const (
	kept        outcome = iota // nothing to do
	proved                     // nothing to do, and its data key was unwrapped under the new KEK
	moved                      // rewrapped
	quarantined                // cannot be rewrapped; the reason is in the error
	unusable                   // a copy of a missing record that does not unwrap
	exposed                    // a keyed row whose data key was made before an emergency's switch
)

// visit works on one row. An outcome of quarantined comes with the reason as its
// error; any other error stops the pass.
type visit func(ctx context.Context, row source.Row) (outcome, error)

// visitor makes the visit of one worker to one segment.
type visitor func(src frozenSource) visit

// sweep is one pass over one segment.
type sweep struct {
	rotation kek.Rotation
	source   frozenSource
	pass     string
	segment  int
	payload  bool // scan ciphertexts too
	whole    bool // scan whole items
	missing  bool // scan copies of missing records
	keyed    bool // visit keyed rows too
	until    time.Time
	pulse    *pulse // shared by the segments of a pass; nil if no conclusion is drawn from it
	visit    visit
	slots    slots       // shared by the segments of a pass; nil: its own
	pause    *pauseWatch // shared by the segments of a call

	concludes bool // the call concludes from the pass, so a segment that is done is not read again
}

// checkAge refuses a conclusion from rows that were last read too long ago. A process may be
// suspended between any two lines, for example on a laptop that is closed.
func (s *Steps) checkAge(read time.Time) error { return checkPause(read, s.Journal.Now()) }

// checkPause refuses a pause of [passIdle] or more.
func checkPause(last, now time.Time) error {
	if pause := now.Sub(last); pause >= passIdle {
		return journal.ExplainRefusal(fmt.Errorf("%w: %s ago", kek.ErrChanged, pause.Round(time.Second)))
	}
	return nil
}

// pulse detects that the whole process was suspended during a pass. After such a pause no
// segment saves a checkpoint: the stored ones are then as old as the pause, so the next call
// begins the pass from the start.
type pulse struct {
	mu   sync.Mutex
	last time.Time
	err  error
}

// recordBeat notes that the pass is alive, and returns an error if it has paused too long.
func (p *pulse) recordBeat(now time.Time) error {
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

// countPage adds the rows of a page to a tally.
func (w sweep) countPage(p *walkedPage, t Tally) (Tally, error) {
	if err := allDenied(w.source, p.page.Rows, p.results, p.reasons); err != nil {
		return t, err
	}
	t = t.cloneTally() // the checkpoint that it came from must not change
	t.Scanned += int64(len(p.page.Rows) + len(p.page.Keyed))
	t.Keyed += int64(len(p.page.Keyed))
	for _, row := range p.page.Rows {
		if row.DEKID != "" && row.Defect == "" {
			t.Keyed++
		}
	}
	t.Other += int64(p.page.Other)
	t.Declared += int64(p.page.Declared)
	for i, r := range p.results {
		switch r {
		case kept:
		case proved:
			t.Unwrapped++
		case moved:
			t.Rewrapped++
		case unusable:
			t.Unusable++
		case exposed:
			t.Exposed++
		case quarantined:
			t.Quarantined++
			t.ByKind[kindOf(p.reasons[i])]++
			if len(t.Poison) < maxPoison {
				t.Poison = append(t.Poison, fmt.Sprintf("%s: %v", p.page.Rows[i].ID, p.reasons[i]))
			}
		}
		if w.pass == PassCensus && r != quarantined && p.page.Rows[i].DEKID == "" {
			t.ByKEK[string(p.page.Rows[i].KEK)]++
			t.DataKeys = t.DataKeys.addRow(p.page.Rows[i])
		}
	}
	return t, nil
}

// allDenied returns an error if AWS denied every row of a page on which there was work to do.
// Then a permission is missing. Quarantining all rows would hide that.
func allDenied(src frozenSource, rows []source.Row, results []outcome, reasons []error) error {
	denied, first := 0, 0
	for i, r := range results {
		if r == quarantined && errors.Is(reasons[i], journal.ErrDenied) {
			denied, first = denied+1, i
		} else if r != kept {
			return nil
		}
	}
	if denied < 2 {
		return nil
	}
	return nameRow(journal.WrapUnavailable(fmt.Sprintf("%d rows of %s", denied, src.Name()), reasons[first]), rows[first].ID)
}

// nameRow adds the id of a row to an error that names none.
func nameRow(err error, row string) error {
	var typed *journal.Error
	if errors.As(err, &typed) && len(typed.Rows) == 0 {
		named := *typed
		named.Rows = []string{row}
		return &named
	}
	return err
}

// kindOf returns the kind by which a quarantined row is counted: that of its defect, or of
// the error when it was moved. It contains nothing of the row itself.
func kindOf(reason error) string {
	var u *unaccountedItem
	if errors.As(reason, &u) {
		return string(u.kind)
	}
	for kind, err := range map[string]error{
		"not_unwrapped": journal.ErrUnwrap, "denied": journal.ErrDenied, "rejected": journal.ErrRejected, "no_payload": errNoPayload, "not_opened": errOpen,
	} {
		if errors.Is(reason, err) {
			return kind
		}
	}
	return "another_kek"
}

// describeQuarantine says how many rows of which source are quarantined, and of what kinds.
func (o SweepOutput) describeQuarantine() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(o.Sources)) {
		if t := o.Sources[name]; t.Quarantined > 0 {
			parts = append(parts, fmt.Sprintf("%d of %s (%s)", t.Quarantined, name, formatCounts(t.ByKind)))
		}
	}
	return strings.Join(parts, ", ")
}

// cloneTally returns a copy that shares no map or slice with t.
func (t Tally) cloneTally() Tally {
	t.Poison = slices.Clone(t.Poison)
	byKEK, byKind := map[string]int64{}, map[string]int64{}
	maps.Copy(byKEK, t.ByKEK)
	maps.Copy(byKind, t.ByKind)
	t.ByKEK, t.ByKind = byKEK, byKind
	t.DataKeys = slices.Clone(t.DataKeys)
	return t
}

// restartTally returns the tally with which a segment is read from its start. The rows that the
// rewrap has moved are under the new KEK when they are read again, and their move is not counted
// a second time, so their number stays. A checkpoint that is not proven has no tally to keep.
func (t Tally) restartTally(pass string) Tally {
	if pass == PassRewrap {
		return Tally{Rewrapped: t.Rewrapped}
	}
	return Tally{}
}

// pass is one pass over every row of every source.
type pass struct {
	name    string
	payload bool
	whole   bool
	missing bool
	keyed   bool
	visit   visitor
}

// runAll runs a pass over every segment of every source, a few at once, and adds up their
// tallies. Done is false if time ran out first. A pass that nobody has worked on for a while
// begins from the start: what was true before the pause does not count.
func (s *Steps) runAll(ctx context.Context, r kek.Rotation, p pass) (SweepOutput, error) {
	sources, _, err := s.openRead(r)
	if err != nil {
		return SweepOutput{}, err
	}
	if restarted, err := s.forgetIdle(ctx, r, sources, p.name); err != nil || restarted {
		return SweepOutput{Left: CutLeft(listSegments(sources, r))}, err
	}
	return s.runSegments(ctx, r, sources, p)
}

// runOne works on one segment of a pass until it is done or time is nearly up. The state
// machine's map calls it for each segment. Like runAll it first begins a pass again on which
// nobody has worked for a while: the map may have been stopped, or paused. rewrap draws no
// conclusion from what it has seen, so it does not begin again.
func (s *Steps) runOne(ctx context.Context, r kek.Rotation, at Segment, p pass) (SweepOutput, error) {
	sources, unread, err := s.openRead(r)
	if err != nil {
		return SweepOutput{}, err
	}
	if slices.Contains(unread, at.Source) {
		return SweepOutput{Done: true}, nil
	}
	src, err := findSource(sources, r.ID, at.Source)
	if err != nil {
		return SweepOutput{}, err
	}
	if n := src.Segments(r.Segments); at.Segment < 0 || at.Segment >= n {
		return SweepOutput{}, journal.RejectInput("segment", fmt.Sprintf("%d is not in 0..%d", at.Segment, n-1), "use the segments of preflight's plan")
	}
	w := p.newSweep(r, src, at.Segment, nil)
	w.until = s.passDeadline(ctx)
	if p.name != PassRewrap {
		if restarted, err := s.forgetIdle(ctx, r, sources, p.name); err != nil || restarted {
			return SweepOutput{}, err
		}
		w.pulse = &pulse{last: s.Journal.Now()}
	}
	w.pause = s.watchPause(r.ID)
	cp, err := s.runSegment(ctx, w)
	cp.Tally.DataKeys = nil // the conclusion reads it from the checkpoint
	return SweepOutput{Done: cp.Done, Paused: !cp.Done && w.pause.wasPaused(), Tally: cp.Tally}, err
}

// findSource returns one of the sources that a rotation has frozen.
func findSource(sources []frozenSource, rotation, name string) (frozenSource, error) {
	for _, src := range sources {
		if src.Name() == name {
			return src, nil
		}
	}
	return frozenSource{}, &journal.Error{Kind: journal.InvalidInput, Field: "source", Msg: fmt.Sprintf("rotation %s has no source %q", rotation, name), Next: journal.Next{Do: journal.UsePlannedSource}}
}

// newSweep returns the pass over one segment.
func (p pass) newSweep(r kek.Rotation, src frozenSource, segment int, beats *pulse) sweep {
	return sweep{rotation: r, source: src, pass: p.name, segment: segment, payload: p.payload, whole: p.whole, missing: p.missing, keyed: p.keyed, pulse: beats, visit: p.visit(src)}
}

// listSegments lists every segment of the sources, those of a source far apart.
func listSegments(sources []frozenSource, r kek.Rotation) []Segment {
	segments := []Segment{}
	for _, src := range sources {
		for _, i := range SpreadSegments(src.Segments(r.Segments)) {
			segments = append(segments, Segment{Source: src.Name(), Segment: i})
		}
	}
	return segments
}

// concludeTime is how long a function that concludes a pass works on segments itself. A small
// deployment needs no more, so a pass over it is one call. What is left then is the state
// machine's map's: it works on many segments at once.
const concludeTime = time.Minute

// turns share out the time of a call that works on all segments of a pass. Each segment gets
// its part, and at least a page, so that a call finds in any segment an error that repeating
// does not heal.
type turns struct {
	mu      sync.Mutex
	until   time.Time // for all of them
	latest  time.Time // for the last page of each
	waiting int       // segments that have had no turn
	workers int       // segments that have their turn at the same time
}

// newTurns returns the turns of segments. A call without a deadline, by a person, works until
// all are done.
func (s *Steps) newTurns(ctx context.Context, segments, workers int) *turns {
	t := &turns{latest: s.passDeadline(ctx), waiting: segments, workers: workers}
	t.until = t.latest
	if soon := s.Journal.Now().Add(concludeTime); s.isLimited(ctx) && soon.Before(t.until) {
		t.until = soon
	}
	return t
}

// nextTurn returns until when the next segment is worked on.
func (t *turns) nextTurn(now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	rounds := (t.waiting + t.workers - 1) / t.workers
	t.waiting--
	end := now.Add(max(t.until.Sub(now)/time.Duration(max(rounds, 1)), time.Millisecond))
	if end.After(t.latest) {
		return t.latest
	}
	return end
}

// runSegments is runAll without that check: it continues from the stored checkpoints. In a
// function it works for [concludeTime] and returns the segments that are left.
func (s *Steps) runSegments(ctx context.Context, r kek.Rotation, sources []frozenSource, p pass) (SweepOutput, error) {
	var sweeps []sweep
	beats := &pulse{last: s.Journal.Now()}
	for _, src := range sources {
		for _, i := range SpreadSegments(src.Segments(r.Segments)) {
			sweeps = append(sweeps, p.newSweep(r, src, i, beats))
		}
	}
	done := make([]Checkpoint, len(sweeps))
	shared := s.Pace.newSlots()
	g, gctx := errgroup.WithContext(ctx)
	workers := max(1, min(segmentsInFlight, r.Segments)) // with one segment configured, sources are read one after the other
	g.SetLimit(workers)
	turns := s.newTurns(ctx, len(sweeps), workers)
	pause := s.watchPause(r.ID)
	for i, w := range sweeps {
		w.slots = shared
		w.concludes = true
		w.pause = pause
		g.Go(func() (err error) {
			w.until = turns.nextTurn(s.Journal.Now())
			done[i], err = s.runSegment(gctx, w)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return SweepOutput{}, err
	}
	out := SweepOutput{Done: true, Deep: r.Settings.Deep, Sources: map[string]Tally{}, opened: sources}
	for i, cp := range done {
		if out.Done = out.Done && cp.Done; !cp.Done {
			out.Left = append(out.Left, Segment{Source: sweeps[i].source.Name(), Segment: sweeps[i].segment})
		}
		if cp.SavedAt.After(out.read) {
			out.read = cp.SavedAt
		}
		out.Tally.addTally(cp.Tally)
		name := sweeps[i].source.Name()
		t := out.Sources[name]
		t.addTally(cp.Tally)
		out.Sources[name] = t
	}
	out.Left = CutLeft(out.Left)
	out.Paused = !out.Done && pause.wasPaused()
	return out, nil
}

// passIdle is after how long without a checkpoint a pass counts as interrupted. A pass that
// runs saves a checkpoint every few seconds.
const passIdle = 10 * time.Minute

// forgetIdle resets the checkpoints of a pass if nobody has worked on it for [passIdle], and
// reports whether it did. A rotation that halted and is redriven days later must not
// conclude from what was true before. Nor may a call that was suspended before its last
// write: that write is conditional on the rotation's revision, which is raised first (spec:
// Retire, Complete, of rows that were seen clean). The rows are read again in another call,
// at the new revision. A reset checkpoint has no time, so if a call dies among the resets
// the pass still counts as idle.
func (s *Steps) forgetIdle(ctx context.Context, r kek.Rotation, sources []frozenSource, name string) (restarted bool, err error) {
	made, last, err := s.readProgress(ctx, r.ID, sources, name)
	if err != nil || !s.isIdle(made, last) {
		return false, err
	}
	return true, s.restartPass(ctx, r, name, made)
}

// isIdle reports whether a pass was begun and nobody has worked on it for [passIdle].
func (s *Steps) isIdle(made []Checkpoint, last time.Time) bool {
	return len(made) > 0 && s.Journal.Now().Sub(last) >= passIdle
}

// restartPass resets a pass from which another call may be about to conclude. It first raises
// the rotation's revision, so that the conclusion is refused.
func (s *Steps) restartPass(ctx context.Context, r kek.Rotation, name string, made []Checkpoint) error {
	_, err := s.Journal.Transition(ctx, name, r.ID, func(v kek.View) (kek.Change, error) { return v.Restart(r.Rev, s.Journal.Now()) }, map[string]string{"pass": name})
	if err != nil {
		return err
	}
	return s.resetCheckpoints(ctx, made)
}

// restartPasses resets every pass from which a conclusion is drawn, its forged checkpoints
// too. A rotation that is resumed after a halt begins them from the start, however short the
// pause was.
func (s *Steps) restartPasses(ctx context.Context, r kek.Rotation) error {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return err
	}
	for _, name := range []string{PassCensus, passConfirm, passVerify} {
		cps, err := s.listCheckpoints(ctx, r.ID, sources, name)
		if err != nil {
			return err
		}
		cps = slices.DeleteFunc(cps, func(cp Checkpoint) bool { return cp.SavedAt.IsZero() && cp.Proof != FalseMAC })
		if err := s.resetCheckpoints(ctx, cps); err != nil {
			return err
		}
	}
	return nil
}

// listCheckpoints lists the checkpoints of a pass over all sources.
func (s *Steps) listCheckpoints(ctx context.Context, id string, sources []frozenSource, name string) ([]Checkpoint, error) {
	var all []Checkpoint
	for _, src := range sources {
		cps, err := s.Checkpoints.ListCheckpoints(ctx, id, src.progressName(), name)
		if err != nil {
			return nil, journal.WrapUnavailable("checkpoints", err)
		}
		all = append(all, cps...)
	}
	return all, nil
}

// readProgress lists the checkpoints of a pass that are not reset, and returns when the last
// of them was saved.
func (s *Steps) readProgress(ctx context.Context, id string, sources []frozenSource, name string) (made []Checkpoint, last time.Time, err error) {
	cps, err := s.listCheckpoints(ctx, id, sources, name)
	for _, cp := range cps {
		if cp.SavedAt.IsZero() {
			continue
		}
		made = append(made, cp)
		if cp.SavedAt.After(last) {
			last = cp.SavedAt
		}
	}
	return made, last, err
}

// resetCheckpoints resets checkpoints, except those that were saved since they were read: a
// worker that runs now saves what it has just seen.
func (s *Steps) resetCheckpoints(ctx context.Context, made []Checkpoint) error {
	for _, cp := range made {
		reset := Checkpoint{RotationID: cp.RotationID, Source: cp.Source, Pass: cp.Pass, Segment: cp.Segment, Rev: cp.Rev}
		if err := s.Checkpoints.SaveCheckpoint(ctx, reset); err != nil && !errors.Is(err, kek.ErrConflict) {
			return journal.WrapUnavailable("checkpoints", err)
		}
	}
	return nil
}

// reopenQuarantined has the segments in which rows are quarantined read again by the next
// call: a person corrects the rows first. It is called once their number is reported. Their
// tallies stay until then, for those who look.
func (s *Steps) reopenQuarantined(ctx context.Context, r kek.Rotation, sources []frozenSource, name string) error {
	made, _, err := s.readProgress(ctx, r.ID, sources, name)
	for _, cp := range made {
		if err != nil {
			return err
		}
		if !cp.Done || cp.Tally.Quarantined == 0 {
			continue
		}
		cp.Done = false
		cp.Cursor = ""
		if failed := s.Checkpoints.SaveCheckpoint(ctx, cp); failed != nil && !errors.Is(failed, kek.ErrConflict) {
			err = journal.WrapUnavailable("checkpoints", failed)
		}
	}
	return err
}

// addTally adds o to t. It keeps at most maxPoison ids of quarantined rows.
func (t *Tally) addTally(o Tally) {
	*t = t.cloneTally()
	t.Scanned += o.Scanned
	t.Rewrapped += o.Rewrapped
	t.Other += o.Other
	t.Declared += o.Declared
	t.Quarantined += o.Quarantined
	t.Unwrapped += o.Unwrapped
	t.DataKeys = t.DataKeys.merge(o.DataKeys)
	t.Keyed += o.Keyed
	t.Exposed += o.Exposed
	t.Unusable += o.Unusable
	t.Poison = append(t.Poison, o.Poison[:min(len(o.Poison), maxPoison-min(len(t.Poison), maxPoison))]...)
	for k, n := range o.ByKEK {
		t.ByKEK[k] += n
	}
	for k, n := range o.ByKind {
		t.ByKind[k] += n
	}
}

// isLimited reports whether a call must end at a deadline, as that of a function must.
func (s *Steps) isLimited(ctx context.Context) bool {
	_, ok := ctx.Deadline()
	return ok
}

// passDeadline returns when a pass stops, saves its checkpoint and returns: a minute before
// the context ends, or a fifth of the remaining time if that is less.
func (s *Steps) passDeadline(ctx context.Context) time.Time {
	end, ok := ctx.Deadline()
	if !ok {
		return s.Journal.Now().Add(24 * time.Hour)
	}
	// The context's deadline is in real time. It is only compared with Now.
	left := end.Sub(s.Journal.Now())
	return end.Add(-min(reserve, left/5))
}
