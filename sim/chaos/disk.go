package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// PowerCut takes the machines of all these nodes away at once, with all that was not
// synced. To others they are silent: no connection is closed. Start brings them back.
func (m *Mesh) PowerCut(nodes ...*Node) error {
	if err := m.Can(plan.PowerCut); err != nil {
		return err
	}
	errs := make([]error, len(nodes))
	var g sync.WaitGroup
	for i, n := range nodes {
		g.Go(func() { errs[i] = n.powerCut() })
	}
	g.Wait()
	return errors.Join(errs...)
}

func (n *Node) powerCut() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errClosed
	}
	n.thaw()
	if n.host.nic != nil {
		n.host.nic.port.down.Store(true)
	}
	err := n.files(n.disk.cutPower)
	n.proc.kill()
	if err == nil {
		err = n.files(n.disk.repower) // what is done to it while it is down needs it
	}
	if err != nil {
		return fmt.Errorf("chaos: power cut of %s: %w", n.name, err)
	}
	n.mesh.logger.Info("power cut", "node", n.name)
	return nil
}

// FailDisk makes all writes and syncs fail from now on, until Start.
func (n *Node) FailDisk() error {
	return n.onDisk(plan.DiskError, "fail the disk", func() error { return n.files(n.disk.cutPower) })
}

// FillDisk takes all room of the disk but so many bytes, until lift is called, which may
// be called twice. Called again it takes more.
func (n *Node) FillDisk(leave int64) (lift func(), err error) {
	err = n.onDisk(plan.DiskFull, "fill the disk", func() error {
		return n.files(func() error { return n.disk.fill(leave) })
	})
	if err != nil {
		return nil, err
	}
	return func() {
		_ = n.onDisk(plan.DiskFull, "empty the disk", func() error { return n.files(n.disk.empty) })
	}, nil
}

// StallDisk lets all that writes or syncs wait until lift is called, which may be called
// twice; a Kill ends it too.
func (n *Node) StallDisk() (lift func(), err error) {
	err = n.onDisk(plan.DiskStall, "stall the disk", func() error { return n.files(func() error { return n.disk.freeze(n.mesh.run) }) })
	if err != nil {
		return nil, err
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.thaw()
	}, nil
}

// SlowDisk lets the disk stand still for `still` after each `run`, until lift is called,
// which may be called twice: a sync takes longer by up to `still`.
func (n *Node) SlowDisk(still, run time.Duration) (lift func(), err error) {
	if still <= 0 || run <= 0 {
		return nil, fmt.Errorf("chaos: slow disk of %s: standing %v, running %v", n.name, still, run)
	}
	if err := n.onDisk(plan.DiskSlow, "slow the disk", func() error { return nil }); err != nil {
		return nil, err
	}
	return n.alternate(run, still, func() (func(), error) { return n.StallDisk() }), nil
}

// onDisk does something to the disk of a node.
func (n *Node) onDisk(kind plan.Kind, what string, do func() error) error {
	if err := n.mesh.Can(kind); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.usable()
	switch {
	case err != nil:
	case n.disk == nil:
		err = errors.New("a twin has no disk of its own")
	default:
		err = do()
	}
	if err != nil {
		return fmt.Errorf("chaos: %s of %s: %w", what, n.name, err)
	}
	return nil
}

// usable says why nothing can be done to the files of a node; mu is held.
func (n *Node) usable() error {
	switch {
	case n.closed:
		return errClosed
	case n.disk != nil && n.disk.cut:
		return errors.New("its disk has failed")
	case n.disk != nil && n.disk.frozen != nil:
		return errors.New("its disk stands still")
	}
	return nil
}

// thaw ends a StallDisk; mu is held.
func (n *Node) thaw() {
	if n.disk == nil {
		return
	}
	if err := n.disk.thaw(); err != nil {
		n.mesh.logger.Error("a disk stands still for ever", "node", n.name, "err", err)
	}
}

// down says why the files of a node cannot be replaced; mu is held.
func (n *Node) down() error {
	if n.proc.running() {
		return errors.New("it runs")
	}
	if n.closed {
		return errClosed
	}
	if n.disk != nil {
		return n.files(n.disk.repower)
	}
	return nil
}

// Snapshot is a copy of what a node had on disk at one moment.
type Snapshot struct {
	node *Node
	dir  string
}

// Remove gives back the room that the copy takes; Close does so for all.
func (s *Snapshot) Remove() error { return os.RemoveAll(s.dir) }

// Snapshot copies the files of a node as they are at one moment: a process stands still
// meanwhile. What it has written counts as there, synced or not.
func (n *Node) Snapshot() (*Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &Snapshot{n, filepath.Join(n.mesh.run.dir, fmt.Sprintf("%s.copy%d", n.name, n.mesh.run.number()))}
	if err := n.copyTo(s.dir); err != nil {
		return nil, fmt.Errorf("chaos: copy the disk of %s: %w", n.name, errors.Join(err, s.Remove()))
	}
	return s, nil
}

// copyTo copies the files; mu is held.
func (n *Node) copyTo(dir string) error {
	if err := n.usable(); err != nil {
		return err
	}
	if n.proc.running() && !n.paused {
		if !signals {
			return n.mesh.Can(plan.Twin)
		}
		defer func() { _ = n.freeze(false) }()
		if err := n.freeze(true); err != nil {
			return err
		}
	}
	return n.files(func() error { return copyTree(dir, n.data()) })
}

// Rollback replaces the files of a node that is down by a copy of them.
func (n *Node) Rollback(s *Snapshot) error {
	return n.replace("roll back", func() error { return copyTree(n.data(), s.dir) })
}

// Wipe removes the files of a node that is down: its next start is that of a new node,
// which joins under another name (see Called), because a mesh has no two of one name.
func (n *Node) Wipe() error {
	err := n.replace("wipe", func() error { return os.Mkdir(n.data(), 0o700) })
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.wiped++
		n.as = fmt.Sprintf("%s-%d", n.name, n.wiped+1)
	}
	return err
}

func (n *Node) replace(what string, by func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.down()
	if err == nil {
		n.thaw() // it would wait for whoever waits for mu
		err = n.files(func() error {
			if err := os.RemoveAll(n.data()); err != nil {
				return err
			}
			return by()
		})
	}
	if err != nil {
		return fmt.Errorf("chaos: %s %s: %w", what, n.name, err)
	}
	n.mesh.logger.Info(what, "node", n.name)
	return nil
}

// Twin makes a node with a copy of the files of this one as they are now, and addresses
// of its own. It is not started and not among the Nodes of the mesh. Copies have no file
// system of their own.
func (n *Node) Twin() (*Node, error) {
	m := n.mesh
	n.mu.Lock()
	defer n.mu.Unlock()
	t := &Node{mesh: m, as: n.as, zone: n.zone, name: fmt.Sprintf("%s-twin%d", n.name, m.run.number())}
	t.log = filepath.Join(m.run.dir, t.name+".log")
	err := n.copyTo(t.data())
	if err == nil {
		t.host, err = m.newHost(t.name, placeNode, false)
	}
	if err == nil {
		t.addrs, err = m.newAddresses(t.host)
	}
	if err == nil {
		m.mu.Lock()
		if m.closed {
			err = errClosed
		} else {
			m.twins = append(m.twins, t)
		}
		m.mu.Unlock()
	}
	if err != nil {
		if t.host != nil {
			t.host.close()
		}
		return nil, fmt.Errorf("chaos: twin of %s: %w", n.name, errors.Join(err, os.RemoveAll(t.data())))
	}
	return t, nil
}
