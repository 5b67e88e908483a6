package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Revisioned is a document of the control table that is saved only over the revision that
// was read.
type Revisioned[T any] interface {
	// NextRevision returns the document with the revision that a save gives it.
	NextRevision() T
}

// Documents is how a kind of document is read and written. Load returns one without a
// revision if there is none. Save returns [kek.ErrConflict] if the stored revision is not
// the document's, and appends ev to the outbox in the same transaction.
type Documents[T Revisioned[T]] struct {
	Kind string // for errors
	Load func(ctx context.Context, id string) (T, error)
	Save func(ctx context.Context, doc T, ev audit.Event) error
}

// ReviseDocument reads a document, lets next change it, saves it with its record, and
// publishes the record. It repeats all of that if another writer was faster. next returns
// [kek.ErrDone] if nothing is to be saved; then the document is returned as it is.
func ReviseDocument[T Revisioned[T]](ctx context.Context, j *Journal, docs Documents[T], id string, next func(T) (T, audit.Event, error)) (T, error) {
	var doc T
	err := RetryConflicts(docs.Kind, kek.ErrConflict, func() error {
		was, err := docs.Load(ctx, id)
		if err != nil {
			return WrapUnavailable(docs.Kind, err)
		}
		var ev audit.Event
		doc, ev, err = next(was)
		if errors.Is(err, kek.ErrDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := docs.Save(ctx, doc, ev); err != nil {
			return WrapUnavailable("control table", err)
		}
		doc = doc.NextRevision()
		return nil
	})
	if err != nil {
		return doc, err
	}
	return doc, j.Publish(ctx)
}

// MaxTries bounds how often a write is repeated that another writer has made impossible.
const MaxTries = 12

// RetryConflicts calls try again as long as it returns [kek.ErrConflict]: what it has read
// is not what is stored any more. After MaxTries it returns gaveUp as an error of field.
func RetryConflicts(field string, gaveUp error, try func() error) error {
	for range MaxTries {
		if err := try(); !errors.Is(err, kek.ErrConflict) {
			return err
		}
	}
	return WrapUnavailable(field, gaveUp)
}

// ErrStillChanged says that every try met a conflict.
var ErrStillChanged = fmt.Errorf("still %w after %d tries", kek.ErrConflict, MaxTries)
