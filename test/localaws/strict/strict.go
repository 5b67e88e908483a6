// Package strict holds moto to what AWS does, where moto 5.2.1 is laxer than the
// adapters may rely on. [Transport] stands between an SDK client and moto.
//
// The deviations of moto, each with the AWS behaviour put in its place:
//
//   - KMS: a disabled key, or one pending deletion, goes on encrypting and
//     decrypting. Here DisabledException and KMSInvalidStateException.
//   - KMS: Decrypt with the KeyId of another key, or of what is no ciphertext, answers
//     AccessDeniedException. Here IncorrectKeyException and InvalidCiphertextException.
//   - KMS: ReEncrypt ignores SourceKeyId. Here NotFoundException or
//     IncorrectKeyException.
//   - KMS: the names and values of an encryption context are joined without
//     lengths, so that {"ab": "c"} opens what {"a": "bc"} sealed. Here moto gets one
//     pair that encodes them all.
//   - KMS: there is no GetKeyLastUsage. Here it is answered from the operations that
//     went through the transport.
//   - KMS, S3: CreateAlias and a PUT with If-Match or If-None-Match check first and
//     write later, so that two may both win. Here they come one by one.
package strict

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Transport is a [http.RoundTripper] that corrects moto's answers. Every client of
// one moto must share it.
type Transport struct {
	base   http.RoundTripper
	writes sync.Mutex // held by a conditional write

	mu      sync.Mutex
	enabled map[string]bool // ids of keys that were enabled at the last look
	changes int             // how often enabled was emptied

	usage tracker
}

// New returns a transport that reaches moto through base.
func New(base http.RoundTripper) *Transport {
	return &Transport{base: base, enabled: map[string]bool{}, usage: tracker{since: time.Now()}}
}

// cryptographic lists the KMS operations that need an enabled key.
var cryptographic = map[string]bool{
	"Decrypt": true, "Encrypt": true, "GenerateDataKey": true, "GenerateDataKeyWithoutPlaintext": true,
	"GenerateMac": true, "ReEncrypt": true, "Sign": true, "Verify": true, "VerifyMac": true,
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	op, isKMS := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	conditional := r.Method == http.MethodPut && (r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "")
	switch {
	case isKMS && cryptographic[op]:
		return t.encipher(r, op)
	case isKMS && op == "GetKeyLastUsage":
		return t.lastUsage(r)
	case isKMS && op == "CreateAlias", conditional:
		t.writes.Lock()
		defer t.writes.Unlock()
	}
	if isKMS && !readOnly(op) || strings.HasPrefix(r.URL.Path, "/moto-api/") {
		t.forget()
		defer t.forget()
	}
	return t.base.RoundTrip(r)
}

func readOnly(op string) bool {
	return strings.HasPrefix(op, "Describe") || strings.HasPrefix(op, "Get") || strings.HasPrefix(op, "List")
}

// forget empties what is known of keys, before and after anything that may change
// one: a look that began before the change must not be remembered after it.
func (t *Transport) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.enabled)
	t.changes++
}

// known reports whether a key is known to be enabled, and the moment it is known at.
func (t *Transport) known(id string) (enabled bool, at int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.enabled[id], t.changes
}

// learn remembers that a key was enabled at that moment. An alias may be another
// key's in another region.
func (t *Transport) learn(id string, at int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at == t.changes && !strings.Contains(id, "alias/") {
		t.enabled[id] = true
	}
}

// keyIDs are the fields of KMS requests and answers that name keys.
type keyIDs struct {
	KeyID            string `json:"KeyId"`
	SourceKeyID      string `json:"SourceKeyId"`
	DestinationKeyID string `json:"DestinationKeyId"`
	CiphertextBlob   string
}

// encipher forwards a cryptographic operation if every key that the request names
// is enabled, and withholds the answer if moto used another key than AWS would.
func (t *Transport) encipher(r *http.Request, op string) (*http.Response, error) {
	var asked, used keyIDs
	body, err := read(r, op, &asked)
	if err != nil {
		return nil, err
	}
	for _, id := range []string{asked.KeyID, asked.SourceKeyID, asked.DestinationKeyID} {
		if id == "" {
			continue
		}
		if no, err := t.unusable(r, id); no != nil || err != nil {
			return no, err
		}
	}
	if body, err = joined(body); err != nil {
		return nil, fmt.Errorf("strict: %s: %w", op, err)
	}
	resp, answer, err := t.send(r, body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return wrongKey(resp, answer, asked), err
	}
	if err := json.Unmarshal(answer, &used); err != nil {
		return nil, fmt.Errorf("strict: answer of %s: %w", op, err)
	}
	if s := asked.SourceKeyID; s != "" && s != used.SourceKeyID && !strings.HasSuffix(used.SourceKeyID, "/"+s) {
		return refusal(r, "IncorrectKeyException", "The key ID in the request does not identify a key that can perform this operation."), nil
	}
	if op == "Decrypt" && asked.KeyID == "" { // the blob named the key
		if no, err := t.unusable(r, used.KeyID); no != nil || err != nil {
			return no, err
		}
	}
	t.usage.note(op, resp.Header.Get("X-Amzn-Requestid"), used.KeyID, used.SourceKeyID)
	return resp, nil
}

