package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// ScheduleRequester is the requester of the rotations and drills that the schedule starts.
const ScheduleRequester = "schedule"

// ScheduleEnabled is the state of a schedule that starts executions.
const ScheduleEnabled = "ENABLED"

// ScheduleInput is the input of each tick, as template.yaml gives it to EventBridge
// Scheduler: what the tick may start, and when.
type ScheduleInput struct {
	StateMachine string `json:"state_machine_arn"`
	Preflight    string `json:"preflight_function"`
	Hour         int    `json:"hour"`  // local hour of the rotation
	State        string `json:"state"` // ENABLED or DISABLED: nothing is started
}

// Wait is why something that is due was not done.
type Wait struct {
	Why  string       `json:"why"`
	Next journal.Next `json:"next,omitzero"`
}

// ScheduleOutput says what a tick found and did.
type ScheduleOutput struct {
	Next               gates.Quarter `json:"next"`                // the rotation that is due next; zero before genesis, and while the schedule is disabled
	Skipped            string        `json:"skipped,omitempty"`   // why one before it is not started
	Called             []string      `json:"called,omitempty"`    // names of what was started, or had been started before
	Waits              []Wait        `json:"waits,omitempty"`     // why something that is due was not started
	RotationOverdue    bool          `json:"rotation_overdue"`    // see [MetricRotationOverdue]
	PreparationOverdue bool          `json:"preparation_overdue"` // see [MetricPreparationOverdue]
}

// Starter starts what is due.
type Starter interface {
	// StartExecution starts an execution of a state machine. It succeeds if an execution of
	// that name runs or has run: Step Functions keeps a name for 90 days.
	StartExecution(ctx context.Context, stateMachine, name string, in ExecutionInput) error
	// CallPreflight calls the function without waiting for its answer.
	CallPreflight(ctx context.Context, function string, in PreflightInput) error
}

// The metrics of the schedule, with an alarm in template.yaml for each. That of the first
// goes off when the metric is missing.
const (
	MetricTick               = "schedule_tick"
	MetricRotationOverdue    = "rotation_overdue"    // a rotation that was due has not completed
	MetricPreparationOverdue = "preparation_overdue" // an announcement or a drill that was due is missing
)

// How late something that is due may be before a person is told.
const (
	noticeGrace   = 2 * time.Hour
	drillGrace    = day
	rotationGrace = day
	longestRun    = 8 * day // since its start; it may still run after that, but a person should look
)

// Scheduler starts rotations, and the drills and announcements before them, by the calendar.
type Scheduler struct {
	Journal *journal.Journal
	Gates   *gates.Gates
	Starter Starter
}

// StartDue is one tick. It starts what is due by the calendar, is not done yet and can still
// be done in time, and it measures what is overdue. The names of what it starts are derived
// from the quarter, and it reads in the control table what is done. So a tick may be
// repeated, lost, late or interrupted.
func (s *Scheduler) StartDue(ctx context.Context, in ScheduleInput) (ScheduleOutput, error) {
	t := tick{scheduler: s, in: in, now: s.Journal.Now(), start: in.State == ScheduleEnabled}
	if t.start {
		if err := t.startDue(ctx); err != nil { // without a metric: the alarm on a missing tick reports one that keeps failing
			return t.out, err
		}
	}
	s.Journal.Measure(MetricTick, true)
	s.Journal.Measure(MetricRotationOverdue, t.out.RotationOverdue)
	s.Journal.Measure(MetricPreparationOverdue, t.out.PreparationOverdue)
	return t.out, nil
}

// LookAhead returns what [Scheduler.StartDue] would find, for the operator's tool. Nothing
// is started.
func (s *Scheduler) LookAhead(ctx context.Context, hour int) (ScheduleOutput, error) {
	t := tick{scheduler: s, in: ScheduleInput{Hour: hour}, now: s.Journal.Now()}
	err := t.startDue(ctx)
	return t.out, err
}

// tick is one call of [Scheduler.StartDue].
type tick struct {
	scheduler *Scheduler
	in        ScheduleInput
	now       time.Time
	start     bool // start what is due; else only look
	view      kek.View
	done      []kek.Rotation // that have ended lately, see readHistory
	genesis   time.Time      // zero if it was long ago
	out       ScheduleOutput
}

