package mutation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// source is one file of a package and what is to be changed in it.
type source struct {
	path  string // absolute
	name  string // under the root, with slashes
	text  []byte
	file  *ast.File
	edits []edit
}

// pkg is a package without its tests, parsed and type-checked.
type pkg struct {
	name, path string // the import path
	dir        string // absolute
	fset       *token.FileSet
	files      []*source
	info       *types.Info
	imports    types.Importer // of the compiled dependencies
	helpers    string         // functions that the mutants call, besides helper
	moto       bool           // its tests start moto
}

// listed is what go list says of one package.
type listed struct {
	ImportPath, Name, Dir, Export string
	GoFiles                       []string
	DepOnly, Standard             bool
}

// load reads the package in a directory under root.
func load(ctx context.Context, root, dir string) (*pkg, error) {
	args := []string{"list", "-export", "-deps", "-json=ImportPath,Name,Dir,Export,GoFiles,DepOnly,Standard", "./" + dir}
	cmd := exec.CommandContext(ctx, "go", append(args, helperImports...)...) //nolint:gosec // a package of this module
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list ./%s: %w\n%s", dir, err, &stderr)
	}
	exports := map[string]string{}
	p := &pkg{fset: token.NewFileSet()}
	var files []string
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list ./%s: %w", dir, err)
		}
		exports[l.ImportPath] = l.Export
		if !l.DepOnly && !l.Standard {
			p.name, p.path, p.dir, files = l.Name, l.ImportPath, l.Dir, l.GoFiles
		}
	}
	p.imports = importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, f := range files {
		s := &source{path: filepath.Join(p.dir, f), name: filepath.ToSlash(filepath.Join(dir, f))}
		if s.text, err = os.ReadFile(s.path); err != nil {
			return nil, err
		}
		if s.file, err = parser.ParseFile(p.fset, s.path, s.text, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return nil, err
		}
		p.files = append(p.files, s)
	}
	p.info = &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
	}
	if err := p.check(p.fset, p.info, p.parsed()); err != nil {
		return nil, fmt.Errorf("type check ./%s: %w", dir, err)
	}
	p.moto, err = startsMoto(ctx, root, dir)
	return p, err
}

func (p *pkg) parsed() (files []*ast.File) {
	for _, s := range p.files {
		files = append(files, s.file)
	}
	return files
}

// check type-checks files as this package. The error joins one [types.Error] for
// each fault.
func (p *pkg) check(fset *token.FileSet, info *types.Info, files []*ast.File) error {
	var faults []error
	conf := types.Config{Importer: p.imports, Error: func(err error) { faults = append(faults, err) }}
	conf.Check(p.path, fset, files, info) //nolint:errcheck // it is the first of the faults
	return errors.Join(faults...)
}
