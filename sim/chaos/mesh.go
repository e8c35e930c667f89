package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Config says what mesh to make.
type Config struct {
	// Binary is the meshq that nodes run. Required.
	Binary string
	// Network; default Loopback.
	Network Network
	// Seed is that of the switch's luck.
	Seed uint64
	// Links is how all links behave without faults; From and To are not used.
	Links Effect
	// Disks gives each node a file system of its own, of DiskBytes (default 4 GiB, at
	// least 256 MiB; the image is sparse), which power cuts and full and failing disks
	// need. Linux, as root.
	Disks     bool
	DiskBytes int64
	// Serve are more flags for each "meshq serve".
	Serve []string
	// Dir is where the directory of a run is made; default: os.TempDir.
	Dir string
	// Keep leaves it, with logs and data, where it is when the mesh is closed.
	Keep bool
	// Logger gets what is done to the mesh; default: discarded.
	Logger *slog.Logger
}

// Mesh is a mesh of real processes, and the owner of all that was made for it. Its
// methods, and those of its nodes and clients, may be called by many goroutines.
type Mesh struct {
	config   Config
	logger   *slog.Logger
	run      *run     // the directory and its manifest
	net      *network // nil on loopback
	observer *Client
	http     *http.Client // from the observer

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // of Slow

	closing sync.Mutex // one Close at a time

	mu      sync.Mutex // protects the fields below
	nodes   []*Node    // in order of Add
	twins   []*Node
	clients map[string]*Client
	closed  bool
}

// New sweeps up what dead runs have left, checks that all that the config asks for can be
// had (else *MissingError, and nothing is made), and makes a mesh without nodes.
func New(config Config) (*Mesh, error) {
	if config.Network == "" {
		config.Network = Loopback
	}
	if config.DiskBytes == 0 {
		config.DiskBytes = 4 << 30
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if err := config.check(); err != nil {
		return nil, err
	}
	if err := Sweep(config.Dir); err != nil {
		config.Logger.Warn("an earlier run could not be cleaned up", "err", err)
	}
	r, err := newRun(config.Dir)
	if err != nil {
		return nil, err
	}
	m := &Mesh{config: config, logger: config.Logger, run: r, clients: map[string]*Client{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if config.Network == Switched {
		m.net = newNetwork(config.Seed, config.Links)
	}
	h, err := m.newHost(observerName, placeObserver, false)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.observer = newClient(m, observerName, h)
	m.http = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DialContext: m.observer.Dial, DisableKeepAlives: true,
	}}
	return m, nil
}

func (c *Config) check() error {
	if c.Binary == "" {
		return errors.New("chaos: no binary to run nodes with")
	}
	if c.DiskBytes < 256<<20 {
		return fmt.Errorf("chaos: disks of %d bytes: at least 256 MiB are needed", c.DiskBytes)
	}
	switch c.Network {
	case Loopback:
	case Switched:
		if err := checkSwitched(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("chaos: unknown network %q: %q or %q", c.Network, Loopback, Switched)
	}
	if c.Disks {
		return checkDisks()
	}
	return nil
}

// Close ends and removes everything, in the reverse order of its making. It may be called
// more than once and takes bounded time; the error says what could not be removed.
func (m *Mesh) Close() error {
	m.closing.Lock()
	defer m.closing.Unlock()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true // nothing is made any more
	nodes := slices.Concat(m.nodes, m.twins)
	var clients []*Client
	for _, c := range m.clients {
		clients = append(clients, c)
	}
	m.mu.Unlock()

	m.cancel()
	m.work.Wait()
	var errs []error
	for _, c := range clients {
		c.close()
	}
	for _, n := range nodes {
		n.kill(false)
	}
	slices.Reverse(nodes)
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	for _, c := range clients {
		c.host.close()
	}
	if m.observer != nil {
		m.observer.close()
		m.observer.host.close()
	}
	errs = append(errs, m.run.close(m.config.Keep))
	return errors.Join(errs...)
}

// Dir is the directory of the run: logs, data, manifest.
func (m *Mesh) Dir() string { return m.run.dir }

// Add makes a node that is not started yet. The first one founds the mesh at its first
// start; all others join it.
func (m *Mesh) Add(spec plan.Node) (*Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.newNode(spec)
	if err != nil {
		return nil, fmt.Errorf("chaos: add node %s: %w", spec.Name, err)
	}
	n.founds = len(m.nodes) == 0
	m.nodes = append(m.nodes, n)
	return n, nil
}

// Node is the node of that name, or nil.
func (m *Mesh) Node(name string) *Node {
	for _, n := range m.Nodes() {
		if n.name == name {
			return n
		}
	}
	return nil
}

// Nodes are all nodes in the order of Add; twins are not among them.
func (m *Mesh) Nodes() []*Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.nodes)
}

// Servers are the mesh addresses of all nodes, as client.Dial takes them.
func (m *Mesh) Servers() string { return strings.Join(m.addrs(nil), ",") }

// addrs are the mesh addresses of all nodes but one.
func (m *Mesh) addrs(but *Node) (addrs []string) {
	for _, n := range m.Nodes() {
		if n != but {
			addrs = append(addrs, n.Addr())
		}
	}
	return addrs
}