func (t *tick) startDue(ctx context.Context) (err error) {
	if t.in.Hour < 0 || t.in.Hour > 23 {
		return &journal.Error{Kind: journal.InvalidInput, Field: "hour", Msg: fmt.Sprintf("%d is not in 0..23", t.in.Hour), Next: journal.Next{Do: journal.DeployAgain}}
	}
	if span := t.scheduler.Gates.Rules.Window.OpenSpan(); span < gates.LeastStart {
		return &journal.Error{
			Kind: journal.Misconfigured, Field: "Window", Msg: fmt.Sprintf("it is open for %s, and the schedule looks every quarter of an hour", span),
			Next: journal.Next{Say: fmt.Sprintf("deploy a window of %s or more", gates.LeastStart)},
		}
	}
	if t.view, err = t.scheduler.Journal.Load(ctx, ""); err != nil || t.view.Pointer == nil {
		return err
	}
	quarters := t.scheduler.Gates.Rules.Quarters(t.now, t.in.Hour)
	if t.done, t.genesis, err = readHistory(ctx, t.scheduler.Journal, t.view, quarters[0].Drill); err != nil {
		return err
	}
	last := 0
	for i, q := range quarters {
		if !q.Rotation.After(t.now) {
			last = i
		}
	}
	var errs []error
	for _, q := range quarters[last:] {
		errs = append(errs, t.handleQuarter(ctx, q))
	}
	return errors.Join(errs...)
}

// handleQuarter starts what is due for the rotation of a quarter, or measures whether it is
// overdue once its window is over.
func (t *tick) handleQuarter(ctx context.Context, q gates.Quarter) error {
	late := t.scheduler.Gates.Rules.Late(q, t.genesis)
	notice, err := t.scheduler.Gates.Announcements.LoadAnnouncement(ctx, q.Label)
	if err != nil {
		return journal.WrapUnavailable("announcement", err)
	}
	if notice.From.After(q.Rotation) { // a person has announced a later window
		q.Rotation, q.Closes = notice.From.In(t.scheduler.Gates.Rules.Window.Location()), notice.To.In(t.scheduler.Gates.Rules.Window.Location())
	}
	rotated := t.isRotated(q)
	switch {
	case late != "" && t.now.Before(q.Rotation):
		t.out.Skipped = late
	case late == "" && !rotated && t.now.Before(q.Closes) && t.out.Next.Label == "":
		t.out.Next = q
	}
	if late != "" || rotated {
		return nil
	}
	drill, err := t.scheduler.Gates.Drills.LoadDrill(ctx, gates.DrillFailure)
	if err != nil {
		return journal.WrapUnavailable("drill", err)
	}
	if t.now.Before(q.Closes) {
		return errors.Join(t.startAnnouncement(ctx, q, notice), t.startDrill(ctx, q, drill), t.startRotation(ctx, q))
	}
	return t.checkOverdue(ctx, q)
}

// isRotated reports whether the quarter has its rotation: one with its label, or any
// rotation that has completed since it was due, including an emergency.
func (t *tick) isRotated(q gates.Quarter) bool {
	return hasCompleted(t.done, q.Label) || slices.ContainsFunc(t.done, func(r kek.Rotation) bool {
		return r.Phase == kek.Completed && !r.UpdatedAt.Before(q.Rotation)
	})
}

// startAnnouncement has preflight tell customers of the window and check whether the
// rotation could start.
func (t *tick) startAnnouncement(ctx context.Context, q gates.Quarter, made gates.Announcement) error {
	due := t.afterGenesis(q.Announce, gates.SettledAfter+gates.SettledAfter)
	if made.To.After(q.Rotation) || t.now.Before(due) || !t.now.Before(q.Rotation) {
		return nil
	}
	t.markLate(t.scheduler.Gates.Rules.AnnounceDays > 0 && t.now.After(due.Add(noticeGrace)))
	if !t.now.Before(t.scheduler.Gates.Rules.LastNotice(q)) {
		t.addWait(journal.Next{Do: journal.AnnounceLater, Label: q.Label}, "the window of %s was not announced in time", q.Label)
		return nil
	}
	name, from := "preflight-"+q.Label, q.Rotation
	return t.startNamed(name, func() error {
		return t.scheduler.Starter.CallPreflight(ctx, t.in.Preflight, PreflightInput{
			ExecutionName: name, CheckOnly: true, Announce: true, AnnounceFrom: &from,
			Input: ExecutionInput{Label: q.Label, RequestedBy: ScheduleRequester},
		})
	})
}

