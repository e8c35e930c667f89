package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// queue is what the model clients know of a queue.
type queue struct {
	entry   wire.QueueEntry
	catalog uint64
	gone    bool   // it is being deleted, or is
	growing bool   // it is asked to have another partition
	lowest  uint32 // of the delivery leases that it was ever to have, in milliseconds
}

func (q *queue) partitions() []wire.PartitionID {
	var out []wire.PartitionID
	for i := range q.entry.Settings.Partitions {
		out = append(out, q.entry.Partition(i))
	}
	return out
}

func (q *queue) group(name string) wire.GroupID {
	for _, g := range q.entry.Groups {
		if g.Name == name {
			return wire.Group(g.Name, g.Generation)
		}
	}
	return 0
}

// preference is the preference list of a partition by the newest ring: hosts that exist.
func (w *world) preference(p wire.PartitionID) []*host {
	var out []*host
	for _, id := range w.ring().Preference(nil, uint64(p), 0) {
		if h := w.node(id); h != nil {
			out = append(out, h)
		}
	}
	return out
}

// homes are the home replicas of a partition by the newest ring; those that are
// gone for ever are left out.
func (w *world) homes(q *queue, p wire.PartitionID) []*host {
	var out []*host
	for _, id := range w.homeIDs(q, p) {
		if h := w.node(id); h != nil {
			out = append(out, h)
		}
	}
	return out
}

func (w *world) homeIDs(q *queue, p wire.PartitionID) []ring.NodeID {
	r := w.ring()
	return r.Preference(nil, uint64(p), min(r.Len(), int(q.entry.Settings.Replicas)))
}

// admin creates and deletes queues. It tries every node in turn until one answers.
type admin struct {
	h    *host
	msg  wire.Message // that it asks; nil: nothing
	done func(answer wire.Message) bool
	to   *host
	next int
	try  uint64 // counts tries; what an earlier one brings is void
}

// adminPatience is how long an admin waits for a node that says nothing.
const adminPatience = 5 * second

func (a *admin) opened(c *conn) {
	if a.msg != nil && a.to == c.to {
		a.send(c)
	}
}

func (a *admin) closed(to *host) {
	if a.to == to {
		a.again()
	}
}

func (a *admin) pushed(c *conn, msg wire.Message) {}

// ask asks one node after another, until done takes an answer. One thing at a time.
func (a *admin) ask(msg wire.Message, done func(answer wire.Message) bool) {
	a.msg, a.done = msg, done
	a.again()
}

func (a *admin) again() {
	if a.msg == nil {
		return
	}
	nodes := a.h.w.nodes()
	a.next++
	a.to = nodes[a.next%len(nodes)]
	a.try++
	to, try := a.to, a.try
	a.h.w.after(50*millisecond, func() {
		switch c := a.h.out[to.index]; {
		case a.try != try:
		case c != nil:
			a.send(c)
		default:
			a.h.dial(to)
		}
	})
	a.h.w.after(adminPatience, func() {
		if a.try == try {
			a.again()
		}
	})
}

func (a *admin) send(c *conn) {
	try := a.try
	c.call(a.msg, func(answer wire.Message) {
		if a.try != try || a.msg == nil {
			return
		}
		msg := a.msg
		a.msg = nil // done may ask for something else
		a.try++
		if !a.done(answer) {
			a.msg = msg
			a.again()
		}
	})
}

func (w *world) newAdmin() *admin { return w.newAdminCalled("admin") }

func (w *world) newAdminCalled(name string) *admin {
	a := &admin{}
	a.h = w.addClient(name, a)
	return a
}

// create makes a queue and calls done with it.
func (a *admin) create(name string, s wire.Settings, groups []string, done func(*queue)) {
	a.ask(&wire.CreateQueue{Name: name, Settings: s, Groups: groups}, func(answer wire.Message) bool {
		info, ok := answer.(*wire.QueueInfo)
		if !ok {
			return false
		}
		q := &queue{entry: info.Entry, catalog: info.Catalog, lowest: info.Entry.Settings.Lease}
		a.h.w.names.queue(&q.entry)
		a.h.w.check.made(q)
		done(q)
		return true
	})
}

