package store

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshq/meshq/transport/wire"
)

const benchProducers, benchSize = 64, 16 << 10

// BenchmarkCommit is 64 producers that each wait for their batch of 16 KiB to be
// synced.
func BenchmarkCommit(b *testing.B) {
	s, _ := mustOpen(b, Options{Dir: b.TempDir(), SegmentBytes: 256 << 20, ScrubRate: -1})
	defer func() { _ = s.Close() }()
	records := bytes.Repeat([]byte{7}, benchSize)
	sum := wire.Checksum(records)
	producers(b, func(p int, i uint64, done func(error)) {
		err := s.Commit([]wire.Op{batchOp(wire.Batch{BatchHeader: wire.BatchHeader{
			Count: 1, Partition: wire.PartitionID(p), Lane: laneA, Base: wire.Offset(i), Length: benchSize, Checksum: sum}, Records: records})},
			func(_ uint64, err error) { done(err) })
		if err != nil {
			done(err)
		}
	})
	b.ReportMetric(float64(b.N)/float64(s.commit.Load()), "batches/group")
}

// BenchmarkFloor is the same with nothing but append and fdatasync, grouped in the
// same way.
func BenchmarkFloor(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	records := bytes.Repeat([]byte{7}, benchSize)
	type waiting struct{ done func(error) }
	queue := make(chan waiting, benchProducers)
	var wg sync.WaitGroup
	groups := 0
	wg.Go(func() {
		var buf []byte
		for w := range queue {
			group := []waiting{w}
			for len(queue) > 0 {
				group = append(group, <-queue)
			}
			buf = buf[:0]
			for range group {
				buf = append(buf, records...)
			}
			groups++
			_, err := f.Write(buf)
			if err == nil {
				err = unix.Fdatasync(int(f.Fd()))
			}
			for _, w := range group {
				w.done(err)
			}
		}
	})
	producers(b, func(_ int, _ uint64, done func(error)) { queue <- waiting{done} })
	close(queue)
	wg.Wait()
	b.ReportMetric(float64(b.N)/float64(groups), "batches/group")
}

func producers(b *testing.B, commit func(p int, i uint64, done func(error))) {
	b.SetBytes(benchSize)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for p := range benchProducers {
		wg.Go(func() {
			result := make(chan error, 1)
			for i := uint64(0); next.Add(1) <= int64(b.N); i++ {
				commit(p, i, func(err error) { result <- err })
				if err := <-result; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}

func BenchmarkRead(b *testing.B) {
	s, _ := mustOpen(b, Options{Dir: b.TempDir(), SegmentBytes: 256 << 20, ScrubRate: -1})
	defer func() { _ = s.Close() }()
	const n = 2000
	for i := range n {
		if i%100 == 0 {
			var ops []wire.Op
			for j := range 100 {
				ops = append(ops, batchOp(testBatch(5, laneA, wire.Offset(i+j), 1, benchSize)))
			}
			mustCommit(b, s, ops...)
		}
	}
	b.SetBytes(benchSize)
	b.ResetTimer()
	for i := 0; i < b.N; {
		at := wire.Offset(i % n)
		got, damaged, err := s.Read(5, laneA, wire.Runs{wire.Span(at, n)}, 256<<10)
		if err != nil || len(damaged) > 0 || len(got) == 0 {
			b.Fatalf("%d batches, damaged %v, %v", len(got), damaged, err)
		}
		i += len(got)
	}
}
