// Package aead is the wire format of an encrypted payload, shared by the data
// plane and the rotation (docs/format.md):
//
//	0x01 ‖ 12-byte nonce ‖ AES-256-GCM ciphertext ‖ 16-byte tag
//
// The associated data is the canonical encoding of the encryption context and of the
// values that are bound to the payload only, so a payload that was moved to another row
// does not open:
//
//	0x01 ‖ for each entry, sorted by key: 4-byte length ‖ key ‖ 4-byte length ‖ value
//
// After the version byte, a payload is bit for bit what Tink's AES-256-GCM without an
// output prefix writes, and each opens what the other sealed. Tink itself is not called
// here, because it can neither append to a caller's buffer nor leave room for the version
// byte: both would cost a copy of every payload.
//
// Nonces are random and made by this package. Seal at most 2³² payloads under one key
// (NIST SP 800-38D, section 8.3). Errors contain nothing of keys, contexts or payloads.
package aead

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"slices"
)

// The sizes of the format.
const (
	Version  = 0x01 // the first byte of a payload and of its associated data
	KeySize  = 32   // bytes of a DEK
	Overhead = 29   // bytes a payload is longer than its plaintext

	maxPlaintext = (1<<32 - 2) * aes.BlockSize // of AES-GCM
)

var (
	// ErrKeySize reports a DEK that is not 32 bytes.
	ErrKeySize = errors.New("the data key is not 32 bytes")
	// ErrFormat reports bytes that are not a payload of a known version.
	ErrFormat = errors.New("not a payload of a known format")
	// ErrOpen reports a payload that does not open: it was altered, or the data key or the
	// encryption context does not belong to it.
	ErrOpen = errors.New("the payload does not open: it was altered, or it belongs to another data key or encryption context")
	// ErrTooLong reports a plaintext longer than AES-GCM can seal (64 GiB).
	ErrTooLong = errors.New("the plaintext is too long")
)

// AssociatedData is the canonical encoding of an encryption context: the version
// byte, then for each key in order of its bytes the key and the value, each after
// its length as four bytes, most significant first. No two contexts share one.
func AssociatedData(encctx map[string]string) []byte {
	var few [8]pair // on the stack
	pairs, size := sortPairs(few[:0], encctx)
	return appendPairs(make([]byte, 0, 1+size), pairs)
}

// AppendAssociatedData appends the canonical encoding of the entries of several contexts
// together. They must have no key in common.
func AppendAssociatedData(dst []byte, maps ...map[string]string) []byte {
	var few [8]pair // on the stack
	pairs := few[:0]
	for _, m := range maps {
		pairs, _ = sortPairs(pairs, m)
	}
	return appendPairs(dst, pairs)
}

// sortPairs adds the entries of a context to sorted pairs, and returns the bytes that those
// entries are encoded in.
func sortPairs(pairs []pair, m map[string]string) (sorted []pair, size int) {
	for k, v := range m {
		size += 8 + len(k) + len(v)
		pairs = append(pairs, pair{k, v})
		for i := len(pairs) - 1; i > 0 && pairs[i].key < pairs[i-1].key; i-- { // few: sorted as they come
			pairs[i], pairs[i-1] = pairs[i-1], pairs[i]
		}
	}
	return pairs, size
}

func appendPairs(dst []byte, pairs []pair) []byte {
	dst = append(dst, Version)
	for _, p := range pairs {
		dst = appendString(appendString(dst, p.key), p.value)
	}
	return dst
}

type pair struct{ key, value string }

// appendString appends the length of s and s. The length keeps apart entries that would be
// the same text when joined.
func appendString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...) //nolint:gosec // far below 4 GiB: KMS takes 8 KiB
}

// Key seals and opens under one DEK. It is safe for concurrent use.
type Key struct{ gcm cipher.AEAD }

// New returns the key of a DEK, which the caller may clear afterwards. The error is
// [ErrKeySize].
func New(dek []byte) (*Key, error) {
	if len(dek) != KeySize {
		return nil, ErrKeySize
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, ErrKeySize
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &Key{gcm: gcm}, nil
}

// Seal appends the payload to dst, which must not overlap plaintext. associated is the
// [AssociatedData] of the encryption context and of what else is bound. The error is
// [ErrTooLong].
func (k *Key) Seal(dst, plaintext, associated []byte) ([]byte, error) {
	if uint64(len(plaintext)) > maxPlaintext {
		return nil, ErrTooLong
	}
	dst = append(slices.Grow(dst, Overhead+len(plaintext)), Version)
	return k.gcm.Seal(dst, nil, plaintext, associated), nil //nolint:gosec // nil: it makes the nonce itself
}

// Open appends the plaintext to dst, which must not overlap payload. The errors are
// [ErrFormat] and [ErrOpen].
func (k *Key) Open(dst, payload, associated []byte) ([]byte, error) {
	if len(payload) < Overhead || payload[0] != Version {
		return nil, ErrFormat
	}
	out, err := k.gcm.Open(dst, nil, payload[1:], associated)
	if err != nil {
		return nil, ErrOpen
	}
	return out, nil
}

// Cipher seals and opens single payloads, as a rotation does for its corpus, its canary
// and an emergency. Its context is the encryption context and what is bound to the payload
// only, in one map.
type Cipher struct{}

// Seal returns the payload of plaintext under a 32-byte DEK.
func (Cipher) Seal(dek, plaintext []byte, encctx map[string]string) ([]byte, error) {
	k, err := New(dek)
	if err != nil {
		return nil, err
	}
	return k.Seal(nil, plaintext, AssociatedData(encctx))
}

// Open returns the plaintext of a payload.
func (Cipher) Open(dek, payload []byte, encctx map[string]string) ([]byte, error) {
	k, err := New(dek)
	if err != nil {
		return nil, err
	}
	return k.Open(nil, payload, AssociatedData(encctx))
}
