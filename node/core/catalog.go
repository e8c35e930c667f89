package core

import (
	"bytes"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// catalog is what this node knows of all queues, deleted ones included. Two catalogs
// merge entry by entry and field by field; the highest counter wins, no clock.
type catalog struct {
	entries map[string]*wire.QueueEntry
	version uint64 // highest of all entries
	sum     uint64 // of all entries, 0 when it must be computed
}

// place says which partition of which queue a PartitionID is.
type place struct {
	queue string
	index uint32
}

// put keeps e, which must be newer than what is there.
func (k *catalog) put(e *wire.QueueEntry) {
	k.entries[e.Name] = e
	k.version = max(k.version, e.Version)
	k.sum = 0
}

// live returns the entry of a queue that exists.
func (k *catalog) live(name string) *wire.QueueEntry {
	if e := k.entries[name]; e != nil && e.Live() {
		return e
	}
	return nil
}

// all returns all entries by name.
func (k *catalog) all() []wire.QueueEntry {
	out := make([]wire.QueueEntry, 0, len(k.entries))
	for _, name := range sortedKeys(k.entries) {
		out = append(out, *k.entries[name])
	}
	return out
}

// digest is equal on two nodes if their catalogs are.
func (k *catalog) digest() uint64 {
	if k.sum == 0 {
		k.sum = 1
		for _, e := range k.entries { // a sum does not depend on the order
			k.sum += xxhash.Sum64(encodeEntry(e))
		}
	}
	return k.sum
}

func encodeEntry(e *wire.QueueEntry) []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.UseArrayEncodedStructs(true)
	if err := enc.Encode(e); err != nil {
		panic(err) // plain data
	}
	return b.Bytes()
}

// merge returns the union of two entries of one name.
func mergeEntries(a, b *wire.QueueEntry) *wire.QueueEntry {
	if a == nil {
		return b
	}
	if a.Generation < b.Generation {
		a, b = b, a
	}
	m := *a
	m.Deleted = max(a.Deleted, b.Deleted)
	m.Version = max(a.Version, b.Version)
	if a.Generation == b.Generation {
		m.CreatedRing = min(a.CreatedRing, b.CreatedRing)
		mergeSettings(&m, b)
		m.Pause = mergePause(m.Pause, b.Pause)
		m.Groups = slices.Clone(a.Groups)
		for _, g := range b.Groups {
			i, found := slices.BinarySearchFunc(m.Groups, g.Name, func(x wire.GroupEntry, name string) int {
				return bytes.Compare([]byte(x.Name), []byte(name))
			})
			switch {
			case !found:
				m.Groups = slices.Insert(m.Groups, i, g)
			case m.Groups[i].Generation < g.Generation:
				m.Groups[i] = g
			case m.Groups[i].Generation == g.Generation:
				m.Groups[i].Pause = mergePause(m.Groups[i].Pause, g.Pause)
			}
		}
	}
	return &m
}

// mergeCatalog takes entries from elsewhere, persists what is new, and calls then
// when it is synced.
func (c *Core) mergeCatalog(entries []wire.QueueEntry, then func()) {
	if !c.catalogWhole {
		for i := range entries {
			c.damageHorizon = max(c.damageHorizon, entries[i].Version)
		}
	}
	var ops []wire.Op
	for i := range entries {
		e := &entries[i]
		old := c.catalog.entries[e.Name]
		merged := mergeEntries(old, e)
		if old != nil && bytes.Equal(encodeEntry(old), encodeEntry(merged)) {
			continue
		}
		c.catalog.put(merged)
		ops = append(ops, put(append([]byte{recordCatalog}, e.Name...), merged))
		if old != nil && old.Generation > 0 && merged.Deleted >= old.Generation && old.Live() {
			ops = append(ops, c.dropQueue(old)...)
		}
		c.catalogChanged(merged)
	}
	if len(ops) > 0 || then != nil {
		c.persistThen(ops, then)
	}
	if len(ops) > 0 {
		c.catalogReached()
	}
}

// catalogChanged makes the partitions of a queue known, and takes part in them.
func (c *Core) catalogChanged(e *wire.QueueEntry) {
	if e == nil || !e.Live() {
		return
	}
	for i := range e.Settings.Partitions {
		id := e.Partition(i)
		c.places[id] = place{queue: e.Name, index: i}
		if p := c.parts[id]; p != nil {
			p.setEntry(e)
		}
		if c.member() {
			c.place(id)
		}
	}
	c.subscribersChanged(e.Name)
}

