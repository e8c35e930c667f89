package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// nemesis brings the faults of a plan about, each at its time.
type nemesis struct {
	*trial
	heal context.Context // ends when all faults are to be over
	work sync.WaitGroup

	mu   sync.Mutex     // protects the fields below
	open map[int]string // faults that are on now
}

// fault is one that is brought about.
type fault struct {
	plan.Fault
	n       *nemesis
	nodes   []*patient // that On names, or all
	clients []*worker

	mu   sync.Mutex // protects note
	note []string   // what exactly was done
}

// deeds are what is done for each kind, and what is done to end it. One without end is
// over at once.
type deed func(f *fault) (end func() error, err error)

var deeds = map[plan.Kind]deed{
	plan.Crash: crash, plan.PowerCut: powerCut, plan.Restart: restart, plan.Pause: pause, plan.SlowNode: slowNode,
	plan.Twin: twin, plan.Join: join,

	plan.Cut: cut, plan.CutOneWay: cutOneWay, plan.Split: split, plan.RingCut: ringCut, plan.Bridge: bridge, plan.Flap: flap,
	plan.Swizzle: swizzle, plan.SlowLink: slowLink, plan.Late: late, plan.Loss: loss, plan.Duplicate: duplicate,
	plan.Bandwidth: bandwidth, plan.Reset: resetConnections, plan.HalfOpen: halfOpen, plan.Corrupt: corrupt, plan.GossipCut: gossipCut, plan.AnswerLost: answerLost,

	plan.DiskFull: diskFull, plan.DiskError: diskError, plan.DiskStall: diskStall, plan.DiskSlow: diskSlow, plan.Torn: hurt(tearTail), plan.Amnesia: hurt(forget),
	plan.Damage: damage, plan.DamageRecord: hurt(flipRecord), plan.OpenError: hurt(spoilSegment), plan.Rollback: rollback, plan.Wipe: wipe,

	plan.ConsumerCrash: clientCrash, plan.ProducerCrash: clientCrash, plan.ConsumerPause: consumerPause, plan.ConsumerSlow: consumerSlow,
	plan.NackStorm: nackStorm, plan.Poison: poison, plan.Burst: burst, plan.DeleteQueue: deleteQueue,
	plan.UpdateQueue: updateQueue, plan.PauseQueue: pauseQueue,
}

// Impossible says why a plan as a whole cannot be run on real processes, with these
// options: what it is about would be missing. "": it can. A fault that the simulator alone
// can bring about is left out of a plan; one that only this machine or these options lack
// makes a scenario another one.
func Impossible(p *plan.Plan, o Options) string {
	scenarios := plan.Scenarios()
	named := slices.IndexFunc(scenarios, func(s plan.Info) bool { return s.Name == p.Name })
	if named >= 0 && scenarios[named].Where&plan.InReal == 0 {
		return scenarios[named].Reason
	}
	c := o.config(p)
	var reasons []string
	possible, lacking := 0, 0
	for _, f := range p.Faults {
		err := c.Can(f.Kind)
		if err == nil {
			possible++
			continue
		}
		if anywhere(f.Kind) {
			lacking++
		}
		if why := err.Error(); !slices.Contains(reasons, why) {
			reasons = append(reasons, why)
		}
	}
	if named >= 0 && lacking > 0 || len(p.Faults) > 0 && possible == 0 {
		return strings.Join(reasons, "; ")
	}
	return ""
}

// anywhere tells whether a kind of fault can be brought about on real processes at all.
func anywhere(kind plan.Kind) bool {
	return slices.ContainsFunc(plan.Kinds, func(k plan.KindInfo) bool { return k.Kind == kind && k.Where&plan.InReal != 0 })
}

// begin lets all faults wait for their time.
func (n *nemesis) begin() {
	n.open = map[int]string{}
	for i := range n.plan.Faults {
		n.fates[i].Fault = n.plan.Faults[i]
		n.work.Go(func() { n.bring(i) })
	}
	for _, spec := range n.plan.Mesh.Nodes {
		if spec.Joins > 0 && n.patient(spec.Name) == nil {
			n.work.Go(func() {
				if n.at(spec.Joins) {
					n.opts.say("%s  %s joins", clock(n.record.now()), spec.Name)
					if err := n.newcomer(spec); err != nil {
						n.breach("Start", "%s: %v", spec.Name, err)
					}
				}
			})
		}
	}
}

// wait returns when all faults are over.
func (n *nemesis) wait() { n.work.Wait() }

// now names the faults that are on.
func (n *nemesis) now() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var on []int
	for i := range n.open {
		on = append(on, i)
	}
	slices.Sort(on)
	var texts []string
	for _, i := range on {
		texts = append(texts, n.open[i])
	}
	return strings.Join(texts, "; ")
}

