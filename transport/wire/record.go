package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
)

// HeaderField is one header of a message.
type HeaderField struct{ Name, Value string }

// Record is one message as its producer sent it.
type Record struct {
	Body     []byte
	Key      string
	Headers  []HeaderField
	Enqueued time.Time     // wall clock of the client, to the millisecond
	Delay    time.Duration // not before stamp + Delay; to the millisecond
}

// Flags of an encoded record; unknown ones are refused.
const (
	recordKey     = 1
	recordHeaders = 2
	recordDelay   = 4
	recordKnown   = recordKey | recordHeaders | recordDelay
)

// Limits of a record. AppendRecord does not look at them: check with Validate what
// comes from outside, for a record over them is stored and can never be read.
const (
	MaxHeaders  = 256                  // headers of one message
	MaxKeyBytes = 4 << 10              // of the key, and of the name of a header
	MaxDelay    = 365 * 24 * time.Hour // longest delay
)

// Validate tells what of r is over a limit. It does not look at its size in all,
// which is a setting of the queue. The error is ErrBadRequest.
func (r *Record) Validate() error {
	switch {
	case len(r.Headers) > MaxHeaders:
		return Errorf(ErrBadRequest, "%d headers, limit %d", len(r.Headers), MaxHeaders)
	case len(r.Key) > MaxKeyBytes:
		return Errorf(ErrBadRequest, "key of %d bytes, limit %d", len(r.Key), MaxKeyBytes)
	case r.Delay < 0 || r.Delay > MaxDelay:
		return Errorf(ErrBadRequest, "delay of %s, allowed are 0 to %s", r.Delay, MaxDelay)
	}
	for _, h := range r.Headers {
		if len(h.Name) > MaxKeyBytes {
			return Errorf(ErrBadRequest, "name of a header of %d bytes, limit %d", len(h.Name), MaxKeyBytes)
		}
	}
	return nil
}

// maxMillis is the last moment that a record can name: the end of the year 9999.
const maxMillis = 253_402_300_799_999

// ErrBadRecord means that the records of a batch are not what its count says.
var ErrBadRecord = errors.New("malformed record")

// AppendRecord appends r to the records of a batch:
//
//	length uvarint | flags uvarint | enqueued ms uvarint
//	[key: length, bytes] [headers: count, (length, bytes) x 2 each] [delay ms uvarint] | body
func AppendRecord(dst []byte, r *Record) []byte {
	var flags uint64
	n := uvarintLen(uint64(max(0, r.Enqueued.UnixMilli()))) + 1 + len(r.Body)
	if r.Key != "" {
		flags |= recordKey
		n += uvarintLen(uint64(len(r.Key))) + len(r.Key)
	}
	if len(r.Headers) > 0 {
		flags |= recordHeaders
		n += uvarintLen(uint64(len(r.Headers)))
		for _, h := range r.Headers {
			n += uvarintLen(uint64(len(h.Name))) + len(h.Name) + uvarintLen(uint64(len(h.Value))) + len(h.Value)
		}
	}
	if r.Delay > 0 {
		flags |= recordDelay
		n += uvarintLen(uint64(r.Delay.Milliseconds()))
	}
	dst = binary.AppendUvarint(dst, uint64(n))
	dst = binary.AppendUvarint(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(max(0, r.Enqueued.UnixMilli())))
	if r.Key != "" {
		dst = appendString(dst, r.Key)
	}
	if len(r.Headers) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Headers)))
		for _, h := range r.Headers {
			dst = appendString(appendString(dst, h.Name), h.Value)
		}
	}
	if r.Delay > 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Delay.Milliseconds()))
	}
	return append(dst, r.Body...)
}

// RecordFlags are the batch flags that r asks for.
func RecordFlags(r *Record) (flags uint8) {
	if r.Delay > 0 {
		flags |= FlagDelayed
	}
	if r.Key != "" {
		flags |= FlagKeyed
	}
	return flags
}

// Checksum is the client's checksum of the records of a batch.
func Checksum(records []byte) uint64 { return xxhash.Sum64(records) }

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func uvarintLen(x uint64) (n int) {
	for n = 1; x >= 0x80; n++ {
		x >>= 7
	}
	return n
}

