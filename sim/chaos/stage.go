package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// How long a mesh of processes may take on a slow and busy machine.
const (
	startPatience  = 60 * time.Second // until a node that was started serves, when nothing is wrong
	stopPatience   = 40 * time.Second // until one that was told to stop has ended
	failPatience   = 30 * time.Second // until one whose disk failed has noticed
	rebirthPause   = time.Second      // before a node that ended by itself is started again
	maxRebirths    = 20               // of one node in one run
	observerPeriod = time.Second      // between two samples of memory and disk
)

// stage is the mesh that trials run on, one after the other, and what became of its
// nodes.
type stage struct {
	opts     Options
	mesh     *Mesh
	work     sync.WaitGroup // those who wait for nodes; ends when the mesh is closed
	observer *client.Mesh   // no fault touches it
	remote   string         // servers of a mesh that is not this run's; "": the mesh is

	ctx context.Context // ends when the stage is torn down
	end context.CancelFunc

	mu       sync.Mutex // protects the fields below
	record   *recorder  // of the trial that runs
	breaches []history.Violation
	patients map[string]*patient
}

// patient is a node and what is wrong with it.
type patient struct {
	stage *stage
	node  *Node

	mu      sync.Mutex // one thing at a time is done to a node; protects the fields below
	down    int        // faults that keep it down
	lost    []string   // what the mesh called it when its disk was lost for good
	rebirth int
	kept    *Snapshot // for a rollback; nil: none
	twin    *Node     // with its identity, the last that there was; nil: none
	fenced  bool      // its process has ended while the twin runs
}

// newStage makes a mesh and starts the nodes of a plan that do not join later.
func newStage(ctx context.Context, p *plan.Plan, o Options) (*stage, error) {
	mesh, err := New(o.config(p))
	if err != nil {
		return nil, err
	}
	s := &stage{opts: o, mesh: mesh, record: newRecorder(), patients: map[string]*patient{}}
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.startAll(ctx, p); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// startAll starts the nodes one after the other: the first founds the mesh, and each of
// the others is a step of its ring.
func (s *stage) startAll(ctx context.Context, p *plan.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+len(p.Mesh.Nodes))*startPatience)
	defer cancel()
	running := 0
	for _, spec := range p.Mesh.Nodes {
		if spec.Joins > 0 {
			continue
		}
		if running == 0 {
			s.opts.say("the mesh starts")
		}
		s.opts.status("starting %s", spec.Name)
		n, err := s.add(spec)
		if err != nil {
			return err
		}
		n.mu.Lock()
		err = n.startLocked()
		n.mu.Unlock()
		if err == nil {
			err = n.node.WaitReady(ctx)
		}
		if err != nil {
			return fmt.Errorf("start the mesh: %s: %w", spec.Name, err)
		}
		running++
	}
	if err := s.mesh.WaitActive(ctx, running); err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	var err error
	if s.observer, err = s.mesh.Observer(ctx); err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	return nil
}

// servers are what clients dial.
func (s *stage) servers() string {
	if s.remote != "" {
		return s.remote
	}
	return s.mesh.Servers()
}

// close ends all and removes it.
func (s *stage) close() error {
	s.end()
	if s.observer != nil {
		_ = s.observer.Close()
	}
	err := s.mesh.Close()
	s.work.Wait()
	return err
}

// enter begins a trial: what happens from now on is recorded there.
func (s *stage) enter(r *recorder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record, s.breaches = r, nil
}

// broken is what was noted with breach.
func (s *stage) broken() []history.Violation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.breaches)
}

// tell records what happens now in the trial that runs.
func (s *stage) tell(e history.Event) { s.recorder().tell(e) }

func (s *stage) recorder() *recorder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record
}

// breach notes what must not happen, besides what histories show.
func (s *stage) breach(promise, format string, args ...any) {
	v := history.Violation{Promise: promise, Text: fmt.Sprintf(format, args...), At: s.recorder().now()}
	s.mu.Lock()
	s.breaches = append(s.breaches, v)
	s.mu.Unlock()
	s.opts.say("BROKEN %s: %s", promise, v.Text)
}

// add makes a node that is not started.
func (s *stage) add(spec plan.Node) (*patient, error) {
	n, err := s.mesh.Add(spec)
	if err != nil {
		return nil, err
	}
	p := &patient{stage: s, node: n}
	s.mu.Lock()
	s.patients[spec.Name] = p
	s.mu.Unlock()
	return p, nil
}

func (s *stage) patient(name string) *patient {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.patients[name]
}

// all are the nodes in the order in which they were added.
func (s *stage) all() (all []*patient) {
	for _, n := range s.mesh.Nodes() {
		all = append(all, s.patient(n.Name()))
	}
	return all
}

// fall takes a node down until rise: how does that to its process, and whatever else to
// it while it is down.
func (p *patient) fall(text string, how func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down++
	was, at := p.node.Running(), p.stage.recorder().now()
	err := how()
	if p.node.Running() {
		err = errors.Join(err, p.node.Kill())
	}
	if was {
		p.stage.recorder().add(history.Event{At: at, Kind: history.NodeDown, Who: p.node.Name(), Text: text})
	}
	return err
}

