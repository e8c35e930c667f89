package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Hinted handoff (DESIGN section 9): a hint is a batch that this node keeps because too
// few home replicas could take it. It belongs to the partition, not to one target: it
// is offered to all present home replicas, and goes when W of them have it.

// drainHints offers what is kept for others.
func (c *Core) drainHints() {
	for _, id := range sortedKeys(c.parts) {
		if p := c.parts[id]; len(p.hints) > 0 && !p.hinting {
			p.drainHints()
		}
	}
}

// drainHints runs one round for a partition: asks the home replicas what they have,
// then gives the first batch's worth of the rest to all of them.
func (p *partition) drainHints() {
	c := p.core
	var homes []ring.NodeID
	for _, id := range p.otherHomes() {
		if c.answering(id) {
			homes = append(homes, id)
		}
	}
	if p.home {
		homes = append(homes, c.self)
	}
	if len(homes) < p.w || len(homes) == 0 {
		return
	}
	p.hinting = true
	have := map[wire.Lane]map[ring.NodeID]wire.Runs{}
	waiting := len(homes)
	asked := func() {
		if waiting--; waiting > 0 {
			return
		}
		if c.parts[p.id] == p {
			p.hintsKnown(homes, have)
			p.giveHints(homes, func() { p.hinting = false })
		}
	}
	mine := map[wire.Lane]wire.Runs{} // as it is now: what comes meanwhile is not in any answer
	for _, l := range p.order {
		mine[l] = p.lanes[l].have().Clone()
	}
	know := func(id ring.NodeID, l wire.Lane, runs wire.Runs) {
		if have[l] == nil {
			have[l] = map[ring.NodeID]wire.Runs{}
		}
		have[l][id] = runs
	}
	for _, id := range homes {
		if id == c.self {
			c.persistThen(nil, func() {
				for l, runs := range mine { // a set: the order does not matter
					know(id, l, runs)
				}
				asked()
			})
			continue
		}
		p.fetchState(id, 0, func(s *wire.State) {
			switch {
			case s == nil || s.Repairing:
			case s.Equal:
				for l, runs := range mine { // a set: the order does not matter
					know(id, l, runs)
				}
			default:
				for _, x := range s.Have {
					know(id, x.Lane, x.Runs)
				}
			}
			asked()
		})
	}
}

// hintsKnown drops what W home replicas have, or know to be done.
func (p *partition) hintsKnown(homes []ring.NodeID, have map[wire.Lane]map[ring.NodeID]wire.Runs) {
	for _, l := range sortedLanes(p.hints) {
		for _, run := range p.hints[l].Clone() {
			// The offsets that at least W have, run by run of the first ones.
			p.dropHints(l, atLeast(p.hintCopies(), run, homes, have[l]))
		}
	}
}

// atLeast is what of a run at least w nodes have.
func atLeast(w int, run wire.Run, nodes []ring.NodeID, have map[ring.NodeID]wire.Runs) wire.Runs {
	// counted[i] is what at least i+1 nodes have.
	counted := make([]wire.Runs, w)
	for _, id := range nodes {
		runs := have[id].Overlap(run)
		for i := w - 1; i > 0; i-- {
			counted[i].AddAll(counted[i-1].Intersect(runs))
		}
		counted[0].AddAll(runs)
	}
	return counted[w-1]
}

