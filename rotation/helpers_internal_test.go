package rotation

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

var midnight = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)

func at(minute int) time.Time { return midnight.Add(time.Duration(minute) * time.Minute) }

// errShelf is that of a service that does not answer.
var errShelf = errors.New("the shelf is closed")

// isError fails the test unless err is of a kind, about a field.
func isError(t *testing.T, name string, err error, kind journal.Kind, field string) {
	t.Helper()
	if typed := typedOf(err); typed == nil || typed.Kind != kind || typed.Field != field {
		t.Errorf("%s: %v, want %s of %s", name, err, kind, field)
	}
}

func typedOf(err error) *journal.Error {
	var typed *journal.Error
	errors.As(err, &typed)
	return typed
}

// young is an audit chain that nothing was recorded in.
type young struct {
	journal.Outbox
	journal.AuditBucket
}

func (young) Head(context.Context) (audit.Line, audit.Head, error) {
	return audit.Line{Chain: "line"}, audit.Head{}, nil
}

func (young) Get(context.Context, string) ([]byte, error) { return nil, journal.ErrNoRecord }

// describer is a key service that describes keys.
type describer struct {
	keyring.Admin
	keys   map[kek.ID]keyring.Key
	broken string
}

func (d describer) Describe(_ context.Context, id kek.ID) (keyring.Key, error) {
	if d.broken == string(id) {
		return keyring.Key{}, errShelf
	}
	k, ok := d.keys[id]
	if !ok {
		return keyring.Key{}, fmt.Errorf("%s: %w", id, journal.ErrNoKey)
	}
	return k, nil
}
