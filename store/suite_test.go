package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

func TestSuite(t *testing.T) {
	t.Run("model", func(t *testing.T) {
		testEngine(t, func(t *testing.T) Engine { return newModel() })
	})
	t.Run("badger", func(t *testing.T) {
		testEngine(t, func(t *testing.T) Engine {
			s, _ := mustOpen(t, Options{Dir: t.TempDir()})
			return s
		})
	})
}

var (
	laneA = wire.Lane{Node: 11, Epoch: 1}
	laneB = wire.Lane{Node: 12, Epoch: 1}
	all   = wire.Runs{wire.Span(0, 1<<40)}
)

// testEngine is the suite that any store must pass.
func testEngine(t *testing.T, open func(t *testing.T) Engine) {
	run := func(name string, f func(t *testing.T, e Engine)) {
		t.Run(name, func(t *testing.T) {
			e := open(t)
			defer func() {
				if err := e.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			f(t, e)
		})
	}
	run("a batch is read as it was written", func(t *testing.T, e Engine) {
		want := testBatch(5, laneA, 10, 3, 1000)
		mustCommit(t, e, batchOp(want))
		wantBatches(t, e, 5, laneA, all, 1<<20, want)
		wantBatches(t, e, 5, laneA, wire.Runs{wire.Span(12, 13)}, 1, want)
		wantBatches(t, e, 5, laneA, wire.Runs{wire.Span(13, 14)}, 1<<20)
		wantBatches(t, e, 5, laneB, all, 1<<20)
		wantBatches(t, e, 6, laneA, all, 1<<20)
	})
	run("batches come whole, in order, within the bytes asked for", func(t *testing.T, e Engine) {
		var batches []wire.Batch
		for i := range 20 {
			batches = append(batches, testBatch(5, laneA, wire.Offset(10*i), 10, 1000))
		}
		for _, i := range rand.Perm(20) {
			mustCommit(t, e, batchOp(batches[i]))
		}
		wantBatches(t, e, 5, laneA, all, 1<<20, batches...)
		wantBatches(t, e, 5, laneA, all, 3*1128, batches[:3]...)
		wantBatches(t, e, 5, laneA, wire.Runs{wire.Span(25, 41), wire.Span(105, 106)}, 1<<20, batches[2], batches[3], batches[4], batches[10])
	})
	run("the same batch again changes nothing", func(t *testing.T, e Engine) {
		b := testBatch(5, laneA, 0, 10, 100)
		other := b
		other.Stamp++
		mustCommit(t, e, batchOp(b), batchOp(other))
		mustCommit(t, e, batchOp(other))
		wantBatches(t, e, 5, laneA, all, 1<<20, b)
	})
	run("what is freed is not read", func(t *testing.T, e Engine) {
		a, b := testBatch(5, laneA, 0, 10, 100), testBatch(5, laneA, 10, 10, 100)
		mustCommit(t, e, batchOp(a), batchOp(b))
		mustCommit(t, e, freeOp(5, laneA, 0, 12))
		wantBatches(t, e, 5, laneA, all, 1<<20, b)
		wantBatches(t, e, 5, laneA, wire.Runs{wire.Span(10, 12)}, 1<<20)
		mustCommit(t, e, freeOp(5, laneA, 12, 20), batchOp(a), freeOp(5, laneA, 3, 20), freeOp(6, laneA, 0, 3))
		wantBatches(t, e, 5, laneA, all, 1<<20, a)
	})
	run("records", func(t *testing.T, e Engine) {
		mustCommit(t, e, putOp("a1", []byte("one")), putOp("a2", nil), putOp("b", []byte("two")), putOp("", []byte("empty key")))
		mustCommit(t, e, putOp("a1", []byte("three")), wire.Op{Kind: wire.OpDelete, Key: []byte("b")})
		wantRecords(t, e, "", nil, 10, false, "=empty key", "a1=three", "a2=")
		wantRecords(t, e, "a", nil, 1, true, "a1=three")
		wantRecords(t, e, "a", []byte("a1"), 10, false, "a2=")
		mustCommit(t, e, putOp("a3", []byte("x")), wire.Op{Kind: wire.OpDeleteRange, Key: []byte("a")}, putOp("a4", []byte("y")))
		wantRecords(t, e, "", nil, 10, false, "=empty key", "a4=y")
		mustCommit(t, e, wire.Op{Kind: wire.OpDeleteRange})
		wantRecords(t, e, "", nil, 10, false)
	})
	run("large commits", func(t *testing.T, e Engine) {
		var ops []wire.Op
		for i := range 20_000 {
			ops = append(ops, putOp(fmt.Sprintf("k%06d", i), bytes.Repeat([]byte{byte(i)}, 100)))
		}
		ops = append(ops, putOp("large", make([]byte, MaxValueBytes)))
		mustCommit(t, e, ops...)
		got, more, err := e.Scan([]byte("k"), nil, 30_000)
		if err != nil || more || len(got) != 20_000 {
			t.Fatalf("%d records, more %v, %v", len(got), more, err)
		}
		mustCommit(t, e, wire.Op{Kind: wire.OpDeleteRange, Key: []byte("k")})
		wantRecords(t, e, "k", nil, 10, false)
		ops = nil
		var want []wire.Batch
		for i := range 20_000 {
			b := testBatch(9, laneA, wire.Offset(i), 1, 16)
			ops, want = append(ops, batchOp(b)), append(want, b)
		}
		mustCommit(t, e, ops...)
		wantBatches(t, e, 9, laneA, all, 1<<30, want...)
		big := testBatch(9, laneB, 0, 1, wire.MaxBatchBytes)
		mustCommit(t, e, batchOp(big))
		wantBatches(t, e, 9, laneB, all, 1, big)
	})
	run("bad operations are refused whole", func(t *testing.T, e Engine) {
		fine := putOp("fine", nil)
		short := testBatch(5, laneA, 0, 1, 100)
		short.Length++
		for _, bad := range []struct {
			op   wire.Op
			want error
		}{
			{putOp("k", make([]byte, MaxValueBytes+1)), ErrTooLarge},
			{putOp(string(make([]byte, MaxKeyBytes+1)), nil), ErrTooLarge},
			{batchOp(testBatch(5, laneA, 0, 1, wire.MaxBatchBytes+1)), ErrTooLarge},
			{batchOp(testBatch(5, laneA, 0, 0, 10)), wire.ErrBadBatch},
			{batchOp(short), wire.ErrBadBatch},
		} {
			if _, err := tryCommit(e, fine, bad.op); !errors.Is(err, bad.want) {
				t.Errorf("got %v, want %v", err, bad.want)
			}
		}
		wantRecords(t, e, "", nil, 10, false)
	})
	run("commits are numbered upwards and done in order", func(t *testing.T, e Engine) {
		var mu sync.Mutex
		var order []int
		var numbers []uint64
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Add(1)
			err := e.Commit([]wire.Op{putOp(fmt.Sprint(i), nil)}, func(n uint64, err error) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("commit %d: %v", i, err)
				}
				order, numbers = append(order, i), append(numbers, n)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		if !slices.IsSorted(order) || !slices.IsSorted(numbers) || len(order) != 200 || numbers[0] == 0 {
			t.Errorf("order %v, numbers %v", order, numbers)
		}
	})
	t.Run("nothing after Close", func(t *testing.T) {
		e := open(t)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if _, err := tryCommit(e, putOp("k", nil)); !errors.Is(err, ErrClosed) {
			t.Errorf("commit: %v", err)
		}
		if _, _, err := e.Read(5, laneA, all, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, _, err := e.Scan(nil, nil, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("scan: %v", err)
		}
	})
}

func wantBatches(t testing.TB, e Engine, p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int, want ...wire.Batch) {
	t.Helper()
	got, damaged, err := e.Read(p, l, runs, maxBytes)
	if err != nil || len(damaged) > 0 {
		t.Fatalf("read: damaged %v, %v", damaged, err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d batches, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].BatchHeader != want[i].BatchHeader || !bytes.Equal(got[i].Records, want[i].Records) {
			t.Fatalf("batch %d: %+v, want %+v (or other records)", i, got[i].BatchHeader, want[i].BatchHeader)
		}
	}
}

func wantRecords(t testing.TB, e Engine, prefix string, after []byte, limit int, wantMore bool, want ...string) {
	t.Helper()
	records, more, err := e.Scan([]byte(prefix), after, limit)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		got = append(got, string(r.Key)+"="+string(r.Value))
	}
	if !slices.Equal(got, want) || more != wantMore {
		t.Fatalf("records %q, more %v; want %q, %v", got, more, want, wantMore)
	}
}

// script makes commits that follow from the seed alone. Each has the record "n"
// with its number, so that it is known up to where a store got.
type script struct {
	r     *rand.Rand
	n     int
	ends  map[laneKey]wire.Offset
	sizes int
}

func newScript(seed uint64, sizes int) *script {
	return &script{r: rand.New(rand.NewPCG(seed, 1)), ends: make(map[laneKey]wire.Offset), sizes: sizes}
}

// next is the next commit: batches of some lanes, records, frees of old batches.
func (s *script) next() (ops []wire.Op) {
	s.n++
	ops = append(ops, putOp("n", fmt.Appendf(nil, "%d", s.n)))
	for range s.r.IntN(4) {
		k := laneKey{wire.PartitionID(s.r.IntN(5)), wire.Lane{Node: wire.NodeID(1 + s.r.IntN(2)), Epoch: 9}}
		count := uint32(1 + s.r.IntN(20))
		if k.partition == 4 && s.r.IntN(3) > 0 {
			continue
		}
		ops = append(ops, batchOp(testBatch(k.partition, k.lane, s.ends[k], count, 100+s.r.IntN(s.sizes))))
		s.ends[k] += wire.Offset(count)
		if s.r.IntN(4) == 0 {
			s.ends[k] += wire.Offset(s.r.IntN(3)) // a gap
		}
	}
	for range s.r.IntN(3) {
		ops = append(ops, putOp(fmt.Sprintf("r%03d", s.r.IntN(300)), fmt.Appendf(nil, "%d of %d", s.r.Uint64(), s.n)))
	}
	switch s.r.IntN(12) {
	case 0:
		ops = append(ops, wire.Op{Kind: wire.OpDeleteRange, Key: fmt.Appendf(nil, "r%d", s.r.IntN(3))})
	case 1:
		ops = append(ops, wire.Op{Kind: wire.OpDelete, Key: fmt.Appendf(nil, "r%03d", s.r.IntN(300))})
	}
	for k, end := range s.sorted() {
		switch {
		case k.partition == 4 && k.lane.Node == 1: // little in it, never freed: its segments are emptied
		case s.r.IntN(8) == 0 && end > 30:
			ops = append(ops, freeOp(k.partition, k.lane, 0, end-30))
		case s.r.IntN(30) == 0:
			at := wire.Offset(s.r.IntN(int(end) + 1))
			ops = append(ops, freeOp(k.partition, k.lane, at, at+wire.Offset(s.r.IntN(20))))
		}
	}
	return ops
}

// sorted is ends in an order that follows from the seed.
func (s *script) sorted() func(func(laneKey, wire.Offset) bool) {
	keys := make([]laneKey, 0, len(s.ends))
	for k := range s.ends {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b laneKey) int {
		if a.partition != b.partition {
			return int(a.partition) - int(b.partition)
		}
		return a.lane.Compare(b.lane)
	})
	return func(yield func(laneKey, wire.Offset) bool) {
		for _, k := range keys {
			if !yield(k, s.ends[k]) {
				return
			}
		}
	}
}

