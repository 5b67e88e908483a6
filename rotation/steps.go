package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Config is what a deployment chooses.
type Config struct {
	Window       Window        // off-peak hours in which a normal rotation may start
	DrainMaxWait time.Duration // how long leases may outlive the switch
	DrainPoll    time.Duration // longest pause between two looks at the leases
	DeleteHold   time.Duration // how long a retired KEK must not be deleted
	Segments     int           // scan segments per table, 1 to 40
	Concurrency  int           // segments that the state machine has rewrapped at once
	FenceShards  int           // fence items per KEK, 1 to 20
	MaxMints     int           // mint attempts of an emergency
	CanaryRounds int           // known-plaintext roundtrips
	KeySettle    time.Duration // age of a new KEK before the pointer may name it
	Deep         bool          // confirm and verify unwrap every distinct DEK, not a sample

	// What a normal rotation is refused without; 0 and false demand nothing.
	AnnounceDays     int           // customers were told of the window so long ago
	DrillFreshDays   int           // the failure drill has passed within these
	HealthDays       int           // the hourly canary was green for so long
	ApprovalRequired bool          // a second person agrees before the switch
	ApprovalWait     time.Duration // how long the switch waits for that person
}

// Deps are the adapters that the steps drive.
type Deps struct {
	Registry      Registry
	Items         ControlItems // nil: the control table is not examined item by item
	Outbox        Outbox
	Vault         Vault
	Keys          KeyAdmin
	KMS           Wrapper
	Cipher        Cipher
	OpenSource    func(kek.Source) (Source, error) // the driver of a registered source
	Drainage      Drainage
	Checkpoints   Checkpoints
	Notifier      Notifier    // nil: nobody is told
	Announcers    []Announcer // who tells customers of a window; none: the notifier's readers alone know
	Announcements Announcements
	Drills        Drills
	HealthLog     HealthLog
	Approvals     Approvals
	Meter         Meter      // nil: nothing is metered
	Starter       Starter    // of the schedule alone
	Anchoring     *Anchoring // nil: the audit chain is in no public log
	Random        func([]byte)
	Now           func() time.Time
	Actor         string // who acts, for the audit chain
}

// Steps runs the steps of rotations. It holds no state of its own: everything a
// step knows it has just read.
type Steps struct {
	Config
	Deps
}

// maxTries bounds how often a transition reads again after a conflict.
const maxTries = 12

// transition drives one state change to its end: read, compute, write, and read
// again until what is stored says that it is done. So the output of a step comes
// from the table alone, the same whether this call made the change, a duplicate
// did, or the answer to the write was lost. The audit record is in the bucket
// before it returns.
func (s *Steps) transition(ctx context.Context, step, id string,
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	return s.drive(ctx, step, func() (kek.View, error) { return s.load(ctx, id) }, next, body)
}

// transitionAll is transition for a change that depends on the whole registry.
func (s *Steps) transitionAll(ctx context.Context, step, id string,
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	return s.drive(ctx, step, func() (kek.View, error) { return s.loadAll(ctx, id) }, next, body)
}

func (s *Steps) drive(ctx context.Context, step string, load func() (kek.View, error),
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	for range maxTries {
		v, err := load()
		if err != nil {
			return v, err
		}
		c, err := next(v)
		if errors.Is(err, kek.ErrDone) {
			return v, s.publish(ctx)
		}
		if err != nil {
			return v, refusal(err)
		}
		if givesUp(c) {
			if err := s.checkSetBack(ctx); err != nil {
				return v, err
			}
		}
		err = s.Registry.Apply(ctx, c, s.event(step, c, body))
		if err != nil && !errors.Is(err, kek.ErrConflict) {
			return v, unavailable("control table", err)
		}
	}
	return kek.View{}, unavailable("control table", fmt.Errorf("%s: still %w after %d tries", step, kek.ErrConflict, maxTries))
}

// givesUp reports a change that retires a KEK or rolls a rotation back, after which keys
// with its tag are disabled. In a control table that was set back such a change is wrong: a
// rotation that stands before its switch there may have switched, and rows may be under its
// new KEK; a source that was registered since may have rows under an old one.
func givesUp(c kek.Change) bool {
	return slices.ContainsFunc(c.KEKs, func(m kek.KEKMove) bool { return m.After.State == kek.Retired }) ||
		c.Rotation != nil && c.Rotation.After.Phase == kek.RolledBack ||
		c.Ends != nil && c.Ends.After.Phase == kek.RolledBack
}

