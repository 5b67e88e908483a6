package attr

import (
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var ignoreSDK = cmpopts.IgnoreUnexported(
	types.AttributeValueMemberS{}, types.AttributeValueMemberN{}, types.AttributeValueMemberB{}, types.AttributeValueMemberBOOL{},
	types.AttributeValueMemberL{}, types.AttributeValueMemberM{},
)

// values has an attribute of each type that a [Reader] decodes, and how it is decoded.
var values = map[string]struct {
	value  types.AttributeValue
	want   any
	decode func(r *Reader, name string) any
}{
	"Str":    {Str("a"), "a", func(r *Reader, name string) any { return r.Str(name) }},
	"Num":    {Num(-7), int64(-7), func(r *Reader, name string) any { return r.Num(name) }},
	"Bytes":  {Blob([]byte("b")), []byte("b"), func(r *Reader, name string) any { return r.Bytes(name) }},
	"Bool":   {Bool(true), true, func(r *Reader, name string) any { return r.Bool(name) }},
	"Strs":   {Strs([]string{"a", "b"}), []string{"a", "b"}, func(r *Reader, name string) any { return r.Strs(name) }},
	"Time":   {Str("2026-04-01T02:00:00.123Z"), time.Date(2026, 4, 1, 2, 0, 0, 123e6, time.UTC), func(r *Reader, name string) any { return r.Time(name) }},
	"Map":    {&types.AttributeValueMemberM{Value: Item{"a": Num(1)}}, Item{"a": Num(1)}, func(r *Reader, name string) any { return r.Map(name) }},
	"Counts": {&types.AttributeValueMemberM{Value: Item{"a": Num(1), "b": Num(2)}}, map[string]int64{"a": 1, "b": 2}, func(r *Reader, name string) any { return r.Counts(name) }},
	"JSON": {Str(`{"a":1}`), map[string]any{"a": 1.0}, func(r *Reader, name string) any {
		var into map[string]any
		r.JSON(name, &into)
		return into
	}},
}

// TestReader: each type is decoded, and an attribute that is absent is the zero value.
func TestReader(t *testing.T) {
	for name, c := range values {
		r := &Reader{Item: Item{"a": c.value}}
		if d := cmp.Diff(c.want, c.decode(r, "a"), ignoreSDK); d != "" || r.Err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, r.Err, d)
		}
		if got := c.decode(r, "b"); r.Err != nil || !cmp.Equal(got, zero(c.want)) {
			t.Errorf("%s: an absent attribute is %v, %v", name, got, r.Err)
		}
	}
}

func zero(v any) any { return reflect.Zero(reflect.TypeOf(v)).Interface() }

// TestReaderFailsOnAWrongType: an attribute of another type is an error that names it,
// for each kind of value, a list among them.
func TestReaderFailsOnAWrongType(t *testing.T) {
	others := map[string]types.AttributeValue{"null": &types.AttributeValueMemberNULL{Value: true}}
	for name, c := range values {
		others[name] = c.value
	}
	same := map[string]string{"Time": "Str", "JSON": "Str", "Counts": "Map"}
	typeOf := func(name string) string {
		if s, ok := same[name]; ok {
			return s
		}
		return name
	}
	for name, c := range values {
		for other, v := range others {
			if typeOf(other) == typeOf(name) {
				continue
			}
			r := &Reader{Item: Item{"a": v}}
			got := c.decode(r, "a")
			if r.Err == nil || !strings.Contains(r.Err.Error(), "attribute a") || !cmp.Equal(got, zero(c.want)) {
				t.Errorf("%s of %s: %v, %v", name, other, got, r.Err)
			}
		}
	}
}

// TestReaderFailsOnAWrongValue: a value of the right type that says something else is an
// error too.
func TestReaderFailsOnAWrongValue(t *testing.T) {
	for name, bad := range map[string][]types.AttributeValue{
		"Num":    {&types.AttributeValueMemberN{Value: "1.5"}, &types.AttributeValueMemberN{Value: "9223372036854775808"}},
		"Strs":   {&types.AttributeValueMemberL{Value: []types.AttributeValue{Str("a"), Num(1)}}},
		"Time":   {Str("yesterday"), Str("2026-04-01T02:00:00Z")},
		"Counts": {&types.AttributeValueMemberM{Value: Item{"a": Str("1")}}},
		"JSON":   {Str("{")},
	} {
		for _, v := range bad {
			r := &Reader{Item: Item{"a": v}}
			if values[name].decode(r, "a"); r.Err == nil || !strings.Contains(r.Err.Error(), "attribute a") {
				t.Errorf("%s of %v: %v", name, v, r.Err)
			}
		}
	}
	r := &Reader{Item: Item{"n": &types.AttributeValueMemberN{Value: "9223372036854775808"}, "no": Bool(false), "none": &types.AttributeValueMemberM{Value: Item{}}}}
	if n := r.Num("n"); n != 0 {
		t.Errorf("a number that is too large is %d", n)
	}
	if no, none := r.Bool("no"), r.Counts("none"); no || none != nil {
		t.Errorf("%t, %v", no, none)
	}
}

// TestFirstFault: of an item with several faults the first is reported.
func TestFirstFault(t *testing.T) {
	first := errors.New("the first")
	r := Reader{Item: Item{"n": &types.AttributeValueMemberM{Value: Item{"a": Str("x")}}, "t": Str("x")}, Err: first}
	r.Counts("n")
	r.Time("t")
	r.Num("t")
	if !errors.Is(r.Err, first) || r.Err.Error() != first.Error() {
		t.Error(r.Err)
	}
}

// TestSet: what is empty is not stored, except for a number; a time is stored in UTC.
func TestSet(t *testing.T) {
	i := Item{"old": Str("x")}
	at := time.Date(2026, 4, 1, 4, 0, 0, 123_456_789, time.FixedZone("", 7200))
	got := Set(i, "s", "a", "no s", "", "t", at, "no t", time.Time{}, "n", int64(0), "b", []byte("b"), "no b", []byte{})
	want := Item{"old": Str("x"), "s": Str("a"), "t": Str("2026-04-01T02:00:00.123Z"), "n": Num(0), "b": Blob([]byte("b"))}
	if d := cmp.Diff(want, got, ignoreSDK); d != "" || !maps.Equal(got, i) {
		t.Errorf("(-want +got):\n%s", d)
	}
	defer func() {
		if recover() == nil {
			t.Error("a value of another type was taken")
		}
	}()
	Set(Item{}, "f", 1.5)
}

// TestValues: a value of another type is none, and a number that cannot be read is an
// error.
func TestValues(t *testing.T) {
	for name, v := range map[string]types.AttributeValue{"Str": Str("a"), "Num": Num(3), "Bytes": Blob([]byte("b")), "none": nil} {
		n, err := Int(v)
		if (Text(v) == "a") != (name == "Str") || (string(Bytes(v)) == "b") != (name == "Bytes") || (n == 3) != (name == "Num") || n != 0 && name != "Num" || (err == nil) != (name == "Num" || name == "none") {
			t.Errorf("%s: %q, %q, %d, %v", name, Text(v), Bytes(v), n, err)
		}
	}
	for _, text := range []string{"", "1.5", "1e3", "9223372036854775808"} {
		if n, err := Int(&types.AttributeValueMemberN{Value: text}); n != 0 || err == nil {
			t.Errorf("%q is %d, %v", text, n, err)
		}
	}
}
