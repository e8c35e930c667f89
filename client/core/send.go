package core

import (
	"slices"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// batch is the one batch under way of a partition. A try again has the same producer,
// sequence, count and records, so that the nodes know it for the same messages.
type batch struct {
	sequence uint64
	items    []Item // Ticket nil: answered already
	left     int    // items that are not answered
	flags    uint8
	records  []byte
	checksum uint64

	attempts  []*attempt // that are not answered
	tried     map[LinkID]bool
	round     int
	holdUntil Instant
	pinned    *link // for the next try: it said that it has too much, so not elsewhere
	posted    bool  // something was sent, so the next try is a retry
	free      bool  // the next try costs nothing: the link of the last is gone
	unknown   bool  // some try may have stored it
	err       error // of the last try
}

// attempt is one try of a batch at one link.
type attempt struct {
	link   *link
	since  Instant
	sent   bool // not while the link is being dialed
	over   bool
	call   CallID
	lostAt Instant // when no answer is expected any more
}

// budget keeps retries at a tenth of sends on average, with room for a burst: a
// node that falls silent has all that is under way there sent again. Some are allowed
// always, so that a client that sends little gets through. What a lost connection took
// with it is sent again for free: that loads nobody twice.
type budget struct {
	tokens float64
	under  int // batches that may be under way: room for them on top of the burst
	last   Instant
	begun  bool
}

const (
	budgetBurst  = 100
	budgetShare  = 0.1
	budgetSecond = 10 // tokens that come with time
)

func (b *budget) burst() float64 { return budgetBurst + float64(b.under) }

func (b *budget) refill(now Instant) {
	if !b.begun {
		b.begun, b.tokens = true, b.burst()
	} else {
		b.tokens = min(b.burst(), b.tokens+now.Sub(b.last).Seconds()*budgetSecond)
	}
	b.last = now
}

func (b *budget) sent(now Instant) {
	b.refill(now)
	b.tokens = min(b.burst(), b.tokens+budgetShare)
}

// retry takes a token; wait is when there will be one.
func (b *budget) retry(now Instant) (wait time.Duration, ok bool) {
	b.refill(now)
	if b.tokens >= 1 {
		b.tokens--
		return 0, true
	}
	return time.Duration((1 - b.tokens) / budgetSecond * float64(time.Second)), false
}

func (c *Core) send(now Instant, items []Item) {
	if c.closing {
		for _, it := range items {
			c.failItem(&it, ErrClosed, false)
		}
		return
	}
	c.sendAll(now, items)
}

// sendAll spreads messages over partitions, then begins batches: so what came together
// goes together. Behind messages that wait for the queue all others wait too (P5).
func (c *Core) sendAll(now Instant, items []Item) {
	var touched []*partition
	for i := range items {
		it := &items[i]
		q := c.queue(it.Queue)
		if len(q.partitions) == 0 || c.ring == nil || len(q.waiting) > 0 {
			if len(q.waiting) == 0 {
				c.describe(now, q)
			}
			q.waiting = append(q.waiting, *it)
			c.expireWaitingAt(q, it.Until)
			continue
		}
		var p *partition
		if it.Record.Key != "" {
			p = q.forKey(it.Record.Key)
		} else {
			p = q.next()
		}
		c.expireAt(p, it.Until)
		p.pending.push(it)
		if p.batch == nil && !slices.Contains(touched, p) {
			touched = append(touched, p)
		}
	}
	for _, p := range touched {
		c.pump(now, p)
	}
}

// sizeOf is at least the encoded size of a record.
func sizeOf(r *wire.Record) int {
	n := 64 + len(r.Key) + len(r.Body)
	for _, h := range r.Headers {
		n += 20 + len(h.Name) + len(h.Value)
	}
	return n
}

// pump begins the next batch of a partition, unless one is under way.
func (c *Core) pump(now Instant, p *partition) {
	for p.batch == nil && p.pending.len > 0 {
		c.begin(now, p)
	}
	if p.batch != nil {
		c.driveBatch(now, p)
	}
}

// begin makes a batch of what is pending, as much as fits.
func (c *Core) begin(now Instant, p *partition) {
	count, size := 0, 0
	p.pending.each(func(it *Item) bool {
		n := sizeOf(&it.Record)
		if count == wire.MaxBatchMessages || count > 0 && size+n > maxBatchBytes {
			return false
		}
		count, size = count+1, size+n
		return true
	})
	b := &batch{records: make([]byte, 0, size), tried: map[LinkID]bool{}, items: make([]Item, 0, count)}
	limit := int(p.queue.entry.Settings.MaxMessageBytes)
	left := count
	p.pending.each(func(it *Item) bool {
		if left--; left < 0 {
			return false
		}
		before := len(b.records)
		b.records = wire.AppendRecord(b.records, &it.Record)
		if n := len(b.records) - before - prefix(len(b.records)-before); n > limit {
			b.records = b.records[:before]
			c.failItem(it, wire.Errorf(wire.ErrTooLarge, "message of %d bytes, limit %d", n, limit), false)
			return true
		}
		b.flags |= wire.RecordFlags(&it.Record)
		b.items = append(b.items, Item{Ticket: it.Ticket, Until: it.Until})
		return true
	})
	p.pending.drop(count)
	if len(b.items) == 0 {
		return
	}
	b.left, b.sequence, b.checksum = len(b.items), p.sequence, wire.Checksum(b.records)
	p.sequence += uint64(len(b.items))
	p.batch = b
	p.queue.turn = (int(p.index) + 1) % len(p.queue.partitions)
	c.budget.sent(now)
}

// prefix is the length of the uvarint that begins an encoded record of n bytes.
func prefix(n int) int {
	for w, limit := 1, 1<<7; ; w, limit = w+1, limit<<7 {
		if n-w < limit {
			return w
		}
	}
}

// driveBatch makes the next try of the batch under way, if it is time.
func (c *Core) driveBatch(now Instant, p *partition) {
	b := p.batch
	for p.batch == b {
		if wait := c.mustWait(now, p); wait > now {
			c.wake(p, wait)
			return
		}
		pinned := b.pinned != nil
		l, end := c.choose(now, p)
		if l == nil {
			if end {
				b.round++
				clear(b.tried)
				b.holdUntil = now.Add(c.backoff(b.round, backoffMin, backoffMax))
				c.wake(p, b.holdUntil)
			}
			c.reach(now)
			return
		}
		if b.posted && !b.free && l.state == linkUp {
			if wait, ok := c.budget.retry(now); !ok {
				if pinned {
					b.pinned = l
				}
				b.holdUntil = now.Add(max(wait, time.Millisecond))
				c.wake(p, b.holdUntil)
				return
			}
		}
		c.try(now, p, l)
	}
}

// wake looks at the batch under way again at a time. There is one timer for each
// partition, and it holds on to no batch.
func (c *Core) wake(p *partition, at Instant) {
	if p.wakeAt != 0 && p.wakeAt <= at {
		return
	}
	p.wakeAt = at
	c.at(at, func(now Instant) {
		if p.wakeAt == at {
			p.wakeAt = 0
		}
		if p.batch != nil {
			c.driveBatch(now, p)
		}
	})
}

// mustWait is until when the batch waits for what it has tried: at most now when the
// next try is due. A link that has said nothing for 250 ms is passed by; one that talks
// has a second, for it may be waiting for its quorum.
func (c *Core) mustWait(now Instant, p *partition) Instant {
	b := p.batch
	if now < b.holdUntil {
		return b.holdUntil
	}
	for i := 0; i < len(b.attempts); { // a node long past its time will not answer
		if a := b.attempts[i]; a.sent && now >= a.lostAt {
			delete(c.calls, a.call)
			b.end(a)
			b.unknown = true
			continue
		}
		i++
	}
	if len(b.attempts) == 0 {
		return now
	}
	a := b.attempts[len(b.attempts)-1]
	if !a.sent {
		if a.link.state == linkUp {
			c.post(now, p, a)
		} else if end := a.since.Add(silence); a.link.state == linkDialing && now < end {
			return end
		} else {
			b.end(a)
			return now
		}
	}
	quiet := max(a.since, a.link.heard)
	end := min(quiet.Add(silence), a.since.Add(patience))
	if now >= end {
		if now >= quiet.Add(silence) {
			c.avoid(now, a.link, avoidSilent)
		}
		return now
	}
	if probe := quiet.Add(probeAfter); now < probe {
		return min(probe, end)
	}
	c.ping(now, a.link)
	return end
}

// avoid passes a link by until it talks again, or for a while.
func (c *Core) avoid(now Instant, l *link, d time.Duration) {
	l.avoidUntil = max(l.avoidUntil, now.Add(c.jitter(d/2, d)))
	c.ping(now, l)
}

// choose is where the next try goes. Without one, end says that all have been tried, so
// that another round is due after a while; otherwise a link that comes up is the next.
func (c *Core) choose(now Instant, p *partition) (l *link, end bool) {
	b := p.batch
	if l := b.pinned; l != nil {
		b.pinned = nil // for one try: if that meets silence, others are next
		if l.state == linkUp {
			return l, false
		}
	}
	var passed *link // up, but passed by
	c.candidates(p, func(o *link) bool {
		if b.tried[o.id] || b.outstanding(o) {
			return true
		}
		c.want(now, o)
		if o.usable(now) && now >= o.fullUntil {
			l = o
			return false
		}
		if o.state == linkUp && passed == nil {
			passed = o
		}
		return true
	})
	if l != nil {
		return l, false
	}
	if passed != nil && len(b.attempts) == 0 {
		return passed, false
	}
	return nil, len(b.attempts) == 0 || len(b.tried) > 0
}

func (b *batch) outstanding(l *link) bool {
	return slices.ContainsFunc(b.attempts, func(a *attempt) bool { return a.link == l && !a.over })
}

// candidates are the links for a partition in the order to try them, until do says no:
// the owner, the home replicas, the fallbacks; or the servers.
func (c *Core) candidates(p *partition, do func(*link) bool) {
	if c.config.Via {
		for _, addr := range c.config.Servers {
			if !do(c.linkAt(addr)) {
				return
			}
		}
		return
	}
	if l := c.linkTo(p.owner); l != nil && !do(l) {
		return
	}
	for _, node := range p.list {
		if node != p.owner {
			if l := c.linkTo(node); l != nil && !do(l) {
				return
			}
		}
	}
}

// try begins an attempt; on a link that is being dialed it is sent when that is up.
func (c *Core) try(now Instant, p *partition, l *link) {
	b := p.batch
	a := &attempt{link: l, since: now}
	b.free = false
	b.attempts = append(b.attempts, a)
	b.tried[l.id] = true
	if l.state == linkUp {
		c.post(now, p, a)
	}
}

// post sends the batch.
func (c *Core) post(now Instant, p *partition, a *attempt) {
	b := p.batch
	if b.posted && c.planted(bugNewSequence) {
		b.sequence, p.sequence = p.sequence, p.sequence+uint64(len(b.items))
	}
	a.sent, a.since, b.posted = true, now, true
	// A node is to answer before the last who waits gives up, so that its reason is known.
	left := time.Duration(0)
	for i := range b.items {
		if b.items[i].Ticket != nil {
			left = max(left, b.items[i].Until.Sub(now))
		}
	}
	timeout := max(min(nodeTimeout, left*9/10), time.Millisecond)
	msg := &wire.Enqueue{
		Partition: p.id, Queue: p.queue.name, Catalog: c.catalog, Producer: p.producer, Sequence: b.sequence,
		AfterLane: p.afterLane, AfterOffset: p.afterOffset, Count: uint32(len(b.items)), Flags: b.flags, Checksum: b.checksum,
		Timeout: uint32(timeout.Milliseconds()) + 1, Records: b.records,
	}
	if c.planted(bugNoPredecessor) {
		msg.AfterLane, msg.AfterOffset = wire.Lane{}, 0
	}
	call := c.request(now, a.link, msg, func(now Instant, msg wire.Message) {
		b.end(a)
		if p.batch == b {
			c.enqueueAnswered(now, p, a, msg)
		}
	}, func(now Instant) {
		b.end(a)
		b.unknown = true
		if p.batch == b && c.planted(bugFailoverLoses) {
			p.batch = nil
			c.pump(now, p)
		}
		if p.batch == b {
			b.err, b.free = c.unreachable(a.link), true
			c.driveBatch(now, p)
		}
	})
	a.call, a.lostAt = call.id, now.Add(timeout+time.Second)
}

// end takes an attempt off the list.
func (b *batch) end(a *attempt) {
	a.over = true
	if i := slices.Index(b.attempts, a); i >= 0 {
		b.attempts = slices.Delete(b.attempts, i, i+1)
	}
}

// enqueueAnswered takes in the answer of a try, also a late one.
func (c *Core) enqueueAnswered(now Instant, p *partition, a *attempt, msg wire.Message) {
	b := p.batch
	switch msg := msg.(type) {
	case *wire.Enqueued:
		c.confirm(now, p, msg)
		return
	case *wire.Error:
		b.err = msg
		b.unknown = b.unknown || msg.Unknown()
		switch msg.Code {
		case wire.CodeOverloaded:
			// An answer, and a final one for this try: not elsewhere (section 18).
			b.pinned = a.link
			b.round++
			b.holdUntil = now.Add(max(msg.Wait(), backoffMin) + c.backoff(b.round, backoffMin, backoffMax))
		case wire.CodeDiskFull: // others may have room, and it is no load that moves (P6)
			a.link.fullUntil, b.free = now.Add(avoidFull), true
		case wire.CodeNotReady:
			a.link.avoidUntil = now.Add(avoidNotReady)
		case wire.CodeNotOwner:
			if c.linkTo(p.owner) == a.link {
				p.owner = 0
			}
		case wire.CodeQuorum, wire.CodeTimeout, wire.CodeLaneConflict:
		case wire.CodeNoQueue:
			c.describe(now, p.queue) // deleted, or that node is behind
			b.holdUntil = now.Add(c.backoff(b.round, backoffMin, backoffMax))
		default:
			c.giveUp(now, p, msg)
			return
		}
		c.driveBatch(now, p)
	default:
		c.giveUp(now, p, wire.Errorf(wire.ErrInternal, "answer is a %T", msg))
	}
}

// confirm answers the messages of the batch and begins the next.
func (c *Core) confirm(now Instant, p *partition, msg *wire.Enqueued) {
	b := p.batch
	tickets := make([]Ticket, len(b.items))
	for i := range b.items {
		tickets[i] = b.items[i].Ticket
	}
	p.batch = nil
	p.afterLane, p.afterOffset = msg.Lane, msg.Base+wire.Offset(len(b.items)-1)
	if msg.Owner != 0 {
		p.owner = msg.Owner
	}
	c.emit(Confirmed{
		Queue: p.queue.name, Partition: p.index, Tickets: tickets,
		Base: wire.Position{Partition: p.id, Lane: msg.Lane, Offset: msg.Base}, Want: int(msg.Want), Nodes: msg.Nodes,
	})
	c.pump(now, p)
}

// giveUp fails the batch. Its sequence may be stored under this producer: what follows
// goes under a new one, still after the last that was confirmed (P5).
func (c *Core) giveUp(now Instant, p *partition, err error) {
	c.failBatch(p, err)
	c.pump(now, p)
}

func (c *Core) failBatch(p *partition, err error) {
	b := p.batch
	p.batch = nil
	p.producer, p.sequence = wire.ProducerID(c.rand()), 0
	unknown := b.maybe() && !c.planted(bugUnknownRefused)
	var tickets []Ticket
	for i := range b.items {
		if b.items[i].Ticket != nil {
			tickets = append(tickets, b.items[i].Ticket)
		}
	}
	if len(tickets) > 0 {
		c.emit(Failed{Tickets: tickets, Err: &SendError{Queue: p.queue.name, Unknown: unknown, Err: err}})
	}
}

// maybe tells whether some node may have stored the batch.
func (b *batch) maybe() bool {
	return b.unknown || slices.ContainsFunc(b.attempts, func(a *attempt) bool { return a.sent })
}

// why is the error of a message whose time is over while its batch is under way.
func (c *Core) why(b *batch) error {
	switch {
	case b.err != nil:
		return b.err
	case b.maybe():
		return wire.ErrTimeout
	default:
		return c.unreachable(nil)
	}
}

func (c *Core) failItem(it *Item, err error, unknown bool) {
	c.emit(Failed{Tickets: []Ticket{it.Ticket}, Err: &SendError{Queue: it.Queue, Unknown: unknown, Err: err}})
	it.Ticket = nil
}

// expireAt sees to it that a message whose time is over is failed. There is one timer
// for each partition, for the earliest.
func (c *Core) expireAt(p *partition, at Instant) {
	if p.expires != 0 && p.expires <= at {
		return
	}
	p.expires = at
	c.at(at, func(now Instant) {
		if p.expires != at {
			return // an earlier one took its place
		}
		p.expires = 0
		c.drop(now, p, func(it *Item) bool { return it.Until <= now }, nil)
		next := Never
		if b := p.batch; b != nil {
			for i := range b.items {
				if b.items[i].Ticket != nil {
					next = min(next, b.items[i].Until)
				}
			}
		}
		p.pending.each(func(it *Item) bool {
			next = min(next, it.Until)
			return true
		})
		if next != Never {
			c.expireAt(p, next)
		}
	})
}

// drop fails the messages that match. A message of the batch under way stays in it when
// some node may have the batch, and its outcome is unknown; otherwise it is taken out, for
// it is not to be stored any more (P10). The batch is given up when nobody waits for it.
// cause nil: the time is over.
func (c *Core) drop(now Instant, p *partition, match func(*Item) bool, cause error) bool {
	found, inBatch := false, false
	if b := p.batch; b != nil {
		unknown := b.maybe() && !c.planted(bugUnknownRefused)
		for i := range b.items {
			it := &b.items[i]
			if it.Ticket == nil || !match(it) {
				continue
			}
			found, inBatch = true, true
			err := cause
			if err == nil {
				err = c.why(b)
			}
			it.Queue = p.queue.name
			c.failItem(it, err, unknown)
			b.left--
		}
	}
	p.pending.remove(func(it *Item) bool {
		if !match(it) {
			return false
		}
		found = true
		err := cause
		if err == nil {
			err = ErrNotSent
		}
		c.failItem(it, err, false)
		return true
	})
	switch b := p.batch; {
	case b == nil:
	case b.left == 0:
		c.giveUp(now, p, ErrCanceled)
	case inBatch && !b.maybe() && !c.planted(bugUnknownRefused):
		c.cut(p)
	}
	return found
}

// cut takes the messages that nobody waits for out of the batch under way, which no node
// has. It is another batch then, so it goes under another producer.
func (c *Core) cut(p *partition) {
	b := p.batch
	var records []byte
	var items []Item
	b.flags = 0
	rest := b.records
	for i := range b.items {
		tail, _ := wire.SkipRecords(rest, 1) // encoded by begin
		one := rest[:len(rest)-len(tail)]
		rest = tail
		if b.items[i].Ticket == nil {
			continue
		}
		if r, _, err := wire.DecodeRecord(one); err == nil {
			b.flags |= wire.RecordFlags(&r)
		}
		records, items = append(records, one...), append(items, b.items[i])
	}
	b.records, b.items, b.checksum = records, items, wire.Checksum(records)
	p.producer, p.sequence, b.sequence = wire.ProducerID(c.rand()), uint64(len(items)), 0
}

// expireWaitingAt does the same for messages whose queue is not described yet.
func (c *Core) expireWaitingAt(q *queue, at Instant) {
	if q.expires != 0 && q.expires <= at {
		return
	}
	q.expires = at
	c.at(at, func(now Instant) {
		if q.expires != at {
			return
		}
		q.expires = 0
		next := Never
		kept := q.waiting[:0]
		for i := range q.waiting {
			it := &q.waiting[i]
			if it.Until > now {
				kept = append(kept, *it)
				next = min(next, it.Until)
				continue
			}
			c.failItem(it, c.unreachable(nil), false)
		}
		clear(q.waiting[len(kept):])
		q.waiting = kept
		if next != Never {
			c.expireWaitingAt(q, next)
		}
	})
}

func (c *Core) cancelSend(now Instant, q *queue, ticket Ticket) {
	for i := range q.waiting {
		if q.waiting[i].Ticket == ticket {
			c.failItem(&q.waiting[i], ErrCanceled, false)
			q.waiting = slices.Delete(q.waiting, i, i+1)
			return
		}
	}
	for _, p := range q.partitions {
		if c.drop(now, p, func(it *Item) bool { return it.Ticket == ticket }, ErrCanceled) {
			return
		}
	}
}

// failQueue fails all messages on their way to a queue.
func (c *Core) failQueue(q *queue, err error) {
	for i := range q.waiting {
		c.failItem(&q.waiting[i], err, false)
	}
	q.waiting = nil
	for _, p := range q.partitions {
		if p.batch != nil {
			c.failBatch(p, err)
		}
		p.pending.each(func(it *Item) bool {
			c.failItem(it, err, false)
			return true
		})
		p.pending = line{}
	}
}