// same tells whether e holds what m holds. Freed batches may be there after a
// boot, as what they were.
func same(t testing.TB, e Engine, m *model, ends map[laneKey]wire.Offset, freedMayBe bool) {
	t.Helper()
	got, more, err := e.Scan(nil, nil, 1<<20)
	if err != nil || more {
		t.Fatalf("scan: more %v, %v", more, err)
	}
	want, _, _ := m.Scan(nil, nil, 1<<20)
	if !slices.EqualFunc(got, want, func(a, b wire.StoredRecord) bool {
		return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
	}) {
		t.Fatalf("records differ: %d, want %d", len(got), len(want))
	}
	for k := range ends {
		got, damaged, err := e.Read(k.partition, k.lane, all, 1<<30)
		if err != nil || len(damaged) > 0 {
			t.Fatalf("read: damaged %v, %v", damaged, err)
		}
		lane := m.lane(k)
		at := make(map[wire.Offset]wire.Batch)
		for _, b := range lane.batches {
			at[b.Base] = b
		}
		var have wire.Runs
		for _, b := range got {
			w, ok := at[b.Base]
			if !ok || w.BatchHeader != b.BatchHeader || !bytes.Equal(w.Records, b.Records) {
				t.Fatalf("%v: batch at %d is not what was committed (known %v)", k, b.Base, ok)
			}
			if !freedMayBe && len(lane.live.Overlap(b.Run())) == 0 {
				t.Fatalf("%v: batch at %d was freed", k, b.Base)
			}
			have.Add(b.Run())
		}
		if missing := lane.live.Minus(have); len(missing) > 0 {
			t.Fatalf("%v: %v is missing", k, missing)
		}
	}
}

