package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t testing.TB, f *fakeMesh, opts ...client.Option) *client.Mesh {
	t.Helper()
	mesh, err := client.Dial(t.Context(), f.servers(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mesh.Close() })
	return mesh
}

func TestSendReceiveAck(t *testing.T) {
	f := newFakeMesh(t, 3)
	mesh := dial(t, f)
	ctx := t.Context()
	if _, err := mesh.CreateQueue(ctx, "photos", client.Settings{}); err != nil {
		t.Fatal(err)
	}
	q := mesh.Queue("photos")
	sent, err := q.Send(ctx, client.Message{Body: []byte("one"), Key: "k", Headers: map[string]string{"b": "2", "a": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if sent.Confirmed != 2 || sent.Want != 2 || len(sent.Nodes) != 2 || sent.Partition != 0 {
		t.Errorf("sent %+v", sent)
	}
	if id, err := client.ParseMessageID(fmt.Sprint(sent)); err != nil || id != sent.ID {
		t.Errorf("id %v of %v: %v", id, sent, err)
	}
	ds, err := q.Receive(ctx, "", 10, 5*time.Second)
	if err != nil || len(ds) != 1 {
		t.Fatalf("received %v, %v", ds, err)
	}
	d := ds[0]
	if string(d.Body) != "one" || d.Key != "k" || d.Headers["a"] != "1" || d.Headers["b"] != "2" || d.Attempt != 1 ||
		d.Redelivered || d.ID != sent.ID || d.Queue != "photos" || d.Group != "default" || time.Since(d.EnqueuedAt) > time.Minute {
		t.Errorf("delivery %+v", d)
	}
	if err := d.Extend(ctx, time.Minute); err != nil {
		t.Error(err)
	}
	if err := d.Nack(ctx, 0, "not yet"); err != nil {
		t.Error(err)
	}
	if err := d.Ack(ctx); !errors.Is(err, client.ErrStaleReceipt) {
		t.Errorf("ack after nack: %v", err)
	}
	ds, err = q.Receive(ctx, "", 10, 5*time.Second)
	if err != nil || len(ds) != 1 || ds[0].Attempt != 2 || !ds[0].Redelivered || ds[0].Cause != "nack" {
		t.Fatalf("received %v, %v", ds, err)
	}
	if ds[0].Fence.Compare(d.Fence) <= 0 {
		t.Error("fence does not grow")
	}
	if err := ds[0].Ack(ctx); err != nil {
		t.Error(err)
	}
	if ds, err := q.Receive(ctx, "", 10, 50*time.Millisecond); err != nil || len(ds) != 0 {
		t.Errorf("received %v, %v", ds, err)
	}
	if n := f.ackedOf("photos"); n != 1 {
		t.Errorf("%d acked", n)
	}
}

func TestErrors(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f, client.SendTimeout(5*time.Second))
	ctx := t.Context()
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"send to no queue", func() error { _, err := mesh.Queue("none").Send(ctx, client.Message{}); return err }, client.ErrNoQueue},
		{"receive from no queue", func() error { _, err := mesh.Queue("none").Receive(ctx, "", 1, 0); return err }, client.ErrNoQueue},
		{"no group", func() error { _, err := mesh.Queue("photos").Consumer(ctx, "g"); return err }, client.ErrNoGroup},
		{"too large", func() error {
			_, err := mesh.Queue("photos").Send(ctx, client.Message{Body: make([]byte, 2<<20)})
			return err
		}, client.ErrTooLarge},
		{"bad delay", func() error {
			_, err := mesh.Queue("photos").Send(ctx, client.Message{Delay: -1})
			return err
		}, client.ErrBadRequest},
		{"bad name", func() error { _, err := mesh.CreateQueue(ctx, "-", client.Settings{}); return err }, client.ErrBadRequest},
		{"bad settings", func() error {
			_, err := mesh.CreateQueue(ctx, "q", client.Settings{Partitions: -1})
			return err
		}, client.ErrBadRequest},
		{"exists", func() error {
			_, err := mesh.CreateQueue(ctx, "photos", client.Settings{Partitions: 3})
			return err
		}, client.ErrExists},
		{"delete no queue", func() error { return mesh.DeleteQueue(ctx, "none") }, client.ErrNoQueue},
	} {
		err := c.do()
		if !errors.Is(err, c.want) || errors.Is(err, client.ErrQuorum) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestDialUnreachable(t *testing.T) {
	f := newFakeMesh(t, 1)
	servers := f.servers()
	f.close()
	_, err := client.Dial(t.Context(), servers, client.DialTimeout(100*time.Millisecond))
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial: %v", err)
	}
	if _, err := client.Dial(t.Context(), "nonsense"); !errors.Is(err, client.ErrBadRequest) {
		t.Errorf("dial: %v", err)
	}
}

// A refusal for good ends Dial at once, with its reason.
func TestDialRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = transport.Serve(ctx, l, func(*transport.Conn, *wire.Hello) (*wire.Hello, transport.Handler, error) {
			return nil, nil, wire.ErrUnauthorized
		}, transport.Options{})
	}()
	begin := time.Now()
	_, err = client.Dial(t.Context(), l.Addr().String(), client.DialTimeout(time.Minute))
	if !errors.Is(err, client.ErrUnauthorized) || !errors.Is(err, client.ErrUnreachable) || time.Since(begin) > 20*time.Second {
		t.Errorf("dial: %v after %v", err, time.Since(begin))
	}
	cancel()
	<-served
}

