package client_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// fakeMesh is a mesh of nodes that share one memory: enough of the protocol to test a
// client against real connections. The owner of all partitions is the first home
// replica that is up.
type fakeMesh struct {
	mu      sync.Mutex // protects all below
	table   ring.Table
	nodes   []*fakeNode
	queues  map[string]*wire.QueueEntry
	parts   map[wire.PartitionID]*fakePartition
	catalog uint64
	term    uint64
	serial  uint64 // of the last delivery
	sent    int    // enqueue requests
	batches map[uint64]wire.Enqueued
	refuse  func(node *fakeNode, m *wire.Enqueue) *wire.Error // nil: none
	settles int
	lease   uint32 // milliseconds; 0: 30,000
	resumed []wire.Held
	changes int // requests to change a queue
	// meanwhile is what the nodes answer to the n-th of them; nil: they do it.
	meanwhile func(n int) *wire.Error
}

type fakeNode struct {
	mesh   *fakeMesh
	id     ring.NodeID
	name   string
	addr   string
	cancel context.CancelFunc // nil: down
	ended  chan struct{}
	mute   bool // takes requests and never answers
	subs   []*fakeSub
}

type fakePartition struct {
	id      wire.PartitionID
	entry   *wire.QueueEntry
	records [][]byte // by offset
	next    int      // first that was not handed out
	back    []int    // given back
	acked   map[int]bool
	held    map[int]*fakeSub
	given   map[int]bool // to another: who resumes it does not get it back
	attempt map[int]uint32
}

type fakeSub struct {
	node   *fakeNode
	conn   *transport.Conn
	id     uint64
	queue  string
	credit uint64
	given  uint64
	gone   bool
}

// newFakeMesh starts n nodes.
func newFakeMesh(t testing.TB, n int) *fakeMesh {
	f, err := startFakeMesh(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func startFakeMesh(n int) (*fakeMesh, error) {
	f := &fakeMesh{
		queues: map[string]*wire.QueueEntry{}, parts: map[wire.PartitionID]*fakePartition{}, catalog: 1, term: 1,
		batches: map[uint64]wire.Enqueued{}, table: ring.Table{Number: 1},
	}
	f.mu.Lock() // nobody is answered before all are there
	defer f.mu.Unlock()
	for i := range n {
		node := &fakeNode{mesh: f, id: ring.NodeID(i + 1), name: string(rune('a' + i)), addr: "127.0.0.1:0"}
		f.nodes = append(f.nodes, node)
		if err := node.start(); err != nil {
			return nil, err
		}
		f.table.Members = append(f.table.Members, ring.Member{ID: node.id, Name: node.name, Address: node.addr, Weight: 1})
	}
	return f, nil
}

func (f *fakeMesh) close() {
	for _, n := range f.nodes {
		n.kill()
	}
}

func (f *fakeMesh) servers() string {
	out := ""
	for _, n := range f.nodes {
		out += n.addr + ","
	}
	return out
}

func (f *fakeMesh) create(name string, partitions uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := wire.DefaultSettings()
	s.Partitions = partitions
	f.createLocked(name, s)
}

func (f *fakeMesh) createLocked(name string, s wire.Settings) *wire.QueueEntry {
	f.catalog++
	e := &wire.QueueEntry{
		Name: name, Generation: 1, Settings: s, Groups: []wire.GroupEntry{{Name: "default", Generation: 1}}, Version: f.catalog,
	}
	f.queues[name] = e
	f.grow(e, 0)
	return e
}

// grow adds the partitions of a queue from the first on.
func (f *fakeMesh) grow(e *wire.QueueEntry, first uint32) {
	for i := first; i < e.Settings.Partitions; i++ {
		p := &fakePartition{
			id: e.Partition(i), entry: e, acked: map[int]bool{}, held: map[int]*fakeSub{}, given: map[int]bool{}, attempt: map[int]uint32{},
		}
		f.parts[p.id] = p
	}
}

// owner is the first node of the preference list that is up and answers.
func (f *fakeMesh) owner(p wire.PartitionID) *fakeNode {
	for _, id := range ring.New(f.table).Preference(nil, uint64(p), 3) {
		if n := f.nodes[id-1]; n.cancel != nil && !n.mute {
			return n
		}
	}
	return nil
}

// ownerOf is owner for tests.
func (f *fakeMesh) ownerOf(queue string) *fakeNode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.owner(f.queues[queue].Partition(0))
}

// bodies are what a queue's partitions hold, in order of their partitions.
func (f *fakeMesh) bodies(queue string) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.queues[queue]
	for i := range e.Settings.Partitions {
		for _, raw := range f.parts[e.Partition(i)].records {
			r, _, err := wire.DecodeRecord(raw)
			if err != nil {
				panic(err)
			}
			out = append(out, string(r.Body))
		}
	}
	return out
}