// startDrill starts the failure drill, and a second one if the first has not passed a week
// later.
func (t *tick) startDrill(ctx context.Context, q gates.Quarter, d gates.Drill) error {
	due := t.afterGenesis(q.Drill, gates.SettledAfter)
	if t.scheduler.Gates.Rules.DrillFreshDays == 0 || d.Freshness(q.Closes, t.scheduler.Gates.Rules.DrillFreshDays) == gates.Fresh || t.now.Before(due) {
		return nil
	}
	t.markLate(t.now.After(due.Add(drillGrace)))
	if !t.now.Before(q.LastDrill()) {
		t.addWait(journal.Next{Do: journal.RunDrill, Name: gates.DrillFailure}, "the drill has not passed")
		return nil
	}
	if t.view.Lock != "" {
		t.addWait(journal.Next{}, "rotation %s runs or has halted; the drill waits for its end", t.view.Lock)
		return nil
	}
	attempt := 1
	if !t.now.Before(q.Rotation.AddDate(0, 0, -gates.SecondDrillDays)) {
		attempt = 2
	}
	return t.startExecution(ctx, fmt.Sprintf("schedule-%s-drill-%d", strings.TrimSuffix(q.Label, "-rotation"), attempt),
		ExecutionInput{Drill: gates.DrillFailure, RequestedBy: ScheduleRequester})
}

// startRotation starts the rotation. It does not if preflight would refuse it because the
// announcement or the drill is missing: that would page a person at night for something
// that was already reported by day.
func (t *tick) startRotation(ctx context.Context, q gates.Quarter) error {
	if t.now.Before(q.Rotation) || !t.scheduler.Gates.Rules.Window.Open(t.now) || t.view.Lock == "schedule-"+q.Label {
		return nil
	}
	if t.view.Lock != "" {
		t.addWait(journal.Next{}, "rotation %s runs or has halted; that of %s waits for its end", t.view.Lock, q.Label)
		return nil
	}
	var missing []error
	if t.scheduler.Gates.Rules.AnnounceDays > 0 {
		missing = append(missing, t.scheduler.Gates.CheckAnnouncement(ctx, q.Label))
	}
	if t.scheduler.Gates.Rules.DrillFreshDays > 0 {
		missing = append(missing, t.scheduler.Gates.CheckDrill(ctx))
	}
	if err := errors.Join(missing...); isUnprepared(err) {
		t.markLate(true)
		for _, m := range missing {
			if typed := (*journal.Error)(nil); errors.As(m, &typed) {
				t.addWait(typed.Next, "%s: %v", q.Label, m)
			}
		}
		return nil
	} else if err != nil {
		return err
	}
	return t.startExecution(ctx, "schedule-"+q.Label, ExecutionInput{Label: q.Label, RequestedBy: ScheduleRequester})
}

// isUnprepared reports an error that an announcement or a drill is missing.
func isUnprepared(err error) bool {
	var typed *journal.Error
	return errors.As(err, &typed) && slices.Contains([]journal.Kind{journal.AnnouncementMissing, journal.AnnouncementYoung, journal.DrillStale}, typed.Kind)
}

// checkOverdue measures whether the rotation of a quarter should have completed.
func (t *tick) checkOverdue(ctx context.Context, q gates.Quarter) error {
	limit := q.Closes.Add(rotationGrace)
	if t.view.Lock != "" {
		v, err := t.scheduler.Journal.Load(ctx, t.view.Lock)
		if err != nil {
			return err
		}
		if v.Rotation != nil && v.Rotation.Drill == "" && !v.Rotation.StartedAt.Before(q.Rotation) {
			limit = v.Rotation.StartedAt.Add(longestRun)
		}
	}
	if t.now.After(limit) {
		t.out.RotationOverdue = true
		t.addWait(journal.Next{Do: journal.RotateNow}, "the rotation of %s has not completed", q.Label)
		return nil
	}
	return nil
}