// A handler whose lease is over is told, and its message is not acked in vain.
func TestLeaseLostEndsTheHandlersContext(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	f.mu.Lock()
	f.lease = 300 // milliseconds
	f.mu.Unlock()
	mesh := dial(t, f)
	if _, err := mesh.Queue("photos").Send(t.Context(), client.Message{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var cause error
	err := mesh.Queue("photos").Consume(ctx, "", func(hc context.Context, d *client.Delivery) error {
		f.forget() // as an owner that gave the message to another
		<-hc.Done()
		cause = context.Cause(hc)
		cancel()
		return hc.Err()
	})
	if err != nil || !errors.Is(cause, client.ErrLeaseLost) {
		t.Errorf("%v, %v", cause, err)
	}
}

func TestSendBatchKeepsOrder(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f)
	var msgs []client.Message
	var want []string
	for i := range 5000 {
		want = append(want, fmt.Sprint(i))
		msgs = append(msgs, client.Message{Body: []byte(fmt.Sprint(i))})
	}
	sent, err := mesh.Queue("photos").SendBatch(t.Context(), msgs)
	if err != nil || len(sent) != len(msgs) {
		t.Fatal(err)
	}
	if got := f.bodies("photos"); !slices.Equal(got, want) {
		t.Errorf("%d messages, not in the order sent", len(got))
	}
	if sent, _ := f.counts(); sent > 1000 {
		t.Errorf("%d batches for %d messages", sent, len(msgs))
	}
	msgs[1].Body = make([]byte, 2<<20) // its neighbours are not harmed
	sent, err = mesh.Queue("photos").SendBatch(t.Context(), msgs[:3])
	if !errors.Is(err, client.ErrTooLarge) || sent[0].Err != nil || !errors.Is(sent[1].Err, client.ErrTooLarge) || sent[2].Err != nil {
		t.Errorf("%v: %v", err, sent)
	}
}

// What arrives damaged is said by the node for the connection, and it is no answer to the
// request: that was right.
func TestDamageOnTheWayIsNoAnswer(t *testing.T) {
	for what, mark := range map[string]string{"hello": "me and you", "records": "a body"} {
		t.Run(what, func(t *testing.T) {
			f := newFakeMesh(t, 1)
			f.create("photos", 1)
			var hurt atomic.Int32
			mesh := dial(t, f, client.DialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, addr)
				return &damagingConn{Conn: nc, mark: []byte(mark), hurt: &hurt}, err
			}), client.Name("me and you"))
			if _, err := mesh.Queue("photos").Send(t.Context(), client.Message{Body: []byte("a body")}); err != nil {
				t.Error(err)
			}
			if hurt.Load() != 1 {
				t.Errorf("damaged %d times", hurt.Load())
			}
			if got := f.bodies("photos"); !slices.Equal(got, []string{"a body"}) {
				t.Errorf("stored %q", got)
			}
		})
	}
}

