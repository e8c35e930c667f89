package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshq/meshq/transport/wire"
)

func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s, _ := mustOpen(t, Options{Dir: dir})
	_, _, err := Open(small(t, Options{Dir: dir}))
	if want := fmt.Sprintf("data directory %s is in use by another process", dir); !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, rec := mustOpen(t, Options{Dir: dir})
	if rec.Boot != 2 {
		t.Errorf("boot %d", rec.Boot)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOverloaded(t *testing.T) {
	entered, hold := make(chan struct{}, 1), make(chan struct{})
	var armed atomic.Bool
	s, _ := mustOpen(t, Options{Dir: t.TempDir(), QueueBytes: 10_000, cut: func(l string) {
		if l == "before meta commit" && armed.CompareAndSwap(true, false) {
			entered <- struct{}{}
			<-hold
		}
	}})
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	armed.Store(true)
	var wg sync.WaitGroup
	commit := func() error {
		wg.Add(1)
		err := s.Commit([]wire.Op{putOp("k", make([]byte, 1000))}, func(_ uint64, err error) {
			if err != nil {
				t.Errorf("commit: %v", err)
			}
			wg.Done()
		})
		if err != nil {
			wg.Done()
		}
		return err
	}
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	<-entered
	taken := 0
	var err error
	for ; taken < 100 && err == nil; taken++ {
		err = commit()
	}
	close(hold)
	if !errors.Is(err, ErrOverloaded) || taken < 5 || taken > 11 {
		t.Errorf("after %d commits: %v", taken, err)
	}
	wg.Wait()
	mustCommit(t, s, putOp("k", nil))
}

// TestFailed: after a failed write nothing is confirmed any more.
func TestFailed(t *testing.T) {
	var s *Store
	failed := make(chan error, 10)
	var armed atomic.Bool
	s, _ = mustOpen(t, Options{Dir: t.TempDir(), ScrubRate: -1, OnFailed: func(err error) { failed <- err }, cut: func(l string) {
		if l == "before data commit" && armed.Load() {
			// What Badger says, and only says, when an fsync of the value log fails.
			s.committer.head.in.log.Errorf("Error while curlf sync: %v\n", errors.New("input/output error"))
		}
	}})
	mustCommit(t, s, batchOp(testBatch(5, laneA, 0, 1, 100)))
	armed.Store(true)
	if _, err := tryCommit(s, batchOp(testBatch(5, laneA, 1, 1, 100))); !errors.Is(err, ErrFailed) {
		t.Errorf("got %v", err)
	}
	if err := <-failed; !errors.Is(err, ErrFailed) {
		t.Errorf("told %v", err)
	}
	if _, err := tryCommit(s, putOp("k", nil)); !errors.Is(err, ErrFailed) {
		t.Errorf("later commit: %v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
	if len(failed) > 0 {
		t.Error("told twice")
	}
}

func TestBadChecksumIsRefused(t *testing.T) {
	s, _ := mustOpen(t, Options{Dir: t.TempDir()})
	defer func() { _ = s.Close() }()
	b := testBatch(5, laneA, 0, 1, 100)
	b.Checksum++
	if _, err := tryCommit(s, putOp("k", nil), batchOp(b)); !errors.Is(err, wire.ErrBadBatch) {
		t.Errorf("got %v", err)
	}
	wantRecords(t, s, "", nil, 10, false)
}

func TestLazyPrefixes(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, LazyPrefixes: [][]byte{{'r'}, {0xff}}}
	s, _ := mustOpen(t, o)
	mustCommit(t, s, putOp("a", nil), putOp("r", nil), putOp("r1", nil), putOp("s", nil), putOp("\xff1", nil))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, rec := mustOpen(t, o)
	defer func() { _ = s.Close() }()
	if len(rec.Records) != 2 || string(rec.Records[0].Key) != "a" || string(rec.Records[1].Key) != "s" {
		t.Errorf("records %q", rec.Records)
	}
	wantRecords(t, s, "r", nil, 10, false, "r=", "r1=")
	wantRecords(t, s, "\xff", nil, 10, false, "\xff1=")
}

func TestInterval(t *testing.T) {
	dir := t.TempDir()
	s, _ := mustOpen(t, Options{Dir: dir, Sync: SyncInterval})
	mustCommit(t, s, putOp("a", nil), batchOp(testBatch(5, laneA, 0, 1, 100)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, rec := mustOpen(t, Options{Dir: dir, Sync: SyncInterval})
	if rec.DamagedAll || len(rec.Refs) != 1 || len(rec.Records) != 1 {
		t.Errorf("recovered %+v", rec)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// As if the machine had stopped.
	id, err := loadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	id.flags, id.machine = flagInterval, id.machine+1
	if err := id.save(dir); err != nil {
		t.Fatal(err)
	}
	s, rec = mustOpen(t, Options{Dir: dir})
	defer func() { _ = s.Close() }()
	if !rec.DamagedAll {
		t.Error("not reported")
	}
}

// TestSpaceComesBack keeps a bounded backlog through many times its size.
func TestSpaceComesBack(t *testing.T) {
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	s, _ := mustOpen(t, Options{Dir: dir, Registerer: registry, sparseAge: 1, ScrubRate: -1})
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	// One batch in a hundred stays for ever: segments that hold only these are emptied.
	const backlog, size = 64, 32 << 10
	var kept []wire.Batch
	peak := int64(0)
	n := 3000
	if testing.Short() {
		n = 1500
	}
	for i := range n {
		b := testBatch(5, laneA, wire.Offset(i), 1, size)
		ops := []wire.Op{batchOp(b)}
		if i%100 == 0 {
			kept = append(kept, b)
		}
		if at := i - backlog; at >= 0 && at%100 != 0 {
			ops = append(ops, freeOp(5, laneA, wire.Offset(at), wire.Offset(at+1)))
		}
		mustCommit(t, s, ops...)
		if i%100 == 99 {
			peak = max(peak, diskBytes(filepath.Join(dir, "segments")))
		}
	}
	for at := n - backlog; at < n; at++ {
		if at%100 != 0 {
			mustCommit(t, s, freeOp(5, laneA, wire.Offset(at), wire.Offset(at+1)))
		}
	}
	wantBatches(t, s, 5, laneA, all, 1<<30, kept...)
	live := int64(backlog+len(kept)) * size
	t.Logf("%d MiB written, live at most %d KiB, on disk at most %d KiB", n*size>>20, live>>10, peak>>10)
	// Live data fourfold (a segment is emptied below a quarter), and a handful of segments that are
	// being filled, prepared, emptied and removed, each with its memtables.
	if limit := 4*live + 16<<20; peak > limit {
		t.Errorf("%d bytes on disk, limit %d", peak, limit)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 7 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
}

// TestManySmallBatches: two million small batches open fast, and cost no memory
// by themselves.
func TestManySmallBatches(t *testing.T) {
	n := 2_000_000
	if testing.Short() {
		n = 200_000
	}
	dir := t.TempDir()
	o := Options{Dir: dir, SegmentBytes: 256 << 20, Sync: SyncInterval, ScrubRate: -1}
	s, _ := mustOpen(t, o)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	records := bytes.Repeat([]byte{7}, 64)
	sum := wire.Checksum(records)
	var base wire.Offset
	before := heap()
	for range n / 5000 {
		ops := make([]wire.Op, 5000)
		for i := range ops {
			ops[i] = batchOp(wire.Batch{BatchHeader: wire.BatchHeader{
				Count: 1, Partition: wire.PartitionID(i % 100), Lane: laneA, Base: base + wire.Offset(i/100), Stamp: 1,
				Producer: wire.ProducerID(i % 100), Sequence: uint64(base) + uint64(i/100), Length: 64, Checksum: sum}, Records: records})
		}
		base += 50
		mustCommit(t, s, ops...)
	}
	t.Logf("heap grew by %d KiB", (int64(heap())-int64(before))>>10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // first by keys, then by summaries
		before = heap()
		start := time.Now()
		s, rec := mustOpen(t, o)
		took := time.Since(start)
		refs := len(rec.Refs)
		runtime.KeepAlive(rec)
		grew := int64(heap()) - int64(before)
		t.Logf("open took %v: %d refs, heap grew by %d KiB", took, refs, grew>>10)
		if refs != 100 {
			t.Errorf("%d refs", refs)
		}
		if took > 3*time.Second {
			t.Errorf("open took %v", took)
		}
		if grew > 48<<20 {
			t.Errorf("heap grew by %d bytes", grew)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadersAndSegments reads while segments are sealed, emptied and dropped.
func TestReadersAndSegments(t *testing.T) {
	s, _ := mustOpen(t, Options{Dir: t.TempDir(), sparseAge: 1, OpenSegments: 1, ScrubFirstRate: 1 << 30})
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	var end atomic.Uint64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for r := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// The batches that stay are always there.
				top := end.Load()
				if top < 10 {
					runtime.Gosched()
					continue
				}
				at := wire.Offset((uint64(i*7+r) % (top / 10)) * 10)
				got, damaged, err := s.Read(5, laneA, wire.Runs{wire.Span(at, at+1)}, 1)
				if err != nil || len(damaged) > 0 || len(got) != 1 || got[0].Base != at {
					t.Errorf("read %d: %d batches, damaged %v, %v", at, len(got), damaged, err)
					return
				}
			}
		})
	}
	for i := range 800 {
		ops := []wire.Op{batchOp(testBatch(5, laneA, wire.Offset(i), 1, 16<<10))}
		if i%10 != 0 {
			ops = append(ops, freeOp(5, laneA, wire.Offset(i), wire.Offset(i+1)))
		}
		mustCommit(t, s, ops...)
		end.Store(uint64(i + 1))
	}
	close(stop)
	wg.Wait()
}

// TestHeadIsSealedWhenEmpty: also the head gives its space back.
func TestHeadIsSealedWhenEmpty(t *testing.T) {
	dropped := make(chan struct{}, 100)
	s, _ := mustOpen(t, Options{Dir: t.TempDir(), SegmentBytes: 4 << 20, ScrubRate: -1, cut: func(l string) {
		if l == "after remove" {
			dropped <- struct{}{}
		}
	}})
	defer func() { _ = s.Close() }()
	for i := range 20 {
		mustCommit(t, s, batchOp(testBatch(5, laneA, wire.Offset(i), 1, 64<<10)))
	}
	mustCommit(t, s, freeOp(5, laneA, 0, 20))
	select {
	case <-dropped:
	case <-time.After(20 * time.Second):
		t.Fatal("the head was not given back")
	}
}

func TestCoalesce(t *testing.T) {
	a := sizedRef{wire.BatchRef{Partition: 1, Lane: laneA, Base: 0, Count: 3, Producer: 7, Sequence: 10, Stamp: 5}, 100}
	b := sizedRef{wire.BatchRef{Partition: 1, Lane: laneA, Base: 3, Count: 2, Producer: 7, Sequence: 13, Stamp: 6}, 100}
	other := b
	other.Producer = 8
	if got := coalesce(coalesce(nil, a), b); len(got) != 1 || got[0].Count != 5 || got[0].Stamp != 6 || got[0].bytes != 200 {
		t.Errorf("joined %+v", got)
	}
	if got := coalesce(coalesce(nil, a), other); len(got) != 2 {
		t.Errorf("other producer: %+v", got)
	}
	// What is in two segments comes once.
	if got := mergeRefs([]sizedRef{b, a, a, b}); len(got) != 1 || got[0].Count != 5 {
		t.Errorf("merged %+v", got)
	}
}

func TestSummary(t *testing.T) {
	dir := t.TempDir()
	want := &summary{segment: 3, group: 9, batches: 4}
	for i := range 100 {
		want.refs = append(want.refs, sizedRef{wire.BatchRef{Partition: wire.PartitionID(i / 10), Lane: laneA, Base: wire.Offset(i * 5),
			Count: 5, Producer: wire.ProducerID(i % 3), Sequence: ^uint64(0) - 2, Stamp: uint64(i) << 40}, uint64(i)})
	}
	if err := want.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := readSummary(dir)
	if err != nil || got.segment != 3 || got.group != 9 || got.batches != 4 || !slices.Equal(got.refs, want.refs) {
		t.Errorf("got %+v, %v", got, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, summaryName))
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, err := decodeSummary(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, errDamaged) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
		if _, err := decodeSummary(bytes.NewReader(b[:i]), int64(i)); !errors.Is(err, errDamaged) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}
