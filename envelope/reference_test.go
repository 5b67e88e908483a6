package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// This file implements docs/format.md a second time, from the text and with the
// standard library alone. The published vectors are made by it and opened by the
// package, and the other way round.

var errReference = errors.New("reference: it does not open")

func refGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	var gcm cipher.AEAD
	fips140.WithoutEnforcement(func() { gcm, err = cipher.NewGCM(block) }) // the vectors' nonces are fixed
	if err != nil {
		panic(err)
	}
	return gcm
}

func refContext(encctx map[string]string) []byte {
	var out bytes.Buffer
	out.WriteByte(1)
	for _, k := range slices.Sorted(maps.Keys(encctx)) {
		for _, s := range []string{k, encctx[k]} {
			fmt.Fprintf(&out, "%c%c%c%c%s", 0, 0, 0, 0, s)
			binary.BigEndian.PutUint32(out.Bytes()[out.Len()-len(s)-4:], uint32(len(s)))
		}
	}
	return out.Bytes()
}

func refSeal(dek, nonce, plain []byte, encctx map[string]string) []byte {
	return append(append([]byte{1}, nonce...), refGCM(dek).Seal(nil, nonce, plain, refContext(encctx))...)
}

func refOpen(dek, payload []byte, encctx map[string]string) ([]byte, error) {
	if len(payload) < 1+12+16 || payload[0] != 1 {
		return nil, errReference
	}
	return refGCM(dek).Open(nil, payload[1:13], payload[13:], refContext(encctx))
}

const refSegment = 1 << 20

// refStream encrypts a stream: 0x02 ‖ 40 ‖ salt ‖ nonce prefix ‖ segments.
func refStream(key, salt, prefix, plain []byte, encctx map[string]string) []byte {
	gcm := refStreamGCM(key, salt, encctx)
	out := append([]byte{2, 40}, salt...)
	out = append(out, prefix...)
	for i, room := uint32(0), refSegment-40-16; ; i, room = i+1, refSegment-16 {
		n := min(room, len(plain))
		last := n == len(plain)
		out = gcm.Seal(out, refNonce(prefix, i, last), plain[:n], nil)
		if plain = plain[n:]; last {
			return out
		}
	}
}

func refOpenStream(key, in []byte, encctx map[string]string) ([]byte, error) {
	if len(in) < 41 || in[0] != 2 || in[1] != 40 {
		return nil, errReference
	}
	salt, prefix, in := in[2:34], in[34:41], in[41:]
	gcm := refStreamGCM(key, salt, encctx)
	var out []byte
	for i, size := uint32(0), refSegment-40; ; i, size = i+1, refSegment {
		n := min(size, len(in))
		last := n == len(in)
		var err error
		if out, err = gcm.Open(out, refNonce(prefix, i, last), in[:n], nil); err != nil {
			return nil, errReference
		}
		if in = in[n:]; last {
			return out, nil
		}
	}
}

func refStreamGCM(key, salt []byte, encctx map[string]string) cipher.AEAD {
	derived, err := hkdf.Key(sha256.New, key, salt, string(refContext(encctx)), 32)
	if err != nil {
		panic(err)
	}
	return refGCM(derived)
}

func refNonce(prefix []byte, segment uint32, last bool) []byte {
	nonce := binary.BigEndian.AppendUint32(bytes.Clone(prefix), segment)
	if last {
		return append(nonce, 1)
	}
	return append(nonce, 0)
}

// refKeyed is the associated data of a keyed payload. key has the attributes of the primary
// key in DynamoDB's JSON.
func refKeyed(context, bind map[string]string, key map[string]map[string]string, dekID string) []byte {
	all := map[string]string{"matter:dek_id": dekID}
	maps.Copy(all, context)
	maps.Copy(all, bind)
	for name, typed := range key {
		for _, v := range typed {
			all["matter:key:"+name] = v // DynamoDB's JSON has base64 of a binary value
		}
	}
	return refContext(all)
}

// refKeyContext is the encryption context of the DEK of a record.
func refKeyContext(context map[string]string, dekID string, born int) map[string]string {
	out := map[string]string{"matter:dek_id": dekID, "matter:born_epoch": fmt.Sprint(born)}
	maps.Copy(out, context)
	return out
}

// refCopyKey is the key of the copy of a record.
func refCopyKey(dekID string, epoch int, kekID string, wrapped []byte) string {
	sum := fmt.Sprintf("%x", sha256.Sum256(wrapped))
	return fmt.Sprintf("deks/%s/%012d-%s-%s.json", dekID, epoch, kekID, sum[:16])
}
