package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// peer is another node.
type peer struct {
	id    ring.NodeID
	up    bool    // this node is connected to it
	heard Instant // when anything came from it last
	// boot is the highest boot number that it is known to have had.
	boot    uint64
	beat    wire.Beat
	commits []wire.CommitNumber // highest of its last two boots, oldest first
	dirty   bool                // boot or commits are not on disk yet
	since   Instant             // when it came up

	fetching   bool     // its catalog is on the way
	askedMoved Instant  // when it was last asked which partitions have moved
	again      *timer   // compares once more, after a difference
	out        leaseSet // what this node holds from it
	in         grantSet // what it holds from this node
	pulls      map[wire.PartitionID]bool
}

// conn is a connection that others opened to this node.
type conn struct {
	id   ConnID
	node ring.NodeID // 0: a client
	// hungUntil is until when its consumers get nothing; what it says ends that.
	hungUntil Instant
}

func (c *Core) peer(id ring.NodeID) *peer {
	p := c.peers[id]
	if p == nil {
		p = &peer{id: id, pulls: map[wire.PartitionID]bool{}}
		c.peers[id] = p
	}
	return p
}

// members takes what gossip says. Clients are told of new addresses.
func (c *Core) members(ev Members) {
	c.alive = ev.Alive
	moved := false
	for _, m := range ev.Addresses {
		if c.addresses[m.ID] != m {
			if c.addresses == nil {
				c.addresses = map[ring.NodeID]ring.Member{}
			}
			c.addresses[m.ID] = m
			moved = true
		}
	}
	if moved && c.member() {
		c.tellClients()
	}
}

// tellClients pushes the ring to all clients.
func (c *Core) tellClients() {
	for _, id := range sortedKeys(c.conns) {
		if c.conns[id].node == 0 {
			c.emit(Push{Conn: id, Msg: c.meshMessage()})
		}
	}
}

// up says whether a node can be reached; this one always.
func (c *Core) up(id ring.NodeID) bool { return id == c.self || c.peers[id] != nil && c.peers[id].up }

// answering says whether a node was heard of lately.
func (c *Core) answering(id ring.NodeID) bool {
	return id == c.self || c.up(id) && c.now.Mono-c.peers[id].heard < 3*renewEvery
}

// call is a request to a peer under way.
type call struct {
	to    ring.NodeID
	fn    func(wire.Message)
	timer *timer
}

// call asks a peer and calls fn once: with the answer, or with nil when the peer is
// down or silent for too long. A later answer is dropped.
func (c *Core) call(to ring.NodeID, msg wire.Message, timeout Instant, fn func(wire.Message)) {
	if !c.up(to) || to == c.self {
		fn(nil)
		return
	}
	t := c.token()
	k := &call{to: to, fn: fn}
	k.timer = c.after(timeout, func() {
		delete(c.calls, t)
		fn(nil)
	})
	c.calls[t] = k
	c.emit(Call{To: to, Token: t, Msg: msg})
}

func (c *Core) answered(ev Answered) {
	k := c.calls[ev.Token]
	if k == nil {
		return
	}
	delete(c.calls, ev.Token)
	c.timers.stop(k.timer)
	c.peer(k.to).heard = c.now.Mono
	k.fn(ev.Msg)
}

func (c *Core) send(to ring.NodeID, msg wire.Message) {
	if to != c.self && c.up(to) {
		c.emit(Send{To: to, Msg: msg})
	}
}

func (c *Core) peerUp(ev PeerUp) {
	p := c.peer(ev.Node)
	h := ev.Hello
	if h.Mesh != 0 && c.mesh != 0 && h.Mesh != c.mesh {
		return // the shell refuses such connections
	}
	p.up, p.heard, p.since = true, c.now.Mono, c.now.Mono
	p.out, p.in = leaseSet{}, grantSet{}
	c.bootSeen(p, h.Boot)
	if !c.member() {
		c.join(ev.Node, h)
		return
	}
	if _, member := c.rings.current.Table().Member(ev.Node); c.mesh == 0 && member {
		c.mesh = h.Mesh // its record was damaged, those of the rings were not
		c.persistThen([]wire.Op{put(key(recordMesh), c.mesh)}, nil)
	}
	c.greet(p)
}

