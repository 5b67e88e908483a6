package kek

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

var (
	// ErrDone reports that the step's effect is already made: the caller returns
	// success with the same output.
	ErrDone = errors.New("already done")
	// ErrConflict reports that a change's conditions no longer hold.
	ErrConflict = errors.New("changed since it was read")
	// ErrNoRotation reports that the rotation has no record.
	ErrNoRotation = errors.New("no such rotation")
	// ErrLocked reports that another rotation holds the lock; see [View.Lock].
	ErrLocked = errors.New("another rotation holds the lock")
	// ErrNoPointer reports a pointer that is absent or names no active KEK.
	ErrNoPointer = errors.New("the pointer names no active KEK")
	// ErrForgotten reports a table that applications write envelopes into and that
	// no source covers.
	ErrForgotten = errors.New("a table that envelopes are written into is not a source")
	// ErrPointerLost reports a registry without a pointer: the table was damaged, and
	// genesis would set the epoch back.
	ErrPointerLost = errors.New("the registry has KEKs but there is no pointer")
	// ErrChanged reports that a source or the record changed since the caller looked
	// at the rows, so that what it saw does not count.
	ErrChanged = errors.New("the rotation changed since its rows were looked at")
	// ErrEmergencyRuns reports an emergency that would end another one: a person has to
	// ask for that by name.
	ErrEmergencyRuns = errors.New("another emergency holds the lock")
	// ErrSuperseded reports a rotation that an emergency has ended.
	ErrSuperseded = errors.New("an emergency has taken over from this rotation")
	// ErrMintsExhausted reports that an emergency rotation has failed as often as
	// it may: it stops and pages rather than minting for ever.
	ErrMintsExhausted = errors.New("no mint attempt is left")
)

// View is what a step has read: the pointer, one rotation, the lock, and the registry
// entries that those name. These are one snapshot of the control table: read at different
// moments, a rotation of before another process's switch and a new KEK of after it would
// look like an illegal transition, where there is only a race.
//
// What a read of the whole registry adds may be of other moments. The revision in Registry
// is read before what it counts the changes of, and the conditions of a [Change] refuse a
// decision that changes overtook.
type View struct {
	Pointer  *Pointer  // nil: none
	Rotation *Rotation // nil: no record
	Lock     string    // rotation id that holds the lock; "" is free
	KEKs     map[ID]KEK

	// What only a read of the whole registry fills in: then KEKs has every KEK.
	Holder   *Rotation // record of the rotation that holds the lock, if that is another one; nil: it has none
	Registry int64     // revision of the registry; 0: there is none yet
	Sources  []Source  // by name
	Marks    []Mark    // by table
}

func (v View) findKEK(id ID) (KEK, error) {
	k, ok := v.KEKs[id]
	if !ok {
		return KEK{}, fmt.Errorf("KEK %q is not in the registry", id)
	}
	return k, nil
}

// Genesis registers the first KEK and the first sources, and points at the KEK. It is
// refused with [ErrDone] if the pointer already names the KEK, with [ErrPointerLost] if
// there is no pointer but a registry, and otherwise if there is a pointer at all. It
// needs the whole registry.
func (v View) Genesis(first KEK, sources []Source, now time.Time) (Change, error) {
	return v.GenesisAfter(first, sources, 0, now)
}

// GenesisAfter is Genesis of rows that an earlier deployment has moved: the pointer's first
// epoch is the one after last, the highest that any row carries. A writer's update is
// refused by a row of a later epoch than its own, so with a lower one no application could
// update the rows.
func (v View) GenesisAfter(first KEK, sources []Source, last int64, now time.Time) (Change, error) {
	if v.Pointer != nil {
		if v.Pointer.KEKID == first.ID {
			return Change{}, ErrDone
		}
		return Change{}, &IllegalTransition{What: "pointer", From: string(v.Pointer.KEKID), To: string(first.ID)}
	}
	if v.Registry > 0 || len(v.KEKs) > 0 {
		return Change{}, ErrPointerLost
	}
	first.State, first.SwitchedAt = Active, now
	if first.CreatedAt.IsZero() {
		first.CreatedAt = now
	}
	return Change{
		Lock:    LockIgnore,
		Pointer: &PointerMove{After: Pointer{KEKID: first.ID, KeyARN: first.ARN, Epoch: last + 1, SwitchedAt: now}},
		KEKs:    []KEKMove{{After: first}},
		Opens:   first.ID, OpensRecords: first.ID, Shards: first.FenceShards,
		Registry: &RegistryMove{Put: sources},
		Event:    EventGenesis,
	}, nil
}

