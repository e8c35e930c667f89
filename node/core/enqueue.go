package core

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// write is a batch on its way to W nodes.
type write struct {
	p     *partition
	batch wire.Batch
	hint  bool // this node is no home replica: its copy is a hint
	want  int
	// synced are the nodes whose copy counts; asked those that were given it.
	synced  []ring.NodeID
	asked   []ring.NodeID
	failed  []ring.NodeID // that refused it, or are down
	full    ring.NodeID   // one of those whose disk is full
	reqs    []ReqID
	replied bool // confirmed, or refused as unknown
	ended   bool
	timer   *timer // fallbacks, then the end
}

// enqueue answers Enqueue: a batch is passed to the owner, found to be known, or
// accepted into this node's own lane. All that it waits for, one after the other, is
// within the time that its sender waits (P10).
func (c *Core) enqueue(req ReqID, m *wire.Enqueue) {
	until := c.now.Mono + timeoutOf(m)
	c.whenCatalogBy(m.Catalog, until, func() { c.enqueueKnown(req, m, until, false) })
}

// enqueueKnown takes a batch if its queue is known here. asked says that this node knows
// what a majority knows: before that it does not say that there is no such queue.
func (c *Core) enqueueKnown(req ReqID, m *wire.Enqueue, until Instant, asked bool) {
	p := c.parts[m.Partition]
	if p == nil {
		if e := c.catalog.live(m.Queue); e != nil && c.places[m.Partition].queue == m.Queue {
			p = c.known(m.Partition)
		}
	}
	switch {
	case c.draining:
		c.reply(req, wire.Errorf(wire.ErrNotReady, "node %s is draining", c.cfg.Self.Name))
	case p != nil:
		p.enqueue(req, m, until, false)
	case asked || m.Catalog > c.catalog.version:
		c.reply(req, c.noQueue(m.Queue, m.Catalog))
	default:
		unsure := func() { c.reply(req, c.unsure()) }
		late := c.timers.add(until, unsure)
		c.learnCatalog(func(known bool) {
			switch {
			case late.index < 0: // answered
			case !known:
				c.timers.stop(late)
				unsure()
			default:
				c.timers.stop(late)
				c.enqueueKnown(req, m, until, true)
			}
		})
	}
}

// enqueue takes a batch. maybe says that another node may have stored it: a refusal of
// this one is then no proof that it is not (P10).
func (p *partition) enqueue(req ReqID, m *wire.Enqueue, until Instant, maybe bool) {
	c := p.core
	if limit := int(p.entry.Settings.MaxMessageBytes); len(m.Records) > limit {
		if err := wire.CheckRecords(m.Records, m.Count, limit); err != nil {
			if err, ok := err.(*wire.Error); ok { //nolint:errorlint // returned unwrapped or as a bad record
				c.refuse(req, err, maybe)
				return
			}
			c.refuse(req, wire.Errorf(wire.ErrTooLarge, "%v", err), maybe)
			return
		}
	}
	for _, w := range p.writes {
		if w.batch.Producer == m.Producer && w.batch.Sequence == m.Sequence && w.batch.Count == m.Count && !w.replied {
			w.join(req, until) // tried again while it is under way
			return
		}
	}
	if at, known := p.find(m.Producer, m.Sequence, uint64(m.Count)); known {
		p.again(req, m, at, until)
		return
	}
	if owner := p.owner(); !m.Passed && owner != c.self && owner != 0 && c.answering(owner) {
		p.pass(req, owner, m, until)
		return
	}
	p.accept(req, m, until, maybe)
}

// refuse answers a batch that this node does not take.
func (c *Core) refuse(req ReqID, err *wire.Error, maybe bool) {
	if maybe {
		err = wire.Errorf(wire.ErrTimeout, "the owner did not answer in time and may have stored it; here: %v", err)
	}
	c.reply(req, err)
}

