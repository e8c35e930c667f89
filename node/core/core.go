package core

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Never is what Next returns when no time is waited for.
const Never Instant = math.MaxInt64

// Units of Instant.
const (
	Millisecond Instant = 1e6
	Second      Instant = 1e9
)

// Periods of the protocol (DESIGN sections 6, 7 and 10).
const (
	ownershipLease = Second
	renewEvery     = ownershipLease / 4
	rankDelay      = 100 * Millisecond // a claimant waits that long for each better place
	reclaimGrace   = 300 * Millisecond
	fallbackAfter  = 250 * Millisecond // of a write that has not reached W
	passTimeout    = 150 * Millisecond // of an enqueue passed to the owner
	enqueueTimeout = 5 * Second        // default and longest
	callTimeout    = 2 * Second
	orderWait      = 30 * Second // for a missing predecessor
	settleTimeout  = 5 * Second
	foldEvery      = Second
	hintEvery      = 500 * Millisecond
	digestEvery    = 30 * Second
	handoverAfter  = 30 * Second // a better placed node must be stable for that long
	commitLate     = Second      // a node whose disk is that late renews and grants nothing
)

// Config is who this node is. All of it is fixed for the life of the Core.
type Config struct {
	Self    ring.Member // ID, name, addresses, zone, weight
	Boot    uint64      // number of this boot, from 1; higher than any before
	Random  uint64      // random bits of this boot: lane epoch, mesh ID, jitter
	Version string      // of the program, for people
	Found   bool        // without data: found a new mesh. Otherwise wait to join one
	Limits  Limits

	Planting Planting // nothing, but in a build with the tag mutants
}

// Limits bound what the core holds in memory (P8, P10). Zero fields take their default.
type Limits struct {
	PendingBytes int // batches that wait for their quorum; default 64 MiB; over it ErrOverloaded
	CacheBytes   int // recent batches kept for delivery; default 16 MiB
	Retries      int // retry records in memory per partition and group; default 10,000
	InFlight     int // messages handed out per partition and group; default 100,000
	HintBytes    int // hints kept for others since boot; default 1 GiB; over it a fallback refuses
	Segments     int // batches per partition that are remembered against duplicates; default 65,536
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.PendingBytes, 64 << 20}, {&l.CacheBytes, 16 << 20}, {&l.Retries, 10_000},
		{&l.InFlight, 100_000}, {&l.HintBytes, 1 << 30}, {&l.Segments, 65_536},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return l
}

// Recovered is what the store holds at boot.
type Recovered struct {
	Records []wire.StoredRecord // all records but retries, in key order
	Refs    []wire.BatchRef     // all batches, in key order
	Commit  uint64              // number of the last commit that is there
	// Damaged names partitions of which the store knows that it lost something;
	// DamagedAll says that it cannot tell which (a part did not open, or it came back
	// with less than it confirmed).
	Damaged    []wire.PartitionID
	DamagedAll bool
}

// Core is one node's protocol. It is not safe for concurrent use: one goroutine
// calls Step, Next and the accessors.
type Core struct {
	cfg    Config
	self   ring.NodeID
	now    Time
	out    []Effect
	timers timers
	names  uint64 // the last Token

	calls    map[Token]*call
	persists map[Token]*persist
	order    []Token // of persists under way, oldest first
	reads    map[Token]func(ReadDone)
	scans    map[Token]func(ScanDone)

	mesh      wire.MeshID
	commit    uint64 // number of the last commit, as Persisted tells
	recovered uint64 // the number at boot
	bootUntil Instant
	epoch     uint64 // of the lanes of this boot
	clock     uint64 // last stamp
	jitters   uint64
	diskFull  bool
	draining  bool
	drained   bool

	peers map[ring.NodeID]*peer
	conns map[ConnID]*conn
	alive []ring.NodeID
	// addresses are where members listen now; the ring says where they did when they joined.
	addresses map[ring.NodeID]ring.Member
	rings     rings
	votes     map[uint64]vote
	council   *proposal
	catalog   catalog
	behind    []*waiting         // requests that wait for a newer catalog
	learners  []func(known bool) // who waits for what a majority knows of the catalog
	learning  bool               // a majority is being asked

	parts   map[wire.PartitionID]*partition
	places  map[wire.PartitionID]place // of all partitions of the catalog
	subs    map[subKey]*sub
	feeders map[queueGroup][]*sub
	relays  map[uint64]*sub // subscriptions at other nodes, by the Sub used there

	pendingBytes int
	hintBytes    int
	cache        cache
	stats        Stats
	damagedAll   bool
	// damageHorizon is the catalog version up to which damagedAll reaches: what was created
	// later cannot have been lost here.
	damageHorizon uint64
	// damageRing is the ring up to which damagedAll reaches: of a newer one this node cannot
	// have known when it lost state. The highest number there is while that is not known.
	damageRing   uint64
	catalogWhole bool // this boot has heard all that a peer knows of the catalog
	// catalogLost says that entries may have been lost, catalogHeard who has told since what
	// it knows; true: all of it.
	catalogLost  bool
	catalogHeard map[ring.NodeID]bool
	noticed      uint64 // the last boot in which a loss was noticed; what was lost in those before is known to be missing
	lostVotes    uint64 // the highest ring number for which a vote may have been forgotten; 0: none
	recalling    bool   // it is being learned from the others
	damaged      map[wire.PartitionID]bool
}