func (f *fakeMesh) ackedOf(queue string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.queues[queue]
	for i := range e.Settings.Partitions {
		n += len(f.parts[e.Partition(i)].acked)
	}
	return n
}

// forget gives what consumers hold to others, as if their leases had ended.
func (f *fakeMesh) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.parts {
		for o := range p.held {
			p.given[o] = true
		}
		clear(p.held)
	}
}

// counts are the requests to enqueue and to settle.
func (f *fakeMesh) counts() (sent, settles int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent, f.settles
}

func (n *fakeNode) start() error {
	l, err := net.Listen("tcp", n.addr)
	if err != nil {
		return err
	}
	n.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	go func() {
		defer close(n.ended)
		_ = transport.Serve(ctx, l, func(*transport.Conn, *wire.Hello) (*wire.Hello, transport.Handler, error) {
			return &wire.Hello{Mesh: 7, Node: n.id, Name: n.name, Ring: 1}, n, nil
		}, transport.Options{})
	}()
	return nil
}

// kill ends the node: its connections are lost. The next home replica owns what it did
// and says so, with the grace.
func (n *fakeNode) kill() {
	n.mesh.mu.Lock()
	cancel := n.cancel
	n.cancel = nil
	n.mesh.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-n.ended
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	n.mesh.takeOver()
}

// takeOver tells all subscribers who owns what now.
func (f *fakeMesh) takeOver() {
	f.term++
	for _, p := range f.parts {
		owner := f.owner(p.id)
		if owner == nil {
			continue
		}
		for _, s := range owner.subs {
			if s.queue == p.entry.Name && !s.gone {
				_ = s.conn.Send(&wire.Owner{Partition: p.id, Node: owner.id, Term: wire.Term{Counter: f.term, Node: owner.id}, Grace: 300})
			}
		}
	}
}

func (n *fakeNode) Request(c *transport.Conn, id uint64, msg wire.Message) {
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	if n.mute {
		return
	}
	_ = c.Reply(id, n.answer(msg))
	n.mesh.pump()
}

func (n *fakeNode) answer(msg wire.Message) wire.Message {
	f := n.mesh
	switch m := msg.(type) {
	case *wire.GetMesh:
		mesh := &wire.Mesh{ID: 7, Table: f.table, Catalog: f.catalog, Node: n.id}
		for _, o := range f.nodes {
			if o.cancel != nil {
				mesh.Alive = append(mesh.Alive, o.id)
			}
		}
		return mesh
	case *wire.GetNode:
		return &wire.NodeInfo{Node: n.id, Name: n.name, State: "active"}
	case *wire.CreateQueue:
		s := m.Settings
		if s.Partitions == 0 {
			s = wire.DefaultSettings()
		}
		if e := f.queues[m.Name]; e != nil {
			if e.Settings != s {
				return wire.ErrExists
			}
			return &wire.QueueInfo{Entry: *e, Catalog: f.catalog}
		}
		return &wire.QueueInfo{Entry: *f.createLocked(m.Name, s), Catalog: f.catalog}
	case *wire.DeleteQueue:
		if f.queues[m.Name] == nil {
			return wire.ErrNoQueue
		}
		delete(f.queues, m.Name)
		return &wire.Done{}
	case *wire.UpdateQueue, *wire.PauseQueue:
		f.changes++
		if f.meanwhile != nil {
			if err := f.meanwhile(f.changes); err != nil {
				return err
			}
		}
		return f.change(msg)
	case *wire.ListQueues:
		out := &wire.Queues{Catalog: f.catalog}
		for _, e := range f.queues {
			out.Entries = append(out.Entries, *e)
		}
		slices.SortFunc(out.Entries, func(a, b wire.QueueEntry) int { return int(a.Version) - int(b.Version) })
		return out
	case *wire.DescribeQueue:
		if e := f.queues[m.Name]; e != nil {
			return &wire.QueueInfo{Entry: *e, Catalog: f.catalog}
		}
		return wire.ErrNoQueue
	case *wire.Inspect:
		out := &wire.Inspected{}
		for _, id := range m.Partitions {
			p, owner := f.parts[id], f.owner(id)
			s := wire.PartitionState{Partition: id, Home: true, Owns: owner == n, Messages: uint64(len(p.records))}
			if owner == n {
				s.Term = wire.Term{Counter: f.term, Node: n.id}
				s.Groups = []wire.GroupState{{
					Group: wire.Group("default", 1), Ready: uint64(len(p.records) - p.next + len(p.back)),
					InFlight: uint64(len(p.held)), Done: uint64(len(p.acked)),
				}}
			}
			out.States = append(out.States, s)
		}
		return out
	case *wire.Enqueue:
		return n.enqueue(m)
	case *wire.Settle:
		return n.settle(m)
	default:
		return wire.ErrBadRequest
	}
}

