package strict_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/test/mototest"
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

// TestLastUsage: GetKeyLastUsage answers as the AWS KMS API reference has it: for a
// key that was never used too, by id and ARN, and for no alias.
func TestLastUsage(t *testing.T) {
	c := kms.NewFromConfig(mototest.Config(t))
	made, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	id, arn := made.KeyMetadata.KeyId, made.KeyMetadata.Arn
	usage := func(key *string) *kms.GetKeyLastUsageOutput {
		t.Helper()
		out, err := c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: key})
		if err != nil {
			t.Fatal(err)
		}
		if aws.ToString(out.KeyId) != *id || !out.KeyCreationDate.Equal(*made.KeyMetadata.CreationDate) || out.TrackingStartDate.Before(*out.KeyCreationDate) {
			t.Errorf("%s, created %v, tracked since %v", aws.ToString(out.KeyId), out.KeyCreationDate, out.TrackingStartDate)
		}
		return out
	}
	if u := usage(id).KeyLastUsage; u == nil || u.Operation != "" || u.Timestamp != nil || u.CloudTrailEventId != nil || u.KmsRequestId != nil {
		t.Errorf("a key that was not used: %+v, want an empty object", u)
	}
	before := time.Now().Add(-time.Millisecond) // answers have milliseconds
	alias := aws.String("alias/last-usage-" + *id)
	if _, err := c.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: alias, TargetKeyId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: alias, Plaintext: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []*string{id, arn} {
		u := usage(key).KeyLastUsage
		if u.Operation != "Encrypt" || u.Timestamp.Before(before) || u.Timestamp.After(time.Now()) || aws.ToString(u.CloudTrailEventId) == "" || aws.ToString(u.KmsRequestId) == "" {
			t.Errorf("after Encrypt: %+v", u)
		}
	}
	var gone *types.NotFoundException
	for _, key := range []*string{alias, aws.String("00000000-0000-0000-0000-000000000000")} {
		if _, err := c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: key}); !errors.As(err, &gone) {
			t.Errorf("%s: %v, want NotFoundException", *key, err)
		}
	}
}

// TestBlobs: a blob of the key is told from one of another key, from one that names a
// key that is not there, and from what is no blob.
func TestBlobs(t *testing.T) {
	c := kms.NewFromConfig(mototest.Config(t))
	id, blob := wrapped(t, c)
	_, other := wrapped(t, c)
	for what, in := range map[string]struct {
		blob []byte
		code string // without a KeyId
	}{
		"its own":     {blob, ""},
		"a gone key":  {append([]byte("00000000-0000-0000-0000-000000000000"), blob[36:]...), "AccessDeniedException"},
		"no key":      {append([]byte("this is no blob of any key whatsoever"), blob[36:]...), "InvalidCiphertextException"},
		"no utf-8":    {append([]byte{0xff}, blob[1:]...), "InvalidCiphertextException"},
		"another end": {append(blob[:len(blob)-1:len(blob)-1], blob[len(blob)-1]^1), "InvalidCiphertextException"},
	} {
		out, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: in.blob})
		if got := code(err); got != in.code || err == nil && !strings.HasSuffix(aws.ToString(out.KeyId), ":key/"+*id) {
			t.Errorf("%s: %v, want %q", what, err, in.code)
		}
		want := in.code
		if want == "AccessDeniedException" {
			want = "IncorrectKeyException"
		}
		if _, err = c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: in.blob, KeyId: id}); code(err) != want {
			t.Errorf("%s with the key's id: %v, want %q", what, err, want)
		}
	}
	if _, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: other, KeyId: id}); code(err) != "IncorrectKeyException" {
		t.Errorf("another key's: %v", err)
	}
}

// code is the code of an answered error, "" for none.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
