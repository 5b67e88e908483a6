package mutation

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"strconv"
	"strings"
)

// expression makes the mutants of an expression and says whether what is in it
// remains to be looked at.
func (g *generator) expression(e ast.Expr) bool {
	tv := g.p.info.Types[e]
	if tv.IsType() {
		return false
	}
	if tv.Value != nil {
		g.constant(e, tv)
		return false
	}
	switch e := e.(type) {
	case *ast.UnaryExpr:
		if e.Op == token.NOT {
			g.boolean(e, true, true)
			return false
		}
		if lit, ok := e.X.(*ast.CompositeLit); ok && e.Op == token.AND {
			g.composite(lit, false) // the address of what a helper returns cannot be taken
			return false
		}
	case *ast.BinaryExpr:
		if isBool(tv.Type) {
			g.boolean(e, true, true)
			return false
		}
		g.arithmetic(e, tv.Type)
	case *ast.CallExpr:
		return g.call(e)
	case *ast.CompositeLit:
		g.composite(e, e.Type != nil)
		return false
	case *ast.SelectorExpr:
		g.visitIn(e, e.X)
		return false
	case *ast.TypeAssertExpr:
		g.visitIn(e, e.X)
		return false
	}
	return true
}

// boolean makes mutants in which a condition, or a part of it that matters by
// itself, is always true or always false. In a && b it is enough that a is true, that
// b is true, and that all of it is false: tests that notice these notice the rest.
func (g *generator) boolean(e ast.Expr, toTrue, toFalse bool) {
	if paren, ok := e.(*ast.ParenExpr); ok {
		g.boolean(paren.X, toTrue, toFalse)
		return
	}
	if tv := g.p.info.Types[e]; tv.Value != nil {
		g.constant(e, tv)
		return
	}
	switch x := e.(type) {
	case *ast.UnaryExpr:
		if x.Op == token.NOT {
			g.boolean(x.X, toFalse, toTrue)
			return
		}
	case *ast.BinaryExpr:
		if x.Op == token.LAND || x.Op == token.LOR {
			and := x.Op == token.LAND
			g.always(e, toTrue && !and, toFalse && and)
			g.parents = append(g.parents, x)
			g.boolean(x.X, and, !and)
			g.boolean(x.Y, and, !and)
			g.parents = g.parents[:len(g.parents)-1]
			return
		}
		failed := x.Op == token.NEQ && isError(g.p.info.Types[x.X].Type) // true without an error: nothing would work
		g.always(e, toTrue && !failed, toFalse)
		g.boundary(x)
		g.visitInside(x)
		return
	}
	g.always(e, toTrue, toFalse)
	g.visitInside(e)
}

func (g *generator) always(e ast.Expr, toTrue, toFalse bool) {
	if !toTrue && !toFalse {
		return
	}
	g.newSite()
	code := g.code(e)
	if n, ok := g.parent().(*ast.IfStmt); ok && n.Cond == e && n.Init != nil {
		code = g.code(n.Init) + "; " + code
	}
	var ids [2]int
	if toTrue {
		ids[0] = g.mutant(e, change(code, "true"))
	}
	if toFalse {
		ids[1] = g.mutant(e, change(code, "false"))
	}
	g.wrap(e, fmt.Sprintf("mutationBool(%d, %d, ", ids[0], ids[1]), ")")
}

// ordering are the comparisons that have a boundary.
var ordering = map[token.Token]struct {
	helper string
	other  token.Token
	step   int64 // of a constant on the right that does the same as the other comparison
}{
	token.LSS: {"mutationLess", token.LEQ, 1},
	token.LEQ: {"mutationLessEqual", token.LSS, -1},
	token.GTR: {"mutationGreater", token.GEQ, -1},
	token.GEQ: {"mutationGreaterEqual", token.GTR, 1},
}

// boundary puts the boundary of a comparison on its other side.
func (g *generator) boundary(e *ast.BinaryExpr) {
	o, ok := ordering[e.Op]
	if !ok || g.isLength(e.X) && g.isConst(e.Y, 0) && e.Op == token.GTR { // len(x) >= 0 is true
		return
	}
	g.newSite()
	id := g.mutant(e, change(g.code(e), fmt.Sprintf("%s %s %s", g.code(e.X), o.other, g.code(e.Y))))
	g.wrap(e, fmt.Sprintf("%s(%d, ", o.helper, id), ")")
	g.replace(e.OpPos, e.OpPos+token.Pos(len(e.Op.String())), ", ")
}

func (g *generator) isLength(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	return ok && (g.isBuiltin(call, "len") || g.isBuiltin(call, "cap"))
}

