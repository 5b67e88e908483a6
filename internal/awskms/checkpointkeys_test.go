package awskms_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

// TestCheckpointKeys derives one key for each stack and rotation, the same each time.
func TestCheckpointKeys(t *testing.T) {
	client := kms.NewFromConfig(mototest.Config(t))
	created, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeGenerateVerifyMac})
	if err != nil {
		t.Fatal(err)
	}
	derive := func(stack, rotation string) []byte {
		key, err := awskms.NewCheckpointKeys(client, aws.ToString(created.KeyMetadata.KeyId), stack).DeriveKey(t.Context(), rotation)
		if err != nil || len(key) != 32 {
			t.Fatalf("key of %d bytes, %v", len(key), err)
		}
		return key
	}
	first := derive("a", "r1")
	if !bytes.Equal(first, derive("a", "r1")) {
		t.Error("the same rotation has two keys")
	}
	if bytes.Equal(first, derive("a", "r2")) || bytes.Equal(first, derive("b", "r1")) {
		t.Error("two rotations or stacks have one key")
	}
	if _, err := client.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: created.KeyMetadata.KeyId}); err != nil {
		t.Fatal(err)
	}
	_, err = awskms.NewCheckpointKeys(client, aws.ToString(created.KeyMetadata.KeyId), "a").DeriveKey(t.Context(), "r1")
	if !errors.Is(err, journal.ErrKeyDisabled) {
		t.Errorf("under a disabled key: %v, want ErrKeyDisabled", err)
	}
}

// macMessages notes what is asked of KMS.
type macMessages struct{ asked []*kms.GenerateMacInput }

func (m *macMessages) GenerateMac(_ context.Context, in *kms.GenerateMacInput, _ ...func(*kms.Options)) (*kms.GenerateMacOutput, error) {
	m.asked = append(m.asked, in)
	return &kms.GenerateMacOutput{Mac: make([]byte, 32)}, nil
}

// TestCheckpointKeyMessage holds what the key is derived from, which must stay: a function of
// another version would call the checkpoints of a rotation that runs forged.
func TestCheckpointKeyMessage(t *testing.T) {
	var m macMessages
	if _, err := awskms.NewCheckpointKeys(&m, "key", "stack").DeriveKey(t.Context(), "r1"); err != nil {
		t.Fatal(err)
	}
	const want = "\x00\x00\x00\x01matter-ops/kms-rotation checkpoint key\x00stack\x00r1\x00\x00\x01\x00"
	if got := m.asked[0]; string(got.Message) != want || got.MacAlgorithm != types.MacAlgorithmSpecHmacSha256 {
		t.Errorf("%s of %q", got.MacAlgorithm, got.Message)
	}
}
