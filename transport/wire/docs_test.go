package wire

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

const protocolDoc = "../../docs/protocol.md"

// TestDocs holds the tables of docs/protocol.md to the code. They are made of it:
// go test ./transport/wire -run TestDocs -update.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile(protocolDoc)
	if err != nil {
		t.Fatal(err)
	}
	src := readSource(t)
	want := doc
	for name, text := range map[string]string{
		"errors": errorTable(src), "types": typeTable(), "client messages": messageTables(src, 1, 95),
		"node messages": messageTables(src, 96, 255), "structs": structTables(src), "values": valueTable(src),
		"examples": exampleTable(),
	} {
		begin, end := []byte("<!-- begin "+name+" -->\n"), []byte("<!-- end "+name+" -->\n")
		at, to := bytes.Index(want, begin), bytes.Index(want, end)
		if at < 0 || to < at {
			t.Fatalf("%s has no part %q", protocolDoc, name)
		}
		want = bytes.Join([][]byte{want[:at], begin, []byte("\n" + text + "\n"), want[to:]}, nil)
	}
	if bytes.Equal(doc, want) {
		return
	}
	if *update {
		if err := os.WriteFile(protocolDoc, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, now := strings.Split(string(doc), "\n"), strings.Split(string(want), "\n")
	for i := range now {
		if i >= len(old) || old[i] != now[i] {
			t.Errorf("%s, line %d, does not say what the code says; write it with -update:\n%s", protocolDoc, i+1, now[i])
			return
		}
	}
	t.Errorf("%s has lines that the code does not say", protocolDoc)
}

// source is the comments of the package, by type and by type.field or constant.
type source struct {
	comments map[string]string
	consts   map[string][]string // type: its constants, in order
	values   map[string]string   // constant: what is written for its value
}

func readSource(t *testing.T) source {
	t.Helper()
	s := source{map[string]string{}, map[string][]string{}, map[string]string{}}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			last := ""
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					s.comments[spec.Name.Name] = flat(g.Doc.Text())
					if st, ok := spec.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, n := range field.Names {
								s.comments[spec.Name.Name+"."+n.Name] = flat(field.Doc.Text() + " " + field.Comment.Text())
							}
						}
					}
				case *ast.ValueSpec:
					if g.Tok != token.CONST {
						continue
					}
					if id, ok := spec.Type.(*ast.Ident); ok {
						last = id.Name
					} else if len(spec.Values) > 0 {
						last = ""
					}
					for i, n := range spec.Names {
						s.comments[n.Name] = flat(spec.Doc.Text() + " " + spec.Comment.Text())
						s.consts[last] = append(s.consts[last], n.Name)
						if i < len(spec.Values) {
							if lit, ok := spec.Values[i].(*ast.BasicLit); ok {
								s.values[n.Name] = lit.Value
							}
						}
					}
				}
			}
		}
	}
	return s
}

func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

// cell is text for a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func typeTable() string {
	var b strings.Builder
	b.WriteString("| number | message |\n|---|---|\n")
	for _, t := range types() {
		fmt.Fprintf(&b, "| %d | %s |\n", t, nameOf(t))
	}
	return b.String()
}

func errorTable(src source) string {
	var b strings.Builder
	b.WriteString("| number | name | retryable | outcome | meaning |\n|---|---|---|---|---|\n")
	sentinel := map[Code]*Error{}
	for _, e := range sentinels {
		sentinel[e.Code] = e
	}
	for i, name := range src.consts["Code"] {
		code := Code(i + 1)
		e := sentinel[code]
		if e == nil || src.values[name] != fmt.Sprint(i+1) {
			panic(name + " has no sentinel, or its number is out of order")
		}
		retry, outcome := "no", "refused"
		if e.Retryable() {
			retry = "yes"
		}
		if e.Unknown() {
			outcome = "unknown"
		}
		why := src.comments[name]
		if _, after, ok := strings.Cut(why, ": "); ok {
			why = after
		}
		if why == "" {
			why = e.Text
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", code, strings.TrimPrefix(name, "Code"), retry, outcome, cell(why))
	}
	return b.String()
}

func fieldTable(b *strings.Builder, src source, t reflect.Type, p *plan) {
	fmt.Fprintf(b, "%s\n\n", src.comments[t.Name()])
	if len(p.fields) == 0 {
		b.WriteString("No fields.\n\n")
		return
	}
	b.WriteString("| index | field | type | |\n|---|---|---|---|\n")
	for i, f := range p.fields {
		field := t.Field(f.index)
		fmt.Fprintf(b, "| %d | %s | %s | %s |\n", i, field.Name, typeName(field.Type), cell(src.comments[t.Name()+"."+field.Name]))
	}
	b.WriteString("\n")
}

// typeName is how a field's type is called in the document.
func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bin"
		}
		if t == runsType {
			return "Runs"
		}
		return "list of " + typeName(t.Elem())
	case reflect.Struct:
		return t.Name()
	case reflect.String:
		return "str"
	}
	kind := strings.Replace(t.Kind().String(), "uint", "u", 1)
	if t.Name() != t.Kind().String() {
		return t.Name() + " (" + kind + ")"
	}
	return kind
}

