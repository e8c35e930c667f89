package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// rings are all rings that this node knows, by number. Ring v+1 is one agreed step
// from ring v (DESIGN section 4).
type rings struct {
	tables  map[uint64]*ring.Ring
	current *ring.Ring
	// stored is the number of the ring of which this node has said "stored": no grant
	// that it gave under an older ring can still run.
	stored   uint64
	fetching bool
}

func (r *rings) add(t ring.Table) {
	if r.tables == nil {
		r.tables = map[uint64]*ring.Ring{}
	}
	x := ring.New(t)
	r.tables[t.Number] = x
	if r.current == nil || t.Number > r.current.Number() {
		r.current = x
	}
}

// from returns all tables above number, in order.
func (r *rings) from(number uint64) []ring.Table {
	var out []ring.Table
	for _, n := range sortedKeys(r.tables) {
		if n > number {
			out = append(out, r.tables[n].Table())
		}
	}
	return out
}

// found makes a new mesh of this node alone.
func (c *Core) found() {
	c.mesh = wire.MeshID(c.cfg.Random | 1)
	t := ring.Table{}.With(c.cfg.Self)
	c.note(NoteInfo, nil, "mesh founded", "%s", c.mesh)
	c.persistThen([]wire.Op{put(key(recordMesh), c.mesh), put(key(recordRing, t.Number), t)}, func() {
		c.rings.add(t)
		c.ringChanged()
	})
}

// join asks a member to take this node into the ring, again and again.
func (c *Core) join(via ring.NodeID, h *wire.Hello) {
	if h.Mesh == 0 || !c.up(via) || c.member() {
		return
	}
	again := func() { c.after(500*Millisecond+c.jitter(500*Millisecond), func() { c.join(via, h) }) }
	c.call(via, &wire.Join{Member: c.cfg.Self, Boot: c.cfg.Boot}, 15*Second, func(msg wire.Message) {
		r, ok := msg.(*wire.Rings)
		if !ok {
			if e, isError := msg.(*wire.Error); isError {
				c.note(NoteInfo, nil, "not joined yet", "%v", e)
				if e.Code == wire.CodeOlderData || e.Code == wire.CodeWrongMesh {
					c.emit(Stop{Err: e})
					return
				}
			}
			again()
			return
		}
		if c.mesh == 0 {
			c.mesh = h.Mesh
			c.persistThen([]wire.Op{put(key(recordMesh), c.mesh)}, nil)
		}
		c.onRings(r)
		if !c.member() {
			again()
		}
	})
}

// fetchRings asks a peer for the rings that this node lacks.
func (c *Core) fetchRings(from ring.NodeID) {
	if c.rings.fetching || !c.up(from) {
		return
	}
	c.rings.fetching = true
	c.call(from, &wire.GetRings{From: c.rings.current.Number()}, callTimeout, func(msg wire.Message) {
		c.rings.fetching = false
		if r, ok := msg.(*wire.Rings); ok {
			c.onRings(r)
		}
	})
}

// onRings learns agreed rings.
func (c *Core) onRings(m *wire.Rings) {
	c.onBoots(m.Boots)
	var ops []wire.Op
	var learned []ring.Table
	for _, t := range m.Tables {
		if c.rings.tables[t.Number] != nil {
			continue
		}
		if err := t.Validate(); err != nil {
			c.note(NoteWarn, nil, "bad ring refused", "%v", err)
			continue
		}
		ops = append(ops, put(key(recordRing, t.Number), t))
		learned = append(learned, t)
	}
	if len(ops) == 0 {
		return
	}
	c.persistThen(ops, func() {
		before := uint64(0)
		if c.rings.current != nil {
			before = c.rings.current.Number()
		}
		for _, t := range learned {
			c.rings.add(t)
		}
		if before == 0 && c.damagedAll {
			c.persistThen(c.loseVotes(), nil)
		}
		if c.rings.current.Number() > before {
			c.ringChanged()
		}
	})
}

// secret signs receipts: it tells those of another mesh, by mistake, from those of this one.
func (c *Core) secret() uint64 { return uint64(c.mesh) * 0x9e3779b97f4a7c15 }

