package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/meshq/meshq/ring"
)

// The header of a message is MessagePack, and little of it: a struct is an array
// of its fields in order, numbers are unsigned, a list is an array, and there are
// bool, str and bin. Values nest as deep as the Go types do, no deeper.
//
// A general decoder was measured against this and does not serve: it takes memory
// by the length that a list claims, it refuses arrays that are longer or shorter
// than the struct, so that no field could ever be appended, and it skips unknown
// values by recursion, so that a few megabytes of nested arrays end the process.

// Limits of a header.
const (
	// MaxHeaderBytes is the longest header, in bytes.
	MaxHeaderBytes = 8 << 20
	// MaxStringBytes is the longest text in a header, in bytes.
	MaxStringBytes = 16 << 10
	// headerGain is how many bytes of lists one byte of header may become, and
	// headerFree what is allowed beyond that. Real messages stay below 13.
	headerGain = 16
	headerFree = 4096
)

// ErrBadMessage means that bytes are not a message of their type.
var ErrBadMessage = errors.New("malformed message")

// plan is how a Go type is encoded. Plans are made once, before main.
type plan struct {
	kind   reflect.Kind // Bool, Uint64 (all numbers), String, Struct, Slice; Uint8 for []byte, Array for Runs
	size   uint64       // bytes of one value in memory
	max    uint64       // largest number
	fields []planField  // Struct
	elem   *plan        // Slice
	check  func(reflect.Value) error
}

type planField struct {
	index int
	plan  *plan
}

var (
	runType   = reflect.TypeFor[Run]()
	runsType  = reflect.TypeFor[Runs]()
	tableType = reflect.TypeFor[ring.Table]()
)

// plans are those of all message types; built by makePlans, never changed after.
var plans = makePlans()

func makePlans() map[Type]*plan {
	made := map[reflect.Type]*plan{}
	out := make(map[Type]*plan, len(makers))
	for t, make := range makers {
		out[t] = makePlan(reflect.TypeOf(make()).Elem(), made)
	}
	return out
}

// makePlan panics on a type that has no encoding: that is a mistake in this
// package, and shows when the process starts.
func makePlan(t reflect.Type, made map[reflect.Type]*plan) *plan {
	if p := made[t]; p != nil {
		return p
	}
	p := &plan{size: uint64(t.Size())}
	made[t] = p
	switch t.Kind() {
	case reflect.Bool, reflect.String:
		p.kind = t.Kind()
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		p.kind, p.max = reflect.Uint64, ^uint64(0)>>(64-t.Bits())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			p.kind = reflect.Uint8
			break
		}
		p.kind, p.elem = reflect.Slice, makePlan(t.Elem(), made)
		if t == runsType {
			p.kind = reflect.Array
		}
	case reflect.Struct:
		p.kind = reflect.Struct
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() || strings.HasPrefix(f.Tag.Get("msgpack"), "-") {
				continue
			}
			p.fields = append(p.fields, planField{index: i, plan: makePlan(f.Type, made)})
		}
	default:
		panic(fmt.Sprintf("wire: %s has no encoding", t))
	}
	switch t {
	case runType:
		p.check = func(v reflect.Value) error {
			if from, to := v.Field(0).Uint(), v.Field(1).Uint(); from > to {
				return fmt.Errorf("%w: run [%d,%d)", ErrBadMessage, from, to)
			}
			return nil
		}
	case tableType:
		p.check = func(v reflect.Value) error {
			table := v.Interface().(ring.Table)
			if table.Number == 0 && len(table.Members) == 0 { // no table
				return nil
			}
			if err := table.Validate(); err != nil {
				return fmt.Errorf("%w: %w", ErrBadMessage, err)
			}
			return nil
		}
	}
	return p
}

// The first bytes of MessagePack values that are used here.
const (
	mpNil     = 0xc0
	mpFalse   = 0xc2
	mpTrue    = 0xc3
	mpBin8    = 0xc4
	mpBin16   = 0xc5
	mpBin32   = 0xc6
	mpUint8   = 0xcc
	mpUint16  = 0xcd
	mpUint32  = 0xce
	mpUint64  = 0xcf
	mpStr8    = 0xd9
	mpStr16   = 0xda
	mpStr32   = 0xdb
	mpArray16 = 0xdc
	mpArray32 = 0xdd
)

