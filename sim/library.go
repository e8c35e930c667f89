package sim

import (
	"fmt"
	"math"
	"time"

	libcore "github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// library is a host whose program uses the client library: the library's core, and
// around it what client/loop.go is in a real process. All of it dies with the process;
// the next one is another client.
type library struct {
	w       *world
	h       *host
	program program
	watch   libraryWatch

	core  *libcore.Core // nil: there is no process
	lives int           // counts processes
	name  string        // of this process: p1, then p1.2
	links map[libcore.LinkID]*libraryLink
	at    map[int]*libraryLink // the same, by index of the host

	todo     []libcore.Event // for the core, in order
	stepping bool
	tickAt   int64
	spinning int
	crashIn  int   // killed before that effect of the next steps; -1: no
	back     int64 // and started again so much later; -1: never
	waits    []*wait
	coins    uint64
}

// program is what runs on the library.
type program interface {
	begin()                 // a process has started
	told(ef libcore.Effect) // the library answers, or has news
	gone()                  // the process was killed
}

// libraryLink is the one connection of a link of the core.
type libraryLink struct {
	id   libcore.LinkID
	to   *host
	conn *conn // nil while dialing
}

// wait is a question that the library must answer by a time (P10).
type wait struct {
	what string
	by   libcore.Instant
	over bool
	late bool // seen unanswered after its time
}

// Times of the shell, as in client/loop.go.
const libraryDialTimeout = 3 * second

func (l *library) init(w *world, name string, p program) {
	*l = library{w: w, program: p, tickAt: math.MaxInt64, crashIn: -1}
	l.h = w.addClient(name, l)
	l.watch.l = l
	l.h.ppm = between(l.coin(), -500, 500)
	if l.coin()%8 == 0 {
		l.h.ppm = between(l.coin(), -20_000, 20_000)
	}
}

func (l *library) coin() uint64 {
	l.coins++
	return l.w.luck(luckClient, l.h.key, 1, l.coins)
}

func (l *library) chance(oneIn uint64) bool { return l.coin()%oneIn == 0 }

func (l *library) now() libcore.Instant { return libcore.Instant(l.h.monoAt(l.w.now)) }

// boot starts the process.
func (l *library) boot() {
	if l.core != nil {
		return
	}
	w := l.w
	l.lives++
	l.name = l.h.name
	if l.lives > 1 {
		l.name = fmt.Sprintf("%s.%d", l.h.name, l.lives)
	}
	l.h.reset(w.now, 0)
	l.watch.begin()
	l.links, l.at = map[libcore.LinkID]*libraryLink{}, map[int]*libraryLink{}
	l.todo, l.stepping, l.waits, l.tickAt, l.spinning = nil, false, nil, math.MaxInt64, 0
	l.core = libcore.New(libcore.Config{
		Servers: l.servers(), Via: l.via(), Name: l.name,
		Random:   w.luck(luckClient, l.h.key, 3, uint64(l.lives)),
		Planting: w.clientPlanting,
	})
	if w.tracing {
		w.tracef("%s starts", l.name)
	}
	w.tellClient(history.ClientUp, l.h.name)
	w.hashIn(hashLibraryBoot, l.h.key, uint64(l.lives))
	l.step(libcore.Tick{})
	l.program.begin()
	l.watchWaits()
}

// via tells whether the program reaches the mesh through one node that relays.
func (l *library) via() bool { return l.w.luck(luckClient, l.h.key, 2, 0)%8 == 0 }

// servers are up to three nodes that the process is started with.
func (l *library) servers() []string {
	nodes := l.w.nodes()
	from := int(l.w.luck(luckClient, l.h.key, 4, uint64(l.lives)) % uint64(len(nodes)))
	var out []string
	for i := range min(3, len(nodes)) {
		out = append(out, nodes[(from+i)%len(nodes)].member().Address)
	}
	return out
}

func (l *library) machine() *host { return l.h }

// kill ends the process; another one is started back later, or never if that is
// negative. Half of the times it happens in the middle of a step.
func (l *library) kill(back int64) {
	if l.core == nil {
		return
	}
	if l.chance(2) {
		l.die(back)
		return
	}
	l.crashIn, l.back = int(l.coin()%4), back
	lives := l.lives
	l.w.after(100*millisecond, func() {
		if l.lives == lives && l.crashIn >= 0 {
			l.die(back)
		}
	})
}

func (l *library) die(back int64) {
	w := l.w
	if l.core == nil {
		return
	}
	if w.tracing {
		w.tracef("%s crash", l.name)
	}
	w.tellClient(history.ClientDown, l.h.name)
	l.program.gone()
	l.end()
	if back < 0 {
		return
	}
	l.h.later(back, l.boot)
}

// end takes the process away: the kernel closes its connections.
func (l *library) end() {
	w := l.w
	l.core, l.crashIn, l.todo, l.waits = nil, -1, nil, nil
	w.check.consumerGone(l.watch.consumer())
	l.h.end()
	l.links, l.at = nil, nil
}

// step gives an event to the core, after those that it has.
func (l *library) step(ev libcore.Event) {
	if l.core == nil || l.w.failure != nil {
		return
	}
	if l.todo = append(l.todo, ev); l.stepping {
		return
	}
	l.stepping = true
	life := l.h.life
	for len(l.todo) > 0 && l.h.life == life && l.w.failure == nil {
		ev := l.todo[0]
		l.todo = l.todo[1:]
		l.w.steps++
		effects := l.core.Step(l.now(), ev)
		l.w.hashIn(hashLibraryStep, l.h.key, uint64(len(effects)))
		for _, ef := range effects {
			if l.crashIn == 0 {
				l.die(l.back)
			} else if l.crashIn > 0 {
				l.crashIn--
			}
			if l.h.life != life {
				return
			}
			l.do(ef)
		}
	}
	if l.h.life == life {
		l.stepping = false
		l.scheduleTick()
	}
}

func (l *library) scheduleTick() {
	t := l.h.worldTime(core.Instant(l.core.Next()))
	if t == math.MaxInt64 {
		return
	}
	if t = max(t, l.w.now); t >= l.tickAt {
		return
	}
	l.tickAt = t
	life := l.h.life
	l.w.at(t, func() {
		if l.h.life != life || l.tickAt != t {
			return
		}
		tick := func() { l.tick(t) }
		if !l.h.paused {
			tick()
		} else if l.coin()%2 == 0 { // a process that goes on looks at its timers first, or at its connections
			l.h.inbox = append(l.h.inbox, tick)
		} else {
			l.h.inbox = append([]func(){tick}, l.h.inbox...)
		}
	})
}

func (l *library) tick(t int64) {
	if l.core == nil || l.tickAt != t {
		return
	}
	l.tickAt = math.MaxInt64
	if l.core.Next() > l.now() { // it was put off
		l.scheduleTick()
		return
	}
	now, life := l.now(), l.h.life
	l.step(libcore.Tick{})
	if l.h.life != life || l.core.Next() > now {
		l.spinning = 0
	} else if l.spinning++; l.spinning > 1000 {
		l.w.fail("Next", msgKey{}, "the library of %s wants a tick at %d, a thousand times in a row, and it is %d", l.name, l.core.Next(), now)
	}
}

// do does what the core says.
func (l *library) do(ef libcore.Effect) {
	switch ef := ef.(type) {
	case libcore.Dial:
		l.dial(ef)
	case libcore.Hangup:
		if k := l.links[ef.Link]; k != nil {
			l.drop(k)
			if k.conn != nil {
				k.conn.calls = map[uint64]func(wire.Message){}
				l.w.lose(k.conn, l.h)
			}
		}
	case libcore.Call:
		k := l.links[ef.Link]
		if k == nil || k.conn == nil {
			l.w.fail("Call", msgKey{}, "the library of %s calls on a link that is not up: %s", l.name, l.w.describe(ef.Msg))
			return
		}
		asked := l.watch.asking(ef.Msg)
		k.conn.call(ef.Msg, func(msg wire.Message) {
			if msg == nil || l.links[ef.Link] != k {
				return // LinkDown says so
			}
			asked(k.to, msg)
			l.step(libcore.Answered{Call: ef.Call, Msg: msg})
		})
	case libcore.Post:
		k := l.links[ef.Link]
		if k == nil || k.conn == nil {
			l.w.fail("Post", msgKey{}, "the library of %s posts on a link that is not up: %s", l.name, l.w.describe(ef.Msg))
			return
		}
		if r, ok := ef.Msg.(*wire.Resume); ok {
			l.watch.resuming(k.conn, r)
		}
		k.conn.oneWay(ef.Msg)
	case libcore.Learned:
	case libcore.Note:
		if ef.Text == "stale delivery dropped" {
			l.w.check.stats.Dropped++
			l.w.reached["stale-dropped"]++
		}
		if l.w.tracing {
			l.w.tracef("%s note %s %s", l.name, ef.Text, ef.Detail)
		}
	default:
		l.program.told(ef)
	}
}

// drop takes a link off: what still comes from its connection is of no interest.
func (l *library) drop(k *libraryLink) {
	delete(l.links, k.id)
	delete(l.at, k.to.index)
}

// down tells the core that a link is.
func (l *library) down(k *libraryLink, err error) {
	l.drop(k)
	l.step(libcore.LinkDown{Link: k.id, Err: err})
}

func (l *library) dial(ef libcore.Dial) {
	var to *host
	for _, h := range l.w.hosts { // also one that is gone: who learnt its address may still try
		if h.client == nil && h.member().Address == ef.Addr {
			to = h
		}
	}
	if to == nil {
		l.w.fail("Dial", msgKey{}, "the library of %s dials %q, which is no node", l.name, ef.Addr)
		return
	}
	k := &libraryLink{id: ef.Link, to: to}
	l.links[k.id], l.at[to.index] = k, k
	l.h.dial(to) // one that is under way for a link that was given up serves this one
	l.h.later(libraryDialTimeout, func() {
		if l.links[k.id] == k && k.conn == nil {
			l.down(k, wire.ErrTimeout)
		}
	})
}

// opened, closed and pushed are what the network says.

func (l *library) opened(c *conn) {
	l.h.now(func() {
		k := l.at[c.to.index]
		if k == nil || k.conn != nil { // nobody waits for it any more
			l.w.lose(c, l.h)
			return
		}
		k.conn = c
		l.step(libcore.LinkUp{Link: k.id, Hello: c.hello})
	})
}

func (l *library) closed(to *host) {
	l.h.now(func() {
		if k := l.at[to.index]; k != nil {
			l.down(k, wire.ErrTimeout)
		}
	})
}

func (l *library) pushed(c *conn, msg wire.Message) {
	k := l.at[c.to.index]
	if k == nil || k.conn != c {
		return
	}
	if d, ok := msg.(*wire.Deliver); ok {
		l.watch.delivered(d)
	}
	l.step(libcore.Pushed{Link: k.id, Msg: msg})
	if o, ok := msg.(*wire.Owner); ok && o.Node == k.to.id && l.core != nil && l.links[k.id] == k {
		l.watch.owner(c, o)
	}
}

// ask has the core answer by a time; the answer sets over.
func (l *library) ask(by libcore.Instant, format string, args ...any) *wait {
	x := &wait{what: fmt.Sprintf(format, args...), by: by}
	l.waits = append(l.waits, x)
	return x
}

// watchWaits looks each second at what is not answered in time. It must be late twice: a
// process that stood still is given its turn.
func (l *library) watchWaits() {
	l.h.later(second, func() {
		keep := l.waits[:0]
		now := l.now()
		for _, x := range l.waits {
			if x.over {
				continue
			}
			if now > x.by.Add(500_000_000) {
				if x.late {
					l.w.fail("P10", msgKey{}, "the library of %s has not answered %s, %d ms after its time", l.name, x.what, int64(now-x.by)/millisecond)
					return
				}
				x.late = true
			}
			keep = append(keep, x)
		}
		clear(l.waits[len(keep):])
		l.waits = keep
		l.watchWaits()
	})
}

// libDuration is a span of virtual time as the library counts it.
func libDuration(d int64) time.Duration { return time.Duration(d) }
