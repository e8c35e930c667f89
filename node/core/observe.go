package core

import (
	"cmp"
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// What a simulator may see of a core. Nothing of it decides anything.

// Ownership is an ownership lease as its holder sees it.
type Ownership struct {
	Partition wire.PartitionID
	Term      wire.Term
	Until     Instant // the holder acts on it before that
	// Fresh says that it began without a reclaim grace: nobody owned the partition before,
	// or the owner before handed over what was in flight.
	Fresh bool
}

// Ownerships are the partitions that this node may act on as their owner, by partition.
func (c *Core) Ownerships() []Ownership {
	var out []Ownership
	for id, p := range c.parts { // the order does not matter: it is sorted below, as a simulator asks after each step
		if o := p.own; o != nil && (o.phase == grace || o.phase == owning) && o.valid() {
			out = append(out, Ownership{id, o.term, o.until(), o.fresh})
		}
	}
	slices.SortFunc(out, func(a, b Ownership) int { return cmp.Compare(a.Partition, b.Partition) })
	return out
}

// Repairing tells whether this node counts for nothing in a partition.
func (c *Core) Repairing(id wire.PartitionID) bool {
	return c.parts[id] != nil && c.parts[id].repairing
}

// LostVotes tells whether this node may have forgotten a vote for the next ring, and has
// not learned it anew.
func (c *Core) LostVotes() bool { return c.lostVotes != 0 }

// LostCatalog tells whether this node may have lost entries of the catalog, and does not
// know it whole again.
func (c *Core) LostCatalog() bool { return c.catalogLost }

// Queue is the entry of a queue in the catalog of this node, which the caller must not change;
// nil: it knows none that exists.
func (c *Core) Queue(name string) *wire.QueueEntry { return c.catalog.live(name) }

// CatalogSum is equal at two nodes that have the same catalog.
func (c *Core) CatalogSum() uint64 { return c.catalog.digest() }

// RememberedCommit is the highest commit number that this node remembers of another.
func (c *Core) RememberedCommit(id ring.NodeID) uint64 {
	p := c.peers[id]
	if p == nil || len(p.commits) == 0 {
		return 0
	}
	return p.commits[len(p.commits)-1].Commit
}

// Moving are the partitions that this node keeps and for which more than one ring is open.
func (c *Core) Moving() []wire.PartitionID {
	var out []wire.PartitionID
	for _, id := range sortedKeys(c.parts) {
		if len(c.parts[id].sets) > 1 {
			out = append(out, id)
		}
	}
	return out
}

// OpenHomes are the home replicas of the partition in each ring that this node holds to be open.
func (c *Core) OpenHomes(id wire.PartitionID) [][]ring.NodeID {
	if p := c.parts[id]; p != nil {
		return p.sets
	}
	return nil
}
