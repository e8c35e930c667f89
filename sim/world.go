package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	clientcore "github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// Units of virtual time, in nanoseconds.
const (
	microsecond int64 = 1_000
	millisecond       = 1_000 * microsecond
	second            = 1_000 * millisecond
)

// Streams of luck. Every coin of the world is a hash of the seed, a stream and
// what it is about, so that removing one fault does not change the luck of the
// others.
const (
	luckLatency uint64 = iota + 1
	luckSync
	luckRead
	luckCrash
	luckBoot
	luckClose
	luckDial
	luckGossip
	luckClient
	luckPlan
	luckDisk
	luckWrite
	luckStart
	luckFault
	luckTCP
)

func mix(h, v uint64) uint64 {
	h ^= v + 0x9e3779b97f4a7c15 + h<<6 + h>>2
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// world runs cores and model clients under virtual time. One seed is one schedule.
type world struct {
	seed  uint64
	now   int64
	queue schedule
	seq   uint64 // of the next scheduled call: breaks ties of time
	calls int    // that were made

	hosts  []*host // nodes and clients, in the order of their making
	mesh   []*host // the nodes among them
	places int     // that nodes have, or had
	byID   map[ring.NodeID]*host
	links  map[[2]int]*link
	conns  uint64

	net   netModel
	disks diskModel
	check *checker

	planting       core.Planting       // a bug in all nodes
	clientPlanting clientcore.Planting // a bug in all clients of the library

	newest  *ring.Ring
	hash    uint64 // rolling hash of everything that happened
	steps   int
	tracing bool
	tracef  func(format string, args ...any)           // set when tracing
	observe func(c *conn, dir int, f frame, lost bool) // sees every frame that is written
	noted   func(h *host, n core.Note)
	names   names
	failure *violation       // the first broken promise; the world stops there
	reached map[string]int   // situations that came about, by name
	told    map[msgKey]bool  // batches, by their first message, that their producer was told are confirmed
	waiting int              // their messages, once for each group, acked or not
	history *history.History // nil: none is kept
	story   *storyteller     // nil: none is told
	began   int64            // when the load began; 0: not yet

	unheard   map[[2]int]int // pairs of nodes between which no gossip passes, and for how many faults
	listening bool           // who hears of whom is looked at before time goes on
	noRejoin  bool           // gossip never dials the dead again, as memberlist alone does not
	beyond    bool           // more may go wrong than the promises cover
	gone      int            // nodes that are gone for ever
}

type netModel struct {
	latency, jitter int64 // minimum, and mean of the exponential part
	late            []*late
	keepalive       int64 // a silent connection is given up after this to twice this
	redial          int64
}

// late lets one frame in so many be late by up to by.
type late struct {
	oneIn int
	by    int64
	key   uint64 // of its luck
}

type violation struct {
	promise string
	text    string
	message msgKey // the guilty message, if it is about one
}

func (v *violation) Error() string { return v.promise + ": " + v.text }

func newWorld(seed uint64) *world {
	w := &world{
		seed: seed, byID: map[ring.NodeID]*host{}, links: map[[2]int]*link{},
		net:   netModel{latency: 200 * microsecond, jitter: 300 * microsecond, keepalive: 2 * second, redial: 200 * millisecond},
		disks: diskModel{sync: 500 * microsecond, jitter: 1 * millisecond, read: 100 * microsecond},
		hash:  seed, reached: map[string]int{}, told: map[msgKey]bool{}, unheard: map[[2]int]int{},
	}
	w.names.init()
	w.check = newChecker(w)
	return w
}

// luck is a coin of the world: the same arguments always give the same number. What a
// coin is about is named by keys of hosts and counters of their own, never by an order
// that another host or another fault has a part in.
func (w *world) luck(stream, a, b, n uint64) uint64 {
	return mix(mix(mix(mix(mix(w.seed, stream), a), b), n), 0x6d65736871)
}

// sinceLoad is the time since the load began; negative before.
func (w *world) sinceLoad() time.Duration { return time.Duration(w.now - w.began) }

func unit(coin uint64) float64 { return float64(coin>>11) / (1 << 53) }

// between maps a coin to [lo, hi).
func between(coin uint64, lo, hi int64) int64 {
	if hi <= lo {
		return lo
	}
	return lo + int64(coin%uint64(hi-lo))
}

func exponential(coin uint64, mean int64) int64 {
	return int64(-math.Log(1-unit(coin)) * float64(mean))
}

func (w *world) fail(promise string, about msgKey, format string, args ...any) {
	if w.failure != nil {
		return
	}
	w.failure = &violation{promise, fmt.Sprintf(format, args...), about}
	if w.tracing {
		w.tracef("BROKEN %s: %s", promise, w.failure.text)
	}
}

// The schedule.

type call struct {
	at  int64
	seq uint64
	do  func()
}

func (c *call) before(o *call) bool { return c.at < o.at || c.at == o.at && c.seq < o.seq }

// schedule is a heap of calls in which each has four below it.
type schedule []call

func (s *schedule) push(c call) {
	q := append(*s, c)
	i := len(q) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !c.before(&q[up]) {
			break
		}
		q[i] = q[up]
		i = up
	}
	q[i] = c
	*s = q
}

