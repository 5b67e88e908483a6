package memddb

import (
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// params are what the placeholders of a request's expressions stand for.
type params struct {
	names  map[string]string
	values Item
}

// newParams checks that the expressions of a request and what it defines for them
// fit together: everything that is used is defined, everything defined is used.
func newParams(names map[string]string, values Item, exprs ...*parsed) (params, error) {
	var p params
	for _, e := range exprs {
		for _, r := range e.refs {
			_, name := names[r]
			_, value := values[r]
			if !name && !value {
				return p, invalid("Invalid expression: An expression attribute used in it is not defined; attribute: %s", r)
			}
		}
	}
	if names != nil && len(names) == 0 {
		return p, invalid("ExpressionAttributeNames must not be empty")
	}
	if values != nil && len(values) == 0 {
		return p, invalid("ExpressionAttributeValues must not be empty")
	}
	for k := range names {
		if !used(k, exprs) {
			return p, invalid("Value provided in ExpressionAttributeNames unused in expressions: keys: {%s}", k)
		}
	}
	for k := range values {
		if !used(k, exprs) {
			return p, invalid("Value provided in ExpressionAttributeValues unused in expressions: keys: {%s}", k)
		}
	}
	if values == nil {
		return params{names: names}, nil
	}
	checked, err := checkedItem(values)
	return params{names, checked}, err
}

func used(ref string, exprs []*parsed) bool {
	for _, e := range exprs {
		if slices.Contains(e.refs, ref) {
			return true
		}
	}
	return false
}

// operand is a token: ":value", "#name" or a name as it stands.
type operand string

// attribute is the name of the attribute that a path means.
func (o operand) attribute(p params) string {
	if strings.HasPrefix(string(o), "#") {
		return p.names[string(o)]
	}
	return string(o)
}

// in is what the operand is in an item; nil if that lacks it.
func (o operand) in(i Item, p params) types.AttributeValue {
	if strings.HasPrefix(string(o), ":") {
		return p.values[string(o)]
	}
	return i[o.attribute(p)]
}

// condition is the tree of a condition.
type condition interface{ holds(i Item, p params) bool }

type (
	either     struct{ a, b condition }
	both       struct{ a, b condition }
	negation   struct{ c condition }
	exists     struct{ path operand }
	begins     struct{ path, prefix operand }
	comparison struct {
		op   string
		a, b operand
	}
)

func (c either) holds(i Item, p params) bool   { return c.a.holds(i, p) || c.b.holds(i, p) }
func (c both) holds(i Item, p params) bool     { return c.a.holds(i, p) && c.b.holds(i, p) }
func (c negation) holds(i Item, p params) bool { return !c.c.holds(i, p) }
func (c exists) holds(i Item, p params) bool   { return c.path.in(i, p) != nil }
func (c begins) holds(i Item, p params) bool {
	return hasPrefix(c.path.in(i, p), c.prefix.in(i, p))
}

// holds: an attribute that is absent equals nothing, and has no order.
func (c comparison) holds(i Item, p params) bool {
	a, b := c.a.in(i, p), c.b.in(i, p)
	switch c.op {
	case "=":
		return a != nil && b != nil && equal(a, b)
	case "<>":
		return a == nil || b == nil || !equal(a, b)
	}
	n, ok := order(a, b)
	switch c.op {
	case "<":
		return ok && n < 0
	case "<=":
		return ok && n <= 0
	case ">":
		return ok && n > 0
	default: // ">="
		return ok && n >= 0
	}
}

// holds reports whether an expression's condition, if it has one, holds of what is
// stored: nil if nothing is.
func (e *parsed) holds(i Item, p params) bool { return e.cond == nil || e.cond.holds(i, p) }

// project returns a copy of an item, of the attributes asked for.
func (e *parsed) project(i Item, p params) Item {
	if e.projection == nil || i == nil {
		return cloneItem(i)
	}
	out := Item{}
	for _, path := range e.projection {
		if v := path.in(i, p); v != nil {
			out[path.attribute(p)] = clone(v)
		}
	}
	return out
}

// update is the tree of an update.
type update struct {
	set, add []assignment
	remove   []operand
}

// assignment is path = a, a + b or a - b.
type assignment struct {
	path  operand
	a     term
	b     *term
	minus bool
}

// term is an operand, or if_not_exists(unless, operand).
type term struct {
	unless, operand operand
}

func (t term) in(i Item, p params) (types.AttributeValue, error) {
	if t.unless != "" {
		if v := t.unless.in(i, p); v != nil {
			return v, nil
		}
	}
	v := t.operand.in(i, p)
	if v == nil {
		return nil, invalid("The provided expression refers to an attribute that does not exist in the item")
	}
	return v, nil
}

// paths checks that no attribute is changed twice, and none of the key.
func (u *update) paths(t *table, p params) error {
	seen := map[string]bool{}
	all := slices.Clone(u.remove)
	for _, a := range slices.Concat(u.set, u.add) {
		all = append(all, a.path)
	}
	for _, path := range all {
		name := path.attribute(p)
		if seen[name] {
			return invalid("Invalid UpdateExpression: Two document paths overlap with each other: %s", name)
		}
		seen[name] = true
		if slices.ContainsFunc(t.keys, func(k keyPart) bool { return k.name == name }) {
			return invalid("One or more parameter values were invalid: Cannot update attribute %s. This attribute is part of the key", name)
		}
	}
	return nil
}

// apply returns what an update makes of an item; every right side is of the item as
// it was.
func (u *update) apply(was Item, p params) (Item, error) {
	out := maps.Clone(was)
	for _, s := range u.set {
		v, err := s.value(was, p)
		if err != nil {
			return nil, err
		}
		out[s.path.attribute(p)] = v
	}
	for _, a := range u.add {
		v, err := a.added(was, p)
		if err != nil {
			return nil, err
		}
		out[a.path.attribute(p)] = v
	}
	for _, path := range u.remove {
		delete(out, path.attribute(p))
	}
	return out, nil
}

func (s assignment) value(was Item, p params) (types.AttributeValue, error) {
	a, err := s.a.in(was, p)
	if err != nil || s.b == nil {
		return a, err
	}
	b, err := s.b.in(was, p)
	if err != nil {
		return nil, err
	}
	return arithmetic(a, b, s.minus)
}

// added is a counter after an ADD; one that is absent counts from 0.
func (s assignment) added(was Item, p params) (types.AttributeValue, error) {
	n, ok := s.a.operand.in(was, p).(*types.AttributeValueMemberN)
	if !ok {
		unknown("ADD of what is no number")
		return nil, nil
	}
	old := s.path.in(was, p)
	if old == nil {
		return n, nil
	}
	return arithmetic(old, n, false)
}

func arithmetic(a, b types.AttributeValue, minus bool) (types.AttributeValue, error) {
	x, ok := a.(*types.AttributeValueMemberN)
	y, ok2 := b.(*types.AttributeValueMemberN)
	if !ok || !ok2 {
		return nil, invalid("An operand in the update expression has an incorrect data type")
	}
	s, err := sum(x.Value, y.Value, minus)
	return &types.AttributeValueMemberN{Value: s}, err
}
