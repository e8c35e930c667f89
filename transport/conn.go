package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// The errors of connections. What a peer answered comes as *wire.Error.
var (
	// ErrClosed means that the connection is closed; what closed it is wrapped beside it.
	ErrClosed = errors.New("connection closed")
	// ErrSlow means that a bound is reached: the other side reads or answers too
	// slowly. Nothing was sent.
	ErrSlow = errors.New("connection is too slow")
	// ErrDead means that the other side gave no sign of life (Options.Keepalive).
	ErrDead = errors.New("no sign of life")
	// ErrLate means that a message was not written in time (SendBefore).
	ErrLate = errors.New("a message was not written in time")
	// ErrNoRequest means that there is no such request to answer, or not any more.
	ErrNoRequest = errors.New("no such request")

	errRemoteClosed = errors.New("closed by the other side")
)

// Handler takes what arrives on a connection. Its methods are called from the
// connection's reader goroutine, in order of arrival, and must not block for long:
// nothing else is read meanwhile, answers included.
type Handler interface {
	// Request is a message that wants one c.Reply(id, msg), now or later, from any
	// goroutine.
	Request(c *Conn, id uint64, msg wire.Message)
	// OneWay is a message that wants no answer.
	OneWay(c *Conn, msg wire.Message)
	// Closed comes once and last, after the done of all requests under way.
	Closed(c *Conn, err error)
}

// Conn is one connection, after both hellos. All its methods may be called from any
// goroutine, those of Handler included, and none but Call waits for the network.
type Conn struct {
	nc      net.Conn
	o       Options
	h       Handler // nil: takes no requests
	local   *wire.Hello
	remote  *wire.Hello
	version uint16
	frames  frameReader // of the reader

	received atomic.Uint64 // bytes, for keepalive
	stalled  atomic.Bool   // the reader waits for an answer to be given

	wake    chan struct{} // capacity 1: the queue is no longer empty
	room    chan struct{} // capacity 1: a request was answered
	closing chan struct{} // closed with err set
	ended   chan struct{} // the reader has ended
	done    chan struct{} // all has ended

	mu          sync.Mutex // guards what follows; nothing is called under it but deadlines of nc
	queue       []outFrame
	queuedBytes int // memory of frames in queue and in the hands of the writer
	lastRequest uint64
	pending     map[uint64]func(wire.Message, error)
	unanswered  map[uint64]int // requests of the other side, and their bytes
	heldBytes   int            // sum of unanswered
	err         error          // why it closes; nil while open
	flush       bool           // closing: write what is queued first
	flushBy     time.Time      // closing: and be done by then
}

// outFrame is a frame that waits to be written.
type outFrame struct {
	head    *[]byte // prelude, header and short payloads; goes back to heads
	payload [][]byte
	cost    int       // bytes of memory in all
	before  time.Time // not zero: not to be written any more after it
}

var heads = sync.Pool{New: func() any { b := make([]byte, 0, 256); return &b }}

// Bounds of the writer.
const (
	copyBytes   = 4 << 10   // payloads up to this are copied next to their header
	gatherBytes = 256 << 10 // frames up to this go into one write
	keepHead    = 64 << 10  // longer buffers are not used again
	frameCost   = 96        // memory of a frame beyond its bytes
	keepFrames  = 4096      // longer queues are not used again
	scratchSize = 16 << 10  // longest body of a frame without a payload that is read into memory used again
	readBuffer  = 16 << 10  // what an idle connection costs; longer reads go past it
)

func newConn(nc net.Conn, o Options) *Conn {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
	}
	c := &Conn{
		nc: nc, o: o,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		closing: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}),
		pending: map[uint64]func(wire.Message, error){}, unanswered: map[uint64]int{},
	}
	c.frames = frameReader{
		r: bufio.NewReaderSize(countingReader{nc, &c.received}, readBuffer), limit: min(helloFrameBytes, o.MaxFrameBytes),
	}
	return c
}

type countingReader struct {
	r io.Reader
	n *atomic.Uint64
}

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.n.Add(uint64(n))
	return n, err
}

// Hello is the hello of the other side.
func (c *Conn) Hello() *wire.Hello { return c.remote }

// Version is the protocol version that both sides speak.
func (c *Conn) Version() uint16 { return c.version }

