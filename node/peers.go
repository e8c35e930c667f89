package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

const (
	dialTimeout   = time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 2 * time.Second
	downAtMost    = time.Second // how often a failed dial is told to the core again
	seedInterval  = time.Second // between rounds over the seeds
	maxDialErrors = 200         // bytes of an error that are compared to tell a change of state
)

// peers keeps one outgoing connection to each node that the core wants to be
// connected to.
type peers struct {
	self ring.NodeID
	in   *inbox
	say  func() *wire.Hello
	dial func(ctx context.Context, address string, hello *wire.Hello, h transport.Handler) (*transport.Conn, error)
	mesh func() wire.MeshID
	// learn is told the Hello of every node that was reached.
	learn func(*wire.Hello)
	log   *slog.Logger
	meter *meter

	ctx context.Context // of all peers; ends with run
	wg  sync.WaitGroup

	mu     sync.Mutex // all below
	wanted map[ring.NodeID]ring.Member
	all    map[ring.NodeID]*peer
	gossip map[ring.NodeID]string // mesh addresses by gossip
	ended  bool
}

// peer is one node to be connected to, and the goroutine that sees to it.
type peer struct {
	node   ring.NodeID
	cancel context.CancelFunc
	kick   chan struct{}        // capacity 1: dial again now
	lost   chan struct{}        // capacity 1: give up the connection
	offer  chan *transport.Conn // capacity 1: a connection that a seed's address led to

	up bool // guarded by peers.mu
}

// drop asks for the connection to be closed, after a frame for it was lost.
func (p *peer) drop() {
	select {
	case p.lost <- struct{}{}:
	default:
	}
}

// retry asks for a dial without waiting out the backoff.
func (p *peer) retry() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func newPeers(self ring.NodeID, in *inbox, log *slog.Logger, meter *meter) *peers {
	return &peers{
		self: self, in: in, log: log, meter: meter,
		wanted: map[ring.NodeID]ring.Member{}, all: map[ring.NodeID]*peer{}, gossip: map[ring.NodeID]string{},
	}
}

// set makes members the nodes to be connected to; this node itself is left out.
// Called by the loop: it starts and cancels goroutines, and waits for nothing.
func (s *peers) set(members []ring.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.wanted
	s.wanted = make(map[ring.NodeID]ring.Member, len(members))
	for _, m := range members {
		if m.ID == s.self {
			continue
		}
		s.wanted[m.ID] = m
		if p := s.all[m.ID]; p == nil {
			s.startLocked(m.ID, nil)
		} else if old[m.ID].Address != m.Address {
			p.retry()
		}
	}
	if len(s.wanted) == 0 {
		return // before joining: connections to seeds stay
	}
	for id, p := range s.all {
		if _, ok := s.wanted[id]; !ok {
			p.cancel()
		}
	}
}

// startLocked is called with s.mu held.
func (s *peers) startLocked(node ring.NodeID, link *transport.Conn) {
	if s.ended || s.ctx.Err() != nil {
		if link != nil {
			_ = link.Close()
		}
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p := &peer{
		node: node, cancel: cancel,
		kick: make(chan struct{}, 1), lost: make(chan struct{}, 1), offer: make(chan *transport.Conn, 1),
	}
	if link != nil {
		p.offer <- link
	}
	s.all[node] = p
	s.wg.Go(func() {
		defer cancel()
		s.keep(ctx, p)
	})
}

// adopt makes a connection to a seed that of its peer. It returns false, and leaves the
// connection alone, when there is one already.
func (s *peers) adopt(node ring.NodeID, link *transport.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.all[node]
	switch {
	case s.ended || p != nil && p.up:
		return false
	case p == nil:
		s.startLocked(node, link)
		return true
	}
	select {
	case p.offer <- link:
		return true
	default:
		return false
	}
}

// addressesByGossip tells where gossip says that nodes are. An alive node is dialed
// without waiting.
func (s *peers) addressesByGossip(alive map[ring.NodeID]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, address := range alive {
		if address == "" || s.gossip[id] == address {
			continue
		}
		s.gossip[id] = address
	}
	for id := range alive {
		if p := s.all[id]; p != nil && !p.up {
			p.retry()
		}
	}
}

// address is where to dial a node, at its try'th try since it was last connected; false
// when it is no longer to be dialed. Where gossip and ring differ gossip knows better,
// but it may be old news as well, so tries take turns.
func (s *peers) address(node ring.NodeID, try int) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.wanted[node]
	if a := s.gossip[node]; ok && a != "" && (try%2 == 0 || m.Address == "") {
		return a, true
	}
	return m.Address, ok
}

