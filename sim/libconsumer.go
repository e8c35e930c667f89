package sim

import (
	"errors"
	"slices"
	"time"

	libcore "github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
	"github.com/meshq/meshq/transport/wire"
)

// consumerStyle is how a program uses the library to consume.
type consumerStyle uint8

const (
	styleConsume consumerStyle = iota // Queue.Consume: workers that receive one message each, and prefetch
	styleReceive                      // Consumer.Receive: as many as it has room for
	styleOnce                         // Queue.Receive: a consumer for each receive
)

// libConsumer is a program that consumes a group of a queue through the client library.
type libConsumer struct {
	library
	queue, group string
	style        consumerStyle
	window       int
	hold         int64
	acks, nacks  int   // of 1,000 messages; the rest is released or kept for long
	storms       int   // how many faults make it nack all
	poisons      []int // one message in so many kills it

	key     libcore.ConsumerKey
	open    bool
	room    int // messages that it may still ask for
	asking  int // receives that wait
	taken   map[takenKey]*taken
	hands   map[msgKey]*taken // in the program's hands, with a lease as far as it knows
	terms   map[wire.PartitionID]wire.Term
	through []*taken // acked together in a moment
}

// takenKey names a message of a consumer as the library does.
type takenKey struct {
	handout libcore.HandoutID
	offset  wire.Offset
}

// taken is one message in the hands of the program.
type taken struct {
	at      takenKey
	key     msgKey
	from    heldBy
	nack    bool
	lost    bool // it was told that others may have it
	settled bool
}

// openLimit is for OpenConsumer, as in package client.
const openLimit = 10 * second

func (w *world) newLibConsumer(x *plan.Consumer) *libConsumer {
	c := &libConsumer{
		queue: x.Queue, group: x.Group, window: x.Window, hold: int64(x.Hold),
	}
	c.nacks = int(x.Nack*1000 + 0.5)
	c.acks = max(0, 1000-c.nacks-int(x.Forget*1000+0.5))
	c.init(w, x.Name, c)
	switch coin := c.coin() % 8; {
	case coin < 4:
		c.style = styleConsume
	case coin < 7:
		c.style = styleReceive
	default:
		c.style = styleOnce
	}
	return c
}

func (c *libConsumer) start() { c.boot() }

// settle lets it catch up: short work, and acks alone.
func (c *libConsumer) settle() {
	c.hold, c.acks, c.nacks = min(c.hold, 20*millisecond), 1000, 0
	c.storms, c.poisons = 0, nil
}

func (c *libConsumer) slow(by, d int64) {
	c.hold += by
	c.w.after(d, func() { c.hold = max(c.hold-by, min(c.hold, 20*millisecond)) })
}

func (c *libConsumer) nackAll(d int64) {
	c.storms++
	c.w.after(d, func() { c.storms = max(0, c.storms-1) })
}

func (c *libConsumer) poison(oneIn int, d int64) {
	c.poisons = append(c.poisons, oneIn)
	c.w.after(d, func() { c.poisons = remove(c.poisons, oneIn) })
}

// fatal tells whether a message kills who works on it.
func (c *libConsumer) fatal(m msgKey) bool {
	return slices.ContainsFunc(c.poisons, func(oneIn int) bool { return mix(uint64(m.producer), m.sequence)%uint64(oneIn) == 0 })
}

func (c *libConsumer) begin() {
	c.key, c.terms = 0, map[wire.PartitionID]wire.Term{}
	c.taken, c.hands, c.through = map[takenKey]*taken{}, map[msgKey]*taken{}, nil
	c.openConsumer()
}

func (c *libConsumer) gone() { c.taken, c.hands, c.through = nil, nil, nil }

// openTicket, receiveTicket and settleTicket are who waits for an answer.
type (
	openTicket    struct{ wait *wait }
	receiveTicket struct {
		wait *wait
		max  int
	}
	settleTicket struct {
		wait *wait
		kind wire.Settling
		of   []*taken
	}
)

