package envelope

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// Reread returns a record as it is stored now, by a consistent read; ok is false if it no
// longer exists.
type Reread func(ctx context.Context) (s Sealed, ok bool, err error)

// Open decrypts a record, under an old KEK or the new one. A KEK that is disabled, retired
// or unknown usually means that the record was rewrapped after it was read. If reread is
// not nil, Open reads the record again before it returns [ErrOrphanedKey] or
// [ErrUnknownKEK].
func (c *Client) Open(ctx context.Context, s Sealed, encctx map[string]string, reread Reread) ([]byte, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	if !c.cfg.Cache.Off {
		if k := c.opening.takeForOpening(&s, encctx, c.elapsedTime()); k != nil {
			c.count.hits.Add(1)
			return k.aead.Open(nil, s.Ciphertext, k.associated)
		}
	}
	r := newRecord(s)
	r.encctx = encctx
	return c.openRecord(ctx, r, func(ctx context.Context) (record, bool, error) {
		if reread == nil {
			return r, true, nil
		}
		s, ok, err := reread(ctx)
		again := newRecord(s)
		again.encctx = encctx
		return again, ok, err
	})
}

// record is a sealed record and what is needed to open it.
type record struct {
	Sealed
	arn    string            // of its KEK, as the record says; "" if the record has the id only
	encctx map[string]string // bound to the DEK and to the payload
	bind   map[string]string // bound to the payload only
	tink   *tinkFormat       // not nil if Tink wrote it

	dekID      string // the data key that a keyed record names, in which Sealed has no KEK; "" of an embedded one
	associated []byte // of a keyed record: associated data of the payload
}

// newRecord decodes the reference to the KEK, a key id or a key ARN. Any other form, such
// as an alias, is kept as an id, which no registry has.
func newRecord(s Sealed) record {
	r := record{Sealed: s}
	if id, arn, ok := kek.ParseKeyRef(string(s.KEKID)); ok {
		r.KEKID, r.arn = id, arn
	}
	return r
}

// sameWrapping reports whether two reads of a record found the same KEK and wrapped DEK, or
// the same name of a data key.
func (r record) sameWrapping(o record) bool {
	return r.dekID == o.dekID && r.KEKID == o.KEKID && r.arn == o.arn && string(r.WrappedDEK) == string(o.WrappedDEK)
}

// namesKEK reports whether k is the KEK that r names. A record that names its KEK by ARN
// must have the ARN of the registry: the same id in another account is another key.
func (r record) namesKEK(k kek.KEK) bool { return r.arn == "" || r.arn == k.ARN }

// openRecord opens r, or what reread returns when r is out of date.
func (c *Client) openRecord(ctx context.Context, r record, reread func(context.Context) (record, bool, error)) ([]byte, error) {
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
		case again.sameWrapping(r):
			return c.openSuspect(ctx, again)
		}
		r = again
	}
	return nil, fmt.Errorf("open: it was rewrapped %d times while it was read: %w", maxTries, ErrContended)
}

// errSuspect reports a record whose KEK does not resolve by the entry that is in memory.
var errSuspect = errors.New("its KEK does not resolve")

// openOnce opens r with a cached data key, or with one from KMS if the registry says that
// rows may name its KEK.
func (c *Client) openOnce(ctx context.Context, r record) ([]byte, error) {
	if r.dekID != "" {
		return c.openKeyedOnce(ctx, r)
	}
	if !c.cfg.Cache.Off {
		var room [512]byte // on the stack
		if k := c.opening.takeKey(r.appendCacheName(room[:0]), 0, c.elapsedTime()); k != nil {
			c.count.hits.Add(1)
			return k.openPayload(r)
		}
	}
	k, err := c.lookUpKEK(ctx, r.KEKID, false)
	if err != nil {
		return nil, err
	}
	if !k.State.Resolves() || !r.namesKEK(k) {
		return nil, errSuspect
	}
	return c.unwrapRecord(ctx, r, k.ARN)
}