// Start admits one rotation: it takes the lock, freezes the sources and the KEKs to
// leave, and writes the record (spec: Start). r gives ID, Mode, Label, Reason,
// Segments, Settings, Execution, Actor, Requester, Drill and Approval. An emergency is
// neither a drill nor does it wait for approval. It needs the whole registry, and is
// refused with [ErrForgotten] while a marked table is no source, unless it is an
// emergency: that one moves what it knows and is refused the retirement instead.
func (v View) Start(r Rotation, now time.Time) (Change, error) {
	if v.Rotation != nil {
		return Change{}, ErrDone
	}
	if v.Lock != "" && v.Lock != r.ID {
		return Change{}, ErrLocked
	}
	old, err := v.currentKEK()
	if err != nil {
		return Change{}, err
	}
	if r.Mode == Emergency && (r.Drill != "" || r.Approval) {
		return Change{}, &IllegalTransition{What: "emergency rotation " + r.ID, From: "a drill or one to be approved", To: string(Started)}
	}
	if forgotten := Forgotten(v.Marks, v.Sources); len(forgotten) > 0 && r.Mode == Normal {
		return Change{}, fmt.Errorf("%w: %s", ErrForgotten, listTables(forgotten))
	}
	r.Phase = Started
	r.OldKEK = old.ID
	r.NewKEK = ""
	r.Attempt = 1
	r.Rev = 1
	r.Olds = v.oldKEKs(old.ID)
	r.Sources = v.Sources
	r.RecordsOnly = !slices.ContainsFunc(r.Olds, func(id ID) bool { return !v.KEKs[id].RecordsOnly })
	r.Counted = false
	r.Rehearsed = ""
	r.TookOver = nil
	r.Leftover = nil
	r.EndedBy = ""
	r.StartedAt, r.UpdatedAt = now, now
	return Change{
		Rotation: &RotationMove{After: r}, Lock: LockTake, Keeps: v.Pointer, AtRegistry: &v.Registry, Event: EventRotationStarted,
	}, nil
}

// TakeOver starts an emergency while another rotation holds the lock, whatever that one
// has come to, and ends it (spec: TakeOver). Before its switch the other is rolled back
// and its new KEK retired, after it the other is superseded. The emergency is a rotation
// of its own: it leaves every KEK that resolves, among them the one that the other has
// switched to. r is as for [View.Start]. Another emergency is ended with again alone,
// else [ErrEmergencyRuns]. It needs the whole registry.
func (v View) TakeOver(r Rotation, again bool, now time.Time) (Change, error) {
	if r.Mode == Emergency && v.Lock != "" && v.Lock != r.ID {
		from := v.Lock
		v.Lock = ""
		c, err := v.Start(r, now)
		if err != nil {
			return Change{}, err
		}
		c.Lock, c.From = LockTakeOver, from
		return v.endHolder(c, again, now)
	}
	return v.Start(r, now)
}

