package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Replication, hinted handoff, anti-entropy, catching up and repair are one operation:
// fetch what the other has and this node lacks. Merging is union, in any order, any
// number of times.

// fetchState asks a replica for its state of the partition, merges it, and calls fn
// with it; nil if there was none. ringNumber, if not 0, asks whether that ring is
// stored there.
func (p *partition) fetchState(from ring.NodeID, ringNumber uint64, fn func(*wire.State)) {
	c := p.core
	m := &wire.GetState{Queue: p.entry.Name, Partition: p.id, Catalog: c.catalog.version, Ring: ringNumber}
	if !p.repairing && ringNumber == 0 {
		m.Sum = p.digest()
	}
	c.call(from, m, callTimeout, func(msg wire.Message) {
		s, ok := msg.(*wire.State)
		if !ok || c.parts[p.id] != p {
			fn(nil)
			return
		}
		p.merge(s)
		fn(s)
	})
}

// onGetState answers with the whole state, without bodies.
func (c *Core) onGetState(req ReqID, m *wire.GetState) {
	c.partitionOf(m.Partition, m.Catalog, func(p *partition) {
		if p == nil {
			c.reply(req, wire.Errorf(wire.ErrNoQueue, "no such queue: %s", m.Queue))
			return
		}
		// A hint goes when its holder reads here that W nodes have the batch: what the
		// answer names is synced before it leaves.
		s := p.state(m)
		if c.planted(bugDigestBeforeSync) {
			c.reply(req, s)
			return
		}
		late := c.after(callTimeout, func() {
			c.reply(req, wire.Errorf(wire.ErrNotReady, "the disk of node %s is late", c.cfg.Self.Name))
		})
		c.persistThen(nil, func() {
			if late.index >= 0 {
				c.timers.stop(late)
				c.reply(req, s)
			}
		})
	})
}

// maxStateRetries bounds the retry records that travel with a state.
const maxStateRetries = 10_000

func (p *partition) state(m *wire.GetState) *wire.State {
	c := p.core
	top := p.promised
	if top.Less(p.heard) {
		top = p.heard
	}
	s := &wire.State{Partition: p.id, Repairing: p.repairing, Promised: top, Moved: p.moved, Watermarks: p.watermarks(), Ring: c.rings.current.Number()}
	s.Stored = m.Ring > 0 && c.rings.stored >= m.Ring && c.rings.current.Number() >= m.Ring
	if m.Sum != 0 && m.Sum == p.digest() {
		s.Equal = true
		return s
	}
	for _, id := range p.order {
		if have := p.lanes[id].have(); len(have) > 0 {
			s.Have = append(s.Have, wire.LaneRuns{Lane: id, Runs: have.Clone()})
		}
	}
	for _, g := range sortedKeys(p.groups) {
		for _, id := range sortedLanes(p.groups[g].lanes) {
			if runs := p.groups[g].runs(id); len(runs) > 0 {
				s.Done = append(s.Done, wire.GroupDone{Group: g, Lane: id, Runs: runs.Clone()})
			}
		}
	}
	s.Segments = p.allSegments()
	if o := p.own; o != nil {
		for _, g := range sortedKeys(o.feeds) {
			for _, r := range o.feeds[g].retries {
				if r.key != nil && len(s.Retries) < maxStateRetries {
					s.Retries = append(s.Retries, r.Retry)
				}
			}
		}
	}
	return s
}

// merge takes the union with another replica's state. Bodies follow.
func (p *partition) merge(s *wire.State) {
	c := p.core
	var ops []wire.Op
	if p.heard.Less(s.Promised) {
		// A new home replica must not begin with lower terms than clients have seen.
		p.heard = s.Promised
		ops = append(ops, put(key(recordHeard, uint64(p.id)), p.heard))
	}
	p.movedTo(s.Moved)
	p.raiseWatermarks(s.Watermarks)
	if s.Equal {
		if len(ops) > 0 {
			c.persistThen(ops, nil)
		}
		return
	}
	for _, x := range s.Segments {
		p.rememberHeader(x)
	}
	var items []wire.AckItem
	for _, d := range s.Done {
		if !p.hasGroup(d.Group) || d.Runs.Validate() != nil {
			continue
		}
		for _, run := range d.Runs.Minus(p.group(d.Group).runs(d.Lane)) {
			item := wire.AckItem{Group: d.Group, Lane: d.Lane, Run: run}
			p.markDone(item)
			items = append(items, item)
		}
	}
	ops = append(ops, p.saveHeaders()...)
	ops = append(ops, p.ackOps(items)...)
	if len(ops) > 0 {
		c.persistThen(ops, nil)
	}
	for _, x := range s.Have { // lanes of which everything is done
		l := p.lane(x.Lane)
		l.gone = p.doneByAll(x.Lane).Minus(l.held)
	}
	p.keepRetries(s.Retries)
	p.sum = 0
}

