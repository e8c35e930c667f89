package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/transport/wire"
)

// preludeSize is the length of what precedes the header of a frame, in bytes.
const preludeSize = 24

// magic is in every frame: a stream that lost its place is noticed at once.
const magic = 0x4d51 // "MQ"

// Flags of a frame. Without one the message is one-way. Other bits are refused:
// what is optional has a feature bit in Hello.
const (
	flagRequest = 1 << iota // wants an answer under the same request number
	flagAnswer              // answers the request of that number
)

const knownFlags = flagRequest | flagAnswer

// ErrBadFrame means that bytes are not a frame, here or on the other side. The connection
// is closed.
var ErrBadFrame = errors.New("malformed frame")

// prelude is the fixed part of a frame. All numbers are big endian:
//
//	 0 length   u32  of what follows this field: 20 + header + payload
//	 4 magic    u16  0x4d51, "MQ"
//	 6 type     u8
//	 7 flags    u8   1 request, 2 answer
//	 8 request  u64  chosen by who asks; 0 for one-way
//	16 header   u32  length of the header
//	20 checksum u32  low half of xxhash64 over bytes 0..20 and the header
//	24 header, then payload
//
// The payload is under checksums of its own.
type prelude struct {
	typ     wire.Type
	flags   uint8
	request uint64
	header  int // bytes
	body    int // bytes of header and payload
}

// finishFrame fills the first preludeSize bytes of b, which are followed by the
// whole header. payload is the number of bytes that come after.
func finishFrame(b []byte, typ wire.Type, flags uint8, request uint64, payload int) {
	be := binary.BigEndian
	be.PutUint32(b[0:], uint32(len(b)-4+payload))
	be.PutUint16(b[4:], magic)
	b[6], b[7] = byte(typ), flags
	be.PutUint64(b[8:], request)
	be.PutUint32(b[16:], uint32(len(b)-preludeSize))
	be.PutUint32(b[20:], frameSum(b[:20], b[preludeSize:]))
}

func frameSum(head, header []byte) uint32 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head)
	_, _ = d.Write(header)
	return uint32(d.Sum64())
}

// parsePrelude reads the fixed part of a frame of at most limit bytes in all. The
// checksum is left to readFrame, which has the header.
func parsePrelude(b *[preludeSize]byte, limit int) (p prelude, err error) {
	be := binary.BigEndian
	length, header := uint64(be.Uint32(b[0:])), uint64(be.Uint32(b[16:]))
	if be.Uint16(b[4:]) != magic {
		return p, fmt.Errorf("%w: begins with % x", ErrBadFrame, b[:8])
	}
	if length+4 > uint64(limit) {
		return p, fmt.Errorf("%w: %d bytes, limit %d", ErrBadFrame, length+4, limit)
	}
	if length < preludeSize-4 || header > length-(preludeSize-4) {
		return p, fmt.Errorf("%w: header of %d in %d bytes", ErrBadFrame, header, length)
	}
	p = prelude{
		typ: wire.Type(b[6]), flags: b[7], request: be.Uint64(b[8:]),
		header: int(header), body: int(length) - (preludeSize - 4),
	}
	if p.flags&^knownFlags != 0 || p.flags == knownFlags || (p.flags == 0) != (p.request == 0) {
		return p, fmt.Errorf("%w: flags %#x with request %d", ErrBadFrame, p.flags, p.request)
	}
	return p, nil
}

// frameReader reads frames from r.
type frameReader struct {
	r       io.Reader
	limit   int // bytes of one frame
	prelude [preludeSize]byte
	scratch []byte // body of short frames without a payload: nothing keeps it
}

// stepBytes is how much memory a frame gets before its bytes arrive: a length alone
// costs its sender nothing.
const stepBytes = 1 << 20

// next reads one frame. header is valid until the next call, payload belongs to the
// caller. io.EOF means that the stream ended between two frames; within one it is
// io.ErrUnexpectedEOF.
func (f *frameReader) next() (p prelude, header, payload []byte, err error) {
	if _, err := io.ReadFull(f.r, f.prelude[:]); err != nil {
		return p, nil, nil, err
	}
	if p, err = parsePrelude(&f.prelude, f.limit); err != nil {
		return p, nil, nil, err
	}
	var body []byte
	if p.header == p.body && p.body <= scratchSize {
		if cap(f.scratch) < p.body {
			f.scratch = make([]byte, min(max(256, 2*p.body), scratchSize))
		}
		body = f.scratch[:p.body]
		_, err = io.ReadFull(f.r, body)
	} else {
		body, err = readBody(f.r, p.body)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return p, nil, nil, err
	}
	header, payload = body[:p.header], body[p.header:]
	if frameSum(f.prelude[:20], header) != binary.BigEndian.Uint32(f.prelude[20:]) {
		return p, nil, nil, fmt.Errorf("%w: header does not fit its checksum", ErrBadFrame)
	}
	return p, header, payload, nil
}

// readBody reads n bytes into one slice, which grows as they arrive when n is large.
func readBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, stepBytes))
	for at := 0; ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			if err == io.EOF && at > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if at = len(b); at == n {
			return b, nil
		}
		grown := make([]byte, min(n, 4*at))
		copy(grown, b)
		b = grown
	}
}
