package sim

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	clientcore "github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
	"github.com/meshq/meshq/transport/wire"
)

// Times that a run gives the mesh, in nanoseconds of virtual time.
const (
	foundingLimit = 60 * second // until all nodes are members
	creatingLimit = 20 * second // until a queue is made
	settlingLimit = 90 * second // after healing, until all is delivered and acked
	convergeLimit = 75 * second // after that, until all replicas are equal
)

// Options say what a run keeps besides its verdict. None of them changes what happens.
type Options struct {
	Record bool              // keep the history
	Story  bool              // keep what a picture is drawn from
	Trace  func(line string) // gets a line for each thing that happens; nil: none

	// A bug in all nodes, and one in all clients of the library; a build with the tag
	// mutants has them.
	Planting       core.Planting
	ClientPlanting clientcore.Planting
}

// Result is what a run ended in.
type Result struct {
	Plan      *plan.Plan
	Violation *history.Violation // the first promise that was broken; nil: none
	Verdict   *history.Verdict   // of the history of a run that ended; nil: a promise was broken before
	History   *history.History   // with Options.Record
	Story     *history.Story     // with Options.Story
	Hash      uint64             // of all that happened; equal plans give equal hashes
	Steps     int                // of the cores of nodes
	Time      time.Duration      // virtual, from the start of the first node on
	Phase     string             // in which it ended: founding, creating queues, faults, settling, converging, over
	Reached   map[string]int     // situations that came about, and how often
	Skipped   []Skipped          // faults that were not brought about
	Stats     Stats

	world *world
}

// Skipped is a fault that was not brought about, because it was impossible or more than
// the promises cover at that moment.
type Skipped struct {
	Fault int // its place in the plan
	Why   string
}

// Stats count what the clients saw.
type Stats struct {
	Confirms   int // batches
	Deliveries int // messages handed out by their owner
	Again      int // of those, not for the first time
	Acks       int // messages with a confirmed ack
	Dropped    int // deliveries that a client dropped, because it knew a newer owner
	Takeovers  int // of partitions
}

// runner takes a plan through its life: founding, queues, load and faults, healing,
// draining, convergence.
type runner struct {
	*world
	plan      *plan.Plan
	byName    map[string]*host // nodes and clients of the plan
	admin     *admin
	deleting  []string // queues whose deletion is asked for and not confirmed
	resumes   []func() // end the pauses that there were, where they are not over
	changing  []string // of changes of queues that are asked for and not answered: what they are
	producers []producing
	consumers []consuming
	byClient  map[string]any // producing or consuming
	phase     string
	ends      []*ending // of faults that are not over
	skipped   []Skipped
	states    map[*host]*wire.Inspected // what the nodes said last of the partitions
}

// Run executes a plan, which must be valid ([plan.Plan.Validate]). The same plan always
// gives the same result. A panic of a core is a violation named "panic".
func Run(p *plan.Plan, o Options) *Result {
	p = p.Filled()
	r := newRunner(p, o)
	r.guarded()
	res := &Result{
		Plan: p, Violation: r.violation(), Hash: r.hash, Steps: r.steps, Time: time.Duration(r.now),
		Phase: r.phase, Reached: r.reached, Skipped: r.skipped, Stats: r.check.stats, world: r.world,
	}
	if r.phase == "over" {
		res.Verdict = history.Check(r.history, Rules(p))
		if res.Violation = res.Verdict.First(); res.Violation != nil && r.tracing {
			r.tracef("BROKEN %s: %s", res.Violation.Promise, res.Violation.Text)
		}
	}
	if o.Record {
		res.History = r.history
	}
	if o.Story {
		res.Story = Story(p, o, res.Violation)
	}
	return res
}

// newRunner makes the world of a plan, in which all fields are filled.
func newRunner(p *plan.Plan, o Options) *runner {
	r := &runner{world: newWorld(p.Seed), plan: p, byName: map[string]*host{}, byClient: map[string]any{}}
	r.beyond = p.Beyond
	r.planting, r.clientPlanting = o.Planting, o.ClientPlanting
	r.disks.interval = p.Mesh.Sync == "interval"
	r.disks.sync, r.disks.jitter = int64(p.Mesh.Disk.Sync), int64(p.Mesh.Disk.Jitter)
	r.net.latency, r.net.jitter = int64(p.Mesh.Network.Latency), int64(p.Mesh.Network.Jitter)
	r.history = &history.History{} // the checks of it are the last word
	if o.Trace != nil {
		r.tracing = true
		r.tracef = func(format string, args ...any) {
			o.Trace(fmt.Sprintf("%10.3f ", float64(r.now)/float64(millisecond)) + fmt.Sprintf(format, args...))
		}
	}
	return r
}