// inspect asks one node about partitions; done gets nil when it cannot be reached.
func (a *admin) inspect(to *host, ps []wire.PartitionID, done func(*wire.Inspected)) {
	ask := func(c *conn) {
		c.call(&wire.Inspect{Partitions: ps}, func(m wire.Message) {
			i, _ := m.(*wire.Inspected)
			done(i)
		})
	}
	if c := a.h.out[to.index]; c != nil {
		ask(c)
		return
	}
	one := &asker{a: a, do: ask, failed: func() { done(nil) }}
	h := a.h.w.addClient("inspector", one)
	h.dial(to)
}

type asker struct {
	a      *admin
	do     func(c *conn)
	failed func()
	asked  bool
}

func (a *asker) opened(c *conn) { a.asked = true; a.do(c) }
func (a *asker) closed(to *host) {
	if !a.asked {
		a.failed()
	}
}
func (a *asker) pushed(c *conn, msg wire.Message) {}

// producer sends batches to one partition, one at a time, and never gives up.
type producer struct {
	w         *world
	h         *host
	id        wire.ProducerID
	q         *queue
	partition wire.PartitionID
	think     int64 // mean time between a confirm and the next batch
	most      int   // messages of a batch, at most
	bytes     int   // of a body, at most; 0: no more than its name
	until     int64 // no new batch after that
	left      int   // messages it may still send
	hurry     hurry
	timeout   uint32

	next    uint64 // sequence
	after   wire.Lane
	afterAt wire.Offset
	batch   *wire.Enqueue
	try     int // counts tries of all batches
	place   int // in the preference list
	target  *host
	coins   uint64
	owner   ring.NodeID
	lives   int
	name    string // of this life
	done    bool   // nothing under way and nothing to come
}

func (w *world) newProducer(name string, q *queue, p wire.PartitionID) *producer {
	pr := &producer{w: w, q: q, partition: p, most: 4, think: 20 * millisecond, timeout: 2000, left: 1 << 30}
	pr.h = w.addClient(name, pr)
	pr.mint()
	return pr
}

// mint makes the producer another one: what an earlier one sent is not its own.
func (p *producer) mint() {
	p.lives++
	p.id = wire.ProducerID(p.w.luck(luckClient, p.h.key, 0, uint64(p.lives)))
	p.name = p.h.name
	if p.lives > 1 {
		p.name = fmt.Sprintf("%s.%d", p.h.name, p.lives)
	}
	p.w.names.producers[p.id] = p.name
	p.next, p.after, p.afterAt, p.batch, p.place, p.owner, p.target = 0, wire.Lane{}, 0, nil, 0, 0, nil
	p.try++
}

func (p *producer) machine() *host { return p.h }

// stuck is the batch that it cannot get confirmed.
func (p *producer) stuck() (about msgKey, what string) {
	if p.done || p.batch == nil {
		return msgKey{}, ""
	}
	return keyOf(p.batch), p.w.describe(p.batch)
}

func (p *producer) through() bool { return p.done }

func (p *producer) settle() {}

// rush lets it think that many times as fast for d.
func (p *producer) rush(times int, d int64) {
	p.w.after(d, p.hurry.up(times))
}

// kill is the end of its process; another producer takes its place.
func (p *producer) kill(back int64) {
	p.w.tellClient(history.ClientDown, p.h.name)
	p.h.end()
	p.mint()
	p.h.later(back, func() {
		p.w.tellClient(history.ClientUp, p.h.name)
		p.again()
	})
}

func (p *producer) again() { p.h.later(exponential(p.coin(), p.think/p.hurry.times()), p.send) }

func (p *producer) coin() uint64 {
	p.coins++
	return p.w.luck(luckClient, p.h.key, 1, p.coins)
}

