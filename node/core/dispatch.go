package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// spoke notes that something came on a connection, and returns the member behind it; 0
// for a client.
func (c *Core) spoke(id ConnID) ring.NodeID {
	x := c.conns[id]
	if x == nil {
		return 0
	}
	x.hungUntil = 0
	if x.node != 0 {
		c.peer(x.node).heard = c.now.Mono
	}
	return x.node
}

// request answers a message that wants a Reply.
func (c *Core) request(ev Request) {
	from := c.spoke(ev.Conn)
	switch m := ev.Msg.(type) {
	case *wire.Ping:
		c.reply(ev.Req, &wire.Done{})
		return
	case *wire.GetNode:
		c.reply(ev.Req, c.nodeInfo())
		return
	case *wire.GetMesh:
		c.reply(ev.Req, c.meshMessage())
		return
	case *wire.Join:
		c.onJoin(ev.Req, m)
		return
	}
	if !c.member() {
		c.reply(ev.Req, wire.Errorf(wire.ErrNotReady, "node %s has not joined the mesh yet", c.cfg.Self.Name))
		return
	}
	if c.clientRequest(ev) {
		return
	}
	if from == 0 {
		c.reply(ev.Req, wire.Errorf(wire.ErrBadRequest, "message type %d is for members of the mesh", ev.Msg.Type()))
		return
	}
	switch m := ev.Msg.(type) {
	case *wire.Replicate:
		c.onReplicate(ev.Req, m)
	case *wire.StoreAcks:
		c.onStoreAcks(ev.Req, m)
	case *wire.Claim:
		c.onClaim(ev.Req, from, m)
	case *wire.Renew:
		c.onRenew(ev.Req, from, m)
	case *wire.Offer:
		c.onOffer(ev.Req, from, m)
	case *wire.Release:
		c.onRelease(ev.Req, m)
	case *wire.GetState:
		c.onGetState(ev.Req, m)
	case *wire.GetBatches:
		c.onGetBatches(ev.Req, m)
	case *wire.Digests:
		c.onDigests(ev.Req, from, m)
	case *wire.GetCatalog:
		c.reply(ev.Req, &wire.Catalog{Version: c.catalog.version, Entries: c.catalog.all(), Partial: c.catalogLost})
	case *wire.PutCatalog:
		c.putCatalog(ev.Req, m)
	case *wire.GetRings:
		c.reply(ev.Req, &wire.Rings{Tables: c.rings.from(m.From), Boots: c.boots()})
	case *wire.RingPrepare:
		c.onRingPrepare(ev.Req, from, m)
	case *wire.RingAccept:
		c.onRingAccept(ev.Req, from, m)
	default:
		c.reply(ev.Req, wire.Errorf(wire.ErrBadRequest, "message type %d is not a request", ev.Msg.Type()))
	}
}

// clientRequest answers what clients and members may ask alike.
func (c *Core) clientRequest(ev Request) bool {
	switch m := ev.Msg.(type) {
	case *wire.Enqueue:
		c.enqueue(ev.Req, m)
	case *wire.Settle:
		c.settle(ev.Req, m)
	case *wire.CreateQueue:
		c.createQueue(ev.Req, m, c.now.Mono+settleWait, false)
	case *wire.DeleteQueue:
		c.deleteQueue(ev.Req, m, false)
	case *wire.UpdateQueue:
		c.updateQueue(ev.Req, m, c.now.Mono+settleWait, false)
	case *wire.PauseQueue:
		c.pauseQueue(ev.Req, m, false)
	case *wire.ListQueues:
		c.listQueues(ev.Req)
	case *wire.DescribeQueue:
		c.describeQueue(ev.Req, m, false)
	case *wire.Inspect:
		c.inspect(ev.Req, m)
	default:
		return false
	}
	return true
}

// received takes a one-way message. What is out of place is dropped.
func (c *Core) received(ev Received) {
	from := c.spoke(ev.Conn)
	if c.conns[ev.Conn] == nil {
		return
	}
	switch m := ev.Msg.(type) { // also before this node has joined: demand stays
	case *wire.Subscribe:
		c.subscribe(ev.Conn, m)
		return
	case *wire.Unsubscribe:
		c.unsubscribe(subKey{ev.Conn, m.Sub})
		return
	case *wire.Resume:
		c.relayResume(c.subs[subKey{ev.Conn, m.Sub}], m)
		c.onResume(ev.Conn, m)
		return
	}
	if !c.member() {
		if m, ok := ev.Msg.(*wire.Rings); ok && from != 0 && c.mesh != 0 {
			c.onRings(m) // its own step, agreed before it heard of it
		}
		return
	}
	if from == 0 {
		return
	}
	switch m := ev.Msg.(type) {
	case *wire.Beat:
		c.onBeat(from, m)
	case *wire.Remembered:
		c.onRemembered(from, m)
	case *wire.Rings:
		c.onRings(m)
	case *wire.Watermarks:
		c.onWatermarks(m)
	case *wire.Retries:
		c.onRetries(m)
	case *wire.Copied:
		c.onCopied(from, m)
	case *wire.Moved:
		c.onMoved(m)
	}
}
