package rotation

import (
	"context"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// The fence of the control table is opened by the transaction that moves the pointer
// ([kek.Change].Opens) and sealed by [Drainage]. A driver whose store cannot take part in
// such a transaction keeps a fence of its own ([source.Fence]), for which the steps uphold
// the same order by separate calls: it is open before the pointer names the KEK, and sealed
// after the pointer has left it and before any scan that must find every row. Both calls
// are idempotent, so a step that dies between them is run again.

// openFences opens the drivers' own fences for a KEK that the pointer is about to name.
func openFences(ctx context.Context, sources []frozenSource, k kek.KEK) error {
	for _, src := range ownFences(sources) {
		fence := source.FenceOf(src.Driver)
		if err := fence.Open(ctx, k.ID, k.FenceShards); err != nil {
			return journal.WrapUnavailable("fence of source "+src.Name(), err)
		}
	}
	return nil
}

// sealOwnFences seals, in each driver's own fence, every KEK of the registry that the
// pointer does not name. Among them are those that no pointer ever named, because their
// rotation was rolled back after the fence was opened. A pending KEK is left alone: it may
// become the pointer's. It needs the whole registry.
func sealOwnFences(ctx context.Context, sources []frozenSource, v kek.View) error {
	for _, src := range ownFences(sources) {
		fence := source.FenceOf(src.Driver)
		for id, k := range v.KEKs {
			if id == v.Pointer.KEKID || k.State == kek.Pending {
				continue
			}
			for shard := range k.FenceShards {
				if err := fence.Seal(ctx, id, shard); err != nil {
					return journal.WrapUnavailable("fence of source "+src.Name(), err)
				}
			}
		}
	}
	return nil
}

// ownFences lists the sources whose driver keeps a fence of its own.
func ownFences(sources []frozenSource) []frozenSource {
	var out []frozenSource
	for _, src := range sources {
		if source.FenceOf(src.Driver) != nil {
			out = append(out, src)
		}
	}
	return out
}

// joinFence prepares the own fence of a source that is being registered, before the change c
// that registers it: the fence is open under the pointer's KEK and sealed under the others.
// The change then conditions on the pointer, so that a switch in between makes it be tried
// again with the other KEK.
func joinFence(ctx context.Context, src frozenSource, v kek.View, c *kek.Change) error {
	if source.FenceOf(src.Driver) == nil {
		return nil
	}
	c.Keeps = v.Pointer
	if err := sealOwnFences(ctx, []frozenSource{src}, v); err != nil {
		return err
	}
	return openFences(ctx, []frozenSource{src}, v.KEKs[v.Pointer.KEKID])
}
