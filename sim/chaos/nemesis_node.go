package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// slowRun is how long a slow node runs before it stands still again.
const slowRun = 5 * time.Millisecond

func crash(f *fault) (func() error, error) {
	return f.rise, f.each(func(p *patient) error { return p.fall("killed", p.node.Kill) })
}

func restart(f *fault) (func() error, error) {
	return f.rise, f.each(func(p *patient) error {
		return p.fall("stopped", func() error {
			if !p.node.Running() {
				return nil
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(f.n.heal), stopPatience)
			defer cancel()
			code, err := p.node.Stop(ctx)
			switch {
			case err != nil:
				return &breachError{"Stop", err.Error()}
			case code != 0:
				f.say("%s ended with exit code %d: %s", p.node.Name(), code, lastLine(p.node.Log()))
			}
			return nil
		})
	})
}

// powerCut takes all nodes down at one moment.
func powerCut(f *fault) (func() error, error) {
	nodes := make([]*Node, len(f.nodes))
	for i, p := range f.nodes {
		nodes[i] = p.node
	}
	return f.rise, together(f.nodes, func() error { return f.n.mesh.PowerCut(nodes...) })
}

// together takes nodes down with one deed.
func together(ps []*patient, how func() error) error {
	if len(ps) == 0 {
		return how()
	}
	return ps[0].fall("power cut", func() error { return together(ps[1:], how) })
}

func pause(f *fault) (func() error, error) {
	err := f.each(func(p *patient) error { return p.node.Pause() })
	return func() error { return f.each(func(p *patient) error { return p.node.Resume() }) }, err
}

func slowNode(f *fault) (func() error, error) {
	var lifts []func()
	end := func() error {
		for _, lift := range lifts {
			lift()
		}
		return nil
	}
	for _, p := range f.nodes {
		lift, err := p.node.Slow(orElse(time.Duration(f.By), slowRun), slowRun)
		if err != nil {
			return end, err
		}
		lifts = append(lifts, lift)
	}
	return end, nil
}

// twin starts a second process with the identity of a node. One of the two has to give
// way; which, is not said.
func twin(f *fault) (func() error, error) {
	err := f.each(func(p *patient) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		t, err := p.node.Twin()
		if err != nil {
			return err
		}
		p.twin = t
		return t.Start()
	})
	return func() error { return f.each(func(p *patient) error { return p.outlive(f) }) }, err
}

// outlive ends the twin of a node. If it was the node that gave way, it goes on with what
// the twin has.
func (p *patient) outlive(f *fault) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.twin
	if t == nil {
		return nil
	}
	if t.Running() {
		f.say("the copy of %s ran until it was killed", p.node.Name())
	} else {
		f.say("the copy of %s gave way with exit code %d: %s", p.node.Name(), t.ExitCode(), lastLine(t.Log()))
	}
	err := t.Kill()
	if err != nil || !p.fenced {
		return err
	}
	if err = p.inherit(); err == nil && p.down == 0 {
		err = p.startLocked()
	}
	return err
}

// inherit gives a node that is down the disk of its twin, which is down as well; mu is held.
func (p *patient) inherit() error {
	s, err := p.twin.Snapshot()
	if err == nil {
		err = errors.Join(p.node.Rollback(s), s.Remove())
	}
	p.twin, p.fenced = nil, false
	return err
}

// join starts new nodes, which stay.
func join(f *fault) (func() error, error) {
	for range max(1, f.Count) {
		spec := plan.Node{Name: fmt.Sprintf("j%d", len(f.n.mesh.Nodes())+1)}
		if err := f.n.newcomer(spec); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// newcomer starts a node that was not there.
func (n *nemesis) newcomer(spec plan.Node) error {
	p, err := n.add(spec)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startLocked()
}
