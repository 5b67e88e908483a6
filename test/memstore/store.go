package memstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
)

// Store is the control table. It implements [journal.Registry],
// [journal.Outbox], [rotation.Drainage] and [rotation.Checkpoints], and what the
// data plane asks of the table.
type Store struct {
	w           *World
	chain       string
	pointer     *kek.Pointer
	lock        string
	rotations   map[string]kek.Rotation
	keks        map[kek.ID]kek.KEK
	registry    int64 // revision
	sources     map[string]kek.Source
	marks       map[string]kek.Mark
	fences      map[shard]bool // of rows; present: sealed or not; absent: never opened
	keyFences   map[shard]bool // of records
	leases      map[holder]rotation.Lease
	checkpoints map[place]rotation.Checkpoint
	outbox      []audit.Entry
	head        audit.Head
	published   int64
	generations audit.Generations // of records
	anchor      anchor.State
	gates       gateItems
}

type (
	shard struct {
		kek kek.ID
		n   int
	}
	holder struct {
		kek  kek.ID
		name string
	}
	place struct {
		rotation, source, pass string
		segment                int
	}
)

func newStore(w *World, chain string) *Store {
	return &Store{
		w: w, chain: chain, head: audit.Genesis(chain),
		rotations: map[string]kek.Rotation{}, sources: map[string]kek.Source{}, marks: map[string]kek.Mark{}, keks: map[kek.ID]kek.KEK{}, fences: map[shard]bool{}, keyFences: map[shard]bool{},
		leases: map[holder]rotation.Lease{}, checkpoints: map[place]rotation.Checkpoint{}, gates: newGates(),
	}
}

// ms is a time as the control table keeps it.
func ms(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Millisecond)
}

// Load implements [journal.Registry].
func (s *Store) Load(ctx context.Context, rotationID string) (v kek.View, err error) {
	err = s.w.call(ctx, "Store.Load", func() error {
		v = s.view(rotationID)
		return nil
	}, rotationID)
	if err != nil {
		return kek.View{}, err
	}
	return v, nil
}

func (s *Store) view(rotationID string) kek.View {
	v := kek.View{Lock: s.lock, KEKs: make(map[kek.ID]kek.KEK, 2)}
	see := func(id kek.ID) {
		if k, ok := s.keks[id]; ok {
			v.KEKs[id] = k
		}
	}
	if s.pointer != nil {
		p := *s.pointer
		v.Pointer = &p
		see(p.KEKID)
	}
	if r, ok := s.rotations[rotationID]; ok {
		r = owned(r)
		v.Rotation = &r
		see(r.OldKEK)
		see(r.NewKEK)
		for _, id := range r.Olds {
			see(id)
		}
	}
	return v
}

// owned is a copy of a record that shares nothing with it that a caller may change.
func owned(r kek.Rotation) kek.Rotation {
	r.Olds, r.Sources = slices.Clone(r.Olds), slices.Clone(r.Sources)
	r.TookOver, r.Leftover = slices.Clone(r.TookOver), slices.Clone(r.Leftover)
	r.Probes = maps.Clone(r.Probes)
	for id, probe := range r.Probes {
		r.Probes[id] = bytes.Clone(probe)
	}
	return r
}

// LoadAll implements [journal.Registry].
func (s *Store) LoadAll(ctx context.Context, rotationID string) (v kek.View, err error) {
	err = s.w.call(ctx, "Store.LoadAll", func() error {
		if rotationID == "" {
			rotationID = s.lock
		}
		v = s.view(rotationID)
		maps.Copy(v.KEKs, s.keks)
		if r, ok := s.rotations[s.lock]; ok && s.lock != rotationID {
			r = owned(r)
			v.Holder = &r
		}
		v.Registry = s.registry
		v.Sources = sorted(s.sources, func(a, b kek.Source) int { return cmp.Compare(a.Name, b.Name) })
		v.Marks = sorted(s.marks, func(a, b kek.Mark) int { return cmp.Compare(a.Table, b.Table) })
		return nil
	}, rotationID)
	if err != nil {
		return kek.View{}, err
	}
	return v, nil
}

