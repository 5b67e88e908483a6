package kek

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The methods of this file change which sources and historic KEKs there are. They
// need the whole registry, and v.Rotation is the record of the rotation that holds
// the lock, if any does.

// PutSource registers a source, or replaces the definition of the one of its name
// (spec: AddSource). While a rotation runs it is refused with [ErrLocked] before the
// switch, for a census has counted without it. After the switch and before the
// retirement it joins the rotation, which then moves its rows too. A name stays with
// its place, in the rotation that runs also after a removal.
func (v View) PutSource(src Source, now time.Time) (Change, error) {
	for _, s := range v.Sources {
		if s.Name != src.Name && s.Place == src.Place {
			return Change{}, fmt.Errorf("%s is source %s already", src.Place, s.Name)
		}
		if s.Place == src.Place && s.Kind == src.Kind && s.Definition == src.Definition {
			return Change{}, ErrDone
		}
	}
	for _, s := range slices.Concat(v.Sources, v.frozenSources()) {
		if s.Name != src.Name {
			continue
		}
		if s.Kind != src.Kind || s.Place != src.Place { // it would drop a place without the checks of a removal
			return Change{}, fmt.Errorf("source %s is %s: choose another name for %s", s.Name, s.Place, src.Place)
		}
		generation := s.Generation
		if s.Definition != src.Definition {
			generation++
		}
		src.Generation = max(src.Generation, generation)
	}
	src.AddedAt = now
	return v.withRotation(RegistryMove{Before: v.Registry, Put: []Source{src}}, EventSourceAdded, now, func(r *Rotation) {
		r.Sources = slices.DeleteFunc(slices.Clone(r.Sources), func(s Source) bool { return s.Name == src.Name })
		r.Sources = append(r.Sources, src)
		slices.SortFunc(r.Sources, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	})
}

// frozenSources lists the sources of the rotation that holds the lock, which keeps those that
// were removed meanwhile.
func (v View) frozenSources() []Source {
	if v.Rotation == nil || v.Rotation.ID != v.Lock {
		return nil
	}
	return v.Rotation.Sources
}

// RemoveSource takes a source out of the registry, with its table's mark (spec:
// RemoveSource). Where there is no mark, it is a condition that there still is none. A
// rotation that runs keeps the source frozen; before its switch the removal is refused
// with [ErrLocked].
func (v View) RemoveSource(name string, now time.Time) (Change, error) {
	for _, s := range v.Sources {
		if s.Name == name {
			m := RegistryMove{Before: v.Registry, Remove: name, Absent: s.Place}
			if v.Marked(s.Place) {
				m.Forget, m.Absent = s.Place, ""
			}
			return v.withRotation(m, EventSourceRemoved, now, nil)
		}
	}
	return Change{}, ErrDone
}

// Marked reports whether a writer has left its mark of a table.
func (v View) Marked(table string) bool {
	return slices.ContainsFunc(v.Marks, func(m Mark) bool { return m.Table == table })
}

// ForgetMark removes the mark of a table that is no source.
func (v View) ForgetMark(table string, now time.Time) (Change, error) {
	for _, m := range Forgotten(v.Marks, v.Sources) {
		if m.Table == table {
			return v.withRotation(RegistryMove{Before: v.Registry, Forget: table}, EventMarkRemoved, now, nil)
		}
	}
	return Change{}, ErrDone
}

// RegisterKEK registers a historic KEK, under which rows were written before this
// deployment: sealed, with every shard of its fences sealed, so that nothing new can be
// inserted under it (spec: Register). The next rotation moves its rows. It is refused
// with [ErrLocked] while a rotation runs, which has counted without it.
func (v View) RegisterKEK(k KEK, now time.Time) (Change, error) {
	if known, ok := v.KEKs[k.ID]; ok {
		if known.State.Resolves() {
			return Change{}, ErrDone
		}
		return Change{}, &IllegalTransition{What: "KEK " + string(k.ID), From: string(known.State), To: string(Sealed)}
	}
	if v.Pointer == nil {
		return Change{}, ErrNoPointer
	}
	if v.Lock != "" {
		return Change{}, ErrLocked
	}
	k.State, k.CreatedAt = Sealed, now
	return Change{
		Lock: LockFree, Keeps: v.Pointer, KEKs: []KEKMove{{After: k}}, Shuts: k.ID, Shards: k.FenceShards,
		Registry: &RegistryMove{Before: v.Registry}, Event: EventKEKRegistered,
	}, nil
}

// withRotation is a change of the registry beside the rotation that runs, which join
// alters if it is past its switch and has not retired yet.
func (v View) withRotation(m RegistryMove, event string, now time.Time, join func(*Rotation)) (Change, error) {
	if v.Pointer == nil { // genesis registers the first sources, and is refused where there is a registry already
		return Change{}, ErrNoPointer
	}
	if v.Lock == "" {
		return Change{Lock: LockFree, Registry: &m, Event: event}, nil
	}
	r := v.Rotation
	if r == nil || r.ID != v.Lock || r.Phase.PreSwitch() {
		return Change{}, ErrLocked
	}
	after := bumpRevision(*r, now)
	if join != nil && !r.Phase.Reached(KEKRetired) {
		join(&after)
	}
	return Change{Rotation: &RotationMove{Before: r, After: after}, Lock: LockHold, Registry: &m, Event: event}, nil
}

func bumpRevision(r Rotation, now time.Time) Rotation {
	r.Rev++
	r.UpdatedAt = now
	return r
}
