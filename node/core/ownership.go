package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// grant is the ownership lease that this replica has given. Invariant: while it runs,
// no other node is granted the partition.
type grant struct {
	holder ring.NodeID
	boot   uint64 // of the holder: another boot is another process, which must wait
	term   wire.Term
	until  Instant // counted from the answer
}

// phase is how far this node's ownership of a partition is.
type phase uint8

const (
	preclaiming phase = iota // asks "would you?"; nothing is raised
	promising                // its own promise is being synced
	claiming                 // asks for grants
	catching                 // merges the states of a majority
	grace                    // owns, and waits for Resume
	owning                   // hands out
	releasing                // hands over
)

// ownership is this node's claim to a partition, or its hold on it.
type ownership struct {
	p     *partition
	phase phase
	term  wire.Term
	// grants are the home replicas that granted the term, with the end of each grant
	// as the holder counts it: from when it asked, less 5 % for the clocks.
	grants map[ring.NodeID]Instant
	asking map[ring.NodeID]bool
	merged map[ring.NodeID]bool // whose state, taken after the grant, is here
	// fresh says that nobody has owned the partition before, or that the owner before
	// handed over: no reclaim grace is needed.
	fresh bool
	table []wire.InFlight // handed over
	// handedBefore came with the table.
	handedBefore []wire.HandedOut
	previous     wire.Term // the highest that was promised before this one
	expected     wire.Term // of the release that the table came with
	timer        *timer
	offering     bool    // to hand over
	outbid       Instant // when a home replica was heard of that has promised a higher term; 0: none was
	nextOffer    Instant // not before: to a better placed node
	feeds        map[wire.GroupID]*feed
	pumping      bool
	serial       uint64 // of the last delivery
	scans        int    // retry records that are still being read
}

// leaseOf is what a grant asked for at an instant is worth to its holder.
func (c *Core) leaseOf(asked Instant) Instant {
	if c.planted(bugLeaseFromAnswer) {
		return c.now.Mono + ownershipLease
	}
	return asked + ownershipLease*95/100
}

// owner is the node that this one believes to own the partition; 0 if it knows none.
func (p *partition) owner() ring.NodeID {
	if p.own != nil && p.own.phase >= grace && p.own.valid() {
		return p.core.self
	}
	if p.grant.holder != 0 && p.grant.holder != p.core.self && p.core.now.Mono < p.grant.until {
		return p.grant.holder
	}
	return 0
}

// armClaim makes a home replica claim as soon as no grant of its own runs, after its
// rank. Gossip does not decide.
func (p *partition) armClaim() { p.claimIn(0) }

func (p *partition) claimIn(wait Instant) {
	c := p.core
	c.timers.stop(p.claim)
	p.claim = nil
	if !p.home || p.own != nil || c.draining || c.parts[p.id] != p {
		return
	}
	if p.grant.until == Never {
		return // a promise is being synced; it arms again
	}
	at := max(c.now.Mono+wait, p.grant.until, c.bootUntil) + Instant(p.rank())*rankDelay
	p.claim = c.timers.add(at, p.preclaim)
}

// preclaim asks the home replicas whether they would grant.
func (p *partition) preclaim() {
	c := p.core
	p.claim = nil
	if p.own != nil || !p.home || c.draining || c.parts[p.id] != p {
		return
	}
	if c.now.Mono < p.grant.until || c.now.Mono < c.bootUntil {
		p.armClaim() // renewed since
		return
	}
	if p.repairing || c.planted(bugClaimByGossip) && !p.firstAlive() {
		p.repairOn()
		p.claimIn(renewEvery)
		return
	}
	reach := p.majority(c.up)
	if !reach || !c.healthy() {
		p.claimIn(renewEvery)
		return
	}
	o := &ownership{
		p: p, grants: map[ring.NodeID]Instant{}, asking: map[ring.NodeID]bool{}, merged: map[ring.NodeID]bool{},
		feeds: map[wire.GroupID]*feed{},
	}
	p.own = o
	o.ask(&wire.Claim{Pre: true}, func(id ring.NodeID, g *wire.Granted) {
		o.grants[id] = c.leaseOf(c.now.Mono)
		if p.majority(func(id ring.NodeID) bool { return id == c.self || o.grants[id] > 0 }) {
			o.promise()
		}
	})
}

