package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// mesh is some real nodes in this process, and a client of theirs.
type mesh struct {
	t       *testing.T
	configs []Config
	nodes   []*Node // nil: down
	conns   []*transport.Conn
	pushed  chan *wire.Deliver
	owner   wire.Term // of the last delivery
}

func newMesh(t *testing.T, size int) *mesh {
	t.Helper()
	m := &mesh{t: t, nodes: make([]*Node, size), conns: make([]*transport.Conn, size), pushed: make(chan *wire.Deliver, 10_000)}
	dir := t.TempDir()
	for i := range size {
		m.configs = append(m.configs, Config{
			Name: fmt.Sprintf("n%d", i+1), Data: filepath.Join(dir, fmt.Sprint(i+1)),
			Listen: "127.0.0.1:0", Gossip: "127.0.0.1:0", HTTP: "127.0.0.1:0",
			Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		})
		if i > 0 {
			m.configs[i].Join = []string{m.nodes[0].Addr()}
		}
		m.start(i)
	}
	t.Cleanup(func() {
		for i := range m.nodes {
			m.kill(i)
		}
	})
	return m
}

// start starts nodes, where they were before if they were there, and waits until all
// serve: they may need each other for that.
func (m *mesh) start(nodes ...int) {
	m.t.Helper()
	for _, i := range nodes {
		n, err := Start(m.t.Context(), m.configs[i])
		if err != nil {
			m.t.Fatal(err)
		}
		m.nodes[i] = n
		m.configs[i].Listen, m.configs[i].Gossip = n.Addr(), n.GossipAddr()
	}
	for _, i := range nodes {
		n := m.nodes[i]
		select {
		case <-n.Ready():
		case <-n.Done():
			m.t.Fatalf("node %d stopped: %v", i+1, n.Wait())
		case <-time.After(3 * patience):
			m.t.Fatalf("node %d is not ready", i+1)
		}
	}
}

// kill ends node i without a word to the others.
func (m *mesh) kill(i int) {
	m.t.Helper()
	if c := m.conns[i]; c != nil {
		_ = c.Close()
		<-c.Done()
		m.conns[i] = nil
	}
	if n := m.nodes[i]; n != nil {
		if err := n.Close(); err != nil {
			m.t.Errorf("node %d: %v", i+1, err)
		}
		m.nodes[i] = nil
	}
}

// consumer hands deliveries on and ignores the rest.
type consumer struct{ pushed chan *wire.Deliver }

func (c consumer) Request(conn *transport.Conn, id uint64, _ wire.Message) {
	_ = conn.Reply(id, &wire.Done{})
}

func (c consumer) OneWay(_ *transport.Conn, msg wire.Message) {
	if d, ok := msg.(*wire.Deliver); ok {
		c.pushed <- d
	}
}

func (c consumer) Closed(*transport.Conn, error) {}

func (m *mesh) conn(i int) *transport.Conn {
	m.t.Helper()
	if m.conns[i] == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := transport.Dial(ctx, m.nodes[i].Addr(), &wire.Hello{Name: "test"}, consumer{m.pushed}, transport.Options{})
		if err != nil {
			m.t.Fatal(err)
		}
		m.conns[i] = c
	}
	return m.conns[i]
}

