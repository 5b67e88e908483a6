package mutation

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// helper is the source of what the places of mutants call.
//
//go:embed helper.go.txt
var helper string

// helperImports are what it imports.
var helperImports = []string{"cmp", "os", "slices", "strconv", "sync/atomic"}

// build is a test binary with all mutants of a package.
type build struct {
	pkg      *pkg
	mutants  []*Mutant
	rejected []*Mutant // those that do not compile
	overlay  string    // list of the files that have them
	tests    string    // directory of the tests
	binary   string
}

// buildMutants compiles the tests of the package in a directory under root, with
// all of its mutants. Its files are left in tmp.
func buildMutants(ctx context.Context, root, dir, tmp string) (*build, error) {
	p, err := load(ctx, root, dir)
	if err != nil {
		return nil, err
	}
	b := &build{pkg: p, mutants: p.generate()}
	texts, dropped, err := p.compilable(len(b.mutants))
	if err != nil {
		return nil, err
	}
	b.mutants = slices.DeleteFunc(b.mutants, func(m *Mutant) bool {
		if dropped[m.site] {
			b.rejected = append(b.rejected, m)
		}
		return dropped[m.site]
	})
	if b.overlay, err = writeOverlay(texts, tmp); err != nil {
		return nil, err
	}
	return b.withTests(ctx, root, dir)
}

// withTests compiles the tests of the package in a directory under root, which may be
// another one, with the same mutants.
func (b *build) withTests(ctx context.Context, root, dir string) (*build, error) {
	other := *b
	other.tests = filepath.Join(root, dir)
	tmp, err := os.MkdirTemp(filepath.Dir(b.overlay), "tests-")
	if err != nil {
		return nil, err
	}
	other.binary = filepath.Join(tmp, "mutants.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", b.overlay, "-o", other.binary, "./"+dir) //nolint:gosec // a package of this module
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the tests of ./%s do not build with their mutants: %w\n%s", dir, err, out)
	}
	return &other, nil
}

const maxRounds = 10 // of type checks; one fault can hide another

// compilable returns the files of the package with the mutants that compile, by
// their paths, and the sites that are left out.
func (p *pkg) compilable(mutants int) (texts map[string][]byte, dropped map[int]bool, err error) {
	dropped = map[int]bool{}
	for range maxRounds {
		texts = map[string][]byte{
			filepath.Join(p.dir, "mutation_helper.go"): fmt.Appendf(nil, "package %s\n\n%s%s\nconst mutationCount = %d\n", p.name, helper, p.helpers, mutants),
		}
		spans := map[string][]span{}
		for _, s := range p.files {
			texts[s.path], spans[s.path] = s.render(dropped)
		}
		faults, err := p.faultsIn(texts)
		if err != nil {
			return nil, nil, err
		}
		if len(faults) == 0 {
			return texts, dropped, nil
		}
		for _, f := range faults {
			at := f.Fset.Position(f.Pos)
			site, ok := innermost(spans[at.Filename], at.Offset)
			if !ok {
				return nil, nil, fmt.Errorf("the mutants of %s do not compile, and it is none of them: %w", p.path, f)
			}
			dropped[site] = true
		}
	}
	return nil, nil, fmt.Errorf("the mutants of %s still do not compile after %d rounds", p.path, maxRounds)
}

// faultsIn type-checks files of the package.
func (p *pkg) faultsIn(texts map[string][]byte) (faults []types.Error, err error) {
	fset := token.NewFileSet()
	var files []*ast.File
	for path, text := range texts {
		f, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("a mutated file does not parse: %w", err)
		}
		files = append(files, f)
	}
	checked := p.check(fset, nil, files)
	if checked == nil {
		return nil, nil
	}
	joined, ok := checked.(interface{ Unwrap() []error })
	if !ok {
		return nil, checked
	}
	for _, err := range joined.Unwrap() {
		var f types.Error
		if !errors.As(err, &f) {
			return nil, err
		}
		faults = append(faults, f)
	}
	return faults, nil
}

// writeOverlay writes what go's -overlay takes, and returns the path of its list.
func writeOverlay(texts map[string][]byte, tmp string) (string, error) {
	replace := map[string]string{}
	for path, text := range texts {
		replace[path] = filepath.Join(tmp, filepath.Base(path))
		if err := os.WriteFile(replace[path], text, 0o600); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(tmp, "overlay.json")
	return list, os.WriteFile(list, text, 0o600)
}
