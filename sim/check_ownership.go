package sim

import (
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Ownership.

// stepped is called after each step of a node: at most one valid lease per partition.
func (k *checker) stepped(h *host) {
	k.learnsPauses(h)
	owned := h.core.Ownerships()
	if slices.Equal(owned, k.owned[h.index]) {
		return
	}
	for _, o := range k.owned[h.index] {
		delete(k.owners[o.Partition], h.index)
	}
	k.owned[h.index] = owned
	for _, o := range owned {
		until := h.worldTime(o.Until)
		m := k.owners[o.Partition]
		if m == nil {
			m = map[int]ownership{}
			k.owners[o.Partition] = m
		}
		for _, x := range k.w.nodes() {
			other, ok := m[x.index]
			if ok && until > k.w.now && other.until > k.w.now && x.running && x.life == other.life {
				k.w.fail("two owners", msgKey{}, "%s owns %s in term %s, and %s owns it in term %s for %d ms more", h.name, k.w.names.partition(o.Partition),
					k.w.names.term(o.Term), x.name, k.w.names.term(other.term), (other.until-k.w.now)/millisecond)
				return
			}
		}
		if k.terms[o.Partition] != o.Term {
			k.before[o.Partition], k.terms[o.Partition] = k.terms[o.Partition], o.Term
			k.stats.Takeovers++
			k.tookResumes(h, o)
		}
		m[h.index] = ownership{o.Term, until, h.life}
	}
}

// tookResumes is called when a node begins to own a partition: what it was told of what
// consumers hold is in the table of that term, and is gone with it.
func (k *checker) tookResumes(h *host, o core.Ownership) {
	for g, l := range k.handed { // each by itself: the order does not matter
		s := k.messages[g.key]
		if s == nil || s.partition != o.Partition {
			continue
		}
		for _, x := range l {
			if r, told := x.resumed[h.index]; told && r.term == (wire.Term{}) {
				r.term = o.Term
				x.resumed[h.index] = r
			}
		}
	}
}

func (k *checker) owner(p wire.PartitionID) *host {
	for i, o := range k.owners[p] {
		if h := k.w.hosts[i]; o.until > k.w.now && h.running && h.life == o.life {
			return h
		}
	}
	return nil
}

// watch looks every half second at what must not take too long.
func (k *checker) watch() {
	k.w.after(500*millisecond, k.watch)
	for _, h := range k.w.nodes() {
		if h.running {
			k.deadlines(h)
			d := k.disks[h]
			switch {
			case h.disk.syncing == nil:
				d.syncs = 0
			case h.disk.syncs == d.syncs:
				d.behind = k.w.now
			default:
				d.syncs = h.disk.syncs
			}
			k.disks[h] = d
		}
		if h.stopped != nil {
			k.w.fail("Stop", msgKey{}, "%s stopped: %v", h.name, h.stopped)
		}
	}
	k.spread()
	if k.idle {
		return
	}
	for _, q := range k.queues {
		for _, p := range q.partitions() {
			if k.owner(p) != nil || !k.couldOwn(q, p) {
				k.ownerAt[p] = k.w.now
			} else if k.w.now-k.ownerAt[p] > 8*second {
				k.w.fail("P2live", msgKey{}, "%s had no owner for %d ms, and a majority of its home replicas is connected", k.w.names.partition(p), (k.w.now-k.ownerAt[p])/millisecond)
				return
			}
		}
	}
}

// openSets are the home replicas of a partition in the newest ring, and in each that some
// node holds to be open: ownership needs a majority in all of them.
func (k *checker) openSets(q *queue, p wire.PartitionID) [][]ring.NodeID {
	sets := [][]ring.NodeID{k.w.homeIDs(q, p)}
	for _, h := range k.w.nodes() {
		if h.running {
			sets = append(sets, h.core.OpenHomes(p)...)
		}
	}
	return sets
}

// lostMajority tells whether a majority of the home replicas in an open ring is gone for ever.
func (k *checker) lostMajority(q *queue, p wire.PartitionID) bool {
	return slices.ContainsFunc(k.openSets(q, p), func(set []ring.NodeID) bool {
		n := 0
		for _, id := range set {
			if k.w.node(id) != nil {
				n++
			}
		}
		return n <= len(set)/2
	})
}

// couldOwn tells whether a majority of the home replicas works, knows of the partition and is
// connected without a slow link.
func (k *checker) couldOwn(q *queue, p wire.PartitionID) bool {
	sets := k.openSets(q, p)
	var ids []ring.NodeID
	for _, set := range sets {
		for _, id := range set {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	var up []*host
	for _, id := range ids {
		if h := k.w.node(id); h != nil && h.running && !h.paused && !h.busy && h.slow == 0 && k.w.now-h.boots > second && !h.disk.damaged && !h.core.Repairing(p) && k.knows(h, p) && k.disks[h].behind < k.w.now-second {
			up = append(up, h)
		}
	}
	for _, l := range k.w.net.late {
		if l.by > second {
			return false
		}
	}
	for _, a := range up { // a clique around a: all that a can reach, pairwise
		clique := []*host{a}
		for _, b := range up {
			if b != a && !slices.ContainsFunc(clique, func(x *host) bool { return !k.good(x, b) }) {
				clique = append(clique, b)
			}
		}
		if !slices.ContainsFunc(sets, func(set []ring.NodeID) bool {
			n := 0
			for _, x := range clique {
				if slices.Contains(set, x.id) {
					n++
				}
			}
			return n <= len(set)/2
		}) {
			return true
		}
	}
	return false
}

// knows tells whether a node knows of a partition, which may have been added while it was away.
func (k *checker) knows(h *host, p wire.PartitionID) bool {
	at := k.places[p]
	e := h.core.Queue(at.q.entry.Name)
	return e != nil && at.index < e.Settings.Partitions
}

func (k *checker) good(a, b *host) bool {
	for _, l := range []*link{k.w.link(a, b), k.w.link(b, a)} {
		if l.cut > 0 || l.slow > 50*millisecond || len(l.loss)+len(l.corrupt)+len(l.rates) > 0 {
			return false
		}
	}
	return a.outTo(b.id) != nil && b.outTo(a.id) != nil
}
