package mutation

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"unicode/utf8"
)

// generator finds the places of one file that are to be changed. It walks the tree
// in source order; parents are the nodes around the one that is looked at.
type generator struct {
	p       *pkg
	src     *source
	mutants *[]*Mutant
	sites   *int

	function string
	results  []*types.Tuple // of the functions around, the innermost last
	parents  []ast.Node
}

// generate makes all mutants of the package, and the edits that build them.
func (p *pkg) generate() []*Mutant {
	var mutants []*Mutant
	sites := 0
	p.helpers = ""
	for _, s := range p.files {
		g := generator{p: p, src: s, mutants: &mutants, sites: &sites}
		for _, d := range s.file.Decls {
			g.visit(d)
		}
	}
	number(mutants)
	return mutants
}

// number tells mutants of a function apart that have the same text.
func number(mutants []*Mutant) {
	type key struct{ file, function, change string }
	seen := map[key]int{}
	for _, m := range mutants {
		k := key{m.File, m.Function, m.Change}
		if seen[k]++; seen[k] > 1 {
			m.Change += fmt.Sprintf(" (%d)", seen[k])
		}
	}
}

// newSite begins a place; the edits that are added until the next one are its own.
func (g *generator) newSite() { *g.sites++ }

// mutant adds a mutant of the current site and returns its number.
func (g *generator) mutant(n ast.Node, change string) int {
	m := &Mutant{
		ID: len(*g.mutants) + 1, File: g.src.name, Line: g.p.fset.Position(n.Pos()).Line,
		Function: g.function, Change: change, site: *g.sites,
	}
	*g.mutants = append(*g.mutants, m)
	return m.ID
}

func (g *generator) offset(p token.Pos) int { return g.p.fset.Position(p).Offset }

func (g *generator) insert(p token.Pos, text string) { g.replace(p, p, text) }

func (g *generator) replace(from, to token.Pos, text string) {
	g.src.edits = append(g.src.edits, edit{at: g.offset(from), end: g.offset(to), text: text, site: *g.sites})
}

// wrap puts a node between two texts.
func (g *generator) wrap(n ast.Node, before, after string) {
	g.insert(n.Pos(), before)
	g.src.edits = append(g.src.edits, edit{at: g.offset(n.End()), end: g.offset(n.End()), text: after, closing: true, site: *g.sites})
}

// code is the source of a node, in one line.
func (g *generator) code(n ast.Node) string {
	return strings.Join(strings.Fields(string(g.src.text[g.offset(n.Pos()):g.offset(n.End())])), " ")
}

// codeWith is the source of a node in which a part of it is replaced.
func (g *generator) codeWith(n, part ast.Node, text string) string {
	from, to := g.offset(n.Pos()), g.offset(n.End())
	b := string(g.src.text[from:g.offset(part.Pos())]) + text + string(g.src.text[g.offset(part.End()):to])
	return strings.Join(strings.Fields(b), " ")
}

const maxCode = 100 // letters of a mutant's text on each side

func shorten(s string) string {
	if utf8.RuneCountInString(s) <= maxCode {
		return s
	}
	return string([]rune(s)[:maxCode]) + "…"
}

func change(from, to string) string { return shorten(from) + " → " + shorten(to) }

// visit looks at a node and at what is in it.
func (g *generator) visit(n ast.Node) { ast.Inspect(n, g.step) }

// visitIn is visit for a part of a node that is not visited as a whole.
func (g *generator) visitIn(parent ast.Node, parts ...ast.Node) {
	g.parents = append(g.parents, parent)
	for _, n := range parts {
		g.visit(n)
	}
	g.parents = g.parents[:len(g.parents)-1]
}

// visitInside is visit for everything in a node but the node itself.
func (g *generator) visitInside(n ast.Node) {
	outer := true
	ast.Inspect(n, func(m ast.Node) bool {
		if outer {
			outer = false
			g.parents = append(g.parents, n)
			return true
		}
		return g.step(m)
	})
}

func (g *generator) step(n ast.Node) bool {
	if n == nil {
		g.parents = g.parents[:len(g.parents)-1]
		return true
	}
	if g.enter(n) {
		g.parents = append(g.parents, n)
		return true
	}
	return false
}

func (g *generator) parent() ast.Node {
	if len(g.parents) == 0 {
		return nil
	}
	return g.parents[len(g.parents)-1]
}

