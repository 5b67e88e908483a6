package journal

import (
	"context"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Registry is the control table as the steps see it.
type Registry interface {
	// Load reads the pointer, the lock, the rotation's record and the registry entries
	// that these name, as one snapshot: all of them as of one moment. An absent item is
	// nil or empty, no error; an absent table is [ErrNoControlTable].
	Load(ctx context.Context, rotationID string) (kek.View, error)
	// LoadAll is Load with the whole registry: every KEK, the registered sources by
	// name, the marks of writers by table, and the registry's revision. If rotationID is
	// "" it reads the record of the rotation that holds the lock. What it adds to Load may
	// be of other moments: the revision is read first and the lock before the KEKs, and
	// changes of the registry condition on the revision.
	LoadAll(ctx context.Context, rotationID string) (kek.View, error)
	// Apply writes a change and appends ev to the outbox in one transaction. It
	// returns [kek.ErrConflict] if a condition failed and nothing was written; any
	// other error leaves open whether it was. Losing the race for the chain's head
	// alone is retried inside.
	Apply(ctx context.Context, c kek.Change, ev audit.Event) error
}

// Outbox holds the audit records until they are in the bucket.
type Outbox interface {
	// Unpublished returns the records not yet marked published, oldest first, and where
	// they go.
	Unpublished(ctx context.Context) ([]audit.Entry, audit.Line, error)
	// MarkPublished notes that every record up to seq is in the bucket. It never
	// goes back.
	MarkPublished(ctx context.Context, seq int64) error
	// Head returns the chain and its head in the control table.
	Head(ctx context.Context) (audit.Line, audit.Head, error)
	// Begin appends ev and lets a generation of records begin after those of at, in one
	// transaction; [kek.ErrConflict] if there are others now, or if the chain's head is not
	// head: records were appended, or the table was restored (spec: Begin in outbox.tla).
	Begin(ctx context.Context, at audit.Line, head audit.Head, g audit.Generation, ev audit.Event) error
}

// AuditBucket is the write-once bucket of the audit chain.
type AuditBucket interface {
	// Put stores a record under a key with compliance retention, if nothing is
	// there. The same bytes already there is success; other bytes are
	// [*audit.Taken].
	Put(ctx context.Context, key string, e audit.Entry) error
	// Get returns the bytes stored under the key of a record; [ErrNoRecord] if there
	// are none.
	Get(ctx context.Context, key string) ([]byte, error)
	// Check fails unless the bucket is versioned and has Object Lock enabled.
	Check(ctx context.Context) error
}

// Meter counts for the alarms.
type Meter interface{ Count(name string, n int64) }

// Notifier tells people.
type Notifier interface {
	// TellPeople says what happened, what is safe and what to do next.
	TellPeople(ctx context.Context, n Notice) error
}

// EventArchived is the type of a record that keeps items of the control table which were
// removed with it: its body has each under its key. Package rotation writes and reads it.
const EventArchived = "control_items_archived"

// Recorder appends records that belong to no change of the control table.
type Recorder interface {
	Record(ctx context.Context, ev audit.Event) error
}
