package wire

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meshq/meshq/ring"
)

// model is a set of offsets in [0, modelSize), one bool each.
const modelSize = 64

type model [modelSize]bool

func (m *model) set(r Run, v bool) (changed uint64) {
	for o := r.From; o < r.To; o++ {
		if m[o] != v {
			m[o], changed = v, changed+1
		}
	}
	return changed
}

func (m *model) runs() (out Runs) {
	for o := 0; o < modelSize; o++ {
		if !m[o] {
			continue
		}
		from := o
		for o < modelSize && m[o] {
			o++
		}
		out = append(out, Span(Offset(from), Offset(o)))
	}
	return out
}

func drawRun(t *rapid.T, what string) Run {
	from := rapid.IntRange(0, modelSize-1).Draw(t, what+" from")
	to := rapid.IntRange(0, modelSize).Draw(t, what+" to") // may be empty or backward
	return Span(Offset(from), Offset(to))
}

func drawSet(t *rapid.T, what string) (s Runs, m model) {
	for range rapid.IntRange(0, 8).Draw(t, what) {
		r := drawRun(t, what)
		s.Add(r)
		m.set(r, true)
	}
	return s, m
}

// TestRunsAreASet compares Runs with a set of bools.
func TestRunsAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Runs
		var m model
		same := func(what string, got Runs, want model) {
			t.Helper()
			if err := got.Validate(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if w := want.runs(); !got.Equal(w) {
				t.Fatalf("%s: %v, want %v", what, got, w)
			}
		}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			r := drawRun(t, "run")
			if rapid.Bool().Draw(t, "add") {
				if got, want := s.Add(r), m.set(r, true); got != want {
					t.Fatalf("Add(%v) says %d new, want %d", r, got, want)
				}
			} else {
				s.Remove(r)
				m.set(r, false)
			}
			same("set", s, m)
		}
		other, om := drawSet(t, "other")
		kept := s.Clone()
		union, um := s.Clone(), m
		added := union.AddAll(other)
		var minus, both model
		var count uint64
		for o := range m {
			um[o] = m[o] || om[o]
			minus[o], both[o] = m[o] && !om[o], m[o] && om[o]
			if m[o] {
				count++
			}
		}
		same("union", union, um)
		if added != union.Count()-count || s.Count() != count {
			t.Fatalf("added %d, counts %d and %d of %d", added, union.Count(), s.Count(), count)
		}
		same("minus", s.Minus(other), minus)
		same("intersection", s.Intersect(other), both)
		r := drawRun(t, "asked")
		var in, out model
		covered := true
		for o := r.From; o < r.To; o++ {
			in[o], out[o] = m[o], !m[o]
			covered = covered && m[o]
		}
		same("overlap", s.Overlap(r), in)
		same("missing", s.Missing(r), out)
		if s.Covers(r) != covered {
			t.Fatalf("Covers(%v) of %v is %v", r, s, !covered)
		}
		o := Offset(rapid.IntRange(0, modelSize-1).Draw(t, "offset"))
		if s.Contains(o) != m[o] {
			t.Fatalf("Contains(%d) of %v is %v", o, s, !m[o])
		}
		next, gap := o, o
		for next < modelSize && !m[next] {
			next++
		}
		for gap < modelSize && m[gap] {
			gap++
		}
		if got, ok := s.Next(o); ok != (next < modelSize) || ok && got != next {
			t.Fatalf("Next(%d) of %v is %d, %v", o, s, got, ok)
		}
		if got := s.Gap(o); got != gap {
			t.Fatalf("Gap(%d) of %v is %d, want %d", o, s, got, gap)
		}
		if !s.Equal(kept) {
			t.Fatalf("a question changed %v to %v", kept, s)
		}
	})
}

func TestRunsAtTheEndOfAllOffsets(t *testing.T) {
	const last = ^Offset(0)
	s := Runs{Span(last-1, last)}
	if _, ok := s.Next(last); ok || s.Contains(last) || !s.Contains(last-1) || s.Gap(last-1) != last || s.Covers(Span(last-2, last)) {
		t.Errorf("%v is wrong at its end", s)
	}
}

func drawRecord(t *rapid.T) Record {
	r := Record{
		Body:     rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "body"),
		Key:      rapid.String().Draw(t, "key"),
		Enqueued: time.UnixMilli(rapid.Int64Range(0, 4_000_000_000_000).Draw(t, "enqueued")),
		Delay:    time.Duration(rapid.Int64Range(0, MaxDelay.Milliseconds()).Draw(t, "delay")) * time.Millisecond,
	}
	for range rapid.IntRange(0, 3).Draw(t, "headers") {
		r.Headers = append(r.Headers, HeaderField{rapid.String().Draw(t, "name"), rapid.String().Draw(t, "value")})
	}
	return r
}

func TestRecordsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(rapid.Custom(drawRecord), 1, 5).Draw(t, "records")
		var p []byte
		var flags uint8
		for i := range records {
			if err := records[i].Validate(); err != nil {
				t.Fatal(err)
			}
			p = AppendRecord(p, &records[i])
			flags |= RecordFlags(&records[i])
		}
		if err := CheckRecords(p, uint32(len(records)), len(p)); err != nil {
			t.Fatal(err)
		}
		b := Batch{BatchHeader: BatchHeader{
			Flags: flags, Count: uint32(len(records)), Partition: PartitionID(rapid.Uint64().Draw(t, "partition")),
			Lane: Lane{ring.NodeID(rapid.Uint64().Draw(t, "node")), rapid.Uint64().Draw(t, "epoch")},
			Base: Offset(rapid.Uint64Max(1<<60).Draw(t, "base")), Stamp: rapid.Uint64().Draw(t, "stamp"),
			Producer: ProducerID(rapid.Uint64().Draw(t, "producer")), Sequence: rapid.Uint64Max(1<<60).Draw(t, "sequence"),
			AfterLane: Lane{1, 2}, AfterOffset: 3, Catalog: rapid.Uint64().Draw(t, "catalog"),
			Length: uint64(len(p)), Checksum: Checksum(p),
		}, Records: p}
		twice, err := DecodeBatches(b.Append(b.Append(nil)))
		if err != nil || len(twice) != 2 || !reflect.DeepEqual(twice[1], b) {
			t.Fatalf("%+v came back as %+v, %v", b, twice, err)
		}
		for i, rest := 0, p; i < len(records); i++ {
			at, err := SkipRecords(p, i)
			if err != nil || len(at) != len(rest) {
				t.Fatalf("SkipRecords(%d): %d bytes left, %v", i, len(at), err)
			}
			delay, _, err := RecordDelay(rest)
			if err != nil || delay != records[i].Delay {
				t.Fatalf("RecordDelay: %s, %v", delay, err)
			}
			var r Record
			if r, rest, err = DecodeRecord(rest); err != nil {
				t.Fatal(err)
			}
			w := records[i]
			if !bytes.Equal(r.Body, w.Body) || r.Key != w.Key || !reflect.DeepEqual(r.Headers, w.Headers) || !r.Enqueued.Equal(w.Enqueued) || r.Delay != w.Delay {
				t.Fatalf("%+v came back as %+v", w, r)
			}
		}
	})
}

// TestDamageIsNoticed flips every bit of a batch (P9).
func TestDamageIsNoticed(t *testing.T) {
	b := sampleBatch()
	p := b.Append(nil)
	for i := range len(p) * 8 {
		p[i/8] ^= 1 << (i % 8)
		if _, _, err := DecodeBatch(p); !errors.Is(err, ErrBadBatch) {
			t.Errorf("bit %d: %v", i, err)
		}
		p[i/8] ^= 1 << (i % 8)
	}
	for n := range p {
		if _, _, err := DecodeBatch(p[:n]); !errors.Is(err, ErrBadBatch) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
}

func TestRecordLimits(t *testing.T) {
	for name, r := range map[string]Record{
		"headers": {Headers: make([]HeaderField, MaxHeaders+1)},
		"delay":   {Delay: MaxDelay + time.Millisecond},
	} {
		if err := r.Validate(); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: Validate: %v", name, err)
		}
		if _, _, err := DecodeRecord(AppendRecord(nil, &r)); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: DecodeRecord: %v", name, err)
		}
	}
	for name, r := range map[string]Record{
		"key": {Key: strings.Repeat("k", MaxKeyBytes+1)}, "name": {Headers: []HeaderField{{Name: strings.Repeat("n", MaxKeyBytes+1)}}}, "past": {Delay: -1},
	} {
		if err := r.Validate(); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: Validate: %v", name, err)
		}
	}
}

func TestPositionsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Position{
			Partition: PartitionID(rapid.Uint64().Draw(t, "partition")),
			Lane:      Lane{ring.NodeID(rapid.Uint64().Draw(t, "node")), rapid.Uint64().Draw(t, "epoch")},
			Offset:    Offset(rapid.Uint64().Draw(t, "offset")),
		}
		id := p.String()
		if got, err := ParsePosition(id); err != nil || got != p {
			t.Fatalf("%+v came back as %+v, %v", p, got, err)
		}
		last := strings.IndexByte("0123456789abcdefghjkmnpqrstvwxyz", id[len(id)-1])
		other := id[:len(id)-1] + string("0123456789abcdefghjkmnpqrstvwxyz"[last^1])
		for _, bad := range []string{other, id + "\n", id[:20] + "\n" + id[21:], strings.ToUpper(id) + "a", id[1:], ""} {
			if _, err := ParsePosition(bad); !errors.Is(err, ErrBadID) {
				t.Fatalf("%q: %v", bad, err)
			}
		}
	})
}

func TestReceiptsAreBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.Uint64().Draw(t, "key")
		r := Receipt{
			Partition: 1, Group: 2, Lane: Lane{3, 4}, Run: Span(5, 9), Term: Term{6, 7}, Attempt: rapid.Uint32().Draw(t, "attempt"),
			Producer: 8, Sequence: rapid.Uint64Max(1<<60).Draw(t, "sequence"),
		}
		r.Sign(key)
		if !r.Valid(key) || r.Valid(key+1) {
			t.Fatalf("Valid with its key %v, with another %v", r.Valid(key), r.Valid(key+1))
		}
		for name, change := range map[string]func(*Receipt){
			"partition": func(r *Receipt) { r.Partition++ }, "group": func(r *Receipt) { r.Group++ },
			"node": func(r *Receipt) { r.Lane.Node++ }, "epoch": func(r *Receipt) { r.Lane.Epoch++ },
			"from": func(r *Receipt) { r.Run.From++ }, "to": func(r *Receipt) { r.Run.To++ },
			"counter": func(r *Receipt) { r.Term.Counter++ }, "term node": func(r *Receipt) { r.Term.Node++ },
			"attempt": func(r *Receipt) { r.Attempt++ }, "producer": func(r *Receipt) { r.Producer++ },
			"sequence": func(r *Receipt) { r.Sequence++ }, "MAC": func(r *Receipt) { r.MAC++ },
			"serial": func(r *Receipt) { r.Serial++ },
		} {
			c := r
			change(&c)
			if c.Valid(key) {
				t.Fatalf("a receipt with another %s is valid", name)
			}
		}
		s := Offset(r.Sequence)
		if got := r.Sequences(Runs{Span(5, 6), Span(7, 9)}); !got.Equal(Runs{Span(s, s+1), Span(s+2, s+4)}) {
			t.Fatalf("Sequences: %v of %d", got, s)
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	b := sampleBatch()
	f.Add(b.Append(nil))
	f.Add(b.AppendHeader(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, rest, err := DecodeBatch(p)
		if err != nil {
			return
		}
		if again := b.Append(nil); len(again)+len(rest) != len(p) {
			t.Fatalf("%d bytes and %d after them, of %d", len(again), len(rest), len(p))
		}
		_ = CheckRecords(b.Records, b.Count, MaxRecordBytes)
	})
}

func FuzzDecodeRecord(f *testing.F) {
	p, _ := sampleRecords()
	f.Add(p)
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, p []byte) {
		delay, _, delayErr := RecordDelay(p)
		r, rest, err := DecodeRecord(p)
		if err != nil {
			return
		}
		if delayErr != nil || delay != r.Delay {
			t.Fatalf("delay %s, %v of %+v", delay, delayErr, r)
		}
		if skipped, err := SkipRecords(p, 1); err != nil || len(skipped) != len(rest) {
			t.Fatalf("SkipRecords leaves %d bytes, DecodeRecord %d: %v", len(skipped), len(rest), err)
		}
		if got, _, err := DecodeRecord(AppendRecord(nil, &r)); err != nil || !reflect.DeepEqual(got.Headers, r.Headers) && len(r.Headers) > 0 || got.Key != r.Key || got.Delay != r.Delay || !bytes.Equal(got.Body, r.Body) {
			t.Fatalf("%+v came back as %+v, %v", r, got, err)
		}
	})
}

func FuzzParsePosition(f *testing.F) {
	f.Add(Position{Partition: 1, Lane: Lane{2, 3}, Offset: 4}.String())
	f.Fuzz(func(t *testing.T, id string) {
		if p, err := ParsePosition(id); err == nil && p.String() != id {
			t.Fatalf("%q is read as %q", id, p.String())
		}
	})
}
