package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshq/meshq/transport/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a Handler made of functions; nil ones do nothing.
type handler struct {
	request func(c *Conn, id uint64, msg wire.Message)
	oneWay  func(c *Conn, msg wire.Message)
	closed  func(c *Conn, err error)
}

func (h *handler) Request(c *Conn, id uint64, msg wire.Message) {
	if h.request != nil {
		h.request(c, id, msg)
	}
}

func (h *handler) OneWay(c *Conn, msg wire.Message) {
	if h.oneWay != nil {
		h.oneWay(c, msg)
	}
}

func (h *handler) Closed(c *Conn, err error) {
	if h.closed != nil {
		h.closed(c, err)
	}
}

var (
	clientHello = &wire.Hello{Name: "client"}
	serverHello = &wire.Hello{Name: "server", Node: 7, Mesh: 9}
)

// serve accepts on a local port with h until the test ends.
func serve(t testing.TB, h Handler, o Options) (addr string) {
	t.Helper()
	return serveWith(t, func(*Conn, *wire.Hello) (*wire.Hello, Handler, error) { return serverHello, h, nil }, o)
}

func serveWith(t testing.TB, accept func(*Conn, *wire.Hello) (*wire.Hello, Handler, error), o Options) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, accept, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dialTo(t testing.TB, addr string, h Handler, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), addr, clientHello, h, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		<-c.Done()
	})
	return c
}

// await waits for ch, and fails the test when nothing comes.
func await[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s", what)
	}
	return v
}

// echo answers every request with an Enqueued whose Base is the request's Commit.
var echo = &handler{request: func(c *Conn, id uint64, msg wire.Message) {
	_ = c.Reply(id, &wire.Enqueued{Base: wire.Offset(msg.(*wire.Beat).Commit)})
}}

func TestHellosAreExchanged(t *testing.T) {
	met := make(chan *wire.Hello, 1)
	addr := serveWith(t, func(c *Conn, remote *wire.Hello) (*wire.Hello, Handler, error) {
		met <- remote
		return serverHello, echo, c.Send(&wire.Beat{Commit: 5}) // follows the hello
	}, Options{})
	first := make(chan wire.Message, 1)
	c := dialTo(t, addr, &handler{oneWay: func(_ *Conn, msg wire.Message) { first <- msg }}, Options{})
	if h := c.Hello(); h.Node != 7 || h.Mesh != 9 || h.Version != wire.Version {
		t.Errorf("hello of the server: %+v", h)
	}
	if h := await(t, "hello", met); h.Name != "client" || h.Version != wire.Version {
		t.Errorf("hello of the client: %+v", h)
	}
	if m, ok := await(t, "first message", first).(*wire.Beat); !ok || m.Commit != 5 {
		t.Errorf("first message: %+v", m)
	}
	if c.Version() != wire.Version {
		t.Errorf("version %d", c.Version())
	}
}

func TestAnswersFindTheirRequests(t *testing.T) {
	// The server answers each pair of requests in reverse.
	var held []uint64
	var commits []uint64
	h := &handler{request: func(c *Conn, id uint64, msg wire.Message) {
		held, commits = append(held, id), append(commits, msg.(*wire.Beat).Commit)
		if len(held) == 2 {
			for i := 1; i >= 0; i-- {
				_ = c.Reply(held[i], &wire.Enqueued{Base: wire.Offset(commits[i])})
			}
			held, commits = nil, nil
		}
	}}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	var wg sync.WaitGroup
	for i := range uint64(100) {
		wg.Go(func() {
			m, err := c.Call(t.Context(), &wire.Beat{Commit: i})
			if err != nil {
				t.Error(err)
			} else if got := m.(*wire.Enqueued).Base; got != wire.Offset(i) {
				t.Errorf("asked %d, got %d", i, got)
			}
		})
	}
	wg.Wait()
}

