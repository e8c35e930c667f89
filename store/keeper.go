package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// prepare keeps the next head ready, so that sealing costs nothing.
func (s *Store) prepare() {
	for s.ctx.Err() == nil {
		next, err := s.segments.create(s.nextID.Add(1) - 1)
		if err != nil {
			s.o.Logger.Error("next segment cannot be made", "err", err)
			if !s.pause(time.Second) {
				return
			}
			continue
		}
		select {
		case s.prepared <- next:
		case <-s.ctx.Done():
			if err := errors.Join(next.in.close(), os.RemoveAll(next.dir)); err != nil {
				s.o.Logger.Warn("unused segment is left", "segment", next.id, "err", err)
			}
			return
		}
	}
}

// pause waits, and tells whether the store is still open.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// keep is the keeper's goroutine: it writes summaries, drops segments without
// live batches, and empties those with few.
func (s *Store) keep() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var measured time.Time
	for {
		if err := s.keepOnce(); err != nil && s.ctx.Err() == nil && !errors.Is(err, ErrFull) {
			s.o.Logger.Warn("segments are not kept", "err", err)
		}
		if now := time.Now(); now.Sub(measured) > 5*time.Second {
			measured = now
			s.onDisk.Store(diskBytes(s.segments.root) + diskBytes(s.meta.dir))
			if err := makeBallast(s.o, s.free.Load()); err != nil {
				s.o.Logger.Warn("no ballast file", "err", err)
			}
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
	}
}

func (s *Store) keepOnce() error {
	// An empty group looks at the disk and at the age of the head.
	if err := s.do(&request{control: func() {}}); err != nil {
		return err
	}
	s.index.mu.Lock()
	all := slices.Clone(s.index.segments)
	s.index.mu.Unlock()
	for _, seg := range all {
		if s.ctx.Err() != nil {
			return nil
		}
		if err := s.keepSegment(seg); err != nil {
			return fmt.Errorf("segment %d: %w", seg.id, err)
		}
	}
	return s.mergeSmall()
}

// sparse is the part of live bytes below which a segment is emptied, some time
// after it was sealed: what is young often empties by itself.
const sparse = 0.25

func (s *Store) keepSegment(seg *segment) error {
	s.index.mu.Lock()
	sealed, summarised, recorded := seg.sealed, seg.summarised, seg.recorded
	empty := seg.liveOffsets == 0
	thin := float64(seg.liveBytes) < sparse*float64(seg.bytes) && time.Since(seg.sealedAt) > s.o.sparseAge
	s.index.mu.Unlock()
	switch {
	case !sealed:
		return nil
	case empty:
		return s.drop(seg)
	case !summarised:
		if err := s.summarise(seg); err != nil {
			return err
		}
		return s.record(seg)
	case !recorded:
		return s.record(seg)
	case thin:
		return s.empty(seg)
	}
	return nil
}

// manySmall is how many sealed segments of less than a quarter of the full size there may be:
// each boot seals one.
const manySmall = 8

// mergeSmall empties the oldest small segment when there are many.
func (s *Store) mergeSmall() error {
	s.index.mu.Lock()
	var small []*segment
	for _, seg := range s.index.segments {
		if seg.sealed && seg.recorded && seg.bytes < s.o.SegmentBytes/4 {
			small = append(small, seg)
		}
	}
	s.index.mu.Unlock()
	if len(small) <= manySmall {
		return nil
	}
	return s.empty(small[0])
}

// summarise writes what a freshly sealed segment holds into its directory.
func (s *Store) summarise(seg *segment) error {
	db, err := s.segments.acquire(seg)
	if err != nil {
		return err
	}
	defer s.segments.release(seg)
	if err := advise([]string{seg.dir}, true, make(map[string]struct{})); err != nil {
		s.o.Logger.Debug("madvise", "dir", seg.dir, "err", err)
	}
	sum, err := summarise(seg.id, db, 0, 0)
	if err != nil {
		return err
	}
	sum.group = seg.group
	s.o.cut("before summary")
	if err := sum.write(seg.dir); err != nil {
		return err
	}
	s.o.cut("after summary")
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	seg.summarised, seg.batches = true, sum.batches
	return nil
}

// record makes meta say that the segment is there; then the watermark need not.
func (s *Store) record(seg *segment) error {
	s.index.mu.Lock()
	value := summaryRecord{seg.batches, seg.group}.encode()
	s.index.mu.Unlock()
	err := s.do(newInternal(wire.Op{Kind: wire.OpPut, Key: segmentKey(keySummaries, seg.id)[1:], Value: value}))
	if err != nil {
		return err
	}
	s.o.cut("after summary record")
	s.index.mu.Lock()
	seg.recorded = true
	s.index.mu.Unlock()
	return s.forget(seg)
}

// newInternal is a request with the store's own records; their keys are without the first byte.
func newInternal(ops ...wire.Op) *request {
	r := newRequest(ops, nil)
	r.internal = true
	return r
}

// forget takes the mark of seg out of the watermark.
func (s *Store) forget(seg *segment) error {
	var err error
	c := s.committer
	if e := s.do(&request{control: func() {
		c.forget(func(id uint64) bool { return id != seg.id })
		err = c.file.write(&c.mark)
	}}); e != nil {
		return e
	}
	return err
}