// giveHints gives a part of what is left to the home replicas.
func (p *partition) giveHints(homes []ring.NodeID, done func()) {
	c := p.core
	lanes := sortedLanes(p.hints)
	if len(lanes) == 0 {
		done()
		return
	}
	l := lanes[0]
	c.read(p.id, l, p.hints[l].Clone(), syncBytes, func(r ReadDone) {
		if c.parts[p.id] != p {
			return
		}
		if len(r.Damaged) > 0 {
			// A hint that is damaged is no copy any more; the others are offered.
			c.note(NoteWarn, p, "damaged hint dropped", "lane %s, offsets %s", l, r.Damaged)
			p.dropHints(l, r.Damaged.Clone())
		}
		if len(r.Batches) == 0 {
			if len(r.Damaged) == 0 && len(p.writes) == 0 {
				p.dropHints(l, p.hints[l].Minus(p.lane(l).held)) // not here any more
			}
			done()
			return
		}
		waiting := len(homes)
		synced := []ring.NodeID{}
		answer := func(id ring.NodeID, ok bool) {
			if ok {
				synced = append(synced, id)
			}
			if waiting--; waiting > 0 {
				return
			}
			if c.parts[p.id] == p {
				before := p.hintCount()
				for i := range r.Batches {
					p.hintsCopied(l, r.Batches[i].Run(), synced)
				}
				if left := p.hintCount(); left < before && left > 0 {
					p.giveHints(homes, done) // on to the next part
					return
				}
			}
			done()
		}
		m := &wire.Replicate{Queue: p.entry.Name, Ring: c.rings.current.Number(), Catalog: c.catalog.version, Batches: r.Batches}
		if c.planted(bugHintDeletedSent) {
			synced = homes
		}
		for _, id := range homes {
			if id == c.self {
				answer(id, !p.repairing)
				continue
			}
			c.call(id, m, 2*callTimeout, func(msg wire.Message) {
				s, ok := msg.(*wire.Synced)
				answer(id, ok && s.Code == 0)
			})
		}
	})
}

// hintCopies is how many home replicas must have a hint's batch before it goes.
func (p *partition) hintCopies() int {
	if p.core.planted(bugHintDeletedEarly) {
		return 1
	}
	return p.w
}

// hintsCopied drops a hint when W home replicas have its batch.
func (p *partition) hintsCopied(l wire.Lane, run wire.Run, synced []ring.NodeID) {
	n := 0
	for _, id := range synced {
		if p.isHome(id) {
			n++
		}
	}
	if n >= p.hintCopies() {
		p.dropHints(l, wire.Runs{run})
	}
}

// addHints counts bodies among those that are kept for others.
func (p *partition) addHints(l wire.Lane, runs wire.Runs) {
	hints := p.hints[l]
	hints.AddAll(runs)
	p.hints[l] = hints
}

// hintOps are the records of the hints among changed, which were added or dropped.
func (p *partition) hintOps(l wire.Lane, changed wire.Runs) []wire.Op {
	var ops []wire.Op
	next := wire.Offset(0) // page
	for _, run := range changed {
		for page := max(next, run.From/pageSize); page <= (run.To-1)/pageSize; page++ {
			k := key(recordHint, uint64(p.id), uint64(l.Node), l.Epoch, uint64(page))
			if hints := p.hints[l].Overlap(wire.Span(page*pageSize, (page+1)*pageSize)); len(hints) > 0 {
				ops = append(ops, put(k, hints))
			} else {
				ops = append(ops, remove(k))
			}
			next = page + 1
		}
	}
	return ops
}

// dropHints forgets hints; where this node is no home replica, their bodies go too.
func (p *partition) dropHints(l wire.Lane, runs wire.Runs) {
	hints := p.hints[l].Clone()
	before := hints.Count()
	for _, run := range runs {
		hints.Remove(run)
	}
	if hints.Count() == before {
		return
	}
	p.core.stats.HintsHandedOff += before - hints.Count()
	dropped := p.hints[l].Intersect(runs)
	if len(hints) == 0 {
		delete(p.hints, l)
	} else {
		p.hints[l] = hints
	}
	ops := p.hintOps(l, dropped)
	if !p.home {
		x := p.lane(l)
		for _, run := range runs {
			ops = append(ops, wire.Op{Kind: wire.OpFree, Partition: p.id, Lane: l, Run: run})
			x.held.Remove(run)
			p.core.cache.drop(p.id, l, run)
		}
		p.sum = 0
	}
	if len(p.hints) == 0 {
		p.core.hintBytes -= p.hintBytes
		p.hintBytes = 0
	}
	p.core.persistThen(ops, nil)
}

// hintCount is the number of messages that this node keeps for others.
func (c *Core) hintCount() (n uint64) {
	for _, p := range c.parts { // a sum does not depend on the order
		n += p.hintCount()
	}
	return n
}

// hintCount is the number of messages of the partition that this node keeps for others.
func (p *partition) hintCount() (n uint64) {
	for _, runs := range p.hints { // a sum does not depend on the order
		n += runs.Count()
	}
	return n
}