// pass gives an enqueue to the owner; if the owner is silent this node accepts it.
func (p *partition) pass(req ReqID, owner ring.NodeID, m *wire.Enqueue, until Instant) {
	passed := *m
	passed.Passed = true
	p.core.call(owner, &passed, passTimeout, func(answer wire.Message) {
		switch a := answer.(type) {
		case *wire.Enqueued:
			p.core.reply(req, a)
		case *wire.Error:
			if a.Code == wire.CodeNotReady || a.Code == wire.CodeDiskFull { // here there may be room (P6)
				p.enqueuePassed(req, &passed, until, false)
				return
			}
			p.core.reply(req, a)
		default:
			p.enqueuePassed(req, &passed, until, true)
		}
	})
}

// enqueuePassed takes an enqueue that the owner did not take, or (maybe) of which it has
// not said so, if the queue still exists.
func (p *partition) enqueuePassed(req ReqID, m *wire.Enqueue, until Instant, maybe bool) {
	if p.core.parts[p.id] != p {
		p.core.refuse(req, wire.Errorf(wire.ErrNoQueue, "queue %s was deleted", m.Queue), maybe)
		return
	}
	p.enqueue(req, m, until, maybe)
}

// accept gives a batch the next offsets of this node's own lane, and at the same time
// writes it here and sends it to all home replicas.
func (p *partition) accept(req ReqID, m *wire.Enqueue, until Instant, maybe bool) {
	c := p.core
	size := len(m.Records) + wire.HeaderSize
	switch {
	case c.diskFull:
		c.refuse(req, wire.Errorf(wire.ErrDiskFull, "disk of node %s is full", c.cfg.Self.Name), maybe)
		return
	case c.pendingBytes+size > c.cfg.Limits.PendingBytes && c.planted(bugOverloadDrops):
		return
	case c.pendingBytes+size > c.cfg.Limits.PendingBytes:
		c.refuse(req, &wire.Error{Code: wire.CodeOverloaded, Text: "too many bytes wait for their write quorum", RetryAfter: 100}, maybe)
		return
	}
	l := p.lane(wire.Lane{Node: c.self, Epoch: c.epoch})
	if c.planted(bugEpochReused) || c.planted(bugConflictOverwrites) {
		l.next = max(l.next, l.held.End(), l.gone.End())
	}
	b := wire.Batch{
		BatchHeader: wire.BatchHeader{
			Flags: m.Flags, Count: m.Count, Partition: p.id, Lane: l.id, Base: l.next, Stamp: c.stamp(),
			Producer: m.Producer, Sequence: m.Sequence, AfterLane: m.AfterLane, AfterOffset: m.AfterOffset,
			Catalog: c.catalog.version, Length: uint64(len(m.Records)), Checksum: m.Checksum,
		},
		Records: m.Records,
	}
	l.next += wire.Offset(m.Count)
	c.stats.Accepted += uint64(m.Count)
	p.hold(&b, !p.home)
	l.unready.Add(b.Run())
	p.startWrite(b, req, until, true)
}

// timeoutOf is how long the sender waits for an answer.
func timeoutOf(m *wire.Enqueue) Instant {
	if m.Timeout == 0 {
		return enqueueTimeout
	}
	return min(enqueueTimeout, Instant(m.Timeout)*Millisecond)
}

// join adds a request to a write that is under way; it is answered in its own time.
func (w *write) join(req ReqID, until Instant) {
	if req == 0 {
		return
	}
	w.reqs = append(w.reqs, req)
	w.p.core.timers.add(until, func() {
		if i := slices.Index(w.reqs, req); i >= 0 {
			w.reqs = slices.Delete(w.reqs, i, i+1)
			w.p.core.reply(req, w.quorumError())
		}
	})
}

// stamp is the next hybrid logical clock value: milliseconds << 16 | counter.
func (c *Core) stamp() uint64 {
	c.clock = max(c.clock+1, c.now.Wall<<16)
	return c.clock
}

// maxStampAhead is how far another's stamp may be ahead of this node's clock to be
// adopted, in milliseconds: one wrong clock must not move all of them.
const maxStampAhead = 10_000

