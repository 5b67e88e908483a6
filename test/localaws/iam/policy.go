// Package iam evaluates IAM policies as AWS documents it, for the elements,
// operators and condition keys that a stack of this project uses. What it does not
// know it refuses to load: a policy that is half understood proves nothing.
package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Policy is a policy document.
type Policy struct {
	Name       string // for messages
	Statements []Statement
}

// Statement is one statement of a policy.
type Statement struct {
	SID                   string
	Deny                  bool
	Actions, NotActions   []string
	Resources             []string
	NotResources          []string
	Conditions            []condition
	principals            []string // AWS principals that it is for, of a resource's policy
	principal, everywhere bool     // has a Principal; it is "*"
}

// Access is one action on one resource, with what conditions may ask about it.
type Access struct {
	Action   string              // service:Operation
	Resource string              // ARN, or "*" if the action has none
	Context  map[string][]string // by condition key, lower case
}

// list is a JSON string, or a list of strings.
type list []string

// UnmarshalJSON implements [json.Unmarshaler].
func (l *list) UnmarshalJSON(b []byte) error {
	var one any
	if err := json.Unmarshal(b, &one); err != nil {
		return err
	}
	many, ok := one.([]any)
	if !ok {
		many = []any{one}
	}
	for _, v := range many {
		switch v := v.(type) {
		case string, bool, float64:
			*l = append(*l, fmt.Sprint(v))
		default:
			return fmt.Errorf("%s is not a string or a list of strings", b)
		}
	}
	return nil
}

// document is a policy as JSON has it.
type document struct {
	Version   string
	ID        string `json:"Id"`
	Statement json.RawMessage
}

type statement struct {
	SID                   string `json:"Sid"`
	Effect                string
	Principal             any
	NotPrincipal          any
	Action, NotAction     list
	Resource, NotResource list
	Condition             map[string]map[string]list
}

// Parse reads a policy document.
func Parse(name string, b []byte) (Policy, error) {
	p := Policy{Name: name}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return p, fmt.Errorf("policy %s: %w", name, err)
	}
	var many []statement
	if err := strict(d.Statement, &many); err != nil {
		var one statement
		if json.Unmarshal(d.Statement, &[]any{}) == nil {
			return p, fmt.Errorf("policy %s: %w", name, err)
		}
		if err := strict(d.Statement, &one); err != nil {
			return p, fmt.Errorf("policy %s: %w", name, err)
		}
		many = []statement{one}
	}
	for _, s := range many {
		parsed, err := s.parse()
		if err != nil {
			return p, fmt.Errorf("policy %s, statement %q: %w", name, s.SID, err)
		}
		p.Statements = append(p.Statements, parsed)
	}
	return p, nil
}

// strict decodes without unknown elements.
func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func (s statement) parse() (Statement, error) {
	out := Statement{
		SID: s.SID, Deny: s.Effect == "Deny", Actions: s.Action, NotActions: s.NotAction,
		Resources: s.Resource, NotResources: s.NotResource,
		principal: s.Principal != nil, everywhere: s.Principal == "*",
	}
	if who, ok := s.Principal.(map[string]any); ok {
		switch aws := who["AWS"].(type) {
		case string:
			out.principals = []string{aws}
		case []any:
			for _, one := range aws {
				out.principals = append(out.principals, fmt.Sprint(one))
			}
		}
	}
	switch {
	case s.Effect != "Allow" && s.Effect != "Deny":
		return out, fmt.Errorf("effect %q", s.Effect)
	case (len(s.Action) == 0) == (len(s.NotAction) == 0):
		return out, errors.New("needs one of Action and NotAction")
	case (len(s.Resource) == 0) == (len(s.NotResource) == 0):
		return out, errors.New("needs one of Resource and NotResource")
	case s.NotPrincipal != nil:
		return out, errors.New("NotPrincipal is not supported here")
	}
	for _, values := range [][]string{s.Resource, s.NotResource} {
		if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, "${") }) {
			return out, errors.New("policy variables are not supported here")
		}
	}
	for _, operator := range sortedKeys(s.Condition) {
		for _, key := range sortedKeys(s.Condition[operator]) {
			c, err := parseCondition(operator, key, s.Condition[operator][key])
			if err != nil {
				return out, err
			}
			out.Conditions = append(out.Conditions, c)
		}
	}
	return out, nil
}

// matches reports whether the statement is about an access.
func (s Statement) matches(a Access) bool {
	if len(s.Actions) > 0 && !anyGlob(s.Actions, a.Action, true) || len(s.NotActions) > 0 && anyGlob(s.NotActions, a.Action, true) {
		return false
	}
	if len(s.Resources) > 0 && !anyGlob(s.Resources, a.Resource, false) || len(s.NotResources) > 0 && anyGlob(s.NotResources, a.Resource, false) {
		return false
	}
	for _, c := range s.Conditions {
		if !c.holds(a.Context) {
			return false
		}
	}
	return true
}

// Decision is what a set of policies says about an access.
type Decision int

// The decisions.
const (
	Silent  Decision = iota // no statement is about it: an implicit denial
	Allowed                 // some statement allows it and none denies it
	Denied                  // some statement denies it
)

// Decide evaluates policies of one kind, and names the statement that decided.
func Decide(policies []Policy, a Access) (d Decision, by string) {
	for _, p := range policies {
		for _, s := range p.Statements {
			switch {
			case !s.matches(a):
			case s.Deny:
				return Denied, p.Name + "/" + s.SID
			case d == Silent:
				d, by = Allowed, p.Name+"/"+s.SID
			}
		}
	}
	return d, by
}

// DenialsOnly returns the statements of a resource's policy that deny something to
// everybody. What such a policy allows to a principal of the same account, the
// principal's own policies must allow here too.
func DenialsOnly(p Policy) (Policy, error) {
	out := Policy{Name: p.Name}
	for _, s := range p.Statements {
		switch {
		case !s.Deny:
		case !s.principal || !s.everywhere:
			return out, fmt.Errorf("policy %s, statement %q: only Principal \"*\" is supported in a denial here", p.Name, s.SID)
		default:
			out.Statements = append(out.Statements, s)
		}
	}
	return out, nil
}

// OfAccount returns the statements of a KMS key's policy that are for every principal of
// an account. What they allow, the account's IAM policies may grant, and nothing else
// (KMS developer guide, "Default key policy"). Statements for single principals grant
// more on AWS: none is needed here.
func OfAccount(p Policy, account string) (Policy, error) {
	out := Policy{Name: p.Name}
	for _, s := range p.Statements {
		all := s.everywhere || slices.ContainsFunc(s.principals, func(who string) bool {
			return who == "*" || who == account || strings.HasPrefix(who, "arn:") && strings.HasSuffix(who, ":iam::"+account+":root")
		})
		switch {
		case all:
			out.Statements = append(out.Statements, s)
		case s.Deny && len(s.principals) > 0:
			return out, fmt.Errorf("policy %s, statement %q: a denial of some principals is not supported here", p.Name, s.SID)
		}
	}
	return out, nil
}

// anyGlob reports whether a value matches one of the patterns.
func anyGlob(patterns []string, value string, fold bool) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if fold {
			return glob(strings.ToLower(p), strings.ToLower(value))
		}
		return glob(p, value)
	})
}

// glob matches * and ?, both of any characters.
func glob(pattern, value string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := range len(value) + 1 {
				if glob(pattern[1:], value[i:]) {
					return true
				}
			}
			return false
		case value == "" || pattern[0] != '?' && pattern[0] != value[0]:
			return false
		}
		pattern, value = pattern[1:], value[1:]
	}
	return value == ""
}