// endHolder adds to the start of an emergency what ends the rotation that holds the lock.
func (v View) endHolder(c Change, again bool, now time.Time) (Change, error) {
	other := v.Holder
	r := &c.Rotation.After
	r.TookOver = []string{c.From}
	c.Event = EventEmergencyTookOver
	if other == nil || other.ID != c.From { // the lock of a rotation whose record is lost
		return c, nil
	}
	if other.Mode == Emergency && !again {
		return Change{}, fmt.Errorf("%w: %s", ErrEmergencyRuns, other.ID)
	}
	ended := bumpRevision(*other, now)
	r.TookOver = append(r.TookOver, other.TookOver...)
	r.Leftover = slices.Clone(other.Leftover)
	switch {
	case other.Phase.PreSwitch():
		moves, err := v.retireNew(*other, "an emergency took over", now)
		if err != nil {
			return Change{}, err
		}
		c.KEKs = moves
		if other.NewKEK != "" {
			r.Leftover = append(r.Leftover, other.NewKEK)
		}
		ended.Phase = RolledBack
		if other.Mode == Emergency {
			ended.Phase = Superseded
		}
	case !other.Phase.Final():
		if other.Phase == KEKRetired {
			r.Leftover = append(r.Leftover, other.Olds...)
		}
		ended.Phase = Superseded
	}
	ended.EndedBy, ended.Err = r.ID, "emergency "+r.ID+" took over: "+r.Reason
	c.Ends = &RotationMove{Before: other, After: ended}
	return c, nil
}

// oldKEKs lists the KEKs that rows may still be under: the pointer's first, then every
// other that resolves, by id.
func (v View) oldKEKs(current ID) []ID {
	var sealed []ID
	for id, k := range v.KEKs {
		if id != current && k.State.Resolves() {
			sealed = append(sealed, id)
		}
	}
	slices.Sort(sealed)
	return append([]ID{current}, sealed...)
}

func listTables(marks []Mark) string {
	names := make([]string, len(marks))
	for i, m := range marks {
		names[i] = m.Table
	}
	return strings.Join(names, ", ")
}

// Count records that a census has looked at every item of every source and that all
// are accounted for (spec: Count). It comes before the mint, so that a refusal leaves
// no key.
func (v View) Count(now time.Time) (Change, error) {
	r, err := v.stepPhase(Started, Minted)
	if err != nil {
		return Change{}, err
	}
	if r.Counted {
		return Change{}, ErrDone
	}
	r.Counted = true
	return v.newChange(r, Started, now, EventRowsCounted), nil
}

// Rehearse records that rows of every source and KEK were rewrapped under the new KEK
// for trial, and that the rewrap may write (spec: Rehearse).
func (v View) Rehearse(now time.Time) (Change, error) {
	r, err := v.stepPhase(Minted, Tested)
	if err != nil {
		return Change{}, err
	}
	if r.Rehearsed == r.NewKEK {
		return Change{}, ErrDone
	}
	r.Rehearsed = r.NewKEK
	return v.newChange(r, Minted, now, EventRowsRehearsed), nil
}

// currentKEK is the KEK that the pointer names, which must be active.
func (v View) currentKEK() (KEK, error) {
	if v.Pointer == nil {
		return KEK{}, ErrNoPointer
	}
	k := v.KEKs[v.Pointer.KEKID]
	if k.State != Active {
		return KEK{}, fmt.Errorf("%w: it names %q (registry state %q)", ErrNoPointer, v.Pointer.KEKID, k.State)
	}
	return k, nil
}

// Mint registers the new KEK as pending (spec: Mint). k gives ID, ARN, Label,
// FenceShards and CreatedAt.
func (v View) Mint(k KEK, now time.Time) (Change, error) {
	r, err := v.stepPhase(Started, Minted)
	if err != nil {
		return Change{}, err
	}
	if !r.Counted && r.Mode == Normal {
		return Change{}, &IllegalTransition{What: "rotation " + r.ID + " without a census", From: string(Started), To: string(Minted)}
	}
	if v.pointedKEK() == k.ID {
		return Change{}, &IllegalTransition{What: "KEK " + string(k.ID), From: string(Active), To: string(Pending)}
	}
	k.State, k.RotationID = Pending, r.ID
	r.NewKEK = k.ID
	return v.newChange(r, Minted, now, EventKEKMinted, KEKMove{After: k}), nil
}

