package awskms

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/rotation/anchor"
)

// SignAPI is the part of the KMS client that [Signer] uses.
type SignAPI interface {
	GetPublicKey(context.Context, *kms.GetPublicKeyInput, ...func(*kms.Options)) (*kms.GetPublicKeyOutput, error)
	Sign(context.Context, *kms.SignInput, ...func(*kms.Options)) (*kms.SignOutput, error)
}

var _ anchor.Signer = (*Signer)(nil)

// Signer is the anchor key, an ECC_NIST_P256 key that never leaves KMS. It signs anchors
// of the audit chain and is not a KEK.
type Signer struct {
	client SignAPI
	key    string
}

// NewSigner returns the anchor key with this id, ARN or alias.
func NewSigner(client SignAPI, key string) *Signer { return &Signer{client: client, key: key} }

// PublicKey implements [anchor.Signer].
func (s *Signer) PublicKey(ctx context.Context) ([]byte, error) {
	out, err := s.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &s.key})
	if err != nil {
		return nil, classifyError("GetPublicKey "+s.key, err)
	}
	return out.PublicKey, nil
}

// Sign implements [anchor.Signer]. KMS hashes the message itself, of at most 4,096
// bytes (KMS API reference, Sign). So nobody can get a digest signed without its message
// being in the request.
func (s *Signer) Sign(ctx context.Context, msg []byte) ([]byte, error) {
	out, err := s.client.Sign(ctx, &kms.SignInput{
		KeyId: &s.key, Message: msg, MessageType: types.MessageTypeRaw, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return nil, classifyError("Sign "+s.key, err)
	}
	return out.Signature, nil
}
