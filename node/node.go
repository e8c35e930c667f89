package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// Node is a running member of a mesh, or one that waits to join. Its methods may be
// called from any goroutine, also after it has stopped.
type Node struct {
	config  Config
	log     *slog.Logger
	self    ring.Member
	boot    uint64
	options transport.Options

	listener  net.Listener
	httpLn    net.Listener // nil: none
	gossipNet *memberlist.NetTransport

	store    *store.Store
	registry *prometheus.Registry // all metrics of this node
	meter    *meter
	in       *inbox
	look     chan struct{} // capacity 1: the store is full, or no longer
	loop     *loop
	disk     *disk
	door     *door
	peers    *peers
	memory   *memory
	gossip   *gossip

	draining atomic.Bool
	drainedC chan struct{} // closed by the core's answer to Drain
	drainOne sync.Once
	readyC   chan struct{} // closed when the node serves for the first time
	joinedC  chan struct{} // closed when the mesh is known

	wantDrain, wantStop chan struct{} // closed by Shutdown, Close and failures
	drainAsk, stopAsk   sync.Once
	done                chan struct{} // closed when all has ended

	mu    sync.Mutex // cause, err
	cause error      // why the node stops by itself
	err   error      // what Wait returns
}

// Start opens the data directory, listens, and begins to serve. It returns as soon as
// the node is up, which may be long before it has joined a mesh: see Ready. ctx bounds
// the start only. The caller ends the node with Shutdown or Close, and learns from Wait
// when it has stopped by itself.
//
// The errors are a *ConfigError, ErrDataInUse, ErrPortInUse, or what the system says;
// Hint tells people what to do.
func Start(ctx context.Context, config Config) (*Node, error) {
	return start(ctx, config, newCore)
}

// newCore makes the real machine.
func newCore(c core.Config, r core.Recovered) machine { return core.New(c, r) }

func start(ctx context.Context, config Config, newMachine func(core.Config, core.Recovered) machine) (_ *Node, err error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	n := &Node{
		config: config, log: config.Logger.With("name", config.Name),
		registry: prometheus.NewRegistry(), meter: newMeter(), in: newInbox(inboxItems, inboxBytes), look: make(chan struct{}, 1),
		drainedC: make(chan struct{}), readyC: make(chan struct{}), joinedC: make(chan struct{}),
		wantDrain: make(chan struct{}), wantStop: make(chan struct{}), done: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			n.abandon()
		}
	}()
	if config.TLS.on() {
		n.options.TLSFiles = &transport.TLSFiles{Cert: config.TLS.Cert, Key: config.TLS.Key, CA: config.TLS.CA, Mutual: true}
		if _, err := n.options.TLSFiles.Server(); err != nil {
			return nil, err
		}
	}
	n.options.Logger = n.log

	if err := os.MkdirAll(config.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	recovered, err := n.openStore()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := n.listen(ctx); err != nil {
		return nil, err
	}
	n.boot = recovered.Boot
	n.self = n.member(recovered.Node)
	n.log = n.log.With("node", n.self.ID.String())
	n.warn(n.Addr(), n.GossipAddr())

	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	m := newMachine(core.Config{
		Self: n.self, Boot: n.boot, Version: config.Version, Random: binary.BigEndian.Uint64(random[:]), Limits: config.Limits,
		Found: len(config.Join) == 0 && len(recovered.Records) == 0 && !recovered.DamagedAll,
	}, core.Recovered{
		Records: recovered.Records, Refs: recovered.Refs, Commit: recovered.Commit,
		Damaged: recovered.Damaged, DamagedAll: recovered.DamagedAll,
	})
	if err := n.assemble(m); err != nil {
		return nil, err
	}
	go n.run()
	n.log.Info("node started", "boot", n.boot, "listen", n.Addr(), "gossip", n.GossipAddr(), "http", n.HTTPAddr(), "data", config.Data)
	return n, nil
}

// openStore opens the data directory. What the store reports before the loop runs waits
// in the inbox.
func (n *Node) openStore() (*store.Recovered, error) {
	s, recovered, err := store.Open(store.Options{
		Dir: n.config.Data, Sync: n.config.Sync, SegmentBytes: n.config.SegmentBytes,
		MinFree: storeMinFree(n.config.MinFree), Reserve: storeReserve(n.config.MinFree), MaxUsed: storeMaxUsed,
		LazyPrefixes: [][]byte{{'r'}}, // retry records: the core scans them
		Logger:       n.log, Registerer: n.registry,
		OnDamage: func(p wire.PartitionID, l wire.Lane, runs wire.Runs) {
			n.in.force(item{event: core.Damage{Partition: p, Lane: l, Runs: runs}})
		},
		OnFull:   func(bool) { poke(n.look) },
		OnFailed: func(err error) { n.fail(fmt.Errorf("store: %w", err)) },
	})
	if err != nil {
		return nil, explainStore(n.config.Data, err)
	}
	n.store = s
	return recovered, nil
}

