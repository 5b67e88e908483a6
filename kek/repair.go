package kek

import (
	"errors"
	"fmt"
	"time"
)

// The functions of this file judge and rebuild items of the control table that were lost
// or damaged, or that were set back to an earlier time. Nothing here retires a KEK or
// moves the pointer on: a rebuilt item says what the audit chain says, or what is safe to
// believe where the chain cannot be trusted.

// Check reports what a pointer that was read is missing.
func (p Pointer) Check() error {
	switch {
	case p.KEKID == "":
		return errors.New("it names no KEK")
	case p.Epoch < 1:
		return fmt.Errorf("its epoch is %d", p.Epoch)
	}
	return nil
}

// Check reports what a registry entry that was read is missing.
func (k KEK) Check() error {
	_, known := legal[k.State]
	switch {
	case k.ID == "":
		return errors.New("it names no KEK")
	case !known && k.State != Retired:
		return fmt.Errorf("its state is %q", k.State)
	case k.ARN == "":
		return errors.New("it has no key ARN")
	case k.FenceShards < 1:
		return fmt.Errorf("it has %d fence shards", k.FenceShards)
	}
	return nil
}

// Check reports what a rotation's record that was read is missing.
func (r Rotation) Check() error {
	switch {
	case r.Mode != Normal && r.Mode != Emergency:
		return fmt.Errorf("its mode is %q", r.Mode)
	case order[r.Phase] == 0 && !r.Phase.Final():
		return fmt.Errorf("its phase is %q", r.Phase)
	case r.Rev < 1:
		return fmt.Errorf("its revision is %d", r.Rev)
	case r.OldKEK == "" || r.Attempt < 1:
		return errors.New("it names no old KEK or no attempt")
	case r.Phase != Started && !r.Phase.Final() && r.NewKEK == "":
		return errors.New("it names no new KEK")
	}
	return nil
}

// Rebuild is the pointer as the audit chain has it, where found is what could be read of
// the stored one, zero if nothing could. The epoch never goes back.
func (p Pointer) Rebuild(found Pointer) Pointer {
	p.Epoch = max(p.Epoch, found.Epoch)
	return p
}

// RebuiltState is the state that a registry entry is rebuilt with, of which the audit
// chain says one: "" if it says nothing. enabled is what KMS says of the key. The pointer's
// KEK is active. A KEK of which nothing is certain is sealed: rows under it can be read,
// and the next rotation moves them. One that the chain calls retired is sealed too while
// its KMS key is enabled, so that the next rotation disables it.
func RebuiltState(said State, pointed, enabled bool) State {
	switch {
	case pointed:
		return Active
	case said == Active: // the pointer has left it
		return Draining
	case said == Retired && enabled, said == "":
		return Sealed
	default:
		return said
	}
}

// Lose ends a rotation that cannot go on because the control table lost what it depends
// on. The KEKs stay as they are: the next rotation leaves those that resolve.
func (r Rotation) Lose(reason string, now time.Time) Rotation {
	if !r.Phase.Final() {
		r.Phase = Superseded
	}
	r.Err = reason
	return bumpRevision(r, now)
}
