package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// link is one direction between two hosts.
type link struct {
	cut     int       // how many faults hold it cut
	slow    int64     // extra latency
	loss    []float64 // shares of packets that are lost and sent again
	corrupt []float64 // shares of packets that are damaged
	rates   []int64   // bytes a second; the lowest counts
	busy    int64     // until then what was written before is still on its way out
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
	damaged bool // whoever gets it sees that
}

// conn is one connection. Direction 0 goes from the side that opened it.
type conn struct {
	w        *world
	number   uint64
	at       int64  // when it was made
	luck     uint64 // key of its luck: the two hosts, and how many times they connected
	from, to *host
	life     [2]int // of both sides when it was made
	id       core.ConnID
	peer     ring.NodeID // of to, then
	up       [2]bool     // that side takes it for open
	dead     bool        // nothing arrives any more
	frames   [2][]frame
	pumpAt   [2]int64
	wrote    [2]int64 // when the last frame is written
	last     [2]int64 // when the last frame arrives
	cuts     [2]int   // counts cuts of the link, to tell one from the next

	hello *wire.Hello                   // of the side that took it
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
	if rate := l.rate(); rate > 0 { // the buffers of both kernels take what is not on its way out yet
		t = max(t, l.busy-socketBuffer*second/rate)
	}
	return max(t, c.wrote[dir])
}

// Of TCP.
const (
	socketBuffer    = 64 << 10 // bytes
	packetBytes     = 1400
	retransmitAfter = 200 * millisecond // doubles each time
)

// rate is the bytes a second that pass; 0: as many as there are.
func (l *link) rate() int64 {
	if len(l.rates) == 0 {
		return 0
	}
	return slices.Min(l.rates)
}

// share is what remains of independent shares that are taken away one after another.
func share(of []float64) float64 {
	left := 1.0
	for _, s := range of {
		left *= 1 - s
	}
	return 1 - left
}

// underway is how long size bytes that are written now are on their way.
func (w *world) underway(l *link, size int, write int64) int64 {
	d := w.net.latency + exponential(w.luck(luckLatency, l.key, 0, l.packets), w.net.jitter)
	if l.slow > 0 {
		d += between(w.luck(luckLatency, l.key, 1, l.packets), l.slow/2, l.slow)
	}
	for _, late := range w.net.late {
		if coin := w.luck(luckLatency, mix(l.key, late.key), 2, l.packets); coin%uint64(late.oneIn) == 0 {
			d += between(mix(coin, 1), min(5*millisecond, late.by/2), late.by)
		}
	}
	if p := share(l.loss); p > 0 {
		for i := range uint64(size/packetBytes + 1) { // the frame is there when its last packet is
			wait, again := int64(0), int64(retransmitAfter)
			for n := uint64(0); n < 6 && unit(w.luck(luckTCP, mix(l.key, i), n, l.packets)) < p; n++ {
				wait += again
				again *= 2
			}
			d = max(d, w.net.latency+wait)
		}
	}
	if rate := l.rate(); rate > 0 {
		l.busy = max(l.busy, write) + int64(size)*second/rate
		d += l.busy - write
	}
	return d
}

// send writes a frame. What arrives is an encoded and decoded copy.
func (w *world) send(c *conn, dir int, f frame) {
	from, to := c.side(dir), c.side(1-dir)
	l := w.link(from, to)
	write := w.writeTime(c, dir)
	c.wrote[dir] = write
	l.packets++
	copied, bytes := w.copied(f.msg)
	size := len(bytes)
	w.hashIn(hashSend, c.number, uint64(dir), uint64(f.kind), f.number, xxhash.Sum64(bytes))
	f.arrives = max(write+w.underway(l, size, write), c.last[dir])
	if silent := write + w.net.keepalive + between(w.luck(luckClose, c.luck, 11, l.packets), 0, w.net.keepalive); len(l.loss) > 0 && f.arrives > silent {
		w.at(silent, func() { w.lose(c, nil) })
	}
	if p := share(l.corrupt); p > 0 {
		var hurt []int
		for i := range uint64(size/packetBytes + 1) {
			if unit(w.luck(luckTCP, mix(l.key, i), 7, l.packets)) < p {
				first, end := int(i)*packetBytes, min(int(i+1)*packetBytes, size)
				hurt = append(hurt, first*8+int(w.luck(luckTCP, mix(l.key, i), 8, l.packets)%uint64(8*max(1, end-first))))
			}
		}
		if len(hurt) > 0 {
			copied = damage(bytes, hurt)
			f.damaged = copied == nil
		}
	}
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
	f.msg = copied
	c.frames[dir] = append(c.frames[dir], f)
	if len(c.frames[dir]) == 1 {
		w.pump(c, dir, f.arrives)
	}
}