// dropQueue forgets a deleted generation; the ops remove its records and bodies.
func (c *Core) dropQueue(e *wire.QueueEntry) []wire.Op {
	var ops []wire.Op
	for i := range e.Settings.Partitions {
		id := e.Partition(i)
		if p := c.parts[id]; p != nil {
			ops = append(ops, p.drop()...)
		}
		delete(c.places, id)
	}
	return ops
}

// putCatalog takes entries of a change. Who creates a queue in a generation that is deleted
// already, changes one of which there is a later generation, or changes a setting that was
// changed since, did not know: it is told instead. What is confirmed is known to a majority,
// so one of any majority says so: a change that is confirmed follows all that were before it.
func (c *Core) putCatalog(req ReqID, m *wire.PutCatalog) {
	c.mergeCatalog(m.Entries, func() {
		var later []wire.QueueEntry
		for i := range m.Entries {
			e := &m.Entries[i]
			known := c.catalog.entries[e.Name]
			if known.Generation > e.Generation || e.Live() && known.Deleted >= e.Generation || outdone(e, known) && !c.planted(bugChangeAlone) {
				later = append(later, *known)
			}
		}
		switch {
		case later != nil:
			c.reply(req, &wire.Catalog{Version: c.catalog.version, Entries: later})
		case c.catalogLost:
			c.reply(req, wire.Errorf(wire.ErrNotReady, "node %s does not know yet what queues there were", c.cfg.Self.Name))
		default:
			c.reply(req, &wire.Done{})
		}
	})
}

// changeCatalog makes a change of one entry, and calls done(nil) when a majority of
// the ring's members have it synced, or done(error) if they do not in time: the
// change may happen then. It calls again, once it knows more, when others know what the change
// was not based on.
func (c *Core) changeCatalog(e *wire.QueueEntry, again func(), done func(error *wire.Error)) {
	e.Version = c.catalog.version + 1
	self, want, others := c.majority()
	have, over := 0, false
	var deadline *timer
	held := func() {
		if have++; have == want && !over {
			over = true
			c.timers.stop(deadline)
			done(nil)
		}
	}
	deadline = c.after(callTimeout, func() {
		over = true
		done(wire.QuorumError(have, want))
	})
	entry := []wire.QueueEntry{*e}
	c.mergeCatalog(entry, func() {
		if self > 0 {
			held()
		}
	})
	for _, id := range others {
		c.call(id, &wire.PutCatalog{Version: e.Version, Entries: entry}, callTimeout, func(msg wire.Message) {
			switch msg := msg.(type) {
			case *wire.Done:
				held()
			case *wire.Catalog:
				if !over {
					over = true
					c.timers.stop(deadline)
					c.mergeCatalog(msg.Entries, again)
				}
			}
		})
	}
}

// settleWait is how long a request that makes partitions waits for a ring step to be stored by
// those who can be reached: they say so a lease after it, if their disks keep up.
const settleWait = 2 * ownershipLease

// openRing is the first ring that counts for partitions that are made now, those of e from
// index first on: the present one, or the one before while that could still give one of them
// an owner. For that a majority of its home replicas must not have stored the present ring: they
// may know the partition by a change that failed. settling says that they can be reached and know
// the present ring, so that they will have stored it soon.
func (c *Core) openRing(e *wire.QueueEntry, first uint32) (number uint64, settling bool) {
	now := c.rings.current.Number()
	before := c.rings.tables[now-1]
	if before == nil {
		return now, false
	}
	number = now
	size, _ := effective(&e.Settings, before.Len())
	var homes []ring.NodeID
	for i := first; i < e.Settings.Partitions; i++ {
		homes = before.Preference(homes[:0], uint64(e.Partition(i)), size)
		behind, away := 0, 0
		for _, id := range homes {
			switch {
			case c.storedBy(id) >= now:
			case id == c.self || c.answering(id) && c.peer(id).beat.Ring >= now:
				behind++
			default:
				behind++
				away++
			}
		}
		if away > len(homes)/2 {
			return now - 1, false
		}
		if behind > len(homes)/2 {
			number, settling = now-1, true
		}
	}
	return number, settling
}

// storedBy is the ring that a member has stored, as far as this node has heard.
func (c *Core) storedBy(id ring.NodeID) uint64 {
	if id == c.self {
		return c.rings.stored
	}
	return c.peer(id).beat.Stored
}