// RemoteAddr is the address of the other side.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// TLS is the state of encryption, nil without it. It names the certificate of the
// other side, if it sent one.
func (c *Conn) TLS() *tls.ConnectionState {
	if t, ok := c.nc.(*tls.Conn); ok {
		s := t.ConnectionState()
		return &s
	}
	return nil
}

// Done is closed when the connection is closed, its goroutines have ended and
// Handler.Closed has returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is why the connection closed, nil while it is open: ErrClosed after Close, a
// *wire.Error that the other side sent, ErrBadFrame (here or there), ErrDead, ErrSlow, ErrLate or an error
// of the network.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close writes what is queued, for at most Options.FlushTimeout, and closes the
// connection. It returns at once and may be called again; <-c.Done() waits for the
// end. The error is always nil.
func (c *Conn) Close() error {
	c.fail(ErrClosed, true)
	return nil
}

// fail closes the connection, once; the first error counts.
func (c *Conn) fail(err error, flush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err, c.flush, c.flushBy = err, flush, time.Now().Add(c.o.FlushTimeout)
	close(c.closing)
	c.setDeadlines()
}

// setDeadlines bounds reads and writes by the state of the connection. c.mu is held,
// so that a deadline of normal work never replaces one of closing.
func (c *Conn) setDeadlines() {
	switch {
	case c.err == nil:
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.o.WriteTimeout))
	case c.flush:
		_ = c.nc.SetDeadline(c.flushBy)
	default:
		_ = c.nc.SetDeadline(time.Unix(1, 0))
	}
}

// Send queues a one-way message. It never blocks. The errors are ErrSlow, ErrClosed
// and wire.ErrTooLarge.
func (c *Conn) Send(msg wire.Message) error { return c.SendBefore(msg, time.Time{}) }

// SendBefore is Send of a message that must not be written after a moment, looked at
// right before the write: then the connection is closed, with ErrLate. To drop it alone
// would leave the two sides with different counts of what was sent.
func (c *Conn) SendBefore(msg wire.Message, before time.Time) error {
	f, err := c.encode(msg, 0, 0)
	if err != nil {
		return err
	}
	f.before = before
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enqueue(f, c.o.WriteQueueBytes)
}

// Go sends a request. done is called once, from the reader goroutine, with the
// answer or with an error that matches ErrClosed; an answer that is an error comes
// as both. When Go returns an error (ErrSlow, ErrClosed, wire.ErrTooLarge) nothing
// was sent and done is not called.
func (c *Conn) Go(msg wire.Message, done func(wire.Message, error)) error {
	_, err := c.request(msg, done)
	return err
}

func (c *Conn) request(msg wire.Message, done func(wire.Message, error)) (id uint64, err error) {
	c.mu.Lock()
	c.lastRequest++
	id = c.lastRequest
	c.mu.Unlock()
	f, err := c.encode(msg, flagRequest, id)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) >= c.o.MaxPending {
		f.release()
		return 0, fmt.Errorf("%w: %d requests under way", ErrSlow, len(c.pending))
	}
	if err := c.enqueue(f, c.o.WriteQueueBytes); err != nil {
		return 0, err
	}
	c.pending[id] = done
	return id, nil
}

// Call sends a request and waits for its answer. An answer that is an error is
// returned as error, and so is the end of ctx; the outcome is then unknown.
func (c *Conn) Call(ctx context.Context, msg wire.Message) (wire.Message, error) {
	type answer struct {
		msg wire.Message
		err error
	}
	got := make(chan answer, 1)
	id, err := c.request(msg, func(m wire.Message, err error) { got <- answer{m, err} })
	if err != nil {
		return nil, err
	}
	select {
	case a := <-got:
		if a.err != nil {
			return nil, a.err
		}
		return a.msg, nil
	case <-ctx.Done():
		c.take(id)
		return nil, context.Cause(ctx)
	}
}

// take removes and returns who waits for the answer to a request; nil for nobody.
func (c *Conn) take(id uint64) func(wire.Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := c.pending[id]
	delete(c.pending, id)
	return done
}

