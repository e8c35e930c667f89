package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// pipe connects two Conns in memory, hellos done. Inside a synctest bubble time is
// virtual.
func pipe(a, b Handler, o Options) (*Conn, *Conn) {
	x, y := net.Pipe()
	ca, cb := newConn(x, o.withDefaults()), newConn(y, o.withDefaults())
	ca.h, cb.h, ca.remote, cb.remote = a, b, serverHello, clientHello
	go ca.run()
	go cb.run()
	return ca, cb
}

func TestAnIdleConnectionLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(nil, echo, Options{})
		time.Sleep(time.Hour) // virtual
		if m, err := a.Call(t.Context(), &wire.Beat{Commit: 6}); err != nil || m.(*wire.Enqueued).Base != 6 {
			t.Errorf("after an hour: %+v, %v", m, err)
		}
		_ = a.Close()
		<-a.Done()
		<-b.Done()
	})
}

func TestASilentConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a := newConn(x, Options{}.withDefaults())
		go a.run()
		go func() { _, _ = io.Copy(io.Discard, y) }() // reads, and never answers
		start := time.Now()
		<-a.Done()
		if took := time.Since(start); !errors.Is(a.Err(), ErrDead) || took != 40*time.Second {
			t.Errorf("after %s: %v", took, a.Err())
		}
		_ = y.Close()
	})
}

func TestAWriteThatDoesNotEndIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe() // nobody reads y
		a := newConn(x, Options{}.withDefaults())
		go a.run()
		start := time.Now()
		if err := a.Send(&wire.Beat{}); err != nil {
			t.Fatal(err)
		}
		<-a.Done()
		if took := time.Since(start); !errors.Is(a.Err(), ErrSlow) || took != 30*time.Second {
			t.Errorf("after %s: %v", took, a.Err())
		}
		_ = y.Close()
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe() // nobody reads y
		a := newConn(x, Options{}.withDefaults())
		go a.run()
		for range 10_000 {
			if err := a.Send(&wire.Beat{}); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		_ = a.Close()
		<-a.Done()
		if took := time.Since(start); took > 2*time.Second || a.Err() != ErrClosed {
			t.Errorf("Close took %s: %v", took, a.Err())
		}
		_ = y.Close()
	})
}

