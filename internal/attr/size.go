package attr

import (
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// MaxItemSize is the size in bytes that an item may have (DynamoDB developer guide, "Quotas":
// 400 KB, with names and values).
const MaxItemSize = 400 << 10

// ItemSize returns the size of an item in bytes, as the DynamoDB developer guide has it under
// "DynamoDB item sizes and formats": the UTF-8 bytes of each name and its value. The
// guide gives numbers as approximate and says nothing of sets: here a number is at most
// one byte too large, and a set is its elements, as dynoxide has it.
func ItemSize(i Item) int {
	n := 0
	for name, v := range i {
		n += len(name) + valueSize(v)
	}
	return n
}

// UpdateCost returns the bytes that an UpdateItem counts towards [MaxItemSize] beside the item
// that it leaves, by its number of SET and ADD actions and of REMOVE actions. AWS does
// not document it; dynoxide has it from measurements on AWS (nubo-db/dynoxide pull
// request 195), by which the key's own bytes, and those that the update does not name
// (issue 210), do not count: an upper bound for both. A transaction counts the item alone.
func UpdateCost(sets, removes int) int { return 3 + 19*sets + 2*removes }

const (
	nested  = 3 // of a list or map
	element = 1 // of each of its elements
)

// valueSize returns the size of a value in bytes.
func valueSize(v types.AttributeValue) int {
	n := 0
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		n = len(v.Value)
	case *types.AttributeValueMemberN:
		n = numberSize(v.Value)
	case *types.AttributeValueMemberB:
		n = len(v.Value)
	case *types.AttributeValueMemberBOOL, *types.AttributeValueMemberNULL:
		n = 1
	case *types.AttributeValueMemberL:
		n = nested
		for _, e := range v.Value {
			n += element + valueSize(e)
		}
	case *types.AttributeValueMemberM:
		n = nested + element*len(v.Value) + ItemSize(v.Value)
	case *types.AttributeValueMemberSS:
		for _, e := range v.Value {
			n += len(e)
		}
	case *types.AttributeValueMemberNS:
		for _, e := range v.Value {
			n += numberSize(e)
		}
	case *types.AttributeValueMemberBS:
		for _, e := range v.Value {
			n += len(e)
		}
	}
	return n
}

// numberSize is one byte for each two significant digits, as they are paired from the
// decimal point, one more, and one for a minus sign. Where the pairs lie is not looked
// at, so it may be one byte too many.
func numberSize(s string) int {
	digits, minus := strings.CutPrefix(s, "-")
	digits, _, _ = strings.Cut(strings.ToLower(digits), "e")
	digits = strings.Trim(strings.Replace(digits, ".", "", 1), "0")
	n := 1
	if digits != "" {
		n += len(digits)/2 + 1
	}
	if minus {
		n++
	}
	return n
}
