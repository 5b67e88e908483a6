package dynamodb

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

// keyAttribute is one part of a table's primary key.
type keyAttribute struct {
	name string
	kind types.ScalarAttributeType // S, N or B
}

// keySchema returns the hash key and, if there is one, the range key.
func keySchema(d *types.TableDescription) ([]keyAttribute, error) {
	kinds := map[string]types.ScalarAttributeType{}
	for _, a := range d.AttributeDefinitions {
		kinds[aws.ToString(a.AttributeName)] = a.AttributeType
	}
	var keys []keyAttribute
	for _, want := range []types.KeyType{types.KeyTypeHash, types.KeyTypeRange} {
		for _, k := range d.KeySchema {
			if k.KeyType == want {
				n := aws.ToString(k.AttributeName)
				keys = append(keys, keyAttribute{n, kinds[n]})
			}
		}
	}
	if len(keys) == 0 || len(keys) != len(d.KeySchema) {
		return nil, fmt.Errorf("table %s has a key schema that is not understood", aws.ToString(d.TableName))
	}
	return keys, nil
}

// keyOf returns the primary key of an item.
func keyOf(i item, keys []keyAttribute) item {
	out := make(item, len(keys))
	for _, k := range keys {
		out[k.name] = i[k.name]
	}
	return out
}

// rowID returns a row's key as text for people: "pk=…,sk=…", binary in base64.
func rowID(i item, keys []keyAttribute) string {
	parts := make([]string, len(keys))
	for n, k := range keys {
		var v string
		switch a := i[k.name].(type) {
		case *types.AttributeValueMemberS:
			v = a.Value
		case *types.AttributeValueMemberN:
			v = a.Value
		case *types.AttributeValueMemberB:
			v = base64.StdEncoding.EncodeToString(a.Value)
		}
		if strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
			v = strconv.Quote(v)
		}
		parts[n] = k.name + "=" + v
	}
	return strings.Join(parts, ",")
}

// errCursor reports a cursor that this source did not make.
var errCursor = errors.New("the cursor is not one of this table")

// decimal is how DynamoDB writes a number.
var decimal = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// cursorValue is one key attribute; one field is set. Key attributes are never
// empty, so an empty field is an absent one.
type cursorValue struct {
	S string `json:"S,omitempty"`
	N string `json:"N,omitempty"`
	B []byte `json:"B,omitempty"`
}

// encodeCursor returns the cursor after the last key that was read; "" at the end of the
// segment. It is base64 of the key as JSON, with the type of each attribute:
//
//	{"pk":{"S":"a"},"sk":{"N":"7"}}
func encodeCursor(last item, keys []keyAttribute) (string, error) {
	if len(last) == 0 {
		return "", nil
	}
	out := map[string]cursorValue{}
	for _, k := range keys {
		switch a := last[k.name].(type) {
		case *types.AttributeValueMemberS:
			out[k.name] = cursorValue{S: a.Value}
		case *types.AttributeValueMemberN:
			out[k.name] = cursorValue{N: a.Value}
		case *types.AttributeValueMemberB:
			out[k.name] = cursorValue{B: a.Value}
		default:
			return "", fmt.Errorf("last evaluated key: attribute %s is %T", k.name, a)
		}
	}
	b, err := json.Marshal(out)
	if err != nil {
		return "", fmt.Errorf("encode cursor: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// decodeCursor returns the key to continue after; nil at the start. It refuses everything but
// exactly the table's key attributes in their types, because a cursor of another table could
// skip rows.
func decodeCursor(cursor string, keys []keyAttribute) (item, error) {
	if cursor == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCursor, err)
	}
	var in map[string]cursorValue
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("%w: %w", errCursor, err)
	}
	if d.More() || len(in) != len(keys) {
		return nil, fmt.Errorf("%w: it has %d attributes, the key %d", errCursor, len(in), len(keys))
	}
	out := make(item, len(keys))
	for _, k := range keys {
		v, ok := in[k.name].toAttribute(k.kind)
		if !ok {
			return nil, fmt.Errorf("%w: attribute %s", errCursor, k.name)
		}
		out[k.name] = v
	}
	return out, nil
}

// toAttribute returns v as an attribute of the given type; false if it has another type.
func (v cursorValue) toAttribute(kind types.ScalarAttributeType) (types.AttributeValue, bool) {
	switch kind {
	case types.ScalarAttributeTypeS:
		return attr.Str(v.S), v.S != "" && v.N == "" && len(v.B) == 0
	case types.ScalarAttributeTypeN:
		return &types.AttributeValueMemberN{Value: v.N}, decimal.MatchString(v.N) && v.S == "" && len(v.B) == 0
	case types.ScalarAttributeTypeB:
		return attr.Blob(v.B), len(v.B) > 0 && v.S == "" && v.N == ""
	}
	return nil, false
}
