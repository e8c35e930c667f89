package chaos

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// RunOn runs clients that misbehave on a mesh that runs already, for length. It makes
// one queue of its own, of a name that nobody has, and deletes it at the end; it does
// nothing to nodes and to what others have there. opts are how to connect, the same as
// ClientArgs tell clients.
//
// What befalls the nodes meanwhile is watched from outside, and counts as a fault.
func RunOn(ctx context.Context, servers string, seed uint64, length time.Duration, o Options, opts ...client.Option) (*Result, error) {
	observer, err := client.Dial(ctx, servers, append([]client.Option{client.Name("meshq chaos")}, opts...)...)
	if err != nil {
		return nil, err
	}
	defer observer.Close()
	ring, err := observer.Ring(ctx)
	if err != nil {
		return nil, err
	}
	p := onRunning(seed, length, uniqueName(), len(ring.Members))
	queue := p.Queues[0].Name
	o.say("mesh %s of %d nodes at %s, seed %d", ring.Mesh, len(ring.Members), servers, seed)
	o.say("will:     create queue %s, send to it and consume from it for %v, with clients that crash, stand still,", queue, length)
	o.say("          are slow, nack, and send in bursts; create and delete queue %s; delete both queues at the end", queue+ownSuffix)
	o.say("will not: touch nodes, disks, the network, settings, or any other queue")

	c := o.config(p)
	c.Network, c.Disks = Loopback, false
	mesh, err := New(c) // without nodes: it has the clients
	if err != nil {
		return nil, err
	}
	s := &stage{opts: o, mesh: mesh, observer: observer, remote: servers, record: newRecorder(), patients: map[string]*patient{}}
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	watching, enough := context.WithCancel(ctx)
	defer enough()
	s.work.Go(func() { s.watch(watching) })
	r, err := s.run(ctx, p)
	enough()
	left := s.deleteAll(queue, queue+ownSuffix)
	s.observer = nil // closed above
	left = errors.Join(left, s.close())
	if err != nil {
		return nil, errors.Join(err, left)
	}
	r.Leftover = left
	return r, nil
}

// uniqueName is one that no queue has.
func uniqueName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return "chaos-" + hex.EncodeToString(b[:])
}

// onRunning is the plan for a mesh that runs already.
func onRunning(seed uint64, length time.Duration, queue string, nodes int) *plan.Plan {
	d := dice{mrand.New(mrand.NewPCG(seed, 0))}
	replicas := min(3, nodes)
	p := &plan.Plan{
		Version: plan.Version, Name: fmt.Sprintf("running-%d", seed), About: "clients that misbehave, on a mesh that runs already", Seed: seed,
		Length: plan.Duration(length),
		Queues: []plan.Queue{{
			Name: queue, Partitions: 3, Replicas: replicas, Groups: []string{"one", "two"}, Lease: plan.Duration(5 * time.Second),
			BackoffMin: plan.Duration(100 * time.Millisecond), BackoffMax: plan.Duration(2 * time.Second),
		}},
	}
	for i := range max(nodes, 1) { // the plan's check wants nodes; these are not started
		p.Mesh.Nodes = append(p.Mesh.Nodes, plan.Node{Name: fmt.Sprintf("n%d", i+1)})
	}
	for i := range 2 {
		p.Producers = append(p.Producers, plan.Producer{
			Name: fmt.Sprintf("p%d", i+1), Queue: queue, Think: plan.Duration(50 * time.Millisecond), Batch: 4, Bytes: 512, Keys: 10 * i, Timeout: plan.Duration(5 * time.Second),
		})
	}
	for i, g := range []string{"one", "one", "two"} {
		p.Consumers = append(p.Consumers, plan.Consumer{
			Name: fmt.Sprintf("c%d", i+1), Queue: queue, Group: g, Window: 16, Hold: plan.Duration(10 * time.Millisecond), Nack: 0.02,
		})
	}
	var kinds []int // of generators
	for i, g := range generators {
		if slices.Contains(ofClients, g.kind) {
			kinds = append(kinds, i)
		}
	}
	for at := 2 * time.Second; at < length-calmAtEnd; at += time.Duration(d.time(time.Second, 6*time.Second)) {
		g := generators[kinds[d.IntN(len(kinds))]]
		f := g.draw(d, p)
		f.Kind, f.At = g.kind, plan.Duration(at)
		if f.Kind == plan.DeleteQueue && slices.ContainsFunc(p.Faults, func(f plan.Fault) bool { return f.Kind == plan.DeleteQueue }) {
			continue // one other queue is enough
		}
		p.Faults = append(p.Faults, f)
	}
	return p
}

// ofClients are the kinds of faults that concern clients alone.
var ofClients = []plan.Kind{
	plan.ConsumerCrash, plan.ConsumerPause, plan.ConsumerSlow, plan.ProducerCrash, plan.NackStorm, plan.Poison, plan.Burst, plan.DeleteQueue,
	plan.UpdateQueue, plan.PauseQueue,
}

// watch records as faults what befalls the nodes of a mesh that is not this run's.
func (s *stage) watch(ctx context.Context) {
	const first = 1_000_000 // numbers of faults that are not of the plan
	type seen struct {
		boot  uint64
		well  time.Duration // when it was last seen to be well
		fault int           // its number; 0: it is well
	}
	nodes := map[string]*seen{}
	next := first
	for {
		now := s.recorder().now()
		all, err := s.observer.Nodes(ctx)
		for _, n := range all {
			x := nodes[n.ID]
			if x == nil {
				x = &seen{boot: n.Boot, well: now}
				nodes[n.ID] = x
			}
			well := err == nil && n.Err == nil && n.State == "active"
			if (!well || n.Boot != x.boot) && x.fault == 0 {
				next++
				x.fault = next
				text := fmt.Sprintf("outside: %s is %s", n.Name, n.State)
				s.recorder().add(history.Event{At: x.well, Kind: history.FaultBegin, Number: x.fault, Code: "outside", On: []string{n.Name}, Text: text})
				s.opts.say("%s  %s", clock(now), text)
			}
			if well {
				if x.fault != 0 {
					s.tell(history.Event{Kind: history.FaultEnd, Number: x.fault, Code: "outside", On: []string{n.Name}})
					x.fault = 0
				}
				x.boot, x.well = n.Boot, now
			}
		}
		if !wait(ctx, observerPeriod) {
			return
		}
	}
}

// deleteAll deletes the queues of this run. The error says which are still there.
func (s *stage) deleteAll(queues ...string) error {
	var errs []error
	for _, name := range queues {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		err := poll(ctx, "delete queue "+name, func() error {
			err := s.observer.DeleteQueue(ctx, name)
			if errors.Is(err, client.ErrNoQueue) {
				return nil
			}
			return err
		})
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("queue %s is still there (\"meshq queue delete %s\" deletes it): %w", name, name, err))
		}
	}
	return errors.Join(errs...)
}
