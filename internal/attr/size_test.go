package attr_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/test/ddbtest"
)

func TestMain(m *testing.M) { ddbtest.Main(m) }

type item = map[string]types.AttributeValue

func text(v string) types.AttributeValue   { return &types.AttributeValueMemberS{Value: v} }
func number(v string) types.AttributeValue { return &types.AttributeValueMemberN{Value: v} }

// TestItemSize fills an item up to the limit: dynoxide takes it, and refuses one byte more. A
// number may be one byte smaller than ItemSize says.
func TestItemSize(t *testing.T) {
	client := ddbtest.Client(t)
	table := ddbtest.Table(t, client, ddbtest.Key{Name: "id", Type: types.ScalarAttributeTypeS})
	accepts := func(i item, total int) bool {
		i = maps.Clone(i)
		i["id"], i["fill"] = text("a"), text("")
		i["fill"] = text(strings.Repeat("x", total-attr.ItemSize(i)))
		_, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: i})
		return err == nil
	}
	for name, c := range map[string]struct {
		value types.AttributeValue
		slack int // bytes that the value may be smaller
	}{
		"text":            {text("hellö"), 0},
		"binary":          {&types.AttributeValueMemberB{Value: []byte{0, 1, 2}}, 0},
		"boolean":         {&types.AttributeValueMemberBOOL{Value: true}, 0},
		"null":            {&types.AttributeValueMemberNULL{Value: true}, 0},
		"empty list":      {&types.AttributeValueMemberL{}, 0},
		"list":            {&types.AttributeValueMemberL{Value: []types.AttributeValue{text("a"), &types.AttributeValueMemberL{Value: []types.AttributeValue{text("b")}}}}, 0},
		"empty map":       {&types.AttributeValueMemberM{Value: item{}}, 0},
		"map":             {&types.AttributeValueMemberM{Value: item{"ä": text("a"), "b": &types.AttributeValueMemberM{Value: item{"c": text("")}}}}, 0},
		"set of texts":    {&types.AttributeValueMemberSS{Value: []string{"a", "bb"}}, 0},
		"set of binaries": {&types.AttributeValueMemberBS{Value: [][]byte{{1}, {1, 2}}}, 0},
		"set of numbers":  {&types.AttributeValueMemberNS{Value: []string{"1", "200"}}, 0},
		"0":               {number("0"), 0},
		"7":               {number("7"), 0},
		"-7":              {number("-7"), 0},
		"12":              {number("12"), 1},
		"1.5":             {number("1.5"), 0},
		"12.50":           {number("12.50"), 0},
		"1000":            {number("1000"), 0},
		"0.01":            {number("0.01"), 0},
		"1e100":           {number("1e100"), 0},
		"38 digits":       {number("-12345678901234567890123456789012345678"), 1},
	} {
		i := item{"v": c.value}
		if !accepts(i, attr.MaxItemSize) {
			t.Errorf("%s: an item of %d bytes is refused", name, attr.MaxItemSize)
		}
		if accepts(i, attr.MaxItemSize+1+c.slack) {
			t.Errorf("%s: an item of %d bytes is accepted", name, attr.MaxItemSize+1+c.slack)
		}
	}
}