// New makes the core of a node from what its store holds. The first Step gives the
// effects of booting: feed it a Tick at once.
func New(cfg Config, rec Recovered) *Core {
	if cfg.Self.Weight == 0 {
		cfg.Self.Weight = 1
	}
	cfg.Limits = cfg.Limits.withDefaults()
	c := &Core{
		cfg: cfg, self: cfg.Self.ID,
		calls: map[Token]*call{}, persists: map[Token]*persist{},
		reads: map[Token]func(ReadDone){}, scans: map[Token]func(ScanDone){},
		commit: rec.Commit, recovered: rec.Commit,
		epoch: cfg.Boot<<32 | cfg.Random&0xffffffff,
		peers: map[ring.NodeID]*peer{}, conns: map[ConnID]*conn{},
		votes: map[uint64]vote{}, parts: map[wire.PartitionID]*partition{},
		places: map[wire.PartitionID]place{}, subs: map[subKey]*sub{},
		feeders: map[queueGroup][]*sub{}, relays: map[uint64]*sub{},
		damagedAll: rec.DamagedAll, damageRing: math.MaxUint64, damaged: map[wire.PartitionID]bool{},
	}
	if c.planted(bugEpochReused) || c.planted(bugConflictOverwrites) {
		c.epoch = 1
	}
	c.catalog.entries = map[string]*wire.QueueEntry{}
	c.catalogHeard = map[ring.NodeID]bool{}
	for _, p := range rec.Damaged {
		c.damaged[p] = true
	}
	c.cache.limit = cfg.Limits.CacheBytes
	c.recover(rec)
	c.damageHorizon = c.catalog.version
	c.timers.add(0, c.boot)
	return c
}

// Step applies one event and returns what the shell must do, in order. It reads no
// clock, draws no random number, starts no goroutine and does no I/O: equal inputs
// give equal effects, so a simulation can replay a seed. A promise of durability is
// never made in the step that persists: it follows the Persisted event.
//
// Only Tick acts on time that has passed, so that after a stall the shell can feed
// what has arrived before it.
func (c *Core) Step(now Time, ev Event) []Effect {
	c.now = now
	c.out = nil
	switch ev := ev.(type) {
	case Tick:
		c.timers.run(now.Mono)
	case ConnOpened:
		c.connOpened(ev)
	case ConnClosed:
		c.connClosed(ev.Conn)
	case Request:
		c.request(ev)
	case Received:
		c.received(ev)
	case Pushed:
		c.pushed(ev)
	case Answered:
		c.answered(ev)
	case PeerUp:
		c.peerUp(ev)
	case PeerDown:
		c.peerDown(ev.Node)
	case Members:
		c.members(ev)
	case Persisted:
		c.persisted(ev)
	case ReadDone:
		if fn := c.reads[ev.Token]; fn != nil {
			delete(c.reads, ev.Token)
			fn(ev)
		}
	case ScanDone:
		if fn := c.scans[ev.Token]; fn != nil {
			delete(c.scans, ev.Token)
			fn(ev)
		}
	case Damage:
		c.damage(ev)
	case Disk:
		c.diskFull = ev.Full
	case Drain:
		c.drain()
	default:
		panic(fmt.Sprintf("core: unknown event %T", ev))
	}
	out := c.out
	c.out = nil
	return out
}

// Next is when the core wants a Tick; Never if at no time.
func (c *Core) Next() Instant { return c.timers.next() }

// Mesh is the mesh that this node belongs to; 0 until it has joined one.
func (c *Core) Mesh() wire.MeshID { return c.mesh }

// Table is the newest ring that this node knows; number 0 until it has joined.
func (c *Core) Table() ring.Table {
	if c.rings.current == nil {
		return ring.Table{}
	}
	return c.rings.current.Table()
}

// CatalogVersion is the highest catalog version that this node has seen.
func (c *Core) CatalogVersion() uint64 { return c.catalog.version }