// damagingConn flips a bit of the first thing written that has mark in it.
type damagingConn struct {
	net.Conn
	mark []byte
	hurt *atomic.Int32
}

func (c *damagingConn) Write(b []byte) (int, error) {
	if i := bytes.Index(b, c.mark); i >= 0 && c.hurt.CompareAndSwap(0, 1) {
		b = bytes.Clone(b)
		b[i] ^= 1
	}
	return c.Conn.Write(b)
}

func TestSendFailsOver(t *testing.T) {
	for _, how := range []string{"killed", "silent"} {
		t.Run(how, func(t *testing.T) {
			f := newFakeMesh(t, 4)
			f.create("photos", 1)
			mesh := dial(t, f)
			q := mesh.Queue("photos")
			if _, err := q.Send(t.Context(), client.Message{Body: []byte("0")}); err != nil {
				t.Fatal(err)
			}
			owner := f.ownerOf("photos")
			if how == "killed" {
				owner.kill()
			} else {
				f.mu.Lock()
				owner.mute = true
				f.mu.Unlock()
			}
			begin := time.Now()
			sent, err := q.Send(t.Context(), client.Message{Body: []byte("1")})
			if err != nil {
				t.Fatal(err)
			}
			if slices.Equal(sent.Nodes[:1], []string{owner.name}) {
				t.Errorf("sent to %v", sent.Nodes)
			}
			if took := time.Since(begin); how == "killed" && took > 200*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if got := f.bodies("photos"); !slices.Equal(got, []string{"0", "1"}) {
				t.Errorf("stored %v", got)
			}
		})
	}
}