// takeOver claims at once: the owner has released the partition in this node's favour.
func (p *partition) takeOver(r *wire.Release) {
	c := p.core
	if p.own != nil || !p.home || p.repairing || c.draining {
		return
	}
	c.timers.stop(p.claim)
	p.own = &ownership{
		p: p, grants: map[ring.NodeID]Instant{}, asking: map[ring.NodeID]bool{}, merged: map[ring.NodeID]bool{},
		feeds: map[wire.GroupID]*feed{}, table: r.InFlight, handedBefore: r.HandedOut, expected: r.Term,
	}
	p.own.promise()
}

// ask sends a claim to the other home replicas. granted is called for each that says
// yes in this round; where too few can, the claim is given up.
func (o *ownership) ask(m *wire.Claim, granted func(ring.NodeID, *wire.Granted)) {
	p, c := o.p, o.p.core
	m.Queue, m.Partition, m.Rank = p.entry.Name, p.id, uint32(p.rank())
	m.Ring, m.Catalog = c.rings.current.Number(), c.catalog.version
	round, term := o.phase, o.term
	current := func() bool { return p.own == o && o.phase == round && o.term == term }
	var left Instant
	no := map[ring.NodeID]bool{}
	others := p.otherHomes()
	for _, id := range others {
		c.call(id, m, 2*renewEvery, func(msg wire.Message) {
			if !current() {
				return
			}
			g, ok := msg.(*wire.Granted)
			if ok {
				o.hear(g)
			}
			if ok && g.OK {
				granted(id, g)
				return
			}
			if ok {
				left = max(left, Instant(g.Left)*Millisecond)
			}
			no[id] = true
			if !p.majority(func(id ring.NodeID) bool { return !no[id] }) {
				outbid := ok && o.phase == claiming && g.Holder == 0 && o.term.Less(g.Promised)
				o.abandon()
				if outbid {
					p.claimNow()
				} else {
					p.claimIn(max(left, rankDelay/2) + c.jitter(20*Millisecond))
				}
			}
		})
		if !current() {
			return
		}
	}
	if len(others) == 0 {
		granted(c.self, &wire.Granted{OK: true, Previous: p.promised})
	}
}

// claimNow claims without the wait for the rank: it was outbid, and tries higher.
func (p *partition) claimNow() {
	if p.own == nil && p.home && !p.core.draining {
		p.core.timers.stop(p.claim)
		p.claim = p.core.timers.add(max(p.core.now.Mono, p.grant.until), p.preclaim)
	}
}

// hear learns the terms and the mark of an answer.
func (o *ownership) hear(g *wire.Granted) {
	p := o.p
	if p.heard.Less(g.Promised) {
		p.heard = g.Promised
	}
	if o.previous.Less(g.Previous) {
		o.previous = g.Previous
	}
	p.movedTo(g.Moved)
}

// promise takes a term above all that were heard of, and promises it to itself on
// disk. A term serves one claim.
func (o *ownership) promise() {
	p, c := o.p, o.p.core
	top := p.heard
	if top.Less(p.promised) {
		top = p.promised
	}
	if o.previous.Less(p.promised) {
		o.previous = p.promised
	}
	o.phase = promising
	clear(o.grants)
	o.term = wire.Term{Counter: top.Counter + 1, Node: c.self}
	p.promised, p.heard = o.term, o.term
	c.persistThen([]wire.Op{put(key(recordTerm, uint64(p.id)), p.promised)}, func() {
		if p.own != o || o.phase != promising {
			return
		}
		o.phase = claiming
		o.claim()
	})
}