// hold takes a batch into the replica's memory; the caller persists it.
func (p *partition) hold(b *wire.Batch, hint bool) {
	c := p.core
	l := p.lane(b.Lane)
	l.held.Add(b.Run())
	l.catalog = max(l.catalog, b.Catalog)
	p.remember(wire.Segment{Producer: b.Producer, Sequence: b.Sequence, Lane: b.Lane, Base: b.Base, Count: uint64(b.Count), Stamp: b.Stamp})
	if b.Stamp>>16 <= c.now.Wall+maxStampAhead {
		c.clock = max(c.clock, b.Stamp)
	}
	if hint && !c.planted(bugFallbackWithoutHint) {
		p.addHints(b.Lane, wire.Runs{b.Run()})
		c.hintBytes += b.Size()
		p.hintBytes += b.Size()
	}
	c.cache.add(b)
	p.sum = 0
	if p.own != nil {
		p.own.rewind(b.Lane, b.Base)
	}
}

// holdOps are the records of a batch.
func (p *partition) holdOps(b *wire.Batch, hint bool) []wire.Op {
	ops := []wire.Op{{Kind: wire.OpBatch, Batch: *b}}
	if hint {
		ops = append(ops, p.hintOps(b.Lane, wire.Runs{b.Run()})...)
	}
	return ops
}

// startWrite brings a batch that this node holds to W nodes. persist says that it is
// not on this node's disk yet.
func (p *partition) startWrite(b wire.Batch, req ReqID, until Instant, persist bool) {
	c := p.core
	w := &write{p: p, batch: b, hint: !p.home, want: p.writeQuorum(), asked: []ring.NodeID{c.self}}
	if req != 0 {
		w.reqs = append(w.reqs, req)
	}
	p.writes = append(p.writes, w)
	c.pendingBytes += b.Size()
	var ops []wire.Op
	if persist {
		ops = p.holdOps(&b, w.hint)
	}
	c.persistThen(ops, func() {
		if p.repairing {
			w.fail(c.self)
			return
		}
		w.copied(c.self)
	})
	if c.planted(bugConfirmBeforeSync) {
		w.copied(c.self)
	}
	for _, id := range p.otherHomes() {
		if w.ended {
			return
		}
		w.ask(id, false)
	}
	if !w.ended {
		w.fillUp()
	}
	if w.ended {
		return
	}
	w.timer = c.timers.add(min(c.now.Mono+fallbackAfter, until), func() {
		w.late()
		if !w.ended {
			w.timer = c.timers.add(until, w.giveUp)
		}
	})
}

// writeQuorum is W; while a partition moves, that of the larger ring.
func (p *partition) writeQuorum() int { return p.w }

func (w *write) ask(id ring.NodeID, hint bool) {
	c := w.p.core
	if slices.Contains(w.asked, id) {
		return
	}
	w.asked = append(w.asked, id)
	m := &wire.Replicate{Queue: w.p.entry.Name, Ring: c.rings.current.Number(), Catalog: c.catalog.version, Hint: hint, Batches: []wire.Batch{w.batch}}
	c.call(id, m, enqueueTimeout, func(answer wire.Message) {
		if s, ok := answer.(*wire.Synced); ok && s.Code == 0 {
			c.commitSeen(c.peer(id), c.peer(id).boot, s.Commit)
			w.copied(id)
			return
		} else if ok && s.Code == wire.CodeLaneConflict {
			c.laneConflict(w.batch.Lane)
		} else if ok && s.Code == wire.CodeDiskFull {
			w.full = id
		}
		w.fail(id)
	})
}

// laneConflict starts a new lane: a replica holds other bytes at a position of this one.
func (c *Core) laneConflict(l wire.Lane) {
	if l.Node == c.self && l.Epoch == c.epoch {
		c.epoch = c.cfg.Boot<<32 | (c.epoch*0x9e3779b97f4a7c15+1)&0xffffffff
		c.note(NoteWarn, nil, "lane conflict", "a replica holds other bytes in lane %s; a new lane begins", l)
	}
}

// copied counts a synced copy.
func (w *write) copied(id ring.NodeID) {
	if slices.Contains(w.synced, id) {
		return
	}
	w.synced = append(w.synced, id)
	if len(w.synced) >= w.want && !w.replied {
		w.confirm()
	}
	w.check()
}