func (s *Steps) load(ctx context.Context, id string) (kek.View, error) {
	v, err := s.Registry.Load(ctx, id)
	return v, loadError(err)
}

func loadError(err error) error {
	if errors.Is(err, ErrNoControlTable) {
		return &Error{
			Kind: ControlTableMissing, Field: "MATTER_CONTROL_TABLE", Msg: "the control table does not exist", Err: err,
			Next: "deploy template.yaml, or set MATTER_CONTROL_TABLE to the stack's output ControlTableName",
		}
	}
	if err != nil {
		return unavailable("control table", err)
	}
	return nil
}

// rotation reads the record of a rotation that must exist.
func (s *Steps) rotation(ctx context.Context, id string) (kek.View, kek.Rotation, error) {
	v, err := s.load(ctx, id)
	if err != nil {
		return v, kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return v, kek.Rotation{}, refusal(kek.ErrNoRotation)
	}
	if v.Rotation.Phase == kek.Superseded {
		return v, *v.Rotation, superseded(*v.Rotation)
	}
	return v, *v.Rotation, nil
}

// event is the audit record of a change. Its id is the same for every try at the
// same step of the same attempt.
func (s *Steps) event(step string, c kek.Change, extra map[string]string) audit.Event {
	ev := audit.Event{ID: c.Event, Type: c.Event, Step: step, Actor: s.Actor, Body: map[string]string{}}
	if c.Rotation != nil {
		r := c.Rotation.After
		ev.Rotation, ev.ID = r.ID, r.ID+"/"+c.Event
		if r.Attempt > 1 {
			ev.ID = fmt.Sprintf("%s/%d", ev.ID, r.Attempt)
		}
		put(ev.Body, "mode", string(r.Mode), "phase", string(r.Phase), "label", r.Label, "reason", r.Reason,
			"old_kek_id", string(r.OldKEK), "new_kek_id", string(r.NewKEK), "execution", r.Execution, "error", r.Err,
			"requested_by", r.Requester, "drill", r.Drill)
	}
	put(ev.Body, "ended", c.From)
	if c.Ends != nil { // it took over from a rotation whose record is not lost
		put(ev.Body, "ended_at", string(c.Ends.Before.Phase), "ended_as", string(c.Ends.After.Phase))
	}
	if c.Pointer != nil {
		put(ev.Body, "pointer", string(c.Pointer.After.KEKID), "epoch", fmt.Sprint(c.Pointer.After.Epoch))
	}
	for _, m := range c.KEKs {
		put(ev.Body, "kek."+string(m.After.ID), string(m.After.State))
	}
	maps.Copy(ev.Body, extra)
	repeatable(&ev, c)
	return ev
}

// put adds the pairs whose value is not empty.
func put(body map[string]string, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			body[pairs[i]] = pairs[i+1]
		}
	}
}

// publish moves the outbox into the locked bucket. Every step calls it last, and
// again when it finds its effect already made: a step that succeeded has its
// record under Object Lock. An object in the place of a record does not stop it: the
// chain goes on in a new generation, whose beginning is recorded, for verification to
// tell.
func (s *Steps) publish(ctx context.Context) error {
	for range maxTries {
		entries, at, err := s.Outbox.Unpublished(ctx)
		if err != nil {
			return unavailable("audit outbox", err)
		}
		met, err := s.store(ctx, entries, at)
		if met == nil {
			return err
		}
		g := at.Generations.Next(met.seq, *met.taken, fmt.Sprint(s.Now().UnixNano()))
		ev := g.Event(audit.OfRecords, at.Generations, *met.taken)
		ev.Actor = s.Actor
		s.pageGeneration(ctx, *met.taken)
		head := entries[len(entries)-1].Head()
		if err := s.Outbox.Begin(ctx, at, head, g, ev); err != nil && !errors.Is(err, kek.ErrConflict) {
			return unavailable("audit outbox", err)
		}
	}
	return unavailable("audit bucket", fmt.Errorf("in %d generations another object was in the way", maxTries))
}