// at waits for a time of the plan. false: everything is to be healed.
func (n *nemesis) at(d plan.Duration) bool { return wait(n.heal, time.Duration(d)-n.record.now()) }

// bring brings one fault about, and ends it.
func (n *nemesis) bring(i int) {
	f := &fault{Fault: n.plan.Faults[i], n: n}
	skip := func(why string) {
		n.fates[i].Skipped = why
		n.opts.say("%s  skipped: %s: %s", clock(n.record.now()), f.Fault, why)
	}
	if err := n.mesh.Can(f.Kind); err != nil {
		skip(strings.TrimPrefix(err.Error(), string(f.Kind)+": "))
		return
	}
	do := deeds[f.Kind]
	if do == nil {
		skip("real processes have no such fault")
		return
	}
	prepare(f)
	if !n.at(f.At) {
		if n.heal.Err() != nil && time.Duration(f.At) >= time.Duration(n.plan.Length) {
			skip("it comes after the end of the load")
		}
		return
	}
	if err := f.resolve(); err != nil {
		skip(err.Error())
		return
	}
	n.mu.Lock()
	n.open[i] = f.Fault.String()
	n.mu.Unlock()
	n.fates[i].From = n.record.tell(history.Event{Kind: history.FaultBegin, Number: i, Code: string(f.Kind), On: f.touches(), Text: f.Fault.String()})
	n.opts.say("%s  %s", clock(n.fates[i].From), f.Fault)
	end, err := do(f)
	n.complain(f, err)
	if err != nil && end == nil {
		n.fates[i].Skipped = err.Error() // no way to do it now, because of another fault, say
	}
	if end != nil {
		switch {
		case f.For > 0:
			wait(n.heal, time.Duration(f.For))
		default:
			<-n.heal.Done()
		}
		n.complain(f, end())
	}
	n.mu.Lock()
	delete(n.open, i)
	n.mu.Unlock()
	n.fates[i].To = n.record.tell(history.Event{Kind: history.FaultEnd, Number: i, Code: string(f.Kind), On: f.touches()})
	n.fates[i].Note = strings.Join(f.note, "; ")
	if n.fates[i].Note != "" {
		n.opts.say("         %s", n.fates[i].Note)
	}
}

// complain notes what did not work as it should.
func (n *nemesis) complain(f *fault, err error) {
	if err == nil {
		return
	}
	var promise *breachError
	if errors.As(err, &promise) {
		n.breach(promise.promise, "%s: %s", f.Kind, promise.text)
		return
	}
	f.say("%v", err)
}

// breachError is a promise that broke while a fault was brought about.
type breachError struct{ promise, text string }

func (e *breachError) Error() string { return e.promise + ": " + e.text }

// say notes what exactly was done.
func (f *fault) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note = append(f.note, fmt.Sprintf(format, args...))
}

// resolve finds what On names: nodes and clients that are there now.
func (f *fault) resolve() error {
	var unknown []string
	for _, name := range f.On {
		switch p, w := f.n.patient(name), f.n.worker(name); {
		case p != nil:
			f.nodes = append(f.nodes, p)
		case w != nil:
			f.clients = append(f.clients, w)
		default:
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("there is no %s now", strings.Join(unknown, ", "))
	}
	if len(f.On) > 0 {
		return nil
	}
	for _, k := range plan.Kinds {
		if k.Kind != f.Kind {
			continue
		}
		switch k.Subject {
		case "node":
			f.nodes = f.n.all()
		case "client":
			for _, w := range f.n.clients() {
				if w.isProducer() == (f.Kind == plan.ProducerCrash || f.Kind == plan.Burst) {
					f.clients = append(f.clients, w)
				}
			}
		}
	}
	return nil
}

// touches are those with whom something is wrong while the fault is on; none: all.
func (f *fault) touches() []string {
	switch f.Kind {
	case plan.Split, plan.Late, plan.Join, plan.DeleteQueue, plan.UpdateQueue, plan.PauseQueue:
		return nil
	}
	if len(f.On) == 0 || len(f.To) == 0 && slices.ContainsFunc(plan.Kinds, func(k plan.KindInfo) bool { return k.Kind == f.Kind && k.Other != "" }) {
		return nil
	}
	return slices.Concat(f.On, f.To)
}

// each does something to all nodes of a fault at the same time.
func (f *fault) each(do func(p *patient) error) error {
	errs := make([]error, len(f.nodes))
	var g sync.WaitGroup
	for i, p := range f.nodes {
		g.Go(func() { errs[i] = do(p) })
	}
	g.Wait()
	return errors.Join(errs...)
}

// rise starts again what the fault took down.
func (f *fault) rise() error {
	return f.each(func(p *patient) error {
		if err := p.rise(); err != nil {
			return &breachError{"Start", err.Error()}
		}
		return nil
	})
}
