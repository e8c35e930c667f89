package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// settle answers Settle: each item gets its code. Items of partitions that this node
// does not own are passed to the owner.
func (c *Core) settle(req ReqID, m *wire.Settle) {
	c.whenCatalog(m.Catalog, func() {
		codes := make([]wire.Code, len(m.Items))
		waiting := 1
		done := func() {
			if waiting--; waiting == 0 {
				c.reply(req, &wire.Settled{Codes: codes})
			}
		}
		for _, group := range byPartition(m.Items) {
			waiting++
			c.settlePartition(m, group, false, func(i int, code wire.Code) { codes[i] = code }, done)
		}
		done()
	})
}

// byPartition are the indices of items by their partition, in order of appearance.
func byPartition(items []wire.SettleItem) [][]int {
	var out [][]int
	at := map[wire.PartitionID]int{}
	for i := range items {
		id := items[i].Receipt.Partition
		n, found := at[id]
		if !found {
			n = len(out)
			at[id] = n
			out = append(out, nil)
		}
		out[n] = append(out[n], i)
	}
	return out
}

// settlePartition settles the items of one partition, by their indices. asked says that this
// node knows what a majority knows.
func (c *Core) settlePartition(m *wire.Settle, indices []int, asked bool, set func(int, wire.Code), done func()) {
	all := func(code wire.Code) {
		for _, i := range indices {
			set(i, code)
		}
		done()
	}
	p := c.known(m.Items[indices[0]].Receipt.Partition)
	switch {
	case p != nil:
	case asked:
		all(c.noQueue(m.Queue, m.Catalog).Code)
		return
	default: // it may be behind
		c.learnCatalog(func(known bool) {
			if !known {
				all(wire.CodeNotReady)
				return
			}
			c.settlePartition(m, indices, true, set, done)
		})
		return
	}
	if p.own != nil && p.own.phase >= grace && p.own.phase != releasing && p.own.valid() {
		p.own.settle(m, indices, set, done)
		return
	}
	if p.home && c.planted(bugAckByAnyHome) && onlyAcks(m, indices) {
		p.confirmAnywhere(m, indices, set, done)
		return
	}
	owner := p.owner()
	if owner == 0 && !m.Passed {
		owner = p.nextHome()
	}
	if !m.Passed && owner != 0 && owner != c.self && c.up(owner) || m.Passed && p.home && owner != 0 && owner != c.self && c.up(owner) {
		part := &wire.Settle{Queue: m.Queue, Catalog: m.Catalog, Passed: true}
		for _, i := range indices {
			part.Items = append(part.Items, m.Items[i])
		}
		c.call(owner, part, callTimeout, func(msg wire.Message) {
			s, ok := msg.(*wire.Settled)
			if !ok || len(s.Codes) != len(indices) {
				p.keepAcks(m, indices)
				all(wire.CodeNotOwner)
				return
			}
			for n, i := range indices {
				set(i, s.Codes[n])
			}
			done()
		})
		return
	}
	p.keepAcks(m, indices)
	all(wire.CodeNotOwner)
}

// nextHome is the home replica to ask for the owner, 0 if none answers. They are asked in
// turn: one that grants nothing, because it repairs itself or has promised a higher term in
// vain, does not know.
func (p *partition) nextHome() ring.NodeID {
	others := p.otherHomes()
	for range others {
		p.turn++
		if id := others[p.turn%len(others)]; p.core.answering(id) {
			return id
		}
	}
	return 0
}

// keepAcks keeps the acks of items, here and on the home replicas, where no owner can
// confirm them: the client goes on until one does (DESIGN section 8).
func (p *partition) keepAcks(m *wire.Settle, indices []int) {
	var items []wire.AckItem
	for _, i := range indices {
		x := &m.Items[i]
		if x.Kind == wire.SettleAck && p.validReceipt(x) {
			items = append(items, ackItems(x)...)
		}
	}
	if len(items) > 0 {
		p.changes++
		p.spreadAcks(items, wire.Term{}, func(bool, []ring.NodeID) {})
	}
}

func ackItems(x *wire.SettleItem) []wire.AckItem {
	out := make([]wire.AckItem, 0, len(x.Runs))
	for _, run := range x.Runs {
		out = append(out, wire.AckItem{
			Group: x.Receipt.Group, Lane: x.Receipt.Lane, Run: run, Producer: x.Receipt.Producer,
			Sequence: x.Receipt.Sequence + uint64(run.From-x.Receipt.Run.From),
		})
	}
	return out
}

// validReceipt says whether a receipt is of this mesh, and its runs within it.
func (p *partition) validReceipt(x *wire.SettleItem) bool {
	if !x.Receipt.Valid(p.core.secret()) || x.Receipt.Partition != p.id || !p.hasGroup(x.Receipt.Group) || x.Runs.Validate() != nil || len(x.Runs) == 0 {
		return false
	}
	return x.Runs[0].From >= x.Receipt.Run.From && x.Runs.End() <= x.Receipt.Run.To
}

