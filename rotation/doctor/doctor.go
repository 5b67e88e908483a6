// Package doctor examines the control table item by item against the audit chain in the
// bucket and against KMS, and rebuilds what is lost or damaged.
//
// Every transition appends an audit record that names the new state of pointer, KEKs,
// rotation and sources. So replaying the chain (replay.go) gives the state that the table
// should have, and each difference is a finding (exam.go). A table that was restored to an
// earlier time has forgotten records that are still in the bucket (chain.go).
//
// Invariants (spec/doctor.tla, spec/setback.tla, docs/adr/0014-doctor.md):
//
//   - A repair never retires a KEK whose KMS key is enabled, and never disables a key. In
//     doubt a KEK becomes sealed: rows under it stay readable, and the next rotation moves
//     them.
//   - A pointer is rebuilt only to a KEK whose KMS key is enabled and usable.
//   - A repair is conditional on every item being what was examined, and is one transaction
//     with its audit record.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// Doctor examines and repairs a control table.
type Doctor struct {
	Journal     *journal.Journal
	Items       Items
	Keys        Keys
	Anchor      *anchor.Anchor // nil: the audit chain is in no public log
	FenceShards int            // fence items of a KEK that is registered now
	DeleteHold  time.Duration  // how long a retired KEK must not be deleted
}

// Keys is the part of [keyring.Admin] that a Doctor uses. It cannot change a key.
type Keys interface {
	Describe(ctx context.Context, id kek.ID) (keyring.Key, error)
	Tagged(ctx context.Context, rotationID string) ([]kek.ID, error)
}

// Items is the control table item by item. The other ports return an error at the first
// damaged item; this one also reads damaged items.
type Items interface {
	// Examine reads every item consistently. An item that cannot be decoded is returned with
	// an error and does not stop the read. It is a scan and not a snapshot: items may be of
	// different moments, see [Doctor.ExamineTable].
	Examine(ctx context.Context) ([]Item, error)
	// Repair makes at most 90 changes and appends ev in one transaction. It returns
	// [kek.ErrConflict] if an item is not what was read; then nothing was written. If a
	// [HeadItem] is among the changes, ev is the record after that head.
	Repair(ctx context.Context, changes []ItemChange, ev audit.Event) error
}

// ItemKey is the primary key of an item of the control table.
type ItemKey struct{ PK, SK string }

// String returns the key as people write it: POINTER, or SOURCE/orders.
func (k ItemKey) String() string {
	if k.SK == "" || k.SK == noSortKey {
		return k.PK
	}
	return k.PK + "/" + k.SK
}

// ItemKind says what an item is; "" for an item that this project does not write.
type ItemKind string

// The kinds of items, and the types of their values.
const (
	ItemPointer      ItemKind = "POINTER"    // [kek.Pointer]
	ItemLock         ItemKind = "LOCK"       // [LockItem]
	ItemKEK          ItemKind = "KEK"        // [kek.KEK]
	ItemFence        ItemKind = "FENCE"      // [FenceItem] of rows
	ItemKeyFence     ItemKind = "DEKFENCE"   // [FenceItem] of records of data keys
	ItemRotation     ItemKind = "ROTATION"   // [kek.Rotation]
	ItemRegistry     ItemKind = "REGISTRY"   // [RegistryItem]
	ItemSource       ItemKind = "SOURCE"     // [kek.Source]
	ItemMark         ItemKind = "MARK"       // [kek.Mark]
	ItemHead         ItemKind = "AUDIT_HEAD" // [HeadItem]
	ItemRecord       ItemKind = "AUDIT"      // [audit.Entry]
	ItemAnchor       ItemKind = "ANCHOR"     // [anchor.State]
	ItemLease        ItemKind = "LEASE"      // [Lease]
	ItemCheckpoint   ItemKind = "CHECKPOINT" // [Checkpoint]
	ItemAnnouncement ItemKind = "ANNOUNCEMENT"
	ItemDrill        ItemKind = "DRILL"
	ItemApproval     ItemKind = "APPROVAL"
	ItemHealth       ItemKind = "HEALTH"
	ItemPause        ItemKind = "PAUSE"
)

// Item is one item of the control table as it was read.
type Item struct {
	Key   ItemKey
	Kind  ItemKind
	ID    string // which of its kind it is: a KEK's id, a rotation's id, a source's name
	Value any    // the decoded value; if Err is set, as far as it could be decoded
	Err   error  // why it cannot be decoded; nil if it can
	Raw   any    // as the adapter read it, for the condition of a repair
}

// dropMisplaced returns the items with the kind removed from those whose key is not one of
// their kind. No program reads such an item, so nothing is concluded from it.
func dropMisplaced(items []Item) []Item {
	out := slices.Clone(items)
	for n, i := range out {
		if i.isMisplaced() {
			out[n] = Item{Key: i.Key, Raw: i.Raw}
		}
	}
	return out
}

