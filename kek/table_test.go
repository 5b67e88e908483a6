package kek

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// table is the control table as a [Change] sees it: it honours every condition.
type table struct {
	pointer   *Pointer
	lock      string
	rotations map[string]Rotation
	keks      map[ID]KEK
	fences    map[ID]string // opened or sealed
	registry  int64
	sources   map[string]Source
	marks     map[string]Mark
}

func newTable() *table {
	return &table{
		rotations: map[string]Rotation{}, keks: map[ID]KEK{}, fences: map[ID]string{}, sources: map[string]Source{}, marks: map[string]Mark{},
	}
}

// view reads everything, and the rotation id or, if that is "", the one that holds the
// lock.
func (t *table) view(id string) View {
	if id == "" {
		id = t.lock
	}
	v := View{Lock: t.lock, KEKs: maps.Clone(t.keks), Registry: t.registry}
	if t.pointer != nil {
		p := *t.pointer
		v.Pointer = &p
	}
	if r, ok := t.rotations[id]; ok {
		r.Sources, r.Olds, r.Probes = slices.Clone(r.Sources), slices.Clone(r.Olds), maps.Clone(r.Probes)
		v.Rotation = &r
	}
	if r, ok := t.rotations[t.lock]; ok && t.lock != id {
		v.Holder = &r
	}
	for _, name := range slices.Sorted(maps.Keys(t.sources)) {
		v.Sources = append(v.Sources, t.sources[name])
	}
	for _, name := range slices.Sorted(maps.Keys(t.marks)) {
		v.Marks = append(v.Marks, t.marks[name])
	}
	return v
}

// apply writes c, or returns [ErrConflict] and writes nothing.
func (t *table) apply(c Change) error {
	if why := t.refuses(c); why != "" {
		return fmt.Errorf("%s: %w", why, ErrConflict)
	}
	if c.Rotation != nil {
		t.rotations[c.Rotation.After.ID] = c.Rotation.After
		switch c.Lock {
		case LockTake, LockTakeOver:
			t.lock = c.Rotation.After.ID
		case LockRelease:
			t.lock = ""
		case LockHold, LockIgnore, LockFree:
		}
	}
	if c.Ends != nil {
		t.rotations[c.Ends.After.ID] = c.Ends.After
	}
	if c.Pointer != nil {
		p := c.Pointer.After
		t.pointer = &p
	}
	for _, m := range c.KEKs {
		t.keks[m.After.ID] = m.After
	}
	if c.Opens != "" {
		t.fences[c.Opens] = "open"
	}
	if c.Shuts != "" {
		t.fences[c.Shuts] = "sealed"
	}
	if m := c.Registry; m != nil {
		t.registry++
		for _, src := range m.Put {
			t.sources[src.Name] = src
		}
		delete(t.sources, m.Remove)
		delete(t.marks, m.Forget)
	}
	return nil
}

func (t *table) refuses(c Change) string {
	if m := c.Rotation; m != nil {
		r, ok := t.rotations[m.After.ID]
		if ok != (m.Before != nil) || ok && (r.Phase != m.Before.Phase || r.Rev != m.Before.Rev) {
			return "rotation"
		}
		if free := c.Lock == LockTake && t.lock == "" || c.Lock == LockTakeOver && t.lock == c.From; c.Lock != LockIgnore && t.lock != m.After.ID && !free {
			return "lock"
		}
	}
	if c.Lock == LockFree && t.lock != "" {
		return "lock"
	}
	if c.Lock == LockTakeOver {
		r, ok := t.rotations[c.From]
		if ok != (c.Ends != nil) || ok && (r.Phase != c.Ends.Before.Phase || r.Rev != c.Ends.Before.Rev) {
			return "the other rotation"
		}
	}
	if c.Pointer != nil && !t.pointsAt(c.Pointer.Before) || c.Keeps != nil && !t.pointsAt(c.Keeps) {
		return "pointer"
	}
	for _, m := range c.KEKs {
		if k, ok := t.keks[m.After.ID]; ok != (m.Before != nil) || ok && k.State != m.Before.State {
			return "KEK"
		}
	}
	if c.Registry != nil && c.Registry.Before != t.registry || c.AtRegistry != nil && *c.AtRegistry != t.registry {
		return "registry"
	}
	if c.Registry != nil && c.Registry.Absent != "" {
		if _, ok := t.marks[c.Registry.Absent]; ok {
			return "mark"
		}
	}
	if c.Opens != "" && t.fences[c.Opens] != "" || c.Shuts != "" && t.fences[c.Shuts] != "" || c.Sealed != "" && t.fences[c.Sealed] != "sealed" {
		return "fence"
	}
	return ""
}

func (t *table) pointsAt(p *Pointer) bool {
	if p == nil || t.pointer == nil {
		return p == nil && t.pointer == nil
	}
	return p.KEKID == t.pointer.KEKID && p.Epoch == t.pointer.Epoch
}

// src is a source of a table of the same name.
func src(name, definition string) Source {
	return Source{Name: name, Kind: "dynamodb", Definition: definition, Place: "table-" + name, AddedBy: "alice"}
}

// names lists sources with their generation.
func names(sources []Source) string {
	out := make([]string, len(sources))
	for i, s := range sources {
		out[i] = fmt.Sprintf("%s~%d %s", s.Name, s.Generation, s.Definition)
	}
	return strings.Join(out, ", ")
}