// MetricGeneration counts the objects for which a generation of the audit chain begins; an
// alarm of template.yaml watches it.
const MetricGeneration = "audit_generation_begun"

// pageGeneration tells the people on call that an object lies in the way of the audit chain.
// It does so before the generation begins: a step that dies in between has not kept silent,
// and one that is repeated pages twice. A function counts, for the alarm; a command in a
// person's shell, whose output no log turns into metrics, sends the notification. Nothing in
// the bucket may stop a step, so a message that cannot be sent does not either.
func (s *Steps) pageGeneration(ctx context.Context, taken audit.Taken) {
	if s.Meter != nil {
		s.meter(MetricGeneration, true)
		return
	}
	_ = s.tell(ctx, NotifyInput{Event: NotifyGeneration, Detail: taken.Key})
}

// met is an object in the place of the record seq.
type met struct {
	seq   int64
	taken *audit.Taken
}

// store puts records into the bucket and marks them, up to an object that is in the way.
func (s *Steps) store(ctx context.Context, entries []audit.Entry, at audit.Line) (*met, error) {
	for _, e := range entries {
		err := s.Vault.Put(ctx, at.RecordKey(e.Record.Seq), e)
		if taken := (*audit.Taken)(nil); errors.As(err, &taken) {
			return &met{e.Record.Seq, taken}, nil
		}
		if err != nil {
			return nil, unavailable("audit bucket", err)
		}
	}
	if len(entries) == 0 {
		return nil, nil
	}
	if err := s.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq); err != nil {
		return nil, unavailable("audit outbox", err)
	}
	return nil, nil
}

// published publishes and returns the chain's head as it was before, so that the bucket
// holds all of it, and where its records are now.
func (s *Steps) published(ctx context.Context) (audit.Line, audit.Head, error) {
	_, head, err := s.Outbox.Head(ctx)
	if err != nil {
		return audit.Line{}, head, unavailable("audit head", err)
	}
	if err := s.publish(ctx); err != nil {
		return audit.Line{}, head, err
	}
	at, _, err := s.Outbox.Head(ctx) // a generation may have begun
	if err != nil {
		return at, head, unavailable("audit head", err)
	}
	return at, head, nil
}

// early refuses a step that is called before its turn. What such a call did not
// look at it must not conclude from, though its turn may come before it writes.
func early(r kek.Rotation, to kek.Phase) error {
	return refusal(&kek.IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: string(to)})
}

func superseded(r kek.Rotation) error {
	if r.EndedBy == "" { // by doctor
		return &Error{Kind: Superseded, Field: "rotation_id", Msg: fmt.Sprintf("rotation %s: %s", r.ID, r.Err), Next: "matter ops kms-status, then start another rotation"}
	}
	return refusal(fmt.Errorf("%w: %s, by %s", kek.ErrSuperseded, r.ID, r.EndedBy))
}

// ended says of a step that failed because an emergency has ended its rotation meanwhile
// that this is why: what it met, such as a key that is disabled, needs nobody's work.
func (s *Steps) ended(ctx context.Context, id string, err error) error {
	var typed *Error
	if !errors.As(err, &typed) || typed.Kind == Transient || typed.Kind == Superseded {
		return err
	}
	if v, lerr := s.load(ctx, id); lerr == nil && v.Rotation != nil && v.Rotation.EndedBy != "" {
		return superseded(*v.Rotation)
	}
	return err
}