// Reply answers a request, once. An answer that is too large is replaced by that
// error, which is also returned. The other errors are ErrNoRequest, ErrClosed and
// ErrSlow; ErrSlow closes the connection, so that no request stays without an answer
// on one that looks healthy.
func (c *Conn) Reply(id uint64, msg wire.Message) error {
	f, encodeErr := c.encode(msg, flagAnswer, id)
	if encodeErr != nil {
		var err error
		if f, err = c.encode(asWireError(encodeErr), flagAnswer, id); err != nil {
			return err
		}
	}
	c.mu.Lock()
	held, ok := c.unanswered[id]
	if !ok && c.err == nil {
		c.mu.Unlock()
		f.release()
		return fmt.Errorf("%w: %d", ErrNoRequest, id)
	}
	delete(c.unanswered, id)
	c.heldBytes -= held
	err := c.enqueue(f, 2*c.o.WriteQueueBytes)
	c.mu.Unlock()
	select {
	case c.room <- struct{}{}:
	default:
	}
	if errors.Is(err, ErrSlow) {
		c.fail(err, false)
	}
	if err == nil {
		err = encodeErr
	}
	return err
}

// asWireError is err as it is told to the other side.
func asWireError(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return &wire.Error{Code: e.Code, Text: clip(err.Error()), Have: e.Have, Want: e.Want, RetryAfter: e.RetryAfter}
	}
	return wire.Errorf(wire.ErrBadRequest, "%s", clip(err.Error()))
}

// clip bounds a text that is made of what came from outside.
func clip(s string) string { return s[:min(len(s), 512)] }

// encode makes a frame of msg.
func (c *Conn) encode(msg wire.Message, flags uint8, id uint64) (outFrame, error) {
	head := heads.Get().(*[]byte)
	b := append((*head)[:0], make([]byte, preludeSize)...)
	b, err := wire.AppendHeader(b, msg)
	*head = b
	f := outFrame{head: head}
	payload := wire.PayloadSize(msg)
	if size := len(b) + payload; err == nil && size > c.o.MaxFrameBytes {
		err = wire.Errorf(wire.ErrTooLarge, "message of type %d makes a frame of %d bytes, limit %d", msg.Type(), size, c.o.MaxFrameBytes)
	}
	if err != nil {
		f.release()
		return outFrame{}, err
	}
	finishFrame(b, msg.Type(), flags, id, payload)
	if payload > 0 {
		f.payload = wire.AppendPayload(nil, msg)
	}
	if payload <= copyBytes {
		for _, p := range f.payload {
			b = append(b, p...)
		}
		*head, f.payload, payload = b, nil, 0
	}
	f.cost = cap(*head) + payload + frameCost
	return f, nil
}

func (f *outFrame) release() {
	if cap(*f.head) <= keepHead {
		heads.Put(f.head)
	}
	*f = outFrame{}
}

// enqueue gives f to the writer, or releases it. c.mu is held.
func (c *Conn) enqueue(f outFrame, limit int) error {
	if c.err != nil {
		f.release()
		return closedError(c.err)
	}
	if c.queuedBytes > 0 && c.queuedBytes+f.cost > limit {
		f.release()
		return fmt.Errorf("%w: %d bytes wait to be written", ErrSlow, c.queuedBytes)
	}
	c.queuedBytes += f.cost
	c.queue = append(c.queue, f)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

func closedError(cause error) error {
	if errors.Is(cause, ErrClosed) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrClosed, cause)
}

// run is the life of the connection after the hellos. It returns when all has ended.
func (c *Conn) run() {
	c.frames.limit = c.o.MaxFrameBytes
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		c.write()
	}()
	c.end(c.read())
	close(c.ended)
	<-writer
	c.finish()
}

// finish tells everybody that the connection is closed.
func (c *Conn) finish() {
	c.mu.Lock()
	err, pending, queue := c.err, c.pending, c.queue
	c.pending, c.queue = map[uint64]func(wire.Message, error){}, nil
	clear(c.unanswered)
	c.heldBytes = 0
	c.mu.Unlock()
	for i := range queue {
		queue[i].release()
	}
	for _, done := range pending {
		done(nil, closedError(err))
	}
	if c.h != nil {
		c.h.Closed(c, err)
	}
	close(c.done)
}

