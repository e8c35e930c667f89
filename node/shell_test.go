package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests; nothing waits that long when all is well.
const patience = 10 * time.Second

// fake is a machine that does what a test says. Only the loop calls its methods; the
// test reads events, and gives effects by shell.do.
type fake struct {
	config core.Config
	events chan core.Event // all but Tick

	// on, when set, answers an event.
	on    func(core.Event) []core.Effect
	mesh  wire.MeshID
	table ring.Table
	ready bool
}

func (f *fake) Step(_ core.Time, ev core.Event) []core.Effect {
	if _, ok := ev.(core.Tick); ok {
		return nil
	}
	f.events <- ev
	if f.on != nil {
		return f.on(ev)
	}
	return nil
}

func (f *fake) Next() core.Instant     { return core.Never }
func (f *fake) Mesh() wire.MeshID      { return f.mesh }
func (f *fake) Table() ring.Table      { return f.table }
func (f *fake) CatalogVersion() uint64 { return 7 }
func (f *fake) Commit() uint64         { return 0 }
func (f *fake) Ready() bool            { return f.ready }
func (f *fake) Stats() core.Stats      { return core.Stats{Hints: 5} }

// shell is a node around a fake machine.
type shell struct {
	*Node
	t *testing.T
	f *fake
}

const testMesh wire.MeshID = 0xabc

// newShell starts a node on free ports with a machine that is a member of a mesh.
// change may change settings and machine before the start.
func newShell(t *testing.T, change func(*Config, *fake)) *shell {
	t.Helper()
	s, err := tryShell(t, change)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryShell(t *testing.T, change func(*Config, *fake)) (*shell, error) {
	t.Helper()
	f := &fake{events: make(chan core.Event, 100_000), mesh: testMesh, ready: true}
	config := Config{
		Name: "test", Data: t.TempDir(), Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&config, f)
	}
	n, err := start(t.Context(), config, func(c core.Config, _ core.Recovered) machine {
		f.config = c
		return f
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return &shell{Node: n, t: t, f: f}, nil
}

// do lets the loop execute effects, as if the machine had returned them.
func (s *shell) do(effects ...core.Effect) {
	s.t.Helper()
	s.change(func() { s.loop.execute(effects) })
}

// change runs f in the loop.
func (s *shell) change(f func()) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !s.loop.ask(ctx, func(machine) { f() }) {
		s.t.Fatal("the loop does not answer")
	}
}

// next waits for the next event of type E, passing over others.
func next[E core.Event](s *shell) E {
	s.t.Helper()
	return nextOf(s, func(E) bool { return true })
}

// nextOf waits for the next event of type E that fits.
func nextOf[E core.Event](s *shell, fits func(E) bool) E {
	s.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case ev := <-s.f.events:
			if e, ok := ev.(E); ok && fits(e) {
				return e
			}
		case <-limit:
			var e E
			s.t.Fatalf("no %T within %v", e, patience)
		}
	}
}

// listener is the handler of a client in tests.
type listener struct {
	pushed chan wire.Message
	block  chan struct{} // when not nil: OneWay waits until it is closed
}

func (l *listener) Request(c *transport.Conn, id uint64, _ wire.Message) {
	_ = c.Reply(id, &wire.Done{})
}

func (l *listener) OneWay(_ *transport.Conn, m wire.Message) {
	if l.block != nil {
		<-l.block
	}
	l.pushed <- m
}

func (l *listener) Closed(*transport.Conn, error) {}

// connect opens a connection to s, as a client or, with hello, as a node.
func connect(s *shell, hello *wire.Hello, l *listener) *transport.Conn {
	s.t.Helper()
	if hello == nil {
		hello = &wire.Hello{Name: "client"}
	}
	if l == nil {
		l = &listener{pushed: make(chan wire.Message, 1000)}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := transport.Dial(ctx, s.Addr(), hello, l, transport.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = c.Close()
		<-c.Done()
	})
	return c
}

