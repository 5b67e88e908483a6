// Package attr makes and reads the values of DynamoDB attributes. It is what the control
// table's items and the rows of tables are encoded and decoded with, in the application's
// client as in a rotation.
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

// Text returns the value of an attribute of type S; "" of another type or of none.
func Text(v types.AttributeValue) string {
	s, ok := v.(*types.AttributeValueMemberS)
	if !ok {
		return ""
	}
	return s.Value
}

// Bytes returns the value of an attribute of type B; nil of another type or of none.
func Bytes(v types.AttributeValue) []byte {
	b, ok := v.(*types.AttributeValueMemberB)
	if !ok {
		return nil
	}
	return b.Value
}

// Int returns the value of an attribute of type N; 0 if there is no attribute. The error
// says that the attribute is of another type or no whole number of 64 bits.
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

// Set adds name and value pairs to an item: strings, times and bytes that are not empty,
// and numbers.
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

func (r *Reader) keep(name string, err error) {
	if r.Err == nil {
		r.Err = fmt.Errorf("attribute %s: %w", name, err)
	}
}

// get returns an attribute that has type T, or notes that it has another.
func get[T types.AttributeValue](r *Reader, name, want string) (v T, ok bool) {
	got := r.Item[name]
	if v, ok = got.(T); !ok && got != nil && r.Err == nil {
		r.Err = fmt.Errorf("attribute %s is %T, not %s", name, got, want)
	}
	return v, ok
}

// Str decodes an attribute of type S.
func (r *Reader) Str(name string) string {
	v, ok := get[*types.AttributeValueMemberS](r, name, "a string")
	if !ok {
		return ""
	}
	return v.Value
}

// Num decodes an attribute of type N that is a whole number.
func (r *Reader) Num(name string) int64 {
	v, ok := get[*types.AttributeValueMemberN](r, name, "a number")
	if !ok {
		return 0
	}
	n, err := Int(v)
	if err != nil {
		r.keep(name, err)
	}
	return n
}

// Bytes decodes an attribute of type B.
func (r *Reader) Bytes(name string) []byte {
	v, ok := get[*types.AttributeValueMemberB](r, name, "binary")
	if !ok {
		return nil
	}
	return v.Value
}

// Bool decodes an attribute of type BOOL.
func (r *Reader) Bool(name string) bool {
	v, ok := get[*types.AttributeValueMemberBOOL](r, name, "a boolean")
	return ok && v.Value
}

// Strs decodes a list of attributes of type S.
func (r *Reader) Strs(name string) []string {
	v, ok := get[*types.AttributeValueMemberL](r, name, "a list")
	if !ok {
		return nil
	}
	var out []string
	for _, e := range v.Value {
		s, ok := e.(*types.AttributeValueMemberS)
		if !ok {
			r.keep(name, fmt.Errorf("%T in a list of strings", e))
			return nil
		}
		out = append(out, s.Value)
	}
	return out
}

// Time decodes a time that [Set] has stored.
func (r *Reader) Time(name string) time.Time {
	s := r.Str(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(TimeFormat, s)
	if err != nil {
		r.keep(name, err)
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
		r.keep(name, err)
	}
}

// Map decodes an attribute of type M.
func (r *Reader) Map(name string) Item {
	v, ok := get[*types.AttributeValueMemberM](r, name, "a map")
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
		r.keep(name, in.Err)
	}
	return out
}
