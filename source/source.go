// Package source is the contract between a rotation and the places that hold envelopes:
// what a driver of one kind of place promises, and the registry of the kinds.
// docs/adding-a-source.md is the guide for a new driver, test/sourcetest the suite that
// every driver passes.
//
// Invariants that a driver upholds (spec/rotation.tla): a scan sees every item that is in
// the place the whole time, and reports each as a row, as Other or as Declared; a row is
// replaced only if it still is what was read, and never created, so that NoKeyOrphans
// cannot break by bringing back what somebody deleted; and rows that applications insert
// are under a fence, see [Fencing].
package source

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Driver is one place that holds envelopes, such as a table or a prefix of a bucket. It is
// safe for concurrent use, and opening it sends no request.
type Driver interface {
	// Name is the name that the place is registered under.
	Name() string
	// Traits is the same for every place of a kind.
	Traits() Traits
	// Segments returns in how many parts the place is scanned if n are requested: 1 to n.
	Segments(n int) int
	// Check reads the description of the place and its first items, and writes nothing.
	// notes tell the operator what to expect, such as a stream that will see every rewrap.
	// An [*Error] says what a person has to correct; any other error is worth another try.
	Check(ctx context.Context) (notes []string, err error)
	// Rehearse shows the permission to write rows by a write whose condition cannot hold, so
	// that nothing changes. old is a row that was read.
	Rehearse(ctx context.Context, old Row) error
	// EncryptedBy returns the ARN of the KMS key that encrypts the place itself at rest; ""
	// if no key of the account does.
	EncryptedBy(ctx context.Context) (string, error)
	// Scan reads one page. It is strongly consistent: an item that was written before the
	// scan of a segment began, and is not deleted, is on one of its pages. A cursor stays
	// valid while a rotation may halt, which is days, and another place refuses it.
	Scan(ctx context.Context, req ScanRequest) (Page, error)
	// Replace rewraps one row if it still is what was read: its KEK, its wrapped DEK and, if
	// the payload changes too, its ciphertext. False means that it is not: the caller reads
	// it again. Replace never creates a row. The condition of a change of payload to or of a
	// keyed row covers the ciphertext, and an epoch that is not later than the new one. No
	// row becomes embedded by it: that needs a transaction with the fence.
	Replace(ctx context.Context, old Row, with Rewrapped) (bool, error)
	// Reread returns the row as it is now, and false if it is gone. A row that has become one
	// of the other kind, embedded or keyed, counts as gone.
	Reread(ctx context.Context, old Row, payload bool) (Row, bool, error)
}

// Labeler is a driver that can write into a row which KEK it is under, so that rows which were
// written without this project can be adopted.
type Labeler interface {
	// Label writes the KEK's id into a row that names none, or names one in another form, if
	// the row still is what was read. False means that it is not: the caller reads it again.
	// Label changes nothing else and never creates a row.
	Label(ctx context.Context, old Row, id kek.ID) (bool, error)
}

// Keyer is a driver whose rows may be keyed: they name a data key of the key table instead of
// carrying one. A driver that is not a Keyer has embedded rows alone.
type Keyer interface {
	// Kinds says which kinds of rows the definition of the place allows. A scan finds embedded
	// rows in any case.
	Kinds() (keyed, embedded bool)
}

// Converter is a driver that can turn rows of one kind into the other: embedded rows into keyed
// ones by [Driver].Replace, keyed rows into embedded ones by Embed.
type Converter interface {
	Keyer
	// WritesKeyed reports whether the definition of the place says that keyed rows are written.
	WritesKeyed() bool
	// Embed makes a keyed row an embedded one if it still is what was read and is not of a later
	// epoch than with's, while a shard of the fence for rows of with's KEK is open. False means
	// that the row is not what was read. [ErrFenced]: the fence is shut; [ErrBusy]: another
	// transaction holds the row or the shard.
	Embed(ctx context.Context, old Row, with Rewrapped, shard int) (bool, error)
}