// soon calls f until it says yes, and lets others run in between.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func TestRequestAndReply(t *testing.T) {
	s := newShell(t, func(_ *Config, f *fake) {
		f.on = func(ev core.Event) []core.Effect {
			switch ev := ev.(type) {
			case core.Request:
				return []core.Effect{
					core.Push{Conn: ev.Conn, Msg: &wire.Owner{Partition: 1}},
					core.Reply{Req: ev.Req, Msg: &wire.Queues{Catalog: 3}},
					core.Push{Conn: ev.Conn, Msg: &wire.Owner{Partition: 2}},
					core.Reply{Req: ev.Req, Msg: &wire.Queues{Catalog: 4}}, // the second is dropped
				}
			}
			return nil
		}
	})
	l := &listener{pushed: make(chan wire.Message, 10)}
	c := connect(s, nil, l)
	if h := c.Hello(); h.Node != s.ID() || h.Mesh != testMesh || h.Name != "test" || h.Gossip != s.GossipAddr() || h.Catalog != 7 {
		t.Errorf("hello is %+v", h)
	}
	opened := next[core.ConnOpened](s)
	answer, err := c.Call(t.Context(), &wire.ListQueues{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.(*wire.Queues).Catalog != 3 {
		t.Errorf("answer is %+v", answer)
	}
	for want := range wire.PartitionID(2) {
		if got := (<-l.pushed).(*wire.Owner).Partition; got != want+1 {
			t.Errorf("pushed %d, want %d", got, want+1)
		}
	}
	if req := next[core.Request](s); req.Conn != opened.Conn {
		t.Errorf("request on connection %d, opened was %d", req.Conn, opened.Conn)
	}
	if err := c.Send(&wire.Unsubscribe{Sub: 5}); err != nil {
		t.Fatal(err)
	}
	if got := next[core.Received](s); got.Msg.(*wire.Unsubscribe).Sub != 5 || got.Conn != opened.Conn {
		t.Errorf("received %+v", got)
	}
	_ = c.Close()
	if closed := next[core.ConnClosed](s); closed.Conn != opened.Conn {
		t.Errorf("closed connection %d, opened was %d", closed.Conn, opened.Conn)
	}
	s.change(func() {
		if len(s.loop.conns) != 0 || len(s.loop.reqs) != 0 {
			t.Errorf("loop keeps %d connections and %d requests", len(s.loop.conns), len(s.loop.reqs))
		}
	})
	if clients, nodes := s.door.count(); clients != 0 || nodes != 0 {
		t.Errorf("door counts %d clients and %d nodes", clients, nodes)
	}
}

// A delivery leaves the node before its lease ends, or its connection does.
func TestPushAfterItsTime(t *testing.T) {
	s := newShell(t, nil)
	l := &listener{pushed: make(chan wire.Message, 10)}
	connect(s, nil, l)
	conn := next[core.ConnOpened](s).Conn
	now := s.loop.clock.now().Mono
	s.do(
		core.Push{Conn: conn, Msg: &wire.Owner{Partition: 1}, Before: now + 60*core.Second},
		core.Push{Conn: conn, Msg: &wire.Owner{Partition: 2}},
		core.Push{Conn: conn + 1, Msg: &wire.Owner{Partition: 3}}, // no such connection
	)
	for _, want := range []wire.PartitionID{1, 2} {
		if got := (<-l.pushed).(*wire.Owner).Partition; got != want {
			t.Errorf("pushed %d, want %d", got, want)
		}
	}
	s.do(core.Push{Conn: conn, Msg: &wire.Owner{Partition: 4}, Before: now - core.Second})
	if closed := next[core.ConnClosed](s); closed.Conn != conn {
		t.Errorf("closed connection %d, the late push was for %d", closed.Conn, conn)
	}
	if len(l.pushed) != 0 {
		t.Errorf("%+v was pushed late", <-l.pushed)
	}
}

func TestPersistedComesInOrder(t *testing.T) {
	s := newShell(t, nil)
	lane := wire.Lane{Node: s.ID(), Epoch: 1}
	records := wire.AppendRecord(nil, &wire.Record{Body: []byte("x")})
	const most = 200
	var effects []core.Effect
	for i := range core.Token(most) {
		token := i + 1
		if i%10 == 9 {
			token = 0 // nobody waits
		}
		effects = append(effects, core.Persist{Token: token, Ops: []wire.Op{{
			Kind: wire.OpBatch,
			Batch: wire.Batch{Records: records, BatchHeader: wire.BatchHeader{
				Count: 1, Partition: 1, Lane: lane, Base: wire.Offset(i), Length: uint64(len(records)), Checksum: wire.Checksum(records),
			}},
		}}})
	}
	s.do(effects...)
	var commit uint64
	for i := range core.Token(most) {
		if i%10 == 9 {
			continue
		}
		got := next[core.Persisted](s)
		if got.Token != i+1 || got.Commit < commit {
			t.Fatalf("persisted %+v after commit %d, want token %d", got, commit, i+1)
		}
		commit = got.Commit
	}
	s.do(
		core.Read{Token: 900, Partition: 1, Lane: lane, Runs: wire.Runs{{From: 3, To: 5}}, MaxBytes: 1 << 20},
		core.Scan{Token: 901, Prefix: []byte("nothing"), Limit: 10},
	)
	var read *core.ReadDone
	var scanned *core.ScanDone
	for read == nil || scanned == nil {
		switch ev := next[core.Event](s).(type) {
		case core.ReadDone:
			read = &ev
		case core.ScanDone:
			scanned = &ev
		}
	}
	var bases []wire.Offset
	for _, b := range read.Batches {
		bases = append(bases, b.Base)
	}
	if read.Token != 900 || !slices.Equal(bases, []wire.Offset{3, 4}) || len(read.Damaged) != 0 {
		t.Errorf("read token %d: batches %v, damaged %v", read.Token, bases, read.Damaged)
	}
	if scanned.Token != 901 || scanned.More || len(scanned.Records) != 0 {
		t.Errorf("scanned %+v", scanned)
	}
}

// While the loop does not take what arrives, clients are held up, and nothing is lost.
func TestBackpressure(t *testing.T) {
	var seen atomic.Uint64
	s := newShell(t, func(_ *Config, f *fake) {
		f.on = func(ev core.Event) []core.Effect {
			if req, ok := ev.(core.Request); ok {
				seen.Add(1)
				return []core.Effect{core.Reply{Req: req.Req, Msg: &wire.Done{}}}
			}
			return nil
		}
	})
	s.in.mu.Lock()
	s.in.maxItems = 10
	s.in.mu.Unlock()
	c := connect(s, nil, nil)
	next[core.ConnOpened](s)

	hold, held := make(chan struct{}), make(chan struct{})
	s.in.force(item{ask: func(machine) { close(held); <-hold }})
	<-held
	const all = 500
	answers := make(chan error, all)
	for range all {
		if err := c.Go(&wire.GetNode{}, func(_ wire.Message, err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
	}
	soon(t, "inbox fills", func() bool { items, _ := s.in.depth(); return items >= 10 })
	if items, _ := s.in.depth(); items > 10 {
		t.Errorf("%d items in an inbox for 10", items)
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("%d requests taken by a loop that stands", n)
	}
	close(hold)
	for range all {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
}

func TestInboxBounds(t *testing.T) {
	b := newInbox(100, 1000)
	if !b.put(item{size: 1000}) {
		t.Fatal("refused")
	}
	entered := make(chan bool)
	go func() { entered <- b.put(item{id: 2, size: 1}) }() // full by bytes
	if !b.force(item{id: 1}) {
		t.Fatal("force waits for nothing")
	}
	got := b.take(nil)
	for len(got) < 3 {
		got = append(got, b.take(nil)...)
	}
	if !<-entered || got[1].id != 1 || got[2].id != 2 {
		t.Fatalf("took %v", got)
	}
	for range 100 {
		b.put(item{})
	}
	go func() { entered <- b.put(item{}) }()
	b.close()
	if <-entered || b.force(item{}) || b.put(item{}) {
		t.Error("a closed inbox takes items")
	}
}

func TestSlowClientIsClosed(t *testing.T) {
	s := newShell(t, nil)
	l := &listener{pushed: make(chan wire.Message, 100_000), block: make(chan struct{})}
	c := connect(s, nil, l)
	conn := next[core.ConnOpened](s).Conn
	records := make([]byte, 1<<20)
	push := core.Push{Conn: conn, Msg: &wire.Deliver{Sub: 1, Deliveries: []wire.Delivery{{Length: 1 << 20, Records: records}}}}
	for gone := false; !gone; {
		s.do(push)
		s.change(func() { gone = s.loop.conns[conn].gone })
	}
	close(l.block)
	select {
	case <-c.Done():
	case <-time.After(patience):
		t.Fatal("connection is still open")
	}
	if ev := next[core.ConnClosed](s); ev.Conn != conn {
		t.Errorf("closed %d", ev.Conn)
	}
}

func TestPeerComesAndGoes(t *testing.T) {
	data := t.TempDir()
	b := newShell(t, func(c *Config, _ *fake) { c.Data = data })
	a := newShell(t, nil)
	address, id := b.Addr(), b.ID()
	a.do(core.Peers{Members: []ring.Member{{ID: a.ID(), Address: a.Addr()}, {ID: id, Address: address}}})
	up := next[core.PeerUp](a)
	if up.Node != id || up.Hello.Boot != 1 {
		t.Fatalf("peer up: %+v", up)
	}
	conn := nextOf(b, func(ev core.ConnOpened) bool { return ev.Node == a.ID() }).Conn

	b.change(func() {
		b.f.on = func(ev core.Event) []core.Effect {
			if req, ok := ev.(core.Request); ok {
				return []core.Effect{core.Reply{Req: req.Req, Msg: wire.Errorf(wire.ErrNotOwner, "not here")}}
			}
			return nil
		}
	})
	a.do(core.Send{To: id, Msg: &wire.Beat{Commit: 1}}, core.Call{To: id, Token: 77, Msg: &wire.GetState{}}, core.Send{To: id, Msg: &wire.Beat{Commit: 2}})
	for want := range uint64(2) {
		if got := next[core.Received](b).Msg.(*wire.Beat).Commit; got != want+1 {
			t.Errorf("beat %d, want %d", got, want+1)
		}
	}
	if got := next[core.Answered](a); got.Token != 77 || got.Msg.(*wire.Error).Code != wire.CodeNotOwner {
		t.Errorf("answered %+v", got)
	}
	b.do(core.Push{Conn: conn, Msg: &wire.Owner{Partition: 9}})
	if got := next[core.Pushed](a); got.From != id || got.Msg.(*wire.Owner).Partition != 9 {
		t.Errorf("pushed %+v", got)
	}

	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	next[core.PeerDown](a)
	next[core.PeerDown](a)                                                                          // dialing fails, and that is told again
	a.do(core.Send{To: id, Msg: &wire.Beat{}}, core.Call{To: id, Token: 78, Msg: &wire.GetState{}}) // dropped

	b = newShell(t, func(c *Config, _ *fake) { c.Data, c.Listen = data, address })
	if up := next[core.PeerUp](a); up.Node != id || up.Hello.Boot != 2 {
		t.Errorf("peer up: %+v", up)
	}
	a.do(core.Peers{Members: []ring.Member{{ID: a.ID()}, {ID: 99, Address: "127.0.0.1:1"}}})
	if down := next[core.PeerDown](a); down.Node != id && down.Node != 99 {
		t.Errorf("down: %+v", down)
	}
	soon(t, "connection to b ends", func() bool { _, nodes := b.door.count(); return nodes == 0 })
}

func TestPeerThatIsAnother(t *testing.T) {
	a, b := newShell(t, nil), newShell(t, nil)
	a.do(core.Peers{Members: []ring.Member{{ID: 99, Address: b.Addr()}}})
	if down := next[core.PeerDown](a); down.Node != 99 {
		t.Errorf("down: %+v", down)
	}
}

func TestJoinBySeed(t *testing.T) {
	a := newShell(t, nil)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := free.Addr().String()
	_ = free.Close()
	b := newShell(t, func(c *Config, f *fake) {
		f.mesh, f.ready = 0, false
		c.Join = []string{dead, a.Addr()}
	})
	if b.f.config.Found {
		t.Error("a node with seeds founds a mesh")
	}
	up := next[core.PeerUp](b)
	if up.Node != a.ID() || up.Hello.Mesh != testMesh {
		t.Errorf("peer up: %+v", up)
	}
	if opened := next[core.ConnOpened](a); opened.Node != b.ID() {
		t.Errorf("opened: %+v", opened)
	}
	// The connection stays that of the peer when the machine names it.
	b.change(func() { b.f.mesh = testMesh })
	b.do(core.Peers{Members: []ring.Member{{ID: a.ID(), Address: a.Addr()}}}, core.Send{To: a.ID(), Msg: &wire.Beat{Commit: 4}})
	if got := next[core.Received](a).Msg.(*wire.Beat).Commit; got != 4 {
		t.Errorf("beat %d", got)
	}
	if _, nodes := a.door.count(); nodes != 1 {
		t.Errorf("%d connections of nodes", nodes)
	}
}

func TestWrongMesh(t *testing.T) {
	s := newShell(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, c := range []struct {
		hello wire.Hello
		want  *wire.Error
	}{
		{wire.Hello{Mesh: 1, Node: 5, Boot: 1}, wire.ErrWrongMesh},
		{wire.Hello{Mesh: 1}, wire.ErrWrongMesh},
		{wire.Hello{Mesh: testMesh, Node: s.ID(), Boot: 1}, wire.ErrUnauthorized},
	} {
		_, err := transport.Dial(ctx, s.Addr(), &c.hello, nil, transport.Options{})
		if !errors.Is(err, c.want) {
			t.Errorf("hello %+v: %v, want %v", c.hello, err, c.want)
		}
	}
	connect(s, &wire.Hello{Mesh: testMesh, Node: 5, Boot: 9}, nil)
	_, err := transport.Dial(ctx, s.Addr(), &wire.Hello{Mesh: testMesh, Node: 5, Boot: 8}, nil, transport.Options{})
	if !errors.Is(err, wire.ErrOlderData) {
		t.Errorf("older boot: %v", err)
	}
}

func TestGarbageOnThePort(t *testing.T) {
	s := newShell(t, nil)
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff"} {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, garbage)
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: not closed", garbage)
		}
		_ = c.Close()
	}
	c := connect(s, nil, nil)
	if _, err := c.Call(t.Context(), &wire.Ping{}); err != nil {
		t.Error(err)
	}
}

func TestSecondNodeOnOneDirectory(t *testing.T) {
	s := newShell(t, nil)
	_, err := tryShell(t, func(c *Config, _ *fake) { c.Data = s.config.Data })
	if !errors.Is(err, ErrDataInUse) || Hint(err) == "" {
		t.Errorf("error %v, hint %q", err, Hint(err))
	}
}

func TestPortInUse(t *testing.T) {
	s := newShell(t, nil)
	for name, change := range map[string]func(*Config, *fake){
		"listen": func(c *Config, _ *fake) { c.Listen = s.Addr() },
		"gossip": func(c *Config, _ *fake) { c.Gossip = s.GossipAddr() },
		"http":   func(c *Config, _ *fake) { c.HTTP = s.HTTPAddr() },
	} {
		if _, err := tryShell(t, change); !errors.Is(err, ErrPortInUse) || Hint(err) == "" {
			t.Errorf("%s: error %v, hint %q", name, err, Hint(err))
		}
	}
}

// readyz asks s whether it is ready.
func readyz(s *shell) (int, health) {
	s.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + s.HTTPAddr() + "/readyz")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	var h health
	if err := json.NewDecoder(r.Body).Decode(&h); err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, h
}

func TestReadyz(t *testing.T) {
	s := newShell(t, func(_ *Config, f *fake) { f.mesh, f.ready = 0, false })
	if code, h := readyz(s); code != http.StatusServiceUnavailable || h.Reason == "" || h.Mesh != "" {
		t.Errorf("before joining: %d %+v", code, h)
	}
	select {
	case <-s.Ready():
		t.Error("ready before joining")
	default:
	}
	s.change(func() { s.f.mesh = testMesh })
	soon(t, "joining", func() bool { _, h := readyz(s); return h.Reason == "joining" && h.Mesh == testMesh.String() })
	s.change(func() { s.f.ready = true })
	select {
	case <-s.Ready():
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	if code, h := readyz(s); code != http.StatusOK || !h.Ready || h.Node != s.ID().String() {
		t.Errorf("ready: %d %+v", code, h)
	}

	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(context.Background()) }()
	next[core.Drain](s)
	if code, h := readyz(s); code != http.StatusServiceUnavailable || h.Reason != "draining" {
		t.Errorf("draining: %d %+v", code, h)
	}
	c := connect(s, nil, nil) // it serves until all is handed over
	s.do(core.Drained{})
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	<-c.Done()
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("the port is still open")
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	s := newShell(t, func(c *Config, _ *fake) { c.DrainTimeout = minDrainTimeout })
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	s = newShell(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
}

func TestStopByTheMachine(t *testing.T) {
	s := newShell(t, nil)
	s.do(core.Stop{Err: wire.ErrOlderData})
	if err := s.Wait(); !errors.Is(err, wire.ErrOlderData) {
		t.Errorf("wait: %v", err)
	}
	s = newShell(t, nil)
	cause := errors.New("fsync failed")
	s.fail(cause)
	s.fail(errors.New("another"))
	if err := s.Close(); !errors.Is(err, cause) {
		t.Errorf("close: %v", err)
	}
}

func TestGossipFindsAndLoses(t *testing.T) {
	a := newShell(t, nil)
	b := newShell(t, func(c *Config, _ *fake) { c.Join = []string{a.Addr()} })
	c := newShell(t, func(c *Config, _ *fake) { c.Join = []string{a.Addr()} })
	all := []ring.NodeID{a.ID(), b.ID(), c.ID()}
	slices.Sort(all)
	for _, s := range []*shell{a, b, c} {
		nextOf(s, func(ev core.Members) bool { return slices.Equal(ev.Alive, all) })
	}
	_, members := b.gossip.living()
	if !slices.ContainsFunc(members, func(m ring.Member) bool { return m.ID == c.ID() && m.Address == c.Addr() }) {
		t.Errorf("b knows %v, not that c is at %s", members, c.Addr())
	}
	died := time.Now()
	if err := c.Close(); err != nil { // it does not say goodbye
		t.Fatal(err)
	}
	left := slices.DeleteFunc(slices.Clone(all), func(id ring.NodeID) bool { return id == c.ID() })
	for _, s := range []*shell{a, b} {
		nextOf(s, func(ev core.Members) bool { return slices.Equal(ev.Alive, left) })
	}
	took := time.Since(died)
	t.Logf("the death was known to all after %v", took)
	if took > 4*time.Second { // 1.6 s in the median, 1.9 s at most on a quiet machine
		t.Errorf("the death was known to all after %v", took)
	}
	// One that says goodbye is gone at once.
	b.change(func() { b.f.on = func(core.Event) []core.Effect { return []core.Effect{core.Drained{}} } })
	if err := b.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	nextOf(a, func(ev core.Members) bool { return slices.Equal(ev.Alive, []ring.NodeID{a.ID()}) })
}

func TestGossipName(t *testing.T) {
	node, boot, ok := parseGossipName(gossipName(0xfeed, 12))
	if node != 0xfeed || boot != 12 || !ok {
		t.Errorf("got %v %d %v", node, boot, ok)
	}
	for _, bad := range []string{"", "x", "#1", "000000000000feed#", "000000000000feed#x", "0#1"} {
		if _, _, ok := parseGossipName(bad); ok {
			t.Errorf("%q is no name", bad)
		}
	}
}

func TestMetrics(t *testing.T) {
	s := newShell(t, nil)
	connect(s, nil, nil)
	next[core.ConnOpened](s)
	families, err := s.config.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, want := range []string{"meshq_build_info", "meshq_ready", "meshq_members", "meshq_peers", "meshq_connections", "meshq_loop_batch_seconds", "meshq_deliveries_total", "meshq_hints", "meshq_store_commits_total"} {
		if !names[want] {
			t.Errorf("no metric %s", want)
		}
	}
	// The registry is free again after the stop.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	newShell(t, func(c *Config, _ *fake) { c.Registry = s.config.Registry })
	if _, err := tryShell(t, func(c *Config, _ *fake) { c.Registry = s.config.Registry }); err == nil {
		t.Error("two nodes share a registry")
	}
}

func TestValidateListsAll(t *testing.T) {
	err := Config{
		Name: "a b", Listen: "7700", Gossip: "host:1", HTTP: "x:y", Advertise: "a:1", Weight: 2000, Join: []string{":1"},
		GossipKey: []byte("short"), DrainTimeout: 1, TLS: TLS{Cert: "missing"},
	}.Validate()
	var bad *ConfigError
	if !errors.As(err, &bad) || len(bad.Problems) != 13 {
		t.Errorf("problems: %q", err)
	}
	if err := (Config{Data: t.TempDir()}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestAdvertised(t *testing.T) {
	for _, c := range []struct{ advertise, address, want string }{
		{"", "127.0.0.1:7700", "127.0.0.1:7700"},
		{"", "[::1]:7700", "[::1]:7700"},
		{"", "[::]:7700", net.JoinHostPort(privateAddress(), "7700")},
		{"", "0.0.0.0:7700", net.JoinHostPort(privateAddress(), "7700")},
		{"queue.example", "0.0.0.0:7700", "queue.example:7700"},
	} {
		n := &Node{config: Config{Advertise: c.advertise}}
		if got := n.advertised(c.address); got != c.want {
			t.Errorf("%q listening on %s is told as %s, want %s", c.advertise, c.address, got, c.want)
		}
	}
}

func TestOpenToTheNetworkIsTold(t *testing.T) {
	for _, c := range []struct {
		mesh, gossip string
		config       Config
		want         int
	}{
		{"127.0.0.1:1", "[::1]:2", Config{}, 0},
		{"[::]:1", "127.0.0.1:2", Config{}, 1},
		{"10.0.0.1:1", "0.0.0.0:2", Config{}, 2},
		{"10.0.0.1:1", "0.0.0.0:2", Config{TLS: TLS{Cert: "c", Key: "k", CA: "a"}}, 1},
		{"10.0.0.1:1", "0.0.0.0:2", Config{TLS: TLS{Cert: "c", Key: "k", CA: "a"}, GossipKey: make([]byte, 32)}, 0},
	} {
		var lines bytes.Buffer
		n := &Node{config: c.config, log: slog.New(slog.NewTextHandler(&lines, nil))}
		n.warn(c.mesh, c.gossip)
		if got := strings.Count(lines.String(), "OPEN TO THE NETWORK"); got != c.want {
			t.Errorf("%s %s: %d warnings, want %d: %s", c.mesh, c.gossip, got, c.want, lines.String())
		}
	}
}