// Mark leaves a writer's mark, as [envelope.Client.Table] does.
func (s *Store) Mark(ctx context.Context, m kek.Mark) error {
	return s.w.call(ctx, "Store.Mark", func() error {
		m.SeenAt = ms(m.SeenAt)
		s.marks[m.Table] = m
		return nil
	}, m)
}

// registryCondition checks the registry's revision.
func (s *Store) registryCondition(c kek.Change) error {
	if c.Registry != nil && c.Registry.Before != s.registry || c.AtRegistry != nil && *c.AtRegistry != s.registry {
		return conflict("REGISTRY")
	}
	if m := c.Registry; m != nil && m.Absent != "" {
		if _, marked := s.marks[m.Absent]; marked {
			return conflict("MARK/%s", m.Absent)
		}
	}
	for i := range c.Shards {
		for _, f := range s.bothFences() {
			if _, exists := f.shards[shard{c.Shuts, i}]; c.Shuts != "" && exists {
				return conflict("%s%s/%02d", f.pk, c.Shuts, i)
			}
		}
	}
	return nil
}

func (s *Store) writeRegistry(c kek.Change) {
	if m := c.Registry; m != nil {
		s.registry++
		for _, src := range m.Put {
			src.AddedAt = ms(src.AddedAt)
			s.sources[src.Name] = src
		}
		delete(s.sources, m.Remove)
		delete(s.marks, m.Forget)
	}
	if c.Shuts != "" {
		for i := range c.Shards {
			s.fences[shard{c.Shuts, i}], s.keyFences[shard{c.Shuts, i}] = true, true
		}
	}
}

// Apply implements [journal.Registry].
func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {
	return s.w.answer(ctx, "Store.Apply", func() (any, error) {
		if err := s.conditions(c); err != nil {
			return s.head.Seq, fmt.Errorf("apply %s: %w", c.Event, err)
		}
		if err := s.append(ev); err != nil { // the one thing that can still fail
			return s.head.Seq, fmt.Errorf("apply %s: %w", c.Event, err)
		}
		s.write(c)
		return s.head.Seq, nil
	}, c, ev)
}

// Record appends ev to the outbox and changes nothing else.
func (s *Store) Record(ctx context.Context, ev audit.Event) error {
	return s.w.answer(ctx, "Store.Record", func() (any, error) {
		err := s.append(ev)
		return s.head.Seq, err
	}, ev)
}

func (s *Store) append(ev audit.Event) error {
	e, err := audit.Next(s.chain, s.head, s.w.now(), ev)
	if err != nil {
		return err
	}
	s.outbox, s.head = append(s.outbox, e), e.Head()
	return nil
}

func conflict(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), kek.ErrConflict)
}

// conditions checks every Before of a change.
func (s *Store) conditions(c kek.Change) error {
	if m := c.Rotation; m != nil {
		r, ok := s.rotations[m.After.ID]
		if ok != (m.Before != nil) || ok && (r.Phase != m.Before.Phase || r.Rev != m.Before.Rev) {
			return conflict("ROTATION#%s", m.After.ID)
		}
	}
	if err := errors.Join(s.lockCondition(c), s.registryCondition(c)); err != nil {
		return err
	}
	switch {
	case c.Pointer != nil && !s.pointsAt(c.Pointer.Before):
		return conflict("POINTER")
	case c.Pointer == nil && c.Keeps != nil && !s.pointsAt(c.Keeps):
		return conflict("POINTER")
	}
	for _, m := range c.KEKs {
		k, ok := s.keks[m.After.ID]
		if ok != (m.Before != nil) || ok && k.State != m.Before.State {
			return conflict("KEK#%s", m.After.ID)
		}
	}
	for i := range c.Shards {
		for _, f := range s.bothFences() {
			id := f.opensBy(c)
			if _, exists := f.shards[shard{id, i}]; id != "" && exists {
				return conflict("%s%s/%02d", f.pk, id, i)
			}
			if c.Sealed != "" && !f.shards[shard{c.Sealed, i}] {
				return conflict("%s%s/%02d", f.pk, c.Sealed, i)
			}
		}
	}
	return nil
}

