package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/transport/wire"
)

// summary is what a sealed segment holds, in a file "summary" in its directory, so that Open
// need not open the segment. It says all of its batches as coalesced refs, in key
// order. The file:
//
//	"meshqsm1" | segment u64 | group u64 | batches u64 | refs u64 | ref... | checksum u64
//
// Numbers of the head and the checksum (xxhash64 of all before it) are big
// endian. A ref is: flags (1: other lane than the ref before, 2: other
// producer) | [partition, node, epoch u64] | [producer u64] | then uvarints: count, bytes, and zigzag
// the differences of base to the end of the ref before, of sequence
// likewise, and of stamp.
type summary struct {
	segment uint64
	group   uint64 // last group in it
	batches uint64
	refs    []sizedRef
}

// sizedRef is a coalesced ref and the encoded bytes of its batches.
type sizedRef struct {
	wire.BatchRef
	bytes uint64
}

const (
	summaryName  = "summary"
	summaryMagic = "meshqsm1"
	summaryHead  = 40

	refLane     = 1
	refProducer = 2
)

// coalesce adds r to refs, joined with the last ref where it continues it.
func coalesce(refs []sizedRef, r sizedRef) []sizedRef {
	if n := len(refs); n > 0 {
		last := &refs[n-1]
		if last.Partition == r.Partition && last.Lane == r.Lane && last.Producer == r.Producer &&
			last.Base+wire.Offset(last.Count) == r.Base && last.Sequence+last.Count == r.Sequence {
			last.Count += r.Count
			last.Stamp = r.Stamp
			last.bytes += r.bytes
			return refs
		}
	}
	return append(refs, r)
}

func zigzag(d uint64) uint64   { return d<<1 ^ uint64(int64(d)>>63) }
func unzigzag(u uint64) uint64 { return u>>1 ^ -(u & 1) }

// write makes the summary durable in dir.
func (s *summary) write(dir string) (err error) {
	path := filepath.Join(dir, summaryName)
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := xxhash.New()
	out := bufio.NewWriterSize(f, 64<<10)
	buf := make([]byte, 0, 128)
	emit := func(b []byte) {
		_, _ = sum.Write(b)
		_, _ = out.Write(b) // Flush reports the error
	}
	buf = append(buf, summaryMagic...)
	for _, v := range [...]uint64{s.segment, s.group, s.batches, uint64(len(s.refs))} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	emit(buf)
	var last wire.BatchRef
	for i := range s.refs {
		buf = appendRef(buf[:0], &last, &s.refs[i])
		emit(buf)
		last = s.refs[i].BatchRef
	}
	_, _ = out.Write(binary.BigEndian.AppendUint64(buf[:0], sum.Sum64()))
	if err = errors.Join(out.Flush(), f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write summary: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func appendRef(b []byte, last *wire.BatchRef, r *sizedRef) []byte {
	var flags byte
	if r.Partition != last.Partition || r.Lane != last.Lane {
		flags |= refLane
	}
	if r.Producer != last.Producer {
		flags |= refProducer
	}
	b = append(b, flags)
	if flags&refLane != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Partition))
		b = binary.BigEndian.AppendUint64(b, uint64(r.Lane.Node))
		b = binary.BigEndian.AppendUint64(b, r.Lane.Epoch)
	}
	if flags&refProducer != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Producer))
	}
	b = binary.AppendUvarint(b, r.Count)
	b = binary.AppendUvarint(b, r.bytes)
	b = binary.AppendUvarint(b, zigzag(uint64(r.Base)-uint64(last.Base)-last.Count))
	b = binary.AppendUvarint(b, zigzag(r.Sequence-last.Sequence-last.Count))
	return binary.AppendUvarint(b, zigzag(r.Stamp-last.Stamp))
}

// readSummary reads the summary in dir. Without one the error is
// fs.ErrNotExist, with a damaged one errDamaged.
func readSummary(dir string) (*summary, error) {
	f, err := os.Open(filepath.Join(dir, summaryName))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return decodeSummary(bufio.NewReaderSize(f, 64<<10), info.Size())
}

// decodeSummary reads a summary of size bytes.
func decodeSummary(in io.Reader, size int64) (*summary, error) {
	bad := func(what string) (*summary, error) { return nil, fmt.Errorf("summary: %s: %w", what, errDamaged) }
	if size < summaryHead+8 {
		return bad("too short")
	}
	r := &summingReader{in: bufio.NewReader(io.LimitReader(in, size)), left: size - 8}
	head := r.bytes(summaryHead)
	if r.failed || string(head[:8]) != summaryMagic {
		return bad("not one")
	}
	be := binary.BigEndian
	s := &summary{segment: be.Uint64(head[8:]), group: be.Uint64(head[16:]), batches: be.Uint64(head[24:])}
	n := be.Uint64(head[32:])
	if n > uint64(size)/6 { // the shortest ref
		return bad("too many refs")
	}
	var last wire.BatchRef
	for range n {
		var ref sizedRef
		ref.Partition, ref.Lane, ref.Producer = last.Partition, last.Lane, last.Producer
		flags := r.bytes(1)[0]
		if flags&^(refLane|refProducer) != 0 {
			return bad("unknown flags")
		}
		if flags&refLane != 0 {
			b := r.bytes(24)
			ref.Partition = wire.PartitionID(be.Uint64(b))
			ref.Lane = wire.Lane{Node: wire.NodeID(be.Uint64(b[8:])), Epoch: be.Uint64(b[16:])}
		}
		if flags&refProducer != 0 {
			ref.Producer = wire.ProducerID(be.Uint64(r.bytes(8)))
		}
		ref.Count = r.uvarint()
		ref.bytes = r.uvarint()
		ref.Base = wire.Offset(unzigzag(r.uvarint()) + uint64(last.Base) + last.Count)
		ref.Sequence = unzigzag(r.uvarint()) + last.Sequence + last.Count
		ref.Stamp = unzigzag(r.uvarint()) + last.Stamp
		if r.failed || ref.Count == 0 || ref.Count > math.MaxUint64-uint64(ref.Base) {
			return bad("cut or impossible ref")
		}
		s.refs = append(s.refs, ref)
		last = ref.BatchRef
	}
	want := r.sum.Sum64()
	var tail [8]byte
	if r.left != 0 {
		return bad("bytes after it")
	}
	if _, err := io.ReadFull(r.in, tail[:]); err != nil || be.Uint64(tail[:]) != want {
		return bad("does not fit its checksum")
	}
	return s, nil
}

// summingReader reads at most left bytes and sums them up.
type summingReader struct {
	in     *bufio.Reader
	sum    xxhash.Digest
	left   int64
	failed bool
	buf    [summaryHead]byte
	primed bool
}

func (r *summingReader) bytes(n int) []byte {
	if !r.primed {
		r.sum.Reset()
		r.primed = true
	}
	b := r.buf[:n]
	if int64(n) > r.left {
		r.failed = true
	}
	if !r.failed {
		if _, err := io.ReadFull(r.in, b); err != nil {
			r.failed = true
		}
	}
	if r.failed {
		clear(b)
		return b
	}
	r.left -= int64(n)
	_, _ = r.sum.Write(b)
	return b
}

func (r *summingReader) uvarint() (v uint64) {
	for i := range binary.MaxVarintLen64 {
		c := r.bytes(1)[0]
		if i == binary.MaxVarintLen64-1 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v
		}
	}
	r.failed = true
	return 0
}
