// Package rotation is the control plane: the steps of one KEK rotation and the
// small interfaces they need. It knows no AWS SDK; adapters implement the
// interfaces, and memstore implements all of them for fault schedules.
//
// Every step obeys the same rules: read, compute the next state with a pure
// function of package kek, write it as one conditional transaction that appends
// its audit record, publish the record to the locked bucket, return. A step that
// dies anywhere is run again and finds out from what it reads how far it came.
// NoKeyOrphans and RetireAfterSwitch hold between any two writes.
package rotation

import (
	"context"
	"time"

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

// Vault is the write-once bucket of the audit chain.
type Vault interface {
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

// Key is what KMS says of a key.
type Key struct {
	ID      kek.ID
	ARN     string
	Enabled bool
	Usable  bool   // symmetric, ENCRYPT_DECRYPT, not pending deletion or import
	State   string // KMS's own word, for messages
	Multi   bool   // multi-Region
}

// KeyUse is who else uses a KMS key, and what a key made in its place will not have.
type KeyUse struct {
	Grants      []string  // one line each: grantee and operations, retiring principal if any
	Aliases     []string  // aliases that are not this project's own
	MultiRegion bool      // it is a multi-Region key
	Replicas    []string  // Regions of its replicas, for a multi-Region primary
	Policy      []string  // statements of its key policy that a new key does not have, by Sid or number
	LastUse     string    // operation of its last successful use; "" if KMS does not say
	LastUseAt   time.Time // zero if KMS does not say
	LastUseBy   string    // CloudTrail event id of it; "" if KMS does not say
}

// KeyAdmin creates and disables KEKs. Nothing here schedules a deletion.
type KeyAdmin interface {
	// Create makes a symmetric KMS key tagged with the rotation, the attempt and
	// the stack: in the account of old, which it follows, multi-Region if old is, and
	// with a key policy of its own. It has no idempotency token: the caller claims the
	// alias next.
	Create(ctx context.Context, rotationID string, attempt int, label string, old Key) (Key, error)
	// Use reads who else uses a key. An operation that this AWS does not have
	// (GetKeyLastUsage) leaves its fields empty; one that is denied is [ErrDenied].
	Use(ctx context.Context, id kek.ID) (KeyUse, error)
	// PolicyDifferences lists how the key policy of a key that Create has made differs from
	// the one that Create gives: each statement or action beyond it, each action that it
	// lacks. None means that they say the same.
	PolicyDifferences(ctx context.Context, id kek.ID) ([]string, error)
	// Claim gives the alias of (rotation, attempt) to id unless it has an owner,
	// and returns the owner's id: the arbiter between duplicate mints. An empty id
	// only asks; the answer is then "" if there is no owner.
	Claim(ctx context.Context, rotationID string, attempt int, id kek.ID) (kek.ID, error)
	// Describe returns [ErrNoKey] if KMS does not know the key.
	Describe(ctx context.Context, id kek.ID) (Key, error)
	// Disable is idempotent.
	Disable(ctx context.Context, id kek.ID) error
	// Tagged lists the keys tagged with the rotation; the listing may lag.
	Tagged(ctx context.Context, rotationID string) ([]kek.ID, error)
}

// Wrapper wraps and unwraps DEKs in KMS. encctx is the encryption context.
// Errors: [ErrKeyDisabled], [ErrUnwrap] (wrong key, wrong context, not a
// ciphertext), or anything else as transient.
type Wrapper interface {
	GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error)
	Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) (dek []byte, err error)
	ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error)
	// Identify unwraps without being told the key and returns which one it was: a
	// symmetric ciphertext of KMS names its key (KMS API reference, Decrypt, KeyId).
	Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, arn string, err error)
}

// Cipher seals and opens payloads under a plaintext DEK (32 bytes); encctx is
// bound as associated data.
type Cipher interface {
	Seal(dek, plaintext []byte, encctx map[string]string) ([]byte, error)
	Open(dek, ciphertext []byte, encctx map[string]string) ([]byte, error)
}

// Row is one item of a source that has any of the envelope's attributes. With a Defect
// it is unaccounted: it cannot be rewrapped, and it blocks the switch.
type Row struct {
	ID         string            // printable key, for reports
	Handle     any               // the adapter's own key and condition
	KEK        kek.ID            // the KEK it says it is wrapped under
	KeyARN     string            // as the row says it; "" if it names its KEK by id alone
	Epoch      int64             // pointer epoch of its last wrap; 0 if unknown
	WrappedDEK []byte            // KMS ciphertext blob; of format kms the data itself
	Ciphertext []byte            // only when the scan asked for payloads, and never of a whole row
	PlainSHA   string            // hex SHA-256 of the plaintext, corpus entries only; "" where it is no known cipher
	Context    map[string]string // KMS encryption context
	Bound      map[string]string // associated data of the payload: the context and what is bound beside it
	Whole      bool              // no payload of ours stands behind the wrapped bytes: an emergency rewraps only them
	Defect     string            // why it cannot be rewrapped; "" if it can
	Kind       Defect            // of the defect, to count by
}

// Defect is a kind of unaccounted item.
type Defect string

