package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// tend looks, at each renewal, whether the partition needs a higher term, or a better placed
// node should own it. That is rare: the node must have been up for handoverAfter.
func (o *ownership) tend() {
	p, c := o.p, o.p.core
	if o.phase != owning || !o.valid() {
		return
	}
	if o.outbid > 0 && c.now.Mono-o.outbid >= ownershipLease {
		o.rise()
		return
	}
	if len(p.sets) != 1 || c.now.Mono < o.nextOffer {
		return
	}
	for _, id := range p.homes() {
		if id == c.self {
			return
		}
		if peer := c.peer(id); peer.up && c.answering(id) && c.now.Mono-peer.since >= handoverAfter {
			o.nextOffer = c.now.Mono + 5*Second
			o.offer(id, func(bool) {})
			return
		}
	}
}

// offer hands the partition over to another home replica, with what is in flight, so
// that consumers notice nothing. done says whether it went.
func (o *ownership) offer(to ring.NodeID, done func(bool)) {
	p, c := o.p, o.p.core
	if o.phase != owning || !o.valid() || o.offering {
		done(false)
		return
	}
	o.offering = true
	c.call(to, &wire.Offer{Queue: p.entry.Name, Partition: p.id, Term: o.term}, callTimeout, func(msg wire.Message) {
		o.offering = false
		if _, ok := msg.(*wire.Done); !ok || p.own != o || o.phase != owning || !o.valid() {
			done(false)
			return
		}
		o.release(to, done)
	})
}

// release stops handing out, and gives up the lease in favour of a node that has
// caught up. The table names the term, and travels with the release.
func (o *ownership) release(to ring.NodeID, done func(bool)) {
	p, c := o.p, o.p.core
	o.phase = releasing
	table, before := o.flying(), o.handedOut()
	ended := false
	finish := func(ok bool) {
		if !ended {
			ended = true
			done(ok)
		}
	}
	for _, id := range p.otherHomes() {
		if id != to {
			c.call(id, &wire.Release{Partition: p.id, Term: o.term, To: to}, callTimeout, func(wire.Message) {})
		}
	}
	m := &wire.Release{Partition: p.id, Term: o.term, To: to, InFlight: table, HandedOut: before}
	c.call(to, m, callTimeout, func(msg wire.Message) {
		_, ok := msg.(*wire.Done)
		finish(ok)
	})
	// The own grant is given up as well.
	p.grant = grant{}
	o.endFeeds()
	if p.own == o {
		p.own = nil
	}
	p.claimIn(ownershipLease)
}

// rise hands the partition over to this node itself, under a higher term. A home replica
// promised one that nobody owns: it grants nothing to this owner any more, and consumers that
// heard of it drop what comes in a lower one.
func (o *ownership) rise() {
	p, c := o.p, o.p.core
	o.phase = releasing
	r := &wire.Release{Partition: p.id, Term: o.term, To: c.self, InFlight: o.flying(), HandedOut: o.handedOut()}
	for _, id := range p.otherHomes() {
		c.call(id, &wire.Release{Partition: p.id, Term: o.term, To: c.self}, callTimeout, func(wire.Message) {})
	}
	p.grant = grant{}
	o.endFeeds()
	p.own = nil
	p.takeOver(r)
	p.claimIn(ownershipLease / 2) // if it cannot
}

// flying is what is in flight.
func (o *ownership) flying() []wire.InFlight {
	c := o.p.core
	var out []wire.InFlight
	for _, g := range sortedKeys(o.feeds) {
		f := o.feeds[g]
		for _, l := range sortedLanes(f.lanes) {
			for _, d := range f.lanes[l].inflight {
				out = append(out, wire.InFlight{
					Group: g, Receipt: d.receipt, Runs: d.runs.Clone(), Consumer: d.consumer,
					Left: uint32(max(0, d.until-c.now.Mono) / Millisecond),
				})
			}
		}
	}
	return out
}

