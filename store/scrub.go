package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// scrub is the scrubber's goroutine: it re-reads all that is live, first fast (a
// stopped node's files may have been damaged), then slowly for ever.
func (s *Store) scrub() {
	if s.o.ScrubRate < 0 {
		return
	}
	rate := s.o.ScrubFirstRate
	for s.ctx.Err() == nil {
		began := time.Now()
		s.scrubRecords(rate)
		s.index.mu.Lock()
		all := slices.Clone(s.index.segments)
		s.index.mu.Unlock()
		for _, seg := range all {
			if err := s.scrubSegment(seg, rate); err != nil && !errors.Is(err, errGone) && s.ctx.Err() == nil {
				s.o.Logger.Error("segment cannot be read", "segment", seg.id, "err", err)
				s.damage(0, wire.Lane{}, nil)
			}
		}
		s.o.cut("scrubbed")
		rate = s.o.ScrubRate
		// With little to read a pass is over at once; one a minute is enough.
		if rest := time.Minute - time.Since(began); rest > 0 && !s.pause(rest) {
			return
		}
	}
}

// scrubChunk is what is read with one iterator, and at full speed.
const scrubChunk = 1 << 20

// pace waits so that n bytes a chunk make the rate.
func (s *Store) pace(n int, rate int64) bool {
	return s.pause(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
}

func (s *Store) scrubRecords(rate int64) {
	from := []byte{keyRecord}
	for {
		n := 0
		err := s.scrubSome(from, &n, &from)
		if errors.Is(err, errSkip) && s.pace(n, rate) {
			continue
		}
		if err != nil && !errors.Is(err, errSkip) {
			s.o.Logger.Error("records cannot be read", "err", err)
			s.damage(0, wire.Lane{}, nil)
		}
		return
	}
}

func (s *Store) scrubSome(from []byte, n *int, next *[]byte) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("panic: %v: %w", x, errDamaged)
		}
	}()
	return eachValue(s.meta.db, []byte{keyRecord}, from, func(key, stored []byte) error {
		if *n >= scrubChunk {
			*next = slices.Clone(key)
			return errSkip
		}
		*n += len(key) + len(stored)
		if _, err := checkValue(key, stored); err != nil {
			s.reportRecord(key[1:])
		}
		return nil
	})
}

// scrubbing is one pass over one segment.
type scrubbing struct {
	s      *Store
	seg    *segment
	sealed bool
	next   []byte // key to go on from
	lane   laneKey
	seen   wire.Runs // batches of lane that have keys
	lanes  map[laneKey]struct{}
	last   bool
}

func (s *Store) scrubSegment(seg *segment, rate int64) error {
	s.index.mu.Lock()
	sealed := seg.sealed
	s.index.mu.Unlock()
	b := &scrubbing{s: s, seg: seg, sealed: sealed, next: []byte{keyBatch}, lanes: make(map[laneKey]struct{})}
	for !b.last {
		n, err := b.chunk()
		if err != nil {
			return err
		}
		if !s.pace(n, rate) {
			return nil
		}
	}
	if !sealed {
		return nil // it grew meanwhile: what has no key may be newer
	}
	b.finishLane()
	s.index.mu.Lock()
	missing := make(map[laneKey]wire.Runs)
	for k, p := range seg.parts {
		if _, ok := b.lanes[k]; !ok {
			missing[k] = p.live.Clone()
		}
	}
	s.index.mu.Unlock()
	for k, runs := range missing {
		s.loseLive(seg, k, runs)
	}
	return nil
}

// finishLane reports what should be in the lane and has no key.
func (b *scrubbing) finishLane() {
	if !b.sealed || len(b.seen) == 0 {
		return
	}
	b.lanes[b.lane] = struct{}{}
	for _, run := range b.s.index.liveIn(b.seg, b.lane, wire.Span(0, ^wire.Offset(0))) {
		if missing := b.seen.Missing(run); len(missing) > 0 {
			b.s.loseLive(b.seg, b.lane, missing)
		}
	}
}

func (b *scrubbing) chunk() (n int, err error) {
	db, err := b.s.segments.acquire(b.seg)
	if err != nil {
		return 0, err
	}
	defer b.s.segments.release(b.seg)
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("panic: %v: %w", x, errDamaged)
		}
	}()
	txn := db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyBatch}})
	defer it.Close()
	for it.Seek(b.next); it.Valid(); it.Next() {
		item := it.Item()
		if n >= scrubChunk || b.s.ctx.Err() != nil {
			b.next = item.KeyCopy(nil)
			return n, nil
		}
		n += batchKeyBytes
		ref, err := decodeBatchKey(item.Key())
		if err != nil {
			return n, err
		}
		k, run := laneKey{ref.Partition, ref.Lane}, refRun(&ref)
		if k != b.lane || len(b.seen) == 0 {
			b.finishLane()
			b.lane, b.seen = k, nil
		}
		b.seen.Add(run)
		if len(b.s.index.liveIn(b.seg, k, run)) == 0 {
			continue
		}
		bad := false
		err = item.Value(func(stored []byte) error {
			n += len(stored)
			_, err := checkBatch(item.Key(), stored)
			bad = err != nil
			return nil
		})
		if err != nil || bad {
			b.s.loseLive(b.seg, k, wire.Runs{run})
		}
	}
	b.last = true
	return n, nil
}
