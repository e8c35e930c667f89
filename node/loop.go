package node

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// machine is the protocol: a *core.Core, or a fake one in tests. Only the loop
// calls it.
type machine interface {
	Step(core.Time, core.Event) []core.Effect
	Next() core.Instant
	Mesh() wire.MeshID
	Table() ring.Table
	CatalogVersion() uint64
	Commit() uint64
	Ready() bool
	Stats() core.Stats
}

// facts is what other goroutines may know of the machine: a copy that the loop
// publishes after each batch of events. It is not changed afterwards.
type facts struct {
	mesh    wire.MeshID
	table   ring.Table
	catalog uint64
	commit  uint64
	ready   bool
}

// clock tells the time to the machine. Mono counts from base, which is the start of
// the process's node, on the monotonic clock.
type clock struct{ base time.Time }

func (c clock) now() core.Time {
	t := time.Now()
	return core.Time{Mono: core.Instant(t.Sub(c.base)), Wall: uint64(max(0, t.UnixMilli()))}
}

// time is the moment of i, with a monotonic reading.
func (c clock) time(i core.Instant) time.Time { return c.base.Add(time.Duration(i)) }

const (
	// stallAfter is how late the loop may be before it counts as stalled, a quarter of
	// an ownership lease.
	stallAfter = 250 * time.Millisecond
	// settleAfterStall is how long the loop then lets connection readers bring what has
	// arrived meanwhile, before it acts on time (DESIGN section 7).
	settleAfterStall = 5 * time.Millisecond
	// standsAfter is when a loop that does not turn counts as dead for /livez.
	standsAfter = 10 * time.Second
	// maxSleep bounds the wait for the machine's next moment: it may have none.
	maxSleep = time.Second
)

// loop owns the machine. All maps here are its own.
type loop struct {
	m     machine
	in    *inbox
	clock clock
	out   outside
	meter *meter

	conns map[core.ConnID]*inbound
	reqs  map[core.ReqID]request
	up    map[ring.NodeID]*transport.Conn // connected peers
	peers map[ring.NodeID]*peer           // of up, to drop a connection

	facts   atomic.Pointer[facts]
	changed chan struct{} // capacity 1: facts of interest to others have changed
	ended   chan struct{} // closed when run has returned
	turn    atomic.Int64  // Instant of the last turn; there is one each maxSleep
}

// request is where a Reply goes.
type request struct {
	conn *inbound
	id   uint64
}

// outside is what the loop needs of the rest of the shell. No method blocks.
type outside interface {
	persist(token core.Token, ops []wire.Op)
	finished(c *commit, number uint64, err error) []core.Persisted
	read(core.Read)
	scan(core.Scan)
	setPeers([]ring.Member)
	drained()
	stop(error)
	note(core.Note)
	tooLarge(what string, msg wire.Message, err error)
}

func newLoop(m machine, in *inbox, c clock, out outside, meter *meter) *loop {
	l := &loop{
		m: m, in: in, clock: c, out: out, meter: meter,
		conns: map[core.ConnID]*inbound{}, reqs: map[core.ReqID]request{},
		up: map[ring.NodeID]*transport.Conn{}, peers: map[ring.NodeID]*peer{},
		changed: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	l.publish()
	return l
}

// run feeds the machine until ctx ends. It then closes the inbox.
func (l *loop) run(ctx context.Context) error {
	defer l.end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	l.execute(l.m.Step(l.clock.now(), core.Tick{})) // it boots, before anything else
	var spare []item
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.in.wake:
		case <-timer.C:
		}
		began := time.Now()
		now := l.clock.now().Mono
		next := l.m.Next()
		late := time.Duration(0)
		if next <= now {
			late = time.Duration(now - next)
		}
		if next > 0 && late > stallAfter {
			l.meter.stalls.Inc()
			wait := time.NewTimer(settleAfterStall)
			select {
			case <-wait.C:
			case <-ctx.Done():
				wait.Stop()
				return nil
			}
		}
		spare = l.drain(spare)
		// Events first, then time: a deadline that an event has met is no longer there.
		if now := l.clock.now(); l.m.Next() <= now.Mono {
			l.meter.late.Observe(late.Seconds())
			l.execute(l.m.Step(now, core.Tick{}))
		}
		l.publish()
		l.turn.Store(int64(l.clock.now().Mono))
		l.meter.batch.Observe(time.Since(began).Seconds())
		timer.Reset(l.sleep())
	}
}

// stands tells whether the loop has not turned for long.
func (l *loop) stands() bool {
	return l.clock.now().Mono-core.Instant(l.turn.Load()) > core.Instant(standsAfter)
}

// sleep is how long until the machine wants a Tick.
func (l *loop) sleep() time.Duration {
	next, now := l.m.Next(), l.clock.now().Mono
	if next <= now {
		return time.Millisecond // the step took its time; others get a turn
	}
	return min(maxSleep, time.Duration(next-now))
}

// drain takes one batch of items, each at its own time.
func (l *loop) drain(spare []item) []item {
	items := l.in.take(spare)
	for i := range items {
		l.take(&items[i])
	}
	clear(items) // do not keep messages alive
	return items
}

