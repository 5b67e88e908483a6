package source

import (
	"context"
	"errors"

	"github.com/matter-ops/kms-rotation/kek"
)

// Fencing is which fence the rows of a kind are under. The fence is what makes an insert
// under a KEK impossible once that KEK is sealed, however late the writer is.
type Fencing struct {
	kind   fencing
	reason string // why none is needed
}

// fencing says who keeps the fence.
type fencing int

const (
	_ fencing = iota // not stated, which [Registry.Open] refuses
	byControlTable
	byDriver
	byNone
)

// ControlTable says that each insert checks, in its own transaction, the fence that the
// control table keeps for every KEK. The pointer's transaction opens that fence and the
// drain seals it, so such a driver has no code for it.
func ControlTable() Fencing { return Fencing{kind: byControlTable} }

// Own says that the driver keeps a fence in its own store: it implements [Fence], and each
// insert checks that fence in its own transaction.
func Own() Fencing { return Fencing{kind: byDriver} }

// Unfenced says that no writer can insert a row under a KEK after its seal, for the reason
// given, so that the rows need no fence.
func Unfenced(reason string) Fencing { return Fencing{kind: byNone, reason: reason} }

// Fence is the fence of a driver whose store cannot take part in a transaction of the
// control table. A shard that was never opened is shut. A shard that was sealed stays shut,
// whatever is called later. Both methods are idempotent: a step that dies is run again.
type Fence interface {
	// Open lets rows be inserted under a KEK, by any of its shards that is not sealed. It is
	// called before the pointer may name the KEK, so that a writer who follows the pointer
	// finds the fence open.
	Open(ctx context.Context, id kek.ID, shards int) error
	// Seal shuts one shard permanently, opened or not. When it returns, no insert that
	// checks this shard is under way or can begin. It is called after the pointer has left
	// the KEK and before a scan that must find every row.
	Seal(ctx context.Context, id kek.ID, shard int) error
}

// FenceOf returns the driver's own fence; nil if its rows are under the control table's, or
// need none.
func FenceOf(d Driver) Fence {
	if d.Traits().Fencing.kind != byDriver {
		return nil
	}
	f, _ := d.(Fence)
	return f
}

// checkFencing refuses a driver that states one thing and implements another.
func checkFencing(d Driver) error {
	_, fences := d.(Fence)
	switch f := d.Traits().Fencing; {
	case f.kind == byDriver && !fences:
		return errors.New("its driver states a fence of its own and has none")
	case f.kind != byDriver && fences:
		return errors.New("its driver has a fence of its own and does not state it")
	case f == Fencing{}, f == Unfenced(""):
		return errors.New("its driver does not state which fence the rows are under, or why they need none")
	}
	return nil
}
