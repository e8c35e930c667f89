package node

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Gossip settings: a dead node is known to all within 2 s, seldom 2.6 s, in a mesh of 3 to 9. Half of
// all pauses of 1 s are called deaths, which is harmless as gossip moves no data.
const (
	probeInterval    = 300 * time.Millisecond
	probeTimeout     = 150 * time.Millisecond
	gossipInterval   = 200 * time.Millisecond
	suspicionMult    = 4
	suspicionMaxMult = 2
	retransmitMult   = 8
	reclaimTime      = 5 * time.Second
	streamTimeout    = 2 * time.Second // of a push/pull, and so of one try to join
	rejoinInterval   = 5 * time.Second // sim/gossip.go has the same
	leaveTimeout     = time.Second
	maxKnown         = 4096 // nodes remembered from Hellos
)

// meta is what a node says of itself by gossip, as a msgpack array within
// memberlist.MetaMaxSize. Fields are only appended.
type meta struct {
	_msgpack struct{} `msgpack:",as_array"` //lint:ignore U1000 read by msgpack

	Name    string
	Address string // mesh port
	HTTP    string
	Zone    string
	Weight  uint16
	Ring    uint64
	Version uint16 // of the protocol
}

// gossip finds and watches nodes. It decides nothing: it tells the core who seems to be
// alive, and the dialers where nodes are.
type gossip struct {
	self      ring.NodeID
	boot      uint64
	me        ring.Member
	key       []byte
	transport *memberlist.NetTransport
	facts     func() *facts
	in        *inbox
	peers     *peers
	log       *slog.Logger

	joined  chan struct{} // closed when the mesh is known
	changed chan struct{} // capacity 1: alive has changed
	refresh chan struct{} // capacity 1: the ring number has changed
	rejoin  chan struct{} // capacity 1: try to reach those who are not alive, now

	meta    atomic.Pointer[[]byte]
	told    []ring.Member // where the others listen, as the core was told; only tell uses it
	leaving atomic.Bool   // leave the mesh at the end, rather than fall silent

	mu    sync.Mutex // alive, known; delegates take it, with memberlist's lock held
	alive map[string]member
	known map[ring.NodeID]string // gossip addresses, from Hellos
}

// member is one living node, as memberlist tells.
type member struct {
	node   ring.NodeID
	boot   uint64
	gossip string
	meta   meta
}

// gossipName is a node's name in gossip: a restart is a new member.
func gossipName(node ring.NodeID, boot uint64) string { return fmt.Sprintf("%s#%d", node, boot) }

func parseGossipName(name string) (node ring.NodeID, boot uint64, ok bool) {
	id, number, ok := strings.Cut(name, "#")
	if !ok {
		return 0, 0, false
	}
	node, err := ring.ParseNodeID(id)
	if err != nil {
		return 0, 0, false
	}
	boot, err = strconv.ParseUint(number, 10, 64)
	return node, boot, err == nil
}

// listenGossip takes the gossip port, TCP and UDP.
func listenGossip(address string, l *slog.Logger) (*memberlist.NetTransport, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	tries := 1
	if port == 0 {
		tries = 10 // the free TCP port may be taken for UDP
	}
	for range tries {
		var t *memberlist.NetTransport
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{host}, BindPort: port, Logger: log.New(gossipLog{l}, "", 0),
		})
		if err == nil {
			return t, nil
		}
	}
	if strings.Contains(err.Error(), "address already in use") { // its errors do not unwrap
		err = ErrPortInUse
	}
	return nil, err
}

// closeGossip frees a transport that no memberlist reads from.
func closeGossip(t *memberlist.NetTransport) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = t.Shutdown()
	}()
	for {
		select {
		case c := <-t.StreamCh():
			_ = c.Close()
		case <-t.PacketCh():
		case <-done:
			return
		}
	}
}