// ringChanged takes the newest ring into use.
func (c *Core) ringChanged() {
	t := c.rings.current.Table()
	c.note(NoteInfo, nil, "ring", "number %d, %d members", t.Number, len(t.Members))
	var members []ring.Member
	for _, m := range t.Members {
		if m.ID != c.self {
			members = append(members, m)
		}
	}
	// Nodes that have left may still keep partitions of an open ring.
	for _, n := range sortedKeys(c.rings.tables) {
		if !c.ringOpen(n) {
			continue
		}
		for _, m := range c.rings.tables[n].Table().Members {
			if m.ID != c.self && !slices.ContainsFunc(members, func(x ring.Member) bool { return x.ID == m.ID }) {
				members = append(members, m)
			}
		}
	}
	slices.SortFunc(members, func(a, b ring.Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	c.emit(Peers{Members: members})
	if !c.member() {
		return
	}
	for _, id := range sortedKeys(c.places) {
		c.place(id)
	}
	for _, id := range sortedKeys(c.peers) {
		if p := c.peers[id]; p.up {
			c.greet(p)
		}
	}
	c.tellClients()
	// Under an older ring nothing is granted any more, and in one lease no grant of
	// one can run; after a boot this node does not know what it granted.
	number := t.Number
	wait := max(c.now.Mono, c.bootUntil) + ownershipLease - c.now.Mono
	if c.planted(bugStoredAtOnce) {
		wait = 0
	}
	c.after(wait, func() {
		if c.rings.current.Number() == number {
			c.rings.stored = number
		}
	})
}

// ringOpen says whether some partition of this node still needs a ring.
func (c *Core) ringOpen(number uint64) bool {
	for _, p := range c.parts { // any or none: the order does not matter
		if len(p.sets) > 1 && p.moved <= number {
			return true
		}
	}
	return false
}

// settled says whether all partitions that this node is a home replica of have moved to
// the current ring.
func (c *Core) settled() bool {
	for _, p := range c.parts { // any or none: the order does not matter
		if p.home && len(p.sets) > 1 {
			return false
		}
	}
	return true
}

// vote is what a member has promised and accepted for one ring number. It is on disk
// before it is told.
type vote struct {
	Promised wire.Ballot
	Accepted wire.Ballot
	Table    ring.Table
}

// loseVotes notes that a vote for the next ring may have been forgotten; the caller
// persists what it returns.
func (c *Core) loseVotes() []wire.Op {
	if c.rings.current == nil || c.lostVotes > c.rings.current.Number() {
		return nil
	}
	c.lostVotes = c.rings.current.Number() + 1
	return []wire.Op{put(key(recordForgot), c.lostVotes)}
}

// recallVote learns anew what this node may have promised and voted for and forgotten,
// before it votes for the next ring again. It has the others promise it a ballot: whatever
// a majority with its forgotten vote could have chosen, or still can, is known to one of any
// N - majority + 1 of them, and is below that ballot.
func (c *Core) recallVote() {
	if c.lostVotes == 0 || c.recalling || c.council != nil || !c.member() {
		return
	}
	number := c.lostVotes
	forget := func(ops ...wire.Op) {
		c.lostVotes = 0
		c.persistThen(append(ops, put(key(recordForgot), c.lostVotes)), nil)
	}
	if number <= c.rings.current.Number() {
		forget()
		return
	}
	members := c.rings.current.Table().Members
	need := len(members) - (len(members)/2 + 1) + 1
	c.recalling = true
	ballot := wire.Ballot{Counter: c.votes[number].Promised.Counter + 1, Node: c.self}
	learned, highest, have, answers := vote{Promised: ballot}, ballot, 0, 0
	for _, m := range members {
		if m.ID == c.self {
			continue
		}
		c.call(m.ID, &wire.RingPrepare{Number: number, Ballot: ballot}, callTimeout, func(msg wire.Message) {
			answers++
			if r, ok := msg.(*wire.RingPromise); ok {
				if highest.Less(r.Highest) {
					highest = r.Highest
				}
				if r.OK {
					have++
					if learned.Accepted.Less(r.Accepted) {
						learned.Accepted, learned.Table = r.Accepted, r.Table
					}
				}
			}
			if answers < len(members)-1 {
				return
			}
			c.recalling = false
			if c.lostVotes != number || c.rings.current.Number()+1 != number {
				return
			}
			if have < need { // again, above what was seen
				v := c.votes[number]
				v.Promised.Counter = max(v.Promised.Counter, highest.Counter)
				c.votes[number] = v
				return
			}
			if (learned.Accepted == wire.Ballot{}) {
				c.damageRing = number - 1 // the next was not agreed yet
			}
			c.votes[number] = learned
			forget(put(key(recordVote, number), learned))
		})
	}
}

// mayVote says whether this node may vote for a ring. After it has lost state it may
// have forgotten a vote: it learns it first. With two members every majority has the other one,
// who has not forgotten.
func (c *Core) mayVote(number uint64) bool {
	return c.rings.current.Len() < 3 || number > c.lostVotes
}

func (c *Core) onRingPrepare(req ReqID, from ring.NodeID, m *wire.RingPrepare) {
	if !c.member() || m.Number != c.rings.current.Number()+1 {
		c.voteElsewhere(from, m.Number)
		c.reply(req, &wire.RingPromise{})
		return
	}
	c.prepare(m, func(answer wire.Message) { c.reply(req, answer) })
}

// prepare answers the first phase as a voter, once the promise is synced.
func (c *Core) prepare(m *wire.RingPrepare, answer func(wire.Message)) {
	v := c.votes[m.Number]
	if !c.mayVote(m.Number) || !v.Promised.Less(m.Ballot) {
		answer(&wire.RingPromise{Highest: v.Promised})
		return
	}
	v.Promised = m.Ballot
	c.votes[m.Number] = v
	c.persistThen([]wire.Op{put(key(recordVote, m.Number), v)}, func() {
		answer(&wire.RingPromise{OK: true, Highest: v.Promised, Accepted: v.Accepted, Table: v.Table})
	})
}

func (c *Core) onRingAccept(req ReqID, from ring.NodeID, m *wire.RingAccept) {
	number := m.Table.Number
	if !c.member() || number != c.rings.current.Number()+1 || m.Table.Validate() != nil {
		c.voteElsewhere(from, number)
		c.reply(req, &wire.RingAccepted{})
		return
	}
	c.accept(m, func(answer wire.Message) { c.reply(req, answer) })
}

// accept answers the second phase as a voter, once the vote is synced.
func (c *Core) accept(m *wire.RingAccept, answer func(wire.Message)) {
	number := m.Table.Number
	v := c.votes[number]
	if !c.mayVote(number) || m.Ballot.Less(v.Promised) {
		answer(&wire.RingAccepted{Highest: v.Promised})
		return
	}
	v = vote{Promised: m.Ballot, Accepted: m.Ballot, Table: m.Table}
	c.votes[number] = v
	c.persistThen([]wire.Op{put(key(recordVote, number), v)}, func() {
		answer(&wire.RingAccepted{OK: true, Highest: m.Ballot})
	})
}

// voteElsewhere brings whoever is behind up to date.
func (c *Core) voteElsewhere(from ring.NodeID, number uint64) {
	if !c.member() {
		return
	}
	if current := c.rings.current.Number(); number <= current {
		c.send(from, &wire.Rings{Tables: c.rings.from(number - 1), Boots: c.boots()})
	} else {
		c.fetchRings(from)
	}
}

// proposal is this node's attempt to have the next ring agreed.
type proposal struct {
	change   func(ring.Table) ring.Table
	done     func(*wire.Error)
	ballot   wire.Ballot
	deadline Instant
}

// propose has a change of the ring agreed by a majority of its members: single-decree
// Paxos for the next ring number. done(nil) comes when it is.
func (c *Core) propose(change func(ring.Table) ring.Table, done func(*wire.Error)) {
	busy := func(text string) {
		done(&wire.Error{Code: wire.CodeNotReady, Text: text, RetryAfter: 500})
	}
	if c.council != nil {
		busy("another ring step is under way here")
		return
	}
	if !c.settled() {
		busy("partitions are still moving to the present ring")
		return
	}
	for _, id := range c.others() {
		if p := c.peer(id); p.up && (p.beat.Ring != c.rings.current.Number() || !p.beat.Settled) {
			busy("a member is still moving partitions to the present ring")
			return
		}
	}
	c.council = &proposal{change: change, done: done, deadline: c.now.Mono + 8*Second}
	c.prepareRing()
}

// endProposal forgets the proposal and says how it went.
func (c *Core) endProposal(err *wire.Error) {
	p := c.council
	c.council = nil
	p.done(err)
}

// votesNeeded is a majority of the members.
func (c *Core) votesNeeded(members []ring.Member) int {
	if c.planted(bugRingByOneVote) {
		return 1
	}
	return len(members)/2 + 1
}

// prepareRing runs the first phase, with a ballot above all that were seen.
func (c *Core) prepareRing() {
	p := c.council
	before := c.rings.current
	number := before.Number() + 1
	p.ballot = wire.Ballot{Counter: max(p.ballot.Counter, c.votes[number].Promised.Counter) + 1, Node: c.self}
	ballot := p.ballot

	members := before.Table().Members
	want, have, answers := c.votesNeeded(members), 0, 0
	var best wire.Ballot
	table := p.change(before.Table())
	over := false
	again := func() {
		over = true
		c.after(50*Millisecond+c.jitter(200*Millisecond), func() { c.retryRing(p, before.Number()) })
	}
	answer := func(msg wire.Message) {
		if over || c.council != p {
			return
		}
		answers++
		if r, ok := msg.(*wire.RingPromise); ok {
			p.ballot.Counter = max(p.ballot.Counter, r.Highest.Counter)
			if r.OK {
				have++
				if best.Less(r.Accepted) {
					best, table = r.Accepted, r.Table
				}
			}
		}
		switch {
		case have == want:
			over = true
			c.acceptRing(ballot, table, best == wire.Ballot{})
		case answers-have > len(members)-want:
			again()
		}
	}
	c.ask(members, &wire.RingPrepare{Number: number, Ballot: ballot}, answer)
}

// acceptRing runs the second phase for a table that the first one allows. mine says
// whether it has the change of this proposal.
func (c *Core) acceptRing(ballot wire.Ballot, table ring.Table, mine bool) {
	p := c.council
	before := c.rings.current
	members := before.Table().Members
	want, have, answers := c.votesNeeded(members), 0, 0
	over := false
	c.ask(members, &wire.RingAccept{Ballot: ballot, Table: table}, func(msg wire.Message) {
		if over || c.council != p {
			return
		}
		answers++
		if r, ok := msg.(*wire.RingAccepted); ok {
			p.ballot.Counter = max(p.ballot.Counter, r.Highest.Counter)
			if r.OK {
				have++
			}
		}
		switch {
		case have == want:
			over = true
			c.onRings(&wire.Rings{Tables: []ring.Table{table}})
			c.persistThen(nil, func() { // behind the ring's own record
				for _, id := range c.others() {
					c.send(id, &wire.Rings{Tables: []ring.Table{table}, Boots: c.boots()})
				}
				if mine {
					c.endProposal(nil)
				} else {
					c.retryRing(p, before.Number())
				}
			})
		case answers-have > len(members)-want:
			over = true
			c.after(50*Millisecond+c.jitter(200*Millisecond), func() { c.retryRing(p, before.Number()) })
		}
	})
}

// retryRing tries again: the same number, or the next if that one was decided.
func (c *Core) retryRing(p *proposal, number uint64) {
	if c.council != p {
		return
	}
	if c.rings.current.Number() > number {
		c.endProposal(&wire.Error{Code: wire.CodeNotReady, Text: "another ring step was agreed first", RetryAfter: 500})
		return
	}
	if c.now.Mono > p.deadline {
		c.endProposal(wire.Errorf(wire.ErrQuorum, "the ring step was not agreed by a majority of the members in time"))
		return
	}
	c.prepareRing()
}

// ask has all members vote, this one included.
func (c *Core) ask(members []ring.Member, msg wire.Message, answer func(wire.Message)) {
	for _, m := range members {
		if m.ID != c.self {
			c.call(m.ID, msg, callTimeout, answer)
			continue
		}
		switch msg := msg.(type) {
		case *wire.RingPrepare:
			c.prepare(msg, answer)
		case *wire.RingAccept:
			c.accept(msg, answer)
		}
	}
}

// onJoin answers Join: the member that is asked proposes the step.
func (c *Core) onJoin(req ReqID, m *wire.Join) {
	if !c.member() {
		c.reply(req, wire.Errorf(wire.ErrNotReady, "this node is not a member itself yet"))
		return
	}
	if known := c.peer(m.Member.ID).boot; known > m.Boot {
		c.reply(req, wire.Errorf(wire.ErrOlderData, "the data directory is at boot %d, the mesh remembers boot %d of the node: it is an old copy", m.Boot, known))
		return
	}
	answer := func() { c.reply(req, &wire.Rings{Tables: c.rings.from(0), Boots: c.boots()}) }
	if _, found := c.rings.current.Table().Member(m.Member.ID); found {
		answer()
		return
	}
	for _, x := range c.rings.current.Table().Members {
		if x.Name == m.Member.Name {
			c.reply(req, wire.Errorf(wire.ErrBadRequest, "the mesh has another node named %q: choose another name", x.Name))
			return
		}
	}
	if t := c.rings.current.Table().With(m.Member); t.Validate() != nil {
		c.reply(req, wire.Errorf(wire.ErrBadRequest, "the member cannot join: %v", t.Validate()))
		return
	}
	c.propose(func(t ring.Table) ring.Table { return t.With(m.Member) }, func(err *wire.Error) {
		if err != nil {
			c.reply(req, err)
			return
		}
		answer()
	})
}