// settle settles items as the owner. Acks are confirmed when a majority has them.
func (o *ownership) settle(m *wire.Settle, indices []int, set func(int, wire.Code), done func()) {
	p := o.p
	var acks []wire.AckItem
	var acked []int
	for _, i := range indices {
		x := &m.Items[i]
		switch {
		case !p.validReceipt(x):
			set(i, wire.CodeBadReceipt)
		case x.Kind == wire.SettleAck:
			acks = append(acks, ackItems(x)...)
			acked = append(acked, i)
		default:
			set(i, o.change(x))
		}
	}
	if len(acks) == 0 {
		done()
		o.pump()
		return
	}
	// The ack is marked in memory before anything else: the owner's own disk may be
	// the slow one.
	term := o.term
	for i := range acks {
		p.core.stats.Acked += acks[i].Run.Len()
	}
	p.spreadAcks(acks, term, func(ok bool, _ []ring.NodeID) {
		code := wire.CodeNotOwner
		if ok && p.own == o && o.valid() && o.term == term {
			code = 0
		}
		for _, i := range acked {
			set(i, code)
		}
		done()
	})
	o.pump()
}

// change nacks, extends or gives back. It counts only for the delivery that the
// receipt names, if it is the current one.
func (o *ownership) change(x *wire.SettleItem) wire.Code {
	p, c := o.p, o.p.core
	f := o.feeds[x.Receipt.Group]
	if f == nil {
		return wire.CodeNoGroup
	}
	d := f.lane(x.Receipt.Lane).byID[idOf(&x.Receipt)]
	if d == nil && c.planted(bugNackByAttempt) {
		d = f.byAttempt(x)
	}
	if d == nil {
		return wire.CodeStaleReceipt
	}
	runs := x.Runs.Intersect(d.runs)
	if len(runs) == 0 {
		return wire.CodeStaleReceipt
	}
	switch x.Kind {
	case wire.SettleNack:
		wait := uint64(x.Delay)
		if wait == 0 {
			wait = p.backoff(d.receipt.Attempt)
		}
		c.stats.Nacked += runs.Count()
		f.takeBack(d, runs, wire.CauseNack, wait, d.receipt.Attempt, true)
	case wire.SettleExtend:
		lease := p.entry.Settings.Lease
		if x.Delay != 0 {
			lease = min(x.Delay, wire.MaxLease)
		}
		// Never shorter: the lease of the queue may have become so, and a delivery has more messages
		// than those that are extended.
		d.until = max(d.until, c.now.Mono+Instant(lease)*Millisecond)
		f.arm(d, wire.CauseLease)
	case wire.SettleRelease:
		f.release(d, runs)
	default:
		return wire.CodeBadRequest
	}
	return 0
}

// release gives messages back without an attempt. Those of a first delivery are new
// again, in their old place in the order; they keep the mark.
func (f *feed) release(d *delivery, runs wire.Runs) {
	if d.receipt.Attempt > 1 {
		f.takeBack(d, runs, wire.CauseReleased, 0, d.receipt.Attempt-1, false)
		return
	}
	f.settled(d, runs)
	for _, run := range runs {
		f.unhand(d.receipt.Lane, run)
		f.lane(d.receipt.Lane).released.Add(run)
		for _, other := range f.o.p.aliasesOf(d.receipt.Lane, run) {
			f.lane(other.lane).released.Add(other.run)
		}
	}
}

// heldResume is a Resume that came to a node that does not own the partition yet.
type heldResume struct {
	sub      *sub
	consumer wire.ConsumerID
	held     []wire.Held
	at       Instant
}

// maxResumes bounds the resumes that wait per partition.
const maxResumes = 1000

// onResume takes what a consumer still holds. What is of a queue that is not known here waits
// for the catalog that its client has seen.
func (c *Core) onResume(on ConnID, m *wire.Resume) {
	s := c.subs[subKey{on, m.Sub}]
	if s == nil || c.planted(bugNoResume) {
		return
	}
	unknown := c.resumed(s, m)
	if len(unknown) == 0 || s.version <= c.catalog.version {
		return
	}
	c.whenCatalog(s.version, func() {
		if c.subs[s.key] == s {
			c.resumed(s, &wire.Resume{Sub: m.Sub, Consumer: m.Consumer, Held: unknown})
		}
	})
}