func TestErrorAnswers(t *testing.T) {
	h := &handler{request: func(c *Conn, id uint64, _ wire.Message) { _ = c.Reply(id, wire.QuorumError(1, 2)) }}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	if m, err := c.Call(t.Context(), &wire.GetMesh{}); m != nil || !errors.Is(err, wire.ErrQuorum) {
		t.Errorf("Call: %v, %v", m, err)
	}
	both := make(chan error, 1)
	err := c.Go(&wire.GetMesh{}, func(m wire.Message, err error) {
		if e, ok := m.(*wire.Error); !ok || err != error(e) {
			err = errors.New("the answer and the error differ")
		}
		both <- err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := await(t, "answer", both); !errors.Is(err, wire.ErrQuorum) {
		t.Errorf("Go: %v", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	ids := make(chan uint64, 1)
	conns := make(chan *Conn, 1)
	h := &handler{request: func(c *Conn, id uint64, msg wire.Message) {
		if _, ok := msg.(*wire.GetMesh); ok {
			ids <- id
			conns <- c
			return
		}
		echo.Request(c, id, msg)
	}}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := c.Call(ctx, &wire.GetMesh{}); ended <- err }()
	id, server := await(t, "request", ids), await(t, "server", conns)
	cancel()
	if err := await(t, "end of Call", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Call: %v", err)
	}
	if err := server.Reply(id, &wire.Mesh{}); err != nil { // late: dropped
		t.Errorf("Reply: %v", err)
	}
	if err := server.Reply(id, &wire.Mesh{}); !errors.Is(err, ErrNoRequest) {
		t.Errorf("second Reply: %v", err)
	}
	if _, err := c.Call(t.Context(), &wire.Beat{Commit: 1}); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
}

func TestPayloadArrivesWhole(t *testing.T) {
	got := make(chan *wire.Replicate, 1)
	h := &handler{oneWay: func(_ *Conn, msg wire.Message) { got <- msg.(*wire.Replicate) }}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	for _, size := range []int{10, 5_000, 3 << 20} {
		records := wire.AppendRecord(nil, &wire.Record{Body: bytes.Repeat([]byte("m"), size)})
		b := wire.Batch{BatchHeader: wire.BatchHeader{Count: 1, Partition: 3, Checksum: wire.Checksum(records), Length: uint64(len(records))}, Records: records}
		if err := c.Send(&wire.Replicate{Queue: "q", Batches: []wire.Batch{b, b}}); err != nil {
			t.Fatal(err)
		}
		m := await(t, "batches", got)
		if len(m.Batches) != 2 || !bytes.Equal(m.Batches[1].Records, records) || m.Batches[0].BatchHeader != b.BatchHeader {
			t.Errorf("%d bytes came otherwise", size)
		}
	}
}

func TestCloseFlushesAndEndsBothSides(t *testing.T) {
	var count int
	closed := make(chan int, 1)
	h := &handler{
		oneWay: func(*Conn, wire.Message) { count++ },
		closed: func(*Conn, error) { closed <- count },
	}
	addr := serve(t, h, Options{})
	lost := make(chan error, 2)
	c := dialTo(t, addr, &handler{closed: func(_ *Conn, err error) { lost <- err }}, Options{})
	for range 1000 {
		if err := c.Send(&wire.Beat{}); err != nil {
			t.Fatal(err)
		}
	}
	pending := make(chan error, 1)
	if err := c.Go(&wire.GetMesh{}, func(_ wire.Message, err error) { pending <- err }); err != nil { // never answered
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "end", c.Done())
	if n := await(t, "end of the server", closed); n != 1000 {
		t.Errorf("%d of 1000 messages arrived", n)
	}
	if err := await(t, "done of the request", pending); !errors.Is(err, ErrClosed) {
		t.Errorf("request under way: %v", err)
	}
	if err := await(t, "Closed", lost); err != ErrClosed || c.Err() != ErrClosed || len(lost) > 0 {
		t.Errorf("Closed with %v, Err %v, %d more", err, c.Err(), len(lost))
	}
	for what, err := range map[string]error{
		"Send": c.Send(&wire.Beat{}), "Go": c.Go(&wire.Beat{}, nil), "Reply": c.Reply(1, &wire.Done{}),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func TestCloseFromAHandler(t *testing.T) {
	h := &handler{request: func(c *Conn, id uint64, _ wire.Message) {
		_ = c.Reply(id, &wire.Done{})
		_ = c.Close()
	}}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	if _, err := c.Call(t.Context(), &wire.GetMesh{}); err != nil {
		t.Errorf("the answer before Close: %v", err)
	}
	await(t, "end", c.Done())
}

func TestSlowReaderIsNoticed(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 1)
	h := &handler{oneWay: func(*Conn, wire.Message) {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-release
	}}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{WriteQueueBytes: 1 << 20})
	defer close(release)
	records := wire.AppendRecord(nil, &wire.Record{Body: make([]byte, 100_000)})
	msg := &wire.Deliver{Deliveries: []wire.Delivery{{Receipt: wire.Receipt{Run: wire.Span(0, 1)}, Records: records}}}
	var err error
	sent := 0
	for ; err == nil && sent < 10_000; sent++ { // 1 GB would not fit
		err = c.Send(msg)
	}
	if !errors.Is(err, ErrSlow) {
		t.Fatalf("after %d messages: %v", sent, err)
	}
	if c.Err() != nil {
		t.Errorf("the connection closed: %v", c.Err())
	}
}

func TestReadingStopsAtTheBoundOfRequests(t *testing.T) {
	type asked struct {
		c  *Conn
		id uint64
	}
	requests := make(chan asked, 100)
	var held, most atomic.Int32
	h := &handler{request: func(c *Conn, id uint64, _ wire.Message) {
		most.Store(max(most.Load(), held.Add(1)))
		requests <- asked{c, id}
	}}
	c := dialTo(t, serve(t, h, Options{MaxRequests: 4}), nil, Options{})
	answers := make(chan error, 100)
	for range 100 {
		if err := c.Go(&wire.GetMesh{}, func(_ wire.Message, err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range 25 {
		var four []asked
		for range 4 {
			four = append(four, await(t, "request", requests))
		}
		for _, a := range four {
			held.Add(-1)
			if err := a.c.Reply(a.id, &wire.Done{}); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "answer", answers); err != nil {
				t.Fatal(err)
			}
		}
	}
	if most.Load() != 4 {
		t.Errorf("up to %d requests were unanswered, the bound is 4", most.Load())
	}
}

// What is late is not written, nor what comes after it: the other side would count wrong.
func TestSendBeforeEndsWithWhatIsLate(t *testing.T) {
	got := make(chan uint64, 3)
	h := &handler{oneWay: func(_ *Conn, msg wire.Message) { got <- msg.(*wire.Beat).Commit }}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	for i, before := range []time.Time{time.Now().Add(time.Minute), time.Now().Add(-time.Millisecond), {}} {
		if err := c.SendBefore(&wire.Beat{Commit: uint64(i)}, before); err != nil && !errors.Is(err, ErrLate) {
			t.Fatal(err)
		}
	}
	if a := await(t, "first", got); a != 0 {
		t.Errorf("message %d came", a)
	}
	<-c.Done()
	if !errors.Is(c.Err(), ErrLate) {
		t.Errorf("closed by %v", c.Err())
	}
	select {
	case n := <-got:
		t.Errorf("message %d came too", n)
	default:
	}
}

func TestTooLargeIsSaid(t *testing.T) {
	h := &handler{request: func(c *Conn, id uint64, _ wire.Message) {
		if err := c.Reply(id, &wire.Batches{Gone: make(wire.Runs, wire.MaxHeaderBytes/3+1)}); !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("Reply: %v", err)
		}
	}}
	c := dialTo(t, serve(t, h, Options{}), nil, Options{})
	if _, err := c.Call(t.Context(), &wire.ListQueues{}); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("Call: %v", err)
	}
	batch := wire.Batch{Records: make([]byte, maxFrameBytes)}
	if err := c.Send(&wire.Replicate{Batches: []wire.Batch{batch}}); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("Send: %v", err)
	}
}

func TestRefusalsAtHello(t *testing.T) {
	addr := serveWith(t, func(_ *Conn, remote *wire.Hello) (*wire.Hello, Handler, error) {
		if remote.Mesh == 1 {
			return nil, nil, wire.ErrWrongMesh
		}
		return nil, nil, errors.New("out of order")
	}, Options{})
	_, err := Dial(t.Context(), addr, &wire.Hello{Mesh: 1}, nil, Options{})
	if !errors.Is(err, wire.ErrWrongMesh) {
		t.Errorf("wrong mesh: %v", err)
	}
	if _, err = Dial(t.Context(), addr, &wire.Hello{}, nil, Options{}); !errors.Is(err, wire.ErrInternal) {
		t.Errorf("other error: %v", err)
	}
	nc, frames := rawDial(t, addr)
	rawSend(t, nc, &wire.Hello{Version: 900, MinVersion: 800}, 0, 0)
	if e := rawError(t, frames); !errors.Is(e, wire.ErrVersion) {
		t.Errorf("no common version: %v", e)
	}
}

// rawDial is a peer that writes what it likes.
func rawDial(t *testing.T, addr string) (net.Conn, *frameReader) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	return nc, &frameReader{r: nc, limit: maxFrameBytes}
}

func rawFrame(t testing.TB, msg wire.Message, flags uint8, id uint64) []byte {
	t.Helper()
	c := &Conn{o: Options{}.withDefaults()}
	f, err := c.encode(msg, flags, id)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(*f.head)
	for _, p := range f.payload {
		b = append(b, p...)
	}
	return b
}

func rawSend(t *testing.T, nc net.Conn, msg wire.Message, flags uint8, id uint64) {
	t.Helper()
	if _, err := nc.Write(rawFrame(t, msg, flags, id)); err != nil {
		t.Fatal(err)
	}
}

// rawHello opens a connection by hand.
func rawHello(t *testing.T, addr string) (net.Conn, *frameReader) {
	t.Helper()
	nc, frames := rawDial(t, addr)
	rawSend(t, nc, versioned(clientHello), 0, 0)
	if p, _, _, err := frames.next(); err != nil || p.typ != wire.TypeHello {
		t.Fatalf("no hello: %v", err)
	}
	return nc, frames
}

func rawNext(t *testing.T, frames *frameReader) (prelude, wire.Message) {
	t.Helper()
	p, header, payload, err := frames.next()
	if err != nil {
		t.Fatal(err)
	}
	msg, err := wire.DecodeMessage(p.typ, header, payload)
	if err != nil {
		t.Fatal(err)
	}
	return p, msg
}

// rawError reads an error frame and the end of the stream.
func rawError(t *testing.T, frames *frameReader) *wire.Error {
	t.Helper()
	p, msg := rawNext(t, frames)
	e, ok := msg.(*wire.Error)
	if !ok || p.flags != 0 {
		t.Fatalf("%+v in place of an error", msg)
	}
	if _, _, _, err := frames.next(); err != io.EOF {
		t.Errorf("after the error: %v", err)
	}
	return e
}

func TestBadFramesCloseTheirConnection(t *testing.T) {
	ended := make(chan error, 1)
	addr := serve(t, &handler{closed: func(_ *Conn, err error) { ended <- err }}, Options{})
	reseal := func(b []byte) []byte {
		n := binary.BigEndian.Uint32(b[16:])
		binary.BigEndian.PutUint32(b[20:], frameSum(b[:20], b[preludeSize:preludeSize+n]))
		return b
	}
	beat := func(change func([]byte)) []byte {
		b := rawFrame(t, &wire.Beat{Commit: 3}, 0, 0)
		change(b)
		return b
	}
	enqueue := &wire.Enqueue{Count: 1, Records: wire.AppendRecord(nil, &wire.Record{Body: []byte("x")}), Checksum: 1}
	for name, frame := range map[string][]byte{
		"garbage":       []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"magic":         beat(func(b []byte) { b[4]++ }),
		"too long":      beat(func(b []byte) { b[0] = 0xff }),
		"header length": beat(func(b []byte) { b[19] = 0xff }),
		"checksum":      beat(func(b []byte) { b[preludeSize]++ }),
		"flags":         beat(func(b []byte) { b[7] = 4; reseal(b) }),
		"both flags":    beat(func(b []byte) { b[7] = 3; b[15] = 1; reseal(b) }),
		"no request":    beat(func(b []byte) { b[7] = 1; reseal(b) }),
		"msgpack":       beat(func(b []byte) { b[preludeSize] = 0xc1; reseal(b) }),
		"hello":         rawFrame(t, clientHello, 0, 0),
		"records":       rawFrame(t, enqueue, flagRequest, 1),
		"twice":         bytes.Repeat(rawFrame(t, &wire.GetMesh{}, flagRequest, 5), 2),
	} {
		t.Run(name, func(t *testing.T) {
			nc, frames := rawHello(t, addr)
			if _, err := nc.Write(frame); err != nil {
				t.Fatal(err)
			}
			if e := rawError(t, frames); !errors.Is(e, wire.ErrBadRequest) {
				t.Errorf("told: %v", e)
			}
			_ = nc.Close()
			if err := await(t, "end", ended); !errors.Is(err, ErrBadFrame) {
				t.Errorf("closed with: %v", err)
			}
		})
	}
	if _, err := dialTo(t, addr, nil, Options{}).Call(t.Context(), &wire.Ping{}); err != nil {
		t.Errorf("others suffer: %v", err)
	}
}

func TestHalfFrames(t *testing.T) {
	ended := make(chan error, 1)
	addr := serve(t, &handler{closed: func(_ *Conn, err error) { ended <- err }}, Options{})
	whole := rawFrame(t, &wire.Beat{Commit: 3}, 0, 0)
	for n := range len(whole) {
		nc, _ := rawHello(t, addr)
		if _, err := nc.Write(whole[:n]); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = errRemoteClosed
		}
		if err := await(t, "end", ended); !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestWhatIsUnknownIsRefusedNotPunished(t *testing.T) {
	addr := serve(t, echo, Options{})
	nc, frames := rawHello(t, addr)
	future := func(flags uint8, id uint64) []byte {
		b := rawFrame(t, &wire.Beat{}, flags, id)
		b[6] = 250
		binary.BigEndian.PutUint32(b[20:], frameSum(b[:20], b[preludeSize:]))
		return b
	}
	tooMany := &wire.Enqueue{Count: wire.MaxBatchMessages + 1}
	_, err := nc.Write(append(append(future(0, 0), future(flagRequest, 8)...), rawFrame(t, tooMany, flagRequest, 9)...))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		id  uint64
		err *wire.Error
	}{{8, wire.ErrBadRequest}, {9, wire.ErrTooLarge}} {
		p, msg := rawNext(t, frames)
		if e, ok := msg.(*wire.Error); !ok || p.flags != flagAnswer || p.request != want.id || !errors.Is(e, want.err) {
			t.Errorf("answer %d: %+v", p.request, msg)
		}
	}
	rawSend(t, nc, &wire.Beat{Commit: 4}, flagRequest, 10)
	if _, msg := rawNext(t, frames); msg.(*wire.Enqueued).Base != 4 {
		t.Errorf("after the refusals: %+v", msg)
	}
}

func TestHelloTimesOut(t *testing.T) {
	addr := serve(t, nil, Options{HelloTimeout: 50 * time.Millisecond})
	for _, start := range [][]byte{nil, {0}, rawFrame(t, versioned(clientHello), 0, 0)[:30]} {
		nc, _ := rawDial(t, addr)
		if _, err := nc.Write(start); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(nc); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d bytes: % x, %v", len(start), b, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Dial(t.Context(), l.Addr().String(), clientHello, nil, Options{HelloTimeout: 50 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: %v", err)
	}
}

