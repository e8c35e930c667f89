package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// A node that is asked for what others own relays: it subscribes at the home replicas
// in the client's place, so that a plain load balancer may stand in front of the mesh.

// relayTargets are the home replicas of a queue that are not this node.
func (c *Core) relayTargets(queue string) []ring.NodeID {
	e := c.catalog.live(queue)
	if e == nil {
		return nil
	}
	var out []ring.NodeID
	for i := range e.Settings.Partitions {
		if p := c.known(e.Partition(i)); p != nil {
			for _, id := range p.otherHomes() {
				if !slices.Contains(out, id) {
					out = append(out, id)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// relay subscribes at the others with what demand is left.
func (c *Core) relay(s *sub) {
	if !s.relay || c.subs[s.key] != s {
		return
	}
	if s.token == 0 {
		s.token = uint64(c.token())
		s.from = map[ring.NodeID]uint64{}
		c.relays[s.token] = s
	}
	for _, id := range c.relayTargets(s.to.queue) {
		c.send(id, &wire.Subscribe{
			Sub: s.token, Consumer: s.consumer, Queue: s.to.queue, Group: s.to.group,
			Credit: s.from[id] + s.left(), Catalog: c.catalog.version, Generation: s.generation,
		})
	}
}

func (c *Core) unrelay(s *sub) {
	if s.token == 0 {
		return
	}
	delete(c.relays, s.token)
	for _, id := range c.relayTargets(s.to.queue) {
		c.send(id, &wire.Unsubscribe{Sub: s.token})
	}
}

// pushed takes what a peer pushed back: to a relayed subscription, or about this node.
func (c *Core) pushed(ev Pushed) {
	c.peer(ev.From).heard = c.now.Mono
	switch m := ev.Msg.(type) {
	case *wire.Deliver:
		s := c.relays[m.Sub]
		if s == nil {
			c.giveBack(ev.From, m)
			return
		}
		for i := range m.Deliveries {
			n := m.Deliveries[i].Receipt.Run.Len()
			s.given += n
			s.from[ev.From] += n
		}
		c.emit(Push{Conn: s.key.conn, Msg: &wire.Deliver{Sub: s.key.sub, Deliveries: m.Deliveries}})
	case *wire.Owner:
		told := map[ConnID]bool{}
		for _, t := range sortedKeys(c.relays) {
			if s := c.relays[t]; !told[s.key.conn] {
				told[s.key.conn] = true
				c.emit(Push{Conn: s.key.conn, Msg: m})
			}
		}
	case *wire.Remembered:
		c.onRemembered(ev.From, m)
	case *wire.Rings:
		c.onRings(m)
	}
}

// giveBack returns deliveries to a request that has ended, without an attempt.
func (c *Core) giveBack(to ring.NodeID, m *wire.Deliver) {
	s := &wire.Settle{Catalog: c.catalog.version, Passed: true}
	for i := range m.Deliveries {
		r := m.Deliveries[i].Receipt
		s.Items = append(s.Items, wire.SettleItem{Receipt: r, Runs: wire.Runs{r.Run}, Kind: wire.SettleRelease})
	}
	c.call(to, s, callTimeout, func(wire.Message) {})
}

// relayResume passes what a client holds on to the home replicas.
func (c *Core) relayResume(s *sub, m *wire.Resume) {
	if s == nil || s.token == 0 {
		return
	}
	passed := *m
	passed.Sub = s.token
	for _, id := range c.relayTargets(s.to.queue) {
		c.send(id, &passed)
	}
}
