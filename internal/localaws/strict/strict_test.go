package strict_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/internal/mototest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

// wrapped makes a key and a DEK under it.
func wrapped(t *testing.T, c *kms.Client) (id *string, blob []byte) {
	t.Helper()
	k, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	id = k.KeyMetadata.KeyId
	out, err := c.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256})
	if err != nil {
		t.Fatal(err)
	}
	return id, out.CiphertextBlob
}

// TestKeyState: a key works exactly while it is enabled, whatever was known of it
// before, and also when it is the blob that names it.
func TestKeyState(t *testing.T) {
	c := kms.NewFromConfig(mototest.Config(t))
	id, blob := wrapped(t, c)
	uses := map[string]func() error{
		"by id": func() error {
			_, err := c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: id, CiphertextBlob: blob})
			return err
		},
		"by blob": func() error {
			_, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob})
			return err
		},
		"to wrap": func() error {
			_, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")})
			return err
		},
	}
	var disabled *types.DisabledException
	var pending *types.KMSInvalidStateException
	for range 2 {
		for name, use := range uses {
			if err := use(); err != nil {
				t.Errorf("an enabled key %s: %v", name, err)
			}
		}
		if _, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: id}); err != nil {
			t.Fatal(err)
		}
		for name, use := range uses {
			if err := use(); !errors.As(err, &disabled) {
				t.Errorf("a disabled key %s: %v", name, err)
			}
		}
		if _, err := c.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: id}); err != nil {
		t.Fatal(err)
	}
	for name, use := range uses {
		if err := use(); !errors.As(err, &pending) {
			t.Errorf("a key pending deletion %s: %v", name, err)
		}
	}
}

// TestSourceKey: ReEncrypt holds the blob to the key that the request names.
func TestSourceKey(t *testing.T) {
	c := kms.NewFromConfig(mototest.Config(t))
	id, blob := wrapped(t, c)
	other, _ := wrapped(t, c)
	in := kms.ReEncryptInput{SourceKeyId: other, CiphertextBlob: blob, DestinationKeyId: other}
	var incorrect *types.IncorrectKeyException
	if _, err := c.ReEncrypt(t.Context(), &in); !errors.As(err, &incorrect) {
		t.Errorf("another key: %v", err)
	}
	arn := aws.String("arn:aws:kms:" + mototest.Region + ":123456789012:key/" + *id)
	for _, source := range []*string{id, arn, nil} {
		in.SourceKeyId = source
		if _, err := c.ReEncrypt(t.Context(), &in); err != nil {
			t.Errorf("source %v: %v", aws.ToString(source), err)
		}
	}
}

// TestRaceDisable: a key that was looked at while it was disabled is not remembered
// as enabled.
func TestRaceDisable(t *testing.T) {
	c := kms.NewFromConfig(mototest.Config(t))
	for range 5 {
		id, blob := wrapped(t, c)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, _ = c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: id, CiphertextBlob: blob}) // either answer is right
			})
		}
		if _, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: id}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		var disabled *types.DisabledException
		if _, err := c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: id, CiphertextBlob: blob}); !errors.As(err, &disabled) {
			t.Errorf("%v, want DisabledException", err)
		}
	}
}
