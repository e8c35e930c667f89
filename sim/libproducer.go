package sim

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/cespare/xxhash/v2"

	libcore "github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
	"github.com/meshq/meshq/transport/wire"
)

// libProducer is a program that sends to one queue through the client library.
type libProducer struct {
	library
	queue   string
	think   int64 // mean time between sends
	batch   int   // messages of a send, at most
	bytes   int   // of a body, at most
	keys    int
	left    int // messages that it may still send
	timeout int64
	waits   bool // like Send; otherwise like SendAsync, with so many under way at most
	hurry   hurry
	until   int64 // no new message after that

	number uint64 // of the next message of this process
	open   map[uint64]*libItem
	ended  bool
	closed bool
}

// asyncMost is how many messages SendAsync has under way at most.
const asyncMost = 200

// libItem is one message that is under way, or was. It is the library's ticket for it.
type libItem struct {
	p        *libProducer
	number   uint64
	key      msgKey // what the nodes know it as; zero until it is first sent
	body     string
	wait     *wait
	canceled bool
	answered bool
}

func (w *world) newLibProducer(x *plan.Producer) *libProducer {
	p := &libProducer{
		queue: x.Queue, think: int64(x.Think), batch: x.Batch, bytes: x.Bytes, keys: x.Keys, left: x.Count, timeout: int64(x.Timeout),
	}
	if p.left == 0 {
		p.left = math.MaxInt
	}
	p.init(w, x.Name, p)
	p.waits = p.chance(2)
	p.watch.stored = func(number uint64, key msgKey) {
		if it := p.open[number]; it != nil {
			it.key = key
		}
	}
	return p
}

// start lets it send until a time.
func (p *libProducer) start(until int64) {
	p.until = until
	p.boot()
}

func (p *libProducer) begin() {
	p.number, p.open, p.closed = 0, map[uint64]*libItem{}, false
	p.next()
}

func (p *libProducer) gone() { p.open = nil }

func (p *libProducer) settle() {}

// rush lets it think that many times as fast for d.
func (p *libProducer) rush(times int, d int64) {
	p.w.after(d, p.hurry.up(times))
}

// stuck is the oldest message without an answer.
func (p *libProducer) stuck() (about msgKey, what string) {
	for _, it := range p.openItems() {
		return it.key, fmt.Sprintf("message %d", it.number)
	}
	return msgKey{}, ""
}

// through tells whether nothing is under way and nothing is to come.
func (p *libProducer) through() bool { return p.ended && len(p.open) == 0 }

func (p *libProducer) next() {
	p.h.later(exponential(p.coin(), p.think/p.hurry.times()), p.send)
}

// send gives the library some messages.
func (p *libProducer) send() {
	if p.w.now >= p.until || p.left == 0 {
		p.finish()
		return
	}
	if p.waits && len(p.open) > 0 || len(p.open) >= asyncMost {
		p.next()
		return
	}
	n := min(int(between(p.coin(), 1, int64(p.batch)+1)), p.left)
	p.left -= n
	by := p.now().Add(libDuration(p.timeout))
	var items []libcore.Item
	for range n {
		r := p.record()
		it := &libItem{p: p, number: p.number, body: string(r.Body)}
		it.wait = p.ask(by, "message %d", it.number)
		p.open[it.number] = it
		p.w.tellSent(p.sentBy(it), &r, p.timeout)
		items = append(items, libcore.Item{Ticket: it, Queue: p.queue, Record: r, Until: by})
		if p.chance(100) {
			p.h.later(exponential(p.coin(), 20*millisecond), func() { p.cancel(it) })
		}
		p.number++
	}
	p.step(libcore.Send{Items: items})
	if p.core != nil {
		p.next()
	}
}

// record makes the next message. Its body says all there is to know of it.
func (p *libProducer) record() wire.Record {
	var r wire.Record
	if p.keys > 0 {
		r.Key = fmt.Sprintf("k%d", p.coin()%uint64(p.keys))
	}
	if p.chance(4) {
		r.Headers = []wire.HeaderField{{Name: "number", Value: fmt.Sprint(p.number)}}
	}
	text := fmt.Sprintf("%s-%d|%s|", p.name, p.number, r.Key)
	if room := p.bytes - len(text) - 9; room > 0 {
		text += strings.Repeat("x", int(p.coin()%uint64(room+1)))
	}
	r.Body = fmt.Appendf(nil, "%s|%08x", text, uint32(xxhash.Sum64String(text)))
	return r
}

// sound tells what is wrong with a body that a producer made, and its key.
func sound(r *wire.Record) error {
	text := string(r.Body)
	i := strings.LastIndexByte(text, '|')
	if i < 0 || strings.Count(text, "|") < 3 {
		return nil // of a raw producer
	}
	if fmt.Sprintf("%08x", uint32(xxhash.Sum64String(text[:i]))) != text[i+1:] {
		return errors.New("its checksum does not fit")
	}
	if key := strings.Split(text, "|")[1]; key != r.Key {
		return fmt.Errorf("its key is %q, sent was %q", r.Key, key)
	}
	return nil
}

func (p *libProducer) sentBy(it *libItem) sentBy {
	return sentBy{who: p.h.name, producer: p.name, number: it.number, queue: p.queue}
}

