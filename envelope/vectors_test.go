package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
)

var update = flag.Bool("update", false, "write testdata/vectors again")

type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// The files of testdata/vectors. Result is "valid", or why the payload must not
// open: "format" or "altered".
type (
	contextVector struct {
		Comment    string            `json:"comment"`
		Context    map[string]string `json:"context"`
		Associated hexBytes          `json:"associated_data"`
	}
	payloadVector struct {
		Comment   string            `json:"comment"`
		DEK       hexBytes          `json:"dek"`
		Nonce     hexBytes          `json:"nonce"`
		Context   map[string]string `json:"context"`
		Plaintext hexBytes          `json:"plaintext"`
		Payload   hexBytes          `json:"payload"`
		Result    string            `json:"result"`
	}
	// bindVector is a payload of a row with two contexts: Context is KMS's encryption
	// context, Bind is bound to the payload alone.
	bindVector struct {
		Comment    string            `json:"comment"`
		DEK        hexBytes          `json:"dek"`
		Nonce      hexBytes          `json:"nonce"`
		Context    map[string]string `json:"context"`
		Bind       map[string]string `json:"bind"`
		Associated hexBytes          `json:"associated_data"`
		Plaintext  hexBytes          `json:"plaintext"`
		Payload    hexBytes          `json:"payload"`
		Result     string            `json:"result"`
	}
	// streamVector's plaintext is Size bytes, byte i of value i mod 251.
	streamVector struct {
		Comment string            `json:"comment"`
		Key     hexBytes          `json:"key"`
		Salt    hexBytes          `json:"salt"`
		Prefix  hexBytes          `json:"nonce_prefix"`
		Context map[string]string `json:"context"`
		Size    int               `json:"plaintext_size"`
		Stream  hexBytes          `json:"stream,omitempty"` // absent if it is large
		SHA256  hexBytes          `json:"stream_sha256"`
	}
)

// drawn is n bytes that depend on label alone.
func drawn(label string, n int) []byte {
	var out []byte
	for i := byte(0); len(out) < n; i++ {
		h := sha256.Sum256(append([]byte(label), i))
		out = append(out, h[:]...)
	}
	return out[:n]
}

func pattern(size int) []byte {
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(i % 251)
	}
	return out
}

func contextVectors() []contextVector {
	var out []contextVector
	for _, v := range []contextVector{
		{Comment: "empty", Context: map[string]string{}},
		{Comment: "one pair", Context: map[string]string{"table": "orders"}},
		{Comment: "keys are sorted", Context: map[string]string{"table": "orders", "id": "o-1"}},
		{Comment: "sorted by bytes, not by language", Context: map[string]string{"a": "1", "B": "2", "ä": "3", "z": "4"}},
		{Comment: "an empty value", Context: map[string]string{"a": ""}},
		{Comment: "lengths keep pairs apart", Context: map[string]string{"ab": "c"}},
		{Comment: "as before with the border moved", Context: map[string]string{"a": "bc"}},
		{Comment: "lengths are of bytes", Context: map[string]string{"name": "Zoë 🔑"}},
		{Comment: "a long value", Context: map[string]string{"k": strings.Repeat("v", 300)}},
	} {
		v.Associated = refContext(v.Context)
		out = append(out, v)
	}
	return out
}

func payloadVectors() []payloadVector {
	var out []payloadVector
	for _, size := range []int{0, 1, 15, 16, 17, 255, 1024} {
		label := string(rune('a' + len(out)))
		v := payloadVector{
			Comment: "roundtrip", DEK: drawn("dek "+label, 32), Nonce: drawn("nonce "+label, 12), Plaintext: pattern(size),
			Context: map[string]string{"table": "orders", "id": label}, Result: "valid",
		}
		v.Payload = refSeal(v.DEK, v.Nonce, v.Plaintext, v.Context)
		out = append(out, v)
	}
	bad := func(comment, result string, change func(*payloadVector)) {
		v := out[4]
		v.Comment, v.Result, v.Payload = comment, result, bytes.Clone(v.Payload)
		change(&v)
		out = append(out, v)
	}
	bad("first bit of the ciphertext", "altered", func(v *payloadVector) { v.Payload[13] ^= 0x80 })
	bad("last bit of the tag", "altered", func(v *payloadVector) { v.Payload[len(v.Payload)-1] ^= 1 })
	bad("a bit of the nonce", "altered", func(v *payloadVector) { v.Payload[1] ^= 1 })
	bad("another id", "altered", func(v *payloadVector) { v.Context = map[string]string{"table": "orders", "id": "other"} })
	bad("no context", "altered", func(v *payloadVector) { v.Context = map[string]string{} })
	bad("another DEK", "altered", func(v *payloadVector) { v.DEK = drawn("other", 32) })
	bad("cut off by a byte", "altered", func(v *payloadVector) { v.Payload = v.Payload[:len(v.Payload)-1] })
	bad("version 0", "format", func(v *payloadVector) { v.Payload[0] = 0 })
	bad("version 2", "format", func(v *payloadVector) { v.Payload[0] = 2 })
	bad("shorter than nonce and tag", "format", func(v *payloadVector) { v.Payload = v.Payload[:28] })
	bad("empty", "format", func(v *payloadVector) { v.Payload = hexBytes{} })
	return out
}

