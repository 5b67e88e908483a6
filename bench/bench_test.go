package bench

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"testing"

	mpl "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygenerated"
	mpltypes "github.com/aws/aws-cryptographic-material-providers-library/releases/go/mpl/awscryptographymaterialproviderssmithygeneratedtypes"
	esdk "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygenerated"
	esdktypes "github.com/aws/aws-encryption-sdk/releases/go/encryption-sdk/awscryptographyencryptionsdksmithygeneratedtypes"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/matter-ops/kms-rotation/envelope"
	envelopeaead "github.com/matter-ops/kms-rotation/envelope/aead"
)

var (
	sizes  = []int{1 << 10, 64 << 10, 1 << 20}
	encctx = map[string]string{"table": "orders", "tenant": "acme"}
	// associated is what every library is given to authenticate, as it takes it.
	associated = envelopeaead.AssociatedData(encctx)
)

// scheme is one way to seal and open. seal may reuse buf.
type scheme struct {
	name string
	seal func(buf, plain []byte) ([]byte, error)
	open func(sealed []byte) ([]byte, error)
}

func schemes(b testing.TB) []scheme {
	b.Helper()
	tinkKEK := localKEK(b)
	theirs := aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), tinkKEK)
	return []scheme{
		raw(b),
		rawRandom(b),
		ours(b, "envelope, cached DEK", envelope.Cache{MaxUses: 1 << 32, MaxBytes: 1 << 62}, false),
		ours(b, "envelope, cached DEK, Begin and End each time", envelope.Cache{MaxUses: 1 << 32, MaxBytes: 1 << 62}, true),
		ours(b, "envelope, DEK per record", envelope.Cache{Off: true}, false),
		{
			"Tink KMSEnvelopeAEAD, DEK per record",
			func(_, plain []byte) ([]byte, error) { return theirs.Encrypt(plain, associated) },
			func(sealed []byte) ([]byte, error) { return theirs.Decrypt(sealed, associated) },
		},
		awsESDK(b),
	}
}

// raw is AES-256-GCM and nothing else: one expanded key, a counter for a nonce, a
// reused buffer.
func raw(b testing.TB) scheme {
	b.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	var n uint64
	nonce := make([]byte, 12)
	return scheme{
		"raw AES-256-GCM, counter nonce",
		func(buf, plain []byte) ([]byte, error) {
			n++
			binary.BigEndian.PutUint64(nonce[4:], n)
			return gcm.Seal(append(buf, nonce...), nonce, plain, associated), nil
		},
		func(sealed []byte) ([]byte, error) { return gcm.Open(nil, sealed[:12], sealed[12:], associated) },
	}
}

// rawRandom is raw with a random nonce for each record, as anybody must use it who
// has more than one process.
func rawRandom(b testing.TB) scheme {
	b.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		b.Fatal(err)
	}
	return scheme{
		"raw AES-256-GCM, random nonce",
		func(buf, plain []byte) ([]byte, error) { return gcm.Seal(buf, nil, plain, associated), nil },
		func(sealed []byte) ([]byte, error) { return gcm.Open(nil, nil, sealed, associated) },
	}
}

// ours seals with one reference held, or with one for each record.
func ours(b testing.TB, name string, cache envelope.Cache, each bool) scheme {
	b.Helper()
	ctx := context.Background()
	c, err := envelope.New(ctx, envelope.Config{ControlTable: "c", DynamoDB: control{}, KMS: &localKMS{kek: localKEK(b)}, Cache: cache})
	if err != nil {
		b.Fatal(err)
	}
	held, err := c.Begin(ctx)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		held.End()
		_ = c.Close()
	})
	var last envelope.Sealed
	return scheme{
		name,
		func(buf, plain []byte) ([]byte, error) {
			ref, err := held, error(nil)
			if each {
				if ref, err = c.Begin(ctx); err != nil {
					return nil, err
				}
				defer ref.End()
			}
			last, err = ref.AppendSeal(ctx, buf, plain, encctx)
			return last.Ciphertext, err
		},
		func([]byte) ([]byte, error) { return c.Open(ctx, last, encctx, nil) },
	}
}

