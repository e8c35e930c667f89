package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// errGone means that the segment was dropped after it had been looked up.
var errGone = errors.New("segment is gone")

// segments opens and closes the files of segments. Sealed ones are opened on
// demand, read only, and the least recently used is closed in the background.
type segments struct {
	o    *Options
	root string
	log  *slog.Logger

	mu     sync.Mutex // guards the fields below and those of segment that say so
	change *sync.Cond // a ref was released, or an opening or closing has ended
	clock  uint64
	opened map[*segment]struct{} // sealed ones that are open
	work   sync.WaitGroup        // closings in the background
}

func newSegments(o *Options) *segments {
	m := &segments{o: o, root: filepath.Join(o.Dir, "segments"), log: o.Logger, opened: make(map[*segment]struct{})}
	m.change = sync.NewCond(&m.mu)
	return m
}

func (m *segments) path(id uint64) string { return filepath.Join(m.root, fmt.Sprintf("%08d", id)) }

func newSegment(id uint64, dir string) *segment {
	return &segment{id: id, dir: dir, parts: make(map[laneKey]*part), created: time.Now()}
}

// parseSegment reads the number of a segment's directory, also of one that is being removed.
func parseSegment(name string) (id uint64, del, ok bool) {
	if base, found := cutSuffix(name, ".del"); found {
		name, del = base, true
	}
	if len(name) < 8 {
		return 0, false, false
	}
	id, err := strconv.ParseUint(name, 10, 63)
	return id, del, err == nil
}

func cutSuffix(s, suffix string) (string, bool) {
	if len(s) >= len(suffix) && s[len(s)-len(suffix):] == suffix {
		return s[:len(s)-len(suffix)], true
	}
	return s, false
}

// unusedName is a file that is in a segment until it becomes the head: a kill while
// Badger makes its files leaves something that does not open, and nothing is lost with it.
const unusedName = "unused"

// create makes a new, open segment, to be the head once use was called.
func (m *segments) create(id uint64) (*segment, error) {
	s := newSegment(id, m.path(id))
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	// Not by way of a temporary name: there must be no moment with another file only.
	if err := os.WriteFile(filepath.Join(s.dir, unusedName), nil, 0o600); err != nil {
		return nil, err
	}
	if err := syncDir(s.dir); err != nil {
		return nil, err
	}
	in, err := openInstance(dataOptions(m.o, s.dir), m.log)
	if err != nil {
		return nil, err
	}
	s.in = in
	if err := errors.Join(syncDir(s.dir), syncDir(m.root)); err != nil {
		return nil, errors.Join(err, in.close())
	}
	return s, nil
}

// use makes it durable that s holds batches from now on.
func (m *segments) use(s *segment) error { return removeFile(filepath.Join(s.dir, unusedName)) }