// resumed takes what a consumer still holds: at once as the owner, else for when this node
// becomes the owner. It returns what is of partitions that are not known here.
func (c *Core) resumed(s *sub, m *wire.Resume) (unknown []wire.Held) {
	byID := map[wire.PartitionID][]wire.Held{}
	for _, h := range m.Held {
		byID[h.Receipt.Partition] = append(byID[h.Receipt.Partition], h)
	}
	for _, id := range sortedKeys(byID) {
		p := c.known(id)
		if p == nil {
			unknown = append(unknown, byID[id]...)
			continue
		}
		if p.entry.Name != s.to.queue {
			continue
		}
		if p.own != nil && p.own.phase >= grace {
			p.own.resume(s, m.Consumer, byID[id])
			if p.own.valid() {
				continue
			} // else it may be the owner again in another term, and begin another table
		}
		p.resumes = slices.DeleteFunc(p.resumes, func(r heldResume) bool {
			return r.consumer == m.Consumer && r.sub == s || c.now.Mono-r.at > 10*Second
		})
		if len(p.resumes) < maxResumes {
			p.resumes = append(p.resumes, heldResume{sub: s, consumer: m.Consumer, held: byID[id], at: c.now.Mono})
		}
	}
	return unknown
}

// resume puts what a consumer holds into the table. Of two claims to one message the
// younger delivery wins.
func (o *ownership) resume(s *sub, consumer wire.ConsumerID, held []wire.Held) {
	p := o.p
	for _, h := range held {
		x := wire.SettleItem{Receipt: h.Receipt, Runs: h.Runs}
		f := o.feeds[h.Receipt.Group]
		if f == nil || !p.validReceipt(&x) {
			continue
		}
		o.restore(f, h.Receipt, h.Runs, consumer, s, Instant(h.Left)*Millisecond)
	}
}

// restore makes a delivery of an earlier term, or of a lost connection, current again.
// A receipt may come in parts.
func (o *ownership) restore(f *feed, receipt wire.Receipt, runs wire.Runs, consumer wire.ConsumerID, s *sub, left Instant) {
	p, c := o.p, o.p.core
	p.rememberHeader(wire.Segment{ // the message may be here at another position
		Producer: receipt.Producer, Sequence: receipt.Sequence, Lane: receipt.Lane,
		Base: receipt.Run.From, Count: receipt.Run.Len(), Stamp: c.clock,
	})
	fl := f.lane(receipt.Lane)
	open := runs.Minus(p.group(f.id).runs(receipt.Lane))
	current := fl.byID[idOf(&receipt)]
	if current != nil {
		if s != nil && current.consumer == consumer {
			// The client may not have known yet of an extension that was confirmed to it, and
			// this node not of one that another owner has confirmed since.
			current.sub = s
			current.until = max(current.until, c.now.Mono+left)
			f.arm(current, wire.CauseLease)
		}
		open = open.Minus(current.runs)
	}
	open = f.reclaimable(receipt, open)
	if len(open) == 0 {
		return
	}
	for _, run := range open {
		for _, d := range deliveriesIn(fl, run) {
			f.settled(d, d.runs.Overlap(run))
		}
		for _, r := range f.waitingIn(receipt.Lane, run) {
			f.dropRetry(r, run)
		}
		fl.handed.Add(run)
		f.inflight += int(run.Len())
	}
	c.stats.Resumed += open.Count()
	if current == nil {
		current = &delivery{receipt: receipt, consumer: consumer, sub: s, until: c.now.Mono + left}
		fl.add(current)
		f.arm(current, wire.CauseLease)
	}
	current.runs.AddAll(open)
	if until := c.now.Mono + left; current.consumer == consumer && until > current.until {
		current.until = until // the parts may have been extended apart
		f.arm(current, wire.CauseLease)
	}
}

// reclaimable is what of runs a receipt may still claim: what was neither handed out
// again nor given back since. Of two claims the younger delivery wins.
func (f *feed) reclaimable(receipt wire.Receipt, runs wire.Runs) wire.Runs {
	fl := f.lane(receipt.Lane)
	out := runs.Clone()
	for _, run := range runs {
		for _, d := range deliveriesIn(fl, run) {
			if !older(d.receipt, receipt) {
				out = out.Minus(d.runs)
			}
		}
		for _, r := range f.waitingIn(receipt.Lane, run) {
			// What was given back, or a later delivery that has ended, is not claimed any more.
			// What was only taken back is, and what ended before it was handed out in this way.
			ended := wire.Receipt{Term: r.Term, Serial: r.Serial}
			taken := r.Cause == wire.CauseConsumer || r.Cause == wire.CauseLease
			if older(receipt, ended) || !older(ended, receipt) && !taken {
				out.Remove(r.Run)
			}
		}
	}
	return out
}

// older says whether a delivery came before another of the same message.
func older(a, b wire.Receipt) bool {
	if a.Term != b.Term {
		return a.Term.Less(b.Term)
	}
	return a.Serial < b.Serial
}

// endFeeds stops the timers of an ownership that ends.
func (o *ownership) endFeeds() {
	c := o.p.core
	for _, g := range sortedKeys(o.feeds) {
		f := o.feeds[g]
		c.timers.stop(f.due)
		c.timers.stop(f.resume)
		for _, l := range sortedLanes(f.lanes) {
			for _, d := range f.lanes[l].inflight {
				c.timers.stop(d.timer)
			}
		}
	}
}