// TestAgainstModel runs scripts on the store and the model, through reopening.
func TestAgainstModel(t *testing.T) {
	dir := t.TempDir()
	m := newModel()
	sc := newScript(rand.Uint64(), 20_000)
	var last uint64
	var s *Store
	for boot := range 4 {
		var rec *Recovered
		s, rec = mustOpen(t, Options{Dir: dir, sparseAge: 1})
		if rec.Boot != uint64(boot+1) || rec.DamagedAll || len(rec.Damaged) > 0 {
			t.Fatalf("boot %d recovered %+v", boot, rec)
		}
		if rec.Commit < last {
			t.Fatalf("commit %d after %d was confirmed", rec.Commit, last)
		}
		same(t, s, m, sc.ends, true)
		sameRefs(t, rec.Refs, m)
		for k, l := range m.lanes { // the owner of the protocol frees again
			for _, run := range (wire.Runs{wire.Span(0, sc.ends[k])}).Minus(l.live) {
				mustCommit(t, s, freeOp(k.partition, k.lane, run.From, run.To))
			}
		}
		same(t, s, m, sc.ends, false)
		for range 150 {
			ops := sc.next()
			mustCommit(t, m, ops...)
			n := mustCommit(t, s, ops...)
			if n <= last {
				t.Fatalf("commit %d after %d", n, last)
			}
			last = n
		}
		same(t, s, m, sc.ends, false)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// sameRefs tells whether refs name all live batches, in order, as they are.
func sameRefs(t testing.TB, refs []wire.BatchRef, m *model) {
	t.Helper()
	have := make(map[laneKey]*wire.Runs)
	for i, r := range refs {
		k := laneKey{r.Partition, r.Lane}
		if have[k] == nil {
			have[k] = &wire.Runs{}
		}
		have[k].Add(refRun(&r))
		if r.Producer != 77 || r.Sequence != uint64(r.Base)+1000 {
			t.Fatalf("ref %+v", r)
		}
		if i > 0 && refs[i-1].Partition == r.Partition && refs[i-1].Lane == r.Lane && refs[i-1].Base >= r.Base {
			t.Fatalf("refs out of order: %+v, %+v", refs[i-1], r)
		}
	}
	for k, l := range m.lanes {
		var runs wire.Runs
		if have[k] != nil {
			runs = *have[k]
		}
		if missing := l.live.Minus(runs); len(missing) > 0 {
			t.Fatalf("%v: no refs for %v", k, missing)
		}
	}
}
