package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/meshq/meshq/ring"
)

var update = flag.Bool("update", false, "add golden bytes of new messages; those that are there never change")

// sampleRecords are the records of all samples.
func sampleRecords() (records []byte, count uint32) {
	for _, r := range []Record{
		{Body: []byte("hello"), Key: "user-1", Headers: []HeaderField{{"trace", "42"}}, Enqueued: time.UnixMilli(1_700_000_000_000), Delay: 1500 * time.Millisecond},
		{Body: []byte("world"), Enqueued: time.UnixMilli(1_700_000_000_001)},
	} {
		records = AppendRecord(records, &r)
		count++
	}
	return records, count
}

// sampleBatch is the batch of all samples.
func sampleBatch() Batch {
	records, count := sampleRecords()
	return Batch{BatchHeader: BatchHeader{
		Flags: FlagDelayed | FlagKeyed, Count: count, Partition: 0x1122334455667788, Lane: Lane{Node: 0xa1, Epoch: 0x100000001},
		Base: 300, Stamp: 1_700_000_000_000 << 16, Producer: 0xbeef, Sequence: 7, AfterLane: Lane{Node: 0xa1, Epoch: 0x100000001},
		AfterOffset: 299, Catalog: 3, Length: uint64(len(records)), Checksum: Checksum(records),
	}, Records: records}
}

// sample is a message of a type in which every field has a value of its own.
func sample(t Type) Message {
	msg, err := New(t)
	if err != nil {
		panic(err)
	}
	n := uint64(0)
	fill(reflect.ValueOf(msg).Elem(), &n)
	records, count := sampleRecords()
	run := Span(10, 10+Offset(count))
	switch m := msg.(type) {
	case *Enqueue:
		m.Count, m.Records, m.Checksum = count, records, Checksum(records)
	case *Deliver:
		for i := range m.Deliveries {
			d := &m.Deliveries[i]
			d.Receipt.Run, d.Records, d.Length = run, records, uint32(len(records))
			d.Checksum = Checksum(d.Records)
		}
	case *Replicate:
		m.Batches = []Batch{sampleBatch(), sampleBatch()}
	case *Batches:
		m.Batches = []Batch{sampleBatch()}
	case *Settle:
		for i := range m.Items {
			m.Items[i].Receipt.Run, m.Items[i].Runs = run, Runs{Span(11, 12)}
		}
	case *Resume:
		for i := range m.Held {
			m.Held[i].Receipt.Run, m.Held[i].Runs = run, Runs{run}
		}
	case *Release:
		for i := range m.InFlight {
			m.InFlight[i].Receipt.Run, m.InFlight[i].Runs, m.InFlight[i].Acking = run, Runs{Span(10, 11)}, Runs{Span(11, 12)}
		}
	}
	return msg
}

// fill gives every field that travels in the header a value; n numbers them, in
// steps that reach all lengths of numbers.
func fill(v reflect.Value, n *uint64) {
	*n++
	switch v.Interface().(type) {
	case Run:
		v.Set(reflect.ValueOf(Span(Offset(*n), Offset(*n+3))))
		return
	case Runs:
		v.Set(reflect.ValueOf(Runs{Span(0, Offset(*n)), Span(Offset(*n+2), Offset(*n+70_000))}))
		return
	case ring.Table:
		v.Set(reflect.ValueOf(ring.Table{Number: *n, Members: []ring.Member{
			{ID: 0xa1, Name: "a", Address: "10.0.0.1:7700", HTTP: "10.0.0.1:7780", Zone: "z1", Weight: 1, Gossip: "10.0.0.1:7701"},
			{ID: 0xb2c3d4e5f6071829, Name: "b", Address: "10.0.0.2:7700", Zone: "z2", Weight: 300},
		}}))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", *n))
	case reflect.Uint8:
		v.SetUint(*n % 200)
	case reflect.Uint16:
		v.SetUint(*n * 100)
	case reflect.Uint32:
		v.SetUint(*n * 10_000)
	case reflect.Uint64:
		v.SetUint(*n << (*n % 50))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("msgpack") != "-" {
				fill(v.Field(i), n)
			}
		}
	default:
		panic("no sample of " + v.Type().String())
	}
}

