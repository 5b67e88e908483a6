// Package templatetest holds what no linter knows of template.yaml: that each role
// may do what its function does and nothing else, that state outlives the stack,
// and that template, state machine, functions and events agree with one another.
package templatetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

type object = map[string]any

// template is template.yaml with the short forms of functions written out, as in
// {"Ref": "X"}.
type template struct {
	Parameters, Conditions, Globals, Resources, Outputs object

	node  *yaml.Node
	lines []string
}

func load(t *testing.T) *template {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "template.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tpl := &template{node: new(yaml.Node), lines: strings.Split(string(b), "\n")}
	if err := yaml.Unmarshal(b, tpl.node); err != nil {
		t.Fatal(err)
	}
	v, err := decode(tpl.node)
	if err != nil {
		t.Fatal(err)
	}
	o := at[object](t, v)
	tpl.Parameters, tpl.Conditions, tpl.Globals = at[object](t, o, "Parameters"), at[object](t, o, "Conditions"), at[object](t, o, "Globals")
	tpl.Resources, tpl.Outputs = at[object](t, o, "Resources"), at[object](t, o, "Outputs")
	return tpl
}

// decode turns a node into strings, numbers, booleans, lists and objects.
func decode(n *yaml.Node) (any, error) {
	if tag := n.Tag; strings.HasPrefix(tag, "!") && !strings.HasPrefix(tag, "!!") {
		plain := *n
		plain.Tag = map[yaml.Kind]string{yaml.ScalarNode: "!!str", yaml.MappingNode: "!!map", yaml.SequenceNode: "!!seq"}[n.Kind]
		v, err := decode(&plain)
		name := tag[1:]
		if name != "Ref" && name != "Condition" {
			name = "Fn::" + name
		}
		return object{name: v}, err
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return decode(n.Content[0])
	case yaml.MappingNode:
		out := object{}
		for i := 0; i < len(n.Content); i += 2 {
			name := n.Content[i].Value
			if _, ok := out[name]; ok {
				return nil, fmt.Errorf("line %d: %s is given twice", n.Content[i].Line, name)
			}
			v, err := decode(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[name] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := []any{}
		for _, c := range n.Content {
			v, err := decode(c)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case yaml.ScalarNode, yaml.AliasNode:
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return nil, fmt.Errorf("line %d: CloudFormation has no anchors", n.Line)
	}
	var v any
	err := n.Decode(&v)
	return v, err
}

// at returns what is at a path of objects, and fails the test if it is not there
// or of another type.
func at[T any](t *testing.T, v any, path ...string) T {
	t.Helper()
	for i, name := range path {
		o, _ := v.(object)
		next, ok := o[name]
		if !ok {
			t.Fatalf("template: nothing at %s", strings.Join(path[:i+1], "."))
		}
		v = next
	}
	out, ok := v.(T)
	if !ok {
		t.Fatalf("template: %s is %T, not %T", strings.Join(path, "."), v, out)
	}
	return out
}

// ofType lists the logical ids of a resource type, sorted.
func (tpl *template) ofType(kind string) []string {
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(tpl.Resources)) {
		if r, ok := tpl.Resources[id].(object); ok && r["Type"] == kind {
			ids = append(ids, id)
		}
	}
	return ids
}

// list returns v as a list: CloudFormation takes one value for a list of one.
func list(v any) []any {
	if l, ok := v.([]any); ok {
		return l
	}
	if v == nil {
		return nil
	}
	return []any{v}
}

func texts(v any) []string {
	var out []string
	for _, e := range list(v) {
		out = append(out, text(e))
	}
	return out
}

// text is a value as a string; {"Ref": "X"} is ${X}, as in Sub.
func text(v any) string {
	o, ok := v.(object)
	switch {
	case !ok:
		return fmt.Sprint(v)
	case o["Ref"] != nil:
		return fmt.Sprintf("${%v}", o["Ref"])
	case o["Fn::GetAtt"] != nil:
		return fmt.Sprintf("${%v}", o["Fn::GetAtt"])
	case o["Fn::Sub"] != nil:
		return fmt.Sprint(o["Fn::Sub"])
	}
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Sprint(o)
	}
	return string(b)
}

var reference = regexp.MustCompile(`\$\{([A-Za-z0-9:.]+)\}`)

// resolve evaluates a value as CloudFormation would with the given parameters, the
// others at their defaults. A resource is its logical id.
func (tpl *template) resolve(t *testing.T, v any, params map[string]string) string {
	t.Helper()
	if o, ok := v.(object); ok && o["Fn::If"] != nil {
		arms := list(o["Fn::If"])
		arm := arms[2]
		if tpl.holds(t, at[object](t, tpl.Conditions, text(arms[0])), params) {
			arm = arms[1]
		}
		return tpl.resolve(t, arm, params)
	}
	return reference.ReplaceAllStringFunc(text(v), func(m string) string {
		name := m[2 : len(m)-1]
		p, ok := tpl.Parameters[name].(object)
		switch given, set := params[name]; {
		case set:
			return given
		case ok:
			return fmt.Sprint(p["Default"])
		case name == "AWS::StackName":
			return "matter"
		}
		return name
	})
}

// holds evaluates a condition: Not, Equals, Join of one parameter.
func (tpl *template) holds(t *testing.T, c object, params map[string]string) bool {
	t.Helper()
	if not, ok := c["Fn::Not"]; ok {
		return !tpl.holds(t, at[object](t, list(not)[0]), params)
	}
	sides := list(at[any](t, c, "Fn::Equals"))
	for i, s := range sides {
		if o, ok := s.(object); ok && o["Fn::Join"] != nil {
			sides[i] = list(o["Fn::Join"])[1]
		}
	}
	return tpl.resolve(t, sides[0], params) == tpl.resolve(t, sides[1], params)
}