// claim asks for grants of the term.
func (o *ownership) claim() {
	p, c := o.p, o.p.core
	asked := c.now.Mono
	o.merged[c.self] = true
	o.ask(&wire.Claim{Term: o.term, Handover: o.expected != wire.Term{}}, func(id ring.NodeID, g *wire.Granted) {
		o.granted(id, g, asked)
	})
	if p.own == o && len(p.otherHomes()) > 0 {
		o.check()
	}
}

// granted takes one grant, and then the grantor's state: an owner knows what a
// majority knew when it promised.
func (o *ownership) granted(id ring.NodeID, g *wire.Granted, asked Instant) {
	p, c := o.p, o.p.core
	if id != c.self {
		o.grants[id] = c.leaseOf(asked)
	}
	if id == c.self || g.Sum == p.digest() || c.planted(bugNoCatchUp) {
		o.merged[id] = true
		o.check()
		return
	}
	o.catchUp(id)
}

// catchUp merges the state of a node that has granted, until that has worked. A grant that
// ends meanwhile is no reason to stop: it may be renewed.
func (o *ownership) catchUp(id ring.NodeID) {
	p := o.p
	p.fetchState(id, 0, func(s *wire.State) {
		if p.own != o || o.phase != claiming {
			return
		}
		if s != nil {
			o.merged[id] = true
			o.check()
			return
		}
		p.core.after(rankDelay, func() {
			if p.own == o && o.phase == claiming && !o.merged[id] {
				o.catchUp(id)
			}
		})
	})
}

// check becomes the owner when a majority has granted and is merged.
func (o *ownership) check() {
	p, c := o.p, o.p.core
	if o.phase != claiming {
		return
	}
	if !p.majority(func(id ring.NodeID) bool { return o.holds(id) && o.merged[id] }) {
		return
	}
	never := o.previous == wire.Term{}
	handed := o.expected != wire.Term{} && (o.previous == o.expected || c.planted(bugTableAlways))
	o.fresh = never || handed
	c.stats.Takeovers++
	c.note(NoteInfo, p, "owner", "queue %s partition %d, term %s", p.entry.Name, p.index, o.term)
	o.begin(handed)
}

// holds says whether a node's grant runs. Its own does while its disk keeps up.
func (o *ownership) holds(id ring.NodeID) bool {
	if id == o.p.core.self {
		return o.p.core.healthy() && o.p.promised == o.term
	}
	return o.p.core.now.Mono < o.grants[id]
}

// valid says whether this node owns the partition now: a majority of each open ring
// has granted its term, and no such grant has run out.
func (o *ownership) valid() bool {
	return o.phase >= claiming && o.p.majority(o.holds)
}

// until is when the ownership lease ends unless it is renewed.
func (o *ownership) until() Instant {
	end := Never
	for _, set := range o.p.sets {
		ends := make([]Instant, len(set))
		for i, id := range set {
			ends[i] = o.grants[id]
			if id == o.p.core.self && o.holds(id) {
				ends[i] = Never
			}
		}
		slices.Sort(ends)
		// A majority lasts until the grant that is its last to go.
		end = min(end, ends[len(ends)-(len(ends)/2+1)])
	}
	return end
}

// abandon gives up a claim that has not become ownership.
func (o *ownership) abandon() {
	p := o.p
	if p.own == o {
		p.own = nil
		p.core.timers.stop(o.timer)
	}
}

// stepDown ends the ownership, whatever phase it is in.
func (o *ownership) stepDown() {
	p := o.p
	if p.own != o {
		return
	}
	if o.phase >= grace {
		p.core.note(NoteInfo, p, "no longer owner", "queue %s partition %d, term %s", p.entry.Name, p.index, o.term)
	}
	o.endFeeds()
	o.abandon()
	p.claimIn(0)
}

// setsChanged asks new home replicas for grants under the same term.
func (o *ownership) setsChanged() {
	if o.phase < claiming {
		o.abandon()
		o.p.claimIn(rankDelay)
		return
	}
	for _, id := range o.p.otherHomes() {
		o.askLate(id)
	}
	o.check() // fewer may be enough now
}