func TestFirstFrameIsSmall(t *testing.T) {
	addr := serve(t, nil, Options{})
	nc, frames := rawDial(t, addr)
	b := rawFrame(t, versioned(clientHello), 0, 0)
	binary.BigEndian.PutUint32(b, helloFrameBytes+1)
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
	if e := rawError(t, frames); !errors.Is(e, wire.ErrBadRequest) {
		t.Errorf("told: %v", e)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	addr := serve(t, nil, Options{MaxConns: 2})
	a, b := dialTo(t, addr, nil, Options{}), dialTo(t, addr, nil, Options{})
	if _, err := Dial(t.Context(), addr, clientHello, nil, Options{}); !errors.Is(err, wire.ErrOverloaded) {
		t.Errorf("third connection: %v", err)
	}
	for _, c := range []*Conn{a, b} {
		if _, err := c.Call(t.Context(), &wire.Ping{}); err != nil {
			t.Error(err)
		}
	}
}

func TestServeEndsItsConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, func(*Conn, *wire.Hello) (*wire.Hello, Handler, error) { return serverHello, nil, nil }, Options{})
	}()
	c := dialTo(t, l.Addr().String(), nil, Options{})
	silent, _ := rawDial(t, l.Addr().String()) // still in its hello
	cancel()
	if err := await(t, "end of Serve", ended); err != nil {
		t.Errorf("Serve: %v", err)
	}
	await(t, "end of the connection", c.Done())
	if b, _ := io.ReadAll(silent); len(b) > 0 {
		t.Errorf("the silent one was told % x", b)
	}
}
