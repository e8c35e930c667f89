package sim

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshq/meshq/node"
)

// These tests run the real memberlist, with the settings of the node and its rejoin loop, on
// a network of their own and in virtual time, and hold the model of gossip to what it does:
// what is measured must be something that the model can do, too.

// wires is a network between memberlists, with 1 to 3 ms of latency.
type wires struct {
	mu    sync.Mutex // guards all below
	ports map[string]*port
	cut   func(from, to int) bool // nil: nothing is cut
	loss  float64                 // of packets
	held  int                     // the number of a paused node; -1: none
	wait  []func()                // what arrives when it goes on
}

// port is the Transport of one memberlist.
type port struct {
	wires   *wires
	number  int
	address string
	packets chan *memberlist.Packet
	streams chan net.Conn
	off     bool // its process is dead; guarded by wires.mu
}

func (w *wires) port(number int) *port {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &port{
		wires: w, number: number, address: fmt.Sprintf("10.0.0.%d:7946", number+1),
		packets: make(chan *memberlist.Packet, 1000), streams: make(chan net.Conn, 100),
	}
	w.ports[p.address] = p
	return p
}

func latency() time.Duration { return time.Millisecond + rand.N(2*time.Millisecond) }

var errCut = errors.New("no answer")

// passes tells whether something gets from p to the address now.
func (p *port) passes(to string) (*port, bool) {
	w := p.wires
	q := w.ports[to]
	return q, q != nil && !p.off && !q.off && (w.cut == nil || !w.cut(p.number, q.number))
}

func (p *port) WriteTo(b []byte, to string) (time.Time, error) {
	w := p.wires
	w.mu.Lock()
	defer w.mu.Unlock()
	q, ok := p.passes(to)
	if !ok || rand.Float64() < w.loss {
		return time.Now(), nil
	}
	from, _ := net.ResolveUDPAddr("udp", p.address)
	packet := &memberlist.Packet{Buf: slices.Clone(b), From: from}
	arrive := func() {
		packet.Timestamp = time.Now()
		select {
		case q.packets <- packet:
		default: // the buffer of a socket is full
		}
	}
	if w.held == p.number || w.held == q.number {
		w.wait = append(w.wait, arrive)
	} else {
		time.AfterFunc(latency(), arrive)
	}
	return time.Now(), nil
}

func (p *port) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	w := p.wires
	w.mu.Lock()
	q, ok := p.passes(to)
	back := ok && (w.cut == nil || !w.cut(q.number, p.number))
	refused := q != nil && q.off && (w.cut == nil || !w.cut(p.number, q.number))
	still := ok && (w.held == p.number || w.held == q.number)
	w.mu.Unlock()
	switch {
	case refused:
		time.Sleep(latency())
		return nil, errors.New("connection refused")
	case !back || still:
		time.Sleep(timeout)
		return nil, errCut
	}
	time.Sleep(latency())
	here, there := net.Pipe()
	q.streams <- there
	return here, nil
}

func (p *port) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IPv4(10, 0, 0, byte(p.number+1)), 7946, nil
}
func (p *port) PacketCh() <-chan *memberlist.Packet { return p.packets }
func (p *port) StreamCh() <-chan net.Conn           { return p.streams }
func (p *port) Shutdown() error                     { return nil }

// gossiper is one process: memberlist, and the loop of the node that joins who is missing.
type gossiper struct {
	of     *gossipMesh
	number int
	port   *port
	list   *memberlist.Memberlist
	stop   chan struct{}
	done   sync.WaitGroup

	mu    sync.Mutex // guards all below; memberlist's lock may be held around it
	alive map[string]bool
	known []heard // changes of who is alive, by number of the node
}

type heard struct {
	at    time.Time
	of    int
	alive bool
}

func (g *gossiper) lives(of int) bool {
	for name := range g.alive {
		if strings.HasPrefix(name, fmt.Sprintf("%d#", of)) {
			return true
		}
	}
	return false
}

