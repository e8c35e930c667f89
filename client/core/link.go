package core

import (
	"fmt"
	"slices"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

type linkState uint8

const (
	linkIdle linkState = iota
	linkDialing
	linkUp
)

// link is an address and the one connection to it.
type link struct {
	id    LinkID
	addr  string
	state linkState
	node  ring.NodeID // who answered last; 0: not known yet
	fails int         // Dials and connections that failed since an answer
	// redialAt is before when no Dial is made; avoidUntil before when a try passes the
	// link by although it is up. A frame from the link ends both.
	redialAt   Instant
	avoidUntil Instant
	fullUntil  Instant // before when batches go elsewhere first: its disk had no room
	heard      Instant // last frame, or when it came up
	used       Instant // last time that something was asked of it
	pinging    bool
	connection int     // counts connections
	subs       []*sub  // of this connection
	err        error   // of the last failure, with the address; nil while it is up
	downAt     Instant // when that was
}

func (c *Core) linkAt(addr string) *link {
	l := c.byAddr[addr]
	if l == nil {
		l = &link{id: LinkID(len(c.links)), addr: addr}
		c.links = append(c.links, l)
		c.byAddr[addr] = l
	}
	return l
}

// linkTo is the link to a node: to its own address, or a server's that is up and turned
// out to be it. nil: not a member.
func (c *Core) linkTo(node ring.NodeID) *link {
	if c.mesh == nil || node == 0 {
		return nil
	}
	var own *link
	if m, ok := c.mesh.Table.Member(node); ok && !c.config.Via {
		own = c.linkAt(m.Address)
		if own.state == linkUp && own.node == node {
			return own
		}
	}
	for _, l := range c.links {
		if l.state == linkUp && l.node == node {
			return l
		}
	}
	if own != nil && own.state == linkUp {
		return nil // another node has its address now
	}
	return own // nil with Config.Via: only servers are talked to
}

// want has the link dialed unless it is, or failed a moment ago.
func (c *Core) want(now Instant, l *link) {
	l.used = now
	if l.state != linkIdle || now < l.redialAt || c.closed {
		return
	}
	l.state = linkDialing
	hello := &wire.Hello{
		Version: wire.Version, MinVersion: wire.MinVersion, Name: c.config.Name, Token: c.config.Token, Catalog: c.catalog,
	}
	if c.mesh != nil {
		hello.Ring = c.mesh.Table.Number
	}
	c.emit(Dial{Link: l.id, Addr: l.addr, Hello: hello})
}

// usable tells whether a try may go to the link now: it is up and not passed by, or was
// never tried.
func (l *link) usable(now Instant) bool {
	switch l.state {
	case linkUp:
		return now >= l.avoidUntil
	default:
		return l.fails == 0
	}
}

// reach looks for any node when there is none: all servers and some members.
func (c *Core) reach(now Instant) {
	for _, l := range c.links {
		if l.state == linkUp {
			return
		}
	}
	c.widen(now)
}

// widen connects to servers and to some members of the mesh.
func (c *Core) widen(now Instant) {
	for _, addr := range c.config.Servers {
		c.want(now, c.linkAt(addr))
	}
	if c.mesh != nil && !c.config.Via {
		members := c.mesh.Table.Members
		from := c.rand() % uint64(len(members))
		for i := range uint64(min(len(members), 5)) {
			c.want(now, c.linkAt(members[(from+i)%uint64(len(members))].Address))
		}
	}
}

func (c *Core) linkUp(now Instant, ev LinkUp) {
	l := c.links[ev.Link]
	if c.mesh != nil && c.mesh.ID != 0 && ev.Hello.Mesh != 0 && ev.Hello.Mesh != c.mesh.ID {
		c.note(true, "node of another mesh", fmt.Sprintf("%s has mesh %s, not %s", l.addr, ev.Hello.Mesh, c.mesh.ID))
		c.emit(Hangup{Link: l.id})
		c.linkDown(now, l, fmt.Errorf("%s: %w", l.addr, wire.ErrWrongMesh))
		return
	}
	l.state, l.node, l.heard, l.pinging = linkUp, ev.Hello.Node, now, false
	l.avoidUntil, l.err = 0, nil
	c.note(false, "connected", l.addr)
	if c.mesh == nil || ev.Hello.Ring > c.mesh.Table.Number || c.moved(l) {
		c.getMesh(now)
	}
	if ev.Hello.Catalog > c.catalog {
		c.catalog = ev.Hello.Catalog
	}
	l.connection++
	c.watch(now, l, l.connection)
	c.kick(now, l)
}

// moved tells whether a link leads to another node than the member whose address it is:
// the ring that the client has is older than that.
func (c *Core) moved(l *link) bool {
	return !c.config.Via && slices.ContainsFunc(c.mesh.Table.Members, func(m ring.Member) bool { return m.Address == l.addr && m.ID != l.node })
}

// kick gives all that waits for a link another look. up is one that has come up, if
// that is why: batches that wait for their next round may go there at once.
func (c *Core) kick(now Instant, up *link) {
	for _, a := range append([]*ask(nil), c.asks...) {
		if up != nil && !a.pinned {
			a.holdUntil = min(a.holdUntil, now)
		}
		c.drive(now, a)
	}
	for _, s := range c.consumerOrder {
		s.complete = false
		c.subscribe(now, s)
	}
	c.retrySettles(now, nil)
	for _, q := range c.queueOrder {
		for _, p := range q.partitions {
			if b := p.batch; up != nil && b != nil && b.pinned == nil {
				b.holdUntil = min(b.holdUntil, now)
				delete(b.tried, up.id)
			}
			c.pump(now, p)
		}
	}
}

func (c *Core) linkDown(now Instant, l *link, err error) {
	if l.state == linkIdle {
		return
	}
	if l.state == linkUp {
		c.note(true, "connection lost", fmt.Sprintf("%s: %v", l.addr, err))
		if err != nil {
			err = fmt.Errorf("connection to %s lost: %w", l.addr, err)
		}
	}
	l.state, l.pinging, l.err, l.downAt = linkIdle, false, err, now
	l.redialAt = now.Add(c.backoff(l.fails, redialMin, redialMax))
	l.fails++
	subs := l.subs
	l.subs = nil
	c.at(l.redialAt, func(now Instant) {
		c.reach(now)
		if c.wanted(now, l) {
			used := l.used
			c.want(now, l)
			l.used = used // redialing is no use
		}
	})
	// What is held is told to others before it is settled there.
	c.resumeElsewhere(now, l, subs)
	// What was asked of it is lost. calls is a map: in order of their IDs.
	for _, call := range c.callsOf(l) {
		delete(c.calls, call.id)
		if call.lost != nil {
			call.lost(now)
		}
	}
	c.moveSettles(now, l)
	c.kick(now, nil)
}

// wanted tells whether a link that is down is to be dialed again.
func (c *Core) wanted(now Instant, l *link) bool {
	return now.Sub(l.used) < idleLink
}

func (c *Core) callsOf(l *link) []*call {
	var out []*call
	for _, call := range c.calls { // sorted below: the order does not matter
		if call.link == l {
			out = append(out, call)
		}
	}
	sortBy(out, func(x *call) uint64 { return uint64(x.id) })
	return out
}

// request sends a request on a link that is up.
func (c *Core) request(now Instant, l *link, msg wire.Message, answered func(Instant, wire.Message), lost func(Instant)) *call {
	c.lastCall++
	call := &call{id: c.lastCall, link: l, answered: answered, lost: lost}
	c.calls[call.id] = call
	l.used = now
	c.emit(Call{Link: l.id, Call: call.id, Msg: msg})
	return call
}

// hear notes that a link talks.
func (c *Core) hear(now Instant, l *link) {
	l.heard, l.fails = now, 0
	if l.avoidUntil > now {
		l.avoidUntil = now
	}
}

func (c *Core) answered(now Instant, ev Answered) {
	call := c.calls[ev.Call]
	if call == nil {
		return
	}
	delete(c.calls, ev.Call)
	c.hear(now, call.link)
	call.answered(now, ev.Msg)
}

func (c *Core) pushed(now Instant, ev Pushed) {
	l := c.links[ev.Link]
	if l.state != linkUp {
		return
	}
	c.hear(now, l)
	switch msg := ev.Msg.(type) {
	case *wire.Mesh:
		c.learn(now, msg)
	case *wire.Owner:
		c.ownerPushed(now, msg)
	case *wire.Deliver:
		c.deliver(now, l, msg)
	case *wire.Error:
		// A Subscribe was refused: the queue or group is not what it was.
		c.note(true, "node refuses", fmt.Sprintf("%s: %v", l.addr, msg))
		for _, q := range c.queueOrder {
			if len(q.consumers) > 0 {
				c.describe(now, q)
			}
		}
	}
}

// watch asks a link for a sign of life when it has been quiet, and gives it up when
// there is none.
func (c *Core) watch(now Instant, l *link, connection int) {
	c.at(now.Add(keepalive), func(now Instant) {
		if l.state != linkUp || l.connection != connection {
			return
		}
		quiet := now.Sub(l.heard)
		if quiet >= deadAfter && l.pinging {
			c.emit(Hangup{Link: l.id})
			c.linkDown(now, l, wire.Errorf(wire.ErrTimeout, "silent for %v", quiet.Round(time.Millisecond)))
			return
		}
		if quiet >= keepalive {
			c.ping(now, l)
		}
		c.watch(now, l, connection)
	})
}

func (c *Core) ping(now Instant, l *link) {
	if l.pinging || l.state != linkUp {
		return
	}
	l.pinging = true
	used := l.used
	done := func(Instant, wire.Message) { l.pinging = false }
	c.request(now, l, &wire.Ping{}, done, func(Instant) { l.pinging = false })
	l.used = used // a sign of life is no use
}

// sweep hangs up links that nobody uses, but never the last one.
func (c *Core) sweep(now Instant) {
	up := 0
	for _, l := range c.links {
		if l.state == linkUp {
			up++
		}
	}
	for _, l := range c.links {
		if up > 1 && l.state == linkUp && len(l.subs) == 0 && now.Sub(l.used) >= idleLink && len(c.callsOf(l)) == 0 {
			up--
			c.emit(Hangup{Link: l.id})
			l.state = linkIdle
		}
	}
	c.at(now.Add(idleLink), c.sweep)
}

// getMesh asks for the ring, once at a time.
func (c *Core) getMesh(now Instant) {
	if c.asking {
		return
	}
	c.asking = true
	c.ask(now, &ask{msg: &wire.GetMesh{}, until: Never, done: func(now Instant, msg wire.Message, err error) {
		c.asking = false
		if mesh, ok := msg.(*wire.Mesh); ok {
			c.learn(now, mesh)
		}
	}})
}

// learn takes in a ring. Of two it keeps the one with the higher number.
func (c *Core) learn(now Instant, mesh *wire.Mesh) {
	if c.mesh != nil && c.mesh.ID != 0 && mesh.ID != c.mesh.ID {
		return
	}
	behind := mesh.Catalog > c.catalog
	c.catalog = max(c.catalog, mesh.Catalog)
	if c.mesh != nil && mesh.Table.Number < c.mesh.Table.Number {
		return
	}
	if len(mesh.Table.Members) == 0 {
		return // a node that has not joined yet
	}
	changed := c.mesh == nil || mesh.Table.Number > c.mesh.Table.Number
	c.mesh = mesh
	c.emit(Learned{Mesh: mesh})
	if changed {
		c.ring = ring.New(mesh.Table)
		for _, q := range c.queueOrder {
			c.place(q)
		}
	}
	if changed || behind {
		for _, q := range c.queueOrder {
			if q.entry != nil {
				c.describe(now, q)
			}
		}
		c.kick(now, nil)
	}
}