// enter makes the mutants of a node and says whether what is in it remains to be
// looked at.
func (g *generator) enter(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncDecl:
		g.functionOf(n)
		return false
	case *ast.FuncLit:
		sig, _ := g.p.info.Types[n].Type.(*types.Signature)
		g.body(n, n.Body, sig)
		return false
	case *ast.GenDecl:
		g.variables(n)
		return false
	case *ast.BlockStmt:
		g.statements(n, n.List)
	case *ast.CaseClause:
		g.statements(n, n.Body)
	case *ast.CommClause:
		g.statements(n, n.Body)
		for _, s := range n.Body {
			g.visitIn(n, s)
		}
		return false // what it sends or receives stays
	case *ast.IfStmt:
		g.conditional(n)
		return false
	case *ast.ForStmt:
		g.loop(n)
		return false
	case *ast.SwitchStmt:
		g.choice(n)
		return false
	case *ast.TypeSwitchStmt:
		if n.Init != nil {
			g.visitIn(n, n.Init)
		}
		for _, c := range n.Body.List {
			g.clause(n, c)
		}
		return false
	case *ast.ReturnStmt:
		g.returned(n)
		return false
	case *ast.BranchStmt:
		return false
	case ast.Expr:
		return g.expression(n)
	}
	return true
}

// functionOf looks into a function, unless what it makes is the text of an error.
func (g *generator) functionOf(f *ast.FuncDecl) {
	if f.Body == nil || f.Recv != nil && f.Name.Name == "Error" {
		return
	}
	g.function = f.Name.Name
	if f.Recv != nil {
		t := f.Recv.List[0].Type
		if star, ok := t.(*ast.StarExpr); ok {
			t = star.X
		}
		if generic, ok := t.(*ast.IndexExpr); ok {
			t = generic.X
		}
		g.function = g.code(t) + "." + f.Name.Name
	}
	sig, _ := g.p.info.Defs[f.Name].Type().(*types.Signature)
	g.body(f, f.Body, sig)
	g.function = ""
}

func (g *generator) body(f ast.Node, body *ast.BlockStmt, sig *types.Signature) {
	g.results = append(g.results, sig.Results())
	g.visitIn(f, body)
	g.results = g.results[:len(g.results)-1]
}

// variables looks at the values of variables; constants are changed where they are
// used.
func (g *generator) variables(d *ast.GenDecl) {
	if d.Tok != token.VAR {
		return
	}
	for _, s := range d.Specs {
		v, ok := s.(*ast.ValueSpec)
		if !ok {
			continue
		}
		for _, e := range v.Values {
			g.visitIn(v, e)
		}
	}
}

func (g *generator) conditional(n *ast.IfStmt) {
	g.parents = append(g.parents, n)
	if n.Init != nil {
		g.visit(n.Init)
	}
	g.boolean(n.Cond, true, true)
	g.visit(n.Body)
	if n.Else != nil {
		g.visit(n.Else)
	}
	g.parents = g.parents[:len(g.parents)-1]
}

func (g *generator) loop(n *ast.ForStmt) {
	g.parents = append(g.parents, n)
	if n.Init != nil {
		g.visit(n.Init)
	}
	if n.Cond != nil {
		g.boolean(n.Cond, false, true) // a loop that never ends costs the whole timeout
	}
	if n.Post != nil {
		g.visit(n.Post)
	}
	g.visit(n.Body)
	g.parents = g.parents[:len(g.parents)-1]
}

func (g *generator) choice(n *ast.SwitchStmt) {
	g.parents = append(g.parents, n)
	if n.Init != nil {
		g.visit(n.Init)
	}
	if n.Tag != nil {
		g.visit(n.Tag)
	}
	for _, s := range n.Body.List {
		c, ok := s.(*ast.CaseClause)
		if !ok {
			continue
		}
		for _, e := range c.List {
			if n.Tag == nil {
				g.boolean(e, true, true)
			} else {
				g.caseValue(c, e)
			}
		}
		g.clause(n, c)
	}
	g.parents = g.parents[:len(g.parents)-1]
}

