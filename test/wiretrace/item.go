package wiretrace

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// attribute is an attribute of an item as the wire has it. Lists, maps and sets are
// kept as none: nothing that is followed is one.
type attribute struct {
	S    *string
	N    *string
	B    []byte
	BOOL *bool
}

type item map[string]attribute

func (i item) str(name string) string {
	if s := i[name].S; s != nil {
		return *s
	}
	return ""
}

// num is 0 for what is no number.
func (i item) num(name string) int64 {
	if s := i[name].N; s != nil {
		n, err := strconv.ParseInt(*s, 10, 64)
		if err == nil {
			return n
		}
	}
	return 0
}

// text is an attribute of a key.
func (a attribute) text() string {
	switch {
	case a.S != nil:
		return *a.S
	case a.N != nil:
		return *a.N
	}
	return base64.StdEncoding.EncodeToString(a.B)
}

var errKey = errors.New("a key attribute is no string, number or bytes")

// toSDK is the key of an item as the SDK has it.
func (i item) toSDK(keys []string) (map[string]types.AttributeValue, error) {
	out := map[string]types.AttributeValue{}
	for _, k := range keys {
		switch a := i[k]; {
		case a.S != nil:
			out[k] = &types.AttributeValueMemberS{Value: *a.S}
		case a.N != nil:
			out[k] = &types.AttributeValueMemberN{Value: *a.N}
		case a.B != nil:
			out[k] = &types.AttributeValueMemberB{Value: a.B}
		default:
			return nil, errKey
		}
	}
	return out, nil
}

// action is one write, or check, of one item: the body of a call, or a part of a
// transaction.
type action struct {
	TableName                 string
	Key, Item                 item
	UpdateExpression          string
	ConditionExpression       string
	ExpressionAttributeNames  map[string]string
	ExpressionAttributeValues item

	// What older requests had in place of expressions. Nothing here writes them.
	AttributeUpdates, Expected map[string]any
}

var (
	errLegacy     = errors.New("it has no expressions but what came before them")
	errExpression = errors.New("its expression is not understood")
	clauses       = regexp.MustCompile(`(?i)(?:^|\s)(SET|REMOVE|ADD|DELETE)\s+`)
	operand       = regexp.MustCompile(`^:\w+$`)
	equality      = regexp.MustCompile(`^([#\w]+) = (:\w+)$`)
	absence       = regexp.MustCompile(`^attribute_not_exists\(([#\w]+)\)$`)
)

func (a action) name(token string) string {
	token = strings.TrimSpace(token)
	if n, ok := a.ExpressionAttributeNames[token]; ok {
		return n
	}
	return token
}

// updates is what an update writes. An attribute that is computed, removed or added
// to is there without a value.
func (a action) updates() (item, error) {
	if a.AttributeUpdates != nil || a.Expected != nil {
		return nil, errLegacy
	}
	at := clauses.FindAllStringSubmatchIndex(a.UpdateExpression, -1)
	if len(at) == 0 || at[0][0] != 0 {
		return nil, fmt.Errorf("%w: %q", errExpression, a.UpdateExpression)
	}
	out := item{}
	for n, m := range at {
		end := len(a.UpdateExpression)
		if n+1 < len(at) {
			end = at[n+1][0]
		}
		verb, rest := strings.ToUpper(a.UpdateExpression[m[2]:m[3]]), a.UpdateExpression[m[1]:end]
		for _, part := range split(rest, ",") {
			name, value, assigned := strings.Cut(strings.TrimSpace(part), "=")
			if assigned != (verb == "SET") {
				return nil, fmt.Errorf("%w: %q", errExpression, a.UpdateExpression)
			}
			if verb == "ADD" || verb == "DELETE" {
				name, _, _ = strings.Cut(name, " ")
			}
			v := attribute{}
			if value = strings.TrimSpace(value); operand.MatchString(value) {
				var ok bool
				if v, ok = a.ExpressionAttributeValues[value]; !ok {
					return nil, fmt.Errorf("%w: %s has no value", errExpression, value)
				}
			}
			out[a.name(name)] = v
		}
	}
	return out, nil
}

// requires is what a condition demands: which attributes have which values, and
// which must not be there. What a disjunction says is not demanded.
func (a action) requires() (equal item, absent []string) {
	equal = item{}
	for _, c := range split(a.ConditionExpression, " AND ") {
		c = strings.TrimSpace(c)
		if m := equality.FindStringSubmatch(c); m != nil {
			equal[a.name(m[1])] = a.ExpressionAttributeValues[m[2]]
		}
		if m := absence.FindStringSubmatch(c); m != nil {
			absent = append(absent, a.name(m[1]))
		}
	}
	return equal, absent
}

// split splits at a separator outside of parentheses. A disjunction outside of them
// is not split.
func split(s, sep string) []string {
	var out []string
	depth, from := 0, 0
	for i := range len(s) {
		switch {
		case s[i] == '(':
			depth++
		case s[i] == ')':
			depth--
		case depth == 0 && strings.HasPrefix(s[i:], " OR "):
			return []string{s}
		case depth == 0 && i >= from && strings.HasPrefix(s[i:], sep):
			out = append(out, s[from:i])
			from = i + len(sep)
		}
	}
	return append(out, s[from:])
}
