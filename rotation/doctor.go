package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// ControlItems is the control table item by item, for what the other ports cannot read.
type ControlItems interface {
	// Examine reads every item consistently. One that cannot be decoded is an item with
	// an error: nothing stops at it. Items may be of different moments.
	Examine(ctx context.Context) ([]Item, error)
	// Repair makes the changes and appends ev in one transaction, at most 90 of them. It
	// returns [kek.ErrConflict] if an item is not what was read, and nothing was written.
	// With a [HeadItem] among the changes ev is the record after that head.
	Repair(ctx context.Context, changes []ItemChange, ev audit.Event) error
}

// ItemKey is the primary key of an item of the control table.
type ItemKey struct{ PK, SK string }

// String is the key as people write it: POINTER, or SOURCE/orders.
func (k ItemKey) String() string {
	if k.SK == "" || k.SK == noSortKey {
		return k.PK
	}
	return k.PK + "/" + k.SK
}

// ItemKind says what an item is; "" for one that nothing here writes.
type ItemKind string

// The kinds of items, and the types of their values.
const (
	ItemPointer      ItemKind = "POINTER"    // [kek.Pointer]
	ItemLock         ItemKind = "LOCK"       // [LockItem]
	ItemKEK          ItemKind = "KEK"        // [kek.KEK]
	ItemFence        ItemKind = "FENCE"      // [FenceItem]
	ItemRotation     ItemKind = "ROTATION"   // [kek.Rotation]
	ItemRegistry     ItemKind = "REGISTRY"   // [RegistryItem]
	ItemSource       ItemKind = "SOURCE"     // [kek.Source]
	ItemMark         ItemKind = "MARK"       // [kek.Mark]
	ItemHead         ItemKind = "AUDIT_HEAD" // [HeadItem]
	ItemRecord       ItemKind = "AUDIT"      // [audit.Entry]
	ItemAnchor       ItemKind = "ANCHOR"     // [AnchorState]
	ItemLease        ItemKind = "LEASE"      // [Lease]
	ItemCheckpoint   ItemKind = "CHECKPOINT" // [Checkpoint]
	ItemAnnouncement ItemKind = "ANNOUNCEMENT"
	ItemDrill        ItemKind = "DRILL"
	ItemApproval     ItemKind = "APPROVAL"
	ItemHealth       ItemKind = "HEALTH"
)

// Item is one item of the control table as it was read.
type Item struct {
	Key   ItemKey
	Kind  ItemKind
	ID    string // what of its kind it is: a KEK's id, a rotation's, a source's name
	Value any    // with an error as far as it could be read
	Err   error  // why it cannot be decoded; nil if it can
	Raw   any    // the adapter's own
}

// ofKind are the items with those that have no key of their kind made items of no kind: no
// program reads them, so nothing is concluded from them.
func ofKind(items []Item) []Item {
	out := slices.Clone(items)
	for n, i := range out {
		if i.misplaced() {
			out[n] = Item{Key: i.Key, Raw: i.Raw}
		}
	}
	return out
}

// misplaced reports an item of a kind that has one sort key under another, a KEK or a
// rotation without an id, and a record without a number.
func (i Item) misplaced() bool {
	switch i.Kind {
	case ItemKEK, ItemRotation:
		return i.Key.SK != noSortKey || i.ID == ""
	case ItemPointer, ItemLock, ItemRegistry, ItemHead, ItemAnchor, ItemAnnouncement, ItemDrill, ItemApproval, ItemHealth:
		return i.Key.SK != noSortKey
	case ItemRecord:
		return recordSeq(i.Key) == 0
	default:
		return false
	}
}

type (
	// LockItem is the lock of the one rotation that runs.
	LockItem struct{ RotationID string }
	// FenceItem is one shard of a KEK's write fence.
	FenceItem struct {
		KEK   kek.ID
		Shard int
		Open  bool // else sealed
	}
	// RegistryItem is the registry's revision.
	RegistryItem struct{ Rev int64 }
	// HeadItem is the head of the audit chain and how far it is in the bucket.
	HeadItem struct {
		Head        audit.Head
		Published   int64
		Generations audit.Generations // of records
	}
)

// ItemChange is one item of a repair. Condition: the item still is Was, attribute by
// attribute; nil: there is none.
type ItemChange struct {
	Key  ItemKey
	Was  *Item
	Put  any  // what is written in its place; nil: the item is removed
	Keep bool // the item is only a condition
}

// Finding is one item that is lost, damaged or set back.
type Finding struct {
	Item   string `json:"item"`
	Fault  string `json:"fault"`            // what is wrong
	From   string `json:"from,omitempty"`   // what it is rebuilt from
	Repair string `json:"repair,omitempty"` // what doctor does about it; "" if it does nothing
	Next   string `json:"next"`

	stage   stage
	changes []ItemChange
	body    map[string]string // what its record says beside the above
	event   string            // type of its record; "" for [EventRepaired]
}