// pull makes this replica whole with what another one has: its state, then the bodies
// that are missing here. One pull per peer and partition is under way.
func (p *partition) pull(from ring.NodeID) {
	peer := p.core.peer(from)
	if !peer.up || peer.pulls[p.id] || len(peer.pulls) >= maxPulls {
		return
	}
	peer.pulls[p.id] = true
	p.fetchState(from, 0, func(s *wire.State) {
		if s == nil {
			delete(peer.pulls, p.id)
			return
		}
		p.fetchBodies(from, s, func(whole bool) {
			delete(peer.pulls, p.id)
			// Who knows a newer ring knows of homes that this node must ask as well.
			if whole && s.Ring <= p.core.rings.current.Number() {
				p.mergedFrom(from, !s.Repairing)
			}
		})
	})
}

// maxPulls bounds the partitions that are pulled from one peer at a time.
const maxPulls = 16

// pullAll pulls from all home replicas that answer.
func (p *partition) pullAll() {
	for _, id := range p.otherHomes() {
		p.pull(id)
	}
}

// syncBytes is how many bytes of bodies one answer carries.
const syncBytes = 1 << 20

// fetchBodies fetches, lane by lane, the bodies that the other has and this node
// lacks, and calls done when there are none left, or the other is gone.
func (p *partition) fetchBodies(from ring.NodeID, s *wire.State, done func(whole bool)) {
	c := p.core
	for i := range s.Have {
		x := &s.Have[i]
		l := p.lane(x.Lane)
		missing := x.Runs.Minus(l.have()).Minus(p.doneByAll(x.Lane))
		if len(missing) == 0 {
			continue
		}
		m := &wire.GetBatches{Partition: p.id, Lane: x.Lane, Runs: missing[:min(len(missing), 1000)], MaxBytes: syncBytes}
		c.call(from, m, 2*callTimeout, func(msg wire.Message) {
			b, ok := msg.(*wire.Batches)
			if !ok || c.parts[p.id] != p {
				done(false)
				return
			}
			// What the other cannot give now is not asked for again in this pull.
			var got wire.Runs
			for i := range b.Batches {
				got.Add(b.Batches[i].Run())
			}
			if len(got.Intersect(missing)) == 0 && len(b.Gone.Intersect(missing)) == 0 {
				x.Runs = x.Runs.Minus(missing)
			} else {
				x.Runs = x.Runs.Minus(b.Gone)
			}
			if c.diskFull {
				done(false)
				return
			}
			ops, code := p.keep(b.Batches, !p.home)
			if code != 0 {
				c.note(NoteWarn, p, "replica holds other bytes", "lane %s at %s", x.Lane, from)
				x.Runs = x.Runs.Minus(got)
			}
			c.persistThen(ops, func() {
				if p.own != nil {
					p.own.pump()
				}
				if c.parts[p.id] != p {
					done(false)
					return
				}
				p.fetchBodies(from, s, done)
			})
		})
		return
	}
	done(true)
}

// onGetBatches answers with batches from disk.
func (c *Core) onGetBatches(req ReqID, m *wire.GetBatches) {
	p := c.known(m.Partition)
	if p == nil {
		c.reply(req, wire.ErrNoQueue)
		return
	}
	l := p.lane(m.Lane)
	gone := m.Runs.Intersect(l.gone)
	here := m.Runs.Intersect(l.held)
	if len(here) == 0 {
		c.reply(req, &wire.Batches{Gone: gone})
		return
	}
	if x := c.cache.get(p.id, m.Lane, here[0].From); x != nil && len(here) == 1 && x.batch.Run().To >= here[0].To {
		c.reply(req, &wire.Batches{Gone: gone, Batches: []wire.Batch{x.batch}})
		return
	}
	c.read(p.id, m.Lane, here, int(min(m.MaxBytes, syncBytes)), func(done ReadDone) {
		if len(done.Damaged) > 0 && c.parts[p.id] == p {
			p.lost(m.Lane, done.Damaged)
		}
		c.reply(req, &wire.Batches{Gone: gone, Batches: done.Batches})
	})
}

