package awskms

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/rotation"
)

// MACAPI is the part of the KMS client that [CheckpointKeys] uses.
type MACAPI interface {
	GenerateMac(context.Context, *kms.GenerateMacInput, ...func(*kms.Options)) (*kms.GenerateMacOutput, error)
}

var _ rotation.CheckpointKeys = (*CheckpointKeys)(nil)

// CheckpointKeys derives the keys of checkpoints from an HMAC_256 key that never leaves KMS.
// A process asks KMS once for each rotation.
type CheckpointKeys struct {
	client MACAPI
	key    string
	stack  string
}

// NewCheckpointKeys returns the keys of a stack's checkpoints. key is the id, ARN or alias of
// its HMAC key.
func NewCheckpointKeys(client MACAPI, key, stack string) *CheckpointKeys {
	return &CheckpointKeys{client: client, key: key, stack: stack}
}

// DeriveKey implements [rotation.CheckpointKeys] by a key derivation in counter mode with
// HMAC-SHA-256 as its function, which KMS computes (NIST SP 800-108r1, section 4.1; KMS API
// reference, GenerateMac). One block is the whole key, so the counter is 1:
//
//	00 00 00 01 ‖ "matter-ops/kms-rotation checkpoint key" ‖ 00 ‖ stack ‖ 00 ‖ rotation ‖ 00 00 01 00
func (c *CheckpointKeys) DeriveKey(ctx context.Context, rotationID string) ([]byte, error) {
	message := "\x00\x00\x00\x01" + "matter-ops/kms-rotation checkpoint key" + "\x00" + c.stack + "\x00" + rotationID + "\x00\x00\x01\x00"
	out, err := c.client.GenerateMac(ctx, &kms.GenerateMacInput{
		KeyId: &c.key, MacAlgorithm: types.MacAlgorithmSpecHmacSha256, Message: []byte(message),
	})
	if err != nil {
		return nil, classifyError("GenerateMac "+c.key, err)
	}
	return out.Mac, nil
}