func (c *libConsumer) openConsumer() {
	c.key++
	c.open, c.asking, c.room = false, 0, c.window
	prefetch, idle := 0, time.Second
	if c.style == styleConsume {
		c.room = (c.window + 1) / 2 // workers
		prefetch, idle = c.window-c.room, 365*24*time.Hour
	}
	by := c.now().Add(libDuration(openLimit))
	id := wire.ConsumerID(c.w.luck(luckClient, c.h.key, 5, uint64(c.lives)<<32|uint64(c.key)))
	c.w.names.consumers[id] = c.name
	c.step(libcore.OpenConsumer{
		Consumer: c.key, ID: id, Queue: c.queue, Group: c.group, Prefetch: prefetch, Idle: idle,
		Ticket: &openTicket{c.ask(by, "OpenConsumer")}, Until: by,
	})
}

// receive asks for as many messages as there is room for.
func (c *libConsumer) receive() {
	if c.core == nil || !c.open {
		return
	}
	switch c.style {
	case styleConsume:
		for ; c.room > 0; c.room-- {
			c.asking++
			c.step(libcore.Receive{Consumer: c.key, Ticket: &receiveTicket{max: 1}, Max: 1, Until: c.now().Add(365 * 24 * time.Hour)})
		}
	default:
		if c.asking > 0 || c.room == 0 || c.style == styleOnce && c.room < c.window {
			return
		}
		c.asking++
		by := c.now().Add(libDuration(between(c.coin(), 10*millisecond, 2*second)))
		t := &receiveTicket{c.ask(by, "Receive"), c.room}
		c.room = 0
		c.step(libcore.Receive{Consumer: c.key, Ticket: t, Max: t.max, Until: by})
	}
}

func (c *libConsumer) told(ef libcore.Effect) {
	switch ef := ef.(type) {
	case libcore.ConsumerOpened:
		ef.Ticket.(*openTicket).wait.over = true
		if ef.Err != nil {
			c.failed("OpenConsumer", ef.Err)
			c.h.later(between(c.coin(), 50*millisecond, second), c.openConsumer)
			return
		}
		c.open = true
		c.receive()
	case libcore.Received:
		c.received(ef)
	case libcore.Settled:
		c.settled(ef.Ticket.(*settleTicket), ef.Err)
	case libcore.Lost:
		for _, run := range ef.Runs {
			for o := run.From; o < run.To; o++ {
				c.lose(c.taken[takenKey{ef.Handout, o}])
			}
		}
	case libcore.ConsumerFailed:
		c.failed("the consumer", ef.Err)
		c.open = false
		c.step(libcore.CloseConsumer{Consumer: ef.Consumer, Until: c.now().Add(time.Second)})
		c.h.later(between(c.coin(), 50*millisecond, second), c.openConsumer)
	}
}

// failed checks P10: what a consumer may be told. Its queue and group exist.
func (c *libConsumer) failed(what string, err error) {
	if !errors.Is(err, libcore.ErrUnreachable) {
		c.w.fail("P10", msgKey{}, "%s is told of %s: %v", c.name, what, err)
	}
}

func (c *libConsumer) received(ef libcore.Received) {
	t := ef.Ticket.(*receiveTicket)
	c.asking--
	if t.wait != nil {
		t.wait.over = true
	}
	c.room += t.max - len(ef.Deliveries)
	if ef.Err != nil {
		if c.open { // otherwise it says so of a consumer that has failed
			c.failed("Receive", ef.Err)
		}
		return
	}
	if len(ef.Deliveries) > t.max {
		c.w.fail("P10", msgKey{}, "%s asked for %d messages and got %d", c.name, t.max, len(ef.Deliveries))
		return
	}
	for i := range ef.Deliveries {
		if c.take(&ef.Deliveries[i]); c.core == nil || c.w.failure != nil {
			return
		}
	}
	if c.style == styleOnce {
		c.open = false
		if len(ef.Deliveries) == 0 {
			c.step(libcore.CloseConsumer{Consumer: c.key, Until: c.now().Add(5 * time.Second), Taken: libcore.TakenRelease})
			c.h.later(between(c.coin(), 0, 100*millisecond), c.openConsumer)
			return
		}
		c.step(libcore.CloseConsumer{Consumer: c.key, Until: c.now().Add(365 * 24 * time.Hour), Taken: libcore.TakenKeep})
		return
	}
	c.receive()
}