// read reads the body of a request, and decodes it.
func read(r *http.Request, op string, into any) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := r.Body.Close(); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return nil, fmt.Errorf("strict: %s: %w", op, err)
	}
	return body, nil
}

// joined replaces the encryption contexts of a request by one pair each.
func joined(body []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, err
	}
	for _, name := range []string{"EncryptionContext", "SourceEncryptionContext", "DestinationEncryptionContext"} {
		var encctx map[string]string
		if raw, ok := fields[name]; !ok || json.Unmarshal(raw, &encctx) != nil || len(encctx) == 0 {
			continue
		}
		sorted, err := json.Marshal(encctx)
		if err != nil {
			return nil, err
		}
		if fields[name], err = json.Marshal(map[string]string{"context": string(sorted)}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// unusable returns AWS's refusal of a key that is not enabled, or nil.
func (t *Transport) unusable(r *http.Request, id string) (*http.Response, error) {
	enabled, at := t.known(id)
	if enabled {
		return nil, nil
	}
	m, no, err := t.describe(r, id)
	if no != nil || err != nil {
		return no, err
	}
	switch m.KeyState {
	case "Enabled":
		t.learn(id, at)
		return nil, nil
	case "Disabled":
		return refusal(r, "DisabledException", m.Arn+" is disabled."), nil
	default:
		return refusal(r, "KMSInvalidStateException", m.Arn+" is pending deletion."), nil
	}
}

// metadata is what the transport uses of DescribeKey's answer.
type metadata struct {
	Arn, KeyState string
	KeyID         string  `json:"KeyId"`
	CreationDate  float64 // seconds since 1970
}

// describe asks moto for a key, in the name of a request; its refusal is returned.
func (t *Transport) describe(r *http.Request, id string) (metadata, *http.Response, error) {
	body, err := json.Marshal(map[string]string{"KeyId": id})
	if err != nil {
		return metadata{}, nil, err
	}
	ask := r.Clone(r.Context())
	ask.Header.Set("X-Amz-Target", "TrentService.DescribeKey")
	resp, answer, err := t.send(ask, body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return metadata{}, resp, err
	}
	var key struct{ KeyMetadata metadata }
	if err := json.Unmarshal(answer, &key); err != nil {
		return metadata{}, nil, fmt.Errorf("strict: answer of DescribeKey: %w", err)
	}
	return key.KeyMetadata, nil, nil
}

// send sends r with another body and returns the answer, read, and readable again.
// moto checks no signatures.
func (t *Transport) send(r *http.Request, body []byte) (*http.Response, []byte, error) {
	r = r.Clone(r.Context())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", fmt.Sprint(len(body)))
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, err
	}
	if err := resp.Body.Close(); err != nil {
		return nil, nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp, answer, nil
}

// keyForm is what ids of KMS keys look like, with which moto begins a blob.
var keyForm = regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})`)

// wrongKey replaces moto's answer to a blob of another key than it is to be, and to
// what is no blob of any key. A blob that names a key that is not there stays denied.
func wrongKey(resp *http.Response, answer []byte, asked keyIDs) *http.Response {
	blob, _ := base64.StdEncoding.DecodeString(asked.CiphertextBlob) // what is none names no key
	switch {
	case resp == nil || !bytes.Contains(answer, []byte("AccessDeniedException")):
		return resp
	case !keyForm.Match(blob):
		return refusal(resp.Request, "InvalidCiphertextException", "")
	case asked.KeyID != "" || asked.SourceKeyID != "":
		return refusal(resp.Request, "IncorrectKeyException", "The key ID in the request does not identify a key that can perform this operation.")
	}
	return resp
}

// refusal is an error as KMS answers it.
func refusal(r *http.Request, code, message string) *http.Response {
	resp := reply(r, fmt.Appendf(nil, `{"__type":%q,"message":%q}`, code, message))
	resp.Status, resp.StatusCode = "400 Bad Request", http.StatusBadRequest
	resp.Header.Set("X-Amzn-Errortype", code)
	return resp
}

// reply is an answer as KMS gives it.
func reply(r *http.Request, body []byte) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/x-amz-json-1.1"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}
}
