package sim

import (
	"fmt"

	"github.com/meshq/meshq/transport/wire"
)

// libraryWatch sees the requests of a library and their answers, as they are on the
// wire, and tells the checker what a raw client tells it of itself.
type libraryWatch struct {
	l *library
	// stored is called with each message before it is first sent to any node.
	stored func(number uint64, key msgKey)
	leases map[leaseKey]lease
	told   map[toldKey]bool         // to a node: that it is held
	ids    map[wire.PartitionID]int // how many producers the library was there
}

// leaseKey names a delivery.
type leaseKey struct {
	partition wire.PartitionID
	term      wire.Term
	serial    uint64
}

// lease is when a delivery ends, in the world's time: by the clock of the client, and at the
// earliest by that of any owner.
type lease struct{ ends, surely int64 }

// lease is one of so many milliseconds that began at a time.
func (x *libraryWatch) lease(from int64, ms uint32) lease {
	d := int64(ms) * millisecond
	return lease{from + int64(float64(d)/(1+float64(x.l.h.ppm)/1e6)) + 1, from + d*95/100}
}

func leaseOf(r *wire.Receipt) leaseKey { return leaseKey{r.Partition, r.Term, r.Serial} }

// begin forgets what an earlier process had.
func (x *libraryWatch) begin() {
	x.leases, x.ids, x.told = map[leaseKey]lease{}, map[wire.PartitionID]int{}, map[toldKey]bool{}
}

// delivered notes until when the client counts on a delivery, from when it came.
func (x *libraryWatch) delivered(m *wire.Deliver) {
	for i := range m.Deliveries {
		d := &m.Deliveries[i]
		x.leases[leaseOf(&d.Receipt)] = x.lease(x.l.w.now, d.Lease)
	}
}

// left is for how long a delivery surely runs yet.
func (x *libraryWatch) left(r *wire.Receipt) int64 { return x.leases[leaseOf(r)].surely - x.l.w.now }

// consumer is the client as the checker knows it.
func (x *libraryWatch) consumer() *consumer { return &consumer{w: x.l.w, h: x.l.h} }

// asking is called with a request that is about to be sent; what it returns, with the
// answer.
func (x *libraryWatch) asking(msg wire.Message) func(from *host, answer wire.Message) {
	switch m := msg.(type) {
	case *wire.Enqueue:
		x.enqueueing(m)
		return func(from *host, answer wire.Message) { x.enqueued(from, m, answer) }
	case *wire.Settle:
		x.settling(m)
		asked := x.l.w.now
		return func(from *host, answer wire.Message) { x.settled(from, m, asked, answer) }
	}
	return func(*host, wire.Message) {}
}

// enqueueing notes which messages are in a batch: the library numbers them itself.
func (x *libraryWatch) enqueueing(m *wire.Enqueue) {
	w := x.l.w
	if w.check.messages[msgKey{m.Producer, m.Sequence}] != nil {
		return // tried again
	}
	if w.names.producers[m.Producer] == "" { // it takes a new one after a batch that it gave up
		name := x.l.name + "/" + w.names.partition(m.Partition)
		x.ids[m.Partition]++
		if n := x.ids[m.Partition]; n > 1 {
			name += fmt.Sprintf(".%d", n)
		}
		w.names.producers[m.Producer] = name
	}
	q := w.check.queueOf(m.Partition)
	if q == nil {
		w.fail("P10", keyOf(m), "the library of %s sends to %s, which is no partition", x.l.name, m.Partition)
		return
	}
	rest := m.Records
	for i := range uint64(m.Count) {
		r, tail, err := wire.DecodeRecord(rest)
		if err != nil {
			w.fail("P9", keyOf(m), "the library of %s sends %s with bad records: %v", x.l.name, w.describe(m), err)
			return
		}
		rest = tail
		key := msgKey{m.Producer, m.Sequence + i}
		w.check.sent(q, m.Partition, key, string(r.Body))
		if x.stored != nil {
			x.stored(messageOf(string(r.Body)).Number, key)
		}
	}
}

func (x *libraryWatch) enqueued(from *host, m *wire.Enqueue, answer wire.Message) {
	w := x.l.w
	switch a := answer.(type) {
	case *wire.Enqueued:
	case *wire.Error:
		switch a.Code {
		case wire.CodeOverloaded, wire.CodeDiskFull, wire.CodeQuorum, wire.CodeTimeout, wire.CodeNotReady, wire.CodeNotOwner, wire.CodeLaneConflict, wire.CodeNoQueue:
		default:
			w.fail("P10", keyOf(m), "%s refuses %s with: %s", from.name, w.describe(m), a.Error())
		}
	default:
		w.fail("P10", keyOf(m), "%s answers %s with %T", from.name, w.describe(m), answer)
	}
}