// askLate asks a home replica for a grant that it has not given yet: it was away when
// the claim was made, or is new.
func (o *ownership) askLate(id ring.NodeID) {
	p, c := o.p, o.p.core
	if o.phase < claiming || o.phase == releasing || o.asking[id] || !p.isHome(id) || !c.up(id) || c.now.Mono < o.grants[id] {
		return
	}
	asked := c.now.Mono
	o.asking[id] = true
	m := &wire.Claim{
		Queue: p.entry.Name, Partition: p.id, Term: o.term, Rank: uint32(p.rank()),
		Ring: c.rings.current.Number(), Catalog: c.catalog.version,
	}
	c.call(id, m, 2*renewEvery, func(msg wire.Message) {
		delete(o.asking, id)
		g, ok := msg.(*wire.Granted)
		if p.own != o || !ok {
			return
		}
		p.movedTo(g.Moved)
		if g.OK && o.phase == claiming {
			o.hear(g)
			o.granted(id, g, asked)
			return
		}
		if g.OK {
			o.grants[id] = max(o.grants[id], c.leaseOf(asked))
			if g.Sum != p.digest() && !c.planted(bugNoCatchUp) {
				p.pull(id)
			}
			o.pump()
			return
		}
		o.lost(id, g.Promised)
	})
}

// lost learns that a grantor has promised another term.
func (o *ownership) lost(id ring.NodeID, promised wire.Term) {
	p := o.p
	if !o.term.Less(promised) {
		return
	}
	delete(o.grants, id)
	if p.heard.Less(promised) {
		p.heard = promised
	}
	if !o.valid() {
		o.stepDown()
		return
	}
	if o.outbid == 0 {
		o.outbid = p.core.now.Mono
	}
}

// onClaim answers a claim as a home replica.
func (c *Core) onClaim(req ReqID, from ring.NodeID, m *wire.Claim) {
	c.partitionOf(m.Partition, m.Catalog, func(p *partition) {
		if p == nil || !c.member() {
			c.reply(req, &wire.Granted{})
			return
		}
		p.onClaim(req, from, m)
	})
}

func (p *partition) onClaim(req ReqID, from ring.NodeID, m *wire.Claim) {
	c := p.core
	top := p.heard
	if top.Less(p.promised) {
		top = p.promised
	}
	no := &wire.Granted{Promised: top, Moved: p.moved}
	if m.Ring > c.rings.current.Number() {
		c.fetchRings(from)
		c.reply(req, no)
		return
	}
	if m.Ring < c.rings.current.Number() {
		c.send(from, &wire.Rings{Tables: c.rings.from(m.Ring), Boots: c.boots()})
		if len(p.sets) > 1 || !p.isHome(from) {
			c.reply(req, no)
			return
		}
	}
	if !p.home || !p.isHome(from) || p.repairing && !c.planted(bugDamagedGrants) || !c.healthy() {
		c.reply(req, no)
		return
	}
	if !m.Pre && p.heard.Less(m.Term) {
		p.heard = m.Term
	}
	if !p.yields(from, m) {
		no.Holder = c.self
		if p.own.phase >= claiming {
			no.Left = uint32(max(0, min(ownershipLease, p.own.until()-c.now.Mono)) / Millisecond)
		}
		c.reply(req, no)
		return
	}
	if (p.grant.holder != from || p.grant.boot < c.peer(from).boot && from != c.self) && c.now.Mono < p.grant.until {
		no.Holder, no.Left = p.grant.holder, uint32(max(1, min(ownershipLease, p.grant.until-c.now.Mono)/Millisecond))
		c.reply(req, no)
		return
	}
	if c.now.Mono < c.bootUntil && m.Term != p.promised {
		// After a boot it has forgotten its grants: one of them may run for a lease.
		no.Left = uint32((c.bootUntil - c.now.Mono) / Millisecond)
		c.reply(req, no)
		return
	}
	if m.Pre {
		no.OK = true
		no.Previous = p.promised
		c.reply(req, no)
		return
	}
	if m.Term.Less(p.promised) {
		c.reply(req, no)
		return
	}
	p.promiseTo(req, from, m.Term)
}