// take checks what the library hands out, and has the program work on it.
func (c *libConsumer) take(d *libcore.Delivery) {
	w, rc := c.w, d.Receipt
	r, rest, err := wire.DecodeRecord(d.Record)
	key := msgKey{rc.Producer, rc.Sequence + uint64(d.Offset-rc.Run.From)}
	if err != nil || len(rest) > 0 {
		w.fail("P9", key, "%s got %s with bad records: %v", c.name, w.names.receipt(rc), err)
		return
	}
	if w.check.got(c.watch.consumer(), &holding{key: key, receipt: *rc, offset: d.Offset, body: string(r.Body)}, false); w.failure != nil {
		return
	}
	if err := sound(&r); err != nil {
		w.fail("P9", key, "%s got %s, and %v", c.name, w.check.about(key), err)
		return
	}
	if rc.Term.Less(c.terms[rc.Partition]) {
		w.fail("P3", key, "%s is handed %s in term %s, after one of term %s", c.name, w.check.about(key), w.names.term(rc.Term), w.names.term(c.terms[rc.Partition]))
		return
	}
	c.terms[rc.Partition] = rc.Term
	t := &taken{at: takenKey{d.Handout, d.Offset}, key: key}
	t.from = heldBy{who: c.h.name, queue: c.queue, group: c.group, message: messageOf(string(r.Body)), receipt: rc, offset: d.Offset, relayed: c.via()}
	if old := c.hands[key]; old != nil {
		w.fail("P4", key, "%s is handed %s (%s) twice at once: it has it by %s", c.name, w.check.about(key), w.names.receipt(rc), w.names.receipt(old.from.receipt))
		return
	}
	if over := w.now - c.watch.leases[leaseOf(rc)].ends; over >= 0 {
		w.fail("P4", key, "%s is handed %s (%s) %d ms after its lease was over", c.name, w.check.about(key), w.names.receipt(rc), over/millisecond)
		return
	}
	c.taken[t.at], c.hands[key] = t, t
	lease := int64(0)
	if q := w.check.queueOf(rc.Partition); q != nil {
		lease = int64(q.entry.Settings.Lease) * millisecond
	}
	w.tellDelivered(t.from, &r, d.Cause, c.watch.left(rc), false)
	work := exponential(c.coin(), c.hold)
	act := int(c.coin() % 1000)
	switch {
	case c.fatal(key):
		c.h.later(work, func() { c.kill(between(c.coin(), 10*millisecond, second)) })
	case c.storms > 0 || act >= c.acks && act < c.acks+c.nacks:
		t.nack = true
		c.h.later(work, func() { c.giveBack(t, wire.SettleNack) })
	case act < c.acks:
		c.h.later(work, func() { c.done(t) })
	case act%2 == 0:
		c.h.later(work, func() { c.giveBack(t, wire.SettleRelease) })
	default: // longer than the lease: the library extends it
		c.h.later(between(c.coin(), lease/2, 3*lease), func() { c.done(t) })
	}
}

// done is the end of the work on a message: it is acked, alone or with others. Of those
// whose lease is over some are given up.
func (c *libConsumer) done(t *taken) {
	if t.lost && c.chance(2) {
		c.giveBack(t, wire.SettleNack)
		return
	}
	c.through = append(c.through, t)
	if c.style == styleConsume {
		c.ack()
	} else if len(c.through) == 1 {
		c.h.later(between(c.coin(), 0, 10*millisecond), c.ack)
	}
}

