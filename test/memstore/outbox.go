package memstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Unpublished implements [journal.Outbox].
func (s *Store) Unpublished(ctx context.Context) (out []audit.Entry, at audit.Line, err error) {
	err = s.w.call(ctx, "Store.Unpublished", func() error {
		out, at = slices.Clone(s.outbox[s.published:]), audit.Line{Chain: s.chain, Generations: s.generations}
		return nil
	})
	return out, at, err
}

// Begin implements [journal.Outbox].
func (s *Store) Begin(ctx context.Context, at audit.Line, head audit.Head, g audit.Generation, ev audit.Event) error {
	return s.w.answer(ctx, "Store.Begin", func() (any, error) {
		if at.Generations != s.generations || head != s.head {
			return nil, conflict("AUDIT_HEAD")
		}
		if err := s.append(ev); err != nil {
			return nil, err
		}
		s.generations = s.generations.With(g)
		return s.head.Seq, nil
	}, ev, at, head, g)
}

// AuditEntries returns the records of the outbox from fromSeq on, in order.
func (s *Store) AuditEntries(ctx context.Context, fromSeq int64) (out []audit.Entry, err error) {
	err = s.w.call(ctx, "Store.AuditEntries", func() error {
		from := min(max(fromSeq, 1)-1, int64(len(s.outbox)))
		out = slices.Clone(s.outbox[from:])
		return nil
	}, fromSeq)
	return out, err
}

// MarkPublished implements [journal.Outbox]. It refuses a seq past the head.
func (s *Store) MarkPublished(ctx context.Context, seq int64) error {
	return s.w.answer(ctx, "Store.MarkPublished", func() (any, error) {
		if seq > s.head.Seq {
			return nil, fmt.Errorf("mark published %d: the chain ends at %d", seq, s.head.Seq)
		}
		moved := seq > s.published
		s.published = max(s.published, seq)
		return moved, nil
	}, seq)
}

// Head implements [journal.Outbox].
func (s *Store) Head(ctx context.Context) (at audit.Line, head audit.Head, err error) {
	err = s.w.call(ctx, "Store.Head", func() error {
		at, head = audit.Line{Chain: s.chain, Generations: s.generations}, s.head
		return nil
	})
	return at, head, err
}

// Vault is the write-once bucket: a [journal.AuditBucket].
type Vault struct {
	w        *World
	objects  map[string][]byte // by key
	unlocked bool
}

// Put implements [journal.AuditBucket].
func (v *Vault) Put(ctx context.Context, key string, e audit.Entry) error {
	return v.w.call(ctx, "Vault.Put", func() error {
		if was, ok := v.objects[key]; ok && !bytes.Equal(was, e.Bytes) {
			return audit.TakenBy(key, "only", was)
		}
		v.objects[key] = e.Bytes
		return nil
	}, key, e)
}

// Get implements [journal.AuditBucket].
func (v *Vault) Get(ctx context.Context, key string) ([]byte, error) {
	return v.get(ctx, "Vault.Get", key)
}

func (v *Vault) get(ctx context.Context, op, key string) (b []byte, err error) {
	err = v.w.call(ctx, op, func() error {
		var ok bool
		if b, ok = v.objects[key]; !ok {
			return fmt.Errorf("%s: %w", key, journal.ErrNoRecord)
		}
		b = bytes.Clone(b)
		return nil
	}, key)
	return b, err
}

// Check implements [journal.AuditBucket].
func (v *Vault) Check(ctx context.Context) error {
	return v.w.call(ctx, "Vault.Check", func() error {
		if v.unlocked {
			return &journal.Error{Kind: journal.AuditUnlocked, Field: "bucket", Msg: "the bucket has no Object Lock"}
		}
		return nil
	})
}

// Unlock makes Check fail, as if the bucket had been made without Object Lock.
func (v *Vault) Unlock() {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	v.unlocked = true
}

// Tamper replaces or, with nil, deletes the object of a key, as an attacker would.
func (v *Vault) Tamper(key string, b []byte) {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	if b == nil {
		delete(v.objects, key)
		return
	}
	v.objects[key] = bytes.Clone(b)
}
