package client

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// loop is the only user of the core: one goroutine takes events from the inbox, steps
// the core and does what it says. All other goroutines of the client only post events.
//
// The inbox has no bound of its own; what is posted is bounded where it comes from:
// sends by the send buffer, deliveries by credit, answers by requests, the rest by the
// program's own goroutines.
type loop struct {
	options options
	core    *core.Core
	start   time.Time
	mesh    atomic.Pointer[wire.Mesh] // nil until the ring is known
	known   chan struct{}             // closed when mesh is set
	no      chan struct{}             // closed when all servers have refused for good
	servers int
	wake    chan struct{} // capacity 1
	done    chan struct{} // closed when run has returned

	mu      sync.Mutex // protects the fields below
	inbox   []posted
	sends   []core.Item       // go in before the inbox, as one event
	settles []core.Settlement // go in after sends; nobody waits for them
	closing bool              // a Close was posted
	ended   bool              // the core takes nothing any more
	dialErr error             // of the last Dial that failed
	refused map[string]error  // servers that refuse this client for good

	consumersMu sync.Mutex // protects consumers
	consumers   map[core.ConsumerKey]*Consumer

	// Of the loop's goroutine only.
	links map[core.LinkID]*link
	work  sync.WaitGroup // dials and closes
	// ctx ends when the core has closed: it ends the dials under way.
	ctx    context.Context
	cancel context.CancelFunc
}

// posted is an event with the link that it comes from; an event of a link that was
// replaced or hung up is dropped.
type posted struct {
	event core.Event
	link  *link           // nil: not from a link
	conn  *transport.Conn // of a LinkUp
}

// link is one connection of a core's link.
type link struct {
	loop  *loop
	id    core.LinkID
	conn  *transport.Conn // nil while dialing; of the loop's goroutine only
	stop  context.CancelFunc
	ready chan struct{} // closed when LinkUp or LinkDown is posted
}

func newLoop(o options, config core.Config) *loop {
	l := &loop{
		options: o, core: core.New(config), start: time.Now(),
		known: make(chan struct{}), no: make(chan struct{}), servers: len(config.Servers), refused: map[string]error{}, wake: make(chan struct{}, 1), done: make(chan struct{}),
		consumers: map[core.ConsumerKey]*Consumer{}, links: map[core.LinkID]*link{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wake <- struct{}{} // the first step dials
	go l.run()
	return l
}

func (l *loop) now() core.Instant { return core.Instant(time.Since(l.start)) }

// until is the core's deadline for ctx, or timeout from now if that is earlier. It is
// a little before the context's, so that the core's answer, which says more, is first.
func (l *loop) until(ctx context.Context, timeout time.Duration) core.Instant {
	left := timeout
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
		left -= min(left/20, 50*time.Millisecond)
	}
	return l.now().Add(left)
}

// ready waits until the ring is known.
func (l *loop) ready(ctx context.Context) error {
	select {
	case <-l.known:
		return nil
	case <-l.no:
	case <-ctx.Done():
	}
	l.mu.Lock()
	err := l.dialErr
	l.mu.Unlock()
	if err == nil {
		err = context.Cause(ctx)
	}
	return &unreachableError{err}
}

// dialFailed notes why, and whether there is any use in going on.
func (l *loop) dialFailed(addr string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialErr = err
	var w *wire.Error
	var cert *tls.CertificateVerificationError
	if !(errors.As(err, &w) && !w.Retryable()) && !errors.As(err, &cert) {
		delete(l.refused, addr)
		return
	}
	all := len(l.refused) == l.servers
	if l.refused[addr] = err; !all && len(l.refused) == l.servers {
		select {
		case <-l.no:
		default:
			close(l.no)
		}
	}
}

// unreachableError is ErrUnreachable with the last reason.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string   { return ErrUnreachable.Error() + ": " + e.err.Error() }
func (e *unreachableError) Unwrap() []error { return []error{ErrUnreachable, e.err} }

// post gives an event to the core. false: the client is closed.
func (l *loop) post(ev core.Event) bool { return l.put(posted{event: ev}) }

func (l *loop) put(p posted) bool {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, p)
	l.mu.Unlock()
	l.wakeUp()
	return true
}

func (l *loop) send(item core.Item) bool {
	l.mu.Lock()
	if l.ended || l.closing {
		l.mu.Unlock()
		return false
	}
	l.sends = append(l.sends, item)
	l.mu.Unlock()
	l.wakeUp()
	return true
}

