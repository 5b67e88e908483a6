package layers

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// built are folders that make and the tools write, so that they may be absent.
var built = []string{"bin", "build", "dist", "node_modules"}

// repository lists the files of the repository by their paths, without those that are built.
func repository(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == root:
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".ci" && d.Name() != ".github" || slices.Contains(built, d.Name())):
			return fs.SkipDir
		case d.Type().IsRegular():
			name, err = filepath.Rel(root, name)
			files = append(files, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil || len(files) < 500 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	return files
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// folders lists the folders that the files are in, and their parents.
func folders(files []string) map[string]bool {
	dirs := map[string]bool{}
	for _, f := range files {
		for d := path.Dir(f); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	return dirs
}

// section returns what stands under a heading of a document, up to the next one of its level.
func section(t *testing.T, doc, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(read(t, doc), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %q", doc, heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	text, _, _ = strings.Cut(text, "\n"+level+" ")
	return text
}

// TestMap: the map in CONTRIBUTING.md has a row for each folder at the top and for each
// package, and names nothing that is not there. A row that ends in * is for all folders
// of a folder.
func TestMap(t *testing.T) {
	files := repository(t)
	want := map[string]bool{}
	for _, f := range files {
		if top, _, ok := strings.Cut(f, "/"); ok {
			want[top] = true
		}
		if strings.HasSuffix(f, ".go") && !strings.Contains(f, "testdata/") {
			want[path.Dir(f)] = true
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]{10,} \\|$").FindAllStringSubmatch(section(t, "CONTRIBUTING.md", "## The house"), -1)
	for _, row := range rows {
		name := strings.TrimSuffix(row[1], "/")
		parent, all := strings.CutSuffix(name, "/*")
		found := want[name]
		delete(want, name)
		if all {
			maps.DeleteFunc(want, func(dir string, _ bool) bool {
				found = found || path.Dir(dir) == parent
				return path.Dir(dir) == parent
			})
		}
		if !found {
			t.Errorf("the map has a row for %s, which is neither a package nor a folder at the top, or has another row", name)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(want)) {
		t.Errorf("the map has no row for %s", dir)
	}
}

var (
	quoted   = regexp.MustCompile("`([^`\n]+)`")
	pathLike = regexp.MustCompile(`^(\./)?[A-Za-z0-9_.*-]+(/[A-Za-z0-9_.*{},-]+)*/?$`)
	packages = regexp.MustCompile(`(?:^|[\s(])(\./[a-z][A-Za-z0-9_/-]*)`)
	linked   = regexp.MustCompile(`\]\(([^)\s#]+)[^)]*\)`)
)

// elsewhere are paths in documents that are not of this repository.
var elsewhere = []string{
	"text/", "crypto/cipher", // of Go
}

// TestPaths: a path in a document exists: what is quoted and looks like a folder or a Go
// file of this repository, a package that go test is given, and what a link leads to.
func TestPaths(t *testing.T) {
	files := repository(t)
	dirs := folders(files)
	known := slices.AppendSeq(slices.Clone(files), maps.Keys(dirs))
	exists := func(doc, p string) bool {
		p = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(p, "./"), "/..."), "/")
		for _, at := range []string{p, path.Join(path.Dir(doc), p)} {
			if dirs[at] || slices.Contains(files, at) || at == "." {
				return true
			}
		}
		return slices.ContainsFunc(known, func(f string) bool {
			ok, err := path.Match(p, f)
			return ok || err != nil || !strings.Contains(p, "/") && path.Base(f) == p
		})
	}
	looks := func(token string) bool {
		top, _, deep := strings.Cut(strings.TrimPrefix(token, "./"), "/")
		switch {
		case !pathLike.MatchString(token), slices.Contains(built, top), strings.HasPrefix(top, "."):
			return false
		case strings.HasSuffix(token, ".go"), strings.HasSuffix(token, "/"):
			return true
		}
		return deep && dirs[top]
	}
	checked := 0
	for _, doc := range files {
		if !strings.HasSuffix(doc, ".md") {
			continue
		}
		text := read(t, doc)
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			for _, token := range strings.Fields(m[1]) {
				if !looks(token) || slices.Contains(elsewhere, token) {
					continue
				}
				for _, p := range braces(token) {
					if checked++; !exists(doc, p) {
						t.Errorf("%s: there is no %s", doc, p)
					}
				}
			}
		}
		for _, m := range packages.FindAllStringSubmatch(text, -1) {
			if checked++; !exists(doc, m[1]) {
				t.Errorf("%s: there is no package %s", doc, m[1])
			}
		}
		for _, m := range linked.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], ":") {
				continue
			}
			if at := path.Join(path.Dir(doc), m[1]); !slices.Contains(files, at) && !dirs[at] && at != "." {
				t.Errorf("%s links to %s, which is not there", doc, m[1])
			}
			checked++
		}
	}
	if checked < 200 {
		t.Errorf("only %d paths", checked)
	}
}

