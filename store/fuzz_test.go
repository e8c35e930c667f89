package store

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

// What decodes encodes to the same bytes, and nothing panics.

func FuzzIdentity(f *testing.F) {
	f.Add(identity{node: 7, boot: 3, machine: 9, flags: 1}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := decodeIdentity(b); err == nil && !bytes.Equal(id.encode()[:40], b[:40]) {
			t.Errorf("%x is not %x", id.encode(), b)
		}
	})
}

func FuzzWatermark(f *testing.F) {
	w := watermark{commit: 9, meta: 8, sequence: 3, segments: []segmentMark{{1, 2, 3}, {2, 9, 4}}}
	f.Add(w.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := decodeWatermark(b); err == nil {
			again, err := decodeWatermark(w.append(nil))
			if err != nil || again.commit != w.commit || again.meta != w.meta || !slices.Equal(again.segments, w.segments) {
				t.Errorf("%+v is not %+v: %v", again, w, err)
			}
		}
	})
}

func FuzzSummary(f *testing.F) {
	dir := f.TempDir()
	s := &summary{segment: 3, group: 9, batches: 4, refs: []sizedRef{{wire.BatchRef{Partition: 1, Lane: laneA, Count: 5, Producer: 2}, 7}}}
	if err := s.write(dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, summaryName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSummary(bytes.NewReader(b), int64(len(b))); err == nil {
			for i := range s.refs {
				if s.refs[i].Count == 0 {
					t.Errorf("ref %+v", s.refs[i])
				}
			}
		}
	})
}

func FuzzKeysAndRecords(f *testing.F) {
	b := testBatch(5, laneA, 3, 4, 100)
	f.Add(appendBatchKey(nil, &b.BatchHeader), b.Append(nil))
	f.Add([]byte("ukey"), appendValue(nil, []byte("ukey"), (&groupRecord{group: 4}).encode()))
	f.Add([]byte(damagedMagic), encodeReport(true, []wire.PartitionID{4}))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if r, err := decodeBatchKey(key); err == nil && r.Count == 0 {
			t.Errorf("ref %+v", r)
		}
		if b, err := checkBatch(key, value); err == nil && !bytes.Equal(key, appendBatchKey(nil, &b.BatchHeader)) {
			t.Errorf("key %x is not of %+v", key, b.BatchHeader)
		}
		if v, err := checkValue(key, value); err == nil && !bytes.Equal(appendValue(nil, key, v), value) {
			t.Errorf("value %x", v)
		}
		if all, partitions, err := decodeReport(value); err == nil && !bytes.Equal(encodeReport(all, partitions)[16:len(value)-8], value[16:len(value)-8]) {
			t.Errorf("report %v %v", all, partitions)
		}
		_, _ = decodeGroup(value)
	})
}
