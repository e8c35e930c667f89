//go:build mesh && linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// What people type wrong: each is answered by one line that says what and one that says
// what to do, and by an exit code.
func TestMeshBadInput(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "jobs", "--max-message-bytes", "1KiB")
	closed := m.closedPort()
	for _, test := range []struct {
		name  string
		args  []string
		code  int
		words []string
	}{
		{"unknown command", []string{"sned", "jobs", "x"}, exitUsage, []string{"sned", "hint"}},
		{"unknown subcommand", []string{"queue", "craete", "x"}, exitUsage, []string{"craete"}},
		{"unknown flag", []string{"send", "jobs", "x", "--colour"}, exitUsage, []string{"--colour", "hint"}},
		{"bad value", []string{"send", "jobs", "x", "--delay", "soon"}, exitUsage, []string{"delay"}},
		{"too few arguments", []string{"send"}, exitUsage, []string{"QUEUE"}},
		{"bad queue name", []string{"queue", "create", "no spaces"}, exitUsage, []string{"no spaces"}},
		{"bad setting", []string{"queue", "create", "q", "--replicas", "0"}, exitUsage, []string{"replicas"}},
		{"bad server", []string{"queue", "list", "--server", "nowhere"}, exitUsage, []string{"nowhere", "host:port"}},
		{"unreachable mesh", []string{"queue", "list", "--server", closed, "--timeout", "2s"}, exitFailed, []string{closed, "hint", "is a mesh running"}},
		{"unknown queue, send", []string{"send", "jops", "x", "--timeout", "3s"}, exitFailed, []string{"jops", "hint", "queue"}},
		{"unknown queue, receive", []string{"receive", "nothing", "--wait", "1s"}, exitFailed, []string{"nothing", "hint"}},
		{"unknown queue, show", []string{"queue", "show", "nothing"}, exitFailed, []string{"nothing", "hint"}},
		{"unknown group", []string{"receive", "jobs", "--group", "nobody", "--wait", "1s"}, exitFailed, []string{"nobody"}},
		{"unknown node", []string{"node", "show", "n9"}, exitFailed, []string{"hint", "n1"}},
		{"message over the limit", []string{"send", "jobs", strings.Repeat("x", 2000)}, exitFailed, []string{"1024", "hint"}},
		{"other settings", []string{"queue", "create", "jobs", "--lease", "7s"}, exitFailed, []string{"exists", "hint"}},
		{"update: partitions", []string{"queue", "update", "jobs", "--partitions", "1025"}, exitUsage, []string{"partitions is 1025, allowed are 1 to 1024"}},
		{"update: no partitions", []string{"queue", "update", "jobs", "--partitions", "0"}, exitUsage, []string{"partitions is 0, allowed are 1 to 1024"}},
		{"update: write quorum", []string{"queue", "update", "jobs", "--write-quorum", "8"}, exitUsage, []string{"write-quorum is 8, allowed are 1 to 7"}},
		{"update: write quorum of this queue", []string{"queue", "update", "jobs", "--write-quorum", "4"}, exitFailed, []string{"write_quorum is 4, allowed are 1 to 3"}},
		{"update: lease", []string{"queue", "update", "jobs", "--lease", "13h"}, exitUsage, []string{"lease is 13h", "allowed are 1s to 12h"}},
		{"update: message bytes", []string{"queue", "update", "jobs", "--max-message-bytes", "5MiB"}, exitUsage, []string{"max-message-bytes", "allowed are 1 to 4194304"}},
		{"update: backoff", []string{"queue", "update", "jobs", "--backoff-min", "25h"}, exitUsage, []string{"backoff-min is 25h", "allowed are 1ms to 24h"}},
		{"update: backoff of this queue", []string{"queue", "update", "jobs", "--backoff-max", "1ms"}, exitFailed, []string{"backoff_max is 1ms, allowed are 1s to 24h"}},
		{"update: nothing", []string{"queue", "update", "jobs"}, exitUsage, []string{"hint"}},
		{"update: unknown queue", []string{"queue", "update", "jops", "--lease", "1m"}, exitFailed, []string{"jops", "hint"}},
		{"pause: unknown group", []string{"queue", "pause", "jobs", "--group", "nobody"}, exitFailed, []string{"nobody", "hint"}},
		{"pause: no time", []string{"queue", "pause", "jobs", "--for", "0s"}, exitUsage, []string{"--for is 0s"}},
		{"missing file", []string{"send", "jobs", "--file", "/does/not/exist"}, exitFailed, []string{"/does/not/exist"}},
		{"empty queue", []string{"receive", "jobs", "--wait", "500ms"}, exitNothing, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			from := time.Now()
			code, out, errs := runCommand(t, m.command(test.args...))
			if code != test.code || out != "" {
				t.Errorf("exit code %d, want %d; printed %q", code, test.code, out)
			}
			for _, w := range test.words {
				if !strings.Contains(errs, w) {
					t.Errorf("no %q in: %s", w, errs)
				}
			}
			if took := time.Since(from); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			if n := strings.Count(errs, "\n"); n > 3 {
				t.Errorf("%d lines: %s", n, errs)
			}
			t.Logf("exit %d: %s", code, strings.TrimSpace(errs))
		})
	}
	if out := m.must("queue", "show", "jobs"); !strings.Contains(out, "1 partition, 3 replicas, write quorum 2, lease 30s, messages up to 1KiB") {
		t.Errorf("changed: %s", out)
	}
	if out := m.must("send", "jobs", "all is well"); !strings.Contains(out, "confirmed") {
		t.Errorf("printed %q", out)
	}
}