// Story plays the plan once more and tells what is to be seen of it and of the message
// that v is about: only at the end of a run is it known which one that is. v nil tells of
// no message.
func Story(p *plan.Plan, o Options, v *history.Violation) *history.Story {
	p = p.Filled()
	o.Record, o.Trace, o.Story = false, nil, false
	r := newRunner(p, o)
	about, group := history.Message{}, ""
	if v != nil {
		about, group = v.Message, v.Group
	}
	r.story = newStoryteller(r.world, about, group)
	r.guarded()
	return r.story.finish(v)
}

// guarded plays the plan; a panic of a core is a failure like others.
func (r *runner) guarded() {
	defer func() {
		if x := recover(); x != nil {
			r.failure = nil
			r.fail("panic", msgKey{}, "%v\n%s", x, panicked(string(debug.Stack())))
		}
	}()
	r.play()
}

// panicked is where, out of a stack: the functions of the cores below the panic.
func panicked(stack string) string {
	var out []string
	below := false
	for l := range strings.SplitSeq(stack, "\n") {
		if strings.HasPrefix(l, "panic(") {
			below = true
		}
		if below && strings.HasPrefix(l, "\t") && strings.Contains(l, "/core/") && len(out) < 8 {
			where, _, _ := strings.Cut(strings.TrimSpace(l), " +")
			out = append(out, where[strings.LastIndex(where, "/")+1:])
		}
	}
	return strings.Join(out, " < ")
}

func (r *runner) violation() *history.Violation {
	f := r.failure
	if f == nil {
		return nil
	}
	v := &history.Violation{Promise: f.promise, Text: f.text, At: r.sinceLoad()}
	if f.message != (msgKey{}) {
		v.Message = r.check.messageOf(f.message)
	}
	return v
}

// play runs the phases one after another, until a promise is broken.
func (r *runner) play() {
	r.check.idle = true
	r.at(0, r.check.watch)
	for _, phase := range []struct {
		name string
		do   func()
	}{
		{"founding", r.found}, {"creating queues", r.create}, {"faults", r.load}, {"settling", r.settle}, {"converging", r.converge},
	} {
		r.phase = phase.name
		if phase.do(); r.failure != nil {
			return
		}
	}
	r.phase = "over"
}

// until runs until the condition holds, at most for d, and tells whether it does.
func (r *runner) until(d, every int64, cond func() bool) bool {
	end := r.now + d
	for r.failure == nil {
		if cond() {
			return true
		}
		if r.now >= end {
			return false
		}
		r.runFor(every)
	}
	return false
}

// host is a node or a client of the plan; nil: not there yet.
func (r *runner) host(name string) *host { return r.byName[name] }

func (r *runner) queue(name string) *queue {
	for _, q := range r.check.queues {
		if q.entry.Name == name {
			return q
		}
	}
	return nil
}

// newNode makes a machine; its seeds are the nodes that are there.
func (r *runner) newNode(n *plan.Node) *host {
	h := r.addNode(n.Name, ring.NodeID(r.luck(luckBoot, nameKey(n.Name), 0, 4)|1))
	h.zone, h.ppm, h.wall = n.Zone, int64(n.Drift), int64(n.Wall)/millisecond
	l := &r.plan.Mesh.Limits
	h.limits = core.Limits{
		PendingBytes: l.PendingBytes, CacheBytes: l.CacheBytes, Retries: l.Retries, InFlight: l.InFlight, HintBytes: l.HintBytes, Segments: l.Segments,
	}
	h.seeds = slices.Clone(r.mesh[:len(r.mesh)-1])
	r.byName[n.Name] = h
	return h
}

// found starts the nodes that are there before the load.
func (r *runner) found() {
	n := 0
	for i := range r.plan.Mesh.Nodes {
		spec := &r.plan.Mesh.Nodes[i]
		if spec.Joins > 0 {
			continue
		}
		h := r.newNode(spec)
		if n++; n == 1 {
			h.founder = true
			h.start()
			continue
		}
		r.after(between(r.luck(luckStart, h.key, 0, 0), 0, second), h.start)
	}
	joined := func() bool {
		for _, h := range r.mesh {
			if !h.running || len(h.core.Table().Members) < n || !h.core.Ready() {
				return false
			}
		}
		return true
	}
	if !r.until(foundingLimit, 100*millisecond, joined) {
		r.fail("founding", msgKey{}, "%d nodes did not form a mesh in %d s", n, foundingLimit/second)
	}
}

// create makes the queues and the clients.
func (r *runner) create() {
	r.admin = r.newAdmin()
	for i := range r.plan.Queues {
		spec := &r.plan.Queues[i]
		var q *queue
		r.admin.create(spec.Name, settings(spec), spec.Groups, func(made *queue) { q = made })
		if !r.until(creatingLimit, 50*millisecond, func() bool { return q != nil }) {
			r.fail("P10", msgKey{}, "queue %s was not made in %d s", spec.Name, creatingLimit/second)
			return
		}
	}
	for i := range r.plan.Producers {
		p := r.newProducing(&r.plan.Producers[i])
		r.producers = append(r.producers, p)
		r.byName[r.plan.Producers[i].Name], r.byClient[r.plan.Producers[i].Name] = p.machine(), p
	}
	for i := range r.plan.Consumers {
		c := r.newConsuming(&r.plan.Consumers[i])
		r.consumers = append(r.consumers, c)
		r.byName[r.plan.Consumers[i].Name], r.byClient[r.plan.Consumers[i].Name] = c.machine(), c
	}
	r.runFor(between(r.luck(luckStart, 0, 1, 0), 0, 3*second))
}