// call asks node i, again while it answers that a later try may succeed.
func (m *mesh) call(i int, msg wire.Message) wire.Message {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	for {
		answer, err := m.conn(i).Call(ctx, msg)
		if err == nil {
			return answer
		}
		var refused *wire.Error
		if !errors.As(err, &refused) || !refused.Retryable() || ctx.Err() != nil {
			m.t.Fatalf("%T at node %d: %v", msg, i+1, err)
		}
		wait := time.NewTimer(max(refused.Wait(), 20*time.Millisecond)) // as a client does
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

// producer sends messages of one partition, one batch each.
type producer struct {
	m        *mesh
	info     *wire.QueueInfo
	sequence uint64
	after    *wire.Enqueued
}

// send sends body through node i and waits for the confirmation.
func (p *producer) send(i int, body string) *wire.Enqueued {
	p.m.t.Helper()
	records := wire.AppendRecord(nil, &wire.Record{Body: []byte(body), Enqueued: time.Now()})
	msg := &wire.Enqueue{
		Partition: p.info.Entry.Partition(0), Queue: p.info.Entry.Name, Catalog: p.info.Catalog, Producer: 77,
		Sequence: p.sequence, Count: 1, Checksum: wire.Checksum(records), Records: records,
	}
	if p.after != nil {
		msg.AfterLane, msg.AfterOffset = p.after.Lane, p.after.Base
	}
	p.after = p.m.call(i, msg).(*wire.Enqueued)
	p.sequence++
	return p.after
}

// receive takes count distinct messages at the nodes that are up, acks them, and returns
// their bodies in the order of arrival.
func (m *mesh) receive(sub uint64, info *wire.QueueInfo, count int) []string {
	m.t.Helper()
	for i, n := range m.nodes {
		if n == nil {
			continue
		}
		err := m.conn(i).Send(&wire.Subscribe{
			Sub: sub, Consumer: wire.ConsumerID(sub), Queue: info.Entry.Name, Group: "default", Credit: uint64(count), Catalog: info.Catalog,
		})
		if err != nil {
			m.t.Fatal(err)
		}
	}
	var bodies []string
	limit := time.After(3 * patience)
	for len(bodies) < count {
		select {
		case d := <-m.pushed:
			for _, x := range d.Deliveries {
				m.owner = x.Receipt.Term
				rest := x.Records
				for range x.Receipt.Run.Len() {
					var r wire.Record
					var err error
					if r, rest, err = wire.DecodeRecord(rest); err != nil {
						m.t.Fatal(err)
					}
					if !slices.Contains(bodies, string(r.Body)) {
						bodies = append(bodies, string(r.Body))
					}
				}
				m.ack(info, x.Receipt)
			}
		case <-limit:
			m.t.Fatalf("%d of %d messages: %v", len(bodies), count, bodies)
		}
	}
	for i, n := range m.nodes {
		if n != nil {
			_ = m.conn(i).Send(&wire.Unsubscribe{Sub: sub})
		}
	}
	return bodies
}

// ack acks all of a receipt, until it is confirmed.
func (m *mesh) ack(info *wire.QueueInfo, r wire.Receipt) {
	m.t.Helper()
	limit := time.Now().Add(3 * patience)
	for {
		for i, n := range m.nodes {
			if n == nil {
				continue
			}
			settled := m.call(i, &wire.Settle{
				Queue: info.Entry.Name, Catalog: info.Catalog,
				Items: []wire.SettleItem{{Receipt: r, Runs: wire.Runs{r.Run}, Kind: wire.SettleAck}},
			}).(*wire.Settled)
			if len(settled.Codes) == 1 && settled.Codes[0] == 0 {
				return
			}
			if time.Now().After(limit) {
				m.t.Fatalf("ack: codes %v", settled.Codes)
			}
		}
	}
}

func names(prefix string, from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}

func TestOneNode(t *testing.T) {
	m := newMesh(t, 1)
	info := m.call(0, &wire.CreateQueue{Name: "photos"}).(*wire.QueueInfo)
	p := &producer{m: m, info: info}
	want := names("m", 0, 10)
	for _, body := range want {
		if e := p.send(0, body); len(e.Nodes) != 1 || e.Want != 1 {
			t.Fatalf("confirmed on %v, want %d", e.Nodes, e.Want)
		}
	}
	if got := m.receive(1, info, 5); !slices.Equal(got, want[:5]) {
		t.Errorf("received %v, want %v", got, want[:5])
	}
	m.kill(0)
	m.start(0)
	if got := m.receive(2, info, 5); !slices.Equal(got, want[5:]) {
		t.Errorf("received %v after a restart, want %v", got, want[5:])
	}
	if err := m.nodes[0].Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestThreeNodes(t *testing.T) {
	m := newMesh(t, 3)
	for i := range 3 {
		soon(t, "the ring has three members everywhere", func() bool { return len(m.nodes[i].loop.facts.Load().table.Members) == 3 })
	}
	info := m.call(1, &wire.CreateQueue{Name: "photos"}).(*wire.QueueInfo)
	p := &producer{m: m, info: info}
	want := names("m", 0, 30)
	for i, body := range want[:10] {
		if e := p.send(i%3, body); len(e.Nodes) < 2 || e.Want != 2 {
			t.Fatalf("confirmed on %v, want %d", e.Nodes, e.Want)
		}
	}
	if got := m.receive(1, info, 10); !slices.Equal(got, want[:10]) {
		t.Errorf("received %v, want %v", got, want[:10])
	}

	// The owner dies. Sending goes on, and so does receiving.
	owner := m.owner.Node
	dead := slices.IndexFunc(m.nodes, func(n *Node) bool { return n.ID() == owner })
	if dead < 0 {
		t.Fatalf("owner %s is none of the nodes", owner)
	}
	m.kill(dead)
	died := time.Now()
	for i, body := range want[10:20] {
		p.send((dead+1+i%2)%3, body)
	}
	if got := m.receive(2, info, 10); !slices.Equal(got, want[10:20]) {
		t.Errorf("received %v, want %v", got, want[10:20])
	}
	t.Logf("ten messages were sent and received within %v of the death of the owner", time.Since(died))

	m.start(dead)
	for _, body := range want[20:] {
		p.send(dead, body)
	}
	if got := m.receive(3, info, 10); !slices.Equal(got, want[20:]) {
		t.Errorf("received %v, want %v", got, want[20:])
	}

	// All stop, one in order and two at once, and come back.
	if err := m.nodes[0].Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for i := range 3 {
		m.kill(i)
	}
	m.start(0, 1, 2)
	last := p.send(1, "last")
	if len(last.Nodes) < 2 {
		t.Errorf("confirmed on %v", last.Nodes)
	}
	if got := m.receive(4, info, 1); !slices.Equal(got, []string{"last"}) {
		t.Errorf("received %v: what was acked must not come back", got)
	}
}