// clause looks at the statements of a case, not at its values.
func (g *generator) clause(n ast.Node, s ast.Stmt) {
	c, ok := s.(*ast.CaseClause)
	if !ok {
		return
	}
	g.statements(c, c.Body)
	g.parents = append(g.parents, n)
	for _, s := range c.Body {
		g.visitIn(c, s)
	}
	g.parents = g.parents[:len(g.parents)-1]
}

// caseValue makes a value of a case match nothing.
func (g *generator) caseValue(c *ast.CaseClause, e ast.Expr) {
	tv := g.p.info.Types[e]
	basic, ok := tv.Type.Underlying().(*types.Basic)
	if !ok {
		return
	}
	helper := "mutationCaseText"
	if basic.Info()&types.IsInteger != 0 {
		helper = "mutationCaseNumber"
	} else if basic.Info()&types.IsString == 0 {
		return
	}
	name, ok := g.typeName(tv.Type)
	if !ok {
		return
	}
	text := "case " + g.code(e) + ": → without"
	if len(c.List) > 1 {
		var list []string
		for _, v := range c.List {
			list = append(list, g.code(v))
		}
		text = change("case "+strings.Join(list, ", ")+":", "without "+g.code(e))
	}
	g.newSite()
	g.wrap(e, fmt.Sprintf("%s(%d, %s(", helper, g.mutant(e, text), name), "))")
}

// statements makes mutants in which one statement of a list is missing, and loops
// that end early.
func (g *generator) statements(list ast.Node, body []ast.Stmt) {
	for i, s := range body {
		labeled := s
		if l, ok := s.(*ast.LabeledStmt); ok {
			s = l.Stmt
		}
		last := i == len(body)-1
		switch s := s.(type) {
		case *ast.RangeStmt:
			g.loopOnce(labeled, s.Body)
		case *ast.ForStmt:
			if s.Cond != nil || !last { // else the function may end in it
				g.loopOnce(labeled, s.Body)
			}
		case *ast.TypeSwitchStmt:
			if !last {
				g.typeCases(s)
			}
		default:
			if labeled == s && g.removable(s) && !g.isWholeIf(list, body) {
				g.newSite()
				id := g.mutant(s, change(g.code(s), "nothing"))
				g.wrap(s, fmt.Sprintf("if !mutationOn(%d, true) { ", id), " }")
			}
		}
	}
}

// isWholeIf says whether a list is all that an if does: to remove it is the same as
// a condition that is false, which is a mutant of its own.
func (g *generator) isWholeIf(list ast.Node, body []ast.Stmt) bool {
	n, ok := g.parent().(*ast.IfStmt)
	return ok && n.Body == list && n.Else == nil && len(body) == 1
}

func (g *generator) loopOnce(labeled ast.Stmt, body *ast.BlockStmt) {
	g.newSite()
	id := g.mutant(labeled, change(g.loopHead(labeled, body), "the first round only"))
	g.insert(labeled.Pos(), fmt.Sprintf("mutationRound%d := 0; ", id))
	g.insert(body.Lbrace+1, fmt.Sprintf(" if mutationRound%d++; mutationRound%d > 1 && mutationOn(%d, true) { break }; ", id, id, id))
}

func (g *generator) loopHead(n ast.Stmt, body *ast.BlockStmt) string {
	return strings.Join(strings.Fields(string(g.src.text[g.offset(n.Pos()):g.offset(body.Lbrace)])), " ")
}

// typeCases makes mutants in which a case of a type switch does nothing.
func (g *generator) typeCases(s *ast.TypeSwitchStmt) {
	for _, b := range s.Body.List {
		if c, ok := b.(*ast.CaseClause); ok && c.List != nil && len(c.Body) > 0 {
			var list []string
			for _, v := range c.List {
				list = append(list, g.code(v))
			}
			g.newSite()
			id := g.mutant(c, change("case "+strings.Join(list, ", ")+":", "nothing"))
			g.insert(c.Colon+1, fmt.Sprintf(" if mutationOn(%d, true) { break }; ", id))
		}
	}
}

