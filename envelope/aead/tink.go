package aead

import "encoding/binary"

const (
	tinkLength     = 4    // bytes of the length of the wrapped DEK, most significant first
	tinkMaxWrapped = 4096 // bytes, as in Tink
)

// ParseTink splits the output of Tink's KMSEnvelopeAEAD, length ‖ wrapped DEK ‖ payload,
// without copying. Both parts have at least one byte. The error is [ErrFormat].
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

// JoinTink is the reverse of [ParseTink]. A rewrap joins the new wrapped DEK with the
// unchanged payload.
func JoinTink(wrapped, payload []byte) ([]byte, error) {
	if len(wrapped) == 0 || len(wrapped) > tinkMaxWrapped || len(payload) == 0 {
		return nil, ErrFormat
	}
	b := make([]byte, 0, tinkLength+len(wrapped)+len(payload))
	b = binary.BigEndian.AppendUint32(b, uint32(len(wrapped))) //nolint:gosec // at most 4096
	return append(append(b, wrapped...), payload...), nil
}