// braces expands the first {a,b} of a path.
func braces(p string) []string {
	before, rest, ok := strings.Cut(p, "{")
	list, after, closed := strings.Cut(rest, "}")
	if !ok || !closed {
		return []string{p}
	}
	var out []string
	for one := range strings.SplitSeq(list, ",") {
		out = append(out, before+one+after)
	}
	return out
}

// TestDocumentsAreListed: docs/README.md links to every document beside it.
func TestDocumentsAreListed(t *testing.T) {
	index := read(t, "docs/README.md")
	for _, f := range repository(t) {
		if name, ok := strings.CutPrefix(f, "docs/"); ok && name != "README.md" && !strings.Contains(name, "/") && !strings.Contains(index, "]("+name) {
			t.Errorf("docs/README.md does not name %s", name)
		}
	}
}

// TestGlossary: docs/glossary.md has every state of the state machine, every phase of a
// rotation, every state of a KEK, every kind of error and every type of audit record.
func TestGlossary(t *testing.T) {
	terms := map[string]bool{}
	for _, m := range quoted.FindAllStringSubmatch(read(t, "docs/glossary.md"), -1) {
		terms[m[1]] = true
	}
	for kind, names := range map[string][]string{
		"state of the state machine": machineStates(t),
		"phase of a rotation":        constants(t, "kek", "Phase"),
		"state of a KEK":             constants(t, "kek", "State"),
		"mode of a rotation":         constants(t, "kek", "Mode"),
		"kind of error":              constants(t, "rotation/journal", "Kind"),
		"type of audit record":       auditEvents(t),
	} {
		least := map[string]int{"state of the state machine": 45, "kind of error": 35, "type of audit record": 30, "phase of a rotation": 10}[kind]
		if len(names) < max(least, 2) {
			t.Errorf("only %d of kind %s found: %v", len(names), kind, names)
		}
		for _, name := range names {
			if !terms[name] {
				t.Errorf("docs/glossary.md has no `%s`, a %s", name, kind)
			}
		}
	}
}

// TestReplayKnowsEveryRecord: audit/replay has an action for every type of audit record, or the
// chain of a sound deployment would not be of the model.
func TestReplayKnowsEveryRecord(t *testing.T) {
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`"([a-z_]+)":\s+\{`).FindAllStringSubmatch(read(t, "audit/replay/actions.go"), -1) {
		known[m[1]] = true
	}
	for _, name := range auditEvents(t) {
		if !known[name] {
			t.Errorf("audit/replay has no action of `%s`", name)
		}
	}
}

// machineStates lists the states of statemachine.asl.json, those inside of a Map too.
func machineStates(t *testing.T) []string {
	t.Helper()
	var names []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if states, ok := v["States"].(map[string]any); ok {
				names = slices.AppendSeq(names, maps.Keys(states))
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	var definition any
	if err := json.Unmarshal([]byte(read(t, "statemachine.asl.json")), &definition); err != nil {
		t.Fatal(err)
	}
	walk(definition)
	return names
}

// sources parses the files of a package that are no tests.
func sources(t *testing.T, dir string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", dir, err)
	}
	var out []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// constants lists the values of the string constants of a type.
func constants(t *testing.T, dir, typ string) []string {
	t.Helper()
	var out []string
	for _, f := range sources(t, dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); ok && id.Name == typ {
				for _, v := range spec.Values {
					if s, ok := literal(v); ok {
						out = append(out, s)
					}
				}
			}
			return true
		})
	}
	return out
}

// auditEvents lists the types of audit records that the product appends. They are constants
// called Event…, the event of a kek.Change, and the type of an audit.Event.
func auditEvents(t *testing.T) []string {
	t.Helper()
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)+$`)
	out := map[string]bool{}
	note := func(e ast.Expr) {
		if s, ok := literal(e); ok && name.MatchString(s) {
			out[s] = true
		}
	}
	arguments := func(args []ast.Expr) {
		for _, a := range args {
			note(a)
		}
	}
	for _, dir := range []string{"kek", "rotation", "rotation/journal", "rotation/gates", "rotation/anchor", "rotation/doctor", "audit", "cmd/matter"} {
		for _, f := range sources(t, dir) {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					for i, id := range n.Names {
						if strings.HasPrefix(id.Name, "Event") && i < len(n.Values) {
							note(n.Values[i])
						}
					}
				case *ast.KeyValueExpr:
					if id, ok := n.Key.(*ast.Ident); ok && (id.Name == "Event" || id.Name == "Type" || strings.HasPrefix(id.Name, "Approval")) {
						note(n.Value)
					}
				case *ast.AssignStmt:
					if s, ok := n.Lhs[0].(*ast.SelectorExpr); ok && s.Sel.Name == "Event" {
						arguments(n.Rhs)
					}
				case *ast.CallExpr:
					switch called := n.Fun.(type) {
					case *ast.SelectorExpr:
						if called.Sel.Name == "change" || called.Sel.Name == "withRotation" {
							arguments(n.Args)
						}
					case *ast.Ident:
						if called.Name == "event" {
							arguments(n.Args)
						}
					}
				}
				return true
			})
		}
	}
	return slices.Sorted(maps.Keys(out))
}