// afterGenesis returns at, or the moment so long after genesis if that is later.
func (t *tick) afterGenesis(at time.Time, wait time.Duration) time.Time {
	if first := t.genesis.Add(wait); at.Before(first) {
		return first
	}
	return at
}

// markLate measures that a preparation is overdue.
func (t *tick) markLate(yes bool) { t.out.PreparationOverdue = t.out.PreparationOverdue || yes }

// addWait adds a reason why something that is due was not started.
func (t *tick) addWait(next journal.Next, format string, args ...any) {
	t.out.Waits = append(t.out.Waits, Wait{Why: fmt.Sprintf(format, args...), Next: next})
}

func (t *tick) startExecution(ctx context.Context, name string, in ExecutionInput) error {
	return t.startNamed(name, func() error { return t.scheduler.Starter.StartExecution(ctx, t.in.StateMachine, name, in) })
}

func (t *tick) startNamed(name string, start func() error) error {
	if !t.start {
		return nil
	}
	if err := start(); err != nil {
		return journal.WrapUnavailable(name, err)
	}
	t.out.Called = append(t.out.Called, name)
	return nil
}

// historySteps bounds how many rotations readHistory reads.
const historySteps = 32

// readHistory returns the records of the rotations that have moved the pointer, the newest
// first, up to one that ended before since. It also returns when the deployment had its
// genesis, unless that was earlier. It follows the KEKs backwards, each of which names its
// rotation: no index lists rotations, and a scan every few minutes would cost too much.
func readHistory(ctx context.Context, j *journal.Journal, v kek.View, since time.Time) (all []kek.Rotation, genesis time.Time, err error) {
	id, at := v.Pointer.RotationID, v.Pointer.SwitchedAt
	for range historySteps {
		if id == "" {
			return all, at, nil
		}
		v, err := j.Load(ctx, id)
		if err != nil || v.Rotation == nil { // the doctor reports a lost record
			return all, time.Time{}, err
		}
		all = append(all, *v.Rotation)
		if v.Rotation.UpdatedAt.Before(since) {
			break
		}
		old := v.KEKs[v.Rotation.OldKEK]
		id, at = old.RotationID, old.SwitchedAt
	}
	return all, time.Time{}, nil
}

// hasCompleted reports whether a normal rotation with a label has completed.
func hasCompleted(all []kek.Rotation, label string) bool {
	return slices.ContainsFunc(all, func(r kek.Rotation) bool {
		return r.Mode == kek.Normal && r.Phase == kek.Completed && r.Label == label
	})
}

// isScheduled reports whether the schedule has asked for the rotation, and it is not a drill.
func isScheduled(r kek.Rotation) bool {
	return r.Requester == ScheduleRequester && r.Mode == kek.Normal && r.Drill == ""
}

// labelCounts is how long a completed rotation counts as the one of its label. It is longer
// than Step Functions keeps a name, and longer than two quarters.
const labelCounts = 200 * day

// checkQuarter refuses a rotation of the schedule if that of its quarter has completed:
// EventBridge Scheduler delivers at least once. A person may rotate again.
func (s *Steps) checkQuarter(ctx context.Context, v kek.View, r kek.Rotation) error {
	if !isScheduled(r) || v.Pointer == nil {
		return nil
	}
	all, _, err := readHistory(ctx, s.Journal, v, s.Journal.Now().Add(-labelCounts))
	if err != nil {
		return err
	}
	if !hasCompleted(all, r.Label) {
		return nil
	}
	return &journal.Error{
		Kind: journal.QuarterRotated, Field: "label", Msg: fmt.Sprintf("%s has completed, and the schedule rotates once a quarter", r.Label),
		Next: journal.Next{Do: journal.RotateByHand},
	}
}
