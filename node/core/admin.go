package core

import (
	"slices"

	"github.com/meshq/meshq/transport/wire"
)

func (c *Core) listQueues(req ReqID) {
	m := &wire.Queues{Catalog: c.catalog.version}
	for _, e := range c.catalog.all() {
		if e.Live() {
			m.Entries = append(m.Entries, e)
		}
	}
	c.reply(req, m)
}

// describeQueue answers DescribeQueue. asked says that this node knows what a majority knows:
// the queue may have been created just now.
func (c *Core) describeQueue(req ReqID, m *wire.DescribeQueue, asked bool) {
	c.whenCatalog(m.Catalog, func() {
		if e := c.catalog.live(m.Name); e != nil {
			c.reply(req, &wire.QueueInfo{Entry: *e, Catalog: c.catalog.version})
			return
		}
		if !c.sure(req, asked, func() { c.describeQueue(req, m, true) }) {
			c.reply(req, c.noQueue(m.Name, m.Catalog))
		}
	})
}

// meshMessage is the ring, with the addresses that its members have now, and who of it
// is alive as this node sees it.
func (c *Core) meshMessage() *wire.Mesh {
	m := &wire.Mesh{ID: c.mesh, Table: c.Table(), Catalog: c.catalog.version, Node: c.self}
	m.Table.Members = slices.Clone(m.Table.Members)
	for i := range m.Table.Members {
		x := &m.Table.Members[i]
		if x.ID == c.self {
			x.Address, x.HTTP, x.Gossip = c.cfg.Self.Address, c.cfg.Self.HTTP, c.cfg.Self.Gossip
		} else if now, known := c.addresses[x.ID]; known {
			x.Address = now.Address
			if now.HTTP != "" {
				x.HTTP = now.HTTP
			}
		}
	}
	for _, x := range m.Table.Members {
		if x.ID == c.self || c.answering(x.ID) || slices.Contains(c.alive, x.ID) && c.up(x.ID) {
			m.Alive = append(m.Alive, x.ID)
		}
	}
	return m
}

// State is what the node does now: joining, active, repairing or draining.
func (c *Core) State() string {
	switch {
	case c.draining:
		return "draining"
	case !c.member():
		return "joining"
	}
	for _, p := range c.parts { // any or none: the order does not matter
		if p.repairing {
			return "repairing"
		}
	}
	return "active"
}

func (c *Core) nodeInfo() *wire.NodeInfo {
	s := c.Stats()
	return &wire.NodeInfo{
		Node: c.self, Name: c.cfg.Self.Name, State: c.State(), Boot: c.cfg.Boot, Ring: s.Ring, Catalog: s.Catalog,
		Commits: s.Commit, Partitions: s.Partitions, Owned: s.Owned, Hints: s.Hints, InFlight: s.InFlight,
		Repairing: s.Repairing, Version: c.cfg.Version,
	}
}

// inspect says what this node knows of partitions.
func (c *Core) inspect(req ReqID, m *wire.Inspect) {
	out := &wire.Inspected{}
	for _, id := range m.Partitions {
		s := wire.PartitionState{Partition: id}
		if p := c.known(id); p != nil {
			s = p.inspect()
		}
		out.States = append(out.States, s)
	}
	c.reply(req, out)
}

func (p *partition) inspect() wire.PartitionState {
	s := wire.PartitionState{
		Partition: p.id, Home: p.home, Owner: p.owner(), Term: p.promised, Digest: p.digest(),
		Hints: p.hintCount(), Repairing: p.repairing, Moved: p.moved,
	}
	s.Owns = s.Owner == p.core.self
	for _, l := range p.lanes { // a sum does not depend on the order
		have := l.have().Clone()
		have.AddAll(p.doneByAll(l.id))
		s.Messages += have.Count()
	}
	for _, g := range p.groupIDs() {
		s.Groups = append(s.Groups, p.groupState(g))
	}
	return s
}

// groupState counts the messages of a group. Copies of one message at two positions
// count once they are known to be done.
func (p *partition) groupState(g wire.GroupID) wire.GroupState {
	s := wire.GroupState{Group: g}
	set := p.group(g)
	var open uint64
	for _, id := range p.order {
		l, done := p.lanes[id], set.runs(id)
		open += l.held.Minus(done).Count()
		// What this group has done and others have not, and which is on no disk any more (it was
		// never confirmed), is not among the messages that there are.
		s.Done += done.Minus(done.Minus(l.have()).Minus(p.doneByAll(id))).Count()
	}
	if p.own != nil && p.own.feeds[g] != nil {
		f := p.own.feeds[g]
		s.InFlight = uint64(f.inflight)
		for _, id := range sortedLanes(f.lanes) {
			s.Delayed += f.lanes[id].handed.Minus(set.runs(id)).Count()
		}
		s.Delayed -= min(s.Delayed, s.InFlight)
	}
	s.Ready = open - min(open, s.InFlight+s.Delayed)
	return s
}
