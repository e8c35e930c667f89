package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var updateScripts = flag.Bool("update-scripts", false, "write what commands print into the golden files of testdata/script")

// TestMain makes "meshq" a command of the scripts: this test binary, running main.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshq": func() { os.Exit(mainCode()) }})
}

// The scripts under testdata/script need no mesh, those under testdata/mesh run
// one: see startMesh. Each script has its own directory, $WORK.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds:                scriptCommands,
	})
}

func TestScriptsOnMesh(t *testing.T) {
	files, err := filepath.Glob("testdata/mesh/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		// One after the other: each has a mesh of its own, and a machine of two cores.
		t.Run("", func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				UpdateScripts:       *updateScripts,
				RequireExplicitExec: true,
				Setup:               setupScript,
				Cmds:                scriptCommands,
			})
		})
	}
}

func setupScript(env *testscript.Env) error {
	env.Setenv("HOST", "a-host")
	return nil
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"mesh":   meshCommand,
	"exit":   exitCommand,
	"lines":  linesCommand,
	"free":   freeCommand,
	"occupy": occupyCommand,
	"count":  countCommand,
}

// exitCommand runs a program that must end with an exit code:
//
//	exit CODE PROGRAM [ARGS...]
func exitCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM [ARGS...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if ok := asExit(err, &exit); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func asExit(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	if ok {
		*target = e
	}
	return ok
}

// linesCommand writes a file of numbered lines:
//
//	lines FILE COUNT [PREFIX]
func linesCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: lines FILE COUNT [PREFIX]")
	}
	n, prefix := 0, "line"
	if _, err := fmt.Sscan(args[1], &n); err != nil {
		ts.Fatalf("lines: %v", err)
	}
	if len(args) > 2 {
		prefix = args[2]
	}
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s %d\n", prefix, i+1)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o600))
}

// countCommand compares the number of lines of a file (or stdout) that contain a
// text:
//
//	count COUNT FILE [TEXT]
func countCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: count COUNT FILE [TEXT]")
	}
	n := 0
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		if len(args) < 3 || strings.Contains(line, args[2]) {
			n++
		}
	}
	if fmt.Sprint(n) != args[0] {
		ts.Fatalf("%d lines, want %s", n, args[0])
	}
}

// freeCommand sets variables to addresses of this machine that nothing listens on:
//
//	free NAME...
func freeCommand(ts *testscript.TestScript, neg bool, names []string) {
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // after all are known, so that they differ
		ts.Setenv(name, l.Addr().String())
	}
}

// occupyCommand listens on a free port until the script ends, and sets a variable
// to its address:
//
//	occupy NAME
func occupyCommand(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// meshCommand runs a mesh as a process of its own ("meshq dev" on free ports):
//
//	mesh start [NODES [DIR]]   sets MESHQ_SERVERS to its first node and NODE1.. to each;
//	                           DIR - is a temporary directory under tmp
//	                           with the same ports as before, unless they are to move:
//	mesh move                  takes other ports at the next start
//	mesh stop                  SIGTERM; it must end with 0
//	mesh kill                  SIGKILL
func meshCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: mesh start [NODES [DIR]] | stop | kill")
	}
	running.Lock()
	m := running.of[ts]
	running.Unlock()
	switch args[0] {
	case "start":
		nodes, dir := "3", "mesh-data"
		if len(args) > 1 {
			nodes = args[1]
		}
		if len(args) > 2 {
			dir = args[2]
		}
		if dir != "-" {
			dir = ts.MkAbs(dir)
		}
		port := 0
		if m != nil {
			port = m.port
		}
		m, err := startMesh(nodes, dir, ts.MkAbs("tmp"), port)
		ts.Check(err)
		running.Lock()
		running.of[ts] = m
		running.Unlock()
		ts.Defer(func() { _ = m.end(os.Kill) })
		ts.Setenv("MESHQ_SERVERS", m.addrs[0])
		for i, a := range m.addrs {
			ts.Setenv(fmt.Sprintf("NODE%d", i+1), a)
		}
	case "move":
		m.port = 0
	case "stop":
		ts.Check(m.end(syscall.SIGTERM))
	case "kill":
		_ = m.end(os.Kill)
	default:
		ts.Fatalf("mesh %s: start, stop or kill is wanted", args[0])
	}
}

var running = struct {
	sync.Mutex
	of map[*testscript.TestScript]*meshProcess
}{of: map[*testscript.TestScript]*meshProcess{}}

// meshProcess is a mesh in a process of its own.
type meshProcess struct {
	cmd   *exec.Cmd
	addrs []string
	port  int // of the first node
	once  sync.Once
	err   error
	log   *tail
}

// startMesh returns when the mesh says that it is ready.
// Port 0 chooses ports that are free now and that the system gives to nobody else.
func startMesh(nodes, dir, tmp string, port int) (*meshProcess, error) {
	self, err := exec.LookPath("meshq") // testscript puts it into PATH
	if err != nil {
		return nil, err
	}
	m := &meshProcess{log: &tail{}, port: port}
	if port == 0 {
		if m.port, err = freePorts(); err != nil {
			return nil, err
		}
	}
	m.cmd = exec.Command(self, "dev", "--port", fmt.Sprint(m.port), "--nodes", nodes, "--log-level", "info", "--log-format", "text")
	if dir != "-" {
		m.cmd.Args = append(m.cmd.Args, "--data", dir)
	}
	m.cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	m.cmd.Stderr = m.log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devPatience+10*time.Second)
	stop := context.AfterFunc(ctx, func() { _ = m.cmd.Process.Kill() })
	defer cancel()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) == 4 && strings.HasPrefix(f[0], "n") {
			m.addrs = append(m.addrs, f[1])
		}
		if strings.Contains(lines.Text(), "Ctrl-C stops it") {
			if !stop() {
				break
			}
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return m, nil
		}
	}
	_ = m.cmd.Process.Kill()
	return nil, fmt.Errorf("the mesh did not start: %v: %s", m.cmd.Wait(), m.log)
}

// freePorts finds a base port for a mesh of up to five nodes below the range from
// which the system takes ports for connections, so that a mesh that is started again
// finds its ports free.
func freePorts() (int, error) {
next:
	for range 100 {
		base := 10_000 + rand.IntN(200)*100
		for i := range 5 {
			for _, p := range []int{0, 1, 80} {
				l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+i*devPortStep+p))
				if err != nil {
					continue next
				}
				_ = l.Close()
			}
		}
		return base, nil
	}
	return 0, errors.New("no free ports")
}

// end sends a signal and waits; called again it says the same.
func (m *meshProcess) end(sig os.Signal) error {
	m.once.Do(func() {
		_ = m.cmd.Process.Signal(sig)
		timer := time.AfterFunc(30*time.Second, func() { _ = m.cmd.Process.Kill() })
		defer timer.Stop()
		if err := m.cmd.Wait(); err != nil {
			m.err = fmt.Errorf("mesh: %w: %s", err, m.log)
		}
		if text := m.log.String(); strings.Contains(text, "panic:") || strings.Contains(text, "DATA RACE") {
			m.err = fmt.Errorf("mesh: %s", text)
		}
	})
	return m.err
}

// tail keeps the last 64 KiB that were written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 64<<10; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
