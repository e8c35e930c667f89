package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// A message travels as its type, a header and a payload:
//
//	header   the exported fields of the struct, as a MessagePack array in order
//	payload  raw bytes: what the fields tagged msgpack:"-" hold
//
// Only these have a payload:
//
//	Enqueue    Records
//	Deliver    the Records of all Deliveries, Length bytes each
//	Replicate  the encoded batches, one after the other: header, records
//	Batches    the same

// MaxRecordBytes is the longest record that any queue can allow, in bytes: the
// highest max_message_bytes and what the encoding adds.
const MaxRecordBytes = 4<<20 + 64<<10

// ErrUnknownType means that a message has a type that this code does not know. A
// newer sender may use it: refuse the message, not the sender.
var ErrUnknownType = errors.New("unknown message type")

// AppendHeader appends the header of msg to dst. The error is ErrTooLarge for a
// header over MaxHeaderBytes, or ErrUnknownType; dst is then returned as it was.
func AppendHeader(dst []byte, msg Message) ([]byte, error) {
	p := plans[msg.Type()]
	if p == nil {
		return dst, fmt.Errorf("%w %d", ErrUnknownType, msg.Type())
	}
	out := p.encode(dst, reflect.ValueOf(sendable(msg)).Elem())
	if n := len(out) - len(dst); n > MaxHeaderBytes {
		return dst, Errorf(ErrTooLarge, "message of type %d has a header of %d bytes, limit %d", msg.Type(), n, MaxHeaderBytes)
	}
	return out, nil
}

// sendable is msg with the fields set that follow from the payload. It does not
// change msg.
func sendable(msg Message) Message {
	d, ok := msg.(*Deliver)
	if !ok {
		return msg
	}
	for i := range d.Deliveries {
		if int(d.Deliveries[i].Length) != len(d.Deliveries[i].Records) {
			c := *d
			c.Deliveries = append([]Delivery(nil), d.Deliveries...)
			for i := range c.Deliveries {
				c.Deliveries[i].Length = uint32(len(c.Deliveries[i].Records))
			}
			return &c
		}
	}
	return msg
}

// AppendPayload appends the buffers of the payload of msg to bufs. Records are not
// copied: the buffers share them, and they must not change until they are written.
func AppendPayload(bufs [][]byte, msg Message) [][]byte {
	switch m := msg.(type) {
	case *Enqueue:
		if len(m.Records) > 0 {
			bufs = append(bufs, m.Records)
		}
	case *Deliver:
		for i := range m.Deliveries {
			if len(m.Deliveries[i].Records) > 0 {
				bufs = append(bufs, m.Deliveries[i].Records)
			}
		}
	case *Replicate:
		bufs = appendBatches(bufs, m.Batches)
	case *Batches:
		bufs = appendBatches(bufs, m.Batches)
	}
	return bufs
}

func appendBatches(bufs [][]byte, batches []Batch) [][]byte {
	headers := make([]byte, 0, len(batches)*HeaderSize)
	for i := range batches {
		headers = batches[i].AppendHeader(headers)
		bufs = append(bufs, headers[i*HeaderSize:(i+1)*HeaderSize:(i+1)*HeaderSize])
		if len(batches[i].Records) > 0 {
			bufs = append(bufs, batches[i].Records)
		}
	}
	return bufs
}

// PayloadSize is the length of the payload of msg in bytes.
func PayloadSize(msg Message) (n int) {
	switch m := msg.(type) {
	case *Enqueue:
		n = len(m.Records)
	case *Deliver:
		for i := range m.Deliveries {
			n += len(m.Deliveries[i].Records)
		}
	case *Replicate:
		for i := range m.Batches {
			n += m.Batches[i].Size()
		}
	case *Batches:
		for i := range m.Batches {
			n += m.Batches[i].Size()
		}
	}
	return n
}