// each calls do for each message of an item.
func (x *libraryWatch) each(it *wire.SettleItem, do func(h *holding)) {
	for _, run := range it.Runs {
		for o := run.From; o < run.To; o++ {
			do(&holding{key: msgKey{it.Receipt.Producer, it.Receipt.Sequence + uint64(o-it.Receipt.Run.From)}, receipt: it.Receipt, offset: o})
		}
	}
}

func (x *libraryWatch) settling(m *wire.Settle) {
	for i := range m.Items {
		it := &m.Items[i]
		x.each(it, func(h *holding) {
			switch it.Kind {
			case wire.SettleAck:
				x.l.w.check.acking[groupKey{it.Receipt.Group, h.key}] = true
			case wire.SettleNack, wire.SettleRelease:
				x.l.w.check.ended(x.consumer(), h)
			}
		})
	}
}

func (x *libraryWatch) settled(from *host, m *wire.Settle, asked int64, answer wire.Message) {
	w := x.l.w
	s, ok := answer.(*wire.Settled)
	if e, is := answer.(*wire.Error); is {
		s = &wire.Settled{}
		for range m.Items {
			s.Codes = append(s.Codes, e.Code)
		}
	} else if !ok || len(s.Codes) != len(m.Items) {
		w.fail("P10", keyOf(m), "%s answers a settle of %d items with %s", from.name, len(m.Items), w.describe(answer))
		return
	}
	for i := range m.Items {
		it := &m.Items[i]
		switch s.Codes[i] {
		case 0:
			k := leaseOf(&it.Receipt)
			if it.Kind == wire.SettleExtend {
				if w.now >= x.leases[k].ends {
					continue // too late: the library took the lease for over
				}
				longer := x.lease(asked, it.Delay)
				x.leases[k] = lease{max(x.leases[k].ends, longer.ends), max(x.leases[k].surely, longer.surely)}
			}
			x.each(it, func(h *holding) {
				switch it.Kind {
				case wire.SettleAck:
					w.check.ended(x.consumer(), h)
				case wire.SettleExtend:
					h.until = asked + int64(it.Delay)*millisecond
					w.check.extended(x.consumer(), h)
				}
			})
		case wire.CodeNotOwner, wire.CodeTimeout, wire.CodeNotReady, wire.CodeQuorum, wire.CodeOverloaded, wire.CodeNoQueue:
		case wire.CodeStaleReceipt:
			if it.Kind == wire.SettleAck {
				w.fail("P10", keyOf(m), "%s says %s to an ack of %s", from.name, codeName(s.Codes[i]), w.names.receipt(&it.Receipt))
			}
		default:
			w.fail("P10", keyOf(m), "%s says %s to %s of %s", from.name, codeName(s.Codes[i]), settlings[it.Kind], w.names.receipt(&it.Receipt))
		}
	}
}

// stored tells whether any disk has a message, or had it.
func (k *checker) stored(m msgKey) bool { return k.synced[m] != 0 }

// toldKey is a delivery of which a node was told that it is held.
type toldKey struct {
	conn *conn
	of   leaseKey
}

// resuming notes what a node is told.
func (x *libraryWatch) resuming(c *conn, m *wire.Resume) {
	for i := range m.Held {
		x.told[toldKey{c, leaseOf(&m.Held[i].Receipt)}] = true
	}
}

// owner checks what P4 rests on: a new owner that says so is told at once what the
// program has in its hands, on that connection or by way of a server that relays.
func (x *libraryWatch) owner(c *conn, o *wire.Owner) {
	p, ok := x.l.program.(*libConsumer)
	if !ok {
		return
	}
	var untold *taken // the first, by its serial
	for _, t := range p.hands {
		r := t.from.receipt
		if r.Partition == o.Partition && r.Term.Less(o.Term) && x.left(r) > 0 && !x.hasTold(c, leaseOf(r)) &&
			(untold == nil || r.Serial < untold.from.receipt.Serial) {
			untold = t
		}
	}
	if untold != nil {
		x.l.w.fail("P4", untold.key, "%s has %s and does not tell its new owner %s", x.l.name, x.l.w.names.receipt(untold.from.receipt), c.to.name)
	}
}

// hasTold tells whether a node was told of a delivery on this connection, or may have
// been on another one that holds, where servers pass on what they are told.
func (x *libraryWatch) hasTold(c *conn, of leaseKey) bool {
	if x.told[toldKey{c, of}] || !x.l.via() {
		return x.told[toldKey{c, of}]
	}
	for _, k := range x.l.links { // any or none: the order does not matter
		if k.conn != nil && x.told[toldKey{k.conn, of}] {
			return true
		}
	}
	return false
}
