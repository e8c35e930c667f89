package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// Store is an open data directory. All methods may be called at the same time.
type Store struct {
	o        *Options
	lock     *os.File
	identity identity
	meta     *instance
	segments *segments
	index    *index
	queue    *queue
	metrics  *metrics

	committer *committer
	prepared  chan *segment // the next head, open; unbuffered, so that there is only one
	wake      chan struct{} // capacity 1: the keeper has something to do
	removals  chan struct{} // capacity 1: there is something to remove
	nextID    atomic.Uint64 // of the next segment

	commit  atomic.Uint64
	free    atomic.Int64
	full    atomic.Bool
	onDisk  atomic.Int64        // bytes, as of the keeper's last look
	report  atomic.Bool         // the file "damaged" is there
	advised map[string]struct{} // what the kernel was told; the committer's

	mu       sync.Mutex          // guards the fields below
	closed   bool                // no new readers
	reported map[uint64]struct{} // checksums of the keys of damaged records, at most maxReported
	readers  sync.WaitGroup

	ctx       context.Context // ends when Close begins
	cancel    context.CancelFunc
	committed sync.WaitGroup // the committer
	workers   sync.WaitGroup // all other goroutines
	close     sync.Once
	closeErr  error
}

// Commit queues ops as one atomic commit after all commits before it, and returns at once. The
// error (ErrOverloaded, ErrFull, ErrTooLarge, ErrClosed, ErrFailed, wire.ErrBadBatch) means that
// nothing of it is or will be done, and that done is not called.
//
// done is called once, in the order of the commits, from the committer: it must
// not block. With a nil error the ops are synced (SyncAlways), and commit
// is the number of the group that they were in. ErrFull and wire.ErrBadBatch mean, as above, that
// nothing was done; with ErrFailed the outcome is unknown and the process must stop.
//
// ops and all that they point to must not be changed until done is called. A
// batch all of whose offsets are held changes nothing. A commit with more than about
// 1 MiB or 10,000 records may be found applied up to some op after a crash, if done had not been
// called.
func (s *Store) Commit(ops []wire.Op, done func(commit uint64, err error)) error {
	for i := range ops {
		if err := checkOp(&ops[i]); err != nil {
			return err
		}
	}
	r := newRequest(ops, done)
	if r.batches && s.full.Load() {
		return ErrFull
	}
	return s.queue.put(r)
}

// Usage is what the store takes and has left. It is cheap.
func (s *Store) Usage() Usage {
	u := Usage{Bytes: s.onDisk.Load(), Full: s.full.Load(), Waiting: s.queue.len(), Open: s.segments.openCount()}
	u.Free, u.Total, _ = space(s.o.Dir)
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	u.Segments, u.Damaged = len(s.index.segments), s.index.damaged
	for _, g := range s.index.segments {
		u.LiveBytes += g.liveBytes
	}
	return u
}

// Close refuses new commits, finishes those in the queue, and closes all files.
// It takes the time of those commits and some hundred milliseconds. After a failed write
// it returns that failure, in some seconds at most, and may leave files open until the
// process ends. It may be called again.
func (s *Store) Close() error {
	s.close.Do(func() { s.closeErr = s.shutdown() })
	return s.closeErr
}

func (s *Store) shutdown() error {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.queue.close(ErrClosed)
	s.committed.Wait()
	s.workers.Wait()
	s.readers.Wait()
	var errs []error
	s.segments.closeAll()
	failed := s.committer.failed
	if failed != nil {
		s.abandon()
		s.metrics.unregister()
		return errors.Join(failed, s.lock.Close())
	}
	errs = append(errs, s.committer.head.in.close(), s.meta.close(), s.committer.file.sync(), s.committer.file.close())
	if errors.Join(errs...) == nil {
		id := s.identity
		id.flags |= flagClosed
		errs = append(errs, id.save(s.o.Dir))
	}
	s.metrics.unregister()
	return errors.Join(append(errs, s.lock.Close())...)
}

// abandonPatience bounds the closing of files on a disk that has failed.
const abandonPatience = 2 * time.Second

// abandon closes what it can after a failed write. Badger's Close tries to flush its
// memtable to the failed disk, again and again, for ever: what is not closed in
// abandonPatience ends with the process, as ErrFailed asks for.
func (s *Store) abandon() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = s.committer.head.in.close()
		_ = s.meta.close()
		_ = s.committer.file.close()
	}()
	select {
	case <-closed:
	case <-time.After(abandonPatience):
		s.o.Logger.Warn("the files of the failed store do not close; they end with the process")
	}
}

// settled is told of each synced commit of the store's user: what was reported as
// damage at Open is now known to whoever must act on it.
func (s *Store) settled() {
	if !s.report.Load() {
		return
	}
	if err := removeFile(filepath.Join(s.o.Dir, damagedName)); err != nil {
		s.o.Logger.Warn("report of damage stays for the next boot", "err", err)
	}
	s.report.Store(false)
}

// adviseWritten tells the kernel how the files of head and meta are written. Only
// the committer calls it.
func (s *Store) adviseWritten(head *segment) {
	if err := advise([]string{s.meta.dir, head.dir}, false, s.advised); err != nil {
		s.o.Logger.Debug("madvise", "dir", head.dir, "err", err)
	}
}

func (s *Store) wakeKeeper() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake already
	}
}

// damage counts, and tells the owner of the store.
func (s *Store) damage(p wire.PartitionID, l wire.Lane, runs wire.Runs) {
	s.countDamage(1)
	s.o.Logger.Warn("damaged", "partition", p, "lane", l, "offsets", runs)
	s.o.OnDamage(p, l, runs)
}

func (s *Store) countDamage(n int) {
	s.metrics.damaged.Add(float64(n))
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	s.index.damaged += uint64(n)
}

// do commits ops of the store's own and waits.
func (s *Store) do(r *request) error {
	r.internal = true
	result := make(chan error, 1)
	r.done = func(_ uint64, err error) { result <- err }
	if err := s.queue.put(r); err != nil {
		return err
	}
	return <-result
}

func (s *Store) String() string { return fmt.Sprintf("store %s", s.o.Dir) }
