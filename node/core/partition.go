package core

import (
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// partition is what this node keeps of one partition: as a home replica all of it,
// as a fallback the batches that it holds for the home replicas.
type partition struct {
	core  *Core
	id    wire.PartitionID
	index uint32
	entry *wire.QueueEntry
	n, w  int // effective replicas and write quorum
	// sets are the home replicas in each ring that is not closed for the partition,
	// oldest first, in the order of the preference list. Ownership and acks need a
	// majority of each (DESIGN section 11).
	sets [][]ring.NodeID
	home bool // this node is in one of sets
	// all are the home replicas of all open rings, the current ring's first; others are
	// those without this node, backups the nodes after them. Computed from sets.
	all, others, backups []ring.NodeID
	gids                 []wire.GroupID // of entry.Groups

	lanes     map[wire.Lane]*lane
	order     []wire.Lane // keys of lanes, sorted
	groups    map[wire.GroupID]*ackSet
	producers map[wire.ProducerID]*producer
	segments  int // of all producers
	aliases   []alias
	hints     map[wire.Lane]wire.Runs
	writes    []*write // that have not ended, oldest first

	promised  wire.Term // the highest promised, on disk
	heard     wire.Term // the highest heard of; not a promise
	grant     grant
	own       *ownership
	claim     *timer
	resumes   []heldResume // that came before this node owned the partition
	turn      int          // of the home replica that was last asked who owns it
	moved     uint64       // rings below are closed
	copied    map[ring.NodeID]uint64
	copying   map[ring.NodeID]bool // nodes of older rings whose state is here
	repairing bool
	// promisingCopy says that the term of a copied state is being synced.
	promisingCopy bool
	repaired      map[ring.NodeID]bool // nodes whose state was merged since the damage; true: it counts
	hinting       bool                 // a round of hinted handoff is under way
	hintBytes     int                  // of hints taken since there were none
	swept         bool                 // no retry records are on disk

	ackLog          uint64 // number of the last record of acks
	ackLogDirty     bool
	watermarksDirty bool
	headers         []wire.Segment // whose bodies are not here, to be saved
	headerLog       []headerRecord // on disk, oldest first
	headerCount     int            // of segments in headerLog
	expireAt        Instant
	changes         uint64 // by others than the owner, for news
	sum             uint64 // 0: to be computed
}

// lane is what this node has of one lane.
type lane struct {
	id      wire.Lane
	held    wire.Runs   // whose bodies are here
	gone    wire.Runs   // done by all groups, body not kept
	unready wire.Runs   // accepted here, neither confirmed nor given up yet
	catalog uint64      // highest catalog version of its batches
	next    wire.Offset // of this node's own lane
}

// have is what need not be fetched.
func (l *lane) have() wire.Runs {
	if len(l.gone) == 0 {
		return l.held
	}
	have := l.gone.Clone()
	have.AddAll(l.held)
	return have
}

// ackSet is what a group has done (DESIGN section 2), and the marks that an owner
// leaves for its successor.
type ackSet struct {
	lanes map[wire.Lane]*doneSet
	// watermarks say how far an owner may have handed out.
	watermarks map[wire.Lane]wire.Offset
}

// doneSet is an ack set of one lane: it only grows.
type doneSet struct {
	runs  wire.Runs
	floor wire.Offset          // as on disk
	dirty map[wire.Offset]bool // pages to be written
}

func (g *ackSet) done(l wire.Lane) *doneSet {
	d := g.lanes[l]
	if d == nil {
		d = &doneSet{dirty: map[wire.Offset]bool{}}
		g.lanes[l] = d
	}
	return d
}

// runs is what of a lane is done; it must not be changed.
func (g *ackSet) runs(l wire.Lane) wire.Runs {
	if d := g.lanes[l]; d != nil {
		return d.runs
	}
	return nil
}

// known returns the partition if its queue exists, nil otherwise.
func (c *Core) known(id wire.PartitionID) *partition {
	if p := c.parts[id]; p != nil {
		return p
	}
	at, ok := c.places[id]
	if !ok {
		return nil
	}
	e := c.catalog.live(at.queue)
	if e == nil {
		return nil
	}
	p := &partition{
		core: c, id: id, index: at.index,
		lanes: map[wire.Lane]*lane{}, groups: map[wire.GroupID]*ackSet{},
		producers: map[wire.ProducerID]*producer{}, hints: map[wire.Lane]wire.Runs{},
		copied: map[ring.NodeID]uint64{}, copying: map[ring.NodeID]bool{}, repaired: map[ring.NodeID]bool{},
	}
	c.parts[id] = p
	p.setEntry(e)
	p.placeNow()
	return p
}

// place takes part in a partition if this node is one of its home replicas.
func (c *Core) place(id wire.PartitionID) {
	if p := c.parts[id]; p != nil {
		p.placeNow()
		p.armClaim()
		return
	}
	e := c.catalog.live(c.places[id].queue)
	if e == nil || c.rings.current == nil {
		return
	}
	n, _ := effective(&e.Settings, c.rings.current.Len())
	if slices.Contains(c.rings.current.Preference(nil, uint64(id), n), c.self) {
		c.known(id).armClaim()
	}
}

// placeNow computes who keeps the partition in the open rings.
func (p *partition) placeNow() {
	c := p.core
	if c.rings.current == nil {
		return
	}
	current := c.rings.current.Number()
	placed := p.sets != nil
	first := min(max(p.moved, p.entry.RingOf(c.places[p.id].index)), current) // a queue may be of a ring that is not known here yet
	p.sets = nil
	for _, n := range sortedKeys(c.rings.tables) {
		if n < first || n > current {
			continue
		}
		r := c.rings.tables[n]
		size, _ := effective(&p.entry.Settings, r.Len())
		set := r.Preference(nil, uint64(p.id), size)
		if len(p.sets) == 0 || !sameNodes(p.sets[len(p.sets)-1], set) {
			p.sets = append(p.sets, set)
		} else {
			p.sets[len(p.sets)-1] = set
		}
	}
	if c.planted(bugNoJointRing) {
		p.sets = p.sets[len(p.sets)-1:]
	}
	if len(p.sets) == 1 {
		p.moved = current
	}
	p.n, p.w = effective(&p.entry.Settings, c.rings.current.Len())
	p.all = slices.Clone(p.sets[len(p.sets)-1])
	for _, set := range p.sets[:len(p.sets)-1] {
		for _, id := range set {
			if !slices.Contains(p.all, id) {
				p.all = append(p.all, id)
			}
		}
	}
	p.others, p.backups = nil, nil
	for _, id := range p.all {
		if id != c.self {
			p.others = append(p.others, id)
		}
	}
	for _, id := range c.rings.current.Preference(nil, uint64(p.id), 0) {
		if !slices.Contains(p.all, id) {
			p.backups = append(p.backups, id)
		}
	}
	was := p.home
	p.home = slices.ContainsFunc(p.sets, func(set []ring.NodeID) bool { return slices.Contains(set, c.self) })
	if p.own != nil {
		p.own.setsChanged()
	}
	if was && !p.home {
		p.leave()
	}
	if !placed && p.mayHaveLost() {
		p.startRepair() // its records were lost, and the catalog or the ring that tells of it
	}
}

// mayHaveLost says whether this node may have kept the partition when it lost state. Who
// became a home replica since has lost nothing of it, and copies.
func (p *partition) mayHaveLost() bool {
	c := p.core
	if !c.damagedAll || p.entry.Version > c.damageHorizon {
		return false
	}
	current := c.rings.current.Number()
	for n := min(max(p.moved, p.entry.CreatedRing), current); n <= min(c.damageRing, current); n++ {
		r := c.rings.tables[n]
		if r == nil {
			return true
		}
		if size, _ := effective(&p.entry.Settings, r.Len()); slices.Contains(r.Preference(nil, uint64(p.id), size), c.self) {
			return true
		}
	}
	return false
}

func sameNodes(a, b []ring.NodeID) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// homes are the home replicas of all open rings, the current ring's first. The caller
// must not change it.
func (p *partition) homes() []ring.NodeID { return p.all }

// otherHomes are the home replicas without this node. The caller must not change it.
func (p *partition) otherHomes() []ring.NodeID { return p.others }

// fallbacks are the nodes after the home replicas in the preference list. The caller
// must not change it.
func (p *partition) fallbacks() []ring.NodeID { return p.backups }

// isHome says whether a node is a home replica in an open ring.
func (p *partition) isHome(id ring.NodeID) bool { return slices.Contains(p.homes(), id) }

// majority says whether has holds for a majority of the home replicas of every open ring.
func (p *partition) majority(has func(ring.NodeID) bool) bool {
	for _, set := range p.sets {
		n, of := 0, len(set)
		for _, id := range set {
			if has(id) {
				n++
			} else if p.core.planted(bugLiveMajority) && !p.core.up(id) {
				of--
			}
		}
		if n <= of/2 {
			return false
		}
	}
	return len(p.sets) > 0
}

// rank is this node's place among the home replicas; 0 is the best.
func (p *partition) rank() int { return max(0, slices.Index(p.homes(), p.core.self)) }

func (p *partition) lane(id wire.Lane) *lane {
	l := p.lanes[id]
	if l == nil {
		l = &lane{id: id}
		p.lanes[id] = l
		i, _ := slices.BinarySearchFunc(p.order, id, wire.Lane.Compare)
		p.order = slices.Insert(p.order, i, id)
	}
	return l
}

func (p *partition) group(id wire.GroupID) *ackSet {
	g := p.groups[id]
	if g == nil {
		g = &ackSet{lanes: map[wire.Lane]*doneSet{}, watermarks: map[wire.Lane]wire.Offset{}}
		p.groups[id] = g
	}
	return g
}

// groupIDs are the groups of the queue, in the order of their names. The caller must
// not change it.
func (p *partition) groupIDs() []wire.GroupID { return p.gids }

// setEntry takes a version of the queue's entry.
func (p *partition) setEntry(e *wire.QueueEntry) {
	p.entry = e
	p.gids = nil
	for _, g := range e.Groups {
		p.gids = append(p.gids, wire.Group(g.Name, g.Generation))
	}
}

// doneByAll is what of a lane every group has done.
func (p *partition) doneByAll(l wire.Lane) wire.Runs {
	var all wire.Runs
	for i, id := range p.groupIDs() {
		runs := p.group(id).runs(l)
		if i == 0 {
			all = runs
		} else if !p.core.planted(bugFreedAfterOneGroup) {
			all = all.Intersect(runs)
		}
	}
	return all
}

// markDone adds to an ack set and tells how many offsets are new. Where the same
// message is at another position too, it is done there as well.
func (p *partition) markDone(item wire.AckItem) uint64 {
	added := p.markOne(item.Group, item.Lane, item.Run)
	p.rememberHeader(wire.Segment{
		Producer: item.Producer, Sequence: item.Sequence, Lane: item.Lane,
		Base: item.Run.From, Count: item.Run.Len(), Stamp: p.core.clock,
	})
	for _, other := range p.aliasesOf(item.Lane, item.Run) {
		added += p.markOne(item.Group, other.lane, other.run)
	}
	return added
}

func (p *partition) markOne(g wire.GroupID, l wire.Lane, run wire.Run) uint64 {
	done := p.group(g).done(l)
	added := done.runs.Add(run)
	if added > 0 {
		for page := run.From / pageSize; page <= (run.To-1)/pageSize; page++ {
			done.dirty[page] = true
		}
		p.sum = 0
		if p.own != nil {
			p.own.doneNow(g, l, run)
		}
	}
	return added
}

// ackOps are the records of acks that were just marked.
func (p *partition) ackOps(items []wire.AckItem) []wire.Op {
	var ops []wire.Op
	for some := range slices.Chunk(items, maxRecordItems) {
		p.ackLog++
		p.ackLogDirty = true
		ops = append(ops, put(key(recordAcks, uint64(p.id), p.ackLog), some))
	}
	return ops
}

// raiseWatermarks merges marks and tells whether any is new.
func (p *partition) raiseWatermarks(marks []wire.Watermark) {
	for _, m := range marks {
		w := p.group(m.Group).watermarks
		if w[m.Lane] < m.To {
			w[m.Lane] = m.To
			p.watermarksDirty = true
		}
	}
}

func (p *partition) watermarks() []wire.Watermark {
	var out []wire.Watermark
	for _, g := range sortedKeys(p.groups) {
		for _, l := range sortedLanes(p.groups[g].watermarks) {
			out = append(out, wire.Watermark{Group: g, Lane: l, To: p.groups[g].watermarks[l]})
		}
	}
	return out
}

// recovered completes what was read at boot.
func (p *partition) recovered() {
	for _, g := range p.groups { // a set: the order does not matter
		for l := range g.lanes { // a set: the order does not matter
			p.lane(l)
		}
	}
	for _, l := range p.lanes { // each by itself: the order does not matter
		l.gone = p.doneByAll(l.id).Minus(l.held)
	}
}

// fold writes what has gathered since the last fold: pages of ack sets in place of
// the log of acks, watermarks, producers; and lets go of bodies that all groups have
// done (DESIGN section 12).
func (p *partition) fold() []wire.Op {
	var ops []wire.Op
	for _, g := range sortedKeys(p.groups) {
		set := p.groups[g]
		for _, l := range sortedLanes(set.lanes) {
			ops = append(ops, set.lanes[l].fold(p.id, g, l)...)
		}
	}
	if p.ackLogDirty {
		p.ackLogDirty = false
		ops = append(ops, removeRange(key(recordAcks, uint64(p.id))))
	}
	if p.watermarksDirty {
		p.watermarksDirty = false
		part := uint64(0)
		for marks := range slices.Chunk(p.watermarks(), maxRecordItems) {
			ops = append(ops, put(key(recordWatermark, uint64(p.id), part), marks))
			part++
		}
	}
	if p.home {
		ops = append(ops, p.free()...)
	}
	if p.core.planted(bugFloorDroppedEarly) {
		ops = append(ops, p.dropFloors()...)
	}
	p.expireProducers()
	return append(ops, p.saveHeaders()...)
}

// fold writes the pages that changed; those below the floor are covered by it.
func (d *doneSet) fold(p wire.PartitionID, g wire.GroupID, l wire.Lane) []wire.Op {
	if len(d.dirty) == 0 {
		return nil
	}
	var ops []wire.Op
	base := []uint64{uint64(p), uint64(g), uint64(l.Node), l.Epoch}
	if floor := d.runs.Floor(); floor > d.floor {
		for page := d.floor / pageSize; page < floor/pageSize; page++ {
			ops = append(ops, remove(key(recordPage, append(base, uint64(page))...)))
			delete(d.dirty, page)
		}
		d.floor = floor
		ops = append(ops, put(key(recordFloor, base...), floor))
	}
	for _, page := range sortedKeys(d.dirty) {
		runs := d.runs.Overlap(wire.Span(page*pageSize, (page+1)*pageSize))
		ops = append(ops, put(key(recordPage, append(base, uint64(page))...), runs))
	}
	clear(d.dirty)
	return ops
}

// free gives up the bodies that every group has done, as far as this node's catalog
// knows all groups that the acceptor of the batches knew.
func (p *partition) free() []wire.Op {
	var ops []wire.Op
	for _, id := range p.order {
		l := p.lanes[id]
		if l.catalog > p.core.catalog.version {
			continue
		}
		done := p.doneByAll(id)
		free := l.held.Intersect(done)
		if len(free) > 0 {
			p.keepHeaders(id, free)
		}
		for _, run := range free {
			ops = append(ops, wire.Op{Kind: wire.OpFree, Partition: p.id, Lane: id, Run: run})
			l.held.Remove(run)
			p.core.cache.drop(p.id, id, run)
		}
		l.gone = done.Clone()
	}
	p.aliases = slices.DeleteFunc(p.aliases, func(x alias) bool {
		return p.doneByAll(x.a).Covers(x.ra) && p.doneByAll(x.b).Covers(x.rb)
	})
	return ops
}

// drop forgets the partition of a deleted queue; the ops remove all of it from disk.
func (p *partition) drop() []wire.Op {
	c := p.core
	var ops []wire.Op
	for _, id := range p.order {
		for _, run := range p.lanes[id].held {
			ops = append(ops, wire.Op{Kind: wire.OpFree, Partition: p.id, Lane: id, Run: run})
		}
		c.cache.drop(p.id, id, wire.Span(0, ^wire.Offset(0)))
	}
	for _, prefix := range partitionRecords {
		ops = append(ops, removeRange(key(prefix, uint64(p.id))))
	}
	for _, w := range slices.Clone(p.writes) {
		w.end(wire.Errorf(wire.ErrNoQueue, "queue %s was deleted", p.entry.Name))
	}
	if p.own != nil {
		p.own.stepDown()
	}
	c.timers.stop(p.claim)
	delete(c.parts, p.id)
	return ops
}

// leave turns what this node still holds into hints: the home replicas get what they
// lack, then it goes.
func (p *partition) leave() {
	if p.own != nil {
		p.own.stepDown()
	}
	p.core.timers.stop(p.claim)
	if p.repairing { // it counts for nothing anyway; if it comes back it copies
		p.repairing = false
		p.core.persistThen([]wire.Op{p.repairOp()}, nil)
	}
	if p.core.planted(bugExHomeDrops) {
		p.dropAll()
	}
	for _, id := range p.order {
		if held := p.lanes[id].held; len(held) > 0 {
			p.addHints(id, held)
		}
	}
}

// digest is a hash of what every replica must agree on: what there is, and what of it
// is done (P7).
func (p *partition) digest() uint64 {
	if p.sum != 0 {
		return p.sum
	}
	var d xxhash.Digest
	d.Reset()
	var b [16]byte
	add := func(x, y uint64) {
		binary.BigEndian.PutUint64(b[:8], x)
		binary.BigEndian.PutUint64(b[8:], y)
		_, _ = d.Write(b[:])
	}
	runs := func(l wire.Lane, s wire.Runs) {
		if len(s) == 0 {
			return
		}
		add(uint64(l.Node), l.Epoch)
		for _, r := range s {
			add(uint64(r.From), uint64(r.To))
		}
	}
	for _, id := range p.order {
		have := p.lanes[id].have().Clone()
		have.AddAll(p.doneByAll(id))
		runs(id, have)
	}
	for _, g := range p.groupIDs() {
		add(uint64(g), 0)
		if set := p.groups[g]; set != nil {
			for _, l := range sortedLanes(set.lanes) {
				runs(l, set.lanes[l].runs)
			}
		}
	}
	p.sum = max(1, d.Sum64())
	return p.sum
}

// foldAll runs once a second.
func (c *Core) foldAll() {
	ops := c.peerOps()
	for _, id := range sortedKeys(c.parts) {
		ops = append(ops, c.parts[id].fold()...)
	}
	if len(ops) > 0 {
		c.persistThen(ops, nil)
	}
}
