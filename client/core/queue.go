package core

import (
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// queue is what the client knows of a queue that it uses.
type queue struct {
	name       string
	entry      *wire.QueueEntry // nil: not described yet
	partitions []*partition
	asking     bool   // DescribeQueue is under way
	refreshing bool   // a timer for the next one is set
	waiting    []Item // sends that wait for the description
	expires    Instant
	turn       int           // partition that messages without a key go to
	homes      []ring.NodeID // of all partitions, each once
	consumers  []*consumer
	opening    []*consumer // wait for the description
	early      []arrival   // deliveries of partitions that are not known yet
}

// generation is that of the entry; 0: it is not described yet.
func (q *queue) generation() uint64 {
	if q.entry == nil {
		return 0
	}
	return q.entry.Generation
}

// partition is one partition, and this client's producer for it.
type partition struct {
	id    wire.PartitionID
	queue *queue
	index uint32
	homes []ring.NodeID // home replicas, in order of preference
	list  []ring.NodeID // the whole preference list
	owner ring.NodeID   // who is thought to own it; 0: not known
	term  wire.Term     // highest that was seen; deliveries below it are stale

	producer    wire.ProducerID
	sequence    uint64 // of the next message
	afterLane   wire.Lane
	afterOffset wire.Offset
	pending     line    // for the next batches
	batch       *batch  // the one under way
	wakeAt      Instant // of the timer for the batch; 0: none
	expires     Instant // of the timer for messages whose time is over; 0: none
}

// busy tells whether messages wait for an answer.
func (q *queue) busy() bool {
	for _, p := range q.partitions {
		if p.batch != nil || p.pending.len > 0 {
			return true
		}
	}
	return len(q.waiting) > 0
}

func (c *Core) queue(name string) *queue {
	q := c.queues[name]
	if q == nil {
		q = &queue{name: name}
		c.queues[name] = q
		c.queueOrder = append(c.queueOrder, q)
	}
	return q
}

// describe asks for the catalog's entry of a queue, once at a time.
func (c *Core) describe(now Instant, q *queue) {
	if q.asking {
		return
	}
	q.asking = true
	c.ask(now, &ask{
		msg: &wire.DescribeQueue{Name: q.name, Catalog: c.catalog}, until: Never,
		done: func(now Instant, msg wire.Message, err error) {
			q.asking = false
			if info, ok := msg.(*wire.QueueInfo); ok && info.Entry.Live() {
				c.described(now, q, &info.Entry)
				return
			}
			if err == nil {
				err = wire.ErrNoQueue
			}
			c.failQueue(q, err)
			q.entry, q.early = nil, nil
			for _, p := range q.partitions {
				delete(c.partitions, p.id)
			}
			q.partitions = nil
			for _, s := range append(slices.Clone(q.opening), q.consumers...) {
				s.fail(c, now, err)
			}
			q.opening = nil
		},
	})
}

// described takes in the entry. Another generation is another queue: what was on its
// way to the old one is gone with it.
func (c *Core) described(now Instant, q *queue, entry *wire.QueueEntry) {
	if q.entry != nil && q.entry.Generation != entry.Generation {
		waiting := q.waiting
		q.waiting = nil
		c.failQueue(q, wire.ErrNoQueue)
		q.waiting = waiting
		for _, p := range q.partitions {
			delete(c.partitions, p.id)
		}
		q.partitions = nil
	}
	q.entry = entry
	for i := uint32(len(q.partitions)); i < entry.Settings.Partitions; i++ {
		p := &partition{id: entry.Partition(i), queue: q, index: i, producer: wire.ProducerID(c.rand())}
		q.partitions = append(q.partitions, p)
		c.partitions[p.id] = p
	}
	c.budget.under = len(c.partitions)
	c.place(q)
	if !q.refreshing {
		q.refreshing = true
		c.at(now.Add(refreshQueue), func(now Instant) {
			q.refreshing = false
			if q.entry != nil {
				c.describe(now, q)
			}
		})
	}
	if !c.config.Via {
		for _, node := range q.homes { // so that the first message finds them connected
			if l := c.linkTo(node); l != nil && l.state == linkIdle {
				c.want(now, l)
			}
		}
	}
	c.takeEarly(now, q)
	waiting := q.waiting
	q.waiting = nil
	c.sendAll(now, waiting)
	opening := q.opening
	q.opening = nil
	for _, s := range opening {
		c.opened(now, s)
	}
	for _, s := range slices.Clone(q.consumers) {
		if !hasGroup(entry, s.group) {
			s.fail(c, now, wire.Errorf(wire.ErrNoGroup, "no such group: %s", s.group))
			continue
		}
		c.subscribe(now, s)
	}
}

func hasGroup(entry *wire.QueueEntry, name string) bool {
	return slices.ContainsFunc(entry.Groups, func(g wire.GroupEntry) bool { return g.Name == name })
}

// place computes where the partitions of a queue are in the present ring.
func (c *Core) place(q *queue) {
	if c.ring == nil || q.entry == nil {
		return
	}
	q.homes = nil
	for _, p := range q.partitions {
		p.list = c.ring.Preference(nil, uint64(p.id), 0)
		p.homes = p.list[:min(len(p.list), int(q.entry.Settings.Replicas))]
		if p.owner != 0 && !slices.Contains(p.list, p.owner) {
			p.owner = 0
		}
		for _, node := range p.homes {
			if !slices.Contains(q.homes, node) {
				q.homes = append(q.homes, node)
			}
		}
	}
	for _, s := range q.consumers {
		s.complete = false
	}
}

// forKey is the partition of a message with a key.
func (q *queue) forKey(key string) *partition {
	return q.partitions[xxhash.Sum64String(key)%uint64(len(q.partitions))]
}

// next is the partition of a message without a key: an idle one, or else the one whose
// turn it is. The turn passes on when a batch begins, so that batches are big.
func (q *queue) next() *partition {
	p := q.partitions[q.turn%len(q.partitions)]
	if p.batch == nil {
		return p
	}
	for i := 1; i < len(q.partitions); i++ {
		at := (q.turn + i) % len(q.partitions)
		if q.partitions[at].batch == nil {
			q.turn = at
			return q.partitions[at]
		}
	}
	return p
}

// ownerPushed takes in who owns a partition, and tells a new owner what this client
// holds of it (reclaim grace).
func (c *Core) ownerPushed(now Instant, msg *wire.Owner) {
	p := c.partitions[msg.Partition]
	if p == nil || msg.Term.Less(p.term) {
		return
	}
	// A new owner is told what is held before anything is settled there: what it does not
	// know of it refuses. Its grace may be over or not said, if another node tells of it.
	news, other := p.term.Less(msg.Term), p.owner != msg.Node
	p.term, p.owner = msg.Term, msg.Node
	if msg.Grace > 0 || news {
		c.resume(now, p, msg.Node)
	}
	if other {
		for _, s := range p.queue.consumers {
			s.complete = false
			c.subscribe(now, s)
		}
	}
	c.retrySettles(now, p)
	if p.batch != nil {
		c.driveBatch(now, p)
	}
}