func (g *gossiper) note(n *memberlist.Node, alive bool) {
	var of int
	if _, err := fmt.Sscanf(n.Name, "%d#", &of); err != nil {
		panic(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.lives(of)
	if alive {
		g.alive[n.Name] = true
	} else {
		delete(g.alive, n.Name)
	}
	if now := g.lives(of); now != before {
		g.known = append(g.known, heard{time.Now(), of, now})
	}
}

func (g *gossiper) NotifyJoin(n *memberlist.Node)   { g.note(n, true) }
func (g *gossiper) NotifyLeave(n *memberlist.Node)  { g.note(n, false) }
func (g *gossiper) NotifyUpdate(n *memberlist.Node) {}

// gossipMesh are n processes that know each other.
type gossipMesh struct {
	t     *testing.T
	wires *wires
	of    []*gossiper
	boots []int
}

func newGossipMesh(t *testing.T, n int) *gossipMesh {
	m := &gossipMesh{t: t, wires: &wires{ports: map[string]*port{}, held: -1}, of: make([]*gossiper, n), boots: make([]int, n)}
	for i := range n {
		m.start(i)
		time.Sleep(rand.N(time.Second)) // their probes are not in step
	}
	time.Sleep(6*time.Second + rand.N(time.Second))
	for i := range n {
		if k := m.missing(i); len(k) > 0 {
			t.Fatalf("%d of %d does not know %v", i, n, k)
		}
		m.of[i].mu.Lock()
		m.of[i].known = nil
		m.of[i].mu.Unlock()
	}
	return m
}

func (m *gossipMesh) start(i int) {
	m.boots[i]++
	g := &gossiper{of: m, number: i, port: m.wires.port(i), stop: make(chan struct{}), alive: map[string]bool{}}
	c := node.GossipSettings()
	c.Name, c.Label, c.Transport, c.Events = fmt.Sprintf("%d#%d", i, m.boots[i]), "mesh", g.port, g
	c.Logger = log.New(io.Discard, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		m.t.Fatal(err)
	}
	g.list, m.of[i] = list, g
	g.done.Go(g.rejoin)
}

// rejoin is reach of node/gossip.go.
func (g *gossiper) rejoin() {
	tick := time.NewTicker(time.Duration(rejoinEvery))
	defer tick.Stop()
	for {
		for _, i := range g.of.missing(g.number) {
			select {
			case <-g.stop:
				return
			default:
			}
			_, _ = g.list.Join([]string{fmt.Sprintf("10.0.0.%d:7946", i+1)})
		}
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
	}
}

// missing is whom i does not take for alive.
func (m *gossipMesh) missing(i int) (out []int) {
	g := m.of[i]
	g.mu.Lock()
	defer g.mu.Unlock()
	for o := range m.of {
		if o != i && !g.lives(o) {
			out = append(out, o)
		}
	}
	return out
}

// kill is SIGKILL of a process.
func (m *gossipMesh) kill(i int) {
	g := m.of[i]
	m.wires.mu.Lock()
	g.port.off = true
	m.wires.mu.Unlock()
	close(g.stop)
	if err := g.list.Shutdown(); err != nil {
		m.t.Error(err)
	}
}

func (m *gossipMesh) end() {
	m.wires.mu.Lock()
	m.wires.cut, m.wires.loss = nil, 0
	m.wires.mu.Unlock()
	for i, g := range m.of {
		if !g.port.off {
			m.kill(i)
		}
		g.done.Wait()
	}
	time.Sleep(time.Minute) // streams and timers end
}

func (m *gossipMesh) split(cut func(from, to int) bool) {
	m.wires.mu.Lock()
	defer m.wires.mu.Unlock()
	m.wires.cut = cut
}

// pause stops the packets of one node for d. (Its own view of the others is not that of a
// process that stands still, so nobody looks at it.)
func (m *gossipMesh) pause(i int, d time.Duration) {
	w := m.wires
	w.mu.Lock()
	w.held = i
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = -1
	for _, arrive := range w.wait {
		time.AfterFunc(latency(), arrive)
	}
	w.wait = nil
}

// deaths are the times after from at which each of by first took each of of for dead.
func (m *gossipMesh) deaths(from time.Time, by, of func(int) bool) (out []time.Duration) {
	for i, g := range m.of {
		if !by(i) {
			continue
		}
		seen := map[int]bool{}
		g.mu.Lock()
		known := slices.Clone(g.known)
		g.mu.Unlock()
		for _, h := range known {
			if !h.alive && of(h.of) && i != h.of && !seen[h.of] {
				seen[h.of] = true
				out = append(out, h.at.Sub(from))
			}
		}
	}
	return out
}

// whole is how long it takes, from now on, until all who count know all; 30 s: longer.
func (m *gossipMesh) whole(counts func(int) bool) time.Duration {
	from := time.Now()
	for time.Since(from) < 30*time.Second {
		if !slices.ContainsFunc(m.of, func(g *gossiper) bool { return counts(g.number) && len(m.missing(g.number)) > 0 }) {
			return time.Since(from)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 30 * time.Second
}

// span is what was measured, or what the model allows.
type span struct{ least, most time.Duration }

// modelDetection is what the model allows for a death in a mesh of n, for who is with side-1 others.
func modelDetection(n, side int) span {
	s := span{least: time.Hour}
	for i := range uint64(20_000) {
		d := time.Duration(detection(n, side, mix(i, 1), mix(i, 2)))
		s = span{min(s.least, d), max(s.most, d)}
	}
	return s
}

func anyone(int) bool { return true }

func not(n int) func(int) bool { return func(i int) bool { return i != n } }

func only(n int) func(int) bool { return func(i int) bool { return i == n } }

// modelWhole is what the model allows from the end of a cut until all know all.
var modelWhole = span{0, time.Duration(rejoinEvery + joinTo)}

var gossipRounds = flag.Int("gossip.rounds", 4, "how often TestGossipAgrees measures each situation")

// TestGossipAgrees measures memberlist, and holds the model to it.
func TestGossipAgrees(t *testing.T) {
	rounds := *gossipRounds
	if testing.Short() {
		rounds = 1
	}
	far := func(from, to int) bool { return (from < 2) != (to < 2) }
	for _, x := range []struct {
		name  string
		n     int
		model span
		run   func(m *gossipMesh) []time.Duration
	}{
		{"a of 3 dies: until each other knows", 3, modelDetection(3, 2), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.kill(0)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"a of 4 dies: until each other knows", 4, modelDetection(4, 3), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.kill(0)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"a of 5 dies: until each other knows", 5, modelDetection(5, 4), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.kill(0)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"a of 9 dies: until each other knows", 9, modelDetection(9, 8), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.kill(0)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"a restarts within 400 ms: deaths", 5, span{}, func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.kill(0)
			time.Sleep(400 * time.Millisecond)
			m.start(0)
			time.Sleep(10 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"a is back after 5 s: until all know", 5, span{0, time.Duration(joinTo)}, func(m *gossipMesh) []time.Duration {
			m.kill(0)
			time.Sleep(5 * time.Second)
			m.start(0)
			return []time.Duration{m.whole(anyone)}
		}},
		{"pause of 500 ms: deaths", 5, span{}, func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.pause(0, 500*time.Millisecond)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"pause of 1 s: until all know again", 5, modelWhole, func(m *gossipMesh) []time.Duration {
			m.pause(0, time.Second)
			time.Sleep(time.Second)
			return []time.Duration{m.whole(not(0))}
		}},
		{"pause of 2 s: until each other says dead", 5, modelDetection(5, 4), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.pause(0, 2*time.Second)
			time.Sleep(5 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"pause of 2 s: until all know again", 5, modelWhole, func(m *gossipMesh) []time.Duration {
			m.pause(0, 2*time.Second)
			return []time.Duration{m.whole(not(0))}
		}},
		{"1 of 5 alone for 10 s: until the 4 know", 5, modelDetection(5, 4), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.split(func(a, b int) bool { return a == 0 || b == 0 })
			time.Sleep(10 * time.Second)
			return m.deaths(from, not(0), only(0))
		}},
		{"1 of 5 alone for 10 s: until it knows", 5, modelDetection(5, 1), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.split(func(a, b int) bool { return a == 0 || b == 0 })
			time.Sleep(20 * time.Second)
			return m.deaths(from, only(0), anyone)
		}},
		{"1 of 5 alone for 10 s: until all know again", 5, modelWhole, func(m *gossipMesh) []time.Duration {
			m.split(func(a, b int) bool { return a == 0 || b == 0 })
			time.Sleep(10*time.Second + rand.N(5*time.Second))
			m.split(nil)
			return []time.Duration{m.whole(anyone)}
		}},
		{"1 of 5 alone for 60 s: until all know again", 5, modelWhole, func(m *gossipMesh) []time.Duration {
			m.split(func(a, b int) bool { return a == 0 || b == 0 })
			time.Sleep(60*time.Second + rand.N(5*time.Second))
			m.split(nil)
			return []time.Duration{m.whole(anyone)}
		}},
		{"2 of 5 cut off: until the 2 know", 5, modelDetection(5, 2), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.split(far)
			time.Sleep(20 * time.Second)
			return m.deaths(from, func(i int) bool { return i < 2 }, anyone)
		}},
		{"2 of 5 cut off: until the 3 know", 5, modelDetection(5, 3), func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.split(far)
			time.Sleep(20 * time.Second)
			return m.deaths(from, func(i int) bool { return i >= 2 }, anyone)
		}},
		{"2 of 5 cut off: until all know again", 5, modelWhole, func(m *gossipMesh) []time.Duration {
			m.split(far)
			time.Sleep(10*time.Second + rand.N(5*time.Second))
			m.split(nil)
			return []time.Duration{m.whole(anyone)}
		}},
		{"1 of 5 does not reach another: deaths", 5, span{}, func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.split(func(a, b int) bool { return a == 0 && b == 1 })
			time.Sleep(10 * time.Second)
			return m.deaths(from, anyone, anyone)
		}},
		{"5 % of the packets are lost: deaths", 5, span{}, func(m *gossipMesh) []time.Duration {
			from := time.Now()
			m.wires.mu.Lock()
			m.wires.loss = 0.05
			m.wires.mu.Unlock()
			time.Sleep(10 * time.Second)
			return m.deaths(from, anyone, anyone)
		}},
	} {
		t.Run(strings.ReplaceAll(x.name, " ", "_"), func(t *testing.T) {
			var all []time.Duration
			for range rounds {
				synctest.Test(t, func(t *testing.T) {
					m := newGossipMesh(t, x.n)
					defer m.end()
					all = append(all, x.run(m)...)
				})
			}
			slices.Sort(all)
			if len(all) == 0 {
				if x.model != (span{}) && !strings.HasPrefix(x.name, "pause") { // not each pause is called a death
					t.Error("nothing happened")
				}
				t.Logf("| %s | none | %s |", x.name, x.model.text())
				return
			}
			got := span{all[0], all[len(all)-1]}
			t.Logf("| %s | %s, %s, %s | %s |", x.name, ms(got.least), ms(all[len(all)/2]), ms(got.most), x.model.text())
			if got.least < x.model.least || got.most > x.model.most {
				t.Errorf("%s to %s, the model allows %s", ms(got.least), ms(got.most), x.model.text())
			}
		})
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func (s span) text() string {
	if s == (span{}) {
		return "none"
	}
	return ms(s.least) + " to " + ms(s.most)
}
