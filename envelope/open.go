package envelope

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// Reread returns a record as it is stored now, read consistently; ok is false if
// it is gone.
type Reread func(ctx context.Context) (s Sealed, ok bool, err error)

// Open decrypts a record, under an old KEK or the new one. A KEK that is disabled,
// retired or unknown usually means that the record was rewrapped after it was read:
// with reread, which may be nil, Open reads it again before it says
// [ErrOrphanedKey] or [ErrUnknownKEK].
func (c *Client) Open(ctx context.Context, s Sealed, encctx map[string]string, reread Reread) ([]byte, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	r := newRecord(s)
	r.encctx = encctx
	return c.open(ctx, r, func(ctx context.Context) (record, bool, error) {
		if reread == nil {
			return r, true, nil
		}
		s, ok, err := reread(ctx)
		again := newRecord(s)
		again.encctx = encctx
		return again, ok, err
	})
}

// record is a sealed record and how to read it.
type record struct {
	Sealed
	arn    string            // of its KEK, as the record says; "" if that gives the id alone
	encctx map[string]string // bound to the DEK and to the payload
	bind   map[string]string // bound to the payload alone
	tink   *tinkFormat       // not nil: Tink wrote it
}

// newRecord reads the name of the record's KEK, a key id or a key ARN. Every other
// form, an alias for example, is kept as the id of a KEK that no registry knows.
func newRecord(s Sealed) record {
	r := record{Sealed: s}
	if id, arn, ok := kek.ParseKeyRef(string(s.KEKID)); ok {
		r.KEKID, r.arn = id, arn
	}
	return r
}

func (r record) same(o record) bool {
	return r.KEKID == o.KEKID && r.arn == o.arn && string(r.WrappedDEK) == string(o.WrappedDEK)
}

// names reports whether k is the KEK that r names.
func (r record) names(k kek.KEK) bool { return r.arn == "" || r.arn == k.ARN }

// open opens r, or what reread returns when r is out of date.
func (c *Client) open(ctx context.Context, r record, reread func(context.Context) (record, bool, error)) ([]byte, error) {
	for range maxTries {
		plain, err := c.openOnce(ctx, r)
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
			return c.openSuspect(ctx, again)
		}
		r = again
	}
	return nil, fmt.Errorf("open: it was rewrapped %d times while it was read: %w", maxTries, ErrContended)
}

// errSuspect reports a record whose KEK does not resolve, as far as was read.
var errSuspect = errors.New("its KEK does not resolve")

// openOnce opens r with a cached data key, or with one from KMS if the registry
// lets r name its KEK.
func (c *Client) openOnce(ctx context.Context, r record) ([]byte, error) {
	var room [512]byte // on the stack
	if k := c.opening.take(r.appendName(room[:0]), 0, c.elapsed()); k != nil {
		c.count.hits.Add(1)
		return k.open(r)
	}
	k, err := c.registered(ctx, r.KEKID, false)
	if err != nil {
		return nil, err
	}
	if !k.State.Resolves() || !r.names(k) {
		return nil, errSuspect
	}
	return c.unwrap(ctx, r, k.ARN)
}

// openSuspect opens a record that names, certainly, a KEK which does not resolve
// or cannot be used. If the KEK was retired and KMS still unwraps, the reader gets its
// data, and the alarm is raised all the same. A KEK that the registry never let rows
// name is not asked for: it may be one of an attacker's account.
func (c *Client) openSuspect(ctx context.Context, r record) ([]byte, error) {
	k, err := c.registered(ctx, r.KEKID, true)
	if err != nil {
		return nil, err
	}
	known := (k.State.Resolves() || k.State == kek.Retired) && r.names(k)
	orphan := !known || !k.State.Resolves()
	if orphan {
		c.count.orphans.Add(1)
	}
	if !known {
		return nil, fmt.Errorf("KEK %q (registry state %q): %w", r.KEKID, k.State, ErrUnknownKEK)
	}
	plain, err := c.unwrap(ctx, r, k.ARN)
	if orphan && err != nil {
		return nil, fmt.Errorf("KEK %s (registry state %q): %w: %w", r.KEKID, k.State, ErrOrphanedKey, err)
	}
	return plain, err
}

// unwrap gets the DEK from KMS, keeps it, and opens the payload. arn is the registry's
// or the pointer's, never the record's.
func (c *Client) unwrap(ctx context.Context, r record, arn string) ([]byte, error) {
	var name string
	if !c.cfg.Cache.Off {
		name = string(r.appendName(nil))
	}
	k, err := c.opening.obtain(ctx, name, 0, c.elapsed(), func(ctx context.Context) (*dataKey, error) {
		c.count.misses.Add(1)
		born := c.elapsed()
		in := &kms.DecryptInput{KeyId: keyName(r.KEKID, arn), CiphertextBlob: r.WrappedDEK}
		if r.tink == nil { // Tink's AWS KMS client binds no encryption context to a DEK
			in.EncryptionContext = r.encctx
		}
		out, err := c.cfg.KMS.Decrypt(ctx, in)
		if err != nil {
			return nil, kmsError("Decrypt", r.KEKID, err)
		}
		var k *dataKey
		secretly(func() { k, err = r.expand(out.Plaintext) })
		clear(out.Plaintext)
		if err != nil {
			return nil, fmt.Errorf("kms Decrypt, KEK %s: %w", r.KEKID, err)
		}
		k.associated, k.born = aead.AssociatedData(r.encctx), born
		return k, nil
	})
	if err != nil {
		return nil, err
	}
	return k.open(r)
}

// expand makes a data key of DEK bytes, which the caller clears.
func (r record) expand(dek []byte) (k *dataKey, err error) {
	k = &dataKey{}
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
	return k.aead.Open(nil, r.Ciphertext, k.associatedWith(r.encctx, r.bind))
}

// appendName appends the name of a record's data key in the cache: its KEK as the
// record names it, its wrapped bytes and the encryption context that it was unwrapped
// with, so that no hit passes what the registry or KMS would refuse.
func (r record) appendName(dst []byte) []byte {
	format := byte(0)
	if r.tink != nil {
		format = 1
	}
	dst = append(dst, format)
	dst = binary.AppendUvarint(dst, uint64(len(r.KEKID)))
	dst = append(dst, r.KEKID...)
	dst = binary.AppendUvarint(dst, uint64(len(r.arn)))
	dst = append(dst, r.arn...)
	dst = binary.AppendUvarint(dst, uint64(len(r.WrappedDEK)))
	dst = append(dst, r.WrappedDEK...)
	return aead.AppendAssociatedData(dst, r.encctx)
}
