package plan

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// GenerateOptions narrow what [Generate] draws. Zero fields are drawn by the seed.
type GenerateOptions struct {
	Nodes       int    // nodes that the mesh has in the end, but for those of Join
	Replicas    int    // of each queue
	WriteQuorum int    // of each queue
	Kinds       []Kind // kinds of faults that may be; nil: all that Generate knows (see [Generated])
	Length      Duration
	Clients     Clients
}

// Clients says which clients a random plan has.
type Clients string

// The mixtures of clients. ClientsDrawn has each seed draw one: half of the seeds have
// clients of the library alone.
const (
	ClientsDrawn   Clients = ""
	ClientsRaw     Clients = "raw"
	ClientsLibrary Clients = "library"
	ClientsMixed   Clients = "mixed"
)

// Generate makes the plan of a seed: a mesh, queues and load of random sizes and settings
// and a random subset of the kinds of faults, each kind with a chance of 3 in 8; one plan in
// 8 has none. Some faults last long, and some follow others (generate_turns.go). All that happens is listed in the plan with its time and the names it
// concerns. The faults stay within the promises.
func Generate(seed uint64, o GenerateOptions) *Plan {
	g := &generator{seed: seed, options: o}
	d := g.dice("mesh")
	p := &Plan{Version: Version, Name: fmt.Sprintf("seed-%d", seed), Seed: seed, Length: cmp.Or(o.Length, DefaultLength)}
	g.plan = p
	if d.oneIn(8) {
		g.calm = true
	}
	g.nodes(d)
	g.queues(g.dice("queues"))
	g.clients(g.dice("clients"))
	for _, kind := range generators {
		k := g.dice("fault " + string(kind.kind))
		if k.below(8) >= 3 || g.calm || len(o.Kinds) > 0 && !slices.Contains(o.Kinds, kind.kind) {
			continue
		}
		kind.draw(g, k)
	}
	if !g.calm {
		g.lasting(g.dice("lasting"))
		g.inTurn()
	}
	slices.SortStableFunc(p.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return p
}

// Generated are the kinds of faults that Generate draws.
func Generated() []Kind {
	var out []Kind
	for _, k := range generators {
		out = append(out, k.kind)
	}
	return out
}

type generator struct {
	seed    uint64
	options GenerateOptions
	plan    *Plan
	calm    bool     // no faults
	grows   bool     // nodes join while the load runs
	names   []string // of all nodes
}

// dice are thrown for one purpose, so that what is drawn for another does not change them.
type dice struct{ *rand.Rand }

func (g *generator) dice(purpose string) dice {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(purpose) {
		h = (h ^ uint64(purpose[i])) * 1099511628211
	}
	return dice{rand.New(rand.NewPCG(g.seed, h))}
}

func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }
func (d dice) below(n int) int  { return d.IntN(n) }

// from is in [lo, hi].
func (d dice) from(lo, hi int) int { return lo + d.IntN(hi-lo+1) }

// time is in [lo, hi), in whole milliseconds.
func (d dice) time(lo, hi Duration) Duration {
	if hi <= lo {
		return lo
	}
	return (lo + Duration(d.Int64N(int64(hi-lo)))) / millisecond * millisecond
}

func (d dice) one(names []string) []string { return []string{names[d.IntN(len(names))]} }

// two are two different names.
func (d dice) two(names []string) (a, b []string) {
	i := d.IntN(len(names))
	j := (i + 1 + d.IntN(max(1, len(names)-1))) % len(names)
	return []string{names[i]}, []string{names[j]}
}

// talking are the names of two that have connections: nodes, or a node and a client in
// either direction.
func (d dice) talking(g *generator) (from, to []string) {
	if d.oneIn(2) {
		return d.two(g.names)
	}
	from, to = d.one(append(g.producers(), g.consumers()...)), d.one(g.names)
	if d.oneIn(2) {
		return to, from
	}
	return from, to
}

// some are at least lo and at most hi different names, in order.
func (d dice) some(names []string, lo, hi int) []string {
	n := d.from(lo, min(hi, len(names)))
	at := d.Perm(len(names))[:n]
	slices.Sort(at)
	var out []string
	for _, i := range at {
		out = append(out, names[i])
	}
	return out
}

