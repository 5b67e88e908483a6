// Package journal is what every room of package rotation stands on: how a change of the
// control table and its audit record are written, and how failures and notices are worded.
//
// A change is one transaction with its record. A step that succeeded has its record in the
// locked audit bucket. Nothing here knows the order of the steps.
package journal

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

// Journal writes changes with their records, and tells people.
type Journal struct {
	Registry    Registry
	Outbox      Outbox
	AuditBucket AuditBucket
	Notifier    Notifier // nil: nobody is told
	Meter       Meter    // nil: nothing is metered
	Now         func() time.Time
	Actor       string // who acts, for the audit chain
}

// Transition drives one state change to its end: read, compute, write, and read
// again until what is stored says that it is done. So the output of a step comes
// from the table alone, the same whether this call made the change, a duplicate
// did, or the answer to the write was lost. The audit record is in the bucket
// before it returns.
func (j *Journal) Transition(ctx context.Context, step, id string,
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	return j.ApplyChange(ctx, step, func() (kek.View, error) { return j.Load(ctx, id) }, next, body)
}

// TransitionAll is Transition for a change that depends on the whole registry.
func (j *Journal) TransitionAll(ctx context.Context, step, id string,
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	return j.ApplyChange(ctx, step, func() (kek.View, error) { return j.LoadAll(ctx, id) }, next, body)
}

// ApplyChange is Transition on a view that load reads.
func (j *Journal) ApplyChange(ctx context.Context, step string, load func() (kek.View, error),
	next func(kek.View) (kek.Change, error), body map[string]string,
) (kek.View, error) {
	var v kek.View
	err := RetryConflicts("control table", fmt.Errorf("%s: %w", step, ErrStillChanged), func() (err error) {
		if v, err = load(); err != nil {
			return err
		}
		c, err := next(v)
		if errors.Is(err, kek.ErrDone) {
			return j.Publish(ctx)
		}
		if err != nil {
			return ExplainRefusal(err)
		}
		if GivesUpKEK(c) {
			if err := j.CheckSetBack(ctx); err != nil {
				return err
			}
		}
		if err := j.Registry.Apply(ctx, c, j.buildEvent(step, c, body)); err != nil {
			return WrapUnavailable("control table", err)
		}
		return kek.ErrConflict // read again: what is stored says whether it is done
	})
	return v, err
}

// GivesUpKEK reports a change that retires a KEK or rolls a rotation back, after which keys
// with its tag are disabled. In a control table that was set back such a change is wrong: a
// rotation that stands before its switch there may have switched, and rows may be under its
// new KEK; a source that was registered since may have rows under an old one.
func GivesUpKEK(c kek.Change) bool {
	return slices.ContainsFunc(c.KEKs, func(m kek.KEKMove) bool { return m.After.State == kek.Retired }) ||
		c.Rotation != nil && c.Rotation.After.Phase == kek.RolledBack ||
		c.Ends != nil && c.Ends.After.Phase == kek.RolledBack
}

// Load reads what [Registry.Load] does; its errors name the control table.
func (j *Journal) Load(ctx context.Context, id string) (kek.View, error) {
	v, err := j.Registry.Load(ctx, id)
	return v, ExplainLoadError(err)
}

// LoadAll reads the whole registry, and the record of the rotation or of the one that
// holds the lock.
func (j *Journal) LoadAll(ctx context.Context, id string) (kek.View, error) {
	v, err := j.Registry.LoadAll(ctx, id)
	return v, ExplainLoadError(err)
}

// ExplainLoadError is the error of a control table that cannot be read.
func ExplainLoadError(err error) error {
	if errors.Is(err, ErrNoControlTable) {
		return &Error{
			Kind: ControlTableMissing, Field: "control table", Msg: "it does not exist", Err: err,
			Next: Next{Do: DeployTable},
		}
	}
	if err != nil {
		return WrapUnavailable("control table", err)
	}
	return nil
}