// yields says whether this node's own claim or hold lets another's claim pass. A
// claimant yields to a better placed one.
func (p *partition) yields(from ring.NodeID, m *wire.Claim) bool {
	o := p.own
	if o == nil {
		return true
	}
	if o.phase >= grace {
		if o.valid() && o.phase != releasing {
			return false
		}
		if o.phase == releasing {
			return true
		}
		if m.Pre {
			return true // its lease has run out; it steps down when a term is promised
		}
		o.stepDown()
		return true
	}
	if int(m.Rank) > p.rank() && !m.Handover {
		return false
	}
	o.abandon()
	p.claimIn(ownershipLease / 2)
	return true
}

// promiseTo promises a term on disk, then grants it.
func (p *partition) promiseTo(req ReqID, from ring.NodeID, term wire.Term) {
	c := p.core
	previous := p.promised
	if previous == term {
		previous = wire.Term{}
	}
	p.promised = term
	p.grant = grant{holder: from, boot: c.peer(from).boot, term: term, until: Never} // it may have been answered for all that another claimant knows
	c.timers.stop(p.claim)
	c.persistThen([]wire.Op{put(key(recordTerm, uint64(p.id)), term)}, func() {
		if p.promised != term || p.grant.term != term {
			if p.grant.term == term { // a term that was heard of is promised since (promiseCopied, endRepair)
				p.grant.until = c.now.Mono + ownershipLease // of this one it may have given a grant before
				p.claimIn(0)
			}
			c.reply(req, &wire.Granted{Promised: p.promised})
			return
		}
		p.grant.until = c.now.Mono + ownershipLease
		c.reply(req, &wire.Granted{OK: true, Promised: term, Previous: previous, Sum: p.digest(), Moved: p.moved})
		p.tellOwner(from, term, 0)
		p.claimIn(0)
	})
}

// leaseSet is what this node holds from one grantor: a numbered set, so that a renewal
// names the number and what changed.
type leaseSet struct {
	number uint64
	sent   map[wire.PartitionID]wire.Term
	known  bool // the grantor has it
	busy   bool // a renewal is under way
	since  Instant
}

// grantSet is what one holder holds from this node.
type grantSet struct {
	number uint64
	set    map[wire.PartitionID]wire.Term
	told   map[wire.PartitionID]uint64 // changes of which the holder knows
}

// renewAll extends all ownership leases, one message per grantor.
func (c *Core) renewAll() {
	if !c.healthy() {
		return
	}
	sets := map[ring.NodeID]map[wire.PartitionID]wire.Term{}
	for _, id := range sortedKeys(c.parts) {
		p := c.parts[id]
		o := p.own
		if o == nil || o.phase < claiming || o.phase == releasing {
			continue
		}
		for _, home := range p.otherHomes() {
			if o.grants[home] > 0 {
				if sets[home] == nil {
					sets[home] = map[wire.PartitionID]wire.Term{}
				}
				sets[home][id] = o.term
			} else {
				o.askLate(home)
			}
		}
		o.check() // its own disk may have been late when the last grant came
		o.tend()
	}
	for _, id := range sortedKeys(sets) {
		c.renew(c.peer(id), sets[id])
	}
}

func (c *Core) renew(p *peer, set map[wire.PartitionID]wire.Term) {
	if !p.up || p.out.busy && c.now.Mono-p.out.since < ownershipLease {
		return
	}
	m := &wire.Renew{Ring: c.rings.current.Number()}
	for _, id := range sortedKeys(set) {
		if !p.out.known || p.out.sent[id] != set[id] {
			m.Add = append(m.Add, wire.PartitionTerm{Partition: id, Term: set[id]})
		}
	}
	if p.out.known {
		for _, id := range sortedKeys(p.out.sent) {
			if _, still := set[id]; !still {
				m.Drop = append(m.Drop, id)
			}
		}
	}
	m.Full = !p.out.known
	if m.Full || len(m.Add) > 0 || len(m.Drop) > 0 {
		p.out.number++
	}
	m.Set = p.out.number
	p.out.sent, p.out.busy, p.out.since = set, true, c.now.Mono
	asked, number := c.now.Mono, m.Set
	c.call(p.id, m, ownershipLease, func(msg wire.Message) {
		r, ok := msg.(*wire.Renewed)
		if p.out.number == number {
			p.out.busy = false
			p.out.known = ok && r.Known
		}
		if ok && r.Known {
			c.renewed(p.id, set, r, asked)
		}
	})
}

