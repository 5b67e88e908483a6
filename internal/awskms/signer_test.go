package awskms_test

import (
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/mototest"
	"github.com/matter-ops/kms-rotation/test/storetest"
)

// TestSigner signs a statement as the anchor key and verifies it without KMS.
func TestSigner(t *testing.T) {
	client := kms.NewFromConfig(mototest.Config(t))
	key, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{
		KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := awskms.NewSigner(client, aws.ToString(key.KeyMetadata.KeyId))
	signed := audit.Signed{Statement: audit.NewStatement("c", 1, audit.AnchorGenesis("c"), audit.Genesis("c"), storetest.Clock()())}
	msg, err := signed.Statement.Message()
	if err != nil {
		t.Fatal(err)
	}
	if signed.Key, err = s.PublicKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if signed.Signature, err = s.Sign(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	if err := signed.Verify(); err != nil {
		t.Error(err)
	}
	signed.Statement.Seq++
	if err := signed.Verify(); err == nil {
		t.Error("the signature holds for another statement")
	}
	if _, err := client.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: key.KeyMetadata.KeyId}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), msg); !errors.Is(err, journal.ErrKeyDisabled) {
		t.Errorf("sign with a disabled key: %v, want ErrKeyDisabled", err)
	}
}