// types are all types in order.
func types() (out []Type) {
	for t := range makers {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

func nameOf(t Type) string { return reflect.TypeOf(makers[t]()).Elem().Name() }

func TestEveryTypeMakesItself(t *testing.T) {
	for typ, maker := range makers {
		if got := maker().Type(); got != typ {
			t.Errorf("type %d makes a %T of type %d", typ, maker(), got)
		}
	}
	if _, err := New(255); !errors.Is(err, ErrUnknownType) {
		t.Errorf("New(255): %v", err)
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, typ := range types() {
		for _, msg := range []Message{sample(typ), makers[typ]()} {
			b, err := Encode(msg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(b)
			switch {
			case err != nil && (typ == TypeEnqueue || typ == TypeReplicate) && PayloadSize(msg) == 0:
				// Without records there is nothing to enqueue or to replicate.
			case err != nil:
				t.Errorf("%s: %v", nameOf(typ), err)
			case !reflect.DeepEqual(got, msg):
				t.Errorf("%s came back as\n%+v, was\n%+v", nameOf(typ), got, msg)
			}
		}
	}
}

// TestGolden holds the encoding to what other versions and other languages speak.
func TestGolden(t *testing.T) {
	const name = "testdata/messages.txt"
	golden := map[string]string{}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if what, b, ok := strings.Cut(s.Text(), " "); ok {
			golden[what] = b
		}
	}
	batch := sampleBatch()
	receipt := Receipt{Partition: 1, Group: 2, Lane: Lane{3, 4}, Run: Span(5, 6), Term: Term{7, 8}, Attempt: 9, Producer: 10, Sequence: 11}
	receipt.Sign(0x5eed)
	values := map[string]string{
		"batch":    hex.EncodeToString(batch.Append(nil)),
		"receipt":  fmt.Sprintf("%016x", receipt.MAC),
		"position": Position{Partition: 0x1122334455667788, Lane: Lane{0xa1, 0x100000001}, Offset: 300}.String(),
		"group":    fmt.Sprintf("%016x", uint64(Group("default", 1))),
	}
	order := []string{"batch", "receipt", "position", "group"}
	for _, typ := range types() {
		b, err := Encode(sample(typ))
		if err != nil {
			t.Fatal(err)
		}
		// The number of fields, nested ones included, is part of the name: appending a
		// field adds golden bytes and keeps the old ones, which must be read for ever.
		what := fmt.Sprintf("%d:%s/%d", typ, nameOf(typ), plans[typ].count())
		values[what] = hex.EncodeToString(b)
		order = append(order, what)
		if old, err := hex.DecodeString(golden[what]); err == nil && len(old) > 0 {
			if msg, err := Decode(old); err != nil || !reflect.DeepEqual(msg, sample(typ)) {
				t.Errorf("%s: golden bytes decode to %+v, %v", what, msg, err)
			}
		}
	}
	for _, what := range order {
		switch golden[what] {
		case values[what]:
		case "":
			if !*update {
				t.Errorf("%s has no golden bytes; add them with -update", what)
			} else if _, err := fmt.Fprintln(f, what, values[what]); err != nil { // at the end
				t.Fatal(err)
			}
		default:
			t.Errorf("%s is encoded as\n%s, golden is\n%s", what, values[what], golden[what])
		}
		delete(golden, what)
	}
	for what, old := range golden {
		b, err := hex.DecodeString(old)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("%s, of an older version: %v", what, err)
		}
	}
}

// count is the number of fields of p, nested ones included.
func (p *plan) count() (n int) {
	if p.elem != nil {
		return p.elem.count()
	}
	for _, f := range p.fields {
		n += 1 + f.plan.count()
	}
	return n
}

// TestHeadersAreMessagePack compares with another implementation.
func TestHeadersAreMessagePack(t *testing.T) {
	for _, typ := range types() {
		msg := sample(typ)
		own, err := AppendHeader(nil, msg)
		if err != nil {
			t.Fatal(err)
		}
		var theirs bytes.Buffer
		e := msgpack.NewEncoder(&theirs)
		e.UseArrayEncodedStructs(true)
		e.UseCompactInts(true)
		if err := e.Encode(msg); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(own, theirs.Bytes()) {
			t.Errorf("%s:\nown    %x\ntheirs %x", nameOf(typ), own, theirs.Bytes())
		}
	}
}

// three is a struct of its own for what holds of every struct.
type three struct{ A, B, C uint64 }

func decodeThree(header string) (v three, err error) {
	h, err := hex.DecodeString(header)
	if err != nil {
		return v, err
	}
	d := headerReader{p: h, size: len(h)}
	makePlan(reflect.TypeFor[three](), map[reflect.Type]*plan{}).decode(&d, reflect.ValueOf(&v).Elem())
	if d.err == nil && len(d.p) > 0 {
		d.fail("bytes are left")
	}
	return v, d.err
}

func TestNumbersInAllForms(t *testing.T) {
	for _, header := range []string{
		"930102cd0003", "93d00102ce00000003", "9301d1000203", "9301d20000000203", "9301d30000000000000002cf0000000000000003",
	} {
		if v, err := decodeThree(header); err != nil || v != (three{1, 2, 3}) {
			t.Errorf("%s: %+v, %v", header, v, err)
		}
	}
	for _, header := range []string{"91ff", "91d0ff", "91d1ffff", "91d3ffffffffffffffff", "91a131", "91ca00000000", "91c1"} {
		if v, err := decodeThree(header); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: %+v, %v", header, v, err)
		}
	}
}

func TestOtherVersions(t *testing.T) {
	for header, want := range map[string]three{
		"93010203":                       {1, 2, 3},
		"920102":                         {1, 2, 0}, // an older sender
		"90":                             {},
		"c0":                             {},
		"9401020382a16102c40161a3616263": {1, 2, 3}, // a newer one: a map
		"9701020393c0c2c3cb0000000000000000d60000000000c70102aa": {1, 2, 3}, // list, float, extensions
		"dc0004010203de0001a161dc0001a162":                       {1, 2, 3},
		"9501020390d90161":                                       {1, 2, 3},
	} {
		if v, err := decodeThree(header); err != nil || v != want {
			t.Errorf("%s: %+v, %v", header, v, err)
		}
	}
}

func TestBadMessages(t *testing.T) {
	enqueue := func(change func(*Enqueue)) Message {
		m := sample(TypeEnqueue).(*Enqueue)
		change(m)
		return m
	}
	settle := func(change func(*SettleItem)) Message {
		m := sample(TypeSettle).(*Settle)
		change(&m.Items[1])
		return m
	}
	two := sampleBatch()
	two.Partition++
	for name, c := range map[string]struct {
		msg  Message
		want error
	}{
		"checksum":        {enqueue(func(m *Enqueue) { m.Checksum++ }), ErrBadBatch},
		"no message":      {enqueue(func(m *Enqueue) { m.Count = 0 }), ErrBadRequest},
		"count too low":   {enqueue(func(m *Enqueue) { m.Count-- }), ErrBadRequest},
		"count too high":  {enqueue(func(m *Enqueue) { m.Count++ }), ErrBadRequest},
		"too many":        {enqueue(func(m *Enqueue) { m.Count = MaxBatchMessages + 1 }), ErrTooLarge},
		"sequence wraps":  {enqueue(func(m *Enqueue) { m.Sequence = ^uint64(0) }), ErrBadRequest},
		"batch too large": {enqueue(func(m *Enqueue) { m.Records = make([]byte, MaxBatchBytes+1) }), ErrTooLarge},
		"record too large": {enqueue(func(m *Enqueue) {
			m.Records = AppendRecord(nil, &Record{Body: make([]byte, MaxRecordBytes)})
			m.Count, m.Checksum = 1, Checksum(m.Records)
		}), ErrTooLarge},
		"runs outside":     {settle(func(i *SettleItem) { i.Runs = Runs{Span(11, 13)} }), ErrBadRequest},
		"runs unsorted":    {settle(func(i *SettleItem) { i.Runs = Runs{Span(11, 12), Span(10, 11)} }), ErrBadMessage},
		"empty run":        {settle(func(i *SettleItem) { i.Runs = Runs{Span(11, 11)} }), ErrBadMessage},
		"reason":           {settle(func(i *SettleItem) { i.Reason = strings.Repeat("x", MaxReasonBytes+1) }), ErrBadRequest},
		"backward run":     {settle(func(i *SettleItem) { i.Receipt.Run = Span(2, 1); i.Runs = nil }), ErrBadMessage},
		"two partitions":   {&Replicate{Batches: []Batch{sampleBatch(), two}}, ErrBadMessage},
		"long text":        {&Error{Text: strings.Repeat("x", MaxStringBytes+1)}, ErrBadMessage},
		"bad ring":         {&RingAccept{Table: ring.Table{Number: 1}}, ErrBadMessage},
		"delivery of none": {&Deliver{Deliveries: []Delivery{{}}}, ErrBadMessage},
	} {
		b, err := Encode(c.msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	deliver, _ := Encode(sample(TypeDeliver))
	beat, _ := Encode(&Beat{})
	for name, b := range map[string][]byte{
		"payload cut":      deliver[:len(deliver)-1],
		"payload too long": append(bytes.Clone(deliver), 0),
		"stray payload":    append(bytes.Clone(beat), 0),
		"nothing":          nil,
		"header cut":       beat[:6],
		"header too long":  {byte(TypeBeat), 0, 0, 0, 2, 0x90, 0x90},
		"never used":       {byte(TypeBeat), 0, 0, 0, 2, 0x91, 0xc1},
		"no array":         {byte(TypeBeat), 0, 0, 0, 1, 0x80},
	} {
		if _, err := Decode(b); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode([]byte{250, 0, 0, 0, 0}); !errors.Is(err, ErrUnknownType) {
		t.Errorf("unknown type: %v", err)
	}
}

// TestMemoryFollowsBytes: neither a claimed length nor nesting costs more than the
// bytes that carry it.
func TestMemoryFollowsBytes(t *testing.T) {
	claims := []byte{0x92, 0x00, 0xdd, 0xff, 0xff, 0xff, 0xff, 0x90}
	empty := append([]byte{0x92, 0x00, 0xdd, 0x00, 0x10, 0x00, 0x00}, bytes.Repeat([]byte{0x90}, 1<<20)...) // 1 Mi empty deliveries
	nested := append([]byte{0x92, 1}, bytes.Repeat([]byte{0x91}, MaxHeaderBytes-2)...)
	for _, c := range []struct {
		name   string
		typ    Type
		header []byte
	}{{"claims", TypeDeliver, claims}, {"empty", TypeDeliver, empty}, {"nested", TypeUnsubscribe, nested}} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeMessage(c.typ, c.header, nil)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: %v", c.name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10 {
			t.Errorf("%s took %d bytes", c.name, took)
		}
	}
}

// TestDeliverKnowsItsLengths: the lengths follow from the records, and sending does
// not change the message.
func TestDeliverKnowsItsLengths(t *testing.T) {
	m := sample(TypeDeliver).(*Deliver)
	m.Deliveries[0].Length = 0
	b, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if m.Deliveries[0].Length != 0 {
		t.Error("Encode changed the message")
	}
	got, err := Decode(b)
	if err != nil || !reflect.DeepEqual(got, sample(TypeDeliver)) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPayloadIsNotCopied(t *testing.T) {
	m := sample(TypeEnqueue).(*Enqueue)
	if bufs := AppendPayload(nil, m); len(bufs) != 1 || &bufs[0][0] != &m.Records[0] {
		t.Error("the records were copied")
	}
	b, _ := Encode(m)
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if r := got.(*Enqueue).Records; &r[len(r)-1] != &b[len(b)-1] {
		t.Error("the decoded records are a copy")
	}
}

func FuzzDecode(f *testing.F) {
	for typ := range makers {
		b, err := Encode(sample(typ))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		msg, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(msg)
		if err != nil {
			t.Fatalf("%+v does not encode: %v", msg, err)
		}
		if got, err := Decode(again); err != nil || !reflect.DeepEqual(got, msg) {
			t.Fatalf("%+v came back as %+v, %v", msg, got, err)
		}
	})
}

func BenchmarkEnqueue(b *testing.B) {
	var records []byte
	for range 100 {
		records = AppendRecord(records, &Record{Body: make([]byte, 1024), Enqueued: time.UnixMilli(1_700_000_000_000)})
	}
	msg := &Enqueue{Partition: 1 << 60, Queue: "photos", Producer: 1 << 50, Sequence: 1000, Count: 100, Checksum: Checksum(records), Records: records}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(records)))
		b.ReportAllocs()
		var head []byte
		var bufs [][]byte
		for b.Loop() {
			head, _ = AppendHeader(head[:0], msg)
			bufs = AppendPayload(bufs[:0], msg)
		}
	})
	header, _ := AppendHeader(nil, msg)
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(records)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeMessage(TypeEnqueue, header, records); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkState is a header with many runs: a partition after much disorder.
func BenchmarkState(b *testing.B) {
	msg := &State{Have: make([]LaneRuns, 10)}
	for i := range msg.Have {
		msg.Have[i].Lane = Lane{Node: 1 << 60, Epoch: uint64(i)}
		for j := range Offset(10_000) {
			msg.Have[i].Runs = append(msg.Have[i].Runs, Span(j*100, j*100+50))
		}
	}
	header, err := AppendHeader(nil, msg)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(header)))
		b.ReportAllocs()
		for b.Loop() {
			header, _ = AppendHeader(header[:0], msg)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(header)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeMessage(TypeState, header, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