// seek asks the home replicas, then the fallbacks, for a message that another one
// names as its predecessor, and calls done when there is news.
func (p *partition) seek(l wire.Lane, o wire.Offset, done func()) {
	c := p.core
	nodes := slices.Concat(p.otherHomes(), p.fallbacks())
	waiting := len(nodes)
	finish := func() {
		if waiting--; waiting == 0 {
			c.after(100*Millisecond, done)
		}
	}
	if waiting == 0 {
		waiting = 1
		finish()
		return
	}
	for _, id := range nodes {
		if id == c.self {
			finish()
			continue
		}
		c.call(id, &wire.GetBatches{Partition: p.id, Lane: l, Runs: wire.Runs{wire.Span(o, o+1)}, MaxBytes: syncBytes}, callTimeout, func(msg wire.Message) {
			if b, ok := msg.(*wire.Batches); ok && c.parts[p.id] == p {
				if ops, code := p.keep(b.Batches, false); code == 0 && len(ops) > 0 {
					c.persistThen(ops, func() {
						if p.own != nil {
							p.own.pump()
						}
					})
				} else if b.Gone.Contains(o) {
					p.pull(id) // its acks are not here
				}
			}
			finish()
		})
	}
}

// compareAll compares with all members: anti-entropy (DESIGN section 10).
func (c *Core) compareAll() {
	for _, id := range c.others() {
		if p := c.peer(id); p.up {
			c.compare(p)
		}
	}
	for _, id := range sortedKeys(c.parts) {
		if p := c.parts[id]; !p.swept {
			p.sweepRetries(nil)
		}
	}
}

// compare compares the digests of what this node and a peer both keep, and pulls
// where they differ.
func (c *Core) compare(peer *peer) {
	if !c.member() || !peer.up || c.planted(bugNoAntiEntropy) {
		return
	}
	m := &wire.Digests{}
	for _, id := range sortedKeys(c.parts) {
		p := c.parts[id]
		p.repairOn()
		if p.home && p.isHome(peer.id) {
			m.Sums = append(m.Sums, wire.PartitionSum{Partition: id, Sum: p.digest()})
		}
	}
	if len(m.Sums) == 0 {
		return
	}
	c.call(peer.id, m, callTimeout, func(msg wire.Message) {
		if d, ok := msg.(*wire.Differing); ok {
			for _, s := range d.Sums {
				if p := c.parts[s.Partition]; p != nil && p.home {
					p.pull(peer.id)
				}
			}
			if len(d.Sums) > 0 {
				c.compareAgain(peer)
			}
		}
	})
}

// compareAgain looks soon whether a difference has gone: what was under way when the
// other one was away reaches it by nothing else.
func (c *Core) compareAgain(peer *peer) {
	if peer.again != nil && peer.again.index >= 0 {
		return
	}
	peer.again = c.after(2*Second, func() { c.compare(peer) })
}

// onDigests answers with what differs, and pulls it as well.
func (c *Core) onDigests(req ReqID, from ring.NodeID, m *wire.Digests) {
	d := &wire.Differing{}
	for _, s := range m.Sums {
		p := c.known(s.Partition)
		if p == nil || !p.home {
			continue
		}
		if sum := p.digest(); sum != s.Sum {
			d.Sums = append(d.Sums, wire.PartitionSum{Partition: s.Partition, Sum: sum})
			p.pull(from)
		}
	}
	c.reply(req, d)
}

// copyOn moves a partition on from the rings that are still open for it (DESIGN
// section 11): a new home replica copies the state of a majority of each older ring's
// home replicas that have stored the new one, then the bodies, then says so.
func (p *partition) copyOn() {
	c := p.core
	if len(p.sets) < 2 {
		return
	}
	current := c.rings.current.Number()
	if p.isNew(c.self) {
		if p.copiedAll() {
			if p.promiseCopied() {
				p.tellCopied(current)
			}
			return
		}
		for _, set := range p.sets[:len(p.sets)-1] {
			for _, id := range set {
				p.copyFrom(id, current)
			}
		}
	}
	p.checkMoved()
}