// end closes the connection for what the reader came upon, and drops what still
// arrives until the other side has seen it.
func (c *Conn) end(err error) {
	var told *toldError
	switch {
	case errors.As(err, &told):
		c.o.Logger.Warn("connection refused by the other side", "remote", c.nc.RemoteAddr(), "error", err)
		c.fail(err, false)
	case errors.Is(err, ErrBadFrame):
		c.o.Logger.Warn("connection closed", "remote", c.nc.RemoteAddr(), "error", err)
		_ = c.Send(wire.Errorf(wire.ErrBadRequest, "%s", clip(err.Error())))
		c.fail(err, true)
	case err == io.EOF:
		c.fail(errRemoteClosed, true)
	default:
		c.fail(err, false)
	}
	_, _ = io.Copy(io.Discard, c.nc) // bounded by the deadline that fail has set
}

// read takes frames until it cannot go on, and says why.
func (c *Conn) read() error {
	for {
		p, header, payload, err := c.frames.next()
		if err != nil {
			return err
		}
		select {
		case <-c.closing:
			return c.Err()
		default:
		}
		msg, err := wire.DecodeMessage(p.typ, header, payload)
		if err != nil {
			if err = c.refuse(p, err); err != nil {
				return err
			}
			continue
		}
		if err := c.dispatch(p, msg); err != nil {
			return err
		}
	}
}

// refuse deals with a message that cannot be taken. It returns an error when the
// connection cannot go on.
func (c *Conn) refuse(p prelude, err error) error {
	var refused *wire.Error
	unknown := errors.Is(err, wire.ErrUnknownType)
	bad := errors.Is(err, wire.ErrBadMessage) || errors.Is(err, wire.ErrBadBatch)
	switch {
	case p.flags == flagRequest && !bad && (unknown || errors.As(err, &refused)):
		if err := c.admit(p); err != nil {
			return err
		}
		_ = c.Reply(p.request, asWireError(err)) // its errors close the connection
		return nil
	case p.flags == 0 && unknown:
		return nil
	}
	return fmt.Errorf("%w: %w", ErrBadFrame, plainError{err})
}

// toldError is why the other side closes the connection. It answers no request: one that
// came damaged ([wire.CodeBadRequest] here) is right, and may be made again elsewhere.
type toldError struct{ e *wire.Error }

func (t *toldError) Error() string { return "the other side says: " + t.e.Error() }

// Unwrap is ErrBadFrame where that is what the other side got.
func (t *toldError) Unwrap() error {
	if t.e.Code == wire.CodeBadRequest {
		return ErrBadFrame
	}
	return t.e
}

// plainError hides what an error wraps: a *wire.Error in a bad frame is not one that
// the other side sent.
type plainError struct{ error }

func (c *Conn) dispatch(p prelude, msg wire.Message) error {
	switch p.flags {
	case flagAnswer:
		done := c.take(p.request)
		if done == nil { // the caller no longer waits
			return nil
		}
		if e, ok := msg.(*wire.Error); ok {
			done(e, e)
		} else {
			done(msg, nil)
		}
		return nil
	case flagRequest:
		if err := c.admit(p); err != nil {
			return err
		}
		if _, ok := msg.(*wire.Ping); ok {
			_ = c.Reply(p.request, &wire.Done{})
		} else if c.h == nil {
			_ = c.Reply(p.request, wire.Errorf(wire.ErrBadRequest, "this side takes no requests"))
		} else {
			c.h.Request(c, p.request, msg)
		}
		return nil
	}
	switch m := msg.(type) {
	case *wire.Error:
		return &toldError{m}
	case *wire.Hello:
		return fmt.Errorf("%w: a second hello", ErrBadFrame)
	}
	if c.h != nil {
		c.h.OneWay(c, msg)
	}
	return nil
}

// admit counts a request, when there is room for one. It is where reading stops
// when the answers do not come.
func (c *Conn) admit(p prelude) error {
	for {
		c.mu.Lock()
		held := len(c.unanswered)
		_, twice := c.unanswered[p.request]
		full := held >= c.o.MaxRequests || held > 0 && c.heldBytes+p.body > c.o.MaxRequestBytes
		if !twice && !full {
			c.unanswered[p.request] = p.body
			c.heldBytes += p.body
		}
		c.mu.Unlock()
		if twice {
			return fmt.Errorf("%w: request %d is not answered yet and comes again", ErrBadFrame, p.request)
		}
		if !full {
			return nil
		}
		c.stalled.Store(true)
		select {
		case <-c.room:
		case <-c.closing:
			return c.Err()
		}
		c.stalled.Store(false)
	}
}