// isMisplaced reports an item with the wrong sort key for its kind, a KEK or rotation without
// an id, or a record without a number.
func (i Item) isMisplaced() bool {
	switch i.Kind {
	case ItemKEK, ItemRotation:
		return i.Key.SK != noSortKey || i.ID == ""
	case ItemPointer, ItemLock, ItemRegistry, ItemHead, ItemAnchor, ItemAnnouncement, ItemDrill, ItemApproval, ItemHealth, ItemPause:
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
	// FenceItem is one shard of one of a KEK's two fences.
	FenceItem struct {
		KEK     kek.ID
		Shard   int
		Open    bool // else sealed
		Records bool // the fence is that of records, otherwise that of rows
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

// Stored is the value of an item that can check itself.
type Stored interface{ CheckStored() error }

// ItemChange is the change of one item in a repair. It is conditional on the item still being
// Was, attribute by attribute, or on there being none if Was is nil.
type ItemChange struct {
	Key  ItemKey
	Was  *Item
	Put  any  // the new value; nil: the item is removed
	Keep bool // the item is not changed, only its condition counts
}

// Finding is one item that is lost, damaged or set back.
type Finding struct {
	Item   string       `json:"item"`
	Fault  string       `json:"fault"`            // what is wrong
	From   string       `json:"from,omitempty"`   // what it is rebuilt from
	Repair string       `json:"repair,omitempty"` // what doctor does about it; "" if it cannot repair it
	Next   journal.Next `json:"-"`
	Advice string       `json:"next"` // what Next is at the edge that shows the finding, which writes it

	stage   stage
	changes []ItemChange
	body    map[string]string // what its record says besides these fields
	event   string            // type of its record; "" for [EventRepaired]
}

// Note is what doctor saw and does not judge.
type Note struct {
	Text string       `json:"text"`
	Next journal.Next `json:"-"` // zero if nothing is to be done
}

// stage orders repairs.
type stage int

const (
	stageAudit    stage = iota // the records and their head: every other repair appends one
	stageRegistry              // pointer, KEKs, fences, rotations, lock, sources: one transaction
	stageAnchor
	stageRemoval // damaged items whose loss costs little, see removals
)

// Types of the records that doctor makes.
const (
	EventRepaired   = audit.EventRepaired
	EventRecordLost = audit.EventRecordLost
)

// Diagnosis is what doctor found.
type Diagnosis struct {
	Findings []Finding `json:"findings"`           // what is wrong now
	SetBack  string    `json:"set_back,omitempty"` // how the control table was set back to an earlier time; "" if it was not
	Chain    string    `json:"chain"`              // which records the findings rest on
	Notes    []Note    `json:"notes,omitempty"`    // what doctor does not judge, such as items that are not this project's
	Repaired []Finding `json:"repaired,omitempty"`
}

// Open returns the findings that doctor cannot repair.
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

// ExamineTable examines the whole control table against the audit chain in the bucket and
// against KMS. It changes nothing. The head of the chain is read before and after the table:
// if it is the same, no transition came between, so all items are of one moment.
func (doc *Doctor) ExamineTable(ctx context.Context) (Diagnosis, error) {
	d, _, err := doc.diagnoseTable(ctx)
	return d, err
}

// RepairTable makes every repair that [Doctor.ExamineTable] names. Each is one transaction,
// conditional on what was read, with its audit record. If an item has changed meanwhile the
// table is examined again. The call can be repeated and continues where another stopped.
// The findings that remain are in the diagnosis.
func (doc *Doctor) RepairTable(ctx context.Context) (Diagnosis, error) {
	var repaired []Finding
	for range journal.MaxTries {
		d, seq, err := doc.diagnoseTable(ctx)
		d.Repaired = repaired
		if err != nil {
			return d, err
		}
		batches := batchRepairs(d.Findings)
		if len(batches) == 0 {
			if len(repaired) == 0 {
				return d, nil
			}
			return d, doc.Journal.Publish(ctx)
		}
		for _, b := range batches {
			err := doc.Items.Repair(ctx, b.listChanges(), doc.repairEvent(b, seq))
			if errors.Is(err, kek.ErrConflict) {
				break // an item changed since it was examined: examine again
			}
			if err != nil {
				return d, journal.WrapUnavailable("control table", err)
			}
			repaired = append(repaired, b...)
		}
	}
	return Diagnosis{Repaired: repaired}, journal.WrapUnavailable("control table", fmt.Errorf("repair: still %w after %d tries", kek.ErrConflict, journal.MaxTries))
}

// treatment is a list of findings that one transaction repairs.
type treatment []Finding

// maxChanges bounds the items that one transaction changes. DynamoDB takes 100 (API
// reference, TransactWriteItems), and the audit record and the head are two of them.
const maxChanges = 90

// batchRepairs orders the repairs by stage. Repairs of the registry share transactions, as
// few as can hold them, because pointer, KEKs and rotation must agree at every moment.
func batchRepairs(all []Finding) []treatment {
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

// listChanges returns the changes of a treatment, each item once, as DynamoDB requires: a
// change wins over a mere condition.
func (t treatment) listChanges() []ItemChange {
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

// repairEvent returns the audit record of a repair that was decided when the chain ended at
// seq. seq is part of its id, so the same repair can be recorded again later.
func (doc *Doctor) repairEvent(t treatment, seq int64) audit.Event {
	ev := audit.Event{Type: EventRepaired, Step: "doctor", Actor: doc.Journal.Actor, Body: map[string]string{}}
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
	journal.AddPairs(ev.Body, "item", strings.Join(items, ", "), "why", journal.CutText(strings.Join(faults, " | ")), "from", journal.CutText(strings.Join(dropRepeats(from), ", ")))
	return ev
}

// dropRepeats returns the strings without repetitions, in their order.
func dropRepeats(all []string) []string {
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