// DataKey is a data key that is about to be made.
type DataKey struct {
	ID      [16]byte          // random
	Context map[string]string // the encryption context of the rows that will name it
	KEK     kek.ID
	Epoch   int64     // of the pointer that named the KEK
	Made    time.Time // UTC
	Shard   int       // of the KEK's fence, which its creation checks
}

// SpreadShard returns the shard of a fence that the creation of a data key checks which replaces
// another one. Ids of data keys are random, so many such creations check all shards alike.
func SpreadShard(replaced string, shards int) int {
	h := fnv.New32a()
	h.Write([]byte(replaced))
	return int(int64(h.Sum32()) % int64(max(shards, 1)))
}

// Keeper is a driver of records of data keys ([Traits].DataKeys).
type Keeper interface {
	// ListCopies returns the copies of a record, the newest last, as a scan returns those of
	// one that is missing.
	ListCopies(ctx context.Context, old Row) ([]Row, error)
	// PutBack gives the record that a scan returned, old, the wrapping with of its copy, while
	// the fence of with's KEK is open. If old is Missing the record is created. Otherwise it is
	// replaced if it still is what was read. False means that it is not.
	PutBack(ctx context.Context, old, copied Row, with Rewrapped) (bool, error)
	// FindKey returns the record of a data key, and the epoch in which the key was made; false
	// if there is none. A record with a Defect says no epoch.
	FindKey(ctx context.Context, dekID string) (record Row, born int64, ok bool, err error)
	// NewKey returns the record of a data key that does not exist yet, without a wrapping: its
	// Context is what KMS must bind to the key.
	NewKey(k DataKey) Row
	// CreateKey stores the record of a new data key, with its wrapping, while the fence of its
	// KEK is open. A row may name it after that. False means that there is one of its id. The
	// errors are [ErrFenced] and [ErrBusy] as of [Converter].Embed.
	CreateKey(ctx context.Context, record Row, wrapped []byte) (bool, error)
}

// Sizer is a driver that knows the approximate size of its place without reading the items.
type Sizer interface {
	Size(ctx context.Context) (Size, error)
}

// Size is the approximate size of a place.
type Size struct {
	Items   int64
	Bytes   int64 // 0: not known
	AtLeast bool  // there may be more items than that

	WritesPerSecond float64  // write units a second that it takes without throttling; 0: not known
	ReadsPerSecond  float64  // read units
	Copies          []Copy   // what each rewrap is written to beside the item
	Readers         []string // who sees each rewrap, such as a stream, for people
}

// Copy is a second place to which the driver's service writes each rewrap: an index or a
// replica.
type Copy struct {
	Name  string
	Units float64 // write units of each rewrap; 0: as many as the item's own
	Times float64 // how often they are charged
}

// Traits is what a driver states about its kind, so that callers need not compare kinds.
type Traits struct {
	Noun    string  // what a person calls such a place: "table"
	Fencing Fencing // which fence the rows are under
	Billing Billing // what AWS charges for its requests

	PageItems int   // items of a page if the caller does not say
	PageBytes int64 // bytes of a page at most; 0: not bounded

	// DataKeys says that the rows are the records of the data keys that keyed rows of other
	// places name. Such a driver keeps a copy of each version of a record elsewhere, which
	// nobody can delete. A scan that asks for what is missing also returns each copy whose
	// record is gone.
	DataKeys bool

	// KnownPlaintexts says that the rows are known ciphers: each has a PlainSHA, dual unwrap
	// opens all of them under every new KEK, and a rotation does not start without one.
	KnownPlaintexts bool
}

// Billing is how a request is charged, for the estimate of matter ops kms-plan.
type Billing int

// The ways to charge.
const (
	Free           Billing = iota // by the hour: requests cost nothing more
	DynamoDBByUnit                // request units, by the bytes of a row
	S3ByRequest                   // one GET for each row read, one PUT for each row written
)
