package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// Ports of nodes on a switched network, where each has an address of its own.
const (
	meshPort   = 7700
	gossipPort = 7701
	httpPort   = 7780
)

// Node is one node of a mesh. Its name, addresses and disk outlive its processes.
type Node struct {
	mesh *Mesh
	name string
	zone string
	log  string // path
	host *host
	disk *disk // nil: data is a directory of the run

	mu     sync.Mutex // one thing at a time is done to a node; protects the fields below
	founds bool       // its first start founds the mesh
	addrs  addresses
	proc   *process // the last that was started; nil before the first
	paused bool     // by Pause
	closed bool
	as     string // what the mesh calls it: a twin has the name of the other
	wiped  int    // times that its disk was
}

// addresses are host:port each.
type addresses struct{ listen, gossip, http string }

// process is one process of a node.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended and been waited for
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// newNode makes a node; the mesh's mu is held.
func (m *Mesh) newNode(spec plan.Node) (*Node, error) {
	if m.closed {
		return nil, errClosed
	}
	if spec.Name == "" || strings.ContainsAny(spec.Name, "/\\ ") {
		return nil, fmt.Errorf("%q is no name", spec.Name)
	}
	n := &Node{mesh: m, name: spec.Name, as: spec.Name, zone: spec.Zone, log: filepath.Join(m.run.dir, spec.Name+".log")}
	var err error
	if n.host, err = m.newHost(spec.Name, placeNode, m.config.Disks); err != nil {
		return nil, err
	}
	if n.addrs, err = m.newAddresses(n.host); err == nil && m.config.Disks {
		n.disk, err = m.newDisk(n.host)
	}
	if err == nil {
		err = n.files(func() error { return os.MkdirAll(n.data(), 0o700) })
	}
	if err != nil {
		if n.disk != nil {
			err = errors.Join(err, n.files(n.disk.remove))
		}
		n.host.close()
		return nil, err
	}
	return n, nil
}

func (m *Mesh) newAddresses(h *host) (a addresses, err error) {
	ports := [3]int{meshPort, gossipPort, httpPort}
	if m.net == nil {
		for i := range ports {
			if ports[i], err = m.freePort(); err != nil {
				return a, err
			}
		}
	}
	at := func(port int) string { return netip.AddrPortFrom(h.addr(), uint16(port)).String() }
	return addresses{at(ports[0]), at(ports[1]), at(ports[2])}, nil
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// Called is the name by which the mesh knows it.
func (n *Node) Called() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.as
}

// Addr is the address of the mesh port, for clients.
func (n *Node) Addr() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs.listen
}

// Log is the path of the file that all processes of the node write to.
func (n *Node) Log() string { return n.log }

// Running says whether there is a process, be it paused.
func (n *Node) Running() bool { return n.process().running() }