// settle settles a message; nobody waits for the answer.
func (l *loop) settle(s core.Settlement) {
	l.mu.Lock()
	if !l.ended {
		l.settles = append(l.settles, s)
	}
	l.mu.Unlock()
	l.wakeUp()
}

func (l *loop) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *loop) close(flush time.Duration) {
	l.mu.Lock()
	if !l.closing {
		l.closing = true
		l.inbox = append(l.inbox, posted{event: core.Close{Until: l.now().Add(flush)}})
	}
	l.mu.Unlock()
	l.wakeUp()
	<-l.done
}

func (l *loop) addConsumer(c *Consumer) {
	l.consumersMu.Lock()
	l.consumers[c.key] = c
	l.consumersMu.Unlock()
}

func (l *loop) removeConsumer(key core.ConsumerKey) {
	l.consumersMu.Lock()
	delete(l.consumers, key)
	l.consumersMu.Unlock()
}

func (l *loop) consumer(key core.ConsumerKey) *Consumer {
	l.consumersMu.Lock()
	defer l.consumersMu.Unlock()
	return l.consumers[key]
}

// run steps the core until it has closed.
func (l *loop) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var inbox []posted
	var sends []core.Item
	var settles []core.Settlement
	for closed := false; !closed; {
		select {
		case <-l.wake:
		case <-timer.C:
		}
		l.mu.Lock()
		inbox, l.inbox = l.inbox, inbox[:0]
		sends, l.sends = l.sends, sends[:0]
		settles, l.settles = l.settles, settles[:0]
		l.mu.Unlock()
		closed = l.steps(inbox, sends, settles)
		clear(inbox)
		clear(sends)
		clear(settles)
		if next := l.core.Next(); next != core.Never {
			timer.Reset(max(0, next.Sub(l.now())))
		} else {
			timer.Stop()
		}
	}
	// What was posted in the meantime gets its answer too; then nothing is taken.
	l.mu.Lock()
	l.ended = true
	inbox, sends = l.inbox, l.sends
	l.inbox, l.sends, l.settles = nil, nil, nil
	l.mu.Unlock()
	l.steps(inbox, sends, nil)
	l.cancel()
	for _, k := range l.links {
		l.hangUp(k)
	}
	clear(l.links)
	l.work.Wait()
}

func (l *loop) steps(inbox []posted, sends []core.Item, settles []core.Settlement) (closed bool) {
	if len(sends) > 0 {
		closed = l.do(l.core.Step(l.now(), core.Send{Items: sends})) || closed
	}
	if len(settles) > 0 {
		closed = l.do(l.core.Step(l.now(), core.Settle{Items: settles})) || closed
	}
	for _, p := range inbox {
		if p.link != nil {
			if l.links[p.link.id] != p.link {
				if p.conn != nil {
					l.work.Go(func() { _ = p.conn.Close() })
				}
				continue
			}
			if p.conn != nil {
				p.link.conn = p.conn
			}
			if _, down := p.event.(core.LinkDown); down {
				delete(l.links, p.link.id)
			}
		}
		closed = l.do(l.core.Step(l.now(), p.event)) || closed
	}
	return l.do(l.core.Step(l.now(), core.Tick{})) || closed
}

// do does what the core says, in order.
func (l *loop) do(effects []core.Effect) (closed bool) {
	for _, ef := range effects {
		switch ef := ef.(type) {
		case core.Dial:
			l.dial(ef)
		case core.Hangup:
			if k := l.links[ef.Link]; k != nil {
				delete(l.links, ef.Link)
				l.hangUp(k)
			}
		case core.Call:
			if k := l.links[ef.Link]; k != nil {
				k.call(ef)
			}
		case core.Post:
			if k := l.links[ef.Link]; k != nil {
				if err := k.conn.Send(ef.Msg); err != nil {
					// The other side does not read. What is posted must not be lost alone: the
					// connection goes, and the core starts over.
					delete(l.links, k.id)
					l.hangUp(k)
					l.put(posted{event: core.LinkDown{Link: k.id, Err: err}})
				}
			}
		case core.Confirmed:
			l.confirmed(ef)
		case core.Failed:
			for _, t := range ef.Tickets {
				if f, ok := t.(*Future); ok {
					f.answer(Sent{Queue: f.queue.name, Err: ef.Err}, ef.Err)
				}
			}
		case core.Received:
			ef.Ticket.(*receiveWaiter).done <- ef
		case core.Settled:
			ef.Ticket.(*settleWaiter).done <- ef.Err
		case core.Lost:
			if c := l.consumer(ef.Consumer); c != nil {
				c.lost(ef.Handout, ef.Runs)
			}
		case core.ConsumerOpened:
			ef.Ticket.(*openWaiter).done <- ef.Err
		case core.ConsumerFailed:
			l.options.logger.Warn("consumer failed", "err", ef.Err)
		case core.ConsumerClosed:
			l.removeConsumer(ef.Consumer)
			if w, ok := ef.Ticket.(*closeWaiter); ok {
				close(w.done)
			}
		case core.Replied:
			ef.Ticket.(*askWaiter).done <- ef
		case core.Learned:
			if l.mesh.Swap(ef.Mesh) == nil {
				close(l.known)
			}
		case core.Note:
			if ef.Warn {
				l.options.logger.Warn(ef.Text, "detail", ef.Detail)
			} else {
				l.options.logger.Debug(ef.Text, "detail", ef.Detail)
			}
		case core.Closed:
			closed = true
		}
	}
	return closed
}