// connOpened takes a connection. A member is told at once what is remembered of it,
// before any answer on that connection: it must not claim or grant on less (P12).
func (c *Core) connOpened(ev ConnOpened) {
	c.conns[ev.Conn] = &conn{id: ev.Conn, node: ev.Node}
	if ev.Node == 0 {
		return
	}
	if p := c.peer(ev.Node); len(p.commits) > 0 {
		c.emit(Push{Conn: ev.Conn, Msg: &wire.Remembered{Commits: p.commits}})
	}
}

// greet begins a conversation with a member. What is remembered of it comes first here, too.
func (c *Core) greet(p *peer) {
	if len(p.commits) > 0 {
		c.send(p.id, &wire.Remembered{Commits: p.commits})
	}
	c.send(p.id, c.myBeat())
	c.send(p.id, &wire.Rings{Tables: c.rings.from(0), Boots: c.boots()})
	for _, id := range sortedKeys(c.parts) {
		part := c.parts[id]
		part.resend(p.id)
		if part.own != nil {
			part.own.askLate(p.id)
		}
	}
	for _, k := range sortedSubs(c.subs) {
		c.relay(c.subs[k])
	}
	c.compare(p)
	c.compareAgain(p)
}

func (c *Core) peerDown(id ring.NodeID) {
	p := c.peer(id)
	p.up = false
	if c.planted(bugResetIsDeath) {
		c.takeForDead(id)
	}
	for _, s := range c.relays { // each by itself: the order does not matter
		delete(s.from, id)
	}
	p.fetching = false
	p.pulls = map[wire.PartitionID]bool{}
	for _, t := range sortedKeys(c.calls) {
		if k := c.calls[t]; k != nil && k.to == id {
			delete(c.calls, t)
			c.timers.stop(k.timer)
			k.fn(nil)
		}
	}
}

// myBeat says how far this node is.
func (c *Core) myBeat() *wire.Beat {
	b := &wire.Beat{
		Catalog: c.catalog.version, Commit: c.commit, Boot: c.cfg.Boot, CatalogSum: c.catalog.digest(),
		Stored: c.rings.stored, Settled: c.settled(),
	}
	if c.rings.current != nil {
		b.Ring = c.rings.current.Number()
	}
	return b
}

// beat runs each quarter of an ownership lease.
func (c *Core) beat() {
	if !c.member() {
		return
	}
	b := c.myBeat()
	for _, id := range c.others() {
		c.send(id, b)
	}
	c.renewAll()
	c.recallVote()
}

func (c *Core) onBeat(from ring.NodeID, b *wire.Beat) {
	p := c.peer(from)
	p.beat = *b
	c.bootSeen(p, b.Boot)
	c.commitSeen(p, b.Boot, b.Commit)
	if !c.member() {
		return
	}
	if b.Ring > c.rings.current.Number() {
		c.fetchRings(from)
	} else if b.Ring < c.rings.current.Number() {
		c.send(from, &wire.Rings{Tables: c.rings.from(b.Ring), Boots: c.boots()})
	}
	if b.CatalogSum != c.catalog.digest() || c.catalogLost && !c.catalogHeard[from] {
		c.fetchCatalog(p)
	}
	var others []wire.PartitionID // that are not kept here
	for _, id := range sortedKeys(c.parts) {
		part := c.parts[id]
		if len(part.sets) < 2 {
			continue
		}
		part.copyOn()
		switch {
		case b.Ring != c.rings.current.Number() || !part.isHome(from):
		case b.Settled:
			part.learnMoved(from) // the mark was set while this node was away
		case !part.home:
			others = append(others, id)
		}
	}
	c.askMoved(p, others)
}

// A peer is asked at most once in askMovedEvery which of maxAskMoved partitions have moved.
const (
	askMovedEvery = 5 * Second
	maxAskMoved   = 1000
)

// askMoved asks a home replica, now and then, which partitions have moved, of those that are
// not kept here: another one may hold up the ring step for long.
func (c *Core) askMoved(p *peer, ids []wire.PartitionID) {
	if len(ids) == 0 || c.now.Mono-p.askedMoved < askMovedEvery {
		return
	}
	p.askedMoved = c.now.Mono
	m := &wire.Inspect{Partitions: ids[:min(len(ids), maxAskMoved)]}
	c.call(p.id, m, callTimeout, func(msg wire.Message) {
		in, ok := msg.(*wire.Inspected)
		if !ok {
			return
		}
		for i := range in.States {
			if part := c.parts[in.States[i].Partition]; part != nil {
				part.movedTo(in.States[i].Moved)
			}
		}
	})
}

