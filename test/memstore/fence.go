package memstore

import (
	"context"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// ownFence is the fence of a table that the control table's does not cover. A shard that is
// not in it is shut.
type ownFence map[shard]fenceState

type fenceState int

const (
	_ fenceState = iota // never opened
	shardOpen
	shardSealed
)

// fenced is a table behind a fence of its own.
type fenced struct{ *Table }

// NewFencedTable adds an empty table of rows, behind a fence of its own.
func (w *World) NewFencedTable(name string) *Table {
	t := w.NewTable(name)
	t.fence = ownFence{}
	return t
}

// Traits implements [source.Driver].
func (f fenced) Traits() source.Traits {
	t := f.Table.Traits()
	t.Fencing = source.Own()
	return t
}

// Open implements [source.Fence].
func (f fenced) Open(ctx context.Context, id kek.ID, shards int) error {
	return f.w.call(ctx, "Fence.Open", func() error {
		for n := range shards {
			if f.fence[shard{id, n}] != shardSealed {
				f.fence[shard{id, n}] = shardOpen
			}
		}
		return nil
	}, f.name, id, shards)
}

// Seal implements [source.Fence].
func (f fenced) Seal(ctx context.Context, id kek.ID, n int) error {
	return f.w.call(ctx, "Fence.Seal", func() error {
		f.fence[shard{id, n}] = shardSealed
		return nil
	}, f.name, id, n)
}

// fenceOpen reports whether rows may be inserted under a KEK by a shard of it.
func (t *Table) fenceOpen(at shard) bool {
	if t.fence != nil {
		return t.fence[at] == shardOpen
	}
	sealed, opened := t.w.store.fences[at]
	return opened && !sealed
}