// awsESDK is the AWS Encryption SDK with a raw AES keyring and its default suite
// less the ECDSA signature, which none of the others makes.
func awsESDK(b testing.TB) scheme {
	b.Helper()
	ctx := context.Background()
	materials, err := mpl.NewClient(mpltypes.MaterialProvidersConfig{})
	if err != nil {
		b.Fatal(err)
	}
	keyring, err := materials.CreateRawAesKeyring(ctx, mpltypes.CreateRawAesKeyringInput{
		KeyName: "kek", KeyNamespace: "bench", WrappingKey: bytes.Repeat([]byte{9}, 32),
		WrappingAlg: mpltypes.AesWrappingAlgAlgAes256GcmIv12Tag16,
	})
	if err != nil {
		b.Fatal(err)
	}
	client, err := esdk.NewClient(esdktypes.AwsEncryptionSdkConfig{})
	if err != nil {
		b.Fatal(err)
	}
	suite := mpltypes.ESDKAlgorithmSuiteIdAlgAes256GcmHkdfSha512CommitKey
	return scheme{
		"AWS Encryption SDK, raw AES keyring, DEK per record",
		func(_, plain []byte) ([]byte, error) {
			out, err := client.Encrypt(ctx, esdktypes.EncryptInput{
				Plaintext: plain, EncryptionContext: encctx, Keyring: keyring, AlgorithmSuiteId: &suite,
			})
			if err != nil {
				return nil, err
			}
			return out.Ciphertext, nil
		},
		func(sealed []byte) ([]byte, error) {
			out, err := client.Decrypt(ctx, esdktypes.DecryptInput{Ciphertext: sealed, EncryptionContext: encctx, Keyring: keyring})
			if err != nil {
				return nil, err
			}
			return out.Plaintext, nil
		},
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range sizes {
		plain := make([]byte, size)
		for _, s := range schemes(b) {
			b.Run(fmt.Sprintf("%s/%dKiB", s.name, size>>10), func(b *testing.B) {
				buf := make([]byte, 0, size+1024)
				check(b, s, buf, plain)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.seal(buf, plain); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range sizes {
		plain := make([]byte, size)
		for _, s := range schemes(b) {
			b.Run(fmt.Sprintf("%s/%dKiB", s.name, size>>10), func(b *testing.B) {
				sealed := check(b, s, nil, plain)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.open(sealed); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// check shows that a scheme does what is measured.
func check(b testing.TB, s scheme, buf, plain []byte) []byte {
	b.Helper()
	sealed, err := s.seal(buf, plain)
	if err != nil {
		b.Fatal(err)
	}
	if got, err := s.open(sealed); err != nil || !bytes.Equal(got, plain) {
		b.Fatalf("%s: opened %d bytes, %v", s.name, len(got), err)
	}
	return sealed
}

// localKEK stands for KMS: AES-256-GCM by Tink, so that both envelopes pay the
// same for wrapping.
func localKEK(b testing.TB) tink.AEAD {
	b.Helper()
	k, err := subtle.NewAESGCM(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		b.Fatal(err)
	}
	return k
}

// localKMS binds the encryption context by its bytes as they are: to encode it is the work of
// KMS, and Tink's envelope has none for it.
type localKMS struct{ kek tink.AEAD }

func (k *localKMS) GenerateDataKey(_ context.Context, in *kms.GenerateDataKeyInput, _ ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	wrapped, err := k.kek.Encrypt(dek, associatedOf(in.EncryptionContext))
	return &kms.GenerateDataKeyOutput{Plaintext: dek, CiphertextBlob: wrapped}, err
}

func (k *localKMS) Decrypt(_ context.Context, in *kms.DecryptInput, _ ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	dek, err := k.kek.Decrypt(in.CiphertextBlob, associatedOf(in.EncryptionContext))
	return &kms.DecryptOutput{Plaintext: dek}, err
}

func associatedOf(context map[string]string) []byte {
	if len(context) != len(encctx) {
		return nil
	}
	return associated
}

// control is a control table whose pointer never moves.
type control struct{ envelope.DynamoDB }

func (control) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	if pk, ok := in.Key["pk"].(*ddbtypes.AttributeValueMemberS); ok && pk.Value != "POINTER" {
		return &dynamodb.GetItemOutput{Item: envelope.Item{
			"state": &ddbtypes.AttributeValueMemberS{Value: "active"}, "fence_shards": &ddbtypes.AttributeValueMemberN{Value: "1"},
		}}, nil
	}
	return &dynamodb.GetItemOutput{Item: envelope.Item{
		"kek_id": &ddbtypes.AttributeValueMemberS{Value: "kek"}, "epoch": &ddbtypes.AttributeValueMemberN{Value: "1"},
	}}, nil
}

func (control) PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return &dynamodb.PutItemOutput{}, nil
}

func (control) UpdateItem(context.Context, *dynamodb.UpdateItemInput, ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return &dynamodb.UpdateItemOutput{}, nil
}

func (control) DeleteItem(context.Context, *dynamodb.DeleteItemInput, ...func(*dynamodb.Options)) (*dynamodb.DeleteItemOutput, error) {
	return &dynamodb.DeleteItemOutput{}, nil
}