// The kinds of unaccounted items.
const (
	NoKEK         Defect = "no_kek_id"        // an envelope that names no KEK
	NoWrappedDEK  Defect = "no_wrapped_dek"   // without a data key
	NoCiphertext  Defect = "no_ciphertext"    // without a payload where the source has one
	CipherAlone   Defect = "ciphertext_only"  // a payload and nothing that says how to open it
	EpochAlone    Defect = "epoch_only"       // an epoch and no envelope
	WrongType     Defect = "wrong_type"       // an attribute of another type, such as base64 text
	UnknownForm   Defect = "kek_id_form"      // an alias, or no form of a key id at all
	UnknownKEK    Defect = "unknown_kek"      // the registry does not know the KEK
	RetiredKEK    Defect = "retired_kek"      // the registry says it is retired or was never used
	NoContext     Defect = "no_context"       // an attribute of the context is missing or cannot be bound
	NoRoom        Defect = "no_room"          // the item would pass 400 KB
	ForeignNumber Defect = "version_not_ours" // the version attribute is no number
	Damaged       Defect = "damaged"          // what the format holds cannot be read
)

// Rewrapped is what replaces a row's wrapping. Ciphertext is nil unless the
// payload was re-encrypted under a fresh DEK (emergency).
type Rewrapped struct {
	KEK        kek.ID
	Epoch      int64
	WrappedDEK []byte
	Ciphertext []byte
}

// ScanRequest asks for one page of a source, read consistently.
type ScanRequest struct {
	Segment, Total int    // which of how many parts
	Cursor         string // "" starts; else what the page before returned
	Limit          int    // rows at most, 0 for the adapter's choice
	Payload        bool   // return ciphertexts too
	Whole          bool   // read whole items, so that one without room for a rewrap is a defect
}

// Page is one page of a scan. Every item of it is one of Rows or counted in Other or
// Declared: none is left out.
type Page struct {
	Rows     []Row
	Other    int    // items that have none of the envelope's attributes
	Declared int    // items that the source's definition declares to be something else
	Next     string // cursor; "" at the end
}

// Source is one place that holds envelopes: a DynamoDB table or an S3 prefix.
type Source interface {
	Name() string
	// Segments is how many parts it can be scanned in when n are wished for.
	Segments(n int) int
	// Check fails with a [*Error] of kind SourceMisconfigured that names the
	// attribute or table; nothing is written. notes are what an operator should know
	// beforehand, such as a stream that will see every rewrap.
	Check(ctx context.Context) (notes []string, err error)
	// Rehearse shows that rows can be written, by a write on a condition that cannot
	// hold: it changes nothing. old is a row that was read.
	Rehearse(ctx context.Context, old Row) error
	// EncryptedBy returns the ARN of the KMS key that encrypts the place itself at rest;
	// "" if that is none of the account's own keys.
	EncryptedBy(ctx context.Context) (string, error)
	Scan(ctx context.Context, req ScanRequest) (Page, error)
	// Replace rewraps one row if it still is what was read (its KEK, its wrapped
	// DEK and, when the payload changes too, its ciphertext). False means it is
	// not: read it again. It never creates a row.
	Replace(ctx context.Context, old Row, with Rewrapped) (bool, error)
	// Reread returns the row as it is now, and false if it is gone.
	Reread(ctx context.Context, old Row, payload bool) (Row, bool, error)
}

// Labeler is a source whose rows can be told which KEK they are under.
type Labeler interface {
	// Label writes the KEK's id into a row that names none, or names one in another
	// form, if the row still is what was read. False means it is not: read it again. It
	// changes nothing else and never creates a row.
	Label(ctx context.Context, old Row, id kek.ID) (bool, error)
}

// Lease is one process's promise that it may write under a KEK.
type Lease struct {
	KEK     kek.ID
	Holder  string // unique per process
	Host    string
	PID     int
	Refs    int64 // in-flight references
	Expires time.Time
}

// Drainage is what the drain step needs: leases and the write fence.
type Drainage interface {
	// Leases reads consistently every lease on a KEK.
	Leases(ctx context.Context, id kek.ID) ([]Lease, error)
	// Revoke deletes a lease if it still expires when it was seen to; false means
	// that it was renewed or released meanwhile.
	Revoke(ctx context.Context, l Lease) (bool, error)
	// SealFence shuts one fence shard for good. Idempotent.
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
}

// Tally counts rows of one or many segments.
type Tally struct {
	Scanned     int64    `json:"scanned"`
	Rewrapped   int64    `json:"rewrapped"`
	Other       int64    `json:"other"`                // items with none of the envelope's attributes
	Declared    int64    `json:"declared"`             // items that the definition declares to be something else
	Quarantined int64    `json:"quarantined"`          // rows that cannot be rewrapped, unaccounted items
	Unwrapped   int64    `json:"unwrapped"`            // distinct data keys that were unwrapped under the new KEK, by worker
	Poison      []string `json:"quarantine,omitempty"` // ids of the first few quarantined ones, with the reason

	ByKEK  map[string]int64 `json:"by_kek,omitempty"`  // rows by the KEK that they name; census
	ByKind map[string]int64 `json:"by_kind,omitempty"` // unaccounted items by kind; census
}

// Checkpoints stores progress.
type Checkpoints interface {
	// LoadCheckpoint returns the zero progress if there is none.
	LoadCheckpoint(ctx context.Context, rotationID, source, pass string, segment int) (Checkpoint, error)
	// SaveCheckpoint stores c with Rev+1 if the stored revision is c.Rev, else
	// [kek.ErrConflict].
	SaveCheckpoint(ctx context.Context, c Checkpoint) error
	// ListCheckpoints returns every checkpoint of a rotation's pass over a source.
	ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]Checkpoint, error)
}