// Test records that the new KEK and the old ones both unwrap (spec: DualUnwrap). It
// follows a rehearsal under this very KEK. probes has a DEK wrapped under each old KEK,
// kept to show later that it is dead. A drill is refused, whatever its canary said: it
// never gets to the switch.
func (v View) Test(probes map[ID][]byte, now time.Time) (Change, error) {
	r, err := v.stepPhase(Minted, Tested)
	if err != nil {
		return Change{}, err
	}
	if r.Drill != "" {
		return Change{}, &IllegalTransition{What: "drill " + r.ID, From: string(Minted), To: string(Tested)}
	}
	if r.Rehearsed != r.NewKEK {
		return Change{}, &IllegalTransition{What: "rotation " + r.ID + " without a rehearsal", From: string(Minted), To: string(Tested)}
	}
	r.Probes = probes
	return v.newChange(r, Tested, now, EventDualUnwrapPassed), nil
}

// Switch moves the pointer to the new KEK: the one atomic step after which there
// is no way back (spec: Switch).
func (v View) Switch(now time.Time) (Change, error) {
	r, err := v.stepPhase(Tested, Switched)
	if err != nil {
		return Change{}, err
	}
	if v.Pointer == nil || v.Pointer.KEKID != r.OldKEK {
		return Change{}, &IllegalTransition{What: "pointer", From: string(v.pointedKEK()), To: string(r.NewKEK)}
	}
	up, err := v.moveKEK(r.NewKEK, Active)
	if err != nil {
		return Change{}, err
	}
	down, err := v.moveKEK(r.OldKEK, Draining)
	if err != nil {
		return Change{}, err
	}
	up.After.SwitchedAt = now
	r.SwitchedAt = now
	r.Epoch = v.Pointer.Epoch + 1
	c := v.newChange(r, Switched, now, EventPointerSwitched, up, down)
	c.Pointer = &PointerMove{Before: v.Pointer, After: Pointer{
		KEKID: up.After.ID, KeyARN: up.After.ARN, Epoch: r.Epoch, RotationID: r.ID, SwitchedAt: now,
	}}
	c.Opens = up.After.ID
	c.OpensRecords = up.After.ID
	c.Shards = up.After.FenceShards
	return c, nil
}

// Seal seals the next old KEK that is draining: every shard of its fences is sealed, so no
// row can be inserted and no data key created under it any more (spec: Seal). With the last of them the drain
// ends; until then the rotation stays switched. Most rotations have one, an emergency
// that took over has more.
func (v View) Seal(now time.Time) (Change, error) {
	r, err := v.stepPhase(Switched, Drained)
	if err != nil {
		return Change{}, err
	}
	draining := v.Draining()
	if len(draining) == 0 {
		return Change{}, &IllegalTransition{What: "KEK " + string(r.OldKEK), From: string(v.KEKs[r.OldKEK].State), To: string(Sealed)}
	}
	m, err := v.moveKEK(draining[0], Sealed)
	if err != nil {
		return Change{}, err
	}
	to := Switched
	if len(draining) == 1 {
		to, r.SealedAt = Drained, now
	}
	c := v.newChange(r, to, now, EventOldKEKSealed, m)
	c.Sealed, c.Shards = draining[0], m.After.FenceShards
	return c, nil
}

// Draining lists the rotation's old KEKs whose fences are not known to be sealed yet.
func (v View) Draining() []ID {
	var ids []ID
	for _, id := range v.Rotation.Olds {
		if v.KEKs[id].State == Draining {
			ids = append(ids, id)
		}
	}
	return ids
}

// Rewrap records that every row of every source is under the new KEK (spec:
// Rewrapped). The caller has checked every segment's checkpoint of the rotation as it
// read it, at revision rev; [ErrChanged] if it has changed since.
func (v View) Rewrap(rev int64, now time.Time) (Change, error) {
	r, err := v.stepPhaseAt(Drained, Rewrapped, rev)
	if err != nil {
		return Change{}, err
	}
	return v.newChange(r, Rewrapped, now, EventRowsRewrapped), nil
}

