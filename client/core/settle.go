package core

import (
	"slices"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// settlement is what became of messages of one handout, on its way to the owner.
type settlement struct {
	h         *handout // nil: of a delivery that was not taken in
	receipt   *wire.Receipt
	partition *partition
	link      *link // that delivered it
	kind      wire.Settling
	runs      wire.Runs
	delay     time.Duration
	reason    string
	waiters   []*waiter
	tries     int
	after     Instant // not before: backoff
	giveUp    Instant
	sentAt    Instant
}

// waiter is a Settle that waits for the answers of its settlements.
type waiter struct {
	ticket Ticket
	left   int
	err    error
}

// settlerKey names a settler: what a Settle holds is of one queue.
type settlerKey struct {
	link  LinkID
	queue string
}

// settler sends settlements to a link: one Settle is under way, what arrives meanwhile
// goes into the next.
type settler struct {
	link    *link
	queue   string
	pending []*settlement
	sent    []*settlement
}

// settle takes in what the program did with messages.
func (c *Core) settle(now Instant, ev Settle) {
	var w *waiter
	if ev.Ticket != nil {
		w = &waiter{ticket: ev.Ticket}
		w.left++ // until all items are looked at
	}
	for i := range ev.Items {
		it := &ev.Items[i]
		h := c.handouts[it.Handout]
		if h == nil || !h.out.Contains(it.Offset) {
			if w != nil && w.err == nil {
				w.err = wire.Errorf(wire.ErrStaleReceipt, "the message is not in hand: settled before, or its consumer is closed")
			}
			continue
		}
		run := wire.Span(it.Offset, it.Offset+1)
		giveUp := h.until
		if it.Kind != wire.SettleExtend {
			h.out.Remove(run)
			h.settling.Add(run)
			if it.Kind == wire.SettleAck {
				h.acking.Add(run)
			}
		} else if it.Delay > 0 {
			h.lease = it.Delay
		}
		if it.Kind == wire.SettleAck {
			giveUp = now.Add(max(2*h.lease, settleMin))
			if x := h.acks; x != nil {
				x.runs.Add(run)
				x.wait(w)
				continue
			}
		}
		x := &settlement{
			h: h, receipt: h.receipt, partition: h.partition, link: h.link, kind: it.Kind, runs: wire.Runs{run},
			delay: it.Delay, reason: it.Reason, giveUp: giveUp,
		}
		x.wait(w)
		if x.kind == wire.SettleAck {
			h.acks = x
		}
		c.queueUp(now, x)
	}
	c.pumpAll(now)
	if w != nil {
		c.settled(w, nil)
	}
}

func (x *settlement) wait(w *waiter) {
	if w == nil || len(x.waiters) > 0 && x.waiters[len(x.waiters)-1] == w {
		return
	}
	x.waiters = append(x.waiters, w)
	w.left++
}

// settled takes in one answer for a waiter.
func (c *Core) settled(w *waiter, err error) {
	if err != nil && w.err == nil {
		w.err = err
	}
	if w.left--; w.left == 0 && w.ticket != nil {
		c.emit(Settled{Ticket: w.ticket, Err: w.err})
		w.ticket = nil
	}
}

// cancelSettle answers a ticket; the settlement goes on.
func (c *Core) cancelSettle(ticket Ticket) {
	for _, x := range c.settlements() {
		for _, w := range x.waiters {
			if w.ticket == ticket {
				c.emit(Settled{Ticket: ticket, Err: ErrCanceled})
				w.ticket = nil
				return
			}
		}
	}
}

// settlements are all that are not answered, in a fixed order.
func (c *Core) settlements() []*settlement {
	var out []*settlement
	for _, s := range c.settlerOrder {
		out = append(append(out, s.sent...), s.pending...)
	}
	return append(out, c.waiting...)
}

// abandonSettles answers all who wait.
func (c *Core) abandonSettles() {
	for _, x := range c.settlements() {
		for _, w := range x.waiters {
			if w.ticket != nil {
				c.emit(Settled{Ticket: w.ticket, Err: ErrClosed})
				w.ticket = nil
			}
		}
	}
}

// submit sends a settlement as soon as it can be.
func (c *Core) submit(now Instant, x *settlement) {
	c.queueUp(now, x)
	c.pumpAll(now)
}

// queueUp puts a settlement in line for the link where it is to go.
func (c *Core) queueUp(now Instant, x *settlement) {
	l := c.settleAt(now, x)
	if l == nil || now < x.after {
		c.waiting = append(c.waiting, x)
		c.wakeSettles(x.due(now))
		return
	}
	key := settlerKey{l.id, x.partition.queue.name}
	s := c.settlers[key]
	if s == nil {
		s = &settler{link: l, queue: key.queue}
		c.settlers[key] = s
		c.settlerOrder = append(c.settlerOrder, s)
	}
	s.pending = append(s.pending, x)
}

// due is when a settlement that waits is to be looked at, unless a link comes up before.
func (x *settlement) due(now Instant) Instant {
	if x.after > now {
		return x.after
	}
	return max(now, x.giveUp)
}

// wakeSettles looks at what waits at a time. There is one timer, for the earliest: each
// look may put all that waits in line again.
func (c *Core) wakeSettles(at Instant) {
	if c.settlesAt != 0 && c.settlesAt <= at {
		return
	}
	c.settlesAt = at
	c.at(at, func(now Instant) {
		if c.settlesAt != at {
			return // an earlier one took its place
		}
		c.settlesAt = 0
		c.retrySettles(now, nil)
		for _, x := range c.waiting {
			c.wakeSettles(x.due(now))
		}
	})
}

// settleAt is the link for a settlement: to the owner, or where the delivery came from,
// or to a home replica, in turns with each try. nil: none is up.
func (c *Core) settleAt(now Instant, x *settlement) *link {
	var up []*link
	add := func(l *link) {
		if l == nil {
			return
		}
		if c.want(now, l); l.state == linkUp && !slices.Contains(up, l) {
			up = append(up, l)
		}
	}
	if c.config.Via {
		add(x.link) // on the way that Resume took, and behind it
	}
	add(c.linkTo(x.partition.owner))
	if len(up) > 0 && x.tries == 0 {
		return up[0]
	}
	add(x.link)
	if c.config.Via {
		for _, addr := range c.config.Servers {
			add(c.linkAt(addr))
		}
	} else {
		for _, node := range x.partition.homes {
			add(c.linkTo(node))
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[x.tries%len(up)]
}

func (c *Core) pumpAll(now Instant) {
	for _, s := range c.settlerOrder {
		c.pumpSettler(now, s)
	}
}

// pumpSettler sends the next Settle, unless one is under way.
func (c *Core) pumpSettler(now Instant, s *settler) {
	if len(s.sent) > 0 || len(s.pending) == 0 || s.link.state != linkUp {
		return
	}
	n := min(len(s.pending), maxSettleItems)
	sent := slices.Clone(s.pending[:n])
	rest := copy(s.pending, s.pending[n:])
	clear(s.pending[rest:])
	s.pending = s.pending[:rest]
	s.sent = sent
	msg := &wire.Settle{Queue: s.queue, Catalog: c.catalog, Items: make([]wire.SettleItem, n)}
	for i, x := range sent {
		x.sentAt = now
		if x.h != nil && x.h.acks == x {
			x.h.acks = nil
		}
		msg.Items[i] = wire.SettleItem{
			Receipt: *x.receipt, Runs: x.runs, Kind: x.kind, Delay: uint32(x.delay.Milliseconds()), Reason: x.reason,
		}
	}
	c.request(now, s.link, msg, func(now Instant, answer wire.Message) {
		s.sent = nil
		for i, x := range sent {
			switch answer := answer.(type) {
			case *wire.Settled:
				if i < len(answer.Codes) {
					c.settleAnswered(now, x, answer.Codes[i], 0)
				} else {
					c.settleAnswered(now, x, wire.CodeInternal, 0)
				}
			case *wire.Error:
				c.settleAnswered(now, x, answer.Code, answer.Wait())
			default:
				c.settleAnswered(now, x, wire.CodeInternal, 0)
			}
		}
		c.pumpAll(now)
	}, func(now Instant) {
		s.sent = nil
		for _, x := range sent { // settling twice is settling once
			c.queueUp(now, x)
		}
		c.pumpAll(now)
	})
}

// settleAnswered takes in the answer for one settlement.
func (c *Core) settleAnswered(now Instant, x *settlement, code wire.Code, wait time.Duration) {
	e := &wire.Error{Code: code}
	if code == 0 || code == wire.CodeNotOwner && c.planted(bugAckGivesUp) {
		c.settleDone(now, x, nil)
		return
	}
	// "Not the owner" is "not confirmed": the ack may be kept, but only an owner makes it
	// final (P3).
	if e.Retryable() || code == wire.CodeInternal {
		if now >= x.giveUp {
			c.settleDone(now, x, e)
			return
		}
		x.after = now.Add(max(wait, c.backoff(x.tries, settleBackoff, settleBackMax)))
		x.tries++
		c.queueUp(now, x)
		return
	}
	c.settleDone(now, x, e)
}

// settleDone ends a settlement.
func (c *Core) settleDone(now Instant, x *settlement, err error) {
	if h := x.h; h != nil {
		if h.acks == x {
			h.acks = nil
		}
		if x.kind == wire.SettleExtend {
			lease := x.delay
			if lease == 0 {
				lease = h.lease
			}
			if err == nil {
				h.until = max(h.until, x.sentAt.Add(lease))
			} else if c.handouts[h.id] == h {
				if now >= h.until {
					c.lose(now, h)
				} else {
					c.loseRuns(now, h, x.runs)
				}
			}
		} else {
			for _, r := range x.runs {
				h.settling.Remove(r)
				h.acking.Remove(r)
			}
			if c.handouts[h.id] == h {
				c.check(now, h)
			}
		}
	}
	for _, w := range x.waiters {
		c.settled(w, err)
	}
	x.waiters = nil
}

// retrySettles sends what waits: what is due, and all of a partition whose owner is
// known anew.
func (c *Core) retrySettles(now Instant, p *partition) {
	waiting := c.waiting
	c.waiting = nil
	for _, x := range waiting {
		switch {
		case now >= x.giveUp:
			c.settleDone(now, x, wire.ErrNotOwner)
		case x.partition == p:
			x.after, x.tries = now, 0
			c.queueUp(now, x)
		case x.after > now:
			c.waiting = append(c.waiting, x)
		default:
			c.queueUp(now, x)
		}
	}
	c.pumpAll(now)
}

// moveSettles takes what is in line for a link that went down elsewhere.
func (c *Core) moveSettles(now Instant, l *link) {
	for _, s := range c.settlerOrder {
		if s.link != l {
			continue
		}
		pending := s.pending
		s.pending = nil
		for _, x := range pending {
			c.queueUp(now, x)
		}
	}
	c.pumpAll(now)
}