func (g *generator) isConst(e ast.Expr, want int64) bool {
	v := g.p.info.Types[e].Value
	if v == nil || v.Kind() != constant.Int {
		return false
	}
	n, ok := constant.Int64Val(v)
	return ok && n == want
}

// constant changes a constant where it is used.
func (g *generator) constant(e ast.Expr, tv types.TypeAndValue) {
	for {
		paren, ok := e.(*ast.ParenExpr)
		if !ok {
			break
		}
		e = paren.X
	}
	switch tv.Value.Kind() {
	case constant.Bool:
		if id, ok := e.(*ast.Ident); ok && (id.Name == "true" || id.Name == "false") {
			g.newSite()
			other := strconv.FormatBool(id.Name == "false")
			m := g.mutant(e, change(g.around(e), g.aroundWith(e, other)))
			g.wrap(e, fmt.Sprintf("mutationBool(%d, %d, ", m, m), ")")
		}
	case constant.Int:
		g.integer(e, tv)
	case constant.String:
		g.conjuncts(e, tv)
	default:
	}
}

// around is the code around a constant, by which it is known.
func (g *generator) around(e ast.Expr) string { return g.aroundWith(e, g.code(e)) }

func (g *generator) aroundWith(e ast.Expr, text string) string {
	switch p := g.parent().(type) {
	case *ast.FuncLit, *ast.BlockStmt, *ast.IfStmt, *ast.ForStmt, *ast.SwitchStmt, *ast.CaseClause:
		return text
	case *ast.RangeStmt:
		return "range " + text
	case nil:
		return text
	case *ast.CompositeLit:
		if p.Type == nil {
			return "{" + text + "}"
		}
		return g.code(p.Type) + "{" + text + "}"
	default:
		return g.codeWith(p, e, text)
	}
}

// integer is one more and one less than a constant. Where the comparison's boundary
// is a mutant that does the same, or an equality never holds, there is none.
func (g *generator) integer(e ast.Expr, tv types.TypeAndValue) {
	basic, ok := tv.Type.(*types.Basic)
	if named, isNamed := tv.Type.(*types.Named); isNamed {
		_, literal := e.(*ast.BasicLit)
		basic, ok = named.Underlying().(*types.Basic)
		ok = ok && literal && !isDuration(tv.Type) // an enumeration's next value is no mistake that is made
	}
	switch e := e.(type) {
	case *ast.BasicLit: // a letter or a file's mode
		ok = ok && e.Kind != token.CHAR && !strings.HasPrefix(e.Value, "0o")
	case *ast.BinaryExpr: // flags
		ok = ok && e.Op != token.OR
	case *ast.SelectorExpr: // another package's
		ok = false
	}
	name, named := g.typeName(tv.Type)
	if !ok || !named || basic.Info()&types.IsInteger == 0 {
		return
	}
	less, more := constant.Sign(tv.Value) > 0, true
	if b, ok := g.parent().(*ast.BinaryExpr); ok {
		if b.Op == token.EQL || b.Op == token.NEQ {
			return
		}
		if o, ok := ordering[b.Op]; ok {
			step := o.step
			if b.X == e {
				step = -step
			}
			less, more = less && step > 0, step < 0
			if g.isLength(b.X) && g.isConst(e, 0) && b.Op == token.GTR {
				more = true // there is no boundary
			}
		}
	}
	if !less && !more {
		return
	}
	g.newSite()
	var ids [2]int
	if less {
		ids[0] = g.mutant(e, change(g.around(e), g.aroundWith(e, g.plus(e, -1))))
	}
	if more {
		ids[1] = g.mutant(e, change(g.around(e), g.aroundWith(e, g.plus(e, 1))))
	}
	g.wrap(e, fmt.Sprintf("mutationStep(%d, %d, %s(", ids[0], ids[1], name), "))")
}

// plus is the code of a constant and a step.
func (g *generator) plus(e ast.Expr, step int64) string {
	if _, ok := e.(*ast.BasicLit); ok {
		return constant.BinaryOp(g.p.info.Types[e].Value, token.ADD, constant.MakeInt64(step)).ExactString()
	}
	return fmt.Sprintf("%s%+d", g.code(e), step)
}

func isDuration(t types.Type) bool {
	named, ok := t.(*types.Named)
	return ok && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == "time" && named.Obj().Name() == "Duration"
}

const and = " AND " // between the conditions of an AWS expression

// conjuncts leaves out one of the conditions that a text joins.
func (g *generator) conjuncts(e ast.Expr, tv types.TypeAndValue) {
	parts := strings.Split(constant.StringVal(tv.Value), and)
	name, ok := g.typeName(tv.Type)
	if len(parts) < 2 || !ok {
		return
	}
	for i, part := range parts {
		var rest []string
		rest = append(append(rest, parts[:i]...), parts[i+1:]...)
		g.newSite()
		id := g.mutant(e, change(g.code(e), "without "+part))
		g.wrap(e, fmt.Sprintf("mutationValue(%d, %s(", id, name), fmt.Sprintf("), %q)", strings.Join(rest, and)))
	}
}

