package core

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Config is what the core is told once.
type Config struct {
	Servers []string // addresses to begin with, host:port
	Via     bool     // talk to Servers only; they pass on what others own
	Name    string   // for Hello
	Token   string   // for Hello
	Random  uint64   // random bits: producer IDs, jitter

	Planting Planting // nothing, but in a build with the tag mutants
}

// The times of the core. They are not settings: who needs others needs another design.
const (
	silence        = 250 * time.Millisecond // without a frame of a link: it is passed by
	patience       = time.Second            // for one batch, on a link that does talk
	probeAfter     = 100 * time.Millisecond // without an answer: is the link alive?
	askPatience    = 2 * time.Second        // for one try of an Ask
	nodeTimeout    = 5 * time.Second        // what a node may take for one try of a batch
	avoidSilent    = 2 * time.Second        // how long a silent link is passed by, unless it talks
	avoidNotReady  = 250 * time.Millisecond
	avoidFull      = time.Second // batches go elsewhere first that long after ErrDiskFull
	redialMin      = 20 * time.Millisecond
	redialMax      = time.Second
	backoffMin     = 25 * time.Millisecond // between rounds of tries, and after ErrOverloaded
	backoffMax     = 2 * time.Second
	settleBackoff  = 50 * time.Millisecond // first wait after CodeNotOwner; doubles
	settleBackMax  = time.Second
	settleMin      = time.Minute // an ack is tried for two leases and at least this
	keepalive      = time.Second // without a frame of a link: Ping
	deadAfter      = 5 * time.Second
	earlyAgain     = 250 * time.Millisecond // between looks for a queue of which there are deliveries
	refreshQueue   = 30 * time.Second       // the catalog's entry of a queue in use is asked again
	idleLink       = 60 * time.Second       // a link that nothing was asked of is hung up
	maxBatchBytes  = 1 << 20
	maxSettleItems = 1024
	maxResumeItems = 16_384    // a node takes a Resume for the whole of what is held of a partition
	maxBuffered    = 256 << 20 // bytes of one consumer's messages that were not taken yet
)

// Core is what the client decides: where to send, when to try again, what to ask for,
// whom to tell what it holds. It is deterministic: it reads no clock, draws random
// numbers from Config.Random only, starts no goroutine and does no I/O; equal events at
// equal times give equal effects. Only one goroutine may use it.
type Core struct {
	config Config
	random uint64
	out    []Effect
	timers timers
	// timerSeq breaks ties, so that timers fire in the order they were set.
	timerSeq uint64

	closing bool
	closed  bool

	// What is known of the mesh.
	mesh    *wire.Mesh
	ring    *ring.Ring
	catalog uint64
	asking  bool // GetMesh is under way

	links    []*link // index is LinkID
	byAddr   map[string]*link
	calls    map[CallID]*call
	lastCall CallID
	lastSub  uint64
	asks     []*ask // under way, in order of arrival

	queues     map[string]*queue
	queueOrder []*queue
	partitions map[wire.PartitionID]*partition
	budget     budget

	consumers     map[ConsumerKey]*consumer
	consumerOrder []*consumer
	handouts      map[HandoutID]*handout
	lastHandout   HandoutID
	settlers      map[settlerKey]*settler
	settlerOrder  []*settler
	waiting       []*settlement // for a link or for their next try
	settlesAt     Instant       // of the timer for them; 0: none
}

// call is a request under way. Exactly one of the functions runs, once.
type call struct {
	id       CallID
	link     *link
	answered func(now Instant, msg wire.Message)
	lost     func(now Instant) // the link went down
}

// New is a core that knows no more than its servers. The first Step dials.
func New(config Config) *Core {
	c := &Core{
		config: config, random: config.Random, byAddr: map[string]*link{}, calls: map[CallID]*call{},
		queues: map[string]*queue{}, partitions: map[wire.PartitionID]*partition{},
		consumers: map[ConsumerKey]*consumer{}, handouts: map[HandoutID]*handout{}, settlers: map[settlerKey]*settler{},
	}
	for _, addr := range config.Servers {
		c.linkAt(addr)
	}
	c.at(0, func(now Instant) { c.reach(now) })
	c.at(Instant(idleLink), c.sweep)
	return c
}

// Step applies one event and returns what the shell must do, in order. Time never
// goes back: now is at least the now of the step before.
func (c *Core) Step(now Instant, ev Event) []Effect {
	if c.closed {
		c.refuse(ev)
		return c.take()
	}
	switch ev := ev.(type) {
	case Tick:
		c.tick(now)
	case LinkUp:
		c.linkUp(now, ev)
	case LinkDown:
		c.linkDown(now, c.links[ev.Link], ev.Err)
	case Answered:
		c.answered(now, ev)
	case Pushed:
		c.pushed(now, ev)
	case Send:
		c.send(now, ev.Items)
	case Cancel:
		c.cancel(now, ev)
	case Ask:
		c.ask(now, &ask{ticket: ev.Ticket, node: ev.Node, msg: ev.Msg, until: ev.Until})
	case OpenConsumer:
		c.openConsumer(now, ev)
	case Receive:
		c.receive(now, ev)
	case Settle:
		c.settle(now, ev)
	case CloseConsumer:
		c.closeConsumer(now, ev)
	case Close:
		c.close(now, ev)
	default:
		panic(fmt.Sprintf("core: unknown event %T", ev))
	}
	if c.closing && !c.closed && c.idle() {
		c.end(now)
	}
	return c.take()
}