// DecodeMessage reads a message. Records of it point into payload, nothing points
// into header. Errors:
//
//   - ErrUnknownType: the sender may be newer.
//   - *Error (ErrBadRequest, ErrTooLarge): a message that can be read and must be
//     refused.
//   - ErrBadMessage, ErrBadBatch: the bytes are not what their sender sent, or it
//     cannot be trusted to count; the connection they came on is of no use.
func DecodeMessage(t Type, header, payload []byte) (Message, error) {
	p := plans[t]
	if p == nil {
		return nil, fmt.Errorf("%w %d", ErrUnknownType, t)
	}
	if len(header) > MaxHeaderBytes {
		return nil, fmt.Errorf("%w: header of %d bytes, limit %d", ErrBadMessage, len(header), MaxHeaderBytes)
	}
	msg := makers[t]()
	d := readers.Get().(*headerReader)
	*d = headerReader{p: header, size: len(header), budget: uint64(len(header))*headerGain + headerFree}
	p.decode(d, reflect.ValueOf(msg).Elem())
	if d.err == nil && len(d.p) > 0 {
		d.fail("%d bytes after the header's end", len(d.p))
	}
	err := d.err
	*d = headerReader{}
	readers.Put(d)
	if err != nil {
		return nil, fmt.Errorf("type %d: %w", t, err)
	}
	if err := takePayload(msg, payload); err != nil {
		return nil, fmt.Errorf("type %d: %w", t, err)
	}
	return msg, nil
}

var readers = sync.Pool{New: func() any { return new(headerReader) }}

// takePayload puts payload where msg holds it and checks what the header says of it.
func takePayload(msg Message, payload []byte) (err error) {
	switch m := msg.(type) {
	case *Enqueue:
		m.Records = payload
		return m.check()
	case *Deliver:
		return m.split(payload)
	case *Replicate:
		if m.Batches, err = DecodeBatches(payload); err != nil {
			return err
		}
		for i := range m.Batches {
			if m.Batches[i].Partition != m.Batches[0].Partition {
				return fmt.Errorf("%w: batches of two partitions", ErrBadMessage)
			}
		}
		if len(m.Batches) == 0 {
			return fmt.Errorf("%w: no batch", ErrBadMessage)
		}
		return nil
	case *Batches:
		m.Batches, err = DecodeBatches(payload)
		return err
	}
	if len(payload) > 0 {
		return fmt.Errorf("%w: payload of %d bytes where none belongs", ErrBadMessage, len(payload))
	}
	switch m := msg.(type) {
	case *Settle:
		for i := range m.Items {
			if err := within(m.Items[i].Runs, m.Items[i].Receipt.Run); err != nil {
				return err
			}
			if n := len(m.Items[i].Reason); n > MaxReasonBytes {
				return Errorf(ErrBadRequest, "reason of %d bytes, limit %d", n, MaxReasonBytes)
			}
		}
	case *Resume:
		for i := range m.Held {
			if err := within(m.Held[i].Runs, m.Held[i].Receipt.Run); err != nil {
				return err
			}
		}
	case *Release:
		for i := range m.InFlight {
			f := &m.InFlight[i]
			if err := errors.Join(within(f.Runs, f.Receipt.Run), within(f.Acking, f.Receipt.Run)); err != nil {
				return err
			}
		}
	}
	return nil
}

// MaxReasonBytes is the longest SettleItem.Reason, in bytes.
const MaxReasonBytes = 1 << 10

// within tells whether all of runs is in r.
func within(runs Runs, r Run) error {
	if len(runs) > 0 && (runs[0].From < r.From || runs.End() > r.To) {
		return Errorf(ErrBadRequest, "runs %v are not within [%d,%d) of their receipt", runs, r.From, r.To)
	}
	return nil
}

