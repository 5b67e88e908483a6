// Package awsapi shows the key service in memory as the AWS SDK shows KMS, for tests
// of what calls the SDK: package envelope, mostly.
package awsapi

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// KMS is the data plane's part of KMS.
type KMS struct{ Keys *memstore.KMS }

// GenerateDataKey is the SDK's.
func (k KMS) GenerateDataKey(ctx context.Context, in *kms.GenerateDataKeyInput, _ ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	dek, wrapped, err := k.Keys.GenerateDataKey(ctx, KeyID(in.KeyId), in.EncryptionContext)
	if err != nil {
		return nil, fault(err)
	}
	return &kms.GenerateDataKeyOutput{Plaintext: dek, CiphertextBlob: wrapped}, nil
}

// Decrypt is the SDK's.
func (k KMS) Decrypt(ctx context.Context, in *kms.DecryptInput, _ ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	dek, err := k.Keys.Decrypt(ctx, KeyID(in.KeyId), in.CiphertextBlob, in.EncryptionContext)
	if err != nil {
		return nil, fault(err)
	}
	return &kms.DecryptOutput{Plaintext: dek}, nil
}

// KeyID takes the id out of a key's ARN, as KMS does.
func KeyID(name *string) kek.ID {
	id := aws.ToString(name)
	return kek.ID(id[strings.LastIndexByte(id, '/')+1:])
}

func fault(err error) error {
	switch {
	case errors.Is(err, journal.ErrKeyDisabled):
		return &types.DisabledException{}
	case errors.Is(err, journal.ErrUnwrap):
		return &types.InvalidCiphertextException{}
	case errors.Is(err, journal.ErrNoKey):
		return &types.NotFoundException{}
	default:
		return err
	}
}