// TestBackpressureIsNotDeath: a side that reads no more because it waits for answers
// of its own does not take the other for dead.
func TestBackpressureIsNotDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []uint64
		h := &handler{request: func(_ *Conn, id uint64, _ wire.Message) { ids = append(ids, id) }}
		a, b := pipe(nil, h, Options{MaxRequests: 2})
		answered := 0
		for range 3 {
			if err := a.Go(&wire.GetMesh{}, func(_ wire.Message, err error) {
				if err == nil {
					answered++
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(35 * time.Second)
		synctest.Wait()
		if len(ids) != 2 || a.Err() != nil || b.Err() != nil {
			t.Fatalf("%d requests, %v, %v", len(ids), a.Err(), b.Err())
		}
		for _, id := range ids {
			if err := b.Reply(id, &wire.Done{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(ids) != 3 || answered != 2 {
			t.Errorf("%d requests came, %d were answered", len(ids), answered)
		}
		_ = a.Close()
		<-a.Done()
		<-b.Done()
	})
}

func TestRequestsAreBoundedByBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []uint64
		h := &handler{request: func(_ *Conn, id uint64, _ wire.Message) { ids = append(ids, id) }}
		a, b := pipe(nil, h, Options{MaxRequestBytes: 2500})
		records := wire.AppendRecord(nil, &wire.Record{Body: make([]byte, 1000)})
		for range 5 {
			m := &wire.Enqueue{Count: 1, Records: records, Checksum: wire.Checksum(records)}
			if err := a.Go(m, func(wire.Message, error) {}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for seen := 2; seen <= 5; seen++ { // two fit; each answer lets in one more
			if len(ids) != seen {
				t.Fatalf("%d requests, want %d", len(ids), seen)
			}
			if err := b.Reply(ids[seen-2], &wire.Done{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		_ = a.Close()
		<-a.Done()
		<-b.Done()
	})
}

func TestAPeerThatReadsNoAnswersIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		var ids []uint64
		h := &handler{request: func(_ *Conn, id uint64, _ wire.Message) { ids = append(ids, id) }}
		a := newConn(x, Options{WriteQueueBytes: 10_000}.withDefaults())
		a.h = h
		go a.run()
		for id := range uint64(100) {
			if _, err := y.Write(rawFrame(t, &wire.GetMesh{}, flagRequest, id+1)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		var err error
		n := 0
		for ; err == nil && n < len(ids); n++ {
			err = a.Reply(ids[n], &wire.Error{Text: string(make([]byte, 1000))})
		}
		if !errors.Is(err, ErrSlow) || n < 10 {
			t.Errorf("after %d answers: %v", n, err)
		}
		<-a.Done()
		if !errors.Is(a.Err(), ErrSlow) {
			t.Errorf("closed with %v", a.Err())
		}
		_ = y.Close()
	})
}

func TestOwnRequestsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe(nil, &handler{}, Options{MaxPending: 3})
		ended := 0
		for i := range 4 {
			err := a.Go(&wire.GetMesh{}, func(wire.Message, error) { ended++ })
			if want := i == 3; errors.Is(err, ErrSlow) != want {
				t.Errorf("request %d: %v", i, err)
			}
		}
		_ = b.Close()
		<-a.Done()
		<-b.Done()
		if ended != 3 {
			t.Errorf("done was called %d times, want 3", ended)
		}
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := Dial(ctx, l.Addr().String(), clientHello, nil, Options{}); ended <- err }()
	nc, err := l.Accept() // it waits for our hello now
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	cancel()
	if err := await(t, "end of Dial", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v", err)
	}
	if _, err := Dial(t.Context(), "127.0.0.1:1", clientHello, nil, Options{}); err == nil {
		t.Error("nobody listens there")
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(rawFrame(f, &wire.Beat{Commit: 1}, 0, 0))
	f.Add(rawFrame(f, &wire.Enqueue{Count: 1, Records: []byte{2, 0, 0}}, flagRequest, 77))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &frameReader{r: &chunks{b}, limit: 1 << 20}
		for {
			p, header, payload, err := r.next()
			if err != nil {
				if !errors.Is(err, ErrBadFrame) && err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Fatalf("untyped error %v", err)
				}
				return
			}
			if len(header) != p.header || len(header)+len(payload) != p.body {
				t.Fatalf("header of %d, payload of %d bytes: %+v", len(header), len(payload), p)
			}
			_, _ = wire.DecodeMessage(p.typ, header, payload)
		}
	})
}

// chunks gives its bytes three at a time.
type chunks struct{ b []byte }

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b[:min(3, len(c.b))])
	c.b = c.b[n:]
	return n, nil
}

func BenchmarkRoundTrip(b *testing.B) {
	c := dialTo(b, serve(b, echo, Options{}), nil, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Call(b.Context(), &wire.Beat{Commit: 1}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPipelined(b *testing.B) {
	done := &wire.Enqueued{}
	h := &handler{request: func(c *Conn, id uint64, _ wire.Message) { _ = c.Reply(id, done) }}
	records := []byte(nil)
	for range 100 {
		records = wire.AppendRecord(records, &wire.Record{Body: make([]byte, 1024)})
	}
	for name, msg := range map[string]wire.Message{
		"small":   &wire.Beat{Commit: 1},
		"100x1KB": &wire.Enqueue{Count: 100, Records: records, Checksum: wire.Checksum(records)},
	} {
		b.Run(name, func(b *testing.B) {
			c := dialTo(b, serve(b, h, Options{}), nil, Options{})
			slots := make(chan struct{}, 64)
			b.SetBytes(int64(wire.PayloadSize(msg)))
			b.ReportAllocs()
			for b.Loop() {
				slots <- struct{}{}
				if err := c.Go(msg, func(wire.Message, error) { <-slots }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