// start sends new messages until then, in the world's time.
func (p *producer) start(until int64) {
	p.until = until
	p.w.tellClient(history.ClientUp, p.h.name)
	p.again()
}

// send makes the next batch.
func (p *producer) send() {
	if p.w.now >= p.until || p.left == 0 {
		p.done = true
		return
	}
	n := min(p.left, int(between(p.coin(), 1, int64(p.most)+1)))
	p.left -= n
	e := &wire.Enqueue{
		Partition: p.partition, Queue: p.q.entry.Name, Catalog: p.q.catalog, Producer: p.id, Sequence: p.next,
		AfterLane: p.after, AfterOffset: p.afterAt, Count: uint32(n), Timeout: p.timeout,
	}
	for i := range n {
		body := fmt.Sprintf("%s-%d", p.name, p.next+uint64(i))
		if more := p.bytes - len(body); more > 0 {
			body += strings.Repeat(".", int(p.coin()%uint64(more+1)))
		}
		rec := wire.Record{Body: []byte(body)}
		e.Records = wire.AppendRecord(e.Records, &rec)
		p.w.tellSent(p.sentBy(p.next+uint64(i)), &rec, 0)
		p.w.check.sent(p.q, p.partition, msgKey{p.id, p.next + uint64(i)}, body)
	}
	e.Checksum = wire.Checksum(e.Records)
	p.batch = e
	p.next += uint64(n)
	p.attempt(p.pick())
}

func (p *producer) sentBy(number uint64) sentBy {
	return sentBy{who: p.h.name, producer: p.name, number: number, queue: p.q.entry.Name}
}

// pick is the node to try next: the owner as far as it is known, then down the list.
func (p *producer) pick() *host {
	list := p.w.preference(p.partition)
	if len(list) == 0 {
		return p.w.hosts[0]
	}
	if p.place == 0 {
		if o := p.w.node(p.owner); o != nil {
			return o
		}
	}
	return list[p.place%len(list)]
}

func (p *producer) attempt(to *host) {
	p.try++
	try := p.try
	p.target = to
	p.h.later(250*millisecond, func() { // silence
		if p.try == try && p.batch != nil {
			p.moveOn(0)
		}
	})
	if c := p.h.out[to.index]; c != nil {
		p.ask(c)
		return
	}
	p.h.dial(to)
}

func (p *producer) opened(c *conn) {
	if p.batch != nil && p.target == c.to {
		p.ask(c)
	}
}

func (p *producer) closed(to *host) {
	if p.batch != nil && p.target == to {
		p.moveOn(0)
	}
}

func (p *producer) pushed(c *conn, msg wire.Message) {}

func (p *producer) moveOn(wait int64) {
	p.place++
	p.owner = 0
	p.try++
	try := p.try
	if n := len(p.w.preference(p.partition)); n > 0 && p.place%n == 0 {
		wait += between(p.coin(), 50*millisecond, 400*millisecond)
	}
	p.h.later(wait, func() {
		if p.try == try && p.batch != nil {
			p.attempt(p.pick())
		}
	})
}