func (s *Store) lockCondition(c kek.Change) error {
	switch {
	case c.Lock == kek.LockIgnore:
		return nil
	case c.Lock == kek.LockFree && s.lock != "":
		return conflict("LOCK")
	case c.Lock == kek.LockFree:
		return nil
	}
	if c.Rotation == nil {
		return errors.New("a change to the lock names no rotation")
	}
	id := c.Rotation.After.ID
	if c.Lock == kek.LockTakeOver {
		r, ok := s.rotations[c.From]
		if ok != (c.Ends != nil) || ok && (r.Phase != c.Ends.Before.Phase || r.Rev != c.Ends.Before.Rev) {
			return conflict("ROTATION#%s", c.From)
		}
		id = c.From
	}
	if s.lock != id && (c.Lock != kek.LockTake || s.lock != "") {
		return conflict("LOCK")
	}
	return nil
}

func (s *Store) pointsAt(p *kek.Pointer) bool {
	if p == nil || s.pointer == nil {
		return p == nil && s.pointer == nil
	}
	return s.pointer.KEKID == p.KEKID && s.pointer.Epoch == p.Epoch
}

// write makes every After of a change.
func (s *Store) write(c kek.Change) {
	if c.Ends != nil {
		s.writeRotation(c.Ends.After)
	}
	if m := c.Rotation; m != nil {
		s.writeRotation(m.After)
		switch c.Lock {
		case kek.LockTake, kek.LockTakeOver:
			s.lock = m.After.ID
		case kek.LockRelease:
			s.lock = ""
		case kek.LockHold, kek.LockIgnore, kek.LockFree:
		}
	}
	if c.Pointer != nil {
		p := c.Pointer.After
		p.SwitchedAt = ms(p.SwitchedAt)
		s.pointer = &p
	}
	for _, m := range c.KEKs {
		k := m.After
		k.CreatedAt, k.SwitchedAt = ms(k.CreatedAt), ms(k.SwitchedAt)
		k.RetiredAt, k.NotBeforeDelete = ms(k.RetiredAt), ms(k.NotBeforeDelete)
		s.keks[k.ID] = k
	}
	s.writeRegistry(c)
	for _, f := range s.bothFences() {
		for i := range c.Shards {
			if id := f.opensBy(c); id != "" {
				f.shards[shard{id, i}] = false
			}
		}
	}
}

// fence is one of the two fences of all KEKs.
type fence struct {
	pk     string // how the keys of its items begin
	shards map[shard]bool
}

// bothFences returns the fence of rows and that of records.
func (s *Store) bothFences() []fence {
	return []fence{{"FENCE#", s.fences}, {"DEKFENCE#", s.keyFences}}
}

// opensBy returns the KEK whose fence a change opens; "" if none.
func (f fence) opensBy(c kek.Change) kek.ID {
	if f.pk == "FENCE#" {
		return c.Opens
	}
	return c.OpensRecords
}

func (s *Store) writeRotation(r kek.Rotation) {
	r = owned(r)
	r.StartedAt, r.UpdatedAt, r.SwitchedAt, r.SealedAt = ms(r.StartedAt), ms(r.UpdatedAt), ms(r.SwitchedAt), ms(r.SealedAt)
	r.ResumedAt = ms(r.ResumedAt)
	for i := range r.Sources { // the registry has these, the record does not
		r.Sources[i].AddedAt, r.Sources[i].AddedBy = time.Time{}, ""
	}
	s.rotations[r.ID] = r
}

// LoseRotation leaves the lock to a rotation that has no record, as a table that was
// restored or damaged has it.
func (s *Store) LoseRotation(id string) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.rotations, id)
	s.lock = id
}

// KEKs returns every registry entry, oldest first.
func (s *Store) KEKs(ctx context.Context) (out []kek.KEK, err error) {
	err = s.w.call(ctx, "Store.KEKs", func() error {
		out = sorted(s.keks, func(a, b kek.KEK) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
		return nil
	})
	return out, err
}

// Rotations returns the record of every rotation, oldest first.
func (s *Store) Rotations(ctx context.Context) (out []kek.Rotation, err error) {
	err = s.w.call(ctx, "Store.Rotations", func() error {
		out = sorted(s.rotations, func(a, b kek.Rotation) int {
			return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
		})
		return nil
	})
	return out, err
}

func sorted[K comparable, V any](m map[K]V, order func(a, b V) int) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, order)
	return out
}