// isUnused tells whether the segment in dir never was the head.
func isUnused(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err == nil, err
	}
	_, err = os.Lstat(filepath.Join(dir, unusedName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// openSealed opens a segment for reading. One that was left without Close is first
// opened for writing and closed, which turns its memtables into tables.
func (m *segments) openSealed(s *segment) (*instance, error) {
	if hasMemtables(s.dir) {
		in, err := openInstance(dataOptions(m.o, s.dir), m.log)
		if err != nil {
			return nil, err
		}
		if err := in.close(); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(s.dir); err != nil {
		return nil, err
	}
	return openInstance(dataOptions(m.o, s.dir).WithReadOnly(true), m.log)
}

// acquire opens s if need be and keeps it open until release.
func (m *segments) acquire(s *segment) (*badger.DB, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s.opening != nil && !s.gone {
		m.change.Wait()
	}
	if s.gone {
		return nil, errGone
	}
	if s.in == nil {
		busy := make(chan struct{})
		s.opening = busy
		m.mu.Unlock()
		in, err := m.openSealed(s)
		m.mu.Lock()
		s.opening = nil
		close(busy)
		m.change.Broadcast()
		if err != nil {
			return nil, err
		}
		s.in = in
		m.opened[s] = struct{}{}
	}
	s.refs++
	m.clock++
	s.used = m.clock
	m.evict(m.o.OpenSegments)
	return s.in.db, nil
}

func (m *segments) release(s *segment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.refs--
	m.change.Broadcast()
	m.evict(m.o.OpenSegments)
}

// seal counts a former head among those that may be closed.
func (m *segments) seal(s *segment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	s.used = m.clock
	m.opened[s] = struct{}{}
	m.evict(m.o.OpenSegments)
}

// evict closes the least recently used sealed segments beyond keep. Called with mu.
func (m *segments) evict(keep int) {
	for len(m.opened) > keep {
		var oldest *segment
		for s := range m.opened {
			if s.refs == 0 && (oldest == nil || s.used < oldest.used) {
				oldest = s
			}
		}
		if oldest == nil {
			return
		}
		m.shut(oldest)
	}
}

// shut closes an idle segment in the background. Called with mu.
func (m *segments) shut(s *segment) {
	in, busy := s.in, make(chan struct{})
	s.in, s.opening = nil, busy
	delete(m.opened, s)
	m.work.Go(func() {
		if err := in.close(); err != nil {
			m.log.Warn("segment did not close cleanly", "segment", s.id, "err", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		s.opening = nil
		close(busy)
		m.change.Broadcast()
	})
}

// retire makes s unusable and waits until nobody uses it and it is closed.
func (m *segments) retire(s *segment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.gone = true
	for s.refs > 0 || s.opening != nil {
		m.change.Wait()
	}
	if s.in == nil {
		return
	}
	m.shut(s)
	for s.opening != nil {
		m.change.Wait()
	}
}

// openCount is how many sealed segments are open.
func (m *segments) openCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.opened)
}

// closeAll closes all sealed segments, and waits. Nobody may use any.
func (m *segments) closeAll() {
	m.mu.Lock()
	m.evict(0)
	m.mu.Unlock()
	m.work.Wait()
}

// eachKey calls f for all batches of db in key order, without reading them. It
// stops at the first error. With versions f is called for each version of a batch, newest first.
func eachKey(db *badger.DB, versions bool, f func(ref sizedRef, version uint64) error) error {
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyBatch}, AllVersions: versions})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		r, err := decodeBatchKey(item.Key())
		if err != nil {
			return err
		}
		size := max(0, item.EstimatedSize()-batchKeyBytes)
		if err := f(sizedRef{r, uint64(size)}, item.Version()); err != nil {
			return err
		}
	}
	return nil
}

// lastGroup reads what group was the last in db, and in which version of the
// instance; 0 if there was none.
func lastGroup(db *badger.DB, key []byte) (g groupRecord, version uint64, err error) {
	err = db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		stored, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		value, err := checkValue(key, stored)
		if err != nil {
			return err
		}
		version = item.Version()
		g, err = decodeGroup(value)
		return err
	})
	return g, version, err
}

// summarise reads the keys of db. Versions from `undone` up to but not including
// `undoneEnd` are left out: they are of a group that was never completed. What such a
// group wrote again, because it had been freed in part or found damaged, is there if it was before.
func summarise(id uint64, db *badger.DB, undone, undoneEnd uint64) (*summary, error) {
	s := &summary{segment: id}
	var last wire.BatchRef // each batch has a key of its own
	err := eachKey(db, undone < undoneEnd, func(r sizedRef, version uint64) error {
		if version >= undone && version < undoneEnd || s.batches > 0 && r.BatchRef == last {
			return nil
		}
		last = r.BatchRef
		s.batches++
		s.refs = coalesce(s.refs, r)
		return nil
	})
	return s, err
}

// load makes what the summary says live in s.
func (x *index) load(s *segment, sum *summary) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s.sealed, s.summarised, s.sealedAt = true, true, time.Now()
	s.batches, s.group = sum.batches, sum.group
	for i := range sum.refs {
		r := &sum.refs[i]
		s.bytes += int64(r.bytes)
		x.addLocked(s, laneKey{r.Partition, r.Lane}, wire.Runs{refRun(&r.BatchRef)}, r.Count, r.bytes)
	}
	x.segments = append(x.segments, s)
}