// change updates, pauses or resumes a queue.
func (f *fakeMesh) change(msg wire.Message) wire.Message {
	if m, ok := msg.(*wire.UpdateQueue); ok {
		e := f.queues[m.Name]
		if e == nil || m.Generation != e.Generation {
			return wire.ErrNoQueue
		}
		out := &wire.QueueUpdated{}
		s := e.Settings
		if err := s.Apply(m.Set); err != nil {
			return err.(*wire.Error) //nolint:errorlint,forcetypeassert // as it says
		}
		for i := range wire.NumSettings {
			if s.Get(i) != e.Settings.Get(i) {
				out.Before = append(out.Before, wire.Setting{Name: wire.SettingName(i), Value: e.Settings.Get(i)})
			}
		}
		first := e.Settings.Partitions
		e.Settings = s
		f.grow(e, first)
		out.Entry = *e
		return out
	}
	m := msg.(*wire.PauseQueue) //nolint:forcetypeassert // the only other
	e := f.queues[m.Name]
	if e == nil || m.Generation != e.Generation {
		return wire.ErrNoQueue
	}
	e.Groups = slices.Clone(e.Groups)
	pause := &e.Pause
	if m.Group != "" {
		i := slices.IndexFunc(e.Groups, func(g wire.GroupEntry) bool { return g.Name == m.Group })
		if i < 0 {
			return wire.ErrNoGroup
		}
		pause = &e.Groups[i].Pause
	}
	*pause = wire.Pause{Until: m.Until, At: wire.Counter{N: m.Seen + 1}}
	return &wire.QueueInfo{Entry: *e}
}

func (n *fakeNode) enqueue(m *wire.Enqueue) wire.Message {
	f := n.mesh
	f.sent++
	if f.refuse != nil {
		if err := f.refuse(n, m); err != nil {
			return err
		}
	}
	p := f.parts[m.Partition]
	if p == nil || f.queues[m.Queue] == nil {
		return wire.ErrNoQueue
	}
	if wire.Checksum(m.Records) != m.Checksum || wire.CheckRecords(m.Records, m.Count, 1<<20) != nil {
		return wire.ErrBadRequest
	}
	key := uint64(m.Producer) ^ m.Sequence*0x9e3779b97f4a7c15
	if old, ok := f.batches[key]; ok { // the same batch again
		return &old
	}
	out := wire.Enqueued{Lane: wire.Lane{Node: 1, Epoch: 1}, Base: wire.Offset(len(p.records)), Nodes: []ring.NodeID{n.id, 1 + n.id%ring.NodeID(len(f.nodes))}, Want: 2}
	if owner := f.owner(p.id); owner != nil {
		out.Owner = owner.id
	}
	for rest := m.Records; len(rest) > 0; {
		tail, _ := wire.SkipRecords(rest, 1)
		p.records = append(p.records, rest[:len(rest)-len(tail)])
		rest = tail
	}
	f.batches[key] = out
	return &out
}