func (l *loop) confirmed(ef core.Confirmed) {
	mesh := l.mesh.Load()
	names := make([]string, len(ef.Nodes))
	for i, id := range ef.Nodes {
		names[i] = nameIn(mesh, id)
	}
	for i, t := range ef.Tickets {
		f, ok := t.(*Future)
		if !ok {
			continue
		}
		at := ef.Base
		at.Offset += wire.Offset(i)
		f.answer(Sent{
			ID: MessageID{at}, Queue: ef.Queue, Partition: int(ef.Partition), Confirmed: len(names), Want: ef.Want, Nodes: names,
		}, nil)
	}
}

// dialTimeout bounds one Dial: TCP, TLS and both Hellos.
const dialTimeout = 3 * time.Second

func (l *loop) dial(ef core.Dial) {
	ctx, stop := context.WithTimeout(l.ctx, dialTimeout)
	k := &link{loop: l, id: ef.Link, stop: stop, ready: make(chan struct{})}
	l.links[ef.Link] = k
	l.work.Go(func() {
		defer stop()
		defer close(k.ready)
		conn, err := transport.Dial(ctx, ef.Addr, ef.Hello, k, transport.Options{TLS: l.options.tls, DialContext: l.options.dial, Logger: l.options.logger})
		if err != nil {
			l.dialFailed(ef.Addr, err)
			l.put(posted{event: core.LinkDown{Link: k.id, Err: err}, link: k})
			return
		}
		if !l.put(posted{event: core.LinkUp{Link: k.id, Hello: conn.Hello()}, link: k, conn: conn}) {
			_ = conn.Close()
		}
	})
}

// hangUp ends a link. Closing writes what is queued, so it is not done here.
func (l *loop) hangUp(k *link) {
	k.stop()
	if conn := k.conn; conn != nil {
		k.conn = nil
		l.work.Go(func() { _ = conn.Close() })
	}
}

// call makes a request; its answer is an event. Where the connection is lost there is
// none: LinkDown says so.
func (k *link) call(ef core.Call) {
	answer := func(msg wire.Message) {
		k.loop.put(posted{event: core.Answered{Call: ef.Call, Msg: msg}, link: k})
	}
	err := k.conn.Go(ef.Msg, func(msg wire.Message, _ error) {
		if msg != nil {
			answer(msg)
		}
	})
	if errors.Is(err, transport.ErrSlow) {
		answer(wire.Errorf(wire.ErrOverloaded, "connection takes no more"))
	}
}

// Request answers a node that asks: nodes have nothing to ask of a client.
func (k *link) Request(c *transport.Conn, id uint64, msg wire.Message) {
	if _, ping := msg.(*wire.Ping); ping {
		_ = c.Reply(id, &wire.Done{})
		return
	}
	_ = c.Reply(id, wire.ErrBadRequest)
}

// OneWay passes on what a node pushes, after LinkUp.
func (k *link) OneWay(_ *transport.Conn, msg wire.Message) {
	<-k.ready
	k.loop.put(posted{event: core.Pushed{Link: k.id, Msg: msg}, link: k})
}

// Closed passes on the end of the connection, after LinkUp.
func (k *link) Closed(_ *transport.Conn, err error) {
	<-k.ready
	k.loop.put(posted{event: core.LinkDown{Link: k.id, Err: err}, link: k})
}
