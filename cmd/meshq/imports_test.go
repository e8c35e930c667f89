package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/meshq/meshq/"

// imports is policy: a package may import only these meshq packages. Widening a
// row is a design change; the commit says why. Programs (package main) wire, and are
// not listed.
var imports = map[string][]string{
	"ring":           {},
	"transport/wire": {"ring"}, // for NodeID
	"transport":      {"ring", "transport/wire"},
	"store":          {"ring", "transport/wire"}, // ring for NodeID
	"node/core":      {"ring", "transport/wire"},
	"client/core":    {"ring", "transport/wire"},
	"client":         {"client/core", "ring", "transport", "transport/wire"},
	"node":           {"node/core", "ring", "store", "transport", "transport/wire"},
	"sim/plan":       {},
	"sim/history":    {},
	"sim/report":     {"sim/history", "sim/plan"},
	"sim":            {"client/core", "node/core", "ring", "sim/history", "sim/plan", "transport/wire"},
	"sim/chaos":      {"client", "ring", "sim/history", "sim/plan", "transport/wire"}, // real processes, from outside
}

// pure packages get time, randomness and I/O from outside (DESIGN section 14):
// they may not import what has its own.
var pure = []string{"ring", "node/core", "client/core"}

var impure = []string{
	"os", "os/exec", "os/signal", "net", "net/http", "sync", "sync/atomic", "math/rand", "math/rand/v2",
	"crypto/rand", "runtime", "syscall", "unsafe", "log", "log/slog", "context",
}

// bytesOnly packages know no connections, files or clocks.
var bytesOnly = []string{"transport/wire"}

var outside = []string{"os", "os/exec", "net", "net/http", "syscall", "log", "log/slog"}

// clocks of package time: values and arithmetic are fine, reading or waiting is not.
var clocks = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// commandOnly are modules that only commands may use: flags and settings stop there.
var commandOnly = []string{"github.com/spf13/", "go.yaml.in/"}

// violations lists what is against policy in one file of the package in dir.
func violations(dir string, file *ast.File) (wrong []string) {
	allowed, listed := imports[dir]
	isCommand := file.Name.Name == "main"
	isPure := slices.Contains(pure, dir)
	if !listed && !isCommand {
		wrong = append(wrong, "the package has no row in the import policy")
	}
	timeName := ""
	for _, spec := range file.Imports {
		path, _ := strconv.Unquote(spec.Path.Value)
		if rest, ok := strings.CutPrefix(path, module); ok && listed && !slices.Contains(allowed, rest) {
			wrong = append(wrong, "imports "+rest)
		}
		if isPure && slices.Contains(impure, path) {
			wrong = append(wrong, "imports "+path+", which a pure package must not")
		}
		if slices.Contains(bytesOnly, dir) && slices.Contains(outside, path) {
			wrong = append(wrong, "imports "+path+", which a package of bytes alone must not")
		}
		for _, prefix := range commandOnly {
			if !isCommand && strings.HasPrefix(path, prefix) {
				wrong = append(wrong, "imports "+path+", which only commands may")
			}
		}
		if path == "time" {
			timeName = "time"
			if spec.Name != nil {
				timeName = spec.Name.Name
			}
		}
	}
	if !isPure && !slices.Contains(bytesOnly, dir) {
		return wrong
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			wrong = append(wrong, "starts a goroutine")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && timeName != "" && x.Name == timeName && slices.Contains(clocks, n.Sel.Name) {
				wrong = append(wrong, "uses time."+n.Sel.Name)
			}
		}
		return true
	})
	return wrong
}

func TestImportPolicy(t *testing.T) {
	root := "../.."
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (name == "testdata" || name == "data" || name == "bin" || strings.HasPrefix(name, ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		seen[dir] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, v := range violations(dir, file) {
			t.Errorf("%s: %s", rel, v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"ring", "transport/wire", "transport", "store", "node/core", "node", "client", "cmd/meshq"} {
		if !seen[dir] {
			t.Errorf("%s: no Go files found: the walk does not see what it should hold to the policy", dir)
		}
	}
}

// The policy test itself is tested: it must find what it forbids.
func TestImportPolicyFinds(t *testing.T) {
	for _, c := range []struct{ dir, src, want string }{
		{"node/core", `package core; import "time"; var t = time.Now()`, "uses time.Now"},
		{"node/core", `package core; import clock "time"; var t = clock.After(1)`, "uses time.After"},
		{"node/core", `package core; import "time"; var t = time.Second`, ""},
		{"client/core", `package core; import "os"`, "imports os, which a pure package must not"},
		{"client/core", `package core; import "math/rand/v2"`, "imports math/rand/v2, which a pure package must not"},
		{"transport/wire", `package wire; import "net"`, "imports net, which a package of bytes alone must not"},
		{"transport/wire", `package wire; import "time"; var t = time.Now()`, "uses time.Now"},
		{"transport/wire", `package wire; import "sync"`, ""},
		{"node/core", `package core; func f() { go f() }`, "starts a goroutine"},
		{"client", `package client; import "github.com/meshq/meshq/node"`, "imports node"},
		{"store", `package store; import "github.com/meshq/meshq/transport"`, "imports transport"},
		{"node", `package node; import "github.com/spf13/pflag"`, "imports github.com/spf13/pflag, which only commands may"},
		{"node", `package node; import "github.com/meshq/meshq/node/core"`, ""},
		{"cmd/meshq", `package main; import "github.com/spf13/pflag"`, ""},
		{"util", `package util`, "the package has no row in the import policy"},
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", c.src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(violations(c.dir, file), "; "); got != c.want {
			t.Errorf("%s: %s\n got %q\nwant %q", c.dir, c.src, got, c.want)
		}
	}
}
