package sim

import "github.com/meshq/meshq/transport/wire"

// keptByHandover tells whether an owner that began without a reclaim grace must know that a
// consumer has a message: it got it from the owner before, over a connection that holds, so
// it is in the table that was handed over (P4). An owner that uses the table of one who
// was not the last breaks this; that consumers resume in time can hide it.
func (k *checker) keptByHandover(h *host, x *handout, r *wire.Receipt) bool {
	if x.via != nil || x.conn.dead || !x.conn.up[0] || !x.conn.up[1] {
		return false
	}
	if v, ok := x.client.client.(interface{ via() bool }); ok && v.via() {
		return false // the new owner sees it through another node, whose connections are its own
	}
	if !connectedSince(x.client, h, x.at) {
		return false // the new owner takes it for gone when it notices
	}
	before := k.terms[r.Partition]
	if before == r.Term {
		before = k.before[r.Partition]
	}
	if x.term != before || before == r.Term {
		return false
	}
	for _, o := range h.core.Ownerships() {
		if o.Partition == r.Partition && o.Term == r.Term {
			return o.Fresh
		}
	}
	return false
}

// connectedSince tells whether a client has had a whole connection to a node since a time,
// and no broken one that the node does not know of yet.
func connectedSince(client, to *host, since int64) bool {
	whole := false
	for _, c := range to.in { // any: the order does not matter
		if c.from != client {
			continue
		}
		if c.dead || !c.up[0] || !c.up[1] {
			return false
		}
		whole = whole || c.at <= since
	}
	return whole
}
