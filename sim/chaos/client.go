package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"

	"github.com/meshq/meshq/client"
)

// errCrashed is what a client that crashed hears from its network.
var errCrashed = errors.New("chaos: this client has crashed")

// Client is a place from where one client sees the mesh.
type Client struct {
	mesh *Mesh
	name string
	host *host

	mu       sync.Mutex // protects the fields below
	conns    map[*gated]struct{}
	crashed  bool
	closed   bool
	flowing  chan struct{} // closed while connections are not paused
	paused   bool
	children []*exec.Cmd
}

func newClient(m *Mesh, name string, h *host) *Client {
	c := &Client{mesh: m, name: name, host: h, conns: map[*gated]struct{}{}, flowing: make(chan struct{})}
	close(c.flowing)
	return c
}

// Name is the name that effects know it by.
func (c *Client) Name() string { return c.name }

// Option makes a client connect from here.
func (c *Client) Option() client.Option { return client.DialContext(c.Dial) }

// Dial connects from here.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	gone := c.crashed || c.closed
	c.mu.Unlock()
	if gone {
		return nil, errCrashed
	}
	nc, err := c.host.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	g := &gated{Conn: nc, client: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crashed || c.closed {
		reset(nc)
		return nil, errCrashed
	}
	c.conns[g] = struct{}{}
	return g, nil
}

// Crash resets all connections that were made from here and refuses new ones, until
// Revive: what nodes see of a client that was killed. Close the client.Mesh as well; it
// cannot say good-bye any more.
func (c *Client) Crash() {
	c.mu.Lock()
	c.crashed = true
	c.flow()
	c.mu.Unlock()
	c.cut()
}

// Revive lets a new client connect from here.
func (c *Client) Revive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crashed = false
}

// Pause makes all connections stand still: nothing is read or written until Resume. Time
// goes on for the client, unlike for a process that is stopped.
func (c *Client) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused && !c.crashed && !c.closed {
		c.paused, c.flowing = true, make(chan struct{})
	}
}

// Resume ends a Pause.
func (c *Client) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flow()
}

// flow opens the gate; mu is held.
func (c *Client) flow() {
	if c.paused {
		c.paused = false
		close(c.flowing)
	}
}

// Start starts a child process at this place: in its network, killed with the mesh. Its
// end is that of cmd.Wait, which the caller calls.
func (c *Client) Start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	if err := c.host.start(cmd); err != nil {
		return fmt.Errorf("chaos: start %s: %w", c.name, err)
	}
	c.children = append(c.children, cmd)
	return c.mesh.run.record(entry{Made: madeProcess, Name: c.name, PID: cmd.Process.Pid})
}

// cut ends all connections with a reset.
func (c *Client) cut() {
	c.mu.Lock()
	conns := c.conns
	c.conns = map[*gated]struct{}{}
	c.mu.Unlock()
	for g := range conns {
		reset(g.Conn)
	}
}

func (c *Client) close() {
	c.mu.Lock()
	c.closed = true
	c.flow()
	children := c.children
	c.mu.Unlock()
	c.cut()
	for _, cmd := range children {
		_ = cmd.Process.Kill() // one that was waited for is known as ended
	}
}

// reset closes a connection with a RST: what was not sent yet is not sent.
func reset(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = nc.Close()
}

// gated is a connection that stands still while its client is paused.
type gated struct {
	net.Conn
	client *Client
}

func (g *gated) wait() {
	g.client.mu.Lock()
	flowing := g.client.flowing
	g.client.mu.Unlock()
	<-flowing
}

func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.wait() // what came while it was paused is not seen before it goes on
	return n, err
}

func (g *gated) Write(p []byte) (int, error) {
	g.wait()
	return g.Conn.Write(p)
}

func (g *gated) Close() error {
	g.client.mu.Lock()
	delete(g.client.conns, g)
	g.client.mu.Unlock()
	return g.Conn.Close()
}