func (c *Core) renewed(from ring.NodeID, set map[wire.PartitionID]wire.Term, r *wire.Renewed, asked Instant) {
	lost := map[wire.PartitionID]wire.Term{}
	for _, l := range r.Lost {
		lost[l.Partition] = l.Term
	}
	for _, id := range sortedKeys(set) {
		p := c.parts[id]
		if p == nil || p.own == nil || p.own.term != set[id] {
			continue
		}
		o := p.own
		if term, gone := lost[id]; gone {
			if o.term.Less(term) {
				o.lost(from, term)
			} else {
				delete(o.grants, from) // it was away, and has not promised the term
				o.askLate(from)
			}
			continue
		}
		was := o.valid()
		o.grants[from] = max(o.grants[from], c.leaseOf(asked))
		if !was && o.valid() {
			o.check()
			o.pump()
		}
	}
	for _, n := range r.News {
		if p := c.parts[n.Partition]; !c.planted(bugNoCatchUp) && p != nil && p.own != nil && p.digest() != n.Sum {
			p.pull(from)
		}
	}
}

// onRenew extends the grants that a holder has from this node.
func (c *Core) onRenew(req ReqID, from ring.NodeID, m *wire.Renew) {
	g := &c.peer(from).in
	same := g.set != nil && m.Set == g.number && len(m.Add) == 0 && len(m.Drop) == 0
	next := g.set != nil && m.Set == g.number+1
	switch {
	case m.Full:
		g.set, g.told = map[wire.PartitionID]wire.Term{}, map[wire.PartitionID]uint64{}
	case !same && !next:
		c.reply(req, &wire.Renewed{})
		return
	}
	g.number = m.Set
	for _, a := range m.Add {
		g.set[a.Partition] = a.Term
	}
	for _, id := range m.Drop {
		delete(g.set, id)
		delete(g.told, id)
	}
	r := &wire.Renewed{Known: true}
	healthy := c.healthy() && c.member()
	for _, id := range sortedKeys(g.set) {
		p := c.known(id)
		if p == nil || !healthy || !p.renewed(from, g.set[id], m.Ring) {
			lost := wire.PartitionTerm{Partition: id}
			if p != nil {
				lost.Term = p.promised
			}
			r.Lost = append(r.Lost, lost)
			continue
		}
		if p.changes != g.told[id] {
			g.told[id] = p.changes
			r.News = append(r.News, wire.News{Partition: id, Sum: p.digest()})
		}
	}
	c.reply(req, r)
}

// renewed extends a grant. Only the term that was promised last is renewed, and not
// while another grant runs.
func (p *partition) renewed(holder ring.NodeID, term wire.Term, ringNumber uint64) bool {
	c := p.core
	if p.promised != term || p.repairing && !c.planted(bugDamagedGrants) || !p.home {
		return false
	}
	if ringNumber < c.rings.current.Number() && len(p.sets) > 1 {
		return false
	}
	if p.grant.term != term && c.now.Mono < p.grant.until {
		return false
	}
	boot := c.peer(holder).boot
	if p.grant.term == term {
		if p.grant.boot < boot { // a later process of that node is there: this one must stop
			return false
		}
		boot = p.grant.boot
	}
	if p.own != nil {
		p.own.abandon() // it claimed, and somebody else's lease is in force after all
	}
	if p.grant.until != Never { // Never: the promise is not synced yet
		p.grant = grant{holder: holder, boot: boot, term: term, until: c.now.Mono + ownershipLease}
	}
	if p.claim == nil {
		p.claimIn(0)
	}
	return true
}
