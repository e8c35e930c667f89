package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Options say on what plans run, and who hears of it.
type Options struct {
	// Binary is the meshq whose processes nodes ("serve") and clients ("chaos client")
	// are. Required.
	Binary     string
	ClientArgs []string // more arguments of clients

	Network   Network // default: Loopback
	Disks     bool    // see Config
	DiskBytes int64
	Serve     []string // more flags of nodes
	Dir       string   // in which the directory of a run is made; default: os.TempDir
	Keep      bool     // keeps that directory, with data and logs
	Logger    *slog.Logger

	// Say hears a line for each thing that happens; Status hears, several times a second,
	// how far it is, and is followed by a line that replaces it. nil: nobody. Both may be
	// called by several goroutines.
	Say    func(line string)
	Status func(line string)
}

func (o *Options) say(format string, args ...any) {
	if o.Say != nil {
		o.Say(fmt.Sprintf(format, args...))
	}
}

func (o *Options) status(format string, args ...any) {
	if o.Status != nil {
		o.Status(fmt.Sprintf(format, args...))
	}
}

// config is that of the mesh for a plan.
func (o *Options) config(p *plan.Plan) Config {
	c := Config{
		Binary: o.Binary, Network: o.Network, Seed: p.Seed, Disks: o.Disks, DiskBytes: o.DiskBytes, Serve: o.Serve, Dir: o.Dir, Keep: o.Keep, Logger: o.Logger,
	}
	if c.Network == Switched {
		c.Links = Effect{Delay: time.Duration(p.Mesh.Network.Latency), Jitter: time.Duration(p.Mesh.Network.Jitter)}
	}
	return c
}

// Can says whether a kind of fault can be brought about with these options.
func (o *Options) Can(kind plan.Kind) error {
	c := o.config(&plan.Plan{})
	return c.Can(kind)
}

// Result is what came of a plan.
type Result struct {
	Plan    *plan.Plan
	Skipped string // why it did not run at all; "": it ran

	History  *history.History
	Verdict  *history.Verdict // with what was seen besides the history
	Faults   []Fate           // what became of each fault of the plan
	Usage    []Usage          // by node
	Switch   SwitchStats
	Began    time.Time
	Took     time.Duration
	Stopped  bool   // it was told to end before its time
	Dir      string // with logs and data, if that was to be kept
	Leftover error  // what could not be removed
}

// Passed tells whether no promise was broken.
func (r *Result) Passed() bool { return r.Verdict == nil || r.Verdict.Passed() }

// Fate is what became of a fault.
type Fate struct {
	Fault   plan.Fault
	Skipped string // why it was not brought about; "": it was
	Note    string // what exactly was done
	From    time.Duration
	To      time.Duration
}

// Usage is what a node took in a run, in bytes.
type Usage struct {
	Node                         string
	MemoryFirst, MemoryMost      int64
	MemoryLast                   int64
	DiskFirst, DiskMost, DiskEnd int64
}

// trial is one plan that runs on a stage.
type trial struct {
	*stage
	plan   *plan.Plan
	began  int64
	record *recorder

	alive context.Context // ends when clients are not to start again
	work  sync.WaitGroup  // those who look after clients
	fates []Fate          // by the number of the fault; each is its own goroutine's

	mu      sync.Mutex // protects the fields below
	workers []*worker
	queues  []plan.Queue // those of the plan, and what faults made
}

// Run runs a plan on a mesh of its own and removes that. The error is about what was
// not possible; promises that were broken are in the result. When ctx ends, the load is
// stopped, and the result says what was found until then.
func Run(ctx context.Context, p *plan.Plan, o Options) (*Result, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if why := Impossible(p, o); why != "" {
		return &Result{Plan: p, Skipped: why}, nil
	}
	s, err := newStage(ctx, p, o)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	r, err := s.run(ctx, p)
	leftover := s.close()
	if err != nil {
		return nil, errors.Join(err, leftover)
	}
	r.Leftover = leftover
	return r, nil
}

// keep writes plan and history to where data and logs are kept.
func (r *Result) keep(dir string) error {
	name := filepath.Join(dir, orElse(r.Plan.Name, "run"))
	if err := r.Plan.WriteFile(name + ".plan.json"); err != nil {
		return err
	}
	f, err := os.Create(name + ".history.jsonl")
	if err != nil {
		return err
	}
	return errors.Join(r.History.Write(f), f.Close())
}