// settings are those of a queue of a plan.
func settings(q *plan.Queue) wire.Settings {
	s := wire.DefaultSettings()
	s.Partitions, s.Replicas, s.WriteQuorum = uint32(q.Partitions), uint8(q.Replicas), uint8(q.WriteQuorum)
	s.Lease = uint32(int64(q.Lease) / millisecond)
	s.BackoffMin, s.BackoffMax = uint32(int64(q.BackoffMin)/millisecond), uint32(int64(q.BackoffMax)/millisecond)
	return s
}

// load starts the clients, and brings about the faults at their times.
func (r *runner) load() {
	r.check.idle = false
	r.began = r.now
	for _, q := range r.check.queues {
		for _, p := range q.partitions() {
			r.check.ownerAt[p] = r.now
		}
	}
	for i := range r.plan.Mesh.Nodes {
		if spec := &r.plan.Mesh.Nodes[i]; spec.Joins > 0 {
			r.at(r.began+int64(spec.Joins), func() { r.newNode(spec).start() })
		}
	}
	for _, p := range r.producers {
		p.start(r.began + int64(r.plan.Length))
	}
	for _, c := range r.consumers {
		r.after(between(r.luck(luckStart, c.machine().key, 2, 0), 0, second), c.start)
	}
	for i := range r.plan.Faults {
		r.at(r.began+int64(r.plan.Faults[i].At), func() { r.strike(i) })
	}
	r.run(r.began + int64(r.plan.Length))
}

// settle heals all and lets the clients finish (P2, P6).
func (r *runner) settle() {
	r.heal()
	quiet := func() bool {
		for _, p := range r.producers {
			if !p.through() {
				return false
			}
		}
		return len(r.deleting) == 0 && len(r.changing) == 0 && len(r.check.unacked()) == 0
	}
	if r.until(settlingLimit, 250*millisecond, quiet) {
		r.tell(history.Event{Kind: history.Drained})
		return
	}
	for _, p := range r.producers {
		if about, what := p.stuck(); what != "" {
			r.fail("P6", about, "%s cannot get %s confirmed for %d s after all has healed", p.machine().name, what, settlingLimit/second)
			return
		}
	}
	if len(r.deleting) > 0 {
		r.fail("P11", msgKey{}, "the deletion of %s is not confirmed %d s after all has healed", r.deleting[0], settlingLimit/second)
		return
	}
	if len(r.changing) > 0 {
		r.fail("P10", msgKey{}, "%s is not answered %d s after all has healed", r.changing[0], settlingLimit/second)
		return
	}
	r.check.delivered()
}

// heal ends all faults.
func (r *runner) heal() {
	r.say("heal")
	for len(r.ends) > 0 {
		r.ends[0].end()
	}
	for _, resume := range r.resumes {
		resume()
	}
	for _, h := range r.mesh {
		h.crashIn = -1
		if !h.running {
			r.after(between(r.luck(luckStart, h.key, 3, 0), 0, second), h.start)
		}
	}
	for _, p := range r.producers {
		p.settle()
	}
	for _, c := range r.consumers {
		c.settle()
	}
	r.tell(history.Event{Kind: history.Healed})
}

// converge waits until all replicas hold the same (P7, P11).
func (r *runner) converge() {
	var why error
	defer func() { r.tellStates(r.states) }()
	if !r.until(convergeLimit, 500*millisecond, func() bool { why = r.inspect(); return why == nil }) {
		r.fail("P7", msgKey{}, "%d s after all is delivered: %v", convergeLimit/second, why)
	}
}

// inspect asks all nodes about all partitions, and tells what is not as it should be at rest.
func (r *runner) inspect() error {
	var ps []wire.PartitionID
	for _, q := range r.check.queues {
		ps = append(ps, q.partitions()...)
	}
	states := map[*host]*wire.Inspected{}
	left := 0
	for _, h := range r.mesh {
		if h.running {
			left++
			r.admin.inspect(h, ps, func(in *wire.Inspected) { states[h] = in; left-- })
		}
	}
	r.until(second, 5*millisecond, func() bool { return left == 0 })
	r.states = states
	if err := r.check.changesHold(); err != nil {
		return err
	}
	return r.check.converged(states, ps)
}

func (r *runner) say(format string, args ...any) {
	if r.tracing {
		r.tracef("-- "+format, args...)
	}
}