// learn remembers the gossip address of a node that said Hello.
func (g *gossip) learn(h *wire.Hello) {
	if h.Node == 0 || h.Gossip == "" || h.Node == g.self {
		return
	}
	g.mu.Lock()
	old, known := g.known[h.Node]
	changed := old != h.Gossip && (known || len(g.known) < maxKnown)
	if changed {
		g.known[h.Node] = h.Gossip
	}
	g.mu.Unlock()
	if changed {
		poke(g.rejoin)
	}
}

// run takes part in gossip from the moment that the mesh is known until ctx ends.
func (g *gossip) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		closeGossip(g.transport)
		return nil
	case <-g.joined:
	}
	g.encode()
	list, err := memberlist.Create(g.config())
	if err != nil {
		closeGossip(g.transport)
		return fmt.Errorf("gossip: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { g.reach(ctx, list) })
	var told []ring.NodeID
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-g.changed:
			told = g.tell(told)
		case <-g.refresh:
			g.encode()
			if err := list.UpdateNode(time.Second); err != nil {
				g.log.Debug("gossip: ring number not spread yet", "error", err)
			}
		}
	}
	if g.leaving.Load() {
		if err := list.Leave(leaveTimeout); err != nil {
			g.log.Debug("gossip: leave", "error", err)
		}
	}
	wg.Wait()
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	return nil
}

// GossipSettings are the settings of memberlist that are the same on all nodes: all but names,
// addresses and keys. The simulator's model of gossip is held to what memberlist does with them.
func GossipSettings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.GossipInterval, c.RetransmitMult = gossipInterval, retransmitMult
	c.DeadNodeReclaimTime = reclaimTime
	c.TCPTimeout = streamTimeout
	return c
}

func (g *gossip) config() *memberlist.Config {
	host, portText, _ := net.SplitHostPort(g.me.Gossip)
	port, _ := strconv.Atoi(portText)
	c := GossipSettings()
	c.Name = gossipName(g.self, g.boot)
	c.Label = g.facts().mesh.String()
	c.Transport = g.transport
	c.BindPort = g.transport.GetAutoBindPort()
	c.AdvertiseAddr, c.AdvertisePort = host, port
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		c.AdvertiseAddr = resolve(host)
	}
	c.SecretKey = g.key
	c.Delegate, c.Events = g, g
	c.Logger = log.New(gossipLog{g.log}, "", 0)
	return c
}

// resolve is the first IP address of host, or empty.
func resolve(host string) string {
	ips, err := net.LookupIP(host)
	if err != nil || len(ips) == 0 {
		return ""
	}
	return ips[0].String()
}

// encode prepares what NodeMeta returns. Names are cut where it would be too long.
func (g *gossip) encode() {
	m := meta{
		Name: g.me.Name, Address: g.me.Address, HTTP: g.me.HTTP, Zone: g.me.Zone, Weight: g.me.Weight,
		Ring: g.facts().table.Number, Version: wire.Version,
	}
	b, err := msgpack.Marshal(&m)
	if err != nil || len(b) > memberlist.MetaMaxSize {
		m.Name, m.HTTP = "", "" // the ring has them too
		if b, err = msgpack.Marshal(&m); err != nil || len(b) > memberlist.MetaMaxSize {
			b = nil
		}
	}
	g.meta.Store(&b)
}