// LoadRotation reads the record of a rotation that must exist.
func (j *Journal) LoadRotation(ctx context.Context, id string) (kek.View, kek.Rotation, error) {
	v, err := j.Load(ctx, id)
	if err != nil {
		return v, kek.Rotation{}, err
	}
	if v.Rotation == nil {
		return v, kek.Rotation{}, ExplainRefusal(kek.ErrNoRotation)
	}
	if v.Rotation.Phase == kek.Superseded {
		return v, *v.Rotation, ReportSuperseded(*v.Rotation)
	}
	return v, *v.Rotation, nil
}

// ReportSuperseded is the error of a step whose rotation an emergency or doctor has ended.
func ReportSuperseded(r kek.Rotation) error {
	if r.EndedBy == "" { // by doctor
		return &Error{Kind: Superseded, Field: "rotation_id", Msg: fmt.Sprintf("rotation %s: %s", r.ID, r.Err), Next: Next{Do: StartAnother}}
	}
	return ExplainRefusal(fmt.Errorf("%w: %s, by %s", kek.ErrSuperseded, r.ID, r.EndedBy))
}

// ExplainEnded says of a step that failed because an emergency has ended its rotation meanwhile
// that this is why: what it met, such as a key that is disabled, needs nobody's work.
func (j *Journal) ExplainEnded(ctx context.Context, id string, err error) error {
	var typed *Error
	if !errors.As(err, &typed) || typed.Kind == Transient || typed.Kind == Superseded {
		return err
	}
	if v, lerr := j.Load(ctx, id); lerr == nil && v.Rotation != nil && v.Rotation.EndedBy != "" {
		return ReportSuperseded(*v.Rotation)
	}
	return err
}

// buildEvent is the audit record of a change. Its id is the same for every try at the
// same step of the same attempt.
func (j *Journal) buildEvent(step string, c kek.Change, extra map[string]string) audit.Event {
	ev := audit.Event{ID: c.Event, Type: c.Event, Step: step, Actor: j.Actor, Body: map[string]string{}}
	if c.Rotation != nil {
		r := c.Rotation.After
		ev.Rotation, ev.ID = r.ID, r.ID+"/"+c.Event
		if r.Attempt > 1 {
			ev.ID = fmt.Sprintf("%s/%d", ev.ID, r.Attempt)
		}
		AddPairs(ev.Body, "mode", string(r.Mode), "phase", string(r.Phase), "label", r.Label, "reason", r.Reason,
			"old_kek_id", string(r.OldKEK), "new_kek_id", string(r.NewKEK), "execution", r.Execution, "error", r.Err,
			"requested_by", r.Requester, "drill", r.Drill)
	}
	AddPairs(ev.Body, "ended", c.From)
	if c.Ends != nil { // it took over from a rotation whose record is not lost
		AddPairs(ev.Body, "ended_at", string(c.Ends.Before.Phase), "ended_as", string(c.Ends.After.Phase))
	}
	if c.Pointer != nil {
		AddPairs(ev.Body, "pointer", string(c.Pointer.After.KEKID), "epoch", fmt.Sprint(c.Pointer.After.Epoch))
	}
	for _, m := range c.KEKs {
		AddPairs(ev.Body, "kek."+string(m.After.ID), string(m.After.State))
	}
	maps.Copy(ev.Body, extra)
	makeRepeatable(&ev, c)
	return ev
}

// makeRepeatable gives the record of a change that may happen more than once a number of
// its own: the registry's revision, or the rotation's.
func makeRepeatable(ev *audit.Event, c kek.Change) {
	switch {
	case c.Registry != nil && c.Event != kek.EventGenesis:
		ev.ID = fmt.Sprintf("%s/%d", c.Event, c.Registry.Before+1)
	case c.Event == kek.EventOldKEKSealed && c.Rotation.After.Phase == kek.Switched: // not the last one
		ev.ID = fmt.Sprintf("%s/%s", ev.ID, c.Sealed)
	case c.Event == kek.EventRotationResumed, c.Event == kek.EventReadingRestarted:
		ev.ID = fmt.Sprintf("%s/%d", ev.ID, c.Rotation.After.Rev)
	}
}

// AddPairs adds the pairs whose value is not empty.
func AddPairs(body map[string]string, pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			body[pairs[i]] = pairs[i+1]
		}
	}
}

