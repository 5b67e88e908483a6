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

// kmsTimeout bounds a call that several waiters share.
const kmsTimeout = 10 * time.Second

// Sealed is an encrypted record. A row holds all of it.
type Sealed struct {
	KEKID      kek.ID // the KEK that the DEK is wrapped under
	Epoch      int64  // the pointer's epoch when it was wrapped
	WrappedDEK []byte // KMS ciphertext blob; shared with other records, not to be changed
	Ciphertext []byte // the payload, see package aead
}

// Seal encrypts plaintext under the referred KEK. encctx, the encryption context,
// is bound to the DEK in KMS and to the payload as associated data: opening takes
// the same one. It is not secret; CloudTrail shows it. Text in it that is not UTF-8
// is refused.
func (r *Ref) Seal(ctx context.Context, plaintext []byte, encctx map[string]string) (Sealed, error) {
	return r.AppendSeal(ctx, nil, plaintext, encctx)
}

// AppendSeal is [Ref.Seal] with the ciphertext appended to dst, which must not
// overlap plaintext.
func (r *Ref) AppendSeal(ctx context.Context, dst, plaintext []byte, encctx map[string]string) (Sealed, error) {
	if r.ended.Load() {
		return Sealed{}, errors.New("envelope: seal with a reference that has ended")
	}
	return r.c.seal(ctx, r.h, r.at, dst, plaintext, encctx, nil)
}

// seal judges the age of a cached DEK as of at, when the reference was taken: the
// keeper drops what grows old while it lasts. encctx is bound to the DEK and the
// payload, bind to the payload alone, so DEKs are shared by encctx.
func (c *Client) seal(ctx context.Context, h *hold, at time.Duration, dst, plaintext []byte, encctx, bind map[string]string) (Sealed, error) {
	var room [256]byte // on the stack
	name := aead.AppendAssociatedData(room[:0], encctx)
	k := h.sealing.take(name, len(plaintext), at)
	if k != nil {
		c.count.hits.Add(1)
	} else {
		var err error
		if k, err = c.generate(ctx, h, at, string(name), encctx, len(plaintext)); err != nil {
			return Sealed{}, err
		}
	}
	ciphertext, err := k.aead.Seal(dst, plaintext, k.associatedWith(encctx, bind))
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{KEKID: h.pointer.KEKID, Epoch: h.pointer.Epoch, WrappedDEK: k.wrapped, Ciphertext: ciphertext}, nil
}

// errSealKey reports a KEK that may wrap no more. A writer then reads the pointer
// again.
var errSealKey = errors.New("no data key can be made")

// generate makes a DEK for a record of size bytes. Callers that want one for the same
// encryption context at once share it, unless there is no cache: then every record has
// its own.
func (c *Client) generate(ctx context.Context, h *hold, at time.Duration, name string, encctx map[string]string, size int) (*dataKey, error) {
	if err := checkText(encctx); err != nil {
		return nil, err
	}
	return h.sealing.obtain(ctx, name, size, at, func(ctx context.Context) (*dataKey, error) {
		c.count.misses.Add(1)
		k := &dataKey{associated: []byte(name), born: c.elapsed()}
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
		secretly(func() { k.aead, err = aead.New(out.Plaintext) })
		clear(out.Plaintext)
		if err != nil {
			return nil, fmt.Errorf("kms GenerateDataKey, KEK %s: %w", h.pointer.KEKID, err)
		}
		return k, nil
	})
}

// keyName is how KMS is told a key: by ARN where it is known, so that a key of
// another account can be used.
func keyName(id kek.ID, arn string) *string {
	if arn != "" {
		return &arn
	}
	s := string(id)
	return &s
}
