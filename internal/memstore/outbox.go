package memstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Unpublished implements [rotation.Outbox].
func (s *Store) Unpublished(context.Context) (out []audit.Entry, err error) {
	err = s.w.call("Store.Unpublished", func() error {
		out = slices.Clone(s.outbox[s.published:])
		return nil
	})
	return out, err
}

// AuditEntries returns the records of the outbox from fromSeq on, in order.
func (s *Store) AuditEntries(_ context.Context, fromSeq int64) (out []audit.Entry, err error) {
	err = s.w.call("Store.AuditEntries", func() error {
		from := min(max(fromSeq, 1)-1, int64(len(s.outbox)))
		out = slices.Clone(s.outbox[from:])
		return nil
	}, fromSeq)
	return out, err
}

// MarkPublished implements [rotation.Outbox]. It refuses a seq past the head.
func (s *Store) MarkPublished(_ context.Context, seq int64) error {
	return s.w.call("Store.MarkPublished", func() error {
		if seq > s.head.Seq {
			return fmt.Errorf("mark published %d: the chain ends at %d", seq, s.head.Seq)
		}
		s.published = max(s.published, seq)
		return nil
	}, seq)
}

// Head implements [rotation.Outbox].
func (s *Store) Head(context.Context) (chain string, head audit.Head, err error) {
	err = s.w.call("Store.Head", func() error {
		head = s.head
		return nil
	})
	return s.chain, head, err
}

// Vault is the write-once bucket: a [rotation.Vault].
type Vault struct {
	w        *World
	objects  map[object][]byte
	anchors  map[object][]byte
	unlocked bool
}

type object struct {
	chain string
	seq   int64
}

// Put implements [rotation.Vault].
func (v *Vault) Put(_ context.Context, e audit.Entry) error {
	return v.w.call("Vault.Put", func() error {
		k := object{e.Record.Chain, e.Record.Seq}
		if was, ok := v.objects[k]; ok && !bytes.Equal(was, e.Bytes) {
			return fmt.Errorf("%s: %w", audit.ObjectKey(k.chain, k.seq), rotation.ErrTampered)
		}
		v.objects[k] = e.Bytes
		return nil
	}, e)
}

// Get implements [rotation.Vault].
func (v *Vault) Get(_ context.Context, chain string, seq int64) (b []byte, err error) {
	err = v.w.call("Vault.Get", func() error {
		var ok bool
		if b, ok = v.objects[object{chain, seq}]; !ok {
			return fmt.Errorf("%s: %w", audit.ObjectKey(chain, seq), rotation.ErrNoRecord)
		}
		b = bytes.Clone(b)
		return nil
	}, chain, seq)
	return b, err
}

// Check implements [rotation.Vault].
func (v *Vault) Check(context.Context) error {
	return v.w.call("Vault.Check", func() error {
		if v.unlocked {
			return &rotation.Error{Kind: rotation.AuditUnlocked, Field: "bucket", Msg: "the bucket has no Object Lock"}
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

// Tamper replaces or, with nil, deletes a stored record, as an attacker would.
func (v *Vault) Tamper(chain string, seq int64, b []byte) {
	v.w.mu.Lock()
	defer v.w.mu.Unlock()
	if b == nil {
		delete(v.objects, object{chain, seq})
		return
	}
	v.objects[object{chain, seq}] = bytes.Clone(b)
}