// handedOut is what was handed out in this term or, as far as is known, in one before, is
// not done, and not in flight: what consumers gave back, let go or left behind. Retries that
// are in memory alone are not handed over, so their attempts count anew.
func (o *ownership) handedOut() []wire.HandedOut {
	var out []wire.HandedOut
	for _, g := range sortedKeys(o.feeds) {
		f := o.feeds[g]
		delayed := map[wire.Lane]wire.Runs{} // never handed out: they wait for their time
		for _, r := range f.retries {
			if r.Attempt == 0 {
				runs := delayed[r.Lane]
				runs.Add(r.Run)
				delayed[r.Lane] = runs
			}
		}
		for _, l := range o.p.order {
			fl := f.lane(l)
			runs := fl.handed.Clone()
			runs.AddAll(fl.released)
			runs.AddAll(f.before[l])
			for _, d := range fl.inflight {
				runs = runs.Minus(d.runs)
			}
			if runs = runs.Minus(delayed[l]).Minus(o.p.group(g).runs(l)); len(runs) > 0 {
				out = append(out, wire.HandedOut{Group: g, Lane: l, Runs: runs})
			}
		}
	}
	return out
}

// onOffer catches up, then says so.
func (c *Core) onOffer(req ReqID, from ring.NodeID, m *wire.Offer) {
	p := c.known(m.Partition)
	if p == nil || !p.home || p.repairing || c.draining || p.promised != m.Term {
		c.reply(req, wire.Errorf(wire.ErrNotReady, "not able to take over"))
		return
	}
	p.fetchState(from, 0, func(s *wire.State) {
		if s == nil {
			c.reply(req, wire.Errorf(wire.ErrNotReady, "could not catch up"))
			return
		}
		c.reply(req, &wire.Done{})
	})
}

// onRelease cancels the grant of that term, and no other; the node in whose favour it
// is claims at once.
func (c *Core) onRelease(req ReqID, m *wire.Release) {
	p := c.known(m.Partition)
	if p == nil {
		c.reply(req, wire.ErrNoQueue)
		return
	}
	if (p.grant.term == m.Term || c.planted(bugTermlessRelease)) && p.grant.until != Never {
		p.grant = grant{}
		if m.To == c.self && p.promised == m.Term {
			p.takeOver(m)
		} else {
			p.claimIn(ownershipLease / 2) // after the one it was meant for
		}
	}
	c.reply(req, &wire.Done{})
}

// takeTable makes the deliveries that were handed over current. Acks that were under
// way are in the state: the release came behind them.
func (o *ownership) takeTable() {
	for _, x := range o.table {
		if f := o.feeds[x.Group]; f != nil {
			o.restore(f, x.Receipt, x.Runs, x.Consumer, o.p.core.subOf(o.p, x.Group, x.Consumer), Instant(x.Left)*Millisecond)
		}
	}
	for _, x := range o.handedBefore {
		if f := o.feeds[x.Group]; f != nil {
			f.before[x.Lane] = x.Runs.Clone()
		}
	}
	o.table, o.handedBefore = nil, nil
}

// subOf finds a consumer's subscription at this node. Of several it is the newest: the
// others are of connections that are gone, and this node does not know it yet.
func (c *Core) subOf(p *partition, g wire.GroupID, consumer wire.ConsumerID) *sub {
	for i, id := range p.groupIDs() {
		if id == g {
			var newest *sub
			for _, s := range c.feeders[queueGroup{p.entry.Name, p.entry.Groups[i].Name}] {
				if s.consumer == consumer && (newest == nil || s.key.conn > newest.key.conn) {
					newest = s
				}
			}
			return newest
		}
	}
	return nil
}

// drain hands over all that is owned, then says Drained.
func (c *Core) drain() {
	if c.draining {
		return
	}
	c.draining = true
	c.note(NoteInfo, nil, "draining", "")
	c.drainOn(c.now.Mono + 10*Second)
}

// drainOn hands over what is still owned, and waits for the writes under way.
func (c *Core) drainOn(deadline Instant) {
	if c.drained {
		return
	}
	busy := 0
	for _, id := range sortedKeys(c.parts) {
		p := c.parts[id]
		busy += len(p.writes)
		o := p.own
		if o == nil {
			continue
		}
		i := slices.IndexFunc(p.otherHomes(), c.answering)
		switch {
		case o.phase < grace:
			o.abandon()
		case i >= 0:
			busy++
			if o.phase == owning {
				o.offer(p.otherHomes()[i], func(bool) {})
			}
		}
	}
	if busy > 0 && c.now.Mono < deadline {
		c.after(50*Millisecond, func() { c.drainOn(deadline) })
		return
	}
	c.drained = true
	c.foldAll()
	c.persistThen(nil, func() { c.emit(Drained{}) })
}