func (p *libProducer) cancel(it *libItem) {
	if !it.answered {
		it.canceled = true
		p.step(libcore.Cancel{Queue: p.queue, Ticket: it})
	}
}

// finish ends the load of this producer. Some programs close the library at once, which
// sends what it can in the time that it is given.
func (p *libProducer) finish() {
	if p.ended = true; p.closed || !p.chance(2) {
		return
	}
	p.closed = true
	by := p.now().Add(libDuration(between(p.coin(), 0, 2*second)))
	for _, it := range p.openItems() {
		it.wait.by = min(it.wait.by, by)
	}
	p.step(libcore.Close{Until: by})
}

// openItems are those that are not answered, by number.
func (p *libProducer) openItems() []*libItem {
	var out []*libItem
	for n := uint64(0); n < p.number && len(out) < len(p.open); n++ {
		if it := p.open[n]; it != nil {
			out = append(out, it)
		}
	}
	return out
}

func (p *libProducer) told(ef libcore.Effect) {
	switch ef := ef.(type) {
	case libcore.Confirmed:
		for i, t := range ef.Tickets {
			it, ok := t.(*libItem)
			if !ok {
				continue
			}
			at := ef.Base
			at.Offset += wire.Offset(i)
			p.answer(it)
			p.confirmed(it, at, ef.Nodes, ef.Want)
		}
	case libcore.Failed:
		for _, t := range ef.Tickets {
			it := t.(*libItem)
			p.answer(it)
			p.failed(it, ef.Err)
		}
	case libcore.Closed:
		if len(p.open) > 0 {
			p.w.fail("P10", p.openItems()[0].key, "the library of %s is closed, and %d messages have no answer", p.name, len(p.open))
		}
	}
}

// answer notes that a message is answered: that happens once (P10).
func (p *libProducer) answer(it *libItem) {
	if it.answered {
		p.w.fail("P10", it.key, "the library of %s answers message %d twice", p.name, it.number)
		return
	}
	it.answered, it.wait.over = true, true
	delete(p.open, it.number)
}

// confirmed checks P1 as the program sees it: enough disks have the message.
func (p *libProducer) confirmed(it *libItem, at wire.Position, nodes []ring.NodeID, want int) {
	k := p.w.check
	m := k.messages[it.key]
	if m == nil || m.body != it.body || m.partition != at.Partition {
		p.w.fail("P1", it.key, "the library of %s confirms message %d, which it did not send to %s", p.name, it.number, p.w.names.partition(at.Partition))
		return
	}
	if n := bits.OnesCount64(k.synced[it.key]); (n < want || len(nodes) < want) && !k.allDone(it.key) {
		p.w.fail("P1", it.key, "%s is told that %s is synced on %d of %d nodes; it is on %s", p.name, k.about(it.key), len(nodes), want, k.holding(it.key))
		return
	}
	k.confirmed()
	p.w.tellConfirmed(p.sentBy(it), at, nodes, want)
}

// failed checks P10: the error is one of those that a send may meet, and one that says
// "not stored" is true for ever.
func (p *libProducer) failed(it *libItem, err error) {
	k := p.w.check
	var s *libcore.SendError
	if !errors.As(err, &s) {
		p.w.fail("P10", it.key, "%s is told of message %d: %v, which is no SendError", p.name, it.number, err)
		return
	}
	code := ""
	var e *wire.Error
	switch {
	case errors.As(s.Err, &e):
		code = history.CodeName(uint16(e.Code))
		switch e.Code {
		case wire.CodeOverloaded, wire.CodeDiskFull, wire.CodeNotReady, wire.CodeNotOwner, wire.CodeNoQueue, wire.CodeLaneConflict:
		case wire.CodeQuorum, wire.CodeTimeout:
			if !s.Unknown {
				p.w.fail("P10", it.key, "%s is told that message %d is not stored, for %q", p.name, it.number, e.Error())
				return
			}
		default:
			p.w.fail("P10", it.key, "%s is told of message %d: %v", p.name, it.number, err)
			return
		}
	case errors.Is(s.Err, libcore.ErrUnreachable):
		code = history.CodeUnreachable
	case errors.Is(s.Err, libcore.ErrNotSent):
		code = history.CodeNotSent
	case errors.Is(s.Err, libcore.ErrCanceled) && it.canceled:
		code = history.CodeCanceled
	case errors.Is(s.Err, libcore.ErrClosed) && p.closed:
		code = history.CodeClosed
	default:
		p.w.fail("P10", it.key, "%s is told of message %d: %v", p.name, it.number, err)
		return
	}
	if s.Unknown != errors.Is(err, wire.ErrQuorum) {
		p.w.fail("P10", it.key, "%s is told of message %d: %v; unknown is %t, and errors.Is says otherwise", p.name, it.number, err, s.Unknown)
		return
	}
	if m := k.messages[it.key]; m != nil && !s.Unknown {
		if k.stored(it.key) {
			p.w.fail("P10", it.key, "%s is told that %s is not stored (%v), and it is on %s", p.name, k.about(it.key), err, k.holding(it.key))
			return
		}
		m.refused = true
	}
	p.w.tellRefused(p.sentBy(it), s.Unknown, code)
}