// check verifies the records of m: their number, their lengths, their checksum.
func (m *Enqueue) check() error {
	if m.Count == 0 || m.Sequence+uint64(m.Count) < m.Sequence {
		return Errorf(ErrBadRequest, "batch of %d messages from sequence %d", m.Count, m.Sequence)
	}
	if m.Count > MaxBatchMessages || len(m.Records) > MaxBatchBytes {
		return Errorf(ErrTooLarge, "batch of %d messages in %d bytes, limits %d and %d", m.Count, len(m.Records), MaxBatchMessages, MaxBatchBytes)
	}
	if xxhash.Sum64(m.Records) != m.Checksum {
		return fmt.Errorf("%w: records do not fit their checksum", ErrBadBatch)
	}
	err := CheckRecords(m.Records, m.Count, MaxRecordBytes)
	switch {
	case errors.Is(err, ErrTooLarge):
		return Errorf(ErrTooLarge, "%v", err)
	case err != nil:
		return Errorf(ErrBadRequest, "%v", err)
	}
	return nil
}

// split gives each delivery its part of the payload.
func (m *Deliver) split(payload []byte) error {
	for i := range m.Deliveries {
		d := &m.Deliveries[i]
		if uint64(d.Length) > uint64(len(payload)) {
			return fmt.Errorf("%w: delivery of %d bytes, %d left", ErrBadMessage, d.Length, len(payload))
		}
		n := d.Receipt.Run.Len()
		if n == 0 || n > MaxBatchMessages {
			return fmt.Errorf("%w: delivery of %d messages", ErrBadMessage, n)
		}
		d.Records, payload = payload[:d.Length:d.Length], payload[d.Length:]
		if d.Checksum != 0 && Checksum(d.Records) != d.Checksum {
			return fmt.Errorf("%w: records do not fit their checksum", ErrBadBatch)
		}
		if err := CheckRecords(d.Records, uint32(n), MaxRecordBytes); err != nil {
			return fmt.Errorf("%w: %w", ErrBadMessage, err)
		}
	}
	if len(payload) > 0 {
		return fmt.Errorf("%w: %d bytes after the last delivery", ErrBadMessage, len(payload))
	}
	return nil
}

// Encode is a whole message in one slice, for where there are no frames:
//
//	0 type u8 | 1 header length u32 | 5 header | payload
//
// It copies the payload. Errors as from AppendHeader.
func Encode(msg Message) ([]byte, error) {
	out, err := AppendHeader(make([]byte, 5, 5+64+PayloadSize(msg)), msg)
	if err != nil {
		return nil, err
	}
	out[0] = byte(msg.Type())
	binary.BigEndian.PutUint32(out[1:], uint32(len(out)-5))
	for _, b := range AppendPayload(nil, msg) {
		out = append(out, b...)
	}
	return out, nil
}

// Decode reads what Encode made. Records of the message point into b. Errors as
// from DecodeMessage.
func Decode(b []byte) (Message, error) {
	if len(b) < 5 {
		return nil, fmt.Errorf("%w: %d bytes", ErrBadMessage, len(b))
	}
	n := binary.BigEndian.Uint32(b[1:])
	if uint64(n) > uint64(len(b)-5) {
		return nil, fmt.Errorf("%w: header of %d bytes, %d left", ErrBadMessage, n, len(b)-5)
	}
	return DecodeMessage(Type(b[0]), b[5:5+n], b[5+n:])
}

// DecodeValue reads a struct, number, bool, text or list that was stored as MessagePack,
// structs as arrays, into what v points to. As in a header, a shorter array leaves the
// fields after it zero, and what a longer one has is skipped: fields can be added to what
// is stored. The error is ErrBadMessage.
func DecodeValue(b []byte, v any) error {
	to := reflect.ValueOf(v).Elem()
	p, ok := storedPlans.Load(to.Type())
	if !ok {
		p, _ = storedPlans.LoadOrStore(to.Type(), makePlan(to.Type(), map[reflect.Type]*plan{}))
	}
	d := headerReader{p: b, size: len(b), budget: uint64(len(b))*storedGain + headerFree}
	p.(*plan).decode(&d, to)
	if d.err == nil && len(d.p) > 0 {
		d.fail("%d bytes after the value's end", len(d.p))
	}
	return d.err
}

// storedPlans are the plans of stored types, by reflect.Type.
var storedPlans sync.Map

// storedGain is headerGain for what is stored under a checksum: such bytes are our own.
const storedGain = 64
