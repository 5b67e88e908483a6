// Package kek is the vocabulary of a rotation: key-encryption keys (KEKs), the
// pointer that says which one wraps new data, the record of one rotation, and the
// only legal transitions between their states.
//
// Two invariants hold at every moment, under crashes, retries, duplicates and
// paused writers (spec/rotation.tla):
//
//   - NoKeyOrphans: every cipher row's KEK id resolves to a usable KEK, that is
//     one whose registry state [State.Resolves] and whose KMS key is enabled.
//   - RetireAfterSwitch: the old KEK is retired only after the pointer has
//     moved off it.
//
// Transitions are pure: a [View] is what was read, its methods compute the
// [Change] to write, and the change carries what was read as its conditions. The
// package imports the standard library alone.
package kek

import (
	"fmt"
	"time"
)

// ID is the id of a KMS key, as in the last part of its ARN.
type ID string

// State is the life-cycle state of a KEK in the registry:
// pending → active → draining → sealed → retired, or pending → retired.
type State string

// The states of a KEK.
const (
	Pending  State = "pending"  // minted; nothing is wrapped under it
	Active   State = "active"   // the pointer names it; new DEKs are wrapped under it
	Draining State = "draining" // the pointer has left it; writers may still hold it
	Sealed   State = "sealed"   // its fence is shut; it unwraps, no row can be inserted
	Retired  State = "retired"  // no row names it; its KMS key is or will be disabled
)

// Resolves reports whether a row may name a KEK in this state (NoKeyOrphans).
func (s State) Resolves() bool { return s == Active || s == Draining || s == Sealed }

// legal lists every move a KEK may make; anything else is an [*IllegalTransition].
var legal = map[State][]State{
	Pending:  {Active, Retired},
	Active:   {Draining},
	Draining: {Sealed},
	Sealed:   {Retired},
}

// KEK is the registry's entry for one key-encryption key.
type KEK struct {
	ID              ID        // KMS key id
	ARN             string    // KMS key ARN
	State           State     // life-cycle state
	Label           string    // the operator's name for it, e.g. Q2-2026-rotation
	RotationID      string    // the rotation that minted it; "" for the genesis KEK
	FenceShards     int       // how many items each of its two fences has once active
	RecordsOnly     bool      // its fence of rows was never opened: no row carries a data key under it (spec: RowsLooked)
	CreatedAt       time.Time // UTC
	SwitchedAt      time.Time // when the pointer moved to it; zero before
	RetiredAt       time.Time // zero before retirement
	Reason          string    // why it was retired, for a human
	NotBeforeDelete time.Time // earliest moment a human may schedule its deletion
}

// moveTo returns a copy of k moved to the next state, or an [*IllegalTransition].
func (k KEK) moveTo(next State) (KEK, error) {
	for _, s := range legal[k.State] {
		if s == next {
			k.State = next
			return k, nil
		}
	}
	return KEK{}, &IllegalTransition{What: "KEK " + string(k.ID), From: string(k.State), To: string(next)}
}

// Pointer is the pointer of truth: the KEK that wraps every new DEK. The epoch
// counts its moves and never goes back.
type Pointer struct {
	KEKID      ID
	KeyARN     string
	Epoch      int64
	RotationID string // the rotation that moved it here; "" at genesis
	SwitchedAt time.Time
}

// IllegalTransition reports a move the state machine does not have. It is never
// retried: what was read says the step must not run.
type IllegalTransition struct {
	What     string // "KEK <id>" or "rotation <id>"
	From, To string // states or phases
}

func (e *IllegalTransition) Error() string {
	return fmt.Sprintf("%s cannot go from %q to %q", e.What, e.From, e.To)
}
