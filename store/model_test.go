package store

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

// Engine is what any store must offer; the suite runs on the real one and on the model.
type Engine interface {
	Commit(ops []wire.Op, done func(commit uint64, err error)) error
	Read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int) ([]wire.Batch, wire.Runs, error)
	Scan(prefix, after []byte, limit int) ([]wire.StoredRecord, bool, error)
	Close() error
}

// model is the reference: everything in memory, at once.
type model struct {
	mu      sync.Mutex
	commit  uint64
	records map[string][]byte
	history map[string]bool // key=value that ever was
	lanes   map[laneKey]*modelLane
	closed  bool
}

type modelLane struct {
	live    wire.Runs
	batches []wire.Batch // by base
}

func newModel() *model {
	return &model{records: make(map[string][]byte), history: make(map[string]bool), lanes: make(map[laneKey]*modelLane)}
}

func (m *model) Commit(ops []wire.Op, done func(uint64, error)) error {
	for i := range ops {
		if err := checkOp(&ops[i]); err != nil {
			return err
		}
	}
	m.mu.Lock()
	if m.closed {
		defer m.mu.Unlock()
		return ErrClosed
	}
	m.commit++
	n := m.commit
	for i := range ops {
		m.apply(&ops[i])
	}
	m.mu.Unlock()
	done(n, nil)
	return nil
}

func (m *model) lane(k laneKey) *modelLane {
	l := m.lanes[k]
	if l == nil {
		l = &modelLane{}
		m.lanes[k] = l
	}
	return l
}

func (m *model) apply(op *wire.Op) {
	switch op.Kind {
	case wire.OpBatch:
		l := m.lane(laneKey{op.Batch.Partition, op.Batch.Lane})
		if l.live.Covers(op.Batch.Run()) {
			return
		}
		l.live.Add(op.Batch.Run())
		l.batches = slices.DeleteFunc(l.batches, func(b wire.Batch) bool { return b.Run() == op.Batch.Run() })
		l.batches = append(l.batches, op.Batch)
		slices.SortFunc(l.batches, func(a, b wire.Batch) int { return int(a.Base) - int(b.Base) })
	case wire.OpPut:
		m.records[string(op.Key)] = bytes.Clone(op.Value)
		m.history[string(op.Key)+"="+string(op.Value)] = true
	case wire.OpDelete:
		delete(m.records, string(op.Key))
	case wire.OpDeleteRange:
		for k := range m.records {
			if strings.HasPrefix(k, string(op.Key)) {
				delete(m.records, k)
			}
		}
	case wire.OpFree:
		m.lane(laneKey{op.Partition, op.Lane}).live.Remove(op.Run)
	}
}

func (m *model) Read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int) (out []wire.Batch, _ wire.Runs, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil, ErrClosed
	}
	lane := m.lane(laneKey{p, l})
	want := lane.live.Intersect(runs)
	for _, b := range lane.batches {
		if len(want.Overlap(b.Run())) == 0 {
			continue
		}
		if len(out) > 0 && b.Size() > maxBytes {
			break
		}
		maxBytes -= b.Size()
		out = append(out, b)
	}
	return out, nil, nil
}

func (m *model) Scan(prefix, after []byte, limit int) (out []wire.StoredRecord, more bool, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, ErrClosed
	}
	for _, k := range m.keys() {
		if !strings.HasPrefix(k, string(prefix)) || after != nil && k <= string(after) {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, wire.StoredRecord{Key: []byte(k), Value: m.records[k]})
	}
	return out, false, nil
}

func (m *model) keys() []string {
	keys := make([]string, 0, len(m.records))
	for k := range m.records {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (m *model) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// testBatch is a batch whose bytes follow from where it is.
func testBatch(p wire.PartitionID, l wire.Lane, base wire.Offset, count uint32, size int) wire.Batch {
	seed := uint64(p)*1_000_003 + uint64(base)*31 + l.Epoch
	records := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, uint64(count)))
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(records[i:], r.Uint64())
	}
	return wire.Batch{
		BatchHeader: wire.BatchHeader{
			Count: count, Partition: p, Lane: l, Base: base, Stamp: uint64(base) << 16, Producer: 77, Sequence: uint64(base) + 1000,
			Length: uint64(size), Checksum: wire.Checksum(records),
		},
		Records: records,
	}
}

func batchOp(b wire.Batch) wire.Op { return wire.Op{Kind: wire.OpBatch, Batch: b} }
func putOp(key string, v []byte) wire.Op {
	return wire.Op{Kind: wire.OpPut, Key: []byte(key), Value: v}
}
func freeOp(p wire.PartitionID, l wire.Lane, from, to wire.Offset) wire.Op {
	return wire.Op{Kind: wire.OpFree, Partition: p, Lane: l, Run: wire.Span(from, to)}
}

// mustCommit commits and waits.
func mustCommit(t testing.TB, e Engine, ops ...wire.Op) uint64 {
	t.Helper()
	n, err := tryCommit(e, ops...)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return n
}

func tryCommit(e Engine, ops ...wire.Op) (uint64, error) {
	type result struct {
		n   uint64
		err error
	}
	done := make(chan result, 1)
	if err := e.Commit(ops, func(n uint64, err error) { done <- result{n, err} }); err != nil {
		return 0, err
	}
	r := <-done
	return r.n, r.err
}

func mustOpen(t testing.TB, o Options) (*Store, *Recovered) {
	t.Helper()
	s, rec, err := Open(small(t, o))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s, rec
}

// small are options for tests: little segments, and no care for the disk of the
// machine that runs them.
func small(t testing.TB, o Options) Options {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 1 << 20
	}
	if o.MinFree == 0 {
		o.MinFree, o.Reserve = 2<<20, 1<<20
	}
	if o.MaxUsed == 0 {
		o.MaxUsed = 1
	}
	if o.BallastBytes == 0 {
		o.BallastBytes = -1
	}
	if o.Logger == nil {
		o.Logger = testLogger(t)
	}
	return o
}
