package s3

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/matter-ops/kms-rotation/kek"
)

// Version is the version of the object format.
const Version = 1

// Entry is one known cipher. It is stored as one JSON object with exactly these fields, byte
// strings in standard base64, and a line end:
//
//	{"v":1,
//	 "kek_id":"<key id or key ARN>",
//	 "kek_epoch":7,
//	 "version":3,
//	 "wrapped_dek":"<KMS ciphertext blob>",
//	 "ciphertext":"<payload, see docs/format.md>",
//	 "context":{"<name>":"<value>"},
//	 "plaintext_sha256":"<64 hex digits, lower case>"}
type Entry struct {
	V               int               `json:"v"`
	KEK             kek.ID            `json:"kek_id"`
	Epoch           int64             `json:"kek_epoch"` // pointer epoch of its last wrap
	Version         int64             `json:"version"`   // grows with every rewrap
	WrappedDEK      []byte            `json:"wrapped_dek"`
	Ciphertext      []byte            `json:"ciphertext"`
	Context         map[string]string `json:"context"` // encryption context
	PlaintextSHA256 string            `json:"plaintext_sha256"`
}

// fields lists the names of an entry's fields. Each must occur once, in this spelling.
var fields = []string{"v", "kek_id", "kek_epoch", "version", "wrapped_dek", "ciphertext", "context", "plaintext_sha256"}

// Decode reads an entry strictly: every field once, no other field, and each value sound.
// With an error it returns the fields that could be read. No error quotes the value of a
// field, because errors are logged.
func Decode(b []byte) (Entry, error) {
	var e Entry
	if err := checkFields(b); err != nil {
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, describeFieldError(err)
	}
	return e, e.Check()
}

// checkFields refuses what encoding/json accepts: fields that occur twice, in another case or
// not at all, and text after the object.
func checkFields(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, _ := d.Token(); t != json.Delim('{') { // nil if there is no token
		return errors.New("it is not a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, _ := d.Token()
		name, ok := t.(string)
		if !ok {
			return errors.New("it is not a JSON object")
		}
		if seen[name] {
			return fmt.Errorf("field %.40q is there twice", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("field %.40q is not a JSON value", name)
		}
	}
	if _, err := d.Token(); err != nil {
		return errors.New("the JSON object does not end")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	for _, f := range fields {
		if !seen[f] {
			return fmt.Errorf("field %q is missing", f)
		}
		delete(seen, f)
	}
	for name := range seen {
		return fmt.Errorf("field %.40q is unknown", name)
	}
	return nil
}

// describeFieldError says which field does not decode, without quoting its value as
// encoding/json does.
func describeFieldError(err error) error {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Errorf("field %q has the wrong type", kind.Field)
	}
	return errors.New("a field does not decode")
}

// Check returns what is wrong with an entry; nil if it is sound.
func (e Entry) Check() error {
	sum, _ := hex.DecodeString(e.PlaintextSHA256) // what is not hex is not what sum encodes to
	switch {
	case e.V != Version:
		return fmt.Errorf("field %q is %d, this program knows %d", "v", e.V, Version)
	case e.KEK == "":
		return errors.New(`field "kek_id" is empty`)
	case e.Epoch < 0:
		return errors.New(`field "kek_epoch" is negative`)
	case e.Version < 0:
		return errors.New(`field "version" is negative`)
	case len(e.WrappedDEK) == 0:
		return errors.New(`field "wrapped_dek" is empty`)
	case len(e.Ciphertext) == 0:
		return errors.New(`field "ciphertext" is empty`)
	case e.Context == nil:
		return errors.New(`field "context" is null`)
	case len(sum) != 32 || hex.EncodeToString(sum) != e.PlaintextSHA256:
		return errors.New(`field "plaintext_sha256" is not a SHA-256 in lower-case hex`)
	}
	return nil
}

// Encode returns the entry as it is stored. It refuses one that Decode would not read.
func (e Entry) Encode() ([]byte, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode corpus entry: %w", err)
	}
	return append(b, '\n'), nil
}
