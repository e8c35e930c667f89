package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// partitionOf finds a partition for a message of a member that knows the catalog at
// least as well, and calls fn with it; nil if the queue does not exist.
func (c *Core) partitionOf(id wire.PartitionID, version uint64, fn func(*partition)) {
	c.whenCatalog(version, func() { fn(c.known(id)) })
}

// onReplicate stores batches as a replica, or as a hint for the home replicas.
func (c *Core) onReplicate(req ReqID, m *wire.Replicate) {
	if len(m.Batches) == 0 {
		c.reply(req, &wire.Synced{Commit: c.commit})
		return
	}
	c.partitionOf(m.Batches[0].Partition, m.Catalog, func(p *partition) {
		if p == nil || !c.member() {
			c.reply(req, &wire.Synced{Code: wire.CodeNoQueue})
			return
		}
		p.replicate(req, m)
	})
}

func (p *partition) replicate(req ReqID, m *wire.Replicate) {
	c := p.core
	hint := !p.home // who thinks that this node is a home replica knows another ring
	size := 0
	for i := range m.Batches {
		size += m.Batches[i].Size()
	}
	var refusal wire.Code
	switch {
	case c.diskFull:
		refusal = wire.CodeDiskFull
	case hint && (c.draining || c.hintBytes+size > c.cfg.Limits.HintBytes):
		refusal = wire.CodeOverloaded
	}
	if refusal != 0 {
		c.reply(req, &wire.Synced{Code: refusal})
		return
	}
	ops, code := p.keep(m.Batches, hint)
	if code != 0 {
		c.reply(req, &wire.Synced{Code: code})
		return
	}
	c.persistThen(ops, func() {
		s := &wire.Synced{Commit: c.commit}
		if p.repairing {
			s.Code = wire.CodeNotReady
		}
		c.reply(req, s)
		if p.own != nil {
			p.own.pump()
		}
	})
}

// keep takes batches from elsewhere into memory and returns what is to be written.
// What is known to be done by all groups is not kept. A conflict refuses all.
func (p *partition) keep(batches []wire.Batch, hint bool) ([]wire.Op, wire.Code) {
	for i := range batches {
		if b := &batches[i]; b.Partition != p.id || p.conflicts(b) && !p.core.planted(bugConflictOverwrites) {
			return nil, wire.CodeLaneConflict
		}
	}
	var ops []wire.Op
	hinted := map[wire.Lane]wire.Runs{}
	for i := range batches {
		b := &batches[i]
		l := p.lane(b.Lane)
		if l.held.Covers(b.Run()) || p.doneByAll(b.Lane).Covers(b.Run()) {
			continue
		}
		p.hold(b, hint)
		p.changes++
		ops = append(ops, wire.Op{Kind: wire.OpBatch, Batch: *b})
		if hint {
			runs := hinted[b.Lane]
			runs.Add(b.Run())
			hinted[b.Lane] = runs
		}
	}
	for _, l := range sortedLanes(hinted) {
		ops = append(ops, p.hintOps(l, hinted[l])...)
	}
	return ops, 0
}

// conflicts says whether other messages are known at the place of a batch. Nothing is
// ever overwritten.
func (p *partition) conflicts(b *wire.Batch) bool {
	l := p.lanes[b.Lane]
	if l == nil || len(l.held.Overlap(b.Run())) == 0 && len(l.gone.Overlap(b.Run())) == 0 {
		return false
	}
	return !p.sameProducer(b)
}

// sameProducer says whether what is known at the place of a batch is that batch; true
// if nothing is known of it any more.
func (p *partition) sameProducer(b *wire.Batch) bool {
	if at, known := p.find(b.Producer, b.Sequence, uint64(b.Count)); known && at == (laneRun{lane: b.Lane, run: b.Run()}) {
		return true
	}
	for _, q := range p.producers { // any or none: the order does not matter
		for _, s := range q.segments {
			if s.Lane != b.Lane {
				continue
			}
			if run := wire.Span(s.Base, s.Base+wire.Offset(s.Count)); run.From < b.Run().To && b.Base < run.To {
				if s.Producer != b.Producer || uint64(b.Base-s.Base) != b.Sequence-s.Sequence {
					return false
				}
			}
		}
	}
	return true
}

