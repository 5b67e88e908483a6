// Package rotation is the control plane: the steps of one KEK rotation, and the small
// interfaces that they need. It does not depend on the AWS SDK. Adapters implement the
// interfaces, and memstore implements all of them for fault schedules.
//
// Every step follows the same rules:
//
//  1. Read the state.
//  2. Compute the next state with a pure function of package kek.
//  3. Write it as one conditional transaction that appends its audit record.
//  4. Publish the record to the audit bucket, and return.
//
// A step that dies anywhere is run again, and finds out from what it reads how far it came.
// NoKeyOrphans and RetireAfterSwitch (spec/rotation.tla) hold between any two writes.
package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Lease is one process's promise that it may write under a KEK.
type Lease struct {
	KEK     kek.ID
	Holder  string // unique per process
	Host    string
	PID     int
	Refs    int64 // in-flight references
	Expires time.Time
}

// CheckStored returns what is wrong with a stored lease; nil if it is sound.
func (l Lease) CheckStored() error {
	if l.Holder == "" {
		return errors.New("it names no holder")
	}
	return nil
}

// Drainage is what the drain step needs: leases and the write fence.
type Drainage interface {
	// Leases reads consistently every lease on a KEK.
	Leases(ctx context.Context, id kek.ID) ([]Lease, error)
	// Revoke deletes a lease if its expiry is still the one that was read; false means
	// that it was renewed or released meanwhile.
	Revoke(ctx context.Context, l Lease) (bool, error)
	// SealFence permanently shuts one shard of both fences of a KEK, that of rows and that of
	// records. It is idempotent.
	SealFence(ctx context.Context, id kek.ID, shard int) error
}

// Checkpoint is how far one pass over one segment has come.
type Checkpoint struct {
	RotationID string
	Source     string
	Pass       string // census, rewrap, confirm or verify
	Segment    int
	Rev        int64 // grows with every save; a save conditions on it
	Cursor     string
	Tally      Tally
	Done       bool
	SavedAt    time.Time // when its last page was read; zero before one was
	MAC        []byte    `json:"-"` // see [SealCheckpoints]
	Proof      Proof     `json:"-"` // not stored: what the stored MAC proves
}

// CheckStored returns what is wrong with a stored checkpoint; nil if it is sound.
func (c Checkpoint) CheckStored() error {
	if c.Rev < 1 {
		return fmt.Errorf("its revision is %d", c.Rev)
	}
	return nil
}

// Tally counts rows of one or many segments.
type Tally struct {
	Scanned     int64    `json:"scanned"`
	Rewrapped   int64    `json:"rewrapped"`
	Other       int64    `json:"other"`                // items with none of the envelope's attributes
	Declared    int64    `json:"declared"`             // items that the definition declares to be something else
	Quarantined int64    `json:"quarantined"`          // rows that cannot be rewrapped, unaccounted items
	Unwrapped   int64    `json:"unwrapped"`            // distinct data keys that were unwrapped under the new KEK, by process
	Keyed       int64    `json:"keyed,omitempty"`      // of the scanned rows, those that name a data key of the key table
	Exposed     int64    `json:"exposed,omitempty"`    // of the keyed ones, those whose data key was made before an emergency's switch; verify
	Unusable    int64    `json:"unusable,omitempty"`   // copies of missing records that do not unwrap
	Poison      []string `json:"quarantine,omitempty"` // ids of the first few quarantined ones, with the reason

	ByKEK  map[string]int64 `json:"by_kek,omitempty"`  // rows by the KEK that they name; census
	ByKind map[string]int64 `json:"by_kind,omitempty"` // unaccounted items by kind; census

	DataKeys Sketch `json:"data_keys,omitempty"` // of the rows that are accounted for; census
}

// Checkpoints stores how far each pass over each segment has come.
type Checkpoints interface {
	// LoadCheckpoint returns a checkpoint at the start of the segment if none is stored.
	LoadCheckpoint(ctx context.Context, rotationID, source, pass string, segment int) (Checkpoint, error)
	// SaveCheckpoint stores c with Rev+1 if the stored revision is c.Rev, else
	// [kek.ErrConflict].
	SaveCheckpoint(ctx context.Context, c Checkpoint) error
	// ListCheckpoints returns every checkpoint of a rotation's pass over a source.
	ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]Checkpoint, error)
}