func (s *schedule) pop() call {
	q := *s
	first, last := q[0], q[len(q)-1]
	q[len(q)-1] = call{}
	q = q[:len(q)-1]
	*s = q
	for i := 0; len(q) > 0; {
		least := 4*i + 1
		if least >= len(q) {
			q[i] = last
			break
		}
		for j := least + 1; j < min(4*i+5, len(q)); j++ {
			if q[j].before(&q[least]) {
				least = j
			}
		}
		if !q[least].before(&last) {
			q[i] = last
			break
		}
		q[i] = q[least]
		i = least
	}
	return first
}

func (w *world) at(t int64, do func()) {
	w.seq++
	w.queue.push(call{max(t, w.now), w.seq, do})
}

func (w *world) after(d int64, do func()) { w.at(w.now+d, do) }

// Bounds of a run: a core that asks for more and more is a failure, not a hang.
const (
	maxCalls   = 50_000_000
	maxWaiting = 1_000_000
)

// run takes the world to time t, or to the first broken promise.
func (w *world) run(t int64) {
	for len(w.queue) > 0 && w.queue[0].at <= t && w.failure == nil {
		c := w.queue.pop()
		w.now = c.at
		c.do()
		if w.calls++; w.calls > maxCalls || len(w.queue) > maxWaiting {
			w.fail("bounds", msgKey{}, "%d things happened and %d wait: more than a run may have", w.calls, len(w.queue))
		}
		if w.story != nil {
			w.story.look()
		}
	}
	if w.failure == nil {
		w.now = t
	}
}

// runFor is run for a span of time.
func (w *world) runFor(d int64) { w.run(w.now + d) }

// Hosts.

// host is a machine: with a node on it, or with a client.
type host struct {
	w     *world
	index int
	name  string
	key   uint64 // of its luck: a hash of the name
	place int    // among the nodes; -1: a client

	confirms int64 // when it last told a producer that a batch is confirmed

	client client // nil: a node

	id      ring.NodeID
	zone    string
	founder bool
	// replaced is how often another node was put in the place of this one.
	replaced int
	seeds    []*host
	core     *core.Core
	running  bool
	life     int // counts boots and ends of the process; what was started in an earlier life is void
	boot     uint64
	boots    int64 // world time of the last boot
	// bootSeen are the highest boot numbers that others said in this life: the door turns away lower ones.
	bootSeen map[ring.NodeID]uint64
	twinOf   *host // of which it is a second process; nil: none
	disk     *disk
	peers    []ring.Member
	limits   core.Limits
	stopped  error // by a Stop effect
	drained  bool

	clock
	paused   bool
	pausedTo int64
	inbox    []func()     // what waits for the end of the pause
	down     int          // how many faults keep the node from being started
	slow     int64        // how much longer each step takes
	busy     bool         // a slow step is under way
	backlog  []core.Event // what came meanwhile
	crashIn  int          // crash before that effect of the next steps; -1: no
	tickAt   int64
	spinning int

	lastConn core.ConnID
	lastReq  core.ReqID
	requests map[core.ReqID]*request
	in       map[core.ConnID]*conn
	out      map[int]*conn // connections that this host opened, by index of the other
	dialing  map[int]bool
	gossip   rumours
}

// client is a model client on a host of its own.
type client interface {
	opened(c *conn)
	closed(to *host)
	pushed(c *conn, msg wire.Message)
}

// request is one that a node must answer.
type request struct {
	conn     *conn
	number   uint64 // of the asking side
	msg      wire.Message
	arrived  int64
	deadline int64 // world time
	members  int   // of the ring, when it arrived
	answered bool
}