// onStoreAcks keeps acks as a home replica. They count only under the term that this
// replica has promised, and the ring that it knows (DESIGN section 8).
func (c *Core) onStoreAcks(req ReqID, m *wire.StoreAcks) {
	c.partitionOf(m.Partition, m.Catalog, func(p *partition) {
		if p == nil || !c.member() {
			c.reply(req, &wire.Synced{Code: wire.CodeNoQueue})
			return
		}
		for _, item := range m.Items {
			if item.Run.From >= item.Run.To || !p.hasGroup(item.Group) {
				c.reply(req, &wire.Synced{Code: wire.CodeBadRequest})
				return
			}
		}
		code := p.ackCode(m)
		for _, item := range m.Items {
			p.markDone(item)
		}
		if code != 0 {
			p.changes++
		}
		c.persistThen(p.ackOps(m.Items), func() {
			// A promise may have been made since.
			if code == 0 {
				code = p.ackCode(m)
			}
			c.reply(req, &wire.Synced{Commit: c.commit, Code: code})
		})
	})
}

// ackCode says whether this replica's copy of acks counts.
func (p *partition) ackCode(m *wire.StoreAcks) wire.Code {
	switch {
	case m.Term != (wire.Term{}) && m.Term.Less(p.promised):
		return wire.CodeNotOwner
	case m.Ring < p.core.rings.current.Number() && len(p.sets) > 1 && !p.core.planted(bugAckOneRing):
		return wire.CodeNotOwner
	case p.repairing && !p.core.planted(bugDamagedGrants) || !p.home && !p.core.planted(bugAckByFallbacks):
		return wire.CodeNotReady
	}
	return 0
}

func (p *partition) hasGroup(id wire.GroupID) bool { return slices.Contains(p.groupIDs(), id) }

// spreadAcks writes acks here and on the other home replicas, and calls done once:
// with ok when a majority of each open ring has them synced and counts them.
func (p *partition) spreadAcks(items []wire.AckItem, term wire.Term, done func(ok bool, nodes []ring.NodeID)) {
	c := p.core
	if !c.planted(bugAckOnOwnDisk) {
		for _, item := range items {
			p.markDone(item)
		}
	}
	var nodes []ring.NodeID
	waiting, over := 0, false
	finish := func(ok bool) {
		if !over {
			over = true
			done(ok, nodes)
		}
	}
	answer := func(id ring.NodeID, counts bool) {
		waiting--
		if counts {
			nodes = append(nodes, id)
			if p.majority(func(id ring.NodeID) bool { return slices.Contains(nodes, id) }) || p.enoughAnyway(nodes) {
				finish(true)
			}
		}
		if waiting == 0 {
			finish(false)
		}
	}
	others := p.otherHomes()
	if c.planted(bugAckByFallbacks) {
		others = slices.Concat(others, p.fallbacks())
	}
	waiting = 1 + len(others)
	c.persistThen(p.ackOps(items), func() {
		if c.planted(bugAckOnOwnDisk) {
			for _, item := range items {
				p.markDone(item)
			}
		}
		answer(c.self, p.home && !p.repairing && (term == wire.Term{} || !term.Less(p.promised)))
	})
	m := &wire.StoreAcks{Queue: p.entry.Name, Partition: p.id, Term: term, Ring: c.rings.current.Number(), Catalog: c.catalog.version, Items: items}
	for _, id := range others {
		c.call(id, m, settleTimeout, func(msg wire.Message) {
			s, ok := msg.(*wire.Synced)
			if ok {
				c.commitSeen(c.peer(id), c.peer(id).boot, s.Commit)
			}
			answer(id, ok && s.Code == 0)
		})
	}
}

// onRetries keeps retry records that an owner spreads.
func (c *Core) onRetries(m *wire.Retries) {
	p := c.known(m.Partition)
	if p == nil || !p.home {
		return
	}
	p.keepRetries(m.Items)
}

func (p *partition) keepRetries(items []wire.Retry) {
	var ops []wire.Op
	for _, r := range items {
		if p.hasGroup(r.Group) && r.Run.From < r.Run.To && !p.group(r.Group).runs(r.Lane).Covers(r.Run) {
			ops = append(ops, put(retryKey(p.id, r), r))
		}
	}
	if len(ops) > 0 {
		p.swept = false
		p.core.persistThen(ops, nil)
	}
}

func (c *Core) onWatermarks(m *wire.Watermarks) {
	if p := c.known(m.Partition); p != nil && p.home {
		p.raiseWatermarks(m.Items)
	}
}