// Next is when the core wants a Tick; Never when it does not.
func (c *Core) Next() Instant {
	if len(c.timers) == 0 || c.closed {
		return Never
	}
	return c.timers[0].at
}

func (c *Core) take() []Effect {
	out := c.out
	c.out = nil
	return out
}

func (c *Core) emit(ef Effect) { c.out = append(c.out, ef) }

func (c *Core) note(warn bool, text, detail string) {
	c.emit(Note{Warn: warn, Text: text, Detail: detail})
}

// cancel answers a ticket that nobody waits for any more.
func (c *Core) cancel(now Instant, ev Cancel) {
	if ev.Queue != "" {
		if q := c.queues[ev.Queue]; q != nil {
			c.cancelSend(now, q, ev.Ticket)
		}
		return
	}
	for _, a := range c.asks {
		if a.ticket == ev.Ticket {
			c.replied(a, nil, ErrCanceled)
			return
		}
	}
	for _, s := range c.consumerOrder {
		if s.cancel(c, now, ev.Ticket) {
			return
		}
	}
	c.cancelSettle(ev.Ticket)
}

// close begins the end: nothing new is taken.
func (c *Core) close(now Instant, ev Close) {
	if c.closing {
		return
	}
	c.closing = true
	for _, s := range append([]*consumer(nil), c.consumerOrder...) {
		c.endConsumer(now, s, nil, ev.Until)
	}
	c.at(ev.Until, func(now Instant) {
		if !c.closed {
			c.end(now)
		}
	})
}

// idle tells whether nothing is under way.
func (c *Core) idle() bool {
	for _, q := range c.queueOrder {
		if q.busy() {
			return false
		}
	}
	for _, s := range c.settlerOrder {
		if len(s.pending) > 0 || len(s.sent) > 0 {
			return false
		}
	}
	return len(c.waiting) == 0
}

// end answers all who wait and closes.
func (c *Core) end(now Instant) {
	c.closed = true
	for _, q := range c.queueOrder {
		c.failQueue(q, ErrClosed)
	}
	for len(c.asks) > 0 {
		c.replied(c.asks[0], nil, ErrClosed)
	}
	c.abandonSettles()
	for len(c.consumerOrder) > 0 {
		s := c.consumerOrder[0]
		s.fail(c, now, ErrClosed)
		if c.consumers[s.key] == s {
			c.dropConsumer(now, s)
		}
	}
	for _, l := range c.links {
		if l.state != linkIdle {
			c.emit(Hangup{Link: l.id})
			l.state = linkIdle
		}
	}
	c.emit(Closed{})
}

// refuse answers what came after the end.
func (c *Core) refuse(ev Event) {
	switch ev := ev.(type) {
	case Send:
		for _, it := range ev.Items {
			c.emit(Failed{Tickets: []Ticket{it.Ticket}, Err: &SendError{Queue: it.Queue, Err: ErrClosed}})
		}
	case Ask:
		c.emit(Replied{Ticket: ev.Ticket, Err: ErrClosed})
	case OpenConsumer:
		c.emit(ConsumerOpened{Ticket: ev.Ticket, Err: ErrClosed})
	case Receive:
		c.emit(Received{Ticket: ev.Ticket, Err: ErrClosed})
	case Settle:
		if ev.Ticket != nil {
			c.emit(Settled{Ticket: ev.Ticket, Err: ErrClosed})
		}
	case CloseConsumer:
		c.emit(ConsumerClosed{Consumer: ev.Consumer, Ticket: ev.Ticket})
	}
}

// timer calls a function at a time. It is never taken back: the function finds out
// whether it is still wanted.
type timer struct {
	at  Instant
	seq uint64
	do  func(now Instant)
}

type timers []timer

func (t timers) Len() int { return len(t) }
func (t timers) Less(i, j int) bool {
	return t[i].at < t[j].at || t[i].at == t[j].at && t[i].seq < t[j].seq
}
func (t timers) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)   { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	return last
}

func (c *Core) at(at Instant, do func(now Instant)) {
	c.timerSeq++
	heap.Push(&c.timers, timer{at, c.timerSeq, do})
}

func (c *Core) tick(now Instant) {
	for len(c.timers) > 0 && c.timers[0].at <= now && !c.closed {
		heap.Pop(&c.timers).(timer).do(now)
	}
}

// rand is splitmix64: enough for jitter and IDs, and the same everywhere.
func (c *Core) rand() uint64 {
	c.random += 0x9e3779b97f4a7c15
	z := c.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// jitter is a random time from low to high.
func (c *Core) jitter(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + time.Duration(c.rand()%uint64(high-low+1))
}

// backoff doubles from low with each try, up to high, with full jitter above low/2.
func (c *Core) backoff(try int, low, high time.Duration) time.Duration {
	d := low
	for range min(try, 20) {
		if d *= 2; d >= high {
			d = high
			break
		}
	}
	return c.jitter(low/2, d)
}
