package core

import "github.com/meshq/meshq/transport/wire"

// Causes is the number of values of wire.Cause.
const Causes = 6

// Stats are the core's counters since boot, and gauges. Counts are messages unless
// said otherwise.
type Stats struct {
	Accepted         uint64         // into this node's lanes
	Confirmed        uint64         // of those
	Unknown          uint64         // of those: W was not reached in time
	Repeated         uint64         // enqueue requests for batches that were here already
	Duplicates       uint64         // found at a second position
	Delivered        [Causes]uint64 // by wire.Cause
	Acked            uint64
	Nacked           uint64
	Resumed          uint64 // taken over from an earlier owner by their consumers
	Takeovers        uint64 // ownerships of partitions that began here
	OrderWaitExpired uint64 // batches that went without their predecessor
	HintsHandedOff   uint64
	Damaged          uint64 // times that the store found damage

	Partitions   uint64 // that this node keeps something of
	Owned        uint64 // partitions
	Repairing    uint64 // partitions
	Hints        uint64
	InFlight     uint64
	Retrying     uint64 // wait for a retry, in memory
	PendingBytes uint64 // of batches that wait for their quorum
	CacheBytes   uint64
	Subs         uint64 // subscriptions at this node
	Peers        uint64 // members that this node is connected to
	Members      uint64 // of the ring
	Alive        uint64 // members that gossip believes to be alive
	Ring         uint64
	Catalog      uint64
	Commit       uint64
}

func (s *Stats) delivered(cause wire.Cause, n uint64) { s.Delivered[cause] += n }

// Stats returns the counters, with the gauges as they are now.
func (c *Core) Stats() Stats {
	s := c.stats
	for _, p := range c.parts { // sums do not depend on the order
		s.Partitions++
		if p.repairing {
			s.Repairing++
		}
		if o := p.own; o != nil && o.phase >= grace {
			if o.valid() {
				s.Owned++
			}
			for _, f := range o.feeds { // sums do not depend on the order
				s.InFlight += uint64(f.inflight)
				s.Retrying += uint64(len(f.retries))
			}
		}
	}
	for _, p := range c.peers { // a sum does not depend on the order
		if p.up {
			s.Peers++
		}
	}
	s.Hints = c.hintCount()
	s.PendingBytes, s.CacheBytes = uint64(c.pendingBytes), uint64(c.cache.bytes)
	s.Subs, s.Alive = uint64(len(c.subs)), uint64(len(c.alive))
	if c.rings.current != nil {
		s.Members, s.Ring = uint64(c.rings.current.Len()), c.rings.current.Number()
	}
	s.Catalog, s.Commit = c.catalog.version, c.commit
	return s
}
