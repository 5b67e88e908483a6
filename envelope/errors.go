package envelope

import (
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// errBackoff reports that the pointer was not read because reading it has just
// failed.
var errBackoff = errors.New("reading it failed a moment ago")

// What callers may branch on.
var (
	// ErrClosed reports a client that was closed.
	ErrClosed = errors.New("the envelope client is closed")
	// ErrStalePointer reports that the control table could not be read for longer
	// than a lease lives, so that the current KEK is not known.
	ErrStalePointer = errors.New("the pointer to the current KEK could not be read")
	// ErrFenced reports a write that was refused again and again although it was
	// sealed under the KEK that the pointer names: its fence is not open.
	ErrFenced = errors.New("the write fence of the current KEK is not open")
	// ErrContended reports a row or transaction that others changed at every try.
	ErrContended = errors.New("others wrote at every try")
	// ErrExists reports an insert of a row that is there already.
	ErrExists = errors.New("the row exists already")
	// ErrNotFound reports a row that is not there.
	ErrNotFound = errors.New("no such row")
	// ErrNoEnvelope reports an item that is not an envelope, or a broken one.
	ErrNoEnvelope = errors.New("the item is not an envelope")
	// ErrInvalidItem reports an item that was not written because it could not be
	// read back as it was given: an attribute holds text that is not UTF-8, which the
	// SDK would store otherwise, or lacks what the table's context or bind names, or is
	// one of those that make a row an envelope.
	ErrInvalidItem = errors.New("the item cannot be stored as it is")
	// ErrKeyChanged reports a change of [Table.Update] that alters or removes a key
	// attribute. Nothing was written.
	ErrKeyChanged = errors.New("the change alters the row's key")
	// ErrOrphanedKey reports a row whose KEK is retired or unknown to the registry.
	// It must never happen; metric orphaned_key_reference counts it.
	ErrOrphanedKey = errors.New("orphaned key reference: the KEK is retired or unknown")
	// ErrUnknownKEK is the [ErrOrphanedKey] of a row whose KEK the registry does not
	// know, knows under another ARN, or knows as one that nothing is wrapped under yet.
	// KMS is not asked: a person who can write to the table can name any key.
	ErrUnknownKEK = fmt.Errorf("%w: the registry knows no such KEK that rows may name", ErrOrphanedKey)
	// ErrKeyUnusable reports a KEK that KMS does not let be used although the
	// registry says that rows may name it.
	ErrKeyUnusable = errors.New("KMS does not let the KEK be used")
	// ErrContextMismatch reports a wrapped DEK that KMS does not unwrap: it was
	// wrapped for another encryption context or under another KEK, or it was altered.
	ErrContextMismatch = errors.New("the wrapped data key does not belong to this KEK and encryption context")
	// ErrAltered reports a payload that does not open under its data key.
	ErrAltered = aead.ErrOpen
	// ErrFormat reports a payload of no known format.
	ErrFormat = aead.ErrFormat
)

// kmsError names the operation and the KEK of a failure, and sorts it.
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
