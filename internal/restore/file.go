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

// maxLine is beyond what an item of 400 KB takes as DynamoDB JSON.
const maxLine = 4 << 20

// File is a backup: one item in DynamoDB JSON on each line, as DynamoDB's export to
// S3 has them ({"Item": …}) or bare. A name that ends in .gz is unpacked.
type File struct{ Path string }

// Each calls do for every item, in order, and returns the SHA-256 of the file.
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
	if _, err := io.Copy(io.Discard, all); err != nil { // what follows what was unpacked
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// ErrFormat reports a line that is no item in DynamoDB JSON.
var ErrFormat = errors.New("not an item in DynamoDB JSON")

// ParseItem reads an item in DynamoDB JSON, bare or as {"Item": …}.
func ParseItem(b []byte) (envelope.Item, error) {
	var raw map[string]json.RawMessage
	if err := strict(b, &raw); err != nil {
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

func parseAttributes(b []byte) (envelope.Item, error) {
	var raw map[string]json.RawMessage
	if err := strict(b, &raw); err != nil {
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

// strict reads exactly one JSON value. Its errors quote nothing of the value.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return errors.New("no JSON of the expected shape")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

func parseValue(b []byte) (types.AttributeValue, error) {
	var one map[string]json.RawMessage
	if err := strict(b, &one); err != nil {
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

func parseKind(kind string, v json.RawMessage) (types.AttributeValue, error) {
	switch kind {
	case "S":
		s, err := value[string](v)
		return &types.AttributeValueMemberS{Value: s}, err
	case "N":
		s, err := value[string](v)
		return &types.AttributeValueMemberN{Value: s}, err
	case "B":
		s, err := value[string](v)
		if err != nil {
			return nil, err
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(s)
		return &types.AttributeValueMemberB{Value: raw}, err
	case "BOOL":
		t, err := value[bool](v)
		return &types.AttributeValueMemberBOOL{Value: t}, err
	case "NULL":
		t, err := value[bool](v)
		return &types.AttributeValueMemberNULL{Value: t}, err
	case "SS":
		l, err := value[[]string](v)
		return &types.AttributeValueMemberSS{Value: l}, err
	case "NS":
		l, err := value[[]string](v)
		return &types.AttributeValueMemberNS{Value: l}, err
	case "BS":
		l, err := value[[][]byte](v)
		return &types.AttributeValueMemberBS{Value: l}, err
	case "M":
		m, err := parseAttributes(v)
		return &types.AttributeValueMemberM{Value: m}, err
	case "L":
		l, err := value[[]json.RawMessage](v)
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

func value[T any](b json.RawMessage) (T, error) {
	var v T
	if string(b) == "null" {
		return v, errors.New("null")
	}
	return v, strict(b, &v)
}