// createQueue answers CreateQueue. asked says that this node knows what a majority knows; until
// is how long it may wait for a ring step to be stored.
func (c *Core) createQueue(req ReqID, m *wire.CreateQueue, until Instant, asked bool) {
	groups := m.Groups
	if len(groups) == 0 {
		groups = []string{"default"}
	}
	err := wire.CheckName("queue", m.Name)
	for _, g := range groups {
		if err == nil {
			err = wire.CheckName("group", g)
		}
	}
	if err == nil && len(groups) > wire.MaxGroups {
		err = wire.Errorf(wire.ErrBadRequest, "%d groups, allowed are 1 to %d", len(groups), wire.MaxGroups)
	}
	settings := m.Settings.WithDefaults()
	if err == nil {
		err = settings.Validate()
	}
	if err != nil {
		c.reply(req, asError(err))
		return
	}
	groups = slices.Compact(slices.Sorted(slices.Values(groups)))

	old := c.catalog.entries[m.Name]
	if old != nil && old.Live() {
		same := old.Settings.InForce() == settings && len(old.Groups) == len(groups)
		for i := range groups {
			same = same && old.Groups[i].Name == groups[i]
		}
		if !same {
			if c.sure(req, asked, func() { c.createQueue(req, m, until, true) }) {
				return
			}
			c.reply(req, wire.Errorf(wire.ErrExists, "queue %s exists with other settings or groups", m.Name))
			return
		}
	}
	e := &wire.QueueEntry{Name: m.Name, Generation: 1, Settings: settings}
	e.SettingsAt = wire.Counter{N: 1, Node: uint64(c.self)}
	if old != nil {
		if old.Live() {
			copied := *old
			e = &copied
		} else {
			e.Generation, e.Deleted = old.Deleted+1, old.Deleted
			e.SettingsAt.N = old.SettingsAt.N + 1
		}
	}
	if old == nil || !old.Live() {
		number, settling := c.openRing(e, 0)
		if settling && c.now.Mono < until {
			c.after(renewEvery, func() { c.createQueue(req, m, until, asked) })
			return
		}
		e.CreatedRing = number
		for _, g := range groups {
			e.Groups = append(e.Groups, wire.GroupEntry{Name: g, Generation: 1})
		}
	}
	c.changeCatalog(e, func() { c.createQueue(req, m, until, asked) }, func(err *wire.Error) {
		if err != nil {
			c.reply(req, err)
			return
		}
		info := &wire.QueueInfo{Entry: *c.catalog.entries[m.Name], Catalog: c.catalog.version}
		if n := int(settings.Replicas); int(settings.WriteQuorum)+n/2+1 <= n {
			info.Warning = "write_quorum + majority of replicas does not exceed replicas: a confirmed message may wait for one of the nodes that hold it"
		}
		c.reply(req, info)
	})
}

// deleteQueue answers DeleteQueue. asked says that this node knows what a majority knows.
// A request may be repeated, and come late: it must not delete what was created since.
func (c *Core) deleteQueue(req ReqID, m *wire.DeleteQueue, asked bool) {
	old := c.catalog.entries[m.Name]
	switch {
	case old != nil && m.Generation != 0 && old.Deleted >= m.Generation:
		// The entry that says so may be here alone: it is made known again.
	case old == nil || !old.Live() || old.Generation < m.Generation:
		if !c.sure(req, asked, func() { c.deleteQueue(req, m, true) }) {
			c.reply(req, wire.Errorf(wire.ErrNoQueue, "no such queue: %s", m.Name))
		}
		return
	case m.Generation == 0:
		m = &wire.DeleteQueue{Name: m.Name, Generation: old.Generation}
	}
	e := *old
	e.Deleted = max(e.Deleted, m.Generation)
	c.changeCatalog(&e, func() { c.deleteQueue(req, m, asked) }, func(err *wire.Error) {
		if err != nil {
			c.reply(req, err)
			return
		}
		c.reply(req, &wire.Done{})
	})
}

// effective are N and W of a queue in a ring of that many members.
func effective(s *wire.Settings, members int) (n, w int) {
	in := s.InForce()
	return min(int(in.Replicas), members), min(int(in.WriteQuorum), members)
}

func asError(err error) *wire.Error {
	if e, ok := err.(*wire.Error); ok { //nolint:errorlint // Validate and CheckName return it unwrapped
		return e
	}
	return wire.Errorf(wire.ErrInternal, "%v", err)
}

// member says whether this node is a member of the ring.
func (c *Core) member() bool {
	if c.rings.current == nil {
		return false
	}
	_, found := c.rings.current.Table().Member(c.self)
	return found
}

// members of the current ring without this node.
func (c *Core) others() []ring.NodeID {
	var out []ring.NodeID
	if c.rings.current != nil {
		for _, m := range c.rings.current.Table().Members {
			if m.ID != c.self {
				out = append(out, m.ID)
			}
		}
	}
	return out
}
