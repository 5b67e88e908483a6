package memstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Leases implements [rotation.Drainage], in order of holder.
func (s *Store) Leases(ctx context.Context, id kek.ID) (out []rotation.Lease, err error) {
	err = s.w.answer(ctx, "Store.Leases", func() (any, error) {
		for k, l := range s.leases {
			if k.kek == id {
				out = append(out, l)
			}
		}
		slices.SortFunc(out, func(a, b rotation.Lease) int { return cmp.Compare(a.Holder, b.Holder) })
		return out, nil
	}, id)
	return out, err
}

// Revoke implements [rotation.Drainage].
func (s *Store) Revoke(ctx context.Context, l rotation.Lease) (done bool, err error) {
	err = s.w.answer(ctx, "Store.Revoke", func() (any, error) {
		k := holder{l.KEK, l.Holder}
		stored, ok := s.leases[k]
		if done = ok && stored.Expires.Equal(ms(l.Expires)); done {
			delete(s.leases, k)
		}
		return done, nil
	}, l)
	return done && err == nil, err
}

// SealFence implements [rotation.Drainage].
func (s *Store) SealFence(ctx context.Context, id kek.ID, n int) error {
	return s.w.call(ctx, "Store.SealFence", func() error {
		s.fences[shard{id, n}], s.keyFences[shard{id, n}] = true, true
		return nil
	}, id, n)
}

// PutLease registers a lease, over any that the holder has on the same KEK.
func (s *Store) PutLease(ctx context.Context, l rotation.Lease) error {
	return s.w.call(ctx, "Store.PutLease", func() error {
		l.Expires = ms(l.Expires)
		s.leases[holder{l.KEK, l.Holder}] = l
		return nil
	}, l)
}

// RenewLease writes the lease's references and expiry if it still exists. False
// means that it was revoked.
func (s *Store) RenewLease(ctx context.Context, l rotation.Lease) (done bool, err error) {
	err = s.w.answer(ctx, "Store.RenewLease", func() (any, error) {
		k := holder{l.KEK, l.Holder}
		var stored rotation.Lease
		if stored, done = s.leases[k]; done {
			stored.Refs, stored.Expires = l.Refs, ms(l.Expires)
			s.leases[k] = stored
		}
		return done, nil
	}, l)
	return done && err == nil, err
}

// DropLease gives a lease back. It is idempotent.
func (s *Store) DropLease(ctx context.Context, l rotation.Lease) error {
	return s.w.call(ctx, "Store.DropLease", func() error {
		delete(s.leases, holder{l.KEK, l.Holder})
		return nil
	}, l)
}

// Pointer reads the pointer; [kek.ErrNoPointer] if there is none.
func (s *Store) Pointer(ctx context.Context) (p kek.Pointer, err error) {
	err = s.w.call(ctx, "Store.Pointer", func() error {
		if s.pointer == nil {
			return fmt.Errorf("read the pointer: %w", kek.ErrNoPointer)
		}
		p = *s.pointer
		return nil
	})
	return p, err
}

// KEKState reads a KEK's state; "" if the registry does not know it.
func (s *Store) KEKState(ctx context.Context, id kek.ID) (state kek.State, err error) {
	err = s.w.call(ctx, "Store.KEKState", func() error {
		state = s.keks[id].State
		return nil
	}, id)
	return state, err
}

// LoadCheckpoint implements [rotation.Checkpoints].
func (s *Store) LoadCheckpoint(ctx context.Context, rotationID, source, pass string, segment int) (c rotation.Checkpoint, err error) {
	err = s.w.call(ctx, "Store.LoadCheckpoint", func() error {
		var ok bool
		if c, ok = s.checkpoints[place{rotationID, source, pass, segment}]; !ok {
			c = rotation.Checkpoint{RotationID: rotationID, Source: source, Pass: pass, Segment: segment}
		}
		c.Tally.Poison = slices.Clone(c.Tally.Poison)
		return nil
	}, rotationID, source, pass, segment)
	return c, err
}

// SaveCheckpoint implements [rotation.Checkpoints].
func (s *Store) SaveCheckpoint(ctx context.Context, c rotation.Checkpoint) error {
	return s.w.call(ctx, "Store.SaveCheckpoint", func() error {
		k := place{c.RotationID, c.Source, c.Pass, c.Segment}
		if s.checkpoints[k].Rev != c.Rev {
			return conflict("save checkpoint %s %s %d at revision %d", c.Source, c.Pass, c.Segment, c.Rev)
		}
		c.Rev++
		c.SavedAt = ms(c.SavedAt)
		c.Tally.Poison = slices.Clone(c.Tally.Poison)
		s.checkpoints[k] = c
		return nil
	}, c)
}

// ListCheckpoints implements [rotation.Checkpoints], in order of segment.
func (s *Store) ListCheckpoints(ctx context.Context, rotationID, source, pass string) (out []rotation.Checkpoint, err error) {
	err = s.w.call(ctx, "Store.ListCheckpoints", func() error {
		for k, c := range s.checkpoints {
			if k.rotation == rotationID && k.source == source && k.pass == pass {
				c.Tally.Poison = slices.Clone(c.Tally.Poison)
				out = append(out, c)
			}
		}
		slices.SortFunc(out, func(a, b rotation.Checkpoint) int { return cmp.Compare(a.Segment, b.Segment) })
		return nil
	}, rotationID, source, pass)
	return out, err
}

// Fences returns the states of the shards of a KEK's fence of rows, "open" or "sealed". The
// hook does not see it.
func (s *Store) Fences(id kek.ID) map[int]string { return s.shards(s.fences, id) }

// KeyFences returns those of its fence of records.
func (s *Store) KeyFences(id kek.ID) map[int]string { return s.shards(s.keyFences, id) }

func (s *Store) shards(fence map[shard]bool, id kek.ID) map[int]string {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	out := map[int]string{}
	for k, sealed := range fence {
		switch {
		case k.kek != id:
		case sealed:
			out[k.n] = "sealed"
		default:
			out[k.n] = "open"
		}
	}
	return out
}
