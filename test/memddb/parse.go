package memddb

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// parsed is an expression; one of the three is set.
type parsed struct {
	cond       condition
	update     *update
	projection []operand
	refs       []string // placeholders that it uses
}

// parser reads one expression, token by token.
type parser struct {
	tokens []string
	refs   []string
	err    error
}

var (
	token      = regexp.MustCompile(`^\s*([#:]\w+|[A-Za-z_]\w*|<=|>=|<>|[=<>(),+\-.\[\]]|[0-9]+)`)
	expression sync.Map // text → *parsed; the project has few
)

// parse reads an expression, each text once. what is the grammar: "condition",
// "update" or "projection".
func parse(what string, text *string) (*parsed, error) {
	if text == nil {
		return &parsed{}, nil
	}
	if p, ok := expression.Load(what + *text); ok {
		return p.(*parsed), nil //nolint:forcetypeassert // nothing else is stored
	}
	p := &parser{}
	for rest := *text; strings.TrimSpace(rest) != ""; {
		m := token.FindStringSubmatch(rest)
		if m == nil {
			return nil, invalid("Invalid expression: Syntax error; near: %q", rest)
		}
		p.tokens, rest = append(p.tokens, m[1]), rest[len(m[0]):]
	}
	out := &parsed{}
	switch what {
	case "condition":
		out.cond = p.or()
	case "update":
		out.update = p.update()
	case "projection":
		out.projection = p.paths()
	}
	if p.err == nil && len(p.tokens) > 0 {
		p.fail()
	}
	if p.err != nil {
		return nil, p.err
	}
	out.refs = p.refs
	expression.Store(what+*text, out)
	return out, nil
}

func (p *parser) fail() {
	if p.err == nil {
		p.err = invalid("Invalid expression: Syntax error; near: %q", strings.Join(p.tokens, " "))
	}
	p.tokens = nil
}

// next takes the next token; "" at the end.
func (p *parser) next() string {
	if len(p.tokens) == 0 {
		p.fail()
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

// is takes the next token if it is one of words, in capitals or not.
func (p *parser) is(words ...string) bool {
	if len(p.tokens) == 0 || !slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, p.tokens[0]) }) {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

func (p *parser) expect(t string) {
	if !p.is(t) {
		p.fail()
	}
}

func (p *parser) or() condition {
	c := p.and()
	for p.is("OR") {
		c = either{c, p.and()}
	}
	return c
}

func (p *parser) and() condition {
	c := p.not()
	for p.is("AND") {
		c = both{c, p.not()}
	}
	return c
}

func (p *parser) not() condition {
	if p.is("NOT") {
		return negation{p.not()}
	}
	return p.primary()
}

var comparators = []string{"=", "<>", "<", "<=", ">", ">="}

func (p *parser) primary() condition {
	if p.is("(") {
		c := p.or()
		p.expect(")")
		return c
	}
	if len(p.tokens) > 1 && p.tokens[1] == "(" {
		return p.function()
	}
	a := p.operand()
	switch op := p.next(); {
	case slices.Contains(comparators, op):
		return comparison{op, a, p.operand()}
	case strings.EqualFold(op, "BETWEEN"), strings.EqualFold(op, "IN"):
		unknown("%s in an expression", op)
	default:
		p.fail()
	}
	return nil
}

func (p *parser) function() condition {
	name := p.next()
	p.expect("(")
	a := p.path()
	var c condition
	switch name {
	case "attribute_exists":
		c = exists{a}
	case "attribute_not_exists":
		c = negation{exists{a}}
	case "begins_with":
		p.expect(",")
		c = begins{a, p.operand()}
	default:
		unknown("%s in an expression", name)
	}
	p.expect(")")
	return c
}

// operand is an attribute or a value.
func (p *parser) operand() operand {
	if len(p.tokens) > 0 && strings.HasPrefix(p.tokens[0], ":") {
		return p.placeholder()
	}
	return p.path()
}

func (p *parser) placeholder() operand {
	t := p.next()
	p.refs = append(p.refs, t)
	return operand(t)
}

// path is an attribute: #name or as it stands.
func (p *parser) path() operand {
	t := p.next()
	if len(p.tokens) > 0 && (p.tokens[0] == "." || p.tokens[0] == "[") {
		unknown("a document path: %s%s", t, p.tokens[0])
	}
	switch {
	case strings.HasPrefix(t, "#"):
		p.refs = append(p.refs, t)
	case t == "" || !strings.ContainsAny(t[:1], "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"):
		p.fail()
	}
	return operand(t)
}

func (p *parser) paths() []operand {
	out := []operand{p.path()}
	for p.is(",") {
		out = append(out, p.path())
	}
	return out
}

// update reads the clauses SET, REMOVE and ADD, each once at most.
func (p *parser) update() *update {
	u := &update{}
	seen := map[string]bool{}
	for len(p.tokens) > 0 {
		clause := strings.ToUpper(p.next())
		if seen[clause] {
			p.fail()
		}
		seen[clause] = true
		switch clause {
		case "SET":
			u.set = append(u.set, p.assignment())
			for p.is(",") {
				u.set = append(u.set, p.assignment())
			}
		case "REMOVE":
			u.remove = p.paths()
		case "ADD":
			u.add = append(u.add, assignment{path: p.path(), a: term{operand: p.operand()}})
			for p.is(",") {
				u.add = append(u.add, assignment{path: p.path(), a: term{operand: p.operand()}})
			}
		case "DELETE":
			unknown("DELETE in an update")
		default:
			p.fail()
		}
	}
	if len(seen) == 0 {
		p.fail()
	}
	return u
}

func (p *parser) assignment() assignment {
	out := assignment{path: p.path()}
	p.expect("=")
	out.a = p.term()
	switch {
	case p.is("+"):
		b := p.term()
		out.b = &b
	case p.is("-"):
		b := p.term()
		out.b, out.minus = &b, true
	}
	return out
}

// term is an operand, or if_not_exists(path, operand).
func (p *parser) term() term {
	if len(p.tokens) > 1 && p.tokens[1] == "(" {
		if name := p.next(); name != "if_not_exists" {
			unknown("%s in an update", name)
		}
		p.expect("(")
		out := term{unless: p.path()}
		p.expect(",")
		out.operand = p.operand()
		p.expect(")")
		return out
	}
	return term{operand: p.operand()}
}
