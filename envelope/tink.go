package envelope

import (
	"errors"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	aesgcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/proto"
)

// tinkFormat is what a row that Tink wrote needs beyond its bytes.
type tinkFormat struct{ associated []byte }

// errTinkDEK reports a DEK of Tink's that is not an AES-GCM key.
var errTinkDEK = errors.New("the data key is no AES-GCM key of Tink's")

// expandTink reads a DEK as Tink wraps it: a serialized AesGcmKey, the default of
// its envelope. Others (AES-CTR-HMAC, ChaCha20-Poly1305) are refused.
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
