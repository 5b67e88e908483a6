package envelope

import (
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// errBackoff reports that the pointer was not read because the last read failed less than
// retryPointer ago.
var errBackoff = errors.New("reading it failed a moment ago")

// The errors that callers may test for with [errors.Is].
var (
	// ErrClosed reports a call after [Client.Close].
	ErrClosed = errors.New("the envelope client is closed")
	// ErrStalePointer reports that the control table could not be read for longer
	// than LeaseTTL, so the current KEK is not known.
	ErrStalePointer = errors.New("the pointer to the current KEK could not be read")
	// ErrFenced reports a write that was refused at every try although it was sealed
	// under the KEK that the pointer names: its fence is not open.
	ErrFenced = errors.New("the write fence of the current KEK is not open")
	// ErrContended reports a row that others changed at every try.
	ErrContended = errors.New("others wrote at every try")
	// ErrExists reports an insert of a row that is there already.
	ErrExists = errors.New("the row exists already")
	// ErrNotFound reports a row that is not there.
	ErrNotFound = errors.New("no such row")
	// ErrNoEnvelope reports an item that is not an envelope, or a broken one.
	ErrNoEnvelope = errors.New("the item is not an envelope")
	// ErrInvalidItem reports an item that was not written because a read would not return
	// it unchanged: an attribute holds text that is not UTF-8, which the SDK would replace;
	// an attribute that the table's context or bind names is missing; or an attribute has
	// the name of one of the envelope's.
	ErrInvalidItem = errors.New("the item cannot be stored as it is")
	// ErrKeyChanged reports a change of [Table.Update] that alters or removes a key
	// attribute. Nothing was written.
	ErrKeyChanged = errors.New("the change alters the row's key")
	// ErrOrphanedKey reports a row whose KEK is retired or unknown to the registry. It
	// must never happen. The metric orphaned_key_reference counts it; set an alarm on it.
	ErrOrphanedKey = errors.New("orphaned key reference: the KEK is retired or unknown")
	// ErrUnknownKEK is the [ErrOrphanedKey] of a row whose KEK is not in the registry, is
	// there under another ARN, or has not been in use yet. KMS is not called: a person who
	// can write to the table can name any key.
	ErrUnknownKEK = fmt.Errorf("%w: the registry knows no such KEK that rows may name", ErrOrphanedKey)
	// ErrUnknownDEK is the [ErrOrphanedKey] of a keyed row whose data key has no record in the
	// key table, after both were read again. The record may have been removed by a mistake:
	// the audit bucket has a copy of it, from which matter ops doctor puts it back.
	ErrUnknownDEK = fmt.Errorf("%w: the key table has no record of the data key", ErrOrphanedKey)
	// ErrBadRecord reports a record of a data key that is damaged, or that does not belong to
	// the row that names it: it was made in another epoch or for another encryption context.
	ErrBadRecord = errors.New("the record of the data key does not belong to the row")
	// ErrKeyUnusable reports a KEK that is disabled or deleted in KMS, although the
	// registry says that rows may name it.
	ErrKeyUnusable = errors.New("KMS does not let the KEK be used")
	// ErrContextMismatch reports a wrapped DEK that KMS refuses to unwrap: it was wrapped
	// with another encryption context or under another KEK, or it was altered.
	ErrContextMismatch = errors.New("the wrapped data key does not belong to this KEK and encryption context")
	// ErrAltered reports a payload that does not open under its data key.
	ErrAltered = aead.ErrOpen
	// ErrFormat reports a payload whose format is not known.
	ErrFormat = aead.ErrFormat
	// ErrNotApproved reports a stream in a process with GODEBUG=fips140=only. Segments have
	// counters as nonces, which that mode does not let a program choose.
	ErrNotApproved = errors.New("streams are not available with GODEBUG=fips140=only")
)

// kmsError adds the operation and the KEK to an error, and classifies it. It drops the
// text of a refused unwrap, which may quote the request.
func kmsError(op string, id kek.ID, err error) error {
	var (
		disabled *types.DisabledException
		state    *types.KMSInvalidStateException
		gone     *types.NotFoundException
		invalid  *types.InvalidCiphertextException
		other    *types.IncorrectKeyException
	)
	switch {
	case errors.As(err, &disabled), errors.As(err, &state), errors.As(err, &gone):
		return fmt.Errorf("kms %s, KEK %s: %w: %w", op, id, ErrKeyUnusable, err)
	case errors.As(err, &invalid), errors.As(err, &other):
		return fmt.Errorf("kms %s, KEK %s: %w", op, id, ErrContextMismatch)
	default:
		return fmt.Errorf("kms %s, KEK %s: %w", op, id, err)
	}
}