func (w *world) addHost(name string) *host {
	h := &host{w: w, index: len(w.hosts), name: name, key: nameKey(name), place: -1, crashIn: -1, out: map[int]*conn{}, dialing: map[int]bool{}}
	w.hosts = append(w.hosts, h)
	return h
}

// addNode makes a machine with an empty disk; start boots it.
func (w *world) addNode(name string, id ring.NodeID) *host {
	h := w.addHost(name)
	h.place = w.places
	w.places++
	w.mesh = append(w.mesh, h)
	h.disk = newDisk(h)
	w.setID(h, id)
	return h
}

func (w *world) setID(h *host, id ring.NodeID) {
	h.id = id
	w.byID[id] = h
	w.names.node(id, h.name)
}

func (w *world) addClient(name string, c client) *host {
	h := w.addHost(name)
	h.client, h.running = c, true
	return h
}

// node is the host of a node ID, nil when that node is gone for ever.
func (w *world) node(id ring.NodeID) *host {
	if h := w.byID[id]; h != nil && h.id == id {
		return h
	}
	return nil
}

// nodes are the hosts of nodes.
func (w *world) nodes() []*host { return w.mesh }

// nameKey is what luck knows a host by.
func nameKey(name string) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}

func (h *host) member() ring.Member {
	name := h.name
	if h.twinOf != nil {
		name = h.twinOf.member().Name
	}
	if h.replaced > 0 { // the mesh keeps the name of the node that is gone
		name = fmt.Sprintf("%s-%d", h.name, h.replaced+1)
	}
	return ring.Member{ID: h.id, Name: name, Address: h.name + ":7700", Gossip: h.name + ":7701", HTTP: h.name + ":7780", Zone: h.zone, Weight: 1}
}

// start boots the node of h from its disk.
func (h *host) start() {
	w := h.w
	if h.running {
		return
	}
	h.life++
	h.boot = h.disk.countBoot()
	h.running, h.paused, h.crashIn, h.stopped, h.drained = true, false, -1, nil, false
	w.tellNode(history.NodeUp, h)
	h.inbox, h.peers, h.pausedTo, h.bootSeen = nil, nil, 0, nil
	h.busy, h.backlog = false, nil
	h.boots = w.now
	h.reset(w.now, between(w.luck(luckBoot, h.key, uint64(h.disk.segment), 1), 0, 1000*second))
	h.gossip.begin()
	h.lastConn, h.lastReq = 0, 0
	h.requests, h.in, h.out, h.dialing = map[core.ReqID]*request{}, map[core.ConnID]*conn{}, map[int]*conn{}, map[int]bool{}
	h.tickAt, h.spinning = math.MaxInt64, 0
	recovered := h.disk.recover()
	found := h.founder && len(recovered.Records) == 0 && !recovered.DamagedAll
	if !found && len(h.seeds) == 0 { // its file of members
		h.seeds = w.others(h)
	}
	c := core.Config{
		Self: h.member(), Boot: h.boot, Random: w.luck(luckBoot, h.key, uint64(h.disk.segment), 2),
		Found: found, Limits: h.limits, Planting: w.planting,
	}
	if w.tracing {
		w.tracef("%s boot %d", h.name, h.boot)
	}
	h.core = core.New(c, recovered)
	w.hashIn(hashBoot, h.key, h.boot)
	h.scheduleTick()
	h.dialPeers()
	h.disk.began()
	h.rejoin()
	w.gossip()
}

// crash ends the process of h at once. What was not synced is lost, but for what
// the disk happened to keep.
func (h *host) crash() {
	w := h.w
	if !h.running {
		return
	}
	if w.tracing {
		w.tracef("%s crash", h.name)
	}
	h.running = false
	w.tellNode(history.NodeDown, h)
	h.life++
	h.disk.crash()
	w.check.crashed(h)
	for _, c := range h.connections() {
		w.lose(c, h)
	}
	w.gossip()
}

// connections are all open connections of h, in the order of their making.
func (h *host) connections() []*conn {
	var out []*conn
	for _, c := range h.in {
		out = append(out, c)
	}
	for _, c := range h.out {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *conn) int { return cmp.Compare(a.number, b.number) })
	return out
}

// pause stops the process of h for d, as SIGSTOP does: its clocks go on.
func (h *host) pause(d int64) {
	if !h.running {
		return
	}
	h.pausedTo = max(h.pausedTo, h.w.now+d)
	if h.paused {
		return
	}
	h.paused = true
	h.w.gossip()
	h.resume()
}

