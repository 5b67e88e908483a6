package envelope

import (
	"errors"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	aesgcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/proto"
)

// tinkFormat has what a row that Tink wrote needs besides its bytes.
type tinkFormat struct{ associated []byte }

// errTinkDEK reports a DEK of Tink's that is not an AES-GCM key.
var errTinkDEK = errors.New("the data key is not a Tink AES-GCM key")

// expandTink decodes a DEK as Tink wraps it: a serialized AesGcmKey, the default of Tink's
// envelope encryption. It refuses other types (AES-CTR-HMAC, ChaCha20-Poly1305).
func expandTink(dek []byte) (tink.AEAD, error) {
	var k aesgcm.AesGcmKey
	if err := proto.Unmarshal(dek, &k); err != nil || k.GetVersion() != 0 || len(k.ProtoReflect().GetUnknown()) > 0 {
		return nil, errTinkDEK
	}
	defer clear(k.GetKeyValue())
	a, err := subtle.NewAESGCM(k.GetKeyValue())
	if err != nil {
		return nil, errTinkDEK
	}
	return a, nil
}
