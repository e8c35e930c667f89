//go:build mesh && linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// The tests of these files run real nodes in processes of their own ("make test-mesh").
// Times are printed, not asserted: only bounds are that a slow machine keeps too.
var (
	keepData   = flag.Bool("mesh.keep", false, "keep the data directories and logs of a test that failed")
	awayFor    = flag.Duration("mesh.away", 10*time.Second, "how long a node is away in TestMeshNodeAway")
	downFor    = flag.Duration("mesh.down", 5*time.Second, "how long a killed owner is down in TestMeshOwnerKilled")
	ownerKills = flag.Int("mesh.kills", 5, "how often TestMeshOwnerKilled kills the owner")
	backlog    = flag.Int("mesh.backlog", 200_000, "messages of 256 B that wait in TestMeshBacklog")
	serveFlags = flag.String("mesh.serve", "", "more flags for every \"meshq serve\", separated by spaces")
)

// Bounds that hold on a slow, busy machine.
const (
	startPatience   = 40 * time.Second // until a node that was started serves
	settlePatience  = 60 * time.Second // until replicas are equal, hints are gone, all is delivered
	commandPatience = 90 * time.Second // for one client command
	pollEvery       = 50 * time.Millisecond
)

// testMesh is some nodes on this machine, each a process.
type testMesh struct {
	t     *testing.T
	dir   string
	nodes []*testNode
}

// testNode is one node: its addresses and data outlive its process.
type testNode struct {
	name, data, log      string
	listen, gossip, http string
	args                 []string // more flags of serve

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended and been waited for
}

// newMesh founds a mesh of n nodes (at most 5) and waits until all are active.
// dirs are the data directories; those that are missing are made.
func newMesh(t *testing.T, n int, dirs ...string) *testMesh {
	t.Helper()
	m := prepareMesh(t, n, dirs...)
	for i := range m.nodes {
		m.start(i)
		m.waitReady(i)
	}
	m.waitActive(n)
	return m
}

// prepareMesh is newMesh without starting a node.
func prepareMesh(t *testing.T, n int, dirs ...string) *testMesh {
	t.Helper()
	dir, err := os.MkdirTemp("", "meshq-mesh-")
	if err != nil {
		t.Fatal(err)
	}
	base, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	m := &testMesh{t: t, dir: dir}
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		addr := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", base+i*devPortStep+port) }
		node := &testNode{
			name: name, data: filepath.Join(dir, name), log: filepath.Join(dir, name+".log"),
			listen: addr(0), gossip: addr(1), http: addr(80),
		}
		if i < len(dirs) {
			node.data = dirs[i]
		}
		node.args = append(node.args, strings.Fields(*serveFlags)...)
		m.nodes = append(m.nodes, node)
	}
	t.Cleanup(m.end)
	return m
}

// in is the same mesh in a subtest.
func (m *testMesh) in(t *testing.T) *testMesh {
	same := *m
	same.t = t
	return &same
}

// end kills what runs, and looks for what no node may ever write.
func (m *testMesh) end() {
	m.kill(m.all()...)
	for _, n := range m.nodes {
		text, _ := os.ReadFile(n.log)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "panic:") || strings.Contains(line, "DATA RACE") || strings.HasPrefix(line, "fatal error:") {
				m.t.Errorf("%s: %s", n.name, strings.TrimSpace(line))
			}
		}
	}
	if m.t.Failed() {
		for _, n := range m.nodes {
			m.t.Logf("last lines of %s:\n%s", n.name, m.logTail(n, 40))
		}
		if *keepData {
			m.t.Logf("kept: %s", m.dir)
			return
		}
	}
	_ = os.RemoveAll(m.dir)
}

