package core

import (
	"slices"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// consumer is one consumer of a group. What it holds is in its handouts.
type consumer struct {
	key      ConsumerKey
	id       wire.ConsumerID
	queue    *queue
	group    string
	prefetch int
	idle     time.Duration
	ticket   Ticket // of OpenConsumer, until it is answered

	opened      bool
	closing     bool
	taken       Taken
	closeTicket Ticket
	err         error // why it cannot go on

	receives []*receive
	buffer   []*handout // those with messages that no Receive has taken, in order
	buffered int        // messages in them
	bytes    int        // of them
	holding  map[HandoutID]*handout
	subs     []*sub
	complete bool    // there is a sub on every link where one belongs
	lastWant Instant // when a Receive last waited
}

// receive is a Receive that waits.
type receive struct {
	ticket Ticket
	max    int
}

// sub is the demand of a consumer on one connection.
type sub struct {
	id        uint64
	link      *link
	consumer  *consumer
	credit    uint64 // running total that the node was told
	delivered uint64 // running total that came
}

// handout is one delivery of a run of messages.
// Invariant: buffered, out and settling are disjoint parts of receipt.Run; the handout
// is dropped when all are empty.
type handout struct {
	id        HandoutID
	consumer  *consumer
	partition *partition
	receipt   *wire.Receipt
	cause     wire.Cause
	link      *link // where the present owner was last seen to have it
	lease     time.Duration
	until     Instant // end of the lease, as far as is known here
	arrived   Instant
	at        wire.Offset // first message that is buffered; Run.To: none is
	rest      []byte      // records of what is buffered
	out       wire.Runs   // taken by the program
	settling  wire.Runs   // settled by the program, not answered by the owner
	acking    wire.Runs   // of them, those that are acked
	gone      wire.Runs   // others may have them, or a newer handout of this consumer has
	lost      bool        // others may have all of it
	acks      *settlement // not sent yet: takes more acks of this handout
}

// held is what an owner is to know as in the hands of the consumer: an ack that is not
// confirmed too, but not what was given back.
func (h *handout) held() wire.Runs {
	held := h.out.Clone()
	held.AddAll(h.acking)
	held.Add(wire.Span(h.at, h.receipt.Run.To))
	return held.Minus(h.gone)
}

// sequences are the producer's numbers of a part of the handout's run, offsets the other
// way round: what two handouts have in common they have by number, for a message can be
// at two positions.
func (h *handout) sequences(r wire.Run) wire.Run {
	by := wire.Offset(h.receipt.Sequence) - h.receipt.Run.From
	return wire.Span(r.From+by, r.To+by)
}

func (h *handout) offsets(sequences wire.Run) wire.Run {
	by := h.receipt.Run.From - wire.Offset(h.receipt.Sequence)
	return wire.Span(sequences.From+by, sequences.To+by)
}

// before tells whether h was handed out before o. Both are of one partition.
func (h *handout) before(o *handout) bool {
	if h.receipt.Term != o.receipt.Term {
		return h.receipt.Term.Less(o.receipt.Term)
	}
	return h.receipt.Serial < o.receipt.Serial
}

func (c *Core) openConsumer(now Instant, ev OpenConsumer) {
	if c.closing {
		c.emit(ConsumerOpened{Ticket: ev.Ticket, Err: ErrClosed})
		return
	}
	q := c.queue(ev.Queue)
	s := &consumer{
		key: ev.Consumer, id: ev.ID, queue: q, group: ev.Group, prefetch: ev.Prefetch, idle: ev.Idle, ticket: ev.Ticket,
		holding: map[HandoutID]*handout{},
	}
	c.consumers[s.key] = s
	c.consumerOrder = append(c.consumerOrder, s)
	q.opening = append(q.opening, s)
	c.at(ev.Until, func(now Instant) {
		if s.ticket != nil {
			s.fail(c, now, c.unreachable(nil))
		}
	})
	if q.entry != nil && c.ring != nil && hasGroup(q.entry, s.group) {
		q.opening = slices.DeleteFunc(q.opening, func(o *consumer) bool { return o == s })
		c.opened(now, s)
		return
	}
	c.describe(now, q)
}

// opened lets a consumer begin: its queue is known.
func (c *Core) opened(now Instant, s *consumer) {
	if s.ticket == nil {
		return // given up in the meantime
	}
	if !hasGroup(s.queue.entry, s.group) {
		s.fail(c, now, wire.Errorf(wire.ErrNoGroup, "no such group: %s", s.group))
		return
	}
	s.opened, s.lastWant = true, now
	s.queue.consumers = append(s.queue.consumers, s)
	c.emit(ConsumerOpened{Ticket: s.ticket})
	s.ticket = nil
	c.subscribe(now, s)
}

// fail ends a consumer that cannot go on; all its Receives answer err from now on.
func (s *consumer) fail(c *Core, now Instant, err error) {
	s.queue.opening = slices.DeleteFunc(s.queue.opening, func(o *consumer) bool { return o == s })
	if s.ticket != nil {
		c.emit(ConsumerOpened{Ticket: s.ticket, Err: err})
		s.ticket = nil
		c.dropConsumer(now, s)
		return
	}
	if s.err == nil && !s.closing {
		s.err = err
		c.emit(ConsumerFailed{Consumer: s.key, Err: err})
	}
	s.answerAll(c, err)
}

func (s *consumer) answerAll(c *Core, err error) {
	for _, r := range s.receives {
		c.emit(Received{Ticket: r.ticket, Err: err})
	}
	s.receives = nil
}

// cancel answers a ticket of this consumer.
func (s *consumer) cancel(c *Core, now Instant, ticket Ticket) bool {
	if s.ticket != nil && s.ticket == ticket {
		s.fail(c, now, ErrCanceled)
		return true
	}
	for i, r := range s.receives {
		if r.ticket == ticket {
			s.receives = slices.Delete(s.receives, i, i+1)
			s.lastWant = now
			c.emit(Received{Ticket: ticket, Err: ErrCanceled})
			c.calm(now, s)
			return true
		}
	}
	return false
}

func (c *Core) receive(now Instant, ev Receive) {
	s := c.consumers[ev.Consumer]
	switch {
	case s == nil || s.closing:
		c.emit(Received{Ticket: ev.Ticket, Err: ErrClosed})
		return
	case s.err != nil:
		c.emit(Received{Ticket: ev.Ticket, Err: s.err})
		return
	}
	r := &receive{ticket: ev.Ticket, max: ev.Max}
	s.receives = append(s.receives, r)
	s.lastWant = now
	c.serve(now, s)
	if i := slices.Index(s.receives, r); i >= 0 && ev.Until < now.Add(24*time.Hour) {
		c.at(ev.Until, func(now Instant) {
			if i := slices.Index(s.receives, r); i >= 0 {
				s.receives = slices.Delete(s.receives, i, i+1)
				s.lastWant = now
				c.emit(Received{Ticket: r.ticket})
				c.calm(now, s)
			}
		})
	}
	c.subscribe(now, s)
}

// capacity is how many more messages the consumer wants.
func (s *consumer) capacity() int {
	if s.closing || s.err != nil || !s.opened || s.bytes >= maxBuffered {
		return 0
	}
	n := s.prefetch - s.buffered
	for _, r := range s.receives {
		n += r.max
	}
	return max(0, n)
}

// targets are the links where the consumer subscribes: to the home replicas and owners of
// its partitions, or to one server that relays.
func (c *Core) targets(s *consumer) []*link {
	var out []*link
	if c.config.Via {
		for _, l := range s.subs { // stay where it is
			return append(out, l.link)
		}
		for _, addr := range c.config.Servers {
			l := c.linkAt(addr)
			if l.state == linkUp {
				return append(out, l)
			}
			out = append(out, l)
		}
		return out
	}
	nodes := slices.Clone(s.queue.homes)
	for _, p := range s.queue.partitions {
		nodes = append(nodes, p.owner) // until a partition has moved its owner may be no home
	}
	for _, node := range nodes {
		if l := c.linkTo(node); l != nil && !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// subscribe tells the nodes what the consumer wants, and on a new connection what it
// holds.
func (c *Core) subscribe(now Instant, s *consumer) {
	if !s.opened || c.closed || s.queue.entry == nil || c.ring == nil {
		return
	}
	if s.closing && len(s.holding) == 0 {
		return
	}
	want := uint64(s.capacity())
	if !s.complete {
		targets := c.targets(s)
		if !s.closing {
			for _, b := range slices.Clone(s.subs) {
				if !slices.Contains(targets, b.link) { // neither home replica nor owner any more
					c.unsubscribe(now, b)
				}
			}
		}
		if want == 0 && len(s.holding) == 0 {
			return
		}
		s.complete = true
		for _, l := range targets {
			if c.want(now, l); l.state != linkUp {
				s.complete = false
				continue
			}
			c.subOn(now, s, l, want)
		}
	}
	for _, b := range s.subs {
		open := uint64(0)
		if b.credit > b.delivered { // a node may have handed out more than it was asked for
			open = b.credit - b.delivered
		}
		if want > open && open*2 <= want {
			b.credit = b.delivered + want
			c.postSubscribe(now, b)
		}
	}
}

// subOn is the consumer's sub on a link. A fresh one has this credit, and the node was
// told what the consumer holds of its partitions.
func (c *Core) subOn(now Instant, s *consumer, l *link, credit uint64) (b *sub, fresh bool) {
	for _, b := range s.subs {
		if b.link == l {
			return b, false
		}
	}
	c.lastSub++
	b = &sub{id: c.lastSub, link: l, consumer: s, credit: credit}
	s.subs = append(s.subs, b)
	l.subs = append(l.subs, b)
	c.postSubscribe(now, b)
	c.resumeTo(now, b, func(h *handout) bool {
		return c.config.Via || slices.Contains(h.partition.homes, l.node) || h.partition.owner == l.node
	})
	return b, true
}

func (c *Core) postSubscribe(now Instant, b *sub) {
	b.link.used = now
	c.emit(Post{Link: b.link.id, Msg: &wire.Subscribe{
		Sub: b.id, Consumer: b.consumer.id, Queue: b.consumer.queue.name, Group: b.consumer.group, Credit: b.credit,
		Catalog: c.catalog, Relay: c.config.Via, Generation: b.consumer.queue.generation(),
	}})
}

func (c *Core) unsubscribe(now Instant, b *sub) {
	if b.link.state == linkUp {
		b.link.used = now
		c.emit(Post{Link: b.link.id, Msg: &wire.Unsubscribe{Sub: b.id}})
	}
	forgetSub(b)
}

func forgetSub(b *sub) {
	b.consumer.complete = false
	b.consumer.subs = slices.DeleteFunc(b.consumer.subs, func(o *sub) bool { return o == b })
	b.link.subs = slices.DeleteFunc(b.link.subs, func(o *sub) bool { return o == b })
}

// demands tells whether a node may hand out more, or something was not taken yet.
func (s *consumer) demands() bool {
	return s.buffered > 0 || slices.ContainsFunc(s.subs, func(b *sub) bool { return b.credit > b.delivered })
}

// calm withdraws the demand of a consumer when nobody has waited for a while.
func (c *Core) calm(now Instant, s *consumer) {
	if len(s.receives) > 0 || s.closing || s.err != nil || s.idle > 24*time.Hour || !s.demands() {
		return
	}
	if due := s.lastWant.Add(s.idle); now < due {
		c.at(due, func(now Instant) { c.calm(now, s) })
		return
	}
	for len(s.subs) > 0 {
		c.unsubscribe(now, s.subs[0])
	}
	c.releaseBuffer(now, s)
	c.attach(now, s)
}

// attach gives what is in hand a sub without demand, so that the nodes know whose it is
// and deliver it again at once when the connection ends.
func (c *Core) attach(now Instant, s *consumer) {
	for _, h := range s.inOrder() {
		if len(h.out) > 0 && h.link.state == linkUp {
			c.subOn(now, s, h.link, 0)
		}
	}
}

// deliver takes in what a node hands out.
func (c *Core) deliver(now Instant, l *link, msg *wire.Deliver) {
	var s *consumer
	for _, b := range l.subs {
		if b.id == msg.Sub {
			s = b.consumer
			for i := range msg.Deliveries {
				b.delivered += msg.Deliveries[i].Receipt.Run.Len()
			}
		}
	}
	for i := range msg.Deliveries {
		d := &msg.Deliveries[i]
		if c.partitions[d.Receipt.Partition] != nil {
			c.takeIn(now, arrival{now, l, s, msg.Sub, d})
		} else if s != nil && !s.closing && s.err == nil {
			// The queue was deleted and created again, or it has grown, and this client does
			// not know yet: what it is handed waits until it does.
			s.queue.early = append(s.queue.early, arrival{now, l, s, msg.Sub, d})
			s.hold(d, 1)
			c.describe(now, s.queue)
		}
	}
	if s != nil {
		c.serve(now, s)
		c.subscribe(now, s)
	}
}

// arrival is a delivery that has come, at a time, for a consumer (nil: for none that is
// there). The credit of the consumer bounds how many there are.
type arrival struct {
	at       Instant
	link     *link
	consumer *consumer
	sub      uint64
	delivery *wire.Delivery
}

// hold counts a delivery into what the consumer has not taken, sign 1, or out of it, -1.
func (s *consumer) hold(d *wire.Delivery, sign int) {
	s.buffered += sign * int(d.Receipt.Run.Len())
	s.bytes += sign * len(d.Records)
}

// takeEarly takes in what came before its partition was known. What came for an older
// generation of the queue is gone with it, and what came on a connection that is gone its
// owner gives to others.
func (c *Core) takeEarly(now Instant, q *queue) {
	early := q.early
	q.early = nil
	for _, a := range early {
		a.consumer.hold(a.delivery, -1)
		over := a.at.Add(time.Duration(a.delivery.Lease) * time.Millisecond)
		switch {
		case now >= over || a.link.state != linkUp || !slices.ContainsFunc(a.link.subs, func(b *sub) bool { return b.id == a.sub }):
		case c.partitions[a.delivery.Receipt.Partition] == nil:
			q.early = append(q.early, a)
			a.consumer.hold(a.delivery, 1)
		default:
			c.takeIn(now, a)
			c.serve(now, a.consumer)
			c.subscribe(now, a.consumer)
		}
	}
	if len(q.early) > 0 { // who answered was behind
		c.at(now.Add(earlyAgain), func(now Instant) {
			if len(q.early) > 0 {
				c.describe(now, q)
			}
		})
	}
}

// takeIn puts a delivery into the buffer of its consumer, if that still takes any.
func (c *Core) takeIn(now Instant, a arrival) {
	l, s, d := a.link, a.consumer, a.delivery
	r := &d.Receipt
	p := c.partitions[r.Partition]
	if r.Term.Less(p.term) && !c.planted(bugNoTermFence) {
		// An owner that has been replaced does not know it yet (P3).
		c.note(false, "stale delivery dropped", p.id.String())
		return
	}
	if p.term.Less(r.Term) {
		p.term, p.owner = r.Term, r.Term.Node
		c.resume(now, p, r.Term.Node)
	}
	if s == nil || s.closing || s.err != nil || s.queue != p.queue {
		c.giveBack(now, p, l, d) // nobody waits for it any more
		return
	}
	if err := wire.CheckRecords(d.Records, uint32(r.Run.Len()), 4<<20+1024); err != nil {
		c.note(true, "bad delivery", err.Error())
		c.giveBack(now, p, l, d)
		return
	}
	c.lastHandout++
	h := &handout{
		id: c.lastHandout, consumer: s, partition: p, receipt: r, cause: d.Cause, link: l,
		lease: time.Duration(d.Lease) * time.Millisecond, arrived: a.at, at: r.Run.From, rest: d.Records,
	}
	h.until = a.at.Add(h.lease)
	c.handouts[h.id] = h
	s.holding[h.id] = h
	s.buffer = append(s.buffer, h)
	s.hold(d, 1)
	c.at(max(now, a.at.Add(h.lease/3)), func(now Instant) { c.extend(now, h) })
	c.supersede(now, h)
}

// supersede sees to it that the consumer has no message twice. It gets one again when its
// lease ran out while the first delivery, or what was told of it, was on its way. The newer
// delivery counts, unless the program has acked the older: that ack will do.
func (c *Core) supersede(now Instant, n *handout) {
	for _, h := range n.consumer.inOrder() {
		if h == n || h.partition != n.partition || h.receipt.Group != n.receipt.Group || h.receipt.Producer != n.receipt.Producer {
			continue
		}
		a, b := h.sequences(h.receipt.Run), n.sequences(n.receipt.Run)
		both := wire.Span(max(a.From, b.From), min(a.To, b.To))
		switch {
		case both.From >= both.To:
		case !n.before(h):
			for _, r := range h.acking.Overlap(h.offsets(both)) {
				c.loseRuns(now, n, wire.Runs{n.offsets(h.sequences(r))})
			}
			c.loseRuns(now, h, wire.Runs{h.offsets(both)})
		default:
			c.loseRuns(now, n, wire.Runs{n.offsets(both)})
		}
	}
}

// giveBack releases what came too late, without an attempt.
func (c *Core) giveBack(now Instant, p *partition, l *link, d *wire.Delivery) {
	c.submit(now, &settlement{
		receipt: &d.Receipt, partition: p, link: l, kind: wire.SettleRelease, runs: wire.Runs{d.Receipt.Run},
		giveUp: now.Add(time.Duration(d.Lease) * time.Millisecond),
	})
}

// serve gives buffered messages to the Receives that wait, in order.
func (c *Core) serve(now Instant, s *consumer) {
	for len(s.receives) > 0 {
		r := s.receives[0]
		var out []Delivery
		for len(s.buffer) > 0 && len(out) < r.max {
			h := s.buffer[0]
			if (h.lost || h.until <= now) && !c.planted(bugBufferLate) {
				c.skip(now, h) // the lease is over: others may have it (P4)
				continue
			}
			for h.at < h.receipt.Run.To && len(out) < r.max {
				rest, _ := wire.SkipRecords(h.rest, 1) // checked on arrival
				n := len(h.rest) - len(rest)
				if !h.gone.Contains(h.at) {
					out = append(out, Delivery{
						Handout: h.id, Receipt: h.receipt, Offset: h.at, Index: h.partition.index, Cause: h.cause, Record: h.rest[:n:n],
					})
					h.out.Add(wire.Span(h.at, h.at+1))
				}
				h.at, h.rest = h.at+1, rest
				s.buffered--
				s.bytes -= n
			}
			if h.at == h.receipt.Run.To {
				s.buffer[0] = nil
				s.buffer = s.buffer[1:]
				c.check(now, h)
			}
		}
		if len(out) == 0 {
			break
		}
		s.receives = s.receives[1:]
		s.lastWant = now
		c.emit(Received{Ticket: r.ticket, Deliveries: out})
	}
	if len(s.receives) == 0 {
		c.calm(now, s)
	}
}

// skip drops the buffered part of a handout; nobody is told.
func (c *Core) skip(now Instant, h *handout) {
	s := h.consumer
	s.buffer = slices.DeleteFunc(s.buffer, func(o *handout) bool { return o == h })
	s.buffered -= int(h.receipt.Run.To - h.at)
	s.bytes -= len(h.rest)
	h.at, h.rest = h.receipt.Run.To, nil
	c.check(now, h)
}

// releaseBuffer gives back what no Receive has taken.
func (c *Core) releaseBuffer(now Instant, s *consumer) {
	for len(s.buffer) > 0 {
		c.releaseBuffered(now, s.buffer[0])
	}
}

func (c *Core) releaseBuffered(now Instant, h *handout) {
	runs := wire.Runs{wire.Span(h.at, h.receipt.Run.To)}.Minus(h.gone)
	h.settling.AddAll(runs)
	c.skip(now, h)
	if len(runs) == 0 {
		return
	}
	c.submit(now, &settlement{
		h: h, receipt: h.receipt, partition: h.partition, link: h.link, kind: wire.SettleRelease, runs: runs, giveUp: h.until,
	})
}

// extend renews the lease of what is held, each third of it. What has waited in the
// buffer for a whole lease is given back: others may be quicker.
func (c *Core) extend(now Instant, h *handout) {
	if c.handouts[h.id] != h || h.lost {
		return
	}
	if now >= h.until {
		c.lose(now, h)
		return
	}
	if h.at < h.receipt.Run.To && now.Sub(h.arrived) >= h.lease {
		c.releaseBuffered(now, h)
		if c.handouts[h.id] != h {
			return
		}
	}
	runs := h.out.Clone()
	runs.Add(wire.Span(h.at, h.receipt.Run.To))
	if runs = runs.Minus(h.gone); len(runs) > 0 {
		c.submit(now, &settlement{
			h: h, receipt: h.receipt, partition: h.partition, link: h.link, kind: wire.SettleExtend, runs: runs,
			delay: h.lease, giveUp: h.until,
		})
	}
	c.at(min(now.Add(h.lease/3), h.until), func(now Instant) { c.extend(now, h) })
}

// loseRuns takes in that others may have a part of a handout, or that a newer handout has
// it. An ack still counts, so the program may go on; it is told.
func (c *Core) loseRuns(now Instant, h *handout, runs wire.Runs) {
	lost := h.out.Intersect(runs).Minus(h.gone)
	h.gone.AddAll(runs)
	if len(lost) > 0 {
		c.emit(Lost{Consumer: h.consumer.key, Handout: h.id, Runs: lost})
	}
	if rest := wire.Span(h.at, h.receipt.Run.To); h.at < rest.To && h.gone.Covers(rest) {
		c.skip(now, h)
	}
}

// lose takes in that the lease of a handout is over.
func (c *Core) lose(now Instant, h *handout) {
	if h.lost {
		return
	}
	h.lost = true
	if lost := h.out.Minus(h.gone); len(lost) > 0 {
		c.emit(Lost{Consumer: h.consumer.key, Handout: h.id, Runs: lost})
	}
	if h.at < h.receipt.Run.To && !c.planted(bugBufferLate) {
		c.skip(now, h)
	}
}

// check drops a handout of which nothing is left.
func (c *Core) check(now Instant, h *handout) {
	if h.at < h.receipt.Run.To || len(h.out) > 0 || len(h.settling) > 0 {
		return
	}
	delete(c.handouts, h.id)
	delete(h.consumer.holding, h.id)
	c.checkClosed(now, h.consumer)
}

// closeConsumer ends a consumer.
func (c *Core) closeConsumer(now Instant, ev CloseConsumer) {
	s := c.consumers[ev.Consumer]
	if s == nil {
		c.emit(ConsumerClosed{Consumer: ev.Consumer, Ticket: ev.Ticket})
		return
	}
	if s.closing && s.closeTicket != nil {
		c.emit(ConsumerClosed{Consumer: ev.Consumer, Ticket: ev.Ticket})
		return
	}
	s.taken = ev.Taken
	c.endConsumer(now, s, ev.Ticket, ev.Until)
}

func (c *Core) endConsumer(now Instant, s *consumer, ticket Ticket, until Instant) {
	if ticket != nil {
		s.closeTicket = ticket
	}
	if c.closing {
		s.taken = TakenRelease
	}
	if s.ticket != nil {
		s.fail(c, now, ErrClosed)
		return
	}
	if !s.closing {
		s.closing = true
		s.answerAll(c, ErrClosed)
		for len(s.subs) > 0 {
			c.unsubscribe(now, s.subs[0])
		}
		c.releaseBuffer(now, s)
		if s.taken == TakenKeep {
			c.attach(now, s)
		}
	}
	if s.taken == TakenRelease {
		for _, h := range s.inOrder() {
			if len(h.out) == 0 {
				continue
			}
			runs := h.out
			h.out = nil
			h.settling.AddAll(runs)
			c.submit(now, &settlement{
				h: h, receipt: h.receipt, partition: h.partition, link: h.link, kind: wire.SettleRelease, runs: runs,
				giveUp: h.until,
			})
		}
	}
	if until < now.Add(24*time.Hour) {
		c.at(until, func(now Instant) {
			if c.consumers[s.key] == s {
				c.dropConsumer(now, s)
			}
		})
	}
	c.checkClosed(now, s)
}

// inOrder is what a consumer holds, oldest first.
func (s *consumer) inOrder() []*handout {
	out := make([]*handout, 0, len(s.holding))
	for _, h := range s.holding { // sorted below: the order does not matter
		out = append(out, h)
	}
	sortBy(out, func(h *handout) uint64 { return uint64(h.id) })
	return out
}

// checkClosed ends a closing consumer of which nothing is under way.
func (c *Core) checkClosed(now Instant, s *consumer) {
	if !s.closing || c.consumers[s.key] != s {
		return
	}
	for _, h := range s.holding { // any or none: the order does not matter
		if len(h.settling) > 0 || s.taken == TakenKeep && len(h.out) > 0 {
			return
		}
	}
	c.dropConsumer(now, s)
}

// dropConsumer forgets a consumer and all it holds.
func (c *Core) dropConsumer(now Instant, s *consumer) {
	delete(c.consumers, s.key)
	c.consumerOrder = slices.DeleteFunc(c.consumerOrder, func(o *consumer) bool { return o == s })
	s.queue.consumers = slices.DeleteFunc(s.queue.consumers, func(o *consumer) bool { return o == s })
	for id := range s.holding { // a set: the order does not matter
		delete(c.handouts, id)
	}
	clear(s.holding)
	for len(s.subs) > 0 {
		c.unsubscribe(now, s.subs[0])
	}
	s.closing = true
	c.emit(ConsumerClosed{Consumer: s.key, Ticket: s.closeTicket})
}

// resumeElsewhere tells the other home replicas what is held of the partitions whose
// owner's connection is gone: one of them may be the next owner.
func (c *Core) resumeElsewhere(now Instant, l *link, subs []*sub) {
	for _, b := range subs {
		b.consumer.subs = slices.DeleteFunc(b.consumer.subs, func(o *sub) bool { return o == b })
	}
	for _, s := range c.consumerOrder {
		s.complete = false
		if len(s.holding) == 0 {
			continue
		}
		if c.config.Via { // one server at a time tells them
			c.resumeVia(now, s)
			continue
		}
		var homes []*link
		gone := map[*partition]bool{} // a node takes a Resume for all that is held of a partition
		for _, h := range s.inOrder() {
			if h.link != l {
				continue
			}
			gone[h.partition] = true
			for _, node := range h.partition.homes {
				if o := c.linkTo(node); o != nil && o != l && !slices.Contains(homes, o) {
					homes = append(homes, o)
				}
			}
		}
		for _, o := range homes {
			c.want(now, o)
			if o.state != linkUp {
				continue // when it comes up it is told
			}
			b, fresh := c.subOn(now, s, o, 0)
			if !fresh {
				c.resumeTo(now, b, func(h *handout) bool {
					return gone[h.partition] && slices.Contains(h.partition.homes, o.node)
				})
			}
		}
	}
}

// resumeVia tells the nodes through a server what a consumer holds.
func (c *Core) resumeVia(now Instant, s *consumer) {
	if len(s.subs) > 0 {
		c.resumeTo(now, s.subs[0], func(*handout) bool { return true })
		return
	}
	for _, addr := range c.config.Servers {
		if l := c.linkAt(addr); l.state == linkUp {
			c.subOn(now, s, l, 0)
			return
		}
	}
}

// resume tells a new owner what is held of its partition.
func (c *Core) resume(now Instant, p *partition, node ring.NodeID) {
	for _, s := range c.consumerOrder {
		if s.queue != p.queue || len(s.holding) == 0 {
			continue
		}
		l := c.linkTo(node)
		if c.config.Via && len(s.subs) > 0 {
			l = s.subs[0].link
		}
		if l == nil {
			continue
		}
		c.want(now, l)
		if l.state != linkUp {
			continue // when it comes up it is told
		}
		b, fresh := c.subOn(now, s, l, 0)
		if !fresh {
			c.resumeTo(now, b, func(h *handout) bool { return h.partition == p })
		}
		for _, h := range s.inOrder() {
			if h.partition == p {
				h.link = l
			}
		}
	}
}

// resumeTo sends Resume for the handouts that match, at most maxResumeItems in a frame.
func (c *Core) resumeTo(now Instant, b *sub, match func(*handout) bool) {
	s := b.consumer
	var held []wire.Held
	flush := func() {
		if len(held) > 0 {
			b.link.used = now
			c.emit(Post{Link: b.link.id, Msg: &wire.Resume{
				Sub: b.id, Consumer: s.id, Queue: s.queue.name, Group: s.group, Held: held,
			}})
			held = nil
		}
	}
	for _, h := range s.inOrder() {
		if h.lost || h.until <= now || !match(h) || c.planted(bugResumeForgets) {
			continue
		}
		if runs := h.held(); len(runs) > 0 {
			left := uint32(h.until.Sub(now).Milliseconds())
			if held = append(held, wire.Held{Receipt: *h.receipt, Runs: runs, Left: left}); len(held) == maxResumeItems {
				flush()
			}
		}
	}
	flush()
}
