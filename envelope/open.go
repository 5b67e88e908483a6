package envelope

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// Reread returns a record as it is stored now, read consistently; ok is false if
// it is gone.
type Reread func(ctx context.Context) (s Sealed, ok bool, err error)

// Open decrypts a record, under an old KEK or the new one. A KEK that is disabled,
// retired or unknown usually means that the record was rewrapped after it was read:
// with reread, which may be nil, Open reads it again before it says
// [ErrOrphanedKey].
func (c *Client) Open(ctx context.Context, s Sealed, encctx map[string]string, reread Reread) ([]byte, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	return c.open(ctx, record{Sealed: s}, encctx, func(ctx context.Context) (record, bool, error) {
		if reread == nil {
			return record{Sealed: s}, true, nil
		}
		s, ok, err := reread(ctx)
		return record{Sealed: s}, ok, err
	})
}

// record is a sealed record and how to read it.
type record struct {
	Sealed
	tink *tinkFormat // not nil: Tink wrote it
}

func (r record) same(o record) bool {
	return r.KEKID == o.KEKID && string(r.WrappedDEK) == string(o.WrappedDEK)
}

// open opens r, or what reread returns when r is out of date.
func (c *Client) open(ctx context.Context, r record, encctx map[string]string, reread func(context.Context) (record, bool, error)) ([]byte, error) {
	for range maxTries {
		plain, err := c.openOnce(ctx, r, encctx)
		if !errors.Is(err, errSuspect) && !errors.Is(err, ErrKeyUnusable) {
			return plain, err
		}
		again, ok, rerr := reread(ctx)
		switch {
		case rerr != nil:
			return nil, errors.Join(rerr, err)
		case !ok:
			return nil, ErrNotFound
		case again.same(r):
			return c.openSuspect(ctx, r, encctx)
		}
		r = again
	}
	return nil, fmt.Errorf("open: it was rewrapped %d times while it was read: %w", maxTries, ErrContended)
}

// errSuspect reports a record whose KEK does not resolve, as far as was read.
var errSuspect = errors.New("its KEK does not resolve")

// openOnce opens r with a cached data key, or with one from KMS if the registry
// lets r name its KEK.
func (c *Client) openOnce(ctx context.Context, r record, encctx map[string]string) ([]byte, error) {
	var room [512]byte // on the stack
	name := r.appendName(room[:0], encctx)
	if k := c.opening.take(name, 0, c.elapsed()); k != nil {
		c.count.hits.Add(1)
		return k.open(r)
	}
	h := c.current.Load()
	arn := h.pointer.KeyARN
	if r.KEKID != h.pointer.KEKID {
		// A registry that cannot be read is no reason not to read rows.
		entry, err := c.registered(ctx, r.KEKID, false)
		if err == nil && !entry.State.Resolves() {
			return nil, errSuspect
		}
		arn = entry.ARN
	}
	return c.unwrap(ctx, r, arn, encctx)
}

// openSuspect opens a record that names, certainly, a KEK which does not resolve
// or cannot be used. If KMS still unwraps it the reader gets its data, and the
// alarm is raised all the same.
func (c *Client) openSuspect(ctx context.Context, r record, encctx map[string]string) ([]byte, error) {
	entry, err := c.registered(ctx, r.KEKID, true)
	orphan := err == nil && !entry.State.Resolves()
	if orphan {
		c.count.orphans.Add(1)
	}
	plain, err := c.unwrap(ctx, r, entry.ARN, encctx)
	if orphan && err != nil {
		return nil, fmt.Errorf("KEK %s (registry state %q): %w: %w", r.KEKID, entry.State, ErrOrphanedKey, err)
	}
	return plain, err
}

// unwrap gets the DEK from KMS, keeps it, and opens the payload.
func (c *Client) unwrap(ctx context.Context, r record, arn string, encctx map[string]string) ([]byte, error) {
	var name string
	if !c.cfg.Cache.Off {
		name = string(r.appendName(nil, encctx))
	}
	associated := aead.AssociatedData(encctx)
	if r.tink != nil {
		encctx = nil // Tink's AWS KMS client binds none to a DEK
	}
	get := func(ctx context.Context) (*dataKey, error) {
		c.count.misses.Add(1)
		born := c.elapsed()
		out, err := c.cfg.KMS.Decrypt(ctx, &kms.DecryptInput{
			KeyId: keyName(r.KEKID, arn), CiphertextBlob: r.WrappedDEK, EncryptionContext: encctx,
		})
		if err != nil {
			return nil, kmsError("Decrypt", r.KEKID, err)
		}
		var k *dataKey
		secretly(func() { k, err = r.expand(out.Plaintext) })
		clear(out.Plaintext)
		if err != nil {
			return nil, fmt.Errorf("kms Decrypt, KEK %s: %w", r.KEKID, err)
		}
		k.associated = associated
		c.opening.put(name, k, 0, born)
		return k, nil
	}
	var k *dataKey
	var err error
	if c.cfg.Cache.Off {
		k, err = get(ctx)
	} else {
		k, err = c.shared(ctx, "open "+name, get)
	}
	if err != nil {
		return nil, err
	}
	return k.open(r)
}

// expand makes a data key of DEK bytes, which the caller clears.
func (r record) expand(dek []byte) (k *dataKey, err error) {
	k = &dataKey{wrapped: r.WrappedDEK}
	if r.tink != nil {
		k.tink, err = expandTink(dek)
	} else {
		k.aead, err = aead.New(dek)
	}
	return k, err
}

func (k *dataKey) open(r record) ([]byte, error) {
	if r.tink != nil {
		plain, err := k.tink.Decrypt(r.Ciphertext, r.tink.associated)
		if err != nil {
			return nil, ErrAltered // Tink's error says no more
		}
		return plain, nil
	}
	return k.aead.Open(nil, r.Ciphertext, k.associated)
}

// appendName appends the name of a record's data key in the cache: its KEK, its
// wrapped bytes and the encryption context that it was unwrapped with, so that no
// hit passes what KMS would refuse.
func (r record) appendName(dst []byte, encctx map[string]string) []byte {
	format := byte(0)
	if r.tink != nil {
		format = 1
	}
	dst = append(dst, format)
	dst = binary.AppendUvarint(dst, uint64(len(r.KEKID)))
	dst = append(dst, r.KEKID...)
	dst = binary.AppendUvarint(dst, uint64(len(r.WrappedDEK)))
	dst = append(dst, r.WrappedDEK...)
	return aead.AppendAssociatedData(dst, encctx)
}
