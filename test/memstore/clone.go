package memstore

import (
	"maps"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// Clone is a world that holds what this one holds, with a clock of its own and no
// hook or observer. No call to either changes the other. Tables are cloned into it
// with [Table.CloneTo].
//
// What both share is never changed in place: stored slices (wrapped DEKs, payloads,
// probes, records' bytes), encryption contexts and key material are only ever
// replaced by others.
func (w *World) Clone(now func() time.Time) *World {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &World{now: now, tables: map[string]*Table{}}
	c.store = w.store.clone(c)
	c.vault = &Vault{w: c, objects: maps.Clone(w.vault.objects), unlocked: w.vault.unlocked}
	c.kms = w.kms.clone(c)
	return c
}

func (s *Store) clone(w *World) *Store {
	c := *s
	c.w = w
	c.rotations, c.keks, c.fences = maps.Clone(s.rotations), maps.Clone(s.keks), maps.Clone(s.fences)
	c.keyFences = maps.Clone(s.keyFences)
	c.sources, c.marks = maps.Clone(s.sources), maps.Clone(s.marks)
	c.leases, c.checkpoints = maps.Clone(s.leases), maps.Clone(s.checkpoints)
	c.outbox = slices.Clip(s.outbox) // it is only appended to
	c.gates = gateItems{
		maps.Clone(s.gates.announcements), maps.Clone(s.gates.drills), maps.Clone(s.gates.approvals), maps.Clone(s.gates.health), maps.Clone(s.gates.pauses),
	}
	return &c
}

func (m *KMS) clone(w *World) *KMS {
	c := *m
	c.w, c.aliases, c.keys = w, maps.Clone(m.aliases), make(map[kek.ID]*material, len(m.keys))
	for id, key := range m.keys {
		own := *key
		c.keys[id] = &own
	}
	return &c
}

// CloneTo is a table of a cloned world that holds what this one holds. What was
// scanned in one of them is no row of the other.
func (t *Table) CloneTo(w *World) *Table {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	c := *t
	c.w, c.rows, c.order = w, make(map[string]*record, len(t.rows)), slices.Clone(t.order)
	c.fence = maps.Clone(t.fence)
	for id, r := range t.rows {
		own := *r
		c.rows[id] = &own
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables[c.name] = &c
	return &c
}
