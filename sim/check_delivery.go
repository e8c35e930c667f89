package sim

import (
	"cmp"
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// Deliveries (P3, P4, P5).

// pushing is called when a node hands a one-way message to a connection that it
// did not open, before the deadline of the message.
func (k *checker) pushing(h *host, c *conn, msg wire.Message) {
	switch m := msg.(type) {
	case *wire.Owner:
		t := termKey{m.Partition, m.Term}
		if _, seen := k.handover[t]; !seen && m.Node == h.id {
			k.handover[t] = m.Grace == 0
		}
	case *wire.Deliver:
		for i := range m.Deliveries {
			d := &m.Deliveries[i]
			for o := d.Receipt.Run.From; o < d.Receipt.Run.To; o++ {
				k.delivering(h, c, m.Sub, d, o)
				if k.w.failure != nil {
					return
				}
			}
		}
	}
}

// dropping is called when a node does not write a delivery because its deadline has
// passed. For the order it was handed out, like one that is lost on its way.
func (k *checker) dropping(h *host, c *conn, msg wire.Message) {
	k.handedOut(h, c, msg, func(*wire.Receipt, msgKey) bool { return true })
}

// cutShort is called with what a node did not get to write that ended in the middle of a step.
// Another consumer may have later messages of that step: those before them were handed out,
// too, for the order.
func (k *checker) cutShort(h *host, c *conn, msg wire.Message) {
	k.handedOut(h, c, msg, func(r *wire.Receipt, m msgKey) bool {
		return k.highest[firstKey{r.Group, m.producer, r.Partition}] > m.sequence+1
	})
}

// handedOut counts for the order what an owner handed out and did not write, where which says so.
func (k *checker) handedOut(h *host, c *conn, msg wire.Message, which func(*wire.Receipt, msgKey) bool) {
	d, ok := msg.(*wire.Deliver)
	if !ok {
		return
	}
	for i := range d.Deliveries {
		r := &d.Deliveries[i].Receipt
		for o := r.Run.From; o < r.Run.To && r.Term.Node == h.id; o++ {
			if m := (msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}); which(r, m) {
				k.inOrder(h, c, d.Sub, r, m)
			}
		}
	}
}

// inOrder checks P5: what a producer sent before was handed out before.
func (k *checker) inOrder(h *host, c *conn, sub uint64, r *wire.Receipt, m msgKey) {
	g := groupKey{r.Group, m}
	if _, again := k.first[g]; again {
		return
	}
	k.first[g] = firstDelivery{k.w.now, k.w.steps, c, sub}
	f := firstKey{r.Group, m.producer, r.Partition}
	if last := k.highest[f]; last > m.sequence+1 {
		later := msgKey{m.producer, last - 1}
		if x := k.first[groupKey{r.Group, later}]; (x.step != k.w.steps || x.to == c && x.sub == sub) && x.at-k.messages[later].at < 29*second {
			k.w.fail("P5", m, "%s first delivers %s to %s, after %s was first delivered %d ms ago", h.name, k.about(m), k.w.names.group(r.Group), k.about(later), (k.w.now-x.at)/millisecond)
			return
		}
	}
	k.highest[f] = max(k.highest[f], m.sequence+1)
}

func (k *checker) delivering(h *host, c *conn, sub uint64, d *wire.Delivery, o wire.Offset) {
	r := &d.Receipt
	m := msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}
	g := groupKey{r.Group, m}
	now := k.w.now
	relayed := r.Term.Node != h.id
	if !relayed {
		k.stats.Deliveries++
		if d.Cause != wire.CauseNone {
			k.stats.Again++
		}
		s := k.messages[m]
		if s == nil || s.partition != r.Partition {
			k.w.fail("P9", m, "%s delivers %s, which nobody sent to it", h.name, k.w.names.receipt(r))
			return
		}
		if s.refused {
			k.w.fail("P10", m, "%s delivers %s, and its producer was told that it is not stored", h.name, k.about(m))
			return
		}
		if at, ok := k.acked[g]; ok {
			k.w.fail("P3", m, "%s hands it out again, %d ms after its ack was confirmed: %s", h.name, (now-at)/millisecond, k.w.names.receipt(r))
			return
		}
		if k.inOrder(h, c, sub, r, m); k.w.failure != nil {
			return
		}
		if k.mayHandOut(h, r, m); k.w.failure != nil {
			return
		}
		k.alone(h, c, r, g)
	}
	if c == nil || c.dead && !c.up[0] {
		return
	}
	n := &handout{conn: c, owner: h, term: r.Term, attempt: r.Attempt, serial: r.Serial, at: now, until: now + int64(d.Lease)*millisecond*95/100, resumed: map[int]resumed{}}
	if c.from.client != nil {
		n.client = c.from
	}
	if relayed { // the lease runs from when the owner gave it to the relay
		for _, x := range k.handed[g] {
			if x.client == nil && x.term == r.Term && x.serial == r.Serial {
				n.via, n.until = x.conn, x.until
			}
		}
		if n.via == nil {
			return
		}
	}
	k.handed[g] = append(k.prune(k.handed[g]), n)
}