// encode appends v in the shortest form there is.
func (p *plan) encode(dst []byte, v reflect.Value) []byte {
	switch p.kind {
	case reflect.Bool:
		if v.Bool() {
			return append(dst, mpTrue)
		}
		return append(dst, mpFalse)
	case reflect.Uint64:
		return appendUint(dst, v.Uint())
	case reflect.String:
		return append(appendLength(dst, v.Len(), 0xa0, 31, mpStr8, mpStr16, mpStr32), v.String()...)
	case reflect.Uint8:
		return append(appendLength(dst, v.Len(), 0, -1, mpBin8, mpBin16, mpBin32), v.Bytes()...)
	case reflect.Slice:
		n := v.Len()
		dst = appendLength(dst, n, 0x90, 15, 0, mpArray16, mpArray32)
		for i := range n {
			dst = p.elem.encode(dst, v.Index(i))
		}
		return dst
	case reflect.Array:
		return appendRuns(dst, *v.Addr().Interface().(*Runs))
	default: // reflect.Struct
		dst = appendLength(dst, len(p.fields), 0x90, 15, 0, mpArray16, mpArray32)
		for i := range p.fields {
			f := &p.fields[i]
			dst = f.plan.encode(dst, v.Field(f.index))
		}
		return dst
	}
}

// appendRuns is what encode does for a list of structs, without reflection: sets of
// offsets are most of what large headers hold.
func appendRuns(dst []byte, runs Runs) []byte {
	dst = appendLength(dst, len(runs), 0x90, 15, 0, mpArray16, mpArray32)
	for _, r := range runs {
		dst = appendUint(appendUint(append(dst, 0x92), uint64(r.From)), uint64(r.To))
	}
	return dst
}

func appendUint(dst []byte, n uint64) []byte {
	be := binary.BigEndian
	switch {
	case n < 0x80:
		return append(dst, byte(n))
	case n <= 0xff:
		return append(dst, mpUint8, byte(n))
	case n <= 0xffff:
		return be.AppendUint16(append(dst, mpUint16), uint16(n))
	case n <= 0xffffffff:
		return be.AppendUint32(append(dst, mpUint32), uint32(n))
	}
	return be.AppendUint64(append(dst, mpUint64), n)
}

// appendLength appends the length of a value: in the first byte up to short, or
// after one of the codes. Code 0 means that there is none of that width.
func appendLength(dst []byte, n int, fix byte, short int, code8, code16, code32 byte) []byte {
	switch {
	case n <= short:
		return append(dst, fix|byte(n))
	case n <= 0xff && code8 != 0:
		return append(dst, code8, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, code16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, code32), uint32(n))
}

// headerReader reads values from a header. After the first error all reads are
// empty; err says where it was.
type headerReader struct {
	p      []byte
	size   int    // of the whole header
	budget uint64 // bytes of memory that lists may still take
	err    error
}

func (d *headerReader) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s at byte %d", ErrBadMessage, fmt.Sprintf(format, args...), d.size-len(d.p))
	}
	d.p = nil
}

// take returns the next n bytes; on an error nil.
func (d *headerReader) take(n uint64) []byte {
	if d.err != nil || n > uint64(len(d.p)) {
		d.fail("header ends early")
		return nil
	}
	b := d.p[:n:n]
	d.p = d.p[n:]
	return b
}

// number reads n bytes, 1, 2, 4 or 8, as a big-endian number.
func (d *headerReader) number(n uint64) uint64 {
	b := d.take(n)
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *headerReader) code() byte { return byte(d.number(1)) }

// uint reads a number that is not negative, in any of its forms.
func (d *headerReader) uint() uint64 {
	switch c := d.code(); {
	case c < 0x80:
		return uint64(c)
	case c >= mpUint8 && c <= mpUint64:
		return d.number(1 << (c - mpUint8))
	case c >= 0xd0 && c <= 0xd3: // signed
		width := uint64(1) << (c - 0xd0)
		if v := d.number(width); v>>(8*width-1) == 0 {
			return v
		}
		fallthrough
	default:
		d.fail("no number")
		return 0
	}
}

// length reads the length of an array; nil is an empty one.
func (d *headerReader) length() uint64 {
	switch c := d.code(); {
	case c == mpNil:
		return 0
	case c&0xf0 == 0x90:
		return uint64(c & 0x0f)
	case c == mpArray16:
		return d.number(2)
	case c == mpArray32:
		return d.number(4)
	default:
		d.fail("no array")
		return 0
	}
}

// bytes reads a str or bin of at most most bytes.
func (d *headerReader) bytes(most uint64) []byte {
	var n uint64
	switch c := d.code(); {
	case c == mpNil:
		return nil
	case c&0xe0 == 0xa0:
		n = uint64(c & 0x1f)
	case c == mpStr8 || c == mpBin8:
		n = d.number(1)
	case c == mpStr16 || c == mpBin16:
		n = d.number(2)
	case c == mpStr32 || c == mpBin32:
		n = d.number(4)
	default:
		d.fail("no text")
		return nil
	}
	if n > most {
		d.fail("text of %d bytes, limit %d", n, most)
		return nil
	}
	return d.take(n)
}