// resume ends the pause when its time has come.
func (h *host) resume() {
	life := h.life
	h.w.at(h.pausedTo, func() {
		if h.life != life || !h.paused {
			return
		}
		if h.w.now < h.pausedTo { // it was made longer
			h.resume()
			return
		}
		h.paused = false
		inbox := h.inbox
		h.inbox = nil
		for i, do := range inbox {
			if h.life != life {
				return
			}
			if h.paused { // again
				h.inbox = append(h.inbox, inbox[i:]...)
				return
			}
			do()
		}
		if h.client == nil {
			h.tickAt = math.MaxInt64
			h.scheduleTick()
			h.w.gossip()
		}
	})
}

// later calls do on h, d from now, or when its pause is over; not in another life.
func (h *host) later(d int64, do func()) {
	life := h.life
	h.w.after(d, func() {
		if h.life == life {
			h.now(do)
		}
	})
}

// now calls do, or lets it wait for the end of the pause.
func (h *host) now(do func()) {
	if h.paused {
		h.inbox = append(h.inbox, do)
		return
	}
	do()
}

// give hands an event to the core of h, now, if it is in that life.
func (h *host) give(life int, ev core.Event) {
	if h.life == life {
		h.step(ev)
	}
}

func (h *host) step(ev core.Event) {
	w := h.w
	if !h.running || w.failure != nil {
		return
	}
	if h.paused {
		h.inbox = append(h.inbox, func() { h.step(ev) })
		return
	}
	if h.busy {
		h.backlog = append(h.backlog, ev)
		return
	}
	h.take(ev)
}

// take lets the core step, and does what it asks for: at once, or after the time that
// the step takes.
func (h *host) take(ev core.Event) {
	w := h.w
	switch e := ev.(type) {
	case core.Request:
		w.check.requested(h, e.Conn, e.Msg)
	case core.Received:
		if _, ok := e.Msg.(*wire.Resume); ok {
			w.reach("resumed")
		}
		w.check.requested(h, e.Conn, e.Msg)
	}
	w.steps++
	w.hashTakes(h, ev)
	effects := h.core.Step(h.time(), ev)
	for _, e := range effects {
		w.hashGives(h, e)
	}
	if h.slow == 0 && !h.busy {
		h.do(effects)
		return
	}
	h.busy = true
	_, tick := ev.(core.Tick)
	h.later(h.slow, func() {
		h.do(effects)
		switch {
		case !h.running:
		case !tick && h.core.Next() <= h.monoAt(w.now):
			h.take(core.Tick{})
		case len(h.backlog) > 0:
			next := h.backlog[0]
			h.backlog = h.backlog[1:]
			h.take(next)
		default:
			h.busy = false
			h.scheduleTick()
		}
	})
}

// do executes the effects of a step, in order.
func (h *host) do(effects []core.Effect) {
	w := h.w
	for i, e := range effects {
		if h.crashIn >= 0 {
			if h.crashIn == 0 {
				h.crashIn = -1
				for _, e := range effects[i:] {
					if p, ok := e.(core.Push); ok {
						w.check.cutShort(h, h.in[p.Conn], p.Msg)
					}
				}
				h.crash()
				return
			}
			h.crashIn--
		}
		h.execute(e)
		if !h.running {
			return
		}
	}
	w.check.stepped(h)
	h.scheduleTick()
}

func (h *host) scheduleTick() {
	if !h.running || h.paused || h.busy {
		return
	}
	next := h.core.Next()
	t := h.worldTime(next)
	if t == math.MaxInt64 {
		return
	}
	t = max(t, h.w.now)
	if t >= h.tickAt {
		return
	}
	h.tickAt = t
	life := h.life
	h.w.at(t, func() {
		if h.life != life || h.tickAt != t || h.paused {
			return
		}
		h.tickAt = math.MaxInt64
		if h.busy {
			return
		}
		if h.core.Next() > h.monoAt(h.w.now) { // it was put off
			h.scheduleTick()
			return
		}
		before := h.w.now
		h.step(core.Tick{})
		if h.running && !h.paused && !h.busy && h.core.Next() <= h.monoAt(before) {
			if h.spinning++; h.spinning > 1000 {
				h.w.fail("Next", msgKey{}, "%s wants a tick at %d, a thousand times in a row, and it is %d", h.name, h.core.Next(), h.monoAt(before))
			}
		} else {
			h.spinning = 0
		}
	})
}

