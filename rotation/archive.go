package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// SpentItem is an item of the control table that a rotation leaves behind: a checkpoint, or
// a shard of a KEK's fence.
type SpentItem struct {
	Key        string      // of the item, as people write it: FENCE#<kek>/00
	Checkpoint *Checkpoint // nil: it is a fence shard
	KEK        kek.ID      // of the fence shard
	Open       bool        // the fence shard is open, and stays
	Shard      int
	Records    bool // the fence is that of records, otherwise that of rows
}

// SortSpent orders items by their keys.
func SortSpent(items []SpentItem) {
	slices.SortFunc(items, func(a, b SpentItem) int { return strings.Compare(a.Key, b.Key) })
}

// Archive removes items of the control table that are in the audit chain.
type Archive interface {
	// ListSpent reads every checkpoint and every fence shard of the table, in order of their
	// keys. Items that are damaged are left out. It is not a snapshot.
	ListSpent(ctx context.Context) ([]SpentItem, error)
	// RemoveSpent removes at most [MaxSpent] items and appends ev, in one transaction, on
	// condition that each checkpoint has the revision that was read, that each shard is
	// sealed, and that its KEK is retired. If a condition fails it returns [kek.ErrConflict],
	// and nothing was written.
	RemoveSpent(ctx context.Context, items []SpentItem, ev audit.Event) error
}

// MaxSpent bounds the items that one transaction removes. DynamoDB takes 100 (API reference,
// TransactWriteItems); the record, the head and the entries of the KEKs are among them.
const MaxSpent = 48

// archivedCheckpoint is a checkpoint in the body of a record of type
// [journal.EventArchived], under the key of its item:
//
//	"CHECKPOINT#<rotation>#<source>#<pass>/<segment>": {"rotation":…,"source":…,"pass":…,"segment":0,"proof":"proven","done":true,"saved_at":…,"tally":{…}}
//	"FENCE#<kek>/<shard>": "sealed"
//	"DEKFENCE#<kek>/<shard>": "sealed"
//
// One that is not proven has no more than its name and why: somebody else may have written the
// rest, and nobody could remove it from the locked bucket. It has no ids of quarantined rows either, for the same reason, and no cursor, which is of no use when
// the pass is over.
type archivedCheckpoint struct {
	Rotation string    `json:"rotation"`
	Source   string    `json:"source"`
	Pass     string    `json:"pass"`
	Segment  int       `json:"segment"`
	Proof    Proof     `json:"proof,omitempty"` // absent in records of a release that did not compare MACs
	Done     bool      `json:"done"`
	SavedAt  time.Time `json:"saved_at,omitzero"`
	Tally    Tally     `json:"tally"`
}

// archivedFence is what a record says of a fence shard.
const archivedFence = "sealed"

// ArchivedCheckpoints returns the checkpoints of a rotation that records of the chain keep, in
// the order of the chain. Of an item that was archived twice, because a late worker saved it
// again or the control table was restored, the first record counts.
func ArchivedCheckpoints(records []audit.Record, rotationID string) []Checkpoint {
	var out []Checkpoint
	seen := map[string]bool{}
	for _, r := range records {
		if r.Type != journal.EventArchived {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(r.Body)) {
			var c archivedCheckpoint
			if seen[key] || json.Unmarshal([]byte(r.Body[key]), &c) != nil || c.Rotation != rotationID {
				continue
			}
			seen[key] = true
			out = append(out, Checkpoint{
				RotationID: c.Rotation, Source: c.Source, Pass: c.Pass, Segment: c.Segment, Done: c.Done, SavedAt: c.SavedAt, Tally: c.Tally, Proof: c.Proof,
			})
		}
	}
	return out
}

// archiveFinished moves what rotations before r have left in the control table into the audit
// chain: checkpoints of rotations that are over, and sealed fences of KEKs that are retired
// and disabled (spec: Remove). It keeps those of r, of the rotation that moved the pointer
// last, and of one that runs. The records of rotations and the entries of KEKs stay: a
// rotation must not begin again under an id, nor a KEK be registered twice.
//
// Each transaction removes what its record states. So the call can die anywhere, run twice and
// beside another; what is left, or comes back, the next rotation archives.
func (s *Steps) archiveFinished(ctx context.Context, r kek.Rotation) (out archiveOutcome, err error) {
	if s.Archive == nil {
		return out, nil
	}
	items, err := s.Archive.ListSpent(ctx)
	if err != nil {
		return out, journal.WrapUnavailable("control table", err)
	}
	v, err := s.Journal.LoadAll(ctx, r.ID)
	if err != nil {
		return out, err
	}
	spent, err := s.selectSpent(ctx, v, items)
	if err != nil || len(spent) == 0 {
		return out, err
	}
	if out.unproven, err = s.proveSpent(ctx, spent); err != nil {
		return out, err
	}
	out.tried = true
	for chunk := range slices.Chunk(spent, MaxSpent) {
		ev, err := s.archiveEvent(chunk)
		if err == nil {
			err = s.Archive.RemoveSpent(ctx, chunk, ev)
		}
		if errors.Is(err, kek.ErrConflict) { // another call archives them, or a late worker saved one
			break
		}
		if err != nil {
			return out, journal.WrapUnavailable("control table", err)
		}
	}
	return out, nil
}

