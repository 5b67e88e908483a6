package envelope

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
)

// openKeyedOnce opens a keyed record with a cached data key, or with one from KMS if its
// record names a KEK of the registry. A data key without a record is errSuspect.
func (c *Client) openKeyedOnce(ctx context.Context, r record) ([]byte, error) {
	var room [64]byte // on the stack
	if k := c.opening.takeKey(r.appendCacheName(room[:0]), 0, c.elapsedTime()); k != nil {
		c.count.hits.Add(1)
		return k.openKeyed(r)
	}
	rec, ok, err := c.readRecord(ctx, r.dekID)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errSuspect
	}
	known, err := c.lookUpKEK(ctx, rec.KEKID, false)
	if err != nil {
		return nil, err
	}
	if !known.State.Resolves() {
		return nil, errSuspect
	}
	return c.openUnder(ctx, r, rec, known.ARN)
}

// openKeyedSuspect opens a keyed record that was read twice, and whose data key has no record,
// or one whose KEK does not resolve or cannot be used. A rotation may have rewrapped the record
// since it was read, so it is read until it stays the same.
func (c *Client) openKeyedSuspect(ctx context.Context, r record) ([]byte, error) {
	var last keyrecord.Record
	for range maxTries {
		rec, ok, err := c.readRecord(ctx, r.dekID)
		if err != nil {
			return nil, err
		}
		if !ok {
			c.count.orphans.Add(1)
			return nil, fmt.Errorf("data key %s: %w", r.dekID, ErrUnknownDEK)
		}
		known, err := c.lookUpKEK(ctx, rec.KEKID, true)
		if err != nil {
			return nil, err
		}
		orphan := !known.State.Resolves()
		var plain []byte
		if !orphan || known.State == kek.Retired {
			plain, err = c.openUnder(ctx, r, rec, known.ARN)
		} else {
			err = ErrUnknownKEK
		}
		settled := rec.KEKID == last.KEKID && string(rec.WrappedDEK) == string(last.WrappedDEK)
		if settled || !orphan && !errors.Is(err, ErrKeyUnusable) {
			return plain, c.reportOrphan(rec, known, orphan, err)
		}
		last = rec
	}
	return nil, fmt.Errorf("open: data key %s was rewrapped %d times while it was read: %w", r.dekID, maxTries, ErrContended)
}

// reportOrphan counts a record whose KEK does not resolve, and returns err with its name.
func (c *Client) reportOrphan(rec keyrecord.Record, k kek.KEK, orphan bool, err error) error {
	if !orphan {
		return err
	}
	c.count.orphans.Add(1)
	if err == nil {
		return nil
	}
	return fmt.Errorf("data key %s, KEK %s (registry state %q): %w: %w", rec.DEKID, rec.KEKID, k.State, ErrOrphanedKey, err)
}

// openUnder unwraps the data key of rec, caches it, and opens r. arn is the KEK's in the
// registry.
func (c *Client) openUnder(ctx context.Context, r record, rec keyrecord.Record, arn string) ([]byte, error) {
	name := ""
	if !c.cfg.Cache.Off {
		name = string(r.appendCacheName(nil))
	}
	k, err := c.opening.obtainKey(ctx, name, 0, c.elapsedTime(), func(ctx context.Context) (*dataKey, error) {
		c.count.misses.Add(1)
		k := &dataKey{bornEpoch: rec.BornEpoch, associated: aead.AssociatedData(rec.Context), born: c.elapsedTime()}
		out, err := c.cfg.KMS.Decrypt(ctx, &kms.DecryptInput{
			KeyId: keyName(rec.KEKID, arn), CiphertextBlob: rec.WrappedDEK, EncryptionContext: keyrecord.EncryptionContext(rec),
		})
		if err != nil {
			return nil, kmsError("Decrypt", rec.KEKID, err)
		}
		runSecretly(func() { k.aead, err = aead.New(out.Plaintext) })
		clear(out.Plaintext)
		if err != nil {
			return nil, fmt.Errorf("kms Decrypt, KEK %s: %w", rec.KEKID, err)
		}
		return k, nil
	})
	if err != nil {
		return nil, err
	}
	return k.openKeyed(r)
}

// openKeyed decrypts the payload of a keyed record. KMS has bound the epoch and the encryption
// context to the data key, so a row that states others was altered.
func (k *dataKey) openKeyed(r record) ([]byte, error) {
	if k.bornEpoch != r.Epoch || string(k.associated) != string(aead.AssociatedData(r.encctx)) {
		return nil, fmt.Errorf("data key %s: %w", r.dekID, ErrBadRecord)
	}
	return k.aead.Open(nil, r.Ciphertext, r.associated)
}