// damage takes what the store found to be damaged.
func (c *Core) damage(ev Damage) {
	c.stats.Damaged++
	if ev.Partition == 0 {
		c.damagedAll = true
		for _, id := range sortedKeys(c.parts) {
			c.parts[id].startRepair()
		}
		return
	}
	p := c.known(ev.Partition)
	if p == nil {
		return
	}
	if ev.Runs == nil {
		p.startRepair()
		return
	}
	p.lost(ev.Lane, ev.Runs)
}

// lost takes bodies that fail their checksum out of what this replica has. It counts
// for nothing until it is repaired (P12).
func (p *partition) lost(id wire.Lane, runs wire.Runs) {
	l := p.lane(id)
	gone := runs.Intersect(l.held)
	if len(gone) == 0 || p.core.planted(bugDamageIgnored) {
		return
	}
	for _, run := range gone {
		l.held.Remove(run)
		p.core.cache.drop(p.id, id, run)
	}
	p.sum = 0
	p.core.note(NoteWarn, p, "damaged batches set aside", "lane %s, offsets %s", id, gone)
	p.startRepair()
}

// startRepair makes the replica count for nothing until it has merged the state of
// N - majority + 1 other home replicas.
func (p *partition) startRepair() {
	if !p.home {
		return
	}
	clear(p.repaired)
	if !p.repairing {
		p.repairing = true
		p.core.note(NoteWarn, p, "repairing", "queue %s partition %d", p.entry.Name, p.index)
		p.core.persistThen([]wire.Op{p.repairOp()}, nil)
	}
	if p.own != nil {
		p.own.stepDown()
	}
	p.repairOn()
}

// repairOn asks the other home replicas for what is missing.
func (p *partition) repairOn() {
	if !p.repairing {
		return
	}
	if p.checkRepaired(); !p.repairing { // where nobody else is asked, what is lost is lost
		return
	}
	for _, id := range p.otherHomes() {
		if counts := p.repaired[id]; !counts && p.core.up(id) {
			p.pull(id)
		}
	}
}

// mergedFrom counts a replica whose whole state is here now. One that is repairing
// itself does not count, unless all the others are merged too: then nothing is left to
// learn.
func (p *partition) mergedFrom(id ring.NodeID, whole bool) {
	if p.repairing {
		p.repaired[id] = whole || p.repaired[id]
		p.checkRepaired()
	}
}

// checkRepaired ends the repair when enough is merged, in each open ring.
func (p *partition) checkRepaired() {
	for _, set := range p.sets {
		if !slices.Contains(set, p.core.self) {
			continue
		}
		need, have, asked := len(set)-(len(set)/2+1)+1, 0, 0
		if p.core.planted(bugRepairedByOne) {
			need = min(need, 1)
		}
		for _, id := range set {
			counts, merged := p.repaired[id]
			if counts {
				have++
			}
			if merged {
				asked++
			}
		}
		if have < need && asked < len(set)-1 {
			return
		}
	}
	p.endRepair()
}

// repairOp is the record of whether the replica is repairing. The end of a repair is
// written: a record that is only deleted may come back, when nobody is left to repair from.
func (p *partition) repairOp() wire.Op { return put(key(recordRepair, uint64(p.id)), p.repairing) }

func (p *partition) endRepair() {
	p.repairing = false
	if p.promised.Less(p.heard) && !p.core.planted(bugRepairedNoTerm) {
		p.promised = p.heard // it may have promised that one, and forgotten
	}
	p.core.note(NoteInfo, p, "repaired", "queue %s partition %d", p.entry.Name, p.index)
	p.core.persistThen([]wire.Op{
		p.repairOp(), put(key(recordTerm, uint64(p.id)), p.promised),
	}, nil)
	p.rewrite()
	p.armClaim()
}

// rewrite has all folded records written anew: some on disk may be damaged.
func (p *partition) rewrite() {
	for _, g := range p.groups { // sets: the order does not matter
		for _, d := range g.lanes { // each by itself: the order does not matter
			d.floor = 0
			for _, run := range d.runs {
				for page := run.From / pageSize; page <= (run.To-1)/pageSize; page++ {
					d.dirty[page] = true
				}
			}
		}
	}
	p.watermarksDirty, p.ackLogDirty = true, true
	p.headers = p.allSegments()
}
