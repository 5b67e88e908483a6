package kek

import (
	"fmt"
	"maps"
)

// table is the control table as a [Change] sees it: it honours every condition.
type table struct {
	pointer   *Pointer
	lock      string
	rotations map[string]Rotation
	keks      map[ID]KEK
	opened    map[ID]bool
	sealed    map[ID]bool
}

func newTable() *table {
	return &table{rotations: map[string]Rotation{}, keks: map[ID]KEK{}, opened: map[ID]bool{}, sealed: map[ID]bool{}}
}

func (t *table) view(id string) View {
	v := View{Lock: t.lock, KEKs: maps.Clone(t.keks)}
	if t.pointer != nil {
		p := *t.pointer
		v.Pointer = &p
	}
	if r, ok := t.rotations[id]; ok {
		v.Rotation = &r
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
		case LockTake:
			t.lock = c.Rotation.After.ID
		case LockRelease:
			t.lock = ""
		case LockHold, LockIgnore:
		}
	}
	if c.Pointer != nil {
		p := c.Pointer.After
		t.pointer = &p
	}
	for _, m := range c.KEKs {
		t.keks[m.After.ID] = m.After
	}
	if c.Opens != "" {
		t.opened[c.Opens] = true
	}
	return nil
}

func (t *table) refuses(c Change) string {
	if m := c.Rotation; m != nil {
		r, ok := t.rotations[m.After.ID]
		if ok != (m.Before != nil) || ok && (r.Phase != m.Before.Phase || r.Rev != m.Before.Rev) {
			return "rotation"
		}
		if free := c.Lock == LockTake && t.lock == ""; c.Lock != LockIgnore && t.lock != m.After.ID && !free {
			return "lock"
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
	if c.Opens != "" && t.opened[c.Opens] || c.Sealed != "" && !t.sealed[c.Sealed] {
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
