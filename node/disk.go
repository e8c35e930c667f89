package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport/wire"
)

// disk executes what the machine asks of the store and brings the answers to the
// loop. Its queues are bounded by what the machine has under way; nothing here makes
// the store's committer wait.
type disk struct {
	store disker
	in    *inbox
	fail  func(error) // stops the node
	log   *slog.Logger

	// Only the loop uses these.
	commits  []*commit // whose Persisted is not given yet, in order
	held     int       // of commits: not with the store
	retrying bool      // a retry of what is held is under way

	mu    sync.Mutex // jobs, ended
	jobs  []func()
	ended bool
	more  *sync.Cond // on mu
}

// disker is what the shell needs of the store.
type disker interface {
	Commit(ops []wire.Op, done func(commit uint64, err error)) error
	Read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int) ([]wire.Batch, wire.Runs, error)
	Scan(prefix, after []byte, limit int) ([]wire.StoredRecord, bool, error)
}

var _ disker = (*store.Store)(nil)

// readers is how many reads and scans are under way at most.
const readers = 4

func newDisk(s disker, in *inbox, fail func(error), log *slog.Logger) *disk {
	d := &disk{store: s, in: in, fail: fail, log: log}
	d.more = sync.NewCond(&d.mu)
	return d
}

// commit is one Persist of the machine, until its Persisted is given. Only the loop
// uses it.
type commit struct {
	token     core.Token
	ops       []wire.Op
	submitted bool // the store has it
	done      bool
	number    uint64 // of the group, when done
}

// retryCommit is how long a commit that the store had no room for waits.
const retryCommit = 5 * time.Millisecond

// persist starts a commit. What the store has no room for now is held, and all after
// it, in order: the machine sees that its disk is late, and what it holds is bounded by
// what it lets wait for its disk.
func (d *disk) persist(token core.Token, ops []wire.Op) {
	c := &commit{token: token, ops: ops}
	d.commits = append(d.commits, c)
	if d.held++; d.held == 1 {
		d.submit(c)
	}
}

// submit gives c to the store and tells whether the next may follow.
func (d *disk) submit(c *commit) bool {
	err := d.store.Commit(c.ops, func(number uint64, err error) {
		d.in.force(item{committed: c, id: number, err: err})
	})
	switch {
	case err == nil:
		c.submitted = true
		d.held--
		return true
	case roomless(err):
		d.retry()
	default:
		// The machine counts on the order of its commits: without this one it cannot go on.
		d.fail(fmt.Errorf("commit: %w", err))
	}
	return false
}

func roomless(err error) bool {
	return errors.Is(err, store.ErrOverloaded) || errors.Is(err, store.ErrFull)
}

// retry submits what is held a little later.
func (d *disk) retry() {
	if d.retrying {
		return
	}
	d.retrying = true
	time.AfterFunc(retryCommit, func() {
		d.in.force(item{ask: func(machine) {
			d.retrying = false
			for _, c := range d.commits {
				if !c.submitted && !d.submit(c) {
					return
				}
			}
		}})
	})
}

// finished takes the result of a commit and returns the Persisted events that are due,
// in the order of the Persists.
func (d *disk) finished(c *commit, number uint64, err error) (due []core.Persisted) {
	switch {
	case err == nil:
		c.done, c.number = true, number
	case roomless(err): // nothing of it was done
		c.submitted = false
		d.held++
		d.retry()
	default:
		d.fail(fmt.Errorf("commit: %w", err))
	}
	for len(d.commits) > 0 && d.commits[0].done {
		if first := d.commits[0]; first.token != 0 {
			due = append(due, core.Persisted{Token: first.token, Commit: first.number})
		}
		d.commits[0] = nil
		d.commits = d.commits[1:]
	}
	return due
}

func (d *disk) read(r core.Read) {
	d.push(func() {
		batches, damaged, err := d.store.Read(r.Partition, r.Lane, r.Runs, r.MaxBytes)
		if err != nil {
			d.fail(fmt.Errorf("read lane %s of partition %s: %w", r.Lane, r.Partition, err))
			return
		}
		d.in.force(item{
			event: core.ReadDone{Token: r.Token, Batches: batches, Damaged: damaged}, size: weighBatches(batches),
		})
	})
}

func (d *disk) scan(s core.Scan) {
	d.push(func() {
		records, more, err := d.store.Scan(s.Prefix, s.After, s.Limit)
		if err != nil {
			d.fail(fmt.Errorf("scan records %q: %w", s.Prefix, err))
			return
		}
		d.in.force(item{event: core.ScanDone{Token: s.Token, Records: records, More: more}})
	})
}

func (d *disk) push(job func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ended {
		d.jobs = append(d.jobs, job)
		d.more.Signal()
	}
}

// waiting is how many reads and scans wait for a reader.
func (d *disk) waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.jobs)
}

// run is one reader.
func (d *disk) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		d.mu.Lock()
		d.ended, d.jobs = true, nil
		d.mu.Unlock()
		d.more.Broadcast()
	})
	defer stop()
	for {
		d.mu.Lock()
		for len(d.jobs) == 0 && !d.ended {
			d.more.Wait()
		}
		if d.ended {
			d.mu.Unlock()
			return nil
		}
		job := d.jobs[0]
		d.jobs[0] = nil
		d.jobs = d.jobs[1:]
		d.mu.Unlock()
		job()
	}
}

// explainStore adds what was being done to an error of opening the store.
func explainStore(dir string, err error) error {
	if errors.Is(err, store.ErrInUse) {
		return &HintError{
			Err:  fmt.Errorf("data directory %s: %w", dir, ErrDataInUse),
			Hint: "another process uses it; stop that one, or name another directory with --data",
		}
	}
	return fmt.Errorf("data directory %s: %w", dir, err)
}