// drop removes a segment whose batches are all freed.
func (s *Store) drop(seg *segment) error {
	err := s.do(newInternal(
		wire.Op{Kind: wire.OpPut, Key: segmentKey(keyIntents, seg.id)[1:]},
		wire.Op{Kind: wire.OpDelete, Key: segmentKey(keySummaries, seg.id)[1:]}))
	if err != nil {
		return err
	}
	s.o.cut("after drop intent")
	if err := s.forget(seg); err != nil {
		return err
	}
	s.index.drop(seg)
	s.segments.retire(seg)
	// An older watermark must not come back without the intent: it would miss the segment.
	if err := s.committer.file.sync(); err != nil {
		return err
	}
	if err := os.Rename(seg.dir, seg.dir+".del"); err != nil {
		return err
	}
	if err := syncDir(s.segments.root); err != nil {
		return err
	}
	s.o.cut("after rename")
	select {
	case s.removals <- struct{}{}:
	default:
	}
	return nil
}

// remove deletes the files of dropped segments, which takes long, and then their
// intents.
func (s *Store) remove(intents map[uint64]struct{}) {
	for {
		s.removeDropped(intents)
		intents = nil
		select {
		case <-s.ctx.Done():
			return
		case <-s.removals:
		}
	}
}

func (s *Store) removeDropped(left map[uint64]struct{}) {
	dirs, err := filepath.Glob(filepath.Join(s.segments.root, "*.del"))
	if err != nil {
		s.o.Logger.Warn("dropped segments are not found", "err", err)
	}
	ids := make(map[uint64]struct{}, len(dirs)+len(left))
	for id := range left {
		ids[id] = struct{}{}
	}
	for _, dir := range dirs {
		if s.ctx.Err() != nil {
			return
		}
		id, _, ok := parseSegment(filepath.Base(dir))
		if !ok {
			continue
		}
		s.o.cut("before remove")
		if err := os.RemoveAll(dir); err != nil {
			s.o.Logger.Warn("dropped segment is not removed", "dir", dir, "err", err)
			delete(ids, id)
			continue
		}
		ids[id] = struct{}{}
		s.o.cut("after remove")
	}
	if len(ids) == 0 {
		return
	}
	if err := syncDir(s.segments.root); err != nil {
		s.o.Logger.Warn("dropped segments may come back", "err", err)
		return
	}
	var ops []wire.Op
	for id := range ids {
		ops = append(ops, wire.Op{Kind: wire.OpDelete, Key: segmentKey(keyIntents, id)[1:]})
	}
	if err := s.do(newInternal(ops...)); err != nil && s.ctx.Err() == nil {
		s.o.Logger.Warn("intents of removed segments stay", "err", err)
	}
}

// empty copies what is live in a sealed segment to the head, and drops it.
func (s *Store) empty(seg *segment) error {
	db, err := s.segments.acquire(seg)
	if err != nil {
		return err
	}
	err = s.copyLive(seg, db)
	s.segments.release(seg)
	if err != nil {
		return err
	}
	s.o.cut("after copy")
	s.index.mu.Lock()
	left := make(map[laneKey]wire.Runs)
	for k, p := range seg.parts {
		left[k] = p.live.Clone()
	}
	s.index.mu.Unlock()
	for k, runs := range left { // its keys did not name them: they are lost
		s.loseLive(seg, k, runs)
	}
	return s.drop(seg)
}

// copyLive copies in groups, each of which is a commit of its own.
func (s *Store) copyLive(seg *segment, db *badger.DB) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("panic: %v: %w", x, errDamaged)
		}
	}()
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyBatch}})
	defer it.Close()
	var ops []wire.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		r := newInternal(ops...)
		r.from = seg
		s.o.cut("before copy")
		err := s.do(r)
		ops, size = nil, 0
		return err
	}
	for it.Rewind(); it.Valid(); it.Next() {
		if s.ctx.Err() != nil {
			return ErrClosed
		}
		item := it.Item()
		ref, err := decodeBatchKey(item.Key())
		if err != nil {
			return err
		}
		k, run := laneKey{ref.Partition, ref.Lane}, refRun(&ref)
		if len(s.index.liveIn(seg, k, run)) == 0 {
			continue
		}
		stored, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		b, err := checkBatch(item.Key(), stored)
		if err != nil {
			s.loseLive(seg, k, wire.Runs{run})
			continue
		}
		ops = append(ops, wire.Op{Kind: wire.OpBatch, Batch: b})
		if size += len(stored); size >= s.o.GroupBytes || len(ops) >= maxGroupOps {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// loseLive counts what is still live of runs in seg as damaged, and reports what
// is not held elsewhere.
func (s *Store) loseLive(seg *segment, k laneKey, runs wire.Runs) {
	var lost wire.Runs
	for _, run := range runs {
		for _, x := range s.index.liveIn(seg, k, run) {
			s.index.remove(seg, k, x)
			lost.Add(x)
		}
	}
	if lost = lost.Minus(s.index.held(k)); len(lost) > 0 {
		s.damage(k.partition, k.lane, lost)
	}
}