func (m *testMesh) logTail(n *testNode, lines int) string {
	text, _ := os.ReadFile(n.log)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// all are the numbers of all nodes.
func (m *testMesh) all() []int {
	is := make([]int, len(m.nodes))
	for i := range is {
		is[i] = i
	}
	return is
}

// but are the numbers of all nodes but these.
func (m *testMesh) but(these ...int) []int {
	var is []int
next:
	for i := range m.nodes {
		for _, not := range these {
			if i == not {
				continue next
			}
		}
		is = append(is, i)
	}
	return is
}

// index is the number of the node of that name.
func (m *testMesh) index(name string) int {
	m.t.Helper()
	for i, n := range m.nodes {
		if n.name == name {
			return i
		}
	}
	m.t.Fatalf("there is no node %q", name)
	return -1
}

// servers are the mesh addresses of nodes; of all when none is named.
func (m *testMesh) servers(is ...int) string {
	if len(is) == 0 {
		is = m.all()
	}
	var addrs []string
	for _, i := range is {
		addrs = append(addrs, m.nodes[i].listen)
	}
	return strings.Join(addrs, ",")
}

// start starts the processes of nodes that are down.
func (m *testMesh) start(is ...int) {
	m.t.Helper()
	for _, i := range is {
		n := m.nodes[i]
		if n.running() {
			m.t.Fatalf("%s runs already", n.name)
		}
		args := []string{
			"serve", "--name", n.name, "--data", n.data, "--listen", n.listen, "--gossip", n.gossip, "--http", n.http,
			"--log-format", "text", "--log-level", "info",
		}
		if i > 0 {
			args = append(args, "--join", m.nodes[0].listen)
		}
		cmd := meshqCommand(append(args, n.args...)...)
		log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			m.t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			m.t.Fatal(err)
		}
		_ = log.Close()
		exited := make(chan struct{})
		go func() { _ = cmd.Wait(); close(exited) }()
		n.cmd, n.exited = cmd, exited
	}
}

func (n *testNode) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// kill sends SIGKILL to all of them at once and waits for their end.
func (m *testMesh) kill(is ...int) {
	var wait []*testNode
	for _, i := range is {
		if n := m.nodes[i]; n.running() {
			_ = n.cmd.Process.Kill()
			wait = append(wait, n)
		}
	}
	for _, n := range wait {
		<-n.exited
	}
}

// signal sends a signal.
func (m *testMesh) signal(i int, sig os.Signal) {
	m.t.Helper()
	if err := m.nodes[i].cmd.Process.Signal(sig); err != nil {
		m.t.Fatalf("%s: %v", m.nodes[i].name, err)
	}
}

// stop sends SIGTERM and returns the exit code.
func (m *testMesh) stop(i int) int {
	m.t.Helper()
	m.signal(i, syscall.SIGTERM)
	return m.exitCode(i)
}

// exitCode waits for a node to end by itself.
func (m *testMesh) exitCode(i int) int {
	m.t.Helper()
	n := m.nodes[i]
	select {
	case <-n.exited:
	case <-time.After(startPatience):
		m.t.Errorf("%s has not ended after %v", n.name, startPatience)
		m.kill(i)
	}
	return n.cmd.ProcessState.ExitCode()
}

// restart starts nodes and waits until all of the mesh are active.
func (m *testMesh) restart(is ...int) {
	m.t.Helper()
	m.start(is...)
	for _, i := range is {
		m.waitReady(i)
	}
	running := 0
	for _, n := range m.nodes {
		if n.running() {
			running++
		}
	}
	m.waitActive(running)
}

// waitReady waits until a node says that it takes traffic.
func (m *testMesh) waitReady(i int) {
	m.t.Helper()
	n := m.nodes[i]
	m.eventually(startPatience, n.name+" is ready", func() error {
		select {
		case <-n.exited:
			m.t.Fatalf("%s ended: %v:\n%s", n.name, n.cmd.ProcessState, m.logTail(n, 20))
		default:
		}
		answer, err := quickly.Get("http://" + n.http + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", answer.Status, body)
		}
		return nil
	})
}

var quickly = &http.Client{Timeout: 3 * time.Second}