// listen takes the ports.
func (n *Node) listen(ctx context.Context) (err error) {
	var lc net.ListenConfig
	if n.listener, err = lc.Listen(ctx, "tcp", n.config.Listen); err != nil {
		return explainListen("mesh port", n.config.Listen, "listen", err)
	}
	if n.gossipNet, err = listenGossip(n.config.Gossip, n.log); err != nil {
		return explainListen("gossip port", n.config.Gossip, "gossip", err)
	}
	if n.config.HTTP == Off {
		return nil
	}
	if n.httpLn, err = lc.Listen(ctx, "tcp", n.config.HTTP); err != nil {
		return explainListen("HTTP port", n.config.HTTP, "http", err)
	}
	return nil
}

// member is what this node says of itself.
func (n *Node) member(id ring.NodeID) ring.Member {
	m := ring.Member{
		ID: id, Name: n.config.Name, Zone: n.config.Zone, Weight: n.config.Weight,
		Address: n.advertised(n.listener.Addr().String()),
		Gossip:  n.advertised(n.GossipAddr()),
	}
	if n.httpLn != nil {
		m.HTTP = n.advertised(n.httpLn.Addr().String())
	}
	return m
}

// advertised is address as others reach it.
func (n *Node) advertised(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if n.config.Advertise != "" {
		return net.JoinHostPort(n.config.Advertise, port)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = privateAddress()
	}
	return net.JoinHostPort(host, port)
}

// privateAddress is the first address of the machine that is not loopback, private ones
// before others; loopback when there is no other.
func privateAddress() string {
	addresses, _ := net.InterfaceAddrs()
	other := ""
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.IsPrivate() {
			return n.IP.String()
		}
		if other == "" {
			other = n.IP.String()
		}
	}
	if other == "" {
		return "127.0.0.1"
	}
	return other
}

// warn says what is dangerous about the addresses listened on.
func (n *Node) warn(mesh, gossip string) {
	for _, w := range []struct {
		what, address, hint string
		safe                bool
	}{
		{"mesh port", mesh, "name certificate, key and authority for TLS, or listen on 127.0.0.1", n.config.TLS.on()},
		{"gossip port", gossip, "set a gossip key, or listen on 127.0.0.1", len(n.config.GossipKey) > 0},
	} {
		host, _, _ := net.SplitHostPort(w.address)
		if ip := net.ParseIP(host); !w.safe && (ip == nil || !ip.IsLoopback()) {
			n.log.Warn("OPEN TO THE NETWORK: anyone who can reach the "+w.what+" can read, write and delete",
				"address", w.address, "hint", w.hint)
		}
	}
}