func (p *producer) ask(c *conn) {
	e := *p.batch
	e.Catalog = p.q.catalog
	c.call(&e, func(m wire.Message) {
		if p.batch == nil || p.batch.Sequence != e.Sequence {
			return // an answer to an earlier try, too late to matter
		}
		switch m := m.(type) {
		case nil:
		case *wire.Enqueued:
			p.batch = nil
			p.try++
			p.after, p.afterAt = m.Lane, m.Base+wire.Offset(e.Count)-1
			p.owner = m.Owner
			p.place = 0
			p.w.check.confirmed()
			for i := range e.Count {
				at := wire.Position{Partition: p.partition, Lane: m.Lane, Offset: m.Base + wire.Offset(i)}
				p.w.tellConfirmed(p.sentBy(e.Sequence+uint64(i)), at, m.Nodes, int(m.Want))
			}
			p.again()
		case *wire.Error:
			if p.target != c.to {
				return
			}
			switch m.Code {
			case wire.CodeOverloaded: // an answer: the same node, later
				p.try++
				try := p.try
				p.h.later(max(int64(m.RetryAfter)*millisecond, 50*millisecond), func() {
					if p.try == try && p.batch != nil {
						p.attempt(c.to)
					}
				})
			case wire.CodeQuorum, wire.CodeTimeout, wire.CodeNotReady, wire.CodeDiskFull, wire.CodeNotOwner, wire.CodeLaneConflict, wire.CodeNoQueue:
				p.moveOn(between(p.coin(), 0, 100*millisecond))
			default:
				p.w.fail("P10", msgKey{p.id, e.Sequence}, "%s refuses %s with: %s", c.to.name, p.w.describe(&e), m.Error())
			}
		default:
			p.w.fail("P10", msgKey{p.id, e.Sequence}, "%s answers %s with %T", c.to.name, p.w.describe(&e), m)
		}
	})
}

// consumer takes messages of one group, holds each for a while and settles it.
type consumer struct {
	w     *world
	h     *host
	id    wire.ConsumerID
	q     *queue
	group string
	gid   wire.GroupID

	window   uint64
	hold     int64 // mean time that a message is held
	acks     int   // of 100 messages: acked
	nacks    int   // nacked; the rest is released, extended, or forgotten until the lease ends
	nackWait uint32
	manual   bool  // a script settles
	storms   int   // how many faults make it nack all
	poisons  []int // one message in so many kills it
	settled  bool  // all faults are over
	relay    *host

	subs   map[int]*subscription
	last   uint64 // Sub
	terms  map[wire.PartitionID]wire.Term
	owners map[wire.PartitionID]ring.NodeID
	held   []*holding
	coins  uint64
	lives  int
	closes bool // it has crashed and is not back yet
}

type subscription struct {
	conn     *conn
	sub      uint64
	released uint64 // messages that it is through with
	told     uint64 // credit
}

// holding is one message in the hands of a consumer.
type holding struct {
	key     msgKey
	receipt wire.Receipt
	offset  wire.Offset
	sub     *subscription
	until   int64
	over    bool // settled, or given up
	acking  bool
	body    string
}

func (w *world) newConsumer(name string, q *queue, group string) *consumer {
	c := &consumer{
		w: w, q: q, group: group, gid: q.group(group), window: 16, hold: 50 * millisecond, acks: 100,
		subs: map[int]*subscription{}, terms: map[wire.PartitionID]wire.Term{}, owners: map[wire.PartitionID]ring.NodeID{},
	}
	c.h = w.addClient(name, c)
	c.mint()
	return c
}

func (c *consumer) mint() {
	c.lives++
	c.id = wire.ConsumerID(c.w.luck(luckClient, c.h.key, 0, uint64(c.lives)))
	c.w.names.consumers[c.id] = c.h.name
}

func (c *consumer) coin() uint64 {
	c.coins++
	return c.w.luck(luckClient, c.h.key, 1, c.coins)
}

// start connects to all home replicas of the queue and to those that own its partitions,
// and keeps connected.
func (c *consumer) start() {
	c.w.tellClient(history.ClientUp, c.h.name)
	c.keepConnected()
}

func (c *consumer) keepConnected() {
	c.connect()
	c.h.later(250*millisecond, c.keepConnected)
}

func (c *consumer) machine() *host { return c.h }

// settle lets it catch up.
func (c *consumer) settle() {
	c.hold, c.acks, c.window = min(c.hold, 20*millisecond), 100, max(c.window, 16)
	c.storms, c.poisons, c.settled = 0, nil, true
}

func (c *consumer) slow(by, d int64) {
	c.hold += by
	c.w.after(d, func() { c.hold = max(c.hold-by, min(c.hold, 20*millisecond)) })
}