// nodes draws the mesh.
func (g *generator) nodes(d dice) {
	n := g.options.Nodes
	if n == 0 {
		n = d.from(3, 6)
	}
	later := 0
	if !g.calm && n > 1 && d.below(8) >= 5 && g.allows(Join) {
		later = d.from(1, n-1)
		g.grows = true
	}
	if l := g.dice("limits"); l.oneIn(6) { // little memory
		g.plan.Mesh.Limits = Limits{
			PendingBytes: 1000 * l.from(1, 8), CacheBytes: 1000 * l.from(1, 50), Retries: l.from(5, 100), InFlight: l.from(10, 100), HintBytes: 1000 * l.from(1, 30),
		}
	}
	for i := range n {
		node := Node{Name: nodeName(i), Drift: d.from(-500, 500), Wall: d.time(-4*second, 4*second)}
		if d.oneIn(4) {
			node.Drift = d.from(-20_000, 20_000)
		}
		if d.oneIn(4) {
			node.Zone = string(rune('x' + d.below(3)))
		}
		if i >= n-later {
			node.Joins = d.time(millisecond, g.plan.Length/2)
		}
		g.plan.Mesh.Nodes = append(g.plan.Mesh.Nodes, node)
		g.names = append(g.names, node.Name)
	}
}

// nodeName is a, b, ... z, n26, n27, ...
func nodeName(i int) string {
	if i < 26 {
		return string(rune('a' + i))
	}
	return fmt.Sprintf("n%d", i)
}

func (g *generator) allows(k Kind) bool {
	return len(g.options.Kinds) == 0 || slices.Contains(g.options.Kinds, k)
}

// queues draws the queues and who uses them.
func (g *generator) queues(d dice) {
	p := g.plan
	for i := range d.from(1, 3) {
		q := Queue{Name: fmt.Sprintf("q%d", i), Partitions: d.from(1, 3), Replicas: 3}
		if d.oneIn(4) {
			q.Replicas = d.from(1, 3)
		}
		q.Replicas = cmp.Or(g.options.Replicas, q.Replicas)
		q.WriteQuorum = cmp.Or(g.options.WriteQuorum, q.Replicas/2+1)
		q.Lease = d.time(second, 4*second)
		q.BackoffMin = d.time(millisecond, 500*millisecond)
		q.BackoffMax = 4 * q.BackoffMin
		q.Groups = []string{"default"}
		if d.oneIn(3) {
			q.Groups = []string{"one", "two"}
		}
		p.Queues = append(p.Queues, q)
		for k := range q.Partitions {
			for range d.from(1, 2) {
				p.Producers = append(p.Producers, Producer{
					Name: fmt.Sprintf("p%d", len(p.Producers)), Queue: q.Name, Raw: true, Partition: k,
					Think: d.time(50*millisecond, 500*millisecond), Batch: d.from(1, 5), Timeout: d.time(500*millisecond, 5*second),
				})
			}
		}
		for _, group := range q.Groups {
			for range d.from(1, 3) {
				c := Consumer{
					Name: fmt.Sprintf("c%d", len(p.Consumers)), Queue: q.Name, Group: group, Raw: true,
					Window: d.from(1, 31), Hold: d.time(millisecond, 300*millisecond),
				}
				if d.oneIn(4) {
					c.Hold = d.time(300*millisecond, 3*second)
				}
				if d.oneIn(2) {
					c.Nack, c.Forget = 0.12, 0.08
				}
				if d.oneIn(6) && c.Raw {
					c.Relay = g.names[0]
					if !g.grows {
						c.Relay = d.one(g.names)[0]
					}
				}
				p.Consumers = append(p.Consumers, c)
			}
		}
	}
}

// clients draws which clients are raw. Of the others producers draw their keys, and
// consumers find the nodes themselves.
func (g *generator) clients(d dice) {
	mix := g.options.Clients
	drawn := []Clients{ClientsLibrary, ClientsLibrary, ClientsMixed, ClientsRaw}[d.below(4)]
	if mix == ClientsDrawn {
		mix = drawn
	}
	library := func() bool { // throws always, so that the mixture changes nothing else
		heads := d.oneIn(2)
		return mix == ClientsLibrary || mix == ClientsMixed && heads
	}
	for i := range g.plan.Producers {
		p := &g.plan.Producers[i]
		keys := d.below(9)
		if library() {
			p.Raw, p.Partition, p.Keys = false, 0, keys
		}
	}
	for i := range g.plan.Consumers {
		if c := &g.plan.Consumers[i]; library() {
			c.Raw, c.Relay = false, ""
		}
	}
}

func (g *generator) add(f Fault) { g.plan.Faults = append(g.plan.Faults, f) }

// times draws up to most faults of a kind, at times that leave a second or two for what follows.
func (g *generator) times(d dice, most int, draw func() Fault) {
	for range d.from(1, most) {
		f := draw()
		f.At = d.time(0, max(second, g.plan.Length-2*second))
		g.add(f)
	}
}

func (g *generator) producers() []string {
	var out []string
	for i := range g.plan.Producers {
		out = append(out, g.plan.Producers[i].Name)
	}
	return out
}

func (g *generator) consumers() []string {
	var out []string
	for i := range g.plan.Consumers {
		out = append(out, g.plan.Consumers[i].Name)
	}
	return out
}

// all are the names of all nodes and clients.
func (g *generator) all() []string {
	return slices.Concat(g.names, g.producers(), g.consumers())
}