// execute does what the core asks for.
func (h *host) execute(e core.Effect) {
	w := h.w
	switch e := e.(type) {
	case core.Send:
		if c := h.outTo(e.To); c != nil {
			w.send(c, 0, frame{kind: frameOneWay, msg: e.Msg})
		}
	case core.Call:
		if c := h.outTo(e.To); c != nil {
			w.send(c, 0, frame{kind: frameRequest, number: uint64(e.Token), msg: e.Msg})
		}
	case core.Reply:
		r := h.requests[e.Req]
		if r == nil {
			w.fail("Reply", msgKey{}, "%s answers request %d, which it never got, with %s", h.name, e.Req, w.describe(e.Msg))
			return
		}
		if r.answered {
			w.fail("Reply", msgKey{}, "%s answers %s twice, now with %s", h.name, w.describe(r.msg), w.describe(e.Msg))
			return
		}
		r.answered = true
		w.answered(h, r, e.Msg)
		w.check.replied(h, r, e.Msg)
		r.msg = nil
		if h.in[r.conn.id] == r.conn {
			w.send(r.conn, 1, frame{kind: frameReply, number: r.number, msg: e.Msg})
		} else {
			if w.tracing {
				w.tracef("%s -> %s %s lost: the connection is gone", h.name, r.conn.from.name, w.describe(e.Msg))
			}
		}
	case core.Push:
		c := h.in[e.Conn]
		if e.Before != 0 {
			write := w.now
			if c != nil {
				write = w.writeTime(c, 1)
			}
			if h.monoAt(write) > e.Before {
				if w.tracing {
					w.tracef("%s drops %s: after its deadline", h.name, w.describe(e.Msg))
				}
				w.check.dropping(h, c, e.Msg)
				if c != nil {
					w.lose(c, nil)
				}
				return
			}
		}
		w.pushed(h, e.Msg)
		w.check.pushing(h, c, e.Msg)
		if c != nil {
			w.send(c, 1, frame{kind: frameOneWay, msg: e.Msg})
		}
	case core.Persist:
		h.disk.persist(e)
	case core.Read:
		h.disk.readLater(e)
	case core.Scan:
		h.disk.scanLater(e)
	case core.Peers:
		h.peers = e.Members
		h.dialPeers()
	case core.Drained:
		h.drained = true
		if w.tracing {
			w.tracef("%s drained", h.name)
		}
	case core.Stop:
		if w.tracing {
			w.tracef("%s stop: %v", h.name, e.Err)
		}
		h.stop(e.Err)
	case core.Note:
		w.noteSaid(h, &e)
		if w.noted != nil {
			w.noted(h, e)
		}
		if w.tracing {
			w.tracef("%s note %s %s %s", h.name, w.names.partition(e.Partition), e.Text, e.Detail)
		}
	default:
		panic(fmt.Sprintf("unknown effect %T", e))
	}
}

func (h *host) outTo(id ring.NodeID) *conn {
	to := h.w.node(id)
	if to == nil {
		return nil
	}
	if c := h.out[to.index]; c != nil || to.twinOf == nil {
		return c
	}
	return h.out[to.twinOf.index] // as long as that connection holds
}

// Rings as the world sees them.

// table is the newest ring that any node knows.
func (w *world) table() ring.Table {
	var best ring.Table
	for _, h := range w.nodes() {
		if h.core != nil && h.core.Mesh() != 0 {
			if t := h.core.Table(); t.Number > best.Number {
				best = t
			}
		}
	}
	return best
}

// ring is the newest ring that any node knows.
func (w *world) ring() *ring.Ring {
	t := w.table()
	if w.newest == nil || w.newest.Number() != t.Number || w.newest.Len() != len(t.Members) {
		w.newest = ring.New(t)
	}
	return w.newest
}

// copied is what arrives when msg is sent: encoded and decoded, so that the two
// sides share nothing; and its bytes on the way, a copy of nobody.
func (w *world) copied(msg wire.Message) (wire.Message, []byte) {
	b, err := wire.Encode(msg)
	if err != nil {
		panic(fmt.Sprintf("encoding %s: %v", w.describe(msg), err))
	}
	m, err := wire.Decode(b)
	if err != nil {
		panic(fmt.Sprintf("decoding %s: %v", w.describe(msg), err))
	}
	return m, b
}
