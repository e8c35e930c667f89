package main

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"
)

// deterministic packages give equal results for equal inputs: what runs in a simulation.
// That pure ones have no clock, randomness or I/O is held by the import policy; what is
// held here is that nothing depends on the scheduler or on the order of a map.
var deterministic = []string{"ring", "node/core", "client/core"}

// whims lists what of a package may come out another way the next time. A range over a
// map is fine where a comment on its line says why the order does not matter.
func whims(fset *token.FileSet, files []*ast.File, info *types.Info) (wrong []string) {
	for _, file := range files {
		reasons := map[int]bool{} // lines with a comment about the order
		for _, group := range file.Comments {
			for _, c := range group.List {
				if strings.Contains(c.Text, "order") {
					reasons[fset.Position(c.Pos()).Line] = true
				}
			}
		}
		say := func(n ast.Node, what string) {
			at := fset.Position(n.Pos())
			wrong = append(wrong, fmt.Sprintf("%s:%d: %s", filepath.Base(at.Filename), at.Line, what))
		}
		sorted := map[ast.Expr]bool{} // maps.Keys(m) as an argument of slices.Sorted...
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				say(n, "starts a goroutine")
			case *ast.SelectStmt:
				say(n, "selects")
			case *ast.ChanType:
				say(n, "has a channel")
			case *ast.RangeStmt:
				if t, ok := info.Types[n.X]; ok {
					if _, isMap := t.Type.Underlying().(*types.Map); isMap && !reasons[fset.Position(n.Pos()).Line] {
						say(n, "ranges over a map, without a comment that says why the order does not matter")
					}
				}
			case *ast.CallExpr:
				switch name := types.ExprString(n.Fun); {
				case strings.HasPrefix(name, "slices.Sorted"):
					sorted[n.Args[0]] = true
				case (name == "maps.Keys" || name == "maps.Values" || name == "maps.All") && !sorted[n]:
					say(n, "takes "+name+" in the order of the map")
				}
			case *ast.BasicLit:
				if n.Kind == token.STRING && strings.Contains(n.Value, "%p") {
					say(n, "prints a pointer")
				}
			}
			return true
		})
	}
	return wrong
}

func checkTypes(t *testing.T, fset *token.FileSet, files []*ast.File) *types.Info {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	if _, err := config.Check("p", fset, files, info); err != nil {
		t.Fatal(err)
	}
	return info
}

func TestDeterministicPackages(t *testing.T) {
	for _, dir := range deterministic {
		fset := token.NewFileSet()
		paths, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var files []*ast.File
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "_on.go") { // built with a tag alone
				continue
			}
			file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		if len(files) < 2 {
			t.Fatalf("%s: %d Go files found", dir, len(files))
		}
		for _, w := range whims(fset, files, checkTypes(t, fset, files)) {
			t.Errorf("%s/%s", dir, w)
		}
	}
}

// The test itself is tested: it must find what it forbids.
func TestDeterministicPackagesFinds(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"func f(m map[int]int) {\n for range m {}}", "x.go:3: ranges over a map, without a comment that says why the order does not matter"},
		{"type set map[int]bool\nfunc f(m set) {\n for k := range m { _ = k }}", "x.go:4: ranges over a map, without a comment that says why the order does not matter"},
		{"func f(m map[int]int) {\n for range m { // a sum: the order does not matter\n}}", ""},
		{"func f(m []int) {\n for range m {}}", ""},
		{"func f() { go f() }", "x.go:2: starts a goroutine"},
		{"func f() { select {} }", "x.go:2: selects"},
		{"var c chan int", "x.go:2: has a channel"},
		{"import \"maps\"\nvar x = maps.Keys(map[int]int{})", "x.go:3: takes maps.Keys in the order of the map"},
		{"import (\"maps\"; \"slices\")\nvar x = slices.Sorted(maps.Keys(map[int]int{}))", ""},
		{"import \"fmt\"\nvar x = fmt.Sprintf(\"%p\", new(int))", "x.go:3: prints a pointer"},
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "x.go", "package p\n"+c.src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files := []*ast.File{file}
		if got := strings.Join(whims(fset, files, checkTypes(t, fset, files)), "; "); got != c.want {
			t.Errorf("%s: %q, want %q", c.src, got, c.want)
		}
	}
}
