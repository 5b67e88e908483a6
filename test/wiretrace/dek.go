package wiretrace

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// deks are the DEKs that the run has shown, by their names. Neither they nor what payloads
// open to ever leave the process.
type deks struct {
	kms    KMS
	secret []byte             // the key of their names, and of those of texts
	blobs  map[string]wrapped // by digest of the wrapped DEK
	plain  map[string][]byte  // by name
}

// wrapped is what is known of a wrapped DEK.
type wrapped struct{ kek, dek string }

func newDEKs(client KMS) deks {
	d := deks{kms: client, secret: make([]byte, sha256.Size), blobs: map[string]wrapped{}, plain: map[string][]byte{}}
	_, _ = rand.Read(d.secret) // it never fails
	return d
}

// digest names a DEK or a text. Without the secret nobody can compare a guess with it.
func (d deks) digest(plain []byte) string {
	mac := hmac.New(sha256.New, d.secret)
	mac.Write(plain)
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// learn names a DEK, and keeps what its wrapped bytes are. fresh says that this was not
// known.
func (d deks) learn(kek string, blob, plain []byte) (name string, fresh bool) {
	name = d.digest(plain)
	w := wrapped{keyID(kek), name}
	fresh = d.blobs[trace.Digest(blob)] != w
	d.blobs[trace.Digest(blob)], d.plain[name] = w, slices.Clone(plain)
	return name, fresh
}

// errAnswer does not quote what it is about, which may hold a DEK.
var errAnswer = errors.New("the call to KMS, or its answer, is not understood")

// ask has the local KMS open a wrapped DEK, beside the recording. Whatever does not open
// under this context is not known afterwards.
func (d deks) ask(blob []byte, encctx map[string]string) (kek string, plain []byte, ok bool) {
	out, err := d.kms.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: encctx})
	if err != nil {
		return "", nil, false
	}
	return keyID(aws.ToString(out.KeyId)), out.Plaintext, true
}

// open learns what is wrapped in a row that the run has not shown yet. It was wrapped
// before the run began, or by somebody who is not recorded.
func (d deks) open(blob []byte, encctx map[string]string) []trace.Event {
	if _, known := d.blobs[trace.Digest(blob)]; known || len(blob) == 0 {
		return nil
	}
	kek, plain, ok := d.ask(blob, encctx)
	if !ok {
		return nil
	}
	name, _ := d.learn(kek, blob, plain)
	return []trace.Event{{Effect: trace.Decrypt, Caller: trace.Person, KEK: kek, Blob: trace.Digest(blob), DEK: name}}
}

// under names the DEK that a payload opens under, the one that is wrapped beside it or
// any other of the run, and the text that it opens to. Both are "" for no payload.
func (d deks) under(payload, blob []byte, bound map[string]string) (dek, text string) {
	if len(payload) == 0 {
		return "", ""
	}
	beside := d.blobs[trace.Digest(blob)].dek
	for _, name := range append([]string{beside}, slices.Sorted(maps.Keys(d.plain))...) {
		if opened, ok := decrypt(d.plain[name], payload, bound); ok {
			return name, d.digest(opened)
		}
	}
	return trace.UnknownDEK, ""
}

// decrypt opens a payload under a DEK, as docs/format.md has it. It does not call package
// aead, whose faults it would share.
func decrypt(dek, payload []byte, bound map[string]string) (text []byte, ok bool) {
	const version, nonce = 1, 12
	block, err := aes.NewCipher(dek)
	if err != nil || len(dek) != 32 || len(payload) < 1+nonce || payload[0] != version {
		return nil, false
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, false
	}
	associated := []byte{version}
	for _, k := range slices.Sorted(maps.Keys(bound)) {
		for _, text := range []string{k, bound[k]} {
			associated = append(binary.BigEndian.AppendUint32(associated, uint32(len(text))), text...) //nolint:gosec // far below 4 GiB
		}
	}
	text, err = gcm.Open(nil, payload[1:1+nonce], payload[1+nonce:], associated)
	return text, err == nil
}

// bound makes an encryption context, or what else a payload is bound to, of a row; false
// if the row lacks a part of it.
func bound(row item, definitions ...map[string]string) (map[string]string, bool) {
	out := map[string]string{}
	for _, d := range definitions {
		for k, v := range d {
			attribute, named := strings.CutPrefix(v, "$")
			switch a := row[attribute]; {
			case !named:
				out[k] = v
			case strings.HasPrefix(attribute, "$"):
				out[k] = attribute
			case a.S == nil && a.N == nil:
				return nil, false
			default:
				out[k] = a.text()
			}
		}
	}
	return out, true
}

// secret is what a call to KMS did with a DEK.
func (r *Recorder) secret(e wire.Exchange) ([]trace.Event, error) {
	var in struct {
		CiphertextBlob, Plaintext                                                []byte
		EncryptionContext, SourceEncryptionContext, DestinationEncryptionContext map[string]string
	}
	var out struct {
		CiphertextBlob, Plaintext []byte
		KeyID, SourceKeyID        string // names match in any case
	}
	if json.Unmarshal(e.Body, &in) != nil || json.Unmarshal(e.Answer, &out) != nil || out.KeyID == "" {
		return nil, errAnswer
	}
	ev := trace.Event{Effect: "KMS." + e.Operation, KEK: keyID(out.KeyID), Blob: trace.Digest(out.CiphertextBlob)}
	switch e.Operation {
	case "GenerateDataKey":
		ev.DEK, _ = r.deks.learn(out.KeyID, out.CiphertextBlob, out.Plaintext)
	case "Decrypt":
		name, fresh := r.deks.learn(out.KeyID, in.CiphertextBlob, out.Plaintext)
		if !fresh {
			return nil, nil // it says what was said
		}
		ev.Blob, ev.DEK = trace.Digest(in.CiphertextBlob), name
	case "Encrypt": // of a plaintext that the caller chose: what it wraps is known, but KMS has not made it
		if isFunction(e.Caller) {
			return nil, errUnknown
		}
		ev.Effect = trace.Decrypt
		ev.DEK, _ = r.deks.learn(out.KeyID, out.CiphertextBlob, in.Plaintext)
	case "ReEncrypt":
		return r.reencrypted(ev, in.CiphertextBlob, out.CiphertextBlob, out.SourceKeyID, in.SourceEncryptionContext, in.DestinationEncryptionContext)
	}
	return []trace.Event{ev}, nil
}

// reencrypted is a DEK that KMS has wrapped again. The call does not show the DEK, so the
// local KMS is asked to open both blobs, each under its context; that they wrap one DEK is
// for the model to judge.
func (r *Recorder) reencrypted(ev trace.Event, was, blob []byte, from string, fromContext, toContext map[string]string) ([]trace.Event, error) {
	events := r.deks.open(was, fromContext)
	if keyID(from) == ev.KEK { // a proof that it unwraps: what a row never holds says nothing, and what one holds is opened then
		return events, nil
	}
	kek, plain, ok := r.deks.ask(blob, toContext)
	if !ok || kek != ev.KEK {
		return nil, errors.New("what KMS wrapped again does not open under the key and the context that were asked for")
	}
	ev.Old, ev.Was = keyID(from), trace.Digest(was)
	ev.DEK, _ = r.deks.learn(kek, blob, plain)
	return append(events, ev), nil
}
