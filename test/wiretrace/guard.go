package wiretrace

import (
	"slices"
	"strings"

	"github.com/matter-ops/kms-rotation/test/trace"
)

// guarded reports whether a write of the control table may be part of a change: it
// conditions on what its maker has read of the item, or that there was none. That it
// was made says that the condition held; without one it may overwrite, in another
// run, what came in between.
func guarded(w write) bool {
	equal, absent := w.requires()
	demands := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(n string) bool { _, ok := equal[n]; return !ok })
	}
	fresh := slices.Contains(absent, "pk")
	switch pk := w.pk(); {
	case pk == pkPointer:
		return fresh || demands("kek_id", "epoch")
	case pk == pkLock && w.kind == kindPut: // free, or ours already, or that of the rotation taken over from
		return w.ConditionExpression == "attribute_not_exists(#pk) OR #rotation_id = :rotation_id" || demands("rotation_id")
	case pk == pkLock:
		return demands("rotation_id") || w.kind == kindCheck && fresh
	case pk == pkRegistry:
		return fresh || demands("rev")
	case pk == pkAudit:
		return fresh
	case pk == pkAuditHead:
		return fresh || demands("seq", "hash")
	case strings.HasPrefix(pk, pkKEK):
		return fresh || demands("state")
	case strings.HasPrefix(pk, pkRotation):
		return fresh || demands("phase", "rev")
	case isFence(pk) && w.kind == kindCheck:
		return equal.str("state") == "sealed"
	case isFence(pk):
		return fresh
	}
	return true
}

// stands are the changes that require the pointer to stand where it was read.
var stands = []string{"rotation_started", "emergency_took_over", "old_kek_retired", "rolled_back", "reminted", "kek_registered"}

// ofRegistry reports a write of what sources there are, or of the registry's revision,
// which is what such a change conditions on.
func ofRegistry(w write) bool {
	pk := w.pk()
	return pk == pkRegistry && w.kind == kindPut || pk == pkSource || pk == pkMark && w.kind == kindDelete
}

// conditional reports whether a change conditions on all that it rests on: each item
// that it writes, the lock, the pointer where it must stand still, the registry, and the
// shards that must be shut.
func conditional(e trace.Event, all []write) bool {
	lock, pointer := e.Rotation == "" && e.Event == "kek_genesis", !slices.Contains(stands, e.Event)
	registry := e.Event != "rotation_started" && e.Event != "emergency_took_over" && !slices.ContainsFunc(all, ofRegistry)
	shut, shutRecords, shards := 0, 0, 0
	for _, w := range all {
		if !guarded(w) {
			return false
		}
		equal, absent := w.requires()
		switch pk := w.pk(); {
		case pk == pkPointer && e.Event == "kek_genesis" && !slices.Contains(absent, "pk"):
			return false // there was a pointer
		case pk == pkLock && e.Rotation == "":
			lock = lock || slices.Contains(absent, "pk")
		case pk == pkLock:
			lock = lock || w.kind == kindPut || equal.str("rotation_id") == e.Rotation
		case pk == pkRegistry:
			registry = true
		case pk == pkPointer:
			pointer = true
		case strings.HasPrefix(pk, pkFence) && (w.kind == kindCheck || w.Item.str("state") == "sealed"):
			shut++
		case strings.HasPrefix(pk, pkKeyFence) && (w.kind == kindCheck || w.Item.str("state") == "sealed"):
			shutRecords++
		case strings.HasPrefix(pk, pkKEK) && w.Item.str("state") == "sealed":
			shards = int(w.Item.num("fence_shards"))
		}
	}
	return lock && pointer && registry && min(shut, shutRecords) >= shards
}
