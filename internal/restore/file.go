package restore

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
)

// maxLine is the longest line in bytes. An item has at most 400 KB, and its DynamoDB JSON
// is shorter than this.
const maxLine = 4 << 20

// File is a backup: one item in DynamoDB JSON on each line. A line is {"Item": {…}}, as in
// DynamoDB's export to S3 (DynamoDB developer guide, "DynamoDB table export output
// format"), or the item itself. A file whose name ends in .gz is decompressed.
//
//	{"Item":{"pk":{"S":"a"},"n":{"N":"1"},"dek":{"B":"<base64>"}}}
type File struct{ Path string }

// Each calls do for every item, in order, and returns the hex SHA-256 of the file. A line
// that is not an item is [ErrFormat]. It stops at the first error.
func (f File) Each(do func(line int, item envelope.Item) error) (digest string, err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // read only
	sum := sha256.New()
	all := io.TeeReader(file, sum)
	r := all
	if strings.HasSuffix(f.Path, ".gz") {
		if r, err = gzip.NewReader(r); err != nil {
			return "", fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	n := 0
	for lines.Scan() {
		n++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		item, err := ParseItem(lines.Bytes())
		if err == nil {
			err = do(n, item)
		} else {
			err = fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if err != nil {
			return "", fmt.Errorf("%s line %d: %w", f.Path, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("%s after line %d: %w", f.Path, n, err)
	}
	if _, err := io.Copy(io.Discard, all); err != nil { // bytes after the compressed data
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// ErrFormat reports a line that is not an item in DynamoDB JSON.
var ErrFormat = errors.New("not an item in DynamoDB JSON")

// ParseItem reads an item in DynamoDB JSON, bare or as {"Item": …}.
func ParseItem(b []byte) (envelope.Item, error) {
	var raw map[string]json.RawMessage
	if err := decodeStrict(b, &raw); err != nil {
		return nil, err
	}
	if inner, ok := raw["Item"]; ok && len(raw) == 1 {
		// An attribute that is called Item has one type and no attributes of its own.
		if item, err := parseAttributes(inner); err == nil {
			return item, nil
		}
	}
	return parseAttributes(b)
}

// parseAttributes decodes an object of attributes: {"name": {"S": "text"}, …}.
func parseAttributes(b []byte) (envelope.Item, error) {
	var raw map[string]json.RawMessage
	if err := decodeStrict(b, &raw); err != nil {
		return nil, err
	}
	item := make(envelope.Item, len(raw))
	for name, v := range raw {
		a, err := parseValue(v)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		item[name] = a
	}
	return item, nil
}

// decodeStrict decodes exactly one JSON value. Its errors quote nothing of the value,
// which may be an application's data.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return errors.New("not JSON of the expected shape")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// parseValue decodes one attribute value: {"S": "text"}.
func parseValue(b []byte) (types.AttributeValue, error) {
	var one map[string]json.RawMessage
	if err := decodeStrict(b, &one); err != nil {
		return nil, err
	}
	if len(one) != 1 {
		return nil, fmt.Errorf("%d types, want one", len(one))
	}
	for kind, v := range one {
		return parseKind(kind, v)
	}
	return nil, nil // not reached
}

// parseKind decodes a value of a type, as the DynamoDB API reference has it under
// AttributeValue.
func parseKind(kind string, v json.RawMessage) (types.AttributeValue, error) {
	switch kind {
	case "S":
		s, err := decodeValue[string](v)
		return &types.AttributeValueMemberS{Value: s}, err
	case "N":
		s, err := decodeValue[string](v)
		return &types.AttributeValueMemberN{Value: s}, err
	case "B":
		s, err := decodeValue[string](v)
		if err != nil {
			return nil, err
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(s)
		return &types.AttributeValueMemberB{Value: raw}, err
	case "BOOL":
		t, err := decodeValue[bool](v)
		return &types.AttributeValueMemberBOOL{Value: t}, err
	case "NULL":
		t, err := decodeValue[bool](v)
		return &types.AttributeValueMemberNULL{Value: t}, err
	case "SS":
		l, err := decodeValue[[]string](v)
		return &types.AttributeValueMemberSS{Value: l}, err
	case "NS":
		l, err := decodeValue[[]string](v)
		return &types.AttributeValueMemberNS{Value: l}, err
	case "BS":
		l, err := decodeValue[[][]byte](v)
		return &types.AttributeValueMemberBS{Value: l}, err
	case "M":
		m, err := parseAttributes(v)
		return &types.AttributeValueMemberM{Value: m}, err
	case "L":
		l, err := decodeValue[[]json.RawMessage](v)
		out := &types.AttributeValueMemberL{Value: []types.AttributeValue{}}
		for _, e := range l {
			a, perr := parseValue(e)
			if perr != nil {
				return nil, perr
			}
			out.Value = append(out.Value, a)
		}
		return out, err
	default:
		return nil, fmt.Errorf("type %q is not known", kind)
	}
}

// decodeValue decodes JSON that must not be null, which encoding/json would accept for every
// type.
func decodeValue[T any](b json.RawMessage) (T, error) {
	var v T
	if string(b) == "null" {
		return v, errors.New("null")
	}
	return v, decodeStrict(b, &v)
}
