package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/ring"
)

// Limits of what is read from outside; checked before memory is taken.
const (
	MaxBatchBytes    = 8 << 20 // records of one batch
	MaxBatchMessages = 65_536  // messages of one batch
	MaxMessageBytes  = 1 << 20 // default limit of one record: body, key, headers, and some bytes of lengths and time
)

// HeaderSize is the length of an encoded BatchHeader in bytes.
const HeaderSize = 128

// batchVersion is the first byte of every encoded header.
const batchVersion = 1

// Flags of a batch.
const (
	FlagDelayed uint8 = 1 << iota // some record asks for a delay
	FlagKeyed                     // some record has a key
)

// ErrBadBatch means that bytes are not a batch, or not the batch that their
// checksums say they are (P9).
var ErrBadBatch = errors.New("damaged batch")

// BatchHeader describes a batch. It is 128 bytes, big endian:
//
//	 0 version u8 | 1 flags u8 | 2 zero u16 | 4 count u32
//	 8 partition  u64
//	16 lane node  u64
//	24 lane epoch u64
//	32 base       u64   offset of the first message
//	40 stamp      u64   hybrid logical clock of the acceptor: ms << 16 | counter
//	48 producer   u64
//	56 sequence   u64   of the first message; message i has sequence+i
//	64 after node u64   position of the producer's last confirmed message in
//	72 after epoch u64  this partition; node 0 means none
//	80 after offset u64
//	88 catalog    u64   catalog version of the acceptor
//	96 length     u64   bytes of records that follow the header
//	104 checksum  u64   xxhash64 of the records, by the client
//	112 zero      u64
//	120 seal      u64   xxhash64 of bytes 0..120, by the acceptor
type BatchHeader struct {
	Flags       uint8
	Count       uint32
	Partition   PartitionID
	Lane        Lane
	Base        Offset
	Stamp       uint64
	Producer    ProducerID
	Sequence    uint64
	AfterLane   Lane
	AfterOffset Offset
	Catalog     uint64
	Length      uint64
	Checksum    uint64
}

// Run is the batch's range of offsets in its lane.
func (h *BatchHeader) Run() Run { return Span(h.Base, h.Base+Offset(h.Count)) }

// Sequences is the batch's range of its producer's sequence numbers.
func (h *BatchHeader) Sequences() Run {
	return Span(Offset(h.Sequence), Offset(h.Sequence)+Offset(h.Count))
}

// Batch is 1..n consecutive messages of a lane. Records are the client's bytes:
// encoded once, never decoded on the way, shared and never written to.
type Batch struct {
	BatchHeader
	Records []byte
}

// Size is the length of the encoded batch in bytes.
func (b *Batch) Size() int { return HeaderSize + len(b.Records) }

// AppendHeader appends the sealed header of b to dst. The encoded batch is the
// header followed by b.Records; they need not be copied together.
func (b *Batch) AppendHeader(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	h := dst[at:]
	be := binary.BigEndian
	h[0], h[1] = batchVersion, b.Flags
	be.PutUint32(h[4:], b.Count)
	be.PutUint64(h[8:], uint64(b.Partition))
	be.PutUint64(h[16:], uint64(b.Lane.Node))
	be.PutUint64(h[24:], b.Lane.Epoch)
	be.PutUint64(h[32:], uint64(b.Base))
	be.PutUint64(h[40:], b.Stamp)
	be.PutUint64(h[48:], uint64(b.Producer))
	be.PutUint64(h[56:], b.Sequence)
	be.PutUint64(h[64:], uint64(b.AfterLane.Node))
	be.PutUint64(h[72:], b.AfterLane.Epoch)
	be.PutUint64(h[80:], uint64(b.AfterOffset))
	be.PutUint64(h[88:], b.Catalog)
	be.PutUint64(h[96:], uint64(len(b.Records)))
	be.PutUint64(h[104:], b.Checksum)
	be.PutUint64(h[120:], xxhash.Sum64(h[:120]))
	return dst
}

// Append appends the whole encoded batch to dst.
func (b *Batch) Append(dst []byte) []byte { return append(b.AppendHeader(dst), b.Records...) }

// DecodeHeader reads a sealed header from the front of p. The error is ErrBadBatch.
func DecodeHeader(p []byte) (BatchHeader, error) {
	if len(p) < HeaderSize {
		return BatchHeader{}, fmt.Errorf("%w: %d bytes are no header", ErrBadBatch, len(p))
	}
	be := binary.BigEndian
	if p[0] != batchVersion {
		return BatchHeader{}, fmt.Errorf("%w: version %d", ErrBadBatch, p[0])
	}
	if be.Uint64(p[120:]) != xxhash.Sum64(p[:120]) {
		return BatchHeader{}, fmt.Errorf("%w: header does not fit its seal", ErrBadBatch)
	}
	h := BatchHeader{
		Flags: p[1], Count: be.Uint32(p[4:]), Partition: PartitionID(be.Uint64(p[8:])),
		Lane: Lane{Node: ring.NodeID(be.Uint64(p[16:])), Epoch: be.Uint64(p[24:])}, Base: Offset(be.Uint64(p[32:])),
		Stamp: be.Uint64(p[40:]), Producer: ProducerID(be.Uint64(p[48:])), Sequence: be.Uint64(p[56:]),
		AfterLane:   Lane{Node: ring.NodeID(be.Uint64(p[64:])), Epoch: be.Uint64(p[72:])},
		AfterOffset: Offset(be.Uint64(p[80:])), Catalog: be.Uint64(p[88:]),
		Length: be.Uint64(p[96:]), Checksum: be.Uint64(p[104:]),
	}
	if h.Count == 0 || h.Count > MaxBatchMessages || h.Length > MaxBatchBytes {
		return BatchHeader{}, fmt.Errorf("%w: %d messages in %d bytes", ErrBadBatch, h.Count, h.Length)
	}
	if n := uint64(h.Count); uint64(h.Base)+n < n || h.Sequence+n < n {
		return BatchHeader{}, fmt.Errorf("%w: offset %d or sequence %d wraps", ErrBadBatch, h.Base, h.Sequence)
	}
	return h, nil
}

// DecodeBatch reads one batch from the front of p and returns what follows it.
// Records point into p. Both checksums are verified; the error is ErrBadBatch.
func DecodeBatch(p []byte) (b Batch, rest []byte, err error) {
	h, err := DecodeHeader(p)
	if err != nil {
		return Batch{}, nil, err
	}
	p = p[HeaderSize:]
	if uint64(len(p)) < h.Length {
		return Batch{}, nil, fmt.Errorf("%w: %d of %d bytes of records", ErrBadBatch, len(p), h.Length)
	}
	b = Batch{BatchHeader: h, Records: p[:h.Length:h.Length]}
	if xxhash.Sum64(b.Records) != h.Checksum {
		return Batch{}, nil, fmt.Errorf("%w: records do not fit their checksum", ErrBadBatch)
	}
	return b, p[h.Length:], nil
}

// DecodeBatches reads all batches of p.
func DecodeBatches(p []byte) ([]Batch, error) {
	var out []Batch
	for len(p) > 0 {
		b, rest, err := DecodeBatch(p)
		if err != nil {
			return nil, err
		}
		out, p = append(out, b), rest
	}
	return out, nil
}