// reach is the node's own rejoin loop: memberlist never dials the dead again. It tries
// every node of the ring, and every node that has said Hello, that is not alive.
func (g *gossip) reach(ctx context.Context, list *memberlist.Memberlist) {
	tick := time.NewTicker(rejoinInterval)
	defer tick.Stop()
	for {
		for _, address := range g.missing() {
			if ctx.Err() != nil {
				return
			}
			if _, err := list.Join([]string{address}); err != nil {
				g.log.Debug("gossip: join", "address", address, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.rejoin:
		}
	}
}

// missing are the gossip addresses of nodes that are not alive, sorted.
func (g *gossip) missing() []string {
	table := g.facts().table
	g.mu.Lock()
	defer g.mu.Unlock()
	alive := map[ring.NodeID]bool{g.self: true}
	for _, m := range g.alive {
		alive[m.node] = true
	}
	var out []string
	for _, m := range table.Members {
		if m.Gossip != "" && !alive[m.ID] {
			out = append(out, m.Gossip)
		}
	}
	for id, address := range g.known {
		if !alive[id] {
			out = append(out, address)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// tell gives the core the sorted list of the living, when it has changed, and the
// dialers the addresses.
func (g *gossip) tell(told []ring.NodeID) []ring.NodeID {
	living, members := g.living()
	addresses := make(map[ring.NodeID]string, len(members))
	for _, m := range members {
		addresses[m.ID] = m.Address
	}
	g.peers.addressesByGossip(addresses)
	if slices.Equal(told, living) && slices.Equal(g.told, members) {
		return told
	}
	g.told = members
	for _, id := range living {
		if id != g.self && !slices.Contains(told, id) {
			g.log.Info("node alive", "peer", id.String(), "address", addresses[id])
		}
	}
	for _, id := range told {
		if !slices.Contains(living, id) {
			g.log.Warn("node dead or gone", "peer", id.String())
		}
	}
	g.in.force(item{event: core.Members{Alive: slices.Clone(living), Addresses: slices.Clone(members)}})
	return living
}

// living is who is alive, this node included, and where the others listen; both sorted.
func (g *gossip) living() ([]ring.NodeID, []ring.Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := []ring.NodeID{g.self}
	newest := map[ring.NodeID]member{}
	for _, m := range g.alive {
		if m.node == g.self {
			continue
		}
		old, ok := newest[m.node]
		if !ok {
			out = append(out, m.node)
		}
		if !ok || old.boot < m.boot {
			newest[m.node] = m
		}
	}
	slices.Sort(out)
	var members []ring.Member
	for _, id := range out {
		if m, ok := newest[id]; ok && m.meta.Address != "" {
			members = append(members, ring.Member{ID: id, Address: m.meta.Address, HTTP: m.meta.HTTP})
		}
	}
	return out, members
}

// The delegates run with memberlist's lock held or in its packet loop: they block on
// nothing, and call nothing of memberlist.

// NotifyJoin notes a member that has come.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.note(n) }

// NotifyUpdate notes what a member says of itself now.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.note(n) }

// NotifyLeave notes a member that has died or left.
func (g *gossip) NotifyLeave(n *memberlist.Node) {
	g.mu.Lock()
	delete(g.alive, n.Name)
	g.mu.Unlock()
	poke(g.changed)
}

func (g *gossip) note(n *memberlist.Node) {
	node, boot, ok := parseGossipName(n.Name)
	if !ok {
		return
	}
	m := member{node: node, boot: boot, gossip: n.Address()}
	if err := msgpack.Unmarshal(n.Meta, &m.meta); err != nil {
		m.meta = meta{} // of a version that this one does not read: alive all the same
	}
	g.mu.Lock()
	g.alive[n.Name] = m
	g.mu.Unlock()
	poke(g.changed)
}

// NodeMeta is what this node says of itself.
func (g *gossip) NodeMeta(limit int) []byte {
	if b := g.meta.Load(); b != nil && len(*b) <= limit {
		return *b
	}
	return nil
}

// NotifyMsg, GetBroadcasts, LocalState and MergeRemoteState are not used: state goes
// over connections, not by gossip.
func (g *gossip) NotifyMsg([]byte)                  {}
func (g *gossip) GetBroadcasts(_, _ int) [][]byte   { return nil }
func (g *gossip) LocalState(bool) []byte            { return nil }
func (g *gossip) MergeRemoteState(_ []byte, _ bool) {}

// poke signals a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// gossipLog brings memberlist's lines to a logger, at debug level.
type gossipLog struct{ log *slog.Logger }

func (g gossipLog) Write(line []byte) (int, error) {
	g.log.Debug("gossip: " + string(bytes.TrimSpace(line)))
	return len(line), nil
}