func (k *checker) prune(l []*handout) []*handout {
	return slices.DeleteFunc(l, func(x *handout) bool { return x.until <= k.w.now })
}

// alone checks P4: no other consumer has the message, but for a named cause.
func (k *checker) alone(h *host, to *conn, r *wire.Receipt, g groupKey) {
	list := k.prune(k.handed[g])
	k.handed[g] = list
	defer func() { // who had it before has lost it, for a cause that was looked at here
		for _, x := range list {
			x.superseded = true
		}
	}()
	var top *handout
	for _, x := range list {
		if x.superseded || x.client == nil || x.conn.from.life != x.conn.life[0] {
			continue
		}
		if top == nil || cmp.Or(top.term.Compare(x.term), cmp.Compare(top.serial, x.serial)) <= 0 {
			top = x
		}
	}
	if top == nil || to != nil && top.client == to.from {
		return
	}
	same := top.term == r.Term && !top.conn.dead && top.conn.up[0] && top.conn.up[1] && (top.via == nil || !top.via.dead)
	back := false
	if x := top.resumed[h.index]; x.conn != nil && k.w.now < x.until && (x.term == wire.Term{} || x.term == r.Term) && x.number == k.resumes[resumeKey{h.index, top.client.index, r.Partition}] {
		back = !x.conn.dead && x.conn.up[0] && x.conn.up[1] && h.in[x.conn.id] == x.conn
	}
	kept := k.keptByHandover(h, top, r)
	if !same && !back && !kept {
		return
	}
	how := "in the same term, and its connection holds"
	switch {
	case back:
		how = "and it resumed it here"
	case kept:
		how = "and the owner before handed over what was in flight"
	}
	k.w.fail("P4", g.key, "%s hands out %s (%s), but %s has it (term %s attempt %d, %d ms ago), %s", h.name, k.about(g.key), k.w.names.receipt(r),
		top.client.name, k.w.names.term(top.term), top.attempt, (k.w.now-top.at)/millisecond, how)
}

// got is called when a consumer receives a message; stale when it drops it because
// it has heard of a newer owner.
func (k *checker) got(c *consumer, h *holding, stale bool) {
	if s := k.messages[h.key]; s == nil || s.body != h.body {
		k.w.fail("P9", h.key, "%s got %q as %s", c.h.name, h.body, k.about(h.key))
		return
	} else if c.q != nil && s.q != c.q {
		k.w.fail("P11", h.key, "%s takes from generation %d of %s and got %s, which was sent to generation %d", c.h.name, c.q.entry.Generation, c.q.entry.Name, k.about(h.key), s.q.entry.Generation)
		return
	}
	if stale {
		k.stats.Dropped++
		k.remove(c, h)
	}
}

// ended is called when a consumer is through with a message, or gives it back.
func (k *checker) ended(c *consumer, h *holding) { k.remove(c, h) }

func (k *checker) remove(c *consumer, h *holding) {
	g := groupKey{h.receipt.Group, h.key}
	k.handed[g] = slices.DeleteFunc(k.handed[g], func(x *handout) bool {
		return x.client == c.h && x.term == h.receipt.Term && x.serial == h.receipt.Serial
	})
}

func (k *checker) extended(c *consumer, h *holding) {
	for _, x := range k.handed[groupKey{h.receipt.Group, h.key}] {
		if x.client == c.h && x.term == h.receipt.Term && x.serial == h.receipt.Serial {
			x.until = max(x.until, k.w.now+(h.until-k.w.now)*95/100)
		}
	}
}

func (k *checker) consumerGone(c *consumer) {
	for g, l := range k.handed {
		k.handed[g] = slices.DeleteFunc(l, func(x *handout) bool { return x.client == c.h })
	}
}

// requested is called before a node takes a message of a connection that it did not open.
func (k *checker) requested(h *host, id core.ConnID, msg wire.Message) {
	m, ok := msg.(*wire.Resume)
	if !ok || h.in[id] == nil {
		return
	}
	c := h.in[id]
	told := map[wire.PartitionID]bool{}
	owned := map[wire.PartitionID]wire.Term{}
	for _, o := range h.core.Ownerships() {
		owned[o.Partition] = o.Term
	}
	for i := range m.Held {
		r := &m.Held[i].Receipt
		at := resumeKey{h.index, c.from.index, r.Partition}
		if !told[r.Partition] { // it is all that the consumer holds of the partition
			told[r.Partition] = true
			k.resumes[at]++
		}
		for _, run := range m.Held[i].Runs {
			for o := run.From; o < run.To; o++ {
				for _, x := range k.handed[groupKey{r.Group, msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}}] {
					if x.client == c.from && x.term == r.Term && x.serial == r.Serial {
						x.resumed[h.index] = resumed{c, k.resumes[at], k.w.now + int64(m.Held[i].Left)*millisecond*95/100, owned[r.Partition]}
					}
				}
			}
		}
	}
}