// assemble makes the parts, and starts nothing.
func (n *Node) assemble(m machine) error {
	clock := clock{base: time.Now()}
	n.disk = newDisk(n.store, n.in, n.fail, n.log)
	n.loop = newLoop(m, n.in, clock, n, n.meter)
	n.gossip = &gossip{
		self: n.self.ID, boot: n.boot, me: n.self, key: n.config.GossipKey, transport: n.gossipNet,
		facts: n.loop.facts.Load, in: n.in, log: n.log, joined: n.joinedC,
		changed: make(chan struct{}, 1), refresh: make(chan struct{}, 1), rejoin: make(chan struct{}, 1),
		alive: map[string]member{}, known: map[ring.NodeID]string{},
	}
	n.door = &door{
		self: n.self.ID, in: n.in, loop: n.loop, say: n.hello, learn: n.gossip.learn, log: n.log,
		boots: map[ring.NodeID]uint64{}, refused: map[ring.NodeID]wire.Code{},
	}
	n.peers = newPeers(n.self.ID, n.in, n.log, n.meter)
	n.memory = newMemory(n.config.Data, func(err error) { n.log.Warn("members file not written", "error", err) })
	n.peers.say, n.peers.learn = n.hello, n.gossip.learn
	n.peers.mesh = func() wire.MeshID { return n.loop.facts.Load().mesh }
	n.peers.dial = func(ctx context.Context, address string, hello *wire.Hello, h transport.Handler) (*transport.Conn, error) {
		return transport.Dial(ctx, address, hello, h, n.options)
	}
	n.gossip.peers = n.peers
	if err := n.measure(); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// abandon gives back what a failed start has taken.
func (n *Node) abandon() {
	if n.httpLn != nil {
		_ = n.httpLn.Close()
	}
	if n.gossipNet != nil {
		closeGossip(n.gossipNet)
	}
	if n.listener != nil {
		_ = n.listener.Close()
	}
	if n.store != nil {
		_ = n.store.Close()
	}
}

// stage is a part of the node that runs until it is told to end.
type stage struct {
	group  *errgroup.Group
	ctx    context.Context
	cancel context.CancelFunc
}

func newStage() *stage {
	ctx, cancel := context.WithCancel(context.Background())
	return &stage{group: new(errgroup.Group), ctx: ctx, cancel: cancel}
}

// goes runs f in the stage; when it fails, the node stops.
func (n *Node) goes(s *stage, what string, f func(context.Context) error) {
	s.group.Go(func() error {
		err := f(s.ctx)
		if err != nil && s.ctx.Err() == nil {
			n.fail(fmt.Errorf("%s: %w", what, err))
		}
		return nil
	})
}

func (s *stage) end() {
	s.cancel()
	_ = s.group.Wait()
}

// run owns every goroutine of the node and returns only when all have ended.
func (n *Node) run() {
	defer close(n.done)
	reading, looping, linking, talking, serving := newStage(), newStage(), newStage(), newStage(), newStage()

	for range readers {
		n.goes(reading, "store", n.disk.run)
	}
	room := &room{usage: n.store.Usage, minFree: n.config.MinFree, in: n.in, log: n.log, look: n.look}
	n.goes(reading, "room", room.run)
	n.peers.ctx = linking.ctx // before the loop can name peers
	n.goes(looping, "loop", n.loop.run)
	n.goes(looping, "loop", n.watch)
	n.goes(linking, "peers", func(ctx context.Context) error {
		<-ctx.Done()
		n.peers.wait()
		return nil
	})
	seeds := &seeds{peers: n.peers, addresses: n.config.Join, state: map[string]string{}}
	for _, address := range n.memory.addresses() {
		if !slices.Contains(seeds.addresses, address) {
			seeds.addresses = append(slices.Clip(seeds.addresses), address)
		}
	}
	n.goes(linking, "join", seeds.run)
	n.goes(linking, "members file", n.memory.run)
	n.goes(talking, "gossip", n.gossip.run)
	n.goes(serving, "mesh port", func(ctx context.Context) error {
		return transport.Serve(ctx, n.listener, n.door.accept, n.options)
	})
	if n.httpLn != nil {
		n.goes(serving, "HTTP port", func(ctx context.Context) error { return n.serveHTTP(ctx, n.httpLn) })
	}

	select {
	case <-n.wantStop:
	case <-n.wantDrain:
		n.drain()
	}

	serving.end()
	talking.end()
	linking.end()
	looping.end()
	reading.end()
	n.config.Registry.Unregister(n.registry) // as it was registered: with the store's
	err := n.store.Close()

	n.mu.Lock()
	if n.err = n.cause; n.err == nil && err != nil {
		n.err = fmt.Errorf("store: %w", err)
	}
	err = n.err
	n.mu.Unlock()
	if err != nil {
		n.log.Error("node stopped", "error", err)
	} else {
		n.log.Info("node stopped")
	}
}

// drain lets the core hand over what it owns, in bounded time.
func (n *Node) drain() {
	n.draining.Store(true)
	n.gossip.leaving.Store(true)
	n.log.Info("node drains")
	n.in.force(item{event: core.Drain{}})
	limit := time.NewTimer(n.config.DrainTimeout)
	defer limit.Stop()
	select {
	case <-n.drainedC:
	case <-n.wantStop:
	case <-limit.C:
		n.log.Warn("node stops before all was handed over", "after", n.config.DrainTimeout)
	}
}

// watch tells the parts what has changed for them in the facts.
func (n *Node) watch(ctx context.Context) error {
	var ringNumber uint64
	joined, ready := false, false
	for {
		f := n.loop.facts.Load()
		if !joined && f.mesh != 0 {
			joined = true
			n.log.Info("mesh known", "mesh", f.mesh.String(), "ring", f.table.Number)
			close(n.joinedC)
		}
		if !ready && f.ready {
			ready = true
			n.log.Info("node ready", "ring", f.table.Number, "members", len(f.table.Members))
			close(n.readyC)
		}
		if f.table.Number != ringNumber {
			ringNumber = f.table.Number
			poke(n.gossip.refresh)
			poke(n.gossip.rejoin)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.loop.changed:
		}
	}
}

// hello is what this node says to all who connect.
func (n *Node) hello() *wire.Hello {
	f := n.loop.facts.Load()
	return &wire.Hello{
		Version: wire.Version, MinVersion: wire.MinVersion, Mesh: f.mesh, Node: n.self.ID, Boot: n.boot,
		Name: n.self.Name, Gossip: n.self.Gossip, Ring: f.table.Number, Catalog: f.catalog, Commit: f.commit,
	}
}

// fail makes the node stop, for that cause. The first one counts.
func (n *Node) fail(err error) {
	n.mu.Lock()
	if n.cause == nil {
		n.cause = err
	}
	n.mu.Unlock()
	n.stopAsk.Do(func() { close(n.wantStop) })
}

// failure is why the node stops by itself; nil when it does not.
func (n *Node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cause
}

// Shutdown stops the node in order: it is no longer ready, hands over what it owns
// (waiting for Config.DrainTimeout at most), stops accepting, leaves gossip, syncs and
// closes the store. When ctx ends first the rest goes as in Close; the error is then
// ctx's. Otherwise it is that of Wait.
func (n *Node) Shutdown(ctx context.Context) error {
	n.drainAsk.Do(func() { close(n.wantDrain) })
	select {
	case <-n.done:
		return n.Wait()
	case <-ctx.Done():
		return errors.Join(ctx.Err(), n.Close())
	}
}

// Close stops the node at once: nothing is handed over, the others notice by themselves.
// What was confirmed is on disk. It may be called twice.
func (n *Node) Close() error {
	n.stopAsk.Do(func() { close(n.wantStop) })
	return n.Wait()
}

// Wait waits until the node has stopped and says why; nil after Shutdown or Close.
func (n *Node) Wait() error {
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Ready is closed when the node serves for the first time: it is a member of a mesh.
func (n *Node) Ready() <-chan struct{} { return n.readyC }

// Done is closed when the node has stopped.
func (n *Node) Done() <-chan struct{} { return n.done }

// ID is the node's ID, minted with its data directory.
func (n *Node) ID() ring.NodeID { return n.self.ID }

// Mesh is the mesh that the node belongs to; 0 before it has joined one.
func (n *Node) Mesh() wire.MeshID { return n.loop.facts.Load().mesh }

// Addr is the address of the mesh port, host:port.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// HTTPAddr is the address of the HTTP port, host:port; empty when there is none.
func (n *Node) HTTPAddr() string {
	if n.httpLn == nil {
		return ""
	}
	return n.httpLn.Addr().String()
}

// GossipAddr is the address of the gossip port, host:port.
func (n *Node) GossipAddr() string {
	host, _, _ := net.SplitHostPort(n.config.Gossip)
	if host == "" {
		host = "0.0.0.0"
	}
	return net.JoinHostPort(host, fmt.Sprint(n.gossipNet.GetAutoBindPort()))
}

// What the loop needs.

func (n *Node) persist(token core.Token, ops []wire.Op) { n.disk.persist(token, ops) }
func (n *Node) finished(c *commit, number uint64, err error) []core.Persisted {
	return n.disk.finished(c, number, err)
}
func (n *Node) read(r core.Read) { n.disk.read(r) }
func (n *Node) scan(s core.Scan) { n.disk.scan(s) }
func (n *Node) setPeers(members []ring.Member) {
	n.peers.set(members)
	if len(members) > 0 {
		n.memory.set(members)
	}
}
func (n *Node) drained() { n.drainOne.Do(func() { close(n.drainedC) }) }

func (n *Node) tooLarge(side string, msg wire.Message, err error) {
	n.log.Warn("message too large to send", "side", side, "message", fmt.Sprintf("%T", msg), "error", err)
}

func (n *Node) stop(err error) {
	if err == nil {
		err = ErrStopped
	}
	n.fail(err)
}

func (n *Node) note(note core.Note) {
	level, name := slog.LevelDebug, "debug"
	switch note.Level {
	case core.NoteInfo:
		level, name = slog.LevelInfo, "info"
	case core.NoteWarn:
		level, name = slog.LevelWarn, "warn"
	}
	n.meter.notes.WithLabelValues(name).Inc()
	if !n.log.Enabled(context.Background(), level) {
		return
	}
	var attrs []slog.Attr
	if note.Partition != 0 {
		attrs = append(attrs, slog.String("partition", note.Partition.String()))
	}
	if note.Detail != "" {
		attrs = append(attrs, slog.String("detail", note.Detail))
	}
	n.log.LogAttrs(context.Background(), level, note.Text, attrs...)
}