// PID is that of the last process; 0 before the first.
func (n *Node) PID() int {
	if p := n.process(); p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

func (n *Node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Exited is closed when the process that was started last has ended; nil before the first.
func (n *Node) Exited() <-chan struct{} {
	if p := n.process(); p != nil {
		return p.exited
	}
	return nil
}

// ExitCode is that of the process that was started last: -1 while it runs, and when a
// signal ended it.
func (n *Node) ExitCode() int {
	p := n.process()
	if p == nil || p.running() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// data is the data directory of the node's processes.
func (n *Node) data() string {
	if n.disk != nil {
		return filepath.Join(n.disk.dir, "data")
	}
	return filepath.Join(n.mesh.run.dir, n.name)
}

// files runs f where the node's disk is mounted.
func (n *Node) files(f func() error) error { return n.host.thread.do(f) }

// Start starts a process. A disk that failed or lost power works again, and so does the
// network of a machine that lost power.
func (n *Node) Start() error {
	join := n.mesh.addrs(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.start(join); err != nil {
		return fmt.Errorf("chaos: start %s: %w", n.name, err)
	}
	n.mesh.logger.Info("started", "node", n.name, "pid", n.proc.cmd.Process.Pid)
	return nil
}

func (n *Node) start(join []string) error {
	switch {
	case n.closed:
		return errClosed
	case n.proc.running():
		return errors.New("it runs already")
	}
	if n.disk != nil {
		if err := n.files(n.disk.repower); err != nil {
			return err
		}
	}
	if n.host.nic != nil {
		n.host.nic.port.down.Store(false)
	}
	args := []string{
		"serve", "--name", n.as, "--data", n.data(), "--listen", n.addrs.listen, "--gossip", n.addrs.gossip, "--http", n.addrs.http,
		"--log-format", "text", "--log-level", "info",
	}
	if n.zone != "" {
		args = append(args, "--zone", n.zone)
	}
	if !n.founds && len(join) > 0 {
		args = append(args, "--join", strings.Join(join, ","))
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(n.mesh.config.Binary, append(args, n.mesh.config.Serve...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.host.start(cmd); err != nil {
		return err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.exited) }() // ends with the process, which close kills
	n.proc, n.paused, n.founds = p, false, false
	return n.mesh.run.record(entry{Made: madeProcess, Name: n.name, PID: cmd.Process.Pid})
}

// WaitReady waits until the node says that it takes traffic. It is an error when its
// process ends before.
func (n *Node) WaitReady(ctx context.Context) error {
	exited := n.Exited()
	if exited == nil {
		return fmt.Errorf("chaos: %s was never started", n.name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-exited:
			cancel(fmt.Errorf("its process has ended with code %d; the log says: %s", n.ExitCode(), lastLine(n.log)))
		case <-ctx.Done():
		}
	}()
	n.mu.Lock()
	url := "http://" + n.addrs.http + "/readyz"
	n.mu.Unlock()
	return poll(ctx, n.name+" is ready", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		answer, err := n.mesh.http.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
			return fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(body)))
		}
		return nil
	})
}

// Kill sends SIGKILL and waits for the end of the process; it is no error when there is none.
func (n *Node) Kill() error {
	if n.kill(false) {
		n.mesh.logger.Info("killed", "node", n.name)
	}
	return nil
}

// kill says whether there was anything to kill.
func (n *Node) kill(last bool) bool {
	n.mu.Lock()
	n.closed = n.closed || last
	p := n.proc
	n.thaw() // a process that waits for its disk does not die
	n.mu.Unlock()
	return p.kill()
}

func (p *process) kill() bool {
	if !p.running() {
		return false
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	return true
}

// Stop sends SIGTERM and waits for the end. When ctx ends before that, the process is
// killed and the error says so.
func (n *Node) Stop(ctx context.Context) (exitCode int, err error) {
	n.mu.Lock()
	p := n.proc
	if !p.running() {
		n.mu.Unlock()
		return -1, fmt.Errorf("chaos: stop %s: it does not run", n.name)
	}
	err = p.cmd.Process.Signal(sigTerm)
	if n.paused {
		err = errors.Join(err, p.cmd.Process.Signal(sigCont))
		n.paused = false
	}
	n.mu.Unlock()
	if err == nil {
		select {
		case <-p.exited:
			return p.cmd.ProcessState.ExitCode(), nil
		case <-ctx.Done():
			err = fmt.Errorf("it has not ended, %w: killed", context.Cause(ctx))
		}
	}
	n.kill(false)
	return -1, fmt.Errorf("chaos: stop %s: %w", n.name, err)
}

// Pause stops the process (SIGSTOP) until Resume, Start after a Kill, or Stop.
func (n *Node) Pause() error { return n.setPaused(true) }

// Resume ends a Pause. It is no error when the process has been killed meanwhile.
func (n *Node) Resume() error { return n.setPaused(false) }

func (n *Node) setPaused(paused bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.proc.running() {
		if paused {
			return fmt.Errorf("chaos: pause %s: it does not run", n.name)
		}
		return nil
	}
	n.paused = paused
	return n.freeze(paused)
}

// freeze stops or continues the process; mu is held.
func (n *Node) freeze(still bool) error {
	if !still {
		return gone(n.proc.cmd.Process.Signal(sigCont))
	}
	if err := n.proc.cmd.Process.Signal(sigStop); err != nil {
		return gone(err)
	}
	return waitStopped(n.proc.cmd.Process.Pid)
}

// gone forgives a signal to a process that has just ended.
func gone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Slow lets the process stand still for `still` after each `run`, until lift is called;
// lift may be called twice.
func (n *Node) Slow(still, run time.Duration) (lift func(), err error) {
	if err := n.mesh.Can(plan.SlowNode); err != nil {
		return nil, err
	}
	if still <= 0 || run <= 0 {
		return nil, fmt.Errorf("chaos: slow %s: standing %v, running %v", n.name, still, run)
	}
	return n.alternate(run, still, func() (func(), error) {
		n.still(true)
		return func() { n.still(false) }, nil
	}), nil
}

// alternate stops something for `still` after each `run`, until lift is called. What
// cannot be stopped now is tried again the next time.
func (n *Node) alternate(run, still time.Duration, stop func() (resume func(), err error)) (lift func()) {
	m := n.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return func() {}
	}
	ctx, cancel := context.WithCancel(m.ctx)
	done := make(chan struct{})
	m.work.Go(func() {
		defer close(done)
		for wait(ctx, run) {
			resume, err := stop()
			if err != nil {
				continue
			}
			wait(ctx, still)
			resume()
		}
	})
	return func() { cancel(); <-done }
}

// still is freeze for Slow: a process that is paused or gone is left alone.
func (n *Node) still(still bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.paused && n.proc.running() {
		_ = n.freeze(still)
	}
}

// wait says false when ctx ended before the time was over.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Move gives a node that is down other addresses.
func (n *Node) Move() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc.running() {
		return fmt.Errorf("chaos: move %s: it runs", n.name)
	}
	if n.host.nic != nil {
		if err := n.host.thread.do(n.host.nic.move); err != nil {
			return fmt.Errorf("chaos: move %s: %w", n.name, err)
		}
	}
	addrs, err := n.mesh.newAddresses(n.host)
	if err != nil {
		return fmt.Errorf("chaos: move %s: %w", n.name, err)
	}
	n.addrs = addrs
	return nil
}

// Usage is the memory of the process that no file backs (0 when there is none), and what
// the files of the node take, both in bytes.
func (n *Node) Usage() (memory, disk int64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return 0, 0, errClosed
	}
	if n.proc.running() {
		if memory, err = anonymousBytes(n.proc.cmd.Process.Pid); err != nil {
			return 0, 0, fmt.Errorf("chaos: memory of %s: %w", n.name, err)
		}
	}
	_ = n.files(func() error { disk = treeBytes(n.data()); return nil })
	return memory, disk, nil
}

// close removes what the node has; its process has ended.
func (n *Node) close() error {
	n.kill(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	var err error
	if n.disk != nil {
		err = n.files(n.disk.remove)
	}
	n.host.close()
	return err
}

// complaints are the lines of a log that no node may ever write.
func complaints(path string) (lines []string) {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "DATA RACE") {
			lines = append(lines, strings.TrimSuffix(filepath.Base(path), ".log")+": "+strings.TrimSpace(line))
		}
	}
	return lines
}

func lastLine(path string) string {
	text, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
