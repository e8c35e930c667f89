package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// Tests need a meshq to run: that of MESHQ_BINARY, else it is built once.
var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func meshqBinary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.path = os.Getenv("MESHQ_BINARY"); built.path != "" {
			return
		}
		if built.dir, built.err = os.MkdirTemp("", "meshq-built-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "meshq")
		if runtime.GOOS == "windows" {
			built.path += ".exe"
		}
		out, err := exec.Command("go", "build", "-o", built.path, "github.com/meshq/meshq/cmd/meshq").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build meshq: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func TestMain(m *testing.M) {
	code := 0
	if job := os.Getenv("MESHQ_CHAOS_TEST_JOB"); job != "" {
		code = jobs[job]()
	} else {
		code = m.Run()
	}
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// jobs are what this binary does as a child of a test.
var jobs = map[string]func() int{}

// newMesh makes a mesh, or skips the test where the machine lacks something, and closes it
// at the end of the test.
func newMesh(t testing.TB, c Config) *Mesh {
	t.Helper()
	c.Binary = "meshq" // grow knows a real one
	m, err := New(c)
	var missing *MissingError
	if errors.As(err, &missing) {
		t.Skipf("%v", missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, line := range m.Complaints() {
			t.Error(line)
		}
		if t.Failed() {
			for _, n := range m.Nodes() {
				t.Logf("the last line of %s: %s", n.Name(), lastLine(n.Log()))
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(m.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", m.Dir(), err)
		}
	})
	return m
}

// patience is for what a busy machine does in seconds.
func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// grow adds and starts nodes until there are n, and waits until all are active.
func grow(t testing.TB, m *Mesh, n int) {
	t.Helper()
	m.config.Binary = meshqBinary(t)
	ctx := patience(t)
	for i := len(m.Nodes()); i < n; i++ {
		node, err := m.Add(plan.Node{Name: fmt.Sprintf("n%d", i+1)})
		if err == nil {
			err = node.Start()
		}
		if err == nil {
			err = node.WaitReady(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.WaitActive(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// must stops the test at an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