// skip passes over one value of any kind. It does not recurse.
func (d *headerReader) skip() {
	for left := uint64(1); left > 0 && d.err == nil; left-- {
		switch c := d.code(); {
		case c < 0x80, c >= 0xe0, c == mpNil, c == mpFalse, c == mpTrue: // in one byte
		case c < 0x90:
			left += 2 * uint64(c&0x0f)
		case c < 0xa0:
			left += uint64(c & 0x0f)
		case c < 0xc0:
			d.take(uint64(c & 0x1f))
		case c >= mpBin8 && c <= mpBin32:
			d.take(d.number(1 << (c - mpBin8)))
		case c >= 0xc7 && c <= 0xc9: // ext
			d.take(d.number(1<<(c-0xc7)) + 1)
		case c == 0xca: // float32
			d.take(4)
		case c == 0xcb: // float64
			d.take(8)
		case c >= mpUint8 && c <= mpUint64:
			d.take(1 << (c - mpUint8))
		case c >= 0xd0 && c <= 0xd3:
			d.take(1 << (c - 0xd0))
		case c >= 0xd4 && c <= 0xd8: // fixext
			d.take(1<<(c-0xd4) + 1)
		case c >= mpStr8 && c <= mpStr32:
			d.take(d.number(1 << (c - mpStr8)))
		case c == mpArray16 || c == mpArray32:
			left += d.number(2 << (c - mpArray16))
		case c == 0xde || c == 0xdf: // map
			left += 2 * d.number(2<<(c-0xde))
		default:
			d.fail("no value")
		}
	}
}

// decode reads one value into v. Nothing of it points into the header.
func (p *plan) decode(d *headerReader, v reflect.Value) {
	switch p.kind {
	case reflect.Bool:
		switch d.code() {
		case mpFalse, mpNil:
		case mpTrue:
			v.SetBool(true)
		default:
			d.fail("no bool")
		}
	case reflect.Uint64:
		n := d.uint()
		if n > p.max {
			d.fail("%d is over %d", n, p.max)
			return
		}
		v.SetUint(n)
	case reflect.String:
		v.SetString(string(d.bytes(MaxStringBytes)))
	case reflect.Uint8:
		if b := d.bytes(MaxHeaderBytes); len(b) > 0 {
			v.SetBytes(append([]byte(nil), b...))
		}
	case reflect.Slice:
		if n := d.list(p.elem.size); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := 0; i < n && d.err == nil; i++ {
				p.elem.decode(d, v.Index(i))
			}
		}
	case reflect.Array:
		d.runs(v.Addr().Interface().(*Runs), p.elem.size)
	case reflect.Struct:
		n := d.length()
		for i := range p.fields {
			if uint64(i) == n || d.err != nil { // an older sender: the rest is zero
				break
			}
			f := &p.fields[i]
			f.plan.decode(d, v.Field(f.index))
		}
		for i := uint64(len(p.fields)); i < n && d.err == nil; i++ { // a newer sender
			d.skip()
		}
	}
	if p.check != nil && d.err == nil {
		d.err = p.check(v)
	}
}

// list reads the length of a list and takes the memory for it from the budget. On
// an error it is 0.
func (d *headerReader) list(size uint64) int {
	n := d.length()
	switch {
	case d.err != nil:
		return 0
	case n > uint64(len(d.p)): // a value has at least one byte
		d.fail("list of %d in %d bytes", n, len(d.p))
		return 0
	case n*size > d.budget:
		d.fail("list of %d takes more memory than the header allows", n)
		return 0
	}
	d.budget -= n * size
	return int(n)
}

// runs is what decode does for a list of structs, and checks that it is a set.
func (d *headerReader) runs(to *Runs, size uint64) {
	n := d.list(size)
	if n == 0 {
		return
	}
	runs := make(Runs, n)
	for i := range runs {
		fields := d.length()
		if fields > 0 {
			runs[i].From = Offset(d.uint())
		}
		if fields > 1 {
			runs[i].To = Offset(d.uint())
		}
		for ; fields > 2 && d.err == nil; fields-- {
			d.skip()
		}
		if d.err != nil {
			return
		}
	}
	if err := runs.Validate(); err != nil {
		d.err = fmt.Errorf("%w: %w", ErrBadMessage, err)
		return
	}
	*to = runs
}
