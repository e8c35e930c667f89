package node

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// inbound is a connection that a client or another node has opened to this one.
type inbound struct {
	c    *transport.Conn
	id   core.ConnID
	node ring.NodeID // 0: a client
	in   *inbox
	door *door

	// Only the loop uses these.
	waiting map[core.ReqID]struct{} // requests without an answer
	gone    bool                    // nothing more is written to it
}

// Request brings a request to the loop; it waits when the loop has too much to do, and
// with it the other side.
func (i *inbound) Request(_ *transport.Conn, id uint64, msg wire.Message) {
	req := core.ReqID(i.door.lastReq.Add(1))
	i.in.put(item{event: core.Request{Req: req, Conn: i.id, Msg: msg}, conn: i, id: id, size: weigh(msg)})
}

// OneWay brings a message to the loop.
func (i *inbound) OneWay(_ *transport.Conn, msg wire.Message) {
	i.in.put(item{event: core.Received{Conn: i.id, Msg: msg}, conn: i, size: weigh(msg)})
}

// Closed is the last that comes from the connection.
func (i *inbound) Closed(*transport.Conn, error) {
	i.door.left(i)
	i.in.force(item{event: core.ConnClosed{Conn: i.id}, conn: i})
}

// door decides who may connect, and knows who has.
type door struct {
	self ring.NodeID
	in   *inbox
	loop *loop
	say  func() *wire.Hello
	// learn is told the Hello of every node that has connected.
	learn func(*wire.Hello)
	log   *slog.Logger

	lastConn, lastReq atomic.Uint64

	mu      sync.Mutex // boots, clients, nodes, refused
	boots   map[ring.NodeID]uint64
	clients int
	nodes   int
	refused map[ring.NodeID]wire.Code // what was last said about a node that was refused
}

// accept is called for each Hello that comes in.
func (d *door) accept(c *transport.Conn, remote *wire.Hello) (*wire.Hello, transport.Handler, error) {
	if err := d.check(remote); err != nil {
		d.tell(c, remote, err)
		return nil, nil, err
	}
	conn := &inbound{
		c: c, id: core.ConnID(d.lastConn.Add(1)), node: remote.Node, in: d.in, door: d, waiting: map[core.ReqID]struct{}{},
	}
	if !d.in.force(item{event: core.ConnOpened{Conn: conn.id, Node: remote.Node}, conn: conn}) {
		return nil, nil, wire.Errorf(wire.ErrNotReady, "node is stopping")
	}
	d.entered(conn)
	d.learn(remote)
	return d.say(), conn, nil
}

// check tells why the other side may not connect.
func (d *door) check(remote *wire.Hello) *wire.Error {
	if err := checkHello(remote, d.loop.facts.Load().mesh); err != nil {
		return err
	}
	if remote.Node == 0 {
		return nil
	}
	if remote.Node == d.self {
		return wire.Errorf(wire.ErrUnauthorized, "this is the node itself")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if highest := d.boots[remote.Node]; remote.Boot < highest {
		return wire.Errorf(wire.ErrOlderData, "data directory of node %s is of boot %d, boot %d was seen", remote.Node, remote.Boot, highest)
	}
	if _, known := d.boots[remote.Node]; known || len(d.boots) < maxKnown {
		d.boots[remote.Node] = remote.Boot
	}
	return nil
}

// checkHello tells why two sides cannot talk. mesh is this node's, 0 before it has
// joined one.
func checkHello(remote *wire.Hello, mesh wire.MeshID) *wire.Error {
	if remote.MinVersion > wire.Version || remote.Version < wire.MinVersion {
		return wire.Errorf(wire.ErrVersion, "protocol versions %d to %d are spoken here, %d to %d there",
			wire.MinVersion, wire.Version, remote.MinVersion, remote.Version)
	}
	if remote.Mesh != 0 && mesh != 0 && remote.Mesh != mesh {
		return wire.Errorf(wire.ErrWrongMesh, "this node is of mesh %s, the other of mesh %s", mesh, remote.Mesh)
	}
	return nil
}

// tell logs a refused node, once for each reason.
func (d *door) tell(c *transport.Conn, remote *wire.Hello, err *wire.Error) {
	if remote.Node == 0 {
		d.log.Debug("client refused", "address", c.RemoteAddr().String(), "error", err)
		return
	}
	d.mu.Lock()
	known := d.refused[remote.Node] == err.Code || len(d.refused) >= maxKnown
	if !known {
		d.refused[remote.Node] = err.Code
	}
	d.mu.Unlock()
	if !known {
		d.log.Warn("node refused", "peer", remote.Node.String(), "peer_name", remote.Name, "address", c.RemoteAddr().String(), "error", err)
	}
}

func (d *door) entered(i *inbound) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i.node == 0 {
		d.clients++
	} else {
		d.nodes++
		delete(d.refused, i.node)
	}
}

func (d *door) left(i *inbound) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i.node == 0 {
		d.clients--
	} else {
		d.nodes--
	}
}

// count is how many connections others hold to this node.
func (d *door) count() (clients, nodes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clients, d.nodes
}