// neutral operands, on the right and on the left, leave the other one as it is.
var neutral = map[token.Token]struct{ right, left string }{
	token.ADD: {"0", "0"}, token.SUB: {"0", ""}, token.MUL: {"1", "1"}, token.QUO: {"1", ""},
	token.OR: {"0", "0"}, token.XOR: {"0", "0"}, token.SHL: {"0", ""}, token.SHR: {"0", ""},
}

// arithmetic leaves out one operand. Constants have their own mutants, one more and
// one less, save durations.
func (g *generator) arithmetic(e *ast.BinaryExpr, t types.Type) {
	basic, ok := t.Underlying().(*types.Basic)
	if !ok || basic.Info()&types.IsNumeric == 0 {
		return
	}
	n := neutral[e.Op]
	for _, side := range []struct {
		operand, other ast.Expr
		value          string
	}{{e.Y, e.X, n.right}, {e.X, e.Y, n.left}} {
		isConst := g.p.info.Types[side.operand].Value != nil
		if side.value == "" || isConst && !isDuration(t) {
			continue
		}
		g.newSite()
		text := fmt.Sprintf("mutationValue(%d, ", g.mutant(e, change(g.code(e), g.code(side.other))))
		if name, ok := g.typeName(g.p.info.Types[side.operand].Type); ok && isConst {
			g.wrap(side.operand, text+name+"(", "), "+side.value+")")
		} else {
			g.wrap(side.operand, text, ", "+side.value+")")
		}
	}
}

// call makes the mutants of a call and of those arguments that matter.
func (g *generator) call(e *ast.CallExpr) bool {
	if g.isText(e) || g.isBuiltin(e, "panic") {
		return false
	}
	var matter []ast.Expr
	switch {
	case g.isBuiltin(e, "make"): // a capacity changes nothing
		if _, isSlice := g.p.info.Types[e].Type.Underlying().(*types.Slice); isSlice {
			matter = e.Args[1:2]
		}
	case g.isFunc(e, "slices", "Grow"), g.isFunc(e, "strconv", ""):
		matter = e.Args[:1]
	case len(e.Args) == 2 && (g.isBuiltin(e, "min") || g.isBuiltin(e, "max")):
		g.extreme(e)
		return true
	case g.isFunc(e, "errors", "Join") && len(e.Args) > 1 && !e.Ellipsis.IsValid():
		for _, a := range e.Args {
			g.newSite()
			id := g.mutant(a, change(g.code(e), g.codeWith(e, a, "nil")))
			g.wrap(a, fmt.Sprintf("mutationErr(%d, ", id), ")")
		}
		return true
	default:
		n, formats := g.format(e)
		if !formats {
			return true
		}
		g.visitIn(e, e.Fun)
		matter = e.Args[:n]
	}
	for _, a := range matter {
		g.visitIn(e, a)
	}
	return false
}

// format finds the argument of a call that is the format of a text for a person, as
// in v.find(kind, key, "record %d", n). A text that package fmt makes may be a key.
func (g *generator) format(call *ast.CallExpr) (n int, ok bool) {
	sig, ok := g.p.info.Types[call.Fun].Type.(*types.Signature)
	if !ok || !sig.Variadic() || sig.Params().Len() < 2 || g.isFunc(call, "fmt", "") {
		return 0, false
	}
	n = sig.Params().Len() - 2
	rest, ok := sig.Params().At(n + 1).Type().(*types.Slice)
	if !ok || !types.Identical(sig.Params().At(n).Type(), types.Typ[types.String]) {
		return 0, false
	}
	any, ok := rest.Elem().Underlying().(*types.Interface)
	return n, ok && any.Empty()
}

// isFunc says whether a call is of a function of a package; "" is any of them.
func (g *generator) isFunc(call *ast.CallExpr, pkg, name string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	f, ok := g.p.info.Uses[sel.Sel].(*types.Func)
	return ok && f.Pkg() != nil && f.Pkg().Path() == pkg && f.Signature().Recv() == nil && (name == "" || f.Name() == name)
}

func (g *generator) extreme(e *ast.CallExpr) {
	name := "mutationMin"
	if g.isBuiltin(e, "max") {
		name = "mutationMax"
	}
	g.newSite()
	first := g.mutant(e, change(g.code(e), g.code(e.Args[0])))
	second := g.mutant(e, change(g.code(e), g.code(e.Args[1])))
	g.replace(e.Fun.Pos(), e.Fun.End(), name)
	g.insert(e.Lparen+1, fmt.Sprintf("%d, %d, ", first, second))
}