// headstart is how long before the load begins clients are started.
const headstart = 500 * time.Millisecond

// run runs a plan on the stage.
func (s *stage) run(ctx context.Context, p *plan.Plan) (*Result, error) {
	t := &trial{stage: s, plan: p, record: newRecorder(), fates: make([]Fate, len(p.Faults)), queues: slices.Clone(p.Queues)}
	s.enter(t.record)
	alive, bury := context.WithCancel(context.WithoutCancel(ctx))
	t.alive = alive
	defer t.work.Wait()
	defer bury()
	r := &Result{Plan: p, Began: time.Now()}
	if err := t.createQueues(ctx); err != nil {
		return nil, err
	}
	if err := t.makeWorkers(); err != nil {
		return nil, err
	}
	defer func() { t.stopWorkers(t.clients(), 0) }()
	t.began = monotonic() + int64(headstart)
	t.record.begin(t.began)
	for _, w := range t.clients() {
		if err := w.start(); err != nil {
			return nil, err
		}
	}
	sampling, enough := context.WithCancel(ctx)
	t.work.Go(func() { t.sample(sampling) })
	defer enough()

	t.load(ctx)
	healed := t.end(ctx)
	if healed && ctx.Err() == nil {
		t.settle(ctx)
	}
	enough()
	bury()
	t.stopWorkers(t.clients(), consumerPatience)
	t.work.Wait()
	r.Stopped = ctx.Err() != nil
	t.conclude(r)
	if s.opts.Keep {
		r.Dir = s.mesh.Dir()
		return r, r.keep(r.Dir)
	}
	return r, nil
}

// load lets clients work and faults happen for the plan's time.
func (t *trial) load(ctx context.Context) {
	faulty, heal := context.WithCancel(ctx)
	defer heal()
	n := &nemesis{trial: t, heal: faulty}
	n.begin()
	end := time.NewTimer(headstart + time.Duration(t.plan.Length))
	defer end.Stop()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end.C:
			t.opts.say("%s  the load ends", clock(t.record.now()))
		case <-ctx.Done():
			t.opts.say("%s  told to stop", clock(t.record.now()))
		case <-tick.C:
			t.opts.status("%s", t.progress(n))
			continue
		}
		break
	}
	var producers []*worker
	for _, w := range t.clients() {
		if w.isProducer() {
			producers = append(producers, w)
		}
	}
	var stopping sync.WaitGroup
	stopping.Go(func() { t.stopWorkers(producers, producerPatience(t.plan)) })
	heal()
	n.wait()
	stopping.Wait()
}

// producerPatience is how long producers wait for the answers to what they have sent.
func producerPatience(p *plan.Plan) time.Duration {
	most := defaultTimeout
	for _, producer := range p.Producers {
		most = max(most, time.Duration(producer.Timeout))
	}
	return most + 10*time.Second
}

// consumerPatience is how long consumers may take to end what they have in hand.
const consumerPatience = 15 * time.Second

// stopWorkers stops clients at the same time, and kills those that take too long.
func (t *trial) stopWorkers(workers []*worker, patience time.Duration) {
	var g sync.WaitGroup
	for _, w := range workers {
		g.Go(func() { w.stop(patience) })
	}
	g.Wait()
}

// end makes all whole again after the faults. false: it could not.
func (t *trial) end(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	t.opts.status("all is made whole again")
	if err := t.heal(ctx); err != nil {
		if ctx.Err() == nil {
			t.breach("Heal", "when all faults were over the mesh did not come together: %v", err)
		}
		return false
	}
	t.tell(history.Event{Kind: history.Healed})
	t.opts.say("%s  healed: all faults are over, all nodes are active", clock(t.record.now()))
	return true
}

// createQueues creates the queues of the plan.
func (t *trial) createQueues(ctx context.Context) error {
	for _, q := range t.plan.Queues {
		if err := createQueue(ctx, t.observer, q); err != nil {
			return err
		}
	}
	return nil
}