// refusal maps what package kek says to the error a person sees.
func refusal(err error) error {
	var typed *Error
	switch {
	case errors.As(err, &typed):
		return err
	case errors.Is(err, kek.ErrLocked):
		return &Error{Kind: RotationInProgress, Field: "LOCK", Msg: err.Error(), Next: "matter ops kms-status"}
	case errors.Is(err, kek.ErrEmergencyRuns):
		return &Error{
			Kind: RotationInProgress, Field: "LOCK", Msg: err.Error(),
			Next: `matter ops kms-status; to end that emergency too, start this one with "again": true (matter ops kms-rotate --emergency --again)`,
		}
	case errors.Is(err, kek.ErrSuperseded):
		return &Error{Kind: Superseded, Field: "rotation_id", Msg: err.Error(), Next: "nothing: the emergency moves its rows; matter ops kms-status"}
	case errors.Is(err, kek.ErrNoPointer):
		return &Error{
			Kind: PointerInvalid, Field: "POINTER", Msg: err.Error(),
			Next: "matter ops doctor; a new deployment needs matter ops kms-genesis once",
		}
	case errors.Is(err, kek.ErrForgotten):
		return &Error{
			Kind: SourceForgotten, Field: "sources", Msg: err.Error(),
			Next: "matter ops source add --file DEFINITION.json --confirm; or, if nobody writes into that table any more, " +
				`matter ops source remove --table TABLE --reason "why" --confirm`,
		}
	case errors.Is(err, kek.ErrPointerLost):
		return &Error{
			Kind: PointerInvalid, Field: "POINTER", Msg: err.Error() + "; another genesis would set the epoch back to 1 and orphan rows",
			Next: cmdDoctor,
		}
	case errors.Is(err, kek.ErrChanged):
		return &Error{Kind: Transient, Field: "rotation", Msg: err.Error(), Next: "the rows are looked at again"}
	case errors.Is(err, kek.ErrMintsExhausted):
		return &Error{Kind: MintsExhausted, Msg: err.Error(), Next: "find out why dual unwrap fails, then redrive the execution"}
	case errors.Is(err, kek.ErrNoRotation):
		return &Error{Kind: Refused, Field: "rotation_id", Msg: err.Error(), Next: "matter ops kms-status"}
	default:
		return &Error{Kind: Refused, Msg: err.Error(), Next: "matter ops kms-status"}
	}
}

// unavailable marks a failure as worth another try: the outcome is unknown or the
// service did not answer. A missing permission and a request that AWS rejects are
// not: repeating changes neither. A typed error below keeps its own kind.
func unavailable(what string, err error) error {
	var typed *Error
	switch {
	case errors.As(err, &typed):
		return err
	case errors.Is(err, ErrDenied):
		return &Error{
			Kind: AccessDenied, Field: what, Msg: "a permission is missing", Err: err,
			Next: "compare the role, the key policy and any service control policy with template.yaml, then go on",
		}
	case errors.Is(err, ErrRejected):
		return &Error{Kind: Rejected, Field: what, Msg: "repeating it would not help", Err: err, Next: "mend what AWS names, then go on"}
	}
	next := "it is retried; nothing is lost"
	if errors.Is(err, kek.ErrConflict) {
		next += "; if it stays so: " + cmdDoctor
	}
	return &Error{Kind: Transient, Field: what, Msg: "no usable answer", Err: err, Next: next}
}

const fieldCreate = "KMS CreateKey"

// tagDelay is twice the five minutes that AWS documents until a tag of a KMS key
// affects authorization (KMS developer guide, "Authorization for tag changes").
const tagDelay = 10 * time.Minute

// settling is how long the pointer must not name a KEK yet that was made at a moment.
// Applications' permissions on it are conditioned on its tag, which may take five minutes to
// affect authorization (KMS developer guide, "Authorization for tag changes"): before, their
// writes would be denied.
func (s *Steps) settling(made time.Time) time.Duration {
	return max(0, s.KeySettle-s.Now().Sub(made))
}

// isYoung reports whether a key that was made at a moment, or later, may not be known
// everywhere yet, or its tag, which every permission on it is conditioned on. Each host of
// KMS learns of both by itself, so a call may be refused after another one succeeded.
func (s *Steps) isYoung(made time.Time) bool { return s.Now().Sub(made) < tagDelay }

// young turns a denial into a failure worth another try while a key that was made at a
// moment is young.
func (s *Steps) young(made time.Time, err error) error {
	var typed *Error
	if !errors.As(err, &typed) || typed.Kind != AccessDenied || typed.Field == fieldCreate || !s.isYoung(made) {
		return err // CreateKey needs no tag of a key
	}
	return &Error{
		Kind: Transient, Field: typed.Field, Msg: "denied, perhaps because the tag of so young a key is not known everywhere yet", Err: typed.Err,
		Next: typed.Next,
	}
}
