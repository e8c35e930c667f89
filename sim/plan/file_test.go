package plan

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteReads(t *testing.T) {
	for seed := range uint64(50) {
		p := Generate(seed, GenerateOptions{})
		if err := p.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var first, second bytes.Buffer
		if err := p.Write(&first); err != nil {
			t.Fatal(err)
		}
		q, err := Read(bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, first.Bytes())
		}
		if err := q.Write(&second); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("seed %d: written, read and written again differs:\n%s\n%s", seed, first.Bytes(), second.Bytes())
		}
	}
}

func TestReadRefuses(t *testing.T) {
	const mesh = `"version":1,"mesh":{"nodes":[{"name":"a"},{"name":"b"}]},"queues":[{"name":"q"}],"producers":[{"name":"p","queue":"q"}]`
	for _, c := range []struct{ text, want string }{
		{``, "line 1: this is not a plan"},
		{"{\n\"version\": 1,\n\"fualts\": []}", `unknown field "fualts"`},
		{`{"version":1} {}`, "more after the plan"},
		{`{"version":2}`, "version is 2"},
		{`{"version":1}`, "number of nodes is 0"},
		{"{\n\n\"length\": 5}", "line 3: this is not a plan"},
		{`{` + mesh + `,"length":"-1s"}`, "length is -1s"},
		{`{` + mesh + `,"faults":[{"kind":"meteor"}]}`, `no kind of fault "meteor"`},
		{`{` + mesh + `,"faults":[{"kind":"crash","on":["z"]}]}`, `no node or client "z"`},
		{`{` + mesh + `,"faults":[{"kind":"crash","on":["p"]}]}`, "p is a client, a node is needed"},
		{`{` + mesh + `,"faults":[{"kind":"crash"}]}`, "on: is missing"},
		{`{` + mesh + `,"faults":[{"kind":"cut","on":["a"]}]}`, "to: is missing"},
		{`{` + mesh + `,"faults":[{"kind":"crash","on":["a","a"]}]}`, "a is there twice"},
		{`{` + mesh + `,"faults":[{"kind":"crash","on":["a"],"to":["b"]}]}`, "names nobody there"},
		{`{` + mesh + `,"faults":[{"kind":"slow-link","on":["a"],"to":["b"]}]}`, "by is missing"},
		{`{` + mesh + `,"faults":[{"kind":"loss","on":["a"],"to":["b"],"share":2}]}`, "share is 2"},
		{`{` + mesh + `,"faults":[{"kind":"bridge","on":["a","b"]}]}`, "at least 3 nodes"},
		{`{` + mesh + `,"consumers":[{"name":"c","queue":"q","group":"x"}]}`, "no group x"},
		{`{` + mesh + `,"consumers":[{"name":"a","queue":"q"}]}`, "the name a is there twice"},
		{`{` + mesh + `,"consumers":[{"name":"c","queue":"nope"}]}`, `no queue "nope"`},
		{`{"version":1,"mesh":{"nodes":[{"name":"a","joins":"1s"}]}}`, "the first node founds"},
		{`{"version":1,"mesh":{"nodes":[{"name":"a"}]},"queues":[{"name":"q","replicas":9}]}`, "replicas is 9"},
	} {
		_, err := Read(strings.NewReader(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}

// All that is wrong is said at once.
func TestValidateSaysAll(t *testing.T) {
	p := &Plan{Version: 7, Length: -1, Faults: []Fault{{Kind: "meteor"}, {Kind: Crash}}}
	if n := strings.Count(p.Validate().Error(), "\n") + 1; n != 5 {
		t.Errorf("%d lines, want 5: %v", n, p.Validate())
	}
}

func FuzzRead(f *testing.F) {
	err := fs.WalkDir(scenarioFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".json" {
			text, err := scenarioFiles.ReadFile(path)
			if err != nil {
				return err
			}
			f.Add(text)
		}
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := p.Write(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(&out); err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
	})
}
