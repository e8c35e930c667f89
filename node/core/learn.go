package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// How a node learns what the others know of the catalog, and when it counts for it.

// waiting is a request of somebody who has seen a newer catalog.
type waiting struct {
	version uint64
	fn      func()
	timer   *timer
}

// catalogWait is how long a request waits for a version of the catalog at most.
const catalogWait = 500 * Millisecond

// whenCatalog runs fn once the catalog has reached version, or cannot reach it in
// time. A queue can be used as soon as its creation is confirmed: who is behind
// fetches first.
func (c *Core) whenCatalog(version uint64, fn func()) { c.whenCatalogBy(version, Never, fn) }

// whenCatalogBy does so for a request that is to be answered by a time.
func (c *Core) whenCatalogBy(version uint64, until Instant, fn func()) {
	if version <= c.catalog.version {
		fn()
		return
	}
	w := &waiting{version: version, fn: fn}
	w.timer = c.timers.add(min(c.now.Mono+catalogWait, until), func() {
		c.behind = slices.DeleteFunc(c.behind, func(x *waiting) bool { return x == w })
		fn()
	})
	c.behind = append(c.behind, w)
	if len(c.behind) == 1 {
		for _, id := range sortedKeys(c.peers) {
			c.fetchCatalog(c.peers[id])
		}
	}
}

// noQueue is the answer to who asks about a queue that is not known here, and knows this
// version: a node that is behind it cannot say that there is no such queue.
func (c *Core) noQueue(name string, version uint64) *wire.Error {
	if version > c.catalog.version {
		return wire.Errorf(wire.ErrNotReady, "node %s has not heard of all queues yet", c.cfg.Self.Name)
	}
	return wire.Errorf(wire.ErrNoQueue, "no such queue: %s", name)
}

// catalogReached runs the requests that waited for a version that is here, and serves the
// consumers that did.
func (c *Core) catalogReached() {
	var ready []*waiting
	c.behind = slices.DeleteFunc(c.behind, func(w *waiting) bool {
		if w.version > c.catalog.version {
			return false
		}
		ready = append(ready, w)
		return true
	})
	for _, w := range ready {
		c.timers.stop(w.timer)
		w.fn()
	}
	for _, id := range sortedKeys(c.parts) { // a consumer may have waited for this version
		if o := c.parts[id].own; o != nil {
			o.pump()
		}
	}
}

// fetchCatalog asks a peer for its whole catalog, one question at a time.
func (c *Core) fetchCatalog(p *peer) {
	if !p.up || p.fetching {
		return
	}
	p.fetching = true
	c.call(p.id, &wire.GetCatalog{}, callTimeout, func(msg wire.Message) {
		p.fetching = false
		if k, ok := msg.(*wire.Catalog); ok {
			c.mergeWhole(p.id, k)
		}
	})
}

// mergeWhole takes all that a peer knows.
func (c *Core) mergeWhole(from ring.NodeID, k *wire.Catalog) {
	c.mergeCatalog(k.Entries, func() {
		if c.catalogLost {
			c.catalogHeard[from] = !k.Partial
			c.checkCatalog()
		}
	})
	c.catalogWhole = true
}

// loseCatalog notes that entries may have been lost; the caller persists what it returns.
// This node counts in no majority that knows the catalog until it is whole again (P12).
func (c *Core) loseCatalog() []wire.Op {
	clear(c.catalogHeard)
	if c.catalogLost {
		return nil
	}
	c.catalogLost = true
	return []wire.Op{put(key(recordPartial), true)}
}

// checkCatalog makes the catalog count again when N - majority + 1 other members have told
// what they know: one of them knows of each confirmed change. When all the others have told
// there is nothing left to learn.
func (c *Core) checkCatalog() {
	if !c.catalogLost || !c.member() {
		return
	}
	others := c.others()
	n, whole, asked := len(others)+1, 0, 0
	for _, id := range others {
		all, told := c.catalogHeard[id]
		if told {
			asked++
		}
		if all {
			whole++
		}
	}
	if whole < n-(n/2+1)+1 && asked < len(others) {
		return
	}
	c.catalogLost = false
	c.persistThen([]wire.Op{put(key(recordPartial), false)}, nil)
}

// learnCatalog brings in what a majority of the members knows, and with it all that is
// confirmed by now. then(false): they did not answer in time. There is one question at a time;
// who asks meanwhile waits for the next, which may know more.
func (c *Core) learnCatalog(then func(known bool)) {
	c.learners = append(c.learners, then)
	if !c.learning {
		c.askMajority()
	}
}

func (c *Core) askMajority() {
	learners := c.learners
	c.learners, c.learning = nil, true
	end := func(known bool) {
		c.learning = false
		for _, then := range learners {
			then(known)
		}
		if !c.learning && len(c.learners) > 0 {
			c.askMajority()
		}
	}
	have, want, asked := c.majority()
	if have >= want || have+len(asked) < want {
		end(have >= want)
		return
	}
	over := false
	deadline := c.after(callTimeout, func() {
		over = true
		end(false)
	})
	for _, id := range asked {
		c.call(id, &wire.GetCatalog{}, callTimeout, func(msg wire.Message) {
			k, ok := msg.(*wire.Catalog)
			if !ok || over {
				return
			}
			c.mergeWhole(id, k)
			if k.Partial {
				return
			}
			if have++; have == want {
				over = true
				c.timers.stop(deadline)
				end(true)
			}
		})
	}
}

// majority is how many members must know of a change of the catalog, whether this node is
// one, and the others that can be asked.
func (c *Core) majority() (have, want int, others []ring.NodeID) {
	if c.rings.current == nil {
		return 0, 1, nil
	}
	members := c.rings.current.Table().Members
	for _, m := range members {
		switch {
		case m.ID == c.self:
			if !c.catalogLost {
				have = 1
			}
		case c.peer(m.ID).up:
			others = append(others, m.ID)
		}
	}
	return have, len(members)/2 + 1, others
}

// unsure is the answer of a node that cannot know what a majority knows.
func (c *Core) unsure() *wire.Error {
	return wire.Errorf(wire.ErrNotReady, "node %s cannot reach a majority to know what there is", c.cfg.Self.Name)
}

// sure runs fn again once this node knows what a majority knows, before it refuses a request
// for what it knows of a queue: it may be behind. It tells whether that is to be waited for.
func (c *Core) sure(req ReqID, asked bool, fn func()) bool {
	if asked {
		return false
	}
	c.learnCatalog(func(known bool) {
		if !known {
			c.reply(req, c.unsure())
			return
		}
		fn()
	})
	return true
}