// Retire marks the sealed old KEKs retired (spec: Retire). It refuses the pointer's
// KEK, and the transaction conditions on the pointer standing still. rev is the
// rotation's revision that the second scan was made at; [ErrChanged] if a source has
// joined since. It needs the whole registry: [ErrForgotten] while a marked table is no
// source of the rotation.
func (v View) Retire(rev int64, now, notBeforeDelete time.Time) (Change, error) {
	r, err := v.stepPhaseAt(Rewrapped, KEKRetired, rev)
	if err != nil {
		return Change{}, err
	}
	if forgotten := Forgotten(v.Marks, r.Sources); len(forgotten) > 0 {
		return Change{}, fmt.Errorf("%w: %s", ErrForgotten, listTables(forgotten))
	}
	var moves []KEKMove
	for _, id := range r.Olds {
		if v.pointedKEK() == id || v.Pointer == nil {
			return Change{}, &IllegalTransition{What: "KEK " + string(id), From: string(Active), To: string(Retired)}
		}
		m, err := v.moveKEK(id, Retired)
		if err != nil {
			return Change{}, err
		}
		m.After.RetiredAt = now
		m.After.Reason = "rotated by " + r.ID
		m.After.NotBeforeDelete = notBeforeDelete
		moves = append(moves, m)
	}
	c := v.newChange(r, KEKRetired, now, EventOldKEKRetired, moves...)
	c.Keeps = v.Pointer
	return c, nil
}

// Complete closes the rotation and frees the lock (spec: Complete). rev is the
// rotation's revision that the rows were verified at.
func (v View) Complete(rev int64, now time.Time) (Change, error) {
	r, err := v.stepPhaseAt(KEKRetired, Completed, rev)
	if err != nil {
		return Change{}, err
	}
	c := v.newChange(r, Completed, now, EventRotationCompleted)
	c.Lock = LockRelease
	return c, nil
}

// Resume records that a person goes on at a moment with a rotation that halted, and has
// seen why. [ErrDone] if it was resumed then or later.
func (v View) Resume(now time.Time) (Change, error) {
	if v.Rotation == nil {
		return Change{}, ErrNoRotation
	}
	r := *v.Rotation
	if r.Phase.Final() {
		return Change{}, &IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: "resumed"}
	}
	if !r.ResumedAt.Before(now) {
		return Change{}, ErrDone
	}
	r.ResumedAt = now
	return v.newChange(r, r.Phase, now, EventRotationResumed), nil
}

// Restart raises the revision of a rotation before rows that were read at revision rev are
// read again from the start: a call that holds a conclusion from the reading before, even in
// a write that is on its way, is refused it. [ErrDone] if the revision was raised since.
func (v View) Restart(rev int64, now time.Time) (Change, error) {
	switch r := v.Rotation; {
	case r == nil:
		return Change{}, ErrNoRotation
	case r.Rev != rev:
		return Change{}, ErrDone
	case r.Phase.Final():
		return Change{}, &IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: "restarted"}
	default:
		return v.newChange(*r, r.Phase, now, EventReadingRestarted), nil
	}
}

// PreSwitchFailure gives up before the switch: the new KEK, if any, is retired,
// the pointer is untouched, the lock is freed (spec: PreSwitchFailure). An
// emergency is refused: it only goes forward, with [View.Remint].
func (v View) PreSwitchFailure(reason string, now time.Time) (Change, error) {
	r, err := v.preSwitch(RolledBack)
	if err != nil {
		return Change{}, err
	}
	if r.Mode == Emergency {
		return Change{}, &IllegalTransition{What: "emergency rotation " + r.ID, From: string(r.Phase), To: string(RolledBack)}
	}
	moves, err := v.retireNew(r, "pre-switch failure", now)
	if err != nil {
		return Change{}, err
	}
	r.Err = reason
	c := v.newChange(r, RolledBack, now, EventRolledBack, moves...)
	c.Lock, c.Keeps = LockRelease, v.Pointer
	return c, nil
}

