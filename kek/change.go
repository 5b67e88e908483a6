package kek

import "slices"

// LockOp is what a change does to the one lock that admits a single rotation.
type LockOp int

// What a change does to the lock.
const (
	LockHold     LockOp = iota // condition: the lock is this rotation's
	LockTake                   // take it; condition: free or already this rotation's
	LockRelease                // delete it; condition: this rotation's
	LockIgnore                 // no rotation is involved (genesis)
	LockFree                   // condition: no rotation holds it
	LockTakeOver               // take it; condition: it is that of the rotation From
)

// Change is one step's whole effect. An adapter applies it as one transaction
// that writes every After, conditions on every Before, and appends the audit
// record of Event. If any condition fails nothing is written and the adapter
// returns [ErrConflict]; the caller reads again and decides anew.
type Change struct {
	Rotation *RotationMove // nil only at genesis
	Lock     LockOp
	From     string        // LockTakeOver: id of the rotation that holds the lock
	Ends     *RotationMove // LockTakeOver: that rotation's record; nil: condition that it has none
	Pointer  *PointerMove  // nil: the pointer is not touched
	Keeps    *Pointer      // not nil: condition that the pointer still equals this
	KEKs     []KEKMove
	Event    string // what happened, in the audit chain's words, e.g. pointer_switched

	// A KEK has two fences, each of as many shards (spec: SealFence): of rows that carry
	// their data key, and of records of the key table.
	Opens        ID  // not "": open this KEK's fence of rows, all shards of it
	OpensRecords ID  // not "": open this KEK's fence of records, all shards of it
	Sealed       ID  // not "": condition that all shards of both of this KEK's fences are sealed
	Shards       int // how many shards a fence has that this change speaks of

	// The registry of sources and KEKs. Its revision grows with every change of which
	// sources or historic KEKs there are.
	Registry   *RegistryMove // nil: the registry is not touched
	AtRegistry *int64        // not nil: condition that the registry still has this revision; 0: there is none yet
	Shuts      ID            // not "": create both of this KEK's fences sealed, all shards of them; none may exist
}

// TakeNoRows returns the change c of a switch without the opening of the new KEK's fence of
// rows. So no row that carries its data key can come to be under that KEK, and the rotation
// that leaves it need read no keyed row (spec: CloseEmbedded). It is for a deployment whose
// sources all hold keyed rows alone.
func (c Change) TakeNoRows() Change {
	c.KEKs = slices.Clone(c.KEKs)
	for i, m := range c.KEKs {
		if m.After.ID == c.Opens {
			c.KEKs[i].After.RecordsOnly = true
		}
	}
	c.Opens = ""
	return c
}

// RegistryMove changes which sources are registered. The stored revision must be
// Before (0: there is none yet) and becomes Before+1.
type RegistryMove struct {
	Before int64
	Put    []Source // written over what has the same name
	Remove string   // name of a source that goes; ""
	Forget string   // table whose mark goes; ""
	Absent string   // not "": condition that this table has no mark
}

// RotationMove writes a rotation's record. Before nil: the record must not exist.
// Otherwise the stored record must have Before's phase and revision.
type RotationMove struct {
	Before *Rotation
	After  Rotation
}

// PointerMove moves the pointer. Before nil: there is none yet (genesis).
// Otherwise the stored pointer must have Before's KEK and epoch.
type PointerMove struct {
	Before *Pointer
	After  Pointer
}

// KEKMove writes a registry entry. Before nil: there is none yet. Otherwise the
// stored entry must be in Before's state.
type KEKMove struct {
	Before *KEK
	After  KEK
}
