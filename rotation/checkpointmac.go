package rotation

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// CheckpointKeys gives the keys of the MACs of checkpoints.
type CheckpointKeys interface {
	// DeriveKey returns the 32-byte key of a rotation's checkpoints. Every process of the
	// stack gets the same, and nobody who can only write the control table does.
	DeriveKey(ctx context.Context, rotationID string) ([]byte, error)
}

// Proof says what the MAC of a stored checkpoint proves.
type Proof string

// The proofs. Only a proven checkpoint is evidence that rows were read.
const (
	Unchecked Proof = ""          // nobody has compared the MAC
	Proven    Proof = "proven"    // this stack has saved the checkpoint
	NoMAC     Proof = "no_mac"    // it has none, or one of another version of this code
	FalseMAC  Proof = "false_mac" // somebody else has written it, or the key of the MACs is another one now
	KeyGone   Proof = "key_gone"  // KMS has no key of the MACs that can be used
)

// Describe says in words why a checkpoint is not proven.
func (p Proof) Describe() string {
	switch p {
	case Proven:
		return "it is proven"
	case NoMAC:
		return "it has no MAC, or one of another release"
	case FalseMAC:
		return "its MAC is false: somebody else has written it, or the key of the MACs was replaced"
	case KeyGone:
		return "the key of the MACs is gone or disabled"
	case Unchecked:
	}
	return "nobody has compared its MAC"
}

// SealCheckpoints returns a store whose checkpoints carry a MAC (spec: Authentic). A pass is
// concluded from its checkpoints, so a program that can write the control table could otherwise
// finish a pass over rows that nobody has read.
//
// The MAC is HMAC-SHA-256 (FIPS 198-1) over a label and the checkpoint as JSON: the rotation,
// the source, the pass, the segment, the revision and everything that the checkpoint says.
// A stored checkpoint
//
//   - with a true MAC is returned as it is;
//   - without one, or with one of another version, counts as not made: another version of
//     this code has saved it, or somebody took the MAC away. The segment is read from its start;
//   - with another one is returned as not made too, and its [Checkpoint.Proof] is [FalseMAC].
//
// It does not protect from a true checkpoint of the same pass that is put back. What that one
// says was seen, at the time that it names.
func SealCheckpoints(store Checkpoints, keys CheckpointKeys) *SealedCheckpoints {
	return &SealedCheckpoints{store: store, keys: keys}
}

// SealedCheckpoints is what [SealCheckpoints] returns.
type SealedCheckpoints struct {
	store Checkpoints
	keys  CheckpointKeys

	mu       sync.Mutex
	rotation string // whose key this is
	key      []byte
}

const (
	// macLabel separates these MACs from any other use of the key.
	macLabel = "matter-ops/kms-rotation checkpoint v1\x00"
	// macVersion is the first byte of a stored MAC. It changes with what the MAC is over, so
	// that after an update a checkpoint of the version before counts as not made, not as forged.
	macVersion = 1
)

// computeMAC returns the MAC of a checkpoint.
func (s *SealedCheckpoints) computeMAC(ctx context.Context, c Checkpoint) ([]byte, error) {
	key, err := s.loadKey(ctx, c.RotationID)
	if err != nil {
		return nil, journal.WrapUnavailable("the key of the checkpoints", err)
	}
	c.SavedAt = c.SavedAt.UTC().Truncate(time.Millisecond) // as it is stored
	// Fields are in their order, maps sorted by key; what is empty is left out.
	text, err := json.Marshal(c) //nolint:gosec // its Pass is one over rows
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	m := hmac.New(sha256.New, key)
	m.Write([]byte(macLabel))
	m.Write(text)
	return m.Sum([]byte{macVersion}), nil
}

// loadKey returns the key of a rotation's checkpoints. A process works on one rotation after
// the other, so it keeps the last key.
func (s *SealedCheckpoints) loadKey(ctx context.Context, rotationID string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rotation == rotationID {
		return s.key, nil
	}
	key, err := s.keys.DeriveKey(ctx, rotationID)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller does
	}
	s.rotation = rotationID
	s.key = key
	return key, nil
}

// checkMAC compares the MAC of a stored checkpoint with what it should be.
func (s *SealedCheckpoints) checkMAC(ctx context.Context, c Checkpoint) (Proof, error) {
	if len(c.MAC) == 0 || c.MAC[0] != macVersion {
		return NoMAC, nil
	}
	want, err := s.computeMAC(ctx, c)
	if err != nil {
		return Unchecked, err
	}
	if !hmac.Equal(want, c.MAC) {
		return FalseMAC, nil
	}
	return Proven, nil
}

// openCheckpoint returns what a stored checkpoint counts as.
func (s *SealedCheckpoints) openCheckpoint(ctx context.Context, c Checkpoint) (Checkpoint, error) {
	if c.Rev == 0 {
		return c, nil // none is stored
	}
	proof, err := s.checkMAC(ctx, c)
	if err != nil {
		return c, err
	}
	if proof != Proven {
		c = Checkpoint{RotationID: c.RotationID, Source: c.Source, Pass: c.Pass, Segment: c.Segment, Rev: c.Rev}
	}
	c.Proof = proof
	return c, nil
}

// ProveCheckpoint says what the MAC of a stored checkpoint proves, for those who show or keep
// what it says and continues no pass from it. It fails only if KMS cannot be asked.
func (s *Steps) ProveCheckpoint(ctx context.Context, c Checkpoint) (Proof, error) {
	sealed, ok := s.Checkpoints.(*SealedCheckpoints)
	if !ok {
		return Unchecked, nil
	}
	proof, err := sealed.checkMAC(ctx, c)
	if errors.Is(err, journal.ErrNoKey) || errors.Is(err, journal.ErrKeyDisabled) {
		return KeyGone, nil
	}
	return proof, err
}

// LoadCheckpoint implements [Checkpoints].
func (s *SealedCheckpoints) LoadCheckpoint(ctx context.Context, rotationID, source, pass string, segment int) (Checkpoint, error) {
	c, err := s.store.LoadCheckpoint(ctx, rotationID, source, pass, segment)
	if err != nil {
		return c, err //nolint:wrapcheck // of the store
	}
	return s.openCheckpoint(ctx, c)
}

// SaveCheckpoint implements [Checkpoints].
func (s *SealedCheckpoints) SaveCheckpoint(ctx context.Context, c Checkpoint) error {
	saved := c
	saved.Rev++ // as it will be stored
	var err error
	if c.MAC, err = s.computeMAC(ctx, saved); err != nil {
		return err
	}
	return s.store.SaveCheckpoint(ctx, c) //nolint:wrapcheck // of the store
}

// ListCheckpoints implements [Checkpoints].
func (s *SealedCheckpoints) ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]Checkpoint, error) {
	list, err := s.store.ListCheckpoints(ctx, rotationID, source, pass)
	if err != nil {
		return nil, err //nolint:wrapcheck // of the store
	}
	for i := range list {
		if list[i], err = s.openCheckpoint(ctx, list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// errForged refuses to continue a pass from a checkpoint that somebody else has written.
// Rewrap is not refused and begins the segment from its start: nothing is concluded from it,
// for the second scan reads every row again.
func errForged(c Checkpoint) error {
	return &journal.Error{
		Kind: journal.ControlTableDamaged, Field: fmt.Sprintf("checkpoint of source %s, pass %s, segment %d", c.Source, c.Pass, c.Segment),
		Msg:  "its MAC is not one that this stack made: somebody else has written it",
		Next: journal.Next{Do: journal.FindTableWriter, Rotation: c.RotationID},
	}
}