// stage orders repairs. Those of one stage that belong together are one transaction.
type stage int

const (
	stageAudit    stage = iota // the records and their head: every other repair appends one
	stageRegistry              // pointer, KEKs, fences, rotations, lock, sources: one transaction
	stageAnchor
	stageRemoval // what costs little
)

// Types of the records that doctor makes.
const (
	EventRepaired   = audit.EventRepaired
	EventRecordLost = audit.EventRecordLost
)

// Diagnosis is what doctor found.
type Diagnosis struct {
	Findings []Finding `json:"findings"`           // that are there now
	SetBack  string    `json:"set_back,omitempty"` // how the control table was set back to an earlier time; "" if it was not
	Chain    string    `json:"chain"`              // which records the findings rest on
	Notes    []string  `json:"notes,omitempty"`    // what doctor does not judge, such as items that are not this project's
	Repaired []Finding `json:"repaired,omitempty"`
}

// Open are the findings that doctor does not repair.
func (d Diagnosis) Open() []Finding {
	var out []Finding
	for _, f := range d.Findings {
		if f.Repair == "" {
			out = append(out, f)
		}
	}
	return out
}

const noSortKey = "-"

// cmdRepair is the command that makes the repairs.
const cmdRepair = cmdDoctor + " --repair --confirm"

// Doctor examines the whole control table against the audit chain in the bucket and
// against KMS, and changes nothing.
func (s *Steps) Doctor(ctx context.Context) (Diagnosis, error) {
	d, _, err := s.diagnose(ctx)
	return d, err
}

// RepairControl makes every repair that [Steps.Doctor] names, each as a transaction on
// what was read, with its record; what has changed meanwhile is examined again. It can be
// repeated, and goes on where another call stopped. What is left is in the diagnosis.
func (s *Steps) RepairControl(ctx context.Context) (Diagnosis, error) {
	var repaired []Finding
	for range maxTries {
		d, seq, err := s.diagnose(ctx)
		d.Repaired = repaired
		if err != nil {
			return d, err
		}
		batches := batch(d.Findings)
		if len(batches) == 0 {
			if len(repaired) == 0 {
				return d, nil
			}
			return d, s.publish(ctx)
		}
		for _, b := range batches {
			err := s.Items.Repair(ctx, b.changes(), s.repairEvent(b, seq))
			if errors.Is(err, kek.ErrConflict) {
				break // somebody was faster: look again
			}
			if err != nil {
				return d, unavailable("control table", err)
			}
			repaired = append(repaired, b...)
		}
	}
	return Diagnosis{Repaired: repaired}, unavailable("control table", fmt.Errorf("repair: still %w after %d tries", kek.ErrConflict, maxTries))
}

// treatment is the findings that one transaction repairs.
type treatment []Finding

// maxChanges is how many items one transaction changes; DynamoDB takes 100, and the
// record and its head are two.
const maxChanges = 90

// batch puts the repairs in order, those of the registry into as few transactions as
// hold them.
func batch(all []Finding) []treatment {
	var out []treatment
	for st := stageAudit; st <= stageRemoval; st++ {
		var open treatment
		n := 0
		for _, f := range all {
			if f.stage != st || f.Repair == "" {
				continue
			}
			if len(open) > 0 && (st != stageRegistry || n+len(f.changes) > maxChanges) {
				out = append(out, open)
				open, n = nil, 0
			}
			open, n = append(open, f), n+len(f.changes)
		}
		if len(open) > 0 {
			out = append(out, open)
		}
	}
	return out
}

func (t treatment) changes() []ItemChange {
	var out []ItemChange
	for _, f := range t {
		for _, c := range f.changes { // two findings may be about one item
			i := slices.IndexFunc(out, func(o ItemChange) bool { return o.Key == c.Key })
			switch {
			case i < 0:
				out = append(out, c)
			case out[i].Keep:
				out[i] = c
			}
		}
	}
	return out
}

// repairEvent is the record of a repair that was decided on when the chain ended at seq.
func (s *Steps) repairEvent(t treatment, seq int64) audit.Event {
	ev := audit.Event{Type: EventRepaired, Step: "doctor", Actor: s.Actor, Body: map[string]string{}}
	var items, faults, from []string
	for _, f := range t {
		items, faults = append(items, f.Item), append(faults, f.Item+": "+f.Fault+"; "+f.Repair)
		if f.From != "" {
			from = append(from, f.From)
		}
		for k, v := range f.body {
			ev.Body[k] = v
		}
		if f.event != "" {
			ev.Type = f.event
		}
	}
	ev.ID = fmt.Sprintf("%s/%s/%d", ev.Type, items[0], seq)
	put(ev.Body, "item", strings.Join(items, ", "), "why", cut(strings.Join(faults, " | ")), "from", cut(strings.Join(unique(from), ", ")))
	return ev
}

func unique(all []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, s := range all {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
