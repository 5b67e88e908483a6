package envelope

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// kmsTimeout bounds a call to KMS that several callers share. The call does not end with
// the context of one of them.
const kmsTimeout = 10 * time.Second

// Sealed is an encrypted record. A row stores all its fields together.
type Sealed struct {
	KEKID      kek.ID // the KEK under which the DEK is wrapped
	Epoch      int64  // the pointer's epoch when it was wrapped
	WrappedDEK []byte // KMS ciphertext blob; shared with other records, so do not change it
	Ciphertext []byte // the payload, see package aead
}

// Seal encrypts plaintext under the KEK of the reference. encctx, the encryption context,
// is bound to the DEK in KMS and to the payload as associated data, so [Client.Open] needs
// the same one. It is not secret: CloudTrail shows it. It must be UTF-8. Seal calls KMS if
// no data key for this context is cached.
func (r *Ref) Seal(ctx context.Context, plaintext []byte, encctx map[string]string) (Sealed, error) {
	return r.AppendSeal(ctx, nil, plaintext, encctx)
}

// AppendSeal is [Ref.Seal] with the ciphertext appended to dst, which must not
// overlap plaintext.
func (r *Ref) AppendSeal(ctx context.Context, dst, plaintext []byte, encctx map[string]string) (Sealed, error) {
	if r.ended.Load() {
		return Sealed{}, errors.New("envelope: seal with a reference that has ended")
	}
	if k := r.h.sealing.takeForSealing(encctx, len(plaintext), r.at); k != nil {
		r.c.count.hits.Add(1)
		ciphertext, err := k.aead.Seal(dst, plaintext, k.associated)
		if err != nil {
			return Sealed{}, err
		}
		return Sealed{KEKID: r.h.pointer.KEKID, Epoch: r.h.pointer.Epoch, WrappedDEK: k.wrapped, Ciphertext: ciphertext}, nil
	}
	return r.c.sealPayload(ctx, r.h, r.at, dst, plaintext, encctx, nil)
}

// sealPayload seals under a cached DEK or a new one. The age of a cached DEK counts at the
// time at, when the reference was taken; the background work drops older ones. encctx is
// bound to the DEK and the payload, bind to the payload only, so records with the same
// encctx share a DEK.
func (c *Client) sealPayload(ctx context.Context, h *heldLease, at time.Duration, dst, plaintext []byte, encctx, bind map[string]string) (Sealed, error) {
	k, err := c.sealingKey(ctx, h, at, encctx, len(plaintext))
	if err != nil {
		return Sealed{}, err
	}
	ciphertext, err := k.aead.Seal(dst, plaintext, k.associatedWith(encctx, bind))
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{KEKID: h.pointer.KEKID, Epoch: h.pointer.Epoch, WrappedDEK: k.wrapped, Ciphertext: ciphertext}, nil
}

// sealingKey returns the data key of an encryption context, a cached one or a new one.
func (c *Client) sealingKey(ctx context.Context, h *heldLease, at time.Duration, encctx map[string]string, size int) (*dataKey, error) {
	var room [256]byte // on the stack
	name := aead.AppendAssociatedData(room[:0], encctx)
	if k := h.sealing.takeKey(name, size, at); k != nil {
		c.count.hits.Add(1)
		return k, nil
	}
	return c.generateKey(ctx, h, at, string(name), encctx, size)
}

// errSealKey reports a KEK that is disabled or deleted. A writer then reads the pointer
// again, because a rotation may have retired the KEK while the process was suspended.
var errSealKey = errors.New("no data key can be made")

// generateKey makes a DEK for a record of size bytes. Concurrent callers with the same
// encryption context share it, unless the cache is off: then every record has its own.
func (c *Client) generateKey(ctx context.Context, h *heldLease, at time.Duration, name string, encctx map[string]string, size int) (*dataKey, error) {
	if err := checkContextText(encctx); err != nil {
		return nil, err
	}
	return h.sealing.obtainKey(ctx, name, size, at, func(ctx context.Context) (*dataKey, error) {
		c.count.misses.Add(1)
		k := &dataKey{associated: []byte(name), encctx: pairsOf(encctx), born: c.elapsedTime()}
		out, err := c.cfg.KMS.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: keyName(h.pointer.KEKID, h.pointer.KeyARN), KeySpec: types.DataKeySpecAes256, EncryptionContext: encctx,
		})
		if err != nil {
			if err = kmsError("GenerateDataKey", h.pointer.KEKID, err); errors.Is(err, ErrKeyUnusable) {
				err = fmt.Errorf("%w: %w", errSealKey, err)
			}
			return nil, err
		}
		k.wrapped = out.CiphertextBlob
		runSecretly(func() { k.aead, err = aead.New(out.Plaintext) })
		clear(out.Plaintext)
		if err != nil {
			return nil, fmt.Errorf("kms GenerateDataKey, KEK %s: %w", h.pointer.KEKID, err)
		}
		return k, nil
	})
}

// keyName returns the KeyId parameter for KMS: the ARN if it is known, because only an ARN
// can name a key of another account.
func keyName(id kek.ID, arn string) *string {
	if arn != "" {
		return &arn
	}
	s := string(id)
	return &s
}
