package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
)

// watermark is what was confirmed: a lower bound of what must be there at Open.
// It is written after each group, before its callbacks, without an fsync: it
// survives the process, and a power cut leaves an older one, which bounds less.
//
// The file has two slots of 512 bytes that take turns, so that a torn write
// leaves the other. A slot is, big endian:
//
//	 0 "meshqwm1"
//	 8 commit    u64   highest number confirmed
//	16 meta      u64   number of the last group in the meta instance
//	24 count     u64   of entries
//	32 entries: segment u64 | number of its last group u64 | its batches u64
//	496 sequence u64   of writes; the slot with the higher one is the newer
//	504 checksum u64   xxhash64 of bytes 0..504
type watermark struct {
	commit, meta uint64
	sequence     uint64
	segments     []segmentMark // without a summary yet, ascending; the last is the head
}

type segmentMark struct{ id, group, batches uint64 }

const (
	watermarkSlot  = 512
	watermarkMagic = "meshqwm1"
	watermarkMarks = (watermarkSlot - 32 - 8) / 24 // 19
)

// append encodes w into one slot. Of too many segments the oldest are left out: they
// are bounded no more.
func (w *watermark) append(dst []byte) []byte {
	var b [watermarkSlot]byte
	copy(b[:], watermarkMagic)
	marks := w.segments[max(0, len(w.segments)-watermarkMarks):]
	be := binary.BigEndian
	be.PutUint64(b[8:], w.commit)
	be.PutUint64(b[16:], w.meta)
	be.PutUint64(b[24:], uint64(len(marks)))
	for i, m := range marks {
		at := b[32+24*i:]
		be.PutUint64(at, m.id)
		be.PutUint64(at[8:], m.group)
		be.PutUint64(at[16:], m.batches)
	}
	be.PutUint64(b[496:], w.sequence)
	be.PutUint64(b[504:], xxhash.Sum64(b[:504]))
	return append(dst, b[:]...)
}

func decodeWatermark(b []byte) (w watermark, err error) {
	be := binary.BigEndian
	if len(b) != watermarkSlot || string(b[:8]) != watermarkMagic || be.Uint64(b[504:]) != xxhash.Sum64(b[:504]) {
		return w, fmt.Errorf("watermark: %w", errDamaged)
	}
	n := be.Uint64(b[24:])
	if n > watermarkMarks {
		return w, fmt.Errorf("watermark of %d segments: %w", n, errDamaged)
	}
	w.commit, w.meta, w.sequence = be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint64(b[496:])
	for i := range n {
		at := b[32+24*i:]
		w.segments = append(w.segments, segmentMark{be.Uint64(at), be.Uint64(at[8:]), be.Uint64(at[16:])})
	}
	return w, nil
}

// watermarkFile is the file; the committer is its only user after Open.
type watermarkFile struct {
	f    *os.File
	slot int64
	buf  []byte
}

// openWatermark reads the newest slot. A file that is missing, or without a
// readable slot, gives errDamaged; it can be written all the same.
func openWatermark(path string) (*watermarkFile, watermark, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, watermark{}, err
	}
	b := make([]byte, 2*watermarkSlot)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, watermark{}, errors.Join(err, f.Close())
	}
	file := &watermarkFile{f: f}
	best, found := watermark{}, false
	for i := range 2 {
		if n < (i+1)*watermarkSlot {
			break
		}
		w, err := decodeWatermark(b[i*watermarkSlot : (i+1)*watermarkSlot])
		if err == nil && (!found || w.sequence >= best.sequence) {
			best, found = w, true
			file.slot = int64(1 - i)
		}
	}
	if !found {
		return file, best, fmt.Errorf("watermark: no readable slot: %w", errDamaged)
	}
	return file, best, nil
}

func (f *watermarkFile) write(w *watermark) error {
	w.sequence++
	f.buf = w.append(f.buf[:0])
	_, err := f.f.WriteAt(f.buf, f.slot*watermarkSlot)
	f.slot = 1 - f.slot
	return err
}

func (f *watermarkFile) sync() error  { return f.f.Sync() }
func (f *watermarkFile) close() error { return f.f.Close() }
