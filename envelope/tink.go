package envelope

import (
	"encoding/binary"
	"errors"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	aesgcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/proto"
)

// tinkFormat is what a row that Tink wrote needs beyond its bytes.
type tinkFormat struct{ associated []byte }

const (
	tinkLength     = 4    // bytes that say how long the wrapped DEK is
	tinkMaxWrapped = 4096 // as in Tink
)

// ParseTink splits what Tink's KMSEnvelopeAEAD writes, length ‖ wrapped DEK ‖
// payload, without copying. Both parts are of at least one byte.
func ParseTink(b []byte) (wrapped, payload []byte, err error) {
	if len(b) < tinkLength {
		return nil, nil, ErrFormat
	}
	n := binary.BigEndian.Uint32(b)
	b = b[tinkLength:]
	if n == 0 || n > tinkMaxWrapped || uint64(n) >= uint64(len(b)) {
		return nil, nil, ErrFormat
	}
	return b[:n:n], b[n:], nil
}

// JoinTink is the reverse of [ParseTink]: a rewrap puts the same payload behind a
// DEK wrapped anew.
func JoinTink(wrapped, payload []byte) ([]byte, error) {
	if len(wrapped) == 0 || len(wrapped) > tinkMaxWrapped || len(payload) == 0 {
		return nil, ErrFormat
	}
	b := make([]byte, 0, tinkLength+len(wrapped)+len(payload))
	b = binary.BigEndian.AppendUint32(b, uint32(len(wrapped))) //nolint:gosec // at most 4096
	return append(append(b, wrapped...), payload...), nil
}

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