// SkipRecords returns p without its first n records, looking at lengths only.
func SkipRecords(p []byte, n int) ([]byte, error) {
	for range n {
		l, w := binary.Uvarint(p)
		if w <= 0 || l > uint64(len(p)-w) {
			return nil, fmt.Errorf("%w: length %d of %d bytes", ErrBadRecord, l, len(p))
		}
		p = p[w+int(l):]
	}
	return p, nil
}

// CheckRecords tells whether p holds exactly count records of at most
// maxMessage bytes each. It reads lengths only. The errors are ErrBadRecord and
// ErrTooLarge.
func CheckRecords(p []byte, count uint32, maxMessage int) error {
	for i := range count {
		l, w := binary.Uvarint(p)
		if w <= 0 || l > uint64(len(p)-w) || l < 2 {
			return fmt.Errorf("%w: record %d of %d", ErrBadRecord, i, count)
		}
		if l > uint64(maxMessage) {
			return fmt.Errorf("message of %d bytes, limit %d: %w", l, maxMessage, ErrTooLarge)
		}
		p = p[w+int(l):]
	}
	if len(p) > 0 {
		return fmt.Errorf("%w: %d bytes after %d records", ErrBadRecord, len(p), count)
	}
	return nil
}

// DecodeRecord reads the record at the front of p and returns what follows it.
// Body points into p.
func DecodeRecord(p []byte) (r Record, rest []byte, err error) {
	l, w := binary.Uvarint(p)
	if w <= 0 || l > uint64(len(p)-w) {
		return Record{}, nil, fmt.Errorf("%w: length %d of %d bytes", ErrBadRecord, l, len(p))
	}
	d := decoder{p: p[w : w+int(l)]}
	rest = p[w+int(l):]
	flags := d.uvarint()
	if flags&^recordKnown != 0 {
		return Record{}, nil, fmt.Errorf("%w: unknown flags %#x", ErrBadRecord, flags)
	}
	enqueued := d.uvarint()
	if enqueued > maxMillis {
		return Record{}, nil, fmt.Errorf("%w: enqueued at %d ms", ErrBadRecord, enqueued)
	}
	r.Enqueued = time.UnixMilli(int64(enqueued))
	if flags&recordKey != 0 {
		r.Key = d.string()
	}
	if flags&recordHeaders != 0 {
		n := d.uvarint()
		if n > MaxHeaders {
			return Record{}, nil, fmt.Errorf("%w: %d headers, limit %d", ErrBadRecord, n, MaxHeaders)
		}
		r.Headers = make([]HeaderField, 0, n)
		for range n {
			r.Headers = append(r.Headers, HeaderField{Name: d.string(), Value: d.string()})
		}
	}
	if flags&recordDelay != 0 {
		ms := d.uvarint()
		if ms > uint64(MaxDelay.Milliseconds()) {
			return Record{}, nil, fmt.Errorf("%w: delay of %d ms", ErrBadRecord, ms)
		}
		r.Delay = time.Duration(ms) * time.Millisecond
	}
	if d.bad {
		return Record{}, nil, fmt.Errorf("%w: it ends early", ErrBadRecord)
	}
	r.Body = d.p
	return r, rest, nil
}

// RecordDelay reads only the delay of the record at the front of p.
func RecordDelay(p []byte) (delay time.Duration, rest []byte, err error) {
	l, w := binary.Uvarint(p)
	if w <= 0 || l > uint64(len(p)-w) {
		return 0, nil, ErrBadRecord
	}
	if l > 0 && p[w]&recordDelay == 0 {
		return 0, p[w+int(l):], nil
	}
	r, rest, err := DecodeRecord(p)
	return r.Delay, rest, err
}

type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, w := binary.Uvarint(d.p)
	if w <= 0 {
		d.bad, d.p = true, nil
		return 0
	}
	d.p = d.p[w:]
	return v
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.p)) {
		d.bad, d.p = true, nil
		return ""
	}
	s := string(d.p[:n])
	d.p = d.p[n:]
	return s
}