func messageTables(src source, from, to Type) string {
	var b strings.Builder
	for _, t := range types() {
		if t >= from && t <= to {
			fmt.Fprintf(&b, "#### %d %s\n\n", t, nameOf(t))
			fieldTable(&b, src, reflect.TypeOf(makers[t]()).Elem(), plans[t])
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// structTables are the structs that messages are made of, in order of their use.
func structTables(src source) string {
	var b strings.Builder
	seen := map[reflect.Type]bool{}
	var visit func(t reflect.Type)
	visit = func(t reflect.Type) {
		for t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		p := makePlan(t, map[reflect.Type]*plan{})
		fmt.Fprintf(&b, "#### %s\n\n", t.Name())
		fieldTable(&b, src, t, p)
		for _, f := range p.fields {
			visit(t.Field(f.index).Type)
		}
	}
	for _, typ := range types() {
		t := reflect.TypeOf(makers[typ]()).Elem()
		for _, f := range plans[typ].fields {
			visit(t.Field(f.index).Type)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// valueTable are the small numbers with names.
func valueTable(src source) string {
	var b strings.Builder
	for _, of := range []string{"Cause", "Settling", "Reason"} {
		fmt.Fprintf(&b, "#### %s\n\n%s\n\n| value | name | |\n|---|---|---|\n", of, src.comments[of])
		for i, name := range src.consts[of] {
			fmt.Fprintf(&b, "| %d | %s | %s |\n", i, name, cell(src.comments[name]))
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// exampleTable are bytes to test another implementation with.
func exampleTable() string {
	var b strings.Builder
	records, count := sampleRecords()
	fmt.Fprintf(&b, "%d records, as in a batch; their xxhash64 is `%016x`:\n\n%s\n", count, Checksum(records), hexBlock(records))
	batch := sampleBatch()
	fmt.Fprintf(&b, "A batch of them, with its header:\n\n%s\n", hexBlock(batch.Append(nil)))
	p := Position{Partition: 0x1122334455667788, Lane: Lane{0xa1, 0x100000001}, Offset: 300}
	fmt.Fprintf(&b, "The message ID of partition 1122334455667788, lane node 00000000000000a1, epoch 100000001, offset 300 (decimal):\n\n```\n%s\n```\n", p)
	for _, msg := range []Message{
		&Hello{Version: 1, MinVersion: 1, Name: "example"},
		&Enqueue{Partition: 0x1122334455667788, Queue: "photos", Producer: 0xbeef, Sequence: 1, Count: count, Flags: FlagDelayed | FlagKeyed,
			Checksum: Checksum(records), Timeout: 5000, Records: records},
		&Subscribe{Sub: 1, Consumer: 0xc0ffee, Queue: "photos", Group: "default", Credit: 100},
		&Settle{Queue: "photos", Items: []SettleItem{{
			Receipt: Receipt{Partition: 0x1122334455667788, Group: 2, Lane: Lane{0xa1, 0x100000001}, Run: Span(300, 302),
				Term: Term{3, 0xa1}, Attempt: 1, Producer: 0xbeef, Sequence: 1, MAC: 0x0123456789abcdef},
			Runs: Runs{Span(300, 301)}, Kind: SettleAck,
		}}},
	} {
		header, err := AppendHeader(nil, msg)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "\nHeader of %s (%d), `%+v`:\n\n%s", nameOf(msg.Type()), msg.Type(), reflect.ValueOf(msg).Elem().Interface(), hexBlock(header))
	}
	return b.String()
}

func hexBlock(p []byte) string {
	var b strings.Builder
	b.WriteString("```\n")
	for len(p) > 0 {
		n := min(32, len(p))
		fmt.Fprintf(&b, "%x\n", p[:n])
		p = p[n:]
	}
	b.WriteString("```\n")
	return b.String()
}