func bindVectors() []bindVector {
	var out []bindVector
	type pairs = map[string]string
	for _, c := range []struct {
		comment       string
		context, bind pairs
	}{
		{"the row's key is bound, the encryption context is the table's", pairs{"table": "orders"}, pairs{"id": "o-1"}},
		{"nothing but the context", pairs{"table": "orders", "id": "o-1"}, pairs{}},
		{"no encryption context", pairs{}, pairs{"id": "o-1"}},
		{"the pairs of both are sorted together", pairs{"b": "2", "d": "4"}, pairs{"a": "1", "c": "3", "e": "5"}},
		{"a bound number, as DynamoDB returns it", pairs{"table": "orders"}, pairs{"id": "o-1", "at": "-0.5"}},
		{"a bound value may be empty", pairs{"table": "orders"}, pairs{"id": ""}},
	} {
		label := string(rune('a' + len(out)))
		whole := maps.Clone(c.context)
		maps.Copy(whole, c.bind)
		v := bindVector{
			Comment: c.comment, DEK: drawn("dek "+label, 32), Nonce: drawn("nonce "+label, 12), Plaintext: pattern(20),
			Context: c.context, Bind: c.bind, Associated: refContext(whole), Result: "valid",
		}
		v.Payload = refSeal(v.DEK, v.Nonce, v.Plaintext, whole)
		out = append(out, v)
	}
	first := func(comment, result string, context, bind pairs) {
		v := out[0]
		whole := maps.Clone(context)
		maps.Copy(whole, bind)
		v.Comment, v.Result, v.Context, v.Bind, v.Associated = comment, result, context, bind, refContext(whole)
		out = append(out, v)
	}
	first("the first one: a payload does not say which of its values KMS is told", "valid", pairs{"table": "orders", "id": "o-1"}, pairs{})
	first("the first one in another row", "altered", pairs{"table": "orders"}, pairs{"id": "o-2"})
	first("the first one, nothing bound", "altered", pairs{"table": "orders"}, pairs{})
	first("the first one in another table", "altered", pairs{"table": "invoices"}, pairs{"id": "o-1"})
	first("the first one, one more value bound", "altered", pairs{"table": "orders"}, pairs{"id": "o-1", "at": "1"})
	return out
}

func streamVectors() []streamVector {
	first, next := refSegment-40-16, refSegment-16 // plaintext of the first segment, of the others
	var out []streamVector
	for _, c := range []struct {
		comment string
		size    int
	}{
		{"empty: one segment, the last", 0},
		{"one byte", 1},
		{"one short segment", 1000},
		{"the first segment is full", first},
		{"one byte more", first + 1},
		{"two segments are full", first + next},
		{"three segments", first + next + 12345},
	} {
		v := streamVector{
			Comment: c.comment, Key: drawn("key "+c.comment, 32), Salt: drawn("salt "+c.comment, 32), Prefix: drawn("prefix "+c.comment, 7),
			Context: map[string]string{"bucket": "b", "object": "o"}, Size: c.size,
		}
		stream := refStream(v.Key, v.Salt, v.Prefix, pattern(v.Size), v.Context)
		sum := sha256.Sum256(stream)
		if v.SHA256 = sum[:]; len(stream) < 2000 {
			v.Stream = stream
		}
		out = append(out, v)
	}
	return out
}