// removable says whether a statement has an effect that the function may lack
// without being another program altogether.
func (g *generator) removable(s ast.Stmt) bool {
	switch s := s.(type) {
	case *ast.ExprStmt:
		call, ok := s.X.(*ast.CallExpr)
		return ok && !g.isText(call) && !g.frees(call) && !g.isBuiltin(call, "panic")
	case *ast.DeferStmt:
		return !g.frees(s.Call) && !g.isText(s.Call)
	case *ast.GoStmt, *ast.SendStmt, *ast.IncDecStmt:
		return true
	case *ast.AssignStmt:
		return s.Tok != token.DEFINE && !slices.ContainsFunc(s.Rhs, func(e ast.Expr) bool {
			call, ok := e.(*ast.CallExpr)
			return ok && g.frees(call)
		})
	case *ast.BranchStmt:
		return s.Tok == token.CONTINUE || s.Tok == token.BREAK
	case *ast.ReturnStmt:
		return len(s.Results) == 0 && g.results[len(g.results)-1].Len() == 0
	}
	return false
}

// frees says whether a call only gives something back that a test rarely misses.
func (g *generator) frees(call *ast.CallExpr) bool {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return slices.Contains([]string{"Close", "Stop", "CloseIdleConnections"}, f.Sel.Name)
	case *ast.Ident:
		return strings.HasPrefix(f.Name, "cancel") || strings.HasPrefix(f.Name, "stop")
	}
	return false
}

func (g *generator) isBuiltin(call *ast.CallExpr, name string) bool {
	id, ok := call.Fun.(*ast.Ident)
	if !ok || id.Name != name {
		return false
	}
	_, ok = g.p.info.Uses[id].(*types.Builtin)
	return ok
}

// isText says whether all that a call does is a text for a person: a log line or
// the message of an error.
func (g *generator) isText(call *ast.CallExpr) bool {
	var id *ast.Ident
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		id = f.Sel
	case *ast.Ident:
		id = f
	default:
		return false
	}
	f, ok := g.p.info.Uses[id].(*types.Func)
	if !ok || f.Pkg() == nil {
		return false
	}
	switch f.Pkg().Path() {
	case "log/slog", "log":
		return true
	case "errors":
		return f.Name() == "New"
	case "fmt":
		return f.Name() == "Errorf"
	}
	return false
}

// returned makes mutants in which an error is not returned, and of what is returned.
func (g *generator) returned(s *ast.ReturnStmt) {
	results := g.results[len(g.results)-1]
	n := len(s.Results)
	if n == 0 {
		return
	}
	last := s.Results[n-1]
	fails := isError(results.At(results.Len() - 1).Type())
	switch {
	case !fails || g.isNil(last):
	case n == results.Len():
		g.newSite()
		id := g.mutant(s, change(g.code(s), g.codeWith(s, last, "nil")))
		g.wrap(last, fmt.Sprintf("mutationErr(%d, ", id), ")")
	default: // return f()
		g.newSite()
		id := g.mutant(s, change(g.code(s), "its error is dropped"))
		g.p.helpers += dropsError(id, results.Len()-1)
		g.wrap(last, fmt.Sprintf("mutation%d(", id), ")")
	}
	g.parents = append(g.parents, s)
	name, named := last.(*ast.Ident)
	call, called := last.(*ast.CallExpr)
	failed := fails && !g.isNil(last) && (named || called && g.isText(call)) || named && name.Name == "false"
	for _, e := range s.Results {
		tv := g.p.info.Types[e]
		switch {
		case tv.Value != nil && failed && e != last: // nobody looks at what comes with an error, or false
		case tv.Value == nil && isBool(tv.Type):
			g.boolean(e, true, true)
		default:
			g.visit(e)
		}
	}
	g.parents = g.parents[:len(g.parents)-1]
}

// dropsError is a function that passes on n results and an error, which the mutant
// drops.
func dropsError(id, n int) string {
	var types, params, values []string
	for i := range n {
		types = append(types, fmt.Sprintf("T%d", i))
		params = append(params, fmt.Sprintf("v%d T%d", i, i))
		values = append(values, fmt.Sprintf("v%d", i))
	}
	return fmt.Sprintf("\nfunc mutation%d[%s any](%s, err error) (%s, error) { return %s, mutationErr(%d, err) }\n",
		id, strings.Join(types, ", "), strings.Join(params, ", "), strings.Join(types, ", "), strings.Join(values, ", "), id)
}

func (g *generator) isNil(e ast.Expr) bool { return g.p.info.Types[e].IsNil() }

var errorType = types.Universe.Lookup("error").Type()

func isError(t types.Type) bool { return types.Identical(t, errorType) }

func isBool(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&types.IsBoolean != 0
}