func (n *fakeNode) settle(m *wire.Settle) wire.Message {
	f := n.mesh
	f.settles++
	out := &wire.Settled{}
	for _, it := range m.Items {
		p := f.parts[it.Receipt.Partition]
		code := wire.Code(0)
		for _, r := range it.Runs {
			for o := int(r.From); o < int(r.To); o++ {
				switch it.Kind {
				case wire.SettleAck:
					p.acked[o] = true
					delete(p.held, o)
				case wire.SettleExtend:
					if p.held[o] == nil {
						code = wire.CodeStaleReceipt
					}
				default:
					if p.held[o] == nil {
						code = wire.CodeStaleReceipt
						continue
					}
					if it.Kind == wire.SettleRelease {
						p.attempt[o]--
					}
					delete(p.held, o)
					p.back = append(p.back, o)
				}
			}
		}
		out.Codes = append(out.Codes, code)
	}
	return out
}

func (n *fakeNode) OneWay(c *transport.Conn, msg wire.Message) {
	f := n.mesh
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m := msg.(type) {
	case *wire.Subscribe:
		s := n.sub(c, m.Sub)
		if s == nil {
			s = &fakeSub{node: n, conn: c, id: m.Sub, queue: m.Queue}
			n.subs = append(n.subs, s)
		}
		s.credit = max(s.credit, m.Credit)
	case *wire.Unsubscribe:
		if s := n.sub(c, m.Sub); s != nil {
			s.credit = s.given
		}
	case *wire.Resume:
		f.resumed = append(f.resumed, m.Held...)
		s := n.sub(c, m.Sub)
		for _, h := range m.Held {
			for _, r := range h.Runs {
				for o := r.From; o < r.To; o++ {
					if p := f.parts[h.Receipt.Partition]; !p.acked[int(o)] && !p.given[int(o)] {
						p.held[int(o)] = s
					}
				}
			}
		}
	}
	f.pump()
}

func (n *fakeNode) sub(c *transport.Conn, id uint64) *fakeSub {
	for _, s := range n.subs {
		if s.conn == c && s.id == id {
			return s
		}
	}
	return nil
}

// Closed ends the subs of a connection. What they hold is left alone: clients resume.
func (n *fakeNode) Closed(c *transport.Conn, _ error) {
	n.mesh.mu.Lock()
	defer n.mesh.mu.Unlock()
	n.subs = slices.DeleteFunc(n.subs, func(s *fakeSub) bool {
		if s.conn == c {
			s.gone = true
		}
		return s.gone
	})
}

// pump hands out what there is demand for, at most 100 messages in a delivery.
func (f *fakeMesh) pump() {
	for _, e := range f.queues {
		for i := range e.Settings.Partitions {
			p := f.parts[e.Partition(i)]
			owner := f.owner(p.id)
			if owner == nil {
				continue
			}
			for _, s := range owner.subs {
				for s.queue == e.Name && s.credit > s.given && p.give(f, owner, s, i) {
				}
			}
		}
	}
}

func (p *fakePartition) give(f *fakeMesh, owner *fakeNode, s *fakeSub, index uint32) bool {
	from, count := 0, 1
	cause := wire.CauseNone
	lease := cmp.Or(f.lease, 30_000)
	switch {
	case len(p.back) > 0:
		from, p.back, cause = p.back[0], p.back[1:], wire.CauseNack
	case p.next < len(p.records):
		from = p.next
		count = min(len(p.records)-p.next, int(s.credit-s.given), 100)
		p.next += count
	default:
		return false
	}
	d := wire.Delivery{Cause: cause, Lease: lease, Receipt: wire.Receipt{
		Partition: p.id, Group: wire.Group("default", 1), Lane: wire.Lane{Node: 1, Epoch: 1},
		Run: wire.Span(wire.Offset(from), wire.Offset(from+count)), Term: wire.Term{Counter: f.term, Node: owner.id},
		Producer: 1, Sequence: uint64(from), Serial: f.serial + 1,
	}}
	f.serial++
	for o := from; o < from+count; o++ {
		p.held[o] = s
		p.attempt[o]++
		d.Receipt.Attempt = p.attempt[o]
		d.Records = append(d.Records, p.records[o]...)
	}
	d.Length = uint32(len(d.Records))
	s.given += uint64(count)
	if err := s.conn.Send(&wire.Deliver{Sub: s.id, Deliveries: []wire.Delivery{d}}); err != nil && !errors.Is(err, transport.ErrClosed) {
		panic(fmt.Sprintf("deliver: %v", err))
	}
	return true
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-tick.C
	}
}