// closedPort is an address that nothing listens on.
func (m *testMesh) closedPort() string {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Nodes that cannot start say why and end with 1.
func TestMeshBadStart(t *testing.T) {
	m := newMesh(t, 2)
	free := func() string { return m.closedPort() }
	for _, test := range []struct {
		name  string
		args  []string
		code  int
		words []string
	}{
		{"port in use", []string{"--data", m.dir + "/x", "--listen", m.nodes[0].listen, "--gossip", free(), "--http", free()}, exitFailed,
			[]string{"address already in use", m.nodes[0].listen, "--listen"}},
		{"gossip port in use", []string{"--data", m.dir + "/x", "--listen", free(), "--gossip", m.nodes[0].gossip, "--http", free()}, exitFailed,
			[]string{"address already in use", m.nodes[0].gossip, "--gossip"}},
		{"http port in use", []string{"--data", m.dir + "/x", "--listen", free(), "--gossip", free(), "--http", m.nodes[0].http}, exitFailed,
			[]string{"address already in use", m.nodes[0].http, "--http"}},
		{"data in use", []string{"--data", m.nodes[0].data, "--listen", free(), "--gossip", free(), "--http", free()}, exitFailed,
			[]string{m.nodes[0].data, "in use", "--data"}},
		{"data is a file", []string{"--data", m.nodes[0].log, "--listen", free(), "--gossip", free(), "--http", free()}, exitUsage,
			[]string{m.nodes[0].log, "not a directory"}},
		{"bad address", []string{"--data", m.dir + "/x", "--listen", "here"}, exitUsage, []string{"here"}},
		{"bad flag", []string{"--fast"}, exitUsage, []string{"--fast"}},
		{"missing config", []string{"--config", m.dir + "/none.yml"}, exitUsage, []string{"none.yml"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errs := runCommand(t, m.command(append([]string{"serve", "--log-level", "error"}, test.args...)...))
			if code != test.code || out != "" {
				t.Errorf("exit code %d, want %d; printed %q", code, test.code, out)
			}
			for _, w := range test.words {
				if !strings.Contains(errs, w) {
					t.Errorf("no %q in: %s", w, errs)
				}
			}
			t.Logf("exit %d: %s", code, strings.TrimSpace(errs))
		})
	}
	m.waitActive(2)
}

// Bytes that are no frames, halves of frames, and frames that lie about their length:
// the connection is closed, the node goes on, and its memory stays what it was.
func TestMeshGarbageOnThePort(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "jobs")
	owner, _ := m.waitOwner("jobs")
	addr := m.nodes[owner].listen
	mesh := m.dial()
	send := func(body string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := mesh.Queue("jobs").Send(ctx, client.Message{Body: []byte(body)}); err != nil {
			t.Errorf("send %s: %v", body, err)
		}
	}
	send("before")
	greeting := helloOf(t, m, addr)
	empty := m.anonymousBytes(owner)
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	huge := binary.BigEndian.AppendUint32(nil, 0xffffffff)
	kinds := []struct {
		name string
		data []byte
	}{
		{"noise", nil},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: meshq\r\n\r\n")},
		{"a length of 4 GiB", append(huge, noise(100)...)},
		{"half a hello", greeting[:len(greeting)/2]},
		{"a hello, then noise", nil},
		{"a hello, then a length of 4 GiB", append(append([]byte(nil), greeting...), append(huge, noise(64)...)...)},
		{"a hello twice", append(append([]byte(nil), greeting...), greeting...)},
		{"a hello with a byte flipped", nil},
		{"nothing", []byte{}},
	}
	const each = 30
	var held []net.Conn // half-open ones stay so
	closed := map[string]int{}
	for _, kind := range kinds {
		for i := range each {
			data := kind.data
			switch kind.name {
			case "noise":
				data = noise(1 + random.IntN(64<<10))
			case "a hello, then noise":
				data = append(append([]byte(nil), greeting...), noise(1+random.IntN(4096))...)
			case "a hello with a byte flipped":
				data = append([]byte(nil), greeting...)
				data[random.IntN(len(data))] ^= byte(1 + random.IntN(255))
			}
			c, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err != nil {
				t.Fatalf("%s: the node does not take connections any more: %v", kind.name, err)
			}
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = c.Write(data)
			if i%10 == 0 { // some are left open, with half of something
				held = append(held, c)
				continue
			}
			_ = c.(*net.TCPConn).CloseWrite()
			if n, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, net.ErrClosed) || n >= 0 && !isTimeout(err) {
				closed[kind.name]++
			}
			_ = c.Close()
		}
	}
	for _, kind := range kinds {
		if closed[kind.name] != each-each/10 {
			t.Errorf("%s: %d of %d connections were ended by the node", kind.name, closed[kind.name], each-each/10)
		}
	}
	// Many that send only half stay connected at the same time.
	for range 200 {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(greeting[:len(greeting)-1])
		held = append(held, c)
	}
	send("during")
	full := m.anonymousBytes(owner)
	for _, c := range held {
		_ = c.Close()
	}
	send("after")
	t.Logf("%d bad connections and %d half open ones: memory of the node %s, before %s", each*len(kinds), len(held), mib(full), mib(empty))
	if full > empty+100<<20 {
		t.Errorf("memory grew from %s to %s", mib(empty), mib(full))
	}
	got := strings.Fields(m.must("receive", "jobs", "--max", "3"))
	if fmt.Sprint(got) != "[before during after]" {
		t.Errorf("received %v", got)
	}
	if now, _ := m.waitOwner("jobs"); now != owner {
		t.Errorf("the owner was %s and is %s", m.nodes[owner].name, m.nodes[now].name)
	}
	m.waitActive(3)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// helloOf is what a client says first: taken from a client that talks to a listener of
// the test.
func helloOf(t *testing.T, m *testMesh, addr string) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := make(chan []byte, 1)
	go func() {
		defer close(taken)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		var length [4]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		buf := make([]byte, 64<<10)
		n, _ := c.Read(buf)
		taken <- append(length[:], buf[:n]...)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if mesh, err := client.Dial(ctx, l.Addr().String()); err == nil {
		_ = mesh.Close()
	}
	hello := <-taken
	if len(hello) < 16 {
		t.Fatalf("no hello: %x", hello)
	}
	return hello
}