func createQueue(ctx context.Context, mesh *client.Mesh, q plan.Queue) error {
	settings := client.Settings{
		Partitions: q.Partitions, Replicas: q.Replicas, WriteQuorum: q.WriteQuorum, Lease: time.Duration(q.Lease),
		BackoffMin: time.Duration(q.BackoffMin), BackoffMax: time.Duration(q.BackoffMax),
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var err error
	_ = poll(ctx, "create "+q.Name, func() error {
		_, err = mesh.CreateQueue(ctx, q.Name, settings, q.Groups...)
		if errors.Is(err, client.ErrExists) || errors.Is(err, client.ErrBadRequest) {
			return nil // no use in going on
		}
		return err
	})
	return err
}

// conclude checks what was told.
func (t *trial) conclude(r *Result) {
	r.Took = time.Since(r.Began)
	r.History = t.record.history(t.names())
	for _, line := range t.mesh.Complaints() {
		t.breach("Log", "%s", line)
	}
	rules := rulesOf(t.plan, t.allQueues())
	if t.remote != "" {
		rules.Writable = time.Hour // whether there is room for more is for others to say
	}
	r.Verdict = history.Check(r.History, rules)
	r.Verdict.Violations = append(t.broken(), r.Verdict.Violations...)
	r.Faults = t.fates
	r.Usage = usageOf(r.History)
	r.Switch = t.mesh.SwitchStats()
}

// addQueue has a queue drained with those of the plan.
func (t *trial) addQueue(q plan.Queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.ContainsFunc(t.queues, func(o plan.Queue) bool { return o.Name == q.Name }) {
		t.queues = append(t.queues, q)
	}
}

func (t *trial) allQueues() []plan.Queue {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.queues)
}

// names are those of all nodes that ever were, by ID.
func (t *trial) names() map[uint64]string {
	names := map[uint64]string{}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ring, err := t.observer.Ring(ctx)
	if err != nil {
		return names // owners are numbers then
	}
	for _, m := range ring.Members {
		if id, err := strconv.ParseUint(m.ID, 16, 64); err == nil {
			names[id] = t.called(m.Name)
		}
	}
	return names
}

// rulesOf are the rules for a history of a plan on real processes, on a machine that may
// be slow and busy.
func rulesOf(p *plan.Plan, queues []plan.Queue) history.Rules {
	r := history.Rules{
		Calm: len(p.Faults) == 0, Ahead: true, Beyond: p.Beyond, Groups: map[string][]string{}, Quorum: map[string]int{},
		Flight: 2 * time.Second, Tolerance: 2 * time.Second, Writable: 2 * time.Second,
		Drain: drainPatience(p), Converge: convergePatience, Memory: memoryGrowth,
	}
	for _, q := range queues {
		r.Groups[q.Name] = groupsOf(q)
		replicas := min(orElse(q.Replicas, 3), len(p.Mesh.Nodes))
		r.Quorum[q.Name] = min(orElse(q.WriteQuorum, orElse(q.Replicas, 3)/2+1), replicas)
	}
	return r
}

// memoryGrowth is by how many bytes a node's memory may grow while it is under load.
const memoryGrowth = 512 << 20

func groupsOf(q plan.Queue) []string {
	if len(q.Groups) == 0 {
		return []string{"default"}
	}
	return q.Groups
}

// usageOf sums up the samples of a history.
func usageOf(h *history.History) (all []Usage) {
	at := map[string]int{}
	for i := range h.Events {
		e := &h.Events[i]
		if e.Kind != history.Sample {
			continue
		}
		n, ok := at[e.Who]
		if !ok {
			n = len(all)
			at[e.Who] = n
			all = append(all, Usage{Node: e.Who, MemoryFirst: e.Memory, DiskFirst: e.Disk})
		}
		u := &all[n]
		u.MemoryMost, u.DiskMost = max(u.MemoryMost, e.Memory), max(u.DiskMost, e.Disk)
		u.MemoryLast, u.DiskEnd = e.Memory, e.Disk
	}
	return all
}

// progress is one line on how far a trial is.
func (t *trial) progress(n *nemesis) string {
	line := fmt.Sprintf("%s of %s  %d confirmed, %d acked", clock(t.record.now()), clock(time.Duration(t.plan.Length)), t.record.count(history.Confirmed), t.record.count(history.Acked))
	if failed := t.record.count(history.Refused) + t.record.count(history.Unknown); failed > 0 {
		line += fmt.Sprintf(", %d sends failed", failed)
	}
	if now := n.now(); now != "" {
		line += "  now: " + now
	}
	return line
}

// clock is a time of a run for people: 12.3s.
func clock(d time.Duration) string { return fmt.Sprintf("%6.1fs", d.Seconds()) }