// rise takes back one fall, and starts the node when nothing else keeps it down. It does
// not wait until the node serves.
func (p *patient) rise() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down--
	if p.down > 0 || p.node.Running() {
		return nil
	}
	return p.startLocked()
}

// startLocked starts a process, tells when it serves, and looks after it.
func (p *patient) startLocked() error {
	if p.stage.ctx.Err() != nil {
		return nil
	}
	if err := p.node.Start(); err != nil {
		return err
	}
	exited := p.node.Exited()
	p.stage.work.Go(func() {
		if p.node.WaitReady(p.stage.ctx) == nil && p.node.Exited() == exited {
			p.stage.tell(history.Event{Kind: history.NodeUp, Who: p.node.Name()})
		}
	})
	p.stage.work.Go(func() {
		select {
		case <-exited:
			p.ended(exited)
		case <-p.stage.ctx.Done():
		}
	})
	return nil
}

// ended is called when a process has ended. If nobody asked it to, that is told, and
// it starts again.
func (p *patient) ended(exited <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down > 0 || p.node.Exited() != exited || p.stage.ctx.Err() != nil {
		return
	}
	name, code, last := p.node.Name(), p.node.ExitCode(), lastLine(p.node.Log())
	p.stage.tell(history.Event{Kind: history.NodeDown, Who: name, Text: fmt.Sprintf("with exit code %d: %s", code, last)})
	old := logTells(p.node.Log(), olderData)
	if old && p.twin != nil && p.twin.Running() {
		p.stage.opts.say("%s gave way to its twin: %s", name, last)
		p.fenced = true
		return
	}
	if p.rebirth++; p.rebirth > maxRebirths {
		p.stage.breach("Start", "%s ends again and again, the last time with exit code %d: %s", name, code, last)
		return
	}
	// A node whose disk was set back to before its last start refuses to start, by design:
	// then its disk counts as lost, unless a twin has a newer one.
	switch {
	case old && p.twin != nil:
		p.stage.opts.say("%s gave way to its twin, which has ended: %s", name, last)
		if err := p.inherit(); err != nil {
			p.stage.breach("Start", "%s: %v", name, err)
			return
		}
	case old:
		p.stage.opts.say("%s refuses to start on a disk that is older than the mesh remembers: a new node with an empty disk takes its place", name)
		if err := p.wipe(); err != nil {
			p.stage.breach("Start", "%s: %v", name, err)
			return
		}
	default:
		p.stage.opts.say("%s ended by itself with exit code %d: %s", name, code, last)
	}
	p.stage.work.Go(func() {
		if !wait(p.stage.ctx, rebirthPause) {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down > 0 || p.node.Running() {
			return
		}
		if err := p.startLocked(); err != nil {
			p.stage.breach("Start", "%s: %v", name, err)
		}
	})
}

// wipe takes the disk of a node that is down; mu is held. Its next start is that of
// another node.
func (p *patient) wipe() error {
	was := p.node.Called()
	err := p.node.Wipe()
	if err == nil {
		p.lost = append(p.lost, was)
	}
	return err
}

// gone tells whether the mesh knows under that name a node whose disk was lost.
func (s *stage) gone(name string) bool {
	return slices.ContainsFunc(s.all(), func(p *patient) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.Contains(p.lost, name)
	})
}

// called is the node of a plan that the mesh knows under that name.
func (s *stage) called(name string) string {
	for _, p := range s.all() {
		if p.node.Called() == name {
			return p.node.Name()
		}
	}
	return name
}

// olderData is what a node says that refuses to start on such a disk.
const olderData = "it is an old copy"

// logTells tells whether the end of a log has a text.
func logTells(path, text string) bool {
	b, _ := os.ReadFile(path)
	return strings.Contains(string(b[max(0, len(b)-2048):]), text)
}

// heal starts what is down, and waits until all nodes are active.
func (s *stage) heal(ctx context.Context) error {
	if s.remote != "" {
		return nil
	}
	for _, p := range s.all() {
		p.mu.Lock()
		p.down = 0
		err := p.node.Resume()
		if err == nil && !p.node.Running() {
			err = p.startLocked()
		}
		p.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%s: %w", p.node.Name(), err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*startPatience)
	defer cancel()
	return poll(ctx, "all nodes are active", func() error { return s.allActive(ctx) })
}

// allActive says which node is not. What the mesh says of nodes whose disks were lost
// does not matter.
func (s *stage) allActive(ctx context.Context) error {
	nodes, err := s.observer.Nodes(ctx)
	if err != nil {
		return err
	}
	states := map[string]string{}
	for _, n := range nodes {
		states[n.Name] = n.State
	}
	var not []string
	for _, n := range s.mesh.Nodes() {
		if state := states[n.Called()]; state != "active" {
			not = append(not, n.Called()+" is "+orElse(state, "not a member"))
		}
	}
	if len(not) > 0 {
		return errors.New(strings.Join(not, ", "))
	}
	return nil
}

// sample records what the nodes take of memory and disk, until ctx ends.
func (s *stage) sample(ctx context.Context) {
	for {
		for _, n := range s.mesh.Nodes() {
			if memory, disk, err := n.Usage(); err == nil && memory > 0 {
				s.tell(history.Event{Kind: history.Sample, Who: n.Name(), Memory: memory, Disk: disk})
			}
		}
		if !wait(ctx, observerPeriod) {
			return
		}
	}
}