// fail takes a node out of those that may still answer.
func (w *write) fail(id ring.NodeID) {
	if w.ended {
		return
	}
	w.failed = append(w.failed, id)
	if id != w.p.core.self {
		// It may come back and be asked again.
		w.asked = slices.DeleteFunc(w.asked, func(x ring.NodeID) bool { return x == id })
	}
	w.fillUp()
	w.check()
}

// fillUp asks fallbacks where W cannot be reached by those that were asked.
func (w *write) fillUp() {
	if w.replied || w.ended {
		return
	}
	possible := 0
	for _, id := range w.asked {
		if !slices.Contains(w.failed, id) || slices.Contains(w.synced, id) {
			possible++
		}
	}
	w.askFallbacks(w.want - possible)
}

// late asks fallbacks for what has not come in time.
func (w *write) late() {
	if !w.replied && !w.ended {
		w.askFallbacks(w.want - len(w.synced))
	}
}

func (w *write) askFallbacks(n int) {
	for _, id := range w.p.fallbacks() {
		if n <= 0 || w.ended {
			return
		}
		if w.p.core.up(id) && !slices.Contains(w.asked, id) && !slices.Contains(w.failed, id) {
			n--
			w.ask(id, true)
		}
	}
}

// confirm answers the producer: W nodes have the batch fsynced (P1).
func (w *write) confirm() {
	p, c := w.p, w.p.core
	w.replied = true
	c.stats.Confirmed += uint64(w.batch.Count)
	m := &wire.Enqueued{Lane: w.batch.Lane, Base: w.batch.Base, Nodes: slices.Clone(w.synced), Want: uint8(w.want), Owner: p.owner()}
	for _, req := range w.reqs {
		c.reply(req, m)
	}
	w.reqs = nil
	w.ready()
}

// ready lets the batch be delivered.
func (w *write) ready() {
	l := w.p.lane(w.batch.Lane)
	l.unready.Remove(w.batch.Run())
	if w.p.own != nil {
		w.p.own.rewind(l.id, w.batch.Base)
		w.p.own.pump()
	}
}

// check ends a write that has nothing to wait for.
func (w *write) check() {
	if !w.replied || w.ended {
		return
	}
	for _, id := range w.p.otherHomes() {
		if slices.Contains(w.asked, id) && !slices.Contains(w.synced, id) && !slices.Contains(w.failed, id) {
			return
		}
	}
	w.end(nil)
}

// giveUp ends a write in time. Without W the outcome is unknown: the batch stays, and
// may be delivered.
func (w *write) giveUp() { w.end(nil) }

func (w *write) end(err *wire.Error) {
	if w.ended {
		return
	}
	p, c := w.p, w.p.core
	w.ended = true
	c.timers.stop(w.timer)
	c.pendingBytes -= w.batch.Size()
	p.writes = slices.DeleteFunc(p.writes, func(x *write) bool { return x == w })
	if !w.replied {
		w.replied = true
		c.stats.Unknown += uint64(w.batch.Count)
		if err == nil {
			err = w.quorumError()
		}
		if c.planted(bugQuorumRefused) {
			err = wire.ErrNotReady // "not stored"
		}
		for _, req := range w.reqs {
			c.reply(req, err)
		}
		w.reqs = nil
		w.ready()
	}
	if w.hint && c.parts[p.id] == p {
		p.hintsCopied(w.batch.Lane, w.batch.Run(), w.synced)
	}
}

func (w *write) quorumError() *wire.Error {
	err := wire.QuorumError(len(w.synced), w.want)
	if m, ok := w.p.core.rings.current.Table().Member(w.full); ok {
		err.Text = fmt.Sprintf("disk of node %s is full", m.Name)
	}
	return err
}

// resend gives a home replica that has come back the writes that are under way.
func (p *partition) resend(id ring.NodeID) {
	if !p.isHome(id) {
		return
	}
	for _, w := range slices.Clone(p.writes) {
		if !w.ended && !slices.Contains(w.synced, id) {
			w.failed = slices.DeleteFunc(w.failed, func(x ring.NodeID) bool { return x == id })
			w.ask(id, false)
		}
	}
}

