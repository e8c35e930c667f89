package sim

import (
	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// link is one direction between two hosts.
type link struct {
	cut     int   // how many faults hold it cut
	slow    int64 // extra latency
	packets uint64
	dials   uint64
	key     uint64 // of its luck
}

func (w *world) link(a, b *host) *link {
	k := [2]int{a.index, b.index}
	l := w.links[k]
	if l == nil {
		l = &link{key: mix(a.key, b.key)}
		w.links[k] = l
	}
	return l
}

func (w *world) isCut(a, b *host) bool {
	l := w.links[[2]int{a.index, b.index}]
	return l != nil && l.cut > 0
}

type frameKind uint8

const (
	frameOneWay frameKind = iota
	frameRequest
	frameReply
)

type frame struct {
	kind    frameKind
	number  uint64
	msg     wire.Message
	arrives int64
}

// conn is one connection. Direction 0 goes from the side that opened it.
type conn struct {
	w        *world
	number   uint64
	luck     uint64 // key of its luck: the two hosts, and how many times they connected
	from, to *host
	life     [2]int // of both sides when it was made
	id       core.ConnID
	up       [2]bool // that side takes it for open
	dead     bool    // nothing arrives any more
	frames   [2][]frame
	pumpAt   [2]int64
	wrote    [2]int64 // when the last frame is written
	last     [2]int64 // when the last frame arrives
	cuts     [2]int   // counts cuts of the link, to tell one from the next

	calls map[uint64]func(wire.Message) // of a client; nil on loss
	next  uint64
}

func (c *conn) side(i int) *host {
	if i == 0 {
		return c.from
	}
	return c.to
}

// writeTime is when a frame that is given to the connection now is written.
func (w *world) writeTime(c *conn, dir int) int64 {
	l := w.link(c.side(dir), c.side(1-dir))
	t := w.now
	if l.slow > 0 {
		t += between(w.luck(luckWrite, c.luck, uint64(dir), l.packets), 0, l.slow/4)
	}
	return max(t, c.wrote[dir])
}

// send writes a frame. What arrives is an encoded and decoded copy.
func (w *world) send(c *conn, dir int, f frame) {
	from, to := c.side(dir), c.side(1-dir)
	l := w.link(from, to)
	write := w.writeTime(c, dir)
	c.wrote[dir] = write
	l.packets++
	d := w.net.latency + exponential(w.luck(luckLatency, l.key, 0, l.packets), w.net.jitter)
	if l.slow > 0 {
		d += between(w.luck(luckLatency, l.key, 1, l.packets), l.slow/2, l.slow)
	}
	if w.net.late > 0 && w.luck(luckLatency, l.key, 2, l.packets)%uint64(w.net.late) == 0 {
		d += between(w.luck(luckLatency, l.key, 3, l.packets), 5*millisecond, w.net.lateBy)
	}
	f.arrives = max(write+d, c.last[dir])
	c.last[dir] = f.arrives
	if w.tracing {
		note := ""
		if c.dead || l.cut > 0 {
			note = " lost"
		}
		w.tracef("%s -> %s %s%s", from.name, to.name, w.describe(f.msg), note)
	}
	if w.observe != nil {
		w.observe(c, dir, f, c.dead || l.cut > 0)
	}
	if c.dead {
		return
	}
	f.msg = w.copied(f.msg)
	c.frames[dir] = append(c.frames[dir], f)
	if len(c.frames[dir]) == 1 {
		w.pump(c, dir, f.arrives)
	}
}

// pump makes the frames of one direction arrive, in order, while the link holds.
func (w *world) pump(c *conn, dir int, t int64) {
	c.pumpAt[dir] = t
	w.at(t, func() {
		if c.dead || c.pumpAt[dir] != t {
			return
		}
		c.pumpAt[dir] = -1
		for len(c.frames[dir]) > 0 {
			if w.link(c.side(dir), c.side(1-dir)).cut > 0 {
				return // heal starts it again
			}
			f := c.frames[dir][0]
			if f.arrives > w.now {
				w.pump(c, dir, f.arrives)
				return
			}
			c.frames[dir] = c.frames[dir][1:]
			w.arrive(c, dir, f)
			if c.dead || w.failure != nil {
				return
			}
		}
	})
}

func (w *world) arrive(c *conn, dir int, f frame) {
	to := c.side(1 - dir)
	if !c.up[1-dir] || to.life != c.life[1-dir] {
		return
	}
	if to.client != nil && to.paused {
		to.inbox = append(to.inbox, func() { w.arrive(c, dir, f) })
		return
	}
	w.hashIn(3, c.number, uint64(dir), uint64(f.kind), f.number, uint64(f.msg.Type()))
	if to.client != nil {
		switch f.kind {
		case frameReply:
			done := c.calls[f.number]
			delete(c.calls, f.number)
			if done != nil {
				done(f.msg)
			}
		case frameOneWay:
			to.client.pushed(c, f.msg)
		}
		return
	}
	switch {
	case f.kind == frameReply:
		to.step(core.Answered{Token: core.Token(f.number), Msg: f.msg})
	case f.kind == frameRequest:
		to.lastReq++
		r := &request{conn: c, number: f.number, msg: f.msg, arrived: w.now}
		to.requests[to.lastReq] = r
		w.check.expect(to, to.lastReq, r)
		to.step(core.Request{Req: to.lastReq, Conn: c.id, Msg: f.msg})
	case dir == 0:
		to.step(core.Received{Conn: c.id, Msg: f.msg})
	default:
		to.step(core.Pushed{From: c.to.id, Msg: f.msg})
	}
}

// call sends a client's request; done gets the answer, or nil when the connection is lost.
func (c *conn) call(msg wire.Message, done func(wire.Message)) {
	c.next++
	c.calls[c.next] = done
	c.w.send(c, 0, frame{kind: frameRequest, number: c.next, msg: msg})
}

func (c *conn) oneWay(msg wire.Message) { c.w.send(c, 0, frame{kind: frameOneWay, msg: msg}) }

// dialPeers opens what connections are missing.
func (h *host) dialPeers() {
	if !h.running {
		return
	}
	if h.core.Mesh() == 0 {
		for _, s := range h.seeds {
			h.dial(s)
		}
	}
	for _, m := range h.peers {
		if to := h.w.node(m.ID); to != nil && to != h {
			h.dial(to)
		}
	}
}

func (h *host) wants(to *host) bool {
	if h.core.Mesh() == 0 {
		for _, s := range h.seeds {
			if s == to {
				return true
			}
		}
	}
	for _, m := range h.peers {
		if m.ID == to.id {
			return true
		}
	}
	return false
}

// dial tries to connect to a node once. A node tries again for as long as it
// wants the peer; a client is told that it failed.
func (h *host) dial(to *host) {
	w := h.w
	if h.out[to.index] != nil || h.dialing[to.index] {
		return
	}
	h.dialing[to.index] = true
	life := h.life
	w.conns++
	number := w.conns
	l := w.link(h, to)
	l.dials++
	luck := mix(l.key, l.dials)
	trip := w.net.latency + exponential(w.luck(luckDial, luck, 0, 0), w.net.jitter) + l.slow
	peer := to.id
	fail := func(d int64) {
		w.after(d, func() {
			if h.life != life {
				return
			}
			delete(h.dialing, to.index)
			if h.client != nil {
				h.now(func() { h.client.closed(to) })
				return
			}
			h.give(life, core.PeerDown{Node: peer})
			h.redial(to)
		})
	}
	if w.isCut(h, to) || w.isCut(to, h) {
		fail(w.net.keepalive + between(w.luck(luckDial, luck, 1, 0), 0, second))
		return
	}
	w.after(trip, func() {
		if h.life != life {
			return
		}
		if w.isCut(h, to) || w.isCut(to, h) {
			fail(w.net.keepalive + between(w.luck(luckDial, luck, 1, 0), 0, second))
			return
		}
		if to.paused { // the kernel takes the connection, nobody says Hello
			fail(w.net.keepalive + between(w.luck(luckDial, luck, 1, 0), 0, second))
			return
		}
		if !to.running || to.id != peer || to.core.Mesh() == 0 || h.client == nil && h.core.Mesh() != 0 && h.core.Mesh() != to.core.Mesh() {
			fail(trip)
			return
		}
		c := &conn{w: w, number: number, luck: luck, from: h, to: to, life: [2]int{h.life, to.life}, pumpAt: [2]int64{-1, -1}, calls: map[uint64]func(wire.Message){}}
		to.lastConn++
		c.id = to.lastConn
		c.up[1] = true
		to.in[c.id] = c
		hello := &wire.Hello{
			Version: wire.Version, MinVersion: wire.MinVersion, Mesh: to.core.Mesh(), Node: to.id, Boot: to.boot, Name: to.name,
			Gossip: to.name + ":7701", Ring: to.core.Table().Number, Catalog: to.core.CatalogVersion(), Commit: to.core.Commit(),
		}
		to.step(core.ConnOpened{Conn: c.id, Node: h.id})
		w.hashIn(4, number)
		c.last[1] = w.now + trip
		w.after(trip, func() {
			if h.life != life || c.dead {
				if h.life == life {
					delete(h.dialing, to.index)
					w.at(w.now, func() { h.lostDial(life, to, peer) })
				}
				return
			}
			delete(h.dialing, to.index)
			c.up[0] = true
			h.out[to.index] = c
			if h.client != nil {
				h.now(func() { h.client.opened(c) })
				return
			}
			h.give(life, core.PeerUp{Node: peer, Hello: w.copied(hello).(*wire.Hello)})
		})
	})
}

func (h *host) lostDial(life int, to *host, peer any) {
	if h.life != life {
		return
	}
	if h.client != nil {
		h.now(func() { h.client.closed(to) })
		return
	}
	h.give(life, core.PeerDown{Node: to.id})
	h.redial(to)
}

func (h *host) redial(to *host) {
	w := h.w
	if !h.running || h.client != nil {
		return
	}
	life := h.life
	l := w.link(h, to)
	l.dials++
	w.after(w.net.redial+between(w.luck(luckDial, mix(l.key, l.dials), 2, 0), 0, w.net.redial), func() {
		if h.life == life && h.wants(to) {
			h.dial(to)
		}
	})
}

// lose breaks a connection because of gone, one of its hosts, or (nil) of the
// network between them. Each side that lives learns of it in its own time.
func (w *world) lose(c *conn, gone *host) {
	if c.dead {
		return
	}
	c.dead = true
	c.frames = [2][]frame{}
	for i := range 2 {
		h := c.side(i)
		if h == gone {
			w.closeSide(c, i)
			continue
		}
		d := w.net.latency + exponential(w.luck(luckClose, c.luck, uint64(i), 0), w.net.jitter)
		if w.isCut(c.side(1-i), h) {
			d = w.net.keepalive + between(w.luck(luckClose, c.luck, uint64(i), 1), 0, w.net.keepalive)
		} else if gone == nil && w.luck(luckClose, c.luck, uint64(i), 2)%4 == 0 {
			d += between(w.luck(luckClose, c.luck, uint64(i), 3), 0, 500*millisecond) // one side learns of it late
		}
		w.after(d, func() { w.closeSide(c, i) })
	}
}

func (w *world) closeSide(c *conn, i int) {
	if !c.up[i] {
		return
	}
	c.up[i] = false
	h := c.side(i)
	if h.life != c.life[i] {
		return
	}
	w.hashIn(5, c.number, uint64(i))
	if i == 1 {
		delete(h.in, c.id)
		h.step(core.ConnClosed{Conn: c.id})
		return
	}
	delete(h.out, c.to.index)
	if h.client != nil {
		h.now(func() { h.lostConn(c) })
		return
	}
	h.step(core.PeerDown{Node: c.to.id})
	h.redial(c.to)
}

// lostConn tells a client that what it asked on a connection has no answer.
func (h *host) lostConn(c *conn) {
	calls := c.calls
	c.calls = map[uint64]func(wire.Message){}
	for n := uint64(1); n <= c.next; n++ {
		if done := calls[n]; done != nil {
			done(nil)
		}
	}
	h.client.closed(c.to)
}

// cut stops the direction from a to b. Connections over it live on in silence
// until the keepalive gives them up.
func (w *world) cut(a, b *host) {
	l := w.link(a, b)
	if l.cut++; l.cut > 1 {
		return
	}
	w.gossip()
	for _, c := range a.connections() {
		if c.from == b || c.to == b {
			dir := 0
			if c.from == b {
				dir = 1
			}
			c.cuts[dir]++
			cuts := c.cuts
			w.after(w.net.keepalive+between(w.luck(luckClose, c.luck, 9, uint64(c.cuts[dir])), 0, w.net.keepalive), func() {
				if !c.dead && c.cuts == cuts && l.cut > 0 {
					w.lose(c, nil)
				}
			})
		}
	}
}

// heal ends one cut of the direction from a to b.
func (w *world) heal(a, b *host) {
	l := w.link(a, b)
	if l.cut == 0 {
		return
	}
	if l.cut--; l.cut > 0 {
		return
	}
	w.gossip()
	for _, c := range a.connections() {
		if c.from != b && c.to != b || c.dead {
			continue
		}
		dir := 0
		if c.from == b {
			dir = 1
		}
		c.cuts[dir]++
		if len(c.frames[dir]) > 0 { // sent again when the sender next tries
			d := between(w.luck(luckClose, c.luck, 10, uint64(c.cuts[dir])), 0, 400*millisecond)
			w.pump(c, dir, max(w.now+d, c.frames[dir][0].arrives))
		}
	}
}

// breakConns loses the connections between a and b, as a reset does.
func (w *world) breakConns(a, b *host) {
	for _, c := range a.connections() {
		if c.from == b || c.to == b {
			w.lose(c, nil)
		}
	}
}
