// Package layers holds the direction of the dependencies: kek ← audit, source, controltable, rowschema;
// kek, controltable, rowschema ← envelope; kek, audit, source ← rotation; source ← drivers; all ←
// adapters ← app ← functions, cmd.
package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/matter-ops/kms-rotation"

// deps lists what a package is built from, itself excluded.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/"+pkg).Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v", pkg, err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool { return p == module+"/"+pkg })
}

// TestDependencies: what each package may be built from, the standard library
// apart. An entry that ends in / allows everything below it.
func TestDependencies(t *testing.T) {
	ofAudit := slices.Clip([]string{"github.com/transparency-dev/merkle", "github.com/transparency-dev/merkle/", "golang.org/x/mod/"})
	for pkg, allowed := range map[string][]string{
		"kek":              nil,
		"audit":            ofAudit,
		"audit/replay":     append(ofAudit, module+"/audit"),
		"source":           {module + "/kek"},
		"rotation/journal": append(ofAudit, module+"/kek", module+"/audit", module+"/source"),
		"rotation/keyring": append(ofAudit, module+"/kek", module+"/audit", module+"/source", module+"/rotation/journal"),
		"rotation/gates":   append(ofAudit, module+"/kek", module+"/audit", module+"/source", module+"/rotation/journal"),
		"rotation/anchor":  append(ofAudit, module+"/kek", module+"/audit", module+"/source", module+"/rotation/journal"),
		"rotation/doctor": append(ofAudit, module+"/kek", module+"/audit", module+"/source", "golang.org/x/sync/",
			module+"/rotation/journal", module+"/rotation/keyring", module+"/rotation/anchor"),
		"internal/advice": append(ofAudit, module+"/kek", module+"/audit", module+"/source", module+"/rotation/journal"),
		"rotation": append(ofAudit, module+"/kek", module+"/audit", module+"/source", "golang.org/x/sync/",
			module+"/rotation/journal", module+"/rotation/keyring", module+"/rotation/gates", module+"/rotation/anchor", module+"/rotation/estimate"),
		"rotation/estimate": nil,
	} {
		for _, d := range deps(t, pkg) {
			std := !strings.Contains(strings.Split(d, "/")[0], ".")
			ok := std || slices.ContainsFunc(allowed, func(a string) bool {
				return d == a || strings.HasSuffix(a, "/") && strings.HasPrefix(d, a)
			})
			if !ok {
				t.Errorf("%s is built from %s", pkg, d)
			}
		}
	}
}

// TestForbidden: what applications import is built from nothing of the control plane. Of
// this module that leaves the vocabulary, package envelope itself, and the definitions that
// it shares with a rotation.
func TestForbidden(t *testing.T) {
	shared := []string{"kek", "envelope", "internal/attr", "internal/controltable", "internal/keyrecord", "internal/rowschema", "internal/strictjson"}
	for _, pkg := range []string{"envelope", "envelope/aead"} {
		for _, d := range deps(t, pkg) {
			part, ours := strings.CutPrefix(d, module+"/")
			if ours && !slices.Contains(shared, part) && !strings.HasPrefix(part, "envelope/") {
				t.Errorf("%s is built from %s: applications would import the control plane", pkg, d)
			}
		}
	}
}

// TestOneDoor: what proves the product is under test/, and nothing that ships is built from
// it. The workshop's own programs are, and tests.
func TestOneDoor(t *testing.T) {
	workshop := []string{"cmd/matter-local", "cmd/matter-acceptance"}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	product, apparatus := 0, 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module+"/")
		if strings.HasPrefix(pkg, "test/") || slices.Contains(workshop, pkg) {
			apparatus++
			continue
		}
		product++
		for _, d := range fields[1:] {
			if strings.HasPrefix(d, module+"/test/") {
				t.Errorf("%s is built from %s, which must not ship", pkg, d)
			}
		}
	}
	if product < 20 || apparatus < 20 {
		t.Errorf("%d packages of the product and %d of the workshop", product, apparatus)
	}
}

