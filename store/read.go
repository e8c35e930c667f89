package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// enter keeps the files open until leave.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.readers.Add(1)
	return nil
}

func (s *Store) leave() { s.readers.Done() }

// Read returns the held batches of a lane that overlap runs, whole and in order
// of offsets: at most maxBytes, but at least one if there is any. Their bytes are the caller's.
// Each fits both of its checksums (P9). What does not, or is gone, is in damaged:
// the store no longer counts it as held, and a good copy may be committed again.
// Reading goes to the disk and may wait for the group that is being committed.
func (s *Store) Read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int) (batches []wire.Batch, damaged wire.Runs, err error) {
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	r := &reading{s: s, lane: laneKey{p, l}, left: maxBytes}
	want := runs.Clone()
	for range 1000 { // what was found may be freed, or moved to another segment, before it is read
		pieces := s.index.find(r.lane, want)
		again := false
		for _, piece := range pieces {
			err := r.piece(piece)
			if errors.Is(err, errGone) {
				want.Remove(wire.Span(0, r.at))
				again = true
				break
			}
			if err != nil {
				return nil, nil, fmt.Errorf("read %s %s: %w", p, l, err)
			}
			if r.full {
				break
			}
			want.Remove(wire.Span(0, piece.run.To))
		}
		if !again {
			break
		}
	}
	return r.batches, r.damaged, nil
}

// reading is the state of one Read.
type reading struct {
	s       *Store
	lane    laneKey
	left    int         // bytes that may still be read
	at      wire.Offset // all below is read
	full    bool
	batches []wire.Batch
	damaged wire.Runs
}

// piece reads what is live of one run in one segment.
func (r *reading) piece(p piece) error {
	db, err := r.s.segments.acquire(p.segment)
	if errors.Is(err, errGone) {
		return err
	}
	if err != nil {
		r.s.o.Logger.Error("segment does not open", "segment", p.segment.id, "err", err)
		return r.lose(p.segment, p.run)
	}
	defer r.s.segments.release(p.segment)
	err = r.read(db, p)
	if err != nil && !errors.Is(err, errGone) {
		r.s.o.Logger.Error("segment cannot be read", "segment", p.segment.id, "err", err)
		return r.lose(p.segment, p.run)
	}
	return err
}

// lose counts what is still live of run in s as damaged. If that is nothing, it was
// freed or moved in between: errGone.
func (r *reading) lose(s *segment, run wire.Run) error {
	lost := r.s.index.liveIn(s, r.lane, run)
	if len(lost) == 0 {
		return errGone
	}
	for _, x := range lost {
		r.s.index.remove(s, r.lane, x)
	}
	r.s.countDamage(1)
	// A copy in another segment, if there is one, is found by the next Read.
	r.damaged.AddAll(lost.Minus(r.s.index.held(r.lane)))
	return nil
}

func (r *reading) read(db *badger.DB, p piece) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("panic: %v: %w", x, errDamaged)
		}
	}()
	txn := db.NewTransaction(false)
	defer txn.Discard()
	prefix := appendLaneKey(make([]byte, 0, batchKeyBytes), r.lane.partition, r.lane.lane)
	it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	seekFrom(txn, it, prefix, p.run.From)
	r.at = p.run.From
	for ; it.Valid() && r.at < p.run.To; it.Next() {
		item := it.Item()
		ref, err := decodeBatchKey(item.Key())
		if err != nil {
			return err
		}
		run := refRun(&ref)
		if run.From >= p.run.To {
			break
		}
		if run.To <= r.at {
			continue
		}
		if n := len(r.batches); n > 0 && r.batches[n-1].Run() == run {
			r.at = run.To // the batch before this piece reached into it
			continue
		}
		if run.From > r.at {
			if err := r.lose(p.segment, wire.Span(r.at, run.From)); err != nil {
				return err
			}
			r.at = run.From
		}
		if len(r.s.index.liveIn(p.segment, r.lane, wire.Span(r.at, min(run.To, p.run.To)))) == 0 {
			return errGone
		}
		if len(r.batches) > 0 && r.left <= 0 {
			r.full = true
			return nil
		}
		stored, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		if len(r.batches) > 0 && len(stored) > r.left {
			r.full = true
			return nil
		}
		b, err := checkBatch(item.Key(), stored)
		if err != nil {
			if err := r.lose(p.segment, run); err != nil {
				return err
			}
			r.at = run.To
			continue
		}
		r.at = run.To
		r.batches = append(r.batches, b)
		r.left -= b.Size()
	}
	if r.at < p.run.To {
		if err := r.lose(p.segment, wire.Span(r.at, p.run.To)); err != nil {
			return err
		}
		r.at = p.run.To
	}
	return nil
}

// seekFrom moves it to the batch that holds offset from, or the first after it.
func seekFrom(txn *badger.Txn, it *badger.Iterator, prefix []byte, from wire.Offset) {
	at := appendOffset(prefix, from)
	it.Seek(at)
	if it.Valid() {
		if ref, err := decodeBatchKey(it.Item().Key()); err == nil && ref.Base == from {
			return
		}
	}
	back := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: true})
	defer back.Close()
	for back.Seek(at); back.Valid(); back.Next() { // the largest key below at
		ref, err := decodeBatchKey(back.Item().Key())
		if err != nil || ref.Base+wire.MaxBatchMessages <= from {
			return
		}
		if refRun(&ref).To > from {
			it.Seek(back.Item().KeyCopy(nil))
			return
		}
	}
}

func appendOffset(prefix []byte, o wire.Offset) []byte {
	k := slices.Clone(prefix)
	for shift := 56; shift >= 0; shift -= 8 {
		k = append(k, byte(o>>shift))
	}
	return k
}

// Scan returns up to limit records whose key begins with prefix and is above
// after (nil: from the first), in order of keys; more tells whether there are others
// behind them. A damaged record is left out and reported as damage of its partition.
func (s *Store) Scan(prefix, after []byte, limit int) (records []wire.StoredRecord, more bool, err error) {
	if err := s.enter(); err != nil {
		return nil, false, err
	}
	defer s.leave()
	defer func() {
		if x := recover(); x != nil {
			records, more, err = nil, false, fmt.Errorf("scan records: panic: %v: %w", x, errDamaged)
		}
	}()
	stored := append([]byte{keyRecord}, prefix...)
	from := stored
	if after != nil {
		if next := append(append([]byte{keyRecord}, after...), 0); slices.Compare(next, from) > 0 {
			from = next
		}
	}
	err = eachValue(s.meta.db, stored, from, func(key, value []byte) error {
		if len(records) >= limit {
			more = true
			return errSkip
		}
		v, err := checkValue(key, value)
		if err != nil {
			s.reportRecord(key[1:])
			return nil
		}
		records = append(records, wire.StoredRecord{Key: slices.Clone(key[1:]), Value: slices.Clone(v)})
		return nil
	})
	if err != nil && !errors.Is(err, errSkip) {
		return nil, false, fmt.Errorf("scan records: %w", err)
	}
	return records, more, nil
}

// maxReported bounds how many damaged records are remembered as reported.
const maxReported = 10_000

// reportRecord reports a damaged record, once.
func (s *Store) reportRecord(key []byte) {
	sum := xxhash.Sum64(key)
	s.mu.Lock()
	_, known := s.reported[sum]
	if !known && len(s.reported) < maxReported {
		if s.reported == nil {
			s.reported = make(map[uint64]struct{})
		}
		s.reported[sum] = struct{}{}
	}
	s.mu.Unlock()
	if known {
		return
	}
	partition, _ := recordPartition(key)
	s.damage(partition, wire.Lane{}, nil)
}