func TestSendCanceledSaysWhetherItMayBeStored(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	asked := make(chan struct{}, 100)
	f.refuse = func(*fakeNode, *wire.Enqueue) *wire.Error {
		asked <- struct{}{}
		return wire.QuorumError(1, 2)
	}
	mesh := dial(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := mesh.Queue("photos").Send(ctx, client.Message{Body: []byte("x")})
	var s *client.SendError
	if !errors.Is(err, context.Canceled) || !errors.Is(err, client.ErrQuorum) || !errors.As(err, &s) || !s.Unknown {
		t.Errorf("canceled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = mesh.Queue("photos").Send(ctx, client.Message{Body: []byte("x")})
	var w *client.Error
	if !errors.Is(err, client.ErrQuorum) || !errors.As(err, &w) || w.Have != 1 || w.Want != 2 {
		t.Errorf("quorum: %v", err)
	}
	f.mu.Lock()
	f.refuse = func(*fakeNode, *wire.Enqueue) *wire.Error {
		return &wire.Error{Code: wire.CodeOverloaded, RetryAfter: 60_000} // no other try is under way at the end
	}
	f.mu.Unlock()
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = mesh.Queue("photos").Send(ctx, client.Message{Body: []byte("y")})
	if !errors.Is(err, client.ErrOverloaded) || errors.Is(err, client.ErrQuorum) {
		t.Errorf("overloaded: %v", err)
	}
}

func TestSendBufferIsBounded(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	f.refuse = func(*fakeNode, *wire.Enqueue) *wire.Error { return wire.ErrOverloaded }
	mesh := dial(t, f, client.SendBuffer(1000), client.FailWhenFull(), client.CloseTimeout(0))
	q := mesh.Queue("photos")
	var futures []*client.Future
	var err error
	for err == nil && len(futures) < 100 {
		var fut *client.Future
		if fut, err = q.SendAsync(t.Context(), client.Message{Body: make([]byte, 100)}); err == nil {
			futures = append(futures, fut)
		}
	}
	if !errors.Is(err, client.ErrOverloaded) || len(futures) != 6 {
		t.Errorf("%d taken, then %v", len(futures), err)
	}
	_ = mesh.Close()
	for _, fut := range futures { // none is left without an answer
		if _, err := fut.Wait(t.Context()); !errors.Is(err, client.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	}
	if _, err := q.Send(t.Context(), client.Message{}); !errors.Is(err, client.ErrClosed) {
		t.Errorf("send after close: %v", err)
	}
}

func TestConsume(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 3)
	mesh := dial(t, f)
	q := mesh.Queue("photos")
	const n = 500
	for i := range n {
		if _, err := q.SendAsync(t.Context(), client.Message{Body: fmt.Append(nil, i), Key: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	seen := map[string]int{}
	var atOnce, most atomic.Int32
	err := q.Consume(ctx, "", func(_ context.Context, d *client.Delivery) error {
		most.Store(max(most.Load(), atOnce.Add(1)))
		defer atOnce.Add(-1)
		mu.Lock()
		defer mu.Unlock()
		seen[string(d.Body)]++
		switch {
		case string(d.Body) == "7" && d.Attempt == 1:
			return client.Retry(errors.New("again"), time.Second)
		case string(d.Body) == "8" && d.Attempt == 1:
			panic("oh")
		}
		if len(seen) == n && seen["7"] == 2 && seen["8"] == 2 {
			cancel()
		}
		return nil
	}, client.Concurrency(8))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.ackedOf("photos"); got != n { // all acks were confirmed before it returned
		t.Errorf("%d of %d acked", got, n)
	}
	if most.Load() > 8 {
		t.Errorf("%d handlers at once", most.Load())
	}
	if _, settles := f.counts(); settles > n/2 {
		t.Errorf("%d settles for %d messages", settles, n)
	}
}

func TestConsumeKeepsOrderWithOneHandler(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f)
	var msgs []client.Message
	for i := range 300 {
		msgs = append(msgs, client.Message{Body: fmt.Append(nil, i)})
	}
	if _, err := mesh.Queue("photos").SendBatch(t.Context(), msgs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	next := 0
	err := mesh.Queue("photos").Consume(ctx, "", func(_ context.Context, d *client.Delivery) error {
		if string(d.Body) != fmt.Sprint(next) {
			t.Errorf("got %s, want %d", d.Body, next)
		}
		if next++; next == len(msgs) {
			cancel()
		}
		return nil
	})
	if err != nil || next != len(msgs) {
		t.Errorf("%d handled, %v", next, err)
	}
}

func TestConsumeGivesBackWhatWasNotBegun(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f)
	var msgs []client.Message
	for range 10 {
		msgs = append(msgs, client.Message{Body: []byte("x")})
	}
	if _, err := mesh.Queue("photos").SendBatch(t.Context(), msgs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := mesh.Queue("photos").Consume(ctx, "", func(context.Context, *client.Delivery) error {
		cancel()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := mesh.Queue("photos").Consumer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for left := 9; left > 0; {
		ds, err := c.Receive(t.Context(), 100, 5*time.Second)
		if err != nil || len(ds) == 0 || ds[0].Attempt != 1 {
			t.Fatalf("%d received, %v", len(ds), err)
		}
		if err := c.AckAll(t.Context(), ds); err != nil {
			t.Fatal(err)
		}
		left -= len(ds)
	}
	if got := f.ackedOf("photos"); got != 10 {
		t.Errorf("%d acked", got)
	}
}

// A consumer works on messages while their owner dies: it resumes at the next owner,
// and acks there.
func TestConsumerResumes(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f)
	if _, err := mesh.Queue("photos").SendBatch(t.Context(), []client.Message{{Body: []byte("1")}, {Body: []byte("2")}}); err != nil {
		t.Fatal(err)
	}
	c, err := mesh.Queue("photos").Consumer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ds, err := c.Receive(t.Context(), 2, 5*time.Second)
	if err != nil || len(ds) != 2 {
		t.Fatalf("%d received, %v", len(ds), err)
	}
	f.ownerOf("photos").kill()
	eventually(t, "resumed at both other homes", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.resumed) >= 2
	})
	if err := c.AckAll(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	if got := f.ackedOf("photos"); got != 2 {
		t.Errorf("%d acked", got)
	}
}

func TestAdmin(t *testing.T) {
	f := newFakeMesh(t, 4)
	mesh := dial(t, f)
	ctx := t.Context()
	info, err := mesh.CreateQueue(ctx, "photos", client.Settings{Partitions: 4, Lease: time.Minute})
	if err != nil || info.Settings.Partitions != 4 || info.Settings.Replicas != 3 || info.Settings.WriteQuorum != 2 || info.Settings.Lease != time.Minute {
		t.Fatalf("%+v, %v", info, err)
	}
	for i := range 8 {
		if _, err := mesh.Queue("photos").Send(ctx, client.Message{Body: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	state, err := mesh.DescribeQueue(ctx, "photos")
	if err != nil || state.Ready != 8 || state.Unowned != 0 || len(state.Partitions) != 4 {
		t.Fatalf("%+v, %v", state, err)
	}
	for _, p := range state.Partitions {
		if p.Owner != p.Home[0] || len(p.Home) != 3 || len(p.Fallbacks) != 1 || len(p.Replicas) != 3 {
			t.Errorf("partition %+v", p)
		}
	}
	f.nodes[3].kill()
	nodes, err := mesh.Nodes(ctx)
	if err != nil || len(nodes) != 4 || nodes[0].Name != "a" || nodes[0].State != "active" || !nodes[0].Alive ||
		nodes[3].State != "down" || nodes[3].Err == nil {
		t.Errorf("%+v, %v", nodes, err)
	}
	places, err := mesh.Lookup(ctx, "photos")
	if err != nil || len(places) != 4 || places[2].Owner == "" {
		t.Errorf("%+v, %v", places, err)
	}
	if r, err := mesh.Ring(ctx); err != nil || r.Number != 1 || len(r.Members) != 4 {
		t.Errorf("%+v, %v", r, err)
	}
	if qs, err := mesh.Queues(ctx); err != nil || len(qs) != 1 || qs[0].Name != "photos" {
		t.Errorf("%+v, %v", qs, err)
	}
	if err := mesh.DeleteQueue(ctx, "photos"); err != nil {
		t.Error(err)
	}
}

func TestViaServers(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	owner := f.ownerOf("photos")
	mesh, err := client.Dial(t.Context(), owner.addr, client.ViaServers())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mesh.Close() }()
	if _, err := mesh.Queue("photos").Send(t.Context(), client.Message{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	ds, err := mesh.Queue("photos").Receive(t.Context(), "", 1, 5*time.Second)
	if err != nil || len(ds) != 1 {
		t.Fatalf("%d received, %v", len(ds), err)
	}
	if err := ds[0].Release(t.Context()); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n != owner && len(n.subs) > 0 {
			t.Errorf("subscribed at %s", n.name)
		}
	}
}

func TestReceiveEndsWithContext(t *testing.T) {
	f := newFakeMesh(t, 3)
	f.create("photos", 1)
	mesh := dial(t, f)
	c, err := mesh.Queue("photos").Consumer(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, err := c.Receive(ctx, 1, 0); !errors.Is(err, client.ErrCanceled) || !errors.Is(err, why) {
		t.Errorf("canceled: %v", err)
	}
	_ = c.Close()
	_ = c.Close()
	if _, err := c.Receive(t.Context(), 1, 0); !errors.Is(err, client.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func BenchmarkSendAsync(b *testing.B) {
	f := newFakeMesh(b, 3)
	f.create("photos", 1)
	mesh := dial(b, f)
	q := mesh.Queue("photos")
	body := make([]byte, 1024)
	b.SetBytes(1024)
	b.ReportAllocs()
	var last *client.Future
	for b.Loop() {
		fut, err := q.SendAsync(b.Context(), client.Message{Body: body})
		if err != nil {
			b.Fatal(err)
		}
		last = fut
	}
	if _, err := last.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
}