// TestOnlyAppWiresAdapters: nothing that ships but internal/app is built on the
// adapters directly.
func TestOnlyAppWiresAdapters(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/functions/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		for _, imported := range fields[1:] {
			switch strings.TrimPrefix(imported, module+"/") {
			case "internal/app", "internal/lambdastep", "rotation", "rotation/anchor", "rotation/gates":
			default:
				t.Errorf("%s imports %s", fields[0], imported)
			}
		}
	}
}

// TestNamedTests: a test that a document names is there. A name that ends in …, or that
// go test -run gets, is the beginning of one.
func TestNamedTests(t *testing.T) {
	named, declared := regexp.MustCompile(`(-run )?Test[A-Z]\w+…?`), regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	var have []string
	docs := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return fs.SkipDir
		case strings.HasSuffix(path, "_test.go"), strings.HasSuffix(path, ".md"):
		default:
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".md") {
			docs[path] = named.FindAllString(string(b), -1)
			return nil
		}
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			have = append(have, m[1])
		}
		return nil
	})
	if err != nil || len(have) < 500 || len(docs) < 10 {
		t.Fatalf("%d tests and %d documents found: %v", len(have), len(docs), err)
	}
	for path, names := range docs {
		for _, name := range names {
			name, open := strings.CutPrefix(name, "-run ")
			beginning, cut := strings.CutSuffix(name, "…")
			open = open || cut
			if !slices.ContainsFunc(have, func(h string) bool { return h == name || open && strings.HasPrefix(h, beginning) }) {
				t.Errorf("%s names %s, which is not a test", path, name)
			}
		}
	}
}

// TestLedger: every fact about AWS that docs/aws.md lists says where AWS states it, where it
// is relied on, and how it is checked: by a test, or that only an account can tell.
func TestLedger(t *testing.T) {
	b, err := os.ReadFile("../../docs/aws.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for i, line := range strings.Split(string(b), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| fact ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 4 {
			t.Errorf("line %d has %d cells: %s", i+1, len(cells), line)
			continue
		}
		for j, c := range cells {
			if len(strings.TrimSpace(c)) < 3 {
				t.Errorf("line %d: cell %d is empty", i+1, j+1)
			}
		}
		if how := cells[3]; !strings.Contains(how, "Test") && !strings.Contains(how, "account") {
			t.Errorf("line %d is checked by nothing that has a name: %s", i+1, how)
		}
	}
	if rows < 40 {
		t.Errorf("only %d facts", rows)
	}
}

// TestOnlyAppRegistersDrivers: of what ships, internal/app alone knows the drivers of
// sources. Whatever else asks for a kind makes a new kind more than one registration.
func TestOnlyAppRegistersDrivers(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	registered := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module+"/")
		for _, imported := range fields[1:] {
			switch {
			case !strings.HasPrefix(imported, module+"/source/"), strings.HasPrefix(pkg, "test/"), pkg == "cmd/matter-local", pkg == "cmd/matter-acceptance":
			case pkg == "internal/app":
				registered++
			default:
				t.Errorf("%s imports %s", pkg, imported)
			}
		}
	}
	if registered < 2 {
		t.Errorf("internal/app registers %d drivers", registered)
	}
}

// edgeText is text that belongs to an edge: a command, an environment variable, a file or a
// parameter of the stack.
var edgeText = regexp.MustCompile(`\bmatter ops\b|\bMATTER_|\baws [a-z0-9]+ [a-z]+-|\btemplate\.yaml\b|\bstatemachine\.asl\.json\b|stack's (parameter|output)|--confirm\b`)

// TestStepsNameNoCommands: no text in the steps names a command, an environment variable
// or a part of the stack. A step says what to do, and package advice how.
func TestStepsNameNoCommands(t *testing.T) {
	for _, file := range repository(t) {
		if !strings.HasPrefix(file, "rotation/") || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && edgeText.MatchString(lit.Value) {
				t.Errorf("%s: %s", file, lit.Value)
			}
			return true
		})
	}
}
