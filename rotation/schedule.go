package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// ScheduleRequester is what the schedule calls itself where an execution says who asks.
const ScheduleRequester = "schedule"

// ScheduleEnabled is the state of a schedule that starts something.
const ScheduleEnabled = "ENABLED"

// ScheduleInput is what each tick of the schedule brings, as the template has it: what it
// may start and when.
type ScheduleInput struct {
	StateMachine string `json:"state_machine_arn"`
	Preflight    string `json:"preflight_function"`
	Hour         int    `json:"hour"`  // local hour of the rotation
	State        string `json:"state"` // ENABLED or DISABLED: nothing is started
}

// ScheduleOutput is what a tick found and did.
type ScheduleOutput struct {
	Next               Quarter  `json:"next"`                // the rotation that is due next; zero before genesis, and while the schedule is disabled
	Skipped            string   `json:"skipped,omitempty"`   // why one before it is not started
	Called             []string `json:"called,omitempty"`    // what was started, by its name; what had been before is harmless
	Waits              []string `json:"waits,omitempty"`     // why what is due was not
	RotationOverdue    bool     `json:"rotation_overdue"`    // see [MetricRotationOverdue]
	PreparationOverdue bool     `json:"preparation_overdue"` // see [MetricPreparationOverdue]
}

// Starter starts what is due.
type Starter interface {
	// StartExecution starts an execution of a state machine. An execution of that name
	// that runs, or has run, is success: Step Functions keeps a name for 90 days.
	StartExecution(ctx context.Context, stateMachine, name string, in ExecutionInput) error
	// CallPreflight calls the function without waiting for its answer.
	CallPreflight(ctx context.Context, function string, in PreflightInput) error
}

// The metrics of the schedule. An alarm of template.yaml goes off when there is none of
// the first, one for each of the others.
const (
	MetricTick               = "schedule_tick"
	MetricRotationOverdue    = "rotation_overdue"    // a rotation that was due has not completed
	MetricPreparationOverdue = "preparation_overdue" // an announcement or a drill that was due is missing
)

// How long what is due may be missing before a person is told.
const (
	noticeGrace   = 2 * time.Hour
	drillGrace    = day
	rotationGrace = day
	longestRun    = 8 * day // of a rotation that has begun: then a person looks, though it may run on
)

// Schedule is one tick: it starts what is due by the calendar, is not done yet and can be
// done in time, and measures what is overdue. What it starts has a name that the quarter
// gives, and what is done it reads in the control table, so that ticks may be repeated, be
// lost, come late or end anywhere.
func (s *Steps) Schedule(ctx context.Context, in ScheduleInput) (ScheduleOutput, error) {
	t := tick{Steps: s, in: in, now: s.Now(), start: in.State == ScheduleEnabled}
	if t.start {
		if err := t.run(ctx); err != nil { // and no metric: the alarm on silence tells of a tick that fails again and again
			return t.out, err
		}
	}
	s.meter(MetricTick, true)
	s.meter(MetricRotationOverdue, t.out.RotationOverdue)
	s.meter(MetricPreparationOverdue, t.out.PreparationOverdue)
	return t.out, nil
}

// Outlook is what [Steps.Schedule] would find, for a person; nothing is started.
func (s *Steps) Outlook(ctx context.Context, hour int) (ScheduleOutput, error) {
	t := tick{Steps: s, in: ScheduleInput{Hour: hour}, now: s.Now()}
	err := t.run(ctx)
	return t.out, err
}

// tick is one call of [Steps.Schedule].
type tick struct {
	*Steps
	in      ScheduleInput
	now     time.Time
	start   bool // what is due, else only look
	view    kek.View
	done    []kek.Rotation // that have completed lately, see [Steps.history]
	genesis time.Time      // zero if it was long ago
	out     ScheduleOutput
}

func (t *tick) run(ctx context.Context) (err error) {
	if t.in.Hour < 0 || t.in.Hour > 23 {
		return invalid("hour", fmt.Sprintf("%d is no hour of a day", t.in.Hour), "deploy template.yaml again")
	}
	if span := t.Window.span(); span < leastStart {
		return &Error{
			Kind: Misconfigured, Field: "Window", Msg: fmt.Sprintf("it is open for %s, and the schedule looks every quarter of an hour", span),
			Next: fmt.Sprintf("deploy a window of %s or more", leastStart),
		}
	}
	if t.view, err = t.load(ctx, ""); err != nil || t.view.Pointer == nil {
		return err
	}
	quarters := t.Quarters(t.now, t.in.Hour)
	if t.done, t.genesis, err = t.history(ctx, t.view, quarters[0].Drill); err != nil {
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
		errs = append(errs, t.tend(ctx, q))
	}
	return errors.Join(errs...)
}

