package envelope

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// checkWrite refuses an item that a read would not return unchanged. The error is
// [ErrInvalidItem] and names the attribute.
func (c TableConfig) checkWrite(i Item) error {
	for name, v := range i {
		if slices.Contains(c.envelopeAttributes(), name) {
			return fmt.Errorf("%w: attribute %q makes a row an envelope, and only this package writes it", ErrInvalidItem, name)
		}
		if !utf8.ValidString(name) {
			return fmt.Errorf("%w: the attribute name %q is not UTF-8", ErrInvalidItem, name)
		}
		if fault := describeFault(v); fault != "" {
			return fmt.Errorf("%w: attribute %q %s", ErrInvalidItem, name, fault)
		}
	}
	if c.rowSchema().Other.Declares(i) { // such an envelope would block every rotation
		return fmt.Errorf("%w: attribute %q has a value that declares that the item is not an envelope", ErrInvalidItem, c.Other.Attribute)
	}
	return nil
}

// checkKey refuses a key that the SDK would change into the key of another row.
func checkKey(key Item) error {
	for name, v := range key {
		if fault := describeFault(v); fault != "" {
			return fmt.Errorf("%w: key attribute %q %s", ErrInvalidItem, name, fault)
		}
	}
	return nil
}

// describeFault says why DynamoDB would not return v unchanged; "" if it would. The SDK
// stores U+FFFD in the place of bytes that are not UTF-8, and leaves out nil values.
func describeFault(v types.AttributeValue) string {
	texts := []string(nil)
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		texts = []string{v.Value}
	case *types.AttributeValueMemberSS:
		texts = v.Value
	case *types.AttributeValueMemberL:
		for _, e := range v.Value {
			if fault := describeFault(e); fault != "" {
				return fault
			}
		}
	case *types.AttributeValueMemberM:
		for name, e := range v.Value {
			texts = append(texts, name)
			if fault := describeFault(e); fault != "" {
				return fault
			}
		}
	case *types.AttributeValueMemberN, *types.AttributeValueMemberB, *types.AttributeValueMemberBOOL,
		*types.AttributeValueMemberNULL, *types.AttributeValueMemberNS, *types.AttributeValueMemberBS:
	default:
		return fmt.Sprintf("is or holds a %T, which DynamoDB does not store", v)
	}
	if !slices.ContainsFunc(texts, func(s string) bool { return !utf8.ValidString(s) }) {
		return ""
	}
	return "holds text that is not UTF-8"
}

// checkContextText refuses an encryption context with text that is not UTF-8: the SDK
// would replace it in the request to KMS, which then has another context than the payload.
func checkContextText(encctx map[string]string) error {
	for k, v := range encctx {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("encryption context: key %q or its value is not UTF-8", k)
		}
	}
	return nil
}

// sameScalar reports whether two key attributes are equal for DynamoDB, which compares
// numbers by value.
func sameScalar(a, b types.AttributeValue) bool {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		b, ok := b.(*types.AttributeValueMemberS)
		return ok && a.Value == b.Value
	case *types.AttributeValueMemberB:
		b, ok := b.(*types.AttributeValueMemberB)
		return ok && bytes.Equal(a.Value, b.Value)
	case *types.AttributeValueMemberN:
		b, ok := b.(*types.AttributeValueMemberN)
		return ok && sameNumber(a.Value, b.Value)
	default:
		return false
	}
}

var decimalText = regexp.MustCompile(`^([+-]?)([0-9]*)\.?([0-9]*)(?:[eE]([+-]?[0-9]{1,4}))?$`)

// sameNumber reports whether two texts are the same number, as 1, 1.0 and 10e-1 are.
func sameNumber(a, b string) bool {
	x, ok := normalizeNumber(a)
	y, _ := normalizeNumber(b) // "", which no number is
	return ok && x == y
}

// normalizeNumber returns the only form of a number that sameNumber compares: sign, digits
// without leading and trailing zeros, and the power of ten of the first digit.
func normalizeNumber(s string) (string, bool) {
	m := decimalText.FindStringSubmatch(s)
	if m == nil || m[2]+m[3] == "" {
		return "", false
	}
	exponent, _ := strconv.Atoi(m[4]) // "" is 0, and four digits fit
	digits := strings.TrimLeft(m[2]+m[3], "0")
	exponent += len(m[2]) - (len(m[2]) + len(m[3]) - len(digits))
	if digits = strings.TrimRight(digits, "0"); digits == "" {
		return "0", true
	}
	return fmt.Sprintf("%s0.%se%d", strings.TrimPrefix(m[1], "+"), digits, exponent), true
}
