package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"

	aesgcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	"google.golang.org/protobuf/proto"
)

// tinkFormat has what a row that Tink wrote needs besides its bytes.
type tinkFormat struct{ associated []byte }

// errTinkDEK reports a DEK of Tink's that is not an AES-GCM key.
var errTinkDEK = errors.New("the data key is not a Tink AES-GCM key")

// expandTink decodes a DEK as Tink wraps it: a serialized AesGcmKey, the default of Tink's
// envelope encryption. It refuses other types (AES-CTR-HMAC, ChaCha20-Poly1305). The cipher is
// the standard library's, because Tink's takes any nonce, which FIPS 140-3 mode refuses.
func expandTink(dek []byte) (cipher.AEAD, error) {
	var k aesgcm.AesGcmKey
	if err := proto.Unmarshal(dek, &k); err != nil || k.GetVersion() != 0 || len(k.ProtoReflect().GetUnknown()) > 0 {
		return nil, errTinkDEK
	}
	defer clear(k.GetKeyValue())
	if len(k.GetKeyValue()) == 24 { // AES-192, which Tink does not have
		return nil, errTinkDEK
	}
	block, err := aes.NewCipher(k.GetKeyValue())
	if err != nil {
		return nil, errTinkDEK
	}
	return cipher.NewGCMWithRandomNonce(block) //nolint:wrapcheck // fails only for a block of another cipher
}
