package store

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/transport/wire"
)

// Keys of the meta instance begin with whose they are. A value there is
// the xxhash64 of key and value (big endian), then the value.
const (
	keyRecord   = 'u' // the records of the store's user, under their own key
	keyInternal = 'i' // the store's own: ig, is<segment>, id<segment>
)

var (
	keyGroup        = []byte("ig") // last group of the instance
	keySummaries    = []byte("is")
	keyIntents      = []byte("id")
	keySegmentGroup = []byte("g") // in a segment: its last group
)

func segmentKey(prefix []byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(prefix), id)
}

func recordSum(key, value []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(key)
	_, _ = d.Write(value)
	return d.Sum64()
}

// appendValue appends the stored form of value under the stored key.
func appendValue(dst, key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint64(dst, recordSum(key, value)), value...)
}

// checkValue returns the value in its stored form under the stored key. The
// error is errDamaged; Badger gives an empty one where it cannot read it.
func checkValue(key, stored []byte) ([]byte, error) {
	if len(stored) < 8 || binary.BigEndian.Uint64(stored) != recordSum(key, stored[8:]) {
		return nil, fmt.Errorf("record %x: %w", key, errDamaged)
	}
	return stored[8:], nil
}

// recordPartition is the partition of a record by its key (as its user wrote it): the 8
// bytes after the first, as far as there are.
func recordPartition(key []byte) (wire.PartitionID, bool) {
	if len(key) < 9 {
		return 0, false
	}
	return wire.PartitionID(binary.BigEndian.Uint64(key[1:])), true
}

// groupRecord is what each transaction leaves in its instance, so that at Open it
// is known which groups are there, and of the other instance what must be there.
// 64 bytes of value, big endian, then as any record:
//
//	0 group | 8 part | 16 flags | 24 meta | 32 segment | 40 segment group | 48 segment batches | 56 zero
type groupRecord struct {
	group   uint64
	part    uint64 // number of this transaction within the group, from 0
	flags   uint64
	meta    uint64      // last group of the meta instance
	segment segmentMark // the head
}

const (
	groupLast  = 1 // no transaction of the group follows in this instance
	groupMixed = 2 // the group is there only if the meta instance has it as well
)

func (g *groupRecord) encode() []byte {
	b := make([]byte, 64)
	for i, v := range [...]uint64{g.group, g.part, g.flags, g.meta, g.segment.id, g.segment.group, g.segment.batches} {
		binary.BigEndian.PutUint64(b[8*i:], v)
	}
	return b
}

func decodeGroup(b []byte) (g groupRecord, err error) {
	if len(b) != 64 {
		return g, fmt.Errorf("group of %d bytes: %w", len(b), errDamaged)
	}
	for i, p := range [...]*uint64{&g.group, &g.part, &g.flags, &g.meta, &g.segment.id, &g.segment.group, &g.segment.batches} {
		*p = binary.BigEndian.Uint64(b[8*i:])
	}
	return g, nil
}

// batchKey says all of a wire.BatchRef, so that going over the keys finds the batches
// without reading them. 61 bytes, big endian:
//
//	0 'b' | 1 partition | 9 lane node | 17 lane epoch | 25 base | 33 count u32 | 37 producer | 45 sequence | 53 stamp
const (
	keyBatch      = 'b'
	batchKeyBytes = 61
	laneKeyBytes  = 25
)

func appendLaneKey(dst []byte, p wire.PartitionID, l wire.Lane) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, keyBatch), uint64(p))
	dst = binary.BigEndian.AppendUint64(dst, uint64(l.Node))
	return binary.BigEndian.AppendUint64(dst, l.Epoch)
}

func appendBatchKey(dst []byte, h *wire.BatchHeader) []byte {
	dst = appendLaneKey(dst, h.Partition, h.Lane)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Base))
	dst = binary.BigEndian.AppendUint32(dst, h.Count)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Producer))
	dst = binary.BigEndian.AppendUint64(dst, h.Sequence)
	return binary.BigEndian.AppendUint64(dst, h.Stamp)
}

func decodeBatchKey(k []byte) (r wire.BatchRef, err error) {
	if len(k) != batchKeyBytes || k[0] != keyBatch {
		return r, fmt.Errorf("batch key %x: %w", k, errDamaged)
	}
	be := binary.BigEndian
	r = wire.BatchRef{
		Partition: wire.PartitionID(be.Uint64(k[1:])), Lane: wire.Lane{Node: wire.NodeID(be.Uint64(k[9:])), Epoch: be.Uint64(k[17:])},
		Base: wire.Offset(be.Uint64(k[25:])), Count: uint64(be.Uint32(k[33:])), Producer: wire.ProducerID(be.Uint64(k[37:])),
		Sequence: be.Uint64(k[45:]), Stamp: be.Uint64(k[53:]),
	}
	if r.Count == 0 || r.Count > wire.MaxBatchMessages || r.Base+wire.Offset(r.Count) < r.Base {
		return r, fmt.Errorf("batch key of %d messages: %w", r.Count, errDamaged)
	}
	return r, nil
}

func refRun(r *wire.BatchRef) wire.Run { return wire.Span(r.Base, r.Base+wire.Offset(r.Count)) }

// checkBatch returns the batch stored under key: it fits both of its checksums,
// and its header says what the key says. The error is wire.ErrBadBatch. Records
// point into stored.
func checkBatch(key, stored []byte) (wire.Batch, error) {
	b, rest, err := wire.DecodeBatch(stored)
	if err != nil {
		return wire.Batch{}, err
	}
	if len(rest) > 0 {
		return wire.Batch{}, fmt.Errorf("%w: %d bytes after it", wire.ErrBadBatch, len(rest))
	}
	if !bytes.Equal(key, appendBatchKey(make([]byte, 0, batchKeyBytes), &b.BatchHeader)) {
		return wire.Batch{}, fmt.Errorf("%w: its key is another's", wire.ErrBadBatch)
	}
	return b, nil
}
