package awskms

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/rotation"
)

// SignAPI is what [Signer] uses of the KMS client.
type SignAPI interface {
	GetPublicKey(context.Context, *kms.GetPublicKeyInput, ...func(*kms.Options)) (*kms.GetPublicKeyOutput, error)
	Sign(context.Context, *kms.SignInput, ...func(*kms.Options)) (*kms.SignOutput, error)
}

var _ rotation.AnchorSigner = (*Signer)(nil)

// Signer is the anchor key in KMS: ECC_NIST_P256, which never leaves it. It is no
// KEK.
type Signer struct {
	client SignAPI
	key    string
}

// NewSigner returns the anchor key of an id, an ARN or an alias.
func NewSigner(client SignAPI, key string) *Signer { return &Signer{client: client, key: key} }

// PublicKey implements [rotation.AnchorSigner].
func (s *Signer) PublicKey(ctx context.Context) ([]byte, error) {
	out, err := s.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &s.key})
	if err != nil {
		return nil, wrap("GetPublicKey "+s.key, err)
	}
	return out.PublicKey, nil
}

// Sign implements [rotation.AnchorSigner]. KMS hashes the message itself, up to
// 4,096 bytes of it, so that nobody can have a digest signed whose message KMS has
// not seen.
func (s *Signer) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	out, err := s.client.Sign(ctx, &kms.SignInput{
		KeyId: &s.key, Message: msg, MessageType: types.MessageTypeRaw, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return nil, wrap("Sign "+s.key, err)
	}
	return out.Signature, nil
}