// connected is how many peers are connected, of how many.
func (s *peers) connected() (up, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		if p.up {
			up++
		}
	}
	return up, len(s.all)
}

func (s *peers) mark(p *peer, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.up = up
}

// wait waits for all goroutines; after it nothing starts any more.
func (s *peers) wait() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.wg.Wait()
}

// keep holds a connection to p until ctx ends or nobody wants it.
func (s *peers) keep(ctx context.Context, p *peer) {
	defer s.forget(p)
	k := keeper{peers: s, p: p}
	for {
		link := k.connect(ctx)
		if link == nil {
			return
		}
		if !k.hold(ctx, link) {
			return
		}
	}
}

// keeper is the state of one peer's goroutine.
type keeper struct {
	*peers
	p     *peer
	told  time.Time // when PeerDown was last given to the core
	state string    // what was last logged as wrong; empty: nothing
}

// connect dials until it has a connection, or is offered one. It returns nil when
// there is no need any more.
func (k *keeper) connect(ctx context.Context) *transport.Conn {
	backoff := minBackoff
	for try := 0; ; try++ {
		select {
		case link := <-k.p.offer:
			return link
		default:
		}
		address, wanted := k.address(k.p.node, try)
		if !wanted || ctx.Err() != nil {
			return nil
		}
		link, err := k.reach(ctx, address, k.p.node)
		if err == nil {
			k.meter.dials.WithLabelValues("connected").Inc()
			return link
		}
		if ctx.Err() != nil {
			return nil
		}
		k.meter.dials.WithLabelValues("failed").Inc()
		if text := short(err); text != k.state {
			k.state = text
			k.log.Warn("peer unreachable", "peer", k.p.node.String(), "address", address, "error", err)
		}
		k.down(false)
		wait := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-ctx.Done():
		case <-k.p.kick:
		case <-wait.C:
		case link := <-k.p.offer:
			wait.Stop()
			return link
		}
		wait.Stop()
		backoff = min(maxBackoff, backoff*2)
	}
}

// hold gives link to the core and watches it until it ends. It returns false when ctx
// has ended.
func (k *keeper) hold(ctx context.Context, link *transport.Conn) bool {
	select { // what was said about an older connection
	case <-k.p.lost:
	default:
	}
	if k.state != "" {
		k.state = ""
		k.log.Info("peer reached again", "peer", k.p.node.String(), "address", link.RemoteAddr().String())
	}
	hello := link.Hello()
	k.learn(hello)
	k.mark(k.p, true) // from now on nothing is offered
	select {
	case second := <-k.p.offer:
		_ = second.Close()
	default:
	}
	k.in.force(item{event: core.PeerUp{Node: k.p.node, Hello: hello}, peer: k.p, link: link})
	select {
	case <-ctx.Done():
	case <-k.p.lost:
	case <-link.Done():
	}
	err := link.Err()
	if err == nil {
		err = transport.ErrSlow
	}
	_ = link.Close()
	<-link.Done() // what it has brought comes before PeerDown
	k.mark(k.p, false)
	k.down(true)
	if ctx.Err() != nil {
		return false
	}
	k.state = "lost"
	k.log.Warn("peer lost", "peer", k.p.node.String(), "peer_name", hello.Name, "error", err)
	return true
}

// down tells the core that there is no connection: at once when it is lost, and at
// most each downAtMost while it cannot be made.
func (k *keeper) down(lost bool) {
	if !lost && !k.told.IsZero() && time.Since(k.told) < downAtMost {
		return
	}
	k.told = time.Now()
	k.in.force(item{event: core.PeerDown{Node: k.p.node}, peer: k.p})
}

// short is the text of err that is compared to tell a change of state.
func short(err error) string {
	text := err.Error()
	return text[:min(len(text), maxDialErrors)]
}

// forget takes p out, or starts it anew when it is wanted again.
func (s *peers) forget(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, p.node)
	select {
	case link := <-p.offer:
		_ = link.Close()
	default:
	}
	if _, wanted := s.wanted[p.node]; wanted && s.ctx.Err() == nil {
		s.startLocked(p.node, nil)
	}
}

