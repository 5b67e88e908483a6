// Package deploy generates template.yaml, the stack, from three sources:
//
//   - template.yaml.tmpl has the resources that the stack has once, and one pattern for the
//     resources that it has for each function.
//   - functions/<name>/function.yaml is the entry of one function: its timeout, permissions and
//     schedule.
//   - Package flow says which functions the state machine calls.
//
// YAML of an entry is copied into the template as text, with its comments, so that the reason
// for a permission stays beside it.
package deploy

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/flow"
)

//go:generate go run ./generate .. ../template.yaml

// Source is the template into which the entries are put.
const Source = "deploy/template.yaml.tmpl"

// A Function is an entry: what one function takes of the stack.
type Function struct {
	Name        string    `yaml:"Name"`        // of its resources, as package flow calls it: the folder is the same in lower case
	Description string    `yaml:"Description"` // what it does, for the console
	Timeout     int       `yaml:"Timeout"`     // seconds
	MemorySize  int       `yaml:"MemorySize"`  // MiB; 0: as Globals says
	AfterSwitch bool      `yaml:"AfterSwitch"` // its errors and throttles are in the alarms of the functions after the switch
	Policies    []string  `yaml:"Policies"`    // managed policies of the template that are attached to its role
	Statements  verbatim  `yaml:"Statements"`  // statements of its own role's policy
	Properties  verbatim  `yaml:"Properties"`  // more properties of the function; empty for most
	Schedule    *Schedule `yaml:"Schedule"`
	Folder      string    `yaml:"-"`
}

// A Schedule calls a function by the clock.
type Schedule struct {
	Name       string   `yaml:"Name"`
	Sid        string   `yaml:"Sid"`        // of the permission to call the function
	Properties verbatim `yaml:"Properties"` // of the schedule: its expression and time zone
	Target     verbatim `yaml:"Target"`     // what it sends, and how often it retries
	Comment    string   `yaml:"-"`
}

// verbatim is YAML that is copied into the template as text, with its comments.
type verbatim string

// UnmarshalYAML decodes nothing: [cutBlock] cuts the text out of the file, because a decoded
// node has lost its layout. It refuses YAML that is not below its key, which cutBlock cannot
// cut out.
func (*verbatim) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode || n.Style&yaml.FlowStyle != 0 {
		return fmt.Errorf("line %d: write it below its key", n.Line)
	}
	return nil
}

// Template returns template.yaml for the repository at root. It fails if an entry names a
// policy that the template does not have: the function would lack a permission silently.
func Template(root fs.FS) ([]byte, error) {
	functions, err := readFunctions(root)
	if err != nil {
		return nil, err
	}
	text, err := fs.ReadFile(root, Source)
	if err != nil {
		return nil, err
	}
	unused := map[string]string{} // policies that an entry names and the template has not attached yet, by name
	for _, f := range functions {
		for _, p := range f.Policies {
			unused[p] = f.Folder
		}
	}
	attached := func(policy string, f Function) bool {
		delete(unused, policy)
		return slices.Contains(f.Policies, policy)
	}
	t, err := template.New(path.Base(Source)).Delims("<<", ">>").Funcs(template.FuncMap{
		"attached": attached,
		"indent":   indentBlock,
		"lower":    strings.ToLower,
		"roles": func(policy string) string {
			var refs []string
			for _, f := range functions {
				if attached(policy, f) {
					refs = append(refs, "!Ref "+f.Name+"Role")
				}
			}
			return strings.Join(refs, ", ")
		},
	}).Parse(string(text))
	if err != nil {
		return nil, err
	}
	calls := flow.Functions()
	var b bytes.Buffer
	if err := t.Execute(&b, map[string][]Function{
		"Functions": functions,
		"Called":    slices.DeleteFunc(slices.Clone(functions), func(f Function) bool { return !slices.Contains(calls, f.Name) }),
	}); err != nil {
		return nil, err
	}
	if left := slices.Sorted(maps.Keys(unused)); len(left) > 0 {
		return nil, fmt.Errorf("functions/%s: %s has no policy %q that an entry may name", unused[left[0]], Source, left[0])
	}
	return b.Bytes(), nil
}

// readFunctions returns an entry for each folder of functions: first those that the state
// machine calls, in its order, then the others.
func readFunctions(root fs.FS) ([]Function, error) {
	mains, err := fs.Glob(root, "functions/*/main.go")
	if err != nil {
		return nil, err
	}
	calls := flow.Functions()
	functions := make([]Function, len(calls))
	for _, m := range mains {
		f, err := readFunction(root, path.Dir(m))
		if err != nil {
			return nil, err
		}
		if i := slices.Index(calls, f.Name); i >= 0 {
			functions[i] = f
		} else {
			functions = append(functions, f)
		}
	}
	for i, name := range calls {
		if functions[i].Name == "" {
			return nil, fmt.Errorf("the state machine calls %s, which is not in functions", name)
		}
	}
	return functions, nil
}

// readFunction reads the entry of one function strictly: an unknown field is an error.
func readFunction(root fs.FS, folder string) (Function, error) {
	file := folder + "/function.yaml"
	b, err := fs.ReadFile(root, file)
	if err != nil {
		return Function{}, err
	}
	f := Function{Folder: path.Base(folder)}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		return Function{}, fmt.Errorf("%s: %w", file, err)
	}
	if strings.ToLower(f.Name) != f.Folder || f.Description == "" || f.Timeout == 0 {
		return Function{}, fmt.Errorf("%s: needs a description, a timeout, and a name as the folder's", file)
	}
	_, f.Statements = cutBlock(string(b), "Statements")
	_, f.Properties = cutBlock(string(b), "Properties")
	if f.Schedule != nil {
		comment, schedule := cutBlock(string(b), "Schedule")
		f.Schedule.Comment = comment
		_, f.Schedule.Properties = cutBlock(string(schedule), "Properties")
		_, f.Schedule.Target = cutBlock(string(schedule), "Target")
	}
	return f, nil
}

// cutBlock returns the text below a key of the outermost level, moved to that level, and the
// comment above the key. Both are "" if there is no such key.
func cutBlock(text, key string) (comment string, below verbatim) {
	lines := strings.Split(text, "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+":") })
	if at < 0 {
		return "", ""
	}
	top, end := at, at+1
	for top > 0 && strings.HasPrefix(lines[top-1], "#") {
		top--
	}
	for i := end; i < len(lines) && (lines[i] == "" || strings.ContainsAny(lines[i][:1], " #")); i++ {
		if strings.HasPrefix(lines[i], " ") {
			end = i + 1
		}
	}
	for i := at + 1; i < end; i++ {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines[top:at], "\n"), verbatim(strings.Join(lines[at+1:end], "\n"))
}

// indentBlock moves each line that is not empty to the right.
func indentBlock(columns int, text any) string {
	return regexp.MustCompile(`(?m)^.`).ReplaceAllString(fmt.Sprint(text), strings.Repeat(" ", columns)+"$0")
}
