package chaos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/plan"
)

// leaveFree is what a disk that is full has left: less than a node wants to have free
// before it takes messages, and enough for acks.
const leaveFree = 96 << 20

func diskFull(f *fault) (func() error, error) {
	var lifts []func()
	end := func() error {
		for _, lift := range lifts {
			lift()
		}
		return nil
	}
	for _, p := range f.nodes {
		lift, err := p.node.FillDisk(leaveFree)
		if err != nil {
			return end, err
		}
		lifts = append(lifts, lift)
	}
	return end, nil
}

// diskStall lets writes and syncs wait for By.
func diskStall(f *fault) (func() error, error) {
	return nil, f.each(func(p *patient) error {
		lift, err := p.node.StallDisk()
		if err == nil {
			wait(f.n.heal, time.Duration(f.By))
			lift()
		}
		return err
	})
}

// slowDiskRun is how long a slow disk works before it stands still again.
const slowDiskRun = 20 * time.Millisecond

func diskSlow(f *fault) (func() error, error) {
	var lifts []func()
	end := func() error {
		for _, lift := range lifts {
			lift()
		}
		return nil
	}
	for _, p := range f.nodes {
		lift, err := p.node.SlowDisk(time.Duration(f.By), slowDiskRun)
		if err != nil {
			return end, err
		}
		lifts = append(lifts, lift)
	}
	return end, nil
}

// diskError lets all syncs fail. A node that goes on then would confirm what it does not
// have.
func diskError(f *fault) (func() error, error) {
	return f.rise, f.each(func(p *patient) error {
		return p.fall("its disk failed", func() error {
			if !p.node.Running() {
				return errors.New(p.node.Name() + " was down")
			}
			if err := p.node.FailDisk(); err != nil {
				return err
			}
			patience := time.After(failPatience)
			for {
				select {
				case <-p.node.Exited():
					f.say("%s stopped itself with exit code %d: %s", p.node.Name(), p.node.ExitCode(), lastLine(p.node.Log()))
					return nil
				case <-time.After(stirEvery):
					f.stir()
				case <-patience:
					return &breachError{"Stop", fmt.Sprintf("%s has not stopped itself %v after its disk failed", p.node.Name(), failPatience)}
				}
			}
		})
	})
}

// stirEvery is how often a mesh with a node whose disk has failed is given something to
// write.
const stirEvery = 2 * time.Second

// stir has all members that can be reached write something, for a node that keeps no
// replica of a queue that is used may have nothing to write: a queue is created and deleted.
func (f *fault) stir() {
	const name = "stirred"
	ctx, cancel := context.WithTimeout(f.n.alive, stirEvery)
	defer cancel()
	if _, err := f.n.observer.CreateQueue(ctx, name, client.Settings{}); err == nil {
		_ = f.n.observer.DeleteQueue(ctx, name) // there is no harm in one that stays
	}
}

// hurt kills nodes and hurts a file of each.
func hurt(how func(f *fault, n *Node) (string, error)) deed {
	return func(f *fault) (func() error, error) {
		return f.rise, f.each(func(p *patient) error {
			return p.fall("killed", func() error {
				if err := p.node.Kill(); err != nil {
					return err
				}
				what, err := how(f, p.node)
				if what != "" {
					f.say("%s: %s", p.node.Name(), what)
				}
				return err
			})
		})
	}
}

// wipe takes the disk of nodes for good: new nodes start in their place.
func wipe(f *fault) (func() error, error) {
	return f.rise, f.each(func(p *patient) error {
		return p.fall("its disk is lost", func() error {
			if err := p.node.Kill(); err != nil {
				return err
			}
			return p.wipe()
		})
	})
}

// prepare does what has to be done before the time of a fault: a disk can only be set
// back to a moment that was kept.
func prepare(f *fault) {
	if f.Kind != plan.Rollback {
		return
	}
	f.n.work.Go(func() {
		if !f.n.at(max(0, f.At-f.By)) {
			return
		}
		for _, name := range f.On {
			p := f.n.patient(name)
			if p == nil {
				continue
			}
			p.mu.Lock()
			s, err := p.node.Snapshot()
			if err == nil {
				p.kept = s
			}
			p.mu.Unlock()
			if err != nil {
				f.n.opts.say("%s  no copy of the disk of %s was made: %v", clock(f.n.record.now()), name, err)
			}
		}
	})
}

func rollback(f *fault) (func() error, error) {
	return f.rise, f.each(func(p *patient) error {
		return p.fall("killed", func() error {
			if err := p.node.Kill(); err != nil {
				return err
			}
			if p.kept == nil {
				return errors.New("no copy of the disk of " + p.node.Name() + " was made in time")
			}
			return p.node.Rollback(p.kept)
		})
	})
}

// Files of a node's store, by what is in them (see package store).
var (
	batchFiles  = []string{"segments/*/*.vlog", "segments/*/*.mem"}
	recordFiles = []string{"meta/*.mem", "meta/*.vlog", "meta/*.sst"}
)

// tearTail makes the last write of a node one that was only begun.
func tearTail(f *fault, n *Node) (string, error) {
	return n.Damage(Damage{Files: batchFiles, Harm: Tear, Bytes: 100})
}

// forget takes the last writes off the logs of a node, batches and records. A group is
// some kilobytes.
func forget(f *fault, n *Node) (string, error) {
	bytes := int64(max(1, f.Count)) * 4096
	batches, err := n.Damage(Damage{Files: batchFiles, Harm: Tear, Bytes: bytes})
	if err != nil && !errors.Is(err, ErrNoFile) {
		return batches, err
	}
	records, err := n.Damage(Damage{Files: recordFiles, Harm: Tear, Bytes: bytes})
	return strings.Trim(batches+", "+records, ", "), err
}

func flipRecord(f *fault, n *Node) (string, error) {
	return n.Damage(Damage{Files: recordFiles, Harm: Flip})
}

// spoilSegment makes a segment one that does not open; its list of tables is no list
// any more.
func spoilSegment(f *fault, n *Node) (string, error) {
	return n.Damage(Damage{Files: []string{"segments/*/MANIFEST"}, Harm: Halve})
}

// damage flips bits of what nodes have stored, while they run.
func damage(f *fault) (func() error, error) {
	return nil, f.each(func(p *patient) error {
		what, err := p.node.Damage(Damage{Files: batchFiles, Harm: Flip})
		if err == nil {
			f.say("%s: %s", p.node.Name(), what)
		}
		return err
	})
}