func (c *libConsumer) ack() {
	of := c.through
	c.through = nil
	if len(of) == 0 {
		return
	}
	limit := time.Minute
	for _, t := range of {
		if q := c.w.check.queueOf(t.from.receipt.Partition); q != nil {
			limit = max(limit, 2*time.Duration(q.entry.Settings.Lease)*time.Millisecond)
		}
	}
	c.settleAll(of, wire.SettleAck, 0, c.ask(c.now().Add(limit+15*time.Second), "an ack"))
}

// giveBack nacks or releases a message.
func (c *libConsumer) giveBack(t *taken, kind wire.Settling) {
	delay := time.Duration(0)
	if kind == wire.SettleNack && c.chance(2) {
		delay = libDuration(between(c.coin(), millisecond, 300*millisecond))
	}
	c.settleAll([]*taken{t}, kind, delay, c.ask(c.now().Add(time.Minute), "a nack or release"))
}

func (c *libConsumer) settleAll(of []*taken, kind wire.Settling, delay time.Duration, x *wait) {
	told := map[wire.Settling]history.Kind{wire.SettleAck: history.Acking, wire.SettleNack: history.Nacked, wire.SettleRelease: history.Released}[kind]
	var items []libcore.Settlement
	for _, t := range of {
		t.settled = true
		delete(c.taken, t.at)
		if c.hands[t.key] == t {
			delete(c.hands, t.key)
		}
		c.w.tellSettled(told, t.from, 0, "")
		if kind != wire.SettleAck { // others may have it, however long its owner does not hear of it
			c.w.check.ended(c.watch.consumer(), &holding{key: t.key, receipt: *t.from.receipt, offset: t.from.offset})
		}
		items = append(items, libcore.Settlement{Handout: t.at.handout, Offset: t.at.offset, Kind: kind, Delay: delay, Reason: reasonOf(kind)})
	}
	c.room += len(of)
	c.step(libcore.Settle{Ticket: &settleTicket{x, kind, of}, Items: items})
	if c.core == nil {
		return
	}
	if c.style == styleOnce && c.room == c.window && !c.open && c.asking == 0 {
		c.openConsumer()
		return
	}
	c.receive()
}

func reasonOf(kind wire.Settling) string {
	if kind == wire.SettleNack {
		return "the simulator says so"
	}
	return ""
}

// settled checks P10: an ack is confirmed, or goes on until its time is over.
func (c *libConsumer) settled(t *settleTicket, err error) {
	if t.wait.over {
		c.w.fail("P10", t.of[0].key, "the library of %s answers a settle twice", c.name)
		return
	}
	t.wait.over = true
	if t.kind != wire.SettleAck {
		return
	}
	code := ""
	if err != nil {
		var e *wire.Error
		if !errors.As(err, &e) || !slices.Contains([]wire.Code{wire.CodeNotOwner, wire.CodeQuorum, wire.CodeTimeout, wire.CodeNotReady, wire.CodeOverloaded}, e.Code) {
			c.w.fail("P10", t.of[0].key, "%s is told of an ack of %s: %v", c.name, c.w.check.about(t.of[0].key), err)
			return
		}
		code = history.CodeName(uint16(e.Code))
	}
	for _, x := range t.of {
		if err == nil && c.w.check.acked[groupKey{x.from.receipt.Group, x.key}] == 0 {
			c.w.fail("P3", x.key, "%s is told that its ack of %s is confirmed, and no node has said so", c.name, c.w.check.about(x.key))
			return
		}
		if err == nil {
			c.w.tellSettled(history.Acked, x.from, 0, "")
		} else {
			c.w.tellSettled(history.AckFailed, x.from, 0, code)
		}
	}
}

// lose takes in that the lease of a message is over. Half of the handlers stop at once.
func (c *libConsumer) lose(t *taken) {
	if t == nil || t.settled || t.lost {
		return
	}
	t.lost = true
	if c.hands[t.key] == t {
		delete(c.hands, t.key)
	}
	c.w.tellSettled(history.LeaseOver, t.from, 0, "")
}
