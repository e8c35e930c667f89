package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

var (
	swarmSeeds = flag.Int("swarm.seeds", 200, "seeds that TestSwarm runs; 20 with -short")
	swarmFirst = flag.Uint64("swarm.first", 1, "first seed")
	swarmSeed  = flag.Uint64("swarm.seed", 0, "the only seed to run; 0: all")
	swarmTime  = flag.Duration("swarm.time", 0, "run seeds for that long instead of a number of them")
	swarmTrace = flag.Bool("swarm.trace", false, "print the whole trace of a seed that fails, or of -swarm.seed")
	swarmKeep  = flag.Bool("swarm.keep", false, "go on after a seed that failed")
	swarmStats = flag.Bool("swarm.stats", false, "print a line for each seed")
)

// faults is a set of kinds of faults.
type faults uint32

const (
	faultCrash faults = 1 << iota
	faultCrashAll
	faultCut
	faultOneWay
	faultSplit
	faultPause
	faultSlow
	faultLate
	faultBreak
	faultClientCut
	faultConsumer
	faultStall
	faultAmnesia
	faultWall
	faultDrain
	faultJoin
	faultGrow // the mesh has one node when the queues are made
	faultDamage
	faultAll = 1<<iota - 1
)

var faultNames = []string{"crash", "crash-all", "cut", "one-way", "split", "pause", "slow", "late", "break", "client-cut", "consumer", "stall", "amnesia", "wall", "drain", "join", "grow", "damage"}