// openSuspect opens a record that was read twice and names a KEK which does not resolve or
// cannot be used. If the KEK is retired and KMS still unwraps, the caller gets the data,
// and the metric that raises the alarm is counted. KMS is not called for a KEK that rows
// never could name: it may be a key in an attacker's account.
func (c *Client) openSuspect(ctx context.Context, r record) ([]byte, error) {
	if r.dekID != "" {
		return c.openKeyedSuspect(ctx, r)
	}
	k, err := c.lookUpKEK(ctx, r.KEKID, true)
	if err != nil {
		return nil, err
	}
	known := (k.State.Resolves() || k.State == kek.Retired) && r.namesKEK(k)
	orphan := !known || !k.State.Resolves()
	if orphan {
		c.count.orphans.Add(1)
	}
	if !known {
		return nil, fmt.Errorf("KEK %q (registry state %q): %w", r.KEKID, k.State, ErrUnknownKEK)
	}
	plain, err := c.unwrapRecord(ctx, r, k.ARN)
	if orphan && err != nil {
		return nil, fmt.Errorf("KEK %s (registry state %q): %w: %w", r.KEKID, k.State, ErrOrphanedKey, err)
	}
	return plain, err
}

// unwrapRecord gets the DEK from KMS, caches it, and opens the payload. arn comes from the
// registry or the pointer, never from the record, which a person with write access to the
// table can change.
func (c *Client) unwrapRecord(ctx context.Context, r record, arn string) ([]byte, error) {
	var k *dataKey
	var err error
	if c.cfg.Cache.Off {
		k, err = c.unwrapKey(ctx, &r, arn)
	} else {
		k, err = c.obtainOpeningKey(ctx, r, arn)
	}
	if err != nil {
		return nil, err
	}
	return k.openPayload(r)
}

// obtainOpeningKey returns the DEK of a record from KMS, and caches it.
func (c *Client) obtainOpeningKey(ctx context.Context, r record, arn string) (*dataKey, error) {
	name := string(r.appendCacheName(nil))
	return c.opening.obtainKey(ctx, name, 0, c.elapsedTime(), func(ctx context.Context) (*dataKey, error) {
		k, err := c.unwrapKey(ctx, &r, arn)
		if err == nil {
			k.encctx = pairsOf(r.encctx)
			k.kekRef = cmp.Or(kek.ID(r.arn), r.KEKID)
			k.wrapped = bytes.Clone(r.WrappedDEK)
		}
		return k, err
	})
}

// unwrapKey gets the DEK of a record from KMS.
func (c *Client) unwrapKey(ctx context.Context, r *record, arn string) (*dataKey, error) {
	c.count.misses.Add(1)
	var born time.Duration // of no use to a key that is used once
	if !c.cfg.Cache.Off {
		born = c.elapsedTime()
	}
	in := &kms.DecryptInput{KeyId: keyName(r.KEKID, arn), CiphertextBlob: r.WrappedDEK}
	if r.tink == nil { // Tink's AWS KMS client binds no encryption context to a DEK
		in.EncryptionContext = r.encctx
	}
	out, err := c.cfg.KMS.Decrypt(ctx, in)
	if err != nil {
		return nil, kmsError("Decrypt", r.KEKID, err)
	}
	var k *dataKey
	runSecretly(func() { k, err = r.expandKey(out.Plaintext) })
	clear(out.Plaintext)
	if err != nil {
		return nil, fmt.Errorf("kms Decrypt, KEK %s: %w", r.KEKID, err)
	}
	k.associated, k.born = aead.AssociatedData(r.encctx), born
	return k, nil
}

// expandKey makes a data key from the bytes of a DEK, which the caller clears.
func (r *record) expandKey(dek []byte) (k *dataKey, err error) {
	k = &dataKey{}
	if r.tink != nil {
		k.tink, err = expandTink(dek)
	} else {
		k.aead, err = aead.New(dek)
	}
	return k, err
}

// openPayload decrypts the payload of r. The error is [ErrAltered] or [ErrFormat].
func (k *dataKey) openPayload(r record) ([]byte, error) {
	if r.tink != nil {
		plain, err := k.tink.Open(nil, nil, r.Ciphertext, r.tink.associated)
		if err != nil {
			return nil, ErrAltered // Tink's error has no more information
		}
		return plain, nil
	}
	return k.aead.Open(nil, r.Ciphertext, k.associatedWith(r.encctx, r.bind))
}

// appendCacheName appends the name of a record's data key in the cache: the KEK as the
// record names it, the wrapped bytes and the encryption context. All three are needed:
// otherwise a cached key could open a record that the registry or KMS would refuse. The id of a
// keyed record's data key suffices: what was bound to the key is checked when it is used.
func (r record) appendCacheName(dst []byte) []byte {
	if r.dekID != "" {
		return append(append(dst, 2), r.dekID...)
	}
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