// archiveOutcome is what archiveFinished has done.
type archiveOutcome struct {
	tried    bool     // there may be records that are not in the bucket yet
	unproven []string // checkpoints of which no more than the name is archived, and why
}

// note tells people of unproven checkpoints: a person who has written one can write the control
// table. It names the first.
func (o archiveOutcome) note() string {
	if len(o.unproven) == 0 {
		return ""
	}
	return fmt.Sprintf("%d checkpoints of earlier rotations were archived without what they say, because they are not proven; the first: %s", len(o.unproven), audit.Visible(o.unproven[0]))
}

// proveSpent strips checkpoints that are not proven of what they say, and names them.
func (s *Steps) proveSpent(ctx context.Context, items []SpentItem) (unproven []string, err error) {
	for n, i := range items {
		c := i.Checkpoint
		if c == nil {
			continue
		}
		proof, err := s.ProveCheckpoint(ctx, *c)
		if err != nil {
			return nil, err
		}
		kept := *c
		if proof != Proven {
			kept = Checkpoint{RotationID: c.RotationID, Source: c.Source, Pass: c.Pass, Segment: c.Segment, Rev: c.Rev}
			unproven = append(unproven, i.Key+": "+proof.Describe())
		}
		kept.Proof = proof
		items[n].Checkpoint = &kept
	}
	return unproven, nil
}

// selectSpent returns the items that no rotation needs any more.
func (s *Steps) selectSpent(ctx context.Context, v kek.View, items []SpentItem) ([]SpentItem, error) {
	kept, keptKEKs, err := s.listKept(ctx, v)
	if err != nil {
		return nil, err
	}
	over, dead := map[string]bool{}, map[kek.ID]bool{}
	for _, i := range items {
		if i.Checkpoint != nil {
			over[i.Checkpoint.RotationID] = false
		} else {
			dead[i.KEK] = v.KEKs[i.KEK].State == kek.Retired && !keptKEKs[i.KEK]
		}
	}
	for _, id := range slices.Sorted(maps.Keys(over)) {
		if over[id], err = s.isOver(ctx, id); err != nil {
			return nil, err
		}
		over[id] = over[id] && !kept[id]
	}
	for _, id := range slices.Sorted(maps.Keys(dead)) {
		if !dead[id] {
			continue
		}
		k, err := s.describeKEK(ctx, id)
		if err != nil {
			return nil, err
		}
		dead[id] = !k.Enabled
	}
	return slices.DeleteFunc(items, func(i SpentItem) bool {
		if i.Checkpoint != nil {
			return !over[i.Checkpoint.RotationID]
		}
		return i.Open || !dead[i.KEK]
	}), nil
}

// listKept returns the rotations whose items are kept, and the KEKs that they have left: the
// rotation of the view, the one that moved the pointer last, and the one that runs.
func (s *Steps) listKept(ctx context.Context, v kek.View) (map[string]bool, map[kek.ID]bool, error) {
	rotations, keks := map[string]bool{}, map[kek.ID]bool{}
	keep := func(r *kek.Rotation) {
		if r == nil {
			return
		}
		rotations[r.ID] = true
		for _, id := range listLeftKEKs(*r) {
			keks[id] = true
		}
	}
	keep(v.Rotation)
	keep(v.Holder)
	if v.Pointer != nil && v.Pointer.RotationID != "" && !rotations[v.Pointer.RotationID] {
		last, err := s.Journal.Load(ctx, v.Pointer.RotationID)
		if err != nil {
			return nil, nil, err
		}
		keep(last.Rotation)
	}
	return rotations, keks, nil
}

// isOver reports whether a rotation is completed, rolled back or superseded, which it then
// stays (spec: EndedIsEnded). Of one without a record nothing is known.
func (s *Steps) isOver(ctx context.Context, id string) (bool, error) {
	v, err := s.Journal.Load(ctx, id)
	return err == nil && v.Rotation != nil && v.Rotation.Phase.Final(), err
}

// archiveEvent is the record of items that are removed. Two calls that remove the same items
// make the same record, and one of them fails.
func (s *Steps) archiveEvent(items []SpentItem) (audit.Event, error) {
	body := map[string]string{}
	var keys strings.Builder
	for _, i := range items {
		body[i.Key] = archivedFence
		if c := i.Checkpoint; c != nil {
			t := c.Tally
			t.Poison = nil
			t.DataKeys = nil                                                                                                     // of use for the next rotation's plan only
			b, err := json.Marshal(archivedCheckpoint{c.RotationID, c.Source, c.Pass, c.Segment, c.Proof, c.Done, c.SavedAt, t}) //nolint:gosec // a pass over rows, not a password
			if err != nil {
				return audit.Event{}, fmt.Errorf("archive %s: %w", i.Key, err)
			}
			body[i.Key] = string(b)
			fmt.Fprintf(&keys, "%s %d\n", i.Key, c.Rev)
		} else {
			fmt.Fprintln(&keys, i.Key)
		}
	}
	sum := sha256.Sum256([]byte(keys.String()))
	return audit.Event{
		ID: fmt.Sprintf("%s/%d/%s", journal.EventArchived, s.Journal.Now().UnixMilli(), hex.EncodeToString(sum[:8])), Type: journal.EventArchived, Step: "verify",
		Actor: s.Journal.Actor, Body: body,
	}, nil
}