// Client is the place of a client by name, made when it is asked for first: on a switched
// network a host of its own, which effects may name.
func (m *Mesh) Client(name string) (*Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.clients[name]; c != nil {
		return c, nil
	}
	h, err := m.newHost(name, placeClient, false)
	if err != nil {
		return nil, fmt.Errorf("chaos: client %s: %w", name, err)
	}
	c := newClient(m, name, h)
	m.clients[name] = c
	return c, nil
}

// Observer connects a client that no effect touches. The caller closes it.
func (m *Mesh) Observer(ctx context.Context, opts ...client.Option) (*client.Mesh, error) {
	return client.Dial(ctx, m.Servers(), append([]client.Option{m.observer.Option(), client.Name("meshq chaos")}, opts...)...)
}

// WaitActive waits until exactly so many nodes of the mesh are active.
func (m *Mesh) WaitActive(ctx context.Context, nodes int) error {
	mesh, err := m.Observer(ctx)
	if err != nil {
		return err
	}
	defer mesh.Close()
	return poll(ctx, fmt.Sprintf("%d nodes are active", nodes), func() error {
		all, err := mesh.Nodes(ctx)
		if err != nil {
			return err
		}
		active, states := 0, []string(nil)
		for _, n := range all {
			if n.State == "active" {
				active++
			}
			states = append(states, n.Name+" "+n.State)
		}
		if active != nodes {
			return fmt.Errorf("%d are: %s", active, strings.Join(states, ", "))
		}
		return nil
	})
}

// Inspect asks all home replicas of a queue what they hold, and gives their answers as
// events of kind history.State at the given time. It is an error when one of them, or an
// owner, is missing.
func (m *Mesh) Inspect(ctx context.Context, at time.Duration, queue string) ([]history.Event, error) {
	mesh, err := m.Observer(ctx)
	if err != nil {
		return nil, err
	}
	defer mesh.Close()
	state, err := mesh.DescribeQueue(ctx, queue)
	if err != nil {
		return nil, err
	}
	var events []history.Event
	for _, p := range state.Partitions {
		if p.Owner == "" {
			return nil, fmt.Errorf("%s/%d: nobody owns it", queue, p.Partition)
		}
		for _, r := range p.Replicas {
			if r.Err != nil {
				return nil, fmt.Errorf("%s/%d: %s: %w", queue, p.Partition, r.Node, r.Err)
			}
			replica := &history.Replica{
				Home: true, Owns: r.Owns, Repairing: r.Repairing, Hints: int(r.Hints),
				Digest: fmt.Sprintf("%016x", r.Digest), Messages: r.Messages,
			}
			if r.Owns {
				for _, g := range p.Groups {
					replica.Groups = append(replica.Groups, history.GroupState{
						Name: g.Name, Done: g.Done, Ready: g.Ready, InFlight: g.InFlight, Delayed: g.Delayed,
					})
				}
			}
			events = append(events, history.Event{
				At: at, Kind: history.State, Who: r.Node, Node: r.Node, Queue: queue, Partition: uint32(p.Partition), Replica: replica,
			})
		}
	}
	return events, nil
}

// Impose brings effects about until lift is called, which may be called twice. On
// loopback it is refused with a *CannotError.
func (m *Mesh) Impose(effects ...Effect) (lift func(), err error) {
	if m.net == nil {
		return nil, m.Can(plan.Cut)
	}
	return m.net.sw.impose(effects), nil
}

// Reset ends the TCP connections between hosts, on both sides, and says of how many it
// knew. From and To are as in Effect.
func (m *Mesh) Reset(from, to []string) (int, error) {
	if m.net == nil {
		return 0, m.Can(plan.Reset)
	}
	return m.net.sw.reset(from, to), nil
}

// HalfOpen ends the TCP connections between hosts for those of from alone, and says of how
// many it knew: those of to go on sending into nothing, until they miss an answer.
func (m *Mesh) HalfOpen(from, to []string) (int, error) {
	if m.net == nil {
		return 0, m.Can(plan.HalfOpen)
	}
	return m.net.sw.halve(from, to), nil
}

// SwitchStats counts what the switch did; all 0 on loopback.
func (m *Mesh) SwitchStats() SwitchStats {
	if m.net == nil {
		return SwitchStats{}
	}
	return m.net.sw.stats()
}

// Complaints are the lines in the logs of all nodes that no node may ever write: panics,
// fatal errors, data races.
func (m *Mesh) Complaints() []string {
	logs, _ := filepath.Glob(filepath.Join(m.run.dir, "*.log"))
	var all []string
	for _, path := range logs {
		all = append(all, complaints(path)...)
	}
	return all
}

// poll asks again and again until there is no error; when ctx ends it returns the last one.
func poll(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: not yet, %w: %w", what, context.Cause(ctx), err)
		}
	}
}

// freePort is a port of 127.0.0.1 below those that the kernel gives to clients, free for
// TCP and UDP, so that a node finds it free again at its next start.
func (m *Mesh) freePort() (int, error) {
	for range 1000 {
		port := 10_000 + m.run.next()%20_000
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		_ = l.Close()
		if err != nil {
			continue
		}
		_ = u.Close()
		return port, nil
	}
	return 0, errors.New("no free ports on 127.0.0.1")
}