func (l *loop) take(it *item) {
	if it.ask != nil {
		it.ask(l.m)
		return
	}
	if it.committed != nil {
		for _, ev := range l.out.finished(it.committed, it.id, it.err) {
			l.execute(l.m.Step(l.clock.now(), ev))
		}
		return
	}
	switch ev := it.event.(type) {
	case core.ConnOpened:
		l.conns[ev.Conn] = it.conn
	case core.Request:
		if it.conn.gone {
			return
		}
		l.reqs[ev.Req] = request{conn: it.conn, id: it.id}
		it.conn.waiting[ev.Req] = struct{}{}
	case core.ConnClosed:
		delete(l.conns, ev.Conn)
		for req := range it.conn.waiting {
			delete(l.reqs, req)
		}
		it.conn.waiting = nil
		it.conn.gone = true
	case core.PeerUp:
		l.up[ev.Node], l.peers[ev.Node] = it.link, it.peer
	case core.PeerDown:
		delete(l.up, ev.Node)
		delete(l.peers, ev.Node)
	}
	l.execute(l.m.Step(l.clock.now(), it.event))
}

func (l *loop) execute(effects []core.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case core.Send:
			if link := l.up[e.To]; link != nil {
				l.checkPeer(e.To, e.Msg, link.Send(e.Msg))
			}
		case core.Call:
			if link := l.up[e.To]; link != nil {
				l.checkPeer(e.To, e.Msg, l.call(link, e))
			}
		case core.Reply:
			req, ok := l.reqs[e.Req]
			if !ok {
				continue // its connection is gone
			}
			delete(l.reqs, e.Req)
			delete(req.conn.waiting, e.Req)
			l.checkConn(req.conn, e.Msg, req.conn.c.Reply(req.id, e.Msg))
		case core.Push:
			conn := l.conns[e.Conn]
			if conn == nil || conn.gone {
				continue
			}
			if e.Before != 0 {
				l.checkConn(conn, e.Msg, conn.c.SendBefore(e.Msg, l.clock.time(e.Before)))
			} else {
				l.checkConn(conn, e.Msg, conn.c.Send(e.Msg))
			}
		case core.Persist:
			l.out.persist(e.Token, e.Ops)
		case core.Read:
			l.out.read(e)
		case core.Scan:
			l.out.scan(e)
		case core.Peers:
			l.out.setPeers(e.Members)
		case core.Drained:
			l.out.drained()
		case core.Stop:
			l.out.stop(e.Err)
		case core.Note:
			l.out.note(e)
		}
	}
}

// call sends a request to a peer. The answer comes from the reader of the link;
// without one (the link was lost) PeerDown follows and nothing else.
func (l *loop) call(link *transport.Conn, e core.Call) error {
	err := link.Go(e.Msg, func(msg wire.Message, _ error) {
		if msg != nil { // also when it is an error that the peer answered
			l.in.put(item{event: core.Answered{Token: e.Token, Msg: msg}, size: weigh(msg)})
		}
	})
	if errors.Is(err, wire.ErrTooLarge) {
		l.in.force(item{event: core.Answered{Token: e.Token, Msg: wire.ErrTooLarge}})
	}
	return err
}

// checkPeer ends a link that could not take a frame: frames to a peer arrive in
// order, so nothing may follow one that was lost.
func (l *loop) checkPeer(node ring.NodeID, msg wire.Message, err error) {
	switch {
	case err == nil:
		return
	case errors.Is(err, wire.ErrTooLarge):
		l.out.tooLarge("peer", msg, err)
		return // the next try would end the same way, and the rest is fine
	case errors.Is(err, transport.ErrSlow):
		l.meter.slow.WithLabelValues("peer").Inc()
	}
	l.up[node] = nil
	if p := l.peers[node]; p != nil {
		p.drop()
	}
}

// checkConn ends a connection whose other side does not keep up.
func (l *loop) checkConn(conn *inbound, msg wire.Message, err error) {
	switch {
	case err == nil || conn.gone || errors.Is(err, transport.ErrNoRequest):
		return
	case errors.Is(err, wire.ErrTooLarge):
		l.out.tooLarge("client", msg, err)
		return // a request was answered with that error
	case errors.Is(err, transport.ErrSlow):
		l.meter.slow.WithLabelValues("client").Inc()
	}
	conn.gone = true // until ConnClosed
	_ = conn.c.Close()
}

// publish tells others what they may know.
func (l *loop) publish() {
	old := l.facts.Load()
	now := facts{
		mesh: l.m.Mesh(), table: l.m.Table(), catalog: l.m.CatalogVersion(), commit: l.m.Commit(), ready: l.m.Ready(),
	}
	if old != nil && old.mesh == now.mesh && old.table.Number == now.table.Number && old.ready == now.ready {
		if old.catalog != now.catalog || old.commit != now.commit {
			l.facts.Store(&now)
		}
		return
	}
	l.facts.Store(&now)
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// end closes the inbox. Who waits for an answer of the loop sees that it is gone.
func (l *loop) end() {
	l.in.close()
	close(l.ended)
}

// ask runs f in the loop and waits for it; false when ctx or the loop ends first. f
// may then still run.
func (l *loop) ask(ctx context.Context, f func(machine)) bool {
	done := make(chan struct{})
	if !l.in.force(item{ask: func(m machine) { f(m); close(done) }}) {
		return false
	}
	select {
	case <-done:
		return true
	case <-l.ended:
		return false
	case <-ctx.Done():
		return false
	}
}