func (c *consumer) nackAll(d int64) {
	c.storms++
	c.w.after(d, func() { c.storms = max(0, c.storms-1) })
}

func (c *consumer) poison(oneIn int, d int64) {
	c.poisons = append(c.poisons, oneIn)
	c.w.after(d, func() { c.poisons = remove(c.poisons, oneIn) })
}

// fatal tells whether a message kills who works on it.
func (c *consumer) fatal(m msgKey) bool {
	for _, oneIn := range c.poisons {
		if mix(uint64(m.producer), m.sequence)%uint64(oneIn) == 0 {
			return true
		}
	}
	return false
}

// kill is the end of its process; it comes back as another one.
func (c *consumer) kill(back int64) {
	if !c.closes {
		c.crash(back)
	}
}

func (c *consumer) connect() {
	if c.closes {
		return
	}
	if c.relay != nil {
		c.h.dial(c.relay)
		return
	}
	for _, p := range c.q.partitions() {
		for _, h := range c.w.homes(c.q, p) {
			c.h.dial(h)
		}
		if h := c.w.node(c.owners[p]); h != nil { // a home replica of an older ring, for as long as that is open
			c.h.dial(h)
		}
	}
}

func (c *consumer) opened(cn *conn) {
	if c.closes {
		return
	}
	c.last++
	s := &subscription{conn: cn, sub: c.last}
	c.subs[cn.to.index] = s
	c.demand(s)
	c.resume(cn.to)
}

func (c *consumer) demand(s *subscription) {
	credit := s.released + c.window
	if credit == s.told || c.subs[s.conn.to.index] != s {
		return
	}
	s.told = credit
	s.conn.oneWay(&wire.Subscribe{
		Sub: s.sub, Consumer: c.id, Queue: c.q.entry.Name, Group: c.group, Credit: credit, Catalog: c.q.catalog, Relay: c.relay != nil, Generation: c.q.entry.Generation,
	})
}

// resume tells a node what the consumer holds.
func (c *consumer) resume(to *host) {
	s := c.subs[to.index]
	if s == nil {
		return
	}
	m := &wire.Resume{Sub: s.sub, Consumer: c.id, Queue: c.q.entry.Name, Group: c.group}
	for _, h := range c.held {
		if !h.over && h.until > c.w.now {
			m.Held = append(m.Held, wire.Held{
				Receipt: h.receipt, Runs: wire.Runs{wire.Span(h.offset, h.offset+1)}, Left: uint32((h.until - c.w.now) / millisecond),
			})
		}
	}
	if len(m.Held) > 0 {
		s.conn.oneWay(m)
	}
}

func (c *consumer) closed(to *host) {
	s := c.subs[to.index]
	delete(c.subs, to.index)
	if s == nil || c.closes {
		return
	}
	for _, i := range c.subscribed() { // the others may own it next
		c.resume(c.w.hosts[i])
	}
}