// reach dials address and says Hello to node there. With node 0 any node of the mesh
// will do.
func (s *peers) reach(ctx context.Context, address string, node ring.NodeID) (*transport.Conn, error) {
	if address == "" {
		return nil, errors.New("no address is known")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	link, err := s.dial(ctx, address, s.say(), &outbound{in: s.in, node: node})
	if err != nil {
		return nil, err
	}
	remote := link.Hello()
	var wrong error
	switch err := checkHello(remote, s.mesh()); {
	case err != nil:
		wrong = err
	case remote.Node == 0:
		wrong = errors.New("no node answers there")
	case remote.Node == s.self:
		wrong = errSelf
	case node != 0 && remote.Node != node:
		wrong = fmt.Errorf("node %s answers there", remote.Node)
	case node != 0 && remote.Mesh == 0 && s.mesh() != 0:
		wrong = errNotJoined
	}
	if wrong != nil {
		_ = link.Close()
		return nil, wrong
	}
	return link, nil
}

var (
	errSelf      = errors.New("this node itself answers there")
	errNotJoined = errors.New("the node there has not joined a mesh yet")
)

// outbound takes what a peer sends on a connection that this node opened.
type outbound struct {
	in   *inbox
	node ring.NodeID // 0 until a seed has said who it is
}

// Request is refused: requests come on connections that the peer opens.
func (o *outbound) Request(c *transport.Conn, id uint64, msg wire.Message) {
	if _, ok := msg.(*wire.Ping); ok {
		_ = c.Reply(id, &wire.Done{})
		return
	}
	_ = c.Reply(id, wire.Errorf(wire.ErrBadRequest, "requests go on connections that the asking side has opened"))
}

// OneWay brings what the peer pushes to the loop.
func (o *outbound) OneWay(c *transport.Conn, msg wire.Message) {
	node := o.node
	if node == 0 {
		node = c.Hello().Node
	}
	o.in.put(item{event: core.Pushed{From: node, Msg: msg}, size: weigh(msg)})
}

// Closed needs nothing: the peer's goroutine watches the connection.
func (o *outbound) Closed(*transport.Conn, error) {}

// seeds looks for a first member among the addresses of Config.Join, while there is
// none: no mesh is joined, or no peer is connected.
type seeds struct {
	peers     *peers
	addresses []string
	state     map[string]string // what was last logged about each
}

func (s *seeds) run(ctx context.Context) error {
	if len(s.addresses) == 0 {
		return nil
	}
	tick := time.NewTicker(seedInterval)
	defer tick.Stop()
	for at := 0; ; at++ {
		if up, _ := s.peers.connected(); up == 0 {
			s.round(ctx, at)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round tries each seed once, until one answers.
func (s *seeds) round(ctx context.Context, at int) {
	for i := range s.addresses {
		if ctx.Err() != nil {
			return
		}
		address := s.addresses[(at+i)%len(s.addresses)]
		link, err := s.peers.reach(ctx, address, 0)
		if err == nil && link.Hello().Mesh == 0 {
			_ = link.Close()
			err = errNotJoined
		}
		if err != nil {
			s.tell(address, err)
			continue
		}
		s.tell(address, nil)
		if !s.peers.adopt(link.Hello().Node, link) {
			_ = link.Close()
			continue
		}
		return
	}
}

// tell logs what is new about a seed.
func (s *seeds) tell(address string, err error) {
	text := ""
	if err != nil {
		text = short(err)
	}
	if old, known := s.state[address]; known && old == text || !known && err == nil {
		s.state[address] = text
		return
	}
	s.state[address] = text
	switch {
	case err == nil:
		s.peers.log.Info("join target reached", "address", address)
	case errors.Is(err, context.Canceled):
	case errors.Is(err, wire.ErrWrongMesh):
		s.peers.log.Error("join target is of another mesh", "address", address, "error", err,
			"hint", "name a member of this node's mesh in --join, or start with an empty data directory")
	case errors.Is(err, errNotJoined):
		s.peers.log.Warn("join target waits too", "address", address, "error", err,
			"hint", "start one node without --join: it founds the mesh")
	case errors.Is(err, errSelf):
		s.peers.log.Debug("join target is this node", "address", address)
	default:
		s.peers.log.Warn("join target unreachable", "address", address, "error", err,
			"hint", "it is tried again every second")
	}
}