// write writes what is queued and looks after the other side's life, until the
// connection closes; then it closes the socket.
func (c *Conn) write() {
	keepalive := time.NewTicker(c.o.Keepalive)
	defer keepalive.Stop()
	var w writer
	var seen uint64
	missed := 0
	for open := true; open; {
		select {
		case <-c.wake:
		case <-keepalive.C:
			if got := c.received.Load(); got != seen || c.stalled.Load() {
				seen, missed = got, 0
			} else if missed++; missed > 3 {
				c.fail(ErrDead, false)
			} else {
				_ = c.Go(&wire.Ping{}, func(wire.Message, error) {})
			}
		case <-c.closing:
			open = false
		}
		if err := c.drain(&w); err != nil {
			c.fail(err, false)
		}
	}
	c.mu.Lock()
	flush := c.flush
	c.mu.Unlock()
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && flush && half.CloseWrite() == nil {
		// Closing at once would take from the other side what it has not read yet, if
		// it was sending. The reader ends by the other side's close or its deadline.
		select {
		case <-c.ended:
		case <-time.After(c.o.FlushTimeout): // the reader is in a handler
		}
	}
	_ = c.nc.Close()
}

// writer is the memory of the writer goroutine, used again for each write.
type writer struct {
	frames []outFrame
	bufs   net.Buffers
	flat   []byte
}

// drain writes until the queue is empty, or until closing without flush.
func (c *Conn) drain(w *writer) error {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 || c.err != nil && !c.flush {
			c.mu.Unlock()
			if cap(w.frames) > keepFrames {
				w.frames = nil
			}
			return nil
		}
		w.frames, c.queue = c.queue, w.frames[:0]
		c.mu.Unlock()
		for at := 0; at < len(w.frames); {
			n, bytes, late := c.gather(w, w.frames[at:])
			err := c.flushBuffers(w)
			if err == nil && late {
				err = ErrLate
			}
			for i := at; i < at+n; i++ {
				w.frames[i].release()
			}
			at += n
			c.mu.Lock()
			c.queuedBytes -= bytes
			abort := c.err != nil && !c.flush
			c.mu.Unlock()
			if err != nil || abort {
				clear(w.frames[at:])
				return err
			}
		}
	}
}

// gather takes frames for one write, up to one whose time has passed. It says how many
// frames that were, with the late one, and how many bytes of memory they counted for.
func (c *Conn) gather(w *writer, frames []outFrame) (n, bytes int, late bool) {
	w.bufs = w.bufs[:0]
	var now time.Time
	for n < len(frames) && (n == 0 || bytes+frames[n].cost <= gatherBytes) {
		f := &frames[n]
		n++
		bytes += f.cost
		if !f.before.IsZero() {
			if now.IsZero() {
				now = time.Now()
			}
			if now.After(f.before) {
				return n, bytes, true
			}
		}
		w.bufs = append(append(w.bufs, *f.head), f.payload...)
	}
	return n, bytes, false
}

// flushBuffers writes what was gathered, with one system call where that is possible.
func (c *Conn) flushBuffers(w *writer) (err error) {
	if len(w.bufs) == 0 {
		return nil
	}
	c.mu.Lock()
	c.setDeadlines()
	c.mu.Unlock()
	if _, ok := c.nc.(*net.TCPConn); ok || len(w.bufs) == 1 {
		bufs := w.bufs // WriteTo consumes its receiver
		_, err = bufs.WriteTo(c.nc)
	} else { // TLS: a record for each buffer would cost more than a copy
		w.flat = w.flat[:0]
		for _, b := range w.bufs {
			w.flat = append(w.flat, b...)
		}
		_, err = c.nc.Write(w.flat)
		if cap(w.flat) > 2*gatherBytes {
			w.flat = nil
		}
	}
	clear(w.bufs)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: no write within its time", ErrSlow)
	}
	return err
}