// waitActive waits until "meshq node list" shows so many nodes active.
func (m *testMesh) waitActive(want int) {
	m.t.Helper()
	m.eventually(startPatience, fmt.Sprintf("%d nodes are active", want), func() error {
		code, out, errs := m.meshq("node", "list", "--json", "--timeout", "5s")
		if code != exitDone {
			return errors.New(errs)
		}
		if n := strings.Count(out, `"state":"active"`); n != want {
			return fmt.Errorf("%d are: %s", n, out)
		}
		return nil
	})
}

// eventually asks again and again until there is no error, and fails the test with
// the last one when the time is over.
func (m *testMesh) eventually(within time.Duration, what string, ask func() error) {
	m.t.Helper()
	if err := poll(within, ask); err != nil {
		m.t.Fatalf("%s: not within %v: %v", what, within, err)
	}
}

func poll(within time.Duration, ask func() error) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

// meshqCommand is a command line of this test binary run as meshq, which dies with
// the test.
func meshqCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("meshq", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// command is a client command that may ask all nodes.
func (m *testMesh) command(args ...string) *exec.Cmd {
	cmd := meshqCommand(args...)
	cmd.Env = append(os.Environ(), "MESHQ_SERVERS="+m.servers())
	return cmd
}

// meshq runs a client command to its end.
func (m *testMesh) meshq(args ...string) (code int, stdout, stderr string) {
	m.t.Helper()
	return runCommand(m.t, m.command(args...))
}

// runCommand runs a command to its end, for commandPatience at most.
func runCommand(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(commandPatience, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	if !late.Stop() {
		t.Errorf("%v has not ended after %v: %s", cmd.Args, commandPatience, errs.String())
	}
	if text := errs.String(); strings.Contains(text, "panic:") || strings.Contains(text, "DATA RACE") {
		t.Errorf("%v: %s", cmd.Args, text)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// must runs a client command that ends with 0 and returns what it printed.
func (m *testMesh) must(args ...string) string {
	m.t.Helper()
	code, out, errs := m.meshq(args...)
	if code != exitDone {
		m.t.Fatalf("meshq %s: exit code %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// dial connects a client of the test itself.
func (m *testMesh) dial(opts ...client.Option) *client.Mesh {
	m.t.Helper()
	return m.dialTo(m.servers(), opts...)
}

func (m *testMesh) dialTo(servers string, opts ...client.Option) *client.Mesh {
	m.t.Helper()
	mesh, err := client.Dial(context.Background(), servers, append([]client.Option{client.DialTimeout(startPatience)}, opts...)...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = mesh.Close() })
	return mesh
}

// decodeLines reads one JSON object a line.
func decodeLines[T any](t *testing.T, text string) []T {
	t.Helper()
	var all []T
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var v T
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("not JSON: %v", err)
		}
		all = append(all, v)
	}
}

// show is "meshq queue show --json".
func (m *testMesh) show(queue string) (*queueStateJSON, error) {
	m.t.Helper()
	code, out, errs := m.meshq("queue", "show", queue, "--json")
	if code != exitDone {
		return nil, errors.New(errs)
	}
	var state queueStateJSON
	return &state, json.Unmarshal([]byte(out), &state)
}

// showNode is "meshq node show --json".
func (m *testMesh) showNode(i int) (*nodeStateJSON, error) {
	m.t.Helper()
	code, out, errs := m.meshq("node", "show", m.nodes[i].name, "--json")
	if code != exitDone {
		return nil, errors.New(errs)
	}
	var state nodeStateJSON
	if err := json.Unmarshal([]byte(out), &state); err != nil {
		return nil, err
	}
	if state.Error != "" {
		return nil, errors.New(state.Error)
	}
	return &state, nil
}

// waitOwner waits until the first partition of a queue has an owner other than the
// nodes named, and returns that and the home replicas.
func (m *testMesh) waitOwner(queue string, not ...int) (owner int, home []int) {
	m.t.Helper()
	m.eventually(startPatience, queue+" has an owner", func() error {
		state, err := m.show(queue)
		if err != nil {
			return err
		}
		p := state.Partitions[0]
		if p.Owner == "" {
			return errors.New("nobody owns it")
		}
		owner = m.index(p.Owner)
		for _, i := range not {
			if i == owner {
				return fmt.Errorf("%s owns it", p.Owner)
			}
		}
		home = nil
		for _, name := range p.Home {
			home = append(home, m.index(name))
		}
		return nil
	})
	return owner, home
}

// waitEqual waits until all home replicas of all partitions say the same digest, none
// repairs and none keeps hints, and returns how long that took.
func (m *testMesh) waitEqual(queue string) time.Duration {
	m.t.Helper()
	from := time.Now()
	m.eventually(settlePatience, "the replicas of "+queue+" are equal", func() error {
		state, err := m.show(queue)
		if err != nil {
			return err
		}
		for _, p := range state.Partitions {
			for _, r := range p.Replicas {
				if r.Error != "" || r.Repairing || r.Hints != 0 || r.Digest != p.Replicas[0].Digest || r.Messages != p.Replicas[0].Messages {
					return fmt.Errorf("partition %d, owner %q: %+v", p.Index, p.Owner, p.Replicas)
				}
			}
		}
		return nil
	})
	return time.Since(from)
}

// metric reads a metric of a node: the sum over its labels.
func (m *testMesh) metric(i int, name string) (float64, error) {
	answer, err := quickly.Get("http://" + m.nodes[i].http + "/metrics")
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	sum, found := 0.0, false
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		f := strings.Fields(rest)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", m.nodes[i].name, name)
	}
	return sum, lines.Err()
}

// anonymousBytes is the memory of a node that is not backed by a file: the mapped
// files of the store belong to the page cache.
func (m *testMesh) anonymousBytes(i int) int64 {
	m.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.nodes[i].cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	m.t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}

// child is a client command that runs while the test goes on.
type child struct {
	*exec.Cmd
	t      *testing.T
	stderr *tail
	exited chan struct{}

	mu    sync.Mutex
	lines []string // of stdout; guarded by mu
	more  chan struct{}
}

// background starts a client command; it is killed at the end of the test.
func (m *testMesh) background(stdin io.Reader, args ...string) *child {
	m.t.Helper()
	c := &child{Cmd: m.command(args...), t: m.t, stderr: &tail{}, exited: make(chan struct{}), more: make(chan struct{}, 1)}
	c.Stdin, c.Stderr = stdin, c.stderr
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	c.Stdout = w
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	_ = w.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			c.mu.Lock()
			c.lines = append(c.lines, lines.Text())
			c.mu.Unlock()
			select {
			case c.more <- struct{}{}:
			default:
			}
		}
	}()
	go func() { _ = c.Wait(); <-read; close(c.exited) }()
	m.t.Cleanup(func() { _ = c.Process.Kill(); <-c.exited })
	return c
}

// output is what was printed so far, by line.
func (c *child) output() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.lines...)
}

func (c *child) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lines)
}

// waitLines waits until the command has printed n lines.
func (c *child) waitLines(n int) {
	c.t.Helper()
	late := time.After(commandPatience)
	for c.count() < n {
		select {
		case <-c.more:
		case <-c.exited:
			if c.count() >= n {
				return
			}
			c.t.Fatalf("%v ended after %d lines, want %d: %v: %s", c.Args, c.count(), n, c.ProcessState, c.stderr)
		case <-late:
			c.t.Fatalf("%v: %d lines after %v, want %d: %s", c.Args, c.count(), commandPatience, n, c.stderr)
		}
	}
}

// code waits for the end and returns the exit code.
func (c *child) code() int {
	c.t.Helper()
	select {
	case <-c.exited:
	case <-time.After(commandPatience):
		c.t.Fatalf("%v has not ended after %v: %s", c.Args, commandPatience, c.stderr)
	}
	return c.ProcessState.ExitCode()
}

// ms is a duration in whole milliseconds, for tables.
func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

// mib is a number of bytes in MiB, for tables.
func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
