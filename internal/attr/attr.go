// Package attr encodes and decodes DynamoDB attributes. The control table's items and the
// rows of tables use it, in the applications' client and in a rotation.
//
//	Go                     attribute
//	string, ID             S; "" is not stored by Set
//	int64                  N
//	[]byte                 B; empty is not stored by Set
//	bool                   BOOL
//	[]string               L of S
//	time.Time              S, UTC in milliseconds: 2026-04-01T02:00:00.000Z; zero is not stored by Set
//	map[string]int64       M of N
//
// Decoding is strict about types: an attribute of another type is an error that names it,
// never a zero value that looks like an absent attribute.
package attr

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// TimeFormat is how a time is stored, in UTC.
const TimeFormat = "2006-01-02T15:04:05.000Z"

// Item is a DynamoDB item.
type Item = map[string]types.AttributeValue

// Str makes an attribute of type S.
func Str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

// Num makes an attribute of type N.
func Num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}

// Blob makes an attribute of type B.
func Blob(b []byte) types.AttributeValue { return &types.AttributeValueMemberB{Value: b} }

// Bool makes an attribute of type BOOL.
func Bool(b bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: b} }

// Strs makes a list of attributes of type S.
func Strs[S ~string](all []S) types.AttributeValue {
	list := make([]types.AttributeValue, len(all))
	for n, s := range all {
		list[n] = Str(string(s))
	}
	return &types.AttributeValueMemberL{Value: list}
}

// Text returns the value of an attribute of type S; "" if there is none or it has another
// type. Use it where a person may have written the item; see [Reader] for strict decoding.
func Text(v types.AttributeValue) string {
	s, ok := v.(*types.AttributeValueMemberS)
	if !ok {
		return ""
	}
	return s.Value
}

// Bytes returns the value of an attribute of type B; nil if there is none or it has another
// type.
func Bytes(v types.AttributeValue) []byte {
	b, ok := v.(*types.AttributeValueMemberB)
	if !ok {
		return nil
	}
	return b.Value
}

// Int returns the value of an attribute of type N; 0 if there is no attribute. It fails if
// the attribute has another type or is not a whole number of 64 bits.
func Int(v types.AttributeValue) (int64, error) {
	switch n := v.(type) {
	case nil:
		return 0, nil
	case *types.AttributeValueMemberN:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil {
			return 0, err
		}
		return i, nil
	default:
		return 0, fmt.Errorf("%T is not a number", v)
	}
}

// Set adds pairs of name and value to an item: strings, times and bytes that are not
// empty, and numbers. A value of another type is a programming error and panics.
func Set(i Item, pairs ...any) Item {
	for n := 0; n < len(pairs); n += 2 {
		name := pairs[n].(string) //nolint:forcetypeassert // a programming error
		switch v := pairs[n+1].(type) {
		case string:
			if v != "" {
				i[name] = Str(v)
			}
		case time.Time:
			if !v.IsZero() {
				i[name] = Str(v.UTC().Format(TimeFormat))
			}
		case int64:
			i[name] = Num(v)
		case []byte:
			if len(v) > 0 {
				i[name] = Blob(v)
			}
		default:
			panic(fmt.Sprintf("attr: attribute %s has type %T", name, v))
		}
	}
	return i
}

// Reader decodes the attributes of an item and keeps the first error. An absent
// attribute, and one that cannot be decoded, is the zero value.
type Reader struct {
	Item Item
	Err  error
}

// keepError keeps the first error.
func (r *Reader) keepError(name string, err error) {
	if r.Err == nil {
		r.Err = fmt.Errorf("attribute %s: %w", name, err)
	}
}

// getTyped returns an attribute of type T. It keeps an error if the attribute has another
// type.
func getTyped[T types.AttributeValue](r *Reader, name, want string) (v T, ok bool) {
	got := r.Item[name]
	if v, ok = got.(T); !ok && got != nil && r.Err == nil {
		r.Err = fmt.Errorf("attribute %s is %T, not %s", name, got, want)
	}
	return v, ok
}

// Str decodes an attribute of type S.
func (r *Reader) Str(name string) string {
	v, ok := getTyped[*types.AttributeValueMemberS](r, name, "a string")
	if !ok {
		return ""
	}
	return v.Value
}

// Num decodes an attribute of type N that is a whole number.
func (r *Reader) Num(name string) int64 {
	v, ok := getTyped[*types.AttributeValueMemberN](r, name, "a number")
	if !ok {
		return 0
	}
	n, err := Int(v)
	if err != nil {
		r.keepError(name, err)
	}
	return n
}

// Bytes decodes an attribute of type B.
func (r *Reader) Bytes(name string) []byte {
	v, ok := getTyped[*types.AttributeValueMemberB](r, name, "binary")
	if !ok {
		return nil
	}
	return v.Value
}

// Bool decodes an attribute of type BOOL.
func (r *Reader) Bool(name string) bool {
	v, ok := getTyped[*types.AttributeValueMemberBOOL](r, name, "a boolean")
	return ok && v.Value
}

// Strs decodes a list of attributes of type S.
func (r *Reader) Strs(name string) []string {
	v, ok := getTyped[*types.AttributeValueMemberL](r, name, "a list")
	if !ok {
		return nil
	}
	var out []string
	for _, e := range v.Value {
		s, ok := e.(*types.AttributeValueMemberS)
		if !ok {
			r.keepError(name, fmt.Errorf("%T in a list of strings", e))
			return nil
		}
		out = append(out, s.Value)
	}
	return out
}

// Time decodes a time that [Set] stored.
func (r *Reader) Time(name string) time.Time {
	s := r.Str(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(TimeFormat, s)
	if err != nil {
		r.keepError(name, err)
	}
	return t
}

// JSON decodes an attribute of type S that holds JSON.
func (r *Reader) JSON(name string, into any) {
	text := r.Str(name)
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		r.keepError(name, err)
	}
}

// Map decodes an attribute of type M.
func (r *Reader) Map(name string) Item {
	v, ok := getTyped[*types.AttributeValueMemberM](r, name, "a map")
	if !ok {
		return nil
	}
	return v.Value
}

// Counts decodes a map of numbers; nil if it is absent.
func (r *Reader) Counts(name string) map[string]int64 {
	nested := r.Map(name)
	if len(nested) == 0 {
		return nil
	}
	in := Reader{Item: nested}
	out := make(map[string]int64, len(nested))
	for k := range nested {
		out[k] = in.Num(k)
	}
	if in.Err != nil {
		r.keepError(name, in.Err)
	}
	return out
}
