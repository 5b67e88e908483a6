package awskms

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// WrapperAPI is the part of the KMS client that [Wrapper] uses.
type WrapperAPI interface {
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
	GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
	ReEncrypt(context.Context, *kms.ReEncryptInput, ...func(*kms.Options)) (*kms.ReEncryptOutput, error)
}

// maxBlob is the longest ciphertext blob in bytes that KMS accepts (KMS API reference,
// Decrypt, CiphertextBlob).
const maxBlob = 6144

const validation = "ValidationException"

var _ keyring.Wrapper = (*Wrapper)(nil)

// Wrapper wraps and unwraps DEKs. It is safe for concurrent use. The caller must clear a
// plaintext DEK.
type Wrapper struct {
	client WrapperAPI
	limit  []func(*kms.Options)
}

// NewWrapper returns a wrapper that spends a request of the budget for each attempt that it
// makes, including the SDK's retries: live traffic shares the account's quota. Without a
// budget nothing bounds it.
func NewWrapper(client WrapperAPI, requests *budget.Budget) *Wrapper {
	return &Wrapper{client: client, limit: []func(*kms.Options){kms.WithAPIOptions(budget.SpendRequests(requests))}}
}

// GenerateDataKey implements [keyring.Wrapper].
func (w *Wrapper) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	out, err := w.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
		KeyId: aws.String(string(id)), KeySpec: types.DataKeySpecAes256, EncryptionContext: encctx,
	}, w.limit...)
	op := "GenerateDataKey " + string(id)
	if remote.ErrorCode(err) == validation {
		return nil, nil, fmt.Errorf("kms %s: %w", op, errInvalid)
	}
	if err != nil {
		return nil, nil, classifyError(op, err)
	}
	return out.Plaintext, out.CiphertextBlob, nil
}

// Decrypt implements [keyring.Wrapper].
func (w *Wrapper) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	op := "Decrypt " + string(id)
	if err := checkBlob(op, wrapped); err != nil {
		return nil, err
	}
	out, err := w.client.Decrypt(ctx, &kms.DecryptInput{
		KeyId: aws.String(string(id)), CiphertextBlob: wrapped, EncryptionContext: encctx,
	}, w.limit...)
	if err != nil {
		return nil, classifyUnwrapError(op, err)
	}
	return out.Plaintext, nil
}

// Identify implements [keyring.Wrapper]. KMS finds the key by the blob; the plaintext is
// cleared at once. KMS gives the same AccessDenied answer for a blob whose key is deleted,
// belongs to another account, or may not be used by the caller.
func (w *Wrapper) Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, keyARN string, err error) {
	const op = "Decrypt by the key that the blob names"
	if err := checkBlob(op, wrapped); err != nil {
		return "", "", err
	}
	out, err := w.client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: wrapped, EncryptionContext: encctx}, w.limit...)
	if err != nil {
		return "", "", classifyUnwrapError(op, err)
	}
	clear(out.Plaintext)
	id, keyARN, _ = kek.ParseKeyRef(aws.ToString(out.KeyId))
	if keyARN == "" {
		return "", "", fmt.Errorf("kms %s: the answer names the key %q, which is not a key ARN", op, aws.ToString(out.KeyId))
	}
	return id, keyARN, nil
}

// ReEncrypt implements [keyring.Wrapper]. The DEK does not leave KMS.
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
		return nil, classifyUnwrapError(op, err)
	}
	return out.CiphertextBlob, nil
}

// checkBlob refuses a blob of a length that makes the request invalid, so that a row with
// such a blob is one bad row and not a failed call.
func checkBlob(op string, wrapped []byte) error {
	if n := len(wrapped); n == 0 || n > maxBlob {
		return fmt.Errorf("kms %s: a blob of %d bytes: %w", op, n, journal.ErrUnwrap)
	}
	return nil
}

// errInvalid replaces a ValidationException. The message of that quotes request values; it
// is dropped so that an encryption context never reaches a log.
var errInvalid = errors.New("KMS calls the request invalid")

// classifyUnwrapError classifies an error of an unwrap. If the key ids are good, an
// invalid request means that the row's encryption context exceeds KMS's limits, so nothing
// can have been wrapped with it: the row is bad.
func classifyUnwrapError(op string, err error) error {
	if remote.ErrorCode(err) == validation {
		return fmt.Errorf("kms %s: %w: %w", op, journal.ErrUnwrap, errInvalid)
	}
	return classifyError(op, err)
}