func (c *consumer) subscribed() []int {
	var out []int
	for i := range c.subs {
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

func (c *consumer) pushed(cn *conn, msg wire.Message) {
	if c.closes {
		return
	}
	switch m := msg.(type) {
	case *wire.Owner:
		if c.terms[m.Partition].Less(m.Term) {
			c.terms[m.Partition] = m.Term
			c.owners[m.Partition] = m.Node
		}
		if m.Grace > 0 && (cn.to.id == m.Node || c.relay != nil) {
			c.resume(cn.to)
		}
	case *wire.Deliver:
		s := c.subs[cn.to.index]
		if s == nil || s.conn != cn || s.sub != m.Sub {
			return
		}
		for i := range m.Deliveries {
			c.take(s, &m.Deliveries[i])
		}
		c.demand(s)
	}
}

func (c *consumer) take(s *subscription, d *wire.Delivery) {
	r := &d.Receipt
	stale := r.Term.Less(c.terms[r.Partition])
	if !stale {
		c.terms[r.Partition] = r.Term
		c.owners[r.Partition] = r.Term.Node
	}
	p := d.Records
	for o := r.Run.From; o < r.Run.To; o++ {
		rec, rest, err := wire.DecodeRecord(p)
		if err != nil {
			c.w.fail("P9", msgKey{r.Producer, r.Sequence}, "%s got %s with bad records: %v", c.h.name, c.w.names.receipt(r), err)
			return
		}
		p = rest
		h := &holding{
			key: msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}, receipt: *r, offset: o, sub: s,
			until: c.w.now + int64(d.Lease)*millisecond, body: string(rec.Body),
		}
		c.w.check.got(c, h, stale)
		if c.w.telling() {
			c.w.tellDelivered(c.heldBy(h), &rec, d.Cause, (h.until-c.w.now)*95/100, stale)
		}
		if stale {
			c.w.reach("stale-dropped")
			s.released++
			continue
		}
		for _, old := range slices.Clone(c.held) { // a newer delivery of the same message replaces the older
			if old.key == h.key && !old.over && !old.acking {
				c.end(old)
			}
		}
		c.held = append(c.held, h)
		if !c.manual {
			c.work(h)
		}
	}
	if len(p) > 0 {
		c.w.fail("P9", msgKey{r.Producer, r.Sequence}, "%s got %s with %d bytes too many", c.h.name, c.w.names.receipt(r), len(p))
	}
}

// work decides what becomes of a message.
func (c *consumer) work(h *holding) {
	d := exponential(c.coin(), c.hold)
	act := int(c.coin() % 100)
	c.h.later(h.until-c.w.now, func() {
		if !h.over && !h.acking {
			c.tellSettled(history.LeaseOver, h, 0)
			c.end(h)
		}
	})
	c.h.later(d, func() {
		if h.over {
			return
		}
		switch {
		case c.fatal(h.key):
			c.crash(between(c.coin(), 10*millisecond, second))
		case c.storms > 0:
			c.settleOne(h, wire.SettleNack)
		case act < c.acks:
			c.settleOne(h, wire.SettleAck)
		case act < c.acks+c.nacks:
			c.settleOne(h, wire.SettleNack)
		case act%3 == 0:
			c.settleOne(h, wire.SettleRelease)
		case act%3 == 1:
			c.settleOne(h, wire.SettleExtend)
			c.h.later(exponential(c.coin(), c.hold), func() {
				if !h.over {
					c.settleOne(h, wire.SettleAck)
				}
			})
		}
	})
}

// end is the end of a holding: settled, or its lease is over.
func (c *consumer) end(h *holding) {
	if h.over {
		return
	}
	h.over = true
	c.w.check.ended(c, h)
	h.sub.released++
	c.demand(h.sub)
	c.held = slices.DeleteFunc(c.held, func(x *holding) bool { return x == h })
}

func (c *consumer) heldBy(h *holding) heldBy {
	return heldBy{who: c.h.name, queue: c.q.entry.Name, group: c.group, message: messageOf(h.body), receipt: &h.receipt, offset: h.offset, relayed: c.relay != nil}
}

func (c *consumer) tellSettled(kind history.Kind, h *holding, lease int64) {
	if c.w.telling() {
		c.w.tellSettled(kind, c.heldBy(h), lease, "")
	}
}

func (c *consumer) settleOne(h *holding, kind wire.Settling) {
	switch kind {
	case wire.SettleAck:
		c.tellSettled(history.Acking, h, 0)
	case wire.SettleNack:
		c.tellSettled(history.Nacked, h, 0)
	case wire.SettleRelease:
		c.tellSettled(history.Released, h, 0)
	}
	if kind == wire.SettleAck {
		h.acking = true
		c.w.check.acking[groupKey{h.receipt.Group, h.key}] = true
	}
	if kind == wire.SettleNack || kind == wire.SettleRelease {
		c.w.check.ended(c, h) // it does not work on it any more
	}
	c.ask(h, kind, 0)
}

// ask settles at the owner as far as it is known, otherwise at any node, until it is done.
func (c *consumer) ask(h *holding, kind wire.Settling, try int) {
	life := c.h.life
	answered := false
	again := func() {
		if answered {
			return
		}
		answered = true
		c.h.later(between(c.coin(), 20*millisecond, 300*millisecond), func() {
			if !h.over && (kind == wire.SettleAck || c.w.now < h.until) {
				c.ask(h, kind, try+1)
			}
		})
	}
	s := c.subs[-1]
	if o := c.w.node(c.owners[h.receipt.Partition]); o != nil && try%3 != 2 {
		s = c.subs[o.index]
	}
	if s == nil {
		if ids := c.subscribed(); len(ids) > 0 {
			s = c.subs[ids[c.coin()%uint64(len(ids))]]
		}
	}
	if s == nil {
		again()
		return
	}
	item := wire.SettleItem{Receipt: h.receipt, Runs: wire.Runs{wire.Span(h.offset, h.offset+1)}, Kind: kind}
	if kind == wire.SettleNack {
		item.Delay = c.nackWait
	}
	asked := c.w.now
	c.h.later(second, again)
	s.conn.call(&wire.Settle{Queue: c.q.entry.Name, Catalog: c.q.catalog, Items: []wire.SettleItem{item}}, func(m wire.Message) {
		if c.h.life != life || h.over {
			return
		}
		code := wire.CodeTimeout
		switch m := m.(type) {
		case *wire.Settled:
			if len(m.Codes) != 1 {
				c.w.fail("P10", h.key, "%s answers a settle of one item with %d codes", s.conn.to.name, len(m.Codes))
				return
			}
			code = m.Codes[0]
		case *wire.Error:
			code = m.Code
		}
		switch code {
		case 0:
			answered = true
			if kind == wire.SettleExtend {
				h.until = max(h.until, asked+int64(c.q.lowest)*millisecond)
				c.w.check.extended(c, h)
				c.tellSettled(history.Extended, h, (h.until-c.w.now)*95/100)
				return
			}
			if kind == wire.SettleAck {
				c.tellSettled(history.Acked, h, 0)
			}
			c.end(h)
		case wire.CodeNotOwner, wire.CodeTimeout, wire.CodeNotReady, wire.CodeQuorum, wire.CodeOverloaded, wire.CodeNoQueue:
			again()
		case wire.CodeStaleReceipt:
			if kind == wire.SettleAck {
				c.w.fail("P10", h.key, "%s says %s to an ack of %s", s.conn.to.name, codeName(code), c.w.names.receipt(&h.receipt))
				return
			}
			answered = true
			c.end(h)
		default:
			c.w.fail("P10", h.key, "%s says %s to %s of %s", s.conn.to.name, codeName(code), settlings[kind], c.w.names.receipt(&h.receipt))
		}
	})
}

// crash is the end of the consumer's process; it comes back as another one.
func (c *consumer) crash(back int64) {
	w := c.h.w
	if w.tracing {
		w.tracef("%s crash", c.h.name)
	}
	w.tellClient(history.ClientDown, c.h.name)
	c.closes = true
	w.check.consumerGone(c)
	c.h.end()
	c.held, c.subs = nil, map[int]*subscription{}
	c.terms, c.owners = map[wire.PartitionID]wire.Term{}, map[wire.PartitionID]ring.NodeID{}
	if back < 0 {
		return
	}
	c.h.later(back, func() {
		c.closes = false
		c.mint()
		c.start()
	})
}

// end ends the process of a client. What it was doing is void.
func (h *host) end() {
	h.life++
	h.paused, h.pausedTo, h.inbox = false, 0, nil
	for _, c := range h.connections() {
		c.calls = map[uint64]func(wire.Message){}
		h.w.lose(c, h)
	}
	h.out, h.dialing = map[int]*conn{}, map[int]bool{}
}