// again answers a batch that is already here with its position, after making sure
// that W nodes hold it, or that a majority holds its acks for all groups.
func (p *partition) again(req ReqID, m *wire.Enqueue, at laneRun, until Instant) {
	c := p.core
	l := p.lane(at.lane)
	c.stats.Repeated++
	if c.planted(bugHitUncounted) {
		c.reply(req, &wire.Enqueued{Lane: at.lane, Base: at.run.From, Nodes: []ring.NodeID{c.self}, Want: uint8(p.w), Owner: p.owner()})
		return
	}
	switch {
	case l.held.Covers(at.run):
	case p.doneByAll(at.lane).Covers(at.run):
		p.againDone(req, at, until)
		return
	default:
		p.againElsewhere(req, m, at, until)
		return
	}
	if x := c.cache.get(p.id, at.lane, at.run.From); x != nil {
		p.startWrites(req, []wire.Batch{x.batch}, at, until)
		return
	}
	c.read(p.id, at.lane, wire.Runs{at.run}, wire.MaxBatchBytes, func(done ReadDone) {
		if c.parts[p.id] != p || len(done.Damaged) > 0 || len(done.Batches) == 0 {
			if len(done.Damaged) > 0 {
				p.lost(at.lane, done.Damaged)
			}
			c.reply(req, wire.Errorf(wire.ErrTimeout, "the batch is here but could not be read"))
			return
		}
		p.startWrites(req, done.Batches, at, until)
	})
}

// startWrites confirms batches that are already here, then answers with at.
func (p *partition) startWrites(req ReqID, batches []wire.Batch, at laneRun, until Instant) {
	if len(batches) == 1 && batches[0].Run() == at.run {
		p.startWrite(batches[0], req, until, false)
		return
	}
	// A retry of another size than the first try: the client must not do that.
	p.core.reply(req, wire.Errorf(wire.ErrStaleSequence, "the sequence was used for a batch of another size"))
}

// againElsewhere answers for a batch that is known from an ack, or from another replica's
// list, and whose body is not here: it is on its way, or on nodes that cannot be reached now,
// or was lost before it was confirmed. It is asked for, and where nobody gives it, it is stored
// once more: one message, two positions.
func (p *partition) againElsewhere(req ReqID, m *wire.Enqueue, at laneRun, until Instant) {
	c := p.core
	late := c.timers.add(until, func() {
		c.reply(req, wire.Errorf(wire.ErrTimeout, "another node has the batch, and cannot be asked now"))
	})
	p.seek(at.lane, at.run.From, func() {
		switch {
		case late.index < 0: // answered
			return
		case c.parts[p.id] != p:
			c.timers.stop(late)
			c.refuse(req, wire.Errorf(wire.ErrNoQueue, "queue %s was deleted", m.Queue), true)
			return
		}
		c.timers.stop(late)
		if p.lane(at.lane).held.Covers(at.run) || p.doneByAll(at.lane).Covers(at.run) {
			p.again(req, m, at, until)
			return
		}
		p.accept(req, m, until, true)
	})
}

// againDone answers for a batch whose body has gone: every group has done it, so it is
// enough that a majority knows that.
func (p *partition) againDone(req ReqID, at laneRun, until Instant) {
	c := p.core
	var items []wire.AckItem
	for _, g := range p.groupIDs() {
		items = append(items, wire.AckItem{Group: g, Lane: at.lane, Run: at.run})
	}
	late := c.timers.add(until, func() { c.reply(req, wire.QuorumError(0, len(p.homes())/2+1)) })
	p.spreadAcks(items, wire.Term{}, func(ok bool, nodes []ring.NodeID) {
		if late.index < 0 {
			return // answered
		}
		c.timers.stop(late)
		if !ok {
			c.reply(req, wire.QuorumError(len(nodes), len(p.homes())/2+1))
			return
		}
		c.reply(req, &wire.Enqueued{Lane: at.lane, Base: at.run.From, Nodes: nodes, Want: uint8(p.w), Owner: p.owner()})
	})
}