// Commit is the number of the last synced commit.
func (c *Core) Commit() uint64 { return c.commit }

// Ready says whether the node serves: it is a member and is not draining.
func (c *Core) Ready() bool { return c.member() && !c.draining }

// boot starts what runs all the time.
func (c *Core) boot() {
	c.bootUntil = c.now.Mono + ownershipLease
	if c.planted(bugGrantAfterBoot) || c.planted(bugMemoryGrants) {
		c.bootUntil = 0
	}
	for _, p := range c.parts { // each by itself: the order does not matter
		p.rememberFromNow()
	}
	c.keepDamage()
	c.checkCatalog()
	if c.mesh == 0 && c.cfg.Found && c.rings.current == nil {
		c.found()
	} else if c.rings.current != nil {
		c.ringChanged()
	}
	c.every(renewEvery, c.beat)
	c.every(foldEvery, c.foldAll)
	c.every(hintEvery, c.drainHints)
	c.every(digestEvery, func() { c.compareAll() })
}

// keepDamage writes what the store said was lost, in one commit: after its first commit the
// store does not say so again.
func (c *Core) keepDamage() {
	var ops []wire.Op
	if c.damagedAll {
		ops = append(c.loseVotes(), c.loseCatalog()...)
	}
	for _, id := range sortedKeys(c.parts) {
		if p := c.parts[id]; p.repairing {
			ops = append(ops, p.repairOp())
		}
	}
	if len(ops) > 0 {
		c.persistThen(ops, nil)
	}
}

// every runs fn now and then again and again.
func (c *Core) every(d Instant, fn func()) {
	fn()
	c.after(d, func() { c.every(d, fn) })
}

// after runs fn once, d from now, unless the timer is stopped.
func (c *Core) after(d Instant, fn func()) *timer { return c.timers.add(c.now.Mono+d, fn) }

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

func (c *Core) note(level NoteLevel, p *partition, text, format string, args ...any) {
	n := Note{Level: level, Text: text, Detail: fmt.Sprintf(format, args...)}
	if p != nil {
		n.Partition = p.id
	}
	c.emit(n)
}

func (c *Core) token() Token {
	c.names++
	return Token(c.names)
}

// jitter is a number in [0, n) that differs between nodes and calls.
func (c *Core) jitter(n Instant) Instant {
	c.jitters++
	x := (uint64(c.self) ^ c.cfg.Random) + c.jitters*0x9e3779b97f4a7c15
	x ^= x >> 31
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return Instant(x % uint64(max(1, n)))
}

// persist is a Persist under way.
type persist struct {
	since Instant
	fn    func()
}

// persistThen commits ops and calls fn when they, and all ops before them, are
// synced. fn may be nil; without ops it is a barrier.
func (c *Core) persistThen(ops []wire.Op, fn func()) {
	t := c.token()
	c.persists[t] = &persist{since: c.now.Mono, fn: fn}
	c.order = append(c.order, t)
	c.emit(Persist{Token: t, Ops: ops})
}

func (c *Core) persisted(ev Persisted) {
	p := c.persists[ev.Token]
	if p == nil {
		return
	}
	delete(c.persists, ev.Token)
	if len(c.order) == 0 || c.order[0] != ev.Token {
		panic("core: commits complete out of order")
	}
	c.order = c.order[1:]
	c.commit = max(c.commit, ev.Commit)
	if p.fn != nil {
		p.fn()
	}
}

// healthy says whether the disk keeps up: a node that cannot sync must not own or
// grant (a gray owner would renew for ever and deliver nothing).
func (c *Core) healthy() bool {
	return len(c.order) == 0 || c.now.Mono-c.persists[c.order[0]].since < commitLate
}

// read asks the store for batches.
func (c *Core) read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int, fn func(ReadDone)) {
	t := c.token()
	c.reads[t] = fn
	c.emit(Read{Token: t, Partition: p, Lane: l, Runs: runs, MaxBytes: maxBytes})
}

// scan asks the store for records.
func (c *Core) scan(prefix, after []byte, limit int, fn func(ScanDone)) {
	t := c.token()
	c.scans[t] = fn
	c.emit(Scan{Token: t, Prefix: prefix, After: after, Limit: limit})
}

func (c *Core) reply(req ReqID, msg wire.Message) {
	if req != 0 {
		c.emit(Reply{Req: req, Msg: msg})
	}
}

// sortedKeys are the keys of m in order: effects never depend on map order.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// sortedLanes are the lanes of m in order.
func sortedLanes[V any](m map[wire.Lane]V) []wire.Lane {
	return slices.SortedFunc(maps.Keys(m), func(a, b wire.Lane) int { return a.Compare(b) })
}