// tend does for the rotation of a quarter what is due now, or measures whether it is
// overdue.
func (t *tick) tend(ctx context.Context, q Quarter) error {
	late := t.Late(q, t.genesis)
	notice, err := t.Announcements.LoadAnnouncement(ctx, q.Label)
	if err != nil {
		return unavailable("announcement", err)
	}
	if notice.From.After(q.Rotation) { // a person has announced a later window
		q.Rotation, q.Closes = notice.From.In(t.Window.zone()), notice.To.In(t.Window.zone())
	}
	rotated := t.rotated(q)
	switch {
	case late != "" && t.now.Before(q.Rotation):
		t.out.Skipped = late
	case late == "" && !rotated && t.now.Before(q.Closes) && t.out.Next.Label == "":
		t.out.Next = q
	}
	if late != "" || rotated {
		return nil
	}
	drill, err := t.Drills.LoadDrill(ctx, DrillFailure)
	if err != nil {
		return unavailable("drill", err)
	}
	if t.now.Before(q.Closes) {
		return errors.Join(t.announce(ctx, q, notice), t.drill(ctx, q, drill), t.rotate(ctx, q))
	}
	return t.overdue(ctx, q)
}

// rotated reports whether the quarter has its rotation: one of its label, or any that has
// completed since it was due, an emergency too.
func (t *tick) rotated(q Quarter) bool {
	return completed(t.done, q.Label) || slices.ContainsFunc(t.done, func(r kek.Rotation) bool {
		return r.Phase == kek.Completed && !r.UpdatedAt.Before(q.Rotation)
	})
}

// announce has preflight tell customers of the window, and look whether the rotation could
// start.
func (t *tick) announce(ctx context.Context, q Quarter, made Announcement) error {
	due := t.afterGenesis(q.Announce, settled+settled)
	if made.To.After(q.Rotation) || t.now.Before(due) || !t.now.Before(q.Rotation) {
		return nil
	}
	t.late(t.AnnounceDays > 0 && t.now.After(due.Add(noticeGrace)))
	if !t.now.Before(t.lastNotice(q)) {
		t.wait("the window of %s was not announced in time: matter ops announce --label %q, for a later window", q.Label, q.Label)
		return nil
	}
	name, from := "preflight-"+q.Label, q.Rotation
	return t.call(name, func() error {
		return t.Starter.CallPreflight(ctx, t.in.Preflight, PreflightInput{
			ExecutionName: name, CheckOnly: true, Announce: true, AnnounceFrom: &from,
			Input: ExecutionInput{Label: q.Label, RequestedBy: ScheduleRequester},
		})
	})
}

// drill starts the failure drill, and once more if it has not passed a week later.
func (t *tick) drill(ctx context.Context, q Quarter, d Drill) error {
	due := t.afterGenesis(q.Drill, settled)
	if t.DrillFreshDays == 0 || d.Freshness(q.Closes, t.DrillFreshDays) == Fresh || t.now.Before(due) {
		return nil
	}
	t.late(t.now.After(due.Add(drillGrace)))
	if !t.now.Before(q.lastDrill()) {
		t.wait("the drill has not passed: matter ops drill run %s", DrillFailure)
		return nil
	}
	if t.view.Lock != "" {
		t.wait("rotation %s runs or has halted; the drill waits for its end", t.view.Lock)
		return nil
	}
	attempt := 1
	if !t.now.Before(q.Rotation.AddDate(0, 0, -secondDrill)) {
		attempt = 2
	}
	return t.execute(ctx, fmt.Sprintf("schedule-%s-drill-%d", strings.TrimSuffix(q.Label, "-rotation"), attempt),
		ExecutionInput{Drill: DrillFailure, RequestedBy: ScheduleRequester})
}

// rotate starts the rotation, unless it is known that preflight would refuse it for want of
// what should have been prepared: of that a person was told by day.
func (t *tick) rotate(ctx context.Context, q Quarter) error {
	if t.now.Before(q.Rotation) || !t.Window.Open(t.now) || t.view.Lock == "schedule-"+q.Label {
		return nil
	}
	if t.view.Lock != "" {
		t.wait("rotation %s runs or has halted; that of %s waits for its end", t.view.Lock, q.Label)
		return nil
	}
	var missing error
	if t.AnnounceDays > 0 {
		missing = t.checkAnnouncement(ctx, q.Label)
	}
	if t.DrillFreshDays > 0 {
		missing = errors.Join(missing, t.checkDrill(ctx))
	}
	if unprepared(missing) {
		t.late(true)
		t.wait("%s: %v", q.Label, missing)
		return nil
	}
	if missing != nil {
		return missing
	}
	return t.execute(ctx, "schedule-"+q.Label, ExecutionInput{Label: q.Label, RequestedBy: ScheduleRequester})
}

