package envelope_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
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
	// keyedVector is a payload of a keyed row. Key has the row's primary key in DynamoDB's
	// JSON.
	keyedVector struct {
		Comment    string                       `json:"comment"`
		DEKID      string                       `json:"dek_id"`
		DEK        hexBytes                     `json:"dek"`
		Nonce      hexBytes                     `json:"nonce"`
		Context    map[string]string            `json:"context"`
		Bind       map[string]string            `json:"bind"`
		Key        map[string]map[string]string `json:"key"`
		Associated hexBytes                     `json:"associated_data"`
		Plaintext  hexBytes                     `json:"plaintext"`
		Payload    hexBytes                     `json:"payload"`
		Result     string                       `json:"result"`
	}
	// recordVector is a record of a DEK in DynamoDB's JSON. Result is "valid" or "refused".
	recordVector struct {
		Comment           string                     `json:"comment"`
		Item              map[string]json.RawMessage `json:"item"`
		EncryptionContext map[string]string          `json:"encryption_context,omitempty"`
		CopyKey           string                     `json:"copy_key,omitempty"`
		Copy              string                     `json:"copy,omitempty"`
		Result            string                     `json:"result"`
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

// Ids of DEKs.
const (
	vectorDEK = "aaaqeayeaudaocajbifqydiob4"
	otherDEK  = "aaaqeayeaudaocajbifqydiocq"
)

func keyedVectors() []keyedVector {
	var out []keyedVector
	type pairs = map[string]string
	type key = map[string]map[string]string
	for _, c := range []struct {
		comment       string
		context, bind pairs
		key           key
	}{
		{"a partition key", pairs{"table": "orders"}, pairs{}, key{"id": {"S": "o-1"}}},
		{"a number as sort key, as DynamoDB returns it", pairs{"table": "orders"}, pairs{}, key{"id": {"S": "o-1"}, "line": {"N": "-0.5"}}},
		{"a binary key is bound as base64", pairs{}, pairs{}, key{"id": {"B": "AP9h"}}},
		{"keys are sorted with the rest", pairs{"table": "orders", "z": "1"}, pairs{"matters": "x", "m": "y"}, key{"b": {"S": "2"}, "B": {"S": "1"}}},
		{"an empty payload", pairs{"table": "orders"}, pairs{"owner": "ann"}, key{"id": {"S": "ä"}}},
	} {
		label := string(rune('a' + len(out)))
		v := keyedVector{
			Comment: c.comment, DEKID: vectorDEK, DEK: drawn("dek "+label, 32), Nonce: drawn("nonce "+label, 12), Plaintext: pattern(20),
			Context: c.context, Bind: c.bind, Key: c.key, Result: "valid",
		}
		if strings.HasPrefix(c.comment, "an empty") {
			v.Plaintext = hexBytes{}
		}
		v.Associated = refKeyed(v.Context, v.Bind, v.Key, v.DEKID)
		sealed := refGCM(v.DEK).Seal(nil, v.Nonce, v.Plaintext, v.Associated)
		v.Payload = append(append([]byte{1}, v.Nonce...), sealed...)
		out = append(out, v)
	}
	bad := func(comment, result string, change func(*keyedVector)) {
		v := out[1]
		v.Comment, v.Result, v.Payload = "the second one, "+comment, result, bytes.Clone(v.Payload)
		change(&v)
		v.Associated = refKeyed(v.Context, v.Bind, v.Key, v.DEKID)
		out = append(out, v)
	}
	bad("in another row", "altered", func(v *keyedVector) { v.Key = key{"id": {"S": "o-2"}, "line": {"N": "-0.5"}} })
	bad("at another sort key", "altered", func(v *keyedVector) { v.Key = key{"id": {"S": "o-1"}, "line": {"N": "0.5"}} })
	bad("its number written differently", "altered", func(v *keyedVector) { v.Key = key{"id": {"S": "o-1"}, "line": {"N": "-0.50"}} })
	bad("under the id of another DEK", "altered", func(v *keyedVector) { v.DEKID = otherDEK })
	bad("in another table", "altered", func(v *keyedVector) { v.Context = pairs{"table": "invoices"} })
	bad("one more value bound", "altered", func(v *keyedVector) { v.Bind = pairs{"owner": "ann"} })
	bad("under another DEK", "altered", func(v *keyedVector) { v.DEK = drawn("other", 32) })
	bad("version 2", "format", func(v *keyedVector) { v.Payload[0] = 2 })
	return out
}

func recordVectors() []recordVector {
	var out []recordVector
	type pairs = map[string]string
	for _, c := range []struct {
		comment     string
		context     pairs
		born, epoch int
	}{
		{"a new DEK", pairs{"table": "orders"}, 1, 1},
		{"rewrapped three times, for one tenant", pairs{"table": "orders", "tenant": "Zoë & Co"}, 4, 7},
		{"no encryption context", pairs{}, 12, 12},
	} {
		wrapped, kekID := drawn("wrapped "+c.comment, 40), "1234abcd-12ab-34cd-56ef-1234567890ab"
		context := map[string]map[string]string{}
		for k, v := range c.context {
			context[k] = pairs{"S": v}
		}
		v := recordVector{Comment: c.comment, EncryptionContext: refKeyContext(c.context, vectorDEK, c.born), CopyKey: refCopyKey(vectorDEK, c.epoch, kekID, wrapped), Result: "valid"}
		v.Item = map[string]json.RawMessage{}
		for name, value := range map[string]any{
			"pk": pairs{"S": "DEK#" + vectorDEK}, "format": pairs{"N": "1"}, "wrapped_dek": map[string][]byte{"B": wrapped}, "kek_id": pairs{"S": kekID},
			"kek_epoch": pairs{"N": fmt.Sprint(c.epoch)}, "born_epoch": pairs{"N": fmt.Sprint(c.born)}, "created_at": pairs{"S": "2026-04-01T02:00:00Z"},
			"context": map[string]any{"M": context},
		} {
			v.Item[name], _ = json.Marshal(value)
		}
		body, _ := json.Marshal(map[string]any{
			"format": 1, "dek_id": vectorDEK, "wrapped_dek": wrapped, "kek_id": kekID, "kek_epoch": c.epoch, "born_epoch": c.born,
			"context": c.context, "created_at": "2026-04-01T02:00:00Z",
		})
		v.Copy = string(body)
		out = append(out, v)
	}
	bad := func(comment, attribute, value string) {
		v := recordVector{Comment: comment, Item: maps.Clone(out[1].Item), Result: "refused"}
		if v.Item[attribute] = json.RawMessage(value); value == "" {
			delete(v.Item, attribute)
		}
		out = append(out, v)
	}
	bad("another format", "format", `{"N":"2"}`)
	bad("no format", "format", "")
	bad("no birth epoch", "born_epoch", "")
	bad("wrapped before it was made", "born_epoch", `{"N":"8"}`)
	bad("an attribute that is not known", "expires_at", `{"N":"1"}`)
	bad("an id that is not one", "pk", `{"S":"DEK#AAAQEAYEAUDAOCAJBIFQYDIOB4"}`)
	bad("a KEK by alias", "kek_id", `{"S":"alias/orders"}`)
	bad("a wrapped DEK as text", "wrapped_dek", `{"S":"AAAA"}`)
	bad("a reserved key in the context", "context", `{"M":{"matter:dek_id":{"S":"x"}}}`)
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

// fromJSON decodes an attribute of DynamoDB's JSON.
func fromJSON(t *testing.T, text json.RawMessage) types.AttributeValue {
	t.Helper()
	var v struct {
		S, N *string
		B    []byte
		M    map[string]json.RawMessage
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	switch {
	case v.S != nil:
		return &types.AttributeValueMemberS{Value: *v.S}
	case v.N != nil:
		return &types.AttributeValueMemberN{Value: *v.N}
	case v.M != nil:
		return &types.AttributeValueMemberM{Value: itemFromJSON(t, v.M)}
	}
	return &types.AttributeValueMemberB{Value: v.B}
}

func itemFromJSON(t *testing.T, texts map[string]json.RawMessage) envelope.Item {
	t.Helper()
	out := envelope.Item{}
	for name, text := range texts {
		out[name] = fromJSON(t, text)
	}
	return out
}

func TestVectorsKeyed(t *testing.T) {
	for _, v := range published(t, "keyed.json", keyedVectors()) {
		row := envelope.Item{}
		var keys []string
		for name, typed := range v.Key {
			text, _ := json.Marshal(typed)
			row[name] = fromJSON(t, text)
			keys = append(keys, name)
		}
		bound, err := rowschema.Schema{Context: v.Context, Bind: v.Bind}.KeyedBoundOf(row, keys, v.DEKID)
		if got := aead.AssociatedData(bound); err != nil || !bytes.Equal(got, v.Associated) {
			t.Errorf("%s: %x, %v, want %x", v.Comment, got, err, []byte(v.Associated))
		}
		want := map[string]error{"valid": nil, "altered": envelope.ErrAltered, "format": envelope.ErrFormat}[v.Result]
		got, err := aead.Cipher{}.Open(v.DEK, v.Payload, bound)
		if !errors.Is(err, want) || (err == nil) != (v.Result == "valid") || err == nil && !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%s: %x, %v, want %v", v.Comment, got, err, want)
		}
	}
}

func TestVectorsRecord(t *testing.T) {
	for _, v := range published(t, "record.json", recordVectors()) {
		r, err := keyrecord.Decode(itemFromJSON(t, v.Item))
		if (err == nil) != (v.Result == "valid") {
			t.Errorf("%s: %v", v.Comment, err)
		}
		if v.Result != "valid" {
			continue
		}
		copied, err := keyrecord.DecodeCopy(v.CopyKey, []byte(v.Copy))
		if d := cmp.Diff(r, copied); d != "" || err != nil {
			t.Errorf("%s: %v (-record +copy):\n%s", v.Comment, err, d)
		}
		if d := cmp.Diff(v.EncryptionContext, keyrecord.EncryptionContext(r)); d != "" || keyrecord.CopyKey(r) != v.CopyKey {
			t.Errorf("%s: copy %s (-want +got):\n%s", v.Comment, keyrecord.CopyKey(r), d)
		}
		if again, err := keyrecord.Decode(keyrecord.Encode(r)); err != nil || !cmp.Equal(r, again) {
			t.Errorf("%s: %+v, %v", v.Comment, again, err)
		}
	}
}

// TestFormatPython opens the published payloads with the Python that docs/format.md
// shows.
func TestFormatPython(t *testing.T) {
	python, code := shownPython(t)
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
for v in json.load(open("../testdata/vectors/keyed.json")):
    item = {k: {kind: base64.b64decode(x) if kind == "B" else x for kind, x in typed.items()} for k, typed in v["key"].items()}
    got = keyed_associated({"keys": list(item), "context": v["context"], "bind": v["bind"]}, item, v["dek_id"])
    assert got.hex() == v["associated_data"], v["comment"]
for v in json.load(open("../testdata/vectors/record.json")):
    if v["result"] == "valid":
        record = json.loads(v["copy"])
        assert key_context(record) == v["encryption_context"], v["comment"]
print(opened, refused)
`
	out, err := exec.CommandContext(t.Context(), python, "-c", code).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "14 15" {
		t.Errorf("%s, %v; want 14 opened and 15 refused", got, err)
	}
}

// shownPython returns a Python interpreter, and the Python that docs/format.md shows.
func shownPython(t *testing.T) (python, code string) {
	t.Helper()
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
	for rest := string(doc); ; {
		_, block, ok := strings.Cut(rest, "```python\n")
		if !ok {
			break
		}
		block, rest, ok = strings.Cut(block, "```\n")
		if !ok {
			t.Fatal("docs/format.md has a block of Python that does not end")
		}
		code += block
	}
	if code == "" {
		t.Fatal("docs/format.md shows no Python")
	}
	return python, code
}
