package memddb

import (
	"bytes"
	"cmp"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// scalar is a key attribute: the bytes of a string or of binary, or a number.
type scalar struct {
	text string
	num  *big.Rat
}

func (s scalar) compare(o scalar) int {
	if s.num != nil && o.num != nil {
		return s.num.Cmp(o.num)
	}
	return cmp.Compare(s.text, o.text)
}

// keyScalar reads a key attribute, which has one type and is never empty.
func keyScalar(v types.AttributeValue, kind types.ScalarAttributeType) (scalar, error) {
	var out scalar
	got := types.ScalarAttributeType("")
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		out.text, got = v.Value, types.ScalarAttributeTypeS
	case *types.AttributeValueMemberB:
		out.text, got = string(v.Value), types.ScalarAttributeTypeB
	case *types.AttributeValueMemberN:
		n, err := rational(v.Value)
		if err != nil {
			return out, err
		}
		return scalar{num: n}, mismatch(kind != types.ScalarAttributeTypeN)
	}
	if out.text == "" && got == kind {
		return out, invalid("One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an empty string or binary value")
	}
	return out, mismatch(got != kind)
}

func mismatch(is bool) error {
	if is {
		return invalid("The provided key element does not match the schema")
	}
	return nil
}

var decimal = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

const maxDigits = 38

// rational is the value of a number. DynamoDB reads exponents too, this does not.
func rational(s string) (*big.Rat, error) {
	if !decimal.MatchString(s) {
		if _, ok := new(big.Rat).SetString(s); ok && !strings.ContainsAny(s, "/_") {
			unknown("the number %q", s)
		}
		return nil, invalid("The parameter cannot be converted to a numeric value: %s", s)
	}
	if len(s) > maxDigits {
		unknown("the number %q", s)
	}
	n, _ := new(big.Rat).SetString(s)
	return n, nil
}

// written is how DynamoDB gives a number back: without needless zeros.
func written(n *big.Rat) string {
	if n.IsInt() {
		return n.Num().String()
	}
	return strings.TrimRight(n.FloatString(maxDigits), "0")
}

// small is the value of an integer of common size.
func small(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && len(s) < 18
}

// compareNumbers compares two stored numbers.
func compareNumbers(a, b string) int {
	x, ok := small(a)
	y, ok2 := small(b)
	if ok && ok2 {
		return cmp.Compare(x, y)
	}
	p, _ := new(big.Rat).SetString(a)
	q, _ := new(big.Rat).SetString(b)
	return p.Cmp(q)
}

// sum is a + b, or a - b.
func sum(a, b string, minus bool) (string, error) {
	p, err := rational(a)
	if err != nil {
		return "", err
	}
	q, err := rational(b)
	if err != nil {
		return "", err
	}
	if minus {
		return written(p.Sub(p, q)), nil
	}
	return written(p.Add(p, q)), nil
}

// checked is a copy of an attribute that a caller gives, with numbers as DynamoDB
// writes them.
func checked(v types.AttributeValue) (types.AttributeValue, error) {
	switch v := v.(type) {
	case *types.AttributeValueMemberN:
		if n, ok := small(v.Value); ok {
			return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}, nil
		}
		n, err := rational(v.Value)
		if err != nil {
			return nil, err
		}
		return &types.AttributeValueMemberN{Value: written(n)}, nil
	case *types.AttributeValueMemberL:
		out := &types.AttributeValueMemberL{Value: make([]types.AttributeValue, len(v.Value))}
		for i, e := range v.Value {
			var err error
			if out.Value[i], err = checked(e); err != nil {
				return nil, err
			}
		}
		return out, nil
	case *types.AttributeValueMemberM:
		out, err := checkedItem(v.Value)
		return &types.AttributeValueMemberM{Value: out}, err
	default:
		return clone(v), nil
	}
}

// checkedItem is [checked] of every attribute.
func checkedItem(i Item) (Item, error) {
	out := make(Item, len(i))
	for name, v := range i {
		var err error
		if out[name], err = checked(v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// clone is a copy that shares no memory.
func clone(v types.AttributeValue) types.AttributeValue {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return &types.AttributeValueMemberS{Value: v.Value}
	case *types.AttributeValueMemberN:
		return &types.AttributeValueMemberN{Value: v.Value}
	case *types.AttributeValueMemberB:
		return &types.AttributeValueMemberB{Value: bytes.Clone(v.Value)}
	case *types.AttributeValueMemberBOOL:
		return &types.AttributeValueMemberBOOL{Value: v.Value}
	case *types.AttributeValueMemberNULL:
		return &types.AttributeValueMemberNULL{Value: v.Value}
	case *types.AttributeValueMemberL:
		out := &types.AttributeValueMemberL{Value: slices.Clone(v.Value)}
		for i, e := range v.Value {
			out.Value[i] = clone(e)
		}
		return out
	case *types.AttributeValueMemberM:
		return &types.AttributeValueMemberM{Value: cloneItem(v.Value)}
	default:
		unknown("an attribute of type %T", v)
		return nil
	}
}

func cloneItem(i Item) Item {
	if i == nil {
		return nil
	}
	out := make(Item, len(i))
	for name, v := range i {
		out[name] = clone(v)
	}
	return out
}

// equal reports whether two stored attributes are.
func equal(a, b types.AttributeValue) bool {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		b, ok := b.(*types.AttributeValueMemberS)
		return ok && a.Value == b.Value
	case *types.AttributeValueMemberN:
		b, ok := b.(*types.AttributeValueMemberN)
		return ok && compareNumbers(a.Value, b.Value) == 0
	case *types.AttributeValueMemberB:
		b, ok := b.(*types.AttributeValueMemberB)
		return ok && bytes.Equal(a.Value, b.Value)
	case *types.AttributeValueMemberBOOL:
		b, ok := b.(*types.AttributeValueMemberBOOL)
		return ok && a.Value == b.Value
	case *types.AttributeValueMemberNULL:
		_, ok := b.(*types.AttributeValueMemberNULL)
		return ok
	case *types.AttributeValueMemberL:
		b, ok := b.(*types.AttributeValueMemberL)
		return ok && slices.EqualFunc(a.Value, b.Value, equal)
	case *types.AttributeValueMemberM:
		b, ok := b.(*types.AttributeValueMemberM)
		return ok && maps.EqualFunc(a.Value, b.Value, equal)
	default:
		unknown("a comparison of %T", a)
		return false
	}
}

// order compares two attributes of one type that has an order.
func order(a, b types.AttributeValue) (int, bool) {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		if b, ok := b.(*types.AttributeValueMemberS); ok {
			return cmp.Compare(a.Value, b.Value), true
		}
	case *types.AttributeValueMemberN:
		if b, ok := b.(*types.AttributeValueMemberN); ok {
			return compareNumbers(a.Value, b.Value), true
		}
	case *types.AttributeValueMemberB:
		if b, ok := b.(*types.AttributeValueMemberB); ok {
			return bytes.Compare(a.Value, b.Value), true
		}
	}
	return 0, false
}

func hasPrefix(v, prefix types.AttributeValue) bool {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		p, ok := prefix.(*types.AttributeValueMemberS)
		return ok && strings.HasPrefix(v.Value, p.Value)
	case *types.AttributeValueMemberB:
		p, ok := prefix.(*types.AttributeValueMemberB)
		return ok && bytes.HasPrefix(v.Value, p.Value)
	}
	return false
}
