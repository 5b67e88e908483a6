package awskms

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go/middleware"
	"golang.org/x/time/rate"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// WrapperAPI is what [Wrapper] uses of the KMS client.
type WrapperAPI interface {
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
	GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
	ReEncrypt(context.Context, *kms.ReEncryptInput, ...func(*kms.Options)) (*kms.ReEncryptOutput, error)
}

// maxBlob is the longest ciphertext blob that KMS takes.
const maxBlob = 6144

const validation = "ValidationException"

var _ rotation.Wrapper = (*Wrapper)(nil)

// Wrapper wraps and unwraps DEKs. It is safe for concurrent use. A plaintext DEK is
// the caller's to clear.
type Wrapper struct {
	client WrapperAPI
	limit  []func(*kms.Options)
}

// NewWrapper returns a wrapper that makes no more requests to KMS than the limiter
// lets through, the SDK's own repetitions included: live traffic shares the quota.
func NewWrapper(client WrapperAPI, limiter *rate.Limiter) *Wrapper {
	return &Wrapper{client: client, limit: []func(*kms.Options){limited(limiter)}}
}

// limited makes every attempt of an operation wait for the limiter, before it is
// signed.
func limited(limiter *rate.Limiter) func(*kms.Options) {
	wait := middleware.FinalizeMiddlewareFunc("RateLimit", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		if err := limiter.Wait(ctx); err != nil {
			return middleware.FinalizeOutput{}, middleware.Metadata{}, fmt.Errorf("wait for the rate limit: %w", err)
		}
		return next.HandleFinalize(ctx, in)
	})
	return kms.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(wait, "Retry", middleware.After)
	})
}

// GenerateDataKey implements [rotation.Wrapper].
func (w *Wrapper) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	out, err := w.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
		KeyId: aws.String(string(id)), KeySpec: types.DataKeySpecAes256, EncryptionContext: encctx,
	}, w.limit...)
	op := "GenerateDataKey " + string(id)
	if awserr.Code(err) == validation {
		return nil, nil, fmt.Errorf("kms %s: %w", op, errInvalid)
	}
	if err != nil {
		return nil, nil, wrap(op, err)
	}
	return out.Plaintext, out.CiphertextBlob, nil
}

// Decrypt implements [rotation.Wrapper].
func (w *Wrapper) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	op := "Decrypt " + string(id)
	if err := checkBlob(op, wrapped); err != nil {
		return nil, err
	}
	out, err := w.client.Decrypt(ctx, &kms.DecryptInput{
		KeyId: aws.String(string(id)), CiphertextBlob: wrapped, EncryptionContext: encctx,
	}, w.limit...)
	if err != nil {
		return nil, unwrapError(op, err)
	}
	return out.Plaintext, nil
}

// Identify implements [rotation.Wrapper]. KMS reads the key out of the blob; what it
// unwraps is cleared at once. KMS denies a blob whose key is gone or another
// account's in the same words as one that the caller may not use.
func (w *Wrapper) Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, keyARN string, err error) {
	const op = "Decrypt by the key that the blob names"
	if err := checkBlob(op, wrapped); err != nil {
		return "", "", err
	}
	out, err := w.client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: wrapped, EncryptionContext: encctx}, w.limit...)
	if err != nil {
		return "", "", unwrapError(op, err)
	}
	clear(out.Plaintext)
	id, keyARN, _ = kek.ParseKeyRef(aws.ToString(out.KeyId))
	if keyARN == "" {
		return "", "", fmt.Errorf("kms %s: the answer names the key %q, which is no key ARN", op, aws.ToString(out.KeyId))
	}
	return id, keyARN, nil
}

// ReEncrypt implements [rotation.Wrapper]. The DEK does not leave KMS.
func (w *Wrapper) ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	op := fmt.Sprintf("ReEncrypt %s to %s", from, to)
	if err := checkBlob(op, wrapped); err != nil {
		return nil, err
	}
	out, err := w.client.ReEncrypt(ctx, &kms.ReEncryptInput{
		SourceKeyId: aws.String(string(from)), SourceEncryptionContext: encctx, CiphertextBlob: wrapped,
		DestinationKeyId: aws.String(string(to)), DestinationEncryptionContext: encctx,
	}, w.limit...)
	if err != nil {
		return nil, unwrapError(op, err)
	}
	return out.CiphertextBlob, nil
}

// checkBlob refuses what KMS would call an invalid request, so that a row with such
// a blob is one bad row.
func checkBlob(op string, wrapped []byte) error {
	if n := len(wrapped); n == 0 || n > maxBlob {
		return fmt.Errorf("kms %s: a blob of %d bytes: %w", op, n, rotation.ErrUnwrap)
	}
	return nil
}

// errInvalid stands in for a ValidationException, whose message quotes the values
// that KMS does not like: an encryption context is nobody else's business.
var errInvalid = errors.New("KMS calls the request invalid")

// unwrapError says what an error means. A request that is invalid although the key
// ids are good is a row whose encryption context is beyond KMS's limits, under which
// nothing was ever wrapped.
func unwrapError(op string, err error) error {
	if awserr.Code(err) == validation {
		return fmt.Errorf("kms %s: %w: %w", op, rotation.ErrUnwrap, errInvalid)
	}
	return wrap(op, err)
}