// Remint retires the KEK that failed an emergency rotation's test and goes back
// to started, so that another is minted. It refuses with [ErrMintsExhausted] when
// attempt limit has been made. failed is the attempt that the caller saw fail: a
// later one is not its business.
func (v View) Remint(failed, limit int, reason string, now time.Time) (Change, error) {
	r, err := v.preSwitch(Started)
	if err != nil {
		return Change{}, err
	}
	if r.Mode != Emergency {
		return Change{}, &IllegalTransition{What: "normal rotation " + r.ID, From: string(r.Phase), To: "reminted"}
	}
	switch {
	case r.Attempt > failed:
		return Change{}, ErrDone
	case r.Attempt < failed: // nobody has seen it fail yet
		return Change{}, &IllegalTransition{
			What: "rotation " + r.ID, From: fmt.Sprintf("attempt %d", r.Attempt), To: fmt.Sprintf("attempt %d", failed+1),
		}
	}
	if r.Attempt >= limit {
		return Change{}, fmt.Errorf("%w: attempt %d of %d failed", ErrMintsExhausted, r.Attempt, limit)
	}
	moves, err := v.retireNew(r, "emergency pre-switch failure", now)
	if err != nil {
		return Change{}, err
	}
	r.NewKEK, r.Err = "", reason
	r.Attempt++
	c := v.newChange(r, Started, now, EventReminted, moves...)
	c.Keeps = v.Pointer
	return c, nil
}

// preSwitch returns the record if the pointer has not moved yet.
func (v View) preSwitch(to Phase) (Rotation, error) {
	if v.Rotation == nil {
		return Rotation{}, ErrNoRotation
	}
	r := *v.Rotation
	switch {
	case r.Phase == RolledBack && to == RolledBack:
		return Rotation{}, ErrDone
	case r.EndedBy != "":
		return Rotation{}, fmt.Errorf("%w: %s, by %s", ErrSuperseded, r.ID, r.EndedBy)
	case !r.Phase.PreSwitch():
		return Rotation{}, &IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: string(to)}
	}
	return r, nil
}

// retireNew retires the rotation's new KEK, never the pointer's.
func (v View) retireNew(r Rotation, reason string, now time.Time) ([]KEKMove, error) {
	if r.NewKEK == "" {
		return nil, nil
	}
	if v.Pointer == nil || v.pointedKEK() == r.NewKEK {
		return nil, &IllegalTransition{What: "KEK " + string(r.NewKEK), From: string(Active), To: string(Retired)}
	}
	m, err := v.moveKEK(r.NewKEK, Retired)
	if err != nil {
		return nil, err
	}
	m.After.RetiredAt, m.After.Reason = now, reason
	return []KEKMove{m}, nil
}

func (v View) pointedKEK() ID {
	if v.Pointer == nil {
		return ""
	}
	return v.Pointer.KEKID
}

// stepPhase returns a copy of the rotation's record if it stands at from; [ErrDone]
// if it has reached to already; an [*IllegalTransition] otherwise.
func (v View) stepPhase(from, to Phase) (Rotation, error) {
	switch r := v.Rotation; {
	case r == nil:
		return Rotation{}, ErrNoRotation
	case r.Phase == from:
		return *r, nil
	case r.Phase.Reached(to):
		return Rotation{}, ErrDone
	case r.EndedBy != "":
		return Rotation{}, fmt.Errorf("%w: %s, by %s", ErrSuperseded, r.ID, r.EndedBy)
	default:
		return Rotation{}, &IllegalTransition{What: "rotation " + r.ID, From: string(r.Phase), To: string(to)}
	}
}

// stepPhaseAt is step for a conclusion from rows that were looked at when the record had
// revision rev. A source that joins the rotation raises it.
func (v View) stepPhaseAt(from, to Phase, rev int64) (Rotation, error) {
	r, err := v.stepPhase(from, to)
	if err == nil && r.Rev != rev {
		return Rotation{}, ErrChanged
	}
	return r, err
}

// moveKEK is one KEK's way to its next state, from what was read.
func (v View) moveKEK(id ID, next State) (KEKMove, error) {
	before, err := v.findKEK(id)
	if err != nil {
		return KEKMove{}, err
	}
	after, err := before.moveTo(next)
	if err != nil {
		return KEKMove{}, err
	}
	return KEKMove{Before: &before, After: after}, nil
}

// newChange carries r, a modified copy of what was read, into phase to.
func (v View) newChange(r Rotation, to Phase, now time.Time, event string, moves ...KEKMove) Change {
	r.Phase, r.UpdatedAt = to, now
	r.Rev++
	return Change{Rotation: &RotationMove{Before: v.Rotation, After: r}, Lock: LockHold, KEKs: moves, Event: event}
}