// bootSeen remembers the highest boot number of a node.
func (c *Core) bootSeen(p *peer, boot uint64) {
	if boot <= p.boot {
		return
	}
	p.boot, p.dirty = boot, true
	if p.up { // if an older process of that node is still there it must stop
		c.send(p.id, &wire.Rings{Boots: c.boots()})
	}
}

// commitSeen remembers the highest commit number of each of a node's last two boots.
func (c *Core) commitSeen(p *peer, boot, commit uint64) {
	if boot == 0 || commit == 0 {
		return
	}
	n := len(p.commits)
	switch {
	case n == 0 || p.commits[n-1].Boot < boot:
		p.commits = append(slices.Clone(p.commits[max(0, n-1):]), wire.CommitNumber{Boot: boot, Commit: commit})
		p.dirty = true
	case p.commits[n-1].Boot == boot && p.commits[n-1].Commit < commit:
		p.commits = slices.Clone(p.commits) // what was sent is never changed
		p.commits[n-1].Commit = commit
		p.dirty = true
	}
}

// onRemembered compares what a peer remembers with what came back at this boot: a
// copy that came back with less than it confirmed counts for nothing (P12).
func (c *Core) onRemembered(from ring.NodeID, m *wire.Remembered) {
	for _, n := range m.Commits {
		if n.Boot > c.cfg.Boot || n.Boot == c.cfg.Boot && n.Commit > c.commit {
			c.emit(Stop{Err: wire.Errorf(wire.ErrOlderData, "this data directory is at commit %d of boot %d, %s remembers commit %d of boot %d: it is an old copy", c.commit, c.cfg.Boot, from, n.Commit, n.Boot)})
			return
		}
		if n.Boot >= c.noticed && n.Boot < c.cfg.Boot && n.Commit > c.recovered && !c.damagedAll && !c.planted(bugAmnesiaUnnoticed) {
			c.damagedAll = true
			c.persistThen(append(c.loseVotes(), c.loseCatalog()...), nil)
			c.note(NoteWarn, nil, "store came back with less than it confirmed", "last commit is %d, %s remembers %d", c.recovered, from, n.Commit)
			for _, id := range sortedKeys(c.parts) {
				c.parts[id].startRepair()
			}
			// Behind the records that say what is to be repaired: the next boot is not damaged by
			// the same loss once more.
			c.noticed = c.cfg.Boot
			c.persistThen([]wire.Op{put(key(recordNoticed), c.noticed)}, nil)
		}
	}
}

// boots is the boot column of the membership table.
func (c *Core) boots() []wire.BootNumber {
	out := []wire.BootNumber{{Node: c.self, Boot: c.cfg.Boot}}
	for _, id := range sortedKeys(c.peers) {
		if b := c.peers[id].boot; b > 0 {
			out = append(out, wire.BootNumber{Node: id, Boot: b})
		}
	}
	return out
}

// onBoots takes the boot numbers that another member remembers. A higher one of this
// node means that its data directory is older than the mesh remembers.
func (c *Core) onBoots(boots []wire.BootNumber) {
	for _, b := range boots {
		if b.Node != c.self {
			c.bootSeen(c.peer(b.Node), b.Boot)
			continue
		}
		if b.Boot > c.cfg.Boot {
			c.emit(Stop{Err: wire.Errorf(wire.ErrOlderData, "this data directory is at boot %d, the mesh remembers boot %d of the node: it is an old copy", c.cfg.Boot, b.Boot)})
		}
	}
}

// peerOps are the records of peers that changed.
func (c *Core) peerOps() []wire.Op {
	var ops []wire.Op
	for _, id := range sortedKeys(c.peers) {
		if p := c.peers[id]; p.dirty {
			p.dirty = false
			ops = append(ops, put(key(recordPeer, uint64(id)), peerRecord{Boot: p.boot, Commits: p.commits}))
		}
	}
	return ops
}