// unprepared reports that an announcement or a drill is missing.
func unprepared(err error) bool {
	var typed *Error
	return errors.As(err, &typed) && slices.Contains([]Kind{AnnouncementMissing, AnnouncementYoung, DrillStale}, typed.Kind)
}

// overdue measures whether the rotation of a quarter should have completed.
func (t *tick) overdue(ctx context.Context, q Quarter) error {
	limit := q.Closes.Add(rotationGrace)
	if t.view.Lock != "" {
		v, err := t.load(ctx, t.view.Lock)
		if err != nil {
			return err
		}
		if v.Rotation != nil && v.Rotation.Drill == "" && !v.Rotation.StartedAt.Before(q.Rotation) {
			limit = v.Rotation.StartedAt.Add(longestRun)
		}
	}
	if t.now.After(limit) {
		t.out.RotationOverdue = true
		t.wait("the rotation of %s has not completed: matter ops kms-rotate --watch", q.Label)
		return nil
	}
	return nil
}

// afterGenesis is at, or so long after genesis if that is later.
func (t *tick) afterGenesis(at time.Time, wait time.Duration) time.Time {
	if first := t.genesis.Add(wait); at.Before(first) {
		return first
	}
	return at
}

func (t *tick) late(yes bool) { t.out.PreparationOverdue = t.out.PreparationOverdue || yes }

func (t *tick) wait(format string, args ...any) {
	t.out.Waits = append(t.out.Waits, fmt.Sprintf(format, args...))
}

func (t *tick) execute(ctx context.Context, name string, in ExecutionInput) error {
	return t.call(name, func() error { return t.Starter.StartExecution(ctx, t.in.StateMachine, name, in) })
}

func (t *tick) call(name string, start func() error) error {
	if !t.start {
		return nil
	}
	if err := start(); err != nil {
		return unavailable(name, err)
	}
	t.out.Called = append(t.out.Called, name)
	return nil
}

// historySteps bounds how many rotations are looked at.
const historySteps = 32

// history returns the records of the rotations that have moved the pointer, the newest
// first, up to one that ended before since; and when the deployment had its genesis, unless
// that was before. It goes back from KEK to KEK, because no index lists rotations and a
// scan is nothing to do every few minutes.
func (s *Steps) history(ctx context.Context, v kek.View, since time.Time) (all []kek.Rotation, genesis time.Time, err error) {
	id, at := v.Pointer.RotationID, v.Pointer.SwitchedAt
	for range historySteps {
		if id == "" {
			return all, at, nil
		}
		v, err := s.load(ctx, id)
		if err != nil || v.Rotation == nil { // a lost record is the doctor's business
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

// completed reports whether a normal rotation of a label has completed.
func completed(all []kek.Rotation, label string) bool {
	return slices.ContainsFunc(all, func(r kek.Rotation) bool {
		return r.Mode == kek.Normal && r.Phase == kek.Completed && r.Label == label
	})
}

// scheduled reports whether the schedule asks for a rotation in earnest.
func scheduled(r kek.Rotation) bool {
	return r.Requester == ScheduleRequester && r.Mode == kek.Normal && r.Drill == ""
}

// labelCounts is how long a label stands for one rotation of the schedule: longer than a
// name of Step Functions, and than two quarters.
const labelCounts = 200 * day

// checkQuarter refuses a rotation that the schedule asks for, if that of its quarter has
// completed: EventBridge Scheduler delivers at least once. A person may rotate again.
func (s *Steps) checkQuarter(ctx context.Context, v kek.View, r kek.Rotation) error {
	if !scheduled(r) || v.Pointer == nil {
		return nil
	}
	all, _, err := s.history(ctx, v, s.Now().Add(-labelCounts))
	if err != nil {
		return err
	}
	if !completed(all, r.Label) {
		return nil
	}
	return &Error{
		Kind: QuarterRotated, Field: "label", Msg: fmt.Sprintf("%s has completed, and the schedule rotates once a quarter", r.Label),
		Next: "nothing; a person may rotate again: matter ops kms-rotate --watch",
	}
}