// composite makes mutants in which a field, an element or an entry is missing.
func (g *generator) composite(e *ast.CompositeLit, whole bool) {
	g.parents = append(g.parents, e)
	defer func() { g.parents = g.parents[:len(g.parents)-1] }()
	switch t := g.p.info.Types[e].Type.Underlying().(type) {
	case *types.Struct:
		g.fields(e, t)
		return
	case *types.Slice:
		if whole {
			g.elements(e)
		}
	case *types.Map:
		if whole {
			g.entries(e)
		}
	case *types.Pointer: // an element of a list of pointers, its type left out
		if s, ok := t.Elem().Underlying().(*types.Struct); ok {
			g.fields(e, s)
			return
		}
	}
	for _, elt := range e.Elts {
		if kv, ok := elt.(*ast.KeyValueExpr); ok {
			g.visitIn(kv, kv.Value)
		} else {
			g.visit(elt)
		}
	}
}

func (g *generator) fields(e *ast.CompositeLit, t *types.Struct) {
	for _, elt := range e.Elts {
		kv, ok := elt.(*ast.KeyValueExpr)
		if !ok {
			g.visit(elt)
			continue
		}
		if key, ok := kv.Key.(*ast.Ident); ok && !g.isZeroOrBool(kv.Value) {
			g.field(e, kv, fieldType(t, key.Name))
		}
		g.visitIn(kv, kv.Value)
	}
}

// field leaves a field at its zero value.
func (g *generator) field(e *ast.CompositeLit, kv *ast.KeyValueExpr, t types.Type) {
	g.newSite()
	head := "{"
	if e.Type != nil {
		head = g.code(e.Type) + "{"
	}
	id := g.mutant(kv, change(head+g.code(kv)+"}", "without "+g.code(kv.Key)))
	helper := "mutationZero"
	if name, ok := g.typeName(t); t != nil && ok {
		helper += "[" + name + "]"
	}
	g.wrap(kv.Value, fmt.Sprintf("%s(%d, ", helper, id), ")")
}

func fieldType(t *types.Struct, name string) types.Type {
	for f := range t.Fields() {
		if f.Name() == name {
			return f.Type()
		}
	}
	return nil
}

// isZeroOrBool says whether a value is what a missing field has, or a literal of
// true or false, which is changed itself.
func (g *generator) isZeroOrBool(e ast.Expr) bool {
	if call, ok := e.(*ast.CallExpr); ok && len(call.Args) == 1 && g.isFunc(call, "github.com/aws/aws-sdk-go-v2/aws", "Bool") {
		e = call.Args[0]
	}
	tv := g.p.info.Types[e]
	if tv.IsNil() {
		return true
	}
	if tv.Value == nil {
		return false
	}
	switch tv.Value.Kind() {
	case constant.Bool:
		return true
	case constant.String:
		return constant.StringVal(tv.Value) == ""
	default:
		return constant.Sign(tv.Value) == 0
	}
}

func (g *generator) elements(e *ast.CompositeLit) {
	if len(e.Elts) == 0 {
		return
	}
	if _, keyed := e.Elts[0].(*ast.KeyValueExpr); keyed {
		return
	}
	g.newSite()
	first := 0
	for i, elt := range e.Elts {
		id := g.mutant(elt, change(g.code(e.Type)+"{"+g.code(elt)+"}", "without"))
		if i == 0 {
			first = id
		}
	}
	g.wrap(e, fmt.Sprintf("mutationElements(%d, ", first), ")")
}

func (g *generator) entries(e *ast.CompositeLit) {
	var keys strings.Builder
	first := 0
	g.newSite()
	for i, elt := range e.Elts {
		kv, ok := elt.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		id := g.mutant(kv, change(g.code(e.Type)+"{"+g.code(kv)+"}", "without"))
		if i == 0 {
			first = id
		}
		keys.WriteString(", " + g.code(kv.Key))
	}
	if first != 0 {
		g.wrap(e, fmt.Sprintf("mutationEntries(%d, ", first), keys.String()+")")
	}
}

// typeName writes a type as this file can, if it can.
func (g *generator) typeName(t types.Type) (name string, ok bool) {
	if t == nil {
		return "", false
	}
	t, ok = types.Default(t), true
	name = types.TypeString(t, func(p *types.Package) string {
		if p.Path() == g.p.path {
			return ""
		}
		for _, i := range g.src.file.Imports {
			if path, err := strconv.Unquote(i.Path.Value); err == nil && path == p.Path() {
				if i.Name != nil {
					return i.Name.Name
				}
				return p.Name()
			}
		}
		ok = false
		return p.Name()
	})
	return name, ok
}
