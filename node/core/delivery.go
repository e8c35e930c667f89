package core

import (
	"slices"
	"sort"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// subKey names a subscription: the client chose Sub, unique on its connection.
type subKey struct {
	conn ConnID
	sub  uint64
}

func (a subKey) compare(b subKey) int {
	switch {
	case a.conn < b.conn || a.conn == b.conn && a.sub < b.sub:
		return -1
	case a == b:
		return 0
	}
	return 1
}

func sortedSubs(m map[subKey]*sub) []subKey {
	out := make([]subKey, 0, len(m))
	for k := range m { // sorted below: the order does not matter
		out = append(out, k)
	}
	slices.SortFunc(out, subKey.compare)
	return out
}

// queueGroup is what a subscription is for.
type queueGroup struct {
	queue string
	group string
}

// sub is the demand of one consumer at this node.
type sub struct {
	key      subKey
	consumer wire.ConsumerID
	to       queueGroup
	credit   uint64 // messages that it may get in all
	given    uint64 // messages that it got
	version  uint64 // of the catalog that its client has seen
	// generation of the queue that its client knows: older ones are over for it. The version does
	// not tell: two nodes that make changes at once give them the same one.
	generation uint64
	relay      bool
	token      uint64 // of the relayed subscription at other nodes; 0: none
	// from counts what came of the relayed subscription by each node, on its present
	// connection: a subscription there begins anew with each.
	from map[ring.NodeID]uint64
}

func (s *sub) left() uint64 {
	if s.given >= s.credit {
		return 0
	}
	return s.credit - s.given
}

// delivery is messages of one batch in the hands of one consumer.
// Invariant (P4): an offset of a group has at most one delivery.
type delivery struct {
	receipt  wire.Receipt
	runs     wire.Runs // neither acked nor given back
	sub      *sub      // nil: its consumer went away, or has not resumed on a connection
	consumer wire.ConsumerID
	until    Instant // end of the delivery lease, by this node's clock
	timer    *timer
	retry    []byte // key of its retry record on disk; nil: none
}

// deliveryID is the identity of a delivery in a partition.
type deliveryID struct {
	term   wire.Term
	serial uint64
}

func idOf(r *wire.Receipt) deliveryID { return deliveryID{r.Term, r.Serial} }

// feed is what an owner hands out to one group. It lives as long as the ownership.
type feed struct {
	o     *ownership
	id    wire.GroupID
	name  string
	lanes map[wire.Lane]*feedLane
	// before is what owners before handed out, or may have where they did not say.
	before map[wire.Lane]wire.Runs
	// retries wait for their time; the turn says whether the next message is one.
	retries  retryHeap
	turn     bool
	onDisk   int    // retry records that are not in memory
	spilled  int    // of those, what is not yet given to the disk
	writing  int    // and what is being written: a scan may not see it
	after    []byte // key of the last that was loaded
	loading  bool
	rescan   bool // one was written while others were loaded: begin anew
	due      *timer
	resume   *timer // when a pause is over
	inflight int    // messages
	next     int    // the sub whose turn it is
}

// feedLane is how far a lane has been handed out.
type feedLane struct {
	// handed are the offsets that were delivered in this term or wait for a retry.
	// They are taken out when they are done.
	handed   wire.Runs
	released wire.Runs   // not handed out any more: new again, with a mark
	waiting  []*retry    // those of the heap, by their first message
	excluded wire.Runs   // copies of messages that are in flight at another position
	inflight []*delivery // by the first offset of their receipt, then by age
	byID     map[deliveryID]*delivery
	longest  wire.Offset // at least the longest run of a receipt in flight
	cursor   wire.Offset // nothing below it can be handed out as new
	reading  bool
	loaded   *cached // the batch under the cursor
	missing  Instant // since when its head waits for a predecessor; 0: it does not
	asked    bool    // the predecessor was asked for
}

// begin makes this node the owner. Without a handover or a first owner it waits for
// what consumers hold (P4).
func (o *ownership) begin(handed bool) {
	p, c := o.p, o.p.core
	for i, g := range p.entry.Groups {
		id := p.groupIDs()[i]
		f := &feed{
			o: o, id: id, name: g.Name, lanes: map[wire.Lane]*feedLane{},
			before: map[wire.Lane]wire.Runs{},
		}
		if !handed {
			for l, mark := range p.group(id).watermarks { // each by itself: the order does not matter
				f.before[l] = wire.Runs{wire.Span(0, mark)}
			}
		}
		o.feeds[id] = f
		f.load()
	}
	var wait Instant
	o.phase = owning
	if !o.fresh {
		o.phase = grace
		wait = reclaimGrace
		o.timer = c.after(reclaimGrace, func() {
			if p.own == o && o.phase == grace {
				o.phase = owning
				o.pump()
			}
		})
	}
	if handed {
		o.takeTable()
	}
	p.tellOwner(c.self, o.term, uint32(wait/Millisecond))
	for _, r := range p.resumes {
		o.resume(r.sub, r.consumer, r.held)
	}
	p.resumes = nil
	o.pump()
}

// tellOwner tells the subscribers of the queue who owns the partition.
func (p *partition) tellOwner(node ring.NodeID, term wire.Term, graceMS uint32) {
	c := p.core
	m := &wire.Owner{Partition: p.id, Node: node, Term: term, Grace: graceMS}
	told := map[ConnID]bool{}
	for _, k := range sortedSubs(c.subs) {
		if s := c.subs[k]; s.to.queue == p.entry.Name && !told[k.conn] {
			told[k.conn] = true
			c.emit(Push{Conn: k.conn, Msg: m})
		}
	}
}

// subscribe takes or raises the demand of a consumer.
func (c *Core) subscribe(on ConnID, m *wire.Subscribe) {
	k := subKey{on, m.Sub}
	s := c.subs[k]
	if s == nil {
		s = &sub{key: k, consumer: m.Consumer, to: queueGroup{m.Queue, m.Group}, relay: m.Relay}
		c.subs[k] = s
		c.feeders[s.to] = append(c.feeders[s.to], s)
		for _, id := range sortedKeys(c.places) {
			p := c.parts[id]
			if p == nil || p.entry.Name != m.Queue {
				continue
			}
			if o := p.own; o != nil && o.valid() && o.phase >= grace {
				left := uint32(0)
				if o.phase == grace {
					left = uint32(max(1, (o.timer.at-c.now.Mono)/Millisecond))
				}
				c.emit(Push{Conn: on, Msg: &wire.Owner{Partition: id, Node: c.self, Term: o.term, Grace: left}})
			} else if owner := p.owner(); owner != 0 {
				c.emit(Push{Conn: on, Msg: &wire.Owner{Partition: id, Node: owner, Term: p.grant.term}})
			}
		}
	}
	s.credit, s.version, s.generation = max(s.credit, m.Credit), max(s.version, m.Catalog), max(s.generation, m.Generation)
	c.relay(s)
	c.pumpQueue(s.to.queue)
}

// unsubscribe ends a demand. What was handed out stays with the consumer.
func (c *Core) unsubscribe(k subKey) {
	s := c.subs[k]
	if s == nil {
		return
	}
	s.credit = 0
	c.unrelay(s)
	delete(c.subs, k)
	c.feeders[s.to] = slices.DeleteFunc(c.feeders[s.to], func(x *sub) bool { return x == s })
	if len(c.feeders[s.to]) == 0 {
		delete(c.feeders, s.to)
	}
}

// connClosed ends what a connection had. Its consumers may come back on another one
// and resume what they hold, within the grace.
func (c *Core) connClosed(id ConnID) {
	if c.conns[id] == nil {
		return
	}
	delete(c.conns, id)
	for _, k := range sortedSubs(c.subs) {
		if k.conn == id {
			c.unsubscribe(k)
		}
	}
	for _, pid := range sortedKeys(c.parts) {
		p := c.parts[pid]
		p.resumes = slices.DeleteFunc(p.resumes, func(r heldResume) bool { return r.sub.key.conn == id })
		if p.own == nil {
			continue
		}
		for _, g := range sortedKeys(p.own.feeds) {
			for _, l := range sortedLanes(p.own.feeds[g].lanes) {
				fl := p.own.feeds[g].lanes[l]
				for _, d := range fl.inflight {
					if d.sub != nil && d.sub.key.conn == id {
						d.sub = nil
						d.until = min(d.until, c.now.Mono+reclaimGrace)
						p.own.feeds[g].arm(d, wire.CauseConsumer)
					}
				}
			}
		}
	}
}

// subscribersChanged relays the demand for a queue, and pumps it, after a change of its entry.
func (c *Core) subscribersChanged(queue string) {
	for _, k := range sortedSubs(c.subs) {
		if s := c.subs[k]; s.to.queue == queue {
			c.relay(s)
		}
	}
	c.pumpQueue(queue)
}

func (c *Core) pumpQueue(queue string) {
	e := c.catalog.live(queue)
	if e == nil {
		return
	}
	for i := range e.Settings.Partitions {
		if p := c.parts[e.Partition(i)]; p != nil && p.own != nil {
			p.own.pump()
		}
	}
}

// pump hands out what may be handed out, until demand or messages end.
func (o *ownership) pump() {
	// A timer may come when the queue was deleted, or the partition handed over.
	current := o.p.own == o && o.valid() || o.p.core.planted(bugDeliveryLate)
	if o.phase != owning || o.pumping || !current || o.scans > 0 {
		return
	}
	o.pumping = true
	for _, g := range sortedKeys(o.feeds) {
		o.feeds[g].pump()
	}
	o.pumping = false
}

func (f *feed) pump() {
	if f.paused() {
		return
	}
	c := f.o.p.core
	f.refill()
	subs := c.feeders[queueGroup{f.o.p.entry.Name, f.name}]
	out := map[*sub]*wire.Deliver{}
	var order []*sub
	alive := slices.ContainsFunc(subs, func(s *sub) bool { return !c.hung(s) })
	for idle := 0; idle < len(subs); {
		if f.inflight >= c.cfg.Limits.InFlight {
			break
		}
		f.next %= len(subs)
		s := subs[f.next]
		if s.left() == 0 || alive && c.hung(s) || s.version > c.catalog.version || s.generation > f.o.p.entry.Generation {
			idle++
			f.next++
			continue
		}
		d, ok := f.deliver(s)
		if !ok {
			break // it keeps its turn
		}
		idle = 0
		f.next++
		if out[s] == nil {
			out[s] = &wire.Deliver{Sub: s.key.sub}
			order = append(order, s)
		}
		out[s].Deliveries = append(out[s].Deliveries, d)
		if size := deliverSize(out[s]); size >= maxDeliverBytes {
			f.push(s, out[s])
			delete(out, s)
			order = slices.DeleteFunc(order, func(x *sub) bool { return x == s })
		}
	}
	for _, s := range order {
		f.push(s, out[s])
	}
}

// hungFor is how long a consumer that let a lease run out gets nothing while there are
// others, unless it says something: without that a hung one would get the same message
// back at each lease end.
const hungFor = 60 * Second

// hung says whether a consumer let a lease run out and has said nothing since.
func (c *Core) hung(s *sub) bool {
	x := c.connOf(s)
	return x != nil && c.now.Mono < x.hungUntil
}

// connOf is the connection of a consumer; nil without one.
func (c *Core) connOf(s *sub) *conn {
	if s == nil {
		return nil
	}
	return c.conns[s.key.conn]
}

// maxDeliverBytes is when a frame of deliveries is full.
const maxDeliverBytes = 1 << 20

func deliverSize(m *wire.Deliver) (n int) {
	for i := range m.Deliveries {
		n += len(m.Deliveries[i].Records)
	}
	return n
}

func (f *feed) push(s *sub, m *wire.Deliver) {
	before := f.o.until()
	if f.o.p.core.planted(bugDeliveryLate) {
		before = Never
	}
	f.o.p.core.emit(Push{Conn: s.key.conn, Msg: m, Before: before})
}

// deliver takes the next run of messages for a consumer. Due retries and new messages
// take turns.
func (f *feed) deliver(s *sub) (wire.Delivery, bool) {
	f.turn = !f.turn
	if f.turn {
		if d, ok := f.redeliver(s); ok {
			return d, true
		}
		return f.fresh(s)
	}
	if d, ok := f.fresh(s); ok {
		return d, true
	}
	return f.redeliver(s)
}

// lane is the feed's view of a lane.
func (f *feed) lane(id wire.Lane) *feedLane {
	l := f.lanes[id]
	if l == nil {
		l = &feedLane{byID: map[deliveryID]*delivery{}}
		f.lanes[id] = l
	}
	return l
}

// head is the first offset of a lane that may be handed out as new.
func (f *feed) head(l *lane, fl *feedLane) (wire.Offset, bool) {
	done := f.o.p.group(f.id).runs(l.id)
	at := max(done.Floor(), fl.cursor)
	for {
		next, ok := l.held.Next(at)
		if !ok {
			return 0, false
		}
		at = next
		for _, taken := range [...]wire.Runs{done, fl.handed, l.unready, fl.excluded} {
			at = taken.Gap(at)
		}
		if at == next {
			fl.cursor = at
			return at, true
		}
	}
}

// rewind makes the cursors of a lane see offsets from at on again.
func (o *ownership) rewind(l wire.Lane, at wire.Offset) {
	for _, f := range o.feeds { // each by itself: the order does not matter
		if fl := f.lanes[l]; fl != nil {
			fl.cursor = min(fl.cursor, at)
		}
	}
}

// fresh hands out the oldest new messages: the lanes are merged by stamp, and a batch
// waits for its predecessor (P5).
func (f *feed) fresh(s *sub) (wire.Delivery, bool) {
	for range maxPostponed {
		x, from := f.oldest()
		if x == nil {
			return wire.Delivery{}, false
		}
		if d, ok := f.hand(s, x, from); ok {
			return d, true
		}
		if f.o.p.own != f.o {
			break // the batch turned out to be damaged
		}
	}
	f.o.p.core.after(0, f.o.pump)
	return wire.Delivery{}, false
}

// maxPostponed bounds the batches of delayed messages that one pump puts aside.
const maxPostponed = 1000

// oldest is the batch whose turn it is, with the first offset to hand out.
func (f *feed) oldest() (best *cached, from wire.Offset) {
	p, c := f.o.p, f.o.p.core
	for _, id := range p.order {
		l, fl := p.lanes[id], f.lane(id)
		at, ok := f.head(l, fl)
		for ok {
			if fl.loaded == nil || !fl.loaded.batch.Run().Has(at) {
				fl.loaded = c.cache.get(p.id, id, at)
				fl.missing, fl.asked = 0, false
			}
			if fl.loaded == nil {
				f.fetch(l, fl, at)
				return nil, 0 // it may be the oldest
			}
			if !f.excludeCopies(l, fl, at) {
				break
			}
			at, ok = f.head(l, fl) // some of it is in flight at another position
		}
		if ok && f.follows(fl, &fl.loaded.batch) && (best == nil || fl.loaded.batch.Stamp < best.batch.Stamp) {
			best, from = fl.loaded, at
		}
	}
	return best, from
}

// hand hands out messages of a batch from an offset on. Messages with a delay are put
// aside until it is over.
func (f *feed) hand(s *sub, x *cached, from wire.Offset) (wire.Delivery, bool) {
	p := f.o.p
	b := &x.batch
	l, fl := p.lane(b.Lane), f.lane(b.Lane)
	to := min(b.Run().To, from+wire.Offset(min(s.left(), uint64(p.core.cfg.Limits.InFlight-f.inflight))))
	for _, taken := range [...]wire.Runs{p.group(f.id).runs(b.Lane), fl.handed, l.unready, fl.excluded} {
		if next, ok := taken.Next(from); ok {
			to = min(to, next)
		}
	}
	if b.Flags&wire.FlagDelayed != 0 {
		if to = f.postpone(x, from, to); to == from {
			return wire.Delivery{}, false
		}
	}
	cause, to := f.marked(b.Lane, from, to)
	return f.give(s, x, wire.Span(from, to), 1, cause, nil)
}

// marked is why the new message at from is not delivered for the first time, if so, and up
// to where that holds. It may have been handed out at another position.
func (f *feed) marked(l wire.Lane, from, to wire.Offset) (wire.Cause, wire.Offset) {
	p, run := f.o.p, wire.Span(from, to)
	released, before := f.lane(l).released.Overlap(run), f.before[l].Overlap(run)
	for _, other := range p.aliasesOf(l, run) {
		for _, m := range [...]struct {
			there wire.Runs
			here  *wire.Runs
		}{{f.lane(other.lane).released, &released}, {f.before[other.lane], &before}} {
			for _, x := range m.there.Overlap(other.run) {
				for _, mine := range p.aliasesOf(other.lane, x) {
					if mine.lane == l {
						m.here.Add(mine.run)
					}
				}
			}
		}
	}
	cause := wire.CauseNone
	for _, m := range [...]struct {
		runs  wire.Runs
		cause wire.Cause
	}{{released, wire.CauseReleased}, {before, wire.CauseTakeover}} {
		if cause == wire.CauseNone && m.runs.Contains(from) {
			cause = m.cause
			to = min(to, m.runs.Gap(from))
		} else if next, ok := m.runs.Next(from); ok && next > from {
			to = min(to, next)
		}
	}
	return cause, to
}

// give makes the delivery of a run to a consumer.
func (f *feed) give(s *sub, x *cached, run wire.Run, attempt uint32, cause wire.Cause, retry []byte) (wire.Delivery, bool) {
	p, c := f.o.p, f.o.p.core
	b := &x.batch
	records, err := x.records(run)
	if err != nil {
		p.lost(b.Lane, wire.Runs{b.Run()})
		return wire.Delivery{}, false
	}
	f.o.serial++
	d := &delivery{
		receipt: wire.Receipt{
			Partition: p.id, Group: f.id, Lane: b.Lane, Run: run, Term: f.o.term, Attempt: attempt, Serial: f.o.serial,
			Producer: b.Producer, Sequence: b.Sequence + uint64(run.From-b.Base),
		},
		runs: wire.Runs{run}, sub: s, consumer: s.consumer, retry: retry,
	}
	d.receipt.Sign(c.secret())
	lease := Instant(p.entry.Settings.Lease) * Millisecond
	d.until = c.now.Mono + lease
	fl := f.lane(b.Lane)
	fl.handed.Add(run)
	fl.released.Remove(run)
	fl.add(d)
	f.inflight += int(run.Len())
	s.given += run.Len()
	f.arm(d, wire.CauseLease)
	f.o.announce(f.id, b.Lane, run)
	c.stats.delivered(cause, run.Len())
	sum := wire.Checksum(records)
	if c.planted(bugDeliveryNoSum) {
		sum = 0
	}
	return wire.Delivery{
		Receipt: d.receipt, Stamp: b.Stamp, Cause: cause, Lease: p.entry.Settings.Lease,
		Length: uint32(len(records)), Checksum: sum, Records: records,
	}, true
}

// arm hands a delivery out again when its lease ends. cause is why, if it ends as it
// stands now.
func (f *feed) arm(d *delivery, cause wire.Cause) {
	c := f.o.p.core
	c.timers.stop(d.timer)
	d.timer = c.timers.add(d.until, func() { f.expire(d, cause) })
}

// expire takes messages back from a consumer.
func (f *feed) expire(d *delivery, cause wire.Cause) {
	if f.o.p.own != f.o || f.o.phase == releasing {
		return
	}
	if x := f.o.p.core.connOf(d.sub); x != nil && cause == wire.CauseLease {
		x.hungUntil = f.o.p.core.now.Mono + hungFor
	}
	f.takeBack(d, d.runs.Clone(), cause, 0, d.receipt.Attempt, false)
	f.o.pump()
}

// fetch reads the batch under a lane's cursor from disk.
func (f *feed) fetch(l *lane, fl *feedLane, at wire.Offset) {
	p, c := f.o.p, f.o.p.core
	if fl.reading {
		return
	}
	fl.reading = true
	o := f.o
	want := l.held.Overlap(wire.Span(at, at+readAhead))
	c.read(p.id, l.id, want, readAheadBytes, func(done ReadDone) {
		fl.reading = false
		if p.own != o {
			return
		}
		for i := range done.Batches {
			c.cache.add(&done.Batches[i])
		}
		if len(done.Batches) > 0 && done.Batches[0].Run().Has(at) {
			// It stays here, however soon the cache drops it.
			fl.loaded = &cached{batch: done.Batches[0]}
			fl.missing, fl.asked = 0, false
		}
		if len(done.Damaged) > 0 {
			p.lost(l.id, done.Damaged)
			return
		}
		if len(done.Batches) == 0 {
			// It is not on disk yet, or was freed meanwhile.
			c.after(10*Millisecond, o.pump)
			return
		}
		o.pump()
	})
}

// How much is read ahead of a cursor at a time.
const (
	readAhead      = 16_384 // offsets
	readAheadBytes = 1 << 20
)

// follows says whether the predecessor of a batch is done or was handed out in this
// term. If it is not here, it is asked for, and waited for at most orderWait. Also the rest
// of a batch waits: what comes before it in the batch may have been resumed, while the
// predecessor was not.
func (f *feed) follows(fl *feedLane, b *wire.Batch) bool {
	p, c := f.o.p, f.o.p.core
	if b.AfterLane.IsZero() || c.planted(bugNoProducerChain) {
		return true
	}
	lane, after := b.AfterLane, b.AfterOffset
	if f.taken(lane, after) {
		return true
	}
	for _, other := range p.aliasesOf(lane, wire.Span(after, after+1)) {
		if f.taken(other.lane, other.run.From) {
			return true
		}
	}
	if x := p.lanes[lane]; x != nil && x.held.Contains(after) {
		return false // here, and not handed out yet: it comes first
	}
	if fl.missing == 0 {
		fl.missing = c.now.Mono
		c.after(orderWait, f.o.pump)
	}
	if c.now.Mono-fl.missing >= orderWait {
		c.stats.OrderWaitExpired++
		return true
	}
	if !fl.asked {
		fl.asked = true
		p.seek(lane, after, func() {
			fl.asked = false
			f.o.pump()
		})
	}
	return false
}

// taken says whether a message is done or was handed out in this term.
func (f *feed) taken(l wire.Lane, o wire.Offset) bool {
	return f.o.p.group(f.id).runs(l).Contains(o) || f.lane(l).handed.Contains(o)
}

// excludeCopies lets messages wait that are handed out at another position, and says
// whether there are any. What is done there is done here too, by markDone.
func (f *feed) excludeCopies(l *lane, fl *feedLane, at wire.Offset) bool {
	p := f.o.p
	if len(p.aliases) == 0 {
		return false
	}
	found := false
	for _, other := range p.aliasesOf(l.id, wire.Span(at, fl.loaded.batch.Run().To)) {
		for _, run := range f.lane(other.lane).handed.Overlap(other.run) {
			for _, mine := range p.aliasesOf(other.lane, run) {
				if mine.lane == l.id && !fl.handed.Covers(mine.run) && fl.excluded.Add(mine.run) > 0 {
					found = true
				}
			}
		}
	}
	return found
}

// doneNow takes what is done out of what is handed out and in flight.
func (o *ownership) doneNow(g wire.GroupID, l wire.Lane, run wire.Run) {
	f := o.feeds[g]
	if f == nil {
		return
	}
	fl := f.lane(l)
	for _, d := range deliveriesIn(fl, run) {
		f.settled(d, d.runs.Overlap(run))
	}
	fl.handed.Remove(run)
	fl.released.Remove(run)
	fl.excluded.Remove(run)
}

// unhand makes messages new again, their copies at other positions included.
func (f *feed) unhand(l wire.Lane, run wire.Run) {
	f.lane(l).handed.Remove(run)
	f.o.rewind(l, run.From)
	for _, other := range f.o.p.aliasesOf(l, run) {
		f.lane(other.lane).excluded.Remove(other.run)
		f.o.rewind(other.lane, other.run.From)
	}
}

// deliveriesIn are the deliveries of a lane that hold some of a run, in order.
func deliveriesIn(fl *feedLane, run wire.Run) []*delivery {
	i := fl.search(run.From, deliveryID{})
	for i > 0 && fl.inflight[i-1].receipt.Run.From+fl.longest > run.From {
		i--
	}
	var out []*delivery
	for ; i < len(fl.inflight) && fl.inflight[i].receipt.Run.From < run.To; i++ {
		if len(fl.inflight[i].runs.Overlap(run)) > 0 {
			out = append(out, fl.inflight[i])
		}
	}
	return out
}

// search is where a delivery is, or belongs, in inflight.
func (fl *feedLane) search(from wire.Offset, id deliveryID) int {
	return sort.Search(len(fl.inflight), func(i int) bool {
		r := &fl.inflight[i].receipt
		if r.Run.From != from {
			return r.Run.From > from
		}
		if r.Term != id.term {
			return id.term.Less(r.Term)
		}
		return r.Serial >= id.serial
	})
}

func (fl *feedLane) add(d *delivery) {
	if len(fl.inflight) == 0 {
		fl.longest = 0
	}
	fl.longest = max(fl.longest, wire.Offset(d.receipt.Run.Len()))
	fl.byID[idOf(&d.receipt)] = d
	fl.inflight = slices.Insert(fl.inflight, fl.search(d.receipt.Run.From, idOf(&d.receipt)), d)
}

func (fl *feedLane) remove(d *delivery) {
	id := idOf(&d.receipt)
	if fl.byID[id] != d {
		return
	}
	delete(fl.byID, id)
	i := fl.search(d.receipt.Run.From, id)
	fl.inflight = slices.Delete(fl.inflight, i, i+1)
}

// settled takes runs out of a delivery; without any left it has ended.
func (f *feed) settled(d *delivery, runs wire.Runs) {
	for _, run := range runs {
		f.inflight -= int(run.Len())
		d.runs.Remove(run)
	}
	if len(d.runs) > 0 {
		return
	}
	p := f.o.p
	p.core.timers.stop(d.timer)
	f.lane(d.receipt.Lane).remove(d)
	if d.retry != nil {
		p.core.persistThen([]wire.Op{remove(d.retry)}, nil)
	}
}

// watermarkStride is how far ahead of what is handed out the mark for a successor is
// set, so that it travels once for many deliveries.
const watermarkStride = 64

// announce tells the other home replicas how far this owner may hand out. Nobody waits
// for it: it serves the mark "redelivered" after a takeover.
func (o *ownership) announce(g wire.GroupID, l wire.Lane, run wire.Run) {
	p, c := o.p, o.p.core
	marks := p.group(g).watermarks
	if run.To <= marks[l] {
		return
	}
	m := &wire.Watermarks{Partition: p.id, Items: []wire.Watermark{{Group: g, Lane: l, To: run.To + watermarkStride}}}
	p.raiseWatermarks(m.Items)
	for _, id := range p.otherHomes() {
		c.send(id, m)
	}
}
