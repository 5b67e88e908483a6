package dynamodb

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/attr"
)

var cursorKeys = [][]keyAttribute{
	{{"id", types.ScalarAttributeTypeS}},
	{{"id", types.ScalarAttributeTypeB}, {"n", types.ScalarAttributeTypeN}},
}

func TestCursor(t *testing.T) {
	for _, c := range []struct {
		keys []keyAttribute
		last item
	}{
		{cursorKeys[0], item{"id": attr.Str("<é\x00>")}},
		{cursorKeys[1], item{"id": attr.Blob([]byte{0, 255}), "n": &types.AttributeValueMemberN{Value: "-1.5E+10"}}},
	} {
		cursor, err := encodeCursor(c.last, c.keys)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeCursor(cursor, c.keys)
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range c.last {
			if !equal(v, got[name]) {
				t.Errorf("%s: %v, want %v", name, got[name], v)
			}
		}
		for _, other := range cursorKeys {
			if _, err := decodeCursor(cursor, other); (err == nil) != (len(other) == len(c.keys)) {
				t.Errorf("cursor of another key: %v", err)
			}
		}
	}
	if _, err := encodeCursor(item{"id": attr.Num(1), "n": attr.Bool(true)}, cursorKeys[1]); err == nil {
		t.Error("a key of another type was encoded")
	}
}

func equal(a, b types.AttributeValue) bool {
	switch a := a.(type) {
	case *types.AttributeValueMemberS:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberS).Value)
	case *types.AttributeValueMemberN:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberN).Value)
	case *types.AttributeValueMemberB:
		return cmp.Equal(a.Value, b.(*types.AttributeValueMemberB).Value)
	}
	return false
}

// FuzzCursor: what decodes is a key of the table and encodes to a cursor that
// decodes to the same.
func FuzzCursor(f *testing.F) {
	for _, c := range []string{"", "e30", "bnVsbA", "eyJpZCI6eyJTIjoiYSJ9fQ", "eyJpZCI6eyJCIjoiQUE9PSJ9LCJuIjp7Ik4iOiIxIn19"} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		for _, keys := range cursorKeys {
			key, err := decodeCursor(cursor, keys)
			if err != nil || cursor == "" {
				continue
			}
			again, err := encodeCursor(key, keys)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeCursor(again, keys)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if !equal(key[k.name], got[k.name]) {
					t.Fatalf("%s: %v, then %v", k.name, key[k.name], got[k.name])
				}
			}
		}
	})
}

func TestRowID(t *testing.T) {
	keys := []keyAttribute{{"pk", types.ScalarAttributeTypeS}, {"sk", types.ScalarAttributeTypeN}}
	for want, i := range map[string]item{
		"pk=order 1,sk=7":  {"pk": attr.Str("order 1"), "sk": attr.Num(7)},
		`pk="a\nb",sk=1`:   {"pk": attr.Str("a\nb"), "sk": attr.Num(1)},
		"pk=AP8=,sk=00":    {"pk": attr.Blob([]byte{0, 255}), "sk": attr.Str("00")},
		`pk="\x1b[2J",sk=`: {"pk": attr.Str("\x1b[2J")},
	} {
		if got := rowID(i, keys); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