// Publish moves the outbox into the locked bucket. Every step calls it last, and
// again when it finds its effect already made: a step that succeeded has its
// record under Object Lock. An object in the place of a record does not stop it: the
// chain continues in a new generation, whose beginning is recorded, for verification to
// tell.
func (j *Journal) Publish(ctx context.Context) error {
	for range MaxTries {
		entries, at, err := j.Outbox.Unpublished(ctx)
		if err != nil {
			return WrapUnavailable("audit outbox", err)
		}
		met, err := j.storeRecords(ctx, entries, at)
		if met == nil {
			return err
		}
		g := at.Generations.Next(met.seq, *met.taken, fmt.Sprint(j.Now().UnixNano()))
		ev := g.Event(audit.OfRecords, at.Generations, *met.taken)
		ev.Actor = j.Actor
		j.PageGeneration(ctx, *met.taken)
		head := entries[len(entries)-1].Head()
		if err := j.Outbox.Begin(ctx, at, head, g, ev); err != nil && !errors.Is(err, kek.ErrConflict) {
			return WrapUnavailable("audit outbox", err)
		}
	}
	return WrapUnavailable("audit bucket", fmt.Errorf("in %d generations another object was in the way", MaxTries))
}

// MetricGeneration counts the objects for which a generation of the audit chain begins; an
// alarm of template.yaml watches it.
const MetricGeneration = "audit_generation_begun"

// PageGeneration tells the people on call that an object lies in the way of the audit chain.
// It does so before the generation begins: a step that dies in between has not kept silent,
// and one that is repeated pages twice. A function counts, for the alarm; a command in a
// person's shell, whose output no log turns into metrics, sends the notification. Nothing in
// the bucket may stop a step, so a message that cannot be sent does not either.
func (j *Journal) PageGeneration(ctx context.Context, taken audit.Taken) {
	if j.Meter != nil {
		j.Measure(MetricGeneration, true)
		return
	}
	_ = j.TellPeople(ctx, Notice{Event: NotifyGeneration, Detail: taken.Key})
}

// met is an object in the place of the record seq.
type met struct {
	seq   int64
	taken *audit.Taken
}

// storeRecords puts records into the bucket and marks them, up to an object that is in the way.
func (j *Journal) storeRecords(ctx context.Context, entries []audit.Entry, at audit.Line) (*met, error) {
	for _, e := range entries {
		err := j.AuditBucket.Put(ctx, at.RecordKey(e.Record.Seq), e)
		if taken := (*audit.Taken)(nil); errors.As(err, &taken) {
			return &met{e.Record.Seq, taken}, nil
		}
		if err != nil {
			return nil, WrapUnavailable("audit bucket", err)
		}
	}
	if len(entries) == 0 {
		return nil, nil
	}
	if err := j.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq); err != nil {
		return nil, WrapUnavailable("audit outbox", err)
	}
	return nil, nil
}

// PublishHead publishes and returns the chain's head as it was before, so that the bucket
// holds all of it, and where its records are now.
func (j *Journal) PublishHead(ctx context.Context) (audit.Line, audit.Head, error) {
	_, head, err := j.Outbox.Head(ctx)
	if err != nil {
		return audit.Line{}, head, WrapUnavailable("audit head", err)
	}
	if err := j.Publish(ctx); err != nil {
		return audit.Line{}, head, err
	}
	at, _, err := j.Outbox.Head(ctx) // a generation may have begun
	if err != nil {
		return at, head, WrapUnavailable("audit head", err)
	}
	return at, head, nil
}

// Measure counts 1 for yes and 0 for no, if there is a meter.
func (j *Journal) Measure(name string, yes bool) {
	if j.Meter == nil {
		return
	}
	n := int64(0)
	if yes {
		n = 1
	}
	j.Meter.Count(name, n)
}

// RecordEvent appends what an operator does outside a rotation, and publishes it: when
// it returns, the record is under Object Lock.
func (j *Journal) RecordEvent(ctx context.Context, to Recorder, ev audit.Event) error {
	ev.Actor = j.Actor
	if err := to.Record(ctx, ev); err != nil {
		return WrapUnavailable("audit outbox", err)
	}
	return j.Publish(ctx)
}