// damage flips bits of an encoded message and gives what its receiver makes of it: nil
// if it sees that. All up to the payload is under the checksum of the frame, and of the
// payload under that of a batch or a delivery, which decoding checks. (The receiver then
// ends the connection and says why. That answers no request, so it is told from a
// connection that is lost in the text of errors alone, and not modelled.)
func damage(encoded []byte, bits []int) wire.Message {
	payload := 5 + int(binary.BigEndian.Uint32(encoded[1:]))
	hurt := slices.Clone(encoded)
	for _, bit := range bits {
		if bit/8 < payload || bit/8 >= len(hurt) {
			return nil
		}
		hurt[bit/8] ^= 1 << (bit % 8)
	}
	msg, err := wire.Decode(hurt)
	switch {
	case err == nil:
		return msg
	case errors.Is(err, wire.ErrBadBatch), errors.Is(err, wire.ErrBadMessage):
		return nil
	}
	panic(fmt.Sprintf("damage on the way is refused as if it had been sent: %v", err)) // P10: the sender was right
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
			if w.story != nil {
				to := c.side(1 - dir)
				w.story.arriving(c, dir, !f.damaged && c.up[1-dir] && to.life == c.life[1-dir])
			}
			w.arrive(c, dir, f)
			if c.dead || w.failure != nil {
				return
			}
		}
	})
}

func (w *world) arrive(c *conn, dir int, f frame) {
	to := c.side(1 - dir)
	if f.damaged { // who gets it ends the connection
		if w.tracing {
			w.tracef("%s gets a damaged frame from %s", to.name, c.side(dir).name)
		}
		w.lose(c, nil)
		return
	}
	if !c.up[1-dir] || to.life != c.life[1-dir] {
		return
	}
	if to.client != nil && to.paused {
		to.inbox = append(to.inbox, func() { w.arrive(c, dir, f) })
		return
	}
	w.hashIn(hashArrive, c.number, uint64(dir), uint64(f.kind), f.number, uint64(f.msg.Type()))
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
		if !to.running || to.id != peer || to.core.Mesh() == 0 || h.client == nil && (h.core.Mesh() != 0 && h.core.Mesh() != to.core.Mesh() || to.turnsAway(h)) {
			fail(trip)
			return
		}
		c := &conn{w: w, number: number, at: w.now, luck: luck, peer: peer, from: h, to: to, life: [2]int{h.life, to.life}, pumpAt: [2]int64{-1, -1}, calls: map[uint64]func(wire.Message){}}
		to.lastConn++
		c.id = to.lastConn
		c.up[1] = true
		to.in[c.id] = c
		hello := &wire.Hello{
			Version: wire.Version, MinVersion: wire.MinVersion, Mesh: to.core.Mesh(), Node: to.id, Boot: to.boot, Name: to.name,
			Gossip: to.name + ":7701", Ring: to.core.Table().Number, Catalog: to.core.CatalogVersion(), Commit: to.core.Commit(),
		}
		c.hello = hello
		c.last[1] = w.now + trip + 1 // nothing passes the Hello
		to.step(core.ConnOpened{Conn: c.id, Node: h.id})
		w.hashIn(hashOpen, number)
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
			said, _ := w.copied(hello)
			h.give(life, core.PeerUp{Node: peer, Hello: said.(*wire.Hello)})
		})
	})
}

func (h *host) lostDial(life int, to *host, peer ring.NodeID) {
	if h.life != life {
		return
	}
	if h.client != nil {
		h.now(func() { h.client.closed(to) })
		return
	}
	h.give(life, core.PeerDown{Node: peer})
	h.redial(to)
}

func (h *host) redial(to *host) {
	w := h.w
	if !h.running || h.client != nil {
		return
	}
	if now := w.node(to.id); now != nil { // another process of the same node
		to = now
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
	w.hashIn(hashClose, c.number, uint64(i))
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
	h.step(core.PeerDown{Node: c.peer})
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
	if w.story != nil {
		w.story.linked(a, b)
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
	if w.story != nil {
		w.story.linked(a, b)
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

// halfOpen loses the connections between a and b: a knows at once, b when its keepalive
// gives them up.
func (w *world) halfOpen(a, b *host) {
	for _, c := range a.connections() {
		if c.from != b && c.to != b || c.dead {
			continue
		}
		c.dead = true
		c.frames = [2][]frame{}
		for i := range 2 {
			if c.side(i) == a {
				w.closeSide(c, i)
			} else {
				w.after(w.net.keepalive+between(w.luck(luckClose, c.luck, uint64(i), 4), 0, w.net.keepalive), func() { w.closeSide(c, i) })
			}
		}
	}
}