func (f faults) String() string {
	var out []string
	for i, n := range faultNames {
		if f&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	if out == nil {
		return "none"
	}
	return strings.Join(out, " ")
}

// swarm is one seed: a mesh, its clients, and a plan of faults.
type swarm struct {
	*world
	faults    faults
	length    int64 // of the phase with faults
	start     int64
	all       []*host
	admin     *admin
	producers []*producer
	consumers []*consumer
	coins     uint64
	wounded   bool // a disk lost something; not more than one may
	phase     string
}

func newSwarm(seed uint64) *swarm {
	s := &swarm{world: newWorld(seed), length: 20 * second}
	some, most := s.coin(), s.coin()
	most |= s.coin()
	s.faults = faults(some&most) & faultAll // each with p = 3/8
	if s.coin()%8 == 0 {
		s.faults = 0
	}
	return s
}

func (s *swarm) coin() uint64 {
	s.coins++
	return s.luck(luckPlan, 0, 0, s.coins)
}

func (s *swarm) chance(oneIn uint64) bool { return s.coin()%oneIn == 0 }
func (s *swarm) has(f faults) bool        { return s.faults&f != 0 }
func (s *swarm) say(format string, args ...any) {
	if s.tracing {
		s.tracef("-- "+format, args...)
	}
}

// until runs until the condition holds, at most for d, and tells whether it does.
func (s *swarm) until(d, every int64, cond func() bool) bool {
	end := s.now + d
	for s.failure == nil {
		if cond() {
			return true
		}
		if s.now >= end {
			return false
		}
		s.runFor(every)
	}
	return false
}

func (s *swarm) newNode(founder bool) *host {
	i := len(s.nodes())
	h := s.addNode(string(rune('a'+i)), ring.NodeID(s.luck(luckBoot, uint64(i), 0, 4)|1))
	h.founder = founder
	h.ppm = between(s.coin(), -500, 500)
	if s.chance(4) {
		h.ppm = between(s.coin(), -20_000, 20_000)
	}
	h.wall = between(s.coin(), -4000, 4000)
	if s.chance(4) {
		h.zone = string(rune('x' + s.coin()%3))
	}
	if !founder {
		h.seeds = slices.Clone(s.all)
	}
	s.all = append(s.all, h)
	return h
}

func (s *swarm) joined(n int) func() bool {
	return func() bool {
		in := 0
		for _, h := range s.all {
			if h.running && len(h.core.Table().Members) >= n && h.core.Ready() {
				in++
			}
		}
		return in >= n
	}
}

// run takes the seed through its life.
func (s *swarm) play() {
	s.check.idle = true
	s.at(0, s.check.watch)
	n := int(between(s.coin(), 3, 7))
	later := 0
	if s.has(faultGrow) {
		later = int(between(s.coin(), 1, int64(n)))
	}
	s.phase = "founding"
	s.newNode(true).start()
	for i := 1; i < n-later; i++ {
		h := s.newNode(false)
		s.after(between(s.coin(), 0, second), h.start)
	}
	if !s.until(60*second, 100*millisecond, s.joined(n-later)) {
		s.fail("founding", msgKey{}, "%d nodes did not form a mesh in 60 s", n-later)
		return
	}
	s.phase = "creating queues"
	s.admin = s.newAdmin()
	queues := int(between(s.coin(), 1, 4))
	for i := range queues {
		set := wire.DefaultSettings()
		set.Partitions = uint32(between(s.coin(), 1, 4))
		set.Replicas = uint8(3)
		if s.chance(4) {
			set.Replicas = uint8(between(s.coin(), 1, 4))
		}
		set.WriteQuorum = set.Replicas/2 + 1
		set.Lease = uint32(between(s.coin(), 1000, 4000))
		set.BackoffMin = uint32(between(s.coin(), 1, 500))
		set.BackoffMax = set.BackoffMin * 4
		groups := []string{"default"}
		if s.chance(3) {
			groups = []string{"one", "two"}
		}
		var q *queue
		s.admin.create(fmt.Sprintf("q%d", i), set, groups, func(made *queue) { q = made })
		if !s.until(20*second, 50*millisecond, func() bool { return q != nil }) {
			s.fail("P10", msgKey{}, "queue q%d was not made in 20 s", i)
			return
		}
		s.clients(q)
	}
	s.runFor(between(s.coin(), 0, 3*second))
	for range later {
		h := s.newNode(false)
		s.after(between(s.coin(), 0, s.length/2), h.start)
	}

	s.phase = "faults"
	s.check.idle = false
	s.start = s.now
	for _, q := range s.check.queues {
		for _, p := range q.partitions() {
			s.check.ownerAt[p] = s.now
		}
	}
	for _, p := range s.producers {
		p.until = s.now + s.length
		p.start()
	}
	for _, c := range s.consumers {
		s.after(between(s.coin(), 0, second), c.start)
	}
	s.plan()
	s.runFor(s.length)
	if s.failure != nil {
		return
	}

	s.phase = "settling"
	s.heal()
	if !s.until(90*second, 250*millisecond, s.quiet) {
		for _, p := range s.producers {
			if !p.done && p.batch != nil {
				s.fail("P6", keyOf(p.batch), "%s cannot get %s confirmed for %d s after all has healed", p.h.name, s.describe(p.batch), 90)
				return
			}
		}
		s.check.delivered()
		return
	}
	s.phase = "converging"
	var why error
	if !s.until(75*second, 500*millisecond, func() bool { why = s.inspect(); return why == nil }) {
		s.fail("P7", msgKey{}, "75 s after all is delivered: %v", why)
	}
}

func (s *swarm) clients(q *queue) {
	for _, p := range q.partitions() {
		for range between(s.coin(), 1, 3) {
			pr := s.newProducer(fmt.Sprintf("p%d", len(s.producers)), q, p)
			pr.think = between(s.coin(), 50*millisecond, 500*millisecond)
			pr.most = int(between(s.coin(), 1, 6))
			pr.timeout = uint32(between(s.coin(), 500, 5000))
			s.producers = append(s.producers, pr)
		}
	}
	for _, g := range q.entry.Groups {
		for range between(s.coin(), 1, 4) {
			c := s.newConsumer(fmt.Sprintf("c%d", len(s.consumers)), q, g.Name)
			c.window = uint64(between(s.coin(), 1, 32))
			c.hold = between(s.coin(), millisecond, 300*millisecond)
			if s.chance(4) {
				c.hold = between(s.coin(), 300*millisecond, 3*second)
			}
			c.acks, c.nacks = 100, 0
			if s.chance(2) {
				c.acks, c.nacks = 80, 12
				c.nackWait = uint32(between(s.coin(), 0, 300))
			}
			if s.chance(6) {
				nodes := s.nodes()
				c.relay = nodes[s.coin()%uint64(len(nodes))]
			}
			s.consumers = append(s.consumers, c)
		}
	}
}

// quiet tells whether the producers are through and all is acked.
func (s *swarm) quiet() bool {
	for _, p := range s.producers {
		if !p.done {
			return false
		}
	}
	return len(s.check.unacked()) == 0
}

func (s *swarm) inspect() error {
	var ps []wire.PartitionID
	for _, q := range s.check.queues {
		ps = append(ps, q.partitions()...)
	}
	states := map[*host]*wire.Inspected{}
	left := 0
	for _, h := range s.nodes() {
		if h.running {
			left++
			s.admin.inspect(h, ps, func(in *wire.Inspected) { states[h] = in; left-- })
		}
	}
	s.until(second, 5*millisecond, func() bool { return left == 0 })
	return s.check.converged(states, ps)
}

// plan schedules the faults of the seed.
func (s *swarm) plan() {
	pick := func() *host { return s.all[s.coin()%uint64(len(s.all))] }
	two := func() (*host, *host) {
		a := s.coin() % uint64(len(s.all))
		b := (a + 1 + s.coin()%uint64(max(1, len(s.all)-1))) % uint64(len(s.all))
		return s.all[a], s.all[b]
	}
	times := func(most int64, do func()) {
		for range between(s.coin(), 1, most+1) {
			s.after(between(s.coin(), 0, s.length-2*second), do)
		}
	}
	for f := faults(1); f < faultAll; f <<= 1 {
		if !s.has(f) {
			continue
		}
		switch f {
		case faultCrash:
			times(6, func() { s.crashFor(pick(), between(s.coin(), millisecond, 5*second)) })
		case faultCrashAll:
			times(1, func() {
				s.say("crash of all")
				for _, h := range s.all {
					s.crashFor(h, between(s.coin(), millisecond, 3*second))
				}
			})
		case faultCut:
			times(4, func() { a, b := two(); s.cutFor(a, b, true, between(s.coin(), 50*millisecond, 6*second)) })
		case faultOneWay:
			times(4, func() { a, b := two(); s.cutFor(a, b, false, between(s.coin(), 50*millisecond, 6*second)) })
		case faultSplit:
			times(2, func() { s.split(between(s.coin(), 500*millisecond, 8*second)) })
		case faultPause:
			times(4, func() {
				h, d := pick(), between(s.coin(), 50*millisecond, 4*second)
				s.say("pause %s for %d ms", h.name, d/millisecond)
				h.pause(d)
			})
		case faultSlow:
			times(3, func() {
				a, b := two()
				l, d := s.link(a, b), between(s.coin(), 500*millisecond, 6*second)
				l.slow = between(s.coin(), 20*millisecond, 2*second)
				s.say("slow %s -> %s by %d ms for %d ms", a.name, b.name, l.slow/millisecond, d/millisecond)
				s.after(d, func() { l.slow = 0 })
			})
		case faultLate:
			s.net.late, s.net.lateBy = int(between(s.coin(), 50, 500)), between(s.coin(), 10*millisecond, second)
		case faultBreak:
			times(8, func() {
				a, b := two()
				s.say("break %s - %s", a.name, b.name)
				s.breakConns(a, b)
			})
		case faultClientCut:
			times(6, func() {
				if len(s.consumers) == 0 {
					return
				}
				var c *host
				if i := s.coin() % uint64(len(s.consumers)+len(s.producers)); i < uint64(len(s.consumers)) {
					c = s.consumers[i].h
				} else {
					c = s.producers[i-uint64(len(s.consumers))].h
				}
				if s.chance(2) {
					h := pick()
					s.say("break %s - %s", c.name, h.name)
					s.breakConns(c, h)
					return
				}
				s.cutFor(c, pick(), s.chance(2), between(s.coin(), 50*millisecond, 4*second))
			})
		case faultConsumer:
			times(4, func() {
				c := s.consumers[s.coin()%uint64(len(s.consumers))]
				if !c.closes {
					c.crash(between(s.coin(), millisecond, 3*second))
				}
			})
		case faultStall:
			s.disks.stall, s.disks.stallBy = int(between(s.coin(), 50, 400)), between(s.coin(), 30*millisecond, 900*millisecond)
		case faultWall:
			times(2, func() {
				h := pick()
				h.wall += between(s.coin(), -3_600_000, 3_600_000)
				s.say("wall clock of %s jumps", h.name)
			})
		case faultDrain:
			times(2, func() { s.drain(pick()) })
		case faultJoin:
			if len(s.all) < 6 {
				times(1, func() {
					if len(s.all) < 7 {
						s.newNode(false).start()
						s.say("join")
					}
				})
			}
		case faultAmnesia:
			times(1, func() { s.amnesia(pick()) })
		case faultDamage:
			times(1, func() {
				if h := pick(); !s.wounded && h.running && !h.paused && s.safe() {
					s.wounded = h.disk.damage(s.coin(), s.chance(2))
				}
			})
		}
	}
}

// crashFor crashes a node now, or at some effect of its next steps.
func (s *swarm) crashFor(h *host, d int64) {
	if !h.running {
		return
	}
	if s.chance(2) {
		h.crashIn = int(s.coin() % 4)
		s.after(50*millisecond, func() {
			if h.crashIn >= 0 {
				h.crashIn = -1
			}
		})
	} else {
		h.crash()
	}
	s.after(d, h.start)
}

func (s *swarm) cutFor(a, b *host, both bool, d int64) {
	if a == b {
		return
	}
	arrow := "->"
	if both {
		arrow = "-"
	}
	s.say("cut %s %s %s for %d ms", a.name, arrow, b.name, d/millisecond)
	s.cut(a, b)
	if both {
		s.cut(b, a)
	}
	s.after(d, func() {
		s.world.heal(a, b)
		if both {
			s.world.heal(b, a)
		}
	})
}

// split makes two halves of everything, clients too.
func (s *swarm) split(d int64) {
	side := map[*host]bool{}
	for _, h := range s.hosts {
		side[h] = s.chance(2)
	}
	var left []string
	for _, h := range s.hosts {
		if side[h] {
			left = append(left, h.name)
		}
	}
	s.say("split off %s for %d ms", strings.Join(left, " "), d/millisecond)
	var undo [][2]*host
	for _, a := range s.hosts {
		for _, b := range s.hosts {
			if a != b && side[a] != side[b] && (a.client == nil || b.client == nil) {
				s.cut(a, b)
				undo = append(undo, [2]*host{a, b})
			}
		}
	}
	s.after(d, func() {
		for _, u := range undo {
			s.world.heal(u[0], u[1])
		}
	})
}

func (s *swarm) drain(h *host) {
	if !h.running || h.paused || !h.core.Ready() {
		return
	}
	s.say("drain %s", h.name)
	life := h.life
	h.step(core.Drain{})
	s.after(3*second, func() {
		if h.life == life {
			h.crash()
			s.after(between(s.coin(), 0, second), h.start)
		}
	})
}

// safe tells whether one disk may lose something: all others are whole and there.
func (s *swarm) safe() bool {
	if s.has(faultGrow) {
		return false
	}
	for _, q := range s.check.queues {
		if q.entry.Settings.WriteQuorum < 2 {
			return false
		}
	}
	for _, h := range s.all {
		if !h.running {
			return false
		}
	}
	return true
}

// amnesia takes back some of what one disk had synced. Either the store knows, or
// every other node remembers a later commit.
func (s *swarm) amnesia(h *host) {
	if s.wounded || !s.safe() || h.paused {
		return
	}
	s.wounded = true
	keep := int(between(s.coin(), int64(len(h.disk.log))/2, int64(len(h.disk.log))+1))
	silent := s.chance(2)
	h.crash()
	h.disk.rollBack(keep)
	for _, o := range s.all {
		if o != h && o.core.RememberedCommit(h.id) <= h.disk.commit {
			silent = false
		}
	}
	h.disk.damaged = !silent
	s.say("%s comes back with %d commits (silent: %t)", h.name, h.disk.commit, silent)
	s.after(between(s.coin(), 10*millisecond, 3*second), h.start)
}

// heal ends all faults.
func (s *swarm) heal() {
	s.say("heal")
	s.net.late, s.disks.stall = 0, 0
	for _, c := range s.consumers { // and catch up
		c.hold, c.acks, c.window = min(c.hold, 20*millisecond), 100, max(c.window, 16)
	}
	for _, l := range s.sortedLinks() {
		l.l.slow = 0
		for l.l.cut > 0 {
			s.world.heal(s.hosts[l.at[0]], s.hosts[l.at[1]])
		}
	}
	for _, h := range s.all {
		h.crashIn = -1
		if !h.running {
			s.after(between(s.coin(), 0, second), h.start)
		}
	}
}

type linkAt struct {
	at [2]int
	l  *link
}

func (w *world) sortedLinks() []linkAt {
	var out []linkAt
	for k, l := range w.links {
		out = append(out, linkAt{k, l})
	}
	slices.SortFunc(out, func(a, b linkAt) int { return slices.Compare(a.at[:], b.at[:]) })
	return out
}

// TestSwarm runs seeds: random meshes under random faults. What fails prints its
// seed, the broken promise, and the life of the guilty message.
func TestSwarm(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	if *swarmSeed != 0 {
		s := newSwarm(*swarmSeed)
		var lines []string
		if *swarmTrace {
			s.record(&lines)
		}
		s.play()
		if *swarmTrace {
			for _, l := range lines {
				fmt.Println(l)
			}
		}
		t.Logf("seed %d: faults: %v; %d steps, %+v, hash %016x", s.seed, s.faults, s.steps, s.check.stats, s.hash)
		report(t, s)
		return
	}
	seeds := uint64(*swarmSeeds)
	if testing.Short() {
		seeds = min(seeds, 20)
	}
	start := time.Now()
	var (
		mu         sync.Mutex // guards what follows
		next       = *swarmFirst
		over       bool
		bad        = map[string][]uint64{}
		first      *swarm // of those that failed, the one with the lowest seed
		run, steps int
		workers    sync.WaitGroup
	)
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if over || *swarmTime > 0 && time.Since(start) > *swarmTime || *swarmTime == 0 && next >= *swarmFirst+seeds {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range runtime.GOMAXPROCS(0) { // seeds share nothing
		workers.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				s := newSwarm(seed)
				s.guard()
				mu.Lock()
				run++
				steps += s.steps
				if *swarmStats {
					fmt.Fprintf(os.Stderr, "seed %d: %d steps, %d ms, %+v, faults: %v, %v\n", seed, s.steps, s.now/millisecond, s.check.stats, s.faults, s.failure)
				}
				if s.failure != nil {
					bad[s.failure.promise] = append(bad[s.failure.promise], seed)
					if first == nil || seed < first.seed {
						first = s
					}
					if over = !*swarmKeep; *swarmKeep {
						t.Errorf("seed %d (faults: %v), %s at %d ms: %v", seed, s.faults, s.phase, s.now/millisecond, s.failure)
					}
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if first != nil && !*swarmKeep {
		report(t, first)
	}
	t.Logf("%d seeds, %d steps, %.1f seeds/s; bad: %v", run, steps, float64(run)/time.Since(start).Seconds(), bad)
}

// guard plays the seed; a panic of the core is a failure like others.
func (s *swarm) guard() {
	defer func() {
		if r := recover(); r != nil {
			s.failure = nil
			s.fail("panic", msgKey{}, "%v\n%s", r, panicked(string(debug.Stack())))
		}
	}()
	s.play()
}

// panicked is where, out of a stack: the functions of the core below the panic.
func panicked(stack string) string {
	lines := strings.Split(stack, "\n")
	var out []string
	below := false
	for _, l := range lines {
		if strings.HasPrefix(l, "panic(") {
			below = true
		}
		if below && strings.Contains(l, "/node/core/") && len(out) < 8 {
			where, _, _ := strings.Cut(strings.TrimSpace(l), " +")
			where = where[strings.LastIndex(where, "/")+1:]
			out = append(out, where)
		}
	}
	return strings.Join(out, " < ")
}

// record keeps the trace.
func (w *world) record(lines *[]string) {
	w.tracing = true
	w.tracef = func(format string, args ...any) {
		*lines = append(*lines, fmt.Sprintf("%10.3f ", float64(w.now)/float64(millisecond))+fmt.Sprintf(format, args...))
	}
}

// report plays a failed seed again with its trace, and prints what concerns the
// guilty message.
func report(t *testing.T, s *swarm) {
	t.Helper()
	if s.failure == nil {
		return
	}
	again := newSwarm(s.seed)
	var lines []string
	again.record(&lines)
	again.guard()
	if again.failure == nil || again.failure.text != s.failure.text {
		t.Errorf("seed %d is not deterministic: first %v, then %v", s.seed, s.failure, again.failure)
	}
	t.Errorf("seed %d (faults: %v), %s at %d ms: broken: %v", s.seed, s.faults, s.phase, s.now/millisecond, s.failure)
	if *swarmTrace {
		return
	}
	m := s.failure.message
	partition := ""
	if x := s.check.messages[m]; x != nil {
		partition = s.names.partition(x.partition)
	}
	var life []string
	for _, l := range lines {
		switch {
		case m != msgKey{} && mentions(l, again.names.producer(m.producer), m.sequence):
		case strings.Contains(l, " -- "), strings.Contains(l, " crash"), strings.Contains(l, " boot "), strings.Contains(l, "BROKEN"), strings.Contains(l, " stop:"):
		case partition != "" && strings.Contains(l, partition) && (strings.Contains(l, " note ") || strings.Contains(l, "owner ") || strings.Contains(l, "claim ")):
		default:
			continue
		}
		life = append(life, l)
	}
	if n := len(life); n > 400 {
		life = append(append(slices.Clone(life[:100]), "..."), life[n-300:]...)
	}
	t.Logf("the life of %s:\n%s", s.check.about(m), strings.Join(life, "\n"))
}

// TestDeterminism plays some seeds twice: the hashes of all that happened are equal.
func TestDeterminism(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		var hashes [2]uint64
		for i := range hashes {
			s := newSwarm(seed)
			if i == 1 {
				var lines []string
				s.record(&lines) // a trace changes nothing
			}
			s.guard()
			hashes[i] = s.hash
		}
		if hashes[0] != hashes[1] {
			t.Errorf("seed %d: %016x, then %016x", seed, hashes[0], hashes[1])
		}
	}
}