// published returns the vectors of a file after checking that it is what made
// makes, or, with -update, writing it.
func published[T any](t *testing.T, name string, made []T) []T {
	t.Helper()
	file := filepath.Join("..", "testdata", "vectors", name)
	want, err := json.MarshalIndent(made, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s is not what its generator makes: go test ./envelope -run TestVectors -update", name)
	}
	var out []T
	if err := json.Unmarshal(got, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVectorsContext(t *testing.T) {
	for _, v := range published(t, "context.json", contextVectors()) {
		if got := aead.AssociatedData(v.Context); !bytes.Equal(got, v.Associated) {
			t.Errorf("%s: %x, want %x", v.Comment, got, []byte(v.Associated))
		}
	}
}

func TestVectorsPayload(t *testing.T) {
	for _, v := range published(t, "payload.json", payloadVectors()) {
		want := map[string]error{"valid": nil, "altered": envelope.ErrAltered, "format": envelope.ErrFormat}[v.Result]
		got, err := aead.Cipher{}.Open(v.DEK, v.Payload, v.Context)
		if !errors.Is(err, want) || (err == nil) != (v.Result == "valid") || (err == nil && !bytes.Equal(got, v.Plaintext)) {
			t.Errorf("%s: %x, %v, want %v", v.Comment, got, err, want)
		}
		if v.Result != "valid" {
			continue
		}
		sealed, err := aead.Cipher{}.Seal(v.DEK, v.Plaintext, v.Context)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := refOpen(v.DEK, sealed, v.Context); err != nil || !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%s: the reference opens ours as %x, %v", v.Comment, got, err)
		}
	}
}

func TestVectorsBind(t *testing.T) {
	for _, v := range published(t, "bind.json", bindVectors()) {
		whole := maps.Clone(v.Context)
		maps.Copy(whole, v.Bind)
		for how, got := range map[string][]byte{
			"together": aead.AssociatedData(whole), "apart": aead.AppendAssociatedData(nil, v.Context, v.Bind),
		} {
			if !bytes.Equal(got, v.Associated) {
				t.Errorf("%s, %s: %x, want %x", v.Comment, how, got, []byte(v.Associated))
			}
		}
		// As the rotation opens it, and as the reference does.
		got, err := aead.Cipher{}.Open(v.DEK, v.Payload, whole)
		ref, referr := refOpen(v.DEK, v.Payload, whole)
		if v.Result == "valid" {
			if err != nil || referr != nil || !bytes.Equal(got, v.Plaintext) || !bytes.Equal(ref, v.Plaintext) {
				t.Errorf("%s: %x, %v; the reference %x, %v", v.Comment, got, err, ref, referr)
			}
		} else if !errors.Is(err, envelope.ErrAltered) || referr == nil {
			t.Errorf("%s: %v; the reference %v", v.Comment, err, referr)
		}
	}
}

func TestVectorsStream(t *testing.T) {
	for _, v := range published(t, "stream.json", streamVectors()) {
		stream := refStream(v.Key, v.Salt, v.Prefix, pattern(v.Size), v.Context)
		if sum := sha256.Sum256(stream); !bytes.Equal(sum[:], v.SHA256) || (v.Stream != nil && !bytes.Equal(stream, v.Stream)) {
			t.Errorf("%s: the reference makes another stream", v.Comment)
		}
		r, err := envelope.NewDecryptingReader(bytes.NewReader(stream), v.Key, v.Context)
		if err != nil {
			t.Fatalf("%s: %v", v.Comment, err)
		}
		var got bytes.Buffer
		if _, err := got.ReadFrom(r); err != nil || !bytes.Equal(got.Bytes(), pattern(v.Size)) {
			t.Errorf("%s: %d bytes, %v", v.Comment, got.Len(), err)
		}
		var ours bytes.Buffer
		w, err := envelope.NewEncryptingWriter(&ours, v.Key, v.Context)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(v.Size)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := refOpenStream(v.Key, ours.Bytes(), v.Context); err != nil || !bytes.Equal(got, pattern(v.Size)) {
			t.Errorf("%s: the reference opens ours as %d bytes, %v", v.Comment, len(got), err)
		}
	}
}

// TestFormatPython opens the published payloads with the Python that docs/format.md
// shows.
func TestFormatPython(t *testing.T) {
	python, err := filepath.Abs("../.venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	if exec.CommandContext(t.Context(), python, "-c", "import cryptography").Run() != nil {
		t.Skip("the project's Python is not set up: make venv")
	}
	doc, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(doc), "```python\n")
	code, _, ok := strings.Cut(code, "```\n")
	if !ok {
		t.Fatal("docs/format.md shows no Python")
	}
	code += `
import json, sys
opened = refused = 0
for v in json.load(open("../testdata/vectors/payload.json")):
    try:
        plain = open_payload(bytes.fromhex(v["dek"]), bytes.fromhex(v["payload"]), v["context"])
    except Exception:
        assert v["result"] != "valid", v["comment"]
        refused += 1
        continue
    assert v["result"] == "valid" and plain.hex() == v["plaintext"], v["comment"]
    opened += 1
for v in json.load(open("../testdata/vectors/bind.json")):
    try:
        plain = open_payload(bytes.fromhex(v["dek"]), bytes.fromhex(v["payload"]), v["context"], v["bind"])
    except Exception:
        assert v["result"] != "valid", v["comment"]
        refused += 1
        continue
    assert v["result"] == "valid" and plain.hex() == v["plaintext"], v["comment"]
    opened += 1
for v in json.load(open("../testdata/vectors/context.json")):
    assert associated(v["context"]).hex() == v["associated_data"], v["comment"]
print(opened, refused)
`
	out, err := exec.CommandContext(t.Context(), python, "-c", code).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "14 15" {
		t.Errorf("%s, %v; want 14 opened and 15 refused", got, err)
	}
}