// promiseCopied makes a new home replica promise the highest term that came with the
// copy, and waits until no grant of a lower one that it has given can run: when the
// older rings are closed, an owner of an older term must not find a majority here.
func (p *partition) promiseCopied() bool {
	c := p.core
	switch {
	case c.planted(bugCopyNoPromise) || c.planted(bugCountsBeforeCopy):
		return true
	case p.promisingCopy:
		return false
	case p.promised.Less(p.heard):
		p.promised = p.heard
		p.promisingCopy = true
		c.persistThen([]wire.Op{put(key(recordTerm, uint64(p.id)), p.promised)}, func() {
			p.promisingCopy = false
			p.copyOn()
		})
		return false
	case p.grant.term.Less(p.promised) && c.now.Mono < max(p.grant.until, c.bootUntil):
		return false // the next beat looks again; after a boot it has forgotten its grants
	}
	return true
}

// isNew says whether a node keeps the partition in the newest ring but not in all the
// older open ones.
func (p *partition) isNew(id ring.NodeID) bool {
	last := len(p.sets) - 1
	if !slices.Contains(p.sets[last], id) {
		return false
	}
	for _, set := range p.sets[:last] {
		if !slices.Contains(set, id) {
			return true
		}
	}
	return false
}

// copiedAll says whether this node has the state of a majority of each older ring.
func (p *partition) copiedAll() bool {
	if p.core.planted(bugCountsBeforeCopy) {
		return true
	}
	for _, set := range p.sets[:len(p.sets)-1] {
		n := 0
		for _, id := range set {
			if p.copying[id] || id == p.core.self && p.core.rings.stored == p.core.rings.current.Number() && !p.repairing {
				n++
			}
		}
		if n <= len(set)/2 {
			return false
		}
	}
	return true
}

func (p *partition) copyFrom(id ring.NodeID, number uint64) {
	c := p.core
	peer := c.peer(id)
	if p.copying[id] || id == c.self || !peer.up || peer.pulls[p.id] {
		return
	}
	peer.pulls[p.id] = true
	p.fetchState(id, number, func(s *wire.State) {
		if s == nil || !s.Stored || s.Repairing {
			delete(peer.pulls, p.id)
			return
		}
		p.fetchBodies(id, s, func(whole bool) {
			c.persistThen(nil, func() { // what was merged is synced before it counts as copied
				delete(peer.pulls, p.id)
				if whole && c.rings.current.Number() == number {
					p.copying[id] = true
					p.copyOn()
				}
			})
		})
	})
}

func (p *partition) tellCopied(number uint64) {
	m := &wire.Copied{Ring: number, Partitions: []wire.PartitionID{p.id}}
	for _, id := range p.otherHomes() {
		p.core.send(id, m)
	}
	p.copied[p.core.self] = number
	p.checkMoved()
}

func (c *Core) onCopied(from ring.NodeID, m *wire.Copied) {
	for _, id := range m.Partitions {
		if p := c.known(id); p != nil {
			p.copied[from] = max(p.copied[from], m.Ring)
			p.checkMoved()
		}
	}
}

// checkMoved closes the older rings for the partition when all new home replicas have
// its state.
func (p *partition) checkMoved() {
	c := p.core
	if len(p.sets) < 2 {
		return
	}
	current := c.rings.current.Number()
	for _, id := range p.sets[len(p.sets)-1] {
		if p.isNew(id) && p.copied[id] != current {
			return
		}
	}
	c.note(NoteInfo, p, "moved", "queue %s partition %d to ring %d", p.entry.Name, p.index, current)
	nodes := p.otherHomes()
	p.movedTo(current)
	for _, id := range nodes {
		c.send(id, &wire.Moved{Ring: current, Partitions: []wire.PartitionID{p.id}})
	}
}

// learnMoved asks a home replica for which the partition has moved.
func (p *partition) learnMoved(from ring.NodeID) {
	peer := p.core.peer(from)
	if !peer.up || peer.pulls[p.id] {
		return
	}
	peer.pulls[p.id] = true
	p.fetchState(from, 0, func(*wire.State) { delete(peer.pulls, p.id) })
}

func (c *Core) onMoved(m *wire.Moved) {
	for _, id := range m.Partitions {
		if p := c.known(id); p != nil {
			p.movedTo(m.Ring)
		}
	}
}

// movedTo learns that all rings below number are closed for the partition.
func (p *partition) movedTo(number uint64) {
	c := p.core
	if number <= p.moved || number > c.rings.current.Number() {
		return
	}
	open := len(p.sets)
	p.moved = number
	if open > 1 {
		c.persistThen([]wire.Op{put(key(recordMoved, uint64(p.id)), number)}, nil)
	}
	clear(p.copying)
	p.placeNow()
	p.armClaim()
	if p.own != nil {
		p.own.pump()
	}
}
